"""A list of paths, or a dataset of `torchvision.datasets` or its like in Python, enters; a `Dataset` of it leaves."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from featcache.decode import as_file, identified
from featcache.discover.labels import Labels, SplitColumns, check_names, check_path, no_missing, one_split
from featcache.discover.levels import some
from featcache.discover.manifests import Row, listed
from featcache.discover.once import each_once
from featcache.discover.splitwords import is_of_splits
from featcache.errors import DatasetError, PictureError
from featcache.records import Access, Dataset, FileStat, Item
from featcache.sources import local
from featcache.sources.addresses import GIVEN, named
from featcache.sources.keys import content_key

_LABELS = ("targets", "labels", "_labels", "y")
_CLASSES = ("classes", "categories")
_COLUMNS = ("path", "label", "split")
"""Of a table of pandas."""

_CALLED = {
    *("label", "labels", "class", "classes", "classname", "category", "categories", "breed", "species", "target"),
    *("targets", "tag", "tags"),
}
"""Words in the names of columns that may hold labels."""


def object_dataset(source: Any, split: str | None = None, labelled: bool = True) -> Dataset:
    """Return the dataset of an object, all of it in one split.

    It is a list of paths, a list of pairs of path and label or of path, label and split, a list of `PIL.Image`s or
    arrays alone or in pairs with their labels, a `pandas.DataFrame` with the columns `path` and perhaps `label` and
    `split`, an array of pictures (n, height, width) or (n, height, width, 3) in uint8, alone or in a pair
    with their labels, a `datasets.Dataset` with one column of pictures, or has a length and (picture, label) by number.
     Where it knows the paths of its pictures (`ImageFolder`), they are the items.
    Else its pictures must be `PIL.Image`s, so it must have no transform, and their vectors are kept under the pixels.
    With `labelled=False` a column of labels that is called otherwise than `label` is not asked for. Raises
    `DatasetError`.
    """
    if hasattr(source, "columns") and hasattr(source, "to_dict"):
        return _of_frame(source, split, labelled)
    if _is_arrays(source):
        source = Arrays(*source)
    elif getattr(source, "ndim", 1) == 0 or getattr(source, "ndim", 1) > 2:
        source = Arrays(source, [None] * (len(source) if source.ndim else 0))
    if getattr(source, "ndim", None) == 1 and hasattr(source, "tolist"):
        source = source.tolist()
    if isinstance(source, Sequence) and source and (_is_path(source[0]) or _is_row(source[0])):
        return _listed(source, split)
    if isinstance(source, tuple | list) and source and _is_picture(source[0]):
        source = Pictures(source)
    labels = Labels()
    said: list[str] = []
    _check_has_pictures(source)
    if hasattr(source, "column_names"):
        source = HuggingFaceDataset(source, labelled)
        said = [*source.unlabelled, *(source.notices if split is None else ())]
    given = _Given(source, split, labels)
    if given.has_paths:
        placed = ((f"entry {row}", item) for row, item in zip(given.rows, given.items, strict=True))
        return Dataset(given.root, tuple(each_once(given.root, placed)), tuple(labels.notices()))
    places = {item.path: at for at, item in enumerate(given.items)}
    lock = threading.Lock()

    def read(address: str) -> tuple[bytes, bytes, FileStat | None]:
        with lock:  # few datasets say that several threads may read them
            picture = given.picture(places[address])
        data = as_file(picture)
        return data, content_key(data), None

    access = Access(read, lambda _: None)
    return Dataset(given.root, tuple(given.items), (*labels.notices(), *said), access)


def _is_arrays(source: Any) -> bool:
    is_pair = isinstance(source, tuple | list) and len(source) == 2
    return is_pair and getattr(source[0], "ndim", 0) > 2 > getattr(source[1], "ndim", 1) - 1


class Arrays:
    """Pictures and labels in two arrays, as MNIST's, by number; raises `DatasetError` for other arrays."""

    def __init__(self, pictures: Any, labels: Any) -> None:
        kind, shape = str(getattr(pictures, "dtype", "")).rpartition(".")[2], tuple(pictures.shape)
        if kind != "uint8" or not (len(shape) == 3 or (len(shape) == 4 and shape[3] == 3)):
            raise DatasetError(
                f"an array of {kind or type(pictures).__name__} of the shape {shape} is no array of pictures: give one "
                "of uint8, 0 to 255, of the shape (n, height, width) or (n, height, width, 3)"
            )
        if not hasattr(labels, "__len__") or getattr(labels, "ndim", 1) != 1:
            raise DatasetError(f"labels of the shape {np.shape(labels)} are no list: give one for each picture")
        if len(labels) != len(pictures):
            raise DatasetError(f"there are {len(pictures):,} pictures in the array, and {len(labels):,} labels")
        self._pictures = np.asarray(pictures)
        self.targets = labels.tolist() if hasattr(labels, "tolist") else list(labels)
        self.root = hashlib.sha256(np.ascontiguousarray(self._pictures).data).hexdigest()[:16]

    def __len__(self) -> int:
        """Return how many pictures there are."""
        return len(self._pictures)

    def __getitem__(self, at: int) -> tuple[Image.Image, Any]:
        """Return a picture and its label."""
        return Image.fromarray(self._pictures[at]), self.targets[at]


