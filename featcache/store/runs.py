"""What a command begins and finishes enters, a file a run; the runs kept in the cache leave, oldest first."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import stat
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path
from typing import Any

from featcache.errors import CacheWriteError, UsageError, one_line
from featcache.records.runs import RECORDS
from featcache.store.files import (
    UNREADABLE,
    checksum,
    claim_number,
    kept_in,
    move,
    number_of,
    parse_json,
    read_bounded,
    remove,
    write_atomic,
)
from featcache.texts import flaw, shortened, spelled_out
from featcache.values import misfit

EXTRACTIONS = ("extract", "import")
"""The commands that bring a dataset into the cache."""

FORGET = "forget"
"""The command of a run that gives a dataset up."""

LOST = "lost"
"""The command of a run that stands for one that could not be read: until it is given up, no vector is unused."""

FINGERPRINT = re.compile("[0-9a-f]{64}")

MOST_BYTES = 2**24
"""A run has fewer: a bench of ten thousand cells has some three million."""

MOST_SAID = 2000
"""Characters of the reason why a run failed: it may repeat what strangers wrote."""

MOST_GAP = 10**6
"""A run whose number is so far beyond that of the one before it was never begun: nobody must use the numbers up."""

MOST_BEYOND = MOST_GAP // 2
"""A name that is that of no run counts up to so far beyond the last run, which are fewer numbers than a gap may have.

It may be taken away again at any time, and what was begun beyond it must still count then.
"""

_NOT_NOTED = ".asked"
_NO_ROOM = "it could not be noted which dataset it was of"
_SUM = "sha256"
"""The field of a run's file with the checksum over all others; old files have none."""

_LAST = datetime.max.replace(tzinfo=UTC).timestamp()
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """One run of a command; `summary` is what it printed, or `None` while it has not finished; times are epoch seconds.

    An extraction is a run as soon as it is asked for: `fingerprint` is empty until it is known, and stays so where it
    came to nothing; `error` says why it failed. `catalog` names the catalog that holds its dataset, empty for the one
    in the cache folder; `model_sha256` is the digest of the model file that the run made, `rows_sha256` that of the
    pictures that it saved in the catalog.
    """

    id: int
    command: str
    root: str
    fingerprint: str
    started: float
    finished: float | None = None
    summary: Mapping[str, Any] | None = None
    model_sha256: str | None = None
    catalog: str = ""
    error: str | None = None
    rows_sha256: str | None = None

    @property
    def made(self) -> str | None:
        """The name of the model file that the run made and noted, if any."""
        model = (self.summary or {}).get("model")
        return None if model is None or self.model_sha256 is None else Path(str(model)).name


