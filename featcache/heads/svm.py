"""A seed enters; an unfitted linear support vector machine leaves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from featcache.heads.base import Codes, Head, LinearClassifier, one_hot
from featcache.heads.solver import minimise
from featcache.records import FloatArray


class _SquaredHinge:
    def __init__(self, signs: FloatArray) -> None:
        self._signs = signs
        self._pull = -2 * signs
        self._active = signs != 0

    def gradient(self, scores: FloatArray) -> FloatArray:
        missing = self._signs * scores
        np.subtract(1, missing, out=missing)
        np.maximum(missing, 0, out=missing)
        self._active = missing > 0
        missing *= self._pull
        return missing

    def curvature(self, direction: FloatArray) -> float:
        return 2 * float(np.vdot(direction * self._active, direction))

    def mean_curvature(self) -> float:
        return 2 * float(self._active.mean())


class LinearSVM(LinearClassifier):
    """Linear support vector machines, one class against the rest, with the objective of scikit-learn's `LinearSVC`.

    C * (sum of squared hinge losses) + (|w|^2 + b^2) / 2 for each class, all of them in one matrix product.
    """

    path = "C"

    def __init__(self, C: float = 1.0, tol: float = 1e-3, temperature: float = 1.0) -> None:
        self.C = C
        self.tol = tol
        self.temperature = temperature

    def _fit_path(self, X: FloatArray, codes: Codes, values: Sequence[float]) -> Iterator[dict[str, Any]]:
        signs = one_hot(codes, X.dtype, low=-1.0)
        if signs.shape[1] == 2:  # the two problems are one, mirrored
            signs = signs[:, 1:]
        penalties = [1 / C for C in values]
        for W, b, n_iter in minimise(X, _SquaredHinge(signs), signs.shape[1], penalties, self.tol, True):
            if W.shape[1] == 1:
                W, b = np.hstack([-W, W]) / 2, np.append(-b, b) / 2
            yield {"coef_": W.T, "intercept_": b, "n_iter_": n_iter}


HEAD = Head(
    "svm",
    lambda seed, n_rows: LinearSVM(),
    {"C": (0.01, 0.1, 1.0, 10.0)},
    {"C": 1.0},
    LinearSVM.restored,
    rough={"tol": 1e-2},
    temperature=0.25,
)
