"""A network cut in two and the rows of a dataset enter; the inputs of its upper part, cached where it pays, leave."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from featcache.api.experiment import Experiment
from featcache.api.options import Options
from featcache.api.pipeline import compute
from featcache.augment import drawn_view
from featcache.backbones import Backbone
from featcache.errors import DatasetError, TooLargeValuesError, TrainingError
from featcache.records import ORIGINAL, Item, Progress
from featcache.records.finetuning import Training
from featcache.splits import Rows
from featcache.store import FeatureStore

if TYPE_CHECKING:
    from featcache.tuning.blocks import Cut
    from featcache.tuning.inputs import Inputs

SHOWN = 10
"""How many lost pictures are named."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """Rows of the features whose pictures can be read, and their inputs in the same order."""

    rows: Rows
    inputs: Inputs


@dataclass(frozen=True)
class Feed:
    """What is trained on, chosen on and scored; `cached_bytes` of it is kept, of which `computed` rows are new."""

    train: Part
    val: Part
    scored: Part
    cached_bytes: int
    computed: int
    notices: tuple[str, ...]


class Feeder:
    """Makes the inputs of a training: activations from the cache, or pictures where those would take too much room."""

    def __init__(
        self, experiment: Experiment, backbone: Backbone, cut: Cut, training: Training, seed: int, options: Options
    ) -> None:
        self._experiment = experiment
        self._backbone = backbone
        self._cut = cut
        self._training = training
        self._seed = seed
        # The lower part is no network of its own that would be worth an export.
        self._options = replace(options, engine="torch", precision="fp32", batch_size=None)

    def feed(self, train: Rows, val: Rows, scored: Rows, limit: int, progress: Progress | None) -> Feed:
        """Return the inputs; the partial cache may take `limit` bytes. Raises `DatasetError`."""
        is_augmented = self._training.augment != "none"
        if not self._cut.names and not is_augmented:
            return Feed(self._vectors(train), self._vectors(val), self._vectors(scored), 0, 0, ())
        views = [ORIGINAL]
        if is_augmented:
            views = [drawn_view(self._training.augment, self._seed, number) for number in range(self._training.views)]
        groups = [(views, train), ([ORIGINAL], np.concatenate([val, scored]))]
        if not is_augmented:
            groups = [(views, np.concatenate([train, val, scored]))]
        kept = [_Kept(self._experiment, self._lower(views), self._cut.shape, rows) for views, rows in groups]
        why = self._no_room(kept, limit)
        if why is not None:
            _logger.warning("%s", why)
            pictures = self._pictures(train, self._training.augment)
            return Feed(pictures, self._pictures(val), self._pictures(scored), 0, 0, (why,))
        computed = sum(group.compute(self._options, progress) for group in kept)
        parts = kept[0].part(train), kept[-1].part(val), kept[-1].part(scored)
        notices = [
            f"left out of training or validation, since {reason}: {path}"
            for group in kept
            for path, reason in group.lost.items()
        ][:SHOWN]
        if self._cut.entry == "the network" and self._training.unfreeze != "all":
            notices.append(f"{self._backbone.name} cannot be cut in two: every epoch runs its frozen blocks too")
        return Feed(*parts, sum(group.size for group in kept), computed, tuple(notices))

    def _no_room(self, kept: Sequence[_Kept], limit: int) -> str | None:
        """Say what the activations will take, or return why they are not kept."""
        size, new = sum(group.size for group in kept), sum(group.new for group in kept)
        draws = f", {self._training.views} draws of each to train on" if self._training.augment != "none" else ""
        said = f"{size / 1e6:,.1f} MB, {new / 1e6:,.1f} of it new: what enters {self._cut.entry}{draws}"
        free = shutil.disk_usage(self._experiment.cache.folder).free
        if size <= limit and new <= free:
            _logger.warning("the partial cache takes %s", said)
            return None
        limits = {"the limit is": limit, "free on the disk are": free}
        told = " and ".join(f"{name} {room / 1e6:,.1f}" for name, room in limits.items())
        return f"the partial cache would take {said}; {told}: instead, every epoch decodes and runs what is frozen"

    def _lower(self, views: Sequence[str]) -> list[Backbone]:
        """Return the lower part as a backbone for each view; below the top its values are the network's own vectors."""
        spec = self._backbone.spec
        if self._cut.names:
            shape = " x ".join(map(str, self._cut.shape))
            spec = replace(spec, layer=f"input of {self._cut.entry}", pooling=f"none, {shape}", dtype="float16")
        lower = replace(self._backbone, spec=spec, build=lambda: self._cut.lower)
        return [lower.viewing(view) for view in views]

    def _vectors(self, rows: Rows) -> Part:
        from featcache.tuning.inputs import Activations

        return Part(rows, Activations([self._experiment.features.X[rows]], self._cut.shape))

    def _pictures(self, rows: Rows, augment: str = "none") -> Part:
        from featcache.tuning.inputs import Pictures

        features, spec = self._experiment.features, self._backbone.spec
        paths, keys = ([values[row] for row in rows] for values in (features.paths, features.keys))
        return Part(
            rows, Pictures(paths, spec.preprocess, augment, self._seed, keys, spec.decoding is not None, spec.reading)
        )


