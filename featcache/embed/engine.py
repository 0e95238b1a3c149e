"""Nothing enters; what every engine offers, and what an engine needs of a cache, leave."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from featcache.decode import Pixels
from featcache.records import FloatArray

ENGINES = ("auto", "torch", "onnx")

WHOLE_BATCH_FACTOR = 4
"""How much more memory a batch takes than the widest layer's input and output, with a margin for other layers."""


class Engine(Protocol):
    """Runs a frozen network over batches; `lanes` batches may be given to `embed` at once, by a thread each."""

    name: str
    device: str
    why: str
    lanes: int
    batch_size: int

    def embed(self, pixels: Pixels) -> FloatArray:
        """Return the vectors (n, d), float32, of uint8 pictures (n, crop, crop, 3), in their order.

        A picture's vector does not depend on the others beyond 1e-4 relative; it may hold values that are not finite.
        Raises `EngineMemoryError` where the batch does not fit into memory.
        """
        ...


class Shelf(Protocol):
    """Keeps exported networks by the fingerprint of what they compute."""

    def find(self, fingerprint: str) -> Path | None:
        """Return the file kept for a fingerprint, whole and unchanged, or `None`."""
        ...

    def read(self, fingerprint: str) -> bytes | None:
        """Return the bytes of that file, the same that were checked, or `None`."""
        ...

    def keep(self, fingerprint: str, network: bytes) -> Path:
        """Keep a file for a fingerprint, and return its path."""
        ...


def batch_that_fits(layer_bytes: int, lanes: int, most: int, memory: int) -> int:
    """Return how many pictures a batch may have, 1 to `most`, so that `lanes` batches take half of `memory` at most.

    `layer_bytes` is what the widest layer reads and writes for one picture.
    """
    room = memory // 2 // (WHOLE_BATCH_FACTOR * lanes * max(layer_bytes, 1))
    return int(max(1, min(most, room)))


def batch_that_keeps_busy(pictures: int, lanes: int, most: int) -> int:
    """Return how many pictures a batch may have, 1 to `most`, so that each of `lanes` gets one of a few `pictures`."""
    return max(1, min(most, -(-pictures // lanes)))


def available_memory() -> int:
    """Return the bytes that a process may still take: those free on the machine, or in its control group if fewer."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    meminfo, group = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
    if meminfo.exists():
        lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
        found = int(lines["MemAvailable"].split()[0]) * 1024
    try:
        limit = (group / "memory.max").read_text().strip()
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / "memory.current").read_text()) - int(stat["inactive_file"])  # files read, and given up
    except (OSError, ValueError, KeyError):
        return found
    return found if limit == "max" else max(0, min(found, int(limit) - used))
