"""Numbers of more or fewer than 8 bits, and what is transparent, in PNG, JPEG 2000 and others that are no TIFF."""

from __future__ import annotations

import hashlib
import io
import os
import sqlite3
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from featcache import decode as decoding
from featcache.decode import as_file, decode, look, to_rgb
from featcache.errors import PictureError
from featcache.records import Preprocess
from featcache.sources.keys import content_key

Pixels = npt.NDArray[Any]

LITE0 = ("--backbone", "efficientnet_lite0")
SIZE = 16
AS_IT_IS = Preprocess(SIZE, SIZE, "nearest", (0, 0, 0), (1, 1, 1))


def stored(data: bytes, reading: str | None = None) -> Pixels:
    return decode(data, AS_IT_IS, reading=reading).astype(np.float64)


def reason(data: bytes, reading: str | None = None) -> str:
    with pytest.raises(PictureError) as caught:
        look(data, reading)
    return str(caught.value)


def by_pillow(data: bytes) -> Pixels | None:
    """What versions made of a file that left all to Pillow."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return np.asarray(to_rgb(image)).astype(np.float64)
    except (OSError, ValueError, PictureError):
        return None


def has_old_key(data: bytes) -> bool:
    return content_key(data) == hashlib.sha256(data).digest()


def over_white(values: Pixels, top: float) -> Pixels:
    """Return samples (rows, columns[, samples]) from 0 to `top`, the last of 2 or 4 alpha, as RGB in 8 bits."""
    shares = np.atleast_3d(values) / top
    if shares.shape[2] in (2, 4):
        shares = shares[..., :-1] * shares[..., -1:] + 1 - shares[..., -1:]
    return np.broadcast_to(shares, (*shares.shape[:2], 3)) * 255


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(bits: int, colour: int, values: Pixels, *before: bytes, after: bytes = b"") -> bytes:
    """A PNG of samples (rows, columns[, samples]) with further chunks before and behind its pixels."""
    rows = values.reshape(len(values), -1, 1) >> np.arange(bits - 1, -1, -1) & 1
    packed = np.packbits(rows.reshape(len(values), -1).astype(np.uint8), axis=1)
    header = struct.pack(">IIBBBBB", values.shape[1], len(values), bits, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in packed))
    parts = (chunk(b"IHDR", header), *before, chunk(b"IDAT", pixels), after, chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def clear(*numbers: int, kind: str = "H") -> bytes:
    return chunk(b"tRNS", struct.pack(f">{len(numbers)}{kind}", *numbers))


def pngs() -> Iterator[tuple[str, bytes]]:
    rng = np.random.default_rng(0)
    for bits in (1, 2, 4, 8, 16):
        values = rng.integers(0, 2**bits, (SIZE, SIZE))
        values[:4] = 2**bits // 3
        values[4:6] = np.arange(SIZE) % 2**bits, np.arange(257, 257 + SIZE) % 2**bits
        for grey in {0, 1, 2**bits // 3, 2**bits - 1, 2**bits, 257, 2**16 - 1} & set(range(2**16)):
            yield f"grey of {bits} bits, {grey} clear", png(bits, 0, values, clear(grey))
        yield f"grey of {bits} bits, none clear", png(bits, 0, values)
        yield f"grey of {bits} bits, two chunks", png(bits, 0, values, clear(0), clear(1))
        yield f"grey of {bits} bits, a long chunk", png(bits, 0, values, clear(0, 1))
        yield f"grey of {bits} bits, clear behind", png(bits, 0, values, after=clear(1))
    colours = rng.integers(0, 256, (SIZE, SIZE, 3))
    colours[:4] = 10, 20, 30
    yield "RGB", png(8, 2, colours, clear(10, 20, 30))
    yield "RGB, beyond 8 bits", png(8, 2, colours, clear(0x10A, 20, 30))
    yield "RGB, two chunks", png(8, 2, colours, clear(1, 2, 3), clear(10, 20, 30))
    yield "grey and alpha", png(8, 4, colours[..., :2], clear(10))
    for bits in (1, 2, 4, 8):
        n = min(2**bits, 200)
        values = rng.integers(0, n, (SIZE, SIZE))
        palette = chunk(b"PLTE", rng.bytes(3 * n))
        alphas = [b"\0", bytes(n), rng.bytes(n), b"\0\n", b"\xff\0", b"\xff\n", b"\n", b"\xff" * n, bytes(n + 5)]
        for alpha in (*alphas, b"\xff\0\n" if n > 2 else b"\0"):
            name = f"palette of {bits} bits, {len(alpha)} alphas {alpha[:3].hex()}"
            yield name, png(bits, 3, values, palette, chunk(b"tRNS", alpha))
        yield f"palette of {bits} bits, clear before it", png(bits, 3, values, clear(0, kind="B"), palette)
        yield f"palette of {bits} bits, two chunks", png(bits, 3, values, palette, *2 * [clear(0, kind="B")], clear(9))


PNGS = dict(pngs())


@pytest.mark.parametrize("name", PNGS)
def test_what_is_transparent_in_a_png_is_what_libpng_takes_for_it(name: str) -> None:
    found = imagecodecs.png_decode(PNGS[name])
    wanted = over_white(found, np.iinfo(found.dtype).max)
    assert np.abs(stored(PNGS[name]) - wanted).max() <= 0.51
    pillows = by_pillow(PNGS[name])
    assert pillows is not None
    is_right = np.abs(pillows - wanted).max() <= 0.51
    assert has_old_key(PNGS[name]) == is_right
    assert not is_right or (pillows == stored(PNGS[name])).all()


def test_of_the_pngs_most_keep_their_keys() -> None:
    old = {name for name, data in PNGS.items() if has_old_key(data)}
    assert {"grey of 1 bits, 0 clear", "grey of 2 bits, 3 clear", "RGB", "grey of 16 bits, 21845 clear"} <= old
    assert not {"grey of 2 bits, 1 clear", "grey of 4 bits, 5 clear", "palette of 8 bits, 2 alphas 000a"} & old
    assert {f"palette of {bits} bits, 1 alphas 00" for bits in (1, 2, 4, 8)} <= old


def box(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", len(content) + 8, name) + content


def space(number: int) -> bytes:
    return box(b"colr", struct.pack(">BBBI", 1, 0, 0, number))


def jp2(stream: bytes, bits: int, channels: int, *more: bytes, of: int | None = None, size: int = SIZE) -> bytes:
    """A JPEG 2000 file around a codestream, with further boxes in its header and the colour space `of`."""
    header = box(b"ihdr", struct.pack(">IIHBBBB", size, size, channels, bits - 1, 7, 0, 0))
    inside = header + b"".join(more) + space((16 if channels > 2 else 17) if of is None else of)
    start = b"\0\0\0\x0cjP  \r\n\x87\n" + box(b"ftyp", b"jp2 \0\0\0\0jp2 ")
    return start + box(b"jp2h", inside) + box(b"jp2c", stream)


def ramp(bits: int, channels: int = 1, is_signed: bool = False) -> Pixels:
    """All brightnesses from black to white, another way in each channel."""
    kind = np.dtype(f"{'i' if is_signed else 'u'}{1 if bits <= 8 else 2 if bits <= 16 else 4}")
    values = np.linspace(0, 2**bits - 1, SIZE * SIZE).round().astype(np.int64).reshape(SIZE, SIZE)
    values -= 2 ** (bits - 1) if is_signed else 0
    all_ways = np.dstack([values, values[::-1], values[:, ::-1], values[::-1, ::-1]])
    return all_ways[..., :channels].reshape((SIZE, SIZE, channels)[: 2 + (channels > 1)]).astype(kind)


def stream(values: Pixels, bits: int, **options: Any) -> bytes:
    options = {"level": 0, "reversible": True, "codecformat": "j2k", "planar": False} | options
    return bytes(imagecodecs.jpeg2k_encode(values, bitspersample=bits, **options))


@pytest.mark.parametrize("is_signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("bits", [1, 2, 4, 7, 8, 9, 10, 12, 16, 17, 20])
def test_a_jpeg_2000_has_its_pixels_or_is_refused_by_name(bits: int, channels: int, is_signed: bool) -> None:
    values = ramp(bits, channels, is_signed)
    coded = stream(values, bits)
    assert (imagecodecs.jpeg2k_decode(coded) == values).all()
    wanted = over_white(values.astype(np.float64) + (2 ** (bits - 1) if is_signed else 0), 2**bits - 1)
    for data, is_file in ((coded, False), (jp2(coded, bits | (128 if is_signed else 0), channels), True)):
        pillows = by_pillow(data)
        is_right = pillows is not None and np.abs(pillows - wanted).max() <= 0.8
        assert has_old_key(data) == is_right
        if bits <= 8 or (channels == 1 and 8 + is_file < bits <= 16):
            # Pillow fills 9 to 15 bits up to 16 with zeros.
            assert np.abs(stored(data) - wanted).max() <= (1.01 if bits < 8 else 0.8)
            assert not is_right or (stored(data) == pillows).all()
        else:
            assert f"{channels} channel{'s' * (channels > 1)} of {bits} bits, which is not decoded" in reason(data)


def test_white_stays_white_in_what_is_decoded_of_a_lossy_or_tiled_jpeg_2000() -> None:
    halves = np.where(np.arange(SIZE) < 8, 0, 4095).astype(np.uint16) * np.ones((SIZE, 1), np.uint16)
    tiled = io.BytesIO()
    Image.fromarray(halves * 16).save(tiled, "JPEG2000", tile_size=(8, 8))
    for data in (stream(halves, 12, reversible=False), tiled.getvalue()):
        assert (stored(data)[:, [2, 13], 0] == [0, 255]).all()
    assert "3 channels of 12 bits" in reason(stream(np.dstack([halves] * 3), 12, reversible=False))


def of_palette(bits: int, *, depth: int = 8, before: bool = False, of: int = 16) -> bytes:
    table = np.random.default_rng(3).integers(0, 256, (16, 3)).astype(np.uint8)
    entries = box(b"pclr", struct.pack(">HB", 16, 3) + bytes([depth - 1]) * 3 + table.tobytes())
    used = box(b"cmap", b"".join(struct.pack(">HBB", 0, 1, column) for column in range(3)))
    values = np.arange(SIZE * SIZE).reshape(SIZE, SIZE).astype(np.uint8) % 16
    return jp2(stream(values, bits), bits, 1, *[space(of)] * before, entries, used, of=of)


def channels_named(*named: tuple[int, int, int]) -> bytes:
    return box(b"cdef", struct.pack(">H", len(named)) + b"".join(struct.pack(">3H", *one) for one in named))


RGB8 = stream(ramp(8, 3), 8)
RGBA8 = stream(ramp(8, 4), 8)
USUAL = ((0, 0, 1), (1, 0, 2), (2, 0, 3))
ODD: dict[str, tuple[bytes, str]] = {
    "a palette of indexes of 4 bits": (of_palette(4), "a palette of an unusual kind"),
    "a palette of 4 bits": (of_palette(8, depth=4), "a palette of an unusual kind"),
    "a palette of grey": (of_palette(8, before=True, of=17), "a palette of an unusual kind"),
    "blue first": (jp2(RGB8, 8, 3, channels_named((0, 0, 3), (1, 0, 2), (2, 0, 1))), "channels in an unusual order"),
    "multiplied alpha": (jp2(RGBA8, 8, 4, channels_named(*USUAL, (3, 2, 0))), "channels in an unusual order"),
    "a fourth of no meaning": (jp2(RGBA8, 8, 4, channels_named(*USUAL, (3, 65535, 65535))), "an unusual order"),
    "alpha passed over": (jp2(RGBA8, 8, 3), "3 channels in its header and 4 in its pixels"),
    "grey said to be RGBA": (jp2(stream(ramp(8), 8), 8, 4), "4 channels in its header and 1 in its pixels"),
    "L*a*b*": (jp2(RGB8, 8, 3, of=14), "the colour space 14"),
    "YCbCr of the first kind": (jp2(RGB8, 8, 3, of=1), "the colour space 1"),
    "12 bits said to be 8": (jp2(stream(ramp(12), 12), 8, 1), "1 channel of 12 bits"),
    "few bits of sYCC": (jp2(stream(ramp(4, 3), 4), 4, 3, of=18), "3 channels of 4 bits"),
    "fewer pixels": (
        RGB8[:43] + b"\2\2" + RGB8[45:],
        "channels of fewer pixels",
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_what_pillow_passes_over_in_a_jpeg_2000_is_refused(name: str) -> None:
    data, said = ODD[name]
    assert f"JPEG 2000 with {said}" in reason(data) or said in reason(data)
    assert by_pillow(data) is None or not has_old_key(data)


def test_usual_jpeg_2000_files_are_decoded_with_their_old_keys() -> None:
    palette = of_palette(8)
    table = np.random.default_rng(3).integers(0, 256, (16, 3))
    assert (stored(palette) == table[np.arange(SIZE * SIZE).reshape(SIZE, SIZE) % 16]).all()
    named = jp2(RGBA8, 8, 4, channels_named(*USUAL, (3, 1, 0)))
    assert np.abs(stored(named) - over_white(ramp(8, 4), 255)).max() <= 0.51
    profile = jp2(RGB8, 8, 3, space(16), of=14)  # of several colour spaces the first one counts
    assert (stored(profile) == ramp(8, 3)).all()
    assert (stored(jp2(RGB8, 8, 3)) == ramp(8, 3)).all()
    cmyk = jp2(RGBA8, 8, 4, of=12)
    ycc = jp2(stream(np.asarray(Image.fromarray(ramp(8, 3)).convert("YCbCr")), 8, mct=False), 8, 3, of=18)
    assert np.abs(stored(ycc) - ramp(8, 3)).max() <= 3
    assert all(map(has_old_key, (palette, named, profile, cmyk, ycc, jp2(RGB8, 8, 3))))


def share(values: Pixels, low: float, high: float) -> Pixels:
    return np.repeat(
        np.floor((values.astype(np.float64) - low) / (high - low) * 255 + 0.5).clip(0, 255)[..., None], 3, 2
    )


def pgm(values: Pixels, white: int, kind: str = "P5") -> bytes:
    head = f"{kind} {values.shape[1]} {len(values)} {white}\n".encode()
    if kind in ("P2", "P3"):
        return head + " ".join(map(str, values.ravel())).encode()
    return head + values.astype(">u2").tobytes()


G12, G16, S12, S16 = ramp(12), ramp(16), ramp(12, is_signed=True), ramp(16, is_signed=True)
OWN: dict[str, tuple[bytes, Pixels, float, float]] = {
    "PNG": (bytes(imagecodecs.png_encode(G16)), G16, 0, 65535),
    "PGM of 16 bits": (pgm(G16, 65535), G16, 0, 65535),
    "PGM of 12 bits": (pgm(G12, 4095), G12, 0, 4095),
    "PGM up to 1000": (pgm(G16 % 1001, 1000), G16 % 1001, 0, 1000),
    "plain PGM of 12 bits": (pgm(G12, 4095, "P2"), G12, 0, 4095),
    "JPEG 2000 of 10 bits": (stream(ramp(10), 10), ramp(10), 0, 1023),
    "JPEG 2000 of 12 bits": (jp2(stream(G12, 12), 12, 1), G12, 0, 4095),
    "JPEG 2000 of 16 bits": (jp2(stream(G16, 16), 16, 1), G16, 0, 65535),
    "JPEG 2000 of 12 signed bits": (stream(S12, 12), S12, -2048, 2047),
    "JPEG 2000 of 16 signed bits": (jp2(stream(S16, 16), 16 | 128, 1), S16, -32768, 32767),
}


@pytest.mark.parametrize("name", OWN)
def test_a_range_is_one_of_the_numbers_in_the_file(name: str) -> None:
    data, values, low, high = OWN[name]
    assert (stored(data, f"range {low / 3:.17g},900") == share(values, low / 3, 900)).all()
    assert (stored(data, "range 100,300") == share(values, 100, 300)).all()
    assert (stored(data, "range dtype") == share(values, low, high)).all()
    assert (stored(data, "range percentile") == share(values, *np.percentile(values, (0.5, 99.5)))).all()
    assert np.abs(stored(data) - share(values, low, high)).max() <= 1


def test_of_a_range_what_is_transparent_stays_white() -> None:
    values = np.arange(SIZE * SIZE).reshape(SIZE, SIZE) % 50
    wanted = share(values, 0, 100)
    wanted[values == 7] = 255
    assert (stored(png(16, 0, values, clear(7)), "range 0,100") == wanted).all()


def avif(depth: int) -> bytes:
    data = imagecodecs.avif_encode(ramp(depth, 3), level=90, bitspersample=depth)
    return bytes(data)


def heic(depth: int) -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif")
    out = io.BytesIO()
    words = ramp(depth, 3).astype(np.uint16) << (16 - depth)
    pillow_heif.from_bytes("RGB;16", (SIZE, SIZE), words.tobytes()).save(out)
    return out.getvalue()


def dds() -> bytes:
    """Floating colours packed as BC6H."""
    start = b"DDS " + struct.pack("<7I", 124, 0x81007, SIZE, SIZE, 256, 0, 1) + bytes(44)
    kind = struct.pack("<2I4s10I", 32, 4, b"DX10", *5 * [0], 0x1000, *4 * [0])
    return start + kind + struct.pack("<5I", 95, 3, 0, 1, 0) + bytes(256)


def icon(inside: bytes) -> bytes:
    return struct.pack("<3H4B2H2I", 0, 1, 1, SIZE, SIZE, 0, 0, 1, 32, len(inside), 22) + inside


RGB16 = ramp(16, 3)
CUT: dict[str, bytes] = {
    "PNG, RGB": bytes(imagecodecs.png_encode(RGB16)),
    "PNG, grey and alpha": bytes(imagecodecs.png_encode(ramp(16, 2))),
    "PNG, RGBA": bytes(imagecodecs.png_encode(ramp(16, 4))),
    "PPM": pgm(RGB16, 65535, "P6"),
    "PPM of 12 bits": pgm(ramp(12, 3), 4095, "P6"),
    "plain PPM": pgm(ramp(12, 3), 4095, "P3"),
    "SGI": struct.pack(">hBBHHHH", 474, 0, 2, 2, SIZE, SIZE, 1).ljust(512, b"\0") + G16.astype(">u2").tobytes(),
    "AVIF of 10 bits": avif(10),
    "AVIF of 12 bits": avif(12),
    "DDS": dds(),
    "ICO": icon(bytes(imagecodecs.png_encode(ramp(16, 4)))),
}


@pytest.mark.parametrize("name", CUT)
def test_a_range_that_cannot_be_taken_is_refused_and_never_passed_over(name: str) -> None:
    assert look(CUT[name]).width == SIZE
    assert "of which no range can be taken: save it as TIFF" in reason(CUT[name], "range 0,4095")


def test_a_range_of_a_heic_of_10_bits_is_refused() -> None:
    assert "of which no range can be taken: save it as TIFF" in reason(heic(10), "range 0,1023")


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "PPM", "SGI", "AVIF", "JPEG2000", "ICO"])
def test_of_8_bits_a_range_changes_nothing(form: str) -> None:
    for mode in ("1", "L", "RGB"):
        out = io.BytesIO()
        try:
            Image.fromarray(ramp(8, 3)).convert(mode).save(out, form)
        except (OSError, ValueError):
            continue
        assert (stored(out.getvalue(), "range 0,4095") == stored(out.getvalue())).all()


def by_version_5(monkeypatch: pytest.MonkeyPatch, extract: Callable[[], Any], catalog: Path) -> None:
    """Extract as versions did that left PNG and JPEG 2000 to Pillow, with the catalog they left."""
    with monkeypatch.context() as patch:
        patch.setattr("featcache.sources.keys.is_as_ever", lambda data: True)
        patch.setattr("featcache.decode._check_channels", lambda data, image: None)
        patch.setattr("featcache.decode._upright_rgb", lambda image, *_: to_rgb(decoding._upright(image)))
        extract()
    connection = sqlite3.connect(catalog)
    connection.executescript("PRAGMA user_version = 5")
    connection.close()


def test_of_an_old_cache_what_pillow_gave_wrong_is_computed_again_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., Any]
) -> None:
    files = {
        "wrong.png": PNGS["grey of 4 bits, 5 clear"],
        "wrong.jp2": jp2(stream(ramp(4), 4), 4, 1),
        "deep.jp2": jp2(stream(RGB16, 16), 16, 3),
        "right.jp2": jp2(RGB8, 8, 3),
        "grey.jp2": jp2(stream(G12, 12), 12, 1),
        "right.png": PNGS["RGB"],
    }
    for name, data in files.items():
        (tmp_path / "photos" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(data)
        os.utime(tmp_path / "photos" / name, (10**9, 10**9))
    by_version_5(monkeypatch, lambda: run("extract", "photos", *LITE0), tmp_path / "cache" / "catalog.sqlite")
    said = run("cache", "info").err
    assert f"run `featcache extract` of {tmp_path / 'photos'} again" in said
    assert "older" not in run("cache", "info").err
    found = run("extract", "photos", *LITE0, "--json").json
    assert (found["reused"], found["computed"], found["unreadable"]) == (3, 2, 1)
    again = run("extract", "photos", *LITE0, "--json").json
    assert (again["reused"], again["computed"], again["unreadable"]) == (5, 0, 1)
    assert run("cache", "verify", "--json").code == 0


def test_a_picture_that_is_opened_and_not_loaded_is_decoded_as_its_file() -> None:
    clear_grey, spread = PNGS["grey of 4 bits, 5 clear"], jp2(stream(ramp(4), 4), 4, 1)
    for data in (clear_grey, spread, PNGS["palette of 8 bits, 2 alphas 000a"], PNGS["RGB"]):
        with Image.open(io.BytesIO(data)) as image:
            assert (stored(as_file(image)) == stored(data)).all()
    deep = [jp2(stream(RGB16, 16), 16, 3), png(16, 2, RGB16.astype(np.int64), clear(1, 2, 3))]
    for data, said in zip(deep, ("3 channels of 16 bits", "one transparent colour"), strict=True):
        with Image.open(io.BytesIO(data)) as image, pytest.raises(PictureError, match=said):
            as_file(image)
