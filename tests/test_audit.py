"""What an audit finds in planted data, what it leaves alone, and what it writes."""

from __future__ import annotations

import csv
import os
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from conftest import Result, write_picture
from PIL import Image
from store_rows import SPEC

import featcache
from featcache.audits import twins
from featcache.audits.axes import directions, principal
from featcache.audits.labels import suspects
from featcache.audits.outliers import typicality
from featcache.audits.twins import groups, near_twins
from featcache.errors import DatasetError, OutputError
from featcache.records import Features
from featcache.records.audits import AuditSummary
from featcache.store.exchange import Exchange, packed

Run = Callable[..., Result]
Vectors = npt.NDArray[np.float32]

pytestmark = pytest.mark.usefixtures("one_thread", "ready_network")


def clusters(sizes: Sequence[int], seed: int = 0, dim: int = 40, apart: float = 1.0) -> tuple[Vectors, Any]:
    """So many vectors around each of several centres, and the numbers of the centres."""
    r = np.random.default_rng(seed)
    codes = np.repeat(np.arange(len(sizes)), sizes)
    X = apart * r.standard_normal((len(sizes), dim))[codes] + r.standard_normal((len(codes), dim))
    return X.astype(np.float32), codes


def known(
    folder: Path, X: Vectors, labels: Sequence[str], splits: Sequence[str] = (), keys: Sequence[int] = ()
) -> featcache.Options:
    """A cache that holds these vectors as one dataset, of pictures that are not on the disk."""
    n = len(X)
    features = Features(
        X=X,
        y=np.array(labels, np.str_),
        paths=tuple(f"/gone/{number}.jpg" for number in range(n)),
        splits=np.array(splits or [""] * n, np.str_),
        keys=tuple(number.to_bytes(32, "big") for number in (keys or range(n))),
        fingerprint=SPEC.fingerprint,
    )
    (folder / "vectors.npz").write_bytes(packed(folder / "vectors.npz", Exchange(features, SPEC, "made up")))
    options = featcache.Options(cache=folder / "cache")
    featcache.cache_import(folder / "vectors.npz", options=options)
    return options


def named(summary: AuditSummary, kind: str) -> dict[str, str]:
    """Return the number of each picture that is named for a kind, and why."""
    return {Path(row.path).stem: row.reason for row in summary.rows if row.kind == kind}


