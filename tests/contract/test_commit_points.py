"""Commit points: an answer waits for each place where its bucket's changes must be, and for no other."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable

import pytest

from rcache.cluster.bucket_state import BucketState
from rcache.engine.change_stream import DISK, POINTS_MAX, CommitPoint, StreamEnd, Wait
from rcache.engine.contract import Engine, RequestRefused
from rcache_client.wire.frames import encode_request
from rcache_client.wire.opcodes import Opcode, Status
from tests.contract.conftest import EngineFactory
from tests.contract.harness import EVERYTHING, PATIENCE_S, Caller, Served, Task, assert_stays, encode_payload, wait_until

SHORT_MS = 30
"""A budget that nobody's commitment will meet."""
LONG_MS = 60_000


def key_of(engine: Engine, bucket: int, number: int = 0) -> bytes:
    """The `number`-th key of a bucket."""
    found = (key for key in (b"k%d" % n for n in range(10_000)) if zlib.crc32(key) % engine.config.buckets == bucket)
    return [next(found) for _ in range(number + 1)][-1]


def point(engine: Engine, name: str = "link") -> CommitPoint:
    """A new point that has everything up to now."""
    return engine.open_commit_point(name, engine.stream.head)


def soon(budget_ms: int = SHORT_MS) -> int:
    return time.monotonic_ns() + budget_ms * 1_000_000


def is_answered(caller: Caller, key: bytes) -> bool:
    """Whether a write of this key is committed in time."""
    status = caller.ask(Opcode.SET, 0, 0, key, b"value", budget_ms=SHORT_MS).status
    assert status in (Status.OK, Status.NOT_COMMITTED)
    return status is Status.OK


def test_a_bucket_waits_for_nothing_until_it_is_told_to(engine: Engine, caller: Caller) -> None:
    link = point(engine)
    assert link.position == engine.stream.head
    assert is_answered(caller, b"key")
    engine.set_commit_points(zlib.crc32(b"key") % 8, [link])
    assert not is_answered(caller, b"key")


def test_what_a_bucket_waits_for_is_told_while_it_is_primary_here(engine: Engine) -> None:
    first, second = point(engine, "first"), point(engine, "second")
    bits = {each: 1 << each.number for each in (first, second)}
    assert (engine.commit_points(3), engine.all_commit_points()) == (0, 0)
    engine.set_commit_points(3, [first, second])
    engine.set_commit_points(4, [second])
    assert (engine.commit_points(3), engine.commit_points(4)) == (bits[first] | bits[second], bits[second])
    assert engine.all_commit_points() == bits[first] | bits[second]
    engine.set_state(4, BucketState.FROZEN)
    assert engine.commit_points(4) is None, "what it is deposed of is committed by nobody's word here"
    first.close()
    assert engine.commit_points(3) == engine.all_commit_points() == bits[second]


def test_a_write_waits_for_each_of_its_points(engine: Engine) -> None:
    first, second = point(engine, "first"), point(engine, "second")
    engine.set_commit_points(3, [first, second, engine.stream.disk])
    writing = Task(lambda: Caller(engine).ask(Opcode.SET, 0, 0, key_of(engine, 3), b"value", budget_ms=LONG_MS))
    head = engine.stream.head
    wait_until(lambda: engine.stream.head > head or engine.stats()["items"]["items"] == 1, "the change")
    assert [first.number, second.number].count(DISK) == 0
    for reached in (second, engine.stream.disk):
        reached.advance(engine.stream.head)
        assert_stays(lambda: not writing.is_done, "the wait")
    first.advance(engine.stream.head - 1)
    assert_stays(lambda: not writing.is_done, "the wait")
    first.advance(engine.stream.head)
    assert writing.result().status is Status.OK


def test_each_bucket_waits_for_its_own(engine: Engine, caller: Caller) -> None:
    first, second = point(engine, "first"), point(engine, "second")
    engine.set_commit_points(1, [first])
    engine.set_commit_points(2, [second])
    first.advance(1 << 40)
    assert is_answered(caller, key_of(engine, 0))
    assert is_answered(caller, key_of(engine, 1))
    assert not is_answered(caller, key_of(engine, 2))
    second.advance(engine.stream.head)
    assert caller.ask(Opcode.GET, key_of(engine, 2), budget_ms=SHORT_MS).status is Status.OK


