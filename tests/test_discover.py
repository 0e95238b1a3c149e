"""What discover makes of folders, manifests and single pictures; the files hold no pictures, it must not open them."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from featcache.discover import discover
from featcache.errors import DatasetError, DatasetNotFoundError
from featcache.records import Dataset

Row = tuple[str, str | None, str | None]


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def rows(dataset: Dataset, root: Path) -> list[Row]:
    """The items as (path below root, label, split), in the order of the dataset."""
    return [(os.path.relpath(item.path, root), item.label, item.split) for item in dataset.items]


def manifest(root: Path, text: str, *, encoding: str = "utf-8") -> Path:
    path = root / "pictures.csv"
    path.write_bytes(text.encode(encoding))
    return path


class TestFolder:
    def test_the_folders_name_the_classes(self, tmp_path: Path) -> None:
        touch(tmp_path, "dog/b.jpg", "cat/c.jpg", "dog/a.jpg")
        found = discover(tmp_path)
        assert rows(found, tmp_path) == [
            ("cat/c.jpg", "cat", None),
            ("dog/a.jpg", "dog", None),
            ("dog/b.jpg", "dog", None),
        ]
        assert found.notices == ()
        assert found.root == str(tmp_path)

    @pytest.mark.parametrize(
        ("folder", "split"),
        [
            ("train", "train"),
            ("Train", "train"),
            ("TRAIN", "train"),
            ("val", "val"),
            ("valid", "val"),
            ("Validation", "val"),
            ("test", "test"),
            ("TEST", "test"),
            ("holdout", "holdout"),
            ("Holdout", "holdout"),
        ],
    )
    def test_a_split_folder_gives_its_pictures_the_split(self, tmp_path: Path, folder: str, split: str) -> None:
        touch(tmp_path, f"{folder}/cat/1.jpg", f"{folder}/dog/2.jpg")
        found = discover(tmp_path)
        assert rows(found, tmp_path) == [(f"{folder}/cat/1.jpg", "cat", split), (f"{folder}/dog/2.jpg", "dog", split)]
        assert found.notices == ()

    def test_all_splits_side_by_side(self, tmp_path: Path) -> None:
        touch(tmp_path, *(f"{split}/cat/1.jpg" for split in ("train", "val", "test", "holdout")))
        found = discover(tmp_path)
        assert [(item.label, item.split) for item in found.items] == [
            ("cat", "holdout"),
            ("cat", "test"),
            ("cat", "train"),
            ("cat", "val"),
        ]

    def test_val_and_valid_are_one_split(self, tmp_path: Path) -> None:
        touch(tmp_path, "train/cat/1.jpg", "val/cat/1.jpg", "valid/cat/1.jpg")
        assert [item.split for item in discover(tmp_path).items] == ["train", "val", "val"]

    @pytest.mark.parametrize(("above", "split"), [("", None), ("train/", "train")])
    def test_folders_below_a_class_belong_to_the_class(self, tmp_path: Path, above: str, split: str | None) -> None:
        touch(tmp_path, f"{above}cat/1.jpg", f"{above}cat/indoors/2.jpg", f"{above}cat/indoors/night/test/3.jpg")
        found = discover(tmp_path)
        assert {Path(item.path).name for item in found.items} == {"1.jpg", "2.jpg", "3.jpg"}
        assert {(item.label, item.split) for item in found.items} == {("cat", split)}

    def test_a_flat_folder_has_no_labels(self, tmp_path: Path) -> None:
        touch(tmp_path, "b.jpg", "a.jpg")
        found = discover(tmp_path)
        assert rows(found, tmp_path) == [("a.jpg", None, None), ("b.jpg", None, None)]
        assert found.notices == ()

    def test_any_extension_counts_as_a_picture(self, tmp_path: Path) -> None:
        touch(tmp_path, "cat/1.JPEG", "cat/2.tif", "cat/3.txt", "cat/4")
        assert [Path(item.path).name for item in discover(tmp_path).items] == ["1.JPEG", "2.tif", "3.txt", "4"]

    @pytest.mark.parametrize(
        "litter",
        [".hidden.jpg", "._1.jpg", ".DS_Store", "Thumbs.db", "thumbs.db", "desktop.ini", ".git/x", "__MACOSX/x.jpg"],
    )
    @pytest.mark.parametrize("place", ["", "cat/", "cat/deep/"])
    def test_hidden_files_and_litter_are_no_notices(self, tmp_path: Path, place: str, litter: str) -> None:
        touch(tmp_path, "cat/1.jpg", "cat/deep/2.jpg", place + litter)
        found = discover(tmp_path)
        assert [Path(item.path).name for item in found.items] == ["1.jpg", "2.jpg"]
        assert found.notices == ()

    def test_a_hidden_folder_can_itself_be_asked_for(self, tmp_path: Path) -> None:
        touch(tmp_path, ".pictures/cat/1.jpg")
        assert [item.label for item in discover(tmp_path / ".pictures").items] == ["cat"]

    def test_a_cache_among_the_pictures_is_skipped(self, tmp_path: Path) -> None:
        touch(tmp_path, "cat/1.jpg", "dog/2.jpg", "cache/CACHEDIR.TAG", "cache/catalog.sqlite")
        assert {item.label for item in discover(tmp_path).items} == {"cat", "dog"}

    def test_empty_folders_are_left_out_with_a_notice(self, tmp_path: Path) -> None:
        touch(tmp_path, "cat/1.jpg")
        (tmp_path / "dog").mkdir()
        found = discover(tmp_path)
        assert [item.label for item in found.items] == ["cat"]
        assert len(found.notices) == 1
        assert "empty folder" in found.notices[0]
        assert "dog" in found.notices[0]

    def test_loose_files_beside_class_folders_are_left_out_with_a_notice(self, tmp_path: Path) -> None:
        touch(tmp_path, "cat/1.jpg", "dog/2.jpg", *(f"loose{number}.jpg" for number in range(5)))
        found = discover(tmp_path)
        assert [item.label for item in found.items] == ["cat", "dog"]
        assert len(found.notices) == 1
        assert found.notices[0].startswith("5 files beside the class folders left out: loose0.jpg, ")

    def test_loose_files_in_a_split_folder_are_taken_without_a_label(self, tmp_path: Path) -> None:
        touch(tmp_path, "train/cat/1.jpg", "train/loose.jpg", "test/cat/2.jpg")
        found = discover(tmp_path)
        assert ("train/loose.jpg", None, "train") in rows(found, tmp_path)
        assert len(found.items) == 3
        assert len(found.notices) == 1
        assert "1 file in train/" in found.notices[0]
        assert "without a label" in found.notices[0]

    def test_one_split_name_among_other_folders_is_a_class_with_a_notice(self, tmp_path: Path) -> None:
        touch(tmp_path, "bus/1.jpg", "train/2.jpg", "tram/3.jpg")
        found = discover(tmp_path)
        assert rows(found, tmp_path) == [
            ("bus/1.jpg", "bus", None),
            ("train/2.jpg", "train", None),
            ("tram/3.jpg", "tram", None),
        ]
        assert len(found.notices) == 1
        assert "'train' is taken as a class" in found.notices[0]

    def test_split_folders_mixed_with_others_are_refused(self, tmp_path: Path) -> None:
        touch(tmp_path, "train/cat/1.jpg", "test/cat/2.jpg", "bus/3.jpg")
        with pytest.raises(DatasetError) as caught:
            discover(tmp_path)
        for name in ("train", "test", "bus"):
            assert name in str(caught.value)

    def test_the_order_does_not_depend_on_the_order_of_creation(self, tmp_path: Path) -> None:
        names = [f"{label}/{number:02}.jpg" for label in ("cat", "Dog", "emu") for number in range(12)]
        touch(tmp_path / "one", *names)
        touch(tmp_path / "two", *reversed(names))
        one, two = (rows(discover(tmp_path / name), tmp_path / name) for name in ("one", "two"))
        assert one == two
        assert [name for name, _, _ in one] == sorted(names)

    def test_relative_and_absolute_sources_give_the_same_absolute_paths(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        touch(tmp_path, "photos/cat/1.jpg")
        monkeypatch.chdir(tmp_path)
        relative = discover("photos/../photos/")
        assert relative == discover(tmp_path / "photos") == discover(str(tmp_path / "photos"))
        assert relative.items[0].path == str(tmp_path / "photos/cat/1.jpg")

    def test_a_linked_folder_keeps_the_name_it_was_asked_by(self, tmp_path: Path) -> None:
        touch(tmp_path, "real/cat/1.jpg")
        (tmp_path / "link").symlink_to(tmp_path / "real")
        found = discover(tmp_path / "link")
        assert found.root == str(tmp_path / "link")
        assert found.items[0].path == str(tmp_path / "link/cat/1.jpg")

    def test_links_to_folders_are_followed_at_any_depth(self, tmp_path: Path) -> None:
        touch(tmp_path, "elsewhere/1.jpg", "photos/dog/2.jpg")
        (tmp_path / "photos/cat").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "photos/dog/more").symlink_to(tmp_path / "elsewhere")
        assert rows(discover(tmp_path / "photos"), tmp_path / "photos") == [
            ("cat/1.jpg", "cat", None),
            ("dog/2.jpg", "dog", None),
            ("dog/more/1.jpg", "dog", None),
        ]

    def test_a_link_that_loops_ends(self, tmp_path: Path) -> None:
        touch(tmp_path, "cat/1.jpg")
        (tmp_path / "cat/again").symlink_to(tmp_path / "cat")
        assert [Path(item.path).name for item in discover(tmp_path).items] == ["1.jpg", "again"]

    def test_a_link_to_the_dataset_itself_lends_no_pictures_to_a_class(self, tmp_path: Path) -> None:
        touch(tmp_path, "cat/1.jpg", "dog/2.jpg")
        (tmp_path / "cat/up").symlink_to(tmp_path)
        names = [(Path(item.path).name, item.label) for item in discover(tmp_path).items]
        assert names == [("1.jpg", "cat"), ("up", "cat"), ("2.jpg", "dog")]

    def test_a_dangling_manifest_is_not_found(self, tmp_path: Path) -> None:
        (tmp_path / "list.csv").symlink_to(tmp_path / "gone.csv")
        with pytest.raises(DatasetNotFoundError, match=r"list\.csv"):
            discover(tmp_path / "list.csv")

    def test_a_dangling_link_is_left_for_decoding_to_count(self, tmp_path: Path) -> None:
        touch(tmp_path, "cat/1.jpg")
        (tmp_path / "cat/2.jpg").symlink_to(tmp_path / "gone.jpg")
        assert [Path(item.path).name for item in discover(tmp_path).items] == ["1.jpg", "2.jpg"]

    @pytest.mark.parametrize(
        "name",
        [
            b"new\nline.jpg",
            "smile \U0001f600.jpg".encode(),
            b"not utf-8 \xff\xfe.jpg",
            b" -rf ; $(x) 'q'.jpg",
            b"a" * 255,
        ],
        ids=["newline", "emoji", "invalid utf-8", "shell", "longest"],
    )
    def test_odd_file_names_come_through_as_they_are(self, tmp_path: Path, name: bytes) -> None:
        path = os.path.join(os.fsencode(tmp_path), b"cat", name)
        (tmp_path / "cat").mkdir()
        try:
            Path(os.fsdecode(path)).write_bytes(b"x")
        except OSError as error:
            pytest.skip(f"this file system does not take such a name: {error}")
        (item,) = discover(tmp_path).items
        assert os.fsencode(item.path) == path
        assert item.label == "cat"

    @pytest.mark.parametrize("label", ["zwei\nZeilen", "\U0001f408", "with space"])
    def test_odd_class_names_come_through_as_they_are(self, tmp_path: Path, label: str) -> None:
        touch(tmp_path, f"{label}/1.jpg")
        assert [item.label for item in discover(tmp_path).items] == [label]

    @pytest.mark.parametrize("inside", [(), ("cat",), ("train", "test")])
    def test_a_folder_without_files_is_refused(self, tmp_path: Path, inside: tuple[str, ...]) -> None:
        for name in inside:
            (tmp_path / name).mkdir()
        with pytest.raises(DatasetError, match="holds no files"):
            discover(tmp_path)

    @pytest.mark.parametrize("name", ["gone", "gone.csv", "gone.jpg", "gone/deeper"])
    def test_a_source_that_is_not_there_is_named(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(DatasetNotFoundError) as caught:
            discover(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert isinstance(caught.value, FileNotFoundError)


def test_a_single_picture_is_a_dataset_of_one(tmp_path: Path) -> None:
    touch(tmp_path, "one.jpg", "two.jpg")
    found = discover(tmp_path / "one.jpg")
    assert rows(found, tmp_path) == [("one.jpg", None, None)]


UNPRIVILEGED = """
import os, sys
from featcache.discover import discover
from featcache.errors import DatasetError
if os.getuid() == 0:
    os.setuid(65534)
