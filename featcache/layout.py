"""The bytes of a TIFF enter; how its pixels are laid out, and who decodes that, or one `PictureError`, leaves.

Pillow decodes some layouts wrong, in silence; those that it decodes right are listed here, and keep their pixels and
content keys. All others are `raster`'s, or are refused. Nothing is taken for granted that the bytes do not say.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from featcache.directories import (
    MAX_ENTRIES,
    MAX_NUMBERS,
    MAX_SAMPLES,
    ODD_STARTS,
    Directory,
    directories_of,
    directory_at,
    is_full,
    page_in,
)
from featcache.errors import PictureError

PLAIN, LZW, DEFLATE, PACKBITS, OLD_DEFLATE, LZMA, ZSTD = 1, 5, 8, 32773, 32946, 34925, 50000
EXACT = {PLAIN, LZW, DEFLATE, PACKBITS, OLD_DEFLATE, LZMA, ZSTD}
"""Compressions that give back the bytes that went in."""
FAX, OLD_JPEG, JPEG, WEBP = {2, 3, 4}, 6, 7, 50001

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR = 0, 1, 2, 3, 5, 6
UNSPECIFIED, ASSOCIATED, UNASSOCIATED = 0, 1, 2
WHOLE, SIGNED, FLOAT = 1, 2, 3

COLOURS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, PALETTE: 1, CMYK: 4, YCBCR: 3, 8: 3, 9: 3, 10: 3}
"""How many samples a pixel has of each photometric interpretation, extra ones left out."""

LUMA = (0.299, 0.587, 0.114)
REFERENCES = (0.0, 255.0, 128.0, 255.0, 128.0, 255.0)
"""How brightness is made of colours, and which numbers are black and white (of colours none and all) by default."""

_NAMES = {4: "a mask", 8: "CIE L*a*b*", 9: "ICC L*a*b*", 10: "ITU L*a*b*", 32844: "LogL", 32845: "LogLuv"}
_COMPRESSIONS = {
    6: "JPEG of the old kind in parts",
    32771: "16-bit padded",
    32809: "ThunderScan",
    33003: "JPEG 2000",
    33005: "JPEG 2000",
    34661: "JBIG",
    34676: "SGI LogLuv",
    34677: "SGI LogLuv",
    34712: "JPEG 2000",
    34887: "LERC",
    34892: "lossy JPEG",
    50002: "JPEG XL",
    52546: "JPEG XL",
}
_SENSORS = {32803, 34892}
_OF_CAMERAS = {32767, 32769, 34713, 65000, 65535}
_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_SIGNIFICANT = re.compile(rb'<(?:\w+:)?Pixels\b[^>]*\bSignificantBits="(\d{1,2})"')

_OTHER_RAW = (
    (b"FUJIFILMCCD-RAW", "Fujifilm RAF"),
    (b"IIRO", "Olympus ORF"),
    (b"IIRS", "Olympus ORF"),
    (b"MMOR", "Olympus ORF"),
    (b"IIU\0", "Panasonic RW2"),
    (b"FOVb", "Sigma X3F"),
    (b"\0MRM", "Minolta MRW"),
)


def is_tiff(data: bytes) -> bool:
    """Tell whether bytes begin as a TIFF does, or as Pillow takes for one."""
    return data.startswith((*_STARTS, *ODD_STARTS))


def check_no_raw(data: bytes) -> None:
    """Raise `PictureError` for a raw file of a camera that is no TIFF."""
    for start, name in _OTHER_RAW:
        if data.startswith(start):
            raise _raw(name)
    if data[4:12] == b"ftypcrx ":
        raise _raw("Canon CR3")


def is_as_ever(data: bytes) -> bool:
    """Tell whether a file's pixels are those that Pillow gives, as in every version."""
    if not is_tiff(data):
        return True
    try:
        return layout_of(data).is_pillows
    except PictureError:
        return False


