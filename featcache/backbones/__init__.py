"""The name of a backbone enters; the frozen network, its preprocessing and its weights' digest leave."""

from __future__ import annotations

import logging
from pathlib import Path

from featcache.backbones import efficientnet_lite0, finetuned, scratch_cnn, timm_models, torchvision_models
from featcache.backbones.base import Backbone
from featcache.backbones.notes import Notes, note, recall
from featcache.backbones.weights import hub_file
from featcache.errors import BackboneError, WeightsError, WeightsUnavailableError
from featcache.records import POOLED, FeatureSpec

__all__ = ["AUTO", "Backbone", "at_hand", "note", "on_demand", "reproduce", "resolve", "vector_length"]

AUTO = "auto"
_logger = logging.getLogger(__name__)


def resolve(name: str = AUTO, weights: Path | None = None, notes: Notes | None = None) -> Backbone:
    """Find a backbone and its weights; the network itself is built later, by `Backbone.build`.

    With `notes` it is looked for there first, where that spares importing torch.

    `auto` is resnet18 where its weights can be had, else efficientnet_lite0 with a notice in the log; any other name
    is strict. `weights` names a `.pth` or `.safetensors` state dict. Raises `BackboneError` and `WeightsError`.
    """
    if name == AUTO:
        if weights:
            raise BackboneError("--weights needs a --backbone: say which network the file belongs to")
        try:
            return torchvision_models.resolve("resnet18", None)
        except WeightsUnavailableError as error:
            _logger.warning(
                "no weights for resnet18: %s. Using efficientnet_lite0 instead (--backbone %s asks for it).",
                error,
                efficientnet_lite0.NAME,
            )
            return efficientnet_lite0.resolve(None)
    if name.startswith(finetuned.PREFIX):
        return finetuned.resolve(name, weights, resolve)
    if name == scratch_cnn.NAME:
        return scratch_cnn.resolve(weights)
    if name == efficientnet_lite0.NAME:
        return efficientnet_lite0.resolve(weights)
    if name == "resnet18":
        return torchvision_models.resolve(name, weights)
    found = recall(notes, name, weights, lambda: resolve(name, weights)) if notes is not None else None
    if found is not None:
        return found
    if name.startswith(timm_models.PREFIX):
        return timm_models.resolve(name, weights)
    return torchvision_models.resolve(name, weights)


def at_hand() -> tuple[str, str]:
    """Return what `auto` comes to without a download, with the reason where that is not resnet18."""
    file = hub_file(torchvision_models.RESNET18_URL.rpartition("/")[2])
    if file.exists():
        return "resnet18", ""
    return efficientnet_lite0.NAME, f"the weights of resnet18 are not on this computer, as {file}"


def vector_length(spec: FeatureSpec) -> int | None:
    """Return how long the vectors of a well-known network are, `None` of others; no weights are read."""
    if spec.layer != POOLED or spec.backbone.startswith((finetuned.PREFIX, scratch_cnn.NAME)):
        return None
    import torch

    size = spec.preprocess.crop
    try:
        with torch.device("meta"), torch.no_grad():  # shapes alone
            if spec.backbone == efficientnet_lite0.NAME or spec.backbone.startswith(timm_models.PREFIX):
                network = timm_models.network(spec.backbone.removeprefix(timm_models.PREFIX))
            else:
                network, _ = torchvision_models.network(spec.backbone)
            return int(network.eval()(torch.empty(1, 3, size, size)).shape[-1])
    except Exception:  # a network of somebody's own, which cannot be asked
        return None


def reproduce(spec: FeatureSpec, weights: Path | None = None, notes: Notes | None = None) -> Backbone:
    """Find the backbone that makes exactly these features; raises `WeightsError` where it comes out different here."""
    found = resolve(spec.backbone, weights, notes).making(spec)
    if found.spec.fingerprint != spec.fingerprint:
        here = found.spec.weights_sha256[:16]
        why = f"here they have {here}" if here != spec.weights_sha256[:16] else "made differently here"
        raise WeightsError(
            f"{spec.backbone} with weights of sha256 {spec.weights_sha256[:16]} (fingerprint {spec.fingerprint[:16]}), "
            f"{why}: give the right --weights FILE"
        )
    return found


def on_demand(spec: FeatureSpec, said: str, weights: Path | None = None, notes: Notes | None = None) -> Backbone:
    """Return the backbone that made these features, whose weights, `said` in words, are looked for when it is built.

    Building it raises as `reproduce` does.
    """
    return Backbone(spec, said, lambda: reproduce(spec, weights, notes).build())
