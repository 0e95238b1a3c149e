"""Nothing enters; the `Backbone` record that every family of networks returns leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from featcache.records import FeatureSpec

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Backbone:
    """A frozen network that is known but not yet in memory.

    `build()` returns it in eval mode on the CPU: normalised float32 (n, 3, crop, crop) in, features (n, d) out.
    `weights` says in words which weights these are; it stands in every table beside the name. `file` holds them.
    """

    spec: FeatureSpec
    weights: str
    build: Callable[[], nn.Module]
    file: Path | None = None

    @property
    def name(self) -> str:
        """The name the backbone is asked for by."""
        return self.spec.backbone

    def making(self, spec: FeatureSpec) -> Self:
        """Return the same network, with the view, precision and decoding of other features."""
        made = replace(self.spec, view=spec.view, precision=spec.precision)
        return replace(
            self, spec=replace(made, decoding=spec.decoding, calibration=spec.calibration, reading=spec.reading)
        )

    def viewing(self, view: str) -> Self:
        """Return the same network, looking at another view of each picture."""
        return replace(self, spec=replace(self.spec, view=view))
