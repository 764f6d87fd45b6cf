"""The servers of the benchmark: how each is started, asked, killed and stopped.

What it is: rcached, Redis and memcached, each with the options that a part of the benchmark needs, and a process of any of
them for as long as it is measured.
Which thread runs it: the benchmark's only one.
What it owns: the processes it started, and a temporary directory for each that was not given one.
What it must not know: what is measured, and how.
"""

from __future__ import annotations

import getpass
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from soak.bench import traffic
from soak.bench.errors import BenchError
from soak.bench.traffic import GET, SET, Dialect, Exchange

START_S = 20.0
"""For a fresh server to answer; one that has a log to read is given more."""
STOP_S = 30.0
EXCHANGE_S = 5.0
POLL_S = 0.005
ITEM_BYTES_MOST = 600
"""What an item of 112 bytes takes in the least thrifty of these servers, rcached's reference engine, and a margin."""


@dataclass(frozen=True)
class Needs:
    """What a part of the benchmark asks of a server beyond its defaults."""

    memory_mib: int = 1024
    """For items, where the server has a limit at all. 1024 is rcached's default, and what memcached is given."""
    connections: int | None = None
    value_bytes: int = 100
    log: str = "off"
    """off, interval, never or always: the append log, and when it is made durable."""
    log_rewrite: bool = True
    """Whether Redis may replace its log by a shorter one, as it does by default."""

    @classmethod
    def of_items(cls, count: int, *, log: str = "off", log_rewrite: bool = True) -> Needs:
        """Room for so many items of 112 bytes, with everything around them, so that none is evicted."""
        return cls(memory_mib=max(cls.memory_mib, count * ITEM_BYTES_MOST >> 20), log=log, log_rewrite=log_rewrite)


@dataclass(frozen=True)
class Peer:
    """A server that can be measured. In `flags`, {port} and {directory} stand for what a start picks."""

    name: str
    program: str
    flags: tuple[str, ...]
    dialect: Dialect
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


def rcached(needs: Needs, engine: str = "auto") -> Peer:
    flags = ["--listen", "127.0.0.1:0", "--name", "bench", "--data-dir", "{directory}"]
    flags += ["--no-append-log"] if needs.log == "off" else ["--append-log", "--append-log-fsync", needs.log]
    flags += [] if needs.memory_mib == Needs.memory_mib else ["--memory-limit", f"{needs.memory_mib}M"]
    flags += [] if needs.connections is None else ["--max-connections", str(needs.connections)]
    flags += [] if engine == "auto" else ["--engine", engine]
    return Peer("rcached", "rcached", tuple(flags), traffic.rcache, says_ready=True)


def redis(needs: Needs) -> Peer:
    flags = ["--bind", "127.0.0.1", "--port", "{port}", "--dir", "{directory}", "--save", "", "--appendonly"]
    policies = {"interval": "everysec", "never": "no", "always": "always"}
    flags += ["no"] if needs.log == "off" else ["yes", "--appendfsync", policies[needs.log]]
    flags += [] if needs.log_rewrite else ["--auto-aof-rewrite-percentage", "0"]
    flags += [] if needs.connections is None else ["--maxclients", str(needs.connections)]
    return Peer("redis", "redis-server", tuple(flags), traffic.redis)


def memcached(needs: Needs) -> Peer:
    """As it is without a log: it has none."""
    flags = ["-l", "127.0.0.1", "-p", "{port}", "-U", "0", "-t", "2", "-m", str(needs.memory_mib)]
    flags += ["-c", str(needs.connections or 4096), "-u", getpass.getuser()]
    flags += ["-I", "2m"] if needs.value_bytes > 1_000_000 - 1000 else []  # an item with all its bookkeeping: 1 MiB by default
    return Peer("memcached", "memcached", tuple(flags), traffic.memcached)


NAMES = ("rcached", "redis", "memcached")
LOGGING = ("rcached", "redis")


def peer_named(name: str, needs: Needs, engine: str = "auto") -> Peer:
    """One of NAMES; `engine` is rcached's."""
    if name == "rcached":
        return rcached(needs, engine)
    return {"redis": redis, "memcached": memcached}[name](needs)


