"""Paths of pictures, or cached activations, enter; batches of network input leave, an epoch at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from joblib import cpu_count

from featcache.augment import drawn_view
from featcache.decode import Pixels, decode
from featcache.embed.torch_engine import normalise
from featcache.errors import PictureError
from featcache.records import ORIGINAL, FloatArray, Preprocess
from featcache.sources import read
from featcache.sources.threads import reading_threads
from featcache.store.stored import StoredRows

Rows = npt.NDArray[np.intp]

AHEAD = 2
"""How many batches are decoded ahead of the network."""


class Inputs(Protocol):
    """Pictures in a fixed order; `are_activations` tells whether the frozen part of the network is behind them."""

    are_activations: bool

    def __len__(self) -> int:
        """The number of pictures."""
        ...

    def batches(self, batches: Sequence[Rows], epoch: int) -> Iterator[tuple[Rows, torch.Tensor]]:
        """Yield for each batch of rows those that could be read, and their input (n, C, H, W), float32."""
        ...


class Pictures:
    """Picture files, read and decoded anew in every epoch; with `augment` every epoch draws another view of each.

    A file that cannot be read any more, or has changed, is left out and counted in `failures` (path -> reason).
    """

    are_activations = False

    def __init__(
        self,
        paths: Sequence[str],
        preprocess: Preprocess,
        augment: str = "none",
        seed: int = 0,
        keys: Sequence[bytes] | None = None,
        draft: bool = False,
        reading: str | None = None,
    ) -> None:
        self.failures: dict[str, str] = {}
        self._paths = paths
        self._preprocess = preprocess
        self._augment = augment
        self._seed = seed
        self._keys = keys
        self._draft = draft
        self._reading = reading

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self._paths)

    def batches(self, batches: Sequence[Rows], epoch: int) -> Iterator[tuple[Rows, torch.Tensor]]:
        """Yield batches as `Inputs.batches` says, decoded on all cores ahead of the network."""
        view = ORIGINAL if self._augment == "none" else drawn_view(self._augment, self._seed, epoch)
        waiting: deque[tuple[Rows, list[Future[Pixels | None]]]] = deque()
        with reading_threads(cpu_count()) as executor:
            for rows in batches:
                waiting.append((rows, [executor.submit(self._load, int(row), view) for row in rows]))
                if len(waiting) > AHEAD:
                    yield from self._batch(*waiting.popleft())
            while waiting:
                yield from self._batch(*waiting.popleft())

    def _batch(self, rows: Rows, loading: Sequence[Future[Pixels | None]]) -> Iterator[tuple[Rows, torch.Tensor]]:
        loaded = [(row, future.result()) for row, future in zip(rows, loading, strict=True)]
        found = [(row, pixels) for row, pixels in loaded if pixels is not None]
        if found:
            stacked = torch.from_numpy(np.stack([pixels for _, pixels in found]))
            yield np.array([row for row, _ in found]), normalise(stacked, self._preprocess)

    def _load(self, row: int, view: str) -> Pixels | None:
        path = self._paths[row]
        try:
            data, key, _ = read(path)
            if self._keys is not None and key != self._keys[row]:
                raise PictureError("changed since it was extracted")
            return decode(data, self._preprocess, view, draft=self._draft, reading=self._reading)
        except PictureError as error:
            self.failures[path] = str(error)
            return None


class Activations:
    """What enters the first unfrozen block, from the cache: one draw of each picture, or several that take turns."""

    are_activations = True

    def __init__(self, draws: Sequence[StoredRows | FloatArray], shape: tuple[int, ...]) -> None:
        self._draws = draws
        self._shape = shape

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self._draws[0])

    def batches(self, batches: Sequence[Rows], epoch: int) -> Iterator[tuple[Rows, torch.Tensor]]:
        """Yield batches as `Inputs.batches` says."""
        draw = self._draws[epoch % len(self._draws)]
        for rows in batches:
            found = draw.read(rows) if isinstance(draw, StoredRows) else draw[rows]
            yield rows, torch.from_numpy(found.astype(np.float32)).reshape(len(rows), *self._shape)
