"""A file that the user named and its bytes enter; the file leaves, whole or not at all, or one error that says why."""

from __future__ import annotations

import os
import stat
import sys
from contextlib import suppress
from pathlib import Path

from featcache.errors import CacheWriteError, OutputError, refusal
from featcache.store import is_cache
from featcache.store.files import replace_file


def write(path: Path, content: bytes) -> None:
    """Write a file that the user named: it is the old one until it is the whole new one; raises `OutputError`.

    A link is followed. What is no file, as a pipe or a terminal, is written to as it is.
    """
    refuse_cache(path)
    try:
        there = path.stat() if path.exists() else None
        if number := there and _printed(there):
            _print(number, content)
        elif there and not stat.S_ISREG(there.st_mode):
            path.write_bytes(content)
        elif there and not os.access(path, os.W_OK):
            raise OutputError(f"not allowed to write {path}: name another place")
        else:
            replace_file(Path(os.path.realpath(path)), content, there)
    except CacheWriteError as error:
        raise OutputError(str(error)) from error
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write {path}: {refusal(error)}") from error


def refuse_cache(path: Path) -> None:
    """Raise `OutputError` for a file in a cache, where only featcache writes, and only what belongs there."""
    for folder in Path(os.path.realpath(path)).parents:
        if is_cache(folder):
            raise OutputError(
                f"{path} lies in the cache {folder}, where it might take the place of a file: name another"
            )


def _printed(there: os.stat_result) -> int:
    """Return the number under which we print to a file already, as to /dev/stdout that a shell leads to it, else 0."""
    for number in (1, 2):
        with suppress(OSError):
            if os.path.samestat(os.fstat(number), there):
                return number
    return 0


def _print(number: int, content: bytes) -> None:
    """Write behind what was printed to stdout or stderr: opened anew, the two would overwrite each other."""
    (sys.stdout if number == 1 else sys.stderr).flush()
    with open(number, "wb", closefd=False) as stream:
        stream.write(content)
