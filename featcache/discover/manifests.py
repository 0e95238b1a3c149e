"""A CSV or Parquet file that lists pictures enters; the dataset it describes leaves."""

from __future__ import annotations

import codecs
import csv
import io
import os
import posixpath
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from itertools import chain, islice
from pathlib import PurePosixPath
from typing import Any, BinaryIO, NamedTuple, TextIO

from featcache.discover.labels import Columns, Labels, SplitColumns, check_path, json_object, one_split, split_option
from featcache.discover.splitwords import split_in, worded_split
from featcache.discover.trees import LocalTree, Tree, looks_like_picture
from featcache.errors import DatasetError, DatasetNotFoundError, PictureError
from featcache.records import Dataset, Item
from featcache.sheets import meant
from featcache.sources import exists, read
from featcache.sources.addresses import CONTAINERS, folder_of, is_remote, joined, name_of, scheme
from featcache.sources.containers import opened
from featcache.sources.remote import LIST_SECONDS
from featcache.texts import LONGEST, is_undecoded

LONGEST_PATH = 4096
MOST_LOOKED_AT = 2_000_000
"""So many files below a list are looked through for the names in it."""

MOST_COLUMNS, MOST_LINES = 10_000, 20_000_000

Row = tuple[str, str, str | None, str | None]
"""Where it stands, the path as it stands there, label and split."""


LISTS = (".csv", ".tsv", ".txt", ".lst", ".jsonl", ".ndjson")
"""How the names of lists of pictures end."""

PATHS = ("path", "file_name", "filename", "file", "image", "img", "image_path", "filepath", "id", "image_id")
LABELS = ("label", "labels", "class", "category")
"""What path and label are called in the first line of a list with tabs, and in JSON lines."""


_SEPARATOR = re.compile(r"sep=.\s*", re.IGNORECASE)


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
                    for key in {last, last.rpartition(".")[0]}:
                        self._by_name.setdefault(key, []).append((name, address))
        found = self._by_name.get(posixpath.basename(path), [])
        folder = posixpath.dirname(path)
        ending = f"/{folder}" if folder else ""
        found = [each for each in found if f"/{posixpath.dirname(each[0])}".endswith(ending)]
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


def _splits(name: str) -> set[str]:
    """Return the splits that the folders of a picture say."""
    above = name.split("/")[:-1]
    return {worded[0] for part in above if (worded := worded_split(part)) is not None}


def is_picture(finder: Finder, cell: str) -> bool:
    """Tell whether the first cell of a list names a picture; what columns are called is not looked for in folders."""
    return cell.strip().lower() not in (*PATHS, *LABELS) and is_found(finder, cell)


def is_found(finder: Finder, cell: str) -> bool:
    """Tell whether a cell names a picture, or several; that it was looked for is not kept as an example."""
    example = finder.example
    try:
        return finder.find(cell) is not None
    except DatasetError:  # two of this name
        return True
    finally:
        finder.example = example


def opened_list(address: str) -> BinaryIO:
    """Open a list of pictures, here, elsewhere or in an archive, for reading; raises `DatasetError`."""
    if scheme(address) not in CONTAINERS:
        return opened(address)
    try:
        return io.BytesIO(read(address)[0])
    except PictureError as error:
        raise DatasetError(f"{address} cannot be read: {error}") from error


def opened_text(address: str) -> TextIO:
    """Open a list as text in UTF-8, or in UTF-16 where its first bytes say so, as spreadsheets write it."""
    file = opened_list(address)
    first = file.read(2)
    file.seek(0)
    if first in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return io.TextIOWrapper(file, "utf-16", newline="")
    return io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")


class Dialect(NamedTuple):
    """How the fields of a CSV are separated, as its first line shows: some spreadsheets write ; or tabs."""

    delimiter: str
    skipinitialspace: bool


def is_separator(line: str) -> bool:
    """Tell whether a line is one that a spreadsheet writes above the names of columns, `sep=;`."""
    return _SEPARATOR.fullmatch(line) is not None


def dialect_of(line: str) -> Dialect:
    """Return how the first line of a CSV separates its fields."""
    delimiter = next((each for each in (",", ";", "\t") if each in line), ",")
    return Dialect(delimiter, f"{delimiter} " in line)


def list_dataset(root: str, labelled: bool, columns: Columns, finder: Finder | None = None) -> Dataset:
    """Return the dataset of a list of pictures.

    That is a CSV with the columns `path,label[,split]`, or what they are called in `columns`; the same with tabs, or
    without a first line of names; lines of a path, a space and a label; or lines of JSON. Raises `DatasetError`.
    """
    suffix = PurePosixPath(name_of(root)).suffix.lower()
    finder = finder or (None if is_remote(root) else Finder(folder_of(root)).of_list(root))
    said: list[str] = []
    try:
        with opened_text(root) as stream:
            labels = Labels()
            if suffix == ".csv":
                rows = _rows(root, stream, labelled, columns, labels, finder, said)
            else:
                rows = _other_rows(root, suffix, stream, columns, labels, finder, said)
            items = tuple(listed(root, rows, finder=finder))
    except csv.Error as error:
        raise DatasetError(f"{root} is not a readable CSV file: {error}") from error
    except UnicodeError as error:
        raise DatasetError(f"{root} is not in UTF-16, as its first bytes say: save it as UTF-8 ({error})") from error
    if undecoded := {item.label for item in items if item.label is not None and is_undecoded(item.label)}:
        said.append(f"{len(undecoded):,} of the labels not in UTF-8, as {min(undecoded)!r}: save the list as UTF-8")
    if finder and finder.example:
        said.append(
            f"names that are not there as written are looked for below the list, as {' for '.join(finder.example)}"
        )
    return Dataset(root, items, (*said, *labels.notices()))


