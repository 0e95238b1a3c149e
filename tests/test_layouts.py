"""Every layout of folders, lists and archives that is understood: labels and splits, and what is said of them."""

from __future__ import annotations

import io
import re
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import pytest
from conftest import Result, write_picture
from input_kinds import arrow_table, member
from PIL import Image

from featcache.discover import discover
from featcache.discover.trees import LocalTree
from featcache.errors import DatasetError, UsageError
from featcache.records import Dataset
from featcache.sources import read

Run = Callable[..., Result]
Found = dict[str, tuple[str | None, str | None]]


def in_folder(root: Path, *names: str) -> Path:
    """Empty files of these names in a folder, which no layout must open."""
    for name in names:
        path = root / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root / "data"


def in_zip(root: Path, *names: str) -> Path:
    with zipfile.ZipFile(root / "data.zip", "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    return root / "data.zip"


def in_tar(root: Path, *names: str) -> Path:
    with tarfile.open(root / "data.tar", "w") as archive:
        for name in names:
            member(archive, name)
    return root / "data.tar"


@pytest.fixture(params=[in_folder, in_zip, in_tar], ids=lambda kind: kind.__name__.removeprefix("in_"))
def make(request: pytest.FixtureRequest) -> Callable[..., Path]:
    """What makes the same layout in each form."""
    kind: Callable[..., Path] = request.param
    return kind


def found(dataset: Dataset) -> Found:
    """Label and split by the name of the file."""
    return {item.path.split("::")[0].rpartition("/")[2]: (item.label, item.split) for item in dataset.items}


class TestSplits:
    @pytest.mark.parametrize(
        ("train", "test"),
        [
            ("training_set", "test_set"),
            ("seg_train", "seg_test"),
            ("Training", "Testing"),
            ("train_images", "TestImages"),
            ("traindata", "testdata"),
            ("train1", "test1"),
            ("hymenoptera-train", "hymenoptera-test"),
        ],
    )
    def test_words_of_splits_are_known_with_numbers_and_suffixes(
        self, tmp_path: Path, make: Callable[..., Path], train: str, test: str
    ) -> None:
        root = make(tmp_path, f"{train}/cat/1.jpg", f"{train}/dog/2.jpg", f"{test}/cat/3.jpg", f"{test}/dog/4.jpg")
        dataset = discover(root)
        assert found(dataset) == {
            "1.jpg": ("cat", "train"),
            "2.jpg": ("dog", "train"),
            "3.jpg": ("cat", "test"),
            "4.jpg": ("dog", "test"),
        }
        (notice,) = dataset.notices
        assert f"{train} as train" in notice
        assert f"{test} as test" in notice

    @pytest.mark.parametrize(
        ("name", "split"), [("dev", "val"), ("Validation2", "val"), ("eval", "test"), ("valid_set", "val")]
    )
    def test_other_words_of_splits_stand_beside_train(self, tmp_path: Path, name: str, split: str) -> None:
        root = in_folder(tmp_path, "train/cat/1.jpg", "train/dog/2.jpg", f"{name}/cat/3.jpg", f"{name}/dog/4.jpg")
        assert found(discover(root))["3.jpg"] == ("cat", split)

    @pytest.mark.parametrize("names", [("fold1", "fold2"), ("a", "b", "c"), ("2020", "2021")])
    def test_folders_that_hold_the_same_folders_are_refused_where_no_word_says_the_split(
        self, tmp_path: Path, make: Callable[..., Path], names: tuple[str, ...]
    ) -> None:
        root = make(tmp_path, *(f"{name}/{label}/{name}.jpg" for name in names for label in ("ants", "bees")))
        with pytest.raises(DatasetError, match="hold the same sub-folders \\(ants, bees\\)") as caught:
            discover(root)
        assert names[0] in str(caught.value)
        assert "--label-from" in str(caught.value)

    def test_a_class_in_one_folder_of_pictures_is_no_split(self, tmp_path: Path) -> None:
        root = in_folder(tmp_path, "n01/images/1.jpg", "n02/images/2.jpg", "n03/images/3.jpg")
        assert found(discover(root)) == {"1.jpg": ("n01", None), "2.jpg": ("n02", None), "3.jpg": ("n03", None)}

    def test_words_of_splits_in_names_of_classes_are_classes_and_it_is_said(self, tmp_path: Path) -> None:
        dataset = discover(in_folder(tmp_path, "training_shoes/1.jpg", "test_tubes/2.jpg"))
        assert found(dataset) == {"1.jpg": ("training_shoes", None), "2.jpg": ("test_tubes", None)}
        assert "taken as classes" in dataset.notices[0]

    def test_splits_below_classes(self, tmp_path: Path, make: Callable[..., Path]) -> None:
        root = make(tmp_path, "cat/train/1.jpg", "cat/test/2.jpg", "dog/train/3.jpg", "dog/test/4.jpg")
        dataset = discover(root)
        assert found(dataset) == {
            "1.jpg": ("cat", "train"),
            "2.jpg": ("cat", "test"),
            "3.jpg": ("dog", "train"),
            "4.jpg": ("dog", "test"),
        }
        assert "taken as classes" in dataset.notices[0]

    def test_a_split_in_a_folder_of_the_same_name_is_passed_through(
        self, tmp_path: Path, make: Callable[..., Path]
    ) -> None:
        names = [f"seg_{split}/seg_{split}/{label}/{split}.jpg" for split in ("train", "test") for label in "ab"]
        assert set(found(discover(make(tmp_path, *names))).values()) == {("b", "train"), ("b", "test")}

    def test_a_class_that_one_split_lacks_changes_nothing(self, tmp_path: Path) -> None:
        train = [f"training/{label}/1{label}.jpg" for label in "abc"]
        root = in_folder(tmp_path, *train, "testing/a/2a.jpg", "testing/b/2b.jpg")
        assert {split for _, split in found(discover(root)).values()} == {"train", "test"}

    def test_flat_splits_have_no_labels_and_names_that_begin_with_them_are_shown(self, tmp_path: Path) -> None:
        names = [f"train/{kind}.{number}.jpg" for kind in ("cat", "dog") for number in range(3)]
        dataset = discover(in_folder(tmp_path, *names, "test1/1.jpg", "test1/2.jpg"))
        assert set(found(dataset).values()) == {(None, "train"), (None, "test")}
        assert "as cat, dog do, give --label-from" in dataset.notices[-1]


class TestFolderAroundAll:
    def test_it_is_passed_through_with_files_beside_it(self, tmp_path: Path, make: Callable[..., Path]) -> None:
        root = make(tmp_path, "PetImages/Cat/1.jpg", "PetImages/Dog/2.jpg", "readme[1].txt", "CDLA.pdf")
        dataset = discover(root)
        assert found(dataset) == {"1.jpg": ("Cat", None), "2.jpg": ("Dog", None)}
        (notice,) = dataset.notices
        assert "PetImages" in notice
        assert "beside it left out: CDLA.pdf, readme[1].txt" in notice

    def test_it_may_hold_splits(self, tmp_path: Path, make: Callable[..., Path]) -> None:
        root = make(tmp_path, "a/b/train/cat/1.jpg", "a/b/val/cat/2.jpg")
        assert found(discover(root)) == {"1.jpg": ("cat", "train"), "2.jpg": ("cat", "val")}

    def test_a_class_with_pictures_and_folders_of_its_own_is_none(
        self, tmp_path: Path, make: Callable[..., Path]
    ) -> None:
        root = make(tmp_path, "cat/1.jpg", "cat/indoors/2.jpg")
        assert found(discover(root)) == {"1.jpg": ("cat", None), "2.jpg": ("cat", None)}


TWO = ("cat", "dog")
SAME = [f"{split}/{label}/{split}.jpg" for split in ("training", "test") for label in TWO]


class TestOtherFoldersBeside:
    """Public sets in their own layouts: what is beside the pictures is neither a class nor a split."""

    @pytest.mark.parametrize(
        "beside",
        [
            ["images.txt", "attributes/attributes.txt", "parts/parts.txt"],  # CUB-200
            ["Annotation/cat/1", "Annotation/dog/2"],  # Stanford Dogs, files without an ending
            ["labels/train1.txt", "imdb/imdb.mat", "README.md"],  # DTD
            ["masks/cat/1.png", "masks/dog/2.png"],
        ],
        ids=["texts", "annotations", "lists", "masks"],
    )
    def test_folders_without_pictures_and_with_masks_are_left_out(
        self, tmp_path: Path, make: Callable[..., Path], beside: list[str]
    ) -> None:
        dataset = discover(make(tmp_path, "images/cat/1.jpg", "images/dog/2.jpg", *beside))
        assert found(dataset) == {"1.jpg": ("cat", None), "2.jpg": ("dog", None)}
        (notice,) = dataset.notices
        assert beside[-1].split("/")[0] in notice

    @pytest.mark.parametrize("other", ["Annotations/1.xml", "101_ObjectCategories/../meta/train.txt"])
    def test_one_folder_around_the_classes_needs_no_known_name(self, tmp_path: Path, other: str) -> None:
        names = ("101_ObjectCategories/cat/1.jpg", "101_ObjectCategories/dog/2.jpg", other)
        assert found(discover(in_folder(tmp_path, *names))) == {"1.jpg": ("cat", None), "2.jpg": ("dog", None)}

    def test_masks_and_labels_of_every_class_or_split_are_left_out(
        self, tmp_path: Path, make: Callable[..., Path]
    ) -> None:
        names = [f"{label}/{kind}/{label}.png" for label in TWO for kind in ("images", "masks")]
        dataset = discover(make(tmp_path, *names, "meta.xlsx"))
        assert [item.label for item in dataset.items] == ["cat", "dog"]
        assert all("images" in item.path for item in dataset.items)
        assert any("cat/masks, dog/masks" in notice for notice in dataset.notices)

    @pytest.mark.parametrize(
        "names",
        [
            ["train/images/1.jpg", "train/labels/1.txt", "valid/images/2.jpg", "valid/labels/2.txt", "data.yaml"],
            ["images/train/1.jpg", "images/val/2.jpg", "labels/train/1.txt", "labels/val/2.txt"],
            ["train2017/1.jpg", "val2017/2.jpg", "annotations/instances_train2017.json"],
            ["train/images/1.jpg", "train/masks/1.png", "val/images/2.jpg", "val/masks/2.png"],
        ],
        ids=["yolo", "yolo-other", "coco", "masks"],
    )
    def test_sets_for_detection_have_splits_and_no_labels(
        self, tmp_path: Path, make: Callable[..., Path], names: list[str]
    ) -> None:
        dataset = discover(make(tmp_path, *names))
        assert found(dataset) == {"1.jpg": (None, "train"), "2.jpg": (None, "val")}
        assert any("no labels" in notice for notice in dataset.notices)

    def test_of_voc_the_pictures_are_taken_without_labels(self, tmp_path: Path, make: Callable[..., Path]) -> None:
        folders = ("Annotations/1.xml", "ImageSets/Main/a.txt", "SegmentationClass/1.png", "SegmentationObject/1.png")
        assert found(discover(make(tmp_path, "JPEGImages/1.jpg", *folders))) == {"1.jpg": (None, None)}

    @pytest.mark.parametrize("name", ["pred", "test-several", "Meta"])
    def test_a_flat_folder_beside_splits_is_left_out_and_said(
        self, tmp_path: Path, make: Callable[..., Path], name: str
    ) -> None:
        dataset = discover(make(tmp_path, *SAME, f"{name}/9.jpg"))
        assert set(found(dataset).values()) <= {(label, split) for label in TWO for split in ("train", "test")}
        assert any(f"{name} left out" in notice for notice in dataset.notices)

    def test_a_folder_with_classes_beside_splits_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DatasetError, match="mixes split folders"):
            discover(in_folder(tmp_path, *SAME, "extra/cat/1.jpg", "extra/dog/2.jpg"))

    @pytest.mark.parametrize("names", [TWO, ("train", "test", "val")], ids=["classes", "splits"])
    def test_a_folder_that_holds_the_others_once_more_is_left_out(
        self, tmp_path: Path, make: Callable[..., Path], names: tuple[str, ...]
    ) -> None:
        below = [""] if names == TWO else ["a/", "b/"]
        inner = [f"{name}/{label}{name}{label.strip('/')}.jpg" for name in names for label in below]
        once = discover(make(tmp_path, *inner))
        dataset = discover(make(tmp_path, *inner, *(f"cell_images/{name}" for name in inner)))
        assert found(dataset) == found(once)
        assert len(dataset.items) == len(inner)
        assert any("cell_images/ left out" in notice for notice in dataset.notices)

    def test_one_that_holds_other_files_in_them_is_refused(self, tmp_path: Path) -> None:
        names = ("cat/1.jpg", "dog/2.jpg", "more/cat/1.jpg", "more/dog/3.jpg")
        with pytest.raises(DatasetError, match="'dog' twice") as caught:
            discover(in_folder(tmp_path, *names))
        assert "more/dog/3.jpg" in str(caught.value)

    def test_folds_of_splits_are_refused(self, tmp_path: Path, make: Callable[..., Path]) -> None:
        names = [f"fold{n}/{split}/{label}/1.jpg" for n in (1, 2) for split in ("train", "test") for label in TWO]
        with pytest.raises(DatasetError, match="name one as SOURCE"):
            discover(make(tmp_path, *names))

    def test_where_nobody_asks_for_labels_all_pictures_are_taken(
        self, tmp_path: Path, make: Callable[..., Path]
    ) -> None:
        names = [f"fold{n}/{label}/{n}{label}.jpg" for n in (1, 2) for label in TWO]
        assert len(discover(make(tmp_path, *names), labelled=False).items) == 4
        folder = in_folder(tmp_path / "flat", "a.jpg", "b.jpg")
        (folder / "labels.csv").write_text("path,label\na.jpg,cat\n")
        assert set(found(discover(folder, labelled=False))) == {"a.jpg", "b.jpg", "labels.csv"}

    def test_a_split_whose_pictures_are_flat_has_no_labels(self, tmp_path: Path) -> None:
        train = [f"train/{label}/images/{label}.jpg" for label in TWO]  # as Tiny ImageNet
        dataset = discover(in_folder(tmp_path, *train, "val/images/v.jpg", "val/val_annotations.txt"))
        assert found(dataset)["v.jpg"] == (None, "val")
        assert len(dataset.items) == 3
        assert any("pictures of val have no labels" in notice for notice in dataset.notices)

    @pytest.mark.parametrize(
        ("names", "classes"),
        [
            (["cat/tabby/1.jpg", "cat/persian/2.jpg", "dog/pug/3.jpg"], {"tabby", "persian", "pug"}),
            (["cat/home/1.jpg", "cat/wild/2.jpg", "dog/home/3.jpg"], {"cat/home", "cat/wild", "dog/home"}),
            (["x/cat/a/1.jpg", "x/cat/b/2.jpg", "x/dog/b/c/3.jpg"], {"cat/a", "cat/b", "dog/b/c"}),
        ],
    )
    def test_classes_that_hold_only_folders_are_said(self, tmp_path: Path, names: list[str], classes: set[str]) -> None:
        root = in_folder(tmp_path, *names)
        notice = next(notice for notice in discover(root).notices if "hold folders" in notice)
        assert "3 in all" in notice
        expression = notice.split("--label-from ")[1].strip("'")
        assert {label for label, _ in found(discover(root, label_from=expression)).values()} == classes

    @pytest.mark.parametrize("above", ["", "train/"])
    def test_letters_that_classes_begin_with_are_passed_through(self, tmp_path: Path, above: str) -> None:
        names = ("a/abbey/1.jpg", "a/apartment/in/2.jpg", "a/apartment/out/3.jpg", "b/bar/4.jpg")  # as SUN397, Places
        more = ["val/a/abbey/5.jpg", "val/b/bar/6.jpg"] if above else []
        dataset = discover(in_folder(tmp_path, *[above + name for name in names], *more))
        assert {label for label, _ in found(dataset).values()} == {"abbey", "apartment/in", "apartment/out", "bar"}
        (notice,) = (notice for notice in dataset.notices if "the folders a, b are letters" in notice)
        (expression,) = re.findall("--label-from '(.*)'", notice)
        letters = discover(dataset.root, label_from=expression)
        assert {(item.label, item.split) for item in letters.items} == {
            (letter, split) for letter in "ab" for split in (("train", "val") if above else (None,))
        }

    def test_letters_that_are_the_classes_stay_so(self, tmp_path: Path) -> None:
        dataset = discover(in_folder(tmp_path, "A/1.jpg", "B/2.jpg"))
        assert {label for label, _ in found(dataset).values()} == {"A", "B"}
        dataset = discover(in_folder(tmp_path / "by writer", "A/anna/1.jpg", "B/anna/2.jpg", "B/ben/2.jpg"))
        assert {label for label, _ in found(dataset).values()} == {"A", "B"}

    def test_masks_among_the_pictures_are_said(self, tmp_path: Path) -> None:
        names = ("benign/benign (1).png", "benign/benign (1)_mask.png", "malignant/a.png", "malignant/b_mask.png")
        (notice,) = discover(in_folder(tmp_path, *names)).notices
        assert notice.startswith("1 file called as another")

    @pytest.mark.parametrize(
        ("names", "said"),
        [
            (["train.zip", "test1.zip", "sampleSubmission.csv"], "name an archive as SOURCE"),
            (["mnist.npz"], r"featcache.extract\(\(pictures, labels\)\)"),
            (["notes.txt"], "name a folder of pictures"),
        ],
    )
    def test_a_folder_without_any_picture_says_how_to_give_what_is_in_it(
        self, tmp_path: Path, names: list[str], said: str
    ) -> None:
        with pytest.raises(DatasetError, match=said):
            discover(in_folder(tmp_path, *names))

    @pytest.mark.parametrize("name", ["mnist.npz", "pictures.rar", "train.mat", "a.mp4", "instances.json"])
    def test_a_file_of_another_kind_is_refused_by_name(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(DatasetError, match=name):
            discover(in_folder(tmp_path, name) / name)


def pictures(root: Path, *names: str) -> Path:
    for at, name in enumerate(names):
        write_picture(root / name, at)
    return root


class TestWhatIsShown:
    def test_extract_shows_classes_and_splits_with_their_sizes(self, tmp_path: Path, run: Run) -> None:
        root = pictures(tmp_path / "d", "train/cat/1.png", "train/cat/2.png", "train/dog/3.png", "val/cat/4.png")
        done = run("extract", root, network=True)
        table = [line.split() for line in done.out.partition("\n\n")[2].splitlines()]
        assert table[0] == ["class", "train", "val"]
        assert table[2:] == [["cat", "2", "1"], ["dog", "1", "0"], ["all", "3", "1"]]
        again = run("extract", root, "--json", network=True).json
        assert again["classes"] == {"cat": {"train": 2, "val": 1}, "dog": {"train": 1, "val": 0}}

    def test_of_many_classes_the_first_and_last_are_shown_in_80_columns(self, tmp_path: Path, run: Run) -> None:
        names = [f"{number:03}-{'long' * 30}/1.png" for number in range(25)]
        done = run("extract", pictures(tmp_path / "d", *names), network=True)
        table = done.out.partition("\n\n")[2].splitlines()
        assert max(map(len, table)) <= 80
        assert [line[:3] for line in table[2:]] == [
            *(f"{number:03}" for number in range(10)),
            "...",
            *(f"{number:03}" for number in range(15, 25)),
            "all",
        ]
        assert table[-1].split() == ["all", "25", "25"]

    def test_what_extract_said_is_kept_for_the_commands_that_follow(self, tmp_path: Path, run: Run) -> None:
        names = [f"{split}_set/{label}/{n}.png" for split in ("training", "test") for label in "ab" for n in range(4)]
        assert run("extract", pictures(tmp_path / "d", *names), network=True).code == 0
        done = run("fit", "--json").json
        assert any("test_set as test" in notice for notice in done["notices"])

    def test_without_labels_fit_says_what_extract_saw(self, tmp_path: Path, run: Run) -> None:
        names = [f"train/{kind}.{number}.png" for kind in ("cat", "dog") for number in range(4)]
        run("extract", pictures(tmp_path / "d", *names), network=True)
        done = run("fit")
        assert done.code == 1
        assert "--label-from" in done.err

    def test_labels_that_are_not_what_they_were_are_said(self, tmp_path: Path, run: Run) -> None:
        root = pictures(tmp_path / "d", "a.png", "b.png")
        (root / "list.csv").write_text("path,label\na.png,cat\nb.png,dog\n")
        run("extract", root / "list.csv", network=True)
        (root / "list.csv").write_text("path,label\na.png,cat\nb.png,emu\n")
        done = run("extract", root / "list.csv", network=True)
        assert "1 of 2 pictures have another label or split" in done.err
        assert "b.png is emu, no split, and was dog, no split" in done.err


class TestLabelFrom:
    NAMES = (
        *(f"train/{kind}.{number}.png" for kind in ("cat", "dog") for number in range(4)),
        *(f"test1/{kind}.{number}.png" for kind in ("cat", "dog") for number in range(10, 12)),
    )

    def test_labels_in_the_names_of_files(self, tmp_path: Path, make: Callable[..., Path]) -> None:
        dataset = discover(make(tmp_path, *self.NAMES), label_from=r"([a-z]+)\.\d+\.png$")
        assert found(dataset)["cat.0.png"] == ("cat", "train")
        assert found(dataset)["dog.11.png"] == ("dog", "test")
        assert dataset.notices == ()

    def test_a_group_named_split_gives_the_split(self, tmp_path: Path) -> None:
        root = in_folder(tmp_path, "a/x-train-cat.jpg", "a/y-val-dog.jpg")
        dataset = discover(root, label_from="-(?P<split>[a-z]+)-(?P<label>[a-z]+)")
        assert found(dataset) == {"x-train-cat.jpg": ("cat", "train"), "y-val-dog.jpg": ("dog", "val")}

    def test_the_refusal_of_folds_names_one_that_works(self, tmp_path: Path) -> None:
        root = in_folder(
            tmp_path, *(f"fold{at}/{label}/{label}{at}.jpg" for at in (1, 2) for label in ("ants", "bees"))
        )
        dataset = discover(root, label_from="^[^/]+/([^/]+)/")
        assert {label for label, _ in found(dataset).values()} == {"ants", "bees"}

    def test_files_without_a_label_are_counted(self, tmp_path: Path) -> None:
        dataset = discover(in_folder(tmp_path, "cat.1.jpg", "dog.2.jpg", "7.jpg"), label_from=r"([a-z]+)\.\d")
        assert found(dataset)["7.jpg"] == (None, None)
        assert dataset.notices == ("1 of 3 without a label: --label-from finds none in 7.jpg",)

    @pytest.mark.parametrize("regex", ["(", "cat", "(?P<label"])
    def test_what_is_no_expression_with_a_group_is_refused(self, tmp_path: Path, regex: str) -> None:
        with pytest.raises(UsageError, match="--label-from"):
            discover(in_folder(tmp_path, "cat.1.jpg"), label_from=regex)

    def test_one_that_finds_nothing_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DatasetError, match="finds nothing in any path, as cat"):
            discover(in_folder(tmp_path, "cat.1.jpg"), label_from="(dog)")

    def test_it_is_kept_for_later_commands(self, tmp_path: Path, run: Run) -> None:
        root = pictures(tmp_path / "d", *self.NAMES)
        assert run("extract", root, "--label-from", r"([a-z]+)\.\d", network=True).code == 0
        done = run("fit", root, "--json")
        assert done.json["split_sizes"] == {"test": 4, "train": 8}
        assert "label-from ([a-z]+)" in done.err


