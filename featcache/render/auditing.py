"""The summary of an audit, or of a report, enters; a page of tables, or a few lines, leave."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from featcache.errors import one_line
from featcache.records.audits import KINDS, AuditSummary, FindingRow, LeakScore
from featcache.records.reports import ReportSummary
from featcache.render.cache import size_text
from featcache.render.formats import interval, number, scored_text
from featcache.render.tables import Page, Table

SHOWN = 10

TITLES = {
    "leak": "trained on and scored",
    "twin": "twins",
    "label": "labels that look wrong",
    "placeholder": "stand-ins for a picture",
    "outlier": "unlike their class",
    "blank": "blank",
    "tiny": "tiny",
    "shape": "extreme shapes",
}


def audit_page(summary: AuditSummary) -> Page:
    """Return how many pictures are named for what, the first of each kind, and what they were named by."""
    of_kind = {kind: [row for row in summary.rows if row.kind == kind] for kind in KINDS}
    of_kind = {kind: rows for kind, rows in of_kind.items() if rows}
    overview = Table(
        "",
        [" finding", "pictures", "groups"],
        [(TITLES[kind], f"{len(rows):,}", _groups(rows)) for kind, rows in of_kind.items()],
    )
    tables = [overview] if of_kind else []
    for kind, rows in of_kind.items():
        more = f", the first {SHOWN} of {len(rows):,} (--csv FILE has all)" if len(rows) > SHOWN else ""
        shown = [(within(row.path, summary), row.label, row.split, _why(row, summary)) for row in rows[:SHOWN]]
        tables.append(Table(TITLES[kind] + more, [" picture", " label", " split", " why"], shown))
    counted = f"{summary.pictures:,} pictures, {summary.contents:,} different ones"
    backbone = f"{summary.backbone} ({summary.weights}), fingerprint {summary.fingerprint[:16]}; seed {summary.seed}"
    facts = [
        ("dataset", f"{summary.dataset}: {counted}; {len(summary.sizes):,} classes; {summary.unreadable:,} unreadable"),
        ("backbone", backbone),
        ("score", leak_text(summary.leak)),
        *((kind, f"named by: {summary.cuts[kind]}") for kind in of_kind),
        *(("note", notice) for notice in summary.notices),
        *([] if of_kind else [("found", "nothing to name")]),
        *([("manifest", summary.manifest)] if summary.manifest else []),
    ]
    return Page(tables, facts)


def within(path: str, summary: AuditSummary) -> str:
    """Return the path of a picture as seen from the folder of the dataset, or of its manifest."""
    return _shortened(path, summary)


def _shortened(text: str, summary: AuditSummary) -> str:
    for folder in (Path(summary.dataset), Path(summary.dataset).parent):
        if f"{folder}{os.sep}" in text:
            return text.replace(f"{folder}{os.sep}", "")
    return text


def leak_text(leak: LeakScore | None) -> str:
    """Say what twins across training and scoring do to the score."""
    if leak is None:
        return "no scored picture is known to have a twin among those trained on"
    with_them = f"{leak.head} {number(leak.accuracy)} ({interval(leak.accuracy_interval)}) on {leak.scored_split}"
    about = f"n={leak.n_test:,}, fitted on {leak.n_train:,}, seed {leak.seed}"
    twins = f"{leak.n_test - leak.n_without:,} scored pictures have a twin among those trained on"
    if leak.without is None:
        return f"{twins}: {with_them} ({about}), and nothing is left to score without them"
    without = f"{number(leak.without)} ({interval(leak.without_interval)}, n={leak.n_without:,}) without them"
    return f"{twins}: {with_them}, {about}; {without}"


def _groups(rows: list[FindingRow]) -> str:
    numbers = Counter(row.group for row in rows if row.group is not None)
    return f"{len(numbers):,}" if numbers else ""


def _why(row: FindingRow, summary: AuditSummary) -> str:
    return _shortened(row.reason, summary)


def report_text(summary: ReportSummary) -> str:
    """Return where the page lies, what it shows, and what it lacks."""
    found = summary.confusion
    score = f"{number(found.accuracy)} ({interval(found.accuracy_interval)}) on {scored_text(found.setting)}"
    named = len({row.path for row in summary.audit.rows})
    lines = [
        f"page         {summary.out} ({size_text(summary.bytes)}, {summary.thumbnails:,} thumbnails)",
        f"dataset      {found.setting.dataset}: {summary.audit.pictures:,} pictures, {len(found.labels):,} classes",
        f"score        {found.head} {score}, fitted on {found.setting.n_train:,}, seed {found.setting.seeds[0]}",
        f"audit        {named:,} picture{'' if named == 1 else 's'} named",
        *(f"not in it    {text}" for text in summary.missing),
        *(f"note         {text}" for text in dict.fromkeys([*summary.notices, *found.notices])),
    ]
    return "\n".join(map(one_line, lines))
