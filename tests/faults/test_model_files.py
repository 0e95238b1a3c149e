"""Files of models and weights, damaged, swapped or made by a stranger: each ends in one line, and runs nothing."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
import shutil
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import joblib
import numpy as np
import pytest
import torch
from conftest import Result, load_saved
from finetune_rows import install, make_old, refused, toy, write_folder
from hypothesis import HealthCheck, given, settings
from model_rows import DIM, SCORES, SPEC, fitted, saved
from safetensors.numpy import load_file, save_file

import featcache
from featcache import Options, api, sealed
from featcache.api import Training
from featcache.api.models import Model, load_model, save_model
from featcache.backbones import finetuned, resolve, weights
from featcache.embed.onnx_engine import open_session
from featcache.errors import CacheError, EngineError, FeatcacheError, ModelError, WeightsError
from featcache.heads import FLOOR, HEADS, get
from featcache.heads.base import probabilities
from featcache.heads.scaling import VectorScaler
from featcache.store import Cache

Run = Callable[..., Result]

pytestmark = pytest.mark.usefixtures("one_thread")

ODD = ("a\x01b", "é\n", "\udc80", '"}]', "=1", "None", "🐜" * 50)


def read(path: Path) -> Model:
    """The model of a file of which no run knows."""
    with Cache(path.parent.parent) as cache:
        return load_model(cache, path, trust=False)


def rewritten(source: Path, change: Callable[[dict[str, Any], dict[str, sealed.Tensor]], Any]) -> Path:
    """The file with other content, and a right seal, as a stranger could write it."""
    content = sealed.unpack(source.read_bytes())
    known, tensors = copy.deepcopy(dict(content.known or {})), dict(content.tensors)
    change(known, tensors)
    target = source.with_name("changed.safetensors")
    target.write_bytes(sealed.pack(tensors, known))
    return target


def check_line(error: FeatcacheError) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < 1000


@contextmanager
def bounded(megabytes: float = 40, seconds: float = 20) -> Iterator[None]:
    """Fail where more memory or time is taken."""
    tracemalloc.start()
    start = time.perf_counter()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < megabytes * 2**20
        assert time.perf_counter() - start < seconds
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def toy_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("toy") / "toy.pth"


@pytest.fixture(autouse=True)
def toy_is_known(monkeypatch: pytest.MonkeyPatch, toy_weights: Path) -> None:
    install(monkeypatch, toy_weights)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file of each head, and of a fine-tuned network."""
    folder = tmp_path_factory.mktemp("files")
    made = {head: saved(folder, head, fitted(head), ("a", "b", "c")) for head in (*HEADS, FLOOR)}
    top = np.arange(24, dtype=np.float32).reshape(3, 8) / 10, np.array([1.5, -2.0, 0.0], np.float32)
    known = finetuned.Finetuned(7, "toy", SPEC, ("a", "b", "c"), SCORES, {"torch": "2"}, top)
    made["network"] = folder / "models" / "network.safetensors"
    made["network"].write_bytes(finetuned.pack(toy(), known))
    return made


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, toy_weights: Path) -> Path:
    """A cache in which run 1 extracted pictures with a view, run 3 fitted a head, and run 4 fine-tuned a network."""
    folder = tmp_path_factory.mktemp("scene")
    make_old(write_folder(folder / "photos", {"train": 6, "val": 3, "test": 3}))
    with pytest.MonkeyPatch.context() as patch:
        install(patch, toy_weights)
        options = Options("toy", cache=folder / "cache")
        featcache.extract(folder / "photos", options, views=("flip",))
        featcache.fit(options=Options(cache=folder / "cache"))
        api.finetune(training=Training(epochs=1, batch_size=6, unfreeze="2"), options=Options(cache=folder / "cache"))
    return folder


@pytest.fixture
def cache(scene: Path, tmp_path: Path) -> Path:
    """A copy of that cache, where the commands look for it."""
    return Path(_copied(scene / "cache", tmp_path / "cache"))


