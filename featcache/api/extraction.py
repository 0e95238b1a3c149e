"""A dataset and a backbone enter; vectors in the cache and an account of the work leave."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from featcache.api.options import Options, open_cache
from featcache.api.pipeline import compute
from featcache.backbones import Backbone, resolve
from featcache.discover import discover
from featcache.embed import check_device
from featcache.errors import DatasetError
from featcache.records import ORIGINAL, VIEWS, Dataset, ExtractSummary, Failure, Progress, ViewSummary
from featcache.store import Cache, Run

_logger = logging.getLogger(__name__)


def extract(
    source: str | Path,
    options: Options | None = None,
    progress: Progress | None = None,
    views: Sequence[str] = (),
) -> ExtractSummary:
    """Run every picture of `source` whose vector is not in the cache through the backbone, once.

    `source` is a folder, a CSV manifest or a picture, see `discover`; `views` names groups of further views, see
    `records.VIEWS`. `progress` is called for every picture that has to be read. Whatever was computed stays, also on
    Ctrl-C. Raises `FeatcacheError`.
    """
    options = options or Options()
    unknown = [name for name in views if name not in VIEWS]
    if unknown:
        raise DatasetError(f"unknown view {unknown[0]!r}: use {', '.join(VIEWS)}, or several with commas")
    dataset = discover(source)
    check_device(options.device)
    backbone = resolve(options.backbone, options.weights)
    with open_cache(options) as cache, cache.in_use():
        # The original view comes last, so that it is the extraction that the catalog knows as the dataset's.
        done = []
        for view in (name for group in dict.fromkeys(views) for name in VIEWS[group]):
            found = extract_into(cache, dataset, backbone.viewing(view), options, progress)
            done.append(ViewSummary(view, found.fingerprint, found.reused, found.computed, found.seconds.total))
        return extract_into(cache, dataset, backbone, options, progress, views=tuple(done))


def extract_into(
    cache: Cache,
    dataset: Dataset,
    backbone: Backbone,
    options: Options,
    progress: Progress | None,
    run: Run | None = None,
    views: tuple[ViewSummary, ...] = (),
) -> ExtractSummary:
    """Extract a dataset, and keep it in the catalog as the one last extracted, or as the one of an earlier `run`."""
    for notice in dataset.notices if backbone.spec.view == ORIGINAL else ():
        _logger.warning("%s", notice)
    fingerprint = backbone.spec.fingerprint
    run = run or cache.runs.start("extract", dataset.root, fingerprint)
    work = compute(cache, dataset.items, backbone, options, progress)
    failures = work.failures
    listing = str(cache.put(f"runs/{run.id:06d}-unreadable.csv", _failures_csv(failures))) if failures else None
    if len(failures) == len(dataset.items):
        cache.runs.drop(run)
        raise DatasetError(
            f"no readable picture in {dataset.root}: {failures[0].reason} ({failures[0].path}); "
            f"files and reasons, {len(failures):,} in all, are listed in {listing}"
        )
    cache.catalog.save_dataset(dataset.root, work.rows, run.id)
    summary = ExtractSummary(
        dataset=dataset.root,
        cache=str(cache.folder),
        backbone=backbone.name,
        weights=backbone.weights,
        weights_file=str(options.weights.absolute()) if options.weights else None,
        fingerprint=fingerprint,
        dim=work.dim,
        device=work.device,
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
        views=views,
    )
    cache.runs.finish(run, asdict(replace(summary, failures=())))
    return summary


def _failures_csv(failures: Sequence[Failure]) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["path", "reason"])
    writer.writerows((failure.path, failure.reason) for failure in failures)
    return out.getvalue().encode(errors="backslashreplace")
