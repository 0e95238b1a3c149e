"""Training of the last blocks: what changes and what stays, losses, memory, NaN, going on; and the classifier."""

from __future__ import annotations

import copy
import itertools
import logging
import math
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from conftest import write_picture
from finetune_rows import STEPS, TINTS, Arrays, backbone, timeless, tinted, toy, toy_cut, weights_of
from sklearn.base import clone
from sklearn.model_selection import cross_val_score
from torch import nn
from torch.nn import functional

from featcache.backbones import scratch_cnn
from featcache.errors import DeviceError, EngineMemoryError, FeatcacheError, TrainingError, UsageError
from featcache.records import Features
from featcache.records.finetuning import EpochRow, Training
from featcache.tuning.blocks import Cut
from featcache.tuning.classifier import FinetuneClassifier
from featcache.tuning.inputs import Activations, Pictures
from featcache.tuning.start import linear_layer

pytestmark = pytest.mark.usefixtures("one_thread")

TRAIN, VAL = tinted(10, seed=1), tinted(6, seed=2)


def trained(
    network: Cut | None = None,
    data: Any = TRAIN,
    validation: Any = VAL,
    seed: int = 0,
    fit: Mapping[str, Any] | None = None,
    **training: Any,
) -> FinetuneClassifier:
    """Train the tiny network; what is not said is few epochs of one batch."""
    how = {"epochs": 2, "batch_size": 64, "lr": 0.05, **training}
    classifier = FinetuneClassifier(backbone(), seed=seed, device="cpu", **how)
    return classifier.fit(*data, validation, network=network or toy_cut(how.get("unfreeze", "last")), **(fit or {}))


def best_of(history: Any) -> int:
    """The best epoch of a top that was drawn."""
    return int(max(history[1:], key=lambda row: (row.val_accuracy, -row.val_loss)).epoch)


def flipped(labels: Any) -> Any:
    """Every label turned into another."""
    names = np.unique(labels)
    return names[(np.searchsorted(names, labels) + 1) % len(names)]


NOISY = (VAL[0], np.where(np.arange(18) % 3 == 0, flipped(VAL[1]), VAL[1]))
"""Validation pictures of which some have wrong labels."""


class Memory:
    """A checkpoint that is kept in memory, and counts."""

    path = Path("/kept/this.pt")

    def __init__(self, data: bytes | None = None) -> None:
        self.data, self.saved = data, 0

    def load(self) -> bytes | None:
        return self.data

    def save(self, data: bytes) -> None:
        self.data, self.saved = data, self.saved + 1


# --- what changes and what stays ---


