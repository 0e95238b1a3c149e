"""The pictures most like one picture enter; a page with a table of them leaves."""

from __future__ import annotations

import os
from pathlib import Path

from featcache.records.neighbors import NeighborsSummary
from featcache.render.formats import number
from featcache.render.tables import Page, Table


def neighbors_page(summary: NeighborsSummary) -> Page:
    """Return the pictures, the most like first, with label, split and similarity, and what they were compared by."""
    copies = any(row.copy for row in summary.rows)
    headers = ["rank", " picture", " label", " split", "similarity", *[" copy"][:copies]]
    rows = [
        (
            str(row.rank),
            _within(row.path, summary.dataset),
            row.label,
            row.split,
            number(row.similarity, 4),
            *["same file" if row.copy else ""][:copies],
        )
        for row in summary.rows
    ]
    return Page(
        [Table("", headers, rows)],
        [
            ("picture", summary.picture),
            (
                "dataset",
                f"{summary.dataset}: {summary.pictures:,} other pictures{', each compared' * (not summary.index)}",
            ),
            *[("index", f"approximate: {summary.index}")][: bool(summary.index)],
            ("similarity", "cosine of the vectors: 1 is the same direction, 0 nothing in common"),
            ("backbone", f"{summary.backbone} ({summary.weights}), fingerprint {summary.fingerprint[:16]}"),
            *(("note", notice) for notice in summary.notices),
        ],
    )


def _within(path: str, dataset: str) -> str:
    """Return a path as seen from the folder of its dataset, or of its manifest."""
    return path.removeprefix(f"{dataset}{os.sep}").removeprefix(f"{Path(dataset).parent}{os.sep}")
