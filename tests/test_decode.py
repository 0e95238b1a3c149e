"""Reading picture files and decoding them: equal to torchvision's transform, every failure one line, little memory."""

from __future__ import annotations

import functools
import hashlib
import io
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image

import featcache.decode
import featcache.sources.local
from featcache.decode import Pixels, decode, decode_and_look, look
from featcache.errors import PictureError
from featcache.records import FileStat, Preprocess
from featcache.sources import file_stat, read


def steps(interpolation: str = "bilinear", resize: int = 256, crop: int = 224, mode: str = "short") -> Preprocess:
    return Preprocess(resize, crop, interpolation, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), mode)


USUAL = steps()
AS_IT_IS = steps("nearest", 16, 16)
"""Leaves pictures of 16 x 16 pixels as they are, so that single pixels can be compared."""


def noise(width: int, height: int, seed: int = 0, channels: int = 3) -> npt.NDArray[np.uint8]:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def plain(mode: str, value: Any, form: str = "PNG", **options: Any) -> bytes:
    """A picture of 16 x 16 equal pixels."""
    return encoded(Image.new(mode, (16, 16), value), form, **options)


def png(bits: int, colour: int, pixel: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of 16 x 16 equal pixels written by hand, for what Pillow does not write."""
    header = struct.pack(">IIBBBBB", 16, 16, bits, colour, 0, 0, 0)
    data = zlib.compress((b"\0" + pixel * 16) * 16)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in parts
    )


def only_colour(pixels: Pixels) -> tuple[int, ...]:
    """The colour that all pixels have."""
    colours = np.unique(pixels.reshape(-1, 3), axis=0)
    assert len(colours) == 1
    return tuple(colours[0].tolist())


def failure(data: bytes, preprocess: Preprocess = USUAL) -> str:
    with pytest.raises(PictureError) as caught:
        decode(data, preprocess)
    return str(caught.value)


class TestRead:
    def test_bytes_content_key_and_stat(self, tmp_path: Path) -> None:
        path = tmp_path / "1.jpg"
        content = bytes(range(256)) * 5
        path.write_bytes(content)
        os.utime(path, ns=(1, 1_234_567_890_123_456_789))
        expected = FileStat(1280, 1_234_567_890_123_456_789, path.stat().st_ino)
        assert read(str(path)) == (content, hashlib.sha256(content).digest(), expected)
        assert file_stat(str(path)) == expected

    def test_an_empty_file_is_read(self, tmp_path: Path) -> None:
        (tmp_path / "1.jpg").touch()
        data, key, stat = read(str(tmp_path / "1.jpg"))
        assert (data, key, stat.size) == (b"", hashlib.sha256(b"").digest(), 0)

    def test_the_key_is_of_the_content_alone(self, tmp_path: Path) -> None:
        for name, content in (("a.jpg", b"x"), ("b.png", b"x"), ("c.jpg", b"y")):
            (tmp_path / name).write_bytes(content)
        a, b, c = (read(str(tmp_path / name))[1] for name in ("a.jpg", "b.png", "c.jpg"))
        assert a == b != c

    def test_a_link_is_read_through(self, tmp_path: Path) -> None:
        (tmp_path / "1.jpg").write_bytes(b"x")
        (tmp_path / "2.jpg").symlink_to(tmp_path / "1.jpg")
        assert read(str(tmp_path / "2.jpg")) == read(str(tmp_path / "1.jpg"))

    def test_a_file_name_that_is_not_utf_8(self, tmp_path: Path) -> None:
        path = os.path.join(str(tmp_path), os.fsdecode(b"\xff\n.jpg"))
        try:
            Path(path).write_bytes(b"x")
        except OSError as error:
            pytest.skip(f"this file system does not take such a name: {error}")
        assert read(path)[0] == b"x"

    @pytest.mark.parametrize("look", [read, file_stat])
    @pytest.mark.parametrize("name", ["gone.jpg", "dangling.jpg", "file.jpg/deeper.jpg", "loop.jpg", "x" * 300])
    def test_what_is_not_there_is_one_failure(self, tmp_path: Path, name: str, look: Callable[[str], object]) -> None:
        (tmp_path / "file.jpg").write_bytes(b"x")
        (tmp_path / "dangling.jpg").symlink_to(tmp_path / "gone.jpg")
        (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
        with pytest.raises(PictureError) as caught:
            look(str(tmp_path / name))
        assert str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_missing_file_is_called_so(self, tmp_path: Path) -> None:
        with pytest.raises(PictureError, match=r"^no such file or directory$"):
            read(str(tmp_path / "gone.jpg"))

    @pytest.mark.parametrize("look", [read, file_stat])
    def test_a_folder_is_no_picture(self, tmp_path: Path, look: Callable[[str], object]) -> None:
        with pytest.raises(PictureError, match=r"is a directory|not a regular file"):
            look(str(tmp_path))

    @pytest.mark.parametrize("look", [read, file_stat])
    def test_a_pipe_nobody_writes_to_is_refused_at_once(self, tmp_path: Path, look: Callable[[str], object]) -> None:
        os.mkfifo(tmp_path / "1.jpg")
        caught: list[BaseException] = []

        def attempt() -> None:
            try:
                look(str(tmp_path / "1.jpg"))
            except BaseException as error:
                caught.append(error)

        thread = threading.Thread(target=attempt, daemon=True)
        thread.start()
        thread.join(timeout=10)
        assert not thread.is_alive()
        assert [(type(error), str(error)) for error in caught] == [(PictureError, "not a regular file")]

    @pytest.mark.parametrize("look", [read, file_stat])
    def test_a_socket_is_refused(self, look: Callable[[str], object]) -> None:
        with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
            path = os.path.join(folder, "1.jpg")  # pytest's own folders can be too deep for a socket's name
            listener.bind(path)
            with pytest.raises(PictureError):
                look(path)

    def test_devices_are_refused(self) -> None:
        with pytest.raises(PictureError, match="not a regular file"):
            read("/dev/zero")

    @pytest.mark.parametrize(("size", "refused"), [(1000, False), (1001, True)])
    def test_a_file_that_is_too_large_is_refused_unread(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, refused: bool
    ) -> None:
        monkeypatch.setattr(featcache.sources.local, "MAX_BYTES", 1000)
        (tmp_path / "1.jpg").write_bytes(bytes(size))
        if refused:
            with pytest.raises(PictureError, match=r"larger than .*\(1,001 bytes\)"):
                read(str(tmp_path / "1.jpg"))
        else:
            assert len(read(str(tmp_path / "1.jpg"))[0]) == size

    def test_the_usual_limit_refuses_a_huge_sparse_file(self, tmp_path: Path) -> None:
        with (tmp_path / "1.jpg").open("wb") as file:
            file.truncate(featcache.sources.local.MAX_BYTES + 1)
        with pytest.raises(PictureError, match=r"^larger than 512 MiB \(536,870,913 bytes\)$"):
            read(str(tmp_path / "1.jpg"))

    @pytest.mark.parametrize("change", ["grows", "shrinks", "is written again"])
    def test_a_file_that_changes_under_the_reader_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
    ) -> None:
        path = tmp_path / "1.jpg"
        path.write_bytes(b"x" * 100)
        os.utime(path, ns=(1, 1))
        looks: list[int] = []

        def fstat(descriptor: int) -> os.stat_result:
            looks.append(descriptor)
            status = os.stat(descriptor)
            if len(looks) == 1:  # what happens between the first look and the reading
                path.write_bytes(b"y" * {"grows": 101, "shrinks": 99}.get(change, 100))
            return status

        monkeypatch.setattr(os, "fstat", fstat)
        with pytest.raises(PictureError, match="changed while it was read"):
            read(str(path))
        monkeypatch.undo()
        assert looks
        assert read(str(path))[0][:1] == b"y"

    @pytest.mark.parametrize("content", [b"x" * 99, b"x" * 101])
    def test_fewer_or_more_bytes_than_the_file_has_are_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
    ) -> None:
        path = tmp_path / "1.jpg"
        path.write_bytes(b"x" * 100)
        status = path.stat()  # on a network file system the stat can lag behind the content
        path.write_bytes(content)
        monkeypatch.setattr(os, "fstat", lambda _: status)
        with pytest.raises(PictureError, match="changed while it was read"):
            read(str(path))

    def test_failures_leave_no_file_open(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = Path("/proc/self/fd")
        if not folder.is_dir():
            pytest.skip("open files cannot be counted here")
        os.mkfifo(tmp_path / "pipe.jpg")
        (tmp_path / "large.jpg").write_bytes(bytes(11))
        monkeypatch.setattr(featcache.sources.local, "MAX_BYTES", 10)
        before = len(list(folder.iterdir()))
        (tmp_path / "folder.jpg").mkdir()
        for name in ["pipe.jpg", "large.jpg", "gone.jpg", "folder.jpg"] * 5:
            with pytest.raises(PictureError):
                read(str(tmp_path / name))
        assert len(list(folder.iterdir())) == before


UNPRIVILEGED = """
import os, sys
from featcache.sources import read
from featcache.errors import PictureError
if os.getuid() == 0:
    os.setuid(65534)
try:
    found = read(sys.argv[1])
except PictureError as error:
    print(error)
else:
    sys.exit(f"nothing was raised: {found}")
"""


@pytest.mark.parametrize("locked", ["cat/1.jpg", "cat"])
def test_a_picture_that_may_not_be_read_is_one_failure(locked: str) -> None:
    with tempfile.TemporaryDirectory() as name:  # every user may enter it, which pytest's own folders forbid
        Path(name).chmod(0o755)
        path = Path(name) / "cat/1.jpg"
        path.parent.mkdir()
        path.write_bytes(b"x")
        (Path(name) / locked).chmod(0)
        try:
            done = subprocess.run(
                [sys.executable, "-c", UNPRIVILEGED, str(path)], capture_output=True, text=True, check=False, timeout=60
            )
        finally:
            (Path(name) / locked).chmod(0o755)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "permission denied\n")


@pytest.fixture(scope="module")
def torchvision_crop() -> Callable[[Image.Image, Preprocess], Pixels]:
    """The same steps by torchvision: resize, then centre crop."""
    from featcache.backbones.vision_import import import_torchvision

    import_torchvision()
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as transforms

    def crop(image: Image.Image, preprocess: Preprocess) -> Pixels:
        size = preprocess.resize
        resized = transforms.resize(
            image,
            [size, size] if preprocess.resize_mode == "squash" else size,
            InterpolationMode(preprocess.interpolation),
            antialias=True,
        )
        return np.asarray(transforms.center_crop(resized, [preprocess.crop, preprocess.crop]))

    return crop


def random_sizes() -> list[tuple[int, int]]:
    generator = np.random.default_rng(7)
    return [(int(width), int(height)) for width, height in generator.integers(1, 700, (12, 2))]


FIXED_SIZES = [
    (256, 256),  # already of the right size
    (224, 224),
    (100, 100),
    (640, 480),
    (480, 640),
    (500, 375),
    (333, 500),
    (255, 257),
    (257, 255),
    (13, 7),
    (7, 13),
    (1, 2),
    (1, 1),
    (999, 31),
    (31, 999),
    (3, 700),  # close to the ratio beyond which only the middle is resized
]


class TestParity:
    @pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
    @pytest.mark.parametrize("size", FIXED_SIZES + random_sizes(), ids=lambda size: f"{size[0]}x{size[1]}")
    def test_pixels_equal_those_of_torchvision(
        self, torchvision_crop: Callable[..., Pixels], size: tuple[int, int], interpolation: str
    ) -> None:
        image = Image.fromarray(noise(*size, seed=size[0]))
        found = decode(encoded(image, compress_level=1), steps(interpolation))
        assert found.dtype == np.uint8
        assert found.shape == (224, 224, 3)
        assert np.array_equal(found, torchvision_crop(image, steps(interpolation)))

    @pytest.mark.parametrize("mode", ["short", "squash"])
    @pytest.mark.parametrize(("resize", "crop"), [(32, 32), (33, 32), (35, 32), (48, 31)])
    @pytest.mark.parametrize("size", [(40, 40), (61, 40), (40, 61), (9, 100), (100, 9), (33, 33)])
    def test_pixels_equal_those_of_torchvision_for_other_sizes_and_for_squashing(
        self, torchvision_crop: Callable[..., Pixels], size: tuple[int, int], resize: int, crop: int, mode: str
    ) -> None:
        image = Image.fromarray(noise(*size))
        preprocess = steps("bicubic", resize, crop, mode)
        assert np.array_equal(decode(encoded(image), preprocess), torchvision_crop(image, preprocess))

    def test_a_jpeg_gives_the_pixels_of_pillow_with_torchvision(self, torchvision_crop: Callable[..., Pixels]) -> None:
        data = encoded(Image.fromarray(noise(500, 400)), "JPEG", quality=80)
        assert np.array_equal(decode(data, USUAL), torchvision_crop(Image.open(io.BytesIO(data)), USUAL))

    def test_squashing_keeps_the_edges_that_cropping_cuts_off(self) -> None:
        values = np.zeros((16, 64, 3), np.uint8)
        values[:, :16] = 255
        data = encoded(Image.fromarray(values))
        assert decode(data, steps("nearest", 16, 16, "squash"))[0, 0, 0] == 255
        assert decode(data, steps("nearest", 16, 16, "short")).max() == 0

    @pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"])
    def test_every_interpolation_is_the_one_of_its_name(self, interpolation: str) -> None:
        image = Image.fromarray(noise(60, 60))
        expected = image.resize((32, 32), Image.Resampling[interpolation.upper()])
        assert np.array_equal(decode(encoded(image), steps(interpolation, 32, 32)), np.asarray(expected))


# What a camera stores for each orientation: the operation that undoes the one a viewer applies.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


class TestOrientation:
    @pytest.mark.parametrize(
        "odd",
        [
            (0x9286, 7, 4, b"\0\0\0\0"),
            (0x11A, 2, 4, b"abc\0"),
            (0x8769, 4, 1, b"\x9f\x86\1\0"),
            (0x102, 8, 2, b"\xff\xff\1\0"),
        ],
    )
    def test_an_odd_tag_beside_it_breaks_no_picture(self, odd: tuple[int, int, int, bytes]) -> None:
        plain = encoded(Image.fromarray(np.arange(40 * 60 * 3, dtype=np.uint8).reshape(40, 60, 3)), "JPEG")
        looks = []
        for tags in ([], [odd]):
            entries = sorted([(0x112, 3, 1, b"\6\0\0\0"), *tags])
            packed = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
            exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + packed + b"\0" * 44
            data = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + plain[2:]
            looks.append(decode(data, steps(resize=32, crop=32)))
        assert np.array_equal(*looks)
        assert not np.array_equal(looks[0], decode(plain, steps(resize=32, crop=32)))

    @pytest.mark.parametrize("orientation", STORED)
    def test_every_orientation_decodes_as_the_upright_picture(self, orientation: int) -> None:
        upright = Image.fromarray(noise(90, 60))
        operation = STORED[orientation]
        stored = upright if operation is None else upright.transpose(operation)
        exif = Image.Exif()
        exif[0x0112] = orientation
        found = decode(encoded(stored, exif=exif), steps(resize=40, crop=32))
        assert np.array_equal(found, decode(encoded(upright), steps(resize=40, crop=32)))
        if operation is not None:
            assert not np.array_equal(found, decode(encoded(stored), steps(resize=40, crop=32)))

    def test_a_jpeg_is_turned_too(self) -> None:
        values = np.zeros((16, 32, 3), np.uint8)
        values[:, :16] = 255
        exif = Image.Exif()
        exif[0x0112] = 6  # turned clockwise, what is stored on the left is on top
        found = decode(encoded(Image.fromarray(values), "JPEG", exif=exif), steps("nearest", 16, 16, "squash"))
        assert found[:7].min() > 200
        assert found[9:].max() < 50

    @pytest.mark.parametrize("value", [0, 9, 77])
    def test_an_orientation_that_does_not_exist_changes_nothing(self, value: int) -> None:
        image = Image.fromarray(noise(16, 16))
        exif = Image.Exif()
        exif[0x0112] = value
        assert np.array_equal(decode(encoded(image, exif=exif), AS_IT_IS), np.asarray(image))


def palette(transparency: int | bytes | None = None) -> bytes:
    image = Image.new("P", (16, 16), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    options: dict[str, Any] = {} if transparency is None else {"transparency": transparency}
    return encoded(image, **options)


class TestModes:
    @pytest.mark.parametrize(
        ("data", "colour"),
        [
            pytest.param(plain("RGB", (10, 20, 30)), (10, 20, 30), id="RGB"),
            pytest.param(plain("L", 77), (77, 77, 77), id="L"),
            pytest.param(plain("1", 1), (255, 255, 255), id="1 white"),
            pytest.param(plain("1", 0), (0, 0, 0), id="1 black"),
            pytest.param(palette(), (200, 100, 50), id="P"),
            pytest.param(palette(transparency=1), (255, 255, 255), id="P transparent"),
            pytest.param(palette(transparency=0), (200, 100, 50), id="P another colour transparent"),
            pytest.param(palette(transparency=b"\xff\x80"), (227, 177, 152), id="P half-transparent"),
            pytest.param(plain("LA", (50, 255)), (50, 50, 50), id="LA opaque"),
            pytest.param(plain("LA", (50, 0)), (255, 255, 255), id="LA transparent"),
            pytest.param(plain("RGBA", (10, 20, 30, 255)), (10, 20, 30), id="RGBA opaque"),
            pytest.param(plain("RGBA", (10, 20, 30, 0)), (255, 255, 255), id="RGBA transparent"),
            pytest.param(plain("RGBA", (0, 0, 0, 128)), (127, 127, 127), id="RGBA half-transparent black"),
            pytest.param(plain("RGBA", (0, 0, 0, 128), "TIFF"), (127, 127, 127), id="RGBA TIFF"),
            pytest.param(plain("RGBA", (0, 0, 0, 0), "WEBP", lossless=True), (255, 255, 255), id="RGBA WebP"),
            pytest.param(plain("CMYK", (0, 0, 0, 0), "TIFF"), (255, 255, 255), id="CMYK without ink"),
            pytest.param(plain("CMYK", (255, 0, 0, 0), "TIFF"), (0, 255, 255), id="CMYK cyan"),
            pytest.param(plain("CMYK", (0, 0, 0, 255), "TIFF"), (0, 0, 0), id="CMYK black"),
            pytest.param(plain("RGB", (10, 20, 30), "BMP"), (10, 20, 30), id="BMP"),
            pytest.param(png(8, 2, b"\x05\x06\x07", (b"tRNS", b"\0\5\0\6\0\7")), (255, 255, 255), id="RGB tRNS"),
            pytest.param(png(8, 2, b"\x05\x06\x07", (b"tRNS", b"\0\5\0\6\0\x08")), (5, 6, 7), id="RGB tRNS elsewhere"),
            pytest.param(png(8, 0, b"\x05", (b"tRNS", b"\0\5")), (255, 255, 255), id="L tRNS"),
            pytest.param(png(16, 2, b"\xff\xff\x80\x00\x00\x00"), (255, 128, 0), id="16-bit RGB"),
            pytest.param(png(16, 6, b"\0\0\0\0\0\0\0\0"), (255, 255, 255), id="16-bit RGBA transparent"),
        ],
    )
    def test_one_colour_of_each_mode(self, data: bytes, colour: tuple[int, int, int]) -> None:
        assert only_colour(decode(data, AS_IT_IS)) == colour

    @pytest.mark.parametrize(("value", "expected"), [(0, 0), (257, 1), (32768, 128), (65278, 254), (65535, 255)])
    @pytest.mark.parametrize("form", ["PNG", "TIFF"])
    def test_16_bit_grey_is_scaled_not_cut(self, form: str, value: int, expected: int) -> None:
        data = encoded(Image.fromarray(np.full((16, 16), value, np.uint16)), form)
        assert only_colour(decode(data, AS_IT_IS)) == (expected,) * 3

    def test_a_big_endian_16_bit_picture_is_read_right(self) -> None:
        data = encoded(Image.fromarray(np.full((16, 16), 0x4000, ">u2")), "TIFF")
        assert data[:2] == b"MM"
        assert only_colour(decode(data, AS_IT_IS)) == (64,) * 3

    def test_a_16_bit_pgm_is_read_right(self) -> None:
        data = b"P5 16 16 65535\n" + (0x8000).to_bytes(2, "big") * 256
        assert only_colour(decode(data, AS_IT_IS)) == (128,) * 3

    def test_16_bit_grey_keeps_its_pattern(self) -> None:
        values = noise(16, 16, channels=1).astype(np.uint16)
        data = encoded(Image.fromarray(values * 257))
        assert np.array_equal(decode(data, AS_IT_IS), np.repeat(values[:, :, None], 3, axis=2))

    @pytest.mark.parametrize("value", [-1, 0, 200, 40_000, 65536, 2**31 - 1])
    def test_a_32_bit_integer_picture_is_refused_with_a_reason(self, value: int) -> None:
        reason = failure(encoded(Image.fromarray(np.full((16, 16), value, np.int32)), "TIFF"))
        assert "32-bit" in reason
        assert "brightness range" in reason

    @pytest.mark.parametrize("value", [0.0, 0.5, 300.0, float("nan")])
    def test_a_floating_point_picture_is_refused_with_a_reason(self, value: float) -> None:
        data = encoded(Image.fromarray(np.full((16, 16), value, np.float32)), "TIFF")
        assert "brightness range" in failure(data)

    @pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
    def test_of_several_frames_the_first_is_taken(self, form: str) -> None:
        first, second = Image.new("RGB", (16, 16), (255, 0, 0)), Image.new("RGB", (16, 16), (0, 0, 255))
        options = {"lossless": True} if form == "WEBP" else {}
        data = encoded(first, form, save_all=True, append_images=[second], **options)
        with Image.open(io.BytesIO(data)) as image:
            assert getattr(image, "n_frames", 1) == 2
        assert only_colour(decode(data, AS_IT_IS)) == (255, 0, 0)

    def test_transparency_is_laid_over_white_before_resizing(self) -> None:
        values = np.zeros((16, 16, 4), np.uint8)
        values[:, :8, 3] = 255  # the left half black, the right half black but fully transparent
        found = decode(encoded(Image.fromarray(values)), AS_IT_IS)
        assert found[:, :8].max() == 0
        assert found[:, 8:].min() == 255

    def test_an_icc_profile_changes_nothing(self) -> None:
        from PIL import ImageCms

        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
        assert only_colour(decode(plain("RGB", (10, 20, 30), icc_profile=profile), AS_IT_IS)) == (10, 20, 30)


@functools.cache
def photograph(form: str) -> bytes:
    return encoded(Image.fromarray(noise(120, 90)), form)


class TestBroken:
    @pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"])
    @pytest.mark.parametrize("part", [0.01, 0.1, 0.3, 0.5, 0.9, 0.98])
    def test_a_picture_that_breaks_off_is_one_failure_in_one_line(self, form: str, part: float) -> None:
        data = photograph(form)
        assert decode(data, USUAL).shape == (224, 224, 3)
        reason = failure(data[: int(part * len(data))])
        assert len(reason) > 10
        assert len(reason.splitlines()) == 1

    def test_zero_bytes_are_called_an_empty_file(self) -> None:
        assert failure(b"") == "empty file"

    @pytest.mark.parametrize(
        "data",
        [b"this is not a picture\n" * 20, b"\0", b"\n" * 1000, b"\xff\xd8\xff", b"<htm", b"{}", b"%PDF-1.4\n"],
    )
    def test_other_files_are_not_pictures(self, data: bytes) -> None:
        assert failure(data) == "not a picture in a format that is decoded here"

    @pytest.mark.parametrize("data", [b"<html></html>", b"\xef\xbb\xbf\r\n <!DOCTYPE html><html>"])
    def test_a_web_page_says_what_to_name_instead(self, data: bytes) -> None:
        assert failure(data).startswith("a web page, no picture: a server of http(s) has no folders, name an archive")

    @pytest.mark.parametrize("seed", range(20))
    def test_random_bytes_are_one_failure(self, seed: int) -> None:
        assert len(failure(np.random.default_rng(seed).bytes(2000)).splitlines()) == 1

    @pytest.mark.filterwarnings("ignore")  # Pillow's own remarks on broken metadata
    @pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"])
    def test_damaged_bytes_are_pixels_or_one_failure_never_another_error(self, form: str) -> None:
        generator = np.random.default_rng(3)
        reasons = []
        for _ in range(60):
            data = bytearray(photograph(form))
            for at in generator.integers(0, min(400, len(data)), 4):
                data[at] = generator.integers(256)
            try:
                assert decode(bytes(data), AS_IT_IS).shape == (16, 16, 3)
            except PictureError as error:
                reasons.append(str(error))
        assert all(len(reason.splitlines()) == 1 for reason in reasons)
        assert reasons or form == "BMP"  # a damaged BMP may pass for pixels

    def test_a_reason_of_several_lines_becomes_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object) -> None:
            raise ValueError("one\ntwo")

        data = plain("RGB", "red")
        monkeypatch.setattr(Image.Image, "crop", fail)
        assert failure(data) == "broken picture: one two"

    @pytest.mark.parametrize("error", [MemoryError(), MemoryError("out")])
    def test_too_little_memory_is_one_failure(self, monkeypatch: pytest.MonkeyPatch, error: MemoryError) -> None:
        def fail(*_: object) -> None:
            raise error

        data = plain("RGB", "red")
        monkeypatch.setattr(Image.Image, "crop", fail)
        assert "memory" in failure(data)

    def test_ctrl_c_is_not_swallowed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object) -> None:
            raise KeyboardInterrupt

        data = plain("RGB", "red")
        monkeypatch.setattr(Image.Image, "crop", fail)
        with pytest.raises(KeyboardInterrupt):
            decode(data, AS_IT_IS)

    def test_a_decompression_bomb_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        data = plain("L", 0)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 127)
        assert failure(data).startswith("too many pixels to be a photograph")

    def test_a_picture_that_only_claims_to_be_huge_is_refused_before_it_takes_memory(self) -> None:
        assert failure(b"P6 100000 100000 255 x").startswith("too many pixels to be a photograph")

    def test_a_photograph_of_200_megapixels_is_read_and_a_larger_or_progressive_one_is_not(self) -> None:
        halves = Image.new("L", (16_320, 12_240), 40)
        halves.paste(200, (8_160, 0, 16_320, 12_240))
        data = encoded(halves, "JPEG")
        del halves
        pixels = decode(data, USUAL)
        assert np.abs(pixels[:, 10:100].astype(int) - 40).max() <= 1
        assert np.abs(pixels[:, -100:-10].astype(int) - 200).max() <= 1
        assert (look(data).width, look(data).height) == (16_320, 12_240)
        size = data.index(b"\xff\xc0") + 5
        larger = data[:size] + struct.pack(">HH", 16_400, 16_400) + data[size + 4 :]
        assert failure(larger) == "too many pixels to be a photograph: 268,960,000, at most 268,435,456 are decoded"
        progressive = data.replace(b"\xff\xc0", b"\xff\xc2", 1)
        assert failure(progressive).startswith("too many pixels to be a photograph: 199,756,800, at most 178,956,970")


@pytest.fixture
def resized_to(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The sizes that pictures were resized to."""
    sizes: list[tuple[int, int]] = []
    original = Image.Image.resize

    def resize(self: Image.Image, size: tuple[int, int], *args: Any, **options: Any) -> Image.Image:
        sizes.append(size)
        return original(self, size, *args, **options)

    monkeypatch.setattr(Image.Image, "resize", resize)
    return sizes


class TestExtremeShapes:
    @pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
    @pytest.mark.parametrize("size", [(1, 1), (20000, 1), (1, 20000), (2, 30000), (1, 257), (257, 1)])
    def test_no_giant_picture_is_made_on_the_way(
        self, resized_to: list[tuple[int, int]], size: tuple[int, int], interpolation: str
    ) -> None:
        found = decode(encoded(Image.new("RGB", size, (10, 20, 30))), steps(interpolation))
        assert found.shape == (224, 224, 3)
        assert only_colour(found) == (10, 20, 30)
        assert resized_to
        assert max(width * height for width, height in resized_to) <= 4_000_000

    @pytest.mark.parametrize("wide", [True, False])
    def test_the_middle_of_a_long_strip_is_kept(self, wide: bool) -> None:
        values = np.zeros((2, 2001, 3), np.uint8)
        values[:, 1000] = 255
        if not wide:
            values = values.swapaxes(0, 1)
        found = decode(encoded(Image.fromarray(values)), steps())
        light = (found.mean(axis=2) > 127).mean(axis=0 if wide else 1)
        assert set(light[62:162].tolist()) <= {0.0, 1.0}
        assert light[112] == 1.0
        assert light[:20].max() == 0.0
        assert light[-20:].max() == 0.0

    def test_cutting_first_gives_almost_the_pixels_of_cutting_last(self, monkeypatch: pytest.MonkeyPatch) -> None:
        data = encoded(Image.fromarray(noise(3, 900)))
        early = decode(data, steps(resize=32, crop=28))
        monkeypatch.setattr(featcache.decode, "MAX_ASPECT", 10_000)
        late = decode(data, steps(resize=32, crop=28))
        assert np.abs(early.astype(int) - late.astype(int)).max() <= 3


HEIC = """
import io, sys
from PIL import Image
if sys.argv[1] == "without":
    sys.modules["pillow_heif"] = None
    content = b"\\0\\0\\0\\x18ftypheic\\0\\0\\0\\0mif1heic" + bytes(99)
else:
    import pillow_heif
    stream = io.BytesIO()
    pillow_heif.from_pillow(Image.new("RGB", (64, 48), (200, 30, 30))).save(stream)
    content = stream.getvalue()
from featcache.decode import decode
from featcache.errors import PictureError
from featcache.records import Preprocess
try:
    print(*decode(content, Preprocess(16, 16, "bilinear", (0, 0, 0), (1, 1, 1)))[8, 8])
except PictureError as error:
    print(error)
"""


def heic(how: str) -> str:
    """What decoding a HEIC picture gives in a process of its own: Pillow's plug-ins are for all of a process."""
    return subprocess.run([sys.executable, "-c", HEIC, how], capture_output=True, text=True, check=True).stdout.strip()


def test_a_heic_picture_is_decoded_where_pillow_heif_is_installed() -> None:
    pytest.importorskip("pillow_heif")
    assert np.abs(np.array(heic("with").split(), int) - [200, 30, 30]).max() <= 3


def test_a_heic_picture_names_what_to_install() -> None:
    assert heic("without") == "HEIC picture: install pillow-heif (pip install 'featcache[heic]')"


def test_what_is_decoded_as_it_is_opened_is_decoded_one_at_a_time_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(featcache.decode, "LARGE_PIXELS", 50 * 50)
    running: list[int] = []
    at_once: list[int] = []
    decoded = featcache.decode.image_of

    def slow(*given: Any) -> Image.Image:
        running.append(1)
        time.sleep(0.02)
        image = decoded(*given)
        at_once.append(len(running))
        return image

    def done(image: Image.Image, _size: tuple[int, int]) -> None:
        time.sleep(0.02)  # it is held until it has been used
        running.pop()

    monkeypatch.setattr(featcache.decode, "image_of", slow)
    stream = io.BytesIO()
    tifffile.imwrite(stream, np.zeros((3, 60, 60), np.uint16), photometric="rgb", planarconfig="separate")
    with ThreadPoolExecutor(4) as executor:
        list(executor.map(lambda _: featcache.decode._opened(stream.getvalue(), None, done), range(6)))
    assert at_once == [1] * 6


def test_large_pictures_are_decoded_one_at_a_time_and_small_ones_beside_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(featcache.decode, "LARGE_PIXELS", 50 * 50)
    at_once: list[int] = []
    running: list[int] = []
    convert = featcache.decode.to_rgb

    def slow(image: Image.Image) -> Image.Image:
        running.append(image.width)
        time.sleep(0.02)
        at_once.append(sum(width > 50 for width in running))
        running.remove(image.width)
        return convert(image)

    monkeypatch.setattr(featcache.decode, "to_rgb", slow)
    large, small = encoded(Image.fromarray(noise(60, 60))), encoded(Image.fromarray(noise(40, 40)))
    with ThreadPoolExecutor(8) as executor:
        assert (
            len({pixels.tobytes() for pixels in executor.map(lambda data: decode(data, USUAL), [large, small] * 8)})
            == 2
        )
    assert max(at_once) == 1


class TestLook:
    def test_the_size_is_that_of_the_upright_picture(self) -> None:
        turned = Image.Exif()
        turned[0x0112] = 6
        image = Image.fromarray(noise(60, 40))
        assert (look(encoded(image)).width, look(encoded(image)).height) == (60, 40)
        found = look(encoded(image, "JPEG", exif=turned))
        assert (found.width, found.height) == (40, 60)

    def test_a_draft_has_the_size_of_the_file(self) -> None:
        data = encoded(Image.fromarray(noise(900, 600)), "JPEG")
        _, found = decode_and_look(data, steps(resize=32, crop=28), ["original"], draft=True)
        assert (found.width, found.height) == (900, 600)

    def test_one_colour_is_wholly_flat(self) -> None:
        assert look(plain("RGB", (10, 200, 30))).flat == 1.0

    def test_flat_is_the_share_of_the_commonest_colour(self) -> None:
        pixels = np.full((64, 64, 3), 240, np.uint8)
        pixels[:16] = (10, 20, 200)
        found = look(encoded(Image.fromarray(pixels)))
        assert found.flat == pytest.approx(0.75, abs=0.02)

    def test_noise_is_not_flat_and_pixels_are_those_of_decode(self) -> None:
        data = encoded(Image.fromarray(noise(96, 96)))
        (pixels,), found = decode_and_look(data, AS_IT_IS, ["original", "flip"])
        assert found.flat < 0.2
        np.testing.assert_array_equal(pixels[0], decode(data, AS_IT_IS))
        np.testing.assert_array_equal(pixels[1], decode(data, AS_IT_IS)[:, ::-1])

    def test_what_is_no_picture_is_refused(self) -> None:
        with pytest.raises(PictureError, match="not a picture"):
            look(b"no picture")
