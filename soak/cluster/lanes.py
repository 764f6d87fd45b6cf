"""A stayer's connections to its node, and what it writes down of what was answered there.

What it is: `Lane`, one connection, on which calls are sent without waiting for the answers before; `Notebook`, the part of the
history that all lanes of a node share; `write_once`. Which thread runs it: the stayers' only one; nothing here blocks, but
connecting and `write_once`, for moments. What it owns: sockets and files. What it must not know: what is broken, which round it
is, and what is to be asked (`soak.cluster.stayers`).
"""

from __future__ import annotations

import os
import selectors
import socket
import time
from collections import Counter, deque
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from rcache_client.wire.frames import BadFrame, Reply, ReplyReader, encode_request
from rcache_client.wire.grammar import ITEM, KEY_ONLY, REQUESTS, STORE, BadPayload, Layout
from rcache_client.wire.opcodes import (
    ANY_CLUSTER,
    NONCE_BYTES,
    PROTOCOL_VERSION,
    Opcode,
    Role,
    Status,
    StatusClass,
    status_class,
    status_name,
)
from soak.cluster.clients import Counts, history_file
from soak.history import HistoryWriter, Op, Operation, Outcome

PATIENCE_S = 12.0
"""A connection that has not answered for so long is given up: longer than any node is stopped."""

READ_MS, WRITE_MS = 250, 1000
"""How long a call waits at the node. A read that waits for a lease keeps those behind it waiting, too."""

READS_WAITING_MAX = 6000
"""Without an answer, on one connection: more than pile up while a node is stopped, because the newest of them tell most."""

TURNS_WAITING_MAX = 2
"""Of writes, whole turns: an heir whose writes waited for a backup must come to those of today at once when it goes on without
it."""

ALL_KEYS = slice(None)

RETRY_S = 0.1
REPLY_BYTES_MAX = 1 << 20
RECEIVE_BYTES = 1 << 16
STRANGE_SHOWN = 5

_EXPLAINED = frozenset({StatusClass.TRY_LATER, StatusClass.ELSEWHERE, StatusClass.UNKNOWN_OUTCOME, StatusClass.CLOSING})


def write_once(port: int, keys: Iterable[str]) -> socket.socket:
    """Write each of these at a node, whatever becomes of it, and leave no trace in the history. The caller closes the
    connection. Raises `OSError`."""
    value = b"to be acknowledged"
    frames = (encode_request(Opcode.SET, 1, WRITE_MS, STORE.encode(0, 0, key.encode(), value)) for key in keys)
    made = socket.create_connection(("127.0.0.1", port), timeout=1.0)
    made.sendall(b"".join(frames))
    return made


class Waiting(NamedTuple):
    """A call without an answer yet."""

    number: int
    operation: Operation


class Notebook:
    """A stayer's part of the history: a file for each round, and how many of its calls have no answer yet."""

    def __init__(self, directory: Path, name: str) -> None:
        self.name = name
        self.counts = Counts()
        self._directory = directory
        self._written = 0
        self._writers: dict[int, HistoryWriter] = {}
        self._open: Counter[int] = Counter()

    def next_value(self) -> int:
        """What makes a value one that is written once."""
        self._written += 1
        return self._written

    def begin(self, number: int) -> None:
        """A call of that round was sent."""
        self._open[number] += 1

    def end(self, number: int, operation: Operation | None) -> None:
        """It was answered, or never will be; None: there is nothing to be said of it."""
        self._open[number] -= 1
        if operation is None:
            return
        self.counts.outcomes[operation.outcome] += 1
        if number not in self._writers:
            self._writers[number] = HistoryWriter(history_file(self._directory, number, self.name))
        self._writers[number].write(operation)

    def is_over(self, number: int) -> bool:
        """Whether nothing of that round is waited for, and then its file is closed."""
        if self._open[number]:
            return False
        del self._open[number]
        writer = self._writers.pop(number, None)
        if writer is not None:
            writer.close()
        return True

    def note_strange(self, what: str) -> None:
        if len(self.counts.strange) < STRANGE_SHOWN:
            self.counts.strange.append(what)


