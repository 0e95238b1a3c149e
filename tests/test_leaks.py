"""Scored pictures with near twins among those that are fitted on are found from the vectors, and said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Result
from PIL import Image

from featcache.audits import leaks as audits
from featcache.audits.leaks import MOST_PAIRS, leaks

Run = Callable[..., Result]


def test_a_vector_with_a_little_noise_is_a_twin_and_others_are_none() -> None:
    random = np.random.default_rng(0)
    X = random.normal(size=(240, 64)).astype(np.float32)
    X[200:205] = X[10:15] + 0.1 * random.normal(size=(5, 64))
    found = leaks(X.__getitem__, np.arange(200), np.arange(200, 240))
    assert found.scored.tolist() == [200, 201, 202, 203, 204]
    assert found.fitted.tolist() == [10, 11, 12, 13, 14]
    assert found.looked_at == 40


def test_pictures_of_one_class_that_are_alike_as_all_of_it_are_no_twins() -> None:
    random = np.random.default_rng(1)
    centres = 5 * random.normal(size=(2, 64))
    X = (centres[np.arange(300) % 2] + random.normal(size=(300, 64))).astype(np.float32)
    assert not len(leaks(X.__getitem__, np.arange(200), np.arange(200, 300)).scored)


def test_twins_are_the_same_in_however_many_parts_the_vectors_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(3)
    X = random.normal(size=(300, 48)).astype(np.float32)
    X[200:230] = X[10:40] + 0.15 * random.normal(size=(30, 48))
    whole = leaks(X.__getitem__, np.arange(200), np.arange(200, 300))
    assert len(whole.scored) > 20
    for scored, fitted in ((1, 7), (7, 64), (4096, 11)):
        monkeypatch.setattr(audits, "SCORED_AT_ONCE", scored)
        monkeypatch.setattr(audits, "FITTED_AT_ONCE", fitted)
        part = leaks(X.__getitem__, np.arange(200), np.arange(200, 300))
        assert part.scored.tolist() == whole.scored.tolist()
        assert part.fitted.tolist() == whole.fitted.tolist()


def test_of_very_many_pairs_a_part_is_looked_at() -> None:
    X = np.random.default_rng(2).normal(size=(40_000, 2)).astype(np.float32)
    found = leaks(X.__getitem__, np.arange(35_000), np.arange(35_000, 40_000))
    assert found.looked_at == MOST_PAIRS // 35_000


def picture(path: Path, seed: int, shift: int = 0) -> None:
    """A mosaic of coloured fields, the same for a seed, `shift` levels brighter."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = np.random.default_rng(seed).integers(0, 250, (7, 7, 3)).astype(np.uint8)
    Image.fromarray(fields + np.uint8(shift)).resize((64, 64), Image.Resampling.NEAREST).save(path)


@pytest.mark.slow
def test_fit_and_compare_warn_and_say_how_to_see_them(tmp_path: Path, run: Run) -> None:
    for at in range(24):
        picture(tmp_path / "d/train" / "ab"[at % 2] / f"{at}.png", at)
    for at in range(8):
        picture(tmp_path / "d/val" / "ab"[at % 2] / f"{at}.png", 100 + at)
    picture(tmp_path / "d/val/a/copy.png", 4, shift=2)
    run("extract", "d", network=True)
    for words in (("fit",), ("fit", "--out-of-core"), ("compare", "--heads", "centroid,dummy", "--seeds", "1")):
        said = [notice for notice in run(*words, "--json").json["notices"] if "near twins" in notice]
        assert said == [
            f"1 of 9 scored pictures have near twins among those trained on, as {tmp_path}/d/val/a/copy.png and "
            f"{tmp_path}/d/train/a/4.png: the score flatters; `featcache audit` shows them"
        ]


def test_copies_are_told_as_copies(tmp_path: Path, run: Run) -> None:
    for at in range(24):
        picture(tmp_path / "d/train" / "ab"[at % 2] / f"{at}.png", at)
        picture(tmp_path / "d/val" / "ab"[at % 2] / f"{at}.png", at)
    run("extract", "d", network=True)
    notices = run("fit", "--json").json["notices"]
    assert any("24 of the 24 scored pictures are also trained on" in notice for notice in notices)
    assert not any("near twins" in notice for notice in notices)