class Runs:
    """The runs of a cache, `runs/<number>.json`: they outlive the catalog, and several computers may add to them.

    Those that are started here belong to the datasets of `catalog`.
    """

    def __init__(self, folder: Path, catalog: str = "") -> None:
        self.catalog = catalog
        self._folder = folder
        self._known: dict[Path, tuple[tuple[int, ...], Run | str | None]] = {}
        """What files held when they were read last: a command asks for all of them several times."""

    def start(self, command: str, root: str, fingerprint: str = "", taken: Collection[int] = ()) -> Run:
        """Note that a run began, under a number that nobody else has, no model has, and that is none of those taken."""
        _checked(Run(0, command, root, fingerprint, time.time(), catalog=self.catalog))
        number = self._claimed(taken)
        run = Run(number, command, root, fingerprint, time.time(), catalog=self.catalog)
        try:
            self._write(run)
        except CacheWriteError:
            claimed = self._path(number)
            with contextlib.suppress(OSError):
                # A full disk has room for another name: that an extraction was asked for must not be forgotten.
                claimed.rename(claimed.with_suffix(_NOT_NOTED)) if command in EXTRACTIONS else claimed.unlink()
            raise
        return run

    def begin(self, run: Run, root: str, fingerprint: str) -> Run:
        """Note which dataset and features an extraction that was asked for is of; without a fingerprint of nothing."""
        if run.summary is not None or (run.root, run.fingerprint) == (root, fingerprint):
            return run
        begun = replace(run, root=root, fingerprint=fingerprint)
        self._write(begun)
        return begun

    def fail(self, number: int, reason: str) -> None:
        """Keep why a run failed, where it is still there and has not finished."""
        for run in self._newest_first():
            if run.id == number and run.summary is None:
                self._write(replace(run, error=shortened(one_line(reason), MOST_SAID)))

    def finish(
        self, run: Run, summary: Mapping[str, Any], model_sha256: str | None = None, rows_sha256: str | None = None
    ) -> Run:
        """Note that a run is complete, with what it printed, and with the digests of what it made; return it.

        Of what it printed the largest parts are left out where a run has no room for all.
        """
        done = replace(run, finished=time.time(), summary=summary, model_sha256=model_sha256, rows_sha256=rows_sha256)
        fitting = _fitting(done)
        if fitting is not done:
            left_out = ", ".join((fitting.summary or {})["left_out"])
            _logger.warning(
                "run %d has no room for all that it should keep, of at most %s bytes: it is kept without %s",
                run.id,
                f"{MOST_BYTES:,}",
                left_out,
            )
        self._write(fitting)
        return fitting

    def is_given_up(self, run: Run) -> bool:
        """Tell whether the dataset of a run was given up after the run had begun."""
        later = takewhile(lambda other: other.id > run.id, self._newest_first())
        return any(other.command == FORGET and other.root == run.root for other in later)

    def drop(self, run: Run) -> None:
        """Take back a run that came to nothing."""
        remove(self._path(run.id))

    def broken(self) -> dict[Path, int]:
        """Return the files that should be runs and cannot be read, with their numbers."""
        return {path: number for number, path, run in self._files() if isinstance(run, str)}

    def copies(self) -> list[Path]:
        """Return the files that hold, under another name, what a run holds, as programs that copy folders make them."""
        named = self._named()
        runs = self._own(named)
        return [
            path
            for number, path, run in named
            if isinstance(run, Run) and path.suffix != _NOT_NOTED and path != self._path(number)
            if _is_said_by(run, runs.get(number))
        ]

    def put_aside(self, path: Path, bad: Path) -> Run | None:
        """Move a file that cannot be read as a run to the folder `bad`, and return the run that now stands for it.

        It keeps what the other might have used: see `LOST`. One whose name is not that of a run gets a number of its
        own, since that which it begins with may be that of another. Returns `None`, and leaves the file, where it is
        the system that does not give it. Raises `CacheWriteError`.
        """
        number, found = next((n, run) for n, other, run in self._files() if other == path and isinstance(run, str))
        said = self._wrong(path, found)
        if said is None:
            return None
        kept = kept_in(bad, path.name)
        number = number if path == self._path(number) else self._claimed()
        error = f"{said}; it was moved to {kept}"
        run = Run(number, LOST, str(path), "", time.time(), catalog=self.catalog, error=one_line(error))
        data = _packed(run)
        try:
            bad.mkdir(exist_ok=True)
            os.link(path, kept, follow_symlinks=False)  # so that one of the two stands there at any time
        except OSError:
            move(path, kept)
        write_atomic(self._path(number), data)
        if path != self._path(number):
            remove(path)
        return run

    def kept_for(self) -> list[Run]:
        """Return the runs that stand for others that could not be read, and that were not given up."""
        return [run for run in self.all() if run.command == LOST and not self.is_given_up(run)]

    def _wrong(self, path: Path, found: str) -> str | None:
        """Return what is wrong with a file that is no run, `None` where the system does not give it, or it is one."""
        try:
            run = _restored(path)
        except OSError as error:
            return str(error.strerror) if error.errno in UNREADABLE else None
        except (ValueError, TypeError) as error:
            return shortened(str(error), MOST_SAID)
        return None if path == self._path(run.id) else found

    def all(self) -> list[Run]:
        """Return all runs, oldest first."""
        return list(self._newest_first())[::-1]

    def last(self, *commands: str) -> Run | None:
        """Return the newest run of these commands on the datasets of our catalog, finished or not, that ever began."""
        ours = (run for run in self._newest_first() if run.catalog == self.catalog and run.fingerprint)
        return next((run for run in ours if run.command in commands), None)

    def maker(self, name: str) -> Run | None:
        """Return the run that made the model file with this name, if any did."""
        return next((run for run in self._newest_first() if run.made == name), None)

    def _newest_first(self) -> Iterator[Run]:
        for _, path, run in self._files():
            if isinstance(run, Run):
                yield run
            else:
                _logger.warning("%s is left out, it cannot be read as a run: %s", path, run)

    def _files(self) -> Iterator[tuple[int, Path, Run | str]]:
        """Yield number, path and run, or what is wrong with it, newest first."""
        named = self._named()
        runs = self._own(named)
        last = _last(runs)
        for number, path, run in sorted(named, key=lambda named: (named[0], named[1].name), reverse=True):
            if number <= last and runs.get(number) is run:
                yield number, path, run
            elif number > last + MOST_BEYOND:
                continue  # it was never begun
            elif isinstance(run, str) or path.suffix == _NOT_NOTED:
                yield number, path, run
            elif number > last or not _is_said_by(run, runs.get(number)):
                yield number, path, f"it is not called {self._path(number).name}, and holds another run than that"

    def _named(self) -> list[tuple[int, Path, Run | str]]:
        """Return what is in the files whose names begin with a number, without those that were only claimed."""
        paths = [path for path in self._folder.glob("[0-9]*") if path.suffix in (".json", _NOT_NOTED)]
        numbers = [(number, path) for path in paths if (number := number_of(path.name)) is not None]
        numbers = [(n, path) for n, path in numbers if path.suffix == ".json" or path.stem == self._path(n).stem]
        read = ((number, path, self._read(path, number)) for number, path in numbers)
        return [(number, path, run) for number, path, run in read if run is not None]

    def _claimed(self, taken: Collection[int] = ()) -> int:
        """Claim the next free number, beyond all runs, all names that begin with one, and those that are taken."""
        named = self._named()
        last = _last(self._own(named))
        others = {number for number, _, _ in named} | set(taken)
        for folder in (self._folder, self._folder.parent / "models"):
            for path in folder.glob("[0-9]*"):
                number = number_of(path.name)
                with contextlib.suppress(OSError):
                    # One without content is of somebody who has just claimed its number, or of nobody.
                    others |= {number} if number is not None and path.lstat().st_size else set()
        near = [number for number in others if number <= last + MOST_BEYOND]
        return claim_number(self._folder, ".json", max(last, *near, 0))

    def _own(self, named: Iterable[tuple[int, Path, Run | str]]) -> dict[int, Run]:
        """Return the runs by their numbers, of those files that are called as a run is."""
        return {number: run for number, path, run in named if isinstance(run, Run) and path == self._path(number)}

    def _read(self, path: Path, number: int) -> Run | str | None:
        """Return the run in a file, or what is wrong with it; `None` of one that was stopped before it began."""
        try:
            status = path.lstat()
            stamp = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            known = self._known.get(path)
            if known is not None and known[0] == stamp:
                return known[1]
            run: Run | str | None = None
            if path.suffix == _NOT_NOTED:
                asked = status.st_mtime
                run = Run(number, EXTRACTIONS[0], "", "", asked, catalog=self.catalog, error=_NO_ROOM)
            elif status.st_size or not stat.S_ISREG(status.st_mode):
                run = _restored(path)
        except (OSError, ValueError, TypeError) as error:
            return str(error)
        self._known[path] = stamp, run
        return run

    def _write(self, run: Run) -> None:
        write_atomic(self._path(run.id), _checked(run))

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06d}.json"


