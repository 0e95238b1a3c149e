"""The name of a head enters; an unfitted sklearn-compatible estimator with its search grid leaves."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from featcache.errors import HeadError
from featcache.records.experiments import Sweep

if TYPE_CHECKING:
    from featcache.heads.base import Head

__all__ = ["FLOOR", "HEADS", "Sweep", "get", "several"]

HEADS = ("logreg", "svm", "svm-rbf", "mlp", "knn", "centroid", "ridge", "lda")
FLOOR = "dummy"
"""The names of all heads, and of the floor; each is the module of the same name in this package."""


def several(names: str | Sequence[str]) -> list[Head]:
    """Return the heads of these names, each once; raises `HeadError`, also where there is none."""
    found = [get(name) for name in dict.fromkeys([names] if isinstance(names, str) else names)]
    if not found:
        raise HeadError(f"no head is named: use some of {', '.join((*HEADS, FLOOR))}")
    return found


def get(name: str, sweep: Sweep | None = None) -> Head:
    """Return the head called `name` (this imports sklearn), with the values of `sweep` to try; raises `HeadError`."""
    if name not in (*HEADS, FLOOR):
        raise HeadError(f"unknown head {name!r}: use one of {', '.join((*HEADS, FLOOR))}")
    if sweep is not None and sweep != Sweep():
        if name != "mlp":
            raise HeadError(f"hidden, lr, activation and alpha are parameters of mlp, not of {name}: add --head mlp")
        from featcache.heads import mlp

        return mlp.sweeping(sweep)
    head: Head = import_module(f"{__name__}.{name.replace('-', '_')}").HEAD
    return head
