"""Reading ahead of the network: how much at once, in which order, what is done once, and what an interrupt keeps."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Result, write_picture

import featcache.decode
import featcache.sources.local
from featcache.api import reading
from featcache.decode import Pixels
from featcache.embed.torch_engine import TorchEngine
from featcache.load import load
from featcache.records import FeatureSpec, FloatArray, Look, Preprocess
from featcache.sources import ACCESS
from featcache.sources.local import read
from featcache.store import Cache

Run = Callable[..., Result]

pytestmark = pytest.mark.usefixtures("one_thread")

CORES = 2
SPEC = FeatureSpec("toy", "0" * 64, Preprocess(20, 16, "bilinear", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)))


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("joblib.cpu_count", lambda *_, **__: CORES)


def toy(pixels: Pixels) -> FloatArray:
    """Return what stands for the vectors here, where the network does not matter."""
    return pixels.reshape(len(pixels), -1)[:, ::997].astype(np.float32)


@pytest.fixture(autouse=True)
def toy_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TorchEngine, "embed", lambda _, pixels: toy(pixels))


class Gauge:
    """How many threads are inside at once, at most, and how often each name came in."""

    def __init__(self) -> None:
        self.most = 0
        self.seen: Counter[str] = Counter()
        self._now = 0
        self._lock = threading.Lock()

    @contextmanager
    def within(self, name: str = "") -> Iterator[None]:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
            self.seen[name] += 1
        try:
            yield
        finally:
            with self._lock:
                self._now -= 1

    @property
    def calls(self) -> int:
        return self.seen.total()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Gauge:
    """The reads of picture files, by path."""
    gauge = Gauge()

    def counted(path: str) -> Any:
        with gauge.within(path):
            return read(path)

    monkeypatch.setattr(featcache.sources.local, "read", counted)
    return gauge


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Gauge:
    """The pictures that were decoded, by the views made of each."""
    gauge, decode_and_look = Gauge(), reading.decode_and_look

    def counted(data: bytes, preprocess: Preprocess, views: Any, **how: Any) -> tuple[list[Pixels], Look]:
        with gauge.within(",".join(views)):
            return decode_and_look(data, preprocess, views, **how)

    monkeypatch.setattr(reading, "decode_and_look", counted)
    return gauge


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches given to the network."""
    given: list[int] = []

    def counted(_: TorchEngine, pixels: Pixels) -> FloatArray:
        given.append(len(pixels))
        return toy(pixels)

    monkeypatch.setattr(TorchEngine, "embed", counted)
    return given


def write(root: Path, n: int) -> list[str]:
    """Write old pictures of different content, and return their paths."""
    paths = [write_picture(root / f"{number:03}.png", number, (number % 200, 90, 160)) for number in range(n)]
    for path in paths:
        os.utime(path, (1, 1))
    return [str(path) for path in paths]


def reader(cache: Cache, *specs: FeatureSpec) -> reading.Reader:
    specs = specs or (SPEC,)
    return reading.Reader([cache.features(spec) for spec in specs], specs, ACCESS)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    with Cache(tmp_path / "cache") as opened:
        yield opened


def held(cache: Path, fingerprint: str, root: Path) -> tuple[list[str], FloatArray]:
    """Return paths and vectors of a dataset."""
    with Cache(cache) as opened:
        found = load(opened.catalog.dataset(str(root)), opened.store(fingerprint))
    return list(found.paths), found.X


# --- how much at once ---


