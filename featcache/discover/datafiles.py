"""The files of a folder enter; those that hold many pictures each, shards or tables, leave with what was left out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from featcache.discover.levels import count, some
from featcache.discover.trees import Tree, looks_like_picture, may_be_picture
from featcache.errors import DatasetError

_KINDS = (".tar", ".parquet", ".arrow")
_OTHER_KINDS = {
    *(".zip", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".rar", ".7z"),
    *(".mat", ".npy", ".npz", ".h5", ".hdf5", ".tfrecord", ".tfrec"),
}
"""What may hold pictures as well, and is not read beside shards or tables."""

_NOTES = {".json", ".jsonl", ".md", ".txt", ".yaml", ".yml", ".idx", ".lock"}
"""What lies beside shards and tables without being told."""

_TEXTS = {
    *("license", "licence", "copying", "notice", "readme", "authors", "contributors", "citation", "changelog"),
    *("changes", "version", "makefile", "dockerfile", "md5sums", "sha256sums", "checksums"),
}
_CHECKSUMS = {".md5", ".sha1", ".sha256", ".sha512", ".crc32"}


class DataFiles(NamedTuple):
    """The files of one kind, `.tar`, `.parquet` or `.arrow`, and what was left out beside them."""

    kind: str | None = None
    files: Sequence[str] = ()
    left_out: Sequence[str] = ()
    notices: Sequence[str] = ()


def data_files(root: str, tree: Tree) -> DataFiles:
    """Return the shards or tables in a folder without pictures; none of one that holds other things.

    Metadata in a table for each shard, as img2dataset writes it, texts and programs are left out, and said. Raises
    `DatasetError` where it is not plain what is data.
    """
    found: dict[str, list[str]] = {}
    others: list[str] = []
    unknown: list[str] = []
    for address in tree.files(tree.root):
        name = tree.name(address)
        path = PurePosixPath(name)
        suffix = path.suffix.lower()
        if looks_like_picture(path.name):
            return DataFiles()
        if suffix in _KINDS or suffix in _OTHER_KINDS:
            found.setdefault(suffix, []).append(address)
        elif suffix in _NOTES:
            continue
        elif may_be_picture(path.name) and path.stem.lower() not in _TEXTS and suffix not in _CHECKSUMS:
            unknown.append(name)
        else:
            others.append(name)
    if not any(kind in found for kind in _KINDS) or len(unknown) > sum(map(len, found.values())):
        return DataFiles()
    stems = {kind: {tree.name(each).rpartition(".")[0] for each in files} for kind, files in found.items()}
    if found.keys() == {".tar", ".parquet"} and stems[".parquet"] <= stems[".tar"]:
        others += [tree.name(each) for each in found.pop(".parquet")]
    first = [tree.name(files[0]) for files in found.values()]
    if len(found) > 1:
        raise DatasetError(
            f"{root} holds files of several kinds that hold pictures, or may ({some(first)}): name one of them as "
            "SOURCE, or a folder of one kind, or move the others away"
        )
    if unknown:
        raise DatasetError(
            f"{root} holds {first[0]}, which holds pictures, and {count(unknown, 'file')} of which the name does not "
            f"tell what it is ({some(unknown)}): move them away, or name what holds the pictures as SOURCE"
        )
    ((kind, files),) = found.items()
    notices = [f"{count(others, 'file')} beside the {kind} files left out: {some(others)}"] if others else []
    return DataFiles(kind, files, others, notices)
