"""Leases of commit points, points that are abandoned, and what waits for an OPEN: what a primary may still say, and when."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator

import pytest

from rcache.cluster.bucket_state import BucketState
from rcache.engine.change_stream import DISK, HELD_FOR_EVER, POINTS_MAX, CommitPoint, StreamEnd, Wait
from rcache.engine.contract import Engine, RequestRefused
from rcache.records.record import Kind, make_sequence
from rcache_client.wire.frames import encode_request
from rcache_client.wire.opcodes import Opcode, Status
from tests.contract.conftest import EngineFactory
from tests.contract.harness import EVERYTHING, Caller, Served, Task, assert_stays, encode_payload, wait_until
from tests.contract.test_buckets import begin, end, keyed
from tests.contract.test_commit_points import LONG_MS, SHORT_MS, is_answered, key_of, soon
from tests.contract.test_sharing import Sharing, shared

LONG_AGO = 1
SECOND_NS = 1_000_000_000


def in_s(seconds: float) -> int:
    """The boot clock so many seconds from now."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) + int(seconds * SECOND_NS)


def leased(engine: Engine, until_ns: int, *buckets: int) -> CommitPoint:
    """A point that has everything there will be, which these buckets wait for."""
    point = engine.open_commit_point("leased", 1 << 40, until_ns)
    for bucket in buckets:
        engine.set_commit_points(bucket, [point])
    return point


def read(caller: Caller, key: bytes, budget_ms: int = SHORT_MS) -> Status:
    return caller.ask(Opcode.GET, key, budget_ms=budget_ms).status


@pytest.fixture
def sharing(engine_factory: EngineFactory) -> Iterator[Sharing]:
    yield from shared(engine_factory())


# --- a lease


def test_with_a_lease_that_holds_all_is_answered(engine: Engine, caller: Caller) -> None:
    leased(engine, in_s(1000), 4)
    assert is_answered(caller, key_of(engine, 4))
    assert read(caller, key_of(engine, 4)) is Status.OK
    assert read(caller, key_of(engine, 4, 1)) is Status.NOT_FOUND


def test_without_a_lease_nothing_is_told(engine: Engine, caller: Caller) -> None:
    """Neither what is to be committed nor what was committed long ago: it may be another's to change by now."""
    key, none = key_of(engine, 4), key_of(engine, 4, 1)
    number = key_of(engine, 4, 2)
    caller.set(key, b"value")
    caller.set(number, b"no number")
    leased(engine, LONG_AGO, 4)
    asked = [
        (Opcode.GET, (key,)),
        (Opcode.GET, (none,)),
        (Opcode.INSPECT, (key,)),
        (Opcode.GET_WITH_TTL, (key,)),
        (Opcode.GET_WITH_TTL, (none,)),
        (Opcode.GET_AND_TOUCH, (0, key)),
        (Opcode.SET, (0, 0, key, b"new")),
        (Opcode.ADD, (0, 0, key, b"new")),
        (Opcode.REPLACE, (0, 0, none, b"new")),
        (Opcode.DELETE, (none,)),
        (Opcode.TOUCH, (0, none)),
        (Opcode.INCREMENT, (1, 0, 0, 0, number)),
        (Opcode.CAS_VERSION, (1, 0, 0, key, b"new")),
        (Opcode.CAS_HASH, (bytes(16), 0, 0, key, b"new")),
    ]
    for opcode, values in asked:
        assert caller.ask(opcode, *values, budget_ms=SHORT_MS).status is Status.NOT_COMMITTED, opcode
    many = [(Opcode.GET_MANY, (key,)), (Opcode.GET_MANY, (none,)), (Opcode.SET_MANY, (0, 0, key, b"new"))]
    for opcode, entry in [*many, (Opcode.DELETE_MANY, (none,))]:
        assert caller.ask(opcode, entry, budget_ms=SHORT_MS).status is Status.NOT_COMMITTED, opcode


