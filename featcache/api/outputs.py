"""A file that the user named and its bytes enter; the file leaves, or one error that says why it cannot be written."""

from __future__ import annotations

from pathlib import Path

from featcache.errors import OutputError


def write(path: Path, content: bytes) -> None:
    """Write a file that the user named; raises `OutputError`."""
    try:
        path.write_bytes(content)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
