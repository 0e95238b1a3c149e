"""A record of what code asks of the file system below a folder, and the states that a power loss may leave of it."""

from __future__ import annotations

import builtins
import io
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

Tree = dict[str, tuple[int, bytes | None]]
"""Path below the root -> number of the file or folder, and the content of a file; two names may share a file."""

_os_open, _os_write, _os_fsync, _os_rename = os.open, os.write, os.fsync, os.rename
_os_link, _os_unlink, _os_mkdir, _io_open = os.link, os.unlink, os.mkdir, io.open

UNKNOWN = ("pwrite", "writev", "pwritev", "truncate", "ftruncate", "sendfile", "splice", "symlink", "rmdir", "sync")
"""Calls that change files and that the model does not know: recording stops loudly at one of them."""


class Killed(BaseException):
    """The recorded process is gone: it asks nothing more of the system, and cleans nothing up."""


@dataclass(frozen=True)
class Operation:
    """One request that succeeded; `node` numbers the file or folder, `folder` and `name` say where its name is."""

    kind: Literal["create", "mkdir", "write", "truncate", "sync", "rename", "link", "unlink", "nothing"]
    node: int
    folder: int = 0
    name: str = ""
    new_name: str = ""
    offset: int = 0
    data: bytes = b""


class Recorder:
    """Carries out and keeps every request for a change below `root`, which is node 0 and empty at first.

    With `dies_after` set, the process counts as killed once it has made that many requests.
    """

    def __init__(self, root: Path) -> None:
        self.root = str(root.absolute())
        self.operations: list[Operation] = []
        self.dies_after: int | None = None
        self._nodes = {os.stat(root).st_ino: 0}

    @contextmanager
    def recording(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("open", "write", "fsync", "rename", "link", "unlink", "mkdir"):
                patch.setattr(os, name, getattr(self, f"_{name}"))
            patch.setattr(os, "replace", self._rename)
            patch.setattr(os, "remove", self._unlink)
            patch.setattr(os, "fdatasync", self._fsync, raising=False)
            patch.setattr(io, "open", self._buffered)
            patch.setattr(builtins, "open", self._buffered)
            for name in UNKNOWN:
                patch.setattr(os, name, _refuse, raising=False)
            yield

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        place = self._place(path)
        if place is None:
            return _os_open(path, flags, mode, dir_fd=dir_fd)
        creates = bool(flags & os.O_CREAT) and not os.path.lexists(path)
        truncates = bool(flags & os.O_TRUNC) and not creates
        if creates or truncates:
            self._live()
        descriptor = _os_open(path, flags, mode)
        status = os.fstat(descriptor)
        if creates:
            self._note("create", self._number(status), *place)
        elif truncates:
            self._note("truncate", self._nodes[status.st_ino])
        return descriptor

    def _write(self, descriptor: int, data: Any) -> int:
        node = self._nodes.get(os.fstat(descriptor).st_ino)
        if node is None:
            return _os_write(descriptor, data)
        self._live()
        written = _os_write(descriptor, data)
        offset = os.lseek(descriptor, 0, os.SEEK_CUR) - written
        self._note("write", node, offset=offset, data=bytes(data)[:written])
        return written

    def _fsync(self, descriptor: int) -> None:
        node = self._nodes.get(os.fstat(descriptor).st_ino)
        if node is not None:
            self._live()
        _os_fsync(descriptor)
        if node is not None:
            self._note("sync", node)

    def _rename(self, source: Any, target: Any) -> None:
        self._two_names("rename", _os_rename, source, target)

    def _link(self, source: Any, target: Any) -> None:
        self._two_names("link", _os_link, source, target)

    def _two_names(
        self, kind: Literal["rename", "link"], call: Callable[[Any, Any], None], source: Any, target: Any
    ) -> None:
        old, new = self._place(source), self._place(target)
        if old is None and new is None:
            call(source, target)
            return
        assert old is not None
        assert new is not None
        assert old[0] == new[0], "the model knows renames and links within one folder only"
        self._live()
        node = self._nodes[os.lstat(source).st_ino]
        call(source, target)
        self._note(kind, node, *old, new[1])

    def _unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        if dir_fd is not None:
            path = Path(os.readlink(f"/proc/self/fd/{dir_fd}"), os.fsdecode(path))  # noqa: PTH115
        place = self._place(path)
        if place is None:
            _os_unlink(path)
            return
        self._live()
        node = self._nodes[os.lstat(path).st_ino]
        _os_unlink(path)
        self._note("unlink", node, *place)

    def _mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        place = self._place(path)
        if place is None:
            _os_mkdir(path, mode, dir_fd=dir_fd)
            return
        self._live()
        _os_mkdir(path, mode)
        self._note("mkdir", self._number(os.stat(path)), *place)

    def _buffered(self, file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **named: Any) -> Any:
        if isinstance(file, int) or not set(mode) & set("wax+") or self._place(file) is None:
            return _io_open(file, mode, buffering, *rest, **named)
        raw = _RecordedFile(file, mode.replace("b", "").replace("t", ""), opener=os.open)
        binary = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return binary if "b" in mode else io.TextIOWrapper(binary, *rest, **named)

    def _place(self, path: Any) -> tuple[int, str] | None:
        """Return the number of the folder that holds `path`, and its name there; `None` outside the root."""
        absolute = str(Path(os.fsdecode(path)).absolute())
        if not absolute.startswith(self.root + os.sep):
            return None
        folder, name = os.path.split(absolute)
        return self._nodes[os.stat(folder).st_ino], name

    def _number(self, status: os.stat_result) -> int:
        """Number a new file or folder; the system may give the inode of one that is gone to the next."""
        node = 1 + sum(operation.kind in ("create", "mkdir") for operation in self.operations)
        self._nodes[status.st_ino] = node
        return node

    def _live(self) -> None:
        if self.dies_after is not None and len(self.operations) >= self.dies_after:
            raise Killed

    def _note(self, *fields: Any, **named: Any) -> None:
        self.operations.append(Operation(*fields, **named))


class _RecordedFile(io.FileIO):
    """A file opened with `open`, whose writes go through `os.write`."""

    def write(self, data: Any) -> int:
        return os.write(self.fileno(), data)


def _refuse(*_: object, **__: object) -> None:
    raise AssertionError("the model of the file system does not know this call: teach it")


@dataclass
class File:
    """The content that a power loss cannot touch, and the content that every process sees."""

    durable: bytes = b""
    current: bytes = b""


@dataclass
class Folder:
    """Names that a power loss cannot touch, names that every process sees, and the changes between the two."""

    durable: dict[str, int] = field(default_factory=dict)
    current: dict[str, int] = field(default_factory=dict)
    pending: list[Operation] = field(default_factory=list)


@dataclass(frozen=True)
class Fate:
    """Decides for one power loss which unsynced changes of names reach the disk, and what of unsynced data does."""

    keeps: Callable[[], bool]
    content: Callable[[File], bytes]


EVERYTHING = Fate(lambda: True, lambda file: file.current)
NOTHING = Fate(lambda: False, lambda file: file.durable)
NAMES_ONLY = Fate(lambda: True, lambda file: file.durable)
DATA_ONLY = Fate(lambda: False, lambda file: file.current)
EXTREMES = (NOTHING, EVERYTHING, NAMES_ONLY, DATA_ONLY)


def random_fate(chance: random.Random) -> Fate:
    """Keep any of the changes of names; leave data whole, missing, cut at a byte or torn at its blocks."""
    share = chance.choice((0.2, 0.5, 0.8, 1.0))

    def content(file: File) -> bytes:
        if file.durable == file.current:
            return file.current
        whole = len(file.current)
        kind = chance.choice(("old", "new", "empty", "cut", "torn"))
        if kind == "torn":
            size = chance.choice((512, 4096))
            old = file.durable[:whole].ljust(whole, b"\0")
            blocks = (chance.choice((old, file.current))[at : at + size] for at in range(0, whole, size))
            return b"".join(blocks)
        cut = file.current[: chance.randint(0, whole)]
        return {"old": file.durable, "new": file.current, "empty": b"", "cut": cut}[kind]

    return Fate(lambda: chance.random() < share, content)


class Disk:
    """Operations enter; any state that a power loss may leave comes out.

    Synced data and names in synced folders are safe; of all else any part may be there, in any combination.
    """

    def __init__(self) -> None:
        self._files: dict[int, File] = {}
        self._folders = {0: Folder()}

    def apply(self, operation: Operation) -> None:
        node = operation.node
        if operation.kind == "nothing":
            return
        if operation.kind == "write":
            file, end = self._files[node], operation.offset + len(operation.data)
            start = file.current[: operation.offset].ljust(operation.offset, b"\0")
            file.current = start + operation.data + file.current[end:]
        elif operation.kind == "truncate":
            self._files[node].current = b""
        elif operation.kind == "sync" and node in self._files:
            self._files[node].durable = self._files[node].current
        elif operation.kind == "sync":
            folder = self._folders[node]
            folder.durable, folder.pending = dict(folder.current), []
        else:
            if operation.kind == "create":
                self._files[node] = File()
            elif operation.kind == "mkdir":
                self._folders[node] = Folder()
            folder = self._folders[operation.folder]
            folder.pending.append(operation)
            _rename_in(folder.current, operation, EVERYTHING)

    def left(self, fate: Fate) -> Tree:
        """Return what is on the disk after a power loss now."""
        tree: Tree = {}
        contents: dict[int, bytes] = {}

        def walk(node: int, above: str) -> None:
            entries = dict(self._folders[node].durable)
            for operation in self._folders[node].pending:
                if fate.keeps():
                    _rename_in(entries, operation, fate)
            for name, child in sorted(entries.items()):
                if child in self._folders:
                    tree[above + name] = child, None
                    walk(child, f"{above}{name}/")
                else:
                    if child not in contents:
                        contents[child] = fate.content(self._files[child])
                    tree[above + name] = child, contents[child]

        walk(0, "")
        return tree


def _rename_in(entries: dict[str, int], operation: Operation, fate: Fate) -> None:
    """Carry out one change of names; of a rename the new name is there, and the old one may be too."""
    if operation.kind in ("rename", "link"):
        entries[operation.new_name] = operation.node
    elif operation.kind in ("create", "mkdir"):
        entries[operation.name] = operation.node
    goes = operation.kind == "unlink" or (operation.kind == "rename" and fate.keeps())
    if goes and entries.get(operation.name) == operation.node:
        del entries[operation.name]


def build(tree: Tree, root: Path) -> None:
    """Make a state as a real folder."""
    root.mkdir()
    first: dict[int, Path] = {}
    for name, (node, content) in tree.items():
        if content is None:
            (root / name).mkdir()
        elif node in first:
            os.link(first[node], root / name)
        else:
            (root / name).write_bytes(content)
            first[node] = root / name
