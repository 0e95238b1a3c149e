"""Bytes and a final name enter; a complete, durable file leaves, or nothing does."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import logging
import os
import pwd
import re
import secrets
import shlex
import shutil
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from featcache.errors import CacheWriteError, refusal
from featcache.sealed import check_texts, check_there

TEMPORARY_PREFIX = ".tmp-"
_TEMPORARY = re.compile(re.escape(TEMPORARY_PREFIX) + "[0-9a-f]{16}")
MODE = 0o666
"""What files may be at most: the user's umask takes from it, so that those of a group can share a cache."""

MOST_BYTES = 2**28
"""A JSON file of a cache is smaller: a split of a million pictures has 70 MB."""

UNREADABLE = {errno.ELOOP, errno.EINVAL, errno.EFBIG}
"""What `read_bounded` says of links, of what is no regular file, and of what is too large."""

LONGEST_NAME = 160
"""Bytes of the name that a file which is put aside keeps: with a time behind it, it must fit into a folder again."""

_logger = logging.getLogger(__name__)

_NO_FILE = "it is no regular file"

BLOCK = 4096
"""What a file without content is said to need: it has a name, and a disk counts in blocks."""


def create(path: Path) -> int:
    """Open a file to read it, made empty as the umask says where there is none; raises `OSError`.

    A link is not followed: whoever put that there would say which file is opened, or where one appears.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
    with contextlib.suppress(FileNotFoundError):
        return os.open(path, flags)
    with contextlib.suppress(FileExistsError):
        return os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE)
    return os.open(path, flags)  # somebody else was faster


def sizes(folder: Path) -> Iterator[int]:
    """Yield the bytes of all files in a folder, at any depth; what links lead to is not in it."""
    folders = [os.fspath(folder)]
    while folders:
        with contextlib.suppress(OSError), os.scandir(folders.pop()) as entries:  # others may delete it meanwhile
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    with contextlib.suppress(FileNotFoundError):
                        yield entry.stat(follow_symlinks=False).st_size


def read_bounded(path: Path, most: int = MOST_BYTES) -> bytes:
    """Return the bytes of a small file of the cache; raises `OSError`, also for what is no regular file, or larger.

    A link is none: who may write into the cache would say which other file of the reader's is read.
    """
    with open_bounded(path, most) as file:
        try:
            data = file.read(min(os.fstat(file.fileno()).st_size, most) + 1)  # which is made room for at once
        except MemoryError as error:
            raise OSError(errno.EFBIG, "it does not fit into memory") from error
    if len(data) > most:
        raise _too_large(most)
    return data


@contextlib.contextmanager
def open_bounded(path: Path, most: int) -> Iterator[io.BufferedReader]:
    """Open a file of the cache as `read_bounded` does, its size looked at before a byte of it is read."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW  # a fifo would be waited for
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a link") from error
        if error.errno in (errno.ENXIO, errno.ENODEV) and is_no_file(path):  # a socket, which cannot be opened
            raise OSError(errno.EINVAL, _NO_FILE) from error
        raise
    try:
        size = _regular(descriptor).st_size  # a folder is opened, too, and no file can be made of it
        if size > most:
            raise _too_large(most)
        check_there(descriptor)
    except OSError:
        os.close(descriptor)
        raise
    with os.fdopen(descriptor, "rb") as file:
        yield file


def _too_large(most: int) -> OSError:
    return OSError(errno.EFBIG, f"it has more than {most:,} bytes")


def _regular(descriptor: int) -> os.stat_result:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, _NO_FILE)
    return status


def is_no_file(path: Path) -> bool:
    """Tell whether there is something at a path that is no regular file: a link is none."""
    with contextlib.suppress(OSError):  # it may be gone at any time
        return not stat.S_ISREG(path.lstat().st_mode)
    return False


def read_json(path: Path, most: int = MOST_BYTES) -> dict[str, Any]:
    """Return the object in a small JSON file; raises `OSError`, and `ValueError` for anything else in it."""
    return parse_json(read_bounded(path, most))


def parse_json(data: bytes) -> dict[str, Any]:
    """Return the object that JSON holds; raises `ValueError` for anything else."""
    try:
        found = json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    check_texts(data, found)
    if not isinstance(found, dict):
        raise ValueError("it holds no JSON object")
    return found


def dataset_name(root: str) -> str:
    """Return what files that belong to the dataset at `root` are called: 16 hex digits."""
    return hashlib.sha256(os.fsencode(root)).hexdigest()[:16]