def changed(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> set[str]:
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


@pytest.mark.parametrize("unfreeze", ["head", "last", "2", "all"])
def test_only_parameters_of_what_is_unfrozen_change_and_no_statistics_of_batch_norm(unfreeze: str) -> None:
    network = toy_cut(unfreeze)
    before = {name: tensor.clone() for name, tensor in network.network.state_dict().items()}
    after = weights_of(trained(network, unfreeze=unfreeze, validation=TRAIN))
    blocks = {"head": [], "last": ["layer4"], "2": ["layer3", "layer4"]}
    open_blocks = blocks.get(unfreeze, ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4"])
    parameters = {name for name, _ in network.network.named_parameters()}
    assert changed(before, after) == {name for name in parameters if name.split(".")[0] in open_blocks}


def test_blocks_stay_during_the_warm_up_and_learn_after_it() -> None:
    network, seen = toy_cut("last"), []
    trained(
        network,
        epochs=3,
        warmup=1,
        fit={"on_epoch": lambda row: seen.append(copy.deepcopy(network.network.state_dict()))},
    )
    assert not changed(seen[0], seen[1])
    parameters = {name for name, _ in network.network.named_parameters()}
    for one, two in ((1, 2), (2, 3)):
        assert changed(seen[one], seen[two]) == {name for name in parameters if name.startswith("layer4.")}


def test_a_factor_of_zero_leaves_the_parameters_of_the_blocks_alone() -> None:
    network = toy_cut("last")
    before = copy.deepcopy(network.network.state_dict())
    after = weights_of(trained(network, backbone_lr=0.0, validation=TRAIN))
    assert not changed(before, after)


def one_step(**how: Any) -> tuple[dict[str, torch.Tensor], float]:
    """Return what one step of plain descent changes in each parameter; val is train, so that the step is kept."""
    network = toy_cut("last", norm=False)
    before: dict[str, torch.Tensor] = {}

    def note(row: EpochRow) -> None:
        if row.epoch == 0:
            before.update(copy.deepcopy(network.network.state_dict()))

    found = trained(network, validation=TRAIN, epochs=1, fit={"on_epoch": note}, **how)
    assert found.best_epoch_ == 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        top = nn.Linear(8, 3)
    before |= {f"top.{name}": tensor for name, tensor in top.state_dict().items()}
    after = weights_of(found)
    return {name: after[name] - tensor for name, tensor in before.items()}, found.history_[1].train_loss or 0.0


def test_the_factor_of_the_learning_rate_reaches_the_blocks_only() -> None:
    (whole, _), (half, _) = (one_step(lr=1e-3, backbone_lr=factor) for factor in (1.0, 0.25))
    for name, step in whole.items():
        factor = 0.25 if name.startswith("layer4.") else 1.0
        assert torch.allclose(half[name], factor * step, rtol=1e-2, atol=1e-7), name
    assert any(step.abs().max() > 0 for name, step in whole.items() if name.startswith("layer4."))


def test_clipping_bounds_the_norm_of_all_gradients_together() -> None:
    def norm(found: Mapping[str, torch.Tensor]) -> float:
        return math.sqrt(sum(float(step.double().square().sum()) for step in found.values())) / 1e-2

    free = norm(one_step(lr=1e-2)[0])
    assert free > 0.05
    assert norm(one_step(lr=1e-2, clip_norm=free / 4)[0]) == pytest.approx(free / 4, rel=1e-3)
    assert norm(one_step(lr=1e-2, clip_norm=free * 4)[0]) == pytest.approx(free, rel=1e-3)


# --- optimizers, schedules, losses ---


def test_the_step_schedule_takes_a_tenth_every_seven_epochs() -> None:
    history = trained(epochs=16, lr=0.01, unfreeze="head").history_
    assert [row.epoch for row in history] == list(range(17))
    assert [row.lr for row in history[1:]] == pytest.approx([0.01] * 7 + [0.001] * 7 + [0.0001] * 2)


def test_the_cosine_schedule_falls_to_zero_after_the_last_epoch() -> None:
    history = trained(epochs=8, lr=0.01, schedule="cosine", unfreeze="head").history_
    expected = [0.005 * (1 + math.cos(math.pi * epoch / 8)) for epoch in range(8)]
    assert [row.lr for row in history[1:]] == pytest.approx(expected)


def test_the_schedule_is_what_the_blocks_learn_with_too() -> None:
    """With a rate of a tenth after seven epochs weights move less; they are looked at after each."""
    network, seen = toy_cut("last", norm=False), []

    def note(row: EpochRow) -> None:
        seen.append(torch.cat([p.detach().flatten().clone() for p in network.unfrozen[0].parameters()]))

    trained(network, epochs=10, optimizer="adamw", lr=1e-3, fit={"on_epoch": note})
    moved = [float((two - one).norm()) for one, two in itertools.pairwise(seen)]
    assert moved[9] < moved[5] * 0.2


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_steps_are_those_of_torchs_optimizer_on_the_same_batches(optimizer: str) -> None:
    """A reference loop in a few lines: same top, same order, same losses in three epochs."""
    found = trained(unfreeze="all", optimizer=optimizer, epochs=3, batch_size=10, lr=1e-3, validation=TRAIN)
    network = toy()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        top = nn.Linear(8, 3)
    model = nn.Sequential(network, top).eval().requires_grad_(True)  # BatchNorm keeps its statistics
    kinds: dict[str, Any] = {
        "sgd": lambda: torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9),
        "adamw": lambda: torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01),
    }
    optimiser = kinds[optimizer]()
    y = torch.from_numpy(np.unique(TRAIN[1], return_inverse=True)[1])
    losses = []
    for epoch in (1, 2, 3):
        order = torch.from_numpy(np.random.default_rng([0, epoch]).permutation(30))
        of_epoch = []
        for rows in order.split(10):
            optimiser.zero_grad()
            loss = functional.cross_entropy(model(TRAIN[0].X[rows]), y[rows])
            loss.backward()
            optimiser.step()
            of_epoch.append(loss.item())
        losses.append(np.mean(of_epoch))
    assert [row.train_loss for row in found.history_[1:]] == pytest.approx(losses, abs=1e-4)


RARE = (Arrays(TRAIN[0].X[:18]), TRAIN[1][:18])
"""Classes of different sizes."""


@pytest.mark.parametrize(("class_weights", "smoothing"), [(False, 0.0), (True, 0.3)])
def test_the_loss_is_torchs(class_weights: bool, smoothing: float) -> None:
    names, y, counts = np.unique(RARE[1], return_inverse=True, return_counts=True)
    assert len(set(counts)) > 1
    found = trained(
        data=RARE, unfreeze="head", epochs=1, lr=1e-9, class_weights=class_weights, label_smoothing=smoothing
    )
    logits = torch.log(torch.from_numpy(found.predict_proba(RARE[0])))
    weights = torch.from_numpy(18 / (len(names) * counts)) if class_weights else None
    expected = functional.cross_entropy(logits, torch.from_numpy(y), weights, label_smoothing=smoothing)
    assert found.history_[1].train_loss == pytest.approx(float(expected), abs=1e-5)


def test_weights_of_classes_are_those_of_all_pictures_and_means_those_of_a_batch() -> None:
    names, y, counts = np.unique(RARE[1], return_inverse=True, return_counts=True)
    found = trained(data=RARE, unfreeze="head", epochs=1, batch_size=6, lr=1e-9, class_weights=True)
    logits, codes = torch.log(torch.from_numpy(found.predict_proba(RARE[0]))), torch.from_numpy(y)
    weights = torch.from_numpy(18 / (len(names) * counts))
    order = torch.from_numpy(np.random.default_rng([0, 1]).permutation(18))
    losses = [float(functional.cross_entropy(logits[rows], codes[rows], weights)) for rows in order.split(6)]
    assert found.history_[1].train_loss == pytest.approx(np.mean(losses), abs=1e-5)


