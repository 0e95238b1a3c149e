"""Extraction on a Ray cluster: two nodes on this computer, workers and nodes killed in the middle; run with -m ray."""

from __future__ import annotations

import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINTS, Result, write_picture

import featcache
from featcache.api import cluster, connecting
from featcache.api.connecting import Place, places_of
from featcache.errors import DatasetError, DeviceError, EngineError
from featcache.records import Item, Seconds
from featcache.sources import ACCESS
from featcache.store import Cache, Row

try:
    import ray
except ImportError:
    ray = None


def needs_ray(test: Any) -> Any:
    """Mark a test that starts Ray."""
    return pytest.mark.ray(pytest.mark.skipif(ray is None, reason="needs pip install 'featcache[ray]'")(test))


Run = Callable[..., Result]
PICTURES = 90
EXPECTED = {"found": PICTURES + 5, "reused": 0, "computed": PICTURES, "duplicates": 3, "unreadable": 2}


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A cluster of a head without a core and two nodes of one core each."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", str(Path(cluster.__file__).parents[2]))
        found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        found.add_node(num_cpus=1)
        found.add_node(num_cpus=1)
        yield found
        ray.shutdown()
        found.shutdown()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of pictures, with copies among them and files that are none."""
    root = tmp_path_factory.mktemp("ray") / "photos"
    for number in range(PICTURES):
        label = list(TINTS)[number % 3]
        write_picture(root / label / f"{number}.png", number, TINTS[label])
    for number in (0, 30, 60):
        shutil.copy(root / "leaf" / f"{number}.png", root / "sand" / f"copy-{number}.png")
    (root / "sky" / "broken.png").write_bytes(b"\x89PNG no picture")
    (root / "sky" / "empty.jpg").touch()
    return root


def vectors(folder: Path) -> dict[str, np.ndarray]:
    """Return all rows of a cache of one fingerprint by their keys; none may be there twice."""
    with Cache(folder, create=False) as cache:
        (fingerprint,) = cache.fingerprints()
        store = cache.store(fingerprint)
        keys = [key.tobytes() for key in store.keys]
        assert len(keys) == len(set(keys))
        return {key.hex(): row for key, row in zip(keys, store.read(keys), strict=True)}


def assert_same(folder: Path, other: Path) -> None:
    ours, theirs = vectors(folder), vectors(other)
    assert ours.keys() == theirs.keys()
    for key, vector in ours.items():
        np.testing.assert_array_equal(vector, theirs[key])


def commands(source: Path, nodes: Any, folder: Path) -> list[str | Path]:
    return ["extract", source, "--engine", "ray", "--address", nodes.address, "--cache", folder, "--json"]


def counts(summary: dict[str, Any]) -> dict[str, int]:
    return {name: summary[name] for name in ("found", "reused", "computed", "duplicates", "unreadable")}


@pytest.fixture(scope="module")
def alone(pictures: Path, seeded_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache that one machine makes."""
    folder = tmp_path_factory.mktemp("one-machine")
    done = featcache.extract(pictures, featcache.Options("resnet18", seeded_weights, folder))
    assert counts(asdict(done)) == EXPECTED
    return folder


def started(folder: Path) -> bool:
    """Tell whether a worker has committed anything."""
    return any(folder.glob("segments/*/seg-*.h5"))


@contextmanager
def meanwhile(folder: Path, harm: Callable[[], None]) -> Iterator[None]:
    """Do harm in a thread as soon as the first vectors are committed to a cache."""

    def watch() -> None:
        while not started(folder):
            time.sleep(0.005)
        harm()
        done.append(len(list(folder.glob("segments/*/seg-*.h5"))))

    done: list[int] = []
    thread = threading.Thread(target=watch)
    thread.start()
    yield
    thread.join(60)
    assert done, "nothing was harmed"
    assert done[0] < cluster.BLOCKS * 2, "it was over before the harm was done"


