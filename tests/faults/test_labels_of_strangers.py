"""Labels and lists that somebody else wrote: what is no class is said to be none, at once."""

from __future__ import annotations

import io
import tarfile
import time
from pathlib import Path

import pytest
from conftest import write_picture

from featcache.discover import discover
from featcache.errors import DatasetError


def listed(folder: Path, text: str) -> Path:
    write_picture(folder / "1.png", 1)
    (folder / "x.csv").write_text(text)
    return folder / "x.csv"


def shard(folder: Path, ending: str, content: bytes) -> Path:
    write_picture(folder / "1.png", 1)
    with tarfile.open(folder / "x.tar", "w") as tar:
        for name, data in (("1.png", (folder / "1.png").read_bytes()), (f"1.{ending}", content)):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return folder / "x.tar"


@pytest.mark.parametrize("label", ["9" * 5000 + ".0", "x" * 1001, "[" * 100_000, "1+" * 50_000 + "1"])
@pytest.mark.parametrize("kind", ["list", "shard"])
def test_a_label_is_no_longer_than_a_name(tmp_path: Path, label: str, kind: str) -> None:
    path = (
        listed(tmp_path, f"path,label\n1.png,{label}\n") if kind == "list" else shard(tmp_path, "cls", label.encode())
    )
    start = time.perf_counter()
    with pytest.raises(DatasetError, match=r"cannot be kept, it has .* characters") as caught:
        discover(path)
    assert len(str(caught.value)) < 500
    assert time.perf_counter() - start < 5


def test_a_label_of_a_thousand_characters_is_one(tmp_path: Path) -> None:
    assert discover(listed(tmp_path, f"path,label\n1.png,{'x' * 1000}\n")).items[0].label == "x" * 1000


def test_a_sample_that_is_nested_too_deeply_is_one_line(tmp_path: Path) -> None:
    path = shard(tmp_path, "json", b'{"a":' + b"[" * 100_000)
    with pytest.raises(DatasetError, match="its label cannot be read from"):
        discover(path, columns={"label": "json.a"})


def test_a_list_has_no_more_columns_than_a_table(tmp_path: Path) -> None:
    path = listed(tmp_path, "path,label" + ",x" * 200_000 + "\n" + "1.png,a\n" * 1000)
    start = time.perf_counter()
    with pytest.raises(DatasetError, match="has 200,002 columns"):
        discover(path)
    assert time.perf_counter() - start < 5
