"""What a cache holds, and what was done to it, enters; plain text tables leave."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate

from featcache.errors import one_line
from featcache.records import ORIGINAL
from featcache.records.cache import CacheInfo, CompactSummary, ExchangeSummary, GcSummary, VerifySummary

SHOWN_ROWS = 10


def info_text(info: CacheInfo) -> str:
    """Return a table of datasets, a table of backbones, and the totals."""
    datasets = [
        (
            row.dataset + ("" if row.present else " (gone)"),
            f"{row.pictures:,}",
            f"{row.unreadable:,}",
            row.classes,
            ", ".join(f"{name} {size:,}" for name, size in row.splits.items()) or "-",
            _features(row.fingerprints),
            _minute(row.last_use),
        )
        for row in info.datasets
    ]
    backbones = [
        (
            (row.backbone or "unknown") + ("" if row.view in (None, ORIGINAL) else f", {row.view}"),
            row.fingerprint[:16],
            f"{row.dim}-d {row.dtype}" if row.dim else "-",
            f"{row.rows:,}",
            f"{row.segments:,}",
            size_text(row.bytes),
            _minute(row.last_use),
        )
        for row in info.backbones
    ]
    of_dataset = ["dataset", "pictures", "unreadable", "classes", "splits", "features", "last use (UTC)"]
    of_backbone = ["backbone", "fingerprint", "vectors", "rows", "segments", "size", "last use (UTC)"]
    return "\n".join(
        [
            _table(datasets, of_dataset, "lrrr"),
            "",
            _table(backbones, of_backbone, "lllrrr"),
            "",
            f"models       {info.models:,}",
            f"put aside    {info.quarantined:,} broken",
            one_line(f"cache        {info.cache}: {size_text(info.bytes)}"),
        ]
    )


def _features(fingerprints: Sequence[str]) -> str:
    """Return the newest fingerprint, and how many more there are."""
    more = f" and {len(fingerprints) - 1:,} more" if len(fingerprints) > 1 else ""
    return "".join(fingerprint[:16] for fingerprint in fingerprints[-1:]) + more


def verify_text(summary: VerifySummary) -> str:
    """Return the counts of a check a dataset, the first rows that are not valid, and what is wrong."""
    counts = [
        (
            row.dataset,
            row.backbone,
            row.fingerprint[:16],
            f"{row.valid:,}",
            f"{row.stale:,}",
            f"{row.missing:,}",
            f"{row.unreadable:,}",
        )
        for row in summary.datasets
    ]
    headers = ["dataset", "backbone", "fingerprint", "valid", "stale", "missing", "unreadable"]
    lines = ["", f"checked      {summary.rows_checked:,} vectors in {summary.segments:,} segments"]
    orphaned = "unknown" if summary.orphaned is None else f"{summary.orphaned:,}"
    lines += [f"orphaned     {orphaned}" + " (`featcache cache gc` deletes them)" * bool(summary.orphaned)]
    lines += [f"broken       {text}" for text in summary.broken]
    for row in summary.rows[:SHOWN_ROWS]:
        what = row.path if row.path else f"content {row.key[:16]}"
        lines.append(f"{row.state:<12} {what}: {row.reason}")
    if len(summary.rows) > SHOWN_ROWS:
        lines.append(f"             and {len(summary.rows) - SHOWN_ROWS:,} more: --json lists all of them")
    lines += [f"note         {text}" for text in summary.notices]
    lines += [f"repaired     {text}" for text in summary.repaired]
    lines += [f"problem      {text}" for text in summary.problems]
    if not summary.problems:
        lines.append("sound        nothing is damaged or missing")
    elif not summary.tried_to_repair:
        lines.append("next         `featcache cache verify --repair`, or `featcache extract` on the dataset")
    return "\n".join([_table(counts, headers, "lllrrrr"), *map(one_line, lines)])


def gc_text(summary: GcSummary) -> str:
    """Return what is, or would be, deleted, a line a fingerprint, and the bytes freed."""
    lines = [
        f"{row.rows:,} vector{'' if row.rows == 1 else 's'} of {row.backbone or 'an unknown backbone'} "
        f"({row.fingerprint[:16]}), {size_text(row.bytes)}: {row.reason}; {row.kept:,} are kept"
        for row in summary.unused
    ]
    lines += [f"dataset to give up: {root}" for root in summary.forgotten]
    if summary.quarantined:
        lines.append(f"broken files put aside earlier: {summary.quarantined:,}")
    if summary.trainings:
        lines.append(f"stopped trainings, which would go on if they were asked for again: {summary.trainings:,}")
    if summary.indexes:
        lines.append(f"indexes of datasets as they were before: {summary.indexes:,}")
    notes = [f"note: {notice}" for notice in summary.notices]
    if not lines:
        nothing = "nothing to delete" + ": every vector is used by a dataset" * (not notes)
        return "\n".join(map(one_line, [nothing, *notes]))
    lines += notes
    freed = "freed" if summary.done else "would be freed (nothing has been deleted)"
    return "\n".join(map(one_line, [*lines, f"{size_text(summary.bytes)} {freed}"]))


def compact_text(summary: CompactSummary) -> str:
    """Return the segments before and after, a line a fingerprint, and the bytes freed."""
    rows = [
        (
            row.backbone or "unknown",
            row.fingerprint[:16],
            f"{row.segments_before:,}",
            f"{row.segments_after:,}",
            size_text(row.bytes_freed),
        )
        for row in summary.rows
    ]
    freed = "freed" if summary.done else "would be freed (nothing has been merged)"
    headers = ["backbone", "fingerprint", "segments before", "after", "freed"]
    return "\n".join([_table(rows, headers, "llrrr"), "", f"{size_text(summary.bytes_freed)} {freed}"])


def exchange_text(summary: ExchangeSummary) -> str:
    """Return what went into, or came out of, a file."""
    lines = [
        f"file         {summary.file} ({size_text(summary.bytes)})",
        f"dataset      {summary.dataset}",
        f"vectors      {summary.rows:,} of {summary.backbone}, {summary.dim}-d, fingerprint {summary.fingerprint[:16]}",
    ]
    if summary.added is not None:
        held = summary.rows - summary.added
        lines.append(f"added        {summary.added:,}" + (f"; {held:,} were in the cache already" if held else ""))
    if summary.differing:
        lines.append(
            f"differing    {summary.differing:,} that were there have other values in the file: those of the cache "
            "stay; if the file is right, import it with another --cache"
        )
    if summary.replaced:
        lines.append(f"replaced     the {summary.replaced:,} rows that were imported from this path before")
    return "\n".join(map(one_line, lines))


def size_text(size: int) -> str:
    """Return a number of bytes in the largest unit of 1,024 that it fills."""
    value, units = float(size), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while abs(value) >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:,.0f} bytes" if units[0] == "bytes" else f"{value:,.1f} {units[0]}"


def _table(rows: Sequence[Sequence[object]], headers: Sequence[str], align: str) -> str:
    if not rows:
        return f"no {headers[0]}s"
    sides = {"l": "left", "r": "right"}
    columns = [sides[side] for side in align.ljust(len(headers), "l")]
    cells = [[one_line(str(cell)) for cell in row] for row in rows]
    return tabulate(cells, headers=headers, disable_numparse=True, colalign=columns)


def _minute(time: str | None) -> str:
    return time[:16].replace("T", " ") if time else "-"
