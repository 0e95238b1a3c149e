"""A fitted step enters as plain values and arrays, for a file; those of a file enter, and leave checked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.errors import ModelError
from featcache.records import FloatArray

TURNED = ".T"
"""Behind the name of an array that is kept as its transpose: products are added up in the order of the memory."""

LEAST, MOST = 1e-30, 1e30
"""What a temperature or a rate can be; beyond, probabilities would not be finite."""


@dataclass(frozen=True)
class Kept:
    """What is kept of a fitted step: `values` as JSON has them, and `arrays` of float64, float32 or integers."""

    values: Mapping[str, Any]
    arrays: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)


def kept_of(estimator: Any, attributes: Sequence[str]) -> Kept:
    """Return the parameters of an estimator, and these attributes, arrays and numbers; `None` is left out."""
    found = {**estimator.get_params(), **{name: getattr(estimator, name) for name in attributes}}
    arrays = {name: value for name, value in found.items() if isinstance(value, np.ndarray)}
    values = {name: value for name, value in found.items() if name not in arrays}
    absent = [name for name in attributes if values.get(name, 0) is None]
    return Kept({name: plain(value) for name, value in values.items() if name not in absent}, arrays)


def plain(value: Any) -> Any:
    """Return a value as JSON has it: numbers of numpy as Python's, and tuples as lists."""
    if isinstance(value, np.generic):
        return value.item()
    return [plain(one) for one in value] if isinstance(value, tuple | list) else value


@dataclass
class Parts:
    """What a file says of one step, asked for by name and checked; raises `ModelError` where it is not as it must be.

    `n_classes` is the number of classes, `dim` the length of the vectors that enter the step, `None` for any.
    """

    values: dict[str, Any]
    arrays: dict[str, npt.NDArray[Any]]
    n_classes: int
    dim: int | None = None

    def params(self, usual: Mapping[str, Any]) -> dict[str, Any]:
        """Return parameters, each of the kind that its usual value has; `None` stands for a number or none."""
        found = {}
        for name, value in usual.items():
            given = self._value(name)
            if not _alike(given, value):
                raise self._wrong(name, given)
            found[name] = tuple(given) if isinstance(value, tuple) else given
        return found

    def number(self, name: str, least: float = LEAST, most: float = MOST) -> float:
        """Return a number between two others."""
        value = self._value(name)
        if not _alike(value, 0.0) or not least <= value <= most:
            raise self._wrong(name, value)
        return float(value)

    def floats(self, name: str, shape: Sequence[int | None]) -> FloatArray:
        """Return finite numbers in this shape, in which `None` stands for any length; nothing in it is copied."""
        array = self._array(name, shape)
        if array.dtype.kind != "f" or not np.isfinite(array).all():
            raise ModelError(f"{name} holds values that are not finite numbers")
        return array

    def places(self, name: str, shape: Sequence[int | None], below: int) -> npt.NDArray[np.intp]:
        """Return whole numbers from 0 to `below`, without it, in this shape."""
        array = self._array(name, shape)
        if array.dtype.kind != "i" or (array.size and not (array.min() >= 0 and array.max() < below)):
            raise ModelError(f"{name} holds values that are not whole numbers from 0 to {below - 1:,}")
        return array.astype(np.intp)

    def has(self, name: str) -> bool:
        """Tell whether the file has an array of this name."""
        return name in self.arrays or name + TURNED in self.arrays

    def end(self) -> None:
        """Raise `ModelError` where something was not asked for."""
        for name in (*self.values, *self.arrays):
            raise ModelError(f"nothing called {name!r:.80} belongs there")

    def _value(self, name: str) -> Any:
        if name not in self.values:
            raise ModelError(f"{name} is missing")
        return self.values.pop(name)

    def _array(self, name: str, shape: Sequence[int | None]) -> npt.NDArray[Any]:
        is_turned = name not in self.arrays
        array = self.arrays.pop(name + TURNED if is_turned else name, None)
        if array is None:
            raise ModelError(f"{name} is missing")
        array = array.T if is_turned else array
        fits = array.ndim == len(shape) and all(
            wanted in (None, there) for wanted, there in zip(shape, array.shape, strict=True)
        )
        if not fits:
            wanted = " x ".join("any" if size is None else f"{size:,}" for size in shape)
            raise ModelError(f"{name} has the shape {' x '.join(map(str, array.shape)) or 'of a number'}, not {wanted}")
        return array

    @staticmethod
    def _wrong(name: str, value: Any) -> ModelError:
        return ModelError(f"{name} is {value!r:.80}, which it cannot be")


def _alike(value: Any, usual: Any) -> bool:
    """Tell whether a value from JSON is of the kind of another one."""
    if isinstance(usual, bool | str):
        return type(value) is type(usual)
    if isinstance(usual, tuple):
        return isinstance(value, list) and all(type(one) is int and 0 < one < 2**31 for one in value)
    if usual is None or isinstance(usual, int):
        return (type(value) is int and abs(value) < 2**63) or (usual is None and value is None)
    return type(value) in (int, float) and abs(value) < 2**63 and math.isfinite(value)
