"""A dataset and a backbone enter; vectors in the cache and an account of the work leave."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from featcache.api import cluster
from featcache.api.asking import asked
from featcache.api.options import Options, find_weights, open_cache, places, reading
from featcache.api.pipeline import Work, compute
from featcache.api.precision import as_asked
from featcache.api.price import price
from featcache.api.usage import newest_uses
from featcache.backbones import Backbone, note, resolve
from featcache.discover import SPLIT_NAMES, discover
from featcache.embed import check_running
from featcache.errors import DatasetError, EngineError, UsageError
from featcache.process import after_forks_too
from featcache.records import ORIGINAL, VIEWS, Dataset, ExtractSummary, Failure, Progress, Source, ViewSummary
from featcache.sheets import csv_text
from featcache.store import Cache, Cells, Row, Run

SPLITS = tuple(dict.fromkeys(SPLIT_NAMES.values()))

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Extraction:
    """What an extraction found: its account, its run, and its pictures in order."""

    summary: ExtractSummary
    run: Run
    rows: Sequence[Row]


@after_forks_too
def extract(
    source: Source,
    options: Options | None = None,
    progress: Progress | None = None,
    views: Sequence[str] = (),
    check: bool = False,
    shard: tuple[int, int] | None = None,
) -> ExtractSummary:
    """Run every picture of `source` whose vector is not in the cache through the backbone, once.

    `source` is a folder, an archive, a manifest, a picture or a dataset object, see `discover`; `views` names groups of
    further views, see `records.VIEWS`. With `check` the price of less precision is measured, see `price`. `progress` is
    called for every picture that has to be read. Whatever was computed stays, also on Ctrl-C. With a `shard` (i, n),
    i from 0 to n - 1, only that part is computed; the dataset is there once it is extracted without one. Raises
    `FeatcacheError`.
    """
    options = options or Options()
    with asked("extract", source, options) as run:
        return _extract(source, options, progress, views, check, shard, run).summary


@after_forks_too
def extract_in_hand(source: Source, options: Options, progress: Progress | None) -> Extraction:
    """Extract a dataset as `extract` does, for a command that works on what was found, whatever others do meanwhile."""
    with asked("extract", source, options) as run:
        return _extract(source, options, progress, (), False, None, run)


def _extract(
    source: Source,
    options: Options,
    progress: Progress | None,
    views: Sequence[str],
    check: bool,
    shard: tuple[int, int] | None,
    run: Run | None,
) -> Extraction:
    if shard is not None:
        _check_shard(shard, check)
    options = find_weights(options)
    unknown = [name for name in views if name not in VIEWS]
    if unknown:
        raise DatasetError(f"unknown view {unknown[0]!r}: use {', '.join(VIEWS)}, or several with commas")
    if check and options.precision == "fp32" and not options.draft:
        raise EngineError("fp32 is what a check compares with: ask for it with --precision int8, fp16 or --draft")
    dataset = discover(source, **reading(options))
    if options.engine == cluster.NAME:
        cluster.check(options)
    elif options.address:
        raise UsageError(f"--address {options.address} names a Ray cluster: give --engine ray too")
    else:
        check_running(options.device, options.engine, options.precision)
    backbone = resolve(options.backbone, options.weights, Cells(places(options)[0] / "backbones"))
    with open_cache(options) as cache, cache.in_use():
        note(cache.backbones, backbone, options.weights)
        backbone = as_asked(cache, backbone, dataset, options)
        run = cache.renewed(run)
        further = tuple(name for group in dict.fromkeys(views) for name in VIEWS[group])
        for view in (ORIGINAL, *further):
            cache.fetch(backbone.viewing(view).spec)
        if shard is not None:
            return _extract_shard(cache, dataset, backbone, options, progress, further, shard, run)
        done = extract_into(cache, dataset, backbone, options, progress, further, run)
        if check:
            alone = replace(options, engine="auto", address=None) if options.engine == cluster.NAME else options
            checked = price(cache, done.rows, backbone, alone, progress, dataset.access)
            done = replace(done, summary=replace(done.summary, check=checked))
        return done


def extract_into(
    cache: Cache,
    dataset: Dataset,
    backbone: Backbone,
    options: Options,
    progress: Progress | None,
    views: Sequence[str] = (),
    run: Run | None = None,
) -> Extraction:
    """Extract a dataset, and keep it in the catalog as the one last extracted, or as the one of an earlier `run`.

    Each of the further `views` has a run of its own; the first of all is the `run` that was asked for.
    """
    for notice in (*dataset.notices, *_relabelled(cache, dataset)):
        _logger.warning("%s", notice)
    # The original view comes last, so that it is the extraction that the catalog knows as the dataset's.
    backbones = [*(backbone.viewing(view) for view in views), backbone]
    # Where views are stopped, an extraction before them stays as it was.
    late = backbones[-1:] if views and _was_extracted(cache, dataset, backbone) else []
    runs = _begin(cache, dataset, backbones[: len(backbones) - len(late)], run)
    cache.catalog.remember_files((path, *found) for path, found in cache.shards.of(dataset.root).items())
    works = _works(cache, dataset, backbones, options, progress)
    runs += _begin(cache, dataset, late)
    torn = [*_torn(works[-1].rows)]
    for notice in torn:
        _logger.warning("%s", notice)
    dataset = replace(dataset, notices=(*dataset.notices, *torn))
    failures = works[-1].failures
    listing = str(cache.put(f"runs/{runs[-1].id:06d}-unreadable.csv", _failures_csv(failures))) if failures else None
    if len(failures) == len(dataset.items):
        for started in runs:
            if run is None or started.id != run.id or run.summary is not None:
                cache.runs.drop(started)
            else:  # it was asked for, and came to nothing
                cache.runs.begin(started, dataset.root, "")
        raise DatasetError(
            f"no readable picture in {dataset.root}: {failures[0].reason} ({failures[0].path}); "
            f"files and reasons, {len(failures):,} in all, are listed in {listing}"
        )
    cache.shards.drop(dataset.root)
    done: tuple[ViewSummary, ...] = ()
    for seen, started, work in zip(backbones, runs, works, strict=True):
        saved = cache.catalog.save_dataset(dataset.root, work.rows, started.id)
        plain, paged = cache.catalog.plain_and_paged(dataset.root, seen.spec.reading)
        summary = replace(_summary(cache, dataset, seen, options, work, listing, done), plain=plain, paged=paged)
        finished = cache.runs.finish(started, asdict(replace(summary, failures=())), rows_sha256=saved)
        took = summary.seconds.total
        done = (*done, ViewSummary(seen.spec.view, summary.fingerprint, summary.reused, summary.computed, took))
    return Extraction(summary, finished, works[-1].rows)


def _relabelled(cache: Cache, dataset: Dataset) -> Iterator[str]:
    """Yield what is to be said of pictures whose label or split is not what it was, whatever the reason."""
    known = {row.item.path: row.item for row in cache.catalog.dataset(dataset.root)}
    changed = [item for item in dataset.items if known.get(item.path, item) != item]
    if changed:
        (label, split), (was, was_in) = (
            (item.label or "no label", item.split or "no split") for item in (changed[0], known[changed[0].path])
        )
        yield (
            f"{len(changed):,} of {len(dataset.items):,} pictures have another label or split than when {dataset.root} "
            f"was extracted before: {changed[0].path} is {label}, {split}, and was {was}, {was_in}"
        )


def _torn(rows: Sequence[Row]) -> Iterator[str]:
    """Yield what is to be said of pictures under more than one label, and of a class that holds those of others."""
    labels: dict[bytes, str] = {}
    torn: dict[bytes, dict[str, str]] = {}
    for row in rows:
        label = row.item.label
        if row.key is not None and label is not None and labels.setdefault(row.key, label) != label:
            torn[row.key] = {}
    if not torn:
        return
    for row in rows:
        if row.key in torn and row.item.label is not None:
            torn[row.key].setdefault(row.item.label, row.item.path)
    first = "; ".join(f"{label}: {path}" for label, path in next(iter(torn.values())).items())
    verb = "picture is" if len(torn) == 1 else "pictures are"
    yield f"{len(torn):,} {verb} there under more than one label, which no head can fit: {first}"
    ((label, n),) = Counter(label for found in torn.values() for label in found).most_common(1)
    others = {other for found in torn.values() if label in found for other in found} - {label}
    if len(others) > 1 and not any(of == label for key, of in labels.items() if key not in torn):
        yield (
            f"all {n:,} pictures of {label!r} are there under other labels too: if it holds those of all classes, and "
            "is none, move it out and extract again"
        )


def _sizes(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    """Return how many readable pictures each label has in each split, labels and splits in order."""
    found = Counter((row.item.label or "", row.item.split or "") for row in rows if row.reason is None)
    splits = sorted({split for _, split in found}, key=lambda name: (name == "", SPLITS.index(name) if name else 0))
    return {label: {split: found[label, split] for split in splits} for label in sorted({label for label, _ in found})}


def _begin(cache: Cache, dataset: Dataset, backbones: Sequence[Backbone], run: Run | None = None) -> list[Run]:
    """Return a run for each view, of which the first may be there already."""
    runs = []
    for seen in backbones:
        begun = run or cache.runs.start("extract", dataset.root, seen.spec.fingerprint)
        runs.append(cache.runs.begin(begun, dataset.root, seen.spec.fingerprint))
        run = None
    return runs


def _check_shard(shard: tuple[int, int], check: bool) -> None:
    number, count = shard
    n = max(count, 1)
    if not 0 <= number < count:
        raise UsageError(f"there is no shard {number}/{count}: they go from 0/{n} to {n - 1}/{n}")
    if check:
        raise UsageError("--check looks at a whole dataset: leave it out with --shard, and extract all afterwards")


def _extract_shard(
    cache: Cache,
    dataset: Dataset,
    backbone: Backbone,
    options: Options,
    progress: Progress | None,
    views: Sequence[str],
    shard: tuple[int, int],
    run: Run | None,
) -> Extraction:
    """Compute one part of a dataset; its run stays unfinished, so that nobody takes its vectors for unused."""
    number, count = shard
    first, last = (len(dataset.items) * at // count for at in (number, number + 1))
    part = replace(dataset, items=dataset.items[first:last])
    backbones = [*(backbone.viewing(view) for view in views), backbone]
    begun = _begin(cache, dataset, backbones, run)[-1]
    work = _works(cache, part, backbones, options, progress)[-1]
    cache.shards.put(dataset.root, shard, cache.catalog.known_files(item.path for item in part.items))
    return Extraction(replace(_summary(cache, part, backbone, options, work, None, ()), shard=shard), begun, work.rows)


def _works(
    cache: Cache, dataset: Dataset, backbones: Sequence[Backbone], options: Options, progress: Progress | None
) -> list[Work]:
    if options.engine == cluster.NAME:
        return cluster.compute_with_ray(cache, dataset, backbones, options, progress)
    return compute(cache, dataset.items, backbones, options, progress, dataset.access)


def _was_extracted(cache: Cache, dataset: Dataset, backbone: Backbone) -> bool:
    known = newest_uses(cache).get(dataset.root)
    return known is not None and known.fingerprint == backbone.spec.fingerprint


def _summary(
    cache: Cache,
    dataset: Dataset,
    backbone: Backbone,
    options: Options,
    work: Work,
    listing: str | None,
    views: tuple[ViewSummary, ...],
) -> ExtractSummary:
    failures, engine = work.failures, work.engine
    return ExtractSummary(
        dataset=dataset.root,
        cache=str(cache.folder),
        backbone=backbone.name,
        weights=backbone.weights,
        weights_file=str(options.weights.absolute()) if options.weights else None,
        fingerprint=backbone.spec.fingerprint,
        precision=backbone.spec.precision,
        dim=work.dim,
        engine=engine.name if engine else None,
        engine_why=engine.why if engine else None,
        device=engine.device if engine else None,
        found=len(work.rows),
        reused=work.distinct - work.computed,
        computed=work.computed,
        duplicates=len(work.rows) - len(failures) - work.distinct,
        unreadable=len(failures),
        unreadable_file=listing,
        seconds=work.seconds,
        failures=failures,
        notices=dataset.notices,
        view=backbone.spec.view,
        views=views if backbone.spec.view == ORIGINAL else (),
        columns=dict(options.columns) if options.columns else None,
        label_from=options.label_from,
        names_encoding=options.names_encoding,
        classes=_sizes(work.rows),
        reading=backbone.spec.reading,
        skipped=dict(dataset.skipped),
    )


def _failures_csv(failures: Sequence[Failure]) -> bytes:
    rows = ((failure.path, failure.reason) for failure in failures)
    return csv_text(["path", "reason"], rows).encode(errors="backslashreplace")
