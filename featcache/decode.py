"""The bytes of a picture file enter; an RGB uint8 array and what it looks like leave, or one `PictureError`."""

from __future__ import annotations

import io
import math
import re
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from functools import cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError, features

from featcache.augment import draw
from featcache.bounds import MAX_PIXELS, Asked, bounded, check_exif, check_opened, check_scans
from featcache.channels import Stack
from featcache.depths import channels_of, is_deep
from featcache.dicom import DicomFile, is_dicom
from featcache.errors import PictureError, UsageError
from featcache.frames import frame_image
from featcache.layout import check_no_raw, is_tiff
from featcache.oddities import flaw_of, mended
from featcache.raster import by_range, image_of, is_asked_of
from featcache.records import ORIGINAL, Look, Preprocess, is_drawn
from featcache.records.reading import ALL, DTYPE, Reading
from featcache.resize import resize
from featcache.transparency import transparency_of

LARGE_PIXELS = 2**25
"""Pictures with more pixels are decoded one at a time, so that a few huge ones do not fill the memory together."""

BAND_PIXELS = 2**22
"""A large picture is converted so many pixels at a time, since a conversion holds it several times over."""

_TURNS: dict[Any, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What each orientation of Exif needs to stand upright."""

FORMATS = (
    *("JPEG", "PNG", "GIF", "BMP", "DIB", "PPM", "WEBP", "TIFF", "AVIF", "JPEG2000", "MPO", "QOI"),
    *("ICO", "ICNS", "PSD", "PCX", "SGI", "SUN", "DDS", "XBM", "MSP", "TGA"),
)
"""The formats that Pillow decodes itself, from the bytes it is given; HEIC, which pillow-heif decodes, beside them.

Others it only hands on: EPS to Ghostscript, WMF to the system, IPTC and MIC to whatever is inside of them.
"""

MAX_ASPECT = 256
"""Beyond this ratio of its edges only the part of a picture that the crop keeps is resized."""

LOOKED_AT = 32
MAX_TAKEN = 1_000
MAX_PIXELS_OF_PAGES = 2**30
MAX_SECONDS_OF_PAGES = 60
"""So many pages of a file are taken, with so many pixels in all, and for so long."""

SAME_COLOUR = 12
"""A picture is looked at in so many pixels a side; colours no further apart than this in any channel are the same."""

Pixels = npt.NDArray[np.uint8]
Paged = Stack | DicomFile
"""A file of which the pages are known."""

Limits = tuple[float, float] | str
Result = TypeVar("Result")

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}


_CORNERS = {"crop-tl": (0, 0), "crop-tr": (1, 0), "crop-bl": (0, 1), "crop-br": (1, 1)}

_WEB_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s{0,64}<(!doctype html|html)\b", re.IGNORECASE)

_one_large = threading.RLock()
_EPS = (b"%!PS", b"\xc5\xd0\xd3\xc6")
_HEIC_BRANDS = {b"ftyp" + brand for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")}
_AVIF_BRANDS = {b"ftypavif", b"ftypavis"}


def decode(
    data: bytes, preprocess: Preprocess, view: str = ORIGINAL, *, draft: bool = False, reading: str | None = None
) -> Pixels:
    """Decode a picture file's bytes to the (crop, crop, 3) uint8 RGB array that the backbone normalises.

    EXIF orientation is applied first; transparency is laid over white; of an animation, and of pages that are all
    asked for, the first is taken; the view is made last. With `draft` a large JPEG is decoded in fewer pixels, see
    `records.DRAFT`; `reading` is the text of a `records.reading.Reading`. Raises `PictureError` with the reason in one
    line.
    """
    return decode_views(data, preprocess, [view], draft=draft, reading=reading)[0]


def decode_views(
    data: bytes, preprocess: Preprocess, views: Sequence[str], *, draft: bool = False, reading: str | None = None
) -> list[Pixels]:
    """Decode a picture file's bytes once, as `decode` does, and return its array for each of several views."""
    return _opened(
        data, preprocess.resize if draft else None, lambda image, _: crops(image, preprocess, views, data), reading
    )


def decode_and_look(
    data: bytes, preprocess: Preprocess, views: Sequence[str], *, draft: bool = False, reading: str | None = None
) -> tuple[list[list[Pixels]], Look]:
    """Decode a picture file's bytes once, and return the arrays of its views for each page, and what it looks like.

    Where `reading` does not ask for all pages there is one, as `decode_views` returns it. Raises `PictureError`.
    """
    asked, started = Reading.of(reading), time.thread_time()
    paged, n_pages = _paged(data, asked)
    pages = range(1, n_pages + 1) if asked.page == ALL else [asked.first]
    if len(pages) > MAX_TAKEN:
        raise PictureError(f"{n_pages:,} pages, of which at most {MAX_TAKEN:,} are all taken: take one of them")
    found: list[list[Pixels]] = []
    looks: list[Look] = []

    def both(image: Image.Image, size: tuple[int, int]) -> None:
        found.append(crops(image, preprocess, views, data))
        looks.append(replace(_look(image, size), pages=n_pages))

    for page in pages:
        _opened(data, preprocess.resize if draft else None, both, replace(asked, page=page).text, paged)
        if sum(seen.width * seen.height for seen in looks) > MAX_PIXELS_OF_PAGES:
            raise PictureError(
                f"more than {MAX_PIXELS_OF_PAGES:,} pixels in the first {page:,} of {n_pages:,} pages: take one of them"
            )
        if page < len(pages) and time.thread_time() - started > MAX_SECONDS_OF_PAGES:
            raise PictureError(
                f"the first {page:,} of {n_pages:,} pages take {MAX_SECONDS_OF_PAGES} seconds to decode: take one of "
                "them, or save it anew"
            )
    return found, replace(looks[0], flat=min(seen.flat for seen in looks))


def _paged(data: bytes, reading: Reading) -> tuple[Paged | None, int]:
    """Return what is known of the pages of a file which may have several, and how many there are."""
    try:
        if is_dicom(data):
            file = DicomFile(data)
            return file, file.frames
        if is_tiff(data):
            stack = Stack(data)
            return stack, stack.count(reading)
    except PictureError:
        pass  # decoding it says what is wrong
    return None, 1


def look(data: bytes, reading: str | None = None) -> Look:
    """Decode a picture file's bytes, `reading` as in `decode`, and return what it looks like; raises `PictureError`."""
    return _opened(data, None, _look, reading)


def thumbnail(data: bytes, edge: int, quality: int, reading: str | None = None) -> bytes:
    """Decode a picture file's bytes, and return it upright as a WEBP of at most `edge` pixels a side.

    `reading` as in `decode`. Raises `PictureError`.
    """

    def shrunk(image: Image.Image, _size: tuple[int, int]) -> bytes:
        image.thumbnail((edge, edge))
        out = io.BytesIO()
        image.save(out, "WEBP", quality=quality, method=4)
        return out.getvalue()

    return _opened(data, edge, shrunk, reading)


def as_file(picture: Image.Image | npt.NDArray[Any]) -> bytes:
    """Return pixels as the bytes of a picture file, a binary PPM: what they are kept and decoded as.

    `picture` is a `PIL.Image`, turned as its EXIF data says, or a uint8 array (height, width), (height, width, 1),
    (height, width, 3) or, with alpha, (height, width, 4). Raises `PictureError` for anything else.
    """
    if isinstance(picture, np.ndarray):
        channels = 1 if picture.ndim == 2 else picture.shape[-1] if picture.ndim == 3 else 0
        if picture.dtype != np.uint8 or channels not in (1, 3, 4) or not picture.size:
            raise PictureError(
                f"an array of {picture.dtype} {picture.shape} is no picture: give uint8 (height, width[, 1, 3 or 4])"
            )
        picture = Image.fromarray(picture.reshape(picture.shape[:2]) if channels == 1 else picture)
    if not isinstance(picture, Image.Image):
        raise PictureError(
            f"a {type(picture).__name__} is no picture: give a PIL.Image or a uint8 array, before any transform"
        )
    is_loaded = not getattr(picture, "tile", None) and not isinstance(picture, ImageFile.StubImageFile)
    if not is_loaded and picture.format not in ("HEIF", *FORMATS):
        raise PictureError(f"a picture of the format {picture.format} is not decoded here: convert it")
    if picture.width * picture.height > MAX_PIXELS:
        raise PictureError(f"a picture of {picture.width:,} x {picture.height:,} pixels is too large: make it smaller")
    try:
        _check_transparent(picture)
        data = b"" if is_loaded else _bytes_of(picture)
        copy = picture.copy()
        copy.format = picture.format if data else None
        rgb = _upright_rgb(copy, data=data)
    except (PictureError, MemoryError):
        raise
    except Exception as error:  # Pillow's plugins raise almost anything on broken files
        raise PictureError(f"broken picture: {' '.join(str(error).split())}") from error
    return b"P6\n%d %d\n255\n" % rgb.size + rgb.tobytes()


def _bytes_of(picture: Image.Image) -> bytes:
    """Return the file of a PNG or JPEG 2000 that is opened and not loaded, of which Pillow alone knows too little."""
    file = getattr(picture, "fp", None)
    if picture.format not in ("PNG", "JPEG2000") or file is None:
        return b""
    place = file.tell()
    file.seek(0)
    data: bytes = file.read()
    file.seek(place)
    _check_channels(data, picture)
    return data


def _look(image: Image.Image, size: tuple[int, int]) -> Look:
    """Look at an upright RGB picture that was `size` pixels large before it was drafted."""
    # Some pixels as they are: to average all of them would take as long as a tenth of the decoding.
    pixels = np.asarray(image.resize((LOOKED_AT, LOOKED_AT), Image.Resampling.NEAREST)).astype(np.int16)
    away = np.abs(pixels - np.median(pixels, axis=(0, 1))).max(axis=2)
    is_turned = (image.width > image.height) != (size[0] > size[1])
    width, height = size[::-1] if is_turned else size
    return Look(width, height, float((away <= SAME_COLOUR).mean()))


def _opened(
    data: bytes,
    draft: int | None,
    use: Callable[[Image.Image, tuple[int, int]], Result],
    said: str | None = None,
    paged: Paged | None = None,
) -> Result:
    """Open a picture file's bytes and use it upright and in RGB, with its size in the file; raises `PictureError`.

    Where its short edge may be `draft` pixels in the end, a large JPEG is decoded in fewer pixels, and one of more than
    `MAX_PIXELS` in half of its width and height at most.
    """
    try:
        reading = Reading.of(said)
        with ExitStack() as held, identified(data, reading, paged, held) as image:
            size = image.size
            scale = 2 * draft / min(size) if draft is not None else 1.0
            if size[0] * size[1] > MAX_PIXELS:
                scale = min(scale, 0.5)
            if scale < 1 or draft is not None:
                image.draft(None, (math.ceil(image.width * scale), math.ceil(image.height * scale)))
            held.enter_context(_room_for(image.width, image.height))
            return use(_upright_rgb(image, reading, data), size)
    except (PictureError, UsageError):
        raise
    except UnidentifiedImageError as error:
        raise PictureError(_unidentified(data)) from error
    except Image.DecompressionBombError as error:
        raise PictureError(f"too many pixels to be a photograph: {error}") from error
    except MemoryError as error:
        raise PictureError("not enough memory to decode it") from error
    except Exception as error:  # Pillow's plugins raise almost anything on broken files
        raise PictureError(f"broken picture: {' '.join(str(error).split()) or type(error).__name__}") from error


def identified(
    data: bytes,
    reading: Reading = Reading(),  # noqa: B008 - it is frozen
    paged: Paged | None = None,
    held: ExitStack | None = None,
) -> Image.Image:
    """Open a picture of one of our `FORMATS`, a DICOM or a HEIC, that can be decoded in bounded time and memory.

    What is known of its pages may be given, and what holds the room that a large one takes, where it is decoded at
    once. Raises `PictureError` or `OSError`.
    """
    held = held or ExitStack()
    if is_dicom(data):
        header = (paged if isinstance(paged, DicomFile) else DicomFile(data)).header(reading.first)
        held.enter_context(_room_for(header.width, header.height))
        return frame_image(header, reading)
    if (flaw := flaw_of(data)) is not None:
        raise PictureError(f"{flaw}, which is not decoded here: save it as PNG")
    file = bounded(mended(data))
    if data[4:12] in _HEIC_BRANDS:
        heif = _heif_plugin()
        if heif is None:
            raise PictureError("HEIC picture: install pillow-heif (pip install 'featcache[heic]')")
        try:
            opened: Image.Image = heif.HeifImageFile(file)
        except (SyntaxError, IndexError, TypeError) as error:
            raise PictureError("broken picture: HEIC that pillow-heif cannot identify") from error
        check_opened(opened, file)
        return opened
    if is_tiff(data):
        stack = paged if isinstance(paged, Stack) else Stack(data)
        layout, reading = stack.layout_asked(reading)
        if not layout.is_pillows or is_asked_of(reading, layout):
            held.enter_context(_room_for(layout.width, layout.height))
            return image_of(data, layout, reading)
        if reading.first > 1:
            file = Asked(stack.page(reading.first))
    check_no_raw(data)
    if data.startswith(_EPS):
        raise PictureError("EPS is a program, not a photograph: convert it")
    Image.init()
    try:
        opened = Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])
    except Image.DecompressionBombError:
        if not data.startswith(b"\xff\xd8"):
            raise
        file.seek(0)
        opened = Image.OPEN["JPEG"][0](file, "")  # larger ones than Pillow takes are decoded to half their size
    check_opened(opened, file)
    check_scans(opened, data)
    _check_channels(data, opened)
    return opened


