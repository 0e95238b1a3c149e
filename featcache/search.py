"""A vector, and others a piece at a time, enter; the places of those most like it leave, or candidates for them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from isal.isal_zlib import crc32

from featcache import sealed
from featcache.errors import CacheError, DatasetError, UsageError
from featcache.records import FloatArray

PROBED = 32
"""How many lists of an index are looked into at least."""
TOO_LARGE = "a vector of the dataset has values beyond 1e19, of which no length can be taken: import it scaled down"

_FORMAT = "featcache-index"

Places = npt.NDArray[np.intp]


class Nearest:
    """The `k` vectors most like one vector (d) by cosine similarity, of those equally like it the first ones.

    `places` (at most k) and `similarities` hold them, the most like first. A vector of zeros is like nothing: 0.
    """

    def __init__(self, vector: FloatArray, k: int) -> None:
        self._vector = vector.astype(np.float64) / (np.linalg.norm(vector.astype(np.float64)) or 1.0)
        self._k = k
        self._rounding = 4 * len(vector) * float(np.finfo(np.float32).eps)
        self.places: Places = np.empty(0, np.intp)
        self.similarities: npt.NDArray[np.float64] = np.empty(0)

    def add(self, places: Places, vectors: FloatArray) -> None:
        """Look at vectors (m, d) at these places (m); raises `DatasetError` where one is too large.

        Rounded, all are compared in the time that it takes to read them. Those that may be among the nearest are
        compared again in float64, one by one, so that the same vector has the same similarity wherever it stands.
        """
        values = vectors.astype(np.float32, copy=False)
        # Without BLAS, whose own threads would only wait for each other below those that read.
        with np.errstate(all="ignore"):  # what comes of values that are too large is looked at as a whole
            rough = np.einsum("ij,j->i", values, self._vector.astype(np.float32)) / _lengths(values)
        if not np.isfinite(rough).all():
            raise DatasetError(TOO_LARGE)
        least = self.similarities[-1] if len(self.places) == self._k else -1.0
        if len(rough) > self._k:
            least = max(least, np.partition(rough, -self._k)[-self._k])
        close = np.flatnonzero(rough >= least - self._rounding)
        if len(close):
            chosen = vectors[close].astype(np.float64)
            found = np.clip(np.einsum("ij,j->i", chosen, self._vector) / _lengths(chosen), -1, 1)
            self._merge(places[close], found)

    def merge(self, other: Nearest) -> None:
        """Add what another one found at other places."""
        self._merge(other.places, other.similarities)

    def _merge(self, places: Places, similarities: npt.NDArray[np.float64]) -> None:
        places = np.concatenate([self.places, places])
        similarities = np.concatenate([self.similarities, similarities])
        order = np.lexsort((places, -similarities))[: self._k]
        self.places, self.similarities = places[order], similarities[order]


def _lengths(vectors: FloatArray) -> FloatArray:
    lengths: FloatArray = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    lengths[lengths == 0] = 1
    return lengths


class Index:
    """Vectors in lists of those alike, one bit a value, among which candidates for the nearest are found (faiss).

    So rounded it takes a twelfth of the room of float16, and is read whole; whoever asks has to compare the candidates
    again. A vector is known by its number, below 2**32, and by 31 bits of the crc of its bytes, so that one
    read past the checksum of its segment is still checked.
    """

    def __init__(self, index: Any) -> None:
        self._index = index

    @classmethod
    def train(cls, vectors: FloatArray, lists: int) -> Index:
        """Return an index with nothing in it, its lists made from a sample (m, d) of what it is to hold."""
        index = _empty(vectors.shape[1], lists)
        index.cp.max_points_per_centroid = len(vectors)
        index.train(_directions(vectors))
        return cls(index)

    @classmethod
    def from_bytes(cls, data: bytes) -> Index:
        """Return the index that `to_bytes` wrote; raises `CacheError` for what is none."""
        try:
            return cls(_restored(sealed.unpack(data)))
        except (ValueError, KeyError) as error:
            raise CacheError(f"it cannot be read as an index: {error}") from error

    def to_bytes(self) -> bytes:
        """Return all of the index as arrays; faiss's own files can make it do anything as they are read."""
        faiss, lists = load_faiss(), self._index.invlists
        sizes = np.array([lists.list_size(number) for number in range(self._index.nlist)], np.int64)
        filled = [int(number) for number in np.flatnonzero(sizes)]
        width = lists.code_size
        ids = [faiss.rev_swig_ptr(lists.get_ids(number), int(sizes[number])) for number in filled]
        codes = [faiss.rev_swig_ptr(lists.get_codes(number), int(sizes[number]) * width) for number in filled]
        arrays = {
            "centroids": self._index.quantizer.reconstruct_n(0, self._index.nlist),
            "sizes": sizes,
            "ids": np.concatenate([np.empty(0, np.int64), *ids]),
            "codes": np.concatenate([np.empty(0, np.uint8), *codes]).reshape(-1, width),
        }
        return sealed.pack({name: sealed.of_array(array) for name, array in arrays.items()}, {"format": _FORMAT})

    def filled(self, pieces: Iterable[tuple[Places, FloatArray]]) -> Index:
        """Return an index with the same lists, with numbers (m) and vectors (m, d) in it and nothing else.

        Call it in a thread of its own, of which several may run: it takes one core.
        """
        faiss = load_faiss()
        faiss.omp_set_num_threads(1)  # of this thread alone; others keep theirs
        index = faiss.clone_index(self._index)
        index.reset()
        for numbers, vectors in pieces:
            index.add_with_ids(_directions(vectors), checks(vectors) << 32 | numbers)
        return Index(index)

    def merge(self, other: Index) -> None:
        """Add what another index with the same lists holds, which is empty afterwards."""
        self._index.merge_from(other._index, 0)

    def candidates(self, vector: FloatArray, count: int) -> tuple[Places, Places]:
        """Return numbers (m) and checks (m) of about the `count` vectors most like one (d), or of all there are.

        `PROBED` lists are looked into, and more where they hold too few.
        """
        count, self._index.nprobe = min(count, len(self)), PROBED
        while True:
            found = self._index.search(_directions(vector[None]), count)[1][0]
            found = found[found >= 0]
            if len(found) == count or self._index.nprobe >= self._index.nlist:
                return found & 2**32 - 1, found >> 32
            self._index.nprobe *= 4

    @property
    def dim(self) -> int:
        """The length of a vector."""
        return int(self._index.d)

    def __len__(self) -> int:
        """The number of vectors."""
        return int(self._index.ntotal)

    def __str__(self) -> str:
        """What it is, and how far it was looked through."""
        looked_into = min(self._index.nprobe, self._index.nlist)
        return f"faiss IVF{self._index.nlist},RaBitQ, {looked_into:,} of {self._index.nlist:,} lists looked into"


