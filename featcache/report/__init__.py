"""Summaries enter; text for people leaves. Nothing here prints."""

from __future__ import annotations

from featcache.report.cache import compact_text, exchange_text, gc_text, info_text, verify_text
from featcache.report.text import demo_text, extract_text, fit_text, predict_csv, predict_text

__all__ = [
    "compact_text",
    "demo_text",
    "exchange_text",
    "extract_text",
    "fit_text",
    "gc_text",
    "info_text",
    "predict_csv",
    "predict_text",
    "verify_text",
]
