"""A map of the vectors enters; the section that shows it, with its points as columns of numbers, leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from featcache.records.reports import Map, MapPoint, ReportSummary
from featcache.render.charts.base import LIKE_SERIES, PAGE, SERIES, SHAPES, Spec
from featcache.render.charts.base import chart as chart_of
from featcache.render.html.blocks import Section, Spread, Text, section

TOLD_APART = 8
"""Classes that have a colour of their own; of more, one at a time is shown against grey."""

STEPS = 4000
"""Positions along the longer side: finer than the screen."""


def spread(summary: ReportSummary, numbers: Mapping[str, int]) -> Section:
    """Return the map; `numbers` are those of the thumbnails."""
    found = summary.map
    labels = sorted(
        {point.label for point in found.points} | {point.predicted or point.label for point in found.points}
    )
    variance = "" if found.variance is None else f", which show {100 * found.variance:.1f} % of their variance"
    few = "" if len(found.points) == found.pictures else f" ({len(found.points):,} of them drawn)"
    beware = (
        "what lies apart in the other dimensions may fall together"
        if found.method == "PCA"
        else "how far clusters are from each other, and how large they are, means nothing"
    )
    said = (
        f"The vectors of {found.pictures:,} pictures{few} in two dimensions, by {found.method}{variance}. Pictures "
        f"that lie together here look alike to the backbone; {beware}."
    )
    if not found.points:
        return section("map", "A map of the pictures", (Text("There is no picture to draw.", quiet=True),))
    chart = map_chart(len(labels), len(found.points))
    view = Spread(chart, columns(found, labels, numbers), tuple(labels), len(labels) > TOLD_APART)
    return section("map", "A map of the pictures", (Text(said), view))


def columns(found: Map, labels: Sequence[str], numbers: Mapping[str, int]) -> dict[str, object]:
    """Return the points as columns; labels, splits and thumbnails are numbers, -1 where there is none."""
    points = found.points
    splits = list(dict.fromkeys(point.split for point in points))
    at = {label: i for i, label in enumerate(labels)}
    left, low = min(point.x for point in points), min(point.y for point in points)
    longer = max(max(point.x for point in points) - left, max(point.y for point in points) - low) or 1.0
    folder = _folder(points)
    return {
        "folder": folder,
        "labels": list(labels),
        "splits": splits,
        "x": [round(STEPS * (point.x - left) / longer) for point in points],
        "y": [round(STEPS * (point.y - low) / longer) for point in points],
        "label": [at[point.label] for point in points],
        "split": [splits.index(point.split) for point in points],
        "predicted": [-1 if point.predicted is None else at[point.predicted] for point in points],
        "path": [point.path.removeprefix(folder) for point in points],
        "picture": [numbers.get(point.path, -1) for point in points],
    }


def _folder(points: Sequence[MapPoint]) -> str:
    """Return the folder that all paths begin with, with its separator."""
    first, last = min(point.path for point in points), max(point.path for point in points)
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[: first.rfind("/", 0, same) + 1]


def map_chart(n_labels: int, n_points: int) -> Spec:
    """Return the chart; the page sets its points, the chosen class (-1 for none) and what is coloured."""
    several = n_labels > TOLD_APART
    size = 60 if n_points <= 600 else 28 if n_points <= 3000 else 14
    front = "(by == 'class' && datum.c == chosen) || (by == 'outcome' && datum.o == 2)"
    hidden = {"type": "quantitative", "axis": None, "scale": {"nice": False, "zero": False, "padding": 12}}
    faint = {"test": "by == 'class' ? chosen >= 0 : datum.o == 0", "value": 0.25}
    content = {
        "params": [
            {"name": "by", "value": "class"},
            {"name": "chosen", "value": -1},
            {"name": "brush", "select": {"type": "interval", "mark": {"stroke": SERIES[7], "fillOpacity": 0.1}}},
        ],
        "transform": [{"calculate": f"({front}) ? 1 : 0", "as": "front"}],
        "mark": {"type": "point", "filled": True},
        "encoding": {
            "x": {"field": "x", **hidden},
            "y": {"field": "y", **hidden},
            "color": _of_class(_colors(several), SERIES),
            "shape": _of_class(_shapes(several), SHAPES),
            "opacity": {
                "condition": [{"test": "datum.front", "value": 0.95}, faint],
                "value": 0.5 if several else 0.8,
            },
            "size": {"condition": {"test": "datum.front", "value": max(size, 40)}, "value": size},
            "order": {"field": "front", "type": "quantitative"},
        },
    }
    return chart_of(PAGE, [], content, 520)


def _colors(several: bool) -> list[Spec]:
    """Return the colours of points that have not that of their class."""
    wrong, right, grey = LIKE_SERIES["wrong"], LIKE_SERIES["accent"], LIKE_SERIES["quiet"]
    rules = [
        ("by == 'outcome' && datum.o == 2", wrong),
        ("by == 'outcome' && datum.o == 1", right),
        ("by == 'outcome'", grey),
        ("chosen >= 0 && datum.c != chosen", grey),
        *([("datum.c == chosen", wrong), ("true", grey)] if several else []),
    ]
    return [{"test": test, "value": color} for test, color in rules]


def _shapes(several: bool) -> list[Spec]:
    """Return the shapes of points that have not that of their class."""
    rules = [("by == 'outcome' && datum.o == 2", "cross"), ("true" if several else "by == 'outcome'", "circle")]
    return [{"test": test, "value": shape} for test, shape in rules]


def _of_class(others: list[Spec], values: Sequence[str]) -> Spec:
    scale = {"domain": list(range(TOLD_APART)), "range": list(values)}
    return {"condition": others, "field": "c", "type": "nominal", "scale": scale, "legend": None}
