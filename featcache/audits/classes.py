"""Labels with the splits of a plan enter; what is to be said of classes that are too small or too unequal, leaves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from featcache.evaluate import wilson

FEW = 10
"""A class with fewer different pictures on one side is small."""

UNEQUAL = 5.0
SHOWN = 5


def notices(fitted: Sequence[str], scored: Sequence[str], scored_name: str) -> Iterator[str]:
    """Yield what to think of, given the label of each different picture that is fitted on and scored."""
    to_train, to_score = Counter(fitted), Counter(scored)
    small = {label: size for label, size in to_train.items() if size < FEW}
    if small:
        yield f"{_classes(small)} fewer than {FEW} pictures to train on: {_sizes(small)}"
    unsure = {label: to_score[label] for label in to_train if to_score[label] < FEW}
    if unsure:
        least = max(min(unsure.values()), 1)
        low, high = wilson(least, least)
        yield (
            f"{_classes(unsure)} fewer than {FEW} pictures in {scored_name}: {_sizes(unsure)}; the recall of a class "
            f"with {least}, all of them right, is known no better than {low:.2f}-{high:.2f}"
        )
    (largest, most), (smallest, least) = to_train.most_common(1)[0], to_train.most_common()[-1]
    if most >= UNEQUAL * least:
        share = to_score[largest] / max(len(scored), 1)
        yield (
            f"unequal classes: {largest!r} has {most:,} pictures to train on, {smallest!r} {least:,}; read balanced "
            f"accuracy, since always saying {largest!r} has an accuracy of {share:.3f} on {scored_name}"
        )


def _classes(sizes: dict[str, int]) -> str:
    return "1 class has" if len(sizes) == 1 else f"{len(sizes):,} classes have"


def _sizes(sizes: dict[str, int]) -> str:
    shown = sorted(sizes.items(), key=lambda pair: (pair[1], pair[0]))[:SHOWN]
    return ", ".join(f"{label} {size}" for label, size in shown) + (" ..." if len(sizes) > SHOWN else "")
