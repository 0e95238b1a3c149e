"""A dataset in the cache enters; one HTML page with all that is known of it leaves."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.api.accounting import ledger
from featcache.api.auditing import audited
from featcache.api.confusing import tried
from featcache.api.experiment import Experiment, open_experiment
from featcache.api.history import restore
from featcache.api.mapping import check_method, map_of
from featcache.api.options import Options
from featcache.api.outputs import refuse_cache, write
from featcache.api.threads import in_threads
from featcache.decode import thumbnail
from featcache.errors import DatasetError, PictureError
from featcache.heads import HEADS, several
from featcache.process import after_forks_too
from featcache.records import Failure, Progress, Source
from featcache.records.audits import AuditSummary
from featcache.records.experiments import BenchSummary, CompareSummary
from featcache.records.finetuning import FinetuneSummary
from featcache.records.reports import CalibrationBin, ReportSummary, ScoredPicture
from featcache.splits import check_seed, digest
from featcache.store import Run

if TYPE_CHECKING:
    from featcache.api.confusing import Tried

EDGE = 80
QUALITY = 45
ROOM = 2_200_000
"""Bytes that all thumbnails may take, so that a page stays below 5 MB with its scripts and 10,000 pictures."""

NAMES = 1_000_000
"""Characters that the paths of all pictures on the map may have; longer ones take room from the thumbnails."""

SHOWN_FAILURES = 100
NEAREST = 3


@after_forks_too
def report(
    source: Source | None = None,
    out: str | Path = "report.html",
    head: str = "logreg",
    heads: Sequence[str] = HEADS,
    seed: int = 0,
    method: str = "pca",
    options: Options | None = None,
    progress: Progress | None = None,
) -> ReportSummary:
    """Write a page on the dataset last extracted, or on `source`, as it is in the cache: it needs nothing to be shown.

    It has what `compare`, `bench` and `finetune` recorded of these pictures and splits, and computes the rest: who
    `head` takes for whom, what none of `heads` can learn, a map by `method` (`pca`, `tsne` or `umap`), the audit, the
    ledger. Pictures that are where they were have thumbnails. Raises `FeatcacheError`.
    """
    refuse_cache(Path(out))
    check_seed(seed)
    options = options or Options()
    chosen = several([head, *heads])
    check_method(method)
    with open_experiment(source, options, progress, as_it_is=True) as experiment:
        command = _command(experiment.root, out, head, heads, seed, method, options)
        found = tried(experiment, chosen, seed, progress)
        audit = audited(experiment, seed, progress)
        summary = _gathered(experiment, found, audit, method, progress, Path(out), command)
        pictures, gone = _thumbnails(experiment, _wanted(summary), progress)
        if gone:
            said = f"{gone:,} pictures are gone or have changed, and are not shown: `featcache extract` again"
            summary = replace(summary, notices=(*summary.notices, said))
    return _written(summary, pictures)


def _gathered(
    experiment: Experiment,
    found: Tried,
    audit: AuditSummary,
    method: str,
    progress: Progress | None,
    out: Path,
    command: str,
) -> ReportSummary:
    scored = tuple(_scored(experiment, found))
    predicted = {row.path: row.predicted for row in scored}
    recorded, missing = _recorded(experiment)
    failures = [Failure(row.item.path, row.reason or "") for row in experiment.unreadable]
    return ReportSummary(
        out=str(out.absolute()),
        bytes=0,
        thumbnails=0,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        version=version("featcache"),
        command=command,
        failures=tuple(failures[:SHOWN_FAILURES]),
        unreadable=len(failures),
        confusion=found.summary,
        calibration_error=_calibration_error(found),
        calibration=tuple(_calibration(found)),
        scored=scored,
        nearest=_nearest(found),
        map=map_of(experiment, method, audit.seed, predicted, progress),
        **recorded,
        ledger=ledger(experiment.root, Options(cache=experiment.cache.folder)),
        audit=audit,
        missing=tuple(missing),
        notices=experiment.notices,
    )


def _written(summary: ReportSummary, pictures: Mapping[str, bytes]) -> ReportSummary:
    from featcache.render.html import report_html

    page = report_html(summary, pictures).encode()
    write(Path(summary.out), page)
    return replace(summary, bytes=len(page), thumbnails=len(pictures))


def _command(
    root: str, out: str | Path, head: str, heads: Sequence[str], seed: int, method: str, options: Options
) -> str:
    words = ["featcache", "report", root, "--out", str(out)]
    words += ["--head", head] * (head != "logreg") + ["--heads", ",".join(heads)] * (tuple(heads) != HEADS)
    words += ["--seed", str(seed)] * (seed != 0) + ["--map", method] * (method != "pca")
    return shlex.join([*words, *(["--cache", str(options.cache)] if options.cache else [])])


def _scored(experiment: Experiment, found: Tried) -> Iterator[ScoredPicture]:
    names, truth, P = found.data.classes, found.data.truth, found.probabilities
    for at, row in enumerate(found.data.plan.scored):
        best = int(P[at].argmax())
        yield ScoredPicture(
            path=experiment.features.paths[row],
            label=str(names[truth[at]]),
            predicted=str(names[best]),
            probability=float(P[at, best]),
            label_probability=float(P[at, truth[at]]),
        )


def _calibration_error(found: Tried) -> float:
    from featcache.evaluate import calibration_error

    return calibration_error(found.data.truth, found.probabilities)


def _calibration(found: Tried) -> Iterator[CalibrationBin]:
    """Yield the bins that `calibration_error` is made of, without empty ones."""
    from featcache.evaluate import BINS

    sure = found.probabilities.max(axis=1)
    right = found.probabilities.argmax(axis=1) == found.data.truth
    numbers = np.minimum((sure * BINS).astype(int), BINS - 1)
    for number in np.unique(numbers):
        rows = numbers == number
        low, high = number / BINS, (number + 1) / BINS
        yield CalibrationBin(low, high, int(rows.sum()), float(sure[rows].mean()), float(right[rows].mean()))


def _nearest(found: Tried) -> dict[str, tuple[str, ...]]:
    """Return for each class those with the nearest mean vectors, of what was fitted on."""
    from featcache.heads.base import class_means

    X, y = found.data.scaled(found.data.scalings[0]).rows(found.data.y)
    present, codes = np.unique(y, return_inverse=True)
    means, _ = class_means(X, codes)
    square = np.square(means).sum(axis=1)
    apart = square[:, None] + square - 2 * means @ means.T
    np.fill_diagonal(apart, np.inf)
    names = [str(found.data.classes[code]) for code in present]
    order = np.argsort(apart, axis=1)[:, : min(NEAREST, len(names) - 1)]
    return {name: tuple(names[at] for at in row) for name, row in zip(names, order, strict=True)}


def _recorded(experiment: Experiment) -> tuple[dict[str, Any], list[str]]:
    """Return what was recorded of these features and splits, the newest of compare and bench, and what is missing."""
    runs = [run for run in experiment.cache.runs.all() if run.root == experiment.root and run.summary]
    command, missing = shlex.quote(experiment.root), []
    found: dict[str, Any] = {"finetunes": tuple(_restored(experiment, runs, "finetune", FinetuneSummary))}
    for name, kind in (("compare", CompareSummary), ("bench", BenchSummary)):
        found[name] = next(_restored(experiment, runs[::-1], name, kind), None)
        if found[name] is None:
            any_of_it = any(run.command == name for run in runs)
            which = " of these pictures, splits and features" if any_of_it else ""
            missing.append(f"no `featcache {name}` was recorded{which}: `featcache {name} {command}` fills this")
    if not found["finetunes"]:
        missing.append(f"no fine-tuning was recorded: `featcache finetune {command}` fills this")
    return found, missing


def _restored(experiment: Experiment, runs: Sequence[Run], command: str, kind: Any) -> Iterator[Any]:
    """Yield the records of those runs of a command that were on these features and splits."""
    for run in runs:
        summary = run.summary or {}
        if run.command == command and run.fingerprint == experiment.spec.fingerprint:
            # Other versions kept other fields.
            with suppress(TypeError, KeyError, AttributeError):
                if _is_of_these_pictures(experiment, summary):
                    yield restore(kind, summary)


def _is_of_these_pictures(experiment: Experiment, summary: Mapping[str, Any]) -> bool:
    setting = summary.get("setting", summary)
    seeds = setting["seeds"] if "seeds" in setting else [setting["seed"]]
    try:
        plans = [experiment.plan(seed, strict=False) for seed in seeds]
    except DatasetError:
        return False
    return bool(setting["split_digest"] == digest(experiment.features, plans))


def _wanted(summary: ReportSummary) -> list[str]:
    """Return the paths of the pictures to show, those first that belong to what is said of single ones."""
    wrong = sorted(
        (row for row in summary.scored if row.label != row.predicted), key=lambda row: -round(row.probability, 6)
    )
    points = [point.path for point in summary.map.points]
    mixed = [points[at] for at in np.random.default_rng(0).permutation(len(points))]
    named = [row.path for row in summary.audit.rows]
    return list(dict.fromkeys([*named, *(row.path for row in wrong), *mixed]))


def _thumbnails(
    experiment: Experiment, paths: Sequence[str], progress: Progress | None
) -> tuple[dict[str, bytes], int]:
    """Return pictures as small WEBP files by their paths, as far as there is room, and how many are gone or changed."""
    keys = dict(zip(experiment.features.paths, experiment.features.keys, strict=True))

    def shrunk(path: str) -> bytes | None:
        try:
            data, key, _ = experiment.access.read(path)
            return thumbnail(data, EDGE, QUALITY, experiment.spec.reading) if key == keys[path] else None
        except PictureError:
            return None

    found: dict[str, bytes] = {}
    gone = 0
    room = ROOM - max(0, sum(map(len, paths)) - NAMES)
    for small, path in zip(in_threads(shrunk, paths, "report pictures", progress), paths, strict=True):
        room -= len(small or b"")
        if room < 0:
            if progress:
                progress("report pictures", len(paths), len(paths))
            break
        if small is None:
            gone += 1
        else:
            found[path] = small
    return found, gone
