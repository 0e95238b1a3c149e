"""Nothing enters; the `Head` record that every family of classifiers returns, and what linear ones share, leave."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from operator import methodcaller
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve
from scipy.special import softmax
from sklearn import config_context
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from threadpoolctl import ThreadpoolController

from featcache.heads.keeping import Kept, Parts, kept_of
from featcache.process import Shared
from featcache.records import FloatArray

Codes = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Head:
    """A classifier that is not fitted yet: `make(seed, n_rows)` returns an estimator for vectors on principal axes.

    `grid` maps parameters to the values that are tried, the most regularised first, so that a tie goes to the simplest;
    `default` holds those that are taken where nothing can be chosen, `rough` those that save time while choosing. Of an
    estimator with a `path` the last parameter of the grid is the one along which it shares its work. With
    `keeps_default` the default stays unless another is clearly better. `temperature` is the usual one of its scores at
    one or two pictures a class, rather too high than too low, taken where none can be fitted. A costly head is tried
    on one fold only where there are `one_fold_from` pictures or more. `keep` returns what a file keeps of a fitted
    estimator, and `restore` makes it again from that; it raises `ModelError`.
    """

    name: str
    make: Callable[[int, int], Any]
    grid: Mapping[str, Sequence[Any]]
    default: Mapping[str, Any]
    restore: Callable[[Parts], Any]
    keep: Callable[[Any], Kept] = methodcaller("keep")
    rough: Mapping[str, Any] = field(default_factory=dict)
    temperature: float = 1.0
    keeps_default: bool = True
    one_fold_from: int | None = None


class Classifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """What our classifiers share: validation, labels, and probabilities as the softmax of scores over a temperature.

    A family says in `path` which parameter it can fit for several values at once, and in `kept` which fitted attributes
    its scores need; it implements `_fit_path`, `_scores` and `_take`.
    """

    path = ""
    kept: tuple[str, ...] = ()
    temperature: float

    def fit(self, X: FloatArray, y: npt.NDArray[Any]) -> Self:
        """Fit to vectors (n, d) and labels (n)."""
        X, codes = self._enter(X, y)
        (state,) = self._fit_path(X, codes, [getattr(self, self.path)])
        self.__dict__.update(state)
        return self

    def fit_path(self, X: FloatArray, y: npt.NDArray[Any], values: Sequence[Any]) -> Iterator[Self]:
        """Yield one fitted estimator for each value of the parameter named by `path`, in order, sharing the work."""
        first = clone(self)
        X, codes = first._enter(X, y)
        for value, state in zip(values, first._fit_path(X, codes, values), strict=True):
            fitted = clone(self).set_params(**{self.path: value})
            fitted.__dict__.update(classes_=first.classes_, n_features_in_=first.n_features_in_, **state)
            yield fitted

    def path_scores(
        self, X: FloatArray, y: npt.NDArray[Any], values: Sequence[Any], held: FloatArray
    ) -> Iterator[tuple[FloatArray, tuple[float, ...]]]:
        """Yield what `fit_path` fits as scores (m, K) of held vectors (m, d), and the losses epoch by epoch, if any."""
        for fitted in self.fit_path(X, y, values):
            yield fitted.scores(held), tuple(map(float, getattr(fitted, "loss_curve_", ())))

    def decision_function(self, X: FloatArray) -> FloatArray:
        """Return scores (n, K); of two classes (n), positive for the second."""
        scores = self.scores(X)
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def scores(self, X: FloatArray) -> FloatArray:
        """Return scores (n, K), also of two classes; the highest one is predicted."""
        check_is_fitted(self)
        return self._scores(validate_data(self, X, dtype=(np.float32, np.float64), reset=False))

    def predict(self, X: FloatArray) -> npt.NDArray[Any]:
        """Return the labels (n) with the highest scores."""
        scores = self.scores(X)
        return np.asarray(self.classes_[scores.argmax(1)])

    def predict_proba(self, X: FloatArray) -> FloatArray:
        """Return the probability (n, K) of each class in `classes_`."""
        return np.asarray(softmax(self.scores(X).astype(np.float64) / self.temperature, axis=1))

    def keep(self) -> Kept:
        """Return what a file keeps of it once it is fitted; classes are numbered from zero."""
        if not np.array_equal(self.classes_, np.arange(len(self.classes_))):
            raise ValueError("only a classifier of numbers of classes is kept, all of them from zero on")
        return kept_of(self, self.kept)

    @classmethod
    def restored(cls, parts: Parts) -> Self:
        """Return the fitted classifier that `keep` was asked of; raises `ModelError`."""
        temperature = parts.number("temperature")
        usual = {name: value for name, value in cls().get_params().items() if name != "temperature"}
        made = cls(**parts.params(usual), temperature=temperature)
        made.classes_, made.n_features_in_ = np.arange(parts.n_classes), parts.dim
        made._take(parts)
        return made

    def _enter(self, X: FloatArray, y: npt.NDArray[Any]) -> tuple[FloatArray, Codes]:
        X, y = validate_data(self, X, y, dtype=(np.float32, np.float64))
        if y.dtype.kind == "f":  # of names and numbers of classes it only warns that there are few images of each
            check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"Classifier can't train when only one class is present: {self.classes_[0]}")
        return X, codes

    def _fit_path(self, X: FloatArray, codes: Codes, values: Sequence[Any]) -> Iterator[dict[str, Any]]:
        """Yield the fitted attributes for each value; `codes` (n) number the classes."""
        raise NotImplementedError

    def _scores(self, X: FloatArray) -> FloatArray:
        raise NotImplementedError

    def _take(self, parts: Parts) -> None:
        """Set the attributes in `kept`; raises `ModelError` where they do not belong together."""
        raise NotImplementedError


class LinearClassifier(Classifier):
    """A classifier whose scores are `X @ coef_.T + intercept_`: `coef_` (K, d), `intercept_` (K), also for two."""

    kept = ("coef_", "intercept_")
    coef_: FloatArray
    intercept_: FloatArray

    def _scores(self, X: FloatArray) -> FloatArray:
        return np.asarray(X @ self.coef_.T + self.intercept_)

    def _take(self, parts: Parts) -> None:
        self.coef_ = parts.floats("coef_", (parts.n_classes, parts.dim))
        self.intercept_ = parts.floats("intercept_", (parts.n_classes,))


def one_hot(codes: Codes, dtype: npt.DTypeLike, low: float = 0.0) -> FloatArray:
    """Return (n, K): one where a row has the class, `low` elsewhere."""
    out = np.full((len(codes), codes.max() + 1), low, dtype)
    out[np.arange(len(codes)), codes] = 1
    return out


def class_means(X: FloatArray, codes: Codes) -> tuple[FloatArray, FloatArray]:
    """Return the mean vector of each class (K, d) and its number of rows (K), in double precision."""
    sizes = np.bincount(codes).astype(np.float64)
    sums = one_hot(codes, X.dtype).T @ X
    return sums.astype(np.float64) / sizes[:, None], sizes


def solve_shifted(matrix: FloatArray, shift: float, right: FloatArray) -> FloatArray:
    """Return the solution (d, K) of (matrix + shift * identity) x = right; the sum (d, d) is positive definite."""
    shifted = matrix.copy()
    shifted.flat[:: len(matrix) + 1] += shift
    # Transposed it is what LAPACK wants, and the same; these two let other threads run, `scipy.linalg.solve` does not.
    return np.asarray(cho_solve(cho_factor(shifted.T, overwrite_a=True, check_finite=False), right, check_finite=False))


INTERRUPTED = "Training interrupted by user"
"""What MLPClassifier warns of when it swallows Ctrl-C and goes on with a network that is half trained.

