"""A dataset in the cache and names of heads enter; one row a head leaves, on the same pictures and seeds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.api.asking import asks
from featcache.api.experiment import Experiment, open_experiment, seed_range
from featcache.api.options import Options
from featcache.heads import FLOOR, HEADS, several
from featcache.process import after_forks_too
from featcache.records import Progress, Source
from featcache.records.experiments import CompareRow, CompareSummary
from featcache.records.finetuning import points_a_minute, short
from featcache.render.finetuning import name_of
from featcache.splits import Plan, digest

if TYPE_CHECKING:
    from featcache.experiments.comparison import Comparison
    from featcache.experiments.prepared import Prepared


@after_forks_too
@asks
def compare(
    source: Source | None = None,
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
        found = compare_heads(variants, _vectors(experiment, plans), seeds, progress)
        finetuned = list(_finetuned(experiment, plans, found))
        n_pictures = len({experiment.features.keys[row] for plan in plans.values() for row in plan.scored})
        n_scored = len(plans[seed].scored)
        over = f"{n_pictures:,} scored pictures" + (
            f", {n_scored:,} a seed," if plans[seed].made and n_seeds > 1 else ""
        )
        over += f" and {n_seeds} seeds" if n_seeds > 1 else ""
        over += "; of balanced accuracy Wilson's, from what the pictures of each class tell"
        over += (
            "; of finetuned rows Wilson's, and their gain, over the pictures of their seed alone" if finetuned else ""
        )
        summary = CompareSummary(
            setting=experiment.setting(list(plans.values()), seeds, train_views, tta),
            interval=f"95 % bootstrap over {over}",
            shared_seconds=found.shared_seconds,
            rows=(*found.rows, *finetuned),
            notices=tuple(dict.fromkeys([*experiment.notes(plans), *found.notices])),
        )
        experiment.cache.runs.finish(run, asdict(summary))
        return summary


def _finetuned(experiment: Experiment, plans: Mapping[int, Plan], found: Comparison) -> Iterator[CompareRow]:
    """Yield a row for each network that was fine-tuned on one of these splits, beside the best head on it."""
    best = next((row for row in found.rows if row.verdict == "best"), None)
    digests = {seed: digest(experiment.features, [plan]) for seed, plan in plans.items()}
    newest: dict[str, Mapping[str, Any]] = {}
    for run in experiment.cache.runs.all():
        known = run.summary
        if run.command == "finetune" and run.root == experiment.root and known is not None:
            course = json.dumps([known["network"], known["weights"], known["training"], known["seed"]], sort_keys=True)
            newest.pop(course, None)
            newest[course] = {**known, "run": run.id}
    for known in newest.values():
        same = [seed for seed, found_digest in digests.items() if found_digest == known["split_digest"]]
        if best is not None and same:
            seed = known["seed"] if known["seed"] in same else same[0]
            yield _beside(experiment, plans, found, best, known, seed)


def _beside(
    experiment: Experiment,
    plans: Mapping[int, Plan],
    found: Comparison,
    best: CompareRow,
    known: Mapping[str, Any],
    seed: int,
) -> CompareRow:
    from featcache.evaluate import paired_tests
    from featcache.experiments.comparison import TIE, variant_name

    at, wrong = list(plans).index(seed), set(known["wrong"])
    hits = np.array([short(experiment.features.keys[row]) not in wrong for row in plans[seed].scored])
    of_best = variant_name(best.head, best.train_views, best.test_views)
    outcome = replace(found.outcomes[at], hits={"network": hits, of_best: found.outcomes[at].hits[of_best]})
    p_value = paired_tests([outcome], of_best, ["network", of_best])["network"]
    gain = known["accuracy"] - best.accuracies[at]
    is_other = known["fingerprint"] != experiment.spec.fingerprint
    return CompareRow(
        head=f"runs:{known['run']} {name_of(known['network'], known['unfreeze'])}",
        train_views=False,
        test_views=False,
        verdict="tie" if p_value >= TIE else "better" if gain > 0 else "worse",
        accuracy=known["accuracy"],
        accuracy_interval=(known["accuracy_low"], known["accuracy_high"]),
        balanced_accuracy=known["balanced_accuracy"],
        macro_f1=known["macro_f1"],
        log_loss=known["log_loss"],
        calibration_error=known["calibration_error"],
        p_value=p_value,
        accuracies=(known["accuracy"],),
        chosen_by=f"the epoch best on {known['validated_on']}",
        fit_seconds=known["seconds"],
        gain=gain,
        gain_per_minute=None if is_other else points_a_minute(gain, known["seconds"]),
        kept_epoch=known["best_epoch"],
        other_vectors=f"{known['backbone']}, fingerprint {known['fingerprint'][:16]}" if is_other else None,
        scored_classes=known.get("scored_classes"),
    )


def _vectors(experiment: Experiment, plans: Mapping[int, Plan]) -> Callable[[int, bool, bool], Prepared]:
    """Return a function that prepares the vectors of a seed, once for all heads, and once for seeds of one split."""
    from featcache.experiments.prepared import prepare

    first = next(iter(plans))

    @lru_cache(maxsize=2)
    def prepared(seed: int, train_views: bool, test_views: bool) -> Prepared:
        views = [experiment.views if used else () for used in (train_views, test_views)]
        return prepare(experiment.features, plans[seed], *views)

    return lambda seed, *views: prepared(seed if plans[seed].made else first, *views)
