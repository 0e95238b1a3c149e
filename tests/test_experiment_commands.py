"""Experiments by the command line: heads compared, grids, confusions, what the cache remembers of them, and files."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINTS, Result, load_saved, write_picture

import featcache
from featcache.heads import FLOOR, HEADS
from featcache.records.experiments import FitSummary, TrialRow
from featcache.render.experiments import fit_page
from featcache.render.tables import text

Run = Callable[..., Result]

pytestmark = pytest.mark.usefixtures("one_thread", "ready_network")

KINDS = {**TINTS, "moss": (70, 175, 70)}
SECONDS = {"fit_seconds", "predict_seconds", "shared_seconds"}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, seeded_weights: Path) -> Path:
    """A folder with a cache into which `photos`, four classes of ten pictures, was extracted; two are hard to tell."""
    folder = tmp_path_factory.mktemp("scene")
    for at, (label, tint) in enumerate(KINDS.items()):
        for number in range(10):
            write_picture(folder / "photos" / label / f"{number}.png", 100 * at + number, tint)
    for path in (folder / "photos").rglob("*.png"):
        os.utime(path, (1, 1))
    featcache.extract(folder / "photos", featcache.Options("resnet18", seeded_weights, folder / "cache"))
    return folder


@pytest.fixture
def photos(scene: Path, tmp_path: Path) -> Path:
    """The pictures of `scene`, with a copy of its cache in the folder where commands are run."""
    shutil.copytree(scene / "cache", tmp_path / "cache")
    return scene / "photos"


def manifest(path: Path, rows: list[tuple[Path, str, str]]) -> Path:
    """Write a CSV of pictures with labels and splits."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("path", "label", "split"), *((str(picture), *rest) for picture, *rest in rows)])
    return path


def split_up(photos: Path, tmp_path: Path, parts: dict[str, range]) -> Path:
    """Write a manifest that puts numbers of each class of `photos` into splits."""
    rows = [
        (photos / label / f"{number}.png", label, split)
        for label in KINDS
        for split, numbers in parts.items()
        for number in numbers
    ]
    return manifest(tmp_path / "split.csv", rows)


def timeless(value: Any) -> Any:
    """Return a summary without what may differ from run to run."""
    if isinstance(value, dict):
        return {name: timeless(given) for name, given in value.items() if name not in SECONDS}
    return [timeless(given) for given in value] if isinstance(value, list) else value


def said(result: Result) -> list[str]:
    """Return the lines on stderr that are featcache's own."""
    return [line for line in result.err.splitlines() if line.startswith("featcache: ")]


def refused(result: Result, words: str) -> bool:
    """Tell whether a command failed with one line that has these words, and nothing on stdout."""
    lines = said(result)
    return (result.code, result.out, len(lines)) == (1, "", 1) and words in lines[0] and "Traceback" not in result.err


# --- compare ---


@pytest.mark.slow
@pytest.mark.usefixtures("photos")
def test_compare_gives_one_row_a_head_with_its_setting(run: Run) -> None:
    found = run("compare", "--seeds", "3", "--json").json
    rows = {row["head"]: row for row in found["rows"]}
    assert [row["head"] for row in found["rows"]] == [*HEADS, FLOOR]
    setting = found["setting"]
    assert (setting["seeds"], setting["n_classes"], setting["n_train"], setting["n_test"]) == ([0, 1, 2], 4, 32, 8)
    assert (setting["scored_split"], setting["fitted_on"]) == ("test", "train")
    assert setting["split_sizes"] == {"test": 8, "train": 32}
    assert len(bytes.fromhex(setting["split_digest"])) == 32
    assert {"featcache", "scikit-learn", "numpy", "torch"} <= set(setting["versions"])
    assert (setting["train_views"], setting["test_views"]) == ([], [])
    for row in rows.values():
        assert row["error"] is None
        assert len(row["accuracies"]) == len(row["params"]) == 3
        assert row["accuracy"] == pytest.approx(np.mean(row["accuracies"]))
        for score, interval in (("accuracy", "accuracy_interval"), ("balanced_accuracy", "balanced_interval")):
            assert 0 <= row[interval][0] <= row[score] <= row[interval][1] <= 1
        assert row["fit_seconds"] >= 0
        assert row["predict_seconds"] >= 0
    best = max(HEADS, key=lambda head: rows[head]["accuracy"])
    assert rows[best]["verdict"] == "best"
    assert rows[best]["p_value"] is None
    assert rows[FLOOR]["verdict"] == "floor"
    assert rows[FLOOR]["accuracy"] == pytest.approx(0.25)
    assert {row["verdict"] for head, row in rows.items() if head not in (best, FLOOR)} <= {"tie", "worse"}
    assert all(0 < rows[head]["p_value"] <= 1 for head in HEADS if head != best)
    assert rows[best]["accuracy"] > 0.6


