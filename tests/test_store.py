"""The commit of vectors: what reaches the disk, in which order, and what a failing disk does to it."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from store_rows import (
    DIM,
    HALF,
    SPEC,
    assert_holds,
    commit,
    make_rows,
    segment_files,
    temporary_files,
)

from featcache.errors import CacheWriteError, MissingFeaturesError
from featcache.records import FeatureSpec
from featcache.store import Cache, FeatureStore, FeatureWriter, features

SEGMENT_NAME = re.compile(r"seg-\d{20}-[0-9a-f]{8}-\d{8}\.h5")


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    with Cache(tmp_path / "cache") as cache:
        yield cache


def run_python(script: str, *args: object) -> str:
    """Run a script in another process, which may import what these tests import, and return what it printed."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", script, *map(str, args)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


# What is committed


@pytest.mark.parametrize("spec", [SPEC, HALF], ids=lambda spec: spec.dtype)
def test_rows_are_read_back_equal_and_in_the_asked_order(cache: Cache, spec: FeatureSpec) -> None:
    store = cache.features(spec)
    keys, vectors = make_rows(0, 50)
    for at in range(0, 50, 20):
        commit(store, (keys[at : at + 20], vectors[at : at + 20]), spec.dtype)
    asked = np.random.default_rng(0).integers(0, 50, 120)  # some rows more than once
    store = cache.features(spec)
    found = store.read([keys[at] for at in asked])
    assert found.dtype == spec.dtype
    np.testing.assert_array_equal(found, vectors.astype(spec.dtype)[asked])


def test_the_writer_keeps_what_was_appended_when_the_caller_reuses_the_array(cache: Cache) -> None:
    store = cache.features(SPEC)
    keys, vectors = make_rows(0, 3)
    buffer = vectors.copy()
    with FeatureWriter(store, "float32") as writer:
        writer.append(keys, buffer)
        buffer[:] = 0
    store.refresh()
    assert_holds(store, (keys, vectors))


def test_rows_are_seen_by_a_reader_only_after_the_flush_and_a_new_listing(cache: Cache) -> None:
    store = cache.features(SPEC)
    rows = make_rows(0, 3)
    writer = FeatureWriter(store, "float32")
    writer.append(*rows)
    store.refresh()
    assert (writer.committed, store.contains(rows[0]).tolist()) == (0, [False] * 3)
    writer.flush()
    store.refresh()
    assert (writer.committed, store.contains(rows[0]).tolist()) == (3, [True] * 3)


def test_an_empty_flush_writes_nothing(cache: Cache) -> None:
    store = cache.features(SPEC)
    with FeatureWriter(store, "float32") as writer:
        writer.flush()
    assert segment_files(store.folder) == []
    assert store.dim is None


@pytest.mark.parametrize("spec", [SPEC, HALF], ids=lambda spec: spec.dtype)
def test_a_segment_is_plain_hdf5_with_attributes_and_checksums(cache: Cache, spec: FeatureSpec) -> None:
    store = cache.features(spec)
    keys, vectors = make_rows(0, 7)
    segment = commit(store, (keys, vectors), spec.dtype)
    with h5py.File(segment, "r") as file:
        stored, stored_keys, attributes = file["features"][()], file["keys"][()], dict(file.attrs)
        assert file["features"].chunks is None
    np.testing.assert_array_equal(stored, vectors.astype(spec.dtype))
    assert stored.dtype == spec.dtype
    assert stored_keys.tobytes() == b"".join(keys)
    created, writer, sequence = re.fullmatch(r"seg-(\d+)-(\w+)-(\d+)\.h5", segment.name).groups()  # type: ignore[union-attr]
    assert sequence == "00000001"
    assert attributes == {
        "format": "featcache-segment",
        "format_version": 1,
        "n_rows": 7,
        "dim": DIM,
        "dtype": spec.dtype,
        "fingerprint": spec.fingerprint,
        "writer": writer,
        "created_ns": int(created),
        "crc32_features": zlib.crc32(stored.tobytes()),
        "crc32_keys": zlib.crc32(stored_keys.tobytes()),
    }


def test_segments_lie_beside_their_spec_and_nothing_else(cache: Cache) -> None:
    store = cache.features(SPEC)
    for at in range(3):
        commit(store, make_rows(at, 1))
    assert store.folder == cache.folder / "segments" / SPEC.fingerprint[:16]
    names = sorted(path.name for path in store.folder.iterdir())
    assert names[-1] == "spec.json"
    assert len(names) == 4
    assert all(SEGMENT_NAME.fullmatch(name) for name in names[:3])
    note = json.loads((store.folder / "spec.json").read_bytes())
    assert note["fingerprint"] == SPEC.fingerprint
    assert cache.spec(SPEC.fingerprint) == SPEC
    assert temporary_files(cache.folder) == []


