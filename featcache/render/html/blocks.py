"""Text, numbers, charts and paths enter; the blocks that sections of a page are made of leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from featcache.render.charts.base import Spec
from featcache.render.tables import Table


@dataclass(frozen=True)
class Text:
    """A paragraph; what stands between backticks is code. A quiet one says what is not there, or how to read on."""

    text: str
    quiet: bool = False
    kind: ClassVar = "text"


@dataclass(frozen=True)
class Heading:
    """A heading inside a section, and how many there are of what stands below it."""

    text: str
    count: int | None = None
    kind: ClassVar = "heading"


@dataclass(frozen=True)
class Points:
    """Lines of text, one below the other."""

    lines: tuple[str, ...]
    kind: ClassVar = "points"


@dataclass(frozen=True)
class Facts:
    """Names and their values."""

    rows: tuple[tuple[str, str], ...]
    kind: ClassVar = "facts"


@dataclass(frozen=True)
class Chart:
    """A chart, in words what it shows, and its title; a square one is as high as it is wide."""

    spec: Spec
    label: str
    title: str = ""
    square: bool = False


@dataclass(frozen=True)
class Charts:
    """Charts side by side, as far as there is room."""

    charts: tuple[Chart, ...]
    kind: ClassVar = "charts"


@dataclass(frozen=True)
class Grid:
    """A table; one that can be sorted has buttons for it, a folded one is opened by a click on these words."""

    table: Table
    sortable: bool = False
    folded: str = ""
    kind: ClassVar = "grid"


@dataclass(frozen=True)
class Picture:
    """A picture by its path, what is seen on it in words, and the lines below it; the first stands out."""

    path: str
    alt: str
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Gallery:
    """Pictures that belong together, under a title, with what is said of them and of those not shown."""

    pictures: tuple[Picture, ...]
    title: str = ""
    note: str = ""


@dataclass(frozen=True)
class Galleries:
    """Groups of pictures, side by side as far as there is room."""

    groups: tuple[Gallery, ...]
    kind: ClassVar = "galleries"


@dataclass(frozen=True)
class Spread:
    """A map of pictures: its chart, the columns of its points, and the names of the classes to choose from.

    Where it is `crowded` there are more classes than colours, so that it begins with what is right and wrong.
    """

    spec: Spec
    columns: dict[str, Any]
    labels: tuple[str, ...]
    crowded: bool
    kind: ClassVar = "spread"


Block = Text | Heading | Points | Facts | Charts | Grid | Galleries | Spread


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading of its own, which links name by `id`."""

    id: str
    title: str
    blocks: tuple[Block, ...]


def section(name: str, title: str, blocks: Sequence[Block]) -> Section:
    """Return a section without tables that have no rows, and charts that have nothing to show."""
    return Section(name, title, tuple(block for block in blocks if not _is_empty(block)))


def _is_empty(block: Block) -> bool:
    if isinstance(block, Charts):
        return not any(chart.spec["data"]["values"] for chart in block.charts)
    return isinstance(block, Grid) and not block.table.rows


@dataclass(frozen=True)
class Tile:
    """A number of the summary on top: what it is, its value, and what must be known to read it."""

    name: str
    value: str
    note: str


@dataclass(frozen=True)
class Top:
    """What stands above all sections."""

    title: str
    subtitle: str
    text: str
    tiles: tuple[Tile, ...]
    findings: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    command: str


def plural(number: int, one: str, many: str = "") -> str:
    """Return a number with the word for it."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def more(number: int, what: str, where: str) -> str:
    """Say how many are not shown, and where they are; empty where all are shown."""
    return f"and {number:,} more {what}: {where}" if number > 0 else ""