def _of_frame(frame: Any, split: str | None, labelled: bool) -> Dataset:
    """Return the dataset of a table of pandas; its name is a digest of the paths and labels in it."""
    names = list(frame.columns)
    if twice := [name for name in names if names.count(name) > 1]:
        raise DatasetError(f"the table has the column {twice[0]!r} twice: name one anew")
    if "path" not in names:
        raise DatasetError(
            f"the table has no column 'path', but {', '.join(map(str, names))}: rename the one with the paths to path, "
            "and the one with the labels to label"
        )
    others = [str(name) for name in names if name not in _COLUMNS]
    lacking = _without_labels(others, "the table") if labelled and "label" not in names else []
    cells = {name: [no_missing(cell) for cell in frame[name].tolist()] for name in names}
    columns = [cells.get(name) or [None] * len(frame) for name in _COLUMNS]
    splits = SplitColumns(_COLUMNS)
    for name in names:
        for cell in cells[name] if name not in _COLUMNS else ():
            splits.see({name: cell})
    labels, rows = Labels(), []
    for at, (path, label, own) in enumerate(zip(*columns, strict=True)):
        if not _is_path(path):
            raise DatasetError(f"row {at} of the table: the path is {type(path).__name__}, no text")
        where = f"the table, row {at}"
        rows.append((f"row {at}", named(path), labels.read(label, where), one_split(own, where) or split))
    found = _of_rows(rows, labels, "the table")
    return replace(found, notices=(*lacking, *found.notices, *splits.notices("rename {} to split")))


def _without_labels(others: Sequence[str], what: str) -> list[str]:
    """Return what is to be said of pictures that have no column `label`, and others; raises `DatasetError`.

    That is for columns which are called as those of labels are.
    """
    if called := [name for name in others if not _CALLED.isdisjoint(re.split(r"[\W\d_]+", name.lower()))]:
        raise DatasetError(
            f"{what} has no column 'label', but {some(called)}: rename the one with the labels to label, or leave "
            f"{'it' if len(called) == 1 else 'them'} out for pictures without labels"
        )
    return [f"no labels, since {what} has no column 'label', but {some(others, 6)}"] if others else []


def _is_path(value: Any) -> bool:
    return isinstance(value, str | os.PathLike)


def _is_row(value: Any) -> bool:
    """Tell whether a value is a path with a label, and perhaps a split."""
    return isinstance(value, tuple | list) and len(value) > 1 and _is_path(value[0])


def _is_picture(value: Any) -> bool:
    return isinstance(value, Image.Image) or (isinstance(value, np.ndarray) and value.ndim > 1)


