"""The name of a backbone that was noted before enters; the backbone leaves, without importing torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from featcache.backbones.base import Backbone
from featcache.backbones.weights import sha256
from featcache.errors import WeightsError
from featcache.records import FeatureSpec

if TYPE_CHECKING:
    from torch import nn


class Notes(Protocol):
    """Keeps plain values under a digest."""

    def get(self, digest: str) -> dict[str, Any] | None:
        """Return what is kept, or `None`."""
        ...

    def put(self, digest: str, result: Mapping[str, Any]) -> None:
        """Keep values."""
        ...


def note(notes: Notes, backbone: Backbone, weights: Path | None) -> None:
    """Note what has to be known of a backbone, weights aside, unless it is noted already."""
    digest = _digest(backbone.name, weights)
    if backbone.file is not None and notes.get(digest) is None:
        known = {"spec": backbone.spec.network.to_json(), "weights": backbone.weights, "file": str(backbone.file)}
        notes.put(digest, known)


def recall(notes: Notes, name: str, weights: Path | None, again: Callable[[], Backbone]) -> Backbone | None:
    """Return a backbone that was noted with these versions of the libraries; its weights are read and hashed anew.

    `again` looks for the whole of it, once it is built, which raises `WeightsError` where it is another one by then.
    """
    try:
        known = notes.get(_digest(name, weights)) or {}
        spec, said, file = FeatureSpec.from_json(known["spec"]), str(known["weights"]), Path(known["file"])
    except (KeyError, TypeError, ValueError):
        return None
    if weights is None and not file.exists():
        return None
    digest = sha256(weights or file)
    said = f"{weights.name}, sha256 {digest[:8]}" if weights else said

    def build() -> nn.Module:
        made = again()
        if made.spec.weights_sha256 != digest:
            raise WeightsError(f"{weights or file} has changed since it was looked up: run the same command again")
        return made.build()

    return Backbone(replace(spec, weights_sha256=digest), said, build, weights or file)


def _digest(name: str, weights: Path | None) -> str:
    versions = [version(library) for library in ("featcache", "torchvision", "timm")]
    return hashlib.sha256(json.dumps([name, weights is not None, *versions]).encode()).hexdigest()
