"""Every parser of bytes from outside, fed with files that were changed at random: `python fuzz.py PARSER COUNT SEED`.

It prints how many inputs there were and how many were taken. It ends with an error where a parser raises anything but
the package's own errors, takes too long, starts a program, asks the network, or opens a file outside its folder.
"""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import sqlite3
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

import featcache
from featcache.decode import decode, look
from featcache.discover import discover
from featcache.errors import FeatcacheError, PictureError
from featcache.records import Features, FeatureSpec, FileStat, Item, Preprocess
from featcache.sources import read as read_address
from featcache.store import Cache, Catalog, Row, Runs
from featcache.store.exchange import Exchange, packed
from featcache.store.exchange import read as read_exchange
from featcache.store.files import dataset_name
from featcache.store.segment import build_image
from featcache.store.shards import Shards
from featcache.store.splits import Splits

SECONDS = 20
"""How long one input may take; a picture of the largest size that is decoded takes some seconds."""

MEMORY = 6 * 2**30
STEPS = Preprocess(8, 8, "bilinear", (0, 0, 0), (1, 1, 1))
SPEC = FeatureSpec("toy", "0" * 64, STEPS)
KEYS = [bytes([at]) * 32 for at in range(6)]
X = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]

Parser = tuple[list[bytes], str, Callable[[Path], object]]


def pictures() -> list[bytes]:
    noise = np.random.default_rng(0).integers(0, 256, (24, 31, 4), np.uint8)
    rgba, grey = Image.fromarray(noise), Image.fromarray(noise.view(np.uint16)[..., 0].copy())
    found = []
    for name, picture, options in (
        ("PNG", rgba, {}),
        ("PNG", grey, {}),
        (
            "JPEG",
            rgba.convert("RGB"),
            {"progressive": True, "exif": b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0"},
        ),
        ("GIF", rgba.convert("P"), {}),
        ("BMP", rgba.convert("RGB"), {}),
        ("TIFF", rgba, {"compression": "tiff_lzw"}),
        ("TIFF", rgba.convert("RGB"), {"compression": "jpeg"}),
        ("WEBP", rgba, {"lossless": True}),
        ("JPEG2000", rgba.convert("RGB"), {}),
        ("ICO", rgba, {"sizes": [(16, 16)]}),
        ("ICNS", rgba.resize((32, 32)), {}),
        ("TGA", rgba, {"compression": "tga_rle"}),
        ("PCX", rgba.convert("RGB"), {}),
        ("SGI", rgba.convert("RGB"), {}),
        ("PPM", rgba.convert("RGB"), {}),
        ("DDS", rgba, {}),
        ("AVIF", rgba, {}),
    ):
        with suppress(KeyError, OSError):  # this Pillow was built without it
            out = io.BytesIO()
            picture.save(out, name, **options)
            found.append(out.getvalue())
    with suppress(ImportError):
        import pillow_heif

        out = io.BytesIO()
        pillow_heif.from_pillow(rgba.convert("RGB").resize((64, 64))).save(out)
        found.append(out.getvalue())
    return found


def decode_file(path: Path) -> object:
    return decode(path.read_bytes(), STEPS), look(path.read_bytes())


def read_all(path: Path) -> object:
    """List a dataset and read its pictures."""
    found = []
    for item in discover(path).items[:20]:
        with suppress(PictureError):
            found.append(decode(read_address(item.path)[0], STEPS))
    return found


def archives(picture: bytes) -> dict[str, bytes]:
    plain, packed_, tarred = io.BytesIO(), io.BytesIO(), io.BytesIO()
    for out, method in ((plain, zipfile.ZIP_STORED), (packed_, zipfile.ZIP_DEFLATED)):
        with zipfile.ZipFile(out, "w", method) as file:
            for at in range(4):
                file.writestr(f"c{at % 2}/{at}.png", picture)
    with tarfile.open(fileobj=tarred, mode="w") as tar:
        for at in range(4):
            entry = tarfile.TarInfo(f"c{at % 2}/{at}.png")
            entry.size = len(picture)
            tar.addfile(entry, io.BytesIO(picture))
    return {"stored": plain.getvalue(), "deflated": packed_.getvalue(), "tar": tarred.getvalue()}


def tables(picture: bytes, folder: Path) -> tuple[bytes, bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"bytes": picture, "path": None}] * 4
    noted = json.dumps(
        {"info": {"features": {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["a", "b"]}}}}
    )
    table = pa.table({"image": rows, "label": [0, 1, 0, 1]}).replace_schema_metadata({"huggingface": noted})
    pq.write_table(table, folder / "t.parquet")
    out = io.BytesIO()
    with pa.ipc.new_stream(out, table.schema) as stream:
        stream.write_table(table)
    return (folder / "t.parquet").read_bytes(), out.getvalue()


def read_arrow(path: Path) -> object:
    from featcache.sources import look_again, table

    look_again()
    found = table(str(path))
    return found.features, [found.column("label"), *(found.read(f"image/{row}") for row in range(min(found.n_rows, 9)))]


