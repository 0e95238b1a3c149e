"""A zip or tar archive enters; the names in it and, one by one, the bytes behind them leave: nothing is unpacked."""

from __future__ import annotations

import stat
import struct
import tarfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO, cast
from zlib import crc32

from featcache.errors import DatasetError, DatasetNotFoundError, PictureError
from featcache.sources.containers import Bytes, opened
from featcache.sources.local import check_size
from featcache.sources.remote import check_parts
from featcache.texts import is_undecoded

MOST_COMPRESSED = 200
BOMB_BYTES = 2**24
"""What is compressed more often than this, and larger than that, is no photograph but meant to fill the memory."""

_UTF8_FLAG = 0x800
_UNICODE_PATH = 0x7075

_BOUNDED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Of other methods `zipfile` unpacks as much as there is, whatever size is asked for."""

MOST_FOLDERS, LONGEST_NAME = 100, 4096
"""Names with more folders or characters than these are of no file that a computer could hold."""

HEADER_BYTES = 2**20
"""All headers of one of a tar's members are never longer; `tarfile` would read as many bytes as they say."""

MOST_GLOBAL = 100
"""A tar says so many things of all its members: `tarfile` copies them, and goes through them, at each."""

PADDING_BYTES = 2**26
"""Tars end in zeros that fill a record, of less than this; more is room that was made and not yet written."""


class ZipArchive:
    """A zip archive; `names` are the files in it that a folder could hold too, `left_out` all other entries.

    `names` gives what each is called in the archive, by which it is read, for its name as it is meant: with slashes,
    and decoded as its flags say, or in the code page `encoding`. Of entries with one name, those in `twice`, the last
    one counts, as it does when they are unpacked. `unsure` is a name that is in no stated encoding, if there is one.
    """

    def __init__(self, address: str, encoding: str | None = None) -> None:
        self._address = address
        self.unsure: str | None = None
        try:
            self._zip = zipfile.ZipFile(opened(address))
        except (DatasetNotFoundError, MemoryError):
            raise
        except Exception as error:  # zipfile raises almost anything on broken archives
            check_parts(address, error)
            raise DatasetError(f"{address} is no whole zip archive ({error}): fetch or make it again") from error
        entries = [entry for entry in self._zip.infolist() if not entry.is_dir()]
        self.names: dict[str, str] = {}
        self.twice: list[str] = []
        self.left_out: list[str] = []
        for entry, name in zip(entries, self._meant(entries, encoding), strict=True):
            if not is_inside(name) or _is_link(entry):
                self.left_out.append(entry.filename)
                continue
            if name in self.names:
                self.twice.append(name)
            self.names[name] = entry.filename

    def _meant(self, entries: Sequence[zipfile.ZipInfo], encoding: str | None) -> Iterator[str]:
        """Yield the names as they are meant; raises `DatasetError` where they are not in that encoding.

        Without a flag they should be in code page 437, and seldom are: macOS writes UTF-8, Windows its own code page.
        """
        unflagged = [raw for e in entries if (raw := _unflagged(e)) is not None and _unicode_path(e, raw) is None]
        is_utf8 = encoding is None and all(_is_utf8(raw) for raw in unflagged)
        for entry in entries:
            raw = _unflagged(entry)
            name = entry.filename
            if raw is not None and (said := _unicode_path(entry, raw)) is not None:
                name = said
            elif raw is not None:
                try:
                    name = raw.decode("utf-8" if is_utf8 else encoding or "cp437")
                except UnicodeDecodeError as error:
                    raise DatasetError(f"{self._address}: the name {raw!r} is not in {encoding}: {error}") from error
                if encoding is None and not is_utf8:
                    self.unsure = self.unsure or name
            yield name.replace("\\", "/")

    def read(self, name: str) -> bytes:
        """Return the bytes of a file in the archive; raises `PictureError`."""
        try:
            entry = self._zip.getinfo(name)
            check_size(entry.file_size)
            if entry.file_size > max(BOMB_BYTES, MOST_COMPRESSED * entry.compress_size):
                raise PictureError(
                    f"compressed {entry.file_size // max(1, entry.compress_size):,} times, to be "
                    f"{entry.file_size:,} bytes: a bomb, no photograph"
                )
            if entry.compress_type not in _BOUNDED:
                name = zipfile.compressor_names.get(entry.compress_type, f"method {entry.compress_type}")  # type: ignore[attr-defined]
                raise PictureError(f"compressed with {name} in {self._address}: pack it anew with deflate, or stored")
            with self._zip.open(entry) as file:
                return file.read(entry.file_size)
        except KeyError:
            raise PictureError(f"no such file in {self._address}") from None
        except (PictureError, MemoryError):
            raise
        except Exception as error:
            raise PictureError(f"cannot be read from {self._address}: {str(error) or type(error).__name__}") from error


