"""The servers of the benchmark: how each is started, asked and stopped.

What it is: rcached (with its append log and without), Redis and memcached, each with the bytes of one SET and one GET of the
same 8-byte key and 100-byte value, and the exact length of the reply.
Which thread runs it: the benchmark's only one.
What it owns: the processes it started, and a temporary directory for each.
What it must not know: what is measured, and how.
"""

from __future__ import annotations

import getpass
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rcache_client.wire.frames import HEADER_BYTES, encode_request
from rcache_client.wire.grammar import ITEM, KEY_ONLY, STORE, VERSION_REPLY
from rcache_client.wire.opcodes import Opcode

KEY = b"key:0001"
VALUE = b"v" * 100
START_S = 20.0
STOP_S = 30.0
EXCHANGE_S = 5.0
POLL_S = 0.01


@dataclass(frozen=True)
class Traffic:
    """One request, and how many bytes answer it."""

    request: bytes
    reply_bytes: int


@dataclass(frozen=True)
class Peer:
    """A server that can be measured. In `flags`, {port} and {directory} stand for what a start picks."""

    name: str
    program: str
    flags: tuple[str, ...]
    traffic: dict[str, Traffic]
    says_ready: bool = False
    """Whether it picks its own port and prints `ready HOST:PORT`."""

    @property
    def path(self) -> str | None:
        """Where its program is; None where it is not installed. Programs of this environment come first."""
        return shutil.which(self.program, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}")

    @property
    def version(self) -> str:
        """What its program says of its version."""
        said = subprocess.run(
            [self.path or "", "--version"], capture_output=True, text=True, check=True, timeout=START_S
        ).stdout
        found = re.search(r"\d+\.\d+(\.\d+)*", said)
        return found[0] if found else said.strip()

    @property
    def command(self) -> str:
        """The command for people, without what differs from start to start."""
        shown = (flag.format(port="PORT", directory="DIR") or "''" for flag in self.flags)
        return " ".join((self.program, *shown))


@dataclass(frozen=True)
class Running:
    """A server that is up and holds KEY."""

    peer: Peer
    pid: int
    port: int

    def resident_kib(self) -> int:
        """Its resident memory."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
        if found is None:
            raise RuntimeError(f"{self.peer.name} has no resident memory")
        return int(found[1])


_RCACHE = {
    "SET": Traffic(
        encode_request(Opcode.SET, 1, 0, STORE.encode(0, 0, KEY, VALUE)), HEADER_BYTES + len(VERSION_REPLY.encode(0))
    ),
    "GET": Traffic(encode_request(Opcode.GET, 1, 0, KEY_ONLY.encode(KEY)), HEADER_BYTES + len(ITEM.encode(0, 0, VALUE))),
}

_REDIS = {
    "SET": Traffic(b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(KEY), KEY, len(VALUE), VALUE), len(b"+OK\r\n")),
    "GET": Traffic(b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(KEY), KEY), len(b"$100\r\n\r\n") + len(VALUE)),
}

_MEMCACHED = {
    "SET": Traffic(b"set %b 0 0 %d\r\n%b\r\n" % (KEY, len(VALUE), VALUE), len(b"STORED\r\n")),
    "GET": Traffic(b"get %b\r\n" % KEY, len(b"VALUE key:0001 0 100\r\n\r\nEND\r\n") + len(VALUE)),
}

_RCACHED_FLAGS = ("--listen", "127.0.0.1:0", "--name", "bench", "--data-dir", "{directory}")

RCACHED = Peer("rcached", "rcached", (*_RCACHED_FLAGS, "--no-append-log"), _RCACHE, says_ready=True)
RCACHED_LOGGING = Peer(
    "rcached with log", "rcached", (*_RCACHED_FLAGS, "--append-log", "--append-log-fsync", "interval"), _RCACHE, says_ready=True
)
REDIS = Peer(
    "redis",
    "redis-server",
    ("--bind", "127.0.0.1", "--port", "{port}", "--dir", "{directory}", "--save", "", "--appendonly", "no"),
    _REDIS,
)
MEMCACHED = Peer(
    "memcached",
    "memcached",
    ("-l", "127.0.0.1", "-p", "{port}", "-U", "0", "-t", "2", "-m", "1024", "-c", "4096", "-u", getpass.getuser()),
    _MEMCACHED,
)
PEERS = {peer.name: peer for peer in (RCACHED, REDIS, MEMCACHED)}


@contextmanager
def running(peer: Peer) -> Iterator[Running]:
    """Start `peer` fresh, store KEY in it, and stop it afterwards. Raises `RuntimeError` if it does not come up or answer."""
    with TemporaryDirectory(prefix="rcache-bench-") as directory:
        port = 0 if peer.says_ready else _free_port()
        flags = [flag.format(port=port, directory=directory) for flag in peer.flags]
        said = Path(directory, "said")
        with said.open("wb") as output:
            process = subprocess.Popen(
                [peer.path or peer.program, *flags], stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        try:
            server = Running(peer, process.pid, _wait_until_up(peer, process, port, said))
            for operation in ("SET", "GET"):
                exchange(server, peer.traffic[operation])
            yield server
        finally:
            _stop(process)


def exchange(server: Running, traffic: Traffic, connection: socket.socket | None = None) -> bytes:
    """One request and its reply, which must have exactly the length it should. On a connection of its own by default."""
    if connection is None:
        with socket.create_connection(("127.0.0.1", server.port), EXCHANGE_S) as own:
            return exchange(server, traffic, own)
    connection.sendall(traffic.request)
    reply = b""
    while len(reply) < traffic.reply_bytes:
        try:
            received = connection.recv(traffic.reply_bytes + 1 - len(reply))
        except TimeoutError:
            received = b""
        if not received:
            raise RuntimeError(f"{server.peer.name} answered {reply!r}, not {traffic.reply_bytes} bytes")
        reply += received
    if len(reply) > traffic.reply_bytes:
        raise RuntimeError(f"{server.peer.name} answered {reply!r}, more than {traffic.reply_bytes} bytes")
    return reply


def _free_port() -> int:
    """A port that was free a moment ago: these servers cannot say which one the system picked for them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_up(peer: Peer, process: subprocess.Popen[bytes], port: int, said: Path) -> int:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{peer.name} ended with code {process.returncode}: {_tail(said)}")
        found = _said_port(said) if peer.says_ready else _open_port(port)
        if found:
            return found
        time.sleep(POLL_S)
    raise RuntimeError(f"{peer.name} was not up after {START_S:.0f} s: {_tail(said)}")


def _said_port(said: Path) -> int:
    found = re.search(rb"^ready \S+:(\d+)$", said.read_bytes(), re.MULTILINE)
    return int(found[1]) if found else 0


def _open_port(port: int) -> int:
    try:
        socket.create_connection(("127.0.0.1", port), EXCHANGE_S).close()
    except OSError:
        return 0
    return port


def _tail(said: Path) -> str:
    return said.read_text(encoding="utf-8", errors="replace")[-500:].strip() or "it said nothing"


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
