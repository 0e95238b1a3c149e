"""What a shard of an extraction read of its files enters; it leaves where the whole dataset is extracted."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from featcache.records import FileStat
from featcache.store.arrays import read_arrays
from featcache.store.files import dataset_name, remove, write_atomic
from featcache.store.index import stack_keys
from featcache.store.segment import KEY_BYTES
from featcache.store.shares import Share

_logger = logging.getLogger(__name__)

Files = Mapping[str, tuple[FileStat, bytes]]
"""Stat and content key of files by their addresses."""


class Shards:
    """The files that shards have read, `shards/<dataset>-<i>-of-<n>.npz`: so computers need not share a catalog."""

    def __init__(self, folder: Path, share: Share | None = None) -> None:
        self._folder = folder
        self._share = share

    def put(self, root: str, shard: tuple[int, int], files: Files) -> None:
        """Keep what a finished shard of a dataset read."""
        out = io.BytesIO()
        np.savez(
            out,
            addresses=np.frombuffer(b"\0".join(map(os.fsencode, files)), np.uint8),
            stats=np.array([(s.size, s.mtime_ns, s.inode) for s, _ in files.values()], np.int64).reshape(-1, 3),
            keys=stack_keys([key for _, key in files.values()]),
        )
        name = f"{dataset_name(root)}-{shard[0]}-of-{shard[1]}.npz"
        write_atomic(self._folder / name, out.getvalue())
        if self._share is not None:
            self._share.put(self._folder.name, name, out.getvalue())

    def of(self, root: str) -> dict[str, tuple[FileStat, bytes]]:
        """Return what the shards of a dataset have read; a file of them that is broken is left out with a warning."""
        found: dict[str, tuple[FileStat, bytes]] = {}
        if self._share is not None:
            self._share.fetch(self._folder.name, f"{dataset_name(root)}-*.npz")
        for path in self._paths(root):
            try:
                found |= _read(path)
            except (OSError, ValueError) as error:
                _logger.warning("%s cannot be read (%s): the files of that shard are read again", path, error)
        return found

    def drop(self, root: str) -> None:
        """Delete what was kept of a dataset."""
        for path in self._paths(root):
            remove(path)

    def _paths(self, root: str) -> list[Path]:
        return sorted(path for path in self._folder.glob(f"{dataset_name(root)}-*.npz") if path.is_file())


def _read(path: Path) -> dict[str, tuple[FileStat, bytes]]:
    """Return what a shard has read; raises `OSError`, and `ValueError` for what is not as `put` writes it."""
    addresses, stats, keys = read_arrays(path, ("addresses", "stats", "keys")).values()
    names = addresses.tobytes().split(b"\0") if len(keys) else []
    if (stats.dtype, keys.dtype, addresses.dtype) != (np.dtype(np.int64), np.dtype(np.uint8), np.dtype(np.uint8)):
        raise ValueError("its values are of other types")
    if stats.shape != (len(names), 3) or keys.shape != (len(names), KEY_BYTES):
        raise ValueError("its arrays do not belong together")
    return {
        os.fsdecode(name): (FileStat(*stat), key.tobytes())
        for name, stat, key in zip(names, stats.tolist(), keys, strict=True)
    }
