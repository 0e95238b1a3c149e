"""Other people's data: each kind of input gives what the plain folder gives, and bad input is refused by its name."""

from __future__ import annotations

import io
import json
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINTS, Result, write_picture
from input_kinds import KINDS, InMemory, as_csv, member, parquet_pictures, pictures, saved, sharded, tarred, zipped
from PIL import Image

import featcache
import featcache.api.pipeline
import featcache.sources.remote
from featcache.discover import discover
from featcache.errors import DatasetError, DatasetNotFoundError, PictureError, UsageError
from featcache.load import load
from featcache.records import ExtractSummary, Item
from featcache.sources import read
from featcache.sources.addresses import named
from featcache.store import Cache

Run = Callable[..., Result]

pytestmark = pytest.mark.usefixtures("one_thread", "ready_network")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two splits, two classes and three pictures in each; no two are equal."""
    root = tmp_path_factory.mktemp("inputs") / "plain"
    numbers = iter(range(100))
    for split in ("train", "test"):
        for label in ("leaf", "sky"):
            for name in ("a", "b", "c"):
                write_picture(root / split / label / f"{name}.png", next(numbers), TINTS[label])
    return root


@pytest.fixture(scope="module")
def options(plain: Path, seeded_weights: Path) -> featcache.Options:
    return featcache.Options(cache=plain.parent / "cache", backbone="resnet18", weights=seeded_weights)


@pytest.fixture(scope="module")
def known(plain: Path, options: featcache.Options) -> ExtractSummary:
    return featcache.extract(plain, options)


def rows(summary: ExtractSummary) -> tuple[Any, list[tuple[str, str]]]:
    """Return vectors, labels and splits of what was extracted."""
    with Cache(Path(summary.cache)) as cache:
        found = load(cache.catalog.dataset(summary.dataset), cache.store(summary.fingerprint))
    return found.X, list(zip(found.y, found.splits, strict=True))


# --- each kind gives what the folder gives ---


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_gives_the_vectors_labels_splits_and_order_of_the_folder(
    kind: str, plain: Path, tmp_path: Path, known: ExtractSummary, options: featcache.Options
) -> None:
    if kind in ("list.parquet", "parquet", "saved"):
        pytest.importorskip("pyarrow")
    source = KINDS[kind](plain, plain.parent / kind)
    found = featcache.extract(source, options)
    assert (found.found, found.unreadable, found.fingerprint) == (12, 0, known.fingerprint)
    # Files have the content keys of the folder's; pixels are keyed by themselves, and so computed here.
    assert (found.reused, found.computed) == ((0, 12) if kind == "in memory" else (12, 0))
    expected, facts = rows(known)
    vectors, its_facts = rows(found)
    keeps_its_order = kind in ("saved", "ImageFolder", "in memory")  # which names train before test
    order = sorted(range(12), key=lambda at: keeps_its_order and facts[at][1] == "test")
    assert its_facts == [facts[at] for at in order]
    if kind == "in memory":
        np.testing.assert_allclose(vectors, expected[order], rtol=1e-4, atol=1e-5)
    else:
        np.testing.assert_array_equal(vectors, expected[order])


REMOTE: dict[str, Callable[[Path, Path], Path]] = {
    "plain": lambda plain, _: plain,
    "x.zip": zipped,
    "x.tar": tarred,
    "shards": sharded,
    "parquet": parquet_pictures,
}


def put(fs: Any, base: str, made: Path) -> None:
    """Copy a file, or all files of a folder, to another file system."""
    for path in [made] if made.is_file() else made.rglob("*"):
        if path.is_file():
            fs.pipe_file(f"{base}{path.relative_to(made.parent)}", path.read_bytes())


def is_the_same(summary: ExtractSummary, known: ExtractSummary) -> bool:
    """Tell whether all was found under the keys of the files, with the same vectors, labels and splits."""
    assert (summary.found, summary.reused, summary.unreadable) == (12, 12, 0)
    vectors, facts = rows(summary)
    expected, known_facts = rows(known)
    return facts == known_facts and bool((vectors == expected).all())


@pytest.fixture
def memory() -> Iterator[Any]:
    import fsspec

    fs = fsspec.filesystem("memory")
    yield fs
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


@pytest.mark.parametrize("kind", REMOTE)
def test_each_kind_is_read_from_another_file_system(
    kind: str, memory: Any, plain: Path, tmp_path: Path, known: ExtractSummary, options: featcache.Options
) -> None:
    put(memory, "memory://in/", REMOTE[kind](plain, tmp_path / kind))
    assert is_the_same(featcache.extract(f"memory://in/{kind}/", options), known)


def test_a_manifest_elsewhere_lists_what_is_beside_it_and_one_here_what_is_elsewhere(
    memory: Any, plain: Path, tmp_path: Path, known: ExtractSummary, options: featcache.Options
) -> None:
    listed = as_csv(plain, plain.parent / "listed.csv")
    put(memory, "memory://in/", plain)
    put(memory, "memory://in/", listed)
    assert is_the_same(featcache.extract("memory://in/listed.csv", options), known)
    here = tmp_path / "here.csv"
    here.write_text(listed.read_text().replace("plain/", "memory://in/plain/"))
    assert is_the_same(featcache.extract(here, options), known)


def test_the_root_of_a_file_system_is_a_folder(memory: Any, plain: Path) -> None:
    for path in plain.rglob("*.png"):
        memory.pipe_file(f"/{path.relative_to(plain)}", path.read_bytes())
    for root in ("memory://", "memory:///"):
        found = discover(root)
        assert [(item.label, item.split) for item in found.items] == [(la, sp) for _, la, sp in pictures(plain)]
        assert read(found.items[0].path)[0] == pictures(plain)[0][0].read_bytes()


def test_a_container_elsewhere_that_is_replaced_is_read_again_at_once(memory: Any, tmp_path: Path) -> None:
    for number in (1, 2):
        write_picture(tmp_path / f"{number}" / "leaf" / "a.png", number)
        put(memory, "memory://in/", tarred(tmp_path / f"{number}", tmp_path / "x.tar"))
        (item,) = discover("memory://in/x.tar").items
        assert read(item.path)[0] == (tmp_path / f"{number}" / "leaf" / "a.png").read_bytes()


# --- S3 ---


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    """A bucket on a server of this computer that speaks S3."""
    server_of = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed")
    server = server_of.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    with pytest.MonkeyPatch.context() as patch:
        server.start()
        host, port = server.get_host_and_port()
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fs = s3fs.S3FileSystem()
        fs.mkdir("pictures")
        yield fs
        server.stop()


@pytest.mark.parametrize("kind", ["plain", "x.zip", "shards"])
def test_each_kind_is_read_from_s3(
    kind: str, s3: Any, plain: Path, tmp_path: Path, known: ExtractSummary, options: featcache.Options
) -> None:
    put(s3, "s3://pictures/in/", REMOTE[kind](plain, tmp_path / kind))
    s3.pipe_file("pictures/in/plain/", b"")  # what a console makes for a folder
    assert is_the_same(featcache.extract(f"s3://pictures/in/{kind}", options), known)


def test_only_what_changed_on_s3_is_read_again(
    s3: Any, plain: Path, tmp_path: Path, options: featcache.Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def counted(url: str) -> Any:
        asked.append(url)
        return remote_read(url)

    remote_read = featcache.sources.remote.read
    monkeypatch.setattr(featcache.sources.remote, "read", counted)
    monkeypatch.setattr(featcache.api.pipeline, "FRESH_NS", -(10**12))  # all objects here are new
    put(s3, "s3://pictures/changing/", plain)
    root = "s3://pictures/changing/plain"
    featcache.extract(root, options)
    featcache.extract(root, options)
    assert len(asked) == 12
    name = f"{root}/train/sky/b.png"
    elsewhere = type(s3)(skip_instance_cache=True)  # shares no listings with the one that is read by
    elsewhere.pipe_file(name, write_picture(tmp_path / "new.png", 77).read_bytes())
    found = featcache.extract(root, options)
    assert (found.computed, asked[12:]) == (1, [name])


def test_what_is_not_on_s3_and_a_server_that_does_not_answer_are_said(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("s3://pictures/none", "s3://nobucket/in", "s3://pictures/none.zip"):
        with pytest.raises(DatasetNotFoundError, match=f"no such folder, manifest or picture: {url}"):
            discover(url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3.clear_instance_cache()
    with pytest.raises(DatasetError, match=r"cannot read s3://pictures/in: .*127\.0\.0\.1:9"):
        discover("s3://pictures/in")
    s3.clear_instance_cache()


# --- what the commands do with them afterwards ---


def test_the_commands_take_a_zip_as_they_take_a_folder(
    run: Run, plain: Path, tmp_path: Path, known: ExtractSummary
) -> None:
    cache = ("--cache", known.cache)
    zipped(plain, tmp_path / "x.zip")
    row = run("fit", "x.zip", "--head", "centroid", "--json", *cache, network=True).json
    assert (row["n_train"], row["n_test"], row["scored_split"]) == (6, 6, "test")
    found = run("predict", row["model"], "x.zip", "--json", *cache).json["predictions"]
    first = f"zip://data/test/leaf/a.png::{tmp_path / 'x.zip'}"
    assert (len(found), found[0]["path"]) == (12, first)
    assert run("predict", row["model"], first, "--json", *cache).json["predictions"] == found[:1]
    (tmp_path / "x.zip").unlink()
    assert f"{tmp_path / 'x.zip'} is gone; its vectors are kept" in run("cache", "verify", *cache).out


def test_a_split_of_an_archive_is_a_manifest_that_is_taken_again(run: Run, plain: Path, tmp_path: Path) -> None:
    tarred(plain / "train", tmp_path / "x.tar")
    assert run("split", "x.tar", "--test", "0.34", "--out", "x.csv").code == 0
    found = discover(tmp_path / "x.csv")
    assert [item.path for item in found.items] == [item.path for item in discover(tmp_path / "x.tar").items]
    assert {item.split for item in found.items} == {"train", "test"}
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    text = (tmp_path / "x.csv").read_text().replace(f"::{tmp_path}/", "::../")
    (moved / "x.csv").write_text(text)  # a container is relative to the manifest too
    assert discover(moved / "x.csv").items == found.items
    assert "is no file here that a link could lead to" in run("split", "x.tar", "--links", "links").err


def test_a_dataset_in_python_is_checked_by_its_own_way(plain: Path, options: featcache.Options) -> None:
    found = featcache.extract(InMemory(plain, "train"), replace(options, draft=True), check=True)
    assert (found.found, found.unreadable, found.dataset) == (6, 0, "object://InMemory/given/True")
    assert found.check is not None
    assert found.check.pictures == 6
    with pytest.raises(PictureError, match="given in Python, and not kept: give it again"):
        read("object://InMemory/given/True/0")


# --- labels, columns ---


def listed(tmp_path: Path, text: str) -> Path:
    """Write a manifest of two pictures that are there."""
    for name in ("1.png", "2.png"):
        (tmp_path / name).write_bytes(name.encode())
    path = tmp_path / "list.csv"
    path.write_text(text)
    return path


def labels(source: Any, **how: Any) -> list[str | None]:
    return [item.label for item in discover(source, **how).items]


def parquet(file: Path, noted: Mapping[str, Any] | None = None, /, **columns: Any) -> Path:
    """Write a Parquet file, with what `datasets` would note of its columns."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pa.table(columns)
    if noted is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": noted}})})
    pq.write_table(table, file)
    return file


