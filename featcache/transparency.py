"""The bytes of a PNG enter; the grey or colour in it that is transparent, or the alphas of its palette, leave.

Pillow takes a grey of 2 or 4 bits for one of 8, a last alpha of 10 in a palette for 255, and chunks that are not valid
by the PNG specification (5.6, 11.3.2.1) for transparency; libpng, and so browsers, do not.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

MAX_CHUNKS = 2**20
"""So many chunks are gone through, as many as Pillow may ask for."""

_START = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB, _INDEXED = 0, 2, 3

Transparency = int | tuple[int, ...] | bytes | None
"""As Pillow keeps it: a grey or a colour in the bits that its pixels have, or an alpha for each entry of a palette."""


@dataclass(frozen=True)
class _Chunks:
    """What a PNG has that may be transparent: its `tRNS` before and behind the pixels, and entries of its palette."""

    depth: int
    colour: int
    valid: tuple[bytes, ...]
    all: tuple[bytes, ...]


def transparency_of(data: bytes) -> Transparency:
    """Return what is transparent in a PNG without alpha of its own, `None` where nothing is, and for other files."""
    chunks = _chunks(data)
    if chunks is None or not chunks.valid:
        return None
    first, top = chunks.valid[0], 2**chunks.depth - 1
    if chunks.colour == _INDEXED:
        return first
    if chunks.colour == _RGB:
        return tuple(number & top for number in struct.unpack(">3H", first))
    grey: int = int.from_bytes(first, "big") & top
    return grey if chunks.depth > 8 else grey * 255 // top


def is_as_ever(data: bytes) -> bool:
    """Tell whether what is transparent in a file is what Pillow takes for it, and older versions took."""
    chunks = _chunks(data)
    if chunks is None:
        return True
    pillows: Transparency = None
    for body in chunks.all:
        if chunks.colour == _INDEXED:
            is_simple = body.removesuffix(b"\n").strip(b"\xff") == b"\0"
            pillows = body[: body.find(b"\0") + 1] if is_simple else body
        elif chunks.colour == _RGB:
            pillows = tuple(number & (2**chunks.depth - 1) for number in struct.unpack(">3H", body[:6].ljust(6, b"\0")))
        else:
            number = int.from_bytes(body[:2], "big")
            pillows = 255 * bool(number) if chunks.depth == 1 else number if chunks.depth > 8 else number & 255
    return _told_apart(pillows, chunks.depth) == _told_apart(transparency_of(data), chunks.depth)


def _told_apart(found: Transparency, depth: int) -> Transparency:
    """Return the same where pictures are: alphas of 255 at the end, a grey that no pixel has, and white over white."""
    if isinstance(found, bytes):
        return found.rstrip(b"\xff") or None
    if isinstance(found, int) and (
        found == (65535 if depth > 8 else 255) or (depth < 8 and found % (255 // (2**depth - 1)))
    ):
        return None
    return found


def _chunks(data: bytes) -> _Chunks | None:
    """Return what may be transparent in a PNG of grey, RGB or a palette, `None` for other files."""
    if not data.startswith(_START) or data[12:16] != b"IHDR" or len(data) < 33 or data[25] not in (0, 2, 3):
        return None
    depth, colour = data[24], data[25]
    if depth not in (1, 2, 4, 8, 16):
        return None
    at, entries, is_before = len(_START), 0, True
    valid, found = [], []
    for _ in range(MAX_CHUNKS):
        if at + 8 > len(data):
            break
        size, name = struct.unpack_from(">I4s", data, at)
        if name == b"IDAT":
            is_before = False
        elif name == b"PLTE":
            entries = min(size // 3, 2**depth)
        elif name == b"tRNS":
            body = data[at + 8 : at + 8 + size]
            found.append(body)
            is_valid = 0 < size <= entries if colour == _INDEXED else size == {_GREY: 2, _RGB: 6}[colour]
            if is_before and is_valid:
                valid.append(body)
        at += size + 12
    return _Chunks(depth, colour, tuple(valid), tuple(found))
