"""A folder with splits enters; seconds of fine-tuning from cached activations beside plain loops, in one run, leave.

    python benchmarks/bench_finetune.py hymenoptera/ --backbone efficientnet_lite0

All train the same blocks of the same network, on the same pictures, in batches of one size:

- "partial cache": `featcache.finetune`, into a cache that has the features and nothing else; its time has all of it,
  computing and writing the activations too.
- "plain loop": the same command with a limit of 0, so that every epoch decodes, and runs the frozen blocks, again. It
  has what makes our networks fast: channels last, kept memory, decoding ahead on all cores.
- "lesson": the loop of PyTorch's transfer-learning lesson with the same blocks frozen, BatchNorm in them too: a
  `DataLoader` with two workers, torchvision's transforms, the eager network, a new top begun at random.

Each round runs them one after the other in processes of their own, whose time without Python's imports counts. Before
any speed is printed, the losses of the first two are compared step by step, and the score of each must lie in the
other's interval. The lesson's score is printed as it is: from a random top it gets as far as so many epochs let it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from tabulate import tabulate

import featcache
from featcache.api.finetuning import LIMIT
from featcache.records.finetuning import Training

STEPS = 20
AGREE = 1e-3
"""How far the training losses of the first steps may be apart (activations are kept in 16 bit)."""


@dataclass(frozen=True)
class Job:
    """What every contender is given; `cache` has the features of `folder`."""

    folder: Path
    backbone: str
    weights: Path | None
    cache: Path
    training: Training
    seed: int

    def options(self) -> featcache.Options:
        return featcache.Options(self.backbone, self.weights, self.cache, "cpu")


@dataclass(frozen=True)
class Lap:
    seconds: float
    accuracy: float
    interval: tuple[float, float]
    losses: tuple[float, ...]


def ours(job: Job, limit: int) -> Lap:
    """Fine-tune with the command's function; the losses are those of each step."""
    from featcache.tuning.training import Trainer

    losses: list[float] = []
    step: Callable[..., tuple[float, int]] = Trainer._step

    def recorded(self: Trainer, *given: Any) -> tuple[float, int]:
        found = step(self, *given)
        losses.append(found[0])
        return found

    with patch.object(Trainer, "_step", recorded):
        found = featcache.finetune(None, job.training, job.seed, featcache.Options(cache=job.cache), None, limit)
    assert found.stopped is None
    return Lap(found.seconds, found.accuracy, (found.accuracy_low, found.accuracy_high), tuple(losses))


def partial_cache(job: Job) -> Lap:
    return ours(job, LIMIT)


def plain_loop(job: Job) -> Lap:
    return ours(job, 0)


def lesson(job: Job) -> Lap:
    """Train as the lesson does, and keep the epoch that is best on the same held-out pictures."""
    from featcache.api.experiment import open_experiment
    from featcache.backbones import resolve
    from featcache.backbones.vision_import import import_torchvision

    import_torchvision()
    import torch
    from PIL import Image
    from torch import nn
    from torchvision import transforms

    from featcache.evaluate import wilson
    from featcache.splits import hold_out
    from featcache.tuning.blocks import unfreeze

    with open_experiment(None, featcache.Options(cache=job.cache), None) as experiment:
        plan, features = experiment.plan(job.seed), experiment.features
    held = hold_out([features.keys[row] for row in plan.train], features.y[plan.train].tolist(), job.seed)
    train, val = plan.train[~held], plan.train[held]
    labels = np.unique(features.y, return_inverse=True)[1]
    start = time.perf_counter()
    backbone = resolve(job.backbone, job.weights)
    steps = backbone.spec.preprocess
    look = transforms.Compose(
        [
            transforms.Resize(steps.resize, transforms.InterpolationMode(steps.interpolation)),
            transforms.CenterCrop(steps.crop),
            transforms.ToTensor(),
            transforms.Normalize(steps.mean, steps.std),
        ]
    )

    class Pictures(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
        def __init__(self, rows: Any) -> None:
            self.rows = rows

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, at: int) -> tuple[torch.Tensor, int]:
            row = self.rows[at]
            with Image.open(features.paths[row]) as image:
                return look(image.convert("RGB")), int(labels[row])

    def load(rows: Any, shuffle: bool) -> Any:
        return torch.utils.data.DataLoader(
            Pictures(rows), job.training.batch_size, shuffle, num_workers=2, multiprocessing_context="fork"
        )

    torch.manual_seed(job.seed)
    network = backbone.build().requires_grad_(False)
    blocks = unfreeze(network, backbone.name, job.training.unfreeze)
    unfrozen = [network.get_submodule(path) for block in blocks for path in block.paths]
    top = nn.Linear(features.X.shape[1], len(np.unique(labels)))
    weights = [p for module in unfrozen for p in module.requires_grad_().parameters()]
    optimizer = torch.optim.SGD([*weights, *top.parameters()], job.training.lr, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 7, 0.1)

    def score(rows: Any) -> tuple[int, int]:
        network.eval()
        with torch.no_grad():
            hits = [(top(network(x).flatten(1)).argmax(1) == y).sum() for x, y in load(rows, False)]
        return int(sum(hits)), len(rows)

    best: tuple[float, dict[str, Any]] = (-1.0, {})
    for _ in range(job.training.epochs):
        for module in unfrozen:
            module.train()
        for x, y in load(train, True):
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(top(network(x).flatten(1)), y))
            optimizer.step()
        schedule.step()
        hits, n = score(val)
        if hits / n > best[0]:
            state = {**network.state_dict(prefix="network."), **top.state_dict(prefix="top.")}
            best = hits / n, {name: tensor.clone() for name, tensor in state.items()}
    whole = nn.ModuleDict({"network": network, "top": top})
    whole.load_state_dict(best[1])
    hits, n = score(plan.scored)
    return Lap(time.perf_counter() - start, hits / n, wilson(hits, n), ())


