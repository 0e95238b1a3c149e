"""A tree of folders enters; a dataset whose labels and splits are the names of folders leaves."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from featcache.discover.levels import (
    Level,
    be,
    count,
    drawn_notices,
    files_of_class,
    folder_expression,
    how_to_give,
    some,
    sorted_out,
)
from featcache.discover.namelabels import from_names
from featcache.discover.splitfolders import split_items
from featcache.discover.splitlists import Lists, unused_lists, with_listed_splits
from featcache.discover.splitsbelow import splits_in
from featcache.discover.splitwords import split_folders
from featcache.discover.toplevel import arrangement_of, enter, without_copies, without_index
from featcache.discover.trees import Tree, may_be_picture
from featcache.errors import DatasetError
from featcache.records import Dataset, Item
from featcache.texts import LONGEST_LABEL, flaw

_STEM = re.compile(r"([^/\d]+?)[._ -]*\(?\d[^/]*$")
FROM_STEM = _STEM.pattern
"""What stands before the number in a file's name, as `cat` in `cat.0.jpg`."""


def folder_dataset(
    root: str, tree: Tree, said: Sequence[str] = (), label_from: str | None = None, labelled: bool = True
) -> Dataset:
    """Return the dataset named `root` whose folders are classes, splits of classes, classes of splits, or none.

    A folder around all others is passed through. `said` is to be said of the dataset besides. With `label_from` the
    labels are what this expression finds in the path of each file. Where nobody asks for labels, all files are taken.
    Raises `DatasetError` where folders could be either, and where nothing is found.
    """
    if label_from is not None:
        known = {} if "(?P<split>" in label_from else _splits_without(root, tree)
        named, found = from_names(root, tree, label_from, known)
        return Dataset(root, named, (*found, *said), skipped=tree.skipped)
    if not labelled:
        return Dataset(root, tuple(Item(a) for a in tree.files(tree.root)), tuple(said), skipped=tree.skipped)
    inside: list[str] = []
    lists: list[tuple[str, str]] = []
    level = enter(tree, inside, lists)
    notices = [*_left_out(tree, level)]
    folders, files = level.folders, level.files
    if not folders:
        pictures, others = sorted_out(files)
        if others:
            notices.append(f"{count(others, 'file')} that {be(others)} no picture left out: {some(others)}")
        names = [name for name, _ in pictures]
        if names and not any(map(may_be_picture, names)):
            raise DatasetError(f"{root} holds no pictures, but {some(names)}: {how_to_give(names)}")
        if (stems := _stems(names)) is not None:
            notices.append(f"no labels: {stems}")
        return Dataset(
            root, tuple(Item(address) for _, address in pictures), (*notices, *inside, *said), skipped=tree.skipped
        )
    before = len(notices)
    folders = without_index(tree, without_copies(root, tree, folders, notices), notices)
    arranged = arrangement_of(root, tree, folders, notices)
    items: list[Item] = []
    beside: list[str] = []
    if arranged.split_of:
        items += split_items(root, tree, folders, arranged.split_of, notices, beside)
    for name, path in folders if not arranged.split_of else ():
        if arranged.split_below:
            items += _class_items(name, path, arranged.split_below, tree, notices, beside)
        else:
            items += [Item(address, name) for address in files_of_class(tree, path, beside)]
    if beside:
        notices.append(
            f"{count(beside, 'folder')} left out, which hold masks or the like by their names: {some(beside)}"
        )
    for label in dict.fromkeys(item.label for item in items if item.label is not None):
        if (flawed := flaw(label, LONGEST_LABEL)) is not None:
            raise DatasetError(f"{root}: the folder {label!r:.60} cannot be a label, {flawed}: rename it")
    unread: Lists = lists
    if all(item.split is None for item in items):
        items, unread = with_listed_splits(tree, items, lists, notices)
    used = {address for _, address in lists} - {address for _, address in unread}
    if left := [name for name, address in files if address not in used]:
        notices.insert(before, f"{count(left, 'file')} beside the class folders left out: {some(left)}")
    names = [tree.name(item.path) for item in items]
    notices += unused_lists(names, unread)
    if all(item.label is None for item in items):
        notices.append(_unlabelled(names))
    else:
        notices += _single(names, items)
        notices += _flat_splits(items)
        notices += [] if arranged.split_below else _deeper(names, items)
    notices += drawn_notices(names)
    return Dataset(root, tuple(items), (*notices, *inside, *said), skipped=tree.skipped)


