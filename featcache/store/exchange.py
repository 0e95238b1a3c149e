"""Vectors with paths, labels and keys enter and a file for other programs leaves; such a file enters and they leave."""

from __future__ import annotations

import io
import json
import os
import secrets
import stat
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
from isal.isal_zlib import crc32

from featcache.discover import SPLIT_NAMES
from featcache.errors import ExchangeError
from featcache.records import Features, FeatureSpec
from featcache.store import footers
from featcache.store.arrays import arrays_in
from featcache.store.hdf5 import open_to_read
from featcache.store.index import stack_keys
from featcache.store.segment import KEY_BYTES
from featcache.texts import LONGEST, LONGEST_LABEL, ROWS_AT_ONCE, Values, flaw

FORMAT = "featcache-export"
FORMAT_VERSION = 1
MOST_COMPRESSED = 200
_TEXTS = ("paths", "labels", "splits")

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Exchange:
    """The vectors of one dataset with all that is needed to use them elsewhere; `weights` are said in words."""

    features: Features
    spec: FeatureSpec
    weights: str


def packed(path: Path, content: Exchange) -> bytes:
    """Return the bytes of an `.npz`, `.parquet` or `.h5` file, as the suffix of `path` says.

    All three hold `features` (n, d), `keys` (n, 32), `paths`, `labels` and `splits`, unknown ones empty, and a note
    with the spec in JSON. Raises `ExchangeError`.
    """
    features = content.features
    arrays = {"features": features.X, "keys": stack_keys(features.keys), "paths": np.array(features.paths, np.str_)}
    arrays |= {"labels": features.y, "splits": features.splits}
    note = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "fingerprint": features.fingerprint,
        "weights": content.weights,
    }
    return _format(path)[0](arrays, json.dumps(note | {"spec": content.spec.to_json()}))


SPLITS = {"", *SPLIT_NAMES.values()}


