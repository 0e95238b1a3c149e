"""No command takes another dataset, network or verdict for what was last asked for, however that ended."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from conftest import Result, write_picture
from finetune_rows import STEPS, install, toy, write_folder

import featcache
from featcache import Options
from featcache.errors import DatasetError, FeatcacheError, HeadError, TrainingError
from featcache.records.experiments import CompareRow
from featcache.render.finetuning import row_verdict
from featcache.store import Cache

Run = Callable[..., Result]

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = {"train": 4, "test": 3}
LABELS = ["leaf", "sky"]
ON = r"on {}, toy \({}\), extracted \d{{4}}-\d\d-\d\d \d\d:\d\d UTC"


@pytest.fixture(scope="module")
def toy_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("toy") / "toy.pth"


@pytest.fixture(autouse=True)
def toy_is_known(monkeypatch: pytest.MonkeyPatch, toy_weights: Path) -> None:
    install(monkeypatch, toy_weights)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, toy_weights: Path) -> Path:
    """A folder with the datasets `old` and `new`, and a cache into which only `old` was extracted."""
    root = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        install(patch, toy_weights)
        write_folder(root / "old", SIZES, LABELS)
        write_folder(root / "new", SIZES, LABELS[::-1])
        featcache.extract(root / "old", Options("toy", cache=root / "cache"))
    return root


@pytest.fixture
def here(made: Path, tmp_path: Path) -> Path:
    """The folder of the tests, where `new` lies and the cache knows `old`."""
    shutil.copytree(made / "cache", tmp_path / "cache")
    shutil.copytree(made / "new", tmp_path / "new")
    return tmp_path


def commands(here: Path) -> list[list[str]]:
    """Every command that can be given without SOURCE."""
    picture = str(here / "new" / "train" / "sky" / "0.png")
    return [
        ["fit", "--head", "centroid"],
        ["fit", "--out-of-core"],
        ["compare", "--heads", "centroid", "--seeds", "1"],
        ["bench", "--heads", "centroid", "--seeds", "1", "--per-class", "1"],
        ["confusions", "--head", "centroid", "--heads", "centroid"],
        ["finetune", "--epochs", "1", "--unfreeze", "head"],
        ["audit"],
        ["report", "--head", "centroid", "--heads", "centroid"],
        ["ledger"],
        ["neighbors", picture],
        ["cache", "export", str(here / "out.npz")],
    ]


def refuses_all(run: Run, here: Path, *words: str) -> None:
    for command in commands(here):
        result = run(*command)
        assert (result.code, result.out, result.on) == (1, "", ""), command
        assert all(word in result.err for word in words), result.err
    with pytest.raises(DatasetError, match=re.escape(words[0])):
        featcache.load_features(options=Options(cache=here / "cache"))


# --- an extraction that failed ---


def test_after_a_failed_extraction_no_command_takes_an_older_dataset(run: Run, here: Path, made: Path) -> None:
    assert run("extract", "new", "--backbone", "toy", "--weights", "none.pth").code == 1
    refuses_all(
        run, here, f"the extraction of {here / 'new'}, asked for", "failed (", f"before it: {made / 'old'}, toy"
    )
    assert [row["result"][:7] for row in run("runs", "--json").json["rows"]][1:] == ["failed:"]
    assert run("audit", made / "old", "--json").json["dataset"] == str(made / "old")  # it is named
    assert run("fit", made / "old", "--head", "centroid").code == 0
    assert run("fit", "--head", "centroid", "--json").json["dataset"] == str(made / "old")  # and now the last one


WRONG: list[list[str]] = [
    ["extract", "nowhere"],
    ["extract", "new", "--backbone", "runs:99"],
    ["extract", "new", "--backbone", "toy", "--views", "upside-down"],
    ["extract", "new", "--backbone", "toy", "--shard", "4/4"],
    ["extract", "new", "--backbone", "toy", "--precision", "int9"],
    ["extract", "new", "--backbone", "toy", "--device", "tpu"],
    ["extract", "new", "--bakbone", "toy"],
    ["extract", "--batch-size", "0", "new"],
    ["extract", "empty", "--backbone", "toy"],
    ["extract", "notes", "--backbone", "toy"],
    ["fit", "new", "--backbone", "toy", "--head", "nosuch"],
    ["fit", "new", "--backbone", "toy", "--csv", "nowhere/x.csv"],
    ["compare", "new", "--backbone", "toy", "--plot", "x.doc"],
    ["finetune", "new", "--epochs", "0"],
    ["finetune", "new", "--lr", "0"],
    ["finetune", "new", "--backbone", "toy", "--weights", "none.pth"],
    ["cache", "import", "nowhere.npz"],
]


@pytest.mark.parametrize("words", WRONG, ids=" ".join)
def test_whatever_was_wrong_the_dataset_before_is_not_taken(run: Run, here: Path, words: list[str]) -> None:
    (here / "empty").mkdir()
    (here / "notes" / "a").mkdir(parents=True)
    (here / "notes" / "a" / "1.txt").write_text("no picture")
    assert run(*words).code in (1, 2)
    result = run("fit")
    name = next(word for word in words if word in ("new", "empty", "notes", "nowhere", "nowhere.npz"))
    assert (result.code, result.out) == (1, "")
    assert f" of {here / name}, asked for" in result.err
    assert "failed (" in result.err


def test_a_mistake_in_a_command_without_a_source_changes_nothing(run: Run, here: Path, made: Path) -> None:
    for words in (["fit", "--head", "nosuch"], ["fit", "--no-such-option"], ["finetune", "--epochs", "0"]):
        assert run(*words).code in (1, 2)
    assert run("fit", "--json").json["dataset"] == str(made / "old")


def test_the_functions_know_it_too(here: Path) -> None:
    options, own = Options("toy", cache=here / "cache"), Options(cache=here / "cache")
    with pytest.raises(HeadError, match="nosuch"):
        featcache.fit(here / "new", "nosuch", options=options)
    with pytest.raises(DatasetError, match=f"the extraction of {here / 'new'}, asked for .* failed .*nosuch"):
        featcache.fit(options=own)
    with pytest.raises(FeatcacheError):
        featcache.extract([1, 2], options)
    with pytest.raises(DatasetError, match="the extraction of object://list"):
        featcache.fit(options=own)
    featcache.extract(here / "new", options)
    assert featcache.fit(options=own).dataset == str(here / "new")


def test_what_failed_can_be_given_up(run: Run, here: Path, made: Path) -> None:
    run("extract", "nowhere")
    assert f"featcache cache gc --forget {here / 'nowhere'}" in run("fit").err
    assert run("cache", "gc", "--forget", "nowhere", "--yes").code == 0
    assert run("fit", "--json").json["dataset"] == str(made / "old")
    run("extract", made / "old", "--backbone", "runs:99")
    refused = run("fit").err
    assert "--forget" not in refused  # that would delete what was extracted before
    assert f"before it: {made / 'old'}" in refused


def test_a_failed_extraction_keeps_no_vector_from_being_cleaned_up(run: Run, here: Path, made: Path) -> None:
    run("extract", "nowhere")
    info = run("cache", "info", "--json").json
    assert [each["dataset"] for each in info["datasets"]] == [str(made / "old")]
    assert run("cache", "verify").code == 0
    assert run("cache", "gc", "--dry-run", "--json").json["notices"] == []


def test_without_a_cache_a_failure_leaves_none(run: Run, tmp_path: Path) -> None:
    assert run("extract", "nowhere", "--backbone", "toy").code == 1
    assert not (tmp_path / "cache").exists()
    assert "there is no cache" in run("fit").err


# --- an extraction that was stopped ---

KILLED = """
import os, sys
import featcache.api.extraction as extraction
extraction.discover = lambda *_, **__: os._exit(9)
extraction.extract(sys.argv[1])
"""


def test_killed_before_anything_is_known_it_is_still_what_was_asked_for(run: Run, here: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, "new"], cwd=here, check=False)
    assert killed.returncode == 9
    refuses_all(run, here, f"the extraction of {here / 'new'}, asked for", "was not finished")


@pytest.mark.parametrize("at", ["discover", "resolve", "compute"])
def test_ctrl_c_at_any_time(run: Run, here: Path, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"featcache.api.extraction.{at}", stop)
        assert run("fit", "new", "--backbone", "toy").code == 130
    refuses_all(run, here, f"the extraction of {here / 'new'}, asked for", "was not finished")
    assert run("fit", "new", "--backbone", "toy", "--json").json["dataset"] == str(here / "new")
    assert run("fit", "--json").json["dataset"] == str(here / "new")


def test_a_part_is_not_the_dataset(run: Run, here: Path) -> None:
    assert run("extract", "new", "--backbone", "toy", "--shard", "0/2").code == 0
    refuses_all(run, here, f"the extraction of {here / 'new'}, asked for", "was not finished", "without --shard")
    assert run("extract", "new", "--backbone", "toy").code == 0
    assert run("fit", "--json").json["dataset"] == str(here / "new")


def test_on_a_full_disk_it_is_known_that_something_was_asked_for(
    run: Run, here: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int, _data: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        assert "no room" in run("extract", "new", "--backbone", "toy").err
        assert "no room" in run("audit", made / "old").err  # no extraction, and so no trace of it
    refuses_all(run, here, "the extraction, asked for", "it could not be noted which dataset it was of")
    assert len(run("runs", "--json").json["rows"]) == 2
    assert run("fit", made / "old").code == 0
    assert run("fit", "--json").json["dataset"] == str(made / "old")


def test_stopped_views_of_a_dataset_leave_that_dataset_the_last_one(
    run: Run, here: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one was extracted in between, and is not what was asked for last."""

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    assert run("extract", "new", "--backbone", "toy").code == 0
    with monkeypatch.context() as patch:
        patch.setattr("featcache.api.pipeline.Reader", stop)
        assert run("extract", made / "old", "--backbone", "toy", "--views", "flip").code == 130
    assert run("fit", "--json").json["dataset"] == str(made / "old")


