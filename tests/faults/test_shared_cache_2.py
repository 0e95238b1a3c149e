"""What sync programs, others and newer versions leave in a cache: no good run is lost, and no command ends for good."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import Result, write_picture
from store_rows import SPEC, assert_holds, commit, make_rows, segment_files

from featcache import sealed
from featcache.store import Cache, FeatureStore
from featcache.store.segment import _crc32, attributes_crc, build_image

Run = Callable[..., Result]

pytestmark = pytest.mark.usefixtures("ready_network")


def put(kind: str, place: Path, outside: Path) -> None:
    """Put something into a cache that is no regular file."""
    place.parent.mkdir(exist_ok=True)
    place.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    elif kind == "socket":
        here = Path.cwd()
        os.chdir(place.parent)  # the path of a socket is short
        try:
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(place.name)
        finally:
            os.chdir(here)
    else:
        place.symlink_to({"dangling": outside / "no" / "x", "loop": place, "link": outside / "x"}[kind])


# --- copies beside runs ---


@pytest.mark.parametrize(
    "name",
    [
        *("000002.sync-conflict-20261128-120000-ABCDEFG.json", "000002 (1).json", "000002 (conflicted copy).json"),
        *("000002-backup.json", "0000002.json"),
    ],
)
def test_a_copy_beside_a_run_is_named_and_neither_run_is_touched(
    name: str, run: Run, photos: Path, cache: Path
) -> None:
    assert run("fit", "--head", "centroid").code == 0
    folder = cache / "runs"
    shutil.copy(folder / "000002.json", folder / name)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for words in (("cache", "verify"), ("cache", "verify", "--repair")):
        result = run(*words)
        assert (result.code, f"{folder / name} is a copy of a run" in result.out) == (0, True), result.out
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [found.id for found in Cache(cache).runs.all()] == [1, 2]
    model = cache / "models" / "000002-centroid.safetensors"
    model.write_bytes(model.read_bytes()[::-1])
    assert run("predict", model, photos).code == 1  # the run still knows which one it made
    assert run("cache", "gc", "--yes").code == 0
    assert run("fit").code == 0


def another_run(copy: Path) -> None:
    content = json.loads(copy.read_text()) | {"root": "/elsewhere", "started": 5.0, "fingerprint": "ab" * 32}
    del content["sha256"]
    copy.write_text(json.dumps(content))


def torn(copy: Path) -> None:
    copy.write_bytes(copy.read_bytes()[:100])


@pytest.mark.parametrize("change", [another_run, torn])
def test_a_copy_that_is_another_run_or_none_stops_gc_and_is_put_aside_without_a_good_run(
    change: Callable[[Path], None], run: Run, photos: Path, cache: Path
) -> None:
    """Two computers that were apart gave one number to two runs; a program put the second beside the first."""
    good, copy = cache / "runs" / "000001.json", cache / "runs" / "000001 (conflicted copy).json"
    shutil.copy(good, copy)
    change(copy)
    whole, moved = good.read_bytes(), copy.read_bytes()
    refused = run("cache", "gc", "--yes")
    assert (refused.code, str(copy) in refused.err) == (1, True)
    repaired = run("cache", "verify", "--repair")
    assert repaired.code == 0, repaired.err
    assert (good.read_bytes(), copy.exists()) == (whole, False)
    assert [path.read_bytes() for path in (cache / "bad").iterdir()] == [moved]
    assert [found.command for found in Cache(cache).runs.all()] == ["extract", "lost"]
    assert run("fit", photos).code == 0
    assert "all stay" in run("cache", "gc", "--yes").out
    assert run("cache", "gc", "--yes", "--forget", copy).code == 0
    assert run("fit").code == 0


# --- numbers ---


@pytest.mark.parametrize("content", ["", "x"])
@pytest.mark.parametrize("folder", ["runs", "models"])
def test_numbers_are_not_used_up_and_a_run_does_not_vanish_with_what_lay_before_it(
    folder: str, content: str, tmp_path: Path
) -> None:
    cache = Cache(tmp_path / "cache")
    first = cache.runs.start("extract", "/a")
    (cache.folder / folder).mkdir(exist_ok=True)
    junk = [cache.folder / folder / f"{number:06d}.json" for number in range(400_000, 10**10, 99 * 10**6)]
    junk += [cache.folder / folder / f"{number:06d}.json" for number in range(999_999, 10**7, 999_999)]
    junk += [cache.folder / folder / f"{'9' * digits}.json" for digits in (10, 17, 18, 19, 200)]
    for path in junk:
        path.write_text(content)
    ids = [first.id, *(cache.runs.start("extract", f"/{n}").id for n in range(3))]
    assert ids == sorted(set(ids))
    assert max(ids) < 10**6
    assert [run.id for run in Cache(cache.folder).runs.all()] == ids
    for path in junk:
        path.unlink()
    assert [run.id for run in Cache(cache.folder).runs.all()] == ids
    assert Cache(cache.folder).runs.start("extract", "/b").id == ids[-1] + 1


def test_a_run_with_a_number_of_more_digits_is_read(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    for number in (999_999, 1_000_000):
        (cache.folder / "runs").mkdir(exist_ok=True)
        content = {"id": number, "command": "extract", "root": "/a", "fingerprint": "", "started": 1.0}
        (cache.folder / "runs" / f"{number}.json").write_text(json.dumps(content))
    assert cache.runs.start("extract", "/b").id == 1_000_001
    assert [run.id for run in Cache(cache.folder).runs.all()] == [999_999, 1_000_000, 1_000_001]


# --- locks ---


@pytest.mark.parametrize("kind", ["link", "dangling", "loop", "fifo", "socket", "folder"])
def test_a_lock_that_is_no_file_is_put_aside_and_nothing_outside_is_locked(
    kind: str, run: Run, photos: Path, cache: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x").touch()
    (segments,) = (cache / "segments").iterdir()
    commit(Cache(cache).store(Cache(cache).fingerprints()[0]), rows_like(0))
    with (outside / "x").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # who waits for it waits for ever
        for words in (("extract", photos), ("cache", "compact"), ("cache", "gc", "--yes"), ("cache", "verify")):
            put(kind, cache / ".lock", outside)
            put(kind, segments / ".compact.lock", outside)
            start = time.perf_counter()
            result = run(*words, network=words[0] == "extract")
            assert result.code == 0, result.err
            assert time.perf_counter() - start < 30
            assert f"{cache / '.lock'} is not what featcache writes there" in result.err
    assert list(outside.iterdir()) == [outside / "x"]
    assert run("fit").code == 0


def rows_like(start: int) -> tuple[list[bytes], np.ndarray]:  # type: ignore[type-arg]
    return make_rows(start, 4)[0], np.ones((4, 512), np.float32)


# --- the catalog and what marks the folder ---


def test_a_catalog_in_another_encoding_is_refused_and_no_letter_of_a_class_is_lost(
    run: Run, cache: Path, tmp_path: Path
) -> None:
    made = cache / "catalog.sqlite"
    with sqlite3.connect(made) as db:
        tables = [sql for (sql,) in db.execute("SELECT sql FROM sqlite_schema WHERE type = 'table'")]
        version = db.execute("PRAGMA user_version").fetchone()[0]
    db.close()
    made.unlink()
    with sqlite3.connect(made) as db:
        db.executescript(f"PRAGMA encoding = 'UTF-16le'; {';'.join(tables)}; PRAGMA user_version = {version}")
    db.close()
    for at, label in enumerate(("cat", "car", "dog")):
        for number in range(5):
            write_picture(tmp_path / "d" / label / f"{number}.png", 1000 * at + number)
    refused = run("extract", tmp_path / "d", network=True)
    assert (refused.code, "its texts are in UTF-16le" in refused.err) == (1, True)
    assert run("cache", "verify", "--repair").code == 0
    assert set(run("extract", tmp_path / "d", "--json", network=True).json["classes"]) == {"car", "cat", "dog"}
    assert {row.item.label for row in Cache(cache).catalog.dataset(str(tmp_path / "d"))} == {"car", "cat", "dog"}
    assert run("cache", "verify").code == 0


@pytest.mark.parametrize("kind", ["fifo", "folder", "socket"])
def test_a_catalog_that_is_no_file_is_put_aside_and_rebuilt(kind: str, run: Run, photos: Path, cache: Path) -> None:
    put(kind, cache / "catalog.sqlite", cache)
    refused = run("fit")
    assert refused.code == 1
    assert f"{cache / 'catalog.sqlite'} is not what featcache writes there" in refused.err
    assert run("cache", "verify", "--repair").code == 0
    assert run("fit", "--json").json["dataset"] == str(photos)


@pytest.mark.parametrize("kind", ["fifo", "folder", "socket"])
def test_a_format_file_that_is_none_is_named_with_what_to_do(kind: str, run: Run, cache: Path) -> None:
    put(kind, cache / "format.json", cache)
    refused = run("fit")
    assert (refused.code, refused.err.count("\n")) == (1, 1)
    assert f"{cache / 'format.json'} is broken (it is no regular file): move it away" in refused.err
    (cache / "format.json").rename(cache.parent / "format.json")
    assert run("fit").code == 0


# --- what says to be newer ---


def newer_segment(cache: Path) -> Path:
    (folder,) = (cache / "segments").iterdir()
    path = folder / "seg-09999999999999999999-ffffffff-00000001.h5"
    shutil.copy(segment_files(folder)[0], path)
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = 99
        file.attrs["crc32_attributes"] = np.uint32(attributes_crc(dict(file.attrs)))
    return path


def newer_catalog(cache: Path) -> Path:
    with sqlite3.connect(cache / "catalog.sqlite") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    return cache / "catalog.sqlite"


@pytest.mark.parametrize("make", [newer_segment, newer_catalog])
def test_a_file_that_says_it_is_newer_is_named_and_repair_puts_it_aside(
    make: Callable[[Path], Path], run: Run, photos: Path, cache: Path
) -> None:
    path = make(cache)
    there = path.read_bytes()
    for words in (("fit",), ("cache", "verify"), ("cache", "gc", "--yes")):
        refused = run(*words)
        assert (refused.code, path.read_bytes() == there) == (1, True)
        assert str(path) in refused.err
        assert "put it aside with `featcache cache verify --repair`" in refused.err
    repaired = run("cache", "verify", "--repair")
    assert repaired.code == 0, repaired.err
    assert [kept.read_bytes() for kept in (cache / "bad").iterdir()] == [there]
    assert run("extract", photos, "--json", network=True).json["reused"] == 30
    assert run("fit", "--json").json["dataset"] == str(photos)


# --- segments that are larger than their files ---


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    found = Cache(tmp_path / "cache").features(SPEC)
    commit(found, make_rows(0, 10))
    return found.reopened()


def one_long_row(store: FeatureStore, dim: int, values: np.ndarray | None = None) -> Path:  # type: ignore[type-arg]
    """Put a segment there with one row, which is a hole where no values are given, in place of the rows of another."""
    path = store.folder / "seg-09999999999999999999-ffffffff-00000001.h5"
    keys, replaces = np.zeros((1, 32), np.uint8), np.array([segment_files(store.folder)[0].name.encode()])
    with h5py.File(path, "w", libver=("earliest", "v110")) as file:
        features = file.create_dataset("features", (1, dim), np.float32)
        if values is None:
            features[0, 0] = 0
        else:
            features[0] = values
        file["keys"], file["replaces"] = keys, replaces
        for name, array in {"keys": keys, "replaces": replaces, "features": values}.items():
            file.attrs[f"crc32_{name}"] = np.uint32(0 if array is None else _crc32(array))
        words = {"format": "featcache-segment", "dtype": "float32", "fingerprint": SPEC.fingerprint, "writer": "x"}
        for name, text in words.items():
            file.attrs[name] = np.bytes_(text.encode())
        file.attrs["format_version"], file.attrs["created_ns"] = 1, 1
        file.attrs["n_rows"], file.attrs["dim"] = 1, dim
        file.attrs["crc32_attributes"] = np.uint32(attributes_crc(dict(file.attrs)))
    return path


@pytest.mark.parametrize("dim", [2**26, 2**30, 2**35])
def test_a_segment_of_holes_is_put_aside_by_name_before_it_takes_memory(
    dim: int, store: FeatureStore, caplog: pytest.LogCaptureFixture
) -> None:
    path = one_long_row(store, dim)
    assert path.stat().st_size > 4 * dim
    assert path.stat().st_blocks * 512 < 2**20
    tracemalloc.start()
    try:
        found = store.reopened()
        assert tracemalloc.get_traced_memory()[1] < 50 * 2**20
    finally:
        tracemalloc.stop()
    assert f"{path} cannot be read as a segment: it says to have" in caplog.text
    assert_holds(found, make_rows(0, 10))


def test_files_of_holes_are_read_nowhere(run: Run, photos: Path, cache: Path, tmp_path: Path) -> None:
    assert run("fit", "--head", "centroid").code == 0
    (model,) = (cache / "models").iterdir()
    for path in (model, segment_files(next((cache / "segments").iterdir()))[0]):
        with path.open("r+b") as file:
            file.truncate(2**31)
    tracemalloc.start()
    try:
        result = run("predict", model, photos)
        place = tmp_path / "share" / "segments" / SPEC.fingerprint[:16]
        place.mkdir(parents=True)
        with (place / "seg-1.h5").open("wb") as file:
            file.truncate(2**31)
        assert Cache(tmp_path / "other", share=str(tmp_path / "share")).fetch(SPEC) == 0
        assert tracemalloc.get_traced_memory()[1] < 2**29
    finally:
        tracemalloc.stop()
    assert (result.code, "cannot read the model" in result.err, "(holes)" in result.err) == (1, True, True)
    assert run("extract", photos, "--json", network=True).json["computed"] == 30


def test_a_segment_with_very_long_vectors_is_checked_in_pieces(store: FeatureStore) -> None:
    values = np.random.default_rng(0).standard_normal(2**23).astype(np.float32)
    one_long_row(store, 2**23, values)
    tracemalloc.start()
    try:
        assert store.reopened().left_out  # of another shape, and whole
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("n", [10_000, 2**27])
def test_an_attribute_that_is_larger_than_any_of_ours_is_not_read(n: int, store: FeatureStore) -> None:
    keys, rows = make_rows(50, 4)
    image = build_image(
        np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 32),
        rows,
        fingerprint=SPEC.fingerprint,
        writer="x",
        created_ns=0,
    )
    path = store.folder / "seg-09999999999999999999-ffffffff-00000001.h5"
    path.write_bytes(image)
    with h5py.File(path, "r+", libver="latest") as file:
        file.attrs.create("more", np.zeros(n, np.uint8)) if n < 2**16 else file.create_group("g")
        if n >= 2**16:
            for number in range(40):
                file.attrs[f"more{number}"] = number
    found = store.reopened()
    assert len(found.quarantined) == 1
    assert "has attributes that featcache does not write" in found.quarantined[0]
    assert_holds(found, make_rows(0, 10))


# --- models ---


def another_model(model: Path) -> bytes:
    """The same model with its classes turned round, sealed anew."""
    content = sealed.unpack(model.read_bytes())
    known = dict(content.known or {})
    known["classes"] = known["classes"][::-1]
    return sealed.pack({name: sealed.of_array(tensor.array()) for name, tensor in content.tensors.items()}, known)


@pytest.mark.parametrize("where", ["outside", "bad", "models"])
def test_a_model_in_the_cache_that_is_a_link_is_refused_by_name(
    where: str, run: Run, photos: Path, cache: Path, tmp_path: Path
) -> None:
    assert run("fit", "--head", "centroid").code == 0
    model = cache / "models" / "000002-centroid.safetensors"
    evil = {"outside": tmp_path / "x", "bad": cache / "bad" / "x", "models": cache / "models" / "x.safetensors"}[where]
    evil.parent.mkdir(exist_ok=True)
    evil.write_bytes(another_model(model))
    whole = model.read_bytes()
    mine = tmp_path / "best.safetensors"
    mine.symlink_to(model)
    assert run("predict", mine, photos).code == 0
    model.unlink()
    model.symlink_to(os.path.relpath(evil, model.parent))
    for path in (model, mine):
        for words in (("predict", path, photos), ("export-onnx", path, "--out", tmp_path / "out.onnx")):
            refused = run(*words)
            assert (refused.code, refused.out, refused.err.count("\n")) == (1, "", 1), refused.err
            assert "000002-centroid.safetensors is a link to" in refused.err
    verified = run("cache", "verify", "--json")
    assert (verified.code, f"{model} is a link to" in verified.json["problems"][0]) == (1, True)
    model.unlink()
    model.write_bytes(whole)
    assert run("predict", mine, photos).code == 0
    mine.unlink()
    mine.symlink_to(mine)
    assert "cannot read the model" in run("predict", mine, photos).err


# --- names and sockets ---


def test_names_as_long_as_the_disk_takes_end_no_command(run: Run, photos: Path, cache: Path) -> None:
    (folder,) = (cache / "segments").iterdir()
    (cache / "networks").mkdir(exist_ok=True)
    for path in (
        folder / f"seg-{'x' * 248}.h5",
        cache / "runs" / f"000003{'é' * 120}.json",
        cache / "networks" / f"{folder.name}-{'x' * 233}.onnx",
    ):
        path.write_text("junk")
    assert run("extract", photos, "--engine", "onnx", "--rehash", network=True).code == 0
    assert run("cache", "verify", "--repair").code == 0
    assert run("cache", "gc", "--yes").code == 0
    assert run("fit").code == 0


def test_a_socket_in_place_of_a_run_is_put_aside(run: Run, photos: Path, cache: Path) -> None:
    put("socket", cache / "runs" / "000002.json", cache)
    assert run("cache", "gc", "--yes").code == 1
    assert run("cache", "verify", "--repair").code == 0
    assert run("cache", "gc", "--yes").code == 0
    assert run("fit", photos).code == 0


def test_a_socket_in_a_share_is_left_out(run: Run, photos: Path, tmp_path: Path) -> None:
    share = tmp_path / "share"
    assert run("extract", photos, "--share", share, "--cache", tmp_path / "one", network=True).code == 0
    (folder,) = share.glob("segments/*")
    put("socket", folder / "seg-6.h5", tmp_path)
    result = run("extract", photos, "--json", "--share", share, "--cache", tmp_path / "two", network=True)
    assert (result.code, result.json["reused"]) == (0, 30), result.err
    assert "seg-6.h5 is left out: it is no regular file" in result.err


# --- names of files that are other texts ---


def test_where_names_are_not_in_utf_8_nothing_of_a_cache_is_touched(run: Run, photos: Path, tmp_path: Path) -> None:
    photos.rename(tmp_path / "dé")
    assert run("extract", tmp_path / "dé", network=True).code == 0
    file = tmp_path / "cache" / "runs" / "000001.json"
    whole = file.read_bytes()
    settings = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "featcache", "cache", "verify", "--repair", "--cache", str(tmp_path / "cache")]
    done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "set PYTHONUTF8=1" in done.stderr
    assert (file.read_bytes(), len(list(file.parent.iterdir()))) == (whole, 1)
    assert run("fit").code == 0
