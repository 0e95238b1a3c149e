"""The address of a container enters; the container, opened once for all parts that are read from it, leaves."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from io import BufferedReader, BytesIO
from typing import BinaryIO, Generic, TypeVar

from featcache.errors import DatasetError, DatasetNotFoundError, PictureError
from featcache.records import FileStat
from featcache.sources import remote
from featcache.sources.addresses import is_remote
from featcache.sources.local import FRESH_NS, open_regular, regular

MOST_OPEN = 32
"""How many containers are kept open; of large ones their lists of names stay in memory."""


LATELY = 5.0
"""Seconds for which what a remote file system said of a container is believed: each of its parts asks."""

Kind = TypeVar("Kind")


class Bytes:
    """A file here or elsewhere, for reading at any place; several threads may read at once."""

    def __init__(self, address: str) -> None:
        self._is_here = not is_remote(address)
        self._lock = threading.Lock()
        self._file = opened(address)

    def at(self, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset` on, fewer at the end."""
        if self._is_here:
            return os.pread(self._file.fileno(), size, offset)
        with self._lock:
            self._file.seek(offset)
            return self._file.read(size)


class Opened(Generic[Kind]):
    """The containers of one kind that are open, the last used ones; one that has changed is opened again."""

    def __init__(self, make: Callable[[str], Kind]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._open: OrderedDict[str, tuple[FileStat | None, bool, Kind]] = OrderedDict()

    def get(self, address: str) -> tuple[Kind, FileStat | None]:
        """Return a container and the stat it had when it was opened; raises `DatasetError`."""
        now = stat(address)
        with self._lock:
            known = self._open.get(address)
            # As long as it is fresh, its stat may not tell a change of what it holds.
            is_settled = now is None or time.time_ns() - now.mtime_ns > FRESH_NS
            if known is None or known[:2] != (now, is_settled):
                known = self._open[address] = (now, is_settled, self._make(address))
            self._open.move_to_end(address)
            while len(self._open) > MOST_OPEN:
                self._open.popitem(last=False)  # closed when the last thread that reads from it is done
            return known[2], now

    def forget(self) -> None:
        """Open all containers again when they are asked for."""
        with self._lock:
            self._open.clear()


def opened(address: str) -> BinaryIO:
    """Open a file here or elsewhere for reading at any place; raises `DatasetError`."""
    if is_remote(address):
        return remote.opened(address)
    with _explained(address):
        file, stat = open_regular(address)
        return BufferedReader(file) if stat.size else BytesIO()  # some of /proc say 0, and never end


def stat(address: str) -> FileStat | None:
    """Return what tells an unchanged container, of a remote one as seen lately; raises `DatasetError`."""
    if is_remote(address):
        return _seen_lately(address, int(time.monotonic() / LATELY))
    with _explained(address):
        return regular(os.stat(address))


def forget() -> None:
    """Ask remote file systems again."""
    _seen_lately.cache_clear()


@contextmanager
def _explained(address: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise DatasetNotFoundError(f"no such folder, manifest or picture: {address}") from error
    except PermissionError as error:
        raise DatasetError(f"not allowed to read {address}: check its permissions") from error
    except (OSError, PictureError) as error:
        raise DatasetError(f"cannot read {address}: {getattr(error, 'strerror', None) or error}") from error


@lru_cache(maxsize=MOST_OPEN)
def _seen_lately(url: str, _period: int) -> FileStat | None:
    return remote.stat(url)
