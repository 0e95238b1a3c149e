"""The layers of the design, what the command line may import, and what the documents must mention."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import featcache
from featcache.cli import cli

PACKAGE = Path(featcache.__file__).parent
README = Path(__file__).parent.parent / "README.md"
LAYERS = [
    "forks",
    "errors",
    "texts",
    "sheets",
    "values",
    "process",
    "records",
    "sealed",
    "directories",
    "layout",
    "channels",
    "dicom",
    "codestreams",
    "depths",
    "transparency",
    "oddities",
    "sources",
    "resize",
    "augment",
    "bounds",
    "raster",
    "frames",
    "decode",
    "discover",
    "backbones",
    "embed",
    "store",
    "load",
    "search",
    "splits",
    "heads",
    "tuning",
    "evaluate",
    "experiments",
    "audits",
    "render",
    "api",
    "cli",
    "__main__",
]


def _imports(path: Path) -> Iterator[str]:
    """Yield the featcache modules that a file imports anywhere, inside functions and TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            if node.module == "featcache":
                yield from (f"featcache.{alias.name}" for alias in node.names)
            else:
                yield node.module


def _layer(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


SOURCES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.parent != PACKAGE or path.name != "__init__.py"]


def test_every_module_has_a_layer() -> None:
    assert {_layer(path) for path in SOURCES} <= set(LAYERS)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_layers_above(path: Path) -> None:
    own = _layer(path)
    for name in _imports(path):
        parts = name.split(".")
        if parts[0] != "featcache" or parts[1:] in ([], ["__version__"]):
            continue
        assert LAYERS.index(parts[1]) <= LAYERS.index(own), f"{path} imports {name}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_says_in_its_first_line_what_enters_and_leaves(path: Path) -> None:
    first = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0]
    assert "enter" in first
    assert "leave" in first


def test_no_h5py_outside_the_store() -> None:
    users = {_layer(path) for path in SOURCES if "h5py" in set(_imports(path))}
    assert users == {"store"}


def test_the_command_line_starts_without_the_heavy_libraries() -> None:
    code = "import sys, featcache.cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "torchvision", "timm", "sklearn", "h5py", "numpy", "PIL"} & set(loaded)


def _commands(group: click.Group, prefix: str = "") -> dict[str, click.Command]:
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        whole = f"{prefix}{name}"
        found |= _commands(command, f"{whole} ") if isinstance(command, click.Group) else {whole: command}
    return found


COMMANDS = _commands(cli)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_each_command_has_help_and_json_and_stands_in_the_readme(name: str) -> None:
    command = COMMANDS[name]
    text = command.get_help(click.Context(command, info_name=name))
    assert (command.help or "").strip()
    assert "--json" in text
    assert f"featcache {name}" in README.read_text()
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts} has no help"


def test_the_public_names_load() -> None:
    for name in featcache.__all__:
        assert getattr(featcache, name)
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        featcache.nothing_of_the_kind  # noqa: B018
