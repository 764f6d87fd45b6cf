"""The demonstration: real files through a crash and back, compared bit by bit.

What it is: the program behind `make run`. It caches every file of Python's own standard library, reads all back, kills the
server with -9, and compares again: after a restart from its own append log, and in a new server that was given a savefile
which rcache-replay rebuilt.
Which thread runs it: the main thread; every wait ends at a deadline.
What it owns: two servers, one after the other, and a temporary directory; all gone when it ends, Ctrl-C included.
What it must not know: the inside of the server.

Exit codes: 0 nothing differed, 1 something differed or did not work, 2 wrong use, 130 and 143 it was interrupted.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

from rich.console import Console
from rich.table import Table

from rcache.commands import option_values as values
from rcache.commands.cli_load import Found, Loaded, batches, find_files
from rcache.commands.progress_bar import progress
from rcache.commands.show import show_bytes, show_count, show_size
from rcache_client import Client, RcacheError
from soak.server_process import SAID_SHOWN, ServerFailed, ServerProcess

TOTAL_S = 300
"""The whole of it takes ten to twenty seconds; a machine on which it takes this long has another trouble."""

REQUEST_S = 30.0
"""One request carries about a mebibyte, and seldom a file of many."""

REPLAY_S = 120.0
ON_DISK_S = 60.0
POLL_S = 0.02

KEYS_AT_ONCE = 200
MIB = 1 << 20
FILE_BYTES_MAX = 64 * MIB
"""Larger than any file of a standard library but those of debug builds."""

FILE_BYTES_CEILING = 256 * MIB

DISK_SHARE = 4
"""The append log, a checkpoint of it, the savefile, each as large as all files, and as much to spare."""

MISMATCHES_SHOWN = 10

SKIPPED_DIRECTORIES = ("site-packages", "dist-packages")
"""What others installed beside the standard library."""

Digests = dict[bytes, bytes]


class DemoFailed(Exception):
    """The demonstration cannot go on; says why."""


@dataclass(frozen=True, slots=True)
class Pass:
    """All files once through the server."""

    title: str
    files: int
    size: int
    seconds: float
    mismatches: int | None = None


@dataclass(slots=True)
class Demo:
    """What the steps share. `digests` holds the SHA-256 of what was stored under each key."""

    directory: Path
    source: Path
    file_bytes_max: int
    console: Console
    digests: Digests = field(default_factory=dict)
    passes: list[Pass] = field(default_factory=list)
    recovered: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    size: int = 0
    step: int = 0

    @property
    def data_dir(self) -> Path:
        return self.directory / "first"

    @property
    def savefile(self) -> Path:
        return self.directory / "rebuilt.rcs"

    def say(self, title: str, text: str) -> None:
        """One step, done."""
        self.step += 1
        self.console.print(f"{self.step:>2}. {title:<10} {text}", soft_wrap=True)

    def server(self, data_dir: Path, *arguments: str) -> ServerProcess:
        """A server that takes all the files and drops none of them."""
        value_mib = self.file_bytes_max // MIB + 1
        limits = {
            "--max-value-size": f"{value_mib}M",
            "--max-frame-size": f"{max(16, value_mib + 1)}M",
            "--change-stream-size": f"{max(64, 4 * value_mib + 4)}M",
            "--memory-limit": "4G",
        }
        flags = [part for option in limits.items() for part in option]
        return ServerProcess(data_dir, "--append-log", "--no-evict", *flags, *arguments, name="demo")


def run(demo: Demo) -> None:
    """All steps. Raises `DemoFailed`, `ServerFailed`."""
    found = find(demo)
    with demo.server(demo.data_dir) as server:
        demo.say("start", f"rcached, with its append log on, at {server.address}")
        with connected(server) as cache:
            store(demo, cache, found)
            compare(demo, cache, "read back")
            wait_until_on_disk(demo, cache)
        server.kill()
        demo.say("kill -9", f"process {server.pid} is gone, without a chance to save anything")
        rebuild(demo)
        server.start()
        check_recovery(demo, server, "restart", "its own log", "items")
    shutil.rmtree(demo.data_dir)
    with demo.server(demo.directory / "second", "--restore", str(demo.savefile)) as server:
        check_recovery(demo, server, "restore", "the rebuilt savefile, by a new server in an empty directory", "restored")


def find(demo: Demo) -> list[Found]:
    """The files to store, none of them over the limit."""
    unreadable = Loaded()
    found = find_files(demo.source, b"", unreadable, SKIPPED_DIRECTORIES)
    fitting = [each for each in found if each.size <= demo.file_bytes_max]
    size = sum(each.size for each in fitting)
    if not fitting:
        raise DemoFailed(f"there are no files in {demo.source}")
    free = shutil.disk_usage(demo.directory).free
    if free < DISK_SHARE * size:
        raise DemoFailed(f"{demo.directory} has {show_size(free)} left; {show_size(DISK_SHARE * size)} are needed (set TMPDIR)")
    text = f"{show_count(len(fitting), 'file')}, {show_size(size)}, in {demo.source}"
    if len(found) > len(fitting):
        left_out = show_count(len(found) - len(fitting), "file")
        text += f"; {left_out} over {show_size(demo.file_bytes_max)} left out (--max-file-size)"
    if unreadable.failed:
        text += f"; {len(unreadable.failed):,} cannot be read"
    demo.say("find", text)
    return fitting


@contextmanager
def connected(server: ServerProcess) -> Iterator[Client[bytes]]:
    """A client of that server. Raises `DemoFailed` with the end of what the server said where a call fails."""
    with Client(server.address, budget=REQUEST_S, read_timeout=REQUEST_S, name="demo") as cache:
        try:
            yield cache
        except RcacheError as error:
            raise DemoFailed(f"{error}\nThe server said: {server.stderr_text[-SAID_SHOWN:].strip()}") from error


def store(demo: Demo, cache: Client[bytes], found: Sequence[Found]) -> None:
    """Store all files by many-key calls. What counts is what was read here: a file may change at any time."""
    unreadable, seconds = Loaded(), 0.0
    with progress("storing") as report:
        for batch in batches(found, unreadable):
            began = time.monotonic()
            cache.set_many(batch)
            seconds += time.monotonic() - began
            demo.digests.update((key, sha256(value).digest()) for key, value in batch.items())
            demo.size += sum(map(len, batch.values()))
            report(len(demo.digests), len(found))
    demo.passes.append(Pass("stored", len(demo.digests), demo.size, seconds))
    skipped = f"; {len(unreadable.failed):,} could not be read" if unreadable.failed else ""
    demo.say("store", f"{show_count(len(demo.digests), 'file')} stored, each under its path, in {seconds:.1f} s{skipped}")


def compare(demo: Demo, cache: Client[bytes], title: str) -> None:
    """Read all keys back and compare SHA-256; the server must hold nothing else either."""
    keys, seconds, size = list(demo.digests), 0.0, 0
    differing = []
    with progress("reading") as report:
        for start in range(0, len(keys), KEYS_AT_ONCE):
            part = keys[start : start + KEYS_AT_ONCE]
            began = time.monotonic()
            held = cache.get_many(part)
            seconds += time.monotonic() - began
            size += sum(map(len, held.values()))
            differing += [_difference(key, held.get(key)) for key in part if not _same(demo.digests[key], held.get(key))]
            report(start + len(part), len(keys))
    differing += _surplus(cache, len(keys))
    demo.passes.append(Pass(title, len(keys), size, seconds, len(differing)))
    demo.differing += [f"{title}: {difference}" for difference in differing]
    demo.say("compare", f"{show_count(len(keys), 'file')} read, SHA-256 compared, in {seconds:.1f} s: {_count(differing)}")


def _same(digest: bytes, value: bytes | None) -> bool:
    return value is not None and sha256(value).digest() == digest


def _difference(key: bytes, value: bytes | None) -> str:
    return f"{show_bytes(key)} is missing" if value is None else f"{show_bytes(key)} has another value"


def _surplus(cache: Client[bytes], expected: int) -> list[str]:
    items = cache.stats("items")["items"]["items"]
    return [f"the server holds {items:,} items, not {expected:,}"] if items != expected else []


def _count(differing: Sequence[str]) -> str:
    return f"mismatches: {len(differing)}"


def wait_until_on_disk(demo: Demo, cache: Client[bytes]) -> None:
    """Wait until the append log has all of it on disk: it is forced there once a second, and kill -9 asks nobody."""
    began = time.monotonic()
    while not _all_on_disk(cache.stats()):
        if time.monotonic() - began > ON_DISK_S:
            raise DemoFailed(f"the append log was not on disk after {ON_DISK_S:.0f} s")
        time.sleep(POLL_S)
    seconds = time.monotonic() - began
    demo.say("wait", f"the append log (forced to disk once a second) reports everything on disk, after {seconds:.1f} s")


def _all_on_disk(stats: dict[str, Any]) -> bool:
    """Whether the log has taken all there is, and it is on disk."""
    return bool(stats["append_log"]["bytes_not_on_disk"] == 0)


def rebuild(demo: Demo) -> None:
    """rcache-replay makes a savefile of the dead server's files, which are not changed, and checks it."""
    began = time.monotonic()
    wrote = replay("rebuild", str(demo.data_dir), "--output", str(demo.savefile))["wrote"]
    replay("verify", str(demo.savefile))
    seconds = time.monotonic() - began
    what = f"{show_count(wrote['items'], 'item')}, {show_size(wrote['bytes'])}"
    demo.recovered.append(f"{what} by rcache-replay, into a savefile, in {seconds:.1f} s")
    demo.say("rebuild", f"rcache-replay made a savefile of what the dead server left: {what}; verified, in {seconds:.1f} s")


