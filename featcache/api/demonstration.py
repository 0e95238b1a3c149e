"""Nothing, or a folder of pictures, enters; an extraction and a table of heads leave."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

from featcache.api.comparing import compare
from featcache.api.extraction import extract
from featcache.api.options import Options, open_cache
from featcache.process import after_forks_too
from featcache.records import Progress, Source
from featcache.records.experiments import DemoSummary

DIGITS_PER_CLASS = 50
DIGIT_PIXELS = 64


@after_forks_too
def demo(source: Source | None = None, options: Options | None = None, progress: Progress | None = None) -> DemoSummary:
    """Extract a folder once and compare all heads on it.

    Without `source` the pictures are 500 of scikit-learn's handwritten digits, written into the cache as a class
    folder of PNGs, and the backbone is efficientnet_lite0, whose weights need no download. Raises `FeatcacheError`.
    """
    options = options or Options()
    if source is None:
        source = _write_digits(options)
        options = replace(options, backbone="efficientnet_lite0")
    extracted = extract(source, options, progress)
    return DemoSummary(extracted, compare(source, n_seeds=1, options=Options(cache=options.cache), progress=progress))


def _write_digits(options: Options) -> Path:
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    with open_cache(options) as cache:
        for digit in range(10):
            for at in np.flatnonzero(digits.target == digit)[:DIGITS_PER_CLASS]:
                name = f"demo/digits/{digit}/{at:04d}.png"
                if (cache.folder / name).exists():
                    continue
                grey = Image.fromarray((digits.images[at] * (255 / 16)).astype(np.uint8))
                out = io.BytesIO()
                grey.resize((DIGIT_PIXELS, DIGIT_PIXELS), Image.Resampling.BICUBIC).save(out, "PNG")
                cache.put(name, out.getvalue())
        return cache.folder / "demo" / "digits"
