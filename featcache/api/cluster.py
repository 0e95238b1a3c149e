"""Items and the views of a backbone enter; their vectors, which Ray's workers commit, and the account of it leave."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from featcache.api.connecting import Place, check_answers, connected, places_of
from featcache.api.options import Options
from featcache.api.pipeline import Missing, Ran, Standing, Work, compute, parts
from featcache.backbones import Backbone, on_demand
from featcache.embed import check_running, choose, exported, open_engine
from featcache.errors import CacheError, DatasetError, DeviceError, EngineError, FeatcacheError, PictureError
from featcache.process import keep_freed_memory
from featcache.records import Access, Dataset, FeatureSpec, FileStat, Item, Look, Progress, Seconds
from featcache.sources import ACCESS
from featcache.sources.addresses import GIVEN, scheme
from featcache.store import Cache, Row

NAME = "ray"

BLOCK = 256
"""The most pictures that a worker is given at once: what is lost with it is done again."""

BLOCKS = 4
"""How many blocks a worker gets at least, so that all are done at about the same time."""

TRIES = 3
"""How often a block is given to a worker again, and then to another one, that is lost with it."""

QUIET_SECONDS = 120
"""After so long without a first block it is said that the cluster may be full."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What every worker is told: the cache's folder, the features of each view, and how to run the network."""

    folder: Path
    specs: tuple[FeatureSpec, ...]
    weights: str
    options: Options


@dataclass(frozen=True)
class Done:
    """What a worker made of a block: what became of each path, what it saw of the files, and seconds of each view.

    `unseen` is how many files it could not read.
    """

    block: int
    node: str
    rows: tuple[Row, ...]
    files: dict[str, tuple[FileStat, bytes]]
    looks: dict[bytes, Look]
    unseen: int
    device: str
    seconds: tuple[Seconds, ...]


class Worker:
    """An actor: reads, decodes and embeds blocks on `cores` cores, and commits the vectors to the shared folder.

    Its catalog is its own and thrown away, since SQLite is not shared between computers; where vectors are shared by a
    URL, so is its whole cache.
    """

    def __init__(self, job: Job, cores: int) -> None:
        keep_freed_memory()
        os.environ["LOKY_MAX_CPU_COUNT"] = str(cores)  # what joblib.cpu_count goes by, and so every pool of threads
        self._job = job
        self._own = TemporaryDirectory(prefix="featcache-")
        self._opened: tuple[Cache, list[Backbone], Standing] | None = None

    def run(self, block: int, items: Sequence[Item]) -> Done:
        """Bring the vectors of a block into the cache; a `FeatcacheError` names this node."""
        try:
            self._opened = self._opened or self._open()
            return self._run(*self._opened, block, items)
        except FeatcacheError as error:
            raise type(error)(f"on {platform.node()}: {error}") from None

    def _open(self) -> tuple[Cache, list[Backbone], Standing]:
        """Open what stays open for all blocks; the driver has looked for broken segments."""
        own, options = Path(self._own.name), self._job.options
        folder = own / "cache" if options.share else self._job.folder
        cache = Cache(folder, own / "catalog.sqlite", create=bool(options.share), share=options.share)
        backbones = [on_demand(spec, self._job.weights, options.weights, cache.backbones) for spec in self._job.specs]
        engine = open_engine(backbones[0], options.device, options.engine, cache.networks, BLOCK)
        return cache, backbones, Standing(engine, tuple(cache.features(seen.spec) for seen in backbones))

    def _run(
        self, cache: Cache, backbones: list[Backbone], standing: Standing, block: int, items: Sequence[Item]
    ) -> Done:
        done = compute(cache, items, backbones, self._job.options, None, standing=standing)
        rows = done[-1].rows
        return Done(
            block,
            platform.node(),
            rows,
            cache.catalog.known_files(item.path for item in items),
            cache.catalog.looks({row.key for row in rows if row.key is not None}, backbones[0].spec.reading),
            sum(row.key is None and not _can_be_read(row.item.path, ACCESS) for row in rows),
            standing.engine.device,
            tuple(work.seconds for work in done),
        )


