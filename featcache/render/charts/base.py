"""Values to plot enter; Vega-Lite specifications with one look leave, for a page or for paper."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from featcache.errors import one_line

Spec = dict[str, Any]

SERIES = ("#0072b2", "#d55e00", "#009e73", "#b9659a", "#8a6d1f", "#2b8fc7", "#7a5fc0", "#7d7d7d")
"""Okabe and Ito's hues, as light as keeps them apart from white and from a dark background alike."""

SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
"""A second mark of each series besides its colour."""


@dataclass(frozen=True)
class Palette:
    """The colours of what is no series: text, quieter text, lines behind, and the background."""

    ink: str
    muted: str
    grid: str
    background: str
    font: str


PAGE = Palette("var(--ink)", "var(--muted)", "var(--line)", "transparent", "system-ui, sans-serif")
"""Of the page, which turns light and dark by its style sheet."""

PRINT = Palette("#1a1a1a", "#4d4d4d", "#d9d9d9", "#ffffff", "Liberation Sans, Arial, sans-serif")
"""Of a figure on paper."""

LIKE_SERIES = {"wrong": SERIES[1], "right": SERIES[2], "accent": SERIES[0], "quiet": SERIES[7]}
"""What some of the series' colours mean where there is no series."""


def chart(
    palette: Palette,
    values: Sequence[Mapping[str, Any]],
    content: Mapping[str, Any],
    height: int,
    names: Sequence[str] = (),
) -> Spec:
    """Return a chart as wide as what holds it; in `content` an expression finds `names` by number as `names[...]`."""
    own = {"name": "names", "value": [one_line(name) for name in names]}
    return {
        "config": config(palette),
        "autosize": {"type": "fit-x", "contains": "padding"},
        "width": "container",
        "height": height,
        "data": {"values": list(values)},
        **content,
        "params": [*content.get("params", []), own],
    }


def config(palette: Palette) -> Spec:
    """Return the look that all charts share."""
    text = {"labelColor": palette.muted, "titleColor": palette.ink, "labelFontSize": 12, "titleFontSize": 12}
    return {
        "aria": False,
        "background": palette.background,
        "font": palette.font,
        "view": {"stroke": None},
        "axis": {
            **text,
            "titleFontWeight": 600,
            "titlePadding": 8,
            "gridColor": palette.grid,
            "domainColor": palette.muted,
            "tickColor": palette.muted,
            "tickSize": 4,
            "labelLimit": 230,
            "labelPadding": 5,
            "labelFlush": False,
        },
        "axisX": {"tickCount": 9, "labelSeparation": 8},
        "axisYQuantitative": {"titleAlign": "left", "titleAngle": 0, "titleAnchor": "end", "titleX": 0, "titleY": -14},
        "legend": {
            **text,
            "orient": "top",
            "title": None,
            "symbolSize": 70,
            "symbolOpacity": 1,
            "columnPadding": 14,
            "labelLimit": 220,
            "offset": 20,
        },
        "title": {"color": palette.ink, "subtitleColor": palette.muted, "anchor": "start"},
        "point": {"filled": True, "opacity": 1},
        "range": {"category": list(SERIES)},
    }


def with_legend(spec: Spec, labels: Sequence[str], *, titled: bool = False) -> Spec:
    """Return a chart that knows its legend's labels; a title of its vertical axis stands between legend and chart."""
    spec["config"]["legend"]["offset"] = 38 if titled else 20
    spec["usermeta"] = {"entry": 36 + 7 * max((len(label) for label in labels), default=0), "entries": len(labels)}
    return spec


def fitted(spec: Spec, width: int) -> Spec:
    """Return a chart of a fixed width, with its legend in as many columns as there is room for."""
    own = spec.pop("usermeta", None)
    if own and own["entry"] * own["entries"] > width:
        spec["config"]["legend"]["columns"] = max(1, width // own["entry"])
    return spec | {"width": width}


def named(field: str = "i", **axis: Any) -> Spec:
    """Return a vertical position by number, each with its name beside it."""
    look = {"labelExpr": "names[datum.value]", "title": None, "domain": False, "ticks": False, **axis}
    return {"field": field, "type": "ordinal", "axis": look}


def number(field: str, title: str, **rest: Any) -> Spec:
    """Return a position by value, with the axis's title."""
    return {"field": field, "type": "quantitative", "title": title, **rest}


def tip(*fields: tuple[str, str] | tuple[str, str, str]) -> list[Spec]:
    """Return what is said where the pointer stands: fields, titles and, for numbers, how they are written."""
    return [
        {"field": name, "title": title, **({"format": how[0], "type": "quantitative"} if how else {"type": "nominal"})}
        for name, title, *how in fields
    ]


def decades(values: Sequence[float]) -> Spec:
    """Return a logarithmic scale's ends and its few round ticks, as parts of a position."""
    low, high = math.log10(min(values)), math.log10(max(values))
    steps = (1, 3) if high - low < 3 else (1,)
    ticks = [step * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for step in steps]
    inside = [tick for tick in ticks if low - 0.15 <= math.log10(tick) <= high + 0.15]
    ends = [10 ** (low - 0.1), 10 ** (high + 0.1)]
    return {"scale": {"type": "log", "domain": ends, "nice": False}, "axis": {"values": inside, "format": "~g"}}


def padded(values: Sequence[float], share: float = 0.06) -> list[float]:
    """Return the range of fractions with some room at both ends, inside 0 to 1."""
    low, high = min(values), max(values)
    room = max(share * (high - low), 0.02)
    return [max(0.0, low - room), min(1.0, high + room)]
