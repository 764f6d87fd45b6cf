"""Many-key calls: cut to what a frame holds, and nothing hidden when a part fails."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcache_client import (
    Client,
    JsonSerializer,
    NotExecuted,
    OutcomeUnknown,
    ProtocolError,
    ServersUnavailable,
    SomeKeysFailed,
    StrSerializer,
    TooLarge,
    WrongFormat,
)
from rcache_client.many import COUNT_BYTES, Room, parts
from rcache_client.wire.frames import HEADER_BYTES
from rcache_client.wire.grammar import Group, encode_keys
from rcache_client.wire.opcodes import Opcode, Status

from .fake_service import FakeService, Item
from .scripted_server import Line, ScriptedServer
from .support import free_address


def test_many_keys_in_one_frame(server: ScriptedServer, cache: Client[bytes]) -> None:
    versions = cache.set_many({"a": b"1", b"b": b"2"}, ttl=60)
    assert list(versions) == ["a", b"b"]
    assert versions["a"] < versions[b"b"]
    assert cache.get_many(["a", b"b", "missing"]) == {"a": b"1", b"b": b"2"}
    assert cache.delete_many(["a", "missing"]) == {"a": True, "missing": False}
    assert server.opcodes() == [Opcode.SET_MANY, Opcode.GET_MANY, Opcode.DELETE_MANY]
    assert server.service.items[b"b"].ttl_ms == 60_000


@pytest.mark.parametrize(
    "keys",
    [
        ["aaa", "bbb", "ccc"],
        ["a", "bb", "ccc"],
        [b"aaa", "bbb", b"ccc"],
        ["aa", "ü", "bb"],
        ["x" * 127, "y" * 128, "z" * 300],
        [b"\xff", b"\0\1", b"k" * 65_535],
    ],
    ids=["alike", "of_many_lengths", "text_and_bytes", "not_ascii", "long", "bytes"],
)
@pytest.mark.parametrize("missing", [None, 0, 1, 2])
def test_keys_of_all_kinds_are_asked_for_in_one_frame(
    server: ScriptedServer, cache: Client[bytes], keys: list[str | bytes], missing: int | None
) -> None:
    """However they were encoded, and however the reply was read."""
    values = {key: b"%d" % place * (place + 1) for place, key in enumerate(keys) if place != missing}
    cache.set_many(values)
    assert cache.get_many(keys) == values
    asked = [key if isinstance(key, bytes) else key.encode() for key in keys]
    assert server.requests[-1].payload == encode_keys(asked)
    assert cache.delete_many(keys) == {key: place != missing for place, key in enumerate(keys)}
    assert server.requests[-1].payload == encode_keys(asked)


def test_values_alike_are_each_under_their_own_key(cache: Client[bytes]) -> None:
    values = {f"key-{n:03}": b"%03d" % n for n in range(500)}
    cache.set_many(values)
    assert cache.get_many(values) == values
    assert cache.get_many(reversed(list(values))) == values


def test_bytes_are_read_whoever_wrote_them(server: ScriptedServer, cache: Client[bytes]) -> None:
    with Client(server.address, serializer=StrSerializer()) as texts:
        texts.set_many({"a": "1", "b": "2"})
        assert cache.get_many(["a", "b"]) == {"a": b"1", "b": b"2"}
        assert cache.get("a") == b"1"


def test_no_keys_ask_nobody() -> None:
    with Client(free_address()) as cache:
        assert cache.get_many([]) == cache.set_many({}) == cache.delete_many([]) == {}


def test_a_key_given_twice_is_asked_once(server: ScriptedServer, cache: Client[bytes]) -> None:
    cache.set("a", b"1")
    assert cache.get_many(iter(["a", "a"])) == {"a": b"1"}
    assert server.requests[-1].payload == encode_keys([b"a"])
    assert cache.delete_many(["a", "a"]) == {"a": True}


def test_text_and_bytes_of_one_key_are_both_answered(cache: Client[bytes]) -> None:
    cache.set("a", b"1")
    assert cache.get_many(["a", b"a"]) == {"a": b"1", b"a": b"1"}


@given(
    lengths=st.lists(st.integers(3, 300), max_size=200),
    frame_bytes_max=st.integers(64, 1000),
    reply_entry_bytes=st.integers(1, 20),
)
def test_parts_cover_all_in_order_and_no_frame_is_too_long(
    lengths: list[int], frame_bytes_max: int, reply_entry_bytes: int
) -> None:
    entries = [bytes(length) for length in lengths]
    cut = list(parts(entries, Room.of(frame_bytes_max, reply_entry_bytes)))
    assert [entry for part in cut for entry in entries[part]] == entries
    for part in cut:
        inside = entries[part]
        assert inside
        if len(inside) > 1:
            assert HEADER_BYTES + COUNT_BYTES + sum(map(len, inside)) <= frame_bytes_max
            assert HEADER_BYTES + COUNT_BYTES + len(inside) * reply_entry_bytes <= frame_bytes_max


def test_70000_keys_need_two_frames(server: ScriptedServer) -> None:
    keys = [f"{n}" for n in range(70_000)]
    with Client(server.address, read_timeout=30, budget=30) as cache:  # the server of these tests is slow
        assert len(cache.set_many(dict.fromkeys(keys, b"v"))) == 70_000
        assert len(cache.get_many(keys)) == 70_000
        assert all(cache.delete_many(keys).values())
    assert server.opcodes() == [Opcode.SET_MANY] * 2 + [Opcode.GET_MANY] * 2 + [Opcode.DELETE_MANY] * 2


def test_no_request_or_reply_outgrows_the_servers_frame() -> None:
    with ScriptedServer(service=FakeService(frame_bytes_max=4096)) as server, Client(server.address) as cache:
        values = {f"key-{n}": bytes([n % 256]) * (n % 500) for n in range(300)}
        assert cache.set_many(values).keys() == values.keys()
        assert cache.get_many(values) == values
        assert cache.delete_many(values) == dict.fromkeys(values, True)
        assert all(HEADER_BYTES + len(r.payload) <= 4096 for r in server.requests)
        assert server.connections == 1


def test_long_plain_keys_are_cut_by_what_the_request_holds() -> None:
    """Their replies would fit into one frame."""
    with ScriptedServer(service=FakeService(frame_bytes_max=4096)) as server, Client(server.address) as cache:
        keys = [f"{n:0100}" for n in range(100)]
        cache.set_many(dict.fromkeys(keys, b""))
        assert cache.get_many(keys) == dict.fromkeys(keys, b"")
        assert all(HEADER_BYTES + len(r.payload) <= 4096 for r in server.requests)


def test_values_that_do_not_fit_into_one_reply_are_asked_for_again() -> None:
    with ScriptedServer(service=FakeService(frame_bytes_max=4096)) as server, Client(server.address) as cache:
        values = {f"key-{n}": bytes(1500) for n in range(10)}
        for key, value in values.items():
            cache.set(key, value)
        assert cache.get_many(values) == values
        assert server.opcodes().count(Opcode.GET_MANY) < 10


def test_a_value_that_fits_into_no_shared_reply_is_asked_for_alone() -> None:
    with ScriptedServer(service=FakeService(frame_bytes_max=4096)) as server, Client(server.address) as cache:
        largest = bytes(4096 - HEADER_BYTES - 16)  # flags, version, length: what a GET's reply has, less than an entry
        server.service.items[b"key"] = Item(largest, flags=0, ttl_ms=0, version=1)
        assert cache.get_many(["key", "missing"]) == {"key": largest}
        assert server.opcodes()[-1] == Opcode.GET


def test_single_keys_that_fail_are_named_and_the_rest_is_kept(server: ScriptedServer, cache: Client[bytes]) -> None:
    server.service.value_bytes_max = 3
    with pytest.raises(SomeKeysFailed, match="SET_MANY: 1 of 3 keys failed; the first: 'b': SET_MANY: TOO_LARGE") as caught:
        cache.set_many({"a": b"1", "b": b"1234", "c": b"3"})
    assert caught.value.done.keys() == {"a", "c"}
    assert isinstance(caught.value.failed["b"], TooLarge)
    assert cache.get_many(["a", "b", "c"]) == {"a": b"1", "c": b"3"}


def test_a_value_too_large_for_any_frame_fails_alone() -> None:
    with ScriptedServer(service=FakeService(frame_bytes_max=4096)) as server, Client(server.address) as cache:
        with pytest.raises(SomeKeysFailed) as caught:
            cache.set_many({"a": b"1", "b": bytes(5000), "c": b"3"})
        assert caught.value.done.keys() == {"a", "c"}
        assert isinstance(caught.value.failed["b"], TooLarge)


def test_a_value_of_another_format_fails_alone(server: ScriptedServer) -> None:
    with Client(server.address) as raw, Client(server.address, serializer=JsonSerializer()) as cache:
        raw.set("raw", b"\xff")
        cache.set("json", [1])
        with pytest.raises(SomeKeysFailed) as caught:
            cache.get_many(["raw", "json"])
        assert caught.value.done == {"json": [1]}
        assert isinstance(caught.value.failed["raw"], WrongFormat)


def test_if_no_frame_was_answered_its_error_is_raised_as_it_is() -> None:
    with Client(free_address()) as cache:
        with pytest.raises(ServersUnavailable):
            cache.set_many({"a": b"1", "b": b"2"})
        with pytest.raises(ServersUnavailable):
            cache.get_many(["a", "b"])


def test_frames_after_a_lost_one_are_not_sent() -> None:
    def play_one(line: Line) -> None:
        line.hello()
        line.execute(line.request())
        line.request()

    with ScriptedServer(play_one, service=FakeService(frame_bytes_max=128)) as server, Client(server.address) as cache:
        with pytest.raises(SomeKeysFailed) as caught:
            cache.set_many({f"key-{n}": bytes(60) for n in range(3)})
        error = caught.value
        assert list(error.done) == ["key-0"]
        assert isinstance(error.failed["key-1"], OutcomeUnknown)
        assert type(error.failed["key-2"]) is NotExecuted
        assert len(server.opcodes()) == 2


def test_a_reply_with_too_few_entries() -> None:
    def play_short(line: Line) -> None:
        line.hello()
        while True:
            line.reply(line.request(), Status.OK, Group.join([]))

    with ScriptedServer(play_short) as server, Client(server.address) as cache:
        with pytest.raises(ProtocolError, match="2 keys were answered with 0 entries"):
            cache.get_many(["a", "b"])
        with pytest.raises(OutcomeUnknown):
            cache.set_many({"a": b"1"})


def test_some_keys_failed_can_be_sent_to_another_process() -> None:
    error = SomeKeysFailed({"a": 1}, {"b": TooLarge("too much", "server:1", "SET")}, "SET_MANY")
    copy = pickle.loads(pickle.dumps(error))
    assert copy.done == {"a": 1}
    assert str(copy) == str(error)
    assert str(copy.failed["b"]) == str(error.failed["b"])
