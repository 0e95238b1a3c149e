"""A folder without class folders and the lists beside its pictures enter; the dataset that they describe leaves."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from featcache.discover.folders import count, some
from featcache.discover.labels import Columns
from featcache.discover.manifests import LISTS, Finder, list_dataset
from featcache.discover.splitwords import exact_split, worded_split
from featcache.discover.trees import LocalTree, looks_like_picture
from featcache.errors import DatasetError
from featcache.records import Dataset, Item

LOOKED_AT = 20
"""So many lines of a file tell whether it lists the pictures beside it."""

MOST_BYTES = 2**16

LABELS = ("label", "labels", "class", "class_name", "classname", "category", "breed", "species", "target", "tag")
"""What the column of labels is called in lists that have more columns than two."""


def listed_beside(root: str, columns: Columns, labelled: bool) -> Dataset | None:
    """Return the dataset of a folder by the lists beside its pictures, `None` of one with class folders or no list.

    The pictures lie in the folder itself, or flat in folders in it. Raises `DatasetError` for a list of them whose form
    is not known, and for several of which it is not clear how they belong together.
    """
    tree = LocalTree(root)
    folders, files = tree.listing(root)
    flat = [(name, tree.listing(path)) for name, path in folders]
    if any(next(tree.files(path), None) for _, (below, _) in flat for _, path in below):
        return None
    pictures = [address for _, address in files if looks_like_picture(address)]
    pictures += [address for _, (_, inside) in flat for _, address in inside if looks_like_picture(address)]
    if not pictures:
        return None
    in_splits = [(exact_split(name), address) for name, (_, inside) in flat for _, address in inside]
    of_splits = [(split, address) for split, address in in_splits if split and _stem(address) == "metadata"]
    at_top = [(None, address) for _, address in files if "submission" not in _stem(address)]
    finder = Finder(root, pictures)
    found: list[tuple[str | None, str, Columns]] = []
    for split, address in [*at_top, *of_splits]:
        known = _columns(address, finder if split is None else Finder(os.path.dirname(address), pictures), columns)  # noqa: PTH120
        if known is not None:
            found.append((split, address, known))
    if not found:
        return None
    if len(found) > 1 and any(split is None for split, _, _ in found):
        words = [worded_split(Path(address).stem) for _, address, _ in found]
        if None in words or len({word[0] for word in words if word}) < len(found):
            raise DatasetError(
                f"{root} has several lists of its pictures ({some([os.path.basename(a) for _, a, _ in found])}): name "  # noqa: PTH119
                "the one that counts as SOURCE"
            )
        found = [(word[0], address, known) for word, (_, address, known) in zip(words, found, strict=True) if word]
    parts = [(split, list_dataset(address, labelled, known, finder)) for split, address, known in found]
    items = [replace(item, split=item.split or split) for split, part in parts for item in part.items]
    said = [
        f"labels from {os.path.relpath(address, root)}"
        + (f", columns {', '.join(f'{name}={theirs}' for name, theirs in known.items())}" if known else "")
        for _, address, known in found
    ]
    notices = [*said, *_left_out(root, pictures, items), *(notice for _, part in parts for notice in part.notices)]
    return Dataset(root, tuple(items), tuple(notices), skipped=tree.skipped)


def _stem(address: str) -> str:
    return Path(address).stem.lower()


def _left_out(root: str, pictures: Sequence[str], items: Sequence[Item]) -> list[str]:
    listed = {item.path for item in items}
    others = [os.path.relpath(address, root) for address in pictures if address not in listed]
    return [f"{count(others, 'picture')} in no list left out: {some(others)}"] if others else []


def _columns(address: str, finder: Finder, columns: Columns) -> Columns | None:
    """Return what the columns of a list are called, of one without a first line of names nothing; else `None`.

    Only files that name pictures beside them are lists. Raises `DatasetError` where the label in one cannot be told.
    """
    suffix = Path(address).suffix.lower()
    if suffix not in (*LISTS, ".json", ".xml"):
        return None
    try:
        with open(address, "rb") as file:
            text = file.read(MOST_BYTES).decode("utf-8-sig", errors="surrogateescape")
    except OSError:
        return None
    if suffix in (".json", ".xml"):
        if finder.is_named_in(text):
            raise _unknown(address, "it is no list of lines: make a CSV with the columns path,label of it")
        return None
    lines = text.splitlines(keepends=True)
    lines = lines[: -1 if len(text) == MOST_BYTES and len(lines) > 1 else None][: LOOKED_AT + 1]
    if suffix in (".jsonl", ".ndjson"):
        return _of_json(address, lines, finder, columns)
    if suffix not in (".csv", ".tsv"):
        return {} if any(finder.find(part[0]) for line in lines if (part := line.rsplit(None, 1))) else None
    try:
        rows = list(islice(csv.reader(io.StringIO("".join(lines)), delimiter=_separator(suffix)), LOOKED_AT + 1))
    except csv.Error:
        return None
    if len(rows) < 2 or not rows[0]:
        return {} if suffix == ".tsv" and rows and rows[0] and finder.find(rows[0][0]) else None
    if finder.find(rows[0][0]):
        if suffix == ".tsv":
            return {}
        raise _unknown(address, "its first line names no columns: write path,label above it")
    paths = [name for at, name in enumerate(rows[0]) if any(len(row) > at and finder.find(row[at]) for row in rows[1:])]
    return _chosen(address, rows[0], columns.get("path") or next(iter(paths), None), columns)


def _of_json(address: str, lines: Sequence[str], finder: Finder, columns: Columns) -> Columns | None:
    try:
        rows = [row for line in lines if line.strip() and isinstance(row := json.loads(line), dict)]
    except (ValueError, RecursionError):
        return None
    paths = [name for row in rows for name, value in row.items() if isinstance(value, str) and finder.find(value)]
    return _chosen(address, list(rows[0]) if rows else [], columns.get("path") or next(iter(paths), None), columns)


def _chosen(address: str, names: Sequence[str], path: str | None, columns: Columns) -> Columns | None:
    """Return the columns of path and label, and of split if there is one."""
    if path is None or len(names) < 2:
        return None
    others = [name for name in names if name not in (path, "split")]
    known = [name for name in others if name.lower() in LABELS]
    label = columns.get("label") or (known[0] if len(known) == 1 else others[0] if len(others) == 1 else None)
    if label is None:
        raise _unknown(
            address,
            f"which of its columns is the label is not clear ({some(others, 6)}): name it as SOURCE, with --columns "
            f"path={path},label=...",
        )
    return {"path": path, "label": label} | ({"split": columns["split"]} if "split" in columns else {})


def _separator(suffix: str) -> str:
    return "\t" if suffix == ".tsv" else ","


def _unknown(address: str, why: str) -> DatasetError:
    return DatasetError(f"{address} lists the pictures beside it in a form that is not read, {why}")
