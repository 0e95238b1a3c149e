"""Segment files and the places of rows in them enter; the vectors of those asked for leave, read when asked for."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featcache.errors import CacheError, refusal
from featcache.records import FloatArray
from featcache.store.segment import Header

Rows = npt.NDArray[np.intp]

GAP_BYTES = 2**16
"""Rows at most so far apart are read together: that takes less time than another read."""

SPAN_BYTES = 2**20


class StoredRows:
    """Vectors in the caller's order that stay on the disk: more of them than memory holds, read a batch at a time.

    The files are held open, so that they outlive their names. `places` (n) are positions in the segments put end to
    end, `offsets` (s + 1) where each begins; rows that lie near each other are read fastest together. Files are read
    past any mapping, whose pages would be memory of the process. Raises `FileNotFoundError` where one is gone.
    """

    def __init__(self, paths: Sequence[Path], headers: Sequence[Header], places: Rows) -> None:
        self.places = places
        self._offsets = np.cumsum([0, *(header.n_rows for header in headers)])
        self._headers = headers
        self._files: list[int] = []
        weakref.finalize(self, _close, self._files)
        for path in paths:
            self._files.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    def __len__(self) -> int:
        """The number of vectors."""
        return len(self.places)

    @property
    def dim(self) -> int:
        """The length of a vector."""
        return self._headers[0].dim

    @property
    def row_bytes(self) -> int:
        """The bytes of one vector on the disk."""
        return self._headers[0].row_bytes

    def read(self, rows: Rows) -> FloatArray:
        """Return the vectors (m, d) of `rows` (m), in that order; raises `CacheError` where the disk does not."""
        places = self.places[rows]
        order = np.argsort(places, kind="stable")
        places = places[order]
        out = np.empty((len(rows), self.dim), self._headers[0].dtype)
        segments = np.searchsorted(self._offsets, places, side="right") - 1
        spans = places // max(1, SPAN_BYTES // self.row_bytes)
        apart = (np.diff(places) * self.row_bytes > GAP_BYTES) | (np.diff(segments) > 0) | (np.diff(spans) > 0)
        for first, last in pairwise([0, *(np.flatnonzero(apart) + 1).tolist(), len(places)]):
            if first < last:
                found = self._span(int(segments[first]), int(places[first]), int(places[last - 1]) + 1)
                out[order[first:last]] = found[places[first:last] - places[first]]
        return out

    def _span(self, segment: int, start: int, stop: int) -> FloatArray:
        header = self._headers[segment]
        vectors = np.empty((stop - start, header.dim), header.dtype)
        rest = vectors.reshape(-1).view(np.uint8).data
        at = header.features_at + (start - int(self._offsets[segment])) * header.row_bytes
        while rest:
            try:
                got = os.preadv(self._files[segment], [rest], at)
            except OSError as error:
                raise CacheError(f"cannot read vectors of the cache: {refusal(error)}: check the disk") from error
            if not got:
                raise CacheError("a segment of the cache became shorter while it was read: run the same command again")
            rest, at = rest[got:], at + got
        return vectors


def _close(files: Sequence[int]) -> None:
    for file in files:
        os.close(file)
