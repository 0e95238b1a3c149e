"""Datasets enter; how many planted wrong labels and copies an audit finds, beside simpler ways, leaves.

    python benchmarks/bench_audit.py hymenoptera/ caltech101-30.csv
    python benchmarks/bench_audit.py --size 100000

Of each dataset, for each seed:

- labels: 5 % of the pictures get another label. `featcache.audit` on the changed manifest, beside the usual recipe, the
  out-of-fold probability of the own label by scikit-learn's `LogisticRegression` with its defaults on standardised
  vectors (5 folds), cut where the audit is, and beside cleanlab's default filter on those (where it is installed).
- copies: 50 pictures get a copy in another split: encoded again (JPEG quality 40-80), resized (0.5-1.5), flipped, or
  cropped by 10 %. `featcache.audit`, beside the pairs with the highest cosine, as many as the audit names.

With `--size` the search for twins alone, on so many vectors of 1,280 numbers, of which 1 % are nearly copies.
"""

from __future__ import annotations

import argparse
import csv
import random
import resource
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tabulate import tabulate

import featcache
from featcache.api.experiment import open_experiment
from featcache.audits.axes import principal
from featcache.audits.labels import suspects
from featcache.audits.twins import groups, near_twins
from featcache.discover import discover
from featcache.records import Features, Item

Flags = npt.NDArray[np.bool_]
FLIPPED = 0.05
COPIES = 50
FIRST_SEED = 100
"""Lower ones were looked at while the rules of the audit were made."""
COPIED = ("encoded again", "resized", "flipped", "cropped 10 %")


@dataclass(frozen=True)
class Job:
    source: Path
    folder: Path
    backbone: str

    @property
    def options(self) -> featcache.Options:
        return featcache.Options(cache=self.folder / "cache")

    def extract(self, manifest: Path) -> None:
        featcache.extract(manifest, featcache.Options(self.backbone, cache=self.folder / "cache"))

    def features(self, manifest: Path) -> Features:
        with open_experiment(manifest, self.options, None, as_it_is=True) as experiment:
            return experiment.features


def write(path: Path, items: Sequence[Item]) -> Path:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "label", "split"])
        writer.writerows((item.path, item.label, item.split or "") for item in items)
    return path


def flipped(items: Sequence[Item], seed: int) -> tuple[list[Item], set[str]]:
    generator = np.random.default_rng(seed)
    classes = sorted({str(item.label) for item in items})
    chosen = set(generator.choice(len(items), round(FLIPPED * len(items)), replace=False).tolist())
    out = []
    for at, item in enumerate(items):
        label = str(item.label)
        if at in chosen:
            label = classes[(classes.index(label) + generator.integers(1, len(classes))) % len(classes)]
        out.append(Item(item.path, label, item.split))
    return out, {items[at].path for at in chosen}


def labels(job: Job, seed: int) -> list[Any]:
    items, wrong = flipped(discover(job.source).items, seed)
    manifest = write(job.folder / f"{job.source.stem}-flipped-{seed}.csv", items)
    job.extract(manifest)
    found = featcache.audit(manifest, options=job.options)
    named = {row.path for row in found.rows if row.kind == "label"}
    features = job.features(manifest)
    is_wrong = np.array([path in wrong for path in features.paths])
    ours = np.array([path in named for path in features.paths])
    head = make_pipeline(StandardScaler(), LogisticRegression())
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    _, codes = np.unique(features.y, return_inverse=True)
    plain = cross_val_predict(head, features.X, codes, cv=folds, method="predict_proba")
    own = plain[np.arange(len(codes)), codes]
    cut = np.zeros(len(codes), bool)
    cut[np.argsort(own)[: ours.sum()]] = True
    row = [job.source.stem, seed, int(is_wrong.sum()), int(ours.sum())]
    X = principal(features.X)
    ranked = suspects(X, codes, groups(near_twins(X, np.bincount(codes)[codes]), len(X)), 0).probabilities[
        np.arange(len(codes)), codes
    ]
    row += [*rates(ours, is_wrong), average_precision_score(is_wrong, -ranked)]
    row += [*rates(cut, is_wrong), average_precision_score(is_wrong, -own)]
    try:
        from cleanlab.filter import find_label_issues
    except ImportError:
        return row
    filtered = find_label_issues(codes, plain)
    return [*row, int(filtered.sum()), *rates(filtered, is_wrong)]


def rates(named: Flags, wrong: Flags) -> tuple[float, float]:
    """Return recall and precision."""
    return float(named[wrong].mean()), float(wrong[named].mean()) if named.any() else 1.0


