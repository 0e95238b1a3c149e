"""A report on a small dataset, as tests of what is rendered share it."""

from __future__ import annotations

from featcache.records import Failure
from featcache.records.audits import AuditSummary, FindingRow, LeakScore, SizeRow
from featcache.records.experiments import (
    BenchRow,
    BenchSummary,
    ClassRow,
    CompareRow,
    CompareSummary,
    ConfusionSummary,
    LedgerRow,
    LedgerSummary,
    PairRow,
    Setting,
)
from featcache.records.finetuning import EpochRow, FinetuneSummary
from featcache.records.reports import CalibrationBin, Map, MapPoint, ReportSummary, ScoredPicture

SETTING = Setting(
    dataset="/data/insects",
    backbone="resnet18",
    weights="IMAGENET1K_V1",
    fingerprint="f" * 64,
    split_sizes={"train": 8, "test": 4},
    split_digest="d" * 64,
    n_classes=2,
    fitted_on="train",
    n_train=8,
    scored_split="test",
    n_test=4,
    seeds=(0,),
    train_views=(),
    test_views=(),
    versions={"featcache": "0.1.0", "numpy": "2.0"},
)


def compare_summary() -> CompareSummary:
    rows = (
        CompareRow("logreg", False, False, "best", 0.9, (0.8, 0.95), 0.9, (0.8, 0.95), 0.9, 0.2, 0.03, fit_seconds=0.1),
        CompareRow("knn", False, False, "worse", 0.7, (0.6, 0.8), p_value=0.01, fit_seconds=0.2),
        CompareRow("dummy", False, False, "floor", 0.5, (0.4, 0.6)),
        CompareRow("svm", False, False, "failed", error="it cannot be fitted"),
    )
    return CompareSummary(SETTING, "95 % bootstrap", 0.5, rows)


def bench_summary() -> BenchSummary:
    rows = tuple(
        BenchRow("logreg", classes, per_class, classes or 2, 8, 4, score, 0.01, score, 0.1, (score - 0.1, score))
        for classes, per_class, score in ((None, 1, 0.6), (None, 2, 0.7), (None, None, 0.9))
    )
    return BenchSummary(SETTING, "nested", rows, 3, 0)


def confusion_summary(first: str = "ant", second: str = "bee") -> ConfusionSummary:
    classes = (
        ClassRow(first, 4, 2, 0.5, 0.5, 0.5, second, 0.5, "knn", True),
        ClassRow(second, 4, 2, 0.5, 0.5, 0.5, first, 1.0, "knn", False),
    )
    return ConfusionSummary(
        setting=SETTING,
        head="logreg",
        heads=("logreg", "knn"),
        accuracy=0.5,
        accuracy_interval=(0.15, 0.85),
        labels=(first, second),
        matrix=((1, 1), (1, 1)),
        classes=classes,
        pairs=(PairRow(first, second, 1, 1, 0.5),),
        unlearnable_below=0.5,
    )


def audit_summary(first: str = "ant", second: str = "bee", folder: str = "/data/insects") -> AuditSummary:
    rows = (
        FindingRow("leak", f"{folder}/0.jpg", first, "train", None, 0.0, 1, True, "the same content"),
        FindingRow("leak", f"{folder}/3.jpg", second, "test", None, 0.0, 1, False, "the same content"),
        FindingRow("label", f"{folder}/1.jpg", first, "train", second, 0.02, None, False, f"looks like {second}"),
    )
    return AuditSummary(
        dataset="/data/insects",
        backbone="resnet18",
        weights="IMAGENET1K_V1",
        fingerprint="f" * 64,
        seed=0,
        pictures=12,
        contents=11,
        unreadable=1,
        sizes=(SizeRow(first, 6, 5, {"train": 4, "test": 2}), SizeRow(second, 6, 6, {"train": 4, "test": 2})),
        leak=LeakScore("logreg", 0, "test", 8, 4, 0.5, (0.15, 0.85), 3, 0.33, (0.06, 0.79)),
        cuts={"leak": "equal contents", "label": "a probability below 0.1"},
        rows=rows,
        manifest=None,
        seconds=0.1,
    )


def report_summary(first: str = "ant", second: str = "bee", folder: str = "/data/insects") -> ReportSummary:
    labels = [first, first, second, second]
    predicted = [first, second, second, first]
    return ReportSummary(
        out="report.html",
        bytes=0,
        thumbnails=0,
        created="2026-01-02T03:04:05+00:00",
        version="0.1.0",
        command="featcache report /data/insects",
        failures=(Failure(f"{folder}/broken.jpg", "cut off"),),
        unreadable=1,
        confusion=confusion_summary(first, second),
        calibration_error=0.1,
        calibration=(CalibrationBin(0.6, 0.67, 4, 0.65, 0.5),),
        scored=tuple(
            ScoredPicture(f"{folder}/{i}.jpg", label, said, 0.65, 0.65 if label == said else 0.35)
            for i, (label, said) in enumerate(zip(labels, predicted, strict=True))
        ),
        nearest={first: (second,), second: (first,)},
        map=Map(
            "PCA",
            0.4,
            4,
            tuple(
                MapPoint(float(i), -float(i), f"{folder}/{i}.jpg", label, "test", said)
                for i, (label, said) in enumerate(zip(labels, predicted, strict=True))
            ),
        ),
        compare=compare_summary(),
        bench=bench_summary(),
        finetunes=(),
        ledger=LedgerSummary(
            "/cache", "/data/insects", "f" * 64, (LedgerRow("extract", 1, 9.0),), 2, 8.0, 10.0, 18.0, 2
        ),
        audit=audit_summary(first, second, folder),
        missing=("no training: `featcache finetune /data/insects` makes one",),
    )


def finetune_summary() -> FinetuneSummary:
    epochs = [(0, None, 0.9, 0.5), (1, 0.8, 0.6, 0.75), (2, 0.3, 0.7, 0.75)]
    return FinetuneSummary(
        network="resnet18",
        weights="IMAGENET1K_V1",
        unfreeze="last",
        unfrozen=("layer4",),
        training={"epochs": 2},
        start="logreg",
        dataset="/data/insects",
        backbone="resnet18",
        fingerprint="f" * 64,
        split_sizes={"train": 8, "test": 4},
        split_digest="d" * 64,
        n_classes=2,
        validated_on="20 % of train",
        n_train=6,
        n_val=2,
        scored_split="test",
        n_test=4,
        accuracy=0.75,
        accuracy_low=0.3,
        accuracy_high=0.95,
        balanced_accuracy=0.75,
        macro_f1=0.75,
        log_loss=0.5,
        calibration_error=0.1,
        seed=0,
        best_epoch=1,
        stopped=None,
        history=tuple(EpochRow(epoch, 0.001, loss, loss, val, right, 0.5) for epoch, loss, val, right in epochs),
        device="cpu",
        cached_bytes=0,
        computed=0,
        seconds=30.0,
        head="logreg",
        head_accuracy=0.5,
        head_low=0.15,
        head_high=0.85,
        head_balanced_accuracy=0.5,
        head_macro_f1=0.5,
        head_log_loss=0.7,
        head_seconds=0.1,
        gain=0.25,
        p_value=0.04,
        gain_per_minute=50.0,
        wrong=(),
        model="model",
        history_file="epochs.csv",
        versions={},
    )
