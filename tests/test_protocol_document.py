"""docs/protocol.md against the code: its tables, its numbers and its hex examples are held to the grammar.

What it is: a small reader of that document, which knows its sections (`### 0x12 SET`), its tables and its `hex` blocks, and
tests that compare all of them with `rcache_client.wire`. The document says what to expect; the grammar says what is so; a
change to either alone fails here. The view's text and who may ask what are held against `rcache` in the same way.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from struct import calcsize, pack
from typing import Any

import pytest

from rcache.cluster import view as views
from rcache.cluster import wishes
from rcache.cluster.leases import RATE_MARGIN
from rcache.cluster.view import NodeState, decode_view, encode_view
from rcache.member import sessions
from rcache.peers import books, link
from rcache.records.record import Kind, scan, show_sequence
from rcache.server import node_answers, orders, steering
from rcache.server.node_answers import NodeAnswers, Refusal, Standing
from rcache.server.session import CONTROL_BUDGET_S
from rcache_client.view import parse_view
from rcache_client.wire import opcodes, proof
from rcache_client.wire.frames import HEADER, Reply, ReplyReader, Request, RequestReader, encode_reply, encode_request
from rcache_client.wire.grammar import EMPTY, REQUESTS, BadPayload, Field, Group, Layout, reply_layout
from rcache_client.wire.opcodes import NODE_OPCODES, Opcode, Role, Status, StatusClass, opcode_name, status_class

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "protocol.md"
TEXT = DOCUMENT.read_text(encoding="utf-8")
FRAME_BYTES_MAX = 1 << 16

OF_MEMBERS = {Status.VIEW_AHEAD, Status.WRONG_NODE, Status.STALE_VIEW}
NODE_STATUSES: dict[Opcode, set[Status]] = {
    Opcode.VIEW: {Status.VIEW_AHEAD},
    Opcode.STEER: {Status.VIEW_AHEAD, Status.BAD_ARGUMENT, Status.NOT_ALLOWED, Status.VIEW_UNSETTLED},
    Opcode.HEARTBEAT: OF_MEMBERS,
    Opcode.RECORDS: OF_MEMBERS | {Status.BROKEN_CHAIN, Status.APPEND_LOG_FAILED},
    Opcode.SEQUENCES: OF_MEMBERS,
    Opcode.REGISTER_READ: {Status.REGISTER_UNAVAILABLE},
    Opcode.REGISTER_SET: {Status.REGISTER_UNAVAILABLE, Status.BAD_VIEW, Status.VIEW_UNSETTLED},
    Opcode.REGISTER_WATCH: {Status.REGISTER_UNAVAILABLE},
    Opcode.REGISTER_PROMISE: {Status.NOT_ALLOWED, Status.BAD_ARGUMENT, Status.VIEW_AHEAD, Status.REGISTER_UNAVAILABLE},
}
"""What the document lists for each, beside what any request may get."""

BETWEEN_NODES = (
    *(Status.BROKEN_CHAIN, Status.BAD_VIEW, Status.VIEW_AHEAD, Status.REGISTER_UNAVAILABLE),
    Status.VIEW_UNSETTLED,
)

LIMITS_BETWEEN_NODES = {
    "EPOCH_MAX": views.EPOCH_MAX,
    "BUCKETS_MAX": views.BUCKETS_MAX,
    "BEATS_A_LEASE": books.BEATS_A_LEASE,
    "RATE_MARGIN": RATE_MARGIN,
    "VIEW_WAIT_S": sessions.VIEW_WAIT_S,
    "WATCH_S_MAX": node_answers.WATCH_S_MAX,
    "SEND_BYTES": link.SEND_BYTES,
}

AnyLayout = Layout | Group
Annotated = list[tuple[bytes, str]]
"""The lines of an example: bytes, and what is said about them."""


def sections(text: str) -> dict[str, str]:
    """The text under each `### ` heading, up to the next heading."""
    parts = re.split(r"^#{2,3} (.+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


SECTIONS = sections(TEXT)


def tables(text: str) -> list[list[list[str]]]:
    """Every table as rows of cells, its heading first and the line under that left out."""
    found = re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE)
    rows = [[[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()] for table in found]
    return [[table[0], *table[2:]] for table in rows]


def tables_headed(text: str, *heading: str) -> list[list[list[str]]]:
    return [table[1:] for table in tables(text) if table[0] == list(heading)]


# What the grammar says a table and an example must look like.


def range_text(field: Field) -> str:
    if field.fixed_bytes or field.rest:
        return "bytes"
    bits = 8 * calcsize(">" + field.code)
    widest = (-(1 << bits - 1), (1 << bits - 1) - 1) if field.code.islower() else (0, (1 << bits) - 1)
    return "any" if (field.low, field.high) == widest else f"{field.low:,} to {field.high:,}"


def expected_rows(layout: AnyLayout, prefix: str = "") -> list[list[str]]:
    """The rows (bytes, field, range) of a payload's table."""
    if isinstance(layout, Group):
        return [["2", "count", "any"], *expected_rows(layout.entry, "each: ")]
    heads, tails = [], []
    for field in layout.fields:
        width = str(calcsize(">" + field.code))
        if field.rest:
            tails.append(["the rest", prefix + field.name, range_text(field)])
        elif field.string:
            heads.append([width, f"{prefix}length of {field.name}", range_text(field)])
            tails.append([f"length of {field.name}", prefix + field.name, "UTF-8 text" if field.text else "bytes"])
        else:
            heads.append([width, prefix + field.name, range_text(field)])
    return heads + tails


