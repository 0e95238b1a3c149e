"""A seed enters; an unfitted nearest-neighbour classifier leaves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import clone
from sklearn.preprocessing import normalize

from featcache.errors import ModelError
from featcache.heads.base import Classifier, Codes, Head
from featcache.heads.keeping import Parts
from featcache.records import FloatArray

_BLOCK = 2**24
"""Similarities that are in memory at once."""


class KNeighbors(Classifier):
    """The k training vectors at the smallest angles vote, each with its cosine where that is positive.

    One more vote is spread evenly over all classes, so that no class has the probability zero. Scores are the
    logarithms of the shares in the votes.
    """

    path = "n_neighbors"
    kept = ("_rows", "_codes", "_firsts")
    _firsts: Codes | None = None
    """Of each training vector the first one that is equal to it; nothing where all differ, and in older models."""

    def __init__(self, n_neighbors: int = 5, temperature: float = 1.0) -> None:
        self.n_neighbors = n_neighbors
        self.temperature = temperature

    def path_scores(
        self, X: FloatArray, y: npt.NDArray[Any], values: Sequence[Any], held: FloatArray
    ) -> Iterator[tuple[FloatArray, tuple[float, ...]]]:
        """Yield the scores (m, K) of held vectors (m, d) for each number of neighbours, found by one search."""
        fitted = clone(self).set_params(n_neighbors=max(values)).fit(X, y)
        found = fitted._search(held)
        for k in values:
            yield fitted._shares(*(part[:, :k] for part in found)), ()

    def _fit_path(self, X: FloatArray, codes: Codes, values: Sequence[int]) -> Iterator[dict[str, Any]]:
        if min(values) < 1:
            raise ValueError(f"n_neighbors must be one or more, not {min(values)}")
        rows = normalize(X)
        known: dict[bytes, int] = {}
        firsts = np.array([known.setdefault(row.tobytes(), at) for at, row in enumerate(rows)])
        for _ in values:
            yield {"_rows": rows, "_codes": codes, "_firsts": firsts if len(known) < len(rows) else None}

    def _scores(self, X: FloatArray) -> FloatArray:
        return self._shares(*self._search(X))

    def _take(self, parts: Parts) -> None:
        if self.n_neighbors < 1:
            raise ModelError(f"n_neighbors is {self.n_neighbors}, which it cannot be")
        self._rows = parts.floats("_rows", (None, parts.dim))
        n = len(self._rows)
        self._codes = parts.places("_codes", (n,), below=parts.n_classes)
        self._firsts = parts.places("_firsts", (n,), below=n) if parts.has("_firsts") else None
        if n == 0:
            raise ModelError("_rows holds no vector")

    def _search(self, X: FloatArray) -> tuple[FloatArray, Codes]:
        """Return the cosines (n, k) of the nearest training vectors, the nearest first, and their classes (n, k)."""
        k = min(self.n_neighbors, len(self._rows))
        parts = []
        for part in np.array_split(normalize(X), 1 + len(X) * len(self._rows) // _BLOCK):
            cosines = part @ self._rows.T
            if self._firsts is None:
                near = np.argpartition(cosines, -k, axis=1)[:, -k:]
            else:  # equal vectors are equally near, however their products were rounded, and taken in their order
                cosines = cosines[:, self._firsts]
                near = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
            found = np.take_along_axis(cosines, near, axis=1)
            order = np.argsort(-found, axis=1, kind="stable")
            parts.append((np.take_along_axis(found, order, axis=1), np.take_along_axis(near, order, axis=1)))
        cosines, near = (np.concatenate(part) for part in zip(*parts, strict=True))
        return cosines, self._codes[near]

    def _shares(self, cosines: FloatArray, classes: Codes) -> FloatArray:
        """Return the logarithms (n, K) of the shares of the classes in the votes of the neighbours (n, k)."""
        n, n_classes = len(cosines), len(self.classes_)
        cells = np.arange(n)[:, None] * n_classes + classes
        weights = cosines.clip(min=np.finfo(cosines.dtype).eps)
        votes = np.bincount(cells.ravel(), weights.ravel(), n * n_classes).reshape(n, n_classes)
        shares = (votes + 1 / n_classes) / (votes.sum(1, keepdims=True) + 1)
        return np.asarray(np.log(shares), cosines.dtype)


HEAD = Head(
    "knn",
    lambda seed, n_rows: KNeighbors(),
    {"n_neighbors": (20, 10, 5, 1)},
    {"n_neighbors": 5},
    KNeighbors.restored,
    temperature=1.3,
)
