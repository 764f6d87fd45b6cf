"""The walk back from where an OPEN continues: only what leads there, in whatever order and with whatever else it came."""

from __future__ import annotations

import random

import pytest

from rcache.feeds import applied_tail
from rcache.feeds.applied_tail import BODY_BYTES, AppliedTail, Chain
from rcache.records.record import Kind, Opening, Record, encode, encode_drop, encode_opening, make_sequence, scan, show_sequence


def change(bucket: int, epoch: int, counter: int, value: bytes = b"v") -> bytes:
    return encode(Record(Kind.SET, 0, bucket, 0, make_sequence(epoch, counter), 0, 0, b"k", value))


def opening(bucket: int, epoch: int, before: int) -> bytes:
    value = encode_opening(Opening(before, 1, "n1"))
    return encode(Record(Kind.OPEN, 0, bucket, 0, make_sequence(epoch, 0), 0, 0, b"", value))


def tail_of(*bodies: bytes, bytes_max: int = 1 << 20) -> AppliedTail:
    tail = AppliedTail(bytes_max)
    for body in bodies:
        tail.take_in(body)
    return tail


def said(chain: Chain) -> list[str]:
    """From where on, and what."""
    sequences = [chain.after, *(record.sequence for told in chain.told for record in scan(told.body))]
    assert sequences[1:] == [head.sequence for told in chain.told for head in told.heads]
    return [show_sequence(sequence) for sequence in sequences]


def walk(tail: AppliedTail, epoch: int, counter: int, bucket: int = 3) -> list[str]:
    end = bucket, make_sequence(epoch, counter)
    return said(tail.chains([end])[end])


def test_what_leads_to_a_place_without_a_hole() -> None:
    tail = tail_of(change(3, 5, 1), change(3, 5, 3) + change(4, 5, 9), change(3, 5, 4), change(3, 5, 5))
    assert walk(tail, 5, 4) == ["5.2", "5.3", "5.4"]
    assert walk(tail, 5, 9, bucket=4) == ["5.8", "5.9"]
    assert walk(tail, 5, 8) == ["5.8"], "nothing leads to what did not come"
    assert tail.chains([]) == {}


def test_an_opening_leads_to_what_it_names() -> None:
    """What a deposed primary made beyond that is on no chain, and neither is an OPEN that no later one continues."""
    tail = tail_of(
        *(change(3, 5, n) for n in (8, 9, 10, 11)),
        *(opening(3, 6, make_sequence(5, 10)), change(3, 6, 1)),
        *(opening(3, 7, make_sequence(5, 11)), change(3, 7, 1)),
        *(opening(3, 8, make_sequence(6, 1)), opening(3, 9, make_sequence(8, 0))),
    )
    assert walk(tail, 9, 0) == ["5.7", "5.8", "5.9", "5.10", "6.0", "6.1", "8.0", "9.0"]


def test_what_was_born_here_begins_with_nothing() -> None:
    assert walk(tail_of(opening(3, 5, 0), change(3, 5, 1)), 5, 1) == ["0.0", "5.0", "5.1"]


def test_copies_are_no_history() -> None:
    """A bucket that was dropped and filled anew: rows and marks say nothing, and what led there before is as true as it was."""
    row = encode(Record(Kind.ROW, 0, 3, 0, make_sequence(5, 3), 0, 0, b"k", b"v"))
    begin = encode(Record(Kind.IMPORT_BEGIN, 0, 3, 0, make_sequence(5, 3), 0, 0, b"", b""))
    tail = tail_of(change(3, 5, 1), change(3, 5, 2), encode_drop(3, 0), begin + row, row, change(3, 5, 4))
    assert walk(tail, 5, 4) == ["5.3", "5.4"]
    assert walk(tail, 5, 2) == ["5.0", "5.1", "5.2"]
    few = tail_of(change(3, 5, 1), bytes_max=1000)
    few.take_in(encode(Record(Kind.ROW, 0, 4, 0, 1, 0, 0, b"k", bytes(5000))))
    assert walk(few, 5, 1) == ["5.0", "5.1"], "a copy that is filled does not push out what is known"


def test_it_does_not_matter_in_which_order_things_came() -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chosen = random.Random(seed)
    bodies = [change(3, 5, n) for n in range(1, 30)] + [change(4, 5, n) for n in range(1, 30)] + [change(3, 5, 7)]
    chosen.shuffle(bodies)
    assert walk(tail_of(*bodies), 5, 29) == ["5.0", *(f"5.{n}" for n in range(1, 30))]


def test_the_oldest_falls_out_and_the_rest_is_known_from_there_on() -> None:
    each = len(change(3, 5, 1)) + BODY_BYTES
    tail = tail_of(*(change(3, 5, n) for n in range(1, 10)), bytes_max=4 * each)
    assert walk(tail, 5, 9) == ["5.5", "5.6", "5.7", "5.8", "5.9"]
    tail.take_in(change(3, 5, 10, bytes(5 * each)))
    assert walk(tail, 5, 10) == ["5.10"], "what is larger than all that may be held is not available"


def test_a_long_chain_comes_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(applied_tail, "ENTRY_BYTES_MAX", 1000)
    end = 3, make_sequence(5, 40)
    chain = tail_of(*(change(3, 5, n, bytes(100)) for n in range(1, 41))).chains([end])[end]
    assert len(chain.told) == 6
    assert all(len(told.body) <= 1000 for told in chain.told)
    assert said(chain) == ["5.0", *(f"5.{n}" for n in range(1, 41))]
