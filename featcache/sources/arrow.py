"""An Arrow file, as `datasets` saves them, enters; its columns leave, mapped from the disk and checked before any use.

Arrow believes what such a file says of where its values lie: unchecked, a changed one makes it read anywhere in memory.
"""

from __future__ import annotations

import struct
from typing import Any

from featcache.errors import DatasetError
from featcache.sources.containers import opened

_BATCHES = {2: True, 3: False}
"""The kinds of messages that hold values, by their number: those of a dictionary, in a table of their own, and rows."""


class ArrowFile:
    """A file with rows in the streaming format; raises `pyarrow.ArrowException`, `OSError` or `DatasetError`."""

    def __init__(self, address: str) -> None:
        import pyarrow as pa

        opened(address).close()  # a fifo would be waited for
        self._sound: dict[str, Any] = {}
        mapped = pa.memory_map(address)
        for message in pa.ipc.MessageReader.open_stream(mapped):
            if _is_compressed(message.metadata.to_pybytes()):
                raise DatasetError(
                    f"{address} is compressed, and would be unpacked whole: save it without, or as Parquet"
                )
        mapped.seek(0)
        self._table = pa.ipc.open_stream(mapped).read_all()
        self.schema = self._table.schema
        self.n_rows = int(self._table.num_rows)

    def column(self, name: str) -> Any:
        """Return a column whose values all lie within the file."""
        if name not in self._sound:
            found = self._table.column(name)
            found.validate(full=True)
            self._sound[name] = found
        return self._sound[name]


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
