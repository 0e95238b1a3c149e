"""Titled tables and what is said below them enter; text for a terminal, Markdown or CSV leaves."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

from tabulate import tabulate

from featcache.errors import one_line
from featcache.sheets import csv_text


@dataclass(frozen=True)
class Table:
    """A table for people: a column whose header begins with a space is text, the others are numbers."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Page:
    """Tables, then lines of what all of them share: a name and a value each."""

    tables: Sequence[Table]
    facts: Sequence[tuple[str, str]]


def text(page: Page) -> str:
    """Return a page for a terminal."""
    parts = [(f"{one_line(table.title)}\n" if table.title else "") + _render(table, "simple") for table in page.tables]
    width = max((len(name) for name, _ in page.facts), default=0)
    facts = "\n".join(f"{name:{width}}  {one_line(value)}" for name, value in page.facts)
    return "\n\n".join(filter(None, [*parts, facts]))


def markdown(page: Page) -> str:
    """Return a page as GitHub's Markdown."""
    parts = [
        (f"**{_escaped(table.title)}**\n\n" if table.title else "") + _render(table, "github") for table in page.tables
    ]
    facts = "\n".join(f"- {name}: {_escaped(value)}" for name, value in page.facts)
    return "\n\n".join(filter(None, [*parts, facts])) + "\n"


def summary_csv(summary: Any) -> str:
    """Return the rows of a summary as CSV, its classes where it has no rows, else itself; of no rows the header."""
    for name in ("rows", "classes"):
        if hasattr(summary, name):
            kind = get_args(get_type_hints(type(summary))[name])[0]
            return records_csv(getattr(summary, name)) or csv_text(list(_names(kind)), [])
    return records_csv([summary])


def _names(kind: Any) -> Iterable[str]:
    for field in dataclasses.fields(kind):
        yield from [f"{field.name}_low", f"{field.name}_high"] if field.name.endswith("interval") else [field.name]


def records_csv(records: Sequence[Any]) -> str:
    """Return records as CSV, one a line, unrounded; pairs become two columns, what is nested becomes JSON."""
    rows = [dict(_columns(record)) for record in records]
    return csv_text(list(rows[0]), (list(row.values()) for row in rows)) if rows else ""


def _columns(record: Any) -> Iterable[tuple[str, Any]]:
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if field.name.endswith("interval"):
            yield f"{field.name}_low", None if value is None else value[0]
            yield f"{field.name}_high", None if value is None else value[1]
        elif isinstance(value, (tuple, dict)):
            yield field.name, json.dumps(value, default=dataclasses.asdict)
        else:
            yield field.name, value


def _render(table: Table, style: str) -> str:
    clean = _escaped if style == "github" else one_line
    return tabulate(
        [[clean(cell) for cell in row] for row in table.rows],
        headers=[clean(header.strip()) for header in table.headers],
        tablefmt=style,
        disable_numparse=True,
        colalign=["left" if header.startswith(" ") else "right" for header in table.headers] if table.rows else None,
    )


def _escaped(value: str) -> str:
    """Return text that stays what it is in Markdown, also names with bars, stars and angle brackets."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>|&~" else c for c in one_line(value))
