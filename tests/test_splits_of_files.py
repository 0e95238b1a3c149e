"""The splits that names of shards and tables say: taken where they are clear, and said where they are not plain."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from input_kinds import member

from featcache.discover import discover
from featcache.errors import DatasetError
from featcache.records import Dataset


def shard(path: Path) -> None:
    """Write one sample; what is in its picture is not looked at here."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        member(archive, "1.jpg", b"picture")
        member(archive, "1.cls", b"ant")


def table(path: Path, **more: Any) -> None:
    """Write one row with a picture, as Parquet or as `datasets` does in its cache."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    rows = pa.table({"image": [b"picture"], "label": ["ant"], **more})
    if path.suffix == ".parquet":
        pq.write_table(rows, path)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, rows.schema) as out:
            out.write_table(rows)


KINDS: dict[str, Callable[[Path], None]] = {".tar": shard, ".parquet": table, ".arrow": table}


def made(root: Path, names: str, kind: str) -> Dataset:
    """Return the dataset of a folder of such files."""
    for name in names.split():
        KINDS[kind](root / f"{name}{kind}")
    return discover(root)


def splits(found: Dataset, root: Path) -> dict[str, str | None]:
    """Return the split of each file, without its ending."""
    names = [item.path.rpartition("::")[2].removeprefix(f"{root}/").rpartition(".")[0] for item in found.items]
    return {name: item.split for name, item in zip(names, found.items, strict=True)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "names",
    [
        {"imagenet1k-train-0000": "train", "imagenet1k-validation-00": "val"},
        {"wds_train_0": "train", "wds_test_0": "test"},
        {"training/0": "train", "testing/0": "test"},
        {"cifar10-train": "train", "cifar10-test": "test"},
        {"default/partial-train/0000": "train", "default/partial-test/0000": "test"},
        {"fold0_train": "train", "fold0_val": "val"},
        {"TrainImages0": "train", "DevImages0": "val", "EvalImages0": "test"},
        {"a/x_train": "train", "b/x_train": "train"},
    ],
    ids=" ".join,
)
def test_a_split_anywhere_in_the_name_is_taken_and_said(names: dict[str, str], kind: str, tmp_path: Path) -> None:
    found = made(tmp_path, " ".join(names), kind)
    assert splits(found, tmp_path) == names
    if kind == ".arrow" and "cifar10-test" in names:  # how `datasets` itself calls them
        assert found.notices == ()
        return
    (said,) = found.notices
    assert said.startswith("splits from the names of the files: ")
    for name, split in names.items():
        assert f"{name}{kind} as {split}" in said or name == "b/x_train"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "names",
    [
        {"train-0001": "train", "val-0001": "val"},
        {"data/train-00000-of-00001": "train", "data/test-00000-of-00001-0a1b": "test"},
        {"test_images-train-00000-of-00002": "train", "test_images-validation-00000-of-00001": "val"},
        {"train/0": "train", "holdout/0": "holdout"},
        {"0": None, "1": None},
        {"part-00000": None, "part-00001": None},
    ],
    ids=" ".join,
)
def test_names_that_are_plain_need_no_word(names: dict[str, str | None], kind: str, tmp_path: Path) -> None:
    found = made(tmp_path, " ".join(names), kind)
    assert (splits(found, tmp_path), found.notices) == (names, ())


@pytest.mark.parametrize(
    ("names", "expected", "said"),
    [
        ("train-0 extra-0", ["train", None], "the pictures in 1 file (extra-0.tar) are in no split: the name says"),
        ("x_train x_test x_more", ["train", "test", None], "the pictures in 1 file (x_more.tar) are in no split"),
        (
            "train-test-0 0",
            [None, None],
            "the pictures in 1 file (train-test-0.tar) are in no split: the name says none",
        ),
        ("val-0 test-0", ["val", "test"], "no file's name says train, but only "),
        ("planes cars trains", [None, None, None], "(trains.tar) are not taken, since cars.tar says none: to have"),
        (
            "birds_eval_0 birds_eval_1",
            [None, None],
            "(birds_eval_0.tar, birds_eval_1.tar) are not taken, since none says",
        ),
        ("val/train-0 val/val-0", ["train", "val"], "val/train-0.tar as train"),
    ],
)
def test_what_is_not_clear_is_said(names: str, expected: list[str | None], said: str, tmp_path: Path) -> None:
    found = made(tmp_path, names, ".tar")
    assert splits(found, tmp_path) == dict(zip(names.split(), expected, strict=True))
    assert any(said in notice for notice in found.notices), found.notices


def test_a_column_of_splits_counts_more_than_the_names_of_the_tables(tmp_path: Path) -> None:
    table(tmp_path / "x_train_birds.parquet", split=["test"])
    table(tmp_path / "x_test_birds.parquet", split=["train"])
    found = discover(tmp_path)
    assert splits(found, tmp_path) == {"x_test_birds": "train", "x_train_birds": "test"}
    assert found.notices == ()


def test_splits_of_a_saved_dataset_in_other_words_are_taken_and_said(tmp_path: Path) -> None:
    names = ["training", "testing", "unsupervised", "validation", "dev"]
    for name in names:
        table(tmp_path / name / "0.arrow")
        (tmp_path / name / "state.json").write_text(json.dumps({"_data_files": [{"filename": "0.arrow"}]}))
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": names}))
    found = discover(tmp_path)
    assert splits(found, tmp_path) == {"training/0": "train", "testing/0": "test", "validation/0": "val"}
    assert found.notices == (
        "the split 'training' is taken as train",
        "the split 'testing' is taken as test",
        "the split 'unsupervised' left out",
        "the split 'dev' left out",
    )


def test_shards_of_one_split_may_be_given_as_that_split(tmp_path: Path) -> None:
    for name in ("one/x_train_0", "other/test-0"):
        shard(tmp_path / f"{name}.tar")
    found = discover({"train": tmp_path / "one", "test": tmp_path / "other"})
    assert [item.split for item in found.items] == ["train", "test"]
    with pytest.raises(DatasetError, match="has splits of its own, and is given as 'train'"):
        discover({"train": tmp_path / "other"})