@pytest.mark.usefixtures("photos")
def test_compare_makes_another_split_for_each_seed_and_keeps_it(run: Run, tmp_path: Path) -> None:
    one = run("compare", "--heads", "logreg,knn", "--seeds", "1", "--json").json
    three = run("compare", "--heads", "logreg,knn", "--seeds", "3", "--json").json
    assert [row["head"] for row in one["rows"]] == ["logreg", "knn"]
    assert [len(row["accuracies"]) for row in one["rows"]] == [1, 1]
    assert [row["accuracies"][0] for row in three["rows"]] == [row["accuracy"] for row in one["rows"]]
    assert one["setting"]["split_digest"] != three["setting"]["split_digest"]
    assert "over 8 scored pictures; of balanced accuracy Wilson's" in one["interval"]
    assert "3 seeds" in three["interval"]
    made = sorted((tmp_path / "cache" / "splits").glob("*.json"))
    tests = [frozenset(json.loads(path.read_text())["splits"]["test"]) for path in made]
    assert [path.stem.rpartition("-")[2] for path in made] == ["0", "1", "2"]
    assert len(set(tests)) == 3
    assert f"over {len(frozenset.union(*tests))} scored pictures" in three["interval"]
    later = run("compare", "--heads", "logreg", "--seeds", "1", "--seed", "2", "--json").json
    assert later["rows"][0]["accuracies"] == three["rows"][0]["accuracies"][2:]
    assert later["setting"]["seeds"] == [2]
    assert [run("fit", "--seed", "2", "--json").json["accuracy"]] == later["rows"][0]["accuracies"]


def test_compare_uses_the_splits_that_a_dataset_brings_for_every_seed(run: Run, photos: Path, tmp_path: Path) -> None:
    source = split_up(photos, tmp_path, {"train": range(6), "val": range(6, 8), "test": range(8, 10)})
    one = run("compare", source, "--heads", "ridge,dummy", "--seeds", "1", "--json", network=True).json
    two = run("compare", "--heads", "ridge,dummy", "--seeds", "2", "--seed", "5", "--json").json
    assert (one["setting"]["fitted_on"], one["setting"]["n_train"], one["setting"]["n_test"]) == ("train+val", 32, 8)
    assert one["rows"][0]["chosen_by"] == "accuracy on val (n=8)"
    assert two["rows"][0]["accuracies"] == one["rows"][0]["accuracies"] * 2  # ridge draws nothing
    assert "over 8 scored pictures" in two["interval"]
    assert not list((tmp_path / "cache" / "splits").glob("*"))


@pytest.mark.slow
@pytest.mark.usefixtures("photos")
def test_compare_repeats_but_for_its_seconds(run: Run) -> None:
    first, second = (run("compare", "--seeds", "2", "--seed", "1", "--json").json for _ in range(2))
    assert timeless(first) == timeless(second)


@pytest.mark.usefixtures("photos")
def test_compare_refuses_what_it_cannot_do(run: Run) -> None:
    assert refused(run("compare", "--heads", "logreg,nope"), "unknown head 'nope': use one of logreg, svm, svm-rbf")
    assert refused(run("compare", "--tta", "--heads", "logreg"), "run `featcache extract")
    for words in (["--seeds", "0"], ["--seeds", "x"], ["--seed", "-1"]):
        result = run("compare", *words)
        assert (result.code, result.out) == (2, "")


