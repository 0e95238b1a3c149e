"""The page of a report: what it shows, that names stay names, and that it asks for nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from report_rows import finetune_summary, report_summary

from featcache.render.charts.confusion import order
from featcache.render.html import report_html

SCRIPT = "<script>alert(1)</script>"
NASTY = "</script><img src=x onerror=alert(2)> \"q\" 's' \\ \n \udcff \u2028 {{7*7}} ${x} &amp; 名前"
SHOWN = NASTY.replace("\n", "\\n").replace("\udcff", "\\udcff").replace("\u2028", "\\u2028")
PICTURE = b"RIFF\x00\x00\x00\x00WEBPVP8 "


class Page(HTMLParser):
    """What a browser would see: elements, text, scripts, and the data in them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script":
            attrs, before = self.scripts[-1]
            self.scripts[-1] = (attrs, before + data)
        else:
            self.text.append(data)

    def handle_endtag(self, tag: str) -> None:
        self.lasttag = ""

    def data(self, name: str) -> object:
        return json.loads(next(text for attrs, text in self.scripts if attrs.get("id") == f"data-{name}"))

    def values(self, attribute: str) -> list[str]:
        return [value for _, attrs in self.elements if (value := attrs.get(attribute))]


@pytest.fixture(scope="module")
def text() -> str:
    return report_html(report_summary(), {"/data/insects/0.jpg": PICTURE})


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_the_sections_stand_in_order_and_are_linked(page: Page) -> None:
    sections = [attrs["id"] for tag, attrs in page.elements if tag == "section"]
    wanted = "summary dataset heads confusion classes calibration map finetuning time audit again"
    assert sections == wanted.split()
    assert [link[1:] for link in page.values("href") if link.startswith("#") and link != "#content"] == sections
    assert [tag for tag, _ in page.elements].count("h1") == 1


def test_nothing_is_asked_for_and_only_the_own_scripts_run(text: str, page: Page) -> None:
    policy = next(attrs["content"] for tag, attrs in page.elements if attrs.get("http-equiv"))
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy
    run = [script for attrs, script in page.scripts if "type" not in attrs]
    hashes = {base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in run}
    assert set(re.findall(r"'sha256-([^']+)'", policy)) == hashes
    addresses = [*page.values("src"), *page.values("href")]
    assert addresses
    assert all(address.startswith(("#", "data:")) for address in addresses)


def test_names_are_shown_as_what_they_are() -> None:
    text = report_html(report_summary(SCRIPT, NASTY, f"/data/{SCRIPT}"), {f"/data/{SCRIPT}/0.jpg": PICTURE})
    text.encode()
    page = Page(text)
    plain = Page(report_html(report_summary(), {"/data/insects/0.jpg": PICTURE}))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in plain.elements]
    assert len(page.scripts) == len(plain.scripts)
    assert SCRIPT in page.text
    assert SHOWN in page.text
    assert [SCRIPT, SHOWN] in [param["value"] for chart in page.data("charts") for param in chart["params"]]  # type: ignore[attr-defined]


def test_thumbnails_are_there_once_and_others_show_their_name(text: str, page: Page) -> None:
    assert text.count(base64.b64encode(PICTURE).decode()) == 1
    assert page.data("thumbnails") == [base64.b64encode(PICTURE).decode()]
    assert set(page.values("data-thumbnail")) == {"0"}
    boxes = [attrs for tag, attrs in page.elements if tag == "span" and attrs.get("class") == "box"]
    assert boxes


def test_the_gravest_findings_are_said_first(text: str) -> None:
    assert "1 scored picture has a twin among those trained on: accuracy is 50.0 % with it, 33.0 % without." in text
    assert "without the one picture that has a twin among those fitted on it is 0.330" in text
    assert "1 label looks wrong." in text
    assert "1 class is not learned by any head: ant." in text
    assert "Not drawn: the floor (dummy, accuracy 0.500)." in text
    assert "failed: it cannot be fitted" in text


def test_a_training_is_shown_with_its_curves_and_its_worth() -> None:
    text = report_html(replace(report_summary(), finetunes=(finetune_summary(),)), {})
    assert "Worth it: +25.0 points over logreg (p=0.040)" in text
    assert "+50.00 points a minute" in text
    assert "epoch (dotted: epoch 1, which is kept)" in text


def test_what_is_missing_names_the_command_that_fills_it(text: str) -> None:
    assert "<code>featcache finetune /data/insects</code>" in text
    bare = report_html(replace(report_summary(), compare=None, bench=None), {})
    assert "<code>featcache compare /data/insects</code>" in bare
    assert "<code>featcache bench /data/insects</code>" in bare


def test_a_report_with_little_in_it_is_a_page_too() -> None:
    whole = report_summary()
    bare = replace(
        whole,
        confusion=replace(whole.confusion, pairs=(), classes=()),
        calibration_error=float("nan"),
        calibration=(),
        scored=(),
        nearest={},
        map=replace(whole.map, pictures=0, points=()),
        ledger=replace(whole.ledger, rows=(), break_even=None),
        audit=replace(whole.audit, sizes=(), leak=None, rows=(), cuts={}),
        failures=(),
        unreadable=0,
    )
    text = report_html(bare, {})
    assert "There is no picture to draw." in text
    assert "The audit found nothing to look at." in text
    assert "NaN" not in "".join(script for attrs, script in Page(text).scripts if "type" in attrs)


def test_classes_taken_for_each_other_stand_side_by_side() -> None:
    places = order([[8, 0, 2, 0], [0, 7, 0, 3], [3, 0, 7, 0], [0, 2, 0, 8]])
    at = [places.index(label) for label in range(4)]
    assert abs(at[0] - at[2]) == 1
    assert abs(at[1] - at[3]) == 1
