"""A fitted pipeline enters, and what a file keeps of each of its steps leaves; that enters, and the pipeline leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy.typing as npt
from sklearn.decomposition import PCA
from sklearn.pipeline import Pipeline, make_pipeline

from featcache.errors import HeadError, ModelError
from featcache.heads import axes, get
from featcache.heads.keeping import TURNED, Kept, Parts
from featcache.heads.scaling import VectorScaler

Arrays = Mapping[str, npt.NDArray[Any]]

_SCALER, _AXES, _HEAD = "scaler", "axes", "head"


def keep(head: str, pipeline: Pipeline) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Return the plain values of each step of a fitted pipeline, and their arrays as `STEP.NAME`.

    It is a scaler, maybe axes, and the head with this name.
    """
    values: dict[str, Any] = {}
    arrays: dict[str, npt.NDArray[Any]] = {}
    for _, step in pipeline.steps:
        name, kept = _kept(head, step)
        values[name] = dict(kept.values)
        for array_name, array in kept.arrays.items():
            is_turned = array.flags.f_contiguous and not array.flags.c_contiguous
            arrays[f"{name}.{array_name}{TURNED if is_turned else ''}"] = array.T if is_turned else array
    return values, arrays


def restore(head: str, values: Mapping[str, Any], arrays: Arrays, n_classes: int) -> Pipeline:
    """Return the pipeline that `keep` was asked of; raises `ModelError` where what is given cannot be one."""
    try:
        known = get(head)
    except HeadError as error:
        raise ModelError(str(error)) from error
    order = [name for name in (_SCALER, _AXES, _HEAD) if name in values]
    if not {_SCALER, _HEAD} <= values.keys() or len(order) < len(values):
        raise ModelError("its steps are not a scaler, maybe axes, and a head")
    makers: dict[str, Callable[[Parts], Any]] = {
        _SCALER: VectorScaler.restored,
        _AXES: axes.restored,
        _HEAD: known.restore,
    }
    strange = [name for name in arrays if name.partition(".")[0] not in order]
    if strange:
        raise ModelError(f"nothing called {strange[0]!r:.80} belongs there")
    steps: list[Any] = []
    dim = None
    for name in order:
        parts = Parts(_table(name, values[name]), _of_step(name, arrays), n_classes, dim)
        steps.append(_made(makers[name], parts, name))
        dim = steps[-1].n_components_ if name == _AXES else steps[-1].n_features_in_
    return make_pipeline(*steps)


def _kept(head: str, step: Any) -> tuple[str, Kept]:
    if isinstance(step, VectorScaler):
        return _SCALER, step.keep()
    if isinstance(step, PCA):
        return _AXES, axes.keep(step)
    return _HEAD, get(head).keep(step)


def _made(make: Callable[[Parts], Any], parts: Parts, name: str) -> Any:
    try:
        made = make(parts)
        parts.end()
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from error
    return made


def _table(name: str, values: Any) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise ModelError(f"{name}: its values are not a table")
    return dict(values)


def _of_step(name: str, arrays: Arrays) -> dict[str, npt.NDArray[Any]]:
    start = f"{name}."
    return {key.removeprefix(start): array for key, array in arrays.items() if key.startswith(start)}
