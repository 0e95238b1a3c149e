"""Parts of an extraction, on computers that share the cache and not the catalog, beside one extraction of it all."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Result, write_picture

import featcache
import featcache.sources.local
from featcache.store import Cache

Run = Callable[..., Result]

pytestmark = pytest.mark.usefixtures("ready_network")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eleven pictures of two classes, two of one content, and a file that is none; all of them old."""
    root = tmp_path / "imgs"
    for number in range(10):
        write_picture(root / ("a" if number < 5 else "b") / f"{number}.png", number)
    shutil.copy(root / "a" / "0.png", root / "b" / "copy.png")
    (root / "b" / "notes.txt").write_text("no picture")
    for path in root.rglob("*.*"):
        os.utime(path, ns=(10**18, 10**18))
    return root


def rows(cache: Path) -> tuple[list[bytes], np.ndarray]:
    """All keys and vectors of the one fingerprint in a cache, sorted by key."""
    with Cache(cache) as opened:
        (fingerprint,) = opened.fingerprints()
        store = opened.store(fingerprint)
        keys = sorted(key.tobytes() for key in store.keys)
        return keys, store.read(keys)


@pytest.mark.parametrize("own_catalogs", [True, False])
def test_all_shards_make_what_one_extraction_makes_and_nothing_is_read_twice(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_catalogs: bool
) -> None:
    found = []
    for number in range(3):
        if own_catalogs:
            monkeypatch.setenv("FEATCACHE_CATALOG", str(tmp_path / f"{number}.sqlite"))
        part = run("extract", folder, "--shard", f"{number}/3", "--cache", "shared", "--json", network=True).json
        assert part["shard"] == [number, 3]
        found.append(part)
    assert [part["found"] for part in found] == [4, 4, 4]
    assert sum(part["computed"] for part in found) == 10  # the copy is in another shard, and held already
    assert sum(part["unreadable"] for part in found) == 1
    refused = run("fit", "--cache", "shared")
    assert (refused.code, "was not finished" in refused.err) == (1, True)

    monkeypatch.setenv("FEATCACHE_CATALOG", str(tmp_path / "last.sqlite"))
    read, names = featcache.sources.local.read, []
    monkeypatch.setattr(featcache.sources.local, "read", lambda path: names.append(Path(path).name) or read(path))
    whole = run("extract", folder, "--cache", "shared", "--json", network=True).json
    assert (whole["found"], whole["reused"], whole["computed"], whole["duplicates"]) == (12, 10, 0, 1)
    assert names == ["notes.txt"]
    assert not list((tmp_path / "shared" / "shards").iterdir())
    run("extract", folder, "--cache", "alone", network=True)
    keys, vectors = rows(tmp_path / "shared")
    assert keys == rows(tmp_path / "alone")[0]
    np.testing.assert_allclose(vectors, rows(tmp_path / "alone")[1], rtol=1e-5, atol=1e-5)
    assert run("fit", "--cache", "shared").code == 0


def test_what_shards_computed_is_not_unused(run: Run, folder: Path) -> None:
    run("extract", folder, "--shard", "0/2", network=True)
    assert run("cache", "gc", "--dry-run", "--json").json["unused"] == []


def test_a_file_that_changed_after_its_shard_is_read_again(run: Run, folder: Path) -> None:
    for number in range(2):
        run("extract", folder, "--shard", f"{number}/2", network=True)
    write_picture(folder / "a" / "1.png", 77)
    again = run("extract", folder, "--json", network=True).json
    assert (again["reused"], again["computed"]) == (9, 1)


def test_a_broken_note_of_a_shard_costs_reading_only(run: Run, folder: Path, tmp_path: Path) -> None:
    run("extract", folder, "--shard", "0/1", network=True)
    (note,) = (tmp_path / "cache" / "shards").iterdir()
    note.write_bytes(note.read_bytes()[:100])
    (tmp_path / "cache" / "catalog.sqlite").unlink()
    again = run("extract", folder, "--json", network=True)
    assert (again.json["reused"], again.json["computed"]) == (10, 0)
    assert "read again" in again.err


def test_more_shards_than_pictures(run: Run, folder: Path) -> None:
    found = [run("extract", folder, "--shard", f"{number}/30", "--json", network=True) for number in (0, 4, 29)]
    assert [(result.code, result.json["found"]) for result in found] == [(0, 0), (0, 1), (0, 1)]


@pytest.mark.parametrize(
    ("shard", "said"),
    [
        ("3/3", "no shard 3/3"),
        ("0/0", "no shard 0/0"),
        ("1", "as in 0/4"),
        ("-1/3", "as in 0/4"),
        ("a/b", "as in 0/4"),
        ("1/", "as in 0/4"),
    ],
)
def test_out_of_range(run: Run, folder: Path, tmp_path: Path, shard: str, said: str) -> None:
    refused = run("extract", folder, "--shard", shard, network=True)
    assert (refused.code, refused.err.count("\n"), said in refused.err) == (2, 1, True)
    assert not (tmp_path / "cache").exists()


