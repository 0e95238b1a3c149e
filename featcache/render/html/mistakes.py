"""Confusions, scores of classes and calibration enter; the sections that show them, with pictures, leave."""

from __future__ import annotations

from collections import defaultdict

from featcache.records.experiments import ClassRow, PairRow
from featcache.records.reports import ReportSummary, ScoredPicture
from featcache.render.charts.base import PAGE
from featcache.render.charts.classes import by_f1, scores_chart
from featcache.render.charts.confusion import NUMBERED, matrix_chart, order
from featcache.render.charts.courses import counts_chart, reliability_chart
from featcache.render.formats import interval, number
from featcache.render.html.blocks import (
    Block,
    Chart,
    Charts,
    Galleries,
    Gallery,
    Grid,
    Heading,
    Picture,
    Section,
    Text,
    more,
    plural,
    section,
)
from featcache.render.tables import Table

SHOWN_PAIRS = 10
SHOWN_WRONG = 7
SHOWN_SURE = 12


def confusion(summary: ReportSummary) -> Section:
    """Return the matrix, the most confused pairs with their pictures, and the errors made with the most confidence."""
    found, setting = summary.confusion, summary.confusion.setting
    wrong = sum(map(sum, found.matrix)) - sum(row[i] for i, row in enumerate(found.matrix))
    said = (
        f"{found.head} on {setting.scored_split}, n={setting.n_test:,}, seed {setting.seeds[0]}: {wrong:,} wrong. Rows "
        "are true classes, columns what was predicted; classes taken for each other stand side by side. The colour is "
        "the share of the true class; the diagonal, which is right, is grey."
    )
    chart = Chart(
        matrix_chart(found, PAGE),
        f"Matrix of {len(found.labels):,} true by predicted classes with {wrong:,} errors.",
        square=True,
    )
    blocks: list[Block] = [Text(said), Charts((chart,))]
    if len(found.labels) <= NUMBERED:
        places = order(found.matrix)
        names = [found.labels[place] for place in places]
        rows = [(found.labels[i], *(f"{found.matrix[i][j]:,}" for j in places)) for i in places]
        table = Table("True class down, predicted class across", [" true class", *names], rows)
        blocks.append(Grid(table, folded="the matrix in numbers"))
    if found.pairs:
        blocks += [Heading("The most confused pairs", len(found.pairs)), *_pairs(summary)]
    sure = sorted(
        (row for row in summary.scored if row.label != row.predicted), key=lambda row: -round(row.probability, 6)
    )
    shown = [group for block in blocks if isinstance(block, Galleries) for group in block.groups]
    if len(sure) > sum(len(group.pictures) for group in shown):
        gallery = Gallery(tuple(_picture(row) for row in sure[:SHOWN_SURE]), note=more(
            len(sure) - SHOWN_SURE, "wrong pictures", "`featcache predict --csv` lists them"))  # fmt: skip
        blocks += [Heading("Wrong, and sure of it", len(sure)), Galleries((gallery,))]
    return section("confusion", "Who is taken for whom", blocks)


def _pairs(summary: ReportSummary) -> list[Block]:
    pairs = summary.confusion.pairs
    wrong: dict[tuple[str, str], list[ScoredPicture]] = defaultdict(list)
    for row in sorted(summary.scored, key=lambda row: -round(row.probability, 6)):
        if row.label != row.predicted:
            wrong[row.label, row.predicted].append(row)
    rows = [
        (pair.first, pair.second, f"{pair.first_as_second:,}", f"{pair.second_as_first:,}", f"{100 * pair.share:.1f} %")
        for pair in pairs
    ]
    table = Table(
        f"All {len(pairs):,} confused pairs" if len(pairs) > 1 else "The confused pair",
        [" A", " B", "A called B", "B called A", "of both"],
        rows,
    )
    groups = [group for pair in pairs[:SHOWN_PAIRS] for group in _sides(pair, wrong)]
    folded = f"all {len(pairs):,} pairs in numbers" if len(pairs) > SHOWN_PAIRS else ""
    return [Galleries(tuple(groups)), Grid(table, sortable=True, folded=folded)]


def _sides(pair: PairRow, wrong: dict[tuple[str, str], list[ScoredPicture]]) -> list[Gallery]:
    """Return the pictures of a pair, a group each way that has some."""
    groups = []
    for label, predicted in ((pair.first, pair.second), (pair.second, pair.first)):
        rows = wrong[label, predicted]
        if rows:
            pictures = tuple(_picture(row) for row in rows[:SHOWN_WRONG])
            note = f"and {len(rows) - SHOWN_WRONG:,} more" if len(rows) > SHOWN_WRONG else ""
            groups.append(Gallery(pictures, f"{label} called {predicted}: {len(rows):,}", note))
    return groups


