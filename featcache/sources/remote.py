"""A URL enters; what is below it, or the bytes there, leave by way of fsspec."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from math import isfinite
from textwrap import shorten
from typing import Any, BinaryIO, TypeGuard, cast

from featcache.errors import DatasetError, DatasetNotFoundError, FeatcacheError, PictureError
from featcache.records import FileStat
from featcache.sources import local
from featcache.sources.addresses import CHAIN, SCHEMES, scheme
from featcache.sources.keys import content_key
from featcache.sources.local import CHANGED, check_size, in_64_bits

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "hdfs": "hdfs", "http": "http", "https": "http"}
_WEB = ("http", "https")
_MARKS = ("ETag", "etag", "md5Hash", "checksum", "crc32c", "version_id", "generation", "inode")
_TIMES = ("mtime", "LastModified", "last_modified", "modified", "updated", "created")

_NO_PARTS = ("range requests", "Cannot seek streaming")
"""What fsspec says where a server sends a file only from its beginning, or does not say how long it is."""

READ_SECONDS = 300
LIST_SECONDS = 3600
"""How long a file system may take to give a file, and to list a folder."""

PIECE_BYTES = 2**20

_RANGE = re.compile(r"bytes=(\d+)-(\d+)")

_used: dict[Any, None] = {}


def read(url: str) -> tuple[bytes, bytes, FileStat | None]:
    """Read an object: its bytes, its content key (sha256) and its stat, if any; raises `PictureError`."""
    try:
        fs, path = file_system(url)
        with explained(url):
            info = _ask(fs, "info", path)
            check_size(int(info.get("size") or 0))
            data: bytes = _body(fs, path) if scheme(url) in _WEB else _ask(fs, "cat_file", path)
            check_size(len(data))
    except DatasetError as error:
        raise PictureError(str(error)) from error
    if info.get("size") not in (None, len(data)):
        raise PictureError(CHANGED)
    return data, content_key(data), stat_of(info)


def _body(fs: Any, url: str) -> bytes:
    """Read what a web server sends, which may be more than it said, or have no end."""
    data = bytearray()
    # Without blocks, and with a size that nobody uses, it is one request.
    with fs.open(url, "rb", block_size=0, size=1) as file:
        while piece := file.read(PIECE_BYTES):
            data += piece
            check_size(len(data))
    return bytes(data)


def _ask(fs: Any, what: str, path: str, seconds: float = READ_SECONDS, **details: Any) -> Any:
    """Call a file system, which has to answer in time; what is not asynchronous has time limits of its own."""
    if not getattr(fs, "async_impl", False):
        return getattr(fs, what)(path, **details)
    from fsspec.asyn import sync

    return sync(fs.loop, getattr(fs, f"_{what}"), path, timeout=seconds, **details)


def stat(url: str) -> FileStat | None:
    """Return what tells an unchanged object, `None` where nothing does; raises `DatasetError`."""
    fs, path = file_system(url)
    with explained(url):
        return stat_of(_ask(fs, "info", path))


def is_folder(url: str) -> bool:
    """Tell whether there is a folder; raises `DatasetError` where there is nothing, or it cannot be asked."""
    fs, path = file_system(url)
    with explained(url):
        return bool(_ask(fs, "info", path)["type"] == "directory")


def listing(url: str) -> dict[str, FileStat | None]:
    """Return all files below a folder, by their paths relative to it, with what tells unchanged ones."""
    fs, path = file_system(url)
    with explained(url):
        found: Mapping[str, Mapping[str, Any]] = _ask(fs, "find", path, LIST_SECONDS, detail=True)
    skipped = len(str(path).rstrip("/")) + 1
    return {name[skipped:]: stat_of(info) for name, info in found.items() if not name.endswith("/")}


def opened(url: str) -> BinaryIO:
    """Open an object for reading at any place; raises `DatasetError`."""
    fs, path = file_system(url)
    with explained(url):
        return cast(BinaryIO, fs.open(path, "rb"))


def file_system(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the path on it; raises `DatasetError` where its package is missing."""
    kind = scheme(url) or ""
    if kind not in SCHEMES:
        raise DatasetError(f"{url}: {kind}:// is not read: use a path, or one of {', '.join(SCHEMES)}")
    if CHAIN in url:
        raise DatasetError(
            f"{url}: {CHAIN!r} stands in addresses of parts only, which begin with zip://, tar:// or row://"
        )
    try:
        from fsspec.core import url_to_fs

        fs, path = url_to_fs(url, **(_web_options() if kind in _WEB else {}))
    except ImportError as error:
        package = f"'featcache[{_EXTRAS[kind]}]'"
        raise DatasetError(f"{url} needs a package that is not installed: pip install {package}") from error
    except Exception as error:
        raise DatasetError(f"cannot use {url}: {_said(error)}") from error
    _used[fs] = None
    return fs, str(path)


