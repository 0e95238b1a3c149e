"""Made-up features with their plans, and heads that do as they are told, for tests of experiments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from sklearn.dummy import DummyClassifier

from featcache.heads import dummy
from featcache.heads.base import Head
from featcache.records import Features
from featcache.splits import Plan, plan

LABELS = ("ant", "bee", "cat")


def pictures(
    sizes: Mapping[str, int],
    seed: int = 0,
    labels: Sequence[str] = LABELS,
    dim: int = 6,
    apart: float = 1.0,
    views: Sequence[str] = (),
) -> tuple[Features, Plan]:
    """So many pictures of each label in each split, in mixed order, around one centre a label, and their plan.

    Columns differ in scale and are far from zero; views are the vectors with a little noise.
    """
    r = np.random.default_rng(seed)
    rows = [(split, at) for split, n in sizes.items() for at in range(len(labels)) for _ in range(n)]
    rows = [rows[at] for at in r.permutation(len(rows))]
    codes = np.array([at for _, at in rows])
    around = apart * r.normal(size=(len(labels), dim))[codes] + r.normal(size=(len(rows), dim))
    scale = np.geomspace(0.1, 10, dim)
    X = ((around + 3) * scale).astype(np.float32)
    given = Features(
        X=X,
        y=np.array(labels)[codes],
        paths=tuple(f"/{number}.jpg" for number in range(len(rows))),
        splits=np.array([split for split, _ in rows]),
        keys=tuple(number.to_bytes(32, "big") for number in range(len(rows))),
        fingerprint="f",
        views={view: (X + 0.1 * scale * r.normal(size=X.shape)).astype(np.float32) for view in views},
    )
    return given, plan(given, 0, {}, strict=False)


def poisoned(given: Features, rows: Any, seed: int = 99) -> Features:
    """The same pictures with other labels, and garbage for vectors, in these rows."""
    r = np.random.default_rng(seed)
    y, X = given.y.copy(), given.X.copy()
    y[rows] = np.roll(y[rows], 1)
    assert (y != given.y).any()
    X[rows] = 1000 * r.normal(size=X[rows].shape)
    views = {name: values.copy() for name, values in given.views.items()}
    for values in views.values():
        values[rows] = -1000 * r.normal(size=X[rows].shape)
    return replace(given, X=X, y=y, views=views)


def dummy_head(name: str, kind: type = DummyClassifier, **kwargs: Any) -> Head:
    """A head that looks at no vector, or what else `kind` does."""
    usual: dict[str, Any] = {"grid": {}, "default": {}, "restore": dummy.HEAD.restore}
    return Head(name, lambda seed, n_rows: kind(), **usual | kwargs)


class Failing(DummyClassifier):
    """Fails as `problem` says."""

    problem: BaseException = ValueError("of no use")

    def set_params(self, **params: Any) -> Any:
        return self

    def fit(self, X: Any, y: Any) -> Any:
        raise self.problem
