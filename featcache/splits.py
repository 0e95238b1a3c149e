"""Features with labels and perhaps splits enter; who is trained on, chosen on and scored leaves."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from featcache.errors import DatasetError, HeadError
from featcache.records import Features, Roll
from featcache.store.index import KeyIndex

TEST_FRACTION = 0.2
MADE = "no test split in the dataset: it has a stratified 80/20 split of seed {}, kept in the cache"

SHOWN = 5
"""How many classes are named where many lack the same."""

LINES = 2**16
"""So many different keys, and their lines of text, are in memory at once."""

Rows = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Plan:
    """Row numbers of a `Features` or `Roll`: `train`, `val` (or `None`: choose by CV inside train) and `scored`.

    `made` maps content keys to the split that was made here; it is empty where the dataset brought its own. `unscored`
    are classes that are fitted on without a picture that is scored.
    """

    train: Rows
    val: Rows | None
    scored: Rows
    scored_name: str
    sizes: dict[str, int]
    made: Mapping[bytes, str] = field(default_factory=dict)
    notices: tuple[str, ...] = ()
    unscored: tuple[str, ...] = ()

    @property
    def fitted(self) -> Rows:
        """The rows that the final fit is made on: train, then val if there is one."""
        return self.train if self.val is None else np.concatenate([self.train, self.val])


def check_seed(seed: int) -> None:
    """Raise `HeadError` for a number that is no seed, from 0 to 2**32 - 1: NumPy and scikit-learn take no other."""
    if not 0 <= seed < 2**32:
        raise HeadError(f"the seed is {seed}: give a whole number from 0 to {2**32 - 1:,}")


def plan(given: Features | Roll, seed: int, kept: Mapping[bytes, str], strict: bool = True) -> Plan:
    """Decide what a head is trained on, chosen on and scored on.

    With train, val and a third split the choice is made on val and the third is scored; with train and one other, by CV
    inside train, and the other is scored; without splits a stratified 80/20 split is made with `seed`, in which copies
    of one picture stay together and pictures in `kept` stay where they were. Raises `DatasetError`; where it is not
    `strict`, classes that cannot be learned or chosen on are left to those who use the plan.
    """
    roll = _roll(given)
    labelled = np.flatnonzero(roll.y != roll.labels.index("")) if "" in roll.labels else np.arange(len(roll.y))
    notices = []
    if not len(labelled):
        raise DatasetError("the pictures have no labels: sort them into one folder a class, or use a CSV manifest")
    if len(labelled) < len(roll.y):
        notices.append(f"{len(roll.y) - len(labelled):,} pictures without a label left out")
    names, splits = roll.names, roll.splits[labelled]
    present = {names[number] for number in np.unique(splits)}
    made: dict[bytes, str] = {}
    if present in ({""}, {"train"}):
        made = _make(roll, labelled, seed, kept)
        names = tuple(sorted(set(made.values())))
        splits = np.array([names.index(made[key.tobytes()]) for key in roll.keys[labelled]])
        notices.append(MADE.format(seed))
    elif "" in present or "train" not in present:
        without = int((splits == names.index("")).sum()) if "" in present else 0
        lacking = f"{without:,} of {len(labelled):,} pictures have none" if without else "`train` is not among them"
        raise DatasetError(
            f"the splits are {', '.join(sorted(name or '(none)' for name in present))}, but {lacking}: "
            "give every labelled picture one, and some of them `train`"
        )
    rows = {names[number]: labelled[splits == number] for number in np.unique(splits)}
    scored = next(name for name in ("test", "holdout", "val") if name in rows)
    val = rows.get("val") if scored != "val" else None
    unused = sorted(set(rows) - {"train", "val", scored})
    if unused:
        notices.append(f"the split {unused[0]} was not touched")
    sizes = {name: len(found) for name, found in rows.items()}
    result = Plan(rows["train"], val, rows[scored], scored, sizes, made)
    if strict:
        _check_classes(roll, result)
    unscored = _lacking(roll, result.fitted, result.scored)
    if unscored:
        notices.append(unscored_text(unscored, scored, len(np.unique(roll.y[result.fitted]))))
    if val is not None and (unseen := _lacking(roll, result.train, val)):
        notices.append(f"no picture of {_some(unseen)} is in val: parameters are chosen without looking at it")
    return replace(result, notices=(*notices, *_twins(roll, labelled, result)), unscored=unscored)


def unscored_text(unscored: Sequence[str], scored_name: str, n_classes: int) -> str:
    """Say which of the classes of train have no scored picture, and over how many the means over classes are."""
    over = f"balanced accuracy and macro-F1 are over {n_classes - len(unscored):,} of {n_classes:,} classes"
    return f"no picture of {_some(unscored)} is in {scored_name}: {over}"


def _some(labels: Sequence[str]) -> str:
    named = ", ".join(map(repr, labels[:SHOWN]))
    return named if len(labels) <= SHOWN else f"{named} and {len(labels) - SHOWN:,} more classes"


def _lacking(roll: Roll, fitted: Rows, others: Rows) -> tuple[str, ...]:
    """Return the classes of which some rows are fitted on, and none is among the others."""
    return tuple(roll.labels[number] for number in np.setdiff1d(roll.y[fitted], roll.y[others]))


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


def digest(given: Features | Roll, plans: Sequence[Plan]) -> str:
    """Return the sha256 (hex) of who is trained on, chosen on and scored, of several different plans one of all."""
    roll, found = _roll(given), []
    for made in plans:
        parts = {"train": made.train, "val": made.val, made.scored_name: made.scored}
        known, start = hashlib.sha256(), b""
        for name, rows in sorted(parts.items()):
            for lines in () if rows is None else _lines(roll, name, rows):
                known.update(start + "\n".join(lines).encode(errors="surrogateescape"))
                start = b"\n"
        found.append(known.hexdigest())
    return found[0] if len(set(found)) == 1 else hashlib.sha256(" ".join(found).encode()).hexdigest()


def _lines(roll: Roll, name: str, rows: Rows) -> Iterator[list[str]]:
    """Yield the lines that say who is in a split, sorted, not all at once: there may be millions."""
    heads = np.ascontiguousarray(roll.keys[rows, :8]).view(">u8").reshape(-1).astype(np.uint64)
    order = np.argsort(heads)
    heads, rows = heads[order], rows[order]
    cuts = [0, *(np.flatnonzero(heads[1:] != heads[:-1]) + 1)[LINES::LINES].tolist(), len(rows)]
    for first, last in pairwise(cuts):
        yield sorted(f"{name} {roll.keys[row].tobytes().hex()} {roll.labels[roll.y[row]]}" for row in rows[first:last])


def _roll(given: Features | Roll) -> Roll:
    return given if isinstance(given, Roll) else given.roll


def _make(roll: Roll, labelled: Rows, seed: int, kept: Mapping[bytes, str]) -> dict[bytes, str]:
    label_of: dict[bytes, str] = {}
    for row in labelled:
        label_of.setdefault(roll.keys[row].tobytes(), roll.labels[roll.y[row]])
    check_sizes(
        Counter(label_of.values()),
        3,
        "where the dataset has no splits, a class needs three, two to train and choose on and one to score",
    )
    return divide(label_of, {"test": TEST_FRACTION}, seed, kept)


def _check_classes(roll: Roll, made: Plan) -> None:
    trained = np.bincount(roll.y[made.train], minlength=len(roll.labels))
    classes = np.flatnonzero(trained)
    if len(classes) < 2:
        raise _one_class(roll.labels[classes[0]])
    parts = {made.scored_name: made.scored} | ({} if made.val is None else {"val": made.val})
    for name, rows in parts.items():
        unknown = np.setdiff1d(roll.y[rows], classes)
        if len(unknown):
            labels = [roll.labels[number] for number in unknown]
            what = f"class {_some(labels)} is" if len(labels) == 1 else f"classes {_some(labels)} are"
            raise DatasetError(
                f"{what} in {name} but not in train, which holds {_some([roll.labels[n] for n in classes])}: no head "
                "can ever learn that; call a class alike in all splits, take away pictures of others, or where folders "
                "lie between split and class say with --label-from which is the class"
            )
    fewest = classes[trained[classes].argmin()]  # of equals the first by name
    if made.val is None and trained[fewest] < 2:
        raise DatasetError(
            f"class {roll.labels[fewest]!r} has one picture in train: "
            "choosing parameters by cross-validation needs at least two"
        )


def _one_class(label: str) -> DatasetError:
    return DatasetError(f"there is only one class to train on ({label!r}): a classifier needs two or more")


def unseen(roll: Roll, made: Plan) -> Rows:
    """Return the scored rows whose content is not fitted on, too."""
    return _unseen(KeyIndex(roll.keys).find(roll.keys), made)


def _unseen(contents: Rows, made: Plan) -> Rows:
    """Return the same, where for each row the first one with its content is known."""
    seen = np.zeros(len(contents), bool)
    seen[contents[made.fitted]] = True
    return np.asarray(made.scored[~seen[contents[made.scored]]])


def _twins(roll: Roll, labelled: Rows, made: Plan) -> Iterator[str]:
    """Yield what is to be said of pictures that are there more than once."""
    contents = KeyIndex(roll.keys).find(roll.keys)  # the first row with the same key
    low, high = np.full(len(contents), len(roll.labels)), np.full(len(contents), -1)
    np.minimum.at(low, contents[labelled], roll.y[labelled])
    np.maximum.at(high, contents[labelled], roll.y[labelled])
    torn = labelled[(low < high)[contents[labelled]]]
    if len(torn):
        first = roll.path(int(torn[0]))
        yield f"{len(torn):,} pictures also stand under another label, as {first}: no head can fit both"
    twins = len(made.scored) - len(_unseen(contents, made))
    if twins:
        yield f"{twins:,} of the {len(made.scored):,} scored pictures are also trained on: the score flatters"


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
