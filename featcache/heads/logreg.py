"""A seed enters; an unfitted multinomial logistic regression leaves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from featcache.heads.base import Codes, Head, LinearClassifier, one_hot
from featcache.heads.solver import minimise
from featcache.records import FloatArray

_LOWEST = -50.0
"""Scores are cut here below the best one: exp gives 2e-22, and less would become denormal numbers, which are slow."""


class _CrossEntropy:
    def __init__(self, codes: Codes, dtype: Any) -> None:
        self._truth = one_hot(codes, dtype)
        self._p = self._truth

    def gradient(self, scores: FloatArray) -> FloatArray:
        p = scores - scores.max(1, keepdims=True)
        np.maximum(p, _LOWEST, out=p)
        np.exp(p, out=p)
        p /= p.sum(1, keepdims=True)
        self._p = p
        return np.asarray(p - self._truth)

    def curvature(self, direction: FloatArray) -> float:
        weighted = self._p * direction
        return float(np.vdot(weighted, direction)) - float(np.square(weighted.sum(1)).sum())

    def mean_curvature(self) -> float:
        return float((self._p.sum() - np.vdot(self._p, self._p)) / self._p.size)


class LogisticRegression(LinearClassifier):
    """Multinomial logistic regression with the objective of scikit-learn's class of this name.

    C * (sum of cross-entropies) + |W|^2 / 2, the intercept not penalised; for two classes the binary form.
    """

    path = "C"

    def __init__(self, C: float = 1.0, tol: float = 1e-3, temperature: float = 1.0) -> None:
        self.C = C
        self.tol = tol
        self.temperature = temperature

    def _fit_path(self, X: FloatArray, codes: Codes, values: Sequence[float]) -> Iterator[dict[str, Any]]:
        n_classes = len(self.classes_)
        # Of two classes each of the two columns is half the binary form's weights.
        penalties = [(2 if n_classes == 2 else 1) / C for C in values]
        for W, b, n_iter in minimise(X, _CrossEntropy(codes, X.dtype), n_classes, penalties, self.tol):
            yield {"coef_": W.T, "intercept_": b, "n_iter_": n_iter}


HEAD = Head(
    "logreg",
    lambda seed, n_rows: LogisticRegression(),
    {"C": (1.0, 10.0, 100.0)},
    {"C": 100.0},
    LogisticRegression.restored,
    rough={"tol": 1e-2},
)
