"""An address enters; the bytes behind it, their content key and what tells an unchanged file leave."""

from __future__ import annotations

import hashlib
import os
from typing import Any

from featcache.errors import DatasetError, PictureError
from featcache.records import Access, FileStat
from featcache.sources import containers, local, remote
from featcache.sources.addresses import GIVEN, container_of, is_remote, scheme, split_part
from featcache.sources.archives import TarArchive, ZipArchive
from featcache.sources.local import FRESH_NS
from featcache.sources.tables import Table

__all__ = ["ACCESS", "FRESH_NS", "archive", "exists", "file_stat", "read", "table"]

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
        data = found.read(name)
    except DatasetError as error:
        raise PictureError(str(error)) from error
    return data, hashlib.sha256(data).digest(), stat


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


def archive(address: str) -> ZipArchive | TarArchive:
    """Open a `.zip` or `.tar`; raises `DatasetError`."""
    found: ZipArchive | TarArchive = _OPENED["zip" if address.lower().endswith(".zip") else "tar"].get(address)[0]
    return found


def table(address: str) -> Table:
    """Open a Parquet or Arrow file; raises `DatasetError`."""
    found: Table = _OPENED["row"].get(address)[0]
    return found


ACCESS = Access(read, file_stat)
"""How the pictures of an address are had, where the dataset does not say otherwise."""
