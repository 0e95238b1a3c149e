"""Pictures made to take hours or all memory: each is refused by its rule, and one just within it is decoded."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from featcache import bounds, codestreams, layout, raster
from featcache.decode import FORMATS, decode, decode_and_look, identified
from featcache.dicom import DicomFile
from featcache.errors import PictureError
from featcache.records import Preprocess

STEPS = Preprocess(32, 32, "bilinear", (0, 0, 0), (1, 1, 1))
Image.init()
PIXELS = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)


def encoded(form: str, mode: str = "RGB", **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(stream, form, **options)
    return stream.getvalue()


def chunk(name: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def in_png(parts: bytes) -> bytes:
    data = encoded("PNG")
    return data[:33] + parts + data[33:]


def segment(marker: int, body: bytes = b"") -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def in_jpeg(parts: bytes) -> bytes:
    data = encoded("JPEG")
    return data[:2] + parts + data[2:]


def directory(entries: list[tuple[int, int, int, int]], body: bytes = b"") -> bytes:
    """Return the bytes of a TIFF, or of Exif data, with one directory: tag, kind, count and value of each entry."""
    packed = b"".join(struct.pack("<HHLL", *entry) for entry in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + packed + bytes(4) + body


def tiff(n: int) -> bytes:
    """Return a grey TIFF whose last tag, of no meaning, has `n` numbers."""
    tags = [(256, 4, 1, 32), (257, 4, 1, 32), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 134)]
    tags += [(277, 3, 1, 1), (278, 4, 1, 32), (279, 4, 1, 1024), (60000, 3, n, 134 + 1024)]
    return directory(tags, PIXELS[..., 0].tobytes() + bytes(2 * n))


def under(n: int) -> bytes:
    """Return a grey TIFF with two directories of `n` entries each below its first."""
    tags = [(256, 4, 1, 32), (257, 4, 1, 32), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 134)]
    body = PIXELS[..., 0].tobytes()
    first = 134 + len(body) + 8
    inner = struct.pack("<H", n) + struct.pack("<HHLL", 254, 4, 1, 0) * n + bytes(4)
    places = struct.pack("<LL", first, first + len(inner))
    tags += [(277, 3, 1, 1), (278, 4, 1, 32), (279, 4, 1, 1024), (330, 4, 2, 134 + len(body))]
    return directory(tags, body + places + 2 * inner)


def strips(n: int) -> bytes:
    """Return a grey TIFF of 12 bits in `n` strips of one row, which lie at one place, packed as LZW."""
    codes = "".join(f"{code:09b}" for code in (256, *bytes(48), 257))
    packed = int(codes.ljust(-(-len(codes) // 8) * 8, "0"), 2).to_bytes(-(-len(codes) // 8), "big")
    tags = [(256, 4, 1, 32), (257, 4, 1, n), (258, 3, 1, 12), (259, 3, 1, 5), (262, 3, 1, 1), (273, 4, n, 122)]
    tags += [(277, 3, 1, 1), (278, 4, 1, 1), (279, 4, n, 122 + 4 * n)]
    return directory(tags, struct.pack("<L", 122 + 8 * n) * n + struct.pack("<L", len(packed)) * n + packed)


def below(n: int) -> bytes:
    """Return Exif data that turn a picture, with a directory of `n` numbers below the first one."""
    second = struct.pack("<H", 1) + struct.pack("<HHLL", 0x9000, 3, n, 56) + bytes(4) + bytes(2 * n)
    return directory([(0x0112, 3, 1, 3), (0x8769, 4, 1, 38)], second)


def gif(n: int) -> bytes:
    data = encoded("GIF", "L")
    at = data.index(b",", 13 + 768)
    return data[:at] + b"!\xfe" + b"\1A" * n + b"\0" + data[at:]


def psd(height: int) -> bytes:
    rows = PIXELS[:, 0].T.tobytes()
    return b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, height, 1, 8, 3) + bytes(12) + b"\0\0" + rows.ljust(3 * height)


def icon(form: str, picture: bytes) -> bytes:
    if form == "ICNS":
        return b"icns" + struct.pack(">I4sI", 16 + len(picture), b"ic10", 8 + len(picture)) + picture
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 32, 32, 0, 0, 1, 24, len(picture), 22) + picture


def header_alone(width: int, height: int) -> bytes:
    """Return a PNG whose first header says that it is small, and whose second one does not."""
    small, large = (struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0) for size in ((32, 32), (width, height)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", small) + chunk(b"IHDR", large) + chunk(b"IDAT") + chunk(b"IEND")


def dib(width: int, height: int) -> bytes:
    return struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(9)


def boxed(form: str, name: bytes, n: int) -> bytes:
    """Return a picture in boxes, one of which has `n` bytes more, of an empty box."""
    data = encoded(form)
    at = data.index(name) - 4
    (size,) = struct.unpack_from(">I", data, at)
    inside, rest = data[at + 8 : at + size], data[at + size :]
    empty = struct.pack(">I4s", n, b"moov" if form == "AVIF" else b"free").ljust(n, b"\0")
    if form == "AVIF":  # at the end, for the pixels lie where they were
        return data + empty
    return data[:at] + struct.pack(">I4s", size + n, name) + inside + empty + rest


TURNED = b"Exif\0\0" + directory([(0x0112, 3, 1, 3)])
PACKED = b"a\0\0" + zlib.compress(bytes(2**16))
RULES: dict[str, tuple[Callable[[int], bytes], int, int, str]] = {
    "comments of a plain PPM": (lambda n: b"P2 32 32 255\n" + b"#\n" * n + b"7 " * 1024, 256, 257, "parts #"),
    "Exif of a JPEG": (lambda n: in_jpeg(segment(0xE1, b"Exif\0\0M") * n), 256, 257, "parts Exif"),
    "large Exif of a JPEG": (
        lambda n: in_jpeg(segment(0xE1, b"Exif\0\0" + b"M" * 60_000) * n), 68, 70, "bytes of headers",
    ),
    "Photoshop's in a JPEG": (
        lambda n: in_jpeg(segment(0xED, b"Photoshop 3.0\0" + bytes(60_000)) * n), 68, 70, "bytes of headers",
    ),
    "tables of a JPEG": (lambda n: in_jpeg(segment(0xDB, (b"\0" + b"\1" * 64) * 900) * n), 70, 72, "bytes of headers"),
    "comments of a JPEG": (lambda n: in_jpeg(segment(0xFE) * n), 9_000, 10_001, "segments"),
    "markers of a JPEG": (lambda n: in_jpeg(b"\xff\xd0" * n), 9_000, 10_001, "segments"),
    "fill bytes of a JPEG": (lambda n: in_jpeg(b"\xff" * n), 2**9, 2**12, "its parts are so many"),
    "junk in a JPEG": (lambda n: in_jpeg(segment(0xFE) + bytes(n)), 2**9, 2**12, "its parts are so many"),
    "profiles of a PNG": (lambda n: in_png(chunk(b"iCCP", PACKED) * n), 256, 257, "parts iCCP"),
    "texts of a PNG": (lambda n: in_png(chunk(b"zTXt", PACKED) * n), 256, 257, "parts zTXt"),
    "chunks of a PNG": (lambda n: in_png(chunk(b"prVt") * n), 2**9, 2**12, "its parts are so many"),
    "chunks after a PNG": (
        lambda n: encoded("PNG")[:-12] + chunk(b"prVt") * n + chunk(b"IEND"), 2**9, 2**12, "its parts are so many",
    ),
    "Exif of a PNG": (
        lambda n: in_png(chunk(b"eXIf", directory([]).ljust(n))), 2**22 - 8, 2**22, "bytes of Exif data"
    ),
    "Exif as text in a PNG": (
        lambda n: in_png(chunk(b"tEXt", b"Raw profile type exif\0\nexif\n0\n%b" % TURNED.hex().encode().ljust(n))),
        2**18 - 8, 2**18, "characters of Exif data",
    ),
    "numbers below the Exif of a PNG": (
        lambda n: in_png(chunk(b"eXIf", below(n))), 2**16, 2**20, "numbers in its directory",
    ),
    "numbers below Exif behind the pixels of a PNG": (
        lambda n: encoded("PNG")[:-12] + chunk(b"eXIf", below(n)) + chunk(b"IEND"), 2**16, 2**20,
        "numbers in its directory",
    ),
    "numbers of a TIFF": (tiff, 2**20 - 9, 2**20 - 8, "numbers in its directory"),
    "entries below a TIFF": (under, 2**10, 2**15, "entries below a page"),
    "blocks of a GIF": (gif, 2**9, 2**12, "its parts are so many"),
    "rows of a PSD": (psd, 30_000, 30_001, "pixels a side"),
    "empty parts of an ICNS": (
        lambda n: icon("ICNS", b"").replace(b"\0\0\0\x10", b"\0\xff\xff\xff")[:8] + b"abcd\0\0\0\x08" * n, 0, 2**12,
        "its parts are so many",
    ),
    "bytes of an icon": (lambda n: icon("ICO", encoded("PNG")).ljust(n), 2**20, 2**26 + 1, "bytes in an icon"),
    "headers of a JPEG 2000": (lambda n: boxed("JPEG2000", b"jp2h", n), 2**22 - 200, 2**22, "bytes of headers"),
    "boxes of a JPEG 2000": (
        lambda n: encoded("JPEG2000")[:32] + b"\0\0\0\x08free" * n + encoded("JPEG2000")[32:], 9_000, 10_001, "boxes",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Metadata Warning")
@pytest.mark.parametrize("name", RULES)
def test_a_picture_of_very_many_parts_is_refused_and_one_of_many_decoded(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, within, beyond, reason = RULES[name]
    assert bounds.Asked.left == 2**20
    monkeypatch.setattr(layout, "MAX_ENTRIES", 2**15)
    if "parts are so many" in reason:
        monkeypatch.setattr(bounds.Asked, "left", 2**12)
    with pytest.raises(PictureError, match=reason):
        decode(make(beyond), STEPS)
    if name == "empty parts of an ICNS":  # which is no picture within it either
        return
    assert decode(make(within), STEPS).shape == (32, 32, 3)


def test_a_tiff_of_very_many_packed_strips_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert decode(strips(40), STEPS).shape == (32, 32, 3)
    monkeypatch.setattr(raster, "MAX_OPENED", 39)
    with pytest.raises(PictureError, match="40 strips or tiles, and at most 39"):
        decode(strips(40), STEPS)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow was built without AVIF")
def test_an_avif_of_very_many_items_is_refused() -> None:
    with pytest.raises(PictureError, match="bytes of headers, at most 524,288 are taken"):
        identified(boxed("AVIF", b"mdat", 2**19))
    assert decode(encoded("AVIF"), STEPS).shape == (32, 32, 3)


def framed(n: int, data: bytes | None = None) -> bytes:
    """Return an AVIF whose picture's bytes are there `n` times, each of which is decoded."""
    data = data or encoded("AVIF")
    at = data.index(b"mdat")
    coded = data[at + 4 :]
    place = data.index(struct.pack(">I", len(coded)), data.index(b"iloc"))
    head = data[:place] + struct.pack(">I", n * len(coded)) + data[place + 4 : at - 4]
    return head + struct.pack(">I4s", 8 + n * len(coded), b"mdat") + n * coded


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow was built without AVIF")
def test_all_pictures_that_an_avif_codes_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert decode(framed(4), STEPS).shape == (32, 32, 3)
    monkeypatch.setattr(codestreams, "MAX_CODED_IN_ALL", 4 * 32 * 32)
    assert decode(framed(4), STEPS).shape == (32, 32, 3)
    with pytest.raises(PictureError, match=r"^5,120 pixels in all pictures of an AVIF, at most 4,096 are taken"):
        identified(framed(5))
    monkeypatch.setattr(codestreams, "MAX_UNITS", 14)
    with pytest.raises(PictureError, match="15 parts of an AVIF"):
        identified(framed(5))
    stream = io.BytesIO()
    moving = [Image.fromarray(np.roll(PIXELS, at, 0)) for at in range(6)]
    moving[0].save(stream, "AVIF", save_all=True, append_images=moving[1:])
    assert decode(stream.getvalue(), STEPS).shape == (32, 32, 3)  # of a film the first picture is decoded


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow was built without AVIF")
@pytest.mark.parametrize("is_still", [True, False])
def test_the_size_that_an_avif_is_coded_in_counts(is_still: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO()
    pictures = [Image.new("RGB", (400, 300))] * (1 if is_still else 2)
    pictures[0].save(stream, "AVIF", save_all=not is_still, append_images=pictures[1:])
    small = stream.getvalue().replace(struct.pack(">II", 400, 300), struct.pack(">II", 32, 32))
    assert decode(small, STEPS).shape == (32, 32, 3)
    monkeypatch.setattr(codestreams, "MAX_CODED", 400 * 300 - 1)
    with pytest.raises(
        PictureError, match=r"^120,000 pixels in a picture of an AVIF, at most 119,999 .* save it as PNG$"
    ):
        identified(small)


def jpeg_2000(
    *, side: int = 32, tile: int = 32, channels: int = 1, layers: int = 1, areas: bytes = b"", odd: bytes = b""
) -> bytes:
    """Return a JPEG 2000 that says it is of one channel, and no pixel of which is coded."""
    size = struct.pack(">H8IH", 0, side, side, 0, 0, tile, tile, 0, 0, channels) + b"\7\1\1" * channels
    style = struct.pack(">BBHB", bool(areas), 0, layers, 0) + bytes([max(0, len(areas) - 1), 4, 4, 0, 1]) + areas
    parts = segment(0x51, size) + segment(0x52, style) + segment(0x5C, b"\x40" * (3 * max(1, len(areas)) + 1)) + odd
    parts = b"\xff\x4f" + parts + b"\xff\x90" + struct.pack(">HHIBB", 10, 0, 14, 0, 1) + b"\xff\x93\xff\xd9"
    boxes = [(b"jP  ", b"\r\n\x87\n"), (b"ftyp", b"jp2 \0\0\0\0jp2 ")]
    header = struct.pack(">I4sIIHBBBB", 22, b"ihdr", side, side, 1, 7, 7, 0, 0)
    boxes += [(b"jp2h", header + struct.pack(">I4sBBBI", 15, b"colr", 1, 0, 0, 17)), (b"jp2c", parts)]
    return b"".join(struct.pack(">I4s", 8 + len(body), name) + body for name, body in boxes)


CODED: dict[str, tuple[dict[str, Any], str]] = {
    "channels": ({"channels": 16384}, "16,384 channels in its codestream, at most 4 are taken"),
    "tiles": ({"side": 129, "tile": 1}, "16,641 tiles, at most 16,384"),
    "layers": ({"layers": 65535, "areas": b"\0\x11\x11\x11", "side": 64, "tile": 64}, "packets, at most 16,777,216"),
    "layers of one tile": (
        {"odd": b"\xff\x90" + struct.pack(">HHIBB", 10, 0, 0, 0, 1) + segment(0x52, b"\1\0\xff\xff\0\1\4\4\0\1\0\x11")},
        "packets, at most 16,777,216",
    ),
    "blocks": ({"areas": b"\0\x11", "side": 2000, "tile": 2000}, "blocks in a tile, at most 1,048,576"),
    "narrow areas": ({"areas": b"\xf1\x1f", "side": 13000, "tile": 13000}, "packets, at most 16,777,216"),
    "areas of a channel": (
        {"odd": segment(0x53, b"\0\1\1\4\4\0\1\0\x11"), "side": 2000, "tile": 2000},
        "blocks in a tile, at",
    ),
    "what is not known": ({"odd": b"\xff\x30" + segment(0x52, b"\0\0\xff\xff\0\1\4\4\0\1")}, "unknown part ff30"),
}


@pytest.mark.parametrize("name", CODED)
@pytest.mark.parametrize("form", ["JP2", "J2K", "ICNS"])
def test_the_codestream_of_a_jpeg_2000_is_counted(name: str, form: str) -> None:
    fields, reason = CODED[name]
    data = jpeg_2000(**fields)
    if form == "J2K":
        data = data[data.index(b"jp2c") + 4 :]
    elif form == "ICNS":
        data = icon("ICNS", data)
    with pytest.raises(PictureError, match="pixels in an icon" if form == "ICNS" and "narrow" in name else reason):
        identified(data)


@pytest.mark.parametrize("is_raw", [False, True])
def test_a_jpeg_2000_of_many_tiles_layers_and_areas_is_decoded(is_raw: bool) -> None:
    several = {"quality_mode": "rates", "quality_layers": [80, 40, 20, 10, 5], "precinct_size": (32, 32)}
    for options in ({"tile_size": (8, 8)}, several | {"codeblock_size": (16, 16), "progression": "RPCL"}):
        assert decode(encoded("JPEG2000", no_jp2=is_raw, num_resolutions=3, **options), STEPS).shape == (32, 32, 3)


def qoi(width: int, height: int) -> bytes:
    pixels = b"".join(b"\xfe" + bytes(pixel) for pixel in PIXELS.reshape(-1, 3)[: width * height])
    return b"qoif" + struct.pack(">IIBB", width, height, 3, 0) + pixels + bytes(7) + b"\1"


def dds(width: int, height: int) -> bytes:
    head = struct.pack("<IIIIIII", 124, 0x1007, height, width, 0, 0, 1) + bytes(44)
    form = struct.pack("<IIIIIIII", 32, 0x40, 0, 24, 0xFF, 0xFF00, 0xFF0000, 0)
    return b"DDS " + head + form + struct.pack("<IIIII", 0x1000, 0, 0, 0, 0) + PIXELS.tobytes()[: 3 * width * height]


def bmp(width: int, height: int) -> bytes:
    body = b"\1\5\0\0" * height + b"\0\1"
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(body), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + len(body), 0, 0, 1078) + head + bytes(1024) + body


