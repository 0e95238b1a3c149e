"""A backbone enters; its network in ONNX format, with its normalisation inside, leaves."""

from __future__ import annotations

import base64
import contextlib
import io
import logging
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

import numpy as np
import torch
from torch import nn

from featcache.backbones.base import Backbone
from featcache.embed.reference import LAYER_BYTES, REFERENCE, probe
from featcache.embed.torch_engine import layer_bytes, normalise
from featcache.errors import EngineError
from featcache.process import filtering, root_handlers_kept
from featcache.records import FloatArray, Preprocess

OPSET = 20

_one_at_a_time = threading.RLock()
_warnings = filtering(("ignore", "", Warning))


class _FromPixels(nn.Module):
    """Normalises uint8 pictures and runs the network on them."""

    def __init__(self, network: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        self.network = network
        self.preprocess = preprocess

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.network(normalise(pixels, self.preprocess))
        return features.flatten(1)


def export(backbone: Backbone) -> bytes:
    """Return the network as ONNX: uint8 pixels (n, crop, crop, 3) in, float32 features (n, d) out, any n.

    The vectors of made-up pictures, as torch computes them, are in its metadata. Raises `EngineError` where the network
    cannot be exported.
    """
    preprocess = backbone.spec.preprocess
    network = backbone.build()
    pixels = torch.from_numpy(probe(preprocess.crop))
    whole = _FromPixels(network, preprocess).eval()
    with torch.inference_mode():
        reference = whole(pixels).float().numpy()
    notes = {LAYER_BYTES: str(layer_bytes(network, preprocess.crop))}
    try:
        with silence():
            program = torch.onnx.export(
                whole,
                (pixels,),
                input_names=["pixels"],
                output_names=["features"],
                dynamic_shapes=({0: torch.export.Dim("n")},),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
        if program is None:
            raise RuntimeError("the exporter gave nothing")
        return annotated(program.model_proto, reference, notes)
    except MemoryError:
        raise
    except Exception as error:  # the exporter raises almost anything
        said = " ".join(str(error).split())[:200]
        raise EngineError(f"{backbone.name} cannot be exported to ONNX ({type(error).__name__}: {said})") from error


def annotated(model: Any, reference: FloatArray, notes: Mapping[str, str] | None = None) -> bytes:
    """Return an ONNX model as bytes, with the vectors of `probe` and further notes in its metadata."""
    import onnx

    known = {entry.key: entry.value for entry in model.metadata_props}
    text = base64.b64encode(np.ascontiguousarray(reference, np.float32).tobytes()).decode()
    onnx.helper.set_model_props(model, {**known, **(notes or {}), REFERENCE: text})
    data: bytes = model.SerializeToString()
    return data


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep what libraries print, warn and log from the user: it is about their own code.

    Other threads print and log as before, and wait here until this one is done: the exporter works on its own globals.
    """
    with _one_at_a_time, root_handlers_kept(), _warnings, contextlib.redirect_stdout(_Others(sys.stdout)):
        ours = threading.get_ident()

        def is_to_be_seen(record: logging.LogRecord) -> bool:
            return record.thread != ours or record.levelno > logging.WARNING

        loggers = [logging.root, *(known for known in logging.root.manager.loggerDict.values())]
        handlers = [handler for logger in loggers for handler in getattr(logger, "handlers", ())]
        handlers += [logging.lastResort] if logging.lastResort else []
        for handler in handlers:
            handler.addFilter(is_to_be_seen)
        try:
            yield
        finally:
            for handler in handlers:
                handler.removeFilter(is_to_be_seen)


class _Others(io.TextIOBase):
    """Stdout as all threads see it but the one that made this: what is printed there goes nowhere."""

    def __init__(self, out: TextIO) -> None:
        self._out, self._silent = out, threading.get_ident()

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self._silent else self._out.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._out, name)
