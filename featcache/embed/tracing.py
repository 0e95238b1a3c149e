"""A network enters; what its code does with the layers, as torch.fx traces it while other threads compute, leaves."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.fx import Graph, Tracer

_one_at_a_time = threading.Lock()


class ThreadTracer(Tracer):
    """Traces what the thread does that traces.

    torch.fx puts itself in the place of `nn.Module.__call__` of the whole process: networks that other threads run in
    the meantime arrive here too, and go on as if nothing were there.
    """

    def __init__(self) -> None:
        super().__init__()
        self._thread = 0

    def trace(self, root: nn.Module | Callable[..., Any], concrete_args: dict[str, Any] | None = None) -> Graph:
        """Return what the network does; one thread traces at a time."""
        with _one_at_a_time:
            self._thread = threading.get_ident()
            return super().trace(root, concrete_args)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Note a layer that is called, or call another thread's."""
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Note a parameter that is used, or return another thread's."""
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)
