"""A dataset without splits enters; a manifest, or a folder of links, with splits by class and content leaves."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from featcache.api.outputs import refuse_cache, write
from featcache.api.threads import in_threads
from featcache.decode import decode
from featcache.discover import discover, is_skipped
from featcache.discover.labels import Labels
from featcache.errors import DatasetError, OutputError, PictureError, UsageError, refusal
from featcache.records import Dataset, Failure, Item, Preprocess, Progress, Source, SplitSummary
from featcache.records.reading import Reading
from featcache.sheets import csv_text
from featcache.sources import read
from featcache.sources.addresses import is_remote, name_of, scheme
from featcache.splits import check_seed, check_sizes, divide
from featcache.values import taking_typed

SHOWN_CONTRADICTIONS = 3

# Whether a picture can be decoded does not depend on what it is resized to, and this is the least work.
_ONE_PIXEL = Preprocess(1, 1, "nearest", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "squash")

Rows = Sequence[tuple[Item, str]]


@taking_typed
def split(
    source: Source,
    test: float = 0.2,
    val: float = 0.0,
    seed: int = 0,
    out: str | Path | None = None,
    links: str | Path | None = None,
    progress: Progress | None = None,
    columns: Mapping[str, str] | None = None,
    label_from: str | None = None,
    names_encoding: str | None = None,
    reading: str | None = None,
) -> SplitSummary:
    """Split the pictures of `source` into train, test and, where `val` is above 0, val: by class, and by content.

    `source` is a folder `class/*`, or anything else that `discover` finds labels in and no splits; `columns`,
    `label_from` and `names_encoding` as there, `reading` (the text of a `records.reading.Reading`) as in `Options`.
    All files of one content are in one split, and their names and order do not matter. The splits are written to the
    manifest `out`, in the current folder `<name of source>-split.csv`, or laid out as links in the new folder `links`.
    `progress` is called for every file. Raises `UsageError`, `DatasetError` and `OutputError`.
    """
    check_seed(seed)
    Reading.of(reading)
    if not (test > 0 and val >= 0 and test + val < 1):
        raise UsageError(
            f"nothing can be split with test {test:g} and val {val:g}: test must be above 0, val 0 or more, "
            "and both together below 1"
        )
    if out and links:
        raise UsageError(f"both the manifest {out} and the links {links} are asked for: name one of them")
    dataset = discover(source, columns=columns, label_from=label_from, names_encoding=names_encoding)
    if dataset.access is not None and not is_remote(dataset.root):
        raise DatasetError(f"{dataset.root} is in Python only, and no manifest could name its pictures: split it there")
    labelled = _labelled(dataset)
    root = dataset.root
    target = Path(os.path.abspath(links or out or f"{_stem(root)}-split.csv"))  # noqa: PTH100
    if links:
        _check_links(target, Path(root), labelled)
    else:
        check_manifest(target, _labels(labelled))
    keys, failures = _read_all([item.path for item in labelled], reading, progress)
    if not keys:
        raise DatasetError(f"no readable picture in {root}: {failures[0].reason} ({failures[0].path})")
    items = [item for item in labelled if item.path in keys]
    fractions = {"test": test} | ({"val": val} if val else {})
    names, notices = _divide(items, keys, fractions, seed)
    rows = [(item, names[keys[item.path]]) for item in items]
    if links:
        _write_links(target, rows)
    else:
        write_manifest(target, [(item.path, item.label or "", name) for item, name in rows])
    order = [name for name in ("train", "val", "test") if name in {"train", *fractions}]
    sizes = Counter((item.label or "", name) for item, name in rows)
    return SplitSummary(
        dataset=dataset.root,
        seed=seed,
        fractions=fractions,
        found=len(dataset.items),
        pictures=len(rows),
        duplicates=len(rows) - len(names),
        unreadable=len(failures),
        split_sizes={name: sum(size for (_, its), size in sizes.items() if its == name) for name in order},
        classes={label: {name: sizes[label, name] for name in order} for label in _labels(items)},
        manifest=None if links else str(target),
        links=str(target) if links else None,
        failures=tuple(failures),
        notices=(*dataset.notices, *_left_out(dataset, labelled, items), *notices),
    )


def _stem(root: str) -> str:
    name = name_of(root)
    return name if os.path.isdir(root) or is_remote(root) else Path(name).stem  # noqa: PTH112


def _labels(items: Sequence[Item]) -> list[str]:
    return sorted({item.label for item in items if item.label})


def _labelled(dataset: Dataset) -> list[Item]:
    splits = Counter(item.split for item in dataset.items if item.split)
    if splits:
        found = ", ".join(f"{name} {size:,}" for name, size in splits.items())
        raise DatasetError(
            f"{dataset.root} has splits already ({found}): extract it as it is, or list its pictures in a CSV manifest "
            "with the columns path,label to split them anew"
        )
    items = [item for item in dataset.items if item.label]
    if not items:
        raise DatasetError(
            f"the pictures of {dataset.root} have no labels: sort them into one folder a class, or use a CSV manifest"
        )
    check_sizes(Counter(_labels(items)), 1, "")
    return items


def _left_out(dataset: Dataset, labelled: Sequence[Item], items: Sequence[Item]) -> list[str]:
    without = len(dataset.items) - len(labelled)
    lost = sorted(set(_labels(labelled)) - set(_labels(items)))
    return [f"{without:,} pictures without a label left out"] * bool(without) + [
        f"class {label!r} left out: it has no readable picture" for label in lost
    ]


def _read_all(
    paths: Sequence[str], reading: str | None, progress: Progress | None
) -> tuple[dict[str, bytes], list[Failure]]:
    """Return the content key of each picture by its path, and the files that are none."""
    keys: dict[str, bytes] = {}
    failures: list[Failure] = []
    for path, found in zip(paths, in_threads(lambda path: _read(path, reading), paths, "split", progress), strict=True):
        if isinstance(found, bytes):
            keys[path] = found
        else:
            failures.append(Failure(path, str(found)))
    return keys, failures


def _read(path: str, reading: str | None) -> bytes | PictureError:
    try:
        data, key, _ = read(path)
        decode(data, _ONE_PIXEL, reading=reading)
    except PictureError as error:
        return error
    return key


def _divide(
    items: Sequence[Item], keys: dict[str, bytes], fractions: dict[str, float], seed: int
) -> tuple[dict[bytes, str], list[str]]:
    """Return the split of each content, for which the first of its labels counts, and what to say of the others."""
    places: dict[bytes, dict[str, str]] = {}
    for item in items:
        places.setdefault(keys[item.path], {}).setdefault(item.label or "", item.path)
    label_of = {key: min(labels) for key, labels in places.items()}
    sizes = Counter(label_of.values())
    check_sizes(
        {label: sizes[label] for label in _labels(items)},
        1 + len(fractions),
        f"{', '.join(['train', *fractions])} need one each, and copies count once, also those under another label; "
        "add pictures, take the class out, or ask for fewer splits",
    )
    torn = [labels for labels in places.values() if len(labels) > 1]
    notices = []
    if torn:
        named = ["; ".join(f"{label}: {path}" for label, path in labels.items()) for labels in torn]
        more = f" (and {len(torn) - SHOWN_CONTRADICTIONS:,} more)" if len(torn) > SHOWN_CONTRADICTIONS else ""
        notices.append(
            f"{len(torn):,} picture{'' if len(torn) == 1 else 's'} under more than one label, which no head can fit: "
            f"{' | '.join(named[:SHOWN_CONTRADICTIONS])}{more}"
        )
    return divide(label_of, fractions, seed, {}), notices


def check_manifest(file: Path, labels: Sequence[str]) -> None:
    """Raise `OutputError` or `DatasetError` where no manifest of this name can be written with these labels."""
    if file.suffix.lower() != ".csv":
        raise OutputError(f"{file} would not be known as a manifest: give it the suffix .csv")
    _check_parent(file)
    for label in labels:
        if label != label.strip():
            raise DatasetError(
                f"class {label!r} begins or ends with white space, which a manifest does not keep: rename it, "
                "or make links instead of a manifest"
            )
    found = Labels()
    for label in labels:
        if found.read(label, f"{file.name}, class {label!r}") != label:
            raise DatasetError(f"class {label!r} would be read as another from a manifest: rename it, or make links")
    found.notices()


def write_manifest(file: Path, rows: Sequence[tuple[str, str, str]]) -> None:
    """Write path, label and split of pictures to a new CSV, or leave one that is the same; raises `OutputError`."""
    file = Path(os.path.abspath(file))  # noqa: PTH100 - as datasets are named
    below = f"{file.parent}{os.sep}"
    text = csv_text(["path", "label", "split"], ((path.removeprefix(below), *rest) for path, *rest in rows))
    content = text.encode(errors="surrogateescape")
    if os.path.lexists(file):
        with suppress(OSError):
            if file.read_bytes() == content:
                return
        raise OutputError(f"{file} is there already, and says something else: remove it, or name another file")
    write(file, content)


def _check_links(folder: Path, root: Path, items: Sequence[Item]) -> None:
    elsewhere = next((item.path for item in items if scheme(item.path) is not None), None)
    if elsewhere is not None:
        raise OutputError(f"{elsewhere} is no file here that a link could lead to: use --out, which writes a manifest")
    if Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(root)):
        raise OutputError(f"{folder} lies in {root}, whose pictures the links would become: name a folder beside it")
    _check_parent(folder)
    try:
        is_used = os.path.lexists(folder) and bool(os.listdir(folder))
    except OSError as error:
        raise OutputError(f"cannot use {folder}: {refusal(error)}: name a new folder with --links") from error
    if is_used:
        raise OutputError(f"{folder} is not empty: name a new folder with --links")
    for label in _labels(items):
        if is_skipped(label) or "/" in label or "\0" in label:
            raise DatasetError(f"class {label!r} cannot be the name of a folder: rename it, or use --out")


def _write_links(folder: Path, rows: Rows) -> None:
    is_new = not folder.exists()
    numbers: Counter[Path] = Counter()
    try:
        for item, name in rows:
            place = folder / name / (item.label or "")
            place.mkdir(parents=True, exist_ok=True)
            called = Path(item.path).name
            _link(item.path, place / (f"_{called}" if is_skipped(called) else called), numbers)
    except BaseException as error:
        for name in {name for _, name in rows}:
            shutil.rmtree(folder / name, ignore_errors=True)
        if is_new:
            with suppress(OSError):
                folder.rmdir()
        if isinstance(error, OSError):
            raise OutputError(f"cannot make links in {folder}: {refusal(error)}: nothing was left there") from error
        raise


def _link(path: str, link: Path, numbers: Counter[Path]) -> None:
    """Make a link, with a number in its name where folders below one class have files of one name."""
    while True:
        numbers[link] += 1
        number = f"-{numbers[link]}" if numbers[link] > 1 else ""
        with suppress(FileExistsError):
            link.with_name(f"{link.stem}{number}{link.suffix}").symlink_to(path)
            return


def _check_parent(path: Path) -> None:
    refuse_cache(path)
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: there is no folder {path.parent}: make it first")