def test_fingerprints_do_not_mix(cache: Cache) -> None:
    keys, vectors = make_rows(0, 2)
    commit(cache.features(SPEC), (keys, vectors))
    assert cache.features(SPEC).contains(keys).all()
    assert not cache.features(HALF).contains(keys).any()


def test_an_unknown_key_is_named_by_count(cache: Cache) -> None:
    store = cache.features(SPEC)
    commit(store, make_rows(0, 3))
    store.refresh()
    keys, _ = make_rows(0, 5)
    with pytest.raises(MissingFeaturesError, match=r"^2 of 5 vectors .*featcache extract"):
        store.read(keys)


def test_reading_no_keys_gives_no_rows(cache: Cache) -> None:
    store = cache.features(SPEC)
    commit(store, make_rows(0, 3))
    store.refresh()
    assert store.read([]).shape == (0, DIM)


# When it is committed


def test_a_full_buffer_is_committed(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "COMMIT_ROWS", 10)
    writer = FeatureWriter(cache.features(SPEC), "float32")
    committed = []
    for at in range(0, 25, 5):
        writer.append(*make_rows(at, 5))
        committed.append(writer.committed)
    assert committed == [0, 10, 10, 20, 20]


def test_an_old_buffer_is_committed(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(features.time, "monotonic", lambda: now)
    writer = FeatureWriter(cache.features(SPEC), "float32")
    writer.append(*make_rows(0, 1))
    now += features.COMMIT_SECONDS - 0.1
    writer.append(*make_rows(1, 1))
    assert writer.committed == 0
    now += 0.2
    writer.append(*make_rows(2, 1))
    assert writer.committed == 3
    writer.append(*make_rows(3, 1))
    assert writer.committed == 3


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, SystemExit, ZeroDivisionError])
def test_leaving_the_block_commits_the_rest(cache: Cache, error: type[BaseException] | None) -> None:
    store = cache.features(SPEC)
    rows = make_rows(0, 3)

    def work() -> None:
        with FeatureWriter(store, "float32") as writer:
            writer.append(*rows)
            if error is not None:
                raise error

    if error is None:
        work()
    else:
        with pytest.raises(error):
            work()
    assert_holds(cache.features(SPEC), rows)


# The order of system calls, and what happens when one of them fails


