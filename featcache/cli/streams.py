"""Text enters from every command and library; what people can be shown leaves on stdout and stderr."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from featcache.errors import OutputError, one_line


class UnreadError(Exception):
    """Whoever read the results has enough of them; no `BrokenPipeError`, of which click makes exit code 1."""


class Stdout:
    """A stream on which control characters, escape sequences and marks that cannot be seen are spelled out.

    What cannot be written is an `OutputError`, and an `UnreadError` where nobody reads it any more. It has no
    `buffer`, so that nothing goes around it.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text, of which only line ends are obeyed."""
        self._try(self._stream.write, "\n".join(map(one_line, text.split("\n"))))
        return len(text)

    def flush(self) -> None:
        """Write what was kept back."""
        self._try(self._stream.flush)

    def _try(self, action: Any, *args: str) -> None:
        try:
            if args != ("",):  # of nothing click only wants to know whether it is taken as text
                action(*args)
        except OSError as error:
            _give_up(self._stream)
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        if error.errno == errno.EPIPE:
            raise UnreadError from error
        reason = "it is closed" if error.errno == errno.EBADF else error.strerror
        raise OutputError(
            f"cannot print to stdout: {reason}; what was done is kept, print it to a place that takes it"
        ) from error

    def __getattr__(self, name: str) -> Any:
        """Return what is asked of the stream itself."""
        if name == "buffer":
            raise AttributeError(name)
        return getattr(self._stream, name)


class Stderr(Stdout):
    """The same for stderr, where a progress bar may return to the start of its line; what it cannot take is lost.

    A command is not stopped because nobody can be told how far it is; its exit code says how it ended.
    """

    def write(self, text: str) -> int:
        """Write text, of which line ends are obeyed, and a carriage return where a bar is drawn or wiped out."""
        start = text[: text.startswith("\r")]
        if start and not text.strip(" \r"):
            start = text
        self._try(self._stream.write, start)
        return len(start) + super().write(text[len(start) :])

    def _failed(self, error: OSError) -> None:
        pass


@contextmanager
def streams() -> Iterator[None]:
    """Let everything that is printed go through `Stdout` and `Stderr`; streams that are closed count as full ones."""
    _open_closed()
    before = sys.stdout, sys.stderr
    for stream in before:
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.stdout, sys.stderr = cast("tuple[TextIO, TextIO]", (Stdout(before[0]), Stderr(before[1])))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def _open_closed() -> None:
    """Open what is closed of 0, 1 and 2, or files of the cache would get these numbers, and be printed into."""
    # Results are refused, as they would be; input is at its end, and what only helps a reader is lost.
    for number, way in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, way)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def _give_up(stream: TextIO) -> None:
    """Send what is left in a stream that failed nowhere, or Python would try again as it ends."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        stream.flush()