class Pictures:
    """Pictures in a list, without labels, by number; raises `DatasetError` for a list that holds something else too."""

    def __init__(self, source: Sequence[Any]) -> None:
        for at, entry in enumerate(source):
            if not _is_picture(entry):
                raise DatasetError(
                    f"entry {at} of the list is {type(entry).__name__}, and entry 0 is a picture: give all alike"
                )
        self._pictures, self.targets = list(source), [None] * len(source)
        digest = hashlib.sha256()
        for picture in source:
            with suppress(PictureError):  # which is said of it where it is read
                digest.update(as_file(picture))
        self.root = digest.hexdigest()[:16]

    def __len__(self) -> int:
        """Return how many pictures there are."""
        return len(self._pictures)

    def __getitem__(self, at: int) -> tuple[Any, Any]:
        """Return a picture and its label."""
        return self._pictures[at], self.targets[at]


def _listed(source: Sequence[Any], split: str | None) -> Dataset:
    """Return the dataset of a list of paths, alone or with label and perhaps split; its name is a digest of them."""
    labels, rows = Labels(), []
    length = len(source[0]) if _is_row(source[0]) else 1
    kind = {1: "a path", 2: "a path and a label", 3: "a path, a label and a split"}.get(length)
    if kind is None:
        raise DatasetError(f"entry 0 of the list has {length} parts: give paths, (path, label) or (path, label, split)")
    for at, entry in enumerate(source):
        if not (_is_row(entry) and len(entry) == length if length > 1 else _is_path(entry)):
            raise DatasetError(
                f"entry {at} of the list is {type(entry).__name__}, and entry 0 is {kind}: give all alike"
            )
        path, value, own = map(no_missing, (*(entry if length > 1 else (entry,)), None, None)[:3])
        value = value.item() if value is not None and getattr(value, "ndim", None) == 0 else value
        where = f"the list, entry {at}"
        rows.append((f"entry {at}", named(path), labels.read(value, where), one_split(own, where) or split))
    if os.path.isdir(rows[0][1]):  # noqa: PTH112
        raise DatasetError(
            f"{rows[0][1]} is a folder, and a list is of pictures: give a folder alone, or one for each split as "
            '{"train": FOLDER, "val": FOLDER}'
        )
    return _of_rows(rows, labels, "the list")


def _of_rows(rows: Sequence[Row], labels: Labels, name: str) -> Dataset:
    digest = hashlib.sha256(json.dumps([[path, label] for _, path, label, _ in rows]).encode()).hexdigest()
    items = tuple(listed(name, rows, os.sep))
    return Dataset(f"{GIVEN}://list/{digest[:16]}", items, tuple(labels.notices()))


class HuggingFaceDataset:
    """A `datasets.Dataset` as pictures and labels by number; raises `DatasetError` where it is not clear which."""

    def __init__(self, source: Any, labelled: bool) -> None:
        kinds = {name: type(kind).__name__ for name, kind in source.features.items()}
        pictures, classes = ([name for name in kinds if kinds[name] == kind] for kind in ("Image", "ClassLabel"))
        label = "label" if "label" in kinds else classes[0] if len(classes) == 1 else None
        if len(pictures) != 1 or (label is None and len(classes) > 1):
            raise DatasetError(
                f"this datasets.Dataset has the columns {', '.join(kinds)}: leave one of pictures in it, and one called"
                " label, with select_columns and rename_column"
            )
        others = [name for name in kinds if name != pictures[0]]
        self.unlabelled = _without_labels(others, "this datasets.Dataset") if labelled and label is None else []
        self._source, self._picture = source, pictures[0]
        kind = source.features[self._picture]
        self._mode = kind.mode
        self._undecoded = source.cast_column(self._picture, replace(kind, decode=False))
        self.targets = [None] * len(source) if label is None else list(source[label])
        self.classes = tuple(getattr(source.features.get(label), "names", ()))
        self.root, self.split = source._fingerprint, getattr(source, "split", None)
        splits = SplitColumns(())
        for name, kind in source.features.items():
            if getattr(kind, "dtype", None) in ("string", "bool") and is_of_splits(name):
                for cell in source[name]:
                    splits.see({name: cell})
        self.notices = splits.notices("one dataset for each value of {}, as {{'train': ..., 'test': ...}}")

    def __len__(self) -> int:
        """Return how many pictures there are."""
        return len(self._source)

    def __getitem__(self, at: int) -> tuple[Any, Any]:
        """Return a picture and its label; the picture is decoded here, since `datasets` would do it in any format."""
        picture = self._undecoded[at][self._picture]
        if isinstance(picture, dict):
            data, path = picture["bytes"], picture["path"]
            picture = identified(local.read(path)[0] if data is None else data)
            picture = picture if self._mode is None else ImageOps.exif_transpose(picture).convert(self._mode)
        return picture, self.targets[at]


