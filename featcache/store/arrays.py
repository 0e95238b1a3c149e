"""A file of arrays, as `numpy.savez` writes them, enters; they leave, none larger than the bytes that are there."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.store.files import read_bounded

MOST_BYTES = 2**30
"""A larger file is not read: the names, times and keys of a million files take some 200 MB."""


def read_arrays(path: Path, names: Iterable[str]) -> dict[str, npt.NDArray[Any]]:
    """Return arrays of plain values of an uncompressed file; raises `OSError`, and `ValueError` for anything else."""
    data = read_bounded(path, MOST_BYTES)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            return {name: _array(file, file.getinfo(f"{name}.npy"), len(data)) for name in names}
    except MemoryError:
        raise
    except Exception as error:  # zipfile and numpy raise almost anything on broken bytes
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


def _array(file: zipfile.ZipFile, entry: zipfile.ZipInfo, most: int) -> npt.NDArray[Any]:
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > most:
        raise ValueError(f"{entry.filename} is compressed")
    member = io.BytesIO(file.read(entry))
    np.lib.format.read_magic(member)
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(member)
    values = np.frombuffer(member.read(), dtype)  # which refuses objects, and bytes that do not go up
    return values.reshape(shape, order="F" if is_fortran else "C")