class TestLitter:
    @pytest.mark.parametrize(
        ("name", "kind"),
        [
            ("@eaDir/1.jpg/SYNOPHOTO_THUMB_SM.jpg", "@eaDir"),
            ("lost+found/2.jpg", "lost+found"),
            ("$RECYCLE.BIN/3.jpg", "$RECYCLE.BIN"),
            (".ipynb_checkpoints/4.jpg", ".ipynb_checkpoints"),
            ("thumbs.db", "Thumbs.db"),
            ("._1.jpg", "._*"),
            ("__MACOSX/cat/._1.jpg", "__MACOSX"),
            ("System Volume Information/x", "System Volume Information"),
            ("#recycle/9.jpg", "#recycle"),
            ("1.sync-conflict-20240102-030405-ABCDEFG.jpg", "sync conflicts"),
            ("1 (Ada's conflicted copy 2024-01-02).jpg", "sync conflicts"),
            (".git/config", "hidden"),
        ],
    )
    @pytest.mark.parametrize("place", ["", "cat/"])
    def test_it_is_skipped_and_counted(
        self, tmp_path: Path, make: Callable[..., Path], place: str, name: str, kind: str
    ) -> None:
        dataset = discover(make(tmp_path, "cat/1.jpg", "dog/2.jpg", place + name))
        assert found(dataset) == {"1.jpg": ("cat", None), "2.jpg": ("dog", None)}
        assert dataset.skipped == {kind: 1}

    def test_extract_counts_it_beside_what_was_found(self, tmp_path: Path, run: Run) -> None:
        root = pictures(tmp_path / "d", "cat/1.png", "dog/2.png", "cat/@eaDir/1.png", "dog/@eaDir/2.png")
        (root / "Thumbs.db").write_bytes(b"")
        done = run("extract", root, network=True)
        assert "found        2\n" in done.out
        assert "skipped      3 that systems leave in folders: @eaDir 2, Thumbs.db 1" in done.out
        assert run("extract", root, "--json", network=True).json["skipped"] == {"@eaDir": 2, "Thumbs.db": 1}


