"""The vectors of a dataset as arrays, as a pandas table and as a torch dataset, in the dataset's order."""

from __future__ import annotations

import csv
import hashlib
import os
import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import TINTS, write_picture
from store_rows import HALF, SPEC, make_rows

import featcache
from featcache.errors import DatasetError, UsageError
from featcache.records import Features, FeatureSpec
from featcache.store.exchange import Exchange, packed

NOT_UTF8 = os.fsdecode(b"/p/\xff.jpg")


def imported(folder: Path, spec: FeatureSpec = SPEC) -> featcache.Options:
    """A cache with six made-up vectors: classes a and b, one picture unlabelled and in no split."""
    keys, X = make_rows(0, 6)
    y, splits = ["b", "a", "", "b", "a", "b"], ["train", "train", "", "test", "train", "test"]
    paths = ("/p/5.jpg", "/p/1.jpg", NOT_UTF8, "/p/4.jpg", "/p/2.jpg", "/p/3.jpg")
    features = Features(
        X.astype(spec.dtype), np.array(y, np.str_), paths, np.array(splits, np.str_), tuple(keys), spec.fingerprint
    )
    (folder / "vectors.npz").write_bytes(packed(folder / "vectors.npz", Exchange(features, spec, "made up")))
    options = featcache.Options(cache=folder / "cache")
    featcache.cache_import(folder / "vectors.npz", options=options)
    return options


@pytest.fixture
def network(tmp_path: Path, seeded_weights: Path) -> featcache.Options:
    return featcache.Options("resnet18", seeded_weights, tmp_path / "cache")


def test_rows_of_a_manifest_come_in_its_order_with_their_own_vectors(
    tmp_path: Path, photos: Path, network: featcache.Options
) -> None:
    rows = [
        (f"photos/{label}/{number}.png", label, split)
        for number, split in ((7, "test"), (2, "train"), (0, "train"))
        for label in TINTS
    ]
    with open(tmp_path / "list.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows, ("photos/broken.png", "leaf", "train")])
    (photos / "broken.png").write_text("no picture")
    loaded = featcache.load_features(tmp_path / "list.csv", network)
    X, y, paths, splits = loaded
    assert paths == tuple(str(tmp_path / path) for path, _, _ in rows)
    assert y.tolist() == [label for _, label, _ in rows]
    assert splits.tolist() == [split for _, _, split in rows]
    assert X.shape == (9, 512)
    assert X.dtype == np.float32
    assert loaded.classes == ("leaf", "sand", "sky")
    assert loaded.notices == ("unreadable files left out: 1 (`featcache extract` lists them)",)
    # The witness reads the segment itself, by the digest of each file.
    (segment,) = (tmp_path / "cache").rglob("seg-*.h5")
    with h5py.File(segment) as file:
        held = {bytes(key): vector for key, vector in zip(file["keys"][()], file["features"][()], strict=True)}
    for vector, path in zip(X, paths, strict=True):
        np.testing.assert_array_equal(vector, held[hashlib.sha256(Path(path).read_bytes()).digest()])


@pytest.mark.slow
def test_what_the_cache_lacks_is_extracted_and_a_gone_folder_is_taken_as_it_is(
    photos: Path, network: featcache.Options
) -> None:
    before = featcache.load_features(photos, network)
    write_picture(photos / "sky" / "new.png", 999)
    after = featcache.load_features(photos, network)
    assert (len(before.X), len(after.X)) == (30, 31)
    shutil.rmtree(photos)
    cache_only = featcache.Options(cache=network.cache)
    for source in (photos, None):
        gone = featcache.load_features(source, cache_only)
        assert gone.paths == after.paths
        np.testing.assert_array_equal(gone.X, after.X)


def test_a_part_has_the_rows_of_one_split_and_the_classes_of_all(tmp_path: Path) -> None:
    loaded = featcache.load_features(options=imported(tmp_path))
    test = loaded.part("test")
    assert test.paths == ("/p/4.jpg", "/p/3.jpg")
    assert test.y.tolist() == ["b", "b"]
    assert test.splits.tolist() == ["test", "test"]
    np.testing.assert_array_equal(test.X, loaded.X[[3, 5]])
    assert test.classes == loaded.classes == ("a", "b")
    for split in ("val", ""):
        with pytest.raises(DatasetError, match="the splits are: test, train"):
            loaded.part(split)


def test_a_part_of_a_dataset_without_splits_says_how_to_make_them(photos: Path, network: featcache.Options) -> None:
    with pytest.raises(DatasetError, match=r"none \(`featcache split` makes them"):
        featcache.load_features(photos, network).part("train")


def test_unknown_labels_and_splits_are_empty(tmp_path: Path) -> None:
    loaded = featcache.load_features(options=imported(tmp_path))
    assert loaded.y.tolist() == ["b", "a", "", "b", "a", "b"]
    assert loaded.splits.tolist()[2] == ""
    assert loaded.paths[2] == NOT_UTF8


@pytest.mark.parametrize("spec", [SPEC, HALF], ids=["float32", "float16"])
def test_the_table_is_by_path_with_a_column_a_feature(tmp_path: Path, spec: FeatureSpec) -> None:
    pytest.importorskip("pandas")
    loaded = featcache.load_features(options=imported(tmp_path, spec))
    table = loaded.to_pandas()
    assert table.columns.tolist() == [*(f"toy_{number}" for number in range(6)), "label", "split"]
    assert (table.index.name, tuple(table.index)) == ("path", loaded.paths)
    np.testing.assert_array_equal(table.filter(like="toy_").to_numpy(), loaded.X, strict=True)
    assert table.loc["/p/4.jpg", ["label", "split"]].tolist() == ["b", "test"]
    assert table.label.tolist() == loaded.y.tolist()
    assert table.split.tolist() == loaded.splits.tolist()


def test_columns_have_the_name_of_the_backbone_in_plain_letters(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    loaded = featcache.load_features(
        options=imported(tmp_path, FeatureSpec("timm:ViT-S.in1k", "0" * 64, SPEC.preprocess))
    )
    assert loaded.to_pandas().columns[0] == "timm_vit_s_in1k_0"


def test_without_pandas_the_command_that_installs_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = featcache.load_features(options=imported(tmp_path))
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UsageError, match=r"pip install 'featcache\[pandas\]'"):
        loaded.to_pandas()


@pytest.mark.parametrize("spec", [SPEC, HALF], ids=["float32", "float16"])
def test_tensors_of_a_part_hold_numbers_of_the_classes_of_all(tmp_path: Path, spec: FeatureSpec) -> None:
    import torch

    loaded = featcache.load_features(options=imported(tmp_path, spec))
    X, y = loaded.part("test").to_torch().tensors
    assert (X.dtype, y.dtype) == (torch.float32, torch.int64)
    np.testing.assert_array_equal(X.numpy(), loaded.X[[3, 5]].astype(np.float32))
    assert y.tolist() == [1, 1]  # though the part has no "a"
    assert [loaded.classes[code] for code in loaded.part("train").to_torch().tensors[1]] == ["b", "a", "a"]


def test_an_unlabelled_picture_gets_no_number(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="1 of 6 pictures have no label"):
        featcache.load_features(options=imported(tmp_path)).to_torch()


def test_tensors_do_not_share_the_memory_of_the_arrays(tmp_path: Path) -> None:
    loaded = featcache.load_features(options=imported(tmp_path)).part("train")
    before = loaded.X.copy()
    loaded.to_torch().tensors[0].zero_()
    np.testing.assert_array_equal(loaded.X, before)
