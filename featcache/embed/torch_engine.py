"""Batches of uint8 pictures enter; feature vectors from a torch network leave."""

from __future__ import annotations

import numpy as np
import torch

from featcache.backbones.base import Backbone
from featcache.decode import Pixels
from featcache.errors import BackboneError, DeviceError
from featcache.records import FloatArray, Preprocess


class TorchEngine:
    """Runs a backbone in eager torch, float32, without gradients, on the CPU, CUDA or MPS."""

    def __init__(self, backbone: Backbone, device: str = "auto") -> None:
        self.device = choose_device(device)
        self._preprocess = backbone.spec.preprocess
        self._name = backbone.name
        # channels_last measures about twice as fast on the CPU, and is what a GPU's convolutions prefer.
        self._network = backbone.build().to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def batch_size(self) -> int:
        """The number of pictures a batch has unless the caller says otherwise."""
        return 32 if self.device.type == "cpu" else 128

    def embed(self, pixels: Pixels) -> FloatArray:
        """Return the vectors (n, d), float32, of uint8 pictures (n, crop, crop, 3), in their order.

        A picture's vector does not depend on the others beyond 1e-4 relative. Raises `BackboneError` where a vector is
        not finite.
        """
        # TF32 would cost three digits, and an fp32 fingerprint promises them.
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            vectors = self._network(normalise(pixels, self._preprocess, self.device)).flatten(1).float().cpu().numpy()
        if not np.isfinite(vectors).all():
            raise BackboneError(f"{self._name} gave values that are not finite: its weights are broken, give others")
        return np.ascontiguousarray(vectors)


def normalise(pixels: Pixels, preprocess: Preprocess, device: torch.device) -> torch.Tensor:
    """Return network input (n, 3, crop, crop), float32, equal to the bit to torchvision's own transform."""
    mean, std = (
        torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)
        for values in (preprocess.mean, preprocess.std)
    )
    images = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2)
    return images.to(torch.float32).div_(255).sub_(mean).div_(std)


def choose_device(name: str) -> torch.device:
    """Return the device called `name`; `auto` is a GPU where there is one. Raises `DeviceError`."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
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
    return device
