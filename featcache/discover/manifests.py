"""A CSV or Parquet file that lists pictures enters; the dataset it describes leaves."""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, TextIO

from featcache.discover.labels import Columns, Labels, check_path, one_split
from featcache.discover.trees import LocalTree, looks_like_picture
from featcache.errors import DatasetError, DatasetNotFoundError
from featcache.records import Dataset, Item
from featcache.sheets import meant
from featcache.sources import exists
from featcache.sources.addresses import folder_of, is_remote, joined, scheme
from featcache.sources.containers import opened
from featcache.sources.remote import LIST_SECONDS
from featcache.texts import LONGEST

LONGEST_PATH = 4096
MOST_LOOKED_AT = 2_000_000
"""So many files below a list are looked through for the names in it."""

MOST_COLUMNS, MOST_LINES = 10_000, 20_000_000

Row = tuple[str, str, str | None, str | None]
"""Where it stands, the path as it stands there, label and split."""


LISTS = (".csv", ".tsv", ".txt", ".lst", ".jsonl", ".ndjson")
"""How the names of lists of pictures end."""

PATHS = ("path", "file_name", "filename", "file", "image", "img", "image_path", "filepath", "id", "image_id")
LABELS = ("label", "labels", "class", "category")
"""What path and label are called in the first line of a list with tabs, and in JSON lines."""


class Finder:
    """Finds pictures by names that are short of their folder or their ending, as lists of competitions have them."""

    def __init__(self, folder: str, pictures: Iterable[str] | None = None) -> None:
        self._folder = folder
        self._pictures = pictures
        self._by_name: dict[str, list[str]] | None = None
        self.example: tuple[str, str] | None = None

    def find(self, path: str) -> str | None:
        """Return the address of a picture, or `None`; raises `DatasetError` where two could be meant."""
        if not path or "\0" in path or len(path) > LONGEST_PATH:
            return None
        if scheme(path) is not None:
            return None
        direct = joined(self._folder, path)
        if os.path.isfile(direct):  # noqa: PTH113
            return direct
        if self._by_name is None:
            self._by_name = {}
            below = self._pictures if self._pictures is not None else LocalTree(self._folder).files(self._folder)
            for address in islice(below, MOST_LOOKED_AT):
                if looks_like_picture(address):
                    name = os.path.basename(address)  # noqa: PTH119
                    for key in {name, name.rpartition(".")[0]}:
                        self._by_name.setdefault(key, []).append(address)
        found = self._by_name.get(os.path.basename(path), [])  # noqa: PTH119
        folder = os.path.dirname(path)  # noqa: PTH120
        found = [address for address in found if os.path.dirname(address).endswith(f"/{folder}" if folder else "")]  # noqa: PTH120
        if len(found) > 1:
            raise DatasetError(f"{path!r} could be {found[0]} or {found[1]}: write the path below {self._folder}")
        if found and self.example is None:
            self.example = path, os.path.relpath(found[0], self._folder)
        return found[0] if found else None

    def is_named_in(self, text: str) -> bool:
        """Tell whether the name of one of the first pictures stands in a text."""
        return any(os.path.basename(address) in text for address in islice(self._pictures or (), 20))  # noqa: PTH119


def list_dataset(root: str, labelled: bool, columns: Columns, finder: Finder | None = None) -> Dataset:
    """Return the dataset of a list of pictures.

    That is a CSV with the columns `path,label[,split]`, or what they are called in `columns`; the same with tabs, or
    without a first line of names; lines of a path, a space and a label; or lines of JSON. Raises `DatasetError`.
    """
    suffix = os.path.splitext(root)[1].lower()  # noqa: PTH122
    finder = finder or (None if is_remote(root) else Finder(folder_of(root)))
    try:
        with io.TextIOWrapper(opened(root), "utf-8-sig", errors="surrogateescape", newline="") as stream:
            labels = Labels()
            if suffix == ".csv":
                rows = _rows(root, stream, labelled, columns, labels)
            else:
                rows = _other_rows(root, suffix, stream, columns, labels)
            items = tuple(listed(root, rows, finder=finder))
    except csv.Error as error:
        raise DatasetError(f"{root} is not a readable CSV file: {error}") from error
    said = []
    if finder and finder.example:
        said = [f"names without folder or ending are looked for below the list, as {' for '.join(finder.example)}"]
    return Dataset(root, items, (*said, *labels.notices()))


