"""Paths with stats, content keys, labels and splits enter in bulk; what is known of them leaves."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import sqlite3
import stat
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from featcache.errors import CacheVersionError, CacheWriteError, CatalogError, refusal
from featcache.records import FileStat, Item, Look
from featcache.store.files import create, denied, no_room

SCHEMA = 7
COMPLETED = (2, 3, 4, 5, 6)
"""The schemas that lack tables, and may know TIFF, PNG, BMP and other files by keys that they have no longer; a catalog
of them is completed, and forgets those, when it is opened."""

_TABLES = """
CREATE TABLE IF NOT EXISTS files (
    path TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, inode INTEGER, key BLOB
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS looks (
    key BLOB PRIMARY KEY, width INTEGER, height INTEGER, flat REAL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pages (key BLOB PRIMARY KEY, pages INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS datasets (id INTEGER PRIMARY KEY, root TEXT UNIQUE, run INTEGER);
CREATE TABLE IF NOT EXISTS items (
    dataset INTEGER REFERENCES datasets(id), position INTEGER, path TEXT, label TEXT, split TEXT, key BLOB, reason TEXT,
    PRIMARY KEY (dataset, position)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS commits (number INTEGER PRIMARY KEY, root TEXT, run INTEGER, digest BLOB);
"""

KEY_BYTES = 32

_AS_EVER = re.compile(r"\.(jpe?g|jpe|jfif|gif|webp|hei[cf]|avif|p[bgp]m)(::.*)?$", re.IGNORECASE | re.DOTALL)
"""The names of pictures whose keys no version has changed."""

_MAY_BE_TIFF = ("tif", "dng", "nef", "nrw", "arw", "cr2", "pef", "srw", "3fr")

_JOURNAL = bytes.fromhex("d9d505f920a163d7")
"""What a part of a rollback journal begins with, and what one ends with that names a further file."""

_logger = logging.getLogger(__name__)

_STATEMENTS = {text.split("(")[0].split()[-1]: text.strip() for text in _TABLES.split(";") if text.strip()}

PATIENCE = 120
"""Seconds to wait for another command that is writing."""

_READABLE = "FROM items JOIN datasets ON dataset = id WHERE root = CAST(? AS TEXT) AND key IS NOT NULL"


@dataclass(frozen=True)
class Row:
    """One picture of a dataset as last extracted: its item, and its content key or why it has none."""

    item: Item
    key: bytes | None
    reason: str | None


class CatalogVersionError(CacheVersionError):
    """A catalog of a newer featcache."""


class Catalog:
    """The index beside the vectors, in SQLite; losing it loses no vector."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._may_know_old_keys = False
        with self._errors():
            self._identity = _identity_of(path)
            _put_forged_aside(path)
            self._connection = sqlite3.connect(path, timeout=PATIENCE)
            self._connection.execute("PRAGMA trusted_schema = OFF")
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
            known = {
                path: (FileStat(*stat), key)
                for path, *stat, key in rows
                if _is_key(key) and all(isinstance(value, int) for value in stat)  # else it is read again
            }
        return {path: of for path, of in known.items() if _AS_EVER.search(path)} if self._may_know_old_keys else known

    def remember_files(self, files: Iterable[tuple[str, FileStat, bytes]]) -> None:
        """Keep the stat and content key of files, so that unchanged ones need not be read again."""
        with self._transaction() as db:
            db.executemany(
                "INSERT OR REPLACE INTO files VALUES (CAST(? AS TEXT), ?, ?, ?, ?)",
                ((_text(path), stat.size, stat.mtime_ns, stat.inode, key) for path, stat, key in files),
            )

    def looks(self, keys: Iterable[bytes], reading: str | None = None) -> dict[bytes, Look]:
        """Return what the contents `keys` look like as `reading` reads them, those of them that were seen so."""
        content = {_seen(key, reading): key for key in keys}
        with self._transaction() as db:
            _want(db, content)
            rows = db.execute("SELECT key, width, height, flat FROM looks NATURAL JOIN wanted")
            return {content[key]: Look(*found) for key, *found in rows if tuple(map(type, found)) == (int, int, float)}

    def remember_looks(self, looks: Mapping[bytes, Look], reading: str | None = None) -> None:
        """Keep what contents look like as `reading`, the text of a `records.reading.Reading`, reads them."""
        with self._transaction() as db:
            db.executemany(
                "INSERT OR REPLACE INTO looks VALUES (?, ?, ?, ?)",
                ((_seen(key, reading), found.width, found.height, found.flat) for key, found in looks.items()),
            )
            several = ((_seen(key, reading), found.pages) for key, found in looks.items() if found.pages > 1)
            db.executemany("INSERT OR REPLACE INTO pages VALUES (?, ?)", several)

    def plain_and_paged(self, root: str, reading: str | None = None) -> tuple[int, int]:
        """Return how many pictures of a dataset are one colour, and how many have pages, as `reading` reads them."""
        with self._transaction() as db:
            db.create_function("seen", 1, lambda key: _seen(key, reading) if isinstance(key, bytes) else None)
            seen = "key" if reading is None else "seen(key)"  # which asks Python once a picture
            kinds = ("looks WHERE flat = 1", "pages")
            found = [
                db.execute(
                    f"SELECT COUNT(*) {_READABLE} AND {seen} IN (SELECT key FROM {kind})", (_text(root),)
                ).fetchone()[0]
                for kind in kinds
            ]
        return found[0], found[1]

    def save_dataset(self, root: str, rows: Iterable[Row], run: int) -> str:
        """Replace what is kept of the dataset at `root` by what the run with this number found; return its digest.

        Of several at once the last one counts, whichever began first.
        """
        with self._transaction() as db:
            db.execute("BEGIN IMMEDIATE")
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
            return _commit(db, dataset, root, run).hex()

    def commits(self, root: str) -> list[int]:
        """Return the numbers of the runs that saved the dataset at `root`, in the order in which they did."""
        return [run for other, run in self.all_commits() if other == root]

    def all_commits(self) -> list[tuple[str, int]]:
        """Return the root and the number of each run that saved a dataset, in the order in which they did."""
        with self._transaction() as db:
            rows = db.execute("SELECT root, run FROM commits ORDER BY number")
            return [self._saved(*row) for row in rows]

    def saved_digest(self, root: str) -> tuple[int, str] | None:
        """Return which run saved the dataset at `root` last, and the digest of what it saved; `None` of old ones."""
        with self._transaction() as db:
            found = db.execute(
                "SELECT run, digest FROM commits WHERE root = CAST(? AS TEXT) ORDER BY number DESC LIMIT 1",
                (_text(root),),
            ).fetchone()
        return (found[0], found[1].hex()) if found and isinstance(found[1], bytes) else None

    def forget_commits(self, root: str, runs: Iterable[int]) -> None:
        """Forget that runs of which nothing else is left saved the dataset at `root`; what is kept of it stays."""
        with self._transaction() as db:
            db.executemany(
                "DELETE FROM commits WHERE root = CAST(? AS TEXT) AND run = ?", ((_text(root), run) for run in runs)
            )

    def check_dataset(self, root: str) -> None:
        """Raise `CatalogError` where what is kept of a dataset is not what was saved; of old ones nobody can tell."""
        with self._transaction() as db:
            found = db.execute(
                "SELECT id, digest FROM datasets JOIN commits USING (root) WHERE root = CAST(? AS TEXT)"
                " ORDER BY number DESC LIMIT 1",
                (_text(root),),
            ).fetchone()
            if found and found[1] is not None and _digest(db, found[0]) != found[1]:
                raise CatalogError(self._damaged(f"the pictures of {root} are not those that were saved"))

    def dataset(self, root: str) -> list[Row]:
        """Return the pictures of the dataset at `root` as last extracted, in order; empty where there is none."""
        with self._transaction() as db:
            rows = db.execute(
                "SELECT path, label, split, key, reason FROM items JOIN datasets ON dataset = id"
                " WHERE root = CAST(? AS TEXT) ORDER BY position",
                (_text(root),),
            )
            return [self._row(*row) for row in rows]

    def key_at(self, root: str, path: str) -> bytes | None:
        """Return the content key of the picture at `path` of the dataset at `root`, `None` where there is none."""
        with self._transaction() as db:
            rows = db.execute(
                "SELECT key FROM items JOIN datasets ON dataset = id"
                " WHERE root = CAST(? AS TEXT) AND path = CAST(? AS TEXT) AND key IS NOT NULL",
                (_text(root), _text(path)),
            )
            return next((key for (key,) in rows if _is_key(key)), None)

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
                if not _is_key(key):
                    raise CatalogError(self._damaged(f"a content key is {key!r:.100}"))
                positions.append(position)
                keys += key
        return positions, bytes(keys)

    def rows_at(self, root: str, positions: Iterable[int]) -> list[Row]:
        """Return the pictures at those of these positions that the dataset at `root` has."""
        with self._transaction() as db:
            (dataset,) = db.execute("SELECT id FROM datasets WHERE root = CAST(? AS TEXT)", (_text(root),)).fetchone()
            asked = "SELECT path, label, split, key, reason FROM items WHERE dataset = ? AND position = ?"
            found = (db.execute(asked, (dataset, position)).fetchone() for position in positions)
            return [self._row(*row) for row in found if row is not None]

    def labels(self, root: str) -> Iterator[tuple[str | None, str | None, bytes]]:
        """Yield label, split and key of the readable pictures of the dataset at `root`, in order, none kept."""
        with self._transaction() as db:
            for label, split, key in db.execute(
                f"SELECT label, split, key {_READABLE} ORDER BY position", (_text(root),)
            ):
                if not (_is_key(key) and _is_text(label) and _is_text(split)):
                    raise CatalogError(self._damaged(f"it has a picture with the values {(label, split, key)!r:.200}"))
                yield label, split, key

    def path(self, root: str, number: int) -> str:
        """Return the path of one readable picture of the dataset at `root`, counted as `labels` yields them."""
        with self._transaction() as db:
            rows = db.execute(f"SELECT path {_READABLE} ORDER BY position LIMIT 1 OFFSET ?", (_text(root), number))
            return str(rows.fetchone()[0])

    def unreadable(self, root: str) -> Counter[str | None]:
        """Return how many pictures of the dataset at `root` have no content key, by label."""
        with self._transaction() as db:
            rows = db.execute(
                "SELECT label, COUNT(*) FROM items JOIN datasets ON dataset = id"
                " WHERE root = CAST(? AS TEXT) AND key IS NULL GROUP BY label",
                (_text(root),),
            )
            return Counter({label: count for label, count in rows if _is_text(label)})

    def paths_of(self, keys: Iterable[bytes]) -> dict[bytes, str]:
        """Return a path where each of these content keys was last seen, for those that were."""
        with self._transaction() as db:
            _want(db, keys)
            rows = db.execute("SELECT key, path FROM files NATURAL JOIN wanted")
            return {key: path for key, path in rows if isinstance(path, str)}

    def may_hold_tiff(self, root: str) -> bool:
        """Tell whether a dataset has readable pictures that are named as TIFF, or raw files of cameras, are."""
        named = " OR ".join(f"path LIKE '%.{name}%'" for name in _MAY_BE_TIFF)
        with self._transaction() as db:
            return bool(db.execute(f"SELECT EXISTS (SELECT 1 {_READABLE} AND ({named}))", (_text(root),)).fetchone()[0])

    def roots(self) -> dict[str, int]:
        """Return the roots of all datasets, each with the number of the run that was saved last."""
        with self._transaction() as db:
            return dict(self._saved(*row) for row in db.execute("SELECT root, run FROM datasets ORDER BY id"))

    def forget(self, root: str) -> None:
        """Drop a dataset; the stats of its files stay."""
        with self._transaction() as db:
            db.execute(
                "DELETE FROM items WHERE dataset IN (SELECT id FROM datasets WHERE root = CAST(? AS TEXT))",
                (_text(root),),
            )
            for table in ("datasets", "commits"):
                db.execute(f"DELETE FROM {table} WHERE root = CAST(? AS TEXT)", (_text(root),))

    def check(self) -> None:
        """Read the whole catalog; raises `CatalogError` where it is damaged."""
        with self._transaction() as db:
            said = [line for (line,) in db.execute("PRAGMA integrity_check(3)")]
        if said != ["ok"]:
            raise CatalogError(self._damaged("; ".join(said)))
        self.all_commits()
        for root in self.roots():
            self.dataset(root)

    def _row(self, path: str, label: str | None, split: str | None, key: bytes | None, reason: str | None) -> Row:
        texts = isinstance(path, str) and all(map(_is_text, (label, split, reason)))
        if not texts or not (key is None or _is_key(key)):
            raise CatalogError(self._damaged(f"it has a picture with the values {(path, label, split, key)!r:.200}"))
        return Row(Item(path, label, split), key, reason)

    def _saved(self, root: object, run: object) -> tuple[str, int]:
        """Return the root of a dataset and the number of a run as they must be; of old catalogs the number is 0."""
        run = 0 if run is None else run
        if not isinstance(root, str) or not isinstance(run, int) or "\0" in root:
            raise CatalogError(self._damaged(f"it has a dataset with the values {(root, run)!r:.200}"))
        return root, run

    def _create(self) -> None:
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, *COMPLETED, SCHEMA):
            raise CatalogVersionError(
                f"{self._path} has catalog version {version}, this featcache reads {SCHEMA}: use the featcache that "
                "wrote it, or another --cache, or put it aside with `featcache cache verify --repair`"
            )
        encoding = self._connection.execute("PRAGMA encoding").fetchone()[0]
        if encoding != "UTF-8":  # bytes of names would be taken for other letters, or cut off
            raise CatalogError(self._damaged(f"its texts are in {encoding}, and featcache writes UTF-8"))
        known = {_normalized(statement): name for name, statement in _STATEMENTS.items()}
        for name, kind, sql in self._connection.execute("SELECT name, type, sql FROM sqlite_schema"):
            # Triggers, views and other tables would run statements of whoever made them.
            is_ours = kind == "table" and known.get(_normalized(sql)) == name
            is_index = kind == "index" and sql is None and name.startswith("sqlite_autoindex_")
            if not is_ours and not is_index:
                raise CatalogError(self._damaged(f"it has the {kind} {name}, which featcache did not make"))
        if version != SCHEMA:
            self._complete()

    def _complete(self) -> None:
        """Make the tables that are missing, and forget the stats of files whose keys may be others now.

        A disk that cannot be written to keeps the old ones, for reading.
        """
        try:
            with self._connection as db:
                db.execute("BEGIN EXCLUSIVE")
                version = db.execute("PRAGMA user_version").fetchone()[0]
                if version != SCHEMA:  # else another process was faster
                    for statement in _STATEMENTS.values():
                        db.execute(statement)
                    if version < 4:
                        for dataset, root, run in db.execute("SELECT id, root, run FROM datasets").fetchall():
                            _commit(db, dataset, root, run)
                    doubtful = [
                        (_text(path),) for (path,) in db.execute("SELECT path FROM files") if not _AS_EVER.search(path)
                    ]
                    db.executemany("DELETE FROM files WHERE path = CAST(? AS TEXT)", doubtful)
                    db.execute(f"PRAGMA user_version = {SCHEMA}")
                    self._say_doubtful()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_READONLY:
                raise
            self._may_know_old_keys = True
            self._say_doubtful()
            self._connection.execute("ATTACH ':memory:' AS added")
            for name in ("commits", "pages"):
                with contextlib.suppress(sqlite3.OperationalError):
                    self._connection.execute(f"SELECT 1 FROM {name} LIMIT 1")
                    continue
                self._connection.execute(_STATEMENTS[name].replace(name, f"added.{name}", 1))

    def _say_doubtful(self) -> None:
        """Say which datasets may hold vectors of pictures that are read otherwise now, until they are extracted."""
        items = self._connection.execute(
            "SELECT root, path FROM items JOIN datasets ON dataset = id WHERE key NOT NULL"
        )
        roots = sorted({root for root, path in items if not _AS_EVER.search(path)})
        if roots:
            more = f" and {len(roots) - 3:,} more" if len(roots) > 3 else ""
            _logger.warning(
                "the cache is of an older featcache, which read some TIFF, PNG, BMP and other files otherwise: run "
                "`featcache extract` of %s%s again, and these few are computed anew; the others keep their vectors",
                ", ".join(roots[:3]),
                more,
            )

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._errors(), self._connection:
            _put_forged_aside(self._path)  # SQLite looks for a journal each time, too
            if self._identity != _identity_of(self._path):
                raise CatalogError(
                    f"the catalog {self._path} was moved or replaced while it was in use: run the same command again"
                )
            yield self._connection

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CacheWriteError(f"cannot use the catalog {self._path}: {refusal(error)}") from error
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise CacheWriteError(
                    f"another command has written to the catalog {self._path} for more than {PATIENCE} seconds: "
                    "wait until it is done, or end it, then run the same command again"
                ) from error
            if error.sqlite_errorcode in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE):
                raise CacheWriteError(no_room(self._path, self._needed(), str(error))) from error
            try:
                os.close(os.open(os.devnull, os.O_RDONLY))  # SQLite does not say that no more files can be open
            except OSError as lack:
                raise CacheWriteError(f"cannot use the catalog {self._path}: {refusal(lack)}") from error
            if (said := denied(self._path)) is not None:
                raise CacheWriteError(f"cannot use the catalog: {said}") from error
            raise CacheWriteError(
                f"cannot use the catalog {self._path} ({error}): "
                "check permissions and free space, then run the same command again"
            ) from error
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # of what SQLite says of it, too
            raise CatalogError(self._damaged(str(error))) from error

    def _needed(self) -> int:
        """Return the bytes that a change takes at most: the catalog once more, as its journal, and as much again."""
        size = self._path.stat().st_size if self._path.exists() else 0
        return 2 * max(size, 2**17)

    def _damaged(self, said: str) -> str:
        return f"the catalog {self._path} is damaged ({said}): run `featcache cache verify --repair`; no vector is lost"


def _put_forged_aside(path: Path) -> None:
    """Rename what SQLite would take for its own beside the catalog, and is not; raises `OSError`.

    A journal that names a further file makes SQLite delete that (https://sqlite.org/fileformat.html, the rollback
    journal); ours never does. Links and pipes would be written to, or waited for.
    """
    for suffix in ("-journal", "-wal", "-shm"):
        beside = path.with_name(path.name + suffix)
        with contextlib.suppress(FileNotFoundError):
            is_ours = stat.S_ISREG(beside.lstat().st_mode)
            if is_ours and suffix == "-journal":
                with beside.open("rb") as file:
                    file.seek(max(0, beside.stat().st_size - len(_JOURNAL)))
                    is_ours = file.read() != _JOURNAL
            if not is_ours:
                kept = beside.with_name(f"{beside.name}.{time.time_ns()}")
                beside.rename(kept)
                _logger.warning("%s is not what SQLite writes there: it is now %s", beside, kept)


def _identity_of(path: Path) -> tuple[int, int]:
    """Return what tells the file at `path`, made where there is none; raises `OSError`, also for what is no file."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        os.close(create(path))
        status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")
    return status.st_dev, status.st_ino


def _normalized(sql: str | None) -> str:
    return re.sub(r"\s+", " ", (sql or "").replace("IF NOT EXISTS ", "")).strip()


def _is_key(value: object) -> bool:
    return isinstance(value, bytes) and len(value) == KEY_BYTES


def _is_text(value: object) -> bool:
    return value is None or isinstance(value, str)


def _commit(db: sqlite3.Connection, dataset: int, root: str, run: int) -> bytes:
    digest = _digest(db, dataset)
    values = (_text(root), run, digest)
    db.execute("INSERT INTO commits (root, run, digest) VALUES (CAST(? AS TEXT), ?, ?)", values)
    return digest


def _digest(db: sqlite3.Connection, dataset: int) -> bytes:
    """Return a digest of what is kept of a dataset."""
    digest = hashlib.sha256()
    asked = "SELECT position, CAST(path AS BLOB), CAST(label AS BLOB), CAST(split AS BLOB), key FROM items"
    rows = db.execute(f"{asked} WHERE dataset = ? ORDER BY position", (dataset,))
    while some := rows.fetchmany(1024):
        digest.update("".join(map(repr, some)).encode())
    return digest.digest()


def _want(db: sqlite3.Connection, keys: Iterable[bytes]) -> None:
    db.execute("CREATE TEMP TABLE IF NOT EXISTS wanted (key BLOB PRIMARY KEY) WITHOUT ROWID")
    db.execute("DELETE FROM wanted")
    db.executemany("INSERT OR IGNORE INTO wanted VALUES (?)", ((key,) for key in keys))


def _seen(key: bytes, reading: str | None) -> bytes:
    """Return the key under which it is kept what a content looks like that is read so."""
    return key if reading is None else hashlib.sha256(key + reading.encode()).digest()


def _text(value: str | None) -> bytes | None:
    return None if value is None else os.fsencode(value)
