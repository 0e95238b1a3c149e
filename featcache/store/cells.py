"""A few plain values enter under a digest of all that decides them; they leave when asked for again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featcache.store.files import read_json, write_atomic


class Cells:
    """Small files `<digest>.json`, such as finished cells of grids: an interrupted one goes on where it stopped."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, digest: str) -> dict[str, Any] | None:
        """Return what is kept, or `None` where there is nothing that can be read."""
        try:
            return read_json(self._path(digest))
        except (OSError, ValueError):
            return None

    def put(self, digest: str, result: Mapping[str, Any]) -> None:
        """Keep values, whole or not at all."""
        write_atomic(self._path(digest), json.dumps(result).encode())

    def _path(self, digest: str) -> Path:
        return self._folder / f"{digest}.json"