def test_columns_of_a_csv_are_mapped(run: Run, plain: Path, tmp_path: Path, known: ExtractSummary) -> None:
    path = as_csv(plain, plain.parent / "mapped.csv", ("file", "what is it", "fold"))
    said = run("extract", path, "--columns", "path=file,label=what is it,split=fold", "--json", network=True).json
    assert (said["found"], said["columns"]) == (12, {"path": "file", "label": "what is it", "split": "fold"})
    found = discover(path).notices  # of two columns one says splits
    assert "columns path=file, label=what is it" in found
    assert any(notice.endswith("for splits give --columns path=file,label=what is it,split=fold") for notice in found)
    path.write_text(path.read_text().replace("fold", "size").replace(",train", ",1").replace(",test", ",2"))
    with pytest.raises(DatasetError, match=r"is not clear \(what is it, size\).*--columns path=file,label="):
        discover(path)
    with pytest.raises(UsageError, match="unknown column 'breed': map path, label, split"):
        discover(path, columns={"breed": "label"})


@pytest.mark.parametrize("columns", ["path", "=x", "path=", "a=b=c,d"])
def test_columns_that_map_nothing_are_wrong_usage(columns: str, run: Run) -> None:
    found = run("extract", "x.csv", "--columns", columns)
    assert found.code == 2
    assert "say what the columns are called" in found.err


