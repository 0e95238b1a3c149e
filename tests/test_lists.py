"""Lists, tables and shards as programs write them: what they say is used, or refused with advice that leads on."""

from __future__ import annotations

import io
import json
import tarfile
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from input_kinds import member
from PIL import Image

from featcache.discover import discover
from featcache.errors import DatasetError
from featcache.records import Dataset

pd = pytest.importorskip("pandas")

Found = dict[str, tuple[str | None, str | None]]


def found(dataset: Dataset) -> Found:
    """Label and split by the path of each picture below the folder of the test."""
    return {item.path.split("/data/")[-1].split("::")[0]: (item.label, item.split) for item in dataset.items}


def folder(root: Path, *names: str, **texts: str) -> Path:
    """A folder `data` with empty files, and with texts by name (`__` for a dot)."""
    for name in names:
        path = root / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    for name, text in texts.items():
        (root / "data" / name.replace("__", ".")).write_text(text)
    return root / "data"


def refused(source: object, **how: object) -> str:
    with pytest.raises(DatasetError) as caught:
        discover(source, **how)  # type: ignore[arg-type]
    return str(caught.value)


class TestInPython:
    def test_rows_with_splits_of_their_own_are_not_overruled_by_the_split_they_are_given_as(
        self, tmp_path: Path
    ) -> None:
        root = folder(tmp_path, "1.jpg", "2.jpg", "3.jpg")
        paths = [str(root / f"{n}.jpg") for n in (1, 2, 3)]
        rows = [(paths[0], "a", "train"), (paths[1], "b", "test")]
        table = pd.DataFrame(rows, columns=["path", "label", "split"])
        for given in (rows, table):
            said = refused({"train": given, "val": [(paths[2], "a")]})
            assert "has splits of its own, and is given as 'train': give it alone" in said
            assert {item.split for item in discover(given).items} == {"train", "test"}
        dataset = discover({"train": table[table["split"] == "train"], "test": table[table["split"] == "test"]})
        assert [(item.label, item.split) for item in dataset.items] == [("a", "train"), ("b", "test")]

    def test_what_is_streamed_is_refused_by_name(self, tmp_path: Path) -> None:
        datasets = pytest.importorskip("datasets")
        root = folder(tmp_path, "1.jpg")
        kind = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
        whole = datasets.Dataset.from_dict({"image": [str(root / "1.jpg")], "label": [0]}, features=kind)
        streamed = whole.to_iterable_dataset()
        for source in (streamed, {"train": streamed}, datasets.IterableDatasetDict({"train": streamed})):
            said = refused(source)
            assert said.startswith("IterableDataset is no dataset")
            assert "load it without streaming" in said

    @pytest.mark.parametrize("missing", [None, float("nan"), pd.NA, pd.NaT])
    def test_what_tables_have_where_there_is_no_value_is_no_label(self, tmp_path: Path, missing: object) -> None:
        root = folder(tmp_path, "1.jpg", "2.jpg")
        paths = [str(root / "1.jpg"), str(root / "2.jpg")]
        table = pd.DataFrame({"path": paths, "label": ["a", missing], "split": ["train", missing]})
        assert found(discover(table)) == {"1.jpg": ("a", "train"), "2.jpg": (None, None)}
        assert found(discover(table.astype("string"))) == {"1.jpg": ("a", "train"), "2.jpg": (None, None)}
        assert found(discover([(paths[0], "a"), (paths[1], missing)])) == {"1.jpg": ("a", None), "2.jpg": (None, None)}


class TestTabs:
    ROWS = '"path"\t"label"\n"1.jpg"\t"cat, spotted"\n2.jpg\tb\n3.jpg\t"b"\n"4.jpg"\t"say ""b"""\n'
    EXPECTED: Found = {  # noqa: RUF012
        "1.jpg": ("cat, spotted", None),
        "2.jpg": ("b", None),
        "3.jpg": ("b", None),
        "4.jpg": ('say "b"', None),
    }

    @pytest.mark.parametrize("name", ["labels.tsv", "labels.csv", "labels.txt"])
    @pytest.mark.parametrize("names", [True, False])
    def test_quotes_around_fields_are_none_of_the_label(self, tmp_path: Path, name: str, names: bool) -> None:
        root = folder(tmp_path, *(f"{n}.jpg" for n in (1, 2, 3, 4)))
        (root / name).write_text(self.ROWS if names else self.ROWS.partition("\n")[2])
        assert found(discover(root)) == self.EXPECTED
        assert found(discover(root / name)) == self.EXPECTED

    def test_a_quote_that_is_not_closed_swallows_no_row(self, tmp_path: Path) -> None:
        root = folder(tmp_path, "1.jpg", "2.jpg", labels__tsv='path\tlabel\n1.jpg\t"cat\n2.jpg\tdog\n')
        assert "is not a readable CSV file" in refused(root / "labels.tsv")
        assert "is not a readable CSV file" in refused(root)

    def test_a_line_with_a_field_less_is_refused_with_its_number(self, tmp_path: Path) -> None:
        root = folder(tmp_path, "1.jpg", "2.jpg", labels__tsv="path\tlabel\n1.jpg\tcat\n2.jpg\n")
        assert "line 3: it has 1 fields, and the first line 2" in refused(root / "labels.tsv")


