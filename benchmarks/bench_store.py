"""The store beside one contiguous HDF5 data set and a memory map: same rows, same run, turn by turn.

    python benchmarks/bench_store.py            1,000,000 rows of 512 float16, and 60,000 files scanned again

Equal rows are asserted before any time is printed. Everything is written below a temporary folder (`--folder` says
where) and removed. Times are medians; the files are in the page cache, as they are right after they were written.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt
from PIL import Image

from featcache.backbones import resolve
from featcache.records import FeatureSpec, Preprocess
from featcache.store import Cache, FeatureStore, FeatureWriter

DIM = 512
BATCH = 256
TURNS = 7
STEPS = Preprocess(224, 224, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SPEC = FeatureSpec("synthetic", "0" * 64, STEPS, dtype="float16")

Vectors = npt.NDArray[np.float16]


def batches(rows: int) -> Iterator[tuple[list[bytes], Vectors]]:
    """Yield seeded rows, a batch at a time, so that nothing but the writer holds memory."""
    for start in range(0, rows, BATCH):
        numbers = range(start, min(start + BATCH, rows))
        noise = np.random.default_rng(start).standard_normal((len(numbers), DIM), dtype=np.float32)
        yield [hashlib.sha256(b"%d" % number).digest() for number in numbers], noise.astype(np.float16)


def write_store(folder: Path, rows: int) -> None:
    """Write the rows as an extraction does, and print the highest memory after each quarter."""
    with Cache(folder) as cache, FeatureWriter(cache.features(SPEC), "float16") as writer:
        base, quarter = peak_mib(), max(1, math.ceil(rows / BATCH / 4))
        start = time.perf_counter()
        for done, (keys, vectors) in enumerate(batches(rows), 1):
            writer.append(keys, vectors)
            if done % quarter == 0 or done * BATCH >= rows:
                grown = peak_mib() - base
                print(f"  {min(done * BATCH, rows):>10,} rows written: peak memory {grown:,.0f} MiB above start")
        seconds = time.perf_counter() - start
    print(f"  in {seconds:.1f} s, of which {writer.seconds:.1f} s in commits and merges (fsync included)")


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def medians(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Call each in turn, `TURNS` times, and return the median seconds of each."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(TURNS):
        for name, call in calls.items():
            start = time.perf_counter()
            result = call()
            seconds[name].append(time.perf_counter() - start)
            del result
    return {name: statistics.median(times) for name, times in seconds.items()}


def show(times: dict[str, float], beside: str) -> None:
    for name, seconds in times.items():
        print(f"  {name:<46} {seconds:7.3f} s   {seconds / times[beside]:5.2f} x")


def bench_load(cache: Cache, folder: Path, rows: int) -> None:
    store = cache.store(SPEC.fingerprint)
    keys = [key for part, _ in batches(rows) for key in part]
    shuffled = [keys[at] for at in np.random.default_rng(0).permutation(rows)]
    contiguous, flat = folder / "contiguous.h5", folder / "flat.npy"
    whole = store.read(keys)
    for start, (_, vectors) in zip(range(0, rows, BATCH), batches(rows), strict=True):
        np.testing.assert_array_equal(whole[start : start + BATCH], vectors)
    with h5py.File(contiguous, "w") as file:
        file.create_dataset("features", data=whole)
    np.save(flat, whole)

    def bare_h5py() -> Vectors:
        with h5py.File(contiguous, "r") as file:
            return np.asarray(file["features"][()])

    def memmap() -> Vectors:
        return np.array(np.load(flat, mmap_mode="r"))

    for other in (bare_h5py(), memmap()):
        np.testing.assert_array_equal(other, whole)
    np.testing.assert_array_equal(store.read(shuffled[:1000]), whole[[keys.index(key) for key in shuffled[:1000]]])
    del whole, other

    print(f"\nload {rows:,} rows of {DIM} float16 ({rows * DIM * 2 / 2**20:,.0f} MiB); x: beside bare h5py")
    name = f"store, {len(store.segments)} segments, checksums checked"
    times = medians(
        {"bare h5py, one contiguous data set": bare_h5py, "memory map, copied": memmap, name: lambda: store.read(keys)}
    )
    show(times, "bare h5py, one contiguous data set")
    several = folder / "several"
    split(several, rows)
    store.compact()
    with Cache(several) as of_many:
        many = of_many.store(SPEC.fingerprint)
        times = medians(
            {
                "bare h5py, one contiguous data set": bare_h5py,
                f"store after compaction, {len(store.segments)} segments": lambda: store.read(keys),
                f"the same, {len(many.segments)} segments never merged": lambda: many.read(keys),
                "the same after compaction, keys shuffled": lambda: store.read(shuffled),
            }
        )
    show(times, "bare h5py, one contiguous data set")


def split(folder: Path, rows: int) -> None:
    """Write the rows as segments of a thousandth each, never merged."""
    from featcache.store import writing

    each = max(1, rows // 1000)
    compact_at, writing.COMPACT_AT, writing.COMMIT_ROWS = writing.COMPACT_AT, 10**9, each
    with Cache(folder) as cache, FeatureWriter(cache.features(SPEC), "float16") as writer:
        for keys, vectors in batches(rows):
            for start in range(0, len(keys), each):
                writer.append(keys[start : start + each], vectors[start : start + each])
    writing.COMPACT_AT, writing.COMMIT_ROWS = compact_at, 8192


def bench_lookup(store: FeatureStore, folder: Path, rows: int) -> tuple[float, float]:
    keys = [key for part, _ in batches(rows) for key in part]
    asked = [keys[at] for at in np.random.default_rng(1).permutation(rows)]
    absent = [hashlib.sha256(b"absent %d" % number).digest() for number in range(rows)]
    assert store.contains(asked).all()
    assert not store.contains(absent).any()

    def opened() -> object:
        return FeatureStore(store.folder, folder / "bad", SPEC.fingerprint).contains(asked[:1])

    print(f"\nlook up {rows:,} keys among {rows:,}")
    times = medians(
        {
            "open: list, read and check keys, build the index": opened,
            "present, shuffled": lambda: store.contains(asked),
            "absent": lambda: store.contains(absent),
        }
    )
    for name, seconds in times.items():
        print(f"  {name:<46} {seconds:7.3f} s")
    return times["open: list, read and check keys, build the index"], times["present, shuffled"]


def bench_rescan(folder: Path, files: int) -> None:
    """Scan a folder again whose pictures are all in the cache; the vectors are noise, only the time means something."""
    photos = folder / "photos"
    spec = resolve("efficientnet_lite0").spec
    with Cache(folder / "rescanned") as cache, FeatureWriter(cache.features(spec), spec.dtype) as writer:
        noise = np.random.default_rng(0)
        for number in range(files):
            path = photos / f"class-{number % 100:02d}" / f"{number:06d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.frombuffer(number.to_bytes(3, "big") * 4, np.uint8).reshape(2, 2, 3)).save(path)
            os.utime(path, (1, 1))
            key = hashlib.sha256(path.read_bytes()).digest()
            writer.append([key], noise.standard_normal((1, 1280), dtype=np.float32))
    command = [sys.executable, "-m", "featcache", "extract", str(photos), "--backbone", "efficientnet_lite0", "--json"]
    command += ["--cache", str(folder / "rescanned")]
    walls = []
    for turn in range(6):
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        walls.append(time.perf_counter() - start)
        summary = json.loads(done.stdout)
        assert (summary["found"], summary["computed"]) == (files, 0), summary
        if not turn:
            print(f"\nscan of {files:,} files, `featcache extract`, 0 forward passes, start-up included")
            print(f"  the first time: every file read and hashed       {walls[0]:7.2f} s")
    print(f"  again, unchanged (5 runs)                        {statistics.median(walls[1:]):7.2f} s")


def on_paper(opened: float, looked_up: float, rows: int) -> None:
    """Print what ten times as many rows take, from what was measured: bytes in proportion, sorting n log n."""
    n = 10 * rows
    grown = 10 * math.log(n) / math.log(rows)
    data, keys = n * DIM * 2, n * 32
    print(f"\n{n:,} rows on paper")
    print(f"  on disk: {n:,} x ({DIM} x 2 + 32) bytes = {(data + keys) / 1e9:.2f} GB")
    print(f"  in about {(data + keys) / 2**27:,.0f} segments of 128 MiB")
    print(f"  index in memory: {n:,} x (32 + 8 + 8) bytes = {n * 48 / 1e6:,.0f} MB, about twice that while it is built")
    print(f"  open: {opened:.2f} s x {grown:.1f} = {opened * grown:.1f} s")
    print(f"  look up all of them: {looked_up:.2f} s x {grown:.1f} = {looked_up * grown:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=60_000)
    parser.add_argument("--folder", type=Path, help="where to write  [default: the system's temporary folder]")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:  # in a process of its own, so that its memory is the writer's
        write_store(options.write, options.rows)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        print(f"write {options.rows:,} rows of {DIM} float16, {BATCH} at a time", flush=True)
        subprocess.run(
            [sys.executable, __file__, "--rows", str(options.rows), "--write", str(folder / "cache")], check=True
        )
        with Cache(folder / "cache") as cache:
            bench_load(cache, folder, options.rows)
            opened, looked_up = bench_lookup(cache.store(SPEC.fingerprint), folder, options.rows)
        bench_rescan(folder, options.files)
        on_paper(opened, looked_up, options.rows)


if __name__ == "__main__":
    main()
