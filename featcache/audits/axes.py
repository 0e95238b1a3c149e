"""Vectors enter; the same, standardised and on their principal axes, leave: what all parts of an audit look at."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from featcache.records import FloatArray


def principal(X: FloatArray) -> FloatArray:
    """Return vectors (n, d) standardised and turned onto their principal axes, the widest first, in float32.

    A column without variance stays zero. Equal vectors stay equal to the bit, wherever they stand: a matrix product
    can round them differently.
    """
    firsts = first_equals(X)
    X = X.astype(np.float32)
    X -= X.mean(axis=0, dtype=np.float64).astype(np.float32)
    spread = X.std(axis=0, dtype=np.float64)
    X /= np.where(spread > 0, spread, 1).astype(np.float32)
    _, axes = np.linalg.eigh((X.T @ X).astype(np.float64))
    return np.asarray((X @ axes[:, ::-1].astype(np.float32))[firsts])


def first_equals(X: FloatArray) -> npt.NDArray[np.intp]:
    """Return for each vector (n, d) the number of the first one that is equal to it, often itself."""
    known: dict[bytes, int] = {}
    return np.array([known.setdefault(row.tobytes(), at) for at, row in enumerate(X)], np.intp)


def directions(X: FloatArray) -> FloatArray:
    """Return vectors (n, d) divided by their length; those without any stay zero."""
    lengths = np.linalg.norm(X, axis=1, keepdims=True)
    return np.asarray(X / np.where(lengths > 0, lengths, 1))
