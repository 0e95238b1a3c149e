"""A number enters; so many threads that read leave, and nobody who gives up waits for a server that does not answer."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


@contextmanager
def reading_threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Yield threads that read; left by an exception, such as Ctrl-C, what they are at is not waited for.

    A server may take minutes to be given up; what a thread still brings then is dropped.
    """
    executor = ThreadPoolExecutor(count, thread_name_prefix="featcache-read")
    try:
        yield executor
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        raise
    executor.shutdown()
