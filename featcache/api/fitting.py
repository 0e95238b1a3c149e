"""A dataset in the cache and the name of a head enter; a scored, saved classifier leaves."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.api.extraction import extract
from featcache.api.models import Model, save_model
from featcache.api.options import Options, open_cache, places
from featcache.api.usage import last_extraction, newest_uses
from featcache.errors import BackboneError, DatasetError
from featcache.heads import get
from featcache.load import load
from featcache.records import FeatureSpec, Progress
from featcache.records.experiments import FitSummary
from featcache.split import Plan, plan
from featcache.store import Row

if TYPE_CHECKING:
    from featcache.experiments import Fitted


def fit(
    source: str | Path | None = None,
    head: str = "logreg",
    seed: int = 0,
    options: Options | None = None,
    progress: Progress | None = None,
) -> FitSummary:
    """Train and score one head on the dataset last extracted, or on `source` after extracting what it lacks.

    A dataset that was imported, or whose folder is gone, is taken as it is in the cache. The parameters are
    chosen without the scored split. The model file is kept in the cache. Raises `FeatcacheError`.
    """
    options = options or Options()
    chosen = get(head)
    root = _as_it_is(source, options)
    if source is not None and root is None:
        extract(source, options, progress)
    elif options != Options(cache=options.cache):
        raise BackboneError(
            "backbone, weights, device and batch size say how to extract, but no dataset is named: "
            "add it (`featcache fit FOLDER ...`), or leave them out"
        )
    with open_cache(options, create=False) as cache:
        extraction = last_extraction(cache, root)
        root, fingerprint, extracted = extraction.root, extraction.fingerprint, extraction.summary or {}
        spec = cache.spec(fingerprint)
        rows = cache.catalog.dataset(root)
        if not rows:
            raise DatasetError(
                f"the pictures of {root} are not in the catalog {cache.catalog_path}: run `featcache extract {root}`, "
                "which computes only what the cache lacks, or `featcache cache verify --repair`"
            )
        features = load(rows, cache.store(fingerprint))
        split = plan(features, seed, cache.splits.kept(root, seed))
        cache.splits.keep(root, seed, split.made)
        run = cache.runs.start("fit", root, fingerprint)

        from featcache.experiments import fit_head

        fitted = fit_head(chosen, features, split, seed, progress)
        name = f"models/{run.id:06d}-{head}.joblib"
        notices = (*_left_out(rows), *split.notices, *fitted.notices)
        summary = _summary(head, root, spec, extracted["weights"], split, fitted, seed, cache.folder / name, notices)
        model = Model(fitted.estimator, fitted.classes, spec, extracted["weights_file"], asdict(summary))
        digest = save_model(cache, name, model)
        cache.runs.finish(run, asdict(summary), digest)
        return summary


def _summary(
    head: str,
    root: str,
    spec: FeatureSpec,
    weights: str,
    split: Plan,
    fitted: Fitted,
    seed: int,
    model: Path,
    notices: tuple[str, ...],
) -> FitSummary:
    score = fitted.score
    return FitSummary(
        head=head,
        backbone=spec.backbone,
        weights=weights,
        fingerprint=spec.fingerprint,
        dataset=root,
        split_sizes=split.sizes,
        n_classes=len(fitted.classes),
        chosen_by=fitted.chosen_by,
        fitted_on=fitted.fitted_on,
        n_train=fitted.n_train,
        n_test=score.n,
        scored_split=score.split,
        accuracy=score.accuracy,
        accuracy_low=score.accuracy_low,
        accuracy_high=score.accuracy_high,
        balanced_accuracy=score.balanced_accuracy,
        macro_f1=score.macro_f1,
        params=fitted.params,
        seed=seed,
        fit_seconds=round(fitted.seconds, 3),
        model=str(model),
        notices=notices,
    )


def _as_it_is(source: str | Path | None, options: Options) -> str | None:
    """Return the root of a dataset that can be used without its pictures, or `None` where they are to be looked at."""
    folder = places(options)[0]
    if source is None or not folder.exists() or options != Options(cache=options.cache):
        return None
    root = os.path.abspath(source)  # noqa: PTH100 - as datasets are named
    with open_cache(options, create=False) as cache:
        run = newest_uses(cache).get(root)
    return root if run and (run.command == "import" or not os.path.exists(root)) else None


def _left_out(rows: Sequence[Row]) -> list[str]:
    unreadable = sum(row.key is None for row in rows)
    if not unreadable:
        return []
    notices = [f"unreadable files left out: {unreadable:,} (`featcache extract` lists them)"]
    lost = {row.item.label for row in rows} - {row.item.label for row in rows if row.key is not None}
    return notices + [f"class {label!r} left out: it has no readable picture" for label in sorted(filter(None, lost))]
