"""Items and the views of a backbone enter; their vectors in the store, and an account of the work, leave."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from time import perf_counter

from featcache.api.embedding import NOT_FINITE, Embedder
from featcache.api.options import Options
from featcache.api.reading import Picture, Reader
from featcache.backbones import Backbone
from featcache.embed import Engine
from featcache.errors import PictureError
from featcache.records import Access, Failure, FileStat, Item, Look, Progress, Seconds
from featcache.sources import ACCESS, FRESH_NS
from featcache.store import Cache, FeatureStore, FeatureWriter, Row
from featcache.store.writing import COMPACT_AT


@dataclass(frozen=True)
class Ran:
    """What executed the network: the engine's name, the device, and why this one."""

    name: str
    device: str
    why: str


@dataclass(frozen=True)
class Standing:
    """What stays open from one call to the next: an engine, and stores whose broken segments were looked for."""

    engine: Engine
    stores: tuple[FeatureStore, ...]

    def refreshed(self) -> list[FeatureStore]:
        """Return the stores with what others have committed since."""
        for store in self.stores:
            store.refresh()
        return list(self.stores)


@dataclass(frozen=True)
class Work:
    """What `compute` did for one view: one row an item, in order, the store of the vectors, and where the time went."""

    rows: tuple[Row, ...]
    store: FeatureStore
    distinct: int
    computed: int
    dim: int
    engine: Ran | None
    seconds: Seconds

    @property
    def failures(self) -> tuple[Failure, ...]:
        """The items that have no vector, with the reason."""
        return tuple(Failure(row.item.path, row.reason) for row in self.rows if row.reason is not None)


def compute(
    cache: Cache,
    items: Sequence[Item],
    backbones: Sequence[Backbone],
    options: Options,
    progress: Progress | None,
    access: Access | None = None,
    standing: Standing | None = None,
) -> list[Work]:
    """Bring the vectors of `items` into the cache, computing only those it lacks, and return the work of each backbone.

    `backbones` are views of one network: a picture is read and decoded once for all of them. `access` is the dataset's
    own way to its pictures, if it has one; `standing` what is open already.
    """
    start = perf_counter()
    missing = Missing(cache, items, backbones, options, access, standing)
    account, pending = missing.account, missing.pending
    reader = Reader(missing.stores, [backbone.spec for backbone in backbones], missing.access)
    with ExitStack() as stack:
        writers = [stack.enter_context(FeatureWriter(store, backbones[0].spec.dtype)) for store in missing.stores]
        remember = stack.enter_context(_remembering(cache, writers[-1], backbones[0].spec.reading))
        engine = standing.engine if standing else None
        embedder = stack.enter_context(Embedder(cache, backbones, options, missing.expected, writers, engine))
        pictures = stack.enter_context(closing(reader.read_all(pending)))
        for picture in _counted(pictures, embedder, len(pending), progress):
            account.note(picture.path, picture.key, picture.reason)
            remember(picture)
            embedder.add(picture)
    for key in embedder.undefined:
        advice = ", use fp32" if backbones[0].spec.precision == "fp16" else ""
        account.note_content(key, f"the network gives {NOT_FINITE} for it{advice}")
    rows = missing.settle(items)
    used, total = embedder.engine, perf_counter() - start
    computed = [writer.committed for writer in writers]
    seconds = [
        _share(part, reader, embedder, writer, total) for part, writer in zip(parts(computed), writers, strict=True)
    ]
    return missing.works(rows, computed, Ran(used.name, used.device, used.why) if used else None, seconds)


class Missing:
    """What the cache lacks of a dataset: the `pending` paths, which are to be read, and how many vectors at most."""

    def __init__(
        self,
        cache: Cache,
        items: Sequence[Item],
        backbones: Sequence[Backbone],
        options: Options,
        access: Access | None,
        standing: Standing | None = None,
    ) -> None:
        self.access = access or ACCESS
        self.stores = standing.refreshed() if standing else [cache.features(backbone.spec) for backbone in backbones]
        unchanged = _unchanged(cache, items, self.access)
        self.account = Account(_held({} if options.rehash else unchanged, self.stores, items, standing is not None))
        self.pending = self.account.pending(items)
        self.expected = _expected(unchanged, self.stores, self.pending)

    def settle(self, items: Sequence[Item]) -> tuple[Row, ...]:
        """List the stores anew, compact what many short runs left, and return a row for each item."""
        for store in self.stores:
            store.refresh()
            if len(store.segments) >= COMPACT_AT:
                store.compact()
        return tuple(self.account.row(item) for item in items)

    def works(
        self, rows: tuple[Row, ...], computed: Sequence[int], engine: Ran | None, seconds: Sequence[Seconds]
    ) -> list[Work]:
        """Return the work of each view."""
        distinct = len({row.key for row in rows if row.key is not None})
        return [
            Work(rows, store, distinct, count, store.dim or 0, engine, took)
            for count, store, took in zip(computed, self.stores, seconds, strict=True)
        ]


