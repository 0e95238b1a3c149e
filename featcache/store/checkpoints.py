"""The state of a training that is under way enters under a digest of all that decides it, and leaves to go on from."""

from __future__ import annotations

from pathlib import Path

from featcache.store.files import remove, write_atomic


class Checkpoint:
    """One file `trainings/<digest>.pt`, written anew after each epoch."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> bytes | None:
        """Return the state that was kept last, or `None`."""
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return None

    def save(self, data: bytes) -> None:
        """Keep a state, whole or not at all; raises `CacheWriteError`."""
        write_atomic(self.path, data)

    def drop(self) -> None:
        """Forget the state: the training is complete."""
        remove(self.path)