class _RedirectError(Exception):
    """A web server that leads to another one, which nobody named."""


@cache
def _web_options() -> dict[str, Any]:
    """Return how the web is asked: no answer may take for ever, and none leads to a server that was not named."""
    import aiohttp

    async def check(_session: Any, _context: Any, asked: Any) -> None:
        said = asked.response.headers
        leads_to = said.get("Location") or said.get("URI") or ""  # aiohttp follows either
        place, before = asked.url.join(URL(leads_to)), asked.url
        is_secured = (before.scheme, before.port, place.scheme, place.port) == ("http", 80, "https", 443)
        if place.host != before.host or not (is_secured or place.origin() == before.origin()):
            raise _RedirectError(f"it leads to {leads_to}, on another server: name that address if it is meant")

    from yarl import URL

    class Bounded(aiohttp.ClientResponse):
        """An answer that is read to what was asked for: fsspec takes all that a server sends into memory."""

        async def read(self) -> bytes:
            found = _RANGE.fullmatch(self.request_info.headers.get("Range", ""))
            most = int(found[2]) - int(found[1]) + 1 if found else local.MAX_BYTES
            data = bytearray()
            async for piece in self.content.iter_chunked(PIECE_BYTES):
                data += piece
                if len(data) > most:
                    self.close()
                    raise OSError(f"the server sends more than the {most:,} bytes that were asked for")
            return bytes(data)

    traces = aiohttp.TraceConfig()
    traces.on_request_redirect.append(check)
    timeout = aiohttp.ClientTimeout(total=READ_SECONDS, sock_connect=30)
    return {"client_kwargs": {"timeout": timeout, "trace_configs": [traces], "response_class": Bounded}}


def forget() -> None:
    """Let all file systems that were used forget their listings."""
    for fs in list(_used):
        fs.invalidate_cache()


def check_parts(url: str, error: Exception) -> None:
    """Raise `DatasetError` where it is the server that gives no part of a file alone, whatever else was made of it."""
    if any(words in str(error) for words in _NO_PARTS):
        raise DatasetError(
            f"{url} cannot be read where it lies, its server gives no parts of a file (no range requests, or it packs "
            "what it sends): download the file first, and name it then"
        ) from error


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn whatever a file system raises into a `DatasetError` that names the URL."""
    try:
        yield
    except FeatcacheError:
        raise
    except FileNotFoundError as error:
        cause = error.__cause__
        if isinstance(cause, _RedirectError):
            raise DatasetError(f"cannot read {url}: {cause}") from error
        if _is_unanswered(cause):  # of the web fsspec says the same whatever went wrong
            raise DatasetError(f"cannot read {url}: {_said(cause)}") from error
        raise DatasetNotFoundError(f"no such folder, manifest or picture: {url}") from error
    except Exception as error:  # each file system has errors of its own
        check_parts(url, error)
        raise DatasetError(f"cannot read {url}: {_said(error)}") from error


def _is_unanswered(cause: BaseException | None) -> TypeGuard[Exception]:
    """Tell whether a server was not reached, or answered something else than that there is no such thing."""
    is_refused = getattr(cause, "status", 404) not in (404, 410)
    return is_refused or (isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError))


def stat_of(info: Mapping[str, Any]) -> FileStat | None:
    """Return what tells an unchanged object, of what a file system says of it."""
    marks = [str(info[name]) for name in (*_MARKS, *_TIMES) if info.get(name) is not None]
    if not marks or info.get("size") is None:
        return None
    changed = next((info[name] for name in _TIMES if info.get(name) is not None), None)
    seconds = changed.timestamp() if isinstance(changed, datetime) else changed
    mark = int.from_bytes(hashlib.sha256("\n".join(marks).encode()).digest()[:7])
    if not isinstance(seconds, int | float) or not isfinite(seconds):
        seconds = 0
    return FileStat(in_64_bits(int(info["size"])), in_64_bits(int(seconds * 1e9)), mark)


def _said(error: Exception) -> str:
    said = str(error) if isinstance(error, _RedirectError) else f"{type(error).__name__}: {error}"
    return shorten(said, 300)  # libhdfs names every place where it looked
