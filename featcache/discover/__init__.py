"""A folder, an archive, a manifest, one picture or a dataset in Python enters; a `Dataset` of ordered items leaves."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from featcache.discover.beside import listed_beside, named_list
from featcache.discover.datafiles import DataFiles, data_files
from featcache.discover.folders import folder_dataset
from featcache.discover.labels import (
    Columns,
    check_columns,
    check_encoding,
    check_label_from,
    check_no_columns,
    check_path,
    one_a_look,
    one_split,
)
from featcache.discover.levels import how_to_give
from featcache.discover.litter import is_skipped
from featcache.discover.manifests import LISTS
from featcache.discover.objects import object_dataset
from featcache.discover.shards import archive_or_shard, shards_dataset
from featcache.discover.splitwords import SPLIT_NAMES
from featcache.discover.tables import is_saved, saved_dataset, table_dataset, tables_dataset
from featcache.discover.trees import LocalTree, NamesTree, Tree, may_be_picture
from featcache.errors import DatasetError, DatasetNotFoundError, UsageError, refusal
from featcache.records import Access, Dataset, Item
from featcache.sources import ACCESS, file_stat, look_again, read, remote
from featcache.sources.addresses import CONTAINERS, GIVEN, is_remote, named, scheme

__all__ = ["SPLIT_NAMES", "discover", "is_skipped"]

_ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")


class _How(NamedTuple):
    """How a source is read, see `discover`."""

    labelled: bool
    columns: Columns
    label_from: str | None
    names_encoding: str | None

    def check_no_names(self, what: str) -> None:
        """Raise `UsageError` where the names of files are to be read of what is no folder and no archive."""
        if self.label_from is not None or self.names_encoding is not None:
            option = "--label-from" if self.label_from is not None else "--names-encoding"
            raise UsageError(f"{option} is for folders and archives, and {what} is none: leave it out")


def discover(
    source: Any,
    *,
    labelled: bool = True,
    columns: Columns | None = None,
    label_from: str | None = None,
    names_encoding: str | None = None,
) -> Dataset:
    """List the pictures of `source` in a stable order, without opening them.

    `source` is a folder (`class/*`, `train|val|test|holdout/class/*`, or flat), a `.csv` or `.parquet` manifest with
    the columns `path,label[,split]` (paths relative to the manifest), a `.zip` or `.tar` of a folder, WebDataset
    shards, Parquet files with pictures in them, what `datasets` saved to disk, one picture, each of them here or at a
    URL of fsspec; or a list of paths or a dataset object, see `object_dataset`; or one of these for each split, as
    `{"train": ..., "test": ...}`. `columns` says what path, label and split are called. `label_from` is a regular
    expression whose first group, or the one named `label`, finds the label in the path of a file below the folder, and
    one named `split` the split; `names_encoding` that of names in an archive which are in no stated one.
    Every regular file counts as a picture until decoding says otherwise; hidden files and cache folders are skipped.
    With `labelled=False` a manifest may lack labels. Raises `DatasetNotFoundError`, `DatasetError` and `UsageError`.
    """
    columns = columns or {}
    check_columns(columns)
    if label_from is not None:
        check_label_from(label_from)
    if names_encoding is not None:
        check_encoding(names_encoding)
    how = _How(labelled, columns, label_from, names_encoding)
    if isinstance(source, Mapping):
        return _checked(_of_splits(source, how), source)
    if not isinstance(source, str | os.PathLike):
        how.check_no_names("an object in Python")
        return _checked(object_dataset(source, labelled=how.labelled), source)
    root = check_path(named(source), "the dataset")
    look_again()
    try:
        if scheme(root) in CONTAINERS:
            dataset = Dataset(root, (Item(root),))
        elif is_remote(root):
            make = _remote_folder if remote.is_folder(root) else _file
            with remote.explained(root):
                dataset = make(root, how)
        elif os.path.isdir(root):  # noqa: PTH112
            dataset = _folder(root, LocalTree(root), how)
        else:
            os.lstat(root)
            dataset = _file(root, how)
    except DatasetError:
        raise
    except PermissionError as error:
        raise DatasetError(f"not allowed to read {error.filename}: check its permissions") from error
    except FileNotFoundError as error:
        raise DatasetNotFoundError(f"no such folder, manifest or picture: {error.filename}") from error
    except OSError as error:
        raise DatasetError(f"cannot read {error.filename}: {refusal(error)}") from error
    return _checked(dataset, source)


def _of_splits(source: Mapping[Any, Any], how: _How) -> Dataset:
    """Return one dataset of several, each of them a split; raises `DatasetError` where one has splits of its own."""
    parts: list[Dataset] = []
    known: dict[str, Item] = {}
    names: dict[str | None, Any] = {}
    for name, part in source.items():
        split = one_split(name, "the datasets")
        if names.setdefault(split, name) != name:
            raise DatasetError(f"the datasets {names[split]!r} and {name!r} are both of the split {split}: give one")
        if isinstance(part, str | os.PathLike):
            found = discover(part, **how._asdict())
            what = found.root
        else:
            found = object_dataset(part, split, how.labelled)
            what = f"the {type(part).__name__}"
        if {item.split for item in found.items} not in ({None}, {split}):
            raise DatasetError(f"{what} has splits of its own, and is given as {name!r}: give it alone")
        items = tuple(replace(item, split=split) for item in found.items)
        for item in items:
            if (first := known.setdefault(item.path, item)).split != split:
                raise DatasetError(f"{item.path} is given as {first.split} and as {split}: take one away")
        parts.append(replace(found, items=items))
    root = " + ".join(part.root for part in parts)
    return Dataset(
        root=root if scheme(root) == GIVEN else f"{GIVEN}://{root}",
        items=tuple(item for part in parts for item in part.items),
        notices=tuple(notice for part in parts for notice in part.notices),
        skipped=dict(sum((Counter(part.skipped) for part in parts), Counter[str]())),
        access=_access(parts),
    )


def _access(parts: Sequence[Dataset]) -> Access | None:
    """Return how the pictures of several datasets are had, `None` where none has a way of its own."""
    if all(part.access is None for part in parts):
        return None
    ways = {item.path: part.access or ACCESS for part in parts for item in part.items}
    return Access(lambda address: ways[address].read(address), lambda address: ways[address].stat(address))


def _checked(dataset: Dataset, source: Any) -> Dataset:
    """Return the dataset with labels that look the same as one class; raises `DatasetError` for one without files."""
    if not dataset.items:
        name = source if isinstance(source, str | os.PathLike) else dataset.root
        said = "".join(f" ({notice})" for notice in dataset.notices)
        raise DatasetError(f"{name} holds no files{said}: name a folder of pictures, or a manifest that lists some")
    return one_a_look(dataset)


def _file(root: str, how: _How) -> Dataset:
    lower = root.lower()
    if lower.endswith(_ARCHIVES):
        return archive_or_shard(root, how.labelled, how.columns, how.label_from, how.names_encoding)
    how.check_no_names(root)
    if lower.endswith(LISTS):
        return named_list(root, how.labelled, how.columns)
    if not lower.endswith(".parquet"):
        check_no_columns(root, how.columns)
        if not may_be_picture(lower.rpartition("/")[2]):
            raise DatasetError(f"{root} is no picture, and nothing that pictures are read from: {how_to_give([lower])}")
        return Dataset(root, (Item(root),))
    return table_dataset(root, [(root, None)], how.labelled, how.columns)


def _folder(root: str, tree: Tree, how: _How) -> Dataset:
    if how.names_encoding is not None:
        raise UsageError(f"--names-encoding is for the names in an archive, and {root} is a folder: leave it out")
    if isinstance(tree, LocalTree) and is_saved(root):
        return saved_dataset(root, how.labelled, how.columns)
    data = data_files(root, tree) if how.label_from is None else DataFiles()
    if data.kind == ".arrow" and not isinstance(tree, LocalTree):
        raise DatasetError(f"{root} is what `datasets` saved, which is read on this computer only: copy it here")
    if data.kind == ".tar":
        return shards_dataset(root, data, how.labelled, how.columns)
    if data.kind is not None:
        found = tables_dataset(root, data.files, how.labelled, how.columns)
        return replace(found, notices=(*data.notices, *found.notices))
    is_listed = how.label_from is None and how.labelled
    if is_listed and (listed := listed_beside(root, tree, how.columns)) is not None:
        return listed
    check_no_columns(root, how.columns)
    return folder_dataset(root, tree, label_from=how.label_from, labelled=how.labelled)


def _remote_folder(root: str, how: _How) -> Dataset:
    found = remote.listing(root)
    stats = {f"{root}/{name}": stat for name, stat in found.items()}
    dataset = _folder(root, NamesTree(list(found), f"{root}/"), how)
    # The listing told of all of them at once; each alone would be a request.
    return replace(dataset, access=Access(read, lambda address: stats.get(address) or file_stat(address)))
