"""The bytes of a picture file enter; a file that Pillow reads so often at most, or one `PictureError`, leaves.

Pillow takes headers apart, and decodes some formats, in Python, which a small file can make last for hours. What can be
counted in the bytes is counted before Pillow sees them; all else is bounded by how often it asks for bytes.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from typing import Any

from PIL import Image

from featcache.codestreams import at_most as _at_most
from featcache.codestreams import boxes, check_avif, check_jpeg2000
from featcache.errors import PictureError

MAX_PIXELS = 2 * 89_478_485
"""Pictures with more pixels are refused: Pillow's own limit, whatever the program around sets Pillow's to."""

MAX_JPEG_PIXELS = 2**28
"""A JPEG with all its colours in one scan may have so many: it is decoded to half its size, a few rows at a time."""

MAX_SCANS = 100
MAX_SCANNED = 2**31
"""A progressive JPEG goes over its pixels once a scan: so many scans at most, as libtiff allows, and so many pixels
in all of them together, which takes up to half a minute."""

MAX_READS = 2**20
"""Pillow asks a file for bytes so often at most, where a 512 MiB photograph takes a quarter of it: up to 5 seconds."""

MAX_SLOW_PIXELS = 2**22
MAX_SLOW_BYTES = 2**26
"""What Pillow decodes in Python has so many pixels, of 4 to 7 microseconds each, in so many bytes."""

MAX_HEADER = 2**22
"""So many bytes of headers are taken apart: of a JPEG all but its comments and other applications' segments, of a JPEG
2000 the box of headers, and Exif data."""

MAX_ITEMS = 2**19
"""So many bytes of items and tracks an AVIF or HEIC has: libavif looks for each item among all others."""

MAX_SEGMENTS = 10_000
"""A JPEG has so many segments before its pixels: of full ones, 512 MiB hold 8,192."""

MAX_PARTS = 256
"""Of what Pillow takes long for one by one there are so many parts: see `_LONG`."""

MAX_NUMBERS = 2**20
"""The directory of a TIFF, or of Exif data, holds so many numbers, each of which takes up to 300 bytes in Python."""

MAX_ENTRIES = 2**16
MAX_DIRECTORIES = 8
"""A directory has so many entries, as two bytes can count, and at most so many below it are read."""

MAX_NESTED_PIXELS = 2**24
"""A picture in an icon, which Pillow decodes while it opens the icon, has so many pixels."""

MAX_PSD_EDGE = 30_000
"""Photoshop's own limit; Pillow reads a table of the rows before the size can be asked for."""

_LONG = (
    (b"", (b"Exif\0\0",)),
    (b"\x89PNG", (b"iCCP", b"zTXt", b"iTXt")),
    (b"\0\0\1\0", (b"iCCP", b"zTXt", b"iTXt")),
    (b"icns", (b"iCCP", b"zTXt", b"iTXt")),
    *((magic, (b"#",)) for magic in (b"P1", b"P2", b"P3")),
)
"""How files begin, and the parts of them that take long: Exif data are joined or stripped one copy of all of them for
each part, a packed text of a PNG is a megabyte, a comment of a plain PPM moves a megabyte."""

_QUICK = {"SGI16"}
_HEAVY = {"JPEG2000": (MAX_PIXELS, 2**27)} | dict.fromkeys(("AVIF", "HEIF", "WEBP"), (2**26, 2**29))
_SCAN = b"\xff\xda"
_MARKER = re.compile(rb"\xff([\xc0-\xfe])")
_NO_BODY = {0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)}
_START_OF_SCAN = 0xDA
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL = {0xC0, 0xC1, 0xC9}
"""What a JPEG says how it is coded by, and those of these that code each pixel once."""
_AVIF = (b"avif", b"avis")
_CODESTREAM = b"\xff\x4f\xff\x51"
_HEADER_BOXES = {b"ftyp", b"meta", b"moov", b"jp2h"}
_NUMBERS = {3: "H", 4: "L", 5: "LL", 6: "b", 8: "h", 9: "l", 10: "ll", 11: "f", 12: "d", 13: "L", 16: "Q"}
_WHOLE = {3, 4, 8, 9, 13, 16}
_DIRECTORIES = (34665, 34853, 40965)


