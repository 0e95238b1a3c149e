"""Counts and scores of classes enter; charts of both leave, with a row a class, or a column where they are many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from featcache.records.audits import SizeRow
from featcache.records.experiments import ClassRow
from featcache.render.charts.base import (
    LIKE_SERIES,
    SERIES,
    Palette,
    Spec,
    chart,
    named,
    number,
    padded,
    tip,
    with_legend,
)

USED = ("train", "val", "test")

MANY = 30
"""From more classes than this on, names are in the table and under the pointer only."""


def sizes_chart(sizes: Sequence[SizeRow], palette: Palette) -> Spec:
    """Return how many files each class has in each split, the largest class first."""
    rows = sorted(sizes, key=lambda row: -row.pictures)
    splits = split_names(sizes)
    values = [
        {"i": i, "s": s, "n": row.splits.get(split, 0)} for i, row in enumerate(rows) for s, split in enumerate(splits)
    ]
    names = [*splits, *(row.label for row in rows)]
    color = {
        "field": "s",
        "type": "nominal",
        "scale": {"domain": list(range(len(splits))), "range": list(SERIES[: len(splits)])},
        "legend": {"labelExpr": "names[datum.value]", "symbolType": "square"},
    }
    content = {
        "transform": [
            {"calculate": f"names[datum.i + {len(splits)}]", "as": "class"},
            {"calculate": "names[datum.s]", "as": "split"},
        ],
        "mark": {"type": "bar"},
        "encoding": {
            **_sides(len(rows), number("n", "files"), f"names[datum.value + {len(splits)}]"),
            "color": color,
            "order": {"field": "s"},
            "tooltip": tip(("class", "class"), ("split", "split"), ("n", "files", ",")),
        },
    }
    spec = chart(palette, values, content, _height(len(rows)), names)
    return with_legend(spec, splits, titled=len(rows) > MANY)


def split_names(sizes: Sequence[SizeRow]) -> list[str]:
    """Return the splits, in the order in which they are used."""
    names = dict.fromkeys(split for row in sizes for split in row.splits)
    return sorted(names, key=lambda name: USED.index(name) if name in USED else len(USED))


def scores_chart(classes: Sequence[ClassRow], palette: Palette) -> Spec:
    """Return the F1 of each class, the best first, with precision and recall; unlearnable ones stand out."""
    rows = by_f1(classes)
    values = [
        {"i": i, "p": row.precision, "r": row.recall, "f": row.f1, "n": row.n_test, "lost": row.is_unlearnable}
        for i, row in enumerate(rows)
    ]
    lost = {"condition": {"test": "datum.lost", "value": LIKE_SERIES["wrong"]}, "value": LIKE_SERIES["accent"]}
    said = tip(("class", "class"), ("f", "F1", ".3f"), ("p", "precision", ".3f"), ("r", "recall", ".3f"),
               ("n", "scored pictures", ","))  # fmt: skip
    ends = padded([each for row in rows for each in (row.precision, row.recall, row.f1)] or [0.0, 1.0])
    fraction: dict[str, Any] = {"scale": {"domain": ends if len(rows) <= MANY else [0, 1], "nice": True}}
    title = "F1 (line: precision to recall)" if len(rows) <= MANY else "F1"
    bars = {
        "mark": {"type": "bar", "opacity": 0.85},
        "encoding": _sides(len(rows), number("f", title, **fraction)),
    }
    dots = [
        {
            "mark": {"type": "rule", "strokeWidth": 2, "opacity": 0.5},
            "encoding": {**_sides(len(rows), number("p", title, **fraction)), "x2": {"field": "r"}},
        },
        {
            "mark": {"type": "point", "size": 80},
            "encoding": _sides(len(rows), number("f", title, **fraction)),
        },
    ]
    content = {
        "transform": [{"calculate": "names[datum.i]", "as": "class"}],
        "encoding": {"color": lost, "tooltip": said},
        "layer": dots if len(rows) <= MANY else [bars],
    }
    return chart(palette, values, content, _height(len(rows)), [row.label for row in rows])


def by_f1(classes: Sequence[ClassRow]) -> list[ClassRow]:
    """Return the classes, the best first."""
    return sorted(classes, key=lambda row: (-row.f1, row.label))


def _sides(n: int, value: Spec, label: str = "names[datum.value]") -> Spec:
    """Return both positions: a row a class, or a column without its name."""
    if n <= MANY:
        return {"y": named(labelExpr=label), "x": value}
    hidden = {"labels": False, "ticks": False, "title": f"{n:,} classes", "grid": False}
    return {"x": {"field": "i", "type": "ordinal", "axis": hidden, "scale": {"padding": 0.15}}, "y": value}


def _height(n: int) -> int:
    return 24 * max(2, n) if n <= MANY else 220
