"""A dataset in the cache and the name of a head enter; a scored, saved classifier leaves."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.api.experiment import Experiment, open_experiment
from featcache.api.models import Model, save_model, versions
from featcache.api.options import Options
from featcache.heads import get
from featcache.records import Progress, Source
from featcache.records.experiments import FitSummary, Sweep, TrialRow
from featcache.splits import Plan, digest

if TYPE_CHECKING:
    from featcache.experiments.fitting import Fitted
    from featcache.records.experiments import Score


def fit(
    source: Source | None = None,
    head: str = "logreg",
    seed: int = 0,
    options: Options | None = None,
    progress: Progress | None = None,
    train_views: bool = False,
    tta: bool = False,
    sweep: Sweep | None = None,
) -> FitSummary:
    """Train and score one head on the dataset last extracted, or on `source` after extracting what it lacks.

    With `train_views` it is fitted on the extracted views too, with `tta` scored (and used by `predict`) on the mean of
    their probabilities. `sweep` names values to try for the head's parameters. The parameters are chosen without the
    scored split. The model file is kept in the cache. Raises `FeatcacheError`.
    """
    chosen = get(head, sweep)
    with open_experiment(source, options, progress, train_views or tta) as experiment, experiment.run("fit") as run:
        cache = experiment.cache
        plan = experiment.plan(seed)

        from featcache.evaluate import score
        from featcache.experiments.fitting import fit_head
        from featcache.experiments.prepared import prepare

        fit_views, test_views = (experiment.views if used else () for used in (train_views, tta))
        data = prepare(experiment.features, plan, fit_views, test_views)
        fitted = fit_head(chosen, data, seed, progress)
        name = f"models/{run.id:06d}-{head}.joblib"
        scored = score(plan.scored_name, data.truth, fitted.probabilities)
        summary = _summary(head, experiment, plan, fitted, scored, seed, cache.folder / name, (fit_views, test_views))
        model = Model(
            fitted.estimator,
            tuple(str(label) for label in data.classes),
            experiment.spec,
            experiment.extracted["weights_file"],
            asdict(summary),
        )
        cache.runs.finish(run, asdict(summary), save_model(cache, name, model))
        return summary


def _summary(
    head: str,
    experiment: Experiment,
    plan: Plan,
    fitted: Fitted,
    score: Score,
    seed: int,
    model: Path,
    views: tuple[tuple[str, ...], tuple[str, ...]],
) -> FitSummary:
    from featcache.experiments.fitting import shown

    return FitSummary(
        head=head,
        backbone=experiment.spec.backbone,
        weights=experiment.extracted["weights"],
        fingerprint=experiment.spec.fingerprint,
        dataset=experiment.root,
        split_sizes=plan.sizes,
        split_digest=digest(experiment.features, [plan]),
        n_classes=fitted.probabilities.shape[1],
        chosen_by=fitted.chosen_by,
        fitted_on="train" if plan.val is None else "train+val",
        n_train=len(plan.fitted),
        n_test=score.n,
        scored_split=score.split,
        accuracy=score.accuracy,
        accuracy_low=score.accuracy_low,
        accuracy_high=score.accuracy_high,
        balanced_accuracy=score.balanced_accuracy,
        macro_f1=score.macro_f1,
        log_loss=score.log_loss,
        calibration_error=score.calibration_error,
        params=fitted.params,
        seed=seed,
        fit_seconds=round(fitted.fit_seconds, 3),
        model=str(model),
        train_views=views[0],
        test_views=views[1],
        versions=versions(),
        trials=tuple(TrialRow(shown(trial.params), trial.accuracy, trial.loss_curve) for trial in fitted.trials),
        loss_curve=fitted.loss_curve,
        notices=(*experiment.notices, *plan.notices, *fitted.notices),
    )
