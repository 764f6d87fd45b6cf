"""The recorder: what comes of what feeds tell and copies bring, in the stream that the log reads."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator

import pytest
from loguru import logger

from rcache.logger import recorder as module
from rcache.logger.coverage import Covered
from rcache.logger.recorder import HistoryWentBack, Recorder
from rcache.records.record import Kind, Record, decode_opening, scan
from rcache.records.record import make_sequence as seq
from rcache.stream.applied import AppliedStream
from rcache_client.wire.grammar import BadPayload
from tests.logger.harness import Model, feed_of, opening, record, told
from tests.stream.harness import PATIENCE_S, wait_until

B, OTHER = 3, 4
T = 1000
KNOWN = {B: Covered(seq(5, 20), True, T)}
"""Bucket 3 is recorded whole up to 5.20."""


def change(counter: int, *, epoch: int = 5, bucket: int = B, value: bytes = b"v") -> bytes:
    return record(Kind.SET, bucket, seq(epoch, counter), T + counter, b"key", value)


class Recording:
    """A recorder, and what it wrote."""

    def __init__(self, known: dict[int, Covered] | None = None, stream_bytes: int = 1 << 20) -> None:
        self.stream = AppliedStream(stream_bytes)
        self.recorder = Recorder(self.stream, KNOWN if known is None else known)
        self.feed = feed_of()

    def written(self) -> list[Record]:
        batch = self.stream.take(1 << 20)
        self.stream.set_written(batch.position)
        records = list(scan(bytes(batch.body)))
        assert batch.count == len(records)
        return records

    def kinds(self) -> list[tuple[Kind, int]]:
        return [(Kind(each.kind), each.sequence) for each in self.written()]


@pytest.fixture
def recording() -> Recording:
    return Recording()


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What was logged."""
    said: list[str] = []
    sink = logger.add(lambda message: said.append(str(message.record["message"])), level="WARNING")
    yield said
    logger.remove(sink)


def test_a_change_is_recorded_once_whoever_tells_it_again(recording: Recording) -> None:
    taken = recording.recorder.take(recording.feed, told(change(21), change(22)))
    assert taken == {B: seq(5, 22)}
    again = recording.recorder.take(feed_of("other"), told(change(22), change(23), places={7: 9}))
    assert again == {B: seq(5, 23), 7: 9}
    assert [each.sequence for each in recording.written()] == [seq(5, 21), seq(5, 22), seq(5, 23)]
    counts = recording.recorder.counts
    assert (counts.changes, counts.again, counts.bytes) == (3, 1, 3 * len(change(21)))


def test_what_is_written_is_known_no_sooner(recording: Recording) -> None:
    recording.recorder.take(recording.feed, told(change(21)))
    assert recording.recorder.written() == KNOWN
    recording.written()
    assert recording.recorder.written() == {B: Covered(seq(5, 21), True, T + 21)}


def test_a_gap_is_marked_where_something_was_whole(recording: Recording, lines: list[str]) -> None:
    """The mark is of the time of the last change before it: what was recorded up to then is the bucket up to then."""
    taken = recording.recorder.take(recording.feed, told(change(31), gaps=[(B, seq(5, 20), seq(5, 30))]))
    assert taken == {B: seq(5, 31)}
    mark, after = recording.written()
    assert (mark.kind, mark.bucket, mark.time_ms) == (Kind.DROP, B, T)
    assert (after.kind, after.sequence) == (Kind.SET, seq(5, 31))
    recording.recorder.take(recording.feed, told(gaps=[(B, seq(5, 31), seq(5, 40))]))
    assert recording.written() == []
    assert recording.recorder.counts.gaps == 2
    assert ["5.20 and 5.30" in line for line in lines] == [True]


