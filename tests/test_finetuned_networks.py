"""Networks that were fine-tuned: their files, as backbones `runs:N`, among the runs, and beside heads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Result, write_picture
from finetune_rows import STEPS, TINTS, install, key_of, make_old, refused, tensors, toy, write_folder
from safetensors.torch import safe_open, save_file

import featcache
from featcache import Options, api, sealed
from featcache.api import Training
from featcache.backbones import finetuned, resolve, scratch_cnn
from featcache.backbones.finetuned import Finetuned
from featcache.errors import BackboneError, WeightsError
from featcache.evaluate import Outcome, paired_tests
from featcache.records import FeatureSpec
from featcache.store import Cache

Run = Callable[..., Result]

pytestmark = pytest.mark.usefixtures("one_thread")

TRAINING = Training(epochs=5, batch_size=6, lr=2e-3, unfreeze="2")


@pytest.fixture(scope="module")
def toy_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("toy") / "toy.pth"


@pytest.fixture(autouse=True)
def toy_is_known(monkeypatch: pytest.MonkeyPatch, toy_weights: Path) -> None:
    install(monkeypatch, toy_weights)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, toy_weights: Path) -> Path:
    """A folder with pictures and a cache, in which run 1 extracted them and run 2 fine-tuned a network on them."""
    folder = tmp_path_factory.mktemp("scene")
    make_old(write_folder(folder / "photos", {"train": 6, "val": 3, "test": 3}))
    with pytest.MonkeyPatch.context() as patch:
        install(patch, toy_weights)
        featcache.extract(folder / "photos", Options("toy", cache=folder / "cache"))
        shutil.copytree(folder / "cache", folder / "before")
        found = api.finetune(training=TRAINING, options=Options(cache=folder / "cache"))
    assert found.best_epoch > 0
    return folder


@pytest.fixture
def photos(scene: Path, tmp_path: Path) -> Path:
    shutil.copytree(scene / "cache", tmp_path / "cache")
    return scene / "photos"


@pytest.fixture
def plain(scene: Path, tmp_path: Path) -> Path:
    """The same pictures with the cache as it was before the training."""
    shutil.copytree(scene / "before", tmp_path / "cache")
    return scene / "photos"


@pytest.fixture
def own(scene: Path, tmp_path: Path) -> Path:
    """A copy of the pictures that may be changed, with a cache of its own."""
    shutil.copytree(scene / "photos", tmp_path / "photos")
    featcache.extract(tmp_path / "photos", Options("toy", cache=tmp_path / "cache"))
    return tmp_path / "photos"


@pytest.fixture
def model(photos: Path, tmp_path: Path) -> Path:
    return tmp_path / "cache" / "models" / "000002-finetune.safetensors"


def changed(source: Path, target: Path, **said: Any) -> Path:
    """Write the file with other words beside the same tensors, and a seal of its own."""
    content = sealed.unpack(source.read_bytes())
    assert content.known is not None
    target.write_bytes(sealed.pack(content.tensors, {**content.known, **said}))
    return target


# --- the file ---


def test_the_file_says_what_it_is_and_holds_network_and_top(model: Path) -> None:
    known = finetuned.read(model)
    assert (known.run, known.architecture, known.classes) == (2, "toy", ("leaf", "sand", "sky"))
    assert known.spec.backbone == "toy"
    assert (known.top[0].shape, known.top[1].shape) == ((3, 8), (3,))
    assert known.scores["split"] == "test"
    assert {"torch", "featcache"} <= known.versions.keys()
    held = tensors(model)
    assert {name for name in held if not name.startswith("featcache_top.")} == set(toy().state_dict())
    assert torch.equal(held["featcache_top.weight"], torch.from_numpy(known.top[0]))


def test_what_is_packed_is_read_back(tmp_path: Path) -> None:
    top = np.arange(6, dtype=np.float32).reshape(2, 3), np.array([1.5, -2.0], np.float32)
    spec = FeatureSpec("toy", "a" * 64, STEPS)
    known = Finetuned(7, "toy", spec, ("é", "b\n"), {"accuracy": 0.5}, {"torch": "2"}, top)
    (tmp_path / "a.safetensors").write_bytes(finetuned.pack(toy(), known))
    read = finetuned.read(tmp_path / "a.safetensors")
    assert (read.run, read.architecture, read.spec, read.classes, read.scores, read.versions) == (
        7,
        "toy",
        spec,
        ("é", "b\n"),
        {"accuracy": 0.5},
        {"torch": "2"},
    )
    assert all(np.array_equal(one, two) for one, two in zip(read.top, top, strict=True))
    assert all(torch.equal(tensors(tmp_path / "a.safetensors")[n], t) for n, t in toy().state_dict().items())


def test_the_network_of_a_file_computes_what_was_trained(model: Path) -> None:
    found = resolve("runs:2", model)
    assert found.name == "runs:2"
    assert "toy fine-tuned" in found.weights
    assert found.file == model
    network, x = found.build(), torch.randn(2, 3, 32, 32)
    expected = toy()
    expected.load_state_dict({n: t for n, t in tensors(model).items() if not n.startswith("featcache_top.")})
    with torch.no_grad():
        assert torch.equal(network(x), expected(x))
        assert not torch.equal(network(x), toy()(x))


@pytest.mark.parametrize("kind", ["foreign", "cut", "gone", "broken words", "no top"])
def test_a_file_that_is_no_fine_tuned_network_is_one_line(model: Path, tmp_path: Path, run: Run, kind: str) -> None:
    file = tmp_path / "other.safetensors"
    if kind == "foreign":
        save_file(toy().state_dict(), file)
    elif kind == "broken words":
        changed(model, file, spec="{}")
    elif kind == "no top":
        content = sealed.unpack(model.read_bytes())
        held = {name: tensor for name, tensor in content.tensors.items() if not name.startswith("featcache_top.")}
        file.write_bytes(sealed.pack(held, content.known or {}))
    elif kind != "gone":
        file.write_bytes(model.read_bytes()[:-100])
    said = "cannot read the model" if kind == "gone" else "cannot be used as a model"
    photos = tmp_path / "some"
    write_folder(photos, {"": 1}, ["leaf"])
    assert refused(run("predict", file, photos), said, str(file))
    if kind != "gone":
        said = "is not a network that featcache fine-tuned"
        assert refused(run("extract", photos, "--backbone", "runs:2", "--weights", file), said, str(file))


def test_a_file_of_another_run_or_architecture_is_refused(photos: Path, model: Path, tmp_path: Path, run: Run) -> None:
    assert refused(run("extract", photos, "--backbone", "runs:3", "--weights", model), "made by run 2", "runs:2")
    other = changed(model, tmp_path / "other.safetensors", architecture="scratch-cnn")
    assert refused(run("predict", other, photos / "test"), "do not fit this backbone")


def test_a_renamed_file_still_predicts(photos: Path, model: Path, tmp_path: Path, run: Run) -> None:
    expected = run("predict", model, photos / "test", "--json").json["predictions"]
    moved = tmp_path / "elsewhere" / "mine.safetensors"
    moved.parent.mkdir()
    model.rename(moved)
    result = run("predict", moved, photos / "test", "--json", "--cache", tmp_path / "another")
    assert result.code == 0
    assert [row["label"] for row in result.json["predictions"]] == [row["label"] for row in expected]


def test_a_network_that_was_changed_is_not_taken_for_the_one_that_made_the_vectors(
    photos: Path, model: Path, tmp_path: Path, run: Run
) -> None:
    assert run("extract", photos, "--backbone", "runs:2").code == 0
    head = run("fit", "--json").json["model"]
    held = tensors(model)
    held["conv1.weight"] = held["conv1.weight"] * 1.01
    with safe_open(model, "pt") as source:
        said = source.metadata()
    save_file(held, model, said)
    assert refused(run("predict", head, photos / "test"), "needs runs:2 with weights of sha256")


def test_neither_the_file_nor_a_head_needs_trust_in_another_cache(
    photos: Path, model: Path, tmp_path: Path, run: Run
) -> None:
    head = run("fit", "--json").json["model"]
    other = ["--cache", tmp_path / "another"]
    assert run("predict", model, photos / "test", *other).code == 0
    assert run("predict", head, photos / "test", *other).code == 0


def test_probabilities_are_those_of_the_networks_top(photos: Path, model: Path, tmp_path: Path) -> None:
    options = Options(cache=tmp_path / "cache")
    rows = featcache.predict(model, photos / "test", options=options).predictions
    from featcache.tuning.inputs import Pictures

    weight, bias = finetuned.read(model).top
    inputs = Pictures([row.path for row in rows], STEPS)
    ((_, x),) = inputs.batches([np.arange(len(rows))], 0)
    with torch.no_grad():
        logits = resolve("runs:2", model).build()(x) @ torch.from_numpy(weight).T + torch.from_numpy(bias)
    p = torch.softmax(logits.double(), 1).numpy()
    found = [[row.probabilities[label] for label in ("leaf", "sand", "sky")] for row in rows]
    np.testing.assert_allclose(found, p, atol=1e-4)


# --- as a backbone ---


def test_its_vectors_are_others_beside_those_of_the_network_it_came_from(
    photos: Path, tmp_path: Path, run: Run
) -> None:
    before = run("cache", "info", "--json").json["datasets"][0]["fingerprints"]
    found = run("extract", photos, "--backbone", "runs:2", "--json").json
    assert (found["backbone"], found["computed"], found["reused"]) == ("runs:2", 36, 0)
    assert found["fingerprint"] not in before
    with Cache(tmp_path / "cache") as cache:
        keys = [row.key for row in cache.catalog.dataset(str(photos)) if row.key]
        new, old = (cache.store(name).read(keys) for name in (found["fingerprint"], before[0]))
        assert cache.spec(found["fingerprint"]).backbone == "runs:2"
    assert not np.allclose(new, old, atol=1e-3)
    unused = run("cache", "gc", "--dry-run", "--json").json["unused"]
    assert [row["reason"] for row in unused] == ["kept for fine-tuning, and computed again where it is needed"]
    verified = run("cache", "verify", "--json").json
    assert (verified["orphaned"], verified["problems"]) == (0, [])
    assert {row["fingerprint"] for row in verified["datasets"]} == {found["fingerprint"], *before}
    assert all(row["valid"] == 36 for row in verified["datasets"])
    again = run("extract", photos, "--backbone", "runs:2", "--json").json
    assert (again["computed"], again["reused"]) == (0, 36)
    assert run("extract", photos, "--backbone", "toy", "--json").json["computed"] == 0


def test_a_head_on_its_vectors_predicts(photos: Path, model: Path, run: Run) -> None:
    assert run("extract", photos, "--backbone", "runs:2").code == 0
    fitted = run("fit", "--json").json
    assert fitted["backbone"] == "runs:2"
    rows = run("predict", fitted["model"], photos / "test", "--json").json
    assert rows["backbone"] == "runs:2"
    right = [row["label"] == Path(row["path"]).parent.name for row in rows["predictions"]]
    assert np.mean(right) == fitted["accuracy"]


def test_all_of_it_works_after_the_cache_was_moved(photos: Path, tmp_path: Path, run: Run) -> None:
    assert run("extract", photos, "--backbone", "runs:2").code == 0
    head = Path(run("fit", "--json").json["model"])
    (tmp_path / "cache").rename(tmp_path / "moved")
    folder = tmp_path / "moved" / "models"
    commands: list[list[Any]] = [
        ["predict", folder / head.name, photos / "test"],
        ["predict", folder / "000002-finetune.safetensors", photos / "test"],
        ["fit"],
        ["extract", photos, "--backbone", "runs:2"],
        ["finetune", "--epochs", "1"],
        ["compare", "--heads", "logreg", "--seeds", "1"],
    ]
    for words in commands:
        result = run(*words, "--cache", "moved")
        assert result.code == 0, result.err


def test_a_fine_tuned_network_is_fine_tuned_again(photos: Path, tmp_path: Path, run: Run) -> None:
    assert run("extract", photos, "--backbone", "runs:2").code == 0
    result = run("finetune", "--epochs", "2", "--lr", "0.02", "--json")
    assert result.code == 0, result.err
    found = result.json
    assert (found["network"], found["backbone"]) == ("runs:2", "runs:2")
    known = finetuned.read(Path(found["model"]))
    assert known.architecture == "toy"
    number = known.run
    rows = run("predict", found["model"], photos / "test", "--json").json["predictions"]
    assert np.mean([row["label"] == Path(row["path"]).parent.name for row in rows]) == found["accuracy"]
    third = run("extract", photos, "--backbone", f"runs:{number}", "--json").json
    assert (third["backbone"], third["computed"], third["reused"]) == (f"runs:{number}", 27, 9)


@pytest.mark.soak
def test_it_is_named_with_the_dataset_in_one_command(photos: Path, run: Run) -> None:
    result = run("finetune", photos, "--backbone", "runs:2", "--epochs", "1", "--json")
    assert result.code == 0, result.err
    assert result.json["network"] == "runs:2"
    result = run("fit", photos, "--backbone", "runs:2", "--json")
    assert result.json["backbone"] == "runs:2"


@pytest.mark.parametrize("name", ["runs:1", "runs:99", "runs:02"])
def test_a_run_that_fine_tuned_nothing_is_refused(photos: Path, run: Run, name: str) -> None:
    assert refused(run("extract", photos, "--backbone", name), "fine-tuned no network: `featcache runs` lists those")


def test_a_lost_file_is_named(photos: Path, model: Path, run: Run) -> None:
    model.unlink()
    assert refused(run("extract", photos, "--backbone", "runs:2"), str(model))


# --- the net that learned from nothing ---


def test_the_small_net_is_what_its_words_say() -> None:
    network = scratch_cnn.network(0)
    with torch.no_grad():
        assert network(torch.zeros(2, 3, 100, 100)).shape == (2, 256)
    kinds = [type(module).__name__ for module in network]  # type: ignore[attr-defined]
    assert kinds.count("Conv2d") == 4
    same, other = scratch_cnn.network(0).state_dict(), scratch_cnn.network(1).state_dict()
    assert all(torch.equal(tensor, same[name]) for name, tensor in network.state_dict().items())
    assert not torch.equal(network.state_dict()["0.weight"], other["0.weight"])
    assert scratch_cnn.untrained(0).spec.fingerprint != scratch_cnn.untrained(1).spec.fingerprint


def test_untrained_it_gives_no_vectors(photos: Path, run: Run) -> None:
    result = run("extract", photos, "--backbone", "scratch-cnn")
    assert refused(result, "scratch-cnn has learned nothing", "featcache finetune --backbone scratch-cnn")
    with pytest.raises(BackboneError):
        resolve("scratch-cnn")


def test_trained_it_is_a_backbone_like_others(photos: Path, tmp_path: Path, run: Run) -> None:
    found = run("finetune", photos, "--backbone", "scratch-cnn", "--epochs", "1", "--lr", "0.01", "--json").json
    number = finetuned.read(Path(found["model"])).run
    assert finetuned.read(Path(found["model"])).architecture == "scratch-cnn"
    rows = run("predict", found["model"], photos / "test", "--json").json["predictions"]
    assert np.mean([row["label"] == Path(row["path"]).parent.name for row in rows]) == found["accuracy"]
    extracted = run("extract", photos, "--backbone", f"runs:{number}", "--json").json
    assert (extracted["dim"], extracted["computed"], extracted["reused"]) == (256, 27, 9)
    assert run("fit", "--json").json["backbone"] == f"runs:{number}"


def test_weights_of_another_network_do_not_fit_the_small_net(tmp_path: Path) -> None:
    torch.save(toy().state_dict(), tmp_path / "toy.pth")
    with pytest.raises(WeightsError, match="do not fit this backbone"):
        resolve("scratch-cnn", tmp_path / "toy.pth").build()


# --- trainings among the runs ---


def test_runs_know_a_training(plain: Path, run: Run) -> None:
    first = run("finetune", "--epochs", "1", "--json").json
    second = run("finetune", "--epochs", "1", "--lr", "0.5", "--unfreeze", "all", "--json").json
    assert run("fit", "--json").code == 0
    rows = run("runs", "--json").json["rows"]
    assert [row["command"] for row in rows] == ["extract", "finetune", "finetune", "fit"]
    assert rows[1]["result"] == f"toy finetuned last {first['accuracy']:.3f}"
    assert "finetune" in run("runs").out
    shown = run("runs", "show", "2", "--json").json
    assert shown["summary"] == first
    text = run("runs", "show", "2").out
    assert "verdict" in text
    assert first["model"] in text
    both = run("runs", "compare", "2", "3", "--json").json
    assert {row["head"]: row["first"] for row in both["rows"]}["toy finetuned last"] == first["accuracy"]
    assert {row["head"]: row["second"] for row in both["rows"]}["toy finetuned all"] == second["accuracy"]
    assert run("runs", "compare", "2", "4").code == 0


# --- rows of a comparison ---

HEADS = ["--heads", "logreg,centroid", "--seeds", "1", "--json"]


def tuned_rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in found["rows"] if row["head"].startswith("runs:")]


def test_compare_has_a_row_for_each_training_of_the_same_split(plain: Path, run: Run) -> None:
    first = run("finetune", "--epochs", "1", "--json").json
    assert run("finetune", "--epochs", "1", "--json").code == 0  # takes the place of the one before
    second = run("finetune", "--epochs", "1", "--unfreeze", "all", "--lr", "0.5", "--json").json
    found = run("compare", *HEADS).json
    one, two = tuned_rows(found)
    assert [one["head"], two["head"]] == ["runs:3 toy finetuned last", "runs:4 toy finetuned all"]
    best = next(row for row in found["rows"] if row["verdict"] == "best")
    for row, known in ((one, first), (two, second)):
        assert row["accuracy"] == known["accuracy"]
        assert row["accuracy_interval"] == [known["accuracy_low"], known["accuracy_high"]]
        for name in ("balanced_accuracy", "macro_f1", "log_loss", "calibration_error"):
            assert row[name] == known[name]
        assert row["gain"] == pytest.approx(known["accuracy"] - best["accuracy"])
        assert row["gain_per_minute"] == pytest.approx(100 * row["gain"] / (row["fit_seconds"] / 60))
        expected = "tie" if row["p_value"] >= 0.05 else "better" if row["gain"] > 0 else "worse"
        assert row["verdict"] == expected
        assert row["chosen_by"] == "the epoch best on val"
    assert one["fit_seconds"] != first["seconds"]
    text = run("compare", *HEADS[:-1]).out
    assert "runs:3 toy finetuned last: " in text
    assert "worth it" in text
    assert "of finetuned rows Wilson's" in text


def test_the_p_value_of_a_row_is_that_of_the_predictions(plain: Path, run: Run, tmp_path: Path) -> None:
    """The run says that the network got other pictures wrong than it did, so that it differs from the head."""
    known = run("finetune", "--epochs", "1", "--unfreeze", "all", "--json").json
    test = sorted(key_of(path) for path in (plain / "test").rglob("*.png"))
    file = tmp_path / "cache" / "runs" / "000002.json"
    content = json.loads(file.read_text())
    del content["sha256"]
    content["summary"]["wrong"] = [key[:16] for key in test[:8]]
    content["summary"]["accuracy"] = 1 / 9
    file.write_text(json.dumps(content))
    (row,) = tuned_rows(found := run("compare", "--heads", "logreg", "--seeds", "1", "--json").json)
    fitted = run("fit", "--json").json
    predictions = run("predict", fitted["model"], plain / "test", "--json").json["predictions"]
    labels = [Path(each["path"]).parent.name for each in predictions]
    hits = {
        "logreg": np.array([each["label"] == label for each, label in zip(predictions, labels, strict=True)]),
        "network": np.array([key_of(each["path"]) not in test[:8] for each in predictions]),
    }
    codes = np.unique(labels, return_inverse=True)[1]
    expected = paired_tests([Outcome(np.arange(9), codes, hits)], "logreg", ["network", "logreg"])["network"]
    assert row["p_value"] == pytest.approx(expected, abs=1e-12)
    assert row["verdict"] == ("worse" if expected < 0.05 else "tie")
    assert row["gain"] == pytest.approx(1 / 9 - hits["logreg"].mean())
    assert known["split_digest"] == found["setting"]["split_digest"]


def test_a_training_on_another_split_or_dataset_is_no_row(own: Path, tmp_path: Path, run: Run) -> None:
    assert run("finetune", "--epochs", "1").code == 0
    assert len(tuned_rows(run("compare", *HEADS).json)) == 1
    options = Options("toy", cache=tmp_path / "cache")
    write_picture(own / "train" / "sky" / "new.png", 321, TINTS["sky"])
    featcache.extract(own, options)
    assert tuned_rows(run("compare", *HEADS).json) == []
    (own / "train" / "sky" / "new.png").unlink()
    featcache.extract(own, options)
    assert len(tuned_rows(run("compare", *HEADS).json)) == 1
    shutil.copytree(own, tmp_path / "twin")
    featcache.extract(tmp_path / "twin", options)
    assert tuned_rows(run("compare", *HEADS).json) == []
    (own / "test" / "sky" / "9.png").unlink()
    featcache.extract(own, options)
    found = run("compare", *HEADS).json
    assert tuned_rows(found) == []
    assert "finetuned" not in found["interval"]


@pytest.mark.soak
def test_a_split_made_here_gives_a_row_for_its_seed_only(tmp_path: Path, run: Run) -> None:
    write_folder(tmp_path / "photos", {"": 8})
    featcache.extract(tmp_path / "photos", Options("toy", cache=tmp_path / "cache"))
    known = run("finetune", "--epochs", "1", "--seed", "1", "--json").json
    assert tuned_rows(run("compare", *HEADS).json) == []
    (row,) = tuned_rows(run("compare", "--heads", "logreg,centroid", "--seeds", "2", "--json").json)
    assert row["accuracy"] == known["accuracy"]
    assert row["chosen_by"] == "the epoch best on 20 % of train"
