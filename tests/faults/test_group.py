"""A cache that a group shares, and one member whose umask lets nobody else in: that part is named, the rest goes on."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import TINTS, write_picture

from featcache import Options, extract
from featcache.store import Cache

NAMES = ("ours", "theirs")
ME = pwd.getpwuid(os.getuid()).pw_name


@dataclass
class Shared:
    """Where a cache of two datasets lies, each with a network of its own, and what of `theirs` may be closed."""

    folder: Path
    pictures: Path
    vectors: Path
    run: Path

    def call(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command as somebody who may not read everything: the superuser gives that up for it."""
        program = [sys.executable, "-m", "featcache", *map(str, words)]
        if os.getuid() == 0:
            program = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *program]
        paths = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
        environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            program, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=200, check=False
        )

    def segments(self) -> list[Path]:
        return sorted((self.folder / "cache" / "segments").rglob("seg-*.h5"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    from featcache.backbones import scratch_cnn

    folder = tmp_path_factory.mktemp("group")
    for seed, name in enumerate(NAMES):
        torch.save(scratch_cnn.network(seed).state_dict(), folder / f"{name}.pth")
        for at, label in enumerate(("sky", "leaf")):
            for number in range(6):
                write_picture(folder / name / label / f"{number}.png", 100 * seed + 10 * at + number, TINTS[label])
        extract(folder / name, Options("scratch-cnn", folder / f"{name}.pth", folder / "cache"))
    return folder


@pytest.fixture
def shared(pictures: Path, tmp_path: Path) -> Iterator[Shared]:
    if os.getuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("setpriv is needed to give up the rights of the superuser")
    cache = tmp_path / "cache"
    shutil.copytree(pictures / "cache", cache)
    with Cache(cache) as opened:
        theirs = next(run for run in opened.runs.all() if run.id == 2).fingerprint
    yield Shared(tmp_path, pictures, cache / "segments" / theirs[:16], cache / "runs" / "000002.json")
    for path in (cache, cache / "runs", *(cache / "segments").iterdir()):
        path.chmod(0o755)


@pytest.mark.slow
def test_what_a_member_of_a_group_closed_is_named_with_its_owner_and_the_rest_goes_on(shared: Shared) -> None:
    modes = {path: path.stat().st_mode for path in (shared.vectors, shared.run)}
    for path in modes:
        path.chmod(0)
    kept = len(shared.segments())
    ours, theirs = shared.pictures / "ours", shared.pictures / "theirs"
    again = ("extract", theirs, "--backbone", "scratch-cnn", "--weights", shared.pictures / "theirs.pth")
    refused = {
        ("fit",): shared.run,
        ("cache", "verify"): shared.run,
        ("cache", "gc", "--yes", "--forget", ours): shared.run,
        again: shared.vectors,
    }
    for words, path in refused.items():
        done = shared.call(*words)
        assert done.returncode == 1, (words, done.stderr)
        assert f"{path} cannot be used by you: it belongs to {ME}, who opens it" in done.stderr.splitlines()[-1]
        assert f"`chmod -R ug+rwX {path}`" in done.stderr.splitlines()[-1]
    for words in (("fit", ours), ("cache", "info"), ("cache", "compact"), ("runs",)):
        done = shared.call(*words)
        assert done.returncode == 0, done.stderr
    shared.run.chmod(modes[shared.run])
    done = shared.call("cache", "gc", "--yes", "--forget", ours)
    assert done.returncode == 1
    assert f"{shared.vectors} cannot be used by you" in done.stderr
    shared.vectors.chmod(modes[shared.vectors])
    assert len(shared.segments()) == kept
    assert shared.call(*again).returncode == 0
    assert shared.call("cache", "gc", "--yes", "--forget", ours).returncode == 0
    assert len(shared.segments()) == kept - 1


@pytest.mark.parametrize("name", ["", "runs", "segments", "catalog.sqlite"])
def test_what_no_command_can_do_without_is_named_with_its_owner(shared: Shared, name: str) -> None:
    path = shared.folder / "cache" / name
    path.chmod(0)
    done = shared.call("fit", shared.pictures / "ours")
    assert done.returncode == 1
    assert f"{path} cannot be used by you: it belongs to {ME}" in done.stderr.splitlines()[-1], done.stderr
    assert "Traceback" not in done.stderr