def test_a_path_with_two_labels_is_named_and_refused(tmp_path: Path) -> None:
    text = "path,label\n1.png,a\n2.png,b\n./1.png,b\n"
    expected = r"line 4: \./1.png stands on line 2 with another label or split \(a, no split; here b, no split\)"
    with pytest.raises(DatasetError, match=expected):
        discover(listed(tmp_path, text))
    assert labels(listed(tmp_path, "path,label\n1.png,a\n2.png,b\n1.png,a\n")) == ["a", "b"]
    path = parquet(tmp_path / "list.parquet", path=["1.png", "1.png"], label=["a", "b"])
    with pytest.raises(DatasetError, match=r"row 1: 1\.png stands on row 0 with another label"):
        discover(path)


def test_a_path_with_two_labels_or_splits_in_two_manifests_of_a_folder_is_refused(tmp_path: Path) -> None:
    for name in ("1.png", "2.png"):
        (tmp_path / name).write_bytes(name.encode())
    folder = tmp_path / "lists"
    folder.mkdir()
    parquet(folder / "a.parquet", path=["../1.png", "../2.png"], label=["a", "b"])
    parquet(folder / "b.parquet", path=["../1.png"], label=["b"])
    with pytest.raises(DatasetError, match=r"1\.png stands in .*a\.parquet and in .*b\.parquet .*a, no split; there b"):
        discover(folder)
    parquet(folder / "b.parquet", path=["../1.png"], label=["a"])
    assert labels(folder) == ["a", "b"]
    for name in ("a", "b"):
        (folder / f"{name}.parquet").rename(folder / f"{'train' if name == 'a' else 'test'}.parquet")
    with pytest.raises(DatasetError, match=r"1\.png .* another label or split \(a, test; there a, train\): keep one"):
        discover(folder)


