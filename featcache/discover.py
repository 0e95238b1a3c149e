"""A folder, a CSV manifest or one picture enters; a `Dataset` of ordered items (path, label, split) leaves."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from featcache.errors import DatasetError, DatasetNotFoundError
from featcache.records import Dataset, Item

SPLIT_NAMES = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "holdout": "holdout",
}
"""Folder and manifest names of a split -> the name used everywhere else."""

_LITTER = {"thumbs.db", "desktop.ini", "__macosx"}


def discover(source: str | os.PathLike[str], *, labelled: bool = True) -> Dataset:
    """List the pictures of `source` in a stable order, without opening them.

    `source` is a folder (`class/*`, `train|val|test|holdout/class/*`, or flat), a `.csv` manifest with the
    columns `path,label[,split]` (paths relative to the manifest), or one picture. Every regular file counts as a
    picture until decoding says otherwise; hidden files are skipped. With `labelled=False` a manifest may lack
    labels. Raises `DatasetNotFoundError` and `DatasetError`.
    """
    root = Path(os.path.abspath(source))  # noqa: PTH100 - resolve() would rename a dataset behind a symbolic link
    try:
        if root.is_dir():
            dataset = _folder(root)
        elif not os.path.lexists(root):
            raise DatasetNotFoundError(f"no such folder, manifest or picture: {source}")
        elif root.suffix.lower() == ".csv":
            dataset = _manifest(root, labelled)
        else:
            dataset = Dataset(str(root), (Item(str(root)),))
    except PermissionError as error:
        raise DatasetError(f"not allowed to read {error.filename}: check its permissions") from error
    if not dataset.items:
        raise DatasetError(f"{source} holds no files: expected pictures, or one folder of pictures a class")
    return dataset


def _folder(root: Path) -> Dataset:
    folders, files = _listing(root)
    if not folders:
        return Dataset(str(root), tuple(Item(path) for path in files))
    named = [name for name, _ in folders if name.lower() in SPLIT_NAMES]
    others = [name for name, _ in folders if name.lower() not in SPLIT_NAMES]
    notices = []
    if files:
        notices.append(
            f"{_count(files, 'file')} beside the class folders left out: {_some(map(os.path.basename, files))}"
        )
    if len(named) > 1 and others:
        raise DatasetError(
            f"{root} mixes split folders ({_some(named)}) with others ({_some(others)}): "
            "move the others out, or list the pictures in a CSV manifest"
        )
    items: list[Item] = []
    if others or not named:
        if named:
            notices.append(f"the folder {named[0]!r} is taken as a class, because {others[0]!r} beside it is no split")
        for name, path in folders:
            items += _class_items(path, name, None)
        return Dataset(str(root), tuple(items), tuple(notices))
    for name, path in folders:
        split = SPLIT_NAMES[name.lower()]
        classes, loose = _listing(Path(path))
        for label, folder in classes:
            items += _class_items(folder, label, split)
        items += [Item(file, None, split) for file in loose]
        if loose and classes:
            notices.append(f"{_count(loose, 'file')} in {name}/ outside its class folders: taken without a label")
    return Dataset(str(root), tuple(items), tuple(notices))


def _class_items(folder: str, label: str, split: str | None) -> Iterator[Item]:
    for directory, names, files in os.walk(folder, onerror=_raise):
        names[:] = sorted(name for name in names if not _is_litter(name))
        for file in sorted(files):
            path = os.path.join(directory, file)
            if not _is_litter(file):
                yield Item(path, label, split)


def _listing(folder: Path) -> tuple[list[tuple[str, str]], list[str]]:
    """Return the sub-folders (name, path) and the other entries (path) of a folder, each sorted by name."""
    folders, files = [], []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            if _is_litter(entry.name):
                continue
            if entry.is_dir():
                folders.append((entry.name, entry.path))
            else:
                files.append(entry.path)
    return folders, files


def _manifest(path: Path, labelled: bool) -> Dataset:
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as stream:
            rows = csv.DictReader(stream, strict=True)
            needed = ["path", "label"] if labelled else ["path"]
            missing = [name for name in needed if name not in (rows.fieldnames or ())]
            if missing:
                raise DatasetError(
                    f"{path} has no column {missing[0]!r}: its first line must name the columns path,label[,split]"
                )
            return Dataset(str(path), tuple(_manifest_items(path, rows)))
    except csv.Error as error:
        raise DatasetError(f"{path} is not a readable CSV file: {error}") from error


def _manifest_items(path: Path, rows: csv.DictReader[str]) -> Iterator[Item]:
    seen: dict[str, tuple[int, Item]] = {}
    for row in rows:
        where = f"{path}, line {rows.line_num}"
        if not row["path"]:
            raise DatasetError(f"{where}: the path is empty")
        file = os.path.normpath(path.parent / row["path"])
        if not os.path.exists(file):
            raise DatasetNotFoundError(f"{where}: no such file: {row['path']} (paths are relative to the manifest)")
        split = (row.get("split") or "").strip().lower()
        if split and split not in SPLIT_NAMES:
            raise DatasetError(f"{where}: unknown split {split!r}: use one of {', '.join(SPLIT_NAMES)}")
        item = Item(file, (row.get("label") or "").strip() or None, SPLIT_NAMES.get(split))
        line, known = seen.setdefault(file, (rows.line_num, item))
        if known is item:
            yield item
        elif known != item:
            raise DatasetError(
                f"{where}: {row['path']} stands on line {line} with another label or split: keep one of them"
            )


def _is_litter(name: str) -> bool:
    return name.startswith(".") or name.lower() in _LITTER


def _raise(error: OSError) -> None:
    raise error


def _count(things: Sequence[str], noun: str) -> str:
    return f"{len(things):,} {noun}{'' if len(things) == 1 else 's'}"


def _some(names: Iterator[str] | Sequence[str], most: int = 3) -> str:
    listed = list(names)
    return ", ".join(listed[:most]) + (", ..." if len(listed) > most else "")