def test_the_file_is_synced_before_its_rename_and_the_folder_after(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = cache.features(SPEC)
    calls: list[tuple[str, int]] = []
    write, fsync, rename = os.write, os.fsync, os.rename

    def kept_write(descriptor: int, data: memoryview) -> int:
        calls.append(("write", os.fstat(descriptor).st_ino))
        return write(descriptor, data[:4096])  # a short write, as the system may make

    def kept_fsync(descriptor: int) -> None:
        calls.append(("fsync", os.fstat(descriptor).st_ino))
        fsync(descriptor)

    def kept_rename(source: Path, target: Path) -> None:
        assert Path(source).parent == Path(target).parent
        calls.append(("rename", os.stat(source).st_ino))
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", kept_write)
        patch.setattr(os, "fsync", kept_fsync)
        patch.setattr(os, "rename", kept_rename)
        segment = commit(store, make_rows(0, 300))
    file, folder = segment.stat().st_ino, store.folder.stat().st_ino
    writes = -(-segment.stat().st_size // 4096)
    assert writes > 1
    assert calls == [("write", file)] * writes + [("fsync", file), ("rename", file), ("fsync", folder)]


def break_call(patch: pytest.MonkeyPatch, call: str, code: int) -> None:
    """Make one system call of a commit fail, as a full or failing disk would; "write" fails half-way."""
    fault = OSError(code, os.strerror(code))
    write, fsync = os.write, os.fsync
    written: list[int] = []

    def fail(*_: object) -> None:
        raise fault

    def broken_write(descriptor: int, data: memoryview) -> int:
        if written:
            raise fault
        written.append(write(descriptor, data[: len(data) // 2]))
        return written[0]

    def broken_fsync(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        if is_folder == (call == "fsync of the folder"):
            raise fault
        fsync(descriptor)

    if call == "write":
        patch.setattr(os, "write", broken_write)
    elif call == "rename":
        patch.setattr(os, "rename", fail)
    else:
        patch.setattr(os, "fsync", broken_fsync)


@pytest.mark.parametrize("call", ["write", "fsync", "rename", "fsync of the folder"])
def test_a_full_disk_is_a_clean_error_and_the_rows_are_kept(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    store = cache.features(SPEC)
    rows = make_rows(0, 20)
    writer = FeatureWriter(store, "float32")
    writer.append(*rows)
    with monkeypatch.context() as patch:
        break_call(patch, call, errno.ENOSPC)
        with pytest.raises(CacheWriteError) as caught:
            writer.flush()
    assert writer.committed == 0
    assert temporary_files(cache.folder) == []
    published = cache.features(SPEC)
    if call == "fsync of the folder":  # it has its name already, and is whole
        assert_holds(published, rows)
    else:
        assert published.segments == ()
    assert not (cache.folder / "bad").exists()
    writer.flush()
    assert writer.committed == 20
    assert_holds(cache.features(SPEC), rows)
    size = segment_files(store.folder)[-1].stat().st_size
    assert f"{size:,} bytes are needed" in str(caught.value)


def test_another_disk_error_names_the_file_and_the_reason(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    store = cache.features(SPEC)
    with monkeypatch.context() as patch:
        break_call(patch, "fsync", errno.EIO)
        with pytest.raises(CacheWriteError, match=f"{store.folder}.*{os.strerror(errno.EIO)}"):
            commit(store, make_rows(0, 2))
    assert list(store.folder.iterdir()) == [store.folder / "spec.json"]


def test_ctrl_c_in_the_middle_of_a_write_leaves_no_temporary_file(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = cache.features(SPEC)
    writer = FeatureWriter(store, "float32")
    writer.append(*make_rows(0, 2))

    def interrupt(descriptor: int, data: memoryview) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", interrupt)
        with pytest.raises(KeyboardInterrupt):
            writer.flush()
    assert temporary_files(cache.folder) == []
    writer.flush()
    assert_holds(cache.features(SPEC), make_rows(0, 2))


def test_a_failed_commit_inside_the_block_is_not_tried_again_on_the_way_out(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []

    def fail(descriptor: int, data: memoryview) -> int:
        tries.append(descriptor)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = cache.features(SPEC)
    monkeypatch.setattr(os, "write", fail)
    with pytest.raises(CacheWriteError), FeatureWriter(store, "float32") as writer:
        writer.append(*make_rows(0, 2))
        writer.flush()
    assert len(tries) == 1


FULL_DISK = """
import resource, sys
from store_rows import SPEC, make_rows
from featcache.errors import CacheWriteError
from featcache.store import Cache, FeatureWriter

with Cache(sys.argv[1]) as cache:
    writer = FeatureWriter(cache.features(SPEC), "float32")
    writer.append(*make_rows(0, 1000))
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    try:
        writer.flush()
    except CacheWriteError as error:
        print(error)
    print(writer.committed, *(path.name for path in writer._store.folder.iterdir()))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    writer.flush()
"""


def test_a_real_limit_on_the_file_size_publishes_nothing(cache: Cache) -> None:
    message, state = run_python(FULL_DISK, cache.folder).splitlines()
    assert re.search(r"no room for .*: [\d,]+ bytes are needed, [\d,]+ are free", message)
    assert state == "0 spec.json"
    assert_holds(cache.features(SPEC), make_rows(0, 1000))  # the buffer was kept


# Several writers


def test_two_writers_at_once_lose_nothing_and_the_first_name_wins(cache: Cache) -> None:
    start = threading.Barrier(2)
    failures: list[BaseException] = []

    def write(version: int, first: int) -> None:
        try:
            store = FeatureStore(folder, cache.folder / "bad", SPEC.fingerprint)
            start.wait(10)
            for at in range(first, first + 40, 5):
                commit_rows(store, at, version)
        except BaseException as error:
            failures.append(error)

    def commit_rows(store: FeatureStore, at: int, version: int) -> None:
        with FeatureWriter(store, "float32") as writer:
            writer.append(*make_rows(at, 5, version))

    folder = cache.features(SPEC).folder
    threads = [threading.Thread(target=write, args=(version, 20 * version)) for version in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    segments = segment_files(folder)
    assert len(segments) == 16
    keys, _ = make_rows(0, 60)
    expected = first_of_each_key(segments)
    assert set(expected) == set(keys)
    np.testing.assert_array_equal(cache.features(SPEC).read(keys), [expected[key] for key in keys])


def first_of_each_key(segments: Sequence[Path]) -> dict[bytes, Any]:
    expected: dict[bytes, Any] = {}
    for segment in segments:
        with h5py.File(segment, "r") as file:
            for key, vector in zip(file["keys"][()], file["features"][()], strict=True):
                expected.setdefault(key.tobytes(), vector)
    return expected


def test_a_key_written_twice_keeps_its_first_vector(cache: Cache) -> None:
    store = cache.features(SPEC)
    commit(store, make_rows(0, 4, version=1))
    commit(store, make_rows(2, 4, version=2))
    store.refresh()
    assert_holds(store, make_rows(0, 4, version=1))
    assert_holds(store, make_rows(4, 2, version=2))


OTHER_WRITER = """
import sys
from store_rows import SPEC, commit, make_rows
from featcache.store import Cache

with Cache(sys.argv[1]) as cache:
    store = cache.features(SPEC)
    for at in range(0, 30, 5):
        commit(store, make_rows(at, 5))
"""


def test_a_writer_in_another_process_is_seen_after_a_new_listing(cache: Cache) -> None:
    store = cache.features(SPEC)
    commit(store, make_rows(25, 10))
    run_python(OTHER_WRITER, cache.folder)
    store.refresh()
    assert_holds(store, make_rows(0, 35))
