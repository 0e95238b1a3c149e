"""The name of a lesson and its folder enter; the score and the seconds of transfer learning as it is taught leave.

    python benchmarks/lessons.py linear-or-finetune hymenoptera/ --mode finetune

All have the loop that lessons have: torchvision's `ImageFolder` and `DataLoader` with two workers, the eager network on
the CPU, nothing kept from one epoch to the next. Seconds are those of listing, loading, training and scoring, without
Python's imports; those of an epoch include looking at the held-out pictures after it.

- `scraped`: class folders, a fifth held out at random; the frozen network runs in every epoch, for a linear top.
- `linear-or-finetune`: train and val folders, the PyTorch tutorial's batches of 4 and falling learning rate.
- `two-animals`: train, val and test folders, scored once on test.
- `extractor`: train and val folders; one picture at a time through the frozen network, then scikit-learn.
- `scratch-or-xception`: train and val folders, and holdout or not; a small ConvNet that learns from nothing, or the top
  of a pretrained network, then its last block too.

All but `extractor` keep the epoch that is best on the held-out pictures. `scraped` and `linear-or-finetune` report the
accuracy on the same pictures, and so does `scratch-or-xception` without a holdout folder: that score flatters, and the
line says so. In the first three lessons the whole network is in train mode, so that BatchNorm follows the batches where
weights are frozen too; the last one leaves what is frozen in eval mode. Pictures that cannot be opened, or whose names
do not end as `ImageFolder` expects (a .gif), are passed over.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC
from torch import nn
from torch.utils.data import DataLoader, Subset

from featcache.backbones import Backbone, resolve
from featcache.backbones.vision_import import import_torchvision
from featcache.evaluate import wilson
from featcache.tuning.blocks import unfreeze

torchvision = import_torchvision()
transforms = torchvision.transforms

SIDE = 100
"""Pixels of a picture's side for the small ConvNet."""

Pictures = Subset[Any]


@dataclass(frozen=True)
class Job:
    """What a lesson is given; `epochs` are those of each stage, `pictures` limits each folder."""

    folder: Path
    mode: str
    backbone: str
    weights: Path | None
    epochs: int
    seed: int
    pictures: int | None

    def resolved(self) -> Backbone:
        return resolve(self.backbone, self.weights)

    def splits(self, names: Sequence[str], varied: Any, plain: Any) -> tuple[dict[str, Pictures], int]:
        """Return the pictures of each split's folder, the first one's varied, and the number of classes."""
        looks = [varied, *[plain] * (len(names) - 1)]
        found = {name: listed(self.folder / name, look) for name, look in zip(names, looks, strict=True)}
        (classes,) = {tuple(pictures.classes) for pictures in found.values()}
        return {name: self.some(pictures) for name, pictures in found.items()}, len(classes)

    def some(self, pictures: Any) -> Pictures:
        return Subset(pictures, torch.randperm(len(pictures))[: self.pictures].tolist())


@dataclass(frozen=True)
class Stage:
    """Epochs with one optimizer; the modules of `training` are in train mode, all others in eval mode."""

    training: Sequence[nn.Module]
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.StepLR | None = None


@dataclass(frozen=True)
class Outcome:
    """`hits` of the `n_scored` pictures in `split` are right; `chosen` says that the epoch was chosen on these.

    `n` pictures were trained on; `laps` are the seconds of each epoch. Without a `backbone` nothing was pretrained.
    """

    backbone: Backbone | None
    n: int
    split: str
    hits: int
    n_scored: int
    laps: Sequence[float]
    chosen: bool


@cache
def opens(path: str) -> bool:
    if path.lower().endswith(torchvision.datasets.folder.IMG_EXTENSIONS):
        with suppress(OSError), Image.open(path):
            return True
    print(f"passed over: {path}", file=sys.stderr)
    return False


def listed(folder: Path, look: Any) -> Any:
    return torchvision.datasets.ImageFolder(folder, look, is_valid_file=opens)


def looks(backbone: Backbone) -> tuple[Any, Any]:
    """Return what is done to a picture: at random for training, and plainly."""
    steps = backbone.spec.preprocess
    filtering = transforms.InterpolationMode(steps.interpolation)
    scaled = [transforms.ToTensor(), transforms.Normalize(steps.mean, steps.std)]
    varied = [transforms.RandomResizedCrop(steps.crop, interpolation=filtering), transforms.RandomHorizontalFlip()]
    plain = [transforms.Resize(steps.resize, filtering), transforms.CenterCrop(steps.crop)]
    return transforms.Compose([*varied, *scaled]), transforms.Compose([*plain, *scaled])


