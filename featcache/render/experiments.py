"""Summaries of experiments enter; pages of tables leave."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from featcache.records.experiments import (
    SCALING,
    BenchRow,
    BenchSummary,
    CompareSummary,
    ConfusionSummary,
    FitSummary,
    LedgerSummary,
    RunComparison,
    RunList,
    Setting,
)
from featcache.render.finetuning import against_best, row_verdict
from featcache.render.formats import (
    chosen_text,
    curve,
    head_name,
    interval,
    number,
    params_text,
    scored_text,
    sizes_text,
)
from featcache.render.tables import Page, Table

KEPT = "{1} is not clearly better than {0} with the first values, and {0} is the usual scaling: so it was kept"
SHOWN_PAIRS = 10
SHOWN_MATRIX = 12
SHOWN_CLASSES = 20


def fit_page(rows: Sequence[FitSummary]) -> Page:
    """Return one table row a head, what was tried where a sweep was asked for, and what all scores share."""
    first = rows[0]
    scores = Table(
        "",
        [" head", "accuracy", " 95 % interval", "balanced", "macro-F1", "log loss", " chosen", "fit s"],
        [
            (
                head_name(row),
                number(row.accuracy),
                interval((row.accuracy_low, row.accuracy_high)),
                number(row.balanced_accuracy),
                number(row.macro_f1),
                number(row.log_loss),
                params_text(row.params),
                number(row.fit_seconds, 1),
            )
            for row in rows
        ],
    )
    tried = [row for row in rows if any(trial.loss_curve for trial in row.trials)]
    notes = [notice for row in rows for notice in row.notices]
    notes += [KEPT.format(*pair) for pair in map(_kept_beside, tried) if pair]
    return Page(
        [scores, *map(trials_table, tried)],
        [
            ("dataset", f"{first.dataset}: {first.n_classes:,} classes; {sizes_text(first.split_sizes)}"),
            (
                "scored",
                f"{scored_text(first)}; fitted on {first.fitted_on}, n={first.n_train:,}; "
                f"parameters chosen by {first.chosen_by}; seed {first.seed}",
            ),
            ("backbone", f"{first.backbone} ({first.weights}), fingerprint {first.fingerprint[:16]}"),
            *_view_facts(first.train_views, first.test_views),
            *(("note", notice) for notice in dict.fromkeys(notes)),
            *(("model", row.model) for row in rows),
        ],
    )


def _kept_beside(row: FitSummary) -> tuple[str, str] | None:
    """Return the scaling that was kept though a try with another one has more right, and that one."""
    best = max(row.trials, key=lambda trial: trial.accuracy)
    kept, other = row.params.get(SCALING), best.params.get(SCALING)
    reached = max((trial.accuracy for trial in row.trials if trial.params == row.params), default=1.0)
    return (str(kept), str(other)) if kept != other and best.accuracy > reached else None


def trials_table(row: FitSummary) -> Table:
    """Return what was tried, the best first: accuracy where the choice was made, epochs, and the loss as it fell."""
    trials = sorted(row.trials, key=lambda trial: -trial.accuracy)
    return Table(
        f"{row.head}, tried by {row.chosen_by}; loss on the fitted pictures, epoch by epoch",
        [" values", "accuracy", "epochs", "last loss", " loss"],
        [
            (
                params_text(trial.params),
                number(trial.accuracy),
                str(len(trial.loss_curve)),
                number(trial.loss_curve[-1]) if trial.loss_curve else "",
                curve(trial.loss_curve),
            )
            for trial in trials
        ],
    )


def compare_page(summary: CompareSummary) -> Page:
    """Return scores with intervals and tests, then probabilities, seconds and choices, one row a head."""
    ranked = sorted(summary.rows, key=lambda row: -1.0 if row.accuracy is None else row.accuracy, reverse=True)
    scores = Table(
        "",
        [" head", "accuracy", " 95 % interval", "balanced", " 95 % interval", "macro-F1", "p", " against the best"],
        [
            (
                head_name(row),
                number(row.accuracy),
                interval(row.accuracy_interval),
                number(row.balanced_accuracy),
                interval(row.balanced_interval),
                number(row.macro_f1),
                number(row.p_value),
                against_best(row),
            )
            for row in ranked
        ],
    )
    costs = Table(
        "",
        [" head", "log loss", "calibration error", "fit s", "predict s", " chosen"],
        [
            (
                head_name(row),
                number(row.log_loss),
                number(row.calibration_error),
                number(row.fit_seconds, 2),
                number(row.predict_seconds, 2),
                chosen_text(row.params),
            )
            for row in ranked
            if not row.error
        ],
    )
    best = next((row for row in ranked if row.verdict == "best"), None)
    tuned = [
        (
            "finetuned",
            f"{row.head}: {row_verdict(row, head_name(best), best.fit_seconds or 0)}",
        )
        for row in ranked
        if best and row.gain is not None and row.p_value is not None and row.fit_seconds is not None
    ]
    facts = [
        *tuned,
        ("intervals", summary.interval),
        ("p", "paired sign-flip test against the best head on the same pictures, Holm-corrected; a tie from 0.05 on"),
        ("seconds", f"means a seed, the choice of parameters included; besides, {summary.shared_seconds:.1f} s in all "
         "for what heads share"),
    ]  # fmt: skip
    return Page([scores, costs], [*setting_facts(summary.setting), *facts, *(("note", n) for n in summary.notices)])


def bench_page(summary: BenchSummary) -> Page:
    """Return a table of scores and one of seconds for class counts, and the same for images per class."""
    n_seeds = len(summary.setting.seeds)
    spread = f" ± sd over {n_seeds} seeds" if n_seeds > 1 else ""
    tables = []
    for title, name in (
        (f"against the number of classes, all images; {{}}{spread}", "classes"),
        (f"against images per class, all classes; {{}}{spread}", "per_class"),
    ):
        other = "per_class" if name == "classes" else "classes"
        rows = [row for row in summary.rows if getattr(row, other) is None]
        if any(getattr(row, name) is not None for row in rows) or (
            name == "classes" and len(rows) == len(summary.rows)
        ):
            tables += [
                _grid(title.format("accuracy"), rows, name, _score_cell),
                _grid(title.format("seconds of choosing and fitting").replace(spread, ""), rows, name, _seconds_cell),
            ]
    problems: dict[str, dict[str, None]] = {}
    for row in summary.rows:
        if row.error or row.problem:
            problems.setdefault(row.error or row.problem or "", {})[_cell_name(row)] = None
    said = [("problem", f"{'; '.join(cells)}: {text}") for text, cells in problems.items()]
    cells = f"{summary.computed:,} fits computed, {summary.reused:,} known from before"
    return Page(
        tables,
        [
            *setting_facts(summary.setting),
            ("subsets", summary.subsets),
            ("fits", cells),
            *said,
            *(("note", notice) for notice in summary.notices),
        ],
    )


def _grid(title: str, rows: Sequence[BenchRow], name: str, cell: Any) -> Table:
    columns = sorted({getattr(row, name) for row in rows}, key=lambda count: (count is None, count))
    known = {(row.head, getattr(row, name)): row for row in rows}
    heads = list(dict.fromkeys(row.head for row in rows))
    return Table(
        title,
        [" head", *("all" if column is None else f"{column:,}" for column in columns)],
        [(head, *(cell(known[head, column]) for column in columns)) for head in heads],
    )


def _score_cell(row: BenchRow) -> str:
    if row.accuracy is None:
        return "failed"
    return number(row.accuracy) + (f" ± {row.accuracy_sd:.3f}" if row.accuracy_sd is not None else "")


def _seconds_cell(row: BenchRow) -> str:
    return "failed" if row.fit_seconds is None else number(row.fit_seconds, 2)


def _cell_name(row: BenchRow) -> str:
    classes = "all classes" if row.classes is None else f"{row.classes:,} classes"
    return f"{classes}, {'all' if row.per_class is None else f'{row.per_class:,}'} images a class"


def confusions_page(summary: ConfusionSummary) -> Page:
    """Return the matrix if it is small, the most confused pairs, and the classes, the worst first."""
    tables = [_pairs_table(summary), _classes_table(summary)]
    if len(summary.labels) <= SHOWN_MATRIX:
        rows = [(label, *map(str, row)) for label, row in zip(summary.labels, summary.matrix, strict=True)]
        tables.insert(0, Table("true class down, predicted class across", [" ", *summary.labels], rows))
    lost = ", ".join(row.label for row in summary.classes if row.is_unlearnable) or "none"
    wilson = f"accuracy {number(summary.accuracy)} ({interval(summary.accuracy_interval)}, 95 % Wilson)"
    facts = [
        ("head", f"{summary.head}: {wilson}"),
        ("unlearnable", f"{lost} (recall below {summary.unlearnable_below:g} with every one of "
         f"{', '.join(summary.heads)})"),
        *setting_facts(summary.setting),
        *(("failed", error) for error in summary.errors),
        *(("note", notice) for notice in summary.notices),
    ]  # fmt: skip
    return Page(tables, facts)


def _pairs_table(summary: ConfusionSummary) -> Table:
    return Table(
        f"the most confused pairs ({min(SHOWN_PAIRS, len(summary.pairs))} of {len(summary.pairs):,})",
        [" A", " B", "A called B", "B called A", "of both"],
        [
            (pair.first, pair.second, str(pair.first_as_second), str(pair.second_as_first), number(pair.share))
            for pair in summary.pairs[:SHOWN_PAIRS]
        ],
    )


def _classes_table(summary: ConfusionSummary) -> Table:
    return Table(
        f"the classes, the worst first ({min(SHOWN_CLASSES, len(summary.classes))} of {len(summary.classes):,})",
        [" class", "train n", "n", "precision", "recall", "F1", " taken for", "best recall", " by"],
        [
            (
                row.label,
                str(row.n_train),
                str(row.n_test),
                number(row.precision),
                number(row.recall),
                number(row.f1),
                row.confused_with or "",
                number(row.best_recall),
                row.best_head,
            )
            for row in summary.classes[:SHOWN_CLASSES]
        ],
    )


def runs_page(summary: RunList) -> Page:
    """Return one row a run, oldest first."""
    return Page(
        [
            Table(
                "",
                ["run", " command", " started (UTC)", "seconds", " features", " dataset", " result"],
                [
                    (
                        str(row.id),
                        row.command,
                        row.started[:19].replace("T", " "),
                        number(row.seconds, 1),
                        row.fingerprint[:16],
                        row.dataset,
                        row.result,
                    )
                    for row in summary.rows
                ],
            )
        ],
        [("cache", summary.cache)],
    )


def runs_compare_page(summary: RunComparison) -> Page:
    """Return the scores of two runs side by side, and what differs between the runs."""
    names = [f"run {row.id}" for row in (summary.first, summary.second)]
    scores = Table(
        "",
        [" head", names[0], " 95 % interval", names[1], " 95 % interval", "difference"],
        [
            (
                row.head,
                number(row.first),
                interval(row.first_interval),
                number(row.second),
                interval(row.second_interval),
                "" if row.difference is None else f"{row.difference:+.3f}",
            )
            for row in summary.rows
        ],
    )
    facts = [
        (name, f"{row.command} of {row.dataset}, {row.started}; {scored_text(scored)}")
        for name, row, scored in zip(names, (summary.first, summary.second), summary.scored, strict=True)
    ]
    same = [("differs", line) for line in summary.differences] or [
        ("differs", "nothing but the heads and their seconds")
    ]
    return Page([scores], [*facts, *same])


def ledger_page(summary: LedgerSummary) -> Page:
    """Return where the time went, and what the same experiments would have taken without the cache."""
    rows = [(row.work, f"{row.runs:,}", number(row.seconds, 1)) for row in summary.rows]
    facts = [("dataset", f"{summary.dataset}, features {summary.fingerprint[:16]}")]
    if summary.break_even is not None:
        ahead = summary.without_cache - summary.with_cache
        facts += [
            ("network", f"{summary.network_seconds:.1f} s to run over all pictures once"),
            ("with the cache", f"{summary.with_cache:.1f} s for {summary.experiments:,} experiments (fit, compare, "
             "bench and confusions, one each time they ran)"),
            ("without it", f"{summary.without_cache:.1f} s, had each run the network first, once a view that it used"),
            ("break-even", f"experiment {summary.break_even:,}"
             + (f": {ahead:.1f} s saved so far" if ahead >= 0 else f", not reached yet: {-ahead:.1f} s behind so far")),
        ]  # fmt: skip
    return Page(
        [Table("", [" work", "runs", "seconds"], rows)], [*facts, *(("note", notice) for notice in summary.notices)]
    )


def setting_facts(setting: Setting) -> list[tuple[str, str]]:
    """Return what all rows of a table share."""
    seeds = setting.seeds
    said = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]}-{seeds[-1]}"
    return [
        ("dataset", f"{setting.dataset}: {setting.n_classes:,} classes; {sizes_text(setting.split_sizes)}"),
        (
            "scored",
            f"{scored_text(setting)}; fitted on {setting.fitted_on}, n={setting.n_train:,}; "
            f"{said}; split {setting.split_digest[:16]}",
        ),
        ("backbone", f"{setting.backbone} ({setting.weights}), fingerprint {setting.fingerprint[:16]}"),
        *_view_facts(setting.train_views, setting.test_views),
    ]


def _view_facts(train_views: Sequence[str], test_views: Sequence[str]) -> list[tuple[str, str]]:
    facts = []
    if train_views:
        facts.append(("+views", f"fitted on the original and {', '.join(train_views)}"))
    if test_views:
        facts.append(("+tta", f"mean probability of the original and {', '.join(test_views)}"))
    return facts
