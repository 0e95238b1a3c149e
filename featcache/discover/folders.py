"""A tree of folders enters; a dataset whose labels and splits are the names of folders leaves."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from featcache.discover.labels import Labels
from featcache.discover.levels import (
    Folders,
    Level,
    classes_in,
    drawn_beside,
    files_of_class,
    holds_pictures,
    how_to_give,
    level_of,
)
from featcache.discover.splitwords import exact_split, is_put_aside, worded_split
from featcache.discover.trees import NamesTree, Tree, looks_like_picture, may_be_picture
from featcache.errors import DatasetError
from featcache.records import Dataset, Item
from featcache.texts import LONGEST_LABEL, flaw

_STEM = re.compile(r"([^/\d]+?)[._ -]*\(?\d[^/]*$")
FROM_STEM = _STEM.pattern
"""What stands before the number in a file's name, as `cat` in `cat.0.jpg`."""


class _Layout(NamedTuple):
    """What the folders at the top are: the split of each, or the class with the splits below it, or only the class."""

    split_of: dict[str, str] | None = None
    are_splits_below: bool = False


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
    level = _enter(tree, inside)
    notices = [*_left_out(level)]
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
    folders = _without_copies(root, tree, folders, notices)
    layout = _layout(root, tree, folders, notices)
    items: list[Item] = []
    beside: list[str] = []
    for name, path in folders:
        if layout.split_of:
            if name in layout.split_of:
                items += _split_items(name, path, layout.split_of[name], tree, notices, beside)
        elif layout.are_splits_below:
            items += _class_items(name, path, tree, notices)
        else:
            items += [Item(address, name) for address in files_of_class(tree, path, beside)]
    if beside:
        notices.append(
            f"{count(beside, 'folder')} left out, which hold masks or the like by their names: {some(beside)}"
        )
    for label in dict.fromkeys(item.label for item in items if item.label is not None):
        if (flawed := flaw(label, LONGEST_LABEL)) is not None:
            raise DatasetError(f"{root}: the folder {label!r:.60} cannot be a label, {flawed}: rename it")
    names = [tree.name(item.path) for item in items]
    if all(item.label is None for item in items):
        notices.append(_unlabelled(names))
    else:
        notices += _flat_splits(items)
        notices += [] if layout.are_splits_below else _deeper(names, items)
    if drawn := drawn_beside(names):
        notices.append(
            f"{count(drawn, 'file')} called as another with _mask or the like behind it, as {drawn[0]}: taken as "
            "pictures too; if they are none, move them away, or list the pictures in a CSV manifest"
        )
    return Dataset(root, tuple(items), (*notices, *inside, *said), skipped=tree.skipped)


def _enter(tree: Tree, inside: list[str]) -> Level:
    """Return what is in the root of the tree, or in a folder around all others, which becomes the root.

    That has folders in it, no picture beside it or directly in it, and is not called a split; or it is the only one
    with pictures and called `images` or the like.
    """
    while True:
        level = level_of(tree, tree.root)
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


def _left_out(level: Level) -> Iterator[str]:
    if level.empty:
        yield f"{count(level.empty, 'empty folder')} left out: {some(level.empty)}"
    if level.without:
        yield f"{count(level.without, 'folder')} without pictures left out: {some(level.without)}"
    if level.beside:
        yield (
            f"{some(level.beside)} left out: by its name it holds masks, labels or the like of the pictures beside it; "
            "if it is a class, give --label-from '^([^/]+)/'"
        )


