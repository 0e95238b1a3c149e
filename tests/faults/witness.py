"""An outside witness: reads segment files with bare h5py and zlib, and imports nothing of the package."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.floating]
Rows = dict[bytes, Vector]


@dataclass(frozen=True)
class Segment:
    """One segment file: its rows in order, and the names of the files it replaces."""

    rows: list[tuple[bytes, Vector]]
    replaces: list[str]


def witness(folder: Path) -> Rows:
    """Return content key -> vector of the live segments in `folder`.

    Fails where a file is not whole, where the files differ about a vector, where a segment holds a key twice, and
    where a replaced file holds more than what replaced it. Nobody may write meanwhile.
    """
    segments = {path.name: read_segment(path) for path in sorted(folder.glob("seg-*.h5"))}
    replaced = {name for segment in segments.values() for name in segment.replaces}
    live: Rows = {}
    for name, segment in segments.items():
        if name not in replaced:
            _add(live, segment, name)
    every = dict(live)
    for name in replaced.intersection(segments):
        _add(every, segments[name], name)
    assert every.keys() == live.keys(), f"{len(every) - len(live)} rows are only in replaced segments"
    return live


def read_segment(path: Path) -> Segment:
    """Read one segment file and check every checksum that covers data."""
    with h5py.File(path, "r", locking=False) as file:
        arrays = {name: file[name][()] for name in file}
        attributes = dict(file.attrs)
    for name, array in arrays.items():
        assert zlib.crc32(array.tobytes()) == attributes[f"crc32_{name}"], f"{path}: {name} is damaged"
    keys = [row.tobytes() for row in arrays["keys"]]
    assert len(keys) == len(arrays["features"]) == attributes["n_rows"] > 0, path
    return Segment(
        rows=list(zip(keys, arrays["features"], strict=True)),
        replaces=[name.decode() for name in arrays.get("replaces", [])],
    )


def _add(rows: Rows, segment: Segment, name: str) -> None:
    keys = [key for key, _ in segment.rows]
    assert len(set(keys)) == len(keys), f"{name} holds a key twice"
    for key, vector in segment.rows:
        # The same picture in another batch may differ in the last bits.
        np.testing.assert_allclose(rows.setdefault(key, vector), vector, rtol=1e-5, atol=1e-5, err_msg=name)
