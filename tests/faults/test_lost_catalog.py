"""The catalog lost, damaged or newer: no vector is lost, one line says what to do, and a repair brings it back."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import TINTS, Result, write_picture
from store_rows import segment_files

import featcache
from featcache.store import Cache, Row

Run = Callable[..., Result]

pytestmark = pytest.mark.usefixtures("ready_network")

Damage = Callable[[Path], None]

REPAIR = "`featcache cache verify --repair`"


@pytest.fixture(scope="module")
def segments(tmp_path_factory: pytest.TempPathFactory, seeded_weights: Path) -> Path:
    """The segments of the pictures of `photos`, so that the tests need not compute them."""
    folder = tmp_path_factory.mktemp("lost-catalog")
    for at, (label, tint) in enumerate(TINTS.items()):
        for number in range(10):
            write_picture(folder / "photos" / label / f"{number}.png", 100 * at + number, tint)
    options = featcache.Options("resnet18", seeded_weights, folder / "cache")
    assert featcache.extract(folder / "photos", options).computed == 30
    return folder / "cache" / "segments"


@pytest.fixture
def extracted(run: Run, photos: Path, tmp_path: Path, segments: Path) -> Path:
    """The catalog of a cache that `photos` was extracted into, with a copy of a picture and a file that is none."""
    shutil.copy(photos / "sky" / "1.png", photos / "sky" / "copy.png")
    (photos / "leaf" / "notes.txt").write_text("not a picture")
    for path in photos.rglob("*.*"):
        os.utime(path, (10**9, 10**9))
    shutil.copytree(segments, tmp_path / "cache" / "segments")
    summary = run("extract", photos, "--json", network=True).json
    assert (summary["computed"], summary["duplicates"], summary["unreadable"]) == (0, 1, 1)
    return tmp_path / "cache" / "catalog.sqlite"


def rows(catalog: Path) -> dict[str, list[Row]]:
    with Cache(catalog.parent) as cache:
        return {root: cache.catalog.dataset(root) for root in cache.catalog.roots()}


def bad(catalog: Path) -> list[Path]:
    return sorted((catalog.parent / "bad").glob("*"))


def fails_in_one_line(result: Result) -> bool:
    """Tell whether a command printed one line and no result; a bar of progress may stand before it."""
    lines = [line for line in result.err.splitlines() if "img/s]" not in line and line]
    return (result.code, result.out, len(lines)) == (1, "", 1) and lines[0].startswith("featcache: ")


def deleted(catalog: Path) -> None:
    catalog.unlink()


def emptied(catalog: Path) -> None:
    os.truncate(catalog, 0)


def cut_in_the_header(catalog: Path) -> None:
    os.truncate(catalog, 50)


def halved(catalog: Path) -> None:
    os.truncate(catalog, catalog.stat().st_size // 2)


def cut_after_the_first_page(catalog: Path) -> None:
    os.truncate(catalog, 4096)


def garbage(catalog: Path) -> None:
    catalog.write_bytes(b"garbage " * 2000)


def garbage_after_the_header(catalog: Path) -> None:
    catalog.write_bytes(catalog.read_bytes()[:100] + b"garbage " * 2000)


def zeroed_page(catalog: Path) -> None:
    """Zero the first page of the table of items."""
    connection = sqlite3.connect(catalog)
    (number,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'items'").fetchone()
    connection.close()
    zero(catalog, number)


def zero(catalog: Path, number: int) -> None:
    data = bytearray(catalog.read_bytes())
    data[4096 * (number - 1) : 4096 * number] = bytes(4096)
    catalog.write_bytes(data)


LOSSES = [deleted, emptied]
DAMAGES = [cut_in_the_header, halved, cut_after_the_first_page, garbage, garbage_after_the_header, zeroed_page]


def name_of(value: object) -> str | None:
    return getattr(value, "__name__", None)


# What ordinary commands say


@pytest.mark.parametrize("damage", DAMAGES, ids=name_of)
def test_every_command_ends_in_one_line_that_names_the_repair(run: Run, extracted: Path, damage: Damage) -> None:
    damage(extracted)
    content = extracted.read_bytes()
    for words in ("fit", "cache info", "cache verify", "cache gc --yes", "cache export out.npz", "extract photos"):
        result = run(*words.split(), network=words.startswith("extract"))
        assert fails_in_one_line(result), (words, result)
        assert REPAIR in result.err, words
        assert str(extracted) in result.err, words
        assert words.startswith("extract") or extracted.read_bytes() == content, words
    assert bad(extracted) == []


@pytest.mark.parametrize("damage", LOSSES, ids=name_of)
def test_without_a_catalog_fit_and_gc_name_the_repair_and_verify_fails(
    run: Run, photos: Path, extracted: Path, damage: Damage
) -> None:
    damage(extracted)
    for words in ("fit", "cache gc --yes"):
        result = run(*words.split())
        assert (result.code, result.out) == (1, ""), words
        assert REPAIR in result.err.splitlines()[-1], words
    result = run("cache", "verify")
    assert result.code == 1
    said = f"featcache: the pictures of {photos} are not in the catalog {extracted}"
    assert result.err.splitlines()[-1] == said
    assert REPAIR in result.out


@pytest.mark.parametrize("damage", LOSSES, ids=name_of)
def test_after_the_loss_of_the_catalog_extract_computes_nothing(
    run: Run, photos: Path, extracted: Path, damage: Damage
) -> None:
    before = rows(extracted)
    damage(extracted)
    again = run("extract", photos, "--json", network=True).json
    assert (again["computed"], again["reused"], again["duplicates"], again["unreadable"]) == (0, 30, 1, 1)
    assert rows(extracted) == before


def test_a_zeroed_page_anywhere_is_found_by_verify_and_gives_no_other_result(run: Run, extracted: Path) -> None:
    whole = extracted.read_bytes()
    expected = run("fit", "--json").json
    same = ["accuracy", "n_train", "n_test", "split_sizes"]
    failed = 0
    for number in range(2, len(whole) // 4096 + 1):
        extracted.write_bytes(whole)
        zero(extracted, number)
        assert REPAIR in run("cache", "verify").err, number
        result = run("fit", "--json")
        if result.code:
            failed += 1
            assert fails_in_one_line(result), number
            assert REPAIR in result.err, number
        else:
            assert [result.json[name] for name in same] == [expected[name] for name in same], number
    assert failed


def test_a_newer_catalog_is_refused_and_left_alone(run: Run, extracted: Path) -> None:
    connection = sqlite3.connect(extracted)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    content = extracted.read_bytes()
    for words in ("extract photos", "fit", "cache info", "cache verify", "cache gc --yes"):
        result = run(*words.split(), network=words.startswith("extract"))
        assert fails_in_one_line(result), (words, result)
        assert "catalog version 99, this featcache reads" in result.err
        assert f"or put it aside with {REPAIR}" in result.err
    assert extracted.read_bytes() == content
    assert bad(extracted) == []


# The repair


@pytest.mark.parametrize("damage", LOSSES + DAMAGES, ids=name_of)
def test_repair_brings_back_every_row_and_keeps_the_damaged_file(
    run: Run, photos: Path, extracted: Path, damage: Damage
) -> None:
    before = rows(extracted)
    assert [len(found) for found in before.values()] == [32]
    stored = {path.name: path.read_bytes() for path in segment_files(next(extracted.parent.glob("segments/*")))}
    damage(extracted)
    content = None if damage in LOSSES else extracted.read_bytes()
    result = run("cache", "verify", "--repair", "--json")
    assert (result.code, result.json["problems"]) == (0, [])
    assert result.json["repaired"] == [f"{photos} extracted again: 30 reused, 0 computed (resnet18)"]
    assert rows(extracted) == before
    (dataset,) = result.json["datasets"]
    assert (dataset["valid"], dataset["missing"], dataset["stale"], dataset["unreadable"]) == (31, 0, 0, 1)
    after = {path.name: path.read_bytes() for path in segment_files(next(extracted.parent.glob("segments/*")))}
    assert after == stored
    assert [path.read_bytes() for path in bad(extracted)] == ([] if content is None else [content])
    assert all(str(path) in result.err for path in bad(extracted))
    assert run("cache", "verify").code == 0
    assert run("fit").code == 0


def test_a_catalog_that_lies_elsewhere_is_repaired_there(
    run: Run, photos: Path, extracted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = rows(extracted)
    elsewhere = tmp_path / "elsewhere" / "own.sqlite"
    elsewhere.parent.mkdir()
    monkeypatch.setenv("FEATCACHE_CATALOG", str(elsewhere))
    assert run("extract", photos, "--json", network=True).json["computed"] == 0
    garbage(elsewhere)
    untouched = extracted.read_bytes()
    assert str(elsewhere) in run("fit").err
    assert run("cache", "verify", "--repair").code == 0
    with Cache(extracted.parent, elsewhere) as cache:
        assert cache.catalog.dataset(str(photos)) == before[str(photos)]
    (kept,) = elsewhere.parent.glob("own.sqlite.damaged-*")
    assert kept.read_bytes() == b"garbage " * 2000
    assert extracted.read_bytes() == untouched
    assert {path.name for path in elsewhere.parent.iterdir()} == {elsewhere.name, kept.name}
    monkeypatch.delenv("FEATCACHE_CATALOG")
    run("cache", "gc", "--yes", "--forget", photos)
    assert kept.exists()  # for it may be a file of the user's that was named by mistake


def test_gc_keeps_what_another_catalog_of_a_shared_cache_uses(
    run: Run, photos: Path, extracted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaf = photos / "leaf"
    leaf.rename(tmp_path / "leaf")  # on another computer other pictures lie under the same path
    with monkeypatch.context() as patch:
        patch.setenv("FEATCACHE_CATALOG", str(tmp_path / "of-the-other.sqlite"))
        assert run("extract", photos, "--json", network=True).json["found"] == 21
        run("cache", "gc", "--yes")
    (tmp_path / "leaf").rename(leaf)
    result = run("cache", "verify")
    assert result.code == 0, result.err


def test_repair_of_a_sound_cache_changes_nothing(run: Run, extracted: Path) -> None:
    before, content = rows(extracted), extracted.read_bytes()
    result = run("cache", "verify", "--repair", "--json")
    assert (result.code, result.json["repaired"], result.json["problems"]) == (0, [], [])
    assert extracted.read_bytes() == content
    assert rows(extracted) == before


@pytest.fixture
def several(run: Run, photos: Path, extracted: Path, tmp_path: Path) -> dict[str, list[Row]]:
    """The rows of four datasets: a class folder, a flat one, a manifest and, the last, one with splits."""
    flat, split, manifest = tmp_path / "flat", tmp_path / "split", tmp_path / "list.csv"
    shutil.copytree(photos / "sand", flat)
    for name, numbers in {"train": range(6), "valid": range(6, 8), "holdout": range(8, 10)}.items():
        for label in TINTS:
            (split / name / label).mkdir(parents=True)
            for number in numbers:
                shutil.copy(photos / label / f"{number}.png", split / name / label)
    lines = [f"photos/{label}/{n}.png,my {label},{'test' if n > 7 else 'train'}" for label in TINTS for n in range(10)]
    manifest.write_text("\n".join(["path,label,split", *lines]))
    for source in (flat, manifest, split):
        assert run("extract", source, "--json", network=True).json["computed"] == 0
    found = rows(extracted)
    assert list(found) == [str(photos), str(flat), str(manifest), str(split)]
    assert {row.item.split for row in found[str(split)]} == {"train", "val", "holdout"}
    assert {row.item.label for row in found[str(manifest)]} == {"my leaf", "my sky", "my sand"}
    return found


@pytest.mark.parametrize("damage", [deleted, zeroed_page], ids=name_of)
def test_repair_brings_back_every_dataset_and_the_one_last_extracted_stays_so(
    run: Run, extracted: Path, tmp_path: Path, several: dict[str, list[Row]], damage: Damage
) -> None:
    damage(extracted)
    result = run("cache", "verify", "--repair", "--json")
    assert (result.code, len(result.json["repaired"])) == (0, 4)
    assert rows(extracted) == several
    fitted = run("fit", "--json").json
    assert fitted["dataset"] == str(tmp_path / "split")
    assert fitted["split_sizes"] == {"holdout": 6, "train": 18, "val": 6}


def test_a_dataset_whose_folder_is_gone_is_named_and_the_others_are_repaired(
    run: Run, extracted: Path, tmp_path: Path, several: dict[str, list[Row]]
) -> None:
    gone = str(tmp_path / "flat")
    (tmp_path / "flat").rename(tmp_path / "moved")
    deleted(extracted)
    result = run("cache", "verify", "--repair", "--json")
    assert result.code == 1
    assert all(gone in problem for problem in result.json["problems"])
    assert len(result.json["repaired"]) == 3
    assert "cannot be repaired" in result.json["problems"][-1]
    assert f"the pictures of {gone} are not in the catalog" in result.err.splitlines()[-1]
    del several[gone]
    assert rows(extracted) == several
    refused = run("cache", "gc", "--yes")
    assert (refused.code, "--forget" in refused.err) == (1, True)
    assert run("cache", "gc", "--yes", "--forget", gone).code == 0
    assert run("cache", "verify").code == 0
    assert rows(extracted) == several


def test_splits_runs_and_models_survive_the_loss_of_the_catalog(
    run: Run, photos: Path, extracted: Path, tmp_path: Path
) -> None:
    fitted = run("fit", "--json").json
    predicted = run("predict", fitted["model"], photos, "--json").json["predictions"]
    kept = {path: path.read_bytes() for name in ("splits", "models") for path in (tmp_path / "cache" / name).iterdir()}
    with Cache(extracted.parent) as cache:
        runs = cache.runs.all()
    garbage(extracted)
    assert run("cache", "verify", "--repair").code == 0
    assert {path: path.read_bytes() for path in kept} == kept
    with Cache(extracted.parent) as cache:
        assert [(r.id, r.command, r.root) for r in cache.runs.all()] == [(r.id, r.command, r.root) for r in runs]
    assert run("predict", fitted["model"], photos, "--json").json["predictions"] == predicted
    again = run("fit", "--json").json
    assert [again[name] for name in ("accuracy", "n_train", "n_test")] == [
        fitted[name] for name in ("accuracy", "n_train", "n_test")
    ]
    assert run("predict", again["model"], photos, "--json").json["predictions"] == predicted
    assert {path: path.read_bytes() for path in kept} == kept


def test_an_imported_dataset_is_rebuilt_from_its_file(run: Run, photos: Path, extracted: Path, tmp_path: Path) -> None:
    file, other = tmp_path / "out.npz", tmp_path / "other" / "catalog.sqlite"
    assert run("cache", "export", file).code == 0
    assert run("cache", "import", file, "--cache", other.parent).code == 0
    shutil.rmtree(photos)
    before = rows(other)
    assert [len(found) for found in before.values()] == [31]
    accuracy = run("fit", "--cache", other.parent, "--json").json["accuracy"]
    deleted(other)
    result = run("cache", "verify", "--repair", "--cache", other.parent, "--json")
    assert (result.code, result.json["repaired"]) == (0, [f"{file} imported again"])
    assert rows(other) == before
    assert run("fit", "--cache", other.parent, "--json").json["accuracy"] == accuracy
    deleted(other)
    file.unlink()
    result = run("cache", "verify", "--repair", "--cache", other.parent, "--json")
    assert result.code == 1
    assert str(file) in result.json["problems"][0]
    assert f"no such file: {file}" in result.json["problems"][-1]


def test_a_repair_that_was_stopped_is_finished_by_the_next(
    run: Run, extracted: Path, several: dict[str, list[Row]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from featcache.api import checking

    done: list[str] = []
    bring_back = checking._bring_back

    def stopped(*args: object) -> str:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(bring_back(*args))  # type: ignore[arg-type]
        return done[-1]

    garbage(extracted)
    with monkeypatch.context() as patch:
        patch.setattr(checking, "_bring_back", stopped)
        assert run("cache", "verify", "--repair").code == 130
    result = run("cache", "verify", "--repair", "--json")
    assert (result.code, len(result.json["repaired"])) == (0, 2)
    assert rows(extracted) == several
    assert len(bad(extracted)) == 1


def test_vectors_read_after_a_repair_are_the_old_ones_to_the_bit(run: Run, photos: Path, extracted: Path) -> None:
    from featcache.load import load

    def read() -> np.ndarray:
        with Cache(extracted.parent) as cache:
            (fingerprint,) = cache.fingerprints()
            return load(cache.catalog.dataset(str(photos)), cache.store(fingerprint)).X

    before = read()
    assert before.shape == (31, 512)
    garbage(extracted)
    assert run("cache", "verify", "--repair").code == 0
    np.testing.assert_array_equal(read(), before, strict=True)
