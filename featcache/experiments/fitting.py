"""Prepared vectors and a head enter; the head chosen, fitted and tried on the scored rows leaves."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from joblib import Parallel, cpu_count, delayed
from scipy.optimize import minimize_scalar
from sklearn import config_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import ParameterGrid
from sklearn.pipeline import Pipeline, make_pipeline
from threadpoolctl import ThreadpoolController

from featcache.errors import HeadError
from featcache.experiments.prepared import Fold, Prepared
from featcache.heads.base import Classifier, Head
from featcache.records import FloatArray, Progress

_SHORT = {"hidden_layer_sizes": "hidden", "learning_rate_init": "lr"}

_INTERRUPTED = "Training interrupted by user"
"""What MLPClassifier warns of when it swallows Ctrl-C and goes on with a network that is half trained."""

SMALL = 2**20
"""A matrix with fewer values is worked on with one BLAS thread: more would wait for each other."""


@dataclass(frozen=True)
class Trial:
    """One candidate for a head's parameters: its mean accuracy where the choice is made, and the losses of one fit."""

    params: dict[str, Any]
    accuracy: float
    temperature: float
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
    """Choose a head's parameters without the scored rows, fit it, and only then try it on them.

    The choice is made on val, or by stratified cross-validation inside train; the final fit is on train and val
    together, as is usual for linear probes. `progress` is called after each trial; they run on all cores. Equal seeds
    give equal results. Raises `HeadError`.
    """
    try:
        with config_context(assume_finite=True, skip_parameter_validation=True):  # they were checked, and are ours
            return _fit_head(head, prepared, seed, progress)
    except UserWarning as interruption:
        raise KeyboardInterrupt from interruption
    except (ValueError, np.linalg.LinAlgError, MemoryError) as error:
        if isinstance(error, HeadError):
            raise
        raise HeadError(f"{head.name} cannot be fitted: {error}") from error


def _fit_head(head: Head, prepared: Prepared, seed: int, progress: Progress | None) -> Fitted:
    start = time.perf_counter()
    trials, chosen_by = _choose(head, prepared, seed, progress)
    best = max(trials, key=lambda trial: trial.accuracy)  # of equals the first
    X, y = prepared.rows()
    with _blas(1 if X.size < SMALL else cpu_count()), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        warnings.filterwarnings("error", message=_INTERRUPTED)
        estimator = head.make(seed, len(y)).set_params(**best.params).fit(X, y)
        if isinstance(estimator, Classifier):
            estimator.set_params(temperature=best.temperature)
        middle = time.perf_counter()
        probabilities = predict_proba(estimator, prepared.scored, len(prepared.classes))
    short = any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    return Fitted(
        estimator=make_pipeline(*prepared.steps, estimator),
        params=shown(best.params),
        trials=tuple(trials),
        chosen_by=chosen_by,
        probabilities=probabilities,
        fit_seconds=middle - start,
        predict_seconds=time.perf_counter() - middle,
        loss_curve=_loss_curve(estimator),
        notices=(f"{head.name} stopped at its iteration limit before it converged",) if short else (),
    )


