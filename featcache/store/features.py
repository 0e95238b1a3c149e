"""Content keys and vectors of one fingerprint enter; immutable segments, and vectors read from them, leave."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from featcache.errors import CacheError, MissingFeaturesError
from featcache.records import FloatArray
from featcache.store.files import exclusive, write_atomic
from featcache.store.index import KeyIndex, stack_keys
from featcache.store.segment import (
    KEY_BYTES,
    Header,
    Keys,
    SegmentError,
    Writer,
    build_image,
    read_features,
    read_keys,
)

ATTEMPTS = 100
"""How often a listing is tried whose files vanish while it is read; a compaction makes that happen once."""

COMMIT_ROWS = 8192
COMMIT_SECONDS = 5.0
SMALL_BYTES = 64 * 2**20
MERGED_BYTES = 128 * 2**20
"""Compaction merges segments under `SMALL_BYTES` up to about this size; it holds some three times that in memory."""

_logger = logging.getLogger(__name__)


class _BrokenSegmentError(SegmentError):
    """A broken segment and its name, on the way to quarantine."""

    def __init__(self, name: str, said: str) -> None:
        super().__init__(said)
        self.name = name


class FeatureStore:
    """The vectors of one fingerprint: a folder of immutable segments, whose listing is the truth.

    Opening it is recovery: segments that a valid one replaces are skipped, broken ones are moved to `bad` with a
    warning. Any number of processes may read and write at once.
    """

    def __init__(self, folder: Path, bad: Path, fingerprint: str) -> None:
        self.folder = folder
        self.fingerprint = fingerprint
        self._quarantined = 0
        self._bad = bad
        self._loaded: dict[str, tuple[Header, Keys]] = {}
        self.refresh()

    def refresh(self) -> None:
        """List the segments again, and forget those that are gone."""
        if not any(self._scan() for _ in range(ATTEMPTS)):
            raise CacheError(f"{self.folder} lists segments that cannot be opened: look for broken links in it")
        live = sorted(self._loaded)
        self._names = live
        self._headers = [self._loaded[name][0] for name in live]
        self._offsets = np.cumsum([0, *(header.n_rows for header in self._headers)])
        if len({(header.dim, header.dtype) for header in self._headers}) > 1:
            raise CacheError(f"{self.folder} holds vectors of different shapes: move it away and extract again")
        keys = [self._loaded[name][1] for name in live]
        self._index = KeyIndex(np.concatenate(keys) if keys else np.empty((0, KEY_BYTES), np.uint8))

    @property
    def segments(self) -> tuple[str, ...]:
        """The names of the live segments, in order of commit."""
        return tuple(self._names)

    @property
    def dim(self) -> int | None:
        """The length of a vector, or `None` while there are none."""
        return self._headers[0].dim if self._headers else None

    def contains(self, keys: Sequence[bytes]) -> npt.NDArray[np.bool_]:
        """Tell for each key whether its vector is held, as of the last listing."""
        return self._index.find(stack_keys(keys)) >= 0

    def read(self, keys: Sequence[bytes]) -> FloatArray:
        """Return the vectors (n, d) of `keys` (n), in their order, every segment checked against its crc.

        Raises `MissingFeaturesError` where a key is not held, or its segment turned out to be broken.
        """
        for _ in range(ATTEMPTS):
            try:
                return self._read(stack_keys(keys))
            except FileNotFoundError:  # merged away by a compaction since the last listing
                self.refresh()
            except _BrokenSegmentError as error:
                self._quarantine(error.name, error)
                self.refresh()
        raise CacheError(f"{self.folder} changes faster than it can be read: run the same command again")

    def verify(self) -> int:
        """Read every key and vector and move broken segments to `bad`.

        Returns how many were moved since the store was opened or last verified.
        """
        for name in self._names:
            try:
                header, _ = read_keys(self.folder / name, self.fingerprint)
                read_features(self.folder / name, header)
            except SegmentError as error:
                self._quarantine(name, error)
            except FileNotFoundError:
                continue
        self.refresh()
        found, self._quarantined = self._quarantined, 0
        return found

    def compact(self) -> int:
        """Merge small segments, and return how many were merged; 0 also when another process is at it."""
        with exclusive(self.folder / ".compact.lock") as held:
            if not held:
                return 0
            self._remove_replaced()
            merged = 0
            for _ in range(ATTEMPTS):
                group = self._small_group()
                if len(group) < 2:
                    break
                try:
                    merged += self._merge(group)
                except _BrokenSegmentError as error:
                    self._quarantine(error.name, error)
                except FileNotFoundError:  # put aside by another process meanwhile
                    pass
                self._remove_replaced()
            return merged

    def _scan(self) -> bool:
        """Load what is new in the folder; False where a segment vanished meanwhile."""
        names = sorted(path.name for path in self.folder.glob("seg-*.h5"))
        for name in set(self._loaded).difference(names):
            del self._loaded[name]
        for name in names:
            if name in self._loaded:
                continue
            try:
                header, keys = read_keys(self.folder / name, self.fingerprint)
                if set(header.replaces).intersection(names):  # sources are skipped only for a wholly valid segment
                    read_features(self.folder / name, header)
            except FileNotFoundError:
                return False
            except SegmentError as error:
                self._quarantine(name, error)
            else:
                self._loaded[name] = (header, keys)
        for header, _ in list(self._loaded.values()):
            for name in header.replaces:
                self._loaded.pop(name, None)
        return True

    def _read(self, keys: Keys) -> FloatArray:
        rows = self._index.find(keys)
        missing = int((rows < 0).sum())
        if missing:
            raise MissingFeaturesError(
                f"{missing:,} of {len(keys):,} vectors are not in {self.folder}: run `featcache extract` again"
            )
        if not len(rows):
            dtype = self._headers[0].dtype if self._headers else "float32"
            return np.empty((0, self.dim or 0), dtype)
        result = np.empty((len(rows), self._headers[0].dim), dtype=self._headers[0].dtype)
        segment_of = np.searchsorted(self._offsets, rows, side="right") - 1
        order = np.argsort(segment_of, kind="stable")
        used, starts = np.unique(segment_of[order], return_index=True)
        for segment, places in zip(used, np.split(order, starts[1:]), strict=True):
            result[places] = self._features(segment)[rows[places] - self._offsets[segment]]
        return result

    def _features(self, segment: int) -> FloatArray:
        name = self._names[segment]
        try:
            return read_features(self.folder / name, self._headers[segment])
        except SegmentError as error:
            raise _BrokenSegmentError(name, str(error)) from error

    def _quarantine(self, name: str, error: SegmentError) -> None:
        kept = self._bad / f"{self.folder.name}-{name}"
        try:
            self._bad.mkdir(exist_ok=True)
            (self.folder / name).rename(kept)
        except FileNotFoundError:
            return  # another process was faster
        except OSError as problem:
            raise CacheError(f"{error}; it could not be moved to {kept} ({problem.strerror}): move it away") from error
        self._loaded.pop(name, None)
        self._quarantined += 1
        _logger.warning(
            "%s; moved to %s. The next `featcache extract` computes its vectors again (fingerprint %s).",
            error,
            kept,
            self.folder.name,
        )

    def _remove_replaced(self) -> None:
        self.refresh()
        for header in self._headers:
            for name in header.replaces:
                with contextlib.suppress(OSError):  # readers skip it all the same, and the next compaction tries again
                    (self.folder / name).unlink()

    def _small_group(self) -> list[int]:
        """Return the first small segments that together make one of about `MERGED_BYTES`."""
        group: list[int] = []
        room = MERGED_BYTES
        for segment, header in enumerate(self._headers):
            size = header.n_rows * (header.dim * np.dtype(header.dtype).itemsize + KEY_BYTES)
            if size >= SMALL_BYTES:
                continue
            if size > room:
                break
            group.append(segment)
            room -= size
        return group

    def _merge(self, group: Sequence[int]) -> int:
        names = [self._names[segment] for segment in group]
        keys = np.concatenate([self._loaded[name][1] for name in names])
        features = np.concatenate([self._features(segment) for segment in group])
        first = KeyIndex(keys).find(keys) == np.arange(len(keys))
        _commit(self.folder, Writer(), self.fingerprint, keys[first], features[first], names)
        return len(names)


class FeatureWriter:
    """Buffers vectors and commits them as segments; leaving the `with` block commits what is left.

    At most `COMMIT_ROWS` rows or `COMMIT_SECONDS` seconds of work are lost to a kill. When a commit fails the
    buffer is kept, so that `flush` can be tried again.
    """

    def __init__(self, store: FeatureStore, dtype: str) -> None:
        self.committed = 0
        self.seconds = 0.0
        self._store = store
        self._dtype = dtype
        self._writer = Writer()
        self._keys: list[bytes] = []
        self._vectors: list[FloatArray] = []
        self._oldest = 0.0
        self._failed = False

    def append(self, keys: Sequence[bytes], vectors: FloatArray) -> None:
        """Add rows: `keys` (n) of 32 bytes and `vectors` (n, d).

        Raises `ValueError` where they do not belong together or in this store, and `CacheWriteError` when a due commit
        fails.
        """
        rows = vectors.astype(self._dtype)
        dim = self._vectors[0].shape[1] if self._vectors else self._store.dim
        if rows.ndim != 2 or len(rows) != len(keys) or any(len(key) != KEY_BYTES for key in keys):
            raise ValueError(f"{len(keys)} keys and vectors of shape {rows.shape} do not belong together")
        if dim is not None and rows.shape[1] != dim:
            raise ValueError(f"vectors of length {rows.shape[1]} do not belong to a store of length {dim}")
        if not self._keys:
            self._oldest = time.monotonic()
        self._keys += keys
        self._vectors.append(rows)
        if len(self._keys) >= COMMIT_ROWS or time.monotonic() - self._oldest >= COMMIT_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Commit the buffer as one segment; after this the rows survive a kill and a power loss."""
        if not self._keys:
            return
        start = time.perf_counter()
        features = np.concatenate(self._vectors)
        self._failed = True
        _commit(self._store.folder, self._writer, self._store.fingerprint, stack_keys(self._keys), features)
        self._failed = False
        self.committed += len(self._keys)
        self._keys, self._vectors = [], []
        self.seconds += time.perf_counter() - start

    def __enter__(self) -> FeatureWriter:
        """Return the writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Commit what is left, on failures and Ctrl-C too, unless the failure was a commit."""
        if not (error and self._failed):
            self.flush()


def _commit(
    folder: Path,
    writer: Writer,
    fingerprint: str,
    keys: Keys,
    features: FloatArray,
    replaces: Sequence[str] = (),
) -> None:
    created_ns = time.time_ns()
    image = build_image(
        keys,
        features,
        fingerprint=fingerprint,
        writer=writer.identity,
        created_ns=created_ns,
        replaces=replaces,
    )
    write_atomic(folder / writer.next_name(created_ns), image)
