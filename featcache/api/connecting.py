"""The address of a Ray cluster enters; a connection to it, and where its workers run, leave."""

from __future__ import annotations

import io
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import TextIO

from featcache.api.options import Options
from featcache.errors import DeviceError, EngineError

ANSWER_SECONDS, HEALTH_SECONDS = 5, 20
"""How long a cluster may take to take a connection, and to say that it is one."""


@dataclass(frozen=True)
class Place:
    """Where a worker runs: a node of the cluster, and what it gets of it."""

    node: str
    cores: int
    gpus: int


def check_answers(address: str | None) -> None:
    """Raise `EngineError` where there is no Ray cluster at an address, if one is named."""
    place = _named(address)
    if place in ("local", "auto"):
        return
    import ray

    if not ray.is_initialized():
        _ask(place)


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connect to the cluster at an address, or start Ray here, and leave it again; one in use already stays in use."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a Ray that is started here tells nobody
    import ray

    if ray.is_initialized():
        yield
        return
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(_named(address), log_to_driver=False, logging_level=logging.CRITICAL, include_dashboard=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise EngineError(f"Ray cannot be used: {' '.join(str(error).split())[:300]}") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminate)  # Ray has put its own in the place
    with redirect_stdout(_OurOwn(sys.stdout)):  # until Ray's threads are gone, which print as they end too
        try:
            yield
        finally:
            with redirect_stdout(io.StringIO()):  # in this thread it prints what it has kept back till now
                ray.shutdown()


class _OurOwn(io.TextIOBase):
    """Stdout as one thread sees it: what Ray's threads print there, pages about a lost worker, goes nowhere."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._ours = threading.current_thread()

    def write(self, text: str) -> int:
        return self._out.write(text) if threading.current_thread() is self._ours else len(text)


def _named(address: str | None) -> str:
    return address or os.environ.get("RAY_ADDRESS") or "local"


def _ask(address: str) -> None:
    """Raise `EngineError` where no Ray cluster answers soon: Ray tries for minutes, and then ends the process."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
        health = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
        subprocess.run(health, check=True, capture_output=True, timeout=HEALTH_SECONDS)
    except (OSError, ValueError, OverflowError, subprocess.SubprocessError) as error:
        raise EngineError(
            f"no Ray cluster answers at {address}: give HOST:PORT of its head node, as `ray start --head` says it"
        ) from error


def places_of(options: Options) -> list[Place]:
    """Return where workers run: one a GPU where the cluster has any, else one a node with all its cores."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    shares = {
        node["NodeID"]: (int(node["Resources"].get("CPU", 0)), int(node["Resources"].get("GPU", 0))) for node in nodes
    }
    found: list[Place] = []
    if options.device != "cpu" and options.precision != "int8":  # which runs on CPUs
        for node, (cores, gpus) in shares.items():
            found += [Place(node, max(1, cores // max(gpus, 1)), 1)] * gpus
    if not found and options.device == "cuda":
        raise DeviceError("no node of the Ray cluster has a GPU: use --device auto or cpu")
    found = found or [Place(node, cores, 0) for node, (cores, _) in shares.items() if cores]
    if not found:
        raise EngineError("no node of the Ray cluster has a core to work on")
    return found
