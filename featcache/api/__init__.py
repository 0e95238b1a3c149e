"""What a user asks for enters; the stages meet here, and a summary leaves: one function a command."""

from __future__ import annotations

from featcache.api.demonstration import demo
from featcache.api.extraction import extract
from featcache.api.fitting import fit
from featcache.api.options import CACHE_VARIABLE, Options
from featcache.api.prediction import predict

__all__ = ["CACHE_VARIABLE", "Options", "demo", "extract", "fit", "predict"]