def _copied(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def model_of(cache: Path, kind: str) -> Path:
    (found,) = (cache / "models").glob(f"*-{kind}.safetensors")
    return found


# --- what is kept is what was fitted ---


@pytest.mark.parametrize("head", [*HEADS, FLOOR])
@pytest.mark.parametrize("n_classes", [2, 3, 7])
def test_every_head_comes_back_with_the_same_bits(tmp_path: Path, head: str, n_classes: int) -> None:
    for scaling, dtype in (("unit", "float32"), ("columns", "float64"), ("standard", "float32")):
        made = fitted(head, n_classes, scaling, dtype)
        path = saved(tmp_path, head, made, ODD[:n_classes])
        found = read(path)
        X = np.random.default_rng(9).normal(size=(33, DIM)).astype(dtype)
        assert np.array_equal(found.estimator.predict_proba(X), made.predict_proba(X))
        assert np.array_equal(probabilities(found.estimator, X), probabilities(made, X))
        assert found.classes == ODD[:n_classes]
        assert (found.spec, found.weights_file) == (SPEC, "/no/such.pth")
        assert (found.scores["accuracy"], found.scores["log_loss"]) == (0.5, None)
        known = get(head)
        again = known.keep(found.estimator.steps[-1][1])
        assert again.values == known.keep(made.steps[-1][1]).values


@pytest.mark.parametrize("head", [*HEADS, FLOOR])
def test_what_fit_says_is_what_its_file_predicts(scene: Path, cache: Path, head: str) -> None:
    options = Options(cache=cache)
    made = featcache.fit(head=head, options=options, train_views=True, tta=True)
    found = featcache.predict(made.model, scene / "photos" / "test", options=options).predictions
    hits = [row.label == Path(row.path).parent.name for row in found]
    assert np.mean(hits) == made.accuracy
    right = [row.probabilities[Path(row.path).parent.name] for row in found]
    assert -np.log(right).mean() == pytest.approx(made.log_loss, rel=1e-5)
    assert load_saved(made.model).scores["test_views"] == ["flip"]


def test_a_head_out_of_core_comes_back_too(scene: Path, cache: Path) -> None:
    options = Options(cache=cache, device="cpu")
    for head in ("logreg", "svm"):
        made = featcache.fit(head=head, options=options, out_of_core=True)
        found = featcache.predict(made.model, scene / "photos" / "test", options=options).predictions
        assert np.mean([row.label == Path(row.path).parent.name for row in found]) == made.accuracy
        kinds = [type(step) for _, step in load_saved(made.model).estimator.steps]
        assert kinds == [VectorScaler, type(get(head).make(0, 1))]


def test_the_same_fit_gives_the_same_bytes_and_others_can_read_them(tmp_path: Path) -> None:
    one, two = (saved(tmp_path / name, "logreg", fitted("logreg"), ("a", "b", "c")) for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert {name.partition(".")[0] for name in load_file(one)} == {"scaler", "axes", "head"}


def test_what_safetensors_writes_is_read(tmp_path: Path) -> None:
    tensors = {
        "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "count": np.array(3, np.int64),
        "none": np.zeros((0, 4), np.float16),
    }
    save_file(tensors, tmp_path / "a.safetensors", {"made by": "somebody"})
    found = weights.read_state(tmp_path / "a.safetensors")
    assert all(np.array_equal(found[name].numpy(), array) for name, array in tensors.items())
    assert {name: tensor.dtype for name, tensor in found.items()} == {
        "a.weight": torch.float32,
        "count": torch.int64,
        "none": torch.float16,
    }


# --- damage ---


@pytest.mark.parametrize("kind", ["logreg", "mlp", "network"])
def test_a_bit_that_flips_anywhere_is_refused(files: dict[str, Path], kind: str) -> None:
    path = files[kind]
    whole, target = path.read_bytes(), path.with_name("flipped.safetensors")
    bits = np.random.default_rng(0).integers(0, 8, len(whole))
    header = 8 + int.from_bytes(whole[:8], "little")
    places = [
        *range(0, header, 3 if kind == "network" else 1),
        *np.random.default_rng(1).integers(header, len(whole), 99),
    ]
    with Cache(path.parent.parent) as cache:
        for at in places:
            broken = bytearray(whole)
            broken[at] ^= 1 << bits[at]
            target.write_bytes(broken)
            with pytest.raises(ModelError, match=r"flipped\.safetensors cannot be used as a model") as caught:
                load_model(cache, target, trust=True)
            assert "\n" not in str(caught.value)
            if kind == "network":
                with pytest.raises(WeightsError):
                    finetuned.read(target)


@pytest.mark.parametrize("is_old", [False, True])
def test_a_flipped_exponent_in_a_fine_tuned_network_is_found(scene: Path, cache: Path, run: Run, is_old: bool) -> None:
    model = model_of(cache, "finetune")
    if is_old:
        make_version_1(cache, model)
        assert run("predict", model, scene / "photos" / "test").code == 0
        assert "sound" in run("cache", "verify").out
    broken = bytearray(model.read_bytes())
    broken[-1] ^= 0x40
    model.write_bytes(broken)
    assert refused(run("predict", model, scene / "photos" / "test"), str(model))
    number = int(model.name[:6])
    assert refused(run("extract", scene / "photos", "--backbone", f"runs:{number}"), str(model))
    verified = run("cache", "verify")
    assert verified.code == 1
    assert f"the model {model} is not the one that run {number} made" in verified.out


def make_version_1(cache: Path, model: Path) -> None:
    """Turn a fine-tuned network into a file as they were before they had a seal, noted by its run."""
    content = sealed.unpack(model.read_bytes())
    known = {name: value for name, value in (content.known or {}).items() if not name.startswith("format")}
    torch_tensors = weights.read_state(model)
    from safetensors.torch import save

    model.write_bytes(save(torch_tensors, {"featcache": json.dumps(known)}))
    note_again(cache, model)


def note_again(cache: Path, model: Path, name: str | None = None) -> None:
    """Let the run of a model note the file that lies there now."""
    path = cache / "runs" / f"{model.name[:6]}.json"
    run = json.loads(path.read_text())
    run.pop("sha256", None)  # of the run itself: one without is read as it is
    run["model_sha256"] = hashlib.sha256(model.read_bytes()).hexdigest()
    run["summary"]["model"] = str(model)
    path.write_text(json.dumps(run))


def test_a_missing_and_another_model_are_found_by_verify(cache: Path, scene: Path, run: Run) -> None:
    head, network = model_of(cache, "logreg"), model_of(cache, "finetune")
    assert run("cache", "verify").code == 0
    network.unlink()
    other = saved(scene / "other", "ridge", fitted("ridge", dim=8), ("leaf", "sand", "sky"))
    head.write_bytes(other.read_bytes())
    verified = run("cache", "verify", "--json").json["problems"]
    assert [line for line in verified if f"the model {network} of run" in line and "is missing" in line]
    assert [line for line in verified if f"the model {head} is not the one that run" in line]
    assert refused(run("predict", head, scene / "photos" / "test"), "it is not the file that run", "put that back")


def test_models_of_version_1_still_load(cache: Path, scene: Path, run: Run, tmp_path: Path) -> None:
    new = model_of(cache, "logreg")
    expected = run("predict", new, scene / "photos" / "test", "--json").json["predictions"]
    known = load_saved(new)
    old = new.with_suffix(".joblib")
    content = {"format": "featcache-model", "format_version": 1, "pipeline": known.estimator, "classes": known.classes}
    content |= {"spec": known.spec.to_json(), "weights_file": known.weights_file, "scores": dict(known.scores)}
    joblib.dump(content | {"versions": known.versions}, old)
    note_again(cache, old)  # whoever can write into the cache can note what they like
    assert refused(
        run("predict", old, scene / "photos" / "test"), "opening one can run any code: fit it again", "--trust"
    )
    assert run("predict", old, scene / "photos" / "test", "--trust", "--json").json["predictions"] == expected
    another = tmp_path / "mine.joblib"
    another.write_bytes(old.read_bytes())
    elsewhere = ["--cache", tmp_path / "another"]
    assert refused(run("predict", another, scene / "photos" / "test", *elsewhere), "--trust")
    assert run("predict", another, scene / "photos" / "test", "--trust", *elsewhere).code == 0
    old.write_bytes(old.read_bytes() + b"x")
    assert refused(run("predict", old, scene / "photos" / "test"), "--trust")
    assert f"the model {old} is not the one that run" in run("cache", "verify").out


# --- strangers ---


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("suffix", [".safetensors", ".joblib", ".pkl", ""])
def test_a_pickle_runs_under_no_name_without_trust(tmp_path: Path, scene: Path, run: Run, suffix: str) -> None:
    trace, bomb = tmp_path / "trace", tmp_path / f"bomb{suffix}"
    bomb.write_bytes(pickle.dumps(Bomb(trace)))
    assert run("predict", bomb, scene / "photos" / "test").code == 1
    assert run("extract", scene / "photos", "--backbone", "toy", "--weights", bomb).code == 1
    if suffix == ".safetensors":
        assert run("predict", bomb, scene / "photos" / "test", "--trust").code == 1
    assert not trace.exists()


def test_a_renamed_file_of_data_is_never_unpickled(files: dict[str, Path]) -> None:
    path = files["logreg"].with_name("model.joblib")
    path.write_bytes(files["logreg"].read_bytes())
    assert read(path).classes == ("a", "b", "c")


@pytest.mark.parametrize("place", ["pipe", "folder", "device", "gone"])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, run: Run, scene: Path, place: str) -> None:
    path = tmp_path / "it.safetensors"
    if place == "pipe":
        os.mkfifo(path)
    elif place == "folder":
        path.mkdir()
    elif place == "device":
        path.symlink_to("/dev/zero")
    with bounded(seconds=10):
        assert refused(run("predict", path, scene / "photos"), "cannot read the model")
        assert refused(
            run("extract", scene / "photos", "--backbone", "toy", "--weights", path), "cannot read the weights"
        )


def test_a_file_that_is_swapped_between_check_and_use_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    network = toy(seed=0).state_dict()
    path.write_bytes(sealed.pack({name: weights.of_torch(tensor) for name, tensor in network.items()}, {}))
    found = resolve("scratch-cnn", path)
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(WeightsError, match=r"mine\.safetensors has changed since its weights were looked up"):
        found.build()


def test_a_zip_that_unpacks_to_more_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    torch.save({"a": torch.zeros(2**22)}, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for entry in plain.infolist():
            archive.writestr(entry.filename, plain.read(entry))
    assert torch.load(path, weights_only=True)["a"].shape == (2**22,)
    with bounded(), pytest.raises(WeightsError, match=r"bomb\.pth is not a state dict that can be read safely"):
        weights.read_state(path)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"classes": ["a", "a", "b"]}, "classes"),
        ({"classes": ["a", "b"]}, "shape"),
        ({"classes": [1, 2, 3]}, "classes"),
        ({"classes": []}, "classes"),
        ({"classes": ["", "b", "c"]}, "classes"),
        ({"classes": ["\u2003", "b", "c"]}, "classes"),
        ({"classes": ["a\0", "b", "c"]}, "NUL"),
        ({"classes": ["\ud800", "b", "c"]}, "surrogate"),
        ({"classes": ["a" * 1001, "b", "c"]}, "1,001 characters"),
        ({"head": "os"}, "unknown head"),
        ({"head": "../logreg"}, "unknown head"),
        ({"head": "ridge"}, "missing"),
        ({"steps": {}}, "steps"),
        ({"format_version": 3}, "format"),
        ({"scores": {}}, "accuracy"),
        ({"scores": SCORES | {"accuracy": 10**4000, "log_loss": 1}}, "the accuracy among its scores is 1000"),
        ({"scores": SCORES | {"accuracy_high": 1.5, "log_loss": 1}}, "accuracy_high"),
        ({"scores": SCORES | {"n": -5, "log_loss": 1}}, "the n among"),
        ({"scores": SCORES | {"seed": 10**4000, "log_loss": 1}}, "the seed among"),
        ({"scores": SCORES | {"head": "x" * 2000, "log_loss": 1}}, "the head among"),
        ({"spec": replace(SPEC, backbone="z" * 10**5).to_json()}, "100,000 characters"),
        ({"spec": replace(SPEC, preprocess=replace(SPEC.preprocess, crop=100_000)).to_json()}, "crop .* 100000 pixels"),
        ({"scores": SCORES | {"test_views": ["sideways"], "log_loss": 1}}, "sideways"),
        ({"spec": "[" * 500}, "spec"),
        ({"spec": replace(SPEC, precision="fp1").to_json()}, "fp1"),
        ({"extra": 1}, "nothing else"),
    ],
)
def test_words_that_disagree_are_refused(files: dict[str, Path], values: dict[str, Any], word: str) -> None:
    path = rewritten(files["logreg"], lambda known, tensors: known.update(values))
    with pytest.raises(ModelError, match=word) as caught:
        read(path)
    check_line(caught.value)


