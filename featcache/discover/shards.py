"""Tar files in WebDataset's layout enter; a dataset of the pictures in them, read in place, leaves.

Files of one sample have one name up to the first dot: `000017.jpg`, `000017.cls` (https://github.com/webdataset).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from featcache.discover.beside import listed_beside
from featcache.discover.datafiles import DataFiles
from featcache.discover.filesplits import check_one_dataset, splits_of_files
from featcache.discover.folders import folder_dataset
from featcache.discover.labels import Columns, Labels, check_no_columns
from featcache.discover.levels import count, some
from featcache.discover.litter import is_skipped
from featcache.discover.manifests import LISTS
from featcache.discover.splitwords import split_in
from featcache.discover.tables import Parts
from featcache.discover.trees import NamesTree, looks_like_picture
from featcache.errors import DatasetError, PictureError
from featcache.records import Dataset, Item
from featcache.sources import archive
from featcache.sources.addresses import CHAIN, part
from featcache.sources.archives import TarArchive, ZipArchive
from featcache.texts import LONGEST

Sample = dict[str, str]
"""The names of the files of a sample, by what follows the first dot."""


def archive_or_shard(
    root: str, labelled: bool, columns: Columns, label_from: str | None, encoding: str | None
) -> Dataset:
    """Return the dataset of a zip or tar: a WebDataset shard where labels are files in it, else a folder in it."""
    found = archive(root, encoding)
    label = columns.get("label", "cls").split(".")[0]
    if label_from is None and isinstance(found, TarArchive) and any(name.endswith(f".{label}") for name in found.names):
        return _of_shards(root, [(root, None)], columns)
    kind = "zip" if isinstance(found, ZipArchive) else "tar"
    tree = NamesTree(found.names, f"{kind}://", f"{CHAIN}{root}")
    if label_from is None and labelled and (listed := listed_beside(root, tree, columns)) is not None:
        return replace(listed, notices=(*listed.notices, *_said(found)))
    check_no_columns(root, columns)
    return folder_dataset(root, tree, _said(found), label_from, labelled)


def shards_dataset(root: str, data: DataFiles, labelled: bool, columns: Columns) -> Dataset:
    """Return the dataset of the WebDataset shards in a folder, with the splits that their names say.

    Raises `DatasetError` where labels are asked for and none is in the shards, but perhaps in their folders or beside.
    """
    names = [file.removeprefix(root).strip("/") for file in data.files]
    check_one_dataset(root, names)
    splits, said = splits_of_files(names)
    found = _of_shards(root, list(zip(data.files, splits, strict=True)), columns, (*data.notices, *said))
    if not labelled or "label" in columns or any(item.label is not None for item in found.items):
        return found
    inside = dict.fromkeys(item.path.split("://")[1].split(CHAIN)[0].rpartition("/")[0] for item in found.items)
    if len(inside) > 1:
        of_split = {split: file for file, split in zip(data.files, splits, strict=True) if split}
        in_python = ", ".join(f'"{split}": "{file}"' for split, file in of_split.items())
        is_each = len(of_split) == len(data.files) > 1
        raise DatasetError(
            f"{root}: the archives have no KEY.cls, and their pictures in folders ({some(list(inside))}): for these as "
            f"the labels name one as SOURCE, as {data.files[0]}, or unpack each into a folder that is called like it"
            + (f", or give them in Python, as {{{in_python}}}" if is_each else "")
        )
    if lists := [name for name in data.left_out if f".{name.rpartition('.')[2].lower()}" in LISTS]:
        raise DatasetError(
            f"{root}: the archives have no KEY.cls: if {some(lists)} has the labels, unpack them beside it, "
            "else move it away"
        )
    return found


def _of_shards(root: str, parts: Parts, columns: Columns, said: Sequence[str] = ()) -> Dataset:
    """Return the dataset of shards, in the order of the shards and of the samples in them."""
    items: list[Item] = []
    labels = Labels()
    notices = [*said]
    keys: list[str] = []
    endings: set[str] = set()
    without: list[str] = []
    unlabelled = 0
    for address, split in parts:
        found = archive(address)
        assert isinstance(found, TarArchive)
        if found.twice:
            raise DatasetError(f"{address}: two samples have files of one name ({some(found.twice)}): name them anew")
        notices += _said(found)
        for key, sample in _samples(address, found):
            picture = _picture(address, key, sample, columns)
            if picture is None:
                without.append(key)
                continue
            label = _label(found, address, key, sample, columns, labels)
            unlabelled += label is None
            items.append(Item(part("tar", picture, address), label, split))
            keys.append(key)
            endings |= sample.keys()
    items, of_folders = _with_splits_of_folders(root, items, keys)
    notices += of_folders
    if without:
        notices.append(f"{count(without, 'sample')} without a picture left out: {some(without)}")
    if unlabelled:
        ending = columns.get("label", "cls").partition(".")[0]
        lacking = f"{unlabelled:,} of {len(items):,} samples without a label: it is looked for in KEY.{ending}"
        if "label" in columns and unlabelled == len(items):
            raise DatasetError(f"{root}: {lacking}: --columns label={columns['label']} names another ending or field")
        others = sorted(each for each in endings if not looks_like_picture(f"x.{each}"))
        asked = (
            f"; there are {some(others)}: say which with --columns label=ENDING, or label=json.FIELD" if others else ""
        )
        notices.append(lacking + (asked if unlabelled == len(items) else ""))
    return Dataset(root, tuple(items), (*notices, *labels.notices()))


def _with_splits_of_folders(root: str, items: list[Item], keys: Sequence[str]) -> tuple[list[Item], list[str]]:
    """Return samples with the splits that folders in the shards say, and what is to be said of it.

    Raises `DatasetError` where the name of a shard says one split, and folders in it several.
    """
    said = [{split for each in key.split("/")[:-1] if (split := split_in(each))} for key in keys]
    splits = {split for each in said for split in each}
    if len(splits) < 2 or "train" not in splits:
        return items, []
    other = next(
        (key for key, item, own in zip(keys, items, said, strict=True) if item.split and own != {item.split}), None
    )
    if other is not None:
        raise DatasetError(
            f"{root}: the folders in its shards say splits ({some(sorted(splits))}), and the names of the shards "
            f"others, of {other}: name the shard alone as SOURCE, or name it anew"
        )
    if unclear := [key for key, own in zip(keys, said, strict=True) if len(own) != 1]:
        return items, [
            f"the folders of some samples say splits ({some(sorted(splits))}), and are not taken, since those of "
            f"{count(unclear, 'sample')} ({some(unclear)}) say none, or several"
        ]
    if all(item.split for item in items):
        return items, []
    return [replace(item, split=own.pop()) for item, own in zip(items, said, strict=True)], [
        "splits from the folders that the samples are in"
    ]


def _said(found: ZipArchive | TarArchive) -> list[str]:
    said = []
    if found.left_out:
        said.append(
            f"{count(found.left_out, 'entry', 'entries')} of the archive left out, which is a link, or no file that "
            f"could lie in a folder: {some(found.left_out)}"
        )
    if found.unsure is not None:
        taken = "read in code page 437" if isinstance(found, ZipArchive) else "not in UTF-8"
        said.append(
            f"the names in the archive are in no stated encoding, and {taken}, as {found.unsure}: if that is wrong, "
            "say which with --names-encoding, as gbk, shift_jis or cp1252"
        )
    if found.twice:
        said.append(f"{count(found.twice, 'name')} more than once in the archive, the last counts: {some(found.twice)}")
    return said


def _samples(address: str, found: TarArchive) -> Iterator[tuple[str, Sample]]:
    samples: dict[str, Sample] = {}
    for name in found.names:
        folder, slash, file = name.rpartition("/")
        key, _, ending = file.partition(".")
        if not is_skipped(file):
            key = f"{folder}{slash}{key}"
            if samples.setdefault(key, {}).setdefault(ending.lower(), name) != name:
                raise DatasetError(f"{address}: the sample {key} has two files .{ending.lower()}: name one anew")
    yield from samples.items()


def _picture(address: str, key: str, sample: Sample, columns: Columns) -> str | None:
    if "path" in columns:
        return sample.get(columns["path"].lower())
    found: Sequence[str] = [name for name in sample.values() if looks_like_picture(name)]
    if len(found) > 1:
        raise DatasetError(
            f"{address}: the sample {key} holds several pictures ({some(found)}): say which with --columns path=ENDING"
        )
    return found[0] if found else None


def _label(found: TarArchive, address: str, key: str, sample: Sample, columns: Columns, labels: Labels) -> str | None:
    """Return the label of a sample: the text of a file, or one field of a JSON file."""
    ending, _, field = columns.get("label", "cls").partition(".")
    where = f"{address}, sample {key}, {columns.get('label', 'cls')}"
    name = sample.get(ending.lower())
    if name is None:
        return None
    try:
        text = found.read(name).decode("utf-8")
        if len(text) > LONGEST:
            raise ValueError(f"it has {len(text):,} characters, and at most {LONGEST:,} are taken")
        value: Any = json.loads(text) if field else text
        return labels.read(value.get(field) if field else value, where)
    except (PictureError, ValueError, AttributeError, RecursionError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{where}: its label cannot be read from {name}: {error}") from error
