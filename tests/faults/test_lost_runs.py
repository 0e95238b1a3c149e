"""Runs lost, broken or never finished, and a catalog older than they: nothing that may be used is ever deleted."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest
from conftest import Result, write_picture
from store_rows import flip_bit, segment_files

Run = Callable[..., Result]

pytestmark = pytest.mark.usefixtures("ready_network")


@pytest.fixture
def cache(run: Run, photos: Path, tmp_path: Path) -> Path:
    """A cache with the dataset `photos` of thirty pictures."""
    assert run("extract", photos, "--json", network=True).json["computed"] == 30
    return tmp_path / "cache"


def held(cache: Path) -> int:
    total = 0
    for path in segment_files(next(cache.glob("segments/*"))):
        with h5py.File(path, "r", locking=False) as file:
            total += len(file["keys"])
    return total


def remove_all(runs: Path) -> None:
    shutil.rmtree(runs)


def break_one(runs: Path) -> None:
    (runs / "000001.json").write_text("x")


@pytest.mark.parametrize("damage", [remove_all, break_one])
def test_without_its_runs_nobody_deletes_what_a_dataset_may_use(
    run: Run, photos: Path, cache: Path, damage: Callable[[Path], None]
) -> None:
    damage(cache / "runs")
    verified = run("cache", "verify", "--json")
    assert (verified.code, verified.json["orphaned"]) == (1, None)
    assert str(photos if damage is remove_all else cache / "runs" / "000001.json") in verified.json["problems"][0]
    refused = run("cache", "gc", "--yes")
    assert (refused.code, refused.out, held(cache)) == (1, "", 30)
    assert "nobody knows" in refused.err
    (cache / "runs" / "000001.json").unlink(missing_ok=True)
    assert run("extract", photos, "--json", network=True).json["computed"] == 0
    assert run("cache", "verify").code == 0
    assert run("cache", "gc", "--yes").out == "nothing to delete: every vector is used by a dataset\n"


def test_a_catalog_put_back_from_a_backup_is_seen_and_repaired(run: Run, photos: Path, cache: Path) -> None:
    backup = (cache / "catalog.sqlite").read_bytes()
    write_picture(photos / "leaf" / "new.png", 999)
    assert run("extract", photos, "--json", network=True).json["computed"] == 1
    (cache / "catalog.sqlite").write_bytes(backup)
    verified = run("cache", "verify", "--json")
    assert (verified.code, verified.json["orphaned"]) == (1, None)
    assert "is older than the last extraction" in verified.json["problems"][0]
    assert (run("cache", "gc", "--yes").code, held(cache)) == (1, 31)
    repaired = run("cache", "verify", "--repair", "--json").json
    assert (repaired["problems"], repaired["datasets"][0]["valid"], repaired["orphaned"]) == ([], 31, 0)


def test_an_extraction_of_no_picture_leaves_the_last_dataset_in_place(
    run: Run, photos: Path, cache: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no picture")
    failed = run("extract", tmp_path / "empty", network=True)
    assert (failed.code, "no readable picture" in failed.err) == (1, True)
    assert run("fit").code == 1  # it is not what was asked for last
    assert run("cache", "gc", "--yes").code == 0
    assert held(cache) == 30
    assert run("fit", photos).code == 0


def test_an_unfinished_extraction_is_named_until_it_is_given_up(
    run: Run, photos: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    write_picture(tmp_path / "other" / "leaf" / "1.png", 999)
    with monkeypatch.context() as patch:
        patch.setattr("featcache.store.catalog.Catalog.save_dataset", stop)
        assert run("extract", tmp_path / "other", network=True).code == 130
    stuck = run("cache", "gc", "--yes", "--forget", photos, "--json").json
    assert stuck["unused"] == []
    assert str(tmp_path / "other") in stuck["notices"][0]
    assert held(cache) == 31
    assert str(tmp_path / "other") in run("cache", "info").out
    refused = run("fit")
    assert (refused.code, "--forget" in refused.err) == (1, True)
    freed = run("cache", "gc", "--yes", "--forget", tmp_path / "other", "--json").json
    assert [(row["rows"], row["kept"], row["reason"]) for row in freed["unused"]] == [(31, 0, "in no dataset any more")]
    assert "nothing has been extracted" in run("fit").err


def test_compact_counts_no_broken_segment_as_freed_and_gc_keeps_what_it_put_aside_itself(
    run: Run, photos: Path, cache: Path
) -> None:
    write_picture(photos / "leaf" / "new.png", 999)
    run("extract", photos, network=True)
    damaged = segment_files(next(cache.glob("segments/*")))[0]
    flip_bit(damaged, "features")
    assert run("cache", "compact", "--json").json["bytes_freed"] == 0
    assert len(list((cache / "bad").iterdir())) == 1
    run("extract", photos, network=True)
    flip_bit(segment_files(next(cache.glob("segments/*")))[0], "keys")
    assert run("cache", "gc", "--yes", "--json").json["quarantined"] == 1
    assert len(list((cache / "bad").iterdir())) == 1


def test_fit_takes_an_imported_dataset_and_one_whose_folder_is_gone_by_name(
    run: Run, photos: Path, cache: Path, tmp_path: Path
) -> None:
    run("cache", "export", "out.h5")
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["labels"].asstr()[0] == "leaf"
    assert "replaced" not in run("cache", "import", "out.h5").out
    assert "replaced     the 30 rows" in run("cache", "import", "out.h5").out
    (tmp_path / "out.h5").unlink()
    photos.rename(tmp_path / "elsewhere")
    for name in (photos, tmp_path / "out.h5"):
        result = run("fit", name, "--json")
        assert (result.code, result.json["dataset"]) == (0, str(name)), result.err
    assert run("fit", tmp_path / "never").code == 1
