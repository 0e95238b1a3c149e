"""A dataset and a backbone enter; vectors in the cache and an account of the work leave."""

from __future__ import annotations

import csv
import io
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featcache.api.options import Options, open_cache
from featcache.backbones import Backbone, resolve
from featcache.decode import Pixels, decode, file_stat, read
from featcache.discover import discover
from featcache.embed import check_device, open_engine
from featcache.errors import DatasetError, PictureError
from featcache.records import Dataset, ExtractSummary, Failure, FileStat, Item, Progress, Seconds
from featcache.store import COMPACT_AT, Cache, FeatureStore, FeatureWriter, Row

if TYPE_CHECKING:
    from featcache.embed.torch_engine import TorchEngine

TRUSTED_AGE_NS = 2 * 10**9
"""A file modified less than this before it was read is read again next time: its stat may not tell a later change."""

_logger = logging.getLogger(__name__)


def extract(source: str | Path, options: Options | None = None, progress: Progress | None = None) -> ExtractSummary:
    """Run every picture of `source` whose vector is not in the cache through the backbone, once.

    `source` is a folder, a CSV manifest or a picture, see `discover`. `progress` is called for every picture that has
    to be read. Whatever was computed stays, also on Ctrl-C. Raises `FeatcacheError`.
    """
    options = options or Options()
    dataset = discover(source)
    check_device(options.device)
    backbone = resolve(options.backbone, options.weights)
    with open_cache(options) as cache:
        return extract_into(cache, dataset, backbone, options, progress)


def extract_into(
    cache: Cache, dataset: Dataset, backbone: Backbone, options: Options, progress: Progress | None
) -> ExtractSummary:
    """Extract a dataset, and keep it in the catalog as the one last extracted."""
    for notice in dataset.notices:
        _logger.warning("%s", notice)
    fingerprint = backbone.spec.fingerprint
    run = cache.catalog.start_run("extract", dataset.root, fingerprint)
    work = compute(cache, dataset.items, backbone, options, progress)
    failures = work.failures
    listing = str(cache.put(f"runs/{run:06d}-unreadable.csv", _failures_csv(failures))) if failures else None
    if len(failures) == len(dataset.items):
        raise DatasetError(
            f"none of the {len(failures):,} files in {dataset.root} is a readable picture "
            f"({failures[0].path}: {failures[0].reason}); all reasons are in {listing}"
        )
    cache.catalog.save_dataset(dataset.root, work.rows)
    summary = ExtractSummary(
        dataset=dataset.root,
        cache=str(cache.folder),
        backbone=backbone.name,
        weights=backbone.weights,
        weights_file=str(options.weights.absolute()) if options.weights else None,
        fingerprint=fingerprint,
        dim=work.dim,
        device=work.device,
        found=len(work.rows),
        reused=work.distinct - work.computed,
        computed=work.computed,
        duplicates=len(work.rows) - len(failures) - work.distinct,
        unreadable=len(failures),
        unreadable_file=listing,
        seconds=work.seconds,
        failures=failures,
        notices=dataset.notices,
    )
    cache.catalog.finish_run(run, asdict(replace(summary, failures=())))
    return summary


@dataclass(frozen=True)
class Work:
    """What `compute` did: one row an item, in order, and where the time went."""

    rows: tuple[Row, ...]
    distinct: int
    computed: int
    dim: int
    device: str | None
    seconds: Seconds

    @property
    def failures(self) -> tuple[Failure, ...]:
        """The items that have no vector, with the reason."""
        return tuple(Failure(row.item.path, row.reason) for row in self.rows if row.reason is not None)


def compute(
    cache: Cache, items: Sequence[Item], backbone: Backbone, options: Options, progress: Progress | None
) -> Work:
    """Bring the vectors of `items` into the cache, computing only those it lacks."""
    start = time.perf_counter()
    store = cache.features(backbone.spec)
    store.verify()
    keys = _unchanged(cache, items)
    known = list(keys.values())
    held = dict(zip(known, store.contains(known), strict=True))
    keys = {path: key for path, key in keys.items() if held[key]}
    pending = [path for path in dict.fromkeys(item.path for item in items) if path not in keys]
    reader = _Reader(store, backbone)
    embedder = _Embedder(backbone, options)
    reasons: dict[str, str] = {}
    failed: dict[bytes, str] = {}
    with (
        FeatureWriter(store, backbone.spec.dtype) as writer,
        _remembering(cache, writer) as remember,
        closing(reader.read_all(pending)) as pictures,
    ):
        for done, picture in enumerate(pictures, 1):
            if picture.key is None:
                reasons[picture.path] = picture.reason or ""
            else:
                keys[picture.path] = picture.key
                remember(picture)
            if picture.key is not None and picture.reason is not None:
                failed[picture.key] = picture.reason
            if picture.pixels is not None:
                embedder.add(picture, writer)
            if progress:
                progress("extract", done, len(pending))
        embedder.finish(writer)
    store.refresh()
    if len(store.segments) >= COMPACT_AT:
        store.compact()
    rows = tuple(_row(item, keys.get(item.path), reasons, failed) for item in items)
    return Work(
        rows=rows,
        distinct=len({row.key for row in rows if row.key is not None}),
        computed=writer.committed,
        dim=store.dim or 0,
        device=embedder.device,
        seconds=Seconds(
            read=round(reader.read_seconds, 3),
            decode=round(reader.decode_seconds, 3),
            forward=round(embedder.seconds, 3),
            write=round(writer.seconds, 3),
            total=round(time.perf_counter() - start, 3),
        ),
    )


