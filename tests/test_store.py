"""The commit of vectors: what reaches the disk, when, and what several writers make of one store."""

from __future__ import annotations

import json
import os
import re
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
from store_rows import (
    DIM,
    HALF,
    SPEC,
    Rows,
    assert_holds,
    commit,
    flip_bit,
    make_rows,
    run_python,
    segment_files,
    temporary_files,
)

from featcache.errors import CacheError, MissingFeaturesError
from featcache.records import FeatureSpec
from featcache.store import Cache, FeatureStore, FeatureWriter, stored, writing
from featcache.store.index import stack_keys

SEGMENT_NAME = re.compile(r"seg-\d{20}-[0-9a-f]{8}-\d{8}\.h5")


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    with Cache(tmp_path / "cache") as cache:
        yield cache


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
    texts = {name: value.decode() if isinstance(value, bytes) else value for name, value in attributes.items()}
    checksum = texts.pop("crc32_attributes")
    assert checksum == zlib.crc32("\n".join(f"{name}={texts[name]}" for name in sorted(texts)).encode())
    assert texts == {
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


@pytest.mark.parametrize("spec", [SPEC, HALF], ids=lambda spec: spec.dtype)
def test_reading_no_keys_gives_no_rows(cache: Cache, spec: FeatureSpec) -> None:
    store = cache.features(spec)
    commit(store, make_rows(0, 3), spec.dtype)
    store.refresh()
    found = store.read([])
    assert (found.shape, found.dtype) == ((0, DIM), spec.dtype)


# What is refused


def fewer_vectors(keys: list[bytes], vectors: npt.NDArray[Any]) -> tuple[list[bytes], npt.NDArray[Any]]:
    return keys, vectors[:-1]


def fewer_keys(keys: list[bytes], vectors: npt.NDArray[Any]) -> tuple[list[bytes], npt.NDArray[Any]]:
    return keys[:-1], vectors


def keys_cut_elsewhere(keys: list[bytes], vectors: npt.NDArray[Any]) -> tuple[list[bytes], npt.NDArray[Any]]:
    first, second, *rest = keys  # as many bytes in all as before
    return [first[:16], first[16:] + second, *rest], vectors


def one_long_vector(keys: list[bytes], vectors: npt.NDArray[Any]) -> tuple[list[bytes], npt.NDArray[Any]]:
    return keys, vectors[:, 0]


def text(keys: list[bytes], vectors: npt.NDArray[Any]) -> tuple[list[bytes], npt.NDArray[Any]]:
    return keys, np.full(vectors.shape, "text")


@pytest.mark.parametrize("misfit", [fewer_vectors, fewer_keys, keys_cut_elsewhere, one_long_vector, text])
def test_a_batch_that_does_not_fit_is_refused_and_the_others_are_committed(
    cache: Cache, misfit: Callable[..., Rows]
) -> None:
    store = cache.features(SPEC)
    with FeatureWriter(store, "float32") as writer:
        for at in (0, 3):
            with pytest.raises(ValueError, match=r"do not belong together|could not convert"):
                writer.append(*misfit(*make_rows(10, 4)))
            writer.append(*make_rows(at, 3))
    assert writer.committed == 6
    assert_holds(cache.features(SPEC), make_rows(0, 6))
    assert not cache.features(SPEC).contains(make_rows(10, 4)[0]).any()


@pytest.mark.parametrize("place", ["store", "buffer"])
def test_vectors_of_another_length_than_those_before_are_refused(cache: Cache, place: str) -> None:
    store = cache.features(SPEC)
    keys, vectors = make_rows(3, 3)
    with FeatureWriter(store, "float32") as writer:
        writer.append(*make_rows(0, 3))
        if place == "store":
            writer.flush()
            store.refresh()
        with pytest.raises(ValueError, match=f"length {DIM - 1} do not belong to a store of length {DIM}"):
            writer.append(keys, vectors[:, 1:])
    assert_holds(cache.features(SPEC), make_rows(0, 3))
    assert not cache.features(SPEC).contains(keys).any()


# When it is committed


def test_a_full_buffer_is_committed(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "COMMIT_ROWS", 10)
    writer = FeatureWriter(cache.features(SPEC), "float32")
    committed = []
    for at in range(0, 25, 5):
        writer.append(*make_rows(at, 5))
        committed.append(writer.committed)
    assert committed == [0, 10, 10, 20, 20]


def test_an_old_buffer_is_committed(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(writing.time, "monotonic", lambda: now)
    writer = FeatureWriter(cache.features(SPEC), "float32")
    writer.append(*make_rows(0, 1))
    now += writing.COMMIT_SECONDS - 0.1
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


# Rows that stay on the disk


@pytest.mark.parametrize("spec", [SPEC, HALF], ids=lambda spec: spec.dtype)
def test_stored_rows_are_what_read_gives_in_any_order_and_over_segments(cache: Cache, spec: FeatureSpec) -> None:
    store = cache.features(spec)
    keys, vectors = make_rows(0, 50)
    for at in range(0, 50, 20):
        commit(store, (keys[at : at + 20], vectors[at : at + 20]), spec.dtype)
    store.refresh()
    asked = np.random.default_rng(0).integers(0, 50, 120)
    rows = store.stored([keys[at] for at in asked])
    assert len(rows) == 120
    places = np.random.default_rng(1).permutation(120)[:30]
    found = rows.read(places)
    assert found.dtype == spec.dtype
    np.testing.assert_array_equal(found, vectors.astype(spec.dtype)[asked[places]])


def test_stored_rows_near_each_other_are_one_read_and_those_far_apart_several(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = cache.features(SPEC)
    keys, vectors = make_rows(0, 40)
    for at in (0, 30):
        commit(store, (keys[at : at + 30], vectors[at : at + 30]))
    store.refresh()
    rows = store.stored(stack_keys(keys))
    monkeypatch.setattr(stored, "GAP_BYTES", 3 * rows.row_bytes)
    counted: list[int] = []
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda *given: counted.append(len(given[1][0])) or preadv(*given))
    asked = np.array([35, 3, 0, 29, 30, 10])
    np.testing.assert_array_equal(rows.read(asked), vectors[asked])
    assert [size // rows.row_bytes for size in counted] == [4, 1, 1, 1, 1]
    monkeypatch.setattr(stored, "SPAN_BYTES", 8 * rows.row_bytes)
    counted.clear()
    np.testing.assert_array_equal(rows.read(np.arange(40)), vectors)
    assert max(counted) == 8 * rows.row_bytes


def test_stored_rows_of_a_missing_key_are_refused(cache: Cache) -> None:
    store = cache.features(SPEC)
    keys, vectors = make_rows(0, 5)
    commit(store, (keys[:4], vectors[:4]))
    store.refresh()
    with pytest.raises(MissingFeaturesError, match="1 of 5 vectors are not in"):
        store.stored(keys)


def test_a_broken_stored_segment_puts_it_aside_and_says_what_is_missing(cache: Cache) -> None:
    store = cache.features(SPEC)
    keys, vectors = make_rows(0, 8)
    commit(store, (keys[:4], vectors[:4]))
    broken = commit(store, (keys[4:], vectors[4:]))
    store.refresh()
    flip_bit(broken, "features")
    np.testing.assert_array_equal(store.stored(keys[:4]).read(np.arange(4)), vectors[:4])
    assert broken.exists()  # it was not asked for
    with pytest.raises(MissingFeaturesError, match="4 of 8 vectors are not in"):
        store.stored(keys)
    assert not broken.exists()
    assert len(list((cache.folder / "bad").iterdir())) == 1


def test_stored_rows_outlive_a_compaction_and_new_ones_follow_it(cache: Cache) -> None:
    store, reader = cache.features(SPEC), None
    rows = make_rows(0, 60)
    for at in range(0, 60, 2):
        commit(store, (rows[0][at : at + 2], rows[1][at : at + 2]))
    store.refresh()
    reader = store.reopened()
    before = reader.stored(rows[0])
    assert store.compact() > 0
    store.remove_replaced()
    np.testing.assert_array_equal(before.read(np.arange(60)), rows[1])
    np.testing.assert_array_equal(reader.stored(rows[0]).read(np.arange(60)), rows[1])
    assert reader.quarantined == []


# Large vectors


def test_a_buffer_is_committed_when_it_has_enough_bytes(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "COMMIT_BYTES", 10 * DIM * 4)
    monkeypatch.setattr(writing, "COMMIT_SECONDS", 1e9)
    store = cache.features(SPEC)
    keys, vectors = make_rows(0, 23)
    with FeatureWriter(store, "float32") as writer:
        for at in range(23):
            writer.append(keys[at : at + 1], vectors[at : at + 1])
            assert writer.committed == (at + 1) // 10 * 10
    assert len(segment_files(store.folder)) == 3
    store.refresh()
    assert_holds(store, (keys, vectors))


def test_no_rows_at_all_may_be_appended(cache: Cache) -> None:
    store = cache.features(SPEC)
    keys, vectors = make_rows(0, 2)
    with FeatureWriter(store, "float32") as writer:
        writer.append([], vectors[:0])
        writer.append(keys, vectors)
    store.refresh()
    assert_holds(store, (keys, vectors))


def test_bytes_are_counted_as_they_are_stored(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "COMMIT_BYTES", 10 * DIM * 2)
    monkeypatch.setattr(writing, "COMMIT_SECONDS", 1e9)
    keys, vectors = make_rows(0, 9)
    with FeatureWriter(cache.features(HALF), "float16") as writer:
        writer.append(keys, vectors)
        assert writer.committed == 0


@pytest.mark.parametrize("value", [70000.0, -1e9, np.inf])
def test_values_that_float16_cannot_hold_are_refused_and_nothing_of_them_is_kept(cache: Cache, value: float) -> None:
    store = cache.features(HALF)
    keys, vectors = make_rows(0, 6)
    writer = FeatureWriter(store, "float16")
    writer.append(keys[:3], vectors[:3])
    bad = vectors[3:].copy()
    bad[1, 2] = value
    with pytest.raises(CacheError, match=re.escape(f"values up to {abs(value):g} do not fit into float16")):
        writer.append(keys[3:], bad)
    writer.flush()
    store.refresh()
    assert store.contains(keys).tolist() == [True] * 3 + [False] * 3
    bad[1, 2] = 65504
    writer.append(keys[3:], bad)
    writer.flush()
    store.refresh()
    assert store.read(keys[3:])[1, 2] == 65504