def test_many_gaps_are_few_lines(recording: Recording, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where writers are faster than the logger each answer brings some."""
    for upto in (30, 40, 50):
        recording.recorder.take(recording.feed, told(gaps=[(B, 0, seq(5, upto)), (OTHER, 0, seq(5, upto))]))
    assert len(lines) == 1
    monkeypatch.setattr(module, "WARN_S", 0.0)
    recording.recorder.take(recording.feed, told(gaps=[(B, seq(5, 50), seq(5, 60))]))
    assert "5.50 and 5.60" in lines[1]
    assert "and 4 gaps since" in lines[1]
    assert recording.recorder.counts.gaps == 7


def test_what_is_missing_without_a_word_is_marked_too(recording: Recording, lines: list[str]) -> None:
    recording.recorder.take(recording.feed, told(change(21), opening(B, seq(7, 0), seq(6, 3), T)))
    assert recording.kinds() == [(Kind.SET, seq(5, 21)), (Kind.DROP, 0), (Kind.OPEN, seq(7, 0))]
    assert "7.0 is told behind 6.3" in lines[0]


def test_an_opening_that_nobody_told_is_made_up(recording: Recording) -> None:
    """All nodes were started again, and this feed listened a moment later: the node says that it tells from behind 9.0 on,
    which is the place that it was asked for. Without an OPEN no chain would lead from there to what is recorded."""
    recording.recorder.begun(recording.feed, {B: seq(9, 0)})
    (made,) = recording.written()
    assert (made.kind, made.bucket, made.sequence, made.time_ms) == (Kind.OPEN, B, seq(9, 0), T)
    assert decode_opening(made.value) == (seq(5, 20), 0, "node at 127.0.0.1:1")
    recording.recorder.take(recording.feed, told(change(1, epoch=9)))
    recording.written()
    assert recording.recorder.written()[B] == Covered(seq(9, 1), True, T + 1)
    assert recording.recorder.counts.gaps == 0


def test_a_bucket_begins_without_a_word(recording: Recording, lines: list[str]) -> None:
    recording.recorder.begun(recording.feed, {B: seq(5, 20), OTHER: seq(9, 0)})
    assert (recording.written(), lines, recording.recorder.counts.gaps) == ([], [], 0)
    assert recording.recorder.lacking() == [OTHER]


def test_a_beginning_elsewhere_is_a_gap(recording: Recording, lines: list[str]) -> None:
    recording.recorder.begun(recording.feed, {B: seq(5, 30)})
    assert recording.kinds() == [(Kind.DROP, 0)]
    assert (len(lines), recording.recorder.counts.gaps) == (1, 1)
    assert recording.recorder.lacking() == [B]


def test_lost_data_is_copied_anew(recording: Recording) -> None:
    """5.16 to 5.20 were committed and are lost; it goes on from 5.15."""
    gap = told(opening(B, seq(6, 0), seq(5, 15), T + 50), gaps=[(B, seq(5, 20), seq(5, 15))])
    assert recording.recorder.take(recording.feed, gap) == {B: seq(6, 0)}
    assert recording.kinds() == [(Kind.DROP, 0), (Kind.OPEN, seq(6, 0))]


@pytest.mark.parametrize("said", [True, False])
def test_a_cluster_that_was_set_back_is_not_recorded(recording: Recording, said: bool) -> None:
    """It uses sequences again. Nothing of it is taken in, of no bucket."""
    if not said:
        recording.recorder.take(recording.feed, told(gaps=[(B, seq(5, 20), seq(4, 7))]))
        recording.written()
    gaps = [(B, seq(5, 20), seq(4, 7))] if said else []
    with pytest.raises(HistoryWentBack, match=r"4\.8 of bucket 3"):
        recording.recorder.take(recording.feed, told(change(1, bucket=OTHER), change(8, epoch=4), gaps=gaps))
    assert recording.written() == []
    recording.recorder.take(recording.feed, told(change(21) if said else opening(B, seq(6, 0), seq(4, 7), T)))
    assert len(recording.written()) == 1


def test_what_is_no_record_is_not_taken_in(recording: Recording) -> None:
    broken = opening(B, seq(6, 0), seq(5, 21), T)
    broken = broken[:40] + b"\xff" * (len(broken) - 40)
    with pytest.raises(BadPayload):
        recording.recorder.take(recording.feed, told(change(21), broken))
    with pytest.raises(BadPayload):
        recording.recorder.take(recording.feed, told(change(21)[:-1]))
    assert recording.written() == []
    assert recording.recorder.take(recording.feed, told(change(21))) == {B: seq(5, 21)}
    assert len(recording.written()) == 1


# --- bases


def copied(recording: Recording, *records: bytes, bucket: int = B) -> bool | None:
    return recording.recorder.add_base(bucket, b"".join(records))


def test_a_base_is_recorded_as_it_comes(recording: Recording) -> None:
    model = Model(random.Random(1))
    bucket = model.buckets[0]
    for _ in range(9):
        model.change(bucket)
    recording.recorder.begun(recording.feed, {0: bucket.last})
    assert recording.recorder.lacks(0)
    pieces = list(model.copy(bucket))
    assert [recording.recorder.add_base(0, piece) for piece in pieces] == [*[None] * (len(pieces) - 1), True]
    assert not recording.recorder.lacks(0)
    assert recording.written() == list(scan(b"".join(pieces)))
    assert recording.recorder.whole == 2
    assert (recording.recorder.counts.bases, recording.recorder.counts.rows) == (1, len(bucket.state))


def test_only_what_is_told_of_is_copied(recording: Recording) -> None:
    """Else the changes after its beginning would be missing."""
    recording.recorder.begun(recording.feed, {OTHER: seq(1, 5)})
    assert (recording.recorder.lacking(), recording.recorder.lacks(OTHER)) == ([OTHER], True)
    recording.recorder.lost(feed_of(), [OTHER])
    assert recording.recorder.lacking() == [OTHER]  # another feed's word
    recording.recorder.lost(recording.feed, [OTHER])
    assert (recording.recorder.lacking(), recording.recorder.lacks(OTHER)) == ([], False)


def test_a_copy_that_is_given_up_leaves_nothing_whole(recording: Recording) -> None:
    copied(recording, record(Kind.IMPORT_BEGIN, B, seq(5, 20), T))
    recording.written()
    assert recording.recorder.written()[B] == Covered(seq(5, 20), False, T)


def test_a_copy_of_something_else_is_refused(recording: Recording) -> None:
    for body in (
        record(Kind.ROW, OTHER, seq(5, 1), T, b"k", b"v"),
        change(21),
        record(Kind.ROW, B, seq(5, 1), T, b"k", b"v")[:-1],
        record(Kind.IMPORT_END, B, seq(5, 1), T, value=b"short"),
    ):
        with pytest.raises(BadPayload):
            copied(recording, body)
    assert recording.written() == []
    assert recording.recorder.whole == 1


# --- a log without room


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Recording, threading.Thread, list[object]]]:
    """A feed that waits for room in the log."""
    monkeypatch.setattr(module, "ROOM_LOOK_S", 0.01)
    recording, taken = Recording(stream_bytes=100), list[object]()
    recording.recorder.take(recording.feed, told(change(21, value=bytes(90))))
    waiting = threading.Thread(target=lambda: taken.append(recording.recorder.take(recording.feed, told(change(22)))))
    waiting.start()
    wait_until(recording.recorder._order.locked, "the feed")
    yield recording, waiting, taken
    recording.recorder.stop()
    waiting.join(PATIENCE_S)
    assert not waiting.is_alive()


def test_who_only_looks_does_not_wait_for_the_log(full: tuple[Recording, threading.Thread, list[object]]) -> None:
    recording, waiting, taken = full
    began = time.monotonic()
    assert recording.recorder.written() == KNOWN
    assert recording.recorder.lacking() == []
    assert recording.recorder.whole == 1
    assert recording.recorder.has({B: seq(5, 21)})
    recording.recorder.lost(recording.feed, [B])
    assert time.monotonic() - began < PATIENCE_S
    assert waiting.is_alive()
    assert len(recording.written()) == 1
    waiting.join(PATIENCE_S)
    assert taken == [{B: seq(5, 22)}]
    assert len(recording.written()) == 1


def test_a_stop_ends_the_wait_and_nothing_is_taken_in_any_more(
    full: tuple[Recording, threading.Thread, list[object]],
) -> None:
    recording, waiting, taken = full
    recording.recorder.stop()
    waiting.join(PATIENCE_S)
    assert taken == [{}]
    assert len(recording.written()) == 1
    assert recording.recorder.take(recording.feed, told(change(23))) == {}
    assert recording.written() == []
    assert recording.recorder.written()[B].place == seq(5, 21)


def test_after_the_log_failed_nothing_is_taken_in(recording: Recording) -> None:
    recording.stream.fail("no disk")
    assert recording.recorder.take(recording.feed, told(change(21))) == {}
    assert recording.recorder.add_base(B, record(Kind.IMPORT_BEGIN, B, seq(5, 20), T)) is None
    assert recording.recorder.written() == KNOWN


def test_two_feeds_at_once(recording: Recording) -> None:
    """Of two buckets: each of them in its order."""
    recording.recorder.begun(recording.feed, {OTHER: seq(5, 0)})

    def tell(bucket: int, first: int) -> None:
        for counter in range(first, first + 300):
            recording.recorder.take(feed_of(), told(change(counter, bucket=bucket)))

    threads = [threading.Thread(target=tell, args=each) for each in ((B, 21), (OTHER, 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    found = recording.written()
    for bucket, first in ((B, 21), (OTHER, 1)):
        told_of = [each.sequence for each in found if each.bucket == bucket]
        assert told_of == [seq(5, counter) for counter in range(first, first + 300)]


def test_trouble_with_a_node_is_told_once_until_it_is_over(recording: Recording, lines: list[str]) -> None:
    for _ in range(3):
        assert recording.recorder.failed(recording.feed, ValueError("wrong"))
    assert len(lines) == 1
    recording.recorder.begun(recording.feed, {})
    recording.recorder.failed(recording.feed, ValueError("wrong"))
    assert len(lines) == 2
    assert recording.recorder.counts.failures == 4
