"""A dataset in the cache and the name of a head enter; a scored, saved classifier leaves."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.api.asking import asks
from featcache.api.experiment import Known, Streamed, open_experiment, open_streamed
from featcache.api.models import SUFFIX, Model, check_labels, save_model, versions
from featcache.api.options import Options
from featcache.embed import check_running
from featcache.errors import HeadError
from featcache.heads import get
from featcache.process import after_forks_too
from featcache.records import Progress, Source
from featcache.records.experiments import FitSummary, Sweep, TrialRow
from featcache.splits import Plan, check_seed, digest
from featcache.store import Run

if TYPE_CHECKING:
    from featcache.experiments.fitting import Fitted
    from featcache.experiments.out_of_core import Learned
    from featcache.heads.base import Head
    from featcache.records.experiments import Score

OUT_OF_CORE = ("logreg", "svm")
"""The heads that can be fitted on vectors that stay on the disk."""


@after_forks_too
@asks
def fit(
    source: Source | None = None,
    head: str = "logreg",
    seed: int = 0,
    options: Options | None = None,
    progress: Progress | None = None,
    train_views: bool = False,
    tta: bool = False,
    sweep: Sweep | None = None,
    out_of_core: bool = False,
) -> FitSummary:
    """Train and score one head on the dataset last extracted, or on `source` after extracting what it lacks.

    With `train_views` it is fitted on the extracted views too, with `tta` scored (and used by `predict`) on the mean of
    their probabilities. `sweep` names values to try for the head's parameters. The parameters are chosen without the
    scored split. With `out_of_core` the vectors stay on the disk and are read in shuffled blocks, on the device of
    `options`: heads logreg and svm, without views. The model file is kept in the cache. Raises `FeatcacheError`.
    """
    check_seed(seed)
    chosen = get(head, sweep)
    if out_of_core:
        return _fit_out_of_core(source, chosen, seed, options or Options(), progress, train_views or tta)
    with open_experiment(source, options, progress, train_views or tta) as experiment, experiment.run("fit") as run:
        check_labels(experiment.root, experiment.roll.labels)
        plan = experiment.plan(seed)

        from featcache.evaluate import score
        from featcache.experiments.fitting import fit_head
        from featcache.experiments.prepared import prepare

        fit_views, test_views = (experiment.views if used else () for used in (train_views, tta))
        data = prepare(experiment.features, plan, fit_views, test_views)
        fitted = fit_head(chosen, data, seed, progress)
        scored = score(plan.scored_name, data.truth, fitted.probabilities)
        labels = tuple(str(label) for label in data.classes)
        return _finish(experiment, run, head, seed, plan, fitted, labels, scored, (fit_views, test_views))


def _fit_out_of_core(
    source: str | Path | None, head: Head, seed: int, options: Options, progress: Progress | None, views: bool
) -> FitSummary:
    if head.name not in OUT_OF_CORE:
        raise HeadError(f"out of core there are {' and '.join(OUT_OF_CORE)}, not {head.name}: use one of them")
    if views:
        raise HeadError("views are not used out of core: leave out --train-views and --tta, or --out-of-core")
    check_running(options.device, options.engine)
    asked = options if source is not None else replace(options, device="auto")
    with open_streamed(source, asked, progress) as known, known.run("fit") as run:
        check_labels(known.root, known.roll.labels)
        plan = known.plan(seed)

        from featcache.embed.torch_engine import choose_device
        from featcache.evaluate import score
        from featcache.experiments.out_of_core import fit_stored

        learned = fit_stored(head, known.vectors, known.roll, plan, seed, choose_device(options.device), progress)
        scored = score(plan.scored_name, learned.truth, learned.answers)
        return _finish(known, run, head.name, seed, plan, learned, learned.classes, scored, ((), ()))


def _finish(
    known: Known,
    run: Run,
    head: str,
    seed: int,
    plan: Plan,
    fitted: Fitted | Learned,
    labels: tuple[str, ...],
    scored: Score,
    views: tuple[tuple[str, ...], tuple[str, ...]],
) -> FitSummary:
    """Keep the model and the account of it."""
    name = f"models/{run.id:06d}-{head}{SUFFIX}"
    summary = FitSummary(
        head=head,
        backbone=known.spec.backbone,
        weights=known.extracted["weights"],
        fingerprint=known.spec.fingerprint,
        dataset=known.root,
        split_sizes=plan.sizes,
        split_digest=digest(known.roll, [plan]),
        n_classes=len(labels),
        chosen_by=fitted.chosen_by,
        fitted_on="train" if plan.val is None else "train+val",
        n_train=len(plan.fitted),
        **scored.summarised(),
        params=fitted.params,
        seed=seed,
        fit_seconds=round(fitted.fit_seconds, 3),
        model=str(known.cache.folder / name),
        train_views=views[0],
        test_views=views[1],
        versions=versions(),
        trials=_trials(fitted),
        loss_curve=fitted.loss_curve,
        notices=(*known.notices, *plan.notices, *known.leak(plan), *fitted.notices),
        out_of_core=isinstance(known, Streamed),
        extracted=known.extracted_at,
        unscored=plan.unscored,
    )
    model = Model(fitted.estimator, labels, known.spec, known.extracted["weights_file"], asdict(summary))
    known.cache.runs.finish(run, asdict(summary), save_model(known.cache, name, head, model))
    return summary


def _trials(fitted: Fitted | Learned) -> tuple[TrialRow, ...]:
    return tuple(TrialRow(trial.params, trial.accuracy, trial.loss_curve) for trial in fitted.trials)
