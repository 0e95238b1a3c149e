"""Pictures, lists and addresses that somebody made to run a program, to reach further, or to have no end."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import shutil
import signal
import socketserver
import stat
import struct
import subprocess
import sys
import tarfile
import threading
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pytest
from PIL import Image

from featcache.decode import FORMATS, as_file, decode
from featcache.discover import discover, lines
from featcache.errors import DatasetError, PictureError
from featcache.records import Preprocess
from featcache.sources import local, look_again, read, remote, table

if TYPE_CHECKING:
    from conftest import Result

SILENT_SECONDS = 20
STEPS = Preprocess(32, 32, "bilinear", (0, 0, 0), (1, 1, 1))
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n9 9 moveto showpage\n"


def iptc(content: bytes) -> bytes:
    """Return an IPTC container whose picture is `content`, as Pillow's plug-in for them reads it."""
    field = b"\x1c%b" + b"%b%b"
    parts = {(3, 20): b"\0\x09", (3, 30): b"\0\x09", (3, 60): b"\1\0", (3, 65): b"\0\1\0", (3, 120): b"\0\0\1\0"}
    head = b"".join(field % (bytes(tag), struct.pack(">H", len(text)), text) for tag, text in parts.items())
    return head + b"\x1c\x08\x0a" + struct.pack(">H", len(content)) + content


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a program called as Ghostscript is before all others, and return the file that it would make."""
    ran = tmp_path / "ran"
    for name in ("gs", "gswin64c", "gswin32c"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\ntouch {ran}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return ran


@pytest.mark.parametrize("content", [EPS, iptc(EPS), b"\xc5\xd0\xd3\xc6" + EPS], ids=["eps", "iptc", "dos eps"])
def test_no_picture_starts_a_program(content: bytes, programs: Path) -> None:
    code = "import sys; from PIL import Image; Image.open(sys.stdin.buffer).load()"
    subprocess.run([sys.executable, "-c", code], input=EPS, capture_output=True)
    assert programs.exists(), "Pillow alone does not start it: the test tries nothing"
    programs.unlink()
    with pytest.raises(PictureError):
        decode(content, STEPS)
    assert not programs.exists()


def test_a_picture_object_that_is_not_yet_decoded_starts_no_program(programs: Path) -> None:
    with pytest.raises(PictureError, match=r"^a picture of the format EPS is not decoded here: convert it$"):
        as_file(Image.open(io.BytesIO(EPS)))
    assert not programs.exists()


def test_only_formats_are_decoded_that_pillow_decodes_itself() -> None:
    Image.init()
    handed_on = {"EPS", "IPTC", "WMF", "MIC", "FPX", "BUFR", "GRIB", "HDF5", "MPEG", "PCD"}
    assert not handed_on & set(FORMATS)
    assert set(FORMATS) - {"AVIF", "MPO"} <= set(Image.OPEN)  # AVIF may not be built in, an MPO is opened as a JPEG


def jpeg(scans: int, edge: int = 500) -> bytes:
    """Return a progressive JPEG with about so many scans, all but the first few the same."""
    out = io.BytesIO()
    Image.fromarray(np.zeros((edge, edge), np.uint8)).save(out, "JPEG", progressive=True)
    data = out.getvalue()
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * (scans - data.count(b"\xff\xda")) + data[-2:]


def test_a_jpeg_of_thousands_of_scans_is_refused_at_once() -> None:
    start = time.perf_counter()
    with pytest.raises(PictureError, match=r"^[34],... scans of 250,000 pixels are made to take long"):
        decode(jpeg(4000), STEPS)
    assert time.perf_counter() - start < 0.5
    assert decode(jpeg(100), STEPS).shape == (32, 32, 3)


LARGE = """
import io, resource, sys
import numpy as np
from PIL import Image
from featcache.decode import decode
from featcache.records import Preprocess
out = io.BytesIO()
picture = Image.new(sys.argv[1], (9000, 9000))
picture.save(out, "PNG", compress_level=1)
need = len(picture.tobytes())
del picture
data = out.getvalue()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
limit = 2 * need + 81_000_000 * 3 + 400 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (before * 1024 + limit, -1))
decode(data, Preprocess(32, 32, "bilinear", (0, 0, 0), (1, 1, 1)))
print("decoded")
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["I;16", "LA"])
def test_a_large_picture_takes_little_more_memory_than_its_pixels(mode: str) -> None:
    done = subprocess.run([sys.executable, "-c", LARGE, mode], capture_output=True, text=True)
    assert done.stdout == "decoded\n", done.stderr


