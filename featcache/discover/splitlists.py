"""Lists beside class folders enter; the splits that they give to the pictures, or what is to be said of them, leaves.

Food-101, MIT's indoor scenes and others keep their pictures in class folders, and their splits as lists of paths.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import NamedTuple

from featcache.discover.levels import be, count, some
from featcache.discover.lines import opened_text
from featcache.discover.manifests import LISTS
from featcache.discover.splitwords import split_in, worded_split
from featcache.discover.trees import Tree, looks_like_picture
from featcache.errors import DatasetError
from featcache.records import Item
from featcache.texts import LONGEST

_FIELD = re.compile(r"[,;\t]|(?<=\w) (?=\w)")
_FIELDS = re.compile(r"[,;\t ]")
_LAST_FIELD = re.compile(r"[,;\t ][^,;\t ]*$")

MOST_BYTES = 2**27
LOOKED_AT = 20
"""So many lines of a file tell whether it names the pictures beside it."""

Lists = Sequence[tuple[str, str]]
"""Name and address of each."""


class _List(NamedTuple):
    """A list of the pictures of a split: those that it names, and its lines that name none."""

    name: str
    split: str
    here: Sequence[str]
    lacking: Sequence[str]


def with_listed_splits(tree: Tree, items: list[Item], lists: Lists, notices: list[str]) -> tuple[list[Item], Lists]:
    """Return pictures without splits with those that lists of their paths say, as `train.txt` and `test.txt` do.

    The lists that were not read so are returned with them.

    There is one list for each split, and their names are alike besides; or one with a column that says splits. A line
    names a picture by its path from any folder above its class, with or without its ending, or by its name where no
    other is called so; other fields are passed over. Where no list says train, the pictures in none of them are that;
    else those are left out. What is not used, and why, is said.
    """
    if not lists:
        return items, lists
    find = _by_names(tree, items)
    read = [_List(name, split, *_pictures_of(address, find)) for name, address, split in _lists_of_splits(lists)]
    named = [each for each in read if each.here]
    if not named:
        tables = [table for name, address in lists if (table := _by_column(name, address, find))]
        if len(tables) != 1:
            return items, lists
        named = read = tables[0]
    called = some([*dict.fromkeys(each.name for each in named)])
    others = [each for each in lists if each[0] not in {used.name for used in named}]
    found: dict[str, str] = {}
    twice = [path for each in named for path in each.here if found.setdefault(path, each.split) != each.split]
    rest = [item for item in items if item.path not in found]
    is_train_listed = any(each.split == "train" for each in named)
    why = ""
    if twice:
        why = f"{tree.name(twice[0])} is in two of them"
    elif is_train_listed and len(named) == 1:
        why = "no list of pictures to be scored is beside it"
    elif not is_train_listed and not rest:
        why = "none says train, and all pictures are in them"
    elif len(rest) > len(found) and any(len(each.here) < len(each.lacking) for each in named):
        why = "most of the lines name no picture here, and most pictures are in no line"
    if why:
        notices.append(f"{called} {be(named)} not used for the splits: {why}")
        return items, others
    notices.append(f"splits from {called}, which {'list' if len(named) > 1 else 'lists'} the pictures of each")
    for each in read:
        if each.lacking:
            lines = f"{count(each.lacking, 'line')} of {each.name} that {'name' if len(each.lacking) > 1 else 'names'}"
            notices.append(f"{lines} no picture here left out: {some(each.lacking)}")
    if rest:
        what = "left out" if is_train_listed else "taken as train"
        names = [tree.name(item.path) for item in rest]
        notices.append(f"{count(rest, 'picture')} in none of these lists {what}: {some(names)}")
    if is_train_listed:
        return [replace(item, split=found[item.path]) for item in items if item.path in found], others
    return [replace(item, split=found.get(item.path, "train")) for item in items], others


def _lists_of_splits(lists: Lists) -> list[tuple[str, str, str]]:
    """Return the lists that are one for each split by their names, with the split of each; none where it is not plain.

    A list of train and val in one, as VOC's `trainval.txt`, is that of train where there is none of train alone.
    """
    named: dict[tuple[str, ...], list[tuple[str, str, str]]] = {}
    joined: list[tuple[str, str, str]] = []
    for name, address in lists:
        path = PurePosixPath(name)
        if path.suffix.lower() not in (".txt", ".lst", ".csv"):
            continue
        if path.stem.lower().replace("_", "") == "trainval":
            joined.append((name, address, "train"))
        elif found := worded_split(path.stem):
            named.setdefault(found[1], []).append((name, address, found[0]))
    if len(named) > 1:
        return []
    splits = [each for group in named.values() for each in group]
    kinds = {split for *_, split in splits}
    splits += joined if "train" not in kinds else []
    kinds = {split for *_, split in splits}
    return splits if len(kinds) == len(splits) else []


def _by_names(tree: Tree, items: Sequence[Item]) -> dict[str, str | None]:
    """Return the addresses of pictures by their paths below the folder of classes, also without ending, and by name.

    It is `None` where several are called so.
    """
    above = tree.folder_name(tree.root).strip("/")
    found: dict[str, str | None] = {}
    for item in items:
        name = tree.name(item.path).removeprefix(above).lstrip("/")
        last = name.rpartition("/")[2]
        for called in (name, name.rpartition(".")[0], last):
            found[called] = item.path if found.get(called, item.path) == item.path else None
    return found


def _pictures_of(address: str, find: Mapping[str, str | None]) -> tuple[list[str], list[str]]:
    """Return the pictures that a list names, and the lines that name none."""
    here: dict[str, None] = {}
    others: list[str] = []
    for at, line in enumerate(_lines_of(address)):
        path = _picture_in(line, find)
        if path is not None:
            here[path] = None
        elif at or "/" in line:  # the first may hold the names of columns
            others.append(line[:80])
    return [*here], others


def _picture_in(line: str, find: Mapping[str, str | None]) -> str | None:
    """Return the address of the picture that a line begins with, or else a field of it; `None` where there is none."""
    found = _named_in(line, find)
    if found is None and len(fields := _FIELDS.split(line)) > 1:
        found = next((path for field in fields[1:] if (path := _named_in(field.strip('"'), find))), None)
    return found


def _named_in(line: str, find: Mapping[str, str | None]) -> str | None:
    """Return the address of the picture that a line begins with, `None` where there is none."""
    while line:
        name = line
        while True:
            if (path := find.get(name)) is not None:
                return path
            if name in find or "/" not in name:
                break
            name = name.partition("/")[2]
        line = _LAST_FIELD.sub("", line) if _LAST_FIELD.search(line) else ""
    return None


def _by_column(name: str, address: str, find: Mapping[str, str | None]) -> list[_List]:
    """Return what a list with a picture and the word of a split in each line says, as a list for each split."""
    if PurePosixPath(name).suffix.lower() not in LISTS:
        return []
    here: dict[str, list[str]] = {}
    lacking: list[str] = []
    for at, line in enumerate(_lines_of(address)):
        picture = _picture_in(line, find)
        splits = {split for field in _FIELDS.split(line) if (split := split_in(field.strip('"')))}
        if picture is not None and len(splits) == 1:
            here.setdefault(splits.pop(), []).append(picture)
        elif picture is not None or (at == LOOKED_AT and not here):
            return []
        elif at:
            lacking.append(line[:80])
    first, *others = here.items() if len(here) > 1 and "train" in here else [("", [])]
    return [_List(name, *first, lacking), *(_List(name, *each, []) for each in others)] if first[1] else []


def unused_lists(names: Sequence[str], lists: Lists) -> list[str]:
    """Return what is to be said of lists that name the pictures in class folders, and are not used."""
    if not lists:
        return []
    known = {part for name in names for part in _ends(name)}
    used = [name for name, address in lists if any(map(known.__contains__, _cells(address)))]
    if not used:
        return []
    is_table = any(name.lower().endswith((".csv", ".tsv", ".jsonl")) for name in used)
    advice = ": for labels in a table name it as SOURCE" if is_table else ""
    verb = "names" if len(used) == 1 else "name"
    return [f"{some(used)} {verb} the pictures in these folders, and {be(used)} not used{advice}"]


def _lines_of(address: str) -> Iterator[str]:
    """Yield the lines of a list of paths, one more that is no path where it is too long to be one."""
    try:
        with opened_text(address) as file:
            read = 0
            while line := file.readline(LONGEST):
                read += len(line)
                if len(line) == LONGEST or read > MOST_BYTES:
                    yield ""
                    return
                text = line.strip().replace("\\", "/").removeprefix("./")
                if text and not text.startswith("#"):
                    yield text
    except (DatasetError, OSError, UnicodeError):
        yield ""


def _cells(address: str) -> Iterator[str]:
    """Yield the names of pictures in the first lines of a file that says something of them."""
    if PurePosixPath(address).suffix.lower() not in LISTS:
        return
    try:
        with opened_text(address) as file:
            lines = [file.readline(LONGEST) for _ in range(LOOKED_AT)]
    except (DatasetError, OSError, UnicodeError):
        return
    for line in lines:
        cells = _FIELD.split(line.strip())
        for cell in cells[:8] if len(cells) > 1 else ():  # a path alone has no label
            yield from _ends(cell.strip().strip('"'))


def _ends(name: str) -> set[str]:
    """Return the name of a picture's file, alone and with its folder."""
    parts = name.replace("\\", "/").split("/")
    return {"/".join(parts[-2:]), parts[-1]} if looks_like_picture(parts[-1]) else set()
