"""A seed, and values to try, enter; an unfitted multi-layer perceptron leaves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.neural_network import MLPClassifier
from sklearn.utils.validation import check_is_fitted, validate_data

from featcache.errors import HeadError, ModelError
from featcache.heads.base import INTERRUPTED, Classifier, Codes, DivergedError, Head, InterruptedFitError
from featcache.heads.keeping import Kept, Parts
from featcache.records import FloatArray
from featcache.records.experiments import Sweep

ACTIVATIONS = ("identity", "logistic", "relu", "tanh")

LEAST = 1e-30
"""Probabilities are not taken for less, so that their logarithms are finite, in single precision too."""


class LeadingAxes(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Keep the first columns that hold a `share` of the variance; models that were made before have it."""

    def __init__(self, share: float = 0.8) -> None:
        self.share = share

    def fit(self, X: FloatArray, y: npt.NDArray[Any] | None = None) -> Self:
        """Count the columns of `X` (n, d) that hold the share."""
        X = validate_data(self, X, dtype=(np.float32, np.float64))
        held = np.cumsum(X.var(0, dtype=np.float64))
        self.kept_ = min(int(np.searchsorted(held, self.share * held[-1])) + 1, X.shape[1])
        return self

    def transform(self, X: FloatArray) -> FloatArray:
        """Return the first `kept_` columns."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=(np.float32, np.float64), reset=False)
        return np.ascontiguousarray(X[:, : self.kept_])


class Perceptron(Classifier):
    """scikit-learn's `MLPClassifier` on vectors that are stretched to a total `variance`.

    Scores are the logarithms of its probabilities. With fewer than sixteen batches an epoch, few pictures would stop
    too early.
    """

    path = "alpha"
    kept = ("gain_",)

    def __init__(
        self,
        hidden: Sequence[int] = (256,),
        lr: float = 0.002,
        activation: str = "relu",
        alpha: float = 0.5,
        *,
        variance: float = 100.0,
        max_iter: int = 100,
        random_state: int | None = None,
        temperature: float = 1.0,
    ) -> None:
        self.hidden = hidden
        self.lr = lr
        self.activation = activation
        self.alpha = alpha
        self.variance = variance
        self.max_iter = max_iter
        self.random_state = random_state
        self.temperature = temperature

    def _fit_path(self, X: FloatArray, codes: Codes, values: Sequence[float]) -> Iterator[dict[str, Any]]:
        total = float(X.var(0, dtype=np.float64).sum())
        gain = float(np.sqrt(self.variance / total)) if total else 1.0
        X = X * X.dtype.type(gain)
        for alpha in values:
            network = MLPClassifier(
                tuple(self.hidden),
                activation=self.activation,
                alpha=alpha,
                batch_size=min(200, max(32, len(X) // 16), len(X)),
                learning_rate_init=self.lr,
                tol=0.005,
                n_iter_no_change=2,
                max_iter=self.max_iter,
                random_state=self.random_state,
            )
            try:
                network.fit(X, codes)
            except UserWarning as warning:
                if not str(warning).startswith(INTERRUPTED):
                    raise
                raise InterruptedFitError from warning
            except ValueError as error:
                raise DivergedError(str(error)) from error
            yield {
                "gain_": gain,
                "network_": network,
                "loss_curve_": network.loss_curve_,
                "n_iter_": network.n_iter_,
            }

    def keep(self) -> Kept:
        """Return the parameters, and the weights and biases of each layer."""
        known = super().keep()
        arrays = {f"weight{at}": weight for at, weight in enumerate(self.network_.coefs_)}
        arrays |= {f"bias{at}": bias for at, bias in enumerate(self.network_.intercepts_)}
        return Kept(known.values, arrays)

    def _take(self, parts: Parts) -> None:
        self.gain_ = parts.number("gain_")
        if self.activation not in ACTIVATIONS:
            raise ModelError(f"activation is {self.activation!r:.80}, which it cannot be")
        n_out = 1 if parts.n_classes == 2 else parts.n_classes
        sizes = [parts.dim, *self.hidden, n_out]
        network = MLPClassifier(tuple(self.hidden), activation=self.activation)
        layers = list(enumerate(pairwise(sizes)))
        network.coefs_ = [parts.floats(f"weight{at}", pair) for at, pair in layers]
        network.intercepts_ = [parts.floats(f"bias{at}", pair[1:]) for at, pair in layers]
        network.n_layers_, network.n_outputs_ = len(sizes), n_out
        network.out_activation_ = "logistic" if n_out == 1 else "softmax"
        network.classes_, network.n_features_in_ = self.classes_, parts.dim
        self.network_ = network

    def _scores(self, X: FloatArray) -> FloatArray:
        given = self.network_.predict_proba(X * X.dtype.type(self.gain_))
        return np.asarray(np.log(np.maximum(given, LEAST)))


HEAD = Head(
    "mlp",
    lambda seed, n_rows: Perceptron(random_state=seed),
    {"alpha": (0.5, 0.2)},
    {"alpha": 0.5},
    Perceptron.restored,
    rough={"max_iter": 8},
    temperature=1.2,
    one_fold_from=0,
)


LARGEST = 1e30
"""With larger learning rates and penalties nothing is learned but numbers without end."""
MOST_UNITS = 10**5


def sweeping(sweep: Sweep) -> Head:
    """Return the head with values to try, on all folds; what is not named has its default. Raises `HeadError`."""
    unknown = set(sweep.activation) - set(ACTIVATIONS)
    if unknown:
        raise HeadError(f"unknown activation {unknown.pop()!r}: use relu, tanh, logistic or identity")
    if any(units < 1 for layers in sweep.hidden for units in layers):
        raise HeadError("a hidden layer needs one unit or more")
    if any(units > MOST_UNITS for layers in sweep.hidden for units in layers):
        raise HeadError(f"a hidden layer has at most {MOST_UNITS:,} units")
    if not all(0 < rate <= LARGEST for rate in sweep.lr) or not all(0 <= alpha <= LARGEST for alpha in sweep.alpha):
        raise HeadError(f"a learning rate is above zero, alpha zero or above, and neither beyond {LARGEST:g}")
    asked = {
        "hidden": sweep.hidden,
        "lr": sweep.lr,
        "activation": sweep.activation,
        "alpha": sweep.alpha or HEAD.grid["alpha"][:1],
    }
    grid = {name: values for name, values in asked.items() if values}
    default = {name: values[0] for name, values in grid.items()}
    return replace(HEAD, grid=grid, default=default, rough={}, one_fold_from=None, keeps_default=False)
