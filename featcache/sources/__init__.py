"""An address enters; the bytes behind it, their content key and what tells an unchanged file leave."""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import Any, NoReturn

from featcache.errors import DatasetError, PictureError
from featcache.records import Access, FileStat
from featcache.sources import containers, local, remote
from featcache.sources.addresses import CHAIN, GIVEN, container_of, is_remote, scheme, split_part
from featcache.sources.archives import TarArchive, ZipArchive
from featcache.sources.keys import content_key
from featcache.sources.local import FRESH_NS
from featcache.sources.tables import Table

__all__ = ["ACCESS", "CLOSED", "FRESH_NS", "archive", "exists", "file_stat", "look_again", "read", "table"]

_OPENED: dict[str, containers.Opened[Any]] = {
    "zip": containers.Opened(ZipArchive),
    "tar": containers.Opened(TarArchive),
    "row": containers.Opened(Table),
}


def read(address: str) -> tuple[bytes, bytes, FileStat | None]:
    """Read a picture: its bytes, its content key (32 bytes, sha256) and the stat that belongs to them, if any.

    Raises `PictureError` where it cannot be read, or changes under the reader.
    """
    kind = scheme(address)
    if kind is None:
        return local.read(address)
    if kind == GIVEN:
        raise PictureError("given in Python, and not kept: give it again")
    if kind not in _OPENED:
        return remote.read(address)
    kind, name, container = split_part(address)
    try:
        found, stat = _OPENED[kind].get(container)
        with remote.explained(container) if is_remote(container) else nullcontext():
            data: bytes | str = found.read(name)
        if isinstance(data, str):  # a file elsewhere, of which the stat of the container tells nothing
            return (*local.read(data)[:2], None)
        if containers.stat(container) != stat:
            raise PictureError(local.CHANGED)
    except DatasetError as error:
        raise PictureError(str(error)) from error
    return data, content_key(data), stat


def look_again() -> None:
    """Believe nothing any more that was seen of containers and remote file systems before."""
    remote.forget()
    containers.forget()
    for opened in _OPENED.values():
        opened.forget()


def file_stat(address: str) -> FileStat | None:
    """Return what tells an unchanged picture, of a part that of its container; `None` where nothing does.

    Raises `PictureError`.
    """
    if scheme(address) is None:
        return local.file_stat(address)
    if scheme(address) == GIVEN:
        return None
    try:
        return containers.stat(container_of(address))
    except DatasetError as error:
        raise PictureError(str(error)) from error


def exists(address: str) -> bool:
    """Tell whether a file or folder is there, of a part whether its container is; what is elsewhere is not asked for.

    What was given in Python is gone.
    """
    place = container_of(address)
    return is_remote(place) or (scheme(place) != GIVEN and os.path.exists(place))


def archive(address: str, encoding: str | None = None) -> ZipArchive | TarArchive:
    """Open a `.zip` or `.tar`, of which names that do not say theirs are in an `encoding`; raises `DatasetError`."""
    kind = "zip" if address.lower().endswith(".zip") else "tar"
    if encoding is not None:
        return (ZipArchive if kind == "zip" else TarArchive)(_nameable(address), encoding)
    found: ZipArchive | TarArchive = _OPENED[kind].get(_nameable(address))[0]
    return found


def table(address: str) -> Table:
    """Open a Parquet or Arrow file; raises `DatasetError`."""
    found: Table = _OPENED["row"].get(_nameable(address))[0]
    return found


def _nameable(container: str) -> str:
    if CHAIN in container:
        raise DatasetError(f"{container}: pictures in it would have addresses with {CHAIN!r} twice: rename it")
    return container


ACCESS = Access(read, file_stat)
"""How the pictures of an address are had, where the dataset does not say otherwise."""


def _closed(address: str) -> NoReturn:
    raise PictureError(f"{address} is a name in a file that was imported, and is not opened: extract the pictures")


CLOSED = Access(_closed, _closed)
"""How pictures are had whose addresses somebody else wrote down: not at all."""
