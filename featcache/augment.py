"""A picture and the name of a drawn view enter; the picture as a training would show it leaves, the same each time."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from featcache.records import DRAWN
from featcache.resize import Box, resize

AUGMENTATIONS = ("none", "flip", "crop", "full")
"""Mirrored or not; also a random part of the picture; also other brightness, contrast and saturation."""

AREA = (0.08, 1.0)
ASPECT = (3 / 4, 4 / 3)
"""Share of the picture, and ratio of the edges, of a random crop (Szegedy et al. 2015, Going deeper, section 6)."""

JITTER = 0.3
"""Colours are made stronger or weaker by at most this part."""

_TRIES = 10


def drawn_view(augment: str, seed: int, number: int) -> str:
    """Return the name of the view that is drawn with a seed as the `number`th of each picture."""
    return f"{augment}{DRAWN}{seed}.{number}"


def draw(
    image: Image.Image,
    view: str,
    content: bytes,
    size: int,
    resample: Image.Resampling,
    plain: Callable[[], Image.Image],
) -> Image.Image:
    """Return a drawn view (size, size) of an RGB picture; equal names and `content` bytes give equal pixels.

    `plain()` returns the picture as it is looked at without augmentation, which is all that `flip` may mirror.
    """
    name = view.partition(DRAWN)[0]
    digest = hashlib.sha256(view.encode() + hashlib.sha256(content).digest()).digest()
    generator = np.random.default_rng(np.frombuffer(digest, np.uint32))
    made = plain() if name == "flip" else resize(image, (size, size), resample, _part(image.size, generator))
    if generator.random() < 0.5:
        made = ImageOps.mirror(made)
    if name == "full":
        for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            made = enhance(made).enhance(generator.uniform(1 - JITTER, 1 + JITTER))
    return made


def _part(size: tuple[int, int], generator: np.random.Generator) -> Box:
    """Return the box (left, top, right, bottom) of a random crop; the largest one that fits after too many tries."""
    width, height = size
    for _ in range(_TRIES):
        area = width * height * generator.uniform(*AREA)
        aspect = math.exp(generator.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        w, h = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if w <= width and h <= height:
            left, top = generator.uniform(0, width - w), generator.uniform(0, height - h)
            return left, top, left + w, top + h
    w, h = min(width, height * ASPECT[1]), min(height, width / ASPECT[0])
    return (width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2
