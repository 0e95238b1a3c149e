"""Features and a plan enter; what all heads of one experiment share, computed once, leaves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA
from sklearn.model_selection import StratifiedKFold

from featcache.errors import HeadError
from featcache.heads.base import one_blas_thread
from featcache.heads.scaling import CHOICE, SCALINGS
from featcache.records import Features, FloatArray
from featcache.splits import Plan, Rows

FOLDS = 5
FOLDS_OF_MANY = 3
MANY = 1000
"""From this many fitted pictures on, three folds choose as well as five."""

SAMPLED = 10_000
"""So many rows choose a scaling as well as all would."""

MOST_VALUE = 1e30
"""Larger ones leave what float32 holds when they are scaled."""

ALL_EQUAL = "all vectors are equal, so that nothing can be learned: look at the pictures, or extract again"

Fold = tuple[Rows, Rows]


@dataclass(frozen=True)
class Scaled:
    """Vectors `X` (n, views, r) after `steps` that saw these rows only: a scaling, and a turn onto principal axes.

    The turn loses nothing: distances and penalties stay what they were, and where there are fewer rows than columns it
    leaves as few columns.
    """

    steps: tuple[Any, ...]
    X: FloatArray

    @property
    def differs(self) -> bool:
        """Whether the scaling left a difference between the vectors: then their total variance is one, else nothing."""
        return float(self.X.reshape(-1, self.X.shape[-1]).var(0).sum()) > 0.5

    def rows(self, y: Rows, rows: Rows | None = None) -> tuple[FloatArray, Rows]:
        """Return the vectors and labels to fit on, every view of a picture a row of its own."""
        X, y = (self.X, y) if rows is None else (self.X[rows], y[rows])
        return X.reshape(-1, X.shape[-1]), np.repeat(y, X.shape[1])


@dataclass(frozen=True)
class Prepared:
    """What all heads of an experiment share: the vectors of a plan, and what they become by each scaling.

    `vectors` (n, views, d) and `y` (n) are fitted on, `scored` (m, views, d), `truth` and `scored_keys` (m) are scored;
    labels are numbers of `classes`. `scalings` names those that can be chosen, the default first. Of `SAMPLED` rows or
    more, `sample` holds so many, on which the scaling is chosen.
    """

    classes: npt.NDArray[np.str_]
    vectors: FloatArray
    y: Rows
    scored: FloatArray
    truth: Rows
    scored_keys: tuple[bytes, ...]
    plan: Plan
    scalings: tuple[str, ...]
    sample: Prepared | None
    seconds: float
    _scaled: dict[str, Scaled] = field(default_factory=dict, compare=False, repr=False)

    def scaled(self, scaling: str) -> Scaled:
        """Return the vectors after a scaling, computed once."""
        if scaling not in self._scaled:
            self._scaled[scaling] = _scale(self.vectors, scaling)
        return self._scaled[scaling]

    def folds(self, seed: int) -> tuple[list[Fold], str]:
        """Return what `folds` does for these rows."""
        return folds(self.y, self.plan, seed)


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
    features: Features,
    plan: Plan,
    train_views: Sequence[str] = (),
    test_views: Sequence[str] = (),
    scalings: Sequence[str] = CHOICE,
) -> Prepared:
    """Return the vectors of a plan, scaled in the ways that can be chosen from; raises `HeadError`.

    The classes are those that are fitted on, whatever is scored. The views are named besides the original one.
    """
    with one_blas_thread:
        return _prepare(features, plan, train_views, test_views, scalings)


def _prepare(
    features: Features, plan: Plan, train_views: Sequence[str], test_views: Sequence[str], scalings: Sequence[str]
) -> Prepared:
    start = time.perf_counter()
    fitted = plan.fitted
    classes, y = np.unique(features.y[fitted], return_inverse=True)
    truth = _numbers(features.y[plan.scored], classes, plan.scored_name)
    X = _stack(features, fitted, train_views)
    scored = _stack(features, plan.scored, test_views)
    _check(features, fitted, X)
    _check(features, plan.scored, scored)
    if (X[0, 0] == X).all():
        raise HeadError(ALL_EQUAL)
    data = Prepared(
        classes=classes,
        vectors=X,
        y=y,
        scored=scored,
        truth=truth,
        scored_keys=tuple(features.keys[row] for row in plan.scored),
        plan=plan,
        scalings=tuple(scalings),
        sample=None,
        seconds=0.0,
    )
    data = replace(data, sample=_sample(data) if len(X) > SAMPLED else None)
    usable = tuple(scaling for scaling in data.scalings if (data.sample or data).scaled(scaling).differs)
    if not usable:
        raise HeadError(ALL_EQUAL)
    return replace(data, scalings=usable, seconds=time.perf_counter() - start)


def _scale(vectors: FloatArray, scaling: str) -> Scaled:
    rows = vectors.reshape(-1, vectors.shape[-1])
    scaler = SCALINGS[scaling].make()
    rows = scaler.fit_transform(rows)
    axes = PCA(svd_solver="covariance_eigh" if len(rows) >= rows.shape[1] else "full")
    return Scaled((scaler, axes), axes.fit_transform(rows).reshape(*vectors.shape[:2], -1))


def _sample(data: Prepared) -> Prepared:
    """Return `SAMPLED` of the fitted rows, drawn with a fixed seed so that all heads look at the same ones."""
    rows = np.sort(np.random.default_rng(0).permutation(len(data.y))[:SAMPLED])
    n_train = int((rows < len(data.plan.train)).sum())
    fitted = data.plan.fitted[rows]
    plan = replace(data.plan, train=fitted[:n_train], val=None if data.plan.val is None else fitted[n_train:])
    return replace(data, vectors=data.vectors[rows], y=data.y[rows], plan=plan, _scaled={})


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
    large = np.flatnonzero(np.abs(X).max(axis=(1, 2)) > MOST_VALUE)
    if len(large):
        raise too_large(len(large), features.paths[rows[large[0]]])


def too_large(count: int, path: str) -> HeadError:
    """Return what to raise where so many vectors have values with which nothing can be calculated."""
    return HeadError(
        f"{count:,} vectors have values beyond {MOST_VALUE:.0e}, as that of {path}, with which nothing can be "
        "calculated: import them scaled down"
    )


def not_finite(count: int, path: str) -> HeadError:
    """Return what to raise where so many vectors are not finite, as that of the picture at `path`."""
    return HeadError(f"{count:,} vectors are not finite, as that of {path}: extract them again, or import a sound file")
