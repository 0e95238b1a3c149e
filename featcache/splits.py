"""Features with labels and perhaps splits enter; who is trained on, chosen on and scored leaves."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from featcache.errors import DatasetError
from featcache.records import Features

TEST_FRACTION = 0.2
MADE = "no test split in the dataset: it has a stratified 80/20 split of seed {}, kept in the cache"

Rows = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Plan:
    """Row numbers of a `Features`: `train`, `val` (or `None`: choose by CV inside train) and `scored`.

    `made` maps content keys to the split that was made here; it is empty where the dataset brought its own.
    """

    train: Rows
    val: Rows | None
    scored: Rows
    scored_name: str
    sizes: dict[str, int]
    made: Mapping[bytes, str] = field(default_factory=dict)
    notices: tuple[str, ...] = ()

    @property
    def fitted(self) -> Rows:
        """The rows that the final fit is made on: train, then val if there is one."""
        return self.train if self.val is None else np.concatenate([self.train, self.val])


def plan(features: Features, seed: int, kept: Mapping[bytes, str], strict: bool = True) -> Plan:
    """Decide what a head is trained on, chosen on and scored on.

    With train, val and a third split the choice is made on val and the third is scored; with train and one other, by CV
    inside train, and the other is scored; without splits a stratified 80/20 split is made with `seed`, in which copies
    of one picture stay together and pictures in `kept` stay where they were. Raises `DatasetError`; where it is not
    `strict`, classes that cannot be learned or chosen on are left to those who use the plan.
    """
    labelled = np.flatnonzero(features.y != "")
    notices = []
    if not len(labelled):
        raise DatasetError("the pictures have no labels: sort them into one folder a class, or use a CSV manifest")
    if len(labelled) < len(features.y):
        notices.append(f"{len(features.y) - len(labelled):,} pictures without a label left out")
    names = features.splits.astype(object)  # a fixed-width copy would cut the names put into it
    present = set(names[labelled].tolist())
    made: dict[bytes, str] = {}
    if present in ({""}, {"train"}):
        made = _make(features, labelled, seed, kept)
        names[labelled] = [made[features.keys[row]] for row in labelled]
        notices.append(MADE.format(seed))
    elif "" in present or "train" not in present:
        without = int((names[labelled] == "").sum())
        lacking = f"{without:,} of {len(labelled):,} pictures have none" if without else "`train` is not among them"
        raise DatasetError(
            f"the splits are {', '.join(sorted(name or '(none)' for name in present))}, but {lacking}: "
            "give every labelled picture one, and some of them `train`"
        )
    rows = {str(name): labelled[names[labelled] == name] for name in np.unique(names[labelled])}
    scored = next(name for name in ("test", "holdout", "val") if name in rows)
    val = rows.get("val") if scored != "val" else None
    unused = sorted(set(rows) - {"train", "val", scored})
    if unused:
        notices.append(f"the split {unused[0]} was not touched")
    sizes = {name: len(found) for name, found in rows.items()}
    result = Plan(rows["train"], val, rows[scored], scored, sizes, made)
    if strict:
        _check_classes(features, result)
    notices += [*_contradictions(features, labelled), *_leaks(features, result)]
    return replace(result, notices=tuple(notices))


def divide(
    labels: Mapping[bytes, str], fractions: Mapping[str, float], seed: int, kept: Mapping[bytes, str]
) -> dict[bytes, str]:
    """Return a split for every content key: of each class about these fractions, at least one key each, else train.

    `fractions` are of the splits besides train, below 1 together; every class has more keys than there are of them, see
    `check_sizes`. Keys in `kept` stay where they are, unless a split would be left without their class.
    """
    members: dict[str, list[bytes]] = {}
    for key, label in sorted(labels.items()):
        members.setdefault(label, []).append(key)
    result = {key: kept[key] for key in labels if key in kept}
    generator = np.random.default_rng(seed)
    for _, keys in sorted(members.items()):
        shuffled = [keys[at] for at in generator.permutation(len(keys))]
        wanted = _wanted(fractions, len(keys))
        held = Counter(result[key] for key in keys if key in result)
        new = [key for key in shuffled if key not in result]
        result.update(_dealt(new, {name: size - held[name] for name, size in wanted.items()}))
        if not {"train", *fractions} <= {result[key] for key in keys}:
            result.update(_dealt(shuffled, wanted))
    return result


def check_sizes(sizes: Mapping[str, int], least: int, why: str) -> None:
    """Raise `DatasetError` where there is one class only, or a class with fewer than `least` (at most 3) pictures."""
    if len(sizes) < 2:
        raise _one_class(next(iter(sizes)))
    for label, size in sorted(sizes.items()):
        if size < least:
            raise DatasetError(f"class {label!r} has {('no picture', 'one picture', 'two pictures')[size]}: {why}")


def _wanted(fractions: Mapping[str, float], total: int) -> dict[str, int]:
    """Return how many of `total` pictures each split gets, so that one is left for each that follows, and for train."""
    wanted: dict[str, int] = {}
    for following, (name, fraction) in zip(range(len(fractions), 0, -1), fractions.items(), strict=True):
        wanted[name] = min(max(1, round(fraction * total)), total - sum(wanted.values()) - following)
    return wanted


def _dealt(keys: Sequence[bytes], wanted: Mapping[str, int]) -> dict[bytes, str]:
    names = [name for name, size in wanted.items() for _ in range(size)]
    return dict(zip(keys, [*names, *["train"] * len(keys)], strict=False))


def digest(features: Features, plans: Sequence[Plan]) -> str:
    """Return the sha256 (hex) of who is trained on, chosen on and scored, of several different plans one of all."""
    found = []
    for made in plans:
        parts = {"train": made.train, "val": made.val, made.scored_name: made.scored}
        lines = sorted(
            f"{name} {features.keys[row].hex()} {features.y[row]}"
            for name, rows in parts.items()
            if rows is not None
            for row in rows
        )
        found.append(hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest())
    return found[0] if len(set(found)) == 1 else hashlib.sha256(" ".join(found).encode()).hexdigest()


def _make(features: Features, labelled: Rows, seed: int, kept: Mapping[bytes, str]) -> dict[bytes, str]:
    label_of: dict[bytes, str] = {}
    for row in labelled:
        label_of.setdefault(features.keys[row], str(features.y[row]))
    check_sizes(
        Counter(label_of.values()),
        3,
        "where the dataset has no splits, a class needs three, two to train and choose on and one to score",
    )
    return divide(label_of, {"test": TEST_FRACTION}, seed, kept)


def _check_classes(features: Features, made: Plan) -> None:
    trained = Counter(features.y[made.train].tolist())
    if len(trained) < 2:
        raise _one_class(next(iter(trained)))
    parts = {made.scored_name: made.scored} | ({} if made.val is None else {"val": made.val})
    for name, rows in parts.items():
        unknown = sorted(set(features.y[rows].tolist()) - set(trained))
        if unknown:
            raise DatasetError(f"class {unknown[0]!r} is in {name} but not in train: no head can ever learn it")
    label, fewest = min(trained.items(), key=lambda pair: (pair[1], pair[0]))
    if made.val is None and fewest < 2:
        raise DatasetError(
            f"class {label!r} has one picture in train: choosing parameters by cross-validation needs at least two"
        )


def _one_class(label: str) -> DatasetError:
    return DatasetError(f"there is only one class to train on ({label!r}): a classifier needs two or more")


def _contradictions(features: Features, labelled: Rows) -> list[str]:
    labels: dict[bytes, set[str]] = defaultdict(set)
    for row in labelled:
        labels[features.keys[row]].add(str(features.y[row]))
    torn = [row for row in labelled if len(labels[features.keys[row]]) > 1]
    if not torn:
        return []
    return [
        f"{len(torn):,} pictures also stand under another label, as {features.paths[torn[0]]}: no head can fit both"
    ]


def _leaks(features: Features, made: Plan) -> list[str]:
    seen = {features.keys[row] for row in made.fitted}
    twins = sum(features.keys[row] in seen for row in made.scored)
    if not twins:
        return []
    return [f"{twins:,} of the {len(made.scored):,} scored pictures are also trained on: the score flatters"]


def hold_out(keys: Sequence[bytes], labels: Sequence[str], seed: int) -> npt.NDArray[np.bool_]:
    """Tell of each picture (n) whether it is held out to choose on: about 20 % of each class, copies on one side.

    A class of a single content is not held out. Raises `DatasetError` where nothing can be.
    """
    label_of = dict(zip(keys, labels, strict=True))
    sizes = Counter(label_of.values())
    large = {key: label for key, label in label_of.items() if sizes[label] > 1}
    if not large:
        raise DatasetError("every class has one picture to train on, and none can be held out to choose on: add some")
    parts = divide(large, {"val": TEST_FRACTION}, seed, {})
    return np.array([parts.get(key) == "val" for key in keys])
