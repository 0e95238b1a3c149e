"""Words that name pictures enter; what was extracted, split or predicted of them leaves on stdout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from featcache.cli.options import (
    FILE,
    OUTPUT,
    SOURCE,
    Bar,
    NamedCommand,
    SourceCommand,
    cache_option,
    columns_option,
    json_option,
    make_options,
    network_options,
    pixel_options,
    reading_of,
    reading_options,
    running_options,
    seed_option,
    show,
    show_page,
    table_options,
    weights_option,
    words,
)
from featcache.errors import UsageError


def _shard(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    number, _, count = (value or "").partition("/")
    if value is not None and not (number.isdecimal() and count.isdecimal()):
        raise UsageError(f"--shard {value}: say which of how many, as in 0/4, 1/4, 2/4 and 3/4")
    return None if value is None else (int(number), int(count))


_trust = click.option("--trust", is_flag=True, help="Open a .joblib model of an old version, which can run any code.")


@click.command(cls=SourceCommand)
@click.argument("source", type=SOURCE)
@network_options
@click.option("--views", default="", help="Also extract these views: flip, crops5 (the corners), or both: flip,crops5.")
@click.option("--rehash", is_flag=True, help="Read every file again, also those that look unchanged.")
@click.option(
    "--shard", callback=_shard, metavar="i/n", help="Only part i of n, 0 to n-1, for jobs that share the work."
)
@click.option(
    "--share", metavar="URL", help="Put vectors there too, and take those that others put: s3://bucket/cache."
)
@click.option("--check", is_flag=True, help="Measure what int8, fp16 or --draft costs: cosines, and a head's accuracy.")
@click.option(
    "--address",
    help="With --engine ray: the cluster's HOST:PORT, or auto  [default: $RAY_ADDRESS, else it is started].",
)
@cache_option
@json_option
def extract(source: str, views: str, check: bool, shard: tuple[int, int] | None, as_json: bool, **options: Any) -> None:
    """Compute the vectors of SOURCE that the cache lacks.

    SOURCE is a folder (class/*, train|val|test|holdout/class/*, or flat), a .zip or .tar of one, WebDataset shards, a
    CSV or Parquet manifest with the columns path,label[,split], Parquet files with pictures in them, a folder that
    `datasets` saved, or one picture; here, or at a URL such as s3://bucket/imgs.
    """
    from featcache import api, render

    with Bar() as bar:
        summary = api.extract(source, make_options(options), bar, words(views), check, shard)
    show(as_json, summary, render.extract_text)


@click.command(cls=NamedCommand)
@click.argument("source", type=SOURCE)
@click.option("--test", type=float, default=0.2, show_default=True, help="Fraction of each class that is scored.")
@click.option("--val", type=float, default=0.0, show_default=True, help="Fraction of each class to choose by.")
@seed_option
@pixel_options
@reading_options
@click.option("--out", type=FILE, help="The manifest to write, a .csv file  [default: NAME-split.csv].")
@click.option("--links", type=FILE, metavar="DIR", help="Make links DIR/train/CLASS/... instead of a manifest.")
@json_option
def split(
    source: str,
    test: float,
    val: float,
    seed: int,
    limits: str | None,
    channels: str | None,
    pages: str | None,
    columns: dict[str, str] | None,
    label_from: str | None,
    names_encoding: str | None,
    out: Path | None,
    links: Path | None,
    as_json: bool,
) -> None:
    """Split SOURCE into train, test and perhaps val, by class and by content.

    SOURCE is what `extract` takes, with labels and without splits. No picture is moved or copied.
    """
    from featcache import api, render

    with Bar() as bar:
        said = reading_of(limits, channels, pages)
        summary = api.split(source, test, val, seed, out, links, bar, columns, label_from, names_encoding, said)
    show(as_json, summary, render.split_text)


@click.command(cls=NamedCommand)
@click.argument("model", type=FILE)
@click.argument("source", type=SOURCE)
@click.option("--csv", type=OUTPUT, help="Also write the predictions to this CSV file.")
@_trust
@columns_option
@weights_option
@running_options
@cache_option
@json_option
def predict(model: Path, source: str, csv: Path | None, trust: bool, as_json: bool, **options: Any) -> None:
    """Label the pictures of SOURCE with a fitted MODEL."""
    from featcache import api, render

    with Bar() as bar:
        summary = api.predict(model, source, csv, trust, make_options(options), bar)
    show(as_json, summary, render.predict_text)


@click.command(cls=NamedCommand)
@click.argument("picture", type=SOURCE)
@click.option("-k", type=click.IntRange(min=1), default=10, show_default=True, help="How many pictures to show.")
@click.option("--dataset", type=SOURCE, metavar="SOURCE", help="Look here  [default: the dataset last extracted].")
@click.option(
    "--index", is_flag=True, help="Look through an index, made on first use: approximate, for large datasets."
)
@weights_option
@cache_option
@table_options
def neighbors(
    picture: str,
    k: int,
    dataset: str | None,
    index: bool,
    as_json: bool,
    csv: Path | None,
    md: Path | None,
    **options: Any,
) -> None:
    """Show the pictures of the dataset last extracted, or of SOURCE, that are most like PICTURE.

    PICTURE may be any file. The cosine similarity of its vector with each of the dataset's is computed; PICTURE itself
    is left out of them, files with the same bytes are marked as copies.
    """
    from featcache import api, render

    with Bar() as bar:
        summary = api.neighbors(picture, k, dataset, make_options(options), bar, index)
    show_page(as_json, summary, render.neighbors_page, csv, md)


@click.command(cls=NamedCommand)
@click.argument("model", type=FILE)
@click.option("--out", type=OUTPUT, help="The file to write  [default: NAME.onnx].")
@_trust
@weights_option
@cache_option
@json_option
def export_onnx(model: Path, out: Path | None, trust: bool, as_json: bool, **options: Any) -> None:
    """Write a fitted MODEL as one ONNX file: pixels in, probabilities out.

    Resizing, cropping, the network and the head are in it. It is checked in ONNX Runtime before it is written.
    """
    from featcache import api, render

    show(as_json, api.export_onnx(model, out, trust, make_options(options)), render.onnx_text)


@click.command(cls=SourceCommand)
@click.argument("source", type=SOURCE, required=False)
@running_options
@cache_option
@json_option
def demo(source: str | None, as_json: bool, **options: Any) -> None:
    """Extract SOURCE (default: handwritten digits) and compare all heads on it."""
    from featcache import api, render

    with Bar() as bar:
        summary = api.demo(source, make_options(options), bar)
    show(as_json, summary, render.demo_text)
