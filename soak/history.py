"""The history of a soak run: every operation of every client, one line of JSON each.

What it is: `Operation`, the line it becomes, `HistoryWriter` and `read_history`.
Which thread runs it: any; one `HistoryWriter` may be shared by the threads of a process.
What it owns: a writer owns its open file. Each client process has a file (or at least a writer) of its own.
What it must not know: how an operation was carried out, and what makes a history right (`soak.checker`).

A line holds `client`, `op`, `key`, `value`, `start_ns`, `end_ns` and `outcome`, and what its op needs beside them:

| op | value | beside it |
| --- | --- | --- |
| get | what was read, null for a miss; null unless the outcome is ok | |
| set | what was written | |
| delete | null | `applied`: true if there was something to delete, false if not, null if that was not told |
| cas | what was to be written | `expected`: the value it replaces, null for "must be absent"; `applied`: see below |
| increment | the answer, as decimal text; null unless the outcome is ok | `delta`; an absent key counts as 0 |

An increment is to be called with an initial value equal to its delta, so that absent is the same as 0.

Times are CLOCK_MONOTONIC (`time.monotonic_ns`) of one machine: taken before the request is sent and after its answer came.

| outcome | meaning |
| --- | --- |
| ok | it was answered, and took effect at one moment from start to end |
| fail | it surely did not happen, and never will |
| unknown | it may happen at any time after its start, even after the history's end, once or never; a read says nothing |

A cas that was answered "changed" is ok with `applied` false: it is a read that proves that the value was not the expected one.

A process that may be killed writes an operation twice: before it is sent, as unknown with `end_ns` null, and again when its
outcome is known. The second line replaces the first (the same client, op, key and start_ns), so a line torn by the kill loses
nothing: its operation stays unknown. Without the first line a torn write may look like a value that nobody wrote.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from sys import intern
from types import TracebackType
from typing import NamedTuple

NUMBER = re.compile(r"0|-?[1-9][0-9]*")
"""How a counter's value looks as text: docs/protocol.md, INCREMENT."""

SHOWN_CHARS = 40
"""Of a value, in a line for people: values carry who wrote them at their beginning."""


class Op(StrEnum):
    """What a client asked for."""

    GET = "get"
    SET = "set"
    DELETE = "delete"
    CAS = "cas"
    INCREMENT = "increment"


class Outcome(StrEnum):
    """What the client knows about it; the module's header says what each means."""

    OK = "ok"
    FAIL = "fail"
    UNKNOWN = "unknown"


class DamagedHistory(Exception):
    """A history, or an operation on its way into one, that breaks the format; the text says where and how."""


class Operation(NamedTuple):
    """One operation as its client saw it; the module's header says what the fields mean."""

    client: str
    op: Op
    key: str
    value: str | None
    start_ns: int
    end_ns: int | None
    outcome: Outcome
    expected: str | None = None
    applied: bool | None = None
    delta: int | None = None

    def text(self) -> str:
        """For people: what was asked and what came of it, without key and times."""
        match self.op:
            case Op.GET:
                said = f"get -> {shown(self.value)}" if self.outcome == Outcome.OK else "get"
            case Op.SET:
                said = f"set {shown(self.value)}"
            case Op.DELETE:
                said = {None: "delete", True: "delete (was there)", False: "delete (was absent)"}[self.applied]
            case Op.CAS:
                said = f"cas {shown(self.expected)} to {shown(self.value)}" + (" (refused)" if self.applied is False else "")
            case Op.INCREMENT:
                said = f"increment by {self.delta}" + (f" -> {self.value}" if self.outcome == Outcome.OK else "")
        return f"client {self.client}: {said}, {self.outcome}"


class History(NamedTuple):
    """What `read_history` found. `torn`: the files whose last line was cut off; that line is not among the operations."""

    operations: list[Operation]
    torn: list[Path]


def shown(value: str | None) -> str:
    """A value for people: short, and a miss is not mistaken for text."""
    if value is None:
        return "nothing"
    return repr(value if len(value) <= SHOWN_CHARS else value[:SHOWN_CHARS] + "...")