def copied(path: str, how: str, generator: random.Random, out: Path) -> str:
    image, quality = Image.open(path).convert("RGB"), 90
    if how == "encoded again":
        quality = generator.randint(40, 80)
    elif how == "resized":
        scale = generator.choice([0.5, 0.6, 0.75, 1.5])
        image = image.resize((max(8, round(image.width * scale)), max(8, round(image.height * scale))))
    elif how == "flipped":
        image = ImageOps.mirror(image)
    else:
        dx, dy = round(0.1 * image.width), round(0.1 * image.height)
        left, top = round(generator.random() * dx), round(generator.random() * dy)
        image = image.crop((left, top, image.width - dx + left, image.height - dy + top))
    image.save(out, quality=quality)
    return str(out)


def copies(job: Job, seed: int) -> list[Any]:
    items, generator = list(discover(job.source).items), random.Random(seed)
    splits = sorted({str(item.split) for item in items})
    pairs: dict[str, tuple[str, str]] = {}
    photographs = [item for item in items if item.path.lower().endswith((".jpg", ".jpeg"))]
    for at, item in enumerate(generator.sample(photographs, COPIES)):
        how = COPIED[at % len(COPIED)]
        path = copied(item.path, how, generator, job.folder / f"{job.source.stem}-{seed}-{at}.jpg")
        other = generator.choice([split for split in splits if split != item.split])
        items.append(Item(path, item.label, other))
        pairs[path] = (item.path, how)
    manifest = write(job.folder / f"{job.source.stem}-copied-{seed}.csv", items)
    job.extract(manifest)
    found = featcache.audit(manifest, options=job.options)
    group = {row.path: row.group for row in found.rows if row.kind == "leak"}
    twins = [row for row in found.rows if row.kind in ("leak", "twin")]
    caught = {path for path, (source, _) in pairs.items() if path in group and group[path] == group.get(source)}
    planted = set(pairs) | {source for source, _ in pairs.values()}
    alarms = sum(row.path not in planted for row in twins)
    features = job.features(manifest)
    by_how = [f"{sum(p in caught for p in pairs if pairs[p][1] == how)}" for how in COPIED]
    asked = sum(how == COPIED[0] for _, how in pairs.values())
    _, codes = np.unique(features.y, return_inverse=True)
    n_pairs = len(near_twins(principal(features.X), np.bincount(codes)[codes]).first)
    simple = by_cosine(features, n_pairs)
    hits = sum(frozenset((path, source)) in simple for path, (source, _) in pairs.items())
    return [job.source.stem, seed, f"{len(caught)}/{COPIES}", *by_how, alarms, n_pairs, f"{hits}/{COPIES}", asked]


def by_cosine(features: Features, count: int) -> set[frozenset[str]]:
    """Return the pairs with the highest cosine."""
    Z = features.X / np.linalg.norm(features.X, axis=1, keepdims=True)
    alike = np.triu(Z @ Z.T, 1)
    first, second = np.unravel_index(np.argsort(-alike, axis=None)[:count], alike.shape)
    return {frozenset((features.paths[a], features.paths[b])) for a, b in zip(first, second, strict=True)}


def size(rows: int) -> None:
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((100, 1280), np.float32)
    X = centres[generator.integers(0, 100, rows)] + generator.standard_normal((rows, 1280), np.float32)
    planted = rows // 100
    X[-planted:] = X[:planted] + 0.2 * generator.standard_normal((planted, 1280), np.float32)
    start = time.perf_counter()
    pairs = near_twins(principal(X), np.full(rows, rows // 100))
    took = time.perf_counter() - start
    right = sum(b - a == rows - planted for a, b in zip(pairs.first, pairs.second, strict=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{rows:,} vectors of 1,280: {took:.0f} s, {right:,} of {planted:,} copies found")
    print(
        f"{len(pairs.first) - right:,} other pairs; {peak:.1f} GiB at most, {X.nbytes / 2**30:.1f} of them the vectors"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*", type=Path)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--size", type=int)
    given = parser.parse_args()
    if given.size:
        size(given.size)
    with tempfile.TemporaryDirectory() as folder:
        jobs = [Job(source.absolute(), Path(folder), given.backbone) for source in given.sources]
        if jobs:
            seeds = range(FIRST_SEED, FIRST_SEED + given.seeds)
            found = [labels(job, seed) for job in jobs for seed in seeds]
            headers = ["dataset", "seed", "wrong", "named", "recall", "precision", "AP", "plain: recall", "precision",
                       "AP", "cleanlab: named", "recall", "precision"]  # fmt: skip
            print(tabulate(found, headers[: len(found[0])], tablefmt="github", floatfmt=".3f"), flush=True)
            rows = [copies(job, seed) for job in jobs for seed in seeds]
            headers = ["dataset", "seed", "found", *COPIED, "other pictures named", "pairs", "by cosine", "of each"]
            print(tabulate(rows, headers, tablefmt="github"))


if __name__ == "__main__":
    main()
