"""The first lines of a list that may name pictures enter; what its columns are called leaves, or that it is none."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from featcache.discover.finder import PATHS, Finder, is_found, is_picture, names_of_unnamed
from featcache.discover.labels import Columns
from featcache.discover.levels import some
from featcache.discover.lines import TABS, dialect_of, is_separator, opened_text
from featcache.discover.manifests import LISTS, is_flag, path_and_label
from featcache.discover.splitwords import split_in
from featcache.discover.trees import looks_like_picture
from featcache.errors import DatasetError
from featcache.sources.addresses import name_of

LOOKED_AT = 20
"""So many lines of a file tell whether it lists the pictures beside it."""

MOST_BYTES = 2**16

LABELS = ("label", "labels", "class", "class_name", "classname", "category", "breed", "species", "target", "tag")
"""What the column of labels is called in lists that have more columns than two."""

_NO_LABELS = {"readme", "notes", "note", "license", "licence", "changelog", "partition", "bbox", "landmarks", "credits"}
"""Words in the names of texts in which something else than labels stands behind the names of pictures."""

Cells = Mapping[str, Sequence[str]]
"""What stands in the first rows, by the names of the columns."""


def may_list(name: str) -> bool:
    """Tell whether a file may list pictures by its name."""
    return Path(name).suffix.lower() in (*LISTS, ".json", ".xml")


def columns_of(address: str, finder: Finder, columns: Columns) -> Columns | None:
    """Return what the columns of a list are called, of one without a first line of names nothing; else `None`.

    Only files that name pictures beside them are lists. Raises `DatasetError` where the label in one cannot be told.
    """
    suffix = Path(name_of(address)).suffix.lower()
    words = set(Path(name_of(address)).stem.lower().replace("-", "_").split("_"))
    if not may_list(name_of(address)) or words & _NO_LABELS:
        return None
    try:
        with opened_text(address) as file:
            text = file.read(MOST_BYTES)
    except (DatasetError, UnicodeError):
        return None
    if suffix in (".json", ".xml"):
        if finder.is_named_in(text):
            raise _unknown(address, "it is no list of lines: make a CSV with the columns path,label of it")
        return None
    lines = text.splitlines(keepends=True)
    lines = lines[: -1 if len(text) == MOST_BYTES and len(lines) > 1 else None]
    lines = lines[1:] if lines and is_separator(lines[0]) else lines
    lines = lines[: LOOKED_AT + 1]
    if suffix in (".jsonl", ".ndjson"):
        return _of_json(address, lines, finder, columns)
    if suffix not in (".csv", ".tsv"):
        try:
            is_numbered = bool(lines) and "\t" in lines[0] and _is_numbered(lines[0], finder)
            return {} if is_numbered or _has_labels(lines, finder) else None
        except csv.Error:
            return None
    return _of_table(address, suffix, lines, finder, columns)


def _is_numbered(line: str, finder: Finder) -> bool:
    """Tell whether a line has a number, a path and a label between tabs, as MXNet's `.lst` do."""
    fields = next(csv.reader([line], **TABS._asdict()), [])
    return len(fields) == 3 and names_of_unnamed(fields, finder) is not None


def _has_labels(lines: Sequence[str], finder: Finder) -> bool:
    """Tell whether labels stand behind the paths in lines; several numbers are a box, or the like."""
    pairs = [(path, label) for path, label in _pairs(lines, finder) if label and is_found(finder, path)]
    are_boxes = all(len(label.split()) > 1 and all(map(_is_number, label.split())) for _, label in pairs)
    return bool(pairs) and not are_boxes


def _pairs(lines: Sequence[str], finder: Finder) -> Iterator[tuple[str, str]]:
    for line in lines:
        if line.strip():
            yield path_and_label(line.strip("\r\n"), finder)


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).replace("-", "", 1).isdecimal()


def _of_json(address: str, lines: Sequence[str], finder: Finder, columns: Columns) -> Columns | None:
    try:
        rows = [row for line in lines if line.strip() and isinstance(row := json.loads(line), dict)]
    except (ValueError, RecursionError):
        return None
    names = list(rows[0]) if rows else []
    cells = {name: [value for row in rows if isinstance(value := row.get(name), str)] for name in names}
    return _chosen(address, cells, columns.get("path") or _path_column(cells, finder), columns)


