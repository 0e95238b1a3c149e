"""Makers of every kind of good and bad picture file, and what each of them has to decode to."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import socket
import struct
import time
import zlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

Pixels = npt.NDArray[np.uint8]
Good = tuple[bytes, Pixels]
"""The bytes of a file, and the RGB pixels that they mean."""

ORIENTATION = 0x0112


def picture(seed: int, width: int = 64, height: int = 48) -> Pixels:
    """Coarse blocks of colour under fine noise; every value can be divided by five."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 40, (-(-height // 12), -(-width // 16), 3))
    coarse = np.kron(blocks, np.ones((12, 16, 1), np.int64))[:height, :width]
    return ((coarse + random.integers(0, 12, coarse.shape)) * 5).astype(np.uint8)


def grey(seed: int) -> Pixels:
    return picture(seed)[:, :, 0]


def as_rgb(values: Pixels) -> Pixels:
    return np.repeat(values[:, :, None], 3, axis=2)


def over_white(colour: Pixels, alpha: Pixels) -> Pixels:
    share = alpha[:, :, None] / 255
    return np.round(colour * share + 255 * (1 - share)).astype(np.uint8)


def stripes_of_alpha(colour: Pixels) -> Pixels:
    """Opaque, one fifth and fully transparent in turn: with colours that five divides nothing is rounded."""
    alpha = np.zeros(colour.shape[:2], np.uint8)
    alpha[:, 0::3], alpha[:, 1::3] = 255, 51
    return alpha


def solid(edge: int, colour: tuple[int, int, int]) -> Pixels:
    return np.full((edge, edge, 3), colour, np.uint8)


def encoded(values: Pixels | Image.Image, form: str = "PNG", **options: Any) -> bytes:
    image = values if isinstance(values, Image.Image) else Image.fromarray(values)
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def by_pillow(data: bytes, mode: str | None = None) -> Good:
    """A file whose format loses pixels, with what Pillow itself makes of it."""
    with Image.open(io.BytesIO(data)) as image:
        assert mode in (None, image.mode)
        return data, np.asarray(image.convert("RGB"))


def png(width: int, height: int, bits: int, colour: int, rows: list[bytes], *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG written by hand, for what Pillow does not write."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [(b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in parts
    )


def plain(seed: int, form: str = "PNG", **options: Any) -> Good:
    return encoded(picture(seed), form, **options), picture(seed)


def jpeg(seed: int, **options: Any) -> bytes:
    return encoded(picture(seed), "JPEG", **options)