def replay(*arguments: str) -> dict[str, Any]:
    """What one run of rcache-replay says. Raises `DemoFailed`."""
    command = [sys.executable, "-m", "rcache.commands.rcache_replay", *arguments, "--json"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=REPLAY_S, process_group=0)
    except subprocess.TimeoutExpired:
        raise DemoFailed(f"rcache-replay {arguments[0]} did not end within {REPLAY_S:.0f} s") from None
    if ran.returncode:
        raise DemoFailed(f"rcache-replay {arguments[0]} ended with code {ran.returncode}: {ran.stderr.strip() or ran.stdout}")
    said: dict[str, Any] = json.loads(ran.stdout)
    return said


def check_recovery(demo: Demo, server: ServerProcess, step: str, source: str, counter: str) -> None:
    """What a server that just came up has recovered, compared; then stop it in order. `counter`: where it counts that."""
    with connected(server) as cache:
        recovery = cache.stats("recovery")["recovery"]
        items = show_count(recovery[counter], "item")
        demo.recovered.append(f"{items} from {source}, in {recovery['seconds']:.1f} s")
        demo.say(step, f"{items} recovered from {source}, in {recovery['seconds']:.1f} s")
        compare(demo, cache, f"after the {step}")
    code = server.stop()
    if code:
        raise DemoFailed(f"the server ended with code {code}, not 0: {server.stderr_text.strip()}")