class TestNames:
    def test_two_forms_of_one_name_in_unicode_are_one_class(self, tmp_path: Path) -> None:
        dataset = discover(in_zip(tmp_path, "caf\u00e9/1.jpg", "cafe\u0301/2.jpg", "tea/3.jpg"))
        assert found(dataset) == {"1.jpg": ("caf\u00e9", None), "2.jpg": ("caf\u00e9", None), "3.jpg": ("tea", None)}
        assert "look the same (Unicode NFC and NFD): caf\u00e9" in dataset.notices[0]

    def test_names_that_differ_only_in_case_stay_two_classes_and_are_named(self, tmp_path: Path) -> None:
        dataset = discover(in_zip(tmp_path, "Ants/1.jpg", "ants/2.jpg", "bees/3.jpg"))
        assert {label for label, _ in found(dataset).values()} == {"Ants", "ants", "bees"}
        assert "'Ants' and 'ants'" in dataset.notices[0]

    def test_backslashes_in_a_zip_are_folders(self, tmp_path: Path) -> None:
        path = tmp_path / "windows.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for name in ("data\\ants\\1.jpg", "data\\bees\\2.jpg", "..\\..\\evil\\3.jpg"):
                entry = zipfile.ZipInfo("x")
                entry.filename = name
                archive.writestr(entry, b"a picture")
        dataset = discover(path)
        assert {item.label for item in dataset.items} == {"ants", "bees"}
        assert read(dataset.items[0].path)[0] == b"a picture"
        assert "1 entry of the archive left out" in dataset.notices[-1]

    @staticmethod
    def coded(path: Path, encoding: str, *names: str) -> Path:
        """A zip with names in an encoding of which nothing in it tells."""
        stand_ins = {f"{at:0{len(name.encode(encoding))}}": name.encode(encoding) for at, name in enumerate(names)}
        with zipfile.ZipFile(path, "w") as archive:
            for at, name in enumerate(stand_ins):
                archive.writestr(f"{name}/{at}.jpg", b"a picture")
        data = path.read_bytes()
        for name, raw in stand_ins.items():
            data = data.replace(name.encode() + b"/", raw + b"/")
        path.write_bytes(data)
        return path

    def test_names_of_which_nothing_tells_the_encoding_are_said(self, tmp_path: Path) -> None:
        path = self.coded(tmp_path / "gbk.zip", "gbk", "\u8682\u8681", "\u871c\u8702\u871c")
        (notice,) = discover(path).notices
        assert "no stated encoding" in notice
        assert "--names-encoding" in notice
        dataset = discover(path, names_encoding="gbk")
        assert dataset.notices == ()
        assert [item.label for item in dataset.items] == ["\u8682\u8681", "\u871c\u8702\u871c"]
        assert read(dataset.items[0].path)[0] == b"a picture"

    def test_a_tar_with_names_in_another_encoding(self, tmp_path: Path) -> None:
        path = tmp_path / "gbk.tar"
        with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="gbk") as archive:
            for at, name in enumerate(("\u8682\u8681", "\u871c\u8702")):
                info = tarfile.TarInfo(f"{name}/{at}.jpg")
                info.size = 9
                archive.addfile(info, io.BytesIO(b"a picture"))
        (notice,) = discover(path).notices
        assert "no stated encoding, and not in UTF-8" in notice
        dataset = discover(path, names_encoding="gbk")
        assert [item.label for item in dataset.items] == ["\u8682\u8681", "\u871c\u8702"]
        assert dataset.notices == ()
        assert read(dataset.items[1].path)[0] == b"a picture"
        with pytest.raises(DatasetError, match="is not in ascii"):
            discover(path, names_encoding="ascii")

    @pytest.mark.parametrize(("check", "label"), [(0, "\u8682\u8681"), (1, "\u00b1\u00e1")])
    def test_a_zip_whose_names_stand_in_utf_8_in_an_extra_field(self, tmp_path: Path, check: int, label: str) -> None:
        raw = "\u00b1\u00e1/1.jpg".encode("cp437")
        field = struct.pack("<BL", 1, zlib.crc32(raw) ^ check) + "\u8682\u8681/1.jpg".encode()
        with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
            entry = zipfile.ZipInfo("AA/1.jpg")
            entry.extra = struct.pack("<HH", 0x7075, len(field)) + field
            archive.writestr(entry, b"a picture")
            archive.writestr("bees/2.jpg", b"")
        (tmp_path / "data.zip").write_bytes((tmp_path / "data.zip").read_bytes().replace(b"AA/1.jpg", raw))
        dataset = discover(tmp_path / "data.zip")
        assert {item.label for item in dataset.items} == {label, "bees"}
        pictured = next(item for item in dataset.items if item.label == label)
        assert read(pictured.path)[0] == b"a picture"

    def test_names_in_utf_8_without_a_flag_are_read_as_such(self, tmp_path: Path) -> None:
        dataset = discover(self.coded(tmp_path / "mac.zip", "utf-8", "caf\u00e9s", "th\u00e9"))
        assert {item.label for item in dataset.items} == {"caf\u00e9s", "th\u00e9"}
        assert dataset.notices == ()

    def test_a_letter_whose_second_byte_is_a_backslash_is_no_folder(self, tmp_path: Path) -> None:
        path = self.coded(tmp_path / "sjis.zip", "shift_jis", "\u8868\u8868", "\u732b\u732b\u732b")
        assert {item.label for item in discover(path, names_encoding="shift_jis").items} == {
            "\u8868\u8868",
            "\u732b\u732b\u732b",
        }

    @pytest.mark.parametrize("encoding", ["klingon", "rot13", "zlib", "a\0b"])
    def test_an_encoding_that_is_none_is_refused(self, tmp_path: Path, encoding: str) -> None:
        with pytest.raises(UsageError, match="--names-encoding"):
            discover(in_zip(tmp_path, "a/1.jpg"), names_encoding=encoding)

    def test_names_that_are_not_in_the_encoding_are_refused(self, tmp_path: Path) -> None:
        path = self.coded(tmp_path / "x.zip", "cp1252", "\u00e9t\u00e9", "hiver")
        with pytest.raises(DatasetError, match="is not in gbk"):
            discover(path, names_encoding="gbk")

    def test_the_encoding_is_kept_for_later_commands(self, tmp_path: Path, run: Run) -> None:
        path = tmp_path / "x.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for at, name in enumerate(["aaaa", "bbbb"] * 4):
                write_picture(tmp_path / "p.png", at)
                archive.write(tmp_path / "p.png", f"{name}/{at}.png")
        path.write_bytes(
            path.read_bytes()
            .replace(b"aaaa/", "\u8682\u8681/".encode("gbk"))
            .replace(b"bbbb/", "\u871c\u8702/".encode("gbk"))
        )
        run("extract", path, "--names-encoding", "gbk", network=True)
        done = run("confusions", path, "--heads", "logreg", "--json")
        assert {row["label"] for row in done.json["classes"]} == {"\u8682\u8681", "\u871c\u8702"}


class TestStrictLists:
    def refused(self, root: Path, text: str) -> str:
        in_folder(root, "a.jpg", "b.jpg", "c.jpg")
        (root / "data" / "list.csv").write_text(text)
        with pytest.raises(DatasetError) as caught:
            discover(root / "data" / "list.csv")
        return str(caught.value)

    def test_too_many_fields_are_named_with_their_line(self, tmp_path: Path) -> None:
        said = self.refused(tmp_path, "path,label\na.jpg,cat\nb.jpg,cat, black\n")
        assert "line 3: it has 3 fields, and the first line 2" in said

    def test_a_column_that_is_there_twice_is_named(self, tmp_path: Path) -> None:
        said = self.refused(tmp_path, "path,label,label\na.jpg,cat,0\n")
        assert "line 1: the column 'label' is there twice" in said

    def test_labels_that_are_sums_of_others_are_named_with_their_line(self, tmp_path: Path) -> None:
        said = self.refused(tmp_path, "path,label\na.jpg,scab\nb.jpg,rust\nc.jpg,scab rust\n")
        assert "line 4" in said
        assert "'scab rust'" in said

    def test_an_empty_label_is_named_with_its_line(self, tmp_path: Path) -> None:
        root = in_folder(tmp_path, "a.jpg", "b.jpg")
        (root / "list.csv").write_text("path,label\na.jpg,cat\nb.jpg,\n")
        (notice,) = discover(root / "list.csv").notices
        assert "1 without a label, the first in " in notice
        assert "line 3" in notice