def turned(plain: Any) -> Any:
    """Return the plain steps with a flip and a slight turn at random between the picture's size and its numbers."""
    *sizes, numbers = plain.transforms
    return transforms.Compose([*sizes, transforms.RandomHorizontalFlip(), transforms.RandomRotation(15), numbers])


def with_top(backbone: Backbone, classes: int, frozen: bool) -> nn.Sequential:
    network = backbone.build().requires_grad_(not frozen)
    with torch.no_grad():
        dim = network(torch.zeros(1, 3, *[backbone.spec.preprocess.crop] * 2)).flatten(1).shape[1]
    return nn.Sequential(network, nn.Flatten(), nn.Linear(dim, classes))


def load(pictures: Pictures, batch: int, shuffle: bool = False) -> Any:
    return DataLoader(pictures, batch, shuffle, num_workers=2)


def adam(model: nn.Module, rate: float) -> torch.optim.Adam:
    return torch.optim.Adam([p for p in model.parameters() if p.requires_grad], rate)


def score(model: nn.Module, pictures: Pictures, batch: int) -> int:
    """Return how many pictures are recognised."""
    model.eval()
    with torch.no_grad():
        return sum(int((model(x).argmax(1) == y).sum()) for x, y in load(pictures, batch))


def fit(
    job: Job,
    backbone: Backbone | None,
    model: nn.Module,
    data: dict[str, Pictures],
    batch: int,
    stages: Iterable[Stage],
) -> Outcome:
    """Train on the first split, keep the epoch that is best on the second, and return its score on the last."""
    (train, watched, *_), split = data.values(), list(data)[-1]
    best, state, laps = -1, dict[str, Any](), list[float]()
    for stage in stages:
        for _ in range(job.epochs):
            start = time.perf_counter()
            model.eval()
            for module in stage.training:
                module.train()
            for x, y in load(train, batch, shuffle=True):
                stage.optimizer.zero_grad()
                torch.autograd.backward(nn.functional.cross_entropy(model(x), y))
                stage.optimizer.step()
            if stage.schedule:
                stage.schedule.step()
            if (hits := score(model, watched, batch)) > best:
                best, state = hits, deepcopy(model.state_dict())
            laps.append(time.perf_counter() - start)
            print(f"epoch {len(laps)}: {hits / len(watched):.3f}, {laps[-1]:.1f} s", file=sys.stderr)
    model.load_state_dict(state)
    chosen = len(data) == 2
    hits = best if chosen else score(model, data[split], batch)
    return Outcome(backbone, len(train), split, hits, len(data[split]), laps, chosen)


def scraped(job: Job) -> Outcome:
    backbone = job.resolved()
    varied, plain = (listed(job.folder, look) for look in looks(backbone))
    rows = job.some(varied).indices
    held = len(rows) // 5
    data = {"train": Subset(varied, rows[held:]), "held-out fifth": Subset(plain, rows[:held])}
    model = with_top(backbone, len(varied.classes), frozen=True)
    return fit(job, backbone, model, data, 64, [Stage([model], adam(model, 1e-3))])


def linear_or_finetune(job: Job) -> Outcome:
    backbone = job.resolved()
    data, classes = job.splits(("train", "val"), *looks(backbone))
    model = with_top(backbone, classes, job.mode == "linear")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-3, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 7, 0.1)
    return fit(job, backbone, model, data, 4, [Stage([model], optimizer, schedule)])


def two_animals(job: Job) -> Outcome:
    backbone = job.resolved()
    data, classes = job.splits(("train", "val", "test"), *looks(backbone))
    model = with_top(backbone, classes, job.mode == "linear")
    stage = Stage([model], adam(model, 1e-3 if job.mode == "linear" else 1e-4))
    return fit(job, backbone, model, data, 32, [stage])


def extractor(job: Job) -> Outcome:
    """Extract one picture at a time, and fit scikit-learn's classifier on the vectors."""
    backbone = job.resolved()
    _, plain = looks(backbone)
    data, _ = job.splits(("train", "val"), plain, plain)
    network = backbone.build()
    start = time.perf_counter()
    vectors, labels = dict[str, Any](), dict[str, Any]()
    with torch.no_grad():
        for split, pictures in data.items():
            found = [(network(x).flatten().numpy(), int(y)) for x, y in load(pictures, 1)]
            vectors[split], labels[split] = (np.array(part) for part in zip(*found, strict=True))
    lap = time.perf_counter() - start
    head = LogisticRegression(max_iter=1000) if job.mode == "logreg" else LinearSVC(random_state=job.seed)
    head.fit(vectors["train"], labels["train"])
    hits = int((head.predict(vectors["val"]) == labels["val"]).sum())
    n, n_scored = map(len, data.values())
    return Outcome(backbone, n, "val", hits, n_scored, [lap], False)


