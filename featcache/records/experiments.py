"""Values of the run enter; the frozen records of what was fitted, scored and predicted leave."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from featcache.records import ExtractSummary, Failure
from featcache.values import check_given

SCALING = "scaling"
"""The name under which a scaling of the vectors stands among the parameters of a head."""


@dataclass(frozen=True)
class Score:
    """The scores of one fitted head on one split, fractions of 1, with the 95 % Wilson interval of accuracy.

    `balanced_accuracy` and `macro_f1` are means over the classes of train that have a scored picture, which are
    `scored_classes`. `log_loss` is in nats a picture, `calibration_error` the expected one of the predicted class (15
    bins).
    """

    split: str
    n: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    balanced_accuracy: float
    macro_f1: float
    log_loss: float
    calibration_error: float
    scored_classes: int

    def summarised(self) -> dict[str, Any]:
        """Return its fields by the names that they have in summaries."""
        fields = asdict(self)
        return {"scored_split": fields.pop("split"), "n_test": fields.pop("n"), **fields}


@dataclass(frozen=True)
class Setting:
    """What all rows of a table share: what was trained on, chosen on and scored, and with which versions.

    `split_digest` is the sha256 of who is in which split; views are named besides the original one; `extracted` is when
    the features were, in UTC in ISO 8601, here and in other records. `unscored` are those of the `n_classes` of train
    that no scored picture has: means over classes are over the others.
    """

    dataset: str
    backbone: str
    weights: str
    fingerprint: str
    split_sizes: dict[str, int]
    split_digest: str
    n_classes: int
    fitted_on: str
    n_train: int
    scored_split: str
    n_test: int
    seeds: tuple[int, ...]
    train_views: tuple[str, ...]
    test_views: tuple[str, ...]
    versions: dict[str, str]
    extracted: str = ""
    unscored: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sweep:
    """Values to try for a network: units of its hidden layers, learning rate, activation, L2 penalty."""

    hidden: tuple[tuple[int, ...], ...] = ()
    lr: tuple[float, ...] = ()
    activation: tuple[str, ...] = ()
    alpha: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Take numbers of NumPy and lists; raises `UsageError` for other types."""
        check_given(self)


@dataclass(frozen=True)
class TrialRow:
    """Values that were tried for a head's parameters: accuracy where the choice is made, and the losses of one fit."""

    params: dict[str, Any]
    accuracy: float
    loss_curve: tuple[float, ...]


@dataclass(frozen=True)
class FitSummary:
    """One head fitted and scored, with all that is needed to read the score.

    `unscored` are the classes of train without a scored picture, so that `scored_classes` of `n_classes` are scored.
    """

    head: str
    backbone: str
    weights: str
    fingerprint: str
    dataset: str
    split_sizes: dict[str, int]
    split_digest: str
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
    log_loss: float
    calibration_error: float
    params: dict[str, Any]
    seed: int
    fit_seconds: float
    model: str
    train_views: tuple[str, ...]
    test_views: tuple[str, ...]
    versions: dict[str, str]
    trials: tuple[TrialRow, ...]
    loss_curve: tuple[float, ...]
    notices: tuple[str, ...] = ()
    out_of_core: bool = False
    extracted: str = ""
    scored_classes: int | None = None
    unscored: tuple[str, ...] = ()


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
class OnnxSummary:
    """A model written as one ONNX file, and what the file says of itself.

    `difference` is how far its probabilities are at most from those of `predict`, on made-up pictures; `score` is that
    of the head on its scored split, with 95 % interval. What `outside` says is left to who gives the pixels.
    """

    file: str
    model: str
    backbone: str
    weights: str
    weights_sha256: str
    fingerprint: str
    precision: str
    head: str
    labels: tuple[str, ...]
    views: tuple[str, ...]
    score: dict[str, Any]
    outside: str
    inside: str
    opset: int
    bytes: int
    difference: float
    featcache: str


@dataclass(frozen=True)
class CompareRow:
    """One head over all seeds: means, intervals, and whether it differs from the best; `error` says why it has none.

    `p_value` belongs to the paired test against the best head, corrected for the number of heads; `verdict` is best,
    tie, worse, floor or failed. Seconds are means a seed: `fit_seconds` with the choice of parameters, without what
    all heads share. A fine-tuned network stands beside the best head on the split of its own seed: `verdict` is better,
    tie or worse, `gain` the difference in accuracy, `gain_per_minute` is in points, `kept_epoch` is 0 where none was
    better than the start. `other_vectors` names those of its own run where they are not these: the gain is then not
    that of fine-tuning.
    `scored_classes` is how many classes balanced accuracy and macro-F1 are over, with the first seed.
    """

    head: str
    train_views: bool
    test_views: bool
    verdict: str
    accuracy: float | None = None
    accuracy_interval: tuple[float, float] | None = None
    balanced_accuracy: float | None = None
    balanced_interval: tuple[float, float] | None = None
    macro_f1: float | None = None
    log_loss: float | None = None
    calibration_error: float | None = None
    p_value: float | None = None
    accuracies: tuple[float, ...] = ()
    params: tuple[dict[str, Any], ...] = ()
    chosen_by: str | None = None
    fit_seconds: float | None = None
    predict_seconds: float | None = None
    error: str | None = None
    gain: float | None = None
    gain_per_minute: float | None = None
    kept_epoch: int | None = None
    other_vectors: str | None = None
    scored_classes: int | None = None


