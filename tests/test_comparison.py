"""Rows of a comparison: their order, values and verdicts, what fails alone, and that the scored rows stay unseen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from feature_rows import Failing, dummy_head, pictures, poisoned

from featcache import heads
from featcache.evaluate import Outcome, intervals, paired_tests, score
from featcache.experiments.comparison import Variant, _mean_share, compare_heads
from featcache.experiments.fitting import fit_head
from featcache.experiments.prepared import Prepared, prepare
from featcache.heads import svm_rbf
from featcache.records import Features
from featcache.records.experiments import CompareRow
from featcache.splits import plan

CHEAP = ("centroid", "ridge", "knn", "lda", "dummy")
ONE = {"shrinkage": (0.7,)}
"""A grid of lda that leaves nothing to choose."""


def variants(*names: str) -> list[Variant]:
    return [Variant(heads.get(name)) for name in names]


def source(given: Features, views: Sequence[str] = ()) -> Callable[[int, bool, bool], Prepared]:
    """What hands out the vectors of a seed, each made once; without splits a seed has a split of its own."""
    made: dict[Any, Prepared] = {}

    def prepared(seed: int, train_views: bool, test_views: bool) -> Prepared:
        at = (seed, train_views, test_views)
        if at not in made:
            made[at] = prepare(given, plan(given, seed, {}), train_views * tuple(views), test_views * tuple(views))
        return made[at]

    return prepared


def unsplit(n: int = 30, **kwargs: Any) -> Features:
    """Pictures without splits."""
    given, _ = pictures({"train": n}, **kwargs)
    return replace(given, splits=np.full(len(given.y), ""))


def rows_of(given: Features, names: Sequence[str], seeds: Sequence[int] = (0,)) -> dict[str, CompareRow]:
    return {row.head: row for row in compare_heads(variants(*names), source(given), seeds).rows}


def without_times(row: CompareRow) -> CompareRow:
    return replace(row, fit_seconds=None, predict_seconds=None)


class TestValues:
    def test_rows_come_in_the_order_asked_for(self) -> None:
        names = ("dummy", "ridge", "lda", "centroid")
        rows = compare_heads(variants(*names), source(unsplit()), [0, 1]).rows
        assert tuple(row.head for row in rows) == names

    def test_every_value_is_that_of_fits_and_scores_made_alone(self) -> None:
        given, seeds = unsplit(apart=0.5), (3, 4, 5)
        rows = rows_of(given, CHEAP, seeds)
        outcomes = []
        found: dict[str, list[Any]] = {name: [] for name in CHEAP}
        for seed in seeds:
            data = source(given)(seed, False, False)
            hits = {}
            for name in CHEAP:
                fitted = fit_head(heads.get(name), data, seed)
                hits[name] = fitted.probabilities.argmax(1) == data.truth
                found[name].append((fitted, score("test", data.truth, fitted.probabilities)))
            outcomes.append(Outcome(data.plan.scored, data.truth, hits))
        for name, row in rows.items():
            fits, scores = zip(*found[name], strict=True)
            assert row.accuracies == tuple(one.accuracy for one in scores)
            assert row.accuracy == pytest.approx(np.mean(row.accuracies))
            for value in ("balanced_accuracy", "macro_f1", "log_loss", "calibration_error"):
                assert getattr(row, value) == pytest.approx(np.mean([getattr(one, value) for one in scores])), value
            assert row.params == tuple(fitted.params for fitted in fits)
            assert row.chosen_by == fits[0].chosen_by
            assert (row.fit_seconds or 0) > 0
            assert (row.predict_seconds or 0) > 0
            assert row.error is None
            expected = intervals(outcomes, 3)[name]
            assert row.accuracy_interval == pytest.approx(expected.accuracy_interval, abs=0.035)
            assert row.balanced_interval == pytest.approx(expected.balanced_interval)
        best = next(name for name, row in rows.items() if row.verdict == "best")
        p_values = paired_tests(outcomes, best, CHEAP[:-1])
        assert {name: row.p_value for name, row in rows.items()} == pytest.approx(
            {**p_values, best: None, "dummy": None}, abs=0.05
        )

    def test_the_interval_of_pictures_scored_in_every_seed_is_that_of_one_seed(self) -> None:
        given, _ = pictures({"train": 20, "test": 40}, apart=0.6)
        alike = [Variant(replace(heads.get("lda"), grid=ONE))]
        one, five = (compare_heads(alike, source(given), range(n)).rows[0] for n in (1, 5))
        assert five.accuracies == one.accuracies * 5
        assert np.diff(five.accuracy_interval or ()) == pytest.approx(np.diff(one.accuracy_interval or ()), rel=0.15)

    def test_as_many_right_are_equal_and_the_first_of_equals_is_the_best(self) -> None:
        hits = [np.arange(10) < right for right in (1, 2, 3)]
        assert 0.1 + 0.2 + 0.3 != 0.3 + 0.2 + 0.1  # as means that are added up differ
        given, names = unsplit(apart=0.5), ["ridge", "lda"]
        one, other = _mean_share(hits), _mean_share(hits[::-1])
        assert one == other == Fraction(1, 5)
        rows = rows_of(given, names, [0, 1, 2])
        again = rows_of(given, names[::-1], [0, 1, 2])
        assert {name: row.accuracy for name, row in rows.items()} == {name: row.accuracy for name, row in again.items()}

    def test_equal_seeds_give_equal_rows(self) -> None:
        given = unsplit()
        one, two = (compare_heads(variants(*CHEAP, "mlp"), source(given), [0, 1]).rows for _ in range(2))
        assert list(map(without_times, one)) == list(map(without_times, two))

    def test_a_head_is_scored_the_same_beside_others(self) -> None:
        given = unsplit(apart=0.5)
        alone, beside = rows_of(given, ["ridge"], [0, 1])["ridge"], rows_of(given, CHEAP, [0, 1])["ridge"]
        for value in ("accuracies", "accuracy_interval", "balanced_interval", "log_loss", "params"):
            assert getattr(alone, value) == getattr(beside, value), value

    def test_progress_counts_the_fits(self) -> None:
        calls: list[tuple[str, int, int]] = []
        compare_heads(variants("ridge", "lda"), source(unsplit()), [0, 1, 2], lambda *call: calls.append(call))
        assert calls == [("compare", done, 6) for done in range(7)]

    def test_shared_seconds_are_those_of_what_was_prepared(self) -> None:
        prepared = source(unsplit())
        shared = compare_heads(variants("ridge", "lda"), prepared, [0, 1]).shared_seconds
        assert shared == pytest.approx(sum(prepared(seed, False, False).seconds for seed in (0, 1)))
        assert shared > 0

    def test_notices_are_said_once(self) -> None:
        slow = replace(heads.get("mlp"), grid={"max_iter": (2,), "alpha": (1.0,)}, rough={})
        slow = replace(slow, default={"max_iter": 2, "alpha": 1.0})
        notices = compare_heads([Variant(slow), *variants("ridge")], source(unsplit()), [0, 1]).notices
        assert notices == ["mlp stopped at its iteration limit before it converged"]


class TestVerdicts:
    def test_best_tie_worse_and_floor(self) -> None:
        twin, guess = replace(heads.get("lda"), name="twin"), dummy_head("guess")
        found = compare_heads(
            [Variant(guess), *variants("dummy", "lda"), Variant(twin)], source(unsplit(60, apart=2.0)), [0]
        )
        rows = found.rows
        assert [row.verdict for row in rows] == ["worse", "floor", "best", "tie"]
        guessed, floor, best, tied = rows
        assert guessed.p_value is not None
        assert guessed.p_value < 0.05
        assert tied.p_value == 1.0
        assert floor.p_value is None is best.p_value
        assert (tied.accuracy_interval, tied.balanced_interval) == (best.accuracy_interval, best.balanced_interval)

    def test_the_floor_is_never_the_best(self) -> None:
        guess = dummy_head("guess")
        rows = compare_heads([*variants("dummy"), Variant(guess)], source(unsplit()), [0]).rows
        assert [row.verdict for row in rows] == ["floor", "best"]

    def test_the_floor_alone_is_the_floor(self) -> None:
        (row,) = compare_heads(variants("dummy"), source(unsplit()), [0, 1]).rows
        assert (row.verdict, row.p_value) == ("floor", None)
        assert row.accuracy == pytest.approx(1 / 3)

    def test_one_head_alone_is_the_best(self) -> None:
        (row,) = compare_heads(variants("ridge"), source(unsplit()), [0]).rows
        assert (row.verdict, row.p_value) == ("best", None)

    def test_the_floor_is_not_counted_in_the_correction(self) -> None:
        given = unsplit(30, apart=0.5)
        with_floor, without = (rows_of(given, names) for names in (CHEAP, CHEAP[:-1]))
        assert [with_floor[name].p_value for name in CHEAP[:-1]] == [without[name].p_value for name in CHEAP[:-1]]


class TestFailures:
    @pytest.mark.parametrize("at", [0, 1, 3])
    def test_one_that_fails_leaves_the_others(self, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
        given = unsplit(apart=0.5)
        expected = compare_heads(variants("ridge", "lda", "dummy"), source(given), [0, 1]).rows
        monkeypatch.setattr(svm_rbf, "MAX_ROWS", 10)
        names = ["ridge", "lda", "dummy"]
        names.insert(at, "svm-rbf")
        rows = compare_heads(variants(*names), source(given), [0, 1]).rows
        failed = rows.pop(at)
        assert failed.verdict == "failed"
        assert (failed.error or "").startswith("svm-rbf cannot be fitted: it compares all pairs")
        left = {name for name, value in asdict(failed).items() if value not in (None, (), False)}
        assert left == {"head", "verdict", "error"}
        assert list(map(without_times, rows)) == list(map(without_times, expected))

    def test_one_that_fails_in_a_later_seed_has_failed(self) -> None:
        head = heads.get("lda")
        odd = Variant(replace(head, make=lambda seed, n_rows: Failing() if seed else head.make(seed, n_rows), grid=ONE))
        rows = compare_heads([odd, *variants("ridge")], source(unsplit()), [0, 1, 2]).rows
        assert [row.verdict for row in rows] == ["failed", "best"]
        assert rows[0].error == "lda cannot be fitted: of no use"
        assert rows[0].accuracies == ()
        assert len(rows[1].accuracies) == 3

    def test_one_that_failed_is_not_tried_again(self) -> None:
        tried: list[int] = []

        class Trying(Failing):
            def fit(self, X: Any, y: Any) -> Any:
                tried.append(len(y))
                return super().fit(X, y)

        compare_heads([Variant(dummy_head("odd", Trying)), *variants("lda")], source(unsplit()), [7, 8])
        assert len(tried) == 1

    def test_all_may_fail(self) -> None:
        odd = [Variant(dummy_head(name, Failing)) for name in ("odd", "dummy")]
        found = compare_heads(odd, source(unsplit()), [0, 1])
        rows, shared, notices = found.rows, found.shared_seconds, found.notices
        assert [(row.verdict, row.error) for row in rows] == [
            ("failed", "odd cannot be fitted: of no use"),
            ("failed", "dummy cannot be fitted: of no use"),
        ]
        assert shared > 0
        assert notices == []

    def test_the_rest_is_judged_where_only_the_floor_is_left(self) -> None:
        rows = compare_heads([Variant(dummy_head("odd", Failing)), *variants("dummy")], source(unsplit()), [0]).rows
        assert [row.verdict for row in rows] == ["failed", "floor"]


class TestViews:
    def test_variants_have_rows_and_names_of_their_own(self) -> None:
        head = heads.get("ridge")
        asked = [Variant(head, *used) for used in ((False, False), (True, False), (False, True), (True, True))]
        assert [variant.name for variant in asked] == ["ridge", "ridge+views", "ridge+tta", "ridge+views+tta"]
        given = unsplit(views=["flip"], apart=0.5)
        prepared = source(given, ["flip"])
        found = compare_heads(asked, prepared, [0, 1])
        rows, shared = found.rows, found.shared_seconds
        assert [(row.head, row.train_views, row.test_views) for row in rows] == [
            ("ridge", variant.train_views, variant.test_views) for variant in asked
        ]
        for variant, row in zip(asked, rows, strict=True):
            losses = []
            for seed in (0, 1):
                data = prepared(seed, variant.train_views, variant.test_views)
                views = (data.vectors.shape[1], data.scored.shape[1])
                assert views == (1 + variant.train_views, 1 + variant.test_views)
                losses.append(score("test", data.truth, fit_head(head, data, seed).probabilities).log_loss)
            assert row.log_loss == pytest.approx(np.mean(losses))
        assert len({row.log_loss for row in rows}) == 4
        assert [row.verdict for row in rows].count("best") == 1
        assert shared == pytest.approx(
            sum(prepared(seed, *used).seconds for seed in (0, 1) for used in ((0, 0), (1, 0), (0, 1), (1, 1)))
        )

    def test_a_variant_can_fail_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        given = unsplit(views=["flip"])
        monkeypatch.setattr(svm_rbf, "MAX_ROWS", 100)  # of 72 pictures that are fitted on, or 144 with views
        head = heads.get("svm-rbf")
        rows = compare_heads([Variant(head), Variant(head, True)], source(given, ["flip"]), [0]).rows
        assert [row.verdict for row in rows] == ["best", "failed"]
        assert rows[1].train_views


class TestScoredRowsAreNotSeen:
    @pytest.mark.slow
    @pytest.mark.parametrize("sizes", [{"train": 12, "test": 9}, {"train": 9, "val": 6, "test": 9}])
    def test_poison_in_the_scored_rows_changes_the_scores_alone(self, sizes: dict[str, int]) -> None:
        given, made = pictures(sizes, apart=0.7, views=["flip"])
        names = [*heads.HEADS, heads.FLOOR]
        asked = [*variants(*names), Variant(heads.get("ridge"), True, True)]
        clean, bad = (
            compare_heads(asked, source(found, ["flip"]), [0, 1]).rows
            for found in (given, poisoned(given, made.scored))
        )
        for one, other in zip(clean, bad, strict=True):
            assert one.params == other.params
            assert one.chosen_by == other.chosen_by
            if one.head != heads.FLOOR:
                assert one.log_loss != other.log_loss
