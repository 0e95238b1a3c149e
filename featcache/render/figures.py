"""Summaries enter; single figures for papers leave: their specification, and the bytes of a PNG, SVG or PDF file."""

from __future__ import annotations

import resource
import textwrap
from pathlib import Path
from typing import Any

from featcache.errors import OutputError, one_line
from featcache.records.audits import AuditSummary
from featcache.records.experiments import BenchSummary, CompareSummary, ConfusionSummary, Setting
from featcache.records.finetuning import FinetuneSummary
from featcache.render.charts.base import PRINT, Spec, fitted
from featcache.render.charts.classes import sizes_chart
from featcache.render.charts.confusion import matrix_chart
from featcache.render.charts.courses import epochs_chart
from featcache.render.charts.heads import CLASSES, PER_CLASS, bench_charts, compare_chart, floor_text
from featcache.render.formats import number, scored_text, sizes_text

FORMATS = (".png", ".svg", ".pdf")
DOTS = 3
"""Pixels of a PNG file for each point of the figure."""

ADDRESSES = 65 * 2**30
"""What V8 reserves as it starts, of addresses alone: 64.2 GiB with vl-convert 1.9; one byte less ends the process."""

FILES = 32
"""Descriptors at least: vl-convert needs 20, and panics where it gets fewer."""

LETTER = 5.6
"""The width of a character in what is said below the title, in points."""


def check(path: Path) -> None:
    """Raise `OutputError` unless a picture of this name can be drawn here, before the work it would show."""
    if path.suffix.lower() not in FORMATS:
        raise OutputError(f"{path} has no ending that says how to draw it: use {', '.join(FORMATS)}")
    _check_limits(path)


def _check_limits(path: Path) -> None:
    """Raise `OutputError` where a limit would end the process as V8 starts: it asks nobody, and says pages of stack."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    statm = Path("/proc/self/statm")
    if limit != resource.RLIM_INFINITY and statm.exists():
        left = max(0, limit - int(statm.read_text().split()[0]) * resource.getpagesize())
        if left < ADDRESSES:
            raise OutputError(
                f"{path} cannot be drawn: what draws figures reserves {ADDRESSES / 2**30:.0f} GiB of addresses (of "
                f"memory it takes little), {left / 2**30:.1f} are left under the limit: run `ulimit -v unlimited` "
                "first, or leave --plot out"
            )
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and files < FILES:
        raise OutputError(
            f"{path} cannot be drawn with {files} open files, too few for what draws figures: raise the limit "
            "(`ulimit -n 1024`), or leave --plot out"
        )


def draw(spec: Spec, suffix: str) -> bytes:
    """Return a figure as a file of the kind that `suffix` names; nothing is fetched from anywhere."""
    import vl_convert

    _check_limits(Path(f"a {suffix} file"))
    kind = suffix.lower()
    if kind == ".svg":
        return vl_convert.vegalite_to_svg(spec, allowed_base_urls=[]).encode()
    if kind == ".pdf":
        return vl_convert.vegalite_to_pdf(spec, allowed_base_urls=[])
    return vl_convert.vegalite_to_png(spec, scale=DOTS, allowed_base_urls=[])


def compare_figure(summary: CompareSummary) -> Spec:
    """Return the accuracy of each head with its interval."""
    said = [*_setting(summary.setting), f"Intervals: {summary.interval}.", floor_text(summary)]
    return _figure([compare_chart(summary, PRINT)], "Accuracy of heads on the same pictures", said, 440)


def bench_figure(summary: BenchSummary) -> Spec:
    """Return accuracy and seconds against the number of classes and of images per class, as far as they were tried.

    Raises `OutputError` where fewer than two numbers were tried of both.
    """
    drawn = [chart for axis in (CLASSES, PER_CLASS) for chart in bench_charts(summary, axis, PRINT).values()]
    if not drawn:
        raise OutputError("there is nothing to draw a curve of: ask `featcache bench` for two numbers or more")
    seeds = len(summary.setting.seeds)
    band = f"Lines are means over {seeds} seeds, bands go from the lowest to the highest seed." if seeds > 1 else ""
    said = [*_setting(summary.setting), band, f"Subsets: {summary.subsets}."]
    return _figure(drawn, "Accuracy and seconds of heads", said, 340)


def confusions_figure(summary: ConfusionSummary) -> Spec:
    """Return the confusion matrix, like classes side by side."""
    low, high = summary.accuracy_interval
    said = [
        f"{summary.head}: accuracy {number(summary.accuracy)} (95 % Wilson interval {low:.3f}-{high:.3f}).",
        "Colour: share of the true class; the diagonal is muted. Classes taken for each other stand side by side.",
        *_setting(summary.setting),
    ]
    chart = matrix_chart(summary, PRINT)
    size = max(260, min(900, chart["height"]))
    return _figure([chart | {"height": size}], "Who is taken for whom", said, size)


def finetune_figure(summary: FinetuneSummary) -> Spec:
    """Return loss and accuracy against the epoch, on training and validation pictures, and where the best one was."""
    drawn = [epochs_chart(summary, what, PRINT) for what in ("loss", "accuracy")]
    said = [
        f"{summary.dataset}: {summary.n_classes:,} classes; split {summary.split_digest[:16]}, seed {summary.seed}; "
        f"trained on {summary.n_train:,}, epochs judged on {summary.validated_on} (n={summary.n_val:,}).",
        f"Accuracy on {scored_text(summary)}: {number(summary.accuracy)} "
        f"(95 % Wilson interval {summary.accuracy_low:.3f}-{summary.accuracy_high:.3f}).",
    ]
    return _figure(drawn, f"{summary.network}, unfreezing {summary.unfreeze}", said, 340)


def sizes_figure(summary: AuditSummary) -> Spec:
    """Return how many files each class has in each split."""
    said = [
        f"{summary.dataset}: {summary.pictures:,} files, {summary.contents:,} different contents, "
        f"{len(summary.sizes):,} classes; {summary.unreadable:,} unreadable files left out."
    ]
    return _figure([sizes_chart(summary.sizes, PRINT)], "Files of each class", said, 560)


def _setting(setting: Setting) -> list[str]:
    seeds = setting.seeds
    which = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]}-{seeds[-1]}"
    return [
        f"{setting.dataset}: {setting.n_classes:,} classes; {sizes_text(setting.split_sizes)}; "
        f"split {setting.split_digest[:16]}; {which}.",
        f"Scored: {scored_text(setting)}; fitted on {setting.fitted_on} "
        f"(n={setting.n_train:,}); {setting.backbone}, fingerprint {setting.fingerprint[:16]}.",
    ]


def _figure(charts: list[Spec], title: str, said: list[str], width: int) -> Spec:
    """Return charts of a fixed width in two columns, under a title and what must be known to read them."""
    line = int((width * min(2, len(charts)) + 100) / LETTER)
    lines = [part for text in said if text for part in textwrap.wrap(one_line(text), line)]
    config: dict[str, Any] = charts[0]["config"]
    own = ("config", "autosize")
    charts = [fitted(chart, width) for chart in charts]
    if len(charts) > 1:
        config["legend"]["offset"] = 14  # of charts side by side it is measured from their axes' titles on
    parts = [{name: value for name, value in chart.items() if name not in own} for chart in charts]
    return {
        "config": config,
        "padding": 14,
        "title": {"text": one_line(title), "subtitle": lines, "fontSize": 16, "offset": 22, "subtitlePadding": 6},
        **({"concat": parts, "columns": 2, "spacing": 44} if len(parts) > 1 else parts[0]),
    }
