"""Features, a plan a seed, heads and numbers of classes and images enter; a row for each head and cell leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import numpy as np

from featcache.errors import HeadError
from featcache.evaluate import score
from featcache.experiments.fitting import fit_head
from featcache.experiments.prepared import Prepared, prepare
from featcache.heads.base import Head
from featcache.records import Features
from featcache.records.experiments import BenchRow
from featcache.splits import Plan, digest, unscored_text

SUBSETS = (
    "train and val pooled; each seed puts classes, and the images of a class, in a random order, and a cell takes the "
    "first ones, so that a smaller cell lies inside a larger one; scored on all scored pictures of its classes"
)

_VALUES = ("accuracy", "balanced_accuracy", "fit_seconds")


@dataclass(frozen=True)
class Cell:
    """How many classes, and how many training images of each, are used; `None` is all there are."""

    classes: int | None
    per_class: int | None


@dataclass(frozen=True)
class Taken:
    """A plan cut down to a cell, with its digest, and what about it is not as asked, or why there is no score."""

    plan: Plan
    n_classes: int
    problem: str | None = None
    error: str | None = None
    digest: str = ""


def take(features: Features, plan: Plan, cell: Cell, seed: int) -> Taken:
    """Cut a plan down to a cell; see `SUBSETS`."""
    pool = plan.fitted
    members = {label: pool[features.y[pool] == label] for label in np.unique(features.y[pool])}
    labels = np.random.default_rng(seed).permutation(sorted(members))[: cell.classes]
    rows = [
        np.random.default_rng([seed, number]).permutation(members[label])[: cell.per_class]
        for number, label in enumerate(sorted(members))
        if label in labels
    ]
    scored = plan.scored[np.isin(features.y[plan.scored], labels)]
    unscored = tuple(np.setdiff1d(labels, features.y[scored]).tolist())
    taken = replace(plan, train=np.sort(np.concatenate(rows)), val=None, scored=scored, unscored=unscored)
    error = None
    if len(labels) < max(2, cell.classes or 0):
        error = f"there are {len(members):,} classes to train on: a cell takes two or more, and no more than there are"
    elif not len(scored):
        error = f"no picture of its classes is in {plan.scored_name}"
    elif cell.per_class and max(map(len, members.values())) < cell.per_class:
        error = f"no class has {cell.per_class:,} training images"
    few = sum(len(part) < (cell.per_class or 0) for part in rows)
    problems = [f"{few:,} of {len(labels):,} classes have fewer images, all they have are used"] if few else []
    strange = sorted(set(features.y[plan.scored].tolist()) - set(members)) if cell.classes is None else []
    if strange:
        problems.append(f"class {strange[0]!r} is in {plan.scored_name} but not in train, and not scored")
    if unscored:
        problems.append(unscored_text(unscored, plan.scored_name, len(labels)))
    return Taken(taken, len(labels), None if error else "; ".join(problems) or None, error, digest(features, [taken]))


class Grid:
    """Runs heads on cells, one fit a head, cell and seed; what `known` returns is not computed again.

    `digest` names a fit by all that decides it; `keep` is called with it and the result as soon as there is one.
    """

    def __init__(
        self,
        features: Features,
        plans: Mapping[int, Plan],
        digest: Callable[[Taken, Head, int], str],
        known: Callable[[str], dict[str, Any] | None],
        keep: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self.computed = self.reused = 0
        self._features, self._plans = features, plans
        self._digest, self._known, self._keep = digest, known, keep

    def rows(self, heads: Sequence[Head], cell: Cell) -> Iterator[BenchRow]:
        """Yield the row of each head in a cell."""
        taken = {seed: take(self._features, plan, cell, seed) for seed, plan in self._plans.items()}
        shared: dict[int, Prepared] = {}
        for head in heads:
            results = [self._fit(head, taken[seed], seed, shared) for seed in taken]
            yield _row(head, cell, list(taken.values()), results)

    def _fit(self, head: Head, taken: Taken, seed: int, shared: dict[int, Prepared]) -> dict[str, Any]:
        if taken.error:
            return {"error": taken.error}
        digest = self._digest(taken, head, seed)
        result = self._known(digest)
        if result is not None and _is_result(result):
            self.reused += 1
            return result
        try:
            if seed not in shared:
                shared[seed] = prepare(self._features, taken.plan)
            fitted = fit_head(head, shared[seed], seed)
        except HeadError as error:
            return {"error": str(error)}
        found = score(taken.plan.scored_name, shared[seed].truth, fitted.probabilities)
        result = {
            "accuracy": found.accuracy,
            "balanced_accuracy": found.balanced_accuracy,
            "fit_seconds": fitted.fit_seconds,
        }
        self._keep(digest, result)
        self.computed += 1
        return result


def _is_result(kept: Mapping[str, Any]) -> bool:
    """Tell whether what was kept can be a result, whoever put it there."""
    values = [kept.get(name) for name in _VALUES]
    numbers = [float(value) for value in values if isinstance(value, float | int)]
    return len(numbers) == len(_VALUES) and all(0 <= value < inf for value in numbers) and max(numbers[:2]) <= 1


def _row(head: Head, cell: Cell, taken: Sequence[Taken], results: Sequence[Mapping[str, Any]]) -> BenchRow:
    errors = [result["error"] for result in results if "error" in result]
    values = {name: np.array([result[name] for result in results if name in result]) for name in _VALUES}
    scored = not errors
    accuracy = values["accuracy"]
    return BenchRow(
        head=head.name,
        classes=cell.classes,
        per_class=cell.per_class,
        n_classes=taken[0].n_classes,
        n_train=len(taken[0].plan.train),
        n_test=len(taken[0].plan.scored),
        accuracy=float(accuracy.mean()) if scored else None,
        accuracy_sd=float(accuracy.std(ddof=1)) if scored and len(accuracy) > 1 else None,
        balanced_accuracy=float(values["balanced_accuracy"].mean()) if scored else None,
        fit_seconds=float(values["fit_seconds"].mean()) if scored else None,
        accuracies=tuple(accuracy.tolist()),
        problem=next((part.problem for part in taken if part.problem), None),
        error=errors[0] if errors else None,
        scored_classes=taken[0].n_classes - len(taken[0].plan.unscored),
    )
