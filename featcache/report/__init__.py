"""Summaries enter; text for people leaves. Nothing here prints."""

from __future__ import annotations

from featcache.report.text import demo_text, extract_text, fit_text, predict_csv, predict_text

__all__ = ["demo_text", "extract_text", "fit_text", "predict_csv", "predict_text"]
