"""The merge of small segments, cut short at every step, and the look-up of keys."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from store_rows import (
    DIM,
    SPEC,
    assert_holds,
    commit,
    commit_each,
    flip_bit,
    make_rows,
    segment_files,
    temporary_files,
)

from featcache.store import Cache, FeatureStore, compaction, index
from featcache.store.index import KeyIndex


class Cut(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    with Cache(tmp_path / "cache") as cache:
        yield cache


def cut_compaction(store: FeatureStore, deletions: int) -> None:
    """Compact, but stop after so many of the merged segments were deleted."""
    unlink = os.unlink
    deleted: list[str] = []

    def unlink_some(path: str | Path, *, dir_fd: int | None = None) -> None:
        if str(path).endswith(".h5"):
            if len(deleted) == deletions:
                raise Cut
            deleted.append(str(path))
        unlink(path, dir_fd=dir_fd)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "unlink", unlink_some)
        with pytest.raises(Cut):
            store.compact()


def test_small_segments_become_one_with_the_same_rows(cache: Cache) -> None:
    store = cache.features(SPEC)
    rows = commit_each(store, 5)
    old = segment_files(store.folder)
    assert store.compact() == 5
    (merged,) = segment_files(store.folder)
    assert merged not in old
    assert store.segments == (merged.name,)
    assert_holds(store, rows)
    assert_holds(cache.features(SPEC), rows)
    assert temporary_files(cache.folder) == []
    with h5py.File(merged, "r") as file:
        assert [name.decode() for name in file["replaces"][()]] == [path.name for path in old]
    assert store.compact() == 0
    assert segment_files(store.folder) == [merged]


def test_a_key_written_twice_is_merged_once_with_its_first_vector(cache: Cache) -> None:
    store = cache.features(SPEC)
    commit(store, make_rows(0, 4, version=1))
    commit(store, make_rows(2, 4, version=2))
    commit(store, make_rows(0, 2, version=3))
    store.compact()
    assert_holds(store, make_rows(0, 4, version=1))
    assert_holds(store, make_rows(4, 2, version=2))
    with h5py.File(segment_files(store.folder)[0], "r") as file:
        assert file["features"].shape == (6, DIM)


def test_large_segments_are_left_alone(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    store = cache.features(SPEC)
    large = commit(store, make_rows(0, 100))
    for at in range(100, 103):
        commit(store, make_rows(at, 1))
    monkeypatch.setattr(compaction, "SMALL_BYTES", 1000)
    assert store.compact() == 3
    assert len(store.segments) == 2
    assert large.exists()
    assert_holds(store, make_rows(0, 103))


def test_merged_segments_stay_under_the_limit(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    store = cache.features(SPEC)
    rows = commit_each(store, 5)
    bytes_each = 4 * (4 * DIM + 32)
    monkeypatch.setattr(compaction, "MERGED_BYTES", 2 * bytes_each)
    assert store.compact() == 4  # two and two; the fifth has no company
    assert len(store.segments) == 3
    assert_holds(store, rows)


@pytest.mark.parametrize("segments", [0, 1])
def test_there_is_nothing_to_merge_in_less_than_two_segments(cache: Cache, segments: int) -> None:
    store = cache.features(SPEC)
    commit_each(store, segments)
    before = segment_files(store.folder)
    assert store.compact() == 0
    assert segment_files(store.folder) == before


def test_a_reader_opened_before_still_reads_everything(cache: Cache) -> None:
    rows = commit_each(cache.features(SPEC), 5)
    reader, again = cache.features(SPEC), cache.features(SPEC)
    assert cache.features(SPEC).compact() == 5
    assert_holds(reader, rows)
    assert again.verify() == 0
    assert_holds(again, rows)
    assert len(again.segments) == 1


@pytest.mark.parametrize("deletions", [0, 1, 4])
def test_a_compaction_cut_before_its_end_reads_right_and_the_next_one_cleans_up(cache: Cache, deletions: int) -> None:
    rows = commit_each(cache.features(SPEC), 5)
    cut_compaction(cache.features(SPEC), deletions)
    store = cache.features(SPEC)
    files = segment_files(store.folder)
    assert len(files) == 6 - deletions
    assert store.segments == (files[-1].name,)
    assert_holds(store, rows)
    assert store.compact() == 0
    assert segment_files(store.folder) == files[-1:]
    assert_holds(cache.features(SPEC), rows)


def test_old_segments_that_come_back_are_skipped_and_removed(cache: Cache, tmp_path: Path) -> None:
    rows = commit_each(cache.features(SPEC), 3)
    store = cache.features(SPEC)
    shutil.copytree(store.folder, tmp_path / "kept")
    store.compact()
    for path in segment_files(tmp_path / "kept"):
        shutil.copy(path, store.folder)
    again = cache.features(SPEC)
    assert len(again.segments) == 1
    assert_holds(again, rows)
    commit(again, make_rows(12, 4))
    assert again.compact() == 2
    assert len(segment_files(store.folder)) == 1
    assert_holds(again, make_rows(0, 16))


def test_chained_compactions_cut_short_still_skip_every_source(cache: Cache) -> None:
    rows = commit_each(cache.features(SPEC), 3)
    cut_compaction(cache.features(SPEC), 0)
    folder = cache.features(SPEC).folder
    sources = {path: path.read_bytes() for path in segment_files(folder)}
    commit(cache.features(SPEC), make_rows(12, 4))
    cache.features(SPEC).compact()
    for path, data in sources.items():
        path.write_bytes(data)
    store = cache.features(SPEC)
    assert len(store.segments) == 1
    assert_holds(store, (rows[0], rows[1]))
    while store.compact():
        pass
    assert_holds(cache.features(SPEC), make_rows(0, 16))


@pytest.mark.parametrize("part", ["features", "keys"])
def test_the_sources_are_used_where_the_merged_segment_is_damaged(cache: Cache, part: str) -> None:
    rows = commit_each(cache.features(SPEC), 5)
    cut_compaction(cache.features(SPEC), 0)
    *sources, merged = segment_files(cache.features(SPEC).folder)
    flip_bit(merged, part)
    store = cache.features(SPEC)
    assert store.segments == tuple(path.name for path in sources)
    assert [path.name for path in (cache.folder / "bad").iterdir()] == [f"{store.folder.name}-{merged.name}"]
    assert_holds(store, rows)


def test_an_open_reader_falls_back_to_the_sources_of_a_damaged_merged_segment(cache: Cache) -> None:
    rows = commit_each(cache.features(SPEC), 5)
    cut_compaction(cache.features(SPEC), 0)
    store = cache.features(SPEC)
    *sources, merged = segment_files(store.folder)
    assert store.segments == (merged.name,)
    flip_bit(merged, "features")
    assert_holds(store, rows)
    assert store.segments == tuple(path.name for path in sources)


def test_a_damaged_source_is_put_aside_and_the_others_are_merged(cache: Cache) -> None:
    keys, _ = commit_each(cache.features(SPEC), 4)
    store = cache.features(SPEC)
    damaged = segment_files(store.folder)[1]
    flip_bit(damaged, "features")
    assert store.compact() == 3
    assert [path.name for path in (cache.folder / "bad").iterdir()] == [f"{store.folder.name}-{damaged.name}"]
    for after in (store, cache.features(SPEC)):
        assert len(after.segments) == 1
        assert after.contains(keys).tolist() == [True] * 4 + [False] * 4 + [True] * 8
        assert_holds(after, make_rows(0, 4))
        assert_holds(after, make_rows(8, 8))


def test_sources_that_cannot_be_removed_are_skipped_until_they_can(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = cache.features(SPEC)
    rows = commit_each(store, 3)
    unlink = os.unlink

    def fail(path: str | Path, *, dir_fd: int | None = None) -> None:
        if str(path).endswith(".h5"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        unlink(path, dir_fd=dir_fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", fail)
        assert store.compact() == 3
    *sources, merged = segment_files(store.folder)
    assert len(sources) == 3
    for after in (store, cache.features(SPEC)):
        assert after.segments == (merged.name,)
        assert_holds(after, rows)
    assert store.compact() == 0
    assert segment_files(store.folder) == [merged]


def test_compacting_over_a_damaged_merged_segment_keeps_every_row(cache: Cache) -> None:
    rows = commit_each(cache.features(SPEC), 5)
    cut_compaction(cache.features(SPEC), 0)
    flip_bit(segment_files(cache.features(SPEC).folder)[-1], "features")
    store = cache.features(SPEC)
    assert store.compact() == 5
    assert_holds(cache.features(SPEC), rows)


def test_only_one_compaction_runs_at_a_time(cache: Cache) -> None:
    store = cache.features(SPEC)
    rows = commit_each(store, 3)
    before = segment_files(store.folder)
    with (store.folder / ".compact.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert store.compact() == 0
        assert segment_files(store.folder) == before
        assert_holds(store, rows)
    assert store.compact() == 3


# Look-up


def as_keys(*keys: bytes) -> np.ndarray:
    return np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 32)


def test_keys_that_share_their_first_64_bits_are_told_apart() -> None:
    keys = [b"samesame" + bytes([number]) * 24 for number in (5, 1, 9, 3)]
    known = KeyIndex(as_keys(*keys))
    unknown = b"samesame" + bytes([4]) * 24
    assert known.find(as_keys(keys[2], unknown, keys[0], keys[3], keys[1], keys[2])).tolist() == [2, -1, 0, 3, 1, 2]


def test_of_a_key_held_twice_the_first_row_is_found() -> None:
    first, second = b"samesame" + b"a" * 24, b"samesame" + b"b" * 24
    assert KeyIndex(as_keys(second, first, first, second)).find(as_keys(first, second)).tolist() == [1, 0]


def test_an_empty_index_finds_nothing() -> None:
    assert KeyIndex(as_keys()).find(as_keys(b"k" * 32)).tolist() == [-1]


def test_the_index_agrees_with_a_dictionary_where_prefixes_collide() -> None:
    chance = np.random.default_rng(0)
    held = chance.integers(0, 2, (300, 32), dtype=np.uint8)
    held[:, :8] = chance.integers(254, 256, (300, 8)) * (chance.random((300, 8)) < 0.2)
    wanted = np.concatenate([held, chance.integers(0, 2, (200, 32), dtype=np.uint8)])[chance.permutation(500)]
    first: dict[bytes, int] = {}
    for row, key in enumerate(held):
        first.setdefault(key.tobytes(), row)
    expected = [first.get(key.tobytes(), -1) for key in wanted]
    assert KeyIndex(held).find(wanted).tolist() == expected
    assert -1 in expected


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_a_store_that_stays_open_finds_what_a_new_one_finds(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    for module in (compaction, index):
        monkeypatch.setattr(module, "SMALL_BYTES", 30 * (4 * DIM + 32))
    chance = np.random.default_rng(seed)
    standing, asked = cache.features(SPEC), make_rows(0, 120)[0]
    for _ in range(25):
        other = cache.features(SPEC)
        action = chance.random()
        if action < 0.7:
            start, count = int(chance.integers(100)), int(chance.choice([1, 2, 5, 40]))
            commit(other, make_rows(start, count))
        elif action < 0.85:
            other.compact()
        elif len(other.keys):
            other.discard([chance.choice(other.keys).tobytes()])
        standing.refresh()
        new = cache.features(SPEC)
        assert standing.segments == new.segments
        np.testing.assert_array_equal(standing._index.find(as_keys(*asked)), new._index.find(as_keys(*asked)))
        held = [key for key, is_held in zip(asked, new.contains(asked), strict=True) if is_held]
        np.testing.assert_array_equal(standing.read(held), new.read(held))
    np.testing.assert_array_equal(standing.keys, new.keys)


@pytest.mark.slow
def test_what_a_store_that_stays_open_knows_is_not_sorted_again(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (compaction, index):
        monkeypatch.setattr(module, "SMALL_BYTES", 100 * (4 * DIM + 32))
    standing = cache.features(SPEC)
    commit(standing, make_rows(0, 1000))
    standing.refresh()
    assert standing.contains(make_rows(0, 1)[0]).all()
    rows: list[int] = []
    make = KeyIndex.__init__
    monkeypatch.setattr(KeyIndex, "__init__", lambda self, keys: rows.append(len(keys)) or make(self, keys))
    for number in range(64):
        commit(cache.features(SPEC), make_rows(1000 + 4 * number, 4))
        standing.refresh()
        assert standing.contains(make_rows(1000 + 4 * number, 4)[0]).all()
        if number == 40:
            cache.features(SPEC).compact()
    assert standing.contains(make_rows(0, 1256)[0]).all()
    assert sum(rows) < 4 * 64 * 7  # each new key as often as it takes to double its part
