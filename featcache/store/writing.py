"""Content keys and vectors enter; immutable segments of them leave into a store."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

import numpy as np

from featcache.errors import TooLargeValuesError
from featcache.records import FloatArray
from featcache.store.features import FeatureStore
from featcache.store.index import stack_keys
from featcache.store.segment import KEY_BYTES, Writer, commit

COMMIT_ROWS = 8192
COMMIT_BYTES = 64 * 2**20
COMMIT_SECONDS = 5.0
COMPACT_AT = 32
"""A writer merges the small segments whenever it has committed this many."""


class FeatureWriter:
    """Buffers vectors and commits them as segments; leaving the `with` block commits what is left.

    At most `COMMIT_ROWS` rows, `COMMIT_BYTES` or `COMMIT_SECONDS` of work are lost to a kill. When a commit fails the
    buffer is kept, so that `flush` can be tried again. Small segments are merged on the way.
    """

    def __init__(self, store: FeatureStore, dtype: str) -> None:
        self.committed = 0
        self.seconds = 0.0
        self._store = store
        self._dtype = dtype
        self._writer = Writer()
        self._keys: list[bytes] = []
        self._vectors: list[FloatArray] = []
        self._oldest = 0.0
        self._failed = False

    def append(self, keys: Sequence[bytes], vectors: FloatArray) -> None:
        """Add rows: `keys` (n) of 32 bytes and `vectors` (n, d).

        Raises `ValueError` where they do not belong together or in this store, and `CacheWriteError` when a due commit
        fails. A value beyond what the store's dtype holds raises `TooLargeValuesError`.
        """
        with np.errstate(over="ignore"):
            rows = vectors.astype(self._dtype)
        if not np.isfinite(rows).all():
            raise TooLargeValuesError(f"values up to {np.abs(vectors).max():g} do not fit into {self._dtype}")
        dim = self._vectors[0].shape[1] if self._vectors else self._store.dim
        if rows.ndim != 2 or len(rows) != len(keys) or any(len(key) != KEY_BYTES for key in keys):
            raise ValueError(f"{len(keys)} keys and vectors of shape {rows.shape} do not belong together")
        if dim is not None and rows.shape[1] != dim:
            raise ValueError(f"vectors of length {rows.shape[1]} do not belong to a store of length {dim}")
        if not self._keys:
            self._oldest = time.monotonic()
        self._keys += keys
        self._vectors.append(rows)
        is_full = len(self._keys) >= COMMIT_ROWS or len(self._keys) * rows.shape[1] * rows.itemsize >= COMMIT_BYTES
        if is_full or time.monotonic() - self._oldest >= COMMIT_SECONDS:
            self.flush()

    def expect(self, dim: int) -> None:
        """Put aside vectors of another length than `dim`, which the network gives: somebody else put them there."""
        self._store.expect(dim)

    def flush(self) -> None:
        """Commit the buffer as one segment; after this the rows survive a kill and a power loss."""
        if not self._keys:
            return
        start = time.perf_counter()
        features = np.concatenate(self._vectors)
        self._failed = True
        store = self._store
        commit(store.folder, self._writer, store.fingerprint, stack_keys(self._keys), features, share=store.share)
        self._failed = False
        self.committed += len(self._keys)
        self._keys, self._vectors = [], []
        if self._writer.sequence % COMPACT_AT == 0:
            self._store.reopened().compact()  # of its own listing, which is gone afterwards
        self.seconds += time.perf_counter() - start

    def __enter__(self) -> FeatureWriter:
        """Return the writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Commit what is left, on failures and Ctrl-C too, unless the failure was a commit."""
        if not (error and self._failed):
            self.flush()
