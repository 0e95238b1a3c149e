"""Every classifier of ours: scikit-learn's own checks, scikit-learn's class of the same objective, awkward input."""

from __future__ import annotations

import itertools
import pickle
from typing import Any

import numpy as np
import pytest
from scipy import optimize
from scipy.special import logsumexp, softmax
from sklearn import discriminant_analysis, linear_model, neighbors, svm
from sklearn.base import clone
from sklearn.preprocessing import normalize
from sklearn.utils.estimator_checks import parametrize_with_checks

from featcache import heads
from featcache.errors import ModelError
from featcache.heads import centroid, knn, lda, logreg, mlp, ridge, solver, svm_rbf
from featcache.heads import svm as linear_svm
from featcache.heads.solver import minimise

OURS = [
    logreg.LogisticRegression(),
    linear_svm.LinearSVM(),
    svm_rbf.KernelSVM(),
    knn.KNeighbors(),
    centroid.NearestCentroid(),
    ridge.RidgeClassifier(),
    lda.LinearDiscriminantAnalysis(),
    mlp.LeadingAxes(),
    mlp.Perceptron(random_state=0),
]


@parametrize_with_checks(OURS)
def test_scikit_learns_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def blobs(
    seed: int, n: int = 120, d: int = 8, n_classes: int = 3, apart: float = 1.0, dtype: Any = np.float64
) -> tuple[Any, Any]:
    """Rows around one centre a class, centred, columns of falling variance as principal axes have, uneven classes."""
    r = np.random.default_rng(seed)
    y = np.r_[np.arange(n_classes), r.integers(0, n_classes, n - n_classes) * r.integers(0, 2, n - n_classes)]
    y = r.permutation(y)
    X = (r.normal(size=(n, d)) + apart * r.normal(size=(n_classes, d))[y]) / np.sqrt(1 + np.arange(d))
    return (X - X.mean(0)).astype(dtype), y


def make(name: str, seed: int = 0) -> Any:
    return heads.get(name).make(seed, 100)


SHAPES = [(120, 8), (30, 60)]
CLASSES = [2, 4]
OWN = [name for name in heads.HEADS if name != "mlp"]
PATH_OF = {name: list(heads.get(name).grid)[-1] for name in heads.HEADS}


def close(got: Any, wanted: Any, share: float) -> None:
    """Equal within a share of the largest wanted value."""
    assert np.shape(got) == np.shape(wanted)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=share * np.abs(wanted).max())


def same_predictions(ours: Any, theirs: Any, X: Any) -> None:
    np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))


# --- the objectives of scikit-learn


@pytest.mark.parametrize("n_classes", CLASSES)
@pytest.mark.parametrize(("n", "d"), SHAPES)
@pytest.mark.parametrize("C", [1e-3, 0.1, 10.0])
def test_logreg_is_scikit_learns(C: float, n: int, d: int, n_classes: int) -> None:
    X, y = blobs(1, n, d, n_classes)
    X = X + 0.5  # the intercept has work to do
    theirs = linear_model.LogisticRegression(C=C, tol=1e-12, max_iter=20_000, solver="newton-cg").fit(X, y)
    new = blobs(2, 50, d, n_classes)[0]
    for tol, share in ((1e-6, 1e-3), (1e-8, 2e-5)):
        ours = logreg.LogisticRegression(C, tol=tol).fit(X, y)
        coef = ours.coef_[1:] - ours.coef_[:1] if n_classes == 2 else ours.coef_
        close(coef, theirs.coef_, share)
        a, b = ours.decision_function(new), theirs.decision_function(new)
        if n_classes > 2:  # softmax knows no common level
            a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
        close(a, b, share)
        np.testing.assert_allclose(ours.predict_proba(new), theirs.predict_proba(new), atol=share)
        same_predictions(ours, theirs, new)


@pytest.mark.parametrize("n_classes", CLASSES)
@pytest.mark.parametrize(("n", "d"), SHAPES)
@pytest.mark.parametrize("C", [1e-3, 0.1, 3.0])
def test_svm_is_scikit_learns(C: float, n: int, d: int, n_classes: int) -> None:
    X, y = blobs(3, n, d, n_classes)
    ours = linear_svm.LinearSVM(C, tol=1e-8).fit(X, y)
    theirs = svm.LinearSVC(C=C, tol=1e-9, max_iter=200_000, random_state=0).fit(X, y)
    coef = ours.coef_[1:] - ours.coef_[:1] if n_classes == 2 else ours.coef_
    intercept = ours.intercept_[1:] - ours.intercept_[:1] if n_classes == 2 else ours.intercept_
    close(coef, theirs.coef_, 1e-5)
    close(intercept, theirs.intercept_, 1e-5)
    new = blobs(4, 50, d, n_classes)[0]
    close(ours.decision_function(new), theirs.decision_function(new), 1e-5)
    same_predictions(ours, theirs, new)


