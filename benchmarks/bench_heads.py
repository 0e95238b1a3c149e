"""A class folder's cached vectors enter; the table of heads beside scikit-learn's own classes, in one run, leaves.

    featcache extract caltech101-30.csv --backbone efficientnet_lite0
    python benchmarks/bench_heads.py

Both sides get the same float32 vectors. scikit-learn's classes have their default parameters and nothing is tuned; ours
are chosen by cross-validation, on all that the command line would do: standardising and turning (once), the choice, the
final fit, the prediction. Accuracies are compared before any ratio is printed.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.neural_network import MLPClassifier
from sklearn.svm import SVC, LinearSVC
from tabulate import tabulate

from featcache.api.experiment import open_experiment
from featcache.api.options import Options
from featcache.experiments.fitting import fit_head
from featcache.experiments.prepared import prepare
from featcache.heads import HEADS, get

THEIRS: dict[str, Callable[[], Any]] = {
    "logreg": LogisticRegression,
    "svm": LinearSVC,
    "svm-rbf": SVC,
    "mlp": MLPClassifier,
    "knn": KNeighborsClassifier,
    "centroid": NearestCentroid,
    "ridge": RidgeClassifier,
    "lda": LinearDiscriminantAnalysis,
}
MARGIN = 0.003
"""What a head may score below scikit-learn's."""


@click.command()
@click.option("--cache", type=click.Path(path_type=Path))
@click.option("--rounds", default=3, show_default=True, help="How often both sides are run, in turn.")
@click.option("--seed", default=0, show_default=True)
def main(cache: Path | None, rounds: int, seed: int) -> None:
    warnings.simplefilter("ignore")  # scikit-learn's iteration limits
    with open_experiment(None, Options(cache=cache), None) as experiment:
        features, plan = experiment.features, experiment.plan(seed)
    X, y, truth = features.X[plan.fitted], features.y[plan.fitted], features.y[plan.scored]
    ours: dict[str, list[float]] = {name: [] for name in ("shared", *HEADS)}
    theirs: dict[str, list[tuple[float, float]]] = {name: [] for name in HEADS}
    scores: dict[str, tuple[float, float]] = {}
    for _ in range(rounds):
        data = prepare(features, plan)
        ours["shared"].append(data.seconds)
        for name in HEADS:
            fitted = fit_head(get(name), data, seed)
            ours[name].append(fitted.fit_seconds + fitted.predict_seconds)
            estimator = THEIRS[name]()
            if hasattr(estimator, "random_state"):
                estimator.set_params(random_state=seed)
            start = time.perf_counter()
            estimator.fit(X, y)
            middle = time.perf_counter()
            predicted = estimator.predict(features.X[plan.scored])
            theirs[name].append((middle - start, time.perf_counter() - middle))
            scores[name] = (
                float((fitted.probabilities.argmax(1) == data.truth).mean()),
                float((predicted == truth).mean()),
            )
    click.echo(f"{experiment.root}: {X.shape[0]:,} x {X.shape[1]:,}, {len(set(y)):,} classes, n={len(truth):,}; ")
    click.echo(f"medians of {rounds} rounds in turn, seed {seed}\n")
    rows = []
    for name in HEADS:
        fit, predict = np.median(theirs[name], axis=0)
        mine, (score, reference) = float(np.median(ours[name])), scores[name]
        rows.append((name, f"{score:.4f}", f"{mine:.2f}", f"{reference:.4f}", f"{fit:.2f} + {predict:.2f}"))
    headers = ["head", "ours, tuned", "seconds", "scikit-learn, defaults", "seconds"]
    click.echo(tabulate(rows, headers=headers, disable_numparse=True))
    below = [name for name, (score, reference) in scores.items() if score < reference - MARGIN]
    if below:
        raise SystemExit(f"more than {100 * MARGIN:g} points below scikit-learn: {', '.join(below)}")
    total = sum(float(np.median(seconds)) for seconds in ours.values())
    other = sum(float(np.median(np.sum(pairs, axis=1))) for pairs in theirs.values())
    click.echo(f"\nshared by our heads: {np.median(ours['shared']):.2f} s")
    click.echo(f"all heads: ours {total:.2f} s, scikit-learn {other:.2f} s: {other / total:.1f} times as fast")


if __name__ == "__main__":
    main()
