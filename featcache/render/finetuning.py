"""The summary of a fine-tuning enters; a page of tables, and whether it was worth it in a sentence, leave."""

from __future__ import annotations

from featcache.records.experiments import CompareRow
from featcache.records.finetuning import FinetuneSummary, points_a_minute
from featcache.render.formats import curve, interval, number, scored_text, sizes_text
from featcache.render.tables import Page, Table

SURE = 0.05


def finetune_page(summary: FinetuneSummary) -> Page:
    """Return the network's score beside the head's, how the training went, and what both share."""
    head = (summary.head_low, summary.head_high)
    scores = Table(
        "",
        [" classifier", "accuracy", " 95 % interval", "balanced", "macro-F1", "log loss", "seconds"],
        [
            (
                name_of(summary.network, summary.unfreeze),
                number(summary.accuracy),
                interval((summary.accuracy_low, summary.accuracy_high)),
                number(summary.balanced_accuracy),
                number(summary.macro_f1),
                number(summary.log_loss),
                number(summary.seconds, 1),
            ),
            (
                summary.head,
                number(summary.head_accuracy),
                interval(head),
                number(summary.head_balanced_accuracy),
                number(summary.head_macro_f1),
                number(summary.head_log_loss),
                number(summary.head_seconds, 1),
            ),
        ],
    )
    scored = f"{scored_text(summary)}; seed {summary.seed}; split {summary.split_digest[:16]}"
    return Page(
        [scores, _epochs(summary)],
        [
            (
                "verdict",
                verdict(
                    summary.gain,
                    summary.p_value,
                    summary.head,
                    summary.seconds,
                    summary.head_seconds,
                    is_changed=summary.best_epoch > 0,
                ),
            ),
            ("dataset", f"{summary.dataset}: {summary.n_classes:,} classes; {sizes_text(summary.split_sizes)}"),
            ("scored", scored),
            (
                "trained",
                f"on {summary.n_train:,}, epochs judged on {summary.validated_on} (n={summary.n_val:,}); "
                f"epoch {summary.best_epoch} of {summary.history[-1].epoch} is kept; top begun from {summary.start}",
            ),
            *([("stopped", summary.stopped)] if summary.stopped else []),
            (
                "network",
                f"{summary.network} ({summary.weights}), {_from(summary)}, on {summary.device}",
            ),
            *([("cached", _cached(summary))] if summary.cached_bytes else []),
            *(("note", notice) for notice in summary.notices),
            ("epochs", summary.history_file),
            ("model", summary.model),
        ],
    )


def name_of(network: str, unfreeze: str) -> str:
    """Return what a fine-tuned network is called in tables."""
    return f"{network} finetuned {unfreeze}" if network != "scratch-cnn" else network


def against_best(row: CompareRow) -> str:
    """Return how a row of a comparison stands beside the best head."""
    if row.error:
        return f"failed: {row.error}"
    return f"{row.verdict}, on other vectors" if row.other_vectors else row.verdict


def row_verdict(row: CompareRow, head: str, head_seconds: float) -> str:
    """Say of a fine-tuned network in a comparison whether that was worth it, or why nothing follows about it."""
    gain, p_value, seconds = row.gain or 0.0, 1.0 if row.p_value is None else row.p_value, row.fit_seconds or 0.0
    if row.other_vectors:
        return (
            f"no verdict, for these are not the vectors of its own run ({row.other_vectors}): {_points(gain)} beside "
            f"{head} ({_chance(p_value)}) are not what fine-tuning gained"
        )
    return verdict(gain, p_value, head, seconds, head_seconds, is_changed=row.kept_epoch != 0)


def verdict(
    gain: float, p_value: float, head: str, seconds: float, head_seconds: float, *, is_changed: bool = True
) -> str:
    """Say in a sentence whether fine-tuning was worth it, by a paired test and by its time."""
    points, chance = _points(gain), _chance(p_value)
    cost = f"for {_time(seconds)} instead of {_time(head_seconds)}"
    if not is_changed:
        return f"not worth it: no epoch was better than the head that it began from, {cost}"
    if gain <= 0:
        return f"not worth it: {points} beside {head} ({chance}), {cost}"
    cost += f", {points_a_minute(gain, seconds):.2f} points a minute"
    if p_value < SURE:
        return f"worth it: {points} over {head} ({chance}), {cost}"
    return f"not shown to be worth it: {points} over {head} can be chance on these pictures ({chance}), {cost}"


def _points(gain: float) -> str:
    return f"{100 * gain:+.1f} points"


def _chance(p_value: float) -> str:
    return f"p={p_value:.3f}" if p_value >= 0.001 else "p<0.001"


def _epochs(summary: FinetuneSummary) -> Table:
    """Return how loss and accuracy went on the pictures trained on, as each epoch went, and on the others after it."""
    rows = []
    for what in ("loss", "accuracy"):
        for title, name in (("training", "train"), ("validation", "val")):
            found = [(row.epoch, getattr(row, f"{name}_{what}")) for row in summary.history]
            values = [value for _, value in found if value is not None]
            kept = [value for epoch, value in found if epoch == summary.best_epoch]
            ends = [number(value[0]) if value else "" for value in (values, kept, values[-1:])]
            # Training has no epoch 0, so that its first bar stands under the second one of the others.
            rows.append((f"{title} {what}", *ends, " " * (name == "train") + curve(values)))
    return Table("", [" ", "first", "kept", "last", " by epoch"], rows)


def _from(summary: FinetuneSummary) -> str:
    if summary.unfreeze == "all":
        return "all of it is trained"
    return f"trained from {summary.unfrozen[0]} on" if summary.unfrozen else "only the new top is trained"


def _cached(summary: FinetuneSummary) -> str:
    return f"{summary.cached_bytes / 1e6:,.1f} MB of activations, {summary.computed:,} rows of them computed now"


def _time(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds >= 90 else f"{seconds:.1f} s"
