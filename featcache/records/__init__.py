"""Values of the run enter; the frozen records that travel between stages leave."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
import numpy.typing as npt

from featcache.texts import LONGEST_LABEL, flaw

SCHEMA_VERSION = 1
"""Part of every fingerprint; raised when the same spec would mean other vectors."""

ORIGINAL = "original"
DRAWN = "#"
"""What the name of a view has in it that was drawn at random."""

VIEWS = {"flip": ("flip",), "crops5": ("crop-tl", "crop-tr", "crop-bl", "crop-br")}
"""Views that can be asked for, each with their names in specs; the fifth of the crops is the original view."""

Source = Any
"""What names a dataset: a path or a URL as text or path-like, or a dataset object, see `discover`."""

Progress = Callable[[str, int, int], None]
"""Called with the name of a stage, the steps done and the steps there are."""


def is_drawn(view: str) -> bool:
    """Tell whether a view was drawn at random."""
    return DRAWN in view


FloatArray = npt.NDArray[np.floating[Any]]


def feature_names(backbone: str, n_features: int) -> list[str]:
    """Return the names of the columns of vectors in a table: `resnet18_0`, `resnet18_1` and so on."""
    name = re.sub("[^a-z0-9]+", "_", backbone.lower())
    return [f"{name}_{number}" for number in range(n_features)]


@dataclass(frozen=True, slots=True)
class Item:
    """One picture as a dataset names it: absolute path or other address, label and split (`None` where unknown)."""

    path: str
    label: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class Access:
    """How pictures are had by their addresses: bytes, content key and stat; or the stat alone, `None` where unknown.

    Both raise `PictureError`.
    """

    read: Callable[[str], tuple[bytes, bytes, FileStat | None]]
    stat: Callable[[str], FileStat | None]


@dataclass(frozen=True)
class Dataset:
    """The ordered pictures of a dataset, with what was left out and why; `access` where it has its own way to them.

    `skipped` counts what systems leave in folders, by kind.
    """

    root: str
    items: tuple[Item, ...]
    notices: tuple[str, ...] = ()
    access: Access | None = None
    skipped: Mapping[str, int] = field(default_factory=dict)


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
class Calibration:
    """The int8 network that makes the vectors: its sha256, and the pictures that its ranges were measured on.

    `keys` are the first 16 hex digits of their content keys, drawn from a dataset with `seed`.
    """

    network_sha256: str
    method: str
    seed: int
    keys: tuple[str, ...]


PRECISIONS = ("fp32", "fp16", "int8")
"""How exactly a network calculates: 32-bit floats, 16-bit floats, or 8-bit integers."""

DTYPES = ("float32", "float16")
"""The types of numbers that vectors are kept in."""

RESIZE_MODES = ("short", "squash")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")

MOST_EDGE = 4096
"""Pixels of a network's input, and of what it is cut from: four times what any of timm's takes."""

DRAFT = "JPEG drafted at 1/2, 1/4 or 1/8, the short edge at least twice what it is resized to"
"""How large JPEG files are decoded where speed was asked for: in fewer pixels, by libjpeg."""


POOLED = "input of the classification layer"
"""The layer of a backbone whose values are features."""


@dataclass(frozen=True)
class FeatureSpec:
    """Everything that can change a vector; two specs are the same features only if all of it is equal."""

    backbone: str
    weights_sha256: str
    preprocess: Preprocess
    layer: str = POOLED
    pooling: str = "the backbone's own"
    exif: str = "orientation applied"
    color: str = "RGB; alpha over white; ICC profile ignored; 16 bit scaled by 1/257"
    view: str = ORIGINAL
    precision: str = "fp32"
    dtype: str = "float32"
    schema_version: int = SCHEMA_VERSION
    decoding: str | None = None
    calibration: Calibration | None = None
    reading: str | None = None

    @property
    def network(self) -> FeatureSpec:
        """The spec of the exact network alone: full precision, and the original view of pictures fully decoded."""
        return replace(self, view=ORIGINAL, precision="fp32", decoding=None, calibration=None, reading=None)

    @property
    def calibrated(self) -> FeatureSpec:
        """The spec of the calibrated network alone: the original view of pictures fully decoded."""
        return replace(self, view=ORIGINAL, decoding=None, reading=None)

    @property
    def is_for_training(self) -> bool:
        """Whether these are no features of a dataset but what a training keeps: inner activations, or random draws."""
        return self.layer != POOLED or is_drawn(self.view)

    @property
    def fingerprint(self) -> str:
        """The sha256 (hex) of the spec as canonical JSON: sorted keys, no white space."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Return the spec as canonical JSON."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    def to_dict(self) -> dict[str, Any]:
        """Return the spec as plain values; what is `None` is left out, so that a new field keeps old fingerprints."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, text: str) -> FeatureSpec:
        """Build a spec from `to_json`'s text; raises `ValueError` on other text, and for values of another type."""
        try:
            values = json.loads(text)
            steps = values.pop("preprocess")
            steps["mean"], steps["std"] = tuple(steps["mean"]), tuple(steps["std"])
            known = values.pop("calibration", None)
            calibration = Calibration(**known | {"keys": tuple(known["keys"])}) if known else None
            spec = cls(preprocess=Preprocess(**steps), calibration=calibration, **values)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"the spec of the features is none ({type(error).__name__})") from error
        if not _is_a(cls, spec):
            raise ValueError("the spec of the features holds a value of another type")
        _check_values(spec)
        return spec


