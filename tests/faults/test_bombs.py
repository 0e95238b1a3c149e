"""Small files that unpack to far more than they are, and names that no cache can keep apart: refused in one line."""

from __future__ import annotations

import base64
import io
import json
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from store_rows import SPEC, make_rows

from featcache.decode import look
from featcache.discover import discover
from featcache.errors import DatasetError, ExchangeError, FeatcacheError, PictureError
from featcache.records import Features
from featcache.sources import look_again, read
from featcache.store.exchange import Exchange, packed
from featcache.store.exchange import read as read_exchange

BOUNDED = """
import resource, sys
from pathlib import Path
import h5py, numpy, pyarrow.parquet, pyarrow.compute
from featcache.discover import discover
from featcache.errors import FeatcacheError
from featcache.store.exchange import read
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + int(sys.argv[3]) * 2**20,) * 2)
try:
    {"import": read, "extract": discover}[sys.argv[1]](Path(sys.argv[2]))
except FeatcacheError as error:
    print(error)
"""
"""Reads a file within so many MiB more than it has when all is loaded."""


def refused(what: str, path: Path, mebibytes: int = 1500) -> str:
    """Return in one line why a file is refused, by a process with little memory and time."""
    command = [sys.executable, "-c", BOUNDED, what, str(path), str(mebibytes)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("\n") == 1
    return done.stdout


def exported(path: Path, labels: tuple[str, ...] = ("a", "b", "a", "b")) -> Path:
    keys, vectors = make_rows(0, 4)
    texts, splits = np.array(labels, np.str_), np.array([""] * 4, np.str_)
    features = Features(vectors, texts, tuple("wxyz"), splits, tuple(keys), SPEC.fingerprint)
    path.write_bytes(packed(path, Exchange(features, SPEC, "w")))
    return path


def npy(array: np.ndarray[Any, Any]) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, array, allow_pickle=False)
    return out.getvalue()


def replaced(path: Path, name: str, data: bytes, method: int = zipfile.ZIP_STORED) -> None:
    """Put other bytes into an exported .npz, in place of one of its arrays."""
    with zipfile.ZipFile(path) as file:
        members = {each: file.read(each) for each in file.namelist()}
    with zipfile.ZipFile(path, "w") as file:
        for each, content in members.items():
            file.writestr(each, data if each == name else content, method if each == name else zipfile.ZIP_STORED)


@cache
def deflated() -> bytes:
    """Return what unpacks to 704 MiB."""
    press = zlib.compressobj(1)
    return b"".join(press.compress(bytes(2**24)) for _ in range(44)) + press.flush()


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_an_export_in_hdf5_is_not_unpacked(times: int, tmp_path: Path) -> None:
    path = exported(tmp_path / "x.h5")
    bomb = deflated()
    for _ in range(times - 1):
        bomb = zlib.compress(bomb)
    with h5py.File(path, "r+") as file:
        shape = file["features"].shape
        del file["features"]
        made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        made.set_chunk(shape)
        for _ in range(times):
            made.set_deflate(1)
        space = h5py.h5s.create_simple(shape)
        found = h5py.h5d.create(file.id, b"features", h5py.h5t.IEEE_F32LE, space, made)
        found.write_direct_chunk((0, 0), bomb)
    assert "the data set 'features' is packed, or not all there" in refused("import", path, 600)


def test_an_export_in_hdf5_has_a_place_for_each_of_its_bytes(tmp_path: Path) -> None:
    path = exported(tmp_path / "x.h5")
    with h5py.File(path, "r+") as file:
        del file["features"]
        file.create_dataset("features", (4, 10**7), np.float32)  # never written: it takes no room
    with pytest.raises(ExchangeError, match="'features' is packed, or not all there"):
        read_exchange(path)


def test_an_export_of_numpy_is_unpacked_with_deflate_alone(tmp_path: Path) -> None:
    path = exported(tmp_path / "x.npz")
    with zipfile.ZipFile(path) as file:
        vectors = file.read("features.npy")
    replaced(path, "features.npy", vectors, zipfile.ZIP_DEFLATED)
    assert len(read_exchange(path).features.X) == 4  # as numpy.savez_compressed writes it
    replaced(path, "features.npy", bytes(2**26), zipfile.ZIP_DEFLATED)
    assert "packed, and far more than fit into it" in refused("import", path)
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        replaced(path, "features.npy", vectors, method)
        with pytest.raises(ExchangeError, match=r"features\.npy is packed in a way that is not read"):
            read_exchange(path)


