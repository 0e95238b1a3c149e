"""A backbone enters; an engine, which turns decoded batches into vectors, leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featcache.backbones.base import Backbone

if TYPE_CHECKING:
    from featcache.embed.torch_engine import TorchEngine

__all__ = ["check_device", "open_engine"]


def open_engine(backbone: Backbone, device: str = "auto") -> TorchEngine:
    """Load the network onto a device (this imports torch); raises `DeviceError`, `BackboneError`, `WeightsError`."""
    from featcache.embed.torch_engine import TorchEngine

    return TorchEngine(backbone, device)


def check_device(name: str) -> None:
    """Raise `DeviceError` unless the device is there; `auto` always is (any other name imports torch)."""
    if name != "auto":
        from featcache.embed.torch_engine import choose_device

        choose_device(name)
