"""The cache folder: made on first use, refused where it is something else, another version or damaged."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
from pathlib import Path

import pytest
from store_rows import HALF, SPEC, assert_holds, commit, make_rows, run_python, temporary_files

from featcache.errors import CacheError, CacheVersionError, CacheWriteError
from featcache.store import Cache
from featcache.store.catalog import SCHEMA


def test_a_cache_is_made_on_first_use_and_opened_again(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "cache"
    with Cache(folder) as cache:
        commit(cache.features(SPEC), make_rows(0, 3))
    assert json.loads((folder / "format.json").read_bytes()) == {"format": "featcache", "version": 1}
    assert (folder / ".gitignore").read_text().splitlines()[0] == "*"
    with Cache(folder) as cache:
        assert_holds(cache.features(SPEC), make_rows(0, 3))


def test_an_empty_folder_and_one_with_hidden_files_become_a_cache(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("*\n!.gitignore\n")
    with Cache(tmp_path) as cache:
        assert (cache.folder / "format.json").exists()


def test_a_folder_with_foreign_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"picture")
    with pytest.raises(CacheError, match=r"no featcache cache.*holiday\.jpg.*--cache"):
        Cache(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    path.write_bytes(b"")
    with pytest.raises(CacheError, match=str(path)):
        Cache(path)
    assert path.read_bytes() == b""


def test_a_newer_cache_is_refused_and_left_alone(tmp_path: Path) -> None:
    marker = tmp_path / "format.json"
    marker.write_text('{"format": "featcache", "version": 2}')
    (tmp_path / ".tmp-of-the-newer-version").write_bytes(b"")
    with pytest.raises(CacheVersionError, match=r"format 2, .* this featcache reads 1: .*--cache"):
        Cache(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("content", [b"", b"\xff\x00garbage", b"[]", b"{}", b"null"])
def test_a_broken_marker_is_a_clear_error(tmp_path: Path, content: bytes) -> None:
    Cache(tmp_path / "cache").__exit__(None, None, None)
    (tmp_path / "cache" / "format.json").write_bytes(content)
    with pytest.raises(CacheError, match=r"format\.json is broken: move it away"):
        Cache(tmp_path / "cache")


@pytest.mark.parametrize("name", ["catalog.sqlite", "models/head.bin", "runs/1.json"])
def test_removing_the_marker_as_advised_makes_it_anew(tmp_path: Path, name: str) -> None:
    with Cache(tmp_path / "cache") as cache:
        path = cache.folder / name
        if not path.exists():
            cache.put(name, b"kept")
    marker = tmp_path / "cache" / "format.json"
    content, kept = marker.read_bytes(), path.read_bytes()
    marker.unlink()
    Cache(tmp_path / "cache").__exit__(None, None, None)
    assert (marker.read_bytes(), path.read_bytes()) == (content, kept)


KILLED_MAKER = """
import os, sys
from pathlib import Path
from featcache.store import Cache

def count(descriptor):
    global left
    if not left:
        os._exit(0)  # no clean-up, as after a kill
    left -= 1
    fsync(descriptor)