def check(options: Options) -> None:
    """Raise `EngineError` or `DeviceError` unless Ray is installed, is there, and can do what the options ask."""
    if find_spec("ray") is None:
        raise EngineError("Ray is not installed: pip install 'featcache[ray]'")
    if options.device not in ("auto", "cpu", "cuda"):
        raise DeviceError(f"Ray gives each worker its device, not {options.device!r}: use --device auto, cpu or cuda")
    check_running("cpu", "auto", options.precision)
    check_answers(options.address)


def compute_with_ray(
    cache: Cache, dataset: Dataset, backbones: Sequence[Backbone], options: Options, progress: Progress | None
) -> list[Work]:
    """Bring the vectors of a dataset into the cache as `compute` does, on all nodes of a Ray cluster.

    A worker that is lost has its block done again, by itself or by another. What workers committed stays, whatever
    happens. Raises `EngineError` where there is no cluster, or it cannot go on.
    """
    start = perf_counter()
    if any(scheme(item.path) == GIVEN for item in dataset.items):
        raise DatasetError("pictures given in Python are in this process only, and Ray's workers are not: use files")
    missing = Missing(cache, dataset.items, backbones, options, dataset.access)
    found: list[Done] = []
    ran = None
    if missing.pending:
        with connected(options.address):
            places = places_of(options)
            name, why = _engine(cache, backbones[0], places, missing.expected)
            weights = options.weights.absolute() if options.weights else None
            device = "cuda" if places[0].gpus else "cpu"
            inner = replace(options, weights=weights, cache=None, device=device, engine=name, address=None)
            job = Job(cache.folder, tuple(seen.spec for seen in backbones), backbones[0].weights, inner)
            blocks = _blocks(missing.pending, dataset.access or ACCESS, len(places))
            for done in _counted(_results(job, options, places, blocks), len(missing.pending), progress):
                is_new = done.node not in {other.node for other in found}
                _note(cache, missing, done, backbones if is_new else ())
                cache.catalog.remember_looks(done.looks, backbones[0].spec.reading)
                found.append(replace(done, rows=(), files={}, looks={}))
            ran = Ran(name, found[0].device, f"{why}; {len(places)} Ray worker{'s' if len(places) > 1 else ''}")
    keys = list({row.key for row in map(missing.account.row, dataset.items) if row.key is not None})
    # As listed before the work: whatever was lost, done again or done twice, each vector counts once.
    computed = [int((~store.contains(keys)).sum()) for store in missing.stores]
    _arrived(cache, backbones, keys)
    rows = missing.settle(dataset.items)
    return missing.works(rows, computed, ran, _seconds(found, computed, perf_counter() - start))


def _counted(results: Iterable[Done], total: int, progress: Progress | None) -> Iterator[Done]:
    """Yield the results, and tell how many pictures are done."""
    done = 0
    if progress:
        progress("extract", 0, total)
    for result in results:
        yield result
        done += len(result.rows)
        if progress:
            progress("extract", done, total)


def _note(cache: Cache, missing: Missing, done: Done, to_check: Sequence[Backbone]) -> None:
    """Note what a worker found; one that sees other folders than are here must not make pictures unreadable or lost."""
    first = done.rows[0]
    if done.unseen == len(done.rows) and _can_be_read(first.item.path, missing.access):
        raise DatasetError(
            f"on {done.node}: {first.item.path}: {first.reason}; here it can be read: the pictures must be at the same "
            "place on all nodes"
        )
    if to_check:
        _arrived(cache, to_check, [row.key for row in done.rows if row.key is not None])
    for row in done.rows:
        missing.account.note(row.item.path, row.key, row.reason)
    cache.catalog.remember_files((path, *known) for path, known in done.files.items())


def _arrived(cache: Cache, backbones: Sequence[Backbone], keys: Sequence[bytes]) -> None:
    """Fetch what is shared by a URL; raises `CacheError` where vectors are not here that workers committed."""
    for seen in backbones:
        cache.fetch(seen.spec)
        if not cache.features(seen.spec).contains(keys).all():
            raise CacheError(
                f"vectors that Ray's workers committed are not in {cache.folder}: all nodes must share this folder, or "
                "vectors by --share URL"
            )


def _can_be_read(path: str, access: Access) -> bool:
    try:
        access.read(path)
    except PictureError:
        return False
    return True