def test_a_path_with_two_labels_in_an_object_that_knows_its_paths_is_refused(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("1.png", "2.png")]
    given = Given([(pixel(1), 0), (pixel(2), 1), (pixel(1), 1)])
    given.samples, given.classes = [(paths[0], 0), (paths[1], 1), (paths[0], 1)], ["ant", "bee"]
    with pytest.raises(DatasetError, match=r"1\.png stands in entry 0 and in entry 2 .* \(ant, no split; there bee"):
        discover(given)
    given.samples[2] = (paths[0], 0)
    assert labels(given) == ["ant", "bee"]


def test_two_datasets_of_one_split_are_refused() -> None:
    with pytest.raises(DatasetError, match="the datasets 'val' and 'validation' are both of the split val: give one"):
        discover({"val": Given([(pixel(1), 0)]), "validation": Given([(pixel(2), 1)])})


def test_a_manifest_that_lists_what_is_not_there_is_refused(tmp_path: Path) -> None:
    for path in ("3.png", "zip://a.png::gone.zip", "object://x/1"):
        with pytest.raises(DatasetNotFoundError, match=f"line 2: no such file: {path}"):
            discover(listed(tmp_path, f"path,label\n{path},a\n"))


IMAGE = {"_type": "Image"}
CLASSES = {"_type": "ClassLabel", "names": ["cat", "dog"]}