Whoever fits a head turns it into an error; in the threads that fit, filters of warnings cannot be set.
"""


class InterruptedFitError(Exception):
    """Ctrl-C came while a network was trained, and scikit-learn swallowed it."""


class DivergedError(ValueError):
    """The weights of a network grew beyond all bounds, as at too high a learning rate."""


def probabilities(
    estimator: Any, X: FloatArray, done: Callable[[int], None] = lambda rows: None
) -> npt.NDArray[np.float64]:
    """Return the probabilities (n, K) that a fitted estimator gives vectors (n, d), each the same in any company.

    One vector after the other: a product of matrices of another shape, or another row of it, is added up in another
    order by some processors. `done` hears how many there are.
    """
    out = np.zeros((len(X), len(estimator.classes_)))
    with one_blas_thread, config_context(assume_finite=True, skip_parameter_validation=True):
        for row in range(len(X)):
            out[row] = estimator.predict_proba(X[row : row + 1])[0]
            done(row + 1)
    return np.asarray(out / out.sum(1, keepdims=True))  # single precision leaves 1e-7


@contextmanager
def _one_blas_thread() -> Iterator[None]:
    libraries = _controller().select(user_api="blas").lib_controllers
    # From 3.8 on threadpoolctl heeds the thread alone that set a limit first; here another one may take it back.
    setters = [getattr(library, "_real_set_num_threads", library.set_num_threads) for library in libraries]
    before = [library.get_num_threads() for library in libraries]
    for put in setters:
        put(1)
    try:
        yield
    finally:
        for put, count in zip(setters, before, strict=True):
            put(count)


one_blas_thread = Shared(_one_blas_thread)
"""BLAS adds up in one order, whatever the number of cores: work is spread over threads of ours, each with its own part.

Its own threads wait busily for each other: two processes at once would take several times as long.
"""


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()  # looks for the libraries once, which takes a millisecond or two
