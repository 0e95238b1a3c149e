"""A limit on memory enters; an error that says so leaves, before a library that would hang or abort for want of it."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

MB = 2**20
_NEEDS = {"numpy": 120, "scipy": 120, "torch": 700, "sklearn": 250, "onnxruntime": 150, "vl_convert": 400}
"""What each maps as it is loaded, in MB, with one thread and some room to work; numpy 2.4, scipy 1.17, torch 2.13."""

_PER_THREAD = {"numpy": 40, "scipy": 40}
"""Each brings an OpenBLAS, which takes a buffer and a stack a thread, and tries for ever where it gets none."""


class Room:
    """A finder of modules that finds none, and raises `MemoryError` where there is no room for a large one."""

    def __init__(self, limit: int) -> None:
        self._limit = limit

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        """Look at a module before it is loaded."""
        if name in _NEEDS:
            needed = (_NEEDS[name] + _PER_THREAD.get(name, 0) * (_threads() - 1)) * MB
            left = self._limit - int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            if left < needed:
                raise MemoryError(f"{name} needs {needed // MB:,} MB of addresses, {max(0, left) // MB:,} are left")


def watch_room() -> None:
    """Look out for room where `ulimit -v` says how much memory there is; without a limit nothing is asked."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and os.path.exists("/proc/self/statm"):
        sys.meta_path.insert(0, Room(limit))


def _threads() -> int:
    said = os.environ.get("OPENBLAS_NUM_THREADS") or os.environ.get("OMP_NUM_THREADS") or ""
    own = int(said) if said.isdecimal() and int(said) else len(os.sched_getaffinity(0))
    return min(own, len(os.sched_getaffinity(0)), 64)
