"""Tensors and what is known of them enter; one safetensors file leaves, sealed with its own sha256, and comes back.

Nothing in such a file can run. The format is that of safetensors: eight bytes with the length of the header, the header
in JSON, then the bytes of all tensors, end to end.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

SUFFIX = ".safetensors"

HEADER_BYTES = 2**24
"""A longer header is not read: as Python objects it can take twenty times its length."""

MOST_HOLES, ALWAYS_BYTES = 4, 2**24
"""A file has at most so many times the bytes that are really in it, or these."""

SIZES = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2"), 1),
}
"""The types of tensors that are read, with the bytes of a value."""

_NUMPY = {"F64": "<f8", "F32": "<f4", "I64": "<i8", "U8": "|u1"}
_METADATA = "__metadata__"
_KNOWN = "featcache"
_SEAL = "sha256"
_BLANK = "0" * 64

Bytes = bytes | bytearray | memoryview


@dataclass(frozen=True)
class Tensor:
    """The bytes of one tensor, with its type by the name that safetensors has for it, and its shape."""

    dtype: str
    shape: tuple[int, ...]
    data: Bytes

    def array(self) -> npt.NDArray[Any]:
        """Return a copy as an array of float64, float32, int64 or uint8; raises `ValueError` for another type."""
        if self.dtype not in _NUMPY:
            raise ValueError(f"a tensor has the type {self.dtype}, not one of {', '.join(_NUMPY)}")
        return np.frombuffer(self.data, _NUMPY[self.dtype]).reshape(self.shape).copy()


@dataclass(frozen=True)
class Content:
    """What a file holds: tensors by name, what featcache noted beside them, if anything, and whether it has a seal."""

    tensors: Mapping[str, Tensor]
    known: Mapping[str, Any] | None
    is_sealed: bool


def of_array(array: npt.NDArray[Any]) -> Tensor:
    """Return the tensor with the values of an array of a type that `array` gives; raises `ValueError` for another."""
    for name, dtype in _NUMPY.items():
        if array.dtype == np.dtype(dtype):
            return Tensor(name, array.shape, np.ascontiguousarray(array, dtype).tobytes())
    raise ValueError(f"values of the type {array.dtype} are not kept, only {', '.join(_NUMPY)}")


def pack(tensors: Mapping[str, Tensor], known: Mapping[str, Any]) -> bytes:
    """Return a sealed file with these tensors and plain values; equal ones give equal bytes.

    Raises `ValueError` for values that are not JSON, as infinite ones, and for more of them than is read back.
    """
    noted = {_KNOWN: json.dumps(known, allow_nan=False, separators=(",", ":")), _SEAL: _BLANK}
    header: dict[str, Any] = {_METADATA: noted}
    at, parts = 0, list[Bytes]()
    for name in sorted(tensors, key=lambda name: (-SIZES[tensors[name].dtype], name)):  # so each begins at its own size
        tensor = tensors[name]
        end = at + len(tensor.data)
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": (at, end)}
        parts.append(tensor.data)
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > HEADER_BYTES:
        raise ValueError(f"names of tensors and what is known of them take {len(text):,} bytes, over {HEADER_BYTES:,}")
    start = len(text).to_bytes(8, "little")
    blank, digest = _seal(_BLANK), _seal(_digest(start, text, *parts))
    return b"".join([start, text.replace(blank, digest, 1), *parts])


def unpack(data: Bytes) -> Content:
    """Return what the bytes of a file hold; the tensors are views of them.

    A seal that is there must be right. Raises `ValueError` with the reason for anything that is not wholly as it should
    be; memory is bounded by the length of `data` and by `HEADER_BYTES`.
    """
    whole = memoryview(data)
    if len(whole) < 8:
        raise ValueError("it is too short for a safetensors file")
    length = int.from_bytes(whole[:8], "little")
    if length > min(HEADER_BYTES, len(whole) - 8):
        raise ValueError(f"its header would take {length:,} bytes")
    text, body = bytes(whole[8 : 8 + length]), whole[8 + length :]
    header = read_json(text)
    if not isinstance(header, dict):
        raise ValueError("its header is not a table")
    noted = header.pop(_METADATA, {})
    if not isinstance(noted, dict) or not all(isinstance(value, str) for value in noted.values()):
        raise ValueError("its metadata are not texts")
    known = _known(noted)
    if _SEAL in noted and known is not None:
        _check(noted[_SEAL], whole[:8], text, body)
    return Content(_tensors(header, body), known, _SEAL in noted and known is not None)


def looks_like_one(data: Bytes) -> bool:
    """Tell whether bytes begin as a file of `pack` does; no pickle, packed or not, begins so."""
    return int.from_bytes(data[:8], "little") <= HEADER_BYTES and data[8:9] == b"{"


@contextlib.contextmanager
def opened(path: Path, links: bool = True) -> Iterator[io.BufferedReader]:
    """Open a regular file; raises `OSError`, also for what is none, as a pipe or a device that never ends.

    Without `links` a path that is one is none, either.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe would be waited for
    descriptor = os.open(path, flags if links else flags | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(0, "it is not a regular file", str(path))
        yield file


def check_there(descriptor: int) -> None:
    """Raise `OSError` where most bytes of an open file are holes, which cost no disk, but memory when they are read.

    A file system without holes says that there are none, and one that packs its files says how many bytes it gives.
    """
    size = os.fstat(descriptor).st_size
    there = at = 0
    try:
        while size > ALWAYS_BYTES and there < size // MOST_HOLES:
            start = os.lseek(descriptor, at, os.SEEK_DATA)
            at = os.lseek(descriptor, start, os.SEEK_HOLE)
            there += at - start
    except OSError as error:
        if error.errno == errno.ENXIO:  # the rest is a hole
            said = f"it says to have {size:,} bytes, and most of them are not there (holes)"
            raise OSError(errno.EFBIG, said) from error
    finally:
        os.lseek(descriptor, 0, os.SEEK_SET)


def read_whole(path: Path, links: bool = True) -> bytearray:
    """Return the bytes of a regular file, read once; raises `OSError` as `opened` does."""
    with opened(path, links) as file:
        check_there(file.fileno())
        try:
            data = bytearray(os.fstat(file.fileno()).st_size)
        except MemoryError as error:
            raise OSError(0, "it does not fit into memory", str(path)) from error
        del data[file.readinto(data) :]
        return data


def without_infinite(value: Any) -> Any:
    """Return plain values with `None` for numbers that are not finite, which JSON does not have."""
    if isinstance(value, Mapping):
        return {name: without_infinite(one) for name, one in value.items()}
    if isinstance(value, tuple | list):
        return [without_infinite(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(text: bytes | str) -> Any:
    """Return the value of strict JSON: no name twice, no infinite number, no broken text; raises `ValueError`."""
    try:
        found = json.loads(text, object_pairs_hook=_table, parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None
    check_texts(text, found)
    return found


def check_texts(text: bytes | str, found: Any) -> None:
    """Raise `ValueError` where JSON `text` spells out halves of characters, which no name of a file can have."""
    said = text if isinstance(text, str) else text.decode(errors="replace")
    if "\\ud" in said.lower():
        try:
            json.dumps(found, ensure_ascii=False).encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise ValueError("it has half a character (a surrogate) in it") from None


def _known(noted: Mapping[str, str]) -> Mapping[str, Any] | None:
    if _KNOWN not in noted:
        return None
    strange = sorted(noted.keys() - {_KNOWN, _SEAL})
    if strange:
        raise ValueError(f"its metadata hold {strange[0]!r:.80}")
    known = read_json(noted[_KNOWN]) if _SEAL in noted else json.loads(noted[_KNOWN])  # an older one may hold NaN
    if not isinstance(known, dict):
        raise ValueError("what is known of it is not a table")
    return known


def _check(said: str, start: memoryview, text: bytes, body: memoryview) -> None:
    seal = _seal(said) if said.isascii() else b""
    if len(said) != len(_BLANK) or text.count(seal) != 1:
        raise ValueError("its seal is not where it belongs")
    if _digest(start, text.replace(seal, _seal(_BLANK)), body) != said:
        raise ValueError("it is damaged: its sha256 is not the one that it says")


def _seal(digest: str) -> bytes:
    return f'"{_SEAL}":"{digest}"'.encode()


def _digest(*parts: Bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _tensors(header: Mapping[str, Any], body: memoryview) -> dict[str, Tensor]:
    places = []
    for name, entry in header.items():
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"tensor {name!r:.80} is not described by type, shape and place")
        dtype, shape, place = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in SIZES:
            raise ValueError(f"tensor {name!r:.80} has the type {dtype!r:.80}, which is not read")
        if not _are_sizes(shape) or not _are_sizes(place) or len(place) != 2 or len(shape) > 32:
            raise ValueError(f"tensor {name!r:.80} has a shape or a place that is none")
        if place[1] - place[0] != math.prod(shape) * SIZES[dtype]:
            raise ValueError(f"tensor {name!r:.80} does not have the bytes of its shape")
        places.append((place[0], place[1], name, dtype, tuple(shape)))
    found, at = {}, 0
    for start, end, name, dtype, shape in sorted(places):
        if start != at or end > len(body):
            raise ValueError(f"tensor {name!r:.80} does not begin where the one before ends, or is cut off")
        found[name], at = Tensor(dtype, shape, body[start:end]), end
    if at != len(body):
        raise ValueError(f"{len(body) - at:,} bytes belong to no tensor")
    return {name: found[name] for name in header}


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _table(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("its JSON names something twice")
    return table


def _refuse(word: str) -> Any:
    raise ValueError(f"its JSON holds {word}")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"its JSON holds {text:.40}, which is not finite")
    return value