def to_line(operation: Operation) -> bytes:
    """The operation's line, with its end of line. Raises `DamagedHistory` for an operation that means nothing."""
    if (wrong := _wrong(operation)) is not None:
        raise DamagedHistory(f"{wrong}: {operation}")
    fields = operation._asdict()
    for name in {"expected", "applied", "delta"}.difference(_EXTRA[operation.op]):
        del fields[name]
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def from_line(line: bytes) -> Operation:
    """The operation of a line. Raises `DamagedHistory`."""
    try:
        fields = json.loads(line)
        given = {**fields, "op": Op(fields["op"]), "outcome": Outcome(fields["outcome"])}
        operation = Operation(**given)
        if missing := [name for name in _EXTRA[operation.op] if name not in fields]:
            raise ValueError(f"{operation.op} without {', '.join(missing)}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedHistory(f"not a line of a history ({type(error).__name__}: {error})") from None
    if (wrong := _wrong(operation)) is not None:
        raise DamagedHistory(wrong)
    # A few clients and some thousand keys stand in a million lines: one object for each.
    return operation._replace(client=intern(operation.client), key=intern(operation.key))


class HistoryWriter:
    """Appends operations to a file: each is one write(2) of a whole line, so it is there however the process ends.

    Safe to share between threads. Opened with O_APPEND, so processes may share a file; a torn line of a killed one is then
    in the middle, where `read_history` does not tolerate it. The file must not exist with a torn end: use a new one.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def write(self, operation: Operation) -> None:
        """Blocks for the page cache, not for the disk. Raises `DamagedHistory`, and `OSError` (a full disk, closed)."""
        line = to_line(operation)
        with self._lock:
            written = os.write(self._file, line)
        if written != len(line):
            raise OSError(f"the history has room for {written} of a line's {len(line)} bytes")

    def close(self) -> None:
        """Idempotent."""
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
            self._file = -1

    def __enter__(self) -> HistoryWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def read_history(paths: Iterable[Path]) -> History:
    """All operations of the files, each once. Raises `DamagedHistory` with file and line, and `OSError`."""
    history = History([], [])
    running: dict[tuple[str, Op, str, int], Operation] = {}
    for path in paths:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    operation = from_line(line)
                except DamagedHistory as error:
                    if line.endswith(b"\n"):
                        raise DamagedHistory(f"{path}:{number}: {error}") from None
                    history.torn.append(path)  # only a last line has no end
                    continue
                identity = (operation.client, operation.op, operation.key, operation.start_ns)
                if operation.end_ns is None:
                    running[identity] = operation
                else:
                    running.pop(identity, None)
                    history.operations.append(operation)
    history.operations.extend(running.values())
    return history


_EXTRA: dict[Op, tuple[str, ...]] = {
    Op.GET: (),
    Op.SET: (),
    Op.DELETE: ("applied",),
    Op.CAS: ("expected", "applied"),
    Op.INCREMENT: ("delta",),
}
"""The fields that an op has beside those of every line."""


def _wrong(operation: Operation) -> str | None:
    """What makes the operation meaningless, or None."""
    if not isinstance(operation.client, str) or not isinstance(operation.key, str):
        return "client and key are text"
    if not all(each is None or isinstance(each, str) for each in (operation.value, operation.expected)):
        return "a value is text or null"
    return _wrong_times(operation) or _wrong_extra(operation) or _wrong_value(operation)


def _wrong_times(operation: Operation) -> str | None:
    start, end = operation.start_ns, operation.end_ns
    if type(start) is not int or type(end) not in {int, type(None)}:
        return "start_ns and end_ns are whole numbers"
    if end is None:
        return None if operation.outcome == Outcome.UNKNOWN else "an operation without an end is unknown"
    return None if 0 <= start <= end else "start_ns is not from 0 to end_ns"


def _wrong_extra(operation: Operation) -> str | None:
    op, ok = operation.op, operation.outcome == Outcome.OK
    for name in ("expected", "applied", "delta"):
        if name not in _EXTRA[op] and getattr(operation, name) is not None:
            return f"{op} has no {name}"
    if operation.applied not in (True, False, None) or type(operation.applied) is int:
        return "applied is true, false or null"
    if operation.applied is not None and not ok:
        return "applied is for an outcome of ok"
    if op == Op.CAS and ok and operation.applied is None:
        return "a cas that is ok says whether it applied"
    if op == Op.INCREMENT and type(operation.delta) is not int:
        return "delta is a whole number"
    return None


def _wrong_value(operation: Operation) -> str | None:
    op, value = operation.op, operation.value
    if op in {Op.SET, Op.CAS}:
        return f"{op} without a value" if value is None else None
    if op == Op.DELETE or operation.outcome != Outcome.OK:
        return None if value is None else f"{op} of outcome {operation.outcome} has no value"
    if op == Op.INCREMENT and (value is None or not NUMBER.fullmatch(value)):
        return "the answer to an increment is a number"
    return None
