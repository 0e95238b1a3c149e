"""Blocks of networks: their names, which of them are unfrozen, and that a network cut in two computes the same."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from finetune_rows import CROP, Toy, toy
from torch import nn

from featcache.backbones.vision_import import import_torchvision
from featcache.errors import TrainingError
from featcache.tuning.blocks import blocks, cut, unfreeze

pytestmark = pytest.mark.usefixtures("one_thread")


def vision(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from featcache.backbones.torchvision_models import network

        return network(name)[0]

    return build


def timm(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import_torchvision()
        import timm

        return timm.create_model(name, pretrained=False, num_classes=0)  # type: ignore[no-any-return]

    return build


def soak(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.soak, id=values[0])


STAGES = [f"blocks.{number}" for number in range(7)]
NETWORKS: list[Any] = [
    pytest.param("resnet18", vision("resnet18"), 64, ["conv1", "layer1", "layer2", "layer3", "layer4"], id="resnet18"),
    pytest.param(
        "efficientnet_lite0", timm("tf_efficientnet_lite0"), 64, ["conv_stem", *STAGES], id="efficientnet_lite0"
    ),
    soak("mobilenet_v2", vision("mobilenet_v2"), 64, [f"features.{n}" for n in range(18)]),
    soak("vgg16", vision("vgg16"), 224, None),
    soak("densenet121", vision("densenet121"), 64, None),
    soak("vit_b_16", vision("vit_b_16"), 224, None),
    soak("xception", timm("xception"), 96, None),
]


def stir(network: nn.Module) -> nn.Module:
    """Give BatchNorm statistics that are no identity."""
    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features) / 10
            module.running_var = torch.rand(module.num_features) + 0.5
    return network


@pytest.mark.parametrize(("name", "build", "crop", "names"), NETWORKS)
def test_a_network_in_two_is_the_network_to_the_bit(
    name: str, build: Callable[[], nn.Module], crop: int, names: list[str] | None
) -> None:
    torch.manual_seed(0)
    network = stir(build()).eval()
    found = [block.name for block in blocks(network)]
    if names is not None:
        assert found[: len(names)] == names
    assert len(found) >= 4
    x = torch.randn(2, 3, crop, crop)
    with torch.no_grad():
        expected = network(x)
        for asked, count in (("last", 1), ("2", 2)):
            made = cut(network, name, asked, crop)
            assert made.names == tuple(found[-count:])
            assert made.entry == found[-count]
            below = made.lower(x)
            assert tuple(below.shape[1:]) == made.shape != (3, crop, crop)
            assert torch.equal(made.upper(below), expected)
            assert made.dim == expected.shape[1]


def test_resnet_has_the_blocks_of_the_literature_and_all_parameters_belong_to_one() -> None:
    network = vision("resnet18")()
    found = blocks(network)
    assert [block.name for block in found] == ["conv1", "layer1", "layer2", "layer3", "layer4"]
    assert found[0].paths == ("conv1", "bn1")
    owned = [p for block in found for path in block.paths for p in network.get_submodule(path).parameters()]
    assert {id(p) for p in owned} == {id(p) for p in network.parameters()}
    assert len(owned) == len(list(network.parameters()))


def test_a_layer_between_blocks_belongs_to_the_one_before_and_few_blocks_are_looked_into() -> None:
    def block() -> nn.Module:
        return nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))

    parts: dict[str, nn.Module] = {"stem": nn.Conv2d(3, 4, 1), "norm": nn.BatchNorm2d(4), "one": block()}
    parts |= {"between": nn.Conv2d(4, 4, 1), "pool": nn.MaxPool2d(2), "two": block(), "three": block()}
    wide = nn.Sequential(OrderedDict({**parts, "four": block(), "last": nn.BatchNorm2d(4)}))
    found = {block.name: block.paths for block in blocks(wide)}
    assert found == {
        "stem": ("stem", "norm"),
        "one": ("one", "between"),
        "two": ("two",),
        "three": ("three",),
        "four": ("four", "last"),
    }
    nested = nn.Sequential(OrderedDict({"features": wide, "norm": nn.BatchNorm2d(4)}))
    assert [block.name for block in blocks(nested)] == [f"features.{name}" for name in found]
    assert blocks(nested)[-1].paths == ("features.four", "features.last", "norm")


def test_the_small_net_from_nothing_has_a_block_a_layer() -> None:
    from featcache.backbones.scratch_cnn import network

    assert [block.name for block in blocks(network())] == ["0", "3", "6", "9", "13"]


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ("head", []),
        ("last", ["layer4"]),
        ("1", ["layer4"]),
        ("3", ["layer2", "layer3", "layer4"]),
        ("layer3", ["layer3", "layer4"]),
        ("5", ["conv1", "layer1", "layer2", "layer3", "layer4"]),
        ("all", ["conv1", "layer1", "layer2", "layer3", "layer4"]),
    ],
)
def test_what_is_asked_for_is_unfrozen_and_nothing_else(asked: str, names: list[str]) -> None:
    network = toy()
    assert [block.name for block in unfreeze(network, "toy", asked)] == names
    made = cut(network, "toy", asked, CROP)
    assert made.names == tuple(names)
    unfrozen = {name.split(".")[0] for name, p in network.named_parameters() if p.requires_grad}
    assert unfrozen == {*names, *(["bn1"] if "conv1" in names else [])}
    assert not any(module.training for module in network.modules())
    x = torch.randn(2, 3, CROP, CROP)
    with torch.no_grad():
        assert torch.equal(made.upper(made.lower(x)), network(x))
    entries = {"head": "the top", "all": "the network", "5": "the network"}
    assert made.entry == entries.get(asked, (names or [""])[0])


@pytest.mark.parametrize("asked", ["0", "6", "99", "layer9", "", "-1", "fc", "layer4.0", "1.5"])
def test_what_is_not_there_is_refused_with_the_list_of_blocks(asked: str) -> None:
    with pytest.raises(TrainingError, match=r"toy .*conv1, layer1, layer2, layer3, layer4") as caught:
        cut(toy(), "toy", asked, CROP)
    assert asked in str(caught.value)


class Crossing(Toy):
    """Two tensors go from the third block to the fourth."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.layer2(self.layer1(self.conv1(x)))
        return (self.layer4(self.layer3(a)) + a).mean((2, 3))  # type: ignore[no-any-return]


