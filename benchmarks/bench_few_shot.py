"""Folders of pictures enter; every head beside scikit-learn's class of its kind, from one picture a class on, leaves.

    apt-get install dataset-fashion-mnist
    python benchmarks/bench_few_shot.py hymenoptera caltech101 --out few_shot.jsonl

Sets are made of the folders (whole, in small, grey, cut out), of scikit-learn's digits and of Fashion-MNIST. A draw
puts two fifths of each class aside to score on (60 pictures at most), and k pictures a class of the rest are fitted on.
On the same rows ours choose by themselves; scikit-learn's classes have their defaults, after each of four plain
recipes. All that is found is kept in `--out`, and not computed again.
"""

from __future__ import annotations

import gzip
import json
import os
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
from joblib import Parallel, delayed
from PIL import Image, ImageOps
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler, normalize
from sklearn.svm import SVC, LinearSVC
from tabulate import tabulate

import featcache
from featcache.evaluate import score
from featcache.experiments.fitting import fit_head
from featcache.experiments.prepared import prepare
from featcache.heads import HEADS, get
from featcache.records import Features
from featcache.splits import Plan

Array = npt.NDArray[np.float32]
Labels = npt.NDArray[np.str_]
Set = tuple[Array, Labels]
Job = tuple[str, int | None, int, str, str]
Found = dict[tuple[str, Any, str], dict[str, list[dict[str, Any]]]]

THEIRS: dict[str, Callable[[], Any]] = {
    "logreg": LogisticRegression,
    "svm": LinearSVC,
    "svm-rbf": SVC,
    "mlp": MLPClassifier,
    "knn": KNeighborsClassifier,
    "centroid": NearestCentroid,
    "ridge": RidgeClassifier,
    "lda": LinearDiscriminantAnalysis,
}
ANIMALS = (
    *("ant", "beaver", "butterfly", "crab", "crayfish", "crocodile", "dolphin", "dragonfly", "elephant", "emu"),
    *("flamingo", "gerenuk", "hawksbill", "hedgehog", "ibis", "kangaroo", "llama", "lobster", "mayfly", "octopus"),
    *("okapi", "panda", "pigeon", "platypus", "rhino", "rooster", "scorpion", "sea_horse", "starfish", "tick"),
    "wild_cat",
)
PLANTS = ("bonsai", "joshua_tree", "lotus", "strawberry", "sunflower", "water_lilly")
SCORED, AT_MOST = 0.4, 60
FASHION = Path("/usr/share/datasets/fashion-mnist")
FILE: Any = click.Path(path_type=Path)
K = (1, 2, 5, 10, 20, None)


def raw(fit: Array, scored: Array) -> tuple[Array, Array]:
    return fit, scored


def standardised(fit: Array, scored: Array) -> tuple[Array, Array]:
    scaler = StandardScaler().fit(fit)
    return scaler.transform(fit), scaler.transform(scored)


def unit(fit: Array, scored: Array) -> tuple[Array, Array]:
    return normalize(fit), normalize(scored)


def centred_unit(fit: Array, scored: Array) -> tuple[Array, Array]:
    mean = fit.mean(0)
    return normalize(fit - mean), normalize(scored - mean)


OURS = "ours"
RECIPES = {"raw": raw, "standardised": standardised, "unit": unit, "centred+unit": centred_unit}


# --- the sets


def in_small(picture: Image.Image, side: int = 32) -> Image.Image:
    return ImageOps.fit(picture, (side, side), Image.Resampling.BICUBIC)


def grey(picture: Image.Image) -> Image.Image:
    return ImageOps.grayscale(in_small(picture, 64)).convert("RGB")


def cut_out(picture: Image.Image, share: float = 0.4) -> Image.Image:
    """Return a square from a place that the picture's own pixels decide."""
    side = int(min(picture.size) * share)
    generator = np.random.default_rng(int(np.asarray(picture, np.int64).sum()))
    left, top = (int(generator.integers(0, length - side + 1)) for length in picture.size)
    return picture.crop((left, top, left + side, top + side))


VARIANTS: dict[str, Callable[[Image.Image], Image.Image]] = {"small": in_small, "grey": grey, "cut": cut_out}


def pictures(folder: Path, classes: Sequence[str] = ()) -> tuple[list[Path], Labels]:
    """Return the readable JPEG files below a folder, and the names of the folders they lie in."""
    paths = []
    for path in sorted(folder.glob("**/*.jpg")):
        if not classes or path.parent.name in classes:
            try:
                Image.open(path).convert("RGB")
            except OSError:
                continue
            paths.append(path)
    return paths, np.array([path.parent.name for path in paths])