@pytest.mark.parametrize("n_classes", CLASSES)
@pytest.mark.parametrize(("n", "d"), SHAPES)
@pytest.mark.parametrize("alpha", [1e-2, 1.0, 1e3])
def test_ridge_is_scikit_learns(alpha: float, n: int, d: int, n_classes: int) -> None:
    X, y = blobs(5, n, d, n_classes)
    X = X + np.arange(d) % 3
    ours = ridge.RidgeClassifier(alpha).fit(X, y)
    theirs = linear_model.RidgeClassifier(alpha=alpha, solver="svd").fit(X, y)
    new = blobs(6, 50, d, n_classes)[0]
    # Of two classes ours are two regressions, on mirrored targets: the difference is twice the one of scikit-learn.
    close(ours.decision_function(new) / (2 if n_classes == 2 else 1), theirs.decision_function(new), 1e-9)
    same_predictions(ours, theirs, new)


@pytest.mark.parametrize("n_classes", CLASSES)
@pytest.mark.parametrize(("n", "d"), SHAPES)
@pytest.mark.parametrize("shrinkage", [0.05, 0.5, 1.0])
def test_lda_is_scikit_learns(shrinkage: float, n: int, d: int, n_classes: int) -> None:
    X, y = blobs(7, n, d, n_classes)
    X = X + np.arange(d) % 3
    ours = lda.LinearDiscriminantAnalysis(shrinkage).fit(X, y)
    theirs = discriminant_analysis.LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(X, y)
    new = blobs(8, 50, d, n_classes)[0]
    close(ours.decision_function(new), theirs.decision_function(new), 1e-9)
    np.testing.assert_allclose(ours.predict_proba(new), theirs.predict_proba(new), atol=1e-9)
    same_predictions(ours, theirs, new)


