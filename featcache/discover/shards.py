"""Tar files in WebDataset's layout enter; a dataset of the pictures in them, read in place, leaves.

Files of one sample have one name up to the first dot: `000017.jpg`, `000017.cls` (https://github.com/webdataset).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from featcache.discover.beside import listed_beside
from featcache.discover.filesplits import splits_of_files
from featcache.discover.folders import folder_dataset
from featcache.discover.labels import Columns, Labels, check_no_columns
from featcache.discover.levels import count, some
from featcache.discover.litter import is_skipped
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


def shards_dataset(root: str, files: Sequence[str], columns: Columns) -> Dataset:
    """Return the dataset of the WebDataset shards in a folder, with the splits that their names say."""
    splits, said = splits_of_files([file.removeprefix(root).strip("/") for file in files])
    return _of_shards(root, list(zip(files, splits, strict=True)), columns, said)


def _of_shards(root: str, parts: Parts, columns: Columns, said: Sequence[str] = ()) -> Dataset:
    """Return the dataset of shards, in the order of the shards and of the samples in them."""
    items: list[Item] = []
    labels = Labels()
    notices = [*said]
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
    if without:
        notices.append(f"{count(without, 'sample')} without a picture left out: {some(without)}")
    if unlabelled:
        ending = columns.get("label", "cls").partition(".")[0]
        lacking = f"{unlabelled:,} of {len(items):,} samples without a label: it is looked for in KEY.{ending}"
        if "label" in columns and unlabelled == len(items):
            raise DatasetError(f"{root}: {lacking}: --columns label={columns['label']} names another ending or field")
        notices.append(lacking)
    return Dataset(root, tuple(items), (*notices, *labels.notices()))


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
