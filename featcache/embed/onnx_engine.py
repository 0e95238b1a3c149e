"""Batches of uint8 pictures and an exported network enter; feature vectors from ONNX Runtime leave."""

from __future__ import annotations

import base64
import os

import numpy as np

from featcache.decode import Pixels
from featcache.embed.engine import available_memory, batch_that_fits, batch_that_keeps_busy
from featcache.embed.reference import LAYER_BYTES, REFERENCE, TOLERANCE, disagreement, probe
from featcache.embed.runtime import onnxruntime
from featcache.errors import EngineError, EngineMemoryError
from featcache.records import FeatureSpec, FloatArray

_OUTSIDE = "session.model_external_initializers_file_folder_path"
"""Where ONNX Runtime looks for tensors that a network keeps in other files: nothing lies below a device."""

BATCH = 8
"""The activations of a few pictures stay in a core's cache; larger batches are slower."""


def open_session(network: bytes, name: str, n_threads: int = 0) -> onnxruntime.InferenceSession:
    """Open an exported network, called `name`, on so many threads, 0 for one a core; raises `EngineError`.

    One that wants to open another file, for tensors outside of itself, is refused.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.log_severity_level = 4  # what fails is raised too, and said once
    options.add_session_config_entry(_OUTSIDE, f"{os.devnull}/nothing")
    try:
        # with its fallback it would print what failed, and try the same once more
        return onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:  # onnxruntime's exceptions have no public base
        said = " ".join(str(error).split())
        raise EngineError(f"ONNX Runtime cannot read the network of {name}: {said}") from error


class OnnxEngine:
    """Runs an exported network in ONNX Runtime on the CPU: one thread a batch, as many batches at once as cores.

    When it is opened, the vectors of two made-up pictures are compared with those that the file was made with, so that
    another version or another processor does not give other vectors in silence: `EngineError`.
    """

    name = "onnx"
    device = "cpu"

    def __init__(self, network: bytes, spec: FeatureSpec, pictures: int, why: str) -> None:
        from joblib import cpu_count

        self.why = why
        self.lanes = cpu_count()
        self._backbone = spec.backbone
        # Batches side by side with a thread each never wait for each other, as the threads of one batch do.
        self._session = open_session(network, spec.backbone, 1)
        notes = self._session.get_modelmeta().custom_metadata_map
        most = batch_that_keeps_busy(pictures, self.lanes, BATCH)
        self.batch_size = batch_that_fits(int(notes[LAYER_BYTES]), self.lanes, most, available_memory())
        self._check(notes[REFERENCE], spec)

    def embed(self, pixels: Pixels) -> FloatArray:
        """Return the vectors of pictures as `Engine.embed` says."""
        try:
            found: FloatArray = self._session.run(None, {"pixels": pixels})[0]
        except Exception as error:
            if isinstance(error, MemoryError) or "allocate" in str(error) or "bad_alloc" in str(error):
                raise EngineMemoryError(f"no memory for a batch of {len(pixels)}") from error
            raise EngineError(f"ONNX Runtime failed on {self._backbone}: {error}") from error
        return found

    def _check(self, noted: str, spec: FeatureSpec) -> None:
        pixels = probe(spec.preprocess.crop)
        expected = np.frombuffer(base64.b64decode(noted), np.float32).reshape(len(pixels), -1)
        off = disagreement(np.concatenate([self.embed(pixels[at : at + 1]) for at in range(len(pixels))]), expected)
        if off > TOLERANCE[spec.precision]:
            raise EngineError(
                f"ONNX Runtime gives other vectors for {spec.backbone} ({spec.precision}) than were noted when it was "
                f"exported: {off:.1e} relative, {TOLERANCE[spec.precision]:.0e} is allowed; "
                + ("this processor cannot use it" if spec.precision == "int8" else "use --engine torch")
            )