def _other_rows(
    root: str,
    suffix: str,
    stream: TextIO,
    columns: Columns,
    labels: Labels,
    finder: Finder | None,
    said_of_all: list[str],
) -> Iterator[Row]:
    """Yield the rows of a list that is no CSV; raises `DatasetError` for a line of another form."""
    names: list[str] | None = None
    others: SplitColumns | None = None
    split_name = columns.get("split", "split")
    is_json = suffix in (".jsonl", ".ndjson")
    for number, line in enumerate(_lines(root, stream), 1):
        where, text = f"line {number}", line.strip("\r\n")
        said = f"{root}, {where}"
        if not text.strip():
            continue
        if is_json:
            row = _json_row(said, text)
        elif "\t" in text or suffix == ".tsv":
            fields = text.split("\t")
            if number == 1 and ("path" in columns or fields[0].lower() in PATHS):
                names = fields
                if len(set(names)) < len(names):
                    raise DatasetError(f"{said}: a column is there twice: name one anew")
                continue
            if len(fields) != len(names or ("path", "label")):
                raise DatasetError(f"{said}: it has {len(fields)} fields, and {len(names or (1, 2))} are expected")
            row = dict(zip(names or ("path", "label"), fields, strict=True))
        else:
            path, label = path_and_label(text, finder)
            if not path:
                raise DatasetError(f"{said}: {text!r:.60} is no path, a space or tab and a label: make a CSV of it")
            row = {"path": path, "label": label}
        path_name, label_name = (
            columns.get(name) or next((each for each in known if each in row), name)
            for name, known in (("path", PATHS), ("label", LABELS))
        )
        if not isinstance(row.get(path_name), str) or label_name not in row:
            missing = label_name if isinstance(row.get(path_name), str) else path_name
            raise DatasetError(
                f"{said}: there is no {missing!r}, but {', '.join(map(str, row))}: say what they are called with "
                "--columns path=...,label=..."
            )
        others = others or SplitColumns((path_name, label_name, split_name))
        others.see(row)
        value = labels.read(row[label_name], said)
        yield where, row[path_name], value, one_split(row.get(split_name), said)
    said_of_all += others.notices(split_option(columns)) if others and "split" not in columns else []


def path_and_label(text: str, finder: Finder | None) -> tuple[str, str]:
    """Return the two parts of a line, of which either may have spaces in it, if a picture is found by one of them."""
    path, _, label = text.strip().rpartition(" ")
    first, _, rest = text.strip().partition(" ")
    if finder and "," in text and is_found(finder, text.rpartition(",")[0].strip()):
        return text.rpartition(",")[0].strip(), text.rpartition(",")[2].strip()
    has_spaces = rest and first != path.rstrip() and not all(word.isdecimal() for word in rest.split())
    if finder and has_spaces and finder.find(path.rstrip()) is None and finder.find(first) is not None:
        return first, rest.strip()
    return path.rstrip(), label


def _json_row(said: str, text: str) -> dict[str, Any]:
    try:
        row = json_object(text)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{said}: it is no JSON ({error}): one object a line is expected") from error
    if not isinstance(row, dict):
        raise DatasetError(f'{said}: it is no object, as {{"file_name": "a.jpg", "label": "cat"}} is')
    return row


def listed(root: str, rows: Iterable[Row], folder: str | None = None, finder: Finder | None = None) -> Iterator[Item]:
    """Yield the pictures that a manifest lists, each once; raises `DatasetError` where it contradicts itself.

    Paths are relative to its folder, unless another `folder` is given; others are left to a `finder`.
    """
    seen: dict[str, tuple[str, Item]] = {}
    base = "the current folder" if folder else "the manifest"
    above = folder or folder_of(root)
    for where, path, label, split in rows:
        if not path:
            raise DatasetError(f"{root}, {where}: the path is empty")
        check_path(path, f"{root}, {where}")
        address = finder.find(path) if finder is not None else None
        if address is None and finder is not None and path != path.strip():
            path = path.strip()
            address = finder.find(path)
        if address is None:
            address = joined(above, path)
            if scheme(root) in CONTAINERS or not exists(address):
                raise DatasetNotFoundError(f"{root}, {where}: no such file: {path} (paths are relative to {base})")
        item = Item(address, label, split)
        first, known = seen.setdefault(address, (where, item))
        if known is item:
            yield item
        elif known != item:
            before, now = (f"{each.label or 'no label'}, {each.split or 'no split'}" for each in (known, item))
            raise DatasetError(
                f"{root}, {where}: {path} stands on {first} with another label or split ({before}; here {now}): "
                "keep one of them, since a picture has one label"
            )


