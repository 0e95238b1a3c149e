"""Stored vectors, a roll and a plan enter; a linear head fitted on them in mini-batches, and scored, leaves."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.pipeline import make_pipeline

from featcache.embed.torch_engine import one_thread
from featcache.errors import HeadError
from featcache.evaluate import Answers, answers
from featcache.experiments.descent import LOSSES, Descent, Found, scores
from featcache.experiments.fitting import Right, Trial, is_worse, temperature_of
from featcache.experiments.prepared import ALL_EQUAL, MOST_VALUE, folds, not_finite, too_large
from featcache.experiments.streams import Stream
from featcache.heads.base import Head, one_blas_thread
from featcache.heads.scaling import CHOICE
from featcache.records import Progress, Roll
from featcache.records.experiments import SCALING
from featcache.splits import Plan, Rows
from featcache.store.stored import StoredRows

ROUGH, TOL = 1e-2, 5e-3
"""How far the gradient falls, beside what it is at zero, while C is chosen and for the weights that are kept."""

MANY = 100_000
"""From so many fitted pictures on, one fold chooses as well as three; of larger ones so many are drawn on each side."""

SAMPLE = 2**24
"""So many scores of held rows are kept, at most, to fit the temperature to."""

PROBABILITIES = 2**22
"""So many probabilities are in memory at once."""

SMALL_BYTES = 2**28
SMALL = "these vectors fit into memory, where `fit` without --out-of-core takes a small part of the time"


@dataclass(frozen=True)
class Learned:
    """A fitted pipeline that predicts numbers of `classes`, what it says of the scored rows, and its way."""

    estimator: Any
    classes: tuple[str, ...]
    params: dict[str, Any]
    trials: tuple[Trial, ...]
    chosen_by: str
    truth: Rows
    answers: Answers
    fit_seconds: float
    notices: tuple[str, ...]
    loss_curve: tuple[float, ...] = ()


def fit_stored(
    head: Head,
    vectors: StoredRows,
    roll: Roll,
    plan: Plan,
    seed: int,
    device: torch.device,
    progress: Progress | None = None,
) -> Learned:
    """Choose a linear head's C and fit it without ever holding all vectors, then try it on the scored rows.

    The objective, the folds and the standardisation are those of `fit_head`; the plan is a strict one. From `MANY` rows
    on one of the folds is used, with as many of its rows on each side at most. Equal seeds give equal results on one
    device. Raises `HeadError`.
    """
    with one_blas_thread, one_thread():
        return _fit_stored(_Work(head, vectors, roll, plan, seed, device, progress))


def _fit_stored(work: _Work) -> Learned:
    head, vectors = work.head, work.stream.vectors
    start = time.perf_counter()
    work.read()
    trials, chosen_by, begun = work.choose()
    best = _simplest(trials)
    found = work.descend(work.fitted, best.params["C"], f"fit {head.name}", TOL, begun[trials.index(best)])
    estimator = work.estimator(found, best)
    seconds = time.perf_counter() - start
    truth, said = work.answers(estimator)
    short = f"{head.name} stopped at its iteration limit before it converged"
    return Learned(
        estimator=estimator,
        classes=work.classes,
        params=best.params,
        trials=tuple(trials),
        chosen_by=chosen_by,
        truth=truth,
        answers=said,
        fit_seconds=seconds,
        notices=(
            *([] if found.converged else [short]),
            *([SMALL] if len(vectors) * vectors.row_bytes < SMALL_BYTES else []),
        ),
    )


class _Work:
    """One fit, step by step."""

    def __init__(
        self,
        head: Head,
        vectors: StoredRows,
        roll: Roll,
        plan: Plan,
        seed: int,
        device: torch.device,
        progress: Progress | None,
    ) -> None:
        self.head, self.roll, self.plan, self.seed = head, roll, plan, seed
        self.progress = progress or (lambda stage, done, total: None)
        self.fitted = plan.fitted
        present = np.unique(roll.y[self.fitted])
        self.classes = tuple(roll.labels[number] for number in present)
        self.codes = np.searchsorted(present, roll.y).astype(np.int32)
        self.stream = Stream(vectors, self.codes, device)

    def read(self) -> None:
        """Look at all vectors once, and at those that are fitted on again, to learn their axes."""
        for part in (self.fitted, self.plan.scored):
            rows, seen, broken, large = self.stream.in_order(part), 0, list[int](), list[int]()
            for taken, block in self.stream.plain(rows):
                broken += taken[~np.isfinite(block).all(1)].tolist()
                large += taken[(np.abs(block) > MOST_VALUE).any(1)].tolist()
                seen += len(taken)
                self.progress("check vectors" if part is self.fitted else "check scored vectors", seen, len(rows))
            if broken:
                raise not_finite(len(broken), self.roll.path(min(broken)))
            if large:
                raise too_large(len(large), self.roll.path(min(large)))
        rows = self.stream.in_order(self.fitted)
        for seen in self.stream.measure(rows):
            self.progress("measure vectors", seen, len(rows))
        if not float(self.stream.variances.max()):
            raise HeadError(ALL_EQUAL)

    def choose(self) -> tuple[list[Trial], str, list[Found]]:
        """Return a trial for each value of C, how rows were held out, and the mean weights of each.

        The next value begins with the weights of the one before. Where it has no more rows right
        than one before, those after it are not tried: they take the most rounds.
        """
        y = self.codes[self.fitted].astype(np.intp)
        parts, chosen_by = folds(y, self.plan, self.seed)
        if len(y) >= MANY:
            (fitted, held), *others = parts
            chosen_by = f"one fold of {chosen_by}" if others else chosen_by
            drawn = [np.random.default_rng(self.seed).permutation(side)[:MANY] for side in (fitted, held)]
            parts = [(drawn[0], drawn[1])]
            if len(drawn[0]) < len(fitted) or len(drawn[1]) < len(held):
                chosen_by += f" (drawn: {len(drawn[0]):,} fitted on, {len(drawn[1]):,} judged)"
        trials: list[Trial] = []
        means: list[Found] = []
        found: list[Found | None] = [None] * len(parts)
        for C in self.head.grid["C"]:
            results = []
            for number, (fitted, held) in enumerate(parts):
                stage = f"C={C:g}" + (f", fold {number + 1} of {len(parts)}" if len(parts) > 1 else "")
                found[number] = now = self.descend(self.fitted[fitted], C, f"choose {stage}", ROUGH, found[number])
                results.append(self._held(now.weights, self.fitted[held]))
            right = np.concatenate([right for right, _ in results])
            temperature = float(np.exp(np.mean([np.log(one) for _, one in results])))
            trials.append(Trial({SCALING: CHOICE[0], "C": C}, right, temperature))
            means.append(_mean([one for one in found if one is not None]))
            if any(right.sum() <= before.right.sum() for before in trials[:-1]):
                break
        return trials, f"{chosen_by}, the smallest C within one standard error", means

    def descend(self, rows: Rows, C: float, stage: str, tol: float, start: Found | None = None) -> Found:
        """Minimise the objective over some rows, and tell how far it has come."""
        descent = Descent(LOSSES[self.head.name], self.stream, rows, [C], len(self.classes), self.seed)
        found = descent.run(tol, start, _Course(self.progress, stage, tol))
        self.progress(stage, 100, 100)
        return found

    def _held(self, weights: torch.Tensor, rows: Rows) -> tuple[Right, float]:
        """Return which of the rows that were held out are right, in order of the disk, and the temperature on them."""
        n_classes = len(self.classes)
        weights = self.stream.to_centred(weights)
        right, kept, truths = [], [], []
        share = min(1.0, SAMPLE / (len(rows) * n_classes))
        generator, size = np.random.default_rng(self.seed), max(1, PROBABILITIES // n_classes)
        for taken, block in self.stream.centred(self.stream.in_order(rows)):
            truth = self.stream.truth(taken)
            for x, y in zip(torch.split(block, size), torch.split(truth, size), strict=True):
                given = scores(x, weights)[:, 0]
                right.append((given.argmax(-1) == y).cpu().numpy())
                some = torch.from_numpy(generator.random(len(x)) <= share).to(x.device)
                kept.append(given[some].cpu().numpy())
                truths.append(y[some].cpu().numpy())
        usual = self.head.temperature
        return np.concatenate(right), temperature_of(np.concatenate(kept), np.concatenate(truths), usual)

    def estimator(self, found: Found, trial: Trial) -> Any:
        """Return the pipeline that a head in memory would be, without the turn: it is in the weights."""
        axes = self.stream.axes
        weights, temperature = found.weights[:, 0].cpu().numpy().astype(np.float64), trial.temperature
        if self.head.name == "svm" and len(self.classes) == 2:
            weights, temperature = weights / 2, temperature / 2  # the two problems are one, mirrored
        estimator = self.head.make(self.seed, len(self.fitted))
        estimator.set_params(C=trial.params["C"], temperature=temperature)
        estimator.coef_ = (axes @ weights[:-1]).T.astype(np.float32)
        estimator.intercept_ = weights[-1].astype(np.float32)
        estimator.classes_, estimator.n_features_in_ = np.arange(len(self.classes)), len(axes)
        return make_pipeline(self.stream.scaler, estimator)

    def answers(self, estimator: Any) -> tuple[Rows, Answers]:
        """Return the classes of the scored rows, and what the estimator says of them."""
        rows = self.stream.in_order(self.plan.scored)
        truth, found, size = self.codes[rows].astype(np.intp), [], max(1, PROBABILITIES // len(self.classes))
        seen = 0
        for _, block in self.stream.plain(rows):
            for at in range(0, len(block), size):
                given = estimator.predict_proba(block[at : at + size])
                given /= given.sum(1, keepdims=True)
                found.append(answers(truth[seen : seen + len(given)], given))
                seen += len(given)
            self.progress("score", seen, len(rows))
        names = ("predicted", "confidence", "likelihood")
        return truth, Answers(*(np.concatenate([getattr(part, name) for part in found]) for name in names))


class _Course:
    """Tells how far a descent has come, by how fast the gradient falls: nobody knows how many rounds it will take."""

    def __init__(self, progress: Progress, stage: str, tol: float) -> None:
        self._progress, self._stage, self._tol, self._most = progress, stage, tol, 0

    def __call__(self, rounds: float, fallen: float) -> None:
        """Hear of the rounds done, and of the share of its norm that the gradient has left."""
        expected = rounds * math.log(self._tol) / math.log(fallen) if fallen < 1 else 10.0
        self._most = max(self._most, int(99 * min(1.0, rounds / max(expected, rounds, 1.0))))
        self._progress(self._stage, self._most, 100)


def _simplest(trials: Sequence[Trial]) -> Trial:
    """Return the most regularised trial that is not worse than the best one by more than chance."""
    best = max(trials, key=lambda trial: int(trial.right.sum()))
    return next(trial for trial in trials if not is_worse(trial.right, best.right, 1))


def _mean(found: Sequence[Found]) -> Found:
    weights, at_zero = (torch.stack([getattr(one, name) for one in found]).mean(0) for name in ("weights", "at_zero"))
    return Found(weights, at_zero, all(one.converged for one in found))
