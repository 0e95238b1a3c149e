"""What strangers wrote must not end in a run that cannot be read again, and such a run blocks no command for good."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Result, write_picture
from store_rows import commit, make_rows, segment_files

from featcache.errors import UsageError
from featcache.store import Cache, runs

Run = Callable[..., Result]

pytestmark = pytest.mark.usefixtures("ready_network")


def vectors(cache: Path) -> int:
    return len(Cache(cache).store(Cache(cache).fingerprints()[0]).keys)


@pytest.mark.parametrize(
    "line",
    [{"\ud800": "a.png", "label": "a"}, {"path": "a.png", "lab\ud800": "a"}, {"path": "a.png", "label": "\ud800"}],
    ids=["a key for the path", "a key for the label", "a label"],
)
def test_half_a_character_in_a_list_is_refused_and_the_reason_can_be_read_again(
    line: dict[str, str], run: Run, cache: Path, tmp_path: Path
) -> None:
    write_picture(tmp_path / "a.png", 1)
    (tmp_path / "l.jsonl").write_text(json.dumps(line) + "\n")
    run("extract", tmp_path / "l.jsonl", network=True)
    for command in (["cache", "gc", "--dry-run"], ["cache", "verify"], ["runs"]):
        result = run(*command)
        assert (result.code, "cannot be read as a run" in result.err) == (0, False), (command, result.err)


def test_what_is_written_of_a_run_is_what_is_read_again_whatever_texts_are_in_it(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    failed = cache.runs.start("extract", "/photos")
    cache.runs.fail(failed.id, "no column \ud800 \x1b[31m\n in " + "long " * 10**6)
    done = cache.runs.finish(cache.runs.start("extract", "/photos/\udcff"), {"notices": ["\ud83d", "\udcff"]})
    again = {run.id: run for run in Cache(tmp_path / "cache").runs.all()}
    assert len(again) == 2
    assert len(again[failed.id].error or "") < 2100
    assert (again[failed.id].error or "").startswith("no column \\ud800 \\x1b[31m\\n in long")
    assert again[done.id].root == "/photos/\udcff"
    assert again[done.id].summary == {"notices": ["\\ud83d", "\udcff"]}


@pytest.mark.parametrize("root", ["/photos/\ud800", "/" + "\U0001f41d" * 10**6 + "/" + "\U0001f41d" * 10**6])
def test_a_run_that_could_not_be_read_again_is_refused_before_a_number_is_given(root: str, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    with pytest.raises(UsageError, match="cannot be noted as a run"):
        cache.runs.start("extract", root)
    assert not list((tmp_path / "cache").glob("runs/*"))


def test_an_extraction_of_very_many_long_classes_ends_well_and_its_run_is_used(
    run: Run, photos: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "MOST_BYTES", 12_000)
    for at in range(60):
        write_picture(photos / (f"{at // 3:02}" + "\U0001f41d" * 60) / f"{at}.png", 100 + at)
    result = run("extract", photos, "--json", network=True)
    assert (result.code, result.json["computed"], len(result.json["classes"])) == (0, 60, 23)
    assert "is kept without classes" in result.err
    newest = Cache(cache).runs.all()[-1]
    assert (newest.summary or {})["left_out"] == ["classes"]
    assert (newest.summary or {})["found"] == 90
    assert max(path.stat().st_size for path in cache.glob("runs/*.json")) < 12_000
    for command in (["cache", "gc", "--dry-run"], ["cache", "verify"], ["runs"], ["runs", "show", "2"]):
        assert run(*command).code == 0, command
    assert run("fit", "--head", "knn").code == 0


def test_of_a_run_that_is_too_large_only_its_largest_part_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = Cache(tmp_path / "cache")
    summary = {"setting": {"dataset": "d", "unscored": ["c" * 1000] * 20_000}, "rows": [{"head": "knn"}], "seed": 3}
    kept = cache.runs.finish(cache.runs.start("other", "/photos"), summary)
    expected = {"setting": {"dataset": "d", "unscored": []}, "rows": [{"head": "knn"}], "seed": 3}
    assert Cache(tmp_path / "cache").runs.all()[0].summary == {**expected, "left_out": ["setting.unscored"]}
    assert kept.summary == Cache(tmp_path / "cache").runs.all()[0].summary
    assert "it is kept without setting.unscored" in caplog.text


# --- runs that are there and cannot be read ---


def poison(kind: str, path: Path) -> None:
    if kind == "surrogate":
        path.write_text('{"id": 2, "command": "extract", "root": "\\ud800", "fingerprint": "", "started": 1.0}')
    elif kind == "large":
        path.write_bytes(b" " * (runs.MOST_BYTES + 1))
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(2**40)
    elif kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to("/etc/hostname")


@pytest.mark.parametrize("kind", ["surrogate", "large", "sparse", "folder", "fifo", "link"])
def test_repair_puts_a_run_aside_that_cannot_be_read_and_its_vectors_stay_until_it_is_given_up(
    kind: str, run: Run, photos: Path, cache: Path
) -> None:
    store = Cache(cache).store(Cache(cache).fingerprints()[0])
    commit(store, _rows_like(store))  # the vectors of whoever began that run
    place = cache / "runs" / "000002.json"
    poison(kind, place)
    assert run("cache", "gc", "--yes").code == 1
    assert run("cache", "verify").code == 1
    repaired = run("cache", "verify", "--repair")
    assert repaired.code == 0, repaired.err
    assert "could not be read as a run" in repaired.out
    assert str(cache / "bad") in repaired.out
    assert [path.name.split(".")[0] for path in (cache / "bad").iterdir()] == ["000002"]
    assert "name the dataset that is meant" in run("fit").err
    assert run("fit", photos).code == 0
    kept = run("cache", "gc", "--yes")
    assert (kept.code, vectors(cache), "all stay" in kept.out) == (0, 34, True), kept.out
    assert run("cache", "verify").code == 0
    assert run("cache", "gc", "--yes", "--forget", place).code == 0
    assert vectors(cache) == 30
    assert run("fit").code == 0
    assert "all stay" not in run("cache", "gc", "--yes").out


def test_a_run_that_the_system_does_not_give_is_not_put_aside(
    run: Run, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = runs.read_bounded

    def refuse(path: Path, most: int) -> bytes:
        if path.name == "000001.json":
            raise OSError(5, "Input/output error")
        return real(path, most)

    with monkeypatch.context() as patch:
        patch.setattr(runs, "read_bounded", refuse)
        assert run("cache", "verify", "--repair").code == 1
    assert run("cache", "verify").code == 0


def test_the_lost_run_of_a_dataset_in_the_catalog_is_asked_for_and_its_vectors_stay(
    run: Run, photos: Path, cache: Path
) -> None:
    (cache / "runs" / "000001.json").write_text("x")
    assert run("cache", "verify", "--repair").code == 1  # nobody knows with which network it was extracted
    assert run("cache", "gc", "--yes").code == 1
    assert vectors(cache) == 30
    assert run("extract", photos, "--json", network=True).json["reused"] == 30
    assert run("cache", "verify", "--repair").code == 0
    assert run("cache", "gc", "--yes").code == 0
    assert vectors(cache) == 30


def _rows_like(store: object) -> tuple[list[bytes], np.ndarray]:  # type: ignore[type-arg]
    keys, _ = make_rows(0, 4)
    return keys, np.ones((4, 512), np.float32)


# --- shares ---


@pytest.mark.parametrize("kind", ["folder", "fifo", "link", "sparse"])
def test_what_is_no_segment_in_a_share_is_left_out_with_a_warning(
    kind: str, run: Run, photos: Path, tmp_path: Path
) -> None:
    share = tmp_path / "share"
    assert run("extract", photos, "--share", share, "--cache", tmp_path / "one", network=True).code == 0
    (folder,) = share.glob("segments/*")
    poison(kind, folder / "seg-00000000000000000001-aaaaaaaa-00000001.h5")
    result = run("extract", photos, "--json", "--share", share, "--cache", tmp_path / "two", network=True)
    assert (result.code, result.json["reused"]) == (0, 30), result.err
    assert "seg-00000000000000000001-aaaaaaaa-00000001.h5 is left out: it " in result.err
    assert len(segment_files(next((tmp_path / "two").glob("segments/*")))) == 1
