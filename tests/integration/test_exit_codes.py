"""`ready HOST:PORT`, and each way to end, provoked for real. Code 3 belongs to a cluster, code 1 to a bug."""

from __future__ import annotations

import re
import signal
import socket
from pathlib import Path

import pytest

from rcache.commands.rcached import exit_code
from rcache.server.stopping import Stopped
from rcache.stream.data_dir import DataDir
from rcache.stream.log_terms import LogFailure
from rcache_client import Client
from soak.server_process import ServerProcess

from .conftest import Serve
from .support import fill, held, stats, until


def ended(server: ServerProcess) -> int:
    """The exit code of a server that does not get as far as `ready`."""
    server.launch()
    return server.wait()


def test_ready_is_the_only_line_on_standard_output_and_true(serve: Serve) -> None:
    server = serve(start=False)
    server.launch()
    server.wait_ready()
    with Client(server.address) as cache:  # at once, without another try
        cache.ping()
    assert server.stop() == 0
    assert server.process.stdout is not None
    assert server.process.stdout.read() == b""
    assert re.fullmatch(r"127\.0\.0\.1:\d+", server.address)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_0_an_idle_server_stops_at_once(serve: Serve, number: signal.Signals) -> None:
    server = serve()
    server.signal(number)
    assert server.wait(10) == 0
    assert "ERROR" not in server.stderr_text
    assert f"stopping: {number.name}" in server.stderr_text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_0_a_signal_while_it_starts_gives_the_start_up(serve: Serve, number: signal.Signals) -> None:
    server = serve()
    values = fill(server, 20_000)
    assert server.stop() == 0
    server.launch()
    until(lambda: server.stderr_text.count("starts:") == 2, "its first word")
    server.signal(number)
    assert server.wait(10) == 0
    assert number.name in server.stderr_text
    server.start()
    assert held(server, values) == values


def test_2_a_directory_whose_restore_did_not_end_is_not_served(serve: Serve, tmp_path: Path) -> None:
    server = serve()
    assert server.stop() == 0
    data_dir = DataDir(tmp_path / "data")
    data_dir.begin_restore()
    data_dir.close()
    assert ended(server) == 2
    assert "--restore" in server.stderr_text


@pytest.mark.parametrize(
    ("stopped", "code"),
    [
        (Stopped(), 0),
        (Stopped(crashes=1), 1),
        (Stopped(problems=["the listener did not end"]), 1),
        (Stopped(displaced="the name n1 belongs to another node by now", crashes=1), 2),
        (Stopped(not_saved="n1.rcs: No space left on device", crashes=1), 6),
        (Stopped(not_saved="n1.rcs: No space left on device", log_failure=LogFailure(OSError(28, "full"), "w", 0, 0)), 7),
    ],
)
def test_the_worst_thing_decides_the_exit_code(stopped: Stopped, code: int) -> None:
    assert exit_code(stopped) == code


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--no-such-option",), "--no-such-option"),
        (("--memory-limit", "lots"), "--memory-limit"),
        (("--listen", "nonsense"), "--listen"),
        (("--config", "/nonexistent/rcached.conf"), "--config"),
        (("--restore", "/nonexistent/file.rcs"), "--restore"),
        (("--buckets", "1000"), "--buckets"),
    ],
)
def test_2_wrong_use_names_the_option(serve: Serve, arguments: tuple[str, ...], said: str) -> None:
    server = serve(*arguments, start=False)
    assert ended(server) == 2
    assert said in server.stderr_text


def test_2_the_data_directory_is_in_use(serve: Serve) -> None:
    first = serve()
    second = serve(start=False)
    assert ended(second) == 2
    assert f"in use by process {first.pid}" in second.stderr_text
    with Client(first.address) as cache:
        cache.ping()


def test_2_the_data_directory_is_anothers(serve: Serve) -> None:
    serve(name="one").stop()
    other = serve(name="two", start=False)
    assert ended(other) == 2
    assert "one" in other.stderr_text


def test_2_the_data_was_born_with_other_buckets(serve: Serve) -> None:
    serve("--buckets", "64").stop()
    other = serve("--buckets", "128", start=False)
    assert ended(other) == 2
    assert "64" in other.stderr_text
    assert serve().stop() == 0


def test_4_the_port_is_taken(serve: Serve) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = serve("--listen", f"127.0.0.1:{taken.getsockname()[1]}", start=False)
        assert ended(server) == 4
    assert "cannot listen" in server.stderr_text


def test_4_costs_nothing_of_the_data(serve: Serve, tmp_path: Path) -> None:
    server = serve()
    values = fill(server, 50)
    assert server.stop() == 0
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert ended(serve("--listen", f"127.0.0.1:{taken.getsockname()[1]}", start=False)) == 4
    assert held(serve(), values) == values


def damage_in_the_middle(directory: Path) -> Path:
    """Flip one byte half way through the newest segment."""
    newest = sorted(directory.glob("*.rcl"))[-1]
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 0x10
    newest.write_bytes(data)
    return newest


def test_5_damage_in_the_middle_of_a_segment(serve: Serve) -> None:
    server = serve("--append-log-fsync", "always")
    values: dict[str, bytes] = {}
    for number in range(20):  # a block each, of much the same size
        values |= fill(server, 20, 500, seed=number, prefix=f"part-{number}")
    server.kill()
    damaged = damage_in_the_middle(server.data_dir)
    refused = serve(start=False)
    assert ended(refused) == 5
    assert re.search(rf"{re.escape(damaged.name)}\D+\d+", refused.stderr_text), "the file and where in it"
    assert "--skip-damaged" in refused.stderr_text
    again = serve(start=False)
    assert ended(again) == 5, "the refusal must not have mended or lost anything"
    going_on = serve("--skip-damaged")
    found = held(going_on, values)
    assert all(values[key] == value for key, value in found.items()), "never a wrong value"
    lost = len(values) - len(found)
    assert 0 < lost < len(values) / 2, f"{lost} of {len(values)} lost"
    assert damaged.name in going_on.stderr_text
    until(lambda: stats(going_on, "checkpoints")["checkpoints"])
    assert going_on.stop() == 0
    assert held(serve(), values) == found, "once a checkpoint holds what was left, a normal start works again"


def test_5_the_identity_is_damaged(serve: Serve, tmp_path: Path) -> None:
    serve().stop()
    (tmp_path / "data" / "node.json").write_text("{]")
    server = serve(start=False)
    assert ended(server) == 5
    assert "node.json" in server.stderr_text


def test_6_the_savefile_cannot_be_written(serve: Serve, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    server = serve("--savefile", str(place / "n1.rcs"), "--persist-on-shutdown", "--no-append-log")
    fill(server, 10)
    place.rmdir()
    assert server.stop() == 6
    assert str(place) in server.stderr_text


def test_6_still_leaves_the_append_log_whole(serve: Serve, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    server = serve("--savefile", str(place / "n1.rcs"), "--persist-on-shutdown")
    values = fill(server, 100)
    place.rmdir()
    assert server.stop() == 6
    assert held(serve(), values) == values
