"""A few plain values enter under a digest of all that decides them; they leave when asked for again."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featcache.store.files import checksum, read_json, write_atomic

_SUM = "checksum"
"""The key of the checksum over all others; old files have none."""

_logger = logging.getLogger(__name__)


class Cells:
    """Small files `<digest>.json`, such as finished cells of grids: an interrupted one goes on where it stopped."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, digest: str) -> dict[str, Any] | None:
        """Return what is kept, or `None` where there is nothing, or nothing that can be believed."""
        path = self._path(digest)
        try:
            content = read_json(path)
            if content.pop(_SUM, None) in (None, checksum(content)):
                return content
            said = "its checksum does not match"
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            said = str(error)
        _logger.warning("%s is made anew: %s", path, said)
        return None

    def put(self, digest: str, result: Mapping[str, Any]) -> None:
        """Keep values, whole or not at all."""
        content = json.loads(json.dumps(result))
        write_atomic(self._path(digest), json.dumps({**content, _SUM: checksum(content)}).encode())

    def _path(self, digest: str) -> Path:
        return self._folder / f"{digest}.json"
