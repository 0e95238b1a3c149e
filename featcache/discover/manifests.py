"""A CSV or Parquet file that lists pictures enters; the dataset it describes leaves."""

from __future__ import annotations

import csv
import io
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TextIO

from featcache.discover.labels import Columns, Labels, check_path, one_split
from featcache.errors import DatasetError, DatasetNotFoundError
from featcache.records import Dataset, Item
from featcache.sheets import meant
from featcache.sources import exists
from featcache.sources.addresses import folder_of, joined
from featcache.sources.containers import opened
from featcache.sources.remote import LIST_SECONDS
from featcache.texts import LONGEST

MOST_COLUMNS, MOST_LINES = 10_000, 20_000_000

Row = tuple[str, str, str | None, str | None]
"""Where it stands, the path as it stands there, label and split."""


def csv_dataset(root: str, labelled: bool, columns: Columns) -> Dataset:
    """Return the dataset of a CSV with the columns `path,label[,split]`, or what they are called in `columns`."""
    try:
        with io.TextIOWrapper(opened(root), "utf-8-sig", errors="surrogateescape", newline="") as stream:
            labels = Labels()
            items = tuple(listed(root, _rows(root, stream, labelled, columns, labels)))
            return Dataset(root, items, tuple(labels.notices()))
    except csv.Error as error:
        raise DatasetError(f"{root} is not a readable CSV file: {error}") from error


def listed(root: str, rows: Iterable[Row], folder: str | None = None) -> Iterator[Item]:
    """Yield the pictures that a manifest lists, each once; raises `DatasetError` where it contradicts itself.

    Paths are relative to its folder, unless another `folder` is given.
    """
    seen: dict[str, tuple[str, Item]] = {}
    base = "the current folder" if folder else "the manifest"
    above = folder or folder_of(root)
    for where, path, label, split in rows:
        if not path:
            raise DatasetError(f"{root}, {where}: the path is empty")
        address = joined(above, check_path(path, f"{root}, {where}"))
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
