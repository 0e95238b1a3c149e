"""torchvision beside a torch wheel that it does not fit, and beside one that it does: each case in its own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

MISSING = "operator torchvision::nms does not exist"

PLAIN = """
import json
try:
    import torchvision
    said = ""
except RuntimeError as error:
    said = str(error)
print(json.dumps(said))
"""

THROUGH = """
import json, sys
from featcache.backbones import vision_import
try:
    module, failure = vision_import.import_torchvision(), None
    again = vision_import.import_torchvision() is module
except Exception as error:
    module, failure, again = None, [type(error).__name__, str(error)], None
print(json.dumps({
    "version": getattr(module, "__version__", None),
    "again": again,
    "failure": failure,
    "declared": len(vision_import._declared),
    "torch": "torch" in sys.modules,
}))
"""

WITH_TIMM = """
import json
if {first}:
    try:
        import torchvision
    except RuntimeError:
        pass
from featcache.backbones import vision_import
vision_import.import_torchvision()
import timm, torch, torchvision
network = torchvision.models.get_model("squeezenet1_1", weights=None).eval()
shape = list(network(torch.zeros(1, 3, 64, 64)).shape)
print(json.dumps([len(vision_import._declared), timm.is_model("resnet18"), shape]))
"""

FAKE_TORCH = """
class library:
    made = []
    class Library:
        def __init__(self, *name):
            library.made.append(name)
        def define(self, schema):
            pass
"""


def _python(code: str, folder: Path) -> Any:
    """What `code` prints as JSON in a fresh interpreter that looks for modules in `folder` first."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def plain_import(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What an ordinary `import torchvision` says in this environment; empty where it works."""
    said = _python(PLAIN, tmp_path_factory.mktemp("plain"))
    assert isinstance(said, str)
    return said


def test_plain_import_fails_beside_a_cpu_only_torch(plain_import: str) -> None:
    if not plain_import:
        pytest.skip("torch and torchvision are a matching pair here")
    assert MISSING in plain_import


@pytest.mark.slow
@pytest.mark.parametrize("first", [False, True], ids=["at once", "after a plain import failed"])
def test_torchvision_and_timm_work_beside_a_cpu_only_torch(plain_import: str, tmp_path: Path, first: bool) -> None:
    if not plain_import:
        pytest.skip("torch and torchvision are a matching pair here")
    declared, timm_works, shape = _python(WITH_TIMM.format(first=first), tmp_path)
    assert declared >= 1
    assert timm_works
    assert shape == [1, 1000]


def test_nothing_is_declared_beside_the_torch_that_belongs_to_torchvision(plain_import: str, tmp_path: Path) -> None:
    if plain_import:
        pytest.skip(f"torch and torchvision are no matching pair here: {plain_import}")
    declared, timm_works, _ = _python(WITH_TIMM.format(first=False), tmp_path)
    assert declared == 0
    assert timm_works


def _fake(folder: Path, body: str, torch: str | None = None) -> None:
    (folder / "torchvision").mkdir()
    (folder / "torchvision" / "__init__.py").write_text(body)
    if torch is not None:
        (folder / "torch").mkdir()
        (folder / "torch" / "__init__.py").write_text(torch)


def test_an_import_that_works_is_left_alone(tmp_path: Path) -> None:
    _fake(tmp_path, "__version__ = 'fake'")
    found = _python(THROUGH, tmp_path)
    assert found == {"version": "fake", "again": True, "failure": None, "declared": 0, "torch": False}


def test_a_missing_schema_is_declared_once(tmp_path: Path) -> None:
    body = f"""
import torch
if len(torch.library.made) < 1:
    raise RuntimeError("{MISSING}")
__version__ = "fake"
"""
    _fake(tmp_path, body, torch=FAKE_TORCH)
    found = _python(THROUGH, tmp_path)
    assert found == {"version": "fake", "again": True, "failure": None, "declared": 1, "torch": True}


def test_nothing_of_the_failed_import_is_kept(tmp_path: Path) -> None:
    body = f"""
from torchvision import part
if not part.complete:
    raise RuntimeError("{MISSING}")
__version__ = "fake"
"""
    _fake(tmp_path, body, torch=FAKE_TORCH)
    (tmp_path / "torchvision" / "part.py").write_text("import torch; complete = bool(torch.library.made)")
    found = _python(THROUGH, tmp_path)
    assert found["failure"] is None
    assert found["version"] == "fake"


def test_every_known_missing_schema_is_declared_in_turn(tmp_path: Path) -> None:
    body = """
import torch
known = ["nms", "qnms"]
if len(torch.library.made) < len(known):
    raise RuntimeError(f"operator torchvision::{known[len(torch.library.made)]} does not exist")
__version__ = "fake"
"""
    _fake(tmp_path, body, torch=FAKE_TORCH)
    found = _python(THROUGH, tmp_path)
    assert found == {"version": "fake", "again": True, "failure": None, "declared": 2, "torch": True}


@pytest.mark.parametrize(
    "said", ["CUDA error: out of memory", "operator torchvision::deform_conv9 does not exist", "operator other::nms"]
)
def test_another_failure_is_an_error_that_repeats_it(tmp_path: Path, said: str) -> None:
    _fake(tmp_path, f"raise RuntimeError({said!r})")
    found = _python(THROUGH, tmp_path)
    assert found["failure"][0] == "BackboneError"
    assert said in found["failure"][1]
    assert found["declared"] == 0
    assert not found["torch"]


def test_an_operator_that_stays_missing_ends_in_an_error(tmp_path: Path) -> None:
    _fake(tmp_path, f"raise RuntimeError({MISSING!r})", torch=FAKE_TORCH)
    found = _python(THROUGH, tmp_path)
    assert found["failure"][0] == "BackboneError"
    assert "torchvision" in found["failure"][1]
