"""Shared fixtures: small folders of pictures, a seeded network, and the command line run in this process."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The suite runs in several processes: threads of their own would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from PIL import Image

import featcache.cli


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what breaks things on purpose, which takes long altogether."""
    for item in items:
        if FAULTS in item.path.parents:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the user's folders and the network out of every test, and let Ctrl-C work as in a terminal.

    A command that was interrupted ignores it as it ends, and shells let what they start in the background ignore it.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch-home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("FEATCACHE_CACHE", raising=False)
    monkeypatch.delenv("FEATCACHE_CATALOG", raising=False)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Run torch on one thread: small inputs are faster so, and sums are added up in one order."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def ready_network() -> Iterator[None]:
    """Build each network once in this process and compute each picture once: for tests of what is made of vectors.

    What the engine gives is what it would give again: a picture has the same bits in a batch of any size.
    """
    from featcache.embed import torch_engine

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_engine, "TorchEngine", _ready_engine(torch_engine.TorchEngine))
        yield


def _is_there(backbone: Any) -> bool:
    """Tell whether the weights that the spec names lie where the network would be built from."""
    if backbone.file is None or not backbone.file.is_file():
        return False
    return bool(hashlib.sha256(backbone.file.read_bytes()).hexdigest() == backbone.spec.weights_sha256)


@functools.cache
def _ready_engine(real: type[Any]) -> type[Any]:
    built: dict[tuple[object, ...], dict[str, Any]] = {}
    known: dict[tuple[str, bytes], Any] = {}

    class Ready(real):  # type: ignore[misc]
        def __init__(self, backbone: Any, device: str = "auto", why: str = "", pictures: int | None = None) -> None:
            self.fingerprint = backbone.spec.fingerprint
            key = (self.fingerprint, device, pictures)
            if not _is_there(backbone):  # it must be built, for that is where lost or other weights are found out
                vars(self).update(vars(real(backbone, device, why, pictures)), known={})
                return
            if key not in built:
                built[key] = vars(real(backbone, device, why, pictures))
            vars(self).update(built[key], why=why, known=known)

        def embed(self, pixels: Any) -> Any:
            keys = [(self.fingerprint, hashlib.sha256(picture).digest()) for picture in pixels]
            missing = [at for at, key in enumerate(keys) if key not in self.known]
            if missing:
                self.known.update(zip((keys[at] for at in missing), super().embed(pixels[missing]), strict=True))
            return np.stack([self.known[key] for key in keys])

    return Ready


@pytest.fixture(scope="session")
def models() -> Any:
    """torchvision's models, imported the way the package imports them."""
    from featcache.backbones.vision_import import import_torchvision

    return import_torchvision().models


@pytest.fixture(scope="session")
def seeded_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state dict of resnet18 with random but fixed weights; scores made with it mean nothing."""
    from featcache.backbones.vision_import import import_torchvision

    import_torchvision()
    import torch
    from torchvision.models import resnet18

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "seeded.pth"
    torch.save(resnet18().state_dict(), path)
    return path


def write_picture(path: Path, seed: int, tint: tuple[int, int, int] = (128, 128, 128)) -> Path:
    """Write a small noisy picture of one colour; other seeds give other bytes."""
    noise = np.random.default_rng(seed).integers(-40, 40, (40, 50, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((noise + np.array(tint)).clip(0, 255).astype(np.uint8)).save(path)
    return path


def load_saved(model: str | Path) -> Any:
    """Return the model that lies in the cache of the run that made it."""
    from featcache.api.models import load_model
    from featcache.store import Cache

    with Cache(Path(model).parent.parent) as cache:
        return load_model(cache, Path(model), trust=False)


FAULTS = Path(__file__).parent / "faults"

TINTS = {"leaf": (60, 180, 60), "sky": (70, 110, 220), "sand": (210, 180, 110)}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A class folder: three classes of ten pictures each, told apart by their colour."""
    root = tmp_path / "photos"
    for at, (label, tint) in enumerate(TINTS.items()):
        for number in range(10):
            write_picture(root / label / f"{number}.png", 100 * at + number, tint)
    return root


@dataclass
class Result:
    """What one run of the command line gave; `on` is its first line on stderr where that says what it works on."""

    code: int
    out: str
    err: str
    on: str = ""

    @property
    def json(self) -> Any:
        try:
            return json.loads(self.out)
        except ValueError as error:
            raise AssertionError(f"no JSON ({error}): exit code {self.code}, {self.out!r}, {self.err}") from error


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seeded_weights: Path
) -> Callable[..., Result]:
    """Run `featcache ARGS...` in this process, in `tmp_path`.

    `network=True` adds the seeded resnet18.
    """
    monkeypatch.chdir(tmp_path)

    def call(*args: str | Path, network: bool = False) -> Result:
        words = [str(arg) for arg in args]
        if network:
            words += ["--backbone", "resnet18", "--weights", str(seeded_weights)]
        monkeypatch.setattr("sys.argv", ["featcache", *words])
        capsys.readouterr()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with pytest.raises(SystemExit) as exit_:
            featcache.cli.main()
        captured = capsys.readouterr()
        first, _, rest = captured.err.partition("\n")
        on, err = (first, rest) if first.startswith("featcache: on ") else ("", captured.err)
        return Result(int(exit_.value.code or 0), captured.out, err, on)

    return call


@pytest.fixture
def cache(run: Callable[..., Result], photos: Path, tmp_path: Path) -> Path:
    """A cache with the dataset `photos` of thirty pictures."""
    assert run("extract", photos, "--json", network=True).json["computed"] == 30
    return tmp_path / "cache"