CONTENDERS: dict[str, Callable[[Job], Lap]] = {
    "partial cache": partial_cache,
    "plain loop": plain_loop,
    "lesson": lesson,
}


def alone(contender: Callable[[Job], Lap], job: Job) -> Lap:
    """Run a contender in a process of its own, which has imported what it needs before."""
    with ProcessPoolExecutor(1, get_context("spawn"), imports, (job.backbone, job.weights)) as pool:
        return pool.submit(contender, job).result()


def imports(backbone: str, weights: Path | None) -> None:
    from featcache.backbones import resolve

    for name in ("embed.torch_engine", "evaluate", "experiments.fitting", "tuning.classifier"):
        import_module(f"featcache.{name}")
    resolve(backbone, weights).build()


def check(laps: dict[str, Lap]) -> None:
    """Assert that all came to the same, as far as they can be."""
    kept, plain = (np.array(laps[name].losses[:STEPS]) for name in ("partial cache", "plain loop"))
    apart = float(np.abs(kept - plain).max())
    assert len(kept) == STEPS, f"only {len(kept)} steps to compare"
    assert apart < AGREE, f"losses of the first {STEPS} steps are {apart:.2g} apart"
    print(f"losses of the first {STEPS} steps: {apart:.2g} apart at most")
    for one, other in (("partial cache", "plain loop"), ("plain loop", "partial cache")):
        (low, high), found = laps[one].interval, laps[other].accuracy
        assert low <= found <= high, f"{other} scores {found:.3f}, outside {low:.3f}-{high:.3f} of {one}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--unfreeze", default="last")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--lr", type=float, default=Training().lr, help="a lower one for random weights, else unsteady")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contenders", default=",".join(CONTENDERS), help="names with commas")
    given = parser.parse_args()
    training = Training(unfreeze=given.unfreeze, epochs=given.epochs, lr=given.lr)
    chosen = {name: CONTENDERS[name] for name in given.contenders.split(",")}
    rounds: list[dict[str, Lap]] = []
    with tempfile.TemporaryDirectory() as scratch:
        job = Job(given.folder, given.backbone, given.weights, Path(scratch), training, 0)
        for number in range(given.rounds):
            fresh = replace(job, cache=Path(scratch) / str(number))
            featcache.extract(given.folder, fresh.options())
            rounds.append({name: alone(contender, fresh) for name, contender in chosen.items()})
            print(
                f"round {number + 1}:",
                {name: round(lap.seconds, 1) for name, lap in rounds[-1].items()},
                file=sys.stderr,
            )
    check(rounds[0])
    kept = statistics.median(laps["partial cache"].seconds for laps in rounds)
    rows = []
    for name in chosen:
        seconds = statistics.median(laps[name].seconds for laps in rounds)
        low, high = rounds[0][name].interval
        rows.append(
            (name, f"{seconds:.1f}", f"{seconds / kept:.2f}", f"{rounds[0][name].accuracy:.3f} ({low:.3f}-{high:.3f})")
        )
    print(
        tabulate(
            rows, headers=["loop", "seconds, median", "times as long", "accuracy (95 % Wilson)"], disable_numparse=True
        )
    )
    how = f"--unfreeze {given.unfreeze}, {given.epochs} epochs, lr {given.lr}"
    print(f"{given.backbone}, {how}, {given.rounds} rounds, seed 0")


if __name__ == "__main__":
    main()