@dataclass(frozen=True)
class Layout:
    """How the first picture of a TIFF lies in the file.

    `bits` are those a number has, `stored` those it takes, and `top` stands for white. A segment is a strip or tile of
    `across` x `down` pixels, of one sample where there are `planes`; `offsets` and `counts` (bytes) are in the order of
    the file. `luma` and `references` say what the numbers of YCbCr mean.
    """

    width: int
    height: int
    bits: int
    stored: int
    top: int
    samples: int
    extra: tuple[int, ...]
    format: int
    photometric: int
    compression: int
    predictor: int
    order: str
    is_reversed: bool
    planes: bool
    across: int
    down: int
    is_tiled: bool
    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    orientation: int
    palette: tuple[int, ...]
    subsampling: tuple[int, ...]
    luma: tuple[float, ...]
    references: tuple[float, ...]
    is_big_endian_bigtiff: bool

    @cached_property
    def is_pillows(self) -> bool:
        """Whether Pillow decodes this layout right, shown for each by `tests/test_tiff.py`."""
        return not self.is_big_endian_bigtiff and self._is_known_to_pillow and not self._is_wrong_by_pillow

    @property
    def _is_known_to_pillow(self) -> bool:
        key, extra, is_plain = (self.photometric, self.bits), self.extra, self.compression == PLAIN
        if self.format != WHOLE or self.stored != self.bits:
            return False
        if self.is_reversed and (self.bits > 8 or (self.samples > 1 and (key, extra) != ((RGB, 8), ()))):
            return False
        if (
            self.is_reversed
            and is_plain
            and (key == (WHITE_IS_ZERO, 8) or (self.photometric == PALETTE and self.bits < 8))
        ):
            return False
        if self.compression in FAX:
            return self.bits == 1 and self.samples == 1 and self.photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO)
        if self.compression in (OLD_JPEG, JPEG, WEBP):
            return self._is_photograph
        if self.planes and not is_plain and not any(extra):
            extra = ()  # planes of their own, which are passed over
        if self.photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO, PALETTE) and not extra:
            return self.bits in (1, 2, 4, 8) or key == (BLACK_IS_ZERO, 16)
        known = {
            (BLACK_IS_ZERO, 8): ((UNSPECIFIED,), (UNASSOCIATED,)),
            (RGB, 8): (
                (),
                *((first, *more) for first in range(3) for more in ((), (UNSPECIFIED,), (UNSPECIFIED,) * 2)),
            ),
            (RGB, 16): ((), (UNSPECIFIED,), (ASSOCIATED,), (UNASSOCIATED,)),
            (CMYK, 8): ((), (UNSPECIFIED,), (UNSPECIFIED,) * 2),
            (CMYK, 16): ((),),
            (YCBCR, 8): ((),) if self.subsampling == (1, 1) and not self.planes and self._is_usual_ycbcr else (),
        }
        return extra in known.get(key, ())

    @property
    def _is_usual_ycbcr(self) -> bool:
        away = (abs(a - b) for a, b in zip(self.luma + self.references, LUMA + REFERENCES, strict=True))
        return max(away) < 1e-3

    @property
    def _is_photograph(self) -> bool:
        """Whether a layout that is compressed as photographs are is one that Pillow decodes right."""
        if self.bits != 8 or (self.planes and (self.compression, self.photometric) != (JPEG, RGB)):
            return False
        if self.compression == OLD_JPEG:
            return self.photometric == YCBCR and not self.extra
        if self.compression == WEBP:
            return self.photometric == RGB and self.extra in ((), (UNASSOCIATED,))
        return self.photometric in (BLACK_IS_ZERO, RGB, CMYK, YCBCR) and not self.extra

    @property
    def _is_wrong_by_pillow(self) -> bool:
        if self.top != 2**self.bits - 1:
            return True
        if self.photometric == PALETTE and max(self.palette) < 256:
            return True
        if not self.planes:
            return False
        if self.compression == PLAIN:
            return self.bits == 16 or (bool(self.extra) and (self.photometric, self.extra) != (RGB, (UNASSOCIATED,)))
        return any(self.extra) and (self.photometric != RGB or len(self.extra) > 1)


MOST_SHARED = 2**26
"""Strips and tiles may lie over each other, where they are alike, and over the edge: by so much at most."""


