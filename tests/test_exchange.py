"""Vectors carried out of one cache and into another: the same to the bit, and readable without featcache."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pyarrow.parquet
import pytest
from conftest import Result
from store_rows import HALF, SPEC, make_rows, temporary_files

from featcache.api.outputs import write as write_output
from featcache.discover import discover
from featcache.errors import ExchangeError, FeatcacheError, OutputError
from featcache.records import Features, FeatureSpec, Item
from featcache.store import Cache, FeatureWriter, Row
from featcache.store.exchange import Exchange, packed, read
from featcache.store.footers import count_values

Run = Callable[..., Result]

pytestmark = pytest.mark.usefixtures("ready_network")

SUFFIXES = [".npz", ".parquet", ".h5"]
ODD = ("/p/new\nline.jpg", "/p/smile \U0001f600.jpg", "/p/ä and \u200b.jpg", "/p/plain.jpg")
NOT_UTF8 = os.fsdecode(b"/p/\xff.jpg")
each_suffix = pytest.mark.parametrize("suffix", SUFFIXES)


def write(path: Path, content: Exchange) -> None:
    """Write a file as `cache export` does."""
    write_output(path, packed(path, content))


def content(spec: FeatureSpec, paths: tuple[str, ...] = ODD) -> Exchange:
    """Return rows with odd names, an unknown label, an unknown split and one key twice."""
    keys, vectors = make_rows(0, len(paths))
    keys[-1], vectors[-1] = keys[0], vectors[0]
    labels = np.array([f"label {at}\n\U0001f600" if at else "" for at in range(len(paths))], np.str_)
    splits = np.array(["train" if at % 2 else "" for at in range(len(paths))], np.str_)
    X = vectors.astype(spec.dtype)
    return Exchange(Features(X, labels, paths, splits, tuple(keys), spec.fingerprint), spec, "toy weights \u2603")


def assert_same(found: Exchange, expected: Exchange) -> None:
    np.testing.assert_array_equal(found.features.X, expected.features.X, strict=True)
    assert found.features.y.tolist() == expected.features.y.tolist()
    assert found.features.splits.tolist() == expected.features.splits.tolist()
    for name in ("paths", "keys", "fingerprint"):
        assert getattr(found.features, name) == getattr(expected.features, name)
    assert (found.spec, found.weights) == (expected.spec, expected.weights)


# Files


@each_suffix
@pytest.mark.parametrize("spec", [SPEC, HALF], ids=["float32", "float16"])
def test_what_is_written_is_read_back_to_the_bit(tmp_path: Path, suffix: str, spec: FeatureSpec) -> None:
    path = tmp_path / f"out{suffix}"
    write(path, content(spec))
    assert_same(read(path), content(spec))
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("read_it", [read, discover], ids=["import", "extract"])
def test_a_parquet_file_whose_schema_contradicts_its_columns_is_refused(
    tmp_path: Path, read_it: Callable[[Path], object]
) -> None:
    path = tmp_path / "out.parquet"
    write(path, content(SPEC))
    # the column may not be empty, says the schema now, and its sizes are of one that may: pyarrow alone would abort
    for name in (b"\x03key", b"\x05label"):
        path.write_bytes(path.read_bytes().replace(b"\x15\x02\x18" + name, b"\x15\x00\x18" + name))
    with pytest.raises(FeatcacheError, match=r"out\.parquet"):
        read_it(path)


def test_the_values_of_a_parquet_file_are_counted_as_pyarrow_does(tmp_path: Path) -> None:
    table = pyarrow.table({"a": [[1, 2], [], None], "b": ["x", None, "y"], "c": [1.0, 2.0, 3.0]})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    metadata = pyarrow.parquet.ParquetFile(tmp_path / "t.parquet").metadata
    groups = [metadata.row_group(at) for at in range(metadata.num_row_groups)]
    expected: Counter[str] = Counter()
    for column in [group.column(at) for group in groups for at in range(group.num_columns)]:
        expected[column.path_in_schema] += column.num_values
    assert count_values((tmp_path / "t.parquet").read_bytes()) == expected


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_a_name_that_is_not_utf8_is_carried_as_it_is(tmp_path: Path, suffix: str) -> None:
    expected = content(SPEC, (*ODD, NOT_UTF8))
    write(tmp_path / f"out{suffix}", expected)
    assert_same(read(tmp_path / f"out{suffix}"), expected)


def test_parquet_refuses_a_name_that_is_not_utf8_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ExchangeError, match=r"not UTF-8: .*udcff.*export to \.h5 or \.npz"):
        write(tmp_path / "out.parquet", content(SPEC, (*ODD, NOT_UTF8)))
    assert list(tmp_path.iterdir()) == []


def by_numpy(path: Path) -> tuple[dict[str, Any], str]:
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    return arrays, str(arrays.pop("note"))


def by_h5py(path: Path) -> tuple[dict[str, Any], str]:
    with h5py.File(path, "r") as file:
        arrays = {name: file[name][()] for name in file}
        note = bytes(file.attrs["note"]).decode()
    return {n: np.array([t.decode() for t in a]) if a.dtype.kind == "S" else a for n, a in arrays.items()}, note


def by_pyarrow(path: Path) -> tuple[dict[str, Any], str]:
    table = pyarrow.parquet.read_table(path)
    arrays = {f"{name}s": np.array(table[name].to_pylist()) for name in ("path", "label", "split")}
    arrays["keys"] = np.array([list(key) for key in table["key"].to_pylist()], np.uint8)
    values = table["features"].combine_chunks()
    arrays["features"] = values.flatten().to_numpy(zero_copy_only=False).reshape(len(table), -1)
    return arrays, table.schema.metadata[b"featcache"].decode()


@pytest.mark.parametrize("spec", [SPEC, HALF], ids=["float32", "float16"])
@pytest.mark.parametrize(("suffix", "witness"), [(".npz", by_numpy), (".parquet", by_pyarrow), (".h5", by_h5py)])
def test_a_program_without_featcache_reads_the_file(
    tmp_path: Path, suffix: str, witness: Callable[[Path], tuple[dict[str, Any], str]], spec: FeatureSpec
) -> None:
    expected = content(spec)
    write(tmp_path / f"out{suffix}", expected)
    arrays, text = witness(tmp_path / f"out{suffix}")
    assert set(arrays) == {"features", "keys", "paths", "labels", "splits"}
    np.testing.assert_array_equal(arrays["features"], expected.features.X, strict=True)
    assert [key.tobytes() for key in arrays["keys"]] == list(expected.features.keys)
    assert arrays["paths"].tolist() == list(ODD)
    assert arrays["labels"].tolist() == expected.features.y.tolist()
    assert arrays["splits"].tolist() == expected.features.splits.tolist()
    note = json.loads(text)
    assert (note["format"], note["version"], note["weights"]) == ("featcache-export", 1, expected.weights)
    assert note["fingerprint"] == hashlib.sha256(note["spec"].encode()).hexdigest() == spec.fingerprint
    assert json.loads(note["spec"])["backbone"] == "toy"


def full(descriptor: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@each_suffix
def test_on_a_full_disk_the_old_file_stays_and_no_half_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = tmp_path / f"out{suffix}"
    for before in (None, b"the old file"):
        if before:
            path.write_bytes(before)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(OutputError, match=f"no room for {path}"):
                write(path, content(SPEC))
        assert temporary_files(tmp_path) == []
        assert (path.read_bytes() if path.exists() else None) == before


@each_suffix
def test_a_changed_bit_in_the_vectors_or_keys_is_found(tmp_path: Path, suffix: str) -> None:
    path, expected = tmp_path / f"out{suffix}", content(SPEC)
    write(path, expected)
    good = path.read_bytes()
    found = 0
    for row, key in zip(expected.features.X[1:3], expected.features.keys[1:3], strict=True):
        for data in (row.tobytes(), key):
            place = good.find(data)
            if place < 0:  # Parquet compresses, or keeps values that repeat apart
                continue
            found += 1
            broken = bytearray(good)
            broken[place + 5] ^= 4
            path.write_bytes(broken)
            with pytest.raises(ExchangeError, match=f"^{path}"):
                read(path)
    assert found >= 2


@each_suffix
@pytest.mark.parametrize("keep", [0, 10, 0.3, 0.6, 0.95])
def test_a_file_cut_short_is_refused(tmp_path: Path, suffix: str, keep: float) -> None:
    path = tmp_path / f"out{suffix}"
    write(path, content(SPEC))
    os.truncate(path, int(keep if keep >= 1 else keep * path.stat().st_size))
    with pytest.raises(ExchangeError, match=f"^{path}"):
        read(path)


# Commands


LABELS = ("leaf", "sky")


@pytest.fixture
def toy(run: Run, tmp_path: Path) -> Cache:
    """A cache with one toy dataset: two classes of twenty that toy vectors tell apart, and a file that is no picture.

    The files named in it are not there, and need not be.
    """
    cache = Cache(tmp_path / "cache")
    keys, vectors = make_rows(0, 40)
    vectors[::2, 0] += 3
    with FeatureWriter(cache.features(SPEC), SPEC.dtype) as writer:
        writer.append(keys, vectors)
    rows = [
        Row(Item(f"/p/{at}\n.jpg", LABELS[at % 2], "test" if at % 4 > 1 else "train"), keys[at], None)
        for at in range(40)
    ]
    rows += [Row(Item("/p/copy.jpg", "leaf", "train"), keys[0], None), Row(Item("/p/notes.txt"), None, "not a picture")]
    run_ = cache.runs.start("extract", "/p", SPEC.fingerprint)
    cache.catalog.save_dataset("/p", rows, run_.id)
    cache.runs.finish(run_, {"backbone": "toy", "weights": "toy", "weights_file": None})
    return cache


def tree(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def readable(cache: Cache, root: str) -> list[tuple[str, str | None, str | None, bytes | None]]:
    return [(r.item.path, r.item.label, r.item.split, r.key) for r in cache.catalog.dataset(root) if r.key]


def all_vectors(cache: Cache) -> npt.NDArray[Any]:
    return cache.store(SPEC.fingerprint).read(
        [key for *_, key in readable(cache, next(iter(cache.catalog.roots()))) if key]
    )


@each_suffix
def test_a_dataset_is_carried_to_another_cache_and_fits_there_the_same(
    run: Run, toy: Cache, tmp_path: Path, suffix: str
) -> None:
    file, other = tmp_path / f"out{suffix}", tmp_path / "other"
    exported = run("cache", "export", file, "--json")
    assert (exported.code, exported.err) == (0, "")
    summary = exported.json
    assert (summary["rows"], summary["dim"], summary["dataset"], summary["added"]) == (41, 6, "/p", None)
    assert (summary["backbone"], summary["fingerprint"]) == ("toy", SPEC.fingerprint)
    assert (summary["format"], summary["bytes"]) == (suffix[1:], file.stat().st_size)
    fitted = run("fit", "--json").json
    imported = run("cache", "import", file, "--cache", other, "--json").json
    assert (imported["rows"], imported["added"], imported["dataset"]) == (41, 40, str(file))
    with Cache(other) as there:
        assert readable(there, str(file)) == readable(toy, "/p")
        assert there.spec(SPEC.fingerprint) == SPEC
        np.testing.assert_array_equal(all_vectors(there), all_vectors(toy), strict=True)
    again = run("fit", "--cache", other, "--json").json
    for name in ("accuracy", "n_train", "n_test", "split_sizes", "fingerprint", "weights", "params"):
        assert again[name] == fitted[name], name
    assert 0.5 < again["accuracy"] <= 1
    assert run("cache", "verify", "--cache", other).code == 0
    second = run("cache", "import", file, "--cache", other, "--json").json
    assert (second["added"], second["rows"]) == (0, 41)
    assert len(list(other.glob("segments/*/seg-*.h5"))) == 1
    assert "added        0; 41 were" in run("cache", "import", file, "--cache", other).out
    assert run("cache", "export", tmp_path / "back.npz", "--cache", other).code == 0
    assert_same(read(tmp_path / "back.npz"), read(file))


def test_vectors_that_are_there_with_other_values_stay_and_are_counted(run: Run, toy: Cache, tmp_path: Path) -> None:
    run("cache", "export", "out.npz")
    found = read(tmp_path / "out.npz")
    nearly = found.features.X * np.float32(1 + 1e-6)
    others = found.features.X.copy()
    others[1:4] += 1
    for X, differing in ((nearly, 0), (others, 3)):
        write(tmp_path / "other.npz", replace(found, features=replace(found.features, X=X)))
        before = all_vectors(toy)
        summary = run("cache", "import", "other.npz", "--json").json
        assert (summary["added"], summary["differing"]) == (0, differing)
        np.testing.assert_array_equal(all_vectors(toy), before, strict=True)
        said = run("cache", "import", "other.npz").out
        assert ("3 that were there have other values" in said) == bool(differing)


def test_pictures_extracted_after_an_import_are_not_computed_again(run: Run, photos: Path, tmp_path: Path) -> None:
    run("extract", photos, network=True)
    fitted = run("fit", "--json").json
    assert run("cache", "export", "out.h5", "--dataset", "photos").code == 0
    assert run("cache", "import", "out.h5", "--cache", "other").code == 0
    assert run("fit", "--cache", "other", "--json").json["accuracy"] == fitted["accuracy"]
    moved = photos.rename(tmp_path / "moved")
    again = run("extract", moved, "--cache", "other", "--json", network=True).json
    assert (again["computed"], again["reused"]) == (0, 30)
    assert run("cache", "verify", "--cache", "other").code == 0


def test_an_import_stays_valid_and_used_without_the_pictures(run: Run, toy: Cache, tmp_path: Path) -> None:
    run("cache", "export", "out.npz")
    run("cache", "import", "out.npz", "--cache", "other")
    verified = run("cache", "verify", "--cache", "other", "--json").json
    (row,) = verified["datasets"]
    assert (row["valid"], row["stale"], row["missing"], row["dataset"]) == (41, 0, 0, str(tmp_path / "out.npz"))
    assert "nothing to delete" in run("cache", "gc", "--yes", "--cache", "other").out


def test_export_takes_the_named_dataset_or_the_one_last_extracted(run: Run, toy: Cache, tmp_path: Path) -> None:
    root = str(tmp_path / "second")
    second = toy.runs.start("extract", root, SPEC.fingerprint)
    toy.catalog.save_dataset(root, [Row(Item(f"{root}/x.jpg", "x"), make_rows(3, 1)[0][0], None)], second.id)
    toy.runs.finish(second, {"backbone": "toy", "weights": "toy"})
    assert run("cache", "export", "last.npz", "--json").json["rows"] == 1
    assert run("cache", "export", "named.npz", "--dataset", "/p", "--json").json["rows"] == 41
    refused = run("cache", "export", "none.npz", "--dataset", "nowhere")
    assert (refused.code, refused.out, refused.err.count("\n")) == (1, "", 1)
    assert str(tmp_path / "nowhere") in refused.err
    assert not (tmp_path / "none.npz").exists()


def text_file(file: Path) -> None:
    file.write_text("not an export\n" * 100)


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def removed(file: Path) -> None:
    file.unlink()


def folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def foreign(file: Path) -> None:
    if file.suffix == ".npz":
        with file.open("wb") as stream:
            np.savez(stream, features=np.zeros((2, 2)))
    elif file.suffix == ".h5":
        with h5py.File(file, "w") as stream:
            stream["features"] = np.zeros((2, 2))
    else:
        pyarrow.parquet.write_table(pyarrow.table({"features": [1.0, 2.0]}), file)


def pickled(file: Path) -> None:
    """Put objects into it that run code when they are read; nothing but .npz can hold such."""
    with file.open("wb") as stream:
        np.savez(stream, note=np.array([print], dtype=object), features=np.zeros((2, 2)))


def other_spec(file: Path) -> None:
    """Make the fingerprint that the file names, and the features', another than its spec has."""
    features = replace(read(file).features, fingerprint=HALF.fingerprint)
    write(file, Exchange(features, SPEC, "toy"))


