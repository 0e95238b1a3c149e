"""Models as ONNX files: what ONNX Runtime makes of real files is what `predict` says of them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from conftest import Result
from finetune_rows import STEPS, install, refused, toy, write_folder
from PIL import Image, ImageOps
from sklearn.model_selection import ParameterGrid
from sklearn.neural_network import MLPClassifier

import featcache
from featcache import Options
from featcache.api import exporting
from featcache.backbones.finetuned import Finetuned, pack
from featcache.decode import crops as decoded
from featcache.embed import cropping
from featcache.errors import EngineError, HeadError, ModelError, OutputError
from featcache.heads import HEADS, get
from featcache.heads.base import Classifier
from featcache.heads.graphs import graphs
from featcache.records import ORIGINAL, FeatureSpec, Preprocess

Run = Callable[..., Result]
Pixels = npt.NDArray[np.uint8]

pytestmark = pytest.mark.usefixtures("one_thread")

README = Path(__file__).parent.parent / "README.md"
SIZES = [(50, 40), (41, 77), (33, 32), (5, 9), (31, 31), (24, 130), (36, 37), (301, 203)]


def noise(size: tuple[int, int], seed: int) -> Pixels:
    """Coarse patches with fine noise, (height, width, 3)."""
    r = np.random.default_rng(seed)
    coarse = Image.fromarray(r.integers(0, 200, (4, 4, 3), np.uint8)).resize(size[::-1], Image.Resampling.NEAREST)
    return (np.asarray(coarse) + r.integers(0, 56, (*size, 3))).astype(np.uint8)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three classes, a cache with its views and a head, as a file too; and odd pictures in two formats."""
    folder = tmp_path_factory.mktemp("scene")
    write_folder(folder / "photos", {"train": 8, "test": 4})
    (folder / "odd").mkdir()
    for at, size in enumerate(SIZES):
        exif = Image.Exif()
        exif[0x0112] = 1 + at  # each of the eight orientations
        Image.fromarray(noise(size, at)).save(folder / "odd" / f"{at}.{'png' if at % 2 else 'jpg'}", exif=exif)
    options = Options("toy", cache=folder / "cache")
    with pytest.MonkeyPatch.context() as patch:
        install(patch, folder / "toy.pth")
        featcache.extract(folder / "photos", options, views=("flip", "crops5"))
        featcache.extract(folder / "odd", options)
        model = featcache.fit(folder / "photos", head="centroid", options=options).model
        featcache.export_onnx(model, folder / "centroid.onnx", options=options)
    return folder


@pytest.fixture(autouse=True)
def _toy_is_known(monkeypatch: pytest.MonkeyPatch, scene: Path) -> None:
    install(monkeypatch, scene / "toy.pth")


@pytest.fixture
def place(scene: Path, tmp_path: Path) -> Path:
    """A copy of the cache."""
    shutil.copytree(scene / "cache", tmp_path / "cache")
    return tmp_path / "cache"


def upright(path: str) -> Pixels:
    """The pixels of a file as a user of the ONNX file reads them."""
    return np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))


def check_equal(model: str, file: Path, source: Path, options: Options) -> npt.NDArray[np.float64]:
    """Compare every picture's probabilities with those of `predict`, and return them."""
    session = onnxruntime.InferenceSession(file)
    labels = json.loads(session.get_modelmeta().custom_metadata_map["labels"])
    rows = featcache.predict(model, source, options=options).predictions
    expected = np.array([[row.probabilities[label] for label in labels] for row in rows])
    found = np.concatenate([session.run(None, {"pixels": upright(row.path)[None]})[0] for row in rows])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert [labels[at] for at in found.argmax(1)] == [row.label for row in rows]
    assert np.ptp(expected, axis=0).max() > 0.05  # the pictures are told apart at all
    return expected


# --- the same as predict ---


