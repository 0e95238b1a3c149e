"""A tiny network and tinted pictures, in memory and on disk, for tests of fine-tuning."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Result, write_picture
from torch import nn

from featcache.backbones import Backbone, torchvision_models
from featcache.backbones.weights import fill, read_state, sha256
from featcache.errors import BackboneError
from featcache.records import FeatureSpec, Preprocess
from featcache.records.finetuning import EpochRow
from featcache.tuning.blocks import Cut, cut
from featcache.tuning.classifier import FinetuneClassifier

CROP, WIDTH = 32, 8
STEPS = Preprocess(36, CROP, "bilinear", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
TINTS = {"leaf": (60, 180, 60), "sky": (70, 110, 220), "sand": (210, 180, 110), "stone": (125, 120, 120)}


class Toy(nn.Module):
    """A stem and four blocks of two convolutions each: (n, 3, 32, 32) in, (n, 8) out."""

    def __init__(self, norm: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTH, 3, 2, 1)
        self.bn1 = nn.BatchNorm2d(WIDTH) if norm else nn.Identity()
        for number in range(1, 5):
            setattr(self, f"layer{number}", self._block(norm, 2 if number == 1 else 1))

    @staticmethod
    def _block(norm: bool, stride: int) -> nn.Module:
        first, second = nn.Conv2d(WIDTH, WIDTH, 3, stride, 1), nn.Conv2d(WIDTH, WIDTH, 3, 1, 1)
        return nn.Sequential(first, nn.BatchNorm2d(WIDTH) if norm else nn.Identity(), nn.ReLU(), second, nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        for block in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = block(x)
        return x.mean((2, 3))


def toy(norm: bool = True, seed: int = 0) -> Toy:
    """The tiny network with seeded weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Toy(norm)
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        _settle(network)
    return network.eval()


def _settle(network: nn.Module) -> None:
    """Give BatchNorm the statistics of coloured noise, as training would."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    with torch.no_grad():
        network.train()(torch.randn(32, 3, CROP, CROP) / 2 + torch.randn(32, 3, 1, 1))
    for norm in norms:
        norm.momentum = 0.1


def backbone(norm: bool = True, seed: int = 0) -> Backbone:
    """The tiny network as a backbone that is never looked for by name."""
    return Backbone(FeatureSpec("toy", f"{seed:064x}", STEPS), "seeded", lambda: toy(norm, seed))


def toy_cut(unfreeze: str = "last", norm: bool = True, seed: int = 0) -> Cut:
    return cut(toy(norm, seed), "toy", unfreeze, CROP)


class Arrays:
    """Network input in memory, in place of pictures."""

    are_activations = False

    def __init__(self, X: torch.Tensor) -> None:
        self.X = X

    def __len__(self) -> int:
        return len(self.X)

    def batches(self, batches: Sequence[Any], epoch: int) -> Iterator[tuple[Any, torch.Tensor]]:
        for rows in batches:
            yield rows, self.X[torch.from_numpy(rows)]


def tinted(n: int, n_classes: int = 3, seed: int = 0) -> tuple[Arrays, Any]:
    """`n` noisy inputs of each class, told apart by their colour, in mixed order, and their labels."""
    r = np.random.default_rng(seed)
    codes = r.permutation(np.repeat(np.arange(n_classes), n))
    colours = (np.array(list(TINTS.values()))[codes] - 128) / 64
    X = r.normal(0, 0.5, (len(codes), 3, CROP, CROP)) + (colours + r.normal(0, 0.5, colours.shape))[:, :, None, None]
    return Arrays(torch.from_numpy(X.astype(np.float32))), np.array(list(TINTS))[codes]


def weights_of(classifier: FinetuneClassifier) -> dict[str, torch.Tensor]:
    """All tensors of the network and of its top."""
    top = {f"top.{name}": tensor for name, tensor in classifier.trainer_.linear.state_dict().items()}
    return {name: tensor.clone() for name, tensor in (classifier.cut_.network.state_dict() | top).items()}


def install(monkeypatch: pytest.MonkeyPatch | None, weights: Path) -> None:
    """Make the tiny network known under the name `toy`, in place of torchvision's family; its weights are a file."""
    if not weights.exists():
        torch.save(toy().state_dict(), weights)

    def resolve(name: str, given: Path | None) -> Backbone:
        if name != "toy":
            raise BackboneError(f"unknown backbone {name!r}: there is the toy alone")
        path = given or weights

        def build() -> nn.Module:
            network = Toy()
            fill(network, read_state(path), (), str(path))
            return network.eval()

        return Backbone(FeatureSpec(name, sha256(path), STEPS), f"{path.name}", build, path)

    put: Callable[..., Any] = monkeypatch.setattr if monkeypatch is not None else setattr
    put(torchvision_models, "resolve", resolve)


def write_folder(root: Path, sizes: dict[str, int], labels: Sequence[str] = ("leaf", "sky", "sand")) -> Path:
    """Write so many pictures of each label into each split, "" being none."""
    for at, label in enumerate(labels):
        start = 0
        for split, n in sizes.items():
            for number in range(start, start + n):
                write_picture(root / split / label / f"{number}.png", 1000 * at + number, TINTS[label])
            start += n
    return root


def tensors(model: str | Path) -> dict[str, torch.Tensor]:
    """All tensors in the file of a fine-tuned network."""
    from safetensors.torch import load_file

    return load_file(model)


def make_old(root: Path) -> None:
    """Let files look as if nobody had just written them."""
    for path in root.rglob("*.*"):
        os.utime(path, (1, 1))


def timeless(history: Any) -> list[EpochRow]:
    return [replace(row, seconds=0.0) for row in history]


def key_of(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def refused(result: Result, *words: str, code: int = 1) -> bool:
    """Tell whether a command failed with one line that has these words, and nothing on stdout."""
    lines = [line for line in result.err.splitlines() if line.startswith("featcache: ")]
    told = lines and all(word in lines[-1] for word in words)
    return (result.code, result.out) == (code, "") and bool(told) and "Traceback" not in result.err
