"""Rows (keys, vectors) enter and a segment file leaves; a segment file enters and checked arrays leave."""

from __future__ import annotations

import os
import secrets
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
from isal.isal_zlib import crc32  # zlib's crc32, seven times as fast: every read is checked

from featcache.errors import CacheError, CacheVersionError, refusal
from featcache.records import DTYPES, FloatArray
from featcache.store.files import UNREADABLE, denied, open_bounded, write_atomic
from featcache.store.hdf5 import open_to_read
from featcache.store.shares import Share

FORMAT = "featcache-segment"
FORMAT_VERSION = 1
KEY_BYTES = 32
CHUNK_BYTES = 2**20
"""Vectors are read in pieces of this size, so that the checksum finds them in the processor's cache."""

MOST_ATTRIBUTES, ATTRIBUTE_BYTES = 32, 4096

SMALL_BYTES = 64 * 2**20
"""Segments with less than this are merged by a compaction."""

Keys = npt.NDArray[np.uint8]


class SegmentError(CacheError):
    """A segment whose bytes are not what its writer committed."""


@dataclass(frozen=True)
class Header:
    """The root attributes of a segment, the names of the segments it replaces, and where its vectors begin."""

    n_rows: int
    dim: int
    dtype: str
    fingerprint: str
    writer: str
    created_ns: int
    crc32_features: int
    features_at: int
    replaces: tuple[str, ...] = ()

    @property
    def row_bytes(self) -> int:
        """The bytes of one vector."""
        return self.dim * np.dtype(self.dtype).itemsize

    @property
    def n_bytes(self) -> int:
        """The bytes of all vectors and keys."""
        return self.n_rows * (self.row_bytes + KEY_BYTES)


@dataclass
class Segment:
    """A segment file as listed: its name, header and keys (n, 32)."""

    name: str
    header: Header
    keys: Keys

    @property
    def shape(self) -> tuple[int, str]:
        """The length of its vectors, and the type of their values."""
        return self.header.dim, self.header.dtype


@dataclass
class Writer:
    """Names segments so that no two writers, processes or machines ever choose the same name."""

    identity: str = field(default_factory=lambda: secrets.token_hex(4))
    sequence: int = 0

    def next_name(self, created_ns: int) -> str:
        """Return `seg-<utc_ns>-<writer>-<seq>.h5`; names sort by time of commit."""
        self.sequence += 1
        return f"seg-{created_ns:020d}-{self.identity}-{self.sequence:08d}.h5"


def commit(
    folder: Path,
    writer: Writer,
    fingerprint: str,
    keys: Keys,
    features: FloatArray,
    replaces: Sequence[str] = (),
    share: Share | None = None,
) -> None:
    """Write one segment, whole or not at all; when this returns its rows survive a kill and a power loss.

    Where there is a `share`, they are there first: what is here alone would never be put there.
    """
    created_ns = time.time_ns()
    image = build_image(
        keys,
        features,
        fingerprint=fingerprint,
        writer=writer.identity,
        created_ns=created_ns,
        replaces=replaces,
    )
    name = writer.next_name(created_ns)
    if share is not None:
        share.put(f"segments/{folder.name}", name, image)
    write_atomic(folder / name, image, folders=2)


def build_image(
    keys: Keys,
    features: FloatArray,
    *,
    fingerprint: str,
    writer: str,
    created_ns: int,
    replaces: Sequence[str] = (),
) -> bytes:
    """Return the bytes of an HDF5 file that holds `keys` (n, 32) and `features` (n, d), made in memory only."""
    arrays: dict[str, npt.NDArray[Any]] = {"features": features, "keys": keys}
    if replaces:
        arrays["replaces"] = np.array([name.encode() for name in replaces])
    options = {"driver": "core", "backing_store": False, "libver": ("earliest", "v110")}
    with h5py.File(f"featcache-{secrets.token_hex(8)}", "w", **options) as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array)
            file.attrs[f"crc32_{name}"] = np.uint32(_crc32(array))
        texts = {"format": FORMAT, "dtype": features.dtype.name, "fingerprint": fingerprint, "writer": writer}
        for name, text in texts.items():
            # Of fixed length: flipped bits in HDF5's heap of variable strings were seen to hang and crash readers.
            file.attrs[name] = np.bytes_(text.encode())
        file.attrs["format_version"] = FORMAT_VERSION
        file.attrs["n_rows"], file.attrs["dim"] = features.shape
        file.attrs["created_ns"] = created_ns
        file.attrs["crc32_attributes"] = np.uint32(attributes_crc(file.attrs))
        file.flush()
        return bytes(file.id.get_file_image())


