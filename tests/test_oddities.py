"""Old formats of which Pillow gives other pixels than the file has: mended, or refused by name."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from featcache.decode import decode_views, look
from featcache.errors import PictureError
from featcache.records import Preprocess
from featcache.sources.keys import content_key, is_as_ever

WHOLE = Preprocess(24, 24, "bilinear", (0, 0, 0), (1, 1, 1))
SEEDED = np.random.default_rng(0)
RGB = SEEDED.integers(0, 256, (24, 24, 3), np.uint8)
LITE0 = ("--backbone", "efficientnet_lite0")

Pixels = npt.NDArray[np.uint8]


def pixels(data: bytes) -> Pixels:
    return decode_views(data, WHOLE, ["original"])[0]


def bmp(numbers: Pixels, bits: int, palette: list[tuple[int, int, int]], stated: bool = True, gap: int = 0) -> bytes:
    """Return a BMP of numbers of colours, which states how many there are, or has as many as its bits can tell."""
    rows = []
    for row in numbers[::-1]:
        if bits == 4:
            row = row[::2] << 4 | row[1::2]
        rows.append(row.tobytes() if bits > 1 else np.packbits(row).tobytes())
    body = b"".join(row.ljust(-(-len(row) // 4) * 4, b"\0") for row in rows)
    colours = b"".join(bytes([blue, green, red, 0]) for red, green, blue in palette) + bytes(gap)
    height, width = numbers.shape
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, 0, len(body), 0, 0, len(palette) * stated, 0)
    start = 54 + len(colours)
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + header + colours + body


BLACK_AND_WHITE = [(0, 0, 0), (255, 255, 255)]
PALETTES = {
    "8 bits, black and white": (8, BLACK_AND_WHITE),
    "4 bits, black and white": (4, BLACK_AND_WHITE),
    "1 bit, black and white": (1, BLACK_AND_WHITE),
    "8 bits, white and black": (8, BLACK_AND_WHITE[::-1]),
    "4 bits, 16 dark greys": (4, [(level,) * 3 for level in range(16)]),
    "4 bits, 16 greys": (4, [(17 * level,) * 3 for level in range(16)]),
    "4 bits, 3 dark greys": (4, [(level,) * 3 for level in range(3)]),
    "8 bits, 3 dark greys": (8, [(level,) * 3 for level in range(3)]),
    "8 bits, all greys": (8, [(level,) * 3 for level in range(256)]),
}


class TestBMP:
    @pytest.mark.parametrize("gap", [0, 2, 64])
    @pytest.mark.parametrize("name", PALETTES)
    def test_colours_are_those_of_the_palette(self, name: str, gap: int) -> None:
        bits, palette = PALETTES[name]
        numbers = SEEDED.integers(0, len(palette), (24, 24), np.uint8)
        data = bmp(numbers, bits, palette, gap=gap)
        wanted = np.array(palette, np.uint8)[numbers]
        np.testing.assert_array_equal(pixels(data), wanted)
        if bits == 8:
            other = imagecodecs.bmp_decode(data)
            np.testing.assert_array_equal(other.reshape(24, 24, -1)[..., 0], wanted[..., 0])

    def test_as_many_colours_as_the_bits_can_tell_need_not_be_stated(self) -> None:
        bits, palette = PALETTES["4 bits, 16 dark greys"]
        numbers = SEEDED.integers(0, 16, (24, 24), np.uint8)
        wanted = np.array(palette, np.uint8)[numbers]
        np.testing.assert_array_equal(pixels(bmp(numbers, bits, palette, stated=False)), wanted)

    def test_those_that_pillow_gives_right_keep_their_key_and_no_others(self) -> None:
        for name, (bits, palette) in PALETTES.items():
            data = bmp(SEEDED.integers(0, len(palette), (24, 24), np.uint8), bits, palette)
            try:
                with Image.open(io.BytesIO(data)) as image:
                    is_right = np.array_equal(np.asarray(image.convert("RGB")), pixels(data))
            except OSError:
                is_right = False
            assert is_as_ever(data) == is_right, name


def tga(kind: int, depth: int, attributes: int, body: bytes, palette: tuple[int, bytes] = (0, b"")) -> bytes:
    bits, colours = palette
    head = struct.pack("<BBBHHB", 0, bool(bits), kind, 0, 256 * bool(bits), bits)
    return head + struct.pack("<HHHHBB", 0, 0, 24, 24, depth, 0x20 | attributes) + colours + body


def sun(depth: int, body: bytes) -> bytes:
    return struct.pack(">8I", 0x59A66A95, 24, 24, depth, len(body), 1, 0, 0) + body


def psd(mode: int, bits: int, channels: int, body: bytes) -> bytes:
    head = b"8BPS" + struct.pack(">H6xHIIHH", 1, channels, 24, 24, bits, mode)
    return head + bytes(4 + 4 + 4) + bytes(2) + body


def icon(kind: int, picture: bytes) -> bytes:
    return struct.pack("<HHHBBBBHHII", 0, kind, 1, 24, 24, 0, 0, 1, 0, len(picture), 22) + picture


def dib(bits: int, body: bytes) -> bytes:
    return struct.pack("<IiiHHIIiiII", 40, 24, 48, 1, bits, 0, 0, 0, 0, 0, 0) + body


GREY = np.ascontiguousarray(RGB[..., 0])
CLEAR = np.dstack([RGB[..., ::-1], np.zeros((24, 24), np.uint8)])
MASK = bytes(24 * 4)
RIGHT: dict[str, tuple[bytes, Pixels]] = {
    "TGA of 24 bits": (tga(2, 24, 0, RGB[..., ::-1].tobytes()), RGB),
    "TGA of grey": (tga(3, 8, 0, GREY.tobytes()), np.dstack([GREY] * 3)),
    "TGA with a palette": (
        tga(1, 8, 0, GREY.tobytes(), (24, RGB.reshape(-1, 3)[:256, ::-1].tobytes())), RGB.reshape(-1, 3)[:256][GREY],
    ),
    "TGA of 32 bits with alpha": (tga(2, 32, 8, CLEAR.tobytes()), np.full_like(RGB, 255)),
    "Sun raster of 24 bits": (sun(24, RGB[..., ::-1].tobytes()), RGB),
    "PSD in RGB": (psd(3, 8, 3, np.moveaxis(RGB, 2, 0).tobytes()), RGB),
    "PSD in grey": (psd(1, 8, 1, GREY.tobytes()), np.dstack([GREY] * 3)),
    "icon of 24 bits": (icon(1, dib(24, RGB[::-1, :, ::-1].tobytes() + MASK)), RGB),
}  # fmt: skip
WRONG = {
    "TGA of 32 bits": tga(2, 32, 0, CLEAR.tobytes()),
    "TGA of 16 bits": tga(2, 16, 1, bytes(2 * 24 * 24)),
    "TGA with a palette of 32 bits": tga(1, 8, 0, GREY.tobytes(), (32, bytes(1024))),
    "Sun raster of 32 bits": sun(32, bytes(4 * 24 * 24)),
    "PSD in mode 0": psd(0, 1, 1, bytes(3 * 24)),
    "PSD in mode 3 with 4 channels": psd(3, 8, 4, bytes(4 * 24 * 24)),
    "PSD in mode 7 with 3 channels": psd(7, 8, 3, bytes(3 * 24 * 24)),
    "PSD in mode 1 with 1 channels of 16 bits": psd(1, 16, 1, bytes(2 * 24 * 24)),
    "icon of 32 bits": icon(1, dib(32, CLEAR[::-1].tobytes() + MASK)),
    "cursor": icon(2, dib(24, RGB.tobytes() + MASK)),
}


class TestOldFormats:
    @pytest.mark.parametrize("name", RIGHT)
    def test_what_pillow_gives_right_has_the_pixels_of_the_file_and_its_key(self, name: str) -> None:
        data, wanted = RIGHT[name]
        np.testing.assert_array_equal(pixels(data), wanted)
        assert is_as_ever(data)

    @pytest.mark.parametrize("name", WRONG)
    def test_what_it_may_give_wrong_is_refused_by_name_under_another_key(self, name: str) -> None:
        with pytest.raises(PictureError, match=f"^{name}.*, which is not decoded here: save it as PNG$"):
            look(WRONG[name])
        assert not is_as_ever(WRONG[name])

    def test_bytes_that_end_early_are_no_failure_of_another_kind(self) -> None:
        for data in (*WRONG.values(), *(data for data, _ in RIGHT.values()), bmp(GREY & 1, 8, BLACK_AND_WHITE)):
            for n in range(70):
                content_key(data[:n])
                with pytest.raises(PictureError):
                    look(data[:n])


def test_of_an_old_cache_a_wrong_bmp_is_computed_again_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., Any]
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "wrong.bmp").write_bytes(bmp(GREY & 1, 8, BLACK_AND_WHITE))
    (folder / "right.bmp").write_bytes(bmp(GREY & 1, 8, BLACK_AND_WHITE[::-1]))
    (folder / "grey.tga").write_bytes(RIGHT["TGA of grey"][0])
    with monkeypatch.context() as patch:  # as versions did that left all of it to Pillow
        patch.setattr("featcache.sources.keys.is_as_ever", lambda data: True)
        patch.setattr("featcache.decode.mended", lambda data: data)
        patch.setattr("featcache.store.catalog.SCHEMA", 6)
        run("extract", "photos", *LITE0)
    done = run("extract", "photos", *LITE0, "--json")
    assert f"run `featcache extract` of {folder} again" in done.err
    assert (done.json["reused"], done.json["computed"]) == (2, 1)
