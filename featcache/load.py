"""Catalogued pictures and a feature store enter; vectors, labels, paths and splits leave, in the caller's order."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from featcache.records import Features, Roll
from featcache.store import FeatureStore, Row
from featcache.store.segment import KEY_BYTES


def load(rows: Sequence[Row], store: FeatureStore) -> Features:
    """Return the vectors of all readable pictures in `rows`, in that order.

    Labels and splits that are not known are empty strings. Raises `MissingFeaturesError` where a vector is not in the
    store, so that a gap never passes for a smaller dataset; a store holds one fingerprint only.
    """
    readable = [(row.item, row.key) for row in rows if row.key is not None]
    keys = tuple(key for _, key in readable)
    return Features(
        X=store.read(keys),
        y=np.array([item.label or "" for item, _ in readable], dtype=np.str_),
        paths=tuple(item.path for item, _ in readable),
        splits=np.array([item.split or "" for item, _ in readable], dtype=np.str_),
        keys=keys,
        fingerprint=store.fingerprint,
    )


def enrol(entries: Iterable[tuple[str | None, str | None, bytes]], path: Callable[[int], str]) -> Roll:
    """Return the roll of readable pictures, of label, split and key of each, in order, at some 40 bytes for each."""
    labels: dict[str, int] = {}
    names: dict[str, int] = {}
    y, splits, keys = array("i"), array("i"), bytearray()
    for label, split, key in entries:
        y.append(labels.setdefault(label or "", len(labels)))
        splits.append(names.setdefault(split or "", len(names)))
        keys += key
    return Roll(
        tuple(sorted(labels)),
        _sorted_codes(labels)[np.frombuffer(y, np.intc)],
        tuple(sorted(names)),
        _sorted_codes(names)[np.frombuffer(splits, np.intc)],
        np.frombuffer(keys, np.uint8).reshape(-1, KEY_BYTES),
        path,
    )


def _sorted_codes(numbered: dict[str, int]) -> npt.NDArray[np.intc]:
    """Return for each number, given in order of appearance, the one in order of the words."""
    return np.argsort(np.argsort(np.array(list(numbered), dtype=object))).astype(np.intc)