class TestLists:
    """Lists of pictures in a folder `img`, named as SOURCE, and beside flat folders."""

    CAT_AND_DOG: Found = {"a.jpg": ("cat", None), "b.jpg": ("dog", None)}  # noqa: RUF012

    def listed(self, root: Path, name: str, text: str, *more: str) -> Path:
        folder = in_folder(root, "img/a.jpg", "img/b.jpg", *more)
        (folder / name).write_text(text)
        return folder

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("labels.csv", "path,label\nimg/a.jpg,cat\nimg/b.jpg,dog\n"),
            ("tags.tsv", "img/a.jpg\tcat\nimg/b.jpg\tdog\n"),
            ("tags.tsv", "a.jpg\tcat\nb.jpg\tdog\n"),
            ("headed.tsv", "path\tlabel\nimg/a.jpg\tcat\nimg/b.jpg\tdog\n"),
            ("val.txt", "img/a.jpg cat\nimg/b.jpg dog\n"),
            ("val.txt", "a cat\nb dog\n"),
            ("tabbed.txt", "img/a.jpg\tcat\nimg/b.jpg\tdog\n"),
            (
                "metadata.jsonl",
                '{"file_name": "img/a.jpg", "label": "cat"}\n{"file_name": "img/b.jpg", "label": "dog"}\n',
            ),
        ],
    )
    def test_it_is_read_alone_and_beside_the_folder(self, tmp_path: Path, name: str, text: str) -> None:
        folder = self.listed(tmp_path, name, text)
        assert found(discover(folder / name)) == self.CAT_AND_DOG
        beside = discover(folder)
        assert found(beside) == self.CAT_AND_DOG
        assert beside.root == str(folder)
        assert any(f"labels from {name}" in notice for notice in beside.notices)

    def test_ids_without_ending_as_kaggle_has_them(self, tmp_path: Path) -> None:
        folder = self.listed(tmp_path, "labels.csv", "id,breed\na,cat\nb,dog\n", "test/c.jpg")
        beside = discover(folder)
        assert found(beside) == self.CAT_AND_DOG
        assert "labels from labels.csv, columns path=id, label=breed" in beside.notices
        assert "1 picture in no list left out: test/c.jpg" in beside.notices
        alone = discover(folder / "labels.csv", columns={"path": "id", "label": "breed"})
        assert found(alone) == self.CAT_AND_DOG
        assert "as a for img/a.jpg" in alone.notices[0]

    def test_an_image_folder_of_hugging_face_with_splits(self, tmp_path: Path) -> None:
        folder = in_folder(tmp_path, "train/a.jpg", "train/b.jpg", "test/c.jpg")
        (folder / "train" / "metadata.csv").write_text("file_name,label\na.jpg,cat\nb.jpg,dog\n")
        (folder / "test" / "metadata.csv").write_text("file_name,label\nc.jpg,cat\n")
        assert found(discover(folder)) == {
            "a.jpg": ("cat", "train"),
            "b.jpg": ("dog", "train"),
            "c.jpg": ("cat", "test"),
        }

    def test_lists_named_as_splits(self, tmp_path: Path) -> None:
        folder = self.listed(tmp_path, "train.txt", "a.jpg cat\n")
        (folder / "val.txt").write_text("b.jpg dog\n")
        assert found(discover(folder)) == {"a.jpg": ("cat", "train"), "b.jpg": ("dog", "val")}

    @pytest.mark.parametrize("pack", ["zip", "tar"])
    @pytest.mark.parametrize("above", ["", "dogs/"])
    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("labels.csv", "id,breed\na,cat\nb,dog\n"),
            ("train/metadata.csv", "file_name,label\na.jpg,cat\nb.jpg,dog\n"),
            ("tags.tsv", "train/a.jpg\tcat\ntrain/b.jpg\tdog\n"),
        ],
    )
    def test_a_list_in_an_archive(self, tmp_path: Path, pack: str, above: str, name: str, text: str) -> None:
        folder = tmp_path / "data" / above
        (folder / "train").mkdir(parents=True)
        for each in "ab":
            (folder / "train" / f"{each}.jpg").write_bytes(b"")
        (folder / name).write_text(text)
        archive = shutil.make_archive(str(tmp_path / "packed"), pack, tmp_path / "data")
        dataset = discover(archive)
        assert [item.label for item in dataset.items] == ["cat", "dog"]
        assert [item.path.split("::")[0] for item in dataset.items] == [f"{pack}://{above}train/{e}.jpg" for e in "ab"]
        assert any(f"labels from {above}{name}" in notice for notice in dataset.notices)

    def test_a_list_in_an_archive_reaches_no_file_outside_it(self, tmp_path: Path) -> None:
        outside = pictures(tmp_path / "other", "secret.jpg") / "secret.jpg"
        with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
            archive.writestr("a.jpg", b"")
            archive.writestr("labels.csv", f"path,label\na.jpg,cat\n{outside},dog\n")
        with pytest.raises(DatasetError, match="no such file"):
            discover(tmp_path / "data.zip")

    def test_a_list_at_a_url(self) -> None:
        files = {"a.jpg": b"", "b.jpg": b"", "labels.csv": b"path,label\na.jpg,cat\nb.jpg,dog\n"}
        fsspec.filesystem("memory").pipe({f"/lists/{name}": data for name, data in files.items()})
        assert found(discover("memory://lists")) == self.CAT_AND_DOG

    def test_a_column_for_each_class(self, tmp_path: Path) -> None:
        text = "image,mel,nv, bcc\na,1.0,0.0,0\nb,0,0,1\n"
        folder = self.listed(tmp_path, "truth.csv", text)
        expected = {"a.jpg": ("mel", None), "b.jpg": ("bcc", None)}
        beside = discover(folder)
        assert found(beside) == expected
        assert "labels from truth.csv, columns path=image, label=mel+nv+bcc" in beside.notices
        columns = {"path": "image", "label": "mel+nv+bcc"}
        assert found(discover(folder / "truth.csv", columns=columns)) == expected

    @pytest.mark.parametrize(("row", "said"), [("b,1,0,1", "several labels"), ("b,2,0,0", "neither 0 nor 1")])
    def test_of_a_column_for_each_class_one_is_1(self, tmp_path: Path, row: str, said: str) -> None:
        folder = self.listed(tmp_path, "truth.csv", f"image,mel,nv,bcc\na,1,0,0\n{row}\n")
        with pytest.raises(DatasetError, match=f"line 3.*{said}"):
            discover(folder / "truth.csv", columns={"path": "image", "label": "mel+nv+bcc"})

    def test_a_list_of_each_split_with_a_column_for_each_class(self, tmp_path: Path) -> None:
        folder = in_folder(tmp_path, "train/a.jpg", "valid/b.jpg")  # as Roboflow writes them
        (folder / "train" / "_classes.csv").write_text("filename, cat, dog\na.jpg, 1, 0\n")
        (folder / "valid" / "_classes.csv").write_text("filename, cat, dog\nb.jpg, 0, 1\n")
        assert found(discover(folder)) == {"a.jpg": ("cat", "train"), "b.jpg": ("dog", "val")}

    @pytest.mark.parametrize("name", ["trainLabels.csv", "train.csv"])
    def test_of_two_pictures_of_one_name_that_of_the_split_in_the_name_of_the_list(
        self, tmp_path: Path, name: str
    ) -> None:
        folder = in_folder(tmp_path, *(f"{split}/{n}.png" for split in ("train", "test") for n in (1, 2)))
        (folder / name).write_text("id,label\n1,frog\n2,truck\n")  # as CIFAR-10 at Kaggle
        for dataset in (discover(folder), discover(folder / name, columns={"path": "id"})):
            assert [(item.path.split("/")[-2:], item.label) for item in dataset.items] == [
                (["train", "1.png"], "frog"),
                (["train", "2.png"], "truck"),
            ]

    def test_numbers_of_classes_that_are_names_of_pictures_too(self, tmp_path: Path) -> None:
        folder = in_folder(tmp_path, *(f"img/{n}.png" for n in range(4)))
        (folder / "labels.csv").write_text("label,id\n" + "".join(f"{n % 2},{n}\n" for n in range(4)))
        assert found(discover(folder)) == {f"{n}.png": (str(n % 2), None) for n in range(4)}

    def test_labels_with_spaces(self, tmp_path: Path) -> None:
        folder = self.listed(tmp_path, "variant.txt", "a Cessna 172\nb Boeing 707 320\n")  # as FGVC-Aircraft
        for source in (folder, folder / "variant.txt"):
            assert found(discover(source)) == {"a.jpg": ("Cessna 172", None), "b.jpg": ("Boeing 707 320", None)}

    def test_lists_in_a_folder_of_their_own(self, tmp_path: Path) -> None:
        folder = in_folder(tmp_path, "images/a.jpg", "images/b.jpg", "labels/train.csv", "labels/test.csv")
        (folder / "labels" / "train.csv").write_text("image,label\na.jpg,cat\n")
        (folder / "labels" / "test.csv").write_text("image,label\nb.jpg,dog\n")
        assert found(discover(folder)) == {"a.jpg": ("cat", "train"), "b.jpg": ("dog", "test")}

    @pytest.mark.parametrize(
        ("text", "encoding", "said"),
        [
            ("path;label\nimg/a.jpg;cat\nimg/b.jpg;dog\n", "utf-8", "separated by ';'"),
            ("path\tlabel\nimg/a.jpg\tcat\nimg/b.jpg\tdog\n", "utf-16", "separated by '\\t'"),
            ("path, label\nimg/a.jpg, cat\nimg/b.jpg, dog\n", "utf-8", None),
            ("Image,Class\nimg/a.jpg,cat\nimg/b.jpg,dog\n", "utf-8", "columns path=Image, label=Class"),
            ("img/a.jpg,cat\nimg/b.jpg,dog\n", "utf-8", "its first line names no columns"),
            ("path,label\n/content/drive/img/a.jpg,cat\n/content/drive/img/b.jpg,dog\n", "utf-8", "for img/a.jpg"),
            ("path,label\nC:\\x\\img\\a.jpg,cat\nC:\\x\\img\\b.jpg,dog\n", "utf-8", "for img/a.jpg"),
        ],
    )
    def test_a_csv_as_programs_write_it(self, tmp_path: Path, text: str, encoding: str, said: str | None) -> None:
        folder = self.listed(tmp_path, "labels.csv", "")
        (folder / "labels.csv").write_text(text, encoding=encoding)
        for source in (folder, folder / "labels.csv"):
            dataset = discover(source)
            assert found(dataset) == self.CAT_AND_DOG
            assert said is None or any(said in notice for notice in dataset.notices)

    def test_an_absolute_path_of_another_computer_is_no_picture_in_another_folder(self, tmp_path: Path) -> None:
        folder = in_folder(tmp_path, "dog/1.jpg")
        (folder / "labels.csv").write_text("path,label\n/elsewhere/cat/1.jpg,cat\n")
        with pytest.raises(DatasetError, match="no such file"):
            discover(folder / "labels.csv")

    def test_a_column_of_splits_that_is_not_used_is_said(self, tmp_path: Path) -> None:
        folder = self.listed(tmp_path, "labels.csv", "path,label,set\nimg/a.jpg,cat,train\nimg/b.jpg,dog,test\n")
        said = next(notice for notice in discover(folder).notices if "the column 'set' says test, train" in notice)
        assert said.endswith("for splits give --columns path=path,label=label,split=set")

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            (b"\xff\xfep\0a\0t\0h\0,\0l", "UTF-16"),
            (b"path,label\nimg/gone.jpg,cat\n", "no such file"),
        ],
    )
    def test_a_csv_that_cannot_be_right_is_refused(self, tmp_path: Path, text: bytes, said: str) -> None:
        folder = self.listed(tmp_path, "labels.csv", "")
        (folder / "labels.csv").write_bytes(text)
        with pytest.raises(DatasetError, match=said):
            discover(folder / "labels.csv")

    def test_a_label_of_0_and_1_beside_another_such_column_is_no_class_in_columns(self, tmp_path: Path) -> None:
        folder = self.listed(tmp_path, "labels.csv", "image,label,is_new\na,1,1\nb,0,1\n")
        assert found(discover(folder)) == {"a.jpg": ("1", None), "b.jpg": ("0", None)}

    def test_a_list_of_pictures_that_are_not_there_is_not_left_out_in_silence(self, tmp_path: Path) -> None:
        folder = self.listed(tmp_path, "labels.csv", "path,label\nimg/gone.jpg,cat\n")
        with pytest.raises(DatasetError, match="none of the pictures that it names is there"):
            discover(folder)

    def test_a_label_that_is_not_in_utf_8_is_said(self, tmp_path: Path) -> None:
        folder = self.listed(tmp_path, "labels.csv", "")
        (folder / "labels.csv").write_bytes(b"path,label\nimg/a.jpg,K\xe4se\nimg/b.jpg,dog\n")
        (notice,) = discover(folder / "labels.csv").notices
        assert notice.startswith("1 of the labels not in UTF-8")

    def test_numbers_behind_a_path_are_no_label(self, tmp_path: Path) -> None:
        folder = self.listed(tmp_path, "list.txt", "a 1 1 1\nb 2 1 1\n")  # as the Oxford pets
        with pytest.raises(DatasetError, match="no such file"):
            discover(folder / "list.txt")

    @pytest.mark.parametrize("header", ["path,label", "label,path"])
    def test_of_a_list_that_names_its_columns_and_pictures_no_folder_is_looked_through(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, header: str
    ) -> None:
        rows = ["img/a.jpg,cat", "img/b.jpg,dog"] if header == "path,label" else ["cat,img/a.jpg", "dog,img/b.jpg"]
        folder = self.listed(tmp_path, "labels.csv", "\n".join([header, *rows]))

        def refuse(*_: object) -> None:
            raise AssertionError("a folder was looked through")

        monkeypatch.setattr(LocalTree, "listing", refuse)
        assert found(discover(folder / "labels.csv")) == self.CAT_AND_DOG

    def test_backslashes_in_paths(self, tmp_path: Path) -> None:
        folder = self.listed(tmp_path, "labels.csv", "path,label\nimg\\a.jpg,cat\nimg\\b.jpg,dog\n")
        assert found(discover(folder)) == found(discover(folder / "labels.csv")) == self.CAT_AND_DOG

    def test_lists_of_paths_without_labels_beside_class_folders_are_left_out(self, tmp_path: Path) -> None:
        folder = in_folder(tmp_path, "cat/a.jpg", "dog/b.jpg")
        (folder / "train.txt").write_text("cat/a.jpg\n")
        dataset = discover(folder)
        assert found(dataset) == self.CAT_AND_DOG
        assert "train.txt" in dataset.notices[0]

    def test_pictures_and_list_in_one_folder(self, tmp_path: Path) -> None:
        folder = in_folder(tmp_path, "a.jpg", "b.jpg")
        (folder / "metadata.csv").write_text("file_name,text,label\na.jpg,x,cat\nb.jpg,y,dog\n")
        assert found(discover(folder)) == self.CAT_AND_DOG

    @pytest.mark.parametrize("name", ["classes.txt", "readme.txt", "notes.csv"])
    def test_a_file_that_names_no_picture_is_no_list(self, tmp_path: Path, name: str) -> None:
        folder = in_folder(tmp_path, "cat/a.jpg", "dog/b.jpg")
        (folder / name).write_text("cat\ndog\nsome words about it\n")
        assert found(discover(folder)) == self.CAT_AND_DOG

    def test_class_folders_count_more_than_a_list(self, tmp_path: Path) -> None:
        folder = in_folder(tmp_path, "train/cat/a.jpg", "train/dog/b.jpg")
        (folder / "list.csv").write_text("path,label\ntrain/cat/a.jpg,x\n")
        assert found(discover(folder)) == {"a.jpg": ("cat", "train"), "b.jpg": ("dog", "train")}

    @pytest.mark.parametrize(
        ("name", "text", "said"),
        [
            (
                "labels.csv",
                "id,colour,size\na,red,big\nb,blue,small\n",
                "which of its columns is the label is not",
            ),
            ("labels.csv", "a.jpg,cat,1\nb.jpg,dog,2\n", "names no columns: write path,label above it"),
            ("annotations.json", '{"images": [{"file_name": "a.jpg"}]}', "make a CSV"),
        ],
    )
    def test_a_list_of_another_form_is_refused_and_how_to_write_it_said(
        self, tmp_path: Path, name: str, text: str, said: str
    ) -> None:
        with pytest.raises(DatasetError, match=said):
            discover(self.listed(tmp_path, name, text))

    def test_several_lists_that_are_no_splits_are_refused(self, tmp_path: Path) -> None:
        folder = self.listed(tmp_path, "one.txt", "a.jpg cat\n")
        (folder / "two.txt").write_text("b.jpg dog\n")
        with pytest.raises(DatasetError, match=r"several lists of its pictures \(one.txt, two.txt\)"):
            discover(folder)

    @pytest.mark.parametrize(
        ("name", "text", "said"),
        [
            ("x.tsv", "img/a.jpg\tcat\nimg/b.jpg\tdog\tblack\n", "line 2: it has 3 fields"),
            ("x.txt", "img/a.jpg cat\nimg/b.jpg\n", "line 2"),
            ("x.jsonl", '{"file_name": "img/a.jpg", "label": "cat"}\n[1]\n', "line 2: it is no object"),
            (
                "x.jsonl",
                '{"file_name": "img/a.jpg", "label": "cat"}\n{"file_name": "img/b.jpg"}\n',
                "line 2: there is no",
            ),
            ("x.txt", "img/a.jpg cat\nimg/gone.jpg dog\n", "line 2: no such file: img/gone.jpg"),
        ],
    )
    def test_a_line_of_another_form_is_named(self, tmp_path: Path, name: str, text: str, said: str) -> None:
        with pytest.raises(DatasetError, match=said):
            discover(self.listed(tmp_path, name, text) / name)

    def test_a_name_that_could_be_two_files_is_refused(self, tmp_path: Path) -> None:
        folder = self.listed(tmp_path, "x.csv", "path,label\na,cat\n", "more/a.jpg")
        with pytest.raises(DatasetError, match="'a' could be "):
            discover(folder / "x.csv")


