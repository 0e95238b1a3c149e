"""Lists beside class folders enter; the splits that they give to the pictures, or what is to be said of them, leaves.

Food-101, MIT's indoor scenes and others keep their pictures in class folders, and their splits as lists of paths.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from featcache.discover.levels import be, count, some
from featcache.discover.manifests import LISTS, opened_text
from featcache.discover.splitwords import split_in
from featcache.discover.trees import Tree, looks_like_picture
from featcache.errors import DatasetError
from featcache.records import Item
from featcache.texts import LONGEST

_FIELD = re.compile(r"[,;\t]|(?<=\w) (?=\w)")

MOST_BYTES = 2**27
LOOKED_AT = 20
"""So many lines of a file tell whether it names the pictures beside it."""

Lists = Sequence[tuple[str, str]]
"""Name and address of each."""


def with_listed_splits(tree: Tree, items: list[Item], lists: Lists, notices: list[str]) -> list[Item]:
    """Return pictures without splits with those that lists of their paths say, as `train.txt` and `test.txt` do.

    There is one list for each of several splits, `train` among them, each line of them is the path of a picture below
    the folder of the classes, with or without its ending, and none is in two; else the pictures as they are. Pictures
    in no list are left out, and it is said.
    """
    splits = [(name, address, split) for name, address in lists if (split := _split_of_list(name))]
    kinds = [split for *_, split in splits]
    if len(set(kinds)) < 2 or len(set(kinds)) < len(kinds) or "train" not in kinds:
        return items
    above = tree.folder_name(tree.root).strip("/")
    by_name: dict[str, Item] = {}
    for item in items:
        name = tree.name(item.path).removeprefix(above).lstrip("/")
        by_name[name] = by_name[name.rpartition(".")[0]] = item
    found: dict[str, str] = {}
    for _, address, split in splits:
        for line in _lines_of(address):
            picture = by_name.get(line)
            if picture is None or found.setdefault(picture.path, split) != split:
                return items
    kept = [replace(item, split=found[item.path]) for item in items if item.path in found]
    if {item.split for item in kept} != set(kinds):
        return items
    notices.append(f"splits from {some([name for name, *_ in splits])}, which list the pictures of each")
    if len(kept) < len(items):
        others = [tree.name(item.path) for item in items if item.path not in found]
        notices.append(f"{count(others, 'picture')} in none of these lists left out: {some(others)}")
    return kept


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


def _split_of_list(name: str) -> str | None:
    path = PurePosixPath(name)
    return split_in(path.stem) if path.suffix.lower() in (".txt", ".lst") else None


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
                if text := line.strip().replace("\\", "/").removeprefix("./"):
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
