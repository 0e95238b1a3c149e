"""A zip or tar archive enters; the names in it and, one by one, the bytes behind them leave: nothing is unpacked."""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator

from featcache.errors import DatasetError, PictureError
from featcache.sources.containers import Bytes, opened
from featcache.sources.local import MAX_BYTES, check_size

MOST_COMPRESSED = 200
BOMB_BYTES = 2**24
"""What is compressed more often than this, and larger than that, is no photograph but meant to fill the memory."""


class ZipArchive:
    """A zip archive; `names` are the files in it that a folder could hold too, `left_out` the others."""

    def __init__(self, address: str) -> None:
        self._address = address
        try:
            self._zip = zipfile.ZipFile(opened(address))
        except (zipfile.BadZipFile, OSError, EOFError, ValueError) as error:
            raise DatasetError(f"{address} is no whole zip archive ({error}): fetch or make it again") from error
        entries = [entry for entry in self._zip.infolist() if not entry.is_dir()]
        self.names = list(dict.fromkeys(entry.filename for entry in entries if is_inside(entry.filename)))
        self.left_out = [entry.filename for entry in entries if not is_inside(entry.filename)]

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
            with self._zip.open(entry) as file:
                return file.read(MAX_BYTES)
        except KeyError:
            raise PictureError(f"no such file in {self._address}") from None
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, NotImplementedError) as error:
            raise PictureError(f"cannot be read from {self._address}: {error}") from error


class TarArchive:
    """An uncompressed tar archive, its names listed once; `names` and `left_out` as in `ZipArchive`."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._bytes = Bytes(address)
        self._places: dict[str, tuple[int, int]] = {}
        self.left_out: list[str] = []
        for member in _members(address):
            if member.isdir():
                continue
            name = member.name.removeprefix("./")
            if member.isreg() and not member.issparse() and is_inside(name):
                self._places[name] = member.offset_data, member.size
            else:
                self.left_out.append(member.name)

    @property
    def names(self) -> Iterable[str]:
        """The files in the archive, in their order there."""
        return self._places

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
    """Tell whether a name stays in the archive: it is relative, and goes up nowhere."""
    return not (name.startswith("/") or "\\" in name or "\0" in name or ".." in name.split("/"))


def _members(address: str) -> Iterator[tarfile.TarInfo]:
    """Yield what is in a tar archive; raises `DatasetError` for one that is compressed, broken or cut short."""
    count, end = 0, 0
    with opened(address) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for member in archive:
                    yield member
                    count, end = count + 1, archive.offset
        except (tarfile.TarError, OSError, EOFError, ValueError) as error:
            if not count and _is_compressed(address):
                raise DatasetError(
                    f"{address} is a compressed tar, in which no file can be reached without all before it: "
                    "decompress it once to a .tar"
                ) from error
            raise DatasetError(f"{address} is cut short or broken {_after(count)} ({error}): fetch it again") from error
        file.seek(end)
        if file.read(512) != bytes(512):
            raise DatasetError(f"{address} is cut short {_after(count)}, or still being written: fetch it again")


def _after(count: int) -> str:
    return f"after {count:,} whole file{'' if count == 1 else 's'}"


def _is_compressed(address: str) -> bool:
    with opened(address) as file:
        return file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))
