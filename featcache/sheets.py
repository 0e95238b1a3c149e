"""Rows enter and CSV leaves, which a spreadsheet shows and does not run; a cell of it enters, what was meant leaves."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence

_RUN = re.compile(r"'*[=+\-@\t\r]")
"""How a cell begins that a spreadsheet takes for a formula, or that stands for one that was made harmless before."""

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)

Cell = str | float | None


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    """Return a CSV: all text is quoted, since a lone carriage return would not be, and would tear its row.

    Text that a spreadsheet would run gets a leading apostrophe; `meant` takes it away again.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(map(_harmless, header))
    writer.writerows([_harmless(cell) for cell in row] for row in rows)
    return out.getvalue()


def meant(cell: str) -> str:
    """Return the text that `csv_text` wrote as this cell; other text stays what it is."""
    return cell[1:] if cell.startswith("'") and _harmless(cell[1:]) == cell else cell


def _harmless(cell: Cell) -> Cell:
    is_run = isinstance(cell, str) and _RUN.match(cell) and not _NUMBER.fullmatch(cell)
    return f"'{cell}" if is_run else cell
