"""A dataset in the cache and names of heads enter; who is taken for whom leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from featcache.api.asking import asks
from featcache.api.experiment import Experiment, open_experiment
from featcache.api.options import Options
from featcache.errors import HeadError
from featcache.heads import HEADS, several
from featcache.process import after_forks_too
from featcache.records import Progress, Source
from featcache.records.experiments import ConfusionSummary
from featcache.splits import check_seed

Probabilities = npt.NDArray[np.float64]

if TYPE_CHECKING:
    from featcache.experiments.prepared import Prepared
    from featcache.heads.base import Head


@after_forks_too
@asks
def confusions(
    source: Source | None = None,
    head: str = "logreg",
    heads: Sequence[str] = HEADS,
    seed: int = 0,
    options: Options | None = None,
    progress: Progress | None = None,
) -> ConfusionSummary:
    """Say who `head` takes for whom, class by class, and which classes none of `heads` can learn.

    Other arguments as in `fit`. Raises `FeatcacheError`; another head that cannot be fitted is named in `errors`.
    """
    check_seed(seed)
    chosen = several([head, *heads])
    with open_experiment(source, options, progress) as experiment, experiment.run("confusions") as run:
        summary = tried(experiment, chosen, seed, progress).summary
        experiment.cache.runs.finish(run, asdict(summary))
        return summary


@dataclass(frozen=True)
class Tried:
    """Who the first of several heads takes for whom, what it was fitted on, and its probabilities of the scored."""

    summary: ConfusionSummary
    data: Prepared
    probabilities: Probabilities


def tried(experiment: Experiment, heads: Sequence[Head], seed: int, progress: Progress | None) -> Tried:
    """Fit heads on the plan of a seed, and count who the first takes for whom; raises `HeadError` where it cannot."""
    from featcache.evaluate import wilson
    from featcache.experiments.confusion import UNLEARNABLE
    from featcache.experiments.confusion import confusions as count
    from featcache.experiments.prepared import prepare

    plan, head = experiment.plan(seed), heads[0].name
    data = prepare(experiment.features, plan)
    found, errors = _predict(data, heads, seed, progress)
    if head not in found:
        raise HeadError(errors[0])
    counted = count(data, {name: probabilities.argmax(1) for name, probabilities in found.items()}, head)
    hits = int(counted.matrix.trace())
    summary = ConfusionSummary(
        setting=experiment.setting([plan], [seed], False, False),
        head=head,
        heads=tuple(found),
        accuracy=hits / len(data.truth),
        accuracy_interval=wilson(hits, len(data.truth)),
        labels=counted.labels,
        matrix=tuple(tuple(int(n) for n in row) for row in counted.matrix),
        classes=counted.classes,
        pairs=counted.pairs,
        unlearnable_below=UNLEARNABLE,
        notices=(*experiment.notices, *plan.notices),
        errors=tuple(errors),
    )
    return Tried(summary, data, found[head])


def _predict(
    data: Prepared, heads: Sequence[Head], seed: int, progress: Progress | None
) -> tuple[dict[str, Probabilities], list[str]]:
    """Return the probabilities that each head gives the scored pictures, and why some do not."""
    from featcache.experiments.fitting import fit_head

    predicted, errors = {}, []
    for done, head in enumerate(heads):
        if progress:
            progress("confusions", done, len(heads))
        try:
            predicted[head.name] = fit_head(head, data, seed).probabilities
        except HeadError as error:
            errors.append(str(error))
    if progress:
        progress("confusions", len(heads), len(heads))
    return predicted, errors
