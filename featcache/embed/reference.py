"""Nothing enters; made-up pictures, and the rule by which two engines give the same vectors of them, leave."""

from __future__ import annotations

import numpy as np

from featcache.decode import Pixels
from featcache.records import FloatArray

TOLERANCE = {"fp32": 1e-4, "int8": 2e-2}
"""How far vectors may be apart, relative to their length; for other processors integers are rounded differently."""

REFERENCE, LAYER_BYTES = "featcache.reference", "featcache.layer_bytes"
"""Names in the metadata of exported networks: vectors of `probe` in base64, and see `engine.batch_that_fits`."""


def probe(crop: int) -> Pixels:
    """Return two made-up pictures (2, crop, crop, 3), the same for ever: coarse patches with fine noise."""
    random = np.random.RandomState(0)  # its stream is frozen, that of newer generators is not
    coarse = random.randint(0, 200, (2, 8, 8, 3))
    rows = np.arange(crop) * 8 // crop
    return (coarse[:, rows][:, :, rows] + random.randint(0, 56, (2, crop, crop, 3))).astype(np.uint8)


def disagreement(found: FloatArray, expected: FloatArray) -> float:
    """Return the largest distance of two vectors relative to the expected one's length.

    It is infinite for other shapes, and for values that are not finite.
    """
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    distance = np.linalg.norm(found - expected, axis=1)
    return float((distance / np.maximum(np.linalg.norm(expected, axis=1), np.finfo(np.float32).tiny)).max())
