"""The name of a folder, a file or a field that may be a split enters; the split that it says leaves, or none."""

from __future__ import annotations

import re

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
}
"""Words beside that of a split that say nothing."""

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
    tokens = [part for token in _TOKEN.findall(name) for part in _parts(token.lower())]
    splits = {_WORDS[token] for token in tokens if token in _WORDS}
    if len(splits) != 1:
        return None
    rest = (t for t in tokens if t not in _WORDS and t not in _FILLERS and not t.isdecimal())
    return splits.pop(), tuple(rest)


def is_put_aside(name: str) -> bool:
    """Tell whether a name is one for pictures beside the splits, to be predicted or without labels."""
    return not _ASIDE.isdisjoint(token.lower() for token in _TOKEN.findall(name))


def _parts(token: str) -> tuple[str, ...]:
    found = _GLUED.fullmatch(token)
    return found.groups() if found else (token,)