def _check_channels(data: bytes, image: Image.Image) -> None:
    channels = channels_of(data) if image.format == "JPEG2000" else None
    if channels is not None:
        channels.check()


def _check_transparent(image: Image.Image) -> None:
    if "transparency" in image.info and "RGB;16B" in str(getattr(image, "tile", "")):
        # Pillow keeps 8 bits of the pixels and all 16 of the transparent colour, so they cannot be compared.
        raise PictureError("16-bit colour picture with one transparent colour: convert it to 8 bit")


def _upright_rgb(
    image: Image.Image,
    reading: Reading = Reading(),  # noqa: B008 - it is frozen
    data: bytes = b"",
) -> Image.Image:
    """Return a picture in RGB and upright; without the file's `data` what Pillow keeps of it has to be enough."""
    _check_transparent(image)
    tiles = getattr(image, "tile", None) or []
    is_ppm = image.format == "PPM" and image.mode != "1" and tiles[0][0] != "raw"
    white: int = tiles[0][3][-1] if is_ppm else 2**16 - 1
    is_cut = white > 255 and image.mode != "I" if is_ppm else _is_cut(image, data)
    if reading.range is not None and is_cut:
        raise PictureError(
            f"{image.format} picture of more than 8 bits a sample that is not grey alone, of which no range can be "
            "taken: save it as TIFF"
        )
    channels = channels_of(data) if image.format == "JPEG2000" else None
    upright = _upright(image)
    if image.format == "PNG" and data:
        transparency = transparency_of(data)
        upright.info.pop("transparency", None)
        upright.info |= {} if transparency is None else {"transparency": transparency}
    if channels is not None and channels.is_spread and set(channels.bits) != {8}:
        upright = upright.point(channels.table)
    if reading.range is not None and _is_16_bit(upright):
        levels = np.asarray(upright).astype(np.uint16, copy=False)
        if channels is None:
            upright = _in_range(upright, levels, reading.range, white)
        elif channels.bits[0] > 8:
            upright = _of_jpeg_2000(levels, channels.bits[0], channels.signed[0], reading.range)
    return to_rgb(upright)


