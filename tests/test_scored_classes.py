"""The classes of a score are those of train: one that is not scored is named by everything that prints a score."""

from __future__ import annotations

import html
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TINTS, Result, write_picture

import featcache
from featcache.errors import TrainingError
from featcache.records.finetuning import Training
from featcache.render.experiments import bench_page, compare_page, confusions_page, fit_page
from featcache.render.finetuning import finetune_page
from featcache.render.tables import text

Run = Callable[..., Result]

pytestmark = pytest.mark.usefixtures("one_thread", "ready_network")

SAID = "no picture of 'sky' is in val: balanced accuracy and macro-F1 are over 2 of 3 classes"
LABELS = ("leaf", "moss", "sky")
HEAD = Training(unfreeze="head", epochs=1)


def write(root: Path, sizes: dict[str, dict[str, int]]) -> Path:
    """Write so many pictures of each class into each split; no two are equal."""
    number = 0
    for split, counts in sizes.items():
        for label, count in counts.items():
            for _ in range(count):
                number += 1
                write_picture(root / split / label / f"{number}.png", number, {**TINTS, "moss": (150, 60, 60)}[label])
    return root


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, seeded_weights: Path) -> Path:
    """A folder whose val lacks a class of train, extracted into a cache beside it."""
    folder = tmp_path_factory.mktemp("lacking")
    write(folder / "photos", {"train": dict.fromkeys(LABELS, 6), "val": {"leaf": 4, "moss": 4}})
    featcache.extract(folder / "photos", featcache.Options("resnet18", seeded_weights, folder / "cache"))
    return folder


@pytest.fixture
def options(scene: Path, tmp_path: Path) -> featcache.Options:
    """The cache of `scene`, as a copy."""
    shutil.copytree(scene / "cache", tmp_path / "cache")
    return featcache.Options(cache=tmp_path / "cache")


def is_said(summary: Any, page: Any) -> bool:
    """Tell whether a notice in the record and one in the text say over which classes the means are."""
    noted = [line for line in text(page).splitlines() if line.startswith("note ")]
    return SAID in summary.notices and any(line.endswith(f" {SAID}") for line in noted)


@pytest.mark.slow
@pytest.mark.parametrize("out_of_core", [False, True])
def test_fit_says_which_class_is_not_scored(out_of_core: bool, options: featcache.Options) -> None:
    found = featcache.fit(options=options, out_of_core=out_of_core)
    assert (found.n_classes, found.scored_classes, found.unscored) == (3, 2, ("sky",))
    assert is_said(found, fit_page([found]))
    assert "val, n=8, 2 of 3 classes; fitted on train" in text(fit_page([found]))
    model = featcache.predict(found.model, found.dataset, options=options)
    assert sorted(model.predictions[0].probabilities) == list(LABELS)


def test_the_floor_cannot_shine_without_a_word(options: featcache.Options) -> None:
    found = featcache.compare(heads=("centroid", "dummy"), n_seeds=2, options=options)
    assert {row.head: row.scored_classes for row in found.rows} == {"centroid": 2, "dummy": 2}
    assert (found.setting.n_classes, found.setting.unscored) == (3, ("sky",))
    floor = next(row for row in found.rows if row.head == "dummy")
    assert floor.balanced_accuracy == 0.5
    assert is_said(found, compare_page(found))


def test_bench_says_it_of_its_cells_too(options: featcache.Options) -> None:
    found = featcache.bench(heads=("centroid",), classes=(None,), per_class=(2,), n_seeds=1, options=options)
    assert [(row.n_classes, row.scored_classes, row.problem) for row in found.rows] == [(3, 2, SAID)] * 2
    assert is_said(found, bench_page(found))


def test_confusions_keep_the_class_in_the_matrix(options: featcache.Options) -> None:
    found = featcache.confusions(heads=("centroid",), options=options)
    assert found.labels == LABELS
    assert sum(found.matrix[2]) == 0
    assert [row.label for row in found.classes if row.label == "sky"] == []
    assert found.setting.unscored == ("sky",)
    assert is_said(found, confusions_page(found))


def test_a_fine_tuning_says_it_of_both_scores(options: featcache.Options) -> None:
    found = featcache.finetune(training=HEAD, options=options)
    assert (found.n_classes, found.scored_classes, found.unscored) == (3, 2, ("sky",))
    assert is_said(found, finetune_page(found))
    beside = featcache.compare(heads=("centroid",), n_seeds=1, options=options).rows[-1]
    assert (beside.gain is not None, beside.scored_classes) == (True, 2)