@pytest.mark.parametrize("classes", [["", "b", "c"], ["a\0", "b", "c"], ["a", "a", "c"], ["a" * 1001, "b", "c"]])
def test_a_fine_tuned_network_with_names_that_a_dataset_could_not_have_is_refused(
    files: dict[str, Path], classes: list[str]
) -> None:
    path = rewritten(files["network"], lambda known, tensors: known.update(classes=classes))
    with pytest.raises(ModelError, match="its classes cannot be used") as caught:
        read(path)
    check_line(caught.value)


def test_a_file_with_an_endless_word_is_refused_in_a_short_line(files: dict[str, Path]) -> None:
    path = rewritten(files["logreg"], lambda known, tensors: known.update(head="z" * 10**6))
    with pytest.raises(ModelError, match="unknown head") as caught:
        read(path)
    check_line(caught.value)


@pytest.mark.parametrize("command", ["fit", "finetune"])
def test_a_class_that_no_model_can_hold_is_refused_before_anything_is_learned(
    command: str, run: Run, cache: Path, tmp_path: Path
) -> None:
    write_folder(tmp_path / "blank", {"train": 6, "test": 3})
    for part in ("train", "test"):
        next(path for path in sorted((tmp_path / "blank" / part).iterdir())).rename(
            tmp_path / "blank" / part / "\u2003"
        )
    assert run("extract", tmp_path / "blank", "--backbone", "toy").code == 0
    before = sorted((tmp_path / "cache" / "models").iterdir())
    result = run(command)
    assert refused(result, "can be in no model", "rename it")
    assert sorted((tmp_path / "cache" / "models").iterdir()) == before