class Untraceable(Toy):
    """What is done depends on the values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if x.sum() < 1e9 else x


@pytest.mark.parametrize(("network", "asked"), [(Crossing(), "last"), (Untraceable(), "last"), (Untraceable(), "2")])
def test_a_network_that_cannot_be_cut_is_all_above(network: nn.Module, asked: str) -> None:
    made = cut(network, "toy", asked, CROP)
    x = torch.randn(2, 3, CROP, CROP)
    assert made.entry == "the network"
    assert made.shape == (3, CROP, CROP)
    assert torch.equal(made.lower(x), x)
    with torch.no_grad():
        assert torch.equal(made.upper(x), network.eval()(x))
    assert {name.split(".")[0] for name, p in network.named_parameters() if p.requires_grad} == set(made.names)


def test_a_network_that_is_joined_by_two_tensors_is_cut_where_one_is_enough() -> None:
    network = Crossing()
    made = cut(network, "toy", "2", CROP)
    x = torch.randn(2, 3, CROP, CROP)
    assert made.entry == "layer3"
    with torch.no_grad():
        assert torch.equal(made.upper(made.lower(x)), network(x))


def test_timms_vit_is_all_above_or_cut_where_it_computes_the_same() -> None:
    network = timm("vit_tiny_patch16_224")().eval()
    made = cut(network, "vit", "last", 224)
    assert made.entry == "the network"
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(made.upper(made.lower(x)), network(x))


def test_both_parts_share_the_weights_of_the_network() -> None:
    network = toy()
    made = cut(network, "toy", "last", CROP)
    x = torch.randn(1, 3, CROP, CROP)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.5)
        assert torch.equal(made.upper(made.lower(x)), network(x))