def test_what_reveals_nothing_waits_for_nothing(engine: Engine, caller: Caller) -> None:
    leased(engine, LONG_AGO, 4)
    key = key_of(engine, 4)
    large = bytes(engine.config.value_bytes_max + 1)
    assert caller.ask(Opcode.SET, 0, 0, key, large, budget_ms=LONG_MS).status is Status.TOO_LARGE
    engine.set_state(4, BucketState.FROZEN)
    assert caller.ask(Opcode.GET, key, budget_ms=LONG_MS).status is Status.NOT_PRIMARY
    assert caller.ask(Opcode.SET, 0, 0, key, b"value", budget_ms=LONG_MS).status is Status.NOT_PRIMARY
    status, entries = caller.ask(Opcode.GET_MANY, (key,), budget_ms=LONG_MS)
    assert (status, entries[0][0]) == (Status.OK, Status.NOT_PRIMARY)


def test_other_buckets_and_the_disk_need_no_lease(engine: Engine, caller: Caller) -> None:
    leased(engine, LONG_AGO, 4)
    engine.set_commit_points(3, [engine.stream.disk])
    engine.stream.disk.advance(1 << 40)
    assert is_answered(caller, key_of(engine, 3))
    assert is_answered(caller, key_of(engine, 2))
    with pytest.raises(ValueError, match="nobody leases it"):
        engine.stream.disk.lease(in_s(1000))
    with pytest.raises(ValueError, match="for as long as there is a stream"):
        engine.stream.disk.abandon()


def test_each_lease_must_hold(engine: Engine, caller: Caller) -> None:
    one, other, third = (engine.open_commit_point(name, 1 << 40, in_s(1000)) for name in ("one", "other", "third"))
    engine.set_commit_points(4, [one, other, third, engine.stream.disk])
    engine.stream.disk.advance(1 << 40)
    key = key_of(engine, 4)
    assert is_answered(caller, key)
    for point in (one, other, third):
        point.lease(in_s(-0.001))
        assert read(caller, key) is Status.NOT_COMMITTED
        point.lease(HELD_FOR_EVER)
        assert read(caller, key) is Status.OK


def test_a_lease_says_nothing_of_what_is_acknowledged(engine: Engine, caller: Caller) -> None:
    point = engine.open_commit_point("leased", engine.stream.head, in_s(1000))
    engine.set_commit_points(4, [point])
    assert not is_answered(caller, key_of(engine, 4))
    point.advance(engine.stream.head)
    assert read(caller, key_of(engine, 4)) is Status.OK


def test_what_is_older_than_what_pends_needs_the_lease(engine: Engine, caller: Caller) -> None:
    old = key_of(engine, 4)
    caller.set(old, b"value")
    point = engine.open_commit_point("leased", engine.stream.head, in_s(1000))
    engine.set_commit_points(4, [point])
    assert not is_answered(caller, key_of(engine, 4, 1))
    assert read(caller, old) is Status.OK
    point.lease(LONG_AGO)
    assert read(caller, old) is Status.NOT_COMMITTED


def test_a_lease_runs_out(engine: Engine, caller: Caller) -> None:
    leased(engine, in_s(0.2), 4)
    key = key_of(engine, 4)
    wait_until(lambda: read(caller, key, 10) is Status.NOT_COMMITTED, "the lease to run out")


def test_who_waits_goes_on_when_the_lease_is_renewed(engine: Engine) -> None:
    point = leased(engine, LONG_AGO, 4)
    asking = [
        Task(lambda: Caller(engine).ask(Opcode.GET, key_of(engine, 4), budget_ms=LONG_MS)),
        Task(lambda: Caller(engine).ask(Opcode.SET, 0, 0, key_of(engine, 4, 1), b"value", budget_ms=LONG_MS)),
    ]
    assert_stays(lambda: not any(task.is_done for task in asking), "the wait")
    point.lease(in_s(-1))
    assert_stays(lambda: not any(task.is_done for task in asking), "the wait")
    point.lease(in_s(1000))
    assert [task.result().status for task in asking] == [Status.NOT_FOUND, Status.OK]


