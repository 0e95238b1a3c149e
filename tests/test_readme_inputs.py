"""The examples of other people's data, neighbours and heads out of core in the README run, on small files."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from conftest import TINTS, Result, write_picture
from input_kinds import InMemory, as_csv, parquet_pictures, saved, sharded, zipped

README = Path(__file__).parent.parent / "README.md"
SECTION = README.read_text().partition("#### Other people's data\n")[2].partition("\n#### ")[0]
COMMANDS = re.findall(r"^(?:\$ )?featcache (.+)$", SECTION, re.MULTILINE)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Make what the examples name, of eight pictures."""
    pytest.importorskip("pyarrow")
    plain = tmp_path / "hymenoptera"
    for seed, (split, label, name) in enumerate(product(("train", "test"), ("leaf", "sky"), "ab")):
        write_picture(plain / split / label / f"{name}.png", seed, TINTS[label])
    zipped(plain, tmp_path / "hymenoptera.zip")
    sharded(plain, tmp_path / "shards")
    parquet_pictures(plain, tmp_path / "parquet")
    saved(plain, tmp_path / "saved")
    as_csv(plain, tmp_path / "insects.csv", ("file", "species", "fold"))
    return tmp_path


def test_the_commands_extract_one_set_of_pictures_in_six_forms(run: Callable[..., Result], files: Path) -> None:
    import fsspec

    fsspec.filesystem("memory").put(str(files / "hymenoptera"), "/ada/hymenoptera", recursive=True)
    assert len(COMMANDS) == 7
    for command in COMMANDS:
        found = run(*shlex.split(command.replace("s3://", "memory://")))
        assert found.code == 0, found.err
    lines = found.out.splitlines()
    shown = [line.split() for line in SECTION.splitlines()]
    assert [lines[0].split()] == [words for words in shown if words[:2] == ["dataset", "pictures"]]
    assert [line.split()[1:8] for line in lines[2:8]] == [["8", "0", "2", "test", "4,", "train", "4"]] * 6
    (row,) = [line.split() for line in lines if line.startswith("efficientnet_lite0")]
    assert row[4] == "8"
    fsspec.filesystem("memory").rm("/ada", recursive=True)


def shown(heading: str, command: str) -> list[str]:
    """Return the lines that the README shows on stdout for a command below a heading."""
    section = README.read_text().partition(f"### `featcache {heading}")[2].partition("\n### ")[0]
    block = section.partition(f"$ featcache {command}\n")[2].partition("```")[0]
    return [line for line in block.splitlines() if "step/s]" not in line and not line.startswith("featcache: ")]


def labels(lines: Iterable[str]) -> list[str]:
    """Return the words that lines of the form `word   text` begin with."""
    return [line.split()[0] for line in lines if re.match(r"\w+  +\S", line)]


@pytest.mark.slow
def test_a_head_is_fitted_out_of_core_as_shown(run: Callable[..., Result], files: Path) -> None:
    example = shown("fit [", "fit --out-of-core")
    assert run("extract", "hymenoptera", "--backbone", "efficientnet_lite0").code == 0
    found = run("fit", "--out-of-core")
    assert found.code == 0, found.err
    lines = found.out.splitlines()
    assert lines[0].split() == example[0].split()
    assert labels(lines[2:]) == labels(example[2:]) == ["logreg", "dataset", "scored", "backbone", "note", "model"]
    assert "test 4, train 4" in found.out


@pytest.mark.parametrize("index", [False, True])
def test_neighbours_are_found_as_shown(run: Callable[..., Result], files: Path, index: bool) -> None:
    if index:
        pytest.importorskip("faiss")
    command = "neighbors new/10308379_1b6c72e180.jpg -k 6"
    example = shown("neighbors", command)
    (files / "new").mkdir()
    shutil.copy(files / "hymenoptera" / "test" / "sky" / "b.png", files / "new" / "10308379_1b6c72e180.jpg")
    assert run("extract", "hymenoptera", "--backbone", "efficientnet_lite0").code == 0
    found = run(*shlex.split(command), *["--index"] * index)
    assert found.code == 0, found.err
    lines = found.out.splitlines()
    assert lines[0].split() == example[0].split()
    assert lines[2].split() == ["1", "test/sky/b.png", "sky", "test", "1.0000", "same", "file"]
    assert [line.split()[0] for line in lines[3:8]] == ["2", "3", "4", "5", "6"]
    assert labels(lines[9:]) == [*labels(example[9:]), *["note"] * index]


@pytest.mark.slow
def test_the_dataset_in_python_is_extracted(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from featcache.backbones.vision_import import import_torchvision

    def cifar10(root: str, train: bool) -> Any:
        return InMemory(files / "hymenoptera", "train" if train else "test")

    monkeypatch.chdir(files)
    pictures = sorted((files / "hymenoptera" / "train").rglob("*.png"))
    shutil.copytree(files / "hymenoptera" / "train", files / "here" / "train")
    shutil.copytree(files / "hymenoptera" / "test", files / "there" / "val")
    for name, picture in zip(("a.jpg", "b.jpg"), pictures, strict=False):
        shutil.copy(picture, files / name)
    monkeypatch.setattr(import_torchvision().datasets, "CIFAR10", cifar10)
    (code,) = re.findall(r"```python\n(.+?)```", SECTION, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    assert (names["summary"].found, names["summary"].unreadable) == (8, 0)
    assert (names["row"].n_train, names["row"].n_test) == (4, 4)
