"""A dataset in the cache enters; its features, plans and the account of them that every experiment prints, leave."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from featcache.api.agreement import check_holds
from featcache.api.asking import used_as_it_is
from featcache.api.extraction import extract_in_hand
from featcache.api.models import versions
from featcache.api.options import READING, Options, moved, open_cache, places
from featcache.api.usage import (
    extracted_at,
    last_extraction,
    network_of,
    newest_uses,
    not_catalogued,
    rows_of,
    views_of,
)
from featcache.errors import BackboneError, DatasetError, FeatcacheError, HeadError, MissingFeaturesError
from featcache.load import enrol, load
from featcache.records import Access, Features, FeatureSpec, FloatArray, Progress, Roll, Source
from featcache.records.experiments import Setting
from featcache.sources import ACCESS, CLOSED
from featcache.sources.addresses import named
from featcache.splits import MADE, Plan, Rows, check_seed, digest, plan, unseen
from featcache.store import Cache, Row, Run
from featcache.store.stored import StoredRows

_logger = logging.getLogger(__name__)

_NO_FEATURES = ("auto", None, "fp32", False, None)
"""The backbone, weights, precision, draft and reading of options that leave it to featcache which features to use."""


@dataclass(frozen=True)
class Known:
    """A dataset as last extracted: who is in it, what made its features, and what is to be said of it."""

    cache: Cache
    root: str
    spec: FeatureSpec
    extracted: Mapping[str, Any]
    extracted_at: str
    notices: tuple[str, ...]
    roll: Roll
    access: Access
    """How its pictures are read: not at all where they are only names in a file that was imported."""

    def plan(self, seed: int, strict: bool = True) -> Plan:
        """Return who is trained on, chosen on and scored; a split that is made here is kept."""
        if not any(self.roll.labels) and self.notices:
            raise DatasetError(f"the pictures of {self.root} have no labels: {'; '.join(self.notices)}")
        made = plan(self.roll, seed, self.cache.splits.kept(self.root, seed), strict)
        self.cache.splits.keep(self.root, seed, made.made)
        return made

    def read(self, rows: Rows) -> FloatArray:
        """Return the vectors (m, d) of rows (m)."""
        raise NotImplementedError

    def leak(self, plan: Plan) -> tuple[str, ...]:
        """Return what is to be said of scored pictures with near twins, no copies, among those that are fitted on."""
        from featcache.audits.leaks import leaks

        others = unseen(self.roll, plan)
        if not len(others):
            return ()
        found = leaks(self.read, plan.fitted, others)
        if not len(found.scored):
            return ()
        one, other = (self.roll.path(int(rows[0])) for rows in (found.scored, found.fitted))
        return (
            f"{len(found.scored):,} of {found.looked_at:,} scored pictures have near twins among those trained on, as "
            f"{one} and {other}: the score flatters; `featcache audit` shows them",
        )

    @contextmanager
    def run(self, command: str) -> Iterator[Run]:
        """Note that a command began; one that ends in a failure said to the user is taken back."""
        run = self.cache.runs.start(command, self.root, self.spec.fingerprint)
        try:
            yield run
        except FeatcacheError:
            self.cache.runs.drop(run)
            raise


@dataclass(frozen=True)
class Streamed(Known):
    """A dataset whose vectors stay on the disk."""

    vectors: StoredRows

    def read(self, rows: Rows) -> FloatArray:
        """Return the vectors (m, d) of rows (m), read from the disk."""
        return self.vectors.read(rows)


@dataclass(frozen=True)
class Experiment(Known):
    """A dataset with its features in memory."""

    features: Features
    unreadable: Sequence[Row]
    """Its pictures that have no vector."""

    @property
    def views(self) -> tuple[str, ...]:
        """The names of the further views that were loaded."""
        return tuple(self.features.views)

    def read(self, rows: Rows) -> FloatArray:
        """Return the vectors (m, d) of rows (m)."""
        return self.features.X[rows]

    def notes(self, plans: Mapping[int, Plan]) -> list[str]:
        """Return what is to be said of the dataset and of the plans of several seeds."""
        first, *others = plans
        said = list(plans[first].notices)
        if others and plans[first].made:
            own = "no test split in the dataset: each seed has a stratified 80/20 split of its own, kept in the cache"
            said = [own, *(notice for notice in said if notice != MADE.format(first))]
        return [*self.notices, *said, *self.leak(plans[first])]

    def setting(self, plans: Sequence[Plan], seeds: Sequence[int], train_views: bool, test_views: bool) -> Setting:
        """Return what the rows of a table share; sizes are those of the first seed."""
        first = plans[0]
        return Setting(
            dataset=self.root,
            backbone=self.spec.backbone,
            weights=str(self.extracted["weights"]),
            fingerprint=self.spec.fingerprint,
            split_sizes=first.sizes,
            split_digest=digest(self.features, plans),
            n_classes=len(set(self.features.y[first.fitted].tolist())),
            fitted_on="train" if first.val is None else "train+val",
            n_train=len(first.fitted),
            scored_split=first.scored_name,
            n_test=len(first.scored),
            seeds=tuple(seeds),
            train_views=self.views if train_views else (),
            test_views=self.views if test_views else (),
            versions=versions(),
            extracted=self.extracted_at,
            unscored=first.unscored,
        )


@contextmanager
def open_experiment(
    source: Source,
    options: Options | None,
    progress: Progress | None,
    views: bool = False,
    as_it_is: bool = False,
) -> Iterator[Experiment]:
    """Open the dataset last extracted, or `source` after extracting what it lacks, with its `views` if asked for.

    A dataset that was imported, or whose folder is gone, is taken as it is in the cache, with `as_it_is` every one that
    is known. Raises `FeatcacheError`.
    """
    with _opened(source, options, progress, as_it_is) as (cache, extraction, in_hand):
        rows = in_hand.pop() if in_hand else rows_of(cache, extraction)
        features = load(rows, cache.store(extraction.fingerprint))
        if views:
            features = replace(features, views=_views(cache, extraction.root, views_of(cache, extraction), rows))
        unreadable = [row for row in rows if row.key is None]
        lost = Counter(row.item.label for row in unreadable)
        yield Experiment(*_known(cache, extraction, features.roll, lost), features, unreadable)


@contextmanager
def open_streamed(source: Source | None, options: Options | None, progress: Progress | None) -> Iterator[Streamed]:
    """Open a dataset as `open_experiment` does, with its vectors left on the disk; raises `FeatcacheError`."""
    with _opened(source, options, progress, False) as (cache, extraction, in_hand):
        root, catalog = extraction.root, cache.catalog
        if in_hand:
            roll, unreadable = _enrolled(in_hand.pop(), partial(catalog.path, root))
        else:
            catalog.check_dataset(root)
            roll, unreadable = enrol(catalog.labels(root), partial(catalog.path, root)), catalog.unreadable(root)
            check_holds(cache, extraction)
        if not len(roll.y) and not unreadable:
            raise not_catalogued(cache, root)
        vectors = cache.store(extraction.fingerprint).stored(roll.keys)
        yield Streamed(*_known(cache, extraction, roll, unreadable), vectors)


@contextmanager
def _opened(
    source: Source | None, options: Options | None, progress: Progress | None, as_it_is: bool
) -> Iterator[tuple[Cache, Run, list[Sequence[Row]]]]:
    """Open the cache, and find the extraction of the dataset; with its pictures, to take, if it was made just now."""
    options = options or Options()
    root = used_as_it_is(source, options, as_it_is)
    made, in_hand = None, []
    if source is not None and root is None:
        done = extract_in_hand(source, _as_before(source, options), progress)
        made, in_hand = done.run, [done.rows]
        del done  # of a million pictures the list is not kept beside what is made of it
    elif options != Options(cache=options.cache):
        raise BackboneError(
            "options that say how to extract, as --backbone and --weights, need a dataset: name it as SOURCE, or leave "
            "them out to use the one last extracted as it is"
        )
    with open_cache(options, create=False) as cache:
        run = made or last_extraction(cache, root)
        if made and cache.runs.is_given_up(run):
            raise DatasetError(f"{run.root} was given up by another command meanwhile: run the same command again")
        if run.command == "import":
            _warn_of_change(run)
        yield cache, run, in_hand


def _enrolled(rows: Sequence[Row], path: Callable[[int], str]) -> tuple[Roll, Counter[str | None]]:
    """Return the roll of the readable pictures, and how many of each label are unreadable."""
    entries = ((row.item.label, row.item.split, row.key) for row in rows if row.key is not None)
    return enrol(entries, path), Counter(row.item.label for row in rows if row.key is None)


def _warn_of_change(imported: Run) -> None:
    """Say it where a file has changed since it was imported: what was in it then is what there is."""
    with suppress(OSError):
        if Path(imported.root).stat().st_mtime > imported.started:
            _logger.warning(
                "%s has changed since it was imported, and what it held then is used: `featcache cache import` brings "
                "in what it holds now",
                imported.root,
            )


def _known(
    cache: Cache, extraction: Run, roll: Roll, unreadable: Counter[str | None]
) -> tuple[Cache, str, FeatureSpec, Mapping[str, Any], str, tuple[str, ...], Roll, Access]:
    root, spec = extraction.root, cache.spec(extraction.fingerprint)
    said = extraction.summary or {}
    notices = (*(said.get("notices", ()) if extraction.command == "extract" else ()), *_left_out(unreadable, roll))
    access = CLOSED if extraction.command == "import" else ACCESS
    return cache, root, spec, said, extracted_at(extraction), notices, roll, access


def seed_range(seed: int, n_seeds: int) -> range:
    """Return the seeds from `seed` on; raises `HeadError` where they leave what numpy and scikit-learn take."""
    check_seed(seed)
    if n_seeds < 1:
        raise HeadError(f"the number of seeds is {n_seeds}: give a whole number from 1 on")
    if seed + n_seeds > 2**32:
        raise HeadError(f"seeds go from 0 to {2**32 - 1:,}: {n_seeds:,} from {seed:,} on are not among them")
    return range(seed, seed + n_seeds)


def _views(cache: Cache, root: str, known: Mapping[str, str], rows: Sequence[Row]) -> dict[str, Any]:
    if not known:
        raise DatasetError(
            f"no view of {root} is in the cache: run `featcache extract {root} --views flip,crops5`, "
            "with the --backbone and --weights that it was extracted with"
        )
    found = {}
    for view, fingerprint in known.items():
        try:
            found[view] = load(rows, cache.store(fingerprint)).X
        except MissingFeaturesError as error:
            raise MissingFeaturesError(
                f"the view {view} of some pictures is not in the cache: run `featcache extract {root}` with --views"
            ) from error
    return found


def _as_before(source: Source, options: Options) -> Options:
    """Return the options, where they name no columns or no features with those of the dataset's last extraction.

    What is taken from there is said in the log.
    """
    if not isinstance(source, str | os.PathLike) or not places(options)[0].exists():
        return options
    with open_cache(options, create=False) as cache:
        run = newest_uses(cache).get(named(source))
        if run is None or run.command == "import":
            return options
        known, spec = run.summary or {}, cache.spec(run.fingerprint)
        weights, network = moved(cache, known.get("weights_file")), network_of(cache, run)
    said = []
    for name in READING:
        before = known.get(name)
        if before and not getattr(options, name):
            options = replace(options, **{name: before})
            is_map = isinstance(before, Mapping)
            text = ",".join(f"{each}={theirs}" for each, theirs in before.items()) if is_map else before
            said.append(f"{name.replace('_', '-')} {text}")
    if (options.backbone, options.weights, options.precision, options.draft, options.reading) == _NO_FEATURES:
        is_drafted = spec.decoding is not None
        options = replace(
            options,
            backbone=spec.backbone,
            weights=weights,
            precision=spec.precision,
            draft=is_drafted,
            reading=spec.reading,
        )
        said.append(network)
    if said:
        kept = ", ".join(said)
        _logger.warning("%s as it was extracted before: %s; options that name others change that", run.root, kept)
    return options


def _left_out(unreadable: Counter[str | None], roll: Roll) -> list[str]:
    if not unreadable:
        return []
    notices = [f"unreadable files left out: {unreadable.total():,} (`featcache extract` lists them)"]
    lost = sorted(filter(None, unreadable.keys() - set(roll.labels)))
    return notices + [f"class {label!r} left out: it has no readable picture" for label in lost]
