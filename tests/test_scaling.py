"""How vectors are scaled, beside plain computations; few pictures a class, beside scikit-learn's plain recipes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from feature_rows import pictures
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import log_loss
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks

from featcache import heads
from featcache.experiments.fitting import fit_head
from featcache.experiments.prepared import prepare
from featcache.heads import knn
from featcache.heads.base import probabilities
from featcache.heads.scaling import CHOICE, SCALINGS, VectorScaler
from featcache.records import Features
from featcache.splits import Plan


def vectors(n: int = 50, dim: int = 12, seed: int = 0) -> Any:
    r = np.random.default_rng(seed)
    return r.normal(1, np.geomspace(0.1, 3, dim), (n, dim)) * r.uniform(0.5, 2, (n, 1))


class TestVectorScaler:
    @parametrize_with_checks([VectorScaler(), VectorScaler(1.0, False, 0.9)])
    def test_scikit_learns_checks(self, estimator: Any, check: Any) -> None:
        check(estimator)

    def test_standardising_is_scikit_learns(self) -> None:
        X = vectors()
        got = VectorScaler(power=1, unit=False, columns=1).fit(X).transform(vectors(seed=1))
        wanted = StandardScaler().fit(X).transform(vectors(seed=1)) / np.sqrt(12)
        np.testing.assert_allclose(got, wanted, rtol=1e-12)

    def test_unit_length_is_scikit_learns(self) -> None:
        X = vectors()
        got = VectorScaler(power=1).fit(X).transform(X)
        rows = Normalizer().fit_transform(X)
        rows -= rows.mean(0)
        np.testing.assert_allclose(got, rows / np.sqrt((rows**2).sum(1).mean()), atol=1e-12)

    def test_a_power_keeps_the_sign(self) -> None:
        X = vectors()
        assert (X < 0).any()
        shaped = VectorScaler(power=0.7, unit=False).shape(X)
        np.testing.assert_allclose(np.abs(shaped), np.abs(X) ** 0.7)
        np.testing.assert_array_equal(np.sign(shaped), np.sign(X))

    def test_the_variance_of_a_column_is_drawn_towards_the_mean_one(self) -> None:
        X = vectors()
        got = VectorScaler(power=1, unit=False, columns=0.9).fit_transform(X)
        own = X.var(0)
        rows = (X - X.mean(0)) / np.sqrt(0.9 * own + 0.1 * own.mean())
        np.testing.assert_allclose(got, rows / np.sqrt((rows**2).sum(1).mean()), rtol=1e-10, atol=1e-12)

    @pytest.mark.parametrize("name", CHOICE)
    def test_the_total_variance_is_one(self, name: str) -> None:
        assert SCALINGS[name].make().fit_transform(vectors()).var(0).sum() == pytest.approx(1)

    @pytest.mark.parametrize("size", [1e-30, 1e30])
    def test_size_does_not_matter_to_unit_length(self, size: float) -> None:
        X = np.float32(size) * vectors().astype(np.float32)
        np.testing.assert_allclose(
            VectorScaler().fit_transform(X), VectorScaler().fit_transform(vectors().astype(np.float32)), atol=1e-5
        )

    def test_zeros_stay_zeros_and_constant_columns_are_not_blown_up(self) -> None:
        X = vectors().astype(np.float32)
        X[3] = 0
        assert not VectorScaler().shape(X)[3].any()
        X[:, 5] = 7
        got = VectorScaler(power=1, unit=False, columns=1).fit_transform(X)
        assert np.isfinite(got).all()
        assert not got[:, 5].any()

    @pytest.mark.parametrize("name", CHOICE)
    def test_one_vector_has_no_variance(self, name: str) -> None:
        assert not SCALINGS[name].make().fit_transform(vectors(1)).any()

    def test_half_precision_becomes_single(self) -> None:
        X = vectors().astype(np.float16)
        got = VectorScaler().fit(X).transform(X)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, VectorScaler().fit_transform(X.astype(np.float32)))

    def test_learning_from_mean_and_variance_is_fitting(self) -> None:
        X, one = vectors(), VectorScaler(columns=0.9)
        rows = one.shape(X)
        other = VectorScaler(columns=0.9).learn(rows.mean(0), rows.var(0))
        np.testing.assert_array_equal(one.fit(X).transform(X), other.transform(X))


# --- few pictures a class

PLAIN: dict[str, Any] = {
    "logreg": lambda: LogisticRegression(max_iter=300),
    "svm": LinearSVC,
    "ridge": RidgeClassifier,
    "centroid": NearestCentroid,
}
RECIPES: dict[str, list[Any]] = {
    "raw": [],
    "standardised": [StandardScaler()],
    "unit": [Normalizer()],
    "centred+unit": [StandardScaler(with_std=False), Normalizer()],
}
DRAWS = 10


def digits(per_class: int, seed: int) -> tuple[Any, Any, Any, Any]:
    """So many digits of each class to fit on, and others to score."""
    given, r = load_digits(), np.random.default_rng(seed)
    rows = r.permutation(len(given.target))
    fitted = np.concatenate([rows[given.target[rows] == digit][:per_class] for digit in range(10)])
    scored = np.setdiff1d(rows, fitted)[:500]
    X = given.data.astype(np.float32)
    return X[fitted], given.target[fitted], X[scored], given.target[scored]


def ours(name: str, X: Any, y: Any, held: Any, truth: Any) -> Any:
    rows = len(X) + len(held)
    features = Features(
        X=np.concatenate([X, held]),
        y=np.concatenate([y, truth]).astype(str),
        paths=tuple(map(str, range(rows))),
        splits=np.array(["train"] * len(X) + ["test"] * len(held)),
        keys=tuple(row.to_bytes(32, "big") for row in range(rows)),
        fingerprint="",
    )
    plan = Plan(np.arange(len(X)), None, np.arange(len(X), rows), "test", {})
    return fit_head(heads.get(name), prepare(features, plan), 0).probabilities


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("per_class", [1, 2, 5])
@pytest.mark.parametrize("name", PLAIN)
def test_few_pictures_score_as_the_best_plain_recipe(name: str, per_class: int) -> None:
    mine, theirs = [], {recipe: [] for recipe in RECIPES}
    for seed in range(DRAWS):
        X, y, held, truth = digits(per_class, seed)
        mine.append((ours(name, X, y, held, truth).argmax(1) == truth).mean())
        for recipe, steps in RECIPES.items():
            theirs[recipe].append(make_pipeline(*steps, PLAIN[name]()).fit(X, y).score(held, truth))
    best = max(np.mean(each) for each in theirs.values())
    assert np.mean(mine) > best - 0.02


@pytest.mark.parametrize("name", heads.HEADS)
def test_one_picture_a_class_is_better_than_the_class_frequencies(name: str) -> None:
    losses = []
    for seed in range(DRAWS):
        X, y, held, truth = digits(1, seed)
        found = ours(name, X, y, held, truth)
        losses.append(log_loss(truth, found))
        assert found[np.arange(len(truth)), truth].min() > 1e-4
    assert np.mean(losses) < np.log(10)


# --- the same bits


@pytest.mark.parametrize("name", [*heads.HEADS, heads.FLOOR])
def test_a_vector_has_the_same_probabilities_in_any_company(name: str) -> None:
    given, made = pictures({"train": 40, "test": 60}, dim=70, apart=0.3)
    estimator = fit_head(heads.get(name), prepare(given, made), 0).estimator
    X = given.X[made.scored]
    whole = probabilities(estimator, X)
    order = np.random.default_rng(0).permutation(len(X))
    np.testing.assert_array_equal(probabilities(estimator, X[order]), whole[order])
    for at in (0, 1, 63, 64, 170):
        np.testing.assert_array_equal(probabilities(estimator, X[at : at + 1])[0], whole[at])
    np.testing.assert_array_equal(probabilities(estimator, X[5:18]), whole[5:18])


def test_equal_training_vectors_are_taken_in_their_order_however_they_are_rounded() -> None:
    r = np.random.default_rng(0)
    X = r.normal(size=(40, 300)).astype(np.float32)
    twins = np.repeat(np.arange(10), 3)  # ten vectors, three times each, every time under another label
    rows, labels = np.concatenate([X[twins], X[10:]]), np.concatenate([np.tile([2, 0, 1], 10), np.arange(30) % 3])
    near = X[:10] + 0.05 * r.normal(size=(10, 300)).astype(np.float32)
    for seed in range(5):
        columns = np.random.default_rng(seed).permutation(300)  # the same angles, added up in another order
        head = knn.KNeighbors(1).fit(rows[:, columns], labels)
        assert head.predict(near[:, columns]).tolist() == [2] * 10
        both = knn.KNeighbors(2).fit(rows[:, columns], labels)
        assert both.predict_proba(near[:, columns])[:, 1].max() < 0.34
