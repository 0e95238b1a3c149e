"""A folder without class folders and the lists beside its pictures enter; the dataset that they describe leaves."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from featcache.discover.columns import LABELS, columns_of, first_paths, may_list
from featcache.discover.finder import Finder
from featcache.discover.labels import Columns
from featcache.discover.levels import Folders, count, holds_files, holds_pictures, some
from featcache.discover.lines import TABS, dialect_of, is_separator, opened_text
from featcache.discover.manifests import list_dataset
from featcache.discover.once import each_once
from featcache.discover.splitsbelow import splits_of_paths, why_none
from featcache.discover.splitwords import (
    are_splits,
    exact_split,
    is_numbered_part,
    is_part,
    split_folders,
    split_in,
    worded_split,
)
from featcache.discover.trees import Listing, Tree, looks_like_picture
from featcache.errors import DatasetError
from featcache.records import Dataset, Item
from featcache.sources.addresses import folder_of, is_remote
from featcache.texts import LONGEST

_OF_LABELS = {"label", "labels", "train", "val", "valid", "validation", "test", "metadata", "classes", "annotations"}
"""Words in the names of lists of labels, and of splits with labels."""


class _List(NamedTuple):
    """A list, the split that its place says, what finds the pictures in it, and what its columns are called."""

    address: str
    split: str | None
    finder: Finder
    columns: Columns


def listed_beside(root: str, tree: Tree, columns: Columns) -> Dataset | None:
    """Return the dataset of a folder by the lists beside its pictures, `None` of one with class folders or no list.

    The pictures lie in the folder itself, or flat in folders in it, and a folder around all is passed through. Raises
    `DatasetError` for a list of them whose form is not known, and for several of which it is not clear how they belong
    together.
    """
    folder = tree.root
    while True:
        folders, files = tree.listing(folder)
        found = _listed_in(root, tree, (folders, files), columns)
        if found is not None or len(folders) != 1 or any(looks_like_picture(name) for name, _ in files):
            return found
        folder = folders[0][1]


def named_list(root: str, labelled: bool, columns: Columns) -> Dataset:
    """Return the dataset of a list that was named; what its columns are called is found where its first line says else.

    Raises `DatasetError`.
    """
    found = _named_list(root, labelled, columns)
    names = [item.path.removeprefix(folder_of(root)) for item in found.items if item.split is None]
    is_none_said = len(names) == len(found.items)
    splits = {*split_folders({part for name in names for part in name.split("/")[:-1]}).values()}
    said = [
        f"its pictures are in folders for {', '.join(sorted(splits))}, and it says no splits: for these name the "
        "folder as SOURCE, or write a column `split`"
    ]
    return replace(found, notices=(*found.notices, *(said if is_none_said and are_splits(splits) else ())))


def _named_list(root: str, labelled: bool, columns: Columns) -> Dataset:
    if labelled and root.lower().endswith((".csv", ".tsv")) and not is_remote(root):
        try:
            with opened_text(root) as stream:
                first = stream.readline(LONGEST)
                first = stream.readline(LONGEST) if is_separator(first) else first
        except UnicodeError:
            first = ""  # which is said where it is read
        dialect = dialect_of(first) if root.lower().endswith(".csv") else TABS
        names = [name.strip() for name in next(csv.reader([first], **dialect._asdict()), [])]
        wanted = {name: columns.get(name, name).strip() for name in ("path", "label")}
        # what is given is as it is given, and is named where it is not there
        if any(name not in columns and theirs not in names for name, theirs in wanted.items()):
            finder = Finder(folder_of(root)).of_list(root)
            if known := columns_of(root, finder, columns):
                found = list_dataset(root, labelled, known, finder)
                said = ", ".join(f"{name}={theirs}" for name, theirs in known.items())
                return replace(found, notices=(f"columns {said}", *found.notices))
    return list_dataset(root, labelled, columns)


def _listed_in(root: str, tree: Tree, listing: Listing, columns: Columns) -> Dataset | None:
    folders, files = listing
    folders = [(name, _inside(tree, name, path)) for name, path in folders]
    if any(holds_files(tree, path) for _, folder in folders for _, path in tree.glance(folder).folders):
        return None
    # most folders hold classes, and no list that would have their pictures looked through
    inside_of = {
        name: tree.listing(path)[1]
        for name, path in folders
        if exact_split(name) or tree.glance(path).kind != "pictures"
    }
    if not any(may_list(name) for listed in (files, *inside_of.values()) for name, _ in listed):
        return None
    flat = [("", files)]
    flat += [(name, inside_of[name] if name in inside_of else tree.listing(path)[1]) for name, path in folders]
    pictures = [address for _, inside in flat for name, address in inside if looks_like_picture(name)]
    if not pictures:
        return None
    notices: list[str] = []
    if columns or not _are_classes(tree, folders):
        lists = _with_splits(root, tree, _lists_among(tree, flat, pictures, columns, notices))
        return _joined(root, tree, lists, pictures, notices) if lists else None
    try:
        lists = _with_splits(root, tree, _lists_among(tree, flat, pictures, columns, notices))
        lists = [each for each in lists if _is_of_labels(each)]
        joined = _joined(root, tree, lists, pictures, notices) if lists else None
    except DatasetError:
        return None  # the folders say the classes, and that a list is not used is said with them
    return joined if joined is not None and 2 * len(joined.items) > len(pictures) else None


def _are_classes(tree: Tree, folders: Folders) -> bool:
    """Tell whether there are several folders of pictures that may be classes by their names."""
    names = [name for name, path in folders if tree.glance(path).kind == "pictures"]
    plain = [name for name in names if not (worded_split(name) or is_part(name) or holds_pictures(name))]
    return len(plain) > 1 and not is_numbered_part(names)


def _is_of_labels(found: _List) -> bool:
    """Tell whether a list names its pictures whole, and calls something labels, itself or a column of it.

    Beside class folders there are lists of much else, and of the names of the classes by their numbers.
    """
    words = set(_stem(found.address).replace("-", "_").split("_"))
    label = found.columns.get("label", "")
    is_called = bool(words & _OF_LABELS or label.lower() in LABELS or "+" in label)
    return is_called and all(looks_like_picture(path) for path in first_paths(found.address, found.columns))


def _lists_among(
    tree: Tree, flat: Sequence[tuple[str, Folders]], pictures: Sequence[str], columns: Columns, notices: list[str]
) -> list[_List]:
    """Return the lists among files, each with what its columns are called.

    Raises `DatasetError` where that is not clear of one, but of one without labels for the test.
    """
    found: list[_List] = []
    unclear: dict[str, DatasetError] = {}
    for address, split, finder in _candidates(tree, flat, pictures):
        try:
            if (known := columns_of(address, finder, columns)) is not None:
                found.append(_List(address, split, finder, known))
        except DatasetError as error:
            unclear[address] = error
    for address, why in unclear.items():
        if not found or split_in(_stem(tree.name(address))) != "test":
            raise why
        notices.append(f"{tree.name(address)} left out, in which no column is the label")
    return found


def _candidates(
    tree: Tree, flat: Sequence[tuple[str, Folders]], pictures: Sequence[str]
) -> Iterator[tuple[str, str | None, Finder]]:
    """Yield files that may be lists, the split whose folder they are in, and what finds pictures by names in them."""
    finder = Finder(tree.root, pictures, tree)
    for name, inside in flat:
        own = [address for each, address in inside if looks_like_picture(each)]
        split = exact_split(name) if own else None
        for each, address in inside:
            if not may_list(each):
                continue
            if split is not None and _stem(each) in ("metadata", "_classes"):
                yield address, split, Finder(tree.root, own, tree)
            elif (not name or not own) and "submission" not in _stem(each):
                yield address, None, finder.of_list(each)


def _with_splits(root: str, tree: Tree, lists: list[_List]) -> list[_List]:
    """Return several lists each with its split; raises `DatasetError` where their names do not say different ones."""
    if len(lists) < 2 or all(each.split is not None for each in lists):
        return lists
    words = [worded_split(_stem(tree.name(each.address))) for each in lists]
    splits = [word[0] for word in words if word]
    if len(set(splits)) < len(lists):
        names = [tree.name(each.address) for each in lists]
        raise DatasetError(
            f"{root} has several lists of its pictures ({some(names)}): name the one that counts as SOURCE; or, of "
            "lists for each split, leave one set beside the pictures and move the others away"
        )
    return [each._replace(split=split) for each, split in zip(lists, splits, strict=True)]


def _joined(root: str, tree: Tree, lists: Sequence[_List], pictures: Sequence[str], notices: list[str]) -> Dataset:
    parts = [(each.split, list_dataset(each.address, True, each.columns, each.finder)) for each in lists]
    placed = [
        (tree.name(each.address), replace(item, split=item.split or split))
        for each, (split, part) in zip(lists, parts, strict=True)
        for item in part.items
    ]
    items = list(each_once(root, placed))
    names = [tree.name(item.path) for item in items if item.split is None]
    said = []
    for each in lists:
        columns = ", ".join(f"{name}={theirs}" for name, theirs in each.columns.items())
        said.append(f"labels from {tree.name(each.address)}" + (f", columns {columns}" if columns else ""))
    if len(names) == len(items):
        items = _with_splits_of_folders(names, items, notices)
    listed = {item.path for item in items}
    if others := [tree.name(address) for address in pictures if address not in listed]:
        notices.append(f"{count(others, 'picture')} in no list left out: {some(others)}")
    notices += [notice for _, part in parts for notice in part.notices]
    return Dataset(root, tuple(items), (*said, *notices), skipped=tree.skipped)


def _stem(name: str) -> str:
    return Path(name).stem.lower()


def _inside(tree: Tree, name: str, folder: str) -> str:
    """Return the only folder in one where it is called `images` or the like, or as the one around it; else that."""
    below, kind = tree.glance(folder)
    is_same = len(below) == 1 and kind is None and (holds_pictures(below[0][0]) or below[0][0].lower() == name.lower())
    return below[0][1] if is_same else folder


def _with_splits_of_folders(names: Sequence[str], items: list[Item], notices: list[str]) -> list[Item]:
    """Return listed pictures, of which none has a split, with those that folders in their paths say; that is said."""
    splits, said = splits_of_paths([name.split("/")[:-1] for name in names])
    lacking = [name for name, split in zip(names, splits, strict=True) if split is None]
    if not are_splits({*said.values()}):
        if "train" not in said.values() and said:
            called = some(sorted(said))
            notices.append(f"folders called as splits ({called}) are taken as none, since {why_none({*said.values()})}")
        return items
    notices.append("splits from the folders that the pictures are in")
    if lacking:
        notices.append(
            f"{count(lacking, 'picture')} in no such folder, or in several, as {lacking[0]}: without a split; take "
            "such out of the list, or write a column `split`"
        )
    return [replace(item, split=split) for item, split in zip(items, splits, strict=True)]
