"""The bytes of a TIFF enter; how its pixels are laid out, and who decodes that, or one `PictureError`, leaves.

Pillow decodes some layouts wrong, in silence; those that it decodes right are listed here, and keep their pixels and
content keys. All others are `raster`'s, or are refused. Nothing is taken for granted that the bytes do not say.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from featcache.errors import PictureError

MAX_PAGES = 2**16
MAX_ENTRIES = 2**20
"""So many directories, with so many entries in all, are gone through."""

MAX_NUMBERS = 2**20
"""So many strips or tiles a picture has."""

MAX_SAMPLES = 64
"""So many samples a pixel has."""

PLAIN, LZW, DEFLATE, PACKBITS, OLD_DEFLATE, LZMA, ZSTD = 1, 5, 8, 32773, 32946, 34925, 50000
EXACT = {PLAIN, LZW, DEFLATE, PACKBITS, OLD_DEFLATE, LZMA, ZSTD}
"""Compressions that give back the bytes that went in."""
FAX, OLD_JPEG, JPEG, WEBP = {2, 3, 4}, 6, 7, 50001

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR = 0, 1, 2, 3, 5, 6
UNSPECIFIED, ASSOCIATED, UNASSOCIATED = 0, 1, 2
WHOLE, SIGNED, FLOAT = 1, 2, 3

COLOURS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, PALETTE: 1, CMYK: 4, YCBCR: 3, 8: 3, 9: 3, 10: 3}
"""How many samples a pixel has of each photometric interpretation, extra ones left out."""

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
_KINDS = {1: "B", 3: "H", 4: "L", 6: "b", 8: "h", 9: "l", 13: "L", 16: "Q", 17: "q", 18: "Q"}
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_ODD_STARTS = (b"MM*\0", b"II\0*")
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
    return data.startswith((*_STARTS, *_ODD_STARTS))


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


class _Entry(NamedTuple):
    kind: int
    values: int
    place: int


@dataclass(frozen=True)
class _Directory:
    """The entries of one directory, by tag; those that are there twice, and where the next one is."""

    order: str
    is_big: bool
    entries: dict[int, _Entry]
    twice: frozenset[int]
    following: int
    at: int

    def numbers(self, data: bytes, tag: int, most: int = MAX_SAMPLES) -> tuple[int, ...]:
        """Return the whole numbers of a tag, none where it is not there; raises `PictureError`."""
        entry = self.entries.get(tag)
        if entry is None:
            return ()
        if tag in self.twice:
            raise PictureError(f"broken TIFF: it has tag {tag} twice")
        if entry.kind not in _KINDS or not 0 < entry.values <= most:
            raise PictureError(
                f"TIFF with {entry.values:,} values of kind {entry.kind} in tag {tag}: no photograph, save it anew"
            )
        size = entry.values * _SIZES[entry.kind]
        raw = data[entry.place : entry.place + size]
        if len(raw) < size:
            raise PictureError("broken TIFF: it ends before its directory does")
        return struct.unpack(f"{self.order}{entry.values}{_KINDS[entry.kind]}", raw)

    def number(self, data: bytes, tag: int, default: int | None = None) -> int:
        """Return the one number of a tag; raises `PictureError` where there are several, or no default."""
        found = self.numbers(data, tag)
        if not found and default is not None:
            return default
        if len(set(found)) != 1:
            raise PictureError(f"broken TIFF: tag {tag} has the values {found}" if found else f"TIFF without tag {tag}")
        return found[0]


@dataclass(frozen=True)
class Layout:
    """How the first picture of a TIFF lies in the file.

    `bits` are those a number has, `stored` those it takes, and `top` stands for white. A segment is a strip or tile of
    `across` x `down` pixels, of one sample where there are `planes`; `offsets` and `counts` (bytes) are in the order of
    the file. `pages` counts full pictures.
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
    pages: int
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
            (YCBCR, 8): ((),) if self.subsampling == (1, 1) and not self.planes else (),
        }
        return extra in known.get(key, ())

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


def layout_of(data: bytes, page: int = 1, *, is_chosen: bool = False) -> Layout:
    """Return the layout of a full page of a TIFF, counted from 1.

    Where channels are chosen it need not say what they are. Raises `PictureError` for what is not decoded.
    """
    if data.startswith(_ODD_STARTS):
        raise PictureError("broken TIFF: its first bytes contradict each other")
    directories = _directories(data)
    _check_no_raw(data, directories)
    first = _page(data, directories, page)
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
    layout = Layout(
        width=width,
        height=height,
        bits=bits,
        stored=_stored(bits, compression, counts, width * (1 if planes else samples), height, is_tiled, down),
        top=_top(data, first, bits),
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
        pages=sum(_is_full(data, directory) for directory in directories),
        is_big_endian_bigtiff=first.is_big and first.order == ">",
    )
    _check(layout, is_chosen)
    return layout


