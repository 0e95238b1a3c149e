"""Summaries enter; text for people leaves. Nothing here prints."""

from __future__ import annotations

from featcache.render.auditing import audit_page, report_text
from featcache.render.cache import compact_text, exchange_text, gc_text, info_text, verify_text
from featcache.render.experiments import (
    bench_page,
    compare_page,
    confusions_page,
    fit_page,
    ledger_page,
    runs_compare_page,
    runs_page,
)
from featcache.render.finetuning import finetune_page
from featcache.render.neighbors import neighbors_page
from featcache.render.text import demo_text, extract_text, onnx_text, predict_csv, predict_text, run_text, split_text

__all__ = [
    "audit_page",
    "bench_page",
    "compact_text",
    "compare_page",
    "confusions_page",
    "demo_text",
    "exchange_text",
    "extract_text",
    "finetune_page",
    "fit_page",
    "gc_text",
    "info_text",
    "ledger_page",
    "neighbors_page",
    "onnx_text",
    "predict_csv",
    "predict_text",
    "report_text",
    "run_text",
    "runs_compare_page",
    "runs_page",
    "split_text",
    "verify_text",
]
