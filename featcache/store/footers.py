"""The last bytes of a Parquet file enter; how many values each of its columns says to hold leaves.

pyarrow says it too, but ends the process where the sizes that a file notes of a column contradict its schema, since
the exception of its C++ part is not caught (`RowGroupMetaData.column`, seen in 26.0).
"""

from __future__ import annotations

from collections import Counter
from typing import Any

MOST_BYTES = 2**26
_MAGIC = b"PAR1"
_DEEPEST = 16
_WHOLE = {3, 4, 5, 6}
_BINARY, _DOUBLE, _LIST, _SET, _MAP, _STRUCT = 8, 7, 9, 10, 11, 12


def count_values(data: bytes) -> Counter[str]:
    """Return the numbers of values of the columns, by their paths with dots, over all groups of rows.

    `data` is a whole file, or its end. The footer is a struct of Thrift in the compact protocol, with the fields of
    https://github.com/apache/parquet-format (FileMetaData, RowGroup, ColumnChunk, ColumnMetaData). Raises `ValueError`
    where it is none.
    """
    size = int.from_bytes(data[-8:-4], "little")
    if data[-4:] != _MAGIC or not 0 < size <= min(MOST_BYTES, len(data) - 8):
        raise ValueError("it has no footer")
    counts: Counter[str] = Counter()
    try:
        footer = _Compact(data[-8 - size : -8]).struct()
        for group in footer[4]:
            for chunk in group[1]:
                column = chunk[3]
                counts[b".".join(column[3]).decode()] += max(0, column[5])
    except (KeyError, TypeError, IndexError, AttributeError, UnicodeDecodeError) as error:
        raise ValueError("its footer is not whole") from error
    return counts


class _Compact:
    """Reads values of Thrift's compact protocol; each takes a byte at least, so that a footer bounds what is made."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Return the fields of a struct by their numbers."""
        if depth > _DEEPEST:
            raise ValueError("its footer is nested too deeply")
        fields: dict[int, Any] = {}
        number = 0
        while (head := self._byte()) != 0:
            number = number + (head >> 4) if head >> 4 else self._signed()
            kind = head & 15
            fields[number] = kind == 1 if kind in (1, 2) else self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (1, 2):
            return self._byte() == 1
        if kind in _WHOLE:
            return self._byte() if kind == 3 else self._signed()
        if kind == _DOUBLE:
            return self._bytes(8)
        if kind == _BINARY:
            return self._bytes(self._unsigned())
        if kind in (_LIST, _SET):
            head = self._byte()
            n = self._unsigned() if head >> 4 == 15 else head >> 4
            return self._values([head & 15], n, depth)
        if kind == _MAP:
            n = self._unsigned()
            kinds = self._byte() if n else 0
            return self._values([kinds >> 4, kinds & 15], n, depth)
        if kind == _STRUCT:
            return self.struct(depth + 1)
        raise ValueError(f"its footer has a value of the unknown kind {kind}")

    def _values(self, kinds: list[int], n: int, depth: int) -> list[Any]:
        if depth > _DEEPEST or n > len(self._data) - self._at:
            raise ValueError("its footer says to hold more than it can")
        return [self._value(kind, depth + 1) for _ in range(n) for kind in kinds]

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _bytes(self, n: int) -> bytes:
        if n > len(self._data) - self._at:
            raise ValueError("its footer says to hold more than it can")
        self._at += n
        return self._data[self._at - n : self._at]

    def _unsigned(self) -> int:
        value, shift = 0, 0
        while shift < 70:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
        raise ValueError("its footer has a number without end")

    def _signed(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)
