"""A class folder enters; the same pictures in every other form that `discover` takes leave."""

from __future__ import annotations

import csv
import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

Picture = tuple[Path, str, str]
"""File, label and split."""

CLASSES = ["leaf", "sky"]


def pictures(folder: Path) -> list[Picture]:
    """Return the pictures of a folder SPLIT/CLASS/..., in the order of their names."""
    return [(path, path.parts[-2], path.parts[-3]) for path in sorted(folder.rglob("*")) if path.is_file()]


def zipped(folder: Path, out: Path, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(out, "w", method) as archive:
        for path, _, _ in pictures(folder):
            archive.write(path, f"data/{path.relative_to(folder)}")
    return out


def tarred(folder: Path, out: Path, form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(out, "w", format=form) as archive:
        archive.add(folder, "./")
    return out


def member(archive: tarfile.TarFile, name: str, data: bytes = b"", **fields: Any) -> None:
    """Add a member of any kind to a tar."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    archive.addfile(info, io.BytesIO(data))


def sharded(folder: Path, out: Path, label: Callable[[str], tuple[str, str]] = lambda name: ("cls", name)) -> Path:
    """Write two WebDataset shards of each split; `label` gives the ending and the text of a label's file."""
    out.mkdir()
    for split in ("train", "test"):
        own = [picture for picture in pictures(folder) if picture[2] == split]
        for half in (0, 1):
            with tarfile.open(out / f"{split}-{half:05}.tar", "w") as archive:
                for at, (path, name, _) in enumerate(own[half * len(own) // 2 : (half + 1) * len(own) // 2]):
                    ending, text = label(name)
                    member(archive, f"{half}{at:04}.PNG", path.read_bytes())
                    member(archive, f"{half}{at:04}.{ending}", text.encode())
    return out


def as_csv(folder: Path, out: Path, head: Sequence[str] = ("path", "label", "split")) -> Path:
    with out.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(head)
        rows.writerows((path.relative_to(out.parent), label, split) for path, label, split in pictures(folder))
    return out


def parquet_list(folder: Path, out: Path, head: Sequence[str] = ("path", "label", "split")) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = zip(*((str(p.relative_to(out.parent)), la, sp) for p, la, sp in pictures(folder)), strict=True)
    pq.write_table(pa.table(dict(zip(head, map(list, columns), strict=True))), out)
    return out


def arrow_table(own: Sequence[Picture]) -> Any:
    """Return pictures as `datasets` keeps them: structs of bytes and path, and numbers of named classes."""
    import pyarrow as pa

    image = {"_type": "Image"}
    noted = {"info": {"features": {"image": image, "label": {"names": CLASSES, "_type": "ClassLabel"}}}}
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    found = pa.table(
        {
            "image": pa.array([{"bytes": path.read_bytes(), "path": path.name} for path, _, _ in own], kind),
            "label": pa.array([CLASSES.index(label) for _, label, _ in own], pa.int64()),
        }
    )
    return found.replace_schema_metadata({"huggingface": json.dumps(noted)})


def parquet_pictures(folder: Path, out: Path) -> Path:
    import pyarrow.parquet as pq

    (out / "data").mkdir(parents=True)
    (out / "README.md").write_text("a dataset card")
    for split in ("train", "test"):
        own = [picture for picture in pictures(folder) if picture[2] == split]
        pq.write_table(arrow_table(own), out / "data" / f"{split}-00000-of-00001.parquet", row_group_size=2)
    return out


def saved(folder: Path, out: Path) -> Path:
    """Write what `datasets` writes with `save_to_disk`, by hand."""
    import pyarrow as pa

    out.mkdir()
    (out / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    for split in ("train", "test"):
        own = [picture for picture in pictures(folder) if picture[2] == split]
        (out / split).mkdir()
        names = [f"data-{at:05}-of-00002.arrow" for at in (0, 1)]
        (out / split / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
        for name, part in zip(names, (own[: len(own) // 2], own[len(own) // 2 :]), strict=True):
            rows = arrow_table(part)
            with pa.OSFile(str(out / split / name), "wb") as sink, pa.ipc.new_stream(sink, rows.schema) as writer:
                writer.write_table(rows)
    return out


class InMemory:
    """What `torchvision.datasets.CIFAR10` is like: pictures by number, `targets` and `classes`."""

    def __init__(self, folder: Path, split: str) -> None:
        from PIL import Image

        own = [picture for picture in pictures(folder) if picture[2] == split]
        self.root, self.train, self.classes = "given", split == "train", CLASSES
        self.pictures = [Image.open(io.BytesIO(path.read_bytes())) for path, _, _ in own]
        self.targets = [CLASSES.index(label) for _, label, _ in own]

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, at: int) -> tuple[Any, int]:
        return self.pictures[at], self.targets[at]


def image_folders(folder: Path, _out: Path) -> dict[str, Any]:
    from featcache.backbones.vision_import import import_torchvision

    datasets = import_torchvision().datasets
    return {split: datasets.ImageFolder(folder / split) for split in ("train", "test")}


def in_memory(folder: Path, _out: Path) -> dict[str, Any]:
    return {split: InMemory(folder, split) for split in ("train", "test")}


KINDS: dict[str, Callable[[Path, Path], Any]] = {
    "stored.zip": lambda folder, out: zipped(folder, out, zipfile.ZIP_STORED),
    "deflated.ZIP": zipped,
    "pax.tar": tarred,
    "gnu.tar": lambda folder, out: tarred(folder, out, tarfile.GNU_FORMAT),
    "shards": sharded,
    "list.csv": as_csv,
    "list.parquet": parquet_list,
    "parquet": parquet_pictures,
    "saved": saved,
    "ImageFolder": image_folders,
    "in memory": in_memory,
}


def all_files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of all files below a folder."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield str(path.relative_to(folder)), path.read_bytes()