def fashion(folder: Path, count: int = 2500) -> tuple[npt.NDArray[np.uint8], Labels]:
    """Return a sample of Fashion-MNIST's training pictures (n, 28, 28) and their labels."""

    def read(name: str, header: int) -> npt.NDArray[np.uint8]:
        return np.frombuffer(gzip.open(folder / name).read(), np.uint8)[header:]

    images = read("train-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
    labels = read("train-labels-idx1-ubyte.gz", 8)
    rows = np.random.default_rng(0).permutation(len(labels))[:count]
    return images[rows], labels[rows].astype(str)


def make_sets(folders: Sequence[Path], fashion_folder: Path, cache: Path, kept: Path) -> dict[str, Set]:
    """Return the vectors (n, d) and labels (n) of each set, computed once."""
    network = featcache.FeatureExtractor("efficientnet_lite0", cache=cache)
    kept.mkdir(parents=True, exist_ok=True)

    def vectors(name: str, look: Callable[[], tuple[Any, Labels]], plain: bool = False) -> Set:
        path = kept / f"{name}.npz"
        if not path.exists():
            found, labels = look()
            X = found if plain else network.fit_transform(found)
            np.savez(path, X=np.asarray(X, np.float32), y=labels)
        with np.load(path) as known:
            return known["X"], known["y"]

    def grey_ones(images: npt.NDArray[Any]) -> list[Image.Image]:
        return [Image.fromarray(image.astype(np.uint8)).convert("RGB") for image in images]

    sets: dict[str, Set] = {}
    for folder in folders:
        name = folder.name
        sets[name] = vectors(name, lambda folder=folder: pictures(folder))  # type: ignore[misc]
        parts: list[tuple[str, str, Sequence[str]]] = [(name, "small", ()), (name, "cut", ())]
        if name.startswith("caltech"):
            parts = [("animals", "grey", ANIMALS), ("animals", "cut", ANIMALS), ("plants", "cut", PLANTS)]
            parts += [("plants", "small", PLANTS)]
        for part, variant, classes in parts:

            def look(
                folder: Path = folder, variant: str = variant, classes: Sequence[str] = classes
            ) -> tuple[Any, Labels]:
                paths, labels = pictures(folder, classes)
                return [VARIANTS[variant](Image.open(path).convert("RGB")) for path in paths], labels

            sets[f"{part}, {variant}"] = vectors(f"{part}-{variant}", look)
    digits = load_digits()
    labels = digits.target.astype(str)
    sets["digits"] = vectors("digits", lambda: (grey_ones(digits.images.repeat(4, 1).repeat(4, 2) * 15.9), labels))
    sets["digits, pixels"] = vectors("digits-pixels", lambda: (digits.data, labels), plain=True)
    if fashion_folder.exists():
        images, kinds = fashion(fashion_folder)
        sets["fashion"] = vectors("fashion", lambda: (grey_ones(images), kinds))
        sets["fashion, pixels"] = vectors(
            "fashion-pixels", lambda: (images.reshape(len(images), -1), kinds), plain=True
        )
    return sets


# --- the comparison


def draw(y: Labels, k: int | None, seed: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return the rows that are fitted on, k a class or all, and those that are scored."""
    generator = np.random.default_rng(seed)
    fitted, scored = [], []
    for label in np.unique(y):
        rows = generator.permutation(np.flatnonzero(y == label))
        aside = int(len(rows) * SCORED)
        scored.append(rows[:aside][:AT_MOST])
        fitted.append(rows[aside:][:k])
    return np.concatenate(fitted), np.concatenate(scored)


def ours(name: str, X: Array, y: Labels, fitted: Any, scored: Any, seed: int) -> dict[str, Any]:
    """Return how one of our heads does."""
    rows = np.concatenate([fitted, scored])
    features = Features(
        X=X[rows],
        y=y[rows],
        paths=tuple(map(str, rows)),
        splits=np.array(["train"] * len(fitted) + ["test"] * len(scored)),
        keys=tuple(int(row).to_bytes(32, "big") for row in rows),
        fingerprint="",
    )
    plan = Plan(np.arange(len(fitted)), None, np.arange(len(fitted), len(rows)), "test", {})
    started = time.perf_counter()
    found = fit_head(get(name), prepare(features, plan), seed)
    data = prepare(features, plan)
    result = score("test", data.truth, found.probabilities)
    return {
        "recipe": OURS,
        "accuracy": result.accuracy,
        "log_loss": result.log_loss,
        "calibration_error": result.calibration_error,
        "params": found.params,
        "seconds": time.perf_counter() - started,
    }


def theirs(name: str, recipe: str, X: Array, y: Labels, fitted: Any, scored: Any, seed: int) -> dict[str, Any]:
    """Return how scikit-learn's class does after a recipe; no accuracy where it takes no such few pictures."""
    estimator = THEIRS[name]()
    if "random_state" in estimator.get_params():
        estimator.set_params(random_state=seed)
    started = time.perf_counter()
    A, B = RECIPES[recipe](X[fitted], X[scored])
    known = np.unique(y[fitted], return_inverse=True)[1]
    truth = np.searchsorted(np.unique(y[fitted]), y[scored])
    try:
        estimator.fit(A, known)
    except ValueError as error:
        return {"recipe": recipe, "accuracy": None, "error": str(error).splitlines()[0]}
    found: dict[str, Any] = {"recipe": recipe, "accuracy": None, "seconds": time.perf_counter() - started}
    try:
        found["accuracy"] = float((estimator.predict(B) == truth).mean())
    except ValueError as error:  # five neighbours of two pictures
        return found | {"error": str(error).splitlines()[0]}
    try:
        given = estimator.predict_proba(B)
        result = score("test", truth, given)
    except (AttributeError, ValueError):  # it has none, or they are no numbers
        return found
    found |= {"log_loss": result.log_loss, "calibration_error": result.calibration_error}
    return found


def compute(sets: dict[str, Set], job: Job) -> dict[str, Any]:
    """Return the row of a job: ours, or a recipe."""
    warnings.simplefilter("ignore")  # scikit-learn's iteration limits
    name, k, seed, head, recipe = job
    X, y = sets[name]
    fitted, scored = draw(y, k, seed)
    frequencies = np.unique(y[fitted], return_counts=True)[1] / len(fitted)
    truth = np.searchsorted(np.unique(y[fitted]), y[scored])
    base = {
        "set": name,
        "k": k,
        "seed": seed,
        "head": head,
        "n": len(fitted),
        "n_scored": len(scored),
        "floor": float(-np.log(frequencies[truth]).mean()),
    }
    if recipe == OURS:
        return base | ours(head, X, y, fitted, scored, seed)
    return base | theirs(head, recipe, X, y, fitted, scored, seed)


def number(k: int | None) -> str:
    return "all" if k is None else str(k)


def tables(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield what was found, in words and tables."""
    found: Found = defaultdict(lambda: defaultdict(list))
    for row in rows:
        found[row["set"], row["k"], row["head"]][row["recipe"]].append(row)
    gaps: dict[tuple[str, Any, str], float] = {}
    errors: dict[tuple[str, Any, str], float] = {}
    for cell, by_recipe in found.items():
        means = {
            recipe: float(np.mean([row["accuracy"] for row in each]))
            for recipe, each in by_recipe.items()
            if all(row["accuracy"] is not None for row in each)
        }
        mine = means.pop(OURS)
        if means:
            recipe = max(means, key=lambda recipe: means[recipe])
            gaps[cell] = 100 * (mine - means[recipe])
            pairs = zip(*(sorted(by_recipe[one], key=_seed) for one in (OURS, recipe)), strict=True)
            apart = [100 * (us["accuracy"] - them["accuracy"]) for us, them in pairs]
            errors[cell] = float(np.std(apart, ddof=1) / np.sqrt(len(apart)))
    names, ks = list(dict.fromkeys(cell[0] for cell in found)), [k for k in K if any(cell[1] == k for cell in found)]
    for head in [head for head in HEADS if any(cell[2] == head for cell in found)]:
        lines: list[list[str]] = []
        for name in names:
            cells = [gaps.get((name, k, head)) for k in ks]
            lines.append([name, *("" if gap is None else f"{gap:+.1f}" for gap in cells)])
        columns = [[gaps[name, k, head] for name in names if (name, k, head) in gaps] for k in ks]
        lines.append(["mean", *(f"{np.mean(column):+.2f}" if column else "" for column in columns)])
        every = [gap for column in columns for gap in column]
        below = {cell: gap for cell, gap in gaps.items() if cell[2] == head and gap < -0.5}
        clearly = sum(gap + 2 * errors[cell] < 0 for cell, gap in below.items())
        yield f"\n{head}: points above the best of four recipes; mean {np.mean(every):+.2f}, "
        yield (
            f"above or equal in {sum(gap >= 0 for gap in every)} of {len(every)} cells, "
            f"more than 0.5 below in {len(below)}, of which {clearly} by more than two standard errors of the draws; "
            f"worst {min(every):+.1f}"
        )
        yield tabulate(lines, headers=["set", *map(number, ks)], disable_numparse=True)
    yield "\nlog loss of ours, of the best recipe that has probabilities, and above that of the class frequencies"
    lines = []
    for head in [head for head in HEADS if any(cell[2] == head for cell in found)]:
        lines += [[head, number(k), *_probabilities(found, k, head)] for k in ks]
    headers = ["head", "k", "log loss", "best recipe", "above floor", "of the worst set", "calibration error, %"]
    yield tabulate(lines, headers=headers, disable_numparse=True)


def _seed(row: dict[str, Any]) -> int:
    return int(row["seed"])


def _probabilities(found: Found, k: int | None, head: str) -> list[str]:
    """Return what the probabilities of a head are worth at k pictures a class, over all sets."""
    cells = [by_recipe for (_, one, name), by_recipe in found.items() if (one, name) == (k, head)]
    mine = [row for by_recipe in cells for row in by_recipe[OURS]]
    if not mine:
        return []
    other = []
    for recipe in RECIPES:
        losses = [row["log_loss"] for by_recipe in cells for row in by_recipe[recipe] if "log_loss" in row]
        if len(losses) == len(mine):
            other.append(float(np.mean(losses)))
    above = [float(np.mean([row["log_loss"] - row["floor"] for row in by_recipe[OURS]])) for by_recipe in cells]
    return [
        f"{np.mean([row['log_loss'] for row in mine]):.3f}",
        f"{min(other):.3f}" if other else "",
        f"{np.mean(above):+.3f}",
        f"{max(above):+.3f}",
        f"{100 * np.mean([row['calibration_error'] for row in mine]):.1f}",
    ]


@click.command()
@click.argument("folders", nargs=-1, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--fashion", "fashion_folder", default=Path("/usr/share/datasets/fashion-mnist"), type=click.Path(path_type=Path)
)
@click.option("--cache", default=Path("cache"), type=click.Path(path_type=Path))
@click.option(
    "--kept", default=Path("few-shot-vectors"), type=click.Path(path_type=Path), help="Where vectors are kept."
)
@click.option("--out", default=Path("few_shot.jsonl"), type=click.Path(path_type=Path))
@click.option("--heads", default=",".join(HEADS))
@click.option("--sets", "asked", default="", help="Names of sets, with | between; all by default.")
@click.option("--k", "ks", default="1,2,5,10,20,all")
@click.option("--draws", default=10, show_default=True)
@click.option("--most", default=3000, show_default=True, help="Cells with more fitted pictures are left out.")
def main(
    folders: Sequence[Path],
    fashion_folder: Path,
    cache: Path,
    kept: Path,
    out: Path,
    heads: str,
    asked: str,
    ks: str,
    draws: int,
    most: int,
) -> None:
    sets = make_sets(folders, fashion_folder, cache, kept)
    names = asked.split("|") if asked else list(sets)
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    done = {tuple(row[part] for part in ("set", "k", "seed", "head", "recipe")) for row in rows}
    jobs = [
        (name, k, seed, head, recipe)
        for k in [None if k == "all" else int(k) for k in ks.split(",")]
        for head in heads.split(",")
        for name in names
        for seed in range(draws)
        for recipe in (OURS, *RECIPES)
        if (name, k, seed, head, recipe) not in done and len(draw(sets[name][1], k, seed)[0]) <= most
    ]
    with out.open("a") as lines:
        found = Parallel(os.cpu_count(), return_as="generator")(delayed(compute)(sets, job) for job in jobs)
        for number_done, new in enumerate(found):
            rows.append(new)
            lines.write(json.dumps(new) + "\n")
            lines.flush()
            if number_done % 250 == 0:
                click.echo(f"{number_done:,} of {len(jobs):,}", err=True)
    wanted = [row for row in rows if row["head"] in heads.split(",") and row["set"] in names]
    click.echo("\n".join(tables(wanted)))


if __name__ == "__main__":
    main()
