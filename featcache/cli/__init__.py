"""A command line enters; results leave on stdout, progress and logs on stderr, and an exit code.

0 is success, 1 a failure said in one line, 2 wrong usage, 130 Ctrl-C, 141 nobody reads the results.
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
from featcache.cli.memory import watch_room
from featcache.cli.options import StderrHandler
from featcache.cli.streams import UnreadError, streams
from featcache.errors import DatasetError, FeatcacheError, UsageError, explained, one_line
from featcache.process import keep_freed_memory

WRONG_USAGE = 2
INTERRUPTED = 130
UNREAD = 141
"""What a shell says of a program that SIGPIPE ended: whoever read its results has enough; there is nothing to tell."""
TERMINATED = 143


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(featcache.__version__, prog_name="featcache")
@click.option("-v", "--verbose", is_flag=True, help="Log more on stderr.")
def cli(verbose: bool) -> None:
    """Run each picture through a frozen network once, then train classifiers in seconds."""
    logger = logging.getLogger("featcache")
    logger.handlers = [StderrHandler()]
    logger.setLevel(logging.INFO if verbose else logging.WARNING)
    try:
        os.getcwd()  # noqa: PTH109
    except OSError as error:
        raise DatasetError(f"the current folder cannot be used ({error.strerror}): cd to one that is there") from error


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
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit")  # ours is another one
    warnings.filterwarnings("ignore", message="The number of unique classes is greater")  # few images a class are fine
    warnings.filterwarnings("ignore", message=".*joblib will operate in serial mode")  # it is only asked for threads
    # Of a learning rate that is too large it is said that the network cannot be fitted.
    warnings.filterwarnings(
        "ignore", category=RuntimeWarning, module=r"(sklearn\.neural_network|sklearn\.utils\.extmath)"
    )
    watch_room()
    with streams():
        sys.exit(_exit_code())


def _exit_code() -> int:
    """Run the command line, say what failed, and return the exit code."""
    try:
        code = cli.main(prog_name="featcache", standalone_mode=False)
        sys.stdout.flush()
        return code or 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except FeatcacheError as error:
        _say(str(error))
        return WRONG_USAGE if isinstance(error, UsageError) else 1
    except (click.Abort, KeyboardInterrupt):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is closed, and Python would be torn up as it ends
        _say("interrupted; what was finished is kept: run the same command again")
        return INTERRUPTED
    except UnreadError:
        return UNREAD
    except _Terminated:
        return TERMINATED
    except BaseException as error:  # a panic of Rust is no `Exception`
        said = explained(error)
        if said is None:
            raise
        _say(said)
        return 1


def _say(text: str) -> None:
    click.echo(f"featcache: {one_line(text)}", err=True)


class _Terminated(SystemExit):
    """SIGTERM, which unwinds, so that buffers are committed and temporary files removed."""


def _interrupt(_signal: int, _frame: object) -> NoReturn:
    signal.signal(signal.SIGINT, _leave)
    raise KeyboardInterrupt


def _terminate(_signal: int, _frame: object) -> NoReturn:
    signal.signal(signal.SIGTERM, _leave)
    raise _Terminated(TERMINATED)


def _leave(number: int, _frame: object) -> NoReturn:
    """End at the second signal, wherever the first one is being dealt with; a cache stands worse than that."""
    os.write(2, b"\nfeatcache: stopped at once; what was committed is kept\n")
    os._exit(128 + number)
