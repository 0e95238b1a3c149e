"""Heads fitted on vectors that stay on the disk, beside the same heads in memory and scikit-learn's."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Result, load_saved
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

import featcache
from featcache import Options
from featcache.audits import leaks
from featcache.errors import DeviceError, HeadError
from featcache.experiments import descent, out_of_core, streams
from featcache.experiments.descent import LOSSES, Descent
from featcache.experiments.streams import Stream
from featcache.heads.scaling import SCALINGS
from featcache.records import FeatureSpec, Item, Preprocess
from featcache.store import Cache, FeatureStore, FeatureWriter, Row
from featcache.store.stored import StoredRows

pytestmark = pytest.mark.usefixtures("one_thread", "ready_network")

STEPS = Preprocess(8, 8, "bilinear", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
SPEC = FeatureSpec("toy", "0" * 64, STEPS, dtype="float16")
DIM = 12
SECONDS = {"fit_seconds", "model", "trials"}


def vectors(n: int, classes: int, seed: int = 0) -> tuple[Any, Any]:
    """Overlapping clusters, sorted by class, in columns of different scale and far from zero."""
    r = np.random.default_rng(seed)
    codes = np.arange(n) * classes // n
    around = 1.2 * np.random.default_rng(99).normal(size=(classes, DIM))[codes] + r.normal(size=(n, DIM))
    return ((around + 3) * np.geomspace(0.1, 10, DIM)).astype(np.float32), codes


def make_cache(
    folder: Path, n: int = 600, classes: int = 4, names: Sequence[str] = ("train", "val", "test"), segments: int = 3
) -> tuple[Cache, FeatureStore]:
    """A cache as an import leaves it: vectors in several segments, splits in turn."""
    X, codes = vectors(n, classes)
    keys = [hashlib.sha256(b"%d" % number).digest() for number in range(n)]
    rows = [
        Row(Item(f"/{at}.jpg", f"class-{code}", names[at % len(names)] or None), key, None)
        for at, (key, code) in enumerate(zip(keys, codes, strict=True))
    ]
    cache = Cache(folder)
    run = cache.runs.start("import", "/made", SPEC.fingerprint)
    store = cache.features(SPEC)
    for part in np.array_split(np.arange(n), segments):
        with FeatureWriter(store, SPEC.dtype) as writer:
            writer.append([keys[at] for at in part], X[part])
    cache.catalog.save_dataset("/made", rows, run.id)
    cache.runs.finish(run, {"weights": "none", "weights_file": None})
    store.refresh()
    return cache, store


def fit(folder: Path, head: str = "logreg", out_of_core: bool = True, **kwargs: Any) -> featcache.FitSummary:
    return featcache.fit(head=head, options=Options(cache=folder), out_of_core=out_of_core, **kwargs)


def numbers(summary: featcache.FitSummary) -> dict[str, Any]:
    return {name: value for name, value in vars(summary).items() if name not in SECONDS}


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 64 rows, from chunks of 4, so that nothing is ever in memory as a whole."""
    monkeypatch.setattr(streams, "BLOCK_BYTES", 64 * DIM * 4)
    monkeypatch.setattr(streams, "CHUNK_BYTES", 4 * DIM * 2)
    monkeypatch.setattr(leaks, "FITTED_AT_ONCE", 64)
    monkeypatch.setattr(leaks, "SCORED_AT_ONCE", 64)


@pytest.mark.slow
@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("head", out_of_core.LOSSES)
@pytest.mark.parametrize(
    ("classes", "names"), [(2, ["train", "val", "test"]), (4, [""]), (20, ["train", "train", "val", "test"])]
)
def test_the_score_is_that_of_the_head_in_memory(tmp_path: Path, head: str, classes: int, names: list[str]) -> None:
    make_cache(tmp_path, 500, classes, names)
    ours, theirs = fit(tmp_path, head), fit(tmp_path, head, out_of_core=False)
    assert ours.accuracy == pytest.approx(theirs.accuracy, abs=0.04)  # some 200 are scored
    assert ours.accuracy > 1.5 / classes
    assert ours.log_loss == pytest.approx(theirs.log_loss, rel=0.3, abs=0.1)
    same = ("split_digest", "split_sizes", "n_train", "n_test", "scored_split", "fitted_on", "n_classes")
    for name in same:
        assert getattr(ours, name) == getattr(theirs, name)
    assert (ours.out_of_core, theirs.out_of_core) == (True, False)
    assert ours.chosen_by == f"{theirs.chosen_by}, the smallest C within one standard error"


