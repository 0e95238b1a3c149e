"""Vectors and a convex loss of linear scores enter; the weights that minimise it, for falling penalties, leave."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from featcache.records import FloatArray

MAX_ITERATIONS = 1000
_LINE_SEARCH_STEPS = 20
_FLAT_ENOUGH = 0.1
"""A line search ends where the slope has fallen to this share of what it was."""


class Loss(Protocol):
    """A convex loss of scores (n, K), summed over all; it answers about the scores that `gradient` was given last."""

    def gradient(self, scores: FloatArray) -> FloatArray:
        """Return the derivative by each score (n, K)."""

    def curvature(self, direction: FloatArray) -> float:
        """Return the second derivative along a direction (n, K) of the scores."""

    def mean_curvature(self) -> float:
        """Return the mean of the second derivatives by each score."""


class _Objective:
    """loss(X W + b) + penalty / 2 * |W|^2, and |b|^2 too where the intercept is penalised; W and b are one array."""

    def __init__(self, X: FloatArray, loss: Loss, n_columns: int, penalise_intercept: bool) -> None:
        self.X, self.loss = X, loss
        self.weights = np.zeros((X.shape[1] + 1, n_columns), X.dtype)
        self.scores = np.zeros((len(X), n_columns), X.dtype)
        self.residual = loss.gradient(self.scores)
        self._squares = np.append(np.einsum("ij,ij->j", X, X), len(X)).astype(X.dtype)[:, None]
        self._penalise_intercept = penalise_intercept
        self.set_penalty(0.0)

    def set_penalty(self, penalty: float) -> None:
        self.penalty = np.full_like(self._squares, penalty)
        self.penalty[-1] *= self._penalise_intercept
        # The diagonal of the Hessian, if all scores curved alike; exact in shape where the columns are orthogonal.
        curvature = self.loss.mean_curvature() * self._squares + self.penalty
        self.preconditioner = 1 / np.maximum(curvature, np.finfo(self.X.dtype).tiny * 1e6)

    def gradient(self) -> FloatArray:
        out = self.penalty * self.weights
        out[:-1] += self.X.T @ self.residual
        out[-1] += self.residual.sum(0)
        return out

    def rounding(self) -> float:
        """Return the squared norm that rounding alone can give the preconditioned gradient (by Cauchy and Schwarz)."""
        curvature = max(self.loss.mean_curvature(), float(np.finfo(float).tiny))
        error = float(np.finfo(self.X.dtype).eps) ** 2 * len(self.weights)
        return error * float(np.vdot(self.residual, self.residual)) / curvature

    def step(self, direction: FloatArray, slope: float) -> None:
        """Go to the minimum along a falling direction: Newton's method, kept between the signs of the slope."""
        change = self.X @ direction[:-1] + direction[-1]
        pull = self.penalty * direction
        linear, square = float(np.vdot(pull, self.weights)), float(np.vdot(pull, direction))
        first, low, high, length = slope, 0.0, np.inf, 0.0
        for _ in range(_LINE_SEARCH_STEPS):
            newton = length - slope / max(self.loss.curvature(change) + square, np.finfo(float).tiny)
            inside = low < newton < min(high, 10 * length or np.inf)
            length = newton if inside else (low + min(high, 4 * low or 1.0)) / 2
            self.residual = self.loss.gradient(self.scores + length * change)
            slope = float(np.vdot(self.residual, change)) + linear + length * square
            if abs(slope) <= _FLAT_ENOUGH * abs(first):
                break
            low, high = (length, high) if slope < 0 else (low, length)
        self.scores += length * change
        self.weights += length * direction


def minimise(
    X: FloatArray,
    loss: Loss,
    n_columns: int,
    penalties: Sequence[float],
    tol: float,
    penalise_intercept: bool = False,
) -> Iterator[tuple[FloatArray, FloatArray, int]]:
    """Yield weights (d, K), intercepts (K) and iterations for each L2 penalty, each begun where the one before ended.

    Preconditioned nonlinear conjugate gradients (Polak-Ribiere with restarts; Nocedal and Wright, Numerical
    Optimization, 2006, chapter 5.2) on all K columns at once: an iteration is two matrix products. It ends where the
    preconditioned norm of the gradient has fallen to `tol` times that at zero, or to what rounding leaves of it. Meant
    for columns of `X` (n, d) that are principal axes; far from centred ones it is slow.
    """
    objective = _Objective(X, loss, n_columns, penalise_intercept)
    start = None
    for penalty in penalties:
        objective.set_penalty(penalty)
        gradient = objective.gradient()
        ahead = objective.preconditioner * gradient
        direction, norm = -ahead, float(np.vdot(gradient, ahead))
        start = norm if start is None else start
        iterations = 0
        while norm > max(tol * tol * start, objective.rounding()) and iterations < MAX_ITERATIONS:
            iterations += 1
            slope = float(np.vdot(gradient, direction))
            if slope >= 0:
                direction, slope = -ahead, -norm
            objective.step(direction, slope)
            before, gradient = gradient, objective.gradient()
            ahead = objective.preconditioner * gradient
            beta = max(0.0, float(np.vdot(gradient - before, ahead)) / norm)
            direction, norm = beta * direction - ahead, float(np.vdot(gradient, ahead))
        yield objective.weights[:-1].copy(), objective.weights[-1].copy(), iterations
