"""Pictures in archives, tables and on other file systems: what is read of hostile, broken and changing ones."""

from __future__ import annotations

import hashlib
import lzma
import os
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from input_kinds import member

import featcache.sources.containers
from featcache.discover import discover
from featcache.errors import DatasetError, PictureError
from featcache.records import Dataset
from featcache.sources import ACCESS, read

HOSTILE = ["../up.jpg", "a/../../up.jpg", "/etc/passwd", "a\\..\\..\\up.jpg", "a//b.jpg", "./a.jpg"]
HOSTILE += ["a/" * 200 + "b.jpg"]
ODD = ["a/b::c.jpg", "a/50%.jpg", "a/two words.jpg", "a/line\nend.jpg", "a/café.jpg", "a/cafe\u0301.jpg", "a/日本.jpg"]


def write_zip(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo("placeholder")
            info.filename, info.compress_type = name, method
            archive.writestr(info, data)
    return path


def write_tar(path: Path, files: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form, encoding="utf-8") as archive:
        for name, data in files.items():
            member(archive, name, data)
    return path


def age(path: Path, ns: int = 10**18) -> Path:
    """Give a file an old time of modification."""
    os.utime(path, ns=(ns, ns))
    return path


def contents(dataset: Dataset) -> dict[str, bytes]:
    """Read all pictures, and check what is said of them; return them by the last part of the name inside."""
    found = {}
    for item in dataset.items:
        data, key, _ = (dataset.access or ACCESS).read(item.path)
        assert key == hashlib.sha256(data).digest()
        found[item.path.split("://", 1)[1].rpartition("::")[0]] = data
    return found


def fails(dataset: Dataset) -> str:
    """Return why the only picture cannot be read."""
    (item,) = dataset.items
    with pytest.raises(PictureError) as failure:
        read(item.path)
    assert "\n" not in str(failure.value)
    return str(failure.value)


# --- names ---

WRITERS = {"zip": write_zip, "tar": write_tar}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_leaves_the_archive_is_no_picture(kind: str, name: str, tmp_path: Path) -> None:
    if (kind, name) == ("tar", "./a.jpg"):
        name = "a/./b.jpg"
    (tmp_path / "up.jpg").write_bytes(b"outside")
    (tmp_path / "in").mkdir()
    path = WRITERS[kind](tmp_path / "in" / f"x.{kind}", {"a/ok.jpg": b"ok", name: b"bad"})
    found = discover(path)
    assert contents(found) == {"a/ok.jpg": b"ok"}
    assert any("1 entry of the archive left out" in notice for notice in found.notices)


@pytest.mark.parametrize("write", [*WRITERS.values(), lambda p, f: write_tar(p, f, tarfile.GNU_FORMAT)])
def test_odd_names_are_read(write: Callable[..., Path], tmp_path: Path) -> None:
    files = {name: name.encode() for name in [*ODD, "a/" + "n" * 240 + ".jpg", "/".join(["d" * 90] * 3) + "/e.jpg"]}
    assert contents(discover(write(tmp_path / f"x.{'zip' if write is write_zip else 'tar'}", files))) == files


def test_names_that_are_no_text_are_read_from_a_tar(tmp_path: Path) -> None:
    files = {"a/\udcff\udcfe.jpg": b"1"}
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as archive:
        member(archive, "a/\udcff\udcfe.jpg", b"1")
    assert contents(discover(path)) == files


def test_an_archive_whose_own_name_would_make_addresses_ambiguous_is_refused(tmp_path: Path) -> None:
    write_zip(tmp_path / "a::b.zip", {"a/b.jpg": b"1"})
    with pytest.raises(DatasetError, match="twice: rename it"):
        discover(tmp_path / "a::b.zip")
    (tmp_path / "c::d").mkdir()
    write_tar(tmp_path / "c::d" / "0.tar", {"1.jpg": b"1", "1.cls": b"a"})
    with pytest.raises(DatasetError, match="twice: rename it"):
        discover(tmp_path / "c::d")


def test_links_devices_and_sparse_members_of_a_tar_are_left_out_and_hard_links_are_files(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        member(archive, "a/file.jpg", b"file")
        member(archive, "a/hard.jpg", type=tarfile.LNKTYPE, linkname="a/file.jpg")
        member(archive, "a/outside.jpg", type=tarfile.LNKTYPE, linkname="/etc/passwd")
        member(archive, "a/soft.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        member(archive, "a/fifo.jpg", type=tarfile.FIFOTYPE)
        member(archive, "a/device.jpg", type=tarfile.CHRTYPE)
        member(archive, "a/sparse.jpg", pax_headers={"GNU.sparse.map": "0,0", "GNU.sparse.size": "9" * 12})
    found = discover(path)
    assert contents(found) == {"a/file.jpg": b"file", "a/hard.jpg": b"file"}
    assert "5 entries of the archive left out" in found.notices[0]


def test_a_link_in_a_zip_is_left_out(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a/ok.jpg", b"ok")
        link = zipfile.ZipInfo("a/link.jpg")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    found = discover(tmp_path / "x.zip")
    assert contents(found) == {"a/ok.jpg": b"ok"}
    assert "a/link.jpg" in found.notices[0]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", WRITERS)
def test_of_a_name_given_twice_the_last_counts_as_it_does_when_it_is_unpacked(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/1.jpg", b"old")
            archive.writestr("a/1.jpg", b"new")
    else:
        with tarfile.open(path, "w") as tar:
            member(tar, "a/1.jpg", b"old")
            member(tar, "a/1.jpg", b"new")
    found = discover(path)
    assert contents(found) == {"a/1.jpg": b"new"}
    assert "1 name more than once in the archive, the last counts: a/1.jpg" in found.notices


def test_litter_and_the_folder_around_all_others_are_no_classes(tmp_path: Path) -> None:
    names = ["data/train/a/1.jpg", "data/test/a/2.jpg", "__MACOSX/data/train/a/._1.jpg", "data/train/a/.hidden.jpg"]
    found = discover(write_zip(tmp_path / "x.zip", dict.fromkeys(names, b"1")))
    assert [(item.label, item.split) for item in found.items] == [("a", "test"), ("a", "train")]
    assert found.notices == ("the folder 'data', which holds all pictures, is taken as the dataset",)


@pytest.mark.parametrize("kind", WRITERS)
def test_an_empty_archive_holds_no_files(kind: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="holds no files"):
        discover(WRITERS[kind](tmp_path / f"x.{kind}", {}))
    with pytest.raises(DatasetError, match=r"holds no files \(1 entry of the archive left out"):
        discover(WRITERS[kind](tmp_path / f"y.{kind}", {"../a.jpg": b"1"}))


# --- broken ---


@pytest.fixture(scope="module")
def whole_tar(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("tar") / "x.tar"
    files = {"a/1.jpg": b"1" * 700, "b/" + "long" * 60 + ".jpg": b"2" * 512, "b/3.jpg": b"", "b/4.jpg": b"4"}
    return write_tar(path, files).read_bytes()


def test_a_tar_cut_anywhere_is_never_a_smaller_dataset(whole_tar: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(whole_tar)
    assert len(discover(path).items) == 4
    end = len(whole_tar.rstrip(b"\0")) + 511 & ~511  # the last block with anything in it
    refused = set()
    for size in sorted({*range(0, end + 512, 512), *range(100, end + 512, 511)}):
        path.write_bytes(whole_tar[:size])
        with pytest.raises(DatasetError, match=r"cut short|broken") as failure:
            discover(path)
        refused.add(str(failure.value))
    assert any("after 3 whole files" in said for said in refused)
    for size in range(end + 512, len(whole_tar) + 1, 512):
        path.write_bytes(whole_tar[:size])
        assert len(discover(path).items) == 4


def test_a_tar_with_a_broken_header_in_it_is_refused(whole_tar: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    for at in range(0, len(whole_tar), 512):
        if whole_tar[at + 257 : at + 262] == b"ustar":
            path.write_bytes(whole_tar[: at + 148] + b"\7" * 8 + whole_tar[at + 156 :])
            with pytest.raises(DatasetError, match=r"cut short|broken"):
                discover(path)


def test_tars_put_into_one_file_are_refused(whole_tar: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(whole_tar + whole_tar)
    with pytest.raises(DatasetError, match="goes on behind its end after 4 whole files"):
        discover(tmp_path / "x.tar")


def test_a_tar_for_which_room_was_only_made_is_refused_soon(whole_tar: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(whole_tar)
    os.truncate(path, len(whole_tar) + 2**20)
    assert len(discover(path).items) == 4
    os.truncate(path, 2**40)  # a terabyte that is not there
    start = time.perf_counter()
    with pytest.raises(DatasetError, match="nothing but zeros for 67,108,864 bytes behind its end after 4 whole files"):
        discover(path)
    assert time.perf_counter() - start < 30


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x.tgz", "x.tar.xz", "x.tar.bz2"])
def test_a_compressed_tar_is_refused_whatever_it_is_called(name: str, whole_tar: bytes, tmp_path: Path) -> None:
    import bz2
    import gzip

    pack = {"xz": lzma.compress, "bz2": bz2.compress}.get(name.rpartition(".")[2], gzip.compress)
    (tmp_path / name).write_bytes(pack(whole_tar))
    with pytest.raises(DatasetError, match=r"is a compressed tar.*decompress it once"):
        discover(tmp_path / name)


def header(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    """Return the header of a tar's member with a size that no writer would put there."""
    block = bytearray(512)
    block[:100] = name.ljust(100, b"\0")
    block[100:136] = b"0000644\0" + b"0000000\0" * 2 + size.ljust(12, b"\0")
    block[136:157] = b"00000000000\0" + b" " * 8 + kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    "blocks",
    [
        [header(b"a/1.jpg", b"\xff" * 12), bytes(1024)],
        [header(b"a/1.jpg", b"0"), header(b"a/2.jpg", b"\xff" * 10 + b"\xf8\x00"), bytes(1024)],
        [header(b"a/1.jpg", b"\x80" + b"\x7f" * 11), bytes(1024)],
        [header(b"x", b"77777777777", b"L"), bytes(2048)],
        [header(b"x", b"\x80" + b"\x00" * 6 + b"\x7f" * 5, b"x"), bytes(2048)],
        [header(b"x", b"\xff" * 12, b"x"), bytes(2048)],
        [(header(b"x", b"1", b"L") + b"n".ljust(512, b"\0")) * 3000, bytes(1024)],
    ],
    ids=["negative", "backwards", "huge", "long name", "pax", "negative pax", "a name of a name of ..."],
)
def test_a_tar_with_sizes_that_cannot_be_is_refused_at_once(blocks: list[bytes], tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(b"".join(blocks))
    os.truncate(path, 3 * 2**33)  # a hole: reading as much as is said would fill the memory
    with pytest.raises(DatasetError, match=r"cut short|broken|still being written"):
        discover(path)


def test_a_zip_cut_short_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", {"a/1.jpg": os.urandom(900), "b/2.jpg": os.urandom(900)})
    whole = path.read_bytes()
    for size in range(0, len(whole), 97):
        path.write_bytes(whole[:size])
        with pytest.raises(DatasetError, match="no whole zip archive"):
            discover(path)
    path.write_bytes(b"prefix" + whole)
    assert len(contents(discover(path))) == 2


def test_no_damage_to_a_zip_ends_in_anything_but_a_failure_or_the_picture(tmp_path: Path) -> None:
    files = {"a/1.jpg": b"picture" * 9}
    path = tmp_path / "x.zip"
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        whole = write_zip(path, files, method).read_bytes()
        for at in range(len(whole)):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
            try:
                found = discover(path)
                assert all(read(item.path)[0] == files["a/1.jpg"] for item in found.items)
            except (DatasetError, PictureError):
                continue


def test_an_encrypted_zip_says_so(tmp_path: Path) -> None:
    whole = bytearray(write_zip(tmp_path / "x.zip", {"a/1.jpg": b"1"}).read_bytes())
    whole[6] |= 1
    whole[whole.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "x.zip").write_bytes(whole)
    assert "encrypted" in fails(discover(tmp_path / "x.zip"))


@pytest.mark.parametrize(("method", "name"), [(zipfile.ZIP_BZIP2, "bzip2"), (zipfile.ZIP_LZMA, "lzma")])
def test_what_cannot_be_unpacked_in_bounds_is_refused(method: int, name: str, tmp_path: Path) -> None:
    said = fails(discover(write_zip(tmp_path / "x.zip", {"a/1.jpg": b"1"}, method)))
    assert said == f"compressed with {name} in {tmp_path / 'x.zip'}: pack it anew with deflate, or stored"


def test_a_zip64_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in ("a/1.jpg", "a/2.jpg"):
            with archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as file:
                file.write(name.encode())
    assert b"PK\6\6" in (tmp_path / "x.zip").read_bytes()
    assert contents(discover(tmp_path / "x.zip")) == {"a/1.jpg": b"a/1.jpg", "a/2.jpg": b"a/2.jpg"}


# --- bombs ---

PEAK = r"""
import re, sys
import featcache.sources.tables
from featcache.discover import discover
from featcache.errors import FeatcacheError
from featcache.sources import read
featcache.sources.tables.MOST_GROUP_BYTES = 2**26
def peak(): return int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) // 1024
for path in sys.argv[1:]:
    before = peak()
    try:
        (item, *_) = discover(path).items
        said = len(read(item.path)[0])
    except FeatcacheError as error:
        said = str(error)
    print(peak() - before, said, sep="|")
"""


def lying(path: Path, size: int) -> Path:
    """Let the only file of a zip be said to have another size."""
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.index(b"PK\3\4") + 22, size)
    struct.pack_into("<I", data, data.index(b"PK\1\2") + 24, size)
    path.write_bytes(data)
    return path


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_bombs_do_not_fill_the_memory(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    zeros = bytes(200 * 2**20)
    paths = [
        write_zip(tmp_path / "plain.zip", {"a/1.jpg": zeros}),
        lying(write_zip(tmp_path / "lying.zip", {"a/1.jpg": zeros}), 1000),
        tmp_path / "rows.parquet",
    ]
    rows = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), pa.array([zeros[: 2**22]], pa.binary()))
    pq.write_table(pa.table({"image": rows, "label": ["a"] * 1000}), paths[-1], compression="zstd", store_schema=False)
    assert max(path.stat().st_size for path in paths) < 2**20
    out = subprocess.run([sys.executable, "-c", PEAK, *paths], capture_output=True, text=True, check=True).stdout
    peaks, said = zip(*(line.split("|") for line in out.splitlines()), strict=True)
    assert "compressed 1,028 times, to be 209,715,200 bytes: a bomb, no photograph" in said[0]
    assert "Bad CRC-32" in said[1]
    assert "its rows are in groups of" in said[2]
    assert max(map(int, peaks[:2])) < 20, peaks
    assert int(peaks[2]) < 300, peaks


def test_files_that_overlap_or_are_archives_themselves_are_only_read_as_pictures(tmp_path: Path) -> None:
    inner = write_zip(tmp_path / "inner.zip", {"a/1.jpg": b"1"}).read_bytes()
    found = discover(write_zip(tmp_path / "x.zip", {f"a/{number}.zip": inner for number in range(3)}))
    assert list(contents(found).values()) == [inner] * 3
    assert {item.label for item in found.items} == {"a"}


# --- changes, threads ---


@pytest.mark.parametrize("kind", WRITERS)
def test_an_archive_that_is_replaced_is_read_anew(kind: str, tmp_path: Path) -> None:
    path = age(WRITERS[kind](tmp_path / f"x.{kind}", {"a/1.jpg": b"one", "a/2.jpg": b"two"}))
    item = discover(path).items[0]
    before = read(item.path)
    new = age(WRITERS[kind](tmp_path / f"new.{kind}", {"a/0.jpg": b"none", "a/1.jpg": b"ONE"}), 10**18 + 1)
    new.replace(path)
    after = read(item.path)
    assert (before[0], after[0]) == (b"one", b"ONE")
    assert before[2] != after[2] == ACCESS.stat(item.path)
    path.unlink()
    with pytest.raises(PictureError, match=f"no such folder, manifest or picture: {path}"):
        read(item.path)


@pytest.mark.parametrize("kind", WRITERS)
def test_an_archive_that_changes_under_the_reader_is_said(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = age(WRITERS[kind](tmp_path / f"x.{kind}", {"a/1.jpg": b"one"}))
    item = discover(path).items[0]
    stat = featcache.sources.containers.stat
    asked = []

    def meddling(address: str) -> Any:
        asked.append(address)
        if len(asked) == 2:  # between the reading and the second look
            with path.open("ab") as file:
                file.write(b"more")
        return stat(address)

    monkeypatch.setattr(featcache.sources.containers, "stat", meddling)
    with pytest.raises(PictureError, match="changed while it was read"):
        read(item.path)


def test_a_fresh_tar_that_changes_within_a_tick_is_listed_again_once_it_has_settled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tar(tmp_path / "x.tar", {"a/1.jpg": b"1" * 600, "a/2.jpg": b"two"})
    stat = path.stat()
    address = discover(path).items[1].path
    assert read(address)[0] == b"two"
    write_tar(path, {"a/2.jpg": b"TWO", "a/1.jpg": b"1" * 600})
    os.utime(path, ns=(stat.st_mtime_ns, stat.st_mtime_ns))  # as if the clock had not moved on
    assert path.stat().st_ino == stat.st_ino
    monkeypatch.setattr(featcache.sources.containers, "FRESH_NS", 0)
    assert read(address)[0] == b"TWO"


@pytest.mark.parametrize("kind", ["zip", "tar", "parquet"])
def test_many_threads_read_one_container(kind: str, tmp_path: Path) -> None:
    files = {f"a/{number:03}.jpg": os.urandom(3000) for number in range(60)}
    if kind == "parquet":
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        path = tmp_path / "x.parquet"
        pq.write_table(pa.table({"image": list(files.values()), "label": ["a"] * 60}), path, row_group_size=7)
    else:
        path = WRITERS[kind](tmp_path / f"x.{kind}", files)
    addresses = [item.path for item in discover(path).items]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda address: read(address)[0], addresses * 3))
    assert found == list(files.values()) * 3


def test_more_containers_are_read_than_are_kept_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(featcache.sources.containers, "MOST_OPEN", 3)
    (tmp_path / "in").mkdir()
    for number in range(9):
        write_tar(tmp_path / "in" / f"{number}.tar", {"1.jpg": b"%d" % number, "1.cls": b"a"})
    items = discover(tmp_path / "in").items
    opened = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda item: read(item.path)[0], [*items, *reversed(items)]))
    assert found == [b"%d" % number for number in (*range(9), *reversed(range(9)))]
    if opened:
        assert len(os.listdir("/proc/self/fd")) <= opened + 3


def test_a_fifo_called_zip_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.zip")
    with pytest.raises(DatasetError, match="not a regular file"):
        discover(tmp_path / "x.zip")


# --- tables ---


def write_parquet(path: Path, **columns: Any) -> Path:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table(columns), path)
    return path
