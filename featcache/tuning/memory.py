"""Work on a batch enters; its result, computed in as large parts as the memory has room for, leaves."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from featcache.errors import EngineMemoryError

Result = TypeVar("Result")

_logger = logging.getLogger(__name__)


class Parts:
    """How many pictures fit into the memory of a device at once: at first all, then half as many each time it fails."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.size = size
        self._device = device

    def run(self, n: int, work: Callable[[int], Result]) -> Result:
        """Return `work(size)`, which does a batch of `n` in parts of `size`; raises `EngineMemoryError`.

        What does not fit is begun again, so that `work` must not leave anything half done.
        """
        while True:
            size = min(self.size, n)
            try:
                return work(size)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "allocate" not in str(error):
                    raise
            if size == 1:
                raise EngineMemoryError(
                    f"no memory on {self._device} for one picture: unfreeze less, or use a smaller network"
                )
            self.size = size // 2
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            _logger.warning("no memory on %s for %d pictures: going on with %d at once", self._device, size, self.size)
