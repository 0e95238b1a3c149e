"""A fitted estimator enters; ONNX graphs that give its probabilities, a step each, leave."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import GraphProto
from sklearn.decomposition import PCA
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from featcache.embed.graphs import graph
from featcache.errors import HeadError
from featcache.heads.base import Classifier, LinearClassifier
from featcache.heads.centroid import NearestCentroid
from featcache.heads.knn import KNeighbors
from featcache.heads.mlp import LEAST, LeadingAxes, Perceptron
from featcache.heads.scaling import VectorScaler
from featcache.heads.svm_rbf import KernelSVM

LABELS = 2**28
"""The labels of neighbours are so many numbers at most, one for each class: a file of ONNX holds no more."""

_ACTIVATIONS = {"identity": "Identity", "logistic": "Sigmoid", "relu": "Relu", "tanh": "Tanh"}


def graphs(estimator: Any) -> list[GraphProto]:
    """Return the steps of a fitted estimator from float32 vectors (n, d) to float32 probabilities (n, K).

    Each has one input and one output; those of a `Pipeline` are the steps of its own. Raises `HeadError` for an
    estimator that is not known here.
    """
    if isinstance(estimator, Pipeline):
        return [made for _, step in estimator.steps for made in graphs(step)]
    for kind, translate in _TRANSLATIONS.items():
        if isinstance(estimator, kind):
            last = [_softmax(estimator.temperature)] if isinstance(estimator, Classifier) else []
            found = translate(estimator)
            return [*(found if isinstance(found, list) else [found]), *last]
    raise HeadError(f"{type(estimator).__name__} cannot be had in ONNX: fit another head")


def mean_of_views(views: int, classes: int) -> GraphProto:
    """Return the graph from probabilities (views * n, classes), a view after the other, to their means (n, classes)."""
    return graph(
        f"""mean (float[looks, {classes}] x) => (float[n, {classes}] probabilities) {{
          by_view = Reshape(x, views)
          probabilities = ReduceMean<keepdims = 0>(by_view, view)
        }}""",
        views=np.array([views, -1, classes]),
        view=np.array([0]),
    )


def _step(text: str, **constants: npt.ArrayLike) -> GraphProto:
    """Return a graph from `x` (n, d) to `y` (n, e); floating constants become float32."""
    values = {name: np.asarray(value) for name, value in constants.items()}
    single = {name: value.astype(np.float32) if value.dtype.kind == "f" else value for name, value in values.items()}
    return graph(f"step (float[n, d] x) => (float[n, e] y) {{ {text} }}", **single)


def _softmax(temperature: float) -> GraphProto:
    return _step("cooled = Div(x, temperature)  y = Softmax<axis = 1>(cooled)", temperature=temperature)


def _standardised(step: StandardScaler) -> GraphProto:
    return _step("centred = Sub(x, mean)  y = Div(centred, scale)", mean=step.mean_, scale=step.scale_)


_POWERED = "sign = Sign(x)  size = Abs(x)  drawn = Pow(size, power)  powered = Mul(sign, drawn)"
_OF_UNIT_LENGTH = """
sizes = Abs({value})
largest = ReduceMax(sizes, features)
no_zero = Max(largest, least)
near_one = Div({value}, no_zero)
length = ReduceL2(near_one, features)
some_length = Max(length, least)
unit = Div(near_one, some_length)
"""


def _scaled(step: VectorScaler) -> GraphProto:
    constants: dict[str, npt.ArrayLike] = {"mean": step.mean_, "scale": step.scale_}
    value, lines = "x", []
    if step.power != 1:
        value, constants["power"] = "powered", step.power
        lines.append(_POWERED)
    if step.unit:
        lines.append(_OF_UNIT_LENGTH.format(value=value))
        value, constants["features"], constants["least"] = "unit", [1], np.finfo(np.float32).tiny
    lines.append(f"centred = Sub({value}, mean)  y = Div(centred, scale)")
    return _step("\n".join(lines), **constants)


def _turned(step: PCA) -> GraphProto:
    return _step("centred = Sub(x, mean)  y = MatMul(centred, axes)", mean=step.mean_, axes=step.components_.T)


def _leading(step: LeadingAxes) -> GraphProto:
    return _step("y = Slice(x, first, kept, axis)", first=[0], kept=[step.kept_], axis=[1])


def _linear(head: LinearClassifier, text: str = "y = Gemm<transB = 1>(x, weight, bias)") -> GraphProto:
    return _step(text, weight=head.coef_, bias=head.intercept_)


def _centroid(head: NearestCentroid) -> GraphProto:
    unit = "unit = LpNormalization<axis = 1, p = 2>(x)  y = Gemm<transB = 1>(unit, weight, bias)"
    return _linear(head, unit) if head.cosine else _linear(head)


def _neighbours(head: KNeighbors) -> GraphProto:
    size = len(head._rows) * len(head.classes_)
    if size > LABELS:
        raise HeadError(
            f"{len(head._rows):,} neighbours of {len(head.classes_):,} classes are too many for ONNX: use logreg"
        )
    return _step(
        """
        unit = LpNormalization<axis = 1, p = 2>(x)
        cosines = Gemm<transB = 1>(unit, rows)
        nearest, places = TopK(cosines, k)
        weights = Max(nearest, least)
        column = Unsqueeze(weights, last)
        classes = Gather(labels, places)
        spread = Mul(column, classes)
        votes = ReduceSum<keepdims = 0>(spread, neighbours)
        more = Add(votes, even)
        all = ReduceSum(more, neighbours)
        shares = Div(more, all)
        y = Log(shares)
        """,
        rows=head._rows,
        labels=np.eye(len(head.classes_))[head._codes],
        k=[min(head.n_neighbors, len(head._rows))],
        least=np.finfo(head._rows.dtype).eps,
        even=1 / len(head.classes_),
        last=[2],
        neighbours=[1],
    )


_MARGINS = """
unit = LpNormalization<axis = 1, p = 2>(x)
cosines = MatMul(unit, vectors)
less = Sub(cosines, one)
negative = Min(less, zero)
slowed = Mul(negative, twice_rate)
kernel = Exp(slowed)
column = Unsqueeze(kernel, last)
pulls = Mul(column, alphas)
adds = MatMul(members, pulls)
turned = Transpose<perm = [0, 2, 1]>(adds)
differences = Sub(adds, turned)
decisions = Add(differences, biases)
rivals = Add(decisions, far)
margin = ReduceMin<keepdims = 0>(rivals, last)
y = Mul(margin, half)
"""


def _kernel(head: KernelSVM) -> GraphProto:
    sizes = np.diff(head._ends, prepend=0)
    return _step(
        _MARGINS,
        vectors=head._vectors.T,
        twice_rate=2 * head._rate,
        alphas=head._alphas,
        members=np.repeat(np.eye(len(sizes)), sizes, axis=1),
        biases=head._biases,
        far=np.where(np.eye(len(sizes), dtype=bool), np.finfo(np.float32).max, 0.0),
        half=0.5,
        last=[2],
        one=1.0,
        zero=0.0,
    )


def _perceptron(head: Perceptron) -> list[GraphProto]:
    """Return the stretching, the network, and the logarithms of its probabilities."""
    stretched = _step("y = Mul(x, gain)", gain=head.gain_)
    logarithm = _step("some = Max(x, least)  y = Log(some)", least=LEAST)
    return [stretched, _network(head.network_), logarithm]


def _network(head: MLPClassifier) -> GraphProto:
    lines: list[str] = []
    constants: dict[str, npt.ArrayLike] = {}
    last = len(head.coefs_) - 1
    for at, (weight, bias) in enumerate(zip(head.coefs_, head.intercepts_, strict=True)):
        constants |= {f"weight{at}": weight, f"bias{at}": bias}
        lines.append(f"sum{at} = Gemm({f'layer{at - 1}' if at else 'x'}, weight{at}, bias{at})")
        if at < last:
            lines.append(f"layer{at} = {_ACTIVATIONS[head.activation]}(sum{at})")
    if head.out_activation_ == "softmax":
        return _step("\n".join([*lines, f"y = Softmax<axis = 1>(sum{last})"]), **constants)
    both = f"second = Sigmoid(sum{last})  opposite = Neg(sum{last})  first = Sigmoid(opposite)"
    return _step("\n".join([*lines, both, "y = Concat<axis = 1>(first, second)"]), **constants)


_TRANSLATIONS: dict[type, Callable[[Any], GraphProto | list[GraphProto]]] = {
    VectorScaler: _scaled,
    StandardScaler: _standardised,
    PCA: _turned,
    LeadingAxes: _leading,
    NearestCentroid: _centroid,
    LinearClassifier: _linear,
    KNeighbors: _neighbours,
    KernelSVM: _kernel,
    Perceptron: _perceptron,
    MLPClassifier: _network,
}
"""The first kind that an estimator is of counts; some are in older models alone."""
