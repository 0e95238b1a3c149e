"""A seed enters; the floor of all scores, a classifier that looks at no vector, leaves."""

from __future__ import annotations

import numpy as np
from sklearn.dummy import DummyClassifier

from featcache.errors import ModelError
from featcache.heads.base import Head
from featcache.heads.keeping import Kept, Parts


def _keep(fitted: DummyClassifier) -> Kept:
    return Kept({}, {"class_prior_": fitted.class_prior_})


def _restored(parts: Parts) -> DummyClassifier:
    made = DummyClassifier(strategy="prior")
    made.class_prior_ = parts.floats("class_prior_", (parts.n_classes,))
    if not ((made.class_prior_ >= 0).all() and 0 < made.class_prior_.sum() < 2):
        raise ModelError("class_prior_ holds no probabilities")
    made.classes_, made.n_classes_, made.n_outputs_ = np.arange(parts.n_classes), parts.n_classes, 1
    made.n_features_in_, made.sparse_output_, made._strategy = parts.dim, False, "prior"
    return made


HEAD = Head("dummy", lambda seed, n_rows: DummyClassifier(strategy="prior"), {}, {}, _restored, _keep)
