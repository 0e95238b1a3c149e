"""Models, weights, exported networks and indexes that are changed at random, and what reads them."""

from __future__ import annotations

import hashlib
import io
import re
from pathlib import Path

import numpy as np
import torch
from finetune_rows import STEPS, install, toy
from model_rows import fitted, saved

from featcache import sealed
from featcache.api.models import load_model
from featcache.backbones import finetuned, weights
from featcache.embed.onnx_engine import open_session
from featcache.heads import FLOOR, HEADS
from featcache.heads.base import probabilities
from featcache.records import FeatureSpec
from featcache.search import Index
from featcache.store import Cache

SEAL = re.compile(rb'"sha256":"([0-9a-f]{64})"')
X = np.random.default_rng(0).standard_normal((300, 16)).astype(np.float32)


def sealed_again(data: bytes) -> bytes:
    """The file with the checksum of what it holds now, as a stranger could write it."""
    end = 8 + int.from_bytes(data[:8], "little")
    found = SEAL.search(data, 8, min(end, len(data)))
    if not found:
        return data
    start, stop = found.span(1)
    digest = hashlib.sha256(data[:start] + b"0" * 64 + data[stop:]).hexdigest()
    return data[:start] + digest.encode() + data[stop:]


def heads(folder: Path) -> list[bytes]:
    return [saved(folder, head, fitted(head), ("a", "b", "c")).read_bytes() for head in (*HEADS, FLOOR)]


def use_head(path: Path) -> object:
    path.write_bytes(sealed_again(path.read_bytes()))
    with Cache(path.parent / "cache") as cache:
        found = load_model(cache, path, trust=False)
    length = found.estimator.n_features_in_
    with np.errstate(all="ignore"):  # a head of absurd numbers gives absurd ones
        probable = probabilities(found.estimator, np.ones((2, length), np.float32))
    assert probable.shape == (2, len(found.classes))
    return found


def networks(folder: Path) -> list[bytes]:
    install(None, folder / "toy.pth")
    top = np.arange(24, dtype=np.float32).reshape(3, 8) / 10, np.array([1.5, -2.0, 0.0], np.float32)
    spec = FeatureSpec("toy", "a" * 64, STEPS)
    scores = {"accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.6, "split": "test", "n": 9, "head": "finetune"}
    known = finetuned.Finetuned(7, "toy", spec, ("a", "b", "c"), scores, {"torch": "2"}, top)
    return [finetuned.pack(toy(), known)]


def use_network(path: Path) -> object:
    path.write_bytes(sealed_again(path.read_bytes()))
    with Cache(path.parent / "cache") as cache:
        return finetuned.read(path), load_model(cache, path, trust=False)


def states() -> list[bytes]:
    state = {"a": torch.arange(6.0).reshape(2, 3), "b.weight": torch.tensor(1), "c": torch.zeros(2, 2).half()}
    pickled = io.BytesIO()
    torch.save(state, pickled)
    return [pickled.getvalue(), sealed.pack({name: weights.of_torch(tensor) for name, tensor in state.items()}, {})]


def exported_networks() -> list[bytes]:
    from onnx import TensorProto, helper, numpy_helper

    kernel = numpy_helper.from_array(np.ones((2, 3, 3, 3), np.float32), "w")
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 1, 1]),
    ]
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("GlobalAveragePool", ["c"], ["y"])]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [kernel])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return [model.SerializeToString()]


def use_exported(path: Path) -> object:
    return open_session(path.read_bytes(), "toy", 1)


def indexes() -> list[bytes]:
    trained = Index.train(X, 4)
    return [bytes(trained.filled([(np.arange(len(X)), X)]).to_bytes())]


def use_index(path: Path) -> object:
    return Index.from_bytes(sealed_again(path.read_bytes())).candidates(X[0], 10)
