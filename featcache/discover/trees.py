"""A folder here or elsewhere, or the names in an archive, enter; its sub-folders and files, in order, leave."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol

from featcache.discover.litter import litter

PICTURES = {
    *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "pbm", "pnm"),
    *("jp2", "avif", "heic", "heif", "tga", "ico", "dcm", "dicom"),
}
"""How the names of pictures end."""

_OTHERS = {
    *(
        "txt",
        "csv",
        "tsv",
        "json",
        "jsonl",
        "ndjson",
        "xml",
        "yaml",
        "yml",
        "toml",
        "ini",
        "cfg",
        "lst",
        "log",
        "names",
    ),
    *("md", "rst", "html", "htm", "pdf", "doc", "docx", "xls", "xlsx", "ppt", "pptx", "tex", "rtf", "odt", "ods"),
    *("mat", "npy", "npz", "h5", "hdf5", "pkl", "pickle", "parquet", "arrow", "feather", "db", "sqlite", "tfrec"),
    *("tfrecord", "pt", "pth", "onnx", "safetensors", "py", "ipynb", "m", "r", "sh", "bat", "exe", "dll", "url", "lnk"),
    *("zip", "tar", "tgz", "gz", "bz2", "xz", "zst", "rar", "7z", "mp4", "avi", "mov", "mkv", "webm", "mp3", "wav"),
}
"""How the names of files end which are no pictures."""

_CACHE_TAG = "CACHEDIR.TAG"
"""Marks a folder as a cache by the convention of https://bford.info/cachedir/; ours may lie among the pictures."""

Listing = tuple[list[tuple[str, str]], list[tuple[str, str]]]
"""The sub-folders and the files of a folder: the name and the path of each, sorted by name."""


class Glance(NamedTuple):
    """What is in a folder, without the names of its files."""

    folders: list[tuple[str, str]]
    kind: str | None
    """Whether the files in it are or hold `pictures` by their names, `may` be some, or are all `others`."""


class Tree(Protocol):
    """Folders below a root; hidden files, a system's litter and cache folders are passed over."""

    root: str
    """The path of the root, as `listing` takes it."""

    def listing(self, folder: str) -> Listing:
        """Return what is in a folder; one below the root that cannot be read is a file in itself."""
        ...

    def glance(self, folder: str) -> Glance:
        """Return what is in a folder, remembered from the first time."""
        ...

    @property
    def skipped(self) -> dict[str, int]:
        """How many files and folders of each kind of litter were passed over."""
        ...

    def name(self, address: str) -> str:
        """Return the path of a file below the root that the tree was made with, with slashes."""
        ...

    def folder_name(self, folder: str) -> str:
        """Return the path of a folder below that root, with slashes."""
        ...

    def files(self, folder: str) -> Iterator[str]:
        """Yield the addresses of all files below a folder."""
        ...


def looks_like_picture(name: str) -> bool:
    """Tell whether the name of a file ends as those of pictures do."""
    return name.rpartition(".")[2].lower() in PICTURES


def may_be_picture(name: str) -> bool:
    """Tell whether a file may be a picture by its name: it ends as none, or not as what is no picture."""
    return name.rpartition(".")[2].lower() not in _OTHERS or "." not in name


def _glance(listing: Listing) -> Glance:
    folders, files = listing
    kind = None
    for name, _ in files:
        if looks_like_picture(name):
            return Glance(folders, "pictures")
        kind = "may" if kind == "may" or may_be_picture(name) else "others"
    return Glance(folders, kind)