def test_the_report_says_it_on_its_page(options: featcache.Options, tmp_path: Path) -> None:
    found = featcache.report(out=tmp_path / "report.html", heads=("centroid",), options=options)
    page = html.unescape((tmp_path / "report.html").read_text())
    assert SAID in page
    assert "1 class has no picture in val: sky." in page
    assert "2 of 3 classes" in page
    assert found.confusion.setting.unscored == ("sky",)


@pytest.mark.slow
def test_two_runs_side_by_side_and_a_model_in_onnx_say_it(run: Run, options: featcache.Options) -> None:
    made = featcache.fit(options=options)
    assert "; val, n=8, 2 of 3 classes" in run("runs", "compare", "2", "2").out
    assert " on val, n=8, 2 of 3 classes, seed 0" in run("export-onnx", made.model).out


def test_the_command_line_says_it_in_text_and_in_json(run: Run, options: featcache.Options) -> None:
    assert options.cache == Path.cwd() / "cache"
    for words in (["fit"], ["compare", "--heads", "centroid", "--seeds", "1"], ["confusions", "--heads", "centroid"]):
        assert SAID in run(*words).out
        said = json.loads(run(*words, "--json").out)
        assert SAID in said["notices"]
        assert said.get("setting", said)["unscored"] == ["sky"]


def test_nothing_is_said_where_all_classes_are_scored(
    tmp_path: Path, seeded_weights: Path, options: featcache.Options
) -> None:
    root = write(tmp_path / "whole", {"train": dict.fromkeys(LABELS, 4), "val": dict.fromkeys(LABELS, 2)})
    assert options.cache is not None
    found = featcache.fit(root, "centroid", options=featcache.Options("resnet18", seeded_weights, options.cache))
    assert (found.n_classes, found.scored_classes, found.unscored, found.notices) == (3, 3, (), ())
    assert "n=6; fitted on" in text(fit_page([found]))


@pytest.mark.slow
def test_a_class_that_val_lacks_is_named_where_parameters_are_chosen_on_val(
    tmp_path: Path, seeded_weights: Path, options: featcache.Options
) -> None:
    sizes = {"train": dict.fromkeys(LABELS, 4), "val": {"leaf": 2, "moss": 2}, "test": dict.fromkeys(LABELS, 2)}
    root = write(tmp_path / "three", sizes)
    assert options.cache is not None
    found = featcache.fit(root, "centroid", options=featcache.Options("resnet18", seeded_weights, options.cache))
    assert found.notices == ("no picture of 'sky' is in val: parameters are chosen without looking at it",)
    assert (found.scored_classes, found.unscored) == (3, ())


@pytest.mark.slow
def test_bench_with_val_fits_on_as_many_pictures_a_class_as_it_says(
    tmp_path: Path, seeded_weights: Path, options: featcache.Options
) -> None:
    root = write(tmp_path / "three", {name: dict.fromkeys(LABELS, 4) for name in ("train", "val", "test")})
    assert options.cache is not None
    found = featcache.bench(
        root, ("centroid",), (None,), (1, 3), 1, options=featcache.Options("resnet18", seeded_weights, options.cache)
    )
    assert {(row.per_class, row.n_train) for row in found.rows} == {(1, 3), (3, 9), (None, 24)}


def test_an_audit_scores_pictures_of_the_classes_of_train_alone(
    tmp_path: Path, seeded_weights: Path, options: featcache.Options
) -> None:
    root = write(tmp_path / "more", {"train": {"leaf": 5, "moss": 5}, "val": dict.fromkeys(LABELS, 3)})
    shutil.copy(next((root / "train" / "moss").iterdir()), root / "val" / "moss" / "copy.png")
    assert options.cache is not None
    featcache.extract(root, featcache.Options("resnet18", seeded_weights, options.cache))
    found = featcache.audit(options=options)
    assert found.leak is not None
    assert found.leak.n_test == 7
    assert any("3 scored pictures are of classes that are not in train" in notice for notice in found.notices)


def test_a_class_whose_pictures_are_gone_is_not_left_out_of_a_training_in_silence(
    tmp_path: Path, seeded_weights: Path, options: featcache.Options
) -> None:
    root = write(tmp_path / "whole", {"train": dict.fromkeys(LABELS, 4), "val": {"leaf": 3, "moss": 3}})
    assert options.cache is not None
    featcache.extract(root, featcache.Options("resnet18", seeded_weights, options.cache))
    for path in (root / "train" / "sky").iterdir():
        path.write_bytes(b"gone")
    with pytest.raises(TrainingError, match="no picture of class 'sky' that is trained on can be read any more"):
        featcache.finetune(training=Training(unfreeze="last", epochs=1), options=options)