def test_validation_loss_and_accuracy_are_plain() -> None:
    found = trained(class_weights=True, label_smoothing=0.3, dropout=0.5, data=RARE)
    row = found.history_[found.best_epoch_]
    codes = np.searchsorted(found.classes_, VAL[1])
    p = found.predict_proba(VAL[0])
    assert row.val_loss == pytest.approx(-np.log(p[np.arange(len(p)), codes]).mean(), abs=1e-5)
    assert row.val_accuracy == pytest.approx((found.predict(VAL[0]) == VAL[1]).mean())


def test_dropout_is_for_training_only() -> None:
    without, dropped = (trained(unfreeze="head", epochs=1, lr=1e-9, dropout=part) for part in (0.0, 0.5))
    assert dropped.history_[0].val_loss == without.history_[0].val_loss
    assert dropped.history_[1].val_loss == pytest.approx(without.history_[1].val_loss, abs=1e-6)
    assert dropped.history_[1].train_loss != pytest.approx(without.history_[1].train_loss, abs=1e-3)
    np.testing.assert_array_equal(dropped.predict_proba(VAL[0]), dropped.predict_proba(VAL[0]))


def test_equal_seeds_give_equal_trainings_and_leave_the_generators_alone() -> None:
    torch.manual_seed(4)
    state = torch.get_rng_state()
    one, two, other = (trained(seed=seed, dropout=0.3, batch_size=8) for seed in (3, 3, 4))
    assert torch.equal(state, torch.get_rng_state())
    assert timeless(one.history_) == timeless(two.history_) != timeless(other.history_)
    assert not changed(weights_of(one), weights_of(two))


@pytest.mark.parametrize("batch_size", [7, 64])
def test_every_picture_is_trained_on_once_an_epoch_in_batches_as_asked(batch_size: int) -> None:
    data = (Arrays(TRAIN[0].X[:29]), TRAIN[1][:29])
    seen: list[int] = []

    class Noted(Arrays):
        def batches(self, batches: Any, epoch: int) -> Any:
            assert sorted(np.concatenate(batches)) == list(range(29))
            seen.extend(map(len, batches))
            return super().batches(batches, epoch)

    network = toy_cut("last")
    trained(network, (Noted(data[0].X), data[1]), epochs=1, batch_size=batch_size)
    assert seen == {7: [7, 7, 7, 7, 1], 64: [29]}[batch_size]


# --- which epoch is kept ---


UNSTEADY: dict[str, Any] = {"epochs": 6, "batch_size": 8}
"""Beside `NOISY`: with the rates below accuracy rises and falls, and two epochs are equal."""


def test_training_stops_when_patience_is_out_and_not_before() -> None:
    """Epoch 0 of a top that was drawn is never the best."""
    how = UNSTEADY | {"lr": 0.1, "validation": NOISY}
    history = trained(**how).history_
    assert len(history) == 7

    def expected(patience: int) -> tuple[int, bool]:
        best = 1
        for row in history[1:]:
            best = best_of(history[: row.epoch + 1])
            if row.epoch - best >= patience and row.epoch < 6:
                return row.epoch, True
        return 6, False

    ends = set()
    for patience in (1, 2, 3):
        found = trained(**how, patience=patience)
        last, is_stopped = expected(patience)
        ends.add(last)
        assert timeless(found.history_) == timeless(history[: last + 1])
        assert found.stopped_ == (f"no better epoch in {patience}" if is_stopped else None)
    assert len(ends) > 1


def test_the_best_epoch_is_kept_and_of_equally_accurate_ones_that_with_the_lowest_loss() -> None:
    later = earlier = 0
    for validation in (NOISY, (Arrays(NOISY[0].X[:6]), NOISY[1][:6])):
        network, seen = toy_cut("last"), []
        fit = {"on_epoch": lambda row, *, seen=seen, of=network: seen.append(copy.deepcopy(of.network.state_dict()))}
        found = trained(network, **UNSTEADY, lr=0.05, validation=validation, fit=fit)
        assert found.best_epoch_ == best_of(found.history_)
        assert not changed(seen[found.best_epoch_], network.network.state_dict())
        most = max(row.val_accuracy for row in found.history_[1:])
        equal = [row.epoch for row in found.history_[1:] if row.val_accuracy == most]
        later += found.best_epoch_ > equal[0]
        earlier += found.best_epoch_ < equal[-1]
    assert later
    assert earlier


def test_an_absurd_learning_rate_never_ends_below_the_head() -> None:
    start = head(3).start
    found = trained(lr=1e6, epochs=3, fit={"start": start}, data=head(3).train, validation=head(3).val)
    assert found.history_[found.best_epoch_].val_accuracy >= found.history_[0].val_accuracy
    accuracy = (found.predict(head(3).val[0]) == head(3).val[1]).mean()
    assert accuracy == pytest.approx(found.history_[found.best_epoch_].val_accuracy)
    assert found.history_[0].val_accuracy > 0.5


# --- epoch 0 is the head ---


class Fitted:
    """A logreg pipeline on the vectors of the tiny network, and what it was fitted and tried on."""

    def __init__(self, n_classes: int) -> None:
        from featcache import heads
        from featcache.experiments.fitting import fit_head
        from featcache.experiments.prepared import prepare
        from featcache.heads.scaling import LINEAR
        from featcache.splits import plan

        self.train, self.val = tinted(10, n_classes, 1), tinted(6, n_classes, 2)
        with torch.no_grad():
            X = torch.cat([toy()(data[0].X) for data in (self.train, self.val)]).numpy()
        y = np.concatenate([self.train[1], self.val[1]])
        splits = np.array(["train"] * len(self.train[1]) + ["test"] * len(self.val[1]))
        keys = tuple(number.to_bytes(32, "big") for number in range(len(y)))
        given = Features(X, y, tuple(f"/{n}" for n in range(len(y))), splits, keys, "f")
        data = prepare(given, plan(given, 0, {}), scalings=LINEAR)
        self.fitted = fit_head(heads.get("logreg"), data, 0)
        self.vectors = X[len(self.train[1]) :]
        self.start = linear_layer(self.fitted.estimator)


