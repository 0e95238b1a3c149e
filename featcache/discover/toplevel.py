"""The folders at the top of a dataset enter; whether they are splits, classes, or classes of splits leaves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import NamedTuple

from featcache.discover.levels import (
    Folders,
    Level,
    classes_in,
    folder_expression,
    has_picture,
    holds_pictures,
    level_of,
    some,
)
from featcache.discover.manifests import LISTS
from featcache.discover.splitsbelow import splits_below
from featcache.discover.splitwords import (
    exact_split,
    is_numbered_part,
    is_part,
    is_put_aside,
    split_folders,
    split_in,
    worded_split,
)
from featcache.discover.trees import Tree, looks_like_picture, may_be_picture
from featcache.errors import DatasetError


class Arrangement(NamedTuple):
    """What the folders at the top are: the split of each, or the class, perhaps with the splits that are below it."""

    split_of: dict[str, str] | None = None
    split_below: dict[str, str] | None = None


def enter(tree: Tree, inside: list[str], lists: list[tuple[str, str]]) -> Level:
    """Return what is in the root of the tree, or in a folder around all others, which becomes the root.

    That has folders in it and is not called a split; where pictures lie beside it, or directly in it, these folders are
    several, or called a split. Or it is the only one with pictures and called `images` or the like. `lists` gets the
    texts on the way, those in folders of their own too.
    """
    beside: list[str] = []
    while True:
        level = level_of(tree, tree.root)
        folders = dict(tree.listing(tree.root)[0])
        inner = [file for name in (*level.without, *level.beside) for file in tree.listing(folders[name])[1]]
        lists += [(name, address) for name, address in (*level.files, *inner) if _is_list(name)]
        if len(level.folders) != 1 or exact_split(level.folders[0][0]):
            return level
        name, path = level.folders[0]
        below, kind = tree.glance(path)
        if has_picture(level.files) or (kind == "pictures" and not holds_pictures(name)):
            if not holds_several(tree, path):
                return level
        elif not below and not holds_pictures(name):
            return level
        beside += [*(each for each, _ in level.files), *(f"{each}/" for each in (*level.without, *level.beside))]
        said = f", beside it left out: {some(beside)}" if beside else ""
        inside[:] = [f"the folder {path!r}, which holds all pictures, is taken as the dataset{said}"]
        tree.root = path


def holds_several(tree: Tree, folder: str) -> bool:
    """Tell whether a folder, or one alone in it, holds several folders, or one called `train`, and mostly in these."""
    while True:
        level = level_of(tree, folder)
        loose = sum(looks_like_picture(name) for name, _ in level.files)
        inside = (address for _, path in level.folders for address in tree.files(path))
        if next(islice(inside, loose, None), None) is None:
            return False
        if len(level.folders) > 1 or exact_split(level.folders[0][0]) == "train":
            return True
        folder = level.folders[0][1]


def _is_list(name: str) -> bool:
    return f".{name.rpartition('.')[2].lower()}" in LISTS


def without_copies(root: str, tree: Tree, folders: Folders, notices: list[str]) -> Folders:
    """Return the folders without one that holds the others once more, as some archives do.

    Raises `DatasetError` where one holds folders that are called like those beside it, with other files.
    """
    if len(folders) < 3:
        return folders
    paths = dict(folders)
    for name, path in folders:
        below, kind = tree.glance(path)
        shared = [each for each, _ in below if each != name and each in paths]
        if len(shared) < 2 or kind not in (None, "others"):
            continue
        if len(shared) < len(below):
            raise DatasetError(
                f"{root} has folders twice ({some(shared)}), at the top and in {name!r}, which holds others too: name "
                f"{name!r} or what lies beside it as SOURCE, each alone, or put them together"
            )
        for each, inner in below:
            there = {_name_below(tree, address, paths[each]) for address in tree.files(paths[each])}
            other = next((a for a in _pictures_in(tree, inner) if _name_below(tree, a, inner) not in there), None)
            if other is not None:
                raise DatasetError(
                    f"{root} has the folder {each!r} twice, at the top and in {name!r}, which has {tree.name(other)} "
                    f"besides: name {name!r} or what lies beside it as SOURCE, each alone, or put them together"
                )
        names = some([each for each, _ in below])
        notices.append(f"{name}/ left out, which holds the folders beside it once more ({names}), with the same files")
        return [each for each in folders if each[0] != name]
    return folders


def _pictures_in(tree: Tree, folder: str) -> Iterator[str]:
    return (address for address in tree.files(folder) if may_be_picture(address))


def without_index(tree: Tree, folders: Folders, notices: list[str]) -> Folders:
    """Return the classes in folders that are the letters which these begin with, as `a/abbey`; else the folders.

    A class that holds folders alone is several, as `apartment/indoor` and `apartment/outdoor`.
    """
    if len(folders) < 2 or not all(len(name) == 1 and name.isalpha() for name, _ in folders):
        return folders
    found: Folders = []
    for letter, path in folders:
        classes, kind = tree.glance(path)
        if kind or not classes or not all(name.lower().startswith(letter.lower()) for name, _ in classes):
            return folders
        for name, inside in classes:
            below, its_kind = tree.glance(inside)
            if below and not its_kind and not split_folders(each for each, _ in below):
                found += [(f"{name}/{each}", there) for each, there in below]
            else:
                found.append((name, inside))
    said = (
        f"the folders {some([name for name, _ in folders])} are letters that the classes in them begin with; for the "
        f"letters as the classes give --label-from '{folder_expression(tree, folders[0][1])}'"
    )
    notices += [] if said in notices else [said]
    return found


def _name_below(tree: Tree, address: str, folder: str) -> str:
    """Return the path of a file below a folder of the tree."""
    return tree.name(address).removeprefix(tree.folder_name(folder)).lstrip("/")


def arrangement_of(root: str, tree: Tree, folders: Folders, notices: list[str]) -> Arrangement:
    """Tell what the folders at the top are, by their names and by what is below them; what is not plain is said.

    Raises `DatasetError` for a mixture that could be either.
    """
    names = [name for name, _ in folders]
    exact = {name: split for name in names if (split := exact_split(name))}
    if len(exact) == len(names):
        return Arrangement(exact)
    worded = {name: found for name in names if (found := worded_split(name))}
    splits = {name: split for name, (split, _) in worded.items()}
    are_alike = len(worded) == len(names) > 1 and len({rest for _, rest in worded.values()}) == 1
    same = _same_below(tree, folders)
    if are_alike or (same and len(worded) == len(names)):
        notices.append(f"the folders are taken as splits: {some([f'{n} as {s}' for n, s in splits.items()], 6)}")
        return Arrangement(splits)
    among = _splits_among(tree, folders, worded)
    others = [name for name in names if name not in (among or exact)]
    if among and all(
        (name in worded or is_put_aside(name)) and not _has_classes(tree, name, path)
        for name, path in folders
        if name in others
    ):
        said = some([f"{name} as {split}" for name, split in among.items()], 6)
        notices.append(f"{said} taken as splits; {some(others)} left out, without class folders and no such split")
        return Arrangement(among)
    if among or len(exact) > 1:
        raise DatasetError(
            f"{root} mixes split folders ({some(list(among or exact))}) with others ({some(others)}): "
            "move the others out, or list the pictures in a CSV manifest"
        )
    if split_below := splits_below(root, tree, folders, notices):
        return Arrangement(split_below=split_below)
    if same:
        outer, inner = (folder_expression(tree, folders[0][1], deeper) for deeper in (0, 1))
        raise DatasetError(
            f"all folders of {root} ({some(names)}) hold the same sub-folders ({some(same)}), so they look like splits "
            "or folds, and their names do not say which: call them train, val or test; or name one of them as SOURCE, "
            f"as {folders[0][1]}; or, if the sub-folders are the classes and there is no split, give --label-from "
            f"'{inner}', and if the folders are the classes, --label-from '{outer}'"
        )
    _check_no_flat_splits(root, worded, folders)
    notices += _uneven(tree, folders)
    plain = {name: split for name in names if (split := split_in(name))}
    parts = [name for name in names if is_part(name) and name not in plain]
    if plain and len(plain) + len(parts) == len(names):
        raise DatasetError(
            f"{root} mixes the split {some(list(plain))} with {some(parts)}, of which the name says nothing: call it "
            "train, or name it alone as SOURCE"
        )
    if is_numbered_part(names):
        raise DatasetError(
            f"the folders of {root} ({some(names)}) are called as parts of one set, not as classes: if they are the "
            f"classes give --label-from '{folder_expression(tree, folders[0][1])}', if the classes are folders in them "
            f"'{folder_expression(tree, folders[0][1], 1)}'; if a list has the labels, name it as SOURCE"
        )
    if len(plain) == 1:
        (name,) = plain
        other = next(each for each in names if each != name)
        notices.append(f"the folder {name!r} is taken as a class, because {other!r} beside it is no split")
    elif len(worded) == len(names):
        notices.append(f"the folders {some(names)} are taken as classes, since what is in them is not alike")
    return Arrangement()


def _check_no_flat_splits(root: str, worded: Mapping[str, tuple[str, tuple[str, ...]]], folders: Folders) -> None:
    """Raise `DatasetError` where some of several folders are called as splits of one thing, and hold no classes."""
    for rest in dict.fromkeys(rest for _, rest in worded.values()):
        alike = {name: split for name, (split, words) in worded.items() if words == rest}
        others = [name for name, _ in folders if name not in alike]
        if {"train", "test"} <= set(alike.values()) and others:
            raise DatasetError(
                f"{root} mixes folders that are called as splits ({some(list(alike))}) with {some(others)}: move those "
                "out, list the pictures in a CSV manifest, or, if the folders are the classes, give --label-from "
                "'([^/]+)/[^/]+$'"
            )


def _uneven(tree: Tree, folders: Folders) -> Iterator[str]:
    """Yield that one of the folders that are taken as classes holds several folders, and others pictures alone."""
    below = {name: classes_in(tree, path) for name, path in folders if tree.glance(path).kind != "pictures"}
    nested = {name: inner for name, inner in below.items() if len(inner) > 1}
    flat = [name for name, path in folders if tree.glance(path).kind == "pictures"]
    aside = [name for name in flat if is_put_aside(name)]
    if flat and len(nested) == 1:
        ((name, inner),) = nested.items()
        yield (
            f"{name!r} holds folders ({some(inner)}), and {some(flat)} beside it pictures: taken as classes; if those "
            f"in it are the classes name {dict(folders)[name]} as SOURCE"
        )
    elif aside and len(aside) < len(folders):
        yield f"{some(aside)} is taken as a class; if it is none, move it out"


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
    return bool(classes_in(tree, through(name, path, tree)))


def _same_below(tree: Tree, folders: Folders) -> list[str]:
    """Return the sub-folders that all of several folders have in common, if those are at least two and most of all."""
    shared: set[str] = set()
    union: set[str] = set()
    for at, (name, path) in enumerate(folders):
        inside = through(name, path, tree)
        below = tree.glance(inside)
        if len(below.folders) == 1 and holds_pictures(below.folders[0][0]) and below.kind != "pictures":
            inside = below.folders[0][1]
        found = set(classes_in(tree, inside))
        shared, union = shared & found if at else found, union | found
        if len(shared) < 2 or tree.glance(inside).kind == "pictures":
            return []
    return sorted(shared) if len(folders) > 1 and 2 * len(shared) >= len(union) else []


def through(name: str, path: str, tree: Tree) -> str:
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
