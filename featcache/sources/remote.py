"""A URL enters; what is below it, or the bytes there, leave by way of fsspec."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from textwrap import shorten
from typing import Any, BinaryIO, cast

from featcache.errors import DatasetError, DatasetNotFoundError, FeatcacheError, PictureError
from featcache.records import FileStat
from featcache.sources.addresses import scheme
from featcache.sources.local import CHANGED, check_size

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "hdfs": "hdfs"}
_MARKS = ("ETag", "etag", "md5Hash", "checksum", "crc32c", "version_id", "generation", "inode")
_TIMES = ("mtime", "LastModified", "last_modified", "modified", "updated", "created")

_used: dict[Any, None] = {}


def read(url: str) -> tuple[bytes, bytes, FileStat | None]:
    """Read an object: its bytes, its content key (sha256) and its stat, if any; raises `PictureError`."""
    try:
        fs, path = file_system(url)
        with explained(url):
            info = fs.info(path)
            check_size(int(info.get("size") or 0))
            data: bytes = fs.cat_file(path)
    except DatasetError as error:
        raise PictureError(str(error)) from error
    if info.get("size") not in (None, len(data)):
        raise PictureError(CHANGED)
    return data, hashlib.sha256(data).digest(), stat_of(info)


def stat(url: str) -> FileStat | None:
    """Return what tells an unchanged object, `None` where nothing does; raises `DatasetError`."""
    fs, path = file_system(url)
    with explained(url):
        return stat_of(fs.info(path))


def is_folder(url: str) -> bool:
    """Tell whether there is a folder; raises `DatasetError` where there is nothing, or it cannot be asked."""
    fs, path = file_system(url)
    with explained(url):
        return bool(fs.info(path)["type"] == "directory")


def listing(url: str) -> dict[str, FileStat | None]:
    """Return all files below a folder, by their paths relative to it, with what tells unchanged ones."""
    fs, path = file_system(url)
    with explained(url):
        found: Mapping[str, Mapping[str, Any]] = fs.find(path, detail=True)
    skipped = len(str(path).rstrip("/")) + 1
    return {name[skipped:]: stat_of(info) for name, info in found.items() if not name.endswith("/")}


def opened(url: str) -> BinaryIO:
    """Open an object for reading at any place; raises `DatasetError`."""
    fs, path = file_system(url)
    with explained(url):
        return cast(BinaryIO, fs.open(path, "rb"))


def file_system(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the path on it; raises `DatasetError` where its package is missing."""
    from fsspec.core import url_to_fs
    from fsspec.registry import known_implementations

    kind = scheme(url) or ""
    if kind not in known_implementations:
        raise DatasetError(f"{url}: unknown scheme {kind}://: use a path, or a scheme of fsspec such as s3, gs or hdfs")
    try:
        fs, path = url_to_fs(url)
    except ImportError as error:
        package = known_implementations[kind]["class"].split(".")[0]
        package = (error.name or kind) if package == "fsspec" else package
        wanted = f"'featcache[{_EXTRAS[kind]}]'" if kind in _EXTRAS else package
        raise DatasetError(f"{url} needs a package that is not installed: pip install {wanted}") from error
    except Exception as error:
        raise DatasetError(f"cannot use {url}: {_said(error)}") from error
    _used[fs] = None
    return fs, str(path)


def forget() -> None:
    """Let all file systems that were used forget their listings."""
    for fs in list(_used):
        fs.invalidate_cache()


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn whatever a file system raises into a `DatasetError` that names the URL."""
    try:
        yield
    except FeatcacheError:
        raise
    except FileNotFoundError as error:
        raise DatasetNotFoundError(f"no such folder, manifest or picture: {url}") from error
    except Exception as error:  # each file system has errors of its own
        raise DatasetError(f"cannot read {url}: {_said(error)}") from error


def stat_of(info: Mapping[str, Any]) -> FileStat | None:
    """Return what tells an unchanged object, of what a file system says of it."""
    marks = [str(info[name]) for name in (*_MARKS, *_TIMES) if info.get(name) is not None]
    if not marks or info.get("size") is None:
        return None
    changed = next((info[name] for name in _TIMES if info.get(name) is not None), None)
    seconds = changed.timestamp() if isinstance(changed, datetime) else changed
    mark = int.from_bytes(hashlib.sha256("\n".join(marks).encode()).digest()[:7])
    return FileStat(int(info["size"]), int(seconds * 1e9) if isinstance(seconds, int | float) else 0, mark)


def _said(error: Exception) -> str:
    return shorten(f"{type(error).__name__}: {error}", 300)  # libhdfs names every place where it looked
