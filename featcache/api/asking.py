"""What a command names enters; a run that says so leaves at once, and outlives whatever comes of the command."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import wraps
from typing import ParamSpec, TypeVar

from featcache.api.options import Options, open_cache, places
from featcache.api.usage import newest_uses
from featcache.errors import FeatcacheError
from featcache.records import Source
from featcache.sources import exists
from featcache.sources.addresses import GIVEN, named
from featcache.store import Cache, Run

P = ParamSpec("P")
T = TypeVar("T")

_noted: ContextVar[list[str]] = ContextVar("noted")
"""The extractions that the command at hand has asked for; other threads and processes ask for their own."""


@contextmanager
def asked(command: str, source: Source, options: Options) -> Iterator[Run | None]:
    """Begin a run of what is to be extracted before anything can fail, and keep in it why something did.

    Yields `None` where there is no cache yet: then it holds no older dataset that could be taken for this one. Raises
    `CacheWriteError`.
    """
    runs = Cache.runs_at(*places(options))
    _noted.get([]).append(command)
    run = None if runs is None else runs.start(command, _name(source))
    try:
        yield run
    except FeatcacheError as error:
        if runs is not None and run is not None:
            with suppress(FeatcacheError):  # the disk may be full; then it stays one that was not finished
                runs.fail(run.id, str(error))
        raise


@contextmanager
def asking(source: Source | None, options: Options | None) -> Iterator[None]:
    """Keep that `source` was asked for also where a command fails before it comes to extracting it.

    Of a dataset that is used as it is nothing is kept, since it is not extracted.
    """
    runs = None if source is None else Cache.runs_at(*places(options or Options()))
    noted = _noted.get(None)
    noted = [] if noted is None else noted  # a command of the command line is a function inside, too
    token = _noted.set(noted)
    try:
        yield
    except BaseException as error:
        with suppress(FeatcacheError):
            if runs is not None and not noted and used_as_it_is(source, options or Options()) is None:
                run = runs.start("extract", _name(source))
                if isinstance(error, Exception):
                    runs.fail(run.id, str(error))
        raise
    finally:
        _noted.reset(token)


def asks(command: Callable[P, T]) -> Callable[P, T]:
    """Return a command whose `source` is known to be asked for, as in `asking`."""
    signature = inspect.signature(command)

    @wraps(command)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        given = signature.bind(*args, **kwargs).arguments
        with asking(given.get("source"), given.get("options")):
            return command(*args, **kwargs)

    return call


def used_as_it_is(source: Source, options: Options, always: bool = False) -> str | None:
    """Return the root of a dataset that is used without its pictures, or `None` where they are to be looked at."""
    folder = places(options)[0]
    is_plain = always or options == Options(cache=options.cache)
    is_named = isinstance(source, str | os.PathLike)
    if not is_named or not is_plain or not (always or folder.exists()):
        return None
    root = str(named(source))
    if always:
        return root
    with open_cache(options, create=False) as cache:
        run = newest_uses(cache).get(root)
    return root if run and (run.command == "import" or not exists(root)) else None


def _name(source: Source) -> str:
    """Return what a dataset is called before it has been looked at."""
    if isinstance(source, str | os.PathLike):
        return str(named(source))
    return f"{GIVEN}://{type(source).__name__}"
