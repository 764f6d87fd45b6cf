"""The servers of the benchmark: their traffic and options, how they are started and asked; and the machine they run on."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from rcache_client.wire.frames import RequestReader
from rcache_client.wire.opcodes import Opcode
from soak.bench import machine, traffic
from soak.bench.command import ROOT
from soak.bench.errors import BenchError
from soak.bench.parts.restart import wait_until_steady
from soak.bench.peers import NAMES, Needs, Peer, Running, exchange, peer_named, running
from soak.bench.traffic import GET, KEY, MARK, MARKED_KEY, SET, VALUE, Exchange, fixed, marked
from tests.soak.scripted import scripted_server

DIALECTS = {"rcached": traffic.rcache, "redis": traffic.redis, "memcached": traffic.memcached}


def needs(name: str) -> pytest.MarkDecorator:
    peer = peer_named(name, Needs())
    return pytest.mark.skipif(peer.path is None, reason=f"{peer.program} is not installed")


INSTALLED = [pytest.param(name, marks=needs(name)) for name in NAMES]


def test_the_fixed_requests_are_those_of_the_protocols() -> None:
    every = {name: fixed(dialect) for name, dialect in DIALECTS.items()}
    assert {name: len(each[GET].reply) for name, each in every.items()} == {"rcached": 132, "redis": 108, "memcached": 129}
    assert {name: len(each[SET].reply) for name, each in every.items()} == {"rcached": 24, "redis": 5, "memcached": 8}
    for each in every.values():
        assert KEY in each[GET].request
        assert KEY in each[SET].request
        assert VALUE in each[SET].request
        assert each[GET].digits_at is None


@pytest.mark.parametrize("name", DIALECTS)
@pytest.mark.parametrize("value_bytes", [8, 10, 1_000_000])
def test_the_marked_requests_have_room_for_a_number(name: str, value_bytes: int) -> None:
    get, store = (marked(DIALECTS[name], value_bytes)[operation] for operation in (GET, SET))
    assert len(MARKED_KEY) == 12
    assert (get.request.count(MARK), store.request.count(MARK)) == (1, 2)
    assert get.digits_at is not None
    assert get.reply[get.digits_at :].startswith(MARK)
    assert len(get.reply) - get.digits_at >= value_bytes
    assert MARK not in get.head
    assert store.digits_at is None


def test_a_marked_request_is_one_frame() -> None:
    reader = RequestReader(1000)
    reader.feed(marked(traffic.rcache, 100)[SET].request)
    request = reader.next()
    assert request is not None
    assert request.opcode == Opcode.SET
    assert reader.held == 0


def test_the_options_follow_what_is_needed() -> None:
    plain = {name: peer_named(name, Needs()).command for name in NAMES}
    assert plain["rcached"] == "rcached --listen 127.0.0.1:0 --name bench --data-dir DIR --no-append-log"
    assert plain["redis"].endswith("--save '' --appendonly no")
    assert "-t 2 -m 1024 -c 4096" in plain["memcached"]
    assert Needs.of_items(1000) == Needs()

    needed = Needs(memory_mib=4096, connections=11_000, value_bytes=1_000_000, log="interval", log_rewrite=False)
    full = {name: peer_named(name, needed, engine="native").command for name in NAMES}
    for said in ("--append-log-fsync interval", "--memory-limit 4096M", "--max-connections 11000", "--engine native"):
        assert said in full["rcached"]
    for said in ("--appendonly yes --appendfsync everysec", "--auto-aof-rewrite-percentage 0", "--maxclients 11000"):
        assert said in full["redis"]
    assert "-m 4096 -c 11000" in full["memcached"]
    assert full["memcached"].endswith("-I 2m")


def test_rcached_has_these_options() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "rcache.commands.rcached", "--help"], capture_output=True, text=True, check=True
    )
    needed = Needs(memory_mib=4096, connections=11_000, log="interval")
    for flag in peer_named("rcached", needed, engine="reference").flags:
        if flag.startswith("--"):
            assert flag in said.stdout


def test_an_exchange_holds_a_reply_to_its_length() -> None:
    wanted = Exchange(b"ask\n", b"answer", 3)
    with scripted_server(lambda _: b"answer", 4) as server:
        assert exchange(server, wanted) == b"answer"
    with scripted_server(lambda _: b"answer!", 4) as server, pytest.raises(BenchError, match="more than 6"):
        exchange(server, wanted)
    with scripted_server(lambda _: b"err", 4) as server, pytest.raises(BenchError, match=r"answered b'err', not 6 bytes"):
        exchange(server, wanted)
    with scripted_server(lambda _: b"", 4) as server, pytest.raises(BenchError, match=r"answered b''"):
        exchange(server, wanted)


@pytest.mark.parametrize("name", INSTALLED)
def test_a_peer_starts_fresh_answers_and_stops(name: str) -> None:
    peer = peer_named(name, Needs())
    with running(peer) as server:
        assert VALUE in exchange(server, fixed(peer.dialect)[GET])
        assert server.up_after_s > 0
        assert machine.resident_bytes(server.pid) > 0
        assert machine.settle(server.pid)
        assert bool(server.engine) == (name == "rcached")
        port = server.port
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), 5)
    assert peer.version[0].isdigit()


@pytest.mark.parametrize("name", INSTALLED[:2])
def test_a_peer_that_was_killed_starts_again_from_its_files(name: str, tmp_path: Path) -> None:
    peer = peer_named(name, Needs(log="interval"))
    item = marked(peer.dialect, 100)
    with running(peer, tmp_path) as server:
        exchange(server, item[SET])
        assert wait_until_steady(tmp_path) > 0
        server.kill()
    with running(peer, tmp_path) as server:
        exchange(server, item[GET])


@pytest.mark.parametrize("name", INSTALLED[:2])
def test_a_peer_that_dies_while_it_is_measured_is_told(name: str) -> None:
    peer = peer_named(name, Needs())

    def die() -> None:
        with running(peer) as server:
            server.kill()
            os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOWAIT)
            raise BenchError("no answer")

    with pytest.raises(BenchError, match=rf"no answer \({name} had ended with code -9: "):
        die()


STAND_IN = """\
import socket, sys
assert sys.argv[1:3] == ["--listen", "127.0.0.1:0"], sys.argv
from rcache_client.wire.frames import RequestReader, encode_reply
from rcache_client.wire.grammar import ITEM, VERSION_REPLY
from rcache_client.wire.opcodes import Opcode
listener = socket.create_server(("127.0.0.1", 0))
print(f"starting: engine cardboard\\nready 127.0.0.1:{listener.getsockname()[1]}", flush=True)
while True:
    connection, reader = listener.accept()[0], RequestReader(1000)
    while received := connection.recv(1000):
        reader.feed(received)
        while request := reader.next():
            payload = ITEM.encode(0, 1, b"v" * 100) if request.opcode == Opcode.GET else VERSION_REPLY.encode(1)
            connection.sendall(encode_reply(request.opcode, 0, request.request_id, 0, payload))
