"""A picture and a size enter; it leaves in that size, with the same pixels under every Pillow."""

from __future__ import annotations

from PIL import Image

Box = tuple[float, float, float, float]


def resize(
    image: Image.Image, size: tuple[int, int], resample: Image.Resampling, box: Box | None = None
) -> Image.Image:
    """Return the part of a picture in `box` (left, top, right, bottom), all of it by default, as (width, height).

    Pillow goes along one axis, rounds to 8 bit, and goes on along the other: until version 12 always along the width
    first, since then along the height of a picture that loses more than twice as many rows as columns. Here it is as
    since then, since another order is another last digit.
    """
    left, top, right, bottom = box or (0, 0, *image.size)
    if image.height - size[1] > max(0, 2 * (image.width - size[0])):
        image = image.resize((image.width, size[1]), resample, box=(0, top, image.width, bottom))
        top, bottom = 0, size[1]
    return image.resize(size, resample, box=(left, top, right, bottom))
