"""Nothing enters; the `Backbone` record that every family of networks returns leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from featcache.records import FeatureSpec

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Backbone:
    """A frozen network that is known but not yet in memory.

    `build()` returns it in eval mode on the CPU: normalised float32 (n, 3, crop, crop) in, features (n, d) out.
    `weights` says in words which weights these are; it stands in every table beside the name.
    """

    spec: FeatureSpec
    weights: str
    build: Callable[[], nn.Module]

    @property
    def name(self) -> str:
        """The name the backbone is asked for by."""
        return self.spec.backbone

    def viewing(self, view: str) -> Self:
        """Return the same network, looking at another view of each picture."""
        return replace(self, spec=replace(self.spec, view=view))
