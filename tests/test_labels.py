"""Values that are no single class are refused, or taken, alike in every kind of input; lists given in Python."""

from __future__ import annotations

import csv
import io
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINTS, write_picture
from input_kinds import member
from PIL import Image

import featcache
from featcache.discover import discover
from featcache.errors import DatasetError, DatasetNotFoundError, OutputError
from featcache.load import load
from featcache.records import Item
from featcache.store import Cache

pytestmark = pytest.mark.usefixtures("one_thread", "ready_network")

Make = Callable[[Path, Sequence[Any]], Any]


def put(folder: Path, count: int) -> list[Path]:
    paths = [folder / f"{at}.png" for at in range(count)]
    for at, path in enumerate(paths):
        write_picture(path, at)
    return paths


def as_csv(folder: Path, labels: Sequence[Any]) -> Path:
    with (folder / "list.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        writer.writerows((path.name, label) for path, label in zip(put(folder, len(labels)), labels, strict=True))
    return folder / "list.csv"


def as_table(folder: Path, pictures: list[Any], labels: Sequence[Any], name: str) -> Path:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({name: pictures, "label": list(labels)}), folder / "table.parquet")
    return folder / "table.parquet"


def as_parquet(folder: Path, labels: Sequence[Any]) -> Path:
    return as_table(folder, [path.read_bytes() for path in put(folder, len(labels))], labels, "image")


def as_parquet_of_paths(folder: Path, labels: Sequence[Any]) -> Path:
    return as_table(folder, [path.name for path in put(folder, len(labels))], labels, "path")


def as_shard(folder: Path, labels: Sequence[Any]) -> Path:
    with tarfile.open(folder / "x.tar", "w") as archive:
        for at, (path, label) in enumerate(zip(put(folder, len(labels)), labels, strict=True)):
            member(archive, f"{at}.png", path.read_bytes())
            member(archive, f"{at}.cls", str(label).encode())
    return folder / "x.tar"


def as_saved(folder: Path, labels: Sequence[Any]) -> Path:
    library = pytest.importorskip("datasets")
    given = {"image": [str(path) for path in put(folder, len(labels))], "label": list(labels)}
    library.Dataset.from_dict(given).cast_column("image", library.Image()).save_to_disk(folder / "saved")
    return folder / "saved"


def as_pairs(folder: Path, labels: Sequence[Any]) -> list[tuple[Path, Any]]:
    return list(zip(put(folder, len(labels)), labels, strict=True))


def as_object(folder: Path, labels: Sequence[Any]) -> list[tuple[Any, Any]]:
    return [(Image.open(io.BytesIO(path.read_bytes())), label) for path, label in as_pairs(folder, labels)]


TEXTS: dict[str, Make] = {
    "csv": as_csv,
    "parquet": as_parquet,
    "parquet of paths": as_parquet_of_paths,
    "shard": as_shard,
    "saved": as_saved,
    "pairs": as_pairs,
    "object": as_object,
}
"""Kinds of input whose labels may be texts; numbers in a CSV and a shard are texts anyway."""

PLACES = {
    "csv": r"line 4, column 'label'",
    "parquet": r"row 2, column 'label'",
    "parquet of paths": r"row 2, column 'label'",
    "shard": "sample 2, cls",
    "saved": r"row 2, column 'label'",
    "pairs": "entry 2",
    "object": "object://list/2",
}


def refusal(source: Any, tmp_path: Path) -> str:
    """Return what is said of a source that is refused before anything is extracted."""
    with pytest.raises(DatasetError) as caught:
        featcache.extract(source, featcache.Options(cache=tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()
    return str(caught.value)


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["scab", "rust", "scab rust"], r"'scab rust' is several labels in one field \(multi-label\), since 'scab'"),
        (["a", "b", "a|b"], "'a|b' is several labels"),
        (["a", "b", "b ; a"], "'b ; a' is several labels"),
        (["a", "b", "b,a"], "'b,a' is several labels"),
        (["1", "2", "1 2 1"], "'1 2 1' is several labels"),
        (["x", "y", "[1, 2]"], r"several labels for one picture \(multi-label\)"),
        (["x", "y", '["x"]'], r"several labels for one picture \(multi-label\)"),
        (["x", "y", "0.53"], "0.53 is no class, which is a text or a whole number"),
        (["1.0", "2.0", "-2.50"], "-2.50 is no class"),
        (["x", "y", "1.5e-3"], "1.5e-3 is no class"),
    ],
)
def test_what_is_no_single_class_is_refused_with_its_place(
    kind: str, labels: list[str], said: str, tmp_path: Path
) -> None:
    found = refusal(TEXTS[kind](tmp_path, labels), tmp_path)
    assert said.replace("\\", "") in found
    assert PLACES[kind] in found


