"""A dataset of `torchvision.datasets` or its like, held in Python, enters; a `Dataset` with access to it leaves."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from featcache.decode import as_file
from featcache.discover.labels import one_label, one_split
from featcache.errors import DatasetError, PictureError
from featcache.records import Access, Dataset, FileStat, Item
from featcache.sources.addresses import GIVEN, named

_LABELS = ("targets", "labels", "_labels", "y")
_CLASSES = ("classes", "categories")


def object_dataset(source: Any) -> Dataset:
    """Return the dataset of an object, or of one for each split: `{"train": ..., "test": ...}`.

    Where it knows the paths of its pictures (`ImageFolder`), they are the items. Else its pictures must be
    `PIL.Image`s, so it must have no transform, and their vectors are kept under the pixels. Raises `DatasetError`.
    """
    by_split = source if isinstance(source, Mapping) else {None: source}
    found = [_Given(dataset, one_split(split, "the datasets")) for split, dataset in by_split.items()]
    pictures = {item.path: (given, at) for given in found for at, item in enumerate(given.items)}
    lock = threading.Lock()

    def read(address: str) -> tuple[bytes, bytes, FileStat | None]:
        given, at = pictures[address]
        with lock:  # few datasets say that several threads may read them
            picture = given.picture(at)
        data = as_file(picture)
        return data, hashlib.sha256(data).digest(), None

    items = tuple(item for given in found for item in given.items)
    access = None if all(given.has_paths for given in found) else Access(read, lambda _: None)
    return Dataset(" + ".join(given.root for given in found), items, access=access)


class _Given:
    def __init__(self, source: Any, split: str | None) -> None:
        self._source, self._rows = _without_subsets(source)
        dataset = self._source
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            raise DatasetError(
                f"{type(source).__name__} is no dataset: name a folder or a manifest, or give an object with a length "
                "and pictures by number, as torchvision.datasets has them"
            )
        marks = (getattr(dataset, name, None) for name in ("root", "split", "train"))
        self.root = f"{GIVEN}://" + "/".join(
            [type(dataset).__name__, *(str(value).strip("/") for value in marks if value is not None)]
        )
        samples: Any = getattr(dataset, "samples", None)
        self.has_paths = bool(samples) and all(isinstance(sample[0], str) for sample in samples)
        try:
            values = self._values(samples)
        except Exception as error:  # a dataset may raise anything
            said = " ".join(f"{type(error).__name__} {error}".split())
            raise DatasetError(f"{self.root} gives no (picture, label) by number: {said}") from error
        names = self._names()
        labels = [one_label(v, f"{self.root}/{row}", names) for row, v in zip(self._rows, values, strict=True)]
        given = self.root if split is None else f"{self.root}/{split}"
        paths = [named(samples[row][0]) if self.has_paths else f"{given}/{row}" for row in self._rows]
        self.items = [Item(path, label, split) for path, label in zip(paths, labels, strict=True)]

    def picture(self, at: int) -> Any:
        try:
            return self._source[self._rows[at]][0]
        except Exception as error:  # a dataset may raise anything
            raise PictureError(f"the dataset cannot give it: {' '.join(str(error).split())}") from error

    def _names(self) -> tuple[str, ...]:
        """Return the names of the classes; of labels that were transformed they say nothing."""
        names = next((getattr(self._source, name) for name in _CLASSES if hasattr(self._source, name)), ())
        is_transformed = getattr(self._source, "target_transform", None) is not None
        return () if is_transformed or not isinstance(names, Sequence) else tuple(map(str, names))

    def _values(self, samples: Any) -> list[Any]:
        """Return the label of each picture as the dataset has it, where possible without its pictures."""
        known = next((getattr(self._source, name) for name in _LABELS if hasattr(self._source, name)), ())
        if self.has_paths:
            known = [sample[1] for sample in samples]
        if len(known) != len(self._source):
            values = [self._source[row][1] for row in self._rows]
        else:
            transform = getattr(self._source, "target_transform", None) or (lambda value: value)
            values = [transform(known[row]) for row in self._rows]
        return [value.item() if getattr(value, "ndim", None) == 0 else value for value in values]


def _without_subsets(source: Any) -> tuple[Any, Sequence[int]]:
    """Return the dataset below torch's `Subset`s, and the numbers of the pictures that are left of it."""
    if hasattr(source, "indices") and hasattr(source, "dataset"):
        dataset, rows = _without_subsets(source.dataset)
        return dataset, [rows[int(at)] for at in source.indices]
    return source, range(len(source)) if hasattr(source, "__len__") else range(0)
