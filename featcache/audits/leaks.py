"""Vectors of pictures that are fitted on and of those that are scored enter; near twins across the two leave."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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

SCORED_AT_ONCE, FITTED_AT_ONCE = 4096, 4096
"""So many of each are compared at a time: the vectors of the fitted ones may lie on the disk."""

Rows = npt.NDArray[np.intp]
Read = Callable[[Rows], FloatArray]
"""What gives the vectors (m, d) of rows (m)."""


class Leak(NamedTuple):
    """Rows of scored pictures and of the fitted near twin of each, and how many scored ones were looked at."""

    scored: Rows
    fitted: Rows
    looked_at: int


def leaks(read: Read, fitted: Rows, scored: Rows, seed: int = 0) -> Leak:
    """Return the near twins between fitted and scored rows of vectors, by the cosine of standardised ones.

    A scored picture and the nearest fitted one are twins where they are much nearer to each other than either is to
    other fitted pictures. Of very many pairs a part of the scored pictures is drawn with `seed`.
    """
    most = max(1, MOST_PAIRS // max(1, len(fitted)))
    if len(scored) > most:
        scored = np.sort(np.random.default_rng(seed).choice(scored, most, replace=False))
    mean, scale = _moments(read, fitted)

    def directions_of(rows: Rows) -> FloatArray:
        return directions(((read(rows) - mean) / scale).astype(np.float32))

    found: list[tuple[int, int]] = []
    for rows in _blocks(scored, SCORED_AT_ONCE):
        gaps, nearest = _nearest(directions_of, fitted, directions_of(rows))
        candidates = np.flatnonzero(gaps[:, 0] <= np.maximum(SAME, RATIO * _ranked(gaps, 0, len(fitted))))
        if len(candidates):
            twins = fitted[nearest[candidates]]
            around, _ = _nearest(directions_of, fitted, directions_of(twins))
            room = _ranked(around, 1, len(fitted))  # the first is the picture itself
            is_twin = gaps[candidates, 0] <= np.maximum(SAME, RATIO * room)
            found += zip(rows[candidates[is_twin]].tolist(), twins[is_twin].tolist(), strict=True)
    pairs = np.array(found, np.intp).reshape(-1, 2)
    return Leak(pairs[:, 0], pairs[:, 1], len(scored))


def _blocks(rows: Rows, size: int) -> Iterator[Rows]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _moments(read: Read, rows: Rows) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return mean and spread of vectors in each direction; where there is none the spread is 1."""
    total: npt.NDArray[np.float64] = np.zeros(())
    for part in _blocks(rows, FITTED_AT_ONCE):
        total = total + read(part).sum(axis=0, dtype=np.float64)
    mean = total / len(rows)
    squares: npt.NDArray[np.float64] = np.zeros(())
    for part in _blocks(rows, FITTED_AT_ONCE):
        squares = squares + ((read(part) - mean) ** 2).sum(axis=0)
    spread = np.sqrt(squares / len(rows))
    return mean, np.where(spread > 0, spread, 1)


def _nearest(directions_of: Read, fitted: Rows, those: FloatArray) -> tuple[FloatArray, Rows]:
    """Return how far the few nearest fitted pictures of each are, nearest first, and the place of the very nearest."""
    gaps = np.zeros((len(those), 0), np.float32)
    nearest = np.zeros(len(those), np.intp)
    for at, part in enumerate(_blocks(fitted, FITTED_AT_ONCE)):
        further = 1 - those @ directions_of(part).T
        first = further.argmin(axis=1)
        is_nearer = further[np.arange(len(those)), first] < (gaps[:, 0] if gaps.shape[1] else np.inf)
        nearest = np.where(is_nearer, first + at * FITTED_AT_ONCE, nearest)
        few = np.partition(further, min(RANK, further.shape[1] - 1), axis=1)[:, : RANK + 1]
        gaps = np.sort(np.concatenate([gaps, few], axis=1), axis=1)[:, : RANK + 1]
    return gaps, nearest


def _ranked(gaps: FloatArray, further: int, n_fitted: int) -> FloatArray:
    """Return how far the fitted picture of `RANK` is, of few pictures a nearer one; without any others nothing."""
    rank = min(RANK, n_fitted // 4) + further
    if rank - further < 1 or rank > n_fitted:
        return np.zeros(len(gaps), np.float32)
    return np.asarray(gaps[:, rank - 1])