def _other_rows(root: str, suffix: str, stream: TextIO, columns: Columns, labels: Labels) -> Iterator[Row]:
    """Yield the rows of a list that is no CSV; raises `DatasetError` for a line of another form."""
    names: list[str] | None = None
    is_json = suffix in (".jsonl", ".ndjson")
    for number, line in enumerate(_lines(root, stream), 1):
        where, text = f"line {number}", line.strip("\r\n")
        said = f"{root}, {where}"
        if not text.strip():
            continue
        if is_json:
            row = _json_row(said, text)
        elif "\t" in text or suffix == ".tsv":
            fields = text.split("\t")
            if number == 1 and ("path" in columns or fields[0].lower() in PATHS):
                names = fields
                if len(set(names)) < len(names):
                    raise DatasetError(f"{said}: a column is there twice: name one anew")
                continue
            if len(fields) != len(names or ("path", "label")):
                raise DatasetError(f"{said}: it has {len(fields)} fields, and {len(names or (1, 2))} are expected")
            row = dict(zip(names or ("path", "label"), fields, strict=True))
        else:
            path, _, label = text.rstrip().rpartition(" ")
            if not path:
                raise DatasetError(f"{said}: {text!r:.60} is no path, a space or tab and a label: make a CSV of it")
            row = {"path": path.rstrip(), "label": label}
        path_name, label_name = (
            columns.get(name) or next((each for each in known if each in row), name)
            for name, known in (("path", PATHS), ("label", LABELS))
        )
        if not isinstance(row.get(path_name), str) or label_name not in row:
            missing = label_name if isinstance(row.get(path_name), str) else path_name
            raise DatasetError(
                f"{said}: there is no {missing!r}, but {', '.join(map(str, row))}: say what they are called with "
                "--columns path=...,label=..."
            )
        value = labels.read(row[label_name], said)
        yield where, row[path_name], value, one_split(row.get(columns.get("split", "split")), said)


def _json_row(said: str, text: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{said}: it is no JSON ({error}): one object a line is expected") from error
    if not isinstance(row, dict):
        raise DatasetError(f'{said}: it is no object, as {{"file_name": "a.jpg", "label": "cat"}} is')
    return row


def listed(root: str, rows: Iterable[Row], folder: str | None = None, finder: Finder | None = None) -> Iterator[Item]:
    """Yield the pictures that a manifest lists, each once; raises `DatasetError` where it contradicts itself.

    Paths are relative to its folder, unless another `folder` is given; others are left to a `finder`.
    """
    seen: dict[str, tuple[str, Item]] = {}
    base = "the current folder" if folder else "the manifest"
    above = folder or folder_of(root)
    for where, path, label, split in rows:
        if not path:
            raise DatasetError(f"{root}, {where}: the path is empty")
        address = joined(above, check_path(path, f"{root}, {where}"))
        if not exists(address) and finder is not None:
            address = finder.find(path) or address
        if not exists(address):
            raise DatasetNotFoundError(f"{root}, {where}: no such file: {path} (paths are relative to {base})")
        item = Item(address, label, split)
        first, known = seen.setdefault(address, (where, item))
        if known is item:
            yield item
        elif known != item:
            before, now = (f"{each.label or 'no label'}, {each.split or 'no split'}" for each in (known, item))
            raise DatasetError(
                f"{root}, {where}: {path} stands on {first} with another label or split ({before}; here {now}): "
                "keep one of them, since a picture has one label"
            )


def _lines(root: str, stream: TextIO) -> Iterator[str]:
    """Yield the lines of a manifest; one without end would be read into memory whole, and many such for ever."""
    end, lines = time.monotonic() + LIST_SECONDS, 0
    while line := stream.readline(LONGEST):
        if len(line) == LONGEST:
            raise DatasetError(f"{root} has a line of more than {LONGEST:,} characters: it is no list of pictures")
        lines += 1
        if lines > MOST_LINES or time.monotonic() > end:
            raise DatasetError(f"{root} has no end: after {lines:,} lines, and at most an hour, it is left")
        yield line


def _rows(root: str, stream: TextIO, labelled: bool, columns: Columns, labels: Labels) -> Iterator[Row]:
    rows = csv.DictReader(_lines(root, stream), strict=True)
    if len(rows.fieldnames or ()) > MOST_COLUMNS:
        raise DatasetError(f"{root} has {len(rows.fieldnames or ()):,} columns: it is no list of pictures")
    twice = [name for name, times in Counter(rows.fieldnames or ()).items() if times > 1 and name]
    if twice:
        raise DatasetError(
            f"{root}, line {rows.line_num}: the column {twice[0]!r} is there twice: name one of them anew"
        )
    path, label, split = (columns.get(name, name) for name in ("path", "label", "split"))
    needed = [path, *([label] if labelled or "label" in columns else []), *([split] if "split" in columns else [])]
    for name in needed:
        if name not in (rows.fieldnames or ()):
            found = ",".join(rows.fieldnames or ()) or "nothing"
            raise DatasetError(
                f"{root} has no column {name!r}: its first line must name the columns path,label[,split], and says "
                f"{found}; other names are given as --columns path=...,label=...,split=..."
            )
    for row in rows:
        where = f"line {rows.line_num}"
        said = f"{root}, {where}"
        if None in row:
            n, most = len(rows.fieldnames or ()) + len(row[None]), len(rows.fieldnames or ())
            raise DatasetError(
                f"{said}: it has {n} fields, and the first line {most}: put a field with a comma in it in double quotes"
            )
        cells = [meant(cell) if isinstance(cell := row.get(name), str) else cell for name in (path, label, split)]
        value = labels.read(cells[1], f"{said}, column {label!r}")
        yield where, cells[0] or "", value, one_split(cells[2], said)
