"""A map of the vectors enters; the section that shows it, with its points as columns of numbers, leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from featcache.records.reports import Map, MapPoint, ReportSummary
from featcache.render.charts.base import LIKE_SERIES, PAGE, SERIES, SHAPES, Spec, chart
from featcache.render.html.blocks import Section, Spread, Text

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
    said = (
        f"The vectors of {found.pictures:,} pictures{few} in two dimensions, by {found.method}{variance}. Pictures "
        "that lie together here look alike to the backbone; what lies apart in the other dimensions may fall together."
    )
    if not found.points:
        return Section("map", "A map of the pictures", (Text("There is no picture to draw.", quiet=True),))
    view = Spread(map_chart(len(labels), len(found.points)), columns(found, labels, numbers), tuple(labels))
    return Section("map", "A map of the pictures", (Text(said), view))


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
    grey, plain = {"value": LIKE_SERIES["quiet"]}, "by == 'class'"
    colors = [
        {"test": "by == 'outcome' && datum.o == 2", "value": LIKE_SERIES["wrong"]},
        {"test": "by == 'outcome' && datum.o == 1", "value": LIKE_SERIES["accent"]},
        {"test": "by == 'outcome'", **grey},
        {"test": "chosen >= 0 && datum.c != chosen", **grey},
        *([{"test": "datum.c == chosen", "value": LIKE_SERIES["wrong"]}, {"test": "true", **grey}] if several else []),
    ]
    domain = list(range(TOLD_APART))
    scale = {"domain": domain, "range": list(SERIES)}
    shapes = [
        {"test": "by == 'outcome' && datum.o == 2", "value": "cross"},
        {"test": f"by == 'outcome' || {'true' if several else 'false'}", "value": "circle"},
    ]
    size = 60 if n_points <= 600 else 28 if n_points <= 3000 else 14
    front = f"({plain} && datum.c == chosen) || (by == 'outcome' && datum.o == 2)"
    hidden = {"type": "quantitative", "axis": None, "scale": {"nice": False, "zero": False, "padding": 12}}
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
            "color": {"condition": colors, "field": "c", "type": "nominal", "scale": scale, "legend": None},
            "shape": {"condition": shapes, "field": "c", "type": "nominal",
                      "scale": {"domain": domain, "range": list(SHAPES)}, "legend": None},
            "opacity": {
                "condition": [
                    {"test": "datum.front", "value": 0.95},
                    {"test": f"{plain} ? chosen >= 0 : datum.o == 0", "value": 0.25},
                ],
                "value": 0.5 if several else 0.8,
            },
            "size": {"condition": {"test": "datum.front", "value": max(size, 40)}, "value": size},
            "order": {"field": "front", "type": "quantitative"},
        },
    }  # fmt: skip
    return chart(PAGE, [], content, 520)
