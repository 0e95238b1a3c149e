"""Batches of uint8 pictures and an exported network enter; feature vectors from ONNX Runtime leave."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import onnxruntime

from featcache.decode import Pixels
from featcache.embed.engine import available_memory, batch_that_fits, batch_that_keeps_busy
from featcache.embed.reference import LAYER_BYTES, REFERENCE, TOLERANCE, disagreement, probe
from featcache.errors import BackboneError, EngineError, EngineMemoryError
from featcache.records import FeatureSpec, FloatArray

BATCH = 8
"""The activations of a few pictures stay in a core's cache; larger batches are slower."""


class OnnxEngine:
    """Runs an exported network in ONNX Runtime on the CPU: one thread a batch, as many batches at once as cores.

    When it is opened, the vectors of two made-up pictures are compared with those that the file was made with, so that
    another version or another processor does not give other vectors in silence: `EngineError`.
    """

    name = "onnx"
    device = "cpu"

    def __init__(self, path: Path, spec: FeatureSpec, pictures: int, why: str) -> None:
        from joblib import cpu_count

        self.why = why
        self.lanes = cpu_count()
        self._backbone = spec.backbone
        options = onnxruntime.SessionOptions()
        # Batches side by side with a thread each never wait for each other, as the threads of one batch do.
        options.intra_op_num_threads = 1
        options.log_severity_level = 4  # what fails is raised too, and said once
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions have no public base
            raise EngineError(f"ONNX Runtime cannot read {path}: {error}") from error
        notes = self._session.get_modelmeta().custom_metadata_map
        most = batch_that_keeps_busy(pictures, self.lanes, BATCH)
        self.batch_size = batch_that_fits(int(notes[LAYER_BYTES]), self.lanes, most, available_memory())
        self._check(notes[REFERENCE], spec, path)

    def embed(self, pixels: Pixels) -> FloatArray:
        """Return the vectors of pictures as `Engine.embed` says."""
        try:
            vectors: FloatArray = self._session.run(None, {"pixels": pixels})[0]
        except Exception as error:
            if isinstance(error, MemoryError) or "allocate" in str(error) or "bad_alloc" in str(error):
                raise EngineMemoryError(f"no memory for a batch of {len(pixels)}") from error
            raise EngineError(f"ONNX Runtime failed on {self._backbone}: {error}") from error
        if not np.isfinite(vectors).all():
            raise BackboneError(
                f"{self._backbone} gave values that are not finite: its weights are broken, give others"
            )
        return vectors

    def _check(self, noted: str, spec: FeatureSpec, path: Path) -> None:
        pixels = probe(spec.preprocess.crop)
        expected = np.frombuffer(base64.b64decode(noted), np.float32).reshape(len(pixels), -1)
        off = disagreement(np.concatenate([self.embed(pixels[at : at + 1]) for at in range(len(pixels))]), expected)
        if off > TOLERANCE[spec.precision]:
            raise EngineError(
                f"ONNX Runtime gives other vectors for {spec.backbone} ({spec.precision}) than were noted when {path} "
                f"was made: {off:.1e} relative, {TOLERANCE[spec.precision]:.0e} is allowed; "
                + ("this processor cannot use it" if spec.precision == "int8" else "use --engine torch")
            )
