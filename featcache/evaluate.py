"""True and predicted labels of a split enter; its scores, with a confidence interval, leave."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import f1_score, recall_score

from featcache.records.experiments import Score

_Z95 = 1.959963984540054


def score(split: str, truth: npt.NDArray[Any], predicted: npt.NDArray[Any]) -> Score:
    """Score predictions (n) against the truth (n); mean recall and macro-F1 are over the classes of the truth."""
    known = {"labels": np.unique(truth), "average": "macro", "zero_division": 0}
    hits = int((truth == predicted).sum())
    low, high = wilson(hits, len(truth))
    return Score(
        split=split,
        n=len(truth),
        accuracy=hits / len(truth),
        accuracy_low=low,
        accuracy_high=high,
        balanced_accuracy=float(recall_score(truth, predicted, **known)),
        macro_f1=float(f1_score(truth, predicted, **known)),
    )


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Return the 95 % score interval of a proportion (Wilson 1927, J. Am. Stat. Assoc. 22, 209-212)."""
    p, z2 = hits / n, _Z95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)
