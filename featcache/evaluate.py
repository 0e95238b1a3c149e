"""True labels and predictions enter; scores leave, with intervals and tests that say what they are worth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from sklearn.metrics import precision_recall_fscore_support

from featcache.records.experiments import Score

_Z95 = 1.959963984540054
RESAMPLES = 1000
FLIPS = 10_000
BINS = 15

Codes = npt.NDArray[np.intp]
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Answers:
    """What a head says of pictures (n each): the class it predicts, how sure it is, how likely it held the truth."""

    predicted: Codes
    confidence: Array
    likelihood: Array


def answers(truth: Codes, probabilities: Array) -> Answers:
    """Return what probabilities (n, K) say of the classes (n) that are true."""
    return Answers(probabilities.argmax(1), probabilities.max(1), probabilities[np.arange(len(truth)), truth])


def _answers(truth: Codes, given: Answers | Array) -> Answers:
    return given if isinstance(given, Answers) else answers(truth, given)


def score(split: str, truth: Codes, given: Answers | Array) -> Score:
    """Score answers or probabilities (n, K) against the truth (n); mean recall and macro-F1 are over its classes."""
    found = _answers(truth, given)
    names = np.unique(truth)
    _, recalls, f1s, _ = precision_recall_fscore_support(truth, found.predicted, labels=names, zero_division=0)
    hits = int((truth == found.predicted).sum())
    low, high = wilson(hits, len(truth))
    least = np.finfo(np.float64).eps
    return Score(
        split=split,
        n=len(truth),
        accuracy=hits / len(truth),
        accuracy_low=low,
        accuracy_high=high,
        balanced_accuracy=float(recalls.mean()),
        macro_f1=float(f1s.mean()),
        log_loss=float(-np.log(np.clip(found.likelihood, least, 1 - least)).mean()),
        calibration_error=calibration_error(truth, found),
    )


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Return the 95 % score interval of a proportion (Wilson 1927, J. Am. Stat. Assoc. 22, 209-212)."""
    p, z2 = hits / n, _Z95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def calibration_error(truth: Codes, given: Answers | Array) -> float:
    """Return the expected calibration error of the predicted class, 15 bins of equal width (Guo et al. 2017)."""
    found = _answers(truth, given)
    gaps = (truth == found.predicted) - found.confidence
    bins = np.minimum((found.confidence * BINS).astype(int), BINS - 1)
    return float(np.abs(np.bincount(bins, gaps, BINS)).sum() / len(truth))


@dataclass(frozen=True)
class Outcome:
    """What heads predicted with one seed: the scored pictures, by number, their truth, and who was right (n each)."""

    pictures: Codes
    truth: Codes
    hits: dict[str, npt.NDArray[np.bool_]]


@dataclass(frozen=True)
class Interval:
    """The mean over seeds of accuracy and balanced accuracy, each with its 95 % bootstrap interval."""

    accuracy: float
    accuracy_interval: tuple[float, float]
    balanced_accuracy: float
    balanced_interval: tuple[float, float]


def bootstrap(outcomes: Sequence[Outcome], seed: int) -> dict[str, Interval]:
    """Return intervals for each head: percentiles over resampled pictures and seeds; Wilson's if none or all is right.

    Pictures are drawn with replacement, each with all its predictions, then seeds; the draws are the same for all
    heads (Efron and Tibshirani 1993, chapter 13). One outcome a seed.
    """
    generator = np.random.default_rng(seed)
    n_pictures, n_seeds = _n_pictures(outcomes), len(outcomes)
    parts = []
    for n_draws in map(len, np.array_split(np.arange(RESAMPLES), 1 + RESAMPLES * n_pictures // 2**24)):
        pictures = generator.multinomial(n_pictures, np.full(n_pictures, 1 / n_pictures), n_draws)
        seeds = generator.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), n_draws)
        parts.append(_accuracies(outcomes, pictures, seeds))
    low, high = np.nanpercentile(np.concatenate(parts), (2.5, 97.5), axis=0)
    point = _accuracies(outcomes, np.ones((1, n_pictures)), np.ones((1, n_seeds)))[0]
    found = {}
    for h, name in enumerate(outcomes[0].hits):
        (accuracy, balanced), ends = point[h].tolist(), np.stack([low[h], high[h]], axis=1).tolist()
        if accuracy in (0.0, 1.0):  # every draw is equal, which does not make it certain
            ends = [wilson(round(accuracy * n_pictures), n_pictures)] * 2
        found[name] = Interval(accuracy, tuple(ends[0]), balanced, tuple(ends[1]))
    return found


