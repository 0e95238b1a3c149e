"""Paths of pictures and labels enter; a fine-tuned classifier in the shape of scikit-learn's leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import train_test_split
from sklearn.utils.validation import check_is_fitted

from featcache.backbones import AUTO, Backbone, resolve
from featcache.embed import keep_freed_memory
from featcache.embed.torch_engine import choose_device
from featcache.errors import DeviceError, TrainingError
from featcache.records import FloatArray, Progress
from featcache.records.finetuning import OPTIMIZERS, SCHEDULES, EpochRow, Training
from featcache.tuning.blocks import Cut, cut
from featcache.tuning.inputs import Inputs, Pictures
from featcache.tuning.training import Checkpoint, Trainer

HELD_OUT = 0.2
"""The share of the training pictures that epochs are judged on, where no others are given."""


class FinetuneClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Trains the last blocks of a pretrained network, and a new top, on pictures; parameters as in `records.Training`.

    `X` are paths of pictures. The epoch that is best on validation pictures is kept; those are a fifth of `X`, or what
    `fit` is given. After `fit`: `classes_`, `history_`, `best_epoch_`, `stopped_`.
    """

    def __init__(
        self,
        backbone: str | Backbone = AUTO,
        weights: str | Path | None = None,
        *,
        unfreeze: str = "last",
        epochs: int = 25,
        batch_size: int = 32,
        optimizer: str = "sgd",
        schedule: str = "step",
        lr: float = 1e-3,
        backbone_lr: float = 1.0,
        warmup: int = 0,
        augment: str = "none",
        views: int = 4,
        dropout: float = 0.0,
        label_smoothing: float = 0.0,
        class_weights: bool = False,
        clip_norm: float | None = None,
        patience: int | None = None,
        mixed_precision: bool = False,
        seed: int = 0,
        device: str = "auto",
    ) -> None:
        self.backbone = backbone
        self.weights = weights
        self.unfreeze = unfreeze
        self.epochs = epochs
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.schedule = schedule
        self.lr = lr
        self.backbone_lr = backbone_lr
        self.warmup = warmup
        self.augment = augment
        self.views = views
        self.dropout = dropout
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights
        self.clip_norm = clip_norm
        self.patience = patience
        self.mixed_precision = mixed_precision
        self.seed = seed
        self.device = device

    @property
    def training(self) -> Training:
        """The parameters that say how to train, checked; raises `TrainingError`."""
        made = Training(**{field.name: getattr(self, field.name) for field in fields(Training)})
        check(made)
        return made

    def fit(
        self,
        X: Sequence[str] | Inputs,
        y: npt.ArrayLike,
        validation: tuple[Sequence[str] | Inputs, npt.ArrayLike] | None = None,
        *,
        network: Cut | None = None,
        start: tuple[FloatArray, FloatArray] | None = None,
        checkpoint: Checkpoint | None = None,
        identity: str = "",
        progress: Progress | None = None,
        on_epoch: Callable[[EpochRow], None] = lambda row: None,
    ) -> Self:
        """Train on pictures `X` (n) with labels `y` (n), judged on `validation`, a pair of the same kind.

        `network` is the backbone cut before; `start` the weights (K, d) and biases (K) that the top begins from, with
        the classes in sorted order; other arguments as in `Trainer.run`. Raises `TrainingError`.
        """
        training = self.training
        device = choose_device(self.device)
        if training.mixed_precision and device.type != "cuda":
            raise DeviceError(f"mixed precision is for CUDA GPUs, here it would run on {device}")
        labels = np.asarray(y)
        if validation is None:
            if not isinstance(X, Sequence | np.ndarray):
                raise TrainingError("inputs that are no paths need a validation set of their own")
            stratify = labels if min(np.unique(labels, return_counts=True)[1]) > 1 else None
            X, held, labels, truth = train_test_split(
                np.asarray(X), labels, test_size=HELD_OUT, random_state=self.seed, stratify=stratify
            )
            validation = (held, truth)
        keep_freed_memory()
        self.cut_ = network or self._cut()
        self.classes_, codes = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise TrainingError(
                f"there is only one class to train on ({str(self.classes_[0])!r}): a classifier needs two"
            )
        known = np.isin(np.asarray(validation[1]), self.classes_)
        if not known.all():
            raise TrainingError(
                f"class {str(np.asarray(validation[1])[~known][0])!r} is in validation, not in training"
            )
        truth = np.searchsorted(self.classes_, np.asarray(validation[1]))
        judged = (self._inputs(validation[0]), truth)
        self.trainer_ = Trainer(
            self.cut_,
            self._inputs(X, self.augment),
            codes,
            judged,
            len(self.classes_),
            training,
            self.seed,
            device,
            start,
        )
        trained = self.trainer_.run(checkpoint, identity, progress, on_epoch)
        self.history_, self.best_epoch_, self.stopped_ = trained.history, trained.best_epoch, trained.stopped
        return self

    def predict_proba(self, X: Sequence[str] | Inputs) -> npt.NDArray[np.float64]:
        """Return the probability (n, K) of each class in `classes_`; raises `TrainingError` for unreadable pictures."""
        check_is_fitted(self)
        inputs = self._inputs(X)
        rows, probabilities = self.trainer_.predict_proba(inputs)
        if len(rows) < len(inputs):
            failures = getattr(inputs, "failures", {})
            path, reason = next(iter(failures.items()))
            raise TrainingError(f"{len(failures):,} pictures cannot be read, as {path}: {reason}")
        return probabilities

    def predict(self, X: Sequence[str] | Inputs) -> npt.NDArray[Any]:
        """Return the label (n) with the highest probability."""
        best = self.predict_proba(X).argmax(1)
        return np.asarray(self.classes_[best])

    def _resolved(self) -> Backbone:
        if isinstance(self.backbone, Backbone):
            return self.backbone
        return resolve(self.backbone, Path(self.weights) if self.weights else None)

    def _cut(self) -> Cut:
        self.backbone_ = self._resolved()
        return cut(self.backbone_.build(), self.backbone_.name, self.unfreeze, self.backbone_.spec.preprocess.crop)

    def _inputs(self, X: Sequence[str] | Inputs, augment: str = "none") -> Inputs:
        if not isinstance(X, Sequence | np.ndarray):
            return X
        return Pictures([str(path) for path in X], self.backbone_.spec.preprocess, augment, self.seed)


