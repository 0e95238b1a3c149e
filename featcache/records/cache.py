"""Values of the run enter; the frozen records of what a cache holds, and what was done to it, leave."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class DatasetInfo:
    """A dataset that the cache knows; `present` tells whether its folder or file is there now."""

    dataset: str
    present: bool
    pictures: int
    unreadable: int
    classes: int
    splits: dict[str, int]
    fingerprints: tuple[str, ...]
    last_use: str


@dataclass(frozen=True)
class BackboneInfo:
    """The vectors of one fingerprint; `backbone` and what belongs to it are `None` where the spec is lost."""

    backbone: str | None
    weights_sha256: str | None
    precision: str | None
    view: str | None
    fingerprint: str
    dim: int | None
    dtype: str | None
    rows: int
    segments: int
    bytes: int
    last_use: str | None


@dataclass(frozen=True)
class CacheInfo:
    """What a cache holds; times are UTC in ISO 8601, `bytes` is all of the folder."""

    cache: str
    catalog: str
    datasets: tuple[DatasetInfo, ...]
    backbones: tuple[BackboneInfo, ...]
    models: int
    quarantined: int
    bytes: int


@dataclass(frozen=True)
class RowCheck:
    """One picture or vector that is not valid: stale, missing or orphaned, and why; of an orphan the path if known."""

    state: str
    path: str | None
    key: str
    fingerprint: str
    reason: str


@dataclass(frozen=True)
class DatasetCheck:
    """How many pictures of a dataset are valid, stale, missing or unreadable under one fingerprint."""

    dataset: str
    backbone: str
    fingerprint: str
    valid: int
    stale: int
    missing: int
    unreadable: int


@dataclass(frozen=True)
class VerifySummary:
    """What a check of the whole cache found, and what a repair did; `problems` are what is still wrong, a line each."""

    cache: str
    segments: int
    rows_checked: int
    datasets: tuple[DatasetCheck, ...]
    orphaned: int | None
    broken: tuple[str, ...]
    tried_to_repair: bool
    repaired: tuple[str, ...]
    problems: tuple[str, ...]
    notices: tuple[str, ...]
    rows: tuple[RowCheck, ...] = field(repr=False)


@dataclass(frozen=True)
class UnusedRows:
    """Vectors of one fingerprint that no dataset uses, and why; `kept` are the others."""

    fingerprint: str
    backbone: str | None
    rows: int
    kept: int
    bytes: int
    reason: str


@dataclass(frozen=True)
class GcSummary:
    """What a clean-up deletes, or deleted where `done`; `bytes` are those freed; `notices` say what stays and why.

    `trainings` are those that were stopped, and would go on if they were asked for again; `indexes` are of datasets as
    they were before.
    """

    cache: str
    done: bool
    unused: tuple[UnusedRows, ...]
    forgotten: tuple[str, ...]
    quarantined: int
    bytes: int
    notices: tuple[str, ...] = ()
    trainings: int = 0
    indexes: int = 0


@dataclass(frozen=True)
class Compacted:
    """The segments of one fingerprint before and after their merge."""

    fingerprint: str
    backbone: str | None
    segments_before: int
    segments_after: int
    bytes_freed: int


@dataclass(frozen=True)
class CompactSummary:
    """What a compaction merges, or merged where `done`."""

    cache: str
    done: bool
    rows: tuple[Compacted, ...]
    bytes_freed: int


@dataclass(frozen=True)
class ExchangeSummary:
    """Vectors written to a file, or read from one.

    `added` are those that the cache did not hold, `differing` those that it held with other values than the file has,
    which stay as they are, `replaced` the rows that were imported from this path before.
    """

    file: str
    format: str
    dataset: str
    backbone: str
    fingerprint: str
    rows: int
    dim: int
    bytes: int
    added: int | None = None
    replaced: int | None = None
    differing: int | None = None
    extracted: str = ""
