"""The name of a folder, a file or a field that may be a split enters; the split that it says leaves, or none."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

SPLIT_NAMES = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "holdout": "holdout",
}
"""Folder and manifest names of a split -> the name used everywhere else."""

_WORDS = SPLIT_NAMES | {
    "training": "train",
    "trains": "train",
    "trn": "train",
    "dev": "val",
    "vali": "val",
    "validate": "val",
    "validating": "val",
    "development": "val",
    "tests": "test",
    "testing": "test",
    "tst": "test",
    "eval": "test",
    "evaluation": "test",
}
"""Words of splits in common use, which stand alone, with numbers or beside others."""

_FILLERS = {
    *("set", "sets", "data", "dataset", "datasets", "image", "images", "img", "imgs", "picture", "pictures", "photo"),
    *("photos", "folder", "dir", "split", "sample", "samples", "the", "my", "new", "all", "small", "public", "private"),
    *("final", "official", "full", "list", "lists"),
}
"""Words beside that of a split that say nothing."""

_COLUMNS = {"split", "splits", "subset", "set", "usage", "partition", "phase", "stage"}
"""What columns of splits are called."""

_PARTS = {
    *("part", "parts", "batch", "batches", "chunk", "chunks", "shard", "shards"),
    *("image", "images", "img", "imgs", "pictures", "photos", "data", "dataset"),
}
"""What folders are called that hold a part of something, each with a number."""

_ASIDE = {
    *("pred", "predict", "prediction", "predictions", "inference", "unlabeled", "unlabelled", "unsup", "extra", "meta"),
    *("example", "examples", "demo", "sample", "samples"),
}
"""What folders beside splits are called that are none, and hold no classes."""

_TOKEN = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_a-zA-Z]+")
_GLUED = re.compile(rf"({'|'.join(sorted(_WORDS, key=len, reverse=True))})({'|'.join(sorted(_FILLERS))})")


def exact_split(name: str) -> str | None:
    """Return the split of a name that is one of `SPLIT_NAMES`, in any case."""
    return SPLIT_NAMES.get(name.lower())


def worded_split(name: str) -> tuple[str, tuple[str, ...]] | None:
    """Return the split that one word of a name says, and its other words, less numbers and words that say nothing.

    `training_set`, `test1` and `TrainImages` leave none; of `seg_train` it is `seg`. `None` where no word says a split,
    or several say different ones.
    """
    tokens = _tokens(name)
    splits = splits_said(name)
    if len(splits) != 1:
        return None
    rest = (t for t in tokens if t not in _WORDS and t not in _FILLERS and not t.isdecimal())
    return splits.pop(), tuple(rest)


def splits_said(name: str) -> set[str]:
    """Return all splits that the words of a name say."""
    return {_WORDS[token] for token in _tokens(name) if token in _WORDS}


def split_in(text: str) -> str | None:
    """Return the split that a text says which is nothing else: `Training`, `test_set`, `PublicTest`; else `None`."""
    found = worded_split(text) if len(text) <= 40 else None
    return found[0] if found is not None and not found[1] else None


def split_folders(names: Iterable[str]) -> dict[str, str]:
    """Return which names of folders say splits, and which: where other words stand beside, several do with these.

    Of `train`, `seg_train`, `seg_test` and `test_tubes` all but the last do.
    """
    worded = {name: found for name in names if (found := worded_split(name)) is not None}
    around: dict[tuple[str, ...], set[str]] = {}
    for split, rest in worded.values():
        around.setdefault(rest, set()).add(split)
    return {name: split for name, (split, rest) in worded.items() if not rest or are_splits(around[rest])}


def are_splits(splits: Collection[str]) -> bool:
    """Tell whether these are splits that can be used together: several, and one of them `train`."""
    return len(splits) > 1 and "train" in splits


def is_of_splits(name: str) -> bool:
    """Tell whether a column may say splits by its name: `subset`, `Usage`, `is_valid`."""
    return name.lower() in _COLUMNS or worded_split(name) is not None


def is_part(name: str) -> bool:
    """Tell whether a folder is called as a part of something, and says nothing else: `images_001`, `data_256`."""
    tokens = [token.lower() for token in _TOKEN.findall(name)]
    words = [token for token in tokens if not token.isdecimal()]
    return len(words) < len(tokens) and bool(words) and _PARTS.issuperset(words)


def is_numbered_part(names: Sequence[str]) -> bool:
    """Tell whether folders are called alike but for numbers, as parts of something: `ham_images_part_1`, `_2`."""
    tokens = [[token.lower() for token in _TOKEN.findall(name)] for name in names]
    words = {tuple(token for token in each if not token.isdecimal()) for each in tokens}
    has_numbers = all(any(token.isdecimal() for token in each) for each in tokens)
    return len(names) > 1 and len(words) == 1 and has_numbers and bool(_PARTS & {*words.pop()})


def is_put_aside(name: str) -> bool:
    """Tell whether a name is one for pictures beside the splits, to be predicted or without labels."""
    return not _ASIDE.isdisjoint(token.lower() for token in _TOKEN.findall(name))


def _tokens(name: str) -> list[str]:
    return [part for token in _TOKEN.findall(name) for part in _parts(token.lower())]


def _parts(token: str) -> tuple[str, ...]:
    found = _GLUED.fullmatch(token)
    return found.groups() if found else (token,)
