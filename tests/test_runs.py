"""Runs and made splits: kept a file each, so that they outlive the catalog."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from store_rows import run_python

from featcache.errors import CacheError, CacheWriteError
from featcache.store import Cache, Run, Runs, Splits

ODD = os.fsdecode(b"/photos/\xff\n\xe2\x98\x83")
KEY, OTHER_KEY = b"k" * 32, b"o" * 32


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path / "runs")


def test_the_last_run_of_a_command_is_returned_finished_or_not(runs: Runs) -> None:
    assert runs.last("extract") is None
    first = runs.start("extract", ODD, "f" * 64)
    runs.finish(first, {"found": 3, "name": ODD})
    last = runs.last("extract")
    assert last is not None
    assert (last.id, last.command, last.root, last.fingerprint) == (first.id, "extract", ODD, "f" * 64)
    assert last.summary == {"found": 3, "name": ODD}
    assert last.finished is not None
    assert last.finished >= last.started == first.started
    second = runs.start("extract", "root", "e" * 64)
    third = runs.start("fit", "root", "e" * 64)
    assert runs.last("extract") == second
    assert runs.last("extract", "fit") == third
    assert second.summary is None
    assert [run.id for run in runs.all()] == [first.id, second.id, third.id]


CLAIM = """
import sys
from pathlib import Path
from featcache.store import Runs

runs = Runs(Path(sys.argv[1]))
print(*(runs.start("fit", sys.argv[2]).id for _ in range(30)))
"""


def test_two_processes_never_get_the_same_number(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as executor:
        printed = list(executor.map(lambda name: run_python(CLAIM, tmp_path / "runs", name), "ab"))
    ours, theirs = ({int(number) for number in line.split()} for line in printed)
    assert ours | theirs == set(range(1, 61))
    assert {run.id for run in Runs(tmp_path / "runs").all() if run.root == "a"} == ours


@pytest.mark.parametrize(("content", "said"), [("", False), ("{", True), ("[]", True), ('{"id": 1}', True)])
def test_a_broken_run_is_left_out_with_a_warning(
    runs: Runs, tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str, said: bool
) -> None:
    whole = runs.start("extract", "root")
    (tmp_path / "runs" / "000002.json").write_text(content)
    assert runs.all() == [whole]
    assert ("000002.json" in caplog.text) == said
    assert runs.start("fit", "root").id == 3


def test_a_run_is_plain_json(runs: Runs, tmp_path: Path) -> None:
    runs.finish(runs.start("extract", ODD, "f" * 64), {"found": 1})
    content = json.loads((tmp_path / "runs" / "000001.json").read_text())
    assert (content["root"], content["summary"]) == (ODD, {"found": 1})
    assert len(content.pop("sha256")) == 64
    assert Run(**content) == runs.all()[0]


def test_a_run_that_cannot_be_noted_is_a_clear_error(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CacheWriteError, match="no room for"):
        runs.start("extract", "root")


def test_a_split_is_kept_for_its_dataset_and_seed(tmp_path: Path) -> None:
    splits = Splits(tmp_path)
    splits.keep(ODD, 1, {KEY: "train"})
    splits.keep(ODD, 1, {OTHER_KEY: "test"})
    splits.keep(ODD, 2, {KEY: "test"})
    assert splits.kept(ODD, 1) == {KEY: "train", OTHER_KEY: "test"}
    assert splits.kept(ODD, 2) == {KEY: "test"}
    assert splits.kept(ODD, 3) == splits.kept("elsewhere", 1) == {}


def test_nothing_to_keep_writes_nothing(tmp_path: Path) -> None:
    Splits(tmp_path / "splits").keep("root", 1, {})
    assert list(tmp_path.iterdir()) == []


def cut(text: bytes) -> bytes:
    return text[:-5]


def not_hex(text: bytes) -> bytes:
    return text.replace(KEY.hex().encode(), b"xx")


@pytest.mark.parametrize("damage", [cut, not_hex, lambda _: b"[]", lambda _: b'{"splits": 1}'])
def test_a_broken_split_is_never_taken_for_none(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    splits = Splits(tmp_path)
    splits.keep("root", 1, {KEY: "train"})
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CacheError, match="cannot be read as a split"):
        splits.kept("root", 1)


def test_runs_and_splits_outlive_the_catalog(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Cache(tmp_path / "cache") as cache:
        run = cache.runs.start("extract", "root", "f" * 64)
        cache.splits.keep("root", 0, {KEY: "test"})
    (tmp_path / "cache" / "catalog.sqlite").unlink()
    caplog.clear()
    with Cache(tmp_path / "cache") as cache:
        assert cache.runs.last("extract") == run
        assert cache.splits.kept("root", 0) == {KEY: "test"}
        assert cache.catalog.roots() == {}
    assert "is new: datasets extracted before are not in it" in caplog.text
    caplog.clear()
    Cache(tmp_path / "cache").__exit__(None, None, None)
    assert caplog.text == ""
