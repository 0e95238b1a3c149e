"""A report enters; what stands on top of its page, the section on the dataset, and how to make it again, leave."""

from __future__ import annotations

from collections import Counter
from pathlib import PurePath

from featcache.records.reports import ReportSummary
from featcache.render.charts.base import PAGE
from featcache.render.charts.classes import MANY, sizes_chart, split_names
from featcache.render.formats import classes_text, interval, number, sizes_text
from featcache.render.html.blocks import (
    Block,
    Chart,
    Charts,
    Facts,
    Grid,
    Points,
    Section,
    Text,
    Tile,
    Top,
    plural,
    section,
)
from featcache.render.tables import Table


def top(summary: ReportSummary) -> Top:
    """Return the title, the main numbers in a sentence and as tiles, the gravest findings, and where all comes from."""
    confusion, setting, audit = summary.confusion, summary.confusion.setting, summary.audit
    low, high = confusion.accuracy_interval
    text = (
        f"A {confusion.head} head on the vectors of {setting.backbone} puts {_percent(confusion.accuracy)} of the "
        f"{setting.n_test:,} scored pictures ({setting.scored_split}) into the right one of {setting.n_classes:,} "
        f"classes (95 % interval {_percent(low)} to {_percent(high)}). It was fitted on {setting.n_train:,} pictures "
        f"({setting.fitted_on}), with seed {setting.seeds[0]}."
    )
    macro = sum(row.f1 for row in confusion.classes) / max(1, len(confusion.classes))
    named = len({row.path for row in audit.rows})
    tiles = (
        Tile("accuracy", _percent(confusion.accuracy), f"{_percent(low)} to {_percent(high)}, n={setting.n_test:,}"),
        Tile("macro-F1", number(macro), classes_text(setting.n_classes, setting.unscored)),
        Tile("calibration error", number(summary.calibration_error), "0 is perfect"),
        Tile("pictures", f"{audit.pictures:,}", f"{audit.contents:,} different contents"),
        Tile("to look at", f"{named:,}", "pictures named by the audit"),
    )
    return Top(
        title=PurePath(setting.dataset).name or setting.dataset,
        subtitle=f"Image transfer learning from cached features, {_minute(summary.created)}",
        text=text,
        tiles=tiles,
        findings=tuple(gravest(summary)),
        facts=(
            ("dataset", setting.dataset),
            ("backbone", f"{setting.backbone} ({setting.weights})"),
            ("fingerprint", setting.fingerprint),
            ("split", f"{sizes_text(setting.split_sizes)}; {setting.split_digest[:16]}"),
            ("featcache", summary.version),
        ),
        command=summary.command,
    )


def gravest(summary: ReportSummary) -> list[str]:
    """Return the gravest findings, a sentence each."""
    audit = summary.audit
    counts = Counter({kind: len({row.path for row in audit.rows if row.kind == kind}) for kind in audit.cuts})
    said = []
    if audit.leak and audit.leak.n_test > audit.leak.n_without:
        leak, n = audit.leak, audit.leak.n_test - audit.leak.n_without
        without = "" if leak.without is None else f", {_percent(leak.without)} without"
        have = "picture has" if n == 1 else "pictures have"
        score = f"accuracy is {_percent(leak.accuracy)} with {'it' if n == 1 else 'them'}{without}"
        said.append(f"{n:,} scored {have} a twin among those trained on: {score}.")
    elif counts["leak"]:
        said.append(f"{plural(counts['leak'], 'picture')} in twins that stand on both sides of the split.")
    if counts["label"]:
        said.append(f"{plural(counts['label'], 'label looks', 'labels look')} wrong.")
    if counts["placeholder"]:
        said.append(f"{plural(counts['placeholder'], 'picture is', 'pictures are')} most likely a placeholder.")
    lost = [row.label for row in summary.confusion.classes if row.is_unlearnable]
    if lost:
        said.append(f"{plural(len(lost), 'class is', 'classes are')} not learned by any head: {_some(lost)}.")
    unscored = summary.confusion.setting.unscored
    if unscored:
        have = f"{plural(len(unscored), 'class has', 'classes have')} no picture"
        said.append(f"{have} in {summary.confusion.setting.scored_split}: {_some([*unscored])}.")
    if summary.unreadable:
        said.append(f"{plural(summary.unreadable, 'file')} could not be read and {_were(summary.unreadable)} left out.")
    return said


