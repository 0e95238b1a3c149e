"""The torch engine: its input to the bit, its vectors in and out of a batch, and its refusals."""

from __future__ import annotations

import dataclasses
import io
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_picture
from joblib import cpu_count
from PIL import Image

import featcache
from featcache import Options
from featcache.backbones import Backbone, resolve
from featcache.backbones.torchvision_models import RESNET18_PREPROCESS
from featcache.decode import Pixels, decode
from featcache.embed import open_engine
from featcache.embed.torch_engine import TorchEngine, normalise
from featcache.errors import BackboneError, DeviceError
from featcache.records import FeatureSpec, FloatArray, Preprocess

SIDE = 64
"""Convolutional networks take any size; a small one keeps the run short."""


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def resnet18(models: Any) -> torch.nn.Module:
    """A seeded resnet18 without its classification layer, in training mode as torchvision makes it."""
    torch.manual_seed(1)
    network: torch.nn.Module = models.resnet18(weights=None)
    network.fc = torch.nn.Identity()
    generator = torch.Generator().manual_seed(2)
    for name, tensor in network.state_dict().items():
        if name.endswith("running_mean"):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
        elif name.endswith("running_var"):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return network


@pytest.fixture(scope="module")
def backbone(resnet18: torch.nn.Module) -> Iterator[Backbone]:
    """The seeded resnet18 as a backbone of its own weights file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "resnet18.pth"
        torch.save(resnet18.state_dict(), path)
        yield resolve("resnet18", path)


def _pixels(n: int, seed: int = 3, size: int = SIDE) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def _input(pixels: Pixels, preprocess: Preprocess = RESNET18_PREPROCESS) -> torch.Tensor:
    return normalise(torch.from_numpy(pixels), preprocess)


def _close(one: FloatArray, other: FloatArray, rtol: float = 1e-4) -> None:
    np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol * 0.01 * float(np.abs(other).max()))


class _Padded(torch.nn.Conv2d):
    """A convolution with code of its own."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        side = int(images.shape[-1]) + 1  # tracing cannot go through this
        return super().forward(torch.nn.functional.interpolate(images, size=side))


class _Odd(torch.nn.Module):
    """A network whose BatchNorms stand where folding them into a convolution must be done with care, or not at all."""

    def __init__(self, case: str) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.case = case
        self.first = _Padded(3, 3, 3) if case == "a convolution of its own" else torch.nn.Conv2d(3, 3, 3)
        self.norm, self.other = torch.nn.BatchNorm2d(3), torch.nn.BatchNorm2d(3)
        for norm in (self.norm, self.other):
            for tensor in norm.state_dict().values():
                if tensor.is_floating_point():
                    tensor.copy_(torch.rand(3) + 0.5)
        if case == "statistics of the batch":
            self.norm = torch.nn.BatchNorm2d(3, track_running_stats=False)

    def forward(self, images: torch.Tensor) -> Any:
        x = self.first(images)
        if self.case == "also used as it is":
            return self.norm(x) + x
        if self.case == "one convolution, two norms":
            return self.norm(x) * self.other(self.first(images * 2))
        if self.case == "one norm, twice":
            return self.norm(self.norm(x))
        return self.norm(x)


# Input


@pytest.mark.parametrize(
    "size",
    [
        (640, 480),
        (480, 641),
        (224, 224),
        (256, 256),
        (256, 259),
        (263, 256),
        (257, 300),
        (300, 255),
        (97, 53),
        (31, 700),
        (1, 1),
    ],
    ids=lambda size: f"{size[0]}x{size[1]}",
)
def test_network_input_equals_torchvisions_transform_to_the_bit(models: Any, size: tuple[int, int]) -> None:
    picture = Image.fromarray(np.random.default_rng(4).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    file = io.BytesIO()
    picture.save(file, "PNG")
    expected = models.ResNet18_Weights.IMAGENET1K_V1.transforms()(picture)
    pixels = np.stack([decode(file.getvalue(), RESNET18_PREPROCESS)])
    found = _input(pixels)
    assert found.dtype == torch.float32
    assert found.shape == (1, 3, 224, 224)
    assert torch.equal(found[0], expected)


def test_normalising_a_batch_keeps_its_order_and_leaves_the_pixels_alone() -> None:
    pixels = _pixels(3)
    before = pixels.copy()
    together = _input(pixels)
    assert np.array_equal(pixels, before)
    for i in range(3):
        assert torch.equal(together[i], _input(pixels[i : i + 1])[0])


def test_each_channel_has_its_own_mean_and_deviation() -> None:
    preprocess = dataclasses.replace(RESNET18_PREPROCESS, mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 0.25))
    white = np.full((1, 2, 2, 3), 255, np.uint8)
    assert _input(white, preprocess)[0, :, 0, 0].tolist() == [1.0, 1.0, 0.0]
    assert _input(white * 0, preprocess)[0, :, 0, 0].tolist() == [0.0, -1.0, -4.0]


