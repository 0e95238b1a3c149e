"""A seed enters; an unfitted ridge classifier leaves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from featcache.heads.base import Codes, Head, LinearClassifier, one_hot, solve_shifted
from featcache.records import FloatArray


class RidgeClassifier(LinearClassifier):
    """Least squares on -1 and 1 for each class, |X W + b - Y|^2 + alpha |W|^2, as scikit-learn's class of this name.

    One Gram matrix serves all values of alpha.
    """

    path = "alpha"

    def __init__(self, alpha: float = 1.0, temperature: float = 1.0) -> None:
        self.alpha = alpha
        self.temperature = temperature

    def _fit_path(self, X: FloatArray, codes: Codes, values: Sequence[float]) -> Iterator[dict[str, Any]]:
        targets = one_hot(codes, X.dtype, low=-1.0)
        mean, level = X.mean(0, dtype=np.float64), targets.mean(0, dtype=np.float64)
        centred = X - mean.astype(X.dtype)
        gram, right = centred.T @ centred, centred.T @ (targets - level.astype(X.dtype))
        for alpha in values:
            W = solve_shifted(gram, alpha, right)
            yield {"coef_": W.T, "intercept_": (level - mean @ W).astype(X.dtype)}


HEAD = Head(
    "ridge",
    lambda seed, n_rows: RidgeClassifier(),
    {"alpha": (10.0, 3.0, 1.0, 0.3, 0.1)},
    {"alpha": 0.3},
    RidgeClassifier.restored,
    temperature=0.45,
)
