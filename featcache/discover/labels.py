"""A value that says what is on a picture, or which split it is in, enters; one label or split leaves."""

from __future__ import annotations

import ast
import codecs
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from numbers import Integral
from textwrap import shorten
from typing import Any

from featcache.discover.splitwords import SPLIT_NAMES, is_of_splits, split_in, worded_split
from featcache.errors import DatasetError, UsageError
from featcache.records import Dataset
from featcache.texts import LONGEST_LABEL, flaw, flaw_of_names

Columns = Mapping[str, str]
"""The names that a user's data has for `path`, `label` and `split`."""

COLUMNS = ("path", "label", "split")

SEPARATORS = (",", ";", "|", None)
"""What stands between several labels in one field; `None` is white space."""

_NONES = {"nan", "none", "null", "n/a", "#n/a", "<na>"}
"""What programs write where there is no value."""

_FLAGS = {"true", "false", "0", "1", "0.0", "1.0", "yes", "no", "y", "n", "t", "f"}

_FRACTION = re.compile(r"[+-]?\d*\.\d+(e[+-]?\d+)?", re.IGNORECASE)
_WHOLE = re.compile(r"([+-]?\d+)\.0+")


def check_columns(columns: Columns) -> None:
    """Raise `UsageError` for a column that nothing is read from."""
    for name in columns:
        if name not in COLUMNS:
            raise UsageError(f"unknown column {name!r}: map {', '.join(COLUMNS)}, as in label=breed,path=file")


def check_label_from(label_from: str) -> None:
    """Raise `UsageError` for an expression that is none, or has no group."""
    try:
        pattern = re.compile(label_from)
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(f"--label-from {label_from!r} is no regular expression: {error}") from error
    if pattern.groups == ("split" in pattern.groupindex):
        raise UsageError(f"--label-from {label_from!r} has no group: put what is the label in (), as in '([a-z]+)[.]'")


def check_encoding(encoding: str) -> None:
    """Raise `UsageError` for an encoding of texts that Python does not know."""
    try:
        is_known = codecs.lookup(encoding)._is_text_encoding
    except (LookupError, ValueError):
        is_known = False
    if not is_known:
        raise UsageError(f"--names-encoding {encoding!r} is none that is known: as gbk, shift_jis, cp1252 or cp866")


def check_no_columns(root: str, columns: Columns) -> None:
    """Raise `DatasetError` where columns are mapped of a dataset that has none."""
    if columns:
        raise DatasetError(
            f"{root} has no columns: its labels and splits are the names of its folders; leave --columns out, or list "
            "the pictures in a CSV manifest"
        )


def check_names(names: Any, where: str) -> None:
    """Raise `DatasetError` for names of classes that are no list of different texts."""
    if (said := flaw_of_names(names)) is not None:
        raise DatasetError(f"{where}: the names of its classes cannot be used, {said}: name them anew")


def check_path(path: str, where: str) -> str:
    """Return a path that a file can have; raises `DatasetError` for another."""
    if (said := flaw(path)) is not None:
        raise DatasetError(f"{where}: no file can have the path {path!r:.60}: {said}")
    return path


def one_a_look(dataset: Dataset) -> Dataset:
    """Return a dataset whose labels are composed (Unicode NFC), and say which of them differ only in case or spaces."""
    labels = {item.label for item in dataset.items if item.label is not None}
    composed = {label: unicodedata.normalize("NFC", label) for label in labels if not label.isascii()}
    changed = {label: name for label, name in composed.items() if label != name}
    notices = []
    if both := sorted(name for name in changed.values() if name in labels):
        notices.append(f"one class each, written in two ways that look the same (Unicode NFC and NFD): {_few(both)}")
    alike: dict[str, set[str]] = {}
    for label in labels:
        name = composed.get(label, label)
        alike.setdefault(" ".join(name.casefold().replace("_", " ").split()), set()).add(name)
    if twins := [" and ".join(map(repr, sorted(names))) for names in alike.values() if len(names) > 1]:
        notices.append(f"classes that differ only in case or spaces: {_few(sorted(twins))}: rename one if they are one")
    items = dataset.items
    if changed:
        items = tuple(
            replace(item, label=changed[item.label]) if item.label is not None and item.label in changed else item
            for item in items
        )
    return replace(dataset, items=items, notices=(*dataset.notices, *notices))


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")


