"""A tree of folders enters; a dataset whose labels and splits are the names of folders leaves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from featcache.discover.trees import NamesTree, Tree
from featcache.errors import DatasetError
from featcache.records import Dataset, Item
from featcache.texts import LONGEST_LABEL, flaw

SPLIT_NAMES = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "holdout": "holdout",
}
"""Folder and manifest names of a split -> the name used everywhere else."""


def folder_dataset(root: str, tree: Tree) -> Dataset:
    """Return the dataset named `root` whose folders are `class/*`, `train|val|test|holdout/class/*`, or none."""
    folders, files = tree.listing(tree.root)
    empty = [name for name, path in folders if next(tree.files(path), None) is None]
    folders = [(name, path) for name, path in folders if name not in empty]
    notices = [f"{count(empty, 'empty folder')} left out: {some(empty)}"] if empty else []
    if not folders:
        return Dataset(root, tuple(Item(address) for _, address in files), tuple(notices))
    if files:
        left_out = some([name for name, _ in files])
        notices.append(f"{count(files, 'file')} beside the class folders left out: {left_out}")
    if _are_splits(root, [name for name, _ in folders], notices):
        items = [item for name, path in folders for item in _split_items(root, name, path, tree, notices)]
    else:
        items = [item for name, path in folders for item in _class_items(root, name, path, tree)]
    return Dataset(root, tuple(items), tuple(notices))


def archive_dataset(root: str, tree: NamesTree, said: Sequence[str]) -> Dataset:
    """Return the dataset of an archive: as of a folder, but folders around all others are passed through.

    `said` is to be said of the archive besides.
    """
    inside: list[str] = []
    while True:
        folders, files = tree.listing(tree.root)
        if files or len(folders) != 1 or folders[0][0].lower() in SPLIT_NAMES or not tree.listing(folders[0][1])[0]:
            break
        tree.root = folders[0][1]
        inside = [f"the folder {tree.root!r}, which holds all others, is taken as the dataset"]
    dataset = folder_dataset(root, tree)
    return replace(dataset, notices=(*dataset.notices, *inside, *said))


def _are_splits(root: str, names: list[str], notices: list[str]) -> bool:
    """Tell whether the folders are splits (or classes), and refuse a mixture that could be either."""
    splits = [name for name in names if name.lower() in SPLIT_NAMES]
    others = [name for name in names if name.lower() not in SPLIT_NAMES]
    if len(splits) > 1 and others:
        raise DatasetError(
            f"{root} mixes split folders ({some(splits)}) with others ({some(others)}): "
            "move the others out, or list the pictures in a CSV manifest"
        )
    if splits and others:
        notices.append(f"the folder {splits[0]!r} is taken as a class, because {others[0]!r} beside it is no split")
    return not others


def _class_items(root: str, label: str, folder: str, tree: Tree, split: str | None = None) -> Iterator[Item]:
    if (said := flaw(label, LONGEST_LABEL)) is not None:
        raise DatasetError(f"{root}: the folder {label!r:.60} cannot be a label, {said}: rename it")
    for address in tree.files(folder):
        yield Item(address, label, split)


def _split_items(root: str, name: str, folder: str, tree: Tree, notices: list[str]) -> Iterator[Item]:
    split = SPLIT_NAMES[name.lower()]
    classes, loose = tree.listing(folder)
    for label, path in classes:
        yield from _class_items(root, label, path, tree, split)
    if loose and classes:
        notices.append(f"{count(loose, 'file')} in {name}/ outside its class folders: taken without a label")
    for _, address in loose:
        yield Item(address, None, split)


def count(things: Sequence[object], noun: str, plural: str | None = None) -> str:
    """Return how many things there are, in words."""
    return f"{len(things):,} {noun if len(things) == 1 else plural or noun + 's'}"


def some(names: Sequence[str], most: int = 3) -> str:
    """Return the first few names."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
