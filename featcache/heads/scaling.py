"""Vectors as a network gives them enter; the same, scaled so that a classifier finds its way among them, leave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from featcache.errors import ModelError
from featcache.heads.keeping import Kept, Parts, kept_of
from featcache.records import FloatArray

POWER = 0.7
"""Of the powers 1, 0.7, 0.5 and 0.33 the one that was nowhere much worse than the best, from one picture a class on."""

ROUNDING = 8 * float(np.finfo(np.float32).eps)
"""The deviation, beside their mean, that equal values can have in single precision after a power and a division."""

SHARE = 0.9
"""How much of a column's own variance counts where columns are divided: the rest is the mean one, a floor for noise."""


class VectorScaler(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Vectors (n, d) less their mean and with the total variance one, after what is done to each by itself.

    `power` draws each value towards 1, its sign kept (Perronnin, Sanchez and Mensink 2010, ECCV, 143-156); `unit`
    divides each vector by its length, as prototypes and probes of few pictures do (Wang et al. 2019, SimpleShot,
    arXiv:1911.04623). `columns`, from 0 to 1, divides each column by its deviation, the variance drawn so far from the
    mean one towards its own: 1 is standardising, 0 leaves the columns as they are to each other. A vector of zeros
    stays one. Neither `power` nor `unit` learns anything from other vectors.

    >>> import numpy as np
    >>> VectorScaler(power=1, unit=False).fit_transform(np.array([[1.0, 5.0], [3.0, 5.0]])).tolist()
    [[-1.0, 0.0], [1.0, 0.0]]
    """

    def __init__(self, power: float = POWER, unit: bool = True, columns: float = 0.0) -> None:
        self.power = power
        self.unit = unit
        self.columns = columns

    def fit(self, X: FloatArray, y: npt.NDArray[Any] | None = None) -> Self:
        """Learn the mean, and what to divide by, from vectors (n, d)."""
        X = self.shape(validate_data(self, X, dtype=(np.float32, np.float64)))
        return self.learn(X.mean(0, dtype=np.float64), X.var(0, dtype=np.float64))

    def learn(self, mean: FloatArray, variance: FloatArray) -> Self:
        """Take the mean (d) and variance (d) of shaped vectors, for those who cannot have all of them at once."""
        self.n_features_in_ = len(mean)
        self.mean_ = mean
        own = self.columns * variance + (1 - self.columns) * variance.mean()
        # A column that does not vary but for rounding is not blown up.
        divisor = np.sqrt(np.where(variance > np.square(ROUNDING * mean), own, 0))
        known = divisor > 0
        total = (variance[known] / np.square(divisor[known])).sum()
        self.scale_ = np.where(known, divisor * np.sqrt(total), 1.0)
        return self

    def shape(self, X: FloatArray) -> FloatArray:
        """Return vectors (n, d) after what is done to each by itself."""
        if self.power != 1:
            X = np.sign(X) * np.abs(X) ** X.dtype.type(self.power)
        if self.unit:
            largest = np.abs(X).max(axis=1, keepdims=True)  # squares of very large or small values would be lost
            X = X / np.where(largest > 0, largest, 1)
            lengths = np.sqrt(np.einsum("ij,ij->i", X, X))[:, None]
            X = X / np.where(lengths > 0, lengths, 1)
        return X

    def transform(self, X: FloatArray) -> FloatArray:
        """Return vectors (n, d) scaled, in their own precision."""
        check_is_fitted(self)
        X = self.shape(validate_data(self, X, dtype=(np.float32, np.float64), reset=False))
        return np.asarray((X - self.mean_.astype(X.dtype)) / self.scale_.astype(X.dtype))

    def keep(self) -> Kept:
        """Return what a file keeps of it once it is fitted."""
        return kept_of(self, ("mean_", "scale_"))

    @classmethod
    def restored(cls, parts: Parts) -> Self:
        """Return the fitted scaler that `keep` was asked of; raises `ModelError`."""
        made = cls(power=parts.number("power", 0.01, 100), **parts.params({"unit": True, "columns": 0.0}))
        made.mean_ = parts.floats("mean_", (parts.dim,))
        made.n_features_in_ = len(made.mean_)
        made.scale_ = parts.floats("scale_", made.mean_.shape)
        if not (made.scale_ > 0).all():
            raise ModelError("scale_ holds values that are not above zero")
        return made


@dataclass(frozen=True)
class Scaling:
    """A way of scaling vectors that a head can choose; of a `linear` one a linear head is a linear layer."""

    name: str
    power: float
    unit: bool
    columns: float

    def make(self) -> VectorScaler:
        """Return a scaler that is not fitted yet."""
        return VectorScaler(self.power, self.unit, self.columns)


SCALINGS: Mapping[str, Scaling] = {
    scaling.name: scaling
    for scaling in (
        Scaling("unit", POWER, True, 0.0),
        Scaling("columns", POWER, True, SHARE),
        Scaling("standard", 1.0, False, SHARE),
    )
}

CHOICE = tuple(SCALINGS)
LINEAR = ("standard",)
"""Those that a head chooses from, the default first, and those after which a linear head is a linear layer."""