def _restored(path: Path) -> Run:
    """Return the run in a file, checked; raises `OSError`, `TypeError`, and `ValueError` that says what is wrong."""
    run = _unpacked(read_bounded(path, MOST_BYTES))
    if run.id != number_of(path.name):
        raise ValueError(f"it is run {run.id}")
    return run


def _last(numbers: Iterable[int]) -> int:
    """Return the last of the numbers of runs, without those that are too far beyond the one before."""
    last = 0
    for number in sorted(numbers):
        if number - last > MOST_GAP:
            break
        last = number
    return last


def _is_said_by(copy: Run, run: Run | None) -> bool:
    """Tell whether a run knows all that is in a copy of its file, so that this may be of any time and be left out."""
    if run is None:
        return False
    same = (copy.command, copy.started, copy.catalog) == (run.command, run.started, run.catalog)
    return same and copy.fingerprint in ("", run.fingerprint) and copy.summary in (None, run.summary)


def _packed(run: Run) -> bytes:
    """Return the bytes of a run's file, whether they can be read again or not; raises `TypeError` and `ValueError`."""
    content = json.loads(json.dumps({**asdict(run), "summary": spelled_out(run.summary)}))
    return json.dumps({**content, _SUM: checksum(content)}, indent=1).encode()


def _unpacked(data: bytes) -> Run:
    """Return the run in the bytes of a file; raises `TypeError`, and `ValueError` that says what is wrong."""
    if len(data) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
    content = parse_json(data)
    if content.pop(_SUM, None) not in (None, checksum(content)):
        raise ValueError("its checksum does not match")
    return _run_of(content)