@pytest.mark.parametrize("block", [None, 500])
@pytest.mark.parametrize("n_classes", [2, 3, 5])
@pytest.mark.parametrize(("C", "gamma"), [(1.0, 1.0), (10.0, 0.25)])
def test_kernel_svm_is_scikit_learns(
    C: float, gamma: float, n_classes: int, block: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y = blobs(9, n_classes=n_classes)
    X = X + 0.5
    if block:
        monkeypatch.setattr(svm_rbf, "_BLOCK", block)
    ours = svm_rbf.KernelSVM(C, gamma).fit(X, y)
    unit = normalize(X)
    theirs = svm.SVC(C=C, gamma=gamma / unit.var(0).sum(), decision_function_shape="ovo").fit(unit, y)
    new = blobs(10, 77, n_classes=n_classes)[0]
    pairs = itertools.combinations(range(n_classes), 2)
    worst = np.full((len(new), n_classes), np.inf)
    decisions = theirs.decision_function(normalize(new)).reshape(len(new), -1)
    for (first, second), decision in zip(pairs, -decisions.T if n_classes == 2 else decisions.T, strict=True):
        worst[:, first] = np.minimum(worst[:, first], decision)
        worst[:, second] = np.minimum(worst[:, second], -decision)
    # libsvm ends at its tolerance of 1e-3, and the last bit of a kernel decides where.
    np.testing.assert_allclose(ours.scores(new), worst / 2, atol=1e-3)
    beats_all = (np.abs(worst.max(1)) > 1e-3) & (worst.max(1) > 0)
    assert beats_all.mean() > 0.8  # of the others no class beats all
    assert (ours.predict(new) == theirs.predict(normalize(new)))[beats_all].all()
    assert len(set(ours.predict(new))) == n_classes


def test_a_kernel_svm_that_counted_votes_is_refused() -> None:
    state = svm_rbf.KernelSVM().__getstate__() | {"_offsets": np.zeros((2, 2))}
    with pytest.raises(ModelError, match="counted votes: fit it again"):
        svm_rbf.KernelSVM().__setstate__(state)


def test_kernel_svm_scores_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = blobs(13)
    model = svm_rbf.KernelSVM().fit(X, y)
    seen: list[int] = []
    margins = model._margins
    monkeypatch.setattr(model, "_margins", lambda part, *rest: (seen.append(len(part)), margins(part, *rest))[1])
    whole = model.scores(X)
    assert seen == [len(X)]
    monkeypatch.setattr(svm_rbf, "_BLOCK", 20 * len(model._vectors))
    np.testing.assert_allclose(model.scores(X), whole, atol=1e-12)
    assert sum(seen[1:]) == len(X)
    assert max(seen[1:]) <= 20


def test_no_kernel_value_is_above_one() -> None:
    X = normalize(blobs(13)[0] + 300).astype(np.float32)
    kernel = svm_rbf._kernel(X, X, 1.0)
    assert kernel.max() <= 1
    assert kernel.min() >= 0
    X = normalize(blobs(13)[0])
    wanted = [np.exp(-0.5 * np.square(X[0] - x).sum()) for x in X[1:9]]
    np.testing.assert_allclose(svm_rbf._kernel(X[:1], X[1:9], 0.5)[0], wanted, rtol=1e-12)


def test_kernel_svm_refuses_more_rows_than_a_matrix_of_pairs_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = blobs(14, n=40)
    monkeypatch.setattr(svm_rbf, "MAX_ROWS", 40)
    svm_rbf.KernelSVM().fit(X, y)
    monkeypatch.setattr(svm_rbf, "MAX_ROWS", 39)
    with pytest.raises(ValueError, match="40 are more than 39"):
        svm_rbf.KernelSVM().fit(X, y)


def test_centroid_is_scikit_learns() -> None:
    X, y = blobs(15, n_classes=5)
    X = X + 3
    new = blobs(16, 80, n_classes=5)[0] + 3
    ours, theirs = centroid.NearestCentroid().fit(X, y), neighbors.NearestCentroid().fit(X, y)
    same_predictions(ours, theirs, new)
    close(ours.coef_, theirs.centroids_, 1e-12)
    squares = np.square(new[:, None] - theirs.centroids_).sum(2)
    scores = ours.decision_function(new)
    close(scores - scores[:, :1], (squares[:, :1] - squares) / 2, 1e-9)


def test_centroid_by_the_angle_is_scikit_learns_of_vectors_of_unit_length() -> None:
    # The long vector of class b counts no more than the short one: its mean lies on the diagonal.
    X = np.array([[2.0, 0.0], [0.5, 0.0], [100.0, 0.0], [0.0, 0.1]])
    y = np.array(["a", "a", "b", "b"])
    model = centroid.NearestCentroid(cosine=True).fit(X, y)
    length = np.sqrt((1 + 0.5) / 2)
    np.testing.assert_allclose(model.coef_ * length, [[1, 0], [0.5, 0.5]], atol=1e-12)
    np.testing.assert_allclose(model.intercept_ * length, [-0.5, -0.25], atol=1e-12)
    new = np.array([[50.0, 1.0], [1e-3, 1e-3], [0.0, 7.0], [-1.0, 0.0]])
    same_predictions(model, neighbors.NearestCentroid().fit(normalize(X), y), normalize(new))
    np.testing.assert_array_equal(model.predict(new), ["a", "b", "b", "b"])
    np.testing.assert_array_equal(centroid.NearestCentroid().fit(X, y).predict(new), ["b", "a", "a", "a"])


# --- neighbours


def shares_of_votes(X: Any, y: Any, new: Any, k: int) -> Any:
    """The definition, one vector after the other."""
    classes = sorted(set(y))
    out = []
    for v in new:
        cosines = [float(v @ x) / float(np.linalg.norm(v) * np.linalg.norm(x)) for x in X]
        votes = dict.fromkeys(classes, 1 / len(classes))
        for at in sorted(range(len(X)), key=lambda i: -cosines[i])[:k]:
            votes[y[at]] += max(cosines[at], 0.0)
        out.append([votes[c] / sum(votes.values()) for c in classes])
    return np.array(out)


@pytest.mark.parametrize("block", [None, 300])
@pytest.mark.parametrize("k", [1, 5, 59, 60, 61, 1000])
def test_knn_is_the_vote_of_the_nearest(k: int, block: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = blobs(17, n=60, n_classes=4)
    new = blobs(18, 25, n_classes=4)[0]
    if block:
        monkeypatch.setattr(knn, "_BLOCK", block)
    model = knn.KNeighbors(k).fit(X, y)
    wanted = shares_of_votes(X, y, new, k)
    np.testing.assert_allclose(model.predict_proba(new), wanted, atol=1e-9)
    np.testing.assert_allclose(np.exp(model.scores(new)), wanted, atol=1e-9)
    np.testing.assert_array_equal(model.predict(new), wanted.argmax(1))


def test_knn_works_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = blobs(17, n=60)
    model = knn.KNeighbors(3).fit(X, y)
    whole = model.scores(X)
    seen: list[int] = []
    partition = np.argpartition
    monkeypatch.setattr(
        np, "argpartition", lambda part, *rest, **named: (seen.append(len(part)), partition(part, *rest, **named))[1]
    )
    monkeypatch.setattr(knn, "_BLOCK", 600)
    np.testing.assert_allclose(model.scores(X), whole, atol=1e-12)
    assert sum(seen) == len(X)
    assert max(seen) <= 10


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_knn_never_says_impossible(dtype: Any) -> None:
    X, y = blobs(19, n_classes=6, dtype=dtype)
    for k in (1, 20, 500):
        model = knn.KNeighbors(k).fit(X, y)
        for new in (X, -X, np.zeros_like(X)):
            p = model.predict_proba(new)
            assert np.isfinite(model.scores(new)).all()
            assert p.min() > 0
            assert p.max() < 1
    # One vote out of two is spread: the nearest's class has at least half, and a sixth of the other half.
    p = knn.KNeighbors(1).fit(X, y).predict_proba(X)
    np.testing.assert_allclose(p[np.arange(len(y)), y], (1 + 1 / 6) / 2, atol=1e-5)


# --- several values at once


@pytest.mark.parametrize("n_classes", CLASSES)
@pytest.mark.parametrize("name", OWN)
def test_fit_path_gives_what_separate_fits_give(name: str, n_classes: int) -> None:
    head = heads.get(name)
    X, y = blobs(20, 150, 20, n_classes)
    X /= np.sqrt(np.square(X).sum(1).mean())  # the total variance of scaled vectors
    y = np.array(["ant", "bee", "cow", "dog"])[y]
    estimator = make(name)
    if "tol" in estimator.get_params():
        estimator.set_params(tol=1e-5)
    before = {key: repr(value) for key, value in estimator.get_params().items()}
    attributes = set(vars(estimator))
    values = head.grid[PATH_OF[name]]
    fitted = list(estimator.fit_path(X, y, values))
    assert len(fitted) == len(values)
    assert len({id(model) for model in fitted}) == len(values)
    for value, model in zip(values, fitted, strict=True):
        alone = clone(estimator).set_params(**{PATH_OF[name]: value}).fit(X, y)
        assert model.get_params()[PATH_OF[name]] == value
        np.testing.assert_array_equal(model.classes_, alone.classes_)
        assert model.n_features_in_ == alone.n_features_in_
        if name in ("logreg", "svm"):  # from another start
            close(model.decision_function(X), alone.decision_function(X), 2e-2)
            assert (model.predict(X) == alone.predict(X)).mean() > 0.98
        else:
            np.testing.assert_array_equal(model.predict_proba(X), alone.predict_proba(X))
            np.testing.assert_array_equal(model.predict(X), alone.predict(X))
    assert {key: repr(value) for key, value in estimator.get_params().items()} == before
    assert vars(estimator).keys() - {"classes_", "n_features_in_"} == attributes


def test_fit_path_keeps_the_other_parameters() -> None:
    X, y = blobs(21)
    for model in linear_svm.LinearSVM(tol=0.05, temperature=3.0).fit_path(X, y, (0.1, 1.0)):
        assert (model.tol, model.temperature) == (0.05, 3.0)
    one, other = svm_rbf.KernelSVM(gamma=0.1), svm_rbf.KernelSVM(gamma=5.0)
    a, b = (next(iter(m.fit_path(X, y, (1.0,)))).scores(X) for m in (one, other))
    assert np.abs(a - b).max() > 0.01


@pytest.mark.parametrize("family", [logreg.LogisticRegression, linear_svm.LinearSVM])
@pytest.mark.parametrize("n_classes", CLASSES)
def test_fit_path_of_a_small_tol_is_exact_in_any_order(family: Any, n_classes: int) -> None:
    X, y = blobs(22, 150, 20, n_classes)
    values = (1.0, 1e-3, 0.1)
    for value, model in zip(values, family(tol=1e-7).fit_path(X, y, values), strict=True):
        close(model.decision_function(X), family(value, tol=1e-7).fit(X, y).decision_function(X), 1e-5)


@pytest.mark.parametrize("name", heads.HEADS)
def test_heads_say_what_they_are(name: str) -> None:
    head = heads.get(name)
    assert head.name == name
    estimator = make(name)
    parameters = estimator.get_params()
    assert parameters.keys() >= {*head.grid, *head.default, *head.rough}
    assert head.default.keys() == head.grid.keys()
    assert all(head.default[key] in values for key, values in head.grid.items())
    assert "temperature" in parameters
    assert (repr(make(name, 1)) != repr(make(name, 2))) == (name == "mlp")
    assert estimator.path == PATH_OF[name]


@pytest.mark.parametrize("name", ["logreg", "svm", "ridge"])
def test_the_grid_begins_with_the_most_regularised(name: str) -> None:
    X, y = blobs(23)
    X /= np.sqrt(np.square(X).sum(1).mean())
    head = heads.get(name)
    sizes = [float(np.linalg.norm(m.coef_)) for m in make(name).fit_path(X, y, head.grid[PATH_OF[name]])]
    assert sizes == sorted(sizes)
    assert sizes[-1] > 1.5 * sizes[0]


def test_an_unknown_head_is_refused_with_the_names() -> None:
    with pytest.raises(heads.HeadError, match=r"unknown head 'forest'.*logreg, svm, svm-rbf.*dummy"):
        heads.get("forest")
    assert make(heads.FLOOR).fit([[0.0], [1.0], [2.0]], ["a", "b", "b"]).predict([[0.0]]) == ["b"]


# --- awkward input


def awkward() -> dict[str, tuple[Any, Any, float]]:
    X, y = blobs(24, apart=4.0)
    n, d = X.shape
    noise = np.random.default_rng(0).normal(size=(n, 200)) / 10
    return {
        "constant columns": (np.c_[np.zeros(n), X, np.full(n, 3.0)], y, 0.97),
        "duplicated columns": (np.c_[X, X, X[:, :2]], y, 0.97),
        "scales": (X[:, ::-1] * np.logspace(-4, 4, d), y, 0.58),
        "single precision": (X.astype(np.float32), y, 0.97),
        "an offset": ((X + 300).astype(np.float32), y, 0.97),
        "one offset": ((X + np.eye(d)[1] * 300).astype(np.float32), y, 0.97),
        "more columns than rows": (np.c_[X, noise].astype(np.float32), y, 0.97),
        "a class of one row": (np.r_[X, [30 * X[0] / np.linalg.norm(X[0])]], np.r_[y, 7], 0.95),
        "hidden in a class": (np.r_[X, X[:1]], np.r_[y, 7], 0.9),
        "one row a class": (np.eye(6)[[0, 1, 2, 3, 4, 5, 0]] + np.eye(7, 6, -1) / 9, np.arange(7) % 6, 0.28),
        "three rows": (np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 0.1]]), np.array([0, 1, 1]), 0.6),
    }