class TestWithoutNamesOfColumns:
    """The number of a line is no label and no name of a picture, and the path may be the last field."""

    PAIRS = ("2.jpg a", "3.jpg b", "4.jpg a", "1.jpg b")
    EXPECTED: Found = {  # noqa: RUF012
        "1.jpg": ("b", None),
        "2.jpg": ("a", None),
        "3.jpg": ("b", None),
        "4.jpg": ("a", None),
    }

    @pytest.mark.parametrize(
        ("name", "form"),
        [
            ("labels.txt", "{n} {path} {label}"),
            ("train.lst", "{n}\t{label}\t{path}"),
            ("labels.tsv", "{n}\t{path}\t{label}"),
            ("labels.tsv", "{label}\t{path}"),
            ("labels.csv", "{label},{path}"),
            ("labels.csv", "{n},{path},{label}"),
        ],
    )
    @pytest.mark.parametrize("labels", [("a", "b"), ("0", "1")])
    def test_path_and_label_are_told_apart_by_what_is_there(
        self, tmp_path: Path, name: str, form: str, labels: tuple[str, str]
    ) -> None:
        root = folder(tmp_path, *(f"{n}.jpg" for n in (1, 2, 3, 4)))
        as_said = dict(zip("ab", labels, strict=True))
        pairs = [pair.split() for pair in self.PAIRS]
        lines = [form.format(n=n, path=path, label=as_said[label]) for n, (path, label) in enumerate(pairs, 1)]
        (root / name).write_text("\n".join(lines) + "\n")
        expected = {path: (as_said[str(label)], None) for path, (label, _) in self.EXPECTED.items()}
        assert found(discover(root)) == expected
        assert found(discover(root / name)) == expected

    def test_a_number_before_a_path_is_the_label(self, tmp_path: Path) -> None:
        root = folder(tmp_path, "1.jpg", "2.jpg", labels__txt="1 2.jpg\n2 1.jpg\n")
        assert found(discover(root)) == {"1.jpg": ("2", None), "2.jpg": ("1", None)}

    def test_a_label_with_spaces_behind_the_number_of_a_line(self, tmp_path: Path) -> None:
        root = folder(tmp_path, "1.jpg", "2.jpg", labels__txt="1 2.jpg tabby cat\n2 1.jpg pug\n")
        assert found(discover(root)) == {"1.jpg": ("pug", None), "2.jpg": ("tabby cat", None)}

    def test_a_number_does_not_stand_for_a_picture_where_the_named_one_is_missing(self, tmp_path: Path) -> None:
        root = folder(tmp_path, "1.jpg", "2.jpg", labels__txt="1 2.jpg a\n2 gone.jpg b\n")
        assert "line 2: no such file: gone.jpg" in refused(root / "labels.txt")
        assert "no such file: gone.jpg" in refused(root)

    def test_a_number_that_stands_twice_is_not_that_of_the_line(self, tmp_path: Path) -> None:
        root = folder(tmp_path, "1.jpg", "2.jpg", labels__lst="0\t5\t1.jpg\n0\t7\t2.jpg\n")
        said = refused(root)
        assert "labels.lst, line 2: the number '0' in the first column stands in a line before it" in said
        (root / "labels.lst").write_text("label\tx\tpath\n" + (root / "labels.lst").read_text())
        assert found(discover(root / "labels.lst")) == {"1.jpg": ("0", None), "2.jpg": ("0", None)}


