"""Files that a cache commits enter, and are put at a URL too; those that others put there leave into the cache."""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

from featcache.errors import CacheError, CacheWriteError, FeatcacheError
from featcache.sources.addresses import named, scheme
from featcache.sources.remote import file_system
from featcache.store.files import TEMPORARY_PREFIX, UNREADABLE, read_bounded, write_atomic

MOST_BYTES = 2**32
"""No file that a cache shares is larger: a million vectors of 1,024 numbers."""

_logger = logging.getLogger(__name__)


class _NoFileError(Exception):
    """What others put into a share is no file, or none that a cache would write."""


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
        self._is_here = scheme(place) is None
        self._fs, self._root = _here(place) if self._is_here else file_system(place)
        with self._explained("use", "", CacheWriteError):
            self._fs.makedirs(self._root, exist_ok=True)

    def put(self, folder: str, name: str, data: bytes) -> None:
        """Put a file, whole or not at all."""
        with self._explained("write", f"{folder}/{name}", CacheWriteError):
            self._check_place(folder)
            above = f"{self._root}/{folder}"
            self._fs.makedirs(above, exist_ok=True)
            temporary = f"{above}/{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
            self._fs.pipe_file(temporary, data)
            self._fs.mv(temporary, f"{above}/{name}")
        self._note(folder, {name})

    def fetch(self, folder: str, pattern: str) -> int:
        """Fetch the files of a folder that were not fetched before, and return how many."""
        with self._explained("list", folder):
            self._check_place(folder)
            self._fs.invalidate_cache()
            there = {Path(path).name: path for path in self._fs.glob(f"{self._root}/{folder}/{pattern}")}
        left_out = 0
        new = sorted(set(there) - self._had(folder))
        for name in new:
            if not (self._folder / folder / name).exists():
                with self._explained("read", f"{folder}/{name}"):
                    try:
                        data = self._read(there[name])
                    except _NoFileError as error:
                        _logger.warning("%s/%s/%s is left out: %s", self.url, folder, name, error)
                        left_out += 1
                        continue
                write_atomic(self._folder / folder / name, data, folders=2)
        self._note(folder, set(new))
        return len(new) - left_out

    def _read(self, path: str) -> bytes:
        """Return the bytes of a file; raises `_NoFileError` for what is none, or no file that a cache would write."""
        if self._is_here:
            try:
                return read_bounded(Path(path), MOST_BYTES)
            except OSError as error:
                if error.errno in UNREADABLE:
                    raise _NoFileError(error.strerror) from error
                raise
        size = self._fs.info(path)["size"]
        if not isinstance(size, int) or size > MOST_BYTES:
            raise _NoFileError(f"it has {size} bytes, and at most {MOST_BYTES:,} are fetched")
        data: bytes = self._fs.cat_file(path, start=0, end=size)
        return data

    def _check_place(self, folder: str) -> None:
        """Raise `OSError` where a folder below a share here is a link: it leads to somebody else's files."""
        places = [Path(self._root, *Path(folder).parts[:n]) for n in range(1, len(Path(folder).parts) + 1)]
        for place in places if self._is_here else ():
            if place.is_symlink():
                raise OSError(f"{place} is a link, and nothing is read or written through one")

    def _had(self, folder: str) -> set[str]:
        """Return the files that were put or fetched: they may have been merged since, and are not wanted again."""
        known = self._known(folder)
        try:
            names = json.loads(read_bounded(known))
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise ValueError("it is no list of names")
        except FileNotFoundError:
            return set()
        except (OSError, ValueError, RecursionError) as error:
            _logger.warning("%s cannot be read (%s): what is at %s is fetched again", known, error, self.url)
            return set()
        return set(names)

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