"""


def test_rcached_says_itself_where_it_listens_and_which_engine_it_runs(tmp_path: Path) -> None:
    program = tmp_path / "rcached"
    program.write_text(f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n{STAND_IN}")
    program.chmod(0o755)
    peer = Peer("rcached", str(program), ("--listen", "127.0.0.1:0"), traffic.rcache, says_ready=True)
    with running(peer) as server:
        assert VALUE in exchange(server, fixed(peer.dialect)[GET])
        assert server.engine == "cardboard"


def test_a_peer_that_does_not_come_up_is_reported_with_what_it_said() -> None:
    peer = Peer("broken", "sh", ("-c", "echo no luck today; exit 9"), traffic.redis)
    with (
        pytest.raises(BenchError, match=r"broken did not come up \(broken had ended with code 9: no luck today\)"),
        running(peer),
    ):
        pass
    silent = Peer("silent", "sleep", ("30",), traffic.redis)
    with pytest.raises(BenchError, match="was not up after 0 s: it said nothing"), running(silent, timeout_s=0.05):
        pass


def test_the_disk_and_its_files(tmp_path: Path) -> None:
    assert machine.sequential_write_rate(tmp_path, (1 << 20) + 5) > 0
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_bytes(b"12345")
    assert machine.files_bytes(tmp_path) == 5
    machine.write_out(tmp_path)


def test_what_a_process_wrote_is_counted() -> None:
    before = machine.written_bytes(os.getpid())
    with TemporaryDirectory() as directory:
        machine.sequential_write_rate(Path(directory), 1 << 20)
        if machine.file_system(Path(directory)) != "tmpfs":
            assert machine.written_bytes(os.getpid()) - before >= 1 << 20


def test_files_that_grow_for_ever_are_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sizes = iter(range(1_000_000))
    monkeypatch.setattr("soak.bench.parts.restart.files_bytes", lambda _: next(sizes))
    monkeypatch.setattr("soak.bench.parts.restart.STEADY_WAIT_S", 0.05)
    monkeypatch.setattr("soak.bench.parts.restart.STEADY_LOOK_S", 0.01)
    with pytest.raises(BenchError, match="still grow"):
        wait_until_steady(tmp_path)


def test_a_busy_process_does_not_settle() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            assert not machine.settle(process.pid, timeout_s=0.5)
            assert machine.processor_s(process.pid) > 0
        finally:
            process.kill()


def test_a_process_that_is_gone_is_an_error() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    for look in (machine.resident_bytes, machine.written_bytes):
        with pytest.raises(BenchError, match="cannot be looked at"):
            look(process.pid)


def test_the_machine_is_described(tmp_path: Path) -> None:
    facts = machine.describe_machine(tmp_path)
    assert {"processor", "memory", "kernel", "file system", "Python"} == facts.keys()
    assert all(facts.values())
    assert machine.file_system(Path("/proc/self")) == "proc"


def test_more_open_files_than_the_account_may_have_is_an_error() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY:
        pytest.skip("this account may open any number of files")
    with pytest.raises(BenchError, match="ulimit -Hn"):
        machine.allow_open_files(hard + 1)


def test_a_server_is_killed_by_its_own_id(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[int] = []
    monkeypatch.setattr("os.kill", lambda pid, _signal: killed.append(pid))
    Running(peer_named("redis", Needs()), 4711, 1, Path(), 0.0).kill()
    assert killed == [4711]


def test_time_is_bounded_while_nobody_listens() -> None:
    began = time.monotonic()
    peer = Peer("deaf", "sleep", ("30",), traffic.memcached)
    with pytest.raises(BenchError, match="was not up"), running(peer, timeout_s=0.1):
        pass
    assert time.monotonic() - began < 20