@pytest.mark.parametrize("kind", ["parquet", "parquet of paths", "saved", "pairs", "object"])
@pytest.mark.parametrize("value", [0.53, float("inf")])
def test_numbers_with_a_fraction_are_refused_as_numbers_too(kind: str, value: float, tmp_path: Path) -> None:
    found = refusal(TEXTS[kind](tmp_path, [1.0, 2.0, value]), tmp_path)
    assert f"{value} is no class" in found
    assert PLACES[kind] in found


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("labels", [["water lily", "water", "lotus, pink", "a;", "[?]", "(1)", "1.2.3", "v1.0", "1e3"]])
def test_names_that_only_look_like_it_are_classes(kind: str, labels: list[str], tmp_path: Path) -> None:
    found = discover(TEXTS[kind](tmp_path, labels))
    assert ([item.label for item in found.items], found.notices) == (labels, ())


@pytest.mark.parametrize("kind", TEXTS)
def test_whole_numbers_with_a_point_are_the_same_classes_everywhere(kind: str, tmp_path: Path) -> None:
    values: list[Any] = ["1.0", "2.00", "1"] if kind in ("csv", "shard") else [1.0, 2.0, 1.0]
    found = discover(TEXTS[kind](tmp_path, values))
    assert [item.label for item in found.items] == ["1", "2", "1"]
    assert [notice.split(" labels ", 1)[1] for notice in found.notices] == [
        "are whole numbers written with a point, and 1.0 is taken as the class 1"
    ]


@pytest.mark.parametrize("kind", TEXTS)
def test_what_is_true_or_false_is_the_same_classes_everywhere(kind: str, tmp_path: Path) -> None:
    found = discover(TEXTS[kind](tmp_path, [True, False, True]))
    assert ([item.label for item in found.items], found.notices) == (["True", "False", "True"], ())


def test_a_name_that_stands_twice_in_a_line_of_json_is_refused(tmp_path: Path) -> None:
    put(tmp_path, 1)
    (tmp_path / "list.jsonl").write_text('{"path": "0.png", "label": "a", "label": "b"}\n')
    with pytest.raises(DatasetError, match=r"line 1: it is no JSON \(it has 'label' twice\)"):
        discover(tmp_path / "list.jsonl")


@pytest.mark.parametrize("kind", ["parquet", "pairs", "object"])
def test_a_number_that_is_none_is_no_label(kind: str, tmp_path: Path) -> None:
    found = discover(TEXTS[kind](tmp_path, [1.0, float("nan"), 2.0]))
    assert [item.label for item in found.items] == ["1", None, "2"]


def test_classes_that_a_dataset_has_names_for_are_as_it_says(tmp_path: Path) -> None:
    class Given(list[Any]):
        classes = ("bell", "pepper", "bell pepper")

    given = Given((picture, at) for at, (picture, _) in enumerate(as_object(tmp_path, "abc")))
    assert [item.label for item in discover(given).items] == ["bell", "pepper", "bell pepper"]


