"""Heads as `fit` makes them, and their files, for tests of what is saved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from finetune_rows import STEPS
from sklearn.decomposition import PCA
from sklearn.pipeline import Pipeline, make_pipeline

from featcache.api.models import Model, save_model
from featcache.heads import FLOOR, get
from featcache.heads.scaling import SCALINGS
from featcache.records import FeatureSpec
from featcache.store import Cache

DIM = 12
SPEC = FeatureSpec("toy", "a" * 64, STEPS)
SCORES = {"accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": float("nan"), "split": "test", "n": 9, "head": "x"}
SCORES |= {"accuracy_high": 0.6, "log_loss": float("inf"), "seed": 0, "scored_classes": 3, "test_views": ()}


def fitted(head: str, n_classes: int = 3, scaling: str = "unit", dtype: str = "float32", dim: int = DIM) -> Pipeline:
    """A head as `fit` makes it."""
    r = np.random.default_rng(n_classes)
    y = np.arange(8 * n_classes) % n_classes
    X = (r.normal(size=(len(y), dim)) + 2 * r.normal(size=(n_classes, dim))[y]).astype(dtype)
    X[5] = X[5 + n_classes]  # equal vectors, which knn treats of their own
    scaler, axes = SCALINGS[scaling].make(), PCA()
    known = get(head)
    estimator = known.make(0, len(y)).set_params(**known.default)
    estimator.fit(axes.fit_transform(scaler.fit_transform(X)), y)
    if head != FLOOR:
        estimator.set_params(temperature=0.7 + np.float64(0.1))
    return make_pipeline(scaler, axes, estimator)


def saved(folder: Path, head: str, estimator: Pipeline, labels: tuple[str, ...]) -> Path:
    """The file of a head, in no run's name."""
    with Cache(folder) as cache:
        name = f"models/{head}.safetensors"
        save_model(cache, name, head, Model(estimator, labels, SPEC, "/no/such.pth", SCORES))
        return folder / name
