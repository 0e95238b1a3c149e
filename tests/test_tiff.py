"""TIFF: every layout of a known picture is decoded to it, or refused with a reason; keys tell right from wrong ones."""

from __future__ import annotations

import hashlib
import io
import os
import sqlite3
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image
from tiff_layouts import HEIGHT, WIDTH, Layout, Page, file, layouts, pixels_of, samples_of, written

from featcache.api import Options, extract
from featcache.decode import decode, decode_and_look, look, to_rgb
from featcache.errors import DatasetError, PictureError, UsageError
from featcache.records import Preprocess
from featcache.records.reading import Reading
from featcache.sources.keys import content_key

Pixels = npt.NDArray[Any]

ZOO = {layout.name: layout for layout in layouts()}
LITE0 = ("--backbone", "efficientnet_lite0")
KINDS = sorted({(layout.kind, layout.bits) for layout in ZOO.values()})


def stored(data: bytes, size: tuple[int, int] = (WIDTH, HEIGHT), reading: str | None = None) -> Pixels:
    """Decode a file whose longer edge is not cut: as many pixels as it has."""
    width, height = size
    edge = max(width, height)
    steps = Preprocess(min(width, height), edge, "nearest", (0, 0, 0), (1, 1, 1))
    seen = decode(data, steps, reading=reading)
    left, top = (edge - width) // 2, (edge - height) // 2
    return seen[top : top + height, left : left + width].astype(np.float64)


def reason(data: bytes) -> str:
    with pytest.raises(PictureError) as caught:
        look(data)
    return str(caught.value)


def sizes(layout: Layout) -> tuple[int, int]:
    return (HEIGHT, WIDTH) if layout.orientation > 4 else (WIDTH, HEIGHT)


@pytest.mark.parametrize(("kind", "bits"), KINDS)
def test_no_layout_of_a_picture_is_decoded_to_another_one(kind: str, bits: int) -> None:
    for layout in (one for one in ZOO.values() if (one.kind, one.bits) == (kind, bits)):
        values = samples_of(layout)
        away = np.abs(stored(written(layout, values), sizes(layout)) - pixels_of(layout, values)).max()
        # Pillow cuts 16 bits to 8 before it multiplies with alpha or black.
        assert away <= (3 if bits > 8 and (layout.extra or kind == "cmyk") else 1.01), layout.name


def test_the_zoo_is_large_and_an_independent_reader_sees_the_same_numbers_in_it() -> None:
    assert len(ZOO) > 1000
    for layout in list(ZOO.values())[::13]:
        values = samples_of(layout)
        if layout.fill == 2 and layout.bits > 8:
            continue
        found = tifffile.imread(io.BytesIO(written(layout, values)), key=0)
        found = found.reshape(layout.samples, HEIGHT, WIDTH).transpose(1, 2, 0) if layout.planes else found
        assert (found.reshape(values.shape) == values).all(), layout.name


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_key_is_a_new_one_where_pillow_gives_another_picture_and_only_there() -> None:
    seen = set()
    for layout in list(ZOO.values())[::3]:
        values = samples_of(layout)
        data = written(layout, values)
        is_old_key = content_key(data) == hashlib.sha256(data).digest()
        try:
            with Image.open(io.BytesIO(data)) as image:
                pillows = np.asarray(to_rgb(image)).astype(np.float64)
        except (OSError, PictureError, ValueError):
            continue  # it has no old vectors
        is_right = np.abs(pillows - pixels_of(layout, values)).max() <= 3
        assert is_old_key == is_right, layout.name
        assert not is_old_key or (stored(data, sizes(layout)) == pillows).all(), layout.name
        seen.add(is_right)
    assert seen == {True, False}


def by_an_old_version(monkeypatch: pytest.MonkeyPatch, extract: Callable[[], Any], catalog: Path) -> None:
    """Extract as versions did that gave all TIFF files to Pillow, with the catalog they left."""
    with monkeypatch.context() as patch:
        patch.setattr("featcache.sources.keys.is_as_ever", lambda data: True)
        patch.setattr("featcache.decode.is_tiff", lambda data: False)
        extract()
    connection = sqlite3.connect(catalog)
    connection.executescript("DROP TABLE pages; PRAGMA user_version = 4")
    connection.close()


