"""A storm: commands in processes of their own, two or three at a time, killed, stopped, and with clocks that differ."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from conftest import write_picture
from witness import Rows, witness

from featcache.backbones import resolve

ROUNDS = 3
YEARS = 365 * 24 * 3600
LAUNCH = """
import sys, time
shift = int(sys.argv.pop(1))
real, real_ns = time.time, time.time_ns
time.time = lambda: real() + shift
time.time_ns = lambda: real_ns() + shift * 10**9
from featcache.cli import main
main()
"""
REFUSALS = (
    "is in use by another featcache command",
    "was given up by another command meanwhile",
    "was not finished",
    "another process is compacting",
)
"""What a command may say that was not killed itself: another one is at work, or was killed."""


@dataclass
class Report:
    """What happened, and what was wrong with it."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


@dataclass
class _Command:
    words: list[str]
    dataset: str | None
    process: subprocess.Popen[str]
    fate: str
    at: float


class _Storm:
    def __init__(self, seed: int, sets: dict[str, Path], weights: Path, folder: Path) -> None:
        self.report = Report()
        self.draw = random.Random(seed)
        self.sets, self.weights, self.folder = sets, weights, folder
        self.cache = folder / "cache"
        fingerprint = resolve("resnet18", weights).spec.fingerprint
        self.segments = self.cache / "segments" / fingerprint[:16]
        self.seen: Rows = {}

    def start(self, words: list[str], dataset: str | None, fate: str) -> _Command:
        years = self.draw.choice([0, 0, 0, 5, -5, 30, -20])
        process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, str(years * YEARS), *words],
            cwd=self.folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        return _Command(words, dataset, process, fate, time.monotonic() + self.draw.uniform(0.3, 9.0))

    def choose(self) -> tuple[list[str], str | None]:
        """Return a command, and the dataset that its answer must be about."""
        source = str(self.sets[self.draw.choice(sorted(self.sets))])
        network = ["--backbone", "resnet18", "--weights", str(self.weights)]
        models = sorted((self.cache / "models").glob("*-centroid.*"))
        choices: list[tuple[list[str], str | None]] = [
            (["extract", source, *network, "--json"], source),
            (["extract", source, *network, "--json"], source),
            (["fit", source, "--head", "centroid", *network, "--json"], source),
            (["compare", source, "--heads", "centroid,knn", "--seeds", "1", *network, "--json"], source),
            (["finetune", source, "--unfreeze", "head", "--epochs", "1", *network, "--json"], source),
            (["cache", "gc", "--yes", "--json"], None),
            (["cache", "compact", "--json"], None),
            (["cache", "verify", "--json"], None),
        ]
        if models:
            choices.append((["predict", str(self.draw.choice(models)), source, "--json"], source))
        return self.draw.choice(choices)

    def round(self) -> None:
        """Run two or three commands at once until all have ended, and look at what is there."""
        if self.draw.random() < 0.5:
            name = self.draw.choice(sorted(self.sets))
            write_picture(self.sets[name] / "sky" / f"new{time.time_ns()}.png", self.draw.randrange(10**6))
        running = []
        for _ in range(self.draw.choice([2, 3])):
            fate = self.draw.choice(["ends", "ends", "killed", "stopped"])
            running.append(self.start(*self.choose(), fate))
        for command in running:
            self._meet(command)
        for command in running:
            self._judge(command)
        self._look()

    def _meet(self, command: _Command) -> None:
        """Let happen to a command what was drawn for it."""
        if command.fate == "ends":
            return
        try:
            command.process.wait(max(0.0, command.at - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.report.counts[command.fate] += 1
            if command.fate == "killed":
                command.process.send_signal(signal.SIGKILL)
                return
            command.process.send_signal(signal.SIGSTOP)
            time.sleep(self.draw.uniform(0.5, 2.0))
            command.process.send_signal(signal.SIGCONT)

    def _judge(self, command: _Command) -> None:
        try:
            out, err = command.process.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            command.process.kill()
            self.report.wrong.append(f"{command.words} hangs")
            return
        code = command.process.returncode
        self.report.counts["commands"] += 1
        if "Traceback" in err:
            self.report.wrong.append(f"{command.words}: {err[-2000:]}")
        elif code == 0:
            self._check_answer(command, out)
        elif code == -signal.SIGKILL and command.fate == "killed":
            return
        elif any(text in err for text in REFUSALS) or (not self.seen and "there is no cache at" in err):
            self.report.counts["refused"] += 1
        elif command.words[:2] != ["cache", "verify"]:  # which says what it found
            self.report.wrong.append(f"{command.words}: exit code {code}: {err[-2000:]}")

    def _check_answer(self, command: _Command, out: str) -> None:
        said = json.loads(out)
        if command.words[0] == "predict":
            paths = [row["path"] for row in said["predictions"]]
            is_right = all(path.startswith(f"{command.dataset}/") for path in paths)
        else:
            is_right = command.dataset in (None, said.get("dataset"), said.get("setting", {}).get("dataset"))
        self.report.counts["answers"] += 1
        if not is_right:
            self.report.wrong.append(f"{command.words} answers about {said.get('dataset')}")

    def _look(self) -> None:
        """Ask the outside witness: what was there once must be there, and be the same."""
        if not self.segments.exists():
            return
        found = witness(self.segments)
        lost = [key.hex() for key in self.seen if key not in found]
        if lost:
            self.report.wrong.append(f"{len(lost)} vectors are lost: {lost[:3]}")
        self.seen = found

    def settle(self) -> None:
        """Every command must succeed when nothing disturbs it, and compute no vector that was there."""
        network = ["--backbone", "resnet18", "--weights", str(self.weights)]
        extractions = [
            self.start(["extract", str(source), *network, "--json"], str(source), "ends")
            for source in self.sets.values()
        ]
        for source, command in zip(self.sets.values(), extractions, strict=True):
            keys = {hashlib.sha256(path.read_bytes()).digest() for path in source.rglob("*.png")}
            out, err = command.process.communicate(timeout=240)
            if command.process.returncode:
                self.report.wrong.append(f"{command.words} fails for good: {err[-2000:]}")
            elif (computed := json.loads(out)["computed"]) > len(keys - self.seen.keys()):
                self.report.wrong.append(f"{source}: {computed} computed, {len(keys - self.seen.keys())} were missing")
        self._look()
        first = str(next(iter(self.sets.values())))
        for words in (
            ["cache", "verify", "--json"],
            ["cache", "gc", "--yes", "--json"],
            ["cache", "compact", "--json"],
            ["fit", first, "--head", "centroid", "--json"],
            ["compare", first, "--heads", "centroid", "--seeds", "1", "--json"],
        ):
            command = self.start(words, first if words[0] in ("fit", "compare") else None, "ends")
            out, err = command.process.communicate(timeout=240)
            if command.process.returncode:
                self.report.wrong.append(f"{words} fails for good: {out[-1000:]} {err[-2000:]}")
            else:
                self._check_answer(command, out)
            self._look()


def storm(seed: int, sets: dict[str, Path], weights: Path, folder: Path) -> Report:
    """Run one storm over three datasets in a new cache, and return what was wrong, if anything."""
    made = _Storm(seed, sets, weights, folder)
    for _ in range(ROUNDS):
        made.round()
    made.settle()
    return made.report
