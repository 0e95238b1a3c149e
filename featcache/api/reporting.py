"""A dataset in the cache enters; one HTML page with all that is known of it leaves."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from featcache.decode import read, thumbnail
from featcache.errors import DatasetError, OutputError, PictureError
from featcache.heads import HEADS, several
from featcache.records import Failure, Progress
from featcache.records.experiments import BenchSummary, CompareSummary
from featcache.records.finetuning import FinetuneSummary
from featcache.records.reports import CalibrationBin, ReportSummary, ScoredPicture
from featcache.splits import digest

if TYPE_CHECKING:
    from featcache.api.confusing import Tried

EDGE = 80
QUALITY = 45
ROOM = 2_200_000
"""Bytes that all thumbnails may take, so that a page stays below 5 MB with its scripts and 10,000 pictures."""

SHOWN_FAILURES = 100
NEAREST = 3


def report(
    source: str | Path | None = None,
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
    options = options or Options()
    chosen = several([head, *heads])
    check_method(method)
    with open_experiment(source, options, progress, as_it_is=True) as experiment:
        found = tried(experiment, chosen, seed, progress)
        audit = audited(experiment, seed, progress)
        scored = tuple(_scored(experiment, found))
        predicted = {row.path: row.predicted for row in scored}
        recorded, missing = _recorded(experiment)
        failures = [
            Failure(row.item.path, row.reason or "")
            for row in experiment.cache.catalog.dataset(experiment.root)
            if row.key is None
        ]
        summary = ReportSummary(
            out=str(Path(out).absolute()),
            bytes=0,
            thumbnails=0,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            version=version("featcache"),
            command=_command(experiment.root, out, head, heads, seed, method, options),
            failures=tuple(failures[:SHOWN_FAILURES]),
            unreadable=len(failures),
            confusion=found.summary,
            calibration_error=_calibration_error(found),
            calibration=tuple(_calibration(found)),
            scored=scored,
            nearest=_nearest(found),
            map=map_of(experiment, method, seed, predicted, progress),
            compare=recorded["compare"],
            bench=recorded["bench"],
            finetunes=tuple(_finetunes(experiment)),
            ledger=ledger(experiment.root, Options(cache=options.cache)),
            audit=audit,
            missing=tuple(missing),
            notices=experiment.notices,
        )
        pictures = _thumbnails(experiment, _wanted(summary), progress)
    return _written(summary, pictures)


def _written(summary: ReportSummary, pictures: Mapping[str, bytes]) -> ReportSummary:
    from featcache.render.html import report_html

    page = report_html(summary, pictures).encode()
    try:
        Path(summary.out).write_bytes(page)
    except OSError as error:
        raise OutputError(f"cannot write {summary.out}: {error.strerror}") from error
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

    X, y = found.data.rows()
    present, codes = np.unique(y, return_inverse=True)
    means, _ = class_means(X, codes)
    square = np.square(means).sum(axis=1)
    apart = square[:, None] + square - 2 * means @ means.T
    np.fill_diagonal(apart, np.inf)
    names = [str(found.data.classes[code]) for code in present]
    order = np.argsort(apart, axis=1)[:, : min(NEAREST, len(names) - 1)]
    return {name: tuple(names[at] for at in row) for name, row in zip(names, order, strict=True)}


def _recorded(experiment: Experiment) -> tuple[dict[str, Any], list[str]]:
    """Return the newest compare and bench of these features and splits, and what to say where there is none."""
    kinds = {"compare": CompareSummary, "bench": BenchSummary}
    found: dict[str, Any] = dict.fromkeys(kinds)
    missing = []
    command = shlex.quote(experiment.root)
    for name, kind in kinds.items():
        runs = [run for run in experiment.cache.runs.all() if run.command == name and run.root == experiment.root]
        for run in reversed([run for run in runs if run.summary and run.fingerprint == experiment.spec.fingerprint]):
            if _is_of_these_pictures(experiment, run.summary or {}):
                try:
                    found[name] = restore(kind, run.summary)
                    break
                except (TypeError, KeyError, AttributeError):
                    continue  # of another version, with other fields
        if found[name] is None:
            why = "was recorded of these pictures, splits and features" if runs else "was recorded"
            missing.append(f"no `featcache {name}` {why}: `featcache {name} {command}` fills this")
    if not any(_finetunes(experiment)):
        missing.append(f"no fine-tuning was recorded: `featcache finetune {command}` fills this")
    return found, missing


def _is_of_these_pictures(experiment: Experiment, summary: Mapping[str, Any]) -> bool:
    setting = summary["setting"]
    try:
        plans = [experiment.plan(seed, strict=False) for seed in setting["seeds"]]
    except DatasetError:
        return False
    return bool(setting["split_digest"] == digest(experiment.features, plans))


def _finetunes(experiment: Experiment) -> Iterator[FinetuneSummary]:
    """Yield what was fine-tuned on these pictures and splits."""
    for run in experiment.cache.runs.all():
        if run.command == "finetune" and run.root == experiment.root and run.summary:
            plan = experiment.plan(int(run.summary["seed"]), strict=False)
            if run.summary["split_digest"] == digest(experiment.features, [plan]):
                yield restore(FinetuneSummary, run.summary)


def _wanted(summary: ReportSummary) -> list[str]:
    """Return the paths of the pictures to show, those first that belong to what is said of single ones."""
    wrong = sorted((row for row in summary.scored if row.label != row.predicted), key=lambda row: -row.probability)
    points = [point.path for point in summary.map.points]
    mixed = [points[at] for at in np.random.default_rng(0).permutation(len(points))]
    named = [row.path for row in summary.audit.rows]
    return list(dict.fromkeys([*named, *(row.path for row in wrong), *mixed]))


def _thumbnails(experiment: Experiment, paths: Sequence[str], progress: Progress | None) -> dict[str, bytes]:
    """Return pictures as small WEBP files by their paths, as far as there is room for; changed ones are left out."""
    keys = dict(zip(experiment.features.paths, experiment.features.keys, strict=True))

    def shrunk(path: str) -> bytes | None:
        try:
            data, key, _ = read(path)
            return thumbnail(data, EDGE, QUALITY) if key == keys[path] else None
        except PictureError:
            return None

    found: dict[str, bytes] = {}
    executor = ThreadPoolExecutor(thread_name_prefix="featcache-thumbnail")
    try:
        room = ROOM
        for done, (path, small) in enumerate(zip(paths, executor.map(shrunk, paths), strict=True)):
            room -= len(small or b"")
            if room < 0:
                break
            if small is not None:
                found[path] = small
            if progress:
                progress("report pictures", done, len(paths))
    finally:
        executor.shutdown(cancel_futures=True)
    if progress:
        progress("report pictures", len(paths), len(paths))
    return found
