"""A model file enters; one ONNX file, from the pixels of pictures to the probabilities of classes, leaves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from featcache import __version__
from featcache.api.models import Model, load_model
from featcache.api.options import Options, open_cache
from featcache.api.outputs import refuse_cache, write
from featcache.api.prediction import same_backbone
from featcache.backbones import Backbone
from featcache.decode import crops
from featcache.embed import Engine, exported, open_engine
from featcache.embed.reference import probe
from featcache.errors import ModelError
from featcache.process import after_forks_too
from featcache.records import ORIGINAL
from featcache.records.experiments import OnnxSummary
from featcache.store import Cache

if TYPE_CHECKING:
    from onnx import ModelProto

TOLERANCE = 1e-4
"""How far a probability may be from that of `predict`."""

MAX_BYTES = 2**31 - 1
"""What a file of protocol buffers can hold."""

_SIZES = ((480, 640), (640, 427), (97, 61), (300, 300), (640, 200))
"""Height and width of the made-up pictures of the check."""


@after_forks_too
def export_onnx(
    model: str | Path, out: str | Path | None = None, trust: bool = False, options: Options | None = None
) -> OnnxSummary:
    """Write a fitted model as one ONNX file: `pixels` uint8 (n, height, width, 3) in, `probabilities` (n, K) out.

    Pixels are those of upright RGB pictures of any size, one size a batch; resizing and cropping are in the graph. The
    file is `out`, in the current folder `<name of model>.onnx`; what stands in `options` is as in `predict`. Before it
    is written, ONNX Runtime must give the probabilities of `predict` on made-up pictures within 1e-4. Raises
    `ModelError`, and `EngineError`, `HeadError`, `OutputError`.
    """
    import onnx

    from featcache.embed.exporting import OPSET

    options = options or Options()
    path = Path(model)
    target = Path(f"{path.stem}.onnx" if out is None else out)
    refuse_cache(target)
    with open_cache(options) as cache:
        fitted = load_model(cache, path, trust)
        _check_features(fitted, path)
        backbone = same_backbone(cache, fitted, path, options.weights)
        views = (ORIGINAL, *fitted.scores.get("test_views", ()))
        engine = open_engine(backbone, "cpu", "onnx" if fitted.spec.calibration else "torch", cache.networks)
        fitted.check_dim(path, engine.embed(probe(fitted.spec.preprocess.crop)[:1]).shape[1])
        made = _whole(cache, fitted, backbone, views)
        notes = _notes(fitted, views)
        texts = {name: note if isinstance(note, str) else json.dumps(note) for name, note in notes.items()}
        onnx.helper.set_model_props(made, texts)
        onnx.checker.check_model(made, full_check=True)
        content = made.SerializeToString()
        difference = _difference(content, engine, fitted, views)
    if not difference <= TOLERANCE:
        raise ModelError(
            f"ONNX Runtime gives other probabilities than {path}: {difference:.1e} apart on made-up pictures, "
            f"{TOLERANCE:.0e} is allowed; no file was written, use `featcache predict`"
        )
    write(target, content)
    made_of: dict[str, Any] = {"model": str(path), "weights": backbone.weights, "opset": OPSET}
    return OnnxSummary(file=str(target), bytes=len(content), difference=difference, **made_of, **notes)


def _check_features(fitted: Model, path: Path) -> None:
    spec = fitted.spec
    for what, is_used in (
        ("fp16", spec.precision == "fp16"),
        ("--draft", spec.decoding is not None),
        (spec.reading, spec.reading),
    ):
        if is_used:
            raise ModelError(
                f"{path} was fitted on vectors made with {what}, which a graph of exact pixels does not give: extract "
                f"without {what} and fit again"
            )


def _whole(cache: Cache, fitted: Model, backbone: Backbone, views: Sequence[str]) -> ModelProto:
    import onnx

    from featcache.embed import cropping
    from featcache.embed.graphs import chain
    from featcache.heads.graphs import graphs, mean_of_views

    spec = fitted.spec
    data = cache.networks.read(spec.calibrated.fingerprint) if spec.calibration else exported(backbone, cache.networks)
    assert data is not None  # or the engine had not opened
    network = onnx.load_model_from_string(data)
    del network.graph.value_info[:]  # their n is not that of the pictures where there are several views
    for named in (*network.graph.node, *network.graph.input, *network.graph.output, *network.graph.initializer):
        del named.metadata_props[:]  # the exporter's notes, with paths of this computer
    parts = [
        cropping.crops(spec.preprocess, views),
        network.graph,
        *graphs(fitted.estimator),
        mean_of_views(len(views), len(fitted.classes)),
    ]
    size = sum(part.ByteSize() for part in parts)
    if size > MAX_BYTES:
        raise ModelError(
            f"the model takes {size:,} bytes, and an ONNX file holds {MAX_BYTES:,}: fit a head on fewer pictures, or "
            "one that keeps none of them, as logreg"
        )
    whole = chain(parts)
    whole.name = "featcache"
    return onnx.helper.make_model(
        whole, ir_version=network.ir_version, opset_imports=network.opset_import, functions=network.functions
    )


def _notes(fitted: Model, views: Sequence[str]) -> dict[str, Any]:
    """Return what the file says of itself."""
    spec, scores, steps = fitted.spec, fitted.scores, fitted.spec.preprocess
    edge = "both edges" if steps.resize_mode == "squash" else "short edge"
    return {
        "labels": fitted.classes,
        "backbone": spec.backbone,
        "weights_sha256": spec.weights_sha256,
        "fingerprint": spec.fingerprint,
        "precision": spec.precision,
        "head": scores.get("head", "fine-tuned"),
        "views": views,
        "score": {
            "accuracy": scores["accuracy"],
            "interval": (scores["accuracy_low"], scores["accuracy_high"]),
            "split": scores.get("scored_split", scores.get("split")),
            "n": scores.get("n_test", scores.get("n")),
            "scored_classes": scores.get("scored_classes", len(fitted.classes)),
            "seed": scores.get("seed"),
        },
        "outside": f"decode the file; EXIF: {spec.exif}; colour: {spec.color}; uint8 (n, height, width, 3), any size",
        "inside": f"{edge} to {steps.resize} ({steps.interpolation}, as Pillow), crop {steps.crop} x {steps.crop}, "
        f"divide by 255, subtract {list(steps.mean)}, divide by {list(steps.std)}",
        "featcache": __version__,
    }


def _difference(content: bytes, engine: Engine, fitted: Model, views: Sequence[str]) -> float:
    """Return how far probabilities of ONNX Runtime are at most from those of the model, on made-up pictures."""
    from featcache.embed.onnx_engine import open_session
    from featcache.heads.base import probabilities

    session = open_session(content, fitted.spec.backbone)
    most = 0.0
    for height, width in _SIZES:
        pixels = np.ascontiguousarray(probe(max(height, width))[:, :height, :width])
        looks = np.stack([crops(Image.fromarray(picture), fitted.spec.preprocess, views) for picture in pixels], axis=1)
        expected = np.mean([probabilities(fitted.estimator, engine.embed(look)) for look in looks], axis=0)
        found = session.run(None, {"pixels": pixels})[0]
        most = float(np.maximum(most, np.abs(found - expected).max()))  # which keeps NaN
    return most