def _without_copies(root: str, tree: Tree, folders: Folders, notices: list[str]) -> Folders:
    """Return the folders without one that holds the others once more, as some archives do.

    Raises `DatasetError` where one holds folders that are called like those beside it, with other files.
    """
    if len(folders) < 3:
        return folders
    paths = dict(folders)
    for name, path in folders:
        below, kind = tree.glance(path)
        if len(below) < 2 or kind or any(each == name or each not in paths for each, _ in below):
            continue
        for each, inner in below:
            there = {_name_below(tree, address, paths[each]) for address in tree.files(paths[each])}
            other = next((a for a in tree.files(inner) if _name_below(tree, a, inner) not in there), None)
            if other is not None:
                raise DatasetError(
                    f"{root} has the folder {each!r} twice, at the top and in {name!r}, which has {tree.name(other)} "
                    f"besides: name {name!r} or what lies beside it as SOURCE, each alone, or put them together"
                )
        names = some([each for each, _ in below])
        notices.append(f"{name}/ left out, which holds the folders beside it once more ({names}), with the same files")
        return [each for each in folders if each[0] != name]
    return folders


def _name_below(tree: Tree, address: str, folder: str) -> str:
    """Return the path of a file below a folder of the tree."""
    whole = tree.name(address)
    above = folder if isinstance(tree, NamesTree) else tree.name(folder)
    return whole.removeprefix(above).lstrip("/")


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
    among = _splits_among(tree, folders, worded)
    others = [name for name in names if name not in (among or exact)]
    if among and all(
        (name in worded or is_put_aside(name)) and not _has_classes(tree, name, path)
        for name, path in folders
        if name in others
    ):
        said = some([f"{name} as {split}" for name, split in among.items()], 6)
        notices.append(f"{said} taken as splits; {some(others)} left out, without class folders and no such split")
        return _Layout(among)
    if among or len(exact) > 1:
        raise DatasetError(
            f"{root} mixes split folders ({some(list(among or exact))}) with others ({some(others)}): "
            "move the others out, or list the pictures in a CSV manifest"
        )
    if same:
        below = {name: found for name in same if (found := worded_split(name)) and not found[1]}
        are_splits = len(below) == len(same) and len({split for split, _ in below.values()}) > 1
        if are_splits and not _same_two_below(tree, folders):
            notices.append(f"{some(names)}: taken as classes, and the folders in each ({some(same)}) as splits")
            return _Layout(are_splits_below=True)
        advice = (
            f"name one as SOURCE, as {folders[0][1]}"
            if are_splits
            else "call them train, val or test; or, if the sub-folders are the classes and there is no split, give "
            "--label-from '^[^/]+/([^/]+)/', and if the folders are the classes, --label-from '^([^/]+)/'"
        )
        raise DatasetError(
            f"all folders of {root} ({some(names)}) hold the same sub-folders ({some(same)}), so they look like splits "
            f"or folds, and their names do not say which: {advice}"
        )
    if exact:
        (name,) = exact
        notices.append(f"the folder {name!r} is taken as a class, because {others[0]!r} beside it is no split")
    elif len(worded) == len(names):
        notices.append(f"the folders {some(names)} are taken as classes, since what is in them is not alike")
    return _Layout()


def _splits_among(tree: Tree, folders: Folders, worded: Mapping[str, tuple[str, tuple[str, ...]]]) -> dict[str, str]:
    """Return those of several folders that are splits by their names alone, and of which one has class folders.

    Their names say different splits, and the words around that are the same in them.
    """
    found: dict[str, str] = {}
    for rest in dict.fromkeys(rest for _, rest in worded.values()):
        alike = {name: split for name, (split, words) in worded.items() if words == rest}
        if len(set(alike.values())) > 1 and any(_has_classes(tree, n, path) for n, path in folders if n in alike):
            if found:
                return {}
            found = alike
    return found


def _has_classes(tree: Tree, name: str, path: str) -> bool:
    """Tell whether there are folders with pictures below a folder, none that is only called `images` or the like."""
    return bool(classes_in(tree, _through(name, path, tree)))


def _same_two_below(tree: Tree, folders: Folders) -> bool:
    """Tell whether the folders in folders hold the same folders in their turn, as train/ and test/ in folds do."""
    below = [(name, path) for _, folder in folders for name, path in tree.glance(folder).folders]
    return bool(_same_below(tree, below))


