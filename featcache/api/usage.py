"""A cache enters; which dataset uses which features, and which vectors nobody uses, leaves."""

from __future__ import annotations

import contextlib
import logging
import shlex
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from featcache.api.agreement import check_holds, is_behind, is_of_another, lost, of_another
from featcache.errors import CacheError, DatasetError
from featcache.records import ORIGINAL
from featcache.records.cache import UnusedRows
from featcache.records.reading import Reading
from featcache.store import EXTRACTIONS, FORGET, Cache, FeatureStore, Row, Run
from featcache.store.files import denied, number_of
from featcache.store.index import KeyIndex, stack_keys
from featcache.store.segment import KEY_BYTES, Keys

_logger = logging.getLogger(__name__)

FOR_TRAINING = "kept for fine-tuning, and computed again where it is needed"


@dataclass(frozen=True)
class Unused:
    """Keys of one fingerprint that no dataset uses, and the account of them."""

    keys: list[bytes]
    account: UnusedRows


def uses(cache: Cache) -> list[Run]:
    """Return the newest extraction of each dataset of our catalog for each kind of features, oldest first.

    Two fingerprints are of one kind when they differ only in weights, preprocessing or schema: the newer one takes the
    place of the older. An extraction that was not finished stands beside the one before it.
    """
    kinds: dict[str, Hashable] = {}
    found: dict[str, dict[Hashable, list[Run]]] = {}
    order = _order(cache)
    for run in sorted(cache.runs.all(), key=order):
        if run.command == FORGET:
            found.pop(run.root, None)
        elif _has_begun(run) and run.catalog == cache.runs.catalog:
            if run.fingerprint not in kinds:
                kinds[run.fingerprint] = _kind(cache, run.fingerprint)
            before = found.setdefault(run.root, {}).setdefault(kinds[run.fingerprint], [])
            before[:] = [run] if run.summary else [*(old for old in before if old.summary), run]
    return sorted((run for of_root in found.values() for runs in of_root.values() for run in runs), key=order)


def _order(cache: Cache) -> Callable[[Run], tuple[int, int]]:
    """Return what sorts runs: a finished extraction stands where it was committed, any other run where it began."""
    places: dict[int, tuple[int, int]] = {}
    latest = dict.fromkeys(cache.catalog.roots(), 0)
    for number, (root, run) in enumerate(cache.catalog.all_commits(), 1):
        if root in latest:
            latest[root] = max(latest[root], run)
            places[run] = latest[root], number
    return lambda run: places.get(run.id, (run.id, 0)) if run.summary else (run.id, 0)


def _has_begun(run: Run) -> bool:
    return run.command in EXTRACTIONS and bool(run.fingerprint)


def elsewhere(cache: Cache) -> list[str]:
    """Return the datasets that are in other catalogs of this cache: nobody knows here which vectors they use."""
    found: dict[str, None] = {}
    for run in cache.runs.all():
        if run.command == FORGET:
            found.pop(run.root, None)
        elif _has_begun(run) and run.catalog != cache.runs.catalog:
            found[run.root] = None
    return list(found)


def stays_for(run: Run) -> str:
    """Return what to say of a run that stands for one that could not be read."""
    return (
        f"{run.root} could not be read as a run ({run.error}), so that nobody knows which vectors it used, and all "
        "stay: extract again what is wanted, then give up on it with "
        f"`featcache cache gc --forget {shlex.quote(run.root)}`"
    )


def unknown(cache: Cache) -> list[str]:
    """Return the datasets of the catalog of which no run is left: nobody knows which features they use."""
    known = {run.root for run in uses(cache)}
    return [root for root in cache.catalog.roots() if root not in known]


def without_runs(root: str) -> str:
    """Return what to say of a dataset of which no run is left."""
    return (
        f"no run of {root} is left in the cache, so that nobody knows which vectors it uses: "
        "extract it again, or give up on it with `featcache cache gc --forget`"
    )


def newest_uses(cache: Cache) -> dict[str, Run]:
    """Return for each dataset its newest finished extraction: the one whose pictures the catalog holds."""
    return {run.root: run for run in uses(cache) if run.summary}


