"""A network cut in two, inputs and labels enter; its upper part, trained to its best epoch, leaves."""

from __future__ import annotations

import io
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from featcache.backbones.draws import Draws
from featcache.backbones.weights import unpickled
from featcache.embed.torch_engine import exact
from featcache.errors import TrainingError
from featcache.records import FloatArray, Progress
from featcache.records.finetuning import EpochRow, Training
from featcache.tuning.blocks import Cut
from featcache.tuning.inputs import Inputs, Rows
from featcache.tuning.memory import Parts

MOMENTUM = 0.9
STEP, GAMMA = 7, 0.1
WEIGHT_DECAY = 0.01
"""Of AdamW; plain SGD has none, as in the lessons."""

EVALUATED = 64
"""Pictures a batch where nothing is trained."""

Codes = npt.NDArray[np.intp]

_FOR_TRAINING = (
    *("_inputs", "_y", "_validation", "_parts", "_weights", "_optimizer", "_schedule"),
    *("_draws", "_scaler", "_has_start", "_best"),
)
"""What is not needed any more to predict: pictures and labels would go with every pickle."""

_logger = logging.getLogger(__name__)


class Checkpoint(Protocol):
    """Keeps the state of a training that is under way."""

    path: Path

    def load(self) -> bytes | None:
        """Return what was kept, or `None`."""
        ...

    def save(self, data: bytes) -> None:
        """Keep the state, whole or not at all."""
        ...


@dataclass(frozen=True)
class Trained:
    """What a training came to; the network is left as it was after `best_epoch`."""

    history: tuple[EpochRow, ...]
    best_epoch: int
    stopped: str | None


class _Diverged(Exception):  # noqa: N818 - not an error: training ends, and the best is kept
    """The loss is not finite."""


