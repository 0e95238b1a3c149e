"""The bytes of a picture in an old format enter; what Pillow would get wrong of it, mended or by name, leaves."""

from __future__ import annotations

import struct

_CURSOR, _ICON = b"\0\0\2\0", b"\0\0\1\0"
_SUN = b"\x59\xa6\x6a\x95"
_OF_PSD = {(1, 1), (2, 1), (3, 3), (4, 4)}
"""The modes of Photoshop that are decoded, each with the channels that it has where none is alpha or a selection."""

_TGA = {1, 2, 3, 9, 10, 11}
_WITH_PALETTE = {1, 9}


def flaw_of(data: bytes) -> str | None:
    """Return what a file is whose pixels Pillow gives wrong, or may do so, `None` where there is nothing to say."""
    if data.startswith(b"8BPS"):
        channels, depth, mode = struct.unpack(">H8xHH", data[12:26].ljust(14, b"\0"))
        if depth != 8 or (mode, channels) not in _OF_PSD:
            return f"PSD in mode {mode} with {channels} channels of {depth} bits"
    elif data.startswith(_SUN) and data[12:16] == b"\0\0\0\x20":
        return "Sun raster of 32 bits"
    elif data.startswith(_CURSOR) and data[4:6] != b"\0\0":  # else a TGA
        return "cursor, whose mask says what is transparent"
    elif data.startswith(_ICON):
        return "icon of 32 bits that is no PNG" if _has_deep_bitmap(data) else None
    elif _is_tga(data) and (data[16] == 16 or (data[16] == 32 and not data[17] & 15)):
        return f"TGA of {data[16]} bits that do not say what is transparent"
    elif _is_tga(data) and data[2] in _WITH_PALETTE and data[7] in (16, 32):
        return f"TGA with a palette of {data[7]} bits"
    return None


def is_as_ever(data: bytes) -> bool:
    """Tell whether a file is none that Pillow gives wrong, as all versions left it to Pillow."""
    return flaw_of(data) is None and mended(data) is data


def mended(data: bytes) -> bytes:
    """Return a BMP whose palette is a ramp of greys with one colour more, which it does not use; others as they are.

    Pillow takes such pixels for the greys themselves, with a bit or a byte for each, where they have 4 bits, or 8 bits
    and two colours.
    """
    if not data.startswith(b"BM") or len(data) < 54:
        return data
    start, size = (struct.unpack_from("<L", data, at)[0] for at in (10, 14))
    bits, packed = struct.unpack_from("<HL", data, 28)
    colours = struct.unpack_from("<L", data, 46)[0] or 2**bits
    if size < 40 or packed or not ((bits == 4 and colours <= 16) or (bits == 8 and colours == 2)):
        return data
    end = 14 + size + 4 * colours
    ramp = (0, 255) if colours == 2 else range(colours)
    if start < end or [data[at : at + 3] for at in range(14 + size, end, 4)] != [bytes([level] * 3) for level in ramp]:
        return data
    head = data[:10] + struct.pack("<L", start + 4) + data[14:46] + struct.pack("<L", colours + 1)
    return head + data[50:end] + bytes(4) + data[end:]


def _is_tga(data: bytes) -> bool:
    """Tell whether bytes may be a TGA, which has nothing at its beginning to be known by."""
    return len(data) > 18 and data[1] == (data[2] in _WITH_PALETTE) and data[2] in _TGA


def _has_deep_bitmap(data: bytes) -> bool:
    for number in range(min(int.from_bytes(data[4:6], "little"), len(data) // 16)):
        (place,) = struct.unpack_from("<L", data[: 22 + 16 * number].ljust(22 + 16 * number, b"\0"), 18 + 16 * number)
        head = data[place : place + 16].ljust(16, b"\0")
        if not head.startswith(b"\x89PNG") and head[14:16] == b"\x20\0":
            return True
    return False
