"""The address of a list enters; its lines, and how the fields in them are separated, leave."""

from __future__ import annotations

import codecs
import io
import re
import time
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple, TextIO

from featcache.errors import DatasetError, PictureError
from featcache.sources import read
from featcache.sources.addresses import CONTAINERS, scheme
from featcache.sources.containers import opened
from featcache.sources.remote import LIST_SECONDS
from featcache.texts import LONGEST

MOST_LINES = 20_000_000

_SEPARATOR = re.compile(r"sep=.\s*", re.IGNORECASE)


def opened_list(address: str) -> BinaryIO:
    """Open a list of pictures, here, elsewhere or in an archive, for reading; raises `DatasetError`."""
    if scheme(address) not in CONTAINERS:
        return opened(address)
    try:
        return io.BytesIO(read(address)[0])
    except PictureError as error:
        raise DatasetError(f"{address} cannot be read: {error}") from error


def opened_text(address: str) -> TextIO:
    """Open a list as text in UTF-8, or in UTF-16 where its first bytes say so, as spreadsheets write it."""
    file = opened_list(address)
    first = file.read(2)
    file.seek(0)
    if first in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return io.TextIOWrapper(file, "utf-16", newline="")
    return io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")


class Dialect(NamedTuple):
    """How the fields of a CSV are separated, as its first line shows: some spreadsheets write ; or tabs."""

    delimiter: str
    skipinitialspace: bool


TABS = Dialect("\t", False)


def is_separator(line: str) -> bool:
    """Tell whether a line is one that a spreadsheet writes above the names of columns, `sep=;`."""
    return _SEPARATOR.fullmatch(line) is not None


def dialect_of(line: str) -> Dialect:
    """Return how the first line of a CSV separates its fields."""
    outside = re.sub('"[^"]*"', "", line)
    delimiter = next((each for each in (",", ";", "\t") if each in outside), ",")
    return Dialect(delimiter, f"{delimiter} " in line)


def lines_of(root: str, stream: TextIO) -> Iterator[str]:
    """Yield the lines of a manifest; one without end would be read into memory whole, and many such for ever."""
    end, lines = time.monotonic() + LIST_SECONDS, 0
    while line := stream.readline(LONGEST):
        if len(line) == LONGEST:
            raise DatasetError(f"{root} has a line of more than {LONGEST:,} characters: it is no list of pictures")
        lines += 1
        if lines > MOST_LINES or time.monotonic() > end:
            raise DatasetError(f"{root} has no end: after {lines:,} lines, and at most an hour, it is left")
        yield line