@pytest.mark.parametrize("head", ["logreg", "knn", "svm-rbf", "mlp"])
def test_probabilities_of_files_are_those_of_predict(scene: Path, tmp_path: Path, head: str) -> None:
    options = Options(cache=scene / "cache")
    model = featcache.fit(scene / "photos", head=head, options=replace(options, backbone="toy")).model
    found = featcache.export_onnx(model, tmp_path / "model.onnx", options=options)
    assert (found.head, found.labels) == (head, ("leaf", "sand", "sky"))
    assert found.difference <= 1e-4
    check_equal(model, tmp_path / "model.onnx", scene / "odd", options)


@pytest.mark.parametrize("n_classes", [2, 5])
@pytest.mark.parametrize("name", HEADS)
def test_every_head_with_every_way_of_its_own(name: str, n_classes: int) -> None:
    r = np.random.default_rng(0)
    codes = np.arange(60) % n_classes
    X = (r.normal(size=(60, 6)) + codes[:, None] % 3).astype(np.float32)
    head = get(name)
    for params in ParameterGrid(dict(head.grid)):
        fitted = head.make(0, len(X)).set_params(**params).fit(X, codes)
        if isinstance(fitted, Classifier):
            fitted.set_params(temperature=0.3)
        np.testing.assert_allclose(ran(fitted, X[::-1] + 1), fitted.predict_proba(X[::-1] + 1), atol=2e-5)


@pytest.mark.parametrize("activation", ["identity", "logistic", "relu", "tanh"])
@pytest.mark.parametrize("n_classes", [2, 4])
def test_perceptrons_of_every_activation_and_depth(activation: str, n_classes: int) -> None:
    r = np.random.default_rng(0)
    X, y = r.normal(size=(40, 6)).astype(np.float32), np.arange(40) % n_classes
    head = MLPClassifier((7, 5), activation=activation, max_iter=5, random_state=0)
    with pytest.warns(match="Maximum iterations"):
        head.fit(X, y)
    np.testing.assert_allclose(ran(head, X), head.predict_proba(X), atol=1e-5)


