"""A disk that fills up at every level, and each system call that writes to the cache failing in turn."""

from __future__ import annotations

import errno
import functools
import gc
import json
import os
import re
import resource
import shutil
import sqlite3
import stat
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import write_picture
from store_rows import SPEC, assert_holds, commit, commit_each, make_rows, temporary_files

import featcache.cli
from featcache.errors import CacheError, CacheWriteError
from featcache.records import ExtractSummary
from featcache.store import Cache, FeatureWriter

PAGE = 4096
SIZE = 1024 * PAGE
LEVELS = 50
STEPS = ("second commit", "third commit", "compaction", "put", "nothing")
ERRORS = ["ENOSPC", "EIO", "EDQUOT", "EROFS", "EMFILE"]

Vectors = dict[bytes, bytes]
Extract = Callable[[Path], ExtractSummary]


def published(folder: Path) -> Vectors:
    """Return key -> vector of every segment, read with nothing but h5py and zlib."""
    rows: Vectors = {}
    for path in folder.rglob("seg-*.h5"):
        with h5py.File(path, "r", locking=False) as file:
            arrays = {name: file[name][()] for name in ("keys", "features")}
            for name, array in arrays.items():
                assert zlib.crc32(array.tobytes()) == int(file.attrs[f"crc32_{name}"]), f"{name} of {path}"
        rows.update((key.tobytes(), row.tobytes()) for key, row in zip(*arrays.values(), strict=True))
    return rows


@functools.cache
def first_rows(count: int) -> Vectors:
    return {key: row.tobytes() for key, row in zip(*make_rows(0, count), strict=True)}


def numbers(said: str) -> list[int]:
    """Return the bytes needed and free that an error names; nothing where it names none."""
    match = re.search(r"no room for .*: ([\d,]+) bytes are needed(?:, ([\d,]+) are free)?", said)
    return [int(number.replace(",", "")) for number in match.groups("0")] if match else []


