"""A class folder enters; how long Ray's workers take to extract it, beside one machine without Ray, leaves.

    pip install 'featcache[ray]'
    python benchmarks/bench_ray.py caltech101/ --pictures 1000

Two clusters on this computer, of one node and of two, each node bound to one core, and `featcache.extract` by itself on
two cores take turns with the same pictures, a seeded sample with distinct contents, each time into an empty cache that
has nothing but the exported network. A round before those that count is a warm-up, and vectors that are equal to the
bit, none of them stored twice, are asserted on it. "in all" begins when the clusters are there, and has the start of
the workers in it; "going" is the speed from the first finished block, or picture, to the last.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from joblib import cpu_count
from tabulate import tabulate

import featcache
from featcache.backbones import resolve
from featcache.embed import exported
from featcache.store import Cache

ALONE = "no Ray, 2 cores"
CONTENDERS = {ALONE: 0, "Ray, 1 worker of 1 core": 1, "Ray, 2 workers of 1 core": 2}


@dataclass(frozen=True)
class Lap:
    """How long an extraction took, and how many pictures a second it had once it was going."""

    seconds: float
    going: float
    vectors: dict[bytes, npt.NDArray[Any]]


def sample(folder: Path, pictures: int, into: Path) -> Path:
    """Link a seeded sample with distinct contents into a flat folder, and read it once."""
    found: dict[bytes, Path] = {}
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    random.Random(0).shuffle(paths)
    for path in paths:
        if len(found) == pictures:
            break
        found.setdefault(hashlib.sha256(path.read_bytes()).digest(), path)
    into.mkdir()
    for number, path in enumerate(found.values()):
        (into / f"{number:05}{path.suffix}").symlink_to(path.absolute())
    return into


@contextmanager
def clusters() -> Iterator[dict[int, str]]:
    """Yield the address of a cluster of one node with a core, and of one with two, by the number of nodes."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    made = {workers: Cluster(initialize_head=True, head_node_args={"num_cpus": 0}) for workers in (1, 2)}
    cores = os.sched_getaffinity(0)
    for workers, cluster in made.items():
        for core in sorted(cores)[:workers]:
            os.sched_setaffinity(0, {core})  # the node's processes inherit it
            cluster.add_node(num_cpus=1)
    os.sched_setaffinity(0, cores)
    try:
        yield {workers: cluster.address for workers, cluster in made.items()}
    finally:
        for cluster in made.values():
            cluster.shutdown()


def lap(folder: Path, exports: Path, backbone: str, address: str | None) -> Lap:
    with tempfile.TemporaryDirectory() as scratch:
        cache = Path(scratch) / "cache"
        shutil.copytree(exports / "networks", cache / "networks")
        steps: list[tuple[float, int]] = []

        def progress(_stage: str, done: int, _total: int) -> None:
            if done:
                steps.append((time.perf_counter(), done))

        engine = "ray" if address else "onnx"
        start = time.perf_counter()
        featcache.extract(folder, featcache.Options(backbone, None, cache, engine=engine, address=address), progress)
        took = time.perf_counter() - start
        (first, before), (last, after) = steps[0], steps[-1]
        with Cache(cache) as made:
            store = made.store(made.fingerprints()[0])
            keys = [key.tobytes() for key in store.keys]
            assert len(keys) == len(set(keys))
            return Lap(took, (after - before) / (last - first), dict(zip(keys, store.read(keys), strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, clusters() as addresses:
        folder = sample(given.folder, given.pictures, Path(scratch) / "pictures")
        exports = Path(scratch) / "exports"
        with Cache(exports) as cache:
            exported(resolve(given.backbone), cache.networks)
        laps: dict[str, list[Lap]] = {name: [] for name in CONTENDERS}
        for number in range(given.rounds + 1):
            for name, workers in CONTENDERS.items():
                found = lap(folder, exports, given.backbone, addresses.get(workers))
                if number:
                    laps[name].append(found)
                elif name == ALONE:
                    expected = found.vectors
                else:
                    assert found.vectors.keys() == expected.keys()
                    assert all(np.array_equal(found.vectors[key], expected[key]) for key in expected)
        print(
            f"{given.backbone}, {given.pictures:,} pictures, {cpu_count()} cores; equal to the bit, none stored twice"
        )
        rows = []
        for name, done in laps.items():
            rows.append([name])
            for values in ([one.seconds for one in done], [one.going for one in done]):
                rows[-1].append(f"{statistics.median(values):.1f} ({min(values):.1f}-{max(values):.1f})")
        print(tabulate(rows, ["", "s in all, median (min-max)", "pictures/s going"], tablefmt="github"))


if __name__ == "__main__":
    main()
