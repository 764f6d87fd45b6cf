"""The stream of what was applied as a backup: its order, its bounds, its waits, its failure."""

from __future__ import annotations

import random
import threading
import time

import pytest

from rcache.engine.change_stream import StreamEnd
from rcache.stream.applied import HURRY_BYTES, AppliedFailed, AppliedStream
from tests.contract.harness import EVERYTHING, PATIENCE_S, Task, assert_stays

FOR_EVER_NS = 1 << 62
AT_ONCE_NS = 0


class Hurries:
    """Counts how often the log was woken; with `stream` it is the log, and takes everything."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def body_of(number: int, size: int = 10) -> bytes:
    return number.to_bytes(4, "big") * (size // 4)


# --- order


def test_batches_come_out_as_they_went_in() -> None:
    stream = AppliedStream(1000)
    positions = [stream.append(body_of(number, 40), 2, AT_ONCE_NS) for number in range(5)]
    assert positions == [40, 80, 120, 160, 200]
    assert stream.head == 200
    batch = stream.take(EVERYTHING)
    assert (batch.body, batch.count, batch.position) == (b"".join(body_of(n, 40) for n in range(5)), 10, 200)
    assert (stream.take(EVERYTHING).count, stream.take(EVERYTHING).position) == (0, 200)


def test_a_batch_is_never_cut_and_one_at_least_is_taken() -> None:
    stream = AppliedStream(1000)
    for size in (100, 60, 60, 200):
        stream.append(bytes(size), 1, AT_ONCE_NS)
    taken = [stream.take(120) for _ in range(4)]
    assert [(len(batch.body), batch.count, batch.position) for batch in taken] == [
        (100, 1, 100),
        (120, 2, 220),
        (200, 1, 420),
        (0, 0, 420),
    ]


def test_what_several_append_comes_out_in_the_order_of_its_positions() -> None:
    """Seeded writers, a reader that takes odd amounts: the positions say where each batch is."""
    stream, chosen = AppliedStream(3000), random.Random(20261126)
    placed: dict[int, bytes] = {}

    def write(writer: int) -> None:
        sizes = random.Random(writer)
        for number in range(50):
            body = bytes([writer]) * (4 + sizes.randrange(400)) + number.to_bytes(4, "big")
            placed[stream.append(body, 1, FOR_EVER_NS)] = body

    tasks = [Task(lambda n=n: write(n)) for n in range(1, 4)]
    everything = b""
    deadline = time.monotonic() + PATIENCE_S
    while not (all(task.is_done for task in tasks) and len(everything) == stream.head):
        assert time.monotonic() < deadline
        everything += bytes(stream.take(chosen.randrange(1, 900)).body)
    for task in tasks:
        task.result()
    assert len(placed) == 150
    for position, body in placed.items():
        assert everything[position - len(body) : position] == body


# --- bounds


def test_a_full_stream_makes_the_next_wait_for_room() -> None:
    hurries = Hurries()
    stream = AppliedStream(100, hurries)
    stream.append(bytes(60), 1, AT_ONCE_NS)
    with pytest.raises(TimeoutError, match="the append log is behind"):
        stream.append(bytes(41), 1, AT_ONCE_NS)
    assert stream.head == 60, "what found no room was not taken in"
    stream.append(bytes(40), 1, AT_ONCE_NS)
    waiting = Task(lambda: stream.append(bytes(50), 1, FOR_EVER_NS))
    assert_stays(lambda: not waiting.is_done, "the wait for room")
    assert hurries.count >= 1, "who waits for room hurries the log"
    assert len(stream.take(10).body) == 60
    assert waiting.result() == 150


def test_more_than_it_may_hold_goes_in_alone() -> None:
    """Else a frame that is longer than the bound would never be taken in."""
    stream = AppliedStream(100)
    assert stream.append(bytes(500), 3, AT_ONCE_NS) == 500
    with pytest.raises(TimeoutError):
        stream.append(b"x", 1, AT_ONCE_NS)
    stream.take(1)
    assert stream.append(b"x", 1, AT_ONCE_NS) == 501


def test_the_wait_for_room_ends_at_its_deadline() -> None:
    stream = AppliedStream(10)
    stream.append(bytes(10), 1, AT_ONCE_NS)
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        stream.append(bytes(10), 1, time.monotonic_ns() + 20_000_000)
    assert 0.02 <= time.monotonic() - began < PATIENCE_S


# --- when the log is woken


def test_the_log_is_woken_once_there_is_much() -> None:
    hurries = Hurries()
    stream = AppliedStream(1 << 30, hurries)
    stream.append(bytes(HURRY_BYTES - 1), 1, AT_ONCE_NS)
    assert hurries.count == 0, "a little waits for the log to come by itself"
    stream.append(b"xx", 1, AT_ONCE_NS)
    assert hurries.count == 1
    stream.append(bytes(100), 1, AT_ONCE_NS)
    assert hurries.count == 1, "it is awake"


def test_with_fsync_always_the_log_is_woken_for_every_batch() -> None:
    hurries = Hurries()
    stream = AppliedStream(1 << 20, hurries, always=True)
    stream.append(b"x", 1, AT_ONCE_NS)
    stream.append(b"x", 1, AT_ONCE_NS)
    assert hurries.count == 2
    stream.set_always(False)
    stream.append(b"x", 1, AT_ONCE_NS)
    assert hurries.count == 2
    stream.set_always(True)
    stream.append(b"x", 1, AT_ONCE_NS)
    assert hurries.count == 3


# --- waits


@pytest.mark.parametrize("what", ["written", "durable"])
def test_a_wait_ends_when_the_log_has_come_so_far(what: str) -> None:
    hurries = Hurries()
    stream = AppliedStream(1000, hurries)
    position = stream.append(bytes(100), 1, AT_ONCE_NS)
    wait = stream.wait_written if what == "written" else stream.wait_durable
    move = stream.set_written if what == "written" else stream.set_durable
    assert wait(position, AT_ONCE_NS) is StreamEnd.TIMED_OUT
    waiting = Task(lambda: wait(position, FOR_EVER_NS))
    move(99)
    assert_stays(lambda: not waiting.is_done, "the wait")
    assert hurries.count >= 1, "who waits hurries the log"
    move(100)
    assert waiting.result() is StreamEnd.REACHED
    assert wait(position, AT_ONCE_NS) is StreamEnd.REACHED
    assert wait(position + 1, AT_ONCE_NS) is StreamEnd.TIMED_OUT


def test_what_is_written_is_not_on_disk_but_what_is_on_disk_is_written() -> None:
    stream = AppliedStream(1000)
    stream.append(bytes(100), 1, AT_ONCE_NS)
    stream.set_written(60)
    assert (stream.wait_written(60, AT_ONCE_NS), stream.durable) == (StreamEnd.REACHED, 0)
    assert stream.wait_durable(60, AT_ONCE_NS) is StreamEnd.TIMED_OUT
    stream.set_durable(100)
    assert (stream.wait_written(100, AT_ONCE_NS), stream.durable) == (StreamEnd.REACHED, 100)
    stream.set_durable(50)
    stream.set_written(50)
    assert (stream.wait_written(100, AT_ONCE_NS), stream.durable) == (StreamEnd.REACHED, 100), "neither goes back"


# --- failure


def test_a_failure_ends_every_wait_and_every_later_batch() -> None:
    stream = AppliedStream(100)
    position = stream.append(bytes(100), 1, AT_ONCE_NS)
    tasks = [Task(lambda: stream.wait_written(position, FOR_EVER_NS)), Task(lambda: stream.wait_durable(position, FOR_EVER_NS))]
    room = Task(lambda: stream.append(b"x", 1, FOR_EVER_NS))
    assert_stays(lambda: not any(task.is_done for task in (*tasks, room)), "the waits")
    stream.fail("no space")
    assert [task.result() for task in tasks] == [StreamEnd.FAILED] * 2
    with pytest.raises(AppliedFailed, match="no space"):
        room.result()
    stream.fail("something later")
    assert stream.failure == "no space", "the first reason is the reason"
    with pytest.raises(AppliedFailed, match="no space"):
        stream.append(b"x", 1, FOR_EVER_NS)
    assert stream.wait_durable(position, FOR_EVER_NS) is StreamEnd.FAILED
    assert stream.head == 100


def test_what_was_reached_before_the_failure_was_reached() -> None:
    stream = AppliedStream(100)
    position = stream.append(bytes(10), 1, AT_ONCE_NS)
    stream.set_durable(position)
    stream.fail("no space")
    assert stream.wait_durable(position, FOR_EVER_NS) is StreamEnd.REACHED


def test_taking_never_blocks() -> None:
    stream = AppliedStream(100)
    done = threading.Event()
    Task(lambda: (stream.take(1), done.set()))
    assert done.wait(PATIENCE_S)


# --- taps


def test_a_tap_is_given_what_was_taken_in_and_only_that() -> None:
    """By the time `append` comes back: what leads to an OPEN is there when the OPEN is placed."""
    stream, seen, other = AppliedStream(100), list[bytes](), list[bytes]()
    stream.append(b"before", 1, AT_ONCE_NS)
    stream.tap(seen.append)
    stream.tap(other.append)
    stream.append(b"one", 1, AT_ONCE_NS)
    with pytest.raises(TimeoutError):
        stream.append(bytes(100), 1, AT_ONCE_NS)
    stream.untap(other.append)
    stream.append(b"two", 1, AT_ONCE_NS)
    stream.fail("no space")
    with pytest.raises(AppliedFailed):
        stream.append(b"never", 1, AT_ONCE_NS)
    assert (seen, other) == ([b"one", b"two"], [b"one"])
    assert stream.take(EVERYTHING).body == b"beforeonetwo"


def test_where_no_log_is_kept_it_never_fills_up_and_taps_are_given_all_the_same() -> None:
    hurries, seen = Hurries(), list[bytes]()
    stream = AppliedStream(10, hurries, always=True, is_kept=False)
    stream.tap(seen.append)
    positions = [stream.append(bytes(100), 1, AT_ONCE_NS) for _ in range(3)]
    assert (positions, len(seen), hurries.count) == ([100, 200, 300], 3, 0)
    assert stream.take(EVERYTHING).count == 0
