"""Values of the run enter; the frozen records that travel between stages leave."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

SCHEMA_VERSION = 1
"""Part of every fingerprint; raised when the same spec would mean other vectors."""

Progress = Callable[[str, int, int], None]
"""Called with the name of a stage, the steps done and the steps there are."""

FloatArray = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Item:
    """One picture as a dataset names it: absolute path, label and split (`None` where unknown)."""

    path: str
    label: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class Dataset:
    """The ordered pictures of a folder, a manifest or a single file, with what was left out and why."""

    root: str
    items: tuple[Item, ...]
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Preprocess:
    """How an upright RGB picture becomes network input.

    The short edge is resized to `resize` pixels (or both edges, where `resize_mode` is `squash`), the centre
    `crop` x `crop` is kept, values are divided by 255, then `mean` is subtracted and divided by `std` (R, G, B).
    """

    resize: int
    crop: int
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize_mode: str = "short"


@dataclass(frozen=True)
class FeatureSpec:
    """Everything that can change a vector; two specs are the same features only if all of it is equal."""

    backbone: str
    weights_sha256: str
    preprocess: Preprocess
    layer: str = "input of the classification layer"
    pooling: str = "the backbone's own"
    exif: str = "orientation applied"
    color: str = "RGB; alpha over white; ICC profile ignored; 16 bit scaled by 1/257"
    view: str = "original"
    precision: str = "fp32"
    dtype: str = "float32"
    schema_version: int = SCHEMA_VERSION

    @property
    def fingerprint(self) -> str:
        """The sha256 (hex) of the spec as canonical JSON: sorted keys, no white space."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Return the spec as canonical JSON."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> FeatureSpec:
        """Build a spec from `to_json`'s text; raises `TypeError` or `KeyError` on other text."""
        values = json.loads(text)
        steps = values.pop("preprocess")
        steps["mean"], steps["std"] = tuple(steps["mean"]), tuple(steps["std"])
        return cls(preprocess=Preprocess(**steps), **values)


@dataclass(frozen=True, slots=True)
class FileStat:
    """What tells an unchanged file without reading it: bytes, modification time (ns) and inode."""

    size: int
    mtime_ns: int
    inode: int


@dataclass(frozen=True, slots=True)
class Failure:
    """A picture that could not be used, and the reason in one line."""

    path: str
    reason: str


@dataclass(frozen=True)
class Seconds:
    """Where the time of an extraction went; read and decode are summed over threads, total is wall time."""

    read: float
    decode: float
    forward: float
    write: float
    total: float


@dataclass(frozen=True)
class ExtractSummary:
    """What an extraction found and did; found = reused + computed + duplicates + unreadable."""

    dataset: str
    cache: str
    backbone: str
    weights: str
    weights_file: str | None
    fingerprint: str
    dim: int
    device: str | None
    found: int
    reused: int
    computed: int
    duplicates: int
    unreadable: int
    unreadable_file: str | None
    seconds: Seconds
    failures: tuple[Failure, ...] = field(default=(), repr=False)
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Features:
    """Vectors in the caller's order: `X` (n, d), with labels, paths, splits and content keys (n each)."""

    X: FloatArray
    y: npt.NDArray[np.str_]
    paths: tuple[str, ...]
    splits: npt.NDArray[np.str_]
    keys: tuple[bytes, ...]
    fingerprint: str


@dataclass(frozen=True)
class Score:
    """The scores of one fitted head on one split, fractions of 1, with the 95 % Wilson interval of accuracy."""

    split: str
    n: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    balanced_accuracy: float
    macro_f1: float


@dataclass(frozen=True)
class FitSummary:
    """One head fitted and scored, with all that is needed to read the score."""

    head: str
    backbone: str
    weights: str
    fingerprint: str
    dataset: str
    split_sizes: dict[str, int]
    n_classes: int
    chosen_by: str
    fitted_on: str
    n_train: int
    n_test: int
    scored_split: str
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    balanced_accuracy: float
    macro_f1: float
    params: dict[str, Any]
    seed: int
    fit_seconds: float
    model: str
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prediction:
    """The label a model gives one picture, with the probability of every class."""

    path: str
    label: str
    probabilities: dict[str, float]


@dataclass(frozen=True)
class PredictSummary:
    """All predictions of one call, in the order of the pictures, and the pictures that could not be read."""

    model: str
    backbone: str
    fingerprint: str
    predictions: tuple[Prediction, ...]
    failures: tuple[Failure, ...]


@dataclass(frozen=True)
class DemoSummary:
    """What the demo did: one extraction, then one row a head."""

    extract: ExtractSummary
    rows: tuple[FitSummary, ...]


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
    """What a clean-up deletes, or deleted where `done`; `bytes` are those freed; `notices` say what stays and why."""

    cache: str
    done: bool
    unused: tuple[UnusedRows, ...]
    forgotten: tuple[str, ...]
    quarantined: int
    bytes: int
    notices: tuple[str, ...] = ()


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

    `added` are those that the cache did not hold, `replaced` the rows that were imported from this path before.
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
