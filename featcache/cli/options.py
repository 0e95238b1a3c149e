"""Nothing enters; the options, the progress bar and the printing that all commands share leave."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featcache.errors import FeatcacheError, OutputError, UsageError, one_line

if TYPE_CHECKING:
    from featcache.api import Options
    from featcache.render.tables import Page

Command = Callable[..., Any]


def several(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Return a decorator that adds these options, in this order."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


class NamedCommand(click.Command):
    """A command with files to write, none of which may be what it reads, or two of them the same."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; raises `UsageError`, and `OutputError` for a file in a cache, before any work."""
        from featcache.api.outputs import refuse_cache

        taken: dict[str, str] = {}
        for is_output in (False, True):
            for option in self.params:
                value = ctx.params.get(str(option.name))
                if isinstance(value, str | Path) and (option.type is OUTPUT) is is_output:
                    path, name = os.path.realpath(value), option.human_readable_name
                    if is_output and path in taken:
                        raise UsageError(f"{value} is both {taken[path]} and {name}: name another file to write")
                    if is_output:
                        refuse_cache(Path(value))
                    if is_output or Path(path).is_file():
                        taken[path] = name
        return super().invoke(ctx)


class SourceCommand(NamedCommand):
    """A command that extracts a SOURCE: it is kept as what was asked for last also where its other words are wrong."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the words; of wrong ones the SOURCE is kept, as far as it can be told."""
        try:
            return super().parse_args(ctx, [*args])
        except (click.UsageError, FeatcacheError):
            with click.Context(self, resilient_parsing=True) as lenient:
                known, rest, _ = self.make_parser(lenient).parse_args([*args])
            source = known.get("source")
            with _asking(source if isinstance(source, str) else next(iter(rest), None), known.get("cache")):
                raise

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with _asking(ctx.params["source"], ctx.params["cache"]):
            return super().invoke(ctx)


def _asking(source: str | None, cache: str | Path | None) -> AbstractContextManager[None]:
    from featcache.api.asking import asking
    from featcache.api.options import Options

    return asking(source, Options(cache=Path(cache) if cache else None))


class _Output(click.Path):
    """A file to write, refused before any work where there is no folder for it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        name = os.fsdecode(super().convert(value, param, ctx))
        if not name:
            raise UsageError("the name of a file to write is empty: give one, or leave the option out")
        path = Path(name)
        if not path.parent.is_dir():
            raise OutputError(f"there is no folder {path.absolute().parent} for {path.name}: make it first")
        if path.is_dir():
            raise OutputError(f"{path} is a folder: name a file in it")
        folder = Path(os.path.realpath(path)).parent  # where the new file is made that takes the place of an old one
        if not folder.is_dir():
            raise OutputError(
                f"{path} is a link to {os.path.realpath(path)}, and there is no such folder: make it first"
            )
        needed = [path] if path.exists() and not path.is_file() else [folder, *[path][: path.exists()]]
        if not all(os.access(each, os.W_OK) for each in needed):
            raise OutputError(f"not allowed to write {path}: name another place")
        return path


class _File(click.Path):
    """A path, which an empty word is not."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            raise UsageError("the name of a file or folder is empty: give one, or leave the option out")
        return super().convert(value, param, ctx)


FILE = _File(path_type=Path)
SOURCE = click.STRING
"""A path or a URL: as a path two slashes would become one."""
OUTPUT = _Output()
cache_option = click.option(
    "--cache", type=FILE, help="Folder of the cache  [default: $FEATCACHE_CACHE, else ./cache]."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
seed_option = click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Seed of the split and the head."
)


def _columns(_context: click.Context, _parameter: click.Parameter, value: str) -> dict[str, str] | None:
    pairs = [pair.partition("=") for pair in words(value)]
    for name, equals, theirs in pairs:
        if not (name and equals and theirs):
            raise UsageError(f"--columns {value}: say what the columns are called as in path=file,label=breed")
    return {name.strip(): theirs.strip() for name, _, theirs in pairs} or None


columns_option = click.option(
    "--columns",
    default="",
    callback=_columns,
    metavar="path=A,label=B,split=C",
    help="What these are called in a manifest, in Parquet files or, as endings, in tar shards.",
)
reading_options = several(
    columns_option,
    click.option(
        "--label-from",
        metavar="REGEX",
        help="Labels from the names of files: the group () of what it finds in their path below SOURCE; (?P<split>...) "
        "is the split.",
    ),
    click.option("--names-encoding", metavar="NAME", help="Of names in an archive that do not say theirs, as gbk."),
)
pixel_options = several(
    click.option(
        "--range",
        "limits",
        metavar="MIN,MAX",
        help="What is black and white in TIFF of more than 8 bits, and in DICOM: two numbers, percentile or dtype.",
    ),
    click.option(
        "--channels", metavar="I[,J,K]", help="The channels of TIFF and DICOM files to take, from 0: one, or three."
    ),
    click.option(
        "--pages",
        default="first",
        show_default=True,
        help="The page of TIFF, or frame of DICOM, to take: first, 2, 3 ... or all, whose vectors' mean is the file's.",
    ),
)
running_options = several(
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps."),
    click.option(
        "--engine",
        default="auto",
        show_default=True,
        help="auto, torch or onnx (ONNX Runtime, CPU only); to extract also ray (many machines).",
    ),
    click.option("--batch-size", type=click.IntRange(min=1), help="Pictures a batch  [default: by engine]."),
)
weights_option = click.option("--weights", type=FILE, help="State dict of the backbone: .pth or .safetensors.")
network_options = several(
    click.option(
        "--backbone",
        default="auto",
        show_default=True,
        help="auto (resnet18, or efficientnet_lite0 where its weights cannot be had), efficientnet_lite0, "
        "any torchvision classification model, or timm:NAME.",
    ),
    weights_option,
    click.option(
        "--precision",
        default="fp32",
        show_default=True,
        help="fp32, fp16 (for GPUs) or int8: other vectors each.",
    ),
    pixel_options,
    click.option("--draft", is_flag=True, help="Decode large JPEG files in fewer pixels; gives other vectors."),
    reading_options,
    running_options,
)
table_options = several(
    json_option,
    click.option("--csv", type=OUTPUT, help="Also write the rows to this CSV file, unrounded."),
    click.option("--md", type=OUTPUT, help="Also write the tables to this Markdown file."),
)