try:
    found = discover(sys.argv[1])
except DatasetError as error:
    print(error)
else:
    sys.exit(f"nothing was raised: {found}")
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter, which pytest's own folders are not."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.mark.parametrize(
    ("locked", "source"),
    [("photos", "photos"), ("list.csv", "list.csv")],
)
def test_what_may_not_be_read_is_refused_by_name(open_folder: Path, locked: str, source: str) -> None:
    touch(open_folder, "photos/cat/1.jpg", "photos/cat/deep/2.jpg", "photos/dog/3.jpg")
    (open_folder / "list.csv").write_text("path,label\nphotos/cat/1.jpg,cat\n")
    (open_folder / locked).chmod(0)
    try:
        done = subprocess.run(
            [sys.executable, "-c", UNPRIVILEGED, str(open_folder / source)],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    finally:
        (open_folder / locked).chmod(0o755)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"not allowed to read {open_folder / locked}: check its permissions\n"


FOUND_UNPRIVILEGED = """
import os, sys
from featcache.discover import discover
from featcache.errors import PictureError
from featcache.sources import read
if os.getuid() == 0:
    os.setuid(65534)
for item in discover(sys.argv[1]).items:
    try:
        read(item.path)
    except PictureError as error:
        print(item.path, item.label, error)
    else:
        print(item.path, item.label)
"""


@pytest.mark.parametrize("locked", ["cat", "cat/deep"])
def test_a_folder_that_may_not_be_read_counts_as_a_file_of_its_class(open_folder: Path, locked: str) -> None:
    touch(open_folder, "photos/cat/1.jpg", "photos/cat/deep/2.jpg", "photos/dog/3.jpg")
    folder = open_folder / "photos" / locked
    folder.chmod(0)
    words = [sys.executable, "-c", FOUND_UNPRIVILEGED, str(open_folder / "photos")]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    finally:
        folder.chmod(0o755)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{folder} cat permission denied" in done.stdout.splitlines()
    assert f"{open_folder}/photos/dog/3.jpg dog" in done.stdout.splitlines()


class TestManifest:
    @pytest.fixture
    def pictures(self, tmp_path: Path) -> Path:
        touch(tmp_path, "a.jpg", "sub/b.jpg", "c, d.jpg")
        return tmp_path

    def test_paths_labels_and_splits_in_the_order_of_the_lines(self, pictures: Path) -> None:
        path = manifest(pictures, 'path,label,split\nsub/b.jpg,dog,test\na.jpg,cat,train\n"c, d.jpg",cat,val\n')
        found = discover(path)
        assert rows(found, pictures) == [
            ("sub/b.jpg", "dog", "test"),
            ("a.jpg", "cat", "train"),
            ("c, d.jpg", "cat", "val"),
        ]
        assert found.root == str(path)
        assert found.notices == ()

    def test_the_split_column_may_be_missing(self, pictures: Path) -> None:
        found = discover(manifest(pictures, "path,label\na.jpg,cat\n"))
        assert rows(found, pictures) == [("a.jpg", "cat", None)]

    def test_columns_in_another_order_and_others_beside_them(self, pictures: Path) -> None:
        found = discover(manifest(pictures, "who,split,label,path\nme,test,cat,a.jpg\n"))
        assert rows(found, pictures) == [("a.jpg", "cat", "test")]

    def test_paths_are_relative_to_the_manifest(self, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (pictures / "lists").mkdir()
        path = manifest(pictures / "lists", "path,label\n../a.jpg,cat\n./../sub/b.jpg,dog\n")
        monkeypatch.chdir(pictures / "sub")
        assert [item.path for item in discover(path).items] == [str(pictures / "a.jpg"), str(pictures / "sub/b.jpg")]

    def test_absolute_paths_stay(self, pictures: Path) -> None:
        (pictures / "lists").mkdir()
        path = manifest(pictures / "lists", f"path,label\n{pictures / 'a.jpg'},cat\n")
        assert [item.path for item in discover(path).items] == [str(pictures / "a.jpg")]

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
    @pytest.mark.parametrize("end", ["\n", "\r\n"])
    def test_byte_order_mark_and_line_ends_do_not_matter(self, pictures: Path, encoding: str, end: str) -> None:
        path = manifest(pictures, end.join(["path,label", "a.jpg,Käfer", "", "sub/b.jpg,dog", ""]), encoding=encoding)
        assert rows(discover(path), pictures) == [("a.jpg", "Käfer", None), ("sub/b.jpg", "dog", None)]

    def test_a_path_that_is_not_utf_8_is_found(self, pictures: Path) -> None:
        name = os.fsdecode(b"caf\xe9.jpg")
        try:
            touch(pictures, name)
        except OSError as error:
            pytest.skip(f"this file system does not take such a name: {error}")
        path = manifest(pictures, "path,label\ncafé.jpg,cat\n", encoding="latin-1")
        assert [os.fsencode(Path(item.path).name) for item in discover(path).items] == [b"caf\xe9.jpg"]

    def test_an_upper_case_ending_is_a_manifest_too(self, pictures: Path) -> None:
        path = manifest(pictures, "path,label\na.jpg,cat\n").rename(pictures / "PICTURES.CSV")
        assert rows(discover(path), pictures) == [("a.jpg", "cat", None)]

    @pytest.mark.parametrize("name", ["train", "val", "valid", "validation", "test", "holdout", "Train", " TEST "])
    def test_the_names_of_splits_are_those_of_folders(self, pictures: Path, name: str) -> None:
        (item,) = discover(manifest(pictures, f"path,label,split\na.jpg,cat,{name}\n")).items
        known = name.strip().lower()
        assert item.split == ("val" if known.startswith("val") else known)

    def test_an_empty_split_is_none(self, pictures: Path) -> None:
        assert rows(discover(manifest(pictures, "path,label,split\na.jpg,cat,\nsub/b.jpg,dog\n")), pictures) == [
            ("a.jpg", "cat", None),
            ("sub/b.jpg", "dog", None),
        ]

    def test_an_empty_label_is_none_and_spaces_around_one_go(self, pictures: Path) -> None:
        found = discover(manifest(pictures, "path,label\na.jpg,\nsub/b.jpg, dog \n"))
        assert [item.label for item in found.items] == [None, "dog"]

    @pytest.mark.parametrize(("header", "missing"), [("label", "path"), ("path", "label"), ("path,split", "label")])
    def test_a_missing_column_is_named(self, pictures: Path, header: str, missing: str) -> None:
        with pytest.raises(DatasetError, match=f"no column '{missing}'"):
            discover(manifest(pictures, f"{header}\na.jpg,cat\n"))

    def test_an_empty_manifest_lacks_its_columns(self, pictures: Path) -> None:
        with pytest.raises(DatasetError, match="no column 'path'"):
            discover(manifest(pictures, ""))

    def test_a_manifest_of_no_lines_is_refused(self, pictures: Path) -> None:
        with pytest.raises(DatasetError, match="holds no files"):
            discover(manifest(pictures, "path,label\n"))

    def test_labels_may_be_missing_where_none_are_needed(self, pictures: Path) -> None:
        path = manifest(pictures, "path\na.jpg\nsub/b.jpg\n")
        assert rows(discover(path, labelled=False), pictures) == [("a.jpg", None, None), ("sub/b.jpg", None, None)]

    def test_the_path_is_needed_also_without_labels(self, pictures: Path) -> None:
        with pytest.raises(DatasetError, match="no column 'path'"):
            discover(manifest(pictures, "file\na.jpg\n"), labelled=False)

    @pytest.mark.parametrize(
        ("line", "problem", "kind"),
        [
            ("gone.jpg,cat,train", "gone.jpg", DatasetNotFoundError),
            ("sub/b.jpg,cat,trian", "trian", DatasetError),
            (",cat,train", "path is empty", DatasetError),
        ],
    )
    def test_a_bad_line_is_named_by_its_number(
        self, pictures: Path, line: str, problem: str, kind: type[DatasetError]
    ) -> None:
        with pytest.raises(kind) as caught:
            discover(manifest(pictures, f"path,label,split\na.jpg,cat,train\n{line}\n"))
        assert "line 3" in str(caught.value)
        assert problem in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_broken_quotation_is_refused(self, pictures: Path) -> None:
        with pytest.raises(DatasetError, match="not a readable CSV"):
            discover(manifest(pictures, 'path,label\n"a.jpg,cat\n'))

    def test_the_same_line_twice_counts_once(self, pictures: Path) -> None:
        found = discover(manifest(pictures, "path,label\na.jpg,cat\nsub/b.jpg,dog\nsub/../a.jpg,cat\na.jpg,cat\n"))
        assert rows(found, pictures) == [("a.jpg", "cat", None), ("sub/b.jpg", "dog", None)]

    @pytest.mark.parametrize("second", ["a.jpg,dog,train", "a.jpg,cat,test", "./a.jpg,,train"])
    def test_one_path_with_two_meanings_is_refused(self, pictures: Path, second: str) -> None:
        with pytest.raises(DatasetError, match=r"line 4.*line 2"):
            discover(manifest(pictures, f"path,label,split\na.jpg,cat,train\nsub/b.jpg,dog,test\n{second}\n"))


def test_a_class_is_not_lost_where_no_more_files_can_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ants", "bees"):
        (tmp_path / "few" / name).mkdir(parents=True)
        (tmp_path / "few" / name / "0.jpg").touch()
    scandir = os.scandir

    def limited(path: str) -> Iterator[os.DirEntry[str]]:
        if os.fspath(path).endswith("bees"):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", limited)
    with pytest.raises(DatasetError, match="bees: too many open files: raise the limit"):
        discover(tmp_path / "few")