def turned(upright: Pixels, orientation: int) -> Pixels:
    """What a camera stores with this orientation, so that a viewer shows `upright`."""
    return {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return tags


def with_turn(orientation: int, form: str = "PNG", **options: Any) -> Good:
    upright = picture(100 + orientation)
    stored = np.ascontiguousarray(turned(upright, orientation))
    return encoded(stored, form, exif=exif(orientation), **options), upright


def turned_lossy(form: str, orientation: int, back: Callable[[Pixels], Pixels]) -> Good:
    stored = picture(120)
    _, decoded = by_pillow(encoded(stored, form, quality=95))
    return encoded(stored, form, quality=95, exif=exif(orientation)), np.ascontiguousarray(back(decoded))


def ycck() -> Good:
    """A four-channel JPEG whose Adobe marker says that the first three are luma and chroma."""
    data = encoded(Image.fromarray(picture(3)).convert("CMYK"), "JPEG", quality=95)
    at = data.index(b"Adobe") + 11
    assert data[at] == 0
    changed = data[:at] + b"\2" + data[at + 1 :]
    found = by_pillow(changed, "CMYK")
    assert not np.array_equal(found[1], by_pillow(data, "CMYK")[1])
    return found


def with_palette(seed: int, form: str, alpha: bytes | None = None, clear: int | None = None) -> Good:
    random = np.random.default_rng(seed)
    colours = (random.integers(0, 52, (4, 3)) * 5).astype(np.uint8)
    indices = random.integers(0, 4, (6, 8)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
    image = Image.fromarray(indices).convert("L")
    image.putpalette(colours.tobytes())
    opacity = np.array(list(alpha or b"\xff" * 4), np.uint8)
    if clear is not None:
        opacity[clear] = 0
    options = {"transparency": alpha or clear} if alpha or clear else {}
    return encoded(image, form, **options), over_white(colours[indices], opacity[indices])


def animation(seed: int, form: str, **options: Any) -> Good:
    """Two frames, of which the first counts."""
    if form == "GIF":
        first: Image.Image = Image.open(io.BytesIO(with_palette(seed, form)[0]))
        second: Image.Image = Image.open(io.BytesIO(with_palette(seed + 1, form)[0]))
        wanted = with_palette(seed, form)[1]
    else:
        first, second = Image.fromarray(picture(seed)), Image.fromarray(picture(seed + 1))
        wanted = picture(seed)
    data = encoded(first, form, save_all=True, append_images=[second], **options)
    with Image.open(io.BytesIO(data)) as image:
        assert getattr(image, "n_frames", 1) == 2
    return data, wanted


def grey_16_bit(seed: int, form: str, order: str = "<u2") -> Good:
    values = np.kron(grey(seed).astype(np.uint32) * 257 + 100, np.ones((2, 2), np.uint32)).clip(0, 65535)
    values = (values + np.random.default_rng(seed).integers(0, 257, values.shape)).clip(0, 65535).astype(order)
    return encoded(Image.fromarray(values), form), as_rgb(np.round(values / 257).astype(np.uint8))


def colour_16_bit(seed: int, with_alpha: bool) -> Good:
    colour = picture(seed)
    alpha = stripes_of_alpha(colour) if with_alpha else np.full(colour.shape[:2], 255, np.uint8)
    values = np.dstack([colour, alpha]) if with_alpha else colour
    rows = [row.astype(">u2").tobytes() for row in values.astype(np.uint32) * 257]
    return png(64, 48, 16, 6 if with_alpha else 2, rows), over_white(colour, alpha)


def one_colour_clear(seed: int) -> Good:
    """An RGB PNG that names one colour as transparent."""
    colour = picture(seed)
    colour[10:30, 20:40] = (5, 6, 7)
    alpha = np.where((colour == (5, 6, 7)).all(axis=2), 0, 255).astype(np.uint8)
    rows = [row.tobytes() for row in colour]
    return png(64, 48, 8, 2, rows, (b"tRNS", b"\0\5\0\6\0\7")), over_white(colour, alpha)


def grey_16_bit_one_value_clear(seed: int) -> Good:
    """A grey 16-bit PNG that names one value as transparent."""
    values = grey(seed)
    values[10:30, 20:40] = 7
    rows = [row.astype(">u2").tobytes() for row in values.astype(np.uint32) * 257]
    wanted = np.where(values == 7, 255, values).astype(np.uint8)
    return png(64, 48, 16, 0, rows, (b"tRNS", struct.pack(">H", 7 * 257))), as_rgb(wanted)


def with_alpha(seed: int, form: str = "PNG", **options: Any) -> Good:
    colour = picture(seed)
    alpha = stripes_of_alpha(colour)
    return encoded(np.dstack([colour, alpha]), form, **options), over_white(colour, alpha)


def grey_with_alpha(seed: int) -> Good:
    colour = as_rgb(grey(seed))
    alpha = stripes_of_alpha(colour)
    return encoded(Image.fromarray(np.dstack([colour[:, :, 0], alpha]), "LA")), over_white(colour, alpha)


def strip(width: int, height: int, colour: tuple[int, int, int]) -> Good:
    """A line of noise around a middle of one colour, which is all that the crop can show."""
    values = np.random.default_rng(9).integers(0, 256, (height, width, 3), dtype=np.uint8)
    middle = slice(9990, 10010)
    values[:, middle] = colour
    if height > width:
        values[middle] = colour
    return encoded(values), solid(256, colour)


def one_bit(seed: int) -> Good:
    values = grey(seed) > 127
    return encoded(Image.fromarray(values)), as_rgb(np.where(values, 255, 0).astype(np.uint8))


LONG = "l" * 246 + ".png"
NOT_UTF_8 = os.fsdecode(b"\xff.png")

GOOD: dict[str, Callable[[], Good]] = {
    "plain.png": lambda: plain(1),
    "plain.jpg": lambda: by_pillow(jpeg(2)),
    "progressive.jpg": lambda: by_pillow(jpeg(4, progressive=True)),
    "grey.jpg": lambda: by_pillow(encoded(grey(5), "JPEG"), "L"),
    "cmyk.jpg": lambda: by_pillow(encoded(Image.fromarray(picture(3)).convert("CMYK"), "JPEG"), "CMYK"),
    "ycck.jpg": ycck,
    "trailing bytes.jpg": lambda: by_pillow(jpeg(6) + b"PK\3\4" + bytes(5000)),
    "grey.png": lambda: (encoded(grey(7)), as_rgb(grey(7))),
    "grey 16.png": lambda: grey_16_bit(8, "PNG"),
    "grey 16.tif": lambda: grey_16_bit(10, "TIFF", ">u2"),
    "grey 16 clear.png": lambda: grey_16_bit_one_value_clear(11),
    "rgb 16.png": lambda: colour_16_bit(12, False),
    "rgba 16.png": lambda: colour_16_bit(13, True),
    "one bit.png": lambda: one_bit(14),
    "palette.png": lambda: with_palette(15, "PNG"),
    "palette alpha.png": lambda: with_palette(16, "PNG", alpha=b"\xff\x33\x00\xff"),
    "palette clear.png": lambda: with_palette(17, "PNG", clear=1),
    "palette clear.gif": lambda: with_palette(18, "GIF", clear=2),
    "la.png": lambda: grey_with_alpha(19),
    "rgba.png": lambda: with_alpha(20),
    "rgba.webp": lambda: with_alpha(21, "WEBP", lossless=True, exact=True),
    "rgba.tif": lambda: with_alpha(22, "TIFF"),
    "colour clear.png": lambda: one_colour_clear(23),
    "animated.gif": lambda: animation(30, "GIF"),
    "animated.webp": lambda: animation(32, "WEBP", lossless=True),
    "animated.png": lambda: animation(34, "PNG"),
    "pages.tif": lambda: animation(36, "TIFF"),
    "plain.bmp": lambda: plain(38, "BMP"),
    "plain.ppm": lambda: plain(39, "PPM"),
    "plain.tga": lambda: plain(40, "TGA"),
    "plain.jp2": lambda: plain(41, "JPEG2000", irreversible=False),
    "icc.png": lambda: plain(42, icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()),
    **{f"turn {turn}.png": lambda turn=turn: with_turn(turn) for turn in range(1, 9)},  # type: ignore[misc]
    "turn 6.tif": lambda: turned_lossy("TIFF", 6, lambda values: np.rot90(values, -1)),
    "turn 8.webp": lambda: turned_lossy("WEBP", 8, lambda values: np.rot90(values, 1)),
    "turn 6.jpg": lambda: turned_lossy("JPEG", 6, lambda values: np.rot90(values, -1)),
    "1x1.png": lambda: (encoded(solid(1, (200, 10, 90))), solid(256, (200, 10, 90))),
    "20000x1.png": lambda: strip(20000, 1, (10, 200, 30)),
    "1x20000.png": lambda: strip(1, 20000, (20, 60, 220)),
    "new\nline.png": lambda: plain(50),
    "smile \U0001f600.png": lambda: plain(51),
    NOT_UTF_8: lambda: plain(52),
    LONG: lambda: plain(53),
    "UPPER.PNG": lambda: plain(54),
    "no suffix": lambda: plain(55),
    "a png.jpg": lambda: plain(56),
    "-rf.png": lambda: plain(57),
    "folder.jpg/inside.png": lambda: plain(58),
}
AVIF: dict[str, Callable[[], Good]] = {
    "plain.avif": lambda: by_pillow(encoded(picture(60), "AVIF")),
    "turn 6.avif": lambda: turned_lossy("AVIF", 6, lambda values: np.rot90(values, -1)),
}
DUPLICATES = {"copy.png": "plain.png", "hard link.png": "plain.jpg", "link.png": "rgba.png"}
"""Name -> the good picture whose content it has."""


def part(data: bytes, share: float) -> bytes:
    return data[: int(share * len(data))]


def bad_huffman() -> bytes:
    """A Huffman table that counts more codes than there are."""
    data = jpeg(70)
    at = data.index(b"\xff\xc4") + 5
    return data[:at] + b"\xff" * 16 + data[at + 16 :]


def bad_quantisation() -> bytes:
    """A quantisation table that says it is shorter than it is."""
    data = jpeg(71)
    at = data.index(b"\xff\xdb") + 2
    return data[:at] + b"\0\x09" + data[at + 2 :]


def flipped_bit_png() -> bytes:
    """A PNG that is not compressed, one bit of whose pixels has turned since: its checksums tell."""
    data = bytearray(encoded(picture(72), compress_level=0))
    data[len(data) // 2] ^= 0x80
    return bytes(data)


NOT_A_PICTURE = r"^not a picture in a format that is decoded here$"
CUT_OFF = r"^broken picture: .*truncated"
CUT_EARLY = r"^broken picture: .|^not a picture in a format that is decoded here$"
ISO_MEDIA = b"\x00\x00\x00\x18ftyp%b\x00\x00\x00\x00mif1heic" + bytes(200)
HEIC_HINT = r"^broken picture: .|^not a picture" if find_spec("pillow_heif") else r"HEIC.*pillow-heif"

BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "cut 1.jpg": (lambda: part(jpeg(80), 0.02), CUT_EARLY),
    "cut 2.jpg": (lambda: part(jpeg(80), 0.3), CUT_EARLY),
    "cut 3.jpg": (lambda: part(jpeg(80), 0.6), CUT_OFF),
    "cut 4.jpg": (lambda: part(jpeg(80), 0.95), CUT_OFF),
    "cut progressive.jpg": (lambda: part(jpeg(81, progressive=True), 0.7), CUT_OFF),
    "cut 1.png": (lambda: plain(82)[0][:20], CUT_EARLY),
    "cut 2.png": (lambda: plain(82)[0][:40], CUT_EARLY),
    "cut 3.png": (lambda: part(plain(82)[0], 0.5), CUT_OFF),
    "cut 4.png": (lambda: part(plain(82)[0], 0.98), CUT_OFF),
    "flipped bit.png": (flipped_bit_png, r"^broken picture: "),
    "program.eps": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", r"^EPS is a program"),
    "empty.jpg": (lambda: b"", r"^empty file$"),
    "text.jpg": (lambda: b"this is not a picture\n" * 9, NOT_A_PICTURE),
    "html.png": (lambda: b"<!DOCTYPE html><html><body>404</body></html>", "^a web page, no picture: "),
    "huffman.jpg": (bad_huffman, r"^broken picture: "),
    "quantisation.jpg": (bad_quantisation, NOT_A_PICTURE),
    "bomb.png": (lambda: png(60000, 60000, 8, 2, [bytes(99)]), r"^too many pixels to be a photograph"),
    "float.tif": (lambda: encoded(Image.fromarray(np.ones((9, 9), np.float32)), "TIFF"), r"brightness range"),
    "int.tif": (lambda: encoded(Image.fromarray(np.ones((9, 9), np.int32)), "TIFF"), r"brightness range"),
    "rgb 16 clear.png": (
        lambda: png(8, 8, 16, 2, [bytes(48)] * 8, (b"tRNS", bytes(6))),
        r"^16-bit colour picture with one transparent colour",
    ),
    "heic.heic": (lambda: ISO_MEDIA % b"heic", HEIC_HINT),
    "heix.jpg": (lambda: ISO_MEDIA % b"heix", HEIC_HINT),
    "film.mp4": (lambda: ISO_MEDIA.replace(b"mif1heic", b"isommp41") % b"isom", NOT_A_PICTURE),
    "drawing.svg": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><rect/></svg>', NOT_A_PICTURE),
    "paper.pdf": (lambda: b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n%%EOF", NOT_A_PICTURE),
    "packed.png.gz": (lambda: gzip.compress(plain(83)[0], mtime=0), NOT_A_PICTURE),
    "table.h5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(500), r"^broken picture: .*HDF5|^not a picture"),
}
NO_FILE = r"^not a regular file$|^is a directory$|^no such device"
SPECIAL: dict[str, tuple[Callable[[Path], object], str]] = {
    "pipe.jpg": (os.mkfifo, r"^not a regular file$"),
    "socket": (lambda path: make_socket(path), NO_FILE),
    "broken link.png": (lambda path: path.symlink_to("nowhere"), r"^no such file or directory$"),
    "folder loop": (lambda path: path.symlink_to(path.parent), NO_FILE),
    "zero.png": (lambda path: path.symlink_to("/dev/zero"), r"^not a regular file$"),
    "sparse.png": (lambda path: make_sparse(path), r"^larger than 512 MiB \(1,099,511,627,776 bytes\)$"),
}


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def make_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


def fill(folder: Path, good: dict[str, Callable[[], Good]]) -> None:
    """Put all kinds into one folder, old enough for their stat to be trusted."""
    for name, make in good.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(make()[0])
    for name, (make_bad, _) in BAD.items():
        (folder / name).write_bytes(make_bad())
    for name, (make_special, _) in SPECIAL.items():
        make_special(folder / name)
    shutil.copy(folder / DUPLICATES["copy.png"], folder / "copy.png")
    os.link(folder / DUPLICATES["hard link.png"], folder / "hard link.png")
    (folder / "link.png").symlink_to(DUPLICATES["link.png"])
    age(folder)


def age(folder: Path) -> None:
    for path in folder.rglob("*"):
        os.utime(path, (1e9, 1e9), follow_symlinks=False)


def write_whole(path: Path, content: bytes, manner: str) -> None:
    if manner == "renamed over":
        path.with_name("new.bmp").write_bytes(content)
        path.with_name("new.bmp").rename(path)
    elif manner == "in place":
        descriptor = os.open(path, os.O_WRONLY)
        os.pwrite(descriptor, content, 0)
        os.close(descriptor)
    else:
        with path.open("wb", buffering=0) as file:
            file.write(content[: len(content) // 2])
            file.write(content[len(content) // 2 :])
    time.sleep(0.001)
