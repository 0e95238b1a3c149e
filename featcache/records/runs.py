"""Nothing enters; which record a run of each command keeps leaves."""

from __future__ import annotations

from typing import Any

from featcache.records import ExtractSummary
from featcache.records.audits import AuditSummary
from featcache.records.cache import ExchangeSummary
from featcache.records.experiments import BenchSummary, CompareSummary, ConfusionSummary, FitSummary
from featcache.records.finetuning import FinetuneSummary

RECORDS: dict[str, Any] = {
    "extract": ExtractSummary,
    "import": ExchangeSummary,
    "fit": FitSummary,
    "compare": CompareSummary,
    "bench": BenchSummary,
    "confusions": ConfusionSummary,
    "finetune": FinetuneSummary,
    "audit": AuditSummary,
}
"""The record that a run of each command keeps."""