def test_of_an_old_cache_what_was_wrong_is_computed_again_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., Any]
) -> None:
    files = {"wrong.tif": Layout("rgb", 16, planes=True), "right.tif": Layout("rgb", 16), "grey.tif": Layout("grey", 8)}
    for name, layout in files.items():
        (tmp_path / "photos" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(written(layout, samples_of(layout)))
    (tmp_path / "photos" / "raw.tif").write_bytes(reduced())
    Image.fromarray(SMOOTH).save(tmp_path / "photos" / "plain.jpg")
    for path in (tmp_path / "photos").iterdir():
        os.utime(path, (10**9, 10**9))
    catalog = tmp_path / "cache" / "catalog.sqlite"
    by_an_old_version(monkeypatch, lambda: run("extract", "photos", *LITE0), catalog)
    found = run("extract", "photos", *LITE0, "--json").json
    assert (found["reused"], found["computed"], found["unreadable"]) == (3, 1, 1)
    again = run("extract", "photos", *LITE0, "--json").json
    assert (again["reused"], again["computed"], again["unreadable"]) == (4, 0, 1)
    assert run("cache", "verify", "--json").code == 0


SMOOTH = np.stack(np.broadcast_arrays(*np.ogrid[20:84, 10:106], 70), axis=2).astype(np.uint8)
GREY = np.ascontiguousarray(SMOOTH[..., 1])
BITS = np.random.default_rng(1).random((64, 96)) > 0.5


def as_grey(values: Pixels) -> Pixels:
    return np.repeat(values[..., None], 3, axis=2)


def by_pillow(picture: Image.Image, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, "TIFF", **options)
    return out.getvalue()


def by_tifffile(values: Pixels, **options: Any) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, values, **options)
    return out.getvalue()


def tags(**more: Any) -> dict[int, tuple[str, list[Any]]]:
    """Return the tags of an RGB picture of 96 x 64 pixels in one strip; others as `t262=("H", [6])`."""
    plain: dict[int, tuple[str, list[Any]]] = {
        256: ("L", [96]),
        257: ("L", [64]),
        258: ("H", [8] * 3),
        259: ("H", [1]),
        262: ("H", [2]),
        277: ("H", [3]),
        278: ("L", [64]),
        284: ("H", [1]),
    }
    return plain | {int(name[1:]): value for name, value in more.items()}


def ycbcr() -> Pixels:
    return np.asarray(Image.fromarray(SMOOTH).convert("YCbCr"))


def old_jpeg() -> bytes:
    out = io.BytesIO()
    Image.fromarray(SMOOTH).save(out, "JPEG", quality=95)
    jpeg = out.getvalue()
    more = {"t259": ("H", [6]), "t262": ("H", [6]), "t530": ("H", [2, 2])}
    return file([Page(tags(**more, t513=("L", [8]), t514=("L", [len(jpeg)])), [jpeg])])


def in_16_bits(**more: Any) -> bytes:
    """Twelve bits in words of 16."""
    words = (GREY.astype(np.uint16) * 16).astype("<u2").tobytes()
    return file([Page(tags(**{"t262": ("H", [1]), "t277": ("H", [1])} | more), [words])])


FAX = {f"fax {name}": by_pillow(Image.fromarray(BITS), compression=name) for name in ("tiff_ccitt", "group3", "group4")}
READ: dict[str, tuple[bytes, Pixels, float]] = {
    **{name: (data, as_grey(BITS) * 255.0, 0) for name, data in FAX.items()},
    "jpeg": (by_tifffile(SMOOTH, photometric="rgb", compression="jpeg"), SMOOTH, 6),
    "jpeg 4:2:0 in tiles": (
        by_tifffile(SMOOTH, photometric="rgb", compression="jpeg", subsampling=(2, 2), tile=(32, 32)),
        SMOOTH,
        8,
    ),
    "jpeg in planes": (
        by_tifffile(np.moveaxis(SMOOTH, 2, 0), photometric="rgb", compression="jpeg", planarconfig="separate"),
        SMOOTH,
        6,
    ),
    "jpeg grey": (by_tifffile(GREY, photometric="minisblack", compression="jpeg"), as_grey(GREY), 4),
    "jpeg cmyk": (by_pillow(Image.fromarray(SMOOTH).convert("CMYK"), compression="jpeg"), SMOOTH, 6),
    "jpeg of the old kind": (old_jpeg(), SMOOTH, 8),
    "ycbcr": (by_pillow(Image.fromarray(SMOOTH).convert("YCbCr")), SMOOTH, 3),
    "ycbcr lzw": (by_pillow(Image.fromarray(SMOOTH).convert("YCbCr"), compression="tiff_lzw"), SMOOTH, 3),
    "12 of 16 by the largest value": (
        by_tifffile(GREY.astype(np.uint16) * 16, photometric="minisblack", extratags=[(281, 3, 1, 4095, True)]),
        as_grey(GREY),
        1,
    ),
    "12 of 16 by the size": (in_16_bits(t258=("H", [12])), as_grey(GREY), 1),
    "12 of 16 by OME": (
        by_tifffile(
            GREY.astype(np.uint16) * 16,
            photometric="minisblack",
            metadata=None,
            description='<OME><Image><Pixels DimensionOrder="XYZCT" SignificantBits="12" Type="uint16"/></Image></OME>',
        ),
        as_grey(GREY),
        1,
    ),
    "ome": (by_tifffile(np.stack([GREY, GREY[::-1]]), ome=True, metadata={"axes": "ZYX"}), as_grey(GREY), 0),
    "imagej": (
        by_tifffile(np.stack([GREY, GREY[::-1]]).astype(np.uint16) * 257, imagej=True, metadata={"axes": "ZYX"}),
        as_grey(GREY),
        0,
    ),
    "pyramid": (
        file([Page(tags(), [SMOOTH.tobytes()], below=[Page(tags(t254=("L", [1])), [SMOOTH.tobytes()])])]),
        SMOOTH,
        0,
    ),
    "palette of 8 bits": (
        file(
            [
                Page(
                    tags(t258=("H", [8]), t262=("H", [3]), t277=("H", [1]), t320=("H", [*range(256)] * 3)),
                    [GREY.tobytes()],
                )
            ]
        ),
        as_grey(GREY),
        0,
    ),
}