def test_the_head_of_an_array_is_not_believed(tmp_path: Path) -> None:
    path, head = exported(tmp_path / "x.npz"), io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": (10**12, 8)})
    replaced(path, "features.npy", head.getvalue() + bytes(1000))
    with pytest.raises(ExchangeError, match="cannot reshape array of size 250 into shape"):
        read_exchange(path)
    path.write_bytes(head.getvalue() + bytes(1000))
    with pytest.raises(ExchangeError, match="File is not a zip file"):
        read_exchange(path)


def test_the_texts_of_an_export_in_parquet_are_bounded(tmp_path: Path) -> None:
    path = exported(tmp_path / "x.parquet")
    schema = pq.read_schema(path)
    rows, dim = 2000, schema.field("features").type.list_size
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(rows * dim, np.float32)), dim)
    columns = {name: repeated(10**6, rows) for name in ("path", "label", "split")}
    columns |= {"key": pa.array([bytes(32)] * rows, pa.binary(32)), "features": vectors}
    noted = {**(schema.metadata or {}), "ARROW:schema": base64.b64encode(schema.serialize().to_pybytes())}
    write_small(pa.table(columns), path, noted)
    assert "far more than fit into it" in refused("import", path)


def repeated(length: int, times: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(times, np.int32)), pa.array(["x" * length]))


def write_small(table: pa.Table, path: Path, noted: dict[str | bytes, bytes] | None = None) -> None:
    """Write texts of which Parquet keeps one, and which are read as what they are."""
    options: dict[str, Any] = {"compression": "zstd", "store_schema": False, "dictionary_pagesize_limit": 2**28}
    with pq.ParquetWriter(path, table.schema, **options) as file:
        file.write_table(table)
        file.add_key_value_metadata(noted or {})
    assert path.stat().st_size < 10**6


@pytest.mark.parametrize("suffix", ["zip", "tar"])
def test_the_name_of_a_folder_is_a_label_as_any_other(suffix: str, tmp_path: Path) -> None:
    for length, split in ((1000, ""), (1001, ""), (1001, "train/")):
        names = [f"{split}{letter * length}/0.png" for letter in "ab"]
        path = tmp_path / f"x.{suffix}"
        if suffix == "zip":
            with zipfile.ZipFile(path, "w") as file:
                for name in names:
                    file.writestr(name, b"x")
        else:
            with tarfile.open(path, "w") as tar:
                for name in names:
                    tar.addfile(tarfile.TarInfo(name))
        if length == 1000:
            assert [item.label for item in discover(path).items] == ["a" * 1000, "b" * 1000]
            continue
        with pytest.raises(
            DatasetError, match=r"the folder 'aaa.* cannot be a label, it has 1,001 characters, and at most"
        ):
            discover(path)


def test_the_label_of_a_sample_stands_in_a_small_file(tmp_path: Path) -> None:
    for longer in (0, 1):
        text = json.dumps({"label": "a", "more": ""})
        files = {"0.png": b"x", "0.json": text.replace('""', f'"{"x" * (2**20 - len(text) + longer)}"').encode()}
        with tarfile.open(tmp_path / "x.tar", "w") as tar:
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        if longer:
            with pytest.raises(DatasetError, match=r"1,048,577 characters, and at most 1,048,576 are taken"):
                discover(tmp_path / "x.tar", columns={"label": "json.label"})
        else:
            found = discover(tmp_path / "x.tar", columns={"label": "json.label"})
            assert [item.label for item in found.items] == ["a"]


