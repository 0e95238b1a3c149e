"""The transformer: scikit-learn's checks, every form of picture, what is computed, and meta-estimators around it."""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import joblib
import numpy as np
import pytest
from conftest import TINTS, write_picture
from PIL import Image
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator, estimator_checks_generator
from sklearn.utils.validation import validate_data

import featcache
from featcache import FeatureExtractor
from featcache.api import embedding
from featcache.backbones import scratch_cnn, torchvision_models
from featcache.backbones.weights import hub_file
from featcache.embed import open_engine
from featcache.errors import DatasetError, WeightsError

pytestmark = pytest.mark.usefixtures("one_thread")

README = Path(__file__).parent.parent / "README.md"

ROWS = "feeds rows of numbers, which are no pictures: runs below, with a picture made of each row"
WORDS = "its numbers are refused as no pictures, and not in the words that it wants: "
EXCLUDED = dict.fromkeys(
    re.findall(
        r"\w+",
        """check_fit_score_takes_y check_estimators_overwrite_params check_dont_overwrite_parameters
    check_estimators_fit_returns_self check_readonly_memmap_input check_n_features_in_after_fitting
    check_positive_only_tag_during_fit check_estimators_dtypes check_dtype_object check_pipeline_consistency
    check_estimators_pickle check_f_contiguous_array_estimator check_transformer_data_not_an_array
    check_transformer_general check_methods_sample_order_invariance check_methods_subset_invariance
    check_dict_unchanged check_fit_idempotent check_fit_check_is_fitted check_n_features_in
    check_fit2d_predict1d""",
    ),
    ROWS,
) | {
    "check_complex_data": f"{WORDS}complex data not supported",
    "check_estimators_nan_inf": f"{WORDS}NaN, infinity",
    "check_estimators_empty_data_messages": f"{WORDS}0 features",
    "check_fit2d_1sample": f"{WORDS}1 sample",
    "check_fit2d_1feature": f"{WORDS}1 feature",
}


class OfRows(FeatureExtractor):
    """The extractor behind a step that makes a picture of the bytes of each row of numbers."""

    def fit(self, X: Any, y: object = None) -> Any:
        return super().fit(self._pictures(X, True))

    def fit_transform(self, X: Any, y: object = None) -> Any:
        return super().fit_transform(self._pictures(X, True))

    def transform(self, X: Any) -> Any:
        return super().transform(self._pictures(X, False))

    def _pictures(self, X: Any, reset: bool) -> list[Any]:
        rows = validate_data(self, X, reset=reset, dtype=np.float64)
        return [np.frombuffer(row.tobytes(), np.uint8).reshape(8, -1) for row in rows]


def test_check_estimator_but_for_what_is_excluded() -> None:
    results = check_estimator(FeatureExtractor(), expected_failed_checks=EXCLUDED, on_skip=None)
    assert {result["check_name"] for result in results if result["status"] == "xfail"} == EXCLUDED.keys()
    assert sum(result["status"] == "passed" for result in results) >= 15


WITH_PICTURES = [
    check for _, check in estimator_checks_generator(OfRows()) if EXCLUDED.get(check.func.__name__) == ROWS
]


@pytest.mark.parametrize("check", WITH_PICTURES, ids=lambda check: check.func.__name__.removeprefix("check_"))
def test_the_checks_that_feed_numbers_pass_with_pictures_made_of_them(
    check: Any, weights: Path, tmp_path: Path
) -> None:
    check(OfRows("scratch-cnn", weights, tmp_path / "cache"))


class Sums:
    """An engine that needs no time: sums of every 48th value of a picture."""

    name, device, why, lanes, batch_size = "sums", "cpu", "a test", 1, 8

    def __init__(self, counts: list[int]) -> None:
        self.counts = counts

    def embed(self, pixels: Any) -> Any:
        self.counts.append(len(pixels))
        return pixels.reshape(len(pixels), -1, 48).sum(1, dtype=np.int64).astype(np.float32)


@pytest.fixture(autouse=True)
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures went through the engine, batch by batch."""
    counts: list[int] = []
    monkeypatch.setattr(embedding, "open_engine", lambda *_: Sums(counts))
    return counts


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a small network, random but fixed."""
    import torch

    path = tmp_path_factory.mktemp("weights") / "small.pth"
    torch.save(scratch_cnn.network(0).state_dict(), path)
    return path