def first_paths(address: str, columns: Columns) -> list[str]:
    """Return what stands for the pictures in the first lines of a list that was found to be one."""
    with opened_text(address) as file:
        lines = file.read(MOST_BYTES).splitlines()[: LOOKED_AT + 1]
    suffix = Path(name_of(address)).suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        return [str(json.loads(line).get(columns.get("path", "path"))) for line in lines if line.strip()]
    if suffix not in (".csv", ".tsv") or not columns:
        return [re.split(r"[\s,;]", line.strip())[0] for line in lines if line.strip()]
    lines = lines[1:] if is_separator(lines[0]) else lines
    dialect = dialect_of(lines[0]) if suffix == ".csv" else TABS
    names, *rows = csv.reader(lines, **dialect._asdict())
    at = [name.strip() for name in names].index(columns["path"])
    return [row[at].strip() for row in rows if len(row) > at]


def _of_table(address: str, suffix: str, lines: Sequence[str], finder: Finder, columns: Columns) -> Columns | None:
    try:
        dialect = dialect_of(lines[0] if lines else "") if suffix == ".csv" else TABS
        rows = list(islice(csv.reader(io.StringIO("".join(lines)), **dialect._asdict()), LOOKED_AT + 1))
    except csv.Error:
        return None
    if len(rows) < 2 or not rows[0]:
        return {} if suffix == ".tsv" and rows and rows[0] and finder.find(rows[0][0]) else None
    if names_of_unnamed(rows[0], finder) is not None:
        return {}
    if is_picture(finder, rows[0][0]):
        raise _unknown(address, "its first line names no columns: write path,label above it")
    names = [name.strip() for name in rows[0]]
    cells = {name: [row[at].strip() for row in rows[1:] if len(row) > at] for at, name in enumerate(names)}
    path = columns.get("path") or _path_column(cells, finder)
    if path is not None and "label" not in columns and (flags := _of_classes(cells, path, columns, len(rows) - 1)):
        return {"path": path, "label": "+".join(flags)} | _split(columns)
    return _chosen(address, cells, path, columns)


def _of_classes(cells: Cells, path: str, columns: Columns, n_rows: int) -> list[str]:
    """Return the columns of which one is 1 in each row, or none, if there is nothing besides but path and split."""
    flags = [name for name in cells if name != path and len(cells[name]) == n_rows and all(map(is_flag, cells[name]))]
    others = cells.keys() - {path, "split", columns.get("split"), *flags}
    if (
        len(flags) < 2
        or any(name.lower() in LABELS for name in flags)
        or not all(_says_splits(cells[n]) for n in others)
    ):
        return []
    ones = [sum(cells[name][row].startswith("1") for name in flags) for row in range(n_rows)]
    return flags if max(ones) == 1 else []


def _says_splits(column: Sequence[str]) -> bool:
    return all(split_in(cell) or not cell for cell in column)


def _path_column(cells: Cells, finder: Finder) -> str | None:
    """Return the column whose cells find most pictures, one with whole names before others.

    Numbers, of classes or of rows, may be names of some pictures, too.
    """
    found = {name: len({cell for cell in column if is_found(finder, cell)}) for name, column in cells.items()}
    whole = {name: any(map(looks_like_picture, column)) for name, column in cells.items()}
    if any(whole.values()) and not any(found[name] for name in whole if whole[name]):  # and these are what is missing
        found = {name: 0 if all(map(str.isdecimal, cells[name])) else n for name, n in found.items()}
    most = max(found, key=lambda name: (found[name] > 0 and whole[name], found[name], _is_path(name)), default=None)
    return most if most is not None and found[most] else None


def _is_path(name: str) -> bool:
    return name.strip().lower() in PATHS


def _chosen(address: str, cells: Cells, path: str | None, columns: Columns) -> Columns | None:
    """Return the columns of path and label, and of split if there is one."""
    missing = next((cell for column in cells.values() for cell in column if looks_like_picture(cell)), None)
    if path is None and missing is not None:
        raise _unknown(
            address,
            f"and none of the pictures that it names is there, the first {missing!r:.200}: mend the paths in it, move "
            "it away, or say which column names them with --columns path=...,label=...",
        )
    if path is None or len(cells) < 2:
        return None
    others = [name for name in cells if name not in (path, "split", columns.get("split"))]
    if not others:
        return None
    known = [name for name in others if name.lower() in LABELS]
    possible = known or [name for name in others if not _says_splits(cells[name])]
    label = columns.get("label") or (possible[0] if len(possible) == 1 else others[0] if len(others) == 1 else None)
    if label is None:
        raise _unknown(
            address,
            f"which of its columns is the label is not clear ({some(others, 6)}): give --columns path={path},label=...",
        )
    return {"path": path, "label": label} | _split(columns)


def _split(columns: Columns) -> dict[str, str]:
    return {"split": columns["split"]} if "split" in columns else {}


def _unknown(address: str, why: str) -> DatasetError:
    return DatasetError(f"{address} lists the pictures beside it in a form that is not read, {why}")
