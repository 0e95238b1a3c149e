"""Values of the run enter; the frozen records of all that a report shows leave."""

from __future__ import annotations

from dataclasses import dataclass

from featcache.records import Failure
from featcache.records.audits import AuditSummary
from featcache.records.experiments import BenchSummary, CompareSummary, ConfusionSummary, LedgerSummary
from featcache.records.finetuning import FinetuneSummary


@dataclass(frozen=True)
class ScoredPicture:
    """One scored picture: its label, what the head predicts, and the probabilities of both."""

    path: str
    label: str
    predicted: str
    probability: float
    label_probability: float


@dataclass(frozen=True)
class MapPoint:
    """One picture on a map of the vectors; `predicted` is `None` where it was not scored."""

    x: float
    y: float
    path: str
    label: str
    split: str
    predicted: str | None


@dataclass(frozen=True)
class Map:
    """The vectors in two dimensions: by which method, how much of the variance it shows, and of how many pictures."""

    method: str
    variance: float | None
    pictures: int
    points: tuple[MapPoint, ...]


@dataclass(frozen=True)
class CalibrationBin:
    """Scored pictures whose predicted class has a probability in one range: its mean, and how many were right."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class ReportSummary:
    """All that a report shows of one dataset; what was not recorded is `None` or empty, and named in `missing`.

    The confusions, the scored pictures and the calibration are those of one fitted head. `nearest` holds for each class
    the classes with the nearest mean vectors, the nearest first.
    """

    out: str
    bytes: int
    thumbnails: int
    created: str
    version: str
    command: str
    failures: tuple[Failure, ...]
    unreadable: int
    confusion: ConfusionSummary
    calibration_error: float
    calibration: tuple[CalibrationBin, ...]
    scored: tuple[ScoredPicture, ...]
    nearest: dict[str, tuple[str, ...]]
    map: Map
    compare: CompareSummary | None
    bench: BenchSummary | None
    finetunes: tuple[FinetuneSummary, ...]
    ledger: LedgerSummary
    audit: AuditSummary
    missing: tuple[str, ...]
    notices: tuple[str, ...] = ()