_heads: dict[int, Fitted] = {}


def head(n_classes: int) -> Fitted:
    return _heads.setdefault(n_classes, Fitted(n_classes))


@pytest.mark.parametrize(("n_classes", "unfreeze"), [(2, "last"), (4, "all")])
def test_epoch_0_is_the_fitted_head(n_classes: int, unfreeze: str) -> None:
    known = head(n_classes)
    expected = known.fitted.estimator.predict_proba(known.vectors)
    assert np.ptp(expected) > 0.3
    found = FinetuneClassifier(backbone(), unfreeze=unfreeze, epochs=1, device="cpu")
    p = []
    found.fit(
        *known.train,
        known.val,
        network=toy_cut(unfreeze),
        start=known.start,
        on_epoch=lambda row: p.append(found.trainer_.predict_proba(known.val[0])[1]),
    )
    np.testing.assert_allclose(p[0], expected, atol=1e-4)
    codes = np.searchsorted(found.classes_, known.val[1])
    loss = -np.log(expected[np.arange(len(codes)), codes]).mean()
    assert found.history_[0].val_loss == pytest.approx(loss, abs=1e-3)
    assert (found.history_[0].train_loss, found.history_[0].train_accuracy) == (None, None)


def test_a_layer_equals_its_pipeline_with_a_temperature() -> None:
    known = head(4)
    estimator = copy.deepcopy(known.fitted.estimator)
    estimator.steps[-1][1].temperature = 2.5
    weights, biases = linear_layer(estimator)
    logits = torch.from_numpy(known.vectors.astype(np.float64) @ weights.T + biases)
    np.testing.assert_allclose(torch.softmax(logits, 1), estimator.predict_proba(known.vectors), atol=1e-4)


# --- memory ---


