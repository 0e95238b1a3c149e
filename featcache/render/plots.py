"""Summaries enter; pictures of curves leave, as the bytes of a PNG, SVG or PDF file."""

from __future__ import annotations

import io
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from featcache.errors import OutputError
from featcache.records.finetuning import FinetuneSummary

FORMATS = (".png", ".svg", ".pdf")


def check(path: Path) -> None:
    """Raise `OutputError` unless a picture of this name can be drawn, before the work it would show."""
    if path.suffix.lower() not in FORMATS:
        raise OutputError(f"{path} has no ending that says how to draw it: use {', '.join(FORMATS)}")
    if find_spec("matplotlib") is None:
        raise OutputError("matplotlib is not installed: pip install 'featcache[plot]'")


def curves(summary: FinetuneSummary, suffix: str) -> bytes:
    """Return loss and accuracy against the epoch, on training and validation pictures, and where the best one was."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    history = summary.history
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    pair: Any = figure.subplots(1, 2)
    for axes, name in zip(pair, ("loss", "accuracy"), strict=True):
        train = [(row.epoch, getattr(row, f"train_{name}")) for row in history[1:]]
        val = [(row.epoch, getattr(row, f"val_{name}")) for row in history]
        axes.plot(*zip(*val, strict=True), "o-", ms=3, label=f"validation (n={summary.n_val:,})")
        if train:
            axes.plot(*zip(*train, strict=True), "s--", ms=3, label=f"training, as it went (n={summary.n_train:,})")
        axes.axvline(summary.best_epoch, color="0.6", lw=1, ls=":", label=f"kept: epoch {summary.best_epoch}")
        axes.set(xlabel="epoch", ylabel=f"{name} (nats a picture)" if name == "loss" else name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    pair[0].legend(frameon=False)
    figure.suptitle(f"{summary.network}, unfreezing {summary.unfreeze}; seed {summary.seed}", fontsize="medium")
    out = io.BytesIO()
    figure.savefig(out, format=suffix.lower().lstrip("."), dpi=150)
    return out.getvalue()
