"""A cache enters; the runs that it keeps, one of them, or two side by side, leave."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import UTC, datetime
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from featcache.api.options import Options, open_cache
from featcache.errors import RunNotFoundError
from featcache.records import ORIGINAL
from featcache.records.experiments import RunComparison, RunDetail, RunList, RunRow, ScoreChange, ScoredOn
from featcache.records.runs import RECORDS
from featcache.render.finetuning import name_of
from featcache.store import Cache, Run
from featcache.values import taking_typed

_SAME = (
    "dataset",
    "fingerprint",
    "split_digest",
    "split_sizes",
    "n_classes",
    "seeds",
    "train_views",
    "test_views",
    "versions",
)


@taking_typed
def runs(options: Options | None = None) -> RunList:
    """List the runs of a cache, oldest first."""
    with open_cache(options or Options(), create=False) as cache:
        return RunList(str(cache.folder), tuple(_row(run) for run in cache.runs.all()))


@taking_typed
def runs_show(number: int, options: Options | None = None) -> RunDetail:
    """Return one run with the record that it gave; raises `RunNotFoundError`."""
    with open_cache(options or Options(), create=False) as cache:
        run = _find(cache, number)
    kind = RECORDS.get(run.command)
    if run.summary is None or kind is None:
        return RunDetail(_row(run), None)
    try:
        return RunDetail(_row(run), restore(kind, run.summary))
    except (TypeError, KeyError, AttributeError) as error:
        raise RunNotFoundError(
            f"run {number} was made by another version of featcache, which kept other fields: its file is "
            f"{cache.folder}/runs/{number:06d}.json"
        ) from error


@taking_typed
def runs_compare(first: int, second: int, options: Options | None = None) -> RunComparison:
    """Set the scores of two runs side by side, with what differs between them; raises `RunNotFoundError`."""
    with open_cache(options or Options(), create=False) as cache:
        pair = [_find(cache, number) for number in (first, second)]
    for run in pair:
        try:
            has_scores = bool(_scores(run))
        except KeyError:  # made by another version, or by hand
            has_scores = False
        if not has_scores:
            raise RunNotFoundError(f"run {run.id} ({run.command}) has no scores: `featcache runs` lists others")
    before, after = map(_setting, pair)
    differences = [
        f"{name}: {_short(before.get(name))} | {_short(after.get(name))}"
        for name in _SAME
        if before.get(name) != after.get(name)
    ]
    scores, others = map(_scores, pair)
    rows = []
    for head in dict.fromkeys([*scores, *others]):
        (a, a_interval), (b, b_interval) = scores.get(head, (None, None)), others.get(head, (None, None))
        change = b - a if a is not None and b is not None else None
        rows.append(ScoreChange(head, a, a_interval, b, b_interval, change))
    scored = restore(ScoredOn, before), restore(ScoredOn, after)
    return RunComparison(_row(pair[0]), _row(pair[1]), scored, tuple(differences), tuple(rows))


def _find(cache: Cache, number: int) -> Run:
    for run in cache.runs.all():
        if run.id == number:
            return run
    raise RunNotFoundError(f"there is no run {number} in {cache.folder}: `featcache runs` lists them")


def _row(run: Run) -> RunRow:
    return RunRow(
        id=run.id,
        command=run.command,
        dataset=run.root,
        fingerprint=run.fingerprint,
        started=datetime.fromtimestamp(run.started, UTC).isoformat(timespec="seconds"),
        seconds=None if run.finished is None else round(run.finished - run.started, 3),
        result=_result(run),
    )


def _result(run: Run) -> str:
    summary: Mapping[str, Any] | None = run.summary
    if summary is None:
        return f"failed: {run.error}" if run.error else "not finished"
    try:
        return _said(run, summary)
    except KeyError as error:  # made by another version, or by hand
        return f"no {error.args[0]!r} in it"


def _said(run: Run, summary: Mapping[str, Any]) -> str:
    if run.command in ("extract", "import"):
        counts = [f"{summary[name]:,} {name}" for name in ("computed", "reused", "rows") if name in summary]
        view = summary.get("view", ORIGINAL)
        return ", ".join(counts if view == ORIGINAL else [f"view {view}", *counts])
    if run.command == "audit":
        return f"{len({row['path'] for row in summary['rows']}):,} pictures named"
    scores = {head: score for head, (score, _) in _scores(run).items() if score is not None and head != "dummy"}
    if not scores:
        return ""
    best = max(scores, key=lambda head: scores[head])
    others = f", best of {len(scores)}" if len(scores) > 1 else ""
    return f"{best} {scores[best]:.3f}{others}"


def _setting(run: Run) -> dict[str, Any]:
    """Return what may explain the scores of a run, under the same names for every command."""
    summary = dict(run.summary or {})
    setting = dict(summary.get("setting", summary))
    setting.setdefault("seeds", [setting["seed"]] if "seed" in setting else None)
    return setting


def _scores(run: Run) -> dict[str, tuple[float | None, tuple[float, float] | None]]:
    """Return accuracy and interval of each head of a run; of a grid, of the cells with all classes and images."""
    summary: Mapping[str, Any] = run.summary or {}
    if run.command == "compare":
        return {_name(row): (row["accuracy"], _pair(row["accuracy_interval"])) for row in summary.get("rows", [])}
    if run.command == "bench":
        whole = (row for row in summary.get("rows", []) if row["classes"] is None and row["per_class"] is None)
        return {row["head"]: (row["accuracy"], None) for row in whole}
    if run.command == "confusions" and "accuracy" in summary:
        return {summary["head"]: (summary["accuracy"], _pair(summary["accuracy_interval"]))}
    if run.command == "fit" and "accuracy" in summary:
        return {_name(summary): (summary["accuracy"], (summary["accuracy_low"], summary["accuracy_high"]))}
    if run.command == "finetune" and "accuracy" in summary:
        named = name_of(summary["network"], summary["unfreeze"])
        return {named: (summary["accuracy"], (summary["accuracy_low"], summary["accuracy_high"]))}
    return {}


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['head']}{'+views' if row.get('train_views') else ''}{'+tta' if row.get('test_views') else ''}"


def _short(value: Any) -> str:
    """Return a value as text, of a digest its first digits."""
    return value[:16] if isinstance(value, str) and len(value) == 64 else str(value)


def _pair(interval: Any) -> tuple[float, float] | None:
    return None if interval is None else (interval[0], interval[1])


def restore(kind: Any, value: Any) -> Any:
    """Build a record again from what `dataclasses.asdict` and JSON made of it; raises `TypeError` where fields lack."""
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{name: restore(hints[name], given) for name, given in value.items() if name in hints})  # type: ignore[operator]
    if get_origin(kind) is UnionType:
        return None if value is None else restore(get_args(kind)[0], value)
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        return tuple(restore(kinds[0] if kinds[-1] is Ellipsis else kinds[at], given) for at, given in enumerate(value))
    return value
