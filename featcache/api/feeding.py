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
from featcache.errors import DatasetError
from featcache.records import ORIGINAL, FeatureSpec, Item, Progress
from featcache.records.finetuning import Training
from featcache.splits import Rows

if TYPE_CHECKING:
    from featcache.tuning.blocks import Cut
    from featcache.tuning.inputs import Inputs

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
    """Makes the inputs of a training: activations from the cache, or pictures where those would not fit or pay."""

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
        if not self._cut.names and self._training.augment == "none":
            return Feed(self._vectors(train), self._vectors(val), self._vectors(scored), 0, 0, ())
        why = self._why_not(len(train), len(val) + len(scored), limit)
        if why is not None:
            _logger.warning("%s", why)
            learned = self._pictures(train, self._training.augment)
            return Feed(learned, self._pictures(val), self._pictures(scored), 0, 0, (why,))
        draws = [drawn_view(self._training.augment, self._seed, number) for number in range(self._n_draws)]
        made: list[Part] = []
        computed = size = 0
        kinds = [(draws, [train]), ([ORIGINAL], [val, scored])] if draws else [([ORIGINAL], [train, val, scored])]
        for views, groups in kinds:
            parts, new, taken = self._activations(views, groups, progress)
            made, computed, size = made + parts, computed + new, size + taken
        lost = len(train) + len(val) - len(made[0].rows) - len(made[1].rows)
        notices = [f"{lost:,} pictures cannot be read any more, or have changed, and are left out"] if lost else []
        if self._cut.entry == "the network" and self._training.unfreeze != "all":
            notices.append(f"{self._backbone.name} cannot be cut in two: every epoch runs its frozen blocks too")
        return Feed(made[0], made[1], made[2], size, computed, tuple(notices))

    @property
    def _n_draws(self) -> int:
        return 0 if self._training.augment == "none" else self._training.views

    def _why_not(self, n_train: int, n_others: int, limit: int) -> str | None:
        """Return why activations are not kept, or `None`, after saying what they will take."""
        cut = self._cut
        n_rows = n_train * max(1, self._n_draws) + n_others
        size = n_rows * math.prod(cut.shape) * np.dtype(self._spec(ORIGINAL).dtype).itemsize
        draws = f", {self._n_draws} draws of each to train on" if self._n_draws else ""
        said = f"{size / 1e6:,.1f} MB for {n_train + n_others:,} pictures{draws}"
        free = shutil.disk_usage(self._experiment.cache.folder).free
        if size > min(limit, free):
            told = (
                f"the limit is {limit / 1e6:,.1f} MB" if size > limit else f"{free / 1e6:,.1f} MB are free on the disk"
            )
            return (
                f"the partial cache would take {said}, and {told}: every epoch decodes, and runs what is frozen, again"
            )
        _logger.warning("the partial cache takes %s: what enters %s", said, cut.entry)
        return None

    def _spec(self, view: str) -> FeatureSpec:
        """Return the spec of what enters the first unfrozen block; below the top it is that of the vectors."""
        spec = replace(self._backbone.spec, view=view)
        if not self._cut.names:
            return spec
        shape = " x ".join(map(str, self._cut.shape))
        return replace(spec, layer=f"input of {self._cut.entry}", pooling=f"none, {shape}", dtype="float16")

    def _activations(
        self, views: Sequence[str], groups: Sequence[Rows], progress: Progress | None
    ) -> tuple[list[Part], int, int]:
        """Return inputs of groups of rows, each with all views, how many are new, and the bytes that they take."""
        from featcache.tuning.inputs import Activations

        backbones = [replace(self._backbone, spec=self._spec(view), build=lambda: self._cut.lower) for view in views]
        cache, features = self._experiment.cache, self._experiment.features
        rows = np.concatenate(list(groups))
        works = compute(cache, [Item(features.paths[row]) for row in rows], backbones, self._options, progress)
        is_sound = np.array([found.key == features.keys[row] for row, found in zip(rows, works[0].rows, strict=True)])
        stores = [cache.store(backbone.spec.fingerprint) for backbone in backbones]
        parts, at = [], 0
        for group in groups:
            kept = group[is_sound[at : at + len(group)]]
            at += len(group)
            if not len(kept):
                first = next(failure for failure in (*works[0].failures, None))
                why = f"{first.reason} ({first.path})" if first else "they have changed"
                raise DatasetError(f"the pictures of {self._experiment.root} cannot be used: {why}: extract it again")
            maps = [store.mapped([features.keys[row] for row in kept]) for store in stores]
            parts.append(Part(kept, Activations(maps, self._cut.shape)))
        taken = len(rows) * len(views) * math.prod(self._cut.shape) * np.dtype(backbones[0].spec.dtype).itemsize
        return parts, sum(work.computed for work in works), taken

    def _vectors(self, rows: Rows) -> Part:
        from featcache.tuning.inputs import Activations

        return Part(rows, Activations([self._experiment.features.X[rows]], self._cut.shape))

    def _pictures(self, rows: Rows, augment: str = "none") -> Part:
        from featcache.tuning.inputs import Pictures

        features, spec = self._experiment.features, self._backbone.spec
        paths, keys = ([values[row] for row in rows] for values in (features.paths, features.keys))
        return Part(rows, Pictures(paths, spec.preprocess, augment, self._seed, keys, spec.decoding is not None))