def short_of_memory(network: Cut, most: int, error: Callable[[str], BaseException] = RuntimeError) -> list[int]:
    """Let the last block fail for more than `most` pictures at once while it learns; return the sizes that it saw."""
    sizes: list[int] = []

    def check(module: nn.Module, given: tuple[torch.Tensor]) -> None:
        if torch.is_grad_enabled():
            sizes.append(len(given[0]))
            if len(given[0]) > most:
                raise error("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    network.network.layer4.register_forward_pre_hook(check)  # type: ignore[operator,union-attr]
    return sizes


@pytest.mark.parametrize("error", [RuntimeError, torch.OutOfMemoryError])
def test_a_batch_that_is_too_large_is_computed_in_parts_with_the_same_result(
    error: Any, caplog: pytest.LogCaptureFixture
) -> None:
    network = toy_cut("last", norm=False)
    sizes = short_of_memory(network, 5, error)
    how: dict[str, Any] = {"batch_size": 20, "epochs": 3, "lr": 0.05, "class_weights": True, "data": RARE}
    with caplog.at_level(logging.WARNING):
        parts = trained(network, **how)
    assert [record.message for record in caplog.records] == [
        "no memory on cpu for 18 pictures: going on with 9 at once",
        "no memory on cpu for 9 pictures: going on with 4 at once",
    ]
    assert sizes == [18, 9, 4, 4, 4, 4, 2, *([4, 4, 4, 4, 2] * 2)]
    whole = trained(toy_cut("last", norm=False), **how)
    for name, tensor in weights_of(whole).items():
        assert torch.allclose(weights_of(parts)[name], tensor, rtol=0, atol=1e-5), name
    for one, two in zip(parts.history_, whole.history_, strict=True):
        assert asdict(replace(one, seconds=0)) == pytest.approx(asdict(replace(two, seconds=0)), abs=1e-5)


def test_no_memory_for_one_picture_ends_in_one_clear_error() -> None:
    network = toy_cut("last")
    short_of_memory(network, 0)
    with pytest.raises(EngineMemoryError, match="no memory on cpu for one picture: unfreeze less"):
        trained(network)


def test_another_error_is_not_taken_for_lack_of_memory() -> None:
    network = toy_cut("last")

    def fail(module: nn.Module, given: Any) -> None:
        if torch.is_grad_enabled():
            raise RuntimeError("shapes do not match")

    network.network.layer4.register_forward_pre_hook(fail)  # type: ignore[operator,union-attr]
    with pytest.raises(RuntimeError, match="shapes do not match"):
        trained(network)


def test_evaluation_that_does_not_fit_into_memory_goes_on_in_parts_too(caplog: pytest.LogCaptureFixture) -> None:
    network = toy_cut("last", norm=False)

    def check(module: nn.Module, given: tuple[torch.Tensor]) -> None:
        if len(given[0]) > 5:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    network.network.layer4.register_forward_pre_hook(check)  # type: ignore[operator,union-attr]
    parts = trained(network)
    assert caplog.messages[-1] == "no memory on cpu for 9 pictures: going on with 4 at once"
    assert len(caplog.messages) == 2  # the sizes that fit are kept
    assert parts.history_[0].val_loss == pytest.approx(
        trained(toy_cut("last", norm=False)).history_[0].val_loss, abs=1e-5
    )


# --- values that are not finite ---


def test_divergence_stops_names_step_and_epoch_and_keeps_the_best() -> None:
    found = trained(lr=1e30, batch_size=10, epochs=5, fit={"start": head(3).start})
    assert len(found.history_) == 1
    assert found.best_epoch_ == 0
    assert found.stopped_ is not None
    assert "at step 2 (epoch 1)" in found.stopped_
    assert "a lower learning rate may help" in found.stopped_
    assert np.isfinite(found.predict_proba(VAL[0])).all()
    assert all(torch.isfinite(tensor).all() for tensor in weights_of(found).values())


def test_divergence_in_a_later_epoch_keeps_what_was_best_before() -> None:
    class Poisoned(Arrays):
        def batches(self, batches: Any, epoch: int) -> Any:
            for rows, x in super().batches(batches, epoch):
                yield rows, x * (float("inf") if epoch == 2 else 1)

    found = trained(data=(Poisoned(TRAIN[0].X), TRAIN[1]), epochs=5, batch_size=10)
    alone = trained(epochs=2, batch_size=10)
    assert timeless(found.history_) == timeless(alone.history_)
    assert "at step 7 (epoch 3)" in (found.stopped_ or "")
    assert not changed(weights_of(alone), weights_of(found))


def test_without_an_epoch_that_could_be_kept_it_is_a_clear_error() -> None:
    """A divergence in the first epoch of a top that was drawn, and a network that was never finite."""
    with pytest.raises(TrainingError, match=r"nothing was learned that could be kept: .* at step 2 \(epoch 1\)"):
        trained(lr=1e30, batch_size=10, epochs=5)
    network = toy_cut("last")
    with torch.no_grad():
        network.network.layer4[0].weight.fill_(float("nan"))  # type: ignore[index,union-attr]
    with pytest.raises(TrainingError, match=r"could be kept: the validation loss was nan after epoch 0"):
        trained(network, fit={"start": head(3).start})


# --- going on after an interruption ---

COURSE: dict[str, Any] = {"epochs": 4, "batch_size": 8, "dropout": 0.4, "optimizer": "adamw", "lr": 0.02}


@pytest.mark.parametrize(
    ("epoch", "how"),
    [(1, {}), (3, {"optimizer": "sgd", "clip_norm": 0.5}), (4, {"schedule": "cosine", "warmup": 2})],
)
def test_a_training_goes_on_after_its_last_whole_epoch_to_the_same_end(
    epoch: int, how: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    course = COURSE | how
    expected = trained(**course)
    kept, steps = Memory(), 4 * (epoch - 1) + 2

    def stop(stage: str, done: int, total: int) -> None:
        if done == steps:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(**course, fit={"checkpoint": kept, "identity": "this", "progress": stop})
    assert kept.saved == epoch - 1
    seen: list[EpochRow] = []
    with caplog.at_level(logging.WARNING):
        found = trained(**course, fit={"checkpoint": kept, "identity": "this", "on_epoch": seen.append})
    said = [f"going on after epoch {epoch - 1} of 4"] if epoch > 1 else []
    assert [record.message for record in caplog.records] == said
    assert timeless(found.history_) == timeless(expected.history_) == timeless(seen)
    assert found.best_epoch_ == expected.best_epoch_
    assert not changed(weights_of(expected), weights_of(found))


def test_a_finished_training_is_not_gone_on_with() -> None:
    kept = Memory()
    expected = trained(**COURSE, fit={"checkpoint": kept})
    again = trained(**COURSE, fit={"checkpoint": kept})
    assert again.history_ == expected.history_
    assert not changed(weights_of(expected), weights_of(again))


def test_a_training_whose_patience_is_out_is_not_gone_on_with() -> None:
    """As after a kill between its last epoch and its score."""
    how = COURSE | {"patience": 1, "epochs": 20, "lr": 0.3, "optimizer": "sgd"}
    kept = Memory()
    expected = trained(**how, fit={"checkpoint": kept})
    assert expected.stopped_ == "no better epoch in 1"
    again = trained(**how, fit={"checkpoint": kept})
    assert timeless(again.history_) == timeless(expected.history_)
    assert again.stopped_ == expected.stopped_


def test_the_best_epoch_before_the_interruption_is_not_forgotten() -> None:
    """Validation with wrong labels gets worse from epoch to epoch, so that epoch 0 stays the best."""
    wrong = (TRAIN[0], flipped(TRAIN[1]))
    kept = Memory()
    how: dict[str, Any] = {"validation": wrong, "epochs": 5, "lr": 0.1, "batch_size": 8}

    def stop(row: EpochRow) -> None:
        if row.epoch == 4:
            raise KeyboardInterrupt

    start = tuple(np.zeros(shape) for shape in ((3, 8), 3))
    with pytest.raises(KeyboardInterrupt):
        trained(**how, fit={"checkpoint": kept, "on_epoch": stop, "start": start})
    found, expected = (trained(**how, fit={"checkpoint": c, "start": start}) for c in (kept, None))
    assert found.best_epoch_ == expected.best_epoch_ < 4
    assert not changed(weights_of(expected), weights_of(found))


@pytest.mark.parametrize("kind", ["another", "cut short", "empty"])
def test_a_checkpoint_that_cannot_be_gone_on_from_is_one_error(kind: str) -> None:
    kept, how = Memory(), COURSE | {"epochs": 1}
    trained(**how, fit={"checkpoint": kept, "identity": "another" if kind == "another" else "this"})
    assert kept.data is not None
    kept.data = {"cut short": kept.data[:900], "empty": b""}.get(kind, kept.data)
    words = r"^/kept/this\.pt cannot be gone on from \(.*\): remove it, and training begins anew$"
    with pytest.raises(TrainingError, match=words):
        trained(**how, fit={"checkpoint": kept, "identity": "this"})


# --- the classifier ---


def folder(tmp_path: Path, n: int = 6) -> tuple[list[str], list[str]]:
    pairs = [
        (str(write_picture(tmp_path / f"{label}{number}.png", 100 * at + number, TINTS[label])), label)
        for at, label in enumerate(("sky", "leaf"))
        for number in range(n)
    ]
    return [path for path, _ in pairs], [label for _, label in pairs]


def classifier(**how: Any) -> FinetuneClassifier:
    return FinetuneClassifier(backbone(), **{"epochs": 3, "batch_size": 8, "lr": 0.05, "device": "cpu", **how})


def test_it_fits_on_paths_and_labels_and_predicts(tmp_path: Path) -> None:
    X, y = folder(tmp_path)
    made = classifier(epochs=8, optimizer="adamw", lr=0.02)
    assert made.fit(X, y) is made
    assert made.classes_.tolist() == ["leaf", "sky"]
    p = made.predict_proba(X[:5])
    assert p.shape == (5, 2)
    assert p.sum(1) == pytest.approx(np.ones(5))
    assert made.predict(X[:5]).tolist() == made.classes_[p.argmax(1)].tolist()
    assert made.score(X, y) > 0.8
    assert len(made.history_) == 9


def test_labels_may_be_numbers_or_words_and_come_back_as_they_were(tmp_path: Path) -> None:
    X, y = folder(tmp_path)
    numbers = [{"sky": 7, "leaf": 3}[label] for label in y]
    made = classifier().fit(X, numbers)
    assert made.classes_.tolist() == [3, 7]
    assert set(made.predict(X)) <= {3, 7}


def test_it_is_cloned_and_its_parameters_are_read_and_set() -> None:
    made = classifier(unfreeze="2", dropout=0.25, seed=4)
    copied = clone(made)
    assert copied is not made
    assert copied.get_params()["unfreeze"] == "2"
    assert {k: v for k, v in copied.get_params().items() if k != "backbone"} == {
        k: v for k, v in made.get_params().items() if k != "backbone"
    }
    assert copied.set_params(dropout=0.5, lr=1e-4).training == replace(made.training, dropout=0.5, lr=1e-4)
    assert made.dropout == 0.25
    assert {*asdict(Training())} < {*made.get_params()}
    defaults = {k: v for k, v in FinetuneClassifier().get_params().items() if k in asdict(Training())}
    assert defaults == asdict(Training())


def test_it_works_inside_cross_validation(tmp_path: Path) -> None:
    X, y = folder(tmp_path)
    scores = cross_val_score(classifier(epochs=8, optimizer="adamw", lr=0.02), X, y, cv=2)
    assert scores.shape == (2,)
    assert scores.mean() > 0.7


def test_given_validation_pictures_are_what_epochs_are_judged_on(tmp_path: Path) -> None:
    X, y = folder(tmp_path)
    made = classifier().fit(X[:3] + X[6:9], y[:3] + y[6:9], (X[3:6] + X[9:], y[3:6] + y[9:]))
    accuracy = made.score(X[3:6] + X[9:], y[3:6] + y[9:])
    assert made.history_[made.best_epoch_].val_accuracy == pytest.approx(accuracy)


def test_an_unreadable_picture_is_named(tmp_path: Path) -> None:
    X, y = folder(tmp_path)
    made = classifier().fit(X, y)
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    for call in (made.predict, made.predict_proba):
        with pytest.raises(
            TrainingError, match=r"1 of 2 pictures cannot be read, as X\[1\], .*bad\.png: not a picture"
        ):
            call([X[0], str(bad)])
    with pytest.raises(TrainingError, match=r"2 of 2 pictures cannot be read, as X\[0\], /nope\.png: no such file"):
        made.predict(["/nope.png", str(bad)])


MISUSE: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "more labels": (lambda X, y: (X, [*y, "sky"]), "X has 12 pictures and y 13 labels"),
    "fewer labels": (lambda X, y: (X, y[:-1]), "X has 12 pictures and y 11 labels"),
    "more labels beside a validation set": (lambda X, y: (X, [*y, "sky"], (X, y)), "12 pictures and y 13 labels"),
    "more labels of validation": (
        lambda X, y: (X, y, (X, [*y, "sky"])),
        "X of validation has 12 pictures and y of validation 13 labels",
    ),
    "a number as validation": (lambda X, y: (X, y, 5), r"validation is 5: give a pair \(X, y\)"),
    "half a pair": (lambda X, y: (X, y, (X,)), "validation is of type tuple with 1 entries: give a pair"),
    "labels in two dimensions": (
        lambda X, y: (X, np.array(y)[:, None]),
        r"y has the shape \(12, 1\): give one label for each picture",
    ),
    "a list of lists": (lambda X, y: (X, [[label] for label in y]), r"y\[0\] is of type list .*: a label is a text"),
    "no labels": (lambda X, y: (X, None), "y is None: give one label"),
    "a label that is none": (lambda X, y: (X, [None, *y[1:]]), r"y\[0\] is None: a label is a text or a whole number"),
    "a label that is no number": (lambda X, y: (X, [0, float("nan"), *[1] * 10]), r"y\[1\] is nan: a label is a text"),
    "a half": (lambda X, y: (X, np.full(12, 0.5)), r"y\[0\] is 0\.5: a label is a text or a whole number"),
    "texts and numbers": (
        lambda X, y: (X, [*y[:3], *range(9)]),
        r"labels of two kinds, y\[0\] is the text 'sky' and y\[3\] 0",
    ),
    "no pictures": (lambda X, y: ([], []), "X holds 0 pictures: give at least one"),
    "one text": (lambda X, y: ("a.png", y), "X is the text 'a.png', which holds no paths in a row"),
    "nothing": (lambda X, y: (None, y), "X is None, which holds no paths in a row"),
    "pixels": (
        lambda X, y: ([np.zeros((8, 8, 3), np.uint8)] * 12, y),
        r"X\[0\] is an array of uint8 \(8, 8, 3\), and no path: give a list",
    ),
    "one array of pixels": (lambda X, y: (np.zeros((12, 8, 8, 3), np.uint8), y), r"array of uint8 \(12, 8, 8, 3\)"),
    "bytes": (lambda X, y: ([path.encode() for path in X], y), r"X\[0\] is of type bytes .*, and no path"),
}


@pytest.mark.parametrize("kind", MISUSE)
def test_pictures_and_labels_that_do_not_fit_are_named_before_any_work(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y = folder(tmp_path)
    given, words = MISUSE[kind]
    monkeypatch.setattr(FinetuneClassifier, "_cut", lambda self: pytest.fail("it built the network"))
    with pytest.raises(TrainingError, match=words) as error:
        classifier().fit(*given(X, y))
    assert len(str(error.value)) < 300
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("X", [[], "a.png", None, [b"a.png"], [None]])
def test_what_names_no_pictures_is_not_predicted(X: Any, tmp_path: Path) -> None:
    made = classifier(epochs=1).fit(*folder(tmp_path))
    with pytest.raises(TrainingError, match=r"^X(\[0\])? (holds 0 pictures|is )"):
        made.predict(X)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"seed": -1}, "the seed is -1: give a whole number from 0"),
        ({"seed": 1.5}, r"FinetuneClassifier\(seed=1\.5\): give a whole number"),
        ({"weights": 5}, r"FinetuneClassifier\(weights=5\): give str or PathLike or NoneType"),
        ({"weights": "a\0b"}, r"FinetuneClassifier\(weights='a\\x00b'\): it has a NUL character in it"),
        ({"device": "\ud800"}, r"FinetuneClassifier\(device='\\ud800'\): it has half a character"),
        ({"backbone": None}, r"FinetuneClassifier\(backbone=None\): give str or Backbone"),
        ({"device": 5}, r"FinetuneClassifier\(device=5\): give str"),
    ],
)
def test_parameters_of_other_types_are_named(how: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(FeatcacheError, match=words):
        classifier().set_params(**how).fit(*folder(tmp_path))


def test_a_series_a_column_and_arrays_of_paths_are_taken_as_lists_are(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    X, y = folder(tmp_path)
    table = pandas.DataFrame({"path": X, "label": y})
    plain = classifier().fit(X, y).predict_proba(X)
    made = classifier().fit(table["path"], table["label"])
    assert (made.predict_proba(table[["path"]]) == plain).all()
    assert (made.predict_proba(np.array(X)) == plain).all()
    assert (made.predict_proba([Path(path) for path in X]) == plain).all()


@pytest.mark.parametrize("way", ["pickle", "joblib", "deepcopy"])
def test_a_fitted_one_can_be_pickled_and_predicts_the_same_to_the_bit(way: str, tmp_path: Path) -> None:
    X, y = folder(tmp_path)
    torch.save(scratch_cnn.network(7).state_dict(), tmp_path / "net.pth")
    made = FinetuneClassifier("scratch-cnn", tmp_path / "net.pth", epochs=1, dropout=0.5, device="cpu").fit(X, y)
    expected = made.predict_proba(X)
    (tmp_path / "net.pth").unlink()  # what is opened elsewhere needs no weights
    if way == "joblib":
        joblib.dump(made, tmp_path / "made.joblib")
        again = joblib.load(tmp_path / "made.joblib")
    else:
        again = copy.deepcopy(made) if way == "deepcopy" else pickle.loads(pickle.dumps(made))
    assert (again.predict_proba(X) == expected).all()
    assert again.predict(X).tolist() == made.predict(X).tolist()
    assert again.history_ == made.history_
    assert again.cut_ is again.trainer_.cut
    assert X[0].encode() not in pickle.dumps(made)  # no picture goes with it


@pytest.mark.slow
def test_one_of_timms_networks_is_opened_from_a_pickle_in_a_fresh_process(tmp_path: Path) -> None:
    X, y = folder(tmp_path)
    made = FinetuneClassifier("efficientnet_lite0", unfreeze="head", epochs=1, device="cpu").fit(X, y)
    (tmp_path / "made.pickle").write_bytes(pickle.dumps(made))
    program = (
        "import pickle, sys; made = pickle.load(open(sys.argv[1], 'rb')); print(made.predict(sys.argv[2:]).tolist())"
    )
    words = [sys.executable, "-c", program, str(tmp_path / "made.pickle"), *X[:2]]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout == f"{made.predict(X[:2]).tolist()}\n", done.stderr


def test_before_fit_nothing_can_be_predicted(tmp_path: Path) -> None:
    from sklearn.exceptions import NotFittedError

    with pytest.raises(NotFittedError):
        classifier().predict(["a.png"])


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"schedule": "linear"}, "unknown schedule 'linear': use step, cosine"),
        ({"augment": "mixup"}, "unknown augmentation 'mixup': use none, flip, crop, full"),
        ({"epochs": 0}, "the number of epochs cannot be 0"),
        ({"warmup": -1}, "the warm-up cannot be -1"),
        ({"lr": float("nan")}, "the learning rate cannot be nan"),
        ({"backbone_lr": -0.1}, "the factor of the pretrained layers' learning rate cannot be -0.1"),
        ({"dropout": 1.0}, "dropout cannot be 1"),
        ({"label_smoothing": 1.0}, "label smoothing cannot be 1"),
        ({"clip_norm": float("nan")}, "clipped to cannot be nan"),
        ({"patience": 0}, "the patience cannot be 0"),
        ({"unfreeze": "layer9"}, "no block 'layer9'"),
    ],
)
def test_bad_parameters_are_refused(how: dict[str, Any], words: str, tmp_path: Path) -> None:
    X, y = folder(tmp_path, 3)
    with pytest.raises(TrainingError if "unfreeze" in how else UsageError, match=words):
        classifier(**how).fit(X, y)