@pytest.mark.parametrize("case", awkward())
@pytest.mark.parametrize("name", OWN)
def test_awkward_input(name: str, case: str) -> None:
    X, y, accuracy = awkward()[case]
    values = heads.get(name).grid[PATH_OF[name]]
    best = 0.0
    for value, model in zip(values, make(name).fit_path(X, y, values), strict=True):
        scores, p = model.scores(X), model.predict_proba(X)
        assert scores.dtype == X.dtype
        assert np.isfinite(scores).all(), value
        np.testing.assert_allclose(p.sum(1), 1, atol=1e-6)
        if hasattr(model, "coef_"):
            assert np.isfinite(model.coef_).all()
            assert np.isfinite(model.intercept_).all()
        best = max(best, model.score(X, y))
    assert best >= accuracy


def test_ridge_takes_a_large_offset_in_single_precision() -> None:
    X, y = blobs(24, apart=4.0)
    X = (X + 1e4).astype(np.float32)
    for model in ridge.RidgeClassifier().fit_path(X, y, (1000.0, 10.0, 0.1)):
        assert np.isfinite(model.coef_).all()
        assert model.score(X, y) > 0.97


@pytest.mark.parametrize("level", [0.0, 1.0, 0.1])
@pytest.mark.parametrize("name", [n for n in OWN if n not in ("knn", "lda")])
def test_rows_that_are_all_equal_get_the_most_frequent_class(name: str, level: float) -> None:
    X, y = np.full((60, 4), level, np.float32), np.r_[np.zeros(15, int), np.ones(35, int), np.full(10, 2)]
    model = make(name).fit(X, y)
    assert np.isfinite(model.scores(X)).all()
    assert len(set(model.predict(X))) == 1
    if name != "centroid":
        assert model.predict(X)[0] == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_classes", CLASSES)
