"""Every state that a power loss may leave, at any moment of what the store writes."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from recorder import EVERYTHING, EXTREMES, Disk, Killed, Operation, Recorder, Tree, build, random_fate
from store_rows import SPEC, Rows, commit, make_rows, temporary_files

from featcache.errors import CacheError
from featcache.store import Cache, FeatureWriter
from featcache.store.segment import read_features, read_keys

CACHE = "new/cache"
FEW = 40
SAMPLES = [FEW, pytest.param(3000, marks=pytest.mark.soak)]
"""How many random states are drawn a moment, beside the extreme ones."""
KILLED_SAMPLES = [4, pytest.param(300, marks=pytest.mark.soak)]

ASKED, _ = make_rows(0, 40)
LATER = make_rows(100, 2)
NO_ROWS = make_rows(0, 0)


@dataclass(frozen=True)
class Promise:
    """What is held from one moment on: rows, the segments they are in (`None`: any), other files, all by content."""

    rows: Rows
    segments: tuple[str, ...] | None
    files: dict[str, bytes]


class Story:
    """Something the store did, as recorded operations, and what it had promised after how many of them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / CACHE
        root.mkdir()
        self.recorder = Recorder(root)
        self.promises = [(0, Promise(NO_ROWS, (), {}))]
        self.start = 0

    @property
    def operations(self) -> list[Operation]:
        return self.recorder.operations

    def promise(self, rows: Rows = NO_ROWS, any_segments: bool = False) -> None:
        """Note that `rows` and all that is in the cache folder now must be there from here on."""
        segments = tuple(sorted(path.name for path in self.root.rglob("seg-*.h5")))
        files = {name: content for name, content in real_files(self.root).items() if is_plain(name)}
        self.promises.append((len(self.operations), Promise(rows, None if any_segments else segments, files)))

    def begin(self) -> None:
        """Note that the subject begins here: what was written before is only what it needs."""
        self.start = len(self.operations)

    def promised(self, done: int) -> tuple[Promise, Promise]:
        """Return what must be there after `done` operations, and what may be there already."""
        kept = [at for at, (when, _) in enumerate(self.promises) if when <= done][-1]
        return self.promises[kept][1], self.promises[min(kept + 1, len(self.promises) - 1)][1]


def real_files(root: Path) -> dict[str, bytes]:
    """Return the files below `root` but for the catalog, which SQLite writes."""
    paths = (path for path in root.rglob("*") if path.is_file() and not path.name.startswith("catalog.sqlite"))
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def is_plain(name: str) -> bool:
    return not Path(name).name.startswith((".tmp-", "seg-", ".compact.lock"))


def join(*parts: Rows) -> Rows:
    """Return the rows of all parts; of a key that comes twice the first counts."""
    held: dict[bytes, np.ndarray] = {}
    for keys, vectors in parts:
        for key, vector in zip(keys, vectors, strict=True):
            held.setdefault(key, vector)
    return list(held), np.array(list(held.values()), dtype=np.float32)


# What the store does

FIRST, SECOND = make_rows(0, 9), make_rows(9, 5)
OVERLAPPING = [make_rows(4 * number, 8, version=number) for number in range(3)]


def make_a_cache(story: Story) -> None:
    with Cache(story.folder) as cache:
        story.promise()
        cache.features(SPEC)
        story.promise()


def make_a_cache_and_commit(story: Story) -> None:
    with Cache(story.folder) as cache:
        commit(cache.features(SPEC), FIRST)
    story.promise(FIRST)


def commit_once(story: Story) -> None:
    make_a_cache(story)
    story.begin()
    make_a_cache_and_commit(story)


def commit_twice(story: Story) -> None:
    make_a_cache(story)
    story.begin()
    with Cache(story.folder) as cache, FeatureWriter(cache.features(SPEC), "float32") as writer:
        writer.append(*FIRST)
        writer.flush()
        story.promise(FIRST)
        writer.append(*SECOND)
        writer.flush()
        story.promise(join(FIRST, SECOND))


def compact(story: Story) -> None:
    with Cache(story.folder) as cache:
        for rows in OVERLAPPING:
            commit(cache.features(SPEC), rows)
        story.promise(join(*OVERLAPPING))
        story.begin()
        assert cache.features(SPEC).compact() == 3
    story.promise(join(*OVERLAPPING))


def compact_again(story: Story) -> None:
    compact(story)
    story.begin()
    with Cache(story.folder) as cache:
        commit(cache.features(SPEC), make_rows(14, 6, version=9))
        story.promise(join(*OVERLAPPING, make_rows(14, 6, version=9)))
        assert cache.features(SPEC).compact() == 2
    story.promise(join(*OVERLAPPING, make_rows(14, 6, version=9)))


def put_over(story: Story) -> None:
    with Cache(story.folder) as cache:
        cache.put("runs/1.json", b"old " * 3000)
        story.promise()
        story.begin()
        cache.put("runs/1.json", b"newer " * 1500)
    story.promise()


