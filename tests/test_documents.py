"""Every command that the documents show is one that the command line takes, and every file they link to is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from featcache.cli import cli

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(ROOT.glob("examples/*.md")),
    *ROOT.glob("benchmarks/*.md"),
    *ROOT.glob("docs/*.md"),
]
SHOWN = [
    (page, line.removeprefix("$ ").split(" > ")[0])
    for page in PAGES
    for line in page.read_text().splitlines()
    if line.startswith("$ featcache ")
]


def parse(group: click.Group, words: list[str], parent: click.Context | None = None) -> None:
    """Let click take the words as far as it would before it runs a command."""
    with click.Context(group, info_name="featcache", parent=parent) as context:
        name, command, rest = group.resolve_command(context, words)
        assert command is not None
        if isinstance(command, click.Group) and rest:
            parse(command, rest, context)
        else:
            command.make_context(name, rest, parent=context)


@pytest.mark.parametrize(("page", "line"), SHOWN, ids=lambda value: value if isinstance(value, str) else value.name)
def test_a_command_that_is_shown_is_taken(page: Path, line: str) -> None:
    parse(cli, shlex.split(line)[1:])


def test_many_commands_are_shown() -> None:
    assert len(SHOWN) > 60
    assert len({page for page, _ in SHOWN if page.parent.name == "examples"}) == 5


def test_a_command_that_is_not_taken_is_found_out() -> None:
    with pytest.raises(click.UsageError):
        parse(cli, ["fit", "--no-such-option"])
    with pytest.raises(click.UsageError):
        parse(cli, ["cache", "no-such-command"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_file_that_is_linked_is_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target
