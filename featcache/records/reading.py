"""What a user says of pictures that do not say it themselves enters; one record, and a text of it in specs, leaves."""

from __future__ import annotations

import math
from dataclasses import dataclass

from featcache.errors import UsageError

PERCENTILE, DTYPE = "percentile", "dtype"
ALL = "all"
PERCENTILES = (0.5, 99.5)
"""What is black and white with `percentile`, of all numbers of a picture, in percent."""


@dataclass(frozen=True)
class Reading:
    """How TIFF and DICOM files are read where they leave it open.

    `range` says which numbers are black and white, of samples of more than 8 bits (of 16-bit grey PNG files and their
    like, and of grey DICOM, too): two numbers, `percentile` (0.5 and 99.5 % of each picture) or `dtype` (all that the
    type holds, of floats 0 to 1). `channels`, one or three from 0 on, are grey, or red, green and blue. `page` counts
    full pages from 1; with `all` a file's vector is the mean of those of its pages. Where channels that are asked for
    are pages, those of one depth and time are one page.
    """

    range: tuple[float, float] | str | None = None
    channels: tuple[int, ...] = ()
    page: int | str = 1

    def __post_init__(self) -> None:
        """Raise `UsageError` for what makes no sense."""
        if isinstance(self.range, tuple):
            low, high = self.range
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise UsageError(f"a range from {low} to {high} is none: give the smaller number first")
        elif self.range not in (None, PERCENTILE, DTYPE):
            raise UsageError(f"a range {self.range!r} is not known: give MIN,MAX, {PERCENTILE} or {DTYPE}")
        if len(self.channels) not in (0, 1, 3) or min(self.channels, default=0) < 0:
            raise UsageError(f"channels {self.channels} are not one or three, counted from 0")
        if isinstance(self.page, str):
            if self.page != ALL:
                raise UsageError(f"there is no page {self.page!r}: give first, a number from 1, or {ALL}")
        elif self.page < 1:
            raise UsageError(f"there is no page {self.page}: they are counted from 1")

    @property
    def first(self) -> int:
        """The page that is looked at where one is enough."""
        return self.page if isinstance(self.page, int) else 1

    @property
    def limits(self) -> str:
        """The range as it is given to `--range`, to the last digit; empty where there is none."""
        return self.range if isinstance(self.range, str) else ",".join(f"{value:.17g}" for value in self.range or ())

    @property
    def text(self) -> str | None:
        """What stands in a spec of features, `None` where nothing is said."""
        parts = [f"range {self.limits}"] * bool(self.limits)
        parts += [f"channels {','.join(map(str, self.channels))}"] * bool(self.channels)
        parts += [f"page {self.page}"] * (self.page != 1)
        return "; ".join(parts) or None

    @classmethod
    def of(cls, text: str | None) -> Reading:
        """Return the record of a text; raises `UsageError` for other texts."""
        try:
            said = dict(part.split(" ", 1) for part in text.split("; ")) if text else {}
            named = said.pop("range", None)
            limits = named if named is None or "," not in named else _two(named)
            channels = tuple(int(number) for number in said.pop("channels", "").split(",") if number)
            page: int | str = said.pop("page", "1")
            page = page if page == ALL else int(page)
        except ValueError as error:
            raise UsageError(f"{text!r} does not say how to read pictures: numbers are wanted") from error
        if said:
            raise UsageError(f"{text!r} does not say how to read pictures: they have a range, channels and a page")
        return cls(limits, channels, page)


def _two(text: str) -> tuple[float, float]:
    low, high = text.split(",")
    return float(low), float(high)