STORIES: list[Callable[[Story], None]] = [make_a_cache, commit_once, commit_twice, compact, compact_again, put_over]


def record(tell: Callable[[Story], None], root: Path) -> Story:
    story = Story(root)
    with story.recorder.recording():
        tell(story)
    return story


# What must be true after a power loss


def check(root: Path, must: Promise, may: Promise) -> None:
    """Check one state: what is there, what opening it finds, and that work goes on."""
    files = real_files(root)
    for name in filter(is_plain, files):
        assert files[name] in (must.files.get(name), may.files.get(name)), name
    assert must.files.keys() <= files.keys()
    for segment in root.rglob("seg-*.h5"):  # one with a name is whole: its data were safe before it got the name
        header, _ = read_keys(segment, SPEC.fingerprint)
        read_features(segment, header)
    with Cache(root / CACHE) as cache:
        store = cache.features(SPEC)
        assert cache.spec(SPEC.fingerprint) == SPEC
        now = must if must.segments in (None, store.segments) else may
        assert now.segments in (None, store.segments)
        assert temporary_files(root) == []
        keys, vectors = now.rows
        assert store.contains(ASKED).tolist() == [key in keys for key in ASKED]
        if keys:
            np.testing.assert_array_equal(store.read(keys), vectors)
        commit(store, LATER)
    keys, vectors = join(now.rows, LATER)
    with Cache(root / CACHE) as cache:
        store = cache.features(SPEC)
        np.testing.assert_array_equal(store.read(keys), vectors)
        store.compact()
        np.testing.assert_array_equal(store.read(keys), vectors)
    assert not (root / CACHE / "bad").exists()


def replay(story: Story, scratch: Path, samples: int, moments: Iterable[int] | None = None) -> int:
    """Check the states that a power loss at any of the moments may leave, each once; returns how many."""
    wanted = set(range(story.start, len(story.operations) + 1) if moments is None else moments)
    disk, seen = Disk(), set[tuple[int, bytes]]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)  # the disk that is checked loses no power
        for done in range(len(story.operations) + 1):
            if done:
                disk.apply(story.operations[done - 1])
            if done not in wanted:
                continue
            must, may = story.promised(done)
            chance = random.Random(done)
            for fate in (*EXTREMES, *(random_fate(chance) for _ in range(samples))):
                tree = disk.left(fate)
                state = id(must), hashlib.sha256(repr(tree).encode()).digest()
                if state in seen:
                    continue
                seen.add(state)
                build(tree, scratch)
                try:
                    check(scratch, must, may)
                finally:
                    shutil.rmtree(scratch)
    assert wanted <= set(range(len(story.operations) + 1))
    return len(seen)


def contents(tree: Tree) -> dict[str, bytes]:
    """Return the files of a tree but for the catalog, which SQLite writes."""
    found = {name: content for name, (_, content) in tree.items() if content is not None}
    return {name: content for name, content in found.items() if not Path(name).name.startswith("catalog.sqlite")}


def final_state(operations: list[Operation]) -> Tree:
    disk = Disk()
    for operation in operations:
        disk.apply(operation)
    return disk.left(EVERYTHING)


def test_the_recorder_sees_every_way_to_write_a_file(tmp_path: Path) -> None:
    root = tmp_path / "disk"
    root.mkdir()
    recorder = Recorder(root)
    with recorder.recording():
        (root / "deep" / "er").mkdir(parents=True)
        (root / "bytes").write_bytes(b"long " * 5000)
        (root / "bytes").write_bytes(b"short")
        (root / "deep" / "text").write_text("one\n")
        for line in ("two\n", "three\n"):
            with open(root / "deep" / "text", "a") as file:
                file.write(line)
        with (root / "deep" / "er" / "both").open("w+b") as file:
            file.write(b"0123456789")
            file.seek(4)
            file.write(b"xy")
        (root / "linked").hardlink_to(root / "bytes")
        (root / "bytes").replace(root / "replaced")
        (root / "deep" / "text").rename(root / "deep" / "renamed")
        (root / "gone").touch()
        (root / "gone").unlink()
        (root / "deep" / "er" / "gone").touch()
        os.remove(root / "deep" / "er" / "gone")  # noqa: PTH107
        with pytest.raises(AssertionError):
            os.truncate(root / "linked", 0)
    tree = final_state(recorder.operations)
    assert contents(tree) == real_files(root)
    assert tree["linked"][0] == tree["replaced"][0] != tree["deep/renamed"][0]
    assert tree.keys() == {str(path.relative_to(root)) for path in root.rglob("*")}