@pytest.mark.slow
@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("head", out_of_core.LOSSES)
def test_the_weights_are_those_of_scikit_learn(tmp_path: Path, head: str, classes: int) -> None:
    n = 500
    _, store = make_cache(tmp_path, n, classes)
    X, codes = vectors(n, classes)
    keys = [hashlib.sha256(b"%d" % number).digest() for number in range(n)]
    rows = np.random.default_rng(0).permutation(n)[:400]
    stream = Stream(store.stored(keys), codes, torch.device("cpu"))
    assert list(stream.measure(stream.in_order(rows)))[-1] == 400
    C = 0.1
    found = Descent(LOSSES[head], stream, rows, [1e-3, C], classes, 0).run(1e-4)
    assert found.converged
    scaler = SCALINGS["unit"].make().fit(X[rows].astype(np.float16))
    X = scaler.transform(X.astype(np.float16).astype(np.float32))
    np.testing.assert_allclose(stream.scaler.mean_, scaler.mean_, atol=1e-6)
    np.testing.assert_allclose(stream.scaler.scale_, scaler.scale_, rtol=1e-4)
    kind = LogisticRegression(C=C, tol=1e-8) if head == "logreg" else LinearSVC(C=C, tol=1e-8, max_iter=10**5)
    theirs = kind.fit(X[rows], codes[rows])
    weights = stream.to_centred(found.weights)[:, 1].numpy()
    coef = weights[:-1] / stream.scaler.scale_[:, None] ** -1
    ours = (coef[:, 1:] - (coef[:, :1] if head == "logreg" else 0)) if classes == 2 else coef
    assert np.abs(ours.T - theirs.coef_).max() < 2e-3 * np.abs(theirs.coef_).max()


@pytest.mark.usefixtures("small_blocks")
def test_all_rows_come_once_and_every_block_has_most_classes_of_a_sorted_dataset(tmp_path: Path) -> None:
    _, store = make_cache(tmp_path, 1000, 10)
    keys = [hashlib.sha256(b"%d" % number).digest() for number in range(1000)]
    X, codes = vectors(1000, 10)
    stream = Stream(store.stored(keys), codes, torch.device("cpu"))
    rows = stream.in_order(np.arange(0, 1000, 2)[::-1])
    assert rows.tolist() == list(range(0, 1000, 2))
    list(stream.measure(rows))
    blocks = list(stream.shuffled(rows, np.random.default_rng(0)))
    assert sorted(row for taken, _ in blocks for row in taken) == rows.tolist()
    assert min(len(set(codes[taken])) for taken, _ in blocks[:-1]) >= 6
    assert max(len(taken) for taken, _ in blocks) == 64
    assert not any((np.diff(taken) > 0).all() for taken, _ in blocks)
    scaled = SCALINGS["unit"].make().fit_transform(X[rows].astype(np.float16).astype(np.float32))
    turned = np.concatenate([block.numpy() for _, block in blocks])
    assert np.square(turned).sum() == pytest.approx(np.square(scaled).sum(), rel=1e-3)
    covariance = np.cov(turned.T, bias=True)
    assert covariance == pytest.approx(np.diag(stream.variances.numpy()), abs=2e-3)


@pytest.mark.usefixtures("small_blocks")
def test_vectors_are_read_a_block_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("all vectors were read")

    make_cache(tmp_path)
    sizes: list[int] = []
    read = StoredRows.read
    monkeypatch.setattr(FeatureStore, "read", refuse)
    monkeypatch.setattr(StoredRows, "read", lambda self, rows: sizes.append(len(rows)) or read(self, rows))
    assert fit(tmp_path).accuracy > 0.5
    assert max(sizes) == 64
    with pytest.raises(AssertionError):
        fit(tmp_path, out_of_core=False)


@pytest.mark.slow
@pytest.mark.usefixtures("small_blocks")
def test_equal_seeds_give_equal_numbers_also_after_a_compaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(descent, "MAX_ROUNDS", 3)
    cache, store = make_cache(tmp_path, 300, segments=10)
    first, again, other = fit(tmp_path), fit(tmp_path), fit(tmp_path, seed=1)
    assert numbers(first) == numbers(again)
    assert numbers(first) != numbers(other)
    cache.store(SPEC.fingerprint).compact()
    store.refresh()
    assert len(store.segments) < 10
    assert numbers(fit(tmp_path)) == numbers(first)


