"""The nearest of n vectors: all compared by `featcache neighbors`, through its index, and in a matrix in memory.

    pip install 'featcache[index]'
    python benchmarks/bench_neighbors.py --rows 100000
    python benchmarks/bench_neighbors.py --rows 1000000

The vectors are synthetic: seeded clusters, 512 values of float16. Equal neighbours are asserted before any time is
printed; of the index its recall is. Times are medians of turns; the files are in the page cache. Everything is written
below a temporary folder (`--folder` says where) and removed.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

import featcache
from featcache.records import FeatureSpec, Item, Preprocess
from featcache.records.neighbors import NeighborsSummary
from featcache.store import Cache, FeatureWriter, Row

DIM = 512
CLUSTERS = 1000
SPREAD = 0.7
BATCH = 8192
K = 10
ASKED = 5
TURNS = 5
ASKED_INDEX = 30
STEPS = Preprocess(224, 224, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SPEC = FeatureSpec("synthetic", "0" * 64, STEPS, dtype="float16")

Vectors = npt.NDArray[np.float16]
Floats = npt.NDArray[np.float32]


def vectors(start: int, count: int) -> Vectors:
    """Return seeded rows around one of many centres each."""
    centres = np.random.default_rng(0).standard_normal((CLUSTERS, DIM), dtype=np.float32)
    r = np.random.default_rng([1, start])
    around = centres[r.integers(CLUSTERS, size=count)]
    return (around + SPREAD * r.standard_normal((count, DIM), dtype=np.float32)).astype(np.float16)


def key(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest()


def write(folder: Path, rows: int) -> None:
    """Write the rows as a dataset that was extracted; its first pictures are files that are there."""
    with Cache(folder) as cache:
        with FeatureWriter(cache.features(SPEC), "float16") as writer:
            for start in range(0, rows, BATCH):
                count = min(BATCH, rows - start)
                writer.append([key(number) for number in range(start, start + count)], vectors(start, count))
        run = cache.runs.start("extract", "/synthetic", SPEC.fingerprint)
        items = (Row(Item(f"/synthetic/{number}.jpg", "", ""), key(number), None) for number in range(rows))
        cache.catalog.save_dataset("/synthetic", items, run.id)
        cache.runs.finish(run, {"weights": "none"})


def found_by(summary: NeighborsSummary) -> list[int]:
    return [int(Path(row.path).stem) for row in summary.rows]


def in_memory(Z: Floats, row: int) -> list[int]:
    """Search normalised vectors that are in memory already, the picture itself left out."""
    cosines = Z @ Z[row]
    cosines[row] = -2
    best = np.argpartition(-cosines, K)[:K]
    return [int(at) for at in best[np.argsort(-cosines[best], kind="stable")]]


def medians(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Call each in turn, `TURNS` times, and return the median seconds of each."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(TURNS):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def peak_mib(folder: Path, index: bool) -> float:
    """Return the highest memory of one search in a process of its own."""
    command = [sys.executable, __file__, "--search", str(folder), *["--index"][:index]]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where to write  [default: the system's temporary folder]")
    parser.add_argument("--search", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--index", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.search:
        featcache.neighbors("/synthetic/7.jpg", K, options=featcache.Options(cache=options.search), index=options.index)
        status = Path("/proc/self/status").read_text()
        print(int(status.split("VmHWM:")[1].split()[0]) / 1024)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        measure(Path(name) / "cache", options.rows)


def measure(folder: Path, rows: int) -> None:
    write(folder, rows)
    where = featcache.Options(cache=folder)
    Z = featcache.load_features(options=where).X.astype(np.float32)
    Z /= np.linalg.norm(Z, axis=1, keepdims=True)

    def found(row: int, index: bool = False) -> list[int]:
        return found_by(featcache.neighbors(f"/synthetic/{row}.jpg", K, options=where, index=index))

    asked = np.random.default_rng(2).integers(rows, size=ASKED_INDEX).tolist()
    for row in asked[:ASKED]:
        assert found(row) == in_memory(Z, row)
    print(f"{rows:,} vectors of {DIM} float16; the {K} nearest of {ASKED} of them are those of a plain search")
    start = time.perf_counter()
    found(7, index=True)
    made = time.perf_counter() - start
    hits = [len(set(found(row, index=True)) & set(in_memory(Z, row))) / K for row in asked]
    size = sum(file.stat().st_size for file in (folder / "indexes").iterdir()) / 2**20
    print(f"  the index: made by the first question, in {made:.1f} s; {size:,.0f} MiB")
    print(f"  recall@{K} {statistics.mean(hits):.3f}, {len(hits)} asked")
    command = [sys.executable, "-m", "featcache", "neighbors", "/synthetic/7.jpg", "--cache", str(folder)]
    times = medians(
        {
            "matrix in memory as float32, normalised before": lambda: in_memory(Z, 7),
            "featcache.neighbors": lambda: found(7),
            "featcache.neighbors, index=True": lambda: found(7, index=True),
            "the command, start-up included": lambda: subprocess.run(command, capture_output=True, check=True),
            "the command with --index": lambda: subprocess.run([*command, "--index"], capture_output=True, check=True),
        }
    )
    for what, seconds in times.items():
        print(f"  {what:<48} {seconds:7.3f} s   {seconds / times['featcache.neighbors']:5.2f} x")
    peaks = [peak_mib(folder, index) for index in (False, True)]
    print(f"  peak memory of a process that asks: {peaks[0]:,.0f} MiB, with the index {peaks[1]:,.0f}")
    print(f"  the matrix in memory: {Z.nbytes / 2**20:,.0f} MiB")


if __name__ == "__main__":
    main()
