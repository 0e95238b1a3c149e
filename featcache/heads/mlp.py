"""A seed, and values to try, enter; an unfitted multi-layer perceptron leaves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted, validate_data

from featcache.errors import HeadError
from featcache.heads.base import Head
from featcache.records import FloatArray
from featcache.records.experiments import Sweep


class LeadingAxes(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Keep the first columns that hold a `share` of the variance; of principal axes, the ones with the most."""

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


def _make(seed: int, n_rows: int) -> Any:
    # Four fifths of the variance take a quarter of the columns and half the time, with scores as good; with fewer than
    # sixteen batches an epoch, few pictures would stop too early.
    network = MLPClassifier(
        (256,),
        batch_size=min(200, max(32, n_rows // 16), n_rows),
        learning_rate_init=0.002,
        tol=0.02,
        n_iter_no_change=2,
        max_iter=100,
        random_state=seed,
    )
    return Pipeline([("axes", LeadingAxes()), ("mlp", network)])


HEAD = Head(
    "mlp",
    _make,
    {"mlp__alpha": (1.0, 0.3)},
    {"mlp__alpha": 1.0},
    rough={"mlp__max_iter": 8},
    one_fold_from=0,
)


def sweeping(sweep: Sweep) -> Head:
    """Return the head with values to try, on all folds; what is not named has its default. Raises `HeadError`."""
    unknown = set(sweep.activation) - {"identity", "logistic", "relu", "tanh"}
    if unknown:
        raise HeadError(f"unknown activation {unknown.pop()!r}: use relu, tanh, logistic or identity")
    if any(units < 1 for layers in sweep.hidden for units in layers):
        raise HeadError("a hidden layer needs one unit or more")
    if any(rate <= 0 for rate in sweep.lr) or any(alpha < 0 for alpha in sweep.alpha):
        raise HeadError("a learning rate must be above zero, and alpha not below")
    asked = {
        "mlp__hidden_layer_sizes": sweep.hidden,
        "mlp__learning_rate_init": sweep.lr,
        "mlp__activation": sweep.activation,
        "mlp__alpha": sweep.alpha or HEAD.grid["mlp__alpha"][:1],
    }
    grid = {name: values for name, values in asked.items() if values}
    return replace(
        HEAD, grid=grid, default={name: values[0] for name, values in grid.items()}, rough={}, one_fold_from=None
    )
