"""A Parquet file, or an Arrow file as `datasets` saves them, enters; its columns and the bytes in its rows leave."""

from __future__ import annotations

import json
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from functools import cached_property
from os import SEEK_END
from typing import Any

from featcache import texts
from featcache.errors import DatasetError, DatasetNotFoundError, PictureError
from featcache.sources import local
from featcache.sources.addresses import folder_of, is_remote, joined
from featcache.sources.arrow import ArrowFile
from featcache.sources.containers import opened
from featcache.sources.remote import check_parts
from featcache.texts import LONGEST, Values, flaw

GROUPS_KEPT = 2
"""How many groups of rows of a file are in memory: threads read a few rows apart."""

MOST_GROUP_BYTES = 2 * 2**30
ROWS_AT_ONCE = 16

ALWAYS_ROWS = 2**20
"""A table has no more rows than these, or than bytes: each becomes a picture in memory."""


class Table:
    """The rows of a Parquet or Arrow file; several threads may read at once."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._lock = threading.Lock()
        self._groups: OrderedDict[tuple[int, str], Any] = OrderedDict()
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError as error:
            raise DatasetError(f"{address} needs pyarrow: pip install 'featcache[parquet]'") from error
        self._parquet: Any = None
        self._arrow: Any = None
        try:
            with opened(address) as file:
                self._size = file.seek(0, SEEK_END)
            if address.lower().endswith(".parquet"):
                self._parquet = pq.ParquetFile(opened(address))
                self.schema = self._parquet.schema_arrow
            else:
                self._arrow = ArrowFile(address)
                self.schema = self._arrow.schema
            list(self.schema.names)  # which are decoded only now
        except (DatasetNotFoundError, MemoryError):
            raise
        except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
            check_parts(address, error)
            raise DatasetError(f"{address} is no whole table ({_line(error)}): fetch or make it again") from error
        if self.n_rows > max(ALWAYS_ROWS, self._size):
            raise DatasetError(f"{address} has {self.n_rows:,} rows in {self._size:,} bytes: it is no list of pictures")

    @property
    def n_rows(self) -> int:
        """The number of rows."""
        return int(self._parquet.metadata.num_rows if self._parquet is not None else self._arrow.starts[-1])

    @cached_property
    def features(self) -> dict[str, Any]:
        """What `datasets` notes of each column, by name; empty where it did not write the file."""
        noted = (self.schema.metadata or {}).get(b"huggingface", b"{}")
        try:
            found = json.loads(noted).get("info", {}).get("features") or {}
            if not isinstance(found, dict):
                raise ValueError("its features are no table")
            return found
        except (ValueError, AttributeError, RecursionError) as error:
            raise DatasetError(f"{self.address}: what `datasets` noted of its columns is broken: {error}") from error

    def column(self, name: str, longest: int = LONGEST) -> list[Any]:
        """Return the values of a column of numbers, or texts of so many characters; raises `DatasetError`."""
        values = Values(self._size, longest)
        chunks = self._arrow_chunks if self._parquet is None else self._parquet_chunks
        try:
            found: list[Any] = self._read(lambda: [value for chunk in chunks(name) for value in values.of(chunk)])
        except ValueError as error:
            if isinstance(error, DatasetError):
                raise
            raise DatasetError(f"{self.address}: the column {name!r} cannot be used: {_line(error)}") from error
        if len(found) != self.n_rows:
            raise DatasetError(f"{self.address}: the column {name!r} has not the {self.n_rows:,} rows of the table")
        return found

    def _arrow_chunks(self, name: str) -> Iterator[Any]:
        yield from (self._arrow.batch(at, name) for at in range(len(self._arrow.starts) - 1))

    def _parquet_chunks(self, name: str) -> Iterator[Any]:
        left, kind = self.n_rows, type(self.schema.field(name).type).__name__
        at_once = texts.ROWS_AT_ONCE * (128 if kind == "DictionaryType" else 1)  # each batch has all of the dictionary
        for batch in self._parquet.iter_batches(at_once, columns=[name], use_threads=False):
            left -= batch.num_rows
            if left < 0:
                return
            yield batch.column(0)

    def read(self, name: str) -> bytes | str:
        """Return the bytes of the picture in a row, named `column/row`, or the path that stands there instead.

        Raises `PictureError`.
        """
        column, _, row = name.rpartition("/")
        try:
            value = self._value(column, int(row))
        except (ValueError, KeyError, IndexError, DatasetError) as error:
            raise PictureError(f"cannot be read from {self.address}: {_line(error)}") from error
        data = value.get("bytes") if isinstance(value, dict) else value
        if data is None and isinstance(value, dict) and value.get("path") and not is_remote(self.address):
            if (said := flaw(path := str(value["path"]))) is not None:
                raise PictureError(f"no file can have the path in this row: {said}")
            return joined(folder_of(self.address), path)
        if not isinstance(data, bytes):
            raise PictureError("no picture in this row")
        local.check_size(len(data))
        return data

    def _value(self, column: str, row: int) -> Any:
        group = bisect_right(self._starts, row) - 1
        with self._lock:
            found = self._groups.get((group, column))
            if found is None:
                found = self._groups[group, column] = self._group(group, column)
            self._groups.move_to_end((group, column))
            while len(self._groups) > GROUPS_KEPT:
                self._groups.popitem(last=False)
        return found[row - self._starts[group]].as_py()

    def _group(self, group: int, column: str) -> Any:
        if self._parquet is None:
            return self._read(lambda: self._arrow.batch(group, column))
        # of all its columns, since pyarrow ends the process where a file says nonsense of a single one
        _check_size(self._parquet.metadata.row_group(group).total_byte_size)
        return self._read(lambda: self._batches(group, column))

    def _batches(self, group: int, column: str) -> Any:
        """Read a group a few rows at a time: few bytes may stand for many."""
        import pyarrow as pa

        found: list[Any] = []
        for batch in self._parquet.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=[column]):
            found.append(batch.column(column))
            _check_size(sum(part.nbytes for part in found))
        return pa.chunked_array(found)

    @cached_property
    def _starts(self) -> list[int]:
        if self._parquet is None:
            return list(self._arrow.starts)
        starts = [0]
        for group in range(self._parquet.num_row_groups):
            starts.append(starts[-1] + self._parquet.metadata.row_group(group).num_rows)
        return starts

    def _read(self, call: Any) -> Any:
        import pyarrow as pa

        try:
            return call()
        except MemoryError:
            raise
        except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
            check_parts(self.address, error)
            raise DatasetError(f"{self.address} cannot be read ({_line(error)}): fetch or make it again") from error


def _check_size(size: int) -> None:
    if size > MOST_GROUP_BYTES:
        raise DatasetError(
            f"its rows are in groups of {size:,} bytes, which are read whole: write it anew with smaller ones"
        )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
