"""Values of the run enter; the frozen records of what was fitted, scored and predicted leave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from featcache.records import ExtractSummary, Failure


@dataclass(frozen=True)
class Score:
    """The scores of one fitted head on one split, fractions of 1, with the 95 % Wilson interval of accuracy."""

    split: str
    n: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    balanced_accuracy: float
    macro_f1: float


@dataclass(frozen=True)
class FitSummary:
    """One head fitted and scored, with all that is needed to read the score."""

    head: str
    backbone: str
    weights: str
    fingerprint: str
    dataset: str
    split_sizes: dict[str, int]
    n_classes: int
    chosen_by: str
    fitted_on: str
    n_train: int
    n_test: int
    scored_split: str
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    balanced_accuracy: float
    macro_f1: float
    params: dict[str, Any]
    seed: int
    fit_seconds: float
    model: str
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prediction:
    """The label a model gives one picture, with the probability of every class."""

    path: str
    label: str
    probabilities: dict[str, float]


@dataclass(frozen=True)
class PredictSummary:
    """All predictions of one call, in the order of the pictures, and the pictures that could not be read."""

    model: str
    backbone: str
    fingerprint: str
    predictions: tuple[Prediction, ...]
    failures: tuple[Failure, ...]


@dataclass(frozen=True)
class DemoSummary:
    """What the demo did: one extraction, then one row a head."""

    extract: ExtractSummary
    rows: tuple[FitSummary, ...]
