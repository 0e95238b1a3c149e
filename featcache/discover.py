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
_CACHE_TAG = "CACHEDIR.TAG"
"""Marks a folder as a cache by the convention of https://bford.info/cachedir/; ours may lie among the pictures."""


def discover(source: str | os.PathLike[str], *, labelled: bool = True) -> Dataset:
    """List the pictures of `source` in a stable order, without opening them.

    `source` is a folder (`class/*`, `train|val|test|holdout/class/*`, or flat), a `.csv` manifest with the
    columns `path,label[,split]` (paths relative to the manifest), or one picture. Every regular file counts as a
    picture until decoding says otherwise; hidden files and cache folders are skipped. With `labelled=False`
    a manifest may lack labels. Raises `DatasetNotFoundError` and `DatasetError`.
    """
    root = Path(os.path.abspath(source))  # noqa: PTH100 - resolve() would rename a dataset behind a symbolic link
    try:
        if root.is_dir():
            dataset = _folder(root)
        elif root.suffix.lower() == ".csv":
            dataset = _manifest(root, labelled)
        else:
            os.lstat(root)
            dataset = Dataset(str(root), (Item(str(root)),))
    except DatasetError:
        raise
    except PermissionError as error:
        raise DatasetError(f"not allowed to read {error.filename}: check its permissions") from error
    except FileNotFoundError as error:
        raise DatasetNotFoundError(f"no such folder, manifest or picture: {error.filename}") from error
    except OSError as error:
        raise DatasetError(f"cannot read {error.filename}: {error.strerror}") from error
    if not dataset.items:
        raise DatasetError(f"{source} holds no files: name a folder of pictures, or a manifest that lists some")
    return dataset


def is_skipped(name: str) -> bool:
    """Tell whether a file or folder of this name is passed over in every folder: hidden, or a system's litter."""
    return name.startswith(".") or name.lower() in _LITTER


def _folder(root: Path) -> Dataset:
    folders, files = _listing(str(root))
    above = (_identity(str(root)),)
    empty = [name for name, path in folders if next(_files(path, above), None) is None]
    folders = [(name, path) for name, path in folders if name not in empty]
    notices = [f"{_count(empty, 'empty folder')} left out: {_some(empty)}"] if empty else []
    if not folders:
        return Dataset(str(root), tuple(Item(path) for path in files), tuple(notices))
    if files:
        left_out = _some([Path(path).name for path in files])
        notices.append(f"{_count(files, 'file')} beside the class folders left out: {left_out}")
    if _are_splits(root, [name for name, _ in folders], notices):
        items = [item for name, path in folders for item in _split_items(name, path, notices)]
    else:
        items = [Item(file, name) for name, path in folders for file in _files(path, above)]
    return Dataset(str(root), tuple(items), tuple(notices))


def _are_splits(root: Path, names: list[str], notices: list[str]) -> bool:
    """Tell whether the folders are splits (or classes), and refuse a mixture that could be either."""
    splits = [name for name in names if name.lower() in SPLIT_NAMES]
    others = [name for name in names if name.lower() not in SPLIT_NAMES]
    if len(splits) > 1 and others:
        raise DatasetError(
            f"{root} mixes split folders ({_some(splits)}) with others ({_some(others)}): "
            "move the others out, or list the pictures in a CSV manifest"
        )
    if splits and others:
        notices.append(f"the folder {splits[0]!r} is taken as a class, because {others[0]!r} beside it is no split")
    return not others


def _split_items(name: str, folder: str, notices: list[str]) -> Iterator[Item]:
    split = SPLIT_NAMES[name.lower()]
    classes, loose = _listing(folder)
    for label, path in classes:
        for file in _files(path, (_identity(folder),)):
            yield Item(file, label, split)
    if loose and classes:
        notices.append(f"{_count(loose, 'file')} in {name}/ outside its class folders: taken without a label")
    for file in loose:
        yield Item(file, None, split)


def _files(folder: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """Yield the files of a folder and all below it, links followed; a link that loops counts as a file, unreadable."""
    here = _identity(folder)
    if here in above:
        yield folder
        return
    folders, files = _listing(folder)
    yield from files
    for _, path in folders:
        yield from _files(path, (*above, here))


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _listing(folder: str) -> tuple[list[tuple[str, str]], list[str]]:
    """Return the sub-folders (name, path) and the other entries (path) of a folder, each sorted by name."""
    folders, files = [], []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            if is_skipped(entry.name):
                continue
            # entry.is_dir() raises for a link that points at itself.
            if not (Path(entry.path).is_dir() if entry.is_symlink() else entry.is_dir()):
                files.append(entry.path)
            elif not os.path.exists(os.path.join(entry.path, _CACHE_TAG)):
                folders.append((entry.name, entry.path))
    return folders, files


def _manifest(path: Path, labelled: bool) -> Dataset:
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as stream:
            rows = csv.DictReader(stream, strict=True)
            needed = ["path", "label"] if labelled else ["path"]
            missing = [name for name in needed if name not in (rows.fieldnames or ())]
            if missing:
                found = ",".join(rows.fieldnames or ()) or "nothing"
                raise DatasetError(
                    f"{path} has no column {missing[0]!r}: its first line must name the columns path,label[,split], "
                    f"and says {found}"
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


def _count(things: Sequence[str], noun: str) -> str:
    return f"{len(things):,} {noun}{'' if len(things) == 1 else 's'}"


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
