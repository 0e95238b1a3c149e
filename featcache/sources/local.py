"""The path of a file on this computer enters; its bytes, their content key and its stat leave."""

from __future__ import annotations

import os
import stat
import time
from io import FileIO

from featcache.errors import PictureError, refusal
from featcache.records import FileStat
from featcache.sources.keys import content_key

MAX_BYTES = 512 * 2**20
"""A picture file larger than this is refused, so that one stray archive cannot fill the memory."""

FRESH_NS = 2 * 10**9
"""The stat of a file that was modified less than this before it is read may not tell a later change."""

CHANGED = "changed while it was read: run again when it is complete"


def file_stat(path: str) -> FileStat:
    """Return what tells an unchanged file; raises `PictureError` where there is no regular file."""
    try:
        return regular(os.stat(path))
    except OSError as error:
        raise PictureError(reason(error)) from error


def read(path: str) -> tuple[bytes, bytes, FileStat]:
    """Read a picture file: its bytes, its content key (32 bytes, sha256) and the stat that belongs to them.

    Raises `PictureError` where the file cannot be read, is not regular, or changes under the reader.
    """
    try:
        file, before = open_regular(path)
        with file:
            check_size(before.size)
            data = _read(file, before.size)
            after = regular(os.fstat(file.fileno()))
            # A change within one tick of the file system's clock does not show in the stat.
            is_fresh = time.time_ns() - before.mtime_ns < FRESH_NS
            if is_fresh and file.seek(0) == 0 and _read(file, before.size) != data:
                raise PictureError(CHANGED)
    except OSError as error:
        raise PictureError(reason(error)) from error
    if before != after or len(data) != before.size:
        raise PictureError(CHANGED)
    return data, content_key(data), before


def open_regular(path: str) -> tuple[FileIO, FileStat]:
    """Open a regular file for reading, and return its stat; raises `PictureError` for anything else, and `OSError`."""
    # A fifo would block open() for ever without O_NONBLOCK; on regular files the flag does nothing.
    file = FileIO(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK | os.O_NOCTTY))
    try:
        return file, regular(os.fstat(file.fileno()))
    except PictureError:
        file.close()
        raise


def _read(file: FileIO, size: int) -> bytes:
    """Return what a file holds, at most one byte more than `size`: some of /proc never end."""
    data = file.read(size + 1) or b""  # nothing yet, where others would wait
    while len(data) <= size and (more := file.read(size + 1 - len(data))):
        data += more
    return data


def check_size(size: int) -> None:
    """Raise `PictureError` for a picture of more than `MAX_BYTES`."""
    if size > MAX_BYTES:
        raise PictureError(f"larger than {MAX_BYTES // 2**20} MiB ({size:,} bytes)")


def regular(status: os.stat_result) -> FileStat:
    """Return the stat of a regular file; raises `PictureError` for anything else."""
    if not stat.S_ISREG(status.st_mode):
        raise PictureError("not a regular file")
    return FileStat(*map(in_64_bits, (status.st_size, status.st_mtime_ns, status.st_ino)))


def in_64_bits(value: int) -> int:
    """Return a number as what a signed one of 64 bits makes of it: some inodes and times are beyond that."""
    return (value + 2**63) % 2**64 - 2**63


def reason(error: OSError) -> str:
    """Return why a file could not be used, in a few words."""
    return refusal(error).lower()