def test_what_cannot_be_learned_is_refused(tmp_path: Path) -> None:
    X, y = folder(tmp_path, 4)
    with pytest.raises(TrainingError, match="only one class to train on"):
        classifier().fit(X[:4], y[:4])
    with pytest.raises(TrainingError, match="class 'leaf' is in validation, not in training"):
        classifier().fit(X[:4], ["a", "b"] * 2, (X[4:], y[4:]))
    with pytest.raises(TrainingError, match="validation set of their own"):
        classifier().fit(TRAIN[0], TRAIN[1])


def test_mixed_precision_is_refused_on_the_cpu() -> None:
    with pytest.raises(DeviceError, match="mixed precision is for CUDA GPUs, here it would run on cpu"):
        trained(mixed_precision=True)


def test_pictures_that_go_away_are_counted_and_not_fatal(tmp_path: Path) -> None:
    X, y = folder(tmp_path)
    held = (X[4:6] + X[10:], y[4:6] + y[10:])
    paths, labels = X[:4] + X[6:10], y[:4] + y[6:10]
    inputs = Pictures(paths, STEPS)

    def lose(row: EpochRow) -> None:
        if row.epoch == 1:
            Path(paths[0]).unlink()
            Path(paths[5]).write_bytes(b"")

    made = classifier(unfreeze="last").fit(
        inputs, labels, (Pictures(held[0], STEPS), held[1]), network=toy_cut(), on_epoch=lose
    )
    assert len(made.history_) == 4
    assert set(inputs.failures) == {paths[0], paths[5]}


