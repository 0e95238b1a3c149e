"""What one computer needs for the list of a large dataset: seconds, memory and bytes on the disk a picture.

    python benchmarks/bench_scale.py            1,000,000 pictures, rows of a Parquet file

No picture is decoded and no network run: this is the part of an extraction that is not shared out. Memory is that of
the process after each step, above that before the first; times are of one turn. Everything is removed afterwards.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from featcache.api.cluster import BLOCK
from featcache.discover import discover
from featcache.records import FeatureSpec, FileStat, Preprocess
from featcache.sources import file_stat
from featcache.store import Cache, FeatureWriter, Row
from featcache.store.index import KeyIndex, stack_keys

Result = TypeVar("Result")
PAGE = os.sysconf("SC_PAGE_SIZE")
SPEC = FeatureSpec("made-up", "0" * 64, Preprocess(8, 8, "bilinear", (0.5,) * 3, (0.2,) * 3), dtype="float16")


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def write_table(path: Path, rows: int) -> None:
    empty = pa.array([{"bytes": b"", "path": None}] * 1000, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    with pq.ParquetWriter(path, pa.schema([("image", empty.type), ("label", pa.string())])) as writer:
        for start in range(0, rows, 1000):
            names = pa.array([f"class {number % 1000:04d}" for number in range(start, start + 1000)])
            writer.write_table(pa.table({"image": empty, "label": names}))


def measure(folder: Path, rows: int) -> None:
    base = resident()

    def step(name: str, act: Callable[[], Result]) -> Result:
        start = time.perf_counter()
        found = act()
        took = time.perf_counter() - start
        held = (resident() - base) / rows
        print(f"{name:44} {took:8.1f} s {took / rows * 1e6:8.2f} us a picture {held:8.0f} bytes a picture in memory")
        return found

    path = folder / "many.parquet"
    write_table(path, rows)
    base = resident()
    dataset = step("list the pictures", lambda: discover(path))
    assert len(dataset.items) == rows
    keys = [hashlib.sha256(b"%d" % number).digest() for number in range(rows)]
    stat = file_stat(dataset.items[0].path)
    assert isinstance(stat, FileStat)
    with Cache(folder / "cache") as cache:
        files = ((item.path, stat, key) for item, key in zip(dataset.items, keys, strict=True))
        step("note the files in the catalog", lambda: cache.catalog.remember_files(files))
        known = step("look them up", lambda: cache.catalog.known_files(item.path for item in dataset.items))
        assert len(known) == rows
        step("ask for the stat of each", lambda: [file_stat(item.path) for item in dataset.items])
        del known
        table = [Row(item, key, None) for item, key in zip(dataset.items, keys, strict=True)]
        step("save the dataset", lambda: cache.catalog.save_dataset(dataset.root, table, 1))
        assert step("read it back", lambda: cache.catalog.dataset(dataset.root)) == table
        index = step("index the keys", lambda: KeyIndex(stack_keys(keys)))
        assert (index.find(stack_keys(keys)) >= 0).all()
        size = cache.catalog_path.stat().st_size
        print(f"the catalog on the disk: {size / 1e6:,.0f} MB, {size / rows:.0f} bytes a picture")
        measure_store(cache, keys)


def measure_store(cache: Cache, keys: list[bytes]) -> None:
    """Tell what it costs to look for the pictures of a block in a store that is opened for it, or that stays open."""
    dim, blocks = 512, 50
    with FeatureWriter(cache.features(SPEC), "float16") as writer:
        for start in range(0, len(keys), 8192):
            part = keys[start : start + 8192]
            writer.append(part, np.zeros((len(part), dim), np.float32))
    standing = cache.features(SPEC)
    assert standing.contains(keys[:BLOCK]).all()
    opened: list[float] = []
    stayed: list[float] = []
    for block in range(blocks):
        new = [hashlib.sha256(b"%d %d" % (block, number)).digest() for number in range(BLOCK)]
        with FeatureWriter(cache.features(SPEC), "float16") as writer:
            writer.append(new, np.zeros((BLOCK, dim), np.float32))
        for times, store in ((opened, None), (stayed, standing)):
            began = time.perf_counter()
            found = store or cache.features(SPEC)
            found.refresh()
            assert found.contains(new).all()
            times.append(time.perf_counter() - began)
    print(f"a block of {BLOCK} in a store of {len(keys):,}: opened for it {1e3 * np.median(opened):.0f} ms", end=", ")
    print(f"staying open {1e3 * np.median(stayed):.1f} ms, at most {1e3 * max(stayed):.0f} (medians of {blocks})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where to make the temporary folder")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        measure(Path(folder), asked.rows)


if __name__ == "__main__":
    main()