def _is_cut(image: Image.Image, data: bytes) -> bool:
    """Tell whether a picture that is no PPM, TIFF or DICOM has more bits than Pillow gives of it."""
    tiles = str(getattr(image, "tile", ""))
    return image.mode != "I;16" and image.format is not None and ("BC6H" in tiles or is_deep(data))


def _in_range(image: Image.Image, levels: npt.NDArray[np.uint16], limits: Limits, white: int) -> Image.Image:
    """Return grey by a range of the file's own numbers, which Pillow has spread to 16 bits where white is another."""
    own = levels if white == 2**16 - 1 else ((np.arange(2**16) * 2 * white + 65535) // 131070).astype(np.uint16)[levels]
    found = by_range(own, (0.0, float(white)) if limits == DTYPE else limits)
    if "transparency" in image.info:
        found[levels == image.info["transparency"]] = 255
    return Image.fromarray(found)


def _of_jpeg_2000(levels: npt.NDArray[np.uint16], bits: int, is_signed: bool, limits: Limits) -> Image.Image:
    """Return grey by a range of the file's own numbers, which Pillow gives as the upper bits of 16, from 0 on."""
    own = (levels ^ np.uint16(2**15)).view(np.int16) if is_signed else levels
    low = -(2 ** (bits - 1)) if is_signed else 0
    whole = float(low), float(low + 2**bits - 1)
    return Image.fromarray(by_range(own >> (16 - bits), whole if limits == DTYPE else limits))


def _upright(image: Image.Image) -> Image.Image:
    """Return the picture turned as its Exif says; Pillow's own way writes the Exif anew, and fails on an odd tag."""
    image.load()
    check_exif(image)  # which some formats have behind the pixels
    turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.format = image.format
    return turned


def to_rgb(image: Image.Image) -> Image.Image:
    """Return the picture as RGB: alpha over white, 16-bit grey scaled to 8 bit, ICC profiles ignored."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode in ("I", "F") and not _is_16_bit(image):
        raise PictureError(f"32-bit picture (mode {image.mode}) without a known brightness range: convert it to 8 bit")
    if image.width * image.height <= BAND_PIXELS:
        return _band_to_rgb(image)
    out = Image.new("RGB", image.size)
    rows = max(1, BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        band.format = image.format
        out.paste(_band_to_rgb(band), (0, top))
    return out


def _is_16_bit(image: Image.Image) -> bool:
    """Tell whether pixels are grey values of 16 bits, 0 to 65,535."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")