class Lane:
    """One connection to a node, for reads or for writes. `send` and `receive` never block. `part`: which of a round's keys."""

    def __init__(self, node: str, port: int, part: slice, notebook: Notebook, selector: selectors.BaseSelector) -> None:
        self.node = node
        self.op = Op.GET if part == ALL_KEYS else Op.SET
        self.part = part
        self._port = port
        self._notebook = notebook
        self._selector = selector
        self._sock: socket.socket | None = None
        self._reader = ReplyReader(REPLY_BYTES_MAX)
        self._waiting: deque[Waiting] = deque()
        self._unsent = b""
        self._retry_at = 0.0

    # --- a turn

    def send(self, number: int, keys: list[str]) -> None:
        """One call for each of these, unless too much waits already."""
        self._give_up_silent()
        if self._sock is None and not self._connect():
            return
        self._flush()
        if self._sock is None or self._unsent or len(self._waiting) >= self._waiting_max(len(keys)):
            return
        frames = []
        for key in keys:
            asked = self._asked(key)
            self._waiting.append(Waiting(number, asked))
            self._notebook.begin(number)
            frames.append(self._frame(asked))
        self._unsent = b"".join(frames)
        self._flush()

    def _waiting_max(self, keys: int) -> int:
        return READS_WAITING_MAX if self.op is Op.GET else TURNS_WAITING_MAX * keys

    def _asked(self, key: str) -> Operation:
        value = None
        if self.op is Op.SET:
            value = f"{self._notebook.name}.{self._notebook.next_value()}"
        return Operation(self._notebook.name, self.op, key, value, time.monotonic_ns(), None, Outcome.UNKNOWN)

    @staticmethod
    def _frame(asked: Operation) -> bytes:
        key = asked.key.encode()
        if asked.value is None:
            return encode_request(Opcode.GET, 1, READ_MS, KEY_ONLY.encode(key))
        return encode_request(Opcode.SET, 1, WRITE_MS, STORE.encode(0, 0, key, asked.value.encode()))

    def _connect(self) -> bool:
        if time.monotonic() < self._retry_at:
            return False
        self._retry_at = time.monotonic() + RETRY_S
        try:
            made = socket.create_connection(("127.0.0.1", self._port), timeout=RETRY_S)
            if made.getsockname() == made.getpeername():  # a socket may connect to itself where nobody listens
                made.close()
                return False
        except OSError:
            return False
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.setblocking(False)
        self._selector.register(made, selectors.EVENT_READ, self)
        self._sock, self._reader = made, ReplyReader(REPLY_BYTES_MAX)
        hello = REQUESTS[Opcode.HELLO]
        assert isinstance(hello, Layout)
        said = hello.encode(
            PROTOCOL_VERSION, PROTOCOL_VERSION, Role.CLIENT, ANY_CLUSTER, os.urandom(NONCE_BYTES), self._notebook.name
        )
        self._unsent = encode_request(Opcode.HELLO, 1, 0, said)
        return True

    def _flush(self) -> None:
        if self._sock is None or not self._unsent:
            return
        try:
            self._unsent = self._unsent[self._sock.send(self._unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            self.close()

    def _give_up_silent(self) -> None:
        if self._waiting and time.monotonic_ns() - self._waiting[0].operation.start_ns > PATIENCE_S * 1e9:
            self.close()

    # --- answers

    def receive(self) -> None:
        """Take in what has come."""
        if self._sock is None:
            return
        try:
            data = self._sock.recv(RECEIVE_BYTES)
            if not data:
                self.close()
                return
            self._reader.feed(data)
            while self._sock is not None and (reply := self._reader.next()) is not None:
                self._take(reply, time.monotonic_ns())
        except BlockingIOError:
            pass
        except OSError:
            self.close()
        except (BadFrame, BadPayload, IndexError) as error:
            self._notebook.note_strange(f"{self.node} breaks the protocol: {type(error).__name__}: {error}")
            self.close()

    def _take(self, reply: Reply, now_ns: int) -> None:
        if reply.opcode == Opcode.HELLO:
            return
        if reply.opcode not in (Opcode.GET, Opcode.SET):
            self.close()  # a farewell
            return
        number, asked = self._waiting.popleft()
        answered = asked._replace(end_ns=now_ns, outcome=Outcome.OK)
        kind = status_class(reply.status)
        if reply.status == Status.OK:
            value = ITEM.decode(reply.payload)[2].decode(errors="backslashreplace") if asked.op is Op.GET else asked.value
            self._notebook.end(number, answered._replace(value=value))
        elif reply.status == Status.NOT_FOUND and asked.op is Op.GET:
            self._notebook.end(number, answered)
        else:
            unknown = kind is StatusClass.UNKNOWN_OUTCOME and asked.op is Op.SET
            self._notebook.end(number, asked._replace(end_ns=now_ns) if unknown else None)
            if kind not in _EXPLAINED:
                self._notebook.note_strange(f"{self.node}: {asked.key}: {asked.text()}: {status_name(reply.status)}")

    def close(self) -> None:
        """Give the connection up: what was written and not answered is unknown. Idempotent."""
        if self._sock is not None:
            self._selector.unregister(self._sock)
            self._sock.close()
        self._sock, self._unsent = None, b""
        while self._waiting:
            number, asked = self._waiting.popleft()
            self._notebook.end(number, asked if asked.op is Op.SET else None)
