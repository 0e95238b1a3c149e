"""A class folder enters; pictures per second of extraction beside the usual ways to do it, in one run, leave.

    pip install img2vec_pytorch "embetter[vision]"          to have these two beside it
    python benchmarks/bench_extract.py caltech101/ --backbone resnet18 --weights seeded.pth

All get the same pictures, a seeded sample with distinct contents whose files were read before. Each has a process of
its own, in which it loads its network once; one works at a time, on the CPU. A round before those that count is a
warm-up, and equal vectors are asserted on it before any speed is printed. Other packages are there for resnet18 only,
and get the same weights:

- embetter never calls `eval()`, so that its BatchNorm would use the statistics of each single picture: it is called
  here. Its model is `resnet18.tv_in1k`, whose preprocessing is torchvision's.
- img2vec_pytorch squashes pictures to 224 x 224, and is left as it is: its vectors are others and are not compared.

thingsvision is left out: it asks for numpy below 2 and torchvision 0.15, which featcache does not run with.

"bare" is an engine alone, on pictures decoded beforehand, with the batches and threads that featcache gives it.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import torch
from joblib import cpu_count
from PIL import Image
from tabulate import tabulate

import featcache
from featcache.backbones import Backbone, resolve
from featcache.backbones.vision_import import import_torchvision
from featcache.decode import Pixels, decode
from featcache.discover import discover
from featcache.errors import PictureError
from featcache.records import ExtractSummary
from featcache.sources import read
from featcache.store import Cache

BATCH = 32
DECODED = 256
"""How many pictures a bare engine is given again and again."""

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Job:
    """What every contender is given; the pictures lie in the class folders of `folder`."""

    backbone: str
    weights: Path | None
    folder: Path
    scratch: Path
    paths: tuple[str, ...] = ()

    def state(self) -> dict[str, torch.Tensor]:
        """Return resnet18's weights."""
        from torchvision.models import ResNet18_Weights

        return dict(torch.load(self.weights) if self.weights else ResNet18_Weights.IMAGENET1K_V1.get_state_dict())

    def resolved(self) -> Backbone:
        return resolve(self.backbone, self.weights)

    def cache(self, engine: str, precision: str = "fp32") -> Path:
        return self.scratch / f"{engine}-{precision}"

    def options(self, engine: str, precision: str) -> featcache.Options:
        folder = self.cache(engine, precision)
        return featcache.Options(self.backbone, self.weights, folder, "cpu", engine=engine, precision=precision)


@dataclass(frozen=True)
class Runner:
    """A contender that is loaded; only `work` is timed, and the other functions are given what it made."""

    work: Callable[[], Any]
    vectors: Callable[[Any], Vectors] = np.asarray
    before: Callable[[], None] = lambda: None
    profile: Callable[[Any], dict[str, float]] = lambda made: {}


@dataclass(frozen=True)
class Lap:
    seconds: float
    vectors: Vectors | None
    profile: dict[str, float]


def tutorial(job: Job) -> Runner:
    """Extract as the transfer-learning tutorial of PyTorch loads and runs: a DataLoader and an eager network."""
    import_torchvision()
    from torchvision import models, transforms
    from torchvision.datasets import ImageFolder

    if job.backbone == "resnet18":
        network = models.resnet18(weights=None)
        network.load_state_dict(job.state())
        network.fc = torch.nn.Identity()
        filtering, mean, std = "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    else:
        network = job.resolved().build()
        filtering, mean, std = "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    network.eval()
    resize = transforms.Resize(256, transforms.InterpolationMode(filtering))
    steps = [resize, transforms.CenterCrop(224), transforms.ToTensor(), transforms.Normalize(mean, std)]

    def work() -> list[Vectors]:
        dataset = ImageFolder(job.folder, transforms.Compose(steps))
        assert tuple(path for path, _ in dataset.samples) == job.paths
        # A spawned process would spawn the workers too; the platform's own way is what a script gets.
        start = get_all_start_methods()[0]
        loader = torch.utils.data.DataLoader(dataset, BATCH, num_workers=2, multiprocessing_context=start)
        with torch.no_grad():
            return [network(x).numpy() for x, _ in loader]

    return Runner(work, np.concatenate)


