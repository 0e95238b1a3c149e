"""A zoo of bad pictures in one folder: each gives the vector of its pixels or one counted failure, and never harm."""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import features
from zoo_pictures import AVIF, BAD, DUPLICATES, GOOD, SPECIAL, Pixels, age, encoded, fill, picture, plain, write_whole

import featcache
from featcache.load import load
from featcache.records import ExtractSummary, Failure
from featcache.store import Cache

Vector = npt.NDArray[Any]
Extract = Callable[..., ExtractSummary]

READABLE = GOOD | (AVIF if features.check("avif") else {})
UNREADABLE = {name: reason for name, (_, reason) in (BAD | SPECIAL).items()}
HANGS_AFTER = 60.0
MOST_READS = 400
CLASS = "class"

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class Zoo:
    """The folder of all kinds, its first extraction, and the vectors that it should have given."""

    root: Path
    cache: Path
    first: ExtractSummary
    hung: bool
    expected: dict[str, Vector]


def extracting(weights: Path, cache: Path) -> Extract:
    """Return what extracts a source into `cache` with the seeded network."""

    def call(source: Path, progress: Any = None, **options: Any) -> ExtractSummary:
        chosen = featcache.Options(backbone="resnet18", weights=weights, cache=cache, device="cpu", **options)
        return featcache.extract(source, chosen, progress)

    return call


def held(cache: Path, summary: ExtractSummary) -> dict[str, tuple[bytes, Vector]]:
    """Return key and vector of all readable pictures of a dataset, by their paths below it."""
    with Cache(cache) as opened:
        rows = opened.catalog.dataset(summary.dataset)
        found = load(rows, opened.features(opened.spec(summary.fingerprint)))
    names = [os.path.relpath(path, summary.dataset).removeprefix(f"{CLASS}/") for path in found.paths]
    assert len(set(names)) == len(names)
    return {name: (key, found.X[at]) for at, (name, key) in enumerate(zip(names, found.keys, strict=True))}


def vectors(cache: Path, summary: ExtractSummary) -> dict[str, Vector]:
    return {name: vector for name, (_, vector) in held(cache, summary).items()}


def distance(a: Vector, b: Vector) -> float:
    """The largest difference of two vectors, as a share of the largest value."""
    return float(np.abs(a - b).max() / np.abs(b).max())


@pytest.fixture(scope="module")
def zoo(seeded_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zoo]:
    with tempfile.TemporaryDirectory(prefix="zoo-") as name:  # pytest's own folders can be too deep for a socket's name
        root, cache = Path(name) / "zoo", Path(name) / "cache"
        folder = root / CLASS
        fill(folder, READABLE)
        hung: list[bool] = []

        def set_free() -> None:  # a reader that waits for a writer
            hung.append(True)
            os.close(os.open(folder / "pipe.jpg", os.O_RDWR))

        watchdog = threading.Timer(HANGS_AFTER, set_free)
        watchdog.start()
        try:
            first = extracting(seeded_weights, cache)(root)
        finally:
            watchdog.cancel()
        wanted = [make()[1] for make in READABLE.values()]
        found = plain_vectors(seeded_weights, tmp_path_factory.mktemp("plain"), wanted)
        yield Zoo(root, cache, first, bool(hung), dict(zip(READABLE, found, strict=True)))


def plain_vectors(weights: Path, folder: Path, wanted: list[Pixels]) -> list[Vector]:
    """The vectors of plain RGB PNGs with these pixels, from a cache of their own."""
    (folder / "plain").mkdir()
    for at, pixels in enumerate(wanted):
        (folder / "plain" / f"{at}.png").write_bytes(encoded(pixels))
    summary = extracting(weights, folder / "plain cache")(folder / "plain")
    found = vectors(folder / "plain cache", summary)
    return [found[f"{at}.png"] for at in range(len(wanted))]


