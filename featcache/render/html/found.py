"""What an audit found enters; the section that shows it picture by picture leaves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import islice

from featcache.records.audits import KINDS, FindingRow, LeakScore
from featcache.records.reports import ReportSummary
from featcache.render.auditing import TITLES
from featcache.render.html.blocks import (
    Block,
    Galleries,
    Gallery,
    Heading,
    Picture,
    Section,
    Text,
    more,
    plural,
    section,
)
from featcache.render.html.overview import interval_text

SHOWN = 24
"""Pictures, or groups of twins, of one kind."""

SHOWN_TWINS = 8

ELSEWHERE = "`featcache audit --csv FILE` lists all"


def audit(summary: ReportSummary) -> Section:
    """Return each kind of finding with what it is named by and its pictures, the gravest kind first."""
    found = summary.audit
    by_kind: dict[str, list[FindingRow]] = defaultdict(list)
    for row in found.rows:
        by_kind[row.kind].append(row)
    blocks: list[Block] = [_counts(by_kind)]
    if found.leak and found.leak.n_without < found.leak.n_test:
        blocks.append(Text(leak_text(found.leak)))
    for kind in KINDS:
        if by_kind[kind]:
            blocks += _kind(kind, by_kind[kind], found.cuts.get(kind, ""))
    if found.manifest:
        blocks.append(Text(f"A manifest without them: `{found.manifest}`.", quiet=True))
    return section("audit", "Pictures to look at", blocks)


def _counts(by_kind: dict[str, list[FindingRow]]) -> Text:
    named = {row.path for rows in by_kind.values() for row in rows}
    if not named:
        return Text("The audit found nothing to look at.", quiet=True)
    each = [f"{TITLES[kind]} {len(by_kind[kind]):,}" for kind in KINDS if by_kind[kind]]
    return Text(f"The audit names {plural(len(named), 'picture')}: {', '.join(each)}. Each is a hint, not a verdict.")


def leak_text(leak: LeakScore) -> str:
    """Say what the twins across the split do to the score."""
    n = leak.n_test - leak.n_without
    whole = f"{leak.accuracy:.3f}{interval_text(leak.accuracy_interval)}, n={leak.n_test:,}"
    start = f"Accuracy of {leak.head} on {leak.scored_split} (seed {leak.seed}) is {whole}"
    if leak.without is None:
        return f"{start}; every scored picture has a twin among those fitted on, so that nothing is left to score."
    without = f"{leak.without:.3f}{interval_text(leak.without_interval)}, n={leak.n_without:,}"
    has = "the one picture that has a twin" if n == 1 else f"the {n:,} pictures that have a twin"
    return f"{start}; without {has} among those fitted on it is {without} (95 % Wilson intervals)."


def _kind(kind: str, rows: Sequence[FindingRow], cut: str) -> list[Block]:
    blocks: list[Block] = [Heading(TITLES[kind].capitalize(), len(rows))]
    if cut:
        blocks.append(Text(f"Named by: {cut}.", quiet=True))
    groups: dict[int | str, list[FindingRow]] = defaultdict(list)
    for row in rows:
        groups[row.path if row.group is None else row.group].append(row)
    if any(len(group) > 1 for group in groups.values()):
        shown = [_twins(group) for group in islice(groups.values(), SHOWN)]
        blocks.append(Galleries(tuple(shown)))
        rest = more(len(groups) - SHOWN, "groups", ELSEWHERE)
    else:
        blocks.append(Galleries((Gallery(tuple(_picture(row) for row in rows[:SHOWN])),)))
        rest = more(len(rows) - SHOWN, "pictures", ELSEWHERE)
    return [*blocks, Text(rest[0].upper() + rest[1:] + ".", quiet=True)] if rest else blocks


def _twins(rows: Sequence[FindingRow]) -> Gallery:
    pictures = tuple(
        Picture(
            row.path,
            f"twin in {row.split}, labelled {row.label}",
            (f"{row.split}: {row.label}", "kept" if row.kept else "left out if cleaned"),
        )
        for row in rows[:SHOWN_TWINS]
    )
    hidden = f"; and {len(rows) - SHOWN_TWINS:,} more" if len(rows) > SHOWN_TWINS else ""
    return Gallery(pictures, note=rows[0].reason + hidden)


def _picture(row: FindingRow) -> Picture:
    first = f"{row.label}, looks like {row.suggested}" if row.suggested else row.label
    return Picture(row.path, f"{row.kind} in {row.split}, labelled {row.label}", (first, f"{row.split}: {row.reason}"))