@pytest.mark.parametrize("mode", ["I;16", "LA", "P", "1", "CMYK", "RGBA"])
def test_a_picture_converted_in_bands_is_the_same(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (70, 90, 4), np.uint8)
    picture = Image.fromarray(noise.view(np.uint16)[..., 0]) if mode == "I;16" else Image.fromarray(noise).convert(mode)
    if mode == "P":
        picture.info["transparency"] = 7
    out = io.BytesIO()
    picture.save(out, "TIFF" if mode == "CMYK" else "PNG")
    whole = decode(out.getvalue(), STEPS)
    monkeypatch.setattr("featcache.decode.BAND_PIXELS", 1000)
    assert np.array_equal(decode(out.getvalue(), STEPS), whole)


def test_pillow_is_left_as_it_was(tmp_path: Path) -> None:
    code = (
        "from PIL import Image, ImageFile; import io, pillow_heif\n"
        "from featcache.decode import decode; from featcache.records import Preprocess\n"
        "out = io.BytesIO(); pillow_heif.from_pillow(Image.new('RGB', (64, 48))).save(out)\n"
        "decode(out.getvalue(), Preprocess(16, 16, 'bilinear', (0, 0, 0), (1, 1, 1)))\n"
        "print('HEIF' in Image.OPEN, Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)"
    )
    pytest.importorskip("pillow_heif")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "89478485", "False"]


def listed(folder: Path, address: str) -> Path:
    """Return a manifest with a picture at an address, and one beside it."""
    Image.new("RGB", (9, 9)).save(folder / "a.png")
    manifest = folder / "list.csv"
    manifest.write_text(f'path,label\na.png,a\n"{address}",b\n')
    return manifest


@pytest.mark.parametrize(
    "address",
    [
        "reference://x::{here}/evil.json",
        "simplecache::file://{here}/a.png",
        "s3://bucket/x::reference://y",
        "github://user:repo@main/a.png",
        "ssh://host/a.png",
        "local://{here}/a.png",
        "dir://x::file://{here}",
        "zip://a.png::reference://x",
        "tar://a.png::zip://b.tar::{here}/c.zip",
        "blockcache::http://127.0.0.1:9/a.png",
    ],
)
def test_an_address_of_another_kind_is_no_picture(address: str, tmp_path: Path) -> None:
    templates = {"a": "{{ cycler.__init__.__globals__.os.system('touch " + str(tmp_path / "ran") + "') }}"}
    refs = {"version": 1, "templates": templates, "gen": [], "refs": {"x": ["{{a}}"]}}
    (tmp_path / "evil.json").write_text(json.dumps(refs))
    manifest = listed(tmp_path, address.format(here=tmp_path))
    try:
        items = discover(manifest).items
    except DatasetError:
        items = ()
    for item in items[1:]:
        with pytest.raises(PictureError):
            read(item.path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["path", "file url", "list", "archive", "table"])
@pytest.mark.parametrize("what", ["/dev/zero", "fifo"])
def test_devices_and_fifos_are_refused_however_they_are_named(kind: str, what: str, tmp_path: Path) -> None:
    place = Path(what)
    if what == "fifo":
        place = tmp_path / "fifo"
        os.mkfifo(place)
    start = time.perf_counter()
    with pytest.raises((PictureError, DatasetError)):
        if kind == "path":
            read(str(place))
        elif kind == "file url":
            read(discover(f"file://{place}").items[0].path)
        elif kind == "list":
            read(discover(listed(tmp_path, f"FILE://{place}")).items[1].path)
        else:
            link = tmp_path / {"archive": "x.tar", "table": "x.parquet"}[kind]
            link.symlink_to(place)
            discover(link)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("endless", ["/proc/self/pagemap", "/proc/kmsg"])
def test_a_file_that_has_no_end_is_read_no_further_than_its_size(endless: str, tmp_path: Path) -> None:
    if not os.access(endless, os.R_OK) or not stat.S_ISREG(os.stat(endless).st_mode):
        pytest.skip("no such file on this system")
    with contextlib.suppress(PictureError):
        assert len(local.read(endless)[0]) <= os.stat(endless).st_size
    (tmp_path / "x.tar").symlink_to(endless)
    with pytest.raises(DatasetError):
        discover(tmp_path / "x.tar")


def test_a_list_of_one_endless_line_is_refused(tmp_path: Path) -> None:
    manifest = tmp_path / "list.csv"
    with manifest.open("wb") as file:
        file.write(b"path,label\n")
        file.truncate(2**40)
    with pytest.raises(DatasetError, match=r"has a line of more than 1,048,576 characters: it is no list of pictures$"):
        discover(manifest)