def test_labels_of_a_parquet_are_texts_numbers_or_named_numbers(tmp_path: Path) -> None:
    bytes_ = [b"1", b"2", b"3"]
    assert labels(parquet(tmp_path / "a.parquet", image=bytes_, label=[7, None, 8])) == ["7", None, "8"]
    noted = {"image": IMAGE, "label": CLASSES}
    assert labels(parquet(tmp_path / "b.parquet", noted, image=bytes_, label=[1, -1, 0])) == ["dog", None, "cat"]
    with pytest.raises(DatasetError, match="row 0, column 'label': class number 2, and there are 2 classes"):
        discover(parquet(tmp_path / "c.parquet", noted, image=bytes_[:1], label=[2]))


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ([["cat", "dog"]], r"several labels for one picture \(multi-label\), \['cat', 'dog'\]: give each picture one"),
        ([{"cat": 1}], "several labels for one picture"),
        ([0.5], "0.5 is no class, which is a text or a whole number: featcache classifies"),
    ],
)
def test_labels_that_are_no_class_are_refused(label: list[Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=f"row 0, column 'label': {said}"):
        discover(parquet(tmp_path / "x.parquet", image=[b"1"], label=label))


def test_which_columns_of_several_is_said_or_asked_for(tmp_path: Path) -> None:
    noted = {"img": IMAGE, "mask": IMAGE, "fine": CLASSES, "a.b/c": CLASSES}
    path = parquet(tmp_path / "x.parquet", noted, img=[b"1"], mask=[b"2"], fine=[0], **{"a.b/c": [1]})
    with pytest.raises(DatasetError, match=r"has no column 'path': it has img, mask, fine, a\.b/c; say which"):
        discover(path)
    with pytest.raises(DatasetError, match=r"has no column 'label'.*--columns label=NAME"):
        discover(path, columns={"path": "img"})
    (item,) = discover(path, columns={"path": "mask", "label": "a.b/c"}).items
    assert (read(item.path)[0], item.label) == (b"2", "dog")
    path = parquet(tmp_path / "y.parquet", label=["x"], **{"a.b/c": [{"bytes": b"3", "path": None}]})
    (item,) = discover(path, columns={"path": "a.b/c"}).items
    assert read(item.path)[0] == b"3"


def test_a_column_called_label_counts_more_than_one_with_names_of_classes(tmp_path: Path) -> None:
    noted = {"image": IMAGE, "sex": {"_type": "ClassLabel", "names": ["f", "m"]}}
    made = {"image": [b"1", b"2", b"3"], "sex": [0, 0, 1]}
    assert labels(parquet(tmp_path / "a.parquet", noted, **made, label=[1, 0, 7])) == ["1", "0", "7"]
    assert labels(parquet(tmp_path / "b.parquet", noted, **made, label=["x", "y", "x"])) == ["x", "y", "x"]
    assert labels(parquet(tmp_path / "c.parquet", noted, **made, other=[1, 0, 7])) == ["f", "f", "m"]
    assert labels(tmp_path / "a.parquet", columns={"label": "sex"}) == ["f", "f", "m"]


def test_rows_without_a_picture_are_counted_and_paths_in_rows_are_followed(tmp_path: Path) -> None:
    write_picture(tmp_path / "1.png", 1)
    rows = [{"bytes": None, "path": "1.png"}, {"bytes": None, "path": None}, None, {"bytes": b"4", "path": "1.png"}]
    items = discover(parquet(tmp_path / "x.parquet", image=rows, label=["a"] * 4)).items
    data, _, stat = read(items[0].path)
    assert (data, stat) == ((tmp_path / "1.png").read_bytes(), None)  # the table's stat tells nothing of it
    for item in items[1:3]:
        with pytest.raises(PictureError, match="no picture in this row"):
            read(item.path)
    assert read(items[3].path)[0] == b"4"


def test_broken_tables_are_refused(tmp_path: Path) -> None:
    path = parquet(tmp_path / "x.parquet", image=[b"1" * 99], label=["a"])
    whole = path.read_bytes()
    for size in (0, 3, 50, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(DatasetError, match="is no whole table"):
            discover(path)
    with pytest.raises(DatasetError, match="the column 'path' holds"):
        discover(parquet(tmp_path / "y.parquet", path=[1], label=["a"]))
    with pytest.raises(DatasetError, match="holds no files"):
        discover(parquet(tmp_path / "z.parquet", image=bytes_of([]), label=["a"][:0]))


def bytes_of(values: list[bytes]) -> Any:
    import pyarrow as pa

    return pa.array(values, pa.binary())


# --- packages and schemes ---


def test_an_unknown_scheme_is_named() -> None:
    with pytest.raises(DatasetError, match="foo://bar: foo:// is not read: use a path, or one of s3, "):
        discover("foo://bar")


@pytest.mark.parametrize(
    ("url", "module", "command"),
    [
        ("s3://bucket/x", "s3fs", "pip install 'featcache[s3]'"),
        ("gs://bucket/x", "gcsfs", "pip install 'featcache[gs]'"),
        ("hdfs://host/x", "pyarrow", "pip install 'featcache[hdfs]'"),
        ("https://host/x", "aiohttp", "pip install 'featcache[http]'"),
    ],
)
def test_a_package_that_is_missing_is_said_with_its_command(
    url: str, module: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, url.split(":")[0], raising=False)
    loaded = [name for name in sys.modules if name.split(".")[0] == module or name.endswith("implementations.arrow")]
    for name in loaded:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DatasetError) as failure:
        discover(url)
    assert str(failure.value) == f"{url} needs a package that is not installed: {command}"


def test_a_table_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DatasetError, match=r"needs pyarrow: pip install 'featcache\[parquet\]'"):
        discover(tmp_path / "x.parquet")


