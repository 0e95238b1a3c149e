"""An Arrow file, as `datasets` saves them, enters; its columns leave, a few rows at a time, checked before any use.

Arrow believes what such a file says of where its values lie: unchecked, a changed one makes it read anywhere in memory.
It is read and not mapped, for a mapped file that somebody cuts short ends the process.
"""

from __future__ import annotations

import os
import struct
from itertools import accumulate
from typing import Any

from featcache.errors import DatasetError
from featcache.sources.containers import opened

MOST_BATCH_BYTES = 2**31
"""Rows come in batches, each of which is read whole."""

MOST_MESSAGES = 2**20

MOST_DICTIONARY_BYTES = 2**32
"""Dictionaries are read again with each batch, and have so many bytes in all batches together."""

_CONTINUED = b"\xff\xff\xff\xff"

_BATCHES = {2: True, 3: False}
"""The kinds of messages that hold values, by their number: those of a dictionary, in a table of their own, and rows."""


class ArrowFile:
    """A file with rows in the streaming format; raises `pyarrow.ArrowException`, `OSError` or `DatasetError`."""

    def __init__(self, address: str) -> None:
        import pyarrow as pa

        self._address = address
        self._file = opened(address)
        self._size = self._file.seek(0, os.SEEK_END)
        if not self._size:
            raise pa.ArrowInvalid("it is empty")
        self._before: list[tuple[int, int]] = []
        self._batches: list[tuple[int, int, int]] = []
        rows, at = [], 0
        while (message := self._head(at)) is not None:
            start, (kind, body, n_rows), at = at, _said(message[0]), message[1]
            if _is_compressed(message[0]):
                raise DatasetError(
                    f"{address} is compressed, and would be unpacked whole: save it without, or as Parquet"
                )
            if not 0 <= body <= self._size - at or n_rows < 0:
                raise pa.ArrowInvalid(f"a part of {body:,} bytes at {at:,}, and the file has {self._size:,}")
            at += body
            if kind in _BATCHES and not _BATCHES[kind]:
                self._batches.append((start, at - start, len(self._before)))
                rows.append(n_rows)
            else:
                self._before.append((start, at - start))
            if len(self._batches) + len(self._before) > MOST_MESSAGES:
                raise DatasetError(f"{address} is in more than {MOST_MESSAGES:,} parts: write it anew with larger ones")
        dictionaries = sum(size for _, size in self._before[1:])
        if dictionaries * len(rows) > MOST_DICTIONARY_BYTES:
            raise DatasetError(f"{address} has dictionaries of {dictionaries:,} bytes: write it anew without")
        self.schema = pa.ipc.open_stream(pa.py_buffer(b"".join(self._at(*place) for place in self._before))).schema
        self.starts = [0, *accumulate(rows)]
        """The first row of each batch, and the number of all rows."""

    def _head(self, at: int) -> tuple[bytes, int] | None:
        """Return the head of the message at a place and where its body begins; `None` where the stream ends."""
        import pyarrow as pa

        first = self._at(at, min(8, self._size - at))
        skipped = 8 if first.startswith(_CONTINUED) else 4  # as it was written before Arrow 0.15
        length = int.from_bytes(first[skipped - 4 : skipped], "little", signed=True)
        if length == 0:
            return None
        if not 0 < length <= self._size - at - skipped:
            raise pa.ArrowInvalid(f"a head of {length:,} bytes at {at:,}, and the file has {self._size:,}")
        return self._at(at + skipped, length), at + skipped + length

    def _at(self, start: int, size: int) -> bytes:
        data = os.pread(self._file.fileno(), size, start)
        if len(data) != size:
            raise OSError("it was cut short while it was read")
        return data

    def batch(self, at: int, name: str) -> Any:
        """Return the values of a column in a batch, which all lie within it."""
        import pyarrow as pa

        start, size, n_before = self._batches[at]
        if size > MOST_BATCH_BYTES:
            raise DatasetError(f"its rows are in batches of {size:,} bytes, which are read whole: write smaller ones")
        data = self._at(start, size)
        if n_before == 1:  # without dictionaries
            rows = pa.ipc.read_record_batch(pa.py_buffer(data), self.schema)
        else:
            parts = [*(self._at(*place) for place in self._before[:n_before]), data]
            rows = pa.ipc.open_stream(pa.py_buffer(b"".join(parts))).read_next_batch()
        found = rows.column(name)
        if len(found) != self.starts[at + 1] - self.starts[at]:
            raise pa.ArrowInvalid(f"{len(found):,} rows in a batch that was said to have others")
        found.validate(full=True)
        return found


def _said(message: bytes) -> tuple[int, int, int]:
    """Return what the head of a message says: its kind, the bytes of its body, and its rows, if it is of rows."""
    import pyarrow as pa

    try:
        table = _u32(message, 0)
        kind, body = message[_field(message, table, 1)], _i64(message, _field(message, table, 3))
        if _BATCHES.get(kind, True):
            return kind, body, 0
        return kind, body, _i64(message, _field(message, _followed(message, _field(message, table, 2)), 0))
    except (struct.error, IndexError) as error:
        raise pa.ArrowInvalid("the head of a part cannot be followed") from error


def _is_compressed(message: bytes) -> bool:
    """Tell whether the head of a message says that its values are compressed, which pyarrow does not tell.

    The head is a FlatBuffer (Message.fbs of the Arrow format): its field 1 has the kind, its field 2 the head of the
    values itself. Of that, field 3 is the compression where it is of rows, and field 1 such a head where it is of a
    dictionary.
    """
    try:
        table = _u32(message, 0)
        kind = message[_field(message, table, 1)]
        if kind not in _BATCHES:
            return False
        head = _followed(message, _field(message, table, 2))
        rows = _followed(message, _field(message, head, 1)) if _BATCHES[kind] else head
        return _field(message, rows, 3) > 0
    except (struct.error, IndexError):
        return True  # a head that cannot be followed; Arrow's own check comes only after this


def _field(data: bytes, table: int, number: int) -> int:
    """Return where a field of a table is, or 0 where the table has none."""
    fields = table - struct.unpack_from("<i", data, table)[0]
    length: int = struct.unpack_from("<H", data, fields)[0]
    if 4 + 2 * number >= length:
        return 0
    at: int = struct.unpack_from("<H", data, fields + 4 + 2 * number)[0]
    return table + at if at else 0


def _followed(data: bytes, at: int) -> int:
    return at + _u32(data, at)


def _u32(data: bytes, at: int) -> int:
    return int(struct.unpack_from("<I", data, at)[0])


def _i64(data: bytes, at: int) -> int:
    return int(struct.unpack_from("<q", data, at)[0]) if at else 0
