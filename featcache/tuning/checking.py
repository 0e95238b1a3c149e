"""A way to train enters; it leaves as it is where it can be done, without importing torch."""

from __future__ import annotations

from featcache.augment import AUGMENTATIONS
from featcache.errors import UsageError
from featcache.records.finetuning import OPTIMIZERS, SCHEDULES, Training


def check(training: Training) -> Training:
    """Return the training; raises `UsageError` where it cannot be done as asked."""
    choices = {
        "optimizer": (training.optimizer, OPTIMIZERS),
        "schedule": (training.schedule, SCHEDULES),
        "augmentation": (training.augment, AUGMENTATIONS),
    }
    for name, (value, known) in choices.items():
        if value not in known:
            raise UsageError(f"unknown {name} {value!r}: use {', '.join(known)}")
    clip, patience = training.clip_norm, training.patience
    bounds = {
        "the number of epochs": (training.epochs, training.epochs >= 1),
        "the batch size": (training.batch_size, training.batch_size >= 1),
        "the number of views": (training.views, training.views >= 1),
        "the warm-up": (training.warmup, training.warmup >= 0),
        "the learning rate": (training.lr, 0 < training.lr < float("inf")),
        "the factor of the pretrained layers' learning rate": (training.backbone_lr, 0 <= training.backbone_lr < 1e6),
        "dropout": (training.dropout, 0 <= training.dropout < 1),
        "label smoothing": (training.label_smoothing, 0 <= training.label_smoothing < 1),
        "the norm that gradients are clipped to": (clip, clip is None or clip > 0),
        "the patience": (patience, patience is None or patience >= 1),
    }
    for name, (found, is_sound) in bounds.items():
        if not is_sound:
            raise UsageError(f"{name} cannot be {found}")
    return training
