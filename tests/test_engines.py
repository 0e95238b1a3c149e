"""The engines: equal vectors from torch and ONNX Runtime, who is chosen, and what happens when one fails."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import Result, write_picture
from finetune_rows import Toy, install
from PIL import Image

import featcache.embed
from featcache.backbones import Backbone, resolve
from featcache.backbones.efficientnet_lite0 import NAME as LITE
from featcache.backbones.torchvision_models import network
from featcache.decode import Pixels
from featcache.embed import check_running, exported, open_engine
from featcache.embed.engine import available_memory, batch_that_fits
from featcache.embed.reference import REFERENCE
from featcache.embed.torch_engine import TorchEngine, normalise
from featcache.errors import DeviceError, EngineError
from featcache.load import load
from featcache.records import FloatArray
from featcache.store import Cache

Run = Callable[..., Result]

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

NAMES = ["resnet18", LITE]
ORT_NO_MEMORY = (
    "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Div node. Name:'node_div' Status "
    "Message: bfc_arena.cc:360 void* onnxruntime::BFCArena::AllocateRawInternal(size_t, bool, onnxruntime::Stream*) "
    "Failed to allocate memory for requested buffer of size 180633600"
)
TORCH_NO_MEMORY = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "963379200 bytes. Error code 12 (Cannot allocate memory)"
)
"""What the two libraries said under a limit of address space."""


def scenes(n: int, size: int = 224, seed: int = 0) -> Pixels:
    """Return pictures (n, size, size, 3) with soft shapes, hard edges and grain, as photographs have."""
    random = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(0, 1, size), np.linspace(0, 1, size))
    found = []
    for _ in range(n):
        canvas = random.uniform(40, 200, 3) + 60 * (x * random.normal() + y * random.normal())[:, :, None]
        for _ in range(12):
            (left, top), radius = random.uniform(0, 1, 2), random.uniform(0.05, 0.4)
            inside = (x - left) ** 2 + (y - top) ** 2 * random.uniform(0.3, 3) < radius**2
            canvas[inside] = 0.5 * canvas[inside] + 0.5 * random.uniform(0, 255, 3)
        found.append((canvas + random.normal(0, 8, canvas.shape)).clip(0, 255).astype(np.uint8))
    return np.stack(found)


def apart(one: FloatArray, other: FloatArray) -> float:
    """Return the largest distance of two vectors of a picture, relative to their length."""
    assert one.shape == other.shape
    return float((np.linalg.norm(one - other, axis=1) / np.linalg.norm(other, axis=1)).max())


def find(name: str, seeded_weights: Path) -> Backbone:
    return resolve(name, seeded_weights if name == "resnet18" else None)


@pytest.fixture(scope="module")
def exports(seeded_weights: Path) -> Iterator[dict[str, Path]]:
    """A cache folder for each of two backbones, with nothing but its exported network."""
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for name in NAMES:
            with Cache(Path(folder) / name / "made") as cache:
                exported(find(name, seeded_weights), cache.networks)
            found[name] = Path(folder) / name / "cache"
            shutil.copytree(cache.folder / "networks", found[name] / "networks", copy_function=os.link)
        yield found


@pytest.fixture
def kept(exports: dict[str, Path], tmp_path: Path) -> Path:
    """The cache of commands run in `tmp_path`, with the exported seeded resnet18."""
    shutil.copytree(exports["resnet18"], tmp_path / "cache", copy_function=os.link)
    return tmp_path / "cache"


@pytest.fixture
def exporting(exports: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let an export of the seeded resnet18 take no time; return the names of the networks that were exported."""
    done: list[str] = []
    (path,) = (exports["resnet18"] / "networks").iterdir()

    def export(backbone: Backbone) -> bytes:
        done.append(backbone.name)
        return path.read_bytes()

    monkeypatch.setattr("featcache.embed.exporting.export", export)
    return done


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """A flat folder of nine pictures, old enough for their stat to be trusted."""
    for number, pixels in enumerate(scenes(9, 96)):
        (tmp_path / "few").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "few" / f"{number}.png")
        os.utime(tmp_path / "few" / f"{number}.png", (1, 1))
    return tmp_path / "few"


@pytest.fixture(scope="module")
def expected(seeded_weights: Path) -> FloatArray:
    """The vectors of `few`, from the network itself."""
    from featcache.decode import crops

    backbone = resolve("resnet18", seeded_weights)
    steps = backbone.spec.preprocess
    pixels = np.stack([crops(Image.fromarray(p), steps, ["original"])[0] for p in scenes(9, 96)])
    with torch.inference_mode():
        vectors: FloatArray = backbone.build()(normalise(torch.from_numpy(pixels), steps)).numpy()
    return vectors


def vectors(cache: Path, fingerprint: str, root: Path) -> FloatArray:
    """Return the vectors that the cache holds of a dataset, in the order of their paths."""
    with Cache(cache) as opened:
        rows = opened.catalog.dataset(str(root))
        return load(sorted(rows, key=lambda row: row.item.path), opened.store(fingerprint)).X


