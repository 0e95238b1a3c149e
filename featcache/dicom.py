"""The bytes of a DICOM file enter; what its header says of its frames, or one `PictureError`, leaves.

The header is gone through without recursion into what is not wanted, in order and in bounds: no length is believed
before it fits the bytes that are there. Names are those of the standard, PS3.3 and PS3.5.
"""

from __future__ import annotations

import math
import struct
import zlib
from array import array
from dataclasses import dataclass
from typing import NamedTuple

from featcache.errors import PictureError
from featcache.layout import is_tiff, layout_of

MAX_ELEMENTS = 2**19
"""So many elements and items are gone through, those that are passed over too."""

MAX_DEPTH = 16
"""Sequences of undefined length lie so deep in each other at most."""

MAX_FRAMES = 2**16
MAX_FRAGMENTS = 2**20
MAX_UNPACKED = 2**29
MAX_TEXT = 2**12
"""What a file is unpacked to whose whole data set is deflated, and how many characters a text has that is read."""

IMPLICIT, EXPLICIT, DEFLATED, BIG_ENDIAN = (f"1.2.840.10008.1.2{end}" for end in ("", ".1", ".1.99", ".2"))
RLE, BASELINE, EXTENDED = (f"1.2.840.10008.1.2.{end}" for end in ("5", "4.50", "4.51"))
JPEG_2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
NATIVE = (IMPLICIT, EXPLICIT, DEFLATED, BIG_ENDIAN)

_NOT_DECODED = {
    **dict.fromkeys(("4.52", "4.53", "4.54", "4.55", "4.56"), "JPEG of a retired kind"),
    **dict.fromkeys(("4.57", "4.70"), "lossless JPEG"),
    **dict.fromkeys(("4.80", "4.81"), "JPEG-LS"),
    **dict.fromkeys(("4.92", "4.93"), "JPEG 2000 of several components"),
    **dict.fromkeys(("4.94", "4.95", "4.204", "4.205"), "pixels on a server (JPIP)"),
    **dict.fromkeys((f"4.{number}" for number in range(100, 109)), "video"),
    **dict.fromkeys(("4.110", "4.111", "4.112"), "JPEG XL"),
    **dict.fromkeys(("4.201", "4.202", "4.203"), "high-throughput JPEG 2000"),
}

