"""Who is taken for whom, on a matrix worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from feature_rows import pictures
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from featcache import heads
from featcache.experiments.confusion import Confusions, confusions
from featcache.experiments.fitting import fit_head
from featcache.experiments.prepared import Prepared, prepare

LABELS = ("ant", "bee", "cat", "dog")


def scored(truth: Sequence[int], n_train: Sequence[int] = (3, 4, 5, 6)) -> Prepared:
    """Four classes, so many pictures of each to train on, and scored pictures of these classes."""
    given, made = pictures({"train": max(n_train), "test": 1}, labels=LABELS)
    kept = np.concatenate(
        [made.train[given.y[made.train] == label][:n] for label, n in zip(LABELS, n_train, strict=True)]
    )
    return replace(prepare(given, replace(made, train=kept)), truth=np.array(truth))


TRUTH = [0] * 4 + [1] * 4 + [2] * 2 + [3] * 5
FIRST = [*(0, 0, 0, 1), *(0, 0, 1, 1), *(2, 2), *(3, 0, 0, 2, 1)]
SECOND = [*(0, 0, 1, 1), *(1, 1, 1, 1), *(0, 2), *(3, 3, 0, 0, 0)]


def found(head: str = "first", **others: Sequence[int]) -> Confusions:
    predicted: dict[str, Any] = {"first": np.array(FIRST), "second": np.array(SECOND)}
    return confusions(scored(TRUTH), predicted | {name: np.array(codes) for name, codes in others.items()}, head)


class TestMatrix:
    def test_true_classes_go_down_and_predicted_ones_across(self) -> None:
        given = found()
        assert given.labels == LABELS
        assert given.matrix.tolist() == [[3, 1, 0, 0], [2, 2, 0, 0], [0, 0, 2, 0], [2, 1, 1, 1]]

    def test_it_is_that_of_the_head_asked_for(self) -> None:
        assert found("second").matrix.tolist() == [[2, 2, 0, 0], [0, 4, 0, 0], [1, 0, 1, 0], [3, 0, 0, 2]]

    @pytest.mark.parametrize("name", ["lda", "dummy"])
    def test_that_of_a_fit_is_sklearns(self, name: str) -> None:
        data = prepare(*pictures({"train": 20, "test": 30}, apart=0.5, labels=LABELS))
        codes = fit_head(heads.get(name), data, 0).probabilities.argmax(1)
        given = confusions(data, {name: codes}, name)
        assert np.array_equal(given.matrix, confusion_matrix(data.truth, codes))
        expected = precision_recall_fscore_support(data.truth, codes, zero_division=0)
        for row in given.classes:
            k = LABELS.index(row.label)
            assert (row.precision, row.recall, row.f1) == pytest.approx([values[k] for values in expected[:3]])
            assert (row.n_train, row.n_test) == (20, 30)


class TestClasses:
    def test_precision_recall_and_f1_by_hand_the_worst_first(self) -> None:
        rows = found().classes
        assert [row.label for row in rows] == ["dog", "bee", "ant", "cat"]
        by_label = {row.label: row for row in rows}
        expected = {"ant": (3 / 7, 3 / 4), "bee": (2 / 4, 2 / 4), "cat": (2 / 3, 1), "dog": (1, 1 / 5)}
        for label, (precision, recall) in expected.items():
            row = by_label[label]
            assert (row.precision, row.recall) == pytest.approx((precision, recall))
            assert row.f1 == pytest.approx(2 * precision * recall / (precision + recall))
        assert {label: (row.n_train, row.n_test) for label, row in by_label.items()} == {
            "ant": (3, 4),
            "bee": (4, 4),
            "cat": (5, 2),
            "dog": (6, 5),
        }

    def test_each_class_says_what_it_is_taken_for_most(self) -> None:
        taken_for = {row.label: row.confused_with for row in found().classes}
        assert taken_for == {"ant": "bee", "bee": "ant", "cat": None, "dog": "ant"}

    def test_equal_f1_is_sorted_by_name(self) -> None:
        rows = confusions(scored([3, 2, 1, 0]), {"h": np.array([3, 2, 1, 0])}, "h").classes
        assert [row.label for row in rows] == list(LABELS)

    def test_a_class_that_is_never_predicted_has_zeros(self) -> None:
        (ant, bee) = confusions(scored([0, 0, 1]), {"h": np.array([0, 0, 0])}, "h").classes[::-1]
        assert (bee.label, bee.precision, bee.recall, bee.f1) == ("bee", 0.0, 0.0, 0.0)
        assert (ant.label, ant.precision, ant.recall) == ("ant", pytest.approx(2 / 3), 1.0)

    def test_a_class_without_scored_pictures_is_left_out(self) -> None:
        given = confusions(scored([0, 1, 1, 3]), {"h": np.array([0, 2, 1, 3])}, "h")
        assert sorted(row.label for row in given.classes) == ["ant", "bee", "dog"]
        assert given.matrix.shape == (4, 4)
        assert given.labels == LABELS

    def test_a_class_is_unlearnable_where_the_best_head_finds_less_than_half(self) -> None:
        rows = {row.label: row for row in found().classes}
        assert {label: (row.best_head, row.best_recall) for label, row in rows.items()} == {
            "ant": ("first", 3 / 4),
            "bee": ("second", 1.0),
            "cat": ("first", 1.0),
            "dog": ("second", 2 / 5),
        }
        assert [label for label, row in rows.items() if row.is_unlearnable] == ["dog"]

    def test_half_is_enough(self) -> None:
        (row,) = confusions(scored([1, 1]), {"h": np.array([1, 2])}, "h").classes
        assert (row.best_recall, row.is_unlearnable) == (0.5, False)

    def test_one_more_head_can_learn_it(self) -> None:
        rows = {row.label: row for row in found(third=[3] * len(TRUTH)).classes}
        assert (rows["dog"].best_head, rows["dog"].best_recall, rows["dog"].is_unlearnable) == ("third", 1.0, False)
        assert rows["dog"].recall == pytest.approx(1 / 5)

    def test_of_equal_heads_the_first_is_named(self) -> None:
        assert {row.best_head for row in found("same", same=SECOND).classes if row.label != "ant"} == {
            "first",
            "second",
        }

    def test_values_are_plain_numbers(self) -> None:
        for row in found().classes:
            assert {type(row.precision), type(row.recall), type(row.f1), type(row.best_recall)} == {float}
            assert {type(row.n_train), type(row.n_test)} == {int}
            assert type(row.is_unlearnable) is bool
        for pair in found().pairs:
            assert (type(pair.first_as_second), type(pair.second_as_first), type(pair.share)) == (int, int, float)


class TestPairs:
    def test_the_most_confused_come_first(self) -> None:
        pairs = [(pair.first, pair.second, pair.first_as_second, pair.second_as_first) for pair in found().pairs]
        assert pairs == [("ant", "bee", 1, 2), ("ant", "dog", 0, 2), ("cat", "dog", 0, 1), ("bee", "dog", 0, 1)]

    def test_the_share_is_of_all_pictures_of_the_two(self) -> None:
        assert [pair.share for pair in found().pairs] == pytest.approx([3 / 8, 2 / 9, 1 / 7, 1 / 9])

    def test_equal_pairs_are_sorted_by_name(self) -> None:
        given = confusions(scored([0, 1, 2, 3]), {"h": np.array([1, 0, 3, 2])}, "h")
        assert [(pair.first, pair.second) for pair in given.pairs] == [("ant", "bee"), ("cat", "dog")]

    def test_nothing_confused_is_no_pair(self) -> None:
        assert confusions(scored([0, 1, 2]), {"h": np.array([0, 1, 2])}, "h").pairs == ()

    def test_a_class_without_scored_pictures_can_be_in_a_pair(self) -> None:
        (pair,) = confusions(scored([0, 0, 1]), {"h": np.array([0, 2, 1])}, "h").pairs
        assert (pair.first, pair.second, pair.first_as_second, pair.share) == ("ant", "cat", 1, 0.5)
