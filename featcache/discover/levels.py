"""A folder enters; the sub-folders with pictures of the dataset leave, apart from those that hold other things."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from featcache.discover.splitwords import exact_split, worded_split
from featcache.discover.trees import Tree, looks_like_picture, may_be_picture

Folders = list[tuple[str, str]]
"""Name and path of each."""

_ARCHIVES = {"zip", "tar", "tgz", "gz", "bz2", "xz", "zst", "rar", "7z"}
_ARRAYS = {"mat", "npy", "npz", "h5", "hdf5", "pkl", "pickle", "pt"}

_PICTURES = {"images", "image", "imgs", "img", "jpegimages", "pictures", "photos", "frames", "jpg", "jpeg", "png"}
_BESIDE = {
    *("annotation", "annotations", "annots", "label", "labels", "mask", "masks", "gt", "groundtruth", "trimaps"),
    *("segmentation", "segmentations", "segmentationclass", "segmentationobject", "segmaps", "imagesets"),
    *("xml", "xmls"),
    *("bbox", "bboxes", "boxes", "boundingboxes", "depth", "depths", "keypoints", "landmarks", "saliency"),
}
"""What folders of pictures are called, and folders beside them with what is drawn or written of each picture."""

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_BEHIND = re.compile(
    r"[ _.-]*(mask|masks|seg|segmentation|gt|groundtruth|label|depth|overlay)(?:[ _.-]?\d+)?$", re.IGNORECASE
)


class Level(NamedTuple):
    """What is in a folder."""

    folders: Folders
    """Sub-folders with files that may be pictures of the dataset."""
    files: Folders
    empty: list[str]
    without: list[str]
    """Sub-folders that hold only files which are no pictures."""
    beside: list[str]
    """Sub-folders that by their names hold masks, labels or the like of the pictures in another."""


def level_of(tree: Tree, folder: str) -> Level:
    """Sort out what is in a folder of a tree."""
    folders, files = tree.listing(folder)
    kinds = {name: _kind(tree, path) for name, path in folders}
    has_files = any(looks_like_picture(name) for name, _ in files)
    beside = _beside([name for name, _ in folders if kinds[name] is not None], kinds, has_files)
    beside = beside or _drawn_of_the_other(tree, [each for each in folders if kinds[each[0]] == "pictures"])
    kept = [name for name, _ in folders if kinds[name] is not None and name not in beside]
    # where nothing looks like a picture, all are taken, and decoding tells
    taken = [name for name in kept if kinds[name] != "others"] or kept
    return Level(
        folders=[(name, path) for name, path in folders if name in set(taken)],
        files=files,
        empty=[name for name, _ in folders if kinds[name] is None],
        without=[name for name in kept if name not in set(taken)],
        beside=beside,
    )


def _drawn_of_the_other(tree: Tree, folders: Folders) -> list[str]:
    """Return which of two folders is called as one for masks, and holds files that are called as those in the other."""
    called = [name for name, _ in folders if is_called_beside(name)]
    if len(folders) != 2 or len(called) != 1:
        return []
    stems = [{stem_drawn_of(name) for name, _ in tree.listing(path)[1]} for _, path in folders]
    return called if stems[0] and stems[0] == stems[1] else []


def holds_files(tree: Tree, folder: str) -> bool:
    """Tell whether there is a file in a folder, or below it."""
    return _kind(tree, folder) is not None


def classes_in(tree: Tree, folder: str) -> list[str]:
    """Return the names of the sub-folders with pictures, but those called `images` or the like."""
    folders = [(name, _kind(tree, path)) for name, path in tree.glance(folder).folders]
    beside = _beside([name for name, kind in folders if kind], dict(folders))
    found = [name for name, kind in folders if kind and name not in beside and not holds_pictures(name)]
    return [name for name in found if dict(folders)[name] != "others"]


def is_called_beside(name: str) -> bool:
    """Tell whether a folder is called as one with masks, labels or the like of the pictures in another."""
    words = [word.lower() for word in _WORD.findall(name)]
    return bool(_BESIDE & {*_words(name), name.lower(), "".join(words)})


def holds_pictures(name: str) -> bool:
    """Tell whether a folder is called like one for pictures of all kinds, `images` or `train_images`."""
    words = _words(name)
    return bool(_PICTURES & {*words, name.lower()}) and _PICTURES.issuperset(words)


def files_of_class(tree: Tree, folder: str, beside: list[str]) -> Iterator[str]:
    """Yield all files below the folder of a class, but those in folders of masks and the like, which are told."""
    above = tree.folder_name(folder).strip("/")
    known: dict[str, bool] = {}
    for address in tree.files(folder):
        parts = tree.name(address).removeprefix(above).strip("/").split("/")[:-1]
        masks = [at for at, part in enumerate(parts) if is_called_beside(part)]
        left_out = False
        for at in masks:
            inner = "/".join(parts[: at + 1])
            if inner not in known:
                known[inner] = parts[at] in _left_out_in(tree, folder, parts[:at])
                beside += [f"{folder.rstrip('/').rpartition('/')[2]}/{inner}"] if known[inner] else []
            left_out = left_out or known[inner]
        if not left_out:
            yield address


def _left_out_in(tree: Tree, folder: str, names: Sequence[str]) -> list[str]:
    """Return the folders for masks and the like in the folder that is reached by these names."""
    for name in names:
        folder = dict(tree.listing(folder)[0]).get(name, folder)
    folders, files = tree.listing(folder)
    return _beside([name for name, _ in folders], {}, any(looks_like_picture(name) for name, _ in files))


def how_to_give(names: Sequence[str]) -> str:
    """Return what to do with files that are no pictures, so that the pictures in them are used."""
    suffixes = {name.rpartition(".")[2].lower() for name in names}
    if suffixes & _ARCHIVES:
        return "name an archive as SOURCE (.zip, .tar), or unpack it"
    if suffixes & _ARRAYS:
        return "arrays are given in Python, as featcache.extract((pictures, labels))"
    return "name a folder of pictures, an archive of one (.zip, .tar), or a list of paths and labels (.csv, .jsonl)"


def drawn_beside(names: Sequence[str]) -> list[str]:
    """Return the files that are called as another one with `_mask` or the like behind it."""
    stems = {name.rpartition(".")[0] for name in names}
    found = ((name, _BEHIND.search(name.rpartition(".")[0])) for name in names)
    return [name for name, match in found if match and name[: match.start()] in stems]


def drawn_notices(names: Sequence[str]) -> Iterator[str]:
    """Yield that files are called as masks of others, and are taken as pictures."""
    if drawn := drawn_beside(names):
        yield (
            f"{count(drawn, 'file')} called as another with _mask or the like behind it, as {drawn[0]}: taken as "
            "pictures too; if they are none, move them away, or list the pictures in a CSV manifest"
        )


def folder_expression(tree: Tree, folder: str, deeper: int = 0) -> str:
    """Return what finds the name of a folder, or of those so much deeper, in paths below SOURCE."""
    above = tree.folder_name(folder).strip("/").count("/") + deeper
    return f"^{'[^/]+/' * above}([^/]+)/"


def stem_drawn_of(path: str) -> str:
    """Return what a file is called without its ending, and without `_mask` or the like behind it."""
    return _BEHIND.sub("", path.rpartition("/")[2].rpartition(".")[0])


def sorted_out(files: Folders) -> tuple[Folders, list[str]]:
    """Return the files that may be pictures, and the names of others; all of them where nothing looks like one."""
    if not has_picture(files):
        return files, []
    kept = [(name, address) for name, address in files if may_be_picture(name)]
    return kept, [name for name, _ in files if not may_be_picture(name)]


def has_picture(files: Iterable[tuple[str, str]]) -> bool:
    """Tell whether one of these files ends as pictures do."""
    return any(looks_like_picture(name) for name, _ in files)


def _kind(tree: Tree, folder: str) -> str | None:
    """Tell whether a folder holds `pictures`, files that `may` be some, only `others`, or nothing."""
    folders, kind = tree.glance(folder)
    if kind == "pictures" or not folders:
        return kind
    for address in tree.files(folder):
        name = tree.name(address).rpartition("/")[2]
        if looks_like_picture(name):
            return "pictures"
        kind = "may" if kind == "may" or may_be_picture(name) else "others"
    return kind


def _beside(names: Sequence[str], kinds: dict[str, str | None], has_files: bool = False) -> list[str]:
    """Return the folders for masks, labels and the like, where pictures lie beside them, or only these hold none.

    The pictures are in a folder that is called like one for them, in splits, or in the same folder (`has_files`).
    """
    found = [name for name in names if is_called_beside(name)]
    splits = {split for name in names if (split := exact_split(name))}
    has_pictures = has_files or len(splits) > 1 or any(holds_pictures(name) for name in names)
    without = [name for name in found if kinds.get(name, "pictures") != "pictures"]
    others = [name for name in names if name not in found and kinds.get(name) == "pictures"]
    return found if has_pictures else without if others else []


def _words(name: str) -> set[str]:
    """Return the words of a name, without those of a split and its fillers."""
    words = {word.lower() for word in _WORD.findall(name)}
    split = worded_split(name)
    return words if split is None else (set(split[1]) or words & _PICTURES)


def be(things: Sequence[object]) -> str:
    """Return `is` or `are`."""
    return "is" if len(things) == 1 else "are"


def count(things: Sequence[object], noun: str, plural: str | None = None) -> str:
    """Return how many things there are, in words."""
    return f"{len(things):,} {noun if len(things) == 1 else plural or noun + 's'}"


def some(names: Sequence[str], most: int = 3) -> str:
    """Return the first few names."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
