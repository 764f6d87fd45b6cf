"""Records: what is encoded comes back, and bytes that lie about their lengths do not become records."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcache.records.record import (
    COUNTER_MAX,
    EPOCH_MAX,
    HEADER_BYTES,
    BadRecord,
    Cause,
    ImportEnd,
    Kind,
    Opening,
    Record,
    counter_of,
    decode,
    decode_import_end,
    decode_opening,
    draft,
    encode,
    encode_import_end,
    encode_opening,
    epoch_of,
    heads,
    make_sequence,
    record_bytes,
    scan,
    show_sequence,
    stamp,
)

KEYED = (Kind.SET, Kind.REMOVE, Kind.ROW)

u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
values = st.binary(max_size=200)


def _record(kind: Kind, key: bytes) -> st.SearchStrategy[Record]:
    causes = st.sampled_from(Cause)
    return st.builds(Record, st.just(kind), causes, u32, u32, u64, u64, u64, st.just(key), values)


keyed = st.tuples(st.sampled_from(KEYED), st.binary(min_size=1, max_size=80)).flatmap(lambda pair: _record(*pair))
unkeyed = st.sampled_from([kind for kind in Kind if kind not in KEYED]).flatmap(lambda kind: _record(kind, b""))
records = keyed | unkeyed


@given(records)
def test_a_record_comes_back(record: Record) -> None:
    encoded = encode(record)
    assert len(encoded) == record_bytes(len(record.key), len(record.value))
    assert decode(encoded) == record


@given(st.lists(records, max_size=8))
def test_records_come_back_in_order_from_one_body(made: list[Record]) -> None:
    body = b"".join(map(encode, made))
    assert list(scan(body)) == made
    assert [(head.kind, head.bucket, head.sequence, head.time_ms) for head in heads(body)] == [
        (record.kind, record.bucket, record.sequence, record.time_ms) for record in made
    ]
    assert all(encode(record) == body[head.start : head.end] for record, head in zip(made, heads(body), strict=True))


@given(records, u64, u64)
def test_a_stamp_changes_sequence_and_time_and_nothing_else(record: Record, sequence: int, time_ms: int) -> None:
    made = draft(
        record.kind,
        record.bucket,
        record.key,
        record.value,
        cause=record.cause,
        flags=record.flags,
        expires_at_ms=record.expires_at_ms,
    )
    stamp(made, sequence, time_ms)
    assert decode(bytes(made)) == record._replace(sequence=sequence, time_ms=time_ms)


@given(records, st.data())
def test_a_record_cut_anywhere_is_refused(record: Record, data: st.DataObject) -> None:
    encoded = encode(record)
    cut = encoded[: data.draw(st.integers(1, len(encoded) - 1))]
    with pytest.raises(BadRecord):
        decode(cut)
    with pytest.raises(BadRecord):
        list(heads(cut))


@given(records, st.binary(min_size=1, max_size=HEADER_BYTES))
def test_what_follows_a_record_is_never_a_part_of_it(record: Record, more: bytes) -> None:
    encoded = encode(record)
    with pytest.raises(BadRecord):
        decode(encoded + more)
    assert decode(encoded + more, 0, len(encoded)) == record


@pytest.mark.parametrize(
    ("kind", "key"),
    [(Kind.SET, b""), (Kind.REMOVE, b""), (Kind.ROW, b""), (Kind.OPEN, b"k"), (Kind.FLUSH, b"k"), (0, b""), (9, b"k")],
)
def test_a_kind_with_a_key_it_cannot_have_is_refused(kind: int, key: bytes) -> None:
    body = bytes(draft(kind, 0, key))
    with pytest.raises(BadRecord, match=f"kind {kind}"):
        list(heads(body))
    with pytest.raises(BadRecord, match=f"kind {kind}"):
        decode(body)


@pytest.mark.parametrize("length", [0, HEADER_BYTES - 1, HEADER_BYTES + 3, HEADER_BYTES + 5, 2**32 - 1])
def test_a_length_that_lies_is_refused(length: int) -> None:
    body = length.to_bytes(4, "big") + encode(Record(Kind.SET, 1, 0, 0, 1, 1, 0, b"key", b"v"))[4:]
    with pytest.raises(BadRecord):
        list(heads(body))
    with pytest.raises(BadRecord):
        decode(body)


@given(st.integers(0, EPOCH_MAX), st.integers(0, COUNTER_MAX))
def test_a_sequence_is_epoch_above_counter(epoch: int, counter: int) -> None:
    sequence = make_sequence(epoch, counter)
    assert (epoch_of(sequence), counter_of(sequence)) == (epoch, counter)
    assert sequence < 2**64
    assert show_sequence(sequence) == f"{epoch}.{counter}"


@given(st.tuples(*[st.integers(0, EPOCH_MAX), st.integers(0, COUNTER_MAX)] * 2))
def test_sequences_compare_by_epoch_first(pair: tuple[int, int, int, int]) -> None:
    one, other = pair[:2], pair[2:]
    assert (make_sequence(*one) < make_sequence(*other)) == (one < other)


@given(u64, u64, st.text(max_size=30))
def test_an_opening_comes_back(continues_from: int, incarnation: int, node: str) -> None:
    opening = Opening(continues_from, incarnation, node)
    value = encode_opening(opening)
    assert decode_opening(value) == opening
    for wrong in (value[:-1], value + b"x", b""):
        with pytest.raises(BadRecord, match="OPEN"):
            decode_opening(wrong)


@given(u64, u64)
def test_an_import_end_comes_back(begin: int, rows: int) -> None:
    value = encode_import_end(ImportEnd(begin, rows))
    assert decode_import_end(value) == (begin, rows)
    for wrong in (value[:-1], value + b"x", b""):
        with pytest.raises(BadRecord, match="IMPORT_END"):
            decode_import_end(wrong)


def test_an_opening_whose_node_is_no_text_is_refused() -> None:
    value = encode_opening(Opening(0, 1, "ab"))[:-2] + b"\xff\xfe"
    with pytest.raises(BadRecord, match="OPEN"):
        decode_opening(value)
