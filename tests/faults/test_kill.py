"""SIGKILL at any moment of an extraction, inside a commit and inside a compaction.

Importing torch takes seconds, so one server process imports it once and forks a child for each run.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import store_rows
from conftest import write_picture
from store_rows import SPEC, commit_each, make_rows, segment_files, temporary_files
from witness import Rows, witness

from featcache.backbones import resolve
from featcache.records import FeatureSpec
from featcache.store import Cache, FeatureStore, FeatureWriter

PICTURES = 28
COMMIT_ROWS = 4
COMPACT_AT = 6
OPENS_WITHIN = 5.0

_logger = logging.getLogger(__name__)

PHASES = ("elsewhere", "commit", "compact")
BOARD = struct.Struct("<BIIII")
"""What a child leaves in shared memory: phase, committed rows, system calls elsewhere, in commits, in compactions."""


@dataclass(frozen=True)
class Order:
    """One run: killed after some seconds, or at the n-th system call of a phase, or not at all."""

    work: str
    cache: str
    words: tuple[str, ...] = ()
    seconds: float = 60.0
    phase: str = ""
    call: int = 0


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `code` is negative where it was killed; `committed` are the keys its writer had committed."""

    code: int
    seconds: float
    phase: str
    calls: dict[str, int]
    committed: set[bytes]
    out: str
    err: str

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL


# The child: the real work, under watch


class Watch:
    """Tells the parent how far the store is, and ends the process at the ordered system call."""

    def __init__(self, order: Order, folder: Path) -> None:
        self.order, self.folder = order, folder
        with (folder / "board").open("r+b") as file:
            self.board = mmap.mmap(file.fileno(), BOARD.size)
        self.phase = "elsewhere"
        self.calls = dict.fromkeys(PHASES, 0)
        self.writer: FeatureWriter | None = None

    def install(self) -> None:
        for name in ("open", "write", "fsync", "rename", "unlink"):
            setattr(os, name, self.call(getattr(os, name), half=name == "write"))
        FeatureWriter.flush = self.within("commit", FeatureWriter.flush)  # type: ignore[method-assign]
        FeatureStore.compact = self.within("compact", FeatureStore.compact)  # type: ignore[method-assign]
        append, kept = FeatureWriter.append, (self.folder / "appended").open("ab", buffering=0)

        def append_kept(writer: FeatureWriter, keys: list[bytes], vectors: Any) -> None:
            self.writer = writer
            kept.write(b"".join(keys))
            append(writer, keys, vectors)

        FeatureWriter.append = append_kept  # type: ignore[assignment, method-assign]

    def call(self, function: Callable[..., Any], half: bool) -> Callable[..., Any]:
        def watched(*args: Any, **options: Any) -> Any:
            if threading.current_thread().name.startswith("featcache-read"):
                return function(*args, **options)
            self.calls[self.phase] += 1
            self.tell()
            if self.phase == self.order.phase and self.calls[self.phase] == self.order.call:
                if half:
                    function(args[0], args[1][: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)

        return watched

    def within(self, phase: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any) -> Any:
            before, self.phase = self.phase, phase
            self.tell()
            try:
                return method(*args)
            finally:
                self.phase = before
                self.tell()

        return watched

    def tell(self) -> None:
        committed = self.writer.committed if self.writer else 0
        BOARD.pack_into(self.board, 0, PHASES.index(self.phase), committed, *self.calls.values())


def extract(order: Order) -> None:
    import torch

    import featcache.cli

    for module in [module for name, module in sys.modules.items() if name.split(".")[0] == "featcache"]:
        for name, value in {"COMMIT_ROWS": COMMIT_ROWS, "COMPACT_AT": COMPACT_AT}.items():
            if hasattr(module, name):
                setattr(module, name, value)
    torch.set_num_threads(1)
    sys.argv = ["featcache", "extract", *order.words, "--cache", order.cache]
    featcache.cli.main()


def commit_toy(order: Order) -> None:
    with Cache(Path(order.cache)) as cache, FeatureWriter(cache.features(SPEC), "float32") as writer:
        for start in (20, 24, 28):
            writer.append(*make_rows(start, 4))
            writer.flush()


def compact_toy(order: Order) -> None:
    with Cache(Path(order.cache)) as cache:
        cache.features(SPEC).compact()


WORK = {"extract": extract, "commit": commit_toy, "compact": compact_toy}


def child(order: Order, folder: Path) -> NoReturn:
    code = 99
    try:
        for name, stream in (("out", 1), ("err", 2)):
            os.dup2(os.open(folder / name, os.O_WRONLY), stream)
        Watch(order, folder).install()
        WORK[order.work](order)
        code = 0
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


# The server: forks children and kills them


def serve() -> None:
    """Read orders from stdin, one a line, and answer each with how it ended; runs no torch operation itself."""
    from featcache.backbones.vision_import import import_torchvision

    import_torchvision()
    import featcache.api
    import featcache.embed.torch_engine  # noqa: F401

    for line in sys.stdin:
        folder, fields = json.loads(line)
        start = time.monotonic()
        pid = os.fork()
        if pid == 0:
            child(Order(**fields), Path(folder))
        deadline = start + fields["seconds"]
        ended, status = os.waitpid(pid, os.WNOHANG)
        while not ended and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, 0.005))
            ended, status = os.waitpid(pid, os.WNOHANG)
        if not ended:
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
        os.write(1, json.dumps([os.waitstatus_to_exitcode(status), time.monotonic() - start]).encode() + b"\n")


