"""Stored vectors and labels enter; blocks of them on their principal axes leave, in order or shuffled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from featcache.embed.torch_engine import one_thread
from featcache.heads.scaling import CHOICE, SCALINGS
from featcache.records import FloatArray
from featcache.splits import Rows
from featcache.store.stored import StoredRows

BLOCK_BYTES = 2**26
"""Of vectors in float32: one block is worked on while the next is read."""

CHUNK_BYTES = 2**16
"""What is read from one place into a shuffled block: disks give it nearly as fast as in order, and a dataset sorted by
class has hundreds of places in every block."""

Codes = npt.NDArray[np.integer[Any]]
Block = tuple[Rows, torch.Tensor]
Made = TypeVar("Made")


class Stream:
    """Vectors on the disk, with the number of a class for each (n); `measure` finds the axes that blocks are turned to.

    Blocks are float32 on the device; a few of them are in memory at once. Rows are given in order of the disk.
    """

    def __init__(self, vectors: StoredRows, codes: Codes, device: torch.device) -> None:
        self.vectors = vectors
        self.codes = codes
        self.device = device
        self.scaler = SCALINGS[CHOICE[0]].make()
        self.size = max(1, BLOCK_BYTES // (4 * vectors.dim))

    def in_order(self, rows: Rows) -> Rows:
        """Return the rows as they lie on the disk."""
        return rows[np.argsort(self.vectors.places[rows], kind="stable")]

    def measure(self, rows: Rows) -> Iterator[int]:
        """Learn mean, scale and principal axes from `rows`, and yield how many have been read.

        Mean and covariance are summed up in double precision, a block at a time. What the default scaling does to each
        vector by itself is done to every block.
        """
        dim, seen = self.vectors.dim, 0
        sums, products = np.zeros(dim), np.zeros((dim, dim))
        shift = self.scaler.shape(self._read(rows[:1]))[0]  # near the mean, and equal to a column that does not vary

        def moments(block: FloatArray) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
            near = self._put(self.scaler.shape(block) - shift)
            return near.sum(0).cpu().numpy(), (near.T @ near).cpu().numpy()

        for taken, (total, product) in self._ahead(self._blocks(rows), moments):
            sums += total
            products += product
            seen += len(taken)
            yield seen
        offset = sums / len(rows)
        covariance = products / len(rows) - np.outer(offset, offset)
        scaler = self.scaler.learn(shift + offset, np.maximum(covariance.diagonal(), 0))
        variances, self.axes = np.linalg.eigh(covariance / np.outer(scaler.scale_, scaler.scale_))
        self.variances = self._put(np.maximum(variances, 0).astype(np.float32))
        self._mean = self._put(scaler.mean_.astype(np.float32))
        self._turn = self._put((self.axes / scaler.scale_[:, None]).astype(np.float32))

    def plain(self, rows: Rows) -> Iterator[tuple[Rows, FloatArray]]:
        """Yield `rows`, which are in order of the disk, and their vectors (m, d) in float32, block by block."""
        return self._ahead(self._blocks(rows), lambda block: block)

    def centred(self, rows: Rows) -> Iterator[Block]:
        """Yield `rows` and their vectors (m, d) less the mean, block by block: the turn is cheaper on weights."""
        return self._ahead(self._blocks(rows), self._centre)

    def to_centred(self, weights: torch.Tensor) -> torch.Tensor:
        """Return weights (d + 1, ...) that give centred vectors the scores that `weights` give those on the axes."""
        return torch.cat([torch.tensordot(self._turn, weights[:-1], 1), weights[-1:]])

    def to_axes(self, slopes: torch.Tensor) -> torch.Tensor:
        """Return the derivative by weights (d + 1, ...) on the axes, from that by weights of centred vectors."""
        return torch.cat([torch.tensordot(self._turn.T, slopes[:-1], 1), slopes[-1:]])

    def shuffled(self, rows: Rows, generator: np.random.Generator) -> Iterator[Block]:
        """Yield all `rows` in random order: chunks from random places make a block, and it is shuffled in itself."""
        chunk = min(max(1, CHUNK_BYTES // self.vectors.row_bytes), self.size)
        starts = generator.permutation(np.arange(0, len(rows), chunk))
        each = self.size // chunk
        groups = (starts[at : at + each, None] + np.arange(chunk) for at in range(0, len(starts), each))
        taken_rows = (rows[group[group < len(rows)]] for group in groups)
        for taken, turned in self._ahead(taken_rows, lambda block: self._centre(block) @ self._turn):
            mixed = generator.permutation(len(taken))
            yield taken[mixed], turned[torch.from_numpy(mixed).to(self.device)]

    def truth(self, rows: Rows) -> torch.Tensor:
        """Return the numbers of the classes of `rows` on the device."""
        return self._put(self.codes[rows].astype(np.int64))

    def _blocks(self, rows: Rows) -> Iterator[Rows]:
        return (rows[at : at + self.size] for at in range(0, len(rows), self.size))

    def _centre(self, block: FloatArray) -> torch.Tensor:
        return self._put(self.scaler.shape(block)) - self._mean

    def _ahead(self, groups: Iterator[Rows], make: Callable[[FloatArray], Made]) -> Iterator[tuple[Rows, Made]]:
        """Read one block, and make something of it, while what was made of another is worked on."""

        def made(rows: Rows) -> Made:
            with one_thread():
                return make(self._read(rows))

        with ThreadPoolExecutor(1, thread_name_prefix="featcache-read") as executor:
            waiting = None
            for rows in groups:
                following = rows, executor.submit(made, rows)
                if waiting:
                    yield waiting[0], waiting[1].result()
                waiting = following
            if waiting:
                yield waiting[0], waiting[1].result()

    def _read(self, rows: Rows) -> FloatArray:
        return self.vectors.read(rows).astype(np.float32, copy=False)

    def _put(self, values: npt.NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(values).to(self.device)
