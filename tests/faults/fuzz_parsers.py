"""Whole files of each kind that comes from outside, to be changed at random, and what reads them."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import fuzz_models
import h5py
import numpy as np
from PIL import Image
from tiff_layouts import Layout, samples_of, written

from featcache.backbones import weights
from featcache.decode import decode, decode_and_look, look
from featcache.discover import discover
from featcache.errors import PictureError
from featcache.records import Features, FeatureSpec, FileStat, Item, Preprocess
from featcache.sources import read as read_address
from featcache.sources.keys import content_key
from featcache.store import Cache, Catalog, Row, Runs
from featcache.store.exchange import Exchange, packed
from featcache.store.exchange import read as read_exchange
from featcache.store.files import dataset_name
from featcache.store.segment import build_image
from featcache.store.shards import Shards
from featcache.store.splits import Splits

STEPS = Preprocess(8, 8, "bilinear", (0, 0, 0), (1, 1, 1))
SPEC = FeatureSpec("toy", "0" * 64, STEPS)
KEYS = [bytes([at]) * 32 for at in range(6)]
X = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)

TIFFS = [
    Layout("rgb", 16, planes=True, tile=16),
    Layout("grey", 12, rows=5, compression=5, big=True, order=">"),
    Layout("white", 16, (2,), compression=8, predictor=2),
    Layout("palette", 4, compression=32773, fill=2),
]
"""Layouts that are not left to Pillow."""

Parser = tuple[list[bytes], str, Callable[[Path], object]]


def pictures() -> list[bytes]:
    noise = np.random.default_rng(0).integers(0, 256, (24, 31, 4), np.uint8)
    rgba, grey = Image.fromarray(noise), Image.fromarray(noise.view(np.uint16)[..., 0].copy())
    found = []
    for name, picture, options in (
        ("PNG", rgba, {}),
        ("PNG", grey, {}),
        ("PNG", rgba.convert("RGB").convert("P"), {"transparency": b"\0\n"}),
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
        ("JPEG2000", grey, {}),
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
    found += [written(layout, samples_of(layout)) for layout in TIFFS]
    with suppress(ImportError):
        import pillow_heif

        out = io.BytesIO()
        pillow_heif.from_pillow(rgba.convert("RGB").resize((64, 64))).save(out)
        found.append(out.getvalue())
    return found


def decode_file(path: Path) -> object:
    data = path.read_bytes()
    return content_key(data), decode(data, STEPS), look(data)


READINGS = ("range percentile", "range -9,200; page 2", "channels 0", "channels 2,1,0; page 2", "page 3", "page all")
"""What may be said of pictures that do not say it themselves."""


def decode_as_said(path: Path) -> object:
    """Decode a file in each of several ways; it is wrong where none of them is taken, whatever the last one raises."""
    found, raised = [], PictureError("none")
    for said in READINGS:
        try:
            found.append(decode_and_look(path.read_bytes(), STEPS, ["original"], reading=said))
        except PictureError as error:
            raised = error
    if not found:
        raise raised
    return found


def tiffs_of_pages() -> list[bytes]:
    """TIFF files of three pages: floats, 12 bits in tiles, planes, and pages that are channels."""
    import tifffile

    found = []
    noise = np.random.default_rng(0).integers(0, 4096, (3, 24, 32), np.uint16)
    for values, options in (
        (noise.astype(np.float32), {"compression": "zlib"}),
        (noise, {"tile": (16, 16), "bigtiff": True, "byteorder": ">"}),
        (np.stack([noise] * 3, axis=1).astype(np.uint8), {"photometric": "rgb", "planarconfig": "separate"}),
    ):
        out = io.BytesIO()
        tifffile.imwrite(out, values, **({"photometric": "minisblack"} | options), metadata=None)
        found.append(out.getvalue())
    for kind in ("ome", "imagej"):
        out = io.BytesIO()
        tifffile.imwrite(
            out, np.stack([noise] * 2), photometric="minisblack", metadata={"axes": "ZCYX"}, **{kind: True}
        )
        found.append(out.getvalue())
    return found


def dicoms() -> list[bytes]:
    """DICOM files in several encodings, with windows, tables, palettes and frames."""
    import test_dicom as of

    frames = np.stack([of.RAMP, of.RAMP[::-1], of.RAMP]).astype(np.uint16)
    group, window = of.Dataset(), of.Dataset()
    window.WindowCenter, window.WindowWidth = "50", "40"
    group.FrameVOILUTSequence = of.Sequence([window])
    groups, tables_of = of.Sequence([group] * 3), of.Sequence([of.table(0, 16, list(range(160)))])
    palette = {
        f"{name}PaletteColorLookupTable{part}": value
        for name in ("Red", "Green", "Blue")
        for part, value in (("Descriptor", [160, 0, 8]), ("Data", bytes(range(160))))
    }
    packed_frames = of.encapsulate([of.jpeg(of.COLOURS)] * 3, fragments_per_frame=2)
    rle = of.dataset(frames, frames=3)
    rle.file_meta = of.FileMetaDataset()
    rle.file_meta.TransferSyntaxUID = of.ExplicitVRLittleEndian
    rle["PixelData"].VR = "OW"
    rle.compress(of.RLELossless, generate_instance_uid=False)
    return [
        of.written(of.dataset(frames, frames=3, BitsStored=12, PerFrameFunctionalGroupsSequence=groups)),
        of.written(of.dataset(frames[0], VOILUTSequence=tables_of), of.ImplicitVRLittleEndian),
        of.written(of.dataset(of.HU, WindowCenter="1", WindowWidth="9"), of.DeflatedExplicitVRLittleEndian),
        of.written(of.dataset(frames[0].astype(np.uint8), "PALETTE COLOR", **palette)),
        of.written(of.dataset(np.stack([of.COLOURS] * 3), "YBR_FULL", 3, PixelData=packed_frames), of.JPEGBaseline8Bit),
        of.written(rle, of.RLELossless),
    ]


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


def tables(picture: bytes, folder: Path) -> tuple[list[bytes], bytes]:
    """Return Parquet files of each kind, and an Arrow file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"bytes": picture, "path": None}] * 4
    noted = json.dumps(
        {"info": {"features": {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["a", "b"]}}}}
    )
    table = pa.table({"image": rows, "label": [0, 1, 0, 1]}).replace_schema_metadata({"huggingface": noted})
    out = io.BytesIO()
    with pa.ipc.new_stream(out, table.schema) as stream:
        stream.write_table(table)
    texts = pa.table({"image": rows, "label": ["a", "b"] * 2, "split": ["train", "test"] * 2})
    broken = noted.replace('["a", "b"]', '[1, "\\ud800"]')
    found = []
    for each in (table, texts, table.replace_schema_metadata({"huggingface": broken})):
        pq.write_table(each, folder / "t.parquet", compression="zstd" if each is texts else "snappy")
        found.append((folder / "t.parquet").read_bytes())
    return found, out.getvalue()


