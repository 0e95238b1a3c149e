"""The split made for a dataset enters and is kept; the same split leaves at every later experiment."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from featcache.errors import CacheError
from featcache.store.files import dataset_name, denied, read_json, write_atomic


class Splits:
    """The splits made by featcache, `splits/<dataset>-<seed>.json`; scores compare only as long as they stay."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def kept(self, root: str, seed: int) -> dict[bytes, str]:
        """Return the split made for a dataset with this seed, content key -> name; raises `CacheError`."""
        path = self._path(root, seed)
        try:
            splits = read_json(path)["splits"]
            return {bytes.fromhex(key): str(name) for name, keys in splits.items() for key in keys}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if (said := denied(path)) is not None:
                raise CacheError(said) from error
            raise CacheError(
                f"{path} cannot be read as a split ({error}): restore it, or remove it, and the next fit makes a new "
                "split; its scores do not compare with those before"
            ) from error

    def keep(self, root: str, seed: int, made: Mapping[bytes, str]) -> None:
        """Keep a split, beside what is kept already of this dataset and seed."""
        if not made:
            return
        names: dict[str, list[str]] = {}
        for key, name in sorted({**self.kept(root, seed), **made}.items()):
            names.setdefault(name, []).append(key.hex())
        content = {"root": root, "seed": seed, "splits": names}
        write_atomic(self._path(root, seed), json.dumps(content, indent=1).encode())

    def _path(self, root: str, seed: int) -> Path:
        return self._folder / f"{dataset_name(root)}-{seed}.json"
