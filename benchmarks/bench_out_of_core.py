"""Nothing enters; the peak memory, seconds and score of `fit --out-of-core` on synthetic rows, and its scores beside
those of heads in memory on a dataset of a cache, leave.

    python benchmarks/bench_out_of_core.py --rows 1000000,5000000
    python benchmarks/bench_out_of_core.py --cache cache/ --dataset caltech101-30.csv --seeds 5

The synthetic rows are 100 overlapping clusters, sorted by class, written by the store's own writer into a temporary
cache (`--folder` says where) that is removed. Each fit has a process of its own; its memory is the highest the kernel
saw (VmHWM).
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
from tabulate import tabulate

import featcache
import featcache.cli.options
from featcache.records import FeatureSpec, Item, Preprocess
from featcache.store import Cache, FeatureWriter, Row

DIM, CLASSES, LATENT, BATCH = 512, 100, 64, 2048
STEPS = Preprocess(224, 224, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SPEC = FeatureSpec("synthetic", "0" * 64, STEPS, dtype="float16")
ROOT = "/synthetic"


def batches(rows: int) -> Iterator[tuple[list[bytes], npt.NDArray[np.float32]]]:
    """Yield seeded rows, sorted by class: clusters on 64 axes, which are mixed into 512 with noise."""
    generator = np.random.default_rng(0)
    centres = 0.45 * generator.standard_normal((CLASSES, LATENT), dtype=np.float32)
    mixing = generator.standard_normal((LATENT, DIM), dtype=np.float32) / 8
    noise = 0.3 * np.geomspace(1, 0.1, DIM, dtype=np.float32)
    for start in range(0, rows, BATCH):
        numbers = np.arange(start, min(start + BATCH, rows))
        seeded = np.random.default_rng([1, start])
        latent = centres[numbers * CLASSES // rows] + seeded.standard_normal((len(numbers), LATENT), dtype=np.float32)
        vectors = latent @ mixing + noise * seeded.standard_normal((len(numbers), DIM), dtype=np.float32)
        yield [hashlib.sha256(b"%d" % number).digest() for number in numbers], vectors


def write_cache(folder: Path, rows: int) -> None:
    """Write the rows as an import does; every tenth is scored."""

    def catalogued() -> Iterator[Row]:
        for number in range(rows):
            label = f"class-{number * CLASSES // rows:03d}"
            item = Item(f"{ROOT}/{label}/{number:08d}.jpg", label, "test" if number % 10 == 0 else "train")
            yield Row(item, hashlib.sha256(b"%d" % number).digest(), None)

    with Cache(folder) as cache:
        run = cache.runs.start("import", ROOT, SPEC.fingerprint)
        with FeatureWriter(cache.features(SPEC), SPEC.dtype) as writer:
            for keys, vectors in batches(rows):
                writer.append(keys, vectors)
        cache.catalog.save_dataset(ROOT, catalogued(), run.id)
        cache.runs.finish(run, {"weights": "none", "weights_file": None})


def fit(folder: Path, head: str, out_of_core: bool, seed: int, source: str | None) -> dict[str, float | str]:
    """Fit in a process of its own, and return the summary with memory (MiB) and seconds."""
    arguments = [str(folder), head, str(int(out_of_core)), str(seed), source or ""]
    done = subprocess.run([sys.executable, __file__, "--fit", *arguments], stdout=subprocess.PIPE, check=True)
    return dict(json.loads(done.stdout))


def fit_here(folder: str, head: str, out_of_core: str, seed: str, source: str) -> None:
    with featcache.cli.options.Bar() as bar:
        start = time.perf_counter()
        options = featcache.Options(cache=Path(folder))
        summary = featcache.fit(source or None, head, int(seed), options, bar, out_of_core=out_of_core == "1")
        seconds = time.perf_counter() - start
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(json.dumps({**asdict(summary), "seconds": seconds, "peak_mib": int(peak.split()[1]) / 1024}))


@click.command(help=__doc__)
@click.option("--rows", default="", help="Numbers of synthetic rows, with commas.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where to write  [default: the temporary folder].")
@click.option("--heads", default="logreg,svm", show_default=True)
@click.option("--cache", type=click.Path(path_type=Path), help="A cache to compare the scores on.")
@click.option("--dataset", help="The dataset in it.")
@click.option("--seeds", default=5, show_default=True)
@click.option("--fit", "arguments", nargs=5, hidden=True)
def main(
    rows: str,
    folder: Path | None,
    heads: str,
    cache: Path | None,
    dataset: str | None,
    seeds: int,
    arguments: tuple[str, ...] | None,
) -> None:
    if arguments:
        fit_here(*arguments)
        return
    table = []
    for count in map(int, filter(None, rows.split(","))):
        with tempfile.TemporaryDirectory(dir=folder) as name:
            start = time.perf_counter()
            write_cache(Path(name) / "cache", count)
            click.echo(f"{count:,} rows written in {time.perf_counter() - start:.0f} s", err=True)
            for head in heads.split(","):
                found = fit(Path(name) / "cache", head, True, 0, None)
                row = [f"{count:,}", head, f"{found['peak_mib']:,.0f}", f"{found['seconds']:.0f}"]
                table.append([*row, f"{found['accuracy']:.4f}", found["params"], found["chosen_by"]])
                click.echo(table[-1], err=True)
    if table:
        headers = ["rows", "head", "peak MiB", "seconds", "accuracy", "chosen", "chosen by"]
        click.echo(tabulate(table, headers=headers, disable_numparse=True))
    table = []
    for head in heads.split(","):
        for seed in range(seeds) if cache else ():
            one, other = (fit(Path(cache or ""), head, out_of_core, seed, dataset) for out_of_core in (False, True))
            points = 100 * (float(other["accuracy"]) - float(one["accuracy"]))
            table.append([head, seed, f"{one['accuracy']:.4f}", one["params"], f"{other['accuracy']:.4f}"])
            table[-1] += [other["params"], f"{points:+.2f}", f"{one['seconds']:.1f}", f"{other['seconds']:.1f}"]
            click.echo(table[-1], err=True)
    if table:
        headers = ["head", "seed", "in memory", "chosen", "out of core", "chosen", "points", "seconds", "out of core"]
        click.echo(tabulate(table, headers=headers, disable_numparse=True))


if __name__ == "__main__":
    main()
