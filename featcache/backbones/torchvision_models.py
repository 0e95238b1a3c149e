"""The name of a torchvision classification model enters; its network, cut before the classification layer, leaves."""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.backbones.base import Backbone
from featcache.backbones.draws import drawing_apart
from featcache.backbones.vision_import import import_torchvision
from featcache.backbones.weights import fill, obtain, read_state, sha256
from featcache.errors import BackboneError
from featcache.records import FeatureSpec, Preprocess

if TYPE_CHECKING:
    from torch import nn

RESNET18_URL = "https://download.pytorch.org/models/resnet18-f37072fd.pth"
RESNET18_PREPROCESS = Preprocess(
    resize=256, crop=224, interpolation="bilinear", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)
"""What torchvision says of the default backbone, kept here so that a warm cache answers without importing torch."""

_OPTIONS: dict[str, dict[str, Any]] = {
    "vit_h_14": {"image_size": 518},  # the only weights it has are for this size
    # The next two undo the normalisation inside the network when they carry ImageNet weights.
    "googlenet": {"transform_input": True, "init_weights": False},
    "inception_v3": {"transform_input": True, "init_weights": False},
}
_AUXILIARY = ("aux1", "aux2", "AuxLogits")

CONVOLUTIONS = ".features"
"""Behind the name of a model with several fully connected layers: only its convolutions, averaged over the picture."""


def resolve(name: str, weights: Path | None) -> Backbone:
    """Return a torchvision model with its ImageNet weights, or those in the file `weights`.

    The pinned weights are `IMAGENET1K_V1`, or torchvision's default where a model has none of that name. Raises
    `BackboneError` for an unknown name and `WeightsError` as `weights.obtain` and `weights.sha256` do.
    """
    if name == "resnet18":
        preprocess, said = RESNET18_PREPROCESS, "IMAGENET1K_V1"
        path = weights or obtain(RESNET18_URL)
    else:
        entry = _entry(name)
        preprocess, said = _preprocess(entry.transforms()), entry.name
        path = weights or obtain(entry.url)
    digest = sha256(path)
    if weights:
        said = f"{path.name}, sha256 {digest[:8]}"
    spec = FeatureSpec(name, digest, preprocess)
    if name.endswith(CONVOLUTIONS):
        spec = replace(spec, pooling="average of the convolutions")
    return Backbone(spec, said, partial(_build, name, path, digest), path)


def names() -> list[str]:
    """Return the names of torchvision's classification models."""
    import_torchvision()
    from torchvision import models

    found: list[str] = models.list_models(module=models)
    return found


def network(name: str) -> tuple[nn.Module, list[str]]:
    """Return an untrained model that ends at the input of its classification layer, and its tensors' names before."""
    import_torchvision()
    from torch import nn
    from torchvision import models

    whole = name.removesuffix(CONVOLUTIONS)
    model: nn.Module = models.get_model(whole, weights=None, **_OPTIONS.get(whole, {}))
    tensors = list(model.state_dict())
    if whole != name:
        parts = ("features", model.get_submodule("features")), ("average", nn.AdaptiveAvgPool2d(1))
        return nn.Sequential(OrderedDict([*parts, ("flatten", nn.Flatten())])), tensors
    for auxiliary in _AUXILIARY:
        if hasattr(model, auxiliary):
            setattr(model, auxiliary, None)
    kind = nn.Conv2d if name.startswith("squeezenet") else nn.Linear  # squeezenet classifies, then pools
    last = [path for path, module in model.named_modules() if isinstance(module, kind)][-1]
    parent, _, child = last.rpartition(".")
    setattr(model.get_submodule(parent), child, nn.Identity())
    return model, tensors


def _entry(name: str) -> Any:
    known = names()
    whole = name.removesuffix(CONVOLUTIONS)
    if whole not in known:
        raise BackboneError(f"unknown backbone {name!r}{_suggest(name, known)}")
    if whole != name and not whole.startswith(("alexnet", "vgg")):
        raise BackboneError(f"{whole} averages its convolutions already: leave out {CONVOLUTIONS}")
    from torchvision import models

    enum = models.get_model_weights(whole)
    return getattr(enum, "IMAGENET1K_V1", enum.DEFAULT)


def _suggest(name: str, known: list[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, ["efficientnet_lite0", *known], n=3)
    if close:
        return f": did you mean {', '.join(close)}?"
    return ": use efficientnet_lite0, a torchvision classification model such as resnet50, or timm:NAME"


def _preprocess(preset: Any) -> Preprocess:
    return Preprocess(
        resize=preset.resize_size[0],
        crop=preset.crop_size[0],
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )


@drawing_apart
def _build(name: str, path: Path, digest: str) -> nn.Module:
    model, tensors = network(name)
    state = read_state(path, digest)
    if name.startswith("densenet"):  # its files carry names that torchvision itself rewrites: norm.1 -> norm1
        state = {re.sub(r"\.(norm|relu|conv)\.([12])\.", r".\1\2.", key): tensor for key, tensor in state.items()}
    fill(model, state, droppable=tensors, source=str(path))
    return model.eval()
