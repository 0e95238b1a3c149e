"""A cache enters; where the time went since the first extraction, and from when on the cache was ahead, leave."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from featcache.api.options import Options, open_cache
from featcache.api.usage import backbone_of, extracted_at, last_extraction, views_of
from featcache.records.experiments import LedgerRow, LedgerSummary
from featcache.sources.addresses import named
from featcache.store import Cache, Run
from featcache.values import taking_typed

EXPERIMENTS = ("fit", "compare", "bench", "confusions")
"""The commands that would each run the network over all pictures, if there were no cache."""


@taking_typed
def ledger(source: str | Path | None = None, options: Options | None = None) -> LedgerSummary:
    """Account for the time spent on the dataset last extracted, or on `source`, with its last features.

    Raises `DatasetError` where there is none.
    """
    with open_cache(options or Options(), create=False) as cache:
        root = None if source is None else named(source)
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
        experiments = [run for run in own if run.command in EXPERIMENTS]
        passes = [_passes(run.summary or {}) for run in experiments]
        heads = sum(map(_seconds, experiments))
        extracting = sum(spent["extract"]) + sum(spent["extract views"])
        return LedgerSummary(
            cache=str(cache.folder),
            dataset=extraction.root,
            fingerprint=extraction.fingerprint,
            rows=tuple(
                LedgerRow(work, len(seconds), round(sum(seconds), 3)) for work, seconds in spent.items() if seconds
            ),
            experiments=len(experiments),
            network_seconds=round(network, 3),
            with_cache=round(extracting + heads, 3),
            without_cache=round(sum(passes) * network + heads, 3),
            break_even=_break_even(extracting, [times * network for times in passes], network),
            notices=() if network else ("no extraction of these pictures was timed here, so nothing can be compared",),
            backbone=backbone_of(cache, extraction.fingerprint) or "",
            extracted=extracted_at(extraction),
        )


def _passes(summary: Mapping[str, Any]) -> int:
    """Return how often an experiment would have run the network over all pictures: once, and once for each view."""
    setting = summary.get("setting", summary)
    return 1 + len({*setting.get("train_views", ()), *setting.get("test_views", ())})


def _break_even(extracting: float, costs: Sequence[float], network: float) -> int | None:
    """Return the experiment at which running the network each time has cost as much, going on as one plain one each."""
    if not network:
        return None
    spent = 0.0
    for number, cost in enumerate(costs, 1):
        spent += cost
        if spent >= extracting:
            return number
    return len(costs) + max(1, math.ceil((extracting - spent) / network))


def _network_seconds(cache: Cache, runs: list[Run], extraction: Run) -> float:
    """Return the seconds of one run of the network over the dataset, by the extraction that computed the most."""
    summaries = [run.summary or {} for run in runs if run.command == "extract"]
    most: Mapping[str, Any] = max(summaries, key=lambda summary: int(summary.get("computed", 0)), default={})
    pictures = len({row.key for row in cache.catalog.dataset(extraction.root) if row.key is not None})
    return pictures * _total(most) / int(most["computed"]) if most.get("computed") else 0.0


def _seconds(run: Run) -> float:
    summary = run.summary or {}
    if run.command == "extract":
        return _total(summary)
    return max(0.0, (run.finished or run.started) - run.started)  # a clock may have been set back


def _total(summary: Mapping[str, Any]) -> float:
    return float(summary.get("seconds", {}).get("total", 0.0))