def scratch_or_xception(job: Job) -> Outcome:
    names = ("train", "val", *(["holdout"] if (job.folder / "holdout").is_dir() else []))
    if job.mode == "scratch":
        plain = transforms.Compose([transforms.Resize((SIDE, SIDE)), transforms.ToTensor()])
        data, classes = job.splits(names, turned(plain), plain)
        model = small_convnet(classes)
        return fit(job, None, model, data, 32, [Stage([model], adam(model, 1e-3))])
    backbone = job.resolved()
    _, plain = looks(backbone)
    *before, normalize = plain.transforms
    varied = transforms.Compose([turned(transforms.Compose(before)), normalize])
    data, classes = job.splits(names, varied, plain)
    model = with_top(backbone, classes, frozen=True)
    return fit(job, backbone, model, data, 32, top_then_block(model, backbone.name))


def small_convnet(classes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, channels in ((3, 32), (32, 64), (64, 128), (128, 128)):
        layers += [nn.Conv2d(before, channels, 3), nn.ReLU(), nn.MaxPool2d(2)]
    dense = [nn.Linear(128 * 4 * 4, 256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, classes)]
    return nn.Sequential(*layers, nn.Flatten(), *dense)


def top_then_block(model: nn.Sequential, name: str) -> Iterator[Stage]:
    network, top = model[0], model[-1]
    yield Stage([top], adam(model, 1e-3))
    block = [network.get_submodule(path) for found in unfreeze(network, name, "last") for path in found.paths]
    for module in block:
        module.requires_grad_(True)
    yield Stage([*block, top], adam(model, 1e-4))


LESSONS: dict[str, tuple[Callable[[Job], Outcome], dict[str, int]]] = {
    "scraped": (scraped, {"linear": 4}),
    "linear-or-finetune": (linear_or_finetune, {"linear": 25, "finetune": 25}),
    "two-animals": (two_animals, {"linear": 10, "finetune": 10}),
    "extractor": (extractor, {"logreg": 1, "svm": 1}),
    "scratch-or-xception": (scratch_or_xception, {"scratch": 20, "pretrained": 5}),
}
"""Each with its modes and their epochs, those of each stage; the first mode is the default."""
TRAINED = {
    "linear": "a linear top",
    "finetune": "everything",
    "logreg": "scikit-learn's LogisticRegression",
    "svm": "scikit-learn's LinearSVC",
    "scratch": "everything, from nothing",
    "pretrained": "a linear top, then the last block too",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lesson", choices=LESSONS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mode", choices=TRAINED, help="what is trained  [default: the lesson's first]")
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--weights", type=Path, help="state dict, .pth")
    parser.add_argument("--epochs", type=int, help="of each stage  [default: the lesson's]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=int, help="so many of each folder, drawn at random, to try a lesson")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    lesson, modes = LESSONS[given.lesson]
    mode = given.mode or next(iter(modes))
    if mode not in modes:
        parser.error(f"{given.lesson} has the modes {', '.join(modes)}")
    epochs = modes[mode] if given.epochs is None else given.epochs
    if epochs < 1 or (given.lesson == "extractor" and epochs > 1):
        parser.error("--epochs: at least 1, and the extractor has no more")
    start = time.perf_counter()
    torch.manual_seed(given.seed)
    job = Job(given.folder, mode, given.backbone, given.weights, epochs, given.seed, given.pictures)
    found = lesson(job)
    seconds = time.perf_counter() - start
    network, weights = (found.backbone.name, found.backbone.weights) if found.backbone else ("small ConvNet", "none")
    accuracy, (low, high) = found.hits / found.n_scored, wilson(found.hits, found.n_scored)
    notes = ["the epoch was chosen on these pictures"] if found.chosen else []
    notes += ["the score means nothing if the weights are random"] if given.weights and found.backbone else []
    facts = {
        "lesson": given.lesson,
        "network": network,
        "weights": weights,
        "trained": TRAINED[mode],
        "n": found.n,
        "epochs": len(found.laps),
        "seed": given.seed,
        "split": found.split,
        "n_scored": found.n_scored,
        "accuracy": accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "seconds": seconds,
        "seconds_per_epoch": sum(found.laps) / len(found.laps),
        "notes": notes,
    }
    if given.json:
        print(json.dumps(facts))
        return
    print(
        f"{given.lesson}: {network} (weights: {weights}), trained {TRAINED[mode]}, n={found.n}, "
        f"epochs={len(found.laps)}, seed {given.seed}: {accuracy:.3f} ({low:.3f}-{high:.3f}) on {found.split}, "
        f"n={found.n_scored}{''.join(f', {note}' for note in notes)}; "
        f"{seconds:.1f} s in all, {facts['seconds_per_epoch']:.2f} s an epoch"
    )


if __name__ == "__main__":
    main()
