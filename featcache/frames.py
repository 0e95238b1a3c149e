"""A frame of a DICOM file enters; a `PIL.Image` of 8-bit samples, or one `PictureError`, leaves.

Numbers go through the modality's table or slope, then through the first window, or table, that the file names (PS3.3
C.11.1 and C.11.2); without one the stored bits of unsigned numbers are black to white. No other file is opened.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from featcache.bounds import MAX_PIXELS, bounded, check_opened, check_scans
from featcache.dicom import BASELINE, EXTENDED, NATIVE, RLE, Header, Table
from featcache.errors import PictureError
from featcache.layout import PACKBITS
from featcache.raster import BAND_NUMBERS, MAX_SEGMENT, by_libtiff, by_range
from featcache.records.reading import PERCENTILE, PERCENTILES, Reading

Numbers = npt.NDArray[Any]
Levels = npt.NDArray[np.uint8]

_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422")
_OF_JPEG_2000 = ("RGB", "YBR_RCT", "YBR_ICT")
_NO_COLOUR = np.array([0, 128, 128], np.float32)[:, None, None]


def frame_image(header: Header, reading: Reading) -> Image.Image:
    """Decode a frame of a DICOM file to a picture in grey or RGB; raises `PictureError`."""
    _check(header, reading)
    numbers = _numbers(header)
    if header.samples == 3:
        levels = numbers if numbers.dtype == np.uint8 and header.stored == 8 else _by_depth(numbers, header)
        if header.photometric.startswith("YBR_FULL") and header.syntax in (*NATIVE, RLE):
            levels = _of_ybr(levels)
        picks = reading.channels or (0, 1, 2)
        chosen = np.ascontiguousarray(levels[:, :, list(picks)])
        return Image.fromarray(chosen if len(picks) == 3 else chosen[:, :, 0])
    if header.photometric == "PALETTE COLOR":
        return Image.fromarray(np.dstack([_looked_up(numbers, table) for table in header.palette]))
    grey = _grey(numbers, header, reading)
    return Image.fromarray(np.dstack([grey] * 3) if len(reading.channels) == 3 else grey)


def _check(header: Header, reading: Reading) -> None:
    """Raise `PictureError` for what is not decoded, or would take too much memory."""
    pixels = header.width * header.height
    if pixels > MAX_PIXELS:
        raise PictureError(f"too many pixels to be a photograph: {pixels:,}, at most {MAX_PIXELS:,} are decoded")
    known = {1: (*_GREY, "PALETTE COLOR"), 3: (*_COLOURS, *_OF_JPEG_2000)}[header.samples]
    if header.photometric not in known:
        raise PictureError(
            f"DICOM of photometric interpretation {header.photometric:.20} with {header.samples} samples, which is not "
            "decoded here: save it as RGB"
        )
    if header.samples == 3 and (header.is_signed or header.allocated > 16 or (reading.range and header.stored > 8)):
        raise PictureError("DICOM in colour of signed or wide numbers, of which no range is known: save it as 8 bits")
    if header.photometric == "PALETTE COLOR" and (reading.channels or reading.range or header.allocated > 16):
        raise PictureError("DICOM with a palette, of which no channel and no range can be taken: save it as RGB")
    if max(reading.channels, default=0) >= header.samples:
        raise PictureError(
            f"DICOM of {header.samples} channel{'s' * (header.samples > 1)}, from 0 on, which has no channel "
            f"{max(reading.channels)}"
        )
    if header.function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise PictureError(f"DICOM whose window has the function {header.function:.20}, which is not known")
    least = 1 if header.function == "LINEAR" else 0
    if header.window is not None and not (header.window[1] > 0 and header.window[1] >= least):
        raise PictureError(f"broken DICOM: a window of the width {header.window[1]:g}")
    if header.rescale[0] == 0:
        raise PictureError("broken DICOM: all of its numbers are one, by a slope of 0")
    is_free = header.window is None and header.voi is None and reading.range is None
    has_range = header.stored <= 16 and (header.modality is not None or not header.is_signed)
    if header.samples == 1 and is_free and not has_range and header.photometric in _GREY:
        sign = "signed" if header.is_signed else "unsigned"
        raise PictureError(
            f"DICOM of {sign} numbers of {header.stored} bits without a window: say their range with --range"
        )
    if header.syntax in (BASELINE, EXTENDED) and (header.is_signed or header.allocated != 8 or header.stored != 8):
        raise PictureError(
            f"DICOM of {header.stored} bits packed as JPEG, of which 8 are decoded: save it uncompressed"
        )


def _numbers(header: Header) -> Numbers:
    """Return the stored numbers (rows, columns) or (rows, columns, samples), of their bits only."""
    width, height = header.width, header.height
    if header.syntax in NATIVE:
        kind = f"{header.order}u{header.allocated // 8}"
        raw: Numbers = np.frombuffer(header.frame, kind)
        if header.photometric == "YBR_FULL_422":
            return _of_422(raw, header)
        raw = raw.astype(kind[1:], copy=False)
        return _in_bits(_shaped(raw, header.planes, header), header)
    if header.syntax == RLE:
        return _in_bits(_shaped(_of_rle(header), True, header), header)
    file, kind = bounded(header.frame), "JPEG" if header.syntax in (BASELINE, EXTENDED) else "JPEG2000"
    try:
        opened = Image.open(file, formats=[kind])
    except UnidentifiedImageError as error:
        raise PictureError(f"broken DICOM: what is packed in it is no {kind} of 8 bits") from error
    with opened as image:
        check_opened(image, file)
        check_scans(image, header.frame)
        if image.size != (width, height) or len(image.getbands()) != header.samples:
            raise PictureError(
                f"broken DICOM: {width:,} x {height:,} pixels of {header.samples} samples, packed as "
                f"{image.width:,} x {image.height:,} in {image.mode}"
            )
        if header.syntax in (BASELINE, EXTENDED):
            return _of_jpeg(image, header)
        return _of_jpeg_2000(image, header)


def _shaped(raw: Numbers, planes: bool, header: Header) -> Numbers:
    if header.samples == 1:
        return raw.reshape(header.height, header.width)
    if planes:
        return np.ascontiguousarray(np.moveaxis(raw.reshape(3, header.height, header.width), 0, 2))
    return raw.reshape(header.height, header.width, 3)


def _in_bits(raw: Numbers, header: Header) -> Numbers:
    """Return unsigned words as numbers; what stands above the stored bits, as overlays do, is taken away."""
    unused = header.allocated - header.stored
    words = raw & raw.dtype.type(2**header.stored - 1) if unused else raw
    if not header.is_signed:
        return words
    signed = words.view(f"i{header.allocated // 8}")
    return (signed << unused) >> unused if unused else signed


def _of_422(raw: Numbers, header: Header) -> Numbers:
    """Return plain pixels of which two share their colour, the first one's: Y, Y, Cb and Cr."""
    if header.allocated != 8 or header.width % 2 or header.planes:
        raise PictureError("broken DICOM: YBR_FULL_422 of an odd width, in planes or of more than 8 bits")
    pairs = raw.reshape(header.height, header.width // 2, 4)
    brightness = pairs[:, :, :2].reshape(header.height, header.width)
    return np.dstack([brightness, *(np.repeat(pairs[:, :, at], 2, axis=1) for at in (2, 3))])


def _of_rle(header: Header) -> Numbers:
    """Return the words of a frame in planes, of which each byte is packed by itself, the heaviest first."""
    n_bytes = header.allocated // 8
    count, *offsets = struct.unpack("<16L", header.frame[:64].ljust(64, b"\0"))
    wanted = header.samples * n_bytes
    ends = [*offsets[1:wanted], len(header.frame)]
    if count != wanted or any(not 64 <= start <= end for start, end in zip(offsets[:wanted], ends, strict=True)):
        raise PictureError(f"broken DICOM: {count} packed parts, where its pixels take {wanted}")
    pixels = header.width * header.height
    if pixels > MAX_SEGMENT:
        raise PictureError(f"DICOM of {pixels:,} pixels packed as RLE, of which {MAX_SEGMENT:,} are decoded: unpack it")
    planes = np.empty((header.samples, pixels, n_bytes), np.uint8)
    for at, (start, end) in enumerate(zip(offsets[:wanted], ends, strict=True)):
        plane, weight = divmod(at, n_bytes)
        planes[plane, :, n_bytes - 1 - weight] = by_libtiff(
            header.frame[start:end], PACKBITS, header.width, header.height
        )
    return planes.view(f"<u{n_bytes}").reshape(-1).astype(f"u{n_bytes}", copy=False)


def _of_jpeg(image: Image.Image, header: Header) -> Numbers:
    """Return the pixels of a JPEG, in RGB where they are in colour; only where it does not say how, the header does."""
    if header.samples == 3 and header.photometric not in _COLOURS:
        raise PictureError(f"DICOM of {header.photometric} packed as JPEG, which contradict each other")
    says = "adobe_transform" in image.info or "jfif" in image.info
    if header.samples == 3 and header.photometric == "RGB" and not says and not _has_rgb_names(image):
        image.draft("YCbCr", image.size)  # as they are, since they were never turned into brightness and colour
    return np.asarray(image)


def _has_rgb_names(image: Image.Image) -> bool:
    return [layer[0] for layer in getattr(image, "layer", ())] in ([82, 71, 66], [114, 103, 98])


def _of_jpeg_2000(image: Image.Image, header: Header) -> Numbers:
    """Return the numbers of a JPEG 2000, which Pillow gives in all of 8 or 16 bits, signed ones from 0 on."""
    if not header.frame.startswith(b"\xff\x4f\xff\x51"):
        raise PictureError("broken DICOM: JPEG 2000 that begins with no codestream")
    said = header.frame[42]
    depth, is_signed = (said & 127) + 1, said > 127
    if depth != header.stored or is_signed != header.is_signed or depth > (16 if header.samples == 1 else 8):
        raise PictureError(
            f"DICOM of {header.stored} {'signed ' * header.is_signed}bits packed as JPEG 2000 of {depth} "
            f"{'signed ' * is_signed}bits, which is not decoded here: save it uncompressed"
        )
    if header.samples == 3 and header.photometric not in _OF_JPEG_2000:
        raise PictureError(f"DICOM of {header.photometric} packed as JPEG 2000: save it as RGB")
    full = np.asarray(image).astype(np.uint16)
    numbers = full >> ((8 if depth <= 8 else 16) - depth)
    return numbers.astype(np.int32) - 2 ** (depth - 1) if is_signed else numbers


def _of_ybr(levels: Levels) -> Levels:
    """Return RGB of YBR_FULL, by PS3.3 C.7.6.3.1.2, rounded to the nearest."""
    found = np.empty_like(levels)
    step = max(1, BAND_NUMBERS // levels.shape[1])
    for row in range(0, len(levels), step):
        y, blue, red = np.moveaxis(levels[row : row + step].astype(np.float32), 2, 0) - _NO_COLOUR
        rgb = (y + 1.402 * red, y - 0.344136 * blue - 0.714136 * red, y + 1.772 * blue)
        found[row : row + step] = np.floor(np.stack(rgb, axis=2) + 0.5).clip(0, 255).astype(np.uint8)
    return found


def _by_depth(numbers: Numbers, header: Header) -> Levels:
    top = 2**header.stored - 1
    table = ((np.arange(top + 1) * 510 + top) // (2 * top)).astype(np.uint8)
    found: Levels = table[numbers]
    return found


def _looked_up(numbers: Numbers, table: Table) -> Levels:
    at = np.clip(numbers.astype(np.int64) - table.first, 0, len(table.entries) - 1)
    found: Levels = (np.array(table.entries) >> (table.bits - 8)).astype(np.uint8)[at]
    return found


def _grey(numbers: Numbers, header: Header, reading: Reading) -> Levels:
    """Return the brightness (rows, columns) of numbers, a few rows at a time."""
    limits = _limits(numbers, header) if reading.range == PERCENTILE else reading.range
    levels = np.empty(numbers.shape, np.uint8)
    step = max(1, BAND_NUMBERS // header.width)
    for row in range(0, header.height, step):
        levels[row : row + step] = _levels(numbers[row : row + step], header, limits)
    return 255 - levels if header.photometric == "MONOCHROME1" else levels


def _levels(numbers: Numbers, header: Header, limits: tuple[float, float] | str | None) -> Levels:
    values = _by_modality(numbers, header)
    if limits is None and header.window is not None:
        return _rounded(_in_window(values, header.window, header.function))
    if limits is None and header.voi is not None:
        at = np.clip(np.floor(values + 0.5) - header.voi.first, 0, len(header.voi.entries) - 1)
        return _rounded(np.array(header.voi.entries)[at.astype(np.int64)] / (2**header.voi.bits - 1))
    if not isinstance(limits, tuple):
        limits = _whole(header)
    return by_range(values, limits)


def _by_modality(numbers: Numbers, header: Header) -> npt.NDArray[np.float64]:
    """Return the values that a modality means, such as Hounsfield units."""
    if header.modality is not None:
        at = np.clip(numbers.astype(np.int64) - header.modality.first, 0, len(header.modality.entries) - 1)
        found: npt.NDArray[np.float64] = np.array(header.modality.entries, np.float64)[at]
        return found
    slope, intercept = header.rescale
    return numbers.astype(np.float64) * slope + intercept


def _in_window(values: npt.NDArray[np.float64], window: tuple[float, float], function: str) -> Numbers:
    """Return shares of white, 0 to 1, by the formulas of PS3.3 C.11.2.1.2 and C.11.2.1.3."""
    centre, width = window
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700)))
    if function == "LINEAR_EXACT":
        return ((values - centre) / width + 0.5).clip(0, 1)
    if width == 1:
        return (values > centre - 0.5).astype(np.float64)
    return ((values - (centre - 0.5)) / (width - 1) + 0.5).clip(0, 1)


def _rounded(shares: Numbers) -> Levels:
    found: Levels = np.floor(shares * 255 + 0.5).astype(np.uint8)
    return found


def _whole(header: Header) -> tuple[float, float]:
    """Return the least and the largest value that the stored bits can have."""
    if header.modality is not None:
        return 0.0, float(2**header.modality.bits - 1)
    low = -(2 ** (header.stored - 1)) if header.is_signed else 0
    ends = np.array([low, low + 2**header.stored - 1])
    least, largest = sorted(ends * header.rescale[0] + header.rescale[1])
    return float(least), float(largest)


def _limits(numbers: Numbers, header: Header) -> tuple[float, float]:
    """Return the values that are black and white by percentile; a slope moves them as it moves all others."""
    if header.modality is not None:
        numbers = np.array(header.modality.entries, np.uint16)[
            np.clip(numbers.astype(np.int64) - header.modality.first, 0, len(header.modality.entries) - 1)
        ]
        low, high = map(float, np.percentile(numbers, PERCENTILES))
    else:
        low, high = sorted(np.percentile(numbers, PERCENTILES) * header.rescale[0] + header.rescale[1])
    return float(low), float(max(high, np.nextafter(low, np.inf)))
