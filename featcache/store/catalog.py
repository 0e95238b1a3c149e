"""Paths, stats, labels, splits, runs and models enter in bulk; what is known of them leaves."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featcache.errors import CacheError, CacheVersionError, CacheWriteError
from featcache.records import FileStat, Item

SCHEMA = 1

_TABLES = """
CREATE TABLE files (path TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, inode INTEGER, key BLOB) WITHOUT ROWID;
CREATE TABLE datasets (id INTEGER PRIMARY KEY, root TEXT UNIQUE);
CREATE TABLE items (
    dataset INTEGER REFERENCES datasets(id), position INTEGER, path TEXT, label TEXT, split TEXT, key BLOB, reason TEXT,
    PRIMARY KEY (dataset, position)
) WITHOUT ROWID;
CREATE TABLE splits (
    dataset INTEGER REFERENCES datasets(id), seed INTEGER, key BLOB, split TEXT, PRIMARY KEY (dataset, seed, key)
) WITHOUT ROWID;
CREATE TABLE runs (
    id INTEGER PRIMARY KEY, command TEXT, dataset INTEGER REFERENCES datasets(id), fingerprint TEXT,
    started REAL, finished REAL, summary TEXT
);
CREATE TABLE models (sha256 TEXT PRIMARY KEY, path TEXT, run INTEGER REFERENCES runs(id));
"""


@dataclass(frozen=True)
class Row:
    """One picture of a dataset as last extracted: its item, and its content key or why it has none."""

    item: Item
    key: bytes | None
    reason: str | None


@dataclass(frozen=True)
class Run:
    """One kept run; `summary` is what the command printed, or `None` while it has not finished."""

    id: int
    command: str
    root: str
    fingerprint: str
    summary: Mapping[str, Any] | None


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

    def save_dataset(self, root: str, rows: Iterable[Row]) -> None:
        """Replace what is kept of the dataset at `root`."""
        with self._transaction() as db:
            dataset = self._dataset(db, root)
            db.execute("DELETE FROM items WHERE dataset = ?", (dataset,))
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
                "SELECT path, label, split, key, reason FROM items WHERE dataset = ? ORDER BY position",
                (self._dataset(db, root),),
            )
            return [Row(Item(path, label, split), key, reason) for path, label, split, key, reason in rows]

    def kept_split(self, root: str, seed: int) -> dict[bytes, str]:
        """Return the split made for a dataset with this seed: content key -> split name."""
        with self._transaction() as db:
            rows = db.execute(
                "SELECT key, split FROM splits WHERE dataset = ? AND seed = ?",
                (self._dataset(db, root), seed),
            )
            return dict(rows.fetchall())

    def keep_split(self, root: str, seed: int, splits: Mapping[bytes, str]) -> None:
        """Keep the split made for a dataset, so that every later experiment uses the same."""
        with self._transaction() as db:
            dataset = self._dataset(db, root)
            db.executemany(
                "INSERT OR REPLACE INTO splits VALUES (?, ?, ?, ?)",
                ((dataset, seed, key, split) for key, split in splits.items()),
            )

    def start_run(self, command: str, root: str, fingerprint: str) -> int:
        """Note that a run began, and return its number."""
        with self._transaction() as db:
            cursor = db.execute(
                "INSERT INTO runs (command, dataset, fingerprint, started) VALUES (?, ?, ?, ?)",
                (command, self._dataset(db, root), fingerprint, time.time()),
            )
            assert cursor.lastrowid is not None
            return cursor.lastrowid

    def finish_run(self, run: int, summary: Mapping[str, Any]) -> None:
        """Note that a run is complete, with what it printed."""
        with self._transaction() as db:
            db.execute(
                "UPDATE runs SET finished = ?, summary = ? WHERE id = ?",
                (time.time(), json.dumps(summary), run),
            )

    def last_run(self, command: str) -> Run | None:
        """Return the newest run of a command, finished or not."""
        with self._transaction() as db:
            row = db.execute(
                "SELECT runs.id, command, root, fingerprint, summary FROM runs"
                " JOIN datasets ON datasets.id = runs.dataset WHERE command = ? ORDER BY runs.id DESC LIMIT 1",
                (command,),
            ).fetchone()
        if row is None:
            return None
        number, name, root, fingerprint, summary = row
        return Run(number, name, root, fingerprint, json.loads(summary) if summary else None)

    def add_model(self, sha256: str, path: str, run: int) -> None:
        """Note that this cache made the model file with this digest."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO models VALUES (?, CAST(? AS TEXT), ?)", (sha256, _text(path), run))

    def made_model(self, sha256: str) -> bool:
        """Tell whether this cache made the model file with this digest."""
        with self._transaction() as db:
            return db.execute("SELECT 1 FROM models WHERE sha256 = ?", (sha256,)).fetchone() is not None

    def _create(self) -> None:
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            with self._connection as db:
                db.execute("BEGIN EXCLUSIVE")
                if db.execute("PRAGMA user_version").fetchone()[0] == 0:  # else another process was faster
                    for statement in [*_TABLES.split(";"), f"PRAGMA user_version = {SCHEMA}"]:
                        db.execute(statement)
        elif version != SCHEMA:
            raise CacheVersionError(
                f"{self._path} has catalog version {version}, this featcache reads {SCHEMA}: "
                "use the featcache that wrote it, or another --cache"
            )

    def _dataset(self, db: sqlite3.Connection, root: str) -> int:
        db.execute("INSERT OR IGNORE INTO datasets (root) VALUES (CAST(? AS TEXT))", (_text(root),))
        found: int = db.execute("SELECT id FROM datasets WHERE root = CAST(? AS TEXT)", (_text(root),)).fetchone()[0]
        return found

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._errors(), self._connection:
            yield self._connection

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise CacheWriteError(
                f"cannot use the catalog {self._path} ({error}): "
                "check permissions and free space, then run the same command again"
            ) from error
        except sqlite3.DatabaseError as error:
            raise CacheError(
                f"the catalog {self._path} is damaged ({error}): "
                "move it away and run `featcache extract` again; no vector is lost"
            ) from error


def _text(value: str | None) -> bytes | None:
    return None if value is None else os.fsencode(value)
