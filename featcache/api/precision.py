"""A backbone and a dataset enter; the backbone at the precision that was asked for, calibrated if need be, leaves."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace

import numpy as np

from featcache.api.options import Options
from featcache.backbones import Backbone
from featcache.decode import Pixels, decode
from featcache.embed import exported
from featcache.errors import CacheError, DatasetError, PictureError
from featcache.records import DRAFT, Calibration, Dataset, FeatureSpec
from featcache.records.reading import Reading
from featcache.sources import ACCESS
from featcache.sources.threads import reading_threads
from featcache.store import Cache

CALIBRATION_PICTURES = 128
CALIBRATION_SEED = 0

_logger = logging.getLogger(__name__)


def as_asked(cache: Cache, backbone: Backbone, dataset: Dataset, options: Options) -> Backbone:
    """Return the backbone with the precision and the decoding of the options.

    The int8 network that the cache has of a backbone is used again, so that vectors stay comparable; the first time it
    is calibrated on a seeded sample of `dataset`. Raises `DatasetError` where none of them can be read.
    """
    spec = replace(
        backbone.spec,
        precision=options.precision,
        decoding=DRAFT if options.draft else None,
        reading=Reading.of(options.reading).text,
    )
    if spec.precision == "int8":
        calibration = _known(cache, spec)
        if calibration is None:
            calibration = _calibrate(cache, backbone, dataset, spec.reading)
        spec = replace(spec, calibration=calibration)
    # Every output names the weights, and so it also tells vectors of less precision from exact ones.
    others = {
        spec.precision: spec.precision != "fp32",
        "draft": options.draft,
        spec.reading or "": spec.reading is not None,
    }
    return replace(
        backbone, spec=spec, weights=", ".join([backbone.weights, *(name for name in others if others[name])])
    )


def _known(cache: Cache, spec: FeatureSpec) -> Calibration | None:
    """Return the newest calibration of this network that the cache has, if any."""
    found = []
    for fingerprint in cache.fingerprints():
        try:
            other = cache.spec(fingerprint)
        except CacheError:
            continue
        if other.calibration is not None and other.network == spec.network:
            path = cache.networks.find(other.calibrated.fingerprint)
            if path is not None:
                found.append((path.stat().st_mtime_ns, fingerprint, other.calibration))
    return max(found)[-1] if found else None


def _calibrate(cache: Cache, backbone: Backbone, dataset: Dataset, reading: str | None) -> Calibration:
    if not dataset.items:
        raise DatasetError(
            "int8 is calibrated on pictures, once for a cache: run "
            f"`featcache extract FOLDER --backbone {backbone.name} --precision int8` first"
        )
    from featcache.embed.quantising import METHOD, quantise

    keys, pixels = _sample(replace(backbone.spec, reading=reading), dataset)
    few = f", fewer than the {CALIBRATION_PICTURES} that are usual: with more pictures use another --cache"
    _logger.warning(
        "int8: calibrating %s on %d picture%s, once for this cache%s",
        *(backbone.name, len(keys), "" if len(keys) == 1 else "s", few if len(keys) < CALIBRATION_PICTURES else ""),
    )
    network = quantise(exported(backbone, cache.networks), pixels)
    calibration = Calibration(
        network_sha256=hashlib.sha256(network).hexdigest(),
        method=METHOD,
        seed=CALIBRATION_SEED,
        keys=tuple(key.hex()[:16] for key in keys),
    )
    spec = replace(backbone.spec, precision="int8", calibration=calibration)
    cache.networks.keep(spec.calibrated.fingerprint, network)
    return calibration


def _sample(spec: FeatureSpec, dataset: Dataset) -> tuple[list[bytes], Pixels]:
    """Return content keys and pixels of up to `CALIBRATION_PICTURES` readable pictures, drawn with a seed."""
    from joblib import cpu_count

    paths = sorted({item.path for item in dataset.items})
    read = (dataset.access or ACCESS).read
    drawn = np.random.default_rng(CALIBRATION_SEED).permutation(len(paths))
    found: dict[bytes, Pixels] = {}

    def load(at: int) -> tuple[bytes, Pixels] | None:
        try:
            data, key, _ = read(paths[at])
            return key, decode(data, spec.preprocess, reading=spec.reading)
        except PictureError:
            return None

    with reading_threads(cpu_count()) as executor:
        for start in range(0, len(drawn), CALIBRATION_PICTURES):
            part = drawn[start : start + CALIBRATION_PICTURES].tolist()
            found.update(picture for picture in executor.map(load, part) if picture is not None)
            if len(found) >= CALIBRATION_PICTURES:
                break
    if not found:
        raise DatasetError("none of the pictures can be read, so that int8 cannot be calibrated on them")
    keys = list(found)[:CALIBRATION_PICTURES]
    return keys, np.stack([found[key] for key in keys])
