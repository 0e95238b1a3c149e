"""A cache enters; where the time went since the first extraction, and from when on the cache was ahead, leave."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featcache.api.options import Options, open_cache
from featcache.api.usage import last_extraction, views_of
from featcache.records.experiments import LedgerRow, LedgerSummary
from featcache.store import Cache, Run

EXPERIMENTS = ("fit", "compare", "bench", "confusions")
"""The commands that would each run the network over all pictures, if there were no cache."""


def ledger(source: str | Path | None = None, options: Options | None = None) -> LedgerSummary:
    """Account for the time spent on the dataset last extracted, or on `source`, with its last features.

    Raises `DatasetError` where there is none.
    """
    with open_cache(options or Options(), create=False) as cache:
        root = None if source is None else os.path.abspath(source)  # noqa: PTH100 - as datasets are named
        extraction = last_extraction(cache, root)
        views = set(views_of(cache, extraction).values())
        finished = [run for run in cache.runs.all() if run.root == extraction.root and run.summary is not None]
        own = [run for run in finished if run.fingerprint == extraction.fingerprint]
        spent: dict[str, list[float]] = defaultdict(list)
        for run in finished:
            if run.fingerprint in views:
                spent["extract views"].append(_seconds(run))
            elif run.fingerprint == extraction.fingerprint:
                spent[run.command].append(_seconds(run))
        network = _network_seconds(cache, own, extraction)
        experiments = sum(len(spent[command]) for command in EXPERIMENTS)
        heads = sum(sum(spent[command]) for command in EXPERIMENTS)
        extracting = sum(spent["extract"]) + sum(spent["extract views"])
        return LedgerSummary(
            cache=str(cache.folder),
            dataset=extraction.root,
            fingerprint=extraction.fingerprint,
            rows=tuple(
                LedgerRow(work, len(seconds), round(sum(seconds), 3)) for work, seconds in spent.items() if seconds
            ),
            experiments=experiments,
            network_seconds=round(network, 3),
            with_cache=round(extracting + heads, 3),
            without_cache=round(experiments * network + heads, 3),
            break_even=math.ceil(extracting / network) if network else None,
            notices=() if network else ("no extraction of these pictures was timed here, so nothing can be compared",),
        )


def _network_seconds(cache: Cache, runs: list[Run], extraction: Run) -> float:
    """Return the seconds of one run of the network over the dataset, by the extraction that computed the most."""
    summaries = [run.summary or {} for run in runs if run.command == "extract"]
    most: Mapping[str, Any] = max(
        summaries, key=lambda summary: int(summary["computed"]), default={"computed": 0, "seconds": {}}
    )
    pictures = len({row.key for row in cache.catalog.dataset(extraction.root) if row.key is not None})
    return pictures * float(most["seconds"]["total"]) / int(most["computed"]) if most["computed"] else 0.0


def _seconds(run: Run) -> float:
    summary = run.summary or {}
    if run.command == "extract":
        return float(summary["seconds"]["total"])
    return (run.finished or run.started) - run.started
