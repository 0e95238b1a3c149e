"""Writers of one picture as TIFF in every layout there is, and the pixels that each of them means."""

from __future__ import annotations

import itertools
import lzma
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt

Values = npt.NDArray[Any]

WIDTH, HEIGHT = 37, 27  # neither fills bytes, strips or tiles

COMPRESSIONS = {
    1: "plain",
    5: "lzw",
    8: "deflate",
    32946: "old-deflate",
    32773: "packbits",
    50000: "zstd",
    34925: "lzma",
}
PHOTOMETRIC = {
    "white": 0,
    "grey": 1,
    "rgb": 2,
    "palette": 3,
    "cmyk": 5,
}
SAMPLES = {"white": 1, "grey": 1, "rgb": 3, "palette": 1, "cmyk": 4}


@dataclass(frozen=True)
class Layout:
    """How a picture is laid out; `extra` are the kinds of further samples, `format` is 1 whole, 2 signed, 3 float."""

    kind: str
    bits: int = 8
    extra: tuple[int, ...] = ()
    format: int = 1
    planes: bool = False
    compression: int = 1
    predictor: int = 1
    order: str = "<"
    fill: int = 1
    rows: int | None = None
    tile: int | None = None
    big: bool = False
    orientation: int = 1
    more: Mapping[int, tuple[str, Sequence[Any]]] = field(default_factory=dict, hash=False)

    @property
    def samples(self) -> int:
        return SAMPLES[self.kind] + len(self.extra)

    @property
    def name(self) -> str:
        depth = {1: "", 2: "s", 3: "f"}[self.format] + str(self.bits)
        parts = [self.kind, *(f"+{kind}" for kind in self.extra), depth, COMPRESSIONS[self.compression]]
        parts += [f"predictor{self.predictor}"] * (self.predictor > 1) + ["planes"] * self.planes
        parts += [f"rows{self.rows}"] * (self.rows is not None) + [f"tile{self.tile}"] * (self.tile is not None)
        parts += ["big-endian"] * (self.order == ">") + ["fill2"] * (self.fill == 2) + ["bigtiff"] * self.big
        parts += [f"turn{self.orientation}"] * (self.orientation > 1) + [f"tag{tag}" for tag in self.more]
        return " ".join(parts)


