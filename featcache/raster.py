"""The layout of a TIFF and its bytes enter; a `PIL.Image` of 8-bit samples, or one `PictureError`, leaves.

libtiff, which Pillow brings, unpacks one strip or tile at a time, shown to it as grey pixels of 8 bits; what they mean
is computed here. Nothing is unpacked to more bytes than its pixels take, and wide numbers are held for a few rows.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from featcache.bounds import MAX_PIXELS
from featcache.errors import PictureError
from featcache.layout import (
    ASSOCIATED,
    BLACK_IS_ZERO,
    CMYK,
    COLOURS,
    DEFLATE,
    EXACT,
    FLOAT,
    OLD_DEFLATE,
    PALETTE,
    PLAIN,
    RGB,
    UNASSOCIATED,
    UNSPECIFIED,
    WHITE_IS_ZERO,
    WHOLE,
    Layout,
)

MAX_SEGMENT = 2**26
"""So many bytes a strip or tile has that libtiff unpacks, and sixteen times as many one that zlib does."""

BAND_NUMBERS = 2**20
"""So many numbers of a strip are taken apart at a time."""

Numbers = npt.NDArray[np.generic]
Scale = Callable[[Numbers], npt.NDArray[np.uint8]]


def image_of(data: bytes, layout: Layout) -> Image.Image:
    """Decode the first picture of a TIFF; raises `PictureError` for a layout that is not decoded here."""
    _check(layout)
    scale = _by_depth(layout)
    kept = COLOURS[layout.photometric] + (layout.extra[:1] in ((ASSOCIATED,), (UNASSOCIATED,)))
    levels = np.empty((layout.height, layout.width, kept), np.uint8)
    for top, left, first, numbers in _parts(data, layout, kept):
        room = levels[top : top + numbers.shape[0], left : left + numbers.shape[1], first:]
        room[:, :, : numbers.shape[2]] = scale(numbers[: room.shape[0], : room.shape[1], : room.shape[2]])
    image = _image(levels, layout)
    if layout.orientation != 1:
        image.getexif()[ExifTags.Base.Orientation] = layout.orientation
    return image


def _check(layout: Layout) -> None:
    """Raise `PictureError` for what is not decoded, or would take too much memory."""
    pixels = layout.width * layout.height
    if pixels > MAX_PIXELS:
        raise PictureError(f"too many pixels to be a photograph: {pixels:,}, at most {MAX_PIXELS:,} are decoded")
    if layout.format != WHOLE or layout.bits > 16:
        kind = {WHOLE: "whole", FLOAT: "floating"}.get(layout.format, "signed")
        raise PictureError(
            f"{layout.bits}-bit picture ({kind} numbers) without a known brightness range: convert it to 8 bit"
        )
    alpha = layout.extra[:1]
    rest = layout.extra[1:] if alpha in ((ASSOCIATED,), (UNASSOCIATED,)) else layout.extra
    is_laid_over = rest != layout.extra
    can_be = (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB) if alpha == (UNASSOCIATED,) else (BLACK_IS_ZERO, RGB)
    if set(rest) - {UNSPECIFIED} or (is_laid_over and layout.photometric not in can_be):
        raise PictureError(
            f"TIFF of photometric interpretation {layout.photometric} with extra samples of the kinds "
            f"{', '.join(map(str, layout.extra))}: save it as RGB"
        )
    if layout.photometric not in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK) or layout.compression not in EXACT:
        raise PictureError(
            f"TIFF of photometric interpretation {layout.photometric} with compression {layout.compression}: "
            "save it as RGB"
        )
    if layout.photometric == PALETTE and layout.bits > 8:
        raise PictureError(f"TIFF with a palette of {layout.bits} bits: save it as RGB")
    if layout.predictor == 3 or (layout.predictor == 2 and layout.bits not in (8, 16)):
        raise PictureError(f"TIFF of predictor {layout.predictor} with {layout.bits} bits: save it anew")
    if layout.is_reversed and layout.stored > 8 and layout.stored % 8 == 0:
        raise PictureError(f"TIFF of {layout.stored} bits in reversed order: save it anew")


def _by_depth(layout: Layout) -> Scale:
    """Return what makes 8 bits of the numbers of a layout, rounded to the nearest."""
    if layout.photometric == PALETTE:
        return lambda numbers: numbers.astype(np.uint8)
    table = (np.arange(layout.top + 1) * 510 + layout.top) // (2 * layout.top)
    levels = table.astype(np.uint8)

    def scaled(numbers: Numbers) -> npt.NDArray[np.uint8]:
        if layout.top < 2**layout.stored - 1 and numbers.max(initial=0) > layout.top:
            raise PictureError(
                f"TIFF that says that white is {layout.top:,}, and holds {numbers.max():,}: save it as 8 bit"
            )
        found: npt.NDArray[np.uint8] = levels[numbers]
        return found

    return scaled


def _image(levels: npt.NDArray[np.uint8], layout: Layout) -> Image.Image:
    """Return samples of 8 bits as the picture that they mean."""
    colours = COLOURS[layout.photometric]
    if layout.photometric == WHITE_IS_ZERO:
        levels[:, :, :colours] = 255 - levels[:, :, :colours]
    if layout.photometric == PALETTE:
        table = np.array(layout.palette, np.int64).reshape(3, -1).T
        wide = table.max(initial=0) > 255  # else it is one of 8 bits, as old writers made it
        return Image.fromarray((table // 256 if wide else table).astype(np.uint8)[levels[:, :, 0]])
    if layout.extra[:1] == (ASSOCIATED,):  # laid over white, without the loss of dividing by alpha
        for row in levels:
            row[:, :colours] = np.minimum(255, row[:, :colours] + (255 - row[:, colours:].astype(np.uint16)))
        levels = np.ascontiguousarray(levels[:, :, :colours])
    if layout.photometric == CMYK:
        return Image.frombuffer("CMYK", (layout.width, layout.height), levels, "raw", "CMYK", 0, 1)
    return Image.fromarray(levels[:, :, 0] if levels.shape[2] == 1 else levels)


def _parts(data: bytes, layout: Layout, kept: int) -> Iterator[tuple[int, int, int, Numbers]]:
    """Yield numbers (rows, columns, samples), each with its row, its column and the number of its first sample.

    Planes after the first `kept` ones are passed over.
    """
    samples = 1 if layout.planes else layout.samples
    tall, wide = -(-layout.height // layout.down), -(-layout.width // layout.across)
    row_bytes = -(-layout.across * samples * layout.stored // 8)
    for at, (offset, count) in enumerate(zip(layout.offsets, layout.counts, strict=True)):
        plane, place = divmod(at, tall * wide)
        if plane >= kept:
            return
        top, left = place // wide * layout.down, place % wide * layout.across
        rows = layout.down if layout.is_tiled else min(layout.down, layout.height - top)
        raw = _unpacked(data[offset : offset + count], layout, row_bytes, rows)
        step = max(1, BAND_NUMBERS // (layout.across * samples))
        for row in range(0, min(rows, layout.height - top), step):
            band = raw[row * row_bytes : min(row + step, rows) * row_bytes].reshape(-1, row_bytes)
            yield top + row, left, plane, _numbers(band, layout, samples)


def _numbers(band: npt.NDArray[np.uint8], layout: Layout, samples: int) -> Numbers:
    """Return rows of bytes as numbers (rows, columns, samples)."""
    shape, bits = (len(band), layout.across, samples), layout.stored
    if bits in (8, 16):
        numbers: Numbers = np.frombuffer(band.tobytes(), f"{layout.order}u{bits // 8}").reshape(shape)
        if layout.predictor == 2:
            numbers = np.cumsum(numbers, axis=1, dtype=f"u{bits // 8}")
        return numbers
    each = np.unpackbits(band, axis=1)[:, : layout.across * samples * bits].reshape(*shape, bits)
    places = 2 ** np.arange(bits - 1, -1, -1, dtype=np.uint16)
    found: Numbers = np.matmul(each.astype(np.uint16), places)
    return found


def _unpacked(raw: bytes, layout: Layout, row_bytes: int, rows: int) -> npt.NDArray[np.uint8]:
    """Return the bytes that a strip or tile unpacks to, no more and no fewer than its pixels take."""
    size = row_bytes * rows
    if layout.is_reversed:
        raw = raw.translate(_REVERSED)
    if layout.compression in (DEFLATE, OLD_DEFLATE):
        _at_most(size, 16 * MAX_SEGMENT)
        try:
            raw = zlib.decompressobj().decompress(raw, size)
        except zlib.error as error:
            raise PictureError(f"broken TIFF: {error}") from error
    elif layout.compression != PLAIN:
        _at_most(size, MAX_SEGMENT)
        with Image.open(io.BytesIO(_as_grey(raw, layout.compression, row_bytes, rows)), formats=["TIFF"]) as image:
            return np.asarray(image).reshape(-1)
    if len(raw) < size:
        raise PictureError(f"broken TIFF: a strip or tile has {len(raw):,} of {size:,} bytes")
    return np.frombuffer(raw, np.uint8, size)


_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _as_grey(raw: bytes, compression: int, width: int, height: int) -> bytes:
    """Return packed bytes as a grey TIFF in one strip."""
    tags = {256: width, 257: height, 258: 8, 259: compression, 262: 1, 273: 8, 277: 1, 278: height, 279: len(raw)}
    directory = b"".join(struct.pack("<HHLL", tag, 4, 1, value) for tag, value in tags.items())
    return struct.pack("<4sL", b"II*\0", 8 + len(raw)) + raw + struct.pack("<H", len(tags)) + directory + bytes(4)


def _at_most(size: int, most: int) -> None:
    if size > most:
        raise PictureError(f"TIFF with a strip or tile of {size:,} bytes, at most {most:,} are unpacked: save it anew")
