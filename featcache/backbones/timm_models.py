"""The name of a timm model enters; its network, cut before the classification layer, leaves."""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.backbones.base import Backbone
from featcache.backbones.draws import drawing_apart
from featcache.backbones.vision_import import import_torchvision
from featcache.backbones.weights import fill, obtain, read_state, sha256
from featcache.errors import BackboneError, WeightsUnavailableError
from featcache.records import FeatureSpec, Preprocess

if TYPE_CHECKING:
    from torch import nn

PREFIX = "timm:"
_ALIASES = {"efficientnet_lite0": "tf_efficientnet_lite0"}

_logger = logging.getLogger(__name__)


def resolve(name: str, weights: Path | None) -> Backbone:
    """Return the timm model in `timm:NAME` with its pretrained weights, or those in the file `weights`.

    Raises `BackboneError` for an unknown name or an input this package cannot prepare, and `WeightsError`.
    """
    import_torchvision()
    import timm
    import torch

    model = name.removeprefix(PREFIX)
    if not timm.is_model(model):
        close = timm.list_models(f"*{model}*")[:3] or difflib.get_close_matches(model, timm.list_models())
        hint = f": did you mean {', '.join(PREFIX + m for m in close)}?" if close else ": see timm.list_models()"
        raise BackboneError(f"timm has no model {model!r}{hint}")
    try:
        with torch.device("meta"):  # only the network itself knows its configuration under each of its names
            config = timm.create_model(model, pretrained=False).pretrained_cfg
    except RuntimeError as error:
        raise BackboneError(f"timm cannot make {model!r}: {error}") from error
    preprocess = _preprocess(name, timm.data.resolve_data_config(pretrained_cfg=config))
    path = weights or _download(name, config)
    digest = sha256(path)
    said = f"{path.name}, sha256 {digest[:8]}" if weights else str(config.get("tag") or "pretrained")
    return Backbone(FeatureSpec(name, digest, preprocess), said, partial(_build, model, path, digest), path)


def _preprocess(name: str, config: dict[str, Any]) -> Preprocess:
    channels, height, width = config["input_size"]
    mode = config["crop_mode"]
    if channels != 3 or height != width or mode not in ("center", "squash"):
        raise BackboneError(
            f"{name} wants {channels} x {height} x {width} input with crop mode {mode!r}, "
            "only square RGB input with a centre crop is supported: choose another model"
        )
    return Preprocess(
        resize=math.floor(height / config["crop_pct"]),
        crop=height,
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        resize_mode="squash" if mode == "squash" else "short",
    )


def _download(name: str, config: Mapping[str, Any]) -> Path:
    repository, url = config.get("hf_hub_id"), config.get("url")
    if repository:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import LocalEntryNotFoundError
        from huggingface_hub.utils import logging as hub_logging

        verbosity = hub_logging.get_verbosity()
        hub_logging.set_verbosity_error()  # type: ignore[no-untyped-call] # its retries; the failure is said once, below
        wanted = (repository, config.get("hf_hub_filename") or "model.safetensors")
        try:
            try:
                return Path(hf_hub_download(*wanted, local_files_only=True))
            except LocalEntryNotFoundError:
                _logger.warning("downloading the weights of %s from %s", name, repository)
                return Path(hf_hub_download(*wanted))
        except Exception as error:  # the hub client raises many types, all of them mean: not to be had
            raise WeightsUnavailableError(
                f"cannot download {wanted[1]} of {repository} for {name} ({type(error).__name__}): "
                "name a copy of it with --weights"
            ) from error
        finally:
            hub_logging.set_verbosity(verbosity)
    if url:
        return obtain(url)
    raise WeightsUnavailableError(f"timm has no pretrained weights for {name}: give --weights FILE")


def network(model: str) -> nn.Module:
    """Return an untrained model that ends at the input of its classification layer; raises `BackboneError`."""
    import_torchvision()
    import timm

    if not timm.is_model(_ALIASES.get(model, model)):  # others, as hf-hub:NAME, would be looked for on the web
        raise BackboneError(f"timm has no model {model!r}")
    made: nn.Module = timm.create_model(_ALIASES.get(model, model), pretrained=False, num_classes=0)
    return made


@drawing_apart
def _build(model: str, path: Path, digest: str) -> nn.Module:
    import timm

    network: nn.Module = timm.create_model(model, pretrained=False)
    tensors = list(network.state_dict())
    network.reset_classifier(0)  # type: ignore[operator]
    fill(network, read_state(path, digest), droppable=tensors, source=str(path))
    return network.eval()
