"""Paths enter; pictures, read, hashed and decoded on all cores ahead of the network, leave in the same order."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from featcache.decode import Pixels, decode_and_look
from featcache.errors import PictureError
from featcache.records import Access, FeatureSpec, FileStat, Look
from featcache.sources.threads import reading_threads
from featcache.store import FeatureStore

READ_AHEAD = 8
"""How many more files are read at once from a slow disk than there are cores to decode them."""

SLOW_READ = 0.005
"""From so many seconds a file on a disk is slow; on a fast one more threads would only hinder each other."""

WINDOW = 64
"""How many decoded views a core may be ahead of the network."""


@dataclass(frozen=True)
class Picture:
    """One file as read: without a key it could not be read, with key and reason not decoded.

    `views` holds the number of each view whose vector is wanted, with its pixels, once for each page that is taken.
    """

    path: str
    key: bytes | None = None
    stat: FileStat | None = None
    views: tuple[tuple[int, Pixels], ...] = ()
    reason: str | None = None
    seconds: tuple[float, float] = (0.0, 0.0)
    read_ns: int = 0
    look: Look | None = None


class Reader:
    """Reads files and decodes the views whose vectors the stores lack, once for several files with one content."""

    def __init__(self, stores: Sequence[FeatureStore], specs: Sequence[FeatureSpec], access: Access) -> None:
        from joblib import cpu_count

        self.read_seconds = 0.0
        self.decode_seconds = 0.0
        self._stores = stores
        self._specs = specs
        self._access = access
        self._claimed: set[bytes] = set()
        self._lock = threading.Lock()
        self._cores: int = cpu_count()
        self._decoding = threading.BoundedSemaphore(self._cores)

    def read_all(self, paths: Sequence[str]) -> Generator[Picture]:
        """Yield the pictures in order; the first few tell whether the disk is slow."""
        first = 4 * self._cores
        yield from self._read_in_threads(paths[:first], self._cores)
        is_slow = self.read_seconds > SLOW_READ * first
        yield from self._read_in_threads(paths[first:], self._cores + (READ_AHEAD if is_slow else 0))

    def _read_in_threads(self, paths: Sequence[str], threads: int) -> Generator[Picture]:
        waiting: deque[Future[Picture]] = deque()
        window = max(1, WINDOW * self._cores // len(self._specs))
        with reading_threads(threads) as executor:
            for path in paths:
                waiting.append(executor.submit(self._load, path))
                if len(waiting) >= window:
                    yield self._account(waiting.popleft().result())
            while waiting:
                yield self._account(waiting.popleft().result())

    def _account(self, picture: Picture) -> Picture:
        self.read_seconds += picture.seconds[0]
        self.decode_seconds += picture.seconds[1]
        return picture

    def _load(self, path: str) -> Picture:
        start, read_ns = time.perf_counter(), time.time_ns()
        try:
            data, key, stat = self._access.read(path)
        except PictureError as error:
            return Picture(path, reason=str(error), seconds=(time.perf_counter() - start, 0.0))
        took = time.perf_counter() - start
        wanted = self._claim(key)
        if not wanted:
            return Picture(path, key, stat, seconds=(took, 0.0), read_ns=read_ns)
        with self._decoding:
            start = time.perf_counter()
            found: tuple[tuple[int, Pixels], ...] = ()
            reason = look = None
            try:
                pages, look = self._decode(data, wanted)
                found = tuple(entry for pixels in pages for entry in zip(wanted, pixels, strict=True))
            except PictureError as error:
                reason = str(error)
            return Picture(path, key, stat, found, reason, (took, time.perf_counter() - start), read_ns, look)

    def _decode(self, data: bytes, wanted: Sequence[int]) -> tuple[list[list[Pixels]], Look]:
        spec = self._specs[0]  # they differ in the view only
        views = [self._specs[number].view for number in wanted]
        return decode_and_look(data, spec.preprocess, views, draft=spec.decoding is not None, reading=spec.reading)

    def _claim(self, key: bytes) -> list[int]:
        """Return the numbers of the views to make of a content, none where another file with it came first."""
        with self._lock:
            if key in self._claimed:
                return []
            self._claimed.add(key)
        return [number for number, store in enumerate(self._stores) if not store.contains([key])[0]]