def workers(nodes: Any) -> list[int]:
    """Return the process of each actor of the cluster, on Linux."""
    raylets = {
        processes[0].process.pid for node in nodes.list_all_nodes() for processes in [node.all_processes["raylet"]]
    }
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent in raylets and (folder / "cmdline").read_bytes().startswith(b"ray::Worker"):
                found.append(int(folder.name))
    return found


def refused(done: Result, *words: str) -> None:
    """A command failed with one line that has these words, and nothing on stdout."""
    assert done.code in (1, 2)
    assert done.out == ""
    (line,) = [line for line in done.err.splitlines() if line and not line.startswith("extract:")]
    for word in words:
        assert word in line


@needs_ray
def test_two_nodes_make_bit_for_bit_what_one_machine_makes(run: Run, nodes: Any, pictures: Path, alone: Path) -> None:
    on_two = commands(pictures, nodes, Path("two"))
    done = run(*on_two, network=True)
    assert counts(done.json) == EXPECTED
    assert done.json["engine"] == "torch"
    assert "2 Ray workers" in done.json["engine_why"]
    assert {Path(failure["path"]).name for failure in done.json["failures"]} == {"broken.png", "empty.jpg"}
    assert_same(Path("two"), alone)
    with Cache(Path("two")) as ours, Cache(alone) as theirs:
        assert ours.catalog.dataset(str(pictures)) == theirs.catalog.dataset(str(pictures))
        keys = [row.key for row in theirs.catalog.dataset(str(pictures)) if row.key]
        assert ours.catalog.looks(keys) == theirs.catalog.looks(keys)
    again = run(*on_two, network=True)
    assert counts(again.json) == EXPECTED | {"reused": PICTURES, "computed": 0}


@needs_ray
def test_the_command_of_the_readme_runs(run: Run, nodes: Any, pictures: Path) -> None:
    text = (Path(__file__).parent.parent / "README.md").read_text()
    (line,) = re.findall(r"^\$ featcache (extract .*--engine ray.*)$", text, re.MULTILINE)
    found = run(*line.replace("caltech101-30.csv", str(pictures)).replace("head:6379", nodes.address).split())
    assert (found.code, "2 Ray workers" in found.out, f"computed     {PICTURES}" in found.out) == (0, True, True)


@needs_ray
def test_workers_that_share_no_folder_meet_at_a_url(
    run: Run, nodes: Any, pictures: Path, alone: Path, tmp_path: Path
) -> None:
    folder, share = tmp_path / "cache", tmp_path / "share"
    found = run(*commands(pictures, nodes, folder), "--share", f"file://{share}", network=True)
    assert (found.code, counts(found.json)) == (0, EXPECTED)
    assert_same(folder, alone)
    theirs = {path.name for path in share.rglob("seg-*.h5")}
    assert theirs == {path.name for path in folder.rglob("seg-*.h5")}
    assert len({name.split("-")[2] for name in theirs}) > 1  # several writers


@needs_ray
def test_a_killed_worker_loses_and_doubles_nothing(
    run: Run, nodes: Any, pictures: Path, alone: Path, tmp_path: Path
) -> None:
    def kill() -> None:
        os.kill(workers(nodes)[0], signal.SIGKILL)

    with meanwhile(tmp_path / "killed", kill):
        done = run(*commands(pictures, nodes, tmp_path / "killed"), network=True)
    assert counts(done.json) == EXPECTED
    said = [line for line in done.err.splitlines() if line and not line.startswith("extract:")]
    assert not [line for line in said if "3 pictures are there under more than one label" not in line]
    assert_same(tmp_path / "killed", alone)


@needs_ray
def test_a_lost_node_loses_and_doubles_nothing(
    run: Run, nodes: Any, pictures: Path, alone: Path, tmp_path: Path
) -> None:
    try:
        with meanwhile(
            tmp_path / "lost", lambda: nodes.remove_node(next(iter(nodes.worker_nodes)), allow_graceful=False)
        ):
            done = run(*commands(pictures, nodes, tmp_path / "lost"), network=True)
    finally:
        nodes.add_node(num_cpus=1)
    assert counts(done.json) == EXPECTED
    assert "featcache: a Ray worker was lost, and others go on: " in done.err
    assert_same(tmp_path / "lost", alone)