@dataclass(frozen=True)
class CompareSummary:
    """All heads on one dataset; `shared_seconds` is what was computed once a seed for all of them."""

    setting: Setting
    interval: str
    shared_seconds: float
    rows: tuple[CompareRow, ...]
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class BenchRow:
    """One head in one cell of a grid, over all seeds: `classes` and `per_class` as asked, `None` for all.

    `n_classes`, `n_train`, `n_test` and `scored_classes`, over which balanced accuracy is, are those of the first seed.
    `problem` says what is not as asked, `error` why there is no score.
    """

    head: str
    classes: int | None
    per_class: int | None
    n_classes: int
    n_train: int
    n_test: int
    accuracy: float | None
    accuracy_sd: float | None
    balanced_accuracy: float | None
    fit_seconds: float | None
    accuracies: tuple[float, ...]
    problem: str | None = None
    error: str | None = None
    scored_classes: int | None = None


@dataclass(frozen=True)
class BenchSummary:
    """Heads against the number of classes and of images per class; `reused` cells were known from before."""

    setting: Setting
    subsets: str
    rows: tuple[BenchRow, ...]
    computed: int
    reused: int
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class ClassRow:
    """How one class fares: scores of the head, and its recall by the best of all heads."""

    label: str
    n_train: int
    n_test: int
    precision: float
    recall: float
    f1: float
    confused_with: str | None
    best_recall: float
    best_head: str
    is_unlearnable: bool


@dataclass(frozen=True)
class PairRow:
    """Two classes that are taken for each other: pictures of `first` called `second`, and the other way round."""

    first: str
    second: str
    first_as_second: int
    second_as_first: int
    share: float


@dataclass(frozen=True)
class ConfusionSummary:
    """Who is taken for whom: `matrix[i][j]` pictures of class i were called class j by `head`."""

    setting: Setting
    head: str
    heads: tuple[str, ...]
    accuracy: float
    accuracy_interval: tuple[float, float]
    labels: tuple[str, ...]
    matrix: tuple[tuple[int, ...], ...]
    classes: tuple[ClassRow, ...]
    pairs: tuple[PairRow, ...]
    unlearnable_below: float
    notices: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunRow:
    """One run as the cache keeps it; times are UTC in ISO 8601, `result` its outcome in a few words."""

    id: int
    command: str
    dataset: str
    fingerprint: str
    started: str
    seconds: float | None
    result: str


@dataclass(frozen=True)
class RunList:
    """The runs of a cache, oldest first."""

    cache: str
    rows: tuple[RunRow, ...]


@dataclass(frozen=True)
class RunDetail:
    """One run with the record that its command gave, `None` where it was not finished."""

    row: RunRow
    summary: Any


@dataclass(frozen=True)
class ScoreChange:
    """The score of one head in two runs; an interval of `None` means that the run kept none."""

    head: str
    first: float | None
    first_interval: tuple[float, float] | None
    second: float | None
    second_interval: tuple[float, float] | None
    difference: float | None


@dataclass(frozen=True)
class ScoredOn:
    """What the scores of a run are of: a split, so many pictures, the classes of train and those not among them."""

    scored_split: str
    n_test: int
    n_classes: int = 0
    unscored: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunComparison:
    """Two runs side by side; `differences` names what is not the same, and so may explain the scores."""

    first: RunRow
    second: RunRow
    scored: tuple[ScoredOn, ScoredOn]
    differences: tuple[str, ...]
    rows: tuple[ScoreChange, ...]


@dataclass(frozen=True)
class LedgerRow:
    """What was spent on one kind of work since the first extraction."""

    work: str
    runs: int
    seconds: float


@dataclass(frozen=True)
class LedgerSummary:
    """Where the time went, and what the same experiments would have taken by running the network each time.

    `experiments` is the number of trained heads; `network_seconds` what one run over the dataset takes, by the seconds
    a picture of the extractions; `break_even` the experiment from which on the cache was ahead.
    """

    cache: str
    dataset: str
    fingerprint: str
    rows: tuple[LedgerRow, ...]
    experiments: int
    network_seconds: float
    with_cache: float
    without_cache: float
    break_even: int | None
    notices: tuple[str, ...] = ()
    backbone: str = ""
    extracted: str = ""


@dataclass(frozen=True)
class DemoSummary:
    """What the demo did: one extraction, then a comparison of all heads."""

    extract: ExtractSummary
    compare: CompareSummary
