"""The layout of a TIFF and its bytes enter; a `PIL.Image` of 8-bit samples, or one `PictureError`, leaves.

libtiff, which Pillow brings, unpacks one strip or tile at a time, shown to it as grey pixels of 8 bits; what they mean
is computed here. Nothing is unpacked to more bytes than its pixels take, and wide numbers are held for a few rows.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

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
    SIGNED,
    UNASSOCIATED,
    UNSPECIFIED,
    WHITE_IS_ZERO,
    WHOLE,
    YCBCR,
    Layout,
)
from featcache.records.reading import DTYPE, PERCENTILE, PERCENTILES, Reading

MAX_SEGMENT = 2**26
"""So many bytes a strip or tile has that libtiff unpacks, and sixteen times as many one that zlib does."""

BAND_NUMBERS = 2**20
"""So many numbers of a strip are taken apart at a time."""

Numbers = npt.NDArray[Any]
Scale = Callable[[Numbers], npt.NDArray[np.uint8]]


def is_asked_of(reading: Reading, layout: Layout) -> bool:
    """Tell whether a picture is to be read otherwise than its file says."""
    return bool(reading.channels) or (reading.range is not None and (layout.bits > 8 or layout.format != WHOLE))


def image_of(data: bytes, layout: Layout, reading: Reading = Reading()) -> Image.Image:  # noqa: B008 - it is frozen
    """Decode a page of a TIFF; raises `PictureError` for a layout that is not decoded here."""
    limits = reading.range if is_asked_of(replace(reading, channels=()), layout) else None
    if reading.channels:
        layout = _of_channels(layout, reading.channels)
    _check(layout, limits)
    kept = COLOURS[layout.photometric] + (layout.extra[:1] in ((ASSOCIATED,), (UNASSOCIATED,)))
    picks = reading.channels or tuple(range(kept))
    if limits == DTYPE and layout.format == WHOLE:
        limits = (0.0, float(layout.top))
    elif limits == PERCENTILE:
        limits = _percentiles(data, layout, picks)
    scale = _by_depth(layout) if limits is None else lambda numbers: by_range(numbers, limits)
    levels = np.empty((layout.height, layout.width, len(picks)), np.uint8)
    for top, left, places, numbers in _parts(data, layout, picks):
        room = levels[top : top + numbers.shape[0], left : left + numbers.shape[1]]
        room[:, :, places] = scale(numbers[: room.shape[0], : room.shape[1]])
    image = _image(levels, layout)
    if layout.orientation != 1:
        image.getexif()[ExifTags.Base.Orientation] = layout.orientation
    return image


def by_range(numbers: Numbers, limits: tuple[float, float] | str | None) -> npt.NDArray[np.uint8]:
    """Return 8 bits of numbers of which two are black and white; raises `PictureError` where one is none."""
    if limits == DTYPE:
        is_whole = np.issubdtype(numbers.dtype, np.integer)
        limits = (float(np.iinfo(numbers.dtype).min), float(np.iinfo(numbers.dtype).max)) if is_whole else (0.0, 1.0)
    elif limits == PERCENTILE:
        limits = _limits(numbers.reshape(-1))
    low, high = limits if isinstance(limits, tuple) else (0.0, 1.0)
    found = np.empty(numbers.shape, np.uint8)
    rows = max(1, BAND_NUMBERS * len(numbers) // max(1, numbers.size))
    for top in range(0, len(numbers), rows):
        band = numbers[top : top + rows]
        if not np.isfinite(band).all():
            raise PictureError(
                "TIFF with numbers that are infinite or none: nobody knows their brightness, replace them"
            )
        share = (band.astype(np.float64) - low) / (high - low)
        found[top : top + rows] = np.floor(share.clip(0, 1) * 255 + 0.5)
    return found


def _percentiles(data: bytes, layout: Layout, picks: tuple[int, ...]) -> tuple[float, float]:
    """Return which numbers of a picture are black and white, by percentile of all of its channels together."""
    size = layout.width * layout.height * len(picks) * layout.stored // 8
    _at_most(size, 16 * MAX_SEGMENT)
    parts = [
        numbers[: layout.height - top, : layout.width - left].reshape(-1)
        for top, left, _, numbers in _parts(data, layout, picks)
    ]
    return _limits(np.concatenate(parts))


def _limits(numbers: Numbers) -> tuple[float, float]:
    if not np.isfinite(numbers).all():
        raise PictureError("TIFF with numbers that are infinite or none: nobody knows their brightness, replace them")
    low, high = np.percentile(numbers, PERCENTILES)
    return float(low), float(max(high, np.nextafter(low, np.inf)))


def _of_channels(layout: Layout, channels: tuple[int, ...]) -> Layout:
    """Return the layout of a picture of the chosen channels; raises `PictureError` where there is no such channel."""
    if max(channels) >= layout.samples:
        raise PictureError(f"TIFF of {layout.samples} channels, from 0 on, which has no channel {max(channels)}")
    if layout.photometric not in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, CMYK):
        raise PictureError(f"TIFF of photometric interpretation {layout.photometric}, of which no channel can be taken")
    if len(channels) == 3 and layout.photometric == WHITE_IS_ZERO:
        raise PictureError("TIFF of channels in which 0 is white, of which no colours can be made: take one channel")
    kind = RGB if len(channels) == 3 else WHITE_IS_ZERO if layout.photometric == WHITE_IS_ZERO else BLACK_IS_ZERO
    return replace(layout, photometric=kind, extra=())


def _check(layout: Layout, limits: tuple[float, float] | str | None) -> None:
    """Raise `PictureError` for what is not decoded, or would take too much memory."""
    pixels = layout.width * layout.height
    if pixels > MAX_PIXELS:
        raise PictureError(f"too many pixels to be a photograph: {pixels:,}, at most {MAX_PIXELS:,} are decoded")
    if limits is None and (layout.format != WHOLE or layout.bits > 16):
        kind = {WHOLE: "whole", FLOAT: "floating"}.get(layout.format, "signed")
        raise PictureError(
            f"{layout.bits}-bit picture ({kind} numbers) without a known brightness range: say it with --range"
        )
    if limits is not None and layout.photometric not in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB):
        raise PictureError(f"TIFF of photometric interpretation {layout.photometric}, of which no range can be taken")
    sizes = {WHOLE: (*range(1, 17), 32, 64), SIGNED: (8, 16, 32, 64), FLOAT: (16, 32, 64)}
    if layout.bits not in sizes[layout.format]:
        raise PictureError(f"TIFF of sample format {layout.format} with {layout.bits} bits: save it as RGB")
    alpha = layout.extra[:1]
    rest = layout.extra[1:] if alpha in ((ASSOCIATED,), (UNASSOCIATED,)) else layout.extra
    is_laid_over = rest != layout.extra
    can_be = (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB) if alpha == (UNASSOCIATED,) else (BLACK_IS_ZERO, RGB)
    if set(rest) - {UNSPECIFIED} or (is_laid_over and (layout.photometric not in can_be or limits is not None)):
        raise PictureError(
            f"TIFF of photometric interpretation {layout.photometric} with extra samples of the kinds "
            f"{', '.join(map(str, layout.extra))}: save it as RGB, or choose with --channels"
        )
    is_full_ycbcr = layout.photometric == YCBCR and layout.bits == 8 and layout.subsampling == (1, 1)
    known = (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK)
    if not (is_full_ycbcr or layout.photometric in known) or layout.compression not in EXACT:
        raise PictureError(
            f"TIFF of photometric interpretation {layout.photometric} with compression {layout.compression}: "
            "save it as RGB"
        )
    if layout.photometric == PALETTE and layout.bits > 8:
        raise PictureError(f"TIFF with a palette of {layout.bits} bits: save it as RGB")
    if (layout.predictor == 3 and layout.format != FLOAT) or (
        layout.predictor == 2 and layout.bits not in (8, 16, 32, 64)
    ):
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
                f"TIFF that says that white is {layout.top:,}, and holds {numbers.max():,}: say it with --range"
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
    if layout.photometric == YCBCR:
        for row in levels:
            row[:] = _of_ycbcr(row, layout)
    if layout.photometric == CMYK:
        return Image.frombuffer("CMYK", (layout.width, layout.height), levels, "raw", "CMYK", 0, 1)
    return Image.fromarray(levels[:, :, 0] if levels.shape[2] == 1 else levels)


def _of_ycbcr(numbers: npt.NDArray[np.uint8], layout: Layout) -> npt.NDArray[np.uint8]:
    """Return RGB (n, 3) of YCbCr (n, 3), by TIFF 6.0, sections 20 and 21, rounded to the nearest."""
    low, high = np.array(layout.references).reshape(3, 2).T
    y, blue, red = ((numbers - low) * (np.array([255, 127, 127]) / (high - low))).T
    of_red, of_green, of_blue = layout.luma
    r, b = y + (2 - 2 * of_red) * red, y + (2 - 2 * of_blue) * blue
    g = (y - of_red * r - of_blue * b) / of_green
    return np.floor(np.stack([r, g, b], axis=1).clip(0, 255) + 0.5).astype(np.uint8)


MAX_OPENED = 2**16
"""So many strips or tiles are given to libtiff, each as a picture of its own: a quarter of a millisecond each."""


def _parts(
    data: bytes, layout: Layout, picks: tuple[int, ...]
) -> Iterator[tuple[int, int, list[int], npt.NDArray[np.generic]]]:
    """Yield numbers (rows, columns, n) of the picked samples, each with its row, its column and the places of these n.

    Planes that were not picked are passed over.
    """
    samples = 1 if layout.planes else layout.samples
    tall, wide = -(-layout.height // layout.down), -(-layout.width // layout.across)
    row_bytes = -(-layout.across * samples * layout.stored // 8)
    if layout.compression not in (PLAIN, DEFLATE, OLD_DEFLATE) and len(layout.offsets) > MAX_OPENED:
        raise PictureError(
            f"TIFF in {len(layout.offsets):,} strips or tiles, and at most {MAX_OPENED:,} are unpacked: save it anew"
        )
    for at, (offset, count) in enumerate(zip(layout.offsets, layout.counts, strict=True)):
        plane, place = divmod(at, tall * wide)
        places = [n for n, pick in enumerate(picks) if not layout.planes or pick == plane]
        if not places:
            continue
        chosen = [0] * len(places) if layout.planes else list(picks)
        top, left = place // wide * layout.down, place % wide * layout.across
        rows = layout.down if layout.is_tiled else min(layout.down, layout.height - top)
        raw = _unpacked(data[offset : offset + count], layout, row_bytes, rows)
        step = max(1, BAND_NUMBERS // (layout.across * samples))
        for row in range(0, min(rows, layout.height - top), step):
            band = raw[row * row_bytes : min(row + step, rows) * row_bytes].reshape(-1, row_bytes)
            yield top + row, left, places, _numbers(band, layout, samples)[:, :, chosen]


def _numbers(band: npt.NDArray[np.uint8], layout: Layout, samples: int) -> Numbers:
    """Return rows of bytes as numbers (rows, columns, samples)."""
    shape, bits = (len(band), layout.across, samples), layout.stored
    if bits in (8, 16, 32, 64):
        size, kind = bits // 8, {SIGNED: "i", FLOAT: "f"}.get(layout.format, "u")
        if layout.predictor == 3:  # bytes of like weight lie together, the heaviest first, and each is a difference
            sums = np.cumsum(band.reshape(len(band), -1, samples), axis=1, dtype=np.uint8).reshape(len(band), size, -1)
            together = np.ascontiguousarray(np.moveaxis(sums, 1, 2))
            return together.view(f">f{size}").reshape(shape).astype(f"f{size}")
        raw = np.frombuffer(band.tobytes(), f"{layout.order}u{size}").reshape(shape).astype(f"u{size}")
        if layout.predictor == 2:
            raw = np.cumsum(raw, axis=1, dtype=f"u{size}")
        found: Numbers = raw.view(f"{kind}{size}")
        return found
    each = np.unpackbits(band, axis=1)[:, : layout.across * samples * bits].reshape(*shape, bits)
    wide: Numbers = np.matmul(each.astype(np.uint16), 2 ** np.arange(bits - 1, -1, -1, dtype=np.uint16))
    return wide


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
        return by_libtiff(raw, layout.compression, row_bytes, rows)
    if len(raw) < size:
        raise PictureError(f"broken TIFF: a strip or tile has {len(raw):,} of {size:,} bytes")
    return np.frombuffer(raw, np.uint8, size)


def by_libtiff(raw: bytes, compression: int, width: int, height: int) -> npt.NDArray[np.uint8]:
    """Return the `width` x `height` bytes that a strip unpacks to; raises `PictureError`, and `OSError`."""
    _at_most(width * height, MAX_SEGMENT)
    with Image.open(io.BytesIO(_as_grey(raw, compression, width, height)), formats=["TIFF"]) as image:
        return np.asarray(image).reshape(-1)


_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _as_grey(raw: bytes, compression: int, width: int, height: int) -> bytes:
    """Return packed bytes as a grey TIFF in one strip."""
    tags = {256: width, 257: height, 258: 8, 259: compression, 262: 1, 273: 8, 277: 1, 278: height, 279: len(raw)}
    directory = b"".join(struct.pack("<HHLL", tag, 4, 1, value) for tag, value in tags.items())
    return struct.pack("<4sL", b"II*\0", 8 + len(raw)) + raw + struct.pack("<H", len(tags)) + directory + bytes(4)


def _at_most(size: int, most: int) -> None:
    if size > most:
        raise PictureError(f"TIFF with a strip or tile of {size:,} bytes, at most {most:,} are unpacked: save it anew")
