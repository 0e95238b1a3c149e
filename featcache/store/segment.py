"""Rows (keys, vectors) enter and an HDF5 image leaves; a segment file enters and checked arrays leave."""

from __future__ import annotations

import os
import secrets
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from featcache.errors import CacheError, CacheVersionError
from featcache.records import FloatArray

FORMAT = "featcache-segment"
FORMAT_VERSION = 1
KEY_BYTES = 32

Keys = npt.NDArray[np.uint8]


class SegmentError(CacheError):
    """A segment whose bytes are not what its writer committed."""


@dataclass(frozen=True)
class Header:
    """The root attributes of a segment, and the names of the segments it replaces."""

    n_rows: int
    dim: int
    dtype: str
    fingerprint: str
    writer: str
    created_ns: int
    replaces: tuple[str, ...] = ()


@dataclass
class Writer:
    """Names segments so that no two writers, processes or machines ever choose the same name."""

    identity: str = field(default_factory=lambda: secrets.token_hex(4))
    sequence: int = 0

    def next_name(self, created_ns: int) -> str:
        """Return `seg-<utc_ns>-<writer>-<seq>.h5`; names sort by time of commit."""
        self.sequence += 1
        return f"seg-{created_ns:020d}-{self.identity}-{self.sequence:08d}.h5"


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
    return zlib.crc32("\n".join(texts).encode())


def read_keys(path: Path, fingerprint: str) -> tuple[Header, Keys]:
    """Return a segment's header and keys, checked: format, version, fingerprint, shapes, crc of the keys.

    Raises `FileNotFoundError` where the file is gone, `CacheVersionError` for a newer format, else `SegmentError`.
    """
    with _open(path) as file:
        header = _header(file, path, fingerprint)
        return header, _checked(file, "keys", path)


def read_features(path: Path, header: Header) -> FloatArray:
    """Return a segment's vectors (n, d), checked against their crc; raises as `read_keys` does."""
    with _open(path) as file:
        if _header(file, path, header.fingerprint) != header:
            raise SegmentError(f"{path} is not the segment it was a moment ago")
        return _checked(file, "features", path)


@contextmanager
def _open(path: Path) -> Iterator[h5py.File]:
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except (CacheError, FileNotFoundError, MemoryError):
        raise
    except Exception as error:  # h5py raises many types on broken bytes
        if isinstance(error, OSError) and error.errno is not None:  # the system's refusal says nothing of the bytes
            raise CacheError(f"cannot read {path}: {os.strerror(error.errno)}") from error
        raise SegmentError(f"{path} cannot be read as a segment: {error}") from error


def _header(file: h5py.File, path: Path, fingerprint: str) -> Header:
    attributes = dict(file.attrs)
    if attributes.get("format") != FORMAT.encode():
        raise SegmentError(f"{path} is not a featcache segment")
    if attributes["crc32_attributes"] != attributes_crc(attributes):
        raise SegmentError(f"{path}: the checksum of its attributes does not match")
    if attributes["format_version"] != FORMAT_VERSION:
        raise CacheVersionError(
            f"{path} has segment format {attributes['format_version']}, this featcache reads {FORMAT_VERSION}: "
            "use the featcache that wrote it, or another --cache"
        )
    replaces = (name.decode() for name in _checked(file, "replaces", path)) if "crc32_replaces" in attributes else ()
    header = Header(
        n_rows=int(attributes["n_rows"]),
        dim=int(attributes["dim"]),
        dtype=attributes["dtype"].decode(),
        fingerprint=attributes["fingerprint"].decode(),
        writer=attributes["writer"].decode(),
        created_ns=int(attributes["created_ns"]),
        replaces=tuple(replaces),
    )
    if header.fingerprint != fingerprint:
        raise SegmentError(f"{path} holds features of another fingerprint ({header.fingerprint[:16]})")
    features, keys = file["features"], file["keys"]
    if (
        features.shape != (header.n_rows, header.dim)
        or features.dtype != np.dtype(header.dtype)
        or keys.shape != (header.n_rows, KEY_BYTES)
        or keys.dtype != np.uint8
    ):
        raise SegmentError(f"{path} has data of other shapes than it declares")
    return header


def _checked(file: h5py.File, name: str, path: Path) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = file[name][()]
    if _crc32(array) != int(file.attrs[f"crc32_{name}"]):
        raise SegmentError(f"{path}: the checksum of {name!r} does not match its bytes")
    return array


def _crc32(array: npt.NDArray[Any]) -> int:
    return zlib.crc32(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data)
