"""A file of arrays, as `numpy.savez` writes them, enters; they leave, none larger than the bytes that are there."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from featcache.store.files import read_bounded

MOST_BYTES = 2**30
"""A larger file is not read: the names, times and keys of a million files take some 200 MB."""

Arrays = dict[str, npt.NDArray[Any]]


def read_arrays(path: Path, names: Iterable[str]) -> Arrays:
    """Return arrays of plain values of an uncompressed file; raises `OSError`, and `ValueError` for anything else."""
    data = read_bounded(path, MOST_BYTES)
    try:
        return arrays_in(io.BytesIO(data), names, len(data))
    except MemoryError:
        raise
    except Exception as error:  # zipfile and numpy raise almost anything on broken bytes
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


def arrays_in(data: BinaryIO, names: Iterable[str], size: int, most_packed: int = 0) -> Arrays:
    """Return arrays of a file of `size` bytes; those that are deflated make `most_packed` bytes, all together.

    Raises `ValueError`, and whatever zipfile and NumPy raise on broken bytes.
    """
    with zipfile.ZipFile(data) as file:
        entries = {name: file.getinfo(f"{name}.npy") for name in names}
        for entry in entries.values():
            is_stored = entry.compress_type == zipfile.ZIP_STORED and entry.file_size == entry.compress_size
            if entry.compress_size > size or not (is_stored or entry.compress_type == zipfile.ZIP_DEFLATED):
                raise ValueError(f"{entry.filename} is packed in a way that is not read, or has no such size")
            most_packed -= 0 if is_stored else entry.file_size
        if most_packed < 0:
            raise ValueError("its arrays are packed, and far more than fit into it")
        return {name: _array(file, entry) for name, entry in entries.items()}


def _array(file: zipfile.ZipFile, entry: zipfile.ZipInfo) -> npt.NDArray[Any]:
    with file.open(entry) as packed:
        data = packed.read(entry.file_size)  # no more, whatever there is
    member = io.BytesIO(data)
    np.lib.format.read_magic(member)
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(member)
    values = np.frombuffer(data, dtype, offset=member.tell())  # which refuses objects, and bytes that do not go up
    return values.reshape(shape, order="F" if is_fortran else "C")
