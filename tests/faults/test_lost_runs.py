"""Runs lost, broken or never finished, and a catalog older than they: nothing that may be used is ever deleted."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import Result, write_picture
from store_rows import flip_bit, segment_files

import featcache.api.extraction
from featcache.api.options import Options
from featcache.errors import FeatcacheError
from featcache.store import Cache

Run = Callable[..., Result]

pytestmark = pytest.mark.usefixtures("ready_network")


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
    (tmp_path / "empty" / "torn.jpg").write_text("no picture")
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


# --- a run that is lost, and catalogs of other copies ---


def relabelled(photos: Path, tmp_path: Path, turned: bool = False) -> Path:
    """Write a list of the pictures, with every other label turned round if asked for."""
    names = {"sky": "leaf", "leaf": "sky"} if turned else {}
    rows = [f"{path},{names.get(path.parent.name, path.parent.name)}" for path in sorted(photos.rglob("*.png"))]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows]))
    return tmp_path / "list.csv"


@pytest.mark.parametrize("is_emptied", [False, True])
def test_vectors_of_which_the_run_is_lost_are_not_deleted_and_no_older_ones_are_taken(
    run: Run, photos: Path, cache: Path, tmp_path: Path, is_emptied: bool
) -> None:
    other = run("extract", photos, "--draft", "--json", network=True).json
    segments = {path: path.read_bytes() for path in cache.rglob("seg-*.h5")}
    newest = cache / "runs" / "000002.json"
    newest.write_bytes(b"") if is_emptied else newest.unlink()
    for words in (("cache", "gc", "--yes"), ("cache", "verify"), ("fit",)):
        result = run(*words)
        assert result.code == 1
        assert f"run 2 of {photos} is lost from {cache / 'runs'}" in result.err + result.out
    assert {path: path.read_bytes() for path in cache.rglob("seg-*.h5")} == segments
    assert run("fit", photos, "--json", network=True).code == 0  # which extracts it anew
    assert "is lost" in run("cache", "gc", "--yes").err  # but not with that network
    again = run("extract", photos, "--draft", "--json", network=True).json
    assert (again["fingerprint"], again["computed"]) == (other["fingerprint"], 0)
    assert run("cache", "verify").code == 0
    assert run("cache", "gc", "--yes").out == "nothing to delete: every vector is used by a dataset\n"


def test_a_run_that_is_lost_for_good_is_given_up_by_a_repair(run: Run, photos: Path, cache: Path) -> None:
    run("extract", photos, "--draft", network=True)
    (cache / "runs" / "000001.json").unlink()
    assert run("cache", "gc", "--yes").code == 1
    assert run("cache", "verify", "--repair").code == 0
    freed = run("cache", "gc", "--yes", "--json").json
    assert [row["rows"] for row in freed["unused"]] == [30]


def test_a_number_of_a_lost_run_is_not_given_again(run: Run, photos: Path, cache: Path) -> None:
    assert run("fit", "--head", "centroid").code == 0
    (model,) = (cache / "models").iterdir()
    before = model.read_bytes()
    (cache / "runs" / "000002.json").unlink()
    assert run("fit", "--head", "centroid", "--seed", "5", photos, network=True).code == 0
    assert model.read_bytes() == before
    assert len(list((cache / "models").iterdir())) == 2


@pytest.mark.parametrize("number", ["999999999", "9999999999"])
@pytest.mark.parametrize("command", ["extract", "forget"])
def test_a_number_that_was_never_given_decides_nothing(
    run: Run, photos: Path, cache: Path, number: str, command: str
) -> None:
    content = json.loads((cache / "runs" / "000001.json").read_text())
    del content["sha256"]
    content |= {"id": int(number), "command": command, "summary": None, "fingerprint": ""}
    content |= {"root": "/nowhere" if command == "extract" else str(photos)}
    (cache / "runs" / f"{number}.json").write_text(json.dumps(content))
    assert run("fit", "--json").json["dataset"] == str(photos)
    assert run("extract", photos, network=True).code == 0
    assert run("fit", "--json").json["dataset"] == str(photos)
    assert run("cache", "gc", "--yes").code == 0


def test_an_extraction_counts_though_its_dataset_was_given_up_before_it_came_to_it(
    run: Run, photos: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(photos, tmp_path / "other")
    run("extract", tmp_path / "other", network=True)
    opened = featcache.api.extraction.open_cache

    def given_up_first(options: Options) -> Cache:
        monkeypatch.setattr(featcache.api.extraction, "open_cache", opened)
        featcache.cache_gc(forget=[photos], options=Options(cache=cache))
        return opened(options)

    monkeypatch.setattr(featcache.api.extraction, "open_cache", given_up_first)
    result = featcache.extract(photos, Options("resnet18", weights=weights_of(cache), cache=cache))
    assert result.found == 30
    assert run("fit", "--json").json["dataset"] == str(photos)
    assert run("cache", "verify").code == 0


def weights_of(cache: Path) -> Path:
    noted = json.loads((cache / "runs" / "000001.json").read_text())
    return Path(noted["summary"]["weights_file"])


def test_a_newest_run_that_is_damaged_lets_no_older_dataset_take_its_place(
    run: Run, photos: Path, cache: Path, tmp_path: Path
) -> None:
    shutil.copytree(photos, tmp_path / "other")
    run("extract", tmp_path / "other", network=True)
    newest = cache / "runs" / "000002.json"
    whole = newest.read_text()
    newest.write_text(whole.replace('"command": "extract"', '"command": "extrbct"'))
    refused = run("fit")
    assert (refused.code, refused.out) == (1, "")
    assert "is lost" in refused.err
    assert run("fit", photos, "--json", network=True).json["dataset"] == str(photos)
    newest.write_text(whole)
    assert run("cache", "verify").code == 0


def test_a_catalog_that_is_newer_than_the_runs_or_of_another_cache_is_refused(
    run: Run, photos: Path, cache: Path, tmp_path: Path
) -> None:
    listed = relabelled(photos, tmp_path)
    run("extract", listed, network=True)
    copied = tmp_path / "copy"
    shutil.copytree(cache, copied)
    relabelled(photos, tmp_path, turned=True)
    run("extract", listed, "--draft", network=True)
    shutil.copytree(cache / "segments", copied / "segments", dirs_exist_ok=True)
    shutil.copy(cache / "catalog.sqlite", copied)  # the copy was broken off before the runs
    segments = {path: path.read_bytes() for path in copied.rglob("seg-*.h5")}
    for words in (("fit",), ("cache", "verify"), ("cache", "gc", "--yes")):
        result = run(*words, "--cache", copied)
        assert result.code == 1
        assert f"run 3 of {listed} is lost" in result.err + result.out
    assert {path: path.read_bytes() for path in copied.rglob("seg-*.h5")} == segments

    shutil.rmtree(copied)
    run("extract", photos, "--cache", copied, network=True)
    (photos / "sky" / "0.png").unlink()
    shutil.rmtree(cache)
    run("extract", photos, network=True)
    shutil.copy(cache / "catalog.sqlite", copied)
    for words in (("fit",), ("cache", "verify"), ("cache", "gc", "--yes")):
        result = run(*words, "--cache", copied)
        assert result.code == 1
        assert "as that of another cache would" in result.err + result.out
    assert run("cache", "verify", "--repair", "--cache", copied).code == 0
    assert run("fit", "--cache", copied).code == 0


def test_labels_that_changed_in_the_catalog_are_trained_on_by_nobody(run: Run, photos: Path, cache: Path) -> None:
    with sqlite3.connect(cache / "catalog.sqlite") as catalog:
        catalog.execute("UPDATE items SET label = 'sky' WHERE position = 0")
    for words in (("fit",), ("compare", "--heads", "centroid"), ("cache", "export", "x.npz"), ("cache", "gc", "--yes")):
        result = run(*words)
        assert (result.code, result.out) == (1, ""), words
        assert "are not those that were saved" in result.err
    assert run("cache", "verify", "--repair").code == 0
    assert run("fit").code == 0


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE commits SET run = 'abc'",
        "UPDATE commits SET run = 1e300",
        "UPDATE datasets SET run = 'x'",
        "INSERT INTO datasets (root, run) VALUES (NULL, 9)",
        "INSERT INTO datasets (root, run) VALUES (x'ff00', 9)",
        "INSERT INTO commits (root, run, digest) VALUES (NULL, 9, NULL)",
        "UPDATE items SET path = x'00' WHERE position = 0",
        "UPDATE files SET size = 'abc', mtime_ns = x'00'; UPDATE looks SET width = 'x', flat = NULL",
    ],
)
def test_values_that_a_catalog_cannot_have_are_damage_that_a_repair_mends(run: Run, cache: Path, change: str) -> None:
    with sqlite3.connect(cache / "catalog.sqlite") as catalog:
        catalog.executescript(change)
    for words in (("cache", "info"), ("cache", "verify"), ("cache", "gc", "--yes"), ("fit",), ("audit",)):
        result = run(*words)
        assert "Traceback" not in result.err
        assert result.code in (0, 1)
        assert "files" in change or words == ("cache", "info") or "is damaged" in result.err + result.out
    assert run("cache", "verify", "--repair").code == 0
    assert run("cache", "gc", "--yes").code == 0
    assert run("audit").code == 0
    assert held(cache) == 30


def test_a_project_with_folders_called_like_ours_is_no_cache(run: Run, photos: Path, tmp_path: Path) -> None:
    for name in ("models/resnet.safetensors", "trainings/epoch10.pt", "bad/img.jpg", "runs/1.txt"):
        (tmp_path / "project" / name).parent.mkdir(parents=True)
        (tmp_path / "project" / name).write_text("mine")
    for words in (("extract", photos), ("cache", "gc", "--yes")):
        result = run(*words, "--cache", "project", network=words[0] == "extract")
        assert (result.code, "is no featcache cache and not empty" in result.err) == (1, True)
    assert sorted(path.name for path in (tmp_path / "project").iterdir()) == ["bad", "models", "runs", "trainings"]


def test_an_imported_file_that_was_changed_is_said(run: Run, photos: Path, cache: Path, tmp_path: Path) -> None:
    run("cache", "export", "out.npz")
    assert run("cache", "import", "out.npz").code == 0
    assert "has changed since" not in run("fit", "out.npz").err
    os.utime(tmp_path / "out.npz", (time.time() + 60, time.time() + 60))
    assert "out.npz has changed since it was imported" in run("fit", "out.npz").err


def test_a_run_is_small(run: Run, cache: Path) -> None:
    (cache / "runs" / "000002.json").write_text('{"a": [' + "0," * 2**24 + "0]}")
    tracemalloc.start()
    assert "it has more than 16,777,216 bytes" in run("cache", "info").err
    assert tracemalloc.get_traced_memory()[1] < 2**27
    tracemalloc.stop()


@pytest.mark.parametrize("seed", [None, True, -1, 2**32, 1.0, "0"])
def test_a_seed_that_is_none_is_refused_and_leaves_no_run_that_cannot_be_read(
    run: Run, photos: Path, tmp_path: Path, seed: Any
) -> None:
    assert run("extract", photos, network=True).code == 0
    options = Options(cache=tmp_path / "cache")
    runs = sorted((tmp_path / "cache" / "runs").iterdir())
    for command in (featcache.fit, featcache.compare, featcache.bench, featcache.confusions, featcache.audit):
        with pytest.raises(FeatcacheError, match="seed"):
            command(seed=seed, options=options)
    assert sorted((tmp_path / "cache" / "runs").iterdir()) == runs
    assert featcache.fit(head="centroid", seed=np.int64(1), options=options).seed == 1
    assert run("cache", "verify").code == 0


def test_a_name_that_no_file_can_have_leaves_no_run(run: Run, photos: Path, tmp_path: Path) -> None:
    assert run("extract", photos, network=True).code == 0
    options = Options(cache=tmp_path / "cache")
    runs = sorted((tmp_path / "cache" / "runs").iterdir())
    for command in (featcache.extract, featcache.fit, featcache.compare):
        with pytest.raises(FeatcacheError, match=r"NUL|root is"):
            command("a\0b", options=options)
    assert sorted((tmp_path / "cache" / "runs").iterdir()) == runs
    assert run("cache", "gc", "--yes").code == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda options: featcache.fit(options="cache"),  # type: ignore[arg-type]
        lambda options: featcache.fit(head=np.array(["knn"]), options=options),  # type: ignore[arg-type]
        lambda options: featcache.fit(train_views="no", options=options),  # type: ignore[arg-type]
        lambda options: featcache.neighbors("x.png", k=1.5, options=options),  # type: ignore[arg-type]
        lambda options: featcache.compare(n_seeds=None, options=options),  # type: ignore[arg-type]
        lambda options: Options(batch_size=0),
        lambda options: Options(batch_size="1"),  # type: ignore[arg-type]
        lambda options: Options(draft="no"),  # type: ignore[arg-type]
        lambda options: Options(backbone=None),  # type: ignore[arg-type]
        lambda options: Options(columns=5),  # type: ignore[arg-type]
        lambda options: Options(cache=""),  # type: ignore[arg-type]
        lambda options: featcache.Sweep(lr=None),  # type: ignore[arg-type]
        lambda options: featcache.Sweep(hidden=((float("nan"),),)),  # type: ignore[arg-type]
        lambda options: featcache.Training(epochs="3"),  # type: ignore[arg-type]
        lambda options: featcache.fit(head="mlp", sweep=featcache.Sweep(lr=(1e308,)), options=options),
        lambda options: featcache.fit(head="mlp", sweep=featcache.Sweep(lr=(float("nan"),)), options=options),
        lambda options: featcache.extract("", options),
        lambda options: featcache.extract("x", options, views=5),  # type: ignore[arg-type]
        lambda options: featcache.extract("x", options, views="flip"),
        lambda options: featcache.extract("x", options, shard=(0,)),  # type: ignore[arg-type]
        lambda options: featcache.extract("x", options, shard=(0.5, 2)),  # type: ignore[arg-type]
        lambda options: featcache.compare(heads=None, options=options),  # type: ignore[arg-type]
        lambda options: featcache.compare(heads="ridge", options=options),
        lambda options: featcache.bench(per_class=2, options=options),  # type: ignore[arg-type]
        lambda options: featcache.cache_gc("AB", dry_run=True, options=options),
        lambda options: featcache.cache_gc([5], dry_run=True, options=options),  # type: ignore[list-item]
        lambda options: featcache.cache_gc(agree=True, options=options),  # type: ignore[arg-type]
        lambda options: featcache.runs("cache"),  # type: ignore[arg-type]
        lambda options: featcache.cache_info("cache"),  # type: ignore[arg-type]
        lambda options: featcache.ledger(5, options),  # type: ignore[arg-type]
        lambda options: featcache.cache_export("x.npz", 5, options),  # type: ignore[arg-type]
        lambda options: featcache.cache_import(5, options),  # type: ignore[arg-type]
        lambda options: featcache.FeatureExtractor("efficientnet_lite0", cache=5).fit(["x"]),
        lambda options: featcache.neighbors("\0", options=options),
    ],
)
def test_values_of_other_types_are_refused_before_any_work(
    run: Run, photos: Path, tmp_path: Path, call: Callable[[Options], object]
) -> None:
    assert run("extract", photos, network=True).code == 0
    runs = sorted((tmp_path / "cache" / "runs").iterdir())
    with pytest.raises(FeatcacheError) as failure:
        call(Options(cache=tmp_path / "cache"))
    assert "\n" not in str(failure.value)
    assert sorted((tmp_path / "cache" / "runs").iterdir()) == runs


def test_numbers_of_numpy_are_numbers(run: Run, photos: Path, tmp_path: Path) -> None:
    assert run("extract", photos, network=True).code == 0
    options = Options(cache=tmp_path / "cache")
    sweep = featcache.Sweep(lr=np.array([0.01, 0.1], np.float32), hidden=[[np.int64(8)]])  # type: ignore[arg-type,list-item]
    assert (sweep.hidden, sweep.lr[1]) == (((8,),), pytest.approx(0.1))
    done = featcache.fit(head="mlp", seed=np.int64(2), sweep=sweep, options=options)  # type: ignore[arg-type]
    assert (done.seed, type(done.seed)) == (2, int)
    assert run("runs").code == 0


def test_a_copy_beside_a_run_is_named_and_ends_no_command_in_a_traceback(run: Run, photos: Path, cache: Path) -> None:
    copy = cache / "runs" / "000009 (copy).json"
    shutil.copy(cache / "runs" / "000001.json", copy)
    for words in (("fit",), ("cache", "gc", "--yes")):
        refused = run(*words)
        assert (refused.code, refused.out) == (1, "")
        assert str(copy) in refused.err.splitlines()[-1]
    assert run("fit", photos, "--head", "centroid", network=True).code == 0
    copy.unlink()
    assert run("fit").code == 0


def test_a_run_that_changes_under_a_cache_that_is_open_is_read_again(run: Run, cache: Path) -> None:
    with Cache(cache) as opened:
        (first,) = opened.runs.all()
        (cache / "runs" / "000002.json").write_text("x")
        assert list(opened.runs.broken().values()) == [2]
        content = json.loads((cache / "runs" / "000001.json").read_text())
        del content["sha256"]
        (cache / "runs" / "000001.json").write_text(json.dumps(content | {"started": 1.0}))
        assert [known.started for known in opened.runs.all()] == [1.0] != [first.started]
        (cache / "runs" / "000001.json").unlink()
        assert opened.runs.all() == []
