"""The result of one small experiment enters under a digest of all that decides it; it leaves when asked for again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featcache.store.files import write_atomic


class Cells:
    """Finished cells of grids, `cells/<digest>.json`: an interrupted grid goes on where it stopped."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, digest: str) -> dict[str, Any] | None:
        """Return a kept result, or `None` where there is none that can be read."""
        try:
            found = json.loads(self._path(digest).read_bytes())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def put(self, digest: str, result: Mapping[str, Any]) -> None:
        """Keep a result, whole or not at all."""
        write_atomic(self._path(digest), json.dumps(result).encode())

    def _path(self, digest: str) -> Path:
        return self._folder / f"{digest}.json"