# --- WebDataset ---


def shard(path: Path, **files: bytes) -> Path:
    """Write a tar; in the names of its files a double underline stands for the dot."""
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member(archive, name.replace("__", "."), data)
    return path


def test_samples_of_a_shard(tmp_path: Path) -> None:
    path = shard(tmp_path / "x.tar", a1__jpg=b"1", a1__cls=b"3\n", b1__JPG=b"2", c1__cls=b"4", a1__txt=b"said", d=b"")
    found = discover(path)
    assert [(item.path, item.label) for item in found.items] == [
        (f"tar://a1.jpg::{path}", "3"),
        (f"tar://b1.JPG::{path}", None),
    ]
    assert found.notices == (
        "2 samples without a picture left out: c1, d",
        "1 of 2 samples without a label: it is looked for in KEY.cls",
    )


def test_labels_of_samples_are_fields_of_json_too(tmp_path: Path) -> None:
    path = shard(tmp_path / "x.tar", a__jpg=b"1", a__json=b'{"kind": "ant"}', b__jpg=b"1", b__json=b'{"kind": 3}')
    assert labels(path, columns={"label": "json.kind"}) == ["ant", "3"]
    for text, said in (
        (b'{"kind": ["ant", "bee"]}', "multi-label"),
        (b"{", "cannot be read from a.json"),
        (b"7", "be"),
    ):
        with pytest.raises(DatasetError, match=said):
            discover(shard(path, a__jpg=b"1", a__json=text), columns={"label": "json.kind"})
    with pytest.raises(DatasetError, match="multi-label"):
        discover(shard(path, a__jpg=b"1", a__cls=b"[1, 2]"))


def test_samples_that_could_be_read_in_two_ways_are_refused(tmp_path: Path) -> None:
    path = shard(tmp_path / "x.tar", a__left__jpg=b"1", a__right__jpg=b"2", a__cls=b"0")
    with pytest.raises(DatasetError, match=r"the sample a holds several pictures \(a.left.jpg, a.right.jpg\): say"):
        discover(path)
    assert [read(item.path)[0] for item in discover(path, columns={"path": "right.jpg"}).items] == [b"2"]
    with pytest.raises(DatasetError, match=r"the sample a has two files \.jpg"):
        discover(shard(path, a__jpg=b"1", a__JPG=b"2", a__cls=b"0"))
    with tarfile.open(path, "a") as archive:
        member(archive, "a.jpg", b"another")
    with pytest.raises(DatasetError, match="two samples have files of one name"):
        discover(path)


