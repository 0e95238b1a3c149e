"""Decoded pictures enter; their vectors, computed in batches of which several are under way, leave to the writers."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import numpy as np
import numpy.typing as npt

from featcache.api.options import Options
from featcache.api.reading import Picture
from featcache.backbones import Backbone
from featcache.decode import Pixels
from featcache.embed import Engine, open_engine
from featcache.errors import BackboneError, EngineMemoryError
from featcache.records import FloatArray
from featcache.store import Cache, FeatureWriter

NOT_FINITE = "values that are not finite"

Entry = tuple[int, bytes, Pixels]
"""The number of a view, the content key of a picture, and its pixels."""

_logger = logging.getLogger(__name__)


class Embedder:
    """Collects pictures into batches and sends them through the network, which is loaded at the first one.

    An `engine` that is open already is used again.

    `expected` is how many vectors are to be computed, at most. Batches reach the writers in order; one that does not
    fit into memory is halved, and so are those after it. On Ctrl-C those that are finished are kept.
    """

    def __init__(
        self,
        cache: Cache,
        backbones: Sequence[Backbone],
        options: Options,
        expected: int,
        writers: Sequence[FeatureWriter],
        engine: Engine | None = None,
    ) -> None:
        self.seconds = 0.0
        self.engine: Engine | None = None
        self._given = engine
        self._cache = cache
        self._backbones = backbones
        self._options = options
        self._expected = expected
        self._writers = writers
        self._batch: list[Entry] = []
        self._flying: deque[tuple[list[Entry], Future[FloatArray]]] = deque()
        self._threads: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self._size = 0
        self._is_sound = False
        self._pages: dict[tuple[int, bytes], _Pages] = {}
        self.undefined: set[bytes] = set()
        """The contents for which the network gives values that are not finite: they get no vector."""

    @property
    def waiting(self) -> int:
        """How many pictures wait for a vector."""
        return len({key for batch in (self._batch, *(flown for flown, _ in self._flying)) for _, key, _ in batch})

    def add(self, picture: Picture) -> None:
        """Take a picture, and wait while as many batches are under way as the engine can have."""
        if picture.key is None or not picture.views:
            return
        engine = self.engine or self._open()
        for view, pages in Counter(view for view, _ in picture.views).items():
            if pages > 1:
                self._pages[view, picture.key] = _Pages(pages)
        self._batch += [(view, picture.key, pixels) for view, pixels in picture.views]
        while len(self._batch) >= self._size:
            part = self._batch[: self._size]  # another thread may halve the size at any moment
            self._batch = self._batch[len(part) :]
            self._send(engine, part)

    def finish(self) -> None:
        """Compute what is left, and wait for all of it."""
        if self._batch:
            self._send(self.engine or self._open(), self._batch)
            self._batch = []
        while self._flying:
            self._land()

    def __enter__(self) -> Embedder:
        """Return the embedder itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the batches that are under way; on a failure or Ctrl-C those not begun are given up."""
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        if isinstance(error, KeyboardInterrupt | SystemExit):
            self._flying = deque(entry for entry in self._flying if _succeeded(entry[1]))
            while self._flying:
                self._land()

    def _open(self) -> Engine:
        options, networks = self._options, self._cache.networks
        engine = self._given or open_engine(
            self._backbones[0], options.device, options.engine, networks, self._expected
        )
        self._size = options.batch_size or engine.batch_size
        self._threads = ThreadPoolExecutor(engine.lanes, thread_name_prefix="featcache-embed")
        self.engine = engine
        return engine

    def _send(self, engine: Engine, batch: list[Entry]) -> None:
        assert self._threads is not None  # made with the engine
        self._flying.append((batch, self._threads.submit(self._run, engine, [pixels for _, _, pixels in batch])))
        # One batch more than there are lanes, so that none waits for the next.
        while self._flying and (len(self._flying) > engine.lanes + 1 or self._flying[0][1].done()):
            self._land()

    def _land(self) -> None:
        batch, future = self._flying[0]
        vectors = future.result()  # most of the time is spent here, and so it is here that Ctrl-C arrives
        self._flying.popleft()
        is_finite: npt.NDArray[np.bool_] = np.asarray(np.isfinite(vectors).all(axis=1))
        self.undefined |= {key for (_, key, _), is_sound in zip(batch, is_finite, strict=True) if not is_sound}
        self._is_sound = self._is_sound or bool(is_finite.any())
        if not self._is_sound and len(self.undefined) > 1:
            spec = self._backbones[0].spec
            why = "fp16 is too coarse for it, use fp32" if spec.precision == "fp16" else "its weights are broken"
            raise BackboneError(f"{spec.backbone} gave {NOT_FINITE}: {why}, or give other weights")
        for view in sorted({view for view, _, _ in batch}):
            rows = [row for row, entry in enumerate(batch) if entry[0] == view and is_finite[row]]
            found = [(batch[row][1], vectors[row]) for row in rows]
            if self._pages:
                found = [entry for key, vector in found for entry in self._of_all_pages(view, key, vector)]
            self._writers[view].expect(vectors.shape[1])
            rows_found = np.stack([vector for _, vector in found]) if found else vectors[:0]
            self._writers[view].append([key for key, _ in found], rows_found)

    def _of_all_pages(self, view: int, key: bytes, vector: FloatArray) -> Iterator[tuple[bytes, FloatArray]]:
        """Yield the vector of a picture once the last of its pages has come; of one with a single page at once."""
        pages = self._pages.get((view, key))
        if pages is None:
            yield key, vector
        elif pages.add(vector):
            del self._pages[view, key]
            yield key, pages.mean()

    def _run(self, engine: Engine, pixels: list[Pixels]) -> FloatArray:
        start = time.perf_counter()
        vectors = self._embed(engine, pixels)
        with self._lock:
            self.seconds += time.perf_counter() - start
        return vectors

    def _embed(self, engine: Engine, pixels: list[Pixels]) -> FloatArray:
        try:
            return engine.embed(np.stack(pixels))
        except MemoryError as error:  # an EngineMemoryError is one too
            if len(pixels) == 1:
                raise EngineMemoryError(f"{error}, one picture: use --device cpu, or a smaller backbone") from error
            half = len(pixels) // 2
            with self._lock:
                if half < self._size:
                    _logger.warning("%s: going on with batches of %d", error, half)
                    self._size = half
        return np.concatenate([self._embed(engine, pixels[:half]), self._embed(engine, pixels[half:])])


class _Pages:
    """The vectors of a file's pages, added up as they come."""

    def __init__(self, n: int) -> None:
        self._n = self._left = n
        self._sum: npt.NDArray[np.float64] | float = 0.0

    def add(self, vector: FloatArray) -> bool:
        """Add the vector of the next page, and tell whether it is the last."""
        self._sum = self._sum + vector.astype(np.float64)
        self._left -= 1
        return self._left == 0

    def mean(self) -> FloatArray:
        """Return the mean of all pages' vectors."""
        return np.asarray(self._sum / self._n, np.float32)


def _succeeded(future: Future[FloatArray]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None