def img2vec(job: Job) -> Runner:
    """Give Img2Vec lists of opened pictures: it opens none, and makes one batch of a list.

    It always asks for torchvision's weights, so that these are put in their place.
    """
    import_torchvision()
    from torchvision.models import WeightsEnum

    state = job.state()
    with patch.object(WeightsEnum, "get_state_dict", lambda *_, **__: state):
        network = import_module("img2vec_pytorch").Img2Vec(cuda=False, model="resnet18")

    def opened(path: str) -> Image.Image:
        with Image.open(path) as picture:
            return picture.convert("RGB")

    def work() -> list[Vectors]:
        return [network.get_vec([opened(path) for path in part]) for part in in_batches(job.paths)]

    return Runner(work, np.concatenate)


def embetter(job: Job) -> Runner:
    """Run embetter's ImageLoader and TimmEncoder, in parts: the loader holds all pictures of a call in memory."""
    import_torchvision()
    import timm
    from sklearn.pipeline import make_pipeline

    create, state = timm.create_model, job.state()

    def with_weights(name: str, pretrained: bool = True, **rest: Any) -> Any:
        network = create(name, pretrained=False, **rest)
        network.load_state_dict({key: state[key] for key in state if not key.startswith("fc.")})
        return network

    with patch.object(timm, "create_model", with_weights):
        vision = import_module("embetter.vision")
        encoder = vision.TimmEncoder("resnet18.tv_in1k")
    encoder.model.eval()
    pipeline = make_pipeline(vision.ImageLoader(), encoder)
    return Runner(lambda: [pipeline.fit_transform(list(part)) for part in in_batches(job.paths)], np.concatenate)


def ours(job: Job, engine: str, precision: str = "fp32") -> Runner:
    """Run all of `featcache.extract`; exported networks stay in its cache, everything else is deleted before."""
    folder, options = job.cache(engine, precision), job.options(engine, precision)

    def before() -> None:
        for path in (*folder.glob("segments/*/seg-*.h5"), *folder.glob("catalog.sqlite*")):
            path.unlink()
        shutil.rmtree(folder / "runs", ignore_errors=True)

    def work() -> ExtractSummary:
        summary = featcache.extract(job.folder, options)
        assert summary.computed == len(job.paths), summary
        return summary

    def vectors(summary: ExtractSummary) -> Vectors:
        keys = [hashlib.sha256(Path(path).read_bytes()).digest() for path in job.paths]
        with Cache(folder) as kept:
            return np.asarray(kept.store(summary.fingerprint).read(keys), np.float32)

    return Runner(work, vectors, before, lambda summary: asdict(summary.seconds))


def bare(job: Job, engine: str, precision: str = "fp32") -> Runner:
    """Run an engine in as many threads as it has lanes."""
    from featcache.api.precision import as_asked
    from featcache.embed import open_engine
    from featcache.process import keep_freed_memory

    keep_freed_memory()
    with Cache(job.cache(engine, precision)) as kept:
        backbone = as_asked(kept, job.resolved(), discover(job.folder), job.options(engine, precision))
        opened = open_engine(backbone, "cpu", engine, kept.networks, len(job.paths))
    batches, threads = list(decoded_batches(job, opened.batch_size)), ThreadPoolExecutor(opened.lanes)
    return Runner(lambda: list(threads.map(opened.embed, batches)), np.concatenate)


def onnxruntime_default(job: Job) -> Runner:
    """Run the exported network as its user would write it."""
    import onnxruntime

    from featcache.embed import exported

    with Cache(job.cache("onnx")) as kept:
        session = onnxruntime.InferenceSession(exported(job.resolved(), kept.networks))
    name = session.get_inputs()[0].name
    batches = list(decoded_batches(job, BATCH))
    return Runner(lambda: [session.run(None, {name: batch})[0] for batch in batches], np.concatenate)


def in_batches(paths: Sequence[str]) -> Iterator[Sequence[str]]:
    return (paths[start : start + BATCH] for start in range(0, len(paths), BATCH))


def decoded_batches(job: Job, size: int) -> Iterator[Pixels]:
    """Yield as many decoded pictures as there are paths; the first ones come again where there are more."""
    steps = job.resolved().spec.preprocess
    pixels = np.stack([decode(Path(path).read_bytes(), steps) for path in job.paths[:DECODED]])
    left = len(job.paths)
    for start in itertools.cycle(range(0, len(pixels), size)):
        batch = pixels[start : start + size][:left]
        if not len(batch):
            return
        left -= len(batch)
        yield batch


