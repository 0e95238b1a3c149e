"""A file of trained weights, or a seed, enters; a small ConvNet leaves, the baseline that learns from nothing."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.backbones.base import Backbone
from featcache.backbones.draws import Draws
from featcache.backbones.weights import fill, read_state, sha256
from featcache.errors import BackboneError
from featcache.records import FeatureSpec, Preprocess

if TYPE_CHECKING:
    from torch import nn

NAME = "scratch-cnn"
PREPROCESS = Preprocess(
    resize=100, crop=100, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), resize_mode="squash"
)
_CHANNELS = (32, 64, 128, 128)
_UNITS = 256


def resolve(weights: Path | None) -> Backbone:
    """Return the network with the weights in a file; raises `BackboneError` without one, and `WeightsError`."""
    if weights is None:
        raise BackboneError(
            f"{NAME} has learned nothing, its vectors mean nothing: train it with "
            f"`featcache finetune --backbone {NAME}`, then use --backbone runs:N"
        )
    digest = sha256(weights)
    said = f"{weights.name}, sha256 {digest[:8]}"
    return Backbone(FeatureSpec(NAME, digest, PREPROCESS), said, partial(_build, weights, digest), weights)


def untrained(seed: int) -> Backbone:
    """Return the network with random weights, which is where a training begins."""
    digest = hashlib.sha256(f"{NAME} untrained {seed}".encode()).hexdigest()
    return Backbone(FeatureSpec(NAME, digest, PREPROCESS), f"untrained, seed {seed}", partial(network, seed))


def network(seed: int = 0) -> nn.Module:
    """Return the network with random weights: (n, 3, 100, 100) in, four convolutions, a hidden layer, (n, 256) out."""
    from torch import nn

    with Draws(seed).drawing():
        layers: list[nn.Module] = []
        before = 3
        for channels in _CHANNELS:
            layers += [nn.Conv2d(before, channels, 3), nn.MaxPool2d(2), nn.ReLU()]
            before = channels
        side = PREPROCESS.crop
        for _ in _CHANNELS:
            side = (side - 2) // 2
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * side * side, _UNITS), nn.ReLU()).eval()


def _build(path: Path, digest: str) -> nn.Module:
    made = network()
    fill(made, read_state(path, digest), droppable=(), source=str(path))
    return made.eval()
