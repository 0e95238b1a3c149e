"""Comparisons, grids, trainings and the account of time enter; the sections that show them leave."""

from __future__ import annotations

from dataclasses import replace

from featcache.records.experiments import BenchSummary, CompareRow, CompareSummary
from featcache.records.finetuning import FinetuneSummary
from featcache.records.reports import ReportSummary
from featcache.render.charts.base import PAGE
from featcache.render.charts.courses import cache_chart, epochs_chart, work_chart
from featcache.render.charts.heads import CLASSES, PER_CLASS, bench_charts, compare_chart, floor_text, ranked
from featcache.render.experiments import bench_page, ledger_page
from featcache.render.finetuning import against_best, finetune_page, name_of
from featcache.render.formats import chosen_text, head_name, interval, number
from featcache.render.html.blocks import Block, Chart, Charts, Facts, Grid, Heading, Section, Text, section
from featcache.render.html.overview import missing
from featcache.render.tables import Table


def heads(summary: ReportSummary) -> Section:
    """Return all heads side by side, and how they fare with fewer classes and images."""
    compare, bench = summary.compare, summary.bench
    blocks = [
        Heading("On the same pictures"),
        *(_compared(compare) if compare else [missing(summary, "compare")]),
        Heading("With fewer classes and fewer images"),
        *(_benched(bench) if bench else [missing(summary, "bench")]),
    ]
    return section("heads", "Heads", blocks)


def _compared(summary: CompareSummary) -> list[Block]:
    rows = ranked(summary)
    said = "; ".join(f"{head_name(row)} {number(row.accuracy)}" for row in rows if row.accuracy is not None)
    seeds = summary.setting.seeds
    n = f"n={summary.setting.n_test:,}, {len(seeds)} seed{'' if len(seeds) == 1 else 's'}"
    title = f"Accuracy on {summary.setting.scored_split}, {n}"
    blocks: list[Block] = [
        Charts((Chart(compare_chart(summary, PAGE), f"Dots with intervals: accuracy of each head. {said}.", title),)),
    ]
    floor = floor_text(summary)
    blocks += [Text(floor, quiet=True)] if floor else []
    blocks.append(Grid(Table("Heads, the most accurate first", _COLUMNS, [_cells(row) for row in rows]), sortable=True))
    tuned = [row for row in rows if row.gain is not None]
    if tuned:
        blocks.append(Grid(_tuned(tuned)))
    blocks.append(
        Facts(
            (
                ("intervals", summary.interval),
                ("p", "paired sign-flip test against the best head on the same pictures, Holm-corrected; a tie from "
                 "0.05 on"),
                ("seconds", f"means a seed, with the choice of parameters; besides, {summary.shared_seconds:.1f} s in "
                 "all for what heads share"),
                *(("note", notice) for notice in summary.notices),
            )
        )
    )  # fmt: skip
    return blocks


_COLUMNS = (
    " head",
    "accuracy",
    " interval",
    " verdict",
    "p",
    "balanced",
    "macro-F1",
    "log loss",
    "calibration",
    "fit s",
    " chosen",
)


def _cells(row: CompareRow) -> tuple[str, ...]:
    return (
        head_name(row),
        number(row.accuracy),
        interval(row.accuracy_interval),
        against_best(row),
        number(row.p_value),
        number(row.balanced_accuracy),
        number(row.macro_f1),
        number(row.log_loss),
        number(row.calibration_error),
        number(row.fit_seconds, 2),
        chosen_text(row.params),
    )


def _tuned(rows: list[CompareRow]) -> Table:
    return Table(
        "Finetuned networks beside the best head, on the split of their own seed",
        [" network", "gain (points)", "points a minute", "p", " verdict", "seconds"],
        [
            (
                row.head,
                f"{100 * (row.gain or 0):+.1f}",
                "" if row.gain_per_minute is None else f"{row.gain_per_minute:+.2f}",
                number(row.p_value),
                against_best(row),
                number(row.fit_seconds, 1),
            )
            for row in rows
        ],
    )