left, fsync, os.fsync = int(sys.argv[2]), os.fsync, count
Cache(Path(sys.argv[1]))
print(left)
"""


@pytest.mark.slow
def test_a_cache_whose_making_was_killed_is_made_on_the_next_use(tmp_path: Path) -> None:
    steps = 1000 - int(run_python(KILLED_MAKER, tmp_path / "whole", 1000))
    assert steps > 1
    for step in range(steps):
        folder = tmp_path / f"killed-{step}"
        assert run_python(KILLED_MAKER, folder, step) == ""
        assert not (folder / "catalog.sqlite").exists()
        with Cache(folder) as cache:
            commit(cache.features(SPEC), make_rows(0, 3))
        assert temporary_files(folder) == []
        with Cache(folder) as cache:
            assert_holds(cache.features(SPEC), make_rows(0, 3))


def test_vectors_survive_the_loss_of_everything_beside_them(tmp_path: Path) -> None:
    with Cache(tmp_path / "cache") as cache:
        commit(cache.features(SPEC), make_rows(0, 3))
    for name in ("format.json", "catalog.sqlite"):
        (tmp_path / "cache" / name).unlink()
    with Cache(tmp_path / "cache") as cache:
        assert_holds(cache.features(SPEC), make_rows(0, 3))


def test_the_spec_beside_the_vectors_is_read_back(tmp_path: Path) -> None:
    with Cache(tmp_path / "cache") as cache:
        for spec in (SPEC, HALF):
            cache.features(spec)
        assert [cache.spec(spec.fingerprint) for spec in (SPEC, HALF)] == [SPEC, HALF]


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"{",
        b"[]",
        b'{"spec": {}}',
        b'{"spec": []}',
        b'{"spec": "x"}',
        b'{"spec": null}',
        b'{"spec": 1}',
        b'{"spec": {"preprocess": 1}}',
        b'{"spec": {"preprocess": null}}',
        b"\xff",
    ],
)
def test_a_missing_or_broken_spec_is_a_clear_error(tmp_path: Path, content: bytes | None) -> None:
    with Cache(tmp_path / "cache") as cache:
        note = cache.features(SPEC).folder / "spec.json"
        note.unlink()
        if content is not None:
            note.write_bytes(content)
        with pytest.raises(CacheError, match=r"spec\.json is missing or broken: .*featcache extract"):
            cache.spec(SPEC.fingerprint)


def test_the_spec_of_other_features_is_not_taken_for_the_asked_one(tmp_path: Path) -> None:
    with Cache(tmp_path / "cache") as cache:
        other = (cache.features(HALF).folder / "spec.json").read_bytes()
        (cache.features(SPEC).folder / "spec.json").write_bytes(other)
        with pytest.raises(CacheError, match="is not the spec of"):
            cache.spec(SPEC.fingerprint)


def test_put_writes_a_file_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with Cache(tmp_path / "cache") as cache:
        path = cache.put("models/head.bin", b"old")
        assert path == cache.folder / "models" / "head.bin"
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            with pytest.raises(CacheWriteError, match=r"head\.bin: 3 bytes are needed"):
                cache.put("models/head.bin", b"new")
        assert path.read_bytes() == b"old"
        cache.put("models/head.bin", b"new")
        assert path.read_bytes() == b"new"
        assert temporary_files(cache.folder) == []


def test_a_newer_catalog_is_refused(tmp_path: Path) -> None:
    Cache(tmp_path / "cache").__exit__(None, None, None)
    connection = sqlite3.connect(tmp_path / "cache" / "catalog.sqlite")
    connection.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    connection.close()
    with pytest.raises(CacheVersionError, match=r"catalog version \d+, this featcache reads \d+: .*--cache"):
        Cache(tmp_path / "cache")


@pytest.mark.parametrize("name", [b"files", b"datasets", b"items"])
def test_a_catalog_of_which_sqlite_speaks_in_other_bytes_is_a_clear_error(tmp_path: Path, name: bytes) -> None:
    Cache(tmp_path / "cache").__exit__(None, None, None)
    path = tmp_path / "cache" / "catalog.sqlite"
    content = path.read_bytes()
    assert b"CREATE TABLE " + name in content
    path.write_bytes(content.replace(b"CREATE TABLE " + name, b"CREATE TABL\xef " + name))
    with pytest.raises(CacheError, match=r"catalog\.sqlite is damaged .*: run `featcache cache verify --repair`"):
        Cache(tmp_path / "cache")


@pytest.mark.parametrize("keep", [0, 100], ids=["from the start", "after the header"])
def test_a_damaged_catalog_is_a_clear_error(tmp_path: Path, keep: int) -> None:
    Cache(tmp_path / "cache").__exit__(None, None, None)
    path = tmp_path / "cache" / "catalog.sqlite"
    path.write_bytes(path.read_bytes()[:keep] + b"garbage " * 2000)
    with (
        pytest.raises(CacheError, match=r"catalog\.sqlite is damaged .*: run `featcache cache verify --repair`"),
        Cache(tmp_path / "cache") as cache,
    ):
        cache.catalog.known_files(["a"])
