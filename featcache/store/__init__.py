"""A cache folder enters; its feature stores, its catalog and its other files leave. Only this package writes there."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType

from featcache.errors import CacheError, CacheVersionError, CacheWriteError, CatalogError, refusal
from featcache.records import FeatureSpec, Progress
from featcache.store.catalog import Catalog, CatalogVersionError, Row
from featcache.store.cells import Cells
from featcache.store.checkpoints import Checkpoint
from featcache.store.features import FeatureStore
from featcache.store.files import (
    UNREADABLE,
    denied,
    exclusive,
    is_no_file,
    kept_in,
    move,
    read_bounded,
    read_json,
    remove,
    remove_abandoned,
    shared,
    sizes,
    sync_names,
    write_atomic,
)
from featcache.store.networks import Indexes, Networks
from featcache.store.runs import EXTRACTIONS, FINGERPRINT, FORGET, LOST, Run, Runs
from featcache.store.segment import declared_fingerprint
from featcache.store.shards import Shards
from featcache.store.shares import Share
from featcache.store.splits import Splits
from featcache.store.writing import FeatureWriter

__all__ = [
    "EXTRACTIONS",
    "FORGET",
    "LOST",
    "Cache",
    "Catalog",
    "Cells",
    "Checkpoint",
    "FeatureStore",
    "FeatureWriter",
    "Row",
    "Run",
    "Runs",
    "Splits",
    "is_cache",
]

FORMAT_VERSION = 1
_logger = logging.getLogger(__name__)

_MARKS = {
    ".gitignore": b"*\n!.gitignore\n",
    "CACHEDIR.TAG": b"Signature: 8a477f597d28d172789f06886806bc55\n# A featcache cache.\n",
}
_FOLDERS = (
    *("segments", "bad", "models", "runs", "splits", "cells", "demo"),
    *("networks", "backbones", "trainings", "shards", "shares", "indexes"),
)
_TELLING = {"format.json", "catalog.sqlite", "segments", "shards", "networks", "cells", "backbones", "shares"}
_OWN = {"format.json", "catalog.sqlite", *_FOLDERS, *_MARKS}


class Cache:
    """A cache folder, made on first use unless `create` is false; opening it removes temporary files that nobody holds.

    The catalog lies in the folder, or is the file `catalog`, so that computers that share a folder can each have their
    own; what is committed is put into the folder at the URL `share` too. Raises `CacheError` where the folder is
    something else, of another version, or cannot be used.
    """

    def __init__(
        self, folder: Path, catalog: Path | None = None, *, create: bool = True, share: str | None = None
    ) -> None:
        _check_encoding()
        self.folder = Path(folder).absolute()
        marker = self.folder / "format.json"
        if not create and not self.folder.exists():
            raise CacheError(
                f"there is no cache at {self.folder}: run `featcache extract FOLDER` first, or name another --cache"
            )
        for needed in (self.folder, self.folder / "runs", self.folder / "segments"):  # others are missed when needed
            if (said := denied(needed)) is not None:
                raise CacheError(said)
        try:
            _check_links(self.folder)
            if marker.exists():
                _check_version(marker)
                _put_others_aside(self.folder)
            else:
                _refuse_foreign(self.folder)
                content = json.dumps({"format": "featcache", "version": FORMAT_VERSION}).encode()
                write_atomic(marker, content, folders=len(marker.parts))
            for name, text in _MARKS.items():
                if not (self.folder / name).exists():
                    self.put(name, text)
            remove_abandoned(self.folder, _FOLDERS)
        except OSError as error:
            if isinstance(error, CacheWriteError):
                raise
            said = denied(Path(error.filename)) if isinstance(error.filename, str) else None
            raise CacheError(said or f"cannot use the cache folder {self.folder}: {refusal(error)}") from error
        self.runs = _runs(self.folder, catalog)
        self.splits = Splits(self.folder / "splits")
        self.share = Share(share, self.folder) if share else None
        self.shards = Shards(self.folder / "shards", self.share)
        self.cells = Cells(self.folder / "cells")
        self.backbones = Cells(self.folder / "backbones")
        self.networks = Networks(self.folder / "networks", self.folder / "bad")
        self.indexes = Indexes(self.folder / "indexes", self.folder / "bad")
        self.catalog_path = self.folder / "catalog.sqlite" if catalog is None else Path(catalog).absolute()
        is_new = not self.catalog_path.exists()
        self.catalog = Catalog(self.catalog_path)
        if is_new and self.runs.last(*EXTRACTIONS):
            _logger.warning(
                "the catalog %s is new: datasets extracted before are not in it until they are extracted again, or "
                "`featcache cache verify --repair` has brought them back; no vector is lost",
                self.catalog_path,
            )

    @classmethod
    def mend(cls, folder: Path, catalog: Path | None = None) -> Cache:
        """Open a cache, what says to be of a newer featcache put aside, and a catalog that is damaged, too.

        A new catalog begins then. A cache that is of a newer featcache as a whole is refused all the same.
        """
        where = Path(folder).absolute() / "catalog.sqlite" if catalog is None else Path(catalog).absolute()
        try:
            cache = cls(folder, catalog, create=False)
            cache.catalog.check()
        except (CatalogError, CatalogVersionError) as error:
            kept = Path(folder).absolute() / "bad" / f"catalog-{time.time_ns()}.sqlite"
            if catalog is not None:  # it may be anything that was named by mistake, and `bad` is emptied by gc
                kept = where.with_name(f"{where.name}.damaged-{time.time_ns()}")
            _logger.warning("%s; it is moved to %s, and a new one begins", error, kept)
            move(where, kept)
            for suffix in ("-journal", "-wal", "-shm"):
                remove(where.with_name(where.name + suffix))
            cache = cls(folder, catalog, create=False)
        cache._put_newer_aside()
        return cache

    def _put_newer_aside(self) -> None:
        for path in sorted((self.folder / "segments").glob("*/seg-*.h5")):
            try:
                declared_fingerprint(path)
            except CacheVersionError as error:
                kept = kept_in(self.folder / "bad", f"{path.parent.name}-{path.name}")
                _logger.warning("%s; it is moved to %s", error, kept)
                move(path, kept)
            except (CacheError, FileNotFoundError):
                continue  # whoever needs it says so

    @staticmethod
    def runs_at(folder: Path, catalog: Path | None = None) -> Runs | None:
        """Return the runs of the cache in a folder without opening it, `None` where there is none that can be read."""
        folder = Path(folder).absolute()
        try:
            _check_encoding()
            _check_links(folder)
            _check_version(folder / "format.json")
            _put_others_aside(folder)
        except (CacheError, OSError):
            return None
        return _runs(folder, catalog)

    def __enter__(self) -> Cache:
        """Return the cache itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the catalog."""
        self.catalog.close()

    def features(self, spec: FeatureSpec) -> FeatureStore:
        """Open the vectors of `spec`, made on first use, with the whole spec beside them in `spec.json`."""
        folder = self._segments(spec.fingerprint)
        note = folder / "spec.json"
        content = json.dumps({"fingerprint": spec.fingerprint, "spec": spec.to_dict()}, indent=2).encode()
        if not _holds(note, content):
            write_atomic(note, content, folders=2)
        sync_names(folder.parent, self.folder)
        return self.store(spec.fingerprint)

    def fetch(self, spec: FeatureSpec) -> int:
        """Fetch the segments of `spec` that others put into the share, and return how many; raises `CacheError`."""
        folder = self._segments(spec.fingerprint)
        return 0 if self.share is None else self.share.fetch(f"{folder.parent.name}/{folder.name}", "seg-*.h5")

    def store(self, fingerprint: str) -> FeatureStore:
        """Open the vectors that are there of a fingerprint, its spec known or not."""
        folder, usual = self._segments(fingerprint), partial(self._noted_shape, fingerprint)
        return FeatureStore(folder, self.folder / "bad", fingerprint, self.share, usual)

    def fingerprints(self) -> list[str]:
        """Return the fingerprints that have a folder of segments, as their specs or segments say."""
        return sorted(filter(None, map(_fingerprint_of, (self.folder / "segments").glob("*/"))))

    def closed(self) -> list[str]:
        """Return what to say of each folder of vectors that may not be read, as one that somebody else made."""
        return list(filter(None, map(denied, sorted((self.folder / "segments").glob("*/")))))

    def spec(self, fingerprint: str) -> FeatureSpec:
        """Return the spec that was kept beside the vectors of a fingerprint; raises `CacheError`."""
        note = self._segments(fingerprint) / "spec.json"
        try:
            spec = FeatureSpec.from_json(json.dumps(read_json(note)["spec"]))
            found = spec.fingerprint
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if (said := denied(note)) is not None:
                raise CacheError(said) from error
            raise CacheError(f"{note} is missing or broken: run `featcache extract` again") from error
        if found != fingerprint:
            raise CacheError(f"{note} is not the spec of {fingerprint}: run `featcache extract` again")
        return spec

    def discard(self, fingerprint: str, keys: Sequence[bytes], progress: Progress | None = None) -> None:
        """Delete the vectors of `keys`, and the folder of the fingerprint where none is left."""
        _check_links(self.folder)  # again: hours may lie between the opening of the cache and an answer
        store = self.store(fingerprint)
        store.discard(keys, progress)
        if not store.segments:
            for path in (*store.folder.glob("spec.json"), *store.folder.glob(".compact.lock")):
                remove(path)
            with contextlib.suppress(OSError):  # something else lies in it
                store.folder.rmdir()

    def quarantined(self) -> list[Path]:
        """Return the broken files that were put aside."""
        return sorted(path for path in (self.folder / "bad").glob("*") if path.is_file())

    def trainings(self) -> list[Path]:
        """Return the states of trainings that were stopped and not asked for again."""
        return sorted(path for path in (self.folder / "trainings").glob("*.pt") if path.is_file())

    def models(self) -> dict[Path, Run]:
        """Return the files of models that runs have made, whether they are there or not, with their runs."""
        return {self.folder / "models" / run.made: run for run in self.runs.all() if run.made is not None}

    def maker(self, path: Path) -> Run | None:
        """Return the run that made the model file at a path, `None` for one that no run made or that lies elsewhere."""
        found = path.resolve()
        return self.runs.maker(found.name) if found.parent == (self.folder / "models").resolve() else None

    def linked_model(self, path: Path) -> Path | None:
        """Return the link in `models` that a path is or leads through, if any: only files there are models."""
        for _ in range(40):  # the system follows no more
            if not path.is_symlink():
                return None
            if path.parent.resolve() == (self.folder / "models").resolve():
                return path
            path = path.parent / path.readlink()
        return None

    def size(self, folder: Path | None = None) -> int:
        """Return the bytes of all files in the cache, or in one folder of it."""
        return sum(sizes(folder or self.folder))

    def renewed(self, run: Run | None) -> Run | None:
        """Return the run of an extraction that had to wait, begun anew where it does not count any more.

        So it is where its dataset was given up meanwhile, and where its number was that of a run that was lost.
        """
        if run is None:
            return None
        saved = [number for _, number in self.catalog.all_commits()]
        if run.id not in saved and not self.runs.is_given_up(run):
            return run
        self.runs.drop(run)
        return self.runs.start(run.command, run.root, run.fingerprint, saved)

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep others from deleting vectors meanwhile; waits for a deletion that is under way."""
        with shared(self.folder / ".lock"):
            yield

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the cache while vectors are deleted; raises `CacheError` where another command is using it."""
        with exclusive(self.folder / ".lock") as held:
            if not held:
                raise CacheError(
                    f"{self.folder} is in use by another featcache command (or its file system has no locks): "
                    "wait until it is done, then try again"
                )
            yield

    def checkpoint(self, digest: str) -> Checkpoint:
        """Return where the state of a training is kept while it is under way."""
        return Checkpoint(self.folder / "trainings" / f"{digest}.pt")

    def put(self, name: str, data: bytes) -> Path:
        """Write one file of the cache, whole or not at all, and return its path."""
        path = self.folder / name
        write_atomic(path, data, folders=len(Path(name).parts) - 1)
        return path

    def _noted_shape(self, fingerprint: str) -> tuple[int, str] | None:
        """Return the length of vectors and the type of their values, as the newest extraction of them noted it."""
        with contextlib.suppress(CacheError):
            for run in reversed(self.runs.all()):
                if run.fingerprint == fingerprint and run.command in EXTRACTIONS and run.summary:
                    return int(run.summary.get("dim", 0)), self.spec(fingerprint).dtype
        return None

    def _segments(self, fingerprint: str) -> Path:
        return self.folder / "segments" / fingerprint[:16]


def is_cache(folder: Path) -> bool:
    """Tell whether a folder is a cache, of whatever version."""
    with contextlib.suppress(OSError, ValueError):
        return bool(read_json(folder / "format.json").get("format") == "featcache")
    return False


def _check_encoding() -> None:
    """Raise `CacheError` where names of files are other texts here than in the caches of all others."""
    encoding = sys.getfilesystemencoding()
    if encoding.lower().replace("-", "") != "utf8":
        raise CacheError(
            f"names of files are read in {encoding} here, and a cache keeps them in UTF-8: set PYTHONUTF8=1, or a "
            "locale with UTF-8 (LC_ALL=C.UTF-8), and run the same command again"
        )


def _check_links(folder: Path) -> None:
    """Raise `CacheError` where something in a cache is a link: what is written or deleted there is somebody else's."""
    for path in (*(folder / name for name in _OWN), *(folder / "segments").glob("*")):
        if path.is_symlink():
            raise CacheError(
                f"{path} is a link to {path.readlink()}, and nothing is read or written through one: put what it leads "
                "to in its place (a link to the whole cache is fine)"
            )