def read(path: Path) -> Exchange:
    """Read what `packed` made, checked; raises `ExchangeError` for anything else."""
    reader = _format(path)[1]
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise ExchangeError(f"{path} is no regular file")
        arrays, text = reader(path)
        note = json.loads(text)
        if note["format"] != FORMAT or note["version"] != FORMAT_VERSION:
            version = f"{note['version']!r:.60}"
            raise ExchangeError(f"{path} has an export format that this featcache does not read: {version}")
        spec = FeatureSpec.from_json(note["spec"])
        keys, X = arrays["keys"], arrays["features"]
        if spec.fingerprint != note["fingerprint"]:
            raise ExchangeError(f"{path} holds features of another fingerprint than its spec has")
        if (
            keys.shape != (len(X), KEY_BYTES)
            or keys.dtype != np.uint8
            or X.ndim != 2
            or X.dtype != np.dtype(spec.dtype)
        ):
            raise ExchangeError(f"{path} has vectors and keys that do not belong together")
        if not X.size or not np.isfinite(X).all():
            what = "values that are not finite" if X.size else f"{len(X):,} vectors of length {X.shape[1]:,}"
            raise ExchangeError(f"{path} has {what}: export it again from where its pictures are")
        if any(arrays[name].shape != (len(X),) or arrays[name].dtype.kind != "U" for name in _TEXTS):
            raise ExchangeError(f"{path} has not one path, label and split a vector")
        weights = note["weights"]
        said = flaw(weights, LONGEST_LABEL) if isinstance(weights, str) else "they are no text"
        if said is not None:
            raise ExchangeError(f"{path} has weights that cannot be noted, {weights!r:.60}: {said}")
        return Exchange(_features(path, arrays, spec), spec, weights)
    except (ExchangeError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise ExchangeError(f"no such file: {path}") from error
    except Exception as error:  # three libraries raise almost anything on broken bytes
        said = " ".join(str(error).split()) or type(error).__name__
        raise ExchangeError(f"{path} is no file that `featcache cache export` wrote: {said:.300}") from error


def _check_copies(path: Path, arrays: Arrays) -> None:
    """Refuse two vectors of one content: only one of them could be kept."""
    keys, X = arrays["keys"], arrays["features"]
    _, first, of_each = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    copies = np.flatnonzero(first[of_each.reshape(-1)] != np.arange(len(keys)))
    for at in copies.tolist():
        other = first[of_each.reshape(-1)[at]]
        if not np.array_equal(X[at], X[other]):
            raise ExchangeError(
                f"{path} has two vectors of one content (key {keys[at].tobytes().hex()[:16]}), at the paths "
                f"{arrays['paths'][other]!s:.60} and {arrays['paths'][at]!s:.60}: export it again"
            )


def _features(path: Path, arrays: Arrays, spec: FeatureSpec) -> Features:
    for name in _TEXTS:
        for text in arrays[name].tolist():
            _check_text(path, text, LONGEST if name == "paths" else LONGEST_LABEL)
    unknown = set(arrays["splits"].tolist()) - SPLITS
    if unknown:
        raise ExchangeError(
            f"{path} has the split {min(unknown)!r:.60}: use {', '.join(sorted(SPLITS - {''}))}, or none"
        )
    _check_copies(path, arrays)
    names = arrays["paths"].tolist()
    if "" in names or len(set(names)) < len(names):
        twice = next((name for name, times in Counter(names).items() if times > 1 or not name), "")
        raise ExchangeError(
            f"{path} has the path {twice!r:.60} more than once, or an empty one: give each vector its own"
        )
    return Features(
        X=arrays["features"],
        y=arrays["labels"],
        paths=tuple(arrays["paths"].tolist()),
        splits=arrays["splits"],
        keys=tuple(key.tobytes() for key in arrays["keys"]),
        fingerprint=spec.fingerprint,
    )


def _format(path: Path) -> tuple[Callable[[Arrays, str], bytes], Callable[[Path], tuple[Arrays, str]]]:
    try:
        return _FORMATS[path.suffix.lower()]
    except KeyError:
        raise ExchangeError(f"{path} has none of the suffixes {', '.join(_FORMATS)}: they say the format") from None


def _npz(arrays: Arrays, note: str) -> bytes:
    out = io.BytesIO()
    np.savez(out, allow_pickle=False, note=np.array(note), **arrays)
    return out.getvalue()


def _from_npz(path: Path) -> tuple[Arrays, str]:
    with path.open("rb") as file:
        arrays = arrays_in(file, ("note", "features", "keys", *_TEXTS), path.stat().st_size, _most_bytes(path))
    return arrays, str(arrays.pop("note"))


def _h5(arrays: Arrays, note: str) -> bytes:
    options = {"driver": "core", "backing_store": False, "libver": ("earliest", "v110")}
    with h5py.File(f"featcache-{secrets.token_hex(8)}", "w", **options) as file:
        for name, array in arrays.items():
            data: npt.NDArray[Any] = array
            if array.dtype.kind == "U":
                data = np.char.encode(array, "utf-8", "surrogateescape")
                data = data.astype(h5py.string_dtype("utf-8", max(1, data.dtype.itemsize)))
            file.create_dataset(name, data=data)
            file.attrs[f"crc32_{name}"] = np.uint32(crc32(np.ascontiguousarray(data).tobytes()))
        file.attrs["note"] = np.bytes_(note.encode())
        file.flush()
        return bytes(file.id.get_file_image())


def _from_h5(path: Path) -> tuple[Arrays, str]:
    with open_to_read(path) as file:
        arrays = {name: _own(file, name, path)[()] for name in ("features", "keys", *_TEXTS)}
        for name, array in arrays.items():
            if crc32(array.tobytes()) != int(file.attrs[f"crc32_{name}"]):
                raise ExchangeError(f"{path}: the checksum of {name!r} does not match its bytes")
        note = file.attrs["note"].decode()
    texts = [name for name, array in arrays.items() if array.dtype.kind == "S"]
    return arrays | {name: np.char.decode(arrays[name], "utf-8", "surrogateescape") for name in texts}, note


def _parquet(arrays: Arrays, note: str) -> bytes:
    pyarrow, parquet = _arrow()
    dim = arrays["features"].shape[1]
    columns = {
        name: pyarrow.array(_utf8(arrays[f"{name}s"].tolist()), pyarrow.string()) for name in ("path", "label", "split")
    }
    columns["key"] = pyarrow.array([key.tobytes() for key in arrays["keys"]], pyarrow.binary(KEY_BYTES))
    columns["features"] = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(arrays["features"].reshape(-1)), dim)
    out = pyarrow.BufferOutputStream()
    table = pyarrow.table(columns).replace_schema_metadata({"featcache": note})
    parquet.write_table(table, out, write_page_checksum=True)
    return bytes(out.getvalue())


