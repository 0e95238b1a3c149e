"""Paths with stats, content keys, labels and splits enter in bulk; what is known of them leaves."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from featcache.errors import CacheVersionError, CacheWriteError, CatalogError
from featcache.records import FileStat, Item, Look
from featcache.store.files import no_room

SCHEMA = 3
COMPLETED = 2
"""The schema that lacks tables only; a catalog of it gets them when it is opened."""

_TABLES = """
CREATE TABLE IF NOT EXISTS files (
    path TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, inode INTEGER, key BLOB
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS looks (
    key BLOB PRIMARY KEY, width INTEGER, height INTEGER, flat REAL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS datasets (id INTEGER PRIMARY KEY, root TEXT UNIQUE, run INTEGER);
CREATE TABLE IF NOT EXISTS items (
    dataset INTEGER REFERENCES datasets(id), position INTEGER, path TEXT, label TEXT, split TEXT, key BLOB, reason TEXT,
    PRIMARY KEY (dataset, position)
) WITHOUT ROWID;
"""


_READABLE = "FROM items JOIN datasets ON dataset = id WHERE root = CAST(? AS TEXT) AND key IS NOT NULL"


@dataclass(frozen=True)
class Row:
    """One picture of a dataset as last extracted: its item, and its content key or why it has none."""

    item: Item
    key: bytes | None
    reason: str | None


class Catalog:
    """The index beside the vectors, in SQLite; losing it loses no vector."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._errors():
            self._connection = sqlite3.connect(path, timeout=60)
            # Names of files are bytes; as text they keep whatever cannot be decoded, like os.fsdecode does.
            self._connection.text_factory = os.fsdecode
            self._create()

    def close(self) -> None:
        """Close the file; the catalog cannot be used afterwards."""
        self._connection.close()

    def known_files(self, paths: Iterable[str]) -> dict[str, tuple[FileStat, bytes]]:
        """Return stat and content key of those `paths` that were read before."""
        with self._transaction() as db:
            db.execute("CREATE TEMP TABLE IF NOT EXISTS asked (path TEXT PRIMARY KEY) WITHOUT ROWID")
            db.execute("DELETE FROM asked")
            db.executemany("INSERT OR IGNORE INTO asked VALUES (CAST(? AS TEXT))", ((_text(path),) for path in paths))
            rows = db.execute("SELECT path, size, mtime_ns, inode, key FROM files NATURAL JOIN asked")
            return {path: (FileStat(*stat), key) for path, *stat, key in rows}

    def remember_files(self, files: Iterable[tuple[str, FileStat, bytes]]) -> None:
        """Keep the stat and content key of files, so that unchanged ones need not be read again."""
        with self._transaction() as db:
            db.executemany(
                "INSERT OR REPLACE INTO files VALUES (CAST(? AS TEXT), ?, ?, ?, ?)",
                ((_text(path), stat.size, stat.mtime_ns, stat.inode, key) for path, stat, key in files),
            )

    def looks(self, keys: Iterable[bytes]) -> dict[bytes, Look]:
        """Return what the contents `keys` look like, those of them that were seen."""
        with self._transaction() as db:
            _want(db, keys)
            rows = db.execute("SELECT key, width, height, flat FROM looks NATURAL JOIN wanted")
            return {key: Look(*found) for key, *found in rows}

    def remember_looks(self, looks: Mapping[bytes, Look]) -> None:
        """Keep what contents look like."""
        with self._transaction() as db:
            db.executemany(
                "INSERT OR REPLACE INTO looks VALUES (?, ?, ?, ?)",
                ((key, found.width, found.height, found.flat) for key, found in looks.items()),
            )

    def save_dataset(self, root: str, rows: Iterable[Row], run: int) -> None:
        """Replace what is kept of the dataset at `root` by what the run with this number found."""
        with self._transaction() as db:
            db.execute("INSERT OR IGNORE INTO datasets (root) VALUES (CAST(? AS TEXT))", (_text(root),))
            (dataset,) = db.execute("SELECT id FROM datasets WHERE root = CAST(? AS TEXT)", (_text(root),)).fetchone()
            db.execute("DELETE FROM items WHERE dataset = ?", (dataset,))
            db.execute("UPDATE datasets SET run = ? WHERE id = ?", (run, dataset))
            db.executemany(
                "INSERT INTO items VALUES"
                " (?, ?, CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT), ?, CAST(? AS TEXT))",
                (
                    (
                        dataset,
                        at,
                        *map(_text, (r.item.path, r.item.label, r.item.split)),
                        r.key,
                        _text(r.reason),
                    )
                    for at, r in enumerate(rows)
                ),
            )

    def dataset(self, root: str) -> list[Row]:
        """Return the pictures of the dataset at `root` as last extracted, in order; empty where there is none."""
        with self._transaction() as db:
            rows = db.execute(
                "SELECT path, label, split, key, reason FROM items JOIN datasets ON dataset = id"
                " WHERE root = CAST(? AS TEXT) ORDER BY position",
                (_text(root),),
            )
            return [Row(Item(path, label, split), key, reason) for path, label, split, key, reason in rows]

    def key_at(self, root: str, path: str) -> bytes | None:
        """Return the content key of the picture at `path` of the dataset at `root`, `None` where there is none."""
        with self._transaction() as db:
            rows = db.execute(
                "SELECT key FROM items JOIN datasets ON dataset = id"
                " WHERE root = CAST(? AS TEXT) AND path = CAST(? AS TEXT) AND key IS NOT NULL",
                (_text(root), _text(path)),
            )
            return next((key for (key,) in rows), None)

    def keys_of(self, root: str, besides: str) -> tuple[list[int], bytes]:
        """Return the positions, in order, of a dataset's readable pictures not at `besides`, and their keys joined."""
        positions: list[int] = []
        keys = bytearray()
        with self._transaction() as db:
            rows = db.execute(
                "SELECT position, key FROM items JOIN datasets ON dataset = id"
                " WHERE root = CAST(? AS TEXT) AND path != CAST(? AS TEXT) AND key IS NOT NULL ORDER BY position",
                (_text(root), _text(besides)),
            )
            for position, key in rows:
                positions.append(position)
                keys += key
        return positions, bytes(keys)

    def rows_at(self, root: str, positions: Iterable[int]) -> list[Row]:
        """Return the pictures at these positions of the dataset at `root`."""
        with self._transaction() as db:
            (dataset,) = db.execute("SELECT id FROM datasets WHERE root = CAST(? AS TEXT)", (_text(root),)).fetchone()
            asked = "SELECT path, label, split, key, reason FROM items WHERE dataset = ? AND position = ?"
            found = (db.execute(asked, (dataset, position)).fetchone() for position in positions)
            return [Row(Item(path, label, split), key, reason) for path, label, split, key, reason in found]

    def labels(self, root: str) -> Iterator[tuple[str | None, str | None, bytes]]:
        """Yield label, split and key of the readable pictures of the dataset at `root`, in order, none kept."""
        with self._transaction() as db:
            yield from db.execute(f"SELECT label, split, key {_READABLE} ORDER BY position", (_text(root),))

    def path(self, root: str, number: int) -> str:
        """Return the path of one readable picture of the dataset at `root`, counted as `labels` yields them."""
        with self._transaction() as db:
            rows = db.execute(f"SELECT path {_READABLE} ORDER BY position LIMIT 1 OFFSET ?", (_text(root), number))
            return str(rows.fetchone()[0])

    def unreadable(self, root: str) -> Counter[str | None]:
        """Return how many pictures of the dataset at `root` have no content key, by label."""
        with self._transaction() as db:
            return Counter(
                dict(
                    db.execute(
                        "SELECT label, COUNT(*) FROM items JOIN datasets ON dataset = id"
                        " WHERE root = CAST(? AS TEXT) AND key IS NULL GROUP BY label",
                        (_text(root),),
                    )
                )
            )

    def paths_of(self, keys: Iterable[bytes]) -> dict[bytes, str]:
        """Return a path where each of these content keys was last seen, for those that were."""
        with self._transaction() as db:
            _want(db, keys)
            return dict(db.execute("SELECT key, path FROM files NATURAL JOIN wanted"))

    def roots(self) -> dict[str, int]:
        """Return the roots of all datasets, each with the number of the run that was saved last."""
        with self._transaction() as db:
            return dict(db.execute("SELECT root, run FROM datasets ORDER BY id"))

    def forget(self, root: str) -> None:
        """Drop a dataset; the stats of its files stay."""
        with self._transaction() as db:
            db.execute(
                "DELETE FROM items WHERE dataset IN (SELECT id FROM datasets WHERE root = CAST(? AS TEXT))",
                (_text(root),),
            )
            db.execute("DELETE FROM datasets WHERE root = CAST(? AS TEXT)", (_text(root),))

    def check(self) -> None:
        """Read the whole catalog; raises `CatalogError` where it is damaged."""
        with self._transaction() as db:
            said = [line for (line,) in db.execute("PRAGMA integrity_check(3)")]
        if said != ["ok"]:
            raise CatalogError(self._damaged("; ".join(said)))

    def _create(self) -> None:
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if version in (0, COMPLETED):
            with self._connection as db:
                db.execute("BEGIN EXCLUSIVE")
                if db.execute("PRAGMA user_version").fetchone()[0] != SCHEMA:  # else another process was faster
                    for statement in [*_TABLES.split(";"), f"PRAGMA user_version = {SCHEMA}"]:
                        db.execute(statement)
        elif version != SCHEMA:
            raise CacheVersionError(
                f"{self._path} has catalog version {version}, this featcache reads {SCHEMA}: "
                "use the featcache that wrote it, or another --cache"
            )

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._errors(), self._connection:
            yield self._connection

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE):
                raise CacheWriteError(no_room(self._path, self._needed(), str(error))) from error
            raise CacheWriteError(
                f"cannot use the catalog {self._path} ({error}): "
                "check permissions and free space, then run the same command again"
            ) from error
        except sqlite3.DatabaseError as error:
            raise CatalogError(self._damaged(str(error))) from error

    def _needed(self) -> int:
        """Return the bytes that a change takes at most: the catalog once more, as its journal, and as much again."""
        size = self._path.stat().st_size if self._path.exists() else 0
        return 2 * max(size, 2**17)

    def _damaged(self, said: str) -> str:
        return f"the catalog {self._path} is damaged ({said}): run `featcache cache verify --repair`; no vector is lost"


def _want(db: sqlite3.Connection, keys: Iterable[bytes]) -> None:
    db.execute("CREATE TEMP TABLE IF NOT EXISTS wanted (key BLOB PRIMARY KEY) WITHOUT ROWID")
    db.execute("DELETE FROM wanted")
    db.executemany("INSERT OR IGNORE INTO wanted VALUES (?)", ((key,) for key in keys))


def _text(value: str | None) -> bytes | None:
    return None if value is None else os.fsencode(value)