EXACT, SAME, ROUNDED, OTHER = "within 1e-4", "same preprocessing", "int8", "other preprocessing"
CONTENDERS: dict[str, tuple[Callable[[Job], Runner], str]] = {
    "tutorial": (tutorial, EXACT),
    "img2vec_pytorch": (img2vec, OTHER),
    "embetter": (embetter, SAME),
    "featcache torch": (partial(ours, engine="torch"), EXACT),
    "featcache onnx": (partial(ours, engine="onnx"), EXACT),
    "featcache int8": (partial(ours, engine="onnx", precision="int8"), ROUNDED),
    "bare torch": (partial(bare, engine="torch"), EXACT),
    "bare onnx": (partial(bare, engine="onnx"), EXACT),
    "bare int8": (partial(bare, engine="onnx", precision="int8"), ROUNDED),
    "onnxruntime default": (onnxruntime_default, EXACT),
}
IN_MEMORY = ("bare torch", "bare onnx", "bare int8", "onnxruntime default")
PEERS = ("img2vec_pytorch", "embetter")
BARE = {"featcache torch": "bare onnx", "featcache onnx": "bare onnx", "featcache int8": "bare int8"}


@cache
def loaded(name: str, job: Job) -> Runner:
    return CONTENDERS[name][0](job)


def lap(name: str, job: Job, with_vectors: bool = False) -> Lap:
    """Run one round; the first call in a process loads the contender."""
    runner = loaded(name, job)
    runner.before()
    start = time.perf_counter()
    made = runner.work()
    seconds = time.perf_counter() - start
    return Lap(seconds, runner.vectors(made) if with_vectors else None, runner.profile(made))


def sample(source: Path, count: int, job: Job) -> tuple[str, ...]:
    """Link a seeded sample of readable pictures with distinct contents into class folders, and return their paths."""
    import_torchvision()
    from torchvision.datasets.folder import IMG_EXTENSIONS

    items = [item for item in discover(source).items if item.path.lower().endswith(IMG_EXTENSIONS)]
    steps, links = job.resolved().spec.preprocess, dict[bytes, Path]()
    for at in np.random.default_rng(0).permutation(len(items)):
        try:
            data, key, _ = read(items[at].path)
            decode(data, steps)
        except PictureError:
            continue
        link = job.folder / (items[at].label or "pictures") / f"{at:07d}{Path(items[at].path).suffix}"
        if links.setdefault(key, link) is link:
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(items[at].path)
        if len(links) == count:
            break
    return tuple(map(str, sorted(links.values())))


def compare(name: str, found: Vectors, reference: Vectors) -> str:
    """Assert that vectors are the reference's as far as they can be, and return their cosines with it in words."""
    if CONTENDERS[name][1] == OTHER:
        return OTHER
    if name in IN_MEMORY:
        reference = reference[np.arange(len(reference)) % DECODED]
    raw = cosines(found, reference)
    if CONTENDERS[name][1] == ROUNDED:
        assert raw.mean() > 0.98, f"{name}: mean cosine {raw.mean():.4f}"
        return f"{raw.min():.4f} min, {raw.mean():.4f} mean"
    # Random weights give all pictures nearly one vector: only what is left without the mean tells them apart.
    centred = cosines(found - reference.mean(0), reference - reference.mean(0))
    assert min(raw.min(), centred.min()) > 0.999, f"{name}: cosine {raw.min():.4f}, centred {centred.min():.4f}"
    if CONTENDERS[name][1] == EXACT:
        off = (np.linalg.norm(found - reference, axis=1) / np.linalg.norm(reference, axis=1)).max()
        assert off <= 1e-4, f"{name}: {off:.1e} relative from the reference"
    return f"{raw.min():.4f} min, centred {centred.min():.4f}"


def cosines(a: Vectors, b: Vectors) -> Vectors:
    return np.asarray((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))


