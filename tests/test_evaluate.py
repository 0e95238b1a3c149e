"""Scores, intervals and paired tests against other people's code, loops and numbers worked out by hand."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, log_loss, recall_score

from featcache.evaluate import Outcome, calibration_error, intervals, paired_tests, score, wilson


def sure_of(codes: Sequence[int], n_classes: int = 3) -> Any:
    """Probabilities that put nearly everything on the given classes."""
    out = np.full((len(codes), n_classes), 0.01)
    out[np.arange(len(codes)), codes] = 1 - 0.01 * (n_classes - 1)
    return out


def guesses(seed: int, n: int = 200, n_classes: int = 3) -> tuple[Any, Any]:
    """A truth with uneven classes, and probabilities that know something of it."""
    r = np.random.default_rng(seed)
    truth = np.r_[np.arange(n_classes), r.choice(n_classes, n - n_classes, p=[0.7, 0.2, 0.1])]
    scores = r.normal(size=(n, n_classes)) + 1.5 * np.eye(n_classes)[truth]
    found = np.exp(scores)
    return truth, found / found.sum(1, keepdims=True)


def outcome(hits: dict[str, Any], truth: Any = None, pictures: Any = None) -> Outcome:
    """What one seed gave: one class and pictures numbered from zero unless said otherwise."""
    hits = {name: np.asarray(found, dtype=bool) for name, found in hits.items()}
    n = len(next(iter(hits.values())))
    truth = np.zeros(n, np.intp) if truth is None else np.asarray(truth)
    return Outcome(np.arange(n) if pictures is None else np.asarray(pictures), truth, hits)


def share(right: int, n: int) -> Any:
    """Who was right: the first `right` of `n`."""
    return np.arange(n) < right


def differing(better: int, worse: int, same: int = 0) -> Outcome:
    """A best head and another: so many pictures only the best had right, so many only the other, and so many both."""
    best = np.r_[np.ones(better), np.zeros(worse), np.ones(same)]
    other = np.r_[np.zeros(better), np.ones(worse), np.ones(same)]
    return outcome({"best": best, "other": other})


def p_of(outcomes: Sequence[Outcome]) -> float:
    return paired_tests(outcomes, "best", ["best", "other"])["other"]


class TestScore:
    @pytest.mark.parametrize("seed", range(5))
    def test_the_scores_are_those_of_sklearn(self, seed: int) -> None:
        truth, probabilities = guesses(seed)
        predicted = probabilities.argmax(1)
        found = score("test", truth, probabilities)
        assert (found.split, found.n) == ("test", 200)
        assert found.accuracy == pytest.approx(accuracy_score(truth, predicted))
        assert (found.accuracy_low, found.accuracy_high) == wilson(int((truth == predicted).sum()), 200)
        assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(truth, predicted))
        assert found.balanced_accuracy == pytest.approx(recall_score(truth, predicted, average="macro"))
        assert found.macro_f1 == pytest.approx(f1_score(truth, predicted, average="macro"))
        assert found.log_loss == pytest.approx(log_loss(truth, probabilities))
        assert found.calibration_error == calibration_error(truth, probabilities)

    @pytest.mark.parametrize(("predicted", "expected"), [([0, 1, 1], 1.0), ([1, 0, 0], 0.0)])
    def test_all_right_is_one_and_all_wrong_is_zero(self, predicted: list[int], expected: float) -> None:
        found = score("val", np.array([0, 1, 1]), sure_of(predicted, 2))
        assert (found.accuracy, found.balanced_accuracy, found.macro_f1) == (expected, expected, expected)

    def test_guessing_the_larger_class_is_unmasked(self) -> None:
        found = score("test", np.array([0] * 9 + [1]), sure_of([0] * 10, 2))
        assert found.accuracy == pytest.approx(0.9)
        assert found.balanced_accuracy == pytest.approx(0.5)
        assert found.macro_f1 == pytest.approx((18 / 19 + 0) / 2)

    def test_a_predicted_class_that_never_occurs_costs_hits_but_is_no_class_of_its_own(self) -> None:
        found = score("test", np.array([0, 1, 1]), sure_of([0, 2, 1]))
        assert found.accuracy == pytest.approx(2 / 3)
        assert found.balanced_accuracy == pytest.approx((1 + 1 / 2) / 2)
        assert found.macro_f1 == pytest.approx((1 + 2 / 3) / 2)
        assert found.scored_classes == 2

    def test_log_loss_is_over_all_classes_also_those_that_do_not_occur(self) -> None:
        found = score("test", np.array([0, 2, 2]), np.array([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25], [0.0, 0.5, 0.5]]))
        assert found.log_loss == pytest.approx(-(math.log(0.5) + math.log(0.25) + math.log(0.5)) / 3)

    def test_one_class_in_the_truth_is_enough(self) -> None:
        found = score("test", np.array([1, 1, 1, 1]), sure_of([1, 1, 1, 0], 2))
        assert (found.accuracy, found.balanced_accuracy) == (0.75, 0.75)

    def test_certainty_of_a_wrong_class_costs_much_but_stays_finite(self) -> None:
        found = score("test", np.array([0, 1]), np.array([[0.0, 1.0], [0.0, 1.0]]))
        assert 10 < found.log_loss < 1000

    def test_numbers_are_plain_floats(self) -> None:
        found = score("test", np.array([0, 1]), sure_of([0, 0], 2))
        values = (found.accuracy, found.accuracy_low, found.accuracy_high, found.balanced_accuracy, found.macro_f1)
        assert {type(value) for value in (*values, found.log_loss, found.calibration_error)} == {float}
        assert type(found.n) is int


class TestWilson:
    @pytest.mark.parametrize(
        ("hits", "n", "expected"),
        [(0, 10, (0.0, 0.2775)), (5, 10, (0.2366, 0.7634)), (9, 10, (0.5958, 0.9821)), (81, 263, (0.2553, 0.3662))],
    )
    def test_published_values(self, hits: int, n: int, expected: tuple[float, float]) -> None:
        assert wilson(hits, n) == pytest.approx(expected, abs=6e-5)  # the last: Newcombe 1998, Stat. Med. 17, 857-872


class TestCalibrationError:
    @pytest.mark.parametrize("seed", range(4))
    def test_it_is_that_of_a_loop_over_fifteen_bins(self, seed: int) -> None:
        truth, probabilities = guesses(seed, 300)
        total = 0.0
        for low in range(15):
            rows = [row for row in range(300) if low / 15 <= probabilities[row].max() < (low + 1) / 15]
            if rows:
                right = np.mean([truth[row] == probabilities[row].argmax() for row in rows])
                total += len(rows) / 300 * abs(right - np.mean([probabilities[row].max() for row in rows]))
        assert calibration_error(truth, probabilities) == pytest.approx(total)

    def test_a_calibrated_classifier_has_none(self) -> None:
        truth = np.array([0] * 8 + [1] * 2)
        assert calibration_error(truth, np.tile([0.8, 0.2], (10, 1))) == pytest.approx(0)

    def test_one_that_is_certain_and_always_wrong_has_one(self) -> None:
        assert calibration_error(np.zeros(10, int), np.tile([0.0, 1.0], (10, 1))) == pytest.approx(1)

    def test_certain_and_right_has_none(self) -> None:
        assert calibration_error(np.ones(10, int), np.tile([0.0, 1.0], (10, 1))) == pytest.approx(0)

    @pytest.mark.parametrize(("one", "other"), [(0.6, 0.9), (0.9, 0.99), (0.66, 0.67)])
    def test_gaps_of_two_bins_do_not_cancel(self, one: float, other: float) -> None:
        truth = np.array([0] * 10 + [1] * 10)
        probabilities = np.array([[one, 1 - one]] * 10 + [[other, 1 - other]] * 10)
        assert calibration_error(truth, probabilities) == pytest.approx((1 - one + other) / 2)


class TestIntervals:
    def test_points_are_the_means_over_seeds(self) -> None:
        r = np.random.default_rng(0)
        truths = [r.integers(0, 3, n) for n in (50, 80)]
        found = [outcome({"a": r.random(len(truth)) < 0.7, "b": r.random(len(truth)) < 0.4}, truth) for truth in truths]
        for name, interval in intervals(found, 0).items():
            assert interval.accuracy == pytest.approx(np.mean([seed.hits[name].mean() for seed in found]))
            recalls = [np.mean([seed.hits[name][seed.truth == k].mean() for k in range(3)]) for seed in found]
            assert interval.balanced_accuracy == pytest.approx(np.mean(recalls))
            for point, (low, high) in (
                (interval.accuracy, interval.accuracy_interval),
                (interval.balanced_accuracy, interval.balanced_interval),
            ):
                assert 0 <= low < point < high <= 1
                assert {type(point), type(low), type(high)} == {float}

    def test_heads_come_in_order(self) -> None:
        assert list(intervals([outcome({"b": share(3, 5), "a": share(2, 5)})], 0)) == ["b", "a"]

    def test_a_class_number_that_does_not_occur_is_no_class(self) -> None:
        found = intervals([outcome({"a": [1, 1, 0, 1]}, truth=[0, 0, 2, 2])], 0)["a"]
        assert found.balanced_accuracy == pytest.approx(0.75)

    def test_the_seed_decides(self) -> None:
        found = [outcome({"a": share(3000, 9700)}, np.arange(9700) % 3)]
        assert intervals(found, 3) == intervals(found, 3)
        assert intervals(found, 3)["a"].accuracy_interval != intervals(found, 4)["a"].accuracy_interval

    @pytest.mark.parametrize(("right", "n"), [(320, 400), (50, 100), (950, 1000)])
    def test_one_seed_has_the_width_of_the_binomial(self, right: int, n: int) -> None:
        low, high = intervals([outcome({"a": share(right, n)})], 0)["a"].accuracy_interval
        p = right / n
        assert high - low == pytest.approx(2 * 1.96 * math.sqrt(p * (1 - p) / n), rel=0.12)
        assert (low + high) / 2 == pytest.approx(p, abs=0.02)

    def test_balanced_accuracy_has_the_width_of_its_classes(self) -> None:
        truth = np.r_[np.zeros(900, int), np.ones(100, int)]
        found = intervals([outcome({"a": np.r_[share(810, 900), share(50, 100)]}, truth)], 0)["a"]
        assert found.balanced_accuracy == pytest.approx(0.7)
        low, high = found.balanced_interval
        assert high - low == pytest.approx(1.96 * math.sqrt(0.09 / 900 + 0.25 / 100), rel=0.12)

    def test_a_picture_scored_in_several_seeds_is_drawn_once_for_all(self) -> None:
        one = outcome({"a": share(160, 200)})
        alone = np.diff(intervals([one], 0)["a"].accuracy_interval)
        assert np.diff(intervals([one] * 4, 0)["a"].accuracy_interval) == pytest.approx(alone, rel=0.12)

    def test_seeds_with_pictures_of_their_own_narrow_it(self) -> None:
        hits = np.random.default_rng(0).permutation(share(160, 200))
        alone = np.diff(intervals([outcome({"a": hits})], 0)["a"].accuracy_interval)
        own = [outcome({"a": hits}, pictures=np.arange(200) + 200 * seed) for seed in range(4)]
        assert 0.4 * alone < np.diff(intervals(own, 0)["a"].accuracy_interval) < 0.75 * alone

    def test_seeds_that_disagree_widen_it(self) -> None:
        agreeing = [outcome({"a": share(160, 200)})] * 3
        torn = [outcome({"a": share(right, 200)}) for right in (120, 160, 200)]
        one, other = intervals(agreeing, 0)["a"], intervals(torn, 0)["a"]
        assert one.accuracy == pytest.approx(other.accuracy)
        assert np.diff(other.accuracy_interval) > 2 * np.diff(one.accuracy_interval)
        assert np.diff(other.balanced_interval) > 2 * np.diff(one.balanced_interval)

    def test_the_draws_are_the_same_for_all_heads(self) -> None:
        r = np.random.default_rng(1)
        truth, hits = r.integers(0, 3, 60), r.random(60) < 0.7
        found = intervals([outcome({"a": hits, "b": ~hits, "c": hits}, truth)], 0)
        assert found["a"] == found["c"]
        low, high = found["a"].accuracy_interval
        assert found["b"].accuracy_interval == pytest.approx((1 - high, 1 - low))

    def test_other_heads_change_nothing(self) -> None:
        hits = share(20, 30)
        alone = intervals([outcome({"a": hits})], 0)["a"]
        assert intervals([outcome({"b": ~hits, "a": hits})], 0)["a"] == alone

    def test_a_class_of_one_picture_that_is_wrong_is_never_as_if_it_were_not_there(self) -> None:
        found = intervals([outcome({"a": share(50, 51)}, truth=[0] * 50 + [1])], 0)["a"]
        assert found.balanced_accuracy == 0.5
        low, high = found.balanced_interval
        assert 0.05 < low < 0.3
        assert 0.7 < high < 0.95

    @pytest.mark.parametrize(
        ("sizes", "chances"),
        [((40, 40), (0.9, 0.8)), ((5,) * 8, (0.9,) * 8), ((1,) * 60, (0.9,) * 60), ((300, 2), (0.99, 0.5))],
    )
    def test_the_interval_of_balanced_accuracy_holds_the_truth(
        self, sizes: tuple[int, ...], chances: tuple[float, ...]
    ) -> None:
        truth, r = np.repeat(np.arange(len(sizes)), sizes), np.random.default_rng(5)
        drawn = {f"{at}": r.random(len(truth)) < np.array(chances)[truth] for at in range(300)}
        found = [each.balanced_interval for each in intervals([outcome(drawn, truth)], 0).values()]
        assert np.mean([low <= np.mean(chances) <= high for low, high in found]) > 0.9

    def test_a_class_that_a_seed_does_not_score_is_not_in_its_mean(self) -> None:
        one, other = outcome({"a": [1, 0]}, [0, 1]), outcome({"a": [1]}, [0], pictures=[2])
        found = intervals([one, other], 0)["a"]
        assert found.balanced_accuracy == pytest.approx((0.5 + 1) / 2)
        assert np.isfinite(found.balanced_interval).all()

    def test_copies_of_a_picture_are_no_further_evidence(self) -> None:
        hits, truth = share(15, 20), np.arange(20) % 2
        alone = intervals([outcome({"a": hits}, truth)], 0)["a"].balanced_interval
        copied = outcome({"a": np.tile(hits, 3)}, np.tile(truth, 3), np.tile(np.arange(20), 3))
        assert intervals([copied], 0)["a"].balanced_interval == pytest.approx(alone)

    @pytest.mark.filterwarnings("error")
    def test_a_draw_without_a_picture_of_a_seed_is_left_out(self) -> None:
        found = intervals([outcome({"a": [1]}, pictures=[0]), outcome({"a": [0]}, pictures=[1])], 0)["a"]
        assert found.accuracy == 0.5
        assert np.isfinite(found.accuracy_interval).all()

    @pytest.mark.parametrize("hits", [0, 20])
    def test_all_or_nothing_right_is_not_certain(self, hits: int) -> None:
        found = intervals([outcome({"a": share(hits, 20)}, np.arange(20) % 2)], 0)["a"]
        assert (found.accuracy_interval, found.balanced_interval) == (wilson(hits, 20), wilson(hits, 20))

    def test_many_pictures_are_drawn_in_blocks(self) -> None:
        n = 17_500  # times 1000 draws is more than one block
        given = [outcome({"a": np.arange(n) % 5 > 0})]
        tracemalloc.start()
        found = intervals(given, 0)["a"]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 14_000 * n  # bytes; half of what all draws at once take
        low, high = found.accuracy_interval
        assert found.accuracy == pytest.approx(0.8)
        assert high - low == pytest.approx(2 * 1.96 * math.sqrt(0.16 / n), rel=0.12)


class TestPairedTests:
    @pytest.mark.parametrize(("better", "worse"), [(1, 0), (3, 1), (7, 7), (12, 5), (15, 1), (60, 35), (200, 190)])
    def test_one_seed_is_mcnemars_exact_test(self, better: int, worse: int) -> None:
        exact = binomtest(better, better + worse).pvalue
        assert p_of([differing(better, worse, 30)]) == pytest.approx(exact, abs=0.02)

    def test_a_clear_difference_is_found(self) -> None:
        assert p_of([differing(40, 0)]) == pytest.approx(1 / 10_001)

    def test_the_best_by_more_and_the_best_by_less_are_both_tested(self) -> None:
        exact = binomtest(1, 16).pvalue
        assert p_of([differing(1, 15)]) == pytest.approx(exact, abs=1e-3)
        assert p_of([differing(15, 1)]) == pytest.approx(exact, abs=1e-3)

    @pytest.mark.parametrize("same", [1, 50])
    def test_equal_heads_are_not_told_apart(self, same: int) -> None:
        assert p_of([differing(0, 0, same)]) == 1.0

    def test_no_other_head_gives_nothing(self) -> None:
        assert paired_tests([differing(3, 1)], "best", ["best"]) == {}

    def test_pictures_on_which_both_agree_do_not_count(self) -> None:
        assert p_of([differing(12, 3)]) == p_of([differing(12, 3, 5000)])

    def test_the_same_result_in_every_seed_is_no_further_evidence(self) -> None:
        one = differing(12, 4, 10)
        assert p_of([one] * 5) == pytest.approx(p_of([one]))

    def test_seeds_with_pictures_of_their_own_are_further_evidence(self) -> None:
        first = differing(6, 2)
        second = Outcome(first.pictures + 8, first.truth, first.hits)
        assert p_of([first, second]) == pytest.approx(binomtest(12, 16).pvalue, abs=0.02)

    def test_differences_of_one_picture_are_summed_over_seeds(self) -> None:
        for_best, for_other = differing(10, 0), differing(0, 10)
        assert p_of([for_best, for_other]) == 1.0

    def test_it_is_corrected_by_holm(self) -> None:
        r = np.random.default_rng(0)
        best = r.random(200) < 0.9
        hits = {
            "best": best,
            **{name: best & (r.random(200) > lost) for name, lost in zip("abcd", (0.02, 0.04, 0.05, 0.2), strict=True)},
        }
        hits["e"] = best ^ (r.random(200) < 0.04)
        found = [outcome(hits)]
        raw = {name: paired_tests(found, "best", [name])[name] for name in "abcde"}
        assert len(set(raw.values())) == 5
        expected, highest = {}, 0.0
        for left, name in zip((5, 4, 3, 2, 1), sorted(raw, key=raw.__getitem__), strict=True):
            highest = max(highest, min(1.0, left * raw[name]))
            expected[name] = highest
        assert paired_tests(found, "best", list(hits)) == pytest.approx(expected)
        assert expected != pytest.approx(raw)

    def test_a_corrected_value_is_no_smaller_than_that_of_a_stronger_difference(self) -> None:
        best = np.ones(60)
        hits = {"best": best, "a": share(53, 60), "b": share(53, 60)[::-1]}  # raw values about equal
        found = paired_tests([outcome(hits)], "best", list(hits))
        assert found["a"] == pytest.approx(found["b"])
        assert found["a"] == pytest.approx(2 * binomtest(7, 7).pvalue, abs=0.01)

    @pytest.mark.parametrize(("better", "worse"), [(1310, 1190), (1250, 1250), (1400, 1100), (1170, 1330)])
    def test_the_normal_limit_is_close_to_the_exact_test(self, better: int, worse: int) -> None:
        exact = binomtest(better, better + worse).pvalue
        assert p_of([differing(better, worse)]) == pytest.approx(exact, rel=0.1, abs=1e-6)

    def test_the_normal_limit_takes_over_where_the_draws_end(self) -> None:
        drawn, limit = p_of([differing(1040, 960)]), p_of([differing(1041, 961)])
        assert drawn == pytest.approx(limit, abs=0.015)
        assert 0.05 < limit < 0.1

    def test_the_normal_limit_counts_a_picture_once_however_many_seeds(self) -> None:
        one = differing(1310, 1190)
        assert p_of([one] * 3) == pytest.approx(p_of([one]))

    def test_equal_heads_are_called_different_no_more_than_once_in_twenty(self) -> None:
        r = np.random.default_rng(0)
        found = [p_of([outcome({"best": r.random(80) < 0.7, "other": r.random(80) < 0.7})]) for _ in range(300)]
        assert 0.01 <= np.mean(np.array(found) < 0.05) <= 0.07
        assert 0.35 <= np.mean(np.array(found) < 0.5) <= 0.6
