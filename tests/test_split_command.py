"""`featcache split`: who gets into which split, what is refused, and what is written and what never is."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from conftest import Result, write_picture

from featcache import api
from featcache.api import splitting
from featcache.cli.options import Bar
from featcache.discover import discover
from featcache.errors import DatasetError, OutputError, UsageError
from featcache.sources import read
from featcache.splits import divide

Run = Callable[..., Result]

pytestmark = pytest.mark.usefixtures("ready_network")


def splits_of(manifest: Path) -> dict[str, str]:
    """The split of each path, as everything else in the package reads it."""
    return {item.path: item.split or "" for item in discover(manifest).items}


def by_content(manifest: Path) -> dict[bytes, set[str]]:
    """The splits that each content is in."""
    found: dict[bytes, set[str]] = defaultdict(set)
    for path, name in splits_of(manifest).items():
        found[Path(path).read_bytes()].add(name)
    return found


def members(path: Path) -> Counter[tuple[str | None, str | None]]:
    """How many pictures each label has in each split."""
    return Counter((item.label, item.split) for item in discover(path).items)


def class_folder(root: Path, **sizes: int) -> Path:
    """A class folder with so many pictures of each class."""
    for at, (label, size) in enumerate(sizes.items()):
        for number in range(size):
            write_picture(root / label / f"{number}.png", 1000 * at + number)
    return root


def state(root: Path) -> dict[str, tuple[bytes, int]]:
    """Names, contents and modification times of all below a folder."""
    return {
        str(path): (path.read_bytes() if path.is_file() else b"", path.lstat().st_mtime_ns)
        for path in (root, *root.rglob("*"))
    }


class TestDivide:
    """The draw itself, by made-up keys."""

    @staticmethod
    def keys(**sizes: int) -> dict[bytes, str]:
        labels = [label for label, size in sizes.items() for _ in range(size)]
        return {number.to_bytes(32, "big"): label for number, label in enumerate(labels)}

    @pytest.mark.parametrize(
        ("fractions", "size", "expected"),
        [
            ({"test": 0.2}, 10, (8, 0, 2)),
            ({"test": 0.25, "val": 0.15}, 100, (60, 15, 25)),
            ({"test": 0.2}, 2, (1, 0, 1)),
            ({"test": 0.01, "val": 0.01}, 3, (1, 1, 1)),
            ({"test": 0.45, "val": 0.45}, 4, (1, 1, 2)),
            ({"test": 0.98, "val": 0.01}, 10, (1, 1, 8)),
        ],
    )
    def test_each_class_has_the_fractions_and_at_least_one_everywhere(
        self, fractions: dict[str, float], size: int, expected: tuple[int, int, int]
    ) -> None:
        labels = self.keys(cat=size, dog=size)
        made = divide(labels, fractions, 0, {})
        for label in ("cat", "dog"):
            found = Counter(made[key] for key, its in labels.items() if its == label)
            assert (found["train"], found["val"], found["test"]) == expected

    def test_val_takes_nothing_from_test(self) -> None:
        labels = self.keys(cat=30, dog=50)
        one, two = (divide(labels, fractions, 3, {}) for fractions in ({"test": 0.2}, {"test": 0.2, "val": 0.2}))
        assert {key for key in one if one[key] == "test"} == {key for key in two if two[key] == "test"}

    def test_what_is_kept_stays_also_in_three_splits(self) -> None:
        labels, fractions = self.keys(cat=40, dog=40), {"test": 0.2, "val": 0.2}
        before = divide(dict(list(labels.items())[::2]), fractions, 0, {})
        after = divide(labels, fractions, 1, before)
        assert {key: after[key] for key in before} == before
        assert Counter(after.values()) == {"train": 48, "val": 16, "test": 16}

    def test_a_class_kept_in_too_few_splits_is_dealt_again(self) -> None:
        labels = self.keys(cat=10, dog=10)
        made = divide(labels, {"test": 0.2, "val": 0.2}, 0, dict.fromkeys(labels, "test"))
        assert Counter(made.values()) == {"train": 12, "val": 4, "test": 4}


class TestWhoIsWhere:
    def test_classes_and_fractions(self, run: Run, tmp_path: Path) -> None:
        class_folder(tmp_path / "many", ant=20, bee=10, wasp=5)
        summary = run("split", "many", "--test", "0.2", "--val", "0.1", "--json").json
        expected = {"ant": (14, 2, 4), "bee": (7, 1, 2), "wasp": (3, 1, 1)}
        assert {label: tuple(sizes.values()) for label, sizes in summary["classes"].items()} == expected
        found = members(tmp_path / "many-split.csv")
        assert {label: tuple(found[label, name] for name in ("train", "val", "test")) for label in expected} == expected
        assert summary["split_sizes"] == {"train": 24, "val": 4, "test": 7}
        assert (summary["found"], summary["pictures"], summary["duplicates"], summary["unreadable"]) == (35, 35, 0, 0)

    def test_the_seed_decides(self, photos: Path, tmp_path: Path) -> None:
        files = [tmp_path / f"{name}.csv" for name in "abc"]
        for file, seed in zip(files, (1, 1, 2), strict=True):
            api.split(photos, seed=seed, out=file)
        first, again, other = (file.read_bytes() for file in files)
        assert first == again != other

    def test_names_and_order_do_not_matter(self, photos: Path, tmp_path: Path) -> None:
        api.split(photos, out=tmp_path / "before.csv")
        for at, path in enumerate(sorted(photos.rglob("*.png"), reverse=True)):
            new = tmp_path / "elsewhere" / path.parent.name / ("" if at % 2 else "deep") / f"{at:02}.jpg"
            new.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, new)
        api.split(tmp_path / "elsewhere", out=tmp_path / "after.csv")
        assert by_content(tmp_path / "before.csv") == by_content(tmp_path / "after.csv")

    @pytest.mark.parametrize("seed", range(4))
    def test_copies_are_on_one_side(self, tmp_path: Path, seed: int) -> None:
        root = class_folder(tmp_path / "many", ant=10, bee=10)
        for number in range(8):
            shutil.copy(root / "ant" / f"{number}.png", root / "ant" / f"copy {number}.jpg")
            (root / "bee" / "below").mkdir(exist_ok=True)
            shutil.copy(root / "bee" / f"{number}.png", root / "bee" / "below" / f"{number}.png")
        summary = api.split(root, seed=seed, out=tmp_path / "s.csv")
        assert all(len(names) == 1 for names in by_content(tmp_path / "s.csv").values())
        assert (summary.pictures, summary.duplicates) == (36, 16)
        assert sum(names == {"test"} for names in by_content(tmp_path / "s.csv").values()) == 4

    @pytest.mark.parametrize("seed", range(4))
    def test_a_content_under_two_labels_is_on_one_side_and_named(self, tmp_path: Path, seed: int) -> None:
        root = class_folder(tmp_path / "many", ant=6, bee=6)
        for number in range(5):
            shutil.copy(root / "ant" / f"{number}.png", root / "bee" / f"ant{number}.png")
        summary = api.split(root, seed=seed, out=tmp_path / "s.csv")
        assert all(len(names) == 1 for names in by_content(tmp_path / "s.csv").values())
        (notice,) = summary.notices
        assert notice.startswith("5 pictures under more than one label")
        assert f"ant: {root}/ant/0.png; bee: {root}/bee/ant0.png" in notice
        assert "(and 2 more)" in notice

    def test_which_label_is_listed_first_does_not_matter(self, tmp_path: Path) -> None:
        root = class_folder(tmp_path / "many", ant=9, bee=9)
        lines = [f"{root}/{label}/{number}.png,{label}" for label in ("ant", "bee") for number in range(9)]
        for number in range(4):
            shutil.copy(root / "ant" / f"{number}.png", root / f"{number}.png")
            lines.append(f"{root}/{number}.png,bee")
        for name, order in (("a", lines), ("b", lines[::-1])):
            (tmp_path / f"{name}.csv").write_text("\n".join(["path,label", *order]))
            api.split(tmp_path / f"{name}.csv", out=tmp_path / f"{name}-split.csv")
        assert by_content(tmp_path / "a-split.csv") == by_content(tmp_path / "b-split.csv")


class TestRubbish:
    def test_it_is_left_out_and_listed_with_the_reason(self, run: Run, photos: Path, tmp_path: Path) -> None:
        (photos / "leaf" / "notes.txt").write_text("not a picture")
        (photos / "leaf" / "cut.png").write_bytes((photos / "leaf" / "0.png").read_bytes()[:1500])
        (photos / "sky" / "gone.jpg").symlink_to("nowhere")
        os.mkfifo(photos / "sky" / "pipe.jpg")
        summary = run("split", photos, "--json").json
        assert (summary["found"], summary["pictures"], summary["unreadable"]) == (34, 30, 4)
        reasons = {Path(failure["path"]).name: failure["reason"] for failure in summary["failures"]}
        assert set(reasons) == {"notes.txt", "cut.png", "gone.jpg", "pipe.jpg"}
        assert "truncated" in reasons["cut.png"]
        listed = {Path(path).name for path in splits_of(tmp_path / "photos-split.csv")}
        assert listed == {f"{number}.png" for number in range(10)}

    def test_the_text_lists_ten(self, run: Run, photos: Path) -> None:
        for number in range(12):
            (photos / "leaf" / f"bad\n{number:02}.txt").write_text("not a picture")
        text = run("split", photos).out
        assert "unreadable  12" in text
        assert text.count("not a picture in a format that is decoded here") == 10
        assert "bad\\n09.txt" in text

    def test_a_class_of_rubbish_is_left_out_with_a_notice(self, photos: Path, tmp_path: Path) -> None:
        (photos / "mud").mkdir()
        (photos / "mud" / "0.jpg").write_text("not a picture")
        summary = api.split(photos, out=tmp_path / "s.csv")
        assert set(summary.classes) == {"leaf", "sand", "sky"}
        assert summary.notices == ("class 'mud' left out: it has no readable picture",)

    def test_nothing_but_rubbish_is_refused(self, tmp_path: Path) -> None:
        for label in ("ant", "bee"):
            (tmp_path / "bad" / label).mkdir(parents=True)
            (tmp_path / "bad" / label / "0.jpg").write_text("not a picture")
        with pytest.raises(DatasetError, match=r"no readable picture in .*not a picture in a format"):
            api.split(tmp_path / "bad", out=tmp_path / "s.csv")

    def test_unlabelled_lines_are_left_out_with_a_notice(self, photos: Path, tmp_path: Path) -> None:
        lines = [f"{path},{'' if path.stem == '0' else path.parent.name}" for path in sorted(photos.rglob("*.png"))]
        (tmp_path / "list.csv").write_text("\n".join(["path,label", *lines]))
        summary = api.split(tmp_path / "list.csv", out=tmp_path / "s.csv")
        assert summary.pictures == 27
        assert summary.notices[0].startswith("3 without a label, the first in ")
        assert summary.notices[1:] == ("3 pictures without a label left out",)


class TestRefused:
    def test_a_folder_with_splits(self, run: Run, photos: Path, tmp_path: Path) -> None:
        shutil.copytree(photos, tmp_path / "ready" / "train")
        shutil.copytree(photos, tmp_path / "ready" / "test")
        result = run("split", "ready")
        assert (result.code, result.out) == (1, "")
        assert "has splits already (test 30, train 30)" in result.err
        assert not (tmp_path / "ready-split.csv").exists()

    def test_a_manifest_with_splits(self, photos: Path, tmp_path: Path) -> None:
        api.split(photos, out=tmp_path / "s.csv")
        with pytest.raises(DatasetError, match="has splits already"):
            api.split(tmp_path / "s.csv", out=tmp_path / "t.csv")

    def test_an_empty_split_column_is_none(self, photos: Path, tmp_path: Path) -> None:
        lines = [f"{path},{path.parent.name}," for path in sorted(photos.rglob("*.png"))]
        (tmp_path / "list.csv").write_text("\n".join(["path,label,split", *lines]))
        assert api.split(tmp_path / "list.csv", out=tmp_path / "s.csv").pictures == 30

    @pytest.mark.parametrize("source", ["photos/leaf", "photos/leaf/0.png"])
    def test_no_labels(self, photos: Path, source: str) -> None:
        with pytest.raises(DatasetError, match="no labels"):
            api.split(photos.parent / source)

    def test_one_class_before_anything_is_read(self, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(splitting, "read", None)
        for label in ("sky", "sand"):
            shutil.rmtree(photos / label)
        with pytest.raises(DatasetError, match=r"only one class.*'leaf'"):
            api.split(photos)

    @pytest.mark.parametrize(("val", "size", "said"), [(0.0, 1, "one picture"), (0.1, 2, "two pictures")])
    def test_a_class_that_is_too_small(self, tmp_path: Path, val: float, size: int, said: str) -> None:
        root = class_folder(tmp_path / "many", ant=5, bee=5, wasp=size)
        shutil.copy(root / "wasp" / "0.png", root / "wasp" / "copy.png")
        with pytest.raises(DatasetError, match=f"'wasp' has {said}: train, test.*add pictures"):
            api.split(root, val=val, out=tmp_path / "s.csv")
        write_picture(root / "wasp" / "new.png", 9999)
        assert 0 not in api.split(root, val=val, out=tmp_path / "s.csv").classes["wasp"].values()

    def test_a_class_that_has_nothing_of_its_own(self, tmp_path: Path) -> None:
        root = class_folder(tmp_path / "many", ant=5, bee=5)
        shutil.copytree(root / "ant", root / "emmet")
        with pytest.raises(DatasetError, match="'emmet' has no picture"):
            api.split(root, out=tmp_path / "s.csv")

    @pytest.mark.parametrize(("test", "val"), [("0", "0"), ("-0.1", "0"), ("0.2", "-0.1"), ("1", "0"), ("0.5", "0.5")])
    def test_fractions_out_of_range(self, run: Run, photos: Path, test: str, val: str) -> None:
        result = run("split", photos, "--test", test, "--val", val)
        assert (result.code, result.out) == (2, "")
        assert "both together below 1" in result.err
        with pytest.raises(UsageError):
            api.split(photos, test=float("nan"))

    def test_a_manifest_and_links_together(self, run: Run, photos: Path, tmp_path: Path) -> None:
        result = run("split", photos, "--out", "a.csv", "--links", "b")
        assert result.code == 2
        assert "name one of them" in result.err
        assert os.listdir(tmp_path) == ["photos"]

    @pytest.mark.parametrize(
        ("where", "said"),
        [({"out": "none/s.csv"}, "no folder"), ({"links": "none/s"}, "no folder"), ({"out": "s.txt"}, "suffix .csv")],
    )
    def test_a_place_that_cannot_be_written(
        self, photos: Path, monkeypatch: pytest.MonkeyPatch, where: dict[str, Any], said: str
    ) -> None:
        monkeypatch.setattr(splitting, "read", None)
        monkeypatch.chdir(photos.parent)
        with pytest.raises(OutputError, match=said):
            api.split(photos, **where)


class TestManifest:
    def test_extract_takes_it(self, run: Run, tmp_path: Path) -> None:
        class_folder(tmp_path / "many", ant=5, bee=5)
        _, command, manifest = run("split", "many").out.splitlines()[-1].split()[1:]
        assert run(command, manifest, network=True).code == 0
        (dataset,) = run("cache", "info", "--json").json["datasets"]
        assert (dataset["dataset"], dataset["splits"]) == (manifest, {"test": 2, "train": 8})

    def test_paths_are_relative_where_the_pictures_lie_below(self, photos: Path, tmp_path: Path) -> None:
        (tmp_path / "other").mkdir()
        api.split(photos, out=tmp_path / "near.csv")
        api.split(photos, out=tmp_path / "other" / "far.csv")
        for name, first in (("near.csv", "photos/leaf/0.png"), ("other/far.csv", f"{photos}/leaf/0.png")):
            with (tmp_path / name).open() as stream:
                assert next(csv.DictReader(stream))["path"] == first
        assert splits_of(tmp_path / "near.csv") == splits_of(tmp_path / "other" / "far.csv")

    def test_its_name_is_that_of_the_source(
        self, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        photos.rename(tmp_path / "v1.2")
        monkeypatch.chdir(tmp_path / "v1.2")
        assert api.split(".", out=tmp_path / "plain.csv").pictures == 30
        assert api.split("..//v1.2").manifest == str(tmp_path / "v1.2" / "v1.2-split.csv")
        lines = [f"v1.2/{path.parent.name}/{path.name},{path.parent.name}" for path in sorted(Path().rglob("*.png"))]
        (tmp_path / "list.csv").write_text("\n".join(["path,label", *lines]))
        monkeypatch.chdir(tmp_path)
        assert api.split("list.csv").manifest == str(tmp_path / "list-split.csv")

    @pytest.mark.parametrize(
        "name",
        [
            b"a,b",
            b'say "x"',
            b"new\nline",
            b"lone\rreturn",
            b"win\r\nline",
            b"\xff\xfe",
            " \u2028é\U0001f600".encode(),
            b" a ",
        ],
    )
    def test_odd_names_come_back_as_they_were(self, tmp_path: Path, name: bytes) -> None:
        root, text = tmp_path / os.fsdecode(b"in " + name), os.fsdecode(name)
        for at, label in enumerate((f"x{text}y", "plain")):
            for number in range(3):
                write_picture(tmp_path / "one.png", 10 * at + number)
                (root / label).mkdir(parents=True, exist_ok=True)
                (tmp_path / "one.png").rename(root / label / f"{text}{number}{text}")
        api.split(root, out=tmp_path / "s.csv")
        found = discover(tmp_path / "s.csv").items
        assert [(item.path, item.label) for item in found] == [(item.path, item.label) for item in discover(root).items]
        assert {item.split for item in found} == {"train", "test"}

    def test_a_label_that_a_manifest_would_change_is_refused(self, photos: Path, tmp_path: Path) -> None:
        (photos / "sky").rename(photos / "sky ")
        with pytest.raises(DatasetError, match="'sky ' begins or ends with white space"):
            api.split(photos, out=tmp_path / "s.csv")
        assert api.split(photos, links=tmp_path / "l").classes["sky "] == {"train": 8, "test": 2}

    def test_another_file_in_its_place_is_not_overwritten(self, run: Run, photos: Path, tmp_path: Path) -> None:
        file = tmp_path / "photos-split.csv"
        assert run("split", photos).code == 0
        os.utime(file, ns=(1, 1))
        before = state(tmp_path)
        assert run("split", photos).code == 0
        result = run("split", photos, "--seed", "1")
        assert (result.code, result.out) == (1, "")
        assert "is there already" in result.err
        assert state(tmp_path) == before

    def test_the_source_itself_is_not_overwritten(self, photos: Path, tmp_path: Path) -> None:
        lines = [f"{path},{path.parent.name}" for path in sorted(photos.rglob("*.png"))]
        source = tmp_path / "list.csv"
        source.write_text("\n".join(["path,label", *lines]))
        before = source.read_bytes()
        with pytest.raises(OutputError, match="is there already"):
            api.split(source, out=source)
        assert source.read_bytes() == before

    @pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
    def test_half_a_manifest_is_never_left(
        self, run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
    ) -> None:
        def fail(_: int) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            assert run("split", photos).code == (1 if isinstance(error, OSError) else 130)
            with pytest.raises(OutputError if isinstance(error, OSError) else KeyboardInterrupt):
                api.split(photos)
        assert os.listdir(tmp_path) == ["photos"]


class TestLinks:
    def test_discover_finds_the_splits_of_the_manifest(self, run: Run, photos: Path, tmp_path: Path) -> None:
        api.split(photos, val=0.2, out=tmp_path / "s.csv")
        result = run("split", photos, "--val", "0.2", "--links", "linked")
        assert result.out.splitlines()[-1].endswith(f"featcache extract {tmp_path / 'linked'}")
        targets = {str(Path(item.path).readlink()): item.split for item in discover(tmp_path / "linked").items}
        assert targets == splits_of(tmp_path / "s.csv")
        assert members(tmp_path / "linked") == members(tmp_path / "s.csv")
        assert set(targets.values()) == {"train", "val", "test"}
        assert not (tmp_path / "photos-split.csv").exists()

    def test_files_of_one_name_in_one_class_do_not_collide(self, photos: Path, tmp_path: Path) -> None:
        for number, tint in enumerate([(9, 9, 9), (99, 99, 99)]):
            for at in range(10):
                write_picture(photos / "leaf" / "deep" / str(number) / f"{at}.png", 5000 + 10 * number + at, tint)
        write_picture(photos / "leaf" / "0-2.png", 7000)
        shutil.copy(photos / "leaf" / "3.png", photos / "leaf" / "deep" / "3.png")
        summary = api.split(photos, links=tmp_path / "linked")
        found = discover(tmp_path / "linked").items
        assert summary.pictures == len(found) == 52
        assert {str(Path(item.path).readlink()) for item in found} == {item.path for item in discover(photos).items}

    def test_a_hidden_file_of_a_manifest_is_not_lost(self, photos: Path, tmp_path: Path) -> None:
        (photos / "leaf" / "0.png").rename(photos / "leaf" / ".0.png")
        lines = [f"{path},{path.parent.name}" for path in sorted(photos.rglob("*.png"))]
        (tmp_path / "list.csv").write_text("\n".join(["path,label", *lines]))
        api.split(tmp_path / "list.csv", links=tmp_path / "linked")
        assert len(discover(tmp_path / "linked").items) == 30

    @pytest.mark.parametrize("label", ["a/b", "..", ".hidden", "__MACOSX"])
    def test_a_label_that_is_no_name_of_a_folder_is_refused(self, photos: Path, tmp_path: Path, label: str) -> None:
        lines = [f"{path},{path.parent.name}" for path in sorted(photos.rglob("*.png"))]
        (tmp_path / "list.csv").write_text("\n".join(["path,label", *lines]).replace(",sky", f",{label}"))
        with pytest.raises(DatasetError, match="cannot be the name of a folder"):
            api.split(tmp_path / "list.csv", links=tmp_path / "linked")
        assert label in api.split(tmp_path / "list.csv", out=tmp_path / "s.csv").classes

    def test_only_an_empty_folder_is_taken(self, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        target = tmp_path / "linked"
        target.mkdir()
        assert api.split(photos, links=target).pictures == 30
        before = state(target)
        monkeypatch.setattr(splitting, "read", None)
        for taken, said in ((target, "not empty"), (photos / "leaf" / "0.png", "lies in"), (photos / "new", "lies in")):
            with pytest.raises(OutputError, match=said):
                api.split(photos, links=taken)
        (tmp_path / "file").touch()
        with pytest.raises(OutputError, match="Not a directory"):
            api.split(photos, links=tmp_path / "file")
        assert state(target) == before

    @pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), SystemExit(143)])
    @pytest.mark.parametrize("is_there", [False, True])
    def test_half_of_the_links_are_never_left(
        self,
        run: Run,
        photos: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        error: BaseException,
        is_there: bool,
    ) -> None:
        made: list[str] = []
        symlink = os.symlink

        def fail(target: str, link: Path, *_: object, **__: object) -> None:
            if len(made) == 20:
                raise error
            made.append(target)
            symlink(target, link)

        if is_there:
            (tmp_path / "linked").mkdir()
        before = state(tmp_path)
        before.pop(str(tmp_path))
        with monkeypatch.context() as patch:
            patch.setattr(os, "symlink", fail)
            result = run("split", photos, "--links", "linked")
        assert (result.code, result.out) == ({OSError: 1, KeyboardInterrupt: 130, SystemExit: 143}[type(error)], "")
        assert len(made) == 20
        left = {path: content for path, (content, _) in state(tmp_path).items() if path != str(tmp_path)}
        assert left == {path: content for path, (content, _) in before.items()}


def test_nothing_of_the_source_is_changed(run: Run, photos: Path, tmp_path: Path) -> None:
    (photos / "leaf" / "notes.txt").write_text("not a picture")
    shutil.copy(photos / "leaf" / "1.png", photos / "sky" / "copy.png")
    before = state(photos)
    assert run("split", photos).code == run("split", photos, "--links", "linked").code == 0
    assert state(photos) == before
    assert sorted(os.listdir(tmp_path)) == ["linked", "photos", "photos-split.csv"]


@pytest.mark.parametrize("is_waiting", [False, True])
def test_ctrl_c_while_files_are_read_ends_at_once(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_waiting: bool
) -> None:
    read_files = []

    numbers = count(1)

    def slow(path: str) -> Any:
        read_files.append(path)
        number = next(numbers)
        time.sleep(0.002)
        if is_waiting and number == 20:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        return read(path)

    def step(*_: object) -> None:
        if not is_waiting and len(read_files) >= 20:
            raise KeyboardInterrupt

    class_folder(tmp_path / "many", ant=200, bee=200)
    monkeypatch.setattr(splitting, "read", slow)
    monkeypatch.setattr(Bar, "__call__", step)
    result = run("split", "many")
    assert (result.code, result.out) == (130, "")
    assert "interrupted" in result.err
    assert len(read_files) < 300
    assert os.listdir(tmp_path) == ["many"]


def test_progress_reaches_the_total_once(photos: Path, tmp_path: Path) -> None:
    (photos / "leaf" / "notes.txt").write_text("not a picture")
    steps: list[tuple[str, int, int]] = []
    api.split(photos, out=tmp_path / "s.csv", progress=lambda *step: steps.append(step))
    assert steps == [("split", done, 31) for done in range(32)]


@pytest.mark.parametrize(("classes", "shown"), [(20, 21), (21, 1)])
def test_the_table_has_up_to_twenty_classes(run: Run, tmp_path: Path, classes: int, shown: int) -> None:
    class_folder(tmp_path / "many", **{f"c{number:02}": 2 for number in range(classes)})
    lines = run("split", "many").out.partition("\n\n")[0].splitlines()
    assert len(lines) == 2 + shown
    assert lines[-1].split() == ["all", str(classes), "classes", str(classes), str(classes)]
    again = json.loads(run("split", "many", "--json").out)
    assert len(again["classes"]) == classes