def views_of(cache: Cache, extraction: Run) -> dict[str, str]:
    """Return the fingerprints of the further views that were extracted of a dataset, by the name of the view."""
    spec = cache.spec(extraction.fingerprint)
    found: dict[str, str] = {}
    for run in uses(cache):
        view = _view(cache, run)
        if run.root == extraction.root and run.summary and view != ORIGINAL:
            seen = cache.spec(run.fingerprint)
            found |= {view: run.fingerprint} if replace(seen, view=ORIGINAL) == spec else {}
    return dict(sorted(found.items()))


def _view(cache: Cache, run: Run) -> str:
    try:
        return cache.spec(run.fingerprint).view
    except CacheError:
        return ORIGINAL


def last_asked(cache: Cache) -> Run | None:
    """Return the run of what was last asked to be extracted and not given up since, whatever came of it."""
    found: list[Run] = []
    for run in cache.runs.all():
        if run.command in EXTRACTIONS and run.catalog == cache.runs.catalog:
            found.append(run)
        elif run.command == FORGET:
            found = [asked for asked in found if asked.root != run.root]
    return found[-1] if found else None


def last_extraction(cache: Cache, root: str | None = None) -> Run:
    """Return the last extraction of a dataset; without one of what was last asked for, and say in the log what it is.

    Nothing older is taken in its place: raises `DatasetError` where it is missing, failed or unfinished.
    """
    _check_newest(cache, root)
    known = [run for run in uses(cache) if _view(cache, run) == ORIGINAL]
    asked = last_asked(cache) if root is None else None
    if asked is not None and not asked.fingerprint:
        raise DatasetError(_came_to_nothing(cache, asked, known))
    if not known:
        raise DatasetError(f"nothing has been extracted into {cache.folder}: run `featcache extract FOLDER` first")
    wanted = root if asked is None else asked.root
    runs = [run for run in known if wanted in (None, run.root)]
    if not runs:
        roots = ", ".join(dict.fromkeys(run.root for run in known))
        raise DatasetError(f"the cache holds no extraction of {root}: it knows {roots}")
    run = runs[-1]
    finished = [run for run in runs if run.summary]
    if run.summary is None and root is not None and finished:
        run = finished[-1]
        _logger.warning("%s; what was extracted before is used: %s", _began(runs[-1]), described(cache, run))
    if run.summary is None:
        raise DatasetError(_not_finished(cache, run, known))
    check_holds(cache, run)
    if root is None:
        _logger.warning("on %s", described(cache, run))
    if run.command == "extract" and "plain" not in run.summary and cache.catalog.may_hold_tiff(run.root):
        _logger.warning(
            "%s was extracted by a version that decoded some kinds of TIFF wrong: extract it again, which reads such "
            "files once, and computes only those",
            run.root,
        )
    return run


def _check_newest(cache: Cache, root: str | None) -> None:
    """Raise `DatasetError` where the run is lost that was the last of a dataset, or of all."""
    saved = [entry for entry in cache.catalog.all_commits() if root in (None, entry[0])]
    if saved and saved[-1] in (gone := lost(cache)):
        raise DatasetError(gone[saved[-1]])
    if saved and is_of_another(cache, saved[-1][0]):
        raise DatasetError(of_another(cache, saved[-1][0]))
    if root is None:
        newest = max((run.id for run in cache.runs.all() if run.command in EXTRACTIONS), default=0)
        for path, number in cache.runs.broken().items():
            if number > newest:
                raise DatasetError(
                    f"{denied(path) or f'{path} cannot be read as a run: put it back or remove it'}; until then nobody "
                    "knows which dataset was asked for last: name the one that is meant"
                )
        for run in cache.runs.kept_for():
            if (number_of(Path(run.root).name) or run.id) > newest:  # a copy beside a run has another number now
                raise DatasetError(
                    f"{run.root} could not be read as a run and was put aside, so that nobody knows which dataset was "
                    "asked for last: name the dataset that is meant"
                )


def rows_of(cache: Cache, run: Run) -> list[Row]:
    """Return the pictures of an extraction; raises `DatasetError` where the catalog does not hold them, or others."""
    cache.catalog.check_dataset(run.root)
    rows = cache.catalog.dataset(run.root)
    check_holds(cache, run)  # after they were read, since they may be saved anew at any time
    if not rows:
        raise not_catalogued(cache, run.root)
    return rows


def extracted_at(run: Run) -> str:
    """Return when an extraction was finished, in UTC in ISO 8601."""
    return datetime.fromtimestamp(run.finished or run.started, UTC).isoformat(timespec="seconds")


