"""Files that a cache commits enter, and are put at a URL too; those that others put there leave into the cache."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

from featcache.errors import CacheError, CacheWriteError, FeatcacheError
from featcache.sources.addresses import named, scheme
from featcache.sources.remote import file_system
from featcache.store.files import TEMPORARY_PREFIX, read_bounded, write_atomic


class Share:
    """A folder on any file system of fsspec, laid out as a cache, where computers that share nothing else meet.

    What lies there is never changed, and names are unique, so no lock is needed: each puts its own files and fetches
    those it has not fetched before. Nothing is deleted there. Raises `CacheError`, and `DatasetError` where the package
    for the scheme is missing.
    """

    def __init__(self, url: str, folder: Path) -> None:
        place = named(url)
        self.url = place if scheme(place) else f"file://{place}"
        self._folder = folder
        self._fs, self._root = file_system(place) if scheme(place) else _here(place)
        with self._explained("use", "", CacheWriteError):
            self._fs.makedirs(self._root, exist_ok=True)

    def put(self, folder: str, name: str, data: bytes) -> None:
        """Put a file, whole or not at all."""
        with self._explained("write", f"{folder}/{name}", CacheWriteError):
            above = f"{self._root}/{folder}"
            self._fs.makedirs(above, exist_ok=True)
            temporary = f"{above}/{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
            self._fs.pipe_file(temporary, data)
            self._fs.mv(temporary, f"{above}/{name}")
        self._note(folder, {name})

    def fetch(self, folder: str, pattern: str) -> int:
        """Fetch the files of a folder that were not fetched before, and return how many."""
        with self._explained("list", folder):
            self._fs.invalidate_cache()
            there = {Path(path).name: path for path in self._fs.glob(f"{self._root}/{folder}/{pattern}")}
        new = sorted(set(there) - self._had(folder))
        for name in new:
            if not (self._folder / folder / name).exists():
                with self._explained("read", f"{folder}/{name}"):
                    data: bytes = self._fs.cat_file(there[name])
                write_atomic(self._folder / folder / name, data, folders=2)
        self._note(folder, set(new))
        return len(new)

    def _had(self, folder: str) -> set[str]:
        """Return the files that were put or fetched: they may have been merged since, and are not wanted again."""
        known = self._known(folder)
        return set(json.loads(read_bounded(known))) if known.exists() else set()

    def _note(self, folder: str, names: set[str]) -> None:
        if names:
            write_atomic(self._known(folder), json.dumps(sorted(self._had(folder) | names)).encode())

    def _known(self, folder: str) -> Path:
        digest = hashlib.sha256(f"{self.url}/{folder}".encode()).hexdigest()[:16]
        return self._folder / "shares" / f"{digest}.json"

    @contextmanager
    def _explained(self, what: str, name: str, kind: type[CacheError] = CacheError) -> Iterator[None]:
        try:
            yield
        except FeatcacheError:
            raise
        except Exception as error:  # each file system has errors of its own
            said: Any = shorten(f"{type(error).__name__}: {error}", 300)
            raise kind(
                f"cannot {what} {self.url}/{name} ({said}): check the place, and what you may do there"
            ) from error


def _here(folder: str) -> tuple[Any, str]:
    from fsspec import filesystem

    return filesystem("file"), folder