@pytest.mark.parametrize(
    ("head", "name", "value"),
    [
        ("knn", "head._codes", np.array([*range(23), 24])),
        ("knn", "head._codes", np.full(24, -1)),
        ("knn", "head._firsts", np.full(24, 99)),
        ("svm-rbf", "head._ends", np.array([2**62, 0, 24])),
        ("logreg", "head.intercept_", np.array([np.nan, 0, 0])),
        ("logreg", "head.coef_", np.zeros((3, 10**6 // 3), np.float32)),
        ("ridge", "scaler.scale_", np.zeros(DIM)),
        ("lda", "scaler.mean_", np.full(DIM, np.inf)),
        ("centroid", "axes.components_", np.zeros((3, DIM - 1))),
        ("mlp", "head.weight1", np.zeros((256, 4))),
        ("dummy", "head.class_prior_", np.array([-1.0, 1, 1])),
        ("svm", "head.more", np.zeros(1)),
        ("svm", "tail.more", np.zeros(1)),
    ],
)
def test_arrays_that_disagree_are_refused(files: dict[str, Path], head: str, name: str, value: Any) -> None:
    def change(known: dict[str, Any], tensors: dict[str, sealed.Tensor]) -> None:
        tensors.pop(f"{name}.T", None)
        tensors[name] = sealed.of_array(value)

    with pytest.raises(ModelError, match=name.rpartition(".")[2].replace(".", r"\.")):
        read(rewritten(files[head], change))


@pytest.mark.parametrize("file", ["a\0b", "x" * 100_000, "/" + "y/" * 5000])
def test_where_the_weights_lay_may_be_anything(cache: Path, scene: Path, run: Run, file: str) -> None:
    def change(known: dict[str, Any], tensors: dict[str, sealed.Tensor]) -> None:
        known["weights_file"] = file

    result = run("predict", rewritten(model_of(cache, "logreg"), change), scene / "photos")
    assert "Traceback" not in result.err
    assert result.code == 0, result.err  # the network that is known here has the same weights
    assert max(map(len, result.err.splitlines())) < 1000


def test_what_is_no_model_is_not_said_to_be_an_old_one(cache: Path, scene: Path, run: Run, tmp_path: Path) -> None:
    picture = next((scene / "photos").rglob("*.png"))
    for words in ((), ("--trust",)):
        assert refused(run("predict", picture, scene / "photos", *words), "is no model")


def test_a_head_for_other_vectors_is_one_line(cache: Path, scene: Path, tmp_path: Path, run: Run) -> None:
    own = model_of(cache, "logreg")
    known = load_saved(own)
    with Cache(tmp_path / "another") as other:
        save_model(other, "models/x.safetensors", "logreg", replace(known, estimator=fitted("logreg", dim=20)))
    path = tmp_path / "another" / "models" / "x.safetensors"
    assert refused(run("predict", path, scene / "photos" / "test"), "reads vectors of 20 values")
    assert refused(run("export-onnx", path), "reads vectors of 20 values")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
ODD_VALUES = st.sampled_from([10**12, -1, 2**70, 1e308, 1e-320, "", [], {}, [10**12], True, None, "nan"]) | JSON
fuzz = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def paths_in(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in plain values."""
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield (*at, key)
            yield from paths_in(value[key], (*at, key))


def changed_somewhere(draw: Any, value: Any) -> None:
    """Change, remove or add one value somewhere inside."""
    *above, last = draw(st.sampled_from(list(paths_in(value))))
    for key in above:
        value = value[key]
    what = draw(st.sampled_from(["set", "remove", "add"]))
    if what == "remove":
        del value[last]
    elif what == "add" and isinstance(value, dict):
        value[draw(st.text(max_size=8))] = draw(ODD_VALUES)
    else:
        value[last] = draw(ODD_VALUES)


def change_tensor(draw: Any, tensors: dict[str, sealed.Tensor]) -> None:
    name = draw(st.sampled_from(sorted(tensors)))
    held = tensors.pop(name)
    what = draw(st.sampled_from(["remove", "rename", "shape", "values", "type", "turn"]))
    if what == "rename":
        tensors[draw(st.text(max_size=5)) + name] = held
    elif what == "shape":
        tensors[name] = sealed.of_array(np.zeros(draw(st.lists(st.integers(0, 30), max_size=3))))
    elif what == "values":
        value = draw(st.sampled_from([np.nan, np.inf, -1, 0, 1e38, 2**40]))
        tensors[name] = sealed.of_array(np.full(held.shape, value).astype(held.array().dtype))
    elif what == "type":
        tensors[name] = replace(held, dtype=draw(st.sampled_from(["U8", "BF16", "BOOL"])), shape=(len(held.data),))
        tensors[name] = replace(tensors[name], shape=(len(held.data) // sealed.SIZES[tensors[name].dtype],))
    elif what == "turn":
        tensors[name] = replace(held, shape=held.shape[::-1])


@pytest.mark.slow
@pytest.mark.parametrize("head", [*HEADS, FLOOR])
@fuzz
@given(data=st.data())
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_heads_of_strangers_load_as_heads_or_end_in_one_line(
    files: dict[str, Path], head: str, data: st.DataObject
) -> None:
    def change(known: dict[str, Any], tensors: dict[str, sealed.Tensor]) -> None:
        for _ in range(data.draw(st.integers(1, 2))):
            if data.draw(st.booleans()):
                changed_somewhere(data.draw, known)
            else:
                change_tensor(data.draw, tensors)

    path = rewritten(files[head], change)
    with bounded():
        try:
            found = read(path)
        except ModelError as error:
            check_line(error)
        else:
            X = np.ones((2, found.estimator.n_features_in_), np.float32)
            assert probabilities(found.estimator, X).shape == (2, len(found.classes))


@fuzz
@given(data=st.data())
def test_networks_of_strangers_load_or_end_in_one_line(files: dict[str, Path], data: st.DataObject) -> None:
    def change(known: dict[str, Any], tensors: dict[str, sealed.Tensor]) -> None:
        changed_somewhere(data.draw, known)
        if data.draw(st.booleans()):
            tensors["featcache_top.weight"] = sealed.of_array(
                np.zeros(data.draw(st.lists(st.integers(0, 9), max_size=3)))
            )

    path = rewritten(files["network"], change)
    with bounded(), Cache(path.parent.parent) as cache:
        try:
            finetuned.read(path)
            load_model(cache, path, trust=False)
        except FeatcacheError as error:
            check_line(error)


def header_of(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["knn", "network"])
@settings(fuzz, max_examples=300)
@given(data=st.data())
def test_headers_that_lie_end_in_one_line(files: dict[str, Path], kind: str, data: st.DataObject) -> None:
    header, body = header_of(files[kind].read_bytes())
    for _ in range(data.draw(st.integers(1, 2))):
        changed_somewhere(data.draw, header) if header else None
    text = json.dumps(header).encode()
    length = data.draw(st.sampled_from([len(text), len(text), len(text), 0, 2**63, len(text) + len(body) + 1]))
    path = files[kind].with_name("lying.safetensors")
    path.write_bytes(length.to_bytes(8, "little") + text + body)
    with bounded():
        with pytest.raises(ModelError):
            read(path)
        try:
            weights.read_state(path)
        except WeightsError as error:
            check_line(error)


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 10**6,
        b'{"a":' * 10**5,
        b'{"__metadata__":{"featcache":"' + b"[" * 10**6 + b'"}}',
        b'{"a":1,"a":1}',
        b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}',
        b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}',
        b'{"a":{"dtype":"F32","shape":[' + b"9," * 10**5 + b'0],"data_offsets":[0,0]}}',
        b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,0]}}',
        b"\xff" * 100,
        b"",
    ],
)
def test_headers_that_ask_for_too_much_are_refused_at_once(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "huge.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with bounded(megabytes=80), Cache(tmp_path / "cache") as cache:
        with pytest.raises(WeightsError, match=r"huge\.safetensors"):
            weights.read_state(path)
        with pytest.raises(ModelError, match=r"huge\.safetensors"):
            load_model(cache, path, trust=True)


@settings(fuzz, max_examples=100)
@given(data=st.data())
def test_broken_pth_files_end_in_one_line(files: dict[str, Path], data: st.DataObject) -> None:
    path = files["network"].with_name("broken.pth")
    torch.save({"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1)}, path)
    broken = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(broken[: data.draw(st.integers(len(broken) // 2, len(broken)))])
    with bounded():
        try:
            assert all(isinstance(tensor, torch.Tensor) for tensor in weights.read_state(path).values())
        except WeightsError as error:
            check_line(error)


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_pth_file_calls_nothing_that_a_state_dict_does_without(is_zip: bool, tmp_path: Path) -> None:
    path, plain = tmp_path / "bomb.pth", toy().state_dict()
    call = b"\x80\x02cbuiltins\nbytearray\nJ" + struct.pack("<i", 2**29) + b"\x85R."
    torch.save(plain, path, _use_new_zipfile_serialization=is_zip)
    assert set(weights.read_state(path)) == set(plain)
    if is_zip:
        with zipfile.ZipFile(path) as archive:
            members = {entry.filename: archive.read(entry) for entry in archive.infolist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, call if name.endswith("data.pkl") else data)
    else:
        magic = torch.serialization.MAGIC_NUMBER
        path.write_bytes(b"".join(pickle.dumps(part, 2) for part in (magic, 1001, {})) + call + pickle.dumps([], 2))
    assert len(torch.load(path, weights_only=True)) == 2**29
    with bounded(), pytest.raises(WeightsError, match=r"bomb\.pth is not a state dict that can be read safely"):
        weights.read_state(path)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.eye(3).to_sparse(),
        torch.zeros(3, device="meta"),
        torch.zeros(3, dtype=torch.complex64),
    ],
    ids=["sparse", "meta", "complex"],
)
def test_tensors_that_are_no_plain_numbers_are_refused(tmp_path: Path, tensor: torch.Tensor) -> None:
    torch.save({"a": tensor}, tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match=r"odd\.pth"):
        weights.read_state(tmp_path / "odd.pth")


def test_names_of_tensors_stay_in_the_line(tmp_path: Path) -> None:
    state = toy().state_dict() | {"a\nTraceback": torch.zeros(1), "b" * 10**5: torch.zeros(1)}
    with pytest.raises(WeightsError, match="unexpected") as caught:
        weights.fill(toy(), state, (), "odd.pth")
    check_line(caught.value)
    torch.save({f"_blocks.{'9' * 5000}.x": torch.zeros(1)}, tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match="unexpected"):
        resolve("efficientnet_lite0", tmp_path / "odd.pth").build()


# --- what else the cache opens ---


def test_a_damaged_state_of_a_training_is_refused(tmp_path: Path) -> None:
    with Cache(tmp_path / "cache") as cache:
        checkpoint = cache.checkpoint("a" * 16)
        checkpoint.save(b"state" * 100)
        assert checkpoint.load() == b"state" * 100
        whole = checkpoint.path.read_bytes()
        for at in range(21, len(whole)):
            broken = bytearray(whole)
            broken[at] ^= 0x10
            checkpoint.path.write_bytes(broken)
            with pytest.raises(CacheError, match="is damaged: remove it, and training begins anew"):
                checkpoint.load()
        checkpoint.path.write_bytes(b"of an older version")
        assert checkpoint.load() == b"of an older version"


def test_a_state_of_a_training_that_would_run_code_does_not(scene: Path, cache: Path, tmp_path: Path, run: Run) -> None:
    trace = tmp_path / "trace"
    words = ("finetune", scene / "photos", "--epochs", "1", "--batch-size", "6", "--unfreeze", "last")
    (cache / "trainings").mkdir(exist_ok=True)
    with Cache(cache) as opened:
        checkpoints: list[Path] = []
        real = type(opened).checkpoint

        def noted(self: Cache, digest: str) -> Any:
            found = real(self, digest)
            torch.save({"identity": Bomb(trace)}, found.path)
            checkpoints.append(found.path)
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Cache, "checkpoint", noted)
            assert refused(run(*words), "cannot be gone on from", "remove it")
    assert checkpoints
    assert not trace.exists()


@pytest.mark.parametrize("location", ["outside.bin", "../outside.bin", "absolute"])
def test_a_network_that_names_other_files_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str
) -> None:
    from onnx import TensorProto, helper

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for file in (tmp_path / "outside.bin", tmp_path / "here" / "outside.bin"):
        file.write_bytes(np.arange(64, dtype=np.float32).tobytes())
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[64], data_location=TensorProto.EXTERNAL)
    where = str(tmp_path / "outside.bin") if location == "absolute" else location
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", where
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 64]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Mul", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [tensor])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    with pytest.raises(EngineError, match="ONNX Runtime cannot read the network of toy") as caught:
        open_session(model.SerializeToString(), "toy")
    assert "\n" not in str(caught.value)
    if location == "outside.bin":  # opened without care it reads the other file
        import onnxruntime

        found = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        assert found.run(None, {"x": np.ones((4, 64), np.float32)})[0][0].tolist() == list(range(64))


def test_the_bytes_of_a_network_are_those_that_were_checked(tmp_path: Path) -> None:
    with Cache(tmp_path / "cache") as cache:
        path = cache.networks.keep("f" * 64, b"network")
        assert cache.networks.find("f" * 64) == path
        path.write_bytes(b"another")  # after it was found to be whole
        assert cache.networks.read("f" * 64) is None
        assert not path.exists()
        assert [kept.read_bytes() for kept in cache.quarantined()] == [b"another"]


def test_an_index_comes_back_as_it_was() -> None:
    pytest.importorskip("faiss")
    from featcache.search import Index

    X = np.random.default_rng(0).normal(size=(900, 24)).astype(np.float32)
    made = Index.train(X, 9).filled([(np.arange(400), X[:400]), (np.arange(400, 900), X[400:])])
    found = Index.from_bytes(made.to_bytes())
    assert (len(found), found.dim, found.to_bytes()) == (900, 24, made.to_bytes())
    for row in range(0, 900, 90):
        for one, other in zip(found.candidates(X[row], 40), made.candidates(X[row], 40), strict=True):
            assert one.tolist() == other.tolist()
    with pytest.raises(CacheError, match="its values are none that it can have"):  # an empty one finds nothing
        Index.from_bytes(Index.train(X, 9).to_bytes())


def test_an_index_that_is_none_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    from featcache.search import Index

    with pytest.raises(CacheError, match="it cannot be read as an index"):
        Index.from_bytes(b"nothing of an index" * 10)


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    return isinstance(value, str | int | float | list | None)


def test_what_stands_beside_the_tensors_is_strict_json(files: dict[str, Path]) -> None:
    for path in files.values():
        header, _ = header_of(path.read_bytes())
        known = json.loads(header["__metadata__"]["featcache"], parse_constant=lambda word: pytest.fail(word))
        assert _is_plain(known)