@pytest.fixture
def extractor(weights: Path, tmp_path: Path) -> FeatureExtractor:
    return FeatureExtractor("scratch-cnn", weights, tmp_path / "cache")


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    """Twelve pictures of three classes, told apart by their colour."""
    root = tmp_path / "imgs"
    for number in range(4):
        for at, (label, tint) in enumerate(TINTS.items()):
            write_picture(root / label / f"{number}.png", 10 * at + number, tint)
    return sorted(map(str, root.rglob("*.png")))


@pytest.fixture
def extracted(paths: list[str], extractor: FeatureExtractor, tmp_path: Path) -> dict[bytes, Any]:
    """The vectors that `extract` wrote, by content key, as HDF5 has them."""
    options = featcache.Options("scratch-cnn", weights=extractor.weights, cache=extractor.cache)
    featcache.extract(tmp_path / "imgs", options)
    found: dict[bytes, Any] = {}
    for path in (tmp_path / "cache").rglob("seg-*.h5"):
        with h5py.File(path) as file:
            found |= {key.tobytes(): row for key, row in zip(file["keys"][:], file["features"][:], strict=True)}
    return found


def labels_of(paths: list[str]) -> list[str]:
    return [Path(path).parent.name for path in paths]


def vectors_of(paths: list[str], extracted: dict[bytes, Any]) -> Any:
    return np.stack([extracted[hashlib.sha256(Path(path).read_bytes()).digest()] for path in paths])


def zipped(paths: list[str]) -> list[str]:
    archive = Path(paths[0]).parent.parent.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w") as file:
        for number, path in enumerate(paths):
            file.write(path, f"{number}.png")
    return [f"zip://{number}.png::{archive}" for number in range(len(paths))]


FORMS: dict[str, Callable[[list[str]], Any]] = {
    "paths": list,
    "tuple": tuple,
    "Path": lambda paths: [Path(path) for path in paths],
    "str array": np.array,
    "object array": lambda paths: np.array(paths, dtype=object),
    "column": lambda paths: np.array(paths)[:, None],
    "bytes": lambda paths: [Path(path).read_bytes() for path in paths],
    "bytes array": lambda paths: np.array([Path(path).read_bytes() for path in paths], dtype=object),
    "zip": zipped,
}
PIXELS: dict[str, Callable[[list[str]], Any]] = {
    "PIL": lambda paths: [Image.open(path) for path in paths],
    "arrays": lambda paths: [np.asarray(Image.open(path)) for path in paths],
    "one array": lambda paths: np.stack([np.asarray(Image.open(path)) for path in paths]),
    "all kinds": lambda paths: [paths[0], Path(paths[1]).read_bytes(), *map(Image.open, paths[2:])],
}


@pytest.mark.parametrize("form", FORMS)
def test_files_and_their_bytes_have_the_vectors_of_extract_without_the_network(
    form: str,
    extractor: FeatureExtractor,
    paths: list[str],
    extracted: dict[bytes, Any],
    embedded: list[int],
) -> None:
    found = extractor.fit(FORMS[form](paths)).transform(FORMS[form](paths))
    assert sum(embedded) == 12  # those of extract
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, vectors_of(paths, extracted))


@pytest.mark.parametrize("form", PIXELS)
def test_pixels_have_the_vectors_of_their_lossless_files(
    form: str, extractor: FeatureExtractor, paths: list[str], extracted: dict[bytes, Any], embedded: list[int]
) -> None:
    found = extractor.fit_transform(PIXELS[form](paths))
    np.testing.assert_array_equal(found, vectors_of(paths, extracted))
    computed = sum(embedded)
    assert computed > 12
    np.testing.assert_array_equal(extractor.transform(PIXELS[form](paths)), found)
    assert sum(embedded) == computed


def test_rows_are_in_order_and_what_stands_twice_is_computed_once(
    extractor: FeatureExtractor, paths: list[str], embedded: list[int]
) -> None:
    picture = Image.open(paths[0])
    shutil.copy(paths[3], Path(paths[3]).with_name("copy.png"))
    X = [paths[3], paths[1], Path(paths[3]).with_name("copy.png"), picture, paths[3], picture]
    found = extractor.fit_transform(X)
    assert sum(embedded) == 3
    assert found.shape == (6, 48)
    for same in ([0, 2, 4], [3, 5]):
        assert (found[same] == found[same[0]]).all()
    assert len(np.unique(found, axis=0)) == 3


