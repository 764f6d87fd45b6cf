"""The load drivers, built with the sanitizers where the compiler has them, against servers that answer rightly and wrongly."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from array import array
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from rcache_client.wire.frames import encode_request
from rcache_client.wire.opcodes import Opcode
from soak.bench import drivers as drivers_module
from soak.bench.drivers import COMPILE, SOURCES, Drivers, Keys, Shape, built_drivers
from soak.bench.errors import BenchError
from soak.bench.peers import running
from soak.bench.traffic import GET, MARK, SET, Exchange, fixed, marked, redis
from tests.soak.scripted import scripted_server

COMPILER = shutil.which("gcc") or shutil.which("cc")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler is installed")

REQUEST_BYTES = 12
ASK = Exchange(b"ask " + MARK, b"got " + MARK + b".\n", certain=4)
"""Answered by the digits of the question."""


def right(request: bytes) -> bytes:
    return b"got " + request[4:] + b".\n"


def ask(drivers: Drivers, answer: Callable[[bytes], bytes], keys: Keys, shape: Shape, seconds: float = 0.1) -> dict[str, float]:
    """One run of drive.c against a server that answers so."""
    with scripted_server(answer, REQUEST_BYTES, shape.connections) as server:
        return drivers.keys(server, ASK, shape, seconds, keys)


def test_the_same_request_is_counted_by_replies_of_the_right_length(drivers: Drivers) -> None:
    with scripted_server(lambda _: b"answer", 4) as server:
        found = drivers.fixed(server, Exchange(b"ask\n", b"answer", 6), Shape(1, 8), 0.1)
    assert found["operations_per_s"] > 0
    assert 0 < found["p50_us"] <= found["p99_us"] <= found["p999_us"]


@pytest.mark.parametrize(("answer", "complaint"), [(b"answer!", "reply too long"), (b"hm", "no reply of 6 bytes")])
def test_a_wrong_reply_ends_the_run(answer: bytes, complaint: str, drivers: Drivers) -> None:
    with scripted_server(lambda _: answer, 4) as server, pytest.raises(BenchError, match=complaint):
        drivers.fixed(server, Exchange(b"ask\n", b"answer", 6), Shape(1, 1), 0.1)


def test_each_key_is_sent_once(drivers: Drivers) -> None:
    asked: list[int] = []

    def answer(request: bytes) -> bytes:
        asked.append(int(request[4:]))
        return right(request)

    found = ask(drivers, answer, Keys(103, first=99_990, each=True), Shape(3, 10), seconds=20)
    assert sorted(asked) == list(range(99_990, 100_093))
    assert found["operations_per_s"] > 0
    assert 0 < found["p50_us"] <= found["p99_us"] <= found["p999_us"]


def test_random_keys_are_from_the_range_and_depend_on_the_seed(drivers: Drivers) -> None:
    def asked_with(seed: int) -> list[int]:
        asked: list[int] = []

        def answer(request: bytes) -> bytes:
            asked.append(int(request[4:]))
            return right(request)

        ask(drivers, answer, Keys(50, first=7, seed=seed), Shape(1, 10))
        return asked

    first, again, other = asked_with(1), asked_with(1), asked_with(2)
    assert set(first) == set(range(7, 57))
    shared = min(map(len, (first, again, other)))
    assert first[:shared] == again[:shared] != other[:shared]


def test_in_order_at_a_rate_each_answer_has_its_time(drivers: Drivers, tmp_path: Path) -> None:
    """Numbers begin anew after the last; what is due is sent, no more; a round trip counts from when it was due."""
    asked: list[int] = []
    slow = [0.4]

    def answer(request: bytes) -> bytes:
        asked.append(int(request[4:]))
        if slow and len(asked) == 20:
            time.sleep(slow.pop())  # the server falls behind: what was due meanwhile has waited
        return right(request)

    began = time.monotonic()
    keys = Keys(50, first=30, in_order=True, times=tmp_path / "times")
    found = ask(drivers, answer, keys, Shape(1, 10, rate=400), seconds=0.5)
    assert asked == [30 + number % 50 for number in range(len(asked))]
    assert found["operations"] == len(asked) <= 200
    assert found["p50_us"] > 50_000, "most of them were due while the server slept"
    times = array("d", (tmp_path / "times").read_bytes())
    assert len(times) == 80
    assert not any(times[:30])
    assert all(began < at < time.monotonic() for at in times[30 : 30 + min(50, len(asked))])


def spoiling(at: int, spoil: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """Right answers but for the one with this number."""
    numbers = count()
    return lambda request: spoil(request) if next(numbers) == at else right(request)


@pytest.mark.parametrize("at", [0, 3, 7])
@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda _: b"-LOADING", "wrong reply: -LOADING"),
        (lambda _: b"-", "wrong reply: -"),
        (lambda request: b"gut " + request[4:] + b".\n", "wrong reply: gut"),
        (lambda _: b"got 99999999.\n", r"the reply to another key: got 99999999\.\."),
        (lambda request: right(request) + b"\x00", "wrong reply|reply too long|reply that nobody asked for"),
        (lambda _: b"", "connection closed by the server|Connection reset"),
    ],
    ids=["shorter", "a byte", "other head", "other key", "a byte too many", "hung up"],
)
def test_the_first_reply_that_is_not_right_ends_the_run(
    at: int, spoil: Callable[[bytes], bytes], complaint: str, drivers: Drivers
) -> None:
    with pytest.raises(BenchError, match=complaint):
        ask(drivers, spoiling(at, spoil), Keys(1000), Shape(1, 4))


def command(directory: Path, port: int, **options: object) -> list[str]:
    """drive, built in `directory`, with options that fit ASK, but for those given; None leaves one out."""
    request, head = directory / "q", directory / "e"
    request.write_bytes(ASK.request)
    head.write_bytes(ASK.head)
    usual = {"c": 1, "d": 1, "s": 0.1, "w": 0.2, "k": 10, "o": "random", "q": request, "e": head, "l": len(ASK.reply), "a": 4}
    flags = [str(each) for name, value in (usual | options).items() if value is not None for each in (f"-{name}", value)]
    return [str(directory / "drive"), *flags, "127.0.0.1", str(port)]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("drive")
    subprocess.run([COMPILER or "", *COMPILE, "-o", str(directory / "drive"), str(SOURCES / "drive.c")], check=True)
    return directory


def run(arguments: list[str]) -> tuple[int, str]:
    ran = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=30)
    return ran.returncode, ran.stderr


@pytest.mark.parametrize("answer", [b"got 0000", b"go"])
def test_a_reply_that_never_ends_does_not_hold_it(answer: bytes, plain: Path) -> None:
    with scripted_server(lambda _: answer, REQUEST_BYTES) as server:
        code, said = run(command(plain, server.port))
    assert (code, said) == (1, f"drive: a reply is still owed; what came of it: {answer.decode()}\n")


def test_time_that_is_not_enough_for_each_key_is_an_error(plain: Path) -> None:
    with scripted_server(right, REQUEST_BYTES) as server:
        code, said = run(command(plain, server.port, o="each", k=100_000_000))
    assert code == 1
    assert "of 100000000 keys were not sent in" in said


def test_nobody_there_is_an_error(plain: Path) -> None:
    with scripted_server(right, REQUEST_BYTES, connections=0) as server:
        port = server.port
    assert run(command(plain, port)) == (1, "drive: connect: Connection refused\n")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"c": 0}, "-c takes a number from 1 to"),
        ({"d": "many"}, "-d takes a number"),
        ({"s": 0}, "-s takes seconds"),
        ({"k": None}, "one of -c -d -s -k -q -e -l is missing"),
        ({"f": 99_999_999, "k": 2}, "keys end at 100000000"),
        ({"o": "all"}, "-o takes each, random or next"),
        ({"a": 10}, "-a lies outside the reply"),
        ({"l": 3, "a": None}, "a reply of 3 bytes cannot begin so"),
        ({"l": 1 << 24, "d": 10_000}, "do not fit into memory"),
        ({"q": "/dev/null"}, "/dev/null is empty"),
        ({"e": "/nowhere"}, "/nowhere: No such file"),
        ({"q": "/proc/version"}, "no ######## in the request"),
        ({"z": 1}, "wrong use"),
    ],
)
def test_wrong_use_is_told(options: dict[str, object], complaint: str, plain: Path) -> None:
    code, said = run(command(plain, 1, **options))
    assert code == 2
    assert complaint in said


def test_a_large_value_goes_both_ways(drivers: Drivers) -> None:
    exchange = marked(redis, 300_000)[GET]
    with scripted_server(lambda request: exchange.reply.replace(MARK, request[-10:-2]), len(exchange.request), 2) as server:
        assert drivers.keys(server, exchange, Shape(2, 3), 0.2, Keys(5))["operations_per_s"] > 0


def test_the_server_that_does_nothing_answers_each_frame_however_it_comes(drivers: Drivers) -> None:
    peer = drivers.limit()
    exchanges = fixed(peer.dialect)
    asked = b"".join(exchanges[operation].request for operation in (SET, GET, GET, SET))
    wanted = b"".join(exchanges[operation].reply for operation in (SET, GET, GET, SET))
    with running(peer) as server:
        for size in (1, 7, 16, len(asked)):
            with socket.create_connection(("127.0.0.1", server.port), 5) as connection, connection.makefile("rb") as replies:
                for start in range(0, len(asked), size):
                    connection.sendall(asked[start : start + size])
                assert replies.read(len(wanted)) == wanted
        with socket.create_connection(("127.0.0.1", server.port), 5) as connection:
            connection.sendall(encode_request(Opcode.STATS, 1, 0))
            assert connection.recv(1) == b""
        assert drivers.fixed(server, exchanges[GET], Shape(16, 100), 0.1)["operations_per_s"] > 0


def test_no_compiler_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BenchError, match="C compiler is needed"), built_drivers():
        pass


def test_a_driver_that_does_not_build_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "lg.c").write_text("int main(void) { int unused; return 0; }")
    monkeypatch.setattr(drivers_module, "SOURCES", tmp_path)
    with pytest.raises(BenchError, match=r"lg\.c does not build: [\s\S]*unused"), built_drivers():
        pass
