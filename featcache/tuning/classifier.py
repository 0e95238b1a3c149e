"""Paths of pictures and labels enter; a fine-tuned classifier in the shape of scikit-learn's leaves."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import fields
from numbers import Integral
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from featcache.backbones import AUTO, Backbone, resolve
from featcache.backbones.vision_import import import_torchvision
from featcache.embed.torch_engine import choose_device
from featcache.errors import DeviceError, PictureError, TrainingError, UsageError
from featcache.process import after_forks_too
from featcache.records import FloatArray, Progress
from featcache.records.finetuning import EpochRow, Training
from featcache.sources import read
from featcache.splits import check_seed, hold_out
from featcache.texts import flaw
from featcache.tuning.blocks import Cut, cut
from featcache.tuning.checking import check
from featcache.tuning.given import Labels, pictures_and_labels, pictures_of, validation_of
from featcache.tuning.inputs import Inputs, Pictures
from featcache.tuning.start import fit_layer, vectors
from featcache.tuning.training import Checkpoint, Codes, Trainer


class FinetuneClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Trains the last blocks of a pretrained network, and a new top, on pictures; parameters as in `records.Training`.

    `X` are paths of pictures, in a list, a 1-D array, a Series or one column, which are read anew in every epoch; `y`
    are texts or whole numbers. The top begins as a logistic regression on what the network gives of them. The epoch
    that is best on validation pictures is kept; those are a fifth of `X`, copies on one side, or what `fit` is given.
    After `fit`: `classes_`, `history_`, `best_epoch_`, `stopped_`. A fitted one can be pickled, to predict elsewhere.
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

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what predicts, without the pictures that were learned from; where it is opened it needs no weights."""
        state: dict[str, Any] = super().__getstate__()
        return _unpickled, (type(self),), {name: value for name, value in state.items() if name != "cut_"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take up a pickle."""
        super().__setstate__(state)
        if "trainer_" in state:
            self.cut_ = state["trainer_"].cut

    @property
    def training(self) -> Training:
        """The parameters that say how to train, checked; raises `UsageError`."""
        return check(Training(**{field.name: getattr(self, field.name) for field in fields(Training)}))

    @after_forks_too
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

        `network` is the backbone cut before: for paths, `backbone` must name it. `start` are the weights (K, d) and
        biases (K) that the top begins from, with the classes in sorted order; other arguments as in `Trainer.run`.
        Raises `UsageError` for parameters, `TrainingError`
        for pictures, labels and what comes of them, and `DatasetError` where nothing can be held out.
        """
        self._check_parameters()
        training, device = self.training, self._device()
        given = None if validation is None else validation_of(validation)
        pictures, labels, (judged, wanted) = self._divide(*pictures_and_labels(X, y), given)
        self.classes_, codes = np.unique(labels, return_inverse=True)
        self._check_classes(wanted)
        self.backbone_ = None if network is not None and self.backbone == AUTO else self._resolved()
        self.cut_ = network or self._cut()
        if start is None and network is None:
            start = self._probe(pictures, codes, device)
        truth = np.searchsorted(self.classes_, wanted)
        learned, checked = self._inputs(pictures, self.augment), (self._inputs(judged), truth)
        n_classes = len(self.classes_)
        self.trainer_ = Trainer(self.cut_, learned, codes, checked, n_classes, training, self.seed, device, start)
        trained = self.trainer_.run(checkpoint, identity, progress, on_epoch)
        self.history_, self.best_epoch_, self.stopped_ = trained.history, trained.best_epoch, trained.stopped
        return self

    @after_forks_too
    def predict_proba(self, X: Sequence[str] | Inputs) -> npt.NDArray[np.float64]:
        """Return the probability (n, K) of each class in `classes_`.

        Raises `TrainingError` for what are no paths, and for unreadable pictures.
        """
        check_is_fitted(self)
        pictures = pictures_of(X)
        inputs = self._inputs(pictures)
        try:
            rows, probabilities = self.trainer_.predict_proba(inputs)
        except TrainingError:
            rows = np.empty(0, np.intp)
        if len(rows) < len(inputs):
            raise TrainingError(_unreadable(pictures, inputs))
        return probabilities

    def predict(self, X: Sequence[str] | Inputs) -> npt.NDArray[Any]:
        """Return the label (n) with the highest probability."""
        best = self.predict_proba(X).argmax(1)
        return np.asarray(self.classes_[best])

    def _device(self) -> torch.device:
        device = choose_device(self.device)
        if self.mixed_precision and device.type != "cuda":
            raise DeviceError(f"mixed precision is for CUDA GPUs, here it would run on {device}")
        return device

    def _check_parameters(self) -> None:
        """Raise `UsageError` for what is wrong with the parameters that say nothing of how to train."""
        kinds: dict[str, tuple[type, ...]] = {
            "backbone": (str, Backbone),
            "weights": (str, os.PathLike, type(None)),
            "device": (str,),
        }
        for name, known in kinds.items():
            value = getattr(self, name)
            if not isinstance(value, known):
                words = " or ".join(kind.__name__ for kind in known)
                raise UsageError(f"FinetuneClassifier({name}={value!r:.60}): give {words}")
            if isinstance(value, str | os.PathLike) and (said := flaw(os.fsdecode(value))) is not None:
                raise UsageError(f"FinetuneClassifier({name}={value!r:.60}): {said}, give another")
        if not isinstance(self.seed, Integral) or isinstance(self.seed, bool):
            raise UsageError(f"FinetuneClassifier(seed={self.seed!r:.60}): give a whole number from 0 on")
        check_seed(int(self.seed))

    def _divide(
        self, X: list[str] | Inputs, labels: Labels, validation: tuple[list[str] | Inputs, Labels] | None
    ) -> tuple[list[str] | Inputs, Labels, tuple[list[str] | Inputs, Labels]]:
        """Return the pictures to train on, their labels, and those to judge epochs on with theirs."""
        if validation is not None:
            return X, labels, validation
        if not isinstance(X, list):
            raise TrainingError("inputs that are no paths need a validation set of their own")
        held = hold_out([self._key(path) for path in X], [str(label) for label in labels], self.seed)
        paths = np.asarray(X)
        return paths[~held].tolist(), labels[~held], (paths[held].tolist(), labels[held])

    def _check_classes(self, wanted: npt.NDArray[Any]) -> None:
        if len(self.classes_) < 2:
            raise TrainingError(f"there is only one class to train on ({str(self.classes_[0])!r}): add another")
        unknown = wanted[~np.isin(wanted, self.classes_)]
        if len(unknown):
            raise TrainingError(f"class {str(unknown[0])!r} is in validation, not in training")

    def _probe(self, X: list[str] | Inputs, codes: Codes, device: torch.device) -> tuple[FloatArray, FloatArray]:
        """Return a linear layer fitted on what the network gives of `X` before it is trained."""
        found = vectors(self.cut_, self._inputs(X), device)
        rows = np.concatenate([rows for rows, _ in found])
        return fit_layer(np.concatenate([part for _, part in found]), codes[rows])

    @staticmethod
    def _key(path: str) -> bytes:
        try:
            return read(path)[1]
        except PictureError as error:
            raise TrainingError(f"{path} cannot be read: {error}") from error

    def _resolved(self) -> Backbone:
        if isinstance(self.backbone, Backbone):
            return self.backbone
        return resolve(self.backbone, Path(self.weights) if self.weights else None)

    def _cut(self) -> Cut:
        backbone = self.backbone_ or self._resolved()
        return cut(backbone.build(), backbone.name, self.unfreeze, backbone.spec.preprocess.crop)

    def _inputs(self, X: list[str] | Inputs, augment: str = "none") -> Inputs:
        if not isinstance(X, list):
            return X
        if self.backbone_ is None:
            raise TrainingError(
                "a network that was cut before does not say how pictures are prepared for it: name the `backbone` that "
                f"it was cut from instead of {AUTO!r}"
            )
        return Pictures(X, self.backbone_.spec.preprocess, augment, self.seed)


def _unreadable(pictures: list[str] | Inputs, inputs: Inputs) -> str:
    """Say how many pictures could not be read, and of the first of them where it stands and why."""
    failures: dict[str, str] = getattr(inputs, "failures", {})
    if not isinstance(pictures, list) or not failures:
        return f"some of the {len(inputs):,} pictures can not be read any more: put them back, and run it again"
    row = next(at for at, path in enumerate(pictures) if path in failures)
    lost = sum(path in failures for path in pictures)
    return (
        f"{lost:,} of {len(pictures):,} pictures cannot be read, as X[{row}], {pictures[row]}: "
        f"{failures[pictures[row]]}; leave them out of X"
    )


def _unpickled(kind: type[FinetuneClassifier]) -> FinetuneClassifier:
    """Return one to be filled from a pickle, whose networks may be torchvision's or timm's."""
    import_torchvision()
    return kind.__new__(kind)