def test_many_rows_are_chosen_on_some_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_cache(tmp_path, names=["train", "train", "test"])
    monkeypatch.setattr(out_of_core, "MANY", 150)
    found = fit(tmp_path)
    assert "one fold of 5-fold cross-validation inside train (drawn: 150 fitted on, 80 judged)" in found.chosen_by
    assert found.accuracy == pytest.approx(fit(tmp_path, out_of_core=False).accuracy, abs=0.03)


def test_what_is_said_of_the_pictures_is_what_is_said_in_memory(tmp_path: Path) -> None:
    cache, _ = make_cache(tmp_path)
    rows = cache.catalog.dataset("/made")
    strange = [
        Row(Item("/a.jpg", None, "train"), rows[0].key, None),
        Row(Item("/b.jpg", "class-0", "train"), None, "?"),
    ]
    twins = [Row(Item("/c.jpg", "class-1", "test"), rows[0].key, None), Row(Item("/d.jpg", "lost", "test"), None, "?")]
    cache.catalog.save_dataset("/made", [*rows, *strange, *twins], 1)
    ours, theirs = fit(tmp_path), fit(tmp_path, out_of_core=False)
    assert ours.notices == (*theirs.notices, out_of_core.SMALL)
    assert len(theirs.notices) == 6
    assert any("near twins" in notice for notice in theirs.notices)
    assert ours.split_digest == theirs.split_digest


def test_the_saved_model_gives_the_scores_that_are_told(tmp_path: Path) -> None:
    make_cache(tmp_path)
    for head in out_of_core.LOSSES:
        found = fit(tmp_path, head)
        model = load_saved(found.model)
        X, codes = vectors(600, 4)
        X = X.astype(np.float16)[2::3]
        assert (model.estimator.predict(X) == codes[2::3]).mean() == pytest.approx(found.accuracy)
        probabilities = model.estimator.predict_proba(X)
        assert -np.log(probabilities[np.arange(200), codes[2::3]]).mean() == pytest.approx(found.log_loss, rel=1e-3)
        assert model.classes == tuple(f"class-{code}" for code in range(4))


def test_a_head_that_does_not_converge_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_cache(tmp_path)
    monkeypatch.setattr(descent, "MAX_ROUNDS", 1)
    assert fit(tmp_path).notices[-2:] == (
        "logreg stopped at its iteration limit before it converged",
        out_of_core.SMALL,
    )


def test_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    cache, store = make_cache(tmp_path)
    with pytest.raises(HeadError, match="out of core there are logreg and svm, not mlp"):
        fit(tmp_path, "mlp")
    for views in ({"train_views": True}, {"tta": True}):
        with pytest.raises(HeadError, match="views are not used out of core"):
            fit(tmp_path, **views)
    with pytest.raises(DeviceError, match="no device 'cuda:7'"):
        featcache.fit(options=Options(cache=tmp_path, device="cuda:7"), out_of_core=True)
    rows = cache.catalog.dataset("/made")
    for name, value, said in (("one", 1.0, "are equal"),):
        keys = [hashlib.sha256(b"%s %d" % (name.encode(), at)).digest() for at in range(12)]
        X = np.full((12, DIM), 1.0, np.float32)
        X[3] = value
        with FeatureWriter(store, "float16") as writer:
            writer.append(keys, X.astype(np.float16))
        items = [Item(f"/{'x' if at == 3 else at}.jpg", f"{at % 2}", "test" if at > 7 else "train") for at in range(12)]
        cache.catalog.save_dataset("/made", [Row(item, key, None) for item, key in zip(items, keys, strict=True)], 1)
        with pytest.raises(HeadError, match=said):
            fit(tmp_path)
    assert [run.command for run in cache.runs.all()] == ["import"]
    cache.catalog.save_dataset("/made", rows, 1)
    assert fit(tmp_path).n_test == 200


@pytest.mark.slow
def test_the_command_line_fits_predicts_and_shows(run: Callable[..., Result], photos: Path) -> None:
    found = run("fit", photos, "--out-of-core", "--device", "cpu", "--json", network=True)
    assert (found.code, found.json["out_of_core"], found.json["n_test"]) == (0, True, 6)
    assert "choose C" in found.err
    predicted = run("predict", found.json["model"], photos, "--json").json["predictions"]
    right = [Path(row["path"]).parent.name == row["label"] for row in predicted]
    assert np.mean(right) > 0.6
    refused = run("fit", "--out-of-core", "--head", "knn")
    assert (refused.code, refused.out) == (1, "")
    assert refused.err.count("\n") == 1
