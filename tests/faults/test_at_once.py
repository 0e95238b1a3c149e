"""Commands at once, moved caches and moved clocks: each command works on what it was asked for, and nothing is lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import TINTS, Result, write_picture

import featcache
from featcache.discover import discover
from featcache.errors import CacheError, CatalogError
from featcache.records import Item
from featcache.store import Cache, Catalog, Row

Run = Callable[..., Result]

COMMAND = "import sys; from featcache.cli import main; sys.exit(main())"

KILLED_AT_ITS_END = """
import os, signal, sys
from featcache.cli import main
from featcache.store.runs import Runs
Runs.finish = lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL)
sys.exit(main())
"""


def started(folder: Path, *args: str | Path, **environment: str) -> subprocess.Popen[str]:
    """Start `featcache ARGS...` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *map(str, args)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def done(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


@pytest.fixture
def sets(tmp_path: Path) -> dict[str, Path]:
    """Three folders of pictures that have nothing in common."""
    found = {}
    for at, name in enumerate("ABC"):
        for number, (label, tint) in enumerate(TINTS.items()):
            for each in range(6):
                write_picture(tmp_path / name / label / f"{each}.png", 1000 * at + 100 * number + each, tint)
        found[name] = tmp_path / name
    return found


def with_network(seeded_weights: Path, *args: str | Path) -> list[str | Path]:
    return [*args, "--backbone", "resnet18", "--weights", seeded_weights]


# --- the dataset that was asked for ---


def extract_after_each(monkeypatch: pytest.MonkeyPatch, source: Path, options: featcache.Options) -> None:
    """Put another extraction between a command's own and what the command does with it."""
    from featcache.api import experiment

    real = experiment.extract_in_hand

    def extract_and_more(*args: object, **kwargs: object) -> object:
        found = real(*args, **kwargs)  # type: ignore[arg-type]
        featcache.extract(source, options)
        return found

    monkeypatch.setattr(experiment, "extract_in_hand", extract_and_more)


def test_a_command_keeps_to_its_dataset_while_another_is_extracted(
    sets: dict[str, Path], seeded_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = featcache.Options(backbone="resnet18", weights=seeded_weights, cache=tmp_path / "cache")
    extract_after_each(monkeypatch, sets["B"], options)
    said = [
        featcache.fit(sets["A"], head="centroid", options=options).dataset,
        featcache.compare(sets["A"], ("centroid",), n_seeds=1, options=options).setting.dataset,
        featcache.bench(sets["A"], ("centroid",), per_class=(2,), n_seeds=1, options=options).setting.dataset,
        featcache.confusions(sets["A"], head="centroid", heads=("centroid",), options=options).setting.dataset,
    ]
    assert said == [str(sets["A"])] * 4
    assert {*featcache.load_features(sets["A"], options).paths} == {item.path for item in discover(sets["A"]).items}


@pytest.mark.parametrize("out_of_core", [False, True])
def test_a_command_keeps_to_its_labels_while_the_folder_is_extracted_with_others(
    sets: dict[str, Path], seeded_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out_of_core: bool
) -> None:
    options = featcache.Options(backbone="resnet18", weights=seeded_weights, cache=tmp_path / "cache")
    extract_after_each(monkeypatch, sets["A"], replace(options, label_from="([02468])[.]png$"))
    kept = replace(options, label_from=f"({'|'.join(TINTS)})/")
    expected = {item.label for item in discover(sets["A"]).items}
    assert featcache.fit(sets["A"], head="logreg", options=kept, out_of_core=out_of_core).n_classes == len(expected)
    assert {*featcache.load_features(sets["A"], kept).y} == expected


@pytest.mark.parametrize("command", ["export", "neighbors", "audit", "report"])
def test_an_extraction_with_other_labels_that_was_killed_at_its_end_is_not_taken_for_the_one_before(
    sets: dict[str, Path], seeded_weights: Path, tmp_path: Path, run: Run, command: str
) -> None:
    """Its pictures are in the catalog, and its run is not finished."""
    options = featcache.Options(backbone="resnet18", weights=seeded_weights, cache=tmp_path / "cache")
    featcache.extract(sets["A"], options)
    killed = subprocess.run(
        [
            *(sys.executable, "-c", KILLED_AT_ITS_END, "extract", sets["A"], "--label-from", "([02468])[.]png$"),
            *("--backbone", "resnet18", "--weights", seeded_weights, "--cache", tmp_path / "cache"),
        ],
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    words: dict[str, list[str | Path]] = {
        "export": ["cache", "export", tmp_path / "out.npz", "--dataset", sets["A"]],
        "neighbors": ["neighbors", next(sets["A"].glob("*/*.png")), "--dataset", sets["A"]],
        "audit": ["audit", sets["A"]],
        "report": ["report", sets["A"], "--out", tmp_path / "out.html"],
    }
    result = run(*words[command], "--cache", tmp_path / "cache")
    assert result.code == 1
    assert "than its last finished extraction saved" in result.err
    assert not list(tmp_path.glob("out.*"))


@pytest.mark.parametrize("command", [["fit"], ["compare"], ["bench"], ["confusions"], ["cache", "export", "out.npz"]])
def test_a_catalog_put_back_from_a_copy_is_not_taken_for_what_the_last_extraction_saved(
    sets: dict[str, Path], seeded_weights: Path, tmp_path: Path, run: Run, command: list[str]
) -> None:
    options = featcache.Options(backbone="resnet18", weights=seeded_weights, cache=tmp_path / "cache")
    featcache.extract(sets["A"], options)
    shutil.copy(tmp_path / "cache" / "catalog.sqlite", tmp_path / "copy")
    featcache.extract(sets["A"], replace(options, label_from="([02468])[.]png$"))
    shutil.copy(tmp_path / "copy", tmp_path / "cache" / "catalog.sqlite")
    result = run(*command, "--cache", tmp_path / "cache")
    assert result.code == 1
    assert "than its last finished extraction saved" in result.err


def test_two_extractions_of_one_folder_count_in_the_order_of_their_ends(
    sets: dict[str, Path], seeded_weights: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first to begin ends last, and has seen a picture less."""
    from featcache.api import extraction

    options = featcache.Options(backbone="resnet18", weights=seeded_weights, cache=tmp_path / "cache")
    featcache.extract(sets["A"], options)
    real, inner = extraction._works, []

    def slow(*args: object, **kwargs: object) -> object:
        found = real(*args, **kwargs)  # type: ignore[arg-type]
        if not inner:
            inner.append(True)
            write_picture(sets["A"] / "sky" / "late.png", 7)
            featcache.extract(sets["A"], options)
        return found

    monkeypatch.setattr(extraction, "_works", slow)
    featcache.extract(sets["A"], options)
    verified = run("cache", "verify", "--json")
    assert (verified.code, verified.json["problems"]) == (0, [])
    assert run("cache", "gc", "--dry-run").code == 0
    assert run("fit", "--head", "centroid", "--json").json["dataset"] == str(sets["A"])
    assert run("extract", sets["A"], "--json", network=True).json["computed"] == 0
    assert run("cache", "gc", "--yes", "--json").json["unused"] == []


def test_a_catalog_put_back_is_still_found_out(tmp_path: Path) -> None:
    from featcache.api.agreement import is_behind

    with Cache(tmp_path / "cache") as cache:
        rows = [Row(Item("a.png", "a", None), bytes(32), None)]
        runs = []
        for number in range(3):
            runs.append(cache.runs.start("extract", "root", "f" * 64))
            cache.catalog.save_dataset("root", rows, runs[-1].id)
            cache.runs.finish(runs[-1], {"dataset": "root"})
            if number == 1:
                shutil.copy(cache.catalog_path, tmp_path / "kept.sqlite")
        assert not is_behind(cache, "root", cache.runs.all())
    shutil.copy(tmp_path / "kept.sqlite", tmp_path / "cache" / "catalog.sqlite")
    with Cache(tmp_path / "cache") as cache:
        assert is_behind(cache, "root", cache.runs.all())


def test_a_killed_command_does_not_hide_what_was_extracted_before(
    sets: dict[str, Path], seeded_weights: Path, tmp_path: Path, run: Run
) -> None:
    assert run("extract", sets["A"], network=True).code == 0
    with Cache(tmp_path / "cache") as cache:
        (before,) = cache.runs.all()
        cache.runs.begin(cache.runs.start("extract", before.root), before.root, before.fingerprint)  # and killed
    picture = sets["A"] / "sky" / "0.png"
    assert run("cache", "export", tmp_path / "x.npz", "--dataset", sets["A"]).code == 0
    result = run("neighbors", picture, "--dataset", sets["A"])
    assert result.code == 0, result.err
    assert "what was extracted before is used" in result.err


@pytest.mark.slow
def test_threads_each_get_their_own_answer(sets: dict[str, Path], seeded_weights: Path, tmp_path: Path) -> None:
    options = featcache.Options(backbone="resnet18", weights=seeded_weights, cache=tmp_path / "cache")
    for folder in sets.values():
        featcache.extract(folder, options)
    wrong: list[object] = []

    def ask(folder: Path) -> None:
        for _ in range(2):
            loaded = featcache.load_features(folder, options)
            fitted = featcache.fit(folder, head="centroid", options=options)
            if not all(path.startswith(f"{folder}/") for path in loaded.paths) or fitted.dataset != str(folder):
                wrong.append((folder, fitted.dataset))

    threads = [threading.Thread(target=ask, args=(folder,)) for folder in sets.values()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


def test_a_catalog_that_another_holds_for_long_is_said_to_be_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featcache.store.catalog.PATIENCE", 0.2)
    catalog = Catalog(tmp_path / "catalog.sqlite")
    other = sqlite3.connect(tmp_path / "catalog.sqlite")
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(CacheError, match=r"another command has written to the catalog .* for more than 0.2 seconds"):
        catalog.forget("root")
    other.close()
    catalog.forget("root")


# --- caches that move ---


def test_a_cache_that_is_moved_away_is_not_made_a_second_time(
    sets: dict[str, Path], seeded_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featcache.api import pipeline

    options = featcache.Options(backbone="resnet18", weights=seeded_weights, cache=tmp_path / "cache")
    real = pipeline.Reader.read_all

    def moving(self: object, paths: list[str]) -> Iterator[object]:
        (tmp_path / "cache").rename(tmp_path / "elsewhere")
        yield from real(self, paths)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.Reader, "read_all", moving)
        with pytest.raises(CacheError, match=r"is gone, was it moved or deleted meanwhile\?|was moved or replaced"):
            featcache.extract(sets["A"], options)
    assert not (tmp_path / "cache").exists()
    there = featcache.Options(backbone="resnet18", weights=seeded_weights, cache=tmp_path / "elsewhere")
    assert featcache.extract(sets["A"], there).unreadable == 0


@pytest.mark.slow
@pytest.mark.parametrize("how", ["moved", "copied", "restored"])
def test_a_cache_elsewhere_has_all_that_it_had(
    how: str, sets: dict[str, Path], seeded_weights: Path, tmp_path: Path
) -> None:
    options = featcache.Options(backbone="resnet18", weights=seeded_weights, cache=tmp_path / "cache")
    featcache.extract(sets["A"], options)
    before = featcache.fit(sets["A"], head="centroid", options=options)
    other = tmp_path / "other"
    if how == "moved":
        (tmp_path / "cache").rename(other)
    else:
        shutil.copytree(tmp_path / "cache", other)
    if how == "restored":
        featcache.extract(sets["B"], options)
        shutil.rmtree(tmp_path / "cache")
        other.rename(tmp_path / "cache")
        other = tmp_path / "cache"
    there = featcache.Options(cache=other)
    assert featcache.fit(sets["A"], head="centroid", options=there).accuracy == before.accuracy
    extracted = featcache.extract(
        sets["A"], featcache.Options(backbone="resnet18", weights=seeded_weights, cache=other)
    )
    assert extracted.computed == 0
    assert featcache.cache_verify(options=there).problems == ()


def test_a_catalog_that_is_replaced_under_a_command_is_said(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "catalog.sqlite")
    Catalog(tmp_path / "new.sqlite").close()
    (tmp_path / "new.sqlite").rename(tmp_path / "catalog.sqlite")
    with pytest.raises(CatalogError, match="was moved or replaced while it was in use: run the same command again"):
        catalog.roots()


# --- clocks ---


@contextmanager
def clock(monkeypatch: pytest.MonkeyPatch, years: float) -> Iterator[None]:
    """Set the clock of this process forward, or back."""
    shift = int(years * 365.25 * 24 * 3600)
    real, real_ns = time.time, time.time_ns
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: real() + shift)
        patch.setattr(time, "time_ns", lambda: real_ns() + shift * 10**9)
        yield


@pytest.mark.slow
def test_clocks_that_differ_by_years_lose_nothing(
    sets: dict[str, Path], seeded_weights: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = featcache.Options(backbone="resnet18", weights=seeded_weights, cache=tmp_path / "cache")
    folders = list(sets.values())
    for at, years in enumerate([0, 30, -30, -60, 200]):
        with clock(monkeypatch, years):
            write_picture(folders[at % 3] / "sky" / f"at{at}.png", 50 + at)
            found = featcache.extract(folders[at % 3], options)
            assert found.unreadable == 0
            assert (
                featcache.fit(head="centroid", options=featcache.Options(cache=options.cache)).dataset == found.dataset
            )
            assert run("cache", "compact").code == 0
            assert run("runs").code == 0
            assert run("ledger").code == 0
            assert run("cache", "info").code == 0
    for folder in folders:
        assert featcache.extract(folder, options).computed == 0
    assert run("cache", "verify").code == 0
    assert run("cache", "gc", "--yes", "--json").json["unused"] == []


# --- the long run ---


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(int(os.environ.get("FEATCACHE_STORMS", "3"))))
def test_storms(seed: int, sets: dict[str, Path], seeded_weights: Path, tmp_path: Path) -> None:
    """Mixed commands, two or three at a time, killed and stopped, with clocks that differ; then all must be there."""
    from storms import storm

    report = storm(seed, sets, seeded_weights, tmp_path)
    sys.stdout.write(f"{json.dumps(report.counts)}\n")  # which -rP shows
    assert report.wrong == []
    assert sum(report.counts.values()) > 0