def layout_of(
    data: bytes, page: int = 1, *, is_chosen: bool = False, directories: list[Directory] | None = None
) -> Layout:
    """Return the layout of a full page of a TIFF, counted from 1, whose `directories` may be known.

    Where channels are chosen it need not say what they are. Raises `PictureError` for what is not decoded.
    """
    directories = directories_of(data) if directories is None else directories
    _check_no_raw(data, directories)
    first = page_in(data, directories, page)
    of = first.number
    width, height = of(data, 256), of(data, 257)
    samples, photometric = of(data, 277, 1), _photometric(data, first)
    if min(width, height, samples) < 1 or samples > MAX_SAMPLES:
        raise PictureError(f"TIFF of {width:,} x {height:,} pixels of {samples:,} samples: no photograph, save it anew")
    compression = of(data, 259, PLAIN)
    if compression not in {*EXACT, *FAX, JPEG, WEBP} and not (compression == OLD_JPEG and 513 in first.entries):
        kind = _COMPRESSIONS.get(compression, f"compression {compression}")
        raise PictureError(f"TIFF compressed as {kind}, which is not decoded here: save it as LZW or PNG")
    bits = of(data, 258, 1)
    across, down, is_tiled, planes = *_segment(data, first, width, height), of(data, 284, 1) == 2
    down = down if is_tiled else min(down, height)
    number = -(-width // across) * -(-height // down) * (samples if planes else 1)
    offsets = first.numbers(data, 324 if is_tiled else 273, MAX_NUMBERS)
    counts = first.numbers(data, 325 if is_tiled else 279, MAX_NUMBERS)
    if not counts and len(offsets) == 1:  # old writers left it out
        counts = (len(data) - min(offsets[0], len(data)),)
    if len(offsets) != number or len(counts) != number:
        raise PictureError(f"broken TIFF: {len(offsets):,} strips or tiles, where its pixels take {number:,}")
    if sum(counts) > 4 * len(data) + MOST_SHARED:
        raise PictureError(f"broken TIFF: {number:,} strips or tiles of {sum(counts):,} bytes in {len(data):,}")
    if number * across * down > 4 * width * height * samples + MOST_SHARED:
        raise PictureError(
            f"broken TIFF: {number:,} strips or tiles of {across:,} x {down:,} pixels for {width:,} x {height:,}"
        )
    says_ycbcr = photometric == YCBCR and compression in EXACT  # a JPEG has its own, whatever stands beside it
    layout = Layout(
        width=width,
        height=height,
        bits=bits,
        stored=_stored(bits, compression, counts, width * (1 if planes else samples), height, is_tiled, down),
        top=_top(data, first if 270 in first.entries else directories[0], first, bits),
        samples=samples,
        extra=first.numbers(data, 338),
        format=of(data, 339, WHOLE),
        photometric=photometric,
        compression=compression,
        predictor=of(data, 317, 1),
        order=first.order,
        is_reversed=of(data, 266, 1) == 2,
        planes=planes and samples > 1,
        across=across,
        down=down,
        is_tiled=is_tiled,
        offsets=offsets,
        counts=counts,
        orientation=of(data, 274, 1),
        palette=first.numbers(data, 320, 3 * 2**16),
        subsampling=first.numbers(data, 530),
        luma=(says_ycbcr and first.ratios(data, 529)) or LUMA,
        references=(says_ycbcr and first.ratios(data, 532)) or REFERENCES,
        is_big_endian_bigtiff=first.is_big and first.order == ">",
    )
    _check(layout, is_chosen)
    return layout


def _check(layout: Layout, is_chosen: bool) -> None:
    """Raise `PictureError` for what no decoder here has been shown to decode right."""
    if layout.photometric not in COLOURS or layout.photometric in _NAMES:
        kind = _NAMES.get(layout.photometric, f"photometric interpretation {layout.photometric}")
        raise PictureError(f"TIFF of {kind}, which is not decoded here: save it as RGB")
    colours = COLOURS[layout.photometric]
    if layout.samples != colours + len(layout.extra) and not is_chosen:
        raise PictureError(
            f"TIFF of {layout.samples} samples a pixel that does not say what they are: choose with --channels"
        )
    if layout.format not in (WHOLE, SIGNED, FLOAT) or not 1 <= layout.bits <= 64:
        raise PictureError(f"TIFF of sample format {layout.format} with {layout.bits} bits: save it as RGB")
    if layout.photometric == PALETTE and len(layout.palette) != 3 * 2**layout.bits:
        raise PictureError(f"broken TIFF: a palette of {len(layout.palette):,} numbers for {layout.bits} bits")
    if layout.predictor not in (1, 2, 3) or (
        layout.predictor > 1 and layout.compression not in EXACT - {PLAIN, PACKBITS}
    ):
        raise PictureError(f"TIFF of predictor {layout.predictor} with compression {layout.compression}: save it anew")
    luma, low, high = layout.luma, layout.references[::2], layout.references[1::2]
    if len(luma) != 3 or not min(luma) > 0 or len(low) != 3 or len(high) != 3 or any(map(float.__eq__, low, high)):
        raise PictureError("broken TIFF: YCbCr of which nobody knows what is black and white")
    if layout.photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO) and len(layout.extra) > 1 and not is_chosen:
        raise PictureError(f"TIFF of {layout.samples} channels: choose with --channels")
    if layout.compression not in EXACT and not layout.is_pillows:
        kinds = {OLD_JPEG: "JPEG", JPEG: "JPEG", WEBP: "WebP"}
        raise PictureError(
            f"TIFF compressed as {kinds.get(layout.compression, 'fax')} in a layout that is not decoded here: "
            "save it as LZW or PNG"
        )


