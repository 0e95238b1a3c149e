"""What a user asks for enters; the stages meet here, and a summary leaves: one function a command."""

from __future__ import annotations

from featcache.api.checking import cache_info, cache_verify
from featcache.api.cleaning import cache_compact, cache_gc
from featcache.api.demonstration import demo
from featcache.api.exchange import cache_export, cache_import
from featcache.api.extraction import extract
from featcache.api.fitting import fit
from featcache.api.options import CACHE_VARIABLE, Options
from featcache.api.prediction import predict

__all__ = [
    "CACHE_VARIABLE",
    "Options",
    "cache_compact",
    "cache_export",
    "cache_gc",
    "cache_import",
    "cache_info",
    "cache_verify",
    "demo",
    "extract",
    "fit",
    "predict",
]