class TestKinds:
    def test_there_are_many_and_none_makes_the_extraction_hang(self, zoo: Zoo) -> None:
        assert len(READABLE) + len(UNREADABLE) >= 45
        assert not zoo.hung

    @pytest.mark.parametrize("name", READABLE, ids=ascii)
    def test_a_good_kind_has_the_vector_of_its_pixels(self, zoo: Zoo, name: str) -> None:
        assert distance(vectors(zoo.cache, zoo.first)[name], zoo.expected[name]) <= 1e-5

    def test_other_pixels_have_a_vector_that_the_tolerance_tells_apart(self, zoo: Zoo) -> None:
        alike = [{"cmyk.jpg", "ycck.jpg"}, {"turn 6.tif", "turn 6.jpg", "turn 6.avif"}]
        for one, other in itertools.combinations(zoo.expected, 2):
            if not any({one, other} <= group for group in alike):
                assert distance(zoo.expected[one], zoo.expected[other]) > 1e-3, (one, other)

    @pytest.mark.parametrize("name", UNREADABLE, ids=ascii)
    def test_a_bad_kind_is_one_failure_with_its_reason(self, zoo: Zoo, name: str) -> None:
        (reason,) = [failure.reason for failure in zoo.first.failures if failure.path == str(zoo.root / CLASS / name)]
        assert re.search(UNREADABLE[name], reason)
        assert len(reason.splitlines()) == 1
        assert name not in vectors(zoo.cache, zoo.first)

    @pytest.mark.parametrize("name", DUPLICATES)
    def test_a_copy_has_key_and_vector_of_its_original(self, zoo: Zoo, name: str) -> None:
        found = held(zoo.cache, zoo.first)
        key, vector = found[DUPLICATES[name]]
        assert found[name][0] == key == hashlib.sha256((zoo.root / CLASS / name).read_bytes()).digest()
        assert np.array_equal(found[name][1], vector)


class TestAccount:
    def test_every_file_is_counted_once(self, zoo: Zoo) -> None:
        counted = zoo.first
        assert counted.unreadable == len(UNREADABLE)
        assert counted.computed == len(READABLE)
        assert counted.duplicates == len(DUPLICATES)
        assert counted.found == len(READABLE) + len(UNREADABLE) + len(DUPLICATES)
        assert counted.found == counted.reused + counted.computed + counted.duplicates + counted.unreadable

    def test_the_list_of_failures_names_each_once(self, zoo: Zoo) -> None:
        assert zoo.first.unreadable_file is not None
        listed = list(csv.DictReader(Path(zoo.first.unreadable_file).read_text().splitlines()))
        assert sorted(row["path"] for row in listed) == sorted(str(zoo.root / CLASS / name) for name in UNREADABLE)
        assert [(row["path"], row["reason"]) for row in listed] == [(f.path, f.reason) for f in zoo.first.failures]

    @pytest.mark.parametrize("rehash", [False, True])
    def test_a_second_extraction_computes_nothing_and_lists_the_same(
        self, zoo: Zoo, seeded_weights: Path, rehash: bool
    ) -> None:
        before = {name: key for name, (key, _) in held(zoo.cache, zoo.first).items()}
        again = extracting(seeded_weights, zoo.cache)(zoo.root, rehash=rehash)
        assert (again.computed, again.reused, again.duplicates) == (0, len(READABLE), len(DUPLICATES))
        assert again.failures == zoo.first.failures
        assert {name: key for name, (key, _) in held(zoo.cache, again).items()} == before

    @pytest.mark.slow
    def test_in_batches_of_one_the_vectors_are_the_same(self, zoo: Zoo, seeded_weights: Path, tmp_path: Path) -> None:
        alone = extracting(seeded_weights, tmp_path / "cache")(zoo.root, batch_size=1)
        assert alone.failures == zoo.first.failures
        together = vectors(zoo.cache, zoo.first)
        for name, vector in vectors(tmp_path / "cache", alone).items():
            assert distance(vector, together[name]) <= 1e-4, name

    @pytest.mark.parametrize("name", ["cmyk.jpg", "new\nline.png", "20000x1.png"], ids=ascii)
    def test_a_picture_extracted_alone_has_the_same_vector(
        self, zoo: Zoo, seeded_weights: Path, tmp_path: Path, name: str
    ) -> None:
        alone = extracting(seeded_weights, tmp_path / "cache")(zoo.root / CLASS / name)
        (vector,) = vectors(tmp_path / "cache", alone).values()
        assert distance(vector, vectors(zoo.cache, zoo.first)[name]) <= 1e-4

    def test_the_command_line_prints_nothing_twice_and_no_warning(self, zoo: Zoo, seeded_weights: Path) -> None:
        command = ["extract", zoo.root, "--backbone", "resnet18", "--weights", seeded_weights, "--cache", zoo.cache]
        done = subprocess.run(
            [sys.executable, "-m", "featcache", *map(str, command), "--rehash"],
            capture_output=True,
            text=True,
            timeout=HANGS_AFTER,
            check=True,
        )
        lines = done.stdout.splitlines()
        assert len(set(lines)) == len(lines)
        assert sum(f"{zoo.root}/" in line for line in lines) == 10  # as many failures as are shown
        noise = [line for line in re.split(r"[\r\n]+", done.stderr) if line and not line.startswith("extract:")]
        assert noise == []