def test_a_lease_that_runs_out_while_something_else_is_waited_for(engine: Engine) -> None:
    """The clock is read behind the wait: that the lease held when it began is worth nothing."""
    point = engine.open_commit_point("leased", engine.stream.head, in_s(0.1))
    engine.set_commit_points(4, [point])
    writing = Task(lambda: Caller(engine).ask(Opcode.SET, 0, 0, key_of(engine, 4), b"value", budget_ms=LONG_MS))
    wait_until(lambda: engine.stats()["items"]["items"] == 1, "the change")
    ended = in_s(0.1)
    wait_until(lambda: in_s(0) > ended, "the lease to run out")
    point.advance(engine.stream.head)
    assert_stays(lambda: not writing.is_done, "the wait")
    point.lease(in_s(1000))
    assert writing.result().status is Status.OK


def test_a_batch_over_buckets_with_and_without_a_lease(engine: Engine) -> None:
    leased(engine, LONG_AGO, 1)
    leased(engine, in_s(1000), 2)
    asked = [(Opcode.GET, (key_of(engine, 1),)), (Opcode.GET, (key_of(engine, 2),)), (Opcode.GET, (key_of(engine, 3),))]
    with Served(engine) as served:
        served.peer.sendall(
            b"".join(encode_request(op, number, 50, encode_payload(op, values)) for number, (op, values) in enumerate(asked))
        )
        replies = [served.reply().status for _ in asked]
    assert replies == [Status.NOT_COMMITTED, Status.NOT_FOUND, Status.NOT_FOUND]


def test_a_flush_needs_the_leases(engine: Engine, caller: Caller) -> None:
    caller.set(key_of(engine, 1), b"value")
    point = leased(engine, LONG_AGO, 4)
    with pytest.raises(RequestRefused) as refusal:
        engine.flush(soon())
    assert refusal.value.status is Status.NOT_COMMITTED
    point.lease(in_s(1000))
    assert engine.flush(soon(LONG_MS)) == 0


def test_waiting_by_name_takes_the_lease_in(engine: Engine) -> None:
    point = leased(engine, LONG_AGO)
    wait = Wait(1 << point.number, 0)
    assert engine.stream.wait_committed(wait, soon()) is StreamEnd.TIMED_OUT
    waiting = Task(lambda: engine.stream.wait_committed(wait, soon(LONG_MS)))
    point.lease(in_s(1000))
    assert waiting.result() is StreamEnd.REACHED


@pytest.mark.parametrize("way", ["close", "lease for ever"])
def test_the_end_of_a_lease_holds_for_its_point_alone(engine: Engine, caller: Caller, way: str) -> None:
    """Whoever gets the number, and whoever waits for a point that was closed, is not measured by it."""
    point = leased(engine, LONG_AGO, 4)
    waiting = Task(lambda: Caller(engine).ask(Opcode.GET, key_of(engine, 4), budget_ms=LONG_MS))
    assert_stays(lambda: not waiting.is_done, "the wait")
    if way == "close":
        point.close()
        point.lease(LONG_AGO)
    else:
        point.lease(HELD_FOR_EVER)
    assert waiting.result().status is Status.NOT_FOUND
    if way == "close":
        engine.set_commit_points(4, [number_again(engine, point.number)])
    assert read(caller, key_of(engine, 4)) is Status.NOT_FOUND


def number_again(engine: Engine, number: int, position: int = 1 << 40) -> CommitPoint:
    """The next point that is given this number."""
    for _ in range(2 * POINTS_MAX):
        other = engine.open_commit_point("other", position)
        if other.number == number:
            return other
        other.close()
    raise AssertionError("it is given to nobody")


# --- parked by a shared worker