def test_a_slow_disk_is_asked_for_more_files_at_once_than_there_are_cores(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gauge = Gauge()

    def slow(path: str) -> Any:
        with gauge.within(path):
            time.sleep(0.03)
            return read(path)

    monkeypatch.setattr(featcache.sources.local, "read", slow)
    paths = write(tmp_path / "many", 60)
    found = list(reader(cache).read_all(paths))
    assert [picture.path for picture in found] == paths
    assert CORES < gauge.most <= CORES + reading.READ_AHEAD
    assert set(gauge.seen.values()) == {1}


def test_never_more_pictures_are_decoded_at_once_than_there_are_cores(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gauge, decode_and_look = Gauge(), reading.decode_and_look

    def slow(*given: Any, **how: Any) -> tuple[list[Pixels], Look]:
        with gauge.within():
            time.sleep(0.005)
            return decode_and_look(*given, **how)

    monkeypatch.setattr(reading, "decode_and_look", slow)
    assert len(list(reader(cache).read_all(write(tmp_path / "many", 40)))) == 40
    assert (gauge.most, gauge.calls) == (CORES, 40)


def test_pictures_come_in_order_however_long_each_takes(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dice = random.Random(0)

    def uneven(path: str) -> Any:
        time.sleep(dice.random() / 100)
        return read(path)

    monkeypatch.setattr(featcache.sources.local, "read", uneven)
    paths = write(tmp_path / "many", 50)
    dice.shuffle(paths)
    found = list(reader(cache).read_all(paths))
    assert [picture.path for picture in found] == paths
    assert all(picture.key == read(picture.path)[1] for picture in found)
    pixels = {picture.path: picture.views[0][1] for picture in found}
    for path in paths[:5]:
        expected = featcache.decode.decode(Path(path).read_bytes(), SPEC.preprocess)
        np.testing.assert_array_equal(pixels[path], expected)


def test_a_blocked_network_is_not_left_behind_by_more_than_the_window(
    cache: Cache, tmp_path: Path, reads: Gauge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "WINDOW", 5)
    pictures = reader(cache).read_all(write(tmp_path / "many", 60))
    for taken in range(1, 21):
        next(pictures)
        time.sleep(0.01)  # nobody takes the next one
        assert reads.calls <= taken - 1 + 5 * CORES
    pictures.close()
    assert reads.calls < 60


def test_the_window_holds_in_an_extraction_whose_network_is_slow(
    run: Run, tmp_path: Path, reads: Gauge, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead: list[int] = []
    done = 0

    def slow(self: TorchEngine, pixels: Pixels) -> FloatArray:
        nonlocal done
        time.sleep(0.02)
        ahead.append(reads.calls - done)
        done += len(pixels)
        return toy(pixels)

    monkeypatch.setattr(TorchEngine, "embed", slow)
    monkeypatch.setattr(reading, "WINDOW", 4)
    write(tmp_path / "many", 60)
    found = run("extract", "many", "--batch-size", "2", "--json", network=True).json
    assert found["computed"] == 60
    # The window, a batch that is being filled, two under way and one that waits.
    assert CORES < max(ahead) <= 4 * CORES + 2 * (1 + 1 + 2)


def test_leaving_early_reads_no_further(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gauge = Gauge()

    def slow(path: str) -> Any:
        with gauge.within(path):
            time.sleep(0.01)
            return read(path)

    monkeypatch.setattr(featcache.sources.local, "read", slow)
    pictures = reader(cache).read_all(write(tmp_path / "many", 120))
    next(pictures)
    pictures.close()
    assert gauge.calls < 120
    deadline = time.monotonic() + 10  # nobody waits for those that are at it
    while time.monotonic() < deadline and any(t.name.startswith("featcache-read") for t in threading.enumerate()):
        time.sleep(0.01)
    assert gauge.calls < 120
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("featcache-read")]


# --- once ---


def test_several_views_are_read_and_decoded_once(
    run: Run, tmp_path: Path, reads: Gauge, decoded: Gauge, embedded: list[int]
) -> None:
    paths = write(tmp_path / "some", 6)
    found = run("extract", "some", "--views", "flip,crops5", "--json", network=True).json
    assert [view["computed"] for view in found["views"]] == [6] * 5
    assert found["computed"] == 6
    assert reads.seen == Counter(paths)
    assert decoded.seen == {"flip,crop-tl,crop-tr,crop-bl,crop-br,original": 6}
    assert sum(embedded) == 36


def test_only_missing_views_are_made_and_all_equal_those_made_one_at_a_time(
    run: Run, tmp_path: Path, reads: Gauge, decoded: Gauge, embedded: list[int]
) -> None:
    write(tmp_path / "some", 5)
    first = run("extract", "some", "--json", network=True).json
    run("extract", "some", "--views", "flip", network=True)
    assert decoded.seen == {"original": 5, "flip": 5}
    found = run("extract", "some", "--views", "flip,crops5", "--json", network=True).json
    assert [(view["name"], view["computed"], view["reused"]) for view in found["views"]] == [
        ("flip", 0, 5),
        *((f"crop-{corner}", 5, 0) for corner in ("tl", "tr", "bl", "br")),
    ]
    assert (found["computed"], found["reused"], found["fingerprint"]) == (0, 5, first["fingerprint"])
    assert decoded.seen == {"original": 5, "flip": 5, "crop-tl,crop-tr,crop-bl,crop-br": 5}
    assert (reads.calls, sum(embedded)) == (15, 30)
    whole = run("extract", "some", "--views", "flip,crops5", "--cache", "other", "--json", network=True).json
    for view in [*whole["views"], whole]:
        step = held(tmp_path / "cache", view["fingerprint"], tmp_path / "some")
        once = held(tmp_path / "other", view["fingerprint"], tmp_path / "some")
        assert step[0] == once[0]
        np.testing.assert_array_equal(once[1], step[1])
    assert len({view["fingerprint"] for view in [*whole["views"], whole]}) == 6


def test_copies_are_decoded_once(run: Run, tmp_path: Path, decoded: Gauge, embedded: list[int]) -> None:
    paths = write(tmp_path / "some", 3)
    for number in range(10):
        shutil.copy(paths[0], tmp_path / "some" / f"copy {number}.png")
    found = run("extract", "some", "--json", network=True).json
    assert (found["found"], found["computed"], found["duplicates"], found["unreadable"]) == (13, 3, 10, 0)
    assert (decoded.calls, sum(embedded)) == (3, 3)


def test_what_cannot_be_read_is_counted_once_and_by_path(run: Run, tmp_path: Path, decoded: Gauge) -> None:
    write(tmp_path / "some", 3)
    for name in ("a", "b"):
        (tmp_path / "some" / f"{name}.png").write_bytes(b"no picture")
    (tmp_path / "some" / "gone.png").symlink_to(tmp_path / "nowhere")
    found = run("extract", "some", "--views", "flip,crops5", "--json", network=True).json
    assert (found["found"], found["computed"], found["duplicates"], found["unreadable"]) == (6, 3, 0, 3)
    assert sorted(Path(failure["path"]).name for failure in found["failures"]) == ["a.png", "b.png", "gone.png"]
    assert [(view["computed"], view["reused"]) for view in found["views"]] == [(3, 0)] * 5
    assert decoded.calls == 4


def test_the_seconds_of_all_views_add_up(run: Run, tmp_path: Path) -> None:
    write(tmp_path / "some", 6)
    start = time.perf_counter()
    found = run("extract", "some", "--views", "flip", "--json", network=True).json
    took = time.perf_counter() - start
    assert 0 < found["seconds"]["total"] + found["views"][0]["seconds"] <= took


# --- what has not changed ---


def test_one_changed_file_among_many_costs_one_picture(
    run: Run, tmp_path: Path, reads: Gauge, embedded: list[int]
) -> None:
    paths = write(tmp_path / "many", 80)
    assert run("extract", "many", "--json", network=True).json["computed"] == 80
    assert sum(embedded) == 80
    embedded.clear()
    reads.seen.clear()
    write_picture(Path(paths[33]), 12345)
    found = run("extract", "many", "--json", network=True).json
    assert (found["computed"], found["reused"]) == (1, 79)
    assert (embedded, reads.seen) == ([1], {paths[33]: 1})


def test_an_unchanged_folder_costs_one_stat_a_file_and_no_read(
    run: Run, tmp_path: Path, reads: Gauge, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write(tmp_path / "many", 30)
    run("extract", "many", network=True)
    reads.seen.clear()
    stats: Counter[str] = Counter()
    stat = os.stat

    class Os:
        """The module os, as `featcache.sources.local` sees it."""

        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def stat(self, path: str) -> os.stat_result:
            stats[path] += 1
            return stat(path)

    monkeypatch.setattr(featcache.sources.local, "os", Os())
    found = run("extract", "many", "--json", network=True).json
    assert (found["reused"], found["computed"], reads.calls) == (30, 0, 0)
    assert stats == Counter(paths)


# --- interrupts ---


def slowed(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None]) -> list[int]:
    """Call `act` with the number of each batch after it was computed; return the sizes of those that were finished."""
    finished: list[int] = []
    count = [0]

    def acting(_: TorchEngine, pixels: Pixels) -> FloatArray:
        count[0] += 1
        act(count[0])
        finished.append(len(pixels))
        return toy(pixels)

    monkeypatch.setattr(TorchEngine, "embed", acting)
    return finished


def test_an_interrupt_between_batches_keeps_what_was_computed(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "many", 40)
    with monkeypatch.context() as patch:
        finished, read_all = slowed(patch, lambda _: time.sleep(0.02)), reading.Reader.read_all

        def interrupted(self: reading.Reader, paths: list[str]) -> Iterator[reading.Picture]:
            for done, picture in enumerate(read_all(self, paths), 1):
                if done == 25:
                    raise KeyboardInterrupt
                yield picture

        patch.setattr(reading.Reader, "read_all", interrupted)
        stopped = run("extract", "many", "--batch-size", "4", network=True)
    assert (stopped.code, stopped.out) == (130, "")
    assert "Traceback" not in stopped.err
    rows = run("cache", "info", "--json").json["backbones"][0]["rows"]
    assert rows == sum(finished)
    assert 4 <= rows <= 24
    again = run("extract", "many", "--json", network=True).json
    assert (again["computed"], again["reused"]) == (40 - rows, rows)
    assert run("cache", "verify").code == 0


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs POSIX signals")
def test_ctrl_c_while_the_network_is_waited_for_keeps_the_batch_that_was_under_way(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "many", 40)

    def interrupt(number: int) -> None:
        time.sleep(0.15)  # by now the main thread waits for a batch
        if number == 3:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            time.sleep(0.15)

    with monkeypatch.context() as patch:
        finished = slowed(patch, interrupt)
        stopped = run("extract", "many", "--batch-size", "4", network=True)
    assert stopped.code == 130
    rows = run("cache", "info", "--json").json["backbones"][0]["rows"]
    again = run("extract", "many", "--json", network=True).json
    assert (again["computed"], again["reused"]) == (40 - rows, rows)
    assert rows == sum(finished)


def interrupt_at_the_fifth(number: int) -> None:
    """Take a while over a batch, and press Ctrl-C in the fifth."""
    time.sleep(0.05)
    if number == 5:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def test_ctrl_c_loses_no_more_than_what_was_under_way(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "many", 40)

    with monkeypatch.context() as patch:
        finished = slowed(patch, interrupt_at_the_fifth)
        stopped = run("extract", "many", "--views", "flip", "--batch-size", "4", network=True)
    assert (stopped.code, stopped.out) == (130, "")
    assert "what was finished is kept" in stopped.err
    held_rows = {b["view"]: b["rows"] for b in run("cache", "info", "--json").json["backbones"]}
    assert sum(finished) - 4 <= sum(held_rows.values()) <= sum(finished) < 40
    again = run("extract", "many", "--views", "flip", "--json", network=True).json
    assert again["computed"] == 40 - held_rows["original"]
    assert again["views"][0]["computed"] == 40 - held_rows["flip"]


def test_a_collection_after_an_interrupt_keeps_what_was_computed_of_every_view(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "many", 40)

    with monkeypatch.context() as patch:
        slowed(patch, interrupt_at_the_fifth)
        assert run("extract", "many", "--views", "flip", "--batch-size", "4", network=True).code == 130
    before = {b["view"]: b["rows"] for b in run("cache", "info", "--json").json["backbones"]}
    assert set(before) == {"original", "flip"}
    assert run("cache", "gc", "--yes").code == 0  # an extraction was not finished, so its vectors stay
    assert {b["view"]: b["rows"] for b in run("cache", "info", "--json").json["backbones"]} == before


SLOW = """
import sys, time
from featcache.embed.torch_engine import TorchEngine
import featcache.cli
def slow(self, pixels):
    print("batch", file=sys.stderr, flush=True)
    time.sleep(0.1)
    return pixels.reshape(len(pixels), -1)[:, ::997].astype("float32")
TorchEngine.embed = slow
sys.argv = ["featcache", *sys.argv[1:]]
featcache.cli.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.soak)],
)
def test_a_signal_to_the_process_keeps_what_was_computed(
    sent: signal.Signals, code: int, run: Run, tmp_path: Path, seeded_weights: Path
) -> None:
    write(tmp_path / "many", 40)
    words = ["extract", "many", "--batch-size", "2", "--backbone", "resnet18", "--weights", str(seeded_weights)]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    assert process.stderr is not None
    batches = 0
    for line in process.stderr:
        batches += line.count("batch")
        if batches == 4:
            process.send_signal(sent)
            break
    out, err = process.communicate(timeout=60)
    batches += err.count("batch")
    assert (process.returncode, out) == (code, "")
    assert "Traceback" not in err
    rows = run("cache", "info", "--json").json["backbones"][0]["rows"]
    assert 2 * (batches - 1) <= rows <= 2 * batches < 40
    again = run("extract", "many", "--json", network=True).json
    assert (again["computed"], again["reused"]) == (40 - rows, rows)
    assert run("cache", "verify").code == 0
