"""Words that name a dataset enter; what is wrong with its pictures, a cleaned manifest, or a page on it, leave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from featcache.cli.options import (
    OUTPUT,
    SOURCE,
    Bar,
    NamedCommand,
    cache_option,
    heads_option,
    json_option,
    make_options,
    plotter,
    seed_option,
    show,
    show_page,
    table_options,
)


@click.command(cls=NamedCommand)
@click.argument("source", type=SOURCE, required=False)
@click.option("--write-manifest", "manifest", type=OUTPUT, help="List the pictures without those named in this .csv.")
@click.option("--plot", type=OUTPUT, help="Also draw the size of each class to this .png, .svg or .pdf.")
@seed_option
@cache_option
@table_options
def audit(
    source: str | None,
    manifest: Path | None,
    plot: Path | None,
    seed: int,
    as_json: bool,
    csv: Path | None,
    md: Path | None,
    **options: Any,
) -> None:
    """Look for twins, leaks, wrong labels, outliers and junk in the dataset last extracted, or in SOURCE.

    It uses the cache as it is, runs no network, and never changes a picture. Of twins some stay in the manifest.
    """
    from featcache import api, render

    draw = plotter(plot, "sizes_figure")
    with Bar() as bar:
        summary = api.audit(source, seed, manifest, make_options(options), bar)
    draw(summary)
    show_page(as_json, summary, render.audit_page, csv, md)


@click.command(cls=NamedCommand)
@click.argument("source", type=SOURCE, required=False)
@click.option("--out", type=OUTPUT, default="report.html", show_default=True, help="The page to write.")
@click.option("--head", default="logreg", show_default=True, help="The head whose confusions are shown.")
@heads_option("logreg,svm,svm-rbf,mlp,knn,centroid,ridge,lda")
@click.option("--map", "method", default="pca", show_default=True, help="pca, tsne, or umap (needs featcache[umap]).")
@seed_option
@cache_option
@json_option
def report(
    source: str | None,
    out: Path,
    head: str,
    heads: tuple[str, ...],
    method: str,
    seed: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Write one HTML page on the dataset last extracted, or on SOURCE, that needs nothing else to be shown.

    It shows what compare, bench and finetune recorded, and computes confusions, a map and the audit from the cache.
    """
    from featcache import api, render

    with Bar() as bar:
        summary = api.report(source, out, head, heads, seed, method, make_options(options), bar)
    show(as_json, summary, render.report_text)
