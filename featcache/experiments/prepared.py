"""Features and a plan enter; what all heads of one experiment share, computed once, leaves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler

from featcache.errors import HeadError
from featcache.records import Features, FloatArray
from featcache.splits import Plan, Rows

FOLDS = 5
FOLDS_OF_MANY = 3
MANY = 1000
"""From this many fitted pictures on, three folds choose as well as five."""

ALL_EQUAL = "all vectors are equal, so that nothing can be learned: look at the pictures, or extract again"

Fold = tuple[Rows, Rows]


@dataclass(frozen=True)
class Prepared:
    """Vectors of a plan, standardised and turned onto their principal axes by `steps` that saw the fitted rows only.

    `X` (n, views, r) and `y` (n) are fitted on, `scored` (m, views, r), `truth` and `scored_keys` (m) are scored;
    labels are numbers of `classes`. The turn loses nothing: distances and penalties stay what they were, and where
    there are fewer rows than columns it leaves as few columns.
    """

    steps: tuple[Any, ...]
    classes: npt.NDArray[np.str_]
    X: FloatArray
    y: Rows
    scored: FloatArray
    truth: Rows
    scored_keys: tuple[bytes, ...]
    plan: Plan
    seconds: float

    def folds(self, seed: int) -> tuple[list[Fold], str]:
        """Return what `folds` does for these rows."""
        return folds(self.y, self.plan, seed)

    def rows(self, rows: Rows | None = None) -> tuple[FloatArray, Rows]:
        """Return the vectors and labels to fit on, every view of a picture a row of its own."""
        X, y = (self.X, self.y) if rows is None else (self.X[rows], self.y[rows])
        return X.reshape(-1, X.shape[-1]), np.repeat(y, X.shape[1])


def folds(y: Rows, plan: Plan, seed: int) -> tuple[list[Fold], str]:
    """Return the rows (fitted, held) on which parameters are chosen, and in words how; none where it cannot be.

    `y` numbers the classes of the rows that are fitted on in the end; the rows that are returned count among them.
    """
    n_train, fewest = len(plan.train), int(np.unique(y, return_counts=True)[1].min())
    if plan.val is not None:
        rows = np.arange(len(y))
        return [(rows[:n_train], rows[n_train:])], f"accuracy on val (n={len(plan.val)})"
    if fewest < 2:
        return [], "default values, since a class has one picture"
    n_folds = min(FOLDS if len(y) < MANY else FOLDS_OF_MANY, fewest)
    splitter = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
    return list(splitter.split(y, y)), f"{n_folds}-fold cross-validation inside train"


def prepare(
    features: Features, plan: Plan, train_views: Sequence[str] = (), test_views: Sequence[str] = ()
) -> Prepared:
    """Standardise the vectors of a plan and turn them onto their principal axes; raises `HeadError`.

    The classes are those that are fitted on, whatever is scored. The views are named besides the original one.
    """
    start = time.perf_counter()
    fitted = plan.fitted
    classes, y = np.unique(features.y[fitted], return_inverse=True)
    truth = _numbers(features.y[plan.scored], classes, plan.scored_name)
    X = _stack(features, fitted, train_views)
    scored = _stack(features, plan.scored, test_views)
    _check(features, fitted, X)
    _check(features, plan.scored, scored)
    dim = X.shape[-1]
    rows = X.reshape(-1, dim)
    if (rows == rows[0]).all():
        raise HeadError(ALL_EQUAL)
    steps = (StandardScaler(copy=False), PCA(svd_solver="covariance_eigh" if len(rows) >= dim else "full"))
    for step in steps:
        rows = step.fit_transform(rows)
        scored = step.transform(scored.reshape(-1, scored.shape[-1])).reshape(*scored.shape[:2], -1)
    steps[0].set_params(copy=True)  # from now on it gets vectors that belong to others
    return Prepared(
        steps=steps,
        classes=classes,
        X=rows.reshape(*X.shape[:2], -1),
        y=y,
        scored=scored,
        truth=truth,
        scored_keys=tuple(features.keys[row] for row in plan.scored),
        plan=plan,
        seconds=time.perf_counter() - start,
    )


def _numbers(labels: npt.NDArray[np.str_], classes: npt.NDArray[np.str_], where: str) -> Rows:
    """Return the number of each label among the classes, which are sorted; raises `HeadError` for one that is none."""
    unknown = labels[~np.isin(labels, classes)]
    if len(unknown):
        raise HeadError(f"class {str(unknown[0])!r} is in {where}, and not among those fitted on: leave it out")
    return np.searchsorted(classes, labels)


def _stack(features: Features, rows: Rows, views: Sequence[str]) -> FloatArray:
    """Return float32 vectors (n, 1 + views, d), the original view first."""
    matrices = (features.X, *(features.views[view] for view in views))
    return np.stack([X[rows] for X in matrices], axis=1, dtype=np.float32)


def _check(features: Features, rows: Rows, X: FloatArray) -> None:
    broken = np.flatnonzero(~np.isfinite(X).all(axis=(1, 2)))
    if len(broken):
        raise not_finite(len(broken), features.paths[rows[broken[0]]])


def not_finite(count: int, path: str) -> HeadError:
    """Return what to raise where so many vectors are not finite, as that of the picture at `path`."""
    return HeadError(f"{count:,} vectors are not finite, as that of {path}: extract them again, or import a sound file")