def samples_of(layout: Layout, seed: int = 3) -> Values:
    """Return the numbers (height, width, samples) that are stored: coarse blocks, with noise in the last bits."""
    random = np.random.default_rng(seed)
    shape = (HEIGHT, WIDTH, layout.samples)
    blocks = random.random((-(-HEIGHT // 6), -(-WIDTH // 8), layout.samples))
    share = 0.85 * np.kron(blocks, np.ones((6, 8, 1)))[:HEIGHT, :WIDTH] + 0.15 * random.random(shape)
    if layout.format == 3:
        return share.astype({16: np.float16, 32: np.float32, 64: np.float64}[layout.bits])
    values = np.round(share * (2**layout.bits - 1)).astype(np.int64)
    if layout.format == 2:
        values -= 2 ** (layout.bits - 1)
    if layout.extra and layout.extra[0] == 1:  # colours are multiplied by alpha
        top = 2**layout.bits - 1
        n = SAMPLES[layout.kind]
        values[..., n] = np.maximum(values[..., n], top // 2)
        values[..., :n] = values[..., :n] * values[..., n : n + 1] // top
    return values


def palette_of(layout: Layout) -> Values:
    """Return the colours (2 ** bits, 3) of 8 bits, which the file holds 257 times as large."""
    return np.random.default_rng(5).integers(0, 256, (2**layout.bits, 3))


def pixels_of(layout: Layout, values: Values) -> npt.NDArray[np.float64]:
    """Return the RGB values, 0 to 255, that the numbers mean, by the definitions in TIFF 6.0; upright."""
    n = SAMPLES[layout.kind]
    share = values / (2**layout.bits - 1)
    if layout.kind == "palette":
        colour = palette_of(layout)[values[..., 0]] / 255
    elif layout.kind == "cmyk":
        colour = (1 - share[..., :3]) * (1 - share[..., 3:4])
    else:
        colour = np.repeat(share, 3, axis=2)[..., :3] if n == 1 else share[..., :3]
        colour = 1 - colour if layout.kind == "white" else colour
    if layout.extra and layout.extra[0] in (1, 2):
        alpha = share[..., n : n + 1]
        colour = colour + 1 - alpha if layout.extra[0] == 1 else colour * alpha + 1 - alpha
    return turned(colour * 255, layout.orientation)


def turned(stored: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """Return stored pixels upright."""
    across, down = stored[:, ::-1], stored[::-1]
    return {
        1: stored,
        2: across,
        3: stored[::-1, ::-1],
        4: down,
        5: stored.swapaxes(0, 1),
        6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(stored, 1),
    }[orientation]


def written(layout: Layout, values: Values) -> bytes:
    """Return the file."""
    if layout.tile:
        boxes = [
            (y, x, layout.tile, layout.tile)
            for y in range(0, HEIGHT, layout.tile)
            for x in range(0, WIDTH, layout.tile)
        ]
    else:
        rows = layout.rows or HEIGHT
        boxes = [(y, 0, min(rows, HEIGHT - y), WIDTH) for y in range(0, HEIGHT, rows)]
    planes = [values[..., at : at + 1] for at in range(layout.samples)] if layout.planes else [values]
    segments = []
    for plane in planes:
        for y, x, height, width in boxes:
            part = plane[y : y + height, x : x + width]
            part = np.pad(part, ((0, height - part.shape[0]), (0, width - part.shape[1]), (0, 0)), mode="edge")
            segments.append(segment(layout, part))
    tags: dict[int, tuple[str, Sequence[Any]]] = {
        256: ("L", [WIDTH]),
        257: ("L", [HEIGHT]),
        258: ("H", [layout.bits] * layout.samples),
        259: ("H", [layout.compression]),
        262: ("H", [PHOTOMETRIC[layout.kind]]),
        266: ("H", [layout.fill]),
        274: ("H", [layout.orientation]),
        277: ("H", [layout.samples]),
        284: ("H", [2 if layout.planes else 1]),
        317: ("H", [layout.predictor]),
        339: ("H", [layout.format] * layout.samples),
    }
    if layout.tile:
        tags |= {322: ("L", [layout.tile]), 323: ("L", [layout.tile])}
    else:
        tags[278] = ("L", [layout.rows or HEIGHT])
    if layout.extra:
        tags[338] = ("H", layout.extra)
    if layout.kind == "palette":
        tags[320] = ("H", (palette_of(layout).T.reshape(-1) * 257).tolist())
    if layout.fill == 1:
        del tags[266]
    if layout.predictor == 1:
        del tags[317]
    if layout.format == 1:
        del tags[339]
    return file([Page(tags | dict(layout.more), segments, bool(layout.tile))], layout.order, layout.big)


def segment(layout: Layout, part: Values) -> bytes:
    """Return one strip or tile (height, width, samples) as it lies in the file."""
    if layout.predictor == 3:
        raw: bytes = imagecodecs.floatpred_encode(
            np.ascontiguousarray(part.astype(part.dtype.newbyteorder(layout.order))), axis=-2, dist=part.shape[2]
        ).tobytes()
    else:
        if layout.predictor == 2:
            part = part.copy()
            part[:, 1:] = (part[:, 1:] - part[:, :-1]) % 2**layout.bits
        raw = packed(part, layout)
    data = compressed(layout.compression, raw, part.shape[0])
    return bytes(int(f"{byte:08b}"[::-1], 2) for byte in data) if layout.fill == 2 else data


def packed(part: Values, layout: Layout) -> bytes:
    """Return numbers as the bits that TIFF keeps them in, each row in whole bytes."""
    if layout.format == 3:
        return part.astype(part.dtype.newbyteorder(layout.order)).tobytes()
    if layout.bits in (8, 16, 32, 64):
        kind = {1: "u", 2: "i"}[layout.format]
        return part.astype(f"{layout.order}{kind}{layout.bits // 8}").tobytes()
    flat = part.reshape(part.shape[0], -1)
    bits = (flat[:, :, None] >> np.arange(layout.bits - 1, -1, -1)) & 1
    return np.packbits(bits.reshape(part.shape[0], -1).astype(np.uint8), axis=1).tobytes()


def compressed(compression: int, raw: bytes, rows: int) -> bytes:
    if compression == 5:
        return bytes(imagecodecs.lzw_encode(raw))
    if compression in (8, 32946):
        return zlib.compress(raw)
    if compression == 32773:  # no run may go beyond a row
        row = len(raw) // rows
        return b"".join(imagecodecs.packbits_encode(raw[at : at + row]) for at in range(0, len(raw), row))
    if compression == 50000:
        return bytes(imagecodecs.zstd_encode(raw))
    return lzma.compress(raw) if compression == 34925 else raw


@dataclass(frozen=True)
class Page:
    """One directory of a TIFF: tags with the kind of `struct` and numbers, and strips or tiles; pages `below` it."""

    tags: Mapping[int, tuple[str, Sequence[Any]]]
    segments: Sequence[bytes]
    is_tiled: bool = False
    below: Sequence[Page] = ()


_KINDS = {"B": 1, "s": 2, "H": 3, "L": 4, "LL": 5, "b": 6, "Q": 16, "f": 11, "d": 12}


def file(pages: Sequence[Page], order: str = "<", big: bool = False) -> bytes:
    """Return a TIFF of these pages."""
    data = bytearray(b"II" if order == "<" else b"MM")
    data += struct.pack(order + "H", 43 if big else 42) + (struct.pack(order + "HH", 8, 0) if big else b"")
    place = order + ("Q" if big else "L")
    links = [len(data)]
    data += bytes(struct.calcsize(place))

    def add(page: Page) -> tuple[int, int]:
        below = [add(other)[0] for other in page.below]
        starts = []
        for part in page.segments:
            starts.append(len(data))
            data.extend(part + bytes(len(part) % 2))
        tags = dict(page.tags)
        if page.segments:
            at, size = (324, 325) if page.is_tiled else (273, 279)
            tags = {at: ("L", starts), size: ("L", [len(part) for part in page.segments])} | tags
        if below:
            tags[330] = ("L", below)
        entries = bytearray()
        for tag, (kind, numbers) in sorted(tags.items()):
            raw = bytes(numbers) if kind == "s" else struct.pack(f"{order}{len(numbers)}{kind[-1]}", *numbers)
            entries += struct.pack(order + ("HHQ" if big else "HHL"), tag, _KINDS[kind], len(numbers) // len(kind))
            room = struct.calcsize(place)
            if len(raw) > room:
                entries += struct.pack(place, len(data))
                data.extend(raw + bytes(len(raw) % 2))
            else:
                entries += raw.ljust(room, b"\0")
        start = len(data)
        data.extend(struct.pack(order + ("Q" if big else "H"), len(tags)) + entries + bytes(struct.calcsize(place)))
        return start, len(data) - struct.calcsize(place)

    for page in pages:
        start, link = add(page)
        data[links[-1] : links[-1] + struct.calcsize(place)] = struct.pack(place, start)
        links.append(link)
    return bytes(data)


_PLACES: tuple[dict[str, Any], ...] = ({}, {"rows": 5}, {"tile": 16})
_COLOURS = [
    *(("white", bits, ()) for bits in (1, 2, 4, 8, 10, 12, 14, 16)),
    *(("grey", bits, ()) for bits in (1, 2, 3, 4, 6, 8, 10, 12, 14, 16)),
    *(("palette", bits, ()) for bits in (1, 2, 4, 8)),
    *(("rgb", bits, ()) for bits in (2, 4, 8, 10, 12, 14, 16)),
    *(("rgb", bits, extra) for bits in (8, 12, 16) for extra in ((0,), (1,), (2,))),
    *(("rgb", bits, extra) for bits in (8, 16) for extra in ((2, 0), (0, 0), (1, 0, 0))),
    *(("grey", bits, extra) for bits in (8, 16) for extra in ((0,), (1,), (2,))),
    *(("white", bits, (2,)) for bits in (8, 16)),
    *(("cmyk", bits, ()) for bits in (8, 16)),
    *(("cmyk", 8, extra) for extra in ((0,), (0, 0))),
]


def layouts() -> Iterator[Layout]:
    """Yield all layouts that hold one known picture, and have a natural range."""
    for (kind, bits, extra), planes, place, compression in itertools.product(
        _COLOURS, (False, True), _PLACES, (1, 5, 8, 32773)
    ):
        one = Layout(kind, bits, extra, planes=planes, compression=compression, **place)
        if planes and one.samples == 1:
            continue
        yield one
        if not (bits % 8 or "rows" in place):
            yield Layout(kind, bits, extra, planes=planes, compression=compression, order=">", **place)
            if compression in (5, 8) and kind != "palette":
                for order in "<>" if bits > 8 else "<":
                    yield Layout(
                        kind, bits, extra, planes=planes, compression=compression, predictor=2, order=order, **place
                    )
        if bits <= 8 and not place and not planes:
            yield Layout(kind, bits, extra, compression=compression, fill=2)
    for kind, bits, compression in itertools.product(("grey", "rgb", "palette"), (8, 16), (32946, 50000, 34925)):
        if (kind, bits) != ("palette", 16):
            yield Layout(kind, bits, compression=compression, rows=5)
            yield Layout(kind, bits, compression=compression, predictor=2 if kind != "palette" else 1, tile=16)
    for kind, bits, orientation in itertools.product(("grey", "rgb"), (8, 12, 16), range(2, 9)):
        yield Layout(kind, bits, orientation=orientation, rows=5, compression=8)
        yield Layout(kind, bits, orientation=orientation)
    for kind, bits, place, order in itertools.product(("white", "grey", "rgb"), (8, 12, 16), _PLACES, "<>"):
        yield Layout(kind, bits, big=True, order=order, planes=bits == 12, **place)