def _engine(cache: Cache, backbone: Backbone, places: Sequence[Place], expected: int) -> tuple[str, str]:
    """Return the engine that this many vectors would have on one machine, and why; an export is made here, once."""
    if places[0].gpus:
        return "torch", "the nodes have GPUs"
    name, why = choose(backbone, "cpu", "auto", cache.networks, expected)
    if name == "onnx" and backbone.spec.calibration is None:
        try:
            exported(backbone, cache.networks)
        except EngineError as error:
            _logger.warning("%s; the torch engine is used instead", error)
            return "torch", "ONNX Runtime cannot be used"
    return name, why


def _blocks(paths: Sequence[str], access: Access, workers: int) -> list[list[Item]]:
    """Cut the pictures into blocks, the largest files first.

    Copies have one size and so lie in one block, unless more files of a size than a block holds: two workers that meet
    copies at the same time would both compute them.
    """

    def size(path: str) -> int:
        try:
            stat = access.stat(path)
        except PictureError:
            return 0  # reading it will say what is wrong
        return stat.size if stat else 0

    most = max(1, min(BLOCK, -(-len(paths) // (BLOCKS * workers))))
    sizes = {path: size(path) for path in paths}
    blocks: list[list[Item]] = [[]]
    for _, group in groupby(sorted(paths, key=sizes.__getitem__, reverse=True), key=sizes.__getitem__):
        same = [Item(path) for path in group]
        if blocks[-1] and len(blocks[-1]) + len(same) > most:
            blocks.append([])
        blocks[-1] += same[:most]
        blocks += [same[at : at + most] for at in range(most, len(same), most)]
    return blocks


def _seconds(found: Sequence[Done], computed: Sequence[int], total: float) -> list[Seconds]:
    """Return the seconds of each view: those of all blocks added up, and its part of the time that passed here."""

    def summed(view: int, read: Callable[[Seconds], float]) -> float:
        return round(sum(read(done.seconds[view]) for done in found), 3)

    return [
        Seconds(
            read=summed(view, lambda took: took.read),
            decode=summed(view, lambda took: took.decode),
            forward=summed(view, lambda took: took.forward),
            write=summed(view, lambda took: took.write),
            total=round(total * part, 3),
        )
        for view, part in enumerate(parts(computed))
    ]


def _actor(job: Job, place: Place) -> Any:
    """Start a worker at a place; Ray starts it again there, and does what it was at again, if it is killed."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    options = {
        "num_cpus": place.cores,
        "num_gpus": place.gpus,
        "max_restarts": -1,
        "max_task_retries": TRIES,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(place.node, soft=False),
    }
    return ray.remote(Worker).options(**options).remote(job, place.cores)


def _results(job: Job, options: Options, places: Sequence[Place], blocks: Sequence[Sequence[Item]]) -> Iterator[Done]:
    """Yield the blocks as workers finish them; each worker has one at a time, and a new one when it is done."""
    import ray
    from ray.util import ActorPool

    left = dict(enumerate(blocks))
    quiet: float | None = QUIET_SECONDS
    for _ in range(TRIES):
        is_told = False  # each block that was lost is an error of its own
        pool = ActorPool([_actor(job, place) for place in places])
        for number, block in left.items():
            pool.submit(lambda worker, given: worker.run.remote(*given), (number, block))
        while pool.has_next():
            try:
                done: Done = pool.get_next_unordered(timeout=quiet)
            except TimeoutError:
                _logger.warning("no Ray worker has finished anything yet: `ray status` tells if others use the cores")
                quiet = None
            except ray.exceptions.RayTaskError as error:  # what our own code raised there
                raise _told(error.cause) from None
            except ray.exceptions.RayError as error:
                if not is_told:
                    _logger.warning("a Ray worker was lost, and others go on: %s", str(error).splitlines()[0])
                is_told = True
            else:
                quiet = None
                del left[done.block]
                yield done
        if not left:
            return
        places = places_of(options)  # those that are still there
    raise EngineError(
        f"{len(left):,} of {len(blocks):,} parts came to nothing in {TRIES} tries, because Ray's workers were lost "
        f"each time: see `ray status`, and the logs of the nodes; one begins with {next(iter(left.values()))[0].path}"
    )


def _told(cause: BaseException) -> FeatcacheError:
    """Return our own failure as it is, and of any other what it says in one line."""
    if isinstance(cause, FeatcacheError):
        return cause
    said = " ".join(str(cause).split())[:300]
    return EngineError(f"a Ray worker failed ({type(cause).__name__}: {said}): is the same featcache on all nodes?")
