"""Batches of uint8 pictures enter; feature vectors from a torch network leave."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from joblib import cpu_count
from threadpoolctl import ThreadpoolController
from torch import nn
from torch.fx import Node
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from featcache.backbones.base import Backbone
from featcache.decode import Pixels
from featcache.embed.engine import available_memory, batch_that_fits, batch_that_keeps_busy
from featcache.embed.tracing import ThreadTracer
from featcache.errors import DeviceError, EngineMemoryError, ForkedError
from featcache.process import Shared
from featcache.records import FloatArray, Preprocess

BATCH = {"cpu": 16, "cuda": 128, "mps": 64}

VECTORS = 64
"""So many values, or a divisor of it, are computed at once by torch on the CPU: four vectors of AVX-512 or AVX2."""

_WITH_EXP = {"ELU", "GELU", "GELUTanh", "Mish", "QuickGELU", "SELU", "SiLU", "Sigmoid", "Softplus", "Swish", "Tanh"}
"""The activations of torch and timm that need exp or its like."""


@contextlib.contextmanager
def _without_tf32() -> Iterator[None]:
    settings: tuple[Any, ...] = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [setting.allow_tf32 for setting in settings]
    for setting in settings:
        setting.allow_tf32 = False
    try:
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.allow_tf32 = value


_exact = Shared(_without_tf32)


def exact(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Return the setting that a GPU computes in float32 as such: TF32 would cost three digits."""
    return _exact if device.type == "cuda" else contextlib.nullcontext()


