"""The state of a training that is under way enters under a digest of all that decides it, and leaves to go on from."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from featcache.errors import CacheError, refusal
from featcache.store.files import read_bounded, remove, write_atomic

_MARK = b"featcache training "


class Checkpoint:
    """One file `trainings/<digest>.pt`, written anew after each epoch: a line with the sha256 of the rest, and that."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> bytes | None:
        """Return the state that was kept last, or `None`; raises `CacheError` for one that is damaged."""
        try:
            data = read_bounded(self.path, sys.maxsize)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CacheError(f"{self.path} cannot be read ({refusal(error)}): remove it") from error
        if not data.startswith(_MARK):  # older ones begin with the state
            return data
        line, _, state = data.partition(b"\n")
        if line != _line(state):
            raise CacheError(f"{self.path} is damaged: remove it, and training begins anew")
        return state

    def save(self, data: bytes) -> None:
        """Keep a state, whole or not at all; raises `CacheWriteError`."""
        write_atomic(self.path, _line(data) + b"\n" + data)

    def drop(self) -> None:
        """Forget the state: the training is complete."""
        remove(self.path)


def _line(state: bytes) -> bytes:
    return _MARK + hashlib.sha256(state).hexdigest().encode()
