"""Vectors on principal axes and labels enter; how unlike the rest of its class each picture is, leaves."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from featcache.audits.axes import directions
from featcache.audits.twins import Rows
from featcache.records import FloatArray

UNLIKE = -3.5
"""Modified z-score below which a picture is an outlier (Iglewicz and Hoaglin 1993)."""

NEIGHBOURS = 5
REFERENCES = 2000
"""A picture is compared with at most so many of its class, drawn with the seed."""

FEWEST = 10
"""Of a class with fewer different pictures nobody can tell what is usual in it."""

MANY = 20
"""From so many on the unusual are outliers; among fewer there is always one."""

LEAST_SPREAD = 0.02


def typicality(X: FloatArray, codes: Rows, groups: Rows, seed: int) -> npt.NDArray[np.float64]:
    """Return how like its class each picture (n) is: the modified z-score of its mean cosine to the nearest five.

    `X` (n, d), labels as numbers `codes` (n), twins of one number in `groups` (n), which are no evidence of each other.
    It is negative for the unusual, and zero in classes that are too small.
    """
    Z, generator = directions(X), np.random.default_rng(seed)
    found = np.zeros(len(X))
    for code in np.unique(codes):
        rows = np.flatnonzero(codes == code)
        others = np.sort(generator.permutation(rows)[:REFERENCES])
        if len(np.unique(groups[others])) < FEWEST:
            continue
        cosine = np.empty(len(rows))
        for at in range(0, len(rows), REFERENCES):
            some = rows[at : at + REFERENCES]
            alike = np.where(groups[some][:, None] == groups[others], -1, Z[some] @ Z[others].T)
            cosine[at : at + REFERENCES] = np.partition(alike, -NEIGHBOURS, axis=1)[:, -NEIGHBOURS:].mean(axis=1)
        usual = np.median(cosine)
        spread = 1.4826 * np.median(np.abs(cosine - usual))
        found[rows] = (cosine - usual) / max(spread, LEAST_SPREAD)
    return found