def _band_to_rgb(image: Image.Image) -> Image.Image:
    if _is_16_bit(image):
        grey = np.asarray(image)
        scaled = np.round(grey / 257).astype(np.uint8)
        if "transparency" in image.info:  # one grey value of a PNG
            scaled[grey == image.info["transparency"]] = 255
        image = Image.fromarray(scaled)
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def crops(image: Image.Image, preprocess: Preprocess, views: Sequence[str], content: bytes = b"") -> list[Pixels]:
    """Resize an RGB picture once and keep its centre, as torchvision's and timm's evaluation transforms do.

    The view `flip` is the same mirrored; `crop-tl` and its like keep a corner instead of the centre; what is drawn of
    the file's `content` is in `augment`.
    """
    width, height = image.size
    size, keep = preprocess.resize, preprocess.crop
    if preprocess.resize_mode == "squash":
        target = (size, size)
    elif width <= height:
        target = (size, int(size * height / width))
    else:
        target = (int(size * width / height), size)
    resample = _FILTERS[preprocess.interpolation]
    is_long = max(target) > MAX_ASPECT * size

    @cache
    def resized() -> Image.Image:
        return image if target == image.size else resize(image, target, resample)

    def kept(view: str) -> Image.Image:
        left, top = (round((e - keep) / 2.0) if e >= keep else -((keep - e) // 2) for e in target)
        if view in _CORNERS:
            left, top = (at * max(e - keep, 0) for at, e in zip(_CORNERS[view], target, strict=True))
        if is_long:
            x, y = width / target[0], height / target[1]
            box = (left * x, top * y, (left + keep) * x, (top + keep) * y)
            return resize(image, (keep, keep), resample, box)
        return resized().crop((left, top, left + keep, top + keep))

    def seen(view: str) -> Image.Image:
        if is_drawn(view):
            return draw(image, view, content, keep, resample, lambda: kept(ORIGINAL))
        return ImageOps.mirror(kept(ORIGINAL)) if view == "flip" else kept(view)

    return [np.asarray(seen(view)) for view in views]


def _room_for(width: int, height: int) -> AbstractContextManager[object]:
    return _one_large if width * height > LARGE_PIXELS else nullcontext()


def _heif_plugin() -> Any:
    """Return pillow-heif, or `None` where it is not installed; it is not made known to Pillow, which others use too."""
    try:
        import pillow_heif
    except ImportError:
        return None
    return pillow_heif


def _unidentified(data: bytes) -> str:
    if data[4:12] in _AVIF_BRANDS and not features.check("avif"):
        return "AVIF picture, and this Pillow was built without AVIF: install a wheel of pillow>=11.3"
    if data.startswith((b"\x08\0\0\0", b"\x08\0\5\0", b"\x08\0\x08\0", b"\2\0\0\0UL")):
        return "DICOM without its first 132 bytes, which say what it is: save it as a file of DICOM part 10"
    if _WEB_PAGE.match(data):
        return "a web page, no picture: a server of http(s) has no folders, name an archive, a table or a list there"
    return "not a picture in a format that is decoded here" if data else "empty file"
