"""Summaries enter; plain text tables and CSV leave."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from tabulate import tabulate

from featcache.errors import one_line
from featcache.records import ExtractSummary
from featcache.records.experiments import DemoSummary, FitSummary, PredictSummary

SHOWN_FAILURES = 10


def extract_text(summary: ExtractSummary) -> str:
    """Return the summary of an extraction: counts, unreadable pictures, seconds and places."""
    took = summary.seconds
    lines = [
        f"dataset      {summary.dataset}",
        f"backbone     {summary.backbone} ({summary.weights}), {summary.dim}-d, fingerprint {summary.fingerprint[:16]}",
        f"found        {summary.found:,}",
        f"reused       {summary.reused:,}",
        f"computed     {summary.computed:,}" + (f" on {summary.device}" if summary.device else ""),
        f"duplicates   {summary.duplicates:,}",
        f"unreadable   {summary.unreadable:,}",
    ]
    lines += [
        f"             {one_line(failure.path)}: {failure.reason}" for failure in summary.failures[:SHOWN_FAILURES]
    ]
    if summary.unreadable_file:
        lines.append(f"             all of them: {summary.unreadable_file}")
    lines += [
        f"seconds      {took.total:.1f} in all: forward {took.forward:.1f}, write {took.write:.1f}; "
        f"meanwhile read {took.read:.1f}, decode {took.decode:.1f} (sums over threads)",
        f"cache        {summary.cache}",
    ]
    return "\n".join(lines)


def fit_text(rows: Sequence[FitSummary]) -> str:
    """Return one table row a head, then what all scores share, then the model files."""
    first = rows[0]
    table = tabulate(
        [
            (
                row.head,
                f"{row.accuracy:.3f}",
                f"{row.accuracy_low:.3f}-{row.accuracy_high:.3f}",
                f"{row.balanced_accuracy:.3f}",
                f"{row.macro_f1:.3f}",
                " ".join(f"{name}={value:g}" for name, value in row.params.items()),
                f"{row.fit_seconds:.1f}",
            )
            for row in rows
        ],
        headers=["head", "accuracy", "95 % interval", "balanced", "macro-F1", "chosen", "fit s"],
        disable_numparse=True,
        colalign=("left", "right", "left", "right", "right", "left", "right"),
    )
    sizes = ", ".join(f"{name} {size:,}" for name, size in first.split_sizes.items())
    notes = dict.fromkeys(notice for row in rows for notice in row.notices)
    return "\n".join(
        [
            table,
            "",
            f"dataset   {first.dataset}: {first.n_classes} classes; {sizes}",
            f"scored    {first.scored_split}, n={first.n_test:,}; fitted on {first.fitted_on}, n={first.n_train:,}; "
            f"parameters chosen by {first.chosen_by}; seed {first.seed}",
            f"backbone  {first.backbone} ({first.weights}), fingerprint {first.fingerprint[:16]}",
            *(f"note      {notice}" for notice in notes),
            *(f"model     {row.model}" for row in rows),
        ]
    )


def demo_text(summary: DemoSummary) -> str:
    """Return the extraction's summary, then the table of heads."""
    return f"{extract_text(summary.extract)}\n\n{fit_text(summary.rows)}"


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
    lines += [f"unreadable: {one_line(failure.path)}: {failure.reason}" for failure in summary.failures]
    return "\n".join(lines)


def predict_csv(summary: PredictSummary) -> str:
    """Return the predictions as CSV: path, label, then one column of probabilities a class."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    classes = list(summary.predictions[0].probabilities) if summary.predictions else []
    writer.writerow(["path", "label", *classes])
    for prediction in summary.predictions:
        writer.writerow([prediction.path, prediction.label, *(f"{p:.6f}" for p in prediction.probabilities.values())])
    return out.getvalue()
