"""Pictures and labels in whatever form scikit-learn is given them enter; paths and labels leave, or what is wrong."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.errors import TrainingError
from featcache.sources.addresses import named
from featcache.tuning.inputs import Inputs

Labels = npt.NDArray[Any]

_FORMS = "give a list, a 1-D array, a Series or one column of paths of pictures"


def pictures_and_labels(X: Any, y: Any, of: str = "") -> tuple[list[str] | Inputs, Labels]:
    """Return pictures and their labels (n), said to be those `of` something; raises `TrainingError`."""
    pictures, labels = pictures_of(X, of), labels_of(y, of)
    if len(pictures) != len(labels):
        raise TrainingError(
            f"X{of} has {len(pictures):,} pictures and y{of} {len(labels):,} labels: give one label for each picture, "
            "in the same order"
        )
    return pictures, labels


def validation_of(validation: Any) -> tuple[list[str] | Inputs, Labels]:
    """Return the pictures and labels of a pair; raises `TrainingError`."""
    if not isinstance(validation, tuple | list) or len(validation) != 2:
        raise TrainingError(f"validation is {_kind(validation)}: give a pair (X, y) of pictures and labels, or None")
    X, y = validation
    return pictures_and_labels(X, y, " of validation")


def pictures_of(X: Any, of: str = "") -> list[str] | Inputs:
    """Return paths, or `Inputs` as they are; raises `TrainingError` for what does not name pictures in a row."""
    if hasattr(X, "batches"):
        inputs: Inputs = X
        return inputs
    if hasattr(X, "__array__"):  # pandas and its like too
        X = np.asarray(X)
        if X.ndim == 2 and X.shape[1] == 1:
            X = X[:, 0]
        if X.ndim != 1 or X.dtype.kind not in "OUT":
            raise TrainingError(f"X{of} is an array of {X.dtype} {X.shape}, which holds no paths: {_FORMS}")
    elif isinstance(X, str | bytes) or not isinstance(X, Sequence):
        raise TrainingError(f"X{of} is {_kind(X)}, which holds no paths in a row: {_FORMS}")
    if not len(X):
        raise TrainingError(f"X{of} holds 0 pictures: give at least one")
    for at, path in enumerate(X):
        if not isinstance(path, str | os.PathLike):
            raise TrainingError(
                f"X[{at}]{of} is {_kind(path)}, and no path: {_FORMS} (a FeatureExtractor takes pictures themselves)"
            )
    return [named(path) for path in X]


def labels_of(y: Any, of: str = "") -> Labels:
    """Return labels (n) of one kind: texts, whole numbers or truth values; raises `TrainingError` for others."""
    if isinstance(y, str | bytes) or not (hasattr(y, "__array__") or isinstance(y, Sequence)):
        raise TrainingError(f"y{of} is {_kind(y)}: give one label, a text or a whole number, for each picture")
    given = np.asarray(y) if hasattr(y, "__array__") else np.fromiter(y, dtype=object, count=len(y))
    if given.ndim != 1:
        raise TrainingError(f"y{of} has the shape {given.shape}: give one label for each picture, as shape (n)")
    if given.dtype.kind in "Uiub":
        return given
    labels: list[Any] = given.tolist()
    for at, label in enumerate(labels):
        is_whole = isinstance(label, float) and label.is_integer()
        if not (is_whole or isinstance(label, str | bool | int | np.str_ | np.bool_ | np.integer)):
            said = repr(label) if isinstance(label, float) else _kind(label)
            raise TrainingError(f"y[{at}]{of} is {said}: a label is a text or a whole number")
    texts = [isinstance(label, str) for label in labels]
    if any(texts) and not all(texts):
        at = texts.index(not texts[0])
        raise TrainingError(
            f"y{of} has labels of two kinds, y[0] is {_kind(labels[0])} and y[{at}] {_kind(labels[at])}: make all of "
            "them texts, or all whole numbers"
        )
    return np.asarray(labels)


def _kind(value: Any) -> str:
    """Return in words what something is, in few of them also where it is a large array."""
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    if isinstance(value, str):
        return f"the text {value!r:.60}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"an array of {value.dtype} {tuple(value.shape)}"
    return f"of type {type(value).__name__}" + (f" with {len(value)} entries" if isinstance(value, Sequence) else "")
