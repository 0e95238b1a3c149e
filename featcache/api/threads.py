"""A function and its arguments enter; its results, computed on all cores, leave in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from featcache.records import Progress

Argument = TypeVar("Argument")
Result = TypeVar("Result")


def in_threads(
    function: Callable[[Argument], Result], values: Sequence[Argument], stage: str, progress: Progress | None
) -> Iterator[Result]:
    """Yield the function's result for each value, in order; nobody waits for those not begun when it is left early."""
    from joblib import cpu_count

    executor = ThreadPoolExecutor(cpu_count(), thread_name_prefix="featcache-read")
    try:
        for done, found in enumerate(executor.map(function, values)):
            if progress:
                progress(stage, done, len(values))
            yield found
    finally:
        executor.shutdown(cancel_futures=True)
    if progress and len(values):
        progress(stage, len(values), len(values))
