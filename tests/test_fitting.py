"""Prepared vectors and fits of every head: who is allowed to see what, what is chosen, and that errors have a name."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from typing import Any

import joblib
import numpy as np
import pytest
from feature_rows import LABELS, Failing, dummy_head, pictures, poisoned
from scipy.spatial.distance import pdist
from scipy.special import softmax
from sklearn.dummy import DummyClassifier
from sklearn.metrics import log_loss
from sklearn.model_selection import ParameterGrid
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from threadpoolctl import threadpool_info, threadpool_limits

from featcache import heads
from featcache.errors import HeadError
from featcache.evaluate import score
from featcache.experiments import fitting, prepared
from featcache.experiments.fitting import Fitted, fit_head
from featcache.experiments.prepared import Prepared, prepare
from featcache.heads import Sweep, svm_rbf
from featcache.heads.scaling import CHOICE
from featcache.splits import plan

ALL = (*heads.HEADS, heads.FLOOR)
GRIDS = [name for name in heads.HEADS if len(ParameterGrid(dict(heads.get(name).grid))) > 1]
WITH_TEMPERATURE = [name for name in heads.HEADS if name != "mlp"]  # which is tried on one fold, of a few pictures


def ready(sizes: Mapping[str, int], **kwargs: Any) -> Prepared:
    return prepare(*pictures(sizes, **kwargs))


def without_times(fitted: Fitted) -> tuple[Any, ...]:
    return (
        fitted.params,
        [(trial.params, trial.right.tolist(), trial.temperature, trial.loss_curve) for trial in fitted.trials],
        fitted.chosen_by,
        fitted.loss_curve,
        fitted.notices,
        joblib.hash(fitted.estimator),
    )


class TestPrepare:
    @pytest.mark.parametrize("scaling", CHOICE)
    def test_vectors_are_centred_with_the_total_variance_one(self, scaling: str) -> None:
        data = ready({"train": 20, "test": 5})
        X = data.scaled(scaling).X
        assert X.dtype == data.vectors.dtype == data.scored.dtype == np.float32
        assert (X.shape, data.scored.shape) == ((60, 1, 6), (15, 1, 6))
        assert X[:, 0].mean(0) == pytest.approx(np.zeros(6), abs=1e-5)
        assert X[:, 0].var(0).sum() == pytest.approx(1, rel=1e-4)
        assert data.scaled(scaling) is data.scaled(scaling)

    @pytest.mark.parametrize("scaling", CHOICE)
    def test_columns_are_principal_axes_with_falling_variance(self, scaling: str) -> None:
        X = ready({"train": 20, "test": 5}).scaled(scaling).X[:, 0]
        variances = X.var(0)
        assert (np.diff(variances) < 0).all()
        covariance = np.cov(X.T)
        assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 1e-5

    @pytest.mark.parametrize("dim", [6, 200])
    @pytest.mark.parametrize("scaling", CHOICE)
    def test_distances_are_those_of_the_scaled_vectors(self, scaling: str, dim: int) -> None:
        given, made = pictures({"train": 20, "test": 5}, dim=dim)
        scaled = prepare(given, made).scaled(scaling)
        rows = scaled.steps[0].transform(given.X[np.r_[made.train, made.scored]].astype(np.float64))
        assert pdist(scaled.X[:, 0]) == pytest.approx(pdist(rows[:60]), rel=1e-3)
        if dim == 6:
            turned = make_pipeline(*scaled.steps).transform(given.X[np.r_[made.train, made.scored]])
            assert pdist(turned) == pytest.approx(pdist(rows), rel=1e-3)

    @pytest.mark.parametrize(("n", "dim", "left"), [(20, 6, 6), (3, 40, 9), (10, 30, 30)])
    def test_fewer_rows_than_columns_leave_as_few_columns(self, n: int, dim: int, left: int) -> None:
        data = ready({"train": n, "test": 2}, dim=dim)
        assert data.scaled("unit").X.shape == (3 * n, 1, left)
        assert data.scored.shape == (6, 1, dim)

    @pytest.mark.parametrize("parts", [("train", "test"), ("train", "val", "test")])
    def test_scored_rows_change_nothing_in_what_is_fitted_on(self, parts: tuple[str, ...]) -> None:
        given, made = pictures(dict.fromkeys(parts, 8), views=["flip"])
        clean = prepare(given, made, ["flip"], ["flip"])
        bad = prepare(poisoned(given, made.scored), made, ["flip"], ["flip"])
        for scaling in CHOICE:
            assert np.array_equal(clean.scaled(scaling).X, bad.scaled(scaling).X)
            assert joblib.hash(clean.scaled(scaling).steps) == joblib.hash(bad.scaled(scaling).steps)
        assert np.array_equal(clean.y, bad.y)
        assert not np.allclose(clean.scored, bad.scored)
        assert not np.array_equal(clean.truth, bad.truth)

    def test_train_and_val_come_in_this_order(self) -> None:
        given, made = pictures({"train": 5, "val": 4, "test": 3})
        data = prepare(given, made)
        assert made.val is not None
        assert data.classes[data.y].tolist() == given.y[np.r_[made.train, made.val]].tolist()
        assert data.classes[data.truth].tolist() == given.y[made.scored].tolist()
        assert data.scored_keys == tuple(given.keys[row] for row in made.scored)
        assert data.classes.tolist() == list(LABELS)
        assert data.seconds > 0

    def test_the_features_stay_as_they_are(self) -> None:
        given, made = pictures({"train": 5, "test": 3}, views=["flip"])
        before = joblib.hash(given)
        prepare(given, made, ["flip"], ["flip"])
        assert joblib.hash(given) == before

    def test_half_precision_is_taken(self) -> None:
        given, made = pictures({"train": 5, "test": 3})
        assert prepare(replace(given, X=given.X.astype(np.float16)), made).scaled("unit").X.dtype == np.float32

    def test_a_constant_column_is_no_problem(self) -> None:
        given, made = pictures({"train": 10, "test": 3})
        X = given.X.copy()
        X[:, 2] = 7
        scaled = prepare(replace(given, X=X), made).scaled("standard")
        assert np.isfinite(scaled.X).all()
        assert scaled.steps[0].transform(X[made.train])[:, 2] == pytest.approx(np.zeros(30), abs=1e-6)
        assert scaled.X.var(0).sum() == pytest.approx(1, rel=1e-4)

    def test_all_vectors_equal_is_said(self) -> None:
        given, made = pictures({"train": 10, "test": 3}, views=["flip"])
        X = np.where(np.isin(np.arange(39), made.train)[:, None], np.float32(3), given.X)
        with pytest.raises(HeadError, match="all vectors are equal"):
            prepare(replace(given, X=X), made)
        assert prepare(replace(given, X=X), made, ["flip"]).scaled("unit").X.shape == (30, 2, 6)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("part", ["train", "val", "test"])
    def test_a_vector_that_is_not_finite_is_named(self, part: str, value: float) -> None:
        given, made = pictures({"train": 5, "val": 5, "test": 5})
        row = int(np.flatnonzero(given.splits == part)[3])
        X = given.X.copy()
        X[row, 4] = value
        with pytest.raises(HeadError, match=rf"1 vectors are not finite, as that of /{row}\.jpg"):
            prepare(replace(given, X=X), made)

    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize("part", ["train", "test"])
    def test_a_vector_of_values_too_large_to_calculate_with_is_named_without_a_warning(self, part: str) -> None:
        given, made = pictures({"train": 5, "test": 5})
        row = int(np.flatnonzero(given.splits == part)[3])
        X = given.X.copy()
        X[row, 4] = -1e37
        with pytest.raises(HeadError, match=rf"1 vectors have values beyond 1e\+30, as that of /{row}\.jpg"):
            prepare(replace(given, X=X), made)

    def test_broken_vectors_are_counted(self) -> None:
        given, made = pictures({"train": 5, "test": 5})
        X = given.X.copy()
        X[made.train] = np.nan
        with pytest.raises(HeadError, match=rf"15 vectors .* /{made.train[0]}\.jpg"):
            prepare(replace(given, X=X), made)

    def test_a_broken_vector_of_a_view_is_named(self) -> None:
        given, made = pictures({"train": 5, "test": 5}, views=["flip"])
        given.views["flip"][made.scored[2]] = np.nan
        with pytest.raises(HeadError, match=rf"/{made.scored[2]}\.jpg"):
            prepare(given, made, (), ["flip"])
        prepare(given, made, ["flip"])

    def test_a_broken_vector_that_is_not_used_is_no_problem(self) -> None:
        given, made = pictures({"train": 5, "val": 5, "test": 5, "holdout": 5})
        X = given.X.copy()
        X[given.splits == "holdout"] = np.nan
        assert np.isfinite(prepare(replace(given, X=X), made).scaled("unit").X).all()

    def test_views_are_stacked_behind_the_original(self) -> None:
        given, made = pictures({"train": 8, "test": 5}, views=["flip", "crop"])
        data = prepare(given, made, ["flip", "crop"], ["crop"])
        scaled = data.scaled("unit")
        assert (scaled.X.shape, data.scored.shape) == ((24, 3, 6), (15, 2, 6))
        steps = make_pipeline(*scaled.steps)
        for at, X in enumerate((given.X, given.views["flip"], given.views["crop"])):
            assert steps.transform(X[made.train]) == pytest.approx(scaled.X[:, at], abs=1e-4)
        for at, X in enumerate((given.X, given.views["crop"])):
            assert np.array_equal(X[made.scored], data.scored[:, at])
        assert scaled.X.reshape(-1, 6).mean(0) == pytest.approx(np.zeros(6), abs=1e-5)

    def test_rows_are_the_views_one_by_one_with_the_label_of_their_picture(self) -> None:
        given, made = pictures({"train": 4, "test": 2}, views=["flip"])
        data = prepare(given, made, ["flip"])
        scaled = data.scaled("unit")
        X, y = scaled.rows(data.y, np.array([5, 2]))
        assert np.array_equal(X, [scaled.X[5, 0], scaled.X[5, 1], scaled.X[2, 0], scaled.X[2, 1]])
        assert y.tolist() == [data.y[5]] * 2 + [data.y[2]] * 2
        assert (len(scaled.rows(data.y)[0]), len(scaled.rows(data.y)[1])) == (24, 24)

    def test_vectors_that_differ_in_length_alone_are_not_scaled_to_unit_length(self) -> None:
        given, made = pictures({"train": 10, "test": 3})
        X = (1 + given.X[:, :1] ** 2) * np.arange(1, 7, dtype=np.float32)
        data = prepare(replace(given, X=X), made)
        assert data.scalings == ("standard",)
        assert fit_head(heads.get("logreg"), data, 0).params["scaling"] == "standard"
        with pytest.raises(HeadError, match="all vectors are equal"):
            prepare(replace(given, X=X), made, scalings=["unit", "columns"])

    def test_of_many_rows_a_sample_chooses_the_scaling(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(prepared, "SAMPLED", 40)
        data = ready({"train": 20, "test": 5})
        assert data.sample is not None
        assert (len(data.sample.vectors), len(data.sample.y)) == (40, 40)
        known = {row.tobytes(): label for row, label in zip(data.vectors[:, 0], data.y, strict=True)}
        assert [known[row.tobytes()] for row in data.sample.vectors[:, 0]] == data.sample.y.tolist()
        assert data._scaled == {}
        fitted = fit_head(heads.get("ridge"), data, 0)
        assert set(data._scaled) == {fitted.params["scaling"]}


class TestFolds:
    def test_val_is_the_one_fold_where_there_is_one(self) -> None:
        given, made = pictures({"train": 5, "val": 3, "test": 2})
        folds, words = prepare(given, made).folds(0)
        ((fitted, held),) = folds
        assert (fitted.tolist(), held.tolist()) == (list(range(15)), list(range(15, 24)))
        assert words == "accuracy on val (n=9)"

    @pytest.mark.parametrize(("n", "folds"), [(2, 2), (3, 3), (4, 4), (5, 5), (30, 5)])
    def test_five_folds_or_as_many_as_the_smallest_class_has_pictures(self, n: int, folds: int) -> None:
        found, words = ready({"train": n, "test": 2}).folds(0)
        assert words == f"{folds}-fold cross-validation inside train"
        assert len(found) == folds
        assert sorted(np.concatenate([held for _, held in found])) == list(range(3 * n))

    def test_each_fold_holds_out_its_share_of_each_class(self) -> None:
        data = ready({"train": 10, "test": 2})
        for fitted, held in data.folds(0)[0]:
            assert sorted([*fitted, *held]) == list(range(30))
            assert np.bincount(data.y[held]).tolist() == [2, 2, 2]

    def test_three_folds_of_many(self, monkeypatch: pytest.MonkeyPatch) -> None:
        data = ready({"train": 10, "test": 2})
        monkeypatch.setattr(prepared, "MANY", 31)
        assert len(data.folds(0)[0]) == 5
        monkeypatch.setattr(prepared, "MANY", 30)
        found, words = data.folds(0)
        assert (len(found), words) == (3, "3-fold cross-validation inside train")

    def test_no_folds_with_one_picture_of_a_class(self) -> None:
        given, made = pictures({"train": 4, "test": 2})
        keep = np.r_[np.flatnonzero(given.y[made.train] != "bee"), np.flatnonzero(given.y[made.train] == "bee")[:1]]
        data = prepare(given, replace(made, train=made.train[keep]))
        assert data.folds(0) == ([], "default values, since a class has one picture")
        for name in ALL:
            head = heads.get(name)
            fitted = fit_head(head, data, 0)
            assert fitted.params == ({"scaling": "unit", **head.default} if name != heads.FLOOR else {})
            if name != heads.FLOOR:
                assert fitted.estimator[-1].temperature == head.temperature
            words = "default values, since a class has one picture"
            assert fitted.chosen_by == (words if name != heads.FLOOR else "default (nothing else to try)")

    def test_the_seed_decides(self) -> None:
        data = ready({"train": 10, "test": 2})
        held = [[rows.tolist() for _, rows in data.folds(seed)[0]] for seed in (0, 0, 1)]
        assert held[0] == held[1] != held[2]

    @pytest.mark.parametrize("sizes", [{"train": 7, "test": 2}, {"train": 7, "val": 4, "test": 2}])
    def test_views_of_a_picture_are_never_on_both_sides(self, sizes: dict[str, int]) -> None:
        given, made = pictures(sizes, views=["flip", "crop"])
        data = prepare(given, made, ["flip", "crop"], scalings=["unit"])
        seen: list[Any] = []

        class Watching(DummyClassifier):
            def fit(self, X: Any, y: Any) -> Any:
                seen.append(X)
                return super().fit(X, y)

            def predict(self, X: Any) -> Any:
                seen.append(X)
                return super().predict(X)

        fit_head(dummy_head("watching", Watching, grid={"strategy": ("prior", "most_frequent")}), data, 0)
        X = data.scaled("unit").X
        at = {row.tobytes(): n for n, views in enumerate(X) for row in views}
        *trials, last = seen
        assert len(trials) == 2 * 2 * len(data.folds(0)[0])
        for fitted, held in zip(trials[::2], trials[1::2], strict=True):
            assert len(fitted) + 3 * len(held) == 3 * len(data.y)  # chosen on the original view alone
            assert {at[row.tobytes()] for row in fitted}.isdisjoint(at[row.tobytes()] for row in held)
            assert np.array_equal(held, X[[at[row.tobytes()] for row in held], 0])
        assert np.array_equal(last, data.scaled("unit").rows(data.y)[0])


SIZES = [{"train": 12, "test": 9}, {"train": 9, "val": 6, "test": 9}]


class TestScoredRowsAreNotSeen:
    @pytest.mark.parametrize("sizes", SIZES, ids=["cross-validation", "val"])
    @pytest.mark.parametrize("name", ALL)
    def test_poison_in_the_scored_rows_changes_the_score_alone(self, name: str, sizes: dict[str, int]) -> None:
        given, made = pictures(sizes, apart=0.7)
        clean = fit_head(heads.get(name), prepare(given, made), 1)
        bad = fit_head(heads.get(name), prepare(poisoned(given, made.scored), made), 1)
        assert without_times(clean) == without_times(bad)
        if name != heads.FLOOR:
            assert not np.allclose(clean.probabilities, bad.probabilities)

    @pytest.mark.parametrize("name", ["ridge", "mlp"])
    def test_poison_in_the_scored_views_changes_the_score_alone(self, name: str) -> None:
        given, made = pictures(SIZES[0], views=["flip"])
        views = (["flip"], ["flip"])
        clean = fit_head(heads.get(name), prepare(given, made, *views), 1)
        bad = fit_head(heads.get(name), prepare(poisoned(given, made.scored), made, *views), 1)
        assert without_times(clean) == without_times(bad)

    @pytest.mark.parametrize("part", ["train", "val"])
    @pytest.mark.parametrize("name", heads.HEADS)
    def test_poison_elsewhere_is_noticed(self, name: str, part: str) -> None:
        given, made = pictures(SIZES[1])
        clean = fit_head(heads.get(name), prepare(given, made), 1)
        bad = fit_head(heads.get(name), prepare(poisoned(given, given.splits == part), made), 1)
        assert joblib.hash(clean.estimator) != joblib.hash(bad.estimator)

    def test_an_untouched_holdout_is_not_seen_either(self) -> None:
        given, made = pictures({"train": 8, "val": 6, "test": 6, "holdout": 6})
        clean = fit_head(heads.get("svm"), prepare(given, made), 1)
        bad = fit_head(heads.get("svm"), prepare(poisoned(given, given.splits == "holdout"), made), 1)
        assert without_times(clean) == without_times(bad)
        assert np.array_equal(clean.probabilities, bad.probabilities)

    @pytest.mark.parametrize("name", heads.HEADS)
    def test_the_last_fit_is_on_train_and_val(self, name: str) -> None:
        data = ready(SIZES[1])
        fitted = fit_head(heads.get(name), data, 1)
        head = heads.get(name)
        params = dict(fitted.params)
        scaled = data.scaled(params.pop("scaling"))
        alone = head.make(1, 45).set_params(**params).fit(*scaled.rows(data.y))
        scored = make_pipeline(*scaled.steps).transform(data.scored[:, 0])
        assert np.array_equal(alone.predict(scored), fitted.probabilities.argmax(1))


class TestChoice:
    @pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # of the plain fits here
    @pytest.mark.parametrize("name", ["logreg", "ridge", "mlp", "svm", "knn", "lda", "svm-rbf", "centroid"])
    @pytest.mark.parametrize("sizes", [{"train": 20, "test": 2}, {"train": 20, "val": 20, "test": 2}])
    @pytest.mark.parametrize(("dim", "apart"), [(6, 0.8), (60, 0.25)])
    def test_the_default_wins_unless_another_is_clearly_better_on_what_is_held_out(
        self, name: str, sizes: dict[str, int], dim: int, apart: float
    ) -> None:
        head, data = heads.get(name), ready(sizes, dim=dim, apart=apart, seed=3)
        folds = data.folds(2)[0]
        folds = folds[:1] if head.one_fold_from is not None and len(data.y) >= head.one_fold_from else folds

        def tried(scaling: str, params: Mapping[str, Any]) -> Any:
            X, right = data.scaled(scaling).X[:, 0], []
            for fitted, held in folds:
                plain = head.make(2, len(fitted)).set_params(**head.rough, **params).fit(X[fitted], data.y[fitted])
                right.append(plain.predict(X[held]) == data.y[held])
            return np.concatenate(right)

        def best_of(candidates: list[tuple[Any, Any]], default: Any) -> Any:
            known = next(right for candidate, right in candidates if candidate == default)
            best, most = max(candidates, key=lambda pair: pair[1].sum())
            ahead = most.sum() - known.sum()
            return best if ahead > 2 * np.sqrt((most != known).sum()) else default

        scaling = best_of([(one, tried(one, head.default)) for one in CHOICE], "unit")
        candidates = [dict(params) for params in ParameterGrid(dict(head.grid))]
        rights = [(params, tried(scaling, params)) for params in candidates]
        fitted = fit_head(head, data, 2)
        assert fitted.params == {"scaling": scaling, **best_of(rights, dict(head.default))}
        got = {str(sorted(trial.params.items())): trial.accuracy for trial in fitted.trials}
        wanted = {str(sorted({"scaling": scaling, **params}.items())): right.mean() for params, right in rights}
        assert len(got) == len(rights) + len(CHOICE) - 1
        slack = 0.035 if name in ("logreg", "svm") else 1e-9  # their paths start warm
        assert {key: got[key] for key in wanted} == pytest.approx(wanted, abs=slack)

    @pytest.mark.parametrize("name", ["logreg", "centroid", "knn"])
    def test_the_choice_is_not_always_the_first(self, name: str) -> None:
        found = {
            str(fit_head(heads.get(name), ready({"train": 40, "test": 2}, dim=dim, apart=apart, seed=seed), 0).params)
            for dim, apart in ((6, 0.8), (60, 0.25))
            for seed in range(4)
        }
        assert len(found) > 1

    def test_a_scaling_that_is_clearly_better_is_chosen(self) -> None:
        given, made = pictures({"train": 40, "test": 40}, dim=12, apart=0.0)
        length = 1 + 3.0 ** np.searchsorted(LABELS, given.y)[:, None]  # the classes differ in length alone
        noise = np.random.default_rng(0).normal(1, 0.2, given.X.shape)
        given = replace(given, X=(length * (1 + np.abs(noise))).astype(np.float32))
        data = prepare(given, made)
        fitted = fit_head(heads.get("logreg"), data, 0)
        assert fitted.params["scaling"] == "standard"
        assert (fitted.probabilities.argmax(1) == data.truth).mean() > 0.9
        bad = fit_head(heads.get("logreg"), prepare(poisoned(given, made.scored), made), 0)
        assert bad.params == fitted.params

    @pytest.mark.parametrize(
        ("right", "wrong", "is_worse"), [(0, 0, False), (1, 0, False), (4, 0, False), (5, 0, True), (12, 4, False)]
    )
    def test_clearly_better_is_two_standard_errors_of_the_pairs(self, right: int, wrong: int, is_worse: bool) -> None:
        other = np.array([True] * right + [False] * wrong + [True] * 50)
        one = np.array([False] * right + [True] * wrong + [True] * 50)
        assert fitting.is_worse(one, other) == is_worse
        assert not fitting.is_worse(other, one)
        kept = fitting.Trial({"C": 1}, one, 1.0)
        best = fitting.Trial({"C": 2}, other, 1.0)
        assert fitting.chosen([best, kept], {"C": 1}) is (best if is_worse else kept)
        assert fitting.chosen([kept, best], None) is (best if right > wrong else kept)

    @pytest.mark.parametrize("name", [name for name in GRIDS if name != "mlp"])
    def test_a_tie_goes_to_the_default_and_without_one_to_the_first_of_the_grid(self, name: str) -> None:
        head = heads.get(name)
        data = ready({"train": 10, "test": 2}, apart=60)
        fitted = fit_head(head, data, 0)
        best = [trial for trial in fitted.trials if trial.accuracy == 1.0]
        assert len(best) > 1
        assert fitted.params == {"scaling": "unit", **head.default}
        first = fit_head(replace(head, keeps_default=False), data, 0)
        wanted = next(trial for trial in first.trials if trial.accuracy == 1.0)
        assert first.params == wanted.params

    @pytest.mark.parametrize("name", GRIDS)
    def test_the_default_is_one_of_the_grid(self, name: str) -> None:
        head = heads.get(name)
        assert dict(head.default) in [dict(params) for params in ParameterGrid(dict(head.grid))]

    def test_a_costly_head_is_tried_on_one_fold_of_many(self) -> None:
        data = ready({"train": 10, "test": 2})
        grid: dict[str, Any] = {"strategy": ("prior", "uniform")}
        words = {
            limit: fit_head(dummy_head("d", grid=grid, one_fold_from=limit), data, 0).chosen_by for limit in (30, 31)
        }
        assert words[30] == "one fold of 5-fold cross-validation inside train"
        assert words[31] == "5-fold cross-validation inside train"

    def test_val_is_named_also_for_a_costly_head(self) -> None:
        data = ready({"train": 10, "val": 5, "test": 2})
        assert fit_head(heads.get("mlp"), data, 0).chosen_by == "accuracy on val (n=15)"

    def test_the_floor_has_nothing_to_choose(self) -> None:
        fitted = fit_head(heads.get(heads.FLOOR), ready({"train": 10, "test": 2}), 0)
        assert (fitted.chosen_by, fitted.params) == ("default (nothing else to try)", {})
        assert fitted.probabilities == pytest.approx(np.full((6, 3), 1 / 3))

    @pytest.mark.parametrize("name", ALL)
    def test_equal_seeds_give_equal_results(self, name: str) -> None:
        data = ready({"train": 12, "test": 5})
        one, two = (fit_head(heads.get(name), data, 4) for _ in range(2))
        assert without_times(one) == without_times(two)
        assert np.array_equal(one.probabilities, two.probabilities)

    def test_another_seed_gives_another_network(self) -> None:
        data = ready({"train": 12, "test": 5})
        one, two = (fit_head(heads.get("mlp"), data, seed) for seed in (4, 5))
        assert not np.allclose(one.probabilities, two.probabilities, atol=1e-5)

    @pytest.mark.parametrize("name", [*GRIDS, heads.FLOOR])
    def test_progress_counts_the_trials(self, name: str) -> None:
        calls: list[tuple[str, int, int]] = []
        fit_head(heads.get(name), ready({"train": 12, "test": 5}), 0, lambda *call: calls.append(call))
        n = calls[0][2] if calls else -1
        assert calls == [(f"fit {name}", done, n) for done in range(n + 1)]
        assert (n > 0) == (name != heads.FLOOR)


class TestProbabilities:
    @pytest.mark.parametrize("name", ALL)
    def test_they_sum_to_one_and_are_those_of_the_whole_pipeline(self, name: str) -> None:
        given, made = pictures({"train": 12, "test": 7})
        fitted = fit_head(heads.get(name), prepare(given, made), 0)
        assert fitted.probabilities.shape == (21, 3)
        assert fitted.probabilities.dtype == np.float64
        assert fitted.probabilities.sum(1) == pytest.approx(np.ones(21), abs=1e-12)
        assert (fitted.probabilities >= 0).all()
        again = fitted.estimator.predict_proba(given.X[made.scored])
        assert again == pytest.approx(fitted.probabilities, abs=1e-4)

    @pytest.mark.parametrize("name", heads.HEADS)
    def test_they_follow_the_classes(self, name: str) -> None:
        data = ready({"train": 12, "test": 7}, apart=20)
        assert np.array_equal(fit_head(heads.get(name), data, 0).probabilities.argmax(1), data.truth)

    @pytest.mark.parametrize("strange", ["zebra", "beetle"])
    def test_a_class_that_is_not_fitted_on_is_not_scored(self, strange: str) -> None:
        given, _ = pictures({"train": 12, "val": 6, "test": 7})
        y = given.y.astype("<U9")
        y[np.flatnonzero(given.splits == "test")[:4]] = strange
        given = replace(given, y=y)
        with pytest.raises(HeadError, match=f"class '{strange}' is in test, and not among those fitted on"):
            prepare(given, plan(given, 0, {}, strict=False))

    @pytest.mark.parametrize("name", ALL)
    def test_the_classes_are_those_fitted_on_whatever_is_scored(self, name: str) -> None:
        given, made = pictures({"train": 12, "test": 7}, apart=20)
        data = prepare(given, replace(made, scored=made.scored[given.y[made.scored] != LABELS[0]]))
        fitted = fit_head(heads.get(name), data, 0)
        assert data.classes.tolist() == list(LABELS)
        assert fitted.probabilities.shape == (14, 3)
        found = score("test", data.truth, fitted.probabilities)
        assert found.scored_classes == 2
        if name != heads.FLOOR:
            assert (found.accuracy, found.balanced_accuracy) == (1.0, 1.0)

    @pytest.mark.parametrize("name", ["ridge", "knn", "mlp"])
    def test_of_views_it_is_the_mean(self, name: str) -> None:
        given, made = pictures({"train": 12, "test": 7}, views=["flip"])
        fitted = fit_head(heads.get(name), prepare(given, made, (), ["flip"]), 0)
        parts = [fitted.estimator.predict_proba(X[made.scored]) for X in (given.X, given.views["flip"])]
        assert np.mean(parts, axis=0) == pytest.approx(fitted.probabilities, abs=1e-4)
        assert not np.allclose(parts[0], parts[1], atol=1e-3)

    @pytest.mark.parametrize("name", WITH_TEMPERATURE)
    @pytest.mark.parametrize("sizes", [{"train": 20, "test": 200}, {"train": 20, "val": 40, "test": 200}])
    def test_the_temperature_lowers_the_log_loss_of_noise(self, name: str, sizes: dict[str, int]) -> None:
        data = ready(sizes, dim=80, apart=0.0)
        fitted = fit_head(heads.get(name), data, 0)
        sure = warmer(fitted.estimator, fitted.estimator[-1].temperature / 20, data)
        assert log_loss(data.truth, fitted.probabilities) < log_loss(data.truth, sure)
        assert log_loss(data.truth, fitted.probabilities) == pytest.approx(np.log(3), abs=0.1)

    @pytest.mark.parametrize("name", WITH_TEMPERATURE)
    def test_the_temperature_is_near_the_best_for_held_pictures(self, name: str) -> None:
        data = ready({"train": 30, "val": 60, "test": 300}, apart=0.7)
        fitted = fit_head(heads.get(name), data, 0)
        last = fitted.estimator[-1]
        found = last.temperature
        assert found != heads.get(name).temperature
        losses = {
            factor: log_loss(data.truth, warmer(fitted.estimator, factor * found, data)) for factor in (0.1, 1.0, 10.0)
        }
        assert min(losses, key=losses.__getitem__) == 1.0

    def test_an_overconfident_svm_is_cooled(self) -> None:
        data = ready({"train": 20, "val": 40, "test": 200}, dim=80, apart=0.0)
        fitted = fit_head(heads.get("svm"), data, 0)
        assert fitted.estimator[-1].temperature > heads.get("svm").temperature
        cooled = log_loss(data.truth, fitted.probabilities)
        assert cooled < log_loss(data.truth, warmer(fitted.estimator, heads.get("svm").temperature, data))

    def test_few_held_pictures_leave_the_usual_temperature_and_many_do_not(self) -> None:
        scores = np.random.default_rng(0).normal(size=(4000, 3))
        truth = np.array([np.random.default_rng(n).choice(3, p=softmax(row / 5)) for n, row in enumerate(scores)])
        few = [fitting.temperature_of(scores[at : at + 4], truth[at : at + 4], 1.0) for at in range(0, 80, 4)]
        assert all(0.5 < one < 3 for one in few)
        assert fitting.temperature_of(scores, truth, 1.0) == pytest.approx(5, rel=0.15)
        assert fitting.temperature_of(scores, truth) == pytest.approx(5, rel=0.15)
        right = np.eye(3)[[0, 1, 2, 0]]
        assert fitting.temperature_of(right, right.argmax(1), 1.0) > 0.3  # four that are right prove little
        assert 0.5 < fitting.temperature_of(np.zeros((4, 3)), np.arange(4) % 3, 1.0) < 2  # scores that say nothing

    def test_the_temperature_is_fitted_on_all_folds_together(self) -> None:
        data = ready({"train": 20, "test": 5})
        head = replace(heads.get("svm"), grid={"C": (1.0,)})
        scores, truth = [], []
        X = data.scaled("unit").X[:, 0]
        for fitted, held in data.folds(0)[0]:
            made = head.make(0, len(fitted)).set_params(**head.rough, C=1.0).fit(X[fitted], data.y[fitted])
            scores.append(made.scores(X[held]))
            truth.append(data.y[held])
        trial = fit_head(head, replace(data, scalings=("unit",)), 0).trials[0]
        wanted = fitting.temperature_of(np.concatenate(scores), np.concatenate(truth), head.temperature)
        assert trial.temperature == pytest.approx(wanted, rel=0.02)

    def test_of_many_scores_some_are_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        data = ready({"train": 100, "test": 5})
        whole = fit_head(heads.get("ridge"), data, 0)
        monkeypatch.setattr(fitting, "SCORES_KEPT", 300)
        part = fit_head(heads.get("ridge"), data, 0)
        assert part.params == whole.params
        assert part.estimator[-1].temperature != whole.estimator[-1].temperature
        assert part.estimator[-1].temperature == pytest.approx(whole.estimator[-1].temperature, rel=0.5)


def warmer(pipeline: Any, temperature: float, data: Prepared) -> Any:
    """The probabilities of the scored rows at another temperature."""
    last = copy(pipeline[-1])
    other = make_pipeline(*pipeline[:-1], last.set_params(temperature=temperature))
    return fitting.mean_probabilities(other, data.scored, 3)


class TestErrors:
    def test_a_head_that_takes_too_much_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(svm_rbf, "MAX_ROWS", 20)
        with pytest.raises(
            HeadError, match=r"^svm-rbf cannot be fitted: it compares all pairs .* 20: use svm"
        ) as found:
            fit_head(heads.get("svm-rbf"), ready({"train": 10, "test": 2}), 0)
        assert isinstance(found.value.__cause__, ValueError)

    @pytest.mark.parametrize("grid", [{}, {"strategy": ("prior", "uniform")}])
    @pytest.mark.parametrize(
        "problem", [ValueError("of no use"), np.linalg.LinAlgError("of no use"), MemoryError("of no use")]
    )
    def test_what_can_go_wrong_becomes_one_line(
        self, problem: Exception, grid: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Failing, "problem", problem)
        with pytest.raises(HeadError, match=r"^odd cannot be fitted: of no use$"):
            fit_head(dummy_head("odd", Failing, grid=grid), ready({"train": 10, "test": 2}), 0)

    def test_a_line_that_is_one_already_stays_as_it_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Failing, "problem", HeadError("as it is"))
        with pytest.raises(HeadError, match=r"^as it is$"):
            fit_head(dummy_head("odd", Failing), ready({"train": 10, "test": 2}), 0)

    def test_a_mistake_of_ours_is_not_hidden(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Failing, "problem", TypeError("a mistake"))
        with pytest.raises(TypeError, match="a mistake"):
            fit_head(dummy_head("odd", Failing), ready({"train": 10, "test": 2}), 0)

    def test_a_fit_that_stops_early_is_said(self) -> None:
        data = ready({"train": 10, "test": 2})
        head = replace(heads.get("mlp"), grid={"max_iter": (2,), "alpha": (1.0, 0.1)}, rough={})
        head = replace(head, default={"max_iter": 2, "alpha": 1.0})
        assert fit_head(head, data, 0).notices == ("mlp stopped at its iteration limit before it converged",)
        assert fit_head(heads.get("ridge"), data, 0).notices == ()


def blas_threads() -> list[int]:
    return [found["num_threads"] for found in threadpool_info() if found["user_api"] == "blas"]


class TestThreads:
    @pytest.mark.parametrize("name", GRIDS)
    @pytest.mark.parametrize("cores", [1, 3, 8])
    def test_the_number_of_jobs_does_not_change_the_result(
        self, name: str, cores: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = ready({"train": 20, "test": 8}, dim=12)
        alone = fit_head(heads.get(name), data, 0)
        monkeypatch.setattr(fitting, "SMALL", 0)
        monkeypatch.setattr(fitting, "cpu_count", lambda: cores)
        many = fit_head(heads.get(name), data, 0)
        assert alone.params == many.params
        assert [trial.params for trial in alone.trials] == [trial.params for trial in many.trials]
        accuracies = [[trial.accuracy for trial in fitted.trials] for fitted in (alone, many)]
        assert accuracies[0] == pytest.approx(accuracies[1], abs=0.017)
        assert alone.probabilities == pytest.approx(many.probabilities, abs=0.01)

    def test_few_values_are_worked_on_with_one_blas_thread_which_is_undone(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        inside: list[list[int]] = []

        class Watching(DummyClassifier):
            def fit(self, X: Any, y: Any) -> Any:
                inside.append(blas_threads())
                return super().fit(X, y)

        head = dummy_head("watching", Watching, grid={"strategy": ("prior", "uniform")})
        data = prepare(*pictures({"train": 10, "test": 2}), scalings=["unit"])
        with threadpool_limits(2, "blas"):
            before = blas_threads()
            fit_head(head, data, 0)
            assert blas_threads() == before == [2] * len(before)
            assert len(inside) == 11
            assert inside == [[1] * len(before)] * 11
            inside.clear()
            monkeypatch.setattr(fitting, "SMALL", 0)
            monkeypatch.setattr(fitting, "cpu_count", lambda: 2)
            fit_head(head, data, 0)
            assert inside == [[1] * len(before)] * 11
            assert blas_threads() == before
        inside.clear()
        with threadpool_limits(1, "blas"):  # as OMP_NUM_THREADS=1 says it
            fit_head(head, data, 0)
        assert inside == [[1] * len(before)] * 11

    @pytest.mark.parametrize("grid", [{}, {"strategy": ("prior", "uniform")}])
    def test_blas_threads_are_given_back_after_an_error(self, grid: Any) -> None:
        with threadpool_limits(2, "blas"):
            before = blas_threads()
            with pytest.raises(HeadError):
                fit_head(dummy_head("odd", Failing, grid=grid), ready({"train": 10, "test": 2}), 0)
            assert blas_threads() == before


class TestSweep:
    def test_without_values_it_is_the_usual_head(self) -> None:
        assert heads.get("mlp", Sweep()) == heads.get("mlp", None) == heads.get("mlp")
        assert heads.get("svm", Sweep()) == heads.get("svm")

    def test_the_values_asked_for_are_the_grid(self) -> None:
        head = heads.get("mlp", Sweep(((8,), (4, 4)), (0.01, 0.1), ("tanh",), (0.5,)))
        assert dict(head.grid) == {
            "hidden": ((8,), (4, 4)),
            "lr": (0.01, 0.1),
            "activation": ("tanh",),
            "alpha": (0.5,),
        }
        assert dict(head.default) == {
            "hidden": (8,),
            "lr": 0.01,
            "activation": "tanh",
            "alpha": 0.5,
        }

    def test_what_is_not_named_has_its_default(self) -> None:
        assert dict(heads.get("mlp", Sweep(lr=(0.1, 0.01))).grid) == {
            "lr": (0.1, 0.01),
            "alpha": (0.5,),
        }
        assert dict(heads.get("mlp", Sweep(alpha=(2.0, 3.0))).grid) == {"alpha": (2.0, 3.0)}

    @pytest.mark.parametrize("name", [name for name in ALL if name != "mlp"])
    def test_other_heads_have_no_such_values(self, name: str) -> None:
        with pytest.raises(HeadError, match=f"parameters of mlp, not of {name}: add --head mlp"):
            heads.get(name, Sweep(alpha=(1.0,)))

    @pytest.mark.parametrize(
        ("sweep", "message"),
        [
            (Sweep(activation=("relu", "sigmoid")), "unknown activation 'sigmoid'"),
            (Sweep(hidden=((8,), (8, 0))), "needs one unit or more"),
            (Sweep(lr=(0.1, 0.0)), "a learning rate is above zero"),
            (Sweep(alpha=(-0.1,)), "alpha zero or above"),
        ],
    )
    def test_values_without_sense_are_refused(self, sweep: Sweep, message: str) -> None:
        with pytest.raises(HeadError, match=message):
            heads.get("mlp", sweep)

    def test_no_penalty_is_allowed(self) -> None:
        assert heads.get("mlp", Sweep(alpha=(0.0,))).grid["alpha"] == (0.0,)

    def test_an_unknown_head_is_named_with_those_there_are(self) -> None:
        with pytest.raises(HeadError, match=r"unknown head 'tree': use one of logreg, .* dummy"):
            heads.get("tree")

    def test_every_trial_keeps_its_losses(self) -> None:
        head = heads.get("mlp", Sweep(((8,), (4, 4)), (0.001, 0.03)))
        fitted = fit_head(head, ready({"train": 10, "test": 2}), 0)
        assert fitted.chosen_by == "5-fold cross-validation inside train"
        assert len(fitted.trials) == 4 + 2  # and the other scalings
        assert [set(trial.params) for trial in fitted.trials] == [{"scaling", *head.grid}] * 6
        assert all(1 < len(trial.loss_curve) <= 100 for trial in fitted.trials)
        assert len({trial.loss_curve for trial in fitted.trials}) == 6
        assert {type(loss) for trial in fitted.trials for loss in trial.loss_curve} == {float}
        assert fitted.loss_curve[-1] < fitted.loss_curve[0]
        assert set(fitted.params) == {"scaling", "hidden", "lr", "alpha"}
        assert fitted.params in [trial.params for trial in fitted.trials]

    def test_only_networks_have_losses(self) -> None:
        data = ready({"train": 10, "test": 2})
        for name in ("ridge", "svm-rbf", "dummy"):
            fitted = fit_head(heads.get(name), data, 0)
            assert fitted.loss_curve == ()
            assert {trial.loss_curve for trial in fitted.trials} <= {()}
        assert len(fit_head(heads.get("mlp"), data, 0).loss_curve) > 1

    def test_of_one_value_of_each_only_the_scaling_is_chosen(self) -> None:
        fitted = fit_head(heads.get("mlp", Sweep(hidden=((8,),), lr=(0.01,))), ready({"train": 10, "test": 2}), 0)
        assert len(fitted.trials) == 3
        assert fitted.params == {"scaling": "unit", "hidden": (8,), "lr": 0.01, "alpha": 0.5}


def test_a_fitted_pipeline_leaves_the_vectors_it_is_given() -> None:
    given, made = pictures({"train": 10, "test": 5})
    fitted = fit_head(heads.get("ridge"), prepare(given, made), 0)
    new = given.X.copy()
    first = fitted.estimator.predict_proba(new)
    np.testing.assert_array_equal(new, given.X)
    np.testing.assert_array_equal(fitted.estimator.predict_proba(new), first)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_learning_rate_that_breaks_the_network_loses_and_stops_nothing() -> None:
    data = ready({"train": 20, "test": 5})
    fitted = fit_head(heads.get("mlp", Sweep(hidden=((8,),), lr=(1e30, 0.01))), data, 0)
    assert fitted.params["lr"] == 0.01
    assert {trial.params["lr"]: trial.accuracy for trial in fitted.trials}[1e30] == 0.0
    with pytest.raises(HeadError, match="mlp cannot be fitted"):
        fit_head(heads.get("mlp", Sweep(hidden=((8,),), lr=(1e30,))), data, 0)


def test_an_interruption_of_the_network_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    network = MLPClassifier._backprop
    calls = iter(range(10**6))

    def interrupted(self: Any, *args: Any) -> Any:
        if next(calls) == 5:  # inside the first trial; scikit-learn catches it and goes on with what it has
            raise KeyboardInterrupt
        return network(self, *args)

    monkeypatch.setattr(MLPClassifier, "_backprop", interrupted)
    data = ready({"train": 20, "test": 5})
    with pytest.raises(KeyboardInterrupt):
        fit_head(heads.get("mlp"), data, 0)
    given, made = pictures({"train": 1, "test": 5})
    calls = iter(range(10**6))
    with pytest.raises(KeyboardInterrupt):  # nothing can be tried: only the final fit
        fit_head(heads.get("mlp"), prepare(given, made), 0)


@pytest.mark.parametrize("name", heads.HEADS)
def test_a_warning_that_is_an_error_is_no_interruption(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = heads.get(name).make(0, 10)

    def warned(self: Any, *args: Any) -> Any:
        warnings.warn("an odd thing", UserWarning, stacklevel=1)
        raise AssertionError("it went on")

    monkeypatch.setattr(type(made), "_fit_path", warned)
    data = ready({"train": 10, "test": 2})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="an odd thing"):
            fit_head(heads.get(name), data, 0)


@pytest.mark.parametrize("name", heads.HEADS)
def test_one_picture_a_class_warns_of_nothing(name: str) -> None:
    data = ready({"train": 1, "test": 5}, dim=30)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted = fit_head(heads.get(name), data, 0)
    assert np.isfinite(fitted.probabilities).all()


@pytest.mark.parametrize("name", heads.HEADS)
@pytest.mark.parametrize("per_class", [1, 2])
def test_of_noise_the_probabilities_are_modest(name: str, per_class: int) -> None:
    losses = []
    for seed in range(5):
        data = ready({"train": per_class, "test": 60}, dim=300, apart=0.0, seed=seed)
        losses.append(log_loss(data.truth, fit_head(heads.get(name), data, 0).probabilities))
    assert np.mean(losses) < np.log(3) + 0.2
