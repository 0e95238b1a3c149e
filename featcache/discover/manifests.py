"""A CSV or Parquet file that lists pictures enters; the dataset it describes leaves."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import PurePosixPath
from typing import Any

from featcache.discover.finder import LABELS, PATHS, Finder, is_found, names_of_unnamed
from featcache.discover.labels import Columns, Labels, SplitColumns, check_path, json_object, one_split, split_option
from featcache.discover.lines import TABS, dialect_of, is_separator, lines_of, opened_text
from featcache.discover.trees import looks_like_picture
from featcache.errors import DatasetError, DatasetNotFoundError
from featcache.records import Dataset, Item
from featcache.sheets import meant
from featcache.sources import exists
from featcache.sources.addresses import CONTAINERS, folder_of, is_remote, joined, name_of, scheme
from featcache.texts import is_undecoded

MOST_COLUMNS = 10_000

Row = tuple[str, str, str | None, str | None]
"""Where it stands, the path as it stands there, label and split."""

_Read = Callable[[str, Iterator[str], bool, Columns, Labels, Finder | None, list[str]], Iterator[Row]]


LISTS = (".csv", ".tsv", ".txt", ".lst", ".jsonl", ".ndjson")
"""How the names of lists of pictures end."""


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
            lines = lines_of(root, stream)
            first = next(lines, "")
            is_json = suffix in (".jsonl", ".ndjson")
            read: _Read = _rows if suffix in (".csv", ".tsv") or ("\t" in first and not is_json) else _other_rows
            rows = read(root, chain([first], lines), labelled, columns, labels, finder, said)
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
    lines: Iterator[str],
    labelled: bool,
    columns: Columns,
    labels: Labels,
    finder: Finder | None,
    said_of_all: list[str],
) -> Iterator[Row]:
    """Yield the rows of a list that is no table; raises `DatasetError` for a line of another form."""
    others: SplitColumns | None = None
    split_name = columns.get("split", "split")
    is_json = PurePosixPath(name_of(root)).suffix.lower() in (".jsonl", ".ndjson")
    for number, line in enumerate(lines, 1):
        where, text = f"line {number}", line.strip("\r\n")
        said = f"{root}, {where}"
        if not text.strip():
            continue
        if is_json:
            row = _json_row(said, text)
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
    """Return the two parts of a line, of which either may have spaces in it, if a picture is found by one of them.

    A number is no name of a picture where the name of another stands behind it: it is that of the line, or the label.
    """
    if "\t" in text:
        fields = next(csv.reader([text], strict=True, **TABS._asdict()))
        return (fields[0], "\t".join(fields[1:])) if len(fields) > 1 else ("", "")
    path, _, label = text.strip().rpartition(" ")
    first, _, rest = text.strip().partition(" ")
    if first.isdecimal() and finder and looks_like_picture(second := rest.partition(" ")[0]):
        behind = rest.partition(" ")[2].strip()
        if not (behind and is_found(finder, path.rstrip())):
            return second, behind or first
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


def _rows(
    root: str,
    lines: Iterator[str],
    labelled: bool,
    columns: Columns,
    labels: Labels,
    finder: Finder | None,
    said_of_all: list[str],
) -> Iterator[Row]:
    """Yield the rows of a table, with commas or what stands for them, or with tabs; raises `DatasetError`."""
    first = next(lines, "")
    first = next(lines, "") if is_separator(first) else first
    is_csv = PurePosixPath(name_of(root)).suffix.lower() == ".csv"
    dialect = dialect_of(first) if is_csv else TABS
    names = next(csv.reader([first], strict=True, **dialect._asdict()), []) if not columns else []
    unnamed = names_of_unnamed(names, finder) if finder is not None else None
    if finder is None and not is_csv and len(names) == 2 and names[0].strip().lower() not in PATHS + LABELS:
        unnamed = ["path", "label"]
    rows = csv.DictReader(chain([first], lines), unnamed, strict=True, **dialect._asdict())
    rows.fieldnames = [name.strip() for name in rows.fieldnames or ()]
    if is_csv and dialect.delimiter != ",":
        said_of_all.append(f"its fields are taken as separated by {dialect.delimiter!r}")
    if unnamed and (is_csv or unnamed != ["path", "label"]):
        said_of_all.append(f"its first line names no columns: taken as {' and '.join(unnamed)}")
    if len(rows.fieldnames or ()) > MOST_COLUMNS:
        raise DatasetError(f"{root} has {len(rows.fieldnames or ()):,} columns: it is no list of pictures")
    twice = [name for name, times in Counter(rows.fieldnames or ()).items() if times > 1 and name]
    if twice:
        raise DatasetError(
            f"{root}, line {rows.line_num}: the column {twice[0]!r} is there twice: name one of them anew"
        )
    called = {} if is_csv else {"path": PATHS, "label": LABELS}
    path, label, split = (
        (columns.get(name) or next((n for n in called.get(name, ()) if n in rows.fieldnames), name)).strip()
        for name in ("path", "label", "split")
    )
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
    numbers: set[str] = set()
    for row in rows:
        where = f"line {rows.line_num}"
        said = f"{root}, {where}"
        others.see(row)
        if None in row:
            n, most = len(rows.fieldnames or ()) + len(row[None]), len(rows.fieldnames or ())
            raise DatasetError(
                f"{said}: it has {n} fields, and the first line {most}: put a field with a comma in it in double quotes"
            )
        if not is_csv and None in row.values():
            n = sum(cell is not None for cell in row.values())
            raise DatasetError(f"{said}: it has {n} fields, and the first line {len(rows.fieldnames)}")
        if unnamed and "number" in unnamed:
            if row["number"] in numbers:
                raise DatasetError(
                    f"{said}: the number {row['number']!r:.60} in the first column stands in a line before it, so it "
                    "is not that of the line: write the names of the columns above the list, as path,label"
                )
            numbers.add(row["number"])
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
