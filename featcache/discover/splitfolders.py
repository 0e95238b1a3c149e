"""Folders that are splits enter; their pictures leave, each with the class whose folder it is in."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from featcache.discover.levels import (
    Folders,
    Level,
    be,
    classes_in,
    count,
    files_of_class,
    folder_expression,
    has_picture,
    holds_pictures,
    level_of,
    some,
    sorted_out,
)
from featcache.discover.splitsbelow import MOST_NAMED, split_expression
from featcache.discover.splitwords import is_put_aside
from featcache.discover.toplevel import holds_several, through, without_index
from featcache.discover.trees import Tree
from featcache.errors import DatasetError
from featcache.records import Item


class _Split(NamedTuple):
    """A folder that is a split, its name below SOURCE, and what is in it, or in the folder around all in it."""

    name: str
    path: str
    split: str
    level: Level


def split_items(
    root: str, tree: Tree, folders: Folders, split_of: Mapping[str, str], notices: list[str], beside: list[str]
) -> Iterator[Item]:
    """Yield the pictures in folders that are splits; what is left out is said, and folders of masks are told.

    A folder that alone holds several in a split, and is no class of another, is passed through. Raises `DatasetError`
    where folders lie between split and class in one of them, and not in another.
    """
    splits = [
        _Split(name, path, split_of[name], level_of(tree, through(name, path, tree)))
        for name, path in folders
        if name in split_of
    ]
    splits = [_inside(tree, each, notices, beside) for each in splits]
    several = {name for each in splits if len(each.level.folders) > 1 for name, _ in each.level.folders}
    splits = [_passed(tree, each, several, notices) for each in splits]
    _check_no_folders_between(root, tree, splits)
    for each in splits:
        yield from _items(tree, each, notices, beside)


def _inside(tree: Tree, found: _Split, notices: list[str], beside: list[str]) -> _Split:
    """Return a split as it is in its only folder where that is called `images` or the like."""
    level = found.level
    beside += [f"{found.name}/{each}" for each in level.beside]
    if level.without:
        without = f"{count(level.without, 'folder')} without pictures left out: {some(level.without)}"
        notices.append(f"in {found.name}/ {without}")
    if len(level.folders) == 1 and holds_pictures(level.folders[0][0]) and not has_picture(level.files):
        return found._replace(level=level_of(tree, level.folders[0][1]))
    return found


def _passed(tree: Tree, found: _Split, several: set[str], notices: list[str]) -> _Split:
    """Return a split as it is in its only folder, which holds several and is called as no class of another split."""
    while len(found.level.folders) == 1:
        ((name, path),) = found.level.folders
        if name in several or has_picture(found.level.files) or not holds_several(tree, path):
            return found
        notices.append(f"in {found.name}/ the folder {name!r}, which holds all in it, is passed through")
        found = found._replace(level=level_of(tree, path))
    return found


def _check_no_folders_between(root: str, tree: Tree, splits: Sequence[_Split]) -> None:
    """Raise `DatasetError` where a folder in one split holds what are the class folders in another."""
    for each in splits:
        others = {name for other in splits if other is not each for name, _ in other.level.folders}
        between = {}
        for name, path in each.level.folders:
            inner = classes_in(tree, path) if name not in others and tree.glance(path).kind != "pictures" else []
            if 2 * len(others.intersection(inner)) > len(inner):
                between[name] = sorted(others.intersection(inner))
        if not between:
            continue
        aside = [name for name, _ in each.level.folders if name not in others and is_put_aside(name)]
        passed = sorted({*between, *aside, *(part for other in splits for part in _within(tree, other))})
        folder = "|".join(map(re.escape, passed)) if len(passed) <= MOST_NAMED else "[^/]+(?=/[^/]+/)"
        start = folder_expression(tree, each.path).removesuffix("([^/]+)/")
        split = split_expression([other.name for other in splits])
        classes = some(next(iter(between.values())))
        raise DatasetError(
            f"{root}: in {each.name}/ {some([*between])} {'holds' if len(between) == 1 else 'hold'} folders "
            f"({classes}) that are the classes of other splits: move these up to {each.name}/, or give --label-from "
            f"'{start}{split}(?:(?:{folder})/)*(?:(?P<label>[^/]+)/)?'"
        )


def _within(tree: Tree, found: _Split) -> list[str]:
    """Return the names of the folders that were passed through in a split."""
    above = len(tree.folder_name(found.path).split("/"))
    return [part for _, path in found.level.folders[:1] for part in tree.folder_name(path).split("/")[above:-1]]


def _items(tree: Tree, found: _Split, notices: list[str], beside: list[str]) -> Iterator[Item]:
    name, split, level = found.name, found.split, found.level
    for label, path in without_index(tree, level.folders, notices):
        for address in files_of_class(tree, path, beside):
            yield Item(address, label, split)
    loose, others = sorted_out(level.files)
    if others:
        notices.append(f"in {name}/ {count(others, 'file')} that {be(others)} no picture left out: {some(others)}")
    if loose and level.folders:
        notices.append(f"{count(loose, 'file')} in {name}/ outside its class folders: taken without a label")
    for _, address in loose:
        yield Item(address, None, split)
