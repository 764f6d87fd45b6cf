"""The payload grammar: round trips, ranges, and the choice of a reply's layout."""

from __future__ import annotations

from struct import calcsize, pack
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rcache_client.wire import grammar
from rcache_client.wire.grammar import REQUESTS, BadPayload, Field, Group, Layout, reply_layout
from rcache_client.wire.opcodes import (
    DATA_OPCODES,
    NODE_OPCODES,
    READ_OPCODES,
    Opcode,
    Status,
    StatusClass,
    status_class,
    status_name,
)

from .layouts import LAYOUTS, encode, has_rest, layout_values

WITH_REST = [name for name, layout in LAYOUTS.items() if has_rest(layout)]
OF_ONE_LENGTH = [name for name in LAYOUTS if name not in WITH_REST]


@pytest.mark.parametrize("name", LAYOUTS)
@given(data=st.data())
def test_what_is_encoded_is_decoded(name: str, data: st.DataObject) -> None:
    layout = LAYOUTS[name]
    values = data.draw(layout_values(layout))
    payload = encode(layout, values)
    assert layout.decode(payload) == values
    assert len(payload) >= layout.bytes_min


@pytest.mark.parametrize("name", OF_ONE_LENGTH)
@settings(max_examples=40)
@given(data=st.data())
def test_a_payload_cut_or_lengthened_anywhere_is_refused(name: str, data: st.DataObject) -> None:
    """So its length is exactly what its type and contents demand."""
    layout = LAYOUTS[name]
    payload = encode(layout, data.draw(layout_values(layout)))
    for end in range(len(payload)):
        with pytest.raises(BadPayload):
            layout.decode(payload[:end])
    with pytest.raises(BadPayload):
        layout.decode(payload + data.draw(st.binary(min_size=1, max_size=9)))


@pytest.mark.parametrize("name", WITH_REST)
@settings(max_examples=40)
@given(data=st.data())
def test_a_rest_is_all_that_is_left_and_nothing_before_it(name: str, data: st.DataObject) -> None:
    """A cut before it is refused; from there on to any length it is the rest that has it, byte for byte."""
    layout = LAYOUTS[name]
    *before, rest = data.draw(layout_values(layout))
    payload = encode(layout, (*before, rest))
    begins = len(payload) - len(rest)
    assert payload[begins:] == rest
    for end in range(begins):
        with pytest.raises(BadPayload):
            layout.decode(payload[:end])
    for end in range(begins, len(payload) + 1):
        assert layout.decode(payload[:end]) == (*before, payload[begins:end])
    more = data.draw(st.binary(min_size=1, max_size=9))
    assert layout.decode(payload + more) == (*before, rest + more)


def test_the_payloads_that_end_in_a_rest() -> None:
    """A slip in `has_rest` would otherwise leave nothing to test, or excuse a payload that must have one length."""
    assert set(WITH_REST) == {
        "request SUBSCRIBE",
        "reply SUBSCRIBE OK",
        "reply COPY OK",
        "reply EVENTS OK",
        "request STEER",
        "request RECORDS",
        "request REGISTER_SET",
        "reply HELLO STALE_VIEW",
        "reply VIEW OK",
        "reply STEER OK",
        "reply SEQUENCES OK",
        "reply REGISTER_READ OK",
        "reply REGISTER_SET OK",
        "reply REGISTER_WATCH OK",
        "reply REGISTER_PROMISE OK",
    }


def test_a_rest_stands_behind_all_else() -> None:
    layout = Layout("some", grammar.u16("number"), grammar.text16("name"), grammar.rest("what is left"))
    payload = layout.encode(7, "me", b"rest")
    assert payload == b"\0\7" + b"\0\2" + b"me" + b"rest"
    assert layout.decode(payload) == (7, "me", b"rest")
    assert layout.decode(payload[:-4]) == (7, "me", b"")
    assert layout.bytes_min == 4
    with pytest.raises(BadPayload, match="3 bytes claimed, 2 left"):
        layout.decode(b"\0\7" + b"\0\3" + b"me")