class TestTwins:
    def test_the_same_file_on_both_sides_is_a_leak_and_flatters_the_score(self, tmp_path: Path) -> None:
        r = np.random.default_rng(0)
        X = r.standard_normal((120, 200)).astype(np.float32)
        labels = r.choice(["a", "b"], 120)
        splits = ["train"] * 80 + ["test"] * 40
        keys = [*range(80), *range(20), *range(100, 120)]  # the first 20 of test are files of train
        X[80:100], labels[80:100] = X[:20], labels[:20]
        found = featcache.audit(options=known(tmp_path, X, labels.tolist(), splits, keys))
        leaks = [row for row in found.rows if row.kind == "leak"]
        assert {row.path for row in leaks} == {f"/gone/{n}.jpg" for n in [*range(20), *range(80, 100)]}
        assert len({row.group for row in leaks}) == 20
        first = next(row for row in leaks if row.path == "/gone/85.jpg")
        assert first.reason == "the same file as /gone/5.jpg, in train"
        assert (first.value, first.kept, first.split) == (1.0, True, "test")
        assert {row.split for row in leaks if row.kept} == {"test"}
        assert (found.pictures, found.contents) == (120, 100)
        assert found.leak is not None
        assert (found.leak.n_test, found.leak.n_without, found.leak.n_train) == (40, 20, 80)
        # Labels are noise, so that only what is known by heart can be right.
        assert found.leak.accuracy == 0.5 + 0.5 * (found.leak.without or 0.0)
        assert found.leak.without is not None
        assert found.leak.without < 0.8
        assert found.leak.accuracy_interval[0] < found.leak.accuracy < found.leak.accuracy_interval[1]

    def test_near_copies_are_found_in_loose_and_in_tight_classes(self) -> None:
        for apart in (0.5, 4.0):
            X, _ = clusters([60, 60, 60], apart=apart)
            r = np.random.default_rng(1)
            whole = np.concatenate([X, X[:30] + 0.2 * r.standard_normal((30, 40))]).astype(np.float32)
            found = near_twins(principal(whole), np.full(210, 70))
            assert list(zip(found.first, found.second, strict=True)) == [(n, 180 + n) for n in range(30)]

    def test_a_series_of_one_scene_is_one_group(self) -> None:
        r = np.random.default_rng(2)
        scenes = r.standard_normal((12, 40))
        X = np.repeat(scenes, 15, axis=0) + 0.2 * r.standard_normal((180, 40))
        number = groups(near_twins(principal(X.astype(np.float32)), np.full(180, 90)), 180)
        assert [len(set(number[at : at + 15])) for at in range(0, 180, 15)] == [1] * 12
        assert len(set(number)) == 12

    def test_more_equal_vectors_than_neighbours_are_one_group(self) -> None:
        X, _ = clusters([100])
        X[10:80] = X[10]
        number = groups(near_twins(principal(X), np.full(100, 100)), 100)
        assert len(set(number[10:80])) == 1
        assert len(set(number)) == 31

    def test_equal_vectors_are_equal_wherever_they_stand(self) -> None:
        X, _ = clusters([300], dim=37)
        places = np.arange(3, 300, 31)
        X[places] = X[3]
        turned = principal(X)
        assert all(np.array_equal(turned[place], turned[3]) for place in places)
        found = near_twins(turned, np.full(300, 300))
        linked = {(int(one), int(other)) for one, other in zip(found.first, found.second, strict=True)}
        assert {(3, int(place)) for place in places[1:]} <= linked
        assert set(found.cosine[np.isin(found.first, places) & np.isin(found.second, places)].tolist()) == {1.0}

    def test_all_vectors_equal_are_one_group(self) -> None:
        found = near_twins(principal(np.ones((50, 4), np.float32)), np.full(50, 50))
        assert len(set(groups(found, 50))) == 1

    def test_it_is_the_same_by_brute_force_in_any_order_and_in_any_blocks(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        X, _ = clusters([150, 150], dim=200)
        r = np.random.default_rng(3)
        X = np.concatenate([X, X[:40] + r.uniform(0, 1.5, (40, 1)) * r.standard_normal((40, 200))]).astype(np.float32)
        turned = principal(X)
        apart = 1 - directions(turned) @ directions(turned).T
        np.fill_diagonal(apart, np.inf)
        tenth, thirtieth = (np.sort(apart, axis=1)[:, rank - 1] for rank in (10, 30))
        near, far = (np.minimum(room[:, None], room) for room in (tenth, thirtieth))
        room = np.maximum(twins.NEARER[10] * near, twins.NEARER[30] * far)
        expected = set(zip(*np.nonzero(np.triu(apart <= np.maximum(room, twins.SAME), 1)), strict=True))
        assert 10 < len(expected) < 40
        found = near_twins(turned, np.full(340, 340))
        assert set(zip(found.first, found.second, strict=True)) == expected
        np.testing.assert_allclose(found.cosine, 1 - apart[found.first, found.second], atol=1e-5)
        monkeypatch.setattr(twins, "BLOCK", 7)
        again = near_twins(turned, np.full(340, 340))
        assert set(zip(again.first, again.second, strict=True)) == expected
        order = r.permutation(len(X))
        mixed = near_twins(principal(X[order]), np.full(340, 340))
        assert {tuple(sorted(order[[a, b]])) for a, b in zip(mixed.first, mixed.second, strict=True)} == expected

    @pytest.mark.parametrize("n", [2, 3, 12, 31, 32])
    def test_few_pictures_are_no_twins_and_a_copy_is(self, n: int) -> None:
        X, _ = clusters([n])
        assert len(near_twins(principal(X), np.full(n, n)).first) == 0
        found = near_twins(principal(np.concatenate([X, X[:1]])), np.full(n + 1, n + 1))
        assert (found.first.tolist(), found.second.tolist()) == ([0], [n])

    @pytest.mark.parametrize("size", [2, 5, 11, 20, 35])
    def test_pictures_of_a_small_class_apart_are_no_series(self, size: int) -> None:
        X, _ = clusters([size] * 12, dim=200, apart=2.0)
        assert len(near_twins(principal(X), np.full(len(X), size)).first) == 0
        r = np.random.default_rng(4)
        X = np.concatenate([X, X[:1] + 0.1 * r.standard_normal((1, 200))]).astype(np.float32)
        found = near_twins(principal(X), np.full(len(X), size))
        assert (found.first.tolist(), found.second.tolist()) == ([0], [12 * size])

    def test_of_two_labels_for_one_file_the_reason_says_so_and_the_likelier_is_kept(self, tmp_path: Path) -> None:
        X, codes = clusters([20, 20], apart=3.0)
        labels = [*np.array(["ant", "bee"])[codes], "bee"]
        options = known(tmp_path, np.concatenate([X, X[:1]]), labels, keys=[*range(40), 0])
        found = featcache.audit(options=options)
        reasons = named(found, "twin")
        assert reasons == {
            "0": "the same file as /gone/40.jpg, labelled bee",
            "40": "the same file as /gone/0.jpg, labelled ant",
        }

    def test_of_a_chain_of_twins_those_without_a_twin_among_the_kept_are_kept(self, tmp_path: Path) -> None:
        r = np.random.default_rng(6)
        X = r.standard_normal((150, 200))
        step = 0.55 * r.standard_normal(200)
        X[1:4] = X[0] + np.outer([1, 2, 3], step)  # each is near its neighbours only
        found = featcache.audit(options=known(tmp_path, X.astype(np.float32), ["ant", "bee"] * 75))
        rows = {int(Path(row.path).stem): row for row in found.rows if row.kind in ("twin", "leak")}
        assert set(rows) == {0, 1, 2, 3}
        assert len({row.group for row in rows.values()}) == 1
        kept = {number for number, row in rows.items() if row.kept}
        assert kept in ({0, 2}, {0, 3}, {1, 3})

    def test_a_copy_in_a_wrong_class_is_doubted_and_the_right_one_stays(self, tmp_path: Path) -> None:
        X, codes = clusters([40, 40], apart=3.0)
        labels = [*np.array(["ant", "bee"])[codes], "bee"]
        X = np.concatenate([X, X[:1]])
        options = known(tmp_path, X, labels, keys=[*range(80), 0])
        found = featcache.audit(manifest=tmp_path / "clean.csv", options=options)
        assert set(named(found, "label")) == {"80"}
        assert all(row.path != "/gone/0.jpg" for row in found.rows if row.kind != "twin" or not row.kept)
        with (tmp_path / "clean.csv").open(newline="") as stream:
            left = {row["path"]: row["label"] for row in csv.DictReader(stream)}
        assert left["/gone/0.jpg"] == "ant"
        assert "/gone/80.jpg" not in left


class TestLabels:
    def test_flipped_labels_are_named_with_the_class_they_had(self, tmp_path: Path) -> None:
        X, codes = clusters([60, 60, 60], seed=5, apart=3.0)
        names = np.array(["ant", "bee", "cat"])
        labels = names[codes]
        wrong = [3, 17, 70, 100, 130, 150, 170]
        labels[wrong] = names[(codes[wrong] + 1) % 3]
        found = featcache.audit(options=known(tmp_path, X, labels.tolist()))
        rows = {int(Path(row.path).stem): row for row in found.rows if row.kind == "label"}
        assert set(rows) == set(wrong)
        for at, row in rows.items():
            assert (row.label, row.suggested) == (labels[at], names[codes[at]])
            assert row.reason.startswith(f"looks like {row.suggested} (0.")
            assert row.reason.endswith(f"its own label has {row.value:.2f}")
        values = [row.value for row in found.rows if row.kind == "label"]
        assert values == sorted(values)

    def test_right_labels_are_left_alone(self) -> None:
        X, codes = clusters([50, 50, 50], apart=2.0)
        assert len(suspects(X, codes, np.arange(150), 0).rows) == 0

    def test_twins_do_not_vouch_for_each_other(self) -> None:
        X, codes = clusters([60, 60], apart=2.0)
        X = np.repeat(X, 2, axis=0)
        codes, group = np.repeat(codes, 2), np.repeat(np.arange(120), 2)
        codes[:2] = 1  # both copies have the wrong label
        assert {0, 1} <= set(suspects(X, codes, group, 0).rows.tolist())

    @pytest.mark.parametrize("size", [1, 4])
    def test_a_class_with_a_few_pictures_is_not_judged(self, tmp_path: Path, size: int) -> None:
        X, codes = clusters([30, 30, size], apart=2.0)
        X[60:] = X[:size]  # they look like the first class
        found = suspects(X, codes, np.arange(60 + size), 0)
        assert np.isnan(found.probabilities[60:]).all()
        assert np.isfinite(found.probabilities[:60]).all()
        np.testing.assert_allclose(found.probabilities[:60].sum(1), 1)
        assert (found.rows < 60).all()
        summary = featcache.audit(options=known(tmp_path, X, np.array(["ant", "bee", "cow"])[codes].tolist()))
        assert "labels of classes with fewer than 5 pictures are not judged: cow" in summary.notices

    def test_a_seed_gives_the_same_twice(self) -> None:
        X, codes = clusters([40, 40], apart=0.3)
        first, again, other = (suspects(X, codes, np.arange(80), seed) for seed in (0, 0, 1))
        np.testing.assert_array_equal(first.probabilities, again.probabilities)
        assert (first.probabilities != other.probabilities).any()


class TestOutliers:
    def test_what_is_unlike_its_class_is_named(self, tmp_path: Path) -> None:
        X, codes = clusters([60, 60], apart=3.0)
        X[5] = 6 * np.random.default_rng(9).standard_normal(40)
        found = featcache.audit(options=known(tmp_path, X, np.array(["ant", "bee"])[codes].tolist()))
        assert set(named(found, "outlier")) == {"5"}

    def test_nothing_is_usual_in_a_small_class(self) -> None:
        X, codes = clusters([60, 9], apart=3.0)
        X[65] = 9 * np.random.default_rng(9).standard_normal(40)
        usual = typicality(principal(X), codes, np.arange(69), 0)
        assert (usual[60:] == 0).all()
        assert (usual[:60] != 0).any()

    def test_copies_are_no_evidence_of_each_other(self) -> None:
        X, codes = clusters([60], apart=3.0)
        X[50:60] = 6 * np.random.default_rng(9).standard_normal(40)
        group = np.arange(60)
        group[50:60] = 50
        assert (typicality(principal(X), codes, group, 0)[50:60] < -3.5).all()

    def test_a_large_class_is_compared_with_a_part_of_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        X, codes = clusters([300, 300], apart=3.0)
        X[7] = 6 * np.random.default_rng(9).standard_normal(40)
        monkeypatch.setattr("featcache.audits.outliers.REFERENCES", 50)
        usual = typicality(principal(X), codes, np.arange(600), 0)
        assert usual.argmin() == 7
        assert usual[7] < 2 * np.delete(usual, 7).min()


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory, seeded_weights: Path) -> Path:
    """A folder with a cache, and two classes of coarse noise among which lie junk and copies."""
    folder = tmp_path_factory.mktemp("scraped")
    r = np.random.default_rng(0)
    for at, (label, tint) in enumerate({"leaf": (60, 180, 60), "sky": (70, 110, 220)}.items()):
        for number in range(14):
            coarse = r.integers(-55, 55, (12, 12, 3)) + np.array(tint)
            path = folder / "photos" / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(coarse.clip(0, 255).astype(np.uint8)).resize((96, 96), Image.Resampling.BICUBIC).save(path)
        assert at < 2
    leaf = folder / "photos" / "leaf"
    Image.new("RGB", (90, 90), (250, 250, 250)).save(leaf / "blank.png")
    sorry = Image.new("RGB", (120, 120), (245, 245, 245))
    sorry.paste((40, 40, 40), (40, 56, 80, 60))
    sorry.save(leaf / "sorry.png")
    Image.open(leaf / "0.png").resize((20, 20)).save(leaf / "tiny.png")
    Image.open(leaf / "1.png").resize((400, 80)).save(leaf / "long.png")
    shutil.copy(leaf / "2.png", folder / "photos" / "leaf" / "copy.png")
    (leaf / "broken.jpg").write_bytes(b"no picture")
    for path in (folder / "photos").rglob("*.*"):
        os.utime(path, (1, 1))
    featcache.extract(folder / "photos", featcache.Options("resnet18", seeded_weights, folder / "cache"))
    return folder