class TestInPython:
    """Objects in Python; `datasets.Dataset` and torchvision's are in tests/test_inputs.py."""

    GREY: npt.NDArray[np.uint8] = np.arange(4 * 28 * 28, dtype=np.uint8).reshape(4, 28, 28)

    def test_arrays_of_pictures_and_labels_as_mnist_has_them(self) -> None:
        labels = np.array([7, 2, 7, 2])
        dataset = discover({"train": (self.GREY, labels), "test": (self.GREY[::-1].copy(), labels)})
        assert [(item.label, item.split) for item in dataset.items][3:5] == [("2", "train"), ("7", "test")]
        assert dataset.access is not None
        data = dataset.access.read(dataset.items[1].path)[0]
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data)).convert("L")), self.GREY[1])

    def test_an_array_of_colour_pictures_without_labels(self) -> None:
        dataset = discover(np.zeros((3, 8, 8, 3), np.uint8))
        assert [item.label for item in dataset.items] == [None] * 3

    @pytest.mark.parametrize(
        ("source", "said"),
        [
            ((GREY.astype(np.float32), [1, 2, 3, 4]), "an array of float32 of the shape (4, 28, 28)"),
            ((GREY, [1, 2, 3]), "4 pictures in the array, and 3 labels"),
            (np.zeros((4, 3, 8, 8), np.uint8), "of the shape (4, 3, 8, 8)"),
            (np.array(3, np.uint8), "an array of uint8 of the shape ()"),
            ({"train": np.array(3.0)}, "an array of float64 of the shape ()"),
            ((GREY, np.array(3)), "labels of the shape () are no list"),
            ((GREY, 3), "labels of the shape () are no list"),
            (5, "int is no dataset"),
            (object(), "object is no dataset"),
            (lambda: 1, "function is no dataset"),
        ],
    )
    def test_others_are_refused_by_name(self, source: Any, said: str) -> None:
        with pytest.raises(DatasetError) as caught:
            discover(source)
        assert said in str(caught.value)
        assert " at 0x" not in str(caught.value)

    def test_a_table_of_pandas(self, tmp_path: Path) -> None:
        pandas = pytest.importorskip("pandas")
        folder = in_folder(tmp_path, "a.jpg", "b.jpg")
        rows = {"path": [str(folder / "a.jpg"), folder / "b.jpg"], "label": ["cat", None], "split": ["train", np.nan]}
        assert found(discover(pandas.DataFrame(rows))) == {"a.jpg": ("cat", "train"), "b.jpg": (None, None)}
        with pytest.raises(DatasetError, match="has no column 'path', but file, label"):
            discover(pandas.DataFrame({"file": ["a.jpg"], "label": ["cat"]}))

    def test_a_dict_of_splits_to_folders(self, tmp_path: Path) -> None:
        one, other = in_folder(tmp_path / "1", "cat/a.jpg", "dog/b.jpg"), in_folder(tmp_path / "2", "cat/c.jpg")
        dataset = discover({"train": one, "val": str(other)})
        assert found(dataset)["c.jpg"] == ("cat", "val")

    def test_lists_of_paths_and_of_pairs(self, tmp_path: Path) -> None:
        folder = in_folder(tmp_path, "a.jpg", "b.jpg")
        assert found(discover([folder / "a.jpg", str(folder / "b.jpg")])) == {
            "a.jpg": (None, None),
            "b.jpg": (None, None),
        }
        assert found(discover([(folder / "a.jpg", "cat")])) == {"a.jpg": ("cat", None)}

    def test_lists_of_path_label_and_split(self, tmp_path: Path) -> None:
        folder = in_folder(tmp_path, "a.jpg", "b.jpg")
        rows = [(folder / "a.jpg", "cat", "train"), (folder / "b.jpg", "dog", "Test")]
        assert found(discover(rows)) == {"a.jpg": ("cat", "train"), "b.jpg": ("dog", "test")}
        for wrong, said in (
            ([(*rows[0], 1)], "has 4 parts"),
            ([rows[0], rows[1][:2]], "entry 1 of the list is tuple"),
            ([(*rows[0][:2], "fold1")], "unknown split 'fold1'"),
        ):
            with pytest.raises(DatasetError, match=said):
                discover(wrong)

    @pytest.mark.parametrize("kind", [Image.fromarray, np.asarray], ids=["pillow", "numpy"])
    def test_lists_of_pictures(self, kind: Callable[[Any], Any]) -> None:
        arrays = [np.full((4, 5 + at, 3), 40 * at, np.uint8) for at in range(2)]
        alone, labelled = (
            discover([kind(a) for a in arrays]),
            discover([(kind(a), n) for a, n in zip(arrays, "ab", strict=True)]),
        )
        assert [item.label for item in alone.items] == [None, None]
        assert [item.label for item in labelled.items] == ["a", "b"]
        assert alone.access is not None
        for at, item in enumerate(alone.items):
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(alone.access.read(item.path)[0]))), arrays[at])
        with pytest.raises(DatasetError, match="entry 2 of the list is str"):
            discover([*map(kind, arrays), "a.jpg"])


