"""kill -9: with fsync always nothing that was acknowledged is missing, whatever the server was doing."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from rcache_client import Client
from soak import kill_loop
from soak.rounds import Load

from .conftest import Serve
from .support import fill, held, stats, until


def test_kills_under_load(tmp_path: Path) -> None:
    """The form with 50 rounds: `python -m soak.kill_loop --rounds 50 --seed N`."""
    seed = random.SystemRandom().randrange(10**6)
    result = kill_loop.run(5, seed, tmp_path / "data", Load(2, 8))
    assert result.problems == []
    assert result.rounds == 5
    assert result.changes > 16 * 5


def test_interval_loses_nothing_that_the_interval_had_passed_over(serve: Serve) -> None:
    """A killed process loses less than a machine without power: here nothing that the log's thread had written."""
    server = serve("--append-log-fsync-interval", "0.05")
    values = fill(server, 300)
    until(lambda: _all_on_disk(stats(server, "stream")))
    server.kill()
    assert held(serve(), values) == values


def _all_on_disk(stream: dict[str, int]) -> bool:
    return stream["bytes_on_disk"] == stream["bytes_written"]


def test_every_kind_of_change_survives(serve: Serve) -> None:
    server = serve("--append-log-fsync", "always")
    with Client(server.address) as cache:
        cache.set("set", b"1")
        cache.set("deleted", b"gone")
        cache.delete("deleted")
        cache.add("added", b"2")
        cache.set("replaced", b"old")
        cache.replace("replaced", b"3")
        cache.incr("counted", 5, initial=37)
        cache.incr("counted", 5)
        cache.decr("counted", 2)
        cache.set("extended", b"mid")
        cache.append("extended", b"-end")
        cache.prepend("extended", b"start-")
        cache.set("touched", b"4", ttl=1000)
        cache.touch("touched", 5000)
        cache.set("short", b"expires", ttl=0.05)
        version = cache.set("cas", b"a")
        cache.cas("cas", b"b", version=version)
        cache.cas("cas", b"c", previous=b"b")
        until(lambda: cache.get("short") is None)
        expected = {key: cache.get_with_version(key) for key in ("set", "added", "replaced", "counted", "extended", "cas")}
    server.kill()
    with Client(serve().address) as cache:
        assert {key: cache.get_with_version(key) for key in expected} == expected
        assert expected["counted"].value == b"40"
        assert expected["extended"].value == b"start-mid-end"
        assert expected["cas"].value == b"c"
        assert cache.get("deleted") is None
        assert cache.get("short") is None
        touched = cache.inspect("touched")
        assert touched is not None
        assert touched.ttl == pytest.approx(5000, abs=60)


def test_a_flush_survives_too(serve: Serve) -> None:
    server = serve("--append-log-fsync", "always")
    values = fill(server, 100)
    with Client(server.address) as cache:
        assert cache.flush() == 100
        cache.set("after", b"flush")
    server.kill()
    again = serve()
    assert held(again, values) == {}
    assert held(again, {"after": b""}) == {"after": b"flush"}


def test_versions_go_up_over_a_restart(serve: Serve) -> None:
    server = serve("--append-log-fsync", "always")
    with Client(server.address) as cache:
        before = cache.set("k", b"1")
    server.kill()
    with Client(serve().address) as cache:
        assert cache.get_with_version("k") == (b"1", before)
        assert cache.set("k", b"2") > before


def test_without_an_append_log_it_starts_empty_and_says_so(serve: Serve) -> None:
    server = serve("--no-append-log")
    values = fill(server, 10)
    server.kill()
    again = serve("--no-append-log")
    assert held(again, values) == {}
    assert "starting with 0 items" in again.stderr_text