class _Kept:
    """What a network gives of rows of the dataset, under each of its views, as it is in the cache or will be.

    `size` is the bytes of all of it, `new` of what the cache lacks.
    """

    def __init__(
        self, experiment: Experiment, backbones: Sequence[Backbone], shape: tuple[int, ...], rows: Rows
    ) -> None:
        self._cache, self._features, self._root = experiment.cache, experiment.features, experiment.root
        self._backbones = backbones
        self._shape = shape
        self._rows = rows
        self._sound: set[int] = set()
        self.lost: dict[str, str] = {}
        each = math.prod(shape) * np.dtype(backbones[0].spec.dtype).itemsize
        keys = self._keys(rows)
        held = sum(int(self._store(backbone).contains(keys).sum()) for backbone in backbones)
        self.size = len(rows) * len(backbones) * each
        self.new = self.size - held * each

    def compute(self, options: Options, progress: Progress | None) -> int:
        """Compute what the cache lacks, and return how many rows are new; raises `DatasetError` where all is lost."""
        items = [Item(self._features.paths[row]) for row in self._rows]
        try:
            works = compute(self._cache, items, self._backbones, options, progress)
        except TooLargeValuesError as error:
            raise TrainingError(
                f"what enters the trained part cannot be kept, {error}: use --partial-cache-limit 0, with which every "
                "epoch runs the frozen blocks"
            ) from error
        for row, found in zip(self._rows, works[0].rows, strict=True):
            if found.key == self._features.keys[row]:
                self._sound.add(int(row))
            else:
                self.lost[found.item.path] = found.reason or "it has changed"
        if not self._sound:
            path, reason = next(iter(self.lost.items()))
            raise DatasetError(
                f"no picture of {self._root} can be used: {reason} ({path}): put them back, or train the top alone "
                "with --unfreeze head"
            )
        return sum(work.computed for work in works)

    def part(self, rows: Rows) -> Part:
        """Return some of the rows, those that can be used, and their inputs."""
        from featcache.tuning.inputs import Activations

        sound = np.array([row for row in rows if int(row) in self._sound], dtype=np.intp)
        if not len(sound):
            raise DatasetError(f"of one of the splits of {self._root} no picture can be used: extract it again")
        maps = [self._store(backbone).stored(self._keys(sound)) for backbone in self._backbones]
        return Part(sound, Activations(maps, self._shape))

    def _keys(self, rows: Rows) -> list[bytes]:
        return [self._features.keys[row] for row in rows]

    def _store(self, backbone: Backbone) -> FeatureStore:
        return self._cache.store(backbone.spec.fingerprint)
