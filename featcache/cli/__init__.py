"""A command line enters; results leave on stdout, progress and logs on stderr, and an exit code.

0 is success, 1 a failure said in one line, 2 wrong usage, 130 Ctrl-C.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from typing import NoReturn

import click

import featcache
from featcache.cli import auditing, experiments, finetuning, pictures
from featcache.cli.cache import cache
from featcache.cli.options import StderrHandler
from featcache.errors import FeatcacheError, UsageError, one_line
from featcache.process import keep_freed_memory

WRONG_USAGE = 2
INTERRUPTED = 130
TERMINATED = 143


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(featcache.__version__, prog_name="featcache")
@click.option("-v", "--verbose", is_flag=True, help="Log more on stderr.")
def cli(verbose: bool) -> None:
    """Run each picture through a frozen network once, then train classifiers in seconds."""
    logger = logging.getLogger("featcache")
    logger.handlers = [StderrHandler()]
    logger.setLevel(logging.INFO if verbose else logging.WARNING)


for command in (
    pictures.extract,
    pictures.split,
    experiments.fit,
    experiments.compare,
    experiments.bench,
    experiments.confusions,
    finetuning.finetune,
    pictures.predict,
    pictures.neighbors,
    pictures.export_onnx,
    auditing.audit,
    auditing.report,
    experiments.runs,
    experiments.ledger,
    pictures.demo,
    cache,
):
    cli.add_command(command)


def main() -> NoReturn:
    """Run the command line and exit; every failure a user can meet is one line on stderr."""
    keep_freed_memory()
    signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else whoever started us ignores it
        signal.signal(signal.SIGINT, _interrupt)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of a broken picture the reason is listed once, by us
    warnings.filterwarnings("ignore", message="The number of unique classes is greater")  # few images a class are fine
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        sys.exit(cli.main(prog_name="featcache", standalone_mode=False))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except FeatcacheError as error:
        click.echo(f"featcache: {one_line(str(error))}", err=True)
        sys.exit(WRONG_USAGE if isinstance(error, UsageError) else 1)
    except (click.Abort, KeyboardInterrupt):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is closed, and Python would be torn up as it ends
        click.echo("featcache: interrupted; what was finished is kept, run the same command again to go on", err=True)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _interrupt(_signal: int, _frame: object) -> NoReturn:
    signal.signal(signal.SIGINT, _leave)
    raise KeyboardInterrupt


def _leave(_signal: int, _frame: object) -> NoReturn:
    """End at the second Ctrl-C, wherever the first one is being dealt with; a cache stands worse than that."""
    os.write(2, b"\nfeatcache: stopped at once; what was committed is kept\n")
    os._exit(INTERRUPTED)


def _terminate(_signal: int, _frame: object) -> NoReturn:
    sys.exit(TERMINATED)  # unwinds, so that buffers are committed and temporary files removed
