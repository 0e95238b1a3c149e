"""A report in a real browser: it opens from disk, asks for nothing, and hover, sort, theme and selection work."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import TINTS, write_picture
from report_rows import report_summary

import featcache
from featcache.records.experiments import ClassRow
from featcache.render.html import report_html

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium here: apt-get install chromium"),
]

EVIL = "<script>alert(1)</script>"
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
SIZES = (360, 1440)


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory, seeded_weights: Path) -> Path:
    """The page on a small dataset that was compared and benched, one of whose classes is called like a script."""
    folder = tmp_path_factory.mktemp("page")
    rows = []
    for at, (name, tint) in enumerate(TINTS.items()):
        for number in range(12):
            path = write_picture(folder / name / f"{number}.png", 100 * at + number, tint)
            rows.append((str(path), EVIL if at == 0 else name, "train" if number < 8 else "test"))
    shutil.copy(folder / "sky" / "0.png", folder / "sky" / "copy.png")
    rows.append((str(folder / "sky" / "copy.png"), "sky", "test"))
    with (folder / "photos.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("path", "label", "split"), *rows])
    options = featcache.Options("resnet18", seeded_weights, folder / "cache")
    featcache.extract(folder / "photos.csv", options)
    kept = featcache.Options(cache=folder / "cache")
    featcache.compare(heads=["logreg", "knn", "dummy"], n_seeds=2, options=kept)
    featcache.bench(heads=["logreg", "knn"], n_seeds=2, options=kept)
    featcache.report(out=folder / "report.html", heads=["logreg", "knn"], options=kept)
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=QUIET)
        yield browser
        browser.close()


@dataclass
class Opened:
    """A page in a browser, and what it did that it should not."""

    page: Any
    complaints: list[str] = field(default_factory=list)

    def eval(self, script: str) -> Any:
        return self.page.evaluate(script)

    def texts(self, selector: str) -> list[str]:
        return [str(text) for text in self.page.locator(selector).all_inner_texts()]


Open = Callable[..., Opened]


@pytest.fixture
def opened(browser: Any) -> Iterator[Open]:
    """Open a file from disk; at the end of the test nothing must have been asked for, said or popped up."""
    contexts = []
    all_opened = []

    def call(path: Path, width: int, scheme: str = "light") -> Opened:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
        )
        contexts.append(context)
        found = Opened(context.new_page())
        all_opened.append(found)
        page = found.page
        page.on("console", lambda message: found.complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: found.complaints.append(str(error)))
        page.on("dialog", lambda dialog: (found.complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on(
            "request",
            lambda request: (
                None if request.url.startswith(("file:", "data:")) else found.complaints.append(request.url)
            ),
        )
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-drawn]", state="attached")
        return found

    yield call
    for context in contexts:
        context.close()
    assert [complaint for found in all_opened for complaint in found.complaints] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", SIZES)
def test_it_opens_from_disk_with_all_its_charts_and_fits_the_screen(
    opened: Open, page_file: Path, width: int, scheme: str
) -> None:
    found = opened(page_file, width, scheme)
    assert found.eval("document.documentElement.scrollWidth") == width
    drawn = found.eval(
        "[...document.querySelectorAll('.chart')].map(host => host.querySelectorAll('svg, canvas').length)"
    )
    assert len(drawn) >= 8
    assert set(drawn) == {1}
    background = found.eval("getComputedStyle(document.documentElement).backgroundColor")
    levels = [int(level) for level in background.removeprefix("rgb(").removesuffix(")").split(",")]
    assert (min(levels) > 200) == (scheme == "light")
    assert (max(levels) < 60) == (scheme == "dark")


@pytest.mark.parametrize("width", SIZES)
def test_a_class_called_like_a_script_is_a_name(opened: Open, page_file: Path, width: int) -> None:
    found = opened(page_file, width)
    assert EVIL in found.texts("#dataset tbody th")
    assert EVIL in found.texts("#map-controls option")
    assert (
        found.eval(
            "[...document.scripts].filter(script => script.textContent.includes('alert(1)') && !script.type).length"
        )
        == 0
    )


@pytest.mark.parametrize("width", SIZES)
def test_hover_shows_the_thumbnail_and_the_path(opened: Open, page_file: Path, width: int) -> None:
    found = opened(page_file, width)
    found.eval("document.getElementById('map-chart').scrollIntoView({block: 'center'})")
    point = found.eval(
        """() => {
          const canvas = document.querySelector('#map-chart canvas');
          const { left, top, width, height } = canvas.getBoundingClientRect();
          for (let y = top + 5; y < top + height; y += 5)
            for (let x = left + 5; x < left + width; x += 5) {
              canvas.dispatchEvent(new PointerEvent('pointermove', { clientX: x, clientY: y, bubbles: true }));
              if (!document.getElementById('tip').hidden) return [x, y];
            }
        }"""
    )
    found.page.mouse.move(0, 0)
    found.page.mouse.move(*point)
    tip = found.page.locator("#tip")
    assert tip.locator("img").get_attribute("src").startswith("data:image/webp;base64,")
    assert tip.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") > 20
    assert str(page_file.parent) in tip.inner_text()
    found.page.keyboard.press("Escape")
    assert found.eval("document.getElementById('tip').hidden")


@pytest.mark.parametrize("width", SIZES)
def test_tables_are_sorted_by_click_and_by_key(opened: Open, page_file: Path, width: int) -> None:
    found = opened(page_file, width)
    column = "[...document.querySelectorAll('#classes tbody tr')].map(row => Number(row.cells[4].textContent))"
    button = found.page.locator("#classes thead th").nth(4).locator("button")
    button.click()
    down = found.eval(column)
    assert down == sorted(down, reverse=True)
    assert len(set(down)) > 1
    button.focus()
    found.page.keyboard.press("Enter")
    assert found.eval(column) == sorted(down)
    assert found.page.locator("#classes thead th").nth(4).get_attribute("aria-sort") == "ascending"


@pytest.mark.parametrize("width", SIZES)
def test_the_theme_is_changed_and_remembered(opened: Open, page_file: Path, width: int) -> None:
    found = opened(page_file, width)
    colour = "getComputedStyle(document.documentElement).backgroundColor"
    label = "getComputedStyle(document.querySelector('#heads .chart svg text')).fill"
    light, light_label = found.eval(colour), found.eval(label)
    found.page.locator("#theme").click()
    dark, dark_label = found.eval(colour), found.eval(label)
    assert dark != light
    assert dark_label != light_label
    found.page.reload()
    found.page.wait_for_selector("html[data-drawn]", state="attached")
    assert found.eval(colour) == dark


@pytest.mark.parametrize("width", SIZES)
def test_what_is_selected_is_listed(opened: Open, page_file: Path, width: int) -> None:
    found = opened(page_file, width)
    found.eval("document.getElementById('map-chart').scrollIntoView({block: 'center'})")
    box = found.page.locator("#map-chart canvas").bounding_box()
    found.page.mouse.move(box["x"] + 8, box["y"] + 8)
    found.page.mouse.down()
    found.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=4)
    found.page.mouse.move(box["x"] + box["width"] - 8, box["y"] + box["height"] - 8, steps=4)
    found.page.mouse.up()
    playwright.expect(found.page.locator("#map-status")).to_contain_text("37 pictures")
    assert found.page.locator("#map-list li").count() == 37
    found.page.locator("#map-controls select[name=chosen]").select_option(label=EVIL)
    assert found.page.locator("#map-list li").count() == 12
    assert set(found.texts("#map-list .first")) == {EVIL}
    found.page.locator("#map-controls select[name=outcome]").select_option("0")
    assert found.page.locator("#map-list li").count() == 8


def test_twins_across_the_split_stand_on_top_and_beside_each_other(opened: Open, page_file: Path) -> None:
    found = opened(page_file, 1440)
    assert any("a twin among those trained on" in text for text in found.texts("#summary li"))
    gallery = found.page.locator("#audit .gallery").first
    splits = [text.split(":")[0] for text in gallery.locator(".first").all_inner_texts()]
    assert set(splits) == {"train", "test"}


def test_the_keyboard_reaches_the_content(opened: Open, page_file: Path) -> None:
    found = opened(page_file, 1440)
    found.page.keyboard.press("Tab")
    assert found.eval("document.activeElement.className") == "skip"
    found.page.keyboard.press("Enter")
    assert found.eval("document.activeElement.id") == "content"
    assert found.eval("document.querySelectorAll('img:not([alt])').length") == 0
    assert (
        found.eval("[...document.querySelectorAll('.chart')].filter(host => !host.getAttribute('aria-label')).length")
        == 0
    )


@pytest.mark.parametrize("width", SIZES)
def test_a_hundred_classes_fit_the_screen(opened: Open, tmp_path: Path, width: int) -> None:
    whole = report_summary()
    labels = tuple(f"class number {number} with a long name" for number in range(101))
    matrix = tuple(tuple(9 if i == j else int((7 * i + j) % 50 == 0) for j in range(101)) for i in range(101))
    rows = tuple(ClassRow(label, 30, 10, 0.9, 0.9, 0.9, None, 0.9, "logreg", False) for label in labels)
    many = replace(whole, confusion=replace(whole.confusion, labels=labels, matrix=matrix, classes=rows))
    path = tmp_path / "many.html"
    path.write_text(report_html(many, {}), encoding="utf-8")
    found = opened(path, width)
    assert found.eval("document.documentElement.scrollWidth") == width
    cells = found.page.locator("#confusion .chart svg .mark-rect path")
    assert cells.count() >= 101
    cells.nth(40).hover(force=True)
    assert "class number" in found.page.locator("#tip").inner_text()