def measure(names: Sequence[str], job: Job, rounds: int) -> tuple[dict[str, list[Lap]], dict[str, str]]:
    """Return the laps of each contender, the warm-up first, and in words how its vectors compare."""
    laps = {name: list[Lap]() for name in names}
    agreement, reference = dict[str, str](), np.empty(0, np.float32)
    with ExitStack() as stack:
        processes = {name: stack.enter_context(ProcessPoolExecutor(1, get_context("spawn"))) for name in names}
        for number in range(rounds + 1):
            for name in names:
                print(f"round {number} of {rounds}: {name}", file=sys.stderr)
                found = processes[name].submit(lap, name, job, not number).result()
                laps[name].append(replace(found, vectors=None))
                if found.vectors is not None:
                    reference = reference if len(reference) else found.vectors  # the tutorial comes first
                    agreement[name] = compare(name, found.vectors, reference)
    return laps, agreement


def report(laps: dict[str, list[Lap]], agreement: dict[str, str], missing: Sequence[str], count: int) -> None:
    """Print the table, the targets, and what the first extraction and each part of an extraction took."""
    rates = {name: [count / lap.seconds for lap in found[1:]] for name, found in laps.items()}
    speed = {name: statistics.median(found) for name, found in rates.items()}
    rows = [(name, "not installed", "", "", "") for name in missing]
    for name in laps:
        said = f"{speed[name]:.1f} ({min(rates[name]):.1f}-{max(rates[name]):.1f})"
        share = f"{speed[name] / speed[BARE[name]]:.2f}" if BARE.get(name) in speed else ""
        rows.append((name, said, f"{speed[name] / speed['tutorial']:.2f}", share, agreement[name]))
    headers = ["contender", "pictures/s, median (min-max)", "x tutorial", "of bare onnx, int8", "cosine with tutorial"]
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True), end="\n\n")
    fastest = max(speed.get(name, 0.0) for name in ("bare onnx", "onnxruntime default"))
    for name, factor, other, base in (
        ("featcache onnx", 2, "tutorial", speed["tutorial"]),
        ("featcache onnx", 0.9, "the faster bare ONNX Runtime", fastest),
        ("featcache int8", 4, "tutorial", speed["tutorial"]),
    ):
        if name in speed and base:
            ratio = speed[name] / base
            print(f"target: {name} >= {factor:g} x {other}: {ratio:.2f}, {'met' if ratio >= factor else 'missed'}")
    for name in (name for name in BARE if name in laps):
        again = sorted(laps[name][1:], key=lambda lap: lap.seconds)[(len(laps[name]) - 1) // 2]
        print(f"first extraction: {name} {laps[name][0].seconds - again.seconds:+.1f} s (export, calibration, warm-up)")
        parts = ", ".join(f"{part} {seconds:.2f}" for part, seconds in again.profile.items() if part != "total")
        print(f"profile: {name}, seconds summed over threads: {parts}; wall {again.profile['total']:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures_folder", metavar="PICTURES", type=Path)
    parser.add_argument("--backbone", choices=("resnet18", "efficientnet_lite0"), default="resnet18")
    parser.add_argument("--weights", type=Path, help="state dict, .pth")
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3, help="after the warm-up")
    parser.add_argument("--contenders", default=",".join(CONTENDERS), help="comma-separated  [default: all]")
    parser.add_argument("--folder", type=Path, help="where to write  [default: the system's temporary folder]")
    options = parser.parse_args()
    asked = {"tutorial", *options.contenders.split(",")}
    if unknown := asked - set(CONTENDERS):
        parser.error(f"unknown contenders: {', '.join(sorted(unknown))}; there are {', '.join(CONTENDERS)}")
    names = [name for name in CONTENDERS if name in asked and (options.backbone == "resnet18" or name not in PEERS)]
    missing = [name for name in names if name in PEERS and not find_spec(name)]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        job = Job(options.backbone, options.weights, Path(folder) / "pictures", Path(folder) / "scratch")
        job = replace(job, paths=sample(options.pictures_folder, options.pictures, job))
        laps, agreement = measure([name for name in names if name not in missing], job, options.rounds)
    print(
        f"{len(job.paths):,} pictures, {job.backbone}, {options.rounds} rounds after a warm-up, {cpu_count()} cores, "
        f"torch {version('torch')}, onnxruntime {version('onnxruntime')}\n"
    )
    report(laps, agreement, missing, len(job.paths))


if __name__ == "__main__":
    main()
