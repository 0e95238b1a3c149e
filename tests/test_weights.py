"""Weights files: where they are looked for, how they are downloaded and checked, and how they are read."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import pickle
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from featcache.backbones import resolve, torchvision_models, weights
from featcache.embed import open_engine
from featcache.embed.torch_engine import normalise
from featcache.errors import WeightsError, WeightsUnavailableError

State = dict[str, torch.Tensor]


class _Server(ThreadingHTTPServer):
    """Serves `files`; `promised` is how many times its real length a body is said to have."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.requested: list[str] = []
        self.promised = 1
        self.end = threading.Event()
        self.end.set()

    def offer(self, name: str, content: bytes) -> str:
        """Serve `content` under `name` and return its URL."""
        self.files[f"/models/{name}"] = content
        return self.url(name)

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/models/{name}"


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        self.server.requested.append(self.path)
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content) * self.server.promised))
        self.end_headers()
        self.wfile.write(content)
        self.server.end.wait(10)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[_Server]:
    served = _Server()
    thread = threading.Thread(target=served.serve_forever, args=(0.01,))
    thread.start()
    yield served
    served.end.set()
    served.shutdown()
    thread.join()
    served.server_close()


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty torch hub folder; proxies of the environment do not stand before the loopback."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "*")
    return tmp_path / "home" / "hub" / "checkpoints"


def _small(seed: int = 0) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {"weight": torch.randn(40, 30, generator=generator), "bias": torch.randn(40, generator=generator)}


def _bytes(state: State) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _named(content: bytes) -> str:
    return f"resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"


def _left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*")) if folder.exists() else []


def _same(one: State, other: State) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


