"""A command line enters; results leave on stdout, progress and logs on stderr, and an exit code.

0 is success, 1 a failure said in one line, 2 wrong usage, 130 Ctrl-C.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

import featcache
from featcache.errors import CacheError, FeatcacheError, one_line

if TYPE_CHECKING:
    from featcache.api import Options
    from featcache.records.cache import GcSummary

INTERRUPTED = 130
TERMINATED = 143

Command = Callable[..., Any]


def _several(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_FILE = click.Path(path_type=Path)
_cache = click.option("--cache", type=_FILE, help="Folder of the cache  [default: $FEATCACHE_CACHE, else ./cache].")
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
_seed = click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Seed of the split and the head."
)
_running = _several(
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps."),
    click.option("--batch-size", type=click.IntRange(min=1), help="Pictures a batch  [default: by device]."),
)
_weights = click.option("--weights", type=_FILE, help="State dict of the backbone: .pth or .safetensors.")
_network = _several(
    click.option(
        "--backbone",
        default="auto",
        show_default=True,
        help="auto (resnet18, or efficientnet_lite0 where its weights cannot be had), efficientnet_lite0, "
        "any torchvision classification model, or timm:NAME.",
    ),
    _weights,
    _running,
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(featcache.__version__, prog_name="featcache")
@click.option("-v", "--verbose", is_flag=True, help="Log more on stderr.")
def cli(verbose: bool) -> None:
    """Run each picture through a frozen network once, then train classifiers in seconds."""
    logger = logging.getLogger("featcache")
    logger.handlers = [_Stderr()]
    logger.setLevel(logging.INFO if verbose else logging.WARNING)


@cli.command()
@click.argument("source", type=_FILE)
@_network
@click.option("--rehash", is_flag=True, help="Read every file again, also those that look unchanged.")
@_cache
@_json
def extract(source: Path, as_json: bool, **options: Any) -> None:
    """Compute the vectors of SOURCE that the cache lacks.

    SOURCE is a folder (class/*, train|val|test|holdout/class/*, or flat), a CSV with the columns path,label[,split], or
    one picture.
    """
    from featcache import api, report

    with _Bar() as bar:
        summary = api.extract(source, _options(options), bar)
    _print(as_json, summary, report.extract_text)


@cli.command()
@click.argument("source", type=_FILE, required=False)
@click.option("--head", default="logreg", show_default=True, help="logreg, svm or mlp.")
@_seed
@_network
@_cache
@_json
def fit(source: Path | None, head: str, seed: int, as_json: bool, **options: Any) -> None:
    """Train, score and save a head on the dataset last extracted, or on SOURCE.

    With SOURCE, whatever the cache lacks is extracted first. Parameters are never chosen on what is scored.
    """
    from featcache import api, report

    with _Bar() as bar:
        summary = api.fit(source, head, seed, _options(options), bar)
    _print(as_json, summary, lambda row: report.fit_text([row]))


@cli.command()
@click.argument("model", type=_FILE)
@click.argument("source", type=_FILE)
@click.option("--csv", type=_FILE, help="Also write the predictions to this CSV file.")
@click.option("--trust", is_flag=True, help="Open a model file that this cache did not make; it can run any code.")
@_weights
@_running
@_cache
@_json
def predict(model: Path, source: Path, csv: Path | None, trust: bool, as_json: bool, **options: Any) -> None:
    """Label the pictures of SOURCE with a fitted MODEL."""
    from featcache import api, report

    with _Bar() as bar:
        summary = api.predict(model, source, csv, trust, _options(options), bar)
    _print(as_json, summary, report.predict_text)


@cli.command()
@click.argument("source", type=_FILE, required=False)
@_running
@_cache
@_json
def demo(source: Path | None, as_json: bool, **options: Any) -> None:
    """Extract SOURCE (default: handwritten digits) and compare all heads on it."""
    from featcache import api, report

    with _Bar() as bar:
        summary = api.demo(source, _options(options), bar)
    _print(as_json, summary, report.demo_text)


@cli.group()
def cache() -> None:
    """See, check, clean up, and carry elsewhere, what is in the cache."""


_dry_run = click.option("--dry-run", is_flag=True, help="Only say what would be done.")


@cache.command()
@_cache
@_json
def info(as_json: bool, **options: Any) -> None:
    """List datasets and backbones with their rows, bytes and last use."""
    from featcache import api, report

    _print(as_json, api.cache_info(_options(options)), report.info_text)


@cache.command()
@click.option("--repair", is_flag=True, help="Rebuild the catalog and extract again what is stale or missing.")
@_running
@_cache
@_json
def verify(repair: bool, as_json: bool, **options: Any) -> None:
    """Check all checksums, and why each picture is valid, stale, missing or orphaned.

    Exits with 1 where vectors or the catalog are missing or damaged, and not repaired.
    """
    from featcache import api, report

    with _Bar() as bar:
        summary = api.cache_verify(repair, _options(options), bar)
    _print(as_json, summary, report.verify_text)
    if summary.problems:
        more = f" (and {len(summary.problems) - 1:,} more)" if len(summary.problems) > 1 else ""
        raise CacheError(f"{summary.problems[0]}{more}")


@cache.command()
@click.option("--forget", type=_FILE, multiple=True, help="Give up this dataset first; may be given again.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_dry_run
@_cache
@_json
def gc(forget: tuple[Path, ...], yes: bool, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Delete vectors that no dataset uses any more, and those of old fingerprints, after asking."""
    from featcache import api, report

    def agree(summary: GcSummary) -> bool:
        click.echo(report.gc_text(summary), err=True)
        try:
            return click.confirm("Delete them?", err=True)
        except click.Abort as abort:
            if sys.stdin.isatty():
                raise
            raise click.UsageError("nobody answered: --yes deletes without asking, --dry-run only says what") from abort

    with _Bar() as bar:
        summary = api.cache_gc(forget, dry_run, None if yes else agree, _options(options), bar)
    _print(as_json, summary, report.gc_text)


@cache.command()
@_dry_run
@_cache
@_json
def compact(dry_run: bool, as_json: bool, **options: Any) -> None:
    """Merge small segments into larger ones."""
    from featcache import api, report

    with _Bar() as bar:
        summary = api.cache_compact(dry_run, _options(options), bar)
    _print(as_json, summary, report.compact_text)


@cache.command()
@click.argument("file", type=_FILE)
@click.option("--dataset", type=_FILE, help="The dataset to export  [default: the one last extracted].")
@_cache
@_json
def export(file: Path, dataset: Path | None, as_json: bool, **options: Any) -> None:
    """Write the vectors of a dataset, with paths, labels and splits, to FILE (.npz, .parquet or .h5)."""
    from featcache import api, report

    _print(as_json, api.cache_export(file, dataset, _options(options)), report.exchange_text)


@cache.command(name="import")
@click.argument("file", type=_FILE)
@_cache
@_json
def import_(file: Path, as_json: bool, **options: Any) -> None:
    """Bring the vectors of an exported FILE into the cache; `fit` then works on it without the pictures."""
    from featcache import api, report

    _print(as_json, api.cache_import(file, _options(options)), report.exchange_text)


def main() -> NoReturn:
    """Run the command line and exit; every failure a user can meet is one line on stderr."""
    signal.signal(signal.SIGTERM, _terminate)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of a broken picture the reason is listed once, by us
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        sys.exit(cli.main(prog_name="featcache", standalone_mode=False))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except FeatcacheError as error:
        click.echo(f"featcache: {one_line(str(error))}", err=True)
        sys.exit(1)
    except (click.Abort, KeyboardInterrupt):
        click.echo("featcache: interrupted; what was finished is kept, run the same command again to go on", err=True)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _terminate(_signal: int, _frame: object) -> NoReturn:
    sys.exit(TERMINATED)  # unwinds, so that buffers are committed and temporary files removed


def _options(values: dict[str, Any]) -> Options:
    from featcache.api import Options

    return Options(**values)


def _print(as_json: bool, summary: Any, text: Callable[[Any], str]) -> None:
    from dataclasses import asdict

    click.echo(json.dumps(asdict(summary), indent=2) if as_json else text(summary))


class _Bar:
    """A progress bar on stderr, made at the first step; on a terminal live, in a log one line every ten seconds."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._stage = ""

    def __call__(self, stage: str, done: int, total: int) -> None:
        from tqdm import tqdm

        if stage != self._stage:
            self._close()
            self._stage = stage
            unit, interval = (
                ("img" if stage in ("extract", "verify") else "step"),
                (0.1 if sys.stderr.isatty() else 10.0),
            )
            self._bar = tqdm(total=total, desc=stage, unit=unit, mininterval=interval, file=sys.stderr)
        self._bar.update(done - self._bar.n)
        if done == total:
            self._close()

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar, self._stage = None, ""


class _Stderr(logging.Handler):
    """Writes log lines to stderr without tearing a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(f"featcache: {one_line(record.getMessage())}", file=sys.stderr)
