"""Items and a backbone enter; their vectors in the store, and an account of the work, leave."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from featcache.api.options import Options
from featcache.backbones import Backbone
from featcache.decode import FRESH_NS, Pixels, decode, file_stat, read
from featcache.embed import open_engine
from featcache.errors import PictureError
from featcache.records import ORIGINAL, Failure, FileStat, Item, Progress, Seconds
from featcache.store import Cache, FeatureStore, FeatureWriter, Row
from featcache.store.features import COMPACT_AT

if TYPE_CHECKING:
    from featcache.embed.torch_engine import TorchEngine


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
    view = backbone.spec.view
    stage = "extract" if view == ORIGINAL else f"extract {view}"
    store = cache.features(backbone.spec)
    account = _Account(_held(cache, store, items, options.rehash))
    pending = account.pending(items)
    reader = _Reader(store, backbone)
    embedder = _Embedder(backbone, options)
    with (
        FeatureWriter(store, backbone.spec.dtype) as writer,
        _remembering(cache, writer) as remember,
        closing(reader.read_all(pending)) as pictures,
    ):
        if progress and pending:
            progress(stage, 0, len(pending))
        for done, picture in enumerate(pictures, 1):
            account.add(picture)
            remember(picture)
            embedder.add(picture, writer)
            if progress:
                progress(stage, done - embedder.waiting, len(pending))
        last = embedder.waiting
        embedder.finish(writer)
        if progress and last:
            progress(stage, len(pending), len(pending))
    store.refresh()
    if len(store.segments) >= COMPACT_AT:  # left by many short runs
        store.compact()
    rows = tuple(account.row(item) for item in items)
    took = (reader.read_seconds, reader.decode_seconds, embedder.seconds, writer.seconds, time.perf_counter() - start)
    return Work(
        rows=rows,
        distinct=len({row.key for row in rows if row.key is not None}),
        computed=writer.committed,
        dim=store.dim or 0,
        device=embedder.device,
        seconds=Seconds(*(round(seconds, 3) for seconds in took)),
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
    read_ns: int = 0


class _Account:
    """What became of each path: a content key, or a reason."""

    def __init__(self, keys: dict[str, bytes]) -> None:
        self._keys = keys
        self._reasons: dict[str, str] = {}
        self._undecodable: dict[bytes, str] = {}

    def pending(self, items: Sequence[Item]) -> list[str]:
        """Return the paths that have to be read, each once, in order."""
        return [path for path in dict.fromkeys(item.path for item in items) if path not in self._keys]

    def add(self, picture: _Picture) -> None:
        if picture.key is not None:
            self._keys[picture.path] = picture.key
        if picture.reason is not None and picture.key is not None:
            self._undecodable[picture.key] = picture.reason
        elif picture.reason is not None:
            self._reasons[picture.path] = picture.reason

    def row(self, item: Item) -> Row:
        key = self._keys.get(item.path)
        reason = self._reasons.get(item.path) if key is None else self._undecodable.get(key)
        return Row(item, key if reason is None else None, reason)


class _Reader:
    """Reads, hashes and decodes files on all cores, a bounded window ahead of the network.

    Of several files with one content only the first is decoded.
    """

    WINDOW = 128

    def __init__(self, store: FeatureStore, backbone: Backbone) -> None:
        self.read_seconds = 0.0
        self.decode_seconds = 0.0
        self._store = store
        self._spec = backbone.spec
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
        start, read_ns = time.perf_counter(), time.time_ns()
        try:
            data, key, stat = read(path)
        except PictureError as error:
            return _Picture(path, reason=str(error), seconds=(time.perf_counter() - start, 0.0))
        middle = time.perf_counter()
        pixels = reason = None
        if self._claim(key):
            try:
                pixels = decode(data, self._spec.preprocess, self._spec.view)
            except PictureError as error:
                reason = str(error)
        return _Picture(path, key, stat, pixels, reason, (middle - start, time.perf_counter() - middle), read_ns)

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

    @property
    def waiting(self) -> int:
        """How many pictures wait for their batch to fill."""
        return len(self._batch)

    def add(self, picture: _Picture, writer: FeatureWriter) -> None:
        if picture.pixels is None:
            return
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


def _held(cache: Cache, store: FeatureStore, items: Sequence[Item], rehash: bool) -> dict[str, bytes]:
    """Return the content keys of the files that are as they were when last read, and whose vectors are held."""
    known = {} if rehash else cache.catalog.known_files(item.path for item in items)
    keys = {}
    for path, (stat, key) in known.items():
        try:
            if file_stat(path) == stat:
                keys[path] = key
        except PictureError:
            continue  # reading it will say what is wrong
    # What is broken is put aside, and then no longer held. A picture whose path is new may be anywhere in it.
    store.verify(list(keys.values()) if len(keys) == len({item.path for item in items}) else None)
    held = store.contains(list(keys.values()))
    return {path: key for (path, key), is_held in zip(keys.items(), held, strict=True) if is_held}


@contextmanager
def _remembering(cache: Cache, writer: FeatureWriter) -> Iterator[Callable[[_Picture], None]]:
    """Yield a function that notes files as read; they reach the catalog in bulk, after each commit and at the end."""
    noted: list[tuple[str, FileStat, bytes]] = []
    seen = 0

    def remember(picture: _Picture) -> None:
        nonlocal seen
        # A fresh file is not noted, and so read again next time.
        if picture.stat and picture.key and picture.read_ns - picture.stat.mtime_ns > FRESH_NS:
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
