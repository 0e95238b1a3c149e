"""What a picture looks like at a glance enters; what is wrong with it, if anything, leaves."""

from __future__ import annotations

from collections.abc import Iterator

from featcache.records import Look

FLAT = 0.9
UNUSUAL = -1.5
"""Most of it one colour, and below this typicality in its class: a stand-in for a picture rather than one."""

TINY = 64
LONG = 4.0

CUTS = {
    "blank": "one colour covers all of it",
    "placeholder": f"one colour covers {FLAT:.0%} or more, and it is unlike its class (typicality below {UNUSUAL:g})",
    "tiny": f"the shorter edge has fewer than {TINY} pixels",
    "shape": f"one edge is {LONG:g} times the other or more, so that the network sees a quarter of it at most",
}
"""What each kind is named by."""


def problems(look: Look, typicality: float) -> Iterator[tuple[str, float, str]]:
    """Yield kind, value and reason for what is wrong with a picture of this typicality in its class."""
    if look.flat == 1:
        yield "blank", look.flat, "all of it is one colour"
    elif look.flat >= FLAT and typicality < UNUSUAL:
        reason = f"{look.flat:.0%} of it is one colour, and it is unlike its class (typicality {typicality:.1f})"
        yield "placeholder", look.flat, reason
    size = f"{look.width:,} x {look.height:,} pixels"
    short, long = sorted((look.width, look.height))
    if short < TINY:
        yield "tiny", float(short), size
    if long >= LONG * short:
        yield "shape", long / short, size
