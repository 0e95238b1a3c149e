"""Features made with less precision: int8, drafted JPEG files, what they cost, and how the cache looks after them."""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINTS, Result, write_picture
from PIL import Image, JpegImagePlugin

import featcache
from featcache.backbones import resolve
from featcache.backbones.efficientnet_lite0 import NAME as LITE
from featcache.decode import decode, decode_views
from featcache.embed import open_engine
from featcache.errors import EngineError
from featcache.load import load
from featcache.records import DRAFT, Calibration, FeatureSpec, FloatArray
from featcache.sources import read
from featcache.store import Cache

Run = Callable[..., Result]

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

COUNT = 12


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, seeded_weights: Path) -> Iterator[Path]:
    """A folder with `photos`, three classes of four, and the cache after `extract --precision int8` of it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for at, (label, tint) in enumerate(TINTS.items()):
            for number in range(4):
                path = write_picture(folder / "photos" / label / f"{number}.png", 100 * at + number, tint)
                os.utime(path, (1, 1))
        summary = featcache.extract(folder / "photos", int8_options(seeded_weights, folder / "cache"))
        (folder / "summary.json").write_text(json.dumps(asdict(summary)))
        yield folder


def int8_options(weights: Path, cache: Path) -> featcache.Options:
    return featcache.Options("resnet18", weights, cache, precision="int8")


@pytest.fixture
def photos(scene: Path, tmp_path: Path) -> Path:
    """A copy of the pictures; the cache of commands run here has the int8 features of the originals."""
    shutil.copytree(scene / "cache", tmp_path / "cache", copy_function=copy)
    shutil.copytree(scene / "photos", tmp_path / "photos")
    return tmp_path / "photos"


def copy(source: str, target: str) -> None:
    """Link networks, which are large and never changed in place; copy everything else."""
    (os.link if source.endswith(".onnx") else shutil.copy2)(source, target)


@pytest.fixture
def made(scene: Path) -> Any:
    """The summary of the extraction of `scene`."""
    return json.loads((scene / "summary.json").read_text())


def int8_networks(cache: Path, fingerprint: str) -> list[Path]:
    return sorted((cache / "networks").glob(f"{fingerprint[:16]}-*.onnx"))


def vectors(cache: Path, fingerprint: str, root: Path) -> FloatArray:
    """Return the vectors of a dataset, in the order of their paths."""
    with Cache(cache) as opened:
        rows = opened.catalog.dataset(str(root))
        return load(sorted(rows, key=lambda row: row.item.path), opened.store(fingerprint)).X


def cosines(one: FloatArray, other: FloatArray) -> FloatArray:
    found: FloatArray = (one * other).sum(1) / (np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1))
    return found


def apart(one: FloatArray, other: FloatArray) -> float:
    assert one.shape == other.shape
    return float((np.linalg.norm(one - other, axis=1) / np.linalg.norm(other, axis=1)).max())


def refused(result: Result, *words: str) -> None:
    """A command failed with one line that has these words, and nothing on stdout."""
    lines = [line for line in result.err.splitlines() if line.startswith("featcache: ")]
    assert (result.code, result.out) == (1, ""), result
    assert "Traceback" not in result.err
    assert all(word in lines[-1] for word in words), lines


# --- what the features are called ---


def test_fields_that_came_later_leave_old_fingerprints_as_they_are() -> None:
    spec = resolve(LITE).spec
    assert spec.fingerprint.startswith("bca26e7c5a32e5a8")
    assert (spec.decoding, spec.calibration, spec.precision) == (None, None, "fp32")
    assert "calibration" not in spec.to_json()
    assert "decoding" not in spec.to_json()


CALIBRATION = Calibration("1" * 64, "static", 0, ("00ff", "abcd"))


@pytest.mark.parametrize("decoding", [None, DRAFT])
@pytest.mark.parametrize("calibration", [None, CALIBRATION])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_spec_comes_back_from_its_json(precision: str, calibration: Calibration | None, decoding: str | None) -> None:
    spec = replace(resolve(LITE).spec, precision=precision, calibration=calibration, decoding=decoding)
    again = FeatureSpec.from_json(spec.to_json())
    assert (again, again.fingerprint) == (spec, spec.fingerprint)
    assert again.network == resolve(LITE).spec
    assert again.calibrated == replace(spec, decoding=None)


def test_everything_that_changes_a_vector_changes_the_fingerprint() -> None:
    spec = resolve(LITE).spec
    int8 = replace(spec, precision="int8", calibration=CALIBRATION)
    others = [
        *(spec, replace(spec, precision="fp16"), replace(spec, decoding=DRAFT), int8, replace(int8, decoding=DRAFT)),
        replace(int8, calibration=replace(CALIBRATION, network_sha256="2" * 64)),
        replace(int8, calibration=replace(CALIBRATION, keys=("00ff",))),
        replace(int8, calibration=replace(CALIBRATION, seed=1)),
    ]
    assert len({other.fingerprint for other in others}) == len(others)


# --- int8 ---


def test_int8_features_say_what_they_were_calibrated_on(scene: Path, made: Any, seeded_weights: Path) -> None:
    exact = resolve("resnet18", seeded_weights).spec
    assert (made["precision"], made["engine"], made["engine_why"]) == ("int8", "onnx", "it has int8")
    assert (made["computed"], made["reused"], made["dim"]) == (COUNT, 0, 512)
    assert made["fingerprint"] != exact.fingerprint
    note = json.loads((scene / "cache" / "segments" / made["fingerprint"][:16] / "spec.json").read_text())
    found = note["spec"]["calibration"]
    keys = {read(str(path))[1].hex()[:16] for path in (scene / "photos").rglob("*.png")}
    assert (set(found["keys"]), len(found["keys"])) == (keys, COUNT)
    assert found["seed"] == 0
    assert "int8" in found["method"]
    (network,) = int8_networks(scene / "cache", made["fingerprint"])
    assert network.stem.endswith(found["network_sha256"][:16])
    assert note["spec"]["precision"] == "int8"
    assert FeatureSpec.from_json(json.dumps(note["spec"])).network == exact


def test_the_same_pictures_calibrated_anew_give_the_same_features(
    run: Run, photos: Path, made: Any, tmp_path: Path
) -> None:
    (int8,) = int8_networks(tmp_path / "cache", made["fingerprint"])
    shutil.copytree(tmp_path / "cache" / "networks", tmp_path / "new" / "networks", copy_function=os.link)
    (tmp_path / "new" / "networks" / int8.name).unlink()  # the exact network spares an export
    result = run("extract", photos, "--precision", "int8", "--cache", "new", "--json", network=True)
    assert "int8: calibrating resnet18 on 12 pictures, once for this cache, fewer than the 128" in result.err
    assert (result.json["fingerprint"], result.json["computed"]) == (made["fingerprint"], COUNT)
    np.testing.assert_array_equal(
        vectors(tmp_path / "new", made["fingerprint"], photos),
        vectors(tmp_path / "cache", made["fingerprint"], Path(made["dataset"])),
    )


def test_a_second_folder_uses_the_network_that_is_there(run: Run, photos: Path, made: Any, tmp_path: Path) -> None:
    other = [write_picture(tmp_path / "others" / f"{number}.png", 900 + number) for number in range(3)]
    shutil.copy(photos / "leaf" / "0.png", tmp_path / "others" / "known.png")
    result = run("extract", "others", "--precision", "int8", "--json", network=True)
    assert "calibrating" not in result.err
    assert result.json["fingerprint"] == made["fingerprint"]
    assert (result.json["computed"], result.json["reused"]) == (len(other), 1)


def test_int8_vectors_are_close_to_the_exact_ones_and_do_not_depend_on_the_batch(
    photos: Path, made: Any, tmp_path: Path, seeded_weights: Path
) -> None:
    backbone = resolve("resnet18", seeded_weights)
    pixels = np.stack([decode(p.read_bytes(), backbone.spec.preprocess) for p in sorted(photos.rglob("*.png"))])
    with Cache(tmp_path / "cache") as cache:
        engine = open_engine(backbone.making(cache.spec(made["fingerprint"])), "cpu", "auto", cache.networks)
        found = vectors(tmp_path / "cache", made["fingerprint"], Path(made["dataset"]))
    order = np.random.default_rng(0).permutation(COUNT)
    for batch in (engine.embed(pixels), engine.embed(pixels[order])[np.argsort(order)]):
        np.testing.assert_array_equal(batch, found)
    np.testing.assert_array_equal(np.concatenate([engine.embed(pixels[i : i + 1]) for i in range(COUNT)]), found)
    exact = open_engine(backbone, "cpu").embed(pixels)
    assert 1e-4 < apart(found, exact) < 0.3
    assert cosines(found, exact).min() > 0.95


def test_int8_with_views_has_one_network_for_all(run: Run, photos: Path, made: Any, tmp_path: Path) -> None:
    result = run("extract", photos, "--precision", "int8", "--views", "flip", "--json", network=True)
    assert "calibrating" not in result.err
    assert (result.json["fingerprint"], result.json["computed"]) == (made["fingerprint"], 0)
    (flip,) = result.json["views"]
    assert (flip["computed"], flip["fingerprint"] != made["fingerprint"]) == (COUNT, True)
    assert len(list((tmp_path / "cache" / "networks").iterdir())) == 2
    fitted = run("fit", "--tta", "--json").json
    assert (fitted["fingerprint"], fitted["test_views"]) == (made["fingerprint"], ["flip"])
    assert fitted["weights"].endswith(", int8")
    write_picture(tmp_path / "new" / "0.png", 77, TINTS["sky"])
    assert run("predict", fitted["model"], "new", "--json").json["predictions"][0]["label"] == "sky"


@pytest.fixture
def model(run: Run, photos: Path, made: Any, tmp_path: Path) -> Path:
    """A head fitted on int8 vectors."""
    run("extract", photos, "--precision", "int8", network=True)
    fitted = run("fit", "--json").json
    assert fitted["fingerprint"] == made["fingerprint"]
    write_picture(tmp_path / "new" / "0.png", 78, TINTS["leaf"])
    return Path(fitted["model"])


def test_a_model_of_int8_vectors_predicts(run: Run, model: Path, made: Any, tmp_path: Path) -> None:
    found = run("predict", model, "new", "--json").json
    assert (found["fingerprint"], found["predictions"][0]["label"]) == (made["fingerprint"], "leaf")
    write_picture(tmp_path / "new" / "1.png", 79, TINTS["sand"])
    refused(run("predict", model, "new", "--engine", "torch"), "no int8", "--engine onnx or auto")
    assert len(run("predict", model, "new", "--engine", "onnx", "--json").json["predictions"]) == 2


def test_a_model_whose_int8_network_is_gone_says_what_to_do(
    run: Run, model: Path, photos: Path, made: Any, tmp_path: Path
) -> None:
    (network,) = int8_networks(tmp_path / "cache", made["fingerprint"])
    network.unlink()
    refused(
        run("predict", model, "new"),
        "the int8 network of resnet18 that made these vectors",
        "is not in this cache",
        "extract with --precision int8, and fit again",
    )
    assert len(run("predict", model, photos, "--json").json["predictions"]) == COUNT  # these vectors are there
    again = run("extract", photos, "--precision", "int8", "--json", network=True).json
    assert (again["fingerprint"], again["reused"]) == (made["fingerprint"], COUNT)
    assert int8_networks(tmp_path / "cache", made["fingerprint"]) == [network]
    assert run("predict", model, "new", "--json").json["predictions"][0]["label"] == "leaf"


def test_a_damaged_int8_network_is_put_aside_and_never_used(run: Run, model: Path, made: Any, tmp_path: Path) -> None:
    (network,) = int8_networks(tmp_path / "cache", made["fingerprint"])
    content = bytearray(network.read_bytes())
    content[len(content) // 3] ^= 4
    network.unlink()
    network.write_bytes(content)
    result = run("predict", model, "new")
    assert f"the exported network {network} is damaged; moved to" in result.err
    refused(result, "is not in this cache", "extract with --precision int8")
    assert not network.exists()
    assert [path.read_bytes() for path in (tmp_path / "cache" / "bad").iterdir()] == [bytes(content)]


def test_int8_without_a_readable_picture_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    for number in range(3):
        (tmp_path / "texts" / f"{number}.png").write_text("no picture")
    refused(run("extract", "texts", "--precision", "int8", network=True), "none of the pictures can be read", "int8")
    assert not list((tmp_path / "cache").glob("networks/*"))


def test_unreadable_pictures_and_copies_are_not_calibrated_on(
    run: Run, photos: Path, made: Any, tmp_path: Path
) -> None:
    (int8,) = int8_networks(tmp_path / "cache", made["fingerprint"])
    int8.unlink()
    (photos / "leaf" / "broken.png").write_text("no picture")
    shutil.copy(photos / "leaf" / "0.png", photos / "leaf" / "copy.png")
    result = run("extract", photos, "--precision", "int8", "--json", network=True)
    assert "on 12 pictures" in result.err
    assert (result.json["unreadable"], result.json["duplicates"]) == (1, 1)
    with Cache(tmp_path / "cache") as cache:
        keys = cache.spec(result.json["fingerprint"]).calibration
    assert keys is not None
    assert len(keys.keys) == len(set(keys.keys)) == COUNT


def test_a_network_that_cannot_be_made_int8_is_refused(
    run: Run, photos: Path, made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import featcache.embed.quantising as quantising

    def fail(*_: object, **__: object) -> None:
        raise ValueError("no such\noperator")

    (int8,) = int8_networks(tmp_path / "cache", made["fingerprint"])
    int8.unlink()
    monkeypatch.setattr(quantising, "quantize_static", fail)
    result = run("extract", photos, "--precision", "int8", network=True)
    refused(result, "cannot be made int8 (ValueError: no such operator): use fp32")


def test_a_processor_with_other_integers_is_refused(
    run: Run, photos: Path, made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featcache.embed.onnx_engine import OnnxEngine

    embed = OnnxEngine.embed
    monkeypatch.setattr(OnnxEngine, "embed", lambda self, pixels: embed(self, pixels) * np.float32(1.1))
    write_picture(photos / "leaf" / "new.png", 99)
    result = run("extract", photos, "--precision", "int8", network=True)
    refused(result, "gives other vectors for resnet18 (int8)", "this processor cannot use it")
    assert made["fingerprint"]


# --- the price ---


def test_the_check_of_int8_compares_vectors_and_heads(run: Run, photos: Path, made: Any, tmp_path: Path) -> None:
    text = run("extract", photos, "--precision", "int8", "--check", network=True)
    assert text.code == 0
    assert "check        cosine to exact vectors 0." in text.out
    assert "n=12" in text.out
    assert "points lost" in text.out or "points gained" in text.out
    summary = run("extract", photos, "--precision", "int8", "--check", "--json", network=True).json
    check = summary["check"]
    assert (summary["fingerprint"], check["pictures"], check["head"], check["note"]) == (
        made["fingerprint"],
        COUNT,
        "logreg",
        None,
    )
    assert (check["n_train"], check["n_test"], check["scored_split"]) == (9, 3, "test")
    for probe in (check["probe"], check["exact_probe"]):
        assert 0 <= probe["accuracy_low"] <= probe["accuracy"] <= probe["accuracy_high"] <= 1
    exact = run("extract", photos, "--cache", "other", "--json", network=True).json
    expected = cosines(
        vectors(tmp_path / "cache", made["fingerprint"], photos),
        vectors(tmp_path / "other", exact["fingerprint"], photos),
    )
    assert check["cosine_mean"] == pytest.approx(expected.mean(), abs=1e-4)
    assert check["cosine_least"] == pytest.approx(expected.min(), abs=1e-4)
    assert 0.9 < check["cosine_least"] <= check["cosine_mean"] < 1
    fitted = run("fit", "--json").json
    assert (fitted["fingerprint"], fitted["n_train"], fitted["n_test"]) == (made["fingerprint"], 9, 3)
    assert run("extract", photos, "--json", network=True).json["reused"] == COUNT  # the check computed them


def test_fp16_on_the_cpu_is_said_to_be_slow(run: Run, photos: Path) -> None:
    found = run("extract", photos / "leaf", "--precision", "fp16", network=True)
    assert found.code == 0
    assert "fp16 is for GPUs" in found.err


@pytest.mark.slow
@pytest.mark.parametrize("words", [("--precision", "fp16"), ("--draft",), ("--precision", "int8", "--draft")])
def test_the_check_of_other_savings(words: tuple[str, ...], run: Run, photos: Path, made: Any) -> None:
    summary = run("extract", photos, *words, "--check", "--json", network=True).json
    assert summary["fingerprint"] != made["fingerprint"]
    check = summary["check"]
    assert check["pictures"] == COUNT
    assert check["cosine_least"] > (0.9 if "int8" in words else 0.9999)
    assert check["probe"]["accuracy"] >= check["probe"]["accuracy_low"]
    assert run("fit", "--json").json["fingerprint"] == summary["fingerprint"]


def test_the_check_of_drafted_int8_has_the_same_network(run: Run, photos: Path, made: Any, tmp_path: Path) -> None:
    result = run("extract", photos, "--precision", "int8", "--draft", "--json", network=True)
    assert "calibrating" not in result.err
    assert result.json["fingerprint"] != made["fingerprint"]
    np.testing.assert_array_equal(  # small PNG files are not drafted
        vectors(tmp_path / "cache", result.json["fingerprint"], photos),
        vectors(tmp_path / "cache", made["fingerprint"], Path(made["dataset"])),
    )


def test_without_labels_the_check_says_that_no_head_was_tried(run: Run, photos: Path) -> None:
    flat = photos / "leaf"
    summary = run("extract", flat, "--precision", "int8", "--check", "--json", network=True).json
    check = summary["check"]
    assert (check["pictures"], check["probe"], check["exact_probe"]) == (4, None, None)
    assert (check["n_train"], check["n_test"], check["scored_split"]) == (0, 0, None)
    assert "no labels" in check["note"]
    text = run("extract", flat, "--precision", "int8", "--check", network=True).out
    assert "no head was tried: the pictures have no labels" in text


def test_a_check_of_many_pictures_draws_a_sample(
    run: Run, photos: Path, made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featcache.api.price.SAMPLE", 9)
    exact = run("extract", photos / "leaf", "--json", network=True).json  # a third of the exact vectors is there
    words = ("extract", photos, "--precision", "int8", "--check", "--json")
    first = run(*words, network=True).json["check"]
    again = run(*words, network=True).json["check"]
    assert (first["pictures"], again) == (9, first)
    with Cache(tmp_path / "cache") as cache:
        assert 9 <= len(cache.store(exact["fingerprint"]).keys) < COUNT
    run("extract", photos, network=True)
    assert run(*words, network=True).json["check"]["pictures"] == COUNT  # all are there now
    assert made["fingerprint"] == run("fit", "--json").json["fingerprint"]


# --- the cache ---


@pytest.fixture
def extracted(run: Run, photos: Path) -> Path:
    """The pictures, extracted in int8 from where they are now."""
    run("extract", photos, "--precision", "int8", network=True)
    return photos


def test_the_cache_with_int8_features_is_sound_and_tells_of_them(run: Run, extracted: Path, made: Any) -> None:
    info = run("cache", "info", "--json").json
    (backbone,) = info["backbones"]
    assert (backbone["precision"], backbone["rows"], backbone["fingerprint"]) == ("int8", COUNT, made["fingerprint"])
    assert "int8" in run("cache", "info").out
    verified = run("cache", "verify", "--json")
    assert verified.code == 0
    valid = {found["dataset"]: found["valid"] for found in verified.json["datasets"]}
    assert valid[str(extracted)] == COUNT


def test_a_repair_computes_equal_int8_vectors(run: Run, extracted: Path, made: Any, tmp_path: Path) -> None:
    before = vectors(tmp_path / "cache", made["fingerprint"], extracted)
    for path in (tmp_path / "cache" / "segments" / made["fingerprint"][:16]).glob("seg-*.h5"):
        path.unlink()
    assert run("cache", "verify").code == 1
    repaired = run("cache", "verify", "--repair")
    assert "0 reused, 12 computed (resnet18)" in repaired.out
    assert "calibrating" not in repaired.err
    np.testing.assert_array_equal(vectors(tmp_path / "cache", made["fingerprint"], extracted), before)
    assert run("fit", "--json").json["fingerprint"] == made["fingerprint"]


def test_a_repair_without_the_int8_network_says_what_is_lacking(
    run: Run, extracted: Path, made: Any, tmp_path: Path
) -> None:
    for path in (tmp_path / "cache" / "segments" / made["fingerprint"][:16]).glob("seg-*.h5"):
        path.unlink()
    (network,) = int8_networks(tmp_path / "cache", made["fingerprint"])
    network.unlink()
    repaired = run("cache", "verify", "--repair")
    assert repaired.code == 1
    assert f"{extracted} cannot be repaired: the int8 network of resnet18" in repaired.out + repaired.err
    again = run("extract", extracted, "--precision", "int8", "--json", network=True).json
    assert (again["fingerprint"], again["computed"]) == (made["fingerprint"], COUNT)
    assert run("cache", "verify").code in (0, 1)


def test_a_collection_keeps_int8_features_beside_exact_ones(
    run: Run, extracted: Path, made: Any, tmp_path: Path
) -> None:
    exact = run("extract", extracted, "--json", network=True).json
    forgotten = run("cache", "gc", "--yes", "--forget", made["dataset"])
    assert forgotten.code == 0, forgotten.err
    rows = {b["fingerprint"]: b["rows"] for b in run("cache", "info", "--json").json["backbones"]}
    assert rows == {made["fingerprint"]: COUNT, exact["fingerprint"]: COUNT}
    assert len(list((tmp_path / "cache" / "networks").iterdir())) == 2
    (extracted / "leaf" / "0.png").unlink()
    assert run("extract", extracted, "--precision", "int8", "--json", network=True).json["reused"] == COUNT - 1
    assert run("cache", "gc", "--yes").code == 0
    rows = {b["fingerprint"]: b["rows"] for b in run("cache", "info", "--json").json["backbones"]}
    assert rows == dict.fromkeys((made["fingerprint"], exact["fingerprint"]), COUNT - 1)


def test_a_newer_calibration_takes_the_place_of_the_older(run: Run, extracted: Path, made: Any, tmp_path: Path) -> None:
    run("cache", "gc", "--yes", "--forget", made["dataset"])
    (network,) = int8_networks(tmp_path / "cache", made["fingerprint"])
    network.unlink()
    write_picture(extracted / "leaf" / "more.png", 500, TINTS["leaf"])
    newer = run("extract", extracted, "--precision", "int8", "--json", network=True).json
    assert newer["fingerprint"] != made["fingerprint"]
    assert (newer["computed"], newer["reused"]) == (COUNT + 1, 0)
    gone = run("cache", "gc", "--yes")
    assert f"an old fingerprint: extracted anew as {newer['fingerprint'][:16]}" in gone.out
    assert [b["fingerprint"] for b in run("cache", "info", "--json").json["backbones"]] == [newer["fingerprint"]]


def test_int8_features_travel_and_are_fitted_elsewhere(run: Run, extracted: Path, made: Any, tmp_path: Path) -> None:
    assert run("cache", "export", "small.npz").code == 0
    assert run("cache", "import", "small.npz", "--cache", "there").code == 0
    fitted = run("fit", "--cache", "there", "--json").json
    assert fitted["fingerprint"] == made["fingerprint"]
    write_picture(tmp_path / "new" / "0.png", 78, TINTS["leaf"])
    weights = run("predict", fitted["model"], "new", "--cache", "there", "--weights", made["weights_file"])
    refused(weights, "the int8 network of resnet18 that made these vectors", "is not in this cache")
    with Cache(tmp_path / "there") as cache:
        spec = cache.spec(made["fingerprint"])
    with Cache(tmp_path / "cache") as cache:
        assert spec == cache.spec(made["fingerprint"])
    np.testing.assert_array_equal(
        vectors(tmp_path / "there", made["fingerprint"], tmp_path / "small.npz"),
        vectors(tmp_path / "cache", made["fingerprint"], extracted),
    )


def test_int8_needs_the_network_of_its_own_spec(photos: Path, made: Any, tmp_path: Path, seeded_weights: Path) -> None:
    backbone = resolve("resnet18", seeded_weights)
    with Cache(tmp_path / "cache") as cache:
        spec = cache.spec(made["fingerprint"])
        assert spec.calibration is not None
        other = replace(spec, calibration=replace(spec.calibration, network_sha256="3" * 64))
        with pytest.raises(EngineError, match=r"that made these vectors \(sha256 3{16}\) is not in"):
            open_engine(backbone.making(other), "cpu", "auto", cache.networks)
    assert photos.exists()


# --- drafts ---


def photograph(path: Path, size: tuple[int, int], seed: int = 0, **how: Any) -> Path:
    """Write a picture with soft shapes and grain."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (9, 12, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    pixels = np.asarray(image) + random.normal(0, 6, (size[1], size[0], 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, **how)
    os.utime(path, (1, 1))
    return path


