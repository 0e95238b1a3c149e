"""What a list says of a picture enters; the address of the picture that is meant leaves."""

from __future__ import annotations

import os
import posixpath
import re
import unicodedata
from collections.abc import Iterable, Sequence
from copy import copy
from itertools import islice
from pathlib import PurePosixPath

from featcache.discover.splitwords import split_in, worded_split
from featcache.discover.trees import LocalTree, Tree, looks_like_picture
from featcache.errors import DatasetError
from featcache.sources.addresses import joined, name_of, scheme

LONGEST_PATH = 4096
MOST_LOOKED_AT = 2_000_000
"""So many files below a list are looked through for the names in it."""

PATHS = ("path", "file_name", "filename", "file", "image", "img", "image_path", "filepath", "id", "image_id")
LABELS = ("label", "labels", "class", "category")
"""What path and label are called in the first line of a list with tabs, and in JSON lines."""


class Finder:
    """Finds pictures by names that are short of their folder or their ending, as lists of competitions have them.

    Of a `tree` only the `pictures` are found, by their paths below its root; without one any file by its path here too.
    """

    def __init__(self, folder: str, pictures: Iterable[str] | None = None, tree: Tree | None = None) -> None:
        self._tree = tree or LocalTree(folder)
        self._folder = folder if isinstance(self._tree, LocalTree) else None
        self._pictures = pictures
        self._by_name: dict[str, list[tuple[str, str]]] = {}
        self._split: str | None = None
        self.example: tuple[str, str] | None = None

    def of_list(self, name: str) -> Finder:
        """Return one that takes of two pictures that of the split which a list's name says, as `trainLabels.csv`."""
        found = copy(self)
        worded = worded_split(PurePosixPath(name).stem)
        found._split = worded[0] if worded else None
        return found

    def find(self, path: str) -> str | None:
        """Return the address of a picture, or `None`; raises `DatasetError` where two could be meant."""
        if not path or "\0" in path or len(path) > LONGEST_PATH or scheme(path) is not None:
            return None
        if self._folder is not None and os.path.isfile(direct := joined(self._folder, path)):  # noqa: PTH113
            return direct
        if self._pictures is None and self._folder is not None and "/" in path:  # a list in a folder of lists
            direct = joined(os.path.dirname(self._folder.rstrip("/")), path)  # noqa: PTH120 - as it is named
            if os.path.isfile(direct):  # noqa: PTH113
                self.example = self.example or (path, direct)
                return direct
        found = self._named(posixpath.normpath(path))
        if not found and "\\" in path:
            found = self._named(posixpath.normpath(path.replace("\\", "/")))
        above = f"{posixpath.basename((self._folder or '').rstrip('/'))}/"
        if not found and len(above) > 1 and path.startswith(above):  # as seen from where the list's folder is
            found = self._named(posixpath.normpath(path.removeprefix(above)))
        found = found or self._absolute(path)
        if self._split is not None:
            # a picture of another split is another picture that is called alike
            own = [each for each in found if self._split in _splits(each[0])]
            found = own or [each for each in found if not any(map(split_in, each[0].split("/")[:-1]))]
        if len(found) > 1:
            raise DatasetError(f"{path!r} could be {found[0][0]} or {found[1][0]}: write the path below the folder")
        if found and self.example is None and found[0][0] != path:
            self.example = path, found[0][0]
        return found[0][1] if found else None

    def _named(self, path: str) -> list[tuple[str, str]]:
        """Return names and addresses of the pictures of which the path is the end, with or without their ending."""
        if not self._by_name:
            self._by_name[""] = []
            below = self._pictures if self._pictures is not None else self._tree.files(self._tree.root)
            for address in islice(below, MOST_LOOKED_AT):
                name = self._tree.name(address)
                if looks_like_picture(name):
                    last = posixpath.basename(name)
                    for key in map(_composed, {last, last.rpartition(".")[0]}):
                        self._by_name.setdefault(key, []).append((name, address))
        found = self._by_name.get(_composed(posixpath.basename(path)), [])
        folder = posixpath.dirname(path)
        ending = f"/{_composed(folder)}" if folder else ""
        found = [each for each in found if _composed(f"/{posixpath.dirname(each[0])}").endswith(ending)]
        return [each for each in found if each[0] == path] or found

    def _absolute(self, path: str) -> list[tuple[str, str]]:
        """Return what an absolute path of another computer ends in, `img/a.jpg` of `/content/data/img/a.jpg`."""
        parts = path.replace("\\", "/").split("/")
        if parts[0] and not re.fullmatch("[A-Za-z]:", parts[0]):
            return []
        ends = ("/".join(parts[at:]) for at in range(1, len(parts) - 1))
        found = next((found for end in ends if (found := self._named(end))), [])
        return found or [each for each in self._named(parts[-1]) if "/" not in each[0]]

    def is_named_in(self, text: str) -> bool:
        """Tell whether the name of one of the first pictures stands in a text."""
        return any(name_of(address) in text for address in islice(self._pictures or (), 20))


def _composed(name: str) -> str:
    """Return a name in Unicode NFC; some systems keep the names of files in NFD, and lists have them as they look."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _splits(name: str) -> set[str]:
    """Return the splits that the folders of a picture say."""
    above = name.split("/")[:-1]
    return {worded[0] for part in above if (worded := worded_split(part)) is not None}


def is_picture(finder: Finder, cell: str) -> bool:
    """Tell whether the first cell of a list names a picture; what columns are called is not looked for in folders."""
    return cell.strip().lower() not in (*PATHS, *LABELS) and is_found(finder, cell)


def names_of_unnamed(fields: Sequence[str], finder: Finder) -> list[str] | None:
    """Return what the columns hold of a list whose first line is one of fields; `None` where that names the columns.

    It has a path and a label, in either order, and perhaps the number of the line before them.
    """
    cells = [cell.strip() for cell in fields]
    numbers, rest = (cells[:1], cells[1:]) if len(cells) == 3 and cells[0].isdecimal() else ([], cells)
    if len(rest) != 2 or not all(rest):
        return None
    is_named = [looks_like_picture(cell) and is_picture(finder, cell) for cell in rest]
    if is_named[0] or (not numbers and not is_named[1] and is_picture(finder, rest[0])):
        names = ["path", "label"]
    elif is_named[1]:
        names = ["label", "path"]
    else:
        return None
    return [*("number" for _ in numbers), *names]


def is_found(finder: Finder, cell: str) -> bool:
    """Tell whether a cell names a picture, or several; that it was looked for is not kept as an example."""
    example = finder.example
    try:
        return finder.find(cell) is not None
    except DatasetError:  # two of this name
        return True
    finally:
        finder.example = example
