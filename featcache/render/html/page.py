"""What stands on top, sections and thumbnails enter; the HTML page that holds all of them leaves."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import PurePath
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup, escape

from featcache.errors import one_line
from featcache.render.html.blocks import Charts, Picture, Section, Spread, Top

TEMPLATES = ("page.html", "blocks.html")

_IN_SCRIPTS = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}
"""Characters that could end a script, or a line of it."""


def page(top: Top, sections: Sequence[Section], thumbnails: Mapping[str, bytes]) -> str:
    """Return the page; scripts run only if they are those written here, by their sha256."""
    blocks = [block for section in sections for block in section.blocks]
    charts = [chart.spec for block in blocks if isinstance(block, Charts) for chart in block.charts]
    spreads = [block for block in blocks if isinstance(block, Spread)]
    scripts = {
        "theme": _read("theme.js"),
        "vega": _vega(),
        "page": _read("page.js"),
        "map": _read("map.js") if spreads else "",
    }
    environment = _environment(thumbnails)
    return environment.get_template("page.html").render(
        top=top,
        sections=sections,
        style=Markup(_read("style.css")),
        policy=_policy(list(scripts.values())),
        scripts={name: Markup(script) for name, script in scripts.items()},
        data={
            "charts": script_json(charts),
            "thumbnails": script_json([base64.b64encode(data).decode() for data in thumbnails.values()]),
            "map": script_json([{"spec": block.spec, "columns": block.columns} for block in spreads][:1]),
        },
    )


@cache
def _vega() -> str:
    """Return Vega with what it needs, as one script; to bundle it takes a second."""
    import vl_convert

    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


def script_json(value: Any) -> Markup:
    """Return a value as JSON that stays what it is inside a script element: names in one line, no NaN, no bracket."""
    text = json.dumps(_plain(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.translate(_IN_SCRIPTS))


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return one_line(value)
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value


def _environment(thumbnails: Mapping[str, bytes]) -> Environment:
    """Return the templates, in which every value is escaped, and shown in one line."""
    environment = Environment(
        loader=DictLoader({name: _read(name) for name in TEMPLATES}),
        autoescape=True,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    numbers = {path: number for number, path in enumerate(thumbnails)}
    counter = iter(range(10**9))

    def thumbnail(picture: Picture) -> int | None:
        return numbers.get(picture.path)

    def next_chart() -> int:
        return next(counter)

    environment.globals |= {"thumbnail": thumbnail, "next_chart": next_chart}
    environment.filters |= {"coded": _coded, "file_name": lambda path: PurePath(path).name or path}
    return environment


def _shown(value: Any) -> Any:
    return one_line(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _coded(text: str) -> Markup:
    """Return text in which what stands between backticks is code."""
    parts = one_line(text).split("`")
    if len(parts) % 2 == 0:
        return escape(one_line(text))
    return Markup("").join(Markup("<code>{}</code>").format(part) if i % 2 else part for i, part in enumerate(parts))


def _policy(scripts: Sequence[str]) -> str:
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts if script]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}; base-uri 'none'; "
        "form-action 'none'"
    )


def _read(name: str) -> str:
    return (files("featcache.render.html") / name).read_text("utf-8").removesuffix("\n")