def test_keys_in_folders_are_apart(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for folder in ("one", "two"):
            member(archive, f"{folder}/a.b.png", folder.encode())
            member(archive, f"{folder}/a.cls", folder.encode())
    found = discover(tmp_path / "x.tar").items
    assert [(read(item.path)[0].decode(), item.label) for item in found] == [("one", "one"), ("two", "two")]


# --- what `datasets` saves ---


@pytest.fixture(scope="module")
def library() -> Any:
    return pytest.importorskip("datasets", reason="datasets is not installed")


def test_what_the_library_saves_is_read_as_it_reads_it(library: Any, plain: Path, tmp_path: Path) -> None:
    features = library.Features({"image": library.Image(), "label": library.ClassLabel(names=["leaf", "sky"])})
    own = [(path, label) for path, label, split in pictures(plain) if split == "train"]
    given = {"image": [str(path) for path, _ in own], "label": [label for _, label in own]}
    whole = library.Dataset.from_dict(given, features=features)
    chosen = whole.shuffle(seed=1).select([4, 1, 3]).filter(lambda row: row["label"] == 1 or True)
    splits = library.DatasetDict({"train": chosen, "validation": whole.select([0]), "extra": whole.select([1])})
    splits.save_to_disk(tmp_path / "saved", num_shards={"train": 2, "validation": 1, "extra": 1})
    found = discover(tmp_path / "saved")
    assert found.notices == ("the split 'extra' left out",)
    expected = [(row, split) for split, known in (("train", chosen), ("val", whole.select([0]))) for row in known]
    for item, (row, split) in zip(found.items, expected, strict=True):
        assert (item.label, item.split) == (features["label"].int2str(row["label"]), split)
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(read(item.path)[0]))), np.asarray(row["image"]))
    whole.to_parquet(tmp_path / "x.parquet")
    assert labels(tmp_path / "x.parquet") == [label for _, label in own]


def test_labels_of_the_library_are_the_column_label_or_the_one_of_classes(library: Any) -> None:
    kinds = {"image": library.Image(), "sex": library.ClassLabel(names=["f", "m"])}

    def given(label: Any = None, values: Any = None, **more: Any) -> Any:
        columns = {"image": [Image.fromarray(pixel(at)) for at in (1, 2)], "sex": [0, 1], **more}
        features = kinds | dict.fromkeys(more, kinds["sex"])
        if label is not None:
            columns, features = columns | {"label": values}, features | {"label": label}
        return library.Dataset.from_dict(columns, features=library.Features(features))

    assert labels(given(library.Value("int64"), [4, 0])) == ["4", "0"]
    assert labels(given(library.Value("string"), ["x", "y"])) == ["x", "y"]
    assert labels(given(library.ClassLabel(names=["y", "x"]), [1, 0])) == ["x", "y"]
    assert labels(given()) == ["f", "m"]
    assert labels(given(library.Value("string"), ["x", "y"], hand=[0, 0])) == ["x", "y"]
    with pytest.raises(DatasetError, match="has the columns image, sex, hand: leave one of pictures in it, and one "):
        discover(given(hand=[0, 0]))


