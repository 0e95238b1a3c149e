"""A seed enters; random numbers of torch, as they would be if nobody else in the process drew any, leave."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    import torch

P = ParamSpec("P")
T = TypeVar("T")

_generators = threading.Lock()
"""torch's default generators are the process's: one thread at a time has its own state in them."""


class Draws:
    """A stream of random numbers of its own, taken up again each time; the process's generators stay as they were."""

    def __init__(self, seed: int, device: torch.device | None = None) -> None:
        self._seed = seed
        self._gpu = device if device is not None and device.type == "cuda" else None
        self._state: list[torch.Tensor] | None = None

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Let torch draw from this stream; no other thread of ours draws meanwhile, so keep it short."""
        import torch

        with _generators:
            before = self._found()
            if self._state is None:
                torch.default_generator.manual_seed(self._seed)
                if self._gpu is not None:
                    with torch.cuda.device(self._gpu):
                        torch.cuda.manual_seed(self._seed)
            else:
                self._put(self._state)
            try:
                yield
            finally:
                self._state = self._found()
                self._put(before)

    @property
    def state(self) -> list[torch.Tensor] | None:
        """Where the stream stands, on the CPU and the GPU; `None` before the first draw."""
        return self._state

    @state.setter
    def state(self, state: list[torch.Tensor]) -> None:
        self._state = state

    def _found(self) -> list[torch.Tensor]:
        import torch

        return [torch.get_rng_state(), *([] if self._gpu is None else [torch.cuda.get_rng_state(self._gpu)])]

    def _put(self, state: list[torch.Tensor]) -> None:
        import torch

        torch.set_rng_state(state[0].cpu())
        if self._gpu is not None:
            torch.cuda.set_rng_state(state[1].cpu(), self._gpu)


def drawing_apart(build: Callable[P, T]) -> Callable[P, T]:
    """Return the function, whose networks begin from random numbers, without a change to the process's generators."""

    @wraps(build)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        with Draws(0).drawing():
            return build(*args, **kwargs)

    return call
