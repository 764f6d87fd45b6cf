"""Fixtures: real servers, each gone when its test ends, and none of which may have met an unhandled error."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from soak.server_process import ServerProcess


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
