"""A dataset in the cache and names of heads enter; who is taken for whom leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from featcache.api.experiment import open_experiment
from featcache.api.options import Options
from featcache.errors import HeadError
from featcache.heads import HEADS, get
from featcache.records import Progress
from featcache.records.experiments import ConfusionSummary


def confusions(
    source: str | Path | None = None,
    head: str = "logreg",
    heads: Sequence[str] = HEADS,
    seed: int = 0,
    options: Options | None = None,
    progress: Progress | None = None,
) -> ConfusionSummary:
    """Say who `head` takes for whom, class by class, and which classes none of `heads` can learn.

    Other arguments as in `fit`. Raises `FeatcacheError`; another head that cannot be fitted is named in `errors`.
    """
    names = list(dict.fromkeys([head, *heads]))
    chosen = {name: get(name) for name in names}
    with open_experiment(source, options, progress) as experiment:
        plan = experiment.plan(seed)
        run = experiment.cache.runs.start("confusions", experiment.root, experiment.spec.fingerprint)

        from featcache.evaluate import wilson
        from featcache.experiments.confusion import UNLEARNABLE
        from featcache.experiments.confusion import confusions as count
        from featcache.experiments.fitting import fit_head
        from featcache.experiments.prepared import prepare

        data = prepare(experiment.features, plan)
        predicted, errors = {}, []
        for done, name in enumerate(names):
            if progress:
                progress("confusions", done, len(names))
            try:
                predicted[name] = fit_head(chosen[name], data, seed).probabilities.argmax(1)
            except HeadError as error:
                if name == head:
                    raise
                errors.append(str(error))
        if progress:
            progress("confusions", len(names), len(names))
        found = count(data, predicted, head)
        hits = int(found.matrix.trace())
        summary = ConfusionSummary(
            setting=experiment.setting([plan], [seed], False, False),
            head=head,
            heads=tuple(predicted),
            accuracy=hits / len(data.truth),
            accuracy_interval=wilson(hits, len(data.truth)),
            labels=found.labels,
            matrix=tuple(tuple(int(n) for n in row) for row in found.matrix),
            classes=found.classes,
            pairs=found.pairs,
            unlearnable_below=UNLEARNABLE,
            notices=(*experiment.notices, *plan.notices),
            errors=tuple(errors),
        )
        experiment.cache.runs.finish(run, asdict(summary))
        return summary
