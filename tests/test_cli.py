"""The whole way, from a folder of pictures to predictions, by the command line."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from conftest import TINTS, Result, write_picture

import featcache
from featcache.backbones import torchvision_models
from featcache.errors import WeightsUnavailableError
from featcache.heads import FLOOR, HEADS

Run = Callable[..., Result]

pytestmark = pytest.mark.usefixtures("ready_network")


def _age(root: Path) -> None:
    """Make files old enough for their stat to be trusted."""
    then = time.time() - 60
    for path in root.rglob("*"):
        os.utime(path, (then, then))


def test_a_folder_becomes_a_scored_and_saved_classifier(run: Run, photos: Path) -> None:
    extracted = run("extract", photos, "--json", network=True).json
    assert (extracted["found"], extracted["computed"], extracted["reused"], extracted["unreadable"]) == (30, 30, 0, 0)
    assert extracted["backbone"] == "resnet18"
    assert set(extracted["seconds"]) == {"read", "decode", "forward", "write", "total"}
    fitted = run("fit", "--json").json
    assert (fitted["head"], fitted["n_train"], fitted["n_test"]) == ("logreg", 24, 6)
    assert fitted["fingerprint"] == extracted["fingerprint"]
    assert fitted["accuracy_low"] <= fitted["accuracy"] <= fitted["accuracy_high"]
    predicted = run("predict", fitted["model"], photos, "--json").json["predictions"]
    assert len(predicted) == 30
    right = [p["label"] == Path(p["path"]).parent.name for p in predicted]
    assert np.mean(right) > 0.9
    assert all(abs(sum(p["probabilities"].values()) - 1) < 1e-5 for p in predicted)
    assert all(p["label"] == max(p["probabilities"], key=p["probabilities"].get) for p in predicted)


def test_progress_reaches_the_total_once_a_stage(photos: Path, tmp_path: Path, seeded_weights: Path) -> None:
    import featcache

    (photos / "leaf" / "zz.jpg").write_text("not a picture")
    steps: dict[str, list[tuple[int, int]]] = {}
    options = featcache.Options(backbone="resnet18", weights=seeded_weights, cache=tmp_path / "cache", batch_size=4)
    featcache.fit(photos, options=options, progress=lambda *step: steps.setdefault(step[0], []).append(step[1:]))
    for stage, total in (("extract", 31), ("fit logreg", 25)):
        done = [step[0] for step in steps[stage]]
        assert {step[1] for step in steps[stage]} == {total}
        assert (done[0], done[-1], done.count(total)) == (0, total, 1)
        assert done == sorted(done)


def test_a_second_run_reads_and_computes_nothing(run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(path: str) -> None:
        raise AssertionError(f"{path} was read again")

    _age(photos)
    run("extract", photos, network=True)
    monkeypatch.setattr("featcache.sources.local.read", forbidden)
    again = run("extract", photos, "--json", network=True).json
    assert (again["reused"], again["computed"], again["seconds"]["read"]) == (30, 0, 0)


def test_one_changed_byte_costs_one_forward_pass_and_a_rename_none(run: Run, photos: Path) -> None:
    run("extract", photos, network=True)
    write_picture(photos / "leaf" / "0.png", 999, TINTS["leaf"])
    (photos / "sky" / "0.png").rename(photos / "sand" / "moved.png")
    shutil.copy(photos / "sky" / "1.png", photos / "sky" / "copy.png")
    again = run("extract", photos, "--json", network=True).json
    assert (again["found"], again["computed"], again["duplicates"]) == (31, 1, 1)
    assert again["found"] == again["reused"] + again["computed"] + again["duplicates"] + again["unreadable"]


def test_a_changed_stat_is_read_again(run: Run, photos: Path) -> None:
    changed = photos / "leaf" / "3.png"
    for path in photos.rglob("*.png"):
        os.utime(path, (1, 1))
    assert run("extract", photos, "--json", network=True).json["computed"] == 30
    write_picture(changed, 999)
    assert run("extract", photos, "--json", network=True).json["computed"] == 1


def test_rehash_finds_a_change_that_the_stat_hides(run: Run, photos: Path) -> None:
    path = photos / "leaf" / "0.png"
    content = (photos / "leaf" / "1.png").read_bytes()
    path.write_bytes(content + bytes(8))  # what follows the end of a PNG is not looked at
    _age(photos)
    run("extract", photos, network=True)
    before = path.stat()
    path.write_bytes(content + bytes(7) + b"x")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert run("extract", photos, "--json", network=True).json["computed"] == 0
    again = run("extract", photos, "--rehash", "--json", network=True).json
    assert (again["computed"], again["reused"]) == (1, 29)


def test_rubbish_is_counted_and_listed(run: Run, photos: Path) -> None:
    (photos / "leaf" / "notes.txt").write_text("not a picture")
    (photos / "leaf" / "empty.jpg").touch()
    (photos / "sky" / "gone.jpg").symlink_to("nowhere")
    os.mkfifo(photos / "sky" / "pipe.jpg")
    (photos / "sand" / "loop").symlink_to(photos / "sand")
    result = run("extract", photos, "--json", network=True)
    summary = result.json
    assert (summary["found"], summary["computed"], summary["unreadable"]) == (35, 30, 5)
    listed = {
        row["path"]: row["reason"] for row in csv.DictReader(Path(summary["unreadable_file"]).read_text().splitlines())
    }
    assert set(listed) == {failure["path"] for failure in summary["failures"]}
    assert "in a format that is decoded" in listed[str(photos / "leaf" / "notes.txt")]
    text = run("extract", photos, network=True).out
    assert "unreadable   5" in text
    assert "empty.jpg: empty file" in text


def test_an_odd_file_name_does_not_break_the_lines(run: Run, photos: Path) -> None:
    (photos / "leaf" / "new\nline\x1b[31m.jpg").write_text("x")
    (photos / "leaf" / os.fsdecode(b"not utf-8 \xff.jpg")).write_text("x")
    (photos / "leaf" / "smile \U0001f600.jpg").write_text("x")
    text = run("extract", photos, network=True).out
    assert "new\\nline\\x1b[31m.jpg: not a picture" in text
    assert "not utf-8 \\udcff.jpg: not a picture" in text
    assert "smile \U0001f600.jpg: not a picture" in text


def test_a_class_without_a_readable_picture_is_named(run: Run, photos: Path) -> None:
    (photos / "mud").mkdir()
    (photos / "mud" / "0.jpg").write_text("not a picture")
    notices = run("fit", photos, "--json", network=True).json["notices"]
    assert "unreadable files left out: 1" in notices[0]
    assert "'mud'" in notices[1]


def test_pictures_under_two_labels_are_said_and_a_class_that_holds_those_of_the_others(run: Run, photos: Path) -> None:
    shutil.copy(photos / "leaf" / "0.png", photos / "sky" / "copy.png")
    (notice,) = run("extract", photos, "--json", network=True).json["notices"]
    assert notice.startswith("1 picture is there under more than one label, which no head can fit: leaf: ")
    for label in TINTS:
        for number in range(10):
            (photos / "all").mkdir(exist_ok=True)
            shutil.copy(photos / label / f"{number}.png", photos / "all" / f"{label}{number}.png")
    notices = run("extract", photos, "--json", network=True).json["notices"]
    assert notices[0].startswith("30 pictures are there under more than one label")
    assert notices[1].startswith("all 30 pictures of 'all' are there under other labels too")
    assert len(notices) == 2
    said = run("fit", photos, network=True).err
    assert all(notice in said for notice in notices)


def test_options_of_the_extraction_are_refused_where_nothing_is_extracted(run: Run, photos: Path) -> None:
    run("extract", photos, network=True)
    for words in (["--backbone", "resnet50"], ["--device", "cpu"], ["--batch-size", "2"]):
        result = run("fit", *words)
        assert (result.code, result.out) == (1, "")
        assert "name it as SOURCE" in result.err


def test_splits_of_the_folder_are_used(run: Run, tmp_path: Path) -> None:
    root = tmp_path / "split"
    for at, split in enumerate(["train", "val", "test"]):
        for label, tint in TINTS.items():
            for number in range(6 if split == "train" else 2):
                write_picture(root / split / label / f"{number}.png", 1000 * at + 100 * len(label) + number, tint)
    row = run("fit", root, "--json", network=True).json
    assert row["split_sizes"] == {"test": 6, "train": 18, "val": 6}
    assert (row["scored_split"], row["fitted_on"], row["n_train"], row["n_test"]) == ("test", "train+val", 24, 6)
    assert "val" in row["chosen_by"]


def test_the_split_that_was_made_is_kept_when_pictures_are_added(run: Run, photos: Path) -> None:
    def split() -> dict[str, str]:
        from featcache.store import Cache

        with Cache(Path("cache")) as cache:
            kept = cache.splits.kept(str(photos), 0)
            return {key.hex(): name for key, name in kept.items()}

    first = run("fit", photos, "--json", network=True).json
    before = split()
    assert run("fit", "--json").json["accuracy"] == first["accuracy"]
    for number in range(20):
        write_picture(photos / "leaf" / f"new{number}.png", 5000 + number, TINTS["leaf"])
    second = run("fit", photos, "--json", network=True).json
    after = split()
    assert before == {key: after[key] for key in before}
    assert len(after) == 50
    assert second["split_sizes"] == {"test": 10, "train": 40}
    assert "80/20" in second["notices"][0]


@pytest.mark.parametrize("head", ["logreg", "svm", "mlp"])
def test_every_head_fits_predicts_and_repeats(run: Run, photos: Path, head: str) -> None:
    first = run("fit", photos, "--head", head, "--seed", "3", "--json", network=True).json
    second = run("fit", "--head", head, "--seed", "3", "--json").json
    same = ["accuracy", "balanced_accuracy", "macro_f1", "params", "seed", "n_train", "n_test"]
    assert [first[name] for name in same] == [second[name] for name in same]
    probabilities = [run("predict", row["model"], photos / "leaf" / "0.png", "--json").json for row in (first, second)]
    assert probabilities[0]["predictions"] == probabilities[1]["predictions"]
    assert set(probabilities[0]["predictions"][0]["probabilities"]) == set(TINTS)


def test_svm_is_calibrated_where_the_choice_is_made(run: Run, tmp_path: Path) -> None:
    root = tmp_path / "split"
    for split, label, count in [("train", "a", 4), ("train", "b", 1), ("val", "a", 2), ("test", "a", 2)]:
        for number in range(count):
            seed = 1000 * len(split) + 100 * ord(label) + number
            write_picture(root / split / label / f"{number}.png", seed, TINTS["leaf" if label == "a" else "sky"])
    fitted = run("fit", root, "--head", "svm", "--json", network=True).json
    assert fitted["chosen_by"] == "accuracy on val (n=2)"
    assert (fitted["n_train"], fitted["n_test"]) == (7, 2)
    for row in run("predict", fitted["model"], root, "--json").json["predictions"]:
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert row["label"] == max(row["probabilities"], key=row["probabilities"].get)


def test_a_class_with_one_picture_to_train_on_needs_a_val_split(run: Run, tmp_path: Path) -> None:
    root = tmp_path / "split"
    for split, label, count in [("train", "a", 4), ("train", "b", 1), ("test", "a", 2)]:
        for number in range(count):
            write_picture(root / split / label / f"{number}.png", 1000 * len(split) + 100 * ord(label) + number)
    result = run("fit", root, "--head", "svm", network=True)
    assert (result.code, result.out) == (1, "")
    assert "class 'b' has one picture in train" in result.err
    cell = run("bench", "--heads", "svm", "--classes", "all", "--per-class", "1", "--seeds", "1", "--json").json
    assert [row["n_train"] for row in cell["rows"]] == [5, 2]
    assert all(row["error"] is None for row in cell["rows"])  # the values that nothing chose are the default ones


def test_svm_with_two_classes_gives_probabilities_that_agree_with_its_labels(run: Run, photos: Path) -> None:
    shutil.rmtree(photos / "sand")
    model = run("fit", photos, "--head", "svm", "--json", network=True).json["model"]
    for row in run("predict", model, photos, "--json").json["predictions"]:
        assert row["label"] == max(row["probabilities"], key=row["probabilities"].get)
        assert abs(sum(row["probabilities"].values()) - 1) < 1e-5


def test_poisoned_test_labels_move_no_choice(run: Run, tmp_path: Path) -> None:
    rows = []
    for at, (label, tint) in enumerate(TINTS.items()):
        for number in range(12):
            path = write_picture(tmp_path / "all" / f"{label}{number}.png", 50 * at + number, tint)
            rows.append([str(path), label, "test" if number >= 8 else "train"])
    labels = list(TINTS)
    results = []
    for shift in (0, 1):
        manifest = tmp_path / f"shift{shift}.csv"
        with manifest.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "label", "split"])
            for path, label, split in rows:
                moved = labels[(labels.index(label) + shift) % 3] if split == "test" else label
                writer.writerow([path, moved, split])
        fitted = run("fit", manifest, "--json", network=True).json
        predicted = run("predict", fitted["model"], tmp_path / "all", "--json").json["predictions"]
        results.append((fitted, predicted))
    (honest, from_honest), (poisoned, from_poisoned) = results
    assert honest["params"] == poisoned["params"]
    assert from_honest == from_poisoned
    assert honest["accuracy"] > 0.9
    assert poisoned["accuracy"] < 0.1


def test_predictions_go_to_csv(run: Run, photos: Path, tmp_path: Path) -> None:
    model = run("fit", photos, "--json", network=True).json["model"]
    (photos / "leaf" / "broken.jpg").write_bytes(b"\xff\xd8broken")
    out = tmp_path / "out.csv"
    result = run("predict", model, photos, "--csv", out)
    rows = list(csv.DictReader(out.open()))
    assert len(rows) == 30
    assert list(rows[0]) == ["path", "label", *sorted(TINTS)]
    assert f"unreadable: {photos / 'leaf' / 'broken.jpg'}" in result.out
    failed = run("predict", model, photos, "--csv", tmp_path / "no" / "such" / "out.csv")
    assert failed.code == 1
    assert f"there is no folder {tmp_path / 'no' / 'such'} for out.csv" in failed.err


def test_predict_does_not_change_the_dataset_last_extracted(run: Run, photos: Path, tmp_path: Path) -> None:
    fitted = run("fit", photos, "--json", network=True).json
    write_picture(tmp_path / "other" / "one.png", 7)
    run("predict", fitted["model"], tmp_path / "other")
    assert run("fit", "--json").json["dataset"] == str(photos)


def test_a_foreign_model_file_is_not_opened_without_trust(run: Run, photos: Path, tmp_path: Path) -> None:
    import joblib

    class Bomb:
        def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
            return os.mkdir, (str(tmp_path / "exploded"),)

    bomb = tmp_path / "bomb.joblib"
    joblib.dump(Bomb(), bomb)
    refused = run("predict", bomb, photos)
    assert (refused.code, (tmp_path / "exploded").exists()) == (1, False)
    assert "--trust" in refused.err
    opened = run("predict", bomb, photos, "--trust")
    assert (opened.code, (tmp_path / "exploded").exists()) == (1, True)
    assert "not a featcache model" in opened.err


def test_a_model_moves_to_another_cache(run: Run, photos: Path, tmp_path: Path) -> None:
    model = shutil.copy(run("fit", photos, "--json", network=True).json["model"], tmp_path / "model.safetensors")
    here = run("predict", model, photos, "--json").json
    there = run("predict", model, photos, "--cache", tmp_path / "elsewhere", "--json").json
    assert there["predictions"] == here["predictions"]


def test_a_model_whose_weights_changed_is_refused(run: Run, photos: Path, tmp_path: Path, seeded_weights: Path) -> None:
    import torch

    weights = shutil.copy(seeded_weights, tmp_path / "mine.pth")
    model = run("fit", photos, "--backbone", "resnet18", "--weights", weights, "--json").json["model"]
    state = torch.load(weights, weights_only=True)
    state["conv1.weight"] += 0.01
    torch.save(state, weights)
    refused = run("predict", model, photos)
    assert refused.code == 1
    assert "--weights" in refused.err
    weights.unlink()
    assert run("predict", model, photos).code == 1
    assert run("predict", model, photos, "--weights", seeded_weights).code == 0


def test_one_line_and_the_right_exit_code_for_bad_input(run: Run, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_picture(tmp_path / "lonely" / "only" / "0.png", 1)
    write_picture(tmp_path / "lonely" / "only" / "1.png", 2)
    write_picture(tmp_path / "single" / "a" / "0.png", 1)
    write_picture(tmp_path / "single" / "b" / "0.png", 2)
    write_picture(tmp_path / "single" / "b" / "1.png", 3)
    (tmp_path / "rubbish" / "a").mkdir(parents=True)
    (tmp_path / "rubbish" / "a" / "x.jpg").write_text("x")
    (tmp_path / "no-label.csv").write_text("path\nphotos/leaf/0.png\n")
    (tmp_path / "no-file.csv").write_text("path,label\nphotos/leaf/nope.png,leaf\n")
    write_picture(tmp_path / "flat" / "0.png", 1)
    cases: list[tuple[list[str | Path], int, str]] = [
        (["extract", "nowhere"], 1, "nowhere"),
        (["extract", "empty"], 1, "no files"),
        (["extract", "rubbish"], 1, "readable picture"),
        (["fit", "lonely"], 1, "only one class"),
        (["fit", "single"], 1, "class 'a' has one picture"),
        (["fit", "flat"], 1, "no labels"),
        (["fit", "photos", "--head", "nope"], 1, "unknown head 'nope'"),
        (["extract", "photos", "--device", "nope"], 1, "unknown device 'nope'"),
        (["extract", "no-label.csv"], 1, "'label'"),
        (["extract", "no-file.csv"], 1, "line 2"),
        (["fit", "--cache", "fresh"], 1, "featcache extract"),
        (["extract", "photos", "--cache", "photos"], 1, "no featcache cache"),
        (["predict", "no.joblib", "photos"], 1, "no.joblib"),
    ]
    for words, code, said in cases:
        result = run(*words, network=words[0] != "predict" and words[1] != "--cache")
        assert (result.code, result.out) == (code, ""), (words, result)
        lines = [line for line in result.err.splitlines() if line.startswith("featcache: ")]
        assert said in lines[-1], (words, result.err)
        assert "Traceback" not in result.err
    assert run("extract", "photos", "--backbone", "resnet19").code == 1
    for words in (["extract"], ["nope"], ["extract", "photos", "--batch-size", "0"], ["fit", "--seed", "-1"]):
        result = run(*words)
        assert (result.code, result.out) == (2, "")
        assert "Usage" in result.err


def test_a_cache_of_another_version_is_refused_and_untouched(run: Run, photos: Path, tmp_path: Path) -> None:
    run("extract", photos, network=True)
    marker = tmp_path / "cache" / "format.json"
    marker.write_text(json.dumps({"format": "featcache", "version": 99}))
    before = sorted(tmp_path.joinpath("cache").rglob("*"))
    result = run("extract", photos, network=True)
    assert result.code == 1
    assert "99" in result.err
    assert sorted(tmp_path.joinpath("cache").rglob("*")) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "times"), [(signal.SIGINT, 130, 1), (signal.SIGINT, 130, 3), (signal.SIGTERM, 143, 1)]
)
def test_a_stopped_run_keeps_what_it_committed(
    run: Run, tmp_path: Path, seeded_weights: Path, number: signal.Signals, code: int, times: int
) -> None:
    for at in range(48):
        write_picture(tmp_path / "many" / "abc"[at % 3] / f"{at}.png", at)
    words = [sys.executable, "-m", "featcache", "extract", "many", "--json", "--batch-size", "4"]
    words += ["--backbone", "resnet18", "--weights", str(seeded_weights)]
    frequent = {**os.environ, "PYTHONPATH": str(_frequent_commits(tmp_path))}
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=frequent)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("cache/segments/*/seg-*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    for _ in range(times):
        process.send_signal(number)
        time.sleep(0.02)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    if number == signal.SIGINT and times == 1:
        assert err.decode().splitlines()[-1].startswith("featcache: interrupted")
    assert b"Traceback" not in err
    assert f"was not finished: run `featcache extract {tmp_path / 'many'} --backbone resnet18`" in run("fit").err
    again = run("extract", "many", "--json", network=True).json
    assert again["found"] == again["reused"] + again["computed"] == 48
    assert again["reused"] >= 8
    assert not list((tmp_path / "cache").rglob(".tmp-*"))


@pytest.mark.slow
def test_a_dataset_is_used_with_the_network_and_columns_that_it_was_extracted_with(
    run: Run, photos: Path, tmp_path: Path
) -> None:
    listed = [f"{path},{path.parent.name}" for path in sorted(photos.rglob("*.png"))]
    (tmp_path / "list.csv").write_text("\n".join(["file,kind", *listed]))
    first = run("extract", "list.csv", "--columns", "path=file,label=kind", "--draft", "--json", network=True)
    write_picture(photos / "sky" / "new.png", 77)
    (tmp_path / "list.csv").write_text("\n".join(["file,kind", *listed, f"{photos / 'sky' / 'new.png'},sky"]))
    done = run("fit", "list.csv", "--head", "dummy", "--json")
    assert done.code == 0, done.err
    assert done.json["fingerprint"] == first.json["fingerprint"]
    assert sum(done.json["split_sizes"].values()) == 31
    other = run("fit", "list.csv", "--head", "dummy", "--backbone", "efficientnet_lite0", "--json")
    assert other.json["fingerprint"] != first.json["fingerprint"]


def _frequent_commits(tmp_path: Path) -> Path:
    """Return a folder that makes Python commit every eight rows instead of every five seconds."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text("import featcache.store.writing as f\nf.COMMIT_ROWS = 8\n")
    return folder


