"""What a user named, or a part of it, enters; the address of it, one string that says where its bytes are, leaves.

An address is an absolute path, a URL with one of `SCHEMES` (`s3://bucket/a.jpg`), or in fsspec's notation of chains a
part of a container: `zip://ants/a.jpg::/data/x.zip`, `tar://0001.jpg::s3://bucket/x.tar`, `row://image/17::/data/x.parquet`.
"""

from __future__ import annotations

import os
import posixpath
import re

from featcache.errors import DatasetError

CHAIN = "::"
CONTAINERS = ("zip", "tar", "row")
SCHEMES = ("s3", "s3a", "gs", "gcs", "hdfs", "http", "https", "memory")
"""Where files may lie besides this computer. Other file systems of fsspec start programs or evaluate what they read."""

GIVEN = "object"
"""The scheme of what was given in Python: there is nothing to open it from."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def scheme(address: str) -> str | None:
    """Return the scheme of an address, or `None` of the path of a file here."""
    found = _URL.match(address)
    return found[1].lower() if found else None


def is_remote(address: str) -> bool:
    """Tell whether an address is on another file system than this computer's."""
    return scheme(container_of(address)) not in (None, GIVEN)


def named(source: str | os.PathLike[str]) -> str:
    """Return the address of what a user named: paths are made absolute, links in them kept."""
    text = _without_file(os.fsdecode(source))
    if not text:
        raise DatasetError(
            "the name is empty: give the path or the URL of a folder, a list or a picture (. is this one)"
        )
    if "\0" in text:
        raise DatasetError(f"no file can have the path {text!r:.60}: it has a NUL character in it")
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise DatasetError(f"no file can have the path {text!r:.60}: it has half a character (a surrogate)") from None
    if scheme(text) is None:
        return os.path.abspath(text)  # noqa: PTH100 - resolve() would rename a dataset behind a symbolic link
    if scheme(text) in CONTAINERS:
        kind, name, container = split_part(text)
        return part(kind, name, named(container))
    kind, _, inside = text.partition("://")
    return f"{kind}://{inside.rstrip('/')}"


def _without_file(text: str) -> str:
    return text.split("://", 1)[1] if scheme(text) == "file" else text


def part(kind: str, name: str, container: str) -> str:
    """Return the address of a part of a container."""
    return f"{kind}://{name}{CHAIN}{container}"


def split_part(address: str) -> tuple[str, str, str]:
    """Return kind, name and container of the address of a part; raises `DatasetError` where there is none."""
    if CHAIN not in address:
        raise DatasetError(
            f"{address} does not say what it is a part of: name the archive or table alone, or the part as "
            f"{scheme(address)}://NAME{CHAIN}ARCHIVE"
        )
    inner, _, container = address.rpartition(CHAIN)
    kind, _, name = inner.partition("://")
    return kind, name, container


def container_of(address: str) -> str:
    """Return the container of a part; of any other address itself."""
    return split_part(address)[2] if scheme(address) in CONTAINERS else address


def folder_of(address: str) -> str:
    """Return the address of the folder that something lies in."""
    if scheme(address) is None:
        return os.path.dirname(address)  # noqa: PTH120
    kind, _, inside = address.partition("://")
    return f"{kind}://{posixpath.dirname(inside)}"


def joined(folder: str, path: str) -> str:
    """Return the address of a path that is relative to a folder, absolute, or an address itself."""
    if scheme(path) in CONTAINERS:
        kind, name, container = split_part(path)
        return part(kind, name, joined(folder, container))
    path = _without_file(path)
    if scheme(path) is not None:
        return path
    if scheme(folder) is None:
        return os.path.normpath(os.path.join(folder, path))
    kind, _, inside = folder.partition("://")
    return f"{kind}://{posixpath.normpath(posixpath.join(inside, path))}"


def name_of(address: str) -> str:
    """Return the last part of an address, as the name of a file."""
    if scheme(address) in CONTAINERS:
        address = split_part(address)[1]
    return posixpath.basename(address)
