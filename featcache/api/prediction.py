"""A model file and pictures enter; labels and probabilities leave."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from featcache.api.models import Model, load_model
from featcache.api.options import Options, moved, open_cache
from featcache.api.outputs import refuse_cache, write
from featcache.api.pipeline import compute
from featcache.backbones import Backbone, note, reproduce
from featcache.discover import discover
from featcache.embed import check_running
from featcache.errors import DatasetError, ModelError, WeightsError
from featcache.load import load
from featcache.process import after_forks_too
from featcache.records import Progress, Source
from featcache.records.experiments import Prediction, PredictSummary
from featcache.render import predict_csv
from featcache.store import Cache

TOLD = 500
"""After so many pictures progress is shown."""


@after_forks_too
def predict(
    model: str | Path,
    source: Source,
    csv: Path | None = None,
    trust: bool = False,
    options: Options | None = None,
    progress: Progress | None = None,
) -> PredictSummary:
    """Label every picture of `source` with a fitted model, by way of the cache.

    The backbone is the model's own; `options.backbone` is not used, and `options.weights` says where its weights file
    lies if it is no longer where it was. With `csv` the predictions are also written there. Raises `ModelError` where
    the model's features cannot be reproduced.
    """
    options = options or Options()
    if csv:
        refuse_cache(csv)
    dataset = discover(source, labelled=False, columns=options.columns, names_encoding=options.names_encoding)
    check_running(options.device, options.engine)
    with open_cache(options) as cache:
        fitted = load_model(cache, Path(model), trust)
        backbone = same_backbone(cache, fitted, Path(model), options.weights)
        with cache.in_use():
            backbones = [backbone, *map(backbone.viewing, fitted.scores.get("test_views", ()))]
            work, *_ = compute(cache, dataset.items, backbones, options, progress, dataset.access)
            if len(work.failures) == len(dataset.items):
                first = work.failures[0]
                raise DatasetError(f"no picture in {dataset.root} can be read ({first.path}: {first.reason})")
            features, *others = (load(work.rows, cache.store(seen.spec.fingerprint)) for seen in backbones)
    from featcache.heads.base import probabilities as of_classes

    fitted.check_dim(Path(model), features.X.shape[1])

    def told(rows: int) -> None:
        if progress and (rows % TOLD == 0 or rows == len(features.paths)):
            progress("predict", rows, len(features.paths))

    with np.errstate(all="ignore"):  # what comes of numbers that are too large is looked at as a whole
        probabilities = np.mean([of_classes(fitted.estimator, seen.X, told) for seen in (features, *others)], axis=0)
    if not np.isfinite(probabilities).all():
        raise ModelError(f"{model} gives probabilities that are not finite: fit it again")
    labels = probabilities.argmax(1)
    summary = PredictSummary(
        model=str(model),
        backbone=backbone.name,
        fingerprint=features.fingerprint,
        predictions=tuple(
            Prediction(path, fitted.classes[label], dict(zip(fitted.classes, map(float, row), strict=True)))
            for path, label, row in zip(features.paths, labels, probabilities, strict=True)
        ),
        failures=work.failures,
    )
    if csv:
        write(csv, predict_csv(summary).encode(errors="backslashreplace"))
    return summary


def same_backbone(cache: Cache, model: Model, path: Path, weights: Path | None) -> Backbone:
    """Return the backbone that made the features of a model, from `weights` or its own file; raises `ModelError`."""
    file = weights or moved(cache, model.weights_file)
    try:
        found = reproduce(model.spec, file, cache.backbones)
    except WeightsError as error:
        spec = model.spec
        needs = f"{path} needs {spec.backbone} with weights of sha256 {spec.weights_sha256[:16]}"
        raise ModelError(f"{needs}: {error}") from error
    note(cache.backbones, found, file)
    return found
