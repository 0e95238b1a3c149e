"""Prepared vectors and a head enter; the head chosen, fitted and tried on the scored rows leaves."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from joblib import Parallel, cpu_count, delayed
from scipy.optimize import minimize_scalar
from sklearn import config_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import ParameterGrid
from sklearn.pipeline import make_pipeline

from featcache.errors import HeadError
from featcache.experiments.prepared import Fold, Prepared, Scaled
from featcache.heads.base import (
    INTERRUPTED,
    Classifier,
    DivergedError,
    Head,
    InterruptedFitError,
    one_blas_thread,
)
from featcache.process import filtering
from featcache.records import FloatArray, Progress
from featcache.records.experiments import SCALING
from featcache.splits import Rows

SMALL = 2**20
"""A matrix with fewer values is worked on in one thread: more would wait for each other."""

SCORES_KEPT = 2**22
"""So many scores of held rows are kept of a candidate, at most, to fit its temperature to."""

TEMPERATURE_SPREAD = 0.7
"""The deviation of the logarithm of temperatures from that of the usual one of a head, over datasets."""

MANY_CLASSES = "The number of unique classes is greater than 50%"
"""What scikit-learn warns of where classes have one picture, as if their numbers were measurements."""

_warnings = filtering(
    ("ignore", "", ConvergenceWarning),  # a candidate that needs longer just scores lower; of the one kept it is said
    ("ignore", MANY_CLASSES, UserWarning),
    ("error", INTERRUPTED, UserWarning),
)

Right = npt.NDArray[np.bool_]

NOTHING: Right = np.zeros(0, np.bool_)


@dataclass(frozen=True)
class Trial:
    """One candidate, a scaling with a head's parameters: how it did where the choice is made, and the losses of a fit.

    `right` (n) tells of each row that was held out whether it was, in an order that all candidates share.
    """

    params: dict[str, Any]
    right: Right
    temperature: float
    loss_curve: tuple[float, ...] = ()

    @property
    def accuracy(self) -> float:
        """The share of rows held out that it has right; nothing where none was."""
        return float(self.right.mean()) if len(self.right) else 0.0


@dataclass(frozen=True)
class Held:
    """What a candidate fitted on one fold says of the rows held out: who is right, and some scores with their truth."""

    right: Right
    scores: FloatArray | None = None
    truth: npt.NDArray[np.intp] | None = None
    loss_curve: tuple[float, ...] = ()


@dataclass(frozen=True)
class Fitted:
    """A fitted pipeline that predicts numbers of classes, its probabilities (m, K) of the scored rows, and its way."""

    estimator: Any
    params: dict[str, Any]
    trials: tuple[Trial, ...]
    chosen_by: str
    probabilities: npt.NDArray[np.float64]
    fit_seconds: float
    predict_seconds: float
    loss_curve: tuple[float, ...]
    notices: tuple[str, ...]


def fit_head(head: Head, prepared: Prepared, seed: int, progress: Progress | None = None) -> Fitted:
    """Choose a scaling and a head's parameters without the scored rows, fit it, and only then try it on them.

    The choice is made on val, or by stratified cross-validation inside train: of the scalings with the default
    parameters, then of the parameters. The default stays unless another is better by more than two standard errors. The
    final fit is on train and val together, as is usual for linear probes. `progress` is called after each trial; they
    run on all cores. Equal seeds give equal results. Raises `HeadError`.
    """
    try:
        # The parameters were checked, and are ours.
        with config_context(assume_finite=True, skip_parameter_validation=True), one_blas_thread, _warnings:
            return _fit_head(head, prepared, seed, progress)
    except InterruptedFitError as interruption:
        raise KeyboardInterrupt from interruption
    except (ValueError, np.linalg.LinAlgError, MemoryError) as error:
        if isinstance(error, HeadError):
            raise
        raise HeadError(f"{head.name} cannot be fitted: {error}") from error


def _fit_head(head: Head, prepared: Prepared, seed: int, progress: Progress | None) -> Fitted:
    start = time.perf_counter()
    best, trials, chosen_by = _choose(head, prepared, seed, progress)
    params = dict(best.params)
    scaled = prepared.scaled(params.pop(SCALING, prepared.scalings[0]))
    X, y = scaled.rows(prepared.y)
    estimator = head.make(seed, len(y)).set_params(**params).fit(X, y)
    if isinstance(estimator, Classifier):
        estimator.set_params(temperature=best.temperature)
    pipeline = make_pipeline(*scaled.steps, estimator)
    middle = time.perf_counter()
    probabilities = mean_probabilities(pipeline, prepared.scored, len(prepared.classes))
    return Fitted(
        estimator=pipeline,
        params=best.params,
        trials=tuple(trials),
        chosen_by=chosen_by,
        probabilities=probabilities,
        fit_seconds=middle - start,
        predict_seconds=time.perf_counter() - middle,
        loss_curve=_loss_curve(estimator),
        notices=(f"{head.name} stopped at its iteration limit before it converged",) if _is_short(estimator) else (),
    )


def mean_probabilities(estimator: Any, X: FloatArray, n_classes: int) -> npt.NDArray[np.float64]:
    """Return probabilities (n, n_classes), the mean over the views of `X` (n, views, d)."""
    n, views, dim = X.shape
    found = estimator.predict_proba(X.reshape(-1, dim)).reshape(n, views, -1).mean(1, dtype=np.float64)
    out = np.zeros((n, n_classes))
    out[:, estimator.classes_] = found / found.sum(1, keepdims=True)  # single precision leaves 1e-7
    return out


def _choose(head: Head, prepared: Prepared, seed: int, progress: Progress | None) -> tuple[Trial, list[Trial], str]:
    """Return the candidate that is chosen, all that were tried, and in words how."""
    if not head.grid and not head.default:  # it looks at no vector
        return Trial({}, NOTHING, head.temperature), [], "default (nothing else to try)"
    folds, chosen_by = prepared.folds(seed)
    default = Trial({SCALING: prepared.scalings[0], **head.default}, NOTHING, head.temperature)
    if not folds:
        return default, [default], chosen_by
    if head.one_fold_from is not None and len(prepared.y) >= head.one_fold_from and len(folds) > 1:
        folds, chosen_by = folds[:1], f"one fold of {chosen_by}"
    data = prepared.sample or prepared
    parts = folds if prepared.sample is None else data.folds(seed)[0][: len(folds)]
    asked = [[{SCALING: scaling, **head.default}] for scaling in prepared.scalings]
    asked = asked if parts and len(asked) > 1 else []
    fits = len(asked) * len(parts) + len(_groups(head, "")) * len(folds)
    work = _Work(head, seed, progress, fits + len(folds) * bool(head.rough))
    scalings = work.try_all(data, parts, asked)
    scaling = chosen(scalings, default.params).params[SCALING] if scalings else prepared.scalings[0]
    trials = work.try_all(prepared, folds, _groups(head, scaling), len(asked) * len(parts))
    best = chosen(trials, {SCALING: scaling, **head.default} if head.keeps_default else None)
    if head.rough:  # it is rough no more, and may be more sure of itself
        (exact,) = replace(work, head=replace(head, rough={})).try_all(prepared, folds, [[best.params]], fits)
        best = replace(best, temperature=exact.temperature)
    others = [trial for trial in scalings if trial.params[SCALING] != scaling]
    return best, [*trials, *others], chosen_by


def _groups(head: Head, scaling: str) -> list[list[dict[str, Any]]]:
    """Return the candidates of a head's grid; those of one group share their work."""
    path = list(head.grid)[-1]
    others = ParameterGrid({name: values for name, values in head.grid.items() if name != path})
    return [[{SCALING: scaling, **params, path: value} for value in head.grid[path]] for params in others]