def shown(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters under the names that the command line has for them."""
    names = {name: name.rpartition("__")[2] for name in params}
    return {_SHORT.get(names[name], names[name]): value for name, value in params.items()}


def predict_proba(estimator: Any, X: FloatArray, n_classes: int) -> npt.NDArray[np.float64]:
    """Return probabilities (n, n_classes), the mean over the views of `X` (n, views, d)."""
    n, views, dim = X.shape
    found = estimator.predict_proba(X.reshape(-1, dim)).reshape(n, views, -1).mean(1, dtype=np.float64)
    out = np.zeros((n, n_classes))
    out[:, estimator.classes_] = found / found.sum(1, keepdims=True)  # single precision leaves 1e-7
    return out


def _choose(head: Head, prepared: Prepared, seed: int, progress: Progress | None) -> tuple[list[Trial], str]:
    """Try all candidates on the folds, and say how the choice is made."""
    folds, chosen_by = prepared.folds(seed)
    if not folds:
        return [Trial(dict(head.default), 0.0, 1.0)], chosen_by
    candidates = list(ParameterGrid(dict(head.grid)))
    if len(candidates) == 1 and not isinstance(head.make(seed, len(prepared.y)), Classifier):
        return [Trial(candidates[0], 0.0, 1.0)], "default (nothing else to try)"
    if head.one_fold_from is not None and len(prepared.y) >= head.one_fold_from and len(folds) > 1:
        folds, chosen_by = folds[:1], f"one fold of {chosen_by}"
    return _try_all(head, prepared, folds, seed, progress), chosen_by


def _try_all(
    head: Head, prepared: Prepared, folds: Sequence[Fold], seed: int, progress: Progress | None
) -> list[Trial]:
    """Return a trial for each candidate, its accuracy and its temperature the means over the folds."""
    candidates = list(ParameterGrid(dict(head.grid)))
    groups = [[params] for params in candidates]
    if isinstance(head.make(seed, len(prepared.y)), Classifier):
        path = list(head.grid)[-1]
        others = ParameterGrid({name: values for name, values in head.grid.items() if name != path})
        groups = [[{**params, path: value} for value in head.grid[path]] for params in others]
    tasks = [(group, fold) for group in groups for fold in folds]
    found: list[list[Trial]] = []
    if progress:
        progress(f"fit {head.name}", 0, len(tasks))
    n_jobs, n_threads = _cores(head, len(tasks), prepared.X.size)
    with _blas(n_threads), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a candidate that needs longer just scores lower
        warnings.filterwarnings("error", message=_INTERRUPTED)
        jobs = (delayed(_try)(head, prepared, group, fold, seed) for group, fold in tasks)
        for trials in Parallel(n_jobs, backend="threading", return_as="generator")(jobs):
            found.append(trials)
            if progress:
                progress(f"fit {head.name}", len(found), len(tasks))
    means = []
    for at in range(0, len(tasks), len(folds)):
        for same in zip(*found[at : at + len(folds)], strict=True):
            temperature = float(np.exp(np.mean([np.log(trial.temperature) for trial in same])))
            accuracy = float(np.mean([trial.accuracy for trial in same]))
            means.append(replace(same[0], accuracy=accuracy, temperature=temperature))
    return means


def _try(head: Head, prepared: Prepared, group: Sequence[dict[str, Any]], fold: Fold, seed: int) -> list[Trial]:
    """Fit candidates that differ at most in the head's path on one fold, and try each on what is held out of it."""
    fitted_rows, held_rows = fold
    X, y = prepared.rows(fitted_rows)
    held, truth = prepared.X[held_rows, 0], prepared.y[held_rows]
    estimator = head.make(seed, len(y)).set_params(**head.rough, **group[0])
    if not isinstance(estimator, Classifier):
        (params,) = group
        try:
            right = estimator.fit(X, y).predict(held) == truth
        except ValueError:  # a learning rate at which the weights grow beyond all bounds
            return [Trial(params, 0.0, 1.0)]
        return [Trial(params, float(right.mean()), 1.0, _loss_curve(estimator))]
    values, classes = [params[estimator.path] for params in group], np.unique(y)
    trials = []
    for params, scores in zip(group, estimator.path_scores(X, y, values, held), strict=True):
        accuracy = float((classes[scores.argmax(1)] == truth).mean())
        temperature = temperature_of(scores, np.searchsorted(classes, truth))
        trials.append(Trial(params, accuracy, temperature))
    return trials


def temperature_of(scores: FloatArray, truth: npt.NDArray[np.intp]) -> float:
    """Return the temperature that makes softmax(scores / temperature) the most likely (Guo et al. 2017).

    One part in n + 2 of each label is spread over all classes, so that few pictures, all right, do not make it certain
    (Platt 1999).
    """
    below = scores - scores.max(1, keepdims=True)
    spread_part = 1 / (len(truth) + 2)
    right = below[np.arange(len(truth)), truth]
    missed = -float(((1 - spread_part) * right + spread_part * below.mean(1)).mean())

    def loss(log_temperature: float) -> float:
        sharpness = np.exp(-log_temperature)
        exponents = np.maximum(below * scores.dtype.type(sharpness), -50)
        return float(missed * sharpness + np.log(np.exp(exponents).sum(1)).mean())

    spread = np.log(max(float(scores.std()), 1e-12))
    found = minimize_scalar(loss, bounds=(spread - 7, spread + 7), method="bounded", options={"xatol": 0.01})
    return float(np.exp(found.x))


def _loss_curve(estimator: Any) -> tuple[float, ...]:
    last = estimator[-1] if isinstance(estimator, Pipeline) else estimator
    return tuple(float(loss) for loss in getattr(last, "loss_curve_", ()))


def _cores(head: Head, n_tasks: int, size: int) -> tuple[int, int]:
    """Return how many tasks run beside each other, and how many threads BLAS has in each.

    Threads of one BLAS wait busily, and numpy and scipy bring one each: a head that uses both has one thread a task.
    """
    if size < SMALL:
        return 1, 1
    cores = cpu_count()
    n_jobs = min(n_tasks, max(1, cores // 4) if head.wide else cores)
    return n_jobs, cores // n_jobs if head.wide else 1


@contextmanager
def _blas(n_threads: int) -> Iterator[None]:
    with _controller().limit(limits=n_threads, user_api="blas"):
        yield


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()  # looks for the libraries once, which takes a millisecond or two
