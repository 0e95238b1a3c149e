"""`featcache cache info`, `verify`, `gc` and `compact`, mostly on toy vectors of files that nobody decodes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Result
from store_rows import SPEC, commit, make_rows, segment_files

from featcache.records import FeatureSpec, Item
from featcache.sources import file_stat
from featcache.store import Cache, FeatureWriter, Row

Run = Callable[..., Result]

OTHER_WEIGHTS = replace(SPEC, weights_sha256="1" * 64)
OTHER_BACKBONE = replace(SPEC, backbone="another")
LABELS = ("leaf", "sky")


def picture(root: Path, number: int, split: str = "") -> Path:
    """Write the file whose content key is that of `make_rows(number, 1)`."""
    path = root / split / LABELS[number % 2] / f"{number:03}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"row %d" % number)
    return path


def extract(
    cache: Cache, root: Path, numbers: Iterable[int], spec: FeatureSpec = SPEC, *, finish: bool = True, splits: str = ""
) -> None:
    """Do what `extract` does, with toy vectors, a segment each; one more file is unreadable."""
    rows, seen, store, names = [], [], cache.features(spec), splits.split(" ")
    run = cache.runs.start("extract", str(root), spec.fingerprint)
    for at, number in enumerate(numbers):
        split = names[at % len(names)]
        path, (key,) = picture(root, number, split), make_rows(number, 1)[0]
        rows.append(Row(Item(str(path), LABELS[number % 2], split or None), key, None))
        seen.append((str(path), file_stat(str(path)), key))
        if not store.contains([key])[0]:
            with FeatureWriter(store, spec.dtype) as writer:
                writer.append(*make_rows(number, 1, int(spec.weights_sha256[0])))
    cache.catalog.remember_files(seen)
    if finish:
        cache.catalog.save_dataset(
            str(root), [*rows, Row(Item(str(root / "notes.txt")), None, "not a picture")], run.id
        )
        cache.runs.finish(run, {"backbone": spec.backbone, "weights": "toy", "weights_file": None})


@pytest.fixture
def toy(tmp_path: Path, run: Run) -> Cache:
    """A cache with the toy dataset `a` of eight files in eight segments."""
    cache = Cache(tmp_path / "cache")
    extract(cache, tmp_path / "a", range(8))
    return cache


def tree(folder: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def held(cache: Cache, numbers: Iterable[int], spec: FeatureSpec = SPEC) -> list[int]:
    """Return those of `numbers` whose vectors the cache holds, with the right values."""
    store, found = cache.store(spec.fingerprint), []
    for number in numbers:
        keys, vectors = make_rows(number, 1, int(spec.weights_sha256[0]))
        if store.contains(keys)[0]:
            np.testing.assert_array_equal(store.read(keys), vectors)
            found.append(number)
    return found


def test_info_counts_what_the_cache_holds(run: Run, toy: Cache, tmp_path: Path) -> None:
    extract(toy, tmp_path / "b", range(4, 10), OTHER_BACKBONE, splits="train train test")
    shutil.rmtree(tmp_path / "a")
    toy.put("bad/old", b"broken")
    toy.runs.finish(toy.runs.start("fit", str(tmp_path / "b"), SPEC.fingerprint), {}, "m" * 64)
    result = run("cache", "info", "--json")
    assert (result.code, result.err) == (0, "")
    info = result.json
    first, second = info["datasets"]
    assert first["dataset"] == str(tmp_path / "a")
    assert (first["present"], first["pictures"], first["unreadable"], first["classes"]) == (False, 9, 1, 2)
    assert (first["splits"], first["fingerprints"]) == ({}, [SPEC.fingerprint])
    assert (second["present"], second["pictures"], second["unreadable"], second["classes"]) == (True, 7, 1, 2)
    assert (second["splits"], second["fingerprints"]) == ({"test": 2, "train": 4}, [OTHER_BACKBONE.fingerprint])
    backbones = {row["backbone"]: row for row in info["backbones"]}
    assert set(backbones) == {"toy", "another"}
    toys = backbones["toy"]
    assert (toys["rows"], toys["segments"], toys["dim"], toys["dtype"]) == (8, 8, 6, "float32")
    assert (toys["weights_sha256"], toys["precision"], toys["view"]) == ("0" * 64, "fp32", "original")
    assert toys["bytes"] == size(tmp_path / "cache" / "segments" / SPEC.fingerprint[:16])
    assert (backbones["another"]["rows"], info["models"], info["quarantined"]) == (6, 1, 1)
    assert (info["bytes"], info["cache"]) == (size(tmp_path / "cache"), str(tmp_path / "cache"))
    for row in (first, second, toys):
        assert abs((datetime.now().astimezone() - datetime.fromisoformat(row["last_use"])).total_seconds()) < 60
    text = run("cache", "info").out
    assert f"{tmp_path / 'a'} (gone)" in text
    assert "test 2, train 4" in text


@pytest.mark.parametrize("command", ["info", "verify", "gc", "compact"])
def test_a_cache_that_is_not_there_is_said_and_not_made(run: Run, tmp_path: Path, command: str) -> None:
    result = run("cache", command, "--cache", tmp_path / "none")
    assert (result.code, result.out, result.err.count("\n")) == (1, "", 1)
    assert f"there is no cache at {tmp_path / 'none'}" in result.err
    assert not (tmp_path / "none").exists()


def test_an_empty_cache_has_no_datasets_and_nothing_wrong(run: Run, tmp_path: Path) -> None:
    with Cache(tmp_path / "cache"):
        pass
    info = run("cache", "info", "--json").json
    assert (info["datasets"], info["backbones"], info["models"]) == ([], [], 0)
    assert "no datasets" in run("cache", "info").out
    assert run("cache", "verify").code == run("cache", "gc").code == run("cache", "compact").code == 0


def states(result: Result) -> dict[str, tuple[str, str]]:
    return {Path(row["path"] or row["key"]).name: (row["state"], row["reason"]) for row in result.json["rows"]}


def test_verify_calls_untouched_and_touched_pictures_valid(run: Run, toy: Cache, tmp_path: Path) -> None:
    os.utime(tmp_path / "a" / "leaf" / "000.png", (10**9, 10**9))
    result = run("cache", "verify", "--json")
    assert result.code == 0
    (dataset,) = result.json["datasets"]
    assert (dataset["valid"], dataset["stale"], dataset["missing"], dataset["unreadable"]) == (8, 0, 0, 1)
    assert (dataset["dataset"], dataset["fingerprint"]) == (str(tmp_path / "a"), SPEC.fingerprint)
    assert (result.json["segments"], result.json["rows_checked"], result.json["orphaned"]) == (8, 8, 0)
    assert (result.json["rows"], result.json["broken"], result.json["problems"]) == ([], [], [])
    assert "verify" in result.err
    assert "sound " in run("cache", "verify").out


def test_verify_tells_changed_and_deleted_pictures_stale(run: Run, toy: Cache, tmp_path: Path) -> None:
    (tmp_path / "a" / "leaf" / "000.png").write_bytes(b"another")
    (tmp_path / "a" / "sky" / "001.png").unlink()
    result = run("cache", "verify", "--json")
    assert result.code == 0  # nothing is lost: the next extraction sees to it
    (dataset,) = result.json["datasets"]
    assert (dataset["valid"], dataset["stale"], dataset["missing"]) == (6, 2, 0)
    found = states(result)
    assert found["000.png"] == ("stale", "the picture has changed since it was extracted")
    assert found["001.png"][0] == "stale"
    assert "no such file" in found["001.png"][1]
    assert [row["key"] for row in result.json["rows"]] == [make_rows(n, 1)[0][0].hex() for n in (0, 1)]
    assert "stale        " in run("cache", "verify").out


def test_verify_tells_a_vector_missing_whose_segment_was_deleted(run: Run, toy: Cache, tmp_path: Path) -> None:
    segment_files(toy.store(SPEC.fingerprint).folder)[2].unlink()
    result = run("cache", "verify", "--json")
    assert result.code == 1
    assert states(result) == {"002.png": ("missing", "its vector is not in the cache")}
    assert result.json["problems"] == [f"{tmp_path / 'a'} lacks 1 of 8 vectors (toy)"]
    assert result.json["broken"] == []
    assert result.err.splitlines()[-1] == f"featcache: {result.json['problems'][0]}"


def test_verify_tells_a_vector_orphaned_that_no_dataset_uses_with_its_last_path(
    run: Run, toy: Cache, tmp_path: Path
) -> None:
    last = tmp_path / "a" / "sky" / "007.png"
    commit(toy.features(SPEC), make_rows(100, 1))  # of a picture that the catalog never saw
    last.unlink()
    extract(toy, tmp_path / "a", range(7))
    result = run("cache", "verify", "--json")
    assert (result.code, result.json["orphaned"]) == (0, 2)
    orphans = {row["key"]: (row["state"], row["path"]) for row in result.json["rows"]}
    assert orphans == {
        make_rows(7, 1)[0][0].hex(): ("orphaned", str(last)),
        make_rows(100, 1)[0][0].hex(): ("orphaned", None),
    }
    text = run("cache", "verify").out
    assert "orphaned     2 (`featcache cache gc` deletes them)" in text
    assert str(last) in text


def test_verify_shows_ten_rows_and_says_how_many_more(run: Run, toy: Cache, tmp_path: Path) -> None:
    extract(toy, tmp_path / "b", range(20, 35))
    shutil.rmtree(tmp_path / "b")
    lines = run("cache", "verify").out.splitlines()
    assert len([line for line in lines if line.startswith("stale ")]) == 10
    assert "and 5 more: --json lists all of them" in "\n".join(lines)
    assert len(run("cache", "verify", "--json").json["rows"]) == 15


def test_gc_with_nothing_unused_says_so(run: Run, toy: Cache, tmp_path: Path) -> None:
    before = tree(tmp_path / "cache" / "segments")
    for words in ("gc", "gc --yes", "gc --dry-run"):
        result = run("cache", *words.split())
        assert (result.code, result.out) == (0, "nothing to delete: every vector is used by a dataset\n")
    assert tree(tmp_path / "cache" / "segments") == before


@pytest.fixture
def unused(toy: Cache, tmp_path: Path) -> Cache:
    """The toy cache after three of the eight files were deleted, of which `b` uses one, and the rest extracted."""
    extract(toy, tmp_path / "b", [5, 20])
    shutil.rmtree(tmp_path / "a")
    extract(toy, tmp_path / "a", range(5))
    return toy


@pytest.mark.parametrize("merged", [False, True], ids=["whole segments", "part of a segment"])
def test_gc_deletes_vectors_of_deleted_pictures_and_only_those(
    run: Run, unused: Cache, tmp_path: Path, merged: bool
) -> None:
    if merged:
        unused.store(SPEC.fingerprint).compact()
    unused.put("bad/broken.h5", b"x" * 100)
    before = size(tmp_path / "cache")
    result = run("cache", "gc", "--yes", "--json")
    assert result.code == 0
    assert result.json["done"] is True
    assert result.json["bytes"] == before - size(tmp_path / "cache") > 0
    (row,) = result.json["unused"]
    assert (row["rows"], row["kept"], row["backbone"]) == (2, 7, "toy")
    assert "in no dataset any more" in row["reason"]
    assert result.json["quarantined"] == 1
    assert held(unused, range(30)) == [0, 1, 2, 3, 4, 5, 20]
    assert run("cache", "verify").code == 0
    assert "nothing to delete" in run("cache", "gc").out


def test_gc_asks_and_without_a_yes_deletes_nothing(run: Run, unused: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tree(unused.folder)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    result = run("cache", "gc")
    assert (result.code, result.out) == (2, "")
    assert "--yes" in result.err
    assert tree(unused.folder) == before
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    result = run("cache", "gc", "--json")
    assert (result.code, result.json["done"]) == (0, False)
    assert "Delete them?" in result.err
    assert "2 vectors of toy" in result.err
    assert tree(unused.folder) == before
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert run("cache", "gc", "--json").json["done"] is True
    assert held(unused, range(30)) == [0, 1, 2, 3, 4, 5, 20]


def test_gc_dry_run_changes_no_byte_and_says_what_would_go(run: Run, unused: Cache) -> None:
    before = tree(unused.folder)
    result = run("cache", "gc", "--dry-run", "--json").json
    assert (result["done"], result["unused"][0]["rows"], result["bytes"] > 0) == (False, 2, True)
    assert "would be freed (nothing has been deleted)" in run("cache", "gc", "--dry-run").out
    assert tree(unused.folder) == before
    assert run("cache", "gc", "--yes", "--json").json["unused"] == result["unused"]


def test_gc_deletes_an_old_fingerprint_and_keeps_another_backbone(run: Run, toy: Cache, tmp_path: Path) -> None:
    extract(toy, tmp_path / "a", range(8), OTHER_BACKBONE)
    extract(toy, tmp_path / "a", range(8), OTHER_WEIGHTS)
    before = size(tmp_path / "cache")
    result = run("cache", "gc", "--yes", "--json").json
    (row,) = result["unused"]
    assert (row["fingerprint"], row["rows"], row["kept"]) == (SPEC.fingerprint, 8, 0)
    assert row["reason"] == f"an old fingerprint: extracted anew as {OTHER_WEIGHTS.fingerprint[:16]}"
    assert result["bytes"] == row["bytes"] == before - size(tmp_path / "cache")
    assert toy.fingerprints() == sorted([OTHER_BACKBONE.fingerprint, OTHER_WEIGHTS.fingerprint])
    assert not (tmp_path / "cache" / "segments" / SPEC.fingerprint[:16]).exists()
    for spec in (OTHER_BACKBONE, OTHER_WEIGHTS):
        assert held(toy, range(8), spec) == list(range(8))


def test_an_old_fingerprint_that_another_dataset_uses_stays(run: Run, toy: Cache, tmp_path: Path) -> None:
    extract(toy, tmp_path / "b", range(3))
    extract(toy, tmp_path / "a", range(8), OTHER_WEIGHTS)
    (row,) = run("cache", "gc", "--yes", "--json").json["unused"]
    assert (row["fingerprint"], row["rows"], row["kept"]) == (SPEC.fingerprint, 5, 3)
    assert held(toy, range(8)) == [0, 1, 2]
    assert held(toy, range(8), OTHER_WEIGHTS) == list(range(8))


def test_an_extraction_that_was_not_finished_pins_its_fingerprint(run: Run, toy: Cache, tmp_path: Path) -> None:
    extract(toy, tmp_path / "a", range(12), OTHER_WEIGHTS, finish=False)
    assert "nothing to delete" in run("cache", "gc", "--yes").out
    assert held(toy, range(12)) == list(range(8))
    assert held(toy, range(12), OTHER_WEIGHTS) == list(range(12))


def test_forget_gives_up_a_dataset_and_what_only_it_used(run: Run, toy: Cache, tmp_path: Path) -> None:
    extract(toy, tmp_path / "b", [6, 7, 8])
    result = run("cache", "gc", "--forget", "a", "--yes", "--json").json
    assert (result["forgotten"], result["unused"][0]["rows"]) == ([str(tmp_path / "a")], 6)
    assert held(toy, range(10)) == [6, 7, 8]
    assert [row["dataset"] for row in run("cache", "info", "--json").json["datasets"]] == [str(tmp_path / "b")]
    assert run("cache", "verify").code == 0
    extract(toy, tmp_path / "a", range(8))
    assert "nothing to delete" in run("cache", "gc").out


def test_a_dataset_that_is_unknown_or_not_in_the_catalog_is_refused(run: Run, toy: Cache, tmp_path: Path) -> None:
    before = tree(tmp_path / "cache" / "segments")
    result = run("cache", "gc", "--forget", "nowhere", "--yes")
    assert (result.code, result.out) == (1, "")
    assert str(tmp_path / "nowhere") in result.err
    assert str(tmp_path / "a") in result.err
    toy.catalog.forget(str(tmp_path / "a"))
    result = run("cache", "gc", "--yes")
    assert (result.code, result.out) == (1, "")
    assert f"the pictures of {tmp_path / 'a'} are not in the catalog" in result.err
    assert tree(tmp_path / "cache" / "segments") == before
    assert run("cache", "gc", "--forget", "a", "--yes").code == 0
    assert held(toy, range(8)) == []


USER = """
import sys
from pathlib import Path
from featcache.store import Cache

