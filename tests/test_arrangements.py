"""What folders in folders are, splits or classes: taken, said, or refused with advice that leads on."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Result, write_picture
from test_layouts import in_folder, in_zip

from featcache.discover import discover
from featcache.errors import DatasetError, UsageError
from featcache.records import Dataset

Run = Callable[..., Result]


@pytest.fixture(params=[in_folder, in_zip], ids=["folder", "zip"])
def make(request: pytest.FixtureRequest) -> Callable[..., Path]:
    kind: Callable[..., Path] = request.param
    return kind


def cells(dataset: Dataset) -> dict[tuple[str | None, str | None], int]:
    """How many pictures there are of each label and split."""
    return dict(Counter((item.label, item.split) for item in dataset.items))


def said(dataset: Dataset) -> str:
    return "\n".join(dataset.notices)


def refusal_of(root: Path) -> str:
    with pytest.raises(DatasetError) as refused:
        discover(root)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def expressions(text: str) -> list[str]:
    return re.findall("--label-from '(.*?)'", text)


class TestLinks:
    def test_a_link_to_the_folder_that_it_is_in_is_no_folder(self, tmp_path: Path) -> None:
        root = in_folder(tmp_path, "cat/0.jpg", "cat/1.jpg", "dog/0.jpg")
        (root / "loop").symlink_to(".")
        (root / "cat" / "up").symlink_to(root)
        dataset = discover(root)
        assert Counter(item.label for item in dataset.items) == {"cat": 3, "dog": 1}  # the link counts as a file
        assert "1 file beside the class folders left out: loop" in said(dataset)
        assert cells(discover(root / "loop")) == cells(dataset)

    def test_links_between_two_folders_end(self, tmp_path: Path) -> None:
        root = in_folder(tmp_path, "cat/0.jpg", "dog/0.jpg")
        (root / "cat" / "other").symlink_to(root / "dog")
        (root / "dog" / "other").symlink_to(root / "cat")
        assert Counter(item.label for item in discover(root).items) == {"cat": 3, "dog": 3}


def test_of_a_word_of_a_split_among_classes_another_class_is_named(tmp_path: Path) -> None:
    dataset = discover(in_folder(tmp_path, "dev/0.jpg", "ops/0.jpg"))
    assert cells(dataset) == {("dev", None): 1, ("ops", None): 1}
    assert "'dev' is taken as a class, because 'ops' beside it is no split" in said(dataset)


AB = ("cat", "dog")
SPLITS = ("train", "val")
WITH_SPLITS = {(label, split): 1 for label in AB for split in SPLITS}


class TestFolderAloneWithPicturesBeside:
    @pytest.mark.parametrize("loose", ["confusion_matrix.png", "data/preview.png"])
    def test_a_picture_beside_the_folder_of_all_others_changes_nothing(
        self, tmp_path: Path, make: Callable[..., Path], loose: str
    ) -> None:
        names = [f"data/{split}/{label}/{split}{label}.jpg" for split in SPLITS for label in AB]
        dataset = discover(make(tmp_path, *names, "README.md", loose))
        assert cells(dataset) == WITH_SPLITS
        assert loose.rpartition("/")[2] in said(dataset)

    @pytest.mark.parametrize("above", ["images/", "a/b/", "a/b/c/"])
    def test_classes_in_folders_that_are_alone_but_for_a_picture(
        self, tmp_path: Path, make: Callable[..., Path], above: str
    ) -> None:
        names = [f"{above}{label}/{at}.jpg" for label in AB for at in range(3)]
        dataset = discover(make(tmp_path, *names, f"{above.split('/')[0]}/sample.png", "logo.png"))
        assert cells(dataset) == {("cat", None): 3, ("dog", None): 3}
        assert all(re.search(f"left out: .*{name}", said(dataset)) for name in ("logo.png", "sample.png"))

    def test_a_class_of_mostly_pictures_stays_one(self, tmp_path: Path) -> None:
        root = in_folder(tmp_path, *(f"cat/{at}.jpg" for at in range(5)), "cat/indoors/5.jpg", "cat/outdoors/6.jpg")
        assert cells(discover(root)) == {("cat", None): 7}


class TestWordsOfSplitsBelowClasses:
    @pytest.mark.parametrize(
        "inside",
        [
            {"cat": "Train Val", "dog": "train val"},
            {"cat": "train val", "dog": "train valid"},
            {"cat": "training_set validation", "dog": "train dev"},
            {"cat": "images/train images/val", "dog": "images/train images/val"},
            {"cat": "train/images val/images", "dog": "train val"},
            {"cat": "cat_train cat_val", "dog": "dog_train dog_val"},
        ],
    )
    def test_in_any_spelling_they_are_splits(
        self, tmp_path: Path, make: Callable[..., Path], inside: dict[str, str]
    ) -> None:
        names = [f"{label}/{folder}/0.jpg" for label, folders in inside.items() for folder in folders.split()]
        dataset = discover(make(tmp_path, *names))
        assert cells(dataset) == WITH_SPLITS
        assert "taken as classes, and the folders in each" in said(dataset)

    @pytest.mark.parametrize("rest", ["bird/0.jpg", "cat/raw/0.jpg", "dog/loose.jpg", "dog/train/val/0.jpg"])
    def test_pictures_in_no_split_are_refused_and_the_expression_leaves_them_out(
        self, tmp_path: Path, make: Callable[..., Path], rest: str
    ) -> None:
        names = [f"{label}/{split}/0.jpg" for label in AB for split in SPLITS]
        root = make(tmp_path, *names, rest)
        text = refusal_of(root)
        assert f"the pictures in {rest.rpartition('/')[0]} are in none, or in several" in text
        if rest == "dog/train/val/0.jpg":  # which the expression puts into the outer one
            return
        (expression,) = expressions(text)
        dataset = discover(root, label_from=expression)
        assert cells(dataset) == WITH_SPLITS | {(None, None): 1}

    def test_one_folder_with_splits_beside_others_is_named_as_source(self, tmp_path: Path) -> None:
        names = [f"data/{split}/{label}/{split}.jpg" for split in SPLITS for label in AB]
        root = in_folder(tmp_path, *names, "figures/0.png")
        assert f"name {root / 'data'} as SOURCE" in refusal_of(root)
        assert cells(discover(root / "data")) == WITH_SPLITS

    def test_words_that_are_no_splits_together_are_said(self, tmp_path: Path) -> None:
        dataset = discover(in_folder(tmp_path, "vehicles/train/0.jpg", "vehicles/car/1.jpg", "pets/cat/2.jpg"))
        assert cells(dataset) == {("vehicles", None): 2, ("pets", None): 1}
        assert "(train) are taken as none, since no other split is among them" in said(dataset)
        dataset = discover(
            in_folder(tmp_path / "b", *(f"{label}/{split}/0.jpg" for label in AB for split in SPLITS[1:]))
        )
        assert "(val) are taken as none, since none says train" in said(dataset)
        assert not expressions(said(dataset))

    def test_folders_between_class_and_split_are_said_and_the_expression_keeps_them(self, tmp_path: Path) -> None:
        classes = {"pets": ("cat", "dog"), "plants": ("elm", "oak")}
        names = [
            f"{kind}/{each}/{split}/0.jpg" for kind, inner in classes.items() for each in inner for split in SPLITS
        ]
        root = in_folder(tmp_path, *names)
        dataset = discover(root)
        assert cells(dataset) == {(kind, split): 2 for kind in classes for split in SPLITS}
        (expression,) = expressions(said(dataset))
        inner = discover(root, label_from=expression)
        assert cells(inner) == {(label, split): 1 for label in ("cat", "dog", "elm", "oak") for split in SPLITS}

    def test_letters_that_classes_of_splits_begin_with_are_passed_through(self, tmp_path: Path) -> None:
        names = [f"{label[0]}/{label}/{split}/0.jpg" for label in AB for split in SPLITS]
        assert cells(discover(in_folder(tmp_path, *names))) == WITH_SPLITS

    def test_objects_with_masks_side_by_side_have_an_expression_that_keeps_the_splits(self, tmp_path: Path) -> None:
        inside = ["train/good/0.png", "test/good/1.png", "test/bad/2.png", "ground_truth/bad/2_mask.png"]  # MVTec AD
        root = in_folder(tmp_path, *(f"{name}/{each}" for name in ("bottle", "cable") for each in inside))
        text = refusal_of(root)
        assert f"name one as SOURCE, as {root / 'bottle'}" in text
        (expression,) = expressions(text)
        assert cells(discover(root, label_from=expression)) == {
            ("bottle", "train"): 1,
            ("bottle", "test"): 2,
            ("cable", "train"): 1,
            ("cable", "test"): 2,
            (None, None): 2,
        }


class TestExpressionsKeepSplits:
    @pytest.mark.parametrize("above", ["", "data/"])
    @pytest.mark.parametrize("splits", [SPLITS, ("seg_train", "seg_val")])
    def test_folders_called_as_splits_give_them_in_a_mixture_too(
        self, tmp_path: Path, make: Callable[..., Path], above: str, splits: tuple[str, str]
    ) -> None:
        names = [f"{above}{split}/{label}/0.jpg" for split in splits for label in AB]
        dataset = discover(make(tmp_path, *names, "figures/0.png"), label_from="([^/]+)/[^/]+$")
        assert cells(dataset) == WITH_SPLITS | {("figures", None): 1}
        assert "1 picture in no folder called as a split, or in several, as figures/0.png" in said(dataset)

    def test_what_is_advised_for_pictures_without_a_split_leaves_them_out(self, tmp_path: Path) -> None:
        names = [f"{split}/{label}/0.jpg" for split in SPLITS for label in AB]
        root = in_folder(tmp_path, *names, "ood/x/0.png")
        (split,) = re.findall(r"with (\(\?P<split>\S+)", said(discover(root, label_from="([^/]+)/[^/]+$")))
        assert cells(discover(root, label_from=f"{split}([^/]+)/")) == WITH_SPLITS | {(None, None): 1}

    def test_that_test_and_train_are_taken_together_is_said(self, tmp_path: Path) -> None:
        names = [f"{split}/{label}/0.jpg" for split in ("trainval", "test") for label in AB]
        root = in_folder(tmp_path, *names)
        dataset = discover(root, label_from=expressions(refusal_of(root))[0])
        assert cells(dataset) == {("cat", None): 2, ("dog", None): 2}
        assert (
            "(test) are taken as none, since none says train: their pictures and the others are taken together"
            in said(dataset)
        )

    def test_an_expression_for_the_split_alone_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="has no group: put what is the label"):
            discover(in_folder(tmp_path, "train/0.jpg"), label_from="^(?P<split>train)/")

    def test_a_folder_that_is_the_label_is_no_split(self, tmp_path: Path) -> None:
        root = in_folder(tmp_path, *(f"{name}/0.jpg" for name in ("Training", "Testing", "Gallery")))
        dataset = discover(root, label_from="([^/]+)/[^/]+$")
        assert cells(dataset) == {("Training", None): 1, ("Testing", None): 1, ("Gallery", None): 1}


class TestListedPictures:
    @pytest.mark.parametrize("splits", [("seg_train", "seg_val"), ("training", "validation"), ("train1", "dev")])
    def test_in_folders_called_as_splits_they_have_these(
        self, tmp_path: Path, make: Callable[..., Path], splits: tuple[str, str]
    ) -> None:
        names = [f"{split}/{label}{split}.jpg" for split in splits for label in AB]
        root = in_folder(tmp_path, *names, *(["extra/0.jpg"] if "dev" in splits else []))
        rows = "".join(f"{name},{label}\n" for name in names for label in AB if f"/{label}" in name)
        (root / "labels.csv").write_text(f"path,label\n{rows}" + ("extra/0.jpg,cat\n" if "dev" in splits else ""))
        dataset = discover(root)
        assert "splits from the folders that the pictures are in" in dataset.notices
        if "dev" in splits:
            assert cells(dataset) == WITH_SPLITS | {("cat", None): 1}
            assert "1 picture in no such folder, or in several, as extra/0.jpg" in said(dataset)
        else:
            assert cells(dataset) == WITH_SPLITS
        assert "folders for train, val, and it says no splits" in said(discover(root / "labels.csv"))

    def test_without_train_it_is_said_that_they_have_none(self, tmp_path: Path) -> None:
        root = in_folder(tmp_path, "a/0.jpg", "test/1.jpg")
        (root / "labels.csv").write_text("path,label\na/0.jpg,cat\ntest/1.jpg,dog\n")
        dataset = discover(root)
        assert cells(dataset) == {("cat", None): 1, ("dog", None): 1}
        assert "folders called as splits (test) are taken as none, since none says train" in said(dataset)


class TestFoldersBetweenSplitAndClass:
    @pytest.mark.parametrize("both", [False, True])
    def test_one_that_holds_all_of_a_split_is_passed_through(
        self, tmp_path: Path, make: Callable[..., Path], both: bool
    ) -> None:
        names = [
            f"{split}/{'data/' if split == 'train' or both else ''}{label}/0.jpg" for split in SPLITS for label in AB
        ]
        dataset = discover(make(tmp_path, *names))
        assert cells(dataset) == WITH_SPLITS
        assert "in train/ the folder 'data', which holds all in it, is passed through" in said(dataset)

    @pytest.mark.parametrize("above", ["", "set/"])
    @pytest.mark.parametrize("parts", [("part1", "part2"), ("labeled",), tuple(f"p{at}" for at in range(12))])
    def test_several_in_one_split_alone_are_refused_and_the_expression_finds_the_classes(
        self, tmp_path: Path, make: Callable[..., Path], above: str, parts: tuple[str, ...]
    ) -> None:
        names = [f"{above}train/{part}/{label}/0.jpg" for part in parts for label in AB]
        names += [f"{above}val/{label}/0.jpg" for label in AB]
        flat = [f"{above}train/unlabeled/0.jpg"] if parts == ("labeled",) else []
        root = make(tmp_path, *names, *flat)
        text = refusal_of(root)
        assert f"in train/ {parts[0]}" in text
        (expression,) = expressions(text)
        there = cells(discover(root, label_from=expression))
        assert there == {
            **{(label, "train"): len(parts) for label in AB},
            **{(label, "val"): 1 for label in AB},
            **({(None, "train"): 1} if flat else {}),
        }

    def test_a_class_alone_in_a_split_with_folders_of_its_own_stays_one(self, tmp_path: Path) -> None:
        train = [f"train/{label}/{view}/0.jpg" for label in AB for view in ("near", "far")]
        dataset = discover(in_folder(tmp_path, *train, "val/cat/near/0.jpg", "val/cat/far/0.jpg"))
        assert cells(dataset) == {("cat", "train"): 2, ("dog", "train"): 2, ("cat", "val"): 2}

    def test_classes_that_train_lacks_are_all_named_with_what_to_do(self, tmp_path: Path, run: Run) -> None:
        names = ("train/cat", "train/dog", "test/cats", "test/dogs")
        for seed in range(12):
            write_picture(tmp_path / "d" / names[seed % 4] / f"{seed}.png", seed)
        assert run("extract", tmp_path / "d", network=True).code == 0
        done = run("fit", tmp_path / "d")
        assert done.code != 0
        assert "classes 'cats', 'dogs' are in test but not in train, which holds 'cat', 'dog'" in done.err
        assert "call a class alike in all splits" in done.err