class Asked(io.BytesIO):
    """The bytes of a picture, which may be asked for `left` times; raises `PictureError`."""

    left = MAX_READS

    def _ask(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise PictureError("its parts are so many that they are made to take long: no photograph, save it anew")

    def read(self, size: int | None = -1, /) -> bytes:
        """Return bytes as any file does."""
        self._ask()
        return super().read(size)

    def readline(self, size: int | None = -1, /) -> bytes:
        """Return a line as any file does."""
        self._ask()
        return super().readline(size)


def bounded(data: bytes) -> Asked:
    """Return a picture's bytes as a file that Pillow can open in bounded time and memory; raises `PictureError`."""
    for magic, parts in _LONG:
        if data.startswith(magic):
            for part in parts:
                _at_most(data.count(part), MAX_PARTS, f"parts {part.decode().rstrip(chr(0))}")
    if data.startswith(b"\xff\xd8"):
        _check_segments(data)
    elif data.startswith((b"II", b"MM")):
        _check_numbers(data)
    elif data[4:8] in (b"ftyp", b"jP  "):
        found_boxes = list(boxes(data))
        taken = sum(end - at + 8 for name, at, end in found_boxes if name in _HEADER_BOXES)
        _at_most(taken, MAX_ITEMS if data[4:8] == b"ftyp" else MAX_HEADER, "bytes of headers")
        for name, at, _ in found_boxes:
            if name == b"jp2c":
                check_jpeg2000(data, at, len(data))
        if data[8:12] in _AVIF:
            check_avif(data)
    elif data.startswith(_CODESTREAM):
        check_jpeg2000(data, 0, len(data))
    elif data.startswith(b"8BPS"):
        _at_most(max(struct.unpack(">II", data[14:22].ljust(8, b"\0"))), MAX_PSD_EDGE, "pixels a side")
    elif data.startswith((b"\0\0\1\0", b"icns")):
        _at_most(len(data), MAX_SLOW_BYTES, "bytes in an icon")
        for width, height in _nested(data):
            _at_most(width * height, MAX_NESTED_PIXELS, "pixels in an icon")
        for found in re.finditer(re.escape(_CODESTREAM), data):
            check_jpeg2000(data, found.start(), len(data))
    return Asked(data)


def check_opened(image: Image.Image, file: Asked) -> None:
    """Refuse a picture that is opened, and would take very long or very much memory to decode.

    What is decoded in Python may ask `file` more often, as it has pixels. Raises `PictureError`.
    """
    pixels, n_bytes = image.width * image.height, file.getbuffer().nbytes
    is_scaled = image.format in ("JPEG", "MPO") and _is_in_one_scan(file.getbuffer())
    most = MAX_JPEG_PIXELS if is_scaled else MAX_PIXELS
    if pixels > most:
        raise PictureError(f"too many pixels to be a photograph: {pixels:,}, at most {most:,} are decoded")
    coders: set[str] = {tile[0] for tile in getattr(image, "tile", None) or ()}
    if coders & (set(Image.DECODERS) - _QUICK):
        kind = f"in a slowly decoded kind of {image.format}"
        _at_most(pixels, MAX_SLOW_PIXELS, f"pixels {kind}", "save it as PNG")
        _at_most(n_bytes, MAX_SLOW_BYTES, f"bytes {kind}", "save it as PNG")
        file.left += 2 * pixels
    elif image.format in _HEAVY:
        _at_most(pixels, _HEAVY[image.format][0], f"pixels of {image.format}", "save it as PNG")
        _at_most(n_bytes, _HEAVY[image.format][1], f"bytes of {image.format}", "save it as PNG")
    check_exif(image)


def _is_in_one_scan(data: memoryview) -> bool:
    """Tell whether a JPEG is not progressive, and its first scan holds all colours: else libjpeg holds it whole."""
    at, channels = 2, 0
    while (found := _MARKER.search(data, at)) is not None:
        marker, at = found[1][0], found.end()
        if marker in _FRAMES:
            if marker not in _SEQUENTIAL:
                return False
            channels = data[at + 7] if len(data) > at + 7 else 0
        elif marker == _START_OF_SCAN:
            return len(data) > at + 2 and data[at + 2] == channels
        at += 0 if marker in _NO_BODY else max(2, int.from_bytes(data[at : at + 2], "big"))
    return False


def check_exif(image: Image.Image) -> None:
    """Refuse a picture whose Exif data take long or much memory; of some they are known only with the pixels.

    Raises `PictureError`.
    """
    exif: Any = image.info.get("exif") or b""
    _at_most(len(exif), MAX_HEADER, "bytes of Exif data")
    _at_most(len(image.info.get("Raw profile type exif", "")), MAX_HEADER // 16, "characters of Exif data")
    if isinstance(exif, bytes):
        _check_numbers(exif.removeprefix(b"Exif\0\0"))


def check_scans(image: Image.Image, data: bytes) -> None:
    """Refuse a JPEG that goes over its pixels very often; raises `PictureError`."""
    pixels = image.width * image.height
    if image.format in ("JPEG", "MPO") and data.count(_SCAN) > 1:
        scans = data.count(_SCAN)
        if scans > MAX_SCANS or scans * pixels > MAX_SCANNED:
            raise PictureError(
                f"{scans:,} scans of {pixels:,} pixels are made to take long: no photograph, save it anew"
            )


def _check_segments(data: bytes) -> None:
    """Refuse a JPEG whose headers take long; they are gone through as Pillow does, up to the first scan."""
    at, segments, taken = 2, 0, 0
    while (found := _MARKER.search(data, at)) and found[1][0] != _START_OF_SCAN:
        marker, at = found[1][0], found.end()
        segments += 1
        _at_most(segments, MAX_SEGMENTS, "segments")
        if marker in _NO_BODY:
            continue
        length = max(2, int.from_bytes(data[at : at + 2], "big"))
        is_passed_over = 0xE0 <= marker <= 0xEF or marker == 0xFE
        if not is_passed_over or data[at + 2 : at + 8] in (b"Exif\0\0", b"Photos"):
            taken += length
        at += length
    _at_most(taken, MAX_HEADER, "bytes of headers")


def _nested(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the sizes of all pictures in an ICO or ICNS, and of whatever looks like one."""
    for name in (b"IHDR", b"ihdr"):
        for found in re.finditer(b"(?=%b(.{8}))" % name, data, re.DOTALL):  # ahead, for one may overlap another
            yield struct.unpack(">II", found[1])
    for found in re.finditer(b"(?=\\xff\\x4f\\xff\\x51.{4}(.{16}))", data, re.DOTALL):
        right, lower, left, upper = struct.unpack(">4I", found[1])
        yield max(0, right - left), max(0, lower - upper)
    if data[:1] == b"\0":
        for number in range(min(int.from_bytes(data[4:6], "little"), len(data) // 16)):
            place = int.from_bytes(data[18 + 16 * number : 22 + 16 * number], "little")
            head = data[place : place + 12].ljust(12, b"\0")
            if head.startswith(b"\x89PNG"):
                continue
            if head.startswith(b"\x0c\0\0\0"):
                yield struct.unpack("<HH", head[4:8])
            else:
                width, height = struct.unpack("<II", head[4:])
                yield width, min(height, 2**32 - height)  # from the top down where it is negative


def _check_numbers(data: bytes) -> None:
    """Refuse a TIFF, or Exif data, whose first directory, and those below it, hold very many numbers."""
    order, is_big = "<" if data.startswith(b"II") else ">", data[2:3] == b"+"
    place, entry, start = (order + "Q", order + "HHQ8s", 8) if is_big else (order + "L", order + "HHL4s", 4)
    places, numbers = [struct.unpack(place, data[start : 2 * start].ljust(start, b"\0"))[0]], 0
    for at in places:
        head = data[at : at + (8 if is_big else 2)]
        n = int.from_bytes(head, "little" if order == "<" else "big")
        _at_most(n, MAX_ENTRIES, "entries in its directory")
        size = struct.calcsize(entry)
        block = data[at + len(head) : at + len(head) + n * size]
        for tag, kind, count, raw in struct.iter_unpack(entry, block[: len(block) // size * size]):
            if kind not in _NUMBERS:
                continue
            long = struct.calcsize("=" + _NUMBERS[kind])
            if count * long > len(raw):
                (there,) = struct.unpack(place, raw)
                raw = data[there : there + long]
                if there + count * long > len(data):
                    continue  # not there, so it is passed over
            numbers += count
            if tag in _DIRECTORIES and kind in _WHOLE and len(places) < MAX_DIRECTORIES:
                places.append(abs(struct.unpack_from(order + _NUMBERS[kind], raw)[0]))
        _at_most(numbers, MAX_NUMBERS, "numbers in its directory")