SLOW: dict[str, Callable[[int, int], bytes]] = {
    "QOI": qoi,
    "DDS": dds,
    "BMP": bmp,
    "PPM": lambda width, height: b"P3 %d %d 255\n" % (width, height) + b"7 " * (3 * width * height),
    "PPM with another brightest": lambda width, height: b"P6 %d %d 254\n" % (width, height) + bytes(3 * width * height),
}


@pytest.mark.parametrize("name", SLOW)
def test_what_is_decoded_in_python_has_a_limit_of_its_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "BMP":
        with pytest.raises(
            PictureError, match=r"^4,198,400 pixels in a slowly decoded kind of BMP, at most 4,194,304 "
        ):
            decode(bmp(2**12, 2**10 + 1), STEPS)
    monkeypatch.setattr(bounds, "MAX_SLOW_PIXELS", 32 * 32)
    monkeypatch.setattr(bounds.Asked, "left", 60)
    assert decode(SLOW[name](32, 32), STEPS).shape == (32, 32, 3)
    with pytest.raises(PictureError, match=r"pixels in a slowly decoded kind of \w+, at most 1,024 .* save it as PNG$"):
        decode(SLOW[name](32, 33), STEPS)
    monkeypatch.setattr(bounds, "MAX_SLOW_BYTES", 100)
    with pytest.raises(PictureError, match=r"bytes in a slowly decoded kind of \w+, at most 100 .* save it as PNG$"):
        decode(SLOW[name](32, 32), STEPS)