def test_drafted_pictures_have_other_vectors_close_to_the_exact_ones_and_others_the_same(
    run: Run, tmp_path: Path
) -> None:
    root = tmp_path / "some"
    photograph(root / "0.jpg", (2400, 1800), 0, quality=90)
    photograph(root / "1.jpg", (1800, 2400), 1, quality=90)
    photograph(root / "2.jpg", (640, 480), 2, quality=90)
    photograph(root / "3.png", (1200, 1100), 3)
    exact = run("extract", root, "--backbone", LITE, "--json").json
    draft = run("extract", root, "--backbone", LITE, "--draft", "--json").json
    assert draft["fingerprint"] != exact["fingerprint"]
    assert (draft["computed"], draft["precision"]) == (4, "fp32")
    one, other = (vectors(tmp_path / "cache", made["fingerprint"], root) for made in (draft, exact))
    found = cosines(one, other)
    assert found.min() > 0.98
    assert not np.array_equal(one[0], other[0])
    assert not np.array_equal(one[1], other[1])
    np.testing.assert_array_equal(one[2:], other[2:])
    again = run("extract", root, "--backbone", LITE, "--draft", "--json").json
    assert (again["reused"], again["computed"]) == (4, 0)
    with Cache(tmp_path / "cache") as cache:
        assert cache.spec(draft["fingerprint"]).decoding == DRAFT


