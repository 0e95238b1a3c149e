"""A report by the command line: what goes into it, what is left out, how large it is, and what stops it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import TINTS, Result, write_picture
from report_rows import report_summary

import featcache
from featcache.api.reporting import ROOM
from featcache.decode import thumbnail
from featcache.errors import PictureError
from featcache.records.reports import Map, MapPoint
from featcache.render.html import report_html

Run = Callable[..., Result]

pytestmark = pytest.mark.usefixtures("one_thread", "ready_network")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, seeded_weights: Path) -> Path:
    """A folder with `photos`, three classes of twelve in two splits and a file that is none, and their cache."""
    folder = tmp_path_factory.mktemp("scene")
    for at, (label, tint) in enumerate(TINTS.items()):
        for number in range(12):
            split = "train" if number < 8 else "test"
            write_picture(folder / "photos" / split / label / f"{number}.png", 100 * at + number, tint)
    (folder / "photos" / "train" / "sky" / "notes.txt").write_text("no picture")
    for path in (folder / "photos").rglob("*.*"):
        os.utime(path, (1, 1))
    featcache.extract(folder / "photos", featcache.Options("resnet18", seeded_weights, folder / "cache"))
    return folder


@pytest.fixture
def photos(scene: Path, tmp_path: Path) -> Path:
    """The pictures, with a copy of their cache in the folder where commands are run."""
    shutil.copytree(scene / "cache", tmp_path / "cache")
    return scene / "photos"


FAST = ("--heads", "logreg,knn")


def test_a_page_is_written_and_its_numbers_printed(photos: Path, tmp_path: Path, run: Run) -> None:
    result = run("report", *FAST, "--json")
    found = result.json
    page = (tmp_path / "report.html").read_text("utf-8")
    assert found["bytes"] == len(page.encode())
    assert found["thumbnails"] == 36
    assert len(found["map"]["points"]) == 36
    assert {point["split"] for point in found["map"]["points"]} == {"train", "test"}
    assert sum(point["predicted"] is not None for point in found["map"]["points"]) == len(found["scored"]) == 12
    assert [failure["path"] for failure in found["failures"]] == [str(photos / "train" / "sky" / "notes.txt")]
    assert sum(row["n"] for row in found["calibration"]) == 12
    assert {name: set(near) for name, near in found["nearest"].items()} == {name: set(TINTS) - {name} for name in TINTS}
    assert len(found["missing"]) == 3
    assert all(command in page for command in ("featcache compare", "featcache bench", "featcache finetune"))
    text = run("report", *FAST).out
    assert f"page         {tmp_path}/report.html" in text
    assert "n=12, fitted on 24, seed 0" in text


def test_probabilities_are_those_of_the_confusions(photos: Path, run: Run) -> None:
    confusion = run("confusions", *FAST, "--json").json
    found = run("report", *FAST, "--json").json
    assert found["confusion"]["matrix"] == confusion["matrix"]
    wrong = sum(row["label"] != row["predicted"] for row in found["scored"])
    assert wrong == 12 - sum(confusion["matrix"][at][at] for at in range(3))
    for row in found["scored"]:
        assert row["probability"] >= row["label_probability"] > 0


def test_what_was_recorded_of_these_pictures_is_shown_and_of_others_is_not(
    photos: Path, tmp_path: Path, run: Run, seeded_weights: Path
) -> None:
    assert run("compare", "--heads", "logreg,knn", "--seeds", "2").code == 0
    assert run("bench", "--heads", "logreg", "--seeds", "1").code == 0
    first = run("report", *FAST, "--json").json
    assert [row["head"] for row in first["compare"]["rows"]] == ["logreg", "knn"]
    assert first["bench"]["rows"]
    assert len(first["missing"]) == 1
    shutil.copytree(photos, tmp_path / "photos")
    other = tmp_path / "photos"
    assert run("extract", "photos", network=True).code == 0
    assert run("compare", "--heads", "logreg", "--seeds", "1").code == 0
    (other / "test" / "sky" / "8.png").rename(other / "train" / "sky" / "8.png")
    assert run("extract", "photos", network=True).code == 0
    changed = run("report", "photos", *FAST, "--json").json
    assert changed["compare"] is None
    assert any("was recorded of these pictures, splits and features" in text for text in changed["missing"])


def test_pictures_that_changed_or_are_gone_have_no_thumbnail(photos: Path, tmp_path: Path, run: Run) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    assert run("extract", "photos", network=True).code == 0
    (tmp_path / "photos" / "test" / "sky" / "9.png").unlink()
    write_picture(tmp_path / "photos" / "test" / "sky" / "10.png", 999)
    found = run("report", "photos", *FAST, "--json").json
    assert found["thumbnails"] == 34
    shutil.rmtree(tmp_path / "photos")
    result = run("report", "photos", *FAST)
    assert "0 thumbnails" in result.out
    assert (
        "note         36 pictures are gone or have changed, and are not shown: `featcache extract` again" in result.out
    )
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "9.png" in page
    assert "36 pictures are gone or have changed" in page


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_each_map_places_every_picture(photos: Path, run: Run, method: str) -> None:
    found = run("report", *FAST, "--map", method, "--json").json["map"]
    assert found["method"] == {"pca": "PCA", "tsne": "t-SNE"}[method]
    assert (found["variance"] is not None) == (method == "pca")
    places = np.array([(point["x"], point["y"]) for point in found["points"]])
    assert np.isfinite(places).all()
    assert (places.std(axis=0) > 0).all()
    again = run("report", *FAST, "--map", method, "--json").json["map"]
    assert again == found


def test_umap_draws_or_says_how_to_get_it(photos: Path, run: Run) -> None:
    result = run("report", *FAST, "--map", "umap", "--json")
    try:
        import umap  # noqa: F401
    except ImportError:
        assert (result.code, result.out) == (2, "")
        assert "pip install 'featcache[umap]'" in result.err
    else:
        assert result.json["map"]["method"] == "UMAP"


def test_the_command_makes_the_same_page_again(photos: Path, tmp_path: Path, run: Run) -> None:
    run("report", *FAST, "--out", "it's.html", "--seed", "3", "--map", "tsne")
    page = (tmp_path / "it's.html").read_text("utf-8")
    quoted = "&#39;it&#39;&#34;&#39;&#34;&#39;s.html&#39;"
    assert f"featcache report {photos} --out {quoted} --heads logreg,knn --seed 3 --map tsne" in page
    assert run("report", *FAST, "--out", "again.html", "--seed", "3", "--map", "tsne").code == 0
    dated = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d|again\.html|it&#39;&#34;.*?html&#39;|\d+\.\d+ s|\d+\.\d+ seconds")
    first, second = (dated.sub("", (tmp_path / name).read_text("utf-8")) for name in ("it's.html", "again.html"))
    assert first.count("<section") == second.count("<section")
    assert abs(len(first) - len(second)) < 300


def test_wrong_values_are_refused_before_the_work(photos: Path, tmp_path: Path, run: Run) -> None:
    for words, said in (
        (("--map", "pie"), "unknown map 'pie'"),
        (("--head", "none"), "unknown head 'none'"),
        (("--out", "no/report.html"), "there is no folder"),
        (("--out", "cache"), "cache is a folder: name a file in it"),
        (("elsewhere",), "elsewhere"),
    ):
        result = run("report", *words)
        assert result.code in (1, 2)
        assert result.out == ""
        assert said in result.err
        assert "confusions" not in result.err
    assert not (tmp_path / "report.html").exists()


def test_ten_thousand_pictures_and_a_hundred_classes_stay_below_five_megabytes() -> None:
    r = np.random.default_rng(0)
    labels = [f"a class with a long name {number}" for number in range(101)]
    points = tuple(
        MapPoint(float(x), float(y), f"/home/somebody/a dataset/train/{labels[at % 101]}/image_{at:08d}.jpg",
                 labels[at % 101], "train", labels[(at * 7) % 101])
        for at, (x, y) in enumerate(r.standard_normal((10_000, 2)).tolist())
    )  # fmt: skip
    whole = replace(report_summary(), map=Map("PCA", 0.1, 10_000, points))
    pictures = {point.path: r.bytes(1000) for point in points[: ROOM // 1000]}
    assert len(report_html(whole, pictures).encode()) < 5_000_000


def test_a_thumbnail_is_small_upright_and_a_webp(tmp_path: Path) -> None:
    path = write_picture(tmp_path / "a.png", 0)
    small = thumbnail(path.read_bytes(), 20, 45)
    assert small[8:12] == b"WEBP"
    assert len(small) < 1000
    with pytest.raises(PictureError):
        thumbnail(b"no picture", 20, 45)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("compare", "--heads", "logreg,knn", "--seeds", "1"), "heads.svg"),
        (("bench", "--heads", "logreg", "--seeds", "1"), "curves.pdf"),
        (("confusions", *FAST), "matrix.png"),
        (("audit",), "classes.svg"),
    ],
)
def test_a_command_draws_its_figure(photos: Path, tmp_path: Path, run: Run, words: tuple[str, ...], name: str) -> None:
    result = run(*words, "--plot", name)
    assert result.code == 0
    magic = {".svg": b"<svg", ".pdf": b"%PDF", ".png": b"\x89PNG"}[Path(name).suffix]
    assert (tmp_path / name).read_bytes().startswith(magic)
    refused = run(*words, "--plot", "figure.bmp")
    assert (refused.code, refused.out) == (1, "")
    assert "use .png, .svg, .pdf" in refused.err