def refused(result: Result, *words: str) -> None:
    """A command failed with one line that has these words, and nothing on stdout."""
    lines = [line for line in result.err.splitlines() if line.startswith("featcache: ")]
    assert (result.code, result.out) == (1, ""), result
    assert "Traceback" not in result.err
    assert all(word in lines[-1] for word in words), lines


def warnings_of(result: Result) -> list[str]:
    lines = [line for line in result.err.splitlines() if line.startswith("featcache: ")]
    return [line for line in lines if not line.startswith("featcache: exporting ")]


# --- two engines, the same vectors ---


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_engines_agree_alone_and_in_batches_in_any_order(
    name: str, exports: dict[str, Path], seeded_weights: Path
) -> None:
    backbone, pixels = find(name, seeded_weights), scenes(6)
    with Cache(exports[name]) as cache:
        engines = [open_engine(backbone, "cpu", kind, cache.networks) for kind in ("torch", "onnx")]
    assert [engine.name for engine in engines] == ["torch", "onnx"]
    exact = engines[0].embed(pixels)
    assert apart(exact[::-1].copy(), exact) > 0.01  # other pictures have other vectors
    order = [4, 0, 5, 2, 1, 3]
    for engine in engines:
        found = engine.embed(pixels)
        assert (found.dtype, found.shape) == (np.float32, exact.shape)
        assert apart(found, exact) < 1e-4
        assert apart(np.concatenate([engine.embed(pixels[i : i + 1]) for i in range(6)]), exact) < 1e-4
        assert apart(engine.embed(pixels[order]), exact[order]) < 1e-4
        assert apart(np.concatenate([engine.embed(pixels[:5]), engine.embed(pixels[5:])]), exact) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torch", "onnx"])
@pytest.mark.parametrize("name", NAMES)
def test_a_picture_has_the_same_bits_in_a_batch_of_any_size(
    name: str, engine: str, exports: dict[str, Path], seeded_weights: Path
) -> None:
    with Cache(exports[name]) as cache:
        opened = open_engine(find(name, seeded_weights), "cpu", engine, cache.networks)
        pixels = scenes(17)
        whole = opened.embed(pixels)
        for size in (1, 3, 8, 16):
            np.testing.assert_array_equal(opened.embed(pixels[:size]), whole[:size])


def test_layers_behind_the_pooling_add_up_in_one_order_too(models: Any, tmp_path: Path) -> None:
    import torch

    torch.manual_seed(0)
    torch.save(models.mobilenet_v3_small().state_dict(), tmp_path / "mobile.pth")
    opened = TorchEngine(resolve("mobilenet_v3_small", tmp_path / "mobile.pth"), "cpu")
    pixels = scenes(16)
    whole = opened.embed(pixels)
    for size in (1, 2, 5, 15):
        np.testing.assert_array_equal(opened.embed(pixels[:size]), whole[:size])


def test_several_threads_may_use_an_engine_at_once(exports: dict[str, Path], seeded_weights: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    backbone, pixels = find("resnet18", seeded_weights), scenes(8)
    with Cache(exports["resnet18"]) as cache:
        engine = open_engine(backbone, "cpu", "onnx", cache.networks, 1000)
    exact = engine.embed(pixels)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(engine.embed, [pixels[i : i + 2] for i in range(0, 8, 2)] * 3))
    for turn in range(3):
        assert apart(np.concatenate(found[4 * turn : 4 * turn + 4]), exact) < 1e-5


ZOO = [
    *("alexnet", "vgg11", "resnet50", "densenet121", "squeezenet1_0", "mobilenet_v2", "mobilenet_v3_small"),
    *("shufflenet_v2_x0_5", "efficientnet_b0", "regnet_y_400mf", "convnext_tiny", "vit_b_16", "swin_t"),
    *("googlenet", "inception_v3", "timm:resnet10t", "timm:mobilenetv3_small_100", "timm:efficientnet_lite0"),
    *("timm:vit_tiny_patch16_224", "timm:regnetx_002", "timm:convnext_atto", "timm:mixer_s32_224"),
    "mnasnet0_5",
]


REFUSED: set[str] = set()
"""Backbones that cannot be exported, or that ONNX Runtime computes otherwise."""


@pytest.mark.soak
@pytest.mark.parametrize("name", ZOO)
def test_every_backbone_has_equal_vectors_from_both_engines_or_is_refused(name: str, tmp_path: Path) -> None:
    path = random_weights(name, tmp_path)
    try:
        backbone = resolve(name, path)
        pixels = scenes(5, backbone.spec.preprocess.crop)
        with torch.inference_mode():
            plain = backbone.build()(normalise(torch.from_numpy(pixels), backbone.spec.preprocess)).flatten(1).numpy()
        assert apart(open_engine(backbone, "cpu").embed(pixels), plain) < 1e-4
        with Cache(tmp_path / "cache") as cache:
            try:
                engine = open_engine(backbone, "cpu", "onnx", cache.networks)
            except EngineError:
                assert name in REFUSED
                return
            assert apart(engine.embed(pixels), plain) < 1e-4
            assert apart(np.concatenate([engine.embed(pixels[i : i + 1]) for i in range(5)]), plain) < 1e-4
    finally:
        path.unlink()
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)


