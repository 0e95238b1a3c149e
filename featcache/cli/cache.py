"""The words of `featcache cache ...` enter; what is in the cache, or was done to it, leaves on stdout."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featcache.cli.options import (
    FILE,
    OUTPUT,
    SOURCE,
    Bar,
    cache_option,
    fail_if,
    json_option,
    make_options,
    running_options,
    show,
)
from featcache.errors import CacheError

if TYPE_CHECKING:
    from featcache.records.cache import GcSummary


@click.group()
def cache() -> None:
    """See, check, clean up, and carry elsewhere, what is in the cache."""


_dry_run = click.option("--dry-run", is_flag=True, help="Only say what would be done.")


@cache.command()
@cache_option
@json_option
def info(as_json: bool, **options: Any) -> None:
    """List datasets and backbones with their rows, bytes and last use."""
    from featcache import api, render

    show(as_json, api.cache_info(make_options(options)), render.info_text)


@cache.command()
@click.option("--repair", is_flag=True, help="Rebuild the catalog and extract again what is stale or missing.")
@running_options
@cache_option
@json_option
def verify(repair: bool, as_json: bool, **options: Any) -> None:
    """Check all checksums, and why each picture is valid, stale, missing or orphaned.

    Exits with 1 where vectors or the catalog are missing or damaged, and not repaired.
    """
    from featcache import api, render

    with Bar() as bar:
        summary = api.cache_verify(repair, make_options(options), bar)
    show(as_json, summary, render.verify_text)
    fail_if(list(summary.problems), CacheError)


@cache.command()
@click.option("--forget", type=SOURCE, multiple=True, help="Give up this dataset first; may be given again.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_dry_run
@cache_option
@json_option
def gc(forget: tuple[Path, ...], yes: bool, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Delete vectors that no dataset uses any more, and those of old fingerprints, after asking."""
    from featcache import api, render

    def agree(summary: GcSummary) -> bool:
        click.echo(render.gc_text(summary), err=True)
        try:
            return click.confirm("Delete them?", err=True)
        except click.Abort as abort:
            if sys.stdin.isatty():
                raise
            raise click.UsageError("nobody answered: --yes deletes without asking, --dry-run only says what") from abort

    with Bar() as bar:
        summary = api.cache_gc(forget, dry_run, None if yes else agree, make_options(options), bar)
    show(as_json, summary, render.gc_text)


@cache.command()
@_dry_run
@cache_option
@json_option
def compact(dry_run: bool, as_json: bool, **options: Any) -> None:
    """Merge small segments into larger ones."""
    from featcache import api, render

    with Bar() as bar:
        summary = api.cache_compact(dry_run, make_options(options), bar)
    show(as_json, summary, render.compact_text)


@cache.command()
@click.argument("file", type=OUTPUT)
@click.option("--dataset", type=SOURCE, help="The dataset to export  [default: the one last extracted].")
@cache_option
@json_option
def export(file: Path, dataset: Path | None, as_json: bool, **options: Any) -> None:
    """Write the vectors of a dataset, with paths, labels and splits, to FILE (.npz, .parquet or .h5)."""
    from featcache import api, render

    show(as_json, api.cache_export(file, dataset, make_options(options)), render.exchange_text)


@cache.command(name="import")
@click.argument("file", type=FILE)
@cache_option
@json_option
def import_(file: Path, as_json: bool, **options: Any) -> None:
    """Bring the vectors of an exported FILE into the cache; `fit` then works on it without the pictures."""
    from featcache import api, render

    show(as_json, api.cache_import(file, make_options(options)), render.exchange_text)
