"""An exported network and pictures enter; the network in 8-bit integers, with ranges measured on them, leaves."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx

from featcache.decode import Pixels
from featcache.embed.exporting import annotated, silence
from featcache.embed.reference import probe
from featcache.embed.runtime import onnxruntime  # before its parts below
from featcache.errors import EngineError

from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static  # isort: skip
from onnxruntime.quantization.shape_inference import quant_pre_process  # isort: skip

METHOD = "static, weights int8 a channel from -64 to 64, activations uint8 between the least and the greatest seen"
"""Of larger weights, processors that multiply bytes by pairs (AVX2 without VNNI) cut off the sums of two products."""

_STEP = 8


class _Pictures(CalibrationDataReader):  # type: ignore[misc] # onnxruntime has no types
    """Hands out the pictures a few at a time."""

    def __init__(self, pixels: Pixels) -> None:
        self._parts: Iterator[Pixels] = iter(np.split(pixels, range(_STEP, len(pixels), _STEP)))

    def get_next(self) -> dict[str, Pixels] | None:
        """Return the next pictures as the network's input, or `None` at the end."""
        part = next(self._parts, None)
        return None if part is None else {"pixels": part}


def quantise(network: bytes, pixels: Pixels) -> bytes:
    """Return an exported network in int8, calibrated on pictures (n, crop, crop, 3), with its own vectors of `probe`.

    Raises `EngineError` where it cannot be quantised.
    """
    with tempfile.TemporaryDirectory(prefix="featcache-") as folder:
        exact, prepared, small = (Path(folder) / f"{name}.onnx" for name in ("exact", "prepared", "int8"))
        exact.write_bytes(network)
        try:
            with silence():
                quant_pre_process(exact, prepared, skip_symbolic_shape=True)
                quantize_static(
                    prepared,
                    small,
                    _Pictures(pixels),
                    quant_format=QuantFormat.QDQ,
                    activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8,
                    per_channel=True,
                    reduce_range=True,
                    calibrate_method=CalibrationMethod.MinMax,
                )
                model = onnx.load(small)
                session = onnxruntime.InferenceSession(small, providers=["CPUExecutionProvider"])
                reference = session.run(None, {"pixels": probe(pixels.shape[1])})[0]
        except Exception as error:  # the quantiser raises almost anything
            said = " ".join(str(error).split())[:200]
            raise EngineError(f"the network cannot be made int8 ({type(error).__name__}: {said}): use fp32") from error
    notes = {entry.key: entry.value for entry in onnx.load_model_from_string(network).metadata_props}
    return annotated(model, reference, notes)