class TarArchive:
    """An uncompressed tar archive, its names listed once; `names`, `left_out` and `twice` as in `ZipArchive`."""

    def __init__(self, address: str, encoding: str | None = None) -> None:
        self._address = address
        self._bytes = Bytes(address)
        self._places: dict[str, tuple[int, int]] = {}
        self.left_out: list[str] = []
        self.twice: list[str] = []
        for member in _members(address):
            name = member.name.removeprefix("./")
            place: tuple[int, int] | None = member.offset_data, member.size
            if member.islnk():  # a further name of a file before it
                place = self._places.get(member.linkname.removeprefix("./"))
            elif not member.isreg() or member.issparse():
                place = None
            if member.isdir():
                continue
            if place is None or not is_inside(name):
                self.left_out.append(member.name)
                continue
            if name in self._places:
                self.twice.append(name)
            self._places[name] = place

        self.names: Mapping[str, str] | Sequence[str] = (
            list(self._places) if encoding is None else {self._meant(name, encoding): name for name in self._places}
        )
        self.unsure = None if encoding else next((name for name in self._places if is_undecoded(name)), None)

    def _meant(self, name: str, encoding: str) -> str:
        """Return a name as it is meant; raises `DatasetError` where it is not in that encoding."""
        raw = name.encode(errors="surrogateescape")
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError as error:
            raise DatasetError(f"{self._address}: the name {raw!r:.100} is not in {encoding}: {error}") from error

    def read(self, name: str) -> bytes:
        """Return the bytes of a file in the archive; raises `PictureError`."""
        try:
            offset, size = self._places[name]
        except KeyError:
            raise PictureError(f"no such file in {self._address}") from None
        check_size(size)
        try:
            data = self._bytes.at(offset, size)
        except OSError as error:
            raise PictureError(f"cannot be read from {self._address}: {error}") from error
        if len(data) != size:
            raise PictureError(f"{self._address} ends within it")
        return data


def is_inside(name: str) -> bool:
    """Tell whether a name stays in the archive, goes up nowhere, and is one that a file in a folder could have."""
    parts = name.split("/")
    return not (
        any(part in ("", ".", "..") for part in parts)
        or "\\" in name
        or "\0" in name
        or len(name) > LONGEST_NAME
        or len(parts) > MOST_FOLDERS
    )


def _unflagged(entry: zipfile.ZipInfo) -> bytes | None:
    """Return the bytes of a name that is in no stated encoding, or `None` of one that is, or is in ASCII."""
    if entry.flag_bits & _UTF8_FLAG or entry.filename.isascii():
        return None
    try:
        return entry.filename.encode("cp437")
    except UnicodeEncodeError:  # of the extra field in which Info-ZIP keeps the name in UTF-8
        return None


def _unicode_path(entry: zipfile.ZipInfo, raw: bytes) -> str | None:
    """Return the name that the extra field 0x7075 of Info-ZIP gives in UTF-8, of the name as it stands."""
    extra = entry.extra
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        field, extra = extra[4 : 4 + size], extra[4 + size :]
        if kind == _UNICODE_PATH and field[:5] == b"\1" + struct.pack("<L", crc32(raw)) and _is_utf8(field[5:]):
            return field[5:].decode()
    return None


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_link(entry: zipfile.ZipInfo) -> bool:
    return stat.S_ISLNK(entry.external_attr >> 16)


class _Headers:
    """A tar for `tarfile`, which is given no more bytes for one member than its headers have."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell
        self.left = HEADER_BYTES

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self.left:
            raise tarfile.ReadError(f"headers of {HEADER_BYTES - self.left + size:,} bytes before one file")
        self.left -= size
        return self._file.read(size)


def _members(address: str) -> Iterator[tarfile.TarInfo]:
    """Yield what is in a tar archive; raises `DatasetError` for one that is compressed, broken or cut short."""
    count, end = 0, 0
    with opened(address) as file:
        try:
            headers = _Headers(file)
            with tarfile.open(fileobj=cast(BinaryIO, headers), mode="r:", encoding="utf-8") as archive:
                while (member := archive.next()) is not None:
                    headers.left = HEADER_BYTES
                    if len(archive.pax_headers) > MOST_GLOBAL:
                        raise tarfile.ReadError(f"{len(archive.pax_headers):,} names in headers for all of its files")
                    if member.size < 0 or archive.offset <= end:
                        raise tarfile.ReadError(f"{member.name} has {member.size} bytes")
                    yield member
                    count, end = count + 1, archive.offset
                    archive.members.clear()  # type: ignore[attr-defined]  # of a million they take a gigabyte
        except (tarfile.TarError, OSError, EOFError, ValueError, RecursionError) as error:
            check_parts(address, error)
            if not count and _is_compressed(address):
                raise DatasetError(
                    f"{address} is a compressed tar, in which no file can be reached without all before it: "
                    "decompress it once to a .tar"
                ) from error
            raise DatasetError(f"{address} is cut short or broken {_after(count)} ({error}): fetch it again") from error
        file.seek(end)
        if file.read(512) != bytes(512):
            raise DatasetError(f"{address} is cut short {_after(count)}, or still being written: fetch it again")
        while rest := file.read(HEADER_BYTES):
            if file.tell() > end + PADDING_BYTES:
                raise DatasetError(
                    f"{address} has nothing but zeros for {PADDING_BYTES:,} bytes behind its end {_after(count)}: "
                    "it is still being written, or was not fetched whole"
                )
            if rest.strip(b"\0"):
                raise DatasetError(
                    f"{address} goes on behind its end {_after(count)}, as tars do that were put into one file: "
                    "cut them apart, or make one of what is in them"
                )


def _after(count: int) -> str:
    return f"after {count:,} whole file{'' if count == 1 else 's'}"


def _is_compressed(address: str) -> bool:
    with opened(address) as file:
        return file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))
