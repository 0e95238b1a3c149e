"""A backbone enters; an engine, which turns decoded batches into vectors, leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featcache.backbones.base import Backbone

if TYPE_CHECKING:
    from featcache.embed.torch_engine import TorchEngine

__all__ = ["open_engine"]


def open_engine(backbone: Backbone, device: str = "auto") -> TorchEngine:
    """Load the network onto a device (this imports torch); raises `DeviceError`, `BackboneError`, `WeightsError`."""
    from featcache.embed.torch_engine import TorchEngine

    return TorchEngine(backbone, device)