class Labels:
    """Reads the labels of one dataset, and refuses at the end what only all of them together show."""

    def __init__(self) -> None:
        self._first: dict[str, str] = {}
        self._pointed = 0
        self._empty: list[str] = []

    def read(self, value: Any, where: str, names: Sequence[str] = ()) -> str | None:
        """Return what `one_label` does, and remember where each label stands first; raises `DatasetError`."""
        label = one_label(value, where, names)
        if label is None:
            self._empty.append(where)
        if label is not None and not names:
            self._first.setdefault(label, where)
            self._pointed += isinstance(value, str | float | Decimal) and label != str(value).strip()
        return label

    def notices(self) -> list[str]:
        """Return what is to be said of the labels; raises `DatasetError` for several labels in one field.

        Those are labels of which all parts, between spaces, commas, semicolons or bars, are labels of their own. Names
        that a dataset has for its classes are not looked at, and nor is a name like `water lily`, of which no part is
        a class.
        """
        for label, where in self._first.items():
            for separator in SEPARATORS:
                parts = [part.strip() for part in label.split(separator) if part.strip()]
                if len(parts) > 1 and all(part in self._first for part in parts):
                    alone = " and ".join(f"{part!r} ({self._first[part]})" for part in dict.fromkeys(parts))
                    raise DatasetError(
                        f"{where}: {label!r} is several labels in one field (multi-label), since {alone} stand alone "
                        "too: give each picture one, or write a combination that is a class of its own as one word, "
                        f"as {'_'.join(parts)!r}"
                    )
        said = []
        if self._first and self._empty:
            said.append(f"{len(self._empty):,} without a label, the first in {self._empty[0]}")
        if nones := [label for label in self._first if label.lower() in _NONES]:
            said.append(
                f"{' and '.join(map(repr, nones))}, as {self._first[nones[0]]} has it, is taken as a class: leave the "
                "field empty where there is no label"
            )
        if self._pointed:
            said.append(
                f"{self._pointed:,} labels are whole numbers written with a point, and 1.0 is taken as the class 1"
            )
        return said


def one_label(value: Any, where: str, names: Sequence[str] = ()) -> str | None:
    """Return a label as text, a number among `names` as its name; `None` and negative numbers of those are no label.

    A whole number that is written with a point, 1.0, is the class 1, and one that is none (nan) is no label; what is
    true or false is the class True or False, as Python and tables write it. Raises
    `DatasetError` for several labels, also as the text of a list, and for a number with a fraction.
    """
    if isinstance(value, bytes):
        value = value.decode(errors="surrogateescape")
    if isinstance(value, str):
        if (said := flaw(value, LONGEST_LABEL)) is not None:
            raise DatasetError(f"{where}: the label {value!r:.60} cannot be kept, {said}: write it anew")
        return _of_text(value.strip(), where) or None
    if isinstance(value, bool) and not names:
        return str(value)
    if value is None or (isinstance(value, float | Decimal) and math.isnan(value)):
        return None
    if isinstance(value, float | Decimal) and math.isfinite(value) and value == int(value):
        value = int(value)
    if isinstance(value, Integral):
        number = int(value)
        if not names:
            return str(number)
        if number >= len(names):
            raise DatasetError(f"{where}: class number {number}, and there are {len(names)} classes")
        return names[number] if number >= 0 else None
    if isinstance(value, Sequence | Mapping) or hasattr(value, "tolist"):
        raise _several(value, where)
    raise _no_class(value, where)