def _photometric(data: bytes, first: Directory) -> int:
    fax = WHITE_IS_ZERO if first.number(data, 259, PLAIN) in FAX else None
    try:
        return first.number(data, 262, fax)
    except PictureError as error:
        raise PictureError("TIFF that does not say what its numbers mean (no tag 262): save it anew") from error


def _segment(data: bytes, first: Directory, width: int, height: int) -> tuple[int, int, bool]:
    """Return the width and height of strips or tiles, and whether they are tiles."""
    if 322 in first.entries or 324 in first.entries:
        if 273 in first.entries:
            raise PictureError("broken TIFF: it has both strips and tiles")
        across, down = first.number(data, 322), first.number(data, 323)
        if min(across, down) < 1 or across % 16 or down % 16 or across * down > 2**28:
            raise PictureError(f"broken TIFF: tiles of {across:,} x {down:,} pixels")
        return across, down, True
    return width, max(1, min(first.number(data, 278, height), height)), False


def _stored(
    bits: int, compression: int, counts: tuple[int, ...], row: int, height: int, is_tiled: bool, down: int
) -> int:
    """Return how many bits a number takes: some cameras' 10 to 14 bits lie in 16."""
    if compression == PLAIN and 8 < bits < 16 and not is_tiled:
        last = height - down * (-(-height // down) - 1)
        rows = sum(counts) / (row * 2) if row else 0
        n_rows = (len(counts) * height) // max(1, -(-height // down))
        if rows == n_rows and counts[-1] == last * row * 2:
            return 16
    return bits


def _top(data: bytes, described: Directory, first: Directory, bits: int) -> int:
    """Return the number that is white: the largest one, or of 16 bits what the file says that its camera has.

    Of all pages it is said in the description of the first.
    """
    if bits != 16:
        return 2**bits - 1 if 0 < bits <= 64 else 1
    stated = set(first.numbers(data, 281)) if 281 in first.entries else set()
    description = described.entries.get(270)
    if description is not None and description.kind == 2:
        text = data[description.place : description.place + min(description.values, 2**16)]
        found = _SIGNIFICANT.search(text)
        stated |= {2 ** int(found[1]) - 1} if found else set()
    likely = stated & {2**depth - 1 for depth in range(9, 16)}
    if len(likely) > 1:
        raise PictureError(f"broken TIFF: it says that white is {' and '.join(map(str, sorted(likely)))}")
    return likely.pop() if likely else 2**16 - 1


def _check_no_raw(data: bytes, directories: list[Directory]) -> None:
    first = directories[0]
    if 50706 in first.entries:
        raise _raw("DNG")
    if data[8:10] == b"CR" and data[:2] == b"II":
        raise _raw("Canon CR2")
    for directory in (*directories[:MAX_SAMPLES], *_below(data, first)):
        kinds = {tag: directory.numbers(data, tag)[:1] for tag in (259, 262) if tag in directory.entries}
        if {*kinds.get(262, ())} & _SENSORS or {*kinds.get(259, ())} & _OF_CAMERAS:
            raise _raw("NEF, ARW, PEF or the like")
    if not is_full(data, first):
        raise PictureError(
            "TIFF that begins with a thumbnail or mask, as raw files of cameras do: save the full picture alone"
        )


def _below(data: bytes, directory: Directory) -> Iterator[Directory]:
    """Yield the directories that hang below a page."""
    taken = 0
    for at in dict.fromkeys(directory.numbers(data, 330)):
        found, n = directory_at(data, at, directory.order, directory.is_big, is_brief=True)
        taken += n
        if taken > MAX_ENTRIES:
            raise PictureError(f"TIFF of more than {MAX_ENTRIES:,} entries below a page: no photograph, save it anew")
        yield found


def _raw(name: str) -> PictureError:
    return PictureError(f"raw file of a camera ({name}), which is not developed here: save it as JPEG, PNG or TIFF")
