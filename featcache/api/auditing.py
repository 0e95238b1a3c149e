"""A dataset in the cache enters; twins, leaks, labels that look wrong, outliers and junk among its pictures leave."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from featcache.api.experiment import Experiment, open_experiment
from featcache.api.options import Options
from featcache.api.splitting import check_manifest, write_manifest
from featcache.api.threads import in_threads
from featcache.decode import look
from featcache.errors import DatasetError, HeadError, PictureError
from featcache.heads import get
from featcache.process import after_forks_too
from featcache.records import Features, FloatArray, Look, Progress, Source
from featcache.records.audits import AuditSummary, FindingRow, LeakScore, SizeRow
from featcache.sources import CLOSED, exists
from featcache.splits import Plan, Rows, check_seed

if TYPE_CHECKING:
    from featcache.audits.findings import Judgement, Subject

HEAD = "logreg"
"""The head that is scored with and without what is also trained on."""


@after_forks_too
def audit(
    source: Source | None = None,
    seed: int = 0,
    manifest: str | Path | None = None,
    options: Options | None = None,
    progress: Progress | None = None,
) -> AuditSummary:
    """Look for what flatters or spoils scores in the dataset last extracted, or in `source`, as it is in the cache.

    Twins by content and by vector, those across what is trained on and scored first; labels that look wrong; pictures
    unlike their class, blank, tiny, of extreme shape, or standing in for one; classes too small or too unequal. No
    network is run, and no picture is changed. With `manifest` a new CSV lists the pictures without those named. `seed`
    decides the split, where the dataset has none, and the folds. Raises `FeatcacheError`.
    """
    check_seed(seed)
    with open_experiment(source, options, progress, as_it_is=True) as experiment, experiment.run("audit") as run:
        if manifest is not None:
            check_manifest(Path(manifest), sorted(set(experiment.features.y.tolist()) - {""}))
        summary = audited(experiment, seed, progress)
        if manifest is not None:
            summary = _cleaned(experiment.features, Path(manifest), summary)
        experiment.cache.runs.finish(run, asdict(summary))
        return summary


def audited(experiment: Experiment, seed: int, progress: Progress | None) -> AuditSummary:
    """Return what an audit finds in a dataset that is open."""
    started = time.perf_counter()
    plan, notices = _plan(experiment, seed)
    found = _examine(experiment, plan, seed, progress)
    gone = 0 if experiment.access is CLOSED else sum(not exists(path) for path in {row.path for row in found.rows})
    if gone:
        notices.append(f"{gone:,} of the pictures named are not where they were: `featcache extract` again")
    return AuditSummary(
        dataset=experiment.root,
        backbone=experiment.spec.backbone,
        weights=str(experiment.extracted["weights"]),
        fingerprint=experiment.spec.fingerprint,
        seed=seed,
        pictures=len(experiment.features.y),
        contents=len(found.subject.firsts),
        unreadable=len(experiment.unreadable),
        sizes=tuple(_sizes(found.subject)),
        leak=_leak_score(plan, found, seed, notices),
        cuts=_cuts(),
        rows=found.rows,
        manifest=None,
        seconds=round(time.perf_counter() - started, 3),
        notices=(*experiment.notices, *notices, *found.notices),
        extracted=experiment.extracted_at,
    )


@dataclass(frozen=True)
class _Found:
    subject: Subject
    rows: tuple[FindingRow, ...]
    notices: tuple[str, ...]


def _plan(experiment: Experiment, seed: int) -> tuple[Plan | None, list[str]]:
    try:
        plan = experiment.plan(seed, strict=False)
    except DatasetError as error:
        return None, [f"nothing is said of training and scoring: {error}"]
    return plan, list(plan.notices)


def _examine(experiment: Experiment, plan: Plan | None, seed: int, progress: Progress | None) -> _Found:
    from featcache.audits import findings
    from featcache.audits.axes import principal
    from featcache.audits.twins import groups, near_twins

    features = experiment.features
    numbers: dict[bytes, int] = {}
    contents = np.array([numbers.setdefault(key, len(numbers)) for key in features.keys], np.intp)
    firsts = np.unique(contents, return_index=True)[1]
    X = features.X[firsts]
    _check_finite(features, firsts, X)
    X = principal(X)
    pairs = near_twins(X, _peers(features.y[firsts]), progress)
    fitted, scored = (np.zeros(len(features.y), bool) for _ in range(2))
    splits = features.splits
    if plan is not None:
        fitted[plan.fitted], scored[plan.scored] = True, True
        if plan.made:
            splits = np.array([plan.made.get(key, "") for key in features.keys])
    labelled = [(int(content), str(label)) for content, label in zip(contents, features.y, strict=True)]
    known = {case: at for at, case in enumerate(dict.fromkeys(case for case in labelled if case[1]))}
    cases = np.array([known.get(case, -1) for case in labelled], np.intp)
    case_firsts = np.unique(cases, return_index=True)[1][int((cases < 0).any()) :]
    number = groups(pairs, len(firsts))
    subject = findings.Subject(features, contents, firsts, cases, case_firsts, number, splits, fitted, scored)
    judgement = _judged(subject, X, seed, progress)
    looks, unseen = _looks(experiment, subject, progress)
    rows = findings.others(subject, judgement, looks)
    doubted = np.isin(features.paths, [row.path for row in rows])
    trust = np.where(cases < 0, -1.0, np.append(judgement.trust, -1.0)[cases])
    notices = [*unseen, *_class_notices(subject, plan, judgement)]
    return _Found(subject, (*findings.twins(subject, pairs, trust, doubted), *rows), tuple(notices))


def _peers(labels: npt.NDArray[np.str_]) -> Rows:
    """Return how many contents have the label of each; all of them for one without."""
    _, codes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    return np.where(labels == "", len(labels), sizes[codes])


def _judged(subject: Subject, X: FloatArray, seed: int, progress: Progress | None) -> Judgement:
    """Judge labels and typicality of each case; `X` holds the vectors of the contents."""
    from featcache.audits.findings import Judgement
    from featcache.audits.labels import suspects
    from featcache.audits.outliers import typicality

    names, codes = np.unique(subject.features.y[subject.case_firsts], return_inverse=True)
    of_case = subject.contents[subject.case_firsts]
    X, number = X[of_case], subject.groups[of_case]
    return Judgement(
        suspects=suspects(X, codes, number, seed, progress),
        classes=tuple(map(str, names)),
        codes=codes,
        typicality=typicality(X, codes, number, seed),
        sizes=np.bincount(codes, minlength=1)[codes],
    )


def _check_finite(features: Features, firsts: Rows, X: FloatArray) -> None:
    broken = firsts[~np.isfinite(X).all(axis=1)]
    if len(broken):
        path = features.paths[broken[0]]
        raise HeadError(f"the vector of {path} is not finite: extract it again, or import a sound file")


def _looks(experiment: Experiment, subject: Subject, progress: Progress | None) -> tuple[dict[bytes, Look], list[str]]:
    """Return what contents look like, of those extracted before that was kept by looking at their files once."""
    features, catalog, reading = experiment.features, experiment.cache.catalog, experiment.spec.reading
    known = catalog.looks((features.keys[file] for file in subject.firsts), reading)
    missing = [file for file in subject.firsts.tolist() if features.keys[file] not in known]

    def see(file: int) -> Look | None:
        try:
            data, key, _ = experiment.access.read(features.paths[file])
            return look(data, reading) if key == features.keys[file] else None
        except PictureError:
            return None

    seen = zip(missing, in_threads(see, missing, "audit looks", progress), strict=True)
    new = {features.keys[file]: found for file, found in seen if found is not None}
    if new:
        catalog.remember_looks(new, reading)
    unseen = len(missing) - len(new)
    why = "were imported, and are not opened" if experiment.access is CLOSED else "are not where they were"
    said = f"{unseen:,} pictures {why}, so that nobody knows which of them are blank, tiny or long"
    return known | new, [said] * bool(unseen)


def _class_notices(subject: Subject, plan: Plan | None, judgement: Judgement) -> Iterator[str]:
    from featcache.audits import classes
    from featcache.audits.labels import FEWEST

    small = [name for name, size in zip(judgement.classes, np.bincount(judgement.codes), strict=True) if size < FEWEST]
    if small:
        yield f"labels of classes with fewer than {FEWEST} pictures are not judged: {', '.join(small[:FEWEST])}" + (
            f" and {len(small) - FEWEST:,} more" if len(small) > FEWEST else ""
        )
    if plan is not None:
        labels = subject.features.y[subject.firsts].tolist()
        sides = [np.unique(subject.contents[side]) for side in (subject.fitted, subject.scored)]
        fitted, scored = ([labels[content] for content in side] for side in sides)
        yield from classes.notices(fitted, scored, plan.scored_name)


def _sizes(subject: Subject) -> Iterator[SizeRow]:
    y, names = subject.features.y, sorted(set(subject.splits.tolist()) - {""})
    for label in sorted(set(y.tolist()) - {""}):
        of_label = y == label
        splits = Counter(subject.splits[of_label].tolist())
        contents = len(np.unique(subject.contents[of_label]))
        yield SizeRow(label, int(of_label.sum()), contents, {name: splits[name] for name in names})


def _leak_score(plan: Plan | None, found: _Found, seed: int, notices: list[str]) -> LeakScore | None:
    """Return what the head scores with and without pictures that have a twin in training, if there are any."""
    subject = found.subject
    leaked = np.isin(subject.features.paths, [row.path for row in found.rows if row.kind == "leak"])
    if plan is None or not leaked.any():
        return None
    from featcache.evaluate import wilson
    from featcache.experiments.fitting import fit_head
    from featcache.experiments.prepared import prepare

    y = subject.features.y
    scored = plan.scored[np.isin(y[plan.scored], y[plan.fitted])]
    if len(scored) < len(plan.scored):
        others = len(plan.scored) - len(scored)
        notices.append(
            f"{others:,} scored pictures are of classes that are not in train, and not scored beside the twins"
        )
    try:
        data = prepare(subject.features, replace(plan, scored=scored))
        hits = fit_head(get(HEAD), data, seed).probabilities.argmax(1) == data.truth
    except HeadError as error:
        notices.append(f"no head was scored with and without twins: {error}")
        return None
    clean = hits[~leaked[scored]]
    lost = np.setdiff1d(y[scored], y[scored[~leaked[scored]]])
    if len(lost) and len(clean):
        notices.append(f"without twins no picture of {', '.join(map(repr, lost[:5].tolist()))}"
                       f"{' and other classes' * (len(lost) > 5)} is left to score")  # fmt: skip
    return LeakScore(
        head=HEAD,
        seed=seed,
        scored_split=plan.scored_name,
        n_train=len(plan.fitted),
        n_test=len(hits),
        accuracy=float(hits.mean()),
        accuracy_interval=wilson(int(hits.sum()), len(hits)),
        n_without=len(clean),
        without=float(clean.mean()) if len(clean) else None,
        without_interval=wilson(int(clean.sum()), len(clean)) if len(clean) else None,
    )


def _cuts() -> dict[str, str]:
    from featcache.audits import labels, looks, outliers, twins

    rooms = ", ".join(f"{part:g} times as far as the {rank}th nearest picture" for rank, part in twins.NEARER.items())
    return {
        "leak": "twins of which some are trained on and some are scored",
        "twin": f"one content, or vectors at most {twins.SAME:g} apart (1 - cosine), or for both {rooms}",
        "label": "the least probable labels, as many as are confidently of another class (confident learning), by "
        f"{labels.FOLDS}-fold probabilities of logreg, C={labels.STRENGTH:g}",
        "outlier": f"typicality below {outliers.UNLIKE:g}: the modified z-score in its class of the mean cosine to the "
        f"nearest {outliers.NEIGHBOURS}, from {outliers.MANY} pictures of a class on",
        **looks.CUTS,
    }


def _cleaned(features: Features, file: Path, summary: AuditSummary) -> AuditSummary:
    """Write a manifest of the pictures that are not named, or are kept of their twins, with the splits they brought."""
    dropped = {row.path for row in summary.rows if not row.kept}
    rows = [
        (path, str(label), str(split))
        for path, label, split in zip(features.paths, features.y, features.splits, strict=True)
        if path not in dropped
    ]
    write_manifest(file, rows)
    left, notices = {label for _, label, _ in rows}, list(summary.notices)
    notices += [f"class {row.label!r} has no picture in {file.name}" for row in summary.sizes if row.label not in left]
    return replace(summary, manifest=str(file.absolute()), notices=tuple(notices))
