"""A fitted head enters and a model file leaves; a model file enters and the head leaves, if it can be trusted."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from sklearn.exceptions import InconsistentVersionWarning

from featcache.backbones import finetuned, resolve
from featcache.errors import ModelError, WeightsError
from featcache.process import filtering
from featcache.records import FeatureSpec
from featcache.store import Cache

FORMAT = "featcache-model"
FORMAT_VERSION = 1

_other_version = filtering(("ignore", "", InconsistentVersionWarning))
"""Versions are compared when a model has been read, and said in one line."""


def versions() -> dict[str, str]:
    """Return the versions of the packages that can change a result."""
    return {name: version(name) for name in ("featcache", "scikit-learn", "numpy", "torch", "timm", "pillow")}


@dataclass(frozen=True)
class Model:
    """A fitted head with all that predicting needs: class names, the features it reads, and its scores."""

    estimator: Any
    classes: tuple[str, ...]
    spec: FeatureSpec
    weights_file: str | None
    scores: dict[str, Any]
    versions: dict[str, str] = field(default_factory=versions)


def save_model(cache: Cache, name: str, model: Model) -> str:
    """Write the model into the cache as a joblib file, and return the sha256 (hex) by which it is known as ours."""
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "pipeline": model.estimator,
        "classes": model.classes,
        "backbone": model.spec.backbone,
        "fingerprint": model.spec.fingerprint,
        "spec": model.spec.to_json(),
        "weights_file": model.weights_file,
        "scores": model.scores,
        "versions": model.versions,
    }
    out = io.BytesIO()
    joblib.dump(content, out)
    cache.put(name, out.getvalue())
    return hashlib.sha256(out.getvalue()).hexdigest()


def load_model(cache: Cache, path: Path, trust: bool) -> Model:
    """Read a model file; one that this cache did not make is unpickled only with `trust`. Raises `ModelError`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read the model {path}: {error.strerror}") from error
    if path.suffix == finetuned.SUFFIX:
        return _load_finetuned(path)
    if not trust and not cache.runs.made_model(hashlib.sha256(data).hexdigest()):
        raise ModelError(
            f"{path} was not made by the cache {cache.folder}, and opening a model file can run any code: "
            "add --trust if you trust where it comes from"
        )
    try:
        with _other_version:
            content = joblib.load(io.BytesIO(data))
        if content["format"] != FORMAT or content["format_version"] != FORMAT_VERSION:
            raise ModelError(f"{path} has a model format that this featcache does not read: fit it again")
        model = Model(
            content["pipeline"],
            content["classes"],
            FeatureSpec.from_json(content["spec"]),
            content["weights_file"],
            content["scores"],
            content["versions"],
        )
    except ModelError:
        raise
    except Exception as error:  # unpickling broken bytes raises almost anything
        raise ModelError(f"{path} is not a featcache model: {error!r}") from error
    made_with, here = model.versions.get("scikit-learn", "?"), version("scikit-learn")
    if made_with.split(".")[:2] != here.split(".")[:2]:
        raise ModelError(
            f"{path} was made with scikit-learn {made_with}, here is {here}: install that, or fit it again"
        )
    return model


def _load_finetuned(path: Path) -> Model:
    """Read a fine-tuned network as a backbone and a linear head; its file holds nothing that could run."""
    from featcache.heads.logreg import LogisticRegression

    try:
        known = finetuned.read(path)
        backbone = resolve(f"{finetuned.PREFIX}{known.run}", path).making(known.spec)
    except WeightsError as error:
        raise ModelError(str(error)) from error
    head = LogisticRegression()
    head.coef_, head.intercept_ = known.top
    head.classes_, head.n_features_in_ = np.arange(len(known.classes)), head.coef_.shape[1]
    return Model(head, known.classes, backbone.spec, str(path.absolute()), known.scores, known.versions)