@pytest.mark.usefixtures("photos")
def test_a_head_that_fails_is_said_in_its_row_and_the_others_are_scored(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featcache.heads.svm_rbf.MAX_ROWS", 5)
    result = run("compare", "--heads", "svm-rbf,logreg,knn", "--seeds", "2", "--json")
    failed, *others = result.json["rows"]
    assert result.code == 1
    assert "more than 5" in said(result)[-1]
    assert (failed["head"], failed["verdict"], failed["accuracy"], failed["accuracy_interval"]) == (
        "svm-rbf",
        "failed",
        None,
        None,
    )
    assert failed["error"].startswith("svm-rbf cannot be fitted")
    assert all(row["error"] is None and row["accuracy"] > 0.3 for row in others)
    assert sorted(row["verdict"] for row in others)[0] == "best"
    text = run("compare", "--heads", "svm-rbf,logreg", "--seeds", "1")
    assert text.code == 1
    assert "failed: svm-rbf cannot be fitted" in text.out
    assert "95 % interval" in text.out
    alone = run("compare", "--heads", "svm-rbf", "--seeds", "1", "--json")
    assert (alone.code, alone.json["rows"][0]["verdict"]) == (1, "failed")
    assert "svm-rbf" not in run("runs", "--json").json["rows"][-1]["result"]


# --- bench ---


def cells(found: dict[str, Any]) -> set[tuple[int | None, int | None]]:
    """Return the cells (classes, images a class) of a grid."""
    return {(row["classes"], row["per_class"]) for row in found["rows"]}


@pytest.mark.usefixtures("photos")
def test_bench_has_sensible_numbers_and_knows_them_the_second_time(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["bench", "--heads", "logreg,knn", "--seeds", "2"]
    first = run(*words, "--json")
    found = first.json
    assert first.code == 0
    assert cells(found) == {(2, None), (None, None), (None, 1), (None, 2), (None, 5)}
    assert (found["computed"], found["reused"]) == (20, 0)
    assert len(found["rows"]) == 10
    for row in found["rows"]:
        n_classes, n_images = row["classes"] or 4, row["per_class"] or 8
        assert (row["n_classes"], row["n_train"], row["n_test"]) == (n_classes, n_classes * n_images, 2 * n_classes)
        assert row["accuracy"] == pytest.approx(np.mean(row["accuracies"]))
        assert row["accuracy_sd"] == pytest.approx(np.std(row["accuracies"], ddof=1))
        assert (row["problem"], row["error"]) == (None, None)

    def forbidden(*_: object) -> None:
        raise AssertionError("fitted again")

    monkeypatch.setattr("featcache.experiments.grid.fit_head", forbidden)
    again = run(*words, "--json").json
    assert (again["computed"], again["reused"]) == (0, 20)
    assert again["rows"] == found["rows"]
    text = run(*words).out
    assert "0 fits computed, 20 known from before" in text
    titles = [line for line in text.splitlines() if line.startswith("against")]
    assert [title.partition(";")[0] for title in titles] == [
        *["against the number of classes, all images"] * 2,
        *["against images per class, all classes"] * 2,
    ]
    assert text.split("\n\n")[0].splitlines()[1].split() == ["head", "2", "all"]
    assert text.split("\n\n")[2].splitlines()[1].split() == ["head", "1", "2", "5", "all"]
    assert " ± " in text.split("\n\n")[2]


@pytest.mark.usefixtures("photos")
def test_bench_takes_numbers_and_all(run: Run) -> None:
    words = ["bench", "--heads", "centroid", "--seeds", "1", "--json"]
    found = run(*words, "--classes", "3,all", "--per-class", "4").json
    assert cells(found) == {(3, None), (None, None), (None, 4)}
    assert all(row["accuracy_sd"] is None for row in found["rows"])
    assert cells(run(*words, "--classes", "all", "--per-class", "all").json) == {(None, None)}
    other = run(*words, "--classes", "3,2", "--per-class", "all", "--seed", "1").json
    assert cells(other) == {(2, None), (3, None), (None, None)}
    assert other["computed"] == 3  # another seed takes other classes and splits


def test_bench_fits_once_a_seed_where_the_split_is_brought(run: Run, photos: Path, tmp_path: Path) -> None:
    source = split_up(photos, tmp_path, {"train": range(6), "val": range(6, 8), "test": range(8, 10)})
    words = ["--heads", "mlp", "--classes", "2,all", "--per-class", "all", "--json"]
    found = run("bench", source, *words, "--seeds", "2", network=True).json
    assert (found["computed"], found["reused"]) == (4, 0)
    assert {row["n_train"] for row in found["rows"]} == {16, 32}  # train and val pooled
    more = run("bench", *words, "--seeds", "3").json
    assert (more["computed"], more["reused"]) == (2, 4)
    assert [row["accuracies"][:2] for row in more["rows"]] == [row["accuracies"] for row in found["rows"]]


@pytest.mark.parametrize("bad", ["", "x", "1,", "0", "-2", "1.5", "2;3", "nan"])
@pytest.mark.parametrize("option", ["--classes", "--per-class"])
def test_bench_refuses_a_list_that_is_none(run: Run, photos: Path, option: str, bad: str) -> None:
    result = run("bench", option, bad)
    assert (result.code, result.out) == (2, "")
    assert option in result.err


@pytest.mark.usefixtures("photos")
def test_an_interrupted_bench_goes_on_where_it_stopped(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from featcache.experiments import grid

    fit, calls = grid.fit_head, []

    def interrupted(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return fit(*args)

    words = ["bench", "--heads", "logreg,ridge", "--seeds", "2", "--json"]
    with monkeypatch.context() as patch:
        patch.setattr(grid, "fit_head", interrupted)
        stopped = run(*words)
    assert (stopped.code, stopped.out) == (130, "")
    assert said(stopped)[-1].startswith("featcache: interrupted")
    listed = run("runs", "--json").json["rows"][-1]
    assert (listed["command"], listed["result"], listed["seconds"]) == ("bench", "not finished", None)
    assert "not finished" in run("runs").out
    assert "not finished" in run("runs", "show", str(listed["id"])).out
    assert refused(run("runs", "compare", str(listed["id"]), str(listed["id"])), "has no scores")
    rest = run(*words).json
    assert (rest["computed"], rest["reused"]) == (15, 5)
    assert run("runs", "--json").json["rows"][-1]["result"].startswith(("logreg", "ridge"))


@pytest.mark.slow
@pytest.mark.usefixtures("photos")
def test_a_bench_stopped_by_a_signal_goes_on_where_it_stopped(run: Run, tmp_path: Path) -> None:
    words = ["bench", "--heads", "mlp,svm-rbf", "--seeds", "12", "--classes", "2,all", "--per-class", "3"]
    process = subprocess.Popen(
        [sys.executable, "-m", "featcache", *words],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 60
    done: list[Path] = []
    while len(done) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
        done = list((tmp_path / "cache" / "cells").glob("*.json"))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, ""), err
    assert err.splitlines()[-1].startswith("featcache: interrupted")
    assert "Traceback" not in err
    kept = len(list((tmp_path / "cache" / "cells").glob("*.json")))
    rest = run(*words, "--json").json
    assert 3 <= rest["reused"] == kept < 72
    assert rest["computed"] + rest["reused"] == 72
    assert not list((tmp_path / "cache").rglob(".tmp-*"))


@pytest.mark.usefixtures("photos")
def test_bench_says_what_is_more_than_there_is(run: Run) -> None:
    words = ["bench", "--heads", "centroid,knn", "--seeds", "1"]
    result = run(*words, "--per-class", "2,100", "--json")
    assert result.code == 1
    errors = {row["per_class"]: row["error"] for row in result.json["rows"]}
    assert (errors[None], errors[2]) == (None, None)
    assert errors[100].startswith("no class has 100 training images")
    assert "no class has 100 training images" in said(result)[-1]
    text = run(*words, "--per-class", "2,100")
    assert text.code == 1
    assert "failed" in text.out
    assert "all classes, 100 images a class: " in text.out
    many = run(*words, "--classes", "2,9", "--per-class", "2", "--json")
    assert many.code == 1
    assert all("4 classes to train on" in row["error"] for row in many.json["rows"] if row["classes"] == 9)
    assert all(row["error"] is None for row in many.json["rows"] if row["classes"] != 9)


def test_bench_goes_on_where_a_class_is_scored_that_train_lacks(run: Run, photos: Path, tmp_path: Path) -> None:
    rows = [
        (photos / label / f"{n}.png", label, "train" if n < 7 else "test")
        for label in KINDS
        for n in range(10)
        if label != "moss" or n >= 7
    ]
    source = manifest(tmp_path / "lacking.csv", rows)
    words = ["bench", "--heads", "centroid", "--seeds", "1", "--classes", "2,all", "--per-class", "3", "--json"]
    result = run(*words[:1], source, *words[1:], network=True)
    assert result.code == 1
    found = {(row["classes"], row["per_class"]): row for row in result.json["rows"]}
    assert all(row["error"] is None and row["accuracy"] > 0.9 for row in found.values())
    assert found[2, None]["problem"] is None
    for cell in ((None, None), (None, 3)):
        assert found[cell]["problem"] == "class 'moss' is in test but not in train, and not scored"
        assert (found[cell]["n_classes"], found[cell]["n_test"]) == (3, 9)
    assert "moss" in said(result)[-1]
    assert refused(run("compare", "--heads", "centroid"), "class 'moss' is in test but not in train")


def test_bench_says_that_a_class_has_fewer_images_than_asked(run: Run, photos: Path, tmp_path: Path) -> None:
    rows = [
        (photos / label / f"{n}.png", label, "train" if n < 7 else "test")
        for label in KINDS
        for n in range(10)
        if label != "sky" or n >= 4
    ]
    source = manifest(tmp_path / "few.csv", rows)
    words = ["--heads", "centroid", "--seeds", "1", "--classes", "all", "--per-class", "2,5"]
    result = run("bench", source, *words, "--json", network=True)
    assert result.code == 1
    found = {row["per_class"]: row for row in result.json["rows"]}
    assert found[5]["problem"] == "1 of 4 classes have fewer images, all they have are used"
    assert (found[5]["n_train"], found[5]["error"]) == (18, None)
    assert found[2]["problem"] is None
    text = run("bench", *words).out
    assert "5 images a class: 1 of 4 classes have fewer images" in text


# --- confusions ---


@pytest.mark.usefixtures("photos")
def test_confusions_count_every_scored_picture_once(run: Run) -> None:
    found = run("confusions", "--heads", "logreg,knn,centroid", "--seed", "1", "--json").json
    matrix = np.array(found["matrix"])
    assert found["labels"] == sorted(KINDS)
    assert matrix.shape == (4, 4)
    assert matrix.sum() == found["setting"]["n_test"] == 8
    assert matrix.sum(1).tolist() == [2] * 4
    assert found["accuracy"] == matrix.trace() / 8
    assert found["accuracy_interval"][0] <= found["accuracy"] <= found["accuracy_interval"][1]
    assert found["accuracy"] == run("fit", "--seed", "1", "--json").json["accuracy"]
    assert sorted(row["label"] for row in found["classes"]) == sorted(KINDS)
    for row in found["classes"]:
        at = found["labels"].index(row["label"])
        assert row["recall"] == matrix[at, at] / 2
        missed = np.delete(matrix[at], at)
        assert row["confused_with"] == (np.delete(found["labels"], at)[missed.argmax()] if missed.any() else None)
        assert row["best_recall"] >= row["recall"]
        assert row["best_head"] in found["heads"] == ["logreg", "knn", "centroid"]
        assert row["is_unlearnable"] == (row["best_recall"] < found["unlearnable_below"] == 0.5)
    f1s = [row["f1"] for row in found["classes"]]
    assert f1s == sorted(f1s)
    for pair in found["pairs"]:
        i, j = found["labels"].index(pair["first"]), found["labels"].index(pair["second"])
        assert (pair["first_as_second"], pair["second_as_first"]) == (matrix[i, j], matrix[j, i])
    assert sum(pair["first_as_second"] + pair["second_as_first"] for pair in found["pairs"]) == 8 - matrix.trace()


def test_a_class_that_looks_like_a_larger_one_cannot_be_learned(run: Run, photos: Path, tmp_path: Path) -> None:
    picture = (photos / "leaf" / "0.png").read_bytes()
    rows = []
    for label, counts in {"twin-a": (9, 4), "twin-b": (3, 4)}.items():
        for split, count in zip(("train", "test"), counts, strict=True):
            for number in range(count):
                path = tmp_path / "twins" / f"{label}-{split}-{number}.png"
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(picture + f"{path.name}".encode())  # the same pixels, other bytes
                rows.append((path, label, split))
    for label in ("sky", "sand"):
        rows += [(photos / label / f"{n}.png", label, "train" if n < 7 else "test") for n in range(10)]
    source = manifest(tmp_path / "twins.csv", rows)
    words = ["--heads", "logreg,svm,knn,lda"]
    found = run("confusions", source, *words, "--json", network=True).json
    assert [row["label"] for row in found["classes"] if row["is_unlearnable"]] == ["twin-b"]
    worst = found["classes"][0]
    assert (worst["label"], worst["recall"], worst["best_recall"], worst["confused_with"]) == ("twin-b", 0, 0, "twin-a")
    assert found["pairs"] == [
        {"first": "twin-a", "second": "twin-b", "first_as_second": 0, "second_as_first": 4, "share": 0.5}
    ]
    text = run("confusions", *words).out
    assert "unlearnable  twin-b (recall below 0.5 with every one of logreg, svm, knn, lda)" in text
    assert "the most confused pairs (1 of 1)" in text


@pytest.mark.usefixtures("photos")
def test_confusions_say_which_head_failed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featcache.heads.svm_rbf.MAX_ROWS", 5)
    result = run("confusions", "--heads", "logreg,svm-rbf", "--json")
    assert result.code == 1
    assert result.json["heads"] == ["logreg"]
    assert "svm-rbf cannot be fitted" in result.json["errors"][0]
    assert "svm-rbf cannot be fitted" in said(result)[-1]
    assert refused(run("confusions", "--head", "svm-rbf", "--heads", "logreg"), "svm-rbf cannot be fitted")
    assert refused(run("confusions", "--head", "nope"), "unknown head 'nope'")


# --- fit and predict ---


@pytest.mark.parametrize("head", [*HEADS, FLOOR])
def test_every_head_fits_and_predicts_probabilities(run: Run, photos: Path, head: str) -> None:
    fitted = run("fit", "--head", head, "--json").json
    assert fitted["accuracy_low"] <= fitted["accuracy"] <= fitted["accuracy_high"]
    assert fitted["accuracy"] == 0.25 if head == FLOOR else fitted["accuracy"] > 0.5
    assert fitted["log_loss"] >= 0
    assert 0 <= fitted["calibration_error"] <= 1
    assert f"{head}.safetensors" in fitted["model"]
    predicted = run("predict", fitted["model"], photos, "--json").json["predictions"]
    assert len(predicted) == 40
    for row in predicted:
        assert set(row["probabilities"]) == set(KINDS)
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert all(0 <= p <= 1 for p in row["probabilities"].values())
        assert row["label"] == max(row["probabilities"], key=row["probabilities"].get)
    if head != FLOOR:
        assert np.mean([row["label"] == Path(row["path"]).parent.name for row in predicted]) > 0.6


@pytest.mark.slow
@pytest.mark.usefixtures("photos")
def test_a_sweep_lists_all_that_was_tried_with_its_losses(run: Run) -> None:
    words = ["fit", "--head", "mlp", "--hidden", "8", "--hidden", "8,4", "--lr", "0.01,0.03"]
    words += ["--activation", "relu,tanh", "--alpha", "1"]
    found = run(*words, "--json").json
    tried = {json.dumps(trial["params"], sort_keys=True): trial for trial in found["trials"]}
    assert len(tried) == len(found["trials"]) == 8 + 2  # with the other scalings
    assert {(tuple(t["params"]["hidden"]), t["params"]["lr"], t["params"]["activation"]) for t in found["trials"]} == {
        (hidden, lr, activation) for hidden in ((8,), (8, 4)) for lr in (0.01, 0.03) for activation in ("relu", "tanh")
    }
    assert all(trial["params"]["alpha"] == 1 for trial in found["trials"])
    assert all(0 <= trial["accuracy"] <= 1 and len(trial["loss_curve"]) > 1 for trial in found["trials"])
    chosen = tried[json.dumps(found["params"], sort_keys=True)]
    scaling = found["params"]["scaling"]
    same = [trial["accuracy"] for trial in found["trials"] if trial["params"]["scaling"] == scaling]
    assert len(same) == 8
    assert chosen["accuracy"] == max(same)
    assert len(found["loss_curve"]) > 1
    assert found["loss_curve"][-1] < found["loss_curve"][0]
    text = run(*words).out
    table = text.split("\n\n")[1].splitlines()
    assert table[0].startswith("mlp, tried by 5-fold cross-validation")
    assert table[1].split() == ["values", "accuracy", "epochs", "last", "loss", "loss"]
    assert len(table) == 3 + 10
    accuracies = [float(line.split("alpha=")[1].split()[1]) for line in table[3:]]
    assert accuracies == sorted(accuracies, reverse=True)
    assert all(set("▁█") <= set(line) for line in table[3:])


@pytest.mark.slow
@pytest.mark.parametrize("other", [0.9, 0.8, 0.7])
@pytest.mark.usefixtures("photos")
def test_a_table_of_tries_says_why_its_first_row_was_not_chosen(other: float, run: Run) -> None:
    found = run("fit", "--head", "mlp", "--hidden", "4", "--json").json
    known = FitSummary(**{field.name: found[field.name] for field in dataclasses.fields(FitSummary)})
    tried = TrialRow({"scaling": "columns", "alpha": 1.0}, other, (1.0,)), TrialRow({"scaling": "unit"}, 0.8, (1.0,))
    page = text(fit_page([dataclasses.replace(known, params={"scaling": "unit"}, trials=tried)]))
    assert ("columns is not clearly better than unit" in page) == (other == 0.9)


@pytest.mark.usefixtures("photos")
def test_a_sweep_that_makes_no_sense_is_refused(run: Run) -> None:
    for words in (["--lr", "0.1"], ["--hidden", "8"], ["--activation", "relu"], ["--alpha", "1"]):
        assert refused(run("fit", "--head", "logreg", *words), "parameters of mlp, not of logreg: add --head mlp")
    assert refused(run("fit", "--head", "mlp", "--activation", "relu,nope"), "unknown activation 'nope'")
    for words in (["--lr", "0"], ["--lr", "fast"], ["--hidden", "8,x"], ["--hidden", "0"], ["--alpha", "-1"]):
        result = run("fit", "--head", "mlp", *words)
        assert (result.code, result.out) == (2, "")
        assert words[0] in result.err


# --- runs ---


def page(shown: Result) -> str:
    """Return what `runs show` printed below the facts of the run."""
    return shown.out.partition("\n\n")[2]


COMMANDS = {
    "fit": ["fit", "--head", "mlp", "--lr", "0.01,0.03", "--hidden", "8,4"],
    "compare": ["compare", "--heads", "logreg,knn,dummy", "--seeds", "2"],
    "bench": ["bench", "--heads", "knn", "--seeds", "2"],
    "confusions": ["confusions", "--heads", "logreg,knn"],
}


@pytest.mark.parametrize("words", COMMANDS.values(), ids=list(COMMANDS))
@pytest.mark.usefixtures("photos")
def test_a_run_is_shown_again_as_it_was_printed(run: Run, words: list[str]) -> None:
    printed = run(*words)
    assert printed.code == 0
    number = run("runs", "--json").json["rows"][-1]["id"]
    shown = run("runs", "show", str(number))
    assert shown.code == 0
    assert page(shown) == printed.out
    head = shown.out.partition("\n\n")[0]
    assert head.startswith(f"run       {number}: {words[0]}, ")
    assert f"featcache {featcache.__version__}" in head
    again = run("runs", "show", str(number), "--json").json
    assert again["row"]["command"] == words[0]
    kept = json.loads(Path("cache", "runs", f"{number:06d}.json").read_text())
    assert again["summary"] == kept["summary"]


def test_an_extraction_and_an_import_are_shown_again(run: Run, photos: Path) -> None:
    printed = run("extract", photos, network=True)
    assert page(run("runs", "show", str(run("runs", "--json").json["rows"][-1]["id"]))) == printed.out
    run("cache", "export", "all.npz")
    printed = run("cache", "import", "all.npz")
    assert printed.code == 0
    assert page(run("runs", "show", str(run("runs", "--json").json["rows"][-1]["id"]))) == printed.out


@pytest.mark.usefixtures("photos")
def test_runs_are_listed_oldest_first(run: Run) -> None:
    fitted = run("fit", "--json").json
    run("compare", "--heads", "knn,ridge", "--seeds", "1")
    rows = run("runs", "--json").json["rows"]
    assert [row["id"] for row in rows] == [1, 2, 3]
    assert [row["command"] for row in rows] == ["extract", "fit", "compare"]
    assert rows[0]["result"] == "40 computed, 0 reused"
    assert rows[1]["result"] == f"logreg {fitted['accuracy']:.3f}"
    assert rows[2]["result"].endswith("best of 2")
    assert {row["fingerprint"] for row in rows} == {fitted["fingerprint"]}
    assert all(row["seconds"] >= 0 for row in rows)
    text = run("runs").out
    assert [line.split()[:2] for line in text.splitlines()[2:5]] == [["1", "extract"], ["2", "fit"], ["3", "compare"]]


def test_the_runs_of_an_empty_cache(run: Run, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    result = run("runs", "--json")
    assert (result.code, result.json["rows"]) == (0, [])
    assert run("runs").code == 0
    assert refused(run("runs", "--cache", "nowhere"), "there is no cache at")
    assert refused(run("runs", "show", "1"), "there is no run 1 in")
    assert refused(run("ledger"), "nothing has been extracted into")


@pytest.mark.usefixtures("photos")
def test_two_runs_are_compared_with_what_differs(run: Run) -> None:
    first, second = (run("fit", "--seed", str(seed), "--json").json for seed in (0, 1))
    run("fit", "--seed", "1", "--head", "ridge")
    found = run("runs", "compare", "2", "3", "--json").json
    assert [line.partition(":")[0] for line in found["differences"]] == ["split_digest", "seeds"]
    assert "seeds: [0] | [1]" in found["differences"]
    (row,) = found["rows"]
    assert (row["head"], row["first"], row["second"]) == ("logreg", first["accuracy"], second["accuracy"])
    assert row["difference"] == pytest.approx(second["accuracy"] - first["accuracy"])
    assert row["first_interval"] == [first["accuracy_low"], first["accuracy_high"]]
    heads = run("runs", "compare", "3", "4", "--json").json
    assert heads["differences"] == []
    assert [(row["head"], row["difference"]) for row in heads["rows"]] == [("logreg", None), ("ridge", None)]
    assert "nothing but the heads" in run("runs", "compare", "3", "4").out
    assert "seeds: [0] | [1]" in run("runs", "compare", "2", "3").out
    assert refused(run("runs", "compare", "2", "99"), "there is no run 99 in")
    assert refused(run("runs", "compare", "1", "2"), "run 1 (extract) has no scores: `featcache runs` lists others")
    for words in (["runs", "show", "x"], ["runs", "compare", "2"], ["runs", "nope"]):
        assert run(*words).code == 2


def test_runs_of_other_features_differ_in_their_fingerprint(
    run: Run, photos: Path, tmp_path: Path, seeded_weights: Path
) -> None:
    import torch

    state = torch.load(seeded_weights, weights_only=True)
    state["conv1.weight"] += 0.01
    torch.save(state, tmp_path / "other.pth")
    few = [(photos / label / f"{n}.png", label, "") for label in ("leaf", "sky") for n in range(3)]
    source = manifest(tmp_path / "few.csv", few)
    one = run("fit", source, "--json", network=True).json
    two = run("fit", source, "--backbone", "resnet18", "--weights", tmp_path / "other.pth", "--json").json
    numbers = [str(row["id"]) for row in run("runs", "--json").json["rows"] if row["command"] == "fit"]
    differences = run("runs", "compare", *numbers, "--json").json["differences"]
    assert differences == [f"fingerprint: {one['fingerprint'][:16]} | {two['fingerprint'][:16]}"]


@pytest.mark.parametrize("words", COMMANDS.values(), ids=list(COMMANDS))
@pytest.mark.usefixtures("photos")
def test_a_run_that_kept_other_fields_is_said_in_one_line(run: Run, words: list[str]) -> None:
    run(*words)
    path = Path("cache", "runs", "000002.json")
    content = json.loads(path.read_text())
    del content["sha256"]  # as older versions wrote it
    gone = {"fit": "log_loss", "compare": "shared_seconds", "bench": "subsets", "confusions": "unlearnable_below"}
    value = content["summary"].pop(gone[words[0]])
    path.write_text(json.dumps(content))
    assert refused(run("runs", "show", "2"), "run 2 was made by another version of featcache")
    listed = run("runs", "--json")
    assert listed.code == 0
    assert [row["command"] for row in listed.json["rows"]] == ["extract", words[0]]
    assert run("runs", "compare", "2", "2").code == 0
    content["summary"]["not known here"] = 1
    content["summary"][gone[words[0]]] = value
    path.write_text(json.dumps(content))
    assert run("runs", "show", "2").code == 0


# --- ledger ---


@pytest.mark.usefixtures("photos")
def test_the_ledger_adds_up_what_the_runs_took(run: Run, photos: Path) -> None:
    run("extract", photos, network=True)  # computes nothing
    run("fit")
    run("fit", "--head", "knn")
    run("compare", "--heads", "logreg,ridge", "--seeds", "2")
    run("bench", "--heads", "knn", "--seeds", "1")
    run("confusions", "--heads", "knn")
    found = run("ledger", "--json").json
    runs = [json.loads(path.read_text()) for path in sorted(Path("cache", "runs").glob("*.json"))]
    seconds: dict[str, list[float]] = {}
    for one in runs:
        took = one["finished"] - one["started"]
        seconds.setdefault(one["command"], []).append(
            one["summary"]["seconds"]["total"] if one["command"] == "extract" else took
        )
    rows = {row["work"]: (row["runs"], row["seconds"]) for row in found["rows"]}
    assert rows == {work: (len(took), pytest.approx(sum(took), abs=1e-3)) for work, took in seconds.items()}
    assert [rows[work][0] for work in ("extract", "fit", "compare", "bench", "confusions")] == [2, 2, 1, 1, 1]
    network = runs[0]["summary"]["seconds"]["total"]
    heads = sum(sum(took) for work, took in seconds.items() if work != "extract")
    extracting = sum(seconds["extract"])
    assert found["experiments"] == 5
    assert found["network_seconds"] == pytest.approx(network, abs=1e-3)
    assert found["with_cache"] == pytest.approx(extracting + heads, abs=2e-3)
    assert found["without_cache"] == pytest.approx(5 * network + heads, abs=6e-3)
    assert found["break_even"] == math.ceil(extracting / network)
    assert found["notices"] == []
    saved = found["without_cache"] - found["with_cache"]
    text = run("ledger", photos).out
    assert f"experiment {found['break_even']}: {saved:.1f} s saved so far" in text
    assert f"{found['with_cache']:.1f} s for 5 experiments" in text


@pytest.mark.usefixtures("photos")
def test_the_ledger_of_an_import_compares_nothing(run: Run) -> None:
    run("cache", "export", "all.npz")
    assert run("cache", "import", "all.npz", "--cache", "new").code == 0
    assert run("fit", "--cache", "new").code == 0
    found = run("ledger", "--cache", "new", "--json").json
    assert (found["break_even"], found["network_seconds"], found["experiments"]) == (None, 0, 1)
    assert "no extraction of these pictures was timed here" in found["notices"][0]
    text = run("ledger", "--cache", "new").out
    assert "no extraction of these pictures was timed here" in text
    assert "break-even" not in text
    assert refused(run("ledger", "elsewhere"), "the cache holds no extraction of")


# --- files ---

ROWS: dict[str, tuple[list[str], Callable[[Any], list[dict[str, Any]]]]] = {
    "fit": (["fit"], lambda found: [found]),
    "compare": (["compare", "--heads", "logreg,svm-rbf,dummy", "--seeds", "2"], lambda found: found["rows"]),
    "bench": (["bench", "--heads", "knn", "--seeds", "2"], lambda found: found["rows"]),
    "confusions": (["confusions", "--heads", "knn"], lambda found: found["classes"]),
    "runs": (["runs"], lambda found: found["rows"]),
    "runs compare": (["runs", "compare", "2", "3"], lambda found: found["rows"]),
    "ledger": (["ledger"], lambda found: found["rows"]),
}


def flat(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the cells of a CSV that a row of JSON should give."""
    for name, value in row.items():
        if name.endswith("interval"):
            low, high = value or (None, None)
            yield from ((f"{name}_low", cell(low)), (f"{name}_high", cell(high)))
        elif not isinstance(value, (list, dict)):
            yield name, cell(value)


def cell(value: Any) -> str:
    """Return what stands in a CSV for a value."""
    return "" if value is None else str(value)


@pytest.mark.parametrize(("words", "rows"), ROWS.values(), ids=list(ROWS))
@pytest.mark.usefixtures("photos")
def test_tables_go_to_files_too(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    rows: Callable[[Any], list[dict[str, Any]]],
) -> None:
    monkeypatch.setattr("featcache.heads.svm_rbf.MAX_ROWS", 5)  # a failed row has no interval
    for seed in ("0", "1") if words[0] in ("runs", "ledger") else ():
        run("fit", "--seed", seed)
    result = run(*words, "--csv", "out.csv", "--md", "out.md", "--json")
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    expected = rows(result.json)
    assert len(read) == len(expected) > 0
    for line, row in zip(read, expected, strict=True):
        assert dict(flat(row)).items() <= line.items()
        nested = {
            name: value for name, value in row.items() if isinstance(value, (list, dict)) and "interval" not in name
        }
        assert {name: json.loads(line[name]) for name in nested} == nested
    markdown = (tmp_path / "out.md").read_text(encoding="utf-8")
    tables = [part.splitlines() for part in markdown.split("\n\n") if part.startswith("|")]
    assert tables
    assert all(len({line.count("|") for line in table}) == 1 for table in tables)
    assert all(set(table[1]) <= set("|-:") for table in tables)
    for line in markdown.splitlines():
        assert line == "" or line.startswith(("|", "- ", "**")), line


@pytest.mark.parametrize("words", [words for words, _ in ROWS.values() if words[0] != "runs"])
@pytest.mark.parametrize("option", ["--csv", "--md"])
@pytest.mark.usefixtures("photos")
def test_a_file_that_cannot_be_written_is_one_line(
    run: Run, option: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.glob("cache/runs/*"))
    result = run(*words, option, "nowhere/out")
    (line,) = said(result)
    assert (result.code, result.out) == (1, "")
    assert line.endswith(f"there is no folder {tmp_path / 'nowhere'} for out: make it first")
    assert sorted(tmp_path.glob("cache/runs/*")) == before  # it was said before any work
    (tmp_path / "folder").mkdir()
    result = run(*words, option, "folder")
    assert (result.code, result.out) == (1, "")
    assert said(result) == ["featcache: folder is a folder: name a file in it"]
    assert sorted(tmp_path.glob("cache/runs/*")) == before
    assert "Traceback" not in result.err


ODD = ["a|b", "<script>", "*x*", "new\nline"]


def test_odd_class_names_stay_what_they_are(run: Run, photos: Path, tmp_path: Path) -> None:
    rows = [
        (photos / kind / f"{n}.png", label, "train" if n < 8 else "test")
        for kind, label in zip(KINDS, ODD, strict=True)
        for n in range(10)
    ]
    source = manifest(tmp_path / "odd.csv", rows)
    words = ["confusions", source, "--heads", "knn", "--csv", "out.csv", "--md", "out.md"]
    found = run(*words, "--json", network=True).json
    assert found["labels"] == sorted(ODD)
    with (tmp_path / "out.csv").open(newline="") as file:
        assert [row["label"] for row in csv.DictReader(file)] == [row["label"] for row in found["classes"]]
    markdown = (tmp_path / "out.md").read_text()
    for escaped in (r"a\|b", r"\<script\>", r"\*x\*", r"new\\nline"):
        assert f"| {escaped} " in markdown
    for line in markdown.split("the classes")[1].splitlines():
        assert line.replace(r"\|", "").count("|") in (0, 10)
    model = run("fit", "--json").json["model"]
    assert sorted(load_saved(model).classes) == sorted(ODD)
    text = run("confusions", "--heads", "knn").out
    assert "new\\nline" in text
