"""The file of a fine-tuned network enters; the network as a backbone, and what the file says of it, leave."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache import sealed
from featcache.backbones.base import Backbone
from featcache.backbones.weights import TOP, of_torch
from featcache.errors import BackboneError, WeightsError, refusal
from featcache.records import FeatureSpec, FloatArray
from featcache.sealed import SUFFIX
from featcache.texts import flaw_of_names

if TYPE_CHECKING:
    from torch import nn

__all__ = ["FORMAT", "PREFIX", "SUFFIX", "Finetuned", "pack", "read", "resolve"]

PREFIX = "runs:"
FORMAT = "featcache-network"
FORMAT_VERSION = 2
"""Files of version 1 do not say so, and have no seal."""

_SAID = {"run", "architecture", "spec", "classes", "scores", "versions"}


@dataclass(frozen=True)
class Finetuned:
    """What stands beside the weights of a fine-tuned network: `spec` is that of the network it was made from.

    `architecture` is the name of the backbone whose tensors the file holds, `run` the number of the run that made it,
    `top` the weights (K, d) and biases (K) of the last layer. `sha256` is that of the file it was read from.
    """

    run: int
    architecture: str
    spec: FeatureSpec
    classes: tuple[str, ...]
    scores: dict[str, Any]
    versions: dict[str, str]
    top: tuple[FloatArray, FloatArray]
    sha256: str = ""


def pack(network: nn.Module, known: Finetuned) -> bytes:
    """Return the file of a fine-tuned network: its tensors and its top's, and as metadata what is known of it."""
    tensors = {name: of_torch(tensor) for name, tensor in network.state_dict().items()}
    for name, array in zip(("weight", "bias"), known.top, strict=True):
        tensors[TOP + name] = sealed.of_array(array)
    said = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "run": known.run,
        "architecture": known.architecture,
        "spec": known.spec.to_json(),
        "classes": known.classes,
        "scores": sealed.without_infinite(known.scores),
        "versions": known.versions,
    }
    return sealed.pack(tensors, said)


def read(path: Path) -> Finetuned:
    """Return what a file says of its fine-tuned network, with its top; raises `WeightsError` for any other file.

    A file is refused where a bit of it has changed; one of version 1 has nothing to tell that by.
    """
    if not path.exists():
        raise WeightsError(f"there is no file {path}: name the fine-tuned network with --weights")
    try:
        return parse(sealed.read_whole(path))
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {refusal(error)}") from error
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is not a network that featcache fine-tuned ({error})") from error


def parse(data: sealed.Bytes) -> Finetuned:
    """Return what the bytes of a file say of its fine-tuned network; raises `ValueError` for those of any other."""
    content = sealed.unpack(data)
    said = content.known
    if said is None:
        raise ValueError("it says nothing of a network")
    if content.is_sealed or said.keys() & {"format", "format_version"}:
        if said.get("format") != FORMAT or said.get("format_version") != FORMAT_VERSION or not content.is_sealed:
            raise ValueError("it has another format, or has lost its seal")
        said = {name: value for name, value in said.items() if name not in ("format", "format_version")}
    _check(said)
    top = _top(content.tensors, len(said["classes"]))
    return Finetuned(
        said["run"],
        said["architecture"],
        FeatureSpec.from_json(said["spec"]),
        tuple(said["classes"]),
        dict(said["scores"]),
        dict(said["versions"]),
        top,
        hashlib.sha256(data).hexdigest(),
    )


def _top(tensors: Mapping[str, sealed.Tensor], n_classes: int) -> tuple[FloatArray, FloatArray]:
    if not {f"{TOP}weight", f"{TOP}bias"} <= tensors.keys():
        raise ValueError("it has no top")
    weight, bias = (tensors[TOP + name].array() for name in ("weight", "bias"))
    if weight.ndim != 2 or bias.shape != weight.shape[:1] or len(bias) != n_classes:
        raise ValueError(f"its top has weights {weight.shape} and biases {bias.shape} for {n_classes:,} classes")
    if any(array.dtype.kind != "f" or not np.isfinite(array).all() for array in (weight, bias)):
        raise ValueError("its top holds values that are not finite numbers")
    return weight, bias


def _check(said: Mapping[str, Any]) -> None:
    """Raise `ValueError` unless all of what is said is there, and of its kind."""
    if said.keys() != _SAID:
        raise ValueError(f"it does not say {', '.join(sorted(_SAID))}, and nothing else")
    kinds = {"run": int, "architecture": str, "spec": str, "scores": dict, "versions": dict, "classes": list}
    for name, kind in kinds.items():
        if type(said[name]) is not kind:
            raise ValueError(f"its {name} is {said[name]!r:.80}")
    if (flaw := flaw_of_names(said["classes"])) is not None:
        raise ValueError(f"its classes cannot be used: {flaw}")


def resolve(name: str, weights: Path | None, base: Callable[[str, Path], Backbone]) -> Backbone:
    """Return the network that run N fine-tuned, `runs:N`, from its file; `base` finds the architecture it has.

    Raises `BackboneError` and `WeightsError`.
    """
    if weights is None:
        raise BackboneError(f"{name} is a network of a cache: name its file with --weights")
    known = read(weights)
    if name != f"{PREFIX}{known.run}":
        raise WeightsError(f"{weights} was made by run {known.run}: it is --backbone {PREFIX}{known.run}, not {name}")
    if known.architecture.startswith(PREFIX):
        raise WeightsError(f"{weights} says that its architecture is {known.architecture}, which is none")
    found = base(known.architecture, weights)
    if found.spec.weights_sha256 != known.sha256:
        raise WeightsError(f"{weights} has changed while it was read: run the same command again")
    said = f"{known.architecture} fine-tuned, sha256 {found.spec.weights_sha256[:8]}"
    return replace(found, spec=replace(found.spec, backbone=name), weights=said)
