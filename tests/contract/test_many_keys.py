"""The many-key forms: each key on its own, with a status of its own."""

from __future__ import annotations

import pytest

from rcache.engine.contract import Engine
from rcache_client.wire.frames import HEADER_BYTES
from rcache_client.wire.grammar import CHANGE_ENTRY, ITEM_ENTRY
from rcache_client.wire.opcodes import Opcode, Status
from tests.contract.conftest import SMALL, EngineFactory
from tests.contract.harness import Caller, FakeTime, drain

COUNT_BYTES = 2


def test_many_are_set_got_and_deleted(caller: Caller, fake_time: FakeTime) -> None:
    entries = [(number, 1000 * (number % 2), b"key %d" % number, b"value %d" % number) for number in range(50)]
    status, changes = caller.ask(Opcode.SET_MANY, *entries)
    assert status is Status.OK
    assert [change[0] for change in changes] == [Status.OK] * 50
    versions = [change[1] for change in changes]
    status, items = caller.ask(Opcode.GET_MANY, *[(entry[2],) for entry in entries])
    assert status is Status.OK
    assert items == [(Status.OK, entry[0], version, entry[3]) for entry, version in zip(entries, versions, strict=True)]
    fake_time.advance(1000)
    status, removals = caller.ask(Opcode.DELETE_MANY, *[(entry[2],) for entry in entries])
    assert [removal[0] for removal in removals] == [Status.OK, Status.NOT_FOUND] * 25
    assert [removal[1] > 0 for removal in removals] == [True, False] * 25


def test_none_is_an_answer_too(caller: Caller) -> None:
    for opcode in (Opcode.GET_MANY, Opcode.SET_MANY, Opcode.DELETE_MANY):
        assert caller.ask(opcode) == (Status.OK, [])


def test_missing_keys_do_not_disturb_their_neighbours(caller: Caller) -> None:
    version = caller.set(b"here", b"value", flags=3)
    assert caller.ask(Opcode.GET_MANY, (b"none",), (b"here",), (b"none",)).values == [
        (Status.NOT_FOUND, 0, 0, b""),
        (Status.OK, 3, version, b"value"),
        (Status.NOT_FOUND, 0, 0, b""),
    ]


def test_a_key_twice_is_executed_twice_in_order(caller: Caller) -> None:
    _status, changes = caller.ask(Opcode.SET_MANY, (0, 0, b"key", b"first"), (0, 0, b"key", b"second"))
    assert changes[1] == (Status.OK, changes[0][1] + 1)
    assert caller.value(b"key") == b"second"
    assert [status for status, _ in caller.ask(Opcode.DELETE_MANY, (b"key",), (b"key",)).values] == [
        Status.OK,
        Status.NOT_FOUND,
    ]


def test_one_value_too_large_is_refused_by_itself(caller: Caller) -> None:
    too_large = bytes(SMALL["value_bytes_max"] + 1)
    status, changes = caller.ask(Opcode.SET_MANY, (0, 0, b"a", b"1"), (0, 0, b"b", too_large), (0, 0, b"c", b"3"))
    assert (status, [change[0] for change in changes]) == (Status.OK, [Status.OK, Status.TOO_LARGE, Status.OK])
    assert changes[1][1] == 0
    assert [caller.value(key) for key in (b"a", b"b", b"c")] == [b"1", None, b"3"]


def test_what_does_not_fit_into_the_reply_is_to_be_asked_for_again(engine_factory: EngineFactory) -> None:
    caller = Caller(engine_factory(frame_bytes_max=4096, value_bytes_max=2000))
    for key, size in ((b"a", 2000), (b"b", 1500), (b"c", 2000), (b"d", 100)):
        caller.set(key, bytes(size))
    asked = [(key,) for key in (b"a", b"b", b"c", b"d", b"none")]
    items = caller.ask(Opcode.GET_MANY, *asked).values
    assert [item[0] for item in items] == [Status.OK, Status.OK, Status.REPLY_FULL, Status.OK, Status.NOT_FOUND]
    assert items[2] == (Status.REPLY_FULL, 0, 0, b"")
    assert caller.ask(Opcode.GET_MANY, (b"c",)).values[0][3] == bytes(2000)


def test_a_reply_may_fill_the_frame_to_the_last_byte(engine_factory: EngineFactory) -> None:
    frame_bytes_max = HEADER_BYTES + COUNT_BYTES + 2 * ITEM_ENTRY.bytes_min + 2000
    caller = Caller(engine_factory(frame_bytes_max=frame_bytes_max, value_bytes_max=1500))
    caller.set(b"a", bytes(1500))
    caller.set(b"b", bytes(500))
    caller.set(b"c", bytes(501))
    assert [item[0] for item in caller.ask(Opcode.GET_MANY, (b"a",), (b"b",)).values] == [Status.OK, Status.OK]
    assert [item[0] for item in caller.ask(Opcode.GET_MANY, (b"a",), (b"c",)).values] == [Status.OK, Status.REPLY_FULL]


@pytest.mark.parametrize(
    ("opcode", "entry_bytes"), [(Opcode.GET_MANY, ITEM_ENTRY.bytes_min), (Opcode.DELETE_MANY, CHANGE_ENTRY.bytes_min)]
)
def test_too_many_keys_for_one_reply_are_refused_at_once(
    engine_factory: EngineFactory, opcode: Opcode, entry_bytes: int
) -> None:
    fits = 60
    engine = engine_factory(frame_bytes_max=HEADER_BYTES + COUNT_BYTES + fits * entry_bytes, value_bytes_max=100)
    caller = Caller(engine)
    caller.set(b"k0", b"value")
    reader = engine.stream.open_reader("test", holds=True)
    assert caller.ask(opcode, *[(b"k%d" % number,) for number in range(fits + 1)]).status is Status.TOO_LARGE
    assert drain(reader) == []
    status, entries = caller.ask(opcode, *[(b"k%d" % number,) for number in range(fits)])
    assert (status, len(entries)) == (Status.OK, fits)
    assert entries[0][0] == (Status.REPLY_FULL if opcode is Opcode.GET_MANY else Status.OK)
    reader.close()


def test_no_room_is_the_status_of_the_key_it_concerns(engine_factory: EngineFactory) -> None:
    caller = Caller(engine_factory(memory_bytes=4 << 10, evict=False))
    _status, changes = caller.ask(
        Opcode.SET_MANY, (0, 0, b"a", b"1"), (0, 0, b"b", bytes(8000)), (0, 0, b"c", b"3"), (0, 0, b"a", b"4")
    )
    assert [change[0] for change in changes] == [Status.OK, Status.NO_ROOM, Status.OK, Status.OK]
    assert [caller.value(key) for key in (b"a", b"b", b"c")] == [b"4", None, b"3"]


def test_many_deletes_leave_one_record_each(engine: Engine, caller: Caller) -> None:
    for number in range(10):
        caller.set(b"k%d" % number, b"value")
    reader = engine.stream.open_reader("test", holds=True)
    caller.ask(Opcode.DELETE_MANY, *[(b"k%d" % number,) for number in range(0, 20, 2)])
    assert [record.key for record in drain(reader)] == [b"k0", b"k2", b"k4", b"k6", b"k8"]
    reader.close()
