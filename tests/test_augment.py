"""Drawn views of pictures: what each may change, where a crop may lie, and that a draw is the same every time."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_picture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from featcache.augment import AREA, ASPECT, AUGMENTATIONS, JITTER, drawn_view
from featcache.decode import Pixels, decode, decode_views
from featcache.embed.torch_engine import normalise
from featcache.errors import PictureError
from featcache.records import Preprocess, is_drawn
from featcache.tuning.inputs import Pictures

STEPS = Preprocess(40, 32, "bilinear", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
DRAWING = [name for name in AUGMENTATIONS if name != "none"]


def png(pixels: Any, said: str = "") -> bytes:
    """The bytes of a picture; `said` changes them and not the pixels."""
    out, info = io.BytesIO(), PngImagePlugin.PngInfo()
    info.add_text("said", said)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(out, "PNG", pnginfo=info)
    return out.getvalue()


NOISY = np.random.default_rng(0).integers(0, 256, (60, 80, 3))
MAP = np.stack([*np.meshgrid(np.arange(256), np.arange(256)), np.full((256, 256), 9)], axis=2)
"""A picture whose red and green say where a pixel was."""


def draws(name: str, data: bytes, count: int = 40, seed: int = 0, steps: Preprocess = STEPS) -> list[Pixels]:
    return [decode(data, steps, drawn_view(name, seed, number)) for number in range(count)]


@pytest.mark.parametrize("name", DRAWING)
def test_one_draw_is_the_same_every_time_and_others_are_others(name: str) -> None:
    data = png(NOISY)
    first = np.stack(draws(name, data))
    np.random.seed(1)
    np.testing.assert_array_equal(first, draws(name, data))
    assert len(np.unique(first, axis=0)) == (2 if name == "flip" else 40)
    for other in (draws(name, data, seed=1), draws(name, png(NOISY, "a copy with other bytes"))):
        assert not np.array_equal(first, other)


@pytest.mark.parametrize("name", DRAWING)
def test_draws_are_equal_in_threads_and_among_other_views(name: str) -> None:
    data, views = png(NOISY), [drawn_view(name, 3, number) for number in range(16)]
    alone = [decode(data, STEPS, view) for view in views]
    with ThreadPoolExecutor(8) as executor:
        beside = list(executor.map(lambda view: decode(data, STEPS, view), views))
    np.testing.assert_array_equal(alone, beside)
    np.testing.assert_array_equal(alone, decode_views(data, STEPS, ["original", *views, "flip"])[1:-1])


def test_names_of_draws_tell_augmentation_seed_and_number() -> None:
    names = {drawn_view(name, seed, n) for name in DRAWING for seed in (1, 12) for n in (1, 2, 21)}
    assert len(names) == 18
    assert all(is_drawn(name) for name in names)
    assert not is_drawn("original")
    assert not is_drawn("flip")


def test_a_drawn_flip_is_the_plain_crop_or_its_mirror() -> None:
    data = png(NOISY)
    plain = decode(data, STEPS)
    mirrored = 0
    for pixels in draws("flip", data, 100):
        is_mirrored = np.array_equal(pixels, plain[:, ::-1])
        assert is_mirrored or np.array_equal(pixels, plain)
        mirrored += is_mirrored
    assert 25 < mirrored < 75


def test_a_crop_is_a_part_of_the_picture_of_drawn_size_shape_and_place() -> None:
    areas, aspects, lefts, mirrored = [], [], [], 0
    for pixels in draws("crop", png(MAP), 200):
        red, green = (pixels[:, :, at].astype(float) for at in (0, 1))
        assert (pixels[:, :, 2] == 9).all()
        mirrored += red[0, 0] > red[0, -1]
        # From the middle of the first output pixel to that of the last.
        width, height = ((values.max() - values.min()) * 32 / 31 for values in (red, green))
        areas.append(width * height / 256**2)
        aspects.append(width / height)
        lefts.append(red.min())
    assert AREA[0] * 0.9 < min(areas) < 0.15
    assert 0.8 < max(areas) <= 1.03
    assert ASPECT[0] * 0.93 < min(aspects) < 0.85 < 1.2 < max(aspects) < ASPECT[1] * 1.07
    assert np.ptp(lefts) > 100
    assert 60 < mirrored < 140


def test_only_full_changes_colours_and_within_bounds() -> None:
    data = png(np.full((50, 50, 3), 100))
    assert np.unique(draws("crop", data)).tolist() == [100]
    greys = np.array([pixels.mean((0, 1)) for pixels in draws("full", data, 100)])
    np.testing.assert_array_equal(greys[:, 0], greys[:, 1])  # grey stays grey
    low, high = 100 * (1 - JITTER), 100 * (1 + JITTER)
    assert low - 1 <= greys.min() < low + 8
    assert high - 8 < greys.max() <= high + 1
    colours = np.array([pixels.mean((0, 1)) for pixels in draws("full", png(np.full((9, 9, 3), [90, 120, 150])), 50)])
    assert np.std(colours[:, 2] - colours[:, 0]) > 3
    contrast = [pixels.std() / pixels.mean() for pixels in draws("full", png(NOISY), 50)]
    assert max(contrast) / min(contrast) > 1.3


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from(DRAWING), st.integers(0, 2**32), st.integers(1, 70))
def test_every_size_of_picture_gives_the_asked_size_from_its_own_pixels(
    width: int, height: int, name: str, seed: int, crop: int
) -> None:
    steps = Preprocess(crop, crop, "bicubic", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    pixels = decode(png(np.full((height, width, 3), 200)), steps, drawn_view(name, seed, 0))
    assert (pixels.shape, pixels.dtype) == ((crop, crop, 3), np.uint8)
    if name != "full":
        assert np.unique(pixels).tolist() == [200]


@pytest.mark.parametrize("size", [(1, 1), (1, 9000), (9000, 1), (3, 20000), (20000, 2)], ids=str)
@pytest.mark.parametrize("name", DRAWING)
def test_very_long_and_tiny_pictures_work(name: str, size: tuple[int, int]) -> None:
    data = png(np.full((size[1], size[0], 3), 60))
    for pixels in draws(name, data, 4):
        assert pixels.shape == (32, 32, 3)
        assert (name == "full") or np.unique(pixels).tolist() == [60]


def test_a_broken_picture_is_one_failure_as_without_augmentation() -> None:
    with pytest.raises(PictureError):
        decode(png(NOISY)[:300], STEPS, drawn_view("crop", 0, 0))


def test_without_augmentation_pictures_look_as_they_are_extracted(tmp_path: Path) -> None:
    path = write_picture(tmp_path / "a.png", 1)
    plain = normalise(pixels_of(decode(path.read_bytes(), STEPS)), STEPS).numpy()
    rows = [np.array([0])]
    for epoch in range(3):
        ((_, x),) = Pictures([str(path)], STEPS).batches(rows, epoch)
        np.testing.assert_array_equal(x.numpy(), plain)


@pytest.mark.parametrize("name", DRAWING)
def test_every_epoch_draws_the_view_of_its_number(name: str, tmp_path: Path) -> None:
    path = write_picture(tmp_path / "a.png", 1)
    data, pictures = path.read_bytes(), Pictures([str(path)], STEPS, name, seed=5)
    for epoch in (0, 1, 7):
        ((_, x),) = pictures.batches([np.array([0])], epoch)
        expected = normalise(pixels_of(decode(data, STEPS, drawn_view(name, 5, epoch))), STEPS)
        np.testing.assert_array_equal(x.numpy(), expected.numpy())


def pixels_of(pixels: Pixels) -> Any:
    import torch

    return torch.from_numpy(pixels[None].copy())