def described(cache: Cache, run: Run) -> str:
    """Return in words of which dataset and network an extraction is, and from when."""
    return f"{run.root}, {network_of(cache, run)}, {run.command}ed {_said(extracted_at(run))}"


def network_of(cache: Cache, run: Run) -> str:
    """Return in words which network made the features of an extraction."""
    known = run.summary or {}
    words = [str(known.get("backbone") or backbone_of(cache, run.fingerprint)), f"({known.get('weights')})"]
    with contextlib.suppress(CacheError):
        spec = cache.spec(run.fingerprint)
        words += [spec.precision] * (spec.precision != "fp32") + ["drafted"] * (spec.decoding is not None)
    return " ".join(words)


def _said(iso: str) -> str:
    return f"{iso[:16].replace('T', ' ')} UTC"


def _began(run: Run) -> str:
    """Return in words which extraction this is, and how it ended."""
    when = _said(datetime.fromtimestamp(run.started, UTC).isoformat())
    end = f"failed ({run.error})" if run.error else "was not finished"
    what = "extraction" if run.command == "extract" else run.command
    return f"the {what}{f' of {run.root}' if run.root else ''}, asked for {when}, {end}"


def _older(cache: Cache, run: Run, known: Sequence[Run]) -> str:
    """Return how to go on with a finished extraction from before."""
    older = next((old for old in reversed(known) if old.summary and old.id < run.id), None)
    return "" if older is None else f", or name the dataset that is meant (before it: {described(cache, older)})"


def _came_to_nothing(cache: Cache, asked: Run, known: Sequence[Run]) -> str:
    give_up = f", or give up on it with `featcache cache gc --forget {shlex.quote(asked.root)}`"
    if not asked.root or any(run.root == asked.root for run in known):
        give_up = ""  # it would give up what was extracted before, too
    return (
        f"{_began(asked)}, and no other dataset is taken for it: mend that and run it again"
        f"{_older(cache, asked, known)}{give_up}"
    )


def _not_finished(cache: Cache, run: Run, known: Sequence[Run]) -> str:
    root = shlex.quote(run.root)
    again = f"extract {root}{_features(cache, run)}" if run.command == "extract" else f"cache import {root}"
    return (
        f"{_began(run)}: run `featcache {again}` again, with its other options as they were and without --shard"
        f"{_older(cache, run, known)}, or give up on it with `featcache cache gc --forget {root}`"
    )


def _features(cache: Cache, run: Run) -> str:
    """Return the options that ask for the features of a run."""
    with contextlib.suppress(CacheError):
        spec = cache.spec(run.fingerprint)
        words = [f" --backbone {spec.backbone}", f" --precision {spec.precision}" if spec.precision != "fp32" else ""]
        said = Reading.of(spec.reading)
        words += [f" --range {said.limits}"] * bool(said.limits) + [f" --pages {said.page}"] * (said.page != 1)
        words += [f" --channels {','.join(map(str, said.channels))}"] * bool(said.channels)
        return "".join([*words, " --draft" if spec.decoding else ""])
    return ""


def not_catalogued(cache: Cache, root: str) -> DatasetError:
    """Return the failure of a dataset whose vectors are there, and whose pictures the catalog does not know."""
    return DatasetError(
        f"the pictures of {root} are not in the catalog {cache.catalog_path}: run `featcache extract {root}`, "
        "which computes only what the cache lacks, or `featcache cache verify --repair`"
    )


