"""What JSON gave of a record enters; the field that is not what its record says it is, if there is one, leaves."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from featcache.records import ExtractSummary
from featcache.records.audits import AuditSummary
from featcache.records.cache import ExchangeSummary
from featcache.records.experiments import BenchSummary, CompareSummary, ConfusionSummary, FitSummary
from featcache.records.finetuning import FinetuneSummary

RECORDS: dict[str, Any] = {
    "extract": ExtractSummary,
    "import": ExchangeSummary,
    "fit": FitSummary,
    "compare": CompareSummary,
    "bench": BenchSummary,
    "confusions": ConfusionSummary,
    "finetune": FinetuneSummary,
    "audit": AuditSummary,
}
"""The record that a run of each command keeps."""

_PLAIN: dict[Any, tuple[type, ...]] = {
    str: (str,),
    int: (int,),
    float: (float, int),
    bool: (bool,),
    NoneType: (NoneType,),
}


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
