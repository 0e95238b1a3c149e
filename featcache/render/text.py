"""Summaries enter; plain text tables and CSV leave."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from typing import Any

from tabulate import tabulate

from featcache.errors import one_line
from featcache.records import ExtractSummary, PrecisionCheck, SplitSummary
from featcache.records.experiments import DemoSummary, OnnxSummary, PredictSummary, RunDetail
from featcache.records.reading import ALL, Reading
from featcache.render.auditing import audit_page
from featcache.render.cache import exchange_text
from featcache.render.experiments import SHOWN_CLASSES, bench_page, compare_page, confusions_page, fit_page
from featcache.render.finetuning import finetune_page
from featcache.render.tables import Page, Table, text
from featcache.sheets import csv_text

SHOWN_FAILURES = 10

WIDTH = 80
"""Columns of a terminal that a table of classes keeps to."""


def extract_text(summary: ExtractSummary) -> str:
    """Return the summary of an extraction: counts, unreadable pictures, seconds and places."""
    took = summary.seconds
    lines = [
        f"dataset      {summary.dataset}",
        f"backbone     {summary.backbone} ({summary.weights}), {summary.dim}-d, fingerprint {summary.fingerprint[:16]}",
        f"found        {summary.found:,}",
        f"reused       {summary.reused:,}",
        f"computed     {summary.computed:,}",
        f"duplicates   {summary.duplicates:,}",
        f"unreadable   {summary.unreadable:,}",
    ]
    lines += [f"             {failure.path}: {failure.reason}" for failure in summary.failures[:SHOWN_FAILURES]]
    if summary.unreadable_file:
        lines.append(f"             all of them: {summary.unreadable_file}")
    if summary.plain:
        lines.append(f"one colour   {summary.plain:,}, all over, as decoded: `featcache audit` names them")
    if summary.paged:
        taken = "one is taken: --pages says which, or all"
        if Reading.of(summary.reading).page == ALL:
            taken = "all are taken: the mean of their vectors is the file's"
        lines.append(f"pages        {summary.paged:,} files have several, of which {taken}")
    if summary.skipped:
        kinds = ", ".join(f"{kind} {times:,}" for kind, times in summary.skipped.items())
        lines.append(f"skipped      {sum(summary.skipped.values()):,} that systems leave in folders: {kinds}")
    if summary.engine:
        lines.append(f"engine       {summary.engine} on {summary.device}: {summary.engine_why}")
    lines += [
        f"view {view.name:7} {view.reused:,} reused, {view.computed:,} computed, {view.seconds:.1f} s"
        for view in summary.views
    ]
    lines += [
        f"seconds      {took.total:.1f} in all, write {took.write:.1f}; summed over threads: read {took.read:.1f}, "
        f"decode {took.decode:.1f}, forward {took.forward:.1f}",
    ]
    if summary.check:
        lines += _check_lines(summary.check)
    if summary.shard:
        number, count = summary.shard
        lines.append(f"shard        {number}/{count}; after the last one, extract the dataset without --shard")
    lines.append(f"cache        {summary.cache}")
    table = _class_table(summary.classes)
    return "\n".join(map(one_line, lines)) + (f"\n\n{text(Page([table], []))}" if table else "")


def _class_table(classes: Mapping[str, Mapping[str, int]]) -> Table | None:
    """Return classes and splits with their sizes, of many classes the first and last; `None` where there are none."""
    splits = list(next(iter(classes.values()), {}))
    if not any(splits) and not any(classes):
        return None
    room = WIDTH - sum(len(f"{split or 'no split':>8}") + 2 for split in [*splits, ""])
    rows = [(_short(label or "(no label)", room), list(sizes.values())) for label, sizes in classes.items()]
    sums = [sum(column) for column in zip(*(sizes for _, sizes in rows), strict=True)]
    if len(rows) > SHOWN_CLASSES:
        ends = SHOWN_CLASSES // 2
        rows = [*rows[:ends], (f"... {len(rows) - 2 * ends:,} more", []), *rows[-ends:]]
    if len(rows) > 1:
        rows.append(("all" if len(classes) <= SHOWN_CLASSES else f"all {len(classes):,}", sums))
    heads = [split or ("no split" if any(splits) else "pictures") for split in splits]
    return Table("", [" class", *heads], [(label, *(f"{size:,}" for size in sizes)) for label, sizes in rows])


def _short(name: str, room: int) -> str:
    name = one_line(name)
    return name if len(name) <= room else name[: room - 3] + "..."


def _check_lines(check: PrecisionCheck) -> list[str]:
    first = (
        f"check        cosine to exact vectors {check.cosine_mean:.4f} on average, {check.cosine_least:.4f} at least, "
        f"n={check.pictures:,}"
    )
    if check.probe is None or check.exact_probe is None:
        return [first, f"             no head was tried: {check.note}"]
    found = [
        f"{name} {probe.accuracy:.3f} ({probe.accuracy_low:.3f}-{probe.accuracy_high:.3f})"
        for name, probe in (("these", check.probe), ("exact", check.exact_probe))
    ]
    lost = 100 * (check.exact_probe.accuracy - check.probe.accuracy)
    return [
        first,
        f"             {check.head} on {check.scored_split}, n={check.n_test:,}, fitted on {check.n_train:,}, "
        f"seed {check.seed}: {', '.join(found)}",
        f"             {abs(lost):.2f} points {'gained' if lost < 0 else 'lost'}",
        *([f"             {check.note}"] if check.note else []),
    ]


def split_text(summary: SplitSummary) -> str:
    """Return the pictures of each class and split (of many classes the sums only), and what to run next."""
    rows = list(summary.classes.items()) if len(summary.classes) <= SHOWN_CLASSES else []
    table = Table(
        "",
        [" class", *summary.split_sizes],
        [
            (label, *(f"{size:,}" for size in sizes.values()))
            for label, sizes in [*rows, (f"all {len(summary.classes):,} classes", summary.split_sizes)]
        ],
    )
    written = summary.manifest or summary.links or ""
    return text(
        Page(
            [table],
            [
                ("source", summary.dataset),
                ("seed", str(summary.seed)),
                ("pictures", f"{summary.pictures:,}"),
                ("duplicates", f"{summary.duplicates:,}"),
                ("unreadable", f"{summary.unreadable:,}"),
                *(("", f"{failure.path}: {failure.reason}") for failure in summary.failures[:SHOWN_FAILURES]),
                *(("note", notice) for notice in summary.notices),
                ("manifest" if summary.manifest else "links", written),
                ("next", f"featcache extract {shlex.quote(written)}"),
            ],
        )
    )


def demo_text(summary: DemoSummary) -> str:
    """Return the extraction's summary, then the table of heads."""
    return f"{extract_text(summary.extract)}\n\n{text(compare_page(summary.compare))}"