def test_what_is_decoded_in_c_has_not() -> None:
    large = b"P5 4096 2048 255\n" + bytes(2**23)
    assert not decode(large, STEPS).any()


@pytest.mark.parametrize("form", ["ICO", "ICNS"])
@pytest.mark.parametrize("name", ["png", "dib", "dib from the top", "jpeg 2000"])
def test_a_large_picture_in_an_icon_is_refused_before_it_is_decoded(
    form: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (form == "ICNS" and "dib" in name) or (form == "ICO" and name == "jpeg 2000"):
        pytest.skip("no such icons")
    jp2 = encoded("JPEG2000")
    made = {
        "png": header_alone(4096, 4097),
        "dib": dib(4096, 4097),
        "dib from the top": dib(4096, -4097),
        "jpeg 2000": jp2.replace(struct.pack(">II", 32, 32), struct.pack(">II", 4096, 4097)),
    }
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(PictureError, match="16,781,312 pixels in an icon, at most 16,777,216 are taken"):
        identified(icon(form, made[name]))


def in_scans(side: int, marker: int = 0xC0, channels: int = 3, per_scan: int = 1) -> bytes:
    """Return the headers of a JPEG up to its first scan, which holds some of its colours."""
    frame = struct.pack(">BHHB", 8, side, side, channels) + b"".join(bytes([at, 0x11, 0]) for at in range(channels))
    scan = bytes([per_scan]) + b"".join(bytes([at, 0]) for at in range(per_scan)) + b"\0\x3f\0"
    return b"\xff\xd8" + segment(marker, frame) + segment(0xDA, scan) + bytes(64) + b"\xff\xd9"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_jpeg_that_is_held_whole_has_no_more_pixels_than_other_pictures() -> None:
    for data in (in_scans(16_384), in_scans(16_384, 0xC2, per_scan=3), in_scans(16_384, channels=4, per_scan=3)):
        with pytest.raises(PictureError, match="268,435,456, at most 178,956,970 are decoded"):
            identified(data)
    for data in (in_scans(16_384, per_scan=3), in_scans(16_384, channels=1), in_scans(13_000)):
        identified(data)


def test_a_tile_of_a_jpeg_2000_has_so_many_pixels_that_it_can_be_held() -> None:
    with pytest.raises(PictureError, match="67,125,249 pixels in a tile of JPEG 2000, at most 67,108,864 are taken"):
        identified(jpeg_2000(side=8193, tile=8193))
    identified(jpeg_2000(side=8193, tile=8192))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_webp_has_so_many_pixels_that_its_canvases_can_be_held() -> None:
    stream = io.BytesIO()
    Image.new("RGB", (1, 1)).save(stream, "WEBP", lossless=True)

    def lossless(side: int) -> bytes:
        data = stream.getvalue()
        assert data[12:16] == b"VP8L"
        return data[:21] + struct.pack("<L", (side - 1) | (side - 1) << 14) + data[25:]

    with pytest.raises(PictureError, match="67,125,249 pixels of WEBP, at most 67,108,864 are taken: save it as PNG"):
        identified(lossless(8_193))
    identified(lossless(8_192))


def test_strips_of_a_tiff_are_counted_whatever_kind_their_places_are(monkeypatch: pytest.MonkeyPatch) -> None:
    n = 2**17 + 1
    for kind, size in ((1, 1), (3, 2), (4, 4)):
        tags = [(256, 4, 1, 1), (257, 4, 1, n), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, kind, n, 122)]
        tags += [(277, 3, 1, 1), (278, 4, 1, 1), (279, kind, n, 122)]
        with pytest.raises(PictureError, match="131,073 values of kind"):
            identified(directory(tags, b"\x08".ljust(size, b"\0") * n))