def _check_values(spec: FeatureSpec) -> None:
    """Raise `ValueError` for what no network here could make features of."""
    steps = spec.preprocess
    for name, text in {**vars(spec), **vars(steps)}.items():
        if isinstance(text, str) and (said := flaw(text, LONGEST_LABEL)) is not None:
            raise ValueError(f"the {name} of the features is {text!r:.60}: {said}")
    for name, edge in (("resize", steps.resize), ("crop", steps.crop)):
        if not 1 <= edge <= MOST_EDGE:
            raise ValueError(f"the {name} of the features is {edge!r:.40} pixels, and 1 to {MOST_EDGE:,} are taken")
    for name, known, value in (
        ("dtype", DTYPES, spec.dtype),
        ("resize_mode", RESIZE_MODES, steps.resize_mode),
        ("interpolation", INTERPOLATIONS, steps.interpolation),
    ):
        if value not in known:
            raise ValueError(f"the {name} of the features is {value!r:.60}, not one of {', '.join(known)}")
    if not all(math.isfinite(value) for value in (*steps.mean, *steps.std)):
        raise ValueError("the mean or std of the features is not finite")


def _is_a(kind: Any, value: Any) -> bool:
    """Tell whether a value is of the type that is noted, and if it is a record all in it too."""
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return type(value) is kind and all(_is_a(hints[one.name], getattr(value, one.name)) for one in fields(kind))
    if get_origin(kind) is UnionType:
        return any(_is_a(one, value) for one in get_args(kind))
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        kinds = kinds[:1] * len(value) if kinds[-1] is Ellipsis else kinds
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(_is_a, kinds, value))
    return type(value) is kind or (kind is float and type(value) is int)


@dataclass(frozen=True, slots=True)
class FileStat:
    """What tells an unchanged file without reading it: bytes, modification time (ns) and inode."""

    size: int
    mtime_ns: int
    inode: int


@dataclass(frozen=True, slots=True)
class Look:
    """What a picture looks like at a glance: its upright width and height, how flat it is, and its file's pages.

    `flat` is the share of 32 x 32 pixels, spread over it, that are within 12 levels of their median colour.
    """

    width: int
    height: int
    flat: float
    pages: int = 1


@dataclass(frozen=True, slots=True)
class Failure:
    """A picture that could not be used, and the reason in one line."""

    path: str
    reason: str


@dataclass(frozen=True)
class Seconds:
    """Where the time of an extraction went: total and write are wall time, the others are summed over threads."""

    read: float
    decode: float
    forward: float
    write: float
    total: float


