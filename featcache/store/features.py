"""The folder of one fingerprint's segments enters; what it holds, and vectors read from it, leave."""

from __future__ import annotations

import contextlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from featcache.errors import CacheError, CacheWriteError, MissingFeaturesError, refusal
from featcache.records import FloatArray, Progress
from featcache.store import compaction
from featcache.store.files import LONGEST_NAME, denied, kept_in, remove, sync_folder
from featcache.store.index import KeyIndex, SegmentIndex, stack_keys
from featcache.store.segment import (
    Header,
    Keys,
    Segment,
    SegmentError,
    check_features,
    read_features,
    read_keys,
    read_rows,
)
from featcache.store.shares import Share
from featcache.store.stored import Rows, StoredRows

ATTEMPTS = 100
"""How often a listing is tried whose files vanish while it is read; a compaction makes that happen once."""

Result = TypeVar("Result")
Shape = tuple[int, str]
"""The length of vectors and the type of their values."""

_logger = logging.getLogger(__name__)


class _BrokenSegmentError(SegmentError):
    """A broken segment and its name, on the way to quarantine."""

    def __init__(self, name: str, said: str) -> None:
        super().__init__(said)
        self.name = name


class FeatureStore:
    """The vectors of one fingerprint: a folder of immutable segments, whose listing is the truth.

    What is committed is put into the `share` too, if there is one.

    Opening it is recovery: segments that a valid one replaces are skipped, broken ones are moved to `bad` with a
    warning. Those of vectors of another shape than the others are left out: `usual` says which one a run noted. Any
    number of processes may read and write at once.
    """

    def __init__(
        self,
        folder: Path,
        bad: Path,
        fingerprint: str,
        share: Share | None = None,
        usual: Callable[[], Shape | None] = lambda: None,
    ) -> None:
        self.folder = folder
        self.share = share
        self.fingerprint = fingerprint
        self.quarantined: list[str] = []
        self.left_out: tuple[str, ...] = ()
        """The names of segments with vectors of another shape than those in use."""
        self._usual = usual
        self._found = 0
        self._bad = bad
        self._live: dict[str, Segment] | None = None
        self._built: SegmentIndex | None = None
        self._before: SegmentIndex | None = None
        self._replaced: dict[str, Header] = {}
        self.refresh()

    def refresh(self) -> None:
        """List the segments again, and forget those that are gone."""
        for _ in range(ATTEMPTS):
            found = self._scan()
            if found is not None:
                break
        else:
            raise CacheError(f"{self.folder} lists segments that cannot be opened: look for broken links in it")
        found = self._alike(found)
        if self._live is not None and found.keys() == self._live.keys():
            return
        self._offsets = np.cumsum([0, *(segment.header.n_rows for segment in found.values())])
        self._live, self._built, self._before = found, None, self._built or self._before

    @property
    def live(self) -> list[Segment]:
        """The segments in use, in order of commit."""
        return list((self._live or {}).values())

    @property
    def segments(self) -> tuple[str, ...]:
        """The names of the live segments, in order of commit."""
        return tuple(self._live or ())

    @property
    def dim(self) -> int | None:
        """The length of a vector, or `None` while there are none."""
        return self.live[0].header.dim if self._live else None

    @property
    def keys(self) -> Keys:
        """All content keys that are held (n, 32), in order of commit; one that was written twice is there twice."""
        return self._index.keys

    @property
    def _index(self) -> SegmentIndex:
        """The index of all keys, built when it is first asked for, from the one of the listing before."""
        if self._built is None:
            self._built, self._before = SegmentIndex(self.live, self._before), None
        return self._built

    def contains(self, keys: Sequence[bytes]) -> npt.NDArray[np.bool_]:
        """Tell for each key whether its vector is held, as of the last listing."""
        return self._index.find(stack_keys(keys)) >= 0

    def read(self, keys: Sequence[bytes]) -> FloatArray:
        """Return the vectors (n, d) of `keys` (n), in their order, every segment checked against its crc.

        Raises `MissingFeaturesError` where a key is not held, or its segment turned out to be broken.
        """
        wanted = stack_keys(keys)
        for _ in range(ATTEMPTS):
            with self.mending():
                return self._read(wanted)
        raise CacheError(f"{self.folder} changes faster than it can be read: run the same command again")

    def stored(self, keys: Sequence[bytes] | Keys, check: bool = True) -> StoredRows:
        """Return the vectors of `keys` (n) as rows that are fetched from the disk when they are asked for.

        Every segment that holds one is checked against its crc now; without `check` the caller has to know which
        bytes are right. Raises as `read` does.
        """
        for _ in range(ATTEMPTS):
            if check:
                self.verify(keys)
            rows = self._find(stack_keys(keys))
            with self.mending():
                paths = [self.folder / segment.name for segment in self.live]
                return StoredRows(paths, [segment.header for segment in self.live], rows)
        raise CacheError(f"{self.folder} changes faster than it can be read: run the same command again")

    def verify(self, keys: Sequence[bytes] | Keys | None = None, progress: Progress | None = None) -> int:
        """Check every key and vector, or those segments that hold `keys`, and move broken segments to `bad`.

        Returns how many were moved since the store was opened or last verified.
        """
        segments = self.live
        if keys is not None:
            rows = self._index.find(stack_keys(keys))
            held = np.unique(np.searchsorted(self._offsets, rows[rows >= 0], side="right") - 1)
            segments = [segments[number] for number in held]
        for done, broken in enumerate(in_threads(self._check, segments), 1):
            if broken:
                self._quarantine(broken.name, broken)
            if progress:
                progress("check segments", done, len(segments))
        self.refresh()
        found, self._found = len(self.quarantined) - self._found, len(self.quarantined)
        return found

    def compact(self, progress: Progress | None = None) -> int:
        """Merge small segments, and return how many were merged; 0 also when another process is at it."""
        return compaction.compact(self, progress)

    def reopened(self) -> FeatureStore:
        """Open the same store once more, with a listing of its own."""
        return FeatureStore(self.folder, self._bad, self.fingerprint, self.share, self._usual)

    def after_compaction(self) -> tuple[int, int]:
        """Return how many segments a compaction would leave, and about how many bytes it would free."""
        return compaction.forecast(self)

    def discard(self, keys: Sequence[bytes], progress: Progress | None = None) -> None:
        """Delete the rows of `keys`; raises `CacheError` while another process compacts this store."""
        compaction.discard(self, stack_keys(keys), progress)

    def read_segment(self, segment: Segment, out: FloatArray) -> None:
        """Read the vectors of one segment into `out` (n, d); raises inside `mending` only."""
        with naming(segment):
            read_features(self.folder / segment.name, segment.header, out)

    @contextlib.contextmanager
    def mending(self) -> Iterator[None]:
        """Catch what a reader can meet: list again after a segment vanished, and put a broken one aside."""
        try:
            yield
        except FileNotFoundError:  # merged away by another process since the last listing
            self.refresh()
        except _BrokenSegmentError as error:
            self._quarantine(error.name, error)
            self.refresh()

    def remove_replaced(self) -> None:
        """Delete segments whose rows are in a newer one, oldest first, so that none comes back to life."""
        self.refresh()
        there = set(self._replaced)
        if there:  # the writer of the newer one may have been killed before it made its name durable
            sync_folder(self.folder)
        for name, header in sorted(self._replaced.items()):
            if there.isdisjoint(header.replaces):
                with contextlib.suppress(CacheWriteError):  # readers skip it, and the next time tries again
                    remove(self.folder / name)
                    there.remove(name)

    def _scan(self) -> dict[str, Segment] | None:
        """Return the live segments in the folder, by name; `None` where one vanished meanwhile.

        A listing of many files is no snapshot, so it is taken again until it shows nothing new: a compaction meanwhile
        could hide both a segment and the one that replaces it.
        """
        found: dict[str, Segment] = {}
        broken: set[str] = set()
        listing = self._listing()
        for _ in range(ATTEMPTS):
            new = sorted(listing.difference(found, broken))
            for name in new:
                try:
                    found[name] = (self._live or {}).get(name) or self._open(name, listing)
                except FileNotFoundError:
                    return None
                except SegmentError as error:
                    self._quarantine(name, error)
                    broken.add(name)
            if not new:
                break
            listing = self._listing()
        found = {name: found[name] for name in sorted(listing.intersection(found))}
        self._replaced = {name: found.pop(name).header for name in _replaced(found)}
        return found

    def _listing(self) -> set[str]:
        if (said := denied(self.folder)) is not None:
            raise CacheError(said)
        return {path.name for path in self.folder.glob("seg-*.h5")}

    def _open(self, name: str, names: set[str]) -> Segment:
        header, keys = read_keys(self.folder / name, self.fingerprint)
        if names.intersection(header.replaces):  # sources are skipped only for a wholly valid segment
            check_features(self.folder / name, header)
        return Segment(name, header, keys)

    def _read(self, keys: Keys) -> FloatArray:
        parts = self.by_segment(keys)
        result = np.empty((len(keys), self.dim or 0), self.live[0].header.dtype if self._live else "float32")

        def fill(part: tuple[Segment, Rows, Rows]) -> None:
            segment, rows, places = part
            with naming(segment):
                read_rows(self.folder / segment.name, segment.header, rows, result, places)

        for _ in in_threads(fill, parts):
            pass
        return result

    def by_segment(self, keys: Keys) -> list[tuple[Segment, Rows, Rows]]:
        """Return the segments that hold `keys` (n, 32), each with its rows (m, ascending) and their places in `keys`.

        Raises `MissingFeaturesError`.
        """
        rows = self._find(keys)
        order = np.argsort(rows, kind="stable")
        rows = rows[order]
        starts = np.searchsorted(rows, self._offsets)
        parts = zip(self.live, self._offsets, starts, starts[1:], strict=False)
        return [(found, rows[a:b] - offset, order[a:b]) for found, offset, a, b in parts if b > a]

    def _find(self, keys: Keys) -> npt.NDArray[np.intp]:
        rows = self._index.find(keys)
        missing = int((rows < 0).sum())
        if missing:
            raise MissingFeaturesError(
                f"{missing:,} of {len(keys):,} vectors are not in {self.folder}: run `featcache extract` again"
            )
        return rows

    def _check(self, segment: Segment) -> _BrokenSegmentError | None:
        path = self.folder / segment.name
        try:
            with naming(segment):
                header, _ = read_keys(path, self.fingerprint)
                check_features(path, header)
        except _BrokenSegmentError as error:
            return error
        except FileNotFoundError:
            return None
        return None

    def expect(self, dim: int) -> None:
        """Move segments with vectors of another length than `dim`, which is that of the network, to `bad`."""
        if not self.left_out and self.dim in (None, dim):
            return
        for name in (*self.segments, *self.left_out):
            with contextlib.suppress(FileNotFoundError, SegmentError):
                header, _ = read_keys(self.folder / name, self.fingerprint)
                if header.dim != dim:
                    said = f"has vectors of length {header.dim}, and the network gives {dim}"
                    self._quarantine(name, SegmentError(f"{self.folder / name} {said}"))
        self.refresh()

    def _alike(self, found: dict[str, Segment]) -> dict[str, Segment]:
        """Return the segments whose vectors have the usual shape, or else that of most: of one network they have one.

        Others stay where they are, since only the network knows which are right.
        """
        shapes = Counter[Shape]()
        for segment in found.values():
            shapes[segment.shape] += segment.header.n_rows
        if len(shapes) < 2:
            self.left_out = ()
            return found
        usual = self._usual()
        shape = usual if usual in shapes else shapes.most_common(1)[0][0]
        others = tuple(name for name in found if found[name].shape != shape)
        if others != self.left_out:
            self.left_out = others
            _logger.warning(
                "%s and %d more with vectors of another shape are left out: `featcache extract`, which knows the right "
                "one, puts away what is wrong",
                self.folder / others[0],
                len(others) - 1,
            )
        return {name: segment for name, segment in found.items() if segment.shape == shape}

    def _quarantine(self, name: str, error: SegmentError) -> None:
        kept = self._bad / f"{self.folder.name}-{name}"
        if len(os.fsencode(name)) > LONGEST_NAME or kept.exists():  # a segment that was restored, and broke again
            kept = kept_in(self._bad, kept.name)
        if not os.path.lexists(self.folder / name):
            return  # another process was faster
        try:
            self._bad.mkdir(exist_ok=True)
            (self.folder / name).rename(kept)
        except FileNotFoundError:
            return  # another process was faster
        except OSError as problem:
            raise CacheError(f"{error}; it could not be moved to {kept} ({refusal(problem)}): move it away") from error
        self.quarantined.append(str(error))
        _logger.warning(
            "%s; moved to %s. The next `featcache extract` computes its vectors again (fingerprint %s).",
            error,
            kept,
            self.folder.name,
        )


def _replaced(found: Mapping[str, Segment]) -> list[str]:
    """Return the segments whose rows are all in one that says to replace them; what holds less replaces nothing."""
    by: dict[str, str] = {}
    for name in sorted(found, reverse=True):
        there = [o for o in found[name].header.replaces if o in found and found[o].shape == found[name].shape]
        index = KeyIndex(found[name].keys) if there else None
        for other in there:
            above = name
            while above != other and above in by:  # two that say it of each other would both be gone
                above = by[above]
            if above != other and index is not None and (index.find(found[other].keys) >= 0).all():
                by.setdefault(other, name)
    return sorted(by)


@contextlib.contextmanager
def naming(segment: Segment) -> Iterator[None]:
    """Add the name of the segment to what says that it is broken."""
    try:
        yield
    except SegmentError as error:
        raise _BrokenSegmentError(segment.name, str(error)) from error


def in_threads(function: Callable[[Any], Result], values: Sequence[Any]) -> Iterator[Result]:
    """Call the function for each value on all cores: reading and checksums run beside each other."""
    with ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="featcache-read") as executor:
        yield from executor.map(function, values)
