"""What one entry of what was told says of itself, the same for every subscriber."""

from __future__ import annotations

from rcache.feeds.told import Held, Told
from rcache.records.record import Cause, Kind, Opening, Record, encode, encode_opening, heads, make_sequence, scan
from tests.feeds.harness import Telling, key_of

LONG = b"k" * 0x0123
"""A key whose length takes both of its bytes."""


def entry(*records: Record) -> Told:
    body = b"".join(map(encode, records))
    return Told(body, tuple(heads(body)))


def change(bucket: int, sequence: int, key: bytes = b"key", kind: Kind = Kind.SET) -> Record:
    value = b"value" if kind is Kind.SET else b""
    return Record(kind, Cause.SET, bucket, 7, sequence, 1, 2, key, value)


def test_of_each_bucket_the_first_and_the_last_and_all_without_values() -> None:
    opening = change(1, make_sequence(2, 0), b"", Kind.OPEN)._replace(value=encode_opening(Opening(5, 6, "n1")))
    records = [change(3, 10, LONG), change(1, 4), change(3, 11, kind=Kind.REMOVE), opening, change(3, 12)]
    told = entry(*records)
    assert told.is_whole
    assert told.firsts == {3: 10, 1: 4}
    assert told.lasts == {3: 12, 1: make_sequence(2, 0)}
    nameless = [each if each.kind == Kind.OPEN else each._replace(value=b"") for each in records]
    assert list(scan(told.names)) == nameless
    assert not Told(told.body, told.heads[1:]).is_whole


def test_what_is_let_go_of_is_lost_up_to_its_last() -> None:
    held = Held(1, [0, 0])
    for sequence in (1, 3, 5):
        held.add(entry(change(1, sequence), change(1, sequence + 1)))
    assert (held.end - held.front, held.lost) == (1, [0, 4])


def test_who_comes_back_into_the_middle_of_an_entry_is_told_the_rest(telling: Telling) -> None:
    """Also where other buckets' records lie in it, which are told already."""
    telling.subscribe()
    places = {bucket: telling.set(bucket, b"before") for bucket in (1, 2)}
    telling.until_told(2)
    teller = telling.hub.join()
    assert teller is not None
    told = entry(change(1, places[1] + 1, key_of(1)), change(2, places[2] + 1, key_of(2)), change(1, places[1] + 2, key_of(1)))
    with teller.lock:
        teller.held.add(told)
        teller.last[1], teller.last[2] = places[1] + 2, places[2] + 1
    for after in (1, 0):
        back = telling.subscribe({1: places[1] + after, 2: places[2] + 1})
        rest = [(1, places[1] + 1), (1, places[1] + 2)][after:]
        assert [(record.bucket, record.sequence) for record in back.until_told(len(rest))] == rest
        assert (back.take(0.05), back.notices) == ([], [])
    telling.hub.leave()