@pytest.fixture
def cached(scraped: Path, tmp_path: Path) -> Path:
    """The folder of the pictures, with a copy of its cache where commands are run."""
    shutil.copytree(scraped / "cache", tmp_path / "cache")
    return scraped / "photos"


JUNK = {"blank": {"blank"}, "placeholder": {"sorry"}, "tiny": {"tiny"}, "shape": {"long"}}


class TestLooks:
    def test_what_shows_nothing_is_named_for_what_it_is(self, cached: Path, tmp_path: Path) -> None:
        found = featcache.audit(options=featcache.Options(cache=tmp_path / "cache"))
        assert {kind: set(named(found, kind)) for kind in JUNK} == JUNK
        assert named(found, "tiny") == {"tiny": "20 x 20 pixels"}
        assert named(found, "shape") == {"long": "400 x 80 pixels"}
        junk = {row.path for row in found.rows if row.kind in ("blank", "placeholder")}
        assert not junk & {row.path for row in found.rows if row.kind in ("label", "outlier")}
        assert found.unreadable == 1

    def test_neither_pictures_nor_a_network_are_needed(
        self, scraped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shutil.copytree(scraped / "cache", tmp_path / "cache")
        monkeypatch.setattr("featcache.api.auditing.look", None)
        monkeypatch.setattr("featcache.api.extraction.resolve", None)
        found = featcache.audit(options=featcache.Options(cache=tmp_path / "cache"))
        assert {kind: set(named(found, kind)) for kind in JUNK} == JUNK

    def test_pictures_extracted_before_looks_were_kept_are_looked_at_once(
        self, cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        connection = sqlite3.connect(tmp_path / "cache" / "catalog.sqlite")
        with connection:
            connection.execute("DELETE FROM looks")
        connection.close()
        options = featcache.Options(cache=tmp_path / "cache")
        assert {kind: set(named(featcache.audit(options=options), kind)) for kind in JUNK} == JUNK
        monkeypatch.setattr("featcache.api.auditing.look", None)
        assert {kind: set(named(featcache.audit(options=options), kind)) for kind in JUNK} == JUNK

    def test_pictures_that_are_gone_are_counted(self, tmp_path: Path) -> None:
        X, codes = clusters([20, 20], apart=3.0)
        found = featcache.audit(options=known(tmp_path, X, np.array(["ant", "bee"])[codes].tolist()))
        assert any(notice.startswith("40 pictures were imported, and are not opened") for notice in found.notices)
        assert not any("of the pictures named are not" in notice for notice in found.notices)


class TestClasses:
    def test_small_and_unequal_classes_are_said(self, tmp_path: Path) -> None:
        X, codes = clusters([80, 12], apart=3.0)
        splits = ["train"] * 60 + ["test"] * 20 + ["train"] * 8 + ["test"] * 4
        found = featcache.audit(options=known(tmp_path, X, np.array(["ant", "bee"])[codes].tolist(), splits))
        said = "\n".join(found.notices)
        assert "1 class has fewer than 10 pictures to train on: bee 8" in said
        assert "1 class has fewer than 10 pictures in test: bee 4" in said
        assert "'ant' has 60 pictures to train on, 'bee' 8" in said
        assert "always saying 'ant' has an accuracy of 0.833 on test" in said
        assert [(row.label, row.pictures, row.splits) for row in found.sizes] == [
            ("ant", 80, {"test": 20, "train": 60}),
            ("bee", 12, {"test": 4, "train": 8}),
        ]

    def test_large_and_equal_ones_are_not(self, tmp_path: Path) -> None:
        X, codes = clusters([80, 80], apart=3.0)
        found = featcache.audit(options=known(tmp_path, X, np.array(["ant", "bee"])[codes].tolist()))
        assert not [notice for notice in found.notices if "class" in notice]

    @pytest.mark.parametrize(
        ("labels", "splits", "said"),
        [
            ([""] * 20, [], "the pictures have no labels"),
            (["ant"] * 20, [], "there is only one class"),
            (["ant", "bee"] * 10, ["val"] * 20, "`train` is not among them"),
        ],
    )
    def test_what_cannot_be_trained_on_has_twins_all_the_same(
        self, tmp_path: Path, labels: list[str], splits: list[str], said: str
    ) -> None:
        X, _ = clusters([20])
        X[19] = X[3]
        found = featcache.audit(options=known(tmp_path, X, labels, splits, keys=[*range(19), 3]))
        assert set(named(found, "twin")) == {"3", "19"}
        assert found.leak is None
        assert any(said in notice for notice in found.notices)


class TestManifest:
    def test_it_lists_all_but_the_named_and_one_of_each_group(self, cached: Path, tmp_path: Path, run: Run) -> None:
        before = {path: path.stat().st_mtime_ns for path in cached.rglob("*.*")}
        result = run("audit", "--write-manifest", "clean.csv", "--json")
        assert result.code == 0
        dropped = {row["path"] for row in result.json["rows"] if not row["kept"]}
        with (tmp_path / "clean.csv").open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        everything = {str(path) for path in cached.rglob("*.png")}
        assert {row["path"] for row in rows} == everything - dropped
        pair = {str(cached / "leaf" / "2.png"), str(cached / "leaf" / "copy.png")}
        assert len(pair - dropped) == 1
        assert {row["split"] for row in rows} == {""}
        assert {path: path.stat().st_mtime_ns for path in cached.rglob("*.*")} == before
        again = run("extract", "clean.csv", "--json", network=True)
        assert (again.json["computed"], again.json["found"]) == (0, len(rows))

    def test_one_that_is_there_stays_unless_it_says_the_same(self, cached: Path, tmp_path: Path, run: Run) -> None:
        assert run("audit", "--write-manifest", "clean.csv").code == 0
        assert run("audit", "--write-manifest", "clean.csv").code == 0
        (tmp_path / "clean.csv").write_text("path,label\n")
        result = run("audit", "--write-manifest", "clean.csv")
        assert result.code == 1
        assert "clean.csv is there already" in result.err
        assert (tmp_path / "clean.csv").read_text() == "path,label\n"

    def test_a_bad_place_is_refused_before_the_work(self, cached: Path, tmp_path: Path, run: Run) -> None:
        for name, said in (("clean.txt", "suffix .csv"), ("no/clean.csv", "there is no folder")):
            result = run("audit", "--write-manifest", name)
            assert (result.code, result.out) == (1, "")
            assert said in result.err
            assert "audit twins" not in result.err
        with pytest.raises(OutputError):
            featcache.audit(manifest=tmp_path / "x.txt", options=featcache.Options(cache=tmp_path / "cache"))

    def test_a_class_that_is_lost_is_said(self, tmp_path: Path) -> None:
        X, codes = clusters([20, 2], apart=3.0)
        labels = np.array(["ant", "bee"])[codes].tolist()
        splits = ["train", "test"] * 11
        options = known(
            tmp_path,
            np.concatenate([X, X[:2]]),
            [*labels, "cow", "cow"],
            [*splits, "train", "test"],
            [*range(22), 0, 1],
        )
        found = featcache.audit(manifest=tmp_path / "clean.csv", options=options)
        assert any(notice == "class 'cow' has no picture in clean.csv" for notice in found.notices) == (
            "cow" not in (tmp_path / "clean.csv").read_text()
        )
        assert "cow" not in (tmp_path / "clean.csv").read_text()


class TestCommand:
    def test_the_page_names_pictures_from_the_dataset_on(self, cached: Path, run: Run) -> None:
        result = run("audit")
        assert result.code == 0
        assert "leaf/blank.png" in result.out
        assert f"{cached}/leaf" not in result.out
        assert "named by: one colour covers all of it" in result.out

    def test_csv_and_markdown_hold_the_rows(self, cached: Path, tmp_path: Path, run: Run) -> None:
        result = run("audit", "--csv", "a.csv", "--md", "a.md", "--json")
        with (tmp_path / "a.csv").open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        assert [row["path"] for row in rows] == [row["path"] for row in result.json["rows"]]
        assert "leaf/blank.png" in (tmp_path / "a.md").read_text()

    def test_where_nothing_is_found_it_says_so(self, tmp_path: Path, run: Run) -> None:
        X, codes = clusters([80, 80], seed=1, apart=3.0)
        known(tmp_path, X, np.array(["ant", "bee"])[codes].tolist())
        result = run("audit", "--csv", "a.csv")
        assert "nothing to name" in result.out
        assert (tmp_path / "a.csv").read_text().startswith('"kind","path","label","split"')
        assert len((tmp_path / "a.csv").read_text().splitlines()) == 1

    def test_it_is_a_run_that_can_be_shown_again(self, cached: Path, run: Run) -> None:
        shown = run("audit").out
        listed = run("runs", "--json").json["rows"][-1]
        assert (listed["command"], listed["result"]) == ("audit", f"{len(set(self._paths(run)))} pictures named")
        assert run("runs", "show", str(listed["id"])).out.endswith(shown)

    def _paths(self, run: Run) -> list[str]:
        return [row["path"] for row in run("audit", "--json").json["rows"]]

    def test_an_unknown_source_is_named(self, cached: Path, run: Run) -> None:
        result = run("audit", "elsewhere")
        assert result.code == 1
        assert "elsewhere" in result.err

    def test_a_vector_that_is_not_finite_is_not_even_kept(self, tmp_path: Path) -> None:
        X, codes = clusters([20, 20])
        X[7, 3] = np.nan
        with pytest.raises(featcache.errors.ExchangeError, match="has values that are not finite"):
            featcache.audit(options=known(tmp_path, X, np.array(["ant", "bee"])[codes].tolist()))

    def test_an_empty_cache_says_what_to_do(self, tmp_path: Path) -> None:
        (tmp_path / "photos").mkdir()
        write_picture(tmp_path / "photos" / "a" / "0.png", 0)
        with pytest.raises((DatasetError, featcache.errors.CacheError)):
            featcache.audit(tmp_path / "photos", options=featcache.Options(cache=tmp_path / "cache"))
