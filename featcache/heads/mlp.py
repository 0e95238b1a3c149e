"""A seed enters; an unfitted multi-layer perceptron with one hidden layer of 256 leaves."""

from __future__ import annotations

from typing import Any

from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from featcache.heads.base import Head


def _make(seed: int) -> Any:
    return make_pipeline(StandardScaler(), MLPClassifier((256,), max_iter=100, n_iter_no_change=5, random_state=seed))


HEAD = Head("mlp", _make, {"mlpclassifier__alpha": (1.0, 0.01)})
