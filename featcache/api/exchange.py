"""A dataset in the cache enters and a file for other programs leaves; such a file enters, and a dataset is there."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featcache.api.asking import asked
from featcache.api.options import Options, open_cache
from featcache.api.outputs import refuse_cache, write
from featcache.api.usage import extracted_at, last_extraction, rows_of
from featcache.backbones import vector_length
from featcache.errors import DatasetError, ExchangeError
from featcache.load import load
from featcache.records import Features, Item
from featcache.records.cache import ExchangeSummary
from featcache.sources.addresses import named
from featcache.store import Cache, FeatureStore, FeatureWriter, Row, Run
from featcache.store.exchange import Exchange, packed, read
from featcache.values import taking_typed

ROWS_AT_ONCE = 8192

AS_FAR_AS_PROCESSORS = 1e-3
"""So far apart, relative to their length, vectors of one picture may be that two processors computed."""


@taking_typed
def cache_export(
    file: str | Path, dataset: str | Path | None = None, options: Options | None = None
) -> ExchangeSummary:
    """Write the vectors, keys, paths, labels and splits of a dataset to an `.npz`, `.parquet` or `.h5` file.

    Without `dataset` it is the one last extracted. Raises `FeatcacheError`.
    """
    refuse_cache(Path(file))
    with open_cache(options or Options(), create=False) as cache:
        run = last_extraction(cache, named(dataset) if dataset is not None else None)
        spec = cache.spec(run.fingerprint)
        features = load(rows_of(cache, run), cache.store(run.fingerprint))
        if not len(features.X):
            raise DatasetError(f"{run.root} has no vectors in the catalog: run `featcache extract {run.root}` first")
        weights = str((run.summary or {}).get("weights"))
        data = packed(Path(file), Exchange(features, spec, weights))
        write(Path(file), data)
        return ExchangeSummary(
            file=str(file),
            format=Path(file).suffix.lower().lstrip("."),
            dataset=run.root,
            backbone=spec.backbone,
            fingerprint=spec.fingerprint,
            rows=len(features.X),
            dim=features.X.shape[1],
            bytes=len(data),
            extracted=extracted_at(run),
        )


@taking_typed
def cache_import(file: str | Path, options: Options | None = None) -> ExchangeSummary:
    """Bring the vectors of an exported file into the cache, with its paths, labels and splits as a dataset.

    The file's path is the dataset's name, and it is then the one last extracted, so that `fit` works on it without the
    pictures; where the pictures are, `extract` finds their vectors. Raises `FeatcacheError`.
    """
    path = Path(os.path.abspath(file))  # noqa: PTH100 - as datasets are named
    options = options or Options()
    with asked("import", path, options) as run:
        content = read(path)
        with open_cache(options) as cache, cache.in_use():
            return import_into(cache, path, content, cache.renewed(run))


def import_into(cache: Cache, path: Path, content: Exchange, run: Run | None = None) -> ExchangeSummary:
    """Bring what was read from `path` into the cache, as a dataset of its own or as that of an earlier `run`."""
    features, spec = content.features, content.spec
    store = cache.features(spec)
    store.verify()
    length = store.dim or vector_length(spec)
    if length not in (None, features.X.shape[1]):
        raise ExchangeError(
            f"{path} has vectors of length {features.X.shape[1]}, and {spec.backbone} of length {length}"
        )
    run = cache.runs.begin(run or cache.runs.start("import", str(path)), str(path), spec.fingerprint)
    held = store.contains(features.keys)
    new = list({key: at for at, key in enumerate(features.keys) if not held[at]}.values())
    with FeatureWriter(store, spec.dtype) as writer:
        for start in range(0, len(new), ROWS_AT_ONCE):
            part = new[start : start + ROWS_AT_ONCE]
            writer.append([features.keys[at] for at in part], features.X[part])
    rows = [
        Row(Item(name, label or None, split or None), key, None)
        for name, label, split, key in zip(
            features.paths, features.y.tolist(), features.splits.tolist(), features.keys, strict=True
        )
    ]
    differing = _differing(store, features, np.flatnonzero(held))
    before = len(cache.catalog.dataset(run.root))
    saved = cache.catalog.save_dataset(run.root, rows, run.id)
    summary = ExchangeSummary(
        file=str(path),
        format=path.suffix.lower().lstrip("."),
        dataset=run.root,
        backbone=spec.backbone,
        fingerprint=spec.fingerprint,
        rows=len(rows),
        dim=features.X.shape[1],
        bytes=path.stat().st_size,
        added=len(new),
        replaced=before,
        differing=differing,
    )
    noted = {**asdict(summary), "weights": content.weights, "weights_file": None}
    cache.runs.finish(run, noted, rows_sha256=saved)
    return summary


def _differing(store: FeatureStore, features: Features, rows: npt.NDArray[np.intp]) -> int:
    """Return how many of these rows have other values in the store, by more than processors differ."""
    found = 0
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = rows[start : start + ROWS_AT_ONCE]
        there = store.read([features.keys[at] for at in part.tolist()]).astype(np.float64)
        apart = np.linalg.norm(features.X[part] - there, axis=1)
        found += int((apart > AS_FAR_AS_PROCESSORS * np.linalg.norm(there, axis=1)).sum())
    return found
