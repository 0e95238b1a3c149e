"""Further views of each picture: what they are, where they are kept, and what is fitted and scored with them."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from conftest import Result, load_saved, write_picture
from PIL import Image, ImageOps

import featcache
from featcache.decode import decode
from featcache.load import load
from featcache.records import ORIGINAL, VIEWS, Preprocess
from featcache.store import Cache

Run = Callable[..., Result]
Pixels = npt.NDArray[np.uint8]

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ["flip", "crop-tl", "crop-tr", "crop-bl", "crop-br"]
CORNERS = {"crop-tl": (0, 0), "crop-tr": (1, 0), "crop-bl": (0, 1), "crop-br": (1, 1)}
COUNT = 10


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, seeded_weights: Path) -> Path:
    """A folder with `photos`, extracted with all views: two classes that are hard to tell, five pictures each."""
    folder = tmp_path_factory.mktemp("views")
    for at, (label, tint) in enumerate({"leaf": (80, 160, 100), "sky": (81, 159, 101)}.items()):
        for number in range(5):
            slanted(folder / "photos" / label / f"{number}.png", 10 * at + number, tint)
    for path in (folder / "photos").rglob("*.png"):
        os.utime(path, (1, 1))
    options = featcache.Options("resnet18", seeded_weights, folder / "cache")
    summary = featcache.extract(folder / "photos", options, views=("flip", "crops5"))
    (folder / "summary.json").write_text(json.dumps([[view.name, view.computed] for view in summary.views]))
    return folder


def slanted(path: Path, seed: int, tint: tuple[int, int, int], size: tuple[int, int] = (60, 40)) -> Path:
    """Write a noisy picture that is brighter towards one corner."""
    width, height = size
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    noise = np.random.default_rng(seed).integers(-30, 30, (height, width, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = noise + np.array(tint) + 70 * (x + 2 * y)[:, :, None] - 60
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return path


@pytest.fixture
def photos(scene: Path, tmp_path: Path) -> Path:
    """The pictures of `scene`, with a copy of its cache in the folder where commands are run."""
    shutil.copytree(scene / "cache", tmp_path / "cache")
    return scene / "photos"


@pytest.fixture
def listing(photos: Path, tmp_path: Path) -> Path:
    """A manifest of the pictures: a dataset of its own, all of whose vectors the cache has."""
    rows = [(str(path), path.parent.name) for path in sorted(photos.rglob("*.png"))]
    return write_listing(tmp_path / "listing.csv", rows)


def write_listing(path: Path, rows: list[tuple[str, str]]) -> Path:
    """Write a manifest of paths and labels."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    return path


def vectors(cache: Path, fingerprint: str, root: Path) -> tuple[list[str], Any]:
    """Return paths and vectors of a dataset."""
    with Cache(cache) as opened:
        features = load(opened.catalog.dataset(str(root)), opened.store(fingerprint))
    return list(features.paths), features.X


def embed(weights: Path, pictures: list[Pixels]) -> Any:
    """Return the vectors of pictures as they enter the network."""
    from featcache.backbones import resolve
    from featcache.embed import open_engine

    return open_engine(resolve("resnet18", weights), "cpu").embed(np.stack(pictures))


def refused(result: Result, words: str) -> bool:
    """Tell whether a command failed with one line that has these words, and nothing on stdout."""
    lines = [line for line in result.err.splitlines() if line.startswith("featcache: ")]
    return (result.code, result.out, len(lines)) == (1, "", 1) and words in lines[0] and "Traceback" not in result.err


# --- the pixels ---


