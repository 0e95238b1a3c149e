"""Run each picture through a frozen network once, keep the vectors, train and compare classifiers in seconds."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import featcache.process  # noqa: F401 - from now on it sees when this process is forked

if TYPE_CHECKING:
    from featcache.api import (
        Options,
        Sweep,
        Training,
        audit,
        bench,
        cache_compact,
        cache_export,
        cache_gc,
        cache_import,
        cache_info,
        cache_verify,
        compare,
        confusions,
        demo,
        export_onnx,
        extract,
        finetune,
        fit,
        ledger,
        load_features,
        neighbors,
        predict,
        report,
        runs,
        runs_compare,
        runs_show,
        split,
    )
    from featcache.api.extractor import FeatureExtractor
    from featcache.tuning.classifier import FinetuneClassifier

__all__ = [
    "FeatureExtractor",
    "FinetuneClassifier",
    "Options",
    "Sweep",
    "Training",
    "__version__",
    "audit",
    "bench",
    "cache_compact",
    "cache_export",
    "cache_gc",
    "cache_import",
    "cache_info",
    "cache_verify",
    "compare",
    "confusions",
    "demo",
    "export_onnx",
    "extract",
    "finetune",
    "fit",
    "ledger",
    "load_features",
    "neighbors",
    "predict",
    "report",
    "runs",
    "runs_compare",
    "runs_show",
    "split",
]

_ELSEWHERE = {
    "FeatureExtractor": "featcache.api.extractor",
    "FinetuneClassifier": "featcache.tuning.classifier",
}

__version__ = version("featcache")


def __dir__() -> list[str]:
    """List the API's names too, which are not loaded yet."""
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """Load the API at its first use, so that `import featcache` stays instant."""
    if name in __all__:
        return getattr(import_module(_ELSEWHERE.get(name, "featcache.api")), name)
    raise AttributeError(f"module 'featcache' has no attribute {name!r}")