def test_a_folder_in_the_cache_of_datasets_is_read(tmp_path: Path) -> None:
    import pyarrow as pa

    write_picture(tmp_path / "cat.png", 1)
    (tmp_path / "cached").mkdir()
    for split in ("train", "test"):
        rows = arrow_table([(tmp_path / "cat.png", "leaf", split)])
        path = str(tmp_path / f"cached/imagefolder-{split}.arrow")
        with pa.OSFile(path, "wb") as sink, pa.ipc.new_stream(sink, rows.schema) as out:
            out.write_table(rows)
    (tmp_path / "cached/dataset_info.json").write_text("{}")
    dataset = discover(tmp_path / "cached")
    assert sorted((item.label, item.split) for item in dataset.items) == [("leaf", "test"), ("leaf", "train")]


BOTH = ("train", "test")


class TestTakenForSomethingElse:
    """Folders and lists that were once taken for something else, without a word."""

    @staticmethod
    def listed(tmp_path: Path, name: str, text: str, *pictures: str) -> Path:
        folder = in_folder(tmp_path, *pictures)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
        return folder

    @pytest.mark.parametrize("header", ["id,filename,label", "image_id,file_name,class", "nr,ID,label"])
    def test_a_number_of_a_row_is_no_name_where_another_column_has_names(self, tmp_path: Path, header: str) -> None:
        rows = "0,2.jpg,c\n1,0.jpg,a\n2,1.jpg,b\n"
        folder = self.listed(tmp_path, "list.csv", f"{header}\n{rows}", "x/0.jpg", "x/1.jpg", "x/2.jpg")
        for source in (folder, folder / "list.csv"):
            assert {Path(i.path).name: i.label for i in discover(source).items} == {
                "0.jpg": "a",
                "1.jpg": "b",
                "2.jpg": "c",
            }

    def test_a_picture_of_another_split_is_not_the_one_that_is_missing(self, tmp_path: Path) -> None:
        folder = self.listed(
            tmp_path, "trainLabels.csv", "id,label\n1,a\n2,b\n", "train/1.png", "test/1.png", "test/2.png"
        )
        for source in (folder, folder / "trainLabels.csv"):
            with pytest.raises(DatasetError, match="no such file: 2"):
                discover(source)

    def test_listed_pictures_in_folders_of_splits_have_these_splits(self, tmp_path: Path) -> None:
        text = "file_name,label\ntrain/0.jpg,a\ntrain/1.jpg,b\ntest/0.jpg,a\n"
        folder = self.listed(tmp_path, "metadata.csv", text, "train/0.jpg", "train/1.jpg", "test/0.jpg")
        dataset = discover(folder)
        assert sorted(str(item.split) for item in dataset.items) == ["test", "train", "train"]
        assert "splits from the folders that the pictures are in" in dataset.notices
        named = discover(folder / "metadata.csv")
        assert {item.split for item in named.items} == {None}
        assert any("folders for test, train, and it says no splits" in notice for notice in named.notices)

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("l.tsv", "path\tlabel\tsubset\n0.jpg\ta\ttrain\n1.jpg\tb\ttest\n"),
            ("l.jsonl", "".join(f'{{"path": "{n}.jpg", "label": "a", "subset": "{s}"}}\n' for n, s in enumerate(BOTH))),
            ("l.csv", "path,label,subset\n0.jpg,a,Training\n1.jpg,b,PublicTest\n"),
            ("l.csv", "path,label,subset\n0.jpg,a,train\n1.jpg,b,\n2.jpg,b,val\n"),
        ],
    )
    def test_a_column_of_splits_is_said_in_every_kind_of_list_and_how_to_read_it(
        self, tmp_path: Path, name: str, text: str
    ) -> None:
        folder = self.listed(tmp_path, name, text, "0.jpg", "1.jpg", "2.jpg")
        notice = next(notice for notice in discover(folder / name).notices if "is not read" in notice)
        (mapping,) = re.findall(r"--columns (\S+)", notice)
        columns = dict(part.split("=") for part in mapping.split(","))
        assert {item.split for item in discover(folder / name, columns=columns).items} > {"train"}

    def test_the_advice_for_a_column_of_splits_holds_where_columns_were_found(self, tmp_path: Path) -> None:
        text = "Image,Label,subset\n0.jpg,a,train\n1.jpg,b,test\n"
        folder = self.listed(tmp_path, "l.csv", text, "0.jpg", "1.jpg")
        notice = next(notice for notice in discover(folder / "l.csv").notices if "is not read" in notice)
        assert notice.endswith("--columns path=Image,label=Label,split=subset")
        for columns in ({"path": "Image", "label": "Label", "split": "subset"}, {"split": "subset"}):
            dataset = discover(folder / "l.csv", columns=columns)
            assert [(item.label, item.split) for item in dataset.items] == [("a", "train"), ("b", "test")]

    def test_a_column_that_says_yes_or_no_for_a_split_is_said(self, tmp_path: Path) -> None:
        text = "path,label,is_valid\n0.jpg,a,False\n1.jpg,b,True\n"
        folder = self.listed(tmp_path, "l.csv", text, "0.jpg", "1.jpg")
        assert any("'is_valid' says which pictures are of a split" in n for n in discover(folder / "l.csv").notices)

    def test_two_lists_that_contradict_each_other_are_refused(self, tmp_path: Path) -> None:
        folder = self.listed(tmp_path, "train.txt", "x/0.jpg a\nx/1.jpg b\n", "x/0.jpg", "x/1.jpg", "x/2.jpg")
        (folder / "val.txt").write_text("x/1.jpg a\nx/2.jpg b\n")
        with pytest.raises(DatasetError, match=r"1\.jpg stands in train\.txt and in val\.txt with another label"):
            discover(folder)

    @pytest.mark.parametrize(
        ("names", "said"),
        [
            (["images_001/images/0.png", "images_002/images/1.png"], "parts of one set"),
            (["HAM_images_part_1/0.jpg", "HAM_images_part_2/1.jpg"], "parts of one set"),
            (["data_256/a/abbey/0.jpg", "data_256/b/bar/1.jpg", "val_256/2.jpg"], "mixes the split val_256 with"),
            (["Set (Aug)/train/a/0.jpg", "Set (Aug)/valid/a/1.jpg", "test/2.jpg"], "holds splits"),
        ],
    )
    def test_folders_that_are_no_classes_by_their_names_are_refused(
        self, tmp_path: Path, names: list[str], said: str
    ) -> None:
        root = in_folder(tmp_path, *names)
        with pytest.raises(DatasetError, match=re.escape(said)):
            discover(root)

    def test_folders_with_numbers_are_classes_where_their_words_may_be(self, tmp_path: Path) -> None:
        dataset = discover(in_folder(tmp_path, "grade 1/0.jpg", "grade 2/1.jpg"))
        assert {item.label for item in dataset.items} == {"grade 1", "grade 2"}

    def test_pictures_in_parts_of_parts_are_found_by_their_list(self, tmp_path: Path) -> None:
        names = ("images_001/images/0.png", "images_002/images/1.png")
        folder = self.listed(tmp_path, "Data.csv", "Image Index,label\n0.png,a\n1.png,b\n", *names)
        assert {Path(i.path).name: i.label for i in discover(folder).items} == {"0.png": "a", "1.png": "b"}

    def test_a_final_test_without_classes_is_a_split_without_labels(self, tmp_path: Path) -> None:
        names = ("Training/0/0.ppm", "Training/1/1.ppm", "Final_Test/Images/2.ppm")  # GTSRB
        dataset = discover(in_folder(tmp_path, *names))
        assert {(i.label, i.split) for i in dataset.items} == {("0", "train"), ("1", "train"), (None, "test")}

    def test_masks_do_not_get_the_labels_in_the_names_of_their_pictures(self, tmp_path: Path) -> None:
        names = [f"images/{name}_{at}.jpg" for name in ("cat", "dog") for at in range(3)]
        masks = [f"annotations/trimaps/{Path(name).stem}.png" for name in names]
        root = in_folder(tmp_path, *names, *masks, "annotations/list.txt")  # as Oxford's pets
        notice = next(notice for notice in discover(root).notices if "--label-from" in notice)
        (expression,) = re.findall("--label-from '(.*)'", notice)
        dataset = discover(root, label_from=expression)
        assert sorted(Path(item.path).suffix for item in dataset.items) == [".jpg"] * 6
        assert {item.label for item in dataset.items} == {"cat", "dog"}
        # who wants the folders as classes gets all of them
        every = discover(root, label_from="^([^/]+)/")
        assert {item.label for item in every.items} == {"images", "annotations"}

    def test_expressions_that_are_advised_count_from_the_source(self, tmp_path: Path) -> None:
        names = [f"wrap/{kind}/{label}/0.jpg" for kind in ("color", "grey") for label in ("ok", "rust")]
        root = in_folder(tmp_path, *names)  # as PlantVillage
        with pytest.raises(DatasetError) as caught:
            discover(root)
        classes = [
            {item.label for item in discover(root, label_from=expression).items}
            for expression in re.findall("--label-from '(.*?)'", str(caught.value))
        ]
        assert classes == [{"ok", "rust"}, {"color", "grey"}]

    def test_a_copy_of_all_is_left_out_with_an_expression_too(self, tmp_path: Path) -> None:
        names = [f"{patient}/{label}/{patient}{label}.png" for patient in ("8863", "8864") for label in "01"]
        root = in_folder(tmp_path, *names, *[f"copy/{name}" for name in names])
        dataset = discover(root, label_from="^[^/]+/([^/]+)/")
        assert {item.label for item in dataset.items} == {"0", "1"}
        assert any("copy/ left out" in notice for notice in dataset.notices)

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("notes.txt", "0.jpg looks odd\n1.jpg is fine\n"),
            ("0.txt", "0 0.5 0.5 1 1\n"),
            ("list_eval_partition.txt", "0.jpg 0\n1.jpg 2\n"),
        ],
    )
    def test_texts_of_other_things_are_no_labels(self, tmp_path: Path, name: str, text: str) -> None:
        assert {i.label for i in discover(self.listed(tmp_path, name, text, "0.jpg", "1.jpg")).items} == {None}

    def test_what_was_looked_for_to_find_the_columns_is_not_said_to_be_found(self, tmp_path: Path) -> None:
        folder = self.listed(tmp_path, "l.csv", "file,class_id\nx/0.jpg,1\nx/1.jpg,0\n", "x/0.jpg", "x/1.jpg")
        assert not any("looked for" in notice for notice in discover(folder / "l.csv").notices)

    def test_a_column_for_each_class_with_splits_and_pictures_of_none(self, tmp_path: Path) -> None:
        text = "image,cat,dog,split\n0.jpg,1,0,train\n1.jpg,0,1,test\n2.jpg,0,0,train\n"
        folder = self.listed(tmp_path, "l.csv", text, "0.jpg", "1.jpg", "2.jpg")
        dataset = discover(folder / "l.csv")
        assert [(i.label, i.split) for i in dataset.items] == [("cat", "train"), ("dog", "test"), (None, "train")]

    @pytest.mark.parametrize("text", ["sep=;\npath;label\n0.jpg;a\n1.jpg;b\n", "path , label \n0.jpg ,a\n1.jpg ,b\n"])
    def test_lists_as_spreadsheets_leave_them(self, tmp_path: Path, text: str) -> None:
        folder = self.listed(tmp_path, "l.csv", text, "0.jpg", "1.jpg")
        for source in (folder, folder / "l.csv"):
            assert [item.label for item in discover(source).items] == ["a", "b"]

    def test_a_text_that_programs_write_for_no_value_is_said_where_it_is_a_class(self, tmp_path: Path) -> None:
        folder = self.listed(tmp_path, "l.csv", "path,label\n0.jpg,nan\n1.jpg,b\n", "0.jpg", "1.jpg")
        assert any("'nan'" in notice and "is taken as a class" in notice for notice in discover(folder).notices)

    def test_a_list_without_labels_for_the_test_is_left_out(self, tmp_path: Path) -> None:
        text = "id,species,width\n0,oak,0.1\n1,elm,0.2\n"
        folder = self.listed(tmp_path, "train.csv", text, "images/0.jpg", "images/1.jpg")
        (folder / "test.csv").write_text("id,width,height\n2,0.1,0.2\n")
        (folder / "images" / "2.jpg").touch()
        dataset = discover(folder)
        assert {Path(item.path).name: item.label for item in dataset.items} == {"0.jpg": "oak", "1.jpg": "elm"}
        assert any(notice.startswith("test.csv left out") for notice in dataset.notices)

    def test_paths_that_begin_with_the_name_of_the_folder_are_found(self, tmp_path: Path) -> None:
        folder = self.listed(tmp_path, "train.csv", "", "train/p1/v.jpg", "train/p2/v.jpg")
        (folder / "train.csv").write_text(f"Path,Ill\n{folder.name}/train/p1/v.jpg,1\n{folder.name}/train/p2/v.jpg,0\n")
        dataset = discover(folder / "train.csv", columns={"path": "Path", "label": "Ill"})
        assert [item.label for item in dataset.items] == ["1", "0"]

    def test_paths_in_a_list_that_is_named_may_count_from_the_folder_above_it(self, tmp_path: Path) -> None:
        text = "image,split,label\na/0.jpg,train,good\na/1.jpg,test,bad\n"
        folder = self.listed(tmp_path, "lists/1cls.csv", text, "a/0.jpg", "a/1.jpg")  # VisA
        dataset = discover(folder / "lists" / "1cls.csv")
        assert [(item.path, item.label, item.split) for item in dataset.items] == [
            (str(folder / "a/0.jpg"), "good", "train"),
            (str(folder / "a/1.jpg"), "bad", "test"),
        ]
        assert any("as a/0.jpg for" in notice for notice in dataset.notices)

    def test_a_list_that_names_pictures_in_class_folders_is_said(self, tmp_path: Path) -> None:
        text = "file,age\ntrain/a/0.jpg,1\ntrain/b/1.jpg,2\n"
        folder = self.listed(tmp_path, "ages.csv", text, "train/a/0.jpg", "train/b/1.jpg")
        assert any("ages.csv names the pictures" in notice for notice in discover(folder).notices)


