"""The benchmark: its arithmetic, its load generator, and a short run against whatever is installed."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest
from rich.console import Console

from soak.bench import ROOT, BenchError, Load, built_load, idle_connection_bytes, main, measure_all, read_settings
from soak.bench_peers import KEY, MEMCACHED, PEERS, RCACHED, REDIS, VALUE, Peer, Running, Traffic, exchange, running
from soak.bench_report import Measurement, Report, grids, ratios, ratios_text, to_json, to_markdown

needs_compiler = pytest.mark.skipif(not (shutil.which("gcc") or shutil.which("cc")), reason="no C compiler is installed")


def needs(peer: Peer) -> pytest.MarkDecorator:
    return pytest.mark.skipif(peer.path is None, reason=f"{peer.program} is not installed")


INSTALLED = [pytest.param(peer, marks=needs(peer), id=peer.name) for peer in (REDIS, MEMCACHED)]


def measured(server: str, number: int, rate: float, operation: str = "GET") -> Measurement:
    return Measurement(server, operation, 16, 16, number, rate, p50_us=10.0 * number, p99_us=100.0, p999_us=200.0)


@pytest.fixture
def report() -> Report:
    rates = {"rcached": (10.0, 30.0, 20.0), "redis": (20.0, 30.0, 80.0)}
    measurements = [measured(name, n, rate) for name, all_of in rates.items() for n, rate in enumerate(all_of, 1)]
    return Report(
        command="python -m soak.bench",
        date="2025-01-02",
        machine={"processor": "abacus"},
        servers={name: {"version": "1.2", "command": f"{name} --flag"} for name in rates},
        rounds=3,
        seconds=2.0,
        missing=["memcached"],
        measurements=measurements,
        log_cost=[
            measured("off", 1, 100, "SET"),
            measured("on", 1, 90, "SET"),
            measured("off", 2, 50, "SET"),
            measured("on", 2, 50, "SET"),
        ],
        bytes_per_connection={"rcached": 12_345},
        connections_held=1000,
    )


def test_ratios_are_taken_round_by_round(report: Report) -> None:
    assert ratios(report.measurements, "rcached", "redis") == [0.5, 1.0, 0.25]
    assert ratios_text([0.5, 1.0, 0.25]) == "0.50 (0.50 1.00 0.25)"
    assert ratios([measured("a", 1, 2.0), measured("b", 2, 2.0)], "a", "b") == []
    assert ratios_text([]) == "-"


def test_the_tables(report: Report) -> None:
    rates, latencies, log, memory = grids(report)
    assert list(rates.columns) == ["shape", "rcached", "redis", "rcached : redis"]
    assert rates.rows == [["16 x 16", "20", "30", "0.50 (0.50 1.00 0.25)"]]
    assert latencies.rows == [["GET 16 x 16", "20 / 100", "20 / 100"]]
    assert log.rows == [["16 x 16", "75", "70", "0.95 (0.90 1.00)"]]
    assert memory.rows == [["rcached", "12,345"]]


def test_markdown_and_json_say_how_it_was_measured(report: Report) -> None:
    text = to_markdown(report)
    for said in (
        "`python -m soak.bench`",
        "2025-01-02",
        "abacus",
        "rcached 1.2: `rcached --flag`",
        "memcached",
        "3 rounds of 2 s",
    ):
        assert said in text
    assert "| 16 x 16 | 20 | 30 | 0.50 (0.50 1.00 0.25) |" in text
    again = json.loads(json.dumps(to_json(report)))
    assert [each["operations_per_s"] for each in again["measurements"]] == [10, 30, 20, 20, 30, 80]


def test_the_requests_are_those_of_the_protocols() -> None:
    assert {name: peer.traffic["GET"].reply_bytes for name, peer in PEERS.items()} == {
        "rcached": 132,
        "redis": 108,
        "memcached": 129,
    }
    assert {name: peer.traffic["SET"].reply_bytes for name, peer in PEERS.items()} == {
        "rcached": 24,
        "redis": 5,
        "memcached": 8,
    }
    for peer in PEERS.values():
        assert KEY in peer.traffic["GET"].request
        assert KEY in peer.traffic["SET"].request
        assert VALUE in peer.traffic["SET"].request


def test_settings() -> None:
    settings = read_settings([])
    assert (settings.rounds, settings.seconds, settings.servers) == (5, 2.0, ["rcached", "redis", "memcached"])
    assert settings.output.parts[-2:] == ("docs", "benchmarks")
    quick = read_settings(["--quick"])
    assert (quick.rounds, quick.seconds, quick.output) == (2, 0.3, None)
    for wrong in (["--rounds", "-1"], ["--seconds", "-1"], ["--servers", "postgres"]):
        with pytest.raises(SystemExit) as ended:
            read_settings(wrong)
        assert ended.value.code == 2


@contextmanager
def scripted_server(answer: bytes, request_bytes: int) -> Iterator[Running]:
    """A server that answers every `request_bytes` bytes with `answer`, to one connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection, suppress(ConnectionError):  # the load generator hangs up in the middle of a reply
                connection.settimeout(30)
                held = 0
                while received := connection.recv(65_536):
                    held += len(received)
                    connection.sendall(answer * (held // request_bytes))
                    held %= request_bytes

        thread = Thread(target=serve, name="scripted-server")
        thread.start()
        yield Running(Peer("scripted", "none", (), {"GET": Traffic(b"ask\n", 6)}), 0, listener.getsockname()[1])
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def load() -> Iterator[Load]:
    with built_load(seconds=0.1) as built:
        yield built


@needs_compiler
def test_the_load_generator_counts_replies_of_the_right_length(load: Load) -> None:
    with scripted_server(b"answer", 4) as server:
        found = load.measure(server, "GET", (1, 8), 3)
    assert found.row == ("GET", 1, 8)
    assert (found.server, found.round) == ("scripted", 3)
    assert found.operations_per_s > 0
    assert 0 < found.p50_us <= found.p99_us <= found.p999_us


@needs_compiler
@pytest.mark.parametrize(("answer", "complaint"), [(b"answer!", "reply too long"), (b"hm", "no reply of 6 bytes")])
def test_a_wrong_reply_ends_the_run(answer: bytes, complaint: str, load: Load) -> None:
    with scripted_server(answer, 4) as server, pytest.raises(BenchError, match=complaint):
        load.measure(server, "GET", (1, 1), 1)


def test_an_exchange_holds_a_reply_to_its_length() -> None:
    with scripted_server(b"answer", 4) as server:
        assert exchange(server, Traffic(b"ask\n", 6)) == b"answer"
    with scripted_server(b"answer!", 4) as server, pytest.raises(RuntimeError, match="more than 6"):
        exchange(server, Traffic(b"ask\n", 6))


@pytest.mark.parametrize("peer", INSTALLED)
def test_a_peer_starts_fresh_answers_and_stops(peer: Peer) -> None:
    with running(peer) as server:
        assert VALUE in exchange(server, peer.traffic["GET"])
        assert server.resident_kib() > 0
        port = server.port
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), 5)
    assert peer.version[0].isdigit()


