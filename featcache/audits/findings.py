"""Twins, suspect labels, outliers and looks of a dataset enter; a row for each picture that is named leaves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featcache.audits.labels import Suspects
from featcache.audits.looks import problems
from featcache.audits.outliers import UNLIKE
from featcache.audits.twins import Pairs, Rows
from featcache.records import Features, Look
from featcache.records.audits import KINDS, FindingRow


@dataclass(frozen=True)
class Subject:
    """The files of a dataset (n), and their different contents (m): what an audit looks at.

    `contents` (n) numbers the content of each file, `firsts` (m) is the first file of each, `groups` (m) numbers twins.
    `splits` (n) are the names that files are found under, `fitted` and `scored` (n) say what a plan does with them.
    """

    features: Features
    contents: Rows
    firsts: Rows
    groups: Rows
    splits: npt.NDArray[np.str_]
    fitted: npt.NDArray[np.bool_]
    scored: npt.NDArray[np.bool_]

    @property
    def files(self) -> dict[int, list[int]]:
        """The files of each content."""
        found = defaultdict(list)
        for row, content in enumerate(self.contents.tolist()):
            found[content].append(row)
        return found

    def row(self, kind: str, file: int, value: float, reason: str, **more: str | int | bool) -> FindingRow:
        """Return a row on one file."""
        given = {"suggested": None, "group": None, "kept": False} | more
        path, label = self.features.paths[file], str(self.features.y[file])
        return FindingRow(kind, path, label, str(self.splits[file]), value=float(value), reason=reason, **given)  # type: ignore[arg-type]


def twins(subject: Subject, pairs: Pairs, trust: npt.NDArray[np.float64]) -> list[FindingRow]:
    """Return a row for each file that has a twin, groups across training and scoring first, then the most alike.

    Of each group one file is kept, where some are scored one of those, that of the content with the most `trust` (m).
    """
    nearest = _nearest(pairs)
    of_group: dict[int, list[int]] = defaultdict(list)
    for file, content in enumerate(subject.contents):
        of_group[int(subject.groups[content])].append(file)
    found = []
    stand_ins = _stand_ins(subject)
    for files in of_group.values():
        if len(files) > 1:
            kind = "leak" if subject.fitted[files].any() and subject.scored[files].any() else "twin"
            partners = {file: _partner(subject, file, nearest, stand_ins) for file in files}
            best = max(cosine for _, cosine in partners.values())
            found.append((KINDS.index(kind), -best, files[0], kind, partners))
    rows = []
    for number, (*_, kind, partners) in enumerate(sorted(found, key=lambda group: group[:3]), 1):
        candidates = [file for file in partners if kind == "twin" or subject.scored[file]]
        kept = max(candidates, key=lambda file: trust[subject.contents[file]])
        for file, (other, cosine) in partners.items():
            reason = _likeness(subject, file, other, cosine)
            rows.append(subject.row(kind, file, cosine, reason, group=number, kept=file == kept))
    return rows


def others(
    subject: Subject,
    suspects: Suspects,
    classes: Sequence[str],
    judged: Rows,
    typicality: npt.NDArray[np.float64],
    looks: Mapping[bytes, Look],
) -> list[FindingRow]:
    """Return rows for suspect labels, outliers and what pictures look like, each content named once for what it is.

    `judged` are the contents that `suspects` and `typicality` number.
    """
    wrong = {int(judged[row]) for row in suspects.rows}
    # A picture that is mostly of one colour and is in the wrong class stands in for nothing.
    looking = _looking(subject, judged, typicality, looks)
    named = [row for row in looking if row[1] != "placeholder" or row[0] not in wrong]
    junk = {content for content, kind, *_ in named if kind in ("blank", "placeholder")}
    for row, code in zip(suspects.rows, suspects.suggested, strict=True):
        content, likely = int(judged[row]), suspects.probabilities[row]
        if content not in junk:
            own = float(likely[classes.index(str(subject.features.y[subject.firsts[content]]))])
            reason = f"looks like {classes[code]} ({likely[code]:.2f}), its own label has {own:.2f}"
            named.append((content, "label", own, reason, classes[code]))
    for content, z in zip(judged.tolist(), typicality.tolist(), strict=True):
        if z < UNLIKE and content not in junk | wrong:
            named.append((content, "outlier", z, f"unlike the others of its class (typicality {z:.1f})", None))
    order = {content: rank for rank, (content, kind, *_) in enumerate(named) if kind == "label"}
    named.sort(key=lambda row: (KINDS.index(row[1]), order.get(row[0], 0) if row[1] == "label" else row[2], row[0]))
    files = subject.files
    return [
        subject.row(kind, file, value, reason, **({"suggested": suggested} if suggested else {}))
        for content, kind, value, reason, suggested in named
        for file in files[content]
    ]


Named = tuple[int, str, float, str, str | None]


def _looking(
    subject: Subject, judged: Rows, typicality: npt.NDArray[np.float64], looks: Mapping[bytes, Look]
) -> Iterator[Named]:
    usual = dict(zip(judged.tolist(), typicality.tolist(), strict=True))
    for content, first in enumerate(subject.firsts.tolist()):
        look = looks.get(subject.features.keys[first])
        if look is not None:
            for kind, value, reason in problems(look, usual.get(content, 0.0)):
                yield content, kind, value, reason, None


def _nearest(pairs: Pairs) -> dict[int, list[tuple[float, int]]]:
    """Return the twins of each content, the most alike first."""
    found: dict[int, list[tuple[float, int]]] = defaultdict(list)
    both: Iterable[tuple[int, int, float]] = zip(
        pairs.first.tolist(), pairs.second.tolist(), pairs.cosine.tolist(), strict=True
    )
    for first, second, cosine in both:
        found[first].append((cosine, second))
        found[second].append((cosine, first))
    return {content: sorted(alike, reverse=True) for content, alike in found.items()}


def _stand_ins(subject: Subject) -> dict[int, list[int]]:
    """Return for each content two of its files that are scored and two that are not: of many copies these will do."""
    found: dict[int, list[int]] = {}
    for content, files in subject.files.items():
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
    same = "the same file as" if features.keys[file] == features.keys[other] else f"nearly the same ({cosine:.2f}) as"
    where = [
        f"in {subject.splits[other]}" * bool(subject.splits[other] and subject.splits[other] != subject.splits[file]),
        f"labelled {features.y[other] or 'nothing'}" * bool(features.y[other] != features.y[file]),
    ]
    return ", ".join(filter(None, [f"{same} {features.paths[other]}", *where]))