def test_all_pages_of_a_file_take_so_long_together(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO()
    pages = [Image.fromarray(PIXELS)] * 5
    pages[0].save(stream, "TIFF", save_all=True, append_images=pages[1:])
    assert len(decode_and_look(stream.getvalue(), STEPS, ["original"], reading="page all")[0]) == 5
    seconds = iter(range(0, 1000, 25))
    monkeypatch.setattr("featcache.decode.time.thread_time", lambda: next(seconds))
    with pytest.raises(PictureError, match="the first 3 of 5 pages take 60 seconds to decode: take one of them"):
        decode_and_look(stream.getvalue(), STEPS, ["original"], reading="page all")


def test_the_header_of_a_dicom_is_gone_through_once_for_all_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    def element(group: int, number: int, value: bytes) -> bytes:
        return struct.pack("<HHL", group, number, len(value)) + value

    numbers = {2: 1, 0x10: 8, 0x11: 8, 0x100: 8, 0x101: 8, 0x102: 7, 0x103: 0}
    head = {number: struct.pack("<H", value) for number, value in numbers.items()}
    head |= {4: b"MONOCHROME2 ", 8: b"20"}
    data = bytes(128) + b"DICM" + struct.pack("<HH2sH", 2, 0x10, b"UI", 18) + b"1.2.840.10008.1.2\0"
    data += b"".join(element(9, at, b"") for at in range(1000))
    data += b"".join(element(0x28, number, value) for number, value in sorted(head.items()))
    data += element(0x7FE0, 0x10, bytes(range(64)) * 20)
    made: list[int] = []
    gone_through = DicomFile.__init__
    monkeypatch.setattr(DicomFile, "__init__", lambda self, data: (made.append(1), gone_through(self, data))[1])
    assert len(decode_and_look(data, STEPS, ["original"], reading="page all")[0]) == 20
    assert made == [1]


@pytest.mark.parametrize("form", sorted(set(FORMATS) & set(Image.SAVE)))
def test_an_ordinary_picture_of_any_format_has_its_pixels(form: str) -> None:
    mode = "1" if form in ("MSP", "XBM") else "RGB"
    data = encoded(form, mode, **({"sizes": [(32, 32)]} if form == "ICO" else {}))
    with Image.open(io.BytesIO(data)) as wanted, identified(data) as found:
        assert np.array_equal(np.asarray(found.convert("RGB")), np.asarray(wanted.convert("RGB")))
