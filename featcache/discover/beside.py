"""A folder without class folders and the lists beside its pictures enter; the dataset that they describe leaves."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from featcache.discover.labels import Columns
from featcache.discover.levels import count, holds_files, holds_pictures, some
from featcache.discover.manifests import (
    LISTS,
    PATHS,
    Dialect,
    Finder,
    dialect_of,
    is_flag,
    is_found,
    is_picture,
    is_separator,
    list_dataset,
    opened_text,
    path_and_label,
)
from featcache.discover.splitwords import exact_split, split_in, worded_split
from featcache.discover.trees import Listing, Tree, looks_like_picture
from featcache.errors import DatasetError
from featcache.records import Dataset, Item
from featcache.sources.addresses import folder_of, is_remote, name_of
from featcache.texts import LONGEST

LOOKED_AT = 20
"""So many lines of a file tell whether it lists the pictures beside it."""

MOST_BYTES = 2**16

_NO_LABELS = {"readme", "notes", "note", "license", "licence", "changelog", "partition", "bbox", "landmarks", "credits"}
"""Words in the names of texts in which something else than labels stands behind the names of pictures."""

LABELS = ("label", "labels", "class", "class_name", "classname", "category", "breed", "species", "target", "tag")
"""What the column of labels is called in lists that have more columns than two."""


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
    splits = _splits_of_folders(names) if len(names) == len(found.items) else []
    said = [
        f"its pictures are in folders for {', '.join(sorted(set(splits)))}, and it says no splits: for these name the "
        "folder as SOURCE, or write a column `split`"
    ]
    return replace(found, notices=(*found.notices, *(said if splits else ())))


def _named_list(root: str, labelled: bool, columns: Columns) -> Dataset:
    if labelled and root.lower().endswith(".csv") and not is_remote(root):
        try:
            with opened_text(root) as stream:
                first = stream.readline(LONGEST)
                first = stream.readline(LONGEST) if is_separator(first) else first
        except UnicodeError:
            first = ""  # which is said where it is read
        names = [name.strip() for name in next(csv.reader([first], **dialect_of(first)._asdict()), [])]
        wanted = {name: columns.get(name, name).strip() for name in ("path", "label")}
        # what is given is as it is given, and is named where it is not there
        if any(name not in columns and theirs not in names for name, theirs in wanted.items()):
            finder = Finder(folder_of(root)).of_list(root)
            if known := _columns(root, finder, columns):
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
    if not any(_may_list(name) for listed in (files, *inside_of.values()) for name, _ in listed):
        return None
    flat = [(name, inside_of[name] if name in inside_of else tree.listing(path)[1]) for name, path in folders]
    pictures = [address for _, inside in (("", files), *flat) for name, address in inside if looks_like_picture(name)]
    if not pictures:
        return None
    lists: list[tuple[str | None, str, Finder]] = []
    finder = Finder(tree.root, pictures, tree)
    for name, inside in (("", files), *flat):
        own = [address for each, address in inside if looks_like_picture(each)]
        split = exact_split(name) if own else None
        for each, address in inside:
            if not _may_list(each):
                continue
            if split is not None and _stem(each) in ("metadata", "_classes"):
                lists.append((split, address, Finder(tree.root, own, tree)))
            elif (not name or not own) and "submission" not in _stem(each):
                lists.append((None, address, finder.of_list(each)))
    found: list[tuple[str | None, str, Finder, Columns]] = []
    unclear: dict[str, DatasetError] = {}
    for split, address, finder in lists:
        try:
            if (known := _columns(address, finder, columns)) is not None:
                found.append((split, address, finder, known))
        except DatasetError as error:
            unclear[address] = error
    for address, why in unclear.items():
        if not found or split_in(_stem(tree.name(address))) != "test":  # one without labels lies beside that of train
            raise why
    if not found:
        return None
    if len(found) > 1 and any(split is None for split, *_ in found):
        words = [worded_split(_stem(tree.name(address))) for _, address, *_ in found]
        if None in words or len({word[0] for word in words if word}) < len(found):
            names = [tree.name(address) for _, address, *_ in found]
            raise DatasetError(
                f"{root} has several lists of its pictures ({some(names)}): name the one that counts as SOURCE"
            )
        found = [(word[0], *each[1:]) for word, each in zip(words, found, strict=True) if word]
    parts = [(split, list_dataset(address, True, known, finder)) for split, address, finder, known in found]
    items = _of_all(root, parts, [tree.name(address) for _, address, *_ in found])
    names = [tree.name(item.path) for item in items if item.split is None]
    of_folder = _splits_of_folders(names) if len(names) == len(items) else []
    if of_folder:
        items = [replace(item, split=split) for item, split in zip(items, of_folder, strict=True)]
    said = [
        f"labels from {tree.name(address)}"
        + (f", columns {', '.join(f'{name}={theirs}' for name, theirs in known.items())}" if known else "")
        for _, address, _, known in found
    ]
    listed = {item.path for item in items}
    others = [tree.name(address) for address in pictures if address not in listed]
    left_out = [f"{count(others, 'picture')} in no list left out: {some(others)}"] if others else []
    by_folder = ["splits from the folders that the pictures are in"] if of_folder else []
    left = [f"{tree.name(address)} left out, in which no column is the label" for address in unclear]
    notices = [*said, *left, *by_folder, *left_out, *(notice for _, part in parts for notice in part.notices)]
    return Dataset(root, tuple(items), tuple(notices), skipped=tree.skipped)


def _inside(tree: Tree, name: str, folder: str) -> str:
    """Return the only folder in one where it is called `images` or the like, or as the one around it; else that."""
    below, kind = tree.glance(folder)
    is_same = len(below) == 1 and kind is None and (holds_pictures(below[0][0]) or below[0][0].lower() == name.lower())
    return below[0][1] if is_same else folder


def _of_all(root: str, parts: Sequence[tuple[str | None, Dataset]], names: Sequence[str]) -> list[Item]:
    """Return the pictures of all lists, each once; raises `DatasetError` where two lists contradict each other."""
    known: dict[str, tuple[Item, str]] = {}
    for (split, part), name in zip(parts, names, strict=True):
        for listed in part.items:
            item = replace(listed, split=listed.split or split)
            first, where = known.setdefault(item.path, (item, name))
            if first != item:
                before, now = (f"{each.label or 'no label'}, {each.split or 'no split'}" for each in (first, item))
                raise DatasetError(
                    f"{root}: {item.path} stands in {where} and in {name} with another label or split ({before}; "
                    f"there {now}): take it out of one of them"
                )
    return [item for item, _ in known.values()]


def _splits_of_folders(names: Sequence[str]) -> list[str]:
    """Return the split that the folders of each of listed pictures say, where all are in one and some in `train`."""
    found = []
    for name in names:
        splits = {split for part in name.split("/")[:-1] if (split := split_in(part))}
        if len(splits) != 1:
            return []
        found.append(splits.pop())
    return found if len(set(found)) > 1 and "train" in found else []


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).replace("-", "", 1).isdecimal()


def _may_list(name: str) -> bool:
    """Tell whether a file may list pictures by its name."""
    return Path(name).suffix.lower() in (*LISTS, ".json", ".xml")


def _stem(name: str) -> str:
    return Path(name).stem.lower()


def _columns(address: str, finder: Finder, columns: Columns) -> Columns | None:
    """Return what the columns of a list are called, of one without a first line of names nothing; else `None`.

    Only files that name pictures beside them are lists. Raises `DatasetError` where the label in one cannot be told.
    """
    suffix = Path(name_of(address)).suffix.lower()
    if not _may_list(name_of(address)):
        return None
    try:
        with opened_text(address) as file:
            text = file.read(MOST_BYTES)
    except (DatasetError, UnicodeError):
        return None
    if suffix in (".json", ".xml"):
        if finder.is_named_in(text):
            raise _unknown(address, "it is no list of lines: make a CSV with the columns path,label of it")
        return None
    lines = text.splitlines(keepends=True)
    lines = lines[: -1 if len(text) == MOST_BYTES and len(lines) > 1 else None]
    lines = lines[1:] if lines and is_separator(lines[0]) else lines
    lines = lines[: LOOKED_AT + 1]
    if suffix in (".jsonl", ".ndjson"):
        return _of_json(address, lines, finder, columns)
    if suffix not in (".csv", ".tsv"):
        # lines of nothing but a path give no labels, and a path with several numbers is of a box, or the like
        pairs = [(path, label) for path, label in _pairs(lines, finder) if label and is_found(finder, path)]
        are_boxes = all(len(label.split()) > 1 and all(map(_is_number, label.split())) for _, label in pairs)
        has_labels = pairs and not are_boxes and _NO_LABELS.isdisjoint(_stem(address).replace("-", "_").split("_"))
        return {} if has_labels else None
    try:
        dialect = dialect_of(lines[0] if lines else "") if suffix == ".csv" else Dialect("\t", False)
        rows = list(islice(csv.reader(io.StringIO("".join(lines)), **dialect._asdict()), LOOKED_AT + 1))
    except csv.Error:
        return None
    if len(rows) < 2 or not rows[0]:
        return {} if suffix == ".tsv" and rows and rows[0] and finder.find(rows[0][0]) else None
    if is_picture(finder, rows[0][0]):
        if suffix == ".tsv" or len(rows[0]) == 2:
            return {}
        raise _unknown(address, "its first line names no columns: write path,label above it")
    rows[0] = [name.strip() for name in rows[0]]
    cells = {name: [row[at].strip() for row in rows[1:] if len(row) > at] for at, name in enumerate(rows[0])}
    path = columns.get("path") or _path_column(cells, finder)
    flags = [
        name.strip()
        for at, name in enumerate(rows[0])
        if name != path and all(len(row) > at and is_flag(row[at]) for row in rows[1:])
    ]
    of_classes = [at for at, name in enumerate(rows[0]) if name.strip() in flags]
    ones = [sum(len(row) > at and row[at].strip().startswith("1") for at in of_classes) for row in rows[1:]]
    is_named = "label" in columns or any(name.lower() in LABELS for name in flags)
    rest = {name for name in rows[0] if name.strip() not in flags} - {path, "split", columns.get("split")}
    rest = {name for name in rest if not all(split_in(cell) or not cell for cell in cells[name])}
    if path is not None and not is_named and len(flags) > 1 and not rest and 1 in ones and max(ones) == 1:
        chosen = {"path": path, "label": "+".join(flags)}
        return chosen | ({"split": columns["split"]} if "split" in columns else {})
    return _chosen(address, cells, path, columns)


def _pairs(lines: Sequence[str], finder: Finder) -> Iterator[tuple[str, str]]:
    for line in lines:
        if "\t" in line:
            path, _, label = line.strip().partition("\t")
            yield path, label
        elif line.strip():
            yield path_and_label(line, finder)


def _of_json(address: str, lines: Sequence[str], finder: Finder, columns: Columns) -> Columns | None:
    try:
        rows = [row for line in lines if line.strip() and isinstance(row := json.loads(line), dict)]
    except (ValueError, RecursionError):
        return None
    names = list(rows[0]) if rows else []
    cells = {name: [value for row in rows if isinstance(value := row.get(name), str)] for name in names}
    return _chosen(address, cells, columns.get("path") or _path_column(cells, finder), columns)


def _path_column(cells: Mapping[str, Sequence[str]], finder: Finder) -> str | None:
    """Return the column whose cells find most pictures, one with whole names before others.

    Numbers, of classes or of rows, may be names of some pictures, too.
    """
    found = {name: len({cell for cell in column if is_found(finder, cell)}) for name, column in cells.items()}
    whole = {name: any(map(looks_like_picture, column)) for name, column in cells.items()}
    most = max(found, key=lambda name: (found[name] > 0 and whole[name], found[name], _is_path(name)), default=None)
    return most if most is not None and found[most] else None


def _is_path(name: str) -> bool:
    return name.strip().lower() in PATHS


def _chosen(address: str, cells: Mapping[str, Sequence[str]], path: str | None, columns: Columns) -> Columns | None:
    """Return the columns of path and label, and of split if there is one."""
    if path is None and any(looks_like_picture(cell) for column in cells.values() for cell in column):
        raise _unknown(
            address, "and none of the pictures that it names is there: mend the paths in it, or move it away"
        )
    if path is None or len(cells) < 2:
        return None
    names = list(cells)
    others = [name for name in names if name not in (path, "split")]
    if not others:
        return None
    known = [name for name in others if name.lower() in LABELS]
    label = columns.get("label") or (known[0] if len(known) == 1 else others[0] if len(others) == 1 else None)
    if label is None:
        raise _unknown(
            address,
            f"which of its columns is the label is not clear ({some(others, 6)}): name it as SOURCE, with --columns "
            f"path={path},label=...",
        )
    return {"path": path, "label": label} | ({"split": columns["split"]} if "split" in columns else {})


def _unknown(address: str, why: str) -> DatasetError:
    return DatasetError(f"{address} lists the pictures beside it in a form that is not read, {why}")