@pytest.mark.parametrize("tell", STORIES)
def test_all_recorded_operations_together_give_the_real_folder(tmp_path: Path, tell: Callable[[Story], None]) -> None:
    story = record(tell, tmp_path / "disk")
    tree = final_state(story.operations)
    assert contents(tree) == real_files(story.root)
    folders = {str(path.relative_to(story.root)) for path in story.root.rglob("*") if path.is_dir()}
    assert {name for name, (_, content) in tree.items() if content is None} == folders


@pytest.mark.slow
@pytest.mark.parametrize("samples", SAMPLES)
@pytest.mark.parametrize("tell", STORIES)
def test_a_power_loss_at_any_moment_leaves_the_old_or_the_new_and_never_less_than_was_promised(
    tmp_path: Path, tell: Callable[[Story], None], samples: int, record_property: Callable[[str, object], None]
) -> None:
    story = record(tell, tmp_path / "disk")
    states = replay(story, tmp_path / "state", samples)
    record_property("states", states)
    assert states > 5


# A process is killed, another one goes on, and then the power goes


def interrupted(tell: Callable[[Story], None], root: Path, dies_after: int) -> Story:
    """Record a process that is killed after so many operations, and begin where the next one does."""
    story = Story(root)
    story.recorder.dies_after = dies_after
    with story.recorder.recording(), pytest.raises(Killed):
        tell(story)
    story.recorder.dies_after = None
    story.begin()
    return story


def moments_to_die(story: Story, last: str, before: bool) -> list[int]:
    """Return the moments of the subject right after an operation of the kind `last`, or else all the others."""
    moments = range(max(story.start, 1), len(story.operations))
    return [at for at in moments if (story.operations[at - 1].kind == last) == before]


@pytest.mark.slow
@pytest.mark.parametrize("samples", KILLED_SAMPLES)
@pytest.mark.parametrize("unsynced_folder", [False, True])
def test_rows_committed_after_another_process_was_killed_survive_a_power_loss(
    tmp_path: Path, unsynced_folder: bool, samples: int, record_property: Callable[[str, object], None]
) -> None:
    states = 0
    whole = record(make_a_cache_and_commit, tmp_path / "whole")
    for dies_after in moments_to_die(whole, "mkdir", unsynced_folder):
        story = interrupted(make_a_cache_and_commit, tmp_path / f"disk{dies_after}", dies_after)
        killed_late = bool(list(story.root.rglob("seg-*.h5")))
        with story.recorder.recording(), Cache(story.folder) as cache:
            commit(cache.features(SPEC), SECOND)
        story.promise(join(FIRST, SECOND) if killed_late else SECOND)
        states += replay(story, tmp_path / "state", samples, moments=[len(story.operations)])
    record_property("states", states)


@pytest.mark.slow
@pytest.mark.parametrize("samples", KILLED_SAMPLES)
@pytest.mark.parametrize("unsynced_segment", [False, True])
def test_compacting_after_a_killed_compaction_keeps_every_row_through_a_power_loss(
    tmp_path: Path, unsynced_segment: bool, samples: int, record_property: Callable[[str, object], None]
) -> None:
    states = 0
    whole = record(compact, tmp_path / "whole")
    for dies_after in moments_to_die(whole, "rename", unsynced_segment):
        story = interrupted(compact, tmp_path / f"disk{dies_after}", dies_after)
        story.promise(join(*OVERLAPPING), any_segments=True)
        with story.recorder.recording(), Cache(story.folder) as cache:
            cache.features(SPEC).compact()
        states += replay(story, tmp_path / "state", samples)
    record_property("states", states)


# The replay finds what it is there for


def without_file_syncs(story: Story) -> list[Operation]:
    files = {op.node for op in story.operations if op.kind == "create"}
    return [replace(op, kind="nothing") if op.kind == "sync" and op.node in files else op for op in story.operations]


def without_folder_syncs(story: Story) -> list[Operation]:
    files = {op.node for op in story.operations if op.kind == "create"}
    return [
        replace(op, kind="nothing") if op.kind == "sync" and op.node not in files else op for op in story.operations
    ]


def straight_to_the_final_name(story: Story) -> list[Operation]:
    """Give every file its final name from the start."""
    final = {op.node: op.new_name for op in story.operations if op.kind == "rename"}
    named = (replace(op, name=final.get(op.node, op.name)) if op.kind == "create" else op for op in story.operations)
    return [replace(op, kind="nothing") if op.kind == "rename" else op for op in named]


@pytest.mark.parametrize("spoil", [without_file_syncs, without_folder_syncs, straight_to_the_final_name])
@pytest.mark.parametrize("tell", [commit_once, compact, put_over])
def test_the_replay_finds_out_a_store_that_syncs_or_renames_too_little(
    tmp_path: Path, tell: Callable[[Story], None], spoil: Callable[[Story], list[Operation]]
) -> None:
    story = record(tell, tmp_path / "disk")
    story.operations[:] = spoil(story)
    with pytest.raises((AssertionError, CacheError)):
        replay(story, tmp_path / "state", samples=0)
