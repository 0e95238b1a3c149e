"""A tree of folders enters; a dataset whose labels and splits are the names of folders leaves."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from featcache.discover.labels import Labels
from featcache.discover.levels import (
    Folders,
    Level,
    be,
    count,
    drawn_beside,
    files_of_class,
    folder_expression,
    holds_pictures,
    how_to_give,
    is_called_beside,
    level_of,
    some,
    stem_drawn_of,
)
from featcache.discover.manifests import LISTS
from featcache.discover.splitlists import Lists, unused_lists, with_listed_splits
from featcache.discover.splitwords import exact_split, worded_split
from featcache.discover.toplevel import arrangement_of, through, without_copies, without_index
from featcache.discover.trees import Tree, looks_like_picture, may_be_picture
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
        named, found = _from_names(root, tree, label_from)
        return Dataset(root, named, (*found, *said), skipped=tree.skipped)
    if not labelled:
        return Dataset(root, tuple(Item(a) for a in tree.files(tree.root)), tuple(said), skipped=tree.skipped)
    inside: list[str] = []
    lists: list[tuple[str, str]] = []
    level = _enter(tree, inside, lists)
    notices = [*_left_out(tree, level)]
    folders, files = level.folders, level.files
    if not folders:
        pictures, others = _sorted_out(files)
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
    if files:
        left_out = some([name for name, _ in files])
        notices.append(f"{count(files, 'file')} beside the class folders left out: {left_out}")
    folders = without_index(tree, without_copies(root, tree, folders, notices), notices)
    arranged = arrangement_of(root, tree, folders, notices)
    items: list[Item] = []
    beside: list[str] = []
    for name, path in folders:
        if arranged.split_of:
            if name in arranged.split_of:
                items += _split_items(name, path, arranged.split_of[name], tree, notices, beside)
        elif arranged.are_splits_below:
            items += _class_items(name, path, tree, notices, beside)
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
    names = [tree.name(item.path) for item in items]
    notices += unused_lists(names, unread)
    if all(item.label is None for item in items):
        notices.append(_unlabelled(names))
    else:
        notices += _single(names, items)
        notices += _flat_splits(items)
        notices += [] if arranged.are_splits_below else _deeper(names, items)
    notices += _drawn(names)
    return Dataset(root, tuple(items), (*notices, *inside, *said), skipped=tree.skipped)


def _drawn(names: Sequence[str]) -> Iterator[str]:
    """Yield that files are called as masks of others, and are taken as pictures."""
    if drawn := drawn_beside(names):
        yield (
            f"{count(drawn, 'file')} called as another with _mask or the like behind it, as {drawn[0]}: taken as "
            "pictures too; if they are none, move them away, or list the pictures in a CSV manifest"
        )


def _enter(tree: Tree, inside: list[str], lists: list[tuple[str, str]]) -> Level:
    """Return what is in the root of the tree, or in a folder around all others, which becomes the root.

    That has folders in it, no picture beside it or directly in it, and is not called a split; or it is the only one
    with pictures and called `images` or the like. `lists` gets the texts on the way, those in folders of their own too.
    """
    while True:
        level = level_of(tree, tree.root)
        folders = dict(tree.listing(tree.root)[0])
        inner = [file for name in (*level.without, *level.beside) for file in tree.listing(folders[name])[1]]
        lists += [(name, address) for name, address in (*level.files, *inner) if _is_list(name)]
        if len(level.folders) != 1 or exact_split(level.folders[0][0]) or _has_picture(level.files):
            return level
        name, path = level.folders[0]
        below, kind = tree.glance(path)
        if not holds_pictures(name) and (not below or kind == "pictures"):
            return level
        beside = [*(each for each, _ in level.files), *(f"{each}/" for each in (*level.without, *level.beside))]
        said = f", beside it left out: {some(beside)}" if beside else ""
        inside[:] = [f"the folder {path!r}, which holds all pictures, is taken as the dataset{said}"]
        tree.root = path


def _is_list(name: str) -> bool:
    return f".{name.rpartition('.')[2].lower()}" in LISTS


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


def _split_items(
    name: str, folder: str, split: str, tree: Tree, notices: list[str], beside: list[str]
) -> Iterator[Item]:
    level = level_of(tree, through(name, folder, tree))
    beside += [f"{name}/{each}" for each in level.beside]
    if level.without:
        notices.append(f"in {name}/ {count(level.without, 'folder')} without pictures left out: {some(level.without)}")
    if len(level.folders) == 1 and holds_pictures(level.folders[0][0]) and not _has_picture(level.files):
        level = level_of(tree, level.folders[0][1])
    for label, path in without_index(tree, level.folders, notices):
        for address in files_of_class(tree, path, beside):
            yield Item(address, label, split)
    loose, others = _sorted_out(level.files)
    if others:
        notices.append(f"in {name}/ {count(others, 'file')} that {be(others)} no picture left out: {some(others)}")
    if loose and level.folders:
        notices.append(f"{count(loose, 'file')} in {name}/ outside its class folders: taken without a label")
    for _, address in loose:
        yield Item(address, None, split)


def _class_items(label: str, folder: str, tree: Tree, notices: list[str], beside: list[str]) -> Iterator[Item]:
    below, loose = tree.listing(folder)
    for name, path in below:
        found = worded_split(name)
        if found is None or found[1]:
            raise DatasetError(f"{label}/ holds splits, and {name!r}, which is none: move it out, or call it a split")
        for address in files_of_class(tree, path, beside):
            yield Item(address, label, found[0])
    if loose:
        notices.append(f"{count(loose, 'file')} in {label}/ outside its split folders left out")


def _from_names(root: str, tree: Tree, label_from: str) -> tuple[tuple[Item, ...], list[str]]:
    """Return the pictures with the labels, and perhaps splits, that an expression finds in their paths."""
    pattern = re.compile(label_from)
    tops = {name: worded_split(name) for name, path in tree.listing(tree.root)[0] if next(tree.files(path), None)}
    # Without splits of their own they have those that they have without the expression, or else of the folders at the
    # top, where all of these are plainly splits.
    known = _splits_without(root, tree) if "split" not in pattern.groupindex else {}
    of_folder = {name: found[0] for name, found in tops.items() if found is not None and not found[1]}
    of_folder = of_folder if len(of_folder) == len(tops) and "split" not in pattern.groupindex else {}
    labels = Labels()
    items: list[Item] = []
    without: list[str] = []
    names: list[str] = []
    copied, copies = _copies(root, tree)
    files, others = _sorted_out([(tree.name(address), address) for address in tree.files(tree.root)])
    if others:
        copies.append(f"{count(others, 'file')} that {be(others)} no picture left out: {some(others)}")
    for name, address in files:
        if copied and name.startswith(copied):
            continue
        names.append(name)
        match = pattern.search(name)
        label = labels.read(match["label" if "label" in pattern.groupindex else 1], name) if match else None
        split = known.get(address) or of_folder.get(name.partition("/")[0])
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
    said = [f"{len(without):,} of {len(items):,} without a label: --label-from finds none in {some(without)}"]
    masks = _masks(names, items)
    left_out = [f"{count([*masks], 'file')} left out, in folders for masks or the like: {some(sorted(masks))}"]
    kept = (item for name, item in zip(names, items, strict=True) if name not in masks)
    return tuple(kept), [
        *labels.notices(),
        *(said if without else []),
        *(left_out if masks else []),
        *copies,
        *_drawn(names),
    ]


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


def _copies(root: str, tree: Tree) -> tuple[str, list[str]]:
    """Return the folder that holds those beside it once more, and what is to be said of it; empty where none does."""
    top, notices = tree.root, list[str]()
    try:
        folders = _enter(tree, [], []).folders
        kept = without_copies(root, tree, folders, notices)
        left = [path for _, path in folders if path not in dict(kept).values()]
        return (tree.folder_name(left[0]) + "/", notices) if left else ("", [])
    except DatasetError:  # they hold other files, too
        return "", []
    finally:
        tree.root = top


def _masks(names: Sequence[str], items: Sequence[Item]) -> set[str]:
    """Return the files in folders for masks that are called as a picture elsewhere, and so got its label too."""
    is_beside = [any(map(is_called_beside, name.split("/")[:-1])) for name in names]
    if not any(is_beside):
        return set()
    called = [(stem_drawn_of(name), item.label) for name, item in zip(names, items, strict=True)]
    pictures = {key for key, beside in zip(called, is_beside, strict=True) if not beside}
    return {name for name, key, beside in zip(names, called, is_beside, strict=True) if beside and key in pictures}


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
    if "" in below or len(below) <= len(inner) or len(places) > 1:
        return
    is_plain = len(set(below)) == len(below) and not any("/" in folder for folder in below)
    found = "([^/]+)" if is_plain else f"^{'[^/]+/' * places.pop()}(.+)"  # with the class, where they are called alike
    label, folders = max(inner.items(), key=lambda each: len(each[1]))
    yield (
        f"the classes hold folders ({some([f'{label}/{name}' for name in sorted(folders)])}), {len(below):,} in all: "
        f"for these as the classes give --label-from '{found}/[^/]+$'"
    )


def _sorted_out(files: Folders) -> tuple[Folders, list[str]]:
    """Return the files that may be pictures, and the names of others; all of them where nothing looks like one."""
    if not _has_picture(files):
        return files, []
    kept = [(name, address) for name, address in files if may_be_picture(name)]
    return kept, [name for name, _ in files if not may_be_picture(name)]


def _has_picture(files: Iterable[tuple[str, str]]) -> bool:
    return any(looks_like_picture(name) for name, _ in files)