STAND_IN = """\
import socket, sys
assert sys.argv[1:3] == ["--listen", "127.0.0.1:0"], sys.argv
from rcache_client.wire.frames import RequestReader, encode_reply
from rcache_client.wire.grammar import ITEM, VERSION_REPLY
from rcache_client.wire.opcodes import Opcode
listener = socket.create_server(("127.0.0.1", 0))
print(f"starting\\nready 127.0.0.1:{listener.getsockname()[1]}", flush=True)
while True:
    connection, reader = listener.accept()[0], RequestReader(1000)
    while received := connection.recv(1000):
        reader.feed(received)
        while request := reader.next():
            payload = ITEM.encode(0, 1, b"v" * 100) if request.opcode == Opcode.GET else VERSION_REPLY.encode(1)
            connection.sendall(encode_reply(request.opcode, 0, request.request_id, 0, payload))
"""


def test_rcached_says_itself_where_it_listens(tmp_path: Path) -> None:
    program = tmp_path / "rcached"
    program.write_text(f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n{STAND_IN}")
    program.chmod(0o755)
    with running(replace(RCACHED, program=str(program))) as server:
        assert VALUE in exchange(server, RCACHED.traffic["GET"])


def test_a_peer_that_does_not_come_up_is_reported_with_what_it_said() -> None:
    peer = Peer("broken", "sh", ("-c", "echo no luck today; exit 9"), {})
    with pytest.raises(RuntimeError, match="ended with code 9: no luck today"), running(peer):
        pass


@needs_compiler
@pytest.mark.parametrize("peer", INSTALLED)
def test_measuring_in_turn(peer: Peer, load: Load) -> None:
    found = measure_all(load, [peer, peer], [("SET", (2, 3)), ("GET", (1, 1))], rounds=2, console=Console(quiet=True))
    assert [(each.row, each.round) for each in found] == [
        *[(("SET", 2, 3), 1)] * 2, *[(("SET", 2, 3), 2)] * 2, *[(("GET", 1, 1), 1)] * 2, *[(("GET", 1, 1), 2)] * 2,
    ]  # fmt: skip


@needs(REDIS)
def test_what_an_idle_connection_costs() -> None:
    assert 0 <= idle_connection_bytes(REDIS, 50) < 1_000_000


def test_nothing_to_measure_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["--quick", "--servers", "redis", "memcached"]) == 1
    assert "not installed: redis-server, memcached" in capsys.readouterr().err
