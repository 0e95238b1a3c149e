"""Words that name an experiment enter; its tables leave on stdout, and in the files that were asked for."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featcache.cli.options import (
    SOURCE,
    Bar,
    NamedCommand,
    SourceCommand,
    cache_option,
    fail_if,
    heads_option,
    json_option,
    make_options,
    network_options,
    plot_option,
    plotter,
    seed_option,
    several,
    show,
    show_page,
    table_options,
    words,
)
from featcache.errors import HeadError

if TYPE_CHECKING:
    from featcache.records.experiments import Sweep

_source = click.argument("source", type=SOURCE, required=False)
_seeds = click.option("--seeds", "n_seeds", type=click.IntRange(min=1), default=5, show_default=True, help="How many.")
_train_views = click.option("--train-views", is_flag=True, help="Fit on the extracted views of each picture too.")
_tta = click.option("--tta", is_flag=True, help="Score (and predict) the mean over the extracted views.")


class _Numbers(click.ParamType[Any]):
    """Numbers between commas; `all` is `None` where it is allowed."""

    name = "n,n,..."

    def __init__(self, kind: type[int] | type[float], has_all: bool = False, has_zero: bool = False) -> None:
        self._kind, self._has_all, self._has_zero = kind, has_all, has_zero

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            parts = [part.strip() for part in value.split(",")]
            found = [None if self._has_all and part == "all" else self._kind(part) for part in parts]
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers with commas between them", param, ctx)
        numbers = [number for number in found if number is not None]
        if not all(math.isfinite(number) and (number > 0 or (self._has_zero and number == 0)) for number in numbers):
            self.fail(f"{value!r} has a number that is not above zero", param, ctx)
        return tuple(found)


_sweep = several(
    click.option(
        "--hidden", type=_Numbers(int), multiple=True, help="Units of each hidden layer; again for another try."
    ),
    click.option("--lr", type=_Numbers(float), default=(), help="Learning rates to try."),
    click.option("--activation", default="", help="Activations to try: relu, tanh, logistic, identity."),
    click.option("--alpha", type=_Numbers(float, has_zero=True), default=(), help="L2 penalties to try."),
)


@click.command(cls=SourceCommand)
@_source
@click.option(
    "--head",
    default="logreg",
    show_default=True,
    help="logreg, svm, svm-rbf, mlp, knn, centroid, ridge, lda, or dummy (the floor).",
)
@_sweep
@seed_option
@_train_views
@_tta
@click.option(
    "--out-of-core", is_flag=True, help="Leave the vectors on the disk (logreg, svm); on a GPU where there is one."
)
@network_options
@cache_option
@table_options
def fit(
    source: str | None,
    head: str,
    seed: int,
    train_views: bool,
    tta: bool,
    out_of_core: bool,
    as_json: bool,
    csv: Path | None,
    md: Path | None,
    **options: Any,
) -> None:
    """Train, score and save a head on the dataset last extracted, or on SOURCE.

    With SOURCE, whatever the cache lacks is extracted first. Parameters are never chosen on what is scored. The options
    --hidden, --lr, --activation and --alpha are for the head mlp; of several values the best is chosen.
    """
    from featcache import api, render

    sweep = _make_sweep(options)
    with Bar() as bar:
        summary = api.fit(source, head, seed, make_options(options), bar, train_views, tta, sweep, out_of_core)
    show_page(as_json, summary, lambda row: render.fit_page([row]), csv, md)


@click.command(cls=SourceCommand)
@_source
@heads_option("all")
@_seeds
@seed_option
@_train_views
@_tta
@network_options
@plot_option
@cache_option
@table_options
def compare(
    source: str | None,
    heads: tuple[str, ...],
    n_seeds: int,
    seed: int,
    train_views: bool,
    tta: bool,
    plot: Path | None,
    as_json: bool,
    csv: Path | None,
    md: Path | None,
    **options: Any,
) -> None:
    """Score heads on the same pictures, one row each, with intervals and a test against the best.

    With --train-views or --tta each head has a second row, with the views. Exits with 1 where a head failed.
    """
    from featcache import api, render

    draw = plotter(plot, "compare_figure")
    with Bar() as bar:
        summary = api.compare(source, heads, n_seeds, seed, make_options(options), bar, train_views, tta)
    draw(summary)
    show_page(as_json, summary, render.compare_page, csv, md)
    fail_if([row.error for row in summary.rows if row.error], HeadError)


@click.command(cls=SourceCommand)
@_source
@heads_option("logreg,svm,svm-rbf,mlp,knn,centroid,ridge,lda")
@click.option("--classes", type=_Numbers(int, True), help="Numbers of classes  [default: 2,5,10,20,50,all].")
@click.option("--per-class", type=_Numbers(int, True), help="Images of each class  [default: 1,2,5,10,30,all].")
@_seeds
@seed_option
@network_options
@plot_option
@cache_option
@table_options
def bench(
    source: str | None,
    heads: tuple[str, ...],
    classes: tuple[int | None, ...] | None,
    per_class: tuple[int | None, ...] | None,
    n_seeds: int,
    seed: int,
    plot: Path | None,
    as_json: bool,
    csv: Path | None,
    md: Path | None,
    **options: Any,
) -> None:
    """Score heads against the number of classes, and against the number of training images of each class.

    Finished cells are kept: an interrupted run goes on where it stopped. Exits with 1 where a cell is not as asked.
    """
    from featcache import api, render

    draw = plotter(plot, "bench_figure")
    with Bar() as bar:
        summary = api.bench(source, heads, classes, per_class, n_seeds, seed, make_options(options), bar)
    draw(summary)
    show_page(as_json, summary, render.bench_page, csv, md)
    fail_if([row.error or row.problem or "" for row in summary.rows if row.error or row.problem], HeadError)


@click.command(cls=SourceCommand)
@_source
@click.option("--head", default="logreg", show_default=True, help="The head whose confusions are counted.")
@heads_option("logreg,svm,svm-rbf,mlp,knn,centroid,ridge,lda")
@seed_option
@network_options
@plot_option
@cache_option
@table_options
def confusions(
    source: str | None,
    head: str,
    heads: tuple[str, ...],
    seed: int,
    plot: Path | None,
    as_json: bool,
    csv: Path | None,
    md: Path | None,
    **options: Any,
) -> None:
    """Say which classes are taken for which, and which of them none of the --heads can learn."""
    from featcache import api, render

    draw = plotter(plot, "confusions_figure")
    with Bar() as bar:
        summary = api.confusions(source, head, heads, seed, make_options(options), bar)
    draw(summary)
    show_page(as_json, summary, render.confusions_page, csv, md)
    fail_if(list(summary.errors), HeadError)


@click.group(invoke_without_command=True)
@cache_option
@table_options
@click.pass_context
def runs(context: click.Context, /, as_json: bool, csv: Path | None, md: Path | None, **options: Any) -> None:
    """List what was run, oldest first; `runs show` and `runs compare` look closer."""
    if context.invoked_subcommand is not None:
        if as_json or csv or md or options["cache"]:
            raise click.UsageError(f"put the options behind `runs {context.invoked_subcommand}`")
        return
    from featcache import api, render

    show_page(as_json, api.runs(make_options(options)), render.runs_page, csv, md)


@runs.command(name="show")
@click.argument("number", type=int)
@cache_option
@json_option
def runs_show(number: int, as_json: bool, **options: Any) -> None:
    """Print run NUMBER again as it was printed then, with its versions and times."""
    from featcache import api, render

    show(as_json, api.runs_show(number, make_options(options)), render.run_text)


@runs.command(name="compare")
@click.argument("first", type=int)
@click.argument("second", type=int)
@cache_option
@table_options
def runs_compare(first: int, second: int, as_json: bool, csv: Path | None, md: Path | None, **options: Any) -> None:
    """Set the scores of runs FIRST and SECOND side by side, and say what differs between them."""
    from featcache import api, render

    show_page(as_json, api.runs_compare(first, second, make_options(options)), render.runs_compare_page, csv, md)


@click.command(cls=NamedCommand)
@_source
@cache_option
@table_options
def ledger(source: str | None, as_json: bool, csv: Path | None, md: Path | None, **options: Any) -> None:
    """Say where the time went since the first extraction, and from when on the cache was ahead."""
    from featcache import api, render

    show_page(as_json, api.ledger(source, make_options(options)), render.ledger_page, csv, md)


def _make_sweep(options: dict[str, Any]) -> Sweep:
    from featcache.records.experiments import Sweep

    activation = words(options.pop("activation"))
    return Sweep(tuple(options.pop("hidden")), options.pop("lr"), activation, options.pop("alpha"))
