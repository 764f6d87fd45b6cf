"""Three masters of Redis Cluster, one of which gives up its slots to the others.

What it is: `redis_side`, a context in which they run. Which thread runs it: the main thread.
What it owns: the processes, until it is left. What it must not know: what is measured meanwhile.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from soak.bench.errors import BenchError
from soak.bench.peers import stop_process
from soak.handoff.keys import key_of
from soak.handoff.side import BATCH, NODES, WAIT_S, Side, wait_until

START_S = 30.0
KEYS_AT_ONCE = 100
"""That redis-cli moves by one command. It would take 10, which is slower."""

PACKAGE = "redis.cluster"
"""Of redis-py. Nothing else here needs it, so it is looked for when this runs, and missed by name where it is not there."""

OPTIONS = ("--save", "", "--appendonly", "yes", "--appendfsync", "everysec", "--cluster-enabled", "yes")


class RedisSide:
    """See `side.Side`."""

    name = "redis"
    command = (
        "redis-server --appendonly yes --cluster-enabled yes, three of them; "
        f"redis-cli --cluster rebalance --cluster-weight NODE=0 --cluster-pipeline {KEYS_AT_ONCE}"
    )

    def __init__(self, ports: Sequence[int]) -> None:
        self._ports = ports
        wait_until(lambda: all(_answers(port) for port in ports), "redis-server does not answer", START_S)
        _cli("--cluster", "create", *(f"127.0.0.1:{port}" for port in ports), "--cluster-yes")
        wait_until(self._is_up, "Redis Cluster is not up", START_S)

    @property
    def servers(self) -> str:
        return ",".join(f"127.0.0.1:{port}" for port in self._ports[:-1])

    def fill(self, count: int, value: bytes) -> None:
        client = redis_client(self.servers)
        for start in range(0, count, BATCH):
            pipeline = client.pipeline()
            for number in range(start, min(start + BATCH, count)):
                pipeline.set(key_of(number), value)
            pipeline.execute()
        client.close()

    def to_move(self) -> int:
        return int(_ask(self._ports[-1], "dbsize"))

    def hand_over(self) -> dict[str, float]:
        leaving = _ask(self._ports[-1], "cluster", "myid").strip()
        began = time.monotonic()
        weights = ("--cluster-weight", f"{leaving}=0", "--cluster-pipeline", str(KEYS_AT_ONCE))
        _cli("--cluster", "rebalance", f"127.0.0.1:{self._ports[0]}", *weights)
        seconds = time.monotonic() - began
        if left := int(_ask(self._ports[-1], "dbsize")):
            raise BenchError(f"redis-cli left {left} keys where they were")
        return {"seconds": seconds}

    def _is_up(self) -> bool:
        return all("cluster_state:ok" in _ask(port, "cluster", "info") for port in self._ports)


def redis_client(servers: str, **options: Any) -> Any:
    """A client of redis-py for the cluster."""
    cluster: Any = import_module(PACKAGE)
    nodes = [cluster.ClusterNode(*address.rsplit(":", 1)) for address in servers.split(",")]
    return cluster.RedisCluster(startup_nodes=nodes, **options)


@contextmanager
def redis_side(directory: Path) -> Iterator[Side]:
    """The cluster, empty and up; its files below `directory`."""
    with ExitStack() as stack:
        ports = []
        for number in range(1, NODES + 1):
            own = directory / f"r{number}"
            own.mkdir()
            ports.append(stack.enter_context(_node(own)))
        yield RedisSide(ports)


@contextmanager
def _node(directory: Path) -> Iterator[int]:
    """A process, and its port; it may not answer yet."""
    port, bus = _free_ports()
    with (directory / "said").open("wb") as said:
        command = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--cluster-port", str(bus)]
        command += ["--dir", str(directory), *OPTIONS]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
    try:
        yield port
    finally:
        stop_process(process)


def _free_ports() -> tuple[int, int]:
    """Two that were free a moment ago: Redis cannot say which one the system picked."""
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        return one.getsockname()[1], two.getsockname()[1]


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
        return True
    return False


def _ask(port: int, *words: str) -> str:
    return _cli("-p", str(port), *words)


def _cli(*words: str) -> str:
    """What redis-cli printed. Raises `BenchError`."""
    try:
        done = subprocess.run(["redis-cli", *words], capture_output=True, text=True, timeout=WAIT_S, check=False)
    except subprocess.TimeoutExpired:
        raise BenchError(f"redis-cli {' '.join(words)} did not end within {WAIT_S:g} s") from None
    if done.returncode:
        raise BenchError(f"redis-cli {' '.join(words)}: {(done.stdout + done.stderr)[-500:].strip()}")
    return done.stdout
