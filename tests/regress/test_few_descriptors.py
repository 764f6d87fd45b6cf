"""Idle connections once took every file descriptor, and the append log's next segment failed for want of one (exit code 7)."""

from __future__ import annotations

import contextlib
import resource
from contextlib import ExitStack
from pathlib import Path

import pytest

from rcache_client import Client
from rcache_client.wire.opcodes import Role, Status
from soak.server_process import ServerFailed, ServerProcess
from tests.integration.support import until
from tests.integration.wire import Wire

MIB = 1 << 20


class LimitedServer(ServerProcess):
    """An rcached that may open only so many files."""

    def __init__(self, data_dir: Path, *arguments: str, hard: int, soft: int | None = None) -> None:
        self._limits = f"ulimit -Sn {soft or hard} && ulimit -Hn {hard} && "
        super().__init__(data_dir, *arguments)

    @property
    def command(self) -> list[str]:
        return ["sh", "-c", f'{self._limits}exec "$@"', "sh", *super().command]


def test_a_full_node_still_has_descriptors_for_its_log(tmp_path: Path) -> None:
    with LimitedServer(tmp_path / "data", "--append-log-max-mb", "1", hard=200) as server, ExitStack() as stack:
        with Client(server.address, role=Role.ADMIN) as admin:
            admin.ping()
            wires = [stack.enter_context(Wire(server.address)) for _ in range(300)]
            allowed = admin.stats("connections")["connections"]["connections_max"]
            assert allowed == 200 - 16 - 64
            for number in range(8):
                admin.set(f"key-{number}", bytes(MIB - 1000))
                until(lambda begun=number: len(list((tmp_path / "data").glob("*.rcl"))) > begun // 2)
            refused = 0
            for wire in wires[-(300 - allowed - 16) :]:
                reply = wire.reply()
                assert reply is not None
                refused += reply.status == Status.TOO_MANY_CONNECTIONS
            assert refused >= 300 - allowed - 16
        assert server.stop() == 0
        assert "2048" in server.stderr_text
        assert "120" in server.stderr_text


def test_the_soft_limit_is_raised(tmp_path: Path) -> None:
    with LimitedServer(tmp_path / "data", "--max-connections", "150", hard=400, soft=100) as server:
        assert resource.prlimit(server.pid, resource.RLIMIT_NOFILE)[0] >= 150 + 16 + 64
        with Client(server.address) as cache:
            assert cache.stats("connections")["connections"]["connections_max"] == 150
        assert server.stop() == 0
        assert "is cut down" not in server.stderr_text


def test_too_few_for_a_single_connection_is_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(ServerFailed, match=r"(?s)code 2 .*--max-connections.*81"):
        LimitedServer(tmp_path / "data", hard=80)


def test_a_newcomer_is_told_even_without_a_descriptor_left(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", "--no-append-log") as server, ExitStack() as stack:
        with Client(server.address) as cache:
            cache.ping()
            hard = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)[1]
            until(lambda: _is_accepting(server.pid))
            resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (_open_files(server.pid), hard))
            assert stack.enter_context(Wire(server.address)).is_alive()  # a waiting accept has its descriptor already
            for _ in range(3):
                newcomer = stack.enter_context(Wire(server.address))
                reply = newcomer.reply()
                assert reply is not None
                assert reply.status == Status.TOO_MANY_CONNECTIONS
                assert newcomer.reply() is None
            cache.set("k", b"v")
            resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (hard, hard))
            assert stack.enter_context(Wire(server.address)).is_alive()
        assert server.stop() == 0
        assert "Traceback" not in server.stderr_text


def _is_accepting(pid: int) -> bool:
    """Whether a thread waits in accept; where the kernel does not tell what threads wait in, nobody can know."""
    waits = []
    for path in Path(f"/proc/{pid}/task").glob("*/wchan"):
        with contextlib.suppress(OSError):  # a thread that has ended meanwhile
            waits.append(path.read_text())
    return any("accept" in wait for wait in waits) or all(wait == "0" for wait in waits)


def _open_files(pid: int) -> int:
    """One more than the highest descriptor in use, where none below it is free."""
    numbers = sorted(int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir())
    return next((number for number, held in enumerate(numbers) if number != held), len(numbers))
