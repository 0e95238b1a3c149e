"""Files that somebody else put into a cache, or that one bit was flipped in: nothing is lost, run, or believed."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import stat
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import Result, write_picture
from store_rows import DIM, SPEC, assert_holds, commit, make_rows, segment_files

from featcache.errors import CacheError, CatalogError, ExchangeError
from featcache.records import FileStat, Item
from featcache.store import Cache, Catalog, FeatureStore, Row
from featcache.store.exchange import read
from featcache.store.segment import _crc32, attributes_crc, build_image

Run = Callable[..., Result]


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    found = Cache(tmp_path / "cache").features(SPEC)
    commit(found, make_rows(0, 10))
    return found.reopened()


def put(store: FeatureStore, image: bytes, name: str = "seg-09999999999999999999-ffffffff-00000001.h5") -> Path:
    path = store.folder / name
    path.write_bytes(image)
    return path


def image(rows: tuple[list[bytes], np.ndarray], replaces: tuple[str, ...] = ()) -> bytes:  # type: ignore[type-arg]
    keys = np.frombuffer(b"".join(rows[0]), np.uint8).reshape(-1, 32)
    print_ = SPEC.fingerprint
    return build_image(keys, rows[1], fingerprint=print_, writer="ffffffff", created_ns=0, replaces=replaces)


# --- segments ---


def test_a_segment_that_holds_less_replaces_nothing(store: FeatureStore) -> None:
    (mine,) = segment_files(store.folder)
    put(store, image(make_rows(50, 1), (mine.name,)))
    found = store.reopened()
    found.remove_replaced()
    found.compact()
    assert_holds(found, make_rows(0, 10))
    assert_holds(found, make_rows(50, 1))


def test_segments_that_say_to_replace_each_other_are_not_both_gone(store: FeatureStore) -> None:
    (mine,) = segment_files(store.folder)
    names = [f"seg-0999999999999999999{n}-ffffffff-00000001.h5" for n in range(3)]
    for at, name in enumerate(names):
        put(store, image(make_rows(0, 10), (names[at - 1], mine.name)), name)
    found = store.reopened()
    found.remove_replaced()
    assert_holds(found.reopened(), make_rows(0, 10))


@pytest.mark.parametrize("names", [("../../../precious.h5",), ("../spec.json", "/etc/hostname"), ("",)])
def test_names_in_a_segment_reach_no_other_file(store: FeatureStore, names: tuple[str, ...], tmp_path: Path) -> None:
    precious = tmp_path / "precious.h5"
    precious.write_bytes(b"x")
    put(store, image(make_rows(0, 12), (*names, segment_files(store.folder)[0].name)))
    found = store.reopened()
    found.remove_replaced()
    found.compact()
    assert precious.exists()
    assert_holds(found.reopened(), make_rows(0, 12))


def damaged(kind: str, store: FeatureStore, folder: Path) -> None:
    """Put a segment into the store that is valid HDF5, and not what featcache writes."""
    path = put(store, image(make_rows(50, 4)))
    with h5py.File(path, "r+") as file:
        rows = file["features"][()]
        if kind == "another length":
            del file["features"]
            file.create_dataset("features", data=np.zeros((4, DIM + 1), np.float32))
            file.attrs["dim"] = DIM + 1
        elif kind == "NaN":
            file["features"][1, 2] = np.nan
        elif kind in ("external", "virtual", "link", "chunked", "fill"):
            del file["features"]
        if kind == "external":
            (folder / "raw").write_bytes(rows.tobytes())
            file.create_dataset("features", rows.shape, rows.dtype, external=[(str(folder / "raw"), 0, rows.nbytes)])
        elif kind in ("virtual", "link"):
            with h5py.File(folder / "other.h5", "w") as other:
                other["x"] = rows
            if kind == "link":
                file["features"] = h5py.ExternalLink(str(folder / "other.h5"), "x")
            else:
                layout = h5py.VirtualLayout(rows.shape, rows.dtype)
                layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "x", rows.shape)
                file.create_virtual_dataset("features", layout)
        elif kind == "chunked":  # as h5repack makes it
            file.create_dataset("features", data=rows, chunks=(2, DIM), compression="gzip")
        elif kind == "fill":
            file.create_dataset("features", (2**40, DIM), np.float32, chunks=(2**10, DIM))
            file.attrs["n_rows"] = 2**40
        if kind not in ("fill", "external", "virtual", "link"):
            file.attrs["crc32_features"] = np.uint32(_crc32(file["features"][()]))
        file.attrs["crc32_attributes"] = np.uint32(attributes_crc(dict(file.attrs)))


KINDS = ["another length", "NaN", "external", "virtual", "link", "chunked", "fill"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_segment_of_another_make_is_put_aside_and_the_others_are_used(
    kind: str, store: FeatureStore, tmp_path: Path
) -> None:
    damaged(kind, store, tmp_path)
    found = store.reopened()
    found.verify()
    assert len(found.segments) == 1
    if kind == "another length":  # only the network knows which are right
        assert len(found.left_out) == 1
        found.expect(DIM)
        assert found.left_out == ()
    assert len(list((tmp_path / "cache" / "bad").iterdir())) == 1
    assert_holds(found, make_rows(0, 10))


@pytest.mark.parametrize("what", ["fifo", "device", "folder", "broken link"])
def test_what_is_no_file_is_no_segment_and_nobody_waits_for_it(what: str, store: FeatureStore, tmp_path: Path) -> None:
    place = store.folder / "seg-09999999999999999999-ffffffff-00000001.h5"
    if what == "fifo":
        os.mkfifo(place)
    elif what == "folder":
        place.mkdir()
    else:
        place.symlink_to("/dev/zero" if what == "device" else tmp_path / "nowhere")
    start = time.perf_counter()
    assert_holds(store.reopened(), make_rows(0, 10))
    assert time.perf_counter() - start < 10


def test_vectors_of_another_length_than_the_network_gives_are_put_aside(run: Run, photos: Path, tmp_path: Path) -> None:
    assert run("extract", photos, network=True).code == 0
    (folder,) = (tmp_path / "cache" / "segments").iterdir()
    for path in segment_files(folder):
        path.unlink()
    spec = json.loads((folder / "spec.json").read_text())["fingerprint"]
    wrong = np.ones((3, 7), np.float32)
    keys = np.random.default_rng(0).integers(0, 256, (3, 32), np.uint8)
    data = build_image(keys, wrong, fingerprint=spec, writer="ffffffff", created_ns=0)
    (folder / "seg-00000000000000000001-ffffffff-00000001.h5").write_bytes(data)
    result = run("extract", photos, "--json", network=True)
    assert (result.code, result.json["computed"], result.json["dim"]) == (0, 30, 512)
    assert "has vectors of length 7, and the network gives 512" in result.err
    assert run("cache", "verify").code == 0


# --- runs ---


def runs_of(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "runs").glob("*.json"))


def test_no_bit_of_a_run_makes_gc_delete_a_vector_in_use(run: Run, photos: Path, tmp_path: Path) -> None:
    assert run("extract", photos, network=True).code == 0
    (file,) = runs_of(tmp_path)
    whole = file.read_bytes()
    (folder,) = (tmp_path / "cache" / "segments").iterdir()
    before = {path.name: path.read_bytes() for path in segment_files(folder)}
    for bit in np.random.default_rng(0).choice(len(whole) * 8, 60, replace=False).tolist():
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        file.write_bytes(data)
        result = run("cache", "gc", "--yes")
        assert {path.name: path.read_bytes() for path in segment_files(folder)} == before, (bit, result.out)
        assert result.code in (0, 1)
        assert "Traceback" not in result.err
    at = whole.index(folder.name.encode())
    file.write_bytes(whole[:at] + (b"0" if whole[at : at + 1] != b"0" else b"1") + whole[at + 1 :])
    result = run("cache", "gc", "--yes")
    assert (result.code, {path.name for path in segment_files(folder)}) == (1, set(before))
    assert "cannot be read as a run" in result.err
    file.write_bytes(whole)
    assert run("cache", "gc", "--yes").code == 0
    assert {path.name: path.read_bytes() for path in segment_files(folder)} == before


def test_no_bit_of_a_spec_makes_gc_delete_a_vector_in_use(run: Run, photos: Path, tmp_path: Path) -> None:
    assert run("extract", photos, network=True).code == 0
    (folder,) = (tmp_path / "cache" / "segments").iterdir()
    note = folder / "spec.json"
    whole = note.read_bytes()
    for bit in np.random.default_rng(0).choice(len(whole) * 8, 60, replace=False).tolist():
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        note.write_bytes(data)
        result = run("cache", "gc", "--yes")
        assert segment_files(folder), (bit, result.out)


def test_a_key_that_changed_in_the_catalog_stops_gc(run: Run, photos: Path, tmp_path: Path) -> None:
    assert run("extract", photos, network=True).code == 0
    with sqlite3.connect(tmp_path / "cache" / "catalog.sqlite") as db:
        db.execute("UPDATE items SET key = ? WHERE position = 7", (bytes(32),))
    db.close()
    result = run("cache", "gc", "--yes")
    assert result.code == 1
    assert "the pictures of" in result.err
    assert "are not those that were saved" in result.err
    assert run("cache", "verify").code == 1
    assert run("cache", "verify", "--repair").code == 0
    assert run("cache", "gc", "--yes").code == 0
    assert run("extract", photos, "--json", network=True).json["reused"] == 30


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"id": "1"},
        {"root": ["a"]},
        {"fingerprint": None},
        {"started": "now"},
        {"started": 1e300},
        {"started": float("nan")},
        {"finished": float("inf")},
        {"summary": [1]},
        {"summary": {"seconds": 3}},
        {"summary": {"found": "many"}},
        {"summary": {"columns": {"path": 1}}},
        {"unknown": 1},
        {"catalog": 7},
    ],
    ids=str,
)
def test_a_run_with_wrong_types_is_named_and_no_command_ends_in_a_traceback(
    change: dict[str, object], run: Run, photos: Path, tmp_path: Path
) -> None:
    assert run("extract", photos, network=True).code == 0
    (file,) = runs_of(tmp_path)
    content = {**json.loads(file.read_text()), **change}
    del content["sha256"]
    file.write_text(json.dumps(content))
    for command in (["runs"], ["cache", "info"], ["cache", "verify"], ["cache", "gc", "--yes"], ["ledger"], ["fit"]):
        result = run(*command)
        assert result.code in (0, 1), command
        assert "cannot be read as a run" in result.err or command == ["cache", "verify"], command
    assert len(segment_files(next((tmp_path / "cache" / "segments").iterdir()))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe", b"null", b"1e999", b" " * 10])
@pytest.mark.parametrize("name", ["runs/000001.json", "format.json", "segments/{print}/spec.json", "splits/x-0.json"])
def test_json_of_any_kind_ends_in_one_line(text: bytes, name: str, run: Run, photos: Path, tmp_path: Path) -> None:
    assert run("extract", photos, network=True).code == 0
    (folder,) = (tmp_path / "cache" / "segments").iterdir()
    file = tmp_path / "cache" / name.format(print=folder.name)
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(text)
    for command in (["cache", "info"], ["cache", "verify"], ["cache", "gc", "--yes"]):
        assert run(*command).code in (0, 1), command
    assert segment_files(folder)


# --- the catalog ---


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER t AFTER INSERT ON items BEGIN DELETE FROM files; END",
        "CREATE VIEW v AS SELECT * FROM items",
        "CREATE TABLE further (x)",
        "CREATE INDEX i ON items (label)",
        "DROP TABLE files; CREATE VIEW files AS SELECT 1 AS path, 2 AS size, 3 AS mtime_ns, 4 AS inode, x'00' AS key",
    ],
)
def test_a_catalog_with_more_than_our_tables_is_not_used(statement: str, tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    Catalog(path).close()
    db = sqlite3.connect(path)
    db.executescript(statement)
    db.close()
    with pytest.raises(CatalogError, match=r"is damaged \(it has the (table|view|trigger|index)"):
        Catalog(path)


@pytest.mark.parametrize("value", [b"short", "text", 7, 2.5])
def test_values_of_other_types_in_the_catalog_are_one_error(value: object, tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "catalog.sqlite")
    catalog.save_dataset("root", [Row(Item("a.png", "a", None), bytes(32), None)], 1)
    catalog.remember_files([("a.png", FileStat(1, 2, 3), bytes(32))])
    with sqlite3.connect(tmp_path / "catalog.sqlite") as db:
        db.execute("UPDATE items SET key = ?", (value,))
        db.execute("UPDATE files SET key = ?", (value,))
    db.close()
    for read_it in (lambda: catalog.dataset("root"), lambda: list(catalog.labels("root"))):
        with pytest.raises(CatalogError, match="is damaged"):
            read_it()
    with pytest.raises(CatalogError, match="is damaged"):
        catalog.keys_of("root", "")
    assert catalog.known_files(["a.png"]) == {}


@pytest.mark.parametrize("what", ["fifo", "device", "folder"])
def test_a_catalog_that_is_no_file_is_one_error(what: str, tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    if what == "fifo":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(CacheError, match=r"cannot use the catalog .*: it is no regular file"):
        Catalog(path)


def test_a_catalog_of_before_is_completed_and_then_checked(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    rows = [Row(Item("a.png", "a", None), bytes(32), None)]
    catalog = Catalog(path)
    catalog.save_dataset("root", rows, 1)
    catalog.close()
    with sqlite3.connect(path) as db:
        db.executescript("DROP TABLE commits; PRAGMA user_version = 3")
    db.close()
    again = Catalog(path)
    assert (again.dataset("root"), again.commits("root")) == (rows, [1])
    again.check_dataset("root")
    with sqlite3.connect(path) as db:
        db.execute("UPDATE items SET label = 'b'")
    db.close()
    with pytest.raises(CatalogError, match="are not those that were saved"):
        again.check_dataset("root")


def test_a_catalog_of_before_on_a_disk_for_reading_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    path = folder / "catalog.sqlite"
    catalog = Catalog(path)
    catalog.save_dataset("root", [Row(Item("a.png", "a", None), bytes(32), None)], 1)
    catalog.close()
    with sqlite3.connect(path) as db:
        db.executescript("DROP TABLE commits; PRAGMA user_version = 3")
    db.close()
    path.chmod(0o444)
    folder.chmod(0o555)
    try:
        if os.access(path, os.W_OK):
            pytest.skip("this user may write everywhere")
        again = Catalog(path)
        assert len(again.dataset("root")) == 1
        assert again.commits("root") == []
    finally:
        folder.chmod(0o755)


# --- files as file systems have them ---


@pytest.mark.parametrize("value", [2**63, 2**64 - 1, -1, -(10**18), 25 * 10**19])
def test_inodes_and_times_of_any_size_are_kept(value: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from featcache.sources import local

    path = write_picture(tmp_path / "a.png", 0)
    real = os.fstat

    def odd(descriptor: int) -> os.stat_result:
        fields = list(real(descriptor))
        fields[stat.ST_INO] = abs(value)
        return os.stat_result([*fields, *([0.0] * 3), *([value] * 3)][:19])

    monkeypatch.setattr(os, "fstat", odd)
    found = local.read(str(path))[2]
    catalog = Catalog(tmp_path / "catalog.sqlite")
    catalog.remember_files([(str(path), found, bytes(32))])
    assert catalog.known_files([str(path)]) == {str(path): (found, bytes(32))}


def test_files_of_a_cache_have_the_mode_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        cache = Cache(tmp_path / "cache")
        commit(cache.features(SPEC), make_rows(0, 3))
        cache.runs.start("extract", "root")
        with cache.in_use():
            pass
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in cache.folder.rglob("*") if path.is_file()}
    assert set(modes.values()) == {0o664}, modes


def test_a_source_inside_the_cache_keeps_its_files(run: Run, tmp_path: Path) -> None:
    assert run("cache", "info").code == 1
    Cache(tmp_path / "cache")
    inside = tmp_path / "cache" / "mine"
    kept = [inside / "a" / ".tmp-note", inside / "a" / ".tmp-0123456789abcdef", inside / ".tmp-x.png"]
    for path in kept:
        write_picture(path.with_suffix(".png"), 0)
        path.write_bytes(b"x")
    run("extract", inside, network=True)
    assert all(path.exists() for path in kept)


# --- imports ---


@pytest.fixture
def exported(run: Run, photos: Path, tmp_path: Path) -> Callable[[str], Path]:
    assert run("extract", photos, network=True).code == 0

    def export(suffix: str) -> Path:
        path = tmp_path / f"out{suffix}"
        assert run("cache", "export", path).code == 0
        return path

    return export


def changed(path: Path, features: np.ndarray | None = None, **arrays: np.ndarray) -> Path:  # type: ignore[type-arg]
    """Write an exported `.npz` anew with other arrays."""
    with np.load(path) as file:
        content = {name: file[name] for name in file.files}
    content |= arrays | ({} if features is None else {"features": features})
    np.savez(path, **content)
    return path


@pytest.mark.parametrize("wrong", ["NaN", "infinite", "no length", "another length", "no rows", "keys", "texts"])
def test_an_import_of_vectors_that_are_none_is_refused_and_leaves_the_cache_as_it_was(
    wrong: str, run: Run, exported: Callable[[str], Path], tmp_path: Path
) -> None:
    path = exported(".npz")
    with np.load(path) as file:
        X = file["features"]
    if wrong in ("NaN", "infinite"):
        X[3, 4] = np.nan if wrong == "NaN" else np.inf
        changed(path, X)
    elif wrong == "keys":
        changed(path, keys=np.zeros((30, 31), np.uint8))
    elif wrong == "texts":
        changed(path, labels=np.arange(30))
    elif wrong == "no rows":
        changed(
            path,
            X[:0],
            keys=np.zeros((0, 32), np.uint8),
            **dict.fromkeys(("paths", "labels", "splits"), X[:0, 0].astype("U")),
        )
    else:
        changed(path, X[:, : 0 if wrong == "no length" else 100])
    for cache in (tmp_path / "cache", tmp_path / "fresh"):
        result = run("cache", "import", path, "--cache", cache)
        assert result.code == 1, result.out
        assert result.err.count("\n") == 1, result.err
    assert run("cache", "verify", "--cache", tmp_path / "cache").code == 0
    assert not list((tmp_path / "fresh").rglob("seg-*.h5"))


def noted(path: Path, steps: dict[str, object] | None = None, **values: object) -> Path:
    """Write an exported `.npz` anew with other values in its note, its spec or its preprocessing."""
    with np.load(path) as file:
        note = json.loads(str(file["note"]))
    spec = json.loads(note["spec"])
    spec |= {name: value for name, value in values.items() if name in spec}
    spec["preprocess"] |= steps or {}
    note |= {name: value for name, value in values.items() if name in note}
    note["spec"] = json.dumps(spec, sort_keys=True, separators=(",", ":"))
    note["fingerprint"] = hashlib.sha256(note["spec"].encode()).hexdigest()
    return changed(path, note=np.array(json.dumps(note)))


@pytest.mark.parametrize(
    ("steps", "values", "said"),
    [
        ({"crop": 12_000}, {}, "the crop of the features is 12000 pixels, and 1 to 4,096 are taken"),
        ({"crop": 0}, {}, "the crop of the features is 0 pixels"),
        ({"resize": 10**12}, {}, "the resize of the features is 1000000000000 pixels"),
        ({"interpolation": "magic"}, {}, "the interpolation of the features is 'magic'"),
        ({"mean": [float("nan"), 0, 0]}, {}, "the mean or std of the features is not finite"),
        ({}, {"dtype": "float64"}, "the dtype of the features is 'float64', not one of float32, float16"),
        ({}, {"backbone": "\ud800"}, "the backbone of the features is '\\ud800': it has half a character"),
        ({}, {"backbone": "z" * 10**6}, "it has 1,000,000 characters"),
        ({}, {"weights": "\udc80\ud800"}, "has weights that cannot be noted, '\\udc80\\ud800': it has half"),
        ({}, {"weights": "w" * 17_000_000}, "it has 17,000,000 characters"),
        ({}, {"weights": 7}, "has weights that cannot be noted, 7: they are no text"),
        ({}, {"version": "\ud800" * 1000}, "has an export format that this featcache does not read: '\\ud800"),
    ],
    ids=str,
)
def test_an_import_that_no_network_here_could_have_made_is_refused_by_the_value_and_blocks_nothing(
    steps: dict[str, object],
    values: dict[str, object],
    said: str,
    run: Run,
    exported: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    path = noted(exported(".npz"), steps, **values)
    before = sorted((tmp_path / "cache" / "segments").rglob("*"))
    result = run("cache", "import", path)
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert said in result.err
    assert len(result.err) < 1000
    assert sorted((tmp_path / "cache" / "segments").rglob("*")) == before
    for command in (["cache", "verify"], ["cache", "gc", "--yes"]):
        assert run(*command).code == 0, command


def test_an_import_with_two_vectors_of_one_content_is_refused_by_their_paths(
    run: Run, exported: Callable[[str], Path], tmp_path: Path
) -> None:
    path = exported(".npz")
    with np.load(path) as file:
        keys, X, names = file["keys"], file["features"], file["paths"]
    keys[7] = keys[3]
    result = run("cache", "import", changed(path, keys=keys), "--cache", tmp_path / "fresh")
    assert (result.code, "two vectors of one content" in result.err) == (1, True)
    assert f"at the paths {names[3]!s:.60} and {names[7]!s:.60}" in result.err
    X[7] = X[3]  # a copy of a picture has the same vector
    result = run("cache", "import", changed(path, X, keys=keys), "--json", "--cache", tmp_path / "fresh")
    assert (result.code, result.json["rows"], result.json["added"]) == (0, 30, 29)


@pytest.mark.parametrize("kind", ["external", "virtual", "link", "soft link", "fill"])
def test_an_import_reads_no_other_file_and_is_no_bomb(
    kind: str, exported: Callable[[str], Path], tmp_path: Path
) -> None:
    path = exported(".h5")
    with h5py.File(path, "r+") as file:
        X = file["features"][()]
        del file["features"]
        with h5py.File(tmp_path / "other.h5", "w") as other:
            other["x"] = X
        if kind == "external":
            (tmp_path / "raw").write_bytes(X.tobytes())
            file.create_dataset("features", X.shape, X.dtype, external=[(str(tmp_path / "raw"), 0, X.nbytes)])
        elif kind == "virtual":
            layout = h5py.VirtualLayout(X.shape, X.dtype)
            layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", X.shape)
            file.create_virtual_dataset("features", layout)
        elif kind == "link":
            file["features"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "x")
        elif kind == "soft link":
            file["features"] = h5py.SoftLink("/keys")
        else:
            file.create_dataset("features", (2**38, 512), np.float32, chunks=(2**10, 512))
    with pytest.raises(ExchangeError, match=r"of its own|far more than fit into it|packed, or not all there"):
        read(path)


def test_an_import_that_unpacks_to_far_more_than_it_is_is_refused(
    exported: Callable[[str], Path], tmp_path: Path
) -> None:
    path = exported(".npz")
    with np.load(path) as file:
        content = {name: file[name] for name in file.files}
    np.savez_compressed(tmp_path / "bomb.npz", **(content | {"features": np.zeros((40_000, 512), np.float32)}))
    with pytest.raises(ExchangeError, match="far more than fit into it"):
        read(tmp_path / "bomb.npz")


@pytest.mark.parametrize("suffix", [".npz", ".h5", ".parquet"])
@pytest.mark.parametrize("what", ["fifo", "device"])
def test_an_import_waits_for_no_fifo_and_reads_no_device(what: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    if what == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(ExchangeError, match="is no regular file"):
        read(path)


def test_a_file_loads_no_plugin_of_hdf5(exported: Callable[[str], Path], tmp_path: Path) -> None:
    """HDF5 loads what lies in its folder of plugins for a filter that a file names: here that would wait for ever."""
    path, plugins = exported(".h5"), tmp_path / "plugins"
    with h5py.File(path, "r+") as file:
        X = file["features"][()]
        del file["features"]
        file.create_dataset("features", data=X, chunks=X.shape, compression="gzip")
    whole = path.read_bytes()
    assert whole.count(b"deflate\0") == 1
    at = whole.index(b"deflate\0") - 8  # where the number of the filter stands
    path.write_bytes(whole[:at] + (32015).to_bytes(2, "little") + whole[at + 2 :])
    plugins.mkdir()
    os.mkfifo(plugins / "libplugin.so")
    code = (
        "import sys, h5py\nfrom pathlib import Path\nfrom featcache.store.exchange import read\n"
        "before = [h5py.h5pl.get(at) for at in range(h5py.h5pl.size())]\n"
        "try:\n    read(Path(sys.argv[1]))\nexcept Exception as error:\n    print(type(error).__name__)\n"
        "assert before == [h5py.h5pl.get(at) for at in range(h5py.h5pl.size())]\n"
    )
    environment = {**os.environ, "HDF5_PLUGIN_PATH": str(plugins), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert (done.returncode, done.stdout) == (0, "ExchangeError\n"), done.stderr


# --- networks and shares ---


def test_a_network_or_a_segment_of_a_share_that_is_larger_than_any_is_not_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache, place = Cache(tmp_path / "cache"), tmp_path / "share" / "segments" / SPEC.fingerprint[:16]
    huge = tmp_path / "cache" / "networks" / f"{SPEC.fingerprint[:16]}-0123456789abcdef.onnx"
    place.mkdir(parents=True)
    huge.parent.mkdir(exist_ok=True)
    for path in (huge, place / "seg-00000000000000000001-aaaaaaaa-00000001.h5"):
        with path.open("wb") as file:
            file.truncate(5 * 2**30 if path != huge else 2**40)
    tracemalloc.start()
    try:
        assert cache.networks.read(SPEC.fingerprint) is None
        assert Cache(tmp_path / "cache", share=str(tmp_path / "share")).fetch(SPEC) == 0
        assert tracemalloc.get_traced_memory()[1] < 50 * 2**20
    finally:
        tracemalloc.stop()
    assert f"the exported network {huge} is none: it has more than 2,147,483,648 bytes; moved to" in caplog.text
    assert "seg-00000000000000000001-aaaaaaaa-00000001.h5 is left out: it has more than 4,294,967,296" in caplog.text
    assert not huge.exists()
    kept = cache.networks.keep(SPEC.fingerprint, b"network")
    assert (cache.networks.find(SPEC.fingerprint), cache.networks.read(SPEC.fingerprint)) == (kept, b"network")
