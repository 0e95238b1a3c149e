"""Several folders at the top that are no splits enter; the words of splits that folders below them say leave."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import NamedTuple

from featcache.discover.levels import Folders, folder_expression, holds_pictures, is_called_beside, some
from featcache.discover.splitwords import are_splits, split_folders
from featcache.discover.trees import Tree
from featcache.errors import DatasetError

MOST_NAMED = 8
"""So many folders are named in an expression that is advised."""


class _Place(NamedTuple):
    """A folder with pictures in it: the folder at the top that it is below, and the names from there on."""

    top: str
    parts: tuple[str, ...]


def splits_below(root: str, tree: Tree, folders: Folders, notices: list[str]) -> dict[str, str]:
    """Return which folders below classes are splits by their names, and which, `{"Train": "train"}`; empty without any.

    Several splits, one of them train, are taken wherever they stand below a class. Raises `DatasetError` where pictures
    are in none of them, and where folders in them look like the classes; what is not taken is said.
    """
    places = _places(tree, folders, "pictures") or _places(tree, folders, "may")
    split_of = split_folders({part for place in places for part in place.parts})
    if not split_of:
        return {}
    splits = {*split_of.values()}
    if not are_splits(splits):
        called, why = some(sorted(split_of)), why_none(splits)
        notices.append(f"folders called as splits below the classes ({called}) are taken as none, since {why}")
        return {}
    _check_all_in_one(root, tree, folders, places, split_of)
    top, below = some([name for name, _ in folders]), some(sorted(split_of))
    between = {part for place in places for part in _above_split(place.parts, split_of) if not holds_pictures(part)}
    inner = folder_expression(tree, folders[0][1], 1).replace("(", "(?P<label>")
    advice = (
        f"; for the folders between ({some(sorted(between))}) as the classes give --label-from "
        f"'{inner}(?:.*/)?{split_expression(split_of)}'"
    )
    said = f"{top}: taken as classes, and the folders in each ({below}) as splits"
    notices.append(said + (advice if len(between) > 1 else ""))
    return split_of


def splits_in(parts: Collection[str], split_of: Mapping[str, str]) -> set[str]:
    """Return the splits that the names of folders say."""
    return {split_of[part] for part in parts if part in split_of}


def why_none(splits: Collection[str]) -> str:
    """Return why such splits cannot be used together."""
    return "no other split is among them" if "train" in splits else "none says train"


def splits_of_paths(paths: Sequence[Sequence[str]]) -> tuple[list[str | None], dict[str, str]]:
    """Return the split that the folders above each of several pictures say, and which folders say one.

    Where they are not several splits, one of them train, or all pictures are in one, none is taken.
    """
    split_of = split_folders({part for parts in paths for part in parts})
    found = [splits_in(parts, split_of) for parts in paths]
    splits = [each.pop() if len(each) == 1 else None for each in found]
    is_taken = are_splits({split for split in splits if split}) or None not in splits
    return splits if is_taken else [None] * len(splits), split_of


def _above_split(parts: Sequence[str], split_of: Mapping[str, str]) -> Iterator[str]:
    return takewhile(lambda part: part not in split_of, parts)


def split_expression(names: Collection[str]) -> str:
    """Return what finds one of these folders as the split."""
    found = "|".join(map(re.escape, sorted(names))) if len(names) <= MOST_NAMED else "[^/]+"
    return f"(?P<split>{found})/"


def _places(tree: Tree, folders: Folders, kind: str) -> list[_Place]:
    return [_Place(name, parts) for name, path in folders for parts in _holding(tree, path, kind)]


def _holding(tree: Tree, folder: str, kind: str) -> Iterator[tuple[str, ...]]:
    """Yield the names of folders, from below one on, that lead to files of a kind, but those for masks and the like."""
    here = tree.glance(folder)
    if here.kind == kind:
        yield ()
    for name, path in here.folders:
        if not is_called_beside(name):
            for parts in _holding(tree, path, kind):
                yield name, *parts


def _check_all_in_one(
    root: str, tree: Tree, folders: Folders, places: list[_Place], split_of: Mapping[str, str]
) -> None:
    """Raise `DatasetError` where folders with pictures are in no split, or in folders of the splits."""
    paths = dict(folders)
    holding = [*dict.fromkeys(place.top for place in places if splits_in(place.parts, split_of))]
    without = [place for place in places if len(splits_in(place.parts, split_of)) != 1]
    deeper = _folders_in_splits(places, split_of)
    if not without and not deeper:
        return
    splits = sorted({*split_of.values()})
    is_direct = all(place.parts[0] in split_of for place in places if splits_in(place.parts, split_of))
    label = folder_expression(tree, folders[0][1]).replace("(", "(?P<label>")
    expression = f"{label}{'' if is_direct else '(?:.*/)?'}{split_expression(split_of)}"
    if deeper and len(holding) == len(folders) > 1:
        besides = sorted({place.parts[0] for place in without if place.parts})
        what = f"folders besides ({some(besides)})" if besides else f"these hold folders ({some(deeper)})"
        raise DatasetError(
            f"the folders of {root} ({some([*paths])}) hold splits ({some(splits)}), and {what}, so each looks like a "
            f"dataset: name one as SOURCE, as {paths[holding[0]]}; or, if the folders are the classes, give "
            f"--label-from '{expression}'"
        )
    lacking = some([*dict.fromkeys("/".join((place.top, *place.parts)) for place in without)])
    one = f"name {paths[holding[0]]} as SOURCE, or, " if len(holding) == 1 else ""
    verb = "holds" if len(holding) == 1 else "hold"
    if not lacking:
        raise DatasetError(
            f"{root}: {some(holding)} {verb} splits ({some(splits)}), and these hold folders ({some(deeper)}): if they "
            f"are classes name {paths[holding[0]]} as SOURCE, if the folders are give --label-from '{expression}'"
        )
    raise DatasetError(
        f"{root}: {some(holding)} {verb} splits ({some(splits)}), and the pictures in {lacking} are in none, or in "
        f"several: {one}if the folders {some([*paths])} are the classes, move these pictures into folders called as "
        f"splits too, or leave them out with --label-from '{expression}'"
    )


def _folders_in_splits(places: list[_Place], split_of: Mapping[str, str]) -> list[str]:
    """Return the folders with pictures in folders of splits that hold no pictures besides, as those of classes do."""
    inner: dict[tuple[str, ...], set[str]] = {}
    for top, parts in places:
        at = next((at for at in reversed(range(len(parts))) if parts[at] in split_of), None)
        if at is not None:
            rest = [part for part in parts[at + 1 :] if not holds_pictures(part)]
            inner.setdefault((top, *parts[: at + 1]), set()).add(rest[0] if rest else "")
    return sorted({name for names in inner.values() if "" not in names for name in names})
