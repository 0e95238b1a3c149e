"""A stream of vectors and a convex loss enter; the weights that minimise it, for several penalties at once, leave."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from featcache.experiments.streams import Stream
from featcache.splits import Rows

MAX_ROUNDS = 100
STEPS = 100
"""So many mini-batches at least, in whole passes, come between two gradients over all rows."""

BATCH = 512
PART = 2**22
"""So many scores are computed at once."""

_LOWEST = -50.0
"""As in heads.logreg: exp of less would become denormal numbers, which are slow."""

FASTER, SLOWER = 1.5, 1 / 3
"""What the rate is multiplied with after a round in which the gradient fell, and after one in which it did not."""

State = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Weights and gradient (d + 1, values, K), and the gradient's squared norms (values)."""

Residual = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _cross_entropy(scores: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    p = (scores - scores.amax(-1, keepdim=True)).clamp_(min=_LOWEST).exp_()
    p /= p.sum(-1, keepdim=True)
    return p.scatter_add_(-1, truth, torch.full_like(truth, -1, dtype=p.dtype))


def _squared_hinge(scores: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    own = scores.gather(-1, truth)
    return (2 * (1 + scores).clamp_(min=0)).scatter_(-1, truth, -2 * (1 - own).clamp_(min=0))


@dataclass(frozen=True)
class Loss:
    """A loss of scores (n, values, K): its derivative, a bound of its second derivative, and what is penalised.

    The softmax's curvature is at most a half (Boehning 1992, Ann. Inst. Stat. Math. 44, 197-200).
    """

    residual: Residual
    curvature: float
    penalises_intercept: bool
    two_class_penalty: float


LOSSES = {"logreg": Loss(_cross_entropy, 0.5, False, 2.0), "svm": Loss(_squared_hinge, 2.0, True, 1.0)}
"""The objectives of the heads of these names. Of two classes each column of `logreg` is half the binary form's."""


@dataclass(frozen=True)
class Found:
    """Weights (d + 1, values, K) on the axes, the intercept last, and the gradient where all of them are zero."""

    weights: torch.Tensor
    at_zero: torch.Tensor
    converged: bool


class Descent:
    """Minimises C * (sum of losses) + |W|^2 / 2 over the rows of a stream, for several values of C at once.

    Mini-batches with the variance reduced by a gradient over all rows (SVRG; Johnson and Zhang 2013, NeurIPS), each
    column scaled by the bound of its curvature, which sets the first rate too; later ones follow how the gradient
    falls. It ends where the preconditioned norm of the whole gradient has fallen to `tol` times that at zero, as the
    heads in memory do.
    """

    def __init__(
        self, loss: Loss, stream: Stream, rows: Rows, values: Sequence[float], n_classes: int, seed: int
    ) -> None:
        self.loss, self.stream, self.rows = loss, stream, stream.in_order(rows)
        self.batch = min(BATCH, max(32, len(rows) // 16))
        self.passes = math.ceil(STEPS * self.batch / len(rows))
        self._generator = np.random.default_rng(seed)
        self._part = max(1, PART // (len(values) * n_classes))
        squares = torch.cat([stream.variances, stream.variances.new_ones(1)])[:, None, None]
        factor = (loss.two_class_penalty if n_classes == 2 else 1.0) / len(rows)
        self.penalty = squares.new_tensor([factor / C for C in values])[None, :, None].repeat(len(squares), 1, 1)
        self.penalty[-1] *= loss.penalises_intercept
        self._shape = (len(squares), len(values), n_classes)
        self.scale = loss.curvature * squares + self.penalty
        dimensions = (loss.curvature * squares / self.scale).sum(0, keepdim=True)
        self.rate = 1 / (1 + dimensions / self.batch)

    def run(
        self, tol: float, start: Found | None = None, told: Callable[[float, float], None] = lambda rounds, fallen: None
    ) -> Found:
        """Return the weights; `told` hears the rounds done, and which share of its norm the gradient still has."""
        weights = self.penalty.new_zeros(self._shape) if start is None else start.weights
        slope = None if start is None else start.at_zero
        before: State | None = None
        fallen = 1.0
        for done in range(MAX_ROUNDS):

            def tell(share: float, done: int = done, fallen: float = fallen) -> None:
                told(done + share, fallen)

            gradient = self._gradient(weights, tell)
            state = weights, gradient, (gradient.square() / self.scale).sum((0, 2))
            weights, gradient, norms = before = state if before is None else self._judged(state, before)
            slope = gradient if slope is None else slope
            at_zero = (slope.square() / self.scale).sum((0, 2)).clamp(min=torch.finfo(norms.dtype).tiny)
            fallen = math.sqrt(float((norms / at_zero).max()))
            if fallen <= tol:
                break
            weights = self._round(weights, gradient, tell)
        return Found(weights, gradient if slope is None else slope, fallen <= tol)

    def _judged(self, now: State, before: State) -> State:
        """Return where to go on from: faster where the gradient fell, else from before, and more slowly."""
        fell = now[2] <= before[2]  # it is not where it is no number
        self.rate = self.rate * torch.where(fell, FASTER, SLOWER)[:, None]
        pairs = zip(now, before, (fell[:, None], fell[:, None], fell), strict=True)
        weights, gradient, norms = (torch.where(good, new, old) for new, old, good in pairs)
        return weights, gradient, norms

    def _gradient(self, weights: torch.Tensor, tell: Callable[[float], None]) -> torch.Tensor:
        """Return the derivative of the mean objective by the weights, over all rows."""
        turned, seen = self.stream.to_centred(weights), 0
        total = torch.zeros_like(weights)
        for rows, block in self.stream.centred(self.rows):
            truth = self.stream.truth(rows)
            for x, y in zip(torch.split(block, self._part), torch.split(truth, self._part), strict=True):
                total += _pulled(x, self._residual(x, y, turned))
            seen += len(rows)
            tell(seen / len(self.rows) / (1 + self.passes))
        return self.stream.to_axes(total) / len(self.rows) + self.penalty * weights

    def _round(self, weights: torch.Tensor, gradient: torch.Tensor, tell: Callable[[float], None]) -> torch.Tensor:
        anchor, weights, seen = weights, weights.clone(), len(self.rows)
        step = self.rate / self.scale
        for _ in range(self.passes):
            for rows, block in self.stream.shuffled(self.rows, self._generator):
                truth = self.stream.truth(rows)
                parts = max(1, round(len(rows) / self.batch))
                for x, y in zip(block.tensor_split(parts), truth.tensor_split(parts), strict=True):
                    change = self._residual(x, y, weights) - self._residual(x, y, anchor)
                    slope = _pulled(x, change) / len(x) + self.penalty * (weights - anchor) + gradient
                    weights -= step * slope
                seen += len(rows)
                tell(seen / len(self.rows) / (1 + self.passes))
        return weights

    def _residual(self, x: torch.Tensor, truth: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return self.loss.residual(scores(x, weights), truth[:, None, None].expand(-1, weights.shape[1], 1))


def scores(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the scores (n, values, K) of vectors (n, d)."""
    flat = weights.flatten(1)
    return torch.addmm(flat[-1], x, flat[:-1]).view(len(x), *weights.shape[1:])


def _pulled(x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """Return the sum over rows of the derivative by the weights (d + 1, values, K)."""
    flat = residual.flatten(1)
    return torch.cat([x.T @ flat, flat.sum(0, keepdim=True)]).view(-1, *residual.shape[1:])