def test_two_extractions_at_once_do_not_change_places(here: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from featcache.api import experiment

    options, extract = Options("toy", cache=here / "cache"), experiment.extract_in_hand

    def overtaken(*args: object) -> object:
        found = extract(*args)  # type: ignore[arg-type]
        featcache.extract(made / "old", options)  # another process was quicker to look
        return found

    monkeypatch.setattr(experiment, "extract_in_hand", overtaken)
    assert featcache.fit(here / "new", options=options).dataset == str(here / "new")


def test_a_cache_from_before_is_used_as_it_was(run: Run, here: Path, made: Path) -> None:
    """Its runs know nothing of failures."""
    file = here / "cache" / "runs" / "000001.json"
    content = json.loads(file.read_text())
    del content["error"], content["sha256"]
    file.write_text(json.dumps(content))
    assert run("fit", "--json").json["dataset"] == str(made / "old")


# --- what a command works on ---


@pytest.mark.slow
def test_the_first_line_and_the_json_say_what_a_command_works_on(run: Run, here: Path, made: Path) -> None:
    expected = ON.format(made / "old", r"toy\.pth")
    with Cache(here / "cache") as cache:
        (extraction,) = cache.runs.all()
    assert extraction.finished is not None
    when = datetime.fromtimestamp(extraction.finished, UTC).isoformat(timespec="seconds")
    for command in commands(here):
        result = run(*command, "--json")
        assert result.code == 0, result.err
        assert re.fullmatch(f"featcache: {expected}", result.on), command
        found = result.json
        found = found["confusion"] if command[0] == "report" else found
        found = found.get("setting", found)
        assert (found["dataset"], found["backbone"], found["extracted"]) == (str(made / "old"), "toy", when), command
        assert result.on.endswith(f"{when[:16].replace('T', ' ')} UTC")
    loaded = featcache.load_features(options=Options(cache=here / "cache"))
    assert loaded.extracted == when


def test_a_command_with_a_source_needs_no_such_line(run: Run, here: Path, made: Path) -> None:
    assert run("fit", made / "old").on == ""


def test_columns_and_network_from_before_are_said(run: Run, here: Path) -> None:
    rows = [f"{path},{path.parent.name}" for path in sorted((here / "new").rglob("*.png"))]
    (here / "list.csv").write_text("\n".join(["file,kind", *rows]))
    assert run("extract", "list.csv", "--columns", "path=file,label=kind", "--backbone", "toy").code == 0
    said = run("fit", "list.csv").err
    assert f"{here / 'list.csv'} as it was extracted before: columns path=file,label=kind, toy (toy.pth)" in said
    named = run("fit", "list.csv", "--columns", "path=file,label=kind").err
    assert "as it was extracted before: toy (toy.pth);" in named
    both = run("fit", "list.csv", "--columns", "path=file,label=kind", "--backbone", "toy").err
    assert "as it was extracted before" not in both


# --- fine-tuning ---


@pytest.mark.parametrize("backbone", ["toy", "scratch-cnn"])
def test_finetune_extracts_what_is_missing(
    run: Run, here: Path, backbone: str, monkeypatch: pytest.MonkeyPatch, toy_weights: Path
) -> None:
    from featcache.backbones import resolve

    monkeypatch.setattr("featcache.api.extraction.resolve", lambda name, *rest: resolve("toy"))
    words = ["finetune", "new", "--epochs", "1", "--backbone", backbone, "--json"]
    found = run(*words)
    assert found.code == 0, found.err
    assert (found.json["dataset"], found.json["network"]) == (str(here / "new"), backbone)
    write_picture(here / "new" / "train" / "sky" / "more.png", 77)
    assert run(*words).json["split_sizes"] == {"test": 6, "train": 9}


def test_a_verdict_is_only_given_beside_heads_on_the_same_vectors(run: Run, here: Path) -> None:
    import torch

    torch.save(toy(seed=1).state_dict(), here / "other.pth")
    tuned = run("finetune", "new", "--backbone", "toy", "--epochs", "1", "--json").json
    heads = ["--heads", "centroid", "--seeds", "1"]
    (row,) = [row for row in run("compare", *heads, "--json").json["rows"] if row["gain"] is not None]
    assert (row["other_vectors"], row["kept_epoch"]) == (None, tuned["best_epoch"])
    assert "worth it" in run("compare", *heads).out
    assert run("extract", "new", "--backbone", "toy", "--weights", "other.pth").code == 0
    (row,) = [row for row in run("compare", *heads, "--json").json["rows"] if row["gain"] is not None]
    assert row["other_vectors"] == f"toy, fingerprint {tuned['fingerprint'][:16]}"
    assert row["gain_per_minute"] is None
    page = run("compare", *heads).out
    assert "worth it" not in page
    assert (
        f"no verdict, for these are not the vectors of its own run (toy, fingerprint {tuned['fingerprint'][:16]})"
        in page
    )
    assert f"{row['verdict']}, on other vectors" in page
    result = run("report", "--head", "centroid", "--heads", "centroid", "--out", "r.html")
    assert result.code == 0, result.err
    assert f"{row['verdict']}, on other vectors" in (here / "r.html").read_text()


def test_a_network_that_no_epoch_bettered_is_never_worth_it() -> None:
    row = CompareRow("runs:2 toy finetuned last", False, False, "better", gain=0.4, p_value=0.0, fit_seconds=60.0)
    for epoch, said in ((0, "not worth it: no epoch"), (1, "worth it: +40.0 points"), (None, "worth it: +40.0 points")):
        assert row_verdict(replace(row, kept_epoch=epoch), "knn", 1.0).startswith(said)


def test_a_network_that_was_cut_before_takes_paths(here: Path, toy_weights: Path) -> None:
    from featcache.backbones import resolve
    from featcache.tuning.blocks import cut

    paths = sorted(map(str, (here / "new" / "train").rglob("*.png")))
    labels = [Path(path).parent.name for path in paths]
    own = featcache.FinetuneClassifier("toy", str(toy_weights), epochs=1).fit(paths, labels)
    network = cut(resolve("toy", toy_weights).build(), "toy", "last", STEPS.crop)
    given = featcache.FinetuneClassifier("toy", str(toy_weights), epochs=1).fit(paths, labels, network=network)
    assert given.predict(paths).shape == own.predict(paths).shape
    with pytest.raises(TrainingError, match="name the `backbone` that it was cut from instead of 'auto'"):
        featcache.FinetuneClassifier(epochs=1).fit(paths, labels, network=network)
