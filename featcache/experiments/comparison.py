"""Prepared vectors for several seeds, and heads, enter; one row a head leaves, with intervals and paired tests."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import product

import numpy as np
import numpy.typing as npt

from featcache.errors import HeadError
from featcache.evaluate import Outcome, intervals, paired_tests, score
from featcache.experiments.fitting import Fitted, fit_head
from featcache.experiments.prepared import Prepared
from featcache.heads import FLOOR
from featcache.heads.base import Head
from featcache.records import Progress
from featcache.records.experiments import CompareRow, Score

TIE = 0.05
"""A head whose corrected p-value is at least this ties with the best."""


@dataclass(frozen=True)
class Variant:
    """A head, and whether it is fitted on further views and scored on their mean."""

    head: Head
    train_views: bool = False
    test_views: bool = False

    @property
    def name(self) -> str:
        """The head's name, with the views it uses."""
        return variant_name(self.head.name, self.train_views, self.test_views)


def variant_name(head: str, train_views: bool, test_views: bool) -> str:
    """Return the name of a head with the views it uses."""
    return head + train_views * "+views" + test_views * "+tta"


@dataclass(frozen=True)
class Comparison:
    """One row a variant in order, what each predicted with each seed, seconds of what they share, and notices."""

    rows: list[CompareRow]
    outcomes: list[Outcome]
    shared_seconds: float
    notices: list[str]


def compare_heads(
    variants: Sequence[Variant],
    prepared: Callable[[int, bool, bool], Prepared],
    seeds: Sequence[int],
    progress: Progress | None = None,
) -> Comparison:
    """Fit every variant once a seed, on the same pictures.

    `prepared(seed, train_views, test_views)` gives the vectors. A head that cannot be fitted gives a row that says so.
    """
    scores: dict[str, list[Score]] = {variant.name: [] for variant in variants}
    fits: dict[str, list[Fitted]] = {variant.name: [] for variant in variants}
    errors: dict[str, str] = {}
    outcomes: list[Outcome] = []
    notices: dict[str, None] = {}
    shared = 0.0
    seen: dict[int, weakref.ref[Prepared]] = {}
    numbers: dict[bytes, int] = {}
    for done, (seed, variant) in enumerate(product(seeds, variants)):
        if progress:
            progress("compare", done, len(seeds) * len(variants))
        data = prepared(seed, variant.train_views, variant.test_views)
        if (known := seen.get(id(data))) is None or known() is not data:  # numbers of dropped ones come again
            shared += data.seconds
            seen[id(data)] = weakref.ref(data)
        if variant is variants[0]:
            pictures = np.array([numbers.setdefault(key, len(numbers)) for key in data.scored_keys])
            outcomes.append(Outcome(pictures, data.truth, {}))
        if variant.name in errors:
            continue
        try:
            fitted = fit_head(variant.head, data, seed)
        except HeadError as error:
            errors[variant.name] = str(error)
            continue
        notices.update(dict.fromkeys(fitted.notices))
        fits[variant.name].append(fitted)
        scores[variant.name].append(score(data.plan.scored_name, data.truth, fitted.probabilities))
        outcomes[-1].hits[variant.name] = fitted.probabilities.argmax(1) == data.truth
    if progress:
        progress("compare", len(seeds) * len(variants), len(seeds) * len(variants))
    sound = {name: None for name in fits if name not in errors}
    outcomes = [replace(outcome, hits={name: outcome.hits[name] for name in sound}) for outcome in outcomes]
    rows = _rows(variants, fits, scores, outcomes, errors, seeds[0])
    return Comparison(rows, outcomes, shared, list(notices))


def _rows(
    variants: Sequence[Variant],
    fits: Mapping[str, Sequence[Fitted]],
    scores: Mapping[str, Sequence[Score]],
    outcomes: Sequence[Outcome],
    errors: Mapping[str, str],
    seed: int,
) -> list[CompareRow]:
    found = intervals(outcomes, seed) if outcomes[0].hits else {}
    rivals = [name for name in found if name != FLOOR]
    # Counted, so that heads with as many right are equal, and no rounding names the best: of equals it is the first.
    exact = {name: _mean_share([outcome.hits[name] for outcome in outcomes]) for name in found}
    best = max(rivals, key=lambda name: exact[name]) if rivals else None
    p_values = paired_tests(outcomes, best, rivals) if best else {}
    rows = []
    for variant in variants:
        name = variant.name
        row = CompareRow(variant.head.name, variant.train_views, variant.test_views, "failed", error=errors.get(name))
        if row.error is None:
            verdict = "worse" if p_values.get(name, 1.0) < TIE else "tie"
            verdict = "best" if name == best else "floor" if name == FLOOR else verdict
            interval = found[name]
            row = replace(
                row,
                verdict=verdict,
                accuracy=float(exact[name]),
                accuracy_interval=interval.accuracy_interval,
                balanced_accuracy=interval.balanced_accuracy,
                balanced_interval=interval.balanced_interval,
                macro_f1=_mean([each.macro_f1 for each in scores[name]]),
                log_loss=_mean([each.log_loss for each in scores[name]]),
                calibration_error=_mean([each.calibration_error for each in scores[name]]),
                p_value=p_values.get(name),
                accuracies=tuple(each.accuracy for each in scores[name]),
                scored_classes=scores[name][0].scored_classes,
                params=tuple(fitted.params for fitted in fits[name]),
                chosen_by=fits[name][0].chosen_by,
                fit_seconds=_mean([fitted.fit_seconds for fitted in fits[name]]),
                predict_seconds=_mean([fitted.predict_seconds for fitted in fits[name]]),
            )
        rows.append(row)
    return rows


def _mean_share(hits: Sequence[npt.NDArray[np.bool_]]) -> Fraction:
    return sum((Fraction(int(right.sum()), len(right)) for right in hits), Fraction()) / len(hits)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
