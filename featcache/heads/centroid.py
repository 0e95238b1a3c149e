"""A seed enters; an unfitted nearest-centroid classifier leaves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from sklearn.preprocessing import normalize

from featcache.heads.base import Codes, Head, LinearClassifier, class_means
from featcache.records import FloatArray


class NearestCentroid(LinearClassifier):
    """The class with the nearest mean; with `cosine` all vectors are drawn to unit length first.

    With `cosine`, on centred vectors, this is the CL2N of Wang et al. (2019, SimpleShot, arXiv:1911.04623). The means
    keep their lengths beside each other: that of a class whose vectors point everywhere is short.
    """

    path = "cosine"

    def __init__(self, cosine: bool = False, temperature: float = 1.0) -> None:
        self.cosine = cosine
        self.temperature = temperature

    def _fit_path(self, X: FloatArray, codes: Codes, values: Sequence[bool]) -> Iterator[dict[str, Any]]:
        for cosine in values:
            means = class_means(normalize(X) if cosine else X, codes)[0]
            squares = np.einsum("kd,kd->k", means, means)
            # The shorter the means, the nearer to each other all scores would be, and no usual temperature held.
            length = (np.sqrt(squares.mean()) if cosine else 0.0) or 1.0
            yield {
                "coef_": (means / length).astype(X.dtype),
                "intercept_": (-squares / (2 * length)).astype(X.dtype),
            }

    def _scores(self, X: FloatArray) -> FloatArray:
        return super()._scores(normalize(X) if self.cosine else X)


HEAD = Head(
    "centroid",
    lambda seed, n_rows: NearestCentroid(),
    {"cosine": (False, True)},
    {"cosine": True},
    NearestCentroid.restored,
    temperature=2.5,
)