def _put_others_aside(folder: Path) -> None:
    """Move folders in place of a cache's files, and files in place of its folders, to `bad`; raises `OSError`."""
    folders = [folder / name for name in ("bad", *_FOLDERS)]
    wrong = [path for path in folders if path.exists() and not path.is_dir()]
    there = (folder / "segments").glob("*") if (folder / "segments").is_dir() else ()
    segments = [path for path in there if denied(path) is None]  # whoever needs the others is told
    files = [folder / "catalog.sqlite", folder / ".lock"]
    files += [path / name for path in segments for name in ("spec.json", ".compact.lock")]
    wrong += [path for path in files if is_no_file(path)]
    for name in ("cells", "backbones", "shares"):  # of a grid there may be very many, which are not asked one by one
        if (folder / name).is_dir():
            with os.scandir(folder / name) as entries:
                wrong += [Path(entry.path) for entry in entries if entry.is_dir() and entry.name.endswith(".json")]
    for path in dict.fromkeys(wrong):
        kept = kept_in(folder if path.name == "bad" else folder / "bad", path.name)
        kept.parent.mkdir(exist_ok=True)
        try:
            path.rename(kept)
        except FileNotFoundError:
            continue  # another process was faster
        _logger.warning("%s is not what featcache writes there: it is now %s", path, kept)


