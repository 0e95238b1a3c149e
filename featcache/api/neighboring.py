"""A picture and a dataset in the cache enter; the pictures of the dataset most like it leave."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featcache.api.options import Options, moved, open_cache
from featcache.api.pipeline import compute
from featcache.api.usage import last_extraction
from featcache.backbones import Backbone, reproduce
from featcache.errors import DatasetError, DatasetNotFoundError, UsageError
from featcache.records import FloatArray, Item, Progress
from featcache.records.neighbors import NeighborRow, NeighborsSummary
from featcache.search import Nearest, Places
from featcache.sources import exists
from featcache.sources.addresses import named
from featcache.store import Cache, FeatureStore, Run
from featcache.store.index import stack_keys
from featcache.store.scanning import Pieces, scan
from featcache.store.segment import Keys

GONE = "{} is not there: its vector is taken as it is in the cache"


def neighbors(
    picture: str | Path,
    k: int = 10,
    dataset: str | Path | None = None,
    options: Options | None = None,
    progress: Progress | None = None,
) -> NeighborsSummary:
    """Find the `k` pictures of the dataset last extracted, or of `dataset`, that are most like `picture`.

    Most like is of the greatest cosine similarity, each vector being compared; equals come in the dataset's order.
    `picture` may be any file: what the cache lacks is computed with the dataset's backbone (`options.weights` says
    where its weights lie now). It is left out itself; other files with its bytes are not. Raises `FeatcacheError`.
    """
    options, started = options or Options(), time.perf_counter()
    if k < 1:
        raise UsageError(f"the nearest {k} pictures cannot be shown: ask for 1 or more")
    path = named(picture)
    root = None if dataset is None else named(dataset)
    with open_cache(options, create=False) as cache, cache.in_use():
        run = _extraction(cache, root)
        key, notices = _key_of(path, cache, run, options)
        store = cache.store(run.fingerprint)
        positions, keys = _others(cache, run.root, path, key)
        found = _nearest(store, keys, store.read([key])[0], k, progress)
        items = cache.catalog.items_at(run.root, positions[found.places].tolist())
        copies = _equal(keys[found.places], key)
        return NeighborsSummary(
            picture=path,
            dataset=run.root,
            backbone=cache.spec(run.fingerprint).backbone,
            weights=str((run.summary or {}).get("weights")),
            fingerprint=run.fingerprint,
            pictures=len(keys),
            seconds=round(time.perf_counter() - started, 3),
            rows=tuple(
                NeighborRow(rank, item.path, item.label or "", item.split or "", float(similarity), bool(copy))
                for rank, (item, similarity, copy) in enumerate(zip(items, found.similarities, copies, strict=True), 1)
            ),
            notices=notices,
        )


def _extraction(cache: Cache, root: str | None) -> Run:
    run = last_extraction(cache, root)
    if run.root not in cache.catalog.roots():
        raise DatasetError(
            f"the pictures of {run.root} are not in the catalog {cache.catalog_path}: run `featcache extract "
            f"{run.root}`, which computes only what the cache lacks, or `featcache cache verify --repair`"
        )
    return run


def _key_of(path: str, cache: Cache, run: Run, options: Options) -> tuple[bytes, tuple[str, ...]]:
    """Return the content key of a picture whose vector is then in the cache, and what is to be said of it."""
    is_there = exists(path)
    known = None if is_there else cache.catalog.key_at(run.root, path)
    if known:
        return known, (GONE.format(path),)
    spec = cache.spec(run.fingerprint)
    weights = options.weights or moved(cache, (run.summary or {}).get("weights_file"))
    # The network and its weights are looked for only if there is something to compute.
    backbone = Backbone(spec, "", lambda: reproduce(spec, weights, cache.backbones).build())
    (row,) = compute(cache, [Item(path)], [backbone], options, progress=None)[0].rows
    if row.key is None:
        kind = DatasetError if is_there else DatasetNotFoundError
        raise kind(f"cannot read the picture {path}: {row.reason}")
    return row.key, ()


def _others(cache: Cache, root: str, path: str, key: bytes) -> tuple[Places, Keys]:
    """Return the positions (n) and content keys (n, 32) of the pictures of a dataset, but for the one at `path`."""
    known, joined = cache.catalog.keys_of(root, path)
    positions, keys = np.array(known, np.intp), stack_keys([joined])
    copies = np.flatnonzero(_equal(keys, key))
    items = zip(copies, cache.catalog.items_at(root, positions[copies].tolist()), strict=True)
    itself = [at for at, item in items if _is_same_file(item.path, path)]  # behind a symbolic link, by another name
    return np.delete(positions, itself), np.delete(keys, itself, axis=0)


def _equal(keys: Keys, key: bytes) -> npt.NDArray[np.bool_]:
    same: npt.NDArray[np.bool_] = (keys == np.frombuffer(key, np.uint8)).all(axis=1)
    return same


def _is_same_file(path: str, other: str) -> bool:
    with contextlib.suppress(OSError):
        return Path(path).samefile(other)
    return False


def _nearest(store: FeatureStore, keys: Keys, vector: FloatArray, k: int, progress: Progress | None) -> Nearest:
    if not np.isfinite(vector).all():
        raise DatasetError("the vector of the picture is not finite, so that nothing can be compared with it")

    def look(pieces: Pieces) -> Nearest:
        found = Nearest(vector, k)
        for places, vectors in pieces:
            found.add(places, vectors)
        return found

    found = Nearest(vector, k)
    for part in scan(store, keys, look, "compare", progress):
        found.merge(part)
    return found
