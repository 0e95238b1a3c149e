"""The bytes of a model of version 1 enter, which were pickled and can run any code; the model leaves."""

from __future__ import annotations

import io
from importlib.metadata import version
from pathlib import Path

import joblib
from sklearn.exceptions import InconsistentVersionWarning

from featcache import sealed
from featcache.api.models import FORMAT, Model
from featcache.errors import ModelError
from featcache.process import filtering
from featcache.records import FeatureSpec

_other_version = filtering(("ignore", "", InconsistentVersionWarning))
"""Versions are compared when a model has been read, and said in one line."""


def unpickle(path: Path, data: sealed.Bytes) -> Model:
    """Return the model in these bytes, read from `path`; the caller knows that they can be trusted.

    Raises `ModelError`.
    """
    try:
        with _other_version:
            content = joblib.load(io.BytesIO(data))
        if content["format"] != FORMAT or content["format_version"] != 1:
            raise ModelError(f"{path} has a model format that this featcache does not read: fit it again")
        model = Model(
            content["pipeline"],
            content["classes"],
            FeatureSpec.from_json(content["spec"]),
            content["weights_file"],
            content["scores"],
            content["versions"],
        )
    except (ModelError, MemoryError):
        raise
    except Exception as error:  # unpickling broken bytes raises almost anything
        raise ModelError(f"{path} is not a featcache model: {error!r}") from error
    made_with, here = model.versions.get("scikit-learn", "?"), version("scikit-learn")
    if made_with.split(".")[:2] != here.split(".")[:2]:
        raise ModelError(
            f"{path} was made with scikit-learn {made_with}, here is {here}: install that, or fit it again"
        )
    return model