@pytest.mark.parametrize(
    ("size", "format_", "decoded"),
    [
        ((2400, 1800), "JPEG", (1200, 900)),
        ((1800, 2400), "JPEG", (900, 1200)),
        ((4800, 4200), "JPEG", (600, 525)),
        ((9000, 8200), "JPEG", (1125, 1025)),
        ((1024, 1024), "JPEG", (512, 512)),
        ((1023, 1023), "JPEG", (1023, 1023)),
        ((640, 480), "JPEG", (640, 480)),
        ((100, 80), "JPEG", (100, 80)),
        ((2400, 1800), "PNG", (2400, 1800)),
        ((3000, 600), "JPEG", (3000, 600)),
    ],
)
def test_a_draft_has_fewer_pixels_and_twice_what_is_needed_at_least(
    size: tuple[int, int], format_: str, decoded: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, out, seen = resolve(LITE).spec.preprocess, io.BytesIO(), []
    Image.linear_gradient("L").resize(size).convert("RGB").save(out, format_)
    upright = featcache.decode._upright_rgb  # type: ignore[attr-defined]

    def noted(image: Image.Image, *reading: Any) -> Image.Image:
        image.load()
        seen.append(image.size)
        return upright(image, *reading)

    monkeypatch.setattr("featcache.decode._upright_rgb", noted)
    drafted = decode(out.getvalue(), steps, draft=True)
    exact = decode(out.getvalue(), steps)
    assert seen == [decoded, size]
    assert min(decoded) >= min(2 * steps.resize, *size)
    assert drafted.shape == exact.shape
    if decoded == size:
        np.testing.assert_array_equal(drafted, exact)
    assert np.abs(drafted.astype(int) - exact).max() < 12


def test_the_views_of_a_draft_and_its_orientation_are_those_of_the_picture() -> None:
    steps, out = resolve(LITE).spec.preprocess, io.BytesIO()
    x, y = np.meshgrid(np.linspace(0, 255, 2000), np.linspace(0, 255, 1500))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.stack([x, y, 255 - x], 2).astype(np.uint8)).save(out, "JPEG", exif=exif, quality=95)
    views = ["original", "flip", "crop-tl", "crop-br"]
    drafted = decode_views(out.getvalue(), steps, views, draft=True)
    for found, exact in zip(drafted, decode_views(out.getvalue(), steps, views), strict=True):
        assert np.abs(found.astype(int) - exact).max() < 8
    np.testing.assert_array_equal(drafted[1], drafted[0][:, ::-1])


def test_without_draft_nothing_is_drafted(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    draft = JpegImagePlugin.JpegImageFile.draft

    def noted(self: Any, *given: Any) -> Any:
        calls.append(given)
        return draft(self, *given)

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "draft", noted)
    photograph(tmp_path / "some" / "0.jpg", (1600, 1200))
    run("extract", "some", network=True)
    assert calls == []
    run("extract", "some", "--draft", network=True)
    assert len(calls) == 1