# Vectors


def test_vectors_are_those_of_the_network_in_eval_mode(backbone: Backbone, resnet18: torch.nn.Module) -> None:
    pixels = _pixels(3)
    vectors = open_engine(backbone, "cpu").embed(pixels)
    assert vectors.dtype == np.float32
    assert vectors.shape == (3, 512)
    assert vectors.flags.c_contiguous
    resnet18.eval()
    with torch.no_grad():
        expected = resnet18(_input(pixels)).numpy()
    _close(vectors, expected)
    assert np.abs(vectors[0] - vectors[1]).max() > 100 * 1e-4 * np.abs(vectors).max()


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0"])
def test_a_picture_has_the_same_vector_alone_and_in_a_batch(name: str, backbone: Backbone) -> None:
    engine = open_engine(backbone if name == "resnet18" else resolve(name), "cpu")
    pixels = _pixels(4, size=224)
    together = engine.embed(pixels)
    alone = np.concatenate([engine.embed(pixels[i : i + 1]) for i in range(4)])
    _close(alone, together)
    _close(engine.embed(pixels[::-1].copy()), together[::-1])


def test_embedding_changes_neither_statistics_nor_weights(backbone: Backbone) -> None:
    network = backbone.build()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    engine = open_engine(dataclasses.replace(backbone, build=lambda: network), "cpu")
    first = engine.embed(_pixels(2))
    engine.embed(_pixels(3, seed=99) // 4)
    assert np.array_equal(engine.embed(_pixels(2)), first)
    after = network.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not any(module.training for module in network.modules())


def test_two_engines_of_one_backbone_agree_to_the_bit(backbone: Backbone) -> None:
    pixels = _pixels(2)
    assert np.array_equal(open_engine(backbone, "cpu").embed(pixels), open_engine(backbone, "cpu").embed(pixels))


def test_batches_on_the_cpu_run_side_by_side_with_a_thread_each(backbone: Backbone) -> None:
    seen: list[tuple[str, int]] = []

    class Noting(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append((threading.current_thread().name, torch.get_num_threads()))
            return images[:, :, 0, 0]

    torch.set_num_threads(3)  # the fixture sets it back
    engine = open_engine(dataclasses.replace(backbone, build=Noting), "cpu", pictures=10**6)
    seen.clear()
    assert engine.lanes == cpu_count()
    pixels = _pixels(engine.lanes, size=224)
    with ThreadPoolExecutor(engine.lanes, thread_name_prefix="lane") as threads:
        vectors = np.concatenate(list(threads.map(lambda row: engine.embed(pixels[row : row + 1]), range(len(pixels)))))
    assert np.array_equal(engine.embed(pixels), vectors)
    assert {count for _, count in seen} == {1}
    assert len(seen) == len(pixels) + 1
    assert torch.get_num_threads() == 3
    with ThreadPoolExecutor(1) as other:
        assert other.submit(torch.get_num_threads).result() == 3


@pytest.mark.parametrize(("pictures", "size"), [(1, 1), (3 * cpu_count(), 3), (3 * cpu_count() - 1, 3), (10**6, 16)])
def test_few_pictures_are_shared_out_among_the_cores(pictures: int, size: int, backbone: Backbone) -> None:
    assert open_engine(backbone, "cpu", pictures=pictures).batch_size == size


def test_maps_and_half_precision_become_flat_float32_vectors(backbone: Backbone) -> None:
    class Maps(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images[:, :, :2, :2].half()

    pixels = _pixels(2)
    engine = open_engine(dataclasses.replace(backbone, build=Maps), "cpu")
    vectors = engine.embed(pixels)
    assert vectors.dtype == np.float32
    expected = _input(pixels, backbone.spec.preprocess)[:, :, :2, :2].half().float().numpy().reshape(2, 12)
    assert np.array_equal(vectors, expected)


@pytest.mark.parametrize("kind", [torch.nn.Sigmoid, torch.nn.SiLU, torch.nn.GELU, torch.nn.Tanh])
@pytest.mark.parametrize("is_flat", [False, True])
def test_activations_have_the_same_bits_in_a_batch_of_any_size(
    kind: type[torch.nn.Module], is_flat: bool, backbone: Backbone
) -> None:
    network = torch.nn.Sequential(torch.nn.AvgPool2d(13), *([torch.nn.Flatten()] if is_flat else []), kind())
    opened = open_engine(dataclasses.replace(backbone, build=lambda: network), "cpu")
    pixels = _pixels(16, size=RESNET18_PREPROCESS.crop)
    whole = opened.embed(pixels)
    assert whole.shape == (16, 3 * 17 * 17)
    for size in range(1, 16):
        np.testing.assert_array_equal(opened.embed(pixels[:size]), whole[:size])
    _close(whole, network(_input(pixels)).flatten(1).numpy())


@pytest.mark.parametrize(
    "case",
    [
        "plain",
        "a convolution of its own",
        "also used as it is",
        "one convolution, two norms",
        "one norm, twice",
        "statistics of the batch",
    ],
)
def test_vectors_do_not_change_where_batchnorm_is_folded(case: str, backbone: Backbone) -> None:
    network, pixels = _Odd(case).eval(), _pixels(2, size=RESNET18_PREPROCESS.crop)
    with torch.no_grad():
        expected = network(_input(pixels, backbone.spec.preprocess)).flatten(1).numpy()
    _close(open_engine(dataclasses.replace(backbone, build=lambda: network), "cpu").embed(pixels), expected)


def test_batchnorm_of_timm_is_folded_with_its_activation_kept() -> None:
    backbone = resolve("efficientnet_lite0")
    pixels = _pixels(2, size=224)
    with torch.no_grad():
        expected = backbone.build()(_input(pixels, backbone.spec.preprocess)).numpy()
    engine = TorchEngine(backbone, "cpu")
    _close(engine.embed(pixels), expected)
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in engine._network.modules())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_give_no_finite_vector_are_refused(
    value: float, resnet18: torch.nn.Module, tmp_path: Path
) -> None:
    for number in range(2):
        write_picture(tmp_path / "photos" / f"{number}.png", number)
    state = {name: tensor.clone() for name, tensor in resnet18.state_dict().items()}
    state["layer4.1.bn2.bias"][7] = value
    path = tmp_path / "net.pth"
    torch.save(state, path)
    with pytest.raises(BackboneError, match=r"resnet18 .*not finite"):
        featcache.extract(tmp_path / "photos", Options("resnet18", path, tmp_path / "cache", engine="torch"))


# Devices


def _unbuildable() -> torch.nn.Module:
    raise AssertionError("a device that is not there is refused before the network is built")


UNBUILT = Backbone(FeatureSpec("resnet18", "0" * 64, RESNET18_PREPROCESS), "none", _unbuildable)


@pytest.mark.parametrize("name", ["", "gpu", "cuda:x", "CPU", "cpu:1", "meta", "cuda:99", "tpu"])
def test_an_unknown_or_missing_device_is_an_error_that_names_it(name: str) -> None:
    with pytest.raises(DeviceError) as caught:
        open_engine(UNBUILT, name)
    assert repr(name) in str(caught.value)
    assert "cpu" in str(caught.value).replace(repr(name), "")


@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
def test_a_gpu_by_name_without_a_gpu_is_an_error(name: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("this computer has a GPU")
    with pytest.raises(DeviceError, match=f"'{name}'"):
        open_engine(UNBUILT, name)


@pytest.mark.parametrize("name", ["cpu", "cpu:0"])
def test_the_cpu_is_always_there(name: str, backbone: Backbone) -> None:
    engine = open_engine(dataclasses.replace(backbone, build=torch.nn.Identity), name)
    assert torch.device(engine.device).type == "cpu"
    assert engine.batch_size >= 1


def test_auto_is_a_device_that_works(backbone: Backbone) -> None:
    engine = open_engine(dataclasses.replace(backbone, build=torch.nn.Identity), "auto")
    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        assert torch.device(engine.device).type == "cpu"
    assert engine.embed(_pixels(2)).shape == (2, 3 * SIDE * SIDE)
