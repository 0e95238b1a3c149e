"""A feature store and content keys enter; what a function makes of their vectors, a piece at a time, leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from featcache.errors import CacheError
from featcache.records import FloatArray, Progress
from featcache.store.features import ATTEMPTS, FeatureStore, in_threads, naming
from featcache.store.segment import Keys, Segment, stream_rows
from featcache.store.stored import Rows

Pieces = Iterator[tuple[Rows, FloatArray]]
Result = TypeVar("Result")


def scan(
    store: FeatureStore, keys: Keys, visit: Callable[[Pieces], Result], stage: str, progress: Progress | None
) -> list[Result]:
    """Return what `visit` makes of the vectors of `keys` (n, 32), called on all cores for each segment with some.

    It is given pieces of about 1 MiB, one at a time: places in `keys` (m) and their vectors (m, d). Each result is of a
    segment whose checksum was right. Raises as `FeatureStore.read` does.
    """

    def visited(part: tuple[Segment, Rows, Rows]) -> Result:
        segment, rows, places = part
        with naming(segment):
            pieces = stream_rows(store.folder / segment.name, segment.header, rows)
            return visit((places[piece], vectors) for piece, vectors in pieces)

    for _ in range(ATTEMPTS):
        results: list[Result] = []
        with store.mending():
            parts = store.by_segment(keys)
            for result in in_threads(visited, parts):
                results.append(result)
                if progress and len(parts) > 1:
                    progress(stage, len(results), len(parts))
            return results
    raise CacheError(f"{store.folder} changes faster than it can be read: run the same command again")
