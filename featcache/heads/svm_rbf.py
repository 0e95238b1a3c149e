"""A seed enters; an unfitted support vector machine with a Gaussian kernel leaves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from sklearn.preprocessing import normalize
from sklearn.svm import SVC

from featcache.errors import ModelError
from featcache.heads.base import Classifier, Codes, Head
from featcache.heads.keeping import Parts
from featcache.records import FloatArray

MAX_ROWS = 20_000
"""Above this the matrix of all pairs (8 bytes each) would take more than 3 GB."""

_BLOCK = 2**21
"""Values that are in memory at once while scoring."""


class KernelSVM(Classifier):
    """scikit-learn's `SVC` with the kernel exp(-g |x - y|^2) of vectors drawn to unit length.

    g is `gamma` over the total variance of the training vectors at unit length. The kernel matrix comes from one matrix
    product and serves all values of C; so do the scores of new vectors. The score of a class is half the decision value
    beside the rival it does worst against (the maximin rule; Simpson 1969, The Statistician 18, 1-25). A class that
    beats all others has most of SVC's votes too, but these do not tell by how much.
    """

    path = "C"
    kept = ("_rate", "_vectors", "_ends", "_alphas", "_biases")

    def __init__(self, C: float = 1.0, gamma: float = 1.0, temperature: float = 1.0) -> None:
        self.C = C
        self.gamma = gamma
        self.temperature = temperature

    def _fit_path(self, X: FloatArray, codes: Codes, values: Sequence[float]) -> Iterator[dict[str, Any]]:
        if len(X) > MAX_ROWS:
            raise ValueError(f"it compares all pairs of vectors, and {len(X):,} are more than {MAX_ROWS:,}: use svm")
        X = normalize(X)
        variance = float(X.var(0, dtype=np.float64).sum())
        rate = self.gamma / variance if variance else 1.0
        kernel = _kernel(X, X, rate).astype(np.float64)
        for C in values:
            fitted = SVC(kernel="precomputed", C=C, random_state=0).fit(kernel, codes)
            alphas, offsets = _pairs(fitted)
            yield {
                "_rate": rate,
                "_vectors": X[fitted.support_],
                "_ends": np.cumsum(fitted.n_support_),
                "_alphas": alphas.astype(X.dtype),
                "_biases": offsets.astype(X.dtype),
            }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a pickled state; raises `ModelError` for one that counted votes."""
        if "_offsets" in state:  # its temperature belongs to votes
            raise ModelError("this model of svm-rbf is from a version that counted votes: fit it again")
        super().__setstate__(state)

    def _take(self, parts: Parts) -> None:
        self._rate = parts.number("_rate")
        self._vectors = parts.floats("_vectors", (None, parts.dim))
        n, n_classes = len(self._vectors), parts.n_classes
        self._ends = parts.places("_ends", (n_classes,), below=n + 1)
        self._alphas = parts.floats("_alphas", (n, n_classes))
        self._biases = parts.floats("_biases", (n_classes, n_classes))
        if (np.diff(self._ends, prepend=0, append=n) < 0).any() or self._ends[-1] != n:
            raise ModelError("_ends does not divide the vectors among the classes")

    def _scores(self, X: FloatArray) -> FloatArray:
        width = max(len(self.classes_) ** 2, len(self._vectors))
        parts = 1 + len(X) * width // _BLOCK
        return np.concatenate([self._margins(part) for part in np.array_split(normalize(X), parts)])

    def _margins(self, X: FloatArray) -> FloatArray:
        kernel = _kernel(X, self._vectors, self._rate)
        blocks = np.split(np.arange(len(self._vectors)), self._ends[:-1])
        adds = np.stack([kernel[:, block] @ self._alphas[block] for block in blocks])
        decisions = adds - adds.transpose(2, 1, 0) + self._biases[:, None]
        itself = np.arange(len(blocks))
        decisions[itself, :, itself] = np.inf
        return np.asarray(decisions.min(2).T / 2)


def _pairs(fitted: Any) -> tuple[FloatArray, FloatArray]:
    """Return alphas (support vectors, K) and offsets (K, K), so that decisions[i, j] are positive where i beats j.

    decisions[i, j] = offsets[i, j] + sum of kernel * alphas[:, j] over the vectors of class i, less the same with i and
    j exchanged. scikit-learn keeps K - 1 coefficients a vector, its own class left out.
    """
    n_classes = len(fitted.n_support_)
    order = np.arange(n_classes)
    sign = -1.0 if n_classes == 2 else 1.0  # scikit-learn turns the decision of two classes round
    alphas = np.zeros((len(fitted.support_), n_classes))
    for i, block in enumerate(np.split(np.arange(len(alphas)), np.cumsum(fitted.n_support_)[:-1])):
        others = np.delete(order, i)
        alphas[np.ix_(block, others)] = sign * fitted.dual_coef_[:, block].T * np.where(others > i, 1, -1)
    offsets = np.zeros((n_classes, n_classes))
    offsets[np.triu_indices(n_classes, 1)] = sign * fitted.intercept_
    return alphas, offsets - offsets.T


def _kernel(X: FloatArray, Y: FloatArray, rate: float) -> FloatArray:
    """Return exp(-rate |x - y|^2) for all pairs (n, m) of unit length; the square is 2 less twice the cosine."""
    out = X @ Y.T
    out -= 1
    np.minimum(out, 0, out=out)
    out *= 2 * rate
    return np.asarray(np.exp(out, out=out))


HEAD = Head(
    "svm-rbf",
    lambda seed, n_rows: KernelSVM(),
    {"gamma": (0.25, 1.0), "C": (1.0, 10.0)},
    {"gamma": 0.25, "C": 10.0},
    KernelSVM.restored,
    temperature=1.4,
    one_fold_from=1000,
)