def test_a_batch_over_several_buckets_says_for_each_what_is_known(engine: Engine) -> None:
    first, second = point(engine, "first"), point(engine, "second")
    engine.set_commit_points(1, [first])
    engine.set_commit_points(2, [second])
    frames = [
        encode_request(Opcode.SET, bucket + 1, 100, encode_payload(Opcode.SET, (0, 0, key_of(engine, bucket), b"value")))
        for bucket in (2, 1, 0)
    ]
    first.advance(1 << 40)
    with Served(engine) as served:
        served.peer.sendall(b"".join(frames))
        replies = [served.reply() for _ in frames]
    assert [(reply.request_id, reply.status) for reply in replies] == [
        (3, Status.NOT_COMMITTED),
        (2, Status.OK),
        (1, Status.OK),
    ]


def test_a_batch_waits_for_the_latest_of_its_changes_whatever_comes_after_it(engine: Engine, caller: Caller) -> None:
    link, key, other = point(engine), key_of(engine, 4), key_of(engine, 4, 1)
    engine.set_commit_points(4, [link])
    assert not is_answered(caller, key)
    link_at = engine.stream.head - 1
    requests = [(Opcode.SET, (0, 0, other, b"value")), (Opcode.GET, (key,))]
    frames = [encode_request(op, n, 100, encode_payload(op, values)) for n, (op, values) in enumerate(requests, 1)]
    link.advance(link_at)
    with Served(engine) as served:
        served.peer.sendall(b"".join(frames))
        wait_until(lambda: engine.stats()["items"]["items"] == 2, "the change")
        link.advance(link_at + 1)
        assert [served.reply().status for _ in frames] == [Status.NOT_COMMITTED, Status.OK]
    link.advance(link_at + 1)
    assert caller.ask(Opcode.GET_MANY, (other,), (key,), budget_ms=SHORT_MS).status is Status.NOT_COMMITTED
    link.advance(engine.stream.head)
    assert caller.ask(Opcode.GET_MANY, (other,), (key,), budget_ms=SHORT_MS).status is Status.OK


def test_an_answer_over_many_keys_waits_for_all_of_them(engine: Engine, caller: Caller) -> None:
    first, second = point(engine, "first"), point(engine, "second")
    engine.set_commit_points(1, [first])
    engine.set_commit_points(2, [second])
    entries = [(0, 0, key_of(engine, bucket), b"value") for bucket in (0, 1, 2)]
    keys = [(key_of(engine, bucket),) for bucket in (0, 1, 2)]
    first.advance(1 << 40)
    assert caller.ask(Opcode.SET_MANY, *entries, budget_ms=SHORT_MS).status is Status.NOT_COMMITTED
    assert caller.ask(Opcode.GET_MANY, *keys, budget_ms=SHORT_MS).status is Status.NOT_COMMITTED
    assert caller.ask(Opcode.GET_MANY, *keys[:2], budget_ms=SHORT_MS).status is Status.OK
    second.advance(engine.stream.head)
    assert caller.ask(Opcode.GET_MANY, *keys, budget_ms=SHORT_MS).status is Status.OK
    assert caller.ask(Opcode.DELETE_MANY, *keys, budget_ms=SHORT_MS).status is Status.NOT_COMMITTED


def test_a_point_that_is_added_has_to_come_to_what_was_there(engine: Engine, caller: Caller) -> None:
    link = engine.open_commit_point("link", 0)
    assert is_answered(caller, key_of(engine, 4))
    head = engine.set_commit_points(4, [link])
    assert head == engine.stream.head
    link.advance(head)
    assert caller.ask(Opcode.GET, key_of(engine, 4), budget_ms=SHORT_MS).status is Status.OK
    assert not is_answered(caller, key_of(engine, 4))


def test_what_waits_also_waits_for_a_point_that_was_added_since(engine: Engine, caller: Caller) -> None:
    first, second = point(engine, "first"), point(engine, "second")
    engine.set_commit_points(4, [first])
    key = key_of(engine, 4)
    assert not is_answered(caller, key)
    engine.set_commit_points(4, [first, second])
    first.advance(engine.stream.head)
    assert caller.ask(Opcode.GET, key, budget_ms=SHORT_MS).status is Status.NOT_COMMITTED
    second.advance(engine.stream.head)
    assert caller.ask(Opcode.GET, key, budget_ms=SHORT_MS).status is Status.OK


