"""The bytes of a picture enter; how many bits its numbers have, and whether Pillow gives them right, leave.

Pillow rounds numbers of a JPEG 2000 to 8 bits without a limit, so that white becomes black, does not spread those of
fewer bits to all of 8, and passes over what its boxes say of its channels.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from featcache.codestreams import boxes
from featcache.errors import PictureError

MAX_BOX = 2**12
"""So many bytes of a box are looked at."""

_TELLING = {b"ihdr", b"colr", b"pclr", b"cdef"}
_CODESTREAM = b"\xff\x4f\xff\x51"
_START = b"\0\0\0\x0cjP  "
_CMYK, _GREY, _YCC = 12, 17, 18
_SPACES = {_CMYK, 16, _GREY, _YCC, 21}
"""The numbers of colour spaces that Pillow knows, or that differ from sRGB no more than a profile does."""


@dataclass(frozen=True)
class Channels:
    """How many bits the channels of a JPEG 2000 have, and which of them are signed.

    `is_wide` where Pillow keeps 16 bits of the one channel; `odd` says what it passes over, empty where nothing.
    """

    bits: tuple[int, ...]
    signed: tuple[bool, ...]
    is_wide: bool
    is_ycc: bool
    odd: str

    @property
    def is_pillows(self) -> bool:
        """Whether Pillow gives these channels right."""
        if self.is_wide:
            return not self.odd and 8 <= self.bits[0] <= 16
        return not self.odd and set(self.bits) == {8}

    @property
    def is_spread(self) -> bool:
        """Whether what Pillow gives becomes right where it is spread to all of 8 bits."""
        return not self.odd and not self.is_wide and max(self.bits) <= 8 and not self.is_ycc

    def check(self) -> None:
        """Raise `PictureError` for what is not decoded."""
        if self.is_pillows or self.is_spread:
            return
        bits = ", ".join(map(str, sorted(set(self.bits))))
        kind = self.odd or f"{len(self.bits)} channel{'s' * (len(self.bits) > 1)} of {bits} bits"
        raise PictureError(f"JPEG 2000 with {kind}, which is not decoded here: save it as PNG or TIFF")

    @property
    def table(self) -> list[int]:
        """What the levels that Pillow gives are, for each channel: those of few bits are its upper ones."""
        return [
            ((level >> (8 - bits)) * 510 + 2**bits - 1) // (2 * (2**bits - 1))
            for bits in self.bits
            for level in range(256)
        ]


def channels_of(data: bytes) -> Channels | None:
    """Return the channels of a JPEG 2000, `None` for other files; raises `PictureError` for a broken one."""
    if data.startswith(_CODESTREAM):
        return _channels(data, 0, None)
    if not data.startswith(_START):
        return None
    header: dict[bytes, bytes] | None = None
    for name, at, end in boxes(data):
        if name == b"jp2h" and header is None:
            header = {}
            for inner, first, last in boxes(data, at, end):
                if inner in _TELLING:
                    header.setdefault(inner, data[first : min(last, first + MAX_BOX)])  # OpenJPEG takes the first
        elif name == b"jp2c" and header is not None:
            return _channels(data, at, header)
    raise PictureError("broken picture: a JPEG 2000 without a header or a codestream")


def is_as_ever(data: bytes) -> bool:
    """Tell whether a file is no JPEG 2000, or one that Pillow gives right, as older versions left it to Pillow."""
    try:
        channels = channels_of(data)
    except PictureError:
        return True  # no version decodes it
    return channels is None or channels.is_pillows


def is_deep(data: bytes) -> bool:
    """Tell whether the numbers of a PNG, SGI, AVIF or HEIC, or in an icon, have more than 8 bits."""
    if data.startswith(b"\x89PNG"):
        return data[24:25] == b"\x10"
    if data.startswith(b"\x01\xda"):
        return data[3:4] == b"\2"
    if data.startswith((b"\0\0\1\0", b"icns")):
        return re.search(b"IHDR.{8}\x10", data, re.DOTALL) is not None
    if data[4:8] != b"ftyp":
        return False
    av1 = re.findall(b"av1C\x81.(.)", data, re.DOTALL)
    hevc = re.findall(b"hvcC\x01.{16}(.)", data, re.DOTALL)
    return any(said[0] & 0x40 for said in av1) or any(said[0] & 7 for said in hevc)


def _channels(data: bytes, at: int, header: dict[bytes, bytes] | None) -> Channels:
    n = int.from_bytes(data[at + 40 : at + 42], "big")
    each = data[at + 42 : at + 42 + 3 * n]
    if data[at : at + 4] != _CODESTREAM or not 1 <= n <= 4 or len(each) < 3 * n:
        raise PictureError("broken picture: a JPEG 2000 of no known channels")
    bits = tuple((said & 127) + 1 for said in each[::3])
    odd = "" if set(each[1::3] + each[2::3]) == {1} else "channels of fewer pixels"
    is_wide, space = n == 1 and bits[0] > 8, None
    if header is not None:
        told, depth = struct.unpack(">HB", header.get(b"ihdr", b"")[8:11].ljust(3, b"\0"))
        is_wide = told == 1 and depth & 127 > 8
        colour = header.get(b"colr", b"")
        space = int.from_bytes(colour[3:7], "big") if colour[:1] == b"\1" else None
        if told != n:
            odd = odd or f"{told} channels in its header and {n} in its pixels"
        if space not in {None, *_SPACES}:
            odd = odd or f"the colour space {space}"
        odd = odd or _odd_palette(header.get(b"pclr"), space, bits)
        odd = odd or _odd_order(header.get(b"cdef"), n, n - (n == 2 or (n == 4 and space != _CMYK)))
    return Channels(bits, tuple(said > 127 for said in each[::3]), is_wide, space == _YCC, odd)


def _odd_palette(palette: bytes | None, space: int | None, bits: tuple[int, ...]) -> str:
    if palette is None:
        return ""
    depths = palette[3 : 3 + palette[2]] if len(palette) > 2 else b""
    return "" if set(depths) == {7} and bits[0] == 8 and space != _GREY else "a palette of an unusual kind"


def _odd_order(definition: bytes | None, n: int, colours: int) -> str:
    """Return what is unusual in which channel is which: colours come first, in their order, then alpha."""
    if definition is None:
        return ""
    found = sorted(struct.iter_unpack(">3H", definition[2 : 2 + (len(definition) - 2) // 6 * 6]))
    usual = [(at, 0, at + 1) for at in range(colours)] + [(at, 1, 0) for at in range(colours, n)]
    return "" if found == usual else "channels in an unusual order"