def tar_header(kind: bytes, body: bytes = b"") -> bytes:
    info = tarfile.TarInfo("a/0.png")
    info.type, info.size = kind, len(body)
    return info.tobuf(tarfile.USTAR_FORMAT) + body.ljust(-(-len(body) // 512) * 512, b"\0")


def noted_in_tar(names: range) -> bytes:
    return b"".join(b"%d %08x=\n" % (13, name) for name in names)


def test_what_a_tar_says_of_all_its_files_is_little(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    file = tar_header(b"x", b"6 a=b\n") + tar_header(b"0", b"x")
    path.write_bytes(tar_header(b"g", noted_in_tar(range(100))) + 2 * file + bytes(1024))
    assert len(discover(path).items) == 1  # of one name, so the last counts
    path.write_bytes(tar_header(b"g", noted_in_tar(range(101))) + file * 2 + bytes(1024))
    with pytest.raises(DatasetError, match="101 names in headers for all of its files"):
        discover(path)
    many = [tar_header(b"g", noted_in_tar(range(at, at + 75_000))) for at in range(0, 10**6, 75_000)]
    path.write_bytes(b"".join(many) + file * 20_000 + bytes(1024))
    assert "bytes before one file" in refused("extract", path, 300)
    path.write_bytes(file + tar_header(b"x", noted_in_tar(range(75_000))) * 200 + file + bytes(1024))
    assert "bytes before one file" in refused("extract", path, 300)


def pictures(folder: Path, count: int) -> list[bytes]:
    found = []
    for at in range(count):
        Image.new("RGB", (9, 9), (at, 0, 0)).save(folder / f"{at}.png")
        found.append((folder / f"{at}.png").read_bytes())
    return found


@pytest.mark.parametrize("name", ["label", "split", "path"])
def test_the_texts_of_a_table_are_bounded(name: str, tmp_path: Path) -> None:
    columns = {"path": ["0.png"] * 5000, "label": ["a"] * 5000, "split": ["train"] * 5000}
    write_small(pa.table(columns | {name: repeated(5 * 10**6, 5000)}), tmp_path / "x.parquet")
    said = refused("extract", tmp_path / "x.parquet")
    assert f"the column '{name}' cannot be used: it has a text of 5,000,000 bytes" in said


def test_a_table_has_not_more_rows_than_bytes(tmp_path: Path) -> None:
    table = pa.table({"image": pa.nulls(30_000_000, pa.binary()), "label": pa.nulls(30_000_000, pa.string())})
    pq.write_table(table, tmp_path / "x.parquet")
    assert "has 30,000,000 rows in " in refused("extract", tmp_path / "x.parquet")


def table_noted(folder: Path, features: Any) -> Path:
    rows = pa.table({"image": pa.array(pictures(folder, 2), pa.binary()), "label": [0, 1]})
    noted = json.dumps({"info": {"features": features}})
    pq.write_table(rows.replace_schema_metadata({"huggingface": noted}), folder / "x.parquet")
    return folder / "x.parquet"


NAMES: list[tuple[Any, str]] = [
    (5, "they are no list"),
    ("ab", "they are no list"),
    ([1, {"a": 2}], "1 is no text"),
    (["", "b"], "'' is no text"),
    (["\ud800", "b"], "half a character"),
    (["ants\0", "ants"], "a NUL character"),
    (["a", "a"], "two classes are called 'a'"),
    (["a" * 5000, "b"], "5,000 characters"),
]


@pytest.mark.parametrize(("names", "said"), NAMES)
def test_names_of_classes_are_different_texts(names: Any, said: str, tmp_path: Path) -> None:
    path = table_noted(tmp_path, {"label": {"_type": "ClassLabel", "names": names}})
    with pytest.raises(DatasetError, match=f"column 'label': the names of its classes cannot be used, .*{said}"):
        discover(path)


@pytest.mark.parametrize(
    ("features", "said"),
    [([1, 2], "is broken: its features are no table"), ({"nope": {"_type": "Image"}}, "has no column 'nope'")],
)
def test_what_is_noted_of_columns_is_checked(features: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=said):
        discover(table_noted(tmp_path, features))


class Given:
    """A dataset of two pictures in Python."""

    def __init__(self, classes: list[str], targets: list[Any]) -> None:
        self.classes, self.targets = classes, targets

    def __len__(self) -> int:
        return 2

    def __getitem__(self, at: int) -> tuple[Image.Image, Any]:
        return Image.new("RGB", (9, 9)), self.targets[at]


def as_csv(folder: Path, label: str) -> object:
    (folder / "x.csv").write_text(f"path,label\n0.png,{label}\n1.png,ants\n", errors="surrogatepass")
    return folder / "x.csv"


def as_parquet(folder: Path, label: str) -> object:
    data = label.encode("utf-8", "surrogatepass")
    pq.write_table(pa.table({"path": ["0.png", "1.png"], "label": pa.array([data, b"ants"])}), folder / "x.parquet")
    return folder / "x.parquet"


MAKERS: dict[str, Callable[[Path, str], object]] = {
    "csv": as_csv,
    "parquet": as_parquet,
    "list": lambda folder, label: [(str(folder / "0.png"), label), (str(folder / "1.png"), "ants")],
    "object": lambda _, label: Given([], [label, "ants"]),
    "classes": lambda _, label: Given([label, "ants"], [0, 1]),
}


@pytest.mark.parametrize("label", ["ants\0", "\0", "a" * 5000])
@pytest.mark.parametrize("kind", MAKERS)
def test_a_label_that_cannot_be_kept_apart_is_refused(kind: str, label: str, tmp_path: Path) -> None:
    pictures(tmp_path, 2)
    with pytest.raises(DatasetError, match=r"a NUL character|5,000 (characters|bytes)"):
        discover(MAKERS[kind](tmp_path, label))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["list", "object", "classes"])
def test_half_a_character_is_refused(kind: str, tmp_path: Path) -> None:
    pictures(tmp_path, 2)
    with pytest.raises(DatasetError, match="half a character"):
        discover(MAKERS[kind](tmp_path, "\ud800"))  # type: ignore[arg-type]


def test_a_path_that_no_file_can_have_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("path,label\na\0.png,ants\n")
    for source in (tmp_path / "x.csv", [f"{tmp_path}/\0.png"], [f"{tmp_path}/\ud800.png"], f"{tmp_path}/\0"):
        with pytest.raises(DatasetError, match="no file can have the path"):
            discover(source)
    rows = pa.array([{"bytes": None, "path": "a\0.png"}])
    pq.write_table(pa.table({"image": rows, "label": ["a"]}), tmp_path / "x.parquet")
    look_again()
    with pytest.raises(PictureError, match="no file can have the path"):
        read(discover(tmp_path / "x.parquet").items[0].path)


@pytest.mark.parametrize("suffix", [".npz", ".h5", ".parquet"])
def test_a_label_of_an_export_is_kept_apart_from_others(suffix: str, tmp_path: Path) -> None:
    path = exported(tmp_path / f"x{suffix}", ("a\0b", "b", "a", "b"))
    with pytest.raises(ExchangeError, match=r"'a.x00b' that cannot be kept: it has a NUL"):
        read_exchange(path)


def test_a_nul_at_the_end_of_a_label_in_parquet_is_not_lost(tmp_path: Path) -> None:
    path = exported(tmp_path / "x.parquet")
    table = pq.read_table(path)
    at = table.schema.get_field_index("label")
    pq.write_table(table.set_column(at, "label", pa.array(["a\0", "a", "b", "b"])), path)
    with pytest.raises(ExchangeError, match="cannot be kept: it has a NUL"):
        read_exchange(path)


@pytest.mark.parametrize("name", ["../x.arrow", "a\0.arrow", 5, None])
def test_a_saved_dataset_names_only_files_in_its_folder(name: Any, tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    with pytest.raises(FeatcacheError, match="is no whole dataset of `save_to_disk`"):
        discover(tmp_path / "saved")


@pytest.mark.parametrize("compression", [7, 8, 32773])
def test_tiles_of_a_tiff_lie_over_each_other_only_so_far(compression: int) -> None:
    side, junk = 512, bytes(2**20)
    number = (side // 16) ** 2
    tags = {256: side, 257: side, 258: 8, 259: compression, 262: 1, 277: 1, 284: 1, 322: 16, 323: 16}
    at = 8 + 2 + (len(tags) + 2) * 12 + 4
    entries = [struct.pack("<HHLL", tag, 4, 1, value) for tag, value in tags.items()]
    entries += [struct.pack("<HHLL", 324, 4, number, at), struct.pack("<HHLL", 325, 4, number, at + 4 * number)]
    data = b"II*\0" + struct.pack("<LH", 8, len(entries)) + b"".join(entries) + bytes(4)
    data += struct.pack("<L", at + 8 * number) * number + struct.pack("<L", len(junk)) * number + junk
    with pytest.raises(PictureError, match="1,024 strips or tiles of 1,073,741,824 bytes in 1,0"):
        look(data)