class Trainer:
    """Trains the unfrozen blocks of a network and a new linear top on `inputs` with labels `y` (n, class numbers).

    `start` gives the top's weights (K, d) and biases (K), else they are drawn with `seed`. The epoch that is best on
    the validation pictures is kept, of equals the one with the lower loss; with a `start` epoch 0, before training, is
    one of them. A batch that does not fit into memory is computed in parts, which gives the same gradients.
    """

    def __init__(
        self,
        cut: Cut,
        inputs: Inputs,
        y: Codes,
        validation: tuple[Inputs, Codes],
        n_classes: int,
        training: Training,
        seed: int = 0,
        device: torch.device | str = "cpu",
        start: tuple[FloatArray, FloatArray] | None = None,
    ) -> None:
        self.cut, self.training, self.seed = cut, training, seed
        self.device = torch.device(device)
        self._inputs, self._y = inputs, torch.from_numpy(y)
        self._validation = validation
        self._parts = Parts(max(training.batch_size, EVALUATED), self.device)
        cut.network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.linear = self._make_linear(n_classes, start)
        self.top = nn.Sequential(nn.Dropout(training.dropout), self.linear).to(self.device)
        self._weights = self._class_weights(n_classes) if training.class_weights else None
        self._optimizer, self._schedule = self._optimization()
        self._draws = Draws(seed, self.device)
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=training.mixed_precision)
        self.history: list[EpochRow] = []
        self._has_start = start is not None
        self._best: dict[str, Any] = {}
        self._best_epoch = 0

    def run(
        self,
        checkpoint: Checkpoint | None = None,
        identity: str = "",
        progress: Progress | None = None,
        on_epoch: Callable[[EpochRow], None] = lambda row: None,
    ) -> Trained:
        """Train to the end, going on from the `checkpoint` of the same `identity` where there is one.

        Raises `TrainingError` where the checkpoint is another's, or no epoch can be kept.
        """
        stopped = None
        with exact(self.device):
            try:
                if checkpoint is not None and self._resume(checkpoint, identity):
                    for row in self.history:
                        on_epoch(row)
                else:
                    self._close_epoch(0, None, None, time.perf_counter(), on_epoch)
                while (stopped := self._out_of_patience()) is None and len(self.history) <= self.training.epochs:
                    self._epoch(len(self.history), progress, on_epoch)
                    if checkpoint is not None:
                        checkpoint.save(self._state(identity))
            except _Diverged as diverged:
                stopped = f"{diverged}: a lower learning rate may help"
        if not self._best:
            raise TrainingError(f"nothing was learned that could be kept: {stopped}")
        self._load(self._best)
        return Trained(tuple(self.history), self._best_epoch, stopped)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out of a pickle, or a copy, what only training needs; the networks are on the CPU in it."""
        kept = {name: value for name, value in vars(self).items() if name not in _FOR_TRAINING}
        networks = {name: kept[name] for name in ("cut", "linear", "top")}
        if self.device.type != "cpu":  # it may be opened where there is no such device
            networks = deepcopy(networks)
            for module in (networks["cut"].lower, networks["cut"].upper, networks["cut"].network, networks["top"]):
                module.cpu()
        return kept | networks

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take up a pickle; without the GPU that it was trained on it goes on with the CPU."""
        vars(self).update(state)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            self.device = torch.device("cpu")
        self._parts = Parts(max(self.training.batch_size, EVALUATED), self.device)
        for module in (self.cut.lower, self.cut.upper, self.cut.network, self.top):
            module.to(self.device)

    def predict_proba(self, inputs: Inputs) -> tuple[Rows, npt.NDArray[np.float64]]:
        """Return the rows that could be read, and their probabilities (m, K)."""
        rows, logits = self._logits(inputs, 0, "scored")
        return rows, torch.softmax(logits.double(), 1).numpy()

    def _epoch(self, epoch: int, progress: Progress | None, on_epoch: Callable[[EpochRow], None]) -> None:
        start = time.perf_counter()
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self._inputs))
        batches = [order[at : at + self.training.batch_size] for at in range(0, len(order), self.training.batch_size)]
        self._set_modes(epoch)
        loss, hits, seen, total = 0.0, 0, 0, len(batches) * self.training.epochs
        for number, (rows, x) in enumerate(self._inputs.batches(batches, epoch - 1), 1):
            step = (epoch - 1) * len(batches) + number
            batch_loss, right = self._step(x, self._y[rows])
            if not math.isfinite(batch_loss):
                raise _Diverged(f"the loss was {batch_loss} at step {step:,} (epoch {epoch})")
            loss, hits, seen = loss + batch_loss * len(rows), hits + right, seen + len(rows)
            if progress and step < total:
                progress("finetune", step, total)
        if not seen:
            raise TrainingError(_all_lost("picture to train on", self._inputs))
        self._close_epoch(epoch, loss / seen, hits / seen, start, on_epoch)
        self._schedule.step()
        if progress and epoch == self.training.epochs:  # the last step is done when its epoch has been evaluated
            progress("finetune", total, total)

    def _close_epoch(
        self,
        epoch: int,
        loss: float | None,
        accuracy: float | None,
        start: float,
        on_epoch: Callable[[EpochRow], None],
    ) -> None:
        """Evaluate, note the epoch, and keep it if it is the best so far."""
        rows, logits = self._logits(self._validation[0], epoch, "validation")
        truth = torch.from_numpy(self._validation[1][rows])
        val_loss = float(functional.cross_entropy(logits, truth))
        if not math.isfinite(val_loss):
            raise _Diverged(f"the validation loss was {val_loss} after epoch {epoch}")
        val_accuracy = float((logits.argmax(1) == truth).double().mean())
        lr = self._optimizer.param_groups[0]["lr"]
        row = EpochRow(epoch, lr, loss, accuracy, val_loss, val_accuracy, time.perf_counter() - start)
        self.history.append(row)
        best = self.history[self._best_epoch]
        # Of as many right the loss decides, on what no processor rounds otherwise.
        lower = round(val_loss, 5) < round(best.val_loss, 5)
        is_better = not self._best or val_accuracy > best.val_accuracy or (val_accuracy == best.val_accuracy and lower)
        if is_better and (epoch or self._has_start):
            self._best_epoch, self._best = epoch, deepcopy(self._modules())
        on_epoch(row)

    def _step(self, x: torch.Tensor, y: torch.Tensor) -> tuple[float, int]:
        """Make one step of the optimizer, and return the mean loss and how many were right."""
        loss, right = self._parts.run(len(y), partial(self._gradients, x, y))
        if self.training.clip_norm is not None:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self._parameters(), self.training.clip_norm)
        if math.isfinite(loss):
            self._scaler.step(self._optimizer)
            self._scaler.update()
        return loss, right

    def _gradients(self, x: torch.Tensor, y: torch.Tensor, size: int) -> tuple[float, int]:
        """Add up the gradients of a batch, in parts of `size`."""
        self._optimizer.zero_grad()
        weights = None if self._weights is None else self._weights[y]
        mass = float(len(y) if weights is None else weights.sum())
        loss, right = 0.0, 0
        for part_x, part_y in zip(torch.split(x, size), torch.split(y, size), strict=True):
            part_y = part_y.to(self.device)
            with self._autocast():
                with self._draws.drawing():  # of dropout, and of layers that are left out by chance
                    logits = self._scores(part_x, self._inputs)
                part = functional.cross_entropy(
                    logits,
                    part_y,
                    None if self._weights is None else self._weights.to(self.device),
                    reduction="sum",
                    label_smoothing=self.training.label_smoothing,
                )
            torch.autograd.backward(self._scaler.scale(part / mass))
            loss, right = loss + float(part.detach()) / mass, right + int((logits.argmax(1) == part_y).sum())
        return loss, right

    def _scores(self, x: torch.Tensor, inputs: Inputs) -> torch.Tensor:
        x = x.to(self.device, memory_format=torch.channels_last) if x.ndim == 4 else x.to(self.device)
        if not inputs.are_activations:
            with torch.no_grad():
                x = self.cut.lower(x)
        result: torch.Tensor = self.top(self.cut.upper(x).flatten(1))
        return result

    def _scores_in_parts(self, x: torch.Tensor, inputs: Inputs, size: int) -> torch.Tensor:
        return torch.cat([self._scores(part, inputs).float().cpu() for part in torch.split(x, size)])

    def _logits(self, inputs: Inputs, epoch: int, name: str) -> tuple[Rows, torch.Tensor]:
        """Return the rows that could be read, and the scores (m, K) of their plain view, on the CPU."""
        self.cut.network.eval()
        self.top.eval()
        every = np.arange(len(inputs))
        batches = [every[at : at + EVALUATED] for at in range(0, len(every), EVALUATED)]
        rows, found = [], []
        with torch.no_grad(), self._autocast():
            for part, x in inputs.batches(batches, epoch):
                rows.append(part)
                found.append(self._parts.run(len(x), partial(self._scores_in_parts, x, inputs)))
        if not rows:
            raise TrainingError(_all_lost(f"{name} picture", inputs))
        return np.concatenate(rows), torch.cat(found)

    def _make_linear(self, n_classes: int, start: tuple[FloatArray, FloatArray] | None) -> nn.Linear:
        with Draws(self.seed).drawing():
            linear = nn.Linear(self.cut.dim, n_classes)
        if start is not None:
            with torch.no_grad():
                linear.weight.copy_(torch.from_numpy(start[0]))
                linear.bias.copy_(torch.from_numpy(start[1]))
        return linear

    def _optimization(self) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        training = self.training
        groups: list[dict[str, Any]] = [{"params": list(self.top.parameters()), "lr": training.lr}]
        if self.cut.unfrozen:
            params = [p for module in self.cut.unfrozen for p in module.parameters()]
            groups.append({"params": params, "lr": training.lr * training.backbone_lr})
        optimizer: torch.optim.Optimizer
        if training.optimizer == "sgd":
            optimizer = torch.optim.SGD(groups, lr=training.lr, momentum=MOMENTUM)
        else:
            optimizer = torch.optim.AdamW(groups, lr=training.lr, weight_decay=WEIGHT_DECAY)
        if training.schedule == "step":
            return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, STEP, GAMMA)
        return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, training.epochs))

    def _set_modes(self, epoch: int) -> None:
        """Let the top, and after the warm-up the unfrozen blocks, learn; all else stays in eval mode.

        So does BatchNorm everywhere: the statistics of small batches would undo what the top begins from.
        """
        self.cut.network.eval()
        self.top.train()
        for module in self.cut.unfrozen:
            module.train(epoch > self.training.warmup).requires_grad_(epoch > self.training.warmup)
            for part in module.modules():
                if isinstance(part, nn.modules.batchnorm._BatchNorm):
                    part.eval()

    def _class_weights(self, n_classes: int) -> torch.Tensor:
        counts = np.bincount(self._y.numpy(), minlength=n_classes)
        return torch.from_numpy(len(self._y) / (n_classes * np.maximum(counts, 1))).float()

    def _parameters(self) -> Iterator[nn.Parameter]:
        for group in self._optimizer.param_groups:
            yield from group["params"]

    def _out_of_patience(self) -> str | None:
        patience, epoch = self.training.patience, len(self.history) - 1
        if patience is None or epoch - self._best_epoch < patience or epoch == self.training.epochs:
            return None
        return f"no better epoch in {patience}"

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.float16, enabled=self.training.mixed_precision)

    def _modules(self) -> dict[str, Any]:
        return {"top": self.top.state_dict(), "blocks": [module.state_dict() for module in self.cut.unfrozen]}

    def _load(self, modules: Mapping[str, Any]) -> None:
        self.top.load_state_dict(modules["top"])
        for module, state in zip(self.cut.unfrozen, modules["blocks"], strict=True):
            module.load_state_dict(state)

    def _state(self, identity: str) -> bytes:
        drawn = self._draws.state
        assert drawn  # an epoch has been trained
        state = {
            "identity": identity,
            "modules": self._modules(),
            "best": self._best,
            "best_epoch": self._best_epoch,
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "scaler": self._scaler.state_dict(),
            "random": drawn[0],
            "random_cuda": drawn[1] if len(drawn) > 1 else None,
            "size": self._parts.size,
            "history": [asdict(row) for row in self.history],
        }
        out = io.BytesIO()
        torch.save(state, out)
        return out.getvalue()

    def _resume(self, checkpoint: Checkpoint, identity: str) -> bool:
        """Take up the state that was kept, and tell whether there was one."""
        data = checkpoint.load()
        if data is None:
            return False
        try:
            state = unpickled(data, self.device)
            if state["identity"] != identity:
                raise TrainingError(f"it belongs to {state['identity']}")
            self._load(state["modules"])
            self._optimizer.load_state_dict(state["optimizer"])
            self._schedule.load_state_dict(state["schedule"])
            self._scaler.load_state_dict(state["scaler"])
            self._draws.state = [state[name] for name in ("random", "random_cuda") if state[name] is not None]
            self.history = [EpochRow(**row) for row in state["history"]]
            self._best, self._best_epoch, self._parts.size = state["best"], state["best_epoch"], state["size"]
        except MemoryError:
            raise
        except Exception as error:  # reading broken bytes raises almost anything
            said = " ".join(str(error).split())
            raise TrainingError(
                f"{checkpoint.path} cannot be gone on from ({said}): remove it, and training begins anew"
            ) from error
        _logger.warning("going on after epoch %d of %d", len(self.history) - 1, self.training.epochs)
        return True


def _all_lost(what: str, inputs: Inputs) -> str:
    failures: dict[str, str] = getattr(inputs, "failures", {})
    first = next((f" ({path}: {said})" for path, said in failures.items()), "")
    return f"no {what} can be read any more{first}: put them back, and run it again"
