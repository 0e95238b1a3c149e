"""The bytes of a TIFF enter; which of its pages together are one picture, each a channel, leaves.

Microscopes keep each channel as a page. OME-XML (https://docs.openmicroscopy.org/ome-model, "OME-TIFF") says which page
holds which channel, and so does ImageJ's text, whose pages go through channels first, then slices, then frames.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from itertools import product
from xml.etree import ElementTree

from featcache.directories import MAX_PAGES, Directory, directories_of, is_full, page_of
from featcache.errors import PictureError
from featcache.layout import Layout, layout_of
from featcache.records.reading import Reading

MAX_TEXT = 2**20
"""So many bytes the text has that says where channels are."""

Position = tuple[int, ...]
"""The pages, counted from 1, of the channels at one depth and time."""

Plane = tuple[int, int, int]
"""A channel, a depth and a time, from 0."""


class Stack:
    """The pages of a TIFF, whose directories and description are gone through once."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    @cached_property
    def directories(self) -> list[Directory]:
        """What the pages are; raises `PictureError`."""
        return directories_of(self.data)

    @cached_property
    def positions(self) -> list[Position]:
        """Which pages are the channels of one picture, for each depth and time; empty where they are in one page.

        Raises `PictureError` where the text that says so contradicts itself or the pages.
        """
        text = _description(self.data, self.directories[0])
        if text.startswith(b"ImageJ="):
            positions = _of_imagej(text)
        elif re.search(rb"<(\w+:)?OME[\s>]", text):
            positions = _of_ome(text)
        else:
            return []
        if not positions:
            return []
        if not all(is_full(self.data, directory) for directory in self.directories):
            raise PictureError("TIFF whose channels are pages, some in a lower resolution: save the full ones alone")
        last = max(max(pages) for pages in positions)
        if last > len(self.directories):
            raise PictureError(
                f"TIFF of {len(self.directories):,} pages, of which its description names the {last:,}th"
            )
        return positions

    def count(self, reading: Reading) -> int:
        """Return how many pictures there are, those that are channels of one counted once; raises `PictureError`."""
        of_channels = len(self.positions) if reading.channels else 0
        return of_channels or sum(is_full(self.data, directory) for directory in self.directories)

    def layout_asked(self, reading: Reading) -> tuple[Layout, Reading]:
        """Return the layout of the page that is asked for, and how it is read; raises `PictureError`.

        Where channels are asked for that are pages, these pages are the planes of one picture.
        """
        if not reading.channels or not self.positions:
            return self._layout(reading.first, bool(reading.channels)), reading
        if reading.first > len(self.positions):
            raise PictureError(
                f"TIFF of {len(self.positions):,} pages of several channels, which has no page {reading.first:,}"
            )
        pages = self.positions[reading.first - 1]
        if max(reading.channels) >= len(pages):
            raise PictureError(
                f"TIFF of {len(pages)} channels, from 0 on, which has no channel {max(reading.channels)}"
            )
        planes = [self._layout(pages[channel], is_chosen=True) for channel in reading.channels]
        return _together(planes), replace(reading, channels=tuple(range(len(planes))))

    def page(self, number: int) -> bytes:
        """Return a TIFF of one page, counted from 1; raises `PictureError`."""
        return page_of(self.data, self.directories, number)

    def _layout(self, page: int, is_chosen: bool) -> Layout:
        return layout_of(self.data, page, is_chosen=is_chosen, directories=self.directories)


def _description(data: bytes, directory: Directory) -> bytes:
    entry = directory.entries.get(270)
    if entry is None or entry.kind != 2:
        return b""
    if entry.values > MAX_TEXT:
        raise PictureError(f"TIFF with a description of {entry.values:,} bytes, at most {MAX_TEXT:,} are read")
    return data[entry.place : entry.place + entry.values].rstrip(b"\0")


def _of_imagej(text: bytes) -> list[Position]:
    said = dict(re.findall(rb"^(images|channels|slices|frames)=(\d{1,6})\s*$", text, re.MULTILINE))
    channels = int(said.get(b"channels", 1))
    others = int(said.get(b"slices", 1)) * int(said.get(b"frames", 1))
    if channels < 2:
        return []
    if not 0 < others * channels <= MAX_PAGES:
        raise PictureError(f"TIFF of {channels:,} channels and {others:,} slices and frames, as its description says")
    return [tuple(range(first, first + channels)) for first in range(1, 1 + others * channels, channels)]