class Disk:
    """A small tmpfs, or where none can be mounted a limit on the size of a file; only for a child process."""

    def __init__(self, folder: Path, mounted: bool) -> None:
        self.folder = folder
        self.mounted = mounted
        if mounted:
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)], check=True)

    def free(self) -> int:
        return shutil.disk_usage(self.folder).free

    def fill(self, left: int) -> None:
        if not self.mounted:
            resource.setrlimit(resource.RLIMIT_FSIZE, (left, resource.RLIM_INFINITY))
        elif self.free() > left:
            with (self.folder / "filler").open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, self.free() - left)

    def clear(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        (self.folder / "filler").unlink(missing_ok=True)

    def each_level(self, most: int, count: int) -> Iterator[tuple[int, Path]]:
        """Yield `count` numbers of bytes, whole pages, from nothing to `most`, and a folder for each."""
        for pages in np.linspace(0, -(-most // PAGE), count):
            folder = self.folder / "level"
            yield PAGE * round(pages), folder
            shutil.rmtree(folder)


def store_levels(disk: Disk) -> list[str]:
    """Return the step that failed first at each level."""
    store_level(disk, SIZE, disk.folder / "whole")
    most = SIZE - disk.free() if disk.mounted else 250_000
    return [store_level(disk, *level) for level in disk.each_level(most, LEVELS)]


def store_level(disk: Disk, left: int, folder: Path) -> str:
    big, failed = bytes(200_000), "nothing"
    with Cache(folder) as cache:
        store = cache.features(SPEC)
        commit(store, make_rows(0, 700))
        writer = FeatureWriter(store, "float32")
        steps = (writer.flush, writer.flush, store.compact, lambda: cache.put("runs/big.csv", big))
        disk.fill(left)
        for at, (name, step) in enumerate(zip(STEPS[:-1], steps, strict=True)):
            held = first_rows(700 * (min(at, 2) + 1))
            if at < 2:
                writer.append(*make_rows(700 * (at + 1), 700))
            try:
                step()
            except CacheWriteError as error:
                failed, said = name, f"{left} bytes left, {name}: {error}"
                needed, free = numbers(said)
                assert free == disk.free() < needed or not disk.mounted, said
                assert published(folder) == held, said
                assert (writer.committed, temporary_files(folder)) == (700 * min(at, 2), []), said
                files = set(folder.rglob("*"))
                disk.clear()
                step()
                (new,) = set(folder.rglob("*")) - files
                assert needed >= new.stat().st_size, said
        assert (folder / "runs" / "big.csv").read_bytes() == big
        assert len(list(store.folder.glob("seg-*"))) == 1
        assert writer.committed == 1400
        assert published(folder) == first_rows(2100), f"{left} bytes left"
        assert_holds(cache.features(SPEC), make_rows(0, 2100))
        assert not (folder / "bad").exists(), f"{left} bytes left"
    disk.clear()
    return failed


def command_levels(disk: Disk, count: int, words: list[str]) -> list[dict[str, Any]]:
    """Run the command at each level, then again with room; torch is imported once, a fork runs each command."""
    import torch

    import featcache.api.pipeline
    import featcache.embed.torch_engine
    import featcache.render
    import featcache.store.writing
    from featcache.backbones.vision_import import import_torchvision

    import_torchvision()
    gc.freeze()  # else each fork takes a second at its end to look through what was imported here
    torch.set_num_threads(1)
    featcache.store.writing.COMMIT_ROWS = 4
    assert fork_command([*words, str(disk.folder / "whole")])[0] == 0
    reference = published(disk.folder)
    segments = sum(path.stat().st_size for path in disk.folder.rglob("seg-*.h5"))
    featcache.api.pipeline.COMPACT_AT = 2  # so that each command also needs room for a copy of the segments
    found = []
    for left, folder in disk.each_level(SIZE - disk.free() + segments if disk.mounted else 2**17, count):
        disk.fill(left)
        code, out, err = fork_command([*words, str(folder)])
        free, rows = disk.free(), published(folder)
        assert rows.items() <= reference.items(), f"{left} bytes left"
        assert temporary_files(folder) == [], f"{left} bytes left"
        disk.clear()
        again = fork_command([*words, str(folder)])
        assert published(folder) == reference, f"{left} bytes left"
        found.append({"code": code, "out": out, "err": err, "free": free, "kept": len(rows), "again": again})
    return found


def fork_command(words: list[str]) -> tuple[int, str, str]:
    """Run `featcache WORDS...` in a fork of this process; return its exit code, stdout and stderr."""
    pipes = [os.pipe(), os.pipe()]
    child = os.fork()
    if child == 0:
        os.dup2(pipes[0][1], 1)
        os.dup2(pipes[1][1], 2)
        sys.argv = ["featcache", *words]
        featcache.cli.main()  # this ends the process, in whatever way
    texts = []
    for reading, writing in pipes:
        os.close(writing)
        with os.fdopen(reading, "rb") as file:
            texts.append(file.read().decode())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), texts[0], texts[1]


def main(folder: str, mounted: str, count: str = "", *words: str) -> None:
    disk = Disk(Path(folder), mounted == "True")
    print(json.dumps(command_levels(disk, int(count), list(words)) if words else store_levels(disk)))  # noqa: T201


def on_full_disk(folder: Path, *words: str) -> tuple[Any, bool]:
    """Run `main` in a mount namespace; return what it printed, and whether the disk was a real one."""
    folder.mkdir()
    inside = ["unshare", "-rm"] if shutil.which("unshare") else ["false"]
    mount = [*inside, "mount", "-t", "tmpfs", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    if not mounted:
        warnings.warn("no tmpfs can be mounted here: a limit on the size of a file stands for it", stacklevel=2)
    paths = [*filter(None, [os.environ.get("PYTHONPATH")]), str(Path(__file__).parents[1])]
    command = [*(inside if mounted else []), sys.executable, __file__, str(folder), str(mounted), *words]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), mounted


@pytest.mark.slow
def test_a_store_survives_a_disk_that_is_full_at_any_level(tmp_path: Path) -> None:
    failed, mounted = on_full_disk(tmp_path / "disk")
    assert (len(failed), failed[0], failed[-1]) == (LEVELS, STEPS[0], "nothing")
    assert failed == sorted(failed, key=STEPS.index)
    assert not mounted or set(failed) == set(STEPS)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen pictures in two classes, old enough that the catalog keeps what was read."""
    root = tmp_path_factory.mktemp("full") / "pictures"
    for at in range(16):
        os.utime(write_picture(root / "ab"[at % 2] / f"{at:02}.png", at), (1e9, 1e9))
    return root


@pytest.mark.slow
@pytest.mark.parametrize(("count", "part"), [(2, "a"), pytest.param(LEVELS, ".", marks=pytest.mark.soak)])
def test_a_command_on_a_full_disk_is_one_line_and_goes_on_with_room(
    tmp_path: Path, pictures: Path, seeded_weights: Path, count: int, part: str
) -> None:
    total = len(list((pictures / part).rglob("*.png")))
    words = ["extract", str(pictures / part), "--json", "--backbone", "resnet18", "--weights", str(seeded_weights)]
    found, mounted = on_full_disk(tmp_path / "disk", str(count), *words, "--batch-size", "4", "--cache")
    wrong = []
    assert (len(found), found[0]["code"], found[-1]["code"]) == (count, 1, 0)
    for level in found:
        said = [line for line in re.split(r"[\r\n]+", level["err"]) if line and not line.startswith("extract:")]
        if level["code"] == 0:
            assert (said, json.loads(level["out"])["computed"]) == ([], total)
        else:
            (line,) = said
            assert (level["code"], level["out"], line[:11]) == (1, "", "featcache: ")
            needed = numbers(line)
            wrong += [line] if not needed or (mounted and needed[0] <= level["free"]) else []
        assert (level["again"][0], "featcache:" in level["again"][2]) == (0, False), level["again"]
        summary = json.loads(level["again"][1])
        assert (summary["found"], summary["reused"]) == (total, level["kept"])
        assert summary["computed"] == total - level["kept"]
    assert wrong == []


Call = tuple[str, int]
MERGED = "removal of a merged segment"
"""The one call whose failure is harmless: readers skip the segment, and the next compaction tries again."""
KINDS = {"open", "write", "fsync of a file", "rename", "fsync of a folder", "mkdir", MERGED}


def kind_of(name: str, first: Any, args: tuple[Any, ...]) -> str:
    """Name a call; nothing where it is none of those that fail here."""
    if name == "fsync":
        return f"fsync of a {'folder' if stat.S_ISDIR(os.fstat(first).st_mode) else 'file'}"
    if name == "unlink":
        return MERGED if Path(first).name.startswith("seg-") else ""
    if name == "Path.open":
        return "open" if set("".join(args[:1])) & set("wax+") else ""
    if name == "open" and args[0] & os.O_NOFOLLOW and args[0] & os.O_DIRECTORY:  # the folder that it is removed from
        return MERGED
    if name == "open":  # to write, or to make names durable
        return "open" if args[0] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_DIRECTORY) else ""
    return name


@contextmanager
def watched(folder: Path, fail: Call | None = None, code: int = 0) -> Iterator[list[Call]]:
    """Yield the calls (kind, number) that write below `folder`; the one to `fail` raises `code` instead."""
    seen: list[Call] = []

    def watch(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(first: Any, *args: Any, **options: Any) -> Any:
            path = Path(f"/proc/self/fd/{first}").readlink() if isinstance(first, int) else Path(first)
            if (below := options.get("dir_fd")) is not None:
                path = Path(f"/proc/self/fd/{below}").readlink() / path
            kind = kind_of(name, first, args)
            if kind and path.is_relative_to(folder):
                seen.append((kind, sum(other == kind for other, _ in seen)))
                if seen[-1] == fail:
                    raise OSError(code, os.strerror(code), str(path))
            if kind == "write":
                args = (args[0][:PAGE],)  # a short write, as the system may make
            return real(first, *args, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("open", "write", "fsync", "rename", "mkdir", "unlink"):
            patch.setattr(os, name, watch(name, getattr(os, name)))
        patch.setattr(Path, "open", watch("Path.open", Path.open))
        yield seen


def fault(folder: Path, call: Call, name: str, action: Callable[[], object]) -> list[str]:
    """Do `action` while one call below `folder` fails; return what was wrong about how it ended."""
    code, said = getattr(errno, name), "nothing was said"
    try:
        with watched(folder, call, code) as seen:
            action()
    except CacheError as error:
        said = "" if os.strerror(code).lower() in str(error).lower() else str(error)
    except Exception as error:
        said = f"a bare {error!r}"
    assert call in seen
    if temporary_files(folder):
        said += " and a temporary file is left"
    return [f"{call}: {said}"] if said != ("nothing was said" if call[0] == MERGED else "") else []


@pytest.fixture
def extract(pictures: Path, seeded_weights: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch) -> Extract:
    """Extract eight pictures in two commits and a compaction; the real network sees each batch once."""
    from featcache.backbones import resolve
    from featcache.embed import open_engine

    backbone = resolve("resnet18", seeded_weights)
    engine = open_engine(backbone, "cpu")
    embed = engine.embed
    once = functools.cache(lambda data, shape, dtype: embed(np.frombuffer(bytearray(data), dtype).reshape(shape)))
    monkeypatch.setattr(engine, "embed", lambda batch: once(batch.tobytes(), batch.shape, batch.dtype))
    monkeypatch.setattr("featcache.store.writing.COMMIT_ROWS", 4)
    monkeypatch.setattr("featcache.api.pipeline.COMPACT_AT", 2)
    monkeypatch.setattr("featcache.api.extraction.resolve", lambda *_: backbone)
    monkeypatch.setattr("featcache.api.embedding.open_engine", lambda *_: engine)
    options = functools.partial(featcache.Options, "resnet18", seeded_weights, device="cpu", batch_size=4)
    return lambda folder: featcache.extract(pictures / "a", options(cache=folder))


@pytest.mark.slow
@pytest.mark.parametrize("name", [ERRORS[0], *(pytest.param(name, marks=pytest.mark.soak) for name in ERRORS[1:])])
def test_an_extraction_says_each_failing_call_and_then_goes_on(extract: Extract, tmp_path: Path, name: str) -> None:
    with watched(tmp_path / "whole" / "cache") as calls:
        extract(tmp_path / "whole" / "cache")
    reference = published(tmp_path / "whole")
    assert (len(reference), {kind for kind, _ in calls}) == (8, KINDS)
    gc.collect()
    open_files = len(os.listdir("/proc/self/fd"))
    faults = []
    for at, call in enumerate(calls):
        folder = tmp_path / str(at) / "cache"
        faults += fault(folder, call, name, functools.partial(extract, folder))
        rows = published(folder)
        assert rows.items() <= reference.items(), call
        again = extract(folder)
        assert (again.reused, again.computed) == (len(rows), 8 - len(rows)), call
        assert published(folder) == reference, call
    gc.collect()
    assert faults == []
    assert len(os.listdir("/proc/self/fd")) == open_files


@pytest.mark.slow
@pytest.mark.parametrize("name", ERRORS)
def test_a_compaction_and_a_put_say_each_failing_call_and_then_go_on(tmp_path: Path, name: str) -> None:
    listing = bytes(3 * PAGE)

    def prepare(at: int | str) -> Cache:
        cache = Cache(tmp_path / str(at) / "cache")
        commit_each(cache.features(SPEC), 3, 60)
        return cache

    def work(cache: Cache) -> None:
        cache.features(SPEC).compact()
        cache.put("runs/1.csv", listing)

    with prepare("whole") as cache, watched(cache.folder) as calls:
        work(cache)
    assert {kind for kind, _ in calls} == KINDS
    faults = []
    for at, call in enumerate(calls):
        with prepare(at) as cache:
            faults += fault(cache.folder, call, name, functools.partial(work, cache))
            assert published(cache.folder) == first_rows(180), call
            assert_holds(cache.features(SPEC), make_rows(0, 180))
            assert all(path.read_bytes() == listing for path in cache.folder.glob("runs/*")), call
            work(cache)
            assert len(list(cache.folder.rglob("seg-*"))) == 1, call
            assert published(cache.folder) == first_rows(180), call
            assert (cache.folder / "runs" / "1.csv").read_bytes() == listing, call
    assert faults == []


def test_a_catalog_that_cannot_grow_says_so(extract: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extract(tmp_path / "whole")
    reference, connect, said = published(tmp_path / "whole"), sqlite3.connect, []
    pages = connect(tmp_path / "whole" / "catalog.sqlite").execute("PRAGMA page_count").fetchone()[0]
    for most in range(1, pages):

        def limited(*args: Any, most: int = most, **options: Any) -> sqlite3.Connection:
            connection = connect(*args, **options)
            connection.execute(f"PRAGMA max_page_count = {most}")
            return connection

        with monkeypatch.context() as patch, pytest.raises(CacheWriteError) as caught:
            patch.setattr(sqlite3, "connect", limited)
            extract(tmp_path / str(most))
        said.append(str(caught.value))
        assert extract(tmp_path / str(most)).found == 8
        assert published(tmp_path / str(most)) == reference
    assert len(said) > 2
    assert [text for text in said if not (numbers(text) and "/catalog.sqlite: " in text)] == []


if __name__ == "__main__":
    main(*sys.argv[1:])