def png(size: tuple[int, int], seed: int = 0) -> tuple[Image.Image, bytes]:
    """Return a noisy picture of a size, and its bytes as a PNG."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image, out = Image.fromarray(pixels), io.BytesIO()
    image.save(out, "PNG")
    return image, out.getvalue()


def preprocess(resize: int = 20, crop: int = 16, mode: str = "short") -> Preprocess:
    return Preprocess(resize, crop, "bilinear", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), mode)


SIZES = {
    "landscape": (50, 30),
    "portrait": (30, 51),
    "square": (33, 33),
    "tiny": (3, 2),
    "one pixel": (1, 1),
    "as asked": (20, 20),
}


@pytest.mark.parametrize("mode", ["short", "squash"])
@pytest.mark.parametrize("size", SIZES.values(), ids=list(SIZES))
def test_views_are_the_mirrored_centre_and_the_corners_of_the_resized_picture(size: tuple[int, int], mode: str) -> None:
    image, data = png(size)
    steps = preprocess(mode=mode)
    width, height = size
    target = (20, int(20 * height / width)) if width <= height else (int(20 * width / height), 20)
    resized = image.resize((20, 20) if mode == "squash" else target, Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(decode(data, steps, "flip"), decode(data, steps)[:, ::-1])
    for view, (right, bottom) in CORNERS.items():
        left, top = right * (resized.width - 16), bottom * (resized.height - 16)
        expected = np.asarray(resized.crop((left, top, left + 16, top + 16)))
        np.testing.assert_array_equal(decode(data, steps, view), expected)
    np.testing.assert_array_equal(decode(data, steps, ORIGINAL), decode(data, steps))


@pytest.mark.parametrize("size", [(3000, 8), (8, 3000)])
def test_the_views_of_an_extremely_long_picture(size: tuple[int, int]) -> None:
    ramp = np.linspace(0, 255, 3000).astype(np.uint8)
    pixels = np.repeat(ramp[None] if size[0] > size[1] else ramp[:, None], 8, axis=0 if size[0] > size[1] else 1)
    out = io.BytesIO()
    image = Image.fromarray(np.repeat(pixels[:, :, None], 3, axis=2))
    image.save(out, "PNG")
    steps = preprocess()
    scale = 20 / 8
    resized = image.resize((round(size[0] * scale), round(size[1] * scale)), Image.Resampling.BILINEAR)
    seen = {view: decode(out.getvalue(), steps, view) for view in ["flip", *CORNERS]}
    assert {view: pixels.shape for view, pixels in seen.items()} == dict.fromkeys(seen, (16, 16, 3))
    np.testing.assert_array_equal(seen["flip"], decode(out.getvalue(), steps)[:, ::-1])
    for view, (right, bottom) in CORNERS.items():
        left, top = right * (resized.width - 16), bottom * (resized.height - 16)
        expected = np.asarray(resized.crop((left, top, left + 16, top + 16)), int)
        assert abs(seen[view].astype(int) - expected).max() <= 1
    far, near = ("crop-tr", "crop-bl") if size[0] > size[1] else ("crop-bl", "crop-tr")
    assert seen[far].min() > 250 > 5 > seen[near].max()


def test_where_the_crop_is_larger_than_the_picture_a_corner_has_the_same_border_below() -> None:
    image, data = png((20, 20))
    steps = preprocess(crop=24)
    for view in CORNERS:
        seen = decode(data, steps, view)
        assert seen.shape == (24, 24, 3)
        np.testing.assert_array_equal(seen[:20, :20], np.asarray(image))
        assert seen[20:].max() == seen[:, 20:].max() == 0


def test_exif_orientation_comes_before_the_view() -> None:
    image, _ = png((50, 30))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise shows it upright
    out, upright = io.BytesIO(), io.BytesIO()
    image.save(out, "PNG", exif=exif)
    image.transpose(Image.Transpose.ROTATE_270).save(upright, "PNG")
    for view in [ORIGINAL, *NAMES]:
        np.testing.assert_array_equal(
            decode(out.getvalue(), preprocess(), view), decode(upright.getvalue(), preprocess(), view)
        )


# --- extraction ---


def test_every_view_has_its_own_fingerprint_and_is_computed_once(scene: Path, photos: Path, run: Run) -> None:
    assert json.loads((scene / "summary.json").read_text()) == [[name, COUNT] for name in NAMES]
    again = run("extract", photos, "--views", "flip,crops5", "--json", network=True).json
    assert (again["found"], again["reused"], again["computed"], again["view"]) == (COUNT, COUNT, 0, ORIGINAL)
    assert [(view["name"], view["reused"], view["computed"]) for view in again["views"]] == [
        (name, COUNT, 0) for name in NAMES
    ]
    prints = {again["fingerprint"], *(view["fingerprint"] for view in again["views"])}
    assert len(prints) == 6
    text = run("extract", photos, "--views", "crops5", network=True).out
    for name in NAMES[1:]:
        assert f"view {name} {COUNT} reused, 0 computed, " in text
    assert "view flip" not in text
    assert sum(len(names) for names in VIEWS.values()) == 5


def test_an_unknown_view_is_one_line(run: Run, photos: Path) -> None:
    for views, unknown in (
        ("nope", "nope"),
        ("flip,Crops5", "Crops5"),
        ("crop-tl", "crop-tl"),
        ("flip, crops6", "crops6"),
    ):
        result = run("extract", photos, "--views", views, network=True)
        assert refused(result, f"unknown view {unknown!r}: use flip, crops5")


def test_the_vectors_of_views_are_those_of_the_pixels(photos: Path, tmp_path: Path, seeded_weights: Path) -> None:
    from featcache.backbones import resolve

    backbone = resolve("resnet18", seeded_weights)
    steps = backbone.spec.preprocess
    files = sorted(str(path) for path in photos.rglob("*.png"))
    centre = [decode(Path(file).read_bytes(), steps) for file in files]
    big = Image.open(files[0]).resize((int(steps.resize * 60 / 40), steps.resize), Image.Resampling.BILINEAR)
    box = (big.width - steps.crop, 0, big.width, steps.crop)
    by_hand = {
        "flip": [np.ascontiguousarray(np.asarray(ImageOps.mirror(Image.fromarray(pixels)))) for pixels in centre],
        "crop-tr": [np.asarray(big.crop(box))],
        ORIGINAL: centre,
    }
    kept: dict[str, Any] = {}
    for view, pictures in by_hand.items():
        paths, X = vectors(tmp_path / "cache", backbone.viewing(view).spec.fingerprint, photos)
        assert sorted(paths) == files
        kept[view] = X[np.argsort(paths)]
        np.testing.assert_allclose(kept[view][: len(pictures)], embed(seeded_weights, pictures), rtol=1e-3, atol=1e-4)
    assert not np.allclose(kept["flip"], kept[ORIGINAL], rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("photos")
def test_views_are_listed_sound_and_kept(run: Run) -> None:
    info = run("cache", "info", "--json").json
    assert sorted(backbone["view"] for backbone in info["backbones"]) == sorted([ORIGINAL, *NAMES])
    assert {backbone["rows"] for backbone in info["backbones"]} == {COUNT}
    assert len(info["datasets"][0]["fingerprints"]) == 6
    assert "resnet18, crop-br" in run("cache", "info").out
    verified = run("cache", "verify", "--json")
    assert verified.code == 0
    assert [(d["valid"], d["stale"], d["missing"]) for d in verified.json["datasets"]] == [(COUNT, 0, 0)] * 6
    assert verified.json["orphaned"] == 0
    kept = run("cache", "gc", "--yes", "--json").json
    assert run("cache", "info", "--json").json["backbones"] == info["backbones"], kept
    assert run("fit", "--tta").code == 0


def test_gc_frees_the_views_of_a_dataset_that_is_given_up(run: Run, photos: Path) -> None:
    assert run("cache", "gc", "--forget", photos, "--yes").code == 0
    assert [b["rows"] for b in run("cache", "info", "--json").json["backbones"] if b["rows"]] == []


# --- fit, predict and compare ---


def test_fitting_without_views_says_how_to_get_them(run: Run, listing: Path) -> None:
    run("extract", listing, network=True)
    for words in (["fit", "--train-views"], ["fit", "--tta"], ["compare", "--tta"], ["compare", "--train-views"]):
        assert refused(run(*words), f"no view of {listing} is in the cache: run `featcache extract {listing} --views")
    assert run("fit").code == 0


def test_the_base_stays_the_original_view(run: Run, photos: Path) -> None:
    from_views = run("fit", "--json").json
    extracted = run("extract", photos, "--json", network=True).json
    assert extracted["computed"] == 0
    assert from_views["fingerprint"] == extracted["fingerprint"]
    assert (from_views["train_views"], from_views["test_views"]) == ([], [])
    again = run("fit", "--json").json
    assert [again[name] for name in ("accuracy", "log_loss", "params")] == [
        from_views[name] for name in ("accuracy", "log_loss", "params")
    ]


@pytest.mark.usefixtures("photos")
def test_fit_says_which_views_it_used_and_counts_pictures(run: Run) -> None:
    plain = run("fit", "--json").json
    both = run("fit", "--train-views", "--tta", "--json").json
    assert (both["train_views"], both["test_views"]) == (sorted(NAMES), sorted(NAMES))
    assert run("fit", "--train-views", "--json").json["test_views"] == []
    same = ("n_train", "n_test", "split_digest", "fingerprint", "n_classes")
    assert [both[name] for name in same] == [plain[name] for name in same]
    assert (both["n_train"], both["n_test"]) == (8, 2)
    assert both["log_loss"] != plain["log_loss"]
    text = run("fit", "--train-views", "--tta").out
    assert "logreg+views+tta" in text
    assert "n=8" in text
    assert "fitted on the original and crop-bl, crop-br, crop-tl, crop-tr, flip" in text
    assert "mean probability of the original and crop-bl" in text


@pytest.mark.parametrize("head", ["logreg", "svm"])
def test_predict_with_views_is_the_mean_of_their_probabilities(
    run: Run, photos: Path, tmp_path: Path, seeded_weights: Path, head: str
) -> None:
    from featcache.backbones import resolve

    fitted = run("fit", "--head", head, "--tta", "--json").json
    new = [
        slanted(tmp_path / "new" / f"{n}.png", 900 + n, (80, 160, 100), size)
        for n, size in enumerate([(60, 40), (40, 70)])
    ]
    if head != "logreg":  # pictures that are known need no network
        new = [photos / "leaf" / "0.png"]
    source = new[0].parent if head == "logreg" else new[0]
    result = run("predict", fitted["model"], source, "--json")
    predicted = result.json["predictions"]
    assert [row["path"] for row in predicted] == [str(path) for path in new]
    assert ("extract:" in result.err) == (head == "logreg")
    steps = resolve("resnet18", seeded_weights).spec.preprocess
    saved = load_saved(fitted["model"])
    views = [ORIGINAL, *NAMES]
    X = embed(seeded_weights, [decode(path.read_bytes(), steps, view) for view in views for path in new])
    seen = [saved.estimator.predict_proba(part.astype(np.float32)) for part in np.split(X, len(views))]
    for row, expected in zip(predicted, np.mean(seen, axis=0), strict=True):
        assert list(row["probabilities"]) == list(saved.classes)
        assert list(row["probabilities"].values()) == pytest.approx(expected, abs=1e-3)
        assert row["label"] == saved.classes[int(expected.argmax())]
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.usefixtures("photos")
def test_the_score_with_views_is_that_of_the_mean_probabilities(run: Run, photos: Path, tmp_path: Path) -> None:
    fitted = run("fit", "--train-views", "--tta", "--head", "knn", "--json").json
    (made,) = (tmp_path / "cache" / "splits").glob("*.json")
    held = set(json.loads(made.read_text())["splits"]["test"])
    losses, hits = [], []
    for row in run("predict", fitted["model"], photos, "--json").json["predictions"]:
        if hashlib.sha256(Path(row["path"]).read_bytes()).hexdigest() in held:
            truth = Path(row["path"]).parent.name
            losses.append(-np.log(row["probabilities"][truth]))
            hits.append(row["label"] == truth)
    assert len(hits) == fitted["n_test"] == 2
    assert np.mean(hits) == fitted["accuracy"]
    assert np.mean(losses) == pytest.approx(fitted["log_loss"], abs=1e-4)


@pytest.mark.usefixtures("photos")
def test_compare_has_a_row_with_and_one_without_views(run: Run) -> None:
    words = ["compare", "--heads", "logreg,centroid,dummy", "--seeds", "2", "--train-views", "--tta"]
    result = run(*words, "--json")
    found = result.json
    assert result.code == 0
    assert [(row["head"], row["train_views"], row["test_views"]) for row in found["rows"]] == [
        ("logreg", False, False),
        ("centroid", False, False),
        ("dummy", False, False),
        ("logreg", True, True),
        ("centroid", True, True),
    ]
    assert (found["setting"]["train_views"], found["setting"]["test_views"]) == (sorted(NAMES), sorted(NAMES))
    plain = run("compare", "--heads", "logreg,centroid,dummy", "--seeds", "2", "--json").json
    assert [row["accuracies"] for row in found["rows"][:3]] == [row["accuracies"] for row in plain["rows"]]
    assert found["rows"][3]["log_loss"] != found["rows"][0]["log_loss"]
    fitted = run("fit", "--tta", "--json").json
    tta = run("compare", "--heads", "logreg", "--seeds", "1", "--tta", "--json").json
    assert tta["rows"][1]["log_loss"] == pytest.approx(fitted["log_loss"])
    assert (tta["setting"]["train_views"], tta["rows"][1]["train_views"]) == ([], False)
    text = run(*words).out
    assert "logreg+views+tta" in text
    assert "+tta" in text.split("\n\n")[-1]
    numbers = [str(row["id"]) for row in run("runs", "--json").json["rows"] if row["command"] == "compare"]
    heads = run("runs", "compare", *numbers[:2], "--json").json
    assert [row["head"] for row in heads["rows"]] == [
        "logreg",
        "centroid",
        "dummy",
        "logreg+views+tta",
        "centroid+views+tta",
    ]
    assert [line.partition(":")[0] for line in heads["differences"]] == ["train_views", "test_views"]
    page = run("runs", "show", numbers[0]).out.partition("\n\n")[2]
    assert page.split("\n\n")[0] == text.split("\n\n")[0]


@pytest.mark.usefixtures("photos")
def test_the_ledger_counts_views_beside_the_extraction(run: Run) -> None:
    run("fit", "--tta")
    found = run("ledger", "--json").json
    assert {row["work"]: row["runs"] for row in found["rows"]} == {"extract views": 5, "extract": 1, "fit": 1}
    assert found["experiments"] == 1


# --- what changes, and what stops ---


def test_pictures_that_came_later_need_their_views(run: Run, listing: Path, tmp_path: Path) -> None:
    run("extract", listing, "--views", "flip", network=True)
    assert run("fit", "--tta", "--json").json["test_views"] == ["flip"]
    new = slanted(tmp_path / "new.png", 77, (60, 180, 60))
    with listing.open("a", newline="") as file:
        csv.writer(file).writerow([str(new), "leaf"])
    assert run("extract", listing, "--json", network=True).json["computed"] == 1
    assert run("fit", "--json").json["n_train"] == 9
    for words in (["fit", "--tta"], ["compare", "--train-views", "--heads", "logreg"]):
        assert refused(
            run(*words),
            f"the view flip of some pictures is not in the cache: run `featcache extract {listing}` with --views",
        )
    again = run("extract", listing, "--views", "flip", "--json", network=True).json
    assert [(view["computed"], view["reused"]) for view in again["views"]] == [(1, COUNT)]
    assert run("fit", "--tta", "--json").json["n_train"] == 9


def test_an_unreadable_picture_is_left_out_of_every_view(run: Run, listing: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG broken")
    with listing.open("a", newline="") as file:
        csv.writer(file).writerow([str(tmp_path / "broken.png"), "leaf"])
    found = run("extract", listing, "--views", "flip,crops5", "--json", network=True).json
    assert (found["unreadable"], [view["computed"] for view in found["views"]]) == (1, [0] * 5)
    assert run("fit", "--tta", "--json").json["n_train"] == 8


def test_a_stopped_extraction_of_views_leaves_the_earlier_one(
    run: Run, listing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featcache.api import extraction

    run("extract", listing, network=True)
    before = run("fit", "--json").json
    compute = extraction.compute

    def interrupted(*args: Any) -> Any:
        compute(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(extraction, "compute", interrupted)
        stopped = run("extract", listing, "--views", "flip,crops5", network=True)
    assert (stopped.code, stopped.out) == (130, "")
    after = run("fit", "--json").json
    assert [after[name] for name in ("fingerprint", "accuracy", "log_loss", "split_digest")] == [
        before[name] for name in ("fingerprint", "accuracy", "log_loss", "split_digest")
    ]
    assert refused(run("fit", "--tta"), f"no view of {listing} is in the cache")  # they are finished together
    assert run("cache", "verify").code == 0
    assert [b["rows"] for b in run("cache", "info", "--json").json["backbones"]] == [COUNT] * 6
    whole = run("extract", listing, "--views", "flip,crops5", "--json", network=True).json
    assert [view["computed"] for view in whole["views"]] == [0] * 5
    assert run("fit", "--tta", "--json").json["test_views"] == sorted(NAMES)


@pytest.mark.slow
def test_a_first_extraction_that_stops_among_its_views_has_no_base_yet(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featcache.api.embedding import Embedder

    for label in ("a", "b"):
        for number in range(3):
            write_picture(tmp_path / "few" / label / f"{number}.png", 10 * ord(label) + number)
    add, calls = Embedder.add, []

    def interrupted(*args: Any) -> None:
        calls.append(args)
        if len(calls) == 5:  # by then the batch of the first picture is finished
            raise KeyboardInterrupt
        add(*args)

    words = ["extract", "few", "--views", "flip,crops5", "--batch-size", "6", "--device", "cpu"]
    with monkeypatch.context() as patch:
        patch.setattr(Embedder, "add", interrupted)
        assert run(*words, network=True).code == 130
    assert refused(run("fit"), "featcache extract")
    assert refused(run("ledger"), "featcache extract")
    kept = {backbone["view"]: backbone["rows"] for backbone in run("cache", "info", "--json").json["backbones"]}
    (rows,) = set(kept.values())  # a batch holds all six views of one picture
    assert (sorted(kept), 1 <= rows <= 4) == (sorted([ORIGINAL, *NAMES]), True)
    found = run(*words, "--json", network=True).json
    assert [(view["computed"], view["reused"]) for view in found["views"]] == [(6 - rows, rows)] * 5
    assert (found["computed"], found["reused"]) == (6 - rows, rows)
    assert run("fit", "few", "--tta", "--json", network=True).json["test_views"] == sorted(NAMES)


def test_an_export_has_the_original_view(run: Run, photos: Path, tmp_path: Path) -> None:
    fingerprint = run("fit", "--json").json["fingerprint"]
    assert run("cache", "export", "all.npz").code == 0
    with np.load("all.npz") as file:
        paths, X = vectors(tmp_path / "cache", fingerprint, photos)
        np.testing.assert_array_equal(file["features"], X)
        assert [Path(str(path)).name for path in file["paths"]] == [Path(path).name for path in paths]
    assert run("cache", "import", "all.npz", "--cache", "new").code == 0
    assert run("fit", "--cache", "new", "--json").json["fingerprint"] == fingerprint
    assert refused(run("fit", "--tta", "--cache", "new"), "no view of")
