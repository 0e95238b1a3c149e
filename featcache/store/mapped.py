"""Vectors of segments mapped into memory enter; those of the rows asked for leave."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from featcache.records import FloatArray

Rows = npt.NDArray[np.intp]


class MappedRows:
    """Vectors in the caller's order that stay on the disk: more of them than memory holds, read a batch at a time."""

    def __init__(self, maps: Sequence[FloatArray], segments: Rows, rows: Rows) -> None:
        self._maps = maps
        self._segments = segments
        self._rows = rows

    def __len__(self) -> int:
        """The number of vectors."""
        return len(self._rows)

    def read(self, places: Rows) -> FloatArray:
        """Return the vectors (m, d) at `places` (m), in that order."""
        return np.stack([self._maps[self._segments[at]][self._rows[at]] for at in places])