def test_a_payload_of_a_rest_alone_may_be_empty() -> None:
    assert grammar.NEWER_VIEW.decode(b"") == (b"",)
    assert grammar.NEWER_VIEW.encode(b"any") == b"any"


@pytest.mark.parametrize("behind", [grammar.u8("number"), grammar.text16("name"), grammar.rest("another")])
def test_nothing_stands_behind_a_rest(behind: Field) -> None:
    """It would have a second encoding, or none."""
    with pytest.raises(AssertionError, match="is its end"):
        Layout("wrong", grammar.rest("what is left"), behind)


def test_no_entry_of_a_group_has_a_rest() -> None:
    with pytest.raises(AssertionError, match="those behind it"):
        Group("wrong", Layout("entry", grammar.u8("status"), grammar.rest("what is left")))


def all_fields() -> list[tuple[str, Layout, int, Field]]:
    """Every field of every layout: name, layout, place, field."""
    found = []
    for name, layout in LAYOUTS.items():
        fields = layout.entry if isinstance(layout, Group) else layout
        found += [(f"{name}: {field.name}", fields, i, field) for i, field in enumerate(fields.fields)]
    return found


def sample(field: Field) -> Any:
    if field.text:
        return "t" * field.low
    return bytes(field.low) if field.string or field.fixed_bytes else field.low


def just_outside() -> list[Any]:
    """Each field with each value just below and above its range that its width can still carry."""
    cases = []
    for name, layout, i, field in all_fields():
        widest = {"B": 0xFF, "H": 0xFFFF, "I": 0xFFFF_FFFF, "Q": (1 << 64) - 1}.get(field.code)
        for number in (field.low - 1, field.high + 1):
            if widest is not None and 0 <= number <= widest:
                cases.append(pytest.param(layout, i, number, id=f"{name} {number}"))  # noqa: PERF401  reads better so
    return cases


def claim_length(layout: Layout, at: int, length: int, payload: bytes) -> bytes:
    """The payload with the length of the string at this place replaced, and as many bytes behind it as can be spared."""
    code = f">{layout.fields[at].code}"
    place = calcsize(">" + "".join(field.code for field in layout.fields[:at]))
    return payload[:place] + pack(code, length) + payload[place + calcsize(code) :] + bytes(min(length, 0x20000))


@pytest.mark.parametrize(("layout", "at", "number"), just_outside())
def test_a_number_or_length_just_outside_its_range_is_refused(layout: Layout, at: int, number: int) -> None:
    field = layout.fields[at]
    values = [sample(other) for other in layout.fields]
    if field.string:
        payload = claim_length(layout, at, number, layout.encode(*values))
    else:
        values[at] = number
        payload = layout.encode(*values)
    with pytest.raises(BadPayload, match=f"{field.low} to {field.high}"):
        layout.decode(payload)


def test_the_cases_just_outside_are_all_there() -> None:
    """A slip in `just_outside` would otherwise leave nothing to test."""
    names = {case.id for case in just_outside()}
    assert "request GET: key 0" in names
    assert "request SET: time to live, ms 3162240000001" in names
    assert "request SET: value 1073741825" in names
    assert "request HELLO: role 5" in names
    assert "request RECORDS: generation 0" in names
    assert "reply REGISTER_SET OK: kept 2" in names
    assert not any(": view " in name or ": records " in name for name in names), "a rest has no length that could lie"


@pytest.mark.parametrize("count", [0, 15, 17])
def test_fixed_bytes_of_another_length_are_not_trimmed_or_padded(count: int) -> None:
    layout = REQUESTS[Opcode.CAS_HASH]
    with pytest.raises(ValueError, match=f"value hash of {count} bytes, not 16"):
        layout.encode(bytes(count), 0, 0, b"k", b"v")