def test_a_broken_segment_is_said_and_only_its_rows_are_computed_again(run: Run, photos: Path, tmp_path: Path) -> None:
    run("extract", photos / "leaf", network=True)
    run("extract", photos, network=True)
    first = sorted(tmp_path.glob("cache/segments/*/seg-*"))[0]
    data = bytearray(first.read_bytes())
    data[len(data) // 2] ^= 1
    first.write_bytes(data)
    result = run("extract", photos, "--json", network=True)
    assert "checksum" in result.err
    assert (result.json["computed"], result.json["reused"]) == (10, 20)
    assert run("fit").code == 0


def _unreachable(url: str) -> Path:
    raise WeightsUnavailableError(f"cannot download {url} (no network)")


def test_auto_says_which_backbone_stands_in_and_why(run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision_models, "obtain", _unreachable)
    result = run("extract", photos / "leaf", "--json")
    assert result.json["backbone"] == "efficientnet_lite0"
    assert "resnet18" in result.err
    assert "no network" in result.err


@pytest.mark.slow
def test_demo_compares_all_heads_offline(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from featcache.api import demonstration

    monkeypatch.setattr(demonstration, "DIGITS_PER_CLASS", 8)
    summary = run("demo", "--json").json
    assert (summary["extract"]["found"], summary["extract"]["backbone"]) == (80, "efficientnet_lite0")
    compared = summary["compare"]
    assert [row["head"] for row in compared["rows"]] == [*HEADS, FLOOR]
    assert (compared["setting"]["seeds"], compared["setting"]["n_test"]) == ([0], 20)
    assert compared["setting"]["fingerprint"] == summary["extract"]["fingerprint"]
    scores = {row["head"]: row["accuracy"] for row in compared["rows"]}
    assert scores[FLOOR] == pytest.approx(0.1)
    assert min(score for head, score in scores.items() if head != FLOOR) > 0.2
    assert max(scores.values()) > 0.4
    text = run("demo")
    assert "reused       80" in text.out
    assert "95 % interval" in text.out
    assert run("compare", "--seeds", "1").out.partition("\n\n")[0] in text.out
    assert not (tmp_path / "cache" / "models").exists()


def test_demo_on_a_folder_says_which_backbone_it_took(run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision_models, "obtain", _unreachable)
    result = run("demo", photos, "--json")
    assert result.json["extract"]["found"] == 30
    assert result.json["compare"]["setting"]["backbone"] == "efficientnet_lite0"
    assert result.json["compare"]["setting"]["dataset"] == str(photos)
    assert "no network" in result.err


def test_a_cache_among_the_pictures_is_not_taken_for_a_class(
    run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos)
    for computed in (30, 0):
        summary = run("extract", ".", "--json", network=True).json
        assert (summary["found"], summary["computed"]) == (30, computed)


def test_the_cache_folder_comes_from_option_variable_or_default(
    run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("extract", photos, "--json", network=True).json["cache"] == str(tmp_path / "cache")
    monkeypatch.setenv("FEATCACHE_CACHE", str(tmp_path / "by-variable"))
    assert run("extract", photos, "--json", network=True).json["cache"] == str(tmp_path / "by-variable")
    chosen = run("extract", photos, "--cache", tmp_path / "by-option", "--json", network=True)
    assert chosen.json["cache"] == str(tmp_path / "by-option")


def test_the_list_of_what_could_not_be_read_outlives_the_next_extraction(run: Run, tmp_path: Path) -> None:
    listings = []
    for name in ("one", "two"):
        (tmp_path / name / "leaf").mkdir(parents=True)
        (tmp_path / name / "leaf" / "rubbish.jpg").write_bytes(b"no picture")
        said = run("extract", tmp_path / name).err
        listings.append(Path(said.rsplit("listed in ", 1)[1].strip()))
    for name, listing in zip(("one", "two"), listings, strict=True):
        assert str(tmp_path / name / "leaf" / "rubbish.jpg") in listing.read_text()


def test_ctrl_c_while_the_command_line_is_loaded_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise KeyboardInterrupt\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    command = [sys.executable, "-m", "featcache", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "featcache: interrupted before it began\n")


def test_nothing_slow_stands_between_python_and_the_place_where_ctrl_c_is_caught() -> None:
    code = "import os, sys; before = {*sys.modules}; import featcache.__main__; print(*sorted({*sys.modules} - before))"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, env=_path(), check=True)
    ours = {"featcache", "featcache.forks", "featcache.__main__"}
    assert {name for name in done.stdout.split() if not name.startswith(("importlib", "_", "warnings"))} == ours


def test_the_version_and_rooms_that_load_later_are_there_when_they_are_asked_for() -> None:
    code = "import featcache; print(featcache.__version__, featcache.process.keep_freed_memory.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=_path(), check=True)
    assert done.stdout == f"{version('featcache')} keep_freed_memory\n"


def _path() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(featcache.__file__).parents[1]), *sys.path])}