def expected_lines(layout: AnyLayout, values: Any) -> list[tuple[bytes, str, Any]]:
    """The lines of an example's payload, as (bytes, field, value)."""
    if isinstance(layout, Group):
        entries = [line for entry in values for line in expected_lines(layout.entry, entry)]
        return [(pack(">H", len(values)), "count", len(values)), *entries]
    heads, tails = [], []
    for field, value in zip(layout.fields, values, strict=True):
        if field.rest:
            tails.append((value, field.name, value))
        elif field.string:
            raw = value.encode() if field.text else value
            heads.append((pack(">" + field.code, len(raw)), f"length of {field.name}", len(raw)))
            tails.append((raw, field.name, value))
        else:
            heads.append((pack(">" + field.code, value), field.name, value))
    return heads + tails


# The examples.


@dataclass(frozen=True)
class Example:
    """One hex block."""

    caption: str
    lines: Annotated
    number: int

    @property
    def raw(self) -> bytes:
        return b"".join(data for data, _ in self.lines)

    @property
    def is_request(self) -> bool:
        return self.caption.startswith("request ")

    def frame(self) -> Request | Reply:
        """What the frame reader makes of the bytes, and of no more than them."""
        reader = RequestReader(FRAME_BYTES_MAX) if self.is_request else ReplyReader(FRAME_BYTES_MAX)
        reader.feed(self.raw)
        frame = reader.next()
        assert frame is not None, "the example is cut off"
        assert reader.held == 0, "the example has bytes to spare"
        return frame

    def layout(self) -> AnyLayout:
        frame = self.frame()
        return REQUESTS[frame.opcode] if isinstance(frame, Request) else reply_layout(frame.opcode, frame.status)

    def __str__(self) -> str:
        return f"{self.number}-{self.caption}"


def parse_line(line: str) -> tuple[bytes, str]:
    matched = re.fullmatch(r"((?:[0-9a-f]{2})+|-) {2,}(\S.*)", line)
    assert matched, f"not a line of an example: {line!r}"
    return b"" if matched[1] == "-" else bytes.fromhex(matched[1]), matched[2]