def page_of(data: bytes, page: int) -> bytes:
    """Return a TIFF of one page of a TIFF, with what tells its pixels and nothing else; raises `PictureError`."""
    first = _page(data, _directories(data), page)
    places, sizes = (324, 325) if 324 in first.entries else (273, 279)
    offsets, counts = (first.numbers(data, tag, MAX_NUMBERS) for tag in (places, sizes))
    if len(offsets) != len(counts):
        raise PictureError("broken TIFF: it does not say how long its strips or tiles are")
    order, is_big = first.order, first.is_big
    place, head = order + ("Q" if is_big else "L"), order + ("HHQ" if is_big else "HHL")
    room = struct.calcsize(place)
    new = bytearray(data[: 16 if is_big else 8])
    starts = []
    if sum(counts) > 2 * len(data):
        raise PictureError("broken TIFF: its strips or tiles lie over one another")
    for offset, count in zip(offsets, counts, strict=True):
        starts.append(len(new))
        new += data[offset : offset + count]
    entries = bytearray()
    kept = sorted((first.entries.keys() & _OF_PIXELS) | {places, sizes})
    for tag in kept:
        kind, values, there = first.entries[tag]
        raw = data[there : there + values * _SIZES.get(kind, 1)]
        if tag in (places, sizes):
            kind, numbers = (16 if is_big else 4), (starts if tag == places else counts)
            values, raw = len(numbers), struct.pack(f"{place[0]}{len(numbers)}{place[1]}", *numbers)
        entries += struct.pack(head, tag, kind, values)
        entries += struct.pack(place, len(new)) if len(raw) > room else raw.ljust(room, b"\0")
        new += raw if len(raw) > room else b""
    new[room if is_big else 4 : 16 if is_big else 8] = struct.pack(place, len(new))
    return bytes(new + struct.pack(order + ("Q" if is_big else "H"), len(kept)) + entries + bytes(room))


def _page(data: bytes, directories: list[_Directory], page: int) -> _Directory:
    full = [directory for directory in directories if _is_full(data, directory)]
    if page > len(full):
        raise PictureError(f"TIFF of {len(full):,} page{'s' * (len(full) != 1)}, which has no page {page:,}")
    found = full[page - 1]
    return _directory(data, found.at, found.order, found.is_big, is_brief=False)[0]


_OF_PIXELS = {
    254,
    256,
    257,
    258,
    259,
    262,
    266,
    270,
    274,
    277,
    278,
    281,
    284,
    292,
    293,
    317,
    320,
    322,
    323,
    338,
    339,
    347,
}
_OF_PIXELS |= {530, 532}
"""The tags that tell what the pixels are."""


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
    if layout.photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO) and len(layout.extra) > 1 and not is_chosen:
        raise PictureError(f"TIFF of {layout.samples} channels: choose with --channels")
    if layout.compression not in EXACT and not layout.is_pillows:
        kinds = {OLD_JPEG: "JPEG", JPEG: "JPEG", WEBP: "WebP"}
        raise PictureError(
            f"TIFF compressed as {kinds.get(layout.compression, 'fax')} in a layout that is not decoded here: "
            "save it as LZW or PNG"
        )


def _photometric(data: bytes, first: _Directory) -> int:
    fax = WHITE_IS_ZERO if first.number(data, 259, PLAIN) in FAX else None
    try:
        return first.number(data, 262, fax)
    except PictureError as error:
        raise PictureError("TIFF that does not say what its numbers mean (no tag 262): save it anew") from error


def _segment(data: bytes, first: _Directory, width: int, height: int) -> tuple[int, int, bool]:
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


def _top(data: bytes, first: _Directory, bits: int) -> int:
    """Return the number that is white: the largest one, or of 16 bits what the file says that its camera has."""
    if bits != 16:
        return 2**bits - 1 if 0 < bits <= 64 else 1
    stated = set(first.numbers(data, 281)) if 281 in first.entries else set()
    description = first.entries.get(270)
    if description is not None and description.kind == 2:
        text = data[description.place : description.place + min(description.values, 2**16)]
        found = _SIGNIFICANT.search(text)
        stated |= {2 ** int(found[1]) - 1} if found else set()
    likely = stated & {2**depth - 1 for depth in range(9, 16)}
    if len(likely) > 1:
        raise PictureError(f"broken TIFF: it says that white is {' and '.join(map(str, sorted(likely)))}")
    return likely.pop() if likely else 2**16 - 1