@pytest.mark.parametrize("name", READ)
def test_what_other_programs_write_is_the_picture_that_they_were_given(name: str) -> None:
    data, wanted, most = READ[name]
    assert np.abs(stored(data, (96, 64)) - wanted).max() <= most


def ratios(*numbers: int | tuple[int, int]) -> tuple[str, list[Any]]:
    return "LL", [part for number in numbers for part in (number if isinstance(number, tuple) else (number, 1))]


VIDEO = ratios(15, 235, 128, 240, 128, 240)
BT_709 = ratios((2126, 10_000), (7152, 10_000), (722, 10_000))
MEANT = {
    "as always": {},
    "as always, said": {"t529": ratios((299, 1000), (587, 1000), (114, 1000)), "t532": ratios(0, 255, *[128, 255] * 2)},
    "black of 15": {"t532": VIDEO},
    "black of 15, in whole numbers": {"t532": ("L", [15, 235, 128, 240, 128, 240])},
    "other coefficients": {"t529": BT_709},
    "both": {"t529": BT_709, "t532": VIDEO},
    "white first": {"t532": ratios(235, 15, *[128, 240] * 2)},
}


def in_ycbcr(values: Pixels, **more: Any) -> Page:
    return Page(tags(t262=("H", [6]), t530=("H", [1, 1]), **more), [values.tobytes()])


@pytest.mark.parametrize("name", MEANT)
def test_ycbcr_is_black_white_and_coloured_as_the_file_says(name: str) -> None:
    greys = np.stack(np.broadcast_arrays(np.arange(64)[:, None] * 4, np.full(96, 128), 128), axis=2).astype(np.uint8)
    is_video = "15" in name or name == "both"
    shares = (greys[..., 0].astype(float) - 15) / 220 if is_video else greys[..., 0] / 255
    shares = 1 - (greys[..., 0].astype(float) - 15) / 220 if name == "white first" else shares
    found = stored(file([in_ycbcr(greys, **MEANT[name])]), (96, 64))
    assert (found == as_grey(np.floor(shares.clip(0, 1) * 255 + 0.5))).all()
    for values in (greys, ycbcr()):
        data = file([in_ycbcr(values, **MEANT[name])])
        witness = imagecodecs.tiff_decode(data, asrgb=True)[..., :3]
        assert np.abs(stored(data, (96, 64)) - witness).max() <= 3  # it cuts off fractions on the way
        two = file([in_ycbcr(255 - values), in_ycbcr(values, **MEANT[name])])
        assert (stored(two, (96, 64), "page 2") == stored(data, (96, 64))).all()
    assert (content_key(data) == hashlib.sha256(data).digest()) == ("always" in name)


@pytest.mark.parametrize(
    "more",
    [
        {"t532": ratios(15, 15, 128, 240, 128, 240)},
        {"t532": ratios((15, 0), 235, 128, 240, 128, 240)},
        {"t532": ratios(15, 235)},
        {"t529": ratios(0, 1, 0)},
    ],
)
def test_ycbcr_of_which_nobody_knows_black_and_white_is_broken(more: dict[str, Any]) -> None:
    assert "broken TIFF: " in reason(file([in_ycbcr(SMOOTH, **more)]))


