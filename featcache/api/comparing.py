"""A dataset in the cache and names of heads enter; one row a head leaves, on the same pictures and seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.api.experiment import Experiment, open_experiment, seed_range
from featcache.api.options import Options
from featcache.heads import FLOOR, HEADS, several
from featcache.records import Progress
from featcache.records.experiments import CompareSummary
from featcache.split import Plan

if TYPE_CHECKING:
    from featcache.experiments.prepared import Prepared


def compare(
    source: str | Path | None = None,
    heads: Sequence[str] = (*HEADS, FLOOR),
    n_seeds: int = 5,
    seed: int = 0,
    options: Options | None = None,
    progress: Progress | None = None,
    train_views: bool = False,
    tta: bool = False,
) -> CompareSummary:
    """Fit and score heads on the same pictures with `n_seeds` seeds from `seed` on, and test which of them differ.

    With `train_views` or `tta` every head but the floor has a second row, with views. Other arguments as in `fit`.
    Raises `FeatcacheError`; a head that cannot be fitted gives a row that says so.
    """
    chosen = several(heads)
    seeds = seed_range(seed, n_seeds)
    with open_experiment(source, options, progress, train_views or tta) as experiment, experiment.run("compare") as run:
        plans = {seed: experiment.plan(seed) for seed in seeds}

        from featcache.experiments.comparison import Variant, compare_heads

        variants = [Variant(head) for head in chosen]
        if train_views or tta:
            variants += [Variant(head, train_views, tta) for head in chosen if head.name != FLOOR]
        rows, shared_seconds, notices = compare_heads(variants, _vectors(experiment, plans), seeds, progress)
        n_pictures = len({experiment.features.keys[row] for plan in plans.values() for row in plan.scored})
        n_scored = len(plans[seed].scored)
        over = f"{n_pictures:,} scored pictures" + (
            f", {n_scored:,} a seed," if plans[seed].made and n_seeds > 1 else ""
        )
        over += f" and {n_seeds} seeds" if n_seeds > 1 else ""
        summary = CompareSummary(
            setting=experiment.setting(list(plans.values()), seeds, train_views, tta),
            interval=f"95 % bootstrap over {over}",
            shared_seconds=shared_seconds,
            rows=tuple(rows),
            notices=tuple(dict.fromkeys([*experiment.notes(plans), *notices])),
        )
        experiment.cache.runs.finish(run, asdict(summary))
        return summary


def _vectors(experiment: Experiment, plans: Mapping[int, Plan]) -> Callable[[int, bool, bool], Prepared]:
    """Return a function that prepares the vectors of a seed, once for all heads, and once for seeds of one split."""
    from featcache.experiments.prepared import prepare

    first = next(iter(plans))

    @lru_cache(maxsize=2)
    def prepared(seed: int, train_views: bool, test_views: bool) -> Prepared:
        views = [experiment.views if used else () for used in (train_views, test_views)]
        return prepare(experiment.features, plans[seed], *views)

    return lambda seed, *views: prepared(seed if plans[seed].made else first, *views)
