"""What a function needs of the whole process enters; it leaves as it was when the last of several threads is done.

Also: a function leaves that works in a process that was forked, where OpenMP would wait for threads that are not there.
"""

from __future__ import annotations

import contextvars
import ctypes
import logging
import os
import platform
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache, wraps
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from featcache import forks
from featcache.errors import ForkedError
from featcache.values import taking_typed

P = ParamSpec("P")
T = TypeVar("T")

Warned = tuple[str, str, type[Warning]]
"""What to do about a warning ("ignore", "error"), how its message begins, and its class."""


class Shared:
    """A setting of the whole process that several threads want at once: the first makes it, the last takes it back.

    Each for itself would take it back while another still needs it, and leave that one's behind for good.
    """

    def __init__(self, make: Callable[[], AbstractContextManager[object]]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._users = 0
        self._made: AbstractContextManager[object] | None = None

    def __enter__(self) -> None:
        """Make the setting, if nobody has."""
        with self._lock:
            if not self._users:
                self._made = self._make()
                self._made.__enter__()
            self._users += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the setting back, if nobody else needs it."""
        with self._lock:
            self._users -= 1
            if not self._users and self._made is not None:
                self._made.__exit__(None, None, None)
                self._made = None


def filtering(*filters: Warned) -> Shared:
    """Return the setting that warnings are filtered so; `warnings.catch_warnings` is not made for threads."""
    return Shared(lambda: _filtered(filters))


@contextmanager
def _filtered(filters: Sequence[Warned]) -> Iterator[None]:
    for action, message, category in filters:
        # The comment makes it differ from a filter of the user's, which would be taken for the same one.
        warnings.filterwarnings(action, f"(?#featcache){message}", category)  # type: ignore[arg-type]
    into, ours = warnings.filters, warnings.filters[: len(filters)]
    try:
        yield
    finally:
        for place in (into, warnings.filters):  # another thread's catch_warnings may have brought a copy
            for entry in ours:
                with suppress(ValueError):
                    place.remove(entry)  # type: ignore[attr-defined]


@contextmanager
def _left_as_they_were() -> Iterator[None]:
    """Put back what libraries change in the whole process, and no caller asked for.

    Those are the start method of multiprocessing (decided for good by locks of tqdm and by joblib), places to import
    from, names for compilers in the environment, and a thread of tqdm.
    """
    import multiprocessing

    method = multiprocessing.get_start_method(allow_none=True)
    places, names, watched = [*sys.path], {*os.environ}, _watching()
    try:
        yield
    finally:
        now = multiprocessing.get_start_method(allow_none=True)
        if method is None and now == multiprocessing.get_all_start_methods()[0]:
            multiprocessing.set_start_method(None, force=True)
        sys.path[:] = [place for place in sys.path if place in places or "onnxruntime" not in place]
        added = [name for name in os.environ if name not in names and name.startswith(("TORCHINDUCTOR_", "TRITON_"))]
        for name in added:
            del os.environ[name]
        monitor = _watching()
        if watched is None and monitor is not None and not sys.modules["tqdm"].tqdm._instances:
            monitor.exit()
            sys.modules["tqdm"].tqdm.monitor = None


def _watching() -> Any:
    """Return the thread by which tqdm looks after its bars, `None` where there is none."""
    bars = sys.modules.get("tqdm")
    return None if bars is None else bars.tqdm.monitor


@contextmanager
def root_handlers_kept() -> Iterator[None]:
    """Take away handlers that logging gave to its root by itself, as a library used that without any."""
    before = [*logging.root.handlers]
    try:
        yield
    finally:
        if not before:
            logging.root.handlers[:] = [h for h in logging.root.handlers if type(h) is not logging.StreamHandler]


_settings = Shared(_left_as_they_were)


class _State(threading.local):
    """Whether this thread is inside one of our functions."""

    is_inside = False


_state = _State()
_lock = threading.Lock()
_at_work = 0
_forked = "between" if forks.seen else ""
"""Empty in a process that was not forked; `between` calls of our functions, or `during` one."""


def _note_fork() -> None:
    global _lock, _at_work, _forked
    _forked = "during" if _at_work or _forked == "during" else "between"
    _lock, _at_work, _state.is_inside = threading.Lock(), 0, False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def after_forks_too(function: Callable[P, T]) -> Callable[P, T]:
    """Return the function, made to work in a process that was forked after it, or torch, ran in the parent.

    There it runs in a thread of its own: OpenMP, which torch, scikit-learn and faiss bring, believes that the thread
    that was forked still has its helpers, and would wait for them for ever. Raises `ForkedError` in a process that was
    forked while a function was at work, since locks of libraries that were held then are held for ever.
    """

    function = taking_typed(function)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        if _state.is_inside:
            return function(*args, **kwargs)
        if _forked == "during":
            raise ForkedError(
                f"featcache.{function.__qualname__} cannot run here: this process was forked while featcache was at "
                "work; start it with multiprocessing's start method 'spawn'"
            )
        if _forked:
            found: T = _in_own_thread(_counted, function, args, kwargs)
            return found
        return _counted(function, args, kwargs)

    return call


def _counted(function: Callable[..., T], args: Sequence[Any], kwargs: dict[str, Any]) -> T:
    global _at_work
    with _lock:
        _at_work += 1
    _state.is_inside = True
    try:
        with _settings:
            return function(*args, **kwargs)
    finally:
        _state.is_inside = False
        with _lock:
            _at_work -= 1


def _in_own_thread(run: Callable[..., T], *args: object) -> T:
    found: list[T] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            found.append(run(*args))
        except BaseException as error:  # raised below, in the thread that called
            failed.append(error)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(work,), name="featcache-forked")
    thread.start()
    try:
        thread.join()
    except BaseException as error:  # Ctrl-C, or a signal's handler: let it end there as it would have here
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(type(error)))
        thread.join()
        raise
    if failed:
        raise failed[0]
    return found[0]


@cache
def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next batch; called before any thread starts, each would have its own way.

    Else every layer's output is fetched from the kernel and zeroed page by page: half of torch's time on the CPU. It is
    a setting for good, so that only those call it whose process it is: the command line does.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_ARENA_MAX of <malloc.h>: the arenas of threads hold no large blocks.
        libc.mallopt(-8, 1)
        libc.mallopt(-1, 2**31 - 1)
        if not libc.mallopt(-3, 2**30):  # older versions allow no more than this
            libc.mallopt(-3, 2**25)
