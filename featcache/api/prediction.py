"""A model file and pictures enter; labels and probabilities leave."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from featcache.api.models import Model, load_model
from featcache.api.options import Options, open_cache
from featcache.api.pipeline import compute
from featcache.backbones import Backbone, reproduce
from featcache.discover import discover
from featcache.embed import check_device
from featcache.errors import DatasetError, ModelError, OutputError, WeightsError
from featcache.load import load
from featcache.records import Progress
from featcache.records.experiments import Prediction, PredictSummary
from featcache.report import predict_csv


def predict(
    model: str | Path,
    source: str | Path,
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
    dataset = discover(source, labelled=False)
    check_device(options.device)
    with open_cache(options) as cache:
        fitted = load_model(cache, Path(model), trust)
        backbone = _same_backbone(fitted, Path(model), options.weights)
        with cache.in_use():
            options = replace(options, backbone=backbone.name)
            work = compute(cache, dataset.items, backbone, options, progress)
            if len(work.failures) == len(dataset.items):
                first = work.failures[0]
                raise DatasetError(f"no picture in {dataset.root} can be read ({first.path}: {first.reason})")
            features = load(work.rows, cache.store(backbone.spec.fingerprint))
            views = [features.X]
            for view in fitted.scores.get("test_views", ()):
                seen = backbone.viewing(view)
                work = compute(cache, dataset.items, seen, options, progress)
                views.append(load(work.rows, cache.store(seen.spec.fingerprint)).X)
    probabilities = np.mean([fitted.estimator.predict_proba(X) for X in views], axis=0)
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
        _write(csv, predict_csv(summary))
    return summary


def _write(path: Path, content: str) -> None:
    try:
        path.write_text(content, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error


def _same_backbone(model: Model, path: Path, weights: Path | None) -> Backbone:
    file = weights or (Path(model.weights_file) if model.weights_file else None)
    try:
        return reproduce(model.spec, file)
    except WeightsError as error:
        spec = model.spec
        needs = f"{path} needs {spec.backbone} with weights of sha256 {spec.weights_sha256[:16]}"
        raise ModelError(f"{needs}: {error}") from error