def test_a_point_that_is_taken_away_is_waited_for_no_more(engine: Engine, caller: Caller) -> None:
    first, second = point(engine, "first"), point(engine, "second")
    engine.set_commit_points(4, [first, second])
    key = key_of(engine, 4)
    second.advance(1 << 40)
    assert not is_answered(caller, key)
    engine.set_commit_points(4, [second])
    assert is_answered(caller, key)
    engine.set_commit_points(4, [])
    assert is_answered(caller, key)
    engine.set_commit_points(4, [first])
    assert caller.ask(Opcode.GET, key, budget_ms=SHORT_MS).status is Status.OK, "nothing waited when it was set"


@pytest.mark.parametrize("way", ["close", "advance"])
def test_whoever_waits_is_woken(engine: Engine, way: str) -> None:
    link = point(engine)
    engine.set_commit_points(4, [link])
    key = key_of(engine, 4)
    writing = [Task(lambda: Caller(engine).ask(Opcode.SET, 0, 0, key, b"value", budget_ms=LONG_MS)) for _ in range(4)]
    wait_until(lambda: engine.stats()["items"]["sets"] == 4, "the changes")
    assert_stays(lambda: not any(task.is_done for task in writing), "the wait")
    if way == "close":
        link.close()
    else:
        link.advance(engine.stream.head)
    assert [task.result().status for task in writing] == [Status.OK] * 4


def test_a_closed_point_is_waited_for_by_nobody(engine: Engine, caller: Caller) -> None:
    link = point(engine)
    for bucket in range(engine.config.buckets):
        engine.set_commit_points(bucket, [link])
    link.close()
    link.close()
    other = point(engine, "other")
    engine.set_commit_points(5, [other])
    link.advance(1 << 40)
    assert is_answered(caller, key_of(engine, 4))
    assert not is_answered(caller, key_of(engine, 5)), "what was closed speaks for nobody else"


def test_whoever_gets_the_number_of_a_closed_point_is_not_waited_for_in_its_place(engine: Engine, caller: Caller) -> None:
    link = point(engine)
    engine.set_commit_points(4, [link])
    link.close()
    for _ in range(2 * POINTS_MAX):
        other = engine.open_commit_point("other", 0)
        if other.number == link.number:
            break
        other.close()
    assert other.number == link.number
    assert is_answered(caller, key_of(engine, 4))


def test_a_point_never_goes_back(engine: Engine) -> None:
    link = engine.open_commit_point("link", 100)
    link.advance(50)
    assert link.position == 100
    link.advance(150)
    assert link.position == 150


def test_there_are_so_many_points_and_no_more(engine: Engine) -> None:
    links = [engine.open_commit_point(str(number), 0) for number in range(POINTS_MAX - 1)]
    assert len({DISK, *(link.number for link in links)}) == POINTS_MAX
    with pytest.raises(ValueError, match="64 commit points already"):
        engine.open_commit_point("one too many", 0)
    links[20].close()
    links[10].close()
    others = [engine.open_commit_point("another", 7) for _ in range(2)]
    assert {other.number for other in others} == {links[10].number, links[20].number}
    assert [other.position for other in others] == [7, 7]


def test_a_number_rests_before_it_is_another_points(engine: Engine) -> None:
    numbers = []
    for _ in range(POINTS_MAX - 1):
        link = engine.open_commit_point("link", 0)
        numbers.append(link.number)
        link.close()
    assert len(set(numbers)) == POINTS_MAX - 1


def test_no_bucket_can_wait_for_a_closed_point(engine: Engine, caller: Caller) -> None:
    link = point(engine)
    link.close()
    with pytest.raises(ValueError, match="the commit point link is closed"):
        engine.set_commit_points(4, [engine.stream.disk, link])
    assert is_answered(caller, key_of(engine, 4))


def test_the_disk_is_a_point_that_stays(engine_factory: EngineFactory) -> None:
    engine = engine_factory(commit=True)
    caller = Caller(engine)
    assert not is_answered(caller, b"key")
    assert engine.stream.disk.number == DISK
    engine.stream.disk.advance(engine.stream.head)
    assert engine.stream.durable == engine.stream.disk.position == engine.stream.head
    assert caller.ask(Opcode.GET, b"key", budget_ms=SHORT_MS).status is Status.OK
    with pytest.raises(ValueError, match="for as long as there is a stream"):
        engine.stream.disk.close()
    for bucket in range(engine.config.buckets):
        engine.set_commit_points(bucket, [])
    assert is_answered(caller, b"key"), "commit is where a bucket begins, not where it must stay"


