"""Random sequences of what users of the store do and suffer, against a dictionary and an outside witness."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from store_rows import DIM, SPEC, flip_bit, make_rows, segment_files, temporary_files
from witness import read_segment

from featcache.store import Cache, FeatureWriter

NUMBERS = 24
KEYS, _ = make_rows(0, NUMBERS)


class StoreMachine(RuleBasedStateMachine):
    """Two writers on one store; of a key that is written twice the vector of the first commit counts."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="featcache-"))
        self.committed: dict[bytes, npt.NDArray[np.float32]] = {}
        self.writes = 0
        self.open()

    def open(self) -> None:
        self.cache = Cache(self.folder / "cache")
        self.store = self.cache.features(SPEC)
        self.writers = [FeatureWriter(self.store, "float32") for _ in range(2)]
        self.buffers: list[list[tuple[bytes, npt.NDArray[np.float32]]]] = [[], []]

    def teardown(self) -> None:
        self.cache.catalog.close()
        shutil.rmtree(self.folder)

    @rule(writer=st.integers(0, 1), start=st.integers(0, NUMBERS - 5), count=st.integers(0, 5))
    def append(self, writer: int, start: int, count: int) -> None:
        self.writes += 1
        keys, vectors = make_rows(start, count, version=self.writes)
        self.writers[writer].append(keys, vectors)
        self.buffers[writer] += zip(keys, vectors, strict=True)

    @rule(writer=st.integers(0, 1))
    def flush(self, writer: int) -> None:
        self.writers[writer].flush()
        for key, vector in self.buffers[writer]:
            self.committed.setdefault(key, vector)
        self.buffers[writer] = []

    @rule()
    def reopen_without_flush(self) -> None:
        self.cache.catalog.close()
        self.open()

    @rule()
    def compact(self) -> None:
        self.store.compact()
        assert len(self.store.segments) <= 1

    @rule()
    def compact_elsewhere(self) -> None:
        self.cache.features(SPEC).compact()

    @rule(start=st.integers(0, NUMBERS - 1), count=st.integers(1, NUMBERS))
    def discard(self, start: int, count: int) -> None:
        gone = KEYS[start : start + count]
        self.store.discard(gone)
        for key in gone:
            self.committed.pop(key, None)

    @rule()
    def verify(self) -> None:
        assert self.store.verify() == 0

    @rule(writer=st.integers(0, 1), call=st.integers(0, 8))
    def killed_in_a_commit(self, writer: int, call: int) -> None:
        self.killed(self.writers[writer].flush, call)
        new = {key: vector for key, vector in self.buffers[writer][::-1] if key not in self.committed}
        self.cache.catalog.close()
        self.open()
        held = set(self.store.contains(list(new)).tolist())
        assert len(held) <= 1, "half a commit is there"
        if True in held:
            self.committed |= new

    @rule(call=st.integers(0, 12))
    def killed_in_a_compaction(self, call: int) -> None:
        self.killed(self.store.compact, call)
        self.cache.catalog.close()
        self.open()

    @rule(part=st.sampled_from(["features", "keys"]), which=st.integers(0, 5))
    def a_bit_flips_in_the_only_copy(self, part: str, which: int) -> None:
        files = segment_files(self.store.folder)
        if len(files) != len(self.store.segments) or not files:
            return  # a source of a merged segment is still there, and would stand in for it
        damaged = files[which % len(files)]
        lost = {key for key, _ in read_segment(damaged).rows}
        flip_bit(damaged, part)
        assert self.cache.features(SPEC).verify() == 1
        others = [key for path in segment_files(self.store.folder) for key, _ in read_segment(path).rows]
        if lost.intersection(others):  # a later copy takes its place, with the vector it was given
            self.committed |= {key: vector for key, vector in self.witnessed().items() if key in lost}
        for key in lost.difference(others):
            self.committed.pop(key, None)

    def killed(self, work: Callable[[], object], call: int) -> None:
        """Do the work in a child that ends, with no clean-up, before its system call number `call`."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # threads that have ended do no harm to a child
            child = os.fork()
        if child == 0:
            left = [call]
            for name in ("open", "write", "fsync", "rename", "unlink"):
                setattr(os, name, ending(getattr(os, name), left))
            try:
                work()
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0

    def witnessed(self) -> dict[bytes, npt.NDArray[np.floating]]:
        """What bare h5py reads in the files; of a key that is there twice the first vector."""
        segments = {path.name: read_segment(path) for path in segment_files(self.store.folder)}
        replaced = {name for segment in segments.values() for name in segment.replaces}
        found: dict[bytes, npt.NDArray[np.floating]] = {}
        for name in sorted(segments.keys() - replaced):
            for key, vector in segments[name].rows:
                found.setdefault(key, vector)
        return found

    @invariant()
    def holds_what_was_committed_and_nothing_else(self) -> None:
        self.store.refresh()
        assert self.store.contains(KEYS).tolist() == [key in self.committed for key in KEYS]
        if self.committed:
            expected = np.array(list(self.committed.values()))
            assert expected.shape[1] == DIM
            np.testing.assert_array_equal(self.store.read(list(self.committed)), expected)
        witnessed = self.witnessed()
        assert witnessed.keys() == self.committed.keys()
        for key, vector in self.committed.items():
            np.testing.assert_array_equal(witnessed[key], vector)
        assert temporary_files(self.folder) == []


def ending(function: Callable[..., object], left: list[int]) -> Callable[..., object]:
    def call(*args: object, **options: object) -> object:
        if not left[0]:
            os._exit(0)
        left[0] -= 1
        return function(*args, **options)

    return call


@pytest.mark.slow
@pytest.mark.parametrize("examples", [25, pytest.param(1500, marks=pytest.mark.soak)])
def test_any_sequence_of_operations_agrees_with_a_dictionary(examples: int) -> None:
    bounded = settings(max_examples=examples, stateful_step_count=20, deadline=None, derandomize=True, database=None)
    run_state_machine_as_test(StoreMachine, settings=bounded)
