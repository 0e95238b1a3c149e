"""Who is trained on, chosen on and scored, for records built by hand; and the intervals against scipy's."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest

from featcache import splits
from featcache.errors import DatasetError
from featcache.evaluate import wilson
from featcache.records import Features
from featcache.splits import Plan, digest, plan


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def features(labels: Sequence[str], splits: Sequence[str] | None = None, keys: Sequence[int] | None = None) -> Features:
    """Features whose values do not matter: one row a label, every row its own picture unless keys say otherwise."""
    n = len(labels)
    return Features(
        X=np.zeros((n, 2), np.float32),
        y=np.array(labels, dtype=np.str_),
        paths=tuple(f"/{row}.jpg" for row in range(n)),
        splits=np.array(splits if splits is not None else [""] * n, dtype=np.str_),
        keys=tuple(key(number) for number in (keys if keys is not None else range(n))),
        fingerprint="f",
    )


def split_set(*parts: tuple[str, int], labels: Sequence[str] = ("cat", "dog")) -> Features:
    """So many pictures of each label in each of the splits."""
    found = [(label, name) for name, count in parts for label in labels for _ in range(count)]
    return features([label for label, _ in found], [name for _, name in found])


def assignment(made: Plan, given: Features) -> dict[bytes, str]:
    """The split that each picture has by the rows of the plan."""
    return {given.keys[row]: name for name, rows in (("train", made.train), ("test", made.scored)) for row in rows}


class TestWithoutSplits:
    @pytest.mark.parametrize(
        ("sizes", "held"),
        [
            ({"cat": 10, "dog": 10}, {"cat": 2, "dog": 2}),
            ({"cat": 100, "dog": 5}, {"cat": 20, "dog": 1}),
            ({"cat": 3, "dog": 4, "emu": 13}, {"cat": 1, "dog": 1, "emu": 3}),
        ],
    )
    def test_a_fifth_of_each_class_is_held_out(self, sizes: dict[str, int], held: dict[str, int]) -> None:
        given = features([label for label, n in sizes.items() for _ in range(n)])
        made = plan(given, 0, {})
        assert Counter(given.y[made.scored].tolist()) == held
        assert Counter(given.y[made.train].tolist()) == {label: n - held[label] for label, n in sizes.items()}
        assert (made.val, made.scored_name) == (None, "test")
        assert made.sizes == {"train": len(made.train), "test": len(made.scored)}

    def test_every_picture_is_on_exactly_one_side(self) -> None:
        given = features(["cat", "dog", "emu"] * 11)
        made = plan(given, 3, {})
        assert sorted([*made.train, *made.scored]) == list(range(33))

    def test_the_split_that_was_made_is_handed_out_by_content(self) -> None:
        given = features(["cat", "dog"] * 10)
        made = plan(given, 3, {})
        assert dict(made.made) == assignment(made, given)

    def test_a_notice_names_the_seed(self) -> None:
        made = plan(features(["cat", "dog"] * 10), 17, {})
        assert len(made.notices) == 1
        assert "80/20" in made.notices[0]
        assert "seed 17" in made.notices[0]

    def test_the_same_seed_gives_the_same_split(self) -> None:
        given = features(["cat", "dog"] * 50)
        assert plan(given, 5, {}).made == plan(given, 5, {}).made

    def test_another_seed_gives_another_split(self) -> None:
        given = features(["cat", "dog"] * 50)
        assert plan(given, 5, {}).made != plan(given, 6, {}).made

    def test_the_order_of_the_rows_does_not_matter(self) -> None:
        given = features(["cat", "dog"] * 20)
        order = np.random.default_rng(0).permutation(40)
        turned = features(given.y[order].tolist(), keys=order.tolist())
        assert plan(given, 1, {}).made == plan(turned, 1, {}).made

    def test_a_training_set_alone_is_split_too(self) -> None:
        made = plan(split_set(("train", 10)), 0, {})
        assert made.sizes == {"train": 16, "test": 4}

    @pytest.mark.parametrize("seed", range(5))
    def test_copies_of_one_picture_stay_together(self, seed: int) -> None:
        given = features(
            ["cat", "dog"] * 30, keys=[number for pair in range(30) for number in (pair // 3, 50 + pair // 3)]
        )
        made = plan(given, seed, {})
        assert {given.keys[row] for row in made.train}.isdisjoint(given.keys[row] for row in made.scored)
        assert made.sizes == {"train": 48, "test": 12}
        assert not any("also trained on" in notice for notice in made.notices)

    def test_copies_under_two_labels_stay_together(self) -> None:
        given = features(["cat"] * 10 + ["dog"] * 11, keys=[*range(10), 0, *range(10, 20)])
        made = plan(given, 0, {})
        assert {given.keys[row] for row in made.train}.isdisjoint(given.keys[row] for row in made.scored)

    def test_kept_pictures_stay_where_they_were_when_others_come(self) -> None:
        few = features(["cat", "dog"] * 10)
        before = plan(few, 0, {}).made
        many = features(["cat", "dog"] * 40)
        after = plan(many, 0, before)
        assert {content: after.made[content] for content in before} == before
        assert after.sizes == {"train": 64, "test": 16}
        assert assignment(after, many) == after.made

    def test_kept_pictures_stay_also_against_the_seed(self) -> None:
        given = features(["cat", "dog"] * 10)
        before = plan(given, 0, {}).made
        assert plan(given, 1, {}).made != before
        assert plan(given, 1, before).made == before

    def test_what_is_kept_of_pictures_that_are_gone_is_ignored(self) -> None:
        given = features(["cat", "dog"] * 10)
        made = plan(given, 0, {key(1000): "test"})
        assert set(made.made) == set(given.keys)

    @pytest.mark.parametrize("side", ["train", "test"])
    def test_a_class_kept_on_one_side_only_is_split_again(self, side: str) -> None:
        given = features(["cat"] * 10 + ["dog"] * 10)
        made = plan(given, 0, {key(number): side for number in range(10)})
        assert Counter(given.y[made.scored].tolist()) == {"cat": 2, "dog": 2}

    def test_a_class_of_one_picture_is_named(self) -> None:
        with pytest.raises(DatasetError, match="'emu' has one picture"):
            plan(features(["cat", "dog"] * 5 + ["emu"]), 0, {})

    def test_a_class_of_copies_of_one_picture_is_named(self) -> None:
        with pytest.raises(DatasetError, match="'emu' has one picture"):
            plan(features(["cat", "dog"] * 5 + ["emu"] * 3, keys=[*range(10), 99, 99, 99]), 0, {})

    def test_a_class_of_two_is_too_small_for_cross_validation(self) -> None:
        with pytest.raises(DatasetError, match="'emu' has two pictures"):
            plan(features(["cat", "dog"] * 5 + ["emu"] * 2), 0, {})

    def test_one_class_only_is_refused(self) -> None:
        with pytest.raises(DatasetError, match=r"only one class.*'cat'"):
            plan(features(["cat"] * 10), 0, {})


class TestWithSplits:
    @pytest.mark.parametrize(
        ("names", "scored", "chosen_on_val"),
        [
            (["train", "val", "test"], "test", True),
            (["train", "val", "holdout"], "holdout", True),
            (["train", "val"], "val", False),
            (["train", "test"], "test", False),
            (["train", "holdout"], "holdout", False),
            (["train", "val", "test", "holdout"], "test", True),
        ],
    )
    def test_who_is_chosen_on_and_who_is_scored(self, names: list[str], scored: str, chosen_on_val: bool) -> None:
        given = split_set(*((name, 3 + at) for at, name in enumerate(names)))
        made = plan(given, 0, {})
        assert made.scored_name == scored
        assert np.array_equal(made.train, np.flatnonzero(given.splits == "train"))
        assert np.array_equal(made.scored, np.flatnonzero(given.splits == scored))
        if chosen_on_val:
            assert made.val is not None
            assert np.array_equal(made.val, np.flatnonzero(given.splits == "val"))
        else:
            assert made.val is None
        assert made.sizes == {name: 2 * (3 + at) for at, name in enumerate(names)}

    def test_the_splits_of_the_dataset_win_over_kept_ones_and_are_not_kept(self) -> None:
        given = split_set(("train", 4), ("test", 2))
        made = plan(given, 0, dict.fromkeys(given.keys, "test"))
        assert made.made == {}
        assert made.sizes == {"train": 8, "test": 4}

    def test_the_seed_does_not_matter(self) -> None:
        given = split_set(("train", 4), ("val", 2), ("test", 2))
        one, two = plan(given, 0, {}), plan(given, 1, {})
        assert np.array_equal(one.train, two.train)
        assert np.array_equal(one.scored, two.scored)

    def test_a_holdout_beside_a_test_split_is_untouched_with_a_notice(self) -> None:
        given = split_set(("train", 4), ("val", 2), ("test", 2), ("holdout", 3))
        made = plan(given, 0, {})
        assert made.val is not None
        used = {*made.train, *made.val, *made.scored}
        assert used.isdisjoint(np.flatnonzero(given.splits == "holdout"))
        assert made.notices == ("the split holdout was not touched",)

    @pytest.mark.parametrize("names", [["train", "val"], ["train", "test"], ["train", "val", "test"]])
    def test_nothing_to_say_where_every_split_is_used(self, names: list[str]) -> None:
        assert plan(split_set(*((name, 3) for name in names)), 0, {}).notices == ()

    def test_pictures_beside_a_train_split_are_not_split_silently(self) -> None:
        with pytest.raises(DatasetError, match=r"\(none\), train"):
            plan(split_set(("train", 4), ("", 2)), 0, {})

    def test_some_pictures_without_a_split_are_refused(self) -> None:
        with pytest.raises(DatasetError, match=r"\(none\), test, train"):
            plan(split_set(("train", 4), ("test", 2), ("", 1)), 0, {})

    @pytest.mark.parametrize("names", [["test"], ["val", "test"], ["holdout"]])
    def test_splits_without_train_are_refused(self, names: list[str]) -> None:
        with pytest.raises(DatasetError, match="`train` is not among them"):
            plan(split_set(*((name, 3) for name in names)), 0, {})

    def test_one_class_only_is_refused(self) -> None:
        with pytest.raises(DatasetError, match=r"only one class.*'cat'"):
            plan(split_set(("train", 4), ("test", 2), labels=["cat"]), 0, {})

    @pytest.mark.parametrize("name", ["test", "val", "holdout"])
    def test_a_class_that_is_not_trained_on_is_named(self, name: str) -> None:
        given = features(["cat", "cat", "dog", "dog", "cat", "emu"], ["train"] * 4 + [name] * 2)
        with pytest.raises(DatasetError, match=f"'emu' is in {name} but not in train"):
            plan(given, 0, {})

    def test_a_class_in_val_that_is_not_trained_on_is_named(self) -> None:
        given = features(["cat", "cat", "dog", "dog", "emu", "cat"], ["train"] * 4 + ["val", "test"])
        with pytest.raises(DatasetError, match="'emu' is in val but not in train"):
            plan(given, 0, {})

    def test_a_class_that_is_never_scored_is_fine(self) -> None:
        given = features(["cat", "cat", "dog", "dog", "cat"], ["train"] * 4 + ["test"])
        assert plan(given, 0, {}).sizes == {"train": 4, "test": 1}

    def test_one_picture_of_a_class_is_too_few_for_cross_validation(self) -> None:
        with pytest.raises(DatasetError, match="'dog' has one picture in train"):
            plan(features(["cat", "cat", "dog", "cat"], ["train"] * 3 + ["test"]), 0, {})

    def test_one_picture_of_a_class_is_enough_beside_a_val_split(self) -> None:
        given = features(["cat", "dog", "cat", "dog", "cat"], ["train"] * 2 + ["val"] * 2 + ["test"])
        assert plan(given, 0, {}).sizes == {"train": 2, "val": 2, "test": 1}


class TestTwins:
    @pytest.mark.parametrize("twin", ["train", "val"])
    def test_twins_of_scored_pictures_are_counted(self, twin: str) -> None:
        parts = split_set(("train", 4), ("val", 4), ("test", 4))
        keys = list(range(24))
        first, scored = (parts.splits.tolist().index(name) for name in (twin, "test"))
        keys[scored], keys[scored + 1], keys[scored + 2] = keys[first], keys[first], keys[first + 1]
        made = plan(features(parts.y.tolist(), parts.splits.tolist(), keys), 0, {})
        assert len(made.notices) == 1
        assert made.notices[0].startswith("3 of the 8 scored pictures are also trained on")

    def test_twins_inside_one_split_are_no_leak(self) -> None:
        parts = split_set(("train", 4), ("test", 4))
        keys = [0, 0, *range(2, 14), 15, 15]
        assert plan(features(parts.y.tolist(), parts.splits.tolist(), keys), 0, {}).notices == ()

    def test_one_picture_under_two_labels_is_said(self) -> None:
        parts = split_set(("train", 4), ("test", 4))
        keys = [0, *range(1, 4), 0, *range(5, 16)]
        (notice,) = plan(features(parts.y.tolist(), parts.splits.tolist(), keys), 0, {}).notices
        assert notice.startswith("2 pictures also stand under another label, as /0.jpg")

    def test_twins_in_an_untouched_holdout_are_no_leak(self) -> None:
        parts = split_set(("train", 4), ("test", 4), ("holdout", 4))
        keys = [*range(16), *range(8)]
        made = plan(features(parts.y.tolist(), parts.splits.tolist(), keys), 0, {})
        assert made.notices == ("the split holdout was not touched",)


class TestLabels:
    @pytest.mark.parametrize("n", [0, 1, 5])
    def test_no_labels_at_all_are_refused(self, n: int) -> None:
        with pytest.raises(DatasetError, match="no labels"):
            plan(features([""] * n), 0, {})

    def test_pictures_without_a_label_are_left_out_with_a_notice(self) -> None:
        given = features(["cat", "dog", ""] * 10)
        made = plan(given, 0, {})
        assert not {*made.train, *made.scored} & set(np.flatnonzero(given.y == "").tolist())
        assert made.sizes == {"train": 16, "test": 4}
        assert any(notice.startswith("10 pictures without a label") for notice in made.notices)

    def test_pictures_without_a_label_need_no_split(self) -> None:
        given = features(["cat", "cat", "dog", "dog", "cat", ""], ["train"] * 4 + ["test", ""])
        made = plan(given, 0, {})
        assert made.sizes == {"train": 4, "test": 1}

    def test_a_label_that_is_longer_than_the_names_of_splits_is_no_problem(self) -> None:
        given = features(["a" * 300, "b"] * 10)
        assert set(given.y[plan(given, 0, {}).scored]) == {"a" * 300, "b"}


class TestDigest:
    @pytest.mark.parametrize("at_once", [1, 3, 10**6])
    def test_it_is_that_of_all_lines_sorted(self, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(splits, "LINES", at_once)
        r = np.random.default_rng(0)
        parts = split_set(("train", 8), ("val", 4), ("test", 4))
        keys = [r.bytes(32) for _ in range(len(parts.y))]
        keys[3], keys[9], keys[20] = keys[2], keys[5][:8] + keys[9][8:], keys[1]
        given = replace(parts, keys=tuple(keys))
        lines = sorted(f"{given.splits[row]} {keys[row].hex()} {given.y[row]}" for row in range(len(keys)))
        known = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        assert digest(given, [plan(given, 0, {})]) == known


class TestWilson:
    @pytest.mark.parametrize(
        ("hits", "n"),
        [
            (0, 1),
            (1, 1),
            (0, 20),
            (20, 20),
            (1, 20),
            (10, 20),
            (19, 20),
            (137, 1000),
            (999, 1000),
            (0, 5000),
            (5000, 5000),
        ],
    )
    def test_the_interval_is_that_of_scipy(self, hits: int, n: int) -> None:
        expected = binomtest(hits, n).proportion_ci(confidence_level=0.95, method="wilson")
        assert wilson(hits, n) == pytest.approx((expected.low, expected.high), rel=1e-9, abs=1e-12)

    @pytest.mark.parametrize("n", [1, 3, 7, 20, 10_000])
    def test_the_interval_holds_the_proportion_and_stays_in_range(self, n: int) -> None:
        for hits in {0, 1, n // 2, n - 1, n}:
            low, high = wilson(hits, n)
            assert 0 <= low <= high <= 1
            assert low - 1e-12 <= hits / n <= high + 1e-12
