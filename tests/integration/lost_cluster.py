"""A cluster of three that is lost all at once, and what must be in one that is rebuilt from its files.

What it is: the story of the cluster up to its end (`begin`, `lose`), what is known of it afterwards (`Lost`), and the proof
that a set of directories brings all of it back onto two fresh nodes (`assert_rebuilt_from`). The directories are an argument:
those of the nodes, or of whoever else wrote down what was changed, who is started between `begin` and `lose`.
Which thread runs it: the test's; every wait ends at a deadline.
What it owns: nothing; the fixtures close clusters and writers end with their `with`. What it must not know: how files look.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rcache.commands import rcache_replay
from rcache.commands.replay_times import now_ms
from rcache_client import Client
from tests.integration.cluster import Cluster, until, values_of
from tests.integration.writers import Writers

NAMES = ("a", "b", "c")
WRITERS = 3
WRITES = 150
"""Acknowledged in each part of the story, so that every bucket has some of it."""
KEYS = 200
"""In all buckets. Of those written first a quarter is changed later, and another quarter deleted."""
CHANGED, DELETED = KEYS // 4, KEYS // 2

TORN = b"rBLK\0\0\x10\0\0\0\0\7"
"""What is left of a block that was cut short: its first bytes."""


@dataclass
class Lost:
    """What is known of a cluster that is gone: where its nodes kept their files; all that was there at `then_ms` and who was
    primary of it; what must be there in the end beside what the writers know."""

    directories: list[Path]
    then: dict[bytes, bytes]
    then_ms: int
    primaries_then: dict[bytes, str]
    primaries_now: dict[bytes, str]
    now: dict[bytes, bytes]
    writers: Writers

    def assert_is_all_there(self, found: dict[bytes, bytes]) -> None:
        """Every write that was acknowledged, or a later one of the same key, and nothing else."""
        assert self.writers.wrong(found) == {}
        assert {key: value for key, value in found.items() if key not in self.writers.may_be} == self.now


def begin(cluster: Cluster) -> None:
    """Two nodes, with every write on two disks before it is acknowledged."""
    cluster.add("a", "--append-log-fsync", "always")
    cluster.grow("b")


def lose(cluster: Cluster, catch_up: Callable[[list[bytes]], None] | None = None) -> Lost:
    """Write; let a third node join, so that buckets move while clients write; change, delete, let expire; kill all at once.
    `catch_up`: called with all keys once the writers have stopped, before it is over: for whoever writes down what was changed
    and is told of it a little later."""
    then = values_of(KEYS, "then")
    keys = list(then)
    cluster.write(then)
    view_then = cluster.view()
    then_ms = a_moment()
    addresses = [node.address for node in cluster.running()]
    with Writers(WRITERS, addresses, budget_s=1.0) as writers:  # in the end each waits as long for nodes that are gone
        _go_on(writers)
        cluster.grow("c")
        view_now = cluster.view()
        new = {b"new-%d" % number: b"new" for number in range(KEYS)} | dict.fromkeys(keys[:CHANGED], b"now")
        cluster.write(new)
        with Client(addresses, budget=10.0) as client:
            client.set(b"long", b"l", ttl=3600)
            client.set(b"short", b"s", ttl=0.05)
            client.delete_many(keys[CHANGED:DELETED])
            until("it expires", lambda: client.get(b"short") is None)
        _go_on(writers)
        if catch_up is not None:
            writers.stop()
            catch_up([*then, *new, b"long", b"short", *writers.may_be])
        for node in cluster.nodes.values():
            node.process.kill()
        writers.stop()
        for node in cluster.nodes.values():
            node.wait()
    now = {key: then[key] for key in keys[DELETED:]} | new | {b"long": b"l"}
    primaries = [{key: cluster.primary_of(key, view) for key in keys} for view in (view_then, view_now)]
    directories = [node.data_dir for node in cluster.nodes.values()]
    return Lost(directories, then, then_ms, *primaries, now, writers)


def a_moment() -> int:
    """One that is later than all that was acknowledged, and earlier than all that is asked for after this returns; in ms. The
    nodes' clocks are this machine's, but for some ms."""
    began = now_ms()
    until("the clock goes on", lambda: now_ms() >= began + 40)
    return began + 20


def tear(directories: Sequence[Path]) -> None:
    """As if the machines had gone, too, while each of them wrote."""
    for directory in directories:
        with max(directory.glob("*.rcl")).open("ab") as segment:
            segment.write(TORN)


def _go_on(writers: Writers) -> None:
    target = writers.acknowledged + WRITES
    until("clients write", lambda: writers.acknowledged > target)


def replay(*argv: object) -> tuple[int, list[dict[str, Any]]]:
    """Run rcache-replay here: its exit code, and the lines of its JSON."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = rcache_replay.main([*map(str, argv), "--json"])
    return code, [json.loads(line) for line in out.getvalue().splitlines()]


def assert_rebuilt_from(directories: Sequence[Path], lost: Lost, fresh: Cluster) -> None:
    """Everything comes back onto two nodes, with other buckets: though the first run is killed, and the same after one more;
    then, into the empty cluster, what was there at `then_ms`."""
    fresh.add("x", "--buckets", "128")
    fresh.grow("y")
    into = fresh.nodes["x"].address
    with Client([node.address for node in fresh.running()], budget=10.0) as client:
        keys = [*lost.now, *lost.then, *lost.writers.may_be, b"short"]
        put_half(directories, into, client, list(lost.now))
        code, (told,) = replay(*directories, "--into", into)
        first = told["injected"]
        found = present(client, keys)
        assert (code, first["failed"], first["items"] + first["kept"]) == (0, 0, len(found)), told
        assert first["kept"] > 0, "what the first run had put in"
        lost.assert_is_all_there(found)
        inspection = client.inspect(b"long")
        assert inspection is not None
        assert 0 < (inspection.ttl or 0) <= 3600

        code, (told,) = replay(*directories, "--into", into)
        assert (code, told["injected"]["items"], told["injected"]["kept"]) == (0, 0, len(found)), told
        code, (told,) = replay(*directories, "--into", into, "--overwrite")
        assert (code, told["injected"]["items"], present(client, keys)) == (0, len(found), found), told
        assert client.flush() == len(found), "nothing else is there"

        moment = f"{lost.then_ms / 1000:.3f}"
        code, (told,) = replay(*directories, "--into", into, "--until", moment, "--prefix", "key-1")
        some = {key: value for key, value in lost.then.items() if key.startswith(b"key-1")}
        assert (code, present(client, keys)) == (0, some), told
        code, (told,) = replay(*directories, "--into", into, "--until", moment)
        assert (code, present(client, keys)) == (0, lost.then), told
        assert client.flush() == len(lost.then)


def put_half(directories: Sequence[Path], into: str, client: Client[bytes], keys: list[bytes]) -> None:
    """An injection that is killed once something of it is there."""
    program = [sys.executable, "-m", "rcache.commands.rcache_replay", *map(os.fspath, directories)]
    with subprocess.Popen([*program, "--into", into, "--rate", str(KEYS)], stdout=subprocess.DEVNULL) as injection:
        try:
            until("it injects", lambda: present(client, keys) or injection.poll() is not None)
        finally:
            injection.kill()
    assert len(present(client, keys)) < len(keys)


def present(client: Client[bytes], keys: list[bytes]) -> dict[bytes, bytes]:
    return {key: value for key, value in client.get_many(keys).items() if value is not None}
