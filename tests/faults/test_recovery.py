"""What a kill, a failing disk or a foreign file leaves behind, and what opening the store makes of it."""

from __future__ import annotations

import fcntl
import logging
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import store_rows
from store_rows import (
    HALF,
    SPEC,
    assert_holds,
    commit,
    commit_each,
    flip_bit,
    flip_bit_at,
    make_rows,
    run_python,
    segment_files,
    temporary_files,
)

from featcache.errors import CacheError, CacheVersionError, MissingFeaturesError
from featcache.store import Cache, FeatureWriter
from featcache.store.segment import attributes_crc


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    with Cache(tmp_path / "cache") as cache:
        yield cache


# A killed writer

ENDLESS_WRITER = """
import itertools, sys
from store_rows import SPEC, make_rows
from featcache.store import Cache, FeatureWriter

with Cache(sys.argv[1]) as cache, FeatureWriter(cache.features(SPEC), "float32") as writer:
    for at in itertools.count(0, 7):
        writer.append(*make_rows(at, 7))
        writer.flush()
        print(writer.committed, flush=True)
"""


@pytest.mark.parametrize("seed", range(4))
def test_every_row_reported_committed_survives_sigkill(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    environment = os.environ | {"PYTHONPATH": str(Path(store_rows.__file__).parent)}
    command = [sys.executable, "-c", ENDLESS_WRITER, str(tmp_path / "cache")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        reported = [process.stdout.readline() for _ in range(chance.randint(1, 20))]
        time.sleep(chance.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        reported += process.stdout.readlines()
    committed = int([line for line in reported if line.endswith(b"\n")][-1])
    assert committed >= 7
    with Cache(tmp_path / "cache") as cache:
        store = cache.features(SPEC)
        assert_holds(store, make_rows(0, committed))
        assert not store.contains(make_rows(committed + 7, 1)[0]).any()
        assert temporary_files(cache.folder) == []
        assert not (cache.folder / "bad").exists()


def test_an_abandoned_temporary_file_is_removed_on_opening_and_a_live_one_stays(cache: Cache) -> None:
    folder = cache.features(SPEC).folder
    abandoned = [cache.folder / ".tmp-0123012301230123", folder / ".tmp-4567456745674567"]
    live = [cache.folder / ".tmp-89ab89ab89ab89ab", folder / ".tmp-cdefcdefcdefcdef"]
    for path in abandoned + live:
        path.write_bytes(b"half a file")
    with live[0].open("rb") as first, live[1].open("rb") as second:
        fcntl.flock(first, fcntl.LOCK_EX)
        fcntl.flock(second, fcntl.LOCK_EX)
        with Cache(cache.folder) as again:
            again.features(SPEC)
        assert temporary_files(cache.folder) == sorted(live)
    with Cache(cache.folder) as again:
        again.features(SPEC)
    assert temporary_files(cache.folder) == []


def test_opening_the_cache_in_the_middle_of_a_commit_does_not_disturb_it(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = cache.features(SPEC)
    fsync = os.fsync
    seen: list[list[Path]] = []

    def open_meanwhile(descriptor: int) -> None:
        with Cache(cache.folder) as other:
            published = tuple(path.name for path in segment_files(store.folder))
            assert other.store(SPEC.fingerprint).segments in ((), published)
        seen.append(temporary_files(cache.folder))
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", open_meanwhile)
        commit(store, make_rows(0, 3))
    assert [len(files) for files in seen] == [1, 0]
    assert_holds(cache.features(SPEC), make_rows(0, 3))


# Broken and foreign segments


def truncate(segment: Path) -> None:
    os.truncate(segment, segment.stat().st_size // 2)


def empty(segment: Path) -> None:
    os.truncate(segment, 0)


def flip_bit_in_keys(segment: Path) -> None:
    flip_bit(segment, "keys")


def replace_by_foreign_hdf5(segment: Path) -> None:
    segment.unlink()
    with h5py.File(segment, "w") as file:
        file["images"] = np.zeros((2, 2))


def replace_by_text(segment: Path) -> None:
    segment.write_text("not a segment\n" * 200)


def cut_rows(segment: Path) -> None:
    with h5py.File(segment, "r+") as file:
        keys = file["keys"][:-1]
        del file["keys"]
        file["keys"] = keys


def swap_byte_order(segment: Path) -> None:
    with h5py.File(segment, "r+") as file:
        features = file["features"][()]
        del file["features"]
        file["features"] = features.view(features.dtype.newbyteorder())  # the same bytes under another type


def drop_attribute(segment: Path) -> None:
    with h5py.File(segment, "r+") as file:
        del file.attrs["dim"]


def replace_by_other_fingerprint(segment: Path) -> None:
    with Cache(segment.parents[2]) as cache:
        segment.write_bytes(commit(cache.features(HALF), make_rows(4, 4), "float16").read_bytes())


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        empty,
        flip_bit_in_keys,
        replace_by_foreign_hdf5,
        replace_by_text,
        cut_rows,
        swap_byte_order,
        drop_attribute,
        replace_by_other_fingerprint,
    ],
)
def test_a_broken_segment_is_put_aside_with_a_warning_and_the_others_stay(
    cache: Cache, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None]
) -> None:
    commit_each(cache.features(SPEC), 3)
    first, broken, last = segment_files(cache.features(SPEC).folder)
    damage(broken)
    content = broken.read_bytes()
    with caplog.at_level(logging.WARNING, logger="featcache"):
        store = cache.features(SPEC)
    assert store.segments == (first.name, last.name)
    assert_holds(store, make_rows(0, 4))
    assert_holds(store, make_rows(8, 4))
    assert store.contains(make_rows(0, 12)[0]).tolist() == [True] * 4 + [False] * 4 + [True] * 4
    assert not broken.exists()
    (kept,) = (cache.folder / "bad").iterdir()
    assert kept.read_bytes() == content
    (record,) = caplog.records
    assert record.name.split(".")[0] == "featcache"
    assert broken.name in record.getMessage()
    assert str(kept) in record.getMessage()
    assert "featcache extract" in record.getMessage()
    commit(store, make_rows(4, 4))  # what the next extraction does
    assert_holds(cache.features(SPEC), make_rows(0, 12))


def test_a_flipped_bit_in_a_vector_is_found_by_reading(cache: Cache, caplog: pytest.LogCaptureFixture) -> None:
    rows = commit_each(cache.features(SPEC), 3)
    store = cache.features(SPEC)
    flip_bit(segment_files(store.folder)[1], "features")
    with pytest.raises(MissingFeaturesError, match=r"^4 of 12 vectors .*featcache extract"):
        store.read(rows[0])
    assert len(caplog.records) == 1
    assert store.contains(rows[0]).sum() == 8
    assert_holds(store, make_rows(8, 4))
    commit(store, make_rows(4, 4))
    store.refresh()
    assert_holds(store, rows)


@pytest.mark.parametrize("part", ["features", "keys"])
def test_verify_counts_the_broken_segments_and_puts_them_aside(cache: Cache, part: str) -> None:
    rows = commit_each(cache.features(SPEC), 5)
    store = cache.features(SPEC)
    assert store.verify() == 0
    for broken in segment_files(store.folder)[1::2]:
        flip_bit(broken, part)
    assert store.verify() == 2
    assert store.verify() == 0
    assert len(store.segments) == 3
    assert store.contains(rows[0]).sum() == 12
    assert len(list((cache.folder / "bad").iterdir())) == 2


def test_verify_counts_what_was_put_aside_since_opening_too(cache: Cache) -> None:
    rows = commit_each(cache.features(SPEC), 4)
    on_opening, on_reading, on_verifying, sound = segment_files(cache.features(SPEC).folder)
    flip_bit(on_opening, "keys")
    store = cache.features(SPEC)
    flip_bit(on_reading, "features")
    with pytest.raises(MissingFeaturesError):
        store.read(rows[0][4:])
    flip_bit(on_verifying, "features")
    assert store.verify() == 3
    assert store.verify() == 0
    assert store.segments == (sound.name,)


def test_every_flipped_bit_of_a_row_is_found(cache: Cache) -> None:
    keys, vectors = make_rows(0, 4)
    segment = commit(cache.features(SPEC), (keys, vectors))
    good = segment.read_bytes()
    chance = random.Random(0)
    for data in 30 * [vectors.tobytes(), b"".join(keys)]:
        segment.write_bytes(good)
        flip_bit_at(segment, good.index(data) + chance.randrange(len(data)), chance.randrange(8))
        with pytest.raises(MissingFeaturesError):
            cache.features(SPEC).read(keys)
        assert not segment.exists()


FLIP_BITS = """
import random, signal, sys
from pathlib import Path
import numpy as np
from store_rows import SPEC, flip_bit_at
from featcache.store.segment import SegmentError, read_features, read_keys

def read():
    header, keys = read_keys(segment, SPEC.fingerprint)
    return header, keys, read_features(segment, header)

segment, flips = Path(sys.argv[1]), int(sys.argv[2])
good, (header, keys, features) = segment.read_bytes(), read()
used = [place for place in range(len(good)) if any(good[max(0, place - 8) : place + 9])]  # the rest is padding
bits = [(place, bit) for place in used for bit in range(8)]
for place, bit in random.Random(0).sample(bits, flips):
    print(f"bit {bit} of byte {place}", flush=True)
    segment.write_bytes(good)
    flip_bit_at(segment, place, bit)
    signal.setitimer(signal.ITIMER_REAL, 5)  # ends this process, in the middle of a call into HDF5 too
    try:
        found = read()
    except SegmentError:
        continue
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    assert found[0] == header
    np.testing.assert_array_equal(found[1], keys, strict=True)
    np.testing.assert_array_equal(found[2], features, strict=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("flips", [300, pytest.param(12_000, marks=pytest.mark.soak)])
def test_a_flipped_bit_anywhere_is_found_or_harmless_and_never_hangs_or_crashes(cache: Cache, flips: int) -> None:
    commit_each(cache.features(SPEC), 2)
    store = cache.features(SPEC)
    assert store.compact() == 2
    segment = segment_files(store.folder)[0]
    assert len(run_python(FLIP_BITS, segment, flips, timeout=300).splitlines()) == flips


def test_a_dangling_link_in_place_of_a_segment_is_put_aside(cache: Cache) -> None:
    rows = commit_each(cache.features(SPEC), 2)
    store = cache.features(SPEC)
    link = store.folder / "seg-00000000000000000001-0123abcd-00000001.h5"
    link.symlink_to("nowhere")
    store.refresh()
    assert "is a link" in store.quarantined[0]
    assert not link.is_symlink()
    assert_holds(cache.features(SPEC), rows)


def test_a_lack_of_file_descriptors_is_not_taken_for_damage(cache: Cache) -> None:
    rows = commit_each(cache.features(SPEC), 2)
    store = cache.features(SPEC)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        with pytest.raises(CacheError, match="too many open files"):
            store.read(rows[0])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not (cache.folder / "bad").exists()
    assert_holds(store, rows)


def test_a_segment_of_a_newer_format_is_refused_and_left_alone(cache: Cache) -> None:
    segment = commit(cache.features(SPEC), make_rows(0, 3))
    with h5py.File(segment, "r+") as file:
        file.attrs["format_version"] = 2
        file.attrs["crc32_attributes"] = attributes_crc(dict(file.attrs))
    content = segment.read_bytes()
    with pytest.raises(CacheVersionError, match=r"segment format 2, this featcache reads 1: .*--cache"):
        cache.features(SPEC)
    assert segment.read_bytes() == content
    assert not (cache.folder / "bad").exists()


def test_a_reader_leaves_the_segments_untouched(cache: Cache) -> None:
    rows = commit_each(cache.features(SPEC), 2)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in segment_files(cache.features(SPEC).folder)}
    with FeatureWriter(cache.features(SPEC), "float32"):
        assert_holds(cache.features(SPEC), rows)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before} == before