def _of_text(text: str, where: str) -> str:
    if text[:1] in ("[", "{", "(") and _is_list(text):
        raise _several(text, where)
    if whole := _WHOLE.fullmatch(text):
        return str(int(whole[1]))
    if _FRACTION.fullmatch(text):
        raise _no_class(text, where)
    return text


def _is_list(text: str) -> bool:
    """Tell whether a text is a list as JSON or Python writes it."""
    for parse in (json.loads, ast.literal_eval):
        try:
            return isinstance(parse(text), list | tuple | set | dict)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return False


def _several(value: Any, where: str) -> DatasetError:
    said = shorten(value if isinstance(value, str) else repr(value), 60)
    return DatasetError(f"{where}: several labels for one picture (multi-label), {said}: give each picture one")


def _no_class(value: Any, where: str) -> DatasetError:
    return DatasetError(
        f"{where}: {value} is no class, which is a text or a whole number: featcache classifies; say where the class "
        "is with --columns label=NAME, or give ranges of the number names"
    )


def no_missing(value: Any) -> Any:
    """Return a value of a table, `None` for those of numpy and pandas that say there is none."""
    if type(value).__name__ in ("NAType", "NaTType"):  # of pandas, which answer no comparison
        return None
    return None if isinstance(value, float) and math.isnan(value) else value


def json_object(text: str) -> Any:
    """Return what a text says in JSON; raises `ValueError` where one name stands twice, of which one would be lost."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
            raise ValueError(f"it has {twice!r:.60} twice")
        return found

    return json.loads(text, object_pairs_hook=once)


def one_split(value: Any, where: str) -> str | None:
    """Return the name of a split that is used everywhere, `None` for none; raises `DatasetError`."""
    text = str(value or "").strip()
    split = split_in(text)
    if text and split is None:
        raise DatasetError(f"{where}: unknown split {text.lower()!r:.60}: use one of {', '.join(SPLIT_NAMES)}")
    return split


def split_option(columns: Columns) -> str:
    """Return the option that takes a column of splits besides those that are read, with {} for its name."""
    return "--columns " + ",".join(f"{name}={theirs}" for name, theirs in {**columns, "split": "{}"}.items())


class SplitColumns:
    """Sees the columns of a list besides those that are read, and tells which of them say splits."""

    def __init__(self, are_read: Collection[str | None]) -> None:
        self._are_read = set(are_read)
        self._splits: dict[str, set[str]] = {}
        self._flags: dict[str, set[str]] = {}
        self._others: set[str] = set()

    def see(self, row: Mapping[Any, Any]) -> None:
        """Look at the cells of one more row, by the names of their columns."""
        for name, cell in row.items():
            if name in self._are_read or name in self._others or not isinstance(name, str):
                continue
            text = "" if cell is None or cell != cell else str(cell).strip()
            if not text:
                continue
            if (split := split_in(text)) is not None:
                self._splits.setdefault(name, set()).add(split)
            elif text.lower() in _FLAGS and _is_flag_of_split(name):
                self._flags.setdefault(name, set()).add(text)
            elif not is_of_splits(name):  # one that is called so may say `unused` of some pictures
                self._others.add(name)

    def notices(self, option: str) -> list[str]:
        """Return what is to be said of columns that say splits; `option` is how to take one, with {} for its name."""
        said = [
            f"the column {name!r} says {', '.join(sorted(splits))}, and is not read: for splits give "
            + option.format(name)
            for name, splits in self._splits.items()
            if len(splits) > 1 and name not in self._others | self._flags.keys()
        ]
        said += [
            f"the column {name!r} says which pictures are of a split, and is not read: for splits write train, val or "
            "test of each into a column `split`"
            for name, values in self._flags.items()
            if len(values) > 1 and name not in self._others | self._splits.keys()
        ]
        return said


def _is_flag_of_split(name: str) -> bool:
    """Tell whether a column is called as one that says yes or no for a split: `is_valid`, `train`."""
    found = worded_split(name)
    return found is not None and set(found[1]) <= {"is"}
