"""A seed enters; an unfitted nearest-neighbour classifier leaves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from sklearn.preprocessing import normalize

from featcache.heads.base import Classifier, Codes, Head
from featcache.records import FloatArray

_BLOCK = 2**24
"""Similarities that are in memory at once."""


class KNeighbors(Classifier):
    """The k training vectors at the smallest angles vote, each with its cosine where that is positive.

    One more vote is spread evenly over all classes, so that no class has the probability zero. Scores are the
    logarithms of the shares in the votes.
    """

    path = "n_neighbors"

    def __init__(self, n_neighbors: int = 5) -> None:
        self.n_neighbors = n_neighbors

    def _fit_path(self, X: FloatArray, codes: Codes, values: Sequence[int]) -> Iterator[dict[str, Any]]:
        if min(values) < 1:
            raise ValueError(f"n_neighbors must be one or more, not {min(values)}")
        rows = normalize(X)
        for _ in values:
            yield {"_rows": rows, "_codes": codes}

    def _scores(self, X: FloatArray) -> FloatArray:
        k, n_classes = min(self.n_neighbors, len(self._rows)), len(self.classes_)
        parts = np.array_split(normalize(X), 1 + len(X) * len(self._rows) // _BLOCK)
        return np.concatenate([self._votes(part, k, n_classes) for part in parts])

    def _votes(self, X: FloatArray, k: int, n_classes: int) -> FloatArray:
        cosines = X @ self._rows.T
        near = np.argpartition(cosines, -k, axis=1)[:, -k:]
        weights = np.take_along_axis(cosines, near, axis=1).clip(min=np.finfo(X.dtype).eps)
        cells = np.arange(len(X))[:, None] * n_classes + self._codes[near]
        votes = np.bincount(cells.ravel(), weights.ravel(), len(X) * n_classes).reshape(len(X), n_classes)
        shares = (votes + 1 / n_classes) / (votes.sum(1, keepdims=True) + 1)
        return np.asarray(np.log(shares), X.dtype)


HEAD = Head("knn", lambda seed, n_rows: KNeighbors(), {"n_neighbors": (20, 10, 5, 1)}, {"n_neighbors": 1})
