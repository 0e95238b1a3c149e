"""The catalog: what is known of files, datasets, splits, runs and models, kept in SQLite."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from featcache.errors import CacheWriteError
from featcache.records import FileStat, Item, Look
from featcache.store import Catalog, Row

KEY = bytes(range(32))
OTHER_KEY = bytes(reversed(range(32)))
STAT = FileStat(size=10, mtime_ns=1_700_000_000_123_456_789, inode=2**62)
ODD_PATHS = [
    "/photos/plain.png",
    "/photos/two\nlines\r\n.png",
    "/photos/🦊 'quoted' \"é\" é.png",
    os.fsdecode(b"/photos/\xff\xfe not utf-8 \xe9.png"),
    os.fsdecode(b"/photos/cut \xf0\x9f\xa6.png"),
    "/photos/%_*?[a].png",
    " ",
    "123",
]


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    catalog = Catalog(tmp_path / "catalog.sqlite")
    yield catalog
    catalog.close()


def reopened(tmp_path: Path) -> Catalog:
    return Catalog(tmp_path / "catalog.sqlite")


def test_files_with_odd_names_are_known_again(catalog: Catalog, tmp_path: Path) -> None:
    files = {
        path: (FileStat(at, STAT.mtime_ns + at, STAT.inode - at), bytes([at]) * 32) for at, path in enumerate(ODD_PATHS)
    }
    catalog.remember_files((path, *known) for path, known in files.items())
    again = reopened(tmp_path)
    assert again.known_files(ODD_PATHS) == files
    for path in ODD_PATHS:
        assert again.known_files([path, path]) == {path: files[path]}
    again.close()


def test_files_that_were_not_asked_for_or_never_seen_are_left_out(catalog: Catalog) -> None:
    catalog.remember_files([("a", STAT, KEY), ("b", STAT, OTHER_KEY)])
    assert catalog.known_files(["b", "c", "A"]) == {"b": (STAT, OTHER_KEY)}
    assert catalog.known_files(["a"]) == {"a": (STAT, KEY)}
    assert catalog.known_files([]) == {}


def test_a_changed_file_replaces_what_was_known_of_it(catalog: Catalog) -> None:
    changed = FileStat(11, 5, 6)
    catalog.remember_files([("a", STAT, KEY)])
    catalog.remember_files([("a", changed, OTHER_KEY)])
    assert catalog.known_files(["a"]) == {"a": (changed, OTHER_KEY)}


def test_more_files_than_a_statement_has_room_for_are_known(catalog: Catalog) -> None:
    paths = [f"/photos/{number}.png" for number in range(40_000)]
    catalog.remember_files((path, STAT, KEY) for path in paths)
    assert len(catalog.known_files(paths)) == len(paths)


def test_a_dataset_with_odd_names_is_kept_in_order(catalog: Catalog, tmp_path: Path) -> None:
    rows = [Row(Item(path, f"label of {path}", "train"), bytes([at]) * 32, None) for at, path in enumerate(ODD_PATHS)]
    rows += [Row(Item("unlabelled"), KEY, None), Row(Item("broken", "", "test"), None, os.fsdecode(b"why: \xff\n"))]
    rows += rows[:1]  # a manifest may name a file twice
    rows.reverse()
    for root in ODD_PATHS:
        catalog.save_dataset(root, rows, 7)
    again = reopened(tmp_path)
    for root in ODD_PATHS:
        assert again.dataset(root) == rows
    again.close()


def test_saving_a_dataset_replaces_it_and_no_other(catalog: Catalog) -> None:
    one, two = (Row(Item(path), KEY, None) for path in "ab")
    catalog.save_dataset("first", [one, two], 7)
    catalog.save_dataset("second", [two], 7)
    catalog.save_dataset("first", [two], 7)
    assert catalog.dataset("first") == [two]
    assert catalog.dataset("second") == [two]
    assert catalog.dataset("third") == []


def test_a_dataset_that_fails_half_way_leaves_the_old_one(catalog: Catalog, tmp_path: Path) -> None:
    old = [Row(Item("a"), KEY, None)]
    catalog.save_dataset("root", old, 7)

    def rows() -> Iterator[Row]:
        yield Row(Item("b"), KEY, None)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        catalog.save_dataset("root", rows(), 7)
    assert catalog.dataset("root") == old
    again = reopened(tmp_path)
    assert again.dataset("root") == old
    again.close()


def test_datasets_are_listed_and_forgotten(catalog: Catalog) -> None:
    for root in ("first", ODD_PATHS[3], "last"):
        catalog.save_dataset(root, [Row(Item("a"), KEY, None)], 7)
    catalog.remember_files([("a", STAT, KEY)])
    assert catalog.roots() == {"first": 7, ODD_PATHS[3]: 7, "last": 7}
    catalog.save_dataset("last", [Row(Item("a"), KEY, None)], 9)
    catalog.forget(ODD_PATHS[3])
    catalog.forget("unknown")
    assert catalog.roots() == {"first": 7, "last": 9}
    assert catalog.dataset(ODD_PATHS[3]) == []
    assert catalog.dataset("last") == [Row(Item("a"), KEY, None)]
    assert catalog.known_files(["a"]) == {"a": (STAT, KEY)}


def test_asking_for_an_unknown_dataset_does_not_make_it(catalog: Catalog) -> None:
    assert catalog.dataset("unknown") == []
    assert catalog.roots() == {}


def test_a_folder_that_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(CacheWriteError, match=r"cannot use the catalog .*missing"):
        Catalog(tmp_path / "missing" / "catalog.sqlite")


def test_a_full_catalog_is_a_clear_error_and_changes_nothing(catalog: Catalog, tmp_path: Path) -> None:
    catalog.remember_files([("a", STAT, KEY)])
    connection = catalog._connection
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(
        CacheWriteError, match=r"no room for .*catalog\.sqlite: [\d,]+ bytes are needed, [\d,]+ are free"
    ):
        catalog.remember_files((f"{number}.png", STAT, KEY) for number in range(2000))
    assert catalog.known_files(["a", "0.png"]) == {"a": (STAT, KEY)}


def test_two_catalogs_on_one_file_see_each_others_rows(catalog: Catalog, tmp_path: Path) -> None:
    other = reopened(tmp_path)
    other.remember_files([("a", STAT, KEY)])
    catalog.remember_files([("b", STAT, KEY)])
    assert set(other.known_files(["a", "b"])) == set(catalog.known_files(["a", "b"])) == {"a", "b"}
    other.close()


def test_losing_the_race_to_create_the_catalog_leaves_no_lock(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "raced.sqlite"
    schema = [*catalog._connection.execute("SELECT sql FROM sqlite_master WHERE sql NOT NULL")]
    (version,) = catalog._connection.execute("PRAGMA user_version").fetchone()
    waiting, opened, done = threading.Event(), threading.Event(), threading.Event()
    connect = sqlite3.connect

    def traced(*args: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*args, **options)
        connection.set_trace_callback(lambda statement: waiting.set() if statement.startswith("BEGIN") else None)
        return connection

    def lose() -> None:
        loser = Catalog(path)
        opened.set()
        done.wait(30)
        loser.close()

    winner = connect(path, isolation_level=None, timeout=1)
    winner.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr(sqlite3, "connect", traced)
    thread = threading.Thread(target=lose)
    thread.start()
    try:
        assert waiting.wait(30)
        for (statement,) in schema:
            winner.execute(statement)
        winner.execute(f"PRAGMA user_version = {version}")
        winner.execute("COMMIT")
        assert opened.wait(30)
        winner.execute("INSERT INTO datasets (root) VALUES ('root')")  # or "database is locked"
    finally:
        winner.close()
        done.set()
        thread.join()


def test_an_outside_witness_finds_the_rows(catalog: Catalog, tmp_path: Path) -> None:
    catalog.remember_files([("/photos/a.png", STAT, KEY)])
    witness = sqlite3.connect(tmp_path / "catalog.sqlite")
    assert witness.execute("SELECT * FROM files").fetchall() == [
        ("/photos/a.png", STAT.size, STAT.mtime_ns, STAT.inode, KEY)
    ]
    assert witness.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    witness.close()


LOOK = Look(300, 200, 0.25)


def test_what_contents_look_like_is_known_again(catalog: Catalog, tmp_path: Path) -> None:
    catalog.remember_looks({KEY: LOOK, OTHER_KEY: Look(1, 1, 1.0)})
    catalog.remember_looks({OTHER_KEY: LOOK})
    again = reopened(tmp_path)
    assert again.looks([KEY, b"?" * 32]) == {KEY: LOOK}
    assert again.looks([KEY, OTHER_KEY]) == {KEY: LOOK, OTHER_KEY: LOOK}
    again.close()


def test_a_catalog_that_knows_no_looks_gets_room_for_them_and_keeps_the_rest(catalog: Catalog, tmp_path: Path) -> None:
    catalog.remember_files([("a.jpg", STAT, KEY)])
    catalog._connection.execute("DROP TABLE looks")
    catalog._connection.execute("PRAGMA user_version = 2")
    again = reopened(tmp_path)
    again.remember_looks({KEY: LOOK})
    assert again.looks([KEY]) == {KEY: LOOK}
    assert again.known_files(["a.jpg"]) == {"a.jpg": (STAT, KEY)}
    again.close()


@pytest.mark.parametrize("version", [4, 5])
def test_of_an_old_catalog_only_files_are_known_whose_keys_are_as_ever_by_name(
    version: int, catalog: Catalog, tmp_path: Path
) -> None:
    known = ["/a/1.jpg", "/a/2.JPEG", "zip://c/3.gif::/a/b.zip", "/a/4.heic"]
    doubtful = [
        "/a/3.png",
        "/a/3.jp2",
        "zip://c/3.PNG::/a/b.zip",
        "/a/5.tif",
        "/a/6.TIFF",
        "/a/7",
        "zip://c/8.tif::/a/b.zip",
        "row://image/9::/a/b.parquet",
        "/a/x.jpg.tif",
    ]
    catalog.remember_files((path, STAT, KEY) for path in [*known, *doubtful])
    catalog.save_dataset("root", [Row(Item(path), KEY, None) for path in doubtful], 7)
    if version == 4:
        catalog._connection.execute("DROP TABLE pages")
    catalog._connection.execute(f"PRAGMA user_version = {version}")
    again = reopened(tmp_path)
    assert sorted(again.known_files([*known, *doubtful])) == sorted(known)
    assert [row.item.path for row in again.dataset("root")] == doubtful
    assert again.commits("root") == [7]
    again.remember_files([("/a/5.tif", STAT, OTHER_KEY)])
    again.close()
    again = reopened(tmp_path)
    assert again.known_files(["/a/5.tif"]) == {"/a/5.tif": (STAT, OTHER_KEY)}
    again.close()


def test_pictures_of_one_colour_and_files_of_several_pages_are_counted(catalog: Catalog) -> None:
    keys = [bytes([at]) * 32 for at in range(5)]
    looks = [Look(9, 9, 1.0), Look(9, 9, 1.0, 3), Look(9, 9, 0.99), Look(9, 9, 0.5, 2), Look(9, 9, 1.0)]
    catalog.remember_looks(dict(zip(keys, looks, strict=True)))
    rows = [Row(Item(str(at)), key, None) for at, key in enumerate([*keys[:4], keys[0]])]
    catalog.save_dataset("root", [*rows, Row(Item("broken"), None, "why")], 7)
    assert catalog.plain_and_paged("root") == (3, 2)
    catalog.remember_looks({keys[2]: Look(9, 9, 1.0, 2), keys[0]: Look(9, 9, 0.5)}, "range 0,1")
    assert catalog.plain_and_paged("root") == (3, 2)
    assert catalog.plain_and_paged("root", "range 0,1") == (1, 1)
    assert catalog.looks(keys[:2], "range 0,1") == {keys[0]: Look(9, 9, 0.5)}
