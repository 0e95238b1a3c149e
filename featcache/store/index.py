"""Keys, or segments of them, in commit order enter; the place of each asked key leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from featcache.store.segment import KEY_BYTES, SMALL_BYTES, Keys, Segment

BLOCK = 2**18
"""So many keys are looked for at once, which takes some 100 bytes for each meanwhile."""


class KeyIndex:
    """Finds content keys by their first 64 bits, then compares all 256; of a key held twice the first wins.

    Keys asked for in the order in which they are held, as a dataset's usually are, are only compared.
    """

    def __init__(self, keys: Keys) -> None:
        self.keys = np.ascontiguousarray(keys)
        prefixes = _prefixes(self.keys)
        self._order = np.argsort(prefixes, kind="stable")
        self._prefixes = prefixes[self._order]
        self._distinct = not (self._prefixes[1:] == self._prefixes[:-1]).any()

    def find(self, wanted: Keys) -> npt.NDArray[np.intp]:
        """Return the row of each wanted key (m, 32), or -1 where it is not held."""
        if self._distinct and len(wanted) > 1:
            first = int(self._search(wanted[:1])[0])
            if first >= 0 and np.array_equal(self.keys[first : first + len(wanted)], wanted):
                return np.arange(first, first + len(wanted))
        rows = np.empty(len(wanted), dtype=np.intp)
        for at in range(0, len(wanted), BLOCK):
            rows[at : at + BLOCK] = self._search(wanted[at : at + BLOCK])
        return rows

    def _search(self, wanted: Keys) -> npt.NDArray[np.intp]:
        rows = np.full(len(wanted), -1, dtype=np.intp)
        prefixes = _prefixes(wanted)
        order = np.argsort(prefixes)  # sorted needles are found nine times as fast: they walk through memory in order
        places = np.empty(len(wanted), dtype=np.intp)
        places[order] = np.searchsorted(self._prefixes, prefixes[order], side="left")
        held, asked = _words(self.keys), _words(wanted)
        open_ = np.arange(len(wanted))
        while len(open_):  # more than one round only where different keys share their first 64 bits
            open_ = open_[places[open_] < len(self._prefixes)]
            open_ = open_[self._prefixes[places[open_]] == prefixes[open_]]
            candidates = self._order[places[open_]]
            equal = (held[candidates] == asked[open_]).all(axis=1)
            rows[open_[equal]] = candidates[equal]
            open_ = open_[~equal]
            places[open_] += 1
        return rows


class SegmentIndex:
    """Finds content keys in segments put end to end, in order of their names.

    `before` is the index of an earlier listing: of segments that are still there no key is sorted again but where the
    new ones are as many. Those that may soon be merged are not sorted together with others.
    """

    def __init__(self, segments: Sequence[Segment], before: SegmentIndex | None = None) -> None:
        self._segments = segments
        ends = np.cumsum([segment.header.n_rows for segment in segments], dtype=np.intp)
        self._starts = {s.name: int(end) - s.header.n_rows for s, end in zip(segments, ends, strict=True)}
        if before is None:
            self._parts = [_Part(segments)]
            return
        self._parts = [part for part in before._parts if part.names <= self._starts.keys()]
        known = {name for part in self._parts for name in part.names}
        for is_small in (False, True):
            new = [s for s in segments if s.name not in known and (s.header.n_bytes < SMALL_BYTES) == is_small]
            for part in [part for part in self._parts[::-1] if part.is_small == is_small]:
                if new and part.n_rows <= sum(segment.header.n_rows for segment in new):
                    self._parts.remove(part)
                    new += part.segments
            if new:
                self._parts.append(_Part(sorted(new, key=lambda segment: segment.name)))

    @property
    def keys(self) -> Keys:
        """All content keys (n, 32), in order of commit; one that was written twice is there twice."""
        if len(self._parts) != 1:
            self._parts = [_Part(self._segments)]
        keys: Keys = self._parts[0].index.keys
        return keys

    def find(self, wanted: Keys) -> npt.NDArray[np.intp]:
        """Return the row of each wanted key (m, 32), the first of several, or -1 where it is not held."""
        rows = np.full(len(wanted), -1, np.intp)
        for part in self._parts:
            found = part.find(wanted, self._starts)
            is_better = (found >= 0) & ((rows < 0) | (found < rows))
            rows[is_better] = found[is_better]
        return rows


class _Part:
    """Segments, in order, whose keys are sorted together."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        keys = np.concatenate([np.empty((0, KEY_BYTES), np.uint8), *(segment.keys for segment in segments)])
        self._starts = np.cumsum([0, *(len(segment.keys) for segment in segments)])
        for segment, start in zip(segments, self._starts, strict=False):
            segment.keys = keys[start : start + len(segment.keys)]  # a view, so that keys are in memory once
        self.segments = segments
        self.names = {segment.name for segment in segments}
        self.is_small = all(segment.header.n_bytes < SMALL_BYTES for segment in segments)
        self.n_rows = len(keys)
        self.index = KeyIndex(keys)

    def find(self, wanted: Keys, starts: Mapping[str, int]) -> npt.NDArray[np.intp]:
        """Return the rows of keys where the segments begin at `starts`, -1 where they are not held."""
        rows = self.index.find(wanted)
        held = rows >= 0
        numbers = np.searchsorted(self._starts, rows[held], side="right") - 1
        moved = np.array([starts[segment.name] for segment in self.segments], np.intp) - self._starts[:-1]
        rows[held] += moved[numbers]
        return rows


def stack_keys(keys: Sequence[bytes] | Keys) -> Keys:
    """Return content keys of 32 bytes each as one (n, 32) array; one that is there already as it is."""
    if isinstance(keys, np.ndarray):
        return keys
    return np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, KEY_BYTES)


def _prefixes(keys: Keys) -> npt.NDArray[np.uint64]:
    return np.ascontiguousarray(keys[:, :8]).view(">u8").reshape(-1).astype(np.uint64)


def _words(keys: Keys) -> npt.NDArray[np.uint64]:
    return np.ascontiguousarray(keys).view(np.uint64)
