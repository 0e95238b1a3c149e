"""An exported network enters under the fingerprint of what it computes; its file leaves, if it is still whole."""

from __future__ import annotations

import hashlib
import logging
import time
from pathlib import Path

from featcache.store.files import move, write_atomic

_logger = logging.getLogger(__name__)


class Networks:
    """Exported networks, `networks/<fingerprint[:16]>-<sha256[:16]>.onnx`; one that is damaged is moved to `bad`."""

    def __init__(self, folder: Path, bad: Path) -> None:
        self._folder = folder
        self._bad = bad
        self._whole: set[Path] = set()

    def find(self, fingerprint: str) -> Path | None:
        """Return the file kept for a fingerprint, whole and unchanged, or `None`."""
        for path in sorted(self._folder.glob(f"{fingerprint[:16]}-*.onnx")):
            if path in self._whole:
                return path
            try:
                found = _digest(path.read_bytes())
            except OSError:
                continue
            if path.stem.endswith(f"-{found}"):
                self._whole.add(path)
                return path
            kept = self._bad / f"{path.stem}.{time.time_ns()}.onnx"
            move(path, kept)
            _logger.warning("the exported network %s is damaged; moved to %s", path, kept)
        return None

    def keep(self, fingerprint: str, network: bytes) -> Path:
        """Keep a file for a fingerprint, and return its path; raises `CacheWriteError`."""
        path = self._folder / f"{fingerprint[:16]}-{_digest(network)}.onnx"
        write_atomic(path, network)
        return path


def _digest(network: bytes) -> str:
    return hashlib.sha256(network).hexdigest()[:16]