def _same_below(tree: Tree, folders: Folders) -> list[str]:
    """Return the sub-folders that all of several folders have in common, if those are at least two and most of all."""
    shared: set[str] = set()
    union: set[str] = set()
    for at, (name, path) in enumerate(folders):
        inside = _through(name, path, tree)
        found = set(classes_in(tree, inside))
        shared, union = shared & found if at else found, union | found
        if len(shared) < 2 or tree.glance(inside).kind == "pictures":
            return []
    return sorted(shared) if len(folders) > 1 and 2 * len(shared) >= len(union) else []


def _through(name: str, path: str, tree: Tree) -> str:
    """Return the folder below a split that holds all that is in it and is called like it, or the folder itself."""
    split = worded_split(name)
    while True:
        below, kind = tree.glance(path)
        if len(below) != 1 or kind == "pictures":
            return path
        inner, there = below[0]
        found = worded_split(inner)
        is_same = inner.lower() == name.lower() or (split and found and found[0] == split[0] and not found[1])
        if not is_same:
            return path
        path = there


def _split_items(
    name: str, folder: str, split: str, tree: Tree, notices: list[str], beside: list[str]
) -> Iterator[Item]:
    level = level_of(tree, _through(name, folder, tree))
    beside += [f"{name}/{each}" for each in level.beside]
    if level.without:
        notices.append(f"in {name}/ {count(level.without, 'folder')} without pictures left out: {some(level.without)}")
    if len(level.folders) == 1 and holds_pictures(level.folders[0][0]) and not _has_picture(level.files):
        level = level_of(tree, level.folders[0][1])
    for label, path in level.folders:
        for address in files_of_class(tree, path, beside):
            yield Item(address, label, split)
    loose, others = _sorted_out(level.files)
    if others:
        notices.append(f"in {name}/ {count(others, 'file')} that {be(others)} no picture left out: {some(others)}")
    if loose and level.folders:
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


def _flat_splits(items: Sequence[Item]) -> Iterator[str]:
    """Yield which splits have no labels where others do."""
    labelled = {item.split for item in items if item.label is not None}
    for split, n in Counter(item.split for item in items if item.split not in labelled).items():
        yield f"the {n:,} pictures of {split} have no labels: there is no folder for each class"


def _deeper(names: Sequence[str], items: Sequence[Item]) -> Iterator[str]:
    """Yield that classes hold nothing but several folders, which could be the classes in their place."""
    inner: dict[str, set[str]] = {}
    for name, item in zip(names, items, strict=True):
        if item.label is not None:
            parts = name.split("/")
            at = parts.index(item.label) if item.label in parts else len(parts) - 2
            inner.setdefault(item.label, set()).add("/".join(parts[at + 1 : -1][:1]))
    if all("" not in folders and len(folders) > 1 for folders in inner.values()):
        n = sum(map(len, inner.values()))
        label, folders = next(iter(inner.items()))
        yield (
            f"the classes hold folders ({some([f'{label}/{name}' for name in sorted(folders)])}), {n:,} in all: for "
            "these as the classes give --label-from '([^/]+)/[^/]+$'"
        )


def _sorted_out(files: Folders) -> tuple[Folders, list[str]]:
    """Return the files that may be pictures, and the names of others; all of them where nothing looks like one."""
    if not _has_picture(files):
        return files, []
    kept = [(name, address) for name, address in files if may_be_picture(name)]
    return kept, [name for name, _ in files if not may_be_picture(name)]


def be(things: Sequence[object]) -> str:
    """Return `is` or `are`."""
    return "is" if len(things) == 1 else "are"


def _has_picture(files: Iterable[tuple[str, str]]) -> bool:
    return any(looks_like_picture(name) for name, _ in files)


def count(things: Sequence[object], noun: str, plural: str | None = None) -> str:
    """Return how many things there are, in words."""
    return f"{len(things):,} {noun if len(things) == 1 else plural or noun + 's'}"


def some(names: Sequence[str], most: int = 3) -> str:
    """Return the first few names."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
