"""The file of a fine-tuned network enters; the network as a backbone, and what the file says of it, leave."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.backbones.base import Backbone
from featcache.backbones.weights import TOP
from featcache.errors import BackboneError, WeightsError
from featcache.records import FeatureSpec, FloatArray

if TYPE_CHECKING:
    from torch import nn

PREFIX = "runs:"
SUFFIX = ".safetensors"
_KEY = "featcache"


@dataclass(frozen=True)
class Finetuned:
    """What stands beside the weights of a fine-tuned network: `spec` is that of the network it was made from.

    `architecture` is the name of the backbone whose tensors the file holds, `run` the number of the run that made it,
    `top` the weights (K, d) and biases (K) of the last layer.
    """

    run: int
    architecture: str
    spec: FeatureSpec
    classes: tuple[str, ...]
    scores: dict[str, Any]
    versions: dict[str, str]
    top: tuple[FloatArray, FloatArray]


def pack(network: nn.Module, known: Finetuned) -> bytes:
    """Return the file of a fine-tuned network: its tensors and its top's, and as metadata what is known of it."""
    import torch
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    for name, array in zip(("weight", "bias"), known.top, strict=True):
        tensors[TOP + name] = torch.from_numpy(array).contiguous()
    said = {
        "run": known.run,
        "architecture": known.architecture,
        "spec": known.spec.to_json(),
        "classes": known.classes,
        "scores": known.scores,
        "versions": known.versions,
    }
    return save(tensors, {_KEY: json.dumps(said)})


def read(path: Path) -> Finetuned:
    """Return what a file says of its fine-tuned network, with its top; raises `WeightsError` for any other file."""
    from safetensors import safe_open

    if not path.is_file():
        raise WeightsError(f"there is no file {path}: name the fine-tuned network with --weights")
    try:
        with safe_open(path, "numpy") as file:
            said: Mapping[str, Any] = json.loads((file.metadata() or {})[_KEY])
            top = file.get_tensor(f"{TOP}weight"), file.get_tensor(f"{TOP}bias")
        return Finetuned(
            int(said["run"]),
            str(said["architecture"]),
            FeatureSpec.from_json(said["spec"]),
            tuple(map(str, said["classes"])),
            dict(said["scores"]),
            dict(said["versions"]),
            top,
        )
    except MemoryError:
        raise
    except Exception as error:  # safetensors raises its own types on broken bytes
        raise WeightsError(f"{path} is not a network that featcache fine-tuned ({error})") from error


def resolve(name: str, weights: Path | None, base: Callable[[str, Path], Backbone]) -> Backbone:
    """Return the network that run N fine-tuned, `runs:N`, from its file; `base` finds the architecture it has.

    Raises `BackboneError` and `WeightsError`.
    """
    if weights is None:
        raise BackboneError(f"{name} is a network of a cache: name its file with --weights")
    known = read(weights)
    if name != f"{PREFIX}{known.run}":
        raise WeightsError(f"{weights} was made by run {known.run}: it is --backbone {PREFIX}{known.run}, not {name}")
    found = base(known.architecture, weights)
    said = f"{known.architecture} fine-tuned, sha256 {found.spec.weights_sha256[:8]}"
    return replace(found, spec=replace(found.spec, backbone=name), weights=said)