class Web(BaseHTTPRequestHandler):
    """A server of a picture, of one that never ends, of one that lies about its size, of redirects, and of silence."""

    asked = threading.Event()
    """Set when somebody waits for what never comes."""

    def do_GET(self) -> None:
        place = self.path.strip("/")
        if place.startswith(("to-", "uri-")):
            header, _, leads_to = place.partition("-")
            self.send_response(302)
            self.send_header({"to": "Location"}.get(header, "URI"), leads_to if "://" in place else f"/{leads_to}")
            self.end_headers()
            return
        asks_a_part = place == "parts.csv" and "Range" in self.headers
        self.send_response(404 if place == "missing" else 206 if asks_a_part else 200)
        if place in ("parts.csv", "rows.csv"):
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", "1000000" if self.command == "HEAD" else str(10**15))
        if place == "picture.png":
            self.send_header("Content-Length", str(len(PICTURE)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if place == "picture.png":
            self.wfile.write(PICTURE)
        try:
            while place in ("endless", "parts.csv"):
                self.wfile.write(bytes(2**16))
            while place == "rows.csv":
                self.wfile.write(b"path,label\n" + b"x.png,a\n" * 2**13)
            if place == "silent":
                self.asked.set()
                time.sleep(SILENT_SECONDS)
        except OSError:
            pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


_picture = io.BytesIO()
Image.new("RGB", (40, 40), (1, 2, 3)).save(_picture, "PNG")
PICTURE = _picture.getvalue()


@contextmanager
def serving() -> Iterator[int]:
    """Serve `Web` on a port of this computer, which has two names."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Web) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.fixture
def web() -> Iterator[int]:
    pytest.importorskip("aiohttp")
    with serving() as port:
        yield port


def test_a_picture_on_the_web_is_read_also_behind_a_redirect_on_its_server(web: int) -> None:
    for name in ("picture.png", "to-picture.png", "uri-picture.png"):
        assert read(f"http://127.0.0.1:{web}/{name}")[0] == PICTURE


def test_an_answer_without_end_is_read_to_its_bound(web: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "MAX_BYTES", 2**22)
    with pytest.raises(PictureError, match=r"^larger than 4 MiB \([45],...,... bytes\)$"):
        read(f"http://127.0.0.1:{web}/endless")


@pytest.mark.parametrize("header", ["to", "uri"])
def test_a_server_that_leads_to_another_one_is_not_followed(header: str, web: int) -> None:
    with pytest.raises(PictureError, match=r"it leads to http://localhost:\d+/picture.png, on another server: name "):
        read(f"http://127.0.0.1:{web}/{header}-http://localhost:{web}/picture.png")


def test_a_server_that_says_nothing_is_left_in_time(web: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "READ_SECONDS", 1)
    remote._web_options.cache_clear()
    start = time.perf_counter()
    with pytest.raises(PictureError, match="Timeout"):
        read(f"http://127.0.0.1:{web}/silent")
    assert time.perf_counter() - start < 10
    remote._web_options.cache_clear()


class Whole(BaseHTTPRequestHandler):
    """A server that sends files from their beginning only; below /packed/ it packs them, and says no length."""

    files: ClassVar[dict[str, bytes]] = {}

    def do_GET(self) -> None:
        data, is_packed = self.files[Path(self.path).name], self.path.startswith("/packed/")
        self.send_response(200)
        if is_packed:
            self.send_header("Content-Encoding", "gzip")
        else:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            with contextlib.suppress(OSError):
                self.wfile.write(gzip.compress(data) if is_packed else data)

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("how", ["whole", "packed"])
def test_of_a_server_that_gives_no_parts_of_a_file_it_is_said_to_download_it(how: str, tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    pq = pytest.importorskip("pyarrow.parquet")
    filler = np.random.default_rng(0).bytes(2**23)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("a/x.bin", filler)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "a.zip")
        archive.add(tmp_path / "a.zip", "again")
    pq.write_table(pytest.importorskip("pyarrow").table({"path": [filler], "label": ["a"]}), tmp_path / "a.parquet")
    Whole.files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Whole) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            for name in sorted(Whole.files):
                url = f"http://127.0.0.1:{server.server_address[1]}/{how}/{name}"
                with pytest.raises(DatasetError, match="download the file first, and name it then") as caught:
                    discover(url)
                assert str(caught.value).count(url) == 1
        finally:
            server.shutdown()


def test_a_dataset_of_hugging_face_starts_no_program_and_keeps_the_pixels(programs: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image()})
    rows = [{"bytes": PICTURE, "path": None}, {"bytes": iptc(EPS), "path": None}, {"bytes": EPS, "path": None}]
    source = datasets.Dataset.from_dict({"image": rows}, features=features)
    dataset = discover(source)
    assert dataset.access is not None
    data = dataset.access.read(dataset.items[0].path)[0]
    assert data == as_file(source[0]["image"])
    for item in dataset.items[1:]:
        with pytest.raises(PictureError):
            dataset.access.read(item.path)
    assert not programs.exists()


@pytest.fixture
def arrow(tmp_path: Path) -> Path:
    """An Arrow file of two rows, in which two offsets of four bytes, 5 and 9, say where each text ends."""
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"path": ["1.png", "2.png"], "label": ["abcde", "fghi"]})
    with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    return tmp_path / "x.arrow"


def test_an_arrow_file_reads_nothing_that_lies_outside_of_it(arrow: Path) -> None:
    whole, ends = arrow.read_bytes(), struct.pack("<iii", 0, 5, 9)
    assert whole.count(ends) == 1
    assert list(table(str(arrow)).column("label")) == ["abcde", "fghi"]
    arrow.write_bytes(whole.replace(ends, struct.pack("<iii", 0, -(2**20), 9)))
    look_again()
    with pytest.raises(DatasetError, match="cannot be read"):
        table(str(arrow)).column("label")
    with pytest.raises(PictureError, match="cannot be read"):
        table(str(arrow)).read("label/0")


CUT = """
import os, sys
from featcache.errors import FeatcacheError
from featcache.sources import table
found = table(sys.argv[1])
os.truncate(sys.argv[1], os.path.getsize(sys.argv[1]) // 2)
for ask in (lambda: found.column("label"), lambda: found.read("image/1")):
    try:
        ask()
    except FeatcacheError as error:
        print(error)
"""
"""An Arrow file is cut while it is open."""


def test_an_arrow_file_that_is_cut_while_it_is_read_is_one_line(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    path, rows = tmp_path / "x.arrow", pa.table({"image": [bytes(2**20)] * 2, "label": ["a", "b"]})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, rows.schema) as stream:
        stream.write_table(rows, max_chunksize=1)
    done = subprocess.run([sys.executable, "-c", CUT, str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [line.partition(": fetch or make it again")[1] for line in done.stdout.splitlines()] == [
        ": fetch or make it again"
    ] * 2


def test_an_arrow_file_keeps_its_dictionaries(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    path, kind = tmp_path / "x.arrow", pa.dictionary(pa.int8(), pa.string())
    with pa.OSFile(str(path), "wb") as file:
        schema = pa.schema([("image", pa.binary()), ("label", kind)])
        with pa.ipc.new_stream(file, schema, options=pa.ipc.IpcWriteOptions(emit_dictionary_deltas=True)) as stream:
            for words in (["a"], ["a", "b"], ["c"]):
                labels = pa.DictionaryArray.from_arrays(pa.array([len(words) - 1], pa.int8()), words)
                stream.write_batch(pa.record_batch([pa.array([b"x" + words[-1].encode()]), labels], schema))
    assert table(str(path)).column("label") == ["a", "b", "c"]
    assert [table(str(path)).read(f"image/{row}") for row in range(3)] == [b"xa", b"xb", b"xc"]


def test_an_arrow_file_unpacks_to_no_more_than_it_is(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    rows = pa.table({"label": pa.array(["a" * 2**20] * 64).dictionary_encode(), "path": ["1.png"] * 64})
    for compression in (None, "zstd"):
        path, options = tmp_path / f"{compression}.arrow", pa.ipc.IpcWriteOptions(compression=compression)
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, rows.schema, options=options) as stream:
            stream.write_table(rows)
    assert table(str(tmp_path / "None.arrow")).n_rows == 64
    with pytest.raises(DatasetError, match=r"zstd\.arrow is compressed"):
        table(str(tmp_path / "zstd.arrow"))


def test_a_server_that_cannot_be_reached_is_no_missing_file(web: int) -> None:
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as closed:
        port = closed.server_address[1]
    with pytest.raises(DatasetError, match=r"cannot read http://127\.0\.0\.1:\d+/x\.zip: \w+: .*"):
        discover(f"http://127.0.0.1:{port}/x.zip")
    with pytest.raises(DatasetError, match="no such folder, manifest or picture"):
        discover(f"http://127.0.0.1:{web}/missing")


def test_a_part_without_end_is_read_to_its_bound(web: int) -> None:
    tracemalloc.start()
    with pytest.raises(DatasetError, match=r"the server sends more than the .* bytes that were asked for"):
        discover(f"http://127.0.0.1:{web}/parts.csv")
    assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    tracemalloc.stop()


def test_a_list_without_end_is_left(web: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MOST_LINES", 100)
    (tmp_path / "x.png").write_bytes(PICTURE)
    (tmp_path / "x.csv").write_text("path,label\n" + "x.png,a\n" * 99)
    (tmp_path / "y.csv").write_text("path,label\n" + "x.png,a\n" * 100)
    assert len(discover(tmp_path / "x.csv").items) in (1, 99)
    with pytest.raises(DatasetError, match=r"y\.csv has no end: after 101 lines"):
        discover(tmp_path / "y.csv")
    monkeypatch.setattr(lines, "LIST_SECONDS", -1)
    with pytest.raises(DatasetError, match="has no end"):
        discover(tmp_path / "x.csv")


def test_another_port_is_another_server(web: int) -> None:
    with (
        serving() as other,
        pytest.raises(PictureError, match=r"it leads to http://127.0.0.1:\d+/picture.png, on another"),
    ):
        read(f"http://127.0.0.1:{web}/to-http://127.0.0.1:{other}/picture.png")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_who_stops_a_command_need_not_wait_for_a_server(
    web: int, tmp_path: Path, seeded_weights: Path, number: signal.Signals, code: int
) -> None:
    places = [f"http://127.0.0.1:{web}/{name},{name[0]}" for name in ["silent"] * 3 + ["picture.png"]]
    (tmp_path / "x.csv").write_text("\n".join(["path,label", *places]))
    words = [sys.executable, "-m", "featcache", "extract", "x.csv", "--backbone", "resnet18"]
    Web.asked.clear()
    process = subprocess.Popen([*words, "--weights", str(seeded_weights)], cwd=tmp_path, stderr=subprocess.PIPE)
    assert Web.asked.wait(60)
    time.sleep(0.5)
    process.send_signal(number)
    start = time.perf_counter()
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert b"Traceback" not in said
    assert time.perf_counter() - start < SILENT_SECONDS / 2


@pytest.mark.parametrize("address", ["zip://x", "row://x", "tar://"])
def test_a_part_of_nothing_is_said_in_one_line(tmp_path: Path, address: str) -> None:
    with pytest.raises(DatasetError, match="does not say what it is a part of"):
        discover(address)
    (tmp_path / "x.csv").write_text(f"path,label\n{address},a\n")
    with pytest.raises(DatasetError, match="does not say what it is a part of"):
        discover(tmp_path / "x.csv")


def test_what_an_import_names_is_neither_opened_nor_asked_for(
    web: int, run: Callable[..., Result], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("extract", photos, network=True).code == 0
    run("cache", "export", "x.npz", "--dataset", photos)
    with np.load(tmp_path / "x.npz") as whole:
        arrays = dict(whole)
    mine = tmp_path / "private.png"
    mine.write_bytes(PICTURE)
    paths = [str(mine), *(f"http://127.0.0.1:{web}/{at}.png" for at in range(1, len(arrays["paths"])))]
    np.savez(tmp_path / "y.npz", **{**arrays, "paths": np.array(paths)})
    assert run("cache", "import", "y.npz").code == 0
    shutil.rmtree(photos)
    asked: list[str] = []
    monkeypatch.setattr(Web, "do_GET", lambda self: asked.append(self.path))
    opened: list[str] = []
    sys.addaudithook(lambda event, values: opened.append(str(values[0])) if event == "open" else None)
    for words in (
        ("audit",),
        ("report",),
        ("fit",),
        ("cache", "verify"),
        ("cache", "verify", "--repair"),
        ("split", "x"),
    ):
        assert "Traceback" not in run(*words).err
    assert "is not opened" in "".join(run("finetune", "--epochs", "1", "--unfreeze", "last").err.split("\n"))
    assert asked == []
    assert str(mine) not in opened
    for name, values, said in [
        ("splits", ["training", "train"] * (len(paths) // 2), "has the split 'training'"),
        ("paths", ["a.png"] * len(paths), "more than once"),
        ("paths", ["", *paths[1:]], "empty"),
    ]:
        np.savez(tmp_path / "z.npz", **{**arrays, name: np.array(values)})
        refused = run("cache", "import", "z.npz")
        assert (refused.code, said in refused.err) == (1, True), refused.err