plot_option = click.option("--plot", type=OUTPUT, help="Also draw a figure of it to this .png, .svg or .pdf.")


def words(value: str) -> tuple[str, ...]:
    """Return the words between the commas of a value; none of an empty one."""
    return tuple(word.strip() for word in value.split(",")) if value else ()


def heads_option(default: str) -> Callable[[Command], Command]:
    """Return the option --heads with these names as its default."""

    def split(_context: click.Context, _parameter: click.Parameter, value: str) -> tuple[str, ...]:
        from featcache.heads import FLOOR, HEADS

        return (*HEADS, FLOOR) if value == "all" else words(value)

    return click.option(
        "--heads", default=default, show_default=True, callback=split, help="Names with commas, or all."
    )


def make_options(values: dict[str, Any]) -> Options:
    """Return the API's options from a command's."""
    from featcache.api import Options

    said = [values.pop(name, None) for name in ("limits", "channels", "pages")]
    return Options(**values, reading=reading_of(*said))


def reading_of(limits: str | None, channels: str | None, pages: str | None) -> str | None:
    """Return the text of how pictures are read, `None` where nothing is said; raises `UsageError`."""
    from featcache.records.reading import Reading

    parts = [f"range {limits}"] if limits else []
    parts += [f"channels {channels.replace(' ', '')}"] if channels else []
    parts += [f"page {pages}"] if pages not in (None, "first") else []
    return Reading.of("; ".join(parts)).text


def show(as_json: bool, summary: Any, text: Callable[[Any], str]) -> None:
    """Print a summary on stdout, as text or as JSON."""
    from dataclasses import asdict

    from featcache.sealed import without_infinite

    click.echo(json.dumps(without_infinite(asdict(summary)), indent=2, allow_nan=False) if as_json else text(summary))


def show_page(as_json: bool, summary: Any, page: Callable[[Any], Page], csv: Path | None, md: Path | None) -> None:
    """Write a summary of tables to the files that were asked for, then print it; raises `OutputError`."""
    from featcache.api.outputs import write
    from featcache.render import tables

    files = [(csv, tables.summary_csv(summary) if csv else ""), (md, tables.markdown(page(summary)) if md else "")]
    for path, content in files:
        if path:
            write(path, content.encode(errors="backslashreplace"))
    show(as_json, summary, lambda found: tables.text(page(found)))


def plotter(plot: Path | None, figure: str) -> Callable[[Any], None]:
    """Return what draws a summary to the file that was asked for, if any; raises `OutputError` where it cannot."""
    if plot is None:
        return lambda summary: None
    from featcache.api.outputs import write
    from featcache.render import figures

    figures.check(plot)
    return lambda summary: write(plot, figures.draw(getattr(figures, figure)(summary), plot.suffix))


def fail_if(problems: list[str], kind: type[FeatcacheError]) -> None:
    """Raise the first of what was said in a result already, so that the exit code tells it too."""
    if problems:
        more = f" (and {len(problems) - 1:,} more)" if len(problems) > 1 else ""
        raise kind(f"{problems[0]}{more}")


class Bar:
    """A progress bar on stderr, made at the first step; on a terminal live, in a log one line every ten seconds."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._stage = ""
        self._said = ""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show how far a stage has come."""
        from tqdm import tqdm

        if stage != self._stage:
            self._close()
            self._stage = stage
            unit, interval = (
                ("img" if stage.startswith(("extract", "split", "verify")) else "step"),
                (0.1 if sys.stderr.isatty() else 10.0),
            )
            tqdm.monitor_interval = 0  # a thread that looks after bars that count in ever larger steps; ours do not
            self._bar = tqdm(
                total=total,
                desc=one_line(stage),
                unit=unit,
                mininterval=interval,
                miniters=1,
                file=sys.stderr,
                postfix=one_line(self._said) or None,
            )
        self._bar.update(done - self._bar.n)
        if done == total:
            self._close()

    def say(self, text: str) -> None:
        """Show a few words behind the bar of the running stage."""
        self._said = text
        if self._bar is not None:
            self._bar.set_postfix_str(one_line(text))

    def __enter__(self) -> Bar:
        """Return the bar itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the bar of the last stage."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar, self._stage = None, ""


class StderrHandler(logging.Handler):
    """Writes log lines to stderr without tearing a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record as one line."""
        from tqdm import tqdm

        tqdm.write(f"featcache: {one_line(record.getMessage())}", file=sys.stderr)