class TestNamesOfPictures:
    def test_a_number_column_does_not_stand_for_pictures_that_are_missing(self, tmp_path: Path) -> None:
        rows = [f"1,{n},/data/upload/1/ab12-{5 - n}.jpg,{'aabb'[n - 1]}" for n in (1, 2, 3, 4)]  # as Label Studio
        text = "\n".join(["annotator,id,image,label", *rows])
        root = folder(tmp_path, *(f"{n}.jpg" for n in (1, 2, 3, 4)), project__csv=text)
        for source in (root, root / "project.csv"):
            assert "none of the pictures that it names is there, the first '/data/upload/1/ab12-4.jpg'" in refused(
                source
            )
            # whoever says that the numbers name the pictures is believed
            dataset = discover(source, columns={"path": "id", "label": "label"})
            assert found(dataset)["1.jpg"] == ("a", None)

    def test_names_that_look_the_same_are_one(self, tmp_path: Path) -> None:
        as_mac, as_typed = (unicodedata.normalize(form, "caf\u00e9/\u00e91.jpg") for form in ("NFD", "NFC"))
        root = folder(tmp_path, as_mac, "caf\u00e9.jpg")
        (root / "labels.csv").write_text(f"path,label\n{as_typed},a\ncaf\u00e9.jpg,b\n", encoding="utf-8")
        assert found(discover(root / "labels.csv")) == {as_mac: ("a", None), "caf\u00e9.jpg": ("b", None)}


def tar(path: Path, **files: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, text in files.items():
            member(archive, name, text.encode())


def table(path: Path, *labels: int) -> None:
    picture = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(picture, "PNG")
    rows = [{"bytes": picture.getvalue(), "path": None} for _ in labels]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": rows, "label": list(labels)}), path)


def cells(dataset: Dataset) -> list[tuple[str | None, str | None]]:
    return [(item.label, item.split) for item in dataset.items]


class TestShardsAndTables:
    def test_folders_in_a_shard_that_say_splits_are_the_splits(self, tmp_path: Path) -> None:
        names = {f"{split}/{n}": str(n) for split in ("train", "val") for n in (0, 1)}
        tar(tmp_path / "w.tar", **{f"{k}.{e}": label for k, label in names.items() for e in ("jpg", "cls")})
        dataset = discover(tmp_path / "w.tar")
        assert cells(dataset) == [("0", "train"), ("1", "train"), ("0", "val"), ("1", "val")]
        assert "splits from the folders that the samples are in" in dataset.notices

    def test_archives_of_class_folders_are_refused_with_a_way_that_keeps_the_splits(self, tmp_path: Path) -> None:
        for split in ("train", "val"):
            tar(tmp_path / f"{split}.tar", **{f"{label}/{split}.jpg": "" for label in ("cat", "dog")})
        said = refused(tmp_path)
        ways = json.loads(said[said.index("{") :])
        assert cells(discover(ways)) == [("cat", "train"), ("dog", "train"), ("cat", "val"), ("dog", "val")]

    def test_metadata_beside_each_shard_is_left_out_and_labels_in_json_are_asked_for(self, tmp_path: Path) -> None:
        tar(tmp_path / "00000.tar", **{"0.jpg": "", "0.json": '{"label": 7}'})  # as img2dataset
        table(tmp_path / "00000.parquet", 1)
        (tmp_path / "00000_stats.json").write_text("{}")
        dataset = discover(tmp_path)
        assert "1 file beside the .tar files left out: 00000.parquet" in dataset.notices
        assert "there are json: say which with --columns label=ENDING, or label=json.FIELD" in dataset.notices[-1]
        assert cells(discover(tmp_path, columns={"label": "json.label"})) == [("7", None)]

    @pytest.mark.parametrize("name", ["LICENSE", "birds.py", "sizes.csv", "README.md"])
    def test_texts_and_programs_beside_tables_are_left_out(self, tmp_path: Path, name: str) -> None:
        for split in ("train", "test"):
            table(tmp_path / "data" / f"{split}-00000-of-00001.parquet", 0, 1)
        (tmp_path / name).write_text("x")
        dataset = discover(tmp_path)
        assert sorted(cells(dataset)) == [("0", "test"), ("0", "train"), ("1", "test"), ("1", "train")]  # type: ignore[type-var]
        assert name == "README.md" or f"1 file beside the .parquet files left out: {name}" in dataset.notices

    @pytest.mark.parametrize("name", ["more.zip", "more.tar", "something"])
    def test_what_may_hold_pictures_too_is_not_left_out(self, tmp_path: Path, name: str) -> None:
        table(tmp_path / "train.parquet", 0, 1)
        (tmp_path / name).write_bytes(b"")
        assert name in refused(tmp_path)
        assert len(discover(tmp_path / "train.parquet").items) == 2

    def test_configurations_of_a_dataset_are_not_merged(self, tmp_path: Path) -> None:
        for name, labels in (("fine", (3, 7)), ("coarse", (0, 1))):
            for split in ("train", "test"):
                table(tmp_path / name / f"{split}-00000-of-00001.parquet", *labels)
        said = refused(tmp_path)
        assert "(coarse, fine)" in said
        assert {label for label, _ in cells(discover(said.rpartition("SOURCE, as ")[2]))} == {"0", "1"}