with Cache(Path(sys.argv[1])) as cache, cache.in_use():
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_gc_is_refused_while_another_command_uses_the_cache(run: Run, unused: Cache, tmp_path: Path) -> None:
    words = [sys.executable, "-c", USER, str(tmp_path / "cache")]
    before = tree(tmp_path / "cache" / "segments")
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as user:
        assert user.stdout is not None
        assert user.stdout.readline() == "ready\n"
        result = run("cache", "gc", "--yes", "--forget", "b")
        user.communicate("", timeout=30)
    assert (result.code, result.out) == (1, "")
    assert "is in use by another featcache command" in result.err
    assert tree(tmp_path / "cache" / "segments") == before
    assert list(unused.catalog.roots()) == [str(tmp_path / "a"), str(tmp_path / "b")]
    assert run("cache", "gc", "--yes").code == 0


def test_what_came_into_use_while_gc_asked_is_kept(run: Run, unused: Cache, tmp_path: Path) -> None:
    from featcache.api import Options, cache_gc

    def agree(_: Any) -> bool:
        extract(unused, tmp_path / "c", [6])
        return True

    assert cache_gc(agree=agree, options=Options(cache=tmp_path / "cache")).done
    assert held(unused, range(30)) == [0, 1, 2, 3, 4, 5, 6, 20]


