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

from featcache.errors import CacheError, CacheWriteError, MissingFeaturesError
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

COMMIT_ROWS = 8192
COMMIT_SECONDS = 5.0
SMALL_BYTES = 64 * 2**20
MERGED_BYTES = 128 * 2**20
"""Compaction merges segments under `SMALL_BYTES` up to about this size; it holds some three times that in memory."""

_logger = logging.getLogger(__name__)


class FeatureStore:
    """The vectors of one fingerprint: a folder of immutable segments, whose listing is the truth.

    Opening it is recovery: segments that a valid one replaces are skipped, broken ones are moved to `bad` with a
    warning. Any number of processes may read and write at once.
    """

    def __init__(self, folder: Path, bad: Path, fingerprint: str) -> None:
        self.folder = folder
        self.fingerprint = fingerprint
        self._bad = bad
        self._loaded: dict[str, tuple[Header, Keys]] = {}
        self.refresh()

    def refresh(self) -> None:
        """List the segments again, and forget those that are gone."""
        while not self._scan():
            pass
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
        while True:
            try:
                return self._read(stack_keys(keys))
            except FileNotFoundError:  # merged away by a compaction since the last listing
                self.refresh()

    def verify(self) -> int:
        """Read every vector, move broken segments to `bad`, and return how many there were."""
        broken = 0
        for name, header in zip(self._names, self._headers, strict=True):
            try:
                read_features(self.folder / name, header)
            except SegmentError as error:
                self._quarantine(name, error)
                broken += 1
            except FileNotFoundError:
                continue
        self.refresh()
        return broken

    def compact(self) -> int:
        """Merge small segments, and return how many were merged; 0 also when another process is at it."""
        with exclusive(self.folder / ".compact.lock") as held:
            if not held:
                return 0
            self._remove_replaced()
            merged = 0
            for group in self._small_groups():
                merged += self._merge(group)
            self._remove_replaced()
            self.refresh()
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
            return np.empty((0, self.dim or 0), np.float32)
        result = np.empty((len(rows), self._headers[0].dim), dtype=self._headers[0].dtype)
        segment_of = np.searchsorted(self._offsets, rows, side="right") - 1
        order = np.argsort(segment_of, kind="stable")
        used, starts = np.unique(segment_of[order], return_index=True)
        for segment, places in zip(used, np.split(order, starts[1:]), strict=True):
            name = self._names[segment]
            try:
                features = read_features(self.folder / name, self._headers[segment])
            except SegmentError as error:
                self._quarantine(name, error)
                self.refresh()
                raise MissingFeaturesError(
                    f"{len(places):,} of {len(keys):,} vectors were in a broken segment: run `featcache extract` again"
                ) from error
            result[places] = features[rows[places] - self._offsets[segment]]
        return result

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
                with contextlib.suppress(FileNotFoundError):
                    (self.folder / name).unlink()

    def _small_groups(self) -> list[list[int]]:
        groups: list[list[int]] = []
        room = 0
        for segment, header in enumerate(self._headers):
            size = header.n_rows * (header.dim * np.dtype(header.dtype).itemsize + KEY_BYTES)
            if size >= SMALL_BYTES:
                continue
            if size > room or not groups:
                groups.append([])
                room = MERGED_BYTES
            groups[-1].append(segment)
            room -= size
        return [group for group in groups if len(group) > 1]

    def _merge(self, group: Sequence[int]) -> int:
        names = [self._names[segment] for segment in group]
        keys = np.concatenate([self._loaded[name][1] for name in names])
        features = np.concatenate([read_features(self.folder / self._names[s], self._headers[s]) for s in group])
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

    def append(self, keys: Sequence[bytes], vectors: FloatArray) -> None:
        """Add rows: `keys` (n) and `vectors` (n, d); raises `CacheWriteError` when a due commit fails."""
        if not self._keys:
            self._oldest = time.monotonic()
        self._keys += keys
        self._vectors.append(vectors.astype(self._dtype))
        if len(self._keys) >= COMMIT_ROWS or time.monotonic() - self._oldest >= COMMIT_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Commit the buffer as one segment; after this the rows survive a kill and a power loss."""
        if not self._keys:
            return
        start = time.perf_counter()
        features = np.concatenate(self._vectors)
        _commit(self._store.folder, self._writer, self._store.fingerprint, stack_keys(self._keys), features)
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
        if not isinstance(error, CacheWriteError):
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
