"""What a command begins and finishes enters, a file a run; the runs kept in the cache leave, oldest first."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from featcache.store.files import claim_number, remove, write_atomic

EXTRACTIONS = ("extract", "import")
"""The commands that bring a dataset into the cache."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """One run of a command; `summary` is what it printed, or `None` while it has not finished; times are epoch seconds.

    `catalog` names the catalog that holds its dataset, empty for the one in the cache folder; `model_sha256` is the
    digest of the model file that the run made.
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


class Runs:
    """The runs of a cache, `runs/<number>.json`: they outlive the catalog, and several computers may add to them.

    Those that are started here belong to the datasets of `catalog`.
    """

    def __init__(self, folder: Path, catalog: str = "") -> None:
        self.catalog = catalog
        self._folder = folder

    def start(self, command: str, root: str, fingerprint: str = "") -> Run:
        """Note that a run began, under a number that nobody else has."""
        number = claim_number(self._folder, ".json")
        run = Run(number, command, root, fingerprint, time.time(), catalog=self.catalog)
        self._write(run)
        return run

    def finish(self, run: Run, summary: Mapping[str, Any], model_sha256: str | None = None) -> None:
        """Note that a run is complete, with what it printed."""
        self._write(replace(run, finished=time.time(), summary=summary, model_sha256=model_sha256))

    def drop(self, run: Run) -> None:
        """Take back a run that came to nothing."""
        remove(self._folder / f"{run.id:06d}.json")

    def broken(self) -> list[Path]:
        """Return the files that should be runs and cannot be read."""
        return [path for path, run in self._files() if isinstance(run, str)]

    def all(self) -> list[Run]:
        """Return all runs, oldest first."""
        return list(self._newest_first())[::-1]

    def last(self, *commands: str) -> Run | None:
        """Return the newest run of these commands on the datasets of our catalog, finished or not."""
        ours = (run for run in self._newest_first() if run.catalog == self.catalog)
        return next((run for run in ours if run.command in commands), None)

    def made_model(self, sha256: str) -> bool:
        """Tell whether a run of this cache made the model file with this digest."""
        return any(run.model_sha256 == sha256 for run in self._newest_first())

    def _newest_first(self) -> Iterator[Run]:
        for path, run in self._files():
            if isinstance(run, Run):
                yield run
            else:
                _logger.warning("%s is left out, it cannot be read as a run: %s", path, run)

    def _files(self) -> Iterator[tuple[Path, Run | str]]:
        """Yield path and run, or what is wrong with it, newest first."""
        for path in sorted(self._folder.glob("[0-9]*.json"), reverse=True):
            try:
                text = path.read_bytes()
                if text:  # empty: a run that was stopped before it began
                    yield path, Run(**json.loads(text))
            except (OSError, ValueError, TypeError) as error:
                yield path, str(error)

    def _write(self, run: Run) -> None:
        write_atomic(self._folder / f"{run.id:06d}.json", json.dumps(asdict(run), indent=1).encode())
