"""A dataset in the cache enters; its vectors leave as arrays, as a pandas table, or as a torch dataset."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featcache.api.asking import asks
from featcache.api.experiment import open_experiment
from featcache.api.options import Options
from featcache.errors import DatasetError, UsageError
from featcache.process import after_forks_too
from featcache.records import FloatArray, Progress, Source, feature_names

if TYPE_CHECKING:
    import pandas
    from torch.utils.data import TensorDataset


@dataclass(frozen=True, eq=False)
class LoadedFeatures:
    """The vectors of a dataset, one row a readable picture, in its order: unpacks to `X, y, paths, splits`.

    `X` (n, d) is float32, or float16 where they are kept so; a label in `y` (n), or a split in `splits` (n), that is
    not known is an empty string. `classes` are the labels of the whole dataset, sorted: a part of it has all of them.
    `notices` says what was left out.
    """

    X: FloatArray
    y: npt.NDArray[np.str_]
    paths: tuple[str, ...]
    splits: npt.NDArray[np.str_]
    backbone: str
    fingerprint: str
    classes: tuple[str, ...]
    notices: tuple[str, ...] = ()
    extracted: str = ""

    def __iter__(self) -> Iterator[Any]:
        """Yield `X`, `y`, `paths` and `splits`."""
        yield from (self.X, self.y, self.paths, self.splits)

    def part(self, split: str) -> LoadedFeatures:
        """Return the pictures of one split, in the same order; raises `DatasetError` where there are none."""
        rows = np.flatnonzero(self.splits == split)
        if not split or not len(rows):
            known = ", ".join(sorted({*self.splits.tolist()} - {""})) or "none (`featcache split` makes them)"
            raise DatasetError(f"no picture is in the split {split!r}; the splits are: {known}")
        paths = tuple(self.paths[row] for row in rows)
        return replace(self, X=self.X[rows], y=self.y[rows], paths=paths, splits=self.splits[rows])

    def to_pandas(self) -> pandas.DataFrame:
        """Return a table by path: one column a feature, named as in `resnet18_0`, then `label` and `split`.

        Raises `UsageError` where pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise UsageError("a DataFrame needs pandas: pip install 'featcache[pandas]'") from error
        index = pandas.Index(self.paths, dtype=object, name="path")  # pandas' own strings refuse names not in UTF-8
        table = pandas.DataFrame(self.X, index, feature_names(self.backbone, self.X.shape[1]))
        texts = {"label": self.y, "split": self.splits}
        return table.assign(**{name: pandas.Series(text, index, object) for name, text in texts.items()})

    def to_torch(self) -> TensorDataset:
        """Return `X` (n, d) as float32 and the numbers of the labels in `classes` (n) as int64.

        Raises `DatasetError` where a picture has no label, since no number stands for that.
        """
        import torch
        from torch.utils.data import TensorDataset

        missing = np.flatnonzero(self.y == "")
        if len(missing):
            raise DatasetError(
                f"{len(missing):,} of {len(self.y):,} pictures have no label, the first of them "
                f"{self.paths[missing[0]]}: take a `part` that has labels, or make tensors of X yourself"
            )
        codes = np.searchsorted(np.array(self.classes), self.y)
        return TensorDataset(torch.from_numpy(self.X.astype(np.float32)), torch.from_numpy(codes.astype(np.int64)))


@after_forks_too
@asks
def load_features(
    source: Source | None = None, options: Options | None = None, progress: Progress | None = None
) -> LoadedFeatures:
    """Return the vectors of the dataset last extracted, or of `source` after extracting what the cache lacks.

    They unpack as `X, y, paths, splits = load_features()`. A dataset that was imported, or whose folder is gone, is
    taken as it is in the cache. Raises `FeatcacheError`.
    """
    with open_experiment(source, options, progress) as experiment:
        found = experiment.features
        return LoadedFeatures(
            X=found.X,
            y=found.y,
            paths=found.paths,
            splits=found.splits,
            backbone=experiment.spec.backbone,
            fingerprint=found.fingerprint,
            classes=tuple(sorted({*found.y.tolist()} - {""})),
            notices=experiment.notices,
            extracted=experiment.extracted_at,
        )
