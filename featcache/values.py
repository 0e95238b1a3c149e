"""A value and the type that it should have enter; the part of it that has another one, if there is one, leaves."""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, wraps
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from featcache.errors import UsageError
from featcache.texts import flaw

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
        if (said := _flaw(value)) is not None:
            raise UsageError(f"{type(record).__name__}({field.name}={given!r:.60}): {said}, give another")
        object.__setattr__(record, field.name, value)


def taking_typed(function: Callable[P, T]) -> Callable[P, T]:
    """Return a function that takes NumPy's numbers as Python's, and refuses what is not of the type of its parameter.

    Raises `UsageError`. Looked at are parameters that take numbers, texts, truth values, paths, records, `None`,
    functions, sequences and dictionaries of them; a text is no sequence of texts.
    """
    signature = inspect.signature(function)
    hints = cache(lambda: get_type_hints(inspect.unwrap(function)))

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        bound = signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            hint = hints().get(name, Any)
            if _is_known(hint):
                value = value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else _plain(value)
                if not _fits(hint, value):
                    raise UsageError(f"{function.__qualname__}({name}={value!r:.60}): give {_in_words(hint)}")
                if (said := _flaw(value)) is not None:
                    raise UsageError(f"{function.__qualname__}({name}={value!r:.60}): {said}, give another")
                bound.arguments[name] = value
        return function(*bound.args, **bound.kwargs)

    return call


def _flaw(value: Any) -> str | None:
    """Return why a text or path, or one among several, cannot name anything, in a few words; `None` where it can."""
    if isinstance(value, str | os.PathLike):
        return flaw(os.fsdecode(value))
    return _first(map(_flaw, value)) if isinstance(value, tuple | list) else None


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (UnionType, Union) else (hint,)


def _is_known(hint: Any) -> bool:
    """Tell whether `_fits` knows what a type hint asks for."""
    return all(
        kind in _PLAIN
        or dataclasses.is_dataclass(kind)
        or get_origin(kind) is Callable
        or (get_origin(kind) in (Sequence, Mapping, tuple) and all(map(_is_known, _parts(kind))))
        for kind in _alternatives(hint)
    )


def _parts(kind: Any) -> tuple[Any, ...]:
    return tuple(part for part in get_args(kind) if part is not Ellipsis)


def _fits(hint: Any, value: Any) -> bool:
    """Tell whether a value that was given in Python is what a type hint asks for."""
    return any(_is_of(kind, value) for kind in _alternatives(hint))


def _is_of(kind: Any, value: Any) -> bool:
    if kind is Path:
        return isinstance(value, os.PathLike)
    if kind in _PLAIN:
        return misfit(kind, value) is None
    if get_origin(kind) is Callable:
        return callable(value)
    if get_origin(kind) is None:
        return isinstance(value, kind)
    if get_origin(kind) is Mapping:
        keys, values = _parts(kind)
        return isinstance(value, Mapping) and all(_fits(keys, k) and _fits(values, v) for k, v in value.items())
    # sets and generators are no sequences, but nothing else than sequences was ever refused that could be gone through
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        return False
    if get_origin(kind) is tuple and Ellipsis not in get_args(kind) and not isinstance(value, Sequence):
        return False  # it has an order, as the part and the number of parts
    if not isinstance(value, Sequence):
        return True
    if get_origin(kind) is tuple and Ellipsis not in get_args(kind):
        return len(value) == len(get_args(kind)) and all(map(_fits, get_args(kind), value))
    return all(_fits(_parts(kind)[0], each) for each in value)


def _in_words(hint: Any) -> str:
    def said(kind: Any) -> str:
        if get_origin(kind) is Callable:
            return "a function"
        if get_origin(kind) is Mapping:
            return f"a dictionary from {' to '.join(map(_in_words, _parts(kind)))}"
        if get_origin(kind) in (Sequence, tuple):
            parts = _parts(kind)
            return f"({', '.join(map(_in_words, parts))})" if len(parts) > 1 else f"a list of {_in_words(parts[0])}"
        return "None" if kind is NoneType else str(kind.__name__)

    return " or ".join(map(said, _alternatives(hint)))


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