# The hub folder


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"TORCH_HOME": "{tmp}/torch home"},
        {"XDG_CACHE_HOME": "{tmp}/xdg"},
        {"XDG_CACHE_HOME": "~/elsewhere"},
        {"TORCH_HOME": "~/torch"},
        {"TORCH_HOME": "{tmp}/torch", "XDG_CACHE_HOME": "{tmp}/xdg"},
    ],
    ids=lambda given: "+".join(f"{name}={value}" for name, value in given.items()) or "neither",
)
def test_the_hub_folder_is_the_one_torch_uses(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    for name in ("TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value.format(tmp=tmp_path))
    name = "resnet18-f37072fd.pth"
    assert str(weights.hub_file(name)) == os.path.join(torch.hub.get_dir(), "checkpoints", name)


# Downloads


def test_a_download_arrives_whole_and_leaves_nothing_beside_it(server: _Server, hub: Path) -> None:
    content = _bytes(_small())
    name = _named(content)
    path = weights.obtain(server.offer(name, content))
    assert path == hub / name
    assert path.read_bytes() == content
    assert _left(hub) == [name]
    assert _same(weights.read_state(path), _small())


def test_a_file_in_the_hub_folder_is_not_requested_again(server: _Server) -> None:
    content = _bytes(_small())
    url = server.offer(_named(content), content)
    first = weights.obtain(url)
    assert len(server.requested) == 1
    assert weights.obtain(url) == first
    assert len(server.requested) == 1


def test_a_download_says_what_it_loads_and_where_to(
    server: _Server, hub: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = _bytes(_small())
    url = server.offer(_named(content), content)
    with caplog.at_level(logging.WARNING, logger="featcache"):
        weights.obtain(url)
    assert url in caplog.text
    assert str(hub) in caplog.text


def _fails(url: str, hub: Path, *said: str) -> None:
    """Obtaining `url` is refused with the URL, the way out and `said`; the hub folder stays empty."""
    with pytest.raises(WeightsUnavailableError) as caught:
        weights.obtain(url)
    for part in (url, str(hub), "--weights", *said):
        assert part in str(caught.value)
    assert _left(hub) == []


def test_a_download_with_the_wrong_hash_is_thrown_away(server: _Server, hub: Path) -> None:
    name = _named(_bytes(_small(seed=1)))
    _fails(server.offer(name, _bytes(_small(seed=2))), hub, "hash")


def test_a_file_the_server_does_not_have_is_unavailable(server: _Server, hub: Path) -> None:
    _fails(server.url("resnet18-00000000.pth"), hub, "404")


def test_a_cut_connection_leaves_nothing_behind(server: _Server, hub: Path) -> None:
    content = _bytes(_small())
    server.promised = 2
    _fails(server.offer(_named(content * 2), content), hub)


def test_after_a_cut_connection_the_next_try_succeeds(server: _Server, hub: Path) -> None:
    content = _bytes(_small())
    name = _named(content)
    url = server.offer(name, content[: len(content) // 2])
    _fails(url, hub)
    server.offer(name, content)
    assert weights.obtain(url).read_bytes() == content


def test_a_closed_port_is_unavailable(hub: Path) -> None:
    with socket.socket() as bound:  # bound and not listening: every connection is refused
        bound.bind(("127.0.0.1", 0))
        _fails(f"http://127.0.0.1:{bound.getsockname()[1]}/resnet18-f37072fd.pth", hub, "refused")


def test_an_unknown_host_is_unavailable(hub: Path) -> None:
    start = time.monotonic()
    try:
        socket.getaddrinfo("nowhere.invalid", 80)
        pytest.skip("a resolver here answers for names that do not exist")
    except OSError:
        if time.monotonic() - start > 1:
            pytest.skip("the resolver here is too slow to ask again")
    _fails("http://nowhere.invalid/resnet18-f37072fd.pth", hub)


@pytest.fixture
def short_patience(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server may be silent for 0.2 s; where that is not heeded, the test fails after 5 s and does not hang."""
    monkeypatch.setattr(weights, "DOWNLOAD_TIMEOUT", 0.2)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(5)
    yield
    socket.setdefaulttimeout(before)


@pytest.mark.usefixtures("short_patience")
def test_a_server_that_never_answers_is_given_up(hub: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        _fails(f"http://127.0.0.1:{silent.getsockname()[1]}/resnet18-f37072fd.pth", hub, "timed out")
    assert time.monotonic() - start < 4


@pytest.mark.usefixtures("short_patience")
def test_a_server_that_falls_silent_halfway_is_given_up(server: _Server, hub: Path) -> None:
    server.promised = 2
    server.end.clear()
    start = time.monotonic()
    _fails(server.offer("resnet18-f37072fd.pth", b"half of it"), hub, "timed out")
    assert time.monotonic() - start < 4


@pytest.mark.parametrize("works", [True, False])
def test_a_download_leaves_the_default_timeout_as_it_was(server: _Server, works: bool) -> None:
    content = _bytes(_small())
    url = server.offer(_named(content), content if works else b"other")
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(123.0)
    try:
        if works:
            weights.obtain(url)
        else:
            with pytest.raises(WeightsUnavailableError):
                weights.obtain(url)
        assert socket.getdefaulttimeout() == 123.0
    finally:
        socket.setdefaulttimeout(before)


def test_a_hub_folder_that_cannot_be_made_is_unavailable(
    server: _Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "file"))
    content = _bytes(_small())
    with pytest.raises(WeightsUnavailableError, match="--weights"):
        weights.obtain(server.offer(_named(content), content))


# The default backbone through its download


@pytest.fixture(scope="module")
def direct(models: Any) -> torch.nn.Module:
    """A seeded resnet18 as torchvision makes it, in eval mode."""
    torch.manual_seed(11)
    network: torch.nn.Module = models.resnet18(weights=None)
    return network.eval()


@pytest.fixture(scope="module")
def resnet18_bytes(direct: torch.nn.Module) -> bytes:
    return _bytes(direct.state_dict())


@pytest.fixture
def resnet18_url(server: _Server, resnet18_bytes: bytes, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Let the URL of resnet18's weights name a seeded file on the local server; its file name and its URL."""
    name = _named(resnet18_bytes)
    url = server.offer(name, resnet18_bytes)
    monkeypatch.setattr(torchvision_models, "RESNET18_URL", url)
    return name, url


def test_resnet18_is_downloaded_once_built_and_gives_the_features_of_the_network_itself(
    server: _Server, hub: Path, resnet18_url: tuple[str, str], resnet18_bytes: bytes, direct: torch.nn.Module
) -> None:
    backbone = resolve("resnet18")
    assert _left(hub) == [resnet18_url[0]]
    assert backbone.name == "resnet18"
    assert backbone.weights == "IMAGENET1K_V1"
    assert backbone.spec.weights_sha256 == hashlib.sha256(resnet18_bytes).hexdigest()

    pixels = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    vectors = open_engine(backbone, "cpu").embed(pixels)
    pooled: list[torch.Tensor] = []
    hook = direct.fc.register_forward_pre_hook(lambda _, given: pooled.append(given[0]))
    with torch.no_grad():
        direct(normalise(torch.from_numpy(pixels), backbone.spec.preprocess))
    hook.remove()
    np.testing.assert_allclose(vectors, pooled[0].numpy(), rtol=1e-4, atol=1e-5)

    assert resolve("resnet18").spec == backbone.spec
    assert resolve("auto").spec == backbone.spec
    assert len(server.requested) == 1


@pytest.mark.parametrize("name", ["resnet18", "auto"])
def test_a_hub_file_that_is_not_what_its_name_promises_is_an_error(
    name: str, server: _Server, hub: Path, resnet18_url: tuple[str, str]
) -> None:
    hub.mkdir(parents=True)
    (hub / resnet18_url[0]).write_bytes(b"cut short")
    with pytest.raises(WeightsError, match="broken") as caught:
        resolve(name)
    assert str(hub / resnet18_url[0]) in str(caught.value)
    assert not isinstance(caught.value, WeightsUnavailableError)
    assert server.requested == []


# Digests


def test_the_digest_is_the_sha256_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    path.write_bytes(b"abc")
    assert weights.sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_hub_file_must_have_the_digest_its_name_promises() -> None:
    path = weights.hub_file("net-ba7816bf.pth")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"abc")
    assert weights.sha256(path).startswith("ba7816bf")
    path.write_bytes(b"abd")
    with pytest.raises(WeightsError, match="ba7816bf"):
        weights.sha256(path)


def test_a_file_of_the_users_may_have_a_date_in_its_name(tmp_path: Path) -> None:
    path = tmp_path / "resnet18-20240115.pth"
    path.write_bytes(b"abc")
    assert weights.sha256(path).startswith("ba7816bf")


def test_a_url_without_a_hash_is_not_downloaded() -> None:
    with pytest.raises(WeightsUnavailableError, match="no hash"):
        weights.obtain("http://127.0.0.1:9/net.pth?download=1")


@pytest.mark.parametrize("there", [False, True], ids=["missing", "a folder"])
def test_a_weights_file_that_cannot_be_read_is_unavailable(tmp_path: Path, there: bool) -> None:
    path = tmp_path / "nowhere.pth"
    if there:
        path.mkdir()
    with pytest.raises(WeightsUnavailableError, match=r"nowhere\.pth"):
        weights.sha256(path)


@pytest.mark.parametrize(
    ("name", "promised"),
    [
        ("resnet18-f37072fd.pth", "f37072fd"),
        ("efficientnet_b0_rwightman-7f5810bc.pth", "7f5810bc"),
        ("vit_b_16_lc_swag-4e70ced5.pth", "4e70ced5"),
        ("resnet18.pth", None),
        ("net-v2.pth", None),
        ("model.safetensors", None),
    ],
)
def test_the_promised_hash_is_read_from_the_file_name(name: str, promised: str | None) -> None:
    assert weights.promised_hash(name) == promised


# Reading


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_state_dict_is_read_as_it_was_saved(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"state{suffix}"
    save_file(_small(), path) if suffix == ".safetensors" else torch.save(_small(), path)
    state = weights.read_state(path)
    assert set(state) == set(_small())
    assert all(torch.equal(state[name], tensor) for name, tensor in _small().items())


def test_the_order_of_a_pth_file_is_kept(tmp_path: Path) -> None:
    state = OrderedDict((name, torch.ones(1)) for name in ("z", "a", "m"))
    torch.save(state, tmp_path / "state.pth")
    assert list(weights.read_state(tmp_path / "state.pth")) == ["z", "a", "m"]


class _MakesFolder:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["saved by torch", "plain pickle"])
def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, kind: str) -> None:
    path, trace = tmp_path / "evil.pth", tmp_path / "trace"
    content = {"weight": torch.ones(1), "bias": _MakesFolder(trace)}
    if kind == "plain pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path)
    with pytest.raises(WeightsError, match=r"evil\.pth"):
        weights.read_state(path)
    assert not trace.exists()

    # Read without care the file does what it was made for, so its refusal above means something.
    if kind == "plain pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert trace.exists()


@pytest.mark.parametrize("name", ["garbage.pth", "garbage.safetensors", "garbage.bin"])
@pytest.mark.parametrize("content", [b"", b"no weights at all", bytes(range(256)) * 8], ids=["empty", "text", "binary"])
def test_a_garbage_file_is_an_error_that_names_it(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="not a state dict that can be read safely") as caught:
        weights.read_state(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_truncated_file_is_an_error(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"state{suffix}"
    save_file(_small(), path) if suffix == ".safetensors" else torch.save(_small(), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="not a state dict that can be read safely"):
        weights.read_state(path)


@pytest.mark.parametrize(
    "content",
    [{"state_dict": _small(), "epoch": 3}, {"model": _small()}, [torch.ones(2)], torch.ones(2)],
    ids=["checkpoint", "model entry", "list", "tensor"],
)
def test_something_else_than_a_state_dict_is_refused_with_what_to_do(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save(content, path)
    with pytest.raises(WeightsError, match=r"torch\.save\(model\.state_dict\(\), FILE\)"):
        weights.read_state(path)


# Filling a network


def _linear() -> torch.nn.Module:
    torch.manual_seed(5)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))


def _filled(seed: int = 6) -> State:
    torch.manual_seed(seed)
    return {name: torch.rand_like(tensor.float()).to(tensor.dtype) for name, tensor in _linear().state_dict().items()}


def test_a_network_takes_every_tensor_of_its_state() -> None:
    network, state = _linear(), _filled()
    weights.fill(network, state, droppable=(), source="net.pth")
    assert _same(dict(network.state_dict()), state)


@pytest.mark.parametrize("droppable", [(), ("head.weight",)])
def test_only_tensors_of_the_cut_off_layer_may_be_left_over(droppable: tuple[str, ...]) -> None:
    network, state = _linear(), _filled() | {"head.weight": torch.ones(2, 4)}
    if droppable:
        weights.fill(network, state, droppable, "net.pth")
        return
    with pytest.raises(WeightsError, match=r"unexpected: head\.weight"):
        weights.fill(network, state, droppable, "net.pth")


def _without(state: State, name: str) -> State:
    return {key: tensor for key, tensor in state.items() if key != name}


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda state: _without(state, "1.bias"), "missing: 1.bias"),
        (lambda state: state | {"2.bias": torch.ones(4)}, "unexpected: 2.bias"),
        (lambda state: state | {"1.bias": torch.ones(5)}, "of another shape: 1.bias"),
        (lambda state: {}, "missing: 0.weight, 0.bias, 1.weight, 1.bias and 2 more"),
        (
            lambda state: _without(state, "1.bias") | {"0.weight": torch.ones(1), "3": torch.ones(1)},
            "missing: 1.bias; unexpected: 3; of another shape: 0.weight",
        ),
    ],
    ids=["missing", "unexpected", "shape", "empty", "all at once"],
)
def test_a_state_that_does_not_fit_is_named_and_changes_nothing(broken: Any, said: str) -> None:
    network = _linear()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        weights.fill(network, broken(_filled()), droppable=(), source="net.pth")
    assert said in str(caught.value)
    assert "net.pth" in str(caught.value)
    assert _same(dict(network.state_dict()), before)


def test_counts_of_training_steps_may_be_missing() -> None:
    network, state = _linear(), _filled()
    del state["1.num_batches_tracked"]
    weights.fill(network, state, droppable=(), source="net.pth")
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in state.items())
