"""Prepared vectors and heads enter; who is taken for whom, and what no head can learn, leave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from featcache.experiments.prepared import Prepared
from featcache.records.experiments import ClassRow, PairRow

UNLEARNABLE = 0.5
"""A class of which no head finds at least this share."""

Codes = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Confusions:
    """The confusion matrix (K, K) of one head, true classes down, predicted ones across, and what follows from it."""

    labels: tuple[str, ...]
    matrix: npt.NDArray[np.intp]
    classes: tuple[ClassRow, ...]
    pairs: tuple[PairRow, ...]


def confusions(data: Prepared, predicted: Mapping[str, Codes], head: str) -> Confusions:
    """Return who `head` takes for whom, with the best recall of each class over all heads in `predicted`."""
    labels, known = tuple(map(str, data.classes)), np.arange(len(data.classes))
    matrix = confusion_matrix(data.truth, predicted[head], labels=known)
    scores = np.stack(
        precision_recall_fscore_support(data.truth, predicted[head], labels=known, zero_division=0)[:3], axis=1
    )
    counts = np.maximum(matrix.sum(1), 1)
    recalls = {
        name: np.diag(confusion_matrix(data.truth, codes, labels=known)) / counts for name, codes in predicted.items()
    }
    trained = np.bincount(data.y, minlength=len(labels))
    rows = []
    for k in np.flatnonzero(matrix.sum(1)):
        missed = matrix[k].copy()
        missed[k] = 0
        best = max(recalls, key=lambda name: float(recalls[name][k]))
        rows.append(
            ClassRow(
                label=labels[k],
                n_train=int(trained[k]),
                n_test=int(matrix[k].sum()),
                precision=float(scores[k, 0]),
                recall=float(scores[k, 1]),
                f1=float(scores[k, 2]),
                confused_with=labels[int(missed.argmax())] if missed.any() else None,
                best_recall=float(recalls[best][k]),
                best_head=best,
                is_unlearnable=bool(recalls[best][k] < UNLEARNABLE),
            )
        )
    rows.sort(key=lambda row: (row.f1, row.label))
    return Confusions(labels, matrix, tuple(rows), tuple(_pairs(matrix, labels)))


def _pairs(matrix: Codes, labels: Sequence[str]) -> list[PairRow]:
    """Return the pairs of classes that are taken for each other at all, the most confused first."""
    both = np.triu(matrix + matrix.T, 1)
    found = []
    for i, j in np.argwhere(both):
        share = both[i, j] / (matrix[i].sum() + matrix[j].sum())
        found.append(PairRow(labels[i], labels[j], int(matrix[i, j]), int(matrix[j, i]), float(share)))
    return sorted(found, key=lambda pair: (-(pair.first_as_second + pair.second_as_first), -pair.share, pair.first))
