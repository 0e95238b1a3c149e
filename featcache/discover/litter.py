"""The name of a file or folder enters; what kind of litter it is, that no dataset means to hold, leaves, or none."""

from __future__ import annotations

import re

_NAMES = {
    *("Thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "$RECYCLE.BIN", "RECYCLER", "FOUND.000"),
    *("System Volume Information", "__MACOSX", "Icon\r", "Network Trash Folder", "Temporary Items", "lost+found"),
    *("@eaDir", "@tmp", "@sharebin", "#recycle", "#snapshot", "@Recycle", "@Recently-Snapshot", "@__thumb"),
    *("Picasa.ini", "ZbThumbnail.info", "__pycache__", ".DS_Store", ".ipynb_checkpoints"),
}
"""What Windows, macOS, Linux, network storages and viewers of pictures leave in folders."""

_KINDS = {name.lower(): name for name in _NAMES}

_PATTERNS = (
    ("._*", re.compile(r"\._")),
    ("hidden", re.compile(r"\.")),
    ("sync conflicts", re.compile(r".*(\.sync-conflict-\d{8}-\d{6}|\([^()]*conflicted copy[^()]*\))", re.IGNORECASE)),
)
"""Names that are told by a part of them: of macOS, of Unix, of Syncthing, Dropbox and Nextcloud."""

_LONGEST = 255
"""No file system here has longer names; others are not looked through."""


def litter(name: str) -> str | None:
    """Return the kind of litter that has this name, or `None`: hidden files are litter too, wherever they are."""
    lower = name.lower()
    found = _KINDS.get(lower)
    if found is None and (name.startswith(".") or "conflict" in lower) and len(name) <= _LONGEST:
        found = next((kind for kind, pattern in _PATTERNS if pattern.match(name)), None)
    return found or ("hidden" if name.startswith(".") else None)


def is_skipped(name: str) -> bool:
    """Tell whether a file or folder of this name is passed over in every folder."""
    return litter(name) is not None