@dataclass(frozen=True)
class ViewSummary:
    """What an extraction did for one further view; `seconds` is its share of the time of all views."""

    name: str
    fingerprint: str
    reused: int
    computed: int
    seconds: float


@dataclass(frozen=True)
class Probe:
    """The accuracy of a head on the scored split, with its 95 % Wilson interval."""

    accuracy: float
    accuracy_low: float
    accuracy_high: float


@dataclass(frozen=True)
class PrecisionCheck:
    """Vectors of less precision beside those of the exact network, on the same pictures: cosines, and a head on each.

    Without labels or a split to train on, the probes are `None`, and `note` says why; else it says which classes are
    not scored.
    """

    pictures: int
    cosine_mean: float
    cosine_least: float
    head: str
    seed: int
    scored_split: str | None
    n_train: int
    n_test: int
    probe: Probe | None
    exact_probe: Probe | None
    note: str | None


@dataclass(frozen=True)
class ExtractSummary:
    """What an extraction found and did; found = reused + computed + duplicates + unreadable.

    Counts and seconds are those of the original view; `views` tells of the further ones that were asked for. Of a
    `shard` (number, how many there are) all of it is about that part of the dataset. `plain` pictures are one colour
    all over as decoded, `paged` ones have several pages, of which `reading` (see `records.reading`) says what is taken.
    `classes` counts the readable pictures of each label in each split; the empty text stands for none. `skipped` counts
    what systems leave in folders, by kind; it is not among what was found.
    """

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
    view: str = ORIGINAL
    views: tuple[ViewSummary, ...] = ()
    precision: str = "fp32"
    engine: str | None = None
    engine_why: str | None = None
    check: PrecisionCheck | None = None
    columns: dict[str, str] | None = None
    shard: tuple[int, int] | None = None
    plain: int | None = None
    paged: int | None = None
    reading: str | None = None
    label_from: str | None = None
    names_encoding: str | None = None
    classes: dict[str, dict[str, int]] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class SplitSummary:
    """Who is trained on, chosen on and scored: `classes` counts the pictures of each label in each split.

    `pictures` are those in a split, `duplicates` further files of the same content among them; found = pictures +
    unreadable + those without a label. What was written is a `manifest` or a folder of `links`.
    """

    dataset: str
    seed: int
    fractions: dict[str, float]
    found: int
    pictures: int
    duplicates: int
    unreadable: int
    split_sizes: dict[str, int]
    classes: dict[str, dict[str, int]]
    manifest: str | None
    links: str | None
    failures: tuple[Failure, ...] = field(default=(), repr=False)
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Roll:
    """Who is in a dataset, without vectors: number of label and of split (n each), content keys (n, 32).

    `labels` and `names`, of splits, are sorted; the empty one stands for what is not known. `path` tells the path of a
    row.
    """

    labels: tuple[str, ...]
    y: npt.NDArray[np.signedinteger[Any]]
    names: tuple[str, ...]
    splits: npt.NDArray[np.signedinteger[Any]]
    keys: npt.NDArray[np.uint8]
    path: Callable[[int], str]


@dataclass(frozen=True)
class Features:
    """Vectors in the caller's order: `X` (n, d), with labels, paths, splits and content keys (n each).

    `views` holds the vectors (n, d) of further views of the same pictures, by name.
    """

    X: FloatArray
    y: npt.NDArray[np.str_]
    paths: tuple[str, ...]
    splits: npt.NDArray[np.str_]
    keys: tuple[bytes, ...]
    fingerprint: str
    views: Mapping[str, FloatArray] = field(default_factory=dict)

    @cached_property
    def roll(self) -> Roll:
        """Who is in it."""
        (labels, y), (names, splits) = (np.unique(found, return_inverse=True) for found in (self.y, self.splits))
        keys = np.frombuffer(b"".join(self.keys), np.uint8).reshape(-1, 32)
        return Roll(tuple(labels.tolist()), y, tuple(names.tolist()), splits, keys, self.paths.__getitem__)
