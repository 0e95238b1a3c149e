"""An exported network or an index enters under a digest of what it is of; its file leaves, if it is still whole."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
from collections.abc import Collection
from itertools import chain
from pathlib import Path

from featcache.store.files import kept_in, move, open_bounded, read_bounded, remove, write_atomic

_logger = logging.getLogger(__name__)


class Networks:
    """Exported networks, `networks/<fingerprint[:16]>-<sha256[:16]>.onnx`; one that is damaged is moved to `bad`."""

    suffix = ".onnx"
    what = "the exported network"
    most_bytes = 2**31
    """No file of protocol buffers is larger."""

    def __init__(self, folder: Path, bad: Path) -> None:
        self._folder = folder
        self._bad = bad
        self._whole: set[Path] = set()

    def find(self, fingerprint: str) -> Path | None:
        """Return the file kept for a fingerprint, whole and unchanged, or `None`."""
        for path in sorted(self._folder.glob(f"{fingerprint[:16]}-*{self.suffix}")):
            if path in self._whole:
                return path
            try:
                with open_bounded(path, self.most_bytes) as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()[:16]
            except OSError as error:
                if error.errno == errno.EFBIG:
                    self.put_aside(path, f"is none: {error.strerror}")
                continue
            if path.stem.endswith(f"-{found}"):
                self._whole.add(path)
                return path
            self.put_aside(path, "is damaged")
        return None

    def put_aside(self, path: Path, why: str) -> None:
        """Move a file that cannot be used to `bad`, and say so; raises `CacheWriteError`."""
        kept = kept_in(self._bad, path.name)
        move(path, kept)
        self._whole.discard(path)
        _logger.warning("%s %s %s; moved to %s", self.what, path, why, kept)

    def read(self, fingerprint: str) -> bytes | None:
        """Return the bytes kept for a fingerprint, whole and unchanged, or `None`: those that were checked."""
        path = self.find(fingerprint)
        with contextlib.suppress(FileNotFoundError):  # another process has made a newer one
            data = read_bounded(path, self.most_bytes) if path else None
            if path is None or data is None or path.stem.endswith(f"-{_digest(data)}"):
                return data
            self._whole.discard(path)
            return self.read(fingerprint)
        return None

    def keep(self, fingerprint: str, network: bytes | memoryview) -> Path:
        """Keep a file for a fingerprint, and return its path; raises `CacheWriteError`."""
        path = self._folder / f"{fingerprint[:16]}-{_digest(network)}{self.suffix}"
        write_atomic(path, network)
        return path


class Indexes(Networks):
    """Indexes of the vectors of datasets, `indexes/<name>-<sha256[:16]>.safetensors`, kept as networks are."""

    suffix = ".safetensors"
    old_suffix = ".faiss"
    what = "the index"
    most_bytes = 2**33
    """Of twenty million vectors of 2,048 values it has 6 GB."""

    @staticmethod
    def name(root: str, fingerprint: str, run: int) -> str:
        """Return the name of the index of a dataset as the run with this number saved it: 8 digits of which, 8 when."""
        return f"{_digest(os.fsencode(root) + fingerprint.encode())[:8]}{run:08x}"

    def put_aside_all(self, name: str, why: str) -> None:
        """Move the indexes with this name to `bad`, and say so; raises `CacheWriteError`."""
        for path in self._files(f"{name}-*"):
            self.put_aside(path, why)

    def replace(self, name: str, index: bytes) -> None:
        """Keep an index, and delete older ones of the same vectors; raises `CacheWriteError`."""
        kept = self.keep(name, index)
        for path in self._files(f"{name[:8]}*"):
            if path != kept:
                remove(path)

    def besides(self, names: Collection[str]) -> list[Path]:
        """Return the files of all indexes but those with these names."""
        return sorted(path for path in self._files("*") if path.suffix != self.suffix or path.name[:16] not in names)

    def _files(self, pattern: str) -> list[Path]:
        found = (self._folder.glob(pattern + suffix) for suffix in (self.suffix, self.old_suffix))
        return [path for path in chain.from_iterable(found) if path.is_file()]


def _digest(network: bytes | memoryview) -> str:
    return hashlib.sha256(network).hexdigest()[:16]