def chosen(trials: Sequence[Trial], default: Mapping[str, Any] | None) -> Trial:
    """Return the trial with most rows right, of equals the first; the default where there is one that is no worse."""
    best = max(trials, key=lambda trial: int(trial.right.sum()))
    kept = next((trial for trial in trials if trial.params == default), best)
    return best if is_worse(kept.right, best.right) else kept


def is_worse(right: Right, other: Right, errors: int = 2) -> bool:
    """Tell whether fewer of the same rows are right, by more than so many standard errors of the difference.

    After Breiman et al. (1984, CART, 3.4.3); the error is the paired one, of rows only one has right. All is counted,
    so that no rounding decides.
    """
    missing = int(other.sum()) - int(right.sum())
    return missing > 0 and missing**2 > errors**2 * int((right != other).sum())


@dataclass(frozen=True)
class _Work:
    """Tries candidates of one head on folds, on all cores; `total` is how many fits of groups there will be."""

    head: Head
    seed: int
    progress: Progress | None
    total: int

    def try_all(
        self, prepared: Prepared, folds: Sequence[Fold], groups: Sequence[Sequence[dict[str, Any]]], done: int = 0
    ) -> list[Trial]:
        """Return a trial for each candidate of each group, over all folds; so many fits were `done` before."""
        if not groups:
            return []
        tasks = [(group, fold) for group in groups for fold in folds]
        scaled = {group[0][SCALING]: prepared.scaled(group[0][SCALING]) for group in groups}
        kept = 1 + len(prepared.y) * len(prepared.classes) // SCORES_KEPT
        stage, found = f"fit {self.head.name}", list[list[Held]]()
        if self.progress and not done:
            self.progress(stage, 0, self.total)
        n_jobs = 1 if prepared.vectors.size < SMALL else min(len(tasks), cpu_count())
        jobs = (delayed(self._try)(scaled[group[0][SCALING]], prepared.y, group, fold, kept) for group, fold in tasks)
        for held in Parallel(n_jobs, backend="threading", return_as="generator")(jobs):
            found.append(held)
            if self.progress:
                self.progress(stage, done + len(found), self.total)
        trials = []
        for number, group in enumerate(groups):
            parts = found[number * len(folds) : (number + 1) * len(folds)]
            trials += [self._trial(params, same) for params, *same in zip(group, *parts, strict=True)]
        return trials

    def _trial(self, params: dict[str, Any], folds: Sequence[Held]) -> Trial:
        temperature, scores = self.head.temperature, [part.scores for part in folds if part.scores is not None]
        if scores:
            truth = np.concatenate([part.truth for part in folds if part.truth is not None])
            temperature = temperature_of(np.concatenate(scores), truth, self.head.temperature)
        return Trial(params, np.concatenate([part.right for part in folds]), temperature, folds[0].loss_curve)

    def _try(self, scaled: Scaled, y: Rows, group: Sequence[dict[str, Any]], fold: Fold, step: int) -> list[Held]:
        """Fit candidates that differ at most in the head's path on one fold, and try each on what is held out of it."""
        fitted_rows, held_rows = fold
        X, known = scaled.rows(y, fitted_rows)
        held, truth = scaled.X[held_rows, 0], y[held_rows]
        candidates = [{name: value for name, value in params.items() if name != SCALING} for params in group]
        first, *others = [
            self.head.make(self.seed, len(known)).set_params(**self.head.rough, **params) for params in candidates
        ]
        if not isinstance(first, Classifier):
            return [Held(estimator.fit(X, known).predict(held) == truth) for estimator in (first, *others)]
        classes, found = np.unique(known), []
        learned = np.flatnonzero(np.isin(truth, classes))[::step]
        values = [params[first.path] for params in candidates]
        try:
            for scores, losses in first.path_scores(X, known, values, held):
                right = classes[scores.argmax(1)] == truth
                found.append(Held(right, scores[learned], np.searchsorted(classes, truth[learned]), losses))
        except DivergedError:
            pass
        return found + [Held(np.zeros(len(truth), np.bool_))] * (len(values) - len(found))