def unused(cache: Cache, forgotten: Collection[str] = ()) -> list[Unused]:
    """Return the vectors that no dataset but the `forgotten` ones uses, a fingerprint each.

    Nothing is unused among the features of an extraction that was not finished, and nothing at all while a run that
    could not be read is not given up. Raises `CacheError` where a dataset is
    in another catalog, or in none, because then nobody knows what it uses.
    """
    for path in cache.runs.broken():
        said = denied(path) or (
            f"{path} cannot be read as a run: restore it, or run `featcache cache verify --repair`, which puts it aside"
        )
        raise CacheError(f"{said}; until then nobody knows what it used, and nothing is deleted")
    for said in cache.closed():
        raise CacheError(f"{said}; until then nobody knows what is used of it, and nothing is deleted")
    for root in unknown(cache):
        if root not in forgotten:
            raise CacheError(without_runs(root))
    for (root, _), said in lost(cache).items():
        if root not in forgotten:
            raise CacheError(said)
    for root in elsewhere(cache):
        if root not in forgotten:
            raise CacheError(
                f"{root} was extracted with another catalog than {cache.catalog_path}, so that nobody knows here which "
                "vectors it uses; if nobody needs it any more, give up on it with `featcache cache gc --forget`"
            )
    if any(run.root not in forgotten for run in cache.runs.kept_for()):
        return []
    used: dict[str, list[bytes] | None] = {}
    for run in uses(cache):
        if run.root in forgotten:
            continue
        if not run.summary:
            used[run.fingerprint] = None
            continue
        keys = _keys(cache, run)
        known = used.setdefault(run.fingerprint, [])
        if known is not None:
            known += keys
    there = cache.fingerprints()
    for name, wanted in used.items():
        if wanted and name not in there:
            raise CacheError(
                f"a run uses the features {name[:16]}, of which the cache holds none, so that nobody knows which "
                "vectors are used: extract its dataset again, or give up on it with `featcache cache gc --forget`"
            )
    return [found for name in there if (found := _unused(cache, name, used.get(name, []))) is not None]


def _unused(cache: Cache, fingerprint: str, used: list[bytes] | None) -> Unused | None:
    store = cache.store(fingerprint)
    if used is None:
        return None
    keys = store.keys
    free = KeyIndex(stack_keys(used)).find(keys) < 0
    if len(keys) and not free.any():
        return None
    gone = [key.tobytes() for key in keys[free]]
    kept = len(keys) - len(gone)
    size = _freed(store, stack_keys(gone)) if kept else cache.size(store.folder)
    account = UnusedRows(
        fingerprint, backbone_of(cache, fingerprint), len(gone), kept, size, _reason(cache, store, kept)
    )
    return Unused(gone, account)


def _freed(store: FeatureStore, gone: Keys) -> int:
    """Return the bytes that deleting these rows frees: whole files where nothing else is in them."""
    index, freed = KeyIndex(gone), 0
    for segment in store.live:
        rows = int((index.find(segment.keys) >= 0).sum())
        whole = (store.folder / segment.name).stat().st_size
        freed += whole if rows == len(segment.keys) else rows * (segment.header.row_bytes + KEY_BYTES)
    return freed


def backbone_of(cache: Cache, fingerprint: str) -> str | None:
    """Return the name of the backbone of a fingerprint, or `None` where its spec is lost."""
    try:
        return cache.spec(fingerprint).backbone
    except CacheError:
        return None


def _reason(cache: Cache, store: FeatureStore, kept: int) -> str:
    with contextlib.suppress(CacheError):
        if cache.spec(store.fingerprint).is_for_training:
            return FOR_TRAINING
    if kept:
        return "in no dataset any more"
    kind = _kind(cache, store.fingerprint)
    of_kind = [run.fingerprint for run in uses(cache) if _kind(cache, run.fingerprint) == kind]
    if of_kind and store.fingerprint not in of_kind:
        return f"an old fingerprint: extracted anew as {of_kind[-1][:16]}"
    return "in no dataset any more"


def _keys(cache: Cache, run: Run) -> list[bytes]:
    root, rows = run.root, cache.catalog.dataset(run.root)
    if rows and is_behind(cache, root, [run]):
        raise CacheError(
            f"the catalog {cache.catalog_path} is older than the last extraction of {root}, so that nobody knows which "
            "vectors it uses: run `featcache cache verify --repair`"
        )
    if not rows:
        raise CacheError(
            f"the pictures of {root} are not in the catalog {cache.catalog_path}, so that nobody knows which vectors "
            "they use: run `featcache cache verify --repair`, extract them again, or give up on them with --forget"
        )
    cache.catalog.check_dataset(root)
    if is_of_another(cache, root):
        raise CacheError(of_another(cache, root))
    return [row.key for row in rows if row.key is not None]


def _kind(cache: Cache, fingerprint: str) -> Hashable:
    try:
        spec = cache.spec(fingerprint)
    except CacheError:
        return fingerprint
    return spec.backbone, spec.layer, spec.pooling, spec.view, spec.precision, spec.dtype, spec.decoding, spec.reading
