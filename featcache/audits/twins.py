"""Vectors on principal axes enter; pairs of pictures that are nearly the same, and groups of them, leave."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.neighbors import NearestNeighbors

from featcache.audits.axes import directions, first_equals
from featcache.records import FloatArray, Progress

NEARER = {10: 0.45, 30: 0.25}
"""Twins are apart by at most this part of what lies between either of them and its 10th, or 30th, nearest picture.

The 10th finds copies, the 30th series of one scene, as long as the rank is within half of the picture's class: further
off lie other classes, and small classes would look like series.
"""

SAME = 0.03
"""Pictures no further apart than this (1 - cosine) are twins whatever surrounds them."""

DIMS = 128
"""Neighbours are looked for on the first axes, and then compared on all of them."""

BLOCK = 4096

Rows = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Pairs:
    """Pairs of row numbers (m each), the first below the second, and the cosine of their vectors (m)."""

    first: Rows
    second: Rows
    cosine: FloatArray


def near_twins(X: FloatArray, peers: Rows, progress: Progress | None = None) -> Pairs:
    """Return the pairs of pictures that are copies of each other, or of one scene, by vectors (n, d) on principal axes.

    `peers` (n) is how many pictures there are of the class of each, itself included, or of all without a label.

    Two pictures of one class can be as alike as a picture and its copy in another class, so that no cosine tells twins.
    What does is that they are much nearer to each other than to what else surrounds them (as in the ratio test of Lowe
    2004). The neighbours of all pictures are found block by block; there is never a matrix of all pairs. Equal vectors
    are twins by being equal, however their distances are rounded, and only the first of them is compared with others.
    """
    firsts = first_equals(X)
    equal = _equal(firsts)
    distinct = np.flatnonzero(firsts == np.arange(len(X)))
    near = _near(X[distinct], peers[distinct], progress)
    return Pairs(
        np.concatenate([equal.first, distinct[near.first]]),
        np.concatenate([equal.second, distinct[near.second]]),
        np.concatenate([equal.cosine, near.cosine]),
    )


def _equal(firsts: Rows) -> Pairs:
    """Return pairs of equal vectors, each with the next ones of them, up to as many as neighbours are looked for."""
    order = np.argsort(firsts, kind="stable")
    pairs = []
    for step in range(1, max(NEARER) + 1):
        one, other = order[:-step], order[step:]
        same = firsts[one] == firsts[other]
        pairs.append(np.stack([one[same], other[same]]))
    first, second = np.concatenate(pairs, axis=1)
    return Pairs(first, second, np.ones(len(first), np.float32))


def _near(X: FloatArray, peers: Rows, progress: Progress | None) -> Pairs:
    """Return the pairs of near twins among vectors (n, d) that all differ."""
    n = len(X)
    count = min(max(NEARER), n - 1)
    if count < 1:
        return Pairs(np.empty(0, np.intp), np.empty(0, np.intp), np.empty(0, np.float32))
    Z = directions(X)
    neighbours, gaps = np.empty((n, count), np.intp), np.empty((n, count), np.float32)
    for rows, found in _searched(directions(X[:, :DIMS]), count, progress):
        apart = 1 - np.einsum("nd,nkd->nk", Z[rows], Z[found])
        order = np.argsort(apart, axis=1)
        neighbours[rows] = np.take_along_axis(found, order, axis=1)
        gaps[rows] = np.take_along_axis(apart, order, axis=1)
    first, second, gap = np.repeat(np.arange(n), count), neighbours.ravel(), gaps.ravel()
    is_twin = gap <= SAME
    for room in _rooms(gaps, peers):
        is_twin |= gap <= np.minimum(room[first], room[second])
    return _once(first[is_twin], second[is_twin], 1 - gap[is_twin], n)


def groups(pairs: Pairs, n: int) -> Rows:
    """Return for each of n pictures the number of its group; one without a twin is a group of its own."""
    links = coo_array((np.ones(len(pairs.first), np.int8), (pairs.first, pairs.second)), (n, n))
    return np.asarray(connected_components(links, directed=False)[1], dtype=np.intp)


def _rooms(gaps: FloatArray, peers: Rows) -> Iterator[FloatArray]:
    """Yield how far apart twins of each picture (n) may be, given how far its neighbours (n, count) are."""
    within = np.clip((peers - 1) // 2, 1, gaps.shape[1])
    (near, part), *further = sorted(NEARER.items())
    # Up to here nearer ones will do: in a class of five the second nearest picture.
    yield part * np.take_along_axis(gaps, np.minimum(near, within)[:, None] - 1, axis=1)[:, 0]
    for rank, part in further:
        yield np.where(within >= rank, part * gaps[:, min(rank, gaps.shape[1]) - 1], 0)


def _searched(Z: FloatArray, count: int, progress: Progress | None) -> Iterator[tuple[slice, Rows]]:
    """Yield a slice of rows and their nearest others (m, count), until all have been looked up."""
    n = len(Z)
    index = NearestNeighbors(n_neighbors=count + 1, algorithm="brute", metric="sqeuclidean").fit(Z)
    for start in range(0, n, BLOCK):
        if progress:
            progress("audit twins", start, n)
        rows = slice(start, min(start + BLOCK, n))
        found = index.kneighbors(Z[rows], return_distance=False)
        # The picture itself is among them, but not always the first, and not at all where many are equal to it.
        itself = found == np.arange(rows.start, rows.stop)[:, None]
        itself[~itself.any(axis=1), -1] = True
        yield rows, found[~itself].reshape(-1, count)
    if progress:
        progress("audit twins", n, n)


def _once(first: Rows, second: Rows, cosine: FloatArray, n: int) -> Pairs:
    """Return pairs that may be there in both orders once each."""
    low, high = np.minimum(first, second), np.maximum(first, second)
    _, at = np.unique(low * n + high, return_index=True)
    return Pairs(low[at], high[at], cosine[at])