def temperature_of(scores: FloatArray, truth: npt.NDArray[np.intp], usual: float | None = None) -> float:
    """Return the temperature that makes softmax(scores / temperature) the most likely (Guo et al. 2017).

    One part in n + 2 of each label is spread over all classes, so that few pictures, all right, do not make it certain
    (Platt 1999). With a `usual` temperature its logarithm has a normal prior around that of the usual one.
    """
    below = scores - scores.max(1, keepdims=True)
    spread_part = 1 / (len(truth) + 2)
    right = below[np.arange(len(truth)), truth]
    missed = -float(((1 - spread_part) * right + spread_part * below.mean(1)).mean())

    def loss(log_temperature: float) -> float:
        sharpness = np.exp(-log_temperature)
        exponents = np.maximum(below * scores.dtype.type(sharpness), -50)
        prior = 0.0 if usual is None else ((log_temperature - np.log(usual)) / TEMPERATURE_SPREAD) ** 2 / 2
        return float(missed * sharpness + np.log(np.exp(exponents).sum(1)).mean() + prior / len(truth))

    middle = np.log(max(float(scores.std()), 1e-12) if usual is None else usual)
    found = minimize_scalar(loss, bounds=(middle - 7, middle + 7), method="bounded", options={"xatol": 0.01})
    return float(np.exp(found.x))


def _is_short(estimator: Any) -> bool:
    """Tell whether an estimator with a limit of iterations has come to it."""
    return bool(getattr(estimator, "n_iter_", 0) >= getattr(estimator, "max_iter", np.inf))


def _loss_curve(estimator: Any) -> tuple[float, ...]:
    return tuple(float(loss) for loss in getattr(estimator, "loss_curve_", ()))