@pytest.mark.parametrize("family", [logreg.LogisticRegression, linear_svm.LinearSVM, svm_rbf.KernelSVM])
def test_separable_rows_are_separated_by_a_large_c(family: Any, n_classes: int, dtype: Any) -> None:
    X, y = blobs(25, 40, 60, n_classes, apart=3.0, dtype=dtype)
    model = family(1e6).fit(X, y)
    assert np.isfinite(model.scores(X)).all()
    assert model.score(X, y) == 1


@pytest.mark.parametrize("name", [n for n in OWN if n != "knn"])
def test_single_precision_gives_what_double_gives(name: str) -> None:
    X, y = blobs(26, 150, 20, 4)
    a, b = make(name).fit(X, y), make(name).fit(X.astype(np.float32), y)
    share = {"logreg": 5e-3, "svm": 5e-3, "svm-rbf": 1e-3}.get(name, 1e-4)  # where these three end hangs on rounding
    close(b.scores(X.astype(np.float32)), a.scores(X), share)


# --- the solver


def problem(kind: str, n_columns: int = 3) -> tuple[Any, Any, Any, Any]:
    """Vectors, the loss of the package, and value and gradient written down independently."""
    X, y = blobs(27, 90, 12, max(n_columns, 2))
    X = X + 0.3
    truth = np.eye(max(n_columns, 2))[y]
    if kind == "logreg":

        def value_and_gradient(scores: Any) -> Any:
            p = softmax(scores, axis=1)
            return float((logsumexp(scores, axis=1) - (scores * truth).sum(1)).sum()), p - truth

        return X, logreg._CrossEntropy(y, X.dtype), value_and_gradient, n_columns
    signs = 2 * truth - 1

    def value_and_gradient(scores: Any) -> Any:
        gap = np.maximum(0, 1 - signs * scores)
        return float((gap**2).sum()), -2 * signs * gap

    return X, linear_svm._SquaredHinge(signs), value_and_gradient, n_columns