WITNESS = """
import json, resource, subprocess, sys
done = subprocess.run(sys.argv[1:], capture_output=True, text=True, timeout=120)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps([done.returncode, done.stdout, done.stderr, peak // (1024 if sys.platform == "darwin" else 1)]))
"""


def peak_kib(folder: Path, cache: Path, weights: Path) -> tuple[int, dict[str, Any]]:
    """Extract a folder in a process of its own: the most memory it held, and its summary.

    A small process stands between, because the peak of a child begins with that of its parent.
    """
    command = ["extract", folder, "--backbone", "resnet18", "--weights", weights, "--cache", cache, "--json"]
    words = [sys.executable, "-c", WITNESS, sys.executable, "-m", "featcache", *map(str, command)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=HANGS_AFTER, check=True)
    code, out, err, peak = json.loads(done.stdout)
    assert code == 0, err
    return peak, json.loads(out)


@pytest.mark.slow
def test_dangerous_files_take_little_memory(seeded_weights: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="zoo-") as name:
        harmless, dangerous = Path(name) / "harmless", Path(name) / "dangerous"
        for folder in (harmless, dangerous):
            folder.mkdir()
            (folder / "plain.png").write_bytes(plain(1)[0])
        usual, _ = peak_kib(harmless, Path(name) / "cache 1", seeded_weights)
        (dangerous / "bomb.png").write_bytes(BAD["bomb.png"][0]())
        for strip in ("20000x1.png", "1x20000.png"):
            (dangerous / strip).write_bytes(GOOD[strip]()[0])
        for special in ("sparse.png", "zero.png", "pipe.jpg", "socket"):
            SPECIAL[special][0](dangerous / special)
        peak, summary = peak_kib(dangerous, Path(name) / "cache 2", seeded_weights)
    assert (summary["computed"], summary["unreadable"]) == (3, 5)
    assert peak - usual < 200 * 1024


@pytest.fixture
def extract(seeded_weights: Path, tmp_path: Path) -> Extract:
    return extracting(seeded_weights, tmp_path / "cache")


def at_the_start(change: Callable[[], object]) -> Callable[..., None]:
    """A progress function that makes a change between the scan and the reading."""
    waiting = [change]

    def progress(*_: object) -> None:
        if waiting:
            waiting.pop()()

    return progress


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(2):
        (folder / f"{number}.png").write_bytes(plain(number)[0])
    return folder


def test_a_link_to_itself_is_one_failure(extract: Extract, folder: Path) -> None:
    (folder / "loop.png").symlink_to("loop.png")
    summary = extract(folder)
    assert summary.failures == (Failure(str(folder / "loop.png"), "too many levels of symbolic links"),)
    assert summary.computed == 2