def examples(text: str) -> list[Example]:
    blocks = re.findall(r"^```hex\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    split = [block.splitlines() for block in blocks]
    return [Example(lines[0], [parse_line(line) for line in lines[1:]], i) for i, lines in enumerate(split)]


EXAMPLES = examples(TEXT)


def stated_value(text: str, like: Any) -> Any:
    """The value an example states, of the type of the value it is compared with."""
    if text.startswith("hex:"):
        return bytes.fromhex(text[4:])
    if text.startswith('"'):
        stated: str = json.loads(text)
        return stated.encode() if isinstance(like, bytes) else stated
    return int(text)


def only(caption: str) -> Example:
    """The one example, or the first, under this caption."""
    return next(example for example in EXAMPLES if example.caption == caption)


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_an_example_states_what_its_bytes_mean(example: Example) -> None:
    """Line by line: the header, then each field of the payload with its bytes, its name and its value."""
    frame, layout = example.frame(), example.layout()
    values = layout.decode(frame.payload)
    name = opcode_name(frame.opcode).removeprefix("opcode ")
    if isinstance(frame, Request):
        first, last = f"request, version 1, {name}, flags 0", ("budget, ms", frame.budget_ms)
    else:
        first, last = f"reply, version 1, {name}, status {Status(frame.status).name}", ("epoch", frame.epoch)
    assert example.lines[0] == (example.raw[:4], first)
    numbers = [("payload bytes", len(frame.payload)), ("request id", frame.request_id), last]
    expected = [(pack(">I", value), field, value) for field, value in numbers] + expected_lines(layout, values)
    assert [data for data, _ in example.lines[1:]] == [data for data, _, _ in expected]
    for (_, said), (_, field, value) in zip(example.lines[1:], expected, strict=True):
        said_field, _, said_value = said.partition(" = ")
        assert (said_field, stated_value(said_value, value)) == (field, value)


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_an_example_is_encoded_again_from_what_it_states(example: Example) -> None:
    """From the caption and the stated values alone, without a look at the bytes."""
    stated = [said.partition(" = ")[::2] for _, said in example.lines[1:]]
    request_id, extra = int(stated[1][1]), int(stated[2][1])
    layout = example.layout()
    payload = encode_stated(layout, [(name, value) for name, value in stated[3:] if not name.startswith("length of ")])
    kind, *words = example.caption.split()
    opcode = int(words[0], 16) if words[0].startswith("0x") else Opcode[words[0]]
    if kind == "request":
        assert encode_request(opcode, request_id, extra, payload) == example.raw
    else:
        assert kind == "reply"
        assert encode_reply(opcode, Status[words[1]], request_id, extra, payload) == example.raw


def encode_stated(layout: AnyLayout, stated: list[tuple[str, str]]) -> bytes:
    """A payload from stated (field, value) pairs, whose order is that of the document: numbers first, then strings."""
    if isinstance(layout, Group):
        width = len(layout.entry.fields)
        assert stated[0] == ("count", str(len(stated[1:]) // width))
        starts = range(1, len(stated), width)
        return layout.join([encode_stated(layout.entry, stated[at : at + width]) for at in starts])
    by_name = dict(stated)
    assert set(by_name) == {field.name for field in layout.fields}
    likes = ["" if field.text else b"" if field.string else 0 for field in layout.fields]
    return layout.encode(*[stated_value(by_name[f.name], like) for f, like in zip(layout.fields, likes, strict=True)])


def test_every_opcode_has_a_request_and_a_reply_among_the_examples() -> None:
    captions = {example.caption for example in EXAMPLES}
    for opcode in Opcode:
        assert f"request {opcode.name}" in captions
        assert any(caption.startswith(f"reply {opcode.name} ") for caption in captions), opcode.name


def test_every_status_class_has_an_example() -> None:
    replies = [example.frame() for example in EXAMPLES if not example.is_request]
    assert {status_class(reply.status) for reply in replies if isinstance(reply, Reply)} == set(StatusClass)


def test_every_reply_layout_that_is_not_a_reason_has_an_example() -> None:
    shown = {id(example.layout()) for example in EXAMPLES}
    for opcode in Opcode:
        for status in (
            *(Status.OK, Status.NOT_FOUND, Status.CHANGED, Status.CHALLENGE, Status.STALE_VIEW),
            Status.SHUTTING_DOWN,
        ):
            layout = reply_layout(opcode, status)
            assert id(layout) in shown or layout is EMPTY, (opcode, status)


# Opcodes and their payloads.


@pytest.mark.parametrize("opcode", Opcode, ids=lambda opcode: opcode.name)
def test_an_opcode_is_described_byte_by_byte(opcode: Opcode) -> None:
    section = SECTIONS[f"0x{opcode:02x} {opcode.name}"]
    for label, layout in (("Request", REQUESTS[opcode]), ("Reply OK", reply_layout(opcode, Status.OK))):
        matched = re.search(rf"^\*\*{label}\*\*(: nothing\.)?$\n\n?((?:\|.*\n)*)", section, flags=re.MULTILINE)
        assert matched, f"no {label}"
        if layout is EMPTY:
            assert matched[1]
            continue
        (rows,) = tables_headed(matched[2], "bytes", "field", "range", "meaning")
        assert [row[:3] for row in rows] == expected_rows(layout)


@pytest.mark.parametrize("opcode", Opcode, ids=lambda opcode: opcode.name)
def test_the_statuses_listed_for_an_opcode_have_the_payload_it_names(opcode: Opcode) -> None:
    section = SECTIONS[f"0x{opcode:02x} {opcode.name}"]
    for rows in tables_headed(section, "status", "payload", "what the client should do"):
        for status, payload, advice in rows:
            assert payload == reply_layout(opcode, Status[status]).name
            assert advice


def listed_statuses(opcode: Opcode) -> set[Status]:
    section = SECTIONS[f"0x{opcode:02x} {opcode.name}"]
    listed = tables_headed(section, "status", "payload", "what the client should do")
    return {Status[row[0]] for rows in listed for row in rows}


@pytest.mark.parametrize("opcode", NODE_STATUSES, ids=lambda opcode: opcode.name)
def test_what_a_node_may_answer_is_listed(opcode: Opcode) -> None:
    assert listed_statuses(opcode) == NODE_STATUSES[opcode]


def test_no_opcode_is_described_that_does_not_exist() -> None:
    described = {name for name in SECTIONS if re.match(r"0x[0-9a-f]{2} ", name)}
    assert described == {f"0x{opcode:02x} {opcode.name}" for opcode in Opcode}


def test_shared_payloads_are_described_too() -> None:
    for name in ("reason", "challenge", "version", "newer view"):
        (layout,) = {
            id(layout): layout
            for opcode in Opcode
            for status in Status
            if (layout := reply_layout(opcode, status)).name == name
        }.values()
        matched = re.search(rf"\*\*{name}\*\*.*\n\n((?:\|.*\n)+)", TEXT)
        assert matched, name
        (rows,) = tables_headed(matched[1], "bytes", "field", "range", "meaning")
        assert [row[:3] for row in rows] == expected_rows(layout)


# Numbers.


def test_every_status_stands_in_its_class_with_its_number() -> None:
    found = []
    for title, section in SECTIONS.items():
        if not title.startswith("Class "):
            continue
        (rows,) = tables_headed(section, "number", "status", "what the client should do")
        for number, name, advice in rows:
            found.append((int(number, 16), name))
            assert int(title.split()[1].rstrip(":"), 16) == status_class(int(number, 16))
            assert advice
    assert found == [(int(status), status.name) for status in Status]


def test_the_classes_have_their_numbers() -> None:
    titles = [title.split()[1].rstrip(":") for title in SECTIONS if title.startswith("Class ")]
    assert titles == [f"0x{number:02x}" for number in StatusClass]


def test_the_roles_have_their_numbers() -> None:
    (rows,) = tables_headed(TEXT, "role", "number", "who")
    assert [(name, int(number)) for name, number, _ in rows] == [(role.name, role.value) for role in Role]


def test_the_limits_have_their_numbers() -> None:
    (rows,) = tables_headed(TEXT, "limit", "number", "why")
    said = {name: int(number.replace(",", "")) for name, number, _ in rows}
    assert said == {name: getattr(proof if name.startswith("SECRET") else opcodes, name) for name in said}
    assert {name for name in vars(opcodes) if name.endswith(("_MAX", "_BYTES", "_CEILING"))} <= set(said)


def test_the_header_is_described() -> None:
    (rows,) = tables_headed(TEXT, "bytes", "request", "reply")
    widths = [int(row[0]) for row in rows]
    assert widths == [calcsize(code) for code in HEADER.format.lstrip(">")]
    assert sum(widths) == HEADER.size
    assert rows[0][1:] == [f"magic, 0x{opcodes.REQUEST_MAGIC:02x}", f"magic, 0x{opcodes.REPLY_MAGIC:02x}"]
    assert rows[1][1:] == [f"version, {opcodes.PROTOCOL_VERSION}"] * 2
    assert f"default port is {opcodes.DEFAULT_PORT}" in TEXT


def test_the_opcodes_that_read_are_named() -> None:
    matched = re.search(r"Reads \(([A-Z_,\s]+)\) change nothing", TEXT)
    assert matched
    assert {Opcode[name] for name in re.split(r",\s+", matched[1])} == opcodes.READ_OPCODES


@pytest.mark.parametrize("status", [*BETWEEN_NODES, Status.STALE_VIEW, Status.WRONG_NODE], ids=lambda status: status.name)
def test_what_only_nodes_are_told_is_listed_where_they_may_be_told_so(status: Status) -> None:
    """Whoever adds one says which opcode gets it; the tests of `NodeAnswers` hold each opcode to its list."""
    assert {opcode for opcode in Opcode if status in listed_statuses(opcode)} == {
        opcode for opcode, statuses in NODE_STATUSES.items() if status in statuses
    }


def test_the_limits_between_nodes_have_their_numbers() -> None:
    (rows,) = tables_headed(TEXT, "limit between nodes", "number", "why")
    assert {name: float(number.replace(",", "")) for name, number, _ in rows} == LIMITS_BETWEEN_NODES


def test_who_may_ask_what_is_as_the_node_answers() -> None:
    (rows,) = tables_headed(TEXT, "opcodes", "who may ask")
    said = {Opcode[name]: roles for names, roles in rows for name in names.split(", ")}
    assert set(said) == NODE_OPCODES | {Opcode.VIEW, Opcode.STEER}
    for opcode, roles in said.items():
        allowed = {role for role in Role if is_answered(opcode, role)}
        assert allowed == (set(Role) if roles == "everybody" else {Role[name] for name in roles.split(", ")})


def test_the_orders_are_those_there_are() -> None:
    (rows,) = tables_headed(SECTIONS["0x44 STEER"], "verb", "fields", "what comes of it")
    known = {verb: ", ".join(sorted(fields)) for verb, fields in steering.VERBS.items()}
    assert {verb: fields for verb, fields, _ in rows} == known
    assert f"at most {wishes.PAUSE_S_MAX:,.0f} s" in SECTIONS["0x44 STEER"]
    assert f"1 to {orders.TEXT_MAX} printable" in SECTIONS["0x44 STEER"]
    assert f"(nothing: {CONTROL_BUDGET_S:.0f})" in SECTIONS["0x44 STEER"]


def is_answered(opcode: Opcode, role: Role) -> bool:
    """Whether a node takes up the question, whatever it then says."""
    layout = REQUESTS[opcode]
    assert isinstance(layout, Layout)
    payload = layout.encode(*["" if field.text else b"" if field.string else max(field.low, 1) for field in layout.fields])
    try:
        NodeAnswers(Standing()).answer(opcode, payload, role, "me", 0.0)
    except Refusal as refusal:
        return refusal.status is not Status.NOT_ALLOWED
    return True


# The view's text.


def view_example() -> dict[str, Any]:
    (text,) = re.findall(r"^```json\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)
    found: dict[str, Any] = json.loads(text)
    return found


def field_paths(facts: dict[str, Any]) -> list[str]:
    """The names of a view's fields, in their order; a field of an object is named behind its own."""
    found = []
    for name, value in facts.items():
        found.append(name)
        inner = next(iter(value.values())) if name in ("nodes", "nonces") else value
        if isinstance(inner, dict):
            found += [f"{name}: {field}" for field in inner]
    return found


def test_the_example_of_a_view_is_one() -> None:
    facts = view_example()
    view = decode_view(json.dumps(facts).encode())
    assert json.dumps(facts, separators=(",", ":"), ensure_ascii=False).encode() == encode_view(view)
    assert parse_view(encode_view(view)).epoch == view.epoch, "a client reads it too"
    assert view.pause is not None
    assert any(placed.backups for placed in view.placements)
    assert any(placed.primary is None for placed in view.placements)


def test_every_field_of_a_view_is_described_in_its_order() -> None:
    (rows,) = tables_headed(TEXT, "field of a view", "value", "meaning")
    assert [name for name, _, _ in rows] == field_paths(view_example())
    assert all(value and meaning for _, value, meaning in rows)


def test_the_bucket_of_a_key_is_that_named_beside_it() -> None:
    matched = re.search(r"Of (\d+) buckets the key `(\w+)` is in bucket (\d+)", TEXT)
    assert matched
    facts = {**view_example(), "buckets": [[int(matched[1]), "n1", [], 1]]}
    assert parse_view(json.dumps(facts).encode()).bucket_of(matched[2]) == int(matched[3])


def test_the_states_of_a_node_are_those_there_are() -> None:
    (rows,) = tables_headed(TEXT, "state of a node", "meaning")
    assert [state for state, _ in rows] == [state.value for state in NodeState]


# What the examples say beyond their layout.


def test_the_records_of_an_example_are_some() -> None:
    payload = only("request RECORDS").frame().payload
    records = REQUESTS[Opcode.RECORDS].decode(payload)[-1]
    assert isinstance(records, bytes)
    (record,) = scan(records)
    matched = re.search(r"SET of the key `(\w+)` to `(\w+)` in bucket (\d+), as change (\d+)\.(\d+)", TEXT)
    assert matched
    assert (record.kind, record.key, record.value) == (Kind.SET, matched[1].encode(), matched[2].encode())
    assert (record.bucket, show_sequence(record.sequence)) == (int(matched[3]), f"{matched[4]}.{matched[5]}")


def test_the_sequences_of_an_example_are_packed_as_described() -> None:
    payload = only("reply SEQUENCES OK").frame().payload
    found = [(int.from_bytes(payload[at : at + 4], "big"), payload[at + 4 : at + 12]) for at in range(0, len(payload), 12)]
    matched = re.search(r"[Bb]ucket (\d+) whole up to (\d+\.\d+), and bucket (\d+) not whole", TEXT)
    assert matched
    said = [(bucket, show_sequence(int.from_bytes(sequence, "big"))) for bucket, sequence in found]
    assert said == [(int(matched[1]), matched[2]), (int(matched[3]), "0.0")]


def test_an_example_of_an_answer_fits_its_question() -> None:
    """What a reply gives back of its request."""
    asked = REQUESTS[Opcode.HEARTBEAT].decode(only("request HEARTBEAT").frame().payload)
    assert only("reply HEARTBEAT OK").layout().decode(only("reply HEARTBEAT OK").frame().payload)[0] == asked[-1]


def test_the_proofs_are_those_of_the_secret_named_beside_them() -> None:
    matched = re.search(r"The secret of this example is `([^`]+)`", TEXT)
    assert matched
    secret, hello = matched[1].encode(), only("request HELLO").frame().payload
    nonce = only("reply HELLO CHALLENGE").frame().payload
    assert only("request AUTH").frame().payload == proof.client_proof(secret, hello, nonce)
    answer = only("reply AUTH OK")
    assert answer.layout().decode(answer.frame().payload)[0] == proof.server_proof(secret, hello, nonce)


def test_the_hash_is_that_of_the_value_named_beside_it() -> None:
    matched = re.search(r"The hash of the value `([^`]+)`", TEXT)
    assert matched
    payload = only("request CAS_HASH").frame().payload
    assert payload.startswith(blake2b(matched[1].encode(), digest_size=opcodes.VALUE_HASH_BYTES).digest())


# The reader itself: a slip in it would let the document say anything.


def test_a_wrong_example_is_noticed() -> None:
    sound = only("request GET")
    at = next(i for i, (_, said) in enumerate(sound.lines) if said.startswith("key = "))
    wrong_value = Example(sound.caption, [*sound.lines[:at], (sound.lines[at][0], 'key = "other"')], 0)
    with pytest.raises(AssertionError):
        test_an_example_states_what_its_bytes_mean(wrong_value)
    wrong_bytes = Example(sound.caption, [*sound.lines[:at], (b"HELLO", sound.lines[at][1])], 0)
    with pytest.raises(AssertionError):
        test_an_example_states_what_its_bytes_mean(wrong_bytes)
    with pytest.raises(AssertionError):
        test_an_example_is_encoded_again_from_what_it_states(wrong_bytes)
    cut_off = Example(sound.caption, sound.lines[:at], 0)
    with pytest.raises((AssertionError, BadPayload)):
        test_an_example_states_what_its_bytes_mean(cut_off)


def test_every_hex_block_was_read() -> None:
    assert len(EXAMPLES) == TEXT.count("```hex\n")
    assert len(EXAMPLES) > 2 * len(Opcode)
