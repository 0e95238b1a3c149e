"""A vector, and others a piece at a time, enter; the places of those most like it leave, with their similarities."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from featcache.errors import DatasetError
from featcache.records import FloatArray

Places = npt.NDArray[np.intp]


class Nearest:
    """The `k` vectors most like one vector (d) by cosine similarity, of those equally like it the first ones.

    `places` (at most k) and `similarities` hold them, the most like first. A vector of zeros is like nothing: 0.
    """

    def __init__(self, vector: FloatArray, k: int) -> None:
        self._vector = vector.astype(np.float64) / (np.linalg.norm(vector.astype(np.float64)) or 1.0)
        self._k = k
        self._rounding = 4 * len(vector) * float(np.finfo(np.float32).eps)
        self.places: Places = np.empty(0, np.intp)
        self.similarities: npt.NDArray[np.float64] = np.empty(0)

    def add(self, places: Places, vectors: FloatArray) -> None:
        """Look at vectors (m, d) at these places (m); raises `DatasetError` where one is not finite.

        Rounded, all are compared in the time that it takes to read them. Those that may be among the nearest are
        compared again in float64, one by one, so that the same vector has the same similarity wherever it stands.
        """
        values = vectors.astype(np.float32, copy=False)
        # Without BLAS, whose own threads would only wait for each other below those that read.
        rough = np.einsum("ij,j->i", values, self._vector.astype(np.float32)) / _lengths(values)
        if not np.isfinite(rough).all():
            raise DatasetError("a vector of the dataset is not finite: `featcache audit` names the picture")
        least = self.similarities[-1] if len(self.places) == self._k else -1.0
        if len(rough) > self._k:
            least = max(least, np.partition(rough, -self._k)[-self._k])
        close = np.flatnonzero(rough >= least - self._rounding)
        if len(close):
            chosen = vectors[close].astype(np.float64)
            found = np.clip(np.einsum("ij,j->i", chosen, self._vector) / _lengths(chosen), -1, 1)
            self._merge(places[close], found)

    def merge(self, other: Nearest) -> None:
        """Add what another one found at other places."""
        self._merge(other.places, other.similarities)

    def _merge(self, places: Places, similarities: npt.NDArray[np.float64]) -> None:
        places = np.concatenate([self.places, places])
        similarities = np.concatenate([self.similarities, similarities])
        order = np.lexsort((places, -similarities))[: self._k]
        self.places, self.similarities = places[order], similarities[order]


def _lengths(vectors: FloatArray) -> FloatArray:
    lengths: FloatArray = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    lengths[lengths == 0] = 1
    return lengths