def exported(suffix: str) -> list[bytes]:
    texts = np.array(["a", "b", "c", "d", "e", "f"])
    features = Features(X, texts, tuple(texts.tolist()), texts, tuple(KEYS), SPEC.fingerprint)
    return [packed(Path(f"x{suffix}"), Exchange(features, SPEC, "w"))]


def open_store(path: Path) -> object:
    """Put a file into a store as a segment beside a sound one, and read all of it."""
    folder = path.parent / "cache"
    cache = Cache(folder)
    store = cache.features(SPEC)
    target = store.folder / "seg-00000000000000000009-ffffffff-00000001.h5"
    path.rename(target)
    try:
        found = cache.store(SPEC.fingerprint)
        found.verify()
        found.read([key.tobytes() for key in found.keys])
        found.remove_replaced()
    finally:
        cache.catalog.close()
        for left in (*store.folder.glob("seg-*"), *(folder / "bad").glob("*")):
            left.unlink()
    return None


def segments() -> list[bytes]:
    keys = np.frombuffer(b"".join(KEYS), np.uint8).reshape(-1, 32)
    options: dict[str, Any] = {"fingerprint": SPEC.fingerprint, "writer": "ffffffff", "created_ns": 1}
    plain = build_image(keys, X, **options)
    packed_ = io.BytesIO()
    with h5py.File(io.BytesIO(plain), "r") as old, h5py.File(packed_, "w") as new:
        for name in old:
            new.create_dataset(name, data=old[name][()], chunks=True, compression="gzip")
        new.attrs.update(dict(old.attrs))
    return [plain, build_image(keys, X, replaces=["seg-1.h5"], **options), packed_.getvalue()]


def catalogs(folder: Path) -> list[bytes]:
    path = folder / "c.sqlite"
    catalog = Catalog(path)
    catalog.save_dataset("root", [Row(Item(f"{at}.png", "a", None), key, None) for at, key in enumerate(KEYS)], 1)
    catalog.remember_files([("0.png", FileStat(1, 2, 3), KEYS[0])])
    catalog.close()
    return [path.read_bytes()]


def use_catalog(path: Path) -> object:
    catalog = Catalog(path)
    try:
        catalog.check()
        for root in catalog.roots():
            catalog.check_dataset(root)
            catalog.dataset(root)
            catalog.keys_of(root, "")
        return catalog.known_files(["0.png"])
    finally:
        catalog.close()


def runs(folder: Path) -> list[bytes]:
    kept = Runs(folder / "runs")
    kept.finish(kept.start("extract", "/root", "f" * 64), {"found": 3, "seconds": {"total": 1.0}, "notices": ["a"]})
    whole = (folder / "runs" / "000001.json").read_bytes()
    content = json.loads(whole)
    del content["sha256"]
    return [whole, json.dumps(content).encode()]


def use_run(path: Path) -> object:
    target = path.parent / "runs" / "000001.json"
    path.rename(target)
    return Runs(target.parent).all(), Runs(target.parent).broken()


def use_spec(path: Path) -> object:
    folder = path.parent / "cache"
    cache = Cache(folder)
    path.rename(cache.features(SPEC).folder / "spec.json")
    try:
        return cache.fingerprints(), cache.spec(SPEC.fingerprint)
    finally:
        cache.catalog.close()


def use_split(path: Path) -> object:
    target = path.parent / "splits" / f"{dataset_name('root')}-0.json"
    target.parent.mkdir(exist_ok=True)
    path.rename(target)
    return Splits(target.parent).kept("root", 0)


def use_shard(path: Path) -> object:
    target = path.parent / "shards" / f"{dataset_name('root')}-0-of-1.npz"
    target.parent.mkdir(exist_ok=True)
    path.rename(target)
    return Shards(target.parent).of("root")


def shards(folder: Path) -> list[bytes]:
    Shards(folder / "shards").put(
        "root", (0, 1), {f"{at}.png": (FileStat(1, 2, 3), key) for at, key in enumerate(KEYS)}
    )
    (path,) = (folder / "shards").iterdir()
    return [path.read_bytes()]


def use_manifest(path: Path) -> object:
    for name in "abc":
        (path.parent / f"{name}.png").write_bytes(b"x")
    return discover(path)


