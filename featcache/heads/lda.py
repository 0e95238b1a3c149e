"""A seed enters; an unfitted linear discriminant analysis leaves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from featcache.heads.base import Codes, Head, LinearClassifier, class_means, solve_shifted
from featcache.records import FloatArray


class LinearDiscriminantAnalysis(LinearClassifier):
    """Gaussian classes with one covariance, drawn towards a multiple of the identity by `shrinkage` (0 to 1).

    As scikit-learn's class of this name with `solver="lsqr"`; one covariance matrix serves all values of shrinkage.
    """

    path = "shrinkage"

    def __init__(self, shrinkage: float = 0.5, temperature: float = 1.0) -> None:
        self.shrinkage = shrinkage
        self.temperature = temperature

    def _fit_path(self, X: FloatArray, codes: Codes, values: Sequence[float]) -> Iterator[dict[str, Any]]:
        means, sizes = class_means(X, codes)
        centred = X - means.astype(X.dtype)[codes]
        within = centred.T @ centred / len(X)
        # Classes of one picture, or of equal ones, have no variance of their own: that of the whole stands in.
        whole, own = float(X.var(0, dtype=np.float64).mean()), float(np.trace(within)) / len(within)
        mean_variance = (own if own > float(np.finfo(X.dtype).eps) * whole else whole) or 1.0
        for shrinkage in values:
            W = solve_shifted((1 - shrinkage) * within, shrinkage * mean_variance, means.T.astype(X.dtype))
            b = np.log(sizes / len(X)) - np.einsum("kd,dk->k", means, W) / 2
            yield {"coef_": W.T, "intercept_": b.astype(X.dtype)}


HEAD = Head(
    "lda",
    lambda seed, n_rows: LinearDiscriminantAnalysis(),
    {"shrinkage": (0.95, 0.7, 0.4, 0.1)},
    {"shrinkage": 0.4},
    LinearDiscriminantAnalysis.restored,
    temperature=12.0,
)
