"""Fixtures: real servers, each gone when its test ends, and none of which may have met an unhandled error."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from soak.server_process import ServerProcess
from tests.agreement.etcds import EtcdProcess, fast_directory
from tests.integration.cluster import Cluster

MakeCluster = Callable[..., Cluster]
"""Make a cluster of its own, of no node yet; further options of rcached are for each of its nodes."""


class Serve(Protocol):
    """Make a server; `data_dir` is one for all servers of a test unless another is named."""

    def __call__(self, *arguments: str, data_dir: Path | None = None, **more: Any) -> ServerProcess: ...


def assert_nothing_unhandled(server: ServerProcess) -> None:
    said = server.stderr_text
    assert "unhandled" not in said, said
    assert "Traceback" not in said, said


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    servers: list[ServerProcess] = []

    def make(*arguments: str, data_dir: Path | None = None, **more: Any) -> ServerProcess:
        start = more.pop("start", True)
        server = ServerProcess(data_dir or tmp_path / "data", *arguments, start=False, **more)
        servers.append(server)
        if start:
            server.start()
        return server

    yield make
    try:
        for server in servers:
            if server.running:
                server.kill()
            assert_nothing_unhandled(server)
    finally:
        for server in servers:
            server.close()


@pytest.fixture
def cluster_of(tmp_path: Path) -> Iterator[MakeCluster]:
    clusters: list[Cluster] = []

    def make(*arguments: str) -> Cluster:
        cluster = Cluster(tmp_path / f"cluster-{len(clusters)}", *arguments)
        clusters.append(cluster)
        return cluster

    yield make
    try:
        for cluster in clusters:
            for node in cluster.nodes.values():
                assert_nothing_unhandled(node)
    finally:
        for cluster in clusters:
            cluster.close()


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdProcess]:
    program = shutil.which("etcd")
    if program is None:
        pytest.skip("etcd is not installed (Debian: etcd-server)")
    with fast_directory(tmp_path) as directory:
        running = EtcdProcess(program, directory)
        running.start()
        try:
            yield running
        finally:
            running.kill()
