"""A dataset in the cache enters; an index of its vectors, kept until the dataset changes, leaves."""

from __future__ import annotations

from math import isqrt

import numpy as np

from featcache.errors import CacheError
from featcache.records import Progress
from featcache.search import Index, Places
from featcache.store import Cache, FeatureStore, Run
from featcache.store.index import stack_keys
from featcache.store.scanning import Pieces, scan
from featcache.store.segment import Keys

FEWEST = 20_000
"""Pictures from which on an index is made: fewer are compared in a tenth of a second."""
MOST_LISTS = 1024
A_LIST = 64
"""Vectors a list is made from, so that the sample takes 65,536 at most; faiss asks for 39."""


def open_index(cache: Cache, run: Run, store: FeatureStore, progress: Progress | None) -> Index | None:
    """Return the index of the dataset's positions as it is now, made where there is none; `None` for a small dataset.

    The dataset's last run decides whether it is the same, so that no key has to be read. One that somebody else put
    there, and that is of something else, is put aside. Raises `FeatcacheError`.
    """
    name = index_name(cache, run)
    kept = cache.indexes.read(name)
    if kept is not None:
        try:
            index = Index.from_bytes(kept)
            if index.dim == store.dim:
                return index
            said = f"it is of {len(index):,} vectors of length {index.dim:,}"
        except CacheError as error:
            said = str(error)
        cache.indexes.put_aside_all(name, f"is not the one of {run.root} ({said})")
    known, joined = cache.catalog.keys_of(run.root, besides="")
    if len(known) < FEWEST:
        return None
    index = _made(store, np.array(known, np.intp), stack_keys([joined]), progress)
    cache.indexes.replace(name, index.to_bytes())
    return index


def index_name(cache: Cache, run: Run) -> str:
    """Return the name of the index of a dataset as it is now."""
    return cache.indexes.name(run.root, run.fingerprint, cache.catalog.roots()[run.root])


def _made(store: FeatureStore, positions: Places, keys: Keys, progress: Progress | None) -> Index:
    lists = min(isqrt(len(keys)), MOST_LISTS)
    sample = np.random.default_rng(0).choice(len(keys), lists * A_LIST, replace=False)
    index = Index.train(store.read([key.tobytes() for key in keys[np.sort(sample)]]), lists)

    def look(pieces: Pieces) -> Index:
        return index.filled((positions[places], vectors) for places, vectors in pieces)

    for part in scan(store, keys, look, "index", progress):
        index.merge(part)
    return index