class TestSplitsBelow:
    """Folders of which each holds folders called as splits."""

    def test_classes_may_lack_a_split(self, tmp_path: Path) -> None:
        root = in_folder(tmp_path, "cat/train/0.jpg", "cat/val/1.jpg", "dog/train/2.jpg")
        assert [(item.label, item.split) for item in discover(root).items] == [
            ("cat", "train"),
            ("cat", "val"),
            ("dog", "train"),
        ]

    @pytest.mark.parametrize(
        "inside",
        [
            ["train/good/0.jpg", "test/good/1.jpg", "test/broken/2.jpg", "ground_truth/broken/2_mask.jpg"],  # MVTec AD
            ["train/0/0.jpg", "test/0/1.jpg", "crossval/0/2.jpg", "full/0/3.jpg"],  # VLCS
            ["train/cat/0.jpg", "test/cat/1.jpg"],
        ],
    )
    def test_datasets_side_by_side_are_refused_and_what_is_advised_leads_on(
        self, tmp_path: Path, inside: list[str]
    ) -> None:
        root = in_folder(tmp_path, *(f"{name}/{each}" for name in ("bottle", "cable") for each in inside))
        with pytest.raises(
            DatasetError, match=r"each looks like a dataset: name one as SOURCE, as \S*bottle;"
        ) as refused:
            discover(root)
        expression = str(refused.value).rpartition("--label-from '")[2].rstrip("'")
        if "crossval" in "".join(inside):  # which is no split for the expression either
            with pytest.raises(DatasetError, match="mixes split folders"):
                discover(root / "bottle")
            return
        if "ground_truth" in "".join(inside):
            dataset = discover(root / "bottle")
            assert {(item.label, item.split) for item in dataset.items} == {
                ("good", "train"),
                ("good", "test"),
                ("broken", "test"),
            }
            assert any(notice.startswith("ground_truth left out") for notice in dataset.notices)
            return
        assert {item.label for item in discover(root / "bottle").items} == {"cat"}
        assert {(item.label, item.split) for item in discover(root, label_from=expression).items} == {
            (label, split) for label in ("bottle", "cable") for split in ("train", "test")
        }

    def test_domains_with_the_same_classes_are_refused_and_one_can_be_named(self, tmp_path: Path) -> None:
        domains = [f"{name}/{{}}{label}/0.jpg" for name in ("amazon", "webcam") for label in ("bike", "mug")]
        for at, images in enumerate(("", "images/")):  # PACS, Office-31
            root = in_folder(tmp_path / str(at), *(name.format(images) for name in domains))
            with pytest.raises(DatasetError, match=r"hold the same sub-folders .* name one of them as SOURCE"):
                discover(root)
            assert {item.label for item in discover(root / "amazon").items} == {"bike", "mug"}

    def test_one_class_whose_files_begin_with_what_may_be_labels_is_said(self, tmp_path: Path) -> None:
        root = in_folder(tmp_path, *(f"pets/{label}.{at}.jpg" for label in ("cat", "dog") for at in range(3)))
        (notice,) = discover(root).notices
        assert notice.startswith(
            "there is one class alone, the folder 'pets'; if the names of the files begin with them"
        )
        expression = notice.rpartition("--label-from '")[2].rstrip("'")
        assert {item.label for item in discover(root, label_from=expression).items} == {"cat", "dog"}


