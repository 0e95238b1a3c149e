"""Pictures, and parts of them, in another size: the axis that Pillow has to begin with, whatever it does."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from featcache.decode import decode
from featcache.records import Preprocess
from featcache.resize import Box, resize

LANCZOS = Image.Resampling.LANCZOS


def noise(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(1000 * width + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


def along_height(image: Image.Image, height: int, top: float, bottom: float) -> Image.Image:
    return image.resize((image.width, height), LANCZOS, box=(0, top, image.width, bottom))


def along_width(image: Image.Image, width: int, left: float, right: float) -> Image.Image:
    return image.resize((width, image.height), LANCZOS, box=(left, 0, right, image.height))


def height_first(image: Image.Image, size: tuple[int, int], box: Box) -> Image.Image:
    return along_width(along_height(image, size[1], box[1], box[3]), size[0], box[0], box[2])


def width_first(image: Image.Image, size: tuple[int, int], box: Box) -> Image.Image:
    return along_height(along_width(image, size[0], box[0], box[2]), size[1], box[1], box[3])


@pytest.mark.parametrize(
    ("picture", "size", "is_height_first"),
    [
        ((60, 120), (30, 40), True),  # 80 rows are lost and 30 columns
        ((60, 100), (30, 40), False),  # exactly twice as many
        ((60, 101), (30, 40), True),
        ((20, 90), (30, 40), True),  # no column is lost
        ((20, 30), (30, 40), False),  # nothing is
        ((120, 60), (30, 20), False),
    ],
)
@pytest.mark.parametrize("part", [None, (0.1, 0.2, 0.7, 0.9)])
def test_the_axis_of_which_far_more_is_lost_is_the_first(
    picture: tuple[int, int], size: tuple[int, int], is_height_first: bool, part: Box | None
) -> None:
    image = noise(*picture)
    whole = (0.0, 0.0, float(picture[0]), float(picture[1]))
    left, top, right, bottom = (at * edge for at, edge in zip(part, picture * 2, strict=True)) if part else whole
    box = left, top, right, bottom
    first, other = (height_first, width_first) if is_height_first else (width_first, height_first)
    found = resize(image, size, LANCZOS, box if part else None)
    assert found == first(image, size, box)
    assert found != other(image, size, box)


def test_a_tall_photograph_is_decoded_so() -> None:
    image, steps = noise(100, 400), Preprocess(40, 32, "lanczos", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    out = io.BytesIO()
    image.save(out, "PNG")
    expected = height_first(image, (40, 160), (0, 0, 100, 400)).crop((4, 64, 36, 96))
    np.testing.assert_array_equal(decode(out.getvalue(), steps), np.asarray(expected))