def parser(name: str, folder: Path) -> Parser:
    """Return the files that are changed, what they are called, and what reads them."""
    picture = pictures()[0]
    makers: dict[str, Callable[[], Parser]] = {
        "picture": lambda: (pictures(), "x.jpg", decode_file),
        "zip": lambda: ([archives(picture)["stored"], archives(picture)["deflated"]], "x.zip", read_all),
        "tar": lambda: ([archives(picture)["tar"]], "x.tar", read_all),
        "parquet": lambda: ([tables(picture, folder)[0]], "x.parquet", read_all),
        "arrow": lambda: ([tables(picture, folder)[1]], "x.arrow", read_arrow),
        "csv": lambda: ([b'path,label,split\na.png,a,train\nb.png,b,test\n"c.png",\'=a,\n'], "x.csv", use_manifest),
        "export.npz": lambda: (exported(".npz"), "x.npz", read_exchange),
        "export.h5": lambda: (exported(".h5"), "x.h5", read_exchange),
        "export.parquet": lambda: (exported(".parquet"), "x.parquet", read_exchange),
        "segment": lambda: (segments(), "x.h5", open_store),
        "catalog": lambda: (catalogs(folder), "x.sqlite", use_catalog),
        "run": lambda: (runs(folder), "x.json", use_run),
        "spec": lambda: (
            [json.dumps({"spec": SPEC.to_dict(), "fingerprint": SPEC.fingerprint}).encode()],
            "x.json",
            use_spec,
        ),
        "split": lambda: ([json.dumps({"splits": {"test": [KEYS[0].hex()]}}).encode()], "x.json", use_split),
        "shard": lambda: (shards(folder), "x.npz", use_shard),
    }
    return makers[name]()


PARSERS = (
    *("picture", "zip", "tar", "parquet", "arrow", "csv", "export.npz", "export.h5", "export.parquet"),
    *("segment", "catalog", "run", "spec", "split", "shard"),
)


@st.composite
def changed(draw: st.DrawFn, files: list[bytes]) -> bytes:
    """Draw one of the files with a few changes: bits, numbers, pieces left out, doubled or brought from elsewhere."""
    data = bytearray(draw(st.sampled_from(files)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(["bit", "byte", "number", "text", "cut", "drop", "double", "splice"]))
        if kind == "bit" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "byte" and data:
            data[at] = draw(st.integers(0, 255))
        elif kind == "number":
            size, order = draw(st.sampled_from([1, 2, 4, 8])), draw(st.sampled_from(["little", "big"]))
            data[at : at + size] = (draw(st.sampled_from(NUMBERS)) % 256**size).to_bytes(size, order)
        elif kind == "text":
            data[at:at] = draw(
                st.sampled_from(
                    [b"../../x", b"\0", b'"', b"[[[[", b"1e999", b"\xff\xd8\xff\xda", b"\r\n", b"/dev/zero"]
                )
            )
        elif kind == "cut":
            del data[at:]
        elif kind == "drop":
            del data[at : at + draw(st.integers(1, 64))]
        elif kind == "double":
            data[at:at] = data[at : at + draw(st.integers(1, 64))]
        else:
            other = draw(st.sampled_from(files))
            start = draw(st.integers(0, max(0, len(other) - 1)))
            data[at : at + 32] = other[start : start + 32]
    return bytes(data)


class Watch:
    """Looks at what the process does; `wrong` is what it must not do."""

    def __init__(self, folder: Path) -> None:
        self.wrong: list[str] = []
        self.is_on = False
        ours = (sys.prefix, sys.base_prefix, str(Path(featcache.__file__).parent), str(Path(__file__).parent))
        self._allowed = (
            str(folder),
            *map(os.path.realpath, ours),
            *ours,
            "/proc/self/",
            "/sys/",
            "/dev/null",
            "/etc/ld",
        )
        self._above = {str(above) for above in folder.parents}  # whose names are made durable
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.is_on:
            return
        if event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect"):
            self.wrong.append(f"{event} {arguments!r:.200}")
        elif event in ("open", "os.remove", "os.rename", "os.mkdir") and isinstance(arguments[0], str | bytes):
            name = os.path.abspath(os.fsdecode(arguments[0]))  # noqa: PTH100
            if not name.startswith(self._allowed) and name not in self._above:
                self.wrong.append(f"{event} {name!r:.200}")


def main(name: str, count: int, number: int) -> None:
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    files, called, use = parser(name, folder)
    for data in files:  # what is whole is taken, or the run would show nothing
        (folder / called).write_bytes(data)
        use(folder / called)
    watch = Watch(folder)
    counts = {"inputs": 0, "taken": 0}
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGALRM, lambda *_: os.abort())

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(changed(files))
    def fuzz(data: bytes) -> None:
        counts["inputs"] += 1
        (folder / called).unlink(missing_ok=True)
        (folder / called).write_bytes(data)
        signal.alarm(SECONDS)
        watch.is_on = True
        try:
            use(folder / called)
            counts["taken"] += 1
        except (FeatcacheError, MemoryError):
            pass
        except BaseException:
            (folder / "failed").write_bytes(data)
            sys.stderr.write(f"{name}: {folder / 'failed'}\n")
            raise
        finally:
            watch.is_on = False
            signal.alarm(0)
        assert watch.wrong == [], watch.wrong

    fuzz()
    sys.stdout.write(json.dumps({"parser": name, **counts}) + "\n")


if __name__ == "__main__":
    import logging

    logging.disable()
    sqlite3.enable_callback_tracebacks(False)
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