def _checked(run: Run) -> bytes:
    """Return the bytes of a run's file, which was read back from them; raises `UsageError` where it cannot be."""
    try:
        data = _packed(run)
        _unpacked(data)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{run.command} of {run.root!r:.100} cannot be noted as a run: {error}: give another value"
        ) from error
    return data


def _fitting(run: Run) -> Run:
    """Return a run without the largest parts of its summary, so that it fits, and with their names in it."""
    kept: dict[str, Any] = json.loads(json.dumps(spelled_out(run.summary)))
    left_out: list[str] = []
    fitting = run
    while len(_packed(fitting)) > MOST_BYTES and any(kept.values()):
        within, value, place = kept, kept, list[str]()
        while isinstance(value, dict) and (largest := max(value, key=lambda name: _weight(value[name]), default="")):
            if place and _weight(value[largest]) * 2 < _weight(value):  # it is all of it together
                break
            within, value = value, value[largest]
            place.append(largest)
        within[place[-1]] = type(value)()  # empty, but of its kind
        left_out.append(".".join(place))
        fitting = replace(run, summary={**kept, "left_out": left_out})
    return fitting


def _weight(value: Any) -> int:
    return len(json.dumps(value)) if isinstance(value, dict | list | str) else 0


def _run_of(content: Mapping[str, Any]) -> Run:
    """Return the run with these values; raises `TypeError`, and `ValueError` that says why they are none."""
    if wrong := misfit(Run, {**content, "summary": None}):
        raise ValueError(f"its {wrong} is {content.get(wrong)!r:.100}")
    run = Run(**content)
    if (flaw(run.root) or flaw(run.catalog)) is not None or (run.fingerprint and not run.root):
        raise ValueError(f"its root is {run.root!r:.100}")
    if run.fingerprint and not FINGERPRINT.fullmatch(run.fingerprint):
        raise ValueError(f"its fingerprint is {run.fingerprint!r:.100}")
    if not all(-_LAST < moment < _LAST for moment in (run.started, run.finished or 0.0)):
        raise ValueError("its times are beyond what a calendar has")
    if run.summary is not None and (wrong := misfit(RECORDS.get(run.command, dict[str, Any]), run.summary, "summary")):
        raise ValueError(f"its {wrong} is not what a summary of {run.command} has there")
    return run
