"""The bytes of a TIFF enter; its directories, of which each says what one page is, leave, or one `PictureError`."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import NamedTuple

from featcache.errors import PictureError

ODD_STARTS = (b"MM*\0", b"II\0*")
"""How files begin that Pillow takes for TIFF too, and that say two orders of bytes."""

MAX_PAGES = 2**16
MAX_ENTRIES = 2**20
"""So many directories, with so many entries in all, are gone through."""

MAX_NUMBERS = 2**17
"""So many strips or tiles a picture has, each of which takes up to 30 microseconds."""

MAX_SAMPLES = 64
"""So many samples a pixel has."""

_KINDS = {1: "B", 3: "H", 4: "L", 6: "b", 8: "h", 9: "l", 13: "L", 16: "Q", 17: "q", 18: "Q"}
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}

_RATIO = 5

_TELLING = {254, 259, 262, 330, 50706}
"""The tags that tell whether a directory is of a raw file, and whether of a full picture."""

_OF_PIXELS = {
    *(254, 256, 257, 258, 259, 262, 266, 270, 274, 277, 278, 281, 284),
    *(292, 293, 317, 320, 322, 323, 338, 339, 347, 530, 532),
}
"""The tags that tell what the pixels are."""


class Entry(NamedTuple):
    """The kind of a tag's values, how many there are, and where they lie in the file."""

    kind: int
    values: int
    place: int


@dataclass(frozen=True)
class Directory:
    """The entries of one directory, by tag; those that are there twice, and where the next one is."""

    order: str
    is_big: bool
    entries: dict[int, Entry]
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

    def ratios(self, data: bytes, tag: int) -> tuple[float, ...]:
        """Return the numbers of a tag that may be fractions, none where it is not there; raises `PictureError`."""
        entry = self.entries.get(tag)
        if entry is None or entry.kind != _RATIO:
            return tuple(map(float, self.numbers(data, tag)))
        whole = Entry(4, 2 * entry.values, entry.place)
        parts = replace(self, entries={tag: whole}).numbers(data, tag)
        if not all(parts[1::2]):
            raise PictureError(f"broken TIFF: tag {tag} has a fraction of 0")
        return tuple(above / below for above, below in zip(parts[::2], parts[1::2], strict=True))

    def number(self, data: bytes, tag: int, default: int | None = None) -> int:
        """Return the one number of a tag; raises `PictureError` where there are several, or no default."""
        found = self.numbers(data, tag)
        if not found and default is not None:
            return default
        if len(set(found)) != 1:
            raise PictureError(f"broken TIFF: tag {tag} has the values {found}" if found else f"TIFF without tag {tag}")
        return found[0]


def directories_of(data: bytes) -> list[Directory]:
    """Return all pages' directories, of the first one all entries, of others those that tell what they are."""
    if data.startswith(ODD_STARTS):
        raise PictureError("broken TIFF: its first bytes contradict each other")
    found: list[Directory] = []
    seen: set[int] = set()
    taken = 0
    order, is_big = "<" if data.startswith(b"II") else ">", data[2:4] in (b"+\0", b"\0+")
    if is_big and data[4:8] not in (b"\x08\0\0\0", b"\0\x08\0\0"):
        raise PictureError("broken TIFF: a BigTIFF with offsets that are not of 8 bytes")
    at = _number(data, 8 if is_big else 4, order + ("Q" if is_big else "L"))
    while at and at not in seen:
        seen.add(at)
        directory, n = directory_at(data, at, order, is_big, bool(found))
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


def directory_at(data: bytes, at: int, order: str, is_big: bool, is_brief: bool) -> tuple[Directory, int]:
    """Return the directory at a place and how many entries it has, a brief one with those that tell what it is."""
    head, kind, place = (8, "HHQ", "Q") if is_big else (2, "HHL", "L")
    n = _number(data, at, order + ("Q" if is_big else "H"))
    size = 20 if is_big else 12
    end = at + head + n * size
    if n > MAX_ENTRIES or end > len(data):
        raise PictureError("broken TIFF: a directory goes beyond its end")
    entries: dict[int, Entry] = {}
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
        entries[tag] = Entry(of, count, there)
    # Some writers end the file where the place of the next directory should be.
    following = _number(data, end, order + place) if end + room <= len(data) else 0
    return Directory(order, is_big, entries, frozenset(twice), following, at), n


def _number(data: bytes, at: int, kind: str) -> int:
    try:
        found: int = struct.unpack_from(kind, data, at)[0]
    except (struct.error, OverflowError) as error:  # the places of a BigTIFF have 64 bits
        raise PictureError("broken TIFF: it ends before its directory does") from error
    return found


def is_full(data: bytes, directory: Directory) -> bool:
    """Tell whether a page is no thumbnail, lower resolution or mask of another one."""
    return not directory.number(data, 254, 0) & 5


def page_in(data: bytes, directories: list[Directory], page: int) -> Directory:
    """Return the directory, with all its entries, of a full page, counted from 1; raises `PictureError`."""
    full = [directory for directory in directories if is_full(data, directory)]
    if page > len(full):
        raise PictureError(f"TIFF of {len(full):,} page{'s' * (len(full) != 1)}, which has no page {page:,}")
    found = full[page - 1]
    return directory_at(data, found.at, found.order, found.is_big, is_brief=False)[0]


def page_of(data: bytes, directories: list[Directory], page: int) -> bytes:
    """Return a TIFF of one page of a TIFF, with what tells its pixels and nothing else; raises `PictureError`."""
    first = page_in(data, directories, page)
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
