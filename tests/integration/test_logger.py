"""rcache-logger as a process: it records a cluster through whatever happens to that and to itself, or says why it does not.

What it recorded is held against the cluster: the value and the version of every key, and nothing beside.
"""

from __future__ import annotations

import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rcache.records.rebuild import rebuild, survey
from rcache.stream.data_dir import list_files, sources
from rcache_client import Client
from soak.logger_process import LoggerProcess
from soak.server_process import ServerProcess

from .cluster import Cluster
from .conftest import MakeCluster, Serve, assert_nothing_unhandled
from .support import until
from .writers import Writers

SECRET = "a secret of the other cluster"
State = dict[bytes, tuple[bytes, int]]

Record = Callable[..., LoggerProcess]
"""Make a logger of these nodes; `directory` is one for all loggers of a test unless another is named."""


@pytest.fixture
def record(tmp_path: Path) -> Iterator[Record]:
    loggers: list[LoggerProcess] = []

    def make(nodes: list[ServerProcess], *arguments: str, directory: Path | None = None, start: bool = True) -> LoggerProcess:
        logger = LoggerProcess(directory or tmp_path / "tape", addresses_of(nodes), *arguments, start=False)
        loggers.append(logger)
        if start:
            logger.start()
        return logger

    yield make
    try:
        for logger in loggers:
            assert_nothing_unhandled(logger)
    finally:
        for logger in loggers:
            logger.close()


def addresses_of(nodes: list[ServerProcess]) -> list[str]:
    return [node.address for node in nodes]


def recorded(directory: Path) -> State:
    """What the files lead to. Raises AssertionError where they are not whole."""
    files = sources(list_files(directory))
    found = survey(files)
    assert found.problems == []
    buckets = rebuild(files, found.plans)
    return {key: (row.value or b"", row.version) for each in buckets.values() for key, row in each.live_rows()}


def held(nodes: list[ServerProcess], keys: list[bytes]) -> State:
    with Client(addresses_of(nodes), budget=10.0) as client:
        found = {key: client.get_with_version(key) for key in keys}
    return {key: (value, version) for key, (value, version) in found.items() if value is not None}


def assert_recorded(logger: LoggerProcess, state: State) -> None:
    """Sooner or later: what is told is written within half a second."""

    def is_so() -> bool:
        try:
            return recorded(logger.data_dir) == state
        except AssertionError:
            return False

    try:
        until(is_so, "all of it is in the files")
    except AssertionError:
        assert recorded(logger.data_dir) == state, logger.stderr_text
        raise


def is_whole(logger: LoggerProcess) -> bool:
    """Since its last start."""
    return "are recorded whole" in logger.stderr_text.rpartition("starts:")[2]


def replay(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "rcache.commands.rcache_replay", command, *arguments]
    return subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)


def test_through_kills_restarts_and_a_join(cluster_of: MakeCluster, record: Record, tmp_path: Path) -> None:
    cluster: Cluster = cluster_of().grow("a", "b")
    logger = record(cluster.running()[:1])
    with Writers(2, addresses_of(cluster.running())) as writers:
        until(lambda: is_whole(logger), "all is copied")
        logger.kill()
        cluster.nodes["b"].kill()
        logger.start()
        cluster.nodes["b"].start()
        cluster.settle()
        cluster.add("c")
        cluster.settle()
        cluster.nodes["a"].stop()
        cluster.nodes["a"].start()
        cluster.settle()
        logger.kill()
        logger.nodes = addresses_of(cluster.running())
        logger.start()
        writers.stop()
        assert writers.acknowledged > 200
    state = held(cluster.running(), list(writers.may_be))
    assert state
    assert_recorded(logger, state)
    verified = replay("verify", str(logger.data_dir))
    assert (verified.returncode, "have a complete history" in verified.stdout) == (0, True), verified.stdout

    asked = [sys.executable, "-m", "rcache.commands.rcache_cli", "--server", cluster.nodes["c"].address, "nodes"]
    listed = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=True).stdout
    assert any("tape" in line and "logger" in line for line in listed.splitlines()), listed

    assert logger.stop() == 0
    for node in cluster.running():
        node.kill()
    with ServerProcess(tmp_path / "again", "--restore", str(logger.data_dir), name="again") as again:
        assert {key: value for key, (value, _) in held([again], list(writers.may_be)).items()} == {
            key: value for key, (value, _) in state.items()
        }


