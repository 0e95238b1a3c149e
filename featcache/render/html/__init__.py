"""The summary of a report and small pictures enter; one HTML page leaves that needs nothing else to be shown."""

from __future__ import annotations

from collections.abc import Mapping

from featcache.records.reports import ReportSummary


def report_html(summary: ReportSummary, thumbnails: Mapping[str, bytes]) -> str:
    """Return the page; `thumbnails` are WEBP files by the path of their picture, others show as a box with a name.

    The page asks for nothing from anywhere, and can be encoded as UTF-8.
    """
    from featcache.render.html.found import audit
    from featcache.render.html.heads import finetuning, heads, time
    from featcache.render.html.mistakes import calibration, classes, confusion
    from featcache.render.html.overview import again, dataset, top
    from featcache.render.html.page import page
    from featcache.render.html.spread import spread

    numbers = {path: number for number, path in enumerate(thumbnails)}
    sections = [
        dataset(summary),
        heads(summary),
        confusion(summary),
        classes(summary),
        calibration(summary),
        spread(summary, numbers),
        finetuning(summary),
        time(summary),
        audit(summary),
        again(summary),
    ]
    return page(top(summary), sections, thumbnails)
