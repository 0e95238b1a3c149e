"""A value that says what is on a picture, or which split it is in, enters; one label or split leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from textwrap import shorten
from typing import Any

from featcache.discover.folders import SPLIT_NAMES
from featcache.errors import DatasetError, UsageError

Columns = Mapping[str, str]
"""The names that a user's data has for `path`, `label` and `split`."""

COLUMNS = ("path", "label", "split")


def check_columns(columns: Columns) -> None:
    """Raise `UsageError` for a column that nothing is read from."""
    for name in columns:
        if name not in COLUMNS:
            raise UsageError(f"unknown column {name!r}: map {', '.join(COLUMNS)}, as in label=breed,path=file")


def check_no_columns(root: str, columns: Columns) -> None:
    """Raise `DatasetError` where columns are mapped of a dataset that has none."""
    if columns:
        raise DatasetError(
            f"{root} has no columns: its labels and splits are the names of its folders; leave --columns out, or list "
            "the pictures in a CSV manifest"
        )


def one_label(value: Any, where: str, names: Sequence[str] = ()) -> str | None:
    """Return a label as text, a number among `names` as its name; `None` and negative numbers of those are no label.

    Raises `DatasetError` for several labels.
    """
    if value is None:
        return None
    if isinstance(value, bytes):
        value = value.decode(errors="surrogateescape")
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, Integral):
        number = int(value)
        if not names:
            return str(number)
        if number >= len(names):
            raise DatasetError(f"{where}: class number {number}, and there are {len(names)} classes")
        return names[number] if number >= 0 else None
    if isinstance(value, Sequence | Mapping) or hasattr(value, "tolist"):
        raise DatasetError(
            f"{where}: several labels for one picture (multi-label), {shorten(repr(value), 60)}: give each picture one"
        )
    raise DatasetError(f"{where}: {value!r} is no class, which is a text or a whole number: featcache classifies")


def one_split(value: Any, where: str) -> str | None:
    """Return the name of a split that is used everywhere, `None` for none; raises `DatasetError`."""
    text = str(value or "").strip().lower()
    if text and text not in SPLIT_NAMES:
        raise DatasetError(f"{where}: unknown split {text!r}: use one of {', '.join(SPLIT_NAMES)}")
    return SPLIT_NAMES.get(text)


def split_of(name: str) -> str | None:
    """Return the split that the name of a shard begins with, or the folder it is in: `train-00001.tar`, `val/7.tar`."""
    *folders, file = name.lower().split("/")
    words = [file.replace("_", "-").replace(".", "-").split("-")[0], *reversed(folders)]
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None)
