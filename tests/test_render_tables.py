"""Tables and records as text, Markdown and CSV, whatever is in their cells."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from featcache.records.experiments import BenchRow, BenchSummary, CompareRow, Setting, TrialRow
from featcache.render import tables
from featcache.render.experiments import bench_page, curve, interval, number, params_text
from featcache.render.tables import Page, Table
from featcache.sheets import meant

BARS = "▁▂▃▄▅▆▇█"


# --- text and Markdown ---


def test_a_page_is_tables_then_facts() -> None:
    page = Page(
        [Table("first", [" name", "n"], [("a", "1"), ("bb", "22")]), Table("", ["n"], [("3",)])],
        [("short", "value"), ("longer name", "other")],
    )
    assert tables.text(page).splitlines() == [
        *["first", "name      n", "------  ---", "a         1", "bb       22", ""],
        *["  n", "---", "  3", ""],
        *["short        value", "longer name  other"],
    ]
    assert tables.markdown(page).splitlines() == [
        *["**first**", "", "| name   |   n |", "|--------|-----|", "| a      |   1 |", "| bb     |  22 |", ""],
        *["|   n |", "|-----|", "|   3 |", ""],
        *["- short: value", "- longer name: other"],
    ]


def test_parts_that_are_empty_leave_no_hole() -> None:
    assert tables.text(Page([], [])) == ""
    assert tables.text(Page([], [("a", "b")])) == "a  b"
    assert tables.text(Page([Table("", [" a"], [("x",)])], [])).count("\n\n") == 0
    empty = tables.text(Page([Table("none", [" a", "b"], [])], []))
    assert empty.splitlines()[:2] == ["none", "a    b"]


def test_numbers_stay_as_they_were_written() -> None:
    page = Page([Table("", [" a", "b"], [("007", "1.500"), ("1e3", "0.10")])], [])
    for out in (tables.text(page), tables.markdown(page)):
        for cell in ("007", "1.500", "1e3", "0.10"):
            assert cell in out


def cells(line: str) -> list[str]:
    """Return the cells of a line of a Markdown table, without its escapes."""
    found, at = [""], 0
    while at < len(line):
        if line[at] == "\\":
            found[-1] += line[at + 1]
            at += 1
        elif line[at] == "|":
            found.append("")
        else:
            found[-1] += line[at]
        at += 1
    return [cell.strip() for cell in found[1:-1]]


PLAIN = st.characters(blacklist_categories=["Zs", "Cn"])
NAMES = st.text(st.sampled_from("|\\*<>_`[]\n\x1bx") | PLAIN, min_size=1, max_size=12)


@settings(derandomize=True, deadline=None)
@given(rows=st.lists(st.tuples(NAMES, NAMES), min_size=1, max_size=4))
def test_any_name_keeps_its_table_together(rows: list[tuple[str, str]]) -> None:
    from featcache.errors import one_line

    page = Page([Table("", [" a", " b"], rows)], [("fact", rows[0][0])])
    lines = tables.markdown(page).split("\n")
    assert len(lines) == 2 + len(rows) + 1 + 1 + 1  # no name adds a line
    assert [tuple(cells(line)) for line in lines[2 : 2 + len(rows)]] == [
        (one_line(first), one_line(second)) for first, second in rows
    ]
    assert len(tables.text(page).split("\n")) == 2 + len(rows) + 1 + 1


@pytest.mark.parametrize("name", ["a|b", "<script>", "*x*", "_x_", "`x`", "[x](y)", "back\\slash"])
def test_markdown_shows_a_name_as_it_is(name: str) -> None:
    out = tables.markdown(Page([Table("", [" a"], [(name,)])], [("fact", name)]))
    assert cells(out.splitlines()[2]) == [name]
    fact = out.splitlines()[-1].removeprefix("- fact: ")
    assert cells(f"|{fact}|") == [name]
    assert all(fact[at - 1] == "\\" for at in range(len(fact)) if fact[at] in "*_`[]<>|")


# --- CSV ---


@dataclass(frozen=True)
class Row:
    """One of everything that a record holds."""

    name: str
    score: float | None
    score_interval: tuple[float, float] | None
    values: tuple[Any, ...]
    params: dict[str, Any]
    is_ok: bool = True


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_records_become_lines_unrounded() -> None:
    rows = [
        Row("a", 1 / 3, (0.1, 0.7), (1, 2.5), {"C": 1e-05, "hidden": (8, 4)}),
        Row("b", None, None, (), {}, is_ok=False),
    ]
    first, second = read(tables.records_csv(rows))
    assert list(first) == ["name", "score", "score_interval_low", "score_interval_high", "values", "params", "is_ok"]
    assert float(first["score"]) == 1 / 3
    assert (first["score_interval_low"], first["score_interval_high"]) == ("0.1", "0.7")
    assert json.loads(first["values"]) == [1, 2.5]
    assert json.loads(first["params"]) == {"C": 1e-05, "hidden": [8, 4]}
    assert (second["score"], second["score_interval_low"], second["score_interval_high"]) == ("", "", "")
    assert (first["is_ok"], second["is_ok"]) == ("True", "False")


def test_records_in_records_become_json() -> None:
    (line,) = read(tables.records_csv([Row("a", 0.5, None, (TrialRow({"lr": 0.1}, 0.75, (2.0, 1.0)),), {})]))
    assert json.loads(line["values"]) == [{"params": {"lr": 0.1}, "accuracy": 0.75, "loss_curve": [2.0, 1.0]}]


def test_no_record_is_an_empty_file() -> None:
    assert tables.records_csv([]) == ""


@settings(derandomize=True, deadline=None)
@given(name=st.text(st.characters(blacklist_characters="\r", blacklist_categories=["Cs"]), max_size=20))
def test_any_name_comes_back_from_csv(name: str) -> None:
    rows = [CompareRow(name, False, False, "tie", error=name), CompareRow("next", False, False, "best")]
    first, second = read(tables.records_csv(rows))
    assert (meant(first["head"]), meant(first["error"]), second["head"]) == (name, name, "next")
    assert not re.match(r"[=+@\t-]", first["head"]) or float(first["head"]) == float(name)


# --- curves, numbers and words ---


def test_a_curve_falls_from_the_highest_bar_to_the_lowest() -> None:
    assert curve([8, 7, 6, 5, 4, 3, 2, 1]) == BARS[::-1]
    assert curve([0.5, 1.0]) == "▁█"
    assert curve([]) == ""
    assert curve([3.0]) == curve([3.0, 3.0])[0] == "▁"


@settings(derandomize=True, deadline=None)
@example(values=[0.0, 1.1125369292536007e-308], width=24)
@given(values=st.lists(st.floats(-1e6, 1e6), max_size=300), width=st.integers(1, 40))
def test_a_curve_is_bars_no_wider_than_asked(values: list[float], width: int) -> None:
    drawn = curve(values, width)
    assert len(drawn) == min(len(values), len(values[:: max(1, -(-len(values) // width))]))
    assert len(drawn) <= width
    assert set(drawn) <= set(BARS)
    if drawn and len(set(drawn)) > 1:
        assert {"▁", "█"} <= set(drawn)


def test_a_long_curve_is_thinned_out() -> None:
    assert len(curve(range(100, 0, -1))) == 20  # every fifth
    assert curve(range(100, 0, -1))[0] == "█"
    assert curve(range(100, 0, -1))[-1] == "▁"


def test_numbers_intervals_and_params_in_a_few_words() -> None:
    assert (number(None), number(0.12345), number(2, 1)) == ("", "0.123", "2.0")
    assert (interval(None), interval((0.05, 1))) == ("", "0.050-1.000")
    assert params_text({"C": 1e-05, "hidden": [8, 4], "activation": "tanh", "n": 3}) == (
        "C=1e-05 hidden=8,4 activation=tanh n=3"
    )
    assert params_text({"hidden": (8,), "lr": 0.001}) == "hidden=8 lr=0.001"
    assert params_text({}) == ""


# --- a grid ---


def grid_row(head: str, classes: int | None, per_class: int | None, **other: Any) -> BenchRow:
    values: dict[str, Any] = {"accuracy": 0.5, "accuracy_sd": 0.125, "balanced_accuracy": 0.5, "fit_seconds": 0.25}
    return BenchRow(head, classes, per_class, 3, 9, 6, **{**values, "accuracies": (0.5,), **other})


def grid(*rows: BenchRow) -> Page:
    setting = Setting(
        dataset="/d",
        backbone="net",
        weights="seeded",
        fingerprint="f" * 64,
        split_sizes={"train": 9, "test": 6},
        split_digest="e" * 64,
        n_classes=3,
        fitted_on="train",
        n_train=9,
        scored_split="test",
        n_test=6,
        seeds=(0, 1),
        train_views=(),
        test_views=(),
        versions={},
    )
    return bench_page(BenchSummary(setting, "subsets", rows, computed=3, reused=4))


def test_a_grid_has_its_columns_in_order_and_all_last() -> None:
    page = grid(
        *(grid_row(head, k, None) for k in (None, 20, 3) for head in ("a", "b")),
        *(grid_row(head, None, m) for m in (10, 2) for head in ("a", "b")),
    )
    assert [list(table.headers) for table in page.tables] == [
        *[[" head", "3", "20", "all"]] * 2,
        *[[" head", "2", "10", "all"]] * 2,
    ]
    assert [table.rows[0][0] for table in page.tables] == ["a"] * 4
    assert page.tables[0].rows[1] == ("b", *["0.500 ± 0.125"] * 3)
    assert page.tables[1].rows[1] == ("b", *["0.25"] * 3)
    assert ("fits", "3 fits computed, 4 known from before") in page.facts


def test_a_cell_without_a_score_says_so() -> None:
    nothing = {"accuracy": None, "accuracy_sd": None, "balanced_accuracy": None, "fit_seconds": None, "accuracies": ()}
    page = grid(grid_row("a", None, None), grid_row("a", None, 5, **nothing, error="too few"))
    scores, seconds = page.tables
    assert scores.rows == [("a", "failed", "0.500 ± 0.125")]
    assert seconds.rows == [("a", "failed", "0.25")]
    assert ("problem", "all classes, 5 images a class: too few") in page.facts