def write_atomic(path: Path, data: bytes | memoryview, folders: int = 1) -> None:
    """Write `data` so that `path` is always absent, the old file or the whole new one, also after a power loss.

    Temporary file in the same folder, fsync, rename, fsync of the folder. At most so many `folders` are made: where
    more are missing, the cache was moved away. Raises `CacheWriteError`, with the temporary file removed.
    """
    try:
        _make_folder(path.parent, folders)
        _publish(path, data)
    except OSError as error:
        raise CacheWriteError(_explain(path, len(data), error)) from error


def replace_file(path: Path, data: bytes, before: os.stat_result | None) -> None:
    """Write a file of the user's as `write_atomic` does: a new one as open as the umask lets it be, in a folder of his.

    What was there before leaves its mode and, where that is allowed, its owner. Raises `CacheWriteError`.
    """
    try:
        _publish(path, data, before)
    except OSError as error:
        raise CacheWriteError(_explain(path, len(data), error)) from error


def _publish(path: Path, data: bytes | memoryview, before: os.stat_result | None = None) -> None:
    with _temporary(path.parent) as (descriptor, temporary):
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        if before is not None:
            with contextlib.suppress(PermissionError):
                os.fchown(descriptor, before.st_uid, before.st_gid)
            os.fchmod(descriptor, stat.S_IMODE(before.st_mode))
        os.fsync(descriptor)
        temporary.rename(path)
    _sync_folder(path.parent)


def remove(path: Path) -> int:
    """Delete a file, and return the bytes it had, 0 where it is gone already; raises `CacheWriteError`."""
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            size = os.stat(path.name, dir_fd=folder, follow_symlinks=False).st_size
            os.unlink(path.name, dir_fd=folder)
        finally:
            os.close(folder)
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise CacheWriteError(f"cannot delete {path}: {refusal(error)}: check the folder's permissions") from error
    return size


def move(source: Path, target: Path) -> None:
    """Move a file to a folder on any file system, made where it is missing; raises `CacheWriteError`."""
    try:
        _make_folder(target.parent, 1)
        shutil.move(source, target)
    except OSError as error:
        raise CacheWriteError(f"cannot move {source} to {target}: {refusal(error)}") from error


def kept_in(bad: Path, name: str) -> Path:
    """Return where a file with this name is put aside in the folder `bad`, under a name that nothing there has."""
    path = Path(name)
    stem = os.fsdecode(os.fsencode(path.stem)[:LONGEST_NAME])
    return bad / f"{stem}.{time.time_ns()}{path.suffix[:16]}"


def remove_abandoned(folder: Path, inside: Iterable[str]) -> None:
    """Remove temporary files in `folder`, in the folders `inside` of it, and in those in them, whose writer is gone.

    One of a live writer is locked. Other folders may hold pictures, whose names are their own affair; what a link
    leads to is somebody else's.
    """
    pattern = f"{TEMPORARY_PREFIX}*"
    own = [folder / name for name in inside if not (folder / name).is_symlink()]
    for temporary in chain(
        folder.glob(pattern), *(there.glob(f"{deep}{pattern}") for there in own for deep in ("", "*/"))
    ):
        if not _TEMPORARY.fullmatch(temporary.name) or temporary.is_symlink() or temporary.parent.is_symlink():
            continue
        # Where locks are not supported nobody can tell, so the file stays.
        with contextlib.suppress(OSError):
            descriptor = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                temporary.unlink()
            finally:
                os.close(descriptor)