def _accuracies(outcomes: Sequence[Outcome], pictures: npt.NDArray[Any], seeds: npt.NDArray[Any]) -> Array:
    """Return accuracy and balanced accuracy (draws, heads, 2), given how often pictures and seeds were drawn."""
    per_seed = []
    for outcome in outcomes:
        weights = pictures[:, outcome.pictures].astype(np.float32)  # small integers, added up exactly
        n, n_heads, n_classes = len(outcome.truth), len(outcome.hits), int(outcome.truth.max()) + 1
        totals = weights @ _indicator(np.arange(n), outcome.truth, (n, n_classes))
        hits = np.stack(list(outcome.hits.values()), axis=1)
        rows, heads = np.nonzero(hits)
        right = weights @ _indicator(rows, heads * n_classes + outcome.truth[rows], (n, n_heads * n_classes))
        right, totals = right.reshape(len(weights), n_heads, n_classes).astype(np.float64), totals.astype(np.float64)
        drawn = totals > 0
        with np.errstate(invalid="ignore"):  # a draw without a picture of this seed is nan, and left out
            recalls = (right / np.where(drawn, totals, 1)[:, None]).sum(2) / drawn.sum(1)[:, None]
            per_seed.append(np.stack([right.sum(2) / totals.sum(1)[:, None], recalls], axis=2))
    return np.asarray(np.einsum("bs,sbhm->bhm", seeds / seeds.sum(1, keepdims=True), np.stack(per_seed)))


def _indicator(rows: Codes, columns: Codes, shape: tuple[int, int]) -> csr_array:
    return csr_array((np.ones(len(rows), np.float32), (rows, columns)), shape)


def _n_pictures(outcomes: Sequence[Outcome]) -> int:
    return 1 + max(int(outcome.pictures.max()) for outcome in outcomes)


def paired_tests(outcomes: Sequence[Outcome], best: str, heads: Sequence[str]) -> dict[str, float]:
    """Return for every other head the p-value that it scores as `best` does on the same pictures, corrected by Holm.

    A sign-flip permutation test on the differences a picture, summed over seeds; with one seed it is McNemar's exact
    test, drawn. Above 2,000 differing pictures the normal limit stands in for the draws.
    """
    raw = {name: _sign_flip(outcomes, best, name) for name in heads if name != best}
    corrected, highest = {}, 0.0
    for rank, name in enumerate(sorted(raw, key=lambda name: raw[name])):  # Holm 1979, Scand. J. Stat. 6, 65-70
        highest = max(highest, min(1.0, (len(raw) - rank) * raw[name]))
        corrected[name] = highest
    return corrected


def _sign_flip(outcomes: Sequence[Outcome], best: str, other: str) -> float:
    differences = np.zeros(_n_pictures(outcomes))
    for outcome in outcomes:
        np.add.at(differences, outcome.pictures, outcome.hits[best].astype(int) - outcome.hits[other])
    differences = differences[differences != 0]
    total = abs(differences.sum())
    if len(differences) > 2000:
        return math.erfc(total / math.sqrt(2 * np.square(differences).sum()))
    signs = np.random.default_rng(0).integers(0, 2, (FLIPS, len(differences)), dtype=np.int8) * 2 - 1
    return float((1 + (np.abs(signs @ differences) >= total - 1e-9).sum()) / (FLIPS + 1))
