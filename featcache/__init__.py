"""Run each picture through a frozen network once, keep the vectors, train and compare classifiers in seconds."""

from __future__ import annotations

from importlib import import_module

import featcache.forks  # noqa: F401 - from now on it sees when this process is forked

# Of the standard library nothing is loaded here: until `__main__` runs, Ctrl-C would be told by Python, in many lines.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from featcache import process as process
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

    __version__: str

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


def __dir__() -> list[str]:
    """List the API's names too, which are not loaded yet."""
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """Load the API at its first use, so that `import featcache` stays instant."""
    if name == "__version__":
        from importlib.metadata import version

        return version("featcache")
    if name == "process":
        return import_module("featcache.process")
    if name in __all__:
        return getattr(import_module(_ELSEWHERE.get(name, "featcache.api")), name)
    raise AttributeError(f"module 'featcache' has no attribute {name!r}")