def test_only_what_is_missing_is_computed(extractor: FeatureExtractor, paths: list[str], embedded: list[int]) -> None:
    extractor.fit(paths)
    assert sum(embedded) == 1  # a vector is as long as the first one is
    extractor.transform(paths[:5])
    assert sum(embedded) == 5
    extractor.fit(paths).transform(paths)
    assert sum(embedded) == 12
    write_picture(Path(paths[0]), 99)
    extractor.transform(paths)
    assert sum(embedded) == 13


def test_names_say_which_network_it_is(extractor: FeatureExtractor, paths: list[str]) -> None:
    with pytest.raises(NotFittedError):
        extractor.get_feature_names_out()
    names = extractor.fit(paths).get_feature_names_out()
    assert (names[0], names[-1], len(names)) == ("scratch_cnn_0", "scratch_cnn_47", extractor.n_features_out_)


def test_clones_and_pickles_answer_alike_and_hold_no_picture(
    extractor: FeatureExtractor, paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [Image.open(path) for path in paths]
    found = extractor.fit(pictures).transform(pictures)
    kept = pickle.dumps(extractor)
    assert len(kept) < 2000
    assert len(repr(extractor)) < 200 + len(str(tmp_path))
    other = clone(extractor)
    assert other.get_params() == extractor.get_params()
    with pytest.raises(NotFittedError):
        other.transform(paths)
    monkeypatch.chdir("/")
    for same in (pickle.loads(kept), pickle.loads(pickle.dumps(other)).fit(pictures)):
        assert same.fingerprint_ == extractor.fingerprint_
        np.testing.assert_array_equal(same.transform(pictures), found)


def test_a_network_that_changed_since_the_fit_is_refused_where_it_would_have_to_run(
    extractor: FeatureExtractor, paths: list[str], weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(embedding, "open_engine", open_engine)
    extractor.weights = shutil.copy(weights, tmp_path / "mine.pth")
    found = extractor.fit_transform(paths[:6])
    torch.save(scratch_cnn.network(1).state_dict(), tmp_path / "mine.pth")
    np.testing.assert_array_equal(extractor.transform(paths[:6]), found)
    with pytest.raises(WeightsError, match="here they have"):
        extractor.transform(paths)
    assert not np.allclose(clone(extractor).fit_transform(paths[:6]), found)


def test_pictures_that_cannot_be_read_are_named(extractor: FeatureExtractor, paths: list[str]) -> None:
    extractor.fit(paths)
    Path(paths[1]).write_bytes(b"no picture")
    cut = Image.open(io.BytesIO(Path(paths[2]).read_bytes()[:-2000]))
    with pytest.raises(DatasetError, match=r"3 of 12 .* X\[1\], X\[3\], X\[5\] \(X\[1\], .*1\.png: not a picture"):
        extractor.transform([*paths[:3], cut, paths[4], None, *paths[6:]])
    with pytest.raises(DatasetError, match=r"1 of 1 .* X\[0\] \(X\[0\]: broken picture: .*truncated"):
        extractor.transform([cut])
    with pytest.raises(DatasetError, match=r"20 of 20 .*X\[9\] and 10 more \(X\[0\], /gone: no such file"):
        extractor.transform(["/gone"] * 20)
    with pytest.raises(DatasetError, match="no such file"):
        extractor.fit(["/gone"])


@pytest.mark.parametrize(
    ("X", "said"),
    [
        ("a.png", "a builtins.str,"),
        (b"\x89PNG", "a builtins.bytes,"),
        (Path("a.png"), "PosixPath"),
        (Image.new("RGB", (9, 9)), "PIL.Image.Image"),
        (np.zeros((9, 9, 3), np.uint8), r"uint8 \(9, 9, 3\)"),
        (np.array([b"\x89PNG"]), r"\|S4 \(1,\)"),
        (np.zeros((9, 4)), r"float64 \(9, 4\)"),
        ([], "0 pictures"),
        ([1], "1 of 1 .* a int is no picture"),
        ([["a.png"]], "1 of 1 .* a list is no picture"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_holds_no_pictures_is_refused(X: Any, said: str, extractor: FeatureExtractor, paths: list[str]) -> None:
    extractor.fit(paths)
    for ask in (extractor.fit, extractor.transform, extractor.fit_transform):
        with pytest.raises(DatasetError, match=said):
            ask(X)


def test_int8_needs_the_calibration_of_an_extraction(weights: Path, paths: list[str], tmp_path: Path) -> None:
    whole = FeatureExtractor("scratch-cnn", weights, tmp_path / "cache", precision="int8")
    with pytest.raises(DatasetError, match=r"featcache extract FOLDER --backbone scratch-cnn --precision int8"):
        whole.fit(paths)
    assert not list((tmp_path / "cache").rglob("*.onnx"))


def test_auto_downloads_nothing_and_says_once_what_stands_in(
    paths: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def forbidden(_url: str) -> None:
        raise AssertionError("it would be downloaded")

    monkeypatch.setattr(torchvision_models, "obtain", forbidden)
    automatic = FeatureExtractor(cache=tmp_path / "cache")
    names = [clone(automatic).fit(paths).get_feature_names_out()[0] for _ in range(2)]
    assert names == ["efficientnet_lite0_0"] * 2
    assert caplog.text.count("the weights of resnet18 are not on this computer") == 1
    file = hub_file(torchvision_models.RESNET18_URL.rpartition("/")[2])
    file.parent.mkdir(parents=True)
    file.write_bytes(b"cut short")
    monkeypatch.setattr(torchvision_models, "obtain", lambda _url: file)
    with pytest.raises(WeightsError, match=r"resnet18.* is broken"):
        automatic.fit(paths)


def test_threads_share_pictures_and_the_cache(
    extractor: FeatureExtractor, paths: list[str], embedded: list[int]
) -> None:
    model = make_pipeline(extractor, LogisticRegression())
    pictures = [Image.open(path) for path in paths]
    with joblib.parallel_config(backend="threading"):
        scores = cross_val_score(model, pictures, labels_of(paths), cv=2, n_jobs=2, error_score="raise")
    assert scores.tolist() == [1.0, 1.0]
    assert 12 <= sum(embedded) <= 24  # threads that begin at once do not see each other's work


def test_data_frames_enter_and_leave(
    extractor: FeatureExtractor, paths: list[str], extracted: dict[bytes, Any]
) -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"path": paths, "size": np.arange(12.0)}, index=[f"picture {n}" for n in range(12)])
    wanted = vectors_of(paths, extracted)
    np.testing.assert_array_equal(extractor.fit_transform(table["path"]), wanted)
    framed = clone(extractor).set_output(transform="pandas")
    for found in (framed.fit_transform(table[["path"]]), framed.transform(table[["path"]])):
        assert found.index.tolist() == table.index.tolist()
        assert found.columns[5] == "scratch_cnn_5"
        np.testing.assert_array_equal(found.to_numpy(), wanted)
    for column in ("path", ["path"]):
        both = ColumnTransformer([("picture", extractor, column), ("rest", "passthrough", ["size"])])
        found = both.set_output(transform="pandas").fit_transform(table)
        assert found.columns[[0, -1]].tolist() == ["picture__scratch_cnn_0", "rest__size"]
        np.testing.assert_array_equal(found.to_numpy()[:, :-1], wanted)


@pytest.mark.slow
def test_the_example_of_the_readme_searches_in_two_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    section = README.read_text().split("## In scikit-learn\n")[1].split("\n## ")[0]
    (block,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    for number, split in enumerate(["train", "val"]):
        for at, tint in enumerate([(60, 180, 60), (210, 60, 60)]):
            for seed in range(5):
                place = tmp_path / "hymenoptera" / split / f"class {at}" / f"{seed}.png"
                write_picture(place, 100 * number + 10 * at + seed, tint)
    monkeypatch.chdir(tmp_path)
    assert "n_jobs=2" in block
    exec(block, {})
    assert "1.000 on val, n=10" in capsys.readouterr().out
    assert len(list((tmp_path / "cache").rglob("seg-*.h5"))) == 2  # train once, val once