def test_all_pictures_gone_is_a_clear_error(tmp_path: Path) -> None:
    X, y = folder(tmp_path)
    held = (X[4:6] + X[10:], y[4:6] + y[10:])
    paths, labels = X[:4] + X[6:10], y[:4] + y[6:10]

    def lose(some: list[str]) -> Callable[[EpochRow], None]:
        return lambda row: [Path(path).unlink(missing_ok=True) for path in some] and None  # type: ignore[func-returns-value]

    with pytest.raises(TrainingError, match="no picture to train on can be read any more"):
        classifier().fit(paths, labels, held, on_epoch=lose(paths))
    X, y = folder(tmp_path)
    with pytest.raises(TrainingError, match="no validation picture can be read any more"):
        classifier().fit(paths, labels, held, on_epoch=lose(held[0]))


def test_draws_of_activations_take_turns(tmp_path: Path) -> None:
    draws = [np.full((4, 2), number, np.float16) for number in range(3)]
    inputs = Activations(draws, (2,))
    seen = []
    for epoch in range(7):
        ((rows, x),) = inputs.batches([np.array([2, 0])], epoch)
        assert (x.dtype, tuple(x.shape), rows.tolist()) == (torch.float32, (2, 2), [2, 0])
        seen.append(int(x[0, 0]))
    assert seen == [0, 1, 2, 0, 1, 2, 0]
    assert len(inputs) == 4


def test_activations_train_as_the_whole_network_does() -> None:
    """The frozen part once, then only the upper part: the same losses in every step."""
    made = toy_cut("2")
    with torch.no_grad():
        below = [made.lower(data[0].X).flatten(1).numpy() for data in (TRAIN, VAL)]
    kept = [Activations([values], made.shape) for values in below]
    cached = trained(made, (kept[0], TRAIN[1]), (kept[1], VAL[1]), unfreeze="2", epochs=4, batch_size=10)
    plain = trained(unfreeze="2", epochs=4, batch_size=10)
    for one, two in zip(cached.history_, plain.history_, strict=True):
        assert asdict(replace(one, seconds=0)) == pytest.approx(asdict(replace(two, seconds=0)), abs=1e-4)
