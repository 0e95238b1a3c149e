"""A store of many small segments, or of rows nobody wants, enters; the same rows in fewer bytes leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from featcache.errors import CacheError
from featcache.records import Progress
from featcache.store.files import exclusive, remove
from featcache.store.index import KeyIndex
from featcache.store.segment import SMALL_BYTES, Keys, Segment, Writer, commit

if TYPE_CHECKING:
    from featcache.store.features import FeatureStore

MERGED_BYTES = 128 * 2**20
"""Compaction merges small segments up to about this size; it holds some three times that in memory."""

_LOCK = ".compact.lock"


def compact(store: FeatureStore, progress: Progress | None = None) -> int:
    """Merge small segments, and return how many were merged; 0 also when another process is at it."""
    with exclusive(store.folder / _LOCK) as held:
        if not held:
            return 0
        merged = 0
        store.remove_replaced()
        for _ in store.live:  # a bound: another process may commit faster than this one merges
            group = mergeable(store.live)
            if len(group) < 2:
                break
            with store.mending():
                _rewrite(store, group, [np.ones(len(segment.keys), bool) for segment in group])
                merged += len(group)
            store.remove_replaced()
            if progress:
                progress("compact", merged, merged + sum(s.header.n_bytes < SMALL_BYTES for s in store.live) - 1)
        return merged


def mergeable(segments: Sequence[Segment]) -> list[Segment]:
    """Return the first small segments that together make one of about `MERGED_BYTES`."""
    group: list[Segment] = []
    room = MERGED_BYTES
    for segment in segments:
        size = segment.header.n_bytes
        if size >= SMALL_BYTES:
            continue
        if size > room:
            break
        group.append(segment)
        room -= size
    return group


def forecast(store: FeatureStore) -> tuple[int, int]:
    """Return how many segments `compact` would leave, and about how many bytes it would free."""
    segments, freed = store.live, 0
    while len(group := mergeable(segments)) > 1:
        keys = np.unique(np.concatenate([segment.keys for segment in group]), axis=0)
        header = replace(group[0].header, n_rows=len(keys))
        freed += sum(segment.header.n_bytes for segment in group) - header.n_bytes
        names = {segment.name for segment in group}
        segments = [segment for segment in segments if segment.name not in names]
        segments.append(Segment(f"{group[-1].name}+", header, keys))
    overhead = sum((store.folder / segment.name).stat().st_size - segment.header.n_bytes for segment in store.live)
    return len(segments), freed + overhead * (len(store.live) - len(segments)) // max(1, len(store.live))


def discard(store: FeatureStore, unwanted: Keys, progress: Progress | None = None) -> None:
    """Delete the rows of the keys `unwanted` (m, 32); cut short at any moment, every other row stays.

    Raises `CacheError` where another process is compacting this store.
    """
    index = KeyIndex(unwanted)
    with exclusive(store.folder / _LOCK) as held:
        if not held:
            raise CacheError(f"another process is compacting {store.folder}: wait until it is done, then try again")
        store.remove_replaced()
        # What is deleted as a whole makes room first for what is written anew with fewer rows.
        segments = sorted(store.live, key=lambda segment: bool((index.find(segment.keys) < 0).any()))
        for done, segment in enumerate(segments, 1):
            kept = index.find(segment.keys) < 0
            with store.mending():
                if kept.all():
                    continue
                if kept.any():  # what holds less replaces nothing, so that both are there for a moment
                    _rewrite(store, [segment], [kept], replaces=False)
                remove(store.folder / segment.name)
            if progress:
                progress("delete", done, len(segments))
        store.remove_replaced()


def _rewrite(
    store: FeatureStore, group: Sequence[Segment], kept: Sequence[npt.NDArray[np.bool_]], replaces: bool = True
) -> None:
    """Commit one segment with the kept rows of a group, which it `replaces`; of a key held twice the first stays."""
    keys = np.concatenate([segment.keys for segment in group])
    features = np.empty((len(keys), group[0].header.dim), group[0].header.dtype)
    at = 0
    for segment in group:
        store.read_segment(segment, features[at : at + len(segment.keys)])
        at += len(segment.keys)
    rows = np.flatnonzero(np.concatenate(kept))
    rows = rows[KeyIndex(keys[rows]).find(keys[rows]) == np.arange(len(rows))]
    if len(rows) < len(keys):
        keys, features = keys[rows], features[rows]
    names = [segment.name for segment in group] if replaces else []
    commit(store.folder, Writer(), store.fingerprint, keys, features, names)