def _from_parquet(path: Path) -> tuple[Arrays, str]:
    pyarrow, parquet = _arrow()
    names = ("path", "label", "split")
    found: dict[str, list[Any]] = {name: [] for name in (*names, "key", "features")}
    texts = Values(path.stat().st_size)
    with parquet.ParquetFile(path, page_checksum_verification=True, memory_map=False) as file:
        note = file.schema_arrow.metadata[b"featcache"].decode()
        n, vector = file.metadata.num_rows, file.schema_arrow.field("features").type
        _check_size(path, n * (KEY_BYTES + 4 * vector.list_size))
        _check_lengths(path, n * vector.list_size)
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=list(found), use_threads=False):
            for name in names:
                found[name] += (new := texts.of(batch.column(name)))
                _check_size(path, 4 * n * max(map(len, new), default=0))  # an array's texts are all as long
            found["key"] += batch.column("key").to_pylist()
            found["features"].append(batch.column("features"))
            _check_size(path, len(found["key"]) * (KEY_BYTES + 4 * vector.list_size))
    arrays: dict[str, npt.NDArray[Any]] = {f"{name}s": _as_array(path, found[name]) for name in names}
    arrays["keys"] = stack_keys(found["key"])
    values = pyarrow.chunked_array(found["features"], vector).combine_chunks().flatten()
    arrays["features"] = values.to_numpy(zero_copy_only=False).reshape(-1, vector.list_size)
    return arrays, note


def _check_lengths(path: Path, expected: int) -> None:
    """Refuse vectors longer than their type says, which Arrow would find out only when it has made room for them."""
    with path.open("rb") as file:
        file.seek(-min(path.stat().st_size, footers.MOST_BYTES + 8), os.SEEK_END)
        counts = footers.count_values(file.read())
    held = sum(n for column, n in counts.items() if column.startswith("features."))
    if held != expected:
        raise ExchangeError(f"{path} has {held:,} numbers in its vectors, and says that they are {expected:,}")


def _as_array(path: Path, texts: list[Any]) -> npt.NDArray[Any]:
    for text in texts:
        _check_text(path, text, LONGEST)  # here too, for NumPy leaves NULs out at an end
    return np.array(texts, np.str_)


def _check_text(path: Path, text: str, longest: int) -> None:
    if (said := flaw(text, longest)) is not None:
        raise ExchangeError(f"{path} has a path, label or split {text!r:.60} that cannot be kept: {said}")


def _own(file: h5py.File, name: str, path: Path) -> h5py.Dataset:
    """Return a data set of numbers or short texts that is in this file, with a place for each of its bytes."""
    is_own = isinstance(file.get(name, getlink=True), h5py.HardLink) and isinstance(file[name], h5py.Dataset)
    if not is_own or file[name].is_virtual or file[name].external or file[name].dtype.kind not in "fuS":
        raise ExchangeError(f"{path} has no data set {name!r} of its own")
    made = file[name].id.get_create_plist()
    # a filter unpacks to whatever it likes, and what has no place is made up
    if made.get_layout() != h5py.h5d.CONTIGUOUS or made.get_nfilters() or _stored(file[name]) != file[name].nbytes:
        raise ExchangeError(f"{path}: the data set {name!r} is packed, or not all there: export it again as it is")
    return file[name]


def _stored(found: h5py.Dataset) -> int:
    return int(found.id.get_storage_size())


def _most_bytes(path: Path) -> int:
    return max(2**24, MOST_COMPRESSED * path.stat().st_size)


def _check_size(path: Path, size: int) -> None:
    """Refuse a file that says to be far more than its bytes could be."""
    if size > _most_bytes(path):
        raise ExchangeError(f"{path} says that it holds {size:,} bytes, far more than fit into it")


def _utf8(texts: list[str]) -> list[str]:
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ExchangeError(f"Parquet holds no text that is not UTF-8: {text!r}; export to .h5 or .npz") from None
    return texts


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ExchangeError("Parquet needs pyarrow: pip install 'featcache[parquet]', or use .h5 or .npz") from error
    return pyarrow, pyarrow.parquet


_FORMATS = {".npz": (_npz, _from_npz), ".parquet": (_parquet, _from_parquet), ".h5": (_h5, _from_h5)}