def test_a_logger_that_stands_still_holds_nobody_up(serve: Serve, record: Record) -> None:
    """And once it goes on it has everything, in segments of the size that it was told."""
    server = serve("--buckets", "16")
    logger = record([server], "--max-mb", "1")
    until(lambda: is_whole(logger), "all is copied")
    keys = [b"key-%d" % number for number in range(300)]
    logger.signal(signal.SIGSTOP)
    with Client(server.address, budget=5.0) as client:
        for turn in range(3):
            for key in keys:
                client.set(key, b"%d " % turn * 2000)
        client.delete(keys[0])
    logger.signal(signal.SIGCONT)
    assert_recorded(logger, held([server], keys))
    assert len(list(logger.data_dir.glob("*.rcl"))) > 1
    assert server.stop() == 0
    assert logger.running  # it waits for a node to come back
    assert logger.stop() == 0


def ended(logger: ServerProcess, code: int, *words: str) -> None:
    """It does not get as far as `ready`, and says why."""
    before = len(logger.stderr_text)
    logger.launch()
    assert logger.wait() == code, logger.stderr_text
    said = logger.stderr_text[before:]
    assert [word for word in words if word not in said] == [], said


def test_2_what_it_must_not_record(serve: Serve, record: Record, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / "secret").chmod(0o600)
    server = serve("--buckets", "4")
    other = serve("--buckets", "4", "--secret-file", str(tmp_path / "secret"), data_dir=tmp_path / "other", name="n2")
    logger = record([server])
    ended(record([server], start=False), 2, "--dir", "in use by process")
    assert logger.stop() == 0
    ended(record([server], start=False, directory=server.data_dir), 2, "in use by process")
    ended(record([server], "--name", "n1", start=False, directory=tmp_path / "new"), 2, "--name", "a node of this cluster")
    ended(record([other], start=False), 2, "secret")
    ended(record([other], "--secret-file", str(tmp_path / "secret"), start=False), 2, "is of cluster")
    assert server.stop() == 0
    ended(record([other], start=False, directory=server.data_dir), 2, "--dir", "the directory of a node")
    ended(serve(data_dir=logger.data_dir, start=False), 2, "the directory of a logger")


def test_2_a_cluster_that_was_set_back_to_older_files(serve: Serve, record: Record, tmp_path: Path) -> None:
    """It uses the same epochs again. Nothing of it is recorded, and nothing of what is recorded is spoilt."""
    server = serve("--buckets", "4")
    with Client(server.address) as client:
        client.set("key", b"once")
    assert server.stop() == 0
    shutil.copytree(server.data_dir, tmp_path / "older")
    server.start()
    assert server.stop() == 0
    server.start()
    logger = record([server])
    until(lambda: is_whole(logger), "all is copied")
    assert logger.stop() == 0
    before = recorded(logger.data_dir)
    assert server.stop() == 0
    back = serve(data_dir=tmp_path / "older")
    again = record([back], "--start-timeout", "0.5", start=False)
    ended(again, 2, "set back to older files")
    assert recorded(logger.data_dir) == before


def test_3_no_node_answers(record: Record, serve: Serve) -> None:
    server = serve(start=False)
    server.address = "127.0.0.1:1"
    logger = record([server], "--start-timeout", "0.3", start=False)
    ended(logger, 3, "127.0.0.1:1")


def test_5_and_7_a_damaged_file_and_a_full_disk(serve: Serve, record: Record) -> None:
    server = serve("--buckets", "4")
    keys = [b"key-%d" % number for number in range(400)]
    logger = record([server])
    until(lambda: is_whole(logger), "all is copied")
    resource.prlimit(logger.pid, resource.RLIMIT_FSIZE, (200_000, 200_000))
    with Client(server.address) as client:
        for key in keys:
            client.set(key, bytes(1000))
    assert logger.wait() == 7, logger.stderr_text
    assert "File too large" in logger.stderr_text
    logger.start()  # there is room again
    assert_recorded(logger, held([server], keys))
    assert logger.stop() == 0

    newest = max(logger.data_dir.glob("*.rcl"))
    body = bytearray(newest.read_bytes())
    body[300] ^= 0xFF
    newest.write_bytes(body)
    ended(logger, 5, newest.name, "--skip-damaged")
    logger.arguments = ["--skip-damaged"]
    logger.start()
    until(lambda: is_whole(logger), "what is missing is copied")
    assert logger.stop() == 0
