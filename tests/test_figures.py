"""Single figures: what they name, and the files that they are drawn to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_rows import audit_summary, bench_summary, compare_summary, confusion_summary, finetune_summary

from featcache.errors import OutputError
from featcache.render.charts.base import Spec
from featcache.render.figures import (
    bench_figure,
    check,
    compare_figure,
    confusions_figure,
    draw,
    finetune_figure,
    sizes_figure,
)

FIGURES = {
    "compare": compare_figure(compare_summary()),
    "bench": bench_figure(bench_summary()),
    "confusions": confusions_figure(confusion_summary("a <b> &", "\udcff")),
    "sizes": sizes_figure(audit_summary()),
    "finetune": finetune_figure(finetune_summary()),
}


@pytest.mark.parametrize("figure", FIGURES.values(), ids=FIGURES)
def test_a_figure_is_drawn_and_says_what_must_be_known(figure: Spec) -> None:
    drawn = draw(figure, ".SVG").decode()
    assert drawn.startswith("<svg")
    assert "NaN" not in drawn
    assert any(word in drawn for word in ("n=", "classes"))


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<svg"), (".pdf", b"%PDF")])
def test_a_file_is_of_the_kind_that_its_ending_names(suffix: str, magic: bytes) -> None:
    assert draw(FIGURES["compare"], suffix).startswith(magic)


def test_other_endings_are_refused() -> None:
    with pytest.raises(OutputError, match=r"\.png, \.svg, \.pdf"):
        check(Path("figure.jpg"))
    check(Path("figure.PDF"))


def test_a_bench_of_one_number_has_no_curve() -> None:
    one = bench_summary()
    with pytest.raises(OutputError, match="nothing to draw"):
        bench_figure(type(one)(one.setting, one.subsets, one.rows[:1], 1, 0))


def test_a_figure_asks_for_nothing() -> None:
    assert all("http" not in json.dumps(figure) for figure in FIGURES.values())
