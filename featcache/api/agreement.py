"""A cache enters; where its catalog and its runs contradict each other, as in a copy that was broken off, leaves."""

from __future__ import annotations

from collections.abc import Iterable

from featcache.errors import DatasetError
from featcache.store import EXTRACTIONS, Cache, Run
from featcache.store.files import denied


def is_behind(cache: Cache, root: str, runs: Iterable[Run]) -> bool:
    """Tell whether the catalog is older than a finished extraction of the dataset at `root`, as a restored one is."""
    saved = cache.catalog.commits(root)
    known = cache.catalog.roots().get(root, 0)
    return any(run.id > known and run.id not in saved for run in runs if run.root == root and run.summary)


def lost(cache: Cache) -> dict[tuple[str, int], str]:
    """Return what to say of each run that saved a dataset, by its root and number, and is not in the cache any more.

    Where the dataset was extracted since with all networks of which there are vectors, it does not matter.
    """
    runs = {run.id: run for run in cache.runs.all() if run.command in EXTRACTIONS}
    there = set(cache.fingerprints())
    closed = {number: said for path, number in cache.runs.broken().items() if (said := denied(path)) is not None}
    found = {}
    for root, number in cache.catalog.all_commits():
        if not number or (number in runs and runs[number].root == root):
            continue
        since = {run.fingerprint for run in runs.values() if run.root == root and run.summary and run.id > number}
        if not there <= since:
            why = (
                f"run {number} of {root} is lost from {cache.folder / 'runs'}, so that nobody knows which vectors it "
                "used: put its file back, or extract the dataset again with all networks that are wanted and then run "
                "`featcache cache verify --repair`"
            )
            if number in closed:
                why = f"{closed[number]}; until then nobody knows which vectors run {number} of {root} used"
            found[root, number] = why
    return found


def is_of_another(cache: Cache, root: str) -> bool:
    """Tell whether the catalog holds other pictures of a dataset than the run noted that is said to have saved them."""
    saved = cache.catalog.saved_digest(root)
    noted = {run.id: run.rows_sha256 for run in cache.runs.all() if run.root == root}
    return saved is not None and noted.get(saved[0]) not in (None, saved[1])


def check_holds(cache: Cache, run: Run) -> None:
    """Raise `DatasetError` where the catalog holds other pictures than an extraction saved, as after another one."""
    saved = cache.catalog.saved_digest(run.root)
    if run.rows_sha256 is not None and saved is not None and saved[1] != run.rows_sha256:
        raise DatasetError(
            f"the catalog {cache.catalog_path} holds other pictures, labels or splits of {run.root} than its last "
            "finished extraction saved, as after another one that was stopped, or put back from a copy: extract it as "
            "it is meant"
        )


def of_another(cache: Cache, root: str) -> str:
    """Return what to say of a dataset of which the catalog holds other pictures than its last run saved."""
    return (
        f"the catalog {cache.catalog_path} does not hold what the last extraction of {root} saved, as that of another "
        f"cache would: run `featcache extract {root}`, or `featcache cache verify --repair`"
    )
