"""Nothing enters; the options that several commands share leave, and the cache they name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from featcache.backbones import AUTO, finetuned
from featcache.backbones.weights import sha256
from featcache.errors import RunNotFoundError, UsageError, WeightsError
from featcache.store import Cache, Runs
from featcache.values import check_given

CACHE_VARIABLE = "FEATCACHE_CACHE"
CATALOG_VARIABLE = "FEATCACHE_CATALOG"
LONGEST_NAME, LONGEST_PATH = 255, 4096


@dataclass(frozen=True)
class Options:
    """How and where to extract: backbone, weights file, cache folder, device, batch size, engine, precision, decoding.

    Without `cache` it is the folder in `FEATCACHE_CACHE`, else `./cache`; without `batch_size` the engine chooses. With
    `rehash` files that look unchanged (size, modification time, inode) are read again all the same. `precision` is one
    of `records.PRECISIONS`; `draft` decodes large JPEG files in fewer pixels. Both give other features, as does
    `reading`, the text of a `records.reading.Reading`. `columns` says what `path`, `label` and `split` are called in
    the dataset, `label_from` and `names_encoding` how names of files are read, see `discover`. `share` is a URL of
    fsspec where vectors are put too, and looked for. The engine `ray` extracts on the Ray cluster at `address` (`auto`:
    the one that runs on this computer); without one on that in `RAY_ADDRESS`, else it starts Ray here. Paths may be
    given as texts.
    """

    backbone: str = AUTO
    weights: Path | None = None
    cache: Path | None = None
    device: str = "auto"
    batch_size: int | None = None
    rehash: bool = False
    engine: str = "auto"
    precision: str = "fp32"
    draft: bool = False
    columns: Mapping[str, str] | None = None
    share: str | None = None
    address: str | None = None
    label_from: str | None = None
    names_encoding: str | None = None
    reading: str | None = None

    def __post_init__(self) -> None:
        """Take a path that was given as a text; raises `UsageError` for what is none, and values of other types."""
        for name in ("weights", "cache"):
            given = getattr(self, name)
            if isinstance(given, str | os.PathLike):
                if not os.fspath(given):
                    raise UsageError(f"the path of {name} is empty: name one, or leave it out")
                object.__setattr__(self, name, Path(given))
        check_given(self)
        if self.batch_size is not None and self.batch_size < 1:
            raise UsageError(f"a batch has {self.batch_size} pictures: give a number from 1 on")


READING = ("columns", "label_from", "names_encoding")
"""The options that say how a dataset is read, which its summary keeps for later commands."""


def reading(options: Options) -> dict[str, Any]:
    """Return the options of `discover`."""
    return {name: getattr(options, name) for name in READING}


def open_cache(options: Options, *, create: bool = True) -> Cache:
    """Open the cache that the options name, its catalog where `FEATCACHE_CATALOG` says; raises `CacheError`."""
    return Cache(*places(options), create=create, share=options.share)


def find_weights(options: Options) -> Options:
    """Return the options, for a network `runs:N` with the file that run N left.

    Raises `RunNotFoundError`, and `WeightsError` where the file is not the one that the run noted.
    """
    number = options.backbone.removeprefix(finetuned.PREFIX)
    if options.weights is not None or number == options.backbone:
        return options
    folder = places(options)[0].absolute()
    for run in Runs(folder / "runs").all():
        if str(run.id) == number and run.command == "finetune" and run.summary is not None:
            file = folder / "models" / Path(run.summary["model"]).name  # the cache may have been moved since
            if file.is_symlink():
                raise WeightsError(f"{file} is a link, and models in a cache are files: put the model in its place")
            if run.model_sha256 is not None and file.exists() and sha256(file) != run.model_sha256:
                raise WeightsError(f"{file} is not the file that run {run.id} made: put that back, or fine-tune again")
            return replace(options, weights=file)
    raise RunNotFoundError(
        f"run {number} of {folder} fine-tuned no network: `featcache runs` lists those that did, as finetune"
    )


def moved(cache: Cache, file: str | None) -> Path | None:
    """Return where a weights file lies that was noted before: what the cache made itself moves with it."""
    parts = list(map(os.fsencode, Path(file).parts)) if file else []
    if not file or "\0" in file or len(file) > LONGEST_PATH or max(map(len, parts), default=0) > LONGEST_NAME:
        return None  # somebody else's note, which names no file that could be
    inside = cache.folder / "models" / Path(file).name
    return inside if inside.exists() and not inside.is_symlink() and not os.path.exists(file) else Path(file)


def places(options: Options) -> tuple[Path, Path | None]:
    """Return the folder of the cache, and the catalog's file where it lies elsewhere."""
    catalog = os.environ.get(CATALOG_VARIABLE)
    return options.cache or Path(os.environ.get(CACHE_VARIABLE) or "cache"), Path(catalog) if catalog else None
