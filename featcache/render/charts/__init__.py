"""Summaries enter; charts leave, as Vega-Lite specifications. Names of files and classes are only ever data in them."""

from __future__ import annotations
