"""A function and its arguments enter; its results, computed on all cores, leave in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from featcache.records import Progress
from featcache.sources.threads import reading_threads

Argument = TypeVar("Argument")
Result = TypeVar("Result")


def in_threads(
    function: Callable[[Argument], Result], values: Sequence[Argument], stage: str, progress: Progress | None
) -> Iterator[Result]:
    """Yield the function's result for each value, in order; nobody waits for those not begun when it is left early."""
    from joblib import cpu_count

    with reading_threads(cpu_count()) as executor:
        for done, found in enumerate(executor.map(function, values)):
            if progress:
                progress(stage, done, len(values))
            yield found
    if progress and len(values):
        progress(stage, len(values), len(values))