def check(training: Training) -> None:
    """Raise `TrainingError` where a training cannot be done as asked."""
    from featcache.augment import AUGMENTATIONS

    choices = {
        "optimizer": (training.optimizer, OPTIMIZERS),
        "schedule": (training.schedule, SCHEDULES),
        "augmentation": (training.augment, AUGMENTATIONS),
    }
    for name, (value, known) in choices.items():
        if value not in known:
            raise TrainingError(f"unknown {name} {value!r}: use {', '.join(known)}")
    bounds = {
        "the number of epochs": (training.epochs, training.epochs >= 1),
        "the batch size": (training.batch_size, training.batch_size >= 1),
        "the number of views": (training.views, training.views >= 1),
        "the warm-up": (training.warmup, training.warmup >= 0),
        "the learning rate": (training.lr, 0 < training.lr < float("inf")),
        "the factor of the pretrained layers' learning rate": (training.backbone_lr, 0 <= training.backbone_lr < 1e6),
        "dropout": (training.dropout, 0 <= training.dropout < 1),
        "label smoothing": (training.label_smoothing, 0 <= training.label_smoothing < 1),
        "the norm that gradients are clipped to": (
            training.clip_norm,
            training.clip_norm is None or training.clip_norm > 0,
        ),
        "the patience": (training.patience, training.patience is None or training.patience >= 1),
    }
    for name, (found, is_sound) in bounds.items():
        if not is_sound:
            raise TrainingError(f"{name} cannot be {found}")