def _lines(root: str, stream: TextIO) -> Iterator[str]:
    """Yield the lines of a manifest; one without end would be read into memory whole, and many such for ever."""
    end, lines = time.monotonic() + LIST_SECONDS, 0
    while line := stream.readline(LONGEST):
        if len(line) == LONGEST:
            raise DatasetError(f"{root} has a line of more than {LONGEST:,} characters: it is no list of pictures")
        lines += 1
        if lines > MOST_LINES or time.monotonic() > end:
            raise DatasetError(f"{root} has no end: after {lines:,} lines, and at most an hour, it is left")
        yield line


def _rows(
    root: str,
    stream: TextIO,
    labelled: bool,
    columns: Columns,
    labels: Labels,
    finder: Finder | None,
    said_of_all: list[str],
) -> Iterator[Row]:
    lines = _lines(root, stream)
    first = next(lines, "")
    first = next(lines, "") if is_separator(first) else first
    dialect = dialect_of(first)
    names = next(csv.reader([first], **dialect._asdict()), []) if not columns else []
    has_no_names = len(names) == 2 and finder is not None and is_picture(finder, names[0])
    rows = csv.DictReader(
        chain([first], lines), ["path", "label"] if has_no_names else None, strict=True, **dialect._asdict()
    )
    rows.fieldnames = [name.strip() for name in rows.fieldnames or ()]
    if dialect.delimiter != ",":
        said_of_all.append(f"its fields are taken as separated by {dialect.delimiter!r}")
    if has_no_names:
        said_of_all.append("its first line names no columns: taken as path and label")
    if len(rows.fieldnames or ()) > MOST_COLUMNS:
        raise DatasetError(f"{root} has {len(rows.fieldnames or ()):,} columns: it is no list of pictures")
    twice = [name for name, times in Counter(rows.fieldnames or ()).items() if times > 1 and name]
    if twice:
        raise DatasetError(
            f"{root}, line {rows.line_num}: the column {twice[0]!r} is there twice: name one of them anew"
        )
    path, label, split = (columns.get(name, name).strip() for name in ("path", "label", "split"))
    flags = _flags(label, rows.fieldnames or ())
    label_columns = flags or [label]
    needed = [
        path,
        *(label_columns if labelled or "label" in columns else []),
        *([split] if "split" in columns else []),
    ]
    for name in needed:
        if name not in (rows.fieldnames or ()):
            found = ",".join(rows.fieldnames or ()) or "nothing"
            raise DatasetError(
                f"{root} has no column {name!r}: its first line must name the columns path,label[,split], and says "
                f"{found}; other names are given as --columns path=...,label=...,split=..."
            )
    others = SplitColumns((path, split, *label_columns))
    for row in rows:
        where = f"line {rows.line_num}"
        said = f"{root}, {where}"
        others.see(row)
        if None in row:
            n, most = len(rows.fieldnames or ()) + len(row[None]), len(rows.fieldnames or ())
            raise DatasetError(
                f"{said}: it has {n} fields, and the first line {most}: put a field with a comma in it in double quotes"
            )
        cells = [meant(cell) if isinstance(cell := row.get(name), str) else cell for name in (path, label, split)]
        value = labels.read(_flagged(row, flags, said) if flags else cells[1], f"{said}, column {label!r}")
        yield where, cells[0] or "", value, one_split(cells[2], said)
    said_of_all += others.notices(split_option(columns)) if "split" not in columns else []


def _flags(label: str, names: Sequence[str]) -> list[str]:
    """Return the columns of which one is 1 in each row, where `label` is several names with + between them."""
    stripped = {name.strip(): name for name in names}
    parts = [part.strip() for part in label.split("+")]
    is_several = label not in names and len(parts) > 1 and all(part in stripped for part in parts)
    return [stripped[part] for part in parts] if is_several else []


def is_flag(cell: object) -> bool:
    """Tell whether a cell says that a picture is of a class, or is not."""
    return isinstance(cell, str) and cell.strip() in ("0", "1", "0.0", "1.0", "")


def _flagged(row: Mapping[str, Any], flags: Sequence[str], said: str) -> str | None:
    """Return the class whose column is 1; raises `DatasetError` where there are several."""
    wrong = next((name for name in flags if not is_flag(row[name])), None)
    if wrong is not None:
        raise DatasetError(f"{said}, column {wrong!r}: {row[wrong]!r:.60} is neither 0 nor 1")
    found = [name.strip() for name in flags if row[name].strip().startswith("1")]
    if len(found) > 1:
        raise DatasetError(
            f"{said}: several labels for one picture (multi-label), {', '.join(found)}: give each picture one"
        )
    return found[0] if found else None
