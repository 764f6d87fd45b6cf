"""Bad arguments are named at once, before anything is sent."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from rcache_client import Client, JsonSerializer, StrSerializer
from rcache_client.address import Address, parse_address
from rcache_client.budget import told_ms, ttl_in_ms

from .scripted_server import ScriptedServer

BAD_CONSTRUCTORS: list[tuple[type[Exception], str, Callable[[], Client[Any]]]] = [
    (ValueError, "no server was given", lambda: Client([])),
    (ValueError, "''", lambda: Client("")),
    (ValueError, "too many colons", lambda: Client("::1")),
    (ValueError, "several servers are given as a list", lambda: Client("a:1,b:2")),
    (ValueError, "'host:0'", lambda: Client("host:0")),
    (ValueError, "'host:65536'", lambda: Client("host:65536")),
    (ValueError, "'host:'", lambda: Client("host:")),
    (ValueError, "'host:\u0661'", lambda: Client("host:\u0661")),
    (ValueError, r"not of the form \[IPv6\]:port", lambda: Client("[::1")),
    (ValueError, "'a b:1'", lambda: Client("a b:1")),
    (ValueError, "'http://host:1'", lambda: Client("http://host:1")),
    (ValueError, "'h:1' was given twice", lambda: Client(["h:1", "h:1"])),
    (TypeError, "b'host:1'", lambda: Client(b"host:1")),  # type: ignore[arg-type]
    (TypeError, "7", lambda: Client([7])),  # type: ignore[list-item]
    (ValueError, "connect_timeout must be above 0", lambda: Client("h", connect_timeout=0)),
    (ValueError, "read_timeout .*nan", lambda: Client("h", read_timeout=float("nan"))),
    (ValueError, "budget .*inf", lambda: Client("h", budget=float("inf"))),
    (ValueError, "budget .*5000000", lambda: Client("h", budget=5_000_000)),
    (TypeError, "budget .*None", lambda: Client("h", budget=None)),  # type: ignore[arg-type]
    (TypeError, "read_timeout .*True", lambda: Client("h", read_timeout=True)),
    (ValueError, "max_connections .*0", lambda: Client("h", max_connections=0)),
    (TypeError, "max_connections .*1.5", lambda: Client("h", max_connections=1.5)),  # type: ignore[arg-type]
    (ValueError, "secret must have at least 16", lambda: Client("h", secret=b"short")),
    (TypeError, "secret must be bytes", lambda: Client("h", secret="a string of characters")),  # type: ignore[arg-type]
    (ValueError, "name must have 1 to 64", lambda: Client("h", name="")),
    (ValueError, "name must have 1 to 64", lambda: Client("h", name="ü" * 33)),
    (ValueError, "9", lambda: Client("h", role=9)),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("kind", "text", "make"), BAD_CONSTRUCTORS, ids=[text for _, text, _ in BAD_CONSTRUCTORS])
def test_constructor(kind: type[Exception], text: str, make: Callable[[], Client[Any]]) -> None:
    with pytest.raises(kind, match=text):
        make()


BAD_CALLS: list[tuple[type[Exception], str, Callable[[Client[Any]], object]]] = [
    (ValueError, "1 to 65535 bytes, not 0", lambda c: c.get("")),
    (ValueError, "1 to 65535 bytes, not 65536", lambda c: c.get("ü" * 32_768)),
    (TypeError, "key must be str or bytes, not 7", lambda c: c.get(7)),
    (TypeError, "key must be str or bytes, not None", lambda c: c.get_many(["a", None])),  # type: ignore[type-var, list-item]
    (TypeError, "letter by letter", lambda c: c.get_many("abc")),
    (TypeError, "letter by letter", lambda c: c.delete_many("abc")),
    (TypeError, "StrSerializer", lambda c: c.set("k", "text")),
    (TypeError, "not int", lambda c: c.set_many({"a": b"1", "k": 7})),
    (ValueError, "ttl must be above 0 .*not 0", lambda c: c.set("k", b"v", ttl=0)),
    (ValueError, "ttl .*-1", lambda c: c.touch("k", -1)),
    (ValueError, "ttl .*nan", lambda c: c.touch("k", float("nan"))),
    (ValueError, "ttl .*1790000000000", lambda c: c.set("k", b"v", ttl=1_790_000_000_000)),
    (TypeError, "ttl .*True", lambda c: c.set("k", b"v", ttl=True)),
    (TypeError, "ttl .*'60'", lambda c: c.set_many({"k": b"v"}, ttl="60")),  # type: ignore[arg-type]
    (ValueError, "delta must be", lambda c: c.incr("k", 1 << 63)),
    (TypeError, "delta must be an int, not 1.5", lambda c: c.incr("k", 1.5)),  # type: ignore[arg-type]
    (TypeError, "initial must be an int", lambda c: c.decr("k", 1, initial="0")),  # type: ignore[arg-type]
    (ValueError, "give initial=", lambda c: c.incr("k", ttl=5)),
    (ValueError, "version must be", lambda c: c.cas("k", b"v", version=-1)),
    (ValueError, "budget must be above 0", lambda c: c.get("k", budget=0)),
    (TypeError, "budget .*'1'", lambda c: c.flush(budget="1")),  # type: ignore[arg-type]
    (TypeError, "section", lambda c: c.stats(None)),  # type: ignore[arg-type]
    (ValueError, "section", lambda c: c.stats("s" * 65)),
    (TypeError, "persist takes", lambda c: c.persist("on")),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("kind", "text", "call"), BAD_CALLS, ids=[text for _, text, _ in BAD_CALLS])
def test_call(kind: type[Exception], text: str, call: Callable[[Client[Any]], object], server: ScriptedServer) -> None:
    with Client(server.address) as cache, pytest.raises(kind, match=text):
        call(cache)
    assert server.requests == []


def test_serializers_name_what_they_do_not_take(server: ScriptedServer) -> None:
    with Client(server.address, serializer=StrSerializer()) as texts, pytest.raises(TypeError, match="must be a str"):
        texts.set("k", b"bytes")  # type: ignore[arg-type]
    with Client(server.address, serializer=JsonSerializer()) as things, pytest.raises(TypeError, match="use cas"):
        things.append("k", [1])


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("host", Address("host", 13600)),
        ("host:1", Address("host", 1)),
        ("10.0.0.1:65535", Address("10.0.0.1", 65_535)),
        ("[::1]:13600", Address("::1", 13600)),
        ("[fe80::1%eth0]", Address("fe80::1%eth0", 13600)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse_address(text) == address


def test_an_address_is_written_as_it_is_read() -> None:
    for text in ("host:1", "[::1]:13600"):
        assert str(parse_address(text)) == text


def test_65535_bytes_are_a_key(cache: Client[bytes]) -> None:
    cache.set(b"k" * 65_535, b"v")
    assert cache.get(b"k" * 65_535) == b"v"


def test_times_for_the_wire() -> None:
    assert ttl_in_ms(0.0001, 1000) == 1
    assert ttl_in_ms(None, 1000) == 0
    assert told_ms(0.0001) == 1
    assert 0 < told_ms(0.1) < 100
    assert told_ms(10) == 9950


def test_a_client_says_where_it_goes() -> None:
    with Client(["one", "[::1]:2"]) as cache:
        assert re.search(r"one:13600, \[::1\]:2", repr(cache))