def read_arrow(path: Path) -> object:
    from featcache.sources import look_again, table

    look_again()
    found = table(str(path))
    labels = found.column("label") if "label" in found.schema.names else []
    for row in range(min(found.n_rows, 9)):
        with suppress(PictureError):
            found.read(f"image/{row}")
    return found.features, labels


def exported(suffix: str) -> list[bytes]:
    texts, splits = np.array(["a", "b", "c", "d", "e", "f"]), np.array(["train", "test"] * 3)
    features = Features(X, texts, tuple(texts.tolist()), splits, tuple(KEYS), SPEC.fingerprint)
    whole = packed(Path(f"x{suffix}"), Exchange(features, SPEC, "w"))
    if suffix == ".npz":
        return [whole, *(zipped_again(whole, method) for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))]
    return [whole, h5_packed(whole)] if suffix == ".h5" else [whole]


def zipped_again(whole: bytes, method: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(out, "w", method) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return out.getvalue()


def h5_packed(whole: bytes) -> bytes:
    """Return the same file with its data sets in chunks, deflated."""
    out = io.BytesIO()
    with h5py.File(io.BytesIO(whole), "r") as old, h5py.File(out, "w") as new:
        for name in old:
            new.create_dataset(name, data=old[name][()], chunks=True, compression="gzip")
        new.attrs.update(dict(old.attrs))
    return out.getvalue()


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
    return [plain, build_image(keys, X, replaces=["seg-1.h5"], **options), h5_packed(plain)]


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
        "reading": lambda: (tiffs_of_pages(), "x.tif", decode_as_said),
        "dicom": lambda: (dicoms(), "x.dcm", decode_as_said),
        "zip": lambda: ([archives(picture)["stored"], archives(picture)["deflated"]], "x.zip", read_all),
        "tar": lambda: ([archives(picture)["tar"]], "x.tar", read_all),
        "parquet": lambda: (tables(picture, folder)[0], "x.parquet", read_all),
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
        "head": lambda: (fuzz_models.heads(folder), "x.safetensors", fuzz_models.use_head),
        "network": lambda: (fuzz_models.networks(folder), "x.safetensors", fuzz_models.use_network),
        "weights.pth": lambda: (fuzz_models.states()[:1], "x.pth", weights.read_state),
        "weights.safetensors": lambda: (fuzz_models.states()[1:], "x.safetensors", weights.read_state),
        "onnx": lambda: (fuzz_models.exported_networks(), "x.onnx", fuzz_models.use_exported),
        "index": lambda: (fuzz_models.indexes(), "x.faiss", fuzz_models.use_index),
    }
    return makers[name]()


PARSERS = (
    *(
        "picture",
        "reading",
        "dicom",
        "zip",
        "tar",
        "parquet",
        "arrow",
        "csv",
        "export.npz",
        "export.h5",
        "export.parquet",
    ),
    *("segment", "catalog", "run", "spec", "split", "shard"),
    *("head", "network", "weights.pth", "weights.safetensors", "onnx", "index"),
)