def dataset(summary: ReportSummary) -> Section:
    """Return how many files there are of each class and split, and what could not be read."""
    audit = summary.audit
    splits = split_names(audit.sizes)
    copies = audit.pictures - audit.contents
    same = f"; {plural(copies, 'file is a copy', 'files are copies')} of another" if copies else ""
    blocks: list[Block] = [
        Text(f"{plural(audit.pictures, 'file')} in {plural(len(audit.sizes), 'class', 'classes')}, with "
             f"{audit.contents:,} different contents{same}.")
    ]  # fmt: skip
    if audit.sizes:
        counted = [row.pictures for row in audit.sizes]
        spread = f"from {min(counted):,} to {max(counted):,} files a class"
        label = f"Bar chart: files of each of {len(counted):,} classes by split, {spread}."
        rows = [
            (row.label, f"{row.pictures:,}", f"{row.contents:,}", *(f"{row.splits.get(name, 0):,}" for name in splits))
            for row in sorted(audit.sizes, key=lambda row: -row.pictures)
        ]
        table = Table("Files and different contents of each class", [" class", "files", "contents", *splits], rows)
        blocks += [
            Charts((Chart(sizes_chart(audit.sizes, PAGE), label, f"Files of each class: {spread}"),)),
            Grid(table, sortable=True, folded=f"all {len(rows):,} classes in numbers" if len(rows) > MANY else ""),
        ]
    blocks += _failures(summary)
    if audit.notices:
        blocks.append(Points(audit.notices))
    return section("dataset", "The dataset", blocks)


def _failures(summary: ReportSummary) -> list[Block]:
    if not summary.unreadable:
        return [Text("Every file could be read.", quiet=True)]
    rows = [(failure.path, failure.reason) for failure in summary.failures]
    hidden = summary.unreadable - len(rows)
    table = Table(f"Files that could not be read ({len(rows):,} of {summary.unreadable:,})", [" file", " why"], rows)
    told = Text(f"The other {hidden:,} are listed by `featcache extract`.", quiet=True)
    return [Grid(table), *([told] if hidden > 0 else [])]


def again(summary: ReportSummary) -> Section:
    """Return with what the page was made, and what is to be said of it."""
    setting = summary.confusion.setting
    blocks: list[Block] = [
        Text("The same command on the same cache makes this page again:"),
        Text(f"`{summary.command.replace('`', ' ')}`"),
        Facts(
            (
                ("made", _minute(summary.created)),
                ("featcache", summary.version),
                *((name, version) for name, version in setting.versions.items() if name != "featcache"),
                ("fingerprint", setting.fingerprint),
                ("split digest", setting.split_digest),
                ("seed", ", ".join(str(seed) for seed in setting.seeds)),
            )
        ),
    ]
    notices = tuple(dict.fromkeys([*summary.notices, *summary.confusion.notices, *summary.confusion.errors]))
    if summary.missing:
        blocks += [Text("Not in this page:"), Points(summary.missing)]
    if notices:
        blocks += [Text("To be said of it:"), Points(notices)]
    return section("again", "How to make this page again", blocks)


def missing(summary: ReportSummary, command: str) -> Text:
    """Return the line that stands where something was not recorded, with the command that would fill it."""
    found = [text for text in summary.missing if f"featcache {command}" in text]
    dataset = summary.confusion.setting.dataset
    return Text(found[0] if found else f"Not recorded yet: `featcache {command} {dataset}` fills this.", quiet=True)


def interval_text(value: tuple[float, float] | None) -> str:
    """Return an interval in brackets, empty where there is none."""
    return "" if value is None else f" ({interval(value)})"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _minute(created: str) -> str:
    return f"{created[:16].replace('T', ' ')} UTC"


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")


def _were(n: int) -> str:
    return "was" if n == 1 else "were"
