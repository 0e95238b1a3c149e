"""Cells of a grid: nested subsets, what is not as asked, and that nothing is computed twice."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from feature_rows import Failing, dummy_head, pictures, poisoned
from sklearn.dummy import DummyClassifier

from featcache import heads
from featcache.evaluate import score
from featcache.experiments.fitting import fit_head
from featcache.experiments.grid import Cell, Grid, Taken, take
from featcache.experiments.prepared import prepare
from featcache.heads.base import Head
from featcache.records import Features
from featcache.records.experiments import BenchRow
from featcache.splits import Plan

MANY = tuple("abcdefgh")
ALL = Cell(None, None)
UNSCORED = "no picture of 'd' is in test: balanced accuracy and macro-F1 are over 7 of 8 classes"


def eight(sizes: dict[str, int] | None = None, **kwargs: Any) -> tuple[Features, Plan]:
    """Eight classes of ten pictures to train on, and five to score."""
    return pictures(sizes or {"train": 10, "test": 5}, labels=MANY, **kwargs)


def without(given: Features, made: Plan, part: str, label: str, left: int = 0) -> Plan:
    """The plan with only so many pictures of a label in a part."""
    rows = getattr(made, part)
    mine = rows[given.y[rows] == label][left:]
    return replace(made, **{part: rows[~np.isin(rows, mine)]})


class TestTake:
    def test_all_is_all_of_train_and_every_scored_picture(self) -> None:
        given, made = eight()
        taken = take(given, made, ALL, 0)
        assert np.array_equal(taken.plan.train, np.sort(made.train))
        assert np.array_equal(taken.plan.scored, made.scored)
        assert (taken.plan.val, taken.n_classes, taken.problem, taken.error) == (None, 8, None, None)
        assert taken.plan.scored_name == "test"

    @pytest.mark.parametrize("seed", range(3))
    def test_fewer_images_lie_inside_more(self, seed: int) -> None:
        given, made = eight()
        sets = [set(take(given, made, Cell(None, n), seed).plan.train.tolist()) for n in (1, 2, 5, 9, None)]
        assert [len(rows) for rows in sets] == [8, 16, 40, 72, 80]
        assert all(small < large for small, large in pairwise(sets))

    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("per_class", [3, None])
    def test_fewer_classes_lie_inside_more(self, seed: int, per_class: int | None) -> None:
        given, made = eight()
        found = [take(given, made, Cell(n, per_class), seed) for n in (2, 3, 5, 8)]
        assert [taken.n_classes for taken in found] == [2, 3, 5, 8]
        labels = [set(given.y[taken.plan.train].tolist()) for taken in found]
        assert [len(names) for names in labels] == [2, 3, 5, 8]
        for small, large in pairwise(found):
            assert set(small.plan.train.tolist()) < set(large.plan.train.tolist())
            assert set(small.plan.scored.tolist()) < set(large.plan.scored.tolist())

    def test_each_class_has_as_many_images_as_asked(self) -> None:
        given, made = eight()
        taken = take(given, made, Cell(4, 3), 0)
        assert set(Counter(given.y[taken.plan.train].tolist()).values()) == {3}
        assert Counter(given.y[taken.plan.scored].tolist()).keys() == Counter(given.y[taken.plan.train].tolist()).keys()
        assert set(Counter(given.y[taken.plan.scored].tolist()).values()) == {5}
        assert set(taken.plan.train.tolist()) <= set(made.train.tolist())

    def test_other_seeds_take_others(self) -> None:
        given, made = eight()
        assert len({tuple(take(given, made, Cell(None, 3), seed).plan.train) for seed in range(5)}) == 5
        classes = {tuple(np.unique(given.y[take(given, made, Cell(3, None), seed).plan.train])) for seed in range(8)}
        assert len(classes) > 3

    def test_equal_seeds_take_the_same(self) -> None:
        given, made = eight()
        one, two = (take(given, made, Cell(3, 3), 5) for _ in range(2))
        assert np.array_equal(one.plan.train, two.plan.train)
        assert np.array_equal(one.plan.scored, two.plan.scored)

    def test_classes_do_not_take_the_same_places(self) -> None:
        given, made = eight()
        taken = take(given, made, Cell(None, 5), 0).plan.train
        places = {tuple(np.flatnonzero(np.isin(made.train[given.y[made.train] == name], taken))) for name in MANY}
        assert len(places) > 4

    def test_val_is_pooled_into_train(self) -> None:
        given, made = eight({"train": 4, "val": 6, "test": 5})
        assert made.val is not None
        taken = take(given, made, ALL, 0)
        assert np.array_equal(taken.plan.train, np.sort(np.r_[made.train, made.val]))
        assert taken.plan.val is None
        few = take(given, made, Cell(None, 9), 0).plan.train
        assert set(Counter(given.y[few].tolist()).values()) == {9}
        assert {*few.tolist()} & {*made.val.tolist()}

    def test_fewer_images_than_asked_is_a_problem(self) -> None:
        given, made = eight()
        thin = without(given, without(given, made, "train", "c", 2), "train", "e", 4)
        taken = take(given, thin, Cell(None, 5), 0)
        assert taken.problem == "2 of 8 classes have fewer images, all they have are used"
        assert taken.error is None
        counts = Counter(given.y[taken.plan.train].tolist())
        assert (counts["c"], counts["e"], counts["a"]) == (2, 4, 5)
        assert take(given, thin, Cell(None, 2), 0).problem is None
        assert take(given, thin, ALL, 0).problem is None

    def test_more_images_than_any_class_has_is_an_error(self) -> None:
        given, made = eight()
        assert take(given, made, Cell(None, 10), 0).error is None
        assert take(given, made, Cell(None, 1011), 0).error == "no class has 1,011 training images"

    def test_a_class_that_train_lacks_is_not_scored(self) -> None:
        given, made = eight()
        taken = take(given, without(given, made, "train", "d"), ALL, 0)
        assert taken.problem == "class 'd' is in test but not in train, and not scored"
        assert taken.error is None
        assert "d" not in given.y[taken.plan.scored]
        assert (taken.n_classes, len(taken.plan.scored)) == (7, 35)
        assert take(given, without(given, made, "train", "d"), Cell(3, None), 0).problem is None

    def test_a_class_without_a_scored_picture_is_a_problem(self) -> None:
        given, made = eight()
        taken = take(given, without(given, made, "scored", "d"), ALL, 0)
        assert taken.problem == UNSCORED
        assert (taken.error, taken.n_classes, len(taken.plan.scored)) == (None, 8, 35)

    def test_problems_stand_side_by_side(self) -> None:
        given, made = eight()
        made = without(given, without(given, made, "scored", "d"), "train", "e", 4)
        assert take(given, made, Cell(None, 5), 0).problem == (
            f"1 of 8 classes have fewer images, all they have are used; {UNSCORED}"
        )

    @pytest.mark.parametrize("asked", [9, 1, 100])
    def test_more_classes_than_there_are_and_one_alone_are_errors(self, asked: int) -> None:
        given, made = eight()
        taken = take(given, made, Cell(asked, None), 0)
        assert (taken.error or "").startswith("there are 8 classes to train on")

    def test_one_class_in_train_is_an_error(self) -> None:
        given, made = pictures({"train": 5, "test": 2}, labels=("a", "b"))
        taken = take(given, without(given, made, "train", "a"), ALL, 0)
        assert (taken.error or "").startswith("there are 1 classes to train on")

    def test_no_scored_picture_of_the_classes_is_an_error(self) -> None:
        given, made = eight()
        names = set(given.y[take(given, made, Cell(2, None), 0).plan.train].tolist())
        made = replace(made, scored=made.scored[~np.isin(given.y[made.scored], list(names))])
        taken = take(given, made, Cell(2, None), 0)
        assert (taken.error, taken.problem) == ("no picture of its classes is in test", None)
        assert take(given, made, Cell(4, None), 0).error is None


class Kept:
    """A grid, what it keeps as JSON, and how often it was asked."""

    def __init__(self, given: Features, plans: dict[int, Plan], known: dict[str, str] | None = None) -> None:
        self.store: dict[str, str] = {} if known is None else known
        self.grid = Grid(given, plans, self.digest, self.known, self.keep)
        self.order: list[str] = []

    def digest(self, taken: Taken, head: Head, seed: int) -> str:
        return f"{head.name} {seed} {taken.plan.train.tolist()} {taken.plan.scored.tolist()}"

    def known(self, digest: str) -> dict[str, Any] | None:
        return json.loads(self.store[digest]) if digest in self.store else None

    def keep(self, digest: str, result: dict[str, Any]) -> None:
        assert digest not in self.store
        self.order.append(digest)
        self.store[digest] = json.dumps(result)
        assert json.loads(self.store[digest]) == result

    def rows(self, asked: list[Head], cell: Cell = ALL) -> list[BenchRow]:
        return list(self.grid.rows(asked, cell))


def counting() -> tuple[Head, list[int]]:
    """A head that notes the number of rows of each of its fits."""
    fits: list[int] = []

    class Counting(DummyClassifier):
        def fit(self, X: Any, y: Any) -> Any:
            fits.append(len(y))
            return super().fit(X, y)

    return dummy_head("counting", Counting), fits


TWO = [heads.get("centroid"), heads.get("lda")]


class TestGrid:
    @pytest.mark.parametrize("cell", [ALL, Cell(4, 5)])
    def test_a_row_holds_the_means_over_seeds(self, cell: Cell) -> None:
        given, made = eight(apart=0.6)
        rows = Kept(given, {3: made, 4: made, 5: made}).rows(TWO, cell)
        assert [row.head for row in rows] == ["centroid", "lda"]
        for head, row in zip(TWO, rows, strict=True):
            scores = []
            for seed in (3, 4, 5):
                data = prepare(given, take(given, made, cell, seed).plan)
                scores.append(score("test", data.truth, fit_head(head, data, seed).probabilities))
            accuracies = [one.accuracy for one in scores]
            assert row.accuracies == tuple(accuracies)
            assert row.accuracy == pytest.approx(np.mean(accuracies))
            assert row.accuracy_sd == pytest.approx(np.std(accuracies, ddof=1))
            assert row.balanced_accuracy == pytest.approx(np.mean([one.balanced_accuracy for one in scores]))
            assert (row.fit_seconds or 0) > 0
            assert (row.classes, row.per_class) == (cell.classes, cell.per_class)
            n = cell.classes or 8
            assert (row.n_classes, row.n_train, row.n_test) == (n, n * (cell.per_class or 10), 5 * n)
            assert (row.problem, row.error) == (None, None)

    def test_one_seed_has_no_deviation(self) -> None:
        given, made = eight()
        (row,) = Kept(given, {0: made}).rows(TWO[:1])
        assert row.accuracy_sd is None
        assert row.accuracy is not None

    def test_each_seed_has_its_plan(self) -> None:
        given, made = eight(apart=0.5)
        other = replace(made, train=made.scored, scored=made.train)
        (row,) = Kept(given, {0: made, 1: other}).rows(TWO[:1])
        alone = [Kept(given, {seed: one}).rows(TWO[:1])[0].accuracy for seed, one in ((0, made), (1, other))]
        assert list(row.accuracies) == alone
        assert (row.n_train, row.n_test) == (80, 40)

    def test_a_problem_stands_in_the_row(self) -> None:
        given, made = eight()
        (row,) = Kept(given, {0: without(given, made, "scored", "d")}).rows(TWO[:1])
        assert (row.problem, row.n_classes, row.scored_classes) == (UNSCORED, 8, 7)
        assert row.accuracy is not None

    def test_every_fit_is_made_once(self) -> None:
        given, made = eight()
        head, fits = counting()
        kept = Kept(given, {0: made, 1: made})
        cells = [Cell(2, 3), Cell(4, 3), ALL]
        first = [row for cell in cells for row in kept.rows([head], cell)]
        assert fits == [6, 6, 12, 12, 80, 80]
        assert (kept.grid.computed, kept.grid.reused, len(kept.store)) == (6, 0, 6)
        again = Kept(given, {0: made, 1: made}, kept.store)
        second = [row for cell in cells for row in again.rows([head], cell)]
        assert fits == [6, 6, 12, 12, 80, 80]
        assert (again.grid.computed, again.grid.reused) == (0, 6)
        assert first == second

    def test_what_is_known_is_mixed_with_what_is_new(self) -> None:
        given, made = eight()
        head, fits = counting()
        kept = Kept(given, {0: made, 1: made})
        kept.rows([head])
        more = Kept(given, {0: made, 1: made, 2: made}, kept.store)
        (row,) = more.rows([head])
        assert fits == [80] * 3
        assert (more.grid.computed, more.grid.reused, len(row.accuracies)) == (1, 2, 3)

    def test_a_result_is_kept_as_soon_as_there_is_one(self) -> None:
        given, made = eight()
        kept = Kept(given, {0: made, 1: made})
        rows = kept.grid.rows(TWO, ALL)
        next(rows)
        assert [digest.split()[:2] for digest in kept.order] == [["centroid", "0"], ["centroid", "1"]]
        assert {*json.loads(kept.store[kept.order[0]])} == {"accuracy", "balanced_accuracy", "fit_seconds"}
        next(rows)
        assert len(kept.order) == 4

    @pytest.mark.parametrize("accuracy", [7.0, -1, float("nan"), "1", None])
    def test_what_can_be_no_result_is_computed_again(self, accuracy: object) -> None:
        given, made = eight()
        kept = Kept(given, {0: made, 1: made})
        rows = kept.rows([TWO[0]])
        wrong = {"accuracy": accuracy, "balanced_accuracy": 0.5, "fit_seconds": 0.0}
        made_anew: dict[str, Any] = {}
        grid = Grid(given, {0: made, 1: made}, kept.digest, lambda _: wrong, made_anew.__setitem__)
        assert [row.accuracies for row in grid.rows([TWO[0]], ALL)] == [row.accuracies for row in rows]
        assert (grid.computed, grid.reused, sorted(made_anew)) == (2, 0, sorted(kept.store))

    def test_an_error_of_one_head_leaves_the_others(self) -> None:
        given, made = eight()
        kept = Kept(given, {0: made, 1: made})
        rows = kept.rows([TWO[0], dummy_head("odd", Failing), TWO[1]])
        assert [row.error for row in rows] == [None, "odd cannot be fitted: of no use", None]
        odd = rows[1]
        assert (odd.accuracy, odd.accuracy_sd, odd.balanced_accuracy, odd.fit_seconds) == (None,) * 4
        assert (odd.accuracies, odd.n_classes, odd.n_train, odd.n_test) == ((), 8, 80, 40)
        assert (kept.grid.computed, len(kept.store)) == (4, 4)

    def test_an_error_in_one_seed_is_one_of_the_row(self) -> None:
        given, made = eight()
        head = replace(dummy_head("odd"), make=lambda seed, n_rows: Failing() if seed == 1 else DummyClassifier())
        (row,) = Kept(given, {0: made, 1: made, 2: made}).rows([head])
        assert (row.error, row.accuracy) == ("odd cannot be fitted: of no use", None)
        assert len(row.accuracies) == 2

    def test_a_cell_that_cannot_be_is_neither_fitted_nor_kept(self) -> None:
        given, made = eight()
        head, fits = counting()
        kept = Kept(given, {0: made})
        (row,) = kept.rows([head], Cell(9, None))
        assert (row.error or "").startswith("there are 8 classes to train on")
        assert row.classes == 9
        assert (fits, kept.store, kept.grid.computed) == ([], {}, 0)

    def test_vectors_that_cannot_be_used_are_an_error_of_the_row(self) -> None:
        given, made = eight()
        rows = Kept(replace(given, X=np.ones_like(given.X)), {0: made}).rows(TWO)
        assert [row.error is not None and row.error.startswith("all vectors are equal") for row in rows] == [True] * 2

    def test_after_an_interruption_a_second_grid_goes_on(self) -> None:
        given, made = eight()
        plans = {0: made, 1: made}
        head, fits = counting()
        lda = replace(heads.get("lda"), grid={"shrinkage": (0.7,)})
        stop = replace(lda, make=lambda seed, n_rows: Interrupting() if seed else lda.make(seed, n_rows))
        kept = Kept(given, plans)
        found = kept.grid.rows([head, stop, heads.get("ridge")], ALL)
        assert next(found).head == "counting"
        with pytest.raises(KeyboardInterrupt):
            next(found)
        assert (kept.grid.computed, len(kept.store)) == (3, 3)
        after = Kept(given, plans, dict(kept.store))
        rows = after.rows([head, lda, heads.get("ridge")])
        assert fits == [80] * 2
        assert (after.grid.computed, after.grid.reused) == (3, 3)
        expected = Kept(given, plans).rows([head, lda, heads.get("ridge")])
        assert [asdict(replace(row, fit_seconds=None)) for row in rows] == [
            asdict(replace(row, fit_seconds=None)) for row in expected
        ]

    @pytest.mark.slow
    @pytest.mark.parametrize("cell", [ALL, Cell(2, 5)])
    def test_poison_in_the_scored_rows_changes_the_scores_alone(
        self, cell: Cell, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        given, made = pictures({"train": 6, "val": 4, "test": 9}, apart=0.7)
        chosen: list[list[Any]] = []

        def noting(*args: Any) -> Any:
            fitted = fit_head(*args)
            trials = [(trial.params, trial.right.tolist(), trial.temperature) for trial in fitted.trials]
            chosen[-1].append((fitted.params, trials, fitted.chosen_by, fitted.loss_curve))
            return fitted

        monkeypatch.setattr("featcache.experiments.grid.fit_head", noting)
        asked = [heads.get(name) for name in (*heads.HEADS, heads.FLOOR)]
        accuracies = []
        for found in (given, poisoned(given, made.scored)):
            chosen.append([])
            rows = Kept(found, {0: made, 1: made}).rows(asked, cell)
            accuracies.append([row.accuracy for row in rows])
            assert {row.error for row in rows} == {None}
        assert len(chosen[0]) == 18
        assert chosen[0] == chosen[1]
        assert accuracies[0] != accuracies[1]


class Interrupting(Failing):
    """A fit in which somebody presses Ctrl-C."""

    problem = KeyboardInterrupt()
