"""A dataset in the cache, heads, and numbers of classes and images enter; a grid of scores and seconds leaves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

from featcache.api.asking import asks
from featcache.api.experiment import Experiment, open_experiment, seed_range
from featcache.api.models import versions
from featcache.api.options import Options
from featcache.heads import HEADS, several
from featcache.process import after_forks_too
from featcache.records import Progress, Source
from featcache.records.experiments import BenchSummary
from featcache.splits import Plan

if TYPE_CHECKING:
    from featcache.experiments.grid import Cell, Taken
    from featcache.heads.base import Head

CLASSES = (2, 5, 10, 20, 50, None)
PER_CLASS = (1, 2, 5, 10, 30, None)


@after_forks_too
@asks
def bench(
    source: Source | None = None,
    heads: Sequence[str] = HEADS,
    classes: Sequence[int | None] | None = None,
    per_class: Sequence[int | None] | None = None,
    n_seeds: int = 5,
    seed: int = 0,
    options: Options | None = None,
    progress: Progress | None = None,
) -> BenchSummary:
    """Score heads against the number of classes (all their images) and of images per class (all classes).

    `None` in `classes` and `per_class` is all there are; without them sensible numbers below that are taken. Finished
    cells are kept in the cache, and not computed again. A cell that has no score says why in its row. Other arguments
    as in `compare`. Raises `FeatcacheError`.
    """
    chosen = several(heads)
    seeds = seed_range(seed, n_seeds)
    with open_experiment(source, options, progress) as experiment, experiment.run("bench") as run:
        plans = {number: experiment.plan(number, strict=False) for number in seeds}

        from featcache.experiments.grid import SUBSETS, Grid

        cells = _cells(experiment, plans[seed], classes, per_class)
        kept = experiment.cache.cells
        grid = Grid(experiment.features, plans, partial(_digest, experiment), kept.get, kept.put)
        rows = []
        for row in (row for cell in cells for row in grid.rows(chosen, cell)):
            rows.append(row)
            if progress:
                progress("bench", len(rows), len(cells) * len(chosen))
        summary = BenchSummary(
            setting=experiment.setting(list(plans.values()), seeds, False, False),
            subsets=SUBSETS,
            rows=tuple(rows),
            computed=grid.computed,
            reused=grid.reused,
            notices=tuple(experiment.notes(plans)),
        )
        experiment.cache.runs.finish(run, asdict(summary))
        return summary


def _cells(
    experiment: Experiment, plan: Plan, classes: Sequence[int | None] | None, per_class: Sequence[int | None] | None
) -> list[Cell]:
    """Return the cells of both tables, each once: class counts with all images, then all classes with some images."""
    from featcache.experiments.grid import Cell

    labels = experiment.features.y[plan.fitted].tolist()
    n_classes = len(set(labels))
    largest = max(labels.count(label) for label in set(labels))
    if classes is None:
        classes = [k for k in CLASSES if k is None or k < n_classes]
    if per_class is None:
        per_class = [m for m in PER_CLASS if m is None or m < largest]
    return list(dict.fromkeys([*(Cell(k, None) for k in classes), *(Cell(None, m) for m in per_class)]))


def _digest(experiment: Experiment, taken: Taken, head: Head, seed: int) -> str:
    """Return the sha256 (hex) of all that decides the score of a cell."""
    from featcache.heads.scaling import SCALINGS

    parts = {
        "fingerprint": experiment.spec.fingerprint,
        "split": taken.digest,
        "head": [head.name, repr(head.grid), repr(head.default), repr(head.rough)],
        "scalings": repr(SCALINGS),
        "seed": seed,
        "versions": versions(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