def test_waiting_for_points_by_name(engine: Engine, caller: Caller) -> None:
    link = engine.open_commit_point("link", 0)
    both = 1 << DISK | 1 << link.number
    caller.set(b"key", b"value")
    head = engine.stream.head
    assert engine.stream.wait_committed(Wait(), soon()) is StreamEnd.REACHED
    assert engine.stream.wait_committed(Wait(both, head), soon()) is StreamEnd.TIMED_OUT
    link.advance(head)
    assert engine.stream.wait_committed(Wait(1 << link.number, head), soon()) is StreamEnd.REACHED
    assert engine.stream.wait_committed(Wait(both, head), soon()) is StreamEnd.TIMED_OUT
    waiting = Task(lambda: engine.stream.wait_committed(Wait(both, head), soon(LONG_MS)))
    engine.stream.disk.advance(head)
    assert waiting.result() is StreamEnd.REACHED


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (lambda engine: engine.stream.end_waits(), Status.NOT_COMMITTED),
        (lambda engine: engine.stream.fail("no space left on device"), Status.APPEND_LOG_FAILED),
    ],
)
def test_waits_for_a_link_end_with_the_stream(engine: Engine, end: Callable[[Engine], None], expected: Status) -> None:
    engine.set_commit_points(4, [point(engine)])
    writing = Task(lambda: Caller(engine).ask(Opcode.SET, 0, 0, key_of(engine, 4), b"value", budget_ms=LONG_MS))
    wait_until(lambda: engine.stats()["items"]["items"] == 1, "the change")
    end(engine)
    assert writing.result().status is expected


def test_a_flush_waits_for_the_points_of_all_buckets(engine: Engine, caller: Caller) -> None:
    link = point(engine)
    caller.set(key_of(engine, 1), b"value")
    engine.set_commit_points(4, [link])
    with pytest.raises(RequestRefused) as refusal:
        engine.flush(soon())
    assert refusal.value.status is Status.NOT_COMMITTED
    link.advance(engine.stream.head)
    assert engine.flush(soon()) == 0


def test_nothing_but_a_wait_for_the_disk_cuts_a_linger_short(engine: Engine) -> None:
    """Others write, wait for a link, and wake the link's reader meanwhile."""
    log, reader = (engine.stream.open_reader(name, holds=True) for name in ("log", "link"))
    link, key = point(engine), key_of(engine, 4)
    engine.set_commit_points(4, [link])
    linger_s, began = 0.3, time.monotonic()
    gathering = Task(lambda: log.take(EVERYTHING, PATIENCE_S, linger_s))
    writing = []
    for number in range(1, 5):
        reading = Task(lambda: reader.take(EVERYTHING, PATIENCE_S))
        writing.append(Task(lambda: Caller(engine).ask(Opcode.SET, 0, 0, key, b"value", budget_ms=LONG_MS)))
        assert reading.result().count == 1
        assert engine.stats()["items"]["sets"] == number
    took_s = time.monotonic() - began
    batch = gathering.result()
    assert time.monotonic() - began >= linger_s
    assert took_s > linger_s or batch.count == 4
    link.advance(engine.stream.head)
    assert [task.result().status for task in writing] == [Status.OK] * 4
    log.close()
    reader.close()


def test_who_waits_for_a_link_alone_does_not_hurry_the_log(engine: Engine) -> None:
    """The log gathers more while somebody waits for a backup, and writes at once when somebody waits for the disk."""
    log = engine.stream.open_reader("log", holds=True)
    link = point(engine)
    engine.set_commit_points(4, [link])
    writing = Task(lambda: Caller(engine).ask(Opcode.SET, 0, 0, key_of(engine, 4), b"value", budget_ms=LONG_MS))
    wait_until(lambda: engine.stats()["items"]["items"] == 1, "the change")
    linger_s = 0.2
    began = time.monotonic()
    assert log.take(EVERYTHING, PATIENCE_S, linger_s).count == 1
    assert time.monotonic() - began >= linger_s
    link.advance(engine.stream.head)
    assert writing.result().status is Status.OK
    log.close()