class TestSplitLists:
    CLASSES = tuple(f"images/{label}/{at}.jpg" for label in ("pie", "soup") for at in range(4))

    @pytest.mark.parametrize("ending", ["", ".jpg"])
    @pytest.mark.parametrize("where", ["", "meta/"])
    def test_lists_of_paths_beside_class_folders_are_the_splits(self, tmp_path: Path, where: str, ending: str) -> None:
        root = in_folder(tmp_path, *self.CLASSES)  # as Food-101 and MIT's indoor scenes
        (root / "meta").mkdir()
        for name, numbers in (("train", "012"), ("test", "3")):
            lines = [f"{label}/{at}{ending}\n" for label in ("pie", "soup") for at in numbers]
            (root / f"{where}{name}.txt").write_text("".join(lines))
        dataset = discover(root)
        assert {Path(item.path).stem: item.split for item in dataset.items} == {
            "0": "train",
            "1": "train",
            "2": "train",
            "3": "test",
        }
        assert {item.label for item in dataset.items} == {"pie", "soup"}
        assert any("splits from" in notice for notice in dataset.notices)

    def test_pictures_in_none_of_the_lists_are_left_out_and_said(self, tmp_path: Path) -> None:
        root = in_folder(tmp_path, *self.CLASSES)
        (root / "TrainImages.txt").write_text("pie/0.jpg\nsoup/0.jpg\n")
        (root / "TestImages.txt").write_text("pie/1.jpg\nsoup/1.jpg\n")
        dataset = discover(root)
        assert len(dataset.items) == 4
        assert any("4 pictures in none of these lists left out" in notice for notice in dataset.notices)

    @pytest.mark.parametrize(
        ("train", "test"),
        [("pie/0\nsoup/9\nsoup/8\n", "pie/1\n"), ("pie/0\nsoup/0\n", "pie/0\n"), ("pie/0\n", "two words\n")],
    )
    def test_lists_that_name_other_things_or_one_picture_twice_are_left_alone(
        self, tmp_path: Path, train: str, test: str
    ) -> None:
        root = in_folder(tmp_path, *self.CLASSES)
        (root / "train.txt").write_text(train)
        (root / "test.txt").write_text(test)
        dataset = discover(root)
        assert {item.split for item in dataset.items} == {None}
        assert any("left out" in notice for notice in dataset.notices)

    @pytest.mark.parametrize(
        "line",
        [
            "images/{}.jpg",
            "/home/ann/food/images/{}.jpg",
            "C:\\food\\images\\{}.jpg",
            "{}.jpg 7",
            "{}.jpg,7",
            "# made by hand\n{}.jpg",
        ],
    )
    def test_lists_may_name_pictures_from_any_folder_above_and_say_more(self, tmp_path: Path, line: str) -> None:
        root = in_folder(tmp_path, *self.CLASSES)
        for name, numbers in (("trainval", "012"), ("test", "3")):
            paths = [f"{label}/{at}" for label in ("pie", "soup") for at in numbers]
            (root / f"{name}.txt").write_text("".join(line.format(path) + "\n" for path in paths))
        dataset = discover(root)
        assert {(Path(item.path).stem, item.split) for item in dataset.items} == {
            *((at, "train") for at in "012"),
            ("3", "test"),
        }
        assert not any("not used" in notice for notice in dataset.notices)

    def test_lists_whose_names_say_the_set_name_pictures_by_their_names(self, tmp_path: Path) -> None:
        root = in_folder(
            tmp_path, *(f"2750/{label}/{label}_{at}.jpg" for label in ("Crop", "River") for at in range(3))
        )
        for at, name in enumerate(("eurosat-train.txt", "eurosat-val.txt", "eurosat-test.txt")):
            (root / name).write_text(f"Crop_{at}.jpg\nRiver_{at}.jpg\n")
        assert {(Path(item.path).stem[-1], item.split) for item in discover(root).items} == {
            ("0", "train"),
            ("1", "val"),
            ("2", "test"),
        }

    def test_lists_may_have_other_columns_before_the_path(self, tmp_path: Path) -> None:
        root = in_folder(tmp_path, *(path.removeprefix("images/") for path in self.CLASSES))  # EuroSAT at Kaggle
        for name, numbers in (("train", "01"), ("validation", "2"), ("test", "3")):
            paths = [f"{label}/{at}.jpg" for label in ("pie", "soup") for at in numbers]
            rows = "".join(f"{row},{path},0,{path[:3]}\n" for row, path in enumerate(paths))
            (root / f"{name}.csv").write_text(f",Filename,Label,ClassName\n{rows}")
        dataset = discover(root)
        assert {(Path(item.path).stem, item.split) for item in dataset.items} == {
            *((at, "train") for at in "01"),
            ("2", "val"),
            ("3", "test"),
        }
        assert {item.label for item in dataset.items} == {"pie", "soup"}
        (notice,) = dataset.notices  # and that they are left out is not said
        assert notice.startswith("splits from test.csv, train.csv, validation.csv")

    @pytest.mark.parametrize(
        ("name", "line"),
        [("split.csv", "{0},{1}"), ("meta/data.csv", "{1};x;{0}"), ("partition.txt", "images/{0} {1}")],
    )
    def test_one_list_may_have_a_column_of_splits(self, tmp_path: Path, name: str, line: str) -> None:
        root = in_folder(tmp_path, *self.CLASSES)
        (root / "meta").mkdir()
        rows = [
            (path.removeprefix("images/"), "Testing" if path.endswith("3.jpg") else "train") for path in self.CLASSES
        ]
        (root / name).write_text(
            "path,subset\n" * (name != "partition.txt") + "".join(line.format(*r) + "\n" for r in rows)
        )
        dataset = discover(root)
        assert [item.split for item in dataset.items] == ["train", "train", "train", "test"] * 2
        assert any(notice.startswith(f"splits from {Path(name).name}") for notice in dataset.notices)

    @pytest.mark.parametrize("rows", ["pie/0.jpg,train\npie/1.jpg,\n", "pie/0.jpg,train\npie/1.jpg,train\n"])
    def test_a_column_that_is_no_split_of_all_is_not_taken(self, tmp_path: Path, rows: str) -> None:
        root = in_folder(tmp_path, *self.CLASSES)
        (root / "notes.csv").write_text(f"path,set\n{rows}")
        dataset = discover(root)
        assert {item.split for item in dataset.items} == {None}
        assert any("notes.csv names the pictures" in notice for notice in dataset.notices)

    def test_what_no_list_of_the_scored_pictures_names_is_train(self, tmp_path: Path) -> None:
        root = in_folder(tmp_path, *self.CLASSES)
        (root / "testing_list.txt").write_text("pie/3.jpg\nsoup/3.jpg\n")
        dataset = discover(root)
        assert {item.split for item in dataset.items if item.path.endswith("3.jpg")} == {"test"}
        assert {item.split for item in dataset.items if not item.path.endswith("3.jpg")} == {"train"}
        assert any("6 pictures in none of these lists taken as train" in notice for notice in dataset.notices)

    def test_lines_that_name_no_picture_here_are_counted(self, tmp_path: Path) -> None:
        root = in_folder(tmp_path, *self.CLASSES)  # some classes of Food-101, with the lists of all
        (root / "train.txt").write_text("".join(f"{c}/{at}\n" for c in ("pie", "soup", "tea", "cake") for at in "012"))
        (root / "test.txt").write_text("pie/3\nsoup/3\ntea/3\n")
        dataset = discover(root)
        assert len(dataset.items) == 8
        assert any("6 lines of train.txt that name no picture here left out: tea/0" in n for n in dataset.notices)
        assert any("1 line of test.txt that names no picture here left out: tea/3" in n for n in dataset.notices)

    @pytest.mark.parametrize(
        ("name", "text", "why"),
        [
            ("train.txt", "pie/0.jpg\n", "no list of pictures to be scored"),
            ("test.txt", "".join(f"{c}/{at}\n" for c in ("pie", "soup") for at in range(4)), "none says train"),
        ],
    )
    def test_lists_that_leave_one_side_empty_are_not_used_and_it_is_said(
        self, tmp_path: Path, name: str, text: str, why: str
    ) -> None:
        root = in_folder(tmp_path, *self.CLASSES)
        (root / name).write_text(text)
        dataset = discover(root)
        assert {item.split for item in dataset.items} == {None}
        assert any("not used for the splits" in notice and why in notice for notice in dataset.notices)

    @pytest.mark.parametrize("text", ["0 0.69 0.5\n1 0.65 0.52\n", "pie\nsoup\n", "epoch 1\nepoch 2\n"])
    def test_texts_of_a_training_are_no_lists(self, tmp_path: Path, text: str) -> None:
        root = in_folder(
            tmp_path, *(f"{label}/{at}{label}.jpg" for label in ("pie", "soup") for at in range(2)), "a/1.jpg"
        )
        for name in ("train.txt", "test.txt"):
            (root / name).write_text(text)
        assert {item.split for item in discover(root).items} == {None}

    def test_lists_of_several_folds_are_left_alone(self, tmp_path: Path) -> None:
        root = in_folder(tmp_path, *self.CLASSES)  # as DTD
        for fold in "12":
            (root / f"train{fold}.txt").write_text("pie/0.jpg\nsoup/0.jpg\n")
            (root / f"test{fold}.txt").write_text("pie/1.jpg\nsoup/1.jpg\n")
        assert {item.split for item in discover(root).items} == {None}


class TestWhatLiesBesideClasses:
    @staticmethod
    def classes(root: Path, *more: str) -> Path:
        return in_folder(root, *(f"{label}/{at}.jpg" for label in ("cat", "dog") for at in range(3)), *more)

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("label_map.csv", "id,name\n0,cat\n1,dog\n"),
            ("labels.txt", "0 cat\n1 dog\n"),
            ("history.csv", "epoch,loss,val_loss\n1,0.5,0.6\n2,0.4,0.5\n"),
            ("corrupted.csv", "path,reason\ncat/0.jpg,truncated\ndog/1.jpg,empty\n"),
            ("credits.csv", "file,author\ncat/0.jpg,Ann\ndog/0.jpg,Bob\n"),
            ("sizes.csv", "file,width,height\ncat/0.jpg,3,4\ndog/0.jpg,4,5\n"),
            ("info.json", '{"image": "logo1.jpg"}'),
            ("boxes.json", '[{"file_name": "cat/0.jpg"}]'),
        ],
    )
    def test_class_folders_stay_classes_whatever_else_is_listed_beside_them(
        self, tmp_path: Path, name: str, text: str
    ) -> None:
        root = self.classes(tmp_path)
        (root / name).write_text(text)
        dataset = discover(root)
        assert [item.label for item in dataset.items] == ["cat"] * 3 + ["dog"] * 3
        assert any(name in notice for notice in dataset.notices)

    def test_a_list_of_labels_of_most_pictures_counts_more_than_the_folders(self, tmp_path: Path) -> None:
        root = in_folder(tmp_path, *(f"{site}/{at}{site}.jpg" for site in ("north", "south") for at in range(2)))
        rows = "".join(
            f"{site}/{at}{site}.jpg,{'fox' if at else 'owl'}\n" for site in ("north", "south") for at in (0, 1)
        )
        (root / "labels.csv").write_text(f"path,label\n{rows}")  # camera traps by site
        dataset = discover(root)
        assert {item.label for item in dataset.items} == {"fox", "owl"}
        assert "labels from labels.csv, columns path=path, label=label" in dataset.notices

    @pytest.mark.parametrize(
        "names",
        [
            ["images/0.png", "ground_truth/0.png"],
            ["Original/0.png", "Ground Truth/0.png"],
            ["0.png", "masks/0.png"],
        ],
    )
    def test_masks_by_any_name_are_no_class(self, tmp_path: Path, names: list[str]) -> None:
        dataset = discover(in_folder(tmp_path, *names))
        assert [(Path(item.path).parent.name, item.label) for item in dataset.items] in (
            [("images", None)],
            [("Original", "Original")],
            [("data", None)],
        )
        assert any("left out" in notice for notice in dataset.notices)

    @pytest.mark.parametrize(
        "names",
        [
            ["a/0.png", "a/masks/0_mask.png", "b/1.png"],
            ["a/Data/Images/0.png", "a/Data/Masks/0.png", "b/Data/Images/1.png"],  # VisA
            ["a/Train/0.png", "a/Train/Label/0_label.png", "a/Test/1.png", "b/Train/1.png", "b/Test/2.png"],  # DAGM
        ],
    )
    def test_masks_deep_in_a_class_are_no_pictures_of_it(self, tmp_path: Path, names: list[str]) -> None:
        dataset = discover(in_folder(tmp_path, *names))
        assert not any("ask" in item.path.removeprefix(str(tmp_path)) or "Label" in item.path for item in dataset.items)
        assert {item.label for item in dataset.items} == {"a", "b"}
        assert any("masks or the like" in notice for notice in dataset.notices)

    def test_a_copy_with_a_text_beside_it_is_one_too(self, tmp_path: Path) -> None:
        copied = [f"rps/{label}/{at}.jpg" for label in ("cat", "dog") for at in range(3)]
        dataset = discover(self.classes(tmp_path, *copied, "rps/README.txt"))
        assert {item.label for item in dataset.items} == {"cat", "dog"}
        assert any(notice.startswith("rps/ left out") for notice in dataset.notices)

    def test_a_copy_with_one_class_more_is_refused(self, tmp_path: Path) -> None:
        copied = [f"all/{label}/0.jpg" for label in ("cat", "dog", "fox")]
        with pytest.raises(DatasetError, match=r"has folders twice .*'all', which holds others too"):
            discover(self.classes(tmp_path, *copied))

    def test_a_dataset_beside_a_folder_of_other_pictures_is_said(self, tmp_path: Path) -> None:
        root = in_folder(tmp_path, "dataset/cat/0.jpg", "dataset/dog/1.jpg", "results/plot.png")
        assert any("name" in notice and "dataset as SOURCE" in notice for notice in discover(root).notices)

    @pytest.mark.parametrize(
        "names", [("bounding_box_train", "bounding_box_test", "query"), ("Training", "Testing", "Gallery")]
    )
    def test_flat_splits_beside_another_folder_are_refused(self, tmp_path: Path, names: tuple[str, ...]) -> None:
        root = in_folder(tmp_path, *(f"{name}/{at}.jpg" for name in names for at in range(2)))
        with pytest.raises(DatasetError, match="called as splits") as caught:
            discover(root)
        (expression,) = re.findall("--label-from '(.*)'", str(caught.value))
        assert {item.label for item in discover(root, label_from=expression).items} == set(names)

    @pytest.mark.parametrize("above", ["", "pets/"])
    @pytest.mark.parametrize("splits", [("train", "val"), ("seg_train", "seg_test")])
    def test_an_expression_for_labels_keeps_the_splits_of_folders(
        self, tmp_path: Path, above: str, splits: tuple[str, str]
    ) -> None:
        names = [f"{above}{split}/{label}.{at}.jpg" for split in splits for label in ("cat", "dog") for at in range(2)]
        root = in_folder(tmp_path, *names, f"{above}annotations/a.json")
        dataset = discover(root, label_from=r"([a-z]+)\.\d")
        assert {(item.label, item.split) for item in dataset.items} == {
            (label, split.removeprefix("seg_")) for label in ("cat", "dog") for split in splits
        }

    @pytest.mark.parametrize("cells", [("train", "test", "unused"), ("train", "val", "nan")])
    def test_a_column_of_splits_with_other_words_in_it_is_said(self, tmp_path: Path, cells: tuple[str, ...]) -> None:
        root = in_folder(tmp_path, *(f"{at}.jpg" for at in range(3)))
        rows = "".join(f"{at}.jpg,a{at},{cell}\n" for at, cell in enumerate(cells))
        (root / "l.csv").write_text(f"path,label,subset\n{rows}")
        assert any("the column 'subset' says" in notice for notice in discover(root / "l.csv").notices)
