"""A value and the type that it should have enter; the part of it that has another one, if there is one, leaves."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache, wraps
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from featcache.errors import UsageError

P = ParamSpec("P")
T = TypeVar("T")

_PLAIN: dict[Any, tuple[type, ...]] = {
    str: (str,),
    int: (int,),
    float: (float, int),
    bool: (bool,),
    NoneType: (NoneType,),
    Path: (Path,),
}


def check_given(record: Any) -> None:
    """Make what was given for the fields of a record plain: NumPy's numbers Python's, arrays and lists tuples.

    Raises `UsageError` for a field of another type.
    """
    hints = get_type_hints(type(record))
    for field in dataclasses.fields(record):
        given = getattr(record, field.name)
        value = _plain(given)
        if misfit(hints[field.name], _as_json(value)) is not None:
            kind = str(field.type)
            raise UsageError(f"{type(record).__name__}({field.name}={given!r:.60}): it is {kind}, give such a value")
        object.__setattr__(record, field.name, value)


def taking_typed(function: Callable[P, T]) -> Callable[P, T]:
    """Return a function that takes NumPy's numbers as Python's, and refuses what is not of the type of its parameter.

    Raises `UsageError`. Only numbers, texts, truth values, `None` and records are looked at.
    """
    signature = inspect.signature(function)
    hints = cache(lambda: get_type_hints(inspect.unwrap(function)))

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        bound = signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            hint = hints().get(name, Any)
            kinds = get_args(hint) if get_origin(hint) in (UnionType, Union) else (hint,)
            if all(kind in _PLAIN or dataclasses.is_dataclass(kind) for kind in kinds):
                value = value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value
                fit = (isinstance(value, kind) if kind not in _PLAIN else not misfit(kind, value) for kind in kinds)
                if not any(fit):
                    said = " or ".join(kind.__name__ for kind in kinds)
                    raise UsageError(f"{function.__qualname__}({name}={value!r:.60}): give {said}")
                bound.arguments[name] = value
        return function(*bound.args, **bound.kwargs)

    return call


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist") and hasattr(value, "dtype"):
        value = value.tolist()
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return tuple(map(_plain, value))
    return value


def _as_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return [_as_json(part) for part in value] if isinstance(value, tuple) else value


def misfit(kind: Any, value: Any, name: str = "it") -> str | None:
    """Return which part of a value is not of the type `kind`, `None` where all are; fields may lack, or be more."""
    if kind in _PLAIN:
        is_bool = isinstance(value, bool) and kind is not bool
        return None if isinstance(value, _PLAIN[kind]) and not is_bool else name
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            return name
        hints = get_type_hints(kind)
        return _first(misfit(hints[field], given, field) for field, given in value.items() if field in hints)
    origin, kinds = get_origin(kind), get_args(kind)
    if origin in (UnionType, Union):
        found = [misfit(each, value, name) for each in kinds]
        return None if None in found else name
    if origin is tuple:
        is_open = kinds[-1] is Ellipsis
        if not isinstance(value, list) or not (is_open or len(kinds) == len(value)):
            return name
        return _first(misfit(kinds[0] if is_open else kinds[at], given, name) for at, given in enumerate(value))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _first(misfit(kinds[1], each, name) for each in value.values()) if isinstance(value, dict) else name
    return None


def _first(found: Any) -> str | None:
    return next((each for each in found if each is not None), None)
