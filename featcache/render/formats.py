"""Values enter; short text for tables leaves."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from featcache.records.experiments import SCALING, CompareRow, FitSummary, ScoredOn, Setting
from featcache.records.finetuning import FinetuneSummary

_BARS = "▁▂▃▄▅▆▇█"


def number(value: float | None, digits: int = 3) -> str:
    """Return a number with as many digits, empty where there is none."""
    return "" if value is None else f"{value:.{digits}f}"


def interval(value: tuple[float, float] | None) -> str:
    """Return the two ends of an interval."""
    return "" if value is None else f"{value[0]:.3f}-{value[1]:.3f}"


def params_text(params: Mapping[str, Any]) -> str:
    """Return parameters and their values in a few words, a scaling by its name alone."""
    return " ".join(_value(value) if name == SCALING else f"{name}={_value(value)}" for name, value in params.items())


def chosen_text(params: Sequence[Mapping[str, Any]]) -> str:
    """Return the values chosen most often, and how often where it was not each time."""
    if not params:
        return ""
    counts = Counter(json.dumps(each) for each in params)
    most, times = counts.most_common(1)[0]
    return params_text(json.loads(most)) + (f" ({times} of {len(params)})" if times < len(params) else "")


def head_name(row: CompareRow | FitSummary) -> str:
    """Return a head with whether it was fitted and tried on views."""
    return row.head + "+views" * bool(row.train_views) + "+tta" * bool(row.test_views)


def curve(values: Sequence[float], width: int = 24) -> str:
    """Return numbers as a row of bars from the lowest to the highest, at most `width` of them."""
    if not values:
        return ""
    step = max(1, -(-len(values) // width))
    points = values[::step]
    low, high = min(points), max(points)
    height = (high - low) or 1.0
    return "".join(_BARS[round((point - low) / height * (len(_BARS) - 1))] for point in points)


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def sizes_text(sizes: Mapping[str, int]) -> str:
    """Return how many pictures each split has."""
    return ", ".join(f"{name} {size:,}" for name, size in sizes.items())


def classes_text(n_classes: int, unscored: Sequence[str]) -> str:
    """Return how many classes means are over, of how many: `2 classes`, or `1 of 2 classes` where one is not scored."""
    return f"{n_classes - len(unscored):,} of {n_classes:,} classes" if unscored else f"{n_classes:,} classes"


def scored_text(found: FitSummary | FinetuneSummary | Setting | ScoredOn) -> str:
    """Return what was scored, and of how many classes where these are not all."""
    over = f", {classes_text(found.n_classes, found.unscored)}" if found.unscored else ""
    return f"{found.scored_split}, n={found.n_test:,}{over}"
