"""Vectors of pictures that are fitted on and of those that are scored enter; near twins across the two leave."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from featcache.audits.axes import directions
from featcache.audits.twins import NEARER, SAME
from featcache.records import FloatArray

RANK, RATIO = min(NEARER.items())
"""Twins are nearer by this ratio than the picture of this rank, as in an audit."""

MOST_PAIRS = 10**8
"""With more pairs only some of the scored pictures are looked at: it is to take seconds."""

BLOCK = 512

Rows = npt.NDArray[np.intp]


class Leak(NamedTuple):
    """Rows of scored pictures and of the fitted near twin of each, and how many scored ones were looked at."""

    scored: Rows
    fitted: Rows
    looked_at: int


def leaks(X: FloatArray, fitted: Rows, scored: Rows, seed: int = 0) -> Leak:
    """Return the near twins between fitted and scored rows of vectors (n, d), by the cosine of standardised ones.

    A scored picture and the nearest fitted one are twins where they are much nearer to each other than either is to
    other fitted pictures. Of very many pairs a part of the scored pictures is drawn with `seed`.
    """
    most = max(1, MOST_PAIRS // max(1, len(fitted)))
    if len(scored) > most:
        scored = np.sort(np.random.default_rng(seed).choice(scored, most, replace=False))
    mean, spread = X[fitted].mean(axis=0, dtype=np.float64), X[fitted].std(axis=0, dtype=np.float64)
    scale = np.where(spread > 0, spread, 1)
    known = directions(((X[fitted] - mean) / scale).astype(np.float32))
    found: list[tuple[int, int]] = []
    for start in range(0, len(scored), BLOCK):
        rows = scored[start : start + BLOCK]
        gaps = 1 - directions(((X[rows] - mean) / scale).astype(np.float32)) @ known.T
        nearest = gaps.argmin(axis=1)
        gap = gaps[np.arange(len(rows)), nearest]
        candidates = np.flatnonzero(gap <= np.maximum(SAME, RATIO * _ranked(gaps, 0)))
        if len(candidates):
            twins = nearest[candidates]
            room = _ranked(1 - known[twins] @ known.T, 1)  # the first is the picture itself
            is_twin = gap[candidates] <= np.maximum(SAME, RATIO * room)
            found += [
                (int(rows[at]), int(fitted[twin])) for at, twin in zip(candidates[is_twin], twins[is_twin], strict=True)
            ]
    pairs = np.array(found, np.intp).reshape(-1, 2)
    return Leak(pairs[:, 0], pairs[:, 1], len(scored))


def _ranked(gaps: FloatArray, further: int) -> FloatArray:
    """Return how far the fitted picture of `RANK` is, of few pictures a nearer one; without any others nothing."""
    rank = min(RANK, gaps.shape[1] // 4) + further
    if rank - further < 1 or rank > gaps.shape[1]:
        return np.zeros(len(gaps), np.float32)
    return np.asarray(np.partition(gaps, rank - 1, axis=1)[:, rank - 1])