def checksum(content: Mapping[str, Any]) -> str:
    """Return a digest of plain values that says whether they are those that were written."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def number_of(name: str) -> int | None:
    """Return the number that a name begins with, `None` where it is none that `claim_number` gives."""
    match = re.match(r"([0-9]{6,18})(?![0-9])", name)
    return int(match[1]) if match else None


def claim_number(folder: Path, suffix: str, after: int) -> int:
    """Make an empty file with the next free number beyond `after` as its name, and return the number.

    No two processes get the same one. Raises `CacheWriteError`.
    """
    try:
        _make_folder(folder, 1)
        names = set(os.listdir(folder))
        number = after + 1
        while True:
            name = f"{number:06d}{suffix}"
            with contextlib.suppress(FileExistsError):
                if name not in names:
                    os.close(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, MODE))
                    return number
            number += 1
    except OSError as error:
        raise CacheWriteError(_explain(folder / f"NUMBER{suffix}", BLOCK, error)) from error


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[bool]:
    """Hold the lock file `path` if nobody else does, alone or shared; yields whether it is held.

    Raises `CacheWriteError` where there is no such file and none can be made.
    """
    with _lock_file(path) as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        except OSError:
            held = False
        yield held


@contextlib.contextmanager
def shared(path: Path) -> Iterator[None]:
    """Hold the lock file `path` together with others, after waiting for whoever holds it alone.

    Raises `CacheWriteError` where there is no such file and none can be made.
    """
    with _lock_file(path) as descriptor:
        with contextlib.suppress(OSError):  # where locks are not supported nobody can hold it alone either
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                _logger.warning("waiting for another program, which holds %s", path)
                fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield


@contextlib.contextmanager
def _lock_file(path: Path) -> Iterator[int]:
    """Open a lock file, made where there is none; no link is followed: it would lock a file of somebody else's."""
    try:
        descriptor = create(path)
    except OSError as error:
        raise CacheWriteError(_no_lock(path, error)) from error
    try:
        try:
            _regular(descriptor)
        except OSError as error:
            raise CacheWriteError(_no_lock(path, error)) from error
        yield descriptor
    finally:
        os.close(descriptor)


def _no_lock(path: Path, error: OSError) -> str:
    if is_no_file(path):
        return f"{path} is no regular file, which it must be to be locked: move it away, and it is made anew"
    return _explain(path, BLOCK, error)


@contextlib.contextmanager
def _temporary(folder: Path) -> Iterator[tuple[int, Path]]:
    """Yield a locked, unique temporary file (descriptor, path), removed on the way out unless it was renamed."""
    while True:
        temporary = folder / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE)
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink == 0:  # taken for abandoned between creation and lock
                continue
            yield descriptor, temporary
            return
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
            os.close(descriptor)


def _make_folder(folder: Path, folders: int) -> None:
    if not folder.is_dir():
        if not folders:
            raise FileNotFoundError(errno.ENOENT, f"{folder} is gone, was it moved or deleted meanwhile?")
        _make_folder(folder.parent, folders - 1)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def sync_names(folder: Path, up_to: Path) -> None:
    """Make the names in `folder` durable, and in all folders above it: a killed process may have made one of them.

    Raises `CacheWriteError` for `folder` and those up to `up_to`; folders above belong to others, and those that cannot
    be opened or synced are left to them.
    """
    for above in (folder, *folder.parents):
        with contextlib.nullcontext() if above.is_relative_to(up_to) else contextlib.suppress(OSError):
            sync_folder(above)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable; raises `CacheWriteError`."""
    try:
        _sync_folder(folder)
    except OSError as error:
        raise CacheWriteError(_explain(folder, BLOCK, error)) from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def no_room(path: Path, size: int, reason: str) -> str:
    """Return what to say where a disk, a quota or a limit on file sizes has no room for `size` bytes."""
    try:
        free = shutil.disk_usage(path.parent).free
        other = ", so it is a quota, a limit on files (`ulimit -f`), or the disk has no more inodes"
        said = f", {free:,} are free" + (other if free > size else "")
    except OSError:
        said = ""
    return f"no room for {path}: {size:,} bytes are needed{said} ({reason}): make room and run the same command again"


def denied(path: Path, mode: int = os.R_OK) -> str | None:
    """Say which part of a path may not be used, whose it is and what helps; `None` where all may, or nothing is there.

    In a cache that a group shares it is what somebody made whose umask takes the rights of the group away.
    """
    for place in (*reversed(path.parents), path):
        if not os.path.exists(place):
            return None
        needed = (mode | os.X_OK if place.is_dir() else mode) if place == path else os.X_OK
        if not os.access(place, needed):
            number = place.stat().st_uid
            owner = f"user {number}"
            with contextlib.suppress(KeyError):
                owner = pwd.getpwuid(number).pw_name
            return (
                f"{place} cannot be used by you: it belongs to {owner}, who opens it, to the group too, "
                f"with `chmod -R ug+rwX {shlex.quote(os.fspath(place))}` (and `umask 002` before further commands)"
            )
    return None


def _explain(path: Path, size: int, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return no_room(path, size, error.strerror or "no space left")
    if error.errno == errno.EISDIR:
        return f"cannot write {path}: a folder is in its place: move it away and run the same command again"
    if error.errno == errno.EACCES and (said := denied(path.parent, os.W_OK) or denied(path, os.W_OK)):
        return f"cannot write {path}: {said}"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"cannot write {path}: {refusal(error)} and run the same command again"
    return f"cannot write {path}: {refusal(error)}: check the folder and run the same command again"
