"""The name of a head enters; an unfitted sklearn-compatible estimator with its search grid leaves."""

from __future__ import annotations

from importlib import import_module

from featcache.errors import HeadError
from featcache.heads.base import Head

__all__ = ["HEADS", "Head", "get"]

HEADS = ("logreg", "svm", "mlp")
"""The names of all heads; each is the module of the same name in this package."""


def get(name: str) -> Head:
    """Return the head called `name` (this imports sklearn); raises `HeadError`."""
    if name not in HEADS:
        raise HeadError(f"unknown head {name!r}: use one of {', '.join(HEADS)}")
    head: Head = import_module(f"{__name__}.{name}").HEAD
    return head
