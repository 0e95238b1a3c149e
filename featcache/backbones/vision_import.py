"""Nothing enters; an importable torchvision leaves, also beside a CPU-only torch wheel.

torchvision's wheels from the package index are built against a CUDA torch. Beside a CPU-only torch their compiled
operators do not load, and the import fails at the first Python function that is registered for one of them:
"operator torchvision::nms does not exist". No classification model uses these operators, so declaring their
schemas is enough. Where the two wheels match, nothing is done.
"""

from __future__ import annotations

import importlib
import logging
import re
import sys
import threading
from types import ModuleType

from featcache.errors import BackboneError

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_declared: list[object] = []  # a torch.library.Library takes its schemas with it when it is collected
_logger = logging.getLogger(__name__)
_importing = threading.Lock()


def import_torchvision() -> ModuleType:
    """Import torchvision, declaring operator schemas that its import turns out to miss.

    Everything that imports torchvision or timm calls this first. Raises `BackboneError` where torchvision and torch
    do not fit together in another way.
    """
    with _importing:  # what one thread takes out of sys.modules, another may be importing
        return _imported()


def _imported() -> ModuleType:
    for _ in range(len(_SCHEMAS) + 1):
        try:
            return importlib.import_module("torchvision")
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if not missing or missing[1] not in _SCHEMAS:
                raise BackboneError(f"torchvision cannot be imported beside this torch: {error}") from error
            _declare(missing[1])
            for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
                del sys.modules[name]
    raise BackboneError("torchvision cannot be imported beside this torch: install the pair that belongs together")


def _declare(operator: str) -> None:
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    library.define(_SCHEMAS[operator])  # type: ignore[no-untyped-call]
    _declared.append(library)
    _logger.info("torchvision's compiled operators do not load beside this torch: declared the schema of %s", operator)