class TestFilesThatChange:
    def test_a_file_that_vanishes_after_the_scan_is_one_failure(self, extract: Extract, folder: Path) -> None:
        summary = extract(folder, at_the_start((folder / "1.png").unlink))
        assert summary.failures == (Failure(str(folder / "1.png"), "no such file or directory"),)
        assert (summary.found, summary.computed) == (2, 1)

    def test_a_file_that_changes_after_the_scan_counts_as_it_was_read(
        self, extract: Extract, folder: Path, tmp_path: Path, seeded_weights: Path
    ) -> None:
        new = plain(2)[0]
        summary = extract(folder, at_the_start(lambda: (folder / "1.png").write_bytes(new)))
        key, vector = held(tmp_path / "cache", summary)["1.png"]
        assert key == hashlib.sha256(new).digest()
        assert distance(vector, plain_vectors(seeded_weights, tmp_path, [picture(2)])[0]) <= 1e-5

    def test_a_file_that_changes_while_it_is_read_is_one_failure(
        self, extract: Extract, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path, old = folder / "1.png", (folder / "1.png").read_bytes()
        inode, fstat = path.stat().st_ino, os.fstat
        looks: list[int] = []

        def changing(descriptor: int) -> os.stat_result:
            status = fstat(descriptor)
            if status.st_ino == inode and not looks:
                looks.append(descriptor)
                path.write_bytes(plain(2)[0])
            return status

        age(folder)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fstat", changing)
            summary = extract(folder)
        assert looks
        (failure,) = summary.failures
        assert (failure.path, failure.reason.startswith("changed while it was read")) == (str(path), True)
        assert set(held(tmp_path / "cache", summary)) == {"0.png"}
        again = extract(folder)
        assert (again.computed, again.failures) == (1, ())
        assert held(tmp_path / "cache", again)["1.png"][0] == hashlib.sha256(path.read_bytes()).digest()
        with Cache(tmp_path / "cache") as cache:
            store = cache.features(cache.spec(again.fingerprint))
            assert not store.contains([hashlib.sha256(old).digest()])[0]

    def test_a_file_that_may_not_be_read_is_one_failure(self, seeded_weights: Path) -> None:
        with tempfile.TemporaryDirectory() as name:  # every user may enter it, which pytest's own folders forbid
            root = Path(name)
            root.chmod(0o755)
            (root / "pictures").mkdir()
            for number in range(2):
                (root / "pictures" / f"{number}.png").write_bytes(plain(number)[0])
            (root / "pictures" / "0.png").chmod(0)
            is_root = os.geteuid() == 0
            calls: list[int] = []

            def progress(_stage: str, done: int, _total: int) -> None:
                calls.append(done)
                if is_root:  # root may read every file, so the reading of the first is left to another user
                    os.seteuid(65534 if len(calls) < 2 else 0)

            try:
                summary = extracting(seeded_weights, root / "cache")(root / "pictures", progress, batch_size=9)
            finally:
                if is_root:
                    os.seteuid(0)
        assert [(Path(f.path).name, f.reason) for f in summary.failures] == [("0.png", "permission denied")]
        assert summary.computed == 1

    def test_a_second_change_within_one_tick_of_the_clock_is_seen(
        self, extract: Extract, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The files are as new as can be when they are read, but the network takes long over the first of them."""
        old, new = (encoded(picture(seed), "BMP") for seed in (3, 4))
        path, clock = folder / "1.png", time.time_ns
        path.write_bytes(old)
        os.utime(path, ns=(clock(), clock()))

        def progress(_stage: str, done: int, _total: int) -> None:
            calls.append(done)
            if len(calls) != 2:
                return
            time.sleep(0.5)  # by now both have been read, and neither is in the catalog
            status = path.stat()
            path.write_bytes(new)
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as where the clock ticks slowly
            monkeypatch.setattr(time, "time_ns", lambda: clock() + 3 * 10**9)

        calls: list[int] = []
        extract(folder, progress)
        monkeypatch.undo()
        assert path.read_bytes() == new
        assert held(tmp_path / "cache", extract(folder))["1.png"][0] == hashlib.sha256(new).digest()

    @pytest.mark.slow
    @pytest.mark.parametrize("manner", ["renamed over", "in place", "emptied and written in halves"])
    def test_a_file_rewritten_all_the_time_is_never_kept_under_another_key(
        self, extract: Extract, folder: Path, tmp_path: Path, seeded_weights: Path, manner: str
    ) -> None:
        """A hundred links to one file are read while a thread writes whole versions of it, all of one size."""
        versions = [picture(seed, 640, 480) for seed in range(200, 204)]
        contents = [encoded(pixels, "BMP") for pixels in versions]
        path, stop = tmp_path / "changing.bmp", threading.Event()
        path.write_bytes(contents[0])
        for number in range(100):
            (folder / f"link {number}.bmp").symlink_to(path)

        def rewrite() -> None:
            turn = 0
            while not stop.is_set():
                turn += 1
                write_whole(path, contents[turn % len(contents)], manner)

        writer = threading.Thread(target=rewrite)
        writer.start()
        try:
            found: list[tuple[str, tuple[bytes, Vector]]] = []
            while len({key for name, (key, _) in found if name.startswith("link")}) < 2 and len(found) < MOST_READS:
                found += held(tmp_path / "cache", extract(folder)).items()
        finally:
            stop.set()
            writer.join()
        known = plain_vectors(seeded_weights, tmp_path, versions)
        wanted = {hashlib.sha256(content).digest(): vector for content, vector in zip(contents, known, strict=True)}
        links = [(name, key, vector) for name, (key, vector) in found if name.startswith("link")]
        assert len({key for _, key, _ in links}) > 1
        mixtures = {key for _, key, _ in links if key not in wanted}
        # No reader can tell a writer that was stopped within its one write from one that is done.
        assert len(mixtures) <= (3 if manner == "in place" else 0)
        assert all(distance(vector, wanted[key]) <= 1e-5 for _, key, vector in links if key in wanted)
        last = hashlib.sha256(path.read_bytes()).digest()
        after = held(tmp_path / "cache", extract(folder))
        assert {key for name, (key, _) in after.items() if name.startswith("link")} == {last}
