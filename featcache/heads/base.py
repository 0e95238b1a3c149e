"""Nothing enters; the `Head` record that every family of classifiers returns leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Head:
    """A classifier that is not fitted yet: `make(seed)` returns an sklearn pipeline with its own scaling.

    `grid` maps the pipeline's parameters to the values that are tried, the most regularised first, so that a tie goes
    to the simplest. A head without probabilities of its own has `calibrated=False`; it is calibrated after the choice.
    """

    name: str
    make: Callable[[int], Any]
    grid: Mapping[str, Sequence[Any]]
    calibrated: bool = True
