"""Values of the run enter; the frozen records of what an audit found leave."""

from __future__ import annotations

from dataclasses import dataclass

KINDS = ("leak", "twin", "label", "placeholder", "outlier", "blank", "tiny", "shape")
"""What an audit names pictures for, the gravest first."""


@dataclass(frozen=True)
class FindingRow:
    """One picture that an audit names, for what (`kind`), how strongly (`value`) and in words why (`reason`).

    Pictures of one `group` are twins of each other, and a `leak` is a group of which some are trained on and some are
    scored. `suggested` is the class it looks like. A cleaned manifest has those that are `kept`.
    """

    kind: str
    path: str
    label: str
    split: str
    suggested: str | None
    value: float
    group: int | None
    kept: bool
    reason: str


@dataclass(frozen=True)
class SizeRow:
    """The pictures of one class: how many files, how many different contents, and how many files in each split."""

    label: str
    pictures: int
    contents: int
    splits: dict[str, int]


@dataclass(frozen=True)
class LeakScore:
    """The accuracy of a head on what is scored, with and without the pictures that have a twin among those fitted on.

    Both are of the same fitted head, with 95 % Wilson intervals; `without` is `None` where nothing is left to score.
    """

    head: str
    seed: int
    scored_split: str
    n_train: int
    n_test: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    n_without: int
    without: float | None
    without_interval: tuple[float, float] | None


@dataclass(frozen=True)
class AuditSummary:
    """What an audit of one dataset found: a row for each picture and kind, the gravest first.

    `cuts` says of each kind what it was named by. `notices` hold what is to be said of classes and of the dataset.
    """

    dataset: str
    backbone: str
    weights: str
    fingerprint: str
    seed: int
    pictures: int
    contents: int
    unreadable: int
    sizes: tuple[SizeRow, ...]
    leak: LeakScore | None
    cuts: dict[str, str]
    rows: tuple[FindingRow, ...]
    manifest: str | None
    seconds: float
    notices: tuple[str, ...] = ()
    extracted: str = ""
