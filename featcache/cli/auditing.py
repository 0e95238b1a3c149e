"""Words that name a dataset enter; what is wrong with its pictures, and a cleaned manifest, leave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from featcache.cli.options import (
    FILE,
    OUTPUT,
    Bar,
    cache_option,
    make_options,
    seed_option,
    show_page,
    table_options,
)


@click.command()
@click.argument("source", type=FILE, required=False)
@click.option("--write-manifest", "manifest", type=OUTPUT, help="List the pictures without those named in this .csv.")
@seed_option
@cache_option
@table_options
def audit(
    source: Path | None,
    manifest: Path | None,
    seed: int,
    as_json: bool,
    csv: Path | None,
    md: Path | None,
    **options: Any,
) -> None:
    """Look for twins, leaks, wrong labels, outliers and junk in the dataset last extracted, or in SOURCE.

    It uses the cache as it is, runs no network, and never changes a picture. Of twins one stays in the manifest.
    """
    from featcache import api, render

    with Bar() as bar:
        summary = api.audit(source, seed, manifest, make_options(options), bar)
    show_page(as_json, summary, render.audit_page, csv, md)