def _is_full(data: bytes, directory: _Directory) -> bool:
    """Tell whether a page is no thumbnail, lower resolution or mask of another one."""
    return not directory.number(data, 254, 0) & 5


def _directories(data: bytes) -> list[_Directory]:
    """Return all pages' directories, of the first one all entries, of others those that tell what they are."""
    found: list[_Directory] = []
    seen: set[int] = set()
    taken = 0
    order, is_big = "<" if data.startswith(b"II") else ">", data[2:4] in (b"+\0", b"\0+")
    if is_big and data[4:8] not in (b"\x08\0\0\0", b"\0\x08\0\0"):
        raise PictureError("broken TIFF: a BigTIFF with offsets that are not of 8 bytes")
    at = _number(data, 8 if is_big else 4, order + ("Q" if is_big else "L"))
    while at and at not in seen:
        seen.add(at)
        directory, n = _directory(data, at, order, is_big, bool(found))
        taken += n
        if taken > MAX_ENTRIES or len(found) >= MAX_PAGES:
            raise PictureError(
                f"TIFF of more than {MAX_PAGES:,} pages, or {MAX_ENTRIES:,} entries: no photograph, save it anew"
            )
        found.append(directory)
        at = directory.following
    if not found:
        raise PictureError("broken TIFF: it has no picture")
    return found


def _directory(data: bytes, at: int, order: str, is_big: bool, is_brief: bool) -> tuple[_Directory, int]:
    head, kind, place = (8, "HHQ", "Q") if is_big else (2, "HHL", "L")
    n = _number(data, at, order + ("Q" if is_big else "H"))
    size = 20 if is_big else 12
    end = at + head + n * size
    if n > MAX_ENTRIES or end > len(data):
        raise PictureError("broken TIFF: a directory goes beyond its end")
    entries: dict[int, _Entry] = {}
    twice = set()
    room = struct.calcsize("=" + place)
    for number in range(n):
        start = at + head + number * size
        (tag,) = struct.unpack_from(order + "H", data, start)
        if is_brief and tag not in _TELLING:
            continue
        tag, of, count = struct.unpack_from(order + kind, data, start)
        there = start + size - room
        if count * _SIZES.get(of, 1) > room:
            there = _number(data, there, order + place)
        twice |= {tag} & entries.keys()
        entries[tag] = _Entry(of, count, there)
    # Some writers end the file where the place of the next directory should be.
    following = _number(data, end, order + place) if end + room <= len(data) else 0
    return _Directory(order, is_big, entries, frozenset(twice), following, at), n


_TELLING = {254, 259, 262, 330, 50706}
"""The tags that tell whether a directory is of a raw file, and whether of a full picture."""


def _check_no_raw(data: bytes, directories: list[_Directory]) -> None:
    first = directories[0]
    if 50706 in first.entries:
        raise _raw("DNG")
    if data[8:10] == b"CR" and data[:2] == b"II":
        raise _raw("Canon CR2")
    for directory in (*directories[:MAX_SAMPLES], *_below(data, first)):
        kinds = {tag: directory.numbers(data, tag)[:1] for tag in (259, 262) if tag in directory.entries}
        if {*kinds.get(262, ())} & _SENSORS or {*kinds.get(259, ())} & _OF_CAMERAS:
            raise _raw("NEF, ARW, PEF or the like")
    if not _is_full(data, first):
        raise PictureError(
            "TIFF that begins with a thumbnail or mask, as raw files of cameras do: save the full picture alone"
        )


def _below(data: bytes, directory: _Directory) -> Iterator[_Directory]:
    """Yield the directories that hang below a page."""
    for at in directory.numbers(data, 330):
        yield _directory(data, at, directory.order, directory.is_big, is_brief=True)[0]


def _number(data: bytes, at: int, kind: str) -> int:
    try:
        found: int = struct.unpack_from(kind, data, at)[0]
    except struct.error as error:
        raise PictureError("broken TIFF: it ends before its directory does") from error
    return found


def _raw(name: str) -> PictureError:
    return PictureError(f"raw file of a camera ({name}), which is not developed here: save it as JPEG, PNG or TIFF")
