"""Who is taken for whom enters; an order with like classes side by side, and the matrix in it as a chart, leave."""

from __future__ import annotations

from collections.abc import Sequence

from featcache.records.experiments import ConfusionSummary
from featcache.render.charts.base import LIKE_SERIES, Palette, Spec, chart, tip

CLOSEST = 400
"""Up to so many classes the leaves are put into the best order; it takes the third power of their number."""

NUMBERED = 14
"""Up to so many classes the counts are written into the cells."""


def order(matrix: Sequence[Sequence[int]]) -> list[int]:
    """Return the numbers of the classes, those taken for each other side by side."""
    if len(matrix) < 3:
        return list(range(len(matrix)))

    import numpy as np
    from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
    from scipy.spatial.distance import squareform

    shares = np.array(matrix, dtype=float)
    shares /= np.maximum(shares.sum(1, keepdims=True), 1)
    distances = 1 - np.clip((shares + shares.T) / 2, 0, 1)
    np.fill_diagonal(distances, 0)
    between = squareform(distances, checks=False)
    tree = linkage(between, "average")
    if len(matrix) <= CLOSEST:
        tree = optimal_leaf_ordering(tree, between)
    return [int(leaf) for leaf in leaves_list(tree)]


def matrix_chart(summary: ConfusionSummary, palette: Palette) -> Spec:
    """Return the matrix: true classes down, predicted ones across, coloured by their share of the true class."""
    places, n = order(summary.matrix), len(summary.labels)
    values = []
    for t, row in enumerate(places):
        total = sum(summary.matrix[row])
        for p, column in enumerate(places):
            count = summary.matrix[row][column]
            if count:
                values.append({"t": t, "p": p, "n": count, "s": count / total})
    said = tip(("true", "true class"), ("said", "predicted"), ("n", "pictures", ","), ("s", "of the true class", ".1%"))
    color = {"condition": {"test": "datum.t == datum.p", "value": LIKE_SERIES["quiet"]}, "value": LIKE_SERIES["wrong"]}
    shade = {"condition": {"test": "datum.t == datum.p", "value": 0.28}, "field": "s", "type": "quantitative",
             "scale": {"type": "sqrt", "domain": [0, 1], "range": [0.12, 0.85] if n <= NUMBERED else [0.3, 1]},
             "legend": None}  # fmt: skip
    cells = {"mark": {"type": "rect"}, "encoding": {"color": color, "opacity": shade, "tooltip": said}}
    numbers = {
        "mark": {"type": "text", "fontSize": 13, "tooltip": None, "color": palette.ink},
        "encoding": {"text": {"field": "n", "type": "quantitative", "format": ","}},
    }
    content = {
        "transform": [
            {"calculate": "names[datum.t]", "as": "true"},
            {"calculate": "names[datum.p]", "as": "said"},
        ],
        "encoding": {"y": _side("t", "true class", n), "x": _side("p", "predicted class", n)},
        "layer": [cells, *([numbers] if n <= NUMBERED else [])],
    }
    spec = chart(palette, values, content, min(900, max(240, 26 * n)), [summary.labels[row] for row in places])
    spec["config"]["axis"]["labelLimit"] = 150 if n <= 40 else 96
    return spec | {"view": {"stroke": palette.grid}}


def _side(field: str, title: str, n: int) -> Spec:
    axis = {
        "labelExpr": "names[datum.value]",
        "title": title,
        "grid": 2 < n <= NUMBERED * 3,
        "bandPosition": 0,
        "ticks": False,
        "domain": False,
        "labelFontSize": 12 if n <= 40 else 9,
        "labelOverlap": "greedy" if n > 40 else False,
    }
    if field == "p":
        axis |= {"orient": "bottom", "labelAngle": 0 if n <= 4 else -90}
    return {
        "field": field,
        "type": "ordinal",
        "scale": {"domain": list(range(n)), "padding": 0.04 if n <= 40 else 0},
        "axis": axis,
    }
