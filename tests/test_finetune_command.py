"""`featcache finetune`: scores, the partial cache, stopping and going on, lost pictures, files, and other commands."""

from __future__ import annotations

import csv
import io
import os
import resource
import shutil
import signal
import subprocess
import sys
import xml.etree.ElementTree
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Result, write_picture
from finetune_rows import STEPS, TINTS, install, key_of, make_old, refused, tensors, timeless, write_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from store_rows import SPEC

import featcache
from featcache import Options, api
from featcache.api import Training
from featcache.backbones import torchvision_models
from featcache.errors import DatasetError, FeatcacheError, TrainingError
from featcache.evaluate import Outcome, paired_tests
from featcache.records.finetuning import EpochRow, FinetuneSummary
from featcache.render.finetuning import verdict
from featcache.splits import hold_out
from featcache.store import Cache

Run = Callable[..., Result]

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = Training(epochs=3, batch_size=8, lr=0.01)
SIZES = {"train": 6, "val": 3, "test": 4}


@pytest.fixture(scope="module")
def toy_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("toy") / "toy.pth"


@pytest.fixture(autouse=True)
def toy_is_known(monkeypatch: pytest.MonkeyPatch, toy_weights: Path) -> None:
    install(monkeypatch, toy_weights)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, toy_weights: Path) -> Path:
    """A folder with `photos`, three classes with train, val and test, and a cache into which they were extracted.

    Two test pictures of a leaf look like sky.
    """
    folder = tmp_path_factory.mktemp("scene")
    write_folder(folder / "photos", SIZES)
    for number in (9, 10):
        write_picture(folder / "photos" / "test" / "leaf" / f"{number}.png", 5000 + number, TINTS["sky"])
    make_old(folder / "photos")
    with pytest.MonkeyPatch.context() as patch:
        install(patch, toy_weights)
        featcache.extract(folder / "photos", Options("toy", cache=folder / "cache"))
    return folder


@pytest.fixture
def photos(scene: Path, tmp_path: Path) -> Path:
    """The pictures of `scene`, with a copy of its cache in the folder where commands are run."""
    shutil.copytree(scene / "cache", tmp_path / "cache")
    return scene / "photos"


@pytest.fixture
def own(scene: Path, tmp_path: Path) -> Path:
    """A copy of the pictures that may be changed, with a cache of its own."""
    shutil.copytree(scene / "photos", tmp_path / "photos")
    featcache.extract(tmp_path / "photos", Options("toy", cache=tmp_path / "cache"))
    return tmp_path / "photos"


def finetune(tmp_path: Path, training: Training = QUICK, **how: Any) -> FinetuneSummary:
    return api.finetune(training=training, options=Options(cache=tmp_path / "cache"), **how)


def wrong_keys(model: str, root: Path, cache: Path) -> tuple[set[str], float]:
    """Return the keys of the test pictures that `predict` labels wrongly, and the part that is right."""
    found = featcache.predict(model, root, options=Options(cache=cache)).predictions
    hits = {row.path: row.label == Path(row.path).parent.name for row in found}
    return {key_of(path)[:16] for path, hit in hits.items() if not hit}, sum(hits.values()) / len(hits)


# --- what a training says of itself ---


def test_the_summary_tells_the_whole_setting(photos: Path, tmp_path: Path) -> None:
    rows: list[EpochRow] = []
    found = finetune(tmp_path, on_epoch=rows.append)
    assert tuple(rows) == found.history
    assert (found.n_train, found.n_val, found.n_test) == (18, 9, 12)
    assert (found.validated_on, found.scored_split, found.n_classes) == ("val", "test", 3)
    assert found.split_sizes == {"train": 18, "val": 9, "test": 12}
    assert (found.network, found.unfreeze, found.unfrozen) == ("toy", "last", ("layer4",))
    assert (found.dataset, found.backbone, found.device) == (str(photos), "toy", "cpu")
    assert found.training == asdict(QUICK)
    assert [row.epoch for row in found.history] == [0, 1, 2, 3]
    ranked = [(row.val_accuracy, -row.val_loss) for row in found.history]
    assert found.best_epoch == ranked.index(max(ranked))
    assert found.accuracy_low < found.accuracy < found.accuracy_high
    assert found.seconds > 0
    assert found.gain == pytest.approx(found.accuracy - found.head_accuracy)
    assert found.gain_per_minute == pytest.approx(100 * found.gain / (found.seconds / 60), rel=0.05)
    fitted = featcache.fit(head="logreg", options=Options(cache=tmp_path / "cache"))
    assert (found.head, found.head_accuracy) == ("logreg", fitted.accuracy)
    assert (found.head_low, found.head_high) == (fitted.accuracy_low, fitted.accuracy_high)
    assert found.split_digest == fitted.split_digest