def _runs(folder: Path, catalog: Path | None) -> Runs:
    name = "" if catalog is None else f"{platform.node()}:{Path(catalog).absolute()}"
    return Runs(folder / "runs", name)


def _fingerprint_of(folder: Path) -> str | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        fingerprint = FeatureSpec.from_json(json.dumps(read_json(folder / "spec.json")["spec"])).fingerprint
        if fingerprint[:16] == folder.name:
            return fingerprint
    for path in sorted(folder.glob("seg-*.h5")):
        with contextlib.suppress(CacheError, OSError):
            fingerprint = declared_fingerprint(path)
            if FINGERPRINT.fullmatch(fingerprint) and fingerprint[:16] == folder.name:
                return fingerprint
    return None


def _holds(path: Path, content: bytes) -> bool:
    with contextlib.suppress(OSError):
        return read_bounded(path) == content
    return False


def _check_version(marker: Path) -> None:
    try:
        version = read_json(marker)["version"]
    except (ValueError, KeyError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in UNREADABLE:
            raise
        said = f" ({error.strerror})" if isinstance(error, OSError) else ""
        raise CacheError(f"{marker} is broken{said}: move it away, and the next command writes it anew") from error
    if version != FORMAT_VERSION:
        raise CacheVersionError(
            f"{marker.parent} is a cache of format {version!r:.100}, as {marker} says, and this featcache reads "
            f"{FORMAT_VERSION}: use the featcache that wrote it, or another --cache; if nobody has a newer one, move "
            f"{marker.name} away, and the next command writes it anew"
        )


def _refuse_foreign(folder: Path) -> None:
    if not folder.exists():
        return
    names = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    # Folders of vectors may have been copied alone; a project of its own may well have `models` and `runs`.
    is_ours = _holds(folder / "CACHEDIR.TAG", _MARKS["CACHEDIR.TAG"]) or not _TELLING.isdisjoint(names)
    others = [name for name in names if not is_ours or name not in _OWN]
    if others:
        raise CacheError(f"{folder} is no featcache cache and not empty (it holds {others[0]}): name another --cache")
