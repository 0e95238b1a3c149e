"""A cache enters; what it holds, what is wrong with it, and after a repair what was mended, leaves."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from featcache.api.agreement import is_behind, is_of_another, lost, of_another
from featcache.api.exchange import import_into
from featcache.api.extraction import extract_into
from featcache.api.models import said_of_link
from featcache.api.options import READING, Options, moved, open_cache, places
from featcache.api.usage import FOR_TRAINING, newest_uses, stays_for, unknown, unused, uses, without_runs
from featcache.backbones import Backbone, on_demand, resolve
from featcache.backbones.weights import sha256
from featcache.discover import discover
from featcache.errors import CacheError, CatalogError, FeatcacheError, PictureError, WeightsError
from featcache.records import POOLED, FeatureSpec, Progress
from featcache.records.cache import BackboneInfo, CacheInfo, DatasetCheck, DatasetInfo, RowCheck, VerifySummary
from featcache.sources import exists, file_stat, read
from featcache.store import Cache, Row, Run
from featcache.store.exchange import read as read_exchange
from featcache.store.files import denied
from featcache.values import taking_typed

_logger = logging.getLogger(__name__)


@taking_typed
def cache_info(options: Options | None = None) -> CacheInfo:
    """Return what the cache holds: datasets, backbones, rows, bytes and last use; raises `FeatcacheError`."""
    with open_cache(options or Options(), create=False) as cache:
        runs, used = cache.runs.all(), uses(cache)
        roots = dict.fromkeys([*cache.catalog.roots(), *(run.root for run in used)])
        return CacheInfo(
            cache=str(cache.folder),
            catalog=str(cache.catalog_path),
            datasets=tuple(_dataset_info(cache, root, runs, used) for root in roots),
            backbones=tuple(_backbones(cache, runs)),
            models=sum(run.model_sha256 is not None for run in runs),
            quarantined=len(cache.quarantined()),
            bytes=cache.size(),
        )


@taking_typed
def cache_verify(
    repair: bool = False, options: Options | None = None, progress: Progress | None = None
) -> VerifySummary:
    """Check every checksum, and why each picture of each dataset is valid, stale, missing or orphaned.

    Broken segments are put aside. With `repair` a damaged or lost catalog is rebuilt from the runs, the vectors and the
    pictures; datasets with stale or missing pictures are extracted again, with the backbone of their last extraction.
    Raises `FeatcacheError`.
    """
    options = options or Options()
    with _opened(options, repair) as cache, cache.in_use():
        check = _Check(cache, progress)
        check.all()
        if not repair:
            return check.summary()
        repaired, failed = _repair(cache, check, options, progress)
        again = _Check(cache, progress, broken=check.broken)
        again.all()
        summary = again.summary()
        return replace(summary, tried_to_repair=True, repaired=tuple(repaired), problems=(*summary.problems, *failed))


def _opened(options: Options, repair: bool) -> Cache:
    if repair:
        return Cache.mend(*places(options))
    cache = open_cache(options, create=False)
    cache.catalog.check()
    return cache


@dataclass
class _Check:
    """One pass over the whole cache, and what it found."""

    cache: Cache
    progress: Progress | None
    broken: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    to_repair: set[str] = field(default_factory=set)
    _segments: int = 0
    _rows: int = 0
    _datasets: list[DatasetCheck] = field(default_factory=list)
    _found: list[RowCheck] = field(default_factory=list)
    _orphaned: int | None = None

    def all(self) -> None:
        for fingerprint in self.cache.fingerprints():
            self._checksums(fingerprint)
        used = uses(self.cache)
        self.problems += [
            denied(path)
            or f"{path} cannot be read as a run: restore it, or put it aside with `featcache cache verify --repair`"
            for path in self.cache.runs.broken()
        ]
        self.problems += self.cache.closed()
        self.notices += map(stays_for, self.cache.runs.kept_for())
        self.notices += [f"{path} is a copy of a run, and is left out" for path in self.cache.runs.copies()]
        self.problems += [without_runs(root) for root in unknown(self.cache)]
        for (root, _), said in lost(self.cache).items():
            self._problem(root, said)
        for root in dict.fromkeys(run.root for run in used if run.summary):
            self._dataset(root, [run for run in used if run.root == root and run.summary])
        self._orphans()
        self._models()

    def summary(self) -> VerifySummary:
        return VerifySummary(
            cache=str(self.cache.folder),
            segments=self._segments,
            rows_checked=self._rows,
            datasets=tuple(self._datasets),
            orphaned=self._orphaned,
            broken=tuple(self.broken),
            tried_to_repair=False,
            repaired=(),
            problems=tuple(dict.fromkeys(self.problems)),
            notices=tuple(self.notices),
            rows=tuple(self._found),
        )

    def _checksums(self, fingerprint: str) -> None:
        try:
            store = self.cache.store(fingerprint)
            store.verify(progress=self.progress)
        except CacheError as error:
            if not _is_closed(error):
                raise
            self.problems.append(str(error))
            return
        self.broken += store.quarantined
        self.broken += [
            f"{store.folder / name} has vectors of another shape than others: `featcache extract` tells which are right"
            for name in store.left_out
        ]
        self._segments += len(store.segments)
        self._rows += len(store.keys)

    def _dataset(self, root: str, runs: Sequence[Run]) -> None:
        newest = runs[-1]
        rows = self.cache.catalog.dataset(root)
        if not rows:
            self._problem(root, f"the pictures of {root} are not in the catalog {self.cache.catalog_path}")
            return
        try:
            self.cache.catalog.check_dataset(root)
        except CatalogError as error:
            self._problem(root, str(error))
        if is_of_another(self.cache, root):
            self._problem(root, of_another(self.cache, root))
        if is_behind(self.cache, root, [newest]):
            self._problem(root, f"the catalog {self.cache.catalog_path} is older than the last extraction of {root}")
        try:
            self.cache.spec(newest.fingerprint)
        except CacheError as error:
            self._problem(root, str(error))
        if not exists(root):
            self.notices.append(f"{root} is gone; its vectors are kept until `featcache cache gc --forget` gives it up")
        stale = {} if newest.command == "import" else dict(self._stale(rows))
        for run in runs:
            self._features(rows, stale, run, is_newest=run is newest)

    def _features(self, rows: Sequence[Row], stale: dict[str, str], run: Run, *, is_newest: bool) -> None:
        """Sort the pictures of a dataset by what their vectors of one fingerprint are worth."""
        keys = [(row.item.path, row.key) for row in rows if row.key is not None]
        try:
            held = self.cache.store(run.fingerprint).contains([key for _, key in keys])
        except CacheError as error:
            if not _is_closed(error):
                raise
            self.problems.append(str(error))
            return
        counts = {"valid": 0, "stale": 0, "missing": 0}
        for (path, key), is_held in zip(keys, held, strict=True):
            reason = stale.get(path) if is_held else "its vector is not in the cache"
            state = "valid" if reason is None else "stale" if is_held else "missing"
            counts[state] += 1
            if reason is not None:
                self._found.append(RowCheck(state, path, key.hex(), run.fingerprint, reason))
        backbone = str((run.summary or {}).get("backbone"))
        unreadable = len(rows) - len(keys)
        self._datasets.append(DatasetCheck(run.root, backbone, run.fingerprint, **counts, unreadable=unreadable))
        if counts["missing"] and is_newest:
            self._problem(run.root, f"{run.root} lacks {counts['missing']:,} of {len(keys):,} vectors ({backbone})")
        if counts["stale"] and is_newest and exists(run.root):
            self.to_repair.add(run.root)

    def _stale(self, rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
        """Yield path and reason of the pictures that are not what was extracted; only changed stats are read."""
        known = self.cache.catalog.known_files(row.item.path for row in rows)
        for done, row in enumerate(rows, 1):
            if row.key is not None:
                path, key = row.item.path, row.key
                try:
                    if known.get(path) != (file_stat(path), key) and read(path)[1] != key:
                        yield path, "the picture has changed since it was extracted"
                except PictureError as error:
                    yield path, f"the picture cannot be read any more: {error}"
            if self.progress:
                self.progress("verify", done, len(rows))

    def _orphans(self) -> None:
        try:
            found = [item for item in unused(self.cache) if item.account.reason != FOR_TRAINING]
        except CacheError as error:
            self.notices.append(f"orphaned vectors are not looked for: {error}")
            return
        self._orphaned = sum(len(item.keys) for item in found)
        for item in found:
            paths = self.cache.catalog.paths_of(item.keys)
            for key in item.keys:
                self._found.append(
                    RowCheck("orphaned", paths.get(key), key.hex(), item.account.fingerprint, item.account.reason)
                )

    def _models(self) -> None:
        """Compare each model file with what its run noted of it."""
        models = self.cache.models()
        for path, run in models.items():
            if path.is_symlink():
                self.problems.append(said_of_link(path))
                continue
            if not path.exists():
                self.problems.append(f"the model {path} of run {run.id} is missing: put it back, or fit again")
                continue
            try:
                if sha256(path) != run.model_sha256:
                    self.problems.append(
                        f"the model {path} is not the one that run {run.id} made: put that back, or fit again"
                    )
            except WeightsError as error:
                self.problems.append(str(error))

    def _problem(self, root: str, text: str) -> None:
        self.problems.append(text)
        self.to_repair.add(root)


def _repair(cache: Cache, check: _Check, options: Options, progress: Progress | None) -> tuple[list[str], list[str]]:
    """Put aside runs that cannot be read, and extract again, under their old runs, the datasets that need it.

    Return what was mended, and what could not be.
    """
    put_aside = [cache.runs.put_aside(path, cache.folder / "bad") for path in cache.runs.broken()]
    repaired, failed = [stays_for(run) for run in put_aside if run is not None], []
    for root, run in newest_uses(cache).items():
        if root not in check.to_repair:
            continue
        try:
            repaired.append(_bring_back(cache, run, options, progress))
        except FeatcacheError as error:
            failed.append(
                f"{root} cannot be repaired: {error}; put it back, or give up on it with `featcache cache gc --forget`"
            )
    return repaired, failed


def _bring_back(cache: Cache, run: Run, options: Options, progress: Progress | None) -> str:
    said = _extracted_again(cache, run, options, progress)
    cache.catalog.forget_commits(run.root, [number for root, number in lost(cache) if root == run.root])
    return said


def _extracted_again(cache: Cache, run: Run, options: Options, progress: Progress | None) -> str:
    if run.command == "import":
        import_into(cache, Path(run.root), read_exchange(Path(run.root)), run)
        return f"{run.root} imported again"
    known = run.summary or {}
    weights = moved(cache, known.get("weights_file"))
    backbone = _remembered(cache, run, weights)
    dataset = discover(run.root, **_reading(known))
    summary = extract_into(
        cache,
        dataset,
        backbone,
        replace(options, weights=weights),
        progress,
        run=run,
    ).summary
    return f"{run.root} extracted again: {summary.reused:,} reused, {summary.computed:,} computed ({summary.backbone})"


def _reading(known: Mapping[str, Any]) -> dict[str, Any]:
    return {name: known.get(name) for name in READING}


def _remembered(cache: Cache, run: Run, weights: Path | None) -> Backbone:
    """Return the backbone of a run; its network and weights are looked for only if something has to be computed."""
    known = run.summary or {}
    try:
        spec = cache.spec(run.fingerprint)
    except CacheError:
        found = resolve(str(known.get("backbone")), weights)
        if found.spec.fingerprint != run.fingerprint:
            raise
        return found
    return on_demand(spec, str(known.get("weights")), weights, cache.backbones)


def _dataset_info(cache: Cache, root: str, runs: Sequence[Run], used: Sequence[Run]) -> DatasetInfo:
    rows = cache.catalog.dataset(root)
    splits = [row.item.split for row in rows if row.item.split]
    own = [run for run in runs if run.root == root]
    return DatasetInfo(
        dataset=root,
        present=exists(root),
        pictures=len(rows),
        unreadable=sum(row.key is None for row in rows),
        classes=len({row.item.label for row in rows if row.item.label}),
        splits={name: splits.count(name) for name in sorted(set(splits))},
        fingerprints=tuple(dict.fromkeys(run.fingerprint for run in used if run.root == root)),
        last_use=_last_use(own) or "",
    )


def _is_closed(error: CacheError) -> bool:
    """Tell whether what cannot be read was closed by its owner, so that the rest can be looked at."""
    return isinstance(error.__cause__, PermissionError)


def _backbones(cache: Cache, runs: Sequence[Run]) -> Iterator[BackboneInfo]:
    """Yield what is held of each fingerprint, and say of which it cannot be told."""
    left_out = cache.closed()
    for fingerprint in cache.fingerprints():
        try:
            yield _backbone_info(cache, fingerprint, runs)
        except CacheError as error:
            if not _is_closed(error):
                raise
            left_out.append(str(error))
    for said in left_out:
        _logger.warning("vectors are left out: %s", said)


def _backbone_info(cache: Cache, fingerprint: str, runs: Sequence[Run]) -> BackboneInfo:
    store = cache.store(fingerprint)
    spec: FeatureSpec | None
    try:
        spec = cache.spec(fingerprint)
    except CacheError:
        spec = None
    return BackboneInfo(
        backbone=spec.backbone if spec else None,
        weights_sha256=spec.weights_sha256 if spec else None,
        precision=spec.precision if spec else None,
        view=_view(spec) if spec else None,
        fingerprint=fingerprint,
        dim=store.dim,
        dtype=store.live[0].header.dtype if store.live else None,
        rows=len(store.keys),
        segments=len(store.segments),
        bytes=cache.size(store.folder),
        last_use=_last_use([run for run in runs if run.fingerprint == fingerprint]),
    )


def _view(spec: FeatureSpec) -> str:
    return spec.view if spec.layer == POOLED else f"{spec.layer}, {spec.view}"


def _last_use(runs: Sequence[Run]) -> str | None:
    times = [run.finished or run.started for run in runs]
    return datetime.fromtimestamp(max(times), UTC).isoformat(timespec="seconds") if times else None
