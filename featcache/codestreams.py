"""The bytes of an AVIF or JPEG 2000 enter; one `PictureError` leaves where its decoder would have far too much to do.

What a decoder has to do is said in the coded pixels themselves, whatever the boxes around them say of the picture.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from featcache.errors import PictureError

MAX_CHANNELS = 4
"""Pillow takes no JPEG 2000 with more, and OpenJPEG makes room for all of them in every tile before that is known."""

MAX_TILES = 2**14
"""OpenJPEG keeps up to 10 KB for each tile of a JPEG 2000; those of 128 pixels a side fill the largest picture."""

MAX_TILE_PIXELS = 2**26
"""A tile of a JPEG 2000 has so many pixels, each of which takes up to 20 bytes while the tile is decoded."""

MAX_PACKETS = 2**24
"""A JPEG 2000 has so many packets: each layer of each area of each resolution is one, and takes 0.13 microseconds."""

MAX_BLOCKS = 2**20
"""A tile of a JPEG 2000 has so many areas and blocks, each of which takes up to 1 KB while the tile is decoded."""

MAX_CODED = 2**26
MAX_CODED_IN_ALL = 2**29
"""A coded picture of an AVIF has so many pixels, and all of its pictures together, rounded up to powers of two."""

MAX_CODED_BYTES = 2**29
"""All pictures of an AVIF have so many bytes together: they may lie in the same ones."""

MAX_UNITS = 2**17
"""All pictures of an AVIF are in so many units (OBU) together, which are gone through one by one."""

MAX_PARTS = 10_000
"""There are so many boxes, and ways in which tiles of a JPEG 2000 are coded."""

_SOC_SIZ = b"\xff\x4f\xff\x51"
_SIZ, _COD, _COC, _SOT, _SOD = 0xFF51, 0xFF52, 0xFF53, 0xFF90, 0xFF93
_SEGMENTS = {
    *range(0xFF50, 0xFF56),
    *range(0xFF57, 0xFF5A),
    *range(0xFF5C, 0xFF62),
    0xFF63,
    0xFF64,
    *range(0xFF74, 0xFF79),
}
"""The markers in headers of a JPEG 2000 that a length follows; at others OpenJPEG looks for the next one it knows."""

_SEQUENCE, _FRAMES = 1, (3, 6)


def at_most(found: int, limit: int, what: str, advice: str = "no photograph, save it anew") -> None:
    """Raise `PictureError` for more than a limit."""
    if found > limit:
        raise PictureError(f"{found:,} {what}, at most {limit:,} are taken: {advice}")


def boxes(data: bytes, at: int = 0, end: int | None = None) -> Iterator[tuple[bytes, int, int]]:
    """Yield the name of each box of an ISO media or JPEG 2000 file, and where its content begins and ends."""
    end, n = len(data) if end is None else end, 0
    while at + 8 <= end:
        size, name = struct.unpack_from(">I4s", data, at)
        head = 8
        if size == 1:
            size, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        size = min(size or end, end - at)
        yield name, at + head, at + size
        at += max(8, size)
        n += 1
        at_most(n, MAX_PARTS, "boxes")


def check_jpeg2000(data: bytes, at: int, end: int) -> None:
    """Refuse a codestream with very many channels, tiles, layers or blocks, in its own header or those of its tiles."""
    if data[at : at + 4] != _SOC_SIZ:
        raise PictureError("broken picture: no codestream of JPEG 2000 where it should be")
    layers, styles, n = 1, set[bytes](), 0
    at, header = at + 2, True
    right, lower, left, top, width, height, tiles_left, tiles_top, channels = struct.unpack(
        ">8IH", data[at + 6 : at + 40].ljust(34, b"\0")
    )
    at_most(channels, MAX_CHANNELS, "channels in its codestream")
    across, down = (
        -(-max(0, a - b) // max(1, c)) for a, b, c in ((right, tiles_left, width), (lower, tiles_top, height))
    )
    at_most(across * down, MAX_TILES, "tiles")
    while at + 4 <= end:
        marker, length = struct.unpack_from(">HH", data, at)
        if marker == _SOT:
            start, size = at, int.from_bytes(data[at + 6 : at + 10], "big")
            header = True
            n += 1
            at_most(n, MAX_CHANNELS * MAX_TILES, "parts of tiles")
        elif not header:
            break
        elif marker == _SOD:
            at, header = start + size if size else end, False
            continue
        elif marker not in _SEGMENTS:
            raise PictureError(f"an unknown part {marker:x} in the headers of its codestream: save it anew")
        body = data[at + 4 : at + 2 + length]
        if marker == _COD:
            layers = max(layers, int.from_bytes(body[2:4], "big"))
            styles.add(body[5:] if body[:1] and body[0] & 1 else body[5:10])
        elif marker == _COC:
            styles.add(body[2:] if body[1:2] and body[1] & 1 else body[2:7])
        at_most(len(styles), MAX_PARTS, "ways of coding")
        at += 2 + max(2, length)
    size_of_tile = min(width, max(0, right - left)), min(height, max(0, lower - top))
    for style in styles:
        packets, blocks = _work(style, *size_of_tile)
        at_most(packets * layers * channels * across * down, MAX_PACKETS, "packets")
        at_most(blocks * channels, MAX_BLOCKS, "blocks in a tile")
    at_most(size_of_tile[0] * size_of_tile[1], MAX_TILE_PIXELS, "pixels in a tile of JPEG 2000", "save it as PNG")


def _work(style: bytes, width: int, height: int) -> tuple[int, int]:
    """Return the packets of a layer of a tile, or steps on the way to them, and its blocks: no fewer than there are."""
    levels, *block = style[:3].ljust(3, b"\0")
    levels = min(levels, 32)
    areas = style[5 : 6 + levels].ljust(levels + 1, b"\xff")
    packets = blocks = 0
    steps = [2**15, 2**15]
    for level, area in enumerate(areas):
        n_packets, n_blocks = 1, 1 if level == 0 else 3
        for axis, edge in enumerate((width, height)):
            exponent, shrunk = (area >> 4 * axis) & 15, -(-edge >> (levels - level))
            steps[axis] = min(steps[axis], exponent + levels - level)
            within = min((block[axis] & 15) + 2, max(0, exponent - (level > 0)))
            n_packets *= (shrunk >> exponent) + 2
            n_blocks *= (shrunk >> (level > 0) >> within) + 2
        packets, blocks = packets + n_packets, blocks + n_blocks + n_packets
    return max(packets, (levels + 1) * ((width >> steps[0]) + 1) * ((height >> steps[1]) + 1)), blocks


def check_avif(data: bytes) -> None:
    """Refuse an AVIF whose coded pictures have very many pixels, each of them or all together."""
    taken, coded, units = 0, 0, 0
    for places in _streams(data):
        taken += sum(size for _, size in places)
        at_most(taken, MAX_CODED_BYTES, "bytes in the pictures of an AVIF")
        for pixels in _coded(b"".join(data[at : at + size] for at, size in places)):
            coded, units = coded + pixels, units + 1
            at_most(units, MAX_UNITS, "parts of an AVIF")
        at_most(coded, MAX_CODED_IN_ALL, "pixels in all pictures of an AVIF")


def _streams(data: bytes) -> Iterator[list[tuple[int, int]]]:
    """Yield the places, as starts and sizes, of the bytes of each item, and of the first picture of each track."""
    for name, at, end in boxes(data):
        if name == b"meta":
            inside = {box: (first, last) for box, first, last in boxes(data, at + 4, end)}
            if b"iloc" in inside:
                yield from _items(data, *inside[b"iloc"], inside.get(b"idat", (0, 0))[0])
        elif name == b"moov":
            for track, *place in boxes(data, at, end):
                if track == b"trak":
                    yield _first_sample(data, *place)


def _items(data: bytes, at: int, end: int, idat: int) -> Iterator[list[tuple[int, int]]]:
    version, _, sizes, more = struct.unpack(">B3sBB", data[at : at + 6].ljust(6, b"\0"))
    wide = 4 if version == 2 else 2
    at += 6

    def number(size: int) -> int:
        nonlocal at
        at += size
        return int.from_bytes(data[at - size : at], "big")

    for _ in range(number(wide)):
        if at >= end:
            return
        number(wide)
        start = idat if version and number(2) & 15 == 1 else 0
        number(2)
        start += number(more >> 4)
        places = []
        for _ in range(number(2)):
            if at >= end:
                return
            number(more & 15 if version else 0)
            first = start + number(sizes >> 4)
            size = number(sizes & 15) or len(data)
            places.append((first, min(size, max(0, len(data) - first))))
        yield places


def _first_sample(data: bytes, at: int, end: int) -> list[tuple[int, int]]:
    for wanted in (b"mdia", b"minf", b"stbl"):
        at, end = next(((first, last) for name, first, last in boxes(data, at, end) if name == wanted), (0, 0))
    first, size = 0, 0
    for name, place, _ in boxes(data, at, end):
        if name == b"stsz":
            size = int.from_bytes(data[place + 4 : place + 8], "big") or int.from_bytes(
                data[place + 12 : place + 16], "big"
            )
        elif name in (b"stco", b"co64"):
            first = int.from_bytes(data[place + 8 : place + (12 if name == b"stco" else 16)], "big")
    return [(first, min(size, max(0, len(data) - first)))]


def _coded(stream: bytes) -> Iterator[int]:
    """Yield the pixels that each unit of an AV1 stream codes; edges may be as long as its header has bits for them."""
    at, each = 0, 0
    while at < len(stream):
        head = stream[at]
        kind, at = head >> 3 & 15, at + (2 if head & 4 else 1)
        size = len(stream) - at
        if head & 2:
            size = 0
            for place in range(8):
                byte = stream[at] if at < len(stream) else 0
                size, at = size | (byte & 127) << 7 * place, at + 1
                if not byte & 128:
                    break
        if kind == _SEQUENCE:
            each = max(each, _sequence(stream[at : at + min(size, 512)]))
        yield each if kind in _FRAMES else 0
        at += size


def _sequence(header: bytes) -> int:
    """Return the pixels that a picture may have after a header of AV1; of more than are taken, raise `PictureError`."""
    bits, at, total = int.from_bytes(header, "big"), 0, 8 * len(header)

    def read(n: int) -> int:
        nonlocal at
        at += n
        return (bits >> max(0, total - at)) & ((1 << n) - 1)

    read(4)
    if read(1):  # a reduced header, of one picture
        read(5)
    else:
        delay, is_timed = 0, read(1)
        if is_timed:
            read(64)
            if read(1):
                zeros = 0
                while zeros < 32 and not read(1):
                    zeros += 1
                read(zeros)
            is_timed = read(1)
            if is_timed:
                delay = read(5) + 1
                read(42)
        is_shown_late = read(1)
        for _ in range(read(5) + 1):
            read(12)
            if read(5) > 7:
                read(1)
            if is_timed and read(1):
                read(2 * delay + 1)
            if is_shown_late and read(1):
                read(4)
    wide, high = read(4) + 1, read(4) + 1
    at_most((read(wide) + 1) * (read(high) + 1), MAX_CODED, "pixels in a picture of an AVIF", "save it as PNG")
    return int(1 << wide + high)
