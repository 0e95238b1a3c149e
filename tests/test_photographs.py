"""The whole way on real photographs with real weights; FEATCACHE_PHOTOS names the folder that holds them."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Result

PHOTOS = Path(os.environ.get("FEATCACHE_PHOTOS", "/nonexistent"))

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(not PHOTOS.is_dir(), reason="FEATCACHE_PHOTOS names no folder of photographs"),
]


def test_ants_and_bees_reach_the_known_score(run: Callable[..., Result]) -> None:
    row = run("fit", PHOTOS / "hymenoptera", "--backbone", "efficientnet_lite0", "--json").json
    assert (row["scored_split"], row["n_test"]) == ("val", 153)
    assert row["accuracy"] >= 0.93
    (found,) = run("audit", "--json").json["rows"]
    assert (found["kind"], Path(found["path"]).name) == ("placeholder", "imageNotFound.gif")


def test_caltech101_reaches_the_known_score(run: Callable[..., Result], tmp_path: Path) -> None:
    seen: Counter[str] = Counter()
    with (tmp_path / "caltech.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for path in sorted((PHOTOS / "caltech101").glob("*/*.jpg")):
            seen[path.parent.name] += 1
            writer.writerow([path, path.parent.name, "train" if seen[path.parent.name] <= 30 else "test"])
    row = run("fit", tmp_path / "caltech.csv", "--backbone", "efficientnet_lite0", "--json").json
    assert row["n_train"] == 30 * 101
    assert row["accuracy"] >= 0.91
    rows = run("audit", "--json").json["rows"]
    groups = {(row["kind"], row["group"]) for row in rows if row["group"] is not None}
    assert len({group for group in groups if group[0] == "leak"}) > 20
    of_garfield = {
        row["group"] for row in rows if "garfield/image_0027" in row["path"] or "garfield/image_0033" in row["path"]
    }
    assert len(of_garfield) == 1