MORE = [
    *("resnet18", "regnet_x_400mf", "resnext50_32x4d", "timm:regnety_002", "timm:repvgg_a0"),
    *("timm:tf_efficientnetv2_b0", "timm:ghostnet_100", "timm:levit_128s", "timm:efficientformer_l1"),
    *(
        "timm:coatnet_0_rw_224",
        "timm:eca_resnet33ts",
        "timm:edgenext_xx_small",
        "timm:mobilevit_xxs",
        "timm:fastvit_t8",
    ),
]


@pytest.mark.soak
@pytest.mark.parametrize("name", [*ZOO, *MORE])
def test_every_backbone_has_the_same_bits_in_torch_in_a_batch_of_any_size(name: str, tmp_path: Path) -> None:
    opened = TorchEngine(resolve(name, random_weights(name, tmp_path)), "cpu")
    pixels = scenes(17, opened._preprocess.crop)
    whole = opened.embed(pixels)
    for size in (1, 2, 3, 5, 7, 8, 11, 13, 15, 16):
        np.testing.assert_array_equal(opened.embed(pixels[:size]), whole[:size], f"{size} pictures")
    np.testing.assert_array_equal(opened.embed(pixels[3:9]), whole[3:9])


def random_weights(name: str, folder: Path) -> Path:
    """Write a seeded state dict of a backbone, with statistics that differ from those of a fresh one."""
    torch.manual_seed(3)
    if name.startswith("timm:"):
        import timm

        module = timm.create_model(name.removeprefix("timm:"), pretrained=False)
        module.reset_classifier(0)
    else:
        module, _ = network(name)
    state = module.state_dict()
    for key, tensor in state.items():
        if key.endswith("running_mean"):
            tensor.copy_(torch.randn(tensor.shape) * 0.1)
        elif key.endswith("running_var"):
            tensor.copy_(torch.rand(tensor.shape) + 0.5)
    path = folder / "weights.pth"
    torch.save(state, path)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_folding_batch_norm_leaves_the_vectors_as_they_are(name: str, tmp_path: Path) -> None:
    backbone = find(name, random_weights("resnet18", tmp_path))
    pixels = scenes(3)
    with torch.inference_mode():
        plain = backbone.build()(normalise(torch.from_numpy(pixels), backbone.spec.preprocess)).numpy()
    assert apart(TorchEngine(backbone, "cpu").embed(pixels), plain) < 1e-5
    (tmp_path / "weights.pth").unlink()


# --- the exported network on the disk ---


def test_both_engines_fill_the_same_features(
    run: Run, few: Path, kept: Path, expected: FloatArray, tmp_path: Path
) -> None:
    made = run("extract", few, "--engine", "onnx", "--json", network=True).json
    assert (made["engine"], made["engine_why"], made["computed"]) == ("onnx", "asked for", 9)
    assert apart(vectors(kept, made["fingerprint"], few), expected) < 1e-4
    again = run("extract", few, "--engine", "torch", "--rehash", "--json", network=True).json
    assert (again["fingerprint"], again["reused"], again["computed"]) == (made["fingerprint"], 9, 0)
    other = run("extract", few, "--engine", "torch", "--cache", "other", "--json", network=True).json
    assert (other["fingerprint"], other["engine"], other["device"]) == (made["fingerprint"], "torch", "cpu")
    assert apart(vectors(tmp_path / "other", other["fingerprint"], few), expected) < 1e-5


def test_a_damaged_exported_network_is_put_aside_and_made_again(
    run: Run, few: Path, kept: Path, expected: FloatArray, exporting: list[str]
) -> None:
    (path,) = (kept / "networks").iterdir()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)
    result = run("extract", few, "--engine", "onnx", "--json", network=True)
    assert (result.code, result.json["engine"], result.json["computed"]) == (0, "onnx", 9)
    (put_aside,) = (kept / "bad").iterdir()
    assert put_aside.read_bytes() == bytes(content)
    (said,) = warnings_of(result)
    assert f"the exported network {path} is damaged; moved to {put_aside}" in said
    assert exporting == ["resnet18"]
    assert len(list((kept / "networks").iterdir())) == 1
    assert apart(vectors(kept, result.json["fingerprint"], few), expected) < 1e-4


@pytest.fixture
def deceived(kept: Path, seeded_weights: Path) -> Path:
    """The exported network gives other vectors than were noted when it was made, as on a faulty processor."""
    (path,) = (kept / "networks").iterdir()
    model = onnx.load(path)
    (entry,) = (entry for entry in model.metadata_props if entry.key == REFERENCE)
    noted = np.frombuffer(base64.b64decode(entry.value), np.float32)
    entry.value = base64.b64encode((noted * 1.001).astype(np.float32).tobytes()).decode()
    path.unlink()
    with Cache(kept) as cache:
        cache.networks.keep(resolve("resnet18", seeded_weights).spec.fingerprint, model.SerializeToString())
    return kept


def test_a_network_that_gives_other_vectors_than_noted_is_refused_where_it_was_asked_for(
    run: Run, few: Path, deceived: Path
) -> None:
    result = run("extract", few, "--engine", "onnx", network=True)
    refused(result, "ONNX Runtime gives other vectors for resnet18", "1.0e-03 relative", "use --engine torch")
    assert not list(deceived.rglob("seg-*.h5"))


