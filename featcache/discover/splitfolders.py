"""A folder that is a split enters; its pictures leave, each with the class whose folder it is in."""

from __future__ import annotations

from collections.abc import Iterator

from featcache.discover.levels import be, count, files_of_class, has_picture, holds_pictures, level_of, some, sorted_out
from featcache.discover.toplevel import through, without_index
from featcache.discover.trees import Tree
from featcache.records import Item


def split_items(
    name: str, folder: str, split: str, tree: Tree, notices: list[str], beside: list[str]
) -> Iterator[Item]:
    """Yield the pictures in a folder that is a split; what is left out is said, and folders of masks are told."""
    level = level_of(tree, through(name, folder, tree))
    beside += [f"{name}/{each}" for each in level.beside]
    if level.without:
        notices.append(f"in {name}/ {count(level.without, 'folder')} without pictures left out: {some(level.without)}")
    if len(level.folders) == 1 and holds_pictures(level.folders[0][0]) and not has_picture(level.files):
        level = level_of(tree, level.folders[0][1])
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
