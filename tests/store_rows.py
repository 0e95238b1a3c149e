"""Rows with known content, and the faults that the store tests put into real files."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

from featcache.records import FeatureSpec, Preprocess
from featcache.store import FeatureStore, FeatureWriter

DIM = 6
STEPS = Preprocess(resize=8, crop=8, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
SPEC = FeatureSpec("toy", "0" * 64, STEPS)
HALF = FeatureSpec("toy", "0" * 64, STEPS, dtype="float16")

Rows = tuple[list[bytes], npt.NDArray[np.float32]]


def make_rows(start: int, count: int, version: int = 0) -> Rows:
    """Return the rows numbered from `start`; `version` changes their vectors and not their keys."""
    numbers = range(start, start + count)
    keys = [hashlib.sha256(b"row %d" % number).digest() for number in numbers]
    vectors = [np.random.default_rng([version, number]).standard_normal(DIM) for number in numbers]
    return keys, np.array(vectors, dtype=np.float32).reshape(count, DIM)


def commit(store: FeatureStore, rows: Rows, dtype: str = "float32") -> Path:
    """Commit `rows` as one segment and return its path."""
    before = segment_files(store.folder)
    with FeatureWriter(store, dtype) as writer:
        writer.append(*rows)
    (new,) = set(segment_files(store.folder)).difference(before)
    return new


def commit_each(store: FeatureStore, segments: int, rows_each: int = 4) -> Rows:
    """Commit `segments` small segments, and return all their rows."""
    for number in range(segments):
        commit(store, make_rows(number * rows_each, rows_each))
    store.refresh()
    return make_rows(0, segments * rows_each)


def assert_holds(store: FeatureStore, rows: Rows) -> None:
    keys, vectors = rows
    np.testing.assert_array_equal(store.read(keys), vectors)


def segment_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("seg-*.h5"))


def temporary_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob(".tmp-*"))


def flip_bit(segment: Path, name: str) -> None:
    """Flip one bit in the middle of a data set, as a failing disk would."""
    with h5py.File(segment, "r", locking=False) as file:
        place = file[name].id.get_offset() + file[name].nbytes // 2
    flip_bit_at(segment, place, 3)


def flip_bit_at(segment: Path, place: int, bit: int) -> None:
    data = bytearray(segment.read_bytes())
    data[place] ^= 1 << bit
    segment.write_bytes(data)


def run_python(script: str, *args: object, timeout: float = 60) -> str:
    """Run a script in another process, which may import what these tests import, and return what it printed."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", script, *map(str, args)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, f"exit status {done.returncode} after {done.stdout[-200:]!r}: {done.stderr}"
    return done.stdout
