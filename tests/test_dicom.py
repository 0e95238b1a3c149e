"""DICOM: what pydicom writes of a known picture is decoded to it, by the formulas of the standard, or refused."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from featcache.decode import decode, decode_and_look, identified, look, to_rgb
from featcache.errors import PictureError
from featcache.records import Preprocess
from featcache.records.reading import Reading
from featcache.sources.keys import content_key

pydicom = pytest.importorskip("pydicom")
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.encaps import encapsulate  # noqa: E402
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut  # noqa: E402
from pydicom.sequence import Sequence  # noqa: E402
from pydicom.uid import (  # noqa: E402
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    RLELossless,
)

Array = npt.NDArray[Any]

HEIGHT, WIDTH = 64, 96
RAMP = np.add.outer(np.arange(HEIGHT), np.arange(WIDTH))  # 0 to 158
COLOURS = np.stack(np.broadcast_arrays(*np.ogrid[20:84, 10:106], 70), axis=2).astype(np.uint8)
LITE0 = ("--backbone", "efficientnet_lite0")
STEPS = Preprocess(HEIGHT, WIDTH, "nearest", (0, 0, 0), (1, 1, 1))


def dataset(pixels: Array, photometric: str = "MONOCHROME2", frames: int = 1, **more: Any) -> Dataset:
    """Return a data set of pixels (rows, columns[, 3]), or of several frames of them."""
    shape = pixels.shape[frames > 1 :]
    found = Dataset()
    found.Modality = "OT"
    found.Rows, found.Columns = shape[:2]
    found.SamplesPerPixel = 3 if len(shape) == 3 else 1
    if len(shape) == 3:
        found.PlanarConfiguration = 0
    if frames > 1:
        found.NumberOfFrames = frames
    found.PhotometricInterpretation = photometric
    found.BitsAllocated = found.BitsStored = 8 * pixels.dtype.itemsize
    found.HighBit = found.BitsStored - 1
    found.PixelRepresentation = int(pixels.dtype.kind == "i")
    found.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    for name, value in more.items():
        setattr(found, name, value)
    if "BitsStored" in more:
        found.HighBit = found.BitsStored - 1
    return found


def written(found: Dataset, syntax: str = ExplicitVRLittleEndian, kind: str | None = None) -> bytes:
    found.file_meta = FileMetaDataset()
    found.file_meta.TransferSyntaxUID = syntax
    found.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    found.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    if "PixelData" in found:
        is_packed = syntax in (JPEGBaseline8Bit, JPEG2000Lossless, JPEGExtended12Bit, JPEGLosslessSV1, RLELossless)
        found["PixelData"].VR = "OW" if found.BitsAllocated > 8 and not is_packed else "OB"
        found["PixelData"].VR = kind or found["PixelData"].VR
        found["PixelData"].is_undefined_length = is_packed
    out = io.BytesIO()
    found.save_as(out, enforce_file_format=True)
    return out.getvalue()


def table(first: int, bits: int, entries: list[int]) -> Dataset:
    """Return a look-up table, as an item of a sequence."""
    found = Dataset()
    found.add_new(0x00283002, "US", [len(entries), first, bits])
    found.add_new(0x00283006, "OW", np.array(entries, "<u2").tobytes())
    return found


def stored(data: bytes, reading: str | None = None) -> Array:
    return decode(data, STEPS, reading=reading)[(WIDTH - HEIGHT) // 2 :][:HEIGHT].astype(np.float64)


def grey(values: Array) -> Array:
    return np.repeat(np.floor(values.clip(0, 1) * 255 + 0.5)[..., None], 3, axis=2)


RLE_HEADER = struct.pack("<16L", 1, 64, *[0] * 14)
HU = (RAMP * 16 - 1024).astype(np.int16)  # -1,024 to 1,504


def windowed(values: Array, centre: float, width: float) -> Array:
    """C.11.2.1.2.1, for each number by itself."""

    def one(x: float) -> float:
        if x <= centre - 0.5 - (width - 1) / 2:
            return 0
        if x > centre - 0.5 + (width - 1) / 2:
            return 1
        return (x - (centre - 0.5)) / (width - 1) + 0.5

    return np.vectorize(one, otypes=[float])(values)


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless]
)
def test_a_window_says_what_is_black_and_white_of_what_the_modality_means(syntax: str) -> None:
    found = dataset(
        (HU + 1024).astype(np.uint16),
        BitsStored=12,
        RescaleSlope="1",
        RescaleIntercept="-1024",
        WindowCenter=["40", "400"],
        WindowWidth=["400", "1500"],
    )
    if syntax == RLELossless:
        found.file_meta = FileMetaDataset()
        found.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        found["PixelData"].VR = "OW"
        found.compress(RLELossless, generate_instance_uid=False)
    assert (stored(written(found, syntax)) == grey(windowed(HU, 40, 400))).all()


def test_big_endian_numbers_are_taken_in_their_order() -> None:
    found = dataset(HU.astype(">i2"), WindowCenter="40", WindowWidth="400", PixelRepresentation=1)
    assert (stored(written(found, ExplicitVRBigEndian)) == grey(windowed(HU, 40, 400))).all()


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_each_function_of_a_window_gives_what_an_independent_reader_computes(function: str) -> None:
    found = dataset(HU, WindowCenter="100", WindowWidth="300", VOILUTFunction=function)
    theirs = apply_voi_lut(HU, found) + 2**15
    # scaled to all numbers of 16 bits
    assert np.abs(stored(written(found)) - grey(theirs / (2**16 - 1))).max() <= 1


def test_without_a_window_the_stored_bits_are_the_whole_range_and_monochrome1_is_white_at_zero() -> None:
    twelve = (RAMP * 25).astype(np.uint16)
    assert (stored(written(dataset(twelve, BitsStored=12))) == grey(twelve / 4095)).all()
    inverted = stored(written(dataset(twelve, "MONOCHROME1", BitsStored=12)))
    assert (inverted == 255 - grey(twelve / 4095)).all()
    with pytest.raises(PictureError, match="signed numbers of 16 bits without a window: say their range with --range"):
        stored(written(dataset(HU)))


def test_what_stands_above_the_stored_bits_is_no_brightness() -> None:
    twelve = (RAMP * 25).astype(np.uint16)
    overlaid = dataset(twelve | np.uint16(0x8000), BitsStored=12)
    assert (stored(written(overlaid)) == grey(twelve / 4095)).all()
    signed = ((HU // 2) & 0x0FFF).astype(np.int16)  # negative ones without the bits above
    twelve_signed = stored(written(dataset(signed, BitsStored=12)), "range dtype")
    assert (twelve_signed == grey((HU // 2 + 2048) / 4095)).all()


def test_tables_of_the_modality_and_of_the_values_of_interest_are_looked_up() -> None:
    modality = table(0, 16, [at * at for at in range(200)])
    voi = table(100, 12, [min(4095, at) for at in range(30000)])
    found = dataset(RAMP.astype(np.uint8), ModalityLUTSequence=Sequence([modality]), VOILUTSequence=Sequence([voi]))
    data = written(found)
    theirs = apply_voi_lut(apply_modality_lut(RAMP.astype(np.uint8), found), found)
    assert (stored(data) == grey(theirs / 4095)).all()
    assert (stored(data, "range 0,20000") == grey(RAMP.astype(float) ** 2 / 20000)).all()


@pytest.mark.parametrize("bits", [8, 16])
def test_a_palette_gives_its_colours(bits: int) -> None:
    colours = np.random.default_rng(0).integers(0, 2**bits, (3, 160)).astype(f"u{bits // 8}")
    found = dataset(RAMP.astype(np.uint8), "PALETTE COLOR")
    for name, table in zip(("Red", "Green", "Blue"), colours, strict=True):
        setattr(found, f"{name}PaletteColorLookupTableDescriptor", [160, 0, bits])
        setattr(found, f"{name}PaletteColorLookupTableData", table.tobytes())
    theirs = apply_color_lut(RAMP.astype(np.uint8), found)
    assert (stored(written(found)) == theirs >> (bits - 8)).all()


def ybr(pixels: Array) -> Array:
    """Return brightness and colours, by the equations of PS3.3 C.7.6.3.1.2."""
    red, green, blue = np.moveaxis(pixels.astype(np.float64), 2, 0)
    found = (
        0.299 * red + 0.587 * green + 0.114 * blue,
        -0.168736 * red - 0.331264 * green + 0.5 * blue + 128,
        0.5 * red - 0.418688 * green - 0.081312 * blue + 128,
    )
    return np.round(np.stack(found, axis=2)).astype(np.uint8)


def of_422(pixels: Array) -> Array:
    seen = ybr(pixels)
    return np.dstack([seen[:, ::2, 0], seen[:, 1::2, 0], seen[:, ::2, 1], seen[:, ::2, 2]]).reshape(-1)


def jpeg(pixels: Array, **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=95, **options)
    return out.getvalue()


def without_marker(data: bytes) -> bytes:
    """Cut the JFIF segment, which says that the pixels are brightness and colour."""
    assert data[2:4] == b"\xff\xe0"
    return data[:2] + data[4 + int.from_bytes(data[4:6], "big") :]


def j2k(values: Array, bits: int) -> bytes:
    imagecodecs = pytest.importorskip("imagecodecs")
    data: bytes = imagecodecs.jpeg2k_encode(values, level=0, codecformat="j2k", bitspersample=bits, reversible=True)
    return data


def test_colours_plain_in_planes_shared_and_packed_are_the_picture() -> None:
    plain = dataset(COLOURS, "RGB")
    assert (stored(written(plain)) == COLOURS).all()
    planes = dataset(COLOURS, "RGB", PlanarConfiguration=1, PixelData=np.moveaxis(COLOURS, 2, 0).tobytes())
    assert (stored(written(planes)) == COLOURS).all()
    assert np.abs(stored(written(dataset(ybr(COLOURS), "YBR_FULL"))) - COLOURS).max() <= 1.5
    shared = dataset(COLOURS, "YBR_FULL_422", PixelData=of_422(COLOURS).tobytes())
    assert np.abs(stored(written(shared)) - COLOURS).max() <= 3
    one = stored(written(plain), "channels 1")
    assert (one == COLOURS[..., 1:2]).all()
    assert (stored(written(plain), "channels 2,1,0") == COLOURS[..., ::-1]).all()


def test_packed_frames_are_the_pictures_whoever_says_which_colours_they_have() -> None:
    usual = dataset(COLOURS, "YBR_FULL_422", PixelData=encapsulate([jpeg(COLOURS)]))
    assert np.abs(stored(written(usual, JPEGBaseline8Bit)) - COLOURS).max() <= 8
    silent = dataset(COLOURS, "YBR_FULL_422", PixelData=encapsulate([without_marker(jpeg(COLOURS))]))
    assert np.abs(stored(written(silent, JPEGBaseline8Bit)) - COLOURS).max() <= 8
    # three bands that were never turned into brightness and colour, which only the header says
    as_they_are = io.BytesIO()
    Image.fromarray(COLOURS, "YCbCr").save(as_they_are, "JPEG", quality=95, subsampling=0)
    rgb = dataset(COLOURS, "RGB", PixelData=encapsulate([without_marker(as_they_are.getvalue())]))
    assert np.abs(stored(written(rgb, JPEGBaseline8Bit)) - COLOURS).max() <= 8
    many = dataset(
        np.stack([COLOURS] * 3),
        "YBR_FULL_422",
        3,
        PixelData=encapsulate([jpeg(COLOURS), jpeg(COLOURS[::-1]), jpeg(255 - COLOURS)], fragments_per_frame=2),
    )
    assert np.abs(stored(written(many, JPEGBaseline8Bit), "page 2") - COLOURS[::-1]).max() <= 8


@pytest.mark.parametrize("kind", ["u1", "u2", "i2"])
def test_jpeg_2000_of_grey_numbers_gives_them_back(kind: str) -> None:
    bits = 8 if kind == "u1" else 12
    values = (RAMP * (1 if bits == 8 else 12) - (900 if kind == "i2" else 0)).astype(kind)
    found = dataset(values, BitsStored=bits, WindowCenter="80", WindowWidth="100")
    found.PixelData = encapsulate([j2k(values, bits)])
    assert (stored(written(found, JPEG2000Lossless)) == grey(windowed(values, 80, 100))).all()


def test_bytes_in_words_of_big_endian_files_are_taken_in_their_order() -> None:
    values = RAMP[:, :95].astype(np.uint8)
    frames = np.stack([values[:63], values[:63][::-1]])  # of an odd number of bytes each
    found = dataset(frames, frames=2)
    words = np.frombuffer(frames.tobytes(), "<u2").astype(">u2")
    data = written(dataset(frames, frames=2, PixelData=words.tobytes()), ExplicitVRBigEndian, "OW")
    for page in (1, 2):
        seen = np.asarray(identified(data, Reading(page=page)))
        assert (seen == frames[page - 1]).all()
    plain = written(found, ExplicitVRBigEndian)
    assert (np.asarray(identified(plain, Reading(page=2))) == frames[1]).all()


def test_the_header_of_a_tiff_in_the_preamble_counts_where_there_is_a_tiff() -> None:
    data = written(dataset(RAMP.astype(np.uint8)))
    without = b"II*\0\x54\0\0\0" + data[8:]  # as some scanners write it
    assert (stored(without) == stored(data)).all()
    assert content_key(without) != hashlib.sha256(without).digest()
    pixels = data.index(RAMP.astype(np.uint8).tobytes())
    tags = {256: WIDTH, 257: HEIGHT, 258: 8, 259: 1, 262: 0, 273: pixels, 277: 1, 278: HEIGHT, 279: HEIGHT * WIDTH}
    directory = b"".join(struct.pack("<HHLL", tag, 4, 1, value) for tag, value in tags.items())
    both = b"II*\0" + struct.pack("<L", len(data)) + data[8:] + struct.pack("<H", len(tags)) + directory + bytes(4)
    assert (stored(both) == 255 - stored(data)).all()  # the TIFF says that white is zero
    assert content_key(both) == hashlib.sha256(both).digest()


def test_a_range_is_one_of_the_modalitys_values_and_stands_above_the_window() -> None:
    found = dataset(HU, RescaleSlope="2", RescaleIntercept="10", WindowCenter="0", WindowWidth="9")
    data = written(found)
    meant = HU.astype(np.float64) * 2 + 10
    assert (stored(data, "range -100,900") == grey((meant + 100) / 1000)).all()
    low, high = np.percentile(meant, (0.5, 99.5))
    assert (stored(data, "range percentile") == grey((meant - low) / (high - low))).all()
    assert (stored(data, "range dtype") == grey((HU.astype(np.float64) + 2**15) / (2**16 - 1))).all()


def test_frames_are_pages_of_which_each_may_have_a_window_of_its_own() -> None:
    frames = np.stack([RAMP, RAMP[::-1]]).astype(np.uint8)
    groups = []
    for centre in (50, 100):
        window, group = Dataset(), Dataset()
        window.WindowCenter, window.WindowWidth = str(centre), "40"
        group.FrameVOILUTSequence = Sequence([window])
        groups.append(group)
    found = dataset(frames, frames=2, PerFrameFunctionalGroupsSequence=Sequence(groups))
    data = written(found)
    assert (stored(data) == grey(windowed(RAMP, 50, 40))).all()
    assert (stored(data, "page 2") == grey(windowed(RAMP[::-1], 100, 40))).all()
    with pytest.raises(PictureError, match="DICOM of 2 frames, which has no page 3"):
        stored(data, "page 3")


def nested(depth: int) -> bytes:
    """Sequences of undefined length in each other."""
    start = b"\x08\0\x15\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff"
    end = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    return start * depth + end * depth


def with_front(front: bytes) -> bytes:
    data = written(dataset(RAMP.astype(np.uint8)))
    at = data.index(b"\x08\0\x60\0CS")
    return data[:at] + front + data[at:]


def many_scans() -> Dataset:
    """A progressive JPEG whose last scan is there two hundred times more."""
    grey = jpeg(RAMP.astype(np.uint8), progressive=True)
    at = grey.rindex(b"\xff\xda")
    return dataset(RAMP.astype(np.uint8), PixelData=encapsulate([grey[:-2] + grey[at:-2] * 200 + grey[-2:]]))


def bomb() -> bytes:
    data = written(dataset(RAMP.astype(np.uint8)), DeflatedExplicitVRLittleEndian)
    at = data.index(DeflatedExplicitVRLittleEndian.encode()) + len(DeflatedExplicitVRLittleEndian)
    packing = zlib.compressobj(9, wbits=-15)
    return data[: at + at % 2] + packing.compress(bytes(2**26)) + packing.flush()


def cut_rle() -> bytes:
    """Four bytes of 6,144, packed."""
    frame = np.array([1, 64, *[0] * 14], "<u4").tobytes() + b"\x03abcd\0"
    return written(dataset(RAMP.astype(np.uint8), PixelData=encapsulate([frame])), RLELossless)


def by_pydicom(found: Any) -> Array:
    """Return the first frame of a data set in RGB, by pydicom and the linear formula."""
    pixels = found.pixel_array[0] if found.get("NumberOfFrames", 1) > 1 else found.pixel_array
    if found.PhotometricInterpretation == "PALETTE COLOR":
        colours: Array = apply_color_lut(pixels, found) >> 8
        return colours
    if found.SamplesPerPixel == 3:
        return np.floor(pixels / 257 + 0.5) if found.BitsAllocated == 16 else pixels
    meant = np.asarray(apply_modality_lut(pixels, found), np.float64)
    if found.get("WindowCenter"):
        centre, width = (np.ravel(found[name].value)[0] for name in ("WindowCenter", "WindowWidth"))
        seen = grey(windowed(meant, float(centre), float(width)))
    else:
        ends = np.array([0, 2**found.BitsStored - 1]) * float(found.get("RescaleSlope", 1))
        seen = grey((meant - float(found.get("RescaleIntercept", 0))) / ends[1])
    return 255 - seen if found.PhotometricInterpretation == "MONOCHROME1" else seen


@pytest.mark.filterwarnings("ignore:The pixel data is")
def test_the_files_that_pydicom_brings_are_decoded_as_it_decodes_them_or_refused() -> None:
    known, refused = 0, []
    for path in sorted((Path(pydicom.__file__).parent / "data" / "test_files").rglob("*")):
        data = path.read_bytes() if path.is_file() else b""
        if data[128:132] != b"DICM" or path.parent.name.isdecimal():  # of a folder of 31 like ones two are enough
            continue
        try:
            seen = np.asarray(to_rgb(identified(data)))
        except PictureError as error:
            refused.append((path.name, str(error)))
            continue
        assert (seen == by_pydicom(pydicom.dcmread(path))).all(), path.name
        known += 1
    assert known > 20
    assert dict(refused)["JPEG-lossy.dcm"].startswith("DICOM of 12 bits packed as JPEG")


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "cut rle": (cut_rle, "broken"),
    "cmyk": (
        lambda: written(dataset(RAMP.astype(np.uint8), BitsStored=8, PhotometricInterpretation="CMYK")),
        "photometric interpretation CMYK",
    ),
    "lossless": (
        lambda: written(dataset(RAMP.astype(np.uint8), PixelData=encapsulate([b"\0" * 8])), JPEGLosslessSV1),
        "compressed as lossless JPEG, which is not decoded here",
    ),
    "no picture": (lambda: written(Dataset(), ExplicitVRLittleEndian), "DICOM without a picture"),
    "cut": (lambda: written(dataset(RAMP.astype(np.uint8)))[:-9], "ends before"),
    "few pixels": (lambda: written(dataset(RAMP.astype(np.uint8), Rows=65)), "6,144 bytes of pixels, where"),
    "a jpeg of 12 bits": (
        lambda: written(
            dataset(RAMP.astype(np.uint16), BitsStored=12, PixelData=encapsulate([b"\xff\xd8\xff\xd9"])),
            JPEGExtended12Bit,
        ),
        "12 bits packed as JPEG, of which 8 are decoded",
    ),
    "no jpeg": (
        lambda: written(dataset(RAMP.astype(np.uint8), PixelData=encapsulate([b"\xff\xd8\xff\xd9"])), JPEGBaseline8Bit),
        "what is packed in it is no JPEG",
    ),
    "many scans": (lambda: written(many_scans(), JPEGBaseline8Bit), "206 scans of 6,144 pixels are made to take long"),
    "large rle": (
        lambda: written(
            dataset(RAMP.astype(np.uint8), Rows=9000, Columns=9000, PixelData=encapsulate([RLE_HEADER])),
            RLELossless,
        ),
        "81,000,000 pixels packed as RLE, of which 67,108,864 are decoded",
    ),
    "presentation": (
        lambda: written(dataset(RAMP.astype(np.uint8), PresentationLUTShape="INVERSE")),
        "contradicts MONOCHROME2",
    ),
    "wide": (lambda: written(dataset(RAMP.astype(np.uint32))), "unsigned numbers of 32 bits without a window"),
    "window": (
        lambda: written(dataset(RAMP.astype(np.uint8), WindowCenter="1", WindowWidth="0")),
        "a window of the width 0",
    ),
    "deep": (lambda: with_front(nested(40)), "more than 16 deep"),
    "many elements": (lambda: with_front(b"\x08\0\1\0CS\0\0" * (2**19 + 1)), "more than 524,288 elements"),
    "bomb": (bomb, "unpacked to more than 16,777,216 bytes"),
    "pixels": (lambda: written(dataset(RAMP.astype(np.uint8), Rows=60000, Columns=60000)), "bytes of pixels"),
    "without a preamble": (
        lambda: written(dataset(RAMP.astype(np.uint8)))[132:],
        "DICOM without its first 132 bytes",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_known_for_sure_or_made_to_take_long_is_refused_with_its_reason(name: str) -> None:
    make, said = REFUSED[name]
    with pytest.raises(PictureError, match=said):
        look(make())


def test_files_with_and_without_a_suffix_are_found_in_folders_and_archives_and_frames_are_counted(
    tmp_path: Path, run: Callable[..., Any]
) -> None:
    one = written(dataset(RAMP.astype(np.uint8)))
    many = written(dataset(np.stack([RAMP[::-1], RAMP]).astype(np.uint8), frames=2))
    for name, data in (("a/1.dcm", one), ("b/IM000001", many)):
        (tmp_path / "scans" / name).parent.mkdir(parents=True)
        (tmp_path / "scans" / name).write_bytes(data)
    found = run("extract", "scans", *LITE0, "--json").json
    assert (found["computed"], found["unreadable"], found["paged"]) == (2, 0, 1)
    import zipfile

    with zipfile.ZipFile(tmp_path / "scans.zip", "w") as file:
        file.writestr("a/1.dcm", one)
        file.writestr("b/IM000001", many)
    again = run("extract", "scans.zip", *LITE0, "--json").json
    assert (again["reused"], again["computed"]) == (2, 0)
    other = run("extract", "scans", *LITE0, "--range", "0,100", "--json").json
    assert other["computed"] == 2
    assert content_key(one) != content_key(one[:-1])


def test_of_all_frames_each_is_decoded_and_one_that_is_broken_makes_the_file_unreadable() -> None:
    frames = np.stack([RAMP[::-1], RAMP, RAMP[:, ::-1]]).astype(np.uint8)
    data = written(dataset(frames, frames=3))
    steps = Preprocess(8, 8, "nearest", (0, 0, 0), (1, 1, 1))
    pages, seen = decode_and_look(data, steps, ["original"], reading="page all")
    assert seen.pages == 3
    for number, (page,) in enumerate(pages, start=1):
        assert (page == decode(data, steps, reading=f"page {number}")).all()
    with pytest.raises(PictureError):
        decode_and_look(data[: -RAMP.size], steps, ["original"], reading="page all")