def test_a_reply_without_a_lease_is_parked(sharing: Sharing) -> None:
    engine, key = sharing.engine, b"key"
    point = leased(engine, LONG_AGO, zlib.crc32(key) % engine.config.buckets)
    parked, other = sharing.connect(), sharing.connect()
    parked.ask(Opcode.GET, key, budget_ms=LONG_MS)
    for _ in range(3):
        other.ask(Opcode.GET, key_of(engine, (zlib.crc32(key) + 1) % 8), budget_ms=LONG_MS)
        assert other.reply().status == Status.NOT_FOUND, "nobody else waits"
        assert parked.is_quiet()
    point.lease(in_s(1000))
    assert parked.reply().status == Status.NOT_FOUND


def test_one_whose_lease_runs_out_while_it_is_parked_stays(sharing: Sharing) -> None:
    engine, key = sharing.engine, b"key"
    point = engine.open_commit_point("leased", engine.stream.head, in_s(0.1))
    engine.set_commit_points(zlib.crc32(key) % engine.config.buckets, [point])
    ended = in_s(0.1)
    peers = [sharing.connect(), sharing.connect()]
    for peer, budget_ms in zip(peers, (400, LONG_MS), strict=True):
        peer.ask(Opcode.SET, 0, 0, key, b"value", budget_ms=budget_ms)
    wait_until(lambda: engine.stats()["items"]["sets"] == 2, "the changes")
    wait_until(lambda: in_s(0) > ended, "the lease to run out")
    point.advance(engine.stream.head)
    assert_stays(peers[1].is_quiet, "the wait")
    assert peers[0].reply().status == Status.NOT_COMMITTED
    point.lease(in_s(1000))
    assert peers[1].reply().status == Status.OK


def test_who_is_parked_for_what_is_abandoned_is_answered(sharing: Sharing) -> None:
    engine = sharing.engine
    lost, kept = (engine.open_commit_point(name, engine.stream.head) for name in ("lost", "kept"))
    keys = {point: key_of(engine, bucket) for bucket, point in ((1, lost), (2, kept))}
    engine.set_commit_points(1, [lost])
    engine.set_commit_points(2, [kept])
    both, one = sharing.connect(), sharing.connect()
    values = [(0, 0, key, b"value") for key in keys.values()]
    frames = [encode_request(Opcode.SET, 1, LONG_MS, encode_payload(Opcode.SET, each)) for each in values]
    both.peer.sendall(b"".join(frames))  # in one piece: who is parked is read from no further
    one.ask(Opcode.SET, 0, 0, keys[lost], b"value", budget_ms=LONG_MS)
    wait_until(lambda: engine.stats()["items"]["sets"] == 3, "the changes")
    lost.abandon()
    assert one.reply().status == Status.NOT_COMMITTED
    assert_stays(both.is_quiet, "the wait for the other")
    kept.advance(engine.stream.head)
    assert [both.reply().status for _ in keys] == [Status.NOT_COMMITTED, Status.OK]


# --- abandoned


@pytest.mark.parametrize("until_ns", [HELD_FOR_EVER, 1 << 62])
def test_what_waits_for_an_abandoned_point_ends_at_once(engine: Engine, until_ns: int) -> None:
    point = engine.open_commit_point("link", engine.stream.head, until_ns)
    engine.set_commit_points(4, [point, engine.stream.disk])
    writing = [
        Task(lambda: Caller(engine).ask(Opcode.SET, 0, 0, key_of(engine, 4), b"value", budget_ms=LONG_MS)) for _ in range(3)
    ]
    wait_until(lambda: engine.stats()["items"]["sets"] == 3, "the changes")
    point.abandon()
    assert [task.result().status for task in writing] == [Status.NOT_COMMITTED] * 3
    wait = Wait(1 << point.number, 0)
    assert engine.stream.wait_committed(wait, soon(LONG_MS)) is StreamEnd.TIMED_OUT, "also what it had come to"


