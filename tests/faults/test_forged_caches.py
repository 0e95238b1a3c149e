"""A cache in which somebody else put what leads out of it, or what would make it useless: neither comes to pass."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sqlite3
import struct
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import Result, write_picture
from store_rows import segment_files

import featcache
from featcache.errors import CacheError
from featcache.records import FileStat
from featcache.store import Cache
from featcache.store.files import dataset_name
from featcache.store.segment import build_image
from featcache.store.shards import Shards

Run = Callable[..., Result]

pytestmark = pytest.mark.usefixtures("ready_network")

KEYS = np.random.default_rng(0).integers(0, 256, (200, 32), np.uint8)


@pytest.fixture
def cache(run: Run, photos: Path, tmp_path: Path) -> Path:
    assert run("extract", photos, network=True).code == 0
    return tmp_path / "cache"


def forged(fingerprint: str, dim: int = 4, rows: int = 200) -> bytes:
    return build_image(
        KEYS[:rows], np.ones((rows, dim), np.float32), fingerprint=fingerprint, writer="ffffffff", created_ns=0
    )


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def one_line(result: Result, code: int = 1) -> str:
    assert result.code == code, result.err
    (line,) = [line for line in result.err.splitlines() if line.startswith("featcache: ")][-1:]
    assert "Traceback" not in result.err
    return line


# --- what leads out of the cache ---


@pytest.mark.parametrize("name", ["../../out", "/tmp/out", "a" * 63 + "/", ""])
def test_what_a_segment_says_that_it_holds_is_no_path(run: Run, cache: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "spec.json").write_text("{}")
    evil = cache / "segments" / "evil"
    evil.mkdir()
    (evil / "seg-00000000000000000001-ffffffff-00000001.h5").write_bytes(forged(name))
    before = snapshot(out)
    for words in (("cache", "compact"), ("cache", "gc", "--yes"), ("cache", "verify")):
        result = run(*words)
        assert "Traceback" not in result.err
    assert snapshot(out) == before
    assert run("fit").code == 0


@pytest.mark.parametrize("name", ["bad", "trainings", "indexes", "segments", "segments/*", "models", "runs", "shards"])
def test_nothing_is_read_or_written_through_a_link(
    run: Run, cache: Path, photos: Path, tmp_path: Path, name: str
) -> None:
    assert run("fit").code == 0
    (place,) = cache.glob(name) if "*" in name else [cache / name]
    precious = tmp_path / "precious"
    place.rename(precious) if place.exists() else precious.mkdir()
    for file in ("a.pt", "a.faiss", "letter.txt", ".tmp-0123456789abcdef", "000003-knn.safetensors"):
        (precious / file).write_text("x")
    place.symlink_to(precious)
    before = snapshot(precious)
    write_picture(photos / "sky" / "new.png", 77)
    words = (("cache", "gc", "--yes"), ("cache", "verify", "--repair"), ("cache", "compact"), ("fit", "--head", "knn"))
    for command in (*words, ("extract", photos)):
        assert f"{place} is a link to {precious}" in one_line(run(*command, network=command[0] == "extract"))
    assert snapshot(precious) == before
    place.unlink()
    shutil.copytree(precious, place)
    assert run("extract", photos, network=True).code == 0


def test_gc_looks_for_links_again_after_it_has_asked(cache: Path, photos: Path, tmp_path: Path) -> None:
    (place,) = (cache / "segments").iterdir()
    other = tmp_path / "other"
    shutil.copytree(place, other)
    before = snapshot(other)

    def agree(_: object) -> bool:
        place.rename(tmp_path / "aside")
        place.symlink_to(other)
        return True

    with pytest.raises(CacheError, match=f"{place} is a link to {other}"):
        featcache.cache_gc([photos], agree=agree, options=featcache.Options(cache=cache))
    assert snapshot(other) == before


@pytest.mark.parametrize("command", [("cache", "verify"), ("cache", "compact"), ("fit",), ("cache", "gc", "--yes")])
def test_a_segment_that_is_a_link_is_put_aside_and_never_read(
    run: Run, cache: Path, photos: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    (folder,) = (cache / "segments").iterdir()
    private = tmp_path / "private"
    shutil.copytree(cache, private)
    write_picture(photos / "sky" / "new.png", 77)  # of its owner alone
    assert run("extract", photos, "--cache", private, network=True).code == 0
    new = max((private / "segments" / folder.name).glob("seg-*"), key=lambda path: path.name)
    (folder / new.name).symlink_to(new)
    with Cache(cache) as opened:
        before = len(opened.store(opened.fingerprints()[0]).keys)
    assert "Traceback" not in run(*command).err
    assert not (folder / new.name).is_symlink()
    with Cache(cache) as opened:
        assert len(opened.store(opened.fingerprints()[0]).keys) == before
    assert new.exists()


@pytest.mark.parametrize("name", ["runs/000002.json", "segments/*/spec.json"])
def test_a_small_file_that_is_a_link_is_not_read(run: Run, cache: Path, tmp_path: Path, name: str) -> None:
    (place,) = cache.glob(name) if "*" in name else [cache / name]
    secret = tmp_path / "secret.json"
    secret.write_bytes(place.read_bytes() if place.exists() else (cache / "runs" / "000001.json").read_bytes())
    place.unlink(missing_ok=True)
    place.symlink_to(secret)
    refused = run("fit")
    assert refused.code == 1
    assert str(place.parent if "*" in name else place) in refused.err


@pytest.mark.parametrize(
    "name",
    [".lock", "bad", "models", "runs/../shards", "segments/*/spec.json", "segments/*/.compact.lock", "backbones/*"],
)
def test_a_folder_in_place_of_a_file_and_the_other_way_round_is_put_aside(
    run: Run, cache: Path, photos: Path, name: str
) -> None:
    (folder,) = (cache / "segments").iterdir()
    kept = next((cache / "backbones").iterdir()).name if name == "backbones/*" else ""
    place = cache / name.replace("segments/*", f"segments/{folder.name}").replace("backbones/*", f"backbones/{kept}")
    is_folder = name in ("bad", "models", "runs/../shards")
    shutil.rmtree(place, ignore_errors=True) if is_folder else place.unlink(missing_ok=True)
    place.write_bytes(b"x") if is_folder else place.mkdir()
    write_picture(photos / "sky" / "new.png", 77)
    extracted = run("extract", photos, network=True)
    assert extracted.code == 0, extracted.err
    assert "is not what featcache writes there" in extracted.err
    for words in (("fit",), ("cache", "verify"), ("cache", "compact"), ("cache", "gc", "--yes")):
        result = run(*words)
        assert result.code == 0, result.err


@pytest.mark.parametrize("body", ["SELECT RAISE(ABORT, 'no more')", "UPDATE items SET label = 'x'"])
def test_a_trigger_by_whatever_name_is_not_run(run: Run, cache: Path, photos: Path, body: str) -> None:
    with contextlib.closing(sqlite3.connect(cache / "catalog.sqlite")) as db:
        db.execute("PRAGMA writable_schema = ON")
        sql = f"CREATE TRIGGER sqlite_autoindex_x AFTER UPDATE ON datasets BEGIN {body}; END"
        db.execute("INSERT INTO sqlite_schema VALUES ('trigger', 'sqlite_autoindex_x', 'datasets', 0, ?)", (sql,))
        db.commit()
    refused = run("extract", photos, network=True)
    assert "it has the trigger sqlite_autoindex_x, which featcache did not make" in one_line(refused)
    run("cache", "verify", "--repair")
    assert run("extract", photos, network=True).code == 0


@pytest.mark.parametrize("fingerprint", ["/tmp/x", "../../x", "f" * 63])
def test_what_a_run_says_that_its_features_are_is_no_path(
    run: Run, cache: Path, tmp_path: Path, fingerprint: str
) -> None:
    fingerprint = fingerprint.replace("/tmp", str(tmp_path))
    precious = tmp_path / "x"
    precious.mkdir()
    (precious / "seg-00000000000000000001-ffffffff-00000001.h5").write_bytes(b"precious")
    content = json.loads((cache / "runs" / "000001.json").read_text())
    content |= {"id": 2, "fingerprint": fingerprint}
    del content["sha256"]
    forged_run = cache / "runs" / "000002.json"
    forged_run.write_text(json.dumps(content))
    for words in (("cache", "verify"), ("cache", "gc", "--yes"), ("fit",)):
        assert str(forged_run) in run(*words).err
    assert [path.read_bytes() for path in precious.iterdir()] == [b"precious"]
    forged_run.unlink()
    assert run("fit").code == 0


@pytest.mark.parametrize("name", ["catalog.sqlite", ".lock"])
def test_no_file_is_made_where_a_broken_link_leads(run: Run, cache: Path, tmp_path: Path, name: str) -> None:
    (cache / name).unlink(missing_ok=True)
    (cache / name).symlink_to(tmp_path / "elsewhere")
    for words in (("fit",), ("cache", "gc", "--yes"), ("extract", tmp_path / "photos")):
        result = run(*words, network=words[0] == "extract")
        assert "Traceback" not in result.err
        assert result.code == 0 or name in one_line(result)
    assert not (tmp_path / "elsewhere").exists()
    (cache / name).unlink()
    assert run("extract", tmp_path / "photos", network=True).code == 0


# --- what would make it useless ---


def test_many_vectors_of_another_length_put_none_of_ours_aside(
    run: Run, cache: Path, photos: Path, tmp_path: Path
) -> None:
    (folder,) = (cache / "segments").iterdir()
    mine = [path.name for path in segment_files(folder)]
    fingerprint = json.loads((folder / "spec.json").read_text())["fingerprint"]
    name = "seg-00000000000000000001-ffffffff-00000001.h5"
    (folder / name).write_bytes(forged(fingerprint))
    for words in (("fit",), ("cache", "compact"), ("cache", "gc", "--yes")):
        assert run(*words).code == 0
    assert "has vectors of another shape" in "".join(run("cache", "verify", "--json").json["broken"])
    again = run("extract", photos, "--json", network=True)
    assert (again.json["computed"], again.json["reused"]) == (0, 30)
    assert {path.name for path in segment_files(folder)} >= set(mine)
    for path in (cache / "runs").glob("*.json"):  # where nothing says which length is right
        path.unlink()
    (folder / name).write_bytes(forged(fingerprint))
    for words in (("cache", "compact"), ("cache", "gc", "--yes")):
        run(*words)
    assert {path.name for path in segment_files(folder)} >= set(mine)
    assert run("extract", photos, network=True).code == 0
    assert (
        "has vectors of length 4, and the network gives 512" in run("extract", photos, network=True).err
        or not (folder / name).exists()
    )
    assert run("cache", "verify").code == 0
    assert run("cache", "gc", "--yes").code == 0


@pytest.mark.parametrize(
    "name",
    [
        *("999999.asked", "999999999.json", "9223372036854775807.json", "9" * 240 + ".json"),
        *("1e9.json", "0x10.json", "\u0663\u0663\u0663\u0663\u0663\u0663.json"),
    ],
)
def test_no_name_of_a_run_ends_commands_for_good(run: Run, cache: Path, photos: Path, name: str) -> None:
    (cache / "runs" / name).touch()
    assert run("extract", photos, network=True).code == 0
    assert run("fit").code == 0
    runs = [path.name for path in (cache / "runs").iterdir()]
    assert len(runs) == 4
    assert run("cache", "verify").code == 0
    assert run("cache", "gc", "--yes").code == 0


@pytest.fixture
def _emptied(tmp_path: Path) -> Iterator[None]:
    """Remove what is too deep for Python to remove, and so for pytest."""
    yield
    subprocess.run(["rm", "-rf", str(tmp_path)], check=True)


@pytest.mark.usefixtures("_emptied")
def test_folders_of_any_depth_are_no_matter(run: Run, cache: Path) -> None:
    here = Path.cwd()
    try:
        os.chdir(cache / "segments")
        for _ in range(1800):
            Path("d").mkdir()
            os.chdir("d")
    finally:
        os.chdir(here)
    for words in (("fit",), ("cache", "info"), ("cache", "verify"), ("cache", "gc", "--yes")):
        result = run(*words)
        assert result.code == 0, result.err


def shard(kind: str, path: Path) -> None:
    """Make what another computer's part of the extraction is not."""
    whole = {"addresses": np.frombuffer(b"/x", np.uint8), "stats": np.ones((1, 3), np.int64), "keys": KEYS[:1]}
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "array":
        np.save(path.with_suffix(".npy"), KEYS)
        path.with_suffix(".npy").rename(path)
    elif kind == "bomb":
        np.savez_compressed(path, **(whole | {"addresses": np.zeros(2**29, np.uint8)}))
    elif kind == "huge":
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"shape": (2**50,), "fortran_order": False, "descr": "|u1"})
        with zipfile.ZipFile(path, "w") as file:
            for name in whole:
                file.writestr(f"{name}.npy", header.getvalue())
    else:
        odd = {"columns": {"stats": np.ones((1, 4), np.int64)}, "types": {"keys": np.ones((1, 32), "U3")}}
        np.savez(path, **(whole | odd[kind]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fifo", "folder", "device", "array", "bomb", "huge", "columns", "types"])
def test_a_shard_of_another_make_is_read_as_none(kind: str, run: Run, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "shards"
    folder.mkdir(parents=True)
    shard(kind, folder / f"{dataset_name(str(photos))}-0-of-2.npz")
    assert Shards(folder).of(str(photos)) == {}
    result = run("extract", photos, network=True)
    assert result.code == 0, result.err


def test_a_shard_comes_back_as_it_was_put(tmp_path: Path) -> None:
    files = {f"/{at}\udcff": (FileStat(at, -at, 2**62), KEYS[at].tobytes()) for at in range(3)}
    for content in (files, {}):
        Shards(tmp_path / "shards").put("root", (0, 1), content)
        assert Shards(tmp_path / "shards").of("root") == content


# --- what is opened beside the catalog, and read whole ---


def hot_journal(catalog: Path, victim: Path) -> bytes:
    """A journal of no pages that names another file, which SQLite deletes when it has played the journal back."""
    magic, name = bytes.fromhex("d9d505f920a163d7"), os.fsencode(victim)
    page = struct.unpack(">H", catalog.read_bytes()[16:18])[0]
    header = magic + struct.pack(">IIIII", 0, 12345, catalog.stat().st_size // page, 512, page)
    return (
        header.ljust(512, b"\0")
        + struct.pack(">I", 2**30 // page + 1)
        + name
        + struct.pack(">II", len(name), sum(name))
        + magic
    )


def test_a_journal_makes_sqlite_delete_no_other_file(run: Run, cache: Path, tmp_path: Path) -> None:
    victim, catalog = tmp_path / "victim.txt", cache / "catalog.sqlite"
    for _ in range(2):
        victim.write_text("x")
        (cache / "catalog.sqlite-journal").write_bytes(hot_journal(catalog, victim))
        if victim.exists() and not (tmp_path / "shown").exists():  # that it would
            (tmp_path / "shown").mkdir()
            shutil.copytree(cache, tmp_path / "shown" / "cache")
            with sqlite3.connect(tmp_path / "shown" / "cache" / "catalog.sqlite") as db:
                db.execute("SELECT * FROM datasets").fetchall()
            assert not victim.exists()
            victim.write_text("x")
        assert run("cache", "info").code == 0
        assert victim.exists()
    assert run("fit").code == 0


def test_a_journal_put_there_while_a_command_runs_makes_sqlite_delete_no_other_file(
    cache: Path, photos: Path, tmp_path: Path
) -> None:
    victim = tmp_path / "victim.txt"
    victim.write_text("x")
    with Cache(cache) as opened:
        rows = opened.catalog.dataset(str(photos))
        (cache / "catalog.sqlite-journal").write_bytes(hot_journal(cache / "catalog.sqlite", victim))
        assert opened.catalog.dataset(str(photos)) == rows
        (cache / "catalog.sqlite-journal").write_bytes(hot_journal(cache / "catalog.sqlite", victim))
        opened.catalog.save_dataset(str(photos), rows, 1)
    assert victim.read_text() == "x"


@pytest.mark.parametrize("suffix", ["-journal", "-wal", "-shm"])
@pytest.mark.parametrize("what", ["link", "fifo"])
def test_what_is_no_file_beside_the_catalog_is_neither_written_nor_waited_for(
    run: Run, cache: Path, photos: Path, tmp_path: Path, suffix: str, what: str
) -> None:
    victim, place = tmp_path / "victim.txt", cache / f"catalog.sqlite{suffix}"
    victim.write_text("x" * 2000)
    place.symlink_to(victim) if what == "link" else os.mkfifo(place)
    assert run("extract", photos, network=True).code == 0
    assert victim.read_text() == "x" * 2000


@pytest.mark.parametrize("what", ["fifo", "device", "folder"])
@pytest.mark.parametrize(
    "name", [".lock", "networks/{}-x.onnx", "indexes/x.safetensors", "trainings/x.pt", "models/x.safetensors"]
)
def test_nothing_in_a_cache_is_waited_for(run: Run, cache: Path, photos: Path, name: str, what: str) -> None:
    (folder,) = (cache / "segments").iterdir()
    place = cache / name.format(folder.name)
    place.parent.mkdir(exist_ok=True)
    place.unlink(missing_ok=True)
    if what == "fifo":
        os.mkfifo(place)
    elif what == "device":
        place.symlink_to("/dev/zero")
    else:
        place.mkdir()
    (photos / "new.png").write_bytes(next(photos.rglob("*.png")).read_bytes())
    extracted = run("extract", photos, "--engine", "onnx", "--rehash", network=True)
    for result in (extracted, run("cache", "gc", "--yes"), run("cache", "verify"), run("fit")):
        assert "Traceback" not in result.err
        assert result.code == 0 or name == ".lock", result.err


@pytest.mark.slow
@pytest.mark.parametrize("root", ["\ud800x", "a\0b", "", "../../etc", "zip://x::y"])
def test_the_root_of_a_run_may_be_anything(run: Run, cache: Path, photos: Path, root: str) -> None:
    (file,) = (cache / "runs").glob("*.json")
    content = json.loads(file.read_text())
    content |= {"id": 2, "root": root, "summary": None, "finished": None}
    del content["sha256"]
    (cache / "runs" / "000002.json").write_text(json.dumps(content))
    for words in (("cache", "info"), ("cache", "verify"), ("cache", "gc", "--yes"), ("fit", photos), ("audit", photos)):
        result = run(*words)
        assert "Traceback" not in result.err
    result = run("cache", "gc", "--yes")
    if result.code:
        (cache / "runs" / "000002.json").unlink() if "000002.json" in result.err else None
        run("cache", "gc", "--yes", "--forget", root) if "000002.json" not in result.err else None
    assert run("cache", "gc", "--yes").code == 0
    assert run("fit", photos).code == 0