def test_a_group_may_be_empty() -> None:
    assert REQUESTS[Opcode.GET_MANY].decode(b"\0\0") == []
    assert grammar.encode_keys([]) == b"\0\0"


def test_a_count_that_cannot_be_true_is_refused_before_any_entry_is_read() -> None:
    with pytest.raises(BadPayload, match="65535 entries claimed, 6 bytes left"):
        REQUESTS[Opcode.GET_MANY].decode(b"\xff\xff\0\1a\0\1b")


def test_keys_are_encoded_like_the_group() -> None:
    keys = [b"a", b"bb", bytes(65_535)]
    payload = grammar.encode_keys(keys)
    assert payload == REQUESTS[Opcode.DELETE_MANY].encode(*[(key,) for key in keys])
    assert REQUESTS[Opcode.GET_MANY].decode(payload) == [(key,) for key in keys]


def test_every_opcode_has_a_request_and_a_reply() -> None:
    assert set(REQUESTS) == set(Opcode)
    for opcode in Opcode:
        reply_layout(opcode, Status.OK)
    assert {Opcode.GET, Opcode.INSPECT, Opcode.GET_WITH_TTL, Opcode.GET_MANY} == READ_OPCODES & DATA_OPCODES
    assert Opcode.GET_MANY in DATA_OPCODES
    assert Opcode.PING not in DATA_OPCODES
    assert Opcode.FLUSH not in DATA_OPCODES


def test_what_nodes_say_to_each_other() -> None:
    assert {
        Opcode.HEARTBEAT,
        Opcode.RECORDS,
        Opcode.SEQUENCES,
        Opcode.REGISTER_READ,
        Opcode.REGISTER_SET,
        Opcode.REGISTER_WATCH,
        Opcode.REGISTER_PROMISE,
    } == NODE_OPCODES
    assert not NODE_OPCODES & (READ_OPCODES | DATA_OPCODES)
    assert Opcode.VIEW in READ_OPCODES
    assert Opcode.STEER not in READ_OPCODES


@pytest.mark.parametrize("status", range(256))
def test_a_reply_of_any_status_has_a_layout(status: int) -> None:
    layout = reply_layout(Opcode.GET, status)
    if status >= 0x10:
        assert layout is (grammar.NEWER_VIEW if status == Status.STALE_VIEW else grammar.REASON)
    own_goodbye = reply_layout(Opcode.GOODBYE, status)
    closing = status_class(status) is StatusClass.CLOSING
    assert (own_goodbye is grammar.GOODBYE_REPLY) == (closing or status == Status.OK)
    assert status_name(status)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (0x00, StatusClass.ANSWERED),
        (0x0F, StatusClass.ANSWERED),
        (0x1E, StatusClass.REFUSED),
        (0x2E, StatusClass.TRY_LATER),
        (0x3E, StatusClass.ELSEWHERE),
        (0x4E, StatusClass.UNKNOWN_OUTCOME),
        (0x5E, StatusClass.CLOSING),
        (0x60, StatusClass.CLOSING),
        (0x80, StatusClass.CLOSING),
        (0x9F, StatusClass.CLOSING),
        (0xFF, StatusClass.CLOSING),
    ],
)
def test_a_status_from_the_future_is_known_by_its_class(status: int, expected: StatusClass) -> None:
    assert status_class(status) is expected


@pytest.mark.parametrize("opcode", [0x00, 0x05, 0x0F, 0x1F, 0x23, 0x3F, 0x45, 0x4F, 0x57, 0xFF])
def test_an_ok_to_an_opcode_that_does_not_exist_is_refused(opcode: int) -> None:
    with pytest.raises(BadPayload, match="does not exist"):
        reply_layout(opcode, Status.OK)
    assert reply_layout(opcode, Status.UNKNOWN_OPCODE) is grammar.REASON
