"""Random sequences of what users of the store do, against a dictionary."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from store_rows import DIM, SPEC, make_rows, temporary_files

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

    @rule()
    def verify(self) -> None:
        assert self.store.verify() == 0

    @invariant()
    def holds_what_was_committed_and_nothing_else(self) -> None:
        self.store.refresh()
        assert self.store.contains(KEYS).tolist() == [key in self.committed for key in KEYS]
        if self.committed:
            expected = np.array(list(self.committed.values()))
            assert expected.shape[1] == DIM
            np.testing.assert_array_equal(self.store.read(list(self.committed)), expected)
        assert temporary_files(self.folder) == []


def test_any_sequence_of_operations_agrees_with_a_dictionary() -> None:
    bounded = settings(max_examples=25, stateful_step_count=15, deadline=None, derandomize=True, database=None)
    run_state_machine_as_test(StoreMachine, settings=bounded)