def full(X: Any, W: Any, b: Any, penalty: float, with_b: bool, value_and_gradient: Any) -> tuple[float, Any]:
    value, residual = value_and_gradient(X @ W + b)
    value += penalty / 2 * (np.square(W).sum() + with_b * np.square(b).sum())
    gradient = np.r_[X.T @ residual + penalty * W, [residual.sum(0) + penalty * with_b * b]]
    return value, gradient


@pytest.mark.parametrize("with_b", [False, True])
@pytest.mark.parametrize("kind", ["logreg", "svm"])
@pytest.mark.parametrize("tol", [1e-1, 1e-3, 1e-6])
def test_the_solver_ends_where_tol_says_and_no_later(
    kind: str, with_b: bool, tol: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, loss, value_and_gradient, k = problem(kind)
    d = X.shape[1]
    squares = np.r_[np.square(X).sum(0), len(X)][:, None]
    for penalty in (100.0, 1.0, 0.01):
        # The curvature that preconditions is the one at the start.
        curvature = (2 / 9 if kind == "logreg" else 2.0) * squares + penalty * np.r_[np.ones(d), with_b][:, None]

        def norm(W: Any, b: Any, penalty: float = penalty, curvature: Any = curvature) -> float:
            gradient = full(X, W, b, penalty, with_b, value_and_gradient)[1]
            return float(np.sqrt((gradient**2 / curvature).sum()))

        zero = norm(np.zeros((d, k)), np.zeros(k))
        ((W, b, iterations),) = minimise(X, loss, k, [penalty], tol, with_b)
        assert (W.shape, b.shape) == ((d, k), (k,))
        assert 0 < iterations < solver.MAX_ITERATIONS
        assert norm(W, b) <= 1.001 * tol * zero
        with monkeypatch.context() as patch:
            patch.setattr(solver, "MAX_ITERATIONS", iterations - 1)
            loss.gradient(np.zeros((len(X), k)))
            ((W, b, _),) = minimise(X, loss, k, [penalty], tol, with_b)
        assert norm(W, b) > 0.999 * tol * zero


@pytest.mark.parametrize("with_b", [False, True])
@pytest.mark.parametrize("kind", ["logreg", "svm"])
@pytest.mark.parametrize("scaled", [False, True])
def test_the_solver_is_no_worse_than_scipys(kind: str, with_b: bool, scaled: bool) -> None:
    X, loss, value_and_gradient, k = problem(kind)
    d = X.shape[1]
    if scaled:
        X = X * np.logspace(-1, 1, d)
    for penalty in (100.0, 1.0, 0.01):

        def flat(w: Any, penalty: float = penalty) -> tuple[float, Any]:
            w = w.reshape(d + 1, k)
            value, gradient = full(X, w[:-1], w[-1], penalty, with_b, value_and_gradient)
            return value, gradient.ravel()

        options = {"maxiter": 20_000, "maxfun": 50_000, "ftol": 0.0, "gtol": 1e-7}
        theirs = optimize.minimize(flat, np.zeros((d + 1) * k), jac=True, method="L-BFGS-B", options=options)
        ((W, b, _),) = minimise(X, loss, k, [penalty], 1e-8, with_b)
        assert flat(np.r_[W, [b]].ravel())[0] <= theirs.fun * (1 + 1e-6)


def test_the_solver_stops_at_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    X, loss, value_and_gradient, k = problem("logreg")
    ((W, _, enough),) = minimise(X, loss, k, [0.01], 1e-6)
    assert enough > 8
    values = []
    for limit in (0, 3, 7):
        monkeypatch.setattr(solver, "MAX_ITERATIONS", limit)
        found = list(minimise(X, loss, k, [0.01, 0.01], 1e-6))
        assert [f[2] for f in found] == [limit, limit]
        values += [full(X, W, b, 0.01, False, value_and_gradient)[0] for W, b, _ in found]
    assert np.abs(W - found[0][0]).max() > 1e-6
    # The second value of a path goes on where the first stopped, and every iteration goes down.
    assert values[0] == values[1] > values[2] > values[3] > values[4] > values[5]


def test_the_solver_begins_where_the_value_before_ended() -> None:
    X, loss, _, k = problem("logreg")
    first, again = minimise(X, loss, k, [1.0, 1.0], 1e-4)
    assert first[2] > 10
    assert again[2] <= 3
    assert not np.shares_memory(first[0], again[0])


@pytest.mark.parametrize("kind", ["logreg", "svm"])
def test_the_losses_know_their_derivatives(kind: str) -> None:
    _, loss, value_and_gradient, k = problem(kind)
    r = np.random.default_rng(0)
    scores, direction, h = r.normal(size=(90, k)), r.normal(size=(90, k)), 1e-6
    value, gradient = value_and_gradient(scores)
    np.testing.assert_allclose(loss.gradient(scores), gradient, atol=1e-12)
    curvature = loss.curvature(direction)
    along = [float(np.vdot(value_and_gradient(scores + s * direction)[1], direction)) for s in (-h, h)]
    assert curvature == pytest.approx((along[1] - along[0]) / (2 * h), rel=1e-4)
    second = [
        (value_and_gradient(scores + h * e)[1] - value_and_gradient(scores - h * e)[1])[:, c].sum() / (2 * h)
        for c, e in enumerate(np.eye(k)[:, None, :])
    ]
    assert loss.mean_curvature() == pytest.approx(sum(second) / scores.size, rel=1e-4)
    assert value > 0


def test_the_cross_entropy_of_scores_of_any_size() -> None:
    _, loss, value_and_gradient, k = problem("logreg")
    scores = np.random.default_rng(0).normal(size=(90, k))
    for size in (1.0, 10.0, 100.0, 1e5):
        for level in (0.0, 1e4, -1e4):
            np.testing.assert_allclose(
                loss.gradient(size * scores + level), value_and_gradient(size * scores)[1], atol=1e-10
            )
            assert np.isfinite(loss.curvature(scores))


@pytest.mark.parametrize("kind", ["logreg", "svm"])
@pytest.mark.parametrize("penalty", [1e4, 1.0, 0.01])
def test_a_line_search_looks_few_times(kind: str, penalty: float, monkeypatch: pytest.MonkeyPatch) -> None:
    X, loss, _, k = problem(kind)
    seen = []
    gradient = loss.gradient
    monkeypatch.setattr(loss, "gradient", lambda scores: (seen.append(1), gradient(scores))[1])
    ((_, _, iterations),) = minimise(X, loss, k, [penalty], 1e-4)
    assert len(seen) <= 1 + 2 * iterations


def test_the_solver_is_fast_on_principal_axes() -> None:
    X, y = blobs(28, 300, 40, 5)
    X = np.linalg.svd(X - X.mean(0), full_matrices=False)[0] * np.logspace(1.5, -1.5, 40)
    for C in heads.get("logreg").grid["C"]:
        assert logreg.LogisticRegression(C).fit(X, y).n_iter_ < 60
    for C in heads.get("svm").grid["C"]:
        assert linear_svm.LinearSVM(C).fit(X, y).n_iter_ < 60


# --- what all of them promise


@pytest.mark.parametrize("n_classes", CLASSES)
@pytest.mark.parametrize("name", OWN)
def test_the_temperature_scales_probabilities_and_no_prediction(name: str, n_classes: int) -> None:
    X, y = blobs(29, n_classes=n_classes)
    cold = make(name).fit(X, y)
    warm = clone(cold).set_params(temperature=4.0).fit(X, y)
    np.testing.assert_array_equal(cold.scores(X), warm.scores(X))
    np.testing.assert_array_equal(cold.decision_function(X), warm.decision_function(X))
    np.testing.assert_array_equal(cold.predict(X), warm.predict(X))
    np.testing.assert_allclose(warm.predict_proba(X), softmax(cold.scores(X) / 4, axis=1), atol=1e-12)
    assert warm.predict_proba(X).max(1).mean() < cold.predict_proba(X).max(1).mean()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_classes", CLASSES)
@pytest.mark.parametrize("name", heads.HEADS)
def test_probabilities_labels_and_predictions_agree(name: str, n_classes: int, dtype: Any) -> None:
    X, codes = blobs(30, 60, n_classes=n_classes, dtype=dtype)
    labels = np.array(["wasp", "ant", "bee", "moth"])[:n_classes]
    by_name, by_code = make(name).fit(X, labels[codes]), make(name).fit(X, codes)
    np.testing.assert_array_equal(by_name.classes_, np.sort(labels))
    p = by_name.predict_proba(X)
    assert p.shape == (60, n_classes)
    if name != "mlp":
        assert p.dtype == np.float64
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-6)
    np.testing.assert_array_equal(by_name.classes_[p.argmax(1)], by_name.predict(X))
    if name in ("mlp", "svm-rbf"):  # a network of other classes is another one, and so are ties
        return
    close(p[:, np.argsort(np.argsort(labels))], by_code.predict_proba(X), 2e-3)
    assert (by_name.predict(X) == labels[by_code.predict(X)]).mean() > 0.96
    if n_classes == 2:
        assert by_name.decision_function(X).shape == (60,)
        np.testing.assert_array_equal(by_name.decision_function(X) > 0, by_name.predict(X) == "wasp")
    else:
        assert by_name.decision_function(X).shape == (60, n_classes)