@pytest.mark.parametrize("kind", ["datasets", "pandas"])
def test_labels_in_a_column_that_is_called_otherwise_are_asked_for_and_other_columns_said(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    pandas = pytest.importorskip("pandas")
    library = request.getfixturevalue("library") if kind == "datasets" else None
    paths = []
    for at in (1, 2):
        Image.fromarray(pixel(at)).save(tmp_path / f"{at}.png")
        paths.append(str(tmp_path / f"{at}.png"))

    def given(**columns: Any) -> Any:
        if library is None:
            return pandas.DataFrame({"path": paths, **columns})
        return library.Dataset.from_dict({"image": paths, **columns}).cast_column("image", library.Image())

    for name in ("labels", "Class", "fine_label", "species"):
        with pytest.raises(DatasetError, match=rf"has no column 'label', but {name}: rename .* or leave it out for"):
            discover(given(width=[7, 7], **{name: ["a", "b"]}))
    assert [item.label for item in discover(given(labels=["a", "b"]), labelled=False).items] == [None, None]
    found = discover(given(width=[7, 7], page=[1, 2]))
    assert [item.label for item in found.items] == [None, None]
    (said,) = found.notices
    assert said.startswith("no labels, since")
    assert said.endswith("has no column 'label', but width, page")
    assert discover(given()).notices == ()
    assert discover(given(label=["a", "b"], labels=["c", "d"])).notices == ()


def test_a_saved_dataset_that_is_not_whole_or_elsewhere_is_refused(memory: Any, plain: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    made = saved(plain, tmp_path / "saved")
    put(memory, "memory://in/", made)
    with pytest.raises(DatasetError, match="is what `datasets` saved, which is read on this computer only: copy it"):
        discover("memory://in/saved")
    (made / "test" / "state.json").unlink()
    with pytest.raises(DatasetError, match="is no whole dataset of `save_to_disk`"):
        discover(made)
    shutil.rmtree(made)
    made = saved(plain, tmp_path / "saved")
    (made / "train" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(DatasetError):
        discover(made)


# --- datasets in Python ---


class Given(list[Any]):
    """A dataset in Python: pictures and labels by number, and what else a test gives it."""


def pixel(value: int) -> Any:
    return np.full((4, 4, 3), value, np.uint8)


def test_subsets_and_splits_of_one_class_are_apart(plain: Path) -> None:
    from torch.utils.data import Subset

    train, test = Given([(pixel(1), 0), (pixel(2), 1)]), Given([(pixel(3), 1), (pixel(4), 0)])
    found = discover({"train": Subset(Subset(train, [1, 0]), [0]), "validation": test})
    assert [(item.label, item.split) for item in found.items] == [("1", "train"), ("1", "val"), ("0", "val")]
    assert found.access is not None
    assert [found.access.read(item.path)[0][-1] for item in found.items] == [2, 3, 4]


def test_paths_of_an_image_folder_are_absolute(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from featcache.backbones.vision_import import import_torchvision

    monkeypatch.chdir(plain)
    folder = import_torchvision().datasets.ImageFolder("train", transform=lambda picture: 0 / 0)
    assert discover(folder).items == tuple(Item(str(p), la) for p, la, split in pictures(plain) if split == "train")


def test_a_target_transform_is_heeded_and_a_transform_is_refused() -> None:
    given = Given([(pixel(1), 4), (pixel(2), 5)])
    given.targets, given.classes, given.target_transform = [4, 5], list("abcdef"), lambda value: value // 2
    assert labels(given) == ["2", "2"]
    found = discover(Given([(pixel(1).astype(np.float32), 0)]))
    assert found.access is not None
    with pytest.raises(PictureError, match="give uint8"):
        found.access.read(found.items[0].path)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (iter([1]), "list_iterator is no dataset: name a folder or a manifest"),
        (Given([(pixel(1), [0, 1])]), "several labels for one picture"),
        (Given([(pixel(1), np.array([0, 1]))]), "several labels for one picture"),
        (Given([pixel(1)[0, 0, 0]]), "gives no .picture, label. by number"),
        (Given(), "holds no files"),
        ({"Train A": Given([(pixel(1), 0)])}, "unknown split 'train a'"),
    ],
)
def test_objects_that_are_no_dataset_of_pictures_are_refused(given: Any, said: str) -> None:
    with pytest.raises(DatasetError, match=said):
        discover(given)


def test_columns_of_what_has_none_are_refused(tmp_path: Path) -> None:
    write_picture(tmp_path / "imgs" / "a" / "1.png", 1)
    write_picture(tmp_path / "imgs" / "b" / "1.png", 2)
    with zipfile.ZipFile(tmp_path / "imgs.zip", "w") as archive:
        for path in (tmp_path / "imgs").rglob("*.png"):
            archive.write(path, path.relative_to(tmp_path))
    for source in ("imgs", "imgs.zip", "imgs/a/1.png"):
        with pytest.raises(DatasetError, match="has no columns"):
            discover(tmp_path / source, columns={"label": "x"})


def test_a_label_that_no_sample_has_is_an_error(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "1.tar", "w") as archive:
        for name, data in (("1.png", b"picture"), ("1.cls", b"ant"), ("1.json", b"{}")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    assert [item.label for item in discover(tmp_path / "1.tar").items] == ["ant"]
    with pytest.raises(DatasetError, match=r"looked for in KEY\.json: --columns label=json\.kind"):
        discover(tmp_path / "1.tar", columns={"label": "json.kind"})


def test_a_part_of_a_container_is_named_by_the_whole_path_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert named("zip://a/1.jpg::x/../y.zip") == f"zip://a/1.jpg::{tmp_path}/y.zip"
    assert named("tar://1.jpg::s3://bucket/x.tar") == "tar://1.jpg::s3://bucket/x.tar"
