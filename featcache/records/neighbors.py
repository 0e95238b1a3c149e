"""Values of the run enter; the frozen records of the pictures most like one picture leave."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NeighborRow:
    """One picture of a dataset, and the cosine of its vector and that of the picture asked for, from -1 to 1.

    The nearest has `rank` 1. A `copy` is another file with the very same bytes.
    """

    rank: int
    path: str
    label: str
    split: str
    similarity: float
    copy: bool


@dataclass(frozen=True)
class NeighborsSummary:
    """The pictures of one dataset most like `picture`, the most like first; `pictures` is how many there are.

    Each of them was compared, but for those that `index` left out: what it is, and how far it was looked through.
    """

    picture: str
    dataset: str
    backbone: str
    weights: str
    fingerprint: str
    pictures: int
    seconds: float
    rows: tuple[NeighborRow, ...]
    notices: tuple[str, ...] = ()
    index: str | None = None
    extracted: str = ""
