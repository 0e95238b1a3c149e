"""A seed enters; an unfitted multinomial logistic regression leaves."""

from __future__ import annotations

from typing import Any

from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from featcache.heads.base import Head


def _make(seed: int) -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, random_state=seed))


HEAD = Head("logreg", _make, {"logisticregression__C": (0.001, 0.01, 0.1, 1.0)})
