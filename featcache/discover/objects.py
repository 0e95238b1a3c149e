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
from featcache.sources.addresses import GIVEN

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
        named = (getattr(dataset, name, None) for name in ("root", "split", "train"))
        self.root = f"{GIVEN}://" + "/".join(
            [type(dataset).__name__, *(str(value).strip("/") for value in named if value is not None)]
        )
        samples: Any = getattr(dataset, "samples", None)
        self.has_paths = bool(samples) and all(isinstance(sample[0], str) for sample in samples)
        labels = self._labels(samples)
        paths = [str(samples[row][0]) if self.has_paths else f"{self.root}/{row}" for row in self._rows]
        self.items = [Item(path, label, split) for path, label in zip(paths, labels, strict=True)]

    def picture(self, at: int) -> Any:
        try:
            return self._source[self._rows[at]][0]
        except Exception as error:  # a dataset may raise anything
            raise PictureError(f"the dataset cannot give it: {' '.join(str(error).split())}") from error

    def _labels(self, samples: Any) -> list[str | None]:
        names = next((getattr(self._source, name) for name in _CLASSES if hasattr(self._source, name)), ())
        names = tuple(map(str, names)) if isinstance(names, Sequence) else ()
        known = next((getattr(self._source, name) for name in _LABELS if hasattr(self._source, name)), ())
        if self.has_paths:
            known = [sample[1] for sample in samples]
        if len(known) != len(self._source):
            known = {row: self._source[row][1] for row in self._rows}
        found: list[str | None] = []
        for row in self._rows:
            value = known[row]
            value = value.item() if getattr(value, "ndim", None) == 0 else value
            found.append(one_label(value, f"{self.root}/{row}", names))
        return found


def _without_subsets(source: Any) -> tuple[Any, Sequence[int]]:
    """Return the dataset below torch's `Subset`s, and the numbers of the pictures that are left of it."""
    if hasattr(source, "indices") and hasattr(source, "dataset"):
        dataset, rows = _without_subsets(source.dataset)
        return dataset, [rows[int(at)] for at in source.indices]
    return source, range(len(source)) if hasattr(source, "__len__") else range(0)