def run_text(summary: RunDetail) -> str:
    """Return a run as it was printed, below what is known of it."""
    row = summary.row
    lines = [f"run       {row.id}: {row.command}, {row.started}" + (f", {row.seconds:.1f} s" if row.seconds else "")]
    found = summary.summary
    if found is None:
        return "\n".join(map(one_line, [*lines, f"dataset   {row.dataset}", f"result    {row.result}"]))
    versions = getattr(found, "versions", None) or getattr(getattr(found, "setting", None), "versions", {})
    if versions:
        lines.append("versions  " + ", ".join(f"{name} {number}" for name, number in versions.items()))
    return "\n".join([*map(one_line, lines), "", _PRINTED[row.command](found)])


_PRINTED: dict[str, Callable[[Any], str]] = {
    "extract": extract_text,
    "import": exchange_text,
    "fit": lambda found: text(fit_page([found])),
    "compare": lambda found: text(compare_page(found)),
    "bench": lambda found: text(bench_page(found)),
    "confusions": lambda found: text(confusions_page(found)),
    "audit": lambda found: text(audit_page(found)),
    "finetune": lambda found: text(finetune_page(found)),
}


def predict_text(summary: PredictSummary) -> str:
    """Return one line a picture: path, label and its probability; then the pictures that could not be read."""
    lines = [
        tabulate(
            [(one_line(p.path), one_line(p.label), f"{p.probabilities[p.label]:.3f}") for p in summary.predictions],
            headers=["path", "label", "probability"],
            disable_numparse=True,
            colalign=("left", "left", "right"),
        )
    ]
    lines += [one_line(f"unreadable: {failure.path}: {failure.reason}") for failure in summary.failures]
    return "\n".join(lines)


def onnx_text(summary: OnnxSummary) -> str:
    """Return what was written, how far it was checked, and what goes in and comes out."""
    score = summary.score
    low, high = score["interval"]
    labels, scored = len(summary.labels), score["scored_classes"]
    over = f", {scored:,} of {labels:,} classes" if scored < labels else ""
    seed = "" if score["seed"] is None else f", seed {score['seed']}"
    views = f", mean of {', '.join(summary.views)}" if len(summary.views) > 1 else ""
    lines = [
        f"file      {summary.file}, {summary.bytes / 1e6:.1f} MB, opset {summary.opset}",
        f"backbone  {summary.backbone} ({summary.weights}), fingerprint {summary.fingerprint[:16]}",
        f"head      {summary.head}{views}: accuracy {score['accuracy']:.3f} ({low:.3f}-{high:.3f}) on "
        f"{score['split']}, n={score['n']:,}{over}{seed}",
        f"outside   {summary.outside}",
        "input     pixels, uint8 (n, height, width, 3)",
        f"inside    {summary.inside}",
        f"output    probabilities, float32 (n, {len(summary.labels)}); their labels are in the metadata",
        f"checked   within {summary.difference:.0e} of predict's probabilities in ONNX Runtime",
    ]
    return "\n".join(map(one_line, lines))


def predict_csv(summary: PredictSummary) -> str:
    """Return the predictions as CSV: path, label, then one column of probabilities a class, by its name.

    A class called `path` or `label` has the column `class path` or `class label`, so that no two have one name.
    """
    classes = list(summary.predictions[0].probabilities) if summary.predictions else []
    columns, taken = ["path", "label"], {"path", "label", *classes}
    for name in classes:
        column = name
        while column in ("path", "label") or (column != name and column in taken):
            column = f"class {column}"
        columns.append(column)
    return csv_text(
        columns,
        ([row.path, row.label, *(round(p, 6) for p in row.probabilities.values())] for row in summary.predictions),
    )
