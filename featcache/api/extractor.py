"""Pictures in whatever form scikit-learn is given them enter; their vectors, from the cache or computed, leave."""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from featcache.api.options import Options, find_weights, open_cache
from featcache.api.pipeline import compute
from featcache.api.precision import as_asked
from featcache.backbones import AUTO, at_hand, note, on_demand, resolve
from featcache.decode import as_file
from featcache.embed import check_running
from featcache.errors import DatasetError, PictureError
from featcache.load import load
from featcache.process import after_forks_too
from featcache.records import Access, Dataset, Failure, FileStat, Item, feature_names
from featcache.sources import ACCESS
from featcache.sources.addresses import GIVEN, named
from featcache.sources.keys import content_key

SHOWN = 10
"""How many pictures that cannot be read are named by their position."""

_FORMS = (
    "give a list, a 1-D array or one column of paths, bytes, PIL images or uint8 arrays (height, width[, channels]), "
    "or one uint8 array (n, height, width, channels)"
)

_loading = threading.Lock()
"""Pillow reads a file when its picture is first looked at, which two threads must not do at once."""

_logger = logging.getLogger(__name__)


class FeatureExtractor(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Turns pictures into the vectors of a frozen network, from the cache; those it lacks are computed and kept.

    `X` holds n pictures: paths or other addresses, bytes of picture files, `PIL.Image`s or uint8 arrays, in a list, a
    1-D array, a Series or one column; or it is one uint8 array (n, height, width, channels). Files and bytes have the
    vectors that `featcache extract` keeps under their content, pixels are kept as themselves. Parameters are as in
    `Options`, but `auto` downloads nothing, so that all processes take the same network: it is resnet18 where its
    weights are on this computer, else efficientnet_lite0. int8 must have been calibrated by an extraction into this
    cache. `featcache cache gc` deletes vectors of pictures that are in no dataset extracted with `featcache extract`.

    After `fit`: `spec_`, which says what the features are, their `fingerprint_`, and `n_features_out_`, how many.
    """

    def __init__(
        self,
        backbone: str = AUTO,
        weights: str | Path | None = None,
        cache: str | Path | None = None,
        *,
        device: str = "auto",
        precision: str = "fp32",
        draft: bool = False,
        reading: str | None = None,
    ) -> None:
        self.backbone = backbone
        self.weights = weights
        self.cache = cache
        self.device = device
        self.precision = precision
        self.draft = draft
        self.reading = reading

    @after_forks_too
    def fit(self, X: Any, y: object = None) -> Self:
        """Find the network, and its vector of the first picture of `X`; nothing is learned.

        Raises `FeatcacheError`, as for that picture or the weights.
        """
        pictures = _listed(X)
        self._find()
        self.n_features_out_ = self._vectors(pictures[:1]).shape[1]
        return self

    @after_forks_too
    def fit_transform(self, X: Any, y: object = None) -> npt.NDArray[np.float32]:
        """Find the network, and return the vectors (n, d) of `X` (n); raises `FeatcacheError`."""
        pictures = _listed(X)
        self._find()
        vectors = self._vectors(pictures)
        self.n_features_out_ = vectors.shape[1]
        return vectors

    @after_forks_too
    def transform(self, X: Any) -> npt.NDArray[np.float32]:
        """Return the vectors (n, d) of `X` (n), in order.

        Raises `DatasetError` where one of the pictures cannot be read, since a row cannot be left out, and
        `WeightsError` where one has to be computed and the network is not here that `fit` found.
        """
        check_is_fitted(self)
        return self._vectors(_listed(X))

    def get_feature_names_out(self, input_features: object = None) -> npt.NDArray[np.object_]:
        """Return the names (d) of the columns, `resnet18_0`, `resnet18_1` and so on."""
        check_is_fitted(self)
        return np.array(feature_names(self.spec_.backbone, self.n_features_out_), dtype=object)

    def __sklearn_tags__(self) -> Any:
        """Tell scikit-learn that pictures enter, as text or objects, and 32-bit floats leave."""
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.transformer_tags.preserves_dtype = []
        return tags

    def _find(self) -> None:
        name = self.backbone
        if name == AUTO and self.weights is None:
            name, why = at_hand()
            _say_once(f"{why}. Using {name} instead (backbone={name!r} asks for it)." if why else "")
        options = self._options(name)
        check_running(options.device, options.engine, options.precision)
        with open_cache(options) as cache:
            backbone = resolve(name, options.weights, cache.backbones)
            note(cache.backbones, backbone, options.weights)
            self.spec_ = as_asked(cache, backbone, Dataset("", ()), options).spec
        self.fingerprint_ = self.spec_.fingerprint

    def _options(self, name: str) -> Options:
        weights, cache = (
            Path(place) if isinstance(place, str | os.PathLike) else place for place in (self.weights, self.cache)
        )
        return find_weights(
            Options(
                name,
                weights,
                cache,
                device=self.device,
                precision=self.precision,
                draft=self.draft,
                reading=self.reading,
            )
        )

    def _vectors(self, X: Sequence[Any]) -> npt.NDArray[np.float32]:
        pictures, options = _Pictures(X), self._options(self.spec_.backbone)
        with open_cache(options) as cache, cache.in_use():
            network = on_demand(self.spec_, self.spec_.backbone, options.weights, cache.backbones)
            (work,) = compute(cache, pictures.items, [network], options, None, pictures.access)
            if work.failures:
                raise DatasetError(pictures.unreadable(work.failures))
            vectors: npt.NDArray[np.float32] = load(work.rows, work.store).X
            return vectors


class _Pictures:
    """Pictures in a row, each with an address, and access to them; an object that is there twice has one address."""

    def __init__(self, X: Sequence[Any]) -> None:
        self._given: dict[str, Any] = {}
        self.items = tuple(Item(self._address(picture)) for picture in X)
        self.access = Access(self._read, self._stat)

    def _read(self, address: str) -> tuple[bytes, bytes, FileStat | None]:
        if address not in self._given:
            return ACCESS.read(address)
        picture = self._given[address]
        if isinstance(picture, Image.Image):
            try:
                with _loading:
                    picture.load()
            except Exception as error:  # Pillow's plugins raise almost anything on broken files
                raise PictureError(f"broken picture: {' '.join(str(error).split())}") from error
        data = picture if isinstance(picture, bytes) else as_file(picture)
        return data, content_key(data), None

    def _stat(self, address: str) -> FileStat | None:
        return None if address in self._given else ACCESS.stat(address)

    def unreadable(self, failures: Sequence[Failure]) -> str:
        """Say which pictures cannot be read, by position and the first by name, and why."""
        paths = {failure.path for failure in failures}
        rows = [row for row, item in enumerate(self.items) if item.path in paths]
        shown = ", ".join(f"X[{row}]" for row in rows[:SHOWN])
        more = f" and {len(rows) - SHOWN:,} more" if len(rows) > SHOWN else ""
        first = "" if failures[0].path in self._given else f", {failures[0].path}"
        return (
            f"{len(rows):,} of {len(self.items):,} pictures cannot be read, {shown}{more} (X[{rows[0]}]{first}: "
            f"{failures[0].reason}): leave them out of X and y, since a transformer cannot drop rows"
        )

    def _address(self, picture: Any) -> str:
        if isinstance(picture, str | os.PathLike):
            return named(picture)
        address = f"{GIVEN}://{id(picture)}"
        self._given[address] = picture
        return address


def _listed(X: Any) -> list[Any]:
    """Return the pictures of an `X` one by one; raises `DatasetError` for what does not hold pictures in a row."""
    if hasattr(X, "__array__"):  # pandas and its like too
        X = np.asarray(X)
        if X.ndim == 2 and X.shape[1] == 1:
            X = X[:, 0]
        # Bytes in an array without objects have lost the zeros at their end.
        if X.ndim != 4 and (X.ndim != 1 or X.dtype.kind not in "OUT"):
            raise DatasetError(f"an array of {X.dtype} {X.shape} holds no pictures: {_FORMS}")
    elif isinstance(X, str | bytes) or not isinstance(X, Sequence):
        raise DatasetError(f"X is a {type(X).__module__}.{type(X).__qualname__}, which holds no pictures: {_FORMS}")
    pictures = list(X)
    if not pictures:
        raise DatasetError("X holds 0 pictures: give at least one")
    return pictures


@functools.cache
def _say_once(notice: str) -> None:
    """Log a notice, once in a process: a grid search fits many times."""
    if notice:
        _logger.warning("%s", notice)
