"""Graphs in ONNX's text form, with the values of their constants, enter; graphs, and chains of them, leave."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import onnx
import onnx.compose
import onnx.inliner
from onnx import GraphProto

from featcache.embed.exporting import OPSET


def graph(text: str, **constants: npt.NDArray[Any]) -> GraphProto:
    """Return a graph from its text, in which functions of the domain `own` are put where they are called.

    Names that the text uses and does not make are those of `constants`.
    """
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": {OPSET}, "own": 1]>\n{text}')
    found = onnx.inliner.inline_local_functions(model).graph
    found.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in constants.items())
    return found


def chain(graphs: Sequence[GraphProto]) -> GraphProto:
    """Return one graph, in which the output of each goes into the next; each has one input and one output.

    Names in the first and in the last stay as they are.
    """
    whole = graphs[0]
    for number, part in enumerate(graphs[1:], 1):
        ends = [(whole.output[0].name, part.input[0].name)]
        prefix = None if part is graphs[-1] else f"part{number}/"
        whole = onnx.compose.merge_graphs(whole, part, ends, prefix2=prefix)
    return whole
