"""A tree of folders enters; a dataset whose labels and splits are the names of folders leaves."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from featcache.discover.labels import Labels
from featcache.discover.splitwords import exact_split, worded_split
from featcache.discover.trees import Tree, looks_like_picture
from featcache.errors import DatasetError
from featcache.records import Dataset, Item
from featcache.texts import LONGEST_LABEL, flaw

_STEM = re.compile(r"([^/\d]+?)[._ -]*\(?\d[^/]*$")
FROM_STEM = _STEM.pattern
"""What stands before the number in a file's name, as `cat` in `cat.0.jpg`."""

Folders = list[tuple[str, str]]
"""Name and path of each."""


class _Layout(NamedTuple):
    """What the folders at the top are: the split of each, or the class with the splits below it, or only the class."""

    split_of: dict[str, str] | None = None
    are_splits_below: bool = False


def folder_dataset(root: str, tree: Tree, said: Sequence[str] = (), label_from: str | None = None) -> Dataset:
    """Return the dataset named `root` whose folders are classes, splits of classes, classes of splits, or none.

    A folder around all others is passed through. `said` is to be said of the dataset besides. With `label_from` the
    labels are what this expression finds in the path of each file. Raises `DatasetError` where folders could be either,
    and where nothing is found.
    """
    if label_from is not None:
        labelled, found = _from_names(root, tree, label_from)
        return Dataset(root, labelled, (*found, *said), skipped=tree.skipped)
    inside: list[str] = []
    folders, files, empty = _enter(tree, inside)
    notices = [f"{count(empty, 'empty folder')} left out: {some(empty)}"] if empty else []
    if not folders:
        return Dataset(
            root, tuple(Item(address) for _, address in files), (*notices, *inside, *said), skipped=tree.skipped
        )
    if files:
        left_out = some([name for name, _ in files])
        notices.append(f"{count(files, 'file')} beside the class folders left out: {left_out}")
    layout = _layout(root, tree, folders, notices)
    items: list[Item] = []
    for name, path in folders:
        if layout.split_of:
            items += _split_items(name, path, layout.split_of[name], tree, notices)
        elif layout.are_splits_below:
            items += _class_items(name, path, tree, notices)
        else:
            items += [Item(address, name) for address in tree.files(path)]
    for label in dict.fromkeys(item.label for item in items if item.label is not None):
        if (flawed := flaw(label, LONGEST_LABEL)) is not None:
            raise DatasetError(f"{root}: the folder {label!r:.60} cannot be a label, {flawed}: rename it")
    if all(item.label is None for item in items):
        notices += _unlabelled([tree.name(item.path) for item in items])
    return Dataset(root, tuple(items), (*notices, *inside, *said), skipped=tree.skipped)


def _enter(tree: Tree, inside: list[str]) -> tuple[Folders, Folders, list[str]]:
    """Return the folders with files in them, the files and the empty folders of the tree, or of a folder around all.

    That has folders in it, no picture beside it or directly in it, and is not called a split.
    """
    while True:
        folders, files = tree.listing(tree.root)
        filled = [(name, path) for name, path in folders if next(tree.files(path), None) is not None]
        empty = [name for name, path in folders if (name, path) not in filled]
        if len(filled) != 1 or exact_split(filled[0][0]) or _has_picture(files):
            return filled, files, empty
        path = filled[0][1]
        below, loose = tree.listing(path)
        if not below or _has_picture(loose):
            return filled, files, empty
        beside = f", {count(files, 'file')} beside it left out: {some([each for each, _ in files])}" if files else ""
        inside[:] = [f"the folder {path!r}, which holds all others, is taken as the dataset{beside}"]
        tree.root = path


def _layout(root: str, tree: Tree, folders: Folders, notices: list[str]) -> _Layout:
    """Tell what the folders at the top are, by their names and by what is below them; what is not plain is said.

    Raises `DatasetError` for a mixture that could be either.
    """
    names = [name for name, _ in folders]
    exact = {name: split for name in names if (split := exact_split(name))}
    if len(exact) == len(names):
        return _Layout(exact)
    worded = {name: found for name in names if (found := worded_split(name))}
    splits = {name: split for name, (split, _) in worded.items()}
    are_alike = len(worded) == len(names) > 1 and len({rest for _, rest in worded.values()}) == 1
    same = _same_below(tree, folders)
    if are_alike or (same and len(worded) == len(names)):
        notices.append(f"the folders are taken as splits: {some([f'{n} as {s}' for n, s in splits.items()], 6)}")
        return _Layout(splits)
    others = [name for name in names if name not in exact]
    if len(exact) > 1:
        raise DatasetError(
            f"{root} mixes split folders ({some(list(exact))}) with others ({some(others)}): "
            "move the others out, or list the pictures in a CSV manifest"
        )
    if same:
        below = {name: found for name in same if (found := worded_split(name)) and not found[1]}
        if len(below) == len(same) and len({split for split, _ in below.values()}) > 1:
            notices.append(f"{some(names)}: taken as classes, and the folders in each ({some(same)}) as splits")
            return _Layout(are_splits_below=True)
        raise DatasetError(
            f"all folders of {root} ({some(names)}) hold the same sub-folders ({some(same)}), so they look like splits "
            "or folds, and their names do not say which: call them train, val or test; or, if the sub-folders are the "
            "classes and there is no split, give --label-from '^[^/]+/([^/]+)/', and if the folders are the classes, "
            "--label-from '^([^/]+)/'"
        )
    if exact:
        (name,) = exact
        notices.append(f"the folder {name!r} is taken as a class, because {others[0]!r} beside it is no split")
    elif len(worded) == len(names):
        notices.append(f"the folders {some(names)} are taken as classes, since what is in them is not alike")
    return _Layout()


