"""Features, a plan and a head enter; the head chosen, fitted and scored leaves."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from joblib import Parallel, delayed
from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import ParameterGrid, StratifiedKFold, cross_val_score
from threadpoolctl import threadpool_limits

from featcache.errors import HeadError
from featcache.evaluate import score
from featcache.heads import Head
from featcache.records import Features, Progress
from featcache.records.experiments import Score
from featcache.split import Plan

MAX_FOLDS = 5


@dataclass(frozen=True)
class Fitted:
    """A fitted estimator that predicts row numbers of `classes`, with how it came to be and what it scored."""

    estimator: Any
    classes: tuple[str, ...]
    params: dict[str, Any]
    chosen_by: str
    fitted_on: str
    n_train: int
    score: Score
    seconds: float
    notices: tuple[str, ...]


def fit_head(head: Head, features: Features, plan: Plan, seed: int, progress: Progress | None = None) -> Fitted:
    """Choose a head's parameters without the scored rows, fit it, and only then score it.

    The choice is made on `plan.val`, or by stratified CV inside train; the final fit is on train and val together, as
    is usual for linear probes. `progress` is called after each candidate; they run on all cores. Equal seeds give equal
    results. Raises `HeadError`.
    """
    # One BLAS thread for each fit, and the fits beside each other: measured up to 20 times as fast on small problems.
    with threadpool_limits(1, user_api="blas"):
        return _fit_head(head, features, plan, seed, progress)


def _fit_head(head: Head, features: Features, plan: Plan, seed: int, progress: Progress | None) -> Fitted:
    start = time.perf_counter()
    rows = plan.train if plan.val is None else np.concatenate([plan.train, plan.val])
    X, labels = features.X[rows], features.y[rows]
    classes, y = np.unique(labels, return_inverse=True)
    folds, chosen_by = _folds(y, plan, seed)
    candidates = list(ParameterGrid(dict(head.grid)))
    params = _choose(head, candidates, X, y, folds, seed, progress)
    estimator = head.make(seed).set_params(**params)
    if not head.calibrated:
        if _fewest(y) < 2:
            raise HeadError(
                f"{head.name} needs two pictures of each class for its probabilities: add some, or use logreg"
            )
        estimator = CalibratedClassifierCV(estimator, method="temperature", cv=_splitter(y, seed), ensemble=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        estimator.fit(X, y)
    seconds = time.perf_counter() - start
    if progress:
        progress(f"fit {head.name}", len(candidates) + 1, len(candidates) + 1)
    short = any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    return Fitted(
        estimator=estimator,
        classes=tuple(str(name) for name in classes),
        params={name.rpartition("__")[2]: value for name, value in params.items()},
        chosen_by=chosen_by,
        fitted_on="train" if plan.val is None else "train+val",
        n_train=len(rows),
        score=score(plan.scored_name, features.y[plan.scored], classes[estimator.predict(features.X[plan.scored])]),
        seconds=seconds,
        notices=(f"{head.name} stopped at its iteration limit before it converged",) if short else (),
    )


def _folds(
    y: npt.NDArray[np.intp], plan: Plan, seed: int
) -> tuple[list[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]], str]:
    if plan.val is not None:
        n = len(plan.train)
        return [(np.arange(n), np.arange(n, n + len(plan.val)))], f"accuracy on val (n={len(plan.val)})"
    splitter = _splitter(y, seed)
    return list(splitter.split(y, y)), f"{splitter.get_n_splits()}-fold cross-validation inside train"


def _splitter(y: npt.NDArray[np.intp], seed: int) -> StratifiedKFold:
    return StratifiedKFold(min(MAX_FOLDS, _fewest(y)), shuffle=True, random_state=seed)


def _choose(
    head: Head,
    candidates: list[dict[str, Any]],
    X: npt.NDArray[Any],
    y: npt.NDArray[np.intp],
    folds: Iterable[tuple[Any, Any]],
    seed: int,
    progress: Progress | None,
) -> dict[str, Any]:
    """Return the candidate with the best mean accuracy over the folds; of equals the first."""
    jobs = (
        delayed(cross_val_score)(
            head.make(seed).set_params(**params), X, y, cv=folds, scoring="accuracy", error_score="raise"
        )
        for params in candidates
    )
    means = []
    if progress:
        progress(f"fit {head.name}", 0, len(candidates) + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a candidate that needs longer just scores lower
        for scores in Parallel(n_jobs=-1, backend="threading", return_as="generator")(jobs):
            means.append(scores.mean())
            if progress:
                progress(f"fit {head.name}", len(means), len(candidates) + 1)
    return candidates[int(np.argmax(means))]


def _fewest(y: npt.NDArray[np.intp]) -> int:
    return min(Counter(y.tolist()).values())