def test_compact_leaves_fewer_segments_as_foretold_with_the_same_rows(run: Run, toy: Cache, tmp_path: Path) -> None:
    extract(toy, tmp_path / "b", range(3), OTHER_BACKBONE)
    for _ in range(2):
        commit(toy.features(SPEC), make_rows(0, 1000))  # what is held twice is freed
    before, size_before = tree(tmp_path / "cache"), size(tmp_path / "cache")
    foretold = run("cache", "compact", "--dry-run", "--json").json
    assert foretold["done"] is False
    assert tree(tmp_path / "cache") == before
    done = run("cache", "compact", "--json").json
    assert done["done"] is True
    counts = {row["fingerprint"]: (row["segments_before"], row["segments_after"]) for row in done["rows"]}
    assert counts == {SPEC.fingerprint: (10, 1), OTHER_BACKBONE.fingerprint: (3, 1)}
    for name in ("fingerprint", "segments_before", "segments_after"):
        assert [row[name] for row in foretold["rows"]] == [row[name] for row in done["rows"]]
    assert done["bytes_freed"] == size_before - size(tmp_path / "cache") > 0
    assert abs(foretold["bytes_freed"] - done["bytes_freed"]) <= 0.2 * done["bytes_freed"]
    assert len(segment_files(toy.store(SPEC.fingerprint).folder)) == 1
    assert len(toy.store(SPEC.fingerprint).keys) == 1000
    assert held(toy, range(9)) == list(range(9))
    assert held(toy, range(9), OTHER_BACKBONE) == [0, 1, 2]
    assert run("cache", "compact", "--json").json["bytes_freed"] == 0


def test_results_go_to_stdout_and_progress_to_stderr(run: Run, unused: Cache) -> None:
    for words, stage in (("verify", "verify"), ("gc --yes", "delete"), ("compact", "compact")):
        result = run("cache", *words.split(), "--json")
        assert isinstance(json.loads(result.out), dict)
        assert f"{stage}:" in result.err
        assert f"{stage}:" not in result.out
