"""The nearest of n vectors: exact, as `featcache neighbors` does it, beside a matrix in memory and an index of faiss.

    pip install faiss-cpu
    python benchmarks/bench_neighbors.py --rows 100000
    python benchmarks/bench_neighbors.py --rows 1000000

The vectors are synthetic: seeded clusters, 512 values of float16. Equal neighbours are asserted before any time is
printed, of the index its recall is. Times are medians of turns; the files are in the page cache. Everything is written
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
from typing import Any

import faiss
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
LISTS = 1024
LOOKED_INTO = 16
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


def peak_mib(folder: Path) -> float:
    """Return the highest memory of one search in a process of its own."""
    command = [sys.executable, __file__, "--search", str(folder)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where to write  [default: the system's temporary folder]")
    parser.add_argument("--search", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.search:
        featcache.neighbors("/synthetic/7.jpg", K, options=featcache.Options(cache=options.search))
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
    asked = np.random.default_rng(2).integers(rows, size=ASKED).tolist()

    def exact(row: int) -> list[int]:
        return found_by(featcache.neighbors(f"/synthetic/{row}.jpg", K, options=where))

    for row in asked:
        assert exact(row) == in_memory(Z, row)
    print(f"{rows:,} vectors of {DIM} float16; the {K} nearest of {len(asked)} of them are those of a plain search")
    command = [sys.executable, "-m", "featcache", "neighbors", "/synthetic/7.jpg", "--cache", str(folder)]
    times = medians(
        {
            "matrix in memory as float32, normalised before": lambda: in_memory(Z, 7),
            "featcache.neighbors": lambda: exact(7),
            "the command, start-up included": lambda: subprocess.run(command, capture_output=True, check=True),
        }
    )
    for what, seconds in times.items():
        print(f"  {what:<48} {seconds:7.3f} s   {seconds / times['featcache.neighbors']:5.2f} x")
    print(f"  peak memory of a process that searches: {peak_mib(folder):,.0f} MiB; the matrix: {Z.nbytes / 2**20:,.0f}")
    bench_index(folder, Z)


def bench_index(folder: Path, Z: Floats) -> None:
    """Print what an index takes to be made, to be opened and to answer, and how many of the nearest it finds."""
    start = time.perf_counter()
    index: Any = faiss.index_factory(DIM, f"IVF{LISTS},SQ8", faiss.METRIC_INNER_PRODUCT)
    index.cp.max_points_per_centroid = 64
    index.train(Z[np.random.default_rng(3).permutation(len(Z))[: 64 * LISTS]])
    for first in range(0, len(Z), BATCH):
        index.add(Z[first : first + BATCH])
    made = time.perf_counter() - start
    file = folder.parent / "index"
    faiss.write_index(index, str(file))
    index.nprobe = LOOKED_INTO
    asked = np.random.default_rng(4).integers(len(Z), size=200)
    truth = [set(in_memory(Z, int(row))) for row in asked]
    found = index.search(Z[asked], K + 1)[1]
    hits = [len(some.intersection(near.tolist())) / K for some, near in zip(truth, found, strict=True)]
    times = medians(
        {
            "the index, opened": lambda: faiss.read_index(str(file)),
            "the index, answers": lambda: index.search(Z[7:8], K + 1),
        }
    )
    print(f"  faiss IVF{LISTS},SQ8, {LOOKED_INTO} lists looked into: recall@{K} {statistics.mean(hits):.3f}, 200 asked")
    print(f"  the index, made                                  {made:7.1f} s, {file.stat().st_size / 2**20:,.0f} MiB")
    for what, seconds in times.items():
        print(f"  {what:<48} {seconds:7.3f} s")


if __name__ == "__main__":
    main()
