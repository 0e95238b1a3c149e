"""Trainings, calibrations and accounts of time enter; charts of their courses leave."""

from __future__ import annotations

from collections.abc import Sequence

from featcache.records.experiments import LedgerSummary
from featcache.records.finetuning import FinetuneSummary
from featcache.records.reports import CalibrationBin
from featcache.render.charts.base import LIKE_SERIES, SERIES, Palette, Spec, chart, named, number, tip, with_legend

UNITS = {"loss": "loss (nats a picture)", "accuracy": "accuracy"}


def epochs_chart(summary: FinetuneSummary, what: str, palette: Palette) -> Spec:
    """Return `loss` or `accuracy` against the epoch, on training and validation pictures, the kept epoch marked."""
    kinds = {
        f"validation (n={summary.n_val:,})": [(row.epoch, getattr(row, f"val_{what}")) for row in summary.history],
        f"training, as it went (n={summary.n_train:,})": [
            (row.epoch, getattr(row, f"train_{what}")) for row in summary.history
        ],
    }
    values = [
        {"x": epoch, "v": value, "on": kind, "fit": fit}
        for fit, (kind, points) in enumerate(kinds.items())
        for epoch, value in points
        if value is not None
    ]
    color = {"field": "on", "type": "nominal", "scale": {"domain": list(kinds), "range": list(SERIES[:2])}}
    shape = {"field": "on", "type": "nominal", "scale": {"domain": list(kinds), "range": ["circle", "square"]}}
    dash = {"condition": {"test": "datum.fit", "value": [5, 3]}, "value": [1, 0]}
    x = number(
        "x",
        f"epoch (dotted: epoch {summary.best_epoch}, which is kept)",
        axis={"format": "d", "tickMinStep": 1, "grid": False},
        scale={"nice": False},
    )
    y = number("v", UNITS[what], scale={"zero": what == "loss"})
    kept = {"values": [{"x": summary.best_epoch}]}
    layers = [
        {"data": kept, "mark": {"type": "rule", "strokeDash": [2, 3], "color": palette.muted}, "encoding": {"x": x}},
        {"mark": {"type": "line", "strokeWidth": 1.8},
         "encoding": {"x": x, "y": y, "color": color, "strokeDash": dash}},
        {"mark": {"type": "point", "size": 40},
         "encoding": {"x": x, "y": y, "color": color, "shape": shape,
                      "tooltip": tip(("on", "on"), ("x", "epoch", "d"), ("v", what, ".4f"))}},
    ]  # fmt: skip
    return with_legend(chart(palette, values, {"layer": layers}, 260), list(kinds), titled=True)


def reliability_chart(bins: Sequence[CalibrationBin], palette: Palette) -> Spec:
    """Return how many were right against how sure the head was, with 95 % intervals; the diagonal is what is meant."""
    from featcache.evaluate import wilson

    values = []
    for found in bins:
        low, high = wilson(round(found.accuracy * found.n), found.n)
        values.append({"c": found.confidence, "a": found.accuracy, "n": found.n, "low": low, "high": high})
    x = number("c", "probability of the predicted class", scale={"domain": [0, 1]})
    y = number("a", "share that was right", scale={"domain": [0, 1]})
    said = tip(("n", "pictures", ","), ("c", "mean probability", ".3f"), ("a", "right", ".3f"),
               ("low", "from", ".3f"), ("high", "to", ".3f"))  # fmt: skip
    size = {"field": "n", "type": "quantitative", "scale": {"range": [30, 350]}, "legend": None}
    ends = {"data": {"values": [{"c": 0, "a": 0}, {"c": 1, "a": 1}]}}
    content = {
        "layer": [
            {**ends, "mark": {"type": "line", "strokeDash": [4, 4], "color": palette.muted, "strokeWidth": 1},
             "encoding": {"x": x, "y": y}},
            {"mark": {"type": "rule", "color": LIKE_SERIES["accent"], "strokeWidth": 1.6},
             "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "tooltip": said}},
            {"mark": {"type": "point", "color": LIKE_SERIES["accent"]},
             "encoding": {"x": x, "y": y, "size": size, "tooltip": said}},
        ]
    }  # fmt: skip
    return chart(palette, values, content, 300)


def counts_chart(bins: Sequence[CalibrationBin], palette: Palette) -> Spec:
    """Return how many pictures there are for each range of probabilities."""
    values = [{"low": found.low, "high": found.high, "n": found.n} for found in bins]
    content = {
        "mark": {"type": "bar", "color": LIKE_SERIES["quiet"]},
        "encoding": {
            "x": number("low", "probability of the predicted class", scale={"domain": [0, 1]}, bin={"binned": True}),
            "x2": {"field": "high"},
            "y": number("n", "scored pictures"),
            "tooltip": tip(("low", "from", ".3f"), ("high", "to", ".3f"), ("n", "pictures", ",")),
        },
    }
    return chart(palette, values, content, 300)


def work_chart(summary: LedgerSummary, palette: Palette) -> Spec:
    """Return the seconds spent on each kind of work, the most first."""
    rows = sorted(summary.rows, key=lambda row: -row.seconds)
    values = [{"i": i, "s": row.seconds, "n": row.runs, "work": row.work} for i, row in enumerate(rows)]
    said = tip(("work", "work"), ("s", "seconds", ",.1f"), ("n", "runs", ","))
    return _seconds_chart(values, [row.work for row in rows], {"value": LIKE_SERIES["accent"]}, said, palette)


def cache_chart(summary: LedgerSummary, palette: Palette) -> Spec:
    """Return what the experiments took with the cache, and what they would have taken without it."""
    names = ["with the cache", "without it"]
    values = [{"i": i, "s": s, "what": names[i]} for i, s in enumerate((summary.with_cache, summary.without_cache))]
    color = {"condition": {"test": "datum.i == 0", "value": LIKE_SERIES["accent"]}, "value": LIKE_SERIES["quiet"]}
    return _seconds_chart(values, names, color, tip(("what", "time"), ("s", "seconds", ",.1f")), palette)


def _seconds_chart(
    values: Sequence[dict[str, object]], names: Sequence[str], color: Spec, said: list[Spec], palette: Palette
) -> Spec:
    most = 1.2 * max((float(str(value["s"])) for value in values), default=1.0)
    content = {
        "encoding": {"y": named(), "x": number("s", "seconds", scale={"domain": [0, most], "nice": False})},
        "layer": [
            {"mark": {"type": "bar", "height": {"band": 0.66}}, "encoding": {"color": color, "tooltip": said}},
            {"mark": {"type": "text", "align": "left", "dx": 5, "color": palette.ink, "fontSize": 12},
             "encoding": {"text": {"field": "s", "type": "quantitative", "format": ",.1f"}}},
        ],
    }  # fmt: skip
    return chart(palette, values, content, 28 * max(2, len(names)), names)
