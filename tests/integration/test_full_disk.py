"""The append log cannot be written: exit code 7, why, and how much of what was acknowledged is not on disk.

Once with a limit on the size of files, which needs no rights, and once on a file system that is really full.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from rcache_client import Client, NotExecuted, OutcomeUnknown
from soak.server_process import ServerProcess

from .conftest import Serve
from .support import fill, held, stats, until

VALUE_BYTES = 3000
WRITERS = 4
AT_START_BYTES = 40_000
"""Less than the OPEN records of a start, and more than the server says on standard error, which is a file here too."""

ALWAYS = ("--append-log-fsync", "always")


def write_until_refused(address: str) -> tuple[dict[str, bytes], set[str]]:
    """Write from several threads until every one failed. Returns what was acknowledged, and the keys of unknown outcome."""
    acknowledged: dict[str, bytes] = {}
    unknown: set[str] = set()

    def run(writer: int) -> None:
        for number in range(100_000):
            key = f"disk-{writer}-{number}"
            value = os.urandom(VALUE_BYTES)
            try:
                cache.set(key, value)
            except OutcomeUnknown:
                unknown.add(key)
                return
            except NotExecuted:
                return
            acknowledged[key] = value

    with Client(address) as cache:
        writers = [Thread(target=run, args=(number,)) for number in range(WRITERS)]
        for thread in writers:
            thread.start()
        for thread in writers:
            thread.join(60)
            assert not thread.is_alive(), "a writer is left hanging"
    return acknowledged, unknown


def limit_files(server: ServerProcess, more_bytes: int) -> None:
    """From now on no file of the server may grow past its segment's present size and `more_bytes`."""
    size = max(path.stat().st_size for path in server.data_dir.glob("*.rcl"))
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (size + more_bytes, size + more_bytes))


def assert_all_there(server: ServerProcess, acknowledged: dict[str, bytes], unknown: set[str]) -> None:
    found = held(server, acknowledged | dict.fromkeys(unknown, b""))
    assert len(acknowledged) > 50
    assert {key: value for key, value in found.items() if key not in unknown} == acknowledged


def test_always_loses_nothing_that_was_acknowledged(serve: Serve) -> None:
    server = serve(*ALWAYS)
    limit_files(server, 1_000_000)
    acknowledged, unknown = write_until_refused(server.address)
    assert server.wait() == 7, server.stderr_text
    assert "File too large" in server.stderr_text
    assert "nothing that was acknowledged is missing on disk" in server.stderr_text
    assert_all_there(serve(*ALWAYS), acknowledged, unknown)


def test_interval_says_how_much_is_not_on_disk(serve: Serve) -> None:
    server = serve("--append-log-fsync", "interval", "--append-log-fsync-interval", "3600")
    limit_files(server, 1_000_000)
    acknowledged, _ = write_until_refused(server.address)
    assert server.wait() == 7, server.stderr_text
    said = re.search(r"(\d+) acknowledged changes \((\d+) bytes\) are not known to be on disk", server.stderr_text)
    assert said, server.stderr_text
    changes, lost_bytes = int(said[1]), int(said[2])
    assert changes >= len(acknowledged) > 0
    assert lost_bytes >= len(acknowledged) * VALUE_BYTES


@pytest.mark.parametrize("_again", range(3))
def test_a_disk_that_is_full_at_the_start_is_said_before_ready(serve: Serve, _again: int) -> None:
    """The log's thread may fail while buckets are still being opened, or after: the code is the same."""
    server = serve(*ALWAYS)
    values = fill(server, 20)
    assert server.stop() == 0
    server.launch()
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (AT_START_BYTES, AT_START_BYTES))
    assert server.wait() == 7, server.stderr_text
    assert held(serve(), values) == values


def test_a_disk_that_gets_full_while_it_restores(serve: Serve, tmp_path: Path) -> None:
    server = serve()
    fill(server, 2000, 5000)
    assert server.stop() == 0
    restoring = serve("--restore", str(server.data_dir), "--append-log-fsync", "always", data_dir=tmp_path / "new", start=False)
    restoring.launch()
    resource.prlimit(restoring.pid, resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    assert restoring.wait() == 7, restoring.stderr_text
    assert "File too large" in restoring.stderr_text
    again = serve("--restore", str(server.data_dir), data_dir=tmp_path / "newer")
    assert stats(again, "items")["items"] == 2000


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of three megabytes."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "rcache-test", str(place)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command here")
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], capture_output=True, timeout=30, check=True)


@pytest.mark.parametrize("segment_mb", ["512", "1"], ids=["in one segment", "over several segments"])
def test_a_full_file_system_loses_nothing_that_was_acknowledged(
    serve: Serve, tmp_path: Path, small_disk: Path, segment_mb: str
) -> None:
    server = serve(*ALWAYS, "--append-log-max-mb", segment_mb, data_dir=small_disk / "data")
    acknowledged, unknown = write_until_refused(server.address)
    assert server.wait() == 7, server.stderr_text
    assert "No space left on device" in server.stderr_text
    assert "nothing that was acknowledged is missing on disk" in server.stderr_text
    bigger = tmp_path / "bigger"
    shutil.copytree(server.data_dir, bigger)
    assert_all_there(serve(*ALWAYS, data_dir=bigger), acknowledged, unknown)


def test_a_client_is_told_and_not_left_hanging(serve: Serve) -> None:
    """Readers too: what a failed log holds back is not shown."""
    server = serve(*ALWAYS)
    limit_files(server, 200_000)
    write_until_refused(server.address)
    with Client(server.address, budget=2.0) as cache:
        until(lambda: not server.running)
        with pytest.raises(NotExecuted):
            cache.set("k", b"v")
