"""What a user asks for enters; the stages meet here, and a summary leaves: one function a command."""

from __future__ import annotations

from featcache.api.accounting import ledger
from featcache.api.auditing import audit
from featcache.api.benching import bench
from featcache.api.checking import cache_info, cache_verify
from featcache.api.cleaning import cache_compact, cache_gc
from featcache.api.comparing import compare
from featcache.api.confusing import confusions
from featcache.api.demonstration import demo
from featcache.api.exchange import cache_export, cache_import
from featcache.api.exporting import export_onnx
from featcache.api.extraction import extract
from featcache.api.finetuning import finetune
from featcache.api.fitting import fit
from featcache.api.history import runs, runs_compare, runs_show
from featcache.api.loading import load_features
from featcache.api.neighboring import neighbors
from featcache.api.options import CACHE_VARIABLE, Options
from featcache.api.prediction import predict
from featcache.api.reporting import report
from featcache.api.splitting import split
from featcache.records.experiments import Sweep
from featcache.records.finetuning import Training

__all__ = [
    "CACHE_VARIABLE",
    "Options",
    "Sweep",
    "Training",
    "audit",
    "bench",
    "cache_compact",
    "cache_export",
    "cache_gc",
    "cache_import",
    "cache_info",
    "cache_verify",
    "compare",
    "confusions",
    "demo",
    "export_onnx",
    "extract",
    "finetune",
    "fit",
    "ledger",
    "load_features",
    "neighbors",
    "predict",
    "report",
    "runs",
    "runs_compare",
    "runs_show",
    "split",
]