def _benched(summary: BenchSummary) -> list[Block]:
    seeds = len(summary.setting.seeds)
    band = f"; bands: lowest to highest of {seeds} seeds" if seeds > 1 else ""
    blocks: list[Block] = []
    for axis, over in ((CLASSES, "all images of each class"), (PER_CLASS, "all classes")):
        drawn = bench_charts(summary, axis, PAGE)
        if drawn:
            said = f"{axis.title}, {over}"
            charts = (
                Chart(drawn["accuracy"], f"Curves: accuracy against the {said}.", f"Accuracy, {over}{band}"),
                Chart(drawn["seconds"], f"Curves: seconds to choose and fit against the {said}.",
                      f"Seconds a seed to choose and fit, {over}"),
            )  # fmt: skip
            blocks.append(Charts(charts))
    if blocks:
        blocks.append(Text("A click on a head in a legend shows it alone.", quiet=True))
    page = bench_page(summary)
    blocks += [Grid(table, folded=f"{table.title.split(' ± ')[0]}, in numbers") for table in page.tables]
    own = [fact for fact in page.facts if fact[0] in {"subsets", "problem", "note"}]
    return [*blocks, Facts(tuple(own))]


def finetuning(summary: ReportSummary) -> Section:
    """Return how each training went, and whether it was worth it."""
    blocks: list[Block] = []
    for found in summary.finetunes:
        blocks += _training(found)
    return section("finetuning", "Fine-tuning", blocks or [missing(summary, "finetune")])


def _training(found: FinetuneSummary) -> list[Block]:
    name = f"{name_of(found.network, found.unfreeze)}, seed {found.seed}"
    page = finetune_page(found)
    facts = dict(page.facts)
    n = f"validation n={found.n_val:,}"
    charts = tuple(
        Chart(epochs_chart(found, what, PAGE), f"Curves: {what} of {name} against the epoch; epoch {found.best_epoch} "
              "is kept.", f"{what.capitalize()} by epoch, {n}")
        for what in ("loss", "accuracy")
    )  # fmt: skip
    epochs = [
        (
            str(row.epoch),
            f"{row.lr:g}",
            number(row.train_loss, 4),
            number(row.train_accuracy),
            number(row.val_loss, 4),
            number(row.val_accuracy),
            number(row.seconds, 1),
        )
        for row in found.history
    ]
    columns = ["epoch", "rate", "training loss", "training accuracy", "validation loss", "validation accuracy", "s"]
    gain = (
        f"{found.head} {number(found.head_accuracy)}, finetuned {number(found.accuracy)} on {found.scored_split} "
        f"(n={found.n_test:,}): {100 * found.gain:+.1f} points, {found.gain_per_minute:+.2f} points a minute."
    )
    return [
        Heading(name),
        Text(f"{facts['verdict'][0].upper()}{facts['verdict'][1:]}. {gain}"),
        Charts(charts),
        Grid(replace(page.tables[0], title=f"{name}: scores on {found.scored_split}, n={found.n_test:,}")),
        Grid(Table(f"{name}: epochs", columns, epochs), folded=f"all {len(epochs):,} epochs in numbers"),
        Facts(tuple(fact for fact in page.facts if fact[0] in {"trained", "network", "stopped", "cached", "note"})),
    ]


def time(summary: ReportSummary) -> Section:
    """Return where the time went, and from when on the cache was ahead."""
    ledger = summary.ledger
    page = ledger_page(ledger)
    total = sum(row.seconds for row in ledger.rows)
    charts = [
        Chart(work_chart(ledger, PAGE), f"Bars: seconds by kind of work, {total:,.1f} in all.",
              f"Seconds by kind of work, {total:,.1f} in all")
    ]  # fmt: skip
    blocks: list[Block] = []
    if ledger.break_even is not None:
        said = f"with the cache {ledger.with_cache:,.1f} s, without it {ledger.without_cache:,.1f} s"
        title = f"Seconds of {ledger.experiments:,} experiments, extraction included"
        charts.append(Chart(cache_chart(ledger, PAGE), f"Bars: {said}.", title))
        ahead = ledger.without_cache - ledger.with_cache
        so_far = f"{ahead:,.1f} s are saved so far" if ahead >= 0 else f"it is {-ahead:,.1f} s behind so far"
        when = "has paid" if ahead >= 0 else "will have paid"
        blocks.append(
            Text(f"The cache {when} for itself from experiment {ledger.break_even:,} on; {so_far}. To run the network "
                 f"over all pictures once takes {ledger.network_seconds:,.1f} s.")
        )  # fmt: skip
    blocks += [Charts(tuple(charts)), Grid(replace(page.tables[0], title="Seconds by kind of work"))]
    blocks.append(Facts(tuple(fact for fact in page.facts if fact[0] in {"with the cache", "without it", "note"})))
    return section("time", "Where the time went", blocks)