def attributes_crc(attributes: Mapping[str, Any]) -> int:
    """Return the crc32 over all root attributes but itself, in every format version: name=value, sorted, one a line."""
    named = sorted((name, value) for name, value in attributes.items() if name != "crc32_attributes")
    texts = (f"{name}={value.decode() if isinstance(value, bytes) else value}" for name, value in named)
    return crc32("\n".join(texts).encode())


def read_keys(path: Path, fingerprint: str) -> tuple[Header, Keys]:
    """Return a segment's header and keys, checked: format, version, fingerprint, shapes, crc of the keys.

    Raises `FileNotFoundError` where the file is gone, `CacheVersionError` for a newer format, else `SegmentError`.
    """
    with _open(path) as file:
        header = _header(file, path, fingerprint)
        return header, _checked(file, "keys", path)


def declared_fingerprint(path: Path) -> str:
    """Return the fingerprint that a segment says it holds; raises as `read_keys` does."""
    with _open(path) as file:
        return _header(file, path, None).fingerprint


def read_features(path: Path, header: Header, out: FloatArray | None = None) -> FloatArray:
    """Return a segment's vectors (n, d), read into `out` where it is given; checked, and raises as `read_keys` does."""
    result = np.empty((header.n_rows, header.dim), header.dtype) if out is None else out
    for _ in _stream(path, header, lambda first, last: result[first:last]):
        pass
    return result


def check_features(path: Path, header: Header) -> None:
    """Read all vectors of a segment and compare their crc; raises as `read_keys` does."""
    values = replace(header, n_rows=header.n_rows * header.dim, dim=1)  # however long a row is, little is held
    buffer = _buffer(values)
    for _ in _stream(path, values, lambda first, last: buffer[: last - first]):
        pass


def read_rows(
    path: Path, header: Header, rows: npt.NDArray[np.intp], result: FloatArray, places: npt.NDArray[np.intp]
) -> None:
    """Put the vectors `rows` (m, ascending) of a segment into `result` at `places` (m), holding little beside it.

    The whole segment is read and checked; raises as `read_keys` does, and then `result` is not to be used.
    """
    buffer = _buffer(header)
    follows = (np.diff(rows) == 1) & (np.diff(places) == 1)

    def target(first: int, last: int) -> FloatArray:
        low, high = np.searchsorted(rows, (first, last))
        if high - low == last - first and follows[low : high - 1].all():
            return result[places[low] : places[low] + high - low]
        return buffer[: last - first]

    for first, vectors in _stream(path, header, target):
        if vectors.base is buffer:
            low, high = np.searchsorted(rows, (first, first + len(vectors)))
            result[places[low:high]] = vectors[rows[low:high] - first]


def stream_rows(path: Path, header: Header, rows: npt.NDArray[np.intp]) -> Iterator[tuple[slice, FloatArray]]:
    """Yield the vectors `rows` (m, ascending) of a segment piece by piece, each with the slice of `rows` that it has.

    The whole segment is read, and checked at the end; raises as `read_keys` does, and then nothing of it is to be used.
    """
    buffer = _buffer(header)
    for first, vectors in _stream(path, header, lambda first, last: buffer[: last - first]):
        low, high = np.searchsorted(rows, (first, first + len(vectors)))
        if low < high:
            yield slice(low, high), vectors[rows[low:high] - first]


