"""A picture and a dataset in the cache enter; the pictures of the dataset most like it leave."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featcache.api.agreement import check_holds
from featcache.api.indexing import FEWEST, index_name, open_index
from featcache.api.options import Options, moved, open_cache
from featcache.api.pipeline import compute
from featcache.api.usage import extracted_at, last_extraction, not_catalogued
from featcache.backbones import on_demand
from featcache.errors import CacheError, DatasetError, DatasetNotFoundError, UsageError
from featcache.process import after_forks_too
from featcache.records import FloatArray, Item, Progress
from featcache.records.neighbors import NeighborRow, NeighborsSummary
from featcache.search import Index, Nearest, Places, checks, load_faiss
from featcache.sources import exists
from featcache.sources.addresses import named
from featcache.store import Cache, FeatureStore, Row, Run
from featcache.store.index import stack_keys
from featcache.store.scanning import Pieces, scan
from featcache.store.segment import Keys

CANDIDATES = 1000
GONE = "{} is not there: its vector is taken as it is in the cache"
FEW = f"no index: fewer than {FEWEST:,} pictures are compared as fast, so each was"


@dataclass(frozen=True)
class _Asked:
    path: str
    key: bytes
    vector: FloatArray
    k: int


@dataclass(frozen=True)
class _Found:
    rows: list[Row]
    nearest: Nearest
    pictures: int
    index: str | None = None


@after_forks_too
def neighbors(
    picture: str | Path,
    k: int = 10,
    dataset: str | Path | None = None,
    options: Options | None = None,
    progress: Progress | None = None,
    index: bool = False,
) -> NeighborsSummary:
    """Find the `k` pictures of the dataset last extracted, or of `dataset`, that are most like `picture`.

    Most like is of the greatest cosine similarity, each vector being compared; equals come in the dataset's order.
    `picture` may be any file: what the cache lacks is computed with the dataset's backbone (`options.weights` says
    where its weights lie now). It is left out itself; other files with its bytes are not.

    With `index` an index of the dataset, made on first use and kept while the dataset is the same, finds candidates;
    only they are compared, so that one of the nearest may be missed. Raises `FeatcacheError`.
    """
    options, started = options or Options(), time.perf_counter()
    if k < 1:
        raise UsageError(f"the nearest {k} pictures cannot be shown: ask for 1 or more")
    if index:
        load_faiss()
    path = named(picture)
    with open_cache(options, create=False) as cache, cache.in_use():
        run = _extraction(cache, None if dataset is None else named(dataset))
        key, notices = _key_of(path, cache, run, options)
        store = cache.store(run.fingerprint)
        found = _found(cache, run, store, _Asked(path, key, _vector(store, key), k), index, progress)
        check_holds(cache, run)  # of which all was read by now
        return NeighborsSummary(
            picture=path,
            dataset=run.root,
            backbone=cache.spec(run.fingerprint).backbone,
            weights=str((run.summary or {}).get("weights")),
            fingerprint=run.fingerprint,
            pictures=found.pictures,
            seconds=round(time.perf_counter() - started, 3),
            rows=_rows(found, key),
            notices=(*notices, *[FEW][: index and found.index is None]),
            index=found.index,
            extracted=extracted_at(run),
        )


def _rows(found: _Found, key: bytes) -> tuple[NeighborRow, ...]:
    return tuple(
        NeighborRow(rank, row.item.path, row.item.label or "", row.item.split or "", float(similarity), row.key == key)
        for rank, (row, similarity) in enumerate(zip(found.rows, found.nearest.similarities, strict=True), 1)
    )


def _extraction(cache: Cache, root: str | None) -> Run:
    run = last_extraction(cache, root)
    if run.root not in cache.catalog.roots():
        raise not_catalogued(cache, run.root)
    return run


def _key_of(path: str, cache: Cache, run: Run, options: Options) -> tuple[bytes, tuple[str, ...]]:
    """Return the content key of a picture whose vector is then in the cache, and what is to be said of it."""
    is_there = exists(path)
    known = None if is_there else cache.catalog.key_at(run.root, path)
    if known:
        return known, (GONE.format(path),)
    spec = cache.spec(run.fingerprint)
    weights = options.weights or moved(cache, (run.summary or {}).get("weights_file"))
    backbone = on_demand(spec, "", weights, cache.backbones)
    (row,) = compute(cache, [Item(path)], [backbone], options, progress=None)[0].rows
    if row.key is None:
        kind = DatasetError if is_there else DatasetNotFoundError
        raise kind(f"cannot read the picture {path}: {row.reason}")
    return row.key, ()


def _vector(store: FeatureStore, key: bytes) -> FloatArray:
    vector: FloatArray = store.read([key])[0]
    if not np.isfinite(vector).all():
        raise DatasetError("the vector of the picture is not finite, so that nothing can be compared with it")
    return vector


def _found(
    cache: Cache, run: Run, store: FeatureStore, asked: _Asked, index: bool, progress: Progress | None
) -> _Found:
    for _ in range(2 * index):  # of one that somebody else put there, and of one that was made anew
        opened = open_index(cache, run, store, progress)
        if opened is None:
            break
        found = _via(opened, cache, run, store, asked)
        if found is not None:
            return found
        cache.indexes.put_aside_all(index_name(cache, run), f"was not made of the vectors of {run.root}")
    return _compared(cache, run, store, asked, progress)


def _compared(cache: Cache, run: Run, store: FeatureStore, asked: _Asked, progress: Progress | None) -> _Found:
    """Compare all of the dataset."""
    positions, keys = _others(cache, run.root, asked)

    def look(pieces: Pieces) -> Nearest:
        found = Nearest(asked.vector, asked.k)
        for places, vectors in pieces:
            found.add(places, vectors)
        return found

    found = Nearest(asked.vector, asked.k)
    for part in scan(store, keys, look, "compare", progress):
        found.merge(part)
    return _Found(cache.catalog.rows_at(run.root, positions[found.places].tolist()), found, len(keys))


def _via(index: Index, cache: Cache, run: Run, store: FeatureStore, asked: _Asked) -> _Found | None:
    """Compare the candidates of an index, whose vectors are read alone: not the checksums of all that lies beside.

    Returns `None` where the index is of other vectors, and these are whole.
    """
    positions, expected = index.candidates(asked.vector, CANDIDATES + 10 * asked.k)
    order = np.argsort(positions)  # so that of equals the first ones are taken, as of all
    rows = cache.catalog.rows_at(run.root, positions[order].tolist())
    keys = [row.key for row in rows if row.key is not None]
    vectors = store.stored(keys, check=False).read(np.arange(len(keys)))
    if len(keys) != len(expected) or (checks(vectors) != expected[order]).any():
        if not store.verify(keys):
            return None
        raise CacheError(f"vectors of {run.root} are not what its index was made of: run `featcache cache verify`")
    others = np.array([at for at, row in enumerate(rows) if not _is_itself(row, asked)], np.intp)
    found = Nearest(asked.vector, asked.k)
    found.add(others, vectors[others])
    pictures = len(index) - len(rows) + len(others)
    return _Found([rows[at] for at in found.places], found, pictures, f"{index}, {len(others):,} pictures compared")


def _others(cache: Cache, root: str, asked: _Asked) -> tuple[Places, Keys]:
    """Return the positions (n) and content keys (n, 32) of the pictures of a dataset, but for the one asked for."""
    known, joined = cache.catalog.keys_of(root, asked.path)
    positions, keys = np.array(known, np.intp), stack_keys([joined])
    copies = np.flatnonzero(_equal(keys, asked.key))
    rows = zip(copies, cache.catalog.rows_at(root, positions[copies].tolist()), strict=True)
    itself = [at for at, row in rows if _is_itself(row, asked)]
    return np.delete(positions, itself), np.delete(keys, itself, axis=0)


def _equal(keys: Keys, key: bytes) -> npt.NDArray[np.bool_]:
    same: npt.NDArray[np.bool_] = (keys == np.frombuffer(key, np.uint8)).all(axis=1)
    return same


def _is_itself(row: Row, asked: _Asked) -> bool:
    """Tell whether a picture is the one asked for, behind a symbolic link or by another name too."""
    if row.item.path == asked.path:
        return True
    with contextlib.suppress(OSError):
        return row.key == asked.key and Path(row.item.path).samefile(asked.path)
    return False
