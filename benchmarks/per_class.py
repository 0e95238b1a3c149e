"""A class folder enters; a CSV manifest with N training pictures of each class, the rest test, leaves.

python benchmarks/per_class.py caltech101/ --train 30 --seed 0 caltech101-30.csv
"""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import click
import numpy as np

from featcache.discover import discover


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("manifest", type=click.Path(path_type=Path))
@click.option("--train", default=30, show_default=True, help="Training pictures of each class.")
@click.option("--seed", default=0, show_default=True)
def main(folder: Path, manifest: Path, train: int, seed: int) -> None:
    classes: dict[str, list[str]] = defaultdict(list)
    for item in discover(folder).items:
        classes[item.label or ""].append(item.path)
    generator = np.random.default_rng(seed)
    with manifest.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for label, paths in classes.items():
            for at, index in enumerate(generator.permutation(len(paths))):
                writer.writerow([paths[index], label, "train" if at < train else "test"])


if __name__ == "__main__":
    main()