def _buffer(header: Header) -> FloatArray:
    return np.empty((max(1, CHUNK_BYTES // header.row_bytes), header.dim), header.dtype)


def _stream(path: Path, header: Header, target: Callable[[int, int], FloatArray]) -> Iterator[tuple[int, FloatArray]]:
    """Read the vectors `first` to `last`, piece by piece, into the arrays that `target` gives; then check the crc.

    Past HDF5, whose lock lets one thread read at a time: a contiguous data set is its bytes at an offset.
    """
    checksum, is_finite, step = 0, True, max(1, CHUNK_BYTES // header.row_bytes)
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(header.features_at)
            for first in range(0, header.n_rows, step):
                vectors = target(first, min(first + step, header.n_rows))
                rest = vectors.reshape(-1).view(np.uint8).data
                while rest:
                    got = file.readinto(rest)
                    if not got:
                        raise SegmentError(f"{path} is cut short")
                    rest = rest[got:]
                checksum = crc32(vectors.reshape(-1).view(np.uint8).data, checksum)
                is_finite = is_finite and bool(np.isfinite(vectors).all())
                yield first, vectors
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CacheError(denied(path) or f"cannot read {path}: {refusal(error)}") from error
    if checksum != header.crc32_features:
        raise SegmentError(f"{path}: the checksum of 'features' does not match its bytes")
    if not is_finite:
        raise SegmentError(f"{path} has vectors with values that are not finite")


@contextmanager
def _open(path: Path) -> Iterator[h5py.File]:
    try:
        if not stat.S_ISREG(mode := os.lstat(path).st_mode):  # a link could lead to vectors of somebody else
            raise SegmentError(f"{path} is {'a link' if stat.S_ISLNK(mode) else 'no regular file'}")
        _check_file(path)
        with open_to_read(path) as file:
            yield file
    except (CacheError, FileNotFoundError, MemoryError):
        raise
    except Exception as error:  # h5py raises many types on broken bytes
        if isinstance(error, OSError) and error.errno is not None:  # the system's refusal says nothing of the bytes
            said = refusal(OSError(error.errno, os.strerror(error.errno)))  # HDF5's own words are many
            raise CacheError(denied(path) or f"cannot read {path}: {said}") from error
        if not path.exists():  # HDF5 says it without an errno where it vanishes between open and stat
            raise FileNotFoundError(path) from error
        raise SegmentError(f"{path} cannot be read as a segment: {error}") from error


def _check_file(path: Path) -> None:
    try:
        with open_bounded(path, sys.maxsize):
            pass
    except OSError as error:
        if error.errno not in UNREADABLE:
            raise
        raise SegmentError(f"{path} cannot be read as a segment: {error.strerror}") from error


def _header(file: h5py.File, path: Path, fingerprint: str | None) -> Header:
    _check_attributes(file, path)
    attributes = dict(file.attrs)
    if attributes.get("format") != FORMAT.encode():
        raise SegmentError(f"{path} is not a featcache segment")
    if attributes["crc32_attributes"] != attributes_crc(attributes):
        raise SegmentError(f"{path}: the checksum of its attributes does not match")
    if attributes["format_version"] != FORMAT_VERSION:
        raise CacheVersionError(
            f"{path} has segment format {attributes['format_version']}, this featcache reads {FORMAT_VERSION}: "
            "use the featcache that wrote it, another --cache, or put it aside with `featcache cache verify --repair`"
        )
    features, keys = (_plain(file, name, path) for name in ("features", "keys"))
    replaces = (name.decode() for name in _checked(file, "replaces", path)) if "crc32_replaces" in attributes else ()
    header = Header(
        n_rows=int(attributes["n_rows"]),
        dim=int(attributes["dim"]),
        dtype=attributes["dtype"].decode(),
        fingerprint=attributes["fingerprint"].decode(),
        writer=attributes["writer"].decode(),
        created_ns=int(attributes["created_ns"]),
        crc32_features=int(attributes["crc32_features"]),
        features_at=features.id.get_offset(),
        replaces=tuple(replaces),
    )
    if fingerprint not in (None, header.fingerprint):
        raise SegmentError(f"{path} holds features of another fingerprint ({header.fingerprint[:16]})")
    if (
        features.shape != (header.n_rows, header.dim)
        or header.dtype not in DTYPES
        or header.dim < 1
        or features.dtype != np.dtype(header.dtype)
        or keys.shape != (header.n_rows, KEY_BYTES)
        or keys.dtype != np.uint8
    ):
        raise SegmentError(f"{path} has data of other shapes than it declares")
    return header


def _check_attributes(file: h5py.File, path: Path) -> None:
    """Raise `SegmentError` where attributes are more, or larger, than what featcache writes: reading makes room."""
    names = list(file.attrs) if len(file.attrs) <= MOST_ATTRIBUTES else None
    if names is None or any(file.attrs.get_id(name).get_storage_size() > ATTRIBUTE_BYTES for name in names):
        raise SegmentError(f"{path} has attributes that featcache does not write")


def _plain(file: h5py.File, name: str, path: Path) -> h5py.Dataset:
    """Return a data set whose bytes stand in this file in one piece; others may reach elsewhere, or be bombs."""
    if not isinstance(file.get(name, getlink=True), h5py.HardLink) or not isinstance(file[name], h5py.Dataset):
        raise SegmentError(f"{path} has no data set {name!r} of its own")
    found = file[name]
    offset = None if found.is_virtual or found.external or found.chunks else found.id.get_offset()
    if offset is None or found.dtype.hasobject or offset + found.nbytes > os.stat(path).st_size:
        raise SegmentError(f"{path} does not hold {name!r} as plain bytes, as featcache writes it")
    return found


def _checked(file: h5py.File, name: str, path: Path) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = _plain(file, name, path)[()]
    if _crc32(array) != int(file.attrs[f"crc32_{name}"]):
        raise SegmentError(f"{path}: the checksum of {name!r} does not match its bytes")
    return array


def _crc32(array: npt.NDArray[Any]) -> int:
    return crc32(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data)
