"""The system calls of a commit, their order, and what happens when one of them fails."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from store_rows import SPEC, assert_holds, commit, make_rows, run_python, segment_files, temporary_files

from featcache.errors import CacheWriteError
from featcache.store import Cache, FeatureWriter


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    with Cache(tmp_path / "cache") as cache:
        yield cache


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


def test_every_new_folder_is_synced_in_the_one_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: dict[int, set[str]] = {}
    fsync = os.fsync

    def kept_fsync(descriptor: int) -> None:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            synced.setdefault(status.st_ino, set()).update(os.listdir(descriptor))
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", kept_fsync)
        with Cache(tmp_path / "deep" / "cache") as cache:
            folder = cache.features(SPEC).folder
    new = [tmp_path / "deep", cache.folder, folder.parent, folder]
    assert [path for path in new if path.name not in synced.get(path.parent.stat().st_ino, ())] == []


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

    def work() -> None:
        with FeatureWriter(store, "float32") as writer:
            writer.append(*make_rows(0, 2))
            writer.flush()

    with pytest.raises(CacheWriteError):
        work()
    assert len(tries) == 1


def test_a_write_error_from_elsewhere_still_commits_the_rest(cache: Cache) -> None:
    def work() -> None:
        with FeatureWriter(cache.features(SPEC), "float32") as writer:
            writer.append(*make_rows(0, 3))
            raise CacheWriteError("cannot use the catalog: database is locked")

    with pytest.raises(CacheWriteError, match="database is locked"):
        work()
    assert_holds(cache.features(SPEC), make_rows(0, 3))


FULL_DISK = """
import resource, sys
from store_rows import SPEC, make_rows
from featcache.errors import CacheWriteError
from featcache.store import Cache, FeatureWriter

with Cache(sys.argv[1]) as cache:
    store = cache.features(SPEC)
    writer = FeatureWriter(store, "float32")
    writer.append(*make_rows(0, 1000))
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    try:
        writer.flush()
    except CacheWriteError as error:
        print(error)
    print(writer.committed, *(path.name for path in store.folder.iterdir()))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    writer.flush()
"""


def test_a_real_limit_on_the_file_size_publishes_nothing(cache: Cache) -> None:
    message, state = run_python(FULL_DISK, cache.folder).splitlines()
    assert re.search(r"no room for .*: [\d,]+ bytes are needed, [\d,]+ are free", message)
    assert state == "0 spec.json"
    assert_holds(cache.features(SPEC), make_rows(0, 1000))  # the buffer was kept
