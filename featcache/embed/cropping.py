"""How pictures are resized and cropped, and the views of them, enter; an ONNX graph that does it as Pillow does leaves.

Pillow resizes along one axis, rounds to 8 bit, and goes on along the other. So does the graph, as two products with
matrices that it makes from the size of the picture; only rows and columns that the crop keeps are computed. Weights
have 22 binary places, as Pillow's, and float64 adds them up without an error. Which axis is the first, `resize` says.
ONNX's own Resize gives other values, and has no Lanczos filter.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np
from onnx import GraphProto

from featcache.decode import MAX_ASPECT
from featcache.embed.graphs import graph
from featcache.errors import EngineError
from featcache.records import ORIGINAL, Preprocess

_CORNERS = {"crop-tl": (0, 0), "crop-tr": (0, 1), "crop-bl": (1, 0), "crop-br": (1, 1)}

_TARGETS = {
    "squash": "target = Identity(resize)",
    "short": "least = ReduceMin(edge)  grown = Mul(edge, resize)  exact = Div(grown, least)  target = Floor(exact)",
}

_FILTERS = {
    "bilinear": """
  zero = Constant<value = double {0.0}>()
  one = Constant<value = double {1.0}>()
  d = Abs(t)
  line = Sub(one, d)
  value = Max(line, zero)""",
    "bicubic": """
  one = Constant<value = double {1.0}>()
  two = Constant<value = double {2.0}>()
  near_3 = Constant<value = double {1.5}>()
  near_2 = Constant<value = double {2.5}>()
  far_3 = Constant<value = double {-0.5}>()
  far_1 = Constant<value = double {4.0}>()
  d = Abs(t)
  u = Min(d, two)
  square = Mul(u, u)
  n3 = Mul(near_3, u)
  n2 = Sub(n3, near_2)
  n1 = Mul(n2, square)
  near = Add(n1, one)
  f3 = Mul(far_3, u)
  f2 = Add(f3, near_2)
  f1 = Mul(f2, u)
  f0 = Sub(f1, far_1)
  rest = Mul(f0, u)
  far = Add(rest, two)
  is_near = Less(u, one)
  value = Where(is_near, near, far)""",
    "lanczos": """
  zero = Constant<value = double {0.0}>()
  three = Constant<value = double {3.0}>()
  third = Div(t, three)
  fast = own.sinc(t)
  slow = own.sinc(third)
  product = Mul(fast, slow)
  d = Abs(t)
  is_inside = Less(d, three)
  value = Where(is_inside, product, zero)""",
}

_CROPS = """
crops (uint8[n, height, width, 3] pixels) => (uint8[looks, crop, crop, 3] crops) {
  sizes = Shape<start = 1, end = 3>(pixels)
  edge = Cast<to = 11>(sizes)
  TARGET
  room = Sub(target, keep)
  middle = Mul(room, half)
  even = Round(middle)
  padding = Ceil(middle)
  is_small = Less(room, zero)
  centre = Where(is_small, padding, even)
  free = Max(room, zero)
  corner = Mul(corners, free)
  start = Where(is_corner, corner, centre)
  start_y, start_x = Split<axis = 1, num_outputs = 2>(start)
  edge_y, edge_x = Split<num_outputs = 2>(edge)
  target_y, target_x = Split<num_outputs = 2>(target)
  down = own.weights(order_y, start_y, edge_y, target_y)
  along = own.weights(order_x, start_x, edge_x, target_x)
  across = Transpose<perm = [0, 1, 2, 4, 3]>(along)
  longest = ReduceMax(target)
  is_long = Greater(longest, most_whole)
  size = Where(is_long, keep, target)
  loss = Sub(edge, size)
  loss_y, loss_x = Split<num_outputs = 2>(loss)
  twice = Add(loss_x, loss_x)
  most = Max(twice, zero)
  is_tall = Greater(loss_y, most)
  planes = Transpose<perm = [0, 3, 1, 2]>(pixels)
  levels = Cast<to = 11>(planes)
  small = If (is_tall) <
    then_branch = height_first () => (double[v, n, c, crop, crop] high) {
      low = MatMul(down, levels)
      low_level = own.level(low)
      low_small = MatMul(low_level, across)
      high = own.level(low_small)
    },
    else_branch = width_first () => (double[v, n, c, crop, crop] wide) {
      narrow = MatMul(levels, across)
      narrow_level = own.level(narrow)
      narrow_small = MatMul(down, narrow_level)
      wide = own.level(narrow_small)
    }
  >
  last = Transpose<perm = [0, 1, 3, 4, 2]>(small)
  every = Reshape(last, shape)
  crops = Cast<to = 2>(every)
}
<domain: "own", opset_import: ["": 20, "own": 1]>
weights (order, start, edge, target) => (weights) {
  zero = Constant<value = double {0.0}>()
  half = Constant<value = double {0.5}>()
  one = Constant<value = double {1.0}>()
  fine = Constant<value = double {4194304.0}>()
  last = Constant<value_ints = [-1]>()
  inner = Constant<value_ints = [1, 2]>()
  rank = Add(order, start)
  place = Add(rank, half)
  scale = Div(edge, target)
  along = Mul(place, scale)
  centre = Unsqueeze(along, last)
  end = Squeeze(edge)
  seen = Range(zero, end, one)
  away = Sub(seen, centre)
  distance = Add(away, half)
  stretch = Max(scale, one)
  inverse = Div(one, stretch)
  t = Mul(distance, inverse)
  value = own.filter(t)
  total = ReduceSum(value, last)
  share = Div(value, total)
  large = Mul(share, fine)
  whole = Round(large)
  exact = Div(whole, fine)
  is_after = GreaterOrEqual(rank, zero)
  is_before = Less(rank, target)
  is_inside = And(is_after, is_before)
  is_kept = Unsqueeze(is_inside, last)
  kept = Where(is_kept, exact, zero)
  weights = Unsqueeze(kept, inner)
}
<domain: "own", opset_import: ["": 20]>
level (value) => (level) {
  zero = Constant<value = double {0.0}>()
  half = Constant<value = double {0.5}>()
  white = Constant<value = double {255.0}>()
  more = Add(value, half)
  whole = Floor(more)
  level = Clip(whole, zero, white)
}
<domain: "own", opset_import: ["": 20]>
sinc (t) => (value) {
  zero = Constant<value = double {0.0}>()
  one = Constant<value = double {1.0}>()
  pi = Constant<value = double {3.141592653589793}>()
  is_centre = Equal(t, zero)
  turn = Mul(t, pi)
  sine = Sin(turn)
  ratio = Div(sine, turn)
  value = Where(is_centre, one, ratio)
}
<domain: "own", opset_import: ["": 20, "own": 1]>
filter (t) => (value) {FILTER
}
"""


def crops(preprocess: Preprocess, views: Sequence[str] = (ORIGINAL,)) -> GraphProto:
    """Return the graph from uint8 `pixels` (n, height, width, 3), any n and size, to uint8 `crops` (V * n, c, c, 3).

    They are those of `decode.crops`, equal to the bit, of pictures longer than `MAX_ASPECT` to one level: all pictures
    of the first of the V views, then all of the next.
    Raises `EngineError` for a filter that is not known here.
    """
    if preprocess.interpolation not in _FILTERS:
        raise EngineError(
            f"pictures resized with {preprocess.interpolation} cannot be had in ONNX, only {', '.join(_FILTERS)}: "
            "use another backbone"
        )
    named = {"TARGET": _TARGETS[preprocess.resize_mode], "FILTER": _FILTERS[preprocess.interpolation]}
    order = np.tile(np.arange(preprocess.crop, dtype=np.float64), (len(views), 1))
    return graph(
        reduce(lambda text, name: text.replace(name, named[name]), named, _CROPS),
        resize=np.full(2, preprocess.resize, np.float64),
        keep=np.array(preprocess.crop, np.float64),
        half=np.array(0.5),
        zero=np.array(0.0),
        most_whole=np.array([MAX_ASPECT * preprocess.resize], np.float64),
        corners=np.array([_CORNERS.get(view, (0, 0)) for view in views], np.float64),
        is_corner=np.array([[view in _CORNERS] for view in views]),
        order_y=order,
        order_x=np.array([row[::-1] if view == "flip" else row for row, view in zip(order, views, strict=True)]),
        shape=np.array([-1, preprocess.crop, preprocess.crop, 3]),
    )