def test_folders_are_classes_whatever_they_are_called_but_no_manifest_of_them_is_written(tmp_path: Path) -> None:
    for at, name in enumerate(("scab", "rust", "scab rust")):
        for number in range(3):
            write_picture(tmp_path / "imgs" / name / f"{number}.png", 10 * at + number)
    assert len({item.label for item in discover(tmp_path / "imgs").items}) == 3
    with pytest.raises(DatasetError, match="'scab rust' is several labels in one field"):
        featcache.split(tmp_path / "imgs", out=tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()
    (tmp_path / "imgs" / "scab rust").rename(tmp_path / "imgs" / "1.0")
    with pytest.raises(DatasetError, match=r"class '1\.0' would be read as another from a manifest"):
        featcache.split(tmp_path / "imgs", out=tmp_path / "out.csv")
    (tmp_path / "imgs" / "1.0").rename(tmp_path / "imgs" / "both")
    try:
        featcache.split(tmp_path / "imgs", out=tmp_path / "out.csv")
    except OutputError as error:  # pragma: no cover - shown where it fails
        pytest.fail(str(error))


# --- lists and dictionaries given in Python ---


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of classes, not beside each other."""
    root = tmp_path_factory.mktemp("given")
    number = 0
    for split in ("here/train", "there/judged"):
        for label in ("leaf", "sky"):
            for _ in range(4):
                number += 1
                write_picture(root / split / label / f"{number}.png", number, TINTS[label])
    return root


@pytest.fixture(scope="module")
def options(folder: Path, seeded_weights: Path) -> featcache.Options:
    return featcache.Options("resnet18", seeded_weights, folder / "cache")


def facts(summary: Any) -> list[tuple[str, str, str]]:
    """Return path, label and split of what was extracted."""
    with Cache(Path(summary.cache)) as cache:
        found = load(cache.catalog.dataset(summary.dataset), cache.store(summary.fingerprint))
    return list(zip(found.paths, found.y.tolist(), found.splits.tolist(), strict=True))


def files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*.png"))


def test_folders_of_splits_in_two_places_are_one_dataset(folder: Path, options: featcache.Options) -> None:
    found = featcache.extract({"train": folder / "here/train", "val": str(folder / "there/judged")}, options)
    expected = [
        (str(path), path.parent.name, split)
        for root, split in (("here/train", "train"), ("there/judged", "val"))
        for path in files(folder / root)
    ]
    assert sorted(facts(found)) == sorted(expected)
    row = featcache.fit(head="centroid", options=featcache.Options(cache=options.cache))
    assert (row.n_train, row.scored_split, row.n_test, row.n_classes) == (8, "val", 8, 2)
    assert row.dataset == found.dataset


@pytest.mark.parametrize("kind", [list, tuple, np.array])
def test_a_list_of_paths_is_pictures_without_labels(kind: Any, folder: Path, options: featcache.Options) -> None:
    paths = [str(path) for path in files(folder / "here")]
    found = featcache.extract(kind(paths), options)
    assert facts(found) == [(path, "", "") for path in paths]


def test_pairs_of_path_and_label_are_labelled_pictures(folder: Path, options: featcache.Options) -> None:
    pairs = {
        split: [(path, np.int64(path.parent.name == "sky")) for path in files(folder / root)]
        for split, root in (("train", "here"), ("test", "there"))
    }
    found = featcache.extract(pairs, options)
    assert facts(found) == [(str(path), str(int(label)), split) for split in pairs for path, label in pairs[split]]
    other = featcache.extract([(path, "a") for path, _ in pairs["train"]], options)
    assert other.dataset != found.dataset
    assert other.reused == 8


def test_a_dataset_of_the_library_is_taken_by_its_picture_and_label(folder: Path, options: featcache.Options) -> None:
    library = pytest.importorskip("datasets")
    features = library.Features({"label": library.ClassLabel(names=["leaf", "sky"]), "image": library.Image()})
    paths = files(folder / "here")
    given = {"image": [str(path) for path in paths], "label": [int(path.parent.name == "sky") for path in paths]}
    whole = library.Dataset.from_dict(given, features=features)
    both = library.DatasetDict({"train": whole.select(range(4)), "validation": whole.select(range(4, 8))})
    found = featcache.extract(both, options)
    assert [row[1:] for row in facts(found)] == [("leaf", "train")] * 4 + [("sky", "val")] * 4
    np.testing.assert_allclose(
        _vectors(found), _vectors(featcache.extract([str(p) for p in paths], options)), rtol=1e-4
    )
    assert [item.label for item in discover(whole.remove_columns("label")).items] == [None] * 8
    with pytest.raises(DatasetError, match="has the columns label: leave one of pictures in it"):
        discover(whole.remove_columns("image"))


def _vectors(summary: Any) -> Any:
    with Cache(Path(summary.cache)) as cache:
        return load(cache.catalog.dataset(summary.dataset), cache.store(summary.fingerprint)).X


def test_lists_that_are_not_clear_are_refused_by_name(folder: Path) -> None:
    one, two, *_ = files(folder / "here")
    cases: list[tuple[Any, str]] = [
        ([one, (two, "a")], "entry 1 of the list is tuple, and entry 0 is a path: give all alike"),
        ([(one, "a"), two], "entry 1 of the list is .*Path, and entry 0 is a path and a label"),
        ([folder / "here"], r"is a folder, and a list is of pictures: .*\"train\": FOLDER"),
        ([(one, "a"), (one, "b")], "entry 1: .* stands on entry 0 with another label"),
        ({"train": [one], "val": [one]}, "is given as train and as val: take one away"),
        ({"val": folder / "here"}, "has splits of its own, and is given as 'val'"),
        ({"ants": [one]}, "unknown split 'ants'"),
        ({"train": 3}, "int is no dataset: name a folder or a manifest"),
    ]
    for given, said in cases:
        with pytest.raises(DatasetError, match=said):
            discover(given)
    with pytest.raises(DatasetNotFoundError, match=r"entry 1: no such file: .*relative to the current folder"):
        discover([one, folder / "gone.png"])


def test_paths_of_a_list_are_relative_to_the_current_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder / "here/train/leaf")
    name = files(Path())[0]
    assert discover([str(name)]).items == (Item(str(folder / "here/train/leaf" / name)),)
