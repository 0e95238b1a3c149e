"""A cache folder enters; its feature stores, its catalog and its other files leave. Only this package writes there."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from featcache.errors import CacheError, CacheVersionError, CacheWriteError
from featcache.records import FeatureSpec
from featcache.store.catalog import Catalog, Row, Run
from featcache.store.features import FeatureStore, FeatureWriter
from featcache.store.files import remove_abandoned, write_atomic

__all__ = ["Cache", "Catalog", "FeatureStore", "FeatureWriter", "Row", "Run"]

FORMAT_VERSION = 1
COMPACT_AT = 32
"""An extraction that leaves at least this many segments merges the small ones."""


_MARKS = {
    ".gitignore": b"*\n!.gitignore\n",
    "CACHEDIR.TAG": b"Signature: 8a477f597d28d172789f06886806bc55\n# A featcache cache.\n",
}
_OWN = {"segments", "bad", "models", "runs", "demo", "catalog.sqlite", *_MARKS}


class Cache:
    """A cache folder, made on first use; opening it removes temporary files that nobody holds.

    Raises `CacheError` where the folder is something else, of another version, or cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder).absolute()
        marker = self.folder / "format.json"
        try:
            if marker.exists():
                _check_version(marker)
            else:
                _refuse_foreign(self.folder)
                self.put("format.json", json.dumps({"format": "featcache", "version": FORMAT_VERSION}).encode())
            for name, content in _MARKS.items():
                if not (self.folder / name).exists():
                    self.put(name, content)
            remove_abandoned(self.folder)
        except OSError as error:
            if isinstance(error, CacheWriteError):
                raise
            raise CacheError(f"cannot use the cache folder {self.folder}: {error.strerror}") from error
        self.catalog = Catalog(self.folder / "catalog.sqlite")

    def __enter__(self) -> Cache:
        """Return the cache itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the catalog."""
        self.catalog.close()

    def features(self, spec: FeatureSpec) -> FeatureStore:
        """Open the vectors of `spec`, made on first use, with the whole spec beside them in `spec.json`."""
        folder = self._segments(spec.fingerprint)
        note = folder / "spec.json"
        if not note.exists():
            content = {"fingerprint": spec.fingerprint, "spec": asdict(spec)}
            write_atomic(note, json.dumps(content, indent=2).encode())
        return FeatureStore(folder, self.folder / "bad", spec.fingerprint)

    def spec(self, fingerprint: str) -> FeatureSpec:
        """Return the spec that was kept beside the vectors of a fingerprint; raises `CacheError`."""
        note = self._segments(fingerprint) / "spec.json"
        try:
            spec = FeatureSpec.from_json(json.dumps(json.loads(note.read_bytes())["spec"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CacheError(f"{note} is missing or broken: run `featcache extract` again") from error
        if spec.fingerprint != fingerprint:
            raise CacheError(f"{note} is not the spec of {fingerprint}: run `featcache extract` again")
        return spec

    def put(self, name: str, data: bytes) -> Path:
        """Write one file of the cache, whole or not at all, and return its path."""
        path = self.folder / name
        write_atomic(path, data)
        return path

    def _segments(self, fingerprint: str) -> Path:
        return self.folder / "segments" / fingerprint[:16]


def _check_version(marker: Path) -> None:
    try:
        content: dict[str, Any] = json.loads(marker.read_bytes())
        version = content["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise CacheError(f"{marker} is broken: remove it, and the next command writes it anew") from error
    if version != FORMAT_VERSION:
        raise CacheVersionError(
            f"{marker.parent} is a cache of format {version}, this featcache reads {FORMAT_VERSION}: "
            "use the featcache that wrote it, or another --cache"
        )


def _refuse_foreign(folder: Path) -> None:
    if not folder.exists():
        return
    others = sorted(p.name for p in folder.iterdir() if p.name not in _OWN and not p.name.startswith("."))
    if others:
        raise CacheError(f"{folder} is no featcache cache and not empty (it holds {others[0]}): name another --cache")
