"""The names of files enter; the labels that an expression finds in them, and the splits that they have, leave."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from featcache.discover.labels import Labels
from featcache.discover.levels import be, count, drawn_notices, is_called_beside, some, sorted_out, stem_drawn_of
from featcache.discover.splitsbelow import split_expression, splits_of_paths, why_none
from featcache.discover.splitwords import worded_split
from featcache.discover.toplevel import enter, without_copies
from featcache.discover.trees import Tree
from featcache.errors import DatasetError
from featcache.records import Item


def from_names(
    root: str, tree: Tree, label_from: str, known: Mapping[str, str | None]
) -> tuple[tuple[Item, ...], list[str]]:
    """Return the pictures with the labels, and perhaps splits, that an expression finds in their paths.

    `known` are the splits that they have by their folders where no expression is given. What is to be said of them is
    returned too. Raises `DatasetError` where nothing is found, and for a split that is none.
    """
    pattern = re.compile(label_from)
    has_split = "split" in pattern.groupindex
    group = pattern.groupindex.get("label") or (2 if pattern.groupindex.get("split") == 1 else 1)
    labels = Labels()
    items: list[Item] = []
    without: list[str] = []
    names: list[str] = []
    copied, copies = _copies(root, tree)
    files, others = sorted_out([(tree.name(address), address) for address in tree.files(tree.root)])
    if others:
        copies.append(f"{count(others, 'file')} that {be(others)} no picture left out: {some(others)}")
    for name, address in files:
        if copied and name.startswith(copied):
            continue
        names.append(name)
        match = pattern.search(name)
        label = labels.read(match[group], name) if match else None
        split = known.get(address)
        if match and has_split:
            found = worded_split(match["split"] or "")
            if found is None:
                raise DatasetError(f"{root}: --label-from finds the split {match['split']!r} in {name}, which is none")
            split = found[0]
        if label is None:
            without.append(name)
        items.append(Item(address, label, split))
    if items and len(without) == len(items):
        raise DatasetError(f"{root}: --label-from {label_from!r} finds nothing in any path, as {some(without)}")
    folder_notices: list[str] = []
    if not has_split and not known:
        items = _with_splits_of_folders(names, items, folder_notices)
    said = [f"{len(without):,} of {len(items):,} without a label: --label-from finds none in {some(without)}"]
    masks = _masks(names, items)
    left_out = [f"{count([*masks], 'file')} left out, in folders for masks or the like: {some(sorted(masks))}"]
    kept = (item for name, item in zip(names, items, strict=True) if name not in masks)
    return tuple(kept), [
        *labels.notices(),
        *(said if without else []),
        *(left_out if masks else []),
        *copies,
        *folder_notices,
        *drawn_notices(names),
    ]


def _with_splits_of_folders(names: Sequence[str], items: list[Item], notices: list[str]) -> list[Item]:
    """Return pictures with the splits that folders in their paths say; what is not plain is said.

    A folder that is the label of its picture says none.
    """
    folders = [
        [part for part in name.split("/")[:-1] if part != item.label] for name, item in zip(names, items, strict=True)
    ]
    splits, said = splits_of_paths(folders)
    lacking = [name for name, split in zip(names, splits, strict=True) if split is None]
    if any(splits) and lacking:
        notices.append(
            f"{count(lacking, 'picture')} in no folder called as a split, or in several, as {lacking[0]}: without a "
            f"split; to leave such out let the expression find the splits, with {split_expression(said)}"
        )
    elif said and not any(splits):
        called = some(sorted(said))
        notices.append(
            f"folders called as splits ({called}) are taken as none, since {why_none({*said.values()})}: their "
            "pictures and the others are taken together; for splits let the expression find them, with (?P<split>...)"
        )
    return [replace(item, split=split) for item, split in zip(items, splits, strict=True)]


def _copies(root: str, tree: Tree) -> tuple[str, list[str]]:
    """Return the folder that holds those beside it once more, and what is to be said of it; empty where none does."""
    top, notices = tree.root, list[str]()
    try:
        folders = enter(tree, [], []).folders
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