@dataclass(frozen=True)
class Running:
    """A server that is up, on loopback."""

    peer: Peer
    pid: int
    port: int
    directory: Path
    up_after_s: float
    """From the start of the process until it took a write."""
    engine: str | None = None
    """Which of its engines it runs, where it says so."""

    def kill(self) -> None:
        """SIGKILL; it is gone when `running` is left."""
        os.kill(self.pid, signal.SIGKILL)


@contextmanager
def running(peer: Peer, directory: Path | None = None, timeout_s: float = START_S) -> Iterator[Running]:
    """A process of `peer` that took a write and gave it back; stopped afterwards.

    Its files are in `directory`, which stays, or in a new one that goes with it. Raises `BenchError` where it does not come up.
    """
    if directory is None:
        with TemporaryDirectory(prefix="rcache-bench-") as own, running(peer, Path(own), timeout_s) as server:
            yield server
        return
    port = 0 if peer.says_ready else _free_port()
    flags = [flag.format(port=port, directory=directory) for flag in peer.flags]
    said = directory / "said"
    with said.open("wb") as output:
        began = time.monotonic()
        process = subprocess.Popen([peer.path or peer.program, *flags], stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        port = _wait_until_up(peer, process, port, said, timeout_s)
        engine = re.search(r"\bengine (\w+)", said.read_text(encoding="utf-8", errors="replace"))
        server = Running(peer, process.pid, port, directory, time.monotonic() - began, engine[1] if engine else None)
        exchange(server, traffic.fixed(peer.dialect)[GET])
        yield server
    except BenchError as error:
        if process.poll() is None:
            raise
        raise BenchError(f"{error} ({peer.name} had ended with code {process.returncode}: {_tail(said)})") from error
    finally:
        stop_process(process)


def exchange(server: Running, wanted: Exchange, connection: socket.socket | None = None) -> bytes:
    """One request and its reply, which must be right. On a connection of its own by default. Raises `BenchError`."""
    if connection is None:
        with socket.create_connection(("127.0.0.1", server.port), EXCHANGE_S) as own:
            return exchange(server, wanted, own)
    connection.sendall(wanted.request)
    reply = b""
    while len(reply) < len(wanted.reply):
        try:
            received = connection.recv(len(wanted.reply) + 1 - len(reply))
        except TimeoutError:
            received = b""
        reply += received
        if not received or not reply.startswith(wanted.head[: len(reply)]):
            raise BenchError(
                f"{server.peer.name} answered {reply[:200]!r}, not {len(wanted.reply)} bytes from {wanted.head!r} on"
            )
    if len(reply) > len(wanted.reply):
        raise BenchError(f"{server.peer.name} answered {reply[:200]!r}, more than {len(wanted.reply)} bytes")
    return reply


def _free_port() -> int:
    """A port that was free a moment ago: these servers cannot say which one the system picked for them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_up(peer: Peer, process: subprocess.Popen[bytes], port: int, said: Path, timeout_s: float) -> int:
    deadline = time.monotonic() + timeout_s
    write = traffic.fixed(peer.dialect)[SET]
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise BenchError(f"{peer.name} did not come up")
        found = _said_port(said) if peer.says_ready else port
        if found and _takes(found, write):
            return found
        time.sleep(POLL_S)
    raise BenchError(f"{peer.name} was not up after {timeout_s:.0f} s: {_tail(said)}")


def _said_port(said: Path) -> int:
    found = re.search(rb"^ready \S+:(\d+)$", said.read_bytes(), re.MULTILINE)
    return int(found[1]) if found else 0


def _takes(port: int, write: Exchange) -> bool:
    """Whether a server is there and takes a write: Redis listens, and refuses, while it still loads."""
    try:
        with socket.create_connection(("127.0.0.1", port), EXCHANGE_S) as connection:
            connection.sendall(write.request)
            return connection.recv(len(write.reply)).startswith(write.head)
    except OSError:
        return False


def _tail(said: Path) -> str:
    return said.read_text(encoding="utf-8", errors="replace")[-500:].strip() or "it said nothing"


def stop_process(process: subprocess.Popen[bytes]) -> None:
    """In order, or by force where that takes too long."""
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