def _splits_without(root: str, tree: Tree) -> dict[str, str | None]:
    """Return the splits that pictures have by their folders where no expression is given, if all have some."""
    top = tree.root
    try:
        items = folder_dataset(root, tree).items
    except DatasetError:
        return {}
    finally:
        tree.root = top
    return {item.path: item.split for item in items} if all(item.split for item in items) else {}


def _left_out(tree: Tree, level: Level) -> Iterator[str]:
    if level.empty:
        yield f"{count(level.empty, 'empty folder')} left out: {some(level.empty)}"
    if level.without:
        yield f"{count(level.without, 'folder')} without pictures left out: {some(level.without)}"
    if level.beside:
        any_folder = tree.listing(tree.root)[0][0][1]
        yield (
            f"{some(level.beside)} left out: by its name it holds masks, labels or the like of the pictures beside it; "
            f"if it is a class, give --label-from '{folder_expression(tree, any_folder)}'"
        )


def _class_items(
    label: str, folder: str, split_of: Mapping[str, str], tree: Tree, notices: list[str], beside: list[str]
) -> Iterator[Item]:
    above = len(tree.folder_name(folder).strip("/").split("/"))
    loose: list[str] = []
    for address in files_of_class(tree, folder, beside):
        name = tree.name(address)
        found = splits_in(name.split("/")[above:-1], split_of)
        if len(found) == 1:
            yield Item(address, label, found.pop())
        else:
            loose.append(name)
    if loose:
        notices.append(f"{count(loose, 'file')} in {label}/ outside its split folders left out: {some(loose)}")


def _unlabelled(names: Sequence[str]) -> str:
    """Return that folders hold no classes, and what stands in the names of their files that could be labels."""
    said = "no labels: there is no folder for each class"
    stems = _stems(names)
    return said if stems is None else f"{said}; {stems}"


def _stems(names: Sequence[str]) -> str | None:
    """Return what to do where names of files begin with what may be labels, `None` where they do not."""
    found = Counter(match[1] for name in names if (match := _STEM.search(name)))
    stems = [stem for stem, times in found.most_common() if times > 1]
    if len(stems) < 2 or sum(found.values()) * 2 <= len(names):
        return None
    return f"if the names of the files begin with them, as {some(stems)} do, give --label-from '{FROM_STEM}'"


def _single(names: Sequence[str], items: Sequence[Item]) -> Iterator[str]:
    """Yield that there is one class alone, where what stands in the names of its files could be labels."""
    labels = {item.label for item in items if item.label is not None}
    if len(labels) == 1 and (stems := _stems(names)) is not None:
        yield f"there is one class alone, the folder {labels.pop()!r}; {stems}"


def _flat_splits(items: Sequence[Item]) -> Iterator[str]:
    """Yield which splits have no labels where others do."""
    labelled = {item.split for item in items if item.label is not None}
    for split, n in Counter(item.split for item in items if item.split not in labelled).items():
        yield f"the {n:,} pictures of {split} have no labels: there is no folder for each class"


def _deeper(names: Sequence[str], items: Sequence[Item]) -> Iterator[str]:
    """Yield that classes hold nothing but folders, several in some, which could be the classes in their place."""
    inner: dict[str, set[str]] = {}
    places: set[int] = set()
    for name, item in zip(names, items, strict=True):
        if item.label is not None:
            parts = name.split("/")
            at = parts.index(item.label) if item.label in parts else len(parts) - 2
            inner.setdefault(item.label, set()).add("/".join(parts[at + 1 : -1]))
            places.add(at)
    below = [folder for folders in inner.values() for folder in folders]
    if split_folders({part for folder in below for part in folder.split("/")}):
        return  # of these it is said that they are no splits
    if "" in below or len(below) <= len(inner) or len(places) > 1:
        return
    is_plain = len(set(below)) == len(below) and not any("/" in folder for folder in below)
    found = "([^/]+)" if is_plain else f"^{'[^/]+/' * places.pop()}(.+)"  # with the class, where they are called alike
    label, folders = max(inner.items(), key=lambda each: len(each[1]))
    yield (
        f"the classes hold folders ({some([f'{label}/{name}' for name in sorted(folders)])}), {len(below):,} in all: "
        f"for these as the classes give --label-from '{found}/[^/]+$'"
    )