def show(demo: Demo, seconds: float) -> None:
    """The table, and the verdict."""
    table = Table(title="one operation: one file stored, or read and compared", title_justify="left")
    table.add_column("")
    for name in ("files", "MiB", "seconds", "ops/s", "MiB/s", "mismatches"):
        table.add_column(name, justify="right")
    for each in demo.passes:
        mib, took = each.size / MIB, max(each.seconds, 1e-9)
        rates = (f"{each.files / took:,.0f}", f"{mib / took:,.0f}")
        mismatches = "" if each.mismatches is None else str(each.mismatches)
        table.add_row(each.title, f"{each.files:,}", f"{mib:,.1f}", f"{each.seconds:.2f}", *rates, mismatches)
    demo.console.print()
    demo.console.print(table)
    for line in demo.recovered:
        demo.console.print(f"recovered: {line}", soft_wrap=True)
    for difference in demo.differing[:MISMATCHES_SHOWN]:
        demo.console.print(f"mismatch: {difference}", soft_wrap=True)
    demo.console.print(f"{_count(demo.differing)} (all done in {seconds:.0f} s)")


class Interrupted(BaseException):
    """A signal asked for the end; what follows is only cleaning up."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGINT and SIGTERM end what runs inside by `Interrupted`, once; `TOTAL_S` ends it by `DemoFailed`."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        for each in caught:
            signal.signal(each, signal.SIG_IGN)  # cleaning up is short, and is not to be cut short
        raise DemoFailed(f"not done after {TOTAL_S} s") if number == signal.SIGALRM else Interrupted(number)

    caught = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    before = {number: signal.signal(number, interrupt) for number in caught}
    signal.alarm(TOTAL_S)
    try:
        yield
    finally:
        signal.alarm(0)
        for number, handler in before.items():
            signal.signal(number, handler)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options; exits with 2 on wrong use."""
    description = "Cache real files, kill the server with -9, recover in two ways, and compare."
    parser = argparse.ArgumentParser(prog="python -m soak.demo", description=description, allow_abbrev=False)
    source = Path(sysconfig.get_path("stdlib"))
    text = "cache the files below DIR (default: Python's own standard library)"
    parser.add_argument("--source", type=values.existing_path, default=source, metavar="DIR", help=text)
    text = "leave out files larger than this (default: 64M)"
    kind = values.size(1, FILE_BYTES_CEILING)
    parser.add_argument("--max-file-size", type=kind, default=FILE_BYTES_MAX, metavar="SIZE", help=text)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration; return its exit code."""
    options = parse(sys.argv[1:] if argv is None else argv)
    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
    began = time.monotonic()
    try:
        with interruptible(), TemporaryDirectory(prefix="rcache-demo-") as directory:
            console.print("rcache: real files through a crash and back\n")
            demo = Demo(Path(directory), options.source, options.max_file_size, console)
            run(demo)
            show(demo, time.monotonic() - began)
    except (DemoFailed, ServerFailed, OSError) as error:
        print(f"the demonstration failed: {error}", file=sys.stderr)
        return 1
    except Interrupted as interrupted:
        print("interrupted; everything is cleaned up", file=sys.stderr)
        return 128 + interrupted.number
    return 1 if demo.differing else 0


if __name__ == "__main__":
    sys.exit(main())
