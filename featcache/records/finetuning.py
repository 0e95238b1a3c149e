"""Values of the run enter; the frozen records of how a network is fine-tuned, and of what came of it, leave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from featcache.values import check_given

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("step", "cosine")


@dataclass(frozen=True)
class Training:
    """How to fine-tune: what is unfrozen, for how long, how fast, and on which pictures.

    `unfreeze` is `head`, `last`, a number of last blocks, the name of the first block, or `all`. The new top learns
    with `lr`, in the first `warmup` epochs alone, and pretrained layers with `lr * backbone_lr`. `step` multiplies both
    by 0.1 every 7 epochs, `cosine` lets them fall to zero. `views` is how many draws of a picture a partial cache
    keeps. With `patience` it ends after so many epochs without a better one on the validation pictures.
    """

    unfreeze: str = "last"
    epochs: int = 25
    batch_size: int = 32
    optimizer: str = "sgd"
    schedule: str = "step"
    lr: float = 1e-3
    backbone_lr: float = 1.0
    warmup: int = 0
    augment: str = "none"
    views: int = 4
    dropout: float = 0.0
    label_smoothing: float = 0.0
    class_weights: bool = False
    clip_norm: float | None = None
    patience: int | None = None
    mixed_precision: bool = False

    def __post_init__(self) -> None:
        """Take numbers of NumPy; raises `UsageError` for other types."""
        check_given(self)


@dataclass(frozen=True)
class EpochRow:
    """One epoch: mean loss (nats a picture) and accuracy on what was trained on, as it went, and on validation after.

    Epoch 0 is the network before training; it has been trained on nothing.
    """

    epoch: int
    lr: float
    train_loss: float | None
    train_accuracy: float | None
    val_loss: float
    val_accuracy: float
    seconds: float


def points_a_minute(gain: float, seconds: float) -> float:
    """Return a gain in accuracy as points (hundredths) a minute of the time that it took."""
    return 100 * gain / (seconds / 60)


def short(key: bytes) -> str:
    """Return the first 16 hex digits of a content key, as `FinetuneSummary.wrong` holds them."""
    return key.hex()[:16]


@dataclass(frozen=True)
class FinetuneSummary:
    """A fine-tuned network scored beside the head that it began from, with all that is needed to read the scores.

    `wrong` holds the first 16 hex digits of the content keys of the scored pictures that it got wrong. `cached_bytes`
    is what its partial cache takes. Of the `head`, fitted on all of train, `gain` is the difference in accuracy and
    `p_value` that of a paired test; `gain_per_minute` is in points. Balanced accuracy and
    macro-F1 of both are over the `scored_classes` of `n_classes` that are not `unscored`.
    """

    network: str
    weights: str
    unfreeze: str
    unfrozen: tuple[str, ...]
    training: dict[str, Any]
    start: str
    dataset: str
    backbone: str
    fingerprint: str
    split_sizes: dict[str, int]
    split_digest: str
    n_classes: int
    validated_on: str
    n_train: int
    n_val: int
    scored_split: str
    n_test: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    balanced_accuracy: float
    macro_f1: float
    log_loss: float
    calibration_error: float
    seed: int
    best_epoch: int
    stopped: str | None
    history: tuple[EpochRow, ...]
    device: str
    cached_bytes: int
    computed: int
    seconds: float
    head: str
    head_accuracy: float
    head_low: float
    head_high: float
    head_balanced_accuracy: float
    head_macro_f1: float
    head_log_loss: float
    head_seconds: float
    gain: float
    p_value: float
    gain_per_minute: float
    wrong: tuple[str, ...]
    model: str
    history_file: str
    versions: dict[str, str]
    notices: tuple[str, ...] = ()
    extracted: str = ""
    scored_classes: int | None = None
    unscored: tuple[str, ...] = ()