@dataclass(frozen=True)
class _Picture:
    """One file as read: without a key it could not be read, with key and reason not decoded."""

    path: str
    key: bytes | None = None
    stat: FileStat | None = None
    pixels: Pixels | None = None
    reason: str | None = None
    seconds: tuple[float, float] = (0.0, 0.0)


class _Reader:
    """Reads, hashes and decodes files on all cores, a bounded window ahead of the network.

    Of several files with one content only the first is decoded.
    """

    WINDOW = 128

    def __init__(self, store: FeatureStore, backbone: Backbone) -> None:
        self.read_seconds = 0.0
        self.decode_seconds = 0.0
        self._store = store
        self._preprocess = backbone.spec.preprocess
        self._claimed: set[bytes] = set()
        self._lock = threading.Lock()

    def read_all(self, paths: Sequence[str]) -> Generator[_Picture]:
        """Yield the pictures in order."""
        executor = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="featcache-decode")
        waiting: deque[Future[_Picture]] = deque()
        try:
            for path in paths:
                waiting.append(executor.submit(self._load, path))
                if len(waiting) >= self.WINDOW:
                    yield self._account(waiting.popleft().result())
            while waiting:
                yield self._account(waiting.popleft().result())
        finally:
            executor.shutdown(cancel_futures=True)

    def _account(self, picture: _Picture) -> _Picture:
        self.read_seconds += picture.seconds[0]
        self.decode_seconds += picture.seconds[1]
        return picture

    def _load(self, path: str) -> _Picture:
        start = time.perf_counter()
        try:
            data, key, stat = read(path)
        except PictureError as error:
            return _Picture(path, reason=str(error), seconds=(time.perf_counter() - start, 0.0))
        middle = time.perf_counter()
        pixels = reason = None
        if self._claim(key):
            try:
                pixels = decode(data, self._preprocess)
            except PictureError as error:
                reason = str(error)
        return _Picture(path, key, stat, pixels, reason, (middle - start, time.perf_counter() - middle))

    def _claim(self, key: bytes) -> bool:
        with self._lock:
            if key in self._claimed:
                return False
            self._claimed.add(key)
        return not self._store.contains([key])[0]


@dataclass
class _Embedder:
    """Collects pictures into batches and sends them through the network, which is loaded at the first one."""

    backbone: Backbone
    options: Options
    seconds: float = 0.0
    _engine: TorchEngine | None = None
    _batch: list[_Picture] = field(default_factory=list)

    @property
    def device(self) -> str | None:
        """The device that ran the network, or `None` where nothing had to be computed."""
        return str(self._engine.device) if self._engine and self.seconds else None

    def add(self, picture: _Picture, writer: FeatureWriter) -> None:
        self._batch.append(picture)
        if len(self._batch) >= (self.options.batch_size or self._open().batch_size):
            self.finish(writer)

    def finish(self, writer: FeatureWriter) -> None:
        if not self._batch:
            return
        engine = self._open()
        start = time.perf_counter()
        vectors = engine.embed(np.stack([picture.pixels for picture in self._batch if picture.pixels is not None]))
        self.seconds += time.perf_counter() - start
        writer.append([picture.key for picture in self._batch if picture.key is not None], vectors)
        self._batch = []

    def _open(self) -> TorchEngine:
        if self._engine is None:
            self._engine = open_engine(self.backbone, self.options.device)
        return self._engine


def _unchanged(cache: Cache, items: Sequence[Item]) -> dict[str, bytes]:
    """Return the content keys of the files that are as they were when they were last read."""
    known = cache.catalog.known_files(item.path for item in items)
    keys = {}
    for path, (stat, key) in known.items():
        try:
            if file_stat(path) == stat:
                keys[path] = key
        except PictureError:
            continue  # reading it will say what is wrong
    return keys


@contextmanager
def _remembering(cache: Cache, writer: FeatureWriter) -> Iterator[Callable[[_Picture], None]]:
    """Yield a function that notes files as read; they reach the catalog in bulk, after each commit and at the end."""
    noted: list[tuple[str, FileStat, bytes]] = []
    seen = 0

    def remember(picture: _Picture) -> None:
        nonlocal seen
        if picture.stat and picture.key and time.time_ns() - picture.stat.mtime_ns > TRUSTED_AGE_NS:
            noted.append((picture.path, picture.stat, picture.key))
        if writer.committed > seen or len(noted) >= 8192:
            seen = writer.committed
            flush()

    def flush() -> None:
        cache.catalog.remember_files(noted)
        noted.clear()

    try:
        yield remember
    finally:
        flush()


def _row(item: Item, key: bytes | None, reasons: dict[str, str], failed: dict[bytes, str]) -> Row:
    reason = reasons.get(item.path) if key is None else failed.get(key)
    return Row(item, None if reason is not None else key, reason)


def _failures_csv(failures: Sequence[Failure]) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["path", "reason"])
    writer.writerows((failure.path, failure.reason) for failure in failures)
    return out.getvalue().encode(errors="surrogateescape")
