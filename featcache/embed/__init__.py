"""A backbone enters; an engine, which turns decoded batches into vectors, leaves."""

from __future__ import annotations

import logging
import platform
import threading
from pathlib import Path

from featcache.backbones.base import Backbone
from featcache.embed.engine import ENGINES, Engine, Shelf
from featcache.errors import DeviceError, EngineError
from featcache.records import PRECISIONS

__all__ = [
    "ENGINES",
    "EXPORT_PAYS",
    "Engine",
    "Shelf",
    "check_running",
    "choose",
    "exported",
    "open_engine",
]

EXPORT_PAYS = 1000
"""From so many pictures on an export is worth its 4 to 8 seconds.

The faster engine wins back a part in this extraction, and the rest in the next one, which starts without torch.
"""

_logger = logging.getLogger(__name__)
_exporting = threading.Lock()
"""Of threads that want the same network, the second finds it exported."""


def open_engine(
    backbone: Backbone, device: str = "auto", engine: str = "auto", shelf: Shelf | None = None, pictures: int = 1
) -> Engine:
    """Load the network; `auto` takes the engine that is fastest for this many `pictures`, and says why.

    The ONNX engine needs a `shelf` where exported networks are kept. Raises `DeviceError`, `BackboneError`,
    `EngineError` and `WeightsError`.
    """
    check_running(device, engine, backbone.spec.precision)
    name, why = choose(backbone, device, engine, shelf, pictures)
    if name == "onnx" and shelf is not None:
        try:
            return _onnx(backbone, shelf, pictures, why)
        except EngineError as error:
            if engine != "auto" or backbone.spec.precision == "int8":
                raise
            why = "ONNX Runtime cannot be used"
            _logger.warning("%s; the torch engine is used instead", error)
    from featcache.embed.torch_engine import TorchEngine

    opened = TorchEngine(backbone, device, why, pictures)
    if opened.device == "cpu" and backbone.spec.precision == "fp16":
        _logger.warning("fp16 is for GPUs, and on this CPU several times slower than fp32: leave out --precision fp16")
    return opened


def check_running(device: str, engine: str, precision: str = "fp32") -> None:
    """Raise `DeviceError` or `EngineError` unless the engine and the device are there and fit the precision.

    `auto` and `cpu` always are; a device with another name imports torch.
    """
    if engine == "ray":
        raise EngineError("Ray extracts and does nothing else: run `featcache extract SOURCE --engine ray` before this")
    for kind, found, known in (("engine", engine, ENGINES), ("precision", precision, PRECISIONS)):
        if found not in known:
            raise EngineError(f"unknown {kind} {found!r}: use {', '.join(known)}")
    if engine == "torch" and precision == "int8":
        raise EngineError("the torch engine has no int8: use --engine onnx or auto")
    if engine == "onnx" and precision == "fp16":
        raise EngineError("the ONNX engine has no fp16, which is for GPUs: use --engine torch or auto")
    if device in ("auto", "cpu"):
        return
    from featcache.embed.torch_engine import choose_device

    if choose_device(device).type != "cpu" and (engine == "onnx" or precision == "int8"):
        wanted = "int8" if precision == "int8" else "the ONNX engine"
        raise DeviceError(f"{wanted} runs on the CPU only, not on {device!r}: use --device cpu")


def choose(backbone: Backbone, device: str, engine: str, shelf: Shelf | None, pictures: int) -> tuple[str, str]:
    """Return the name of the engine to use for this many `pictures`, and the reason."""
    precision = backbone.spec.precision
    if engine != "auto":
        return engine, "asked for"
    if precision != "fp32":
        return ("onnx", "it has int8") if precision == "int8" else ("torch", "it has fp16")
    if shelf is None:
        return "torch", "there is no cache for an export"
    if (device == "auto" and _may_have_gpu()) or device not in ("auto", "cpu"):
        from featcache.embed.torch_engine import choose_device

        found = choose_device(device)
        if found.type != "cpu":
            return "torch", f"it runs on {found}"
    if shelf.find(backbone.spec.network.fingerprint):
        return "onnx", "the network is exported already"
    if pictures >= EXPORT_PAYS:
        return "onnx", f"{pictures:,} pictures are worth the export"
    return "torch", f"fewer than {EXPORT_PAYS:,} pictures are not worth an export"


def _may_have_gpu() -> bool:
    """Tell whether torch is worth asking for a GPU; importing it takes a second."""
    # NVIDIA, AMD, Windows' subsystem for Linux.
    drivers = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
    return platform.system() != "Linux" or any(Path(path).exists() for path in drivers)


def _onnx(backbone: Backbone, shelf: Shelf, pictures: int, why: str) -> Engine:
    from featcache.embed.onnx_engine import OnnxEngine

    spec = backbone.spec
    if spec.calibration is None:
        return OnnxEngine(exported(backbone, shelf), spec, pictures, why)
    network = shelf.read(spec.calibrated.fingerprint)
    if network is None:
        raise EngineError(
            f"the int8 network of {backbone.name} that made these vectors (sha256 "
            f"{spec.calibration.network_sha256[:16]}) is not in this cache, and nothing else gives the same: "
            "extract with --precision int8, and fit again"
        )
    return OnnxEngine(network, spec, pictures, why)


def exported(backbone: Backbone, shelf: Shelf) -> bytes:
    """Return the backbone's exact network in ONNX format, exported now if it never was (this imports torch).

    Raises `EngineError` where it cannot be exported.
    """
    spec = backbone.spec.network
    with _exporting:
        network = shelf.read(spec.fingerprint)
        if network is None:
            from featcache.embed.exporting import export

            _logger.warning("exporting %s to ONNX, once for this cache", backbone.name)
            network = export(backbone)
            shelf.keep(spec.fingerprint, network)
        return network