@pytest.mark.parametrize("name", heads.HEADS)
def test_a_second_fit_a_clone_and_a_pickle_are_the_same(name: str) -> None:
    X, y = blobs(31, 60)
    model = make(name).fit(X, y)
    p = model.predict_proba(X)
    for other in (clone(model).fit(X, y), make(name).fit(X, y), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(other.predict_proba(X), p)
    np.testing.assert_array_equal(model.fit(X, y).predict_proba(X), p)
    assert repr(clone(model)) == repr(make(name))


@pytest.mark.parametrize("name", OWN)
def test_a_fit_forgets_the_one_before(name: str) -> None:
    (X, y), (other, labels) = blobs(31, 60), blobs(32, 90, 5, 2)
    model = make(name).fit(other, labels).fit(X, y)
    np.testing.assert_array_equal(model.predict_proba(X), make(name).fit(X, y).predict_proba(X))


@pytest.mark.parametrize("n_classes", CLASSES)
@pytest.mark.parametrize("name", OWN)
def test_the_order_of_the_rows_means_nothing(name: str, n_classes: int) -> None:
    X, y = blobs(33, 150, 20, n_classes)
    new = blobs(34, 40, 20, n_classes)[0]
    order = np.random.default_rng(0).permutation(len(X))
    a, b = make(name).fit(X, y), make(name).fit(X[order], y[order])
    close(a.scores(new), b.scores(new), 2e-3 if name == "svm-rbf" else 1e-8)
    back = np.random.default_rng(1).permutation(len(new))
    np.testing.assert_allclose(a.scores(new)[back], a.scores(new[back]), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", OWN)
def test_the_input_is_left_as_it_was(name: str) -> None:
    X, y = blobs(35)
    before = X.copy(), y.copy()
    X.setflags(write=False)
    y.setflags(write=False)
    make(name).fit(X, y).predict_proba(X)
    np.testing.assert_array_equal(X, before[0])
    np.testing.assert_array_equal(y, before[1])


@pytest.mark.parametrize("name", OWN)
def test_one_class_is_refused_with_its_name(name: str) -> None:
    with pytest.raises(ValueError, match=r"only one class is present.*ant"):
        make(name).fit(np.eye(3), ["ant"] * 3)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.9, 0.999, 1.0])
