"""Keys in commit order enter; the place of each asked key leaves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from featcache.store.segment import KEY_BYTES, Keys

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


def stack_keys(keys: Sequence[bytes] | Keys) -> Keys:
    """Return content keys of 32 bytes each as one (n, 32) array; one that is there already as it is."""
    if isinstance(keys, np.ndarray):
        return keys
    return np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, KEY_BYTES)


def _prefixes(keys: Keys) -> npt.NDArray[np.uint64]:
    return np.ascontiguousarray(keys[:, :8]).view(">u8").reshape(-1).astype(np.uint64)


def _words(keys: Keys) -> npt.NDArray[np.uint64]:
    return np.ascontiguousarray(keys).view(np.uint64)
