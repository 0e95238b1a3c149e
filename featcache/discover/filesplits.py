"""The names of files that hold many pictures, as shards and tables do, enter; the split that each says leaves."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from featcache.discover.levels import count, some
from featcache.discover.splitwords import SPLIT_NAMES, exact_split, splits_said
from featcache.errors import DatasetError

_NUMBERED = re.compile(r"-\d{5}-of-\d{5}.*")
"""What `datasets` writes behind the split in a file's name."""


_PART = re.compile(r"-(\d{5})-of-\d{5}")


class _Said(NamedTuple):
    split: str | None
    is_plain: bool
    """Whether the name of the file begins with the split, or that of a folder is the split."""
    is_clear: bool
    """Whether it is plain, and nothing else in the path says another split."""


def check_one_dataset(root: str, names: Sequence[str]) -> None:
    """Raise `DatasetError` where files of several datasets, as configurations of one are, lie side by side.

    Then the same part of the same split is there in several folders, or with several words before it.
    """
    found: dict[tuple[str, str], set[str]] = {}
    for name in names:
        *folders, file = name.split("/")
        stem = PurePosixPath(file).stem
        base, number = _NUMBERED.sub("", stem), _PART.search(stem)
        called, _, last = base.rpartition("-")
        if (split := exact_split(last)) is not None and (number or not called or file.lower().endswith(".arrow")):
            of, part = "/".join([*folders, called]) if called else "/".join([*folders, ""]), number[1] if number else ""
        elif folders and (split := exact_split(folders[-1])) is not None:
            of, part = "/".join([*folders[:-1], ""]), file
        else:
            continue
        found.setdefault((split, part), set()).add(of)
    several = next(((split, sorted(of)) for (split, _), of in found.items() if len(of) > 1), None)
    if several is None:
        return
    split, called_so = several
    inside = next((each.rpartition("/")[0] for each in called_so if "/" in each.rstrip("/") or each.endswith("/")), "")
    way = (
        f"name one as SOURCE, as {root.rstrip('/')}/{inside}"
        if inside
        else "move those of one to a folder of their own"
    )
    shown = some([each.rstrip("/") or "." for each in called_so])
    raise DatasetError(
        f"{root} holds several datasets, or configurations of one ({shown}), each with a {split} of its own: {way}"
    )


def splits_of_files(names: Sequence[str]) -> tuple[list[str | None], list[str]]:
    """Return the split that the path of each file below a folder says, and what is to be said of them.

    That is the split in the name of the file, else in that of the folder which is next to it. Names that are plain are
    taken at their word; others only where `train` is among them, and with it another split, or no file without one.
    """
    said = [_said(name) for name in names]
    splits = {each.split for each in said if each.split}
    without = [name for name, each in zip(names, said, strict=True) if each.split is None]
    several = [name for name in without if len(splits_said(name)) > 1]
    is_taken = "train" in splits and (len(splits) > 1 or not without)
    found = [each.split if each.is_plain or is_taken else None for each in said]
    examples = {split: name for name, split in reversed([*zip(names, found, strict=True)]) if split is not None}
    notices = []
    if any(split and not each.is_clear for split, each in zip(found, said, strict=True)):
        shown = [f"{examples[split]} as {split}" for split in dict.fromkeys(found) if split]
        notices.append(f"splits from the names of the files: {some(shown, 6)}")
    if left := [name for name, each, split in zip(names, said, found, strict=True) if each.split and not split]:
        why = f"{without[0]} says none" if without and "train" in splits else "none says train"
        notices.append(
            f"splits in the names of {count(left, 'file')} ({some(left)}) are not taken, since {why}: to have them "
            "begin each name with train, val or test"
        )
    if examples and "train" not in examples:
        notices.append(f"no file's name says train, but only {some(list(examples))}")
    if without and (examples or several):
        shown = without if examples else several
        notices.append(
            f"the pictures in {count(shown, 'file')} ({some(shown)}) are in no split: the name says none, or several"
        )
    return found, notices


def _said(name: str) -> _Said:
    *folders, file = name.split("/")
    path = PurePosixPath(file)
    numbered = _NUMBERED.sub("", path.stem)
    is_of_datasets = numbered != path.stem or path.suffix.lower() == ".arrow"
    # what stands before the last word is what the dataset is called
    if is_of_datasets and (split := exact_split(numbered.rpartition("-")[2])):
        return _Said(split, True, True)
    words = [splits_said(part) for part in (path.stem, *reversed(folders))]
    first = next((found for found in words if found), set())
    if len(first) != 1:
        return _Said(None, False, False)
    (split,) = first
    begins = re.match("[a-z]*", file.lower())
    plain = [SPLIT_NAMES.get(begins[0]) if begins else None, *map(exact_split, reversed(folders))]
    is_plain = split in plain
    return _Said(split, is_plain, is_plain and set().union(*words) == {split})
