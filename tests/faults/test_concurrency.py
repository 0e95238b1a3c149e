"""Writers, readers and a compaction at once, as processes on one cache folder, with one catalog or one for each."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import multiprocessing
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import write_picture
from store_rows import SPEC, Rows, assert_holds, commit_each, make_rows, temporary_files
from witness import witness

from featcache.backbones import resolve
from featcache.load import load
from featcache.records import FileStat
from featcache.store import Cache, FeatureWriter, compaction

WRITERS = 4
READERS = 2
NEW = 6
"""Rows that a commit adds; it also repeats rows that the next writer commits."""
SHARED = 3
COMMITS_AN_OPENING = 10
STARTS = 60.0

_spawn = multiprocessing.get_context("spawn")
_block = functools.lru_cache(maxsize=None)(make_rows)


def known(numbers: list[int]) -> Rows:
    """Return the rows with these numbers, made once a block."""
    blocks = [_block(number // 1000 * 1000, 1000) for number in numbers]
    keys = [keys[number % 1000] for (keys, _), number in zip(blocks, numbers, strict=True)]
    return keys, np.array([vectors[number % 1000] for (_, vectors), number in zip(blocks, numbers, strict=True)])


def catalog_of(folder: Path, who: str, separate: bool) -> Path | None:
    return folder.parent / f"{who}.sqlite" if separate else None


def reported(folder: Path) -> list[int]:
    """Return the numbers that all writers reported as committed, whole lines only."""
    text = "".join(path.read_text().rpartition("\n")[0] + "\n" for path in sorted(folder.parent.glob("*.reported")))
    starts = {int(line) for line in text.split()}
    return sorted({start + at for start in starts for at in range(NEW + SHARED)})


# The processes


def write(folder: Path, who: str, separate: bool, barrier: Barrier, seconds: float) -> None:
    chance = random.Random(who)
    place = int(who.removeprefix("writer-"))
    starts = (NEW * (WRITERS * at + place) for at in itertools.count())
    with (folder.parent / f"{who}.reported").open("w") as report:
        barrier.wait(STARTS)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            # Opened again and again, as each opening looks for abandoned files while others write.
            with Cache(folder, catalog=catalog_of(folder, who, separate)) as cache:
                writer = FeatureWriter(cache.features(SPEC), SPEC.dtype)
                for start in itertools.islice(starts, COMMITS_AN_OPENING):
                    keys, vectors = known(list(range(start, start + NEW + SHARED)))
                    writer.append(keys, vectors)
                    writer.flush()
                    cache.catalog.remember_files([(f"{who}-{start}", FileStat(start, start, start), keys[0])])
                    report.write(f"{start}\n")
                    report.flush()
                    time.sleep(chance.uniform(0, 0.01))


def read(folder: Path, who: str, separate: bool, barrier: Barrier, seconds: float) -> None:
    chance = random.Random(who)
    rounds = 0
    barrier.wait(STARTS)
    end = time.monotonic() + seconds
    with Cache(folder, catalog=catalog_of(folder, who, separate)) as cache:
        store = cache.features(SPEC)
        while time.monotonic() < end:
            committed = reported(folder)
            store.refresh()
            assert store.contains(known(committed)[0]).all()
            asked = chance.sample(committed, min(len(committed), 300))
            for _ in range(3):  # the listing grows older, and files vanish
                keys, vectors = known(asked)
                np.testing.assert_array_equal(store.read(keys) if keys else vectors, vectors)
                time.sleep(chance.uniform(0, 0.02))
            rounds += bool(asked)
    assert rounds > 0


def compact(folder: Path, who: str, separate: bool, barrier: Barrier, seconds: float) -> None:
    # So small that merged segments grow, are merged again, and then stay.
    compaction.SMALL_BYTES, compaction.MERGED_BYTES = 32 * 2**10, 64 * 2**10
    barrier.wait(STARTS)
    end = time.monotonic() + seconds
    merged = 0
    with Cache(folder, catalog=catalog_of(folder, who, separate)) as cache:
        store = cache.features(SPEC)
        while time.monotonic() < end:
            merged += store.compact()
            time.sleep(0.01)
    assert merged > 10 * seconds


def make_caches(folder: Path, who: str, separate: bool, barrier: Barrier, seconds: float) -> None:
    try:
        for number in range(round(seconds)):
            place = folder / f"{number}"
            barrier.wait(STARTS)
            with Cache(place, catalog=catalog_of(place, f"{number}-{who}", separate)) as cache:
                cache.features(SPEC)
    except Exception:
        barrier.abort()  # so that the others do not wait for this one
        raise


def at_once(folder: Path, separate: bool, seconds: float, parts: dict[str, Callable[..., None]]) -> None:
    """Run each part in a process of its own, all begun at the same moment, and check that each ended well."""
    barrier = _spawn.Barrier(len(parts))
    processes = [
        _spawn.Process(target=part, name=who, args=(folder, who, separate, barrier, seconds))
        for who, part in parts.items()
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(2 * STARTS + 2 * seconds)
    ended = {process.name: process.exitcode for process in processes}
    for process in processes:
        process.kill()
    assert ended == dict.fromkeys(parts, 0)


# The tests

LENGTHS = pytest.mark.parametrize("seconds", [3, pytest.param(60, marks=pytest.mark.soak)])
CATALOGS = pytest.mark.parametrize("separate", [False, True], ids=["one catalog", "a catalog each"])


@pytest.mark.slow
@LENGTHS
@CATALOGS
def test_nothing_is_wrong_or_lost_while_writers_readers_and_a_compaction_work_at_once(
    tmp_path: Path, separate: bool, seconds: float
) -> None:
    folder = tmp_path / "cache"
    catalogs = {f"writer-{at}": catalog_of(folder, f"writer-{at}", separate) for at in range(WRITERS)}
    for catalog in catalogs.values():
        Cache(folder, catalog=catalog).__exit__(None, None, None)
    parts: dict[str, Callable[..., None]] = dict.fromkeys(catalogs, write)
    parts |= dict.fromkeys((f"reader-{at}" for at in range(READERS)), read)
    at_once(folder, separate, seconds, {**parts, "compaction": compact})
    keys, vectors = known(reported(folder))
    assert len(keys) > 100 * seconds
    with Cache(folder) as cache:
        store = cache.features(SPEC)
        for _ in range(2):
            seen = witness(store.folder)
            assert seen.keys() == set(keys)
            np.testing.assert_array_equal([seen[key] for key in keys], vectors)
            np.testing.assert_array_equal(store.read(keys), vectors)
            store.compact()
        assert len(store.segments) == 1
    assert temporary_files(folder) == []
    assert not (folder / "bad").exists()
    for who, catalog in catalogs.items():
        starts = [int(line) for line in (tmp_path / f"{who}.reported").read_text().split()]
        with Cache(folder, catalog=catalog) as cache:
            remembered = cache.catalog.known_files(f"{who}-{start}" for start in starts)
        assert {path: key for path, (_, key) in remembered.items()} == {
            f"{who}-{start}": known([start])[0][0] for start in starts
        }


@pytest.mark.slow
@CATALOGS
def test_several_processes_may_make_one_cache_at_the_same_moment(tmp_path: Path, separate: bool) -> None:
    at_once(tmp_path, separate, 50, dict.fromkeys(("a", "b", "c", "d"), make_caches))


def test_a_cache_that_appears_while_another_process_makes_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exists = Path.exists

    def exists_too_late(path: Path) -> bool:
        answer = exists(path)
        if path.name == "format.json" and not answer:
            monkeypatch.setattr(Path, "exists", exists)
            with Cache(tmp_path / "cache"):  # what the other process does just now
                pass
        return answer

    monkeypatch.setattr(Path, "exists", exists_too_late)
    with Cache(tmp_path / "cache") as cache:
        assert cache.features(SPEC).segments == ()


def test_a_segment_that_is_merged_away_while_it_is_opened_costs_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_file = h5py.File
    opened: list[str] = []

    def open_too_late(path: Path, *args: object, **options: object) -> h5py.File:
        opened.append(path.name)
        if len(opened) == 3:
            monkeypatch.setattr(h5py, "File", open_file)
            with Cache(cache.folder) as other:
                assert other.features(SPEC).compact() == 3  # what another process does just now
            raise OSError("Unable to synchronously open file (can't retrieve stat info for file)")  # as HDF5 says it
        return open_file(path, *args, **options)

    with Cache(tmp_path / "cache") as cache:
        rows = commit_each(cache.features(SPEC), 3)
        monkeypatch.setattr(h5py, "File", open_too_late)
        store = cache.features(SPEC)
    assert opened == sorted(set(opened))
    assert store.contains(rows[0]).all()
    assert_holds(store, rows)
    assert not (cache.folder / "bad").exists()


@pytest.mark.slow
def test_two_machines_extract_overlapping_folders_into_one_folder_of_segments(
    tmp_path: Path, seeded_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    tints = np.random.default_rng(0).integers(20, 235, (24, 3)).tolist()
    machines = {"left": range(16), "right": range(8, 24)}
    for machine, numbers in machines.items():
        for at in numbers:
            write_picture(tmp_path / machine / "ab"[at % 2] / f"{at}.png", at, tints[at])
    network = ["--backbone", "resnet18", "--weights", str(seeded_weights)]
    spec = resolve("resnet18", seeded_weights).spec

    def start(machine: str, source: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "featcache", "extract", source, "--json", "--batch-size", "4", *network]
        environment = os.environ | {"FEATCACHE_CATALOG": str(tmp_path / f"{machine}.sqlite")}
        return subprocess.Popen(
            words, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def end(process: subprocess.Popen[str]) -> dict[str, int]:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        summary: dict[str, int] = json.loads(out)
        return summary

    for process in [start(machine, machine) for machine in machines]:
        summary = end(process)
        assert summary["found"] == summary["computed"] + summary["reused"] == 16
    segments = tmp_path / "cache" / "segments" / spec.fingerprint[:16]
    vectors = witness(segments)
    assert len(vectors) == 24
    assert not (tmp_path / "cache" / "catalog.sqlite").exists()
    for process in [start("left", "right"), start("right", "left")]:
        assert end(process)["computed"] == 0
    for machine, (source, numbers) in itertools.product(machines, machines.items()):
        with Cache(tmp_path / "cache", catalog=tmp_path / f"{machine}.sqlite") as cache:
            loaded = load(cache.catalog.dataset(str(tmp_path / source)), cache.features(spec))
        assert {int(Path(path).stem) for path in loaded.paths} == set(numbers)
        assert loaded.y.tolist() == [Path(path).parent.name for path in loaded.paths]
        for path, key, vector in zip(loaded.paths, loaded.keys, loaded.X, strict=True):
            assert key == hashlib.sha256(Path(path).read_bytes()).digest()
            np.testing.assert_allclose(vector, vectors[key], rtol=1e-5, atol=1e-5)
    assert temporary_files(tmp_path / "cache") == []