def test_leading_axes_keep_the_promised_share_and_no_more(share: float) -> None:
    X = blobs(36, 100, 30)[0] + 5
    axes = mlp.LeadingAxes(share).fit(X)
    variance = X.var(0)
    assert variance[: axes.kept_].sum() >= share * variance.sum() * (1 - 1e-12)
    assert variance[: axes.kept_ - 1].sum() < share * variance.sum()
    np.testing.assert_array_equal(axes.transform(X), X[:, : axes.kept_])
    assert axes.transform(X[:3]).flags.c_contiguous


def test_leading_axes_of_nothing_to_choose_from() -> None:
    assert mlp.LeadingAxes().fit(np.ones((5, 4))).transform(np.ones((2, 4))).shape[1] >= 1
    X = np.c_[np.arange(5.0), np.zeros((5, 3))]
    assert mlp.LeadingAxes(1.0).fit(X).kept_ == 1
    assert mlp.LeadingAxes(1.0).fit(X[:, :1]).kept_ == 1


@pytest.mark.parametrize("n", [5, 40, 1000])
@pytest.mark.filterwarnings("error:Got `batch_size`")
def test_the_network_takes_few_rows_and_many(n: int) -> None:
    X, y = blobs(37, n, apart=4.0)
    model = heads.get("mlp").make(0, n).fit(X, y)
    assert model.score(X, y) > 0.9