def test_no_bucket_waits_for_an_abandoned_point(engine: Engine, caller: Caller) -> None:
    point, other = (engine.open_commit_point(name, engine.stream.head) for name in ("abandoned", "other"))
    engine.set_commit_points(4, [point])
    engine.set_commit_points(5, [point, other])
    point.abandon()
    point.abandon()
    point.close()
    point.advance(1 << 40)
    point.lease(in_s(1000))
    assert is_answered(caller, key_of(engine, 4))
    assert not is_answered(caller, key_of(engine, 5)), "the other it still waits for"
    assert engine.stream.wait_committed(Wait(1 << point.number, 0), soon(LONG_MS)) is StreamEnd.TIMED_OUT
    with pytest.raises(ValueError, match="the commit point abandoned is closed"):
        engine.set_commit_points(4, [point])


def test_what_waits_for_others_in_the_same_batch_goes_on_waiting(engine: Engine) -> None:
    lost, kept = (engine.open_commit_point(name, engine.stream.head) for name in ("lost", "kept"))
    engine.set_commit_points(1, [lost])
    engine.set_commit_points(2, [kept])
    frames = [
        encode_request(Opcode.SET, bucket, LONG_MS, encode_payload(Opcode.SET, (0, 0, key_of(engine, bucket), b"value")))
        for bucket in (1, 2, 1)
    ]
    with Served(engine) as served:
        served.peer.sendall(b"".join(frames))
        wait_until(lambda: engine.stats()["items"]["sets"] == 3, "the changes")
        lost.abandon()
        served.peer.settimeout(0.03)
        with pytest.raises(TimeoutError):
            served.reply()
        served.peer.settimeout(20)
        kept.advance(engine.stream.head)
        assert [served.reply().status for _ in frames] == [Status.NOT_COMMITTED, Status.OK, Status.NOT_COMMITTED]


def test_the_number_of_an_abandoned_point_rests_and_is_given_again(engine: Engine, caller: Caller) -> None:
    point = engine.open_commit_point("link", engine.stream.head)
    engine.set_commit_points(4, [point])
    point.abandon()
    numbers = []
    for _ in range(POINTS_MAX - 2):
        other = engine.open_commit_point("other", 0)
        numbers.append(other.number)
        other.close()
    assert point.number not in numbers
    again = number_again(engine, point.number, 7)
    assert again.position == 7
    engine.set_commit_points(4, [again])
    writing = Task(lambda: Caller(engine).ask(Opcode.SET, 0, 0, key_of(engine, 4), b"value", budget_ms=LONG_MS))
    assert_stays(lambda: not writing.is_done, "the wait")
    again.advance(1 << 40)
    assert writing.result().status is Status.OK
    point.abandon()
    assert is_answered(caller, key_of(engine, 4)), "its former owner has nothing to say"


# --- an OPEN


@pytest.fixture
def heir(engine_factory: EngineFactory) -> Engine:
    """One bucket with two items that became primary here, and of whose OPEN a link has not told."""
    engine = engine_factory(opened=0, buckets=1)
    first = make_sequence(1, 0)
    engine.apply(begin(first) + end(first, 0))
    engine.apply(keyed(Kind.SET, first + 1, b"one") + keyed(Kind.SET, first + 2, b"two"))
    engine.set_commit_points(0, [engine.open_commit_point("link", 0)])
    engine.open_buckets([0], 2, 1, "n2")
    return engine


def test_until_its_open_is_committed_a_bucket_reveals_nothing_older(heir: Engine) -> None:
    caller = Caller(heir)
    asked = [
        (Opcode.GET, (b"one",)),
        (Opcode.GET, (b"none",)),
        (Opcode.INSPECT, (b"two",)),
        (Opcode.GET_WITH_TTL, (b"two",)),
        (Opcode.GET_WITH_TTL, (b"none",)),
        (Opcode.ADD, (0, 0, b"one", b"new")),
        (Opcode.CAS_VERSION, (1, 0, 0, b"one", b"new")),
        (Opcode.DELETE, (b"none",)),
    ]
    for opcode, values in asked:
        assert caller.ask(opcode, *values, budget_ms=SHORT_MS).status is Status.NOT_COMMITTED, opcode
    assert caller.ask(Opcode.GET_MANY, (b"one",), (b"two",), budget_ms=SHORT_MS).status is Status.NOT_COMMITTED