class Server:
    """The helper process, as the tests see it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        places = [str(Path(file).parent) for file in (__file__, store_rows.__file__)]
        places += [path for path in (os.environ.get("PYTHONPATH"),) if path]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", "import test_kill; test_kill.serve()"]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, order: Order) -> Outcome:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        (self._folder / "board").write_bytes(bytes(BOARD.size))
        for name in ("appended", "out", "err"):
            (self._folder / name).touch()
        self._process.stdin.write(json.dumps([str(self._folder), asdict(order)]) + "\n")
        self._process.stdin.flush()
        code, seconds = json.loads(self._process.stdout.readline())
        phase, committed, *calls = BOARD.unpack((self._folder / "board").read_bytes())
        appended = (self._folder / "appended").read_bytes()
        outcome = Outcome(
            code=code,
            seconds=seconds,
            phase=PHASES[phase],
            calls=dict(zip(PHASES, calls, strict=True)),
            committed={appended[at : at + 32] for at in range(0, 32 * committed, 32)},
            out=(self._folder / "out").read_text(),
            err=(self._folder / "err").read_text(),
        )
        assert outcome.killed or code == 0, outcome.err
        return outcome

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server") / "run")
    yield server
    server.close()


# The tests


def agree(rows: Rows, expected: Rows) -> None:
    """Check that all `rows` have the expected vectors, up to the last bits that another batch may change."""
    assert rows.keys() <= expected.keys()
    for key, vector in rows.items():
        np.testing.assert_allclose(vector, expected[key], rtol=1e-5, atol=1e-5)


def check_opening(cache: Path, spec: FeatureSpec, rows: Rows, expected: Rows, spare: Path) -> None:
    """Open a copy of what a kill left, and compare it with what the witness saw; the next run meets the original."""
    shutil.rmtree(spare, ignore_errors=True)
    if cache.exists():
        shutil.copytree(cache, spare)
    start = time.monotonic()
    with Cache(spare) as opened:
        store = opened.features(spec)
        assert time.monotonic() - start < OPENS_WITHIN
        keys = list(rows)
        assert all(np.array_equal(vector, rows[key]) for key, vector in zip(keys, store.read(keys), strict=True))
        assert store.contains(list(expected)).sum() == len(rows)
        assert temporary_files(spare) == []
        assert not (spare / "bad").exists()
    assert witness(store.folder).keys() == rows.keys()


class Siege:
    """Runs of one command on one cache after the other, killed again and again until the cache is complete."""

    def __init__(self, server: Server, tmp_path: Path, weights: Path) -> None:
        tints = np.random.default_rng(0).integers(20, 235, (PICTURES, 3)).tolist()
        for at, tint in enumerate(tints):
            write_picture(tmp_path / "photos" / "ab"[at % 2] / f"{at}.png", at, tint)
        self.words = (str(tmp_path / "photos"), "--json", "--batch-size", "4")
        self.words += ("--backbone", "resnet18", "--weights", str(weights))
        self.spec = resolve("resnet18", weights).spec
        self.server = server
        self.tmp_path = tmp_path
        self.caches, self.kills = 0, Counter[str]()
        self.begin()
        calm = server.run(Order("extract", str(self.cache), self.words))
        self.length, self.calls = calm.seconds, calm.calls
        self.expected = witness(self.segments)
        vectors = np.stack(list(self.expected.values()))
        nearest = np.abs(vectors[:, None] - vectors).max(axis=2)[~np.eye(PICTURES, dtype=bool)].min()
        assert nearest > 1e-3  # else a vector of another picture would pass
        self.begin()

    def begin(self) -> None:
        """Go on with a cache that does not exist yet."""
        self.caches += 1
        self.cache = self.tmp_path / f"cache-{self.caches}"
        self.segments = self.cache / "segments" / self.spec.fingerprint[:16]
        self.held: Rows = {}

    def attack(self, **kill: Any) -> bool:
        """Run once with this kill, check everything, and tell whether it hit."""
        outcome = self.server.run(Order("extract", str(self.cache), self.words, **kill))
        rows = witness(self.segments)
        agree(rows, self.expected)
        assert rows.keys() >= self.held.keys() | outcome.committed
        check_opening(self.cache, self.spec, rows, self.expected, self.tmp_path / "copy")
        if outcome.killed:
            self.kills[outcome.phase] += 1
            self.held = rows
            return True
        summary = json.loads(outcome.out)
        if not self.held:
            self.length = min(self.length, outcome.seconds)
        missing = PICTURES - len(self.held)
        assert (summary["found"], summary["computed"], summary["reused"]) == (PICTURES, missing, PICTURES - missing)
        assert outcome.committed == self.expected.keys() - self.held.keys()
        assert rows.keys() == self.expected.keys()
        assert temporary_files(self.cache) == []
        self.begin()
        return False

    @property
    def missing(self) -> float:
        """The share of the rows that the next run has to compute."""
        return 1 - len(self.held) / PICTURES


@pytest.mark.slow
@pytest.mark.parametrize(
    ("timed", "at_calls"), [(3, 5), pytest.param(250, 250, marks=pytest.mark.soak)], ids=["short", "long"]
)
def test_no_kill_of_an_extraction_costs_a_committed_row(
    server: Server, tmp_path: Path, seeded_weights: Path, timed: int, at_calls: int
) -> None:
    siege, chance = Siege(server, tmp_path, seeded_weights), random.Random(timed)
    left = Counter({"timed": timed, "commit": at_calls // 2, "compact": at_calls - at_calls // 2})
    moments = [(at + chance.random()) / timed for at in range(timed)]  # spread over the whole length of a run
    chance.shuffle(moments)
    while left.total():
        kind = chance.choice(list(left.elements())) if siege.missing else "compact"
        if kind == "timed":
            hit = siege.attack(seconds=moments[-1] * siege.length * (0.2 + 0.8 * siege.missing))
            moments[-1] *= 0.9  # unless it hit, the run was over before
        else:
            calls = siege.calls[kind] * (siege.missing if kind == "commit" else 1)
            hit = siege.attack(phase=kind, call=chance.randint(1, max(1, round(calls))))
        if hit and left[kind]:
            left[kind] -= 1
            moments = moments[: left["timed"]]
    if siege.held:
        assert not siege.attack()
    _logger.info("kills by phase %s, caches %d, a run takes %.2f s", siege.kills, siege.caches, siege.length)
    assert siege.kills.total() >= timed + at_calls
    assert siege.kills["commit"] >= at_calls // 2
    assert siege.kills["compact"] >= at_calls - at_calls // 2


@pytest.mark.slow
@pytest.mark.parametrize(("work", "least"), [("commit", 3 * 6), ("compact", 6 + 5)])
def test_no_system_call_of_a_commit_or_a_compaction_is_a_bad_one_to_be_killed_at(
    server: Server, tmp_path: Path, work: str, least: int
) -> None:
    expected = dict(zip(*make_rows(0, 20 if work == "compact" else 32), strict=True))
    for call in range(1, 200):
        folder = tmp_path / f"cache-{call}"
        with Cache(folder) as cache:
            store = cache.features(SPEC)
            held = set(commit_each(store, 5)[0])
        outcome = server.run(Order(work, str(folder), phase=work, call=call))
        rows = witness(store.folder)
        agree(rows, expected)
        assert rows.keys() >= held | outcome.committed
        check_opening(folder, SPEC, rows, expected, tmp_path / "copy")
        if not outcome.killed:
            break
        assert not server.run(Order(work, str(folder))).killed
        assert witness(store.folder).keys() == expected.keys()
        assert len(segment_files(store.folder)) == 1 or work == "commit"
        assert temporary_files(folder) == []
        assert not (folder / "bad").exists()
    assert not outcome.killed
    assert call > least