def _empty(dim: int, lists: int) -> Any:
    faiss = load_faiss()
    return faiss.index_factory(dim, f"IVF{lists},RaBitQ", faiss.METRIC_INNER_PRODUCT)


def _restored(content: sealed.Content) -> Any:
    """Return the index of faiss with what a file holds; raises `ValueError` and `KeyError`."""
    if not content.is_sealed or content.known != {"format": _FORMAT}:
        raise ValueError("it is none")
    arrays = {name: content.tensors[name].array() for name in ("centroids", "sizes", "ids", "codes")}
    centroids, sizes, ids, codes = arrays.values()
    if [array.dtype.name for array in arrays.values()] != ["float32", "int64", "int64", "uint8"]:
        raise ValueError("its arrays have other types")
    if [array.ndim for array in arrays.values()] != [2, 1, 1, 2] or not all(centroids.shape):
        raise ValueError("its arrays have other shapes")
    if len(sizes) != len(centroids) or sizes.min() < 0 or sizes.max() > len(ids) or sizes.sum() != len(ids):
        raise ValueError("its lists have other lengths")
    if not np.isfinite(centroids).all() or (ids < 0).any() or not len(ids):
        raise ValueError("its values are none that it can have")
    if len(np.unique(ids & 2**32 - 1)) < len(ids):
        raise ValueError("it has a picture twice")
    index = _empty(centroids.shape[1], len(centroids))
    if codes.shape != (len(ids), index.invlists.code_size):
        raise ValueError("its codes have other lengths")
    index.quantizer.add(centroids)
    index.is_trained, index.ntotal = True, len(ids)
    faiss, first = load_faiss(), 0
    for number, size in enumerate(sizes.tolist()):
        part = slice(first, first + size)
        if size:
            index.invlists.add_entries(number, size, faiss.swig_ptr(ids[part]), faiss.swig_ptr(codes[part]))
        first += size
    return index


def checks(vectors: FloatArray) -> Places:
    """Return 31 bits of the crc of each vector's bytes (m)."""
    return np.array([crc32(row) & 2**31 - 1 for row in np.ascontiguousarray(vectors).view(np.uint8)], np.intp)


def load_faiss() -> Any:
    """Return the module; raises `UsageError` where it is missing."""
    try:
        import faiss
    except ImportError as error:
        raise UsageError("an index needs faiss: pip install 'featcache[index]', or leave out the index") from error
    return faiss


def _directions(vectors: FloatArray) -> FloatArray:
    values = vectors.astype(np.float32)
    with np.errstate(all="ignore"):
        values /= _lengths(values)[:, None]
    if not np.isfinite(values).all():
        raise DatasetError(TOO_LARGE)
    return values