def test_a_check_needs_the_whole_dataset(run: Run, folder: Path) -> None:
    refused = run("extract", folder, "--shard", "0/2", "--check", "--draft", network=True)
    assert (refused.code, "--check" in refused.err) == (2, True)


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_computers_that_share_nothing_but_a_url(run: Run, folder: Path, tmp_path: Path, kind: str) -> None:
    share = f"{kind}://{tmp_path}/share"
    for number, new in enumerate((6, 4)):  # the copy was fetched
        words = ["--shard", f"{number}/2", "--share", share, "--cache", f"computer {number}"]
        assert run("extract", folder, *words, "--json", network=True).json["computed"] == new
    whole = run("extract", folder, "--share", share, "--cache", "third", "--json", network=True).json
    assert (whole["reused"], whole["computed"], whole["duplicates"], whole["unreadable"]) == (10, 0, 1, 1)
    keys, vectors = rows(tmp_path / "third")
    for number in range(2):
        theirs, same = rows(tmp_path / f"computer {number}")
        np.testing.assert_array_equal(vectors[[keys.index(key) for key in theirs]], same)
    again = run("extract", folder, "--share", share, "--cache", "computer 0", "--json", network=True).json
    assert (again["reused"], again["computed"]) == (10, 0)
    assert rows(tmp_path / "computer 0")[0] == keys  # none is there twice


@pytest.mark.parametrize("kind", ["fifo", "link", "endless", "folder"])
def test_what_others_put_into_a_shared_folder_is_no_more_than_files(
    run: Run, folder: Path, tmp_path: Path, kind: str
) -> None:
    words = ["extract", folder, "--share", tmp_path / "share", "--cache", tmp_path / "one"]
    assert run(*words, network=True).code == 0
    (place,) = (tmp_path / "share" / "segments").iterdir()
    odd = place / "seg-00000000000000000001-ffffffff-00000001.h5"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "secret").write_text("of somebody else")
    if kind == "fifo":
        os.mkfifo(odd)
    elif kind == "link":
        odd.symlink_to(tmp_path / "secret")
    elif kind == "endless":
        odd.touch()
        os.truncate(odd, 2**42)
    else:
        place.rename(tmp_path / "aside")
        place.symlink_to(tmp_path / "elsewhere")
    write_picture(folder / "a" / "new.png", 99)
    done = run(*words[:-1], tmp_path / "two", network=True)
    assert done.code == (1 if kind == "folder" else 0)
    assert "Traceback" not in done.err
    assert f"{place} is a link" in done.err if kind == "folder" else f"{odd} is left out" in done.err
    assert not list((tmp_path / "elsewhere").iterdir())
    assert all(b"somebody else" not in path.read_bytes() for path in (tmp_path / "two").rglob("*") if path.is_file())


@pytest.mark.parametrize("text", ["{", "[[1]]", "3", '{"a": 1}'])
def test_what_was_fetched_is_fetched_again_where_its_list_is_broken(
    run: Run, folder: Path, tmp_path: Path, text: str
) -> None:
    words = ["extract", folder, "--share", tmp_path / "share"]
    assert run(*words, network=True).code == 0
    known = next((tmp_path / "cache" / "shares").iterdir())
    known.write_text(text)
    again = run(*words, network=True)
    assert again.code == 0
    assert f"{known} cannot be read" in again.err
    assert f"{known} cannot be read" not in run(*words, network=True).err


def test_what_was_merged_here_is_not_fetched_again(run: Run, folder: Path, tmp_path: Path) -> None:
    share = f"file://{tmp_path}/share"
    for number in range(3):
        run("extract", folder, "--shard", f"{number}/3", "--share", share, network=True)
    run("cache", "compact")
    assert len(list((tmp_path / "share").rglob("seg-*.h5"))) == 3
    run("extract", folder, "--share", share, network=True)
    assert len(rows(tmp_path / "cache")[0]) == 10
    assert len(list((tmp_path / "cache").rglob("seg-*.h5"))) == 1


def test_a_share_that_cannot_be_written_loses_nothing_that_others_need(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    refused = run("extract", folder, "--share", f"file://{tmp_path}/file/share", network=True)
    assert (refused.code, "share" in refused.err, "Traceback" in refused.err) == (1, True, False)
    assert run("extract", folder, "--share", "nothing://at/all", network=True).code == 1
    assert not list((tmp_path / "cache").rglob("seg-*.h5"))


def test_a_share_may_be_a_plain_folder(run: Run, folder: Path, tmp_path: Path) -> None:
    assert run("extract", folder, "--share", "meeting place", network=True).code == 0
    assert len(list((tmp_path / "meeting place").rglob("seg-*.h5"))) == 1


def test_the_commands_of_the_readme_run(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parent.parent / "README.md").read_text()
    (one,) = re.findall(r"^featcache (extract imgs/ .*--shard \S+)", text, re.MULTILINE)
    (last,) = re.findall(r"^featcache (extract imgs/ [^$#]*\S) +# once", text, re.MULTILINE)
    for number in range(2):
        monkeypatch.setenv("SLURM_PROCID", str(number))
        monkeypatch.setenv("SLURM_NTASKS", "2")
        assert run(*shlex.split(os.path.expandvars(one)), network=True).code == 0
    found = run(*shlex.split(last), "--json", network=True)
    assert (found.code, found.json["reused"], found.json["computed"]) == (0, 10, 0)
