"""`get_or_compute` against real servers: over processes, with deaths of those who compute and of those who serve."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from time import monotonic

import pytest

from rcache_client import Client, cached
from soak.server_process import ServerProcess

from .conftest import MakeCluster, Serve
from .support import until

PROJECT = Path(__file__).parent.parent.parent
SLACK_S = 2.0
"""What a busy machine may add."""


@pytest.fixture
def server(serve: Serve) -> ServerProcess:
    return serve()


@pytest.fixture
def cache(server: ServerProcess) -> Iterator[Client[bytes]]:
    with Client(server.address) as client:
        yield client


def stampede(server: ServerProcess, notes: Path, threads: int, seconds: float, lease: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.integration.stampeder", server.address, "key", str(notes)]
    return subprocess.Popen([*command, str(threads), str(seconds), str(lease)], cwd=PROJECT, stdout=subprocess.PIPE, text=True)


def noted(notes: Path, *, asks: bool = False) -> list[str]:
    """What was computed, or who asks."""
    lines = notes.read_text().splitlines() if notes.exists() else []
    return [line for line in lines if line.startswith("ask") == asks]


def told(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    return out.strip()


def test_in_several_processes_of_many_threads_one_computes(server: ServerProcess, tmp_path: Path) -> None:
    """Its function takes longer than its lease, which is renewed."""
    notes = tmp_path / "notes"
    processes = [stampede(server, notes, 16, 3.0, 2.0) for _ in range(3)]
    said = [told(process) for process in processes]
    assert [note.split()[0] for note in noted(notes)] == ["begin", "end"], (noted(notes), said)
    computer = noted(notes)[0].split()[1]
    assert said == [f"of {computer} 16 0"] * 3


def test_the_death_of_the_one_who_computes_is_survived(server: ServerProcess, cache: Client[bytes], tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    victim = stampede(server, notes, 4, 3600, 1.0)
    until(lambda: noted(notes), "it computes")
    Event().wait(1.5)  # over the lease: it is renewed
    others = [stampede(server, notes, 4, 0.2, 1.0) for _ in range(2)]
    until(lambda: len(noted(notes, asks=True)) == 3, "the others ask")
    Event().wait(0.5)
    assert len(noted(notes)) == 1, "nobody computes beside one who is alive"
    victim.kill()
    victim.communicate(timeout=30)
    died_at = monotonic()
    said = [told(process) for process in others]
    assert monotonic() - died_at < 1.0 + 0.2 + SLACK_S
    assert [note.split()[0] for note in noted(notes)] == ["begin", "begin", "end"]
    assert said == [f"of {noted(notes)[1].split()[1]} 4 0"] * 2


def test_a_stopped_server_does_not_stop_the_application(server: ServerProcess, cache: Client[bytes]) -> None:
    cache.ping()
    server.process.send_signal(signal.SIGSTOP)
    try:
        began = monotonic()
        assert cache.get_or_compute("key", lambda: b"value", ttl=60, budget=0.5) == b"value"
        assert monotonic() - began < 0.5 + SLACK_S
    finally:
        server.process.send_signal(signal.SIGCONT)
    assert cache.compute_counts().without_cache == 1
    until(lambda: cache.get_or_compute("key", lambda: b"again", ttl=60) and cache.compute_counts().hits, "it is used again")


def test_a_killed_server_costs_the_cache_only(server: ServerProcess, cache: Client[bytes]) -> None:
    def fn() -> bytes:
        server.kill()
        return b"value"

    assert cache.get_or_compute("key", fn, ttl=60, budget=1.0) == b"value"
    assert cache.get_or_compute("key", lambda: b"alone", ttl=60, budget=1.0) == b"alone"
    assert cache.compute_counts().not_stored == 1


def test_stale_is_served_within_its_bound_and_not_beyond(server: ServerProcess, cache: Client[bytes]) -> None:
    """A refresh that hangs leaves the others the old value to the end of its time; then they must wait for a new one."""
    ttl, stale = 0.5, 1.0
    go_on, computing = Event(), Event()

    def hang() -> bytes:
        computing.set()
        assert go_on.wait(20)
        return b"too late"

    before = monotonic()
    cache.get_or_compute("key", lambda: b"old", ttl=ttl, stale=stale)
    stored_by = monotonic()
    with Client(server.address) as other:
        served: list[tuple[bytes, float, float]] = []
        refresher = Thread(target=lambda: other.get_or_compute("key", hang, ttl=ttl, beta=0))
        Event().wait(ttl + 0.1)
        refresher.start()
        try:
            assert computing.wait(10)
            while monotonic() < stored_by + ttl + stale + 0.5:
                asked = monotonic()
                value = cache.get_or_compute("key", lambda: b"new", ttl=60, beta=0)
                served.append((value, asked - stored_by, monotonic() - before))
                Event().wait(0.01)
        finally:
            go_on.set()
            refresher.join(20)
    old = [(asked, got) for value, asked, got in served if value == b"old"]
    assert max(asked for asked, _ in old) < ttl + stale
    assert max(got for _, got in old) > ttl + stale - 0.3, "and it was served nearly to the end"
    assert [value for value, *_ in served] == [b"old"] * len(old) + [b"new"] * (len(served) - len(old))
    assert cache.get("key") == b"new", "what was computed for the old value does not take the place of the new one"


def test_without_stale_nothing_is_served_after_its_ttl(cache: Client[bytes]) -> None:
    numbers = iter(range(1000))
    began = monotonic()
    seen: dict[bytes, float] = {}
    while monotonic() < began + 1.5:
        asked = monotonic()
        value = cache.get_or_compute("key", lambda: b"%d" % next(numbers), ttl=0.3)
        assert asked < seen.setdefault(value, monotonic()) + 0.3
        Event().wait(0.005)
    assert 2 <= len(seen) <= 8


def test_a_hot_key_is_refreshed_early_so_that_nobody_waits(cache: Client[bytes]) -> None:
    """One of many readers computes before the end; with beta=0 all of them would wait for it at the end."""

    def slow() -> bytes:
        Event().wait(0.3)
        return b"value"

    def slowest(key: str, beta: float) -> tuple[float, int]:
        """The 4th longest time that a reader waited (it counts who computes too), and how often it was computed."""
        waits: list[float] = []
        before = cache.compute_counts().computed
        cache.get_or_compute(key, slow, ttl=1.0, beta=beta)

        def read() -> None:
            end = monotonic() + 2.5
            while monotonic() < end:
                asked = monotonic()
                cache.get_or_compute(key, slow, ttl=1.0, beta=beta)
                waits.append(monotonic() - asked)
                Event().wait(0.002)

        readers = [Thread(target=read) for _ in range(8)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        computed = cache.compute_counts().computed - before
        return sorted(waits)[-computed - 1], computed

    early, computed = slowest("early", 1.0)
    late, _ = slowest("late", 0.0)
    assert computed <= 10
    assert early < 0.15 < late


def test_the_death_of_a_primary_while_somebody_computes(cluster_of: MakeCluster) -> None:
    """The lease is on the backup too: it is renewed at the new primary, and the result is stored there."""
    cluster = cluster_of().grow("n1", "n2", "n3")
    name = next(f"key-{n}" for n in range(1000) if cluster.primary_of(f"key-{n}".encode()) == "n3")
    addresses = [cluster.nodes[node].address for node in ("n1", "n2")]
    calls: list[str] = []

    def fn() -> bytes:
        calls.append("first")
        cluster.nodes["n3"].kill()
        Event().wait(3.0)
        return b"value"

    with Client(addresses) as cache, Client(addresses) as other:
        got: list[bytes] = []
        first = Thread(target=lambda: got.append(cache.get_or_compute(name, fn, ttl=60, budget=10)))
        first.start()
        until(lambda: calls, "it computes")
        got.append(other.get_or_compute(name, lambda: calls.append("second") or b"other", ttl=60, budget=10))  # type: ignore[func-returns-value]
        first.join(30)
        assert got == [b"value"] * 2
        assert calls == ["first"]
        assert cache.compute_counts().overtaken == cache.compute_counts().not_stored == 0


def test_the_decorator_over_processes(server: ServerProcess, cache: Client[bytes]) -> None:
    """The same function in another process meets the same keys, whatever its hash seed."""
    code = f"""
from rcache_client import Client, cached
with Client({server.address!r}) as cache:
    @cached(cache, ttl=60, name="load")
    def load(names: set, more: int = 2) -> bytes:
        return b"computed there"
    print(load({{"a", "b", "c"}}))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "b'computed there'\n"

    @cached(cache, ttl=60, name="load")
    def load(names: set[str], more: int = 2) -> bytes:
        return b"computed here"

    assert load({"c", "b", "a"}, more=2) == b"computed there"
    assert load.invalidate({"a", "b", "c"})
    assert load({"a", "b", "c"}) == b"computed here"
