"""Comparisons of heads and grids of their scores enter; charts of accuracy and of seconds leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from featcache.records.experiments import BenchRow, BenchSummary, CompareRow, CompareSummary
from featcache.render.charts.base import (
    LIKE_SERIES,
    SERIES,
    SHAPES,
    Palette,
    Spec,
    chart,
    decades,
    named,
    number,
    padded,
    tip,
    with_legend,
)
from featcache.render.formats import head_name

KINDS = {
    "best": ("the best head", LIKE_SERIES["accent"], "circle"),
    "tie": ("a tie with it", SERIES[5], "square"),
    "worse": ("worse", LIKE_SERIES["quiet"], "triangle-down"),
    "finetuned": ("finetuned", LIKE_SERIES["wrong"], "diamond"),
}
"""Of each kind of row its words, colour and shape."""


@dataclass(frozen=True)
class Axis:
    """One axis of a bench: its field in the rows, the other one, and its title."""

    name: str
    other: str
    title: str


CLASSES = Axis("classes", "per_class", "number of classes")
PER_CLASS = Axis("per_class", "classes", "images per class fitted on")


def ranked(summary: CompareSummary) -> list[CompareRow]:
    """Return the rows with a score, the best first; those without one come last."""
    return sorted(summary.rows, key=lambda row: -1.0 if row.accuracy is None else row.accuracy, reverse=True)


def floor_text(summary: CompareSummary) -> str:
    """Say where the floor is, which would leave the heads little room in a chart; empty where it was not tried."""
    rows = [row for row in summary.rows if row.verdict == "floor" and row.accuracy is not None]
    return "".join(f"Not drawn: the floor ({row.head}, accuracy {row.accuracy:.3f})." for row in rows[:1])


def compare_chart(summary: CompareSummary, palette: Palette) -> Spec:
    """Return the accuracy of each head but the floor as a dot, on its interval as a line."""
    rows = [row for row in ranked(summary) if row.accuracy is not None and row.verdict != "floor"]
    values = []
    for i, row in enumerate(rows):
        low, high = row.accuracy_interval or (row.accuracy, row.accuracy)
        kind = KINDS["finetuned" if row.gain is not None else row.verdict][0]
        values.append({"i": i, "head": head_name(row), "a": row.accuracy, "low": low, "high": high, "kind": kind})
    used = [kind for kind in KINDS.values() if kind[0] in {value["kind"] for value in values}]
    kinds = [kind[0] for kind in used]
    color = {"field": "kind", "type": "nominal", "scale": {"domain": kinds, "range": [kind[1] for kind in used]}}
    said = tip(("head", "head"), ("a", "accuracy", ".3f"), ("low", "from", ".3f"), ("high", "to", ".3f"))
    x = number("low", "accuracy, with its 95 % interval", scale={"domain": _fractions(values), "nice": True})
    shape = {"field": "kind", "type": "nominal", "scale": {"domain": kinds, "range": [kind[2] for kind in used]}}
    content = {
        "encoding": {"y": named(grid=True, gridDash=[1, 3]), "color": color, "tooltip": said},
        "layer": [
            {"mark": {"type": "rule", "strokeWidth": 2}, "encoding": {"x": x, "x2": {"field": "high"}}},
            {
                "mark": {"type": "point", "size": 90},
                "encoding": {"x": number("a", x["title"]), "shape": shape},
            },
        ],
    }
    spec = chart(palette, values, content, 28 * max(2, len(rows)), [head_name(row) for row in rows])
    return with_legend(spec, kinds)


def _fractions(values: Sequence[dict[str, Any]]) -> list[float]:
    return padded([*(value["low"] for value in values), *(value["high"] for value in values)] or [0.0, 1.0])


def bench_rows(summary: BenchSummary, axis: Axis) -> list[BenchRow]:
    """Return the rows of one axis, from few to all; none where fewer than two numbers were tried."""
    rows = [row for row in summary.rows if getattr(row, axis.other) is None]
    rows = sorted(rows, key=lambda row: (_count(row, axis), getattr(row, axis.name) is None))
    return rows if len({_count(row, axis) for row in rows}) > 1 else []


def bench_charts(summary: BenchSummary, axis: Axis, palette: Palette) -> dict[str, Spec]:
    """Return accuracy (a line a head, a band from the lowest to the highest seed) and seconds against one axis."""
    rows = [row for row in bench_rows(summary, axis) if row.accuracy is not None]
    if not rows:
        return {}
    values = [
        {
            "x": _count(row, axis),
            "head": row.head,
            "a": row.accuracy,
            "low": min(row.accuracies, default=row.accuracy),
            "high": max(row.accuracies, default=row.accuracy),
            "s": row.fit_seconds or None,
        }
        for row in rows
    ]
    every = sorted({_count(row, axis) for row in rows})
    last = next((_count(row, axis) for row in rows if getattr(row, axis.name) is None), -1)
    x = number(
        "x",
        f"{axis.title} (log scale)",
        scale={"type": "log", "nice": False, "padding": 12},
        axis={
            "values": every,
            "grid": False,
            "labelExpr": f"(datum.value == {last} ? 'all ' : '') + format(datum.value, ',')",
        },
    )
    heads = list(dict.fromkeys(row.head for row in rows))
    drawn = {"accuracy": _accuracy(x, values), "seconds": _seconds(x, values)}
    return {what: with_legend(chart(palette, values, each, 300), heads, titled=True) for what, each in drawn.items()}


def _accuracy(x: Spec, values: Sequence[dict[str, Any]]) -> Spec:
    scale = {"domain": _fractions(values), "nice": True}
    y = number("a", "accuracy", scale=scale)
    said = tip(("head", "head"), ("x", x["title"].split(" (")[0], ","), ("a", "accuracy", ".3f"),
               ("low", "lowest seed", ".3f"), ("high", "highest seed", ".3f"))  # fmt: skip
    band = {**number("low", "accuracy", scale=scale)}
    layers = [
        {
            "mark": {"type": "area"},
            "encoding": {
                "x": x,
                "y": band,
                "y2": {"field": "high"},
                "color": _head(values),
                "opacity": _picked(0.12, 0),
            },
        },
        *_lines(x, y, values, said),
    ]
    return {"layer": layers}


def _seconds(x: Spec, values: Sequence[dict[str, Any]]) -> Spec:
    scale = decades([value["s"] for value in values if value["s"]] or [1.0])
    y = number("s", "seconds to choose and fit (log scale)", **scale)
    said = tip(("head", "head"), ("x", x["title"].split(" (")[0], ","), ("s", "seconds", ".3f"))
    return {"transform": [{"filter": "datum.s > 0"}], "layer": _lines(x, y, values, said)}


def _lines(x: Spec, y: Spec, values: Sequence[dict[str, Any]], said: list[Spec]) -> list[Spec]:
    encoding = {"x": x, "y": y, "color": _head(values), "opacity": _picked(1, 0.12)}
    pick = {"name": "pick", "select": {"type": "point", "fields": ["head"]}, "bind": "legend"}
    heads = list(dict.fromkeys(value["head"] for value in values))
    shape = {"field": "head", "type": "nominal", "scale": {"domain": heads, "range": _repeat(SHAPES, len(heads))}}
    return [
        {"params": [pick], "mark": {"type": "line", "strokeWidth": 1.8}, "encoding": encoding},
        {"mark": {"type": "point", "size": 50}, "encoding": {**encoding, "shape": shape, "tooltip": said}},
    ]


def _picked(usual: float, other: float) -> Spec:
    """Return how opaque a head is: as usual, unless others are picked in the legend."""
    return {"condition": {"param": "pick", "value": usual}, "value": other}


def _head(values: Sequence[dict[str, Any]]) -> Spec:
    heads = list(dict.fromkeys(value["head"] for value in values))
    return {"field": "head", "type": "nominal", "scale": {"domain": heads, "range": _repeat(SERIES, len(heads))}}


def _repeat(values: Sequence[str], n: int) -> list[str]:
    return [values[i % len(values)] for i in range(n)]


def _count(row: BenchRow, axis: Axis) -> int:
    """Return where a row stands: what was asked for, or how many all of them are."""
    if axis is CLASSES:
        return row.n_classes if row.classes is None else row.classes
    return row.per_class or max(1, round(row.n_train / max(1, row.n_classes)))