def reduced(*more: tuple[int, tuple[str, list[Any]]]) -> bytes:
    """What raw files begin with: a thumbnail, and the full picture below it."""
    below = [Page(tags(t262=("H", [32803])), [SMOOTH.tobytes()])]
    return file([Page(tags(t254=("L", [1])) | dict(more), [SMOOTH.tobytes()], below=below)])


RAW = rb"raw file of a camera \(.*\), which is not developed here"
REFUSED: dict[str, tuple[bytes, str]] = {
    **{
        f"without a range: {np.dtype(kind)}": (
            by_tifffile(GREY.astype(kind), photometric="minisblack"),
            "without a known brightness range",
        )
        for kind in (np.int8, np.int16, np.uint32, np.int32, np.float16, np.float32, np.float64, np.uint64)
    },
    "channels": (by_tifffile(np.stack([GREY] * 5), photometric="minisblack", planarconfig="separate"), "5 channels"),
    "channels packed": (
        by_tifffile(np.stack([GREY] * 5), photometric="minisblack", planarconfig="separate", compression="zlib"),
        "5 channels",
    ),
    "four samples, untold": (
        file([Page(tags(t258=("H", [8] * 4), t277=("H", [4])), [SMOOTH.tobytes() + GREY.tobytes()])]),
        "4 samples a pixel that does not say",
    ),
    "lab": (file([Page(tags(t262=("H", [8])), [SMOOTH.tobytes()])]), r"CIE L\*a\*b"),
    "ycbcr subsampled": (
        file([Page(tags(t262=("H", [6]), t530=("H", [2, 2])), [SMOOTH.tobytes()])]),
        "photometric interpretation 6",
    ),
    "jpeg 2000": (by_tifffile(SMOOTH, photometric="rgb", compression="jpeg2000"), "JPEG 2000, which is not decoded"),
    "no word on colours": (
        file([Page({tag: value for tag, value in tags().items() if tag != 262}, [SMOOTH.tobytes()])]),
        "does not say what its numbers mean",
    ),
    "values beyond the depth": (
        by_tifffile(np.full((64, 96), 4096, np.uint16), photometric="minisblack", extratags=[(281, 3, 1, 4095, True)]),
        "says that white is 4,095, and holds 4,096",
    ),
    "DNG": (reduced((50706, ("B", [1, 4, 0, 0]))), r"raw file of a camera \(DNG\)"),
    "NEF": (reduced(), r"raw file of a camera \(NEF"),
    "thumbnail": (file([Page(tags(t254=("L", [1])), [SMOOTH.tobytes()])]), "begins with a thumbnail"),
    "RAF": (b"FUJIFILMCCD-RAW 0201" + bytes(200), "Fujifilm RAF"),
    "CR3": (b"\0\0\0\x18ftypcrx " + bytes(200), "Canon CR3"),
    "ORF": (b"IIRO" + bytes(200), "Olympus ORF"),
    "cut": (file([Page(tags(), [SMOOTH.tobytes()])])[:-40], "broken TIFF"),
    "few strips": (
        file([Page(tags(t278=("L", [7])), [SMOOTH.tobytes()])]),
        "1 strips or tiles, where its",
    ),
    "tag twice": (
        file([Page(tags(), [SMOOTH.tobytes()])]).replace(b"\x1c\1\3\0", b"\x15\1\3\0"),
        "tag 277 twice",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_known_for_sure_is_refused_with_its_reason(name: str) -> None:
    data, said = REFUSED[name]
    with pytest.raises(PictureError, match=said):
        look(data)


def test_a_packed_strip_is_unpacked_no_further_than_its_pixels() -> None:
    bomb = zlib.compress(bytes(2**28), 9)  # 256 KiB
    data = file([Page(tags(t258=("H", [12] * 3), t259=("H", [8])), [bomb])])
    started = time.perf_counter()
    assert look(data).flat == 1
    assert time.perf_counter() - started < 1


HEAT = np.linspace(-40, 60, 64 * 96).reshape(64, 96)
CHANNELS = np.stack([GREY, GREY[::-1], 255 - GREY, GREY[:, ::-1]])


def share(values: Pixels, low: float, high: float) -> Pixels:
    return as_grey(np.clip((values.astype(np.float64) - low) / (high - low), 0, 1) * 255)


@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
@pytest.mark.parametrize("predictor", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["f2", "f4", "f8", "i2", "i4", "u4"])
def test_a_range_tells_which_numbers_are_black_and_white(
    kind: str, order: str, predictor: bool, compression: str | None
) -> None:
    values = (HEAT + 50 * (kind == "u4")).astype(kind)
    is_packed = predictor and compression is not None
    data = by_tifffile(values, compression=compression, predictor=is_packed, byteorder=order, tile=(32, 32))
    assert np.abs(stored(data, (96, 64), "range -10,30") - share(values, -10, 30)).max() <= 1
    low, high = np.percentile(values, (0.5, 99.5))
    assert np.abs(stored(data, (96, 64), "range percentile") - share(values, low, high)).max() <= 1


def test_a_range_of_the_type_is_all_of_it_and_ten_bits_in_sixteen_have_one_of_their_own() -> None:
    signed = by_tifffile(np.arange(-(2**15), 2**15, 32, dtype=np.int16).reshape(32, 64), photometric="minisblack")
    wanted = share(np.arange(0, 2**16, 32).reshape(32, 64), 0, 65535)
    assert np.abs(stored(signed, (64, 32), "range dtype") - wanted).max() <= 1
    tenth = by_tifffile(GREY.astype(np.uint16) * 4, photometric="minisblack")
    assert np.abs(stored(tenth, (96, 64), "range 0,1020") - as_grey(GREY)).max() <= 1
    assert stored(tenth, (96, 64)).max() <= 4
    png = io.BytesIO()
    Image.fromarray(GREY.astype(np.uint16) * 4).save(png, "PNG")
    assert np.abs(stored(png.getvalue(), (96, 64), "range 0,1020") - as_grey(GREY)).max() <= 1
    assert (stored(by_tifffile(SMOOTH), (96, 64), "range 0,10") == SMOOTH).all()


@pytest.mark.parametrize("planes", ["contig", "separate"])
def test_chosen_channels_are_grey_or_red_green_and_blue(planes: Any) -> None:
    values = CHANNELS if planes == "separate" else np.moveaxis(CHANNELS, 0, 2)
    data = by_tifffile(values, photometric="minisblack", planarconfig=planes, compression="lzw")
    assert (stored(data, (96, 64), "channels 2") == as_grey(CHANNELS[2])).all()
    assert (stored(data, (96, 64), "channels 3,0,1") == np.moveaxis(CHANNELS[[3, 0, 1]], 0, 2)).all()
    with pytest.raises(PictureError, match="4 channels, from 0 on, which has no channel 4"):
        decode(data, Preprocess(8, 8, "nearest", (0, 0, 0), (1, 1, 1)), reading="channels 4")


@pytest.mark.parametrize(
    "options", [{}, {"compression": "jpeg"}, {"compression": "lzw", "bigtiff": True, "byteorder": ">"}]
)
def test_a_chosen_page_is_that_page_and_no_thumbnail(options: dict[str, Any]) -> None:
    out = io.BytesIO()
    with tifffile.TiffWriter(out, **{k: v for k, v in options.items() if k != "compression"}) as writer:
        for page in (SMOOTH, SMOOTH[:32, :32], SMOOTH[::-1]):
            writer.write(page, photometric="rgb", compression=options.get("compression"), subfiletype=len(page) == 32)
    assert np.abs(stored(out.getvalue(), (96, 64), "page 2") - SMOOTH[::-1]).max() <= 6
    with pytest.raises(PictureError, match="TIFF of 2 pages, which has no page 3"):
        decode(out.getvalue(), Preprocess(8, 8, "nearest", (0, 0, 0), (1, 1, 1)), reading="page 3")


def test_numbers_that_are_none_have_no_brightness() -> None:
    data = by_tifffile(np.where(HEAT > 59, np.nan, HEAT).astype(np.float32), photometric="minisblack")
    for limits in ("range 0,1", "range percentile", "range dtype"):
        with pytest.raises(PictureError, match="infinite or none"):
            decode(data, Preprocess(8, 8, "nearest", (0, 0, 0), (1, 1, 1)), reading=limits)


def test_what_was_said_of_tiff_files_is_part_of_the_fingerprint_and_used_again(
    tmp_path: Path, run: Callable[..., Any]
) -> None:
    noise = np.random.default_rng(3).normal(0, 10, (6, 64, 96))
    for label, tint in (("warm", 1), ("cold", -1)):
        for at in range(6):
            path = tmp_path / "heat" / label / f"{at}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(path, ((HEAT + noise[at]) * tint).astype(np.float32), photometric="minisblack")
    with pytest.raises(DatasetError, match="say it with --range"):
        extract("heat", Options("efficientnet_lite0"))
    first = run("extract", "heat", *LITE0, "--range", "-80,130", "--json").json
    assert (first["computed"], first["unreadable"], first["plain"]) == (12, 0, 0)
    other = run("extract", "heat", *LITE0, "--range", "percentile", "--json").json
    assert len({first["fingerprint"], other["fingerprint"]}) == 2
    fitted = run("fit", "heat", "--json")
    assert fitted.code == 0, fitted.err
    assert "range percentile" in fitted.err
    assert run("predict", fitted.json["model"], "heat", "--json").code == 0


@pytest.mark.parametrize(
    "text", ["range 3,1", "range all", "range 1", "range nan,1", "channels 0,1", "page 0", "page x", "zoom 2"]
)
def test_what_makes_no_sense_of_tiff_files_is_wrong_usage(text: str) -> None:
    with pytest.raises(UsageError):
        Reading.of(text)


def test_what_is_said_of_tiff_files_is_read_back_as_it_was() -> None:
    for said in (
        Reading(),
        Reading((-0.1, 1e9), (2, 0, 1), 3),
        Reading("percentile"),
        Reading(None, (4,)),
        Reading(page="all"),
    ):
        assert Reading.of(said.text) == said


@pytest.mark.slow
def test_split_audit_and_report_see_the_pictures_that_were_extracted(tmp_path: Path, run: Callable[..., Any]) -> None:
    for number in range(12):
        path = tmp_path / "heat" / "ab"[number % 2] / f"{number}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(by_tifffile(np.roll(HEAT, 7 * number, axis=1).astype(np.float32)))
    assert run("split", "heat", "--out", "none.csv").code == 1
    found = run("split", "heat", "--range", "-40,60", "--out", "heat.csv", "--json").json
    assert (found["pictures"], found["unreadable"]) == (12, 0)
    run("extract", "heat.csv", *LITE0, "--range", "-40,60")
    page = run("report", "--out", "report.html", "--json")
    assert page.code == 0, page.err
    assert (tmp_path / "report.html").read_text().count("UklGR") >= 12  # as WEBP begins in base64
    from featcache import FeatureExtractor

    paths = [str(path) for path in sorted((tmp_path / "heat" / "a").iterdir())]
    network = FeatureExtractor("efficientnet_lite0", cache=tmp_path / "cache", reading="range -40,60")
    vectors = network.fit_transform(paths)
    kept = run("extract", "heat.csv", *LITE0, "--range", "-40,60", "--json").json
    assert (network.fingerprint_, vectors.shape) == (kept["fingerprint"], (6, 1280))


def test_what_pictures_look_like_is_kept_for_each_range(tmp_path: Path, run: Callable[..., Any]) -> None:
    for number in range(3):
        path = tmp_path / "heat" / f"{number}.tif"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(by_tifffile(np.roll(HEAT, 7 * number, axis=1).astype(np.float32)))
    plain = [
        run("extract", "heat", *LITE0, "--range", limits, "--json").json["plain"]
        for limits in ("9000,9001", "-40,60", "9000,9001")
    ]
    assert plain == [3, 0, 3]


def ome(values: Pixels, axes: str, **more: Any) -> bytes:
    """Return a stack as tifffile writes OME-TIFF, in the order of its axes."""
    return by_tifffile(values, ome=True, photometric="minisblack", metadata={"axes": axes}, **more)


def described(text: str, pages: int = 4) -> bytes:
    """Return a TIFF of grey pages whose first one has this description."""
    out = io.BytesIO()
    with tifffile.TiffWriter(out) as writer:
        for page in range(pages):
            options: dict[str, Any] = {"description": text} if page == 0 else {}
            writer.write(CHANNELS[page % 4], photometric="minisblack", metadata=None, **options)
    return out.getvalue()


STACK = np.stack([CHANNELS, CHANNELS[::-1], 255 - CHANNELS])  # depths of four channels


@pytest.mark.parametrize("compression", [None, "lzw"])
@pytest.mark.parametrize("axes", ["ZCYX", "CZYX", "TCYX", "CTYX"])
def test_channels_that_are_pages_are_planes_of_one_picture_as_ome_xml_says(axes: str, compression: Any) -> None:
    data = ome(STACK if axes[1] == "C" else np.swapaxes(STACK, 0, 1), axes, compression=compression)
    for depth in range(3):
        for channels in ((3, 0, 1), (2, 2, 0)):
            said = f"channels {','.join(map(str, channels))}; page {depth + 1}"
            expected = np.moveaxis(STACK[depth][list(channels)], 0, 2)
            assert (stored(data, (96, 64), said) == expected).all(), (axes, said)
        assert (stored(data, (96, 64), f"channels 2; page {depth + 1}") == as_grey(STACK[depth][2])).all()
    with pytest.raises(PictureError, match="4 channels, from 0 on, which has no channel 4"):
        stored(data, reading="channels 4")
    with pytest.raises(PictureError, match="3 pages of several channels, which has no page 4"):
        stored(data, reading="channels 0; page 4")


def test_channels_that_are_pages_are_planes_of_one_picture_as_imagej_says() -> None:
    data = by_tifffile(STACK, imagej=True, metadata={"axes": "ZCYX"})
    assert (stored(data, (96, 64), "channels 3,0,1; page 2") == np.moveaxis(STACK[1][[3, 0, 1]], 0, 2)).all()


def test_a_range_is_of_all_channels_together_be_they_pages_or_samples() -> None:
    deep = np.stack([HEAT, HEAT * 3, 100 - HEAT]).astype(np.float32)
    one = by_tifffile(deep, photometric="minisblack", planarconfig="separate")
    for said in ("range 0,90; channels 0,2,1", "range percentile; channels 0,1,2"):
        assert (stored(ome(deep, "CYX"), (96, 64), said) == stored(one, (96, 64), said)).all()


def test_the_bits_that_the_first_page_states_are_those_of_all_pages() -> None:
    twelve = np.stack([CHANNELS[0], CHANNELS[1]]).astype(np.uint16) * 16
    text = '<OME xmlns="x"><Image><Pixels SignificantBits="12" SizeZ="2" DimensionOrder="XYZCT"/></Image></OME>'
    out = io.BytesIO()
    with tifffile.TiffWriter(out) as writer:
        for page, described in zip(twelve, (text, None), strict=True):
            writer.write(page, photometric="minisblack", metadata=None, description=described)
    for said, page in ((None, 0), ("page 2", 1)):
        assert np.abs(stored(out.getvalue(), (96, 64), said) - as_grey(CHANNELS[page])).max() <= 1


OME = '<OME xmlns="x" UUID="urn:1"><Image><Pixels {}>{}</Pixels></Image></OME>'
TWO = 'SizeC="2" SizeZ="2" SizeT="1" DimensionOrder="XYCZT"'
IN_TURN = "".join(f'<TiffData IFD="{at}" FirstC="{1 - at % 2}" FirstZ="{at // 2}"/>' for at in range(4))


def test_the_page_of_a_channel_is_the_one_that_ome_xml_names() -> None:
    data = described(OME.format(TWO, IN_TURN))
    assert (stored(data, (96, 64), "channels 0; page 2") == as_grey(CHANNELS[3])).all()
    assert (stored(data, (96, 64), "channels 1") == as_grey(CHANNELS[0])).all()


WRONG = {
    "too few pages": (described(OME.format(TWO, IN_TURN), 3), "names the 4th"),
    "a plane without a page": (described(OME.format(TWO, '<TiffData IFD="0"/>')), "no page for channel 1, depth 0"),
    "another file": (
        described(OME.format(TWO, '<TiffData><UUID FileName="b.tif">urn:2</UUID></TiffData>')),
        "a channel is in another file, 'b.tif'",
    ),
    "sizes": (described(OME.format(TWO.replace('"2"', '"0"'), "")), "sizes"),
    "many planes": (described(OME.format(TWO.replace('C="2"', 'C="99999999"'), "")), "more than 65,536 planes"),
    "pages again and again": (
        described(OME.format(TWO, '<TiffData PlaneCount="4"/>' * 2)),
        "pages for more than its 4 planes",
    ),
    "order": (described(OME.format(TWO.replace("CZT", "CCT"), "")), "in the order CCT"),
    "document type": (
        described('<!DOCTYPE a [<!ENTITY b "c">]>' + OME.format(TWO, "&b;")),
        "has a document type",
    ),
    "no xml": (described(OME.format(TWO, "</Image>")), "broken OME-TIFF: mismatched tag"),
    "imagej": (described("ImageJ=1.54\nchannels=4\nslices=9\n"), "names the 36th"),
    "imagej, many": (described("ImageJ=1.54\nchannels=999999\nslices=999999\n"), "slices and frames"),
}


@pytest.mark.parametrize("name", WRONG)
def test_channels_of_which_nobody_knows_the_page_are_refused_with_the_reason(name: str) -> None:
    data, said = WRONG[name]
    with pytest.raises(PictureError, match=said):
        stored(data, (96, 64), "channels 0,1,0")
    stored(data, (96, 64))  # without channels the description does not matter


def test_channels_on_pages_of_different_sizes_are_refused() -> None:
    out = io.BytesIO()
    with tifffile.TiffWriter(out) as writer:
        for page in (CHANNELS[0], CHANNELS[1][:32]):
            writer.write(page, photometric="minisblack", metadata=None, description=OME.format('SizeC="2"', ""))
    with pytest.raises(PictureError, match="pages of different sizes or kinds"):
        stored(out.getvalue(), (96, 64), "channels 0,1,0")


def test_of_all_pages_the_mean_of_their_vectors_is_the_vector_of_the_file(
    tmp_path: Path, run: Callable[..., Any]
) -> None:
    pictures = {name: [Image.fromarray(np.roll(SMOOTH, 8 * at, 1)) for at in range(of)] for name, of in PAGES.items()}
    for name, pages in pictures.items():
        for folder in ("stacks", "pages"):
            (tmp_path / folder / name[0]).mkdir(parents=True, exist_ok=True)
        pages[0].save(tmp_path / "stacks" / name[0] / f"{name}.tif", save_all=True, append_images=pages[1:])
        for at, page in enumerate(pages):
            page.save(tmp_path / "pages" / name[0] / f"{name}-{at}.tif")
    assert run("extract", "pages", *LITE0).code == 0
    first = run("extract", "stacks", *LITE0)
    assert "2 files have several, of which one is taken" in first.out
    done = run("extract", "stacks", *LITE0, "--pages", "all", "--batch-size", "3")
    assert "2 files have several, of which all are taken" in done.out
    assert f"computed     {len(PAGES)}" in done.out
    single = {Path(path).stem: vector for path, vector in vectors(run, "pages").items()}
    for path, vector in vectors(run, "stacks").items():
        name = Path(path).stem
        expected = np.mean([single[f"{name}-{at}"] for at in range(PAGES[name])], axis=0)
        np.testing.assert_allclose(vector, expected, rtol=0, atol=1e-5)
    assert run("extract", "stacks", *LITE0, "--pages", "all", "--json").json["reused"] == len(PAGES)


PAGES = {"a1": 5, "b1": 1, "b2": 2}


def vectors(run: Callable[..., Any], dataset: str) -> dict[str, Pixels]:
    """Return the vectors of a dataset as last extracted, by path."""
    found = run("cache", "export", f"{dataset}.npz", "--dataset", dataset, "--json")
    assert found.code == 0, found.err
    with np.load(f"{dataset}.npz") as arrays:
        return dict(zip(arrays["paths"].tolist(), arrays["features"], strict=True))


def test_a_page_that_is_broken_makes_its_file_unreadable_where_all_are_taken() -> None:
    pages = [Image.fromarray(SMOOTH), Image.fromarray(SMOOTH[:, :48])]
    out = io.BytesIO()
    pages[0].save(out, "TIFF", save_all=True, append_images=pages[1:])
    broken = out.getvalue()[:-2000]
    steps = Preprocess(8, 8, "nearest", (0, 0, 0), (1, 1, 1))
    found, _ = decode_and_look(out.getvalue(), steps, ["original", "flip"], reading="page all")
    assert [len(views) for views in found] == [2, 2]
    with pytest.raises(PictureError):
        decode_and_look(broken, steps, ["original"], reading="page all")


def test_of_a_file_with_very_many_pages_one_has_to_be_named() -> None:
    data = described("", 1001)
    steps = Preprocess(8, 8, "nearest", (0, 0, 0), (1, 1, 1))
    with pytest.raises(PictureError, match="1,001 pages, of which at most 1,000 are all taken"):
        decode_and_look(data, steps, ["original"], reading="page all")
    assert decode_and_look(data, steps, ["original"], reading="page 1001")[1].pages == 1001


def test_a_network_is_not_trained_on_means_of_pages_but_a_head_is(tmp_path: Path, run: Callable[..., Any]) -> None:
    for name in ("a", "b"):
        (tmp_path / "few" / name).mkdir(parents=True)
        for at in range(6):
            page = Image.fromarray(np.roll(SMOOTH if name == "a" else SMOOTH[::-1], at, 1))
            page.save(tmp_path / "few" / name / f"{at}.tif", save_all=True, append_images=[page.rotate(180)])
    assert run("extract", "few", *LITE0, "--pages", "all").code == 0
    fitted = run("fit", "--head", "centroid", "--json")
    assert fitted.code == 0, fitted.err
    assert run("predict", fitted.json["model"], "few", "--json").code == 0
    refused = run("finetune", "--unfreeze", "last-block", "--epochs", "1")
    assert refused.code != 0
    assert "means over all pages of a file" in refused.err


def test_a_place_beyond_all_files_is_one_beyond_the_end() -> None:
    data = b"II+\0\x08\0\0\0" + b"\xff" * 8 + bytes(64)
    assert "ends before its directory" in reason(data)
    assert content_key(data) != content_key(data[:-1])
    with pytest.raises(PictureError, match="ends before its directory"):
        stored(data, reading="channels 0; page all")