class TorchEngine:
    """Runs a backbone in torch, without gradients, on the CPU, CUDA or MPS; fp32, or fp16 where the spec says so.

    BatchNorm is folded into the convolutions where the network can be traced. On the CPU as many batches are in flight
    as there are cores, with a thread each, which never wait for each other; on CUDA two, each in a stream of its own,
    so that copying the one hides behind computing the other.
    """

    name = "torch"

    def __init__(
        self, backbone: Backbone, device: str = "auto", why: str = "asked for", pictures: int | None = None
    ) -> None:
        self.why = why
        self._place = choose_device(device)
        self.device = str(self._place)
        self.lanes = {"cpu": cpu_count(), "cuda": 2}.get(self._place.type, 1)
        self._preprocess = backbone.spec.preprocess
        self._backbone = backbone.name
        self._dtype = torch.float16 if backbone.spec.precision == "fp16" else torch.float32
        self._local = threading.local()
        network = backbone.build()
        wide = layer_bytes(network, self._preprocess.crop)
        memory = torch.cuda.mem_get_info(self._place)[0] if self._place.type == "cuda" else available_memory()
        most = BATCH[self._place.type]
        if self._place.type == "cpu" and pictures is not None:
            most = batch_that_keeps_busy(pictures, self.lanes, most)
        self.batch_size = batch_that_fits(wide, self.lanes, most, memory)
        # channels_last measures about twice as fast on the CPU, and is what a GPU's convolutions prefer.
        network = _folded(network)
        if self._place.type == "cpu":
            network = _same_for_any_batch(network)
        self._network = network.to(self._place, self._dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def embed(self, pixels: Pixels) -> FloatArray:
        """Return the vectors of pictures as `Engine.embed` says."""
        if self._place.type == "cpu" and len(pixels) == 1:
            # Alone it would be added up in another order; that is better than nothing where there is no room for two.
            with contextlib.suppress(EngineMemoryError):
                return self._embed(np.repeat(pixels, 2, axis=0))[:1]
        return self._embed(pixels)

    def _embed(self, pixels: Pixels) -> FloatArray:
        try:
            with torch.inference_mode(), exact(self._place), self._lane():
                images = normalise(self._upload(pixels), self._preprocess)
                vectors = self._network(images.to(self._dtype)).flatten(1).float().cpu().numpy()
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "allocate" not in str(error):
                raise
            if self._place.type == "cuda":
                torch.cuda.empty_cache()
            raise EngineMemoryError(f"no memory on {self.device} for a batch of {len(pixels)}") from error
        return np.ascontiguousarray(vectors)

    def _upload(self, pixels: Pixels) -> torch.Tensor:
        """Return the pictures on the device, as uint8: a quarter of what floats would take on the way."""
        found = torch.from_numpy(pixels)
        if self._place.type != "cuda":
            return found.to(self._place)
        return found.pin_memory().to(self._place, non_blocking=True)

    def _lane(self) -> contextlib.AbstractContextManager[object]:
        """Return the context that a batch is computed in: on CUDA this thread's own stream, on the CPU this thread."""
        if self._place.type == "cpu":
            return one_thread()
        if self._place.type != "cuda":
            return contextlib.nullcontext()
        if not hasattr(self._local, "stream"):
            self._local.stream = torch.cuda.Stream(self._place)  # type: ignore[no-untyped-call]
        return torch.cuda.stream(self._local.stream)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute in the calling thread alone: its helpers wait busily, and two processes at once for ages."""
    torch.get_num_threads()  # a new thread takes over the process's number at its first look at it
    with _controller().limit(limits=1, user_api="openmp"):
        yield


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()  # looks for the libraries once, which takes a millisecond or two


def normalise(pixels: torch.Tensor, preprocess: Preprocess) -> torch.Tensor:
    """Return network input (n, 3, crop, crop), float32, of uint8 pictures (n, crop, crop, 3).

    It is equal to the bit to torchvision's own transform.
    """
    mean, std = (
        torch.tensor(values, dtype=torch.float32, device=pixels.device).view(-1, 1, 1)
        for values in (preprocess.mean, preprocess.std)
    )
    return pixels.permute(0, 3, 1, 2).to(torch.float32).div_(255).sub_(mean).div_(std)


def layer_bytes(network: nn.Module, crop: int) -> int:
    """Return the most bytes that one layer of a network on the CPU reads and writes for one picture."""
    most = 0

    def note(_: nn.Module, given: tuple[object, ...], made: object) -> None:
        nonlocal most
        found = [tensor for tensor in (*given, made) if isinstance(tensor, torch.Tensor)]
        most = max(most, sum(tensor.nbytes for tensor in found))

    leaves = [module for module in network.modules() if not list(module.children())]
    hooks = [module.register_forward_hook(note) for module in leaves]
    try:
        with torch.inference_mode():
            network(torch.zeros(1, 3, crop, crop))
    finally:
        for hook in hooks:
            hook.remove()
    return most


def choose_device(name: str) -> torch.device:
    """Return the device called `name`; `auto` is a GPU where there is one. Raises `DeviceError`."""
    if name == "auto":
        if torch.cuda.is_available():
            return _not_forked(torch.device("cuda"))
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"unknown device {name!r}: use auto, cpu, cuda, cuda:N or mps") from error
    present = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }.get(device.type, 0)
    if (device.index or 0) >= present:
        raise DeviceError(f"there is no device {name!r} on this computer: use --device auto or cpu")
    return _not_forked(device)


def _not_forked(device: torch.device) -> torch.device:
    if device.type == "cuda" and torch.cuda._is_in_bad_fork():
        raise ForkedError(
            f"the device {str(device)!r} cannot be used here: this process was forked after its parent had used CUDA; "
            "start it with multiprocessing's start method 'spawn', or use the device 'cpu'"
        )
    return device


class _Layers(ThreadTracer):
    """Traces a network down to its layers: convolutions and BatchNorms may have code of their own, as timm's have."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Conv2d | nn.BatchNorm2d) or super().is_leaf_module(m, module_qualified_name)


def _same_for_any_batch(network: nn.Module) -> nn.Module:
    """Return the network, whose layers now add up in one order for any number of pictures from two on.

    torch gives convolutions of one pixel to oneDNN from 16 pictures on, and adds up smaller batches in another order;
    dilated ones always, and one pixel has nothing to dilate. A fully connected layer is given the same number of rows
    each time. Of activations the last values, too few for a vector of the processor, have another exp than the others.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
            module.dilation = (2, 2)
        elif isinstance(module, nn.Linear):
            module.forward = partial(_in_parts, module)  # type: ignore[method-assign]
        elif type(module).__name__ in _WITH_EXP:
            module.forward = partial(_in_whole_vectors, module.forward)
    return network


def _in_parts(layer: nn.Linear, rows: torch.Tensor) -> torch.Tensor:
    if rows.ndim != 2:
        return functional.linear(rows, layer.weight, layer.bias)
    size = BATCH["cpu"]
    parts = [
        functional.linear(functional.pad(part, (0, 0, 0, size - len(part))), layer.weight, layer.bias)[: len(part)]
        for part in torch.split(rows, size)
    ]
    return torch.cat(parts)


def _in_whole_vectors(activation: Callable[[torch.Tensor], torch.Tensor], values: torch.Tensor) -> torch.Tensor:
    lacking = -values.numel() % VECTORS
    if not lacking:
        return activation(values)
    if not values.is_contiguous(memory_format=torch.channels_last if values.ndim == 4 else torch.contiguous_format):
        values = values.contiguous()
    padded = values.new_zeros(values.numel() + lacking)
    padded.as_strided(values.shape, values.stride()).copy_(values)
    return activation(padded).as_strided(values.shape, values.stride())


def _folded(network: nn.Module) -> nn.Module:
    """Return a copy of the network with BatchNorm folded into the convolutions before it.

    A network whose Python code cannot be traced, or copied, stays as it is, and is slower.
    """
    try:
        nodes = [node for node in _Layers().trace(network).nodes if node.op == "call_module"]
        network = deepcopy(network)
    except Exception:  # both run the network's own code, which may raise anything
        return network
    calls = Counter(str(node.target) for node in nodes)
    for node in nodes:
        before = node.args[0]
        if not isinstance(before, Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        paths = str(before.target), str(node.target)
        conv, norm = (network.get_submodule(path) for path in paths)
        if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d) or not norm.track_running_stats:
            continue
        if calls[paths[0]] == calls[paths[1]] == 1:
            network.set_submodule(paths[0], fuse_conv_bn_eval(conv, norm))
            network.set_submodule(paths[1], nn.Sequential(*norm.children()))  # timm's BatchNorm has the activation
    return network
