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
from featcache.errors import DatasetError
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
