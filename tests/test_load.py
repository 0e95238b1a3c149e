"""What is trained on: every readable picture in order, and no gap that passes for a smaller dataset."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from featcache.errors import MissingFeaturesError
from featcache.load import enrol, load
from featcache.records import FeatureSpec, Item, Preprocess
from featcache.store import Cache, FeatureWriter, Row

SPEC = FeatureSpec("none", "00", Preprocess(8, 8, "bilinear", (0, 0, 0), (1, 1, 1)))


def _rows(n: int) -> list[Row]:
    return [Row(Item(f"/{at}", f"class{at % 2}", "train"), bytes([at] * 32), None) for at in range(n)]


def test_vectors_labels_paths_and_splits_come_in_the_asked_order(tmp_path: Path) -> None:
    with Cache(tmp_path / "cache") as cache:
        store = cache.features(SPEC)
        rows = _rows(6)
        with FeatureWriter(store, "float32") as writer:
            writer.append([row.key for row in rows if row.key], np.arange(12, dtype=np.float32).reshape(6, 2))
        store.refresh()
        asked = [rows[4], rows[1], Row(Item("/bad", None, None), None, "broken"), rows[4]]
        features = load(asked, store)
    assert features.X.tolist() == [[8, 9], [2, 3], [8, 9]]
    assert features.paths == ("/4", "/1", "/4")
    assert features.y.tolist() == ["class0", "class1", "class0"]
    assert features.splits.tolist() == ["train"] * 3
    assert features.fingerprint == SPEC.fingerprint


def test_a_missing_vector_is_refused_with_the_count(tmp_path: Path) -> None:
    with Cache(tmp_path / "cache") as cache:
        store = cache.features(SPEC)
        rows = _rows(3)
        with FeatureWriter(store, "float32") as writer:
            writer.append([bytes([0] * 32)], np.zeros((1, 2), np.float32))
        store.refresh()
        with pytest.raises(MissingFeaturesError, match="2 of 3"):
            load(rows, store)


def test_a_roll_of_the_catalog_is_that_of_the_loaded_vectors(tmp_path: Path) -> None:
    with Cache(tmp_path / "cache") as cache:
        store = cache.features(SPEC)
        rows = [
            Row(Item(f"/{at}", label, split), None if at == 3 else bytes([at % 5] * 32), "broken" if at == 3 else None)
            for at, (label, split) in enumerate(
                [("dog", "train"), (None, None), ("cat", "train"), ("dog", "test"), ("dog", "test"), ("ape", None)] * 2
            )
        ]
        with FeatureWriter(store, "float32") as writer:
            writer.append([bytes([at] * 32) for at in range(5)], np.zeros((5, 2), np.float32))
        store.refresh()
        cache.catalog.save_dataset("/root", rows, 1)
        cache.catalog.save_dataset("/other", rows[:3], 2)
        found, known = (
            enrol(cache.catalog.labels("/root"), partial(cache.catalog.path, "/root")),
            load(rows, store).roll,
        )
        assert (
            (found.labels, found.names)
            == (known.labels, known.names)
            == (("", "ape", "cat", "dog"), ("", "test", "train"))
        )
        for name in ("y", "splits", "keys"):
            assert np.array_equal(getattr(found, name), getattr(known, name))
        assert [found.path(row) for row in range(11)] == [known.path(row) for row in range(11)]
        assert cache.catalog.unreadable("/root") == {"dog": 1}
        assert len(enrol(cache.catalog.labels("/nowhere"), str).y) == 0