@needs_ray
@pytest.mark.parametrize(("sign", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_what_was_committed_before_a_stop_is_there_afterwards(
    run: Run, nodes: Any, pictures: Path, alone: Path, tmp_path: Path, seeded_weights: Path, sign: int, code: int
) -> None:
    folder = tmp_path / "stopped"
    command = [*commands(pictures, nodes, folder), "--backbone", "resnet18", "--weights", seeded_weights]
    words = [sys.executable, "-m", "featcache", *map(str, command)]
    with (
        subprocess.Popen(words, stderr=subprocess.PIPE) as process,
        meanwhile(folder, lambda: process.send_signal(sign)),
    ):
        _, said = process.communicate(timeout=120)
    assert process.returncode == code, said
    assert b"Traceback" not in said
    done = run(*commands(pictures, nodes, folder), network=True)
    assert 0 < done.json["reused"] < PICTURES
    assert done.json["reused"] + done.json["computed"] == PICTURES
    assert_same(folder, alone)


@needs_ray
def test_a_worker_that_fails_ends_it_in_one_line_that_names_the_node(
    run: Run, nodes: Any, pictures: Path, tmp_path: Path, seeded_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "only-here.pth"
    shutil.copy(seeded_weights, weights)

    def places(options: featcache.Options) -> list[Place]:
        weights.unlink()  # as a file that no node but this has
        return places_of(options)

    monkeypatch.setattr(cluster, "places_of", places)
    done = run(*commands(pictures, nodes, tmp_path / "failed"), "--backbone", "resnet18", "--weights", weights)
    refused(done, f"on {platform.node()}: ", str(weights))


def answering(monkeypatch: pytest.MonkeyPatch, answer: Callable[[Sequence[Item]], tuple[Row, ...]]) -> None:
    """Let a cluster of one node answer this to its first block."""

    def results(job: Any, options: Any, places: Any, blocks: Sequence[Sequence[Item]]) -> Iterator[cluster.Done]:
        rows = answer(blocks[0])
        unseen = sum(row.key is None for row in rows)
        yield cluster.Done(0, "node-7", rows, {}, {}, unseen, "cpu", (Seconds(0, 0, 0, 0, 0),))

    monkeypatch.setattr(cluster, "connected", lambda address: nullcontext())
    monkeypatch.setattr(cluster, "places_of", lambda options: [Place("", 1, 0)])
    monkeypatch.setattr(cluster, "_results", results)
    monkeypatch.setattr(cluster, "find_spec", lambda name: True)


def test_a_node_without_the_pictures_does_not_make_them_unreadable(
    run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, lambda block: tuple(Row(item, None, "no such file") for item in block))
    refused(run("extract", photos, "--engine", "ray", network=True), "node-7", "no such file", "on all nodes")


def test_a_node_with_another_folder_of_the_same_name_is_found_out(
    run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, lambda block: tuple(Row(item, bytes(32), None) for item in block))
    refused(run("extract", photos, "--engine", "ray", network=True), "all nodes must share this folder")


@needs_ray
@pytest.mark.parametrize("address", ["127.0.0.1:9", "nowhere.invalid:6379", "nonsense", "[::1]:99999"])
def test_an_address_without_a_cluster_is_said_soon(run: Run, photos: Path, address: str) -> None:
    start = time.monotonic()
    refused(run("extract", photos, "--engine", "ray", "--address", address, network=True), address, "no Ray cluster")
    assert time.monotonic() - start < connecting.ANSWER_SECONDS + 5


@needs_ray
def test_a_wrong_address_leaves_a_dataset_as_it_was_extracted(run: Run, photos: Path) -> None:
    assert run("extract", photos, network=True).code == 0
    refused(run("extract", photos, "--engine", "ray", "--address", "127.0.0.1:9", network=True), "no Ray cluster")
    assert run("audit", photos).code == 0  # which takes it as it is


@needs_ray
def test_a_port_where_something_else_listens_is_no_cluster(
    run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connecting, "HEALTH_SECONDS", 3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        refused(
            run("extract", photos, "--engine", "ray", "--address", address, network=True), address, "no Ray cluster"
        )


def test_without_ray_the_command_that_installs_it_is_said(
    run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    refused(run("extract", photos, "--engine", "ray", network=True), "pip install 'featcache[ray]'")
    assert not Path("cache").exists()


def test_what_does_not_go_with_ray_is_refused(run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "find_spec", lambda name: True)
    refused(run("extract", photos, "--address", "head:6379", network=True), "--engine ray")
    refused(run("extract", photos, "--engine", "ray", "--device", "cuda:1", network=True), "--device auto, cpu or cuda")
    refused(run("extract", photos, "--engine", "ray", "--precision", "fp8", network=True), "fp8")
    refused(run("predict", "a.joblib", photos, "--engine", "ray"), "featcache extract SOURCE --engine ray")


def test_pictures_given_in_python_are_refused(
    tmp_path: Path, seeded_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "find_spec", lambda name: True)
    given = [(np.zeros((8, 8, 3), np.uint8), "black")]
    with pytest.raises(DatasetError, match="given in Python"):
        featcache.extract(given, featcache.Options("resnet18", seeded_weights, tmp_path / "cache", engine="ray"))


@needs_ray
def test_where_there_are_gpus_each_has_a_worker_and_else_each_node(monkeypatch: pytest.MonkeyPatch) -> None:
    def node(name: str, **resources: float) -> dict[str, Any]:
        return {"NodeID": name, "Alive": name != "gone", "Resources": resources}

    nodes = [node("head"), node("gone", CPU=8.0), node("a", CPU=8.0, GPU=2.0), node("b", CPU=4.0)]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    assert places_of(featcache.Options()) == [Place("a", 4, 1)] * 2
    on_cores = [Place("a", 8, 0), Place("b", 4, 0)]
    assert places_of(featcache.Options(device="cpu")) == on_cores
    assert places_of(featcache.Options(precision="int8")) == on_cores
    nodes[2:] = [node("b", CPU=4.0)]
    assert places_of(featcache.Options()) == [Place("b", 4, 0)]
    with pytest.raises(DeviceError, match="no node of the Ray cluster has a GPU"):
        places_of(featcache.Options(device="cuda"))
    nodes[1:] = []
    with pytest.raises(EngineError, match="no node of the Ray cluster has a core"):
        places_of(featcache.Options())


def test_copies_lie_in_one_block_and_large_files_first(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number:02}").write_bytes(b"x" * (number % 20 + 1))
    blocks = cluster._blocks([str(path) for path in sorted(tmp_path.iterdir())], ACCESS, workers=2)
    sizes = [[Path(item.path).stat().st_size for item in block] for block in blocks]
    assert [size for block in sizes for size in block] == sorted((n % 20 + 1 for n in range(40)), reverse=True)
    assert all(set(one).isdisjoint(other) for one, other in pairwise(sizes))
    assert len(blocks) >= cluster.BLOCKS * 2


@pytest.mark.skipif(ray is None, reason="needs pip install 'featcache[ray]'")
def test_nothing_that_ray_prints_comes_between_a_command_and_its_result(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ended() -> None:
        print("what Ray has kept back")  # noqa: T201
        printer = threading.Thread(target=print, args=("what a thread of Ray prints as it ends",))
        printer.start()
        printer.join()

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda *_, **__: None)
    monkeypatch.setattr(ray, "shutdown", ended)
    with connecting.connected(None):
        printer = threading.Thread(target=print, args=("what a thread of Ray prints meanwhile",))
        printer.start()
        printer.join()
        print("ours")  # noqa: T201
    assert capsys.readouterr().out == "ours\n"