def other_dtype(file: Path) -> None:
    whole = read(file)
    write(file, Exchange(replace(whole.features, X=whole.features.X.astype(np.float16)), SPEC, "toy"))


def longer_vectors(file: Path) -> None:
    whole = read(file)
    write(file, Exchange(replace(whole.features, X=np.hstack([whole.features.X] * 2)), SPEC, "toy"))


@each_suffix
@pytest.mark.parametrize(
    "damage", [text_file, cut, removed, folder, foreign, pickled, other_spec, other_dtype, longer_vectors]
)
def test_a_file_that_cannot_be_imported_is_one_line_and_adds_nothing(
    run: Run, toy: Cache, tmp_path: Path, suffix: str, damage: Callable[[Path], None]
) -> None:
    file = tmp_path / f"out{suffix}"
    run("cache", "export", file)
    damage(file)
    before, listed = tree(tmp_path / "cache" / "segments"), toy.catalog.roots()
    result = run("cache", "import", file)
    assert (result.code, result.out, result.err.count("\n")) == (1, "", 1)
    assert result.err.startswith("featcache: ")
    assert str(file) in result.err
    assert tree(tmp_path / "cache" / "segments") == before
    assert toy.catalog.roots() == listed


@pytest.mark.parametrize("damage", [cut, longer_vectors])
def test_after_a_refused_import_fit_takes_the_dataset_before_only_by_name(
    run: Run, toy: Cache, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    run("cache", "export", "out.npz")
    damage(tmp_path / "out.npz")
    assert run("cache", "import", "out.npz").code == 1
    refused = run("fit")
    assert (refused.code, refused.out) == (1, "")
    assert f"the import of {tmp_path / 'out.npz'}, asked for" in refused.err
    assert "name the dataset that is meant (before it: /p, " in refused.err
    result = run("fit", "/p", "--json")
    assert result.code == 0, result.err
    assert result.json["dataset"] == "/p"


def test_a_wrong_suffix_is_refused_both_ways(run: Run, toy: Cache, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("path,label\n")
    for words in (["export", "out.csv"], ["import", "in.csv"], ["export", "out"]):
        result = run("cache", *words)
        assert (result.code, result.out, result.err.count("\n")) == (1, "", 1)
        assert ".npz, .parquet, .h5" in result.err
    assert not (tmp_path / "out.csv").exists()
    write(tmp_path / "UPPER.NPZ", content(SPEC))
    assert run("cache", "import", "UPPER.NPZ", "--cache", "other").code == 0


def test_without_pyarrow_the_hint_names_what_to_install(
    run: Run, toy: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "in.parquet", content(SPEC))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for words in (["export", "out.parquet"], ["import", "in.parquet"]):
        result = run("cache", *words)
        assert (result.code, result.out, result.err.count("\n")) == (1, "", 1)
        assert "pip install 'featcache[parquet]'" in result.err
    assert not (tmp_path / "out.parquet").exists()
    assert run("cache", "export", "out.npz", "--dataset", "/p").code == 0


def test_an_export_of_a_missing_vector_or_from_no_cache_is_refused(run: Run, toy: Cache, tmp_path: Path) -> None:
    shutil.rmtree(toy.store(SPEC.fingerprint).folder)
    toy.features(SPEC)
    for words in (["out.npz"], ["out.npz", "--cache", "none"]):
        result = run("cache", "export", *words)
        assert (result.code, result.out, result.err.count("\n")) == (1, "", 1)
        assert "featcache extract" in result.err
    assert not (tmp_path / "out.npz").exists()
    assert not (tmp_path / "none").exists()