def _check_has_pictures(source: Any) -> None:
    """Raise `DatasetError` for what has no length or no pictures by number."""
    if hasattr(source, "__len__") and hasattr(source, "__getitem__"):
        return
    streams = " (one that is streamed has none: load it without streaming)" if hasattr(source, "__iter__") else ""
    raise DatasetError(
        f"{type(source).__name__} is no dataset: name a folder or a manifest, or give an object with a length and "
        f"pictures by number, as torchvision.datasets has them{streams}"
    )


class _Given:
    def __init__(self, source: Any, split: str | None, found: Labels) -> None:
        self._source, self.rows = _without_subsets(source)
        dataset = self._source
        _check_has_pictures(dataset)
        marks = [getattr(dataset, name, None) for name in ("root", "split", "train")]
        own = [str(value).strip("/") for value in marks if value is not None and not callable(value)]
        self.root = f"{GIVEN}://" + "/".join([type(dataset).__name__, *(text for text in own if " at 0x" not in text)])
        samples: Any = getattr(dataset, "samples", None)
        self.has_paths = bool(samples) and all(isinstance(sample[0], str) for sample in samples)
        try:
            values = self._values(samples)
        except Exception as error:  # a dataset may raise anything
            said = " ".join(f"{type(error).__name__} {error}".split())
            raise DatasetError(f"{self.root} gives no (picture, label) by number: {said}") from error
        names = self._names()
        labels = [found.read(v, f"{self.root}/{row}", names) for row, v in zip(self.rows, values, strict=True)]
        given = self.root if split is None else f"{self.root}/{split}"
        paths = [
            check_path(named(samples[row][0]), f"{self.root}/{row}") if self.has_paths else f"{given}/{row}"
            for row in self.rows
        ]
        self.items = [Item(path, label, split) for path, label in zip(paths, labels, strict=True)]

    def picture(self, at: int) -> Any:
        try:
            return self._source[self.rows[at]][0]
        except Exception as error:  # a dataset may raise anything
            raise PictureError(f"the dataset cannot give it: {' '.join(str(error).split())}") from error

    def _names(self) -> tuple[str, ...]:
        """Return the names of the classes; of labels that were transformed they say nothing."""
        names = next((getattr(self._source, name) for name in _CLASSES if hasattr(self._source, name)), ())
        is_transformed = getattr(self._source, "target_transform", None) is not None
        if is_transformed or not isinstance(names, Sequence):
            return ()
        check_names(found := tuple(map(str, names)), self.root)
        return found

    def _values(self, samples: Any) -> list[Any]:
        """Return the label of each picture as the dataset has it, where possible without its pictures."""
        known = next((getattr(self._source, name) for name in _LABELS if hasattr(self._source, name)), ())
        if self.has_paths:
            known = [sample[1] for sample in samples]
        if len(known) != len(self._source):
            values = [self._source[row][1] for row in self.rows]
        else:
            transform = getattr(self._source, "target_transform", None) or (lambda value: value)
            values = [transform(known[row]) for row in self.rows]
        return [value.item() if getattr(value, "ndim", None) == 0 else value for value in values]


def _without_subsets(source: Any) -> tuple[Any, Sequence[int]]:
    """Return the dataset below torch's `Subset`s, and the numbers of the pictures that are left of it."""
    if hasattr(source, "indices") and hasattr(source, "dataset"):
        dataset, rows = _without_subsets(source.dataset)
        return dataset, [rows[int(at)] for at in source.indices]
    return source, range(len(source)) if hasattr(source, "__len__") else range(0)