def test_the_score_and_the_wrong_pictures_are_those_of_predict(photos: Path, tmp_path: Path) -> None:
    found = finetune(tmp_path, replace(QUICK, unfreeze="2", augment="flip"))
    wrong, accuracy = wrong_keys(found.model, photos / "test", tmp_path / "cache")
    assert found.accuracy == accuracy < 1
    assert set(found.wrong) == wrong
    assert len(found.wrong) == len(wrong) >= 2


def test_the_p_value_is_that_of_the_paired_test_on_the_predictions(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The top is turned round after the training here, so that the network is worse than the head."""
    from featcache.tuning.training import Trainer

    train = Trainer.run

    def turned(self: Trainer, *args: Any) -> Any:
        done = train(self, *args)
        with torch.no_grad():
            self.linear.weight.neg_()
        return done

    monkeypatch.setattr(Trainer, "run", turned)
    found = finetune(tmp_path, replace(QUICK, epochs=1))
    options, hits, truth = Options(cache=tmp_path / "cache"), {}, []
    head = featcache.fit(head="logreg", options=options)
    for name, model in (("network", found.model), ("logreg", head.model)):
        rows = featcache.predict(model, photos / "test", options=options).predictions
        truth = [Path(row.path).parent.name for row in rows]
        hits[name] = np.array([row.label == label for row, label in zip(rows, truth, strict=True)])
    assert not np.array_equal(hits["network"], hits["logreg"])
    outcome = Outcome(np.arange(len(truth)), np.unique(truth, return_inverse=True)[1], hits)
    assert found.p_value == paired_tests([outcome], "network", ["network", "logreg"])["logreg"] < 1


def test_the_file_of_epochs_is_the_history(photos: Path, tmp_path: Path) -> None:
    found = finetune(tmp_path)
    assert Path(found.history_file).parent == tmp_path / "cache" / "runs"
    rows = list(csv.DictReader(io.StringIO(Path(found.history_file).read_text())))
    assert len(rows) == 4
    for row, expected in zip(rows, found.history, strict=True):
        for name, value in asdict(expected).items():
            assert row[name] == "" if value is None else float(row[name]) == pytest.approx(value)


@pytest.mark.soak
def test_equal_seeds_give_equal_trainings_and_others_others(photos: Path, tmp_path: Path) -> None:
    training = replace(QUICK, dropout=0.3, augment="full", views=2)
    one, two, other = (finetune(tmp_path, training, seed=seed) for seed in (1, 1, 2))
    assert timeless(one.history) == timeless(two.history) != timeless(other.history)
    assert all(torch.equal(tensor, tensors(two.model)[name]) for name, tensor in tensors(one.model).items())


def test_without_val_a_fifth_of_train_is_held_out_and_never_scored(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "photos", {"": 15})
    for number in range(3):  # copies of pictures, under other names
        shutil.copy(root / "leaf" / f"{number}.png", root / "leaf" / f"copy{number}.png")
    found = api.finetune(root, QUICK, options=Options("toy", cache=tmp_path / "cache"))
    assert found.validated_on == "20 % of train"
    assert found.n_train + found.n_val + found.n_test == 48
    assert 6 <= found.n_val <= 9
    assert found.split_sizes == {"test": found.n_test, "train": found.n_train + found.n_val}
    fitted = featcache.fit(head="logreg", options=Options(cache=tmp_path / "cache"))
    assert (found.split_digest, found.head_accuracy) == (fitted.split_digest, fitted.accuracy)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.sampled_from("abc")), min_size=2, max_size=60), st.integers(0, 5))
def test_what_is_held_out_is_a_fifth_of_each_class_with_copies_on_one_side(
    given_rows: list[tuple[int, str]], seed: int
) -> None:
    keys = dict(given_rows)  # one label a content
    rows = [(key, keys[key]) for key, _ in given_rows]
    asked = np.random.default_rng(seed).permutation(len(rows))
    given_keys, labels = [rows[row][0].to_bytes(32, "big") for row in asked], [rows[row][1] for row in asked]
    contents = {label: sorted(key for key in keys if keys[key] == label) for label in set(keys.values())}
    if all(len(found) == 1 for found in contents.values()):
        with pytest.raises(DatasetError, match="none can be held out"):
            hold_out(given_keys, labels, seed)
        return
    found_held = hold_out(given_keys, labels, seed)
    left, held = asked[~found_held], asked[found_held]
    sides = [{rows[row][0] for row in part} for part in (left, held)]
    assert not sides[0] & sides[1]
    for label, found in contents.items():
        count = sum(keys[key] == label for key in sides[1])
        assert count == (0 if len(found) == 1 else min(max(1, round(len(found) / 5)), len(found) - 1))
    assert np.array_equal(hold_out(given_keys, labels, seed), found_held)


def test_the_head_alone_trains_on_the_cached_vectors_and_reads_no_picture(own: Path, tmp_path: Path) -> None:
    shutil.rmtree(own)
    found = finetune(tmp_path, replace(QUICK, unfreeze="head"))
    assert (found.unfrozen, found.cached_bytes, found.computed) == ((), 0, 0)
    assert found.history[-1].train_loss is not None
    before, after = torch.load(next(iter(find_weights(found))), weights_only=True), tensors(found.model)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_the_public_names_are_the_function_and_the_classifier_beside_a_package_of_another_name() -> None:
    from featcache.tuning.classifier import FinetuneClassifier

    assert {"finetune", "FinetuneClassifier"} <= set(featcache.__all__)
    assert featcache.finetune is api.finetune
    assert featcache.FinetuneClassifier is FinetuneClassifier


def find_weights(found: FinetuneSummary) -> Iterator[Path]:
    from featcache.backbones import resolve

    file = resolve(found.network).file
    assert file is not None
    yield file


# --- the partial cache ---


def test_the_partial_cache_gives_the_losses_of_the_plain_loop(photos: Path, tmp_path: Path) -> None:
    """One batch an epoch, so that the loss of each step is seen; as many draws as epochs."""
    training = Training(epochs=8, batch_size=32, lr=3e-3, unfreeze="last", augment="full", views=8)
    cached, plain = finetune(tmp_path, training), finetune(tmp_path, training, partial_cache_limit=0)
    assert cached.cached_bytes > 0
    assert (plain.cached_bytes, plain.computed) == (0, 0)
    assert len(cached.history) == len(plain.history) == 9
    for one, two in zip(cached.history, plain.history, strict=True):
        assert one.val_loss == pytest.approx(two.val_loss, abs=1e-3)
        assert one.train_loss == pytest.approx(two.train_loss, abs=1e-3)
    losses = [row.train_loss or 0 for row in cached.history[1:]]
    assert np.ptp(losses) > 0.01


@pytest.mark.soak
def test_draws_beyond_the_kept_ones_take_turns(photos: Path, tmp_path: Path) -> None:
    training = Training(epochs=4, batch_size=32, lr=1e-9, unfreeze="last", augment="crop", views=2)
    losses = [row.train_loss for row in finetune(tmp_path, training).history[1:]]
    assert losses[0] == pytest.approx(losses[2], abs=1e-3)
    assert losses[1] == pytest.approx(losses[3], abs=1e-3)
    plain = [row.train_loss for row in finetune(tmp_path, training, partial_cache_limit=0).history[1:]]
    assert plain[:2] == pytest.approx(losses[:2], abs=1e-3)
    assert abs((plain[2] or 0) - (plain[0] or 0)) > 2e-3


def test_the_second_time_nothing_is_computed_and_renamed_files_cost_nothing(own: Path, tmp_path: Path) -> None:
    training = replace(QUICK, epochs=1, augment="flip", views=2)
    first = finetune(tmp_path, training)
    assert first.computed == 18 * 2 + 9 + 12
    for path in sorted(own.rglob("*.png")):
        path.rename(path.with_name(f"renamed-{path.name}"))
    featcache.extract(own, Options("toy", cache=tmp_path / "cache"))
    again = finetune(tmp_path, replace(training, lr=1e-4))
    assert again.computed == 0
    assert again.cached_bytes == first.cached_bytes


def test_the_bytes_of_the_partial_cache_are_said_before_and_kept(photos: Path, run: Run) -> None:
    result = run("finetune", "--epochs", "1", "--unfreeze", "layer4", "--json")
    size = 39 * 8 * 8 * 8 * 2  # pictures, channels, height, width, bytes
    assert result.json["cached_bytes"] == size
    assert "featcache: the partial cache takes 0.0 MB, 0.0 of it new: what enters layer4" in result.err.splitlines()
    infos = run("cache", "info", "--json").json["backbones"]
    (kept,) = [info for info in infos if "layer4" in (info["view"] or "")]
    assert (kept["rows"], kept["dim"], kept["dtype"]) == (39, 512, "float16")


def test_all_unfrozen_keeps_the_decoded_pictures(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = finetune(tmp_path, replace(QUICK, epochs=1, unfreeze="all", augment="crop", views=3))
    assert (found.computed, found.cached_bytes) == (18 * 3 + 21, (18 * 3 + 21) * 3 * 32 * 32 * 2)
    assert "takes 0.5 MB, 0.5 of it new: what enters the network, 3 draws of each to train on" in caplog.text


def test_beyond_the_limit_every_epoch_runs_all_and_it_is_said(photos: Path, run: Run) -> None:
    result = run("finetune", "--epochs", "1", "--partial-cache-limit", "0.00001", "--json")
    assert result.code == 0
    words = "the partial cache would take 0.0 MB, 0.0 of it new: what enters layer4; the limit is 0.0 and free on the"
    assert words in result.err
    (notice,) = result.json["notices"]
    assert words in notice
    assert notice.endswith(": instead, every epoch decodes and runs what is frozen")
    assert (result.json["cached_bytes"], result.json["computed"]) == (0, 0)


def test_a_full_disk_means_the_plain_loop_too(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    found = finetune(tmp_path, replace(QUICK, epochs=1))
    assert found.cached_bytes == 0
    assert any("free on the disk are 0.0: instead, every epoch decodes" in notice for notice in found.notices)


@pytest.mark.soak
def test_a_damaged_partial_cache_is_computed_again(photos: Path, tmp_path: Path) -> None:
    first = finetune(tmp_path)
    with Cache(tmp_path / "cache") as cache:
        stores = [cache.store(name) for name in cache.fingerprints() if cache.spec(name).is_for_training]
    (segment,) = [path for store in stores for path in store.folder.glob("seg-*.h5")]
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 8
    segment.write_bytes(data)
    again = finetune(tmp_path)
    assert again.computed == first.computed == 39
    assert timeless(again.history) == timeless(first.history)


def test_activations_are_no_orphans_but_may_be_cleaned_up(photos: Path, run: Run) -> None:
    assert run("finetune", "--epochs", "1", "--augment", "flip", "--augment-views", "2").code == 0
    verified = run("cache", "verify", "--json").json
    assert (verified["orphaned"], verified["problems"], verified["broken"]) == (0, [], [])
    found = run("cache", "gc", "--dry-run", "--json").json["unused"]
    assert [row["reason"] for row in found] == ["kept for fine-tuning, and computed again where it is needed"] * 3
    assert "kept for fine-tuning" in run("cache", "gc", "--dry-run").out
    assert run("cache", "gc", "--yes").code == 0
    assert run("cache", "gc", "--dry-run", "--json").json["unused"] == []
    assert run("fit", "--json").code == 0
    assert run("finetune", "--epochs", "1", "--json").json["computed"] == 39


@pytest.mark.soak
def test_activations_of_other_weights_are_others(photos: Path, tmp_path: Path, toy_weights: Path) -> None:
    state = torch.load(toy_weights, weights_only=True)
    torch.save({name: tensor * 1.01 for name, tensor in state.items()}, tmp_path / "other.pth")
    once = replace(QUICK, epochs=1)
    assert finetune(tmp_path, once).computed == 39
    other = Options("toy", tmp_path / "other.pth", tmp_path / "cache")
    assert api.finetune(photos, once, options=other).computed == 39


def test_activations_beyond_float16_are_refused_with_a_way_out(
    own: Path, tmp_path: Path, run: Run, toy_weights: Path
) -> None:
    state = torch.load(toy_weights, weights_only=True)
    torch.save({name: t * (1e6 if name == "layer3.3.weight" else 1) for name, t in state.items()}, tmp_path / "big.pth")
    words = ["finetune", "photos", "--backbone", "toy", "--weights", "big.pth", "--epochs", "1", "--lr", "1e-9"]
    assert run(*words, "--partial-cache-limit", "0").code == 0
    assert refused(run(*words), "do not fit into float16", "--partial-cache-limit 0")


# --- stopping and going on ---

COURSE = Training(epochs=4, batch_size=8, lr=0.02, dropout=0.4, optimizer="adamw", unfreeze="2")


def checkpoints(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "trainings").glob("*.pt"))


@pytest.fixture(scope="module")
def undisturbed(scene: Path, toy_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> FinetuneSummary:
    """What `COURSE` comes to when nothing stops it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    shutil.copytree(scene / "cache", folder / "cache")
    with pytest.MonkeyPatch.context() as patch:
        install(patch, toy_weights)
        return finetune(folder, COURSE)


def assert_same_end(found: FinetuneSummary, expected: FinetuneSummary) -> None:
    assert timeless(found.history) == timeless(expected.history)
    assert (found.best_epoch, found.accuracy, found.wrong) == (expected.best_epoch, expected.accuracy, expected.wrong)
    one, two = tensors(found.model), tensors(expected.model)
    assert one.keys() == two.keys()
    assert all(torch.equal(tensor, one[name]) for name, tensor in two.items())


def stop_at(epoch: int) -> Callable[[EpochRow], None]:
    def stop(row: EpochRow) -> None:
        if row.epoch == epoch:
            raise KeyboardInterrupt

    return stop


def interrupted(tmp_path: Path, training: Training = COURSE, epoch: int = 3, **how: Any) -> Path:
    """Stop a training, and return its checkpoint."""
    with pytest.raises(KeyboardInterrupt):
        finetune(tmp_path, training, on_epoch=stop_at(epoch), **how)
    (kept,) = checkpoints(tmp_path)
    return kept


def test_a_stopped_training_goes_on_to_the_same_end(
    photos: Path, undisturbed: FinetuneSummary, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    interrupted(tmp_path)
    rows: list[EpochRow] = []
    found = finetune(tmp_path, COURSE, on_epoch=rows.append)
    assert "going on after epoch 2 of 4" in caplog.messages
    assert checkpoints(tmp_path) == []
    assert tuple(rows) == found.history
    assert len(Path(found.history_file).read_text().splitlines()) == 6
    assert_same_end(found, undisturbed)


def test_another_training_does_not_go_on_with_it(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = interrupted(tmp_path, epoch=2)
    for training, seed in ((replace(COURSE, lr=0.03), 0), (COURSE, 1)):
        found = finetune(tmp_path, training, seed=seed)
        assert "going on" not in caplog.text
        assert len(found.history) == 5
        assert kept.exists()


@pytest.mark.soak
def test_a_training_on_other_labels_does_not_go_on_with_it(
    own: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    interrupted(tmp_path, epoch=2)
    for split in SIZES:
        (own / split / "leaf").rename(own / split / "x")
        (own / split / "sky").rename(own / split / "leaf")
        (own / split / "x").rename(own / split / "sky")
    featcache.extract(own, Options("toy", cache=tmp_path / "cache"))
    assert len(finetune(tmp_path, COURSE).history) == 5
    assert "going on" not in caplog.text


@pytest.mark.soak
def test_a_checkpoint_that_cannot_be_used_is_one_line_that_names_it(photos: Path, tmp_path: Path, run: Run) -> None:
    kept = interrupted(tmp_path, epoch=2)
    kept.write_bytes(kept.read_bytes()[:1000] + b"\0" * 500)
    words = [
        f"--{name.replace('_', '-')}={value}" for name, value in asdict(COURSE).items() if value not in (None, False)
    ]
    words = [word.replace("--views", "--augment-views") for word in words]
    result = run("finetune", *words)
    assert refused(result, f"{kept} cannot be gone on from (", "): remove it, and training begins anew")


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from finetune_rows import install
install(None, Path(sys.argv[1]))
from featcache import Options, api
from featcache.api import Training

def progress(stage, done, total):
    if stage == "finetune" and done == 8:  # in the middle of the third of three steps each
        os.kill(os.getpid(), signal.SIGKILL)

training = Training(**eval(sys.argv[3]))
api.finetune(training=training, options=Options(cache=Path(sys.argv[2])), progress=progress)
"""


@pytest.mark.soak
def test_a_killed_training_goes_on_to_the_same_end(
    photos: Path, undisturbed: FinetuneSummary, tmp_path: Path, toy_weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = [str(toy_weights), str(tmp_path / "cache"), repr(asdict(COURSE))]
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(featcache.__file__).parent.parent)])
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *words], env=os.environ | {"PYTHONPATH": paths}, capture_output=True, timeout=100
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(checkpoints(tmp_path)) == 1
    found = finetune(tmp_path, COURSE)
    assert "going on after epoch 2 of 4" in caplog.messages
    assert checkpoints(tmp_path) == []
    assert_same_end(found, undisturbed)


def test_ctrl_c_on_the_command_line_says_that_it_can_be_gone_on(
    photos: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featcache.tuning.training import Trainer

    step, seen = Trainer._step, []

    def stop(self: Trainer, *args: Any) -> Any:
        seen.append(args)
        if len(seen) == 5:
            raise KeyboardInterrupt
        return step(self, *args)

    monkeypatch.setattr(Trainer, "_step", stop)
    result = run("finetune", "--epochs", "3", "--batch-size", "9")
    assert result.code == 130
    assert "run the same command again" in result.err
    again = run("finetune", "--epochs", "3", "--batch-size", "9", "--json")
    assert again.code == 0
    assert "featcache: going on after epoch 2 of 3" in again.err
    assert len(again.json["history"]) == 4


# --- pictures that vanish ---


def lose(*paths: Path, epoch: int = 1) -> Callable[[EpochRow], None]:
    def go(row: EpochRow) -> None:
        if row.epoch == epoch:
            for path in paths:
                path.unlink()

    return go


def test_a_picture_lost_or_changed_in_the_plain_loop_is_left_out_and_named(own: Path, tmp_path: Path) -> None:
    lost, new = own / "train" / "leaf" / "3.png", own / "train" / "sky" / "2.png"

    def change(row: EpochRow) -> None:
        if row.epoch == 1:
            lost.unlink()
            write_picture(new, 99)

    found = finetune(tmp_path, QUICK, partial_cache_limit=0, on_epoch=change)
    assert len(found.history) == 4
    (said,) = [notice for notice in found.notices if "could not be read in some epoch" in notice]
    assert said.startswith("2 pictures could not be read in some epoch and were left out of it, as ")
    assert str(lost) in said or f"{new}: changed since it was extracted" in said


@pytest.mark.soak
def test_a_lost_validation_picture_is_left_out_and_named(own: Path, tmp_path: Path) -> None:
    lost = own / "val" / "leaf" / "7.png"
    found = finetune(tmp_path, QUICK, partial_cache_limit=0, on_epoch=lose(lost))
    assert len(found.history) == 4
    assert any(str(lost) in notice for notice in found.notices)


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        ("*/*.png", r"no scored picture can be read any more \(.*10\.png: no such file or directory\): put them back"),
        (
            "sky/9.png",
            r"1 of the scored pictures cannot be read any more, or have changed, .* as .*/sky/9\.png: put",
        ),
    ],
)
def test_scored_pictures_lost_while_it_trains_are_a_clear_error(
    own: Path, tmp_path: Path, lost: str, words: str
) -> None:
    with pytest.raises(TrainingError, match=words):
        finetune(tmp_path, QUICK, partial_cache_limit=0, on_epoch=lose(*(own / "test").glob(lost)))
    assert [run.command for run in Cache(tmp_path / "cache").runs.all()] == ["extract"]


def test_a_scored_picture_lost_before_is_told_before_the_training(own: Path, tmp_path: Path) -> None:
    (own / "test" / "sky" / "9.png").unlink()
    rows: list[EpochRow] = []
    with pytest.raises(FeatcacheError, match=r"scored pictures cannot be read any more.*sky/9\.png"):
        finetune(tmp_path, QUICK, on_epoch=rows.append)
    assert rows == []


def test_pictures_lost_before_the_partial_cache_was_made_are_left_out_and_counted(own: Path, tmp_path: Path) -> None:
    (own / "train" / "sky" / "0.png").unlink()
    write_picture(own / "val" / "sky" / "6.png", 77)
    found = finetune(tmp_path)
    assert (found.n_train, found.n_val) == (17, 8)
    assert sum(notice.startswith("left out of training or validation, since ") for notice in found.notices) == 2


def test_without_pictures_the_last_block_cannot_be_trained(own: Path, tmp_path: Path) -> None:
    shutil.rmtree(own)
    with pytest.raises(DatasetError, match=r"no picture of .*photos can be used: no such file"):
        finetune(tmp_path)


def test_an_imported_dataset_trains_its_head_and_nothing_below(photos: Path, tmp_path: Path, run: Run) -> None:
    featcache.cache_export(tmp_path / "vectors.npz", options=Options(cache=tmp_path / "cache"))
    exported = tmp_path / "elsewhere"
    featcache.cache_import(tmp_path / "vectors.npz", Options(cache=exported))
    photos.rename(photos.with_name("away"))
    try:
        result = run("finetune", "--unfreeze", "head", "--epochs", "1", "--cache", exported, "--json")
        assert result.json["computed"] == 0
        result = run("finetune", "--epochs", "1", "--cache", exported)
        assert refused(result, "was imported, and what it names is not opened", "unfreeze the head alone")
    finally:
        photos.with_name("away").rename(photos)


# --- what cannot be trained ---


def test_what_cannot_be_learned_is_refused_as_for_heads(tmp_path: Path) -> None:
    root = tmp_path / "one"
    write_folder(root, {"train": 3, "test": 2}, ["leaf"])
    with pytest.raises(DatasetError, match="only one class to train on"):
        api.finetune(root, QUICK, options=Options("toy", cache=tmp_path / "cache"))
    root = write_folder(tmp_path / "two", {"train": 3, "val": 2, "test": 2}, ["leaf", "sky"])
    write_picture(root / "val" / "sand" / "1.png", 4)
    with pytest.raises(DatasetError, match="class 'sand' is in val but not in train"):
        api.finetune(root, QUICK, options=Options("toy", cache=tmp_path / "cache"))


def test_features_of_less_precision_are_refused(photos: Path, tmp_path: Path, run: Run) -> None:
    """A dataset that is known to the cache with such features; what they are does not matter."""
    from featcache.store import FeatureWriter

    with Cache(tmp_path / "cache") as cache:
        (before,) = cache.runs.all()
        rows = cache.catalog.dataset(before.root)
        spec = replace(SPEC, backbone="toy", precision="int8", preprocess=STEPS)
        store = cache.features(spec)
        with FeatureWriter(store, "float32") as writer:
            keys = sorted({row.key for row in rows if row.key})
            writer.append(keys, np.random.default_rng(0).normal(size=(len(keys), 4)).astype(np.float32))
        made = cache.runs.start("extract", before.root, spec.fingerprint)
        cache.catalog.save_dataset(before.root, rows, made.id)
        cache.runs.finish(made, {**(before.summary or {}), "fingerprint": spec.fingerprint})
    result = run("finetune", "--epochs", "1")
    assert refused(result, "are int8", "trained in fp32", "featcache extract")


def test_what_cannot_be_done_is_one_line(photos: Path, run: Run) -> None:
    for words, said in (
        (["--unfreeze", "layer9"], "no block 'layer9'"),
        (["--mixed-precision"], "mixed precision is for CUDA GPUs"),
        (["--backbone", "toy"], "name it as SOURCE"),
        (["--backbone", "runs:99", "photos"], "run 99"),
        (["nowhere"], "nowhere"),
    ):
        assert refused(run("finetune", *words), said), words
    for words, said in (
        (["--optimizer", "adam"], "unknown optimizer 'adam'"),
        (["--lr", "0"], "the learning rate cannot be 0"),
    ):
        assert refused(run("finetune", *words), said, code=2), words
    first, *others = run("runs", "--json").json["rows"]
    assert "computed" in first["result"]
    assert [(row["command"], Path(row["dataset"]).name) for row in others] == [
        ("extract", "photos"),
        ("extract", "nowhere"),
    ]
    assert all(row["result"].startswith("failed: ") for row in others)


def test_an_empty_cache_says_what_to_do(run: Run) -> None:
    assert refused(run("finetune"), "featcache")


# --- divergence ---


def test_divergence_is_a_result_that_says_so(photos: Path, run: Run) -> None:
    result = run("finetune", "--lr", "1e30", "--epochs", "5", "--batch-size", "6", "--json", "--plot", "curves.png")
    assert result.code == 0
    assert "epoch 1): a lower learning rate may help" in result.json["stopped"]
    assert result.json["best_epoch"] == 0
    assert len(result.json["history"]) == 1
    text = run("runs", "show", "2").out
    assert "a lower learning rate may help" in text
    assert "epoch 0 of 0 is kept" in text


def test_the_net_from_nothing_trains_and_keeps_nothing_when_it_diverges_at_once(tmp_path: Path, run: Run) -> None:
    write_folder(tmp_path / "few", {"train": 4, "val": 2, "test": 2}, ["leaf", "sky"])
    featcache.extract(tmp_path / "few", Options("toy", cache=tmp_path / "cache"))
    words = ["finetune", "few", "--backbone", "scratch-cnn", "--batch-size", "4", "--epochs", "1", "--json"]
    found = run(*words, "--lr", "0.01").json
    assert (found["network"], found["start"], found["unfreeze"]) == ("scratch-cnn", "random weights", "all")
    assert found["weights"] == "untrained, seed 0"
    assert (len(found["history"]), found["best_epoch"]) == (2, 1)
    assert (found["head"], found["backbone"]) == ("logreg", "toy")
    assert refused(run(*words, "--lr", "1e30"), "nothing was learned that could be kept", "a lower learning rate")


# --- other commands, and files ---


def test_json_is_the_record_and_tables_go_to_files(photos: Path, run: Run, tmp_path: Path) -> None:
    result = run("finetune", "--epochs", "2", "--json", "--csv", "row.csv", "--md", "page.md")
    names = set(FinetuneSummary.__dataclass_fields__)
    assert result.json.keys() == names
    (row,) = csv.DictReader((tmp_path / "row.csv").open())
    assert float(row["accuracy"]) == result.json["accuracy"]
    page = (tmp_path / "page.md").read_text()
    for word in ("toy finetuned last", "logreg", "verdict", "validation", f"n={result.json['n_test']}"):
        assert word in page
    for name in ("training loss", "validation loss", "training accuracy", "validation accuracy"):
        assert len([line for line in page.splitlines() if name in line]) == 1
    text = run("runs", "show", "2").out
    assert f"{result.json['accuracy']:.3f}" in text
    assert "validation accuracy" in text


@pytest.mark.parametrize(
    ("gain", "p_value", "sentence"),
    [
        (
            0.05,
            0.0004,
            "worth it: +5.0 points over logreg (p<0.001), for 2.0 minutes instead of 3.0 s, 2.50 points a minute",
        ),
        (
            0.05,
            0.3,
            "not shown to be worth it: +5.0 points over logreg can be chance on these pictures (p=0.300), for ",
        ),
        (-0.1, 0.01, "not worth it: -10.0 points beside logreg (p=0.010), for 2.0 minutes instead of 3.0 s"),
    ],
)
def test_the_verdict_weighs_the_gain_against_chance_and_time(gain: float, p_value: float, sentence: str) -> None:
    assert verdict(gain, p_value, "logreg", 120.0, 3.0).startswith(sentence)


@pytest.mark.parametrize("suffix", ["svg", pytest.param("pdf", marks=pytest.mark.soak), "PNG"])
def test_curves_are_drawn(photos: Path, run: Run, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"curves.{suffix}"
    assert run("finetune", "--epochs", "1", "--unfreeze", "head", "--plot", path).code == 0
    if suffix == "svg":
        assert xml.etree.ElementTree.parse(path).getroot().tag.endswith("svg")
    elif suffix == "pdf":
        assert path.read_bytes().startswith(b"%PDF-")
        assert b"%%EOF" in path.read_bytes()[-20:]
    else:
        with Image.open(path) as image:
            image.load()
            assert image.size[0] > image.size[1] > 300
            assert len(image.convert("RGB").getcolors(2**20) or []) > 5


@pytest.mark.parametrize(
    ("name", "words"), [("curves.gif", ".png, .svg, .pdf"), ("curves", ".png"), ("no/c.png", "no folder")]
)
def test_curves_that_cannot_be_drawn_are_refused_before_any_work(
    photos: Path, run: Run, tmp_path: Path, name: str, words: str
) -> None:
    assert refused(run("finetune", "--epochs", "1", "--plot", name), words)
    assert [row["command"] for row in run("runs", "--json").json["rows"]] == ["extract"]


def test_tensorboard_reads_the_history_back(photos: Path, run: Run, tmp_path: Path) -> None:
    found = run("finetune", "--epochs", "2", "--unfreeze", "head", "--tensorboard", "board", "--json").json
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    names = {
        "loss/train": "train_loss",
        "loss/validation": "val_loss",
        "accuracy/train": "train_accuracy",
        "accuracy/validation": "val_accuracy",
        "learning rate": "lr",
    }
    assert set(events.Tags()["scalars"]) == set(names)
    for tag, name in names.items():
        kept = [(row["epoch"], row[name]) for row in found["history"] if row[name] is not None]
        read = [(event.step, event.value) for event in events.Scalars(tag)]
        assert [step for step, _ in read] == [epoch for epoch, _ in kept]
        assert [value for _, value in read] == pytest.approx([value for _, value in kept], rel=1e-6)


def test_a_folder_for_tensorboard_that_cannot_be_is_refused_before_any_work(
    photos: Path, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert refused(run("finetune", "--epochs", "1", "--tensorboard", "file"), "cannot write to file")
    assert [row["command"] for row in run("runs", "--json").json["rows"]] == ["extract"]


def test_a_log_without_room_is_one_error_and_holds_whole_points(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from featcache.errors import OutputError
    from featcache.records.finetuning import EpochRow
    from featcache.render.tensorboard import Board

    row = EpochRow(1, 0.5, 0.5, 0.5, 0.5, 0.1, 1.0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
        with pytest.raises(OutputError, match=r"cannot write to .*board: File too large"):
            Board(tmp_path / "board")
        assert os.listdir(tmp_path / "board") == []
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
        with Board(tmp_path / "board") as board, pytest.raises(OutputError, match="File too large"):
            board.add(row)
            board.add(row)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    assert len(events.Scalars("loss/train")) == 1
    assert len(events.Tags()["scalars"]) == 5


# --- the whole way with a real network ---


REAL = torchvision_models.resolve


@pytest.mark.soak
def test_resnet18_on_the_command_line(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision_models, "resolve", REAL)
    root = write_folder(tmp_path / "photos", {"train": 3, "val": 2, "test": 2}, ["leaf", "sky"])
    result = run("finetune", "photos", "--epochs", "1", "--batch-size", "6", "--json", network=True)
    assert result.code == 0, result.err
    found = result.json
    assert (found["unfrozen"], found["cached_bytes"]) == (["layer4"], 14 * 256 * 14 * 14 * 2)
    wrong, accuracy = wrong_keys(found["model"], root / "test", tmp_path / "cache")
    assert found["accuracy"] == accuracy
    assert set(found["wrong"]) == wrong
