"""A dataset in the cache and names of heads enter; who is taken for whom leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.api.experiment import open_experiment
from featcache.api.options import Options
from featcache.errors import HeadError
from featcache.heads import HEADS, several
from featcache.records import Progress
from featcache.records.experiments import ConfusionSummary

if TYPE_CHECKING:
    from featcache.experiments.confusion import Codes
    from featcache.experiments.prepared import Prepared
    from featcache.heads.base import Head


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
    chosen = several([head, *heads])
    with open_experiment(source, options, progress) as experiment, experiment.run("confusions") as run:
        plan = experiment.plan(seed)

        from featcache.evaluate import wilson
        from featcache.experiments.confusion import UNLEARNABLE
        from featcache.experiments.confusion import confusions as count
        from featcache.experiments.prepared import prepare

        data = prepare(experiment.features, plan)
        predicted, errors = _predict(data, chosen, seed, progress)
        if head not in predicted:
            raise HeadError(errors[0])
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


def _predict(
    data: Prepared, heads: Sequence[Head], seed: int, progress: Progress | None
) -> tuple[dict[str, Codes], list[str]]:
    """Return what each head predicts of the scored pictures, and why some do not."""
    from featcache.experiments.fitting import fit_head

    predicted, errors = {}, []
    for done, head in enumerate(heads):
        if progress:
            progress("confusions", done, len(heads))
        try:
            predicted[head.name] = fit_head(head, data, seed).probabilities.argmax(1)
        except HeadError as error:
            errors.append(str(error))
    if progress:
        progress("confusions", len(heads), len(heads))
    return predicted, errors