def _counted(
    pictures: Iterable[Picture], embedder: Embedder, total: int, progress: Progress | None
) -> Iterator[Picture]:
    """Yield the pictures, let the embedder finish after the last one, and tell how many have got their vectors."""
    if progress and total:
        progress("extract", 0, total)
    for done, picture in enumerate(pictures, 1):
        yield picture
        if progress:
            progress("extract", done - embedder.waiting, total)
    last = embedder.waiting
    embedder.finish()
    if progress and last:
        progress("extract", total, total)


def parts(computed: Sequence[int]) -> list[float]:
    """Return the part of the time that each view is answerable for, so that they add up to one."""
    return [n / sum(computed) if any(computed) else 1 / len(computed) for n in computed]


def _share(part: float, reader: Reader, embedder: Embedder, writer: FeatureWriter, total: float) -> Seconds:
    return Seconds(
        read=round(reader.read_seconds * part, 3),
        decode=round(reader.decode_seconds * part, 3),
        forward=round(embedder.seconds * part, 3),
        write=round(writer.seconds, 3),
        total=round(total * part, 3),
    )


class Account:
    """What became of each path: a content key, or a reason."""

    def __init__(self, keys: dict[str, bytes]) -> None:
        self._keys = keys
        self._reasons: dict[str, str] = {}
        self._undecodable: dict[bytes, str] = {}

    def pending(self, items: Sequence[Item]) -> list[str]:
        """Return the paths that have to be read, each once, in order."""
        return [path for path in dict.fromkeys(item.path for item in items) if path not in self._keys]

    def note(self, path: str, key: bytes | None, reason: str | None) -> None:
        """Note a content key, a reason why a file could not be read, or both of one that could not be decoded."""
        if key is not None:
            self._keys[path] = key
        if reason is not None and key is not None:
            self._undecodable[key] = reason
        elif reason is not None:
            self._reasons[path] = reason

    def note_content(self, key: bytes, reason: str) -> None:
        """Note why a content has no vector, whichever files hold it."""
        self._undecodable[key] = reason

    def row(self, item: Item) -> Row:
        """Return the item with its key, or with the reason why it has none."""
        key = self._keys.get(item.path)
        reason = self._reasons.get(item.path) if key is None else self._undecodable.get(key)
        return Row(item, key if reason is None else None, reason)


def _unchanged(cache: Cache, items: Sequence[Item], access: Access) -> dict[str, bytes]:
    """Return the content keys of the files that are as they were when last read."""
    keys = {}
    for path, (stat, key) in cache.catalog.known_files(item.path for item in items).items():
        try:
            if access.stat(path) == stat:
                keys[path] = key
        except PictureError:
            continue  # reading it will say what is wrong
    return keys


def _expected(unchanged: dict[str, bytes], stores: Sequence[FeatureStore], pending: Sequence[str]) -> int:
    """Return how many vectors are to be computed, at most: files that were never read may turn out to be copies."""
    keys = [unchanged[path] for path in pending if path in unchanged]
    return len(pending) * len(stores) - sum(int(store.contains(keys).sum()) for store in stores)


def _held(
    keys: dict[str, bytes], stores: Sequence[FeatureStore], items: Sequence[Item], is_verified: bool
) -> dict[str, bytes]:
    """Return those of the files whose vectors are all held."""
    are_all_known = len(keys) == len({item.path for item in items})
    for store in stores:
        # What is broken is put aside, and then no longer held. A picture whose path is new may be anywhere in it.
        if not is_verified:
            store.verify(list(keys.values()) if are_all_known else None)
        held = store.contains(list(keys.values()))
        keys = {path: key for (path, key), is_held in zip(keys.items(), held, strict=True) if is_held}
    return keys


@contextmanager
def _remembering(cache: Cache, writer: FeatureWriter, reading: str | None) -> Iterator[Callable[[Picture], None]]:
    """Yield a function that notes files; they reach the catalog in bulk, after each commit and at the end."""
    noted: list[tuple[str, FileStat, bytes]] = []
    looks: dict[bytes, Look] = {}
    seen = 0

    def remember(picture: Picture) -> None:
        nonlocal seen
        # A fresh file is not noted, and so read again next time.
        if picture.stat and picture.key and picture.read_ns - picture.stat.mtime_ns > FRESH_NS:
            noted.append((picture.path, picture.stat, picture.key))
        if picture.look and picture.key:
            looks[picture.key] = picture.look
        if writer.committed > seen or len(noted) >= 8192:
            seen = writer.committed
            flush()

    def flush() -> None:
        cache.catalog.remember_files(noted)
        cache.catalog.remember_looks(looks, reading)
        noted.clear()
        looks.clear()

    try:
        yield remember
    finally:
        flush()