def test_auto_takes_torch_instead_and_says_so(run: Run, few: Path, deceived: Path, expected: FloatArray) -> None:
    result = run("extract", few, "--json", network=True)
    assert (result.code, result.json["engine"]) == (0, "torch")
    assert result.json["engine_why"] == "ONNX Runtime cannot be used"
    (said,) = warnings_of(result)
    assert "gives other vectors" in said
    assert "the torch engine is used instead" in said
    assert apart(vectors(deceived, result.json["fingerprint"], few), expected) < 1e-5


def test_a_network_that_cannot_be_exported_runs_in_torch(
    run: Run, few: Path, expected: FloatArray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("no translation\nfor aten::novelty")

    monkeypatch.setattr(torch.onnx, "export", fail)
    monkeypatch.setattr(featcache.embed, "EXPORT_PAYS", 5)
    result = run("extract", few, "--json", network=True)
    assert (result.code, result.json["engine"]) == (0, "torch")
    (said,) = warnings_of(result)
    assert "resnet18 cannot be exported to ONNX (ValueError: no translation for aten::novelty)" in said
    assert apart(vectors(tmp_path / "cache", result.json["fingerprint"], few), expected) < 1e-5
    refused(run("extract", few, "--engine", "onnx", "--cache", "new", network=True), "cannot be exported")


# --- who is chosen ---


def test_few_pictures_are_not_worth_an_export(run: Run, few: Path) -> None:
    result = run("extract", few, network=True)
    (line,) = (line for line in result.out.splitlines() if line.startswith("engine"))
    assert line == "engine       torch on cpu: fewer than 1,000 pictures are not worth an export"


def test_an_export_that_is_there_is_used(run: Run, few: Path, kept: Path) -> None:
    found = run("extract", few, "--json", network=True).json
    assert (found["engine"], found["engine_why"]) == ("onnx", "the network is exported already")
    assert kept.exists()


def test_many_pictures_are_worth_the_export(
    run: Run, few: Path, tmp_path: Path, exporting: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(featcache.embed, "EXPORT_PAYS", 10)
    assert run("extract", few, "--json", network=True).json["engine"] == "torch"
    assert exporting == []
    views = run("extract", few, "--views", "flip", "--rehash", "--cache", "new", "--json", network=True).json
    assert (views["engine"], views["engine_why"]) == ("onnx", "18 pictures are worth the export")
    assert exporting == ["resnet18"]
    assert len(list((tmp_path / "new" / "networks").iterdir())) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--engine", "onnx", "--precision", "fp16"), ("no fp16", "--engine torch or auto")),
        (("--engine", "torch", "--precision", "int8"), ("no int8", "--engine onnx or auto")),
        (("--engine", "nonsense"), ("unknown engine 'nonsense'", "auto, torch, onnx")),
        (("--precision", "nonsense"), ("unknown precision 'nonsense'", "fp32, fp16, int8")),
        (("--check",), ("fp32 is what a check compares with", "--draft")),
        (("--device", "cuda:99"), ("there is no device 'cuda:99'", "--device auto or cpu")),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_touched(
    words: tuple[str, ...], said: tuple[str, ...], run: Run, few: Path, kept: Path
) -> None:
    def looked_at() -> dict[Path, int]:
        """All but the run, which says that it was asked for."""
        return {path: path.stat().st_mtime_ns for path in kept.rglob("*") if "runs" not in path.parts}

    before = looked_at()
    refused(run("extract", few, *words, network=True), *said)
    assert looked_at() == before


@pytest.mark.parametrize(("engine", "precision"), [("onnx", "fp32"), ("auto", "int8")])
def test_onnx_and_int8_are_refused_on_a_gpu(engine: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featcache.embed.torch_engine.choose_device", lambda name: torch.device(name))
    with pytest.raises(DeviceError, match="runs on the CPU only, not on 'cuda': use --device cpu"):
        check_running("cuda", engine, precision)
    check_running("cuda", "auto", "fp16")


# --- what is not imported ---

LOOK = """
import json, sys
sys.argv = ["featcache", *json.loads(sys.argv[1])]
import featcache.cli
try:
    featcache.cli.main()
finally:
    heavy = ["torch", "torchvision", "timm", "onnxruntime", "onnx", "sklearn"]
    print(json.dumps([name for name in heavy if name in sys.modules]), file=sys.stderr)
"""


def imported(*words: str | Path) -> tuple[dict[str, Any], list[str]]:
    """Run a command in a new process; return what it printed, and which large libraries it imported."""
    args = json.dumps([str(word) for word in words])
    done = subprocess.run([sys.executable, "-c", LOOK, args], capture_output=True, text=True, check=True)
    return json.loads(done.stdout), json.loads(done.stderr.splitlines()[-1])


@pytest.mark.slow
def test_a_cached_folder_needs_neither_torch_nor_onnxruntime(
    run: Run, few: Path, kept: Path, seeded_weights: Path
) -> None:
    run("extract", few, network=True)
    words = ("extract", few, "--json", "--backbone", "resnet18", "--weights", seeded_weights)
    found, heavy = imported(*words)
    assert (found["reused"], found["computed"], heavy) == (9, 0, [])
    write_picture(few / "new.png", 5)
    found, heavy = imported(*words)
    assert (found["reused"], found["computed"], found["engine"], heavy) == (9, 1, "onnx", ["onnxruntime"])
    assert len(list((kept / "networks").iterdir())) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["squeezenet1_1", "timm:mobilenetv3_small_050"])
def test_the_second_run_of_any_backbone_imports_nothing_and_notices_other_weights(
    name: str, run: Run, few: Path, tmp_path: Path
) -> None:
    weights = random_weights(name, tmp_path)
    words = ("extract", few, "--json", "--backbone", name, "--weights", weights)
    first = run(*words).json
    assert (first["computed"], first["backbone"]) == (9, name)
    found, heavy = imported(*words)
    assert (found["reused"], found["fingerprint"], heavy) == (9, first["fingerprint"], [])
    assert found["weights"] == first["weights"]
    state = torch.load(weights, weights_only=True)
    tensor = next(tensor for tensor in state.values() if tensor.is_floating_point() and tensor.ndim == 4)
    tensor.mul_(1.5)
    torch.save(state, weights)
    other = run(*words).json
    assert (other["reused"], other["computed"]) == (0, 9)
    assert other["fingerprint"] != first["fingerprint"]
    assert other["weights"] != first["weights"]
    assert apart(vectors(tmp_path / "cache", other["fingerprint"], few), _plain(name, weights, few)) < 1e-4


def _plain(name: str, weights: Path, root: Path) -> FloatArray:
    """Return the vectors of a folder's pictures from the network itself."""
    from featcache.decode import decode

    backbone = resolve(name, weights)
    steps = backbone.spec.preprocess
    pixels = np.stack([decode(path.read_bytes(), steps) for path in sorted(root.iterdir())])
    with torch.inference_mode():
        found: FloatArray = backbone.build()(normalise(torch.from_numpy(pixels), steps)).flatten(1).numpy()
    return found


def test_a_note_that_is_broken_is_made_again(run: Run, few: Path, tmp_path: Path) -> None:
    weights = random_weights("squeezenet1_1", tmp_path)
    words = ("extract", few, "--json", "--backbone", "squeezenet1_1", "--weights", weights)
    first = run(*words).json
    (path,) = (tmp_path / "cache" / "backbones").iterdir()
    for content in (b"", b"[]", b"{}", b'{"spec": "{}", "weights": "x", "file": "y"}', b"\xff"):
        path.write_bytes(content)
        result = run(*words)
        assert (result.code, result.json["fingerprint"], result.json["reused"]) == (0, first["fingerprint"], 9)
    assert run("fit", "--json").code == 1  # no labels, and said so
    path.write_bytes(b"{}")
    assert run("cache", "verify").code == 0


def test_a_cached_folder_opens_no_network(run: Run, few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("extract", few, network=True)

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a network was loaded")

    monkeypatch.setattr("featcache.api.embedding.open_engine", forbidden)
    found = run("extract", few, "--rehash", "--json", network=True).json
    assert (found["reused"], found["computed"], found["engine"], found["device"]) == (9, 0, None, None)


# --- memory ---


def test_a_batch_is_smaller_where_memory_is_small_and_never_empty() -> None:
    sizes = [batch_that_fits(10**7, 2, 64, memory) for memory in (2**40, 2**32, 2**30, 2**28, 2**20, 1, 0)]
    assert sizes[0] == 64
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) > 3
    assert sizes[-1] == 1
    assert batch_that_fits(10**7, 4, 64, 2**32) <= batch_that_fits(10**7, 1, 64, 2**32)
    assert batch_that_fits(0, 1, 8, 2**20) == 8
    assert all(4 * 2 * size * 10**7 <= memory for size, memory in zip(sizes[1:4], (2**31, 2**29, 2**27), strict=True))


def test_memory_is_known() -> None:
    assert 2**20 < available_memory() < 2**50


@pytest.mark.parametrize("engine", ["torch", "onnx"])
def test_little_memory_makes_small_batches_and_the_same_vectors(
    engine: str, run: Run, few: Path, kept: Path, expected: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []
    spied = {"torch": "torch_engine.TorchEngine", "onnx": "onnx_engine.OnnxEngine"}[engine]
    embed = {"torch": TorchEngine.embed, "onnx": _onnx_embed()}[engine]

    def spy(self: Any, pixels: Pixels) -> FloatArray:
        given.append(len(pixels))
        return embed(self, pixels)

    monkeypatch.setattr(f"featcache.embed.{spied}.embed", spy)
    monkeypatch.setattr(f"featcache.embed.{engine}_engine.available_memory", lambda: 0)
    result = run("extract", few, "--engine", engine, "--json", network=True)
    assert (result.code, result.json["computed"]) == (0, 9)
    assert given[-9:] == [1] * 9
    assert apart(vectors(kept, result.json["fingerprint"], few), expected) < 1e-4


def _onnx_embed() -> Callable[..., FloatArray]:
    from featcache.embed.onnx_engine import OnnxEngine

    return OnnxEngine.embed


def short_of_memory(monkeypatch: pytest.MonkeyPatch, engine: str, most: int, error: Callable[[], Exception]) -> None:
    """Let every batch of more than `most` pictures run out of memory, where its first large array is made."""
    if engine == "torch":

        def limited(pixels: torch.Tensor, preprocess: Any) -> torch.Tensor:
            if len(pixels) > most:
                raise error()
            return normalise(pixels, preprocess)

        monkeypatch.setattr("featcache.embed.torch_engine.normalise", limited)
    else:
        session_run = onnxruntime.InferenceSession.run

        def narrow(self: Any, names: Any, feed: dict[str, Pixels]) -> Any:
            if len(feed["pixels"]) > most:
                raise error()
            return session_run(self, names, feed)

        monkeypatch.setattr(onnxruntime.InferenceSession, "run", narrow)


FAILURES = [
    pytest.param("torch", lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), id="gpu"),
    pytest.param("torch", MemoryError, id="python, torch"),
    pytest.param("torch", lambda: RuntimeError(TORCH_NO_MEMORY), id="torch"),
    pytest.param("onnx", lambda: RuntimeError(ORT_NO_MEMORY), id="onnxruntime"),
    pytest.param("onnx", lambda: MemoryError("std::bad_alloc"), id="C++, onnxruntime"),
    pytest.param("onnx", MemoryError, id="python, onnxruntime"),
]


@pytest.mark.parametrize(("engine", "error"), FAILURES)
def test_a_batch_that_does_not_fit_is_halved_and_said_once(
    engine: str,
    error: Callable[[], Exception],
    run: Run,
    few: Path,
    kept: Path,
    expected: FloatArray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    short_of_memory(monkeypatch, engine, 2, error)
    result = run("extract", few, "--engine", engine, "--batch-size", "4", "--json", network=True)
    assert result.code == 0, result.err
    (said,) = warnings_of(result)
    assert "no memory" in said
    assert "batch of 4: going on with batches of 2" in said
    assert apart(vectors(kept, result.json["fingerprint"], few), expected) < 1e-4


def test_pictures_are_computed_once_also_while_batches_are_halved(
    run: Run, few: Path, expected: FloatArray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def limited(pixels: torch.Tensor, preprocess: Any) -> torch.Tensor:
        if len(pixels) > 2:
            time.sleep(0.5)  # until as many batches wait as may
            raise torch.OutOfMemoryError
        return normalise(pixels, preprocess)

    monkeypatch.setattr("featcache.embed.torch_engine.normalise", limited)
    result = run("extract", few, "--engine", "torch", "--batch-size", "3", "--json", network=True)
    assert result.code == 0, result.err
    assert apart(vectors(tmp_path / "cache", result.json["fingerprint"], few), expected) < 1e-4
    assert (result.json["computed"], result.json["reused"]) == (9, 0)


LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
from featcache.backbones import resolve
from featcache.embed import open_engine
from featcache.errors import EngineMemoryError
from featcache.store import Cache

weights, folder = map(Path, sys.argv[1:])
with Cache(folder) as cache:
    engine = open_engine(resolve("resnet18", weights), "auto", "onnx", cache.networks)
pixels = np.zeros((48, 224, 224, 3), np.uint8)
before = engine.embed(pixels[:2])
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
_, most = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (used + 50 * 2**20, most))
try:
    engine.embed(pixels)
except EngineMemoryError as error:
    print(error)
print(np.array_equal(engine.embed(pixels[:2]), before), "torch" in sys.modules)
"""


@pytest.fixture(scope="module")
def limited(exports: dict[str, Path], seeded_weights: Path) -> subprocess.CompletedProcess[str]:
    """A process whose address space is too small for a large batch in ONNX Runtime."""
    words = [sys.executable, "-c", LIMITED, str(seeded_weights), str(exports["resnet18"])]
    return subprocess.run(words, capture_output=True, text=True, check=True)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells what is used")
def test_a_real_lack_of_memory_is_known_and_the_engine_goes_on(limited: subprocess.CompletedProcess[str]) -> None:
    assert limited.stdout.splitlines() == ["no memory for a batch of 48", "True False"]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells what is used")
def test_a_real_lack_of_memory_is_said_by_nobody_else(limited: subprocess.CompletedProcess[str]) -> None:
    assert limited.stderr == ""


@pytest.mark.parametrize("engine", ["torch", "onnx"])
def test_room_for_one_picture_is_enough(
    engine: str, run: Run, few: Path, kept: Path, expected: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_of_memory(monkeypatch, engine, 1, lambda: RuntimeError(TORCH_NO_MEMORY))
    result = run("extract", few, "--engine", engine, "--batch-size", "8", "--json", network=True)
    assert result.code == 0, result.err
    assert apart(vectors(kept, result.json["fingerprint"], few), expected) < 1e-4


@pytest.mark.parametrize("engine", ["torch", "onnx"])
def test_no_room_for_one_picture_ends_in_one_line_and_keeps_what_was_committed(
    engine: str, run: Run, few: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = threading.Event()  # the engines are used by threads, and the fifth picture is the first to fail
    count = [0]

    def failing() -> Exception:
        return RuntimeError(TORCH_NO_MEMORY)

    monkeypatch.setattr("featcache.store.writing.COMMIT_ROWS", 1)
    with monkeypatch.context() as patch:
        if engine == "torch":

            def limited(pixels: torch.Tensor, preprocess: Any) -> torch.Tensor:
                count[0] += 1
                if count[0] > 4:
                    done.set()
                    raise failing()
                return normalise(pixels, preprocess)

            patch.setattr("featcache.embed.torch_engine.normalise", limited)
        else:
            session_run = onnxruntime.InferenceSession.run

            def narrow(self: Any, names: Any, feed: dict[str, Pixels]) -> Any:
                if len(feed["pixels"]) == 1:  # the check at the start has two
                    count[0] += 1
                if count[0] > 4:
                    done.set()
                    raise failing()
                return session_run(self, names, feed)

            patch.setattr(onnxruntime.InferenceSession, "run", narrow)
        result = run("extract", few, "--engine", engine, "--batch-size", "1", network=True)
    assert done.is_set()
    refused(result, "no memory", "for a batch of 1, one picture", "smaller backbone")
    assert len(warnings_of(result)) == 1
    held = run("cache", "info", "--json").json["backbones"][0]["rows"]
    assert 1 <= held <= 4
    again = run("extract", few, "--json", network=True).json
    assert (again["computed"], again["reused"]) == (9 - held, held)
    assert kept.exists()


def test_another_failure_of_an_engine_is_not_taken_for_a_lack_of_memory(
    run: Run, few: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_of_memory(monkeypatch, "onnx", 2, lambda: RuntimeError("Non-zero status code: the shapes do not fit"))
    result = run("extract", few, "--engine", "onnx", "--batch-size", "4", network=True)
    refused(result, "ONNX Runtime failed on resnet18", "the shapes do not fit")
    assert kept.exists()


# --- CUDA, with the device put in by hand ---


class _Gpu:
    """A GPU played by the CPU: what was asked of torch for it."""

    def __init__(self) -> None:
        self.made: list[int] = []
        self.used: list[tuple[int, object]] = []
        self.pinned = 0
        self.most = 0
        self._now = 0
        self._lock = threading.Lock()

    def stream(self, place: torch.device) -> object:
        assert place.type == "cuda"
        with self._lock:
            self.made.append(threading.get_ident())
        return object()

    @contextmanager
    def within(self, stream: object) -> Iterator[None]:
        with self._lock:
            self.used.append((threading.get_ident(), stream))
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            yield
        finally:
            with self._lock:
                self._now -= 1


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> _Gpu:
    """Let the torch engine believe in a GPU; tensors sent there stay where they are."""
    if torch.cuda.is_available():
        pytest.skip("this computer has a GPU")
    made, to = _Gpu(), torch.Tensor.to

    def here(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return to(self, *[torch.device("cpu") if isinstance(arg, torch.device) else arg for arg in args], **kwargs)

    def pinned(self: torch.Tensor) -> torch.Tensor:
        made.pinned += 1
        return self

    monkeypatch.setattr("featcache.embed.torch_engine.choose_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(torch.Tensor, "to", here)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pinned)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2**36, 2**36))
    monkeypatch.setattr(torch.cuda, "Stream", made.stream)
    monkeypatch.setattr(torch.cuda, "stream", made.within)
    return made


def test_the_way_over_a_gpu_gives_the_same_vectors(gpu: _Gpu, seeded_weights: Path) -> None:
    engine = open_engine(resolve("resnet18", seeded_weights), "cuda")
    assert (engine.name, engine.device, engine.lanes, engine.batch_size) == ("torch", "cuda", 2, 128)
    pixels = scenes(4)
    backbone = resolve("resnet18", seeded_weights)
    with torch.inference_mode():
        plain = backbone.build()(normalise(torch.from_numpy(pixels), backbone.spec.preprocess)).numpy()
    assert apart(engine.embed(pixels), plain) < 1e-5
    assert (gpu.pinned, len(gpu.made)) == (1, 1)
    engine.embed(pixels[:1])
    assert len(gpu.made) == 1  # a thread keeps its stream


def test_on_a_gpu_two_batches_are_under_way_each_in_its_own_stream(
    gpu: _Gpu, run: Run, few: Path, expected: FloatArray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meeting = threading.Barrier(2, timeout=30)

    def together(pixels: torch.Tensor, preprocess: Any) -> torch.Tensor:
        meeting.wait()
        return normalise(pixels, preprocess)

    monkeypatch.setattr("featcache.embed.torch_engine.normalise", together)
    write_picture(few / "9.png", 1)
    result = run("extract", few, "--device", "cuda", "--batch-size", "1", "--json", network=True)
    assert (result.code, result.json["computed"], result.json["device"]) == (0, 10, "cuda"), result.err
    assert gpu.most == 2
    assert len(set(gpu.made)) == len(gpu.made) == 2
    streams = {thread: {stream for seen, stream in gpu.used if seen == thread} for thread in gpu.made}
    assert [len(found) for found in streams.values()] == [1, 1]
    assert set.intersection(*streams.values()) == set()
    assert apart(vectors(tmp_path / "cache", result.json["fingerprint"], few)[:9], expected) < 1e-5


def test_a_gpu_without_room_is_emptied_and_the_batch_halved(
    gpu: _Gpu, run: Run, few: Path, expected: FloatArray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emptied: list[bool] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    short_of_memory(monkeypatch, "torch", 3, lambda: torch.OutOfMemoryError("CUDA out of memory"))
    result = run("extract", few, "--device", "cuda", "--batch-size", "6", "--json", network=True)
    assert result.code == 0, result.err
    (said,) = warnings_of(result)
    assert "no memory on cuda for a batch of 6: going on with batches of 3" in said
    assert emptied
    assert apart(vectors(tmp_path / "cache", result.json["fingerprint"], few), expected) < 1e-5
    assert gpu.pinned > 2


def test_small_gpu_memory_makes_small_batches(gpu: _Gpu, seeded_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2**27, 2**36))
    engine = open_engine(resolve("resnet18", seeded_weights), "cuda")
    assert 1 <= engine.batch_size < 16
    assert not gpu.made


class _Asked(torch.nn.Module):
    """Notes for each batch whether TF32 is allowed once the other one is done; cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.first_done = threading.Event(), threading.Event()
        self.first = False
        self.allowed: dict[str, bool] = {}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if isinstance(images, torch.fx.Proxy):
            raise TypeError("not to be traced")
        name = threading.current_thread().name
        if name == "first":
            self.inside.wait(10)
        elif name == "second":
            self.inside.set()
            self.first_done.wait(10)
        self.allowed[name] = bool(torch.backends.cudnn.allow_tf32)
        return images[:, :, 0, 0]


def test_no_batch_may_use_tf32_while_another_ends(gpu: _Gpu, seeded_weights: Path) -> None:
    module = _Asked()
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True  # torch's own default
    engine = open_engine(replace(resolve("resnet18", seeded_weights), build=lambda: module), "cuda")
    within, entered = torch.cuda.stream, threading.Event()

    def first() -> None:
        engine.embed(scenes(1))
        module.first_done.set()

    def second() -> None:
        entered.wait(10)
        engine.embed(scenes(1))

    def noted(stream: object) -> Any:  # the second batch begins when the first has made its settings
        if threading.current_thread().name == "first":
            entered.set()
        return within(stream)

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.cuda, "stream", noted)
            threads = [threading.Thread(target=work, name=work.__name__) for work in (first, second)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert {name: module.allowed[name] for name in ("first", "second")} == {"first": False, "second": False}
    finally:
        torch.backends.cudnn.allow_tf32 = before
    assert len(gpu.used) == 2


# --- fp16 ---


def test_halves_have_their_own_fingerprint_and_vectors_close_to_the_exact_ones(
    run: Run, photos: Path, tmp_path: Path
) -> None:
    for path in [path for path in photos.rglob("*.png") if int(path.stem) > 3]:
        path.unlink()
    half = run("extract", photos, "--precision", "fp16", "--json", network=True).json
    assert (half["computed"], half["precision"], half["engine"], half["engine_why"]) == (
        12,
        "fp16",
        "torch",
        "it has fp16",
    )
    fitted = run("fit", "--json").json
    assert (fitted["fingerprint"], fitted["n_train"] + fitted["n_test"]) == (half["fingerprint"], 12)
    exact = run("extract", photos, "--json", network=True).json
    assert (exact["computed"], exact["precision"]) == (12, "fp32")
    assert exact["fingerprint"] != half["fingerprint"]
    one, other = (vectors(tmp_path / "cache", made["fingerprint"], photos) for made in (half, exact))
    assert one.dtype == np.float32
    assert 1e-6 < apart(one, other) < 1e-2
    again = run("extract", photos, "--precision", "fp16", "--json", network=True).json
    assert (again["reused"], again["computed"]) == (12, 0)
    assert run("predict", fitted["model"], photos, "--json").json["fingerprint"] == half["fingerprint"]


def test_values_that_halves_cannot_hold_are_refused_with_advice(
    run: Run, few: Path, tmp_path: Path, seeded_weights: Path
) -> None:
    state = torch.load(seeded_weights, weights_only=True)
    state["layer4.1.bn2.bias"] += 1e6
    torch.save(state, tmp_path / "large.pth")
    words = ("extract", few, "--backbone", "resnet18", "--weights", "large.pth")
    refused(run(*words, "--precision", "fp16"), "not finite", "fp16 is too coarse for it, use fp32")
    assert run(*words).code == 0


class Bounded(Toy):
    """A network that has no values for bright pictures."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) / (x.mean((1, 2, 3), keepdim=True).flatten(1) < 1.5)


@pytest.mark.parametrize("engine", ["torch", "onnx"])
def test_a_picture_without_a_finite_vector_costs_itself_alone(
    run: Run, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    install(monkeypatch, tmp_path / "toy.pth")
    monkeypatch.setattr("finetune_rows.Toy", Bounded)
    Image.new("RGB", (64, 64), "white").save(few / "white.png")
    summary = run("extract", few, "--backbone", "toy", "--engine", engine, "--json").json
    assert (summary["computed"], summary["unreadable"], summary["engine"]) == (9, 1, engine)
    assert [Path(row["path"]).name for row in summary["failures"]] == ["white.png"]
    assert summary["failures"][0]["reason"] == "the network gives values that are not finite for it"
    assert run("cache", "verify").code == 0