def _picture(row: ScoredPicture) -> Picture:
    return Picture(
        row.path,
        f"labelled {row.label}, predicted {row.predicted}",
        (
            f"labelled {row.label}",
            f"predicted {row.predicted} ({row.probability:.2f}), its label {row.label_probability:.2f}",
        ),
    )


def classes(summary: ReportSummary) -> Section:
    """Return the scores of each class, the best F1 first, and why some cannot be learned."""
    found = summary.confusion
    rows = by_f1(found.classes)
    lost = [row for row in rows if row.is_unlearnable]
    worst = f"from {rows[0].f1:.3f} ({rows[0].label}) to {rows[-1].f1:.3f} ({rows[-1].label})" if rows else ""
    chart = Chart(
        scores_chart(found.classes, PAGE),
        f"Scores of {len(rows):,} classes by F1, {worst}.",
        f"F1 of each class, {worst}",
    )
    table = Table("Classes, the best F1 first", _COLUMNS, [_cells(row, summary) for row in rows])
    blocks: list[Block] = [_lost(summary, lost), Charts((chart,)), Grid(table, sortable=True)]
    return section("classes", "Class by class", blocks)


_COLUMNS = (
    " class",
    "F1",
    "precision",
    "recall",
    "scored n",
    "train n",
    " taken for",
    " nearest classes",
    "best recall",
    " by",
)


def _cells(row: ClassRow, summary: ReportSummary) -> tuple[str, ...]:
    return (
        row.label + " (unlearnable)" * row.is_unlearnable,
        number(row.f1),
        number(row.precision),
        number(row.recall),
        f"{row.n_test:,}",
        f"{row.n_train:,}",
        row.confused_with or "",
        ", ".join(summary.nearest.get(row.label, ())[:3]),
        number(row.best_recall),
        row.best_head,
    )


def _lost(summary: ReportSummary, lost: list[ClassRow]) -> Text:
    below = (
        f"recall below {summary.confusion.unlearnable_below:g} with every one of {', '.join(summary.confusion.heads)}"
    )
    if not lost:
        return Text(f"No class is unlearnable ({below}).", quiet=True)
    why = []
    for row in lost[:5]:
        near = summary.nearest.get(row.label, ())
        close = f": its vectors lie nearest to {', '.join(near[:3])}" if near else ""
        why.append(f"{row.label} (recall {row.recall:.2f}, fitted on {row.n_train:,}){close}")
    rest = f"; and {len(lost) - 5:,} more, marked below" if len(lost) > 5 else ""
    return Text(f"{plural(len(lost), 'class is', 'classes are')} unlearnable ({below}). {'; '.join(why)}{rest}.")


def calibration(summary: ReportSummary) -> Section:
    """Return how often the head was right when it was so and so sure."""
    bins, setting = summary.calibration, summary.confusion.setting
    sure = sum(found.confidence * found.n for found in bins) / max(1, sum(found.n for found in bins))
    way = "more" if sure > summary.confusion.accuracy else "less"
    said = (
        f"Where the head says 0.9, nine of ten should be right. Its probabilities are off by "
        f"{summary.calibration_error:.3f} on average (expected calibration error, 15 bins, {setting.scored_split}, "
        f"n={setting.n_test:,}, seed {setting.seeds[0]}); all in all it is {way} sure ({sure:.3f}) than right "
        f"({summary.confusion.accuracy:.3f})."
    )
    charts = (
        Chart(reliability_chart(bins, PAGE), "Share that was right against the probability of the predicted class.",
              "Right against sure, with 95 % intervals"),
        Chart(counts_chart(bins, PAGE), "Bars: scored pictures by the probability of the predicted class.",
              "Scored pictures by how sure the head was"),
    )  # fmt: skip
    rows = [
        (interval((row.low, row.high)), f"{row.n:,}", number(row.confidence), number(row.accuracy),
         f"{row.accuracy - row.confidence:+.3f}")
        for row in bins
    ]  # fmt: skip
    table = Table("Bins of the predicted class's probability", [" from-to", "n", "mean", "right", "difference"], rows)
    return section("calibration", "Calibration", (Text(said), Charts(charts), Grid(table)))