class LocalTree:
    """A folder on this computer, links followed; a link that loops counts as a file, unreadable."""

    def __init__(self, root: str) -> None:
        self.root = self._top = root
        self._litter: dict[str, str] = {}
        self._glances: dict[str, Glance] = {}
        self._identities: dict[str, tuple[int, int]] = {}

    @property
    def skipped(self) -> dict[str, int]:
        """How many files and folders of each kind of litter were passed over."""
        return dict(sorted(Counter(self._litter.values()).items()))

    def listing(self, folder: str) -> Listing:
        """Return what is in a folder; one below the root that cannot be read is a file in itself."""
        try:
            return self._listing(folder)
        except OSError as error:
            if folder == self._top or error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                raise  # not the folder's fault
            return [], [(os.path.basename(folder), folder)]  # noqa: PTH119

    def glance(self, folder: str) -> Glance:
        """Return what is in a folder, remembered from the first time."""
        if folder not in self._glances:
            self._glances[folder] = _glance(self.listing(folder))
        return self._glances[folder]

    def name(self, address: str) -> str:
        """Return the path of a file below the root that the tree was made with, with slashes."""
        inside = address.removeprefix(self._top.rstrip("/") + "/")
        return inside if inside != address else os.path.relpath(address, self._top)

    def folder_name(self, folder: str) -> str:
        """Return the path of a folder below that root, with slashes."""
        return self.name(folder)

    def _listing(self, folder: str) -> Listing:
        folders, files = [], []
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda e: e.name):
                if (kind := litter(entry.name)) is not None:
                    self._litter[entry.path] = kind
                    continue
                # entry.is_dir() raises for a link that points at itself.
                is_folder = os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()  # noqa: PTH112
                if not is_folder or self._is_loop(entry.path):
                    files.append((entry.name, entry.path))
                elif not os.path.exists(os.path.join(entry.path, _CACHE_TAG)):
                    folders.append((entry.name, entry.path))
        return folders, files

    def files(self, folder: str) -> Iterator[str]:
        """Yield the paths of all files below a folder."""
        folders, files = self.listing(folder)
        for _, path in files:
            yield path
        for _, path in folders:
            yield from self.files(path)

    def _is_loop(self, path: str) -> bool:
        """Tell whether a folder is one of those that it lies in, as a link makes it."""
        try:
            here, above = _identity(path), path
            while len(above) > len(self._top):
                above = os.path.dirname(above)  # noqa: PTH120
                if above not in self._identities:
                    self._identities[above] = _identity(above)
                if self._identities[above] == here:
                    return True
        except OSError:  # which its listing meets, too
            pass
        return False


class _Folder:
    def __init__(self) -> None:
        self.folders: dict[str, _Folder] = {}
        self.files: dict[str, str] = {}


class NamesTree:
    """The folders that names with slashes make; the address of a file is `before + name + after`.

    Where the names are not those that the files have, a mapping gives these.
    """

    def __init__(self, names: Iterable[str] | Mapping[str, str], before: str, after: str = "") -> None:
        self.root = ""
        self._before, self._after = before, after
        self._top = _Folder()
        self._litter: dict[str, str] = {}
        own = names if isinstance(names, Mapping) else {}
        self._meant = {name: meant for meant, name in own.items() if name != meant}
        for name in names:
            *above, last = name.split("/")
            if "" in (*above, last):
                continue
            kinds = [litter(part) for part in (*above, last)]
            at = next((at for at, kind in enumerate(kinds) if kind is not None), None)
            if at is not None:
                self._litter["/".join([*above, last][: at + 1])] = str(kinds[at])
                continue
            folder = self._top
            for part in above:
                folder = folder.folders.setdefault(part, _Folder())
            folder.files[last] = own.get(name, name)

    @property
    def skipped(self) -> dict[str, int]:
        """How many files and folders of each kind of litter were passed over."""
        return dict(sorted(Counter(self._litter.values()).items()))

    def name(self, address: str) -> str:
        """Return the path of a file below the root that the tree was made with, with slashes."""
        name = address[len(self._before) : len(address) - len(self._after)]
        return self._meant.get(name, name)

    def folder_name(self, folder: str) -> str:
        """Return the path of a folder below the root, which is how it is called here."""
        return folder

    def glance(self, folder: str) -> Glance:
        """Return what is in a folder."""
        return _glance(self.listing(folder))

    def listing(self, folder: str) -> Listing:
        """Return what is in a folder."""
        found, inside = self._top, folder + "/" if folder else ""
        for part in filter(None, folder.split("/")):
            found = found.folders[part]
        folders = [(name, inside + name) for name in sorted(found.folders)]
        return folders, [(name, f"{self._before}{found.files[name]}{self._after}") for name in sorted(found.files)]

    def files(self, folder: str) -> Iterator[str]:
        """Yield the addresses of all files below a folder."""
        folders, files = self.listing(folder)
        for _, address in files:
            yield address
        for _, path in folders:
            yield from self.files(path)


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino
