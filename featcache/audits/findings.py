"""Twins, suspect labels, outliers and looks of a dataset enter; a row for each picture that is named leaves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featcache.audits.labels import Suspects
from featcache.audits.looks import problems
from featcache.audits.outliers import MANY, UNLIKE
from featcache.audits.twins import Pairs, Rows
from featcache.records import Features, Look
from featcache.records.audits import KINDS, FindingRow

NEARLY = 0.9
"""Twins that are less alike than this (cosine) are said to be much alike, not nearly the same."""


@dataclass(frozen=True)
class Subject:
    """The files of a dataset (n), their different contents (m), and the cases (k): contents with one of their labels.

    `contents` and `cases` (n) number those of each file, the case being -1 where there is no label; `firsts` (m) and
    `case_firsts` (k) are the first files of each; `groups` (m) numbers twins. `splits` (n) are the names that files are
    found under, `fitted` and `scored` (n) say what a plan does with them.
    """

    features: Features
    contents: Rows
    firsts: Rows
    cases: Rows
    case_firsts: Rows
    groups: Rows
    splits: npt.NDArray[np.str_]
    fitted: npt.NDArray[np.bool_]
    scored: npt.NDArray[np.bool_]

    def row(self, kind: str, file: int, value: float, reason: str, **more: str | int | bool | None) -> FindingRow:
        """Return a row on one file."""
        given = {"suggested": None, "group": None, "kept": False} | more
        path, label = self.features.paths[file], str(self.features.y[file])
        return FindingRow(kind, path, label, str(self.splits[file]), value=float(value), reason=reason, **given)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Judgement:
    """What is thought of each case (k): its label, how like its class it is, and how many pictures that class has."""

    suspects: Suspects
    classes: tuple[str, ...]
    codes: Rows
    typicality: npt.NDArray[np.float64]
    sizes: Rows

    @property
    def trust(self) -> npt.NDArray[np.float64]:
        """The probability (k) of the label of each case, -1 where it cannot be judged."""
        found = self.suspects.probabilities[np.arange(len(self.codes)), self.codes]
        return np.nan_to_num(found, nan=-1.0)


Named = tuple[Sequence[int], str, float, str, str | None]
"""Files, kind, value, reason, and the class they look like."""


def others(subject: Subject, judgement: Judgement, looks: Mapping[bytes, Look]) -> list[FindingRow]:
    """Return rows for suspect labels, outliers and what pictures look like, each picture named once for what it is."""
    wrong = set(judgement.suspects.rows.tolist())
    of_case = _files_of(subject.cases)
    looking = list(_looking(subject, judgement, looks))
    junk = {int(subject.cases[files[0]]) for files, kind, *_ in looking if kind in ("blank", "placeholder")}
    named = looking
    for case, code in zip(judgement.suspects.rows.tolist(), judgement.suspects.suggested.tolist(), strict=True):
        likely = judgement.suspects.probabilities[case]
        own = float(likely[judgement.codes[case]])
        reason = f"looks like {judgement.classes[code]} ({likely[code]:.2f}), its own label has {own:.2f}"
        if case not in junk:
            named.append((of_case[case], "label", own, reason, judgement.classes[code]))
    for case, z in enumerate(judgement.typicality.tolist()):
        if z < UNLIKE and judgement.sizes[case] >= MANY and case not in junk | wrong:
            named.append((of_case[case], "outlier", z, f"unlike the others of its class (typicality {z:.1f})", None))
    # Suspects are in their order already, and sorting keeps it.
    named.sort(key=lambda found: (KINDS.index(found[1]), 0.0 if found[1] == "label" else found[2]))
    return [
        subject.row(kind, file, value, reason, suggested=suggested)
        for files, kind, value, reason, suggested in named
        for file in files
    ]


def _looking(subject: Subject, judgement: Judgement, looks: Mapping[bytes, Look]) -> Iterator[Named]:
    files_of, wrong = _files_of(subject.contents), set(judgement.suspects.rows.tolist())
    for content, first in enumerate(subject.firsts.tolist()):
        look = looks.get(subject.features.keys[first])
        if look is not None:
            files = files_of[content]
            cases = {case for case in subject.cases[files].tolist() if case >= 0}
            usual = min((float(judgement.typicality[case]) for case in cases), default=0.0)
            for kind, value, reason in problems(look, usual):
                # A picture that is mostly of one colour and is in the wrong class stands in for nothing.
                if kind != "placeholder" or not cases & wrong:
                    yield files, kind, value, reason, None


def twins(
    subject: Subject, pairs: Pairs, trust: npt.NDArray[np.float64], doubted: npt.NDArray[np.bool_]
) -> list[FindingRow]:
    """Return a row for each file that has a twin, groups across training and scoring first, then the most alike.

    `trust` (n) says how likely the label of each file is, `doubted` (n) whether it is named for something else. So many
    files of a group are kept that each of the others has a twin among them, unless all of them are doubted.
    """
    nearest, stand_ins = _nearest(pairs), _stand_ins(subject)
    found = []
    for files in _files_of(subject.groups[subject.contents]).values():
        if len(files) > 1:
            kind = "leak" if subject.fitted[files].any() and subject.scored[files].any() else "twin"
            partners = {file: _partner(subject, file, nearest, stand_ins) for file in files}
            best = max(cosine for _, cosine in partners.values())
            found.append((KINDS.index(kind), -best, files[0], kind, partners))
    rows = []
    for number, (*_, kind, partners) in enumerate(sorted(found, key=lambda group: group[:3]), 1):
        kept = _kept(subject, list(partners), nearest, trust, doubted)
        for file, (other, cosine) in partners.items():
            reason = _likeness(subject, file, other, cosine)
            rows.append(subject.row(kind, file, cosine, reason, group=number, kept=file in kept))
    return rows


def _kept(
    subject: Subject,
    files: Sequence[int],
    nearest: Mapping[int, Sequence[tuple[float, int]]],
    trust: npt.NDArray[np.float64],
    doubted: npt.NDArray[np.bool_],
) -> set[int]:
    """Return files of a group of which none is a twin of another: scored ones first, then those with likely labels."""
    kept, covered = set(), set()
    for file in sorted(files, key=lambda file: (doubted[file], not subject.scored[file], -trust[file], file)):
        content = int(subject.contents[file])
        if content not in covered and not doubted[file]:
            kept.add(file)
            covered |= {content, *(other for _, other in nearest.get(content, ()))}
    return kept


def _files_of(numbers: Rows) -> dict[int, list[int]]:
    """Return the files of each number."""
    found: dict[int, list[int]] = defaultdict(list)
    for file, number in enumerate(numbers.tolist()):
        found[number].append(file)
    return found


def _nearest(pairs: Pairs) -> dict[int, list[tuple[float, int]]]:
    """Return the twins of each content, the most alike first."""
    found: dict[int, list[tuple[float, int]]] = defaultdict(list)
    for first, second, cosine in zip(
        *(part.tolist() for part in (pairs.first, pairs.second, pairs.cosine)), strict=True
    ):
        found[first].append((cosine, second))
        found[second].append((cosine, first))
    return {content: sorted(alike, reverse=True) for content, alike in found.items()}


def _stand_ins(subject: Subject) -> dict[int, list[int]]:
    """Return for each content two of its files that are scored and two that are not: of many copies these will do."""
    found: dict[int, list[int]] = {}
    for content, files in _files_of(subject.contents).items():
        scored = [file for file in files if subject.scored[file]]
        found[content] = scored[:2] + [file for file in files if not subject.scored[file]][:2]
    return found


def _partner(
    subject: Subject, file: int, nearest: Mapping[int, Sequence[tuple[float, int]]], files: Mapping[int, Sequence[int]]
) -> tuple[int, float]:
    """Return the file that a file is named with, and their cosine: across scoring if there is one, the most alike."""
    content = int(subject.contents[file])
    alike = [(1.0, content), *nearest.get(content, ())]
    linked = [(cosine, other) for cosine, twin in alike for other in files[twin] if other != file]
    cosine, best = max(linked, key=lambda pair: (bool(subject.scored[pair[1]] != subject.scored[file]), pair[0]))
    return best, cosine


def _likeness(subject: Subject, file: int, other: int, cosine: float) -> str:
    features = subject.features
    same = f"nearly the same ({cosine:.2f}) as" if cosine >= NEARLY else f"much alike ({cosine:.2f})"
    if features.keys[file] == features.keys[other]:
        same = "the same file as"
    where = [
        f"in {subject.splits[other]}" * bool(subject.splits[other] and subject.splits[other] != subject.splits[file]),
        f"labelled {features.y[other] or 'nothing'}" * bool(features.y[other] != features.y[file]),
    ]
    return ", ".join(filter(None, [f"{same} {features.paths[other]}", *where]))