def _same_below(tree: Tree, folders: Folders) -> list[str]:
    """Return the sub-folders that all of several folders have in common, if those are at least two and most of all."""
    shared: set[str] = set()
    union: set[str] = set()
    for at, (name, path) in enumerate(folders):
        below, loose = tree.listing(_through(name, path, tree))
        found = {each for each, _ in below}
        shared, union = shared & found if at else found, union | found
        if len(shared) < 2 or _has_picture(loose):
            return []
    return sorted(shared) if len(folders) > 1 and 2 * len(shared) >= len(union) else []


def _through(name: str, path: str, tree: Tree) -> str:
    """Return the folder below a split that holds all that is in it and is called like it, or the folder itself."""
    split = worded_split(name)
    while True:
        below, loose = tree.listing(path)
        if len(below) != 1 or _has_picture(loose):
            return path
        inner, there = below[0]
        found = worded_split(inner)
        is_same = inner.lower() == name.lower() or (split and found and found[0] == split[0] and not found[1])
        if not is_same:
            return path
        path = there


def _split_items(name: str, folder: str, split: str, tree: Tree, notices: list[str]) -> Iterator[Item]:
    classes, loose = tree.listing(_through(name, folder, tree))
    for label, path in classes:
        for address in tree.files(path):
            yield Item(address, label, split)
    if loose and classes:
        notices.append(f"{count(loose, 'file')} in {name}/ outside its class folders: taken without a label")
    for _, address in loose:
        yield Item(address, None, split)


def _class_items(label: str, folder: str, tree: Tree, notices: list[str]) -> Iterator[Item]:
    below, loose = tree.listing(folder)
    for name, path in below:
        found = worded_split(name)
        if found is None or found[1]:
            raise DatasetError(f"{label}/ holds splits, and {name!r}, which is none: move it out, or call it a split")
        for address in tree.files(path):
            yield Item(address, label, found[0])
    if loose:
        notices.append(f"{count(loose, 'file')} in {label}/ outside its split folders left out")


def _from_names(root: str, tree: Tree, label_from: str) -> tuple[tuple[Item, ...], list[str]]:
    """Return the pictures with the labels, and perhaps splits, that an expression finds in their paths."""
    pattern = re.compile(label_from)
    tops = {name: worded_split(name) for name, path in tree.listing(tree.root)[0] if next(tree.files(path), None)}
    # Without splits of their own they have those of the folders at the top, where all of these are plainly splits.
    of_folder = {name: found[0] for name, found in tops.items() if found is not None and not found[1]}
    of_folder = of_folder if len(of_folder) == len(tops) and "split" not in pattern.groupindex else {}
    labels = Labels()
    items: list[Item] = []
    without: list[str] = []
    for address in tree.files(tree.root):
        name = tree.name(address)
        match = pattern.search(name)
        label = labels.read(match["label" if "label" in pattern.groupindex else 1], name) if match else None
        split = of_folder.get(name.partition("/")[0])
        if match and "split" in pattern.groupindex:
            found = worded_split(match["split"] or "")
            if found is None:
                raise DatasetError(f"{root}: --label-from finds the split {match['split']!r} in {name}, which is none")
            split = found[0]
        if label is None:
            without.append(name)
        items.append(Item(address, label, split))
    if items and len(without) == len(items):
        raise DatasetError(f"{root}: --label-from {label_from!r} finds nothing in any path, as {some(without)}")
    said = f"{len(without):,} of {len(items):,} without a label: --label-from finds none in {some(without)}"
    return tuple(items), [*labels.notices(), *([said] if without else [])]


def _unlabelled(names: Sequence[str]) -> Iterator[str]:
    """Yield that folders hold no classes, and what stands in the names of their files that could be labels."""
    found = Counter(match[1] for name in names if (match := _STEM.search(name)))
    stems = [stem for stem, times in found.most_common() if times > 1]
    said = "no labels: there is no folder for each class"
    if len(stems) > 1 and sum(found.values()) * 2 > len(names):
        said += f"; if the names of the files begin with them, as {some(stems)} do, give --label-from '{FROM_STEM}'"
    yield said


def _has_picture(files: Iterable[tuple[str, str]]) -> bool:
    return any(looks_like_picture(name) for name, _ in files)


def count(things: Sequence[object], noun: str, plural: str | None = None) -> str:
    """Return how many things there are, in words."""
    return f"{len(things):,} {noun if len(things) == 1 else plural or noun + 's'}"


def some(names: Sequence[str], most: int = 3) -> str:
    """Return the first few names."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
