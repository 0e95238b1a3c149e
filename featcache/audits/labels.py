"""Vectors on principal axes and labels enter; pictures whose label looks wrong, and what they look like, leave."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from joblib import Parallel, cpu_count, delayed
from scipy.special import softmax
from sklearn.model_selection import StratifiedKFold

from featcache.audits.twins import Rows
from featcache.experiments.fitting import MANY_CLASSES, temperature_of
from featcache.heads.base import one_blas_thread
from featcache.heads.logreg import LogisticRegression
from featcache.process import filtering
from featcache.records import FloatArray, Progress

STRENGTH = 0.001
"""`C` of the head: so regularised it does not bend to single labels that are wrong."""

FEWEST = 5
"""Labels of a class with fewer different pictures are not judged: nobody can tell what it looks like."""

FOLDS = 5
REPEATS = 3
DIGITS = 6
"""Probabilities that differ in later digits are equal."""

MANY = 10_000
"""From so many pictures on the folds are drawn once, since more draws change little."""


_few = filtering(("ignore", "The least populated class", UserWarning), ("ignore", MANY_CLASSES, UserWarning))
"""Of classes with fewer pictures than folds."""


@dataclass(frozen=True)
class Suspects:
    """Row numbers (m) of pictures whose label looks wrong, the worst first, and the class each looks like (m).

    `probabilities` (n, K) are those that a head gives pictures it was not fitted on; rows of classes that are too small
    to be judged are nan.
    """

    rows: Rows
    suggested: Rows
    probabilities: npt.NDArray[np.float64]


def suspects(X: FloatArray, codes: Rows, groups: Rows, seed: int, progress: Progress | None = None) -> Suspects:
    """Find labels that look wrong by confident learning (Northcutt, Jiang and Chuang 2021).

    `X` (n, d), labels as numbers of classes `codes` (n), twins of one number in `groups` (n). A picture is called
    confidently of a class where its probability reaches the mean one of the pictures with that label. As many as are
    confidently of another class than their label are suspected, those with the least probability of their own label.
    """
    n_classes = int(codes.max(initial=-1)) + 1
    counted = np.unique(np.stack([codes, groups], axis=1), axis=0)[:, 0]
    judged = np.flatnonzero(np.bincount(counted, minlength=n_classes)[codes] >= FEWEST)
    probabilities = np.full((len(codes), n_classes), np.nan)
    if len(np.unique(codes[judged])) < 2:
        return Suspects(np.empty(0, np.intp), np.empty(0, np.intp), probabilities)
    probabilities[judged] = _out_of_fold(X[judged], codes[judged], groups[judged], n_classes, seed, progress)
    # Rounded, so that equal pictures are equal however their scores were added up.
    P = np.round(probabilities[judged], DIGITS)
    labels = codes[judged]
    own = P[np.arange(len(labels)), labels]
    sizes = np.bincount(labels, minlength=n_classes)
    usual = np.bincount(labels, own, n_classes) / np.maximum(sizes, 1)
    confident = np.where((np.round(usual, DIGITS) <= P) & (sizes > 0), P, -1.0)
    count = int(((confident.max(axis=1) >= 0) & (confident.argmax(axis=1) != labels)).sum())
    worst = np.argsort(own, kind="stable")[:count]
    worst = worst[P[worst].argmax(axis=1) != labels[worst]]
    return Suspects(judged[worst], P[worst].argmax(axis=1), probabilities)


def _scores_of(X: FloatArray, codes: Rows, held: npt.NDArray[np.bool_], n_classes: int) -> FloatArray:
    """Return scores (m, n_classes) of the rows held out, by a head fitted on the others."""
    head = LogisticRegression(C=STRENGTH).fit(X[~held], codes[~held])
    scored = head.scores(X[held])
    # A class that is nowhere else is as unlikely as the least likely one.
    scores = np.repeat(scored.min(axis=1, keepdims=True), n_classes, axis=1)
    scores[:, head.classes_] = scored
    return scores


def _out_of_fold(
    X: FloatArray, codes: Rows, groups: Rows, n_classes: int, seed: int, progress: Progress | None
) -> npt.NDArray[np.float64]:
    """Return probabilities (n, n_classes) by heads that saw neither a picture nor its twins, the mean over repeats."""
    _, firsts, group = np.unique(groups, return_index=True, return_inverse=True)
    repeats = REPEATS if len(X) < MANY else 1
    found = np.zeros((len(X), n_classes))
    for repeat in range(repeats):
        splitter = StratifiedKFold(min(FOLDS, len(firsts)), shuffle=True, random_state=seed + repeat)
        scores = np.zeros((len(X), n_classes), np.float32)
        with _few:
            folds = list(splitter.split(firsts, codes[firsts]))
        helds = [np.isin(group, held_groups) for _, held_groups in folds]
        jobs = (delayed(_scores_of)(X, codes, held, n_classes) for held in helds)
        with one_blas_thread:
            found_scores = Parallel(cpu_count(), backend="threading", return_as="generator")(jobs)
            for done, (held, scored) in enumerate(zip(helds, found_scores, strict=True)):
                if progress:
                    progress("audit labels", repeat * len(folds) + done, repeats * len(folds))
                scores[held] = scored
        found += softmax(scores.astype(np.float64) / temperature_of(scores, codes), axis=1)
    if progress:
        progress("audit labels", repeats * len(folds), repeats * len(folds))
    return found / repeats