_SYNTAX = 0x00020010
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_PIXELS = 0x7FE00010
_UNDEFINED = 0xFFFFFFFF
_LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
_VALUES = _LONG | {
    *(b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL"),
    *(b"SS", b"ST", b"TM", b"UI", b"UL", b"US"),
}
_FOR_ALL, _FOR_EACH, _RESCALES, _WINDOWS = 0x52009229, 0x52009230, 0x00289145, 0x00289132
_MODALITY_LUT, _VOI_LUT, _LUT, _LUT_DATA = 0x00283000, 0x00283010, 0x00283002, 0x00283006
_SEQUENCES = {_FOR_ALL, _FOR_EACH, _RESCALES, _WINDOWS, _MODALITY_LUT, _VOI_LUT}
_WANTED = {
    *(0x00080060, 0x00280002, 0x00280004, 0x00280006, 0x00280008, 0x00280010, 0x00280011, 0x00280100, 0x00280101),
    *(0x00280102, 0x00280103, 0x00281050, 0x00281051, 0x00281052, 0x00281053, 0x00281056, 0x20500010, 0x20500020),
    *range(0x00281101, 0x00281104),
    *range(0x00281201, 0x00281204),
    *range(0x00281221, 0x00281224),
    *(_LUT, _LUT_DATA, 0x7FE00001, 0x7FE00008, 0x7FE00009, _PIXELS),
    *_SEQUENCES,
}

_OTHER_STARTS = (b"\xff\xd8", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"P")


def is_dicom(data: bytes) -> bool:
    """Tell whether bytes are a DICOM file, and not also one of those that were read as another picture ever since.

    Some have the header of a TIFF before them: with a TIFF behind it that is decoded, or with none.
    """
    if data[128:132] != b"DICM" or data.startswith(_OTHER_STARTS):
        return False
    try:
        return not (is_tiff(data) and layout_of(data))
    except PictureError:
        return True


@dataclass(frozen=True)
class Table:
    """A look-up table: its entries, the number that the first of them stands for, and the bits of each."""

    entries: tuple[int, ...]
    first: int
    bits: int


@dataclass(frozen=True)
class Header:
    """What a DICOM file says of one of its frames, of `frames`, and the bytes of that frame.

    `rescale` is slope and intercept, `window` centre and width, `palette` the tables of red, green and blue.
    """

    syntax: str
    width: int
    height: int
    samples: int
    photometric: str
    allocated: int
    stored: int
    is_signed: bool
    planes: bool
    frames: int
    rescale: tuple[float, float]
    modality: Table | None
    window: tuple[float, float] | None
    function: str
    voi: Table | None
    palette: tuple[Table, ...]
    frame: bytes

    @property
    def order(self) -> str:
        """The order of bytes in a number."""
        return ">" if self.syntax == BIG_ENDIAN else "<"


class _Value(NamedTuple):
    start: int
    stop: int
    is_undefined: bool
    is_explicit: bool
    is_words: bool


_Elements = dict[int, _Value]


class DicomFile:
    """The elements of a DICOM file, which are gone through once, and what is read of them; raises `PictureError`."""

    def __init__(self, data: bytes) -> None:
        self._left = MAX_ELEMENTS
        self._data, self._order = data, "<"
        at, syntax = 132, None
        while data[at : at + 2] == b"\x02\0":
            tag, value, at = self._element(at, len(data), is_explicit=True, depth=0)
            if tag == _SYNTAX:
                syntax = self._data[value.start : min(value.stop, value.start + 64)].decode("ascii", "replace")
        if syntax is None:
            raise PictureError("broken DICOM: it does not say how its data are encoded (0002,0010)")
        self.syntax = syntax.rstrip("\0 ")
        if self.syntax == DEFLATED:
            self._data, at = _inflated(data[at:]), 0
        self._order = ">" if self.syntax == BIG_ENDIAN else "<"
        self._top = self._elements(at, len(self._data), self.syntax != IMPLICIT, last=_PIXELS)
        self.frames = int(self._decimal(self._top, 0x00280008, 1))
        if not 0 < self.frames <= MAX_FRAMES:
            raise PictureError(f"DICOM of {self.frames:,} frames, at most {MAX_FRAMES:,} are read: save it anew")

    def header(self, page: int) -> Header:
        """Return what is said of a frame, counted from 1; raises `PictureError` for what is not decoded."""
        self._left = MAX_ELEMENTS
        top = self._top
        if _PIXELS not in top:
            kind = self._text(top, 0x00080060) or "none"
            floats = 0x7FE00008 in top or 0x7FE00009 in top
            raise PictureError(
                "DICOM of floating numbers, which is not decoded here: save it as whole numbers"
                if floats
                else f"DICOM without a picture (modality {kind}): leave it out"
            )
        if page > self.frames:
            raise PictureError(f"DICOM of {self.frames:,} frame{'s' * (self.frames != 1)}, which has no page {page:,}")
        height, width = self._number(top, 0x00280010), self._number(top, 0x00280011)
        samples, photometric = self._number(top, 0x00280002, 1), self._text(top, 0x00280004)
        allocated, stored = self._number(top, 0x00280100), self._number(top, 0x00280101)
        high, is_signed = self._number(top, 0x00280102, stored - 1), self._number(top, 0x00280103, 0) == 1
        if min(width, height) < 1 or samples not in (1, 3) or allocated not in (8, 16, 32):
            raise PictureError(
                f"DICOM of {width:,} x {height:,} pixels of {samples} samples of {allocated} bits, which is not "
                "decoded here: save it as TIFF"
            )
        if not 0 < stored <= allocated or high != stored - 1:
            raise PictureError(
                f"broken DICOM: bit {high} is the highest of {stored} bits stored, of {allocated} allocated"
            )
        usual = "INVERSE" if photometric == "MONOCHROME1" else "IDENTITY"
        if 0x20500010 in top or self._text(top, 0x20500020) not in ("", usual):
            raise PictureError(f"DICOM whose presentation table contradicts {photometric}: nobody knows what is white")
        if 0x00281221 in top:
            raise PictureError("DICOM with a palette in segments, which is not decoded here: save it as RGB")
        said = self._said(page)
        windows = [self._decimals(said, tag) for tag in (0x00281050, 0x00281051)]
        is_palette = photometric == "PALETTE COLOR"
        made = Header(
            syntax=self.syntax,
            width=width,
            height=height,
            samples=samples,
            photometric=photometric,
            allocated=allocated,
            stored=stored,
            is_signed=is_signed,
            planes=samples > 1 and self._number(top, 0x00280006, 0) == 1,
            frames=self.frames,
            rescale=(self._decimal(said, 0x00281053, 1), self._decimal(said, 0x00281052, 0)),
            modality=self._first_table(said, _MODALITY_LUT, is_signed),
            window=(windows[0][0], windows[1][0]) if windows[0] and windows[1] else None,
            function=self._text(said, 0x00281056) or "LINEAR",
            voi=self._first_table(said, _VOI_LUT, is_signed),
            palette=tuple(
                self._table(top, 0x00281101 + colour, 0x00281201 + colour, is_signed)
                for colour in range(3 * is_palette)
            ),
            frame=b"",
        )
        return Header(**{**made.__dict__, "frame": self._frame(made, page)})

    def _frame(self, header: Header, page: int) -> bytes:
        value = self._top[_PIXELS]
        if header.syntax in NATIVE:
            if value.is_undefined:
                raise PictureError("broken DICOM: plain pixels of undefined length")
            per_pixel = 2 if header.photometric == "YBR_FULL_422" else header.samples
            size = header.width * header.height * per_pixel * header.allocated // 8
            passed = (page - 1) * size
            start = value.start + passed
            if header.frames * size > value.stop - value.start:
                raise PictureError(
                    f"broken DICOM: {value.stop - value.start:,} bytes of pixels, where its frames take "
                    f"{header.frames * size:,}"
                )
            if header.allocated == 8 and value.is_words and self._order == ">":
                odd = passed % 2
                return _swapped(self._data[start - odd : start + size + (odd + size) % 2])[odd : odd + size]
            return self._data[start : start + size]
        if header.syntax not in (RLE, BASELINE, EXTENDED, *JPEG_2000):
            kind = _NOT_DECODED.get(header.syntax.removeprefix("1.2.840.10008.1.2."), f"{header.syntax:.64}")
            raise PictureError(f"DICOM compressed as {kind}, which is not decoded here: save it uncompressed or as RLE")
        if not value.is_undefined:
            raise PictureError("broken DICOM: packed pixels that are not in fragments")
        return self._packed(value.start, header.frames, page)

    def _packed(self, at: int, frames: int, page: int) -> bytes:
        """Return the packed bytes of a frame: its fragments, by the table of offsets where there are more of them."""
        fragments: list[tuple[int, int]] = []
        while True:
            tag, length = self._numbers_at(at, "HHL")
            if tag == _SEQUENCE_END:
                break
            if tag != _ITEM or length > len(self._data) - at - 8 or len(fragments) > MAX_FRAGMENTS:
                raise PictureError(f"broken DICOM: a fragment of its pixels is none, or beyond the {MAX_FRAGMENTS:,}th")
            fragments.append((at + 8, at + 8 + length))
            at += 8 + length
        if len(fragments) < 2:
            raise PictureError("broken DICOM: it has no pixels")
        (start, stop), *parts = fragments
        if frames == len(parts):
            chosen = [parts[page - 1]]
        elif frames == 1:
            chosen = parts
        else:
            if stop - start != 4 * frames:
                raise PictureError(
                    f"DICOM of {frames:,} frames in {len(parts):,} fragments, without a table that says which: "
                    "save it anew"
                )
            places = [*struct.unpack(f"<{frames}L", self._data[start:stop]), 2**32]
            low, high = places[page - 1] + parts[0][0], places[page] + parts[0][0]
            chosen = [part for part in parts if low <= part[0] < high]
            if not chosen or chosen[0][0] != low:
                raise PictureError("broken DICOM: its table of offsets names no fragment")
        return b"".join(self._data[start:stop] for start, stop in chosen)

    def _said(self, page: int) -> _Elements:
        """Return the elements that tell a frame's brightness: its own, else those of all frames, else the file's."""
        said = dict(self._top)
        for tag, at in ((_FOR_ALL, 0), (_FOR_EACH, page - 1)):
            group = self._item(self._top, tag, at)
            for inner in (_RESCALES, _WINDOWS):
                said.update(self._item(group, inner, 0))
        return said

    def _first_table(self, elements: _Elements, tag: int, is_signed: bool) -> Table | None:
        item = self._item(elements, tag, 0)
        return self._table(item, _LUT, _LUT_DATA, is_signed) if item else None

    def _table(self, elements: _Elements, descriptor: int, data: int, is_signed: bool) -> Table:
        if descriptor not in elements or data not in elements:
            raise PictureError("broken DICOM: a look-up table lacks its entries")
        size, first, bits = self._shorts(elements[descriptor], 3)
        size = size or 2**16
        first = first - 2**16 if is_signed and first >= 2**15 else first
        value = elements[data]
        length = value.stop - value.start
        if bits == 8 and length in (size, size + size % 2):
            raw = self._data[value.start : value.start + size + size % 2]
            if self._order == ">":  # words of 16 bits
                raw = _swapped(raw)
            return Table(tuple(raw[:size]), first, 8)
        if not 8 <= bits <= 16 or length != 2 * size:
            raise PictureError(f"broken DICOM: a look-up table of {size:,} entries of {bits} bits in {length:,} bytes")
        entries = self._shorts(value, size)
        if max(entries) >= 2**bits:
            raise PictureError(f"broken DICOM: a look-up table of {bits} bits that holds {max(entries):,}")
        return Table(entries, first, bits)

    def _shorts(self, value: _Value, count: int) -> tuple[int, ...]:
        if value.is_undefined or value.stop - value.start < 2 * count:
            raise PictureError("broken DICOM: a look-up table is too short")
        return struct.unpack_from(f"{self._order}{count}H", self._data, value.start)

    def _number(self, elements: _Elements, tag: int, default: int | None = None) -> int:
        value = elements.get(tag)
        if value is None or value.stop == value.start:
            if default is None:
                raise PictureError(f"broken DICOM: it does not say {_named(tag)}")
            return default
        return self._shorts(value, 1)[0]

    def _text(self, elements: _Elements, tag: int) -> str:
        value = elements.get(tag)
        if value is None or value.is_undefined:
            return ""
        text = self._data[value.start : min(value.stop, value.start + MAX_TEXT)].decode("ascii", "replace")
        return text.split("\\")[0].strip("\0 ")

    def _decimals(self, elements: _Elements, tag: int) -> list[float]:
        text = self._text(elements, tag)
        try:
            found = [float(text)] if text else []
        except ValueError:
            found = [math.nan]
        if not all(map(math.isfinite, found)):
            raise PictureError(f"broken DICOM: {_named(tag)} is {text[:40]!r}")
        return found

    def _decimal(self, elements: _Elements, tag: int, default: float) -> float:
        return next(iter(self._decimals(elements, tag)), default)

    def _item(self, elements: _Elements, tag: int, number: int) -> _Elements:
        """Return the elements of an item of a sequence, none where there is no such sequence."""
        value = elements.get(tag)
        if value is None:
            return {}
        at = value.start
        for passed in range(number + 1):
            if at >= value.stop:
                return {}
            kind, length = self._numbers_at(at, "HHL")
            if kind != _ITEM:
                return {}
            self._count()
            end = value.stop if length == _UNDEFINED else at + 8 + length
            if end > value.stop:
                raise PictureError("broken DICOM: an item goes beyond its sequence")
            if passed == number:
                return self._elements(at + 8, end, value.is_explicit)
            at = self._end(at + 8, _ITEM_END, value.is_explicit, 1) if length == _UNDEFINED else end
        return {}

    def _elements(self, at: int, end: int, is_explicit: bool, last: int | None = None) -> _Elements:
        """Return the wanted elements from a place on, up to an end, the end of an item, or the last one."""
        found: _Elements = {}
        while at < end:
            tag, value, at = self._element(at, end, is_explicit, 0)
            if tag in (_ITEM_END, _SEQUENCE_END):
                break
            if tag in found:
                raise PictureError(f"broken DICOM: it has {_named(tag)} twice")
            if tag in _WANTED:
                found[tag] = value
            if tag == last:
                break
        return found

    def _element(self, at: int, end: int, is_explicit: bool, depth: int) -> tuple[int, _Value, int]:
        """Return the tag and value of an element, and where the next one is; packed pixels are not gone through."""
        self._count()
        data = self._data
        tag, length = self._numbers_at(at, "HHL")
        start, kind = at + 8, b""
        if is_explicit and tag >> 16 != 0xFFFE:
            kind = data[at + 4 : at + 6]
            if kind not in _VALUES:
                raise PictureError(f"broken DICOM: {_named(tag)} is of no known kind")
            if kind in _LONG:
                _, length = self._numbers_at(at + 4, "HHL")
                start = at + 12
            else:
                (length,) = struct.unpack_from(self._order + "H", data, at + 6)
            # what was of no known kind to a program that made it explicit is left as it was
            is_explicit = kind != b"UN" or length != _UNDEFINED
        is_words = kind == b"OW"
        if length != _UNDEFINED:
            if start + length > end:
                raise PictureError(f"broken DICOM: it ends before {_named(tag)} does")
            return tag, _Value(start, start + length, False, is_explicit, is_words), start + length
        if tag == _PIXELS:
            return tag, _Value(start, end, True, is_explicit, is_words), end
        stop = self._end(start, _SEQUENCE_END, is_explicit, depth + 1)
        return tag, _Value(start, stop, True, is_explicit, is_words), stop

    def _end(self, at: int, mark: int, is_explicit: bool, depth: int) -> int:
        """Return where a sequence or an item of undefined length ends, behind its mark."""
        if depth > MAX_DEPTH:
            raise PictureError(f"DICOM with sequences more than {MAX_DEPTH} deep: no photograph, save it anew")
        while True:
            tag, length = self._numbers_at(at, "HHL")
            if tag == mark:
                return at + 8
            if mark == _ITEM_END:
                _, _, at = self._element(at, len(self._data), is_explicit, depth)
                continue
            self._count()
            if tag != _ITEM:
                raise PictureError("broken DICOM: a sequence holds what is no item")
            at = self._end(at + 8, _ITEM_END, is_explicit, depth + 1) if length == _UNDEFINED else at + 8 + length

    def _numbers_at(self, at: int, kind: str) -> tuple[int, int]:
        try:
            group, element, length = struct.unpack_from(self._order + kind, self._data, at)
        except struct.error as error:
            raise PictureError("broken DICOM: it ends before its header does") from error
        return group << 16 | element, length

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise PictureError(f"DICOM of more than {MAX_ELEMENTS:,} elements: no photograph, save it anew")


def _named(tag: int) -> str:
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


def _swapped(words: bytes) -> bytes:
    """Return the bytes of words of 16 bits in the other order."""
    swapped = array("H", words)
    swapped.byteswap()
    return swapped.tobytes()


def _inflated(packed: bytes) -> bytes:
    most = min(MAX_UNPACKED, max(2**24, 200 * len(packed)))
    unpacking = zlib.decompressobj(-15)
    try:
        data = unpacking.decompress(packed, most)
    except zlib.error as error:
        raise PictureError(f"broken DICOM: {error}") from error
    if unpacking.unconsumed_tail or not unpacking.eof:
        raise PictureError(f"DICOM that is unpacked to more than {most:,} bytes, or cut: save it uncompressed")
    return data
