"""A cache enters; vectors nobody uses, or segments too small, are cleaned up, and an account of it leaves."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from featcache.api.options import Options, open_cache
from featcache.api.usage import Unused, backbone_of, elsewhere, last_asked, stays_for, unused, uses
from featcache.errors import CacheWriteError, DatasetError
from featcache.records import Progress
from featcache.records.cache import Compacted, CompactSummary, GcSummary
from featcache.sources.addresses import named
from featcache.store import FORGET, Cache
from featcache.store.files import remove
from featcache.values import taking_typed

_logger = logging.getLogger(__name__)


@taking_typed
def cache_gc(
    forget: Sequence[str | Path] = (),
    dry_run: bool = False,
    agree: Callable[[GcSummary], bool] | None = None,
    options: Options | None = None,
    progress: Progress | None = None,
) -> GcSummary:
    """Delete vectors that no dataset uses any more, those of old fingerprints, broken files, stopped trainings,
    and indexes of datasets as they were before.

    A dataset uses the pictures it had when it was last extracted, in the newest features of each kind it was extracted
    with; the datasets in `forget` are given up first. Nothing is deleted where `agree` returns false on what would be.
    Raises `FeatcacheError`, also while another command uses the cache.
    """
    options = options or Options()
    with open_cache(options, create=False) as cache:
        named_roots = [_known_root(cache, name) for name in forget]
        known = _known_roots(cache)
        roots = [root for root in named_roots if root in known]
        put_aside = cache.quarantined()  # before the stores are opened, which may put more aside
        stopped = cache.trainings()
        indexes = _old_indexes(cache, roots)
        found = unused(cache, roots)
        gone = [root for root in named_roots if root not in roots]
        summary = _gc_summary(cache, found, roots, put_aside, stopped, indexes, gone)
        anything = found or roots or put_aside or stopped or indexes
        if dry_run or not anything or (agree is not None and not agree(summary)):
            return summary
        with cache.alone():
            before = cache.size()
            try:
                _forget(cache, roots)
            except CacheWriteError:  # on a full disk what was given up makes the room in which that is noted
                _discard(cache, found, roots, progress)
                _forget(cache, roots)
            _discard(cache, found, (), progress)
            for path in (*put_aside, *stopped, *indexes):
                remove(path)
            return replace(summary, done=True, bytes=before - cache.size())


def _forget(cache: Cache, roots: Sequence[str]) -> None:
    for root in roots:
        cache.catalog.forget(root)
        cache.runs.finish(cache.runs.start(FORGET, root), {})


def _discard(cache: Cache, agreed: Sequence[Unused], forgotten: Sequence[str], progress: Progress | None) -> None:
    """Delete what was agreed on, and is still used by no dataset but the `forgotten` ones."""
    still = {again.account.fingerprint: set(again.keys) for again in unused(cache, forgotten)}
    for item in agreed:
        keys = still.get(item.account.fingerprint)
        if keys is not None:
            cache.discard(item.account.fingerprint, [key for key in item.keys if key in keys], progress)


@taking_typed
def cache_compact(
    dry_run: bool = False, options: Options | None = None, progress: Progress | None = None
) -> CompactSummary:
    """Merge small segments into larger ones, with `dry_run` only say which; raises `FeatcacheError`."""
    options = options or Options()
    with open_cache(options, create=False) as cache:
        rows = []
        for said in cache.closed():
            _logger.warning("%s; these vectors are left as they are", said)
        for fingerprint in cache.fingerprints():
            store = cache.store(fingerprint)
            segments, size = len(store.segments), cache.size()
            if dry_run:
                after, freed = store.after_compaction()
            else:
                store.compact(progress)
                after, freed = len(store.segments), size - cache.size()
            rows.append(Compacted(fingerprint, backbone_of(cache, fingerprint), segments, after, freed))
        return CompactSummary(str(cache.folder), not dry_run, tuple(rows), sum(row.bytes_freed for row in rows))


def _gc_summary(
    cache: Cache,
    found: Sequence[Unused],
    forgotten: Sequence[str],
    put_aside: Sequence[Path],
    stopped: Sequence[Path],
    indexes: Sequence[Path],
    gone: Sequence[str],
) -> GcSummary:
    open_runs = [run for run in uses(cache) if not run.summary and run.root not in forgotten]
    return GcSummary(
        cache=str(cache.folder),
        done=False,
        unused=tuple(item.account for item in found),
        forgotten=tuple(forgotten),
        quarantined=len(put_aside),
        trainings=len(stopped),
        indexes=len(indexes),
        bytes=sum(item.account.bytes for item in found)
        + sum(path.stat().st_size for path in (*put_aside, *stopped, *indexes)),
        notices=(
            *(f"{root} was given up before: nothing is left of it to forget" for root in gone),
            *(
                f"the {run.command} of {run.root} was not finished, so all vectors of {run.fingerprint[:16]} stay: "
                "finish it, or give up on it with --forget"
                for run in open_runs
            ),
            *(stays_for(run) for run in cache.runs.kept_for() if run.root not in forgotten),
        ),
    )


def _old_indexes(cache: Cache, forgotten: Sequence[str]) -> list[Path]:
    current = {
        cache.indexes.name(root, fingerprint, run)
        for root, run in cache.catalog.roots().items()
        for fingerprint in cache.fingerprints()
        if root not in forgotten
    }
    return cache.indexes.besides(current)


def _known_roots(cache: Cache) -> set[str]:
    asked = last_asked(cache)
    return (
        {run.root for run in uses(cache)}
        | set(cache.catalog.roots())
        | set(elsewhere(cache))
        | {run.root for run in cache.runs.kept_for()}
        | ({asked.root} if asked is not None and asked.root else set())
    )


def _known_root(cache: Cache, name: str | Path) -> str:
    """Return the root of a dataset that is known, or was given up: who could not read that it was may ask again."""
    given, root = str(name), named(name)
    known = _known_roots(cache)
    given_up = {run.root for run in cache.runs.all() if run.command == FORGET}
    if root not in known | given_up and given in known | given_up:  # somebody else's run: its root may be no place
        return given
    if root not in known | given_up:
        raise DatasetError(f"the cache knows no dataset {root}: it knows {', '.join(sorted(known)) or 'none'}")
    return root