def ran(estimator: Any, X: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Run the graphs of an estimator one after the other."""
    for part in graphs(estimator):
        model = onnx.helper.make_model(part, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
        (X,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": X})
    return X


def test_several_pictures_at_once(scene: Path) -> None:
    session = onnxruntime.InferenceSession(scene / "centroid.onnx")
    pixels = np.stack([noise((45, 60), seed) for seed in range(5)])
    (together,) = session.run(None, {"pixels": pixels})
    alone = [session.run(None, {"pixels": pixels[at : at + 1]})[0] for at in range(5)]
    assert together.shape == (5, 3)
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-6)


def test_the_mean_over_views_is_in_the_graph(scene: Path, place: Path, tmp_path: Path) -> None:
    options = Options("toy", cache=place)
    model = featcache.fit(scene / "photos", head="logreg", tta=True, options=options).model
    found = featcache.export_onnx(model, tmp_path / "model.onnx", options=options)
    assert found.views == (ORIGINAL, "crop-bl", "crop-br", "crop-tl", "crop-tr", "flip")
    check_equal(model, tmp_path / "model.onnx", scene / "odd", options)


def test_a_fine_tuned_network(scene: Path, place: Path, tmp_path: Path) -> None:
    top = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32), np.array([0.1, 0, -0.1], np.float32)
    scores = {"split": "test", "n": 9, "accuracy": 0.8, "accuracy_low": 0.5, "accuracy_high": 0.9}
    known = Finetuned(7, "toy", FeatureSpec("toy", "a" * 64, STEPS), ("c", "a", "b"), scores, {}, top)
    model = tmp_path / "tuned.safetensors"
    model.write_bytes(pack(toy(seed=1), known))
    found = featcache.export_onnx(model, tmp_path / "model.onnx", options=Options(cache=place))
    assert (found.head, found.backbone, found.labels) == ("fine-tuned", "runs:7", ("c", "a", "b"))
    assert (found.score["n"], found.score["seed"]) == (9, None)
    check_equal(str(model), tmp_path / "model.onnx", scene / "odd", Options(cache=place))


def test_a_network_in_int8(scene: Path, place: Path, tmp_path: Path) -> None:
    options = Options("toy", cache=place, precision="int8")
    model = featcache.fit(scene / "photos", options=options).model
    found = featcache.export_onnx(model, tmp_path / "model.onnx", options=options)
    assert found.precision == "int8"
    check_equal(model, tmp_path / "model.onnx", scene / "odd", options)


@pytest.mark.parametrize("mode", ["short", "squash"])
@pytest.mark.parametrize("sizes", [(36, 32), (24, 31), (40, 40), (33, 20)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_crops_are_those_of_pillow_to_the_bit(interpolation: str, sizes: tuple[int, int], mode: str) -> None:
    steps = Preprocess(*sizes, interpolation, STEPS.mean, STEPS.std, mode)
    views = (ORIGINAL, "flip", "crop-tl", "crop-tr", "crop-bl", "crop-br")
    graph = cropping.crops(steps, views)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    for at, size in enumerate([*SIZES, (1, 4), (1, 1), (120, 161), sizes, (400, 20)]):
        pixels = np.random.default_rng(at).integers(0, 256, (2, *size, 3), np.uint8)
        expected = np.stack([decoded(Image.fromarray(picture), steps, views) for picture in pixels], axis=1)
        (found,) = session.run(None, {"pixels": pixels})
        np.testing.assert_array_equal(found, expected.reshape(found.shape), str(size))


@pytest.mark.parametrize("size", [(9000, 30), (11000, 38), (30, 9000), (11000, 50)])
def test_crops_of_a_very_long_picture_are_those_of_pillow_to_one_level(size: tuple[int, int]) -> None:
    steps = Preprocess(40, 32, "lanczos", STEPS.mean, STEPS.std)
    graph = cropping.crops(steps)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    pixels = np.random.default_rng(0).integers(0, 256, (1, *size, 3), np.uint8)
    (found,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"pixels": pixels})
    (expected,) = decoded(Image.fromarray(pixels[0]), steps, (ORIGINAL,))
    np.testing.assert_allclose(found[0].astype(int), expected, atol=1)


# --- the file ---


def test_the_file_says_what_it_is(scene: Path) -> None:
    model = onnx.load(scene / "centroid.onnx")
    onnx.checker.check_model(model, full_check=True)
    (given,), (made,) = model.graph.input, model.graph.output
    assert (given.name, made.name) == ("pixels", "probabilities")
    assert [dim.dim_param or dim.dim_value for dim in given.type.tensor_type.shape.dim] == ["n", "height", "width", 3]
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 20}
    assert str(Path.home()) not in str(model)
    assert str(Path(featcache.__file__).parent) not in str(model)
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(said["labels"]) == ["leaf", "sand", "sky"]
    assert (said["backbone"], said["head"], said["featcache"]) == ("toy", "centroid", featcache.__version__)
    assert len(said["weights_sha256"]) == len(said["fingerprint"]) == 64
    score = json.loads(said["score"])
    assert (score["split"], score["n"], score["seed"]) == ("test", 12, 0)
    assert score["interval"][0] <= score["accuracy"] <= score["interval"][1]
    assert "short edge to 36 (bilinear, as Pillow), crop 32 x 32" in said["inside"]
    assert "EXIF: orientation applied" in said["outside"]


def test_the_lines_in_the_readme_read_it(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (lines,) = re.findall(r"```python\n(import json[^`]*onnxruntime[^`]*)```", README.read_text())
    shutil.copy(scene / "centroid.onnx", tmp_path / "ants-or-bees.onnx")
    shutil.copy(scene / "odd" / "2.jpg", tmp_path / "picture.jpg")
    monkeypatch.chdir(tmp_path)
    known: dict[str, Any] = {}
    exec(compile(lines, "README", "exec"), known)
    model = min((scene / "cache" / "models").glob("*-centroid.safetensors"))
    options = Options(cache=scene / "cache")
    (row,) = featcache.predict(model, tmp_path / "picture.jpg", options=options).predictions
    assert known["labels"] == list(row.probabilities)
    np.testing.assert_allclose(known["probabilities"][0], list(row.probabilities.values()), atol=1e-4)
    assert "'leaf': " in capsys.readouterr().out


def test_the_command_writes_beside_the_user_and_says_so(scene: Path, place: Path, tmp_path: Path, run: Run) -> None:
    model = Path(run("fit", scene / "photos", "--backbone", "toy", "--json").json["model"])
    found = run("export-onnx", model, "--json").json
    file = tmp_path / f"{model.stem}.onnx"
    assert (found["file"], found["bytes"]) == (file.name, file.stat().st_size)
    assert (found["opset"], found["labels"], found["views"]) == (20, ["leaf", "sand", "sky"], [ORIGINAL])
    said = run("export-onnx", model, "--out", "named.onnx").out
    assert f"named.onnx, {found['bytes'] / 1e6:.1f} MB, opset 20" in said
    assert "on test, n=12, seed 0" in said
    assert (tmp_path / "named.onnx").read_bytes() == file.read_bytes()


# --- refusals: one line, and no file ---


@pytest.fixture
def model(place: Path) -> Path:
    return min((place / "models").glob("*-centroid.safetensors"))


def test_other_probabilities_are_not_written(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    centre = cropping._CORNERS | {ORIGINAL: (0, 0)}
    monkeypatch.setattr(cropping, "_CORNERS", centre)  # the graph keeps another part of the picture
    with pytest.raises(ModelError, match=r"gives other probabilities .* no file was written"):
        featcache.export_onnx(model, tmp_path / "m.onnx", options=Options(cache=model.parent.parent))
    assert not (tmp_path / "m.onnx").exists()


def test_what_is_too_large_for_a_file_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setattr(exporting, "MAX_BYTES", 1000)
    assert refused(run("export-onnx", model, "--out", "m.onnx"), "an ONNX file holds 1,000: fit a head on fewer")
    assert not Path("m.onnx").exists()


@pytest.mark.parametrize("field", [{"precision": "fp16"}, {"draft": True}])
def test_vectors_of_other_pixels_are_refused(
    scene: Path, place: Path, tmp_path: Path, field: dict[str, Any], run: Run
) -> None:
    options = Options("toy", cache=place, **field)
    made = featcache.fit(scene / "photos", options=options).model
    word = "--draft" if "draft" in field else "fp16"
    assert refused(run("export-onnx", made), f"was fitted on vectors made with {word}", f"without {word} and fit again")


def test_the_floor_and_unknown_filters_are_refused(place: Path, tmp_path: Path) -> None:
    floor = featcache.fit(head="dummy", options=Options(cache=place)).model
    with pytest.raises(HeadError, match="DummyClassifier cannot be had in ONNX: fit another head"):
        featcache.export_onnx(floor, tmp_path / "m.onnx", options=Options(cache=place))
    with pytest.raises(EngineError, match="resized with hamming cannot be had in ONNX, only bilinear, bicubic"):
        cropping.crops(Preprocess(36, 32, "hamming", STEPS.mean, STEPS.std))


def test_a_model_of_another_cache_is_taken_as_it_is(model: Path, tmp_path: Path, run: Run) -> None:
    other = ["--cache", tmp_path / "another"]
    shutil.copytree(model.parent.parent / "networks", tmp_path / "another" / "networks", dirs_exist_ok=True)
    assert run("export-onnx", model, *other).code == 0


def test_a_place_that_cannot_be_written_is_refused(model: Path, tmp_path: Path, run: Run) -> None:
    assert refused(run("export-onnx", model, "--out", tmp_path / "no" / "m.onnx"), "there is no folder")
    with pytest.raises(OutputError, match="cannot write"):
        featcache.export_onnx(model, tmp_path / "no" / "m.onnx", options=Options(cache=model.parent.parent))
