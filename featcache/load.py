"""Catalogued pictures and a feature store enter; `X`, `y`, paths and splits leave, in the caller's order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from featcache.records import Features
from featcache.store import FeatureStore, Row


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