def _of_ome(text: bytes) -> list[Position]:
    if re.search(rb"<!(DOCTYPE|ENTITY)", text):
        raise PictureError("TIFF whose OME-XML has a document type, which may define anything: save it without one")
    try:
        root = ElementTree.fromstring(text.decode(errors="replace"))  # whatever encoding it states, it is UTF-8
    except ElementTree.ParseError as error:
        raise PictureError(f"broken OME-TIFF: {error}") from error
    pixels = next((element for element in root.iter() if _named(element, "Pixels")), None)
    if pixels is None:
        return []
    try:
        sizes = {name: int(pixels.get(f"Size{name}", "1")) for name in "CZT"}
        samples = [int(each.get("SamplesPerPixel", "1")) for each in pixels if _named(each, "Channel")]
        order = pixels.get("DimensionOrder", "XYCZT")[2:]
        if sorted(order) != ["C", "T", "Z"] or min(sizes.values()) < 1:
            raise ValueError(f"sizes {sizes} in the order {order:.20}")
        if sizes["C"] * sizes["Z"] * sizes["T"] > MAX_PAGES:
            raise ValueError(f"more than {MAX_PAGES:,} planes")
        if max(samples, default=1) > 1 or sizes["C"] == 1:
            return []
        pages = _pages(root, pixels, sizes, order)
    except ValueError as error:
        raise PictureError(f"broken OME-TIFF: {error} in its description") from error
    return [
        tuple(pages[channel, depth, time] for channel in range(sizes["C"]))
        for time, depth in product(range(sizes["T"]), range(sizes["Z"]))
    ]


def _pages(
    root: ElementTree.Element, pixels: ElementTree.Element, sizes: dict[str, int], order: str
) -> dict[Plane, int]:
    """Return the page, from 1, of each channel, depth and time; raises `ValueError`."""
    planes = []
    for at in product(*(range(sizes[name]) for name in reversed(order))):  # its first letter goes fastest
        place = dict(zip(reversed(order), at, strict=True))
        planes.append((place["C"], place["Z"], place["T"]))
    numbers = {plane: number for number, plane in enumerate(planes)}
    found: dict[Plane, int] = {}
    named = 0
    for element in pixels:
        if not _named(element, "TiffData"):
            continue
        elsewhere = [each for each in element if _named(each, "UUID") and each.text != root.get("UUID")]
        if elsewhere:
            raise ValueError(f"a channel is in another file, {elsewhere[0].get('FileName', 'not named')!r:.100},")
        channel, depth, time = (int(element.get(f"First{name}", "0")) for name in "CZT")
        first = numbers.get((channel, depth, time), len(planes))
        is_one = "IFD" in element.attrib
        page = int(element.get("IFD", "0"))
        count = int(element.get("PlaneCount", "1" if is_one else str(len(planes) - first)))
        if min(page, count) < 0 or first + count > len(planes):
            raise ValueError(f"{count:,} planes from channel {channel}, depth {depth}, time {time} on")
        named += count
        if named > len(planes):
            raise ValueError(f"pages for more than its {len(planes):,} planes")
        found |= {plane: page + at + 1 for at, plane in enumerate(planes[first : first + count])}
    if not found:
        return {plane: number + 1 for plane, number in numbers.items()}
    if lacking := [plane for plane in planes if plane not in found]:
        raise ValueError("no page for channel {}, depth {}, time {}".format(*lacking[0]))
    return found


def _named(element: ElementTree.Element, name: str) -> bool:
    return element.tag.rpartition("}")[2] == name


def _together(planes: Sequence[Layout]) -> Layout:
    """Return the layout of one picture of several pages, each a plane."""
    first = planes[0]
    alike = {replace(plane, offsets=(), counts=(), orientation=1) for plane in planes}
    if len(alike) > 1 or first.samples != 1:
        raise PictureError("TIFF whose channels are pages of different sizes or kinds: save them as one RGB picture")
    return replace(
        first,
        samples=len(planes),
        planes=len(planes) > 1,
        offsets=tuple(offset for plane in planes for offset in plane.offsets),
        counts=tuple(count for plane in planes for count in plane.counts),
    )
