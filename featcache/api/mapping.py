"""The vectors of a dataset enter; a map of them in two dimensions leaves."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

import numpy as np

from featcache.api.experiment import Experiment
from featcache.errors import DatasetError, UsageError
from featcache.records import FloatArray, Progress
from featcache.records.reports import Map, MapPoint

METHODS = ("pca", "tsne", "umap")
DRAWN = 10_000
"""More pictures than this cannot be told apart on a screen, and make the page too large."""

FEWEST = 10
"""Of fewer pictures than this t-SNE and UMAP make nothing; they are drawn on their principal axes."""

AXES = 50
"""Principal axes that t-SNE and UMAP begin from, as is usual: distances along the others are noise."""


def map_of(
    experiment: Experiment, method: str, seed: int, predicted: Mapping[str, str], progress: Progress | None
) -> Map:
    """Return where at most 10,000 pictures, drawn with the seed, lie in two dimensions by `method`.

    `predicted` holds the predicted class of those that were scored, by path.
    """
    from featcache.audits.axes import principal

    features = experiment.features
    X = principal(features.X)
    n = len(X)
    rows = np.sort(np.random.default_rng(seed).permutation(n)[:DRAWN])
    if progress:
        progress("report map", 0, 1)
    places = _placed(method, X[rows], seed)
    widths = X.var(axis=0, dtype=np.float64)
    variance = float(widths[:2].sum() / max(widths.sum(), 1e-12)) if method == "pca" else None
    if progress:
        progress("report map", 1, 1)
    splits = _splits(experiment, seed)
    points = tuple(
        MapPoint(float(x), float(y), features.paths[row], str(features.y[row]), splits[row],
                 predicted.get(features.paths[row]))
        for (x, y), row in zip(places.tolist(), rows.tolist(), strict=True)
    )  # fmt: skip
    return Map({"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}[method], variance, n, points)


def check_method(method: str) -> None:
    """Raise `UsageError` where there is no such way to draw a map here."""
    if method not in METHODS:
        raise UsageError(f"unknown map {method!r}: use one of {', '.join(METHODS)}")
    if method == "umap" and find_spec("umap") is None:
        raise UsageError("UMAP is not installed: pip install 'featcache[umap]', or use the map pca or tsne")


def _splits(experiment: Experiment, seed: int) -> list[str]:
    try:
        made = experiment.plan(seed, strict=False).made
    except DatasetError:
        made = {}
    features = experiment.features
    return [made.get(key, str(split)) for key, split in zip(features.keys, features.splits, strict=True)]


def _placed(method: str, X: FloatArray, seed: int) -> FloatArray:
    """Return vectors (n, d) on their principal axes in two dimensions (n, 2)."""
    if method == "tsne" and len(X) >= FEWEST:
        from sklearn.manifold import TSNE

        near = min(30.0, (len(X) - 1) / 3)
        return np.asarray(TSNE(perplexity=near, init="pca", random_state=seed).fit_transform(X[:, :AXES]))
    if method == "umap" and len(X) >= FEWEST:
        from umap import UMAP

        return np.asarray(UMAP(n_neighbors=min(15, len(X) - 1), random_state=seed).fit_transform(X[:, :AXES]))
    return np.pad(X[:, :2], ((0, 0), (0, max(0, 2 - X.shape[1]))))
