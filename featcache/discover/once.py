"""Pictures that several lists or datasets name enter; each once leaves, or what contradicts itself is refused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from featcache.errors import DatasetError
from featcache.records import Item


def each_once(root: str, placed: Iterable[tuple[str, Item]]) -> Iterator[Item]:
    """Yield the pictures, each with the name of where it stands, once; raises `DatasetError` for a contradiction."""
    known: dict[str, tuple[str, Item]] = {}
    for place, item in placed:
        where, first = known.setdefault(item.path, (place, item))
        if first is item:
            yield item
        elif first != item:
            before, now = (f"{each.label or 'no label'}, {each.split or 'no split'}" for each in (first, item))
            raise DatasetError(
                f"{root}: {item.path} stands in {where} and in {place} with another label or split ({before}; there "
                f"{now}): keep one of them, since a picture has one label"
            )