def test_what_it_reveals_waits_for_the_open_and_no_longer(engine_factory: EngineFactory) -> None:
    engine = engine_factory(opened=0, buckets=1)
    first = make_sequence(1, 0)
    engine.apply(begin(first) + end(first, 0) + keyed(Kind.SET, first + 1, b"one"))
    link = engine.open_commit_point("link", 0)
    engine.set_commit_points(0, [link])
    engine.open_buckets([0], 2, 1, "n2")
    opened_at = engine.stream.head
    caller = Caller(engine)
    assert caller.ask(Opcode.SET, 0, 0, b"two", b"value", budget_ms=SHORT_MS).status is Status.NOT_COMMITTED
    reading = Task(lambda: Caller(engine).ask(Opcode.GET, b"one", budget_ms=LONG_MS))
    link.advance(opened_at - 1)
    assert_stays(lambda: not reading.is_done, "the wait")
    link.advance(opened_at)
    assert reading.result().status is Status.OK
    assert read(caller, b"one") is Status.OK
    assert read(caller, b"two") is Status.NOT_COMMITTED
    link.advance(EVERYTHING)
    assert read(caller, b"two") is Status.OK


def test_it_waits_for_the_open_however_much_comes_behind_it(heir: Engine) -> None:
    caller = Caller(heir)
    for number in range(500):
        caller.ask(Opcode.SET, 0, 0, b"k%d" % number, b"value", budget_ms=1)
        if number % 50 == 0:
            assert caller.ask(Opcode.GET, b"one", budget_ms=1).status is Status.NOT_COMMITTED


def test_the_records_of_ones_own_are_no_open(engine: Engine, caller: Caller) -> None:
    """What is older than the oldest that is pending was committed, where that is no OPEN."""
    old = key_of(engine, 4)
    caller.set(old, b"value")
    engine.set_commit_points(4, [engine.open_commit_point("link", engine.stream.head)])
    assert not is_answered(caller, key_of(engine, 4, 1))
    assert read(caller, old) is Status.OK


def test_a_bucket_that_was_primary_before_begins_with_its_new_open(engine_factory: EngineFactory) -> None:
    """What pended when it was primary the last time is no longer its to wait for, and does not stand before its OPEN."""
    engine = engine_factory(buckets=1)
    caller = Caller(engine)
    caller.set(b"one", b"value")
    link = engine.open_commit_point("link", engine.stream.head)
    engine.set_commit_points(0, [link])
    assert not is_answered(caller, b"two")
    engine.set_state(0, BucketState.FROZEN)
    engine.set_state(0, BucketState.BACKUP)
    engine.set_commit_points(0, [link])
    engine.open_buckets([0], 2, 1, "n1")
    assert read(caller, b"one") is Status.NOT_COMMITTED
    link.advance(engine.stream.head)
    assert read(caller, b"one") is Status.OK


@pytest.mark.parametrize("commit", [False, True])
@pytest.mark.parametrize("then", [BucketState.BACKUP, BucketState.ABSENT])
def test_who_is_primary_no_more_waits_for_what_a_new_bucket_waits_for(
    engine_factory: EngineFactory, commit: bool, then: BucketState
) -> None:
    engine = engine_factory(buckets=1, commit=commit)
    engine.set_commit_points(0, [engine.open_commit_point("link", 0, LONG_AGO)])
    engine.set_state(0, BucketState.FROZEN)
    engine.set_state(0, then)
    engine.open_buckets([0], 2, 1, "n1")
    caller = Caller(engine)
    assert is_answered(caller, b"key") is not commit
    engine.stream.disk.advance(engine.stream.head)
    assert read(caller, b"key") is Status.OK


def test_the_disk_is_number_0() -> None:
    assert DISK == 0, "bits above it are links, whose leases count"
