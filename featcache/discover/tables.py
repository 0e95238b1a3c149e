"""Parquet files, or what `datasets` saved to disk, enter; a dataset of the pictures in their rows leaves."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featcache.discover.filesplits import check_one_dataset, splits_of_files
from featcache.discover.labels import Columns, Labels, SplitColumns, check_names, one_label, one_split, split_option
from featcache.discover.manifests import Row, listed
from featcache.discover.once import each_once
from featcache.discover.splitwords import exact_split, is_of_splits, split_in
from featcache.errors import DatasetError
from featcache.records import Dataset, Item
from featcache.sources import table
from featcache.sources.addresses import part
from featcache.sources.tables import Table
from featcache.texts import LONGEST_LABEL, flaw

Parts = Sequence[tuple[str, str | None]]
"""The addresses of tables, each with the split that its name says."""


def table_dataset(root: str, parts: Parts, labelled: bool, columns: Columns, notices: Sequence[str] = ()) -> Dataset:
    """Return the dataset of the rows of tables, in order; where the pictures are paths, a table is a manifest."""
    labels = Labels()
    placed = (
        (address, item) for address, split in parts for item in _items(table(address), split, labelled, columns, labels)
    )
    items = list(each_once(root, placed))
    others = SplitColumns(())
    if all(item.split is None for item in items):
        for address, _ in parts:
            _see_others(table(address), columns, others)
    return Dataset(root, tuple(items), (*notices, *labels.notices(), *others.notices(split_option(columns))))


def _see_others(rows: Table, columns: Columns, others: SplitColumns) -> None:
    """Look at the columns of a table that may say splits by their names, and are not read."""
    import pyarrow.types as kinds

    are_read = {*columns.values(), "path", "image", "label", "split"}
    for name in rows.schema.names:
        kind = rows.schema.field(name).type if rows.schema.names.count(name) == 1 else None
        is_text = kind is not None and (kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_boolean(kind))
        if name in are_read or not is_text or not is_of_splits(name):
            continue
        with suppress(DatasetError):  # longer texts say no splits
            for cell in rows.column(name, LONGEST_LABEL):
                others.see({name: cell})


def tables_dataset(root: str, files: Sequence[str], labelled: bool, columns: Columns) -> Dataset:
    """Return the dataset of the tables in a folder, with the splits that a column of each says, or their names."""
    names = [file.removeprefix(root).strip("/") for file in files]
    check_one_dataset(root, names)
    splits, said = splits_of_files(names)
    has_names = any(columns.get("split", "split") not in table(file).schema.names for file in files)
    return table_dataset(root, list(zip(files, splits, strict=True)), labelled, columns, said if has_names else ())


def is_saved(root: str) -> bool:
    """Tell whether a folder is what `datasets` saved with `save_to_disk`."""
    names = ("dataset_dict.json", "state.json")
    return any(os.path.isfile(os.path.join(root, name)) for name in names)  # noqa: PTH113 - is_file() raises


def saved_dataset(root: str, labelled: bool, columns: Columns) -> Dataset:
    """Return the dataset that `datasets` saved to a folder, with its splits."""
    folder = Path(root)
    try:
        if (folder / "state.json").is_file():
            return table_dataset(root, _saved_parts(folder, None), labelled, columns)
        names = json.loads((folder / "dataset_dict.json").read_bytes())["splits"]
        exact = {split for name in names if (split := exact_split(name))}
        known = {name: split for name in names if (split := exact_split(name) or _other_split(name, exact))}
        parts = [part for name, split in known.items() for part in _saved_parts(folder / name, split)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{root} is no whole dataset of `save_to_disk` ({error}): save it again") from error
    said = [f"the split {name!r} is taken as {split}" for name, split in known.items() if exact_split(name) is None]
    said += [f"the split {name!r} left out" for name in names if name not in known]
    return table_dataset(root, parts, labelled, columns, said)


def _other_split(name: str, exact: Collection[str]) -> str | None:
    """Return the split that a name says in other words, `training`, where none is called so exactly."""
    split = split_in(name)
    return None if split in exact else split


def _saved_parts(folder: Path, split: str | None) -> Parts:
    state = json.loads((folder / "state.json").read_bytes())
    names = [file["filename"] for file in state["_data_files"]]
    if beside := [name for name in names if Path(name).name != name or flaw(name)]:
        raise ValueError(f"{beside[0]!r:.60} is no file in it")
    return [(str(folder / name), split) for name in names]


@dataclass(frozen=True)
class _Column:
    name: str
    classes: tuple[str, ...] = ()


def _items(rows: Table, split: str | None, labelled: bool, columns: Columns, found: Labels) -> Iterator[Item]:
    import pyarrow as pa

    path = _path_column(rows, columns)
    kind = rows.schema.field(path).type
    label, in_split = _label_column(rows, labelled, columns), _split_column(rows, columns)
    labels = rows.column(label.name, LONGEST_LABEL) if label else [None] * rows.n_rows
    splits = rows.column(in_split.name, LONGEST_LABEL) if in_split else [None] * rows.n_rows
    said: list[Row] = []
    for at, (value, own) in enumerate(zip(labels, splits, strict=True)):
        where = f"row {at}"
        column = f", column {label.name!r}" if label else ""
        named = found.read(value, f"{rows.address}, {where}{column}", label.classes if label else ())
        own = one_label(own, rows.address, in_split.classes) if in_split else own
        said.append((where, "", named, one_split(own, f"{rows.address}, {where}") or split))
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        paths = [str(value or "") for value in rows.column(path)]
        yield from listed(rows.address, ((w, p, la, sp) for (w, _, la, sp), p in zip(said, paths, strict=True)))
    elif pa.types.is_struct(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        for at, (_, _, named, its) in enumerate(said):
            yield Item(part("row", f"{path}/{at}", rows.address), named, its)
    else:
        raise DatasetError(f"{rows.address}: the column {path!r} holds {kind}, neither pictures nor paths of them")


def _path_column(rows: Table, columns: Columns) -> str:
    pictures = _of_type(rows, "Image")
    if "path" in columns or len(pictures) != 1:
        wanted = columns.get("path") or next((n for n in ("path", "image") if n in rows.schema.names), "path")
        _check(rows, wanted, "path")
        return wanted
    _check(rows, pictures[0], "path")
    return pictures[0]


def _label_column(rows: Table, labelled: bool, columns: Columns) -> _Column | None:
    classes = _of_type(rows, "ClassLabel")
    is_other = len(classes) == 1 and "label" not in rows.schema.names
    wanted = columns.get("label") or (classes[0] if is_other else "label")
    if "label" in columns or labelled:
        _check(rows, wanted, "label")
    return _column(rows, wanted)


def _split_column(rows: Table, columns: Columns) -> _Column | None:
    if "split" in columns:
        _check(rows, columns["split"], "split")
    return _column(rows, columns.get("split", "split"))


def _column(rows: Table, name: str) -> _Column | None:
    if name not in rows.schema.names:
        return None
    noted: Any = rows.features.get(name)
    _check(rows, name, "label")
    names = (noted.get("names") or ()) if isinstance(noted, dict) else ()
    check_names(names, f"{rows.address}, column {name!r}")
    return _Column(name, tuple(names))


def _of_type(rows: Table, kind: str) -> list[str]:
    return [name for name, noted in rows.features.items() if isinstance(noted, dict) and noted.get("_type") == kind]


def _check(rows: Table, name: str, what: str) -> None:
    if name not in rows.schema.names:
        raise DatasetError(
            f"{rows.address} has no column {name!r}: it has {', '.join(rows.schema.names) or 'none'}; say which one "
            f"holds the {what} with --columns {what}=NAME"
        )
    if rows.schema.names.count(name) > 1:
        raise DatasetError(f"{rows.address} has several columns {name!r}: name all but one of them anew")
