"""Etcds for the tests of the register: a real one, as a process, and one that plays a script, in between or alone.

What it is: `EtcdProcess` runs Debian's etcd, a single member, on ports that are free; `ScriptedGateway` takes HTTP requests and
lets a function say what happens to each. Which thread runs it: the scripted one has a thread that accepts and one for each
connection, all joined at its end. What it owns: its process, or its sockets; a script's failure is remembered, and raised then.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PATIENCE_S = 20.0
"""How long a test waits for what must come; far more than it takes."""

TRIES = 5
"""A port that was free may be taken by the time that etcd asks for it."""


def post(url: str, path: str, facts: dict[str, Any]) -> tuple[int, bytes]:
    """Ask a gateway, without anything of rcache's: status and body."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=PATIENCE_S)
    with contextlib.closing(connection):
        connection.request("POST", path, json.dumps(facts))
        response = connection.getresponse()
        return response.status, response.read()


def base64(text: str | bytes) -> str:
    return b64encode(text.encode() if isinstance(text, str) else text).decode()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def fast_directory(fallback: Path) -> Iterator[Path]:
    """Where an fsync costs nothing, if there is such a place."""
    memory = Path("/dev/shm")
    try:
        made = Path(tempfile.mkdtemp(prefix="rcache-etcd-", dir=memory))
    except OSError:
        yield fallback
        return
    try:
        yield made
    finally:
        shutil.rmtree(made)


class EtcdProcess:
    """One member, which is all of its etcd. It keeps its port and its files over `kill` and `start`."""

    def __init__(self, program: str, directory: Path) -> None:
        self.files = directory / "etcd"
        self.url = ""
        self._program = program
        self._log = directory / "etcd.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it answers."""
        for _ in range(TRIES):
            url = self.url or f"http://127.0.0.1:{free_port()}"  # not port 0: the gateway inside dials what it was told
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    [
                        *(self._program, "--name", "only", "--data-dir", str(self.files)),
                        *("--listen-client-urls", url, "--advertise-client-urls", url),
                        *("--listen-peer-urls", "http://127.0.0.1:0", "--log-level", "warn"),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            if self._answers(url):
                self.url = url
                return
        raise AssertionError(f"etcd does not start:\n{self._log.read_text()[-2000:]}")

    def _answers(self, url: str) -> bool:
        """Wait until it answers; False where it has ended."""
        assert self._process is not None
        deadline = time.monotonic() + PATIENCE_S
        while self._process.poll() is None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if post(url, "/v3/kv/range", {"key": base64("any")})[0] == 200:
                    return True
            if time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"etcd does not answer:\n{self._log.read_text()[-2000:]}")
            threading.Event().wait(0.01)
        return False

    def kill(self) -> None:
        """As a power cut would. Returns when it is gone."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(PATIENCE_S)

    def revision(self) -> int:
        """Of all of etcd."""
        _, body = post(self.url, "/v3/kv/range", {"key": base64("any")})
        return int(json.loads(body)["header"]["revision"])

    def put(self, key: str, value: str | bytes) -> None:
        status, _ = post(self.url, "/v3/kv/put", {"key": base64(key), "value": base64(value)})
        assert status == 200

    def remove(self, key: str) -> None:
        status, _ = post(self.url, "/v3/kv/deleterange", {"key": base64(key)})
        assert status == 200

    def compact(self) -> None:
        """Whatever is not the newest is forgotten."""
        status, _ = post(self.url, "/v3/kv/compaction", {"revision": str(self.revision())})
        assert status == 200


class Question:
    """A request that a script is to answer, on a connection of its own."""

    def __init__(self, path: str, facts: dict[str, Any], end: socket.socket) -> None:
        self.path = path
        self.facts = facts
        self._end = end

    def raw(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # the asker may be gone
            self._end.sendall(data)

    def reply(self, body: bytes | dict[str, Any], status: int = 200) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.raw(b"HTTP/1.1 %d Whatever\r\nContent-Length: %d\r\n\r\n%s" % (status, len(data), data))

    def begin_stream(self) -> None:
        self.raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")

    def line(self, facts: dict[str, Any]) -> None:
        data = json.dumps(facts).encode() + b"\n"
        self.raw(b"%x\r\n%s\r\n" % (len(data), data))

    def hold(self) -> None:
        """Say nothing more, until the asker goes away."""
        with contextlib.suppress(OSError):
            while self._end.recv(1 << 16):
                pass

    def forward(self, url: str) -> tuple[bytes, int]:
        """What a real etcd answers."""
        status, body = post(url, self.path, self.facts)
        return body, status

    def pass_on(self, url: str) -> None:
        """Let a real etcd answer."""
        self.reply(*self.forward(url))


Script = Callable[[Question], None]


class ScriptedGateway:
    """Plays a script for every request; the script may be changed at any time."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.paths: list[str] = []
        """What was asked so far."""
        self._failures: list[BaseException] = []
        self._stopping = False
        self._lock = threading.Lock()
        self._ends: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept, name="scripted-etcd")]
        self._threads[0].start()

    def __enter__(self) -> ScriptedGateway:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._stopping = True
            for end in (self._listener, *self._ends):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), f"{thread.name} hangs"
        self._listener.close()
        if self._failures:
            raise self._failures.pop()

    def _accept(self) -> None:
        while True:
            try:
                end, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if self._stopping:
                    end.close()
                    return
                self._ends.append(end)
                thread = threading.Thread(target=self._serve, args=(end,), name=f"scripted-etcd-{len(self._threads)}")
                self._threads.append(thread)
                thread.start()

    def _serve(self, end: socket.socket) -> None:
        try:
            with end, end.makefile("rb") as incoming:
                opening = incoming.readline().split()
                if len(opening) == 3:
                    headers = http.client.parse_headers(incoming)
                    facts = json.loads(incoming.read(int(headers["Content-Length"])))
                    self.paths.append(opening[1].decode())
                    self.script(Question(self.paths[-1], facts, end))
        except OSError:
            pass  # the asker is gone
        except BaseException as error:
            self._failures.append(error)
        finally:
            with self._lock:
                self._ends.remove(end)
