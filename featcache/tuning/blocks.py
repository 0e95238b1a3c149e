"""A network enters; its blocks in the order of their work, and the network cut below one of them, leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node

from featcache.embed.tracing import ThreadTracer
from featcache.errors import TrainingError

FEWEST = 4
"""A network with fewer blocks than this at one level is looked at one level deeper."""


@dataclass(frozen=True)
class Block:
    """Modules that are frozen or trained together, by their paths in the network; `name` is the first one's."""

    name: str
    paths: tuple[str, ...]


@dataclass(frozen=True)
class Cut:
    """A network in two: `upper(lower(x))` is `network(x)`, sharing its weights; `unfrozen` are modules of the upper.

    `names` are those of the unfrozen blocks. `entry` says what the upper part begins with: the first of them, `the top`
    where all are frozen, or `the network` where nothing is below; `shape` (C, H, W) is what enters there, `dim` the
    length of the vectors that leave.
    """

    network: nn.Module
    lower: nn.Module
    upper: nn.Module
    unfrozen: tuple[nn.Module, ...]
    names: tuple[str, ...]
    entry: str
    shape: tuple[int, ...]
    dim: int


def blocks(network: nn.Module) -> list[Block]:
    """Return the blocks of a network, in order.

    A block is a part with several layers that have weights, as `layer4` of a ResNet or a stage of an EfficientNet; what
    stands between two of them belongs to the one before. Where a network has none, each layer is one.
    """
    parts = _children("", network)
    while (large := [path for path, part in parts if _n_layers(part) > 1]) and len(large) < FEWEST:
        parts = [
            deeper for path, part in parts for deeper in (_children(path, part) if path in large else [(path, part)])
        ]
    found: list[list[str]] = []
    for path, part in parts:
        if found and path not in large and (large or not _n_layers(part)):
            found[-1].append(path)
        else:
            found.append([path])
    return [Block(paths[0], tuple(paths)) for paths in found]


def unfreeze(network: nn.Module, name: str, asked: str) -> list[Block]:
    """Return the blocks that `asked` unfreezes: `head` none, `last` one, a number of last ones, from a name on, `all`.

    Raises `TrainingError` that lists the blocks of the network, which is called `name`.
    """
    found = blocks(network)
    names = [block.name for block in found]
    if asked in ("head", "all"):
        return found if asked == "all" else []
    if asked == "last" or asked.isdecimal():
        count = 1 if asked == "last" else int(asked)
        if 0 < count <= len(found):
            return found[-count:]
        raise TrainingError(f"{name} has {len(found)} blocks, {asked} cannot be unfrozen: {', '.join(names)}")
    if asked in names:
        return found[names.index(asked) :]
    raise TrainingError(
        f"{name} has no block {asked!r}: use head, last, all, a number up to {len(found)}, or one of {', '.join(names)}"
    )


def cut(network: nn.Module, name: str, asked: str, crop: int) -> Cut:
    """Freeze a network but for the blocks that `asked` names, and cut it below the first of them.

    Of a network that cannot be traced, or whose parts are joined by more than one tensor, all is the upper part. It is
    in eval mode. Raises `TrainingError` as `unfreeze` does.
    """
    open_blocks = unfreeze(network, name, asked)
    network.eval().requires_grad_(False)
    unfrozen = tuple(network.get_submodule(path) for block in open_blocks for path in block.paths)
    names = tuple(block.name for block in open_blocks)
    entry = "the network"
    parts: tuple[nn.Module, nn.Module] | None = None
    if asked == "all":
        unfrozen = (network,)
    elif not open_blocks:
        entry, parts = "the top", (network, nn.Identity())
    elif parts := _split(network, blocks(network), open_blocks[0].paths[0]):
        entry = names[0]
    lower, upper = parts or (nn.Identity(), network)
    with torch.no_grad():
        below = lower(torch.zeros(1, 3, crop, crop))
        dim = upper(below).flatten(1).shape[1]
    for module in unfrozen:
        module.requires_grad_(True)
    return Cut(network, lower, upper, unfrozen, names, entry, tuple(below.shape[1:]), dim)


class _Outline(ThreadTracer):
    """Traces the network's own code down to its blocks, whose insides may be anything."""

    def __init__(self, paths: Sequence[str]) -> None:
        super().__init__()
        self._above = {path[:at] for path in paths for at, letter in enumerate(path) if letter == "."}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self._above


def _split(network: nn.Module, found: Sequence[Block], first: str) -> tuple[nn.Module, nn.Module] | None:
    try:
        nodes = list(_Outline([path for block in found for path in block.paths]).trace(network).nodes)
    except Exception:  # tracing runs the network's own code, which may raise anything
        return None
    at = next((i for i, node in enumerate(nodes) if node.op == "call_module" and node.target == first), 0)
    below = set(nodes[:at])
    crossing = {used for node in nodes[at:] for used in node.all_input_nodes if used in below}
    if len(crossing) != 1 or (join := crossing.pop()).op == "placeholder":
        return None
    lower, copies = Graph(), dict[Node, Node]()
    for node in nodes[:at]:
        copies[node] = lower.node_copy(node, copies.__getitem__)
    lower.output(copies[join])
    upper = Graph()
    copies = {join: upper.placeholder("x")}
    for node in nodes[at:]:
        copies[node] = upper.node_copy(node, copies.__getitem__)
    return GraphModule(network, lower).eval(), GraphModule(network, upper).eval()


def _children(path: str, module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the direct parts of a module that have parameters, with their paths."""
    named = ((f"{path}.{name}" if path else name, child) for name, child in module.named_children())
    return [(path, child) for path, child in named if any(True for _ in child.parameters())]


def _n_layers(module: nn.Module) -> int:
    """Count the layers with weights: norms, which have vectors only, are not among them."""
    return sum(any(p.ndim > 1 for p in part.parameters(recurse=False)) for part in module.modules())
