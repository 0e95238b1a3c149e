"""An HDF5 file that anybody may have made enters; it leaves open, read with HDF5's own filters alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
from h5py import h5pl
from h5py._objects import phil


@contextmanager
def open_to_read(path: Path) -> Iterator[h5py.File]:
    """Open a file; one that names another filter than HDF5's own cannot make it load a plugin, which is code.

    The folders of plugins belong to the whole process: while they are left out, other threads' calls of h5py wait.
    """
    with phil:
        folders = [h5pl.get(at) for at in range(h5pl.size())]
        while h5pl.size():
            h5pl.remove(0)
        try:
            with h5py.File(path, "r", locking=False) as file:
                yield file
        finally:
            for folder in folders:
                h5pl.append(folder)
