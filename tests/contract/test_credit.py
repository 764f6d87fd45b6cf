"""Credit: a change uses no more of a backup's room than that has lent; nothing is lent twice; debts are worked off."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rcache.cluster.bucket_state import BucketState
from rcache.engine.contract import Engine, Gate
from rcache.engine.credit import credit_cost
from rcache.records.record import Cause, Kind, Record, decode, heads
from rcache_client.wire.frames import Request
from rcache_client.wire.opcodes import Opcode, Status
from tests.contract.conftest import EngineFactory
from tests.contract.harness import EVERYTHING, Caller, Task, drain, run_all, stat, wait_until
from tests.contract.test_windows import EPOCH, PREFIX, Linked, Peer

VALUE = bytes(500)
KEY_BYTES = 6
COST = credit_cost(KEY_BYTES, len(VALUE))
EVERY = range(8)


def keys_in(buckets: range, count: int, begin: int = 0) -> list[bytes]:
    """Keys of these buckets, all of one length."""
    found: list[bytes] = []
    number = begin
    while len(found) < count:
        key = b"k%05d" % number
        if zlib.crc32(key) % 8 in buckets:
            found.append(key)
        number += 1
    return found


class Backing:
    """A peer that takes all frames and answers each with what `room` says it lends beyond it."""

    def __init__(self, linked: Linked, room: Callable[[Request], int]) -> None:
        self.linked = linked
        self.room = room
        self.epoch = EPOCH
        self.frames: list[Request] = []
        self.peer: Peer = linked.connect()
        linked.serve()
        self._task = Task(self._run)

    def _run(self) -> None:
        try:
            while True:
                request = self.peer.next()
                self.frames.append(request)
                room = self.room(request)
                self.peer.answer(request.request_id, payload=(room & (1 << 64) - 1).to_bytes(8, "big"), epoch=self.epoch)
        except (AssertionError, OSError):
            return  # the connection has ended

    def close(self) -> None:
        self.linked.cut()
        self._task.result()

    @property
    def records(self) -> list[Record]:
        return [record for frame in self.frames for record in records_of(frame)]


def records_of(frame: Request) -> list[Record]:
    body = frame.payload[len(PREFIX) :]
    return [decode(body, head.start, head.end) for head in heads(body)]


class Passing(Linked):
    """A window whose answers are taken in with what they say."""

    def _receive(self) -> None:
        while data := self.window.receive(self.connection, mid_frame=False):
            for at in range(0, len(data), 24):
                request_id = int.from_bytes(data[at + 8 : at + 12], "big")
                epoch, room = (
                    int.from_bytes(data[at + 12 : at + 16], "big"),
                    int.from_bytes(data[at + 16 : at + 24], "big", signed=True),
                )
                self.window.take(request_id, epoch, room)


class Lending:
    """An engine whose buckets have a backup that says it lends `room` beyond each frame."""

    def __init__(self, engine: Engine, room: int = EVERYTHING) -> None:
        self.engine = engine
        self.linked = Passing(engine)
        self.room = room
        self.backing = Backing(self.linked, lambda _request: self.room)
        self.linked.wait()
        self.caller = Caller(engine)

    def learn(self, key: bytes = b"k99999") -> None:
        """A change whose answer says what is lent."""
        self.caller.set(key, VALUE, budget_ms=60_000)

    @property
    def account(self) -> dict[str, int]:
        account: dict[str, int] = self.engine.stats()["credit"]["backups"]["peer"]
        return account

    def close(self) -> None:
        self.backing.close()
        self.linked.close()


def ask_set(caller: Caller, key: bytes, value: bytes = VALUE, budget_ms: int = 60_000) -> Any:
    return caller.ask(Opcode.SET, 0, 0, key, value, budget_ms=budget_ms)


@pytest.fixture
def lending(engine_factory: EngineFactory) -> Iterator[Callable[..., Lending]]:
    made: list[Lending] = []

    def make(room: int = EVERYTHING, **config: Any) -> Lending:
        made.append(Lending(engine_factory(**config), room))
        return made[-1]

    yield make
    for one in made:
        one.close()


# --- a primary


def test_without_eviction_what_has_no_credit_is_refused_before_anything_is_done(lending: Callable[..., Lending]) -> None:
    one = lending(evict=False)
    kept, *more = keys_in(range(8), 20)
    ask_set(one.caller, kept)
    one.room = 3 * COST
    one.learn()
    for key in more[:3]:
        one.room -= COST  # what is left beyond this one
        assert ask_set(one.caller, key).status is Status.OK
    wait_until(lambda: one.account["left"] == 0, "the credit to be used")
    head = one.engine.stream.head
    status, (reason,) = ask_set(one.caller, more[3])
    assert status is Status.NO_ROOM
    assert reason == "the backup peer has no room for it (it lends 0 bytes more), and eviction is switched off (--no-evict)"
    assert one.engine.stream.head == head
    assert one.caller.value(more[3]) is None
    assert stat(one.engine, "credit", "refused_for_backup") == 1
    assert ask_set(one.caller, kept, VALUE[:-1] + b"x").status is Status.OK, "what does not grow needs no room"
    assert one.caller.delete(kept).status is Status.OK
    assert ask_set(one.caller, kept).status is Status.NO_ROOM, "what was deleted is the backup's to lend"


def test_who_is_refused_has_the_peer_asked_and_goes_on_once_it_has_room(lending: Callable[..., Lending]) -> None:
    one = lending(evict=False)
    one.room = 0
    one.learn()
    (key,) = keys_in(range(8), 1)
    assert ask_set(one.caller, key).status is Status.NO_ROOM
    wait_until(lambda: any(not records_of(frame) for frame in one.backing.frames), "an empty frame")
    one.room = COST

    def is_taken() -> bool:
        return bool(ask_set(one.caller, key).status is Status.OK)

    wait_until(is_taken, "the answer to a question")


@pytest.mark.parametrize("evict", [True, False])
def test_a_peer_that_says_it_has_more_than_there_can_be(lending: Callable[..., Lending], evict: bool) -> None:
    one = lending(evict=evict)
    kept, *more = keys_in(range(8), 10)
    ask_set(one.caller, kept)  # something is used: what is added to the largest number there is came round to the least
    one.room = (1 << 63) - 2
    one.learn()
    for key in more:
        assert ask_set(one.caller, key).status is Status.OK
    assert one.account["debt"] == 0
    assert one.engine.stats()["credit"]["evicted_for_backup"] == 0
    assert all(one.caller.value(key) is not None for key in [kept, *more])


def test_a_peer_that_says_it_lacks_more_than_there_can_be(lending: Callable[..., Lending]) -> None:
    one = lending(evict=False)
    kept, key = keys_in(range(8), 2)
    ask_set(one.caller, kept)
    one.room = -(1 << 63)
    one.learn()
    assert ask_set(one.caller, key).status is Status.NO_ROOM
    assert one.account["debt"] > EVERYTHING
    one.room = COST
    wait_until(lambda: bool(ask_set(one.caller, key).status is Status.OK), "the answer to a question")


def test_with_eviction_only_what_that_backup_holds_makes_room(engine_factory: EngineFactory) -> None:
    engine = engine_factory()
    held, free = range(4), range(4, 8)
    linked = Passing(engine)
    room = [EVERYTHING]
    backing = Backing(linked, lambda _request: room[0])
    caller = Caller(engine)
    reader = engine.stream.open_reader("all", holds=True)
    other = engine.open_commit_point("other", engine.stream.head)
    other.advance(EVERYTHING)
    for bucket in EVERY:
        engine.set_commit_points(bucket, [linked.point] if bucket in held else [other])
    old, elsewhere = keys_in(held, 30), keys_in(free, 30)
    for key in elsewhere + old:  # those elsewhere were not used for longest
        caller.set(key, VALUE, budget_ms=60_000)
    room[0] = 0
    new = keys_in(held, 15, begin=50_000)
    caller.set(old[-1], bytes(499), budget_ms=60_000)
    wait_until(lambda: engine.stats()["credit"]["backups"]["peer"]["left"] == 0, "the peer to be full")
    drain(reader)
    for key in new:
        caller.set(key, VALUE, budget_ms=60_000)
    records = drain(reader)
    gone = [record for record in records if record.kind == Kind.REMOVE]
    assert {record.cause for record in gone} == {Cause.EVICTED}
    assert {record.bucket for record in gone} <= set(held)
    assert len(gone) >= len(new) - 1
    assert_never_above(records, 0)
    assert all(caller.value(key) is not None for key in elsewhere)
    assert stat(engine, "credit", "evicted_for_backup") == len(gone)
    reader.close()
    backing.close()
    linked.close()
    other.close()


def assert_never_above(records: list[Record], most: int) -> None:
    """What these add to the backup is at no place of the stream more than that."""
    grown = 0
    for record in records:
        grown += COST if record.kind == Kind.SET else -COST
        assert grown <= most + 1, "an eviction stands before what it makes room for"


def test_the_allowance_is_never_overdrawn_by_many_writers(engine_factory: EngineFactory) -> None:
    """The peer says once what it lends, and then nothing."""
    engine = engine_factory(evict=False)
    linked = Passing(engine)
    said: list[int] = []
    lent = 40 * COST
    peer = linked.connect()
    linked.wait()
    linked.serve()
    learning = Task(lambda: Caller(engine).set(b"k99999", VALUE, budget_ms=60_000))
    peer.answer(peer.next().request_id, payload=lent.to_bytes(8, "big"))
    learning.result()
    begun = engine.stream.head
    reader = engine.stream.open_reader("all", holds=True)

    def write(number: int) -> Callable[[], None]:
        def run() -> None:
            caller = Caller(engine)
            keys = keys_in(range(8), 30, begin=10_000 * number)
            said.extend(ask_set(caller, key, budget_ms=20).status for key in keys)

        return run

    run_all([write(number) for number in range(4)])
    placed = drain(reader)
    assert engine.stream.head > begun
    assert len(placed) == 40, "all of what is lent, and no more"
    assert said.count(Status.NO_ROOM) == 80
    reader.close()
    linked.close()


def test_what_is_lent_counts_from_the_frame_that_is_answered(engine_factory: EngineFactory) -> None:
    """What came behind it has used of it already."""
    engine = engine_factory(evict=False)
    linked = Passing(engine)
    peer = linked.connect()
    linked.wait()
    linked.serve()
    settings, frames = [], []
    for key in keys_in(range(8), 3):
        settings.append(Task(lambda key=key: ask_set(Caller(engine), key)))
        frames.append(peer.next())
    assert [len(records_of(frame)) for frame in frames] == [1, 1, 1]
    peer.answer(frames[0].request_id, payload=(10 * COST).to_bytes(8, "big"))
    assert settings[0].result().status is Status.OK
    assert engine.stats()["credit"]["backups"]["peer"]["left"] == 8 * COST
    for frame in frames[1:]:
        peer.answer(frame.request_id)
    assert [setting.result().status for setting in settings[1:]] == [Status.OK, Status.OK]
    linked.close()


def test_a_debt_is_worked_off_without_a_write(lending: Callable[..., Lending]) -> None:
    one = lending()
    keys = keys_in(range(8), 40)
    for key in keys:
        one.caller.set(key, VALUE, budget_ms=60_000)
    one.room = -10 * COST
    one.learn()
    wait_until(lambda: one.account["debt"] == 10 * COST, "the debt to be known")
    assert one.linked.point.debt == 10 * COST
    assert one.engine.relieve(4) == 4
    assert one.account["debt"] <= 10 * COST
    one.room = 0

    def is_over() -> bool:
        one.engine.relieve(100)
        return one.linked.point.debt == 0

    wait_until(is_over, "the debt to be worked off")
    assert stat(one.engine, "items", "evicted") >= 10


def test_a_change_in_debt_evicts_twice_what_it_uses(lending: Callable[..., Lending]) -> None:
    one = lending()
    for key in keys_in(range(8), 100):
        one.caller.set(key, VALUE, budget_ms=60_000)
    one.room = -50 * COST
    one.learn()
    wait_until(lambda: one.account["debt"] > 0, "the debt to be known")
    one.caller.set(b"k88888", VALUE, budget_ms=60_000)
    assert 2 <= stat(one.engine, "items", "evicted") <= 3


def test_without_eviction_a_debt_stays(lending: Callable[..., Lending]) -> None:
    one = lending(evict=False)
    one.room = -COST
    one.learn()
    wait_until(lambda: one.account["debt"] == COST, "the debt to be known")
    assert one.engine.relieve(100) == 0
    assert stat(one.engine, "items", "items") == 1


def test_on_another_connection_what_was_under_way_says_nothing(engine_factory: EngineFactory) -> None:
    engine = engine_factory(evict=False)
    linked = Passing(engine)
    linked.wait()
    linked.connect()
    linked.serve()
    setting = Task(lambda: ask_set(Caller(engine), b"k00001"))
    wait_until(lambda: linked.window.counts().waiting == 1, "the frame")
    linked.cut()
    peer = linked.connect()
    linked.serve()
    again = peer.next()
    peer.answer(again.request_id - 1, payload=(5 * COST).to_bytes(8, "big"))  # of the connection before
    peer.answer(again.request_id, payload=COST.to_bytes(8, "big"))
    assert setting.result().status is Status.OK
    account = engine.stats()["credit"]["backups"]["peer"]
    assert (account["room"], account["left"]) == (COST, COST)
    linked.close()


def test_the_room_of_an_answer_by_a_newer_view_counts(lending: Callable[..., Lending]) -> None:
    """It confirms nothing that is waited for; what room the peer has is so by any view."""
    one = lending(room=5 * COST, evict=False)
    one.backing.epoch = EPOCH + 1
    one.learn()
    wait_until(lambda: one.account["left"] == 5 * COST, "the room to be known")
    one.caller.set(b"k00001", VALUE)
    wait_until(lambda: one.account["left"] == 5 * COST, "the room to be known")


def test_so_does_that_of_an_answer_to_a_question(engine_factory: EngineFactory) -> None:
    engine = engine_factory(evict=False)
    linked = Passing(engine)
    linked.wait()
    peer = linked.connect()
    for epoch, room in ((EPOCH + 1, 3 * COST), (EPOCH, 2 * COST)):
        assert engine.stream.begin_moment(1 << linked.point.number) > 0
        assert linked.window.run(0.0) is None
        question = peer.next()
        assert records_of(question) == []
        assert linked.window.take(question.request_id, epoch, room) is False
        assert engine.stats()["credit"]["backups"]["peer"]["left"] == room
    linked.close()


def test_another_point_of_the_peer_goes_on_with_what_is_left(lending: Callable[..., Lending]) -> None:
    one = lending(room=5 * COST, evict=False)
    one.learn()
    wait_until(lambda: one.account["left"] == 5 * COST, "the room to be known")
    point = one.engine.open_commit_point("peer", one.engine.stream.head)
    old, one.linked.point = one.linked.point, point
    one.linked.window.set_point(point)
    one.linked.wait()
    old.abandon()
    assert one.account["left"] == 5 * COST


def test_a_bucket_without_a_backup_needs_no_credit(lending: Callable[..., Lending]) -> None:
    one = lending(evict=False)
    one.room = 0
    one.learn()
    one.engine.set_commit_points(3, [])
    for key in keys_in(range(3, 4), 10):
        one.caller.set(key, VALUE)


# --- a backup

SOURCES = (1, 2)


class Shared:
    """A backup of two primaries, over real windows: four buckets of each."""

    def __init__(self, make: EngineFactory, backup_bytes: int, *, evict: bool) -> None:
        self.backup: Engine = make(opened=0, memory_bytes=backup_bytes, evict=evict)
        self.gates: list[Gate] = [self.backup.open_gate(source, None) for source in SOURCES]
        self.primaries: list[Engine] = [make(evict=evict) for _ in SOURCES]
        self.held = [range(4), range(4, 8)]
        self.linked: list[Passing] = []
        self.backings: list[Backing] = []
        self.over: list[tuple[int, int]] = []
        for number, source in enumerate(SOURCES):
            for bucket in self.held[number]:
                self.backup.follow(bucket, source)
                self.backup.apply(b"".join(self.primaries[number].copy_bucket(bucket)), source)
            linked = Passing(self.primaries[number])
            linked.window.choose(list(self.held[number]))
            self.linked.append(linked)
            self.backings.append(Backing(linked, self._taker(number)))
            for bucket in self.held[number]:
                self.primaries[number].set_commit_points(bucket, [linked.point])

    def _taker(self, number: int) -> Callable[[Request], int]:
        def take(request: Request) -> int:
            with self.gates[number]:
                self.backup.apply(request.payload[len(PREFIX) :], SOURCES[number])
            used, limit = used_of(self.backup)
            if used > limit:
                self.over.append((used, limit))
            return self.gates[number].lend()

        return take

    def fill(self, number: int, begin: int = 0, count: int = 10_000) -> list[bytes]:
        """Write until it is refused. Returns what was taken."""
        caller, taken = Caller(self.primaries[number]), []
        for key in keys_in(self.held[number], count, begin):
            if ask_set(caller, key).status is not Status.OK:
                break
            taken.append(key)
        return taken

    def close(self) -> None:
        for backing, linked in zip(self.backings, self.linked, strict=True):
            backing.close()
            linked.close()


def used_of(engine: Engine) -> tuple[int, int]:
    memory = engine.stats()["memory"]
    if "pages" in memory:
        return memory["pages_in_use"] * memory["page_bytes"], memory["pages"] * memory["page_bytes"]
    return memory["used_bytes"], memory["limit_bytes"]


@pytest.fixture
def shared(engine_factory: EngineFactory) -> Iterator[Callable[..., Shared]]:
    made: list[Shared] = []

    def make(backup_bytes: int = 1 << 20, *, evict: bool) -> Shared:
        made.append(Shared(engine_factory, backup_bytes, evict=evict))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_two_primaries_fill_a_backup_and_not_more(shared: Callable[..., Shared]) -> None:
    both = shared(evict=False)
    taken = run_all([lambda: both.fill(0), lambda: both.fill(1)])
    assert all(len(keys) < 10_000 for keys in taken)
    assert sum(map(len, taken)) * COST > (1 << 20) * 0.3
    assert both.over == []
    assert stat(both.backup, "items", "items") == sum(map(len, taken)), "what was acknowledged is there"


def test_with_eviction_two_primaries_go_on_and_the_backup_stays_within_its_limit(shared: Callable[..., Shared]) -> None:
    both = shared(evict=True)
    for number in range(2):  # each is lent something before the other has it all
        assert len(both.fill(number, begin=90_000, count=1)) == 1
    taken = run_all([lambda: both.fill(0, count=3000), lambda: both.fill(1, count=3000)])
    assert [len(keys) for keys in taken] == [3000, 3000]
    assert both.over == []
    assert sum(stat(primary, "credit", "evicted_for_backup") for primary in both.primaries) > 1000
    held = sum(stat(primary, "items", "items") for primary in both.primaries)
    wait_until(lambda: stat(both.backup, "items", "items") == held, "the last evictions")


def test_what_one_primary_deletes_the_other_may_use(shared: Callable[..., Shared]) -> None:
    both = shared(evict=False)
    mine = both.fill(0)
    assert len(both.fill(1)) < len(mine)
    for key in mine:
        Caller(both.primaries[0]).delete(key, budget_ms=60_000)

    def goes_on() -> bool:
        return len(both.fill(1, begin=70_000, count=len(mine) // 2)) == len(mine) // 2

    wait_until(goes_on, "the room that was freed")
    assert both.over == []


def test_nothing_is_lent_twice_nor_given_to_own_items(engine_factory: EngineFactory) -> None:
    engine = engine_factory(memory_bytes=1 << 20, evict=True)
    caller = Caller(engine)
    gates = [engine.open_gate(source, None) for source in SOURCES]
    told = [gate.lend() for gate in gates]
    assert all(room > 0 for room in told)
    for key in keys_in(range(8), 4000):
        caller.set(key, VALUE)
    assert stat(engine, "items", "evicted") > 0, "it is full"
    used, limit = used_of(engine)
    assert limit - used >= sum(told), "kept free"
    again = [gate.lend() for gate in gates]
    assert sum(again) <= limit - used
    third = engine.open_gate(3, None)
    assert third.lend() <= limit // 64, "what is left is the others'"
    third.close()
    assert all(later >= earlier for earlier, later in zip(told, again, strict=True)), "a loan shrinks by being used alone"
    gates[0].close()
    assert gates[0].lend() == 0
    for gate in gates[1:]:
        gate.close()


def test_an_idle_primary_does_not_lock_much_up(engine_factory: EngineFactory) -> None:
    engine = engine_factory(opened=0, memory_bytes=64 << 20, value_bytes_max=1000)
    gate = engine.open_gate(1, None)
    assert 0 < gate.lend() <= (64 << 20) // 32
    gate.close()


def test_over_the_limit_all_are_told_to_give_up_a_part(engine_factory: EngineFactory) -> None:
    """A copy was made here that is larger than the memory."""
    source = engine_factory()
    for key in keys_in(range(8), 3000):
        Caller(source).set(key, VALUE)
    backup = engine_factory(opened=0, memory_bytes=1 << 20)
    gates = [backup.open_gate(number, None) for number in SOURCES]
    for bucket in EVERY:
        backup.follow(bucket, 1)
        backup.apply(b"".join(source.copy_bucket(bucket)), 1)
    told = [gate.lend() for gate in gates]
    assert all(room < 0 for room in told)
    used, limit = used_of(backup)
    assert -sum(told) <= used - limit + limit // 32
    for gate in gates:
        gate.close()


def test_its_own_part_of_what_is_over_is_a_nodes_own_to_evict(engine_factory: EngineFactory) -> None:
    """Half of the items are its own; it is the half of what is over that goes, not all of what is its own."""
    source = engine_factory()
    node = engine_factory(memory_bytes=1 << 20, evict=True)
    gate = node.open_gate(1, None)
    for bucket in range(4, 8):
        node.set_state(bucket, BucketState.FROZEN)
        node.set_state(bucket, BucketState.ABSENT)
        node.follow(bucket, 1)
    for key in keys_in(range(4), 600):
        Caller(node).set(key, VALUE)
    for key in keys_in(range(4, 8), 1500):
        Caller(source).set(key, VALUE)
    for bucket in range(4, 8):
        node.apply(b"".join(source.copy_bucket(bucket)), 1)
    own = stat(node, "items", "items") - 1500
    over = used_of(node)[0] - used_of(node)[1]
    assert over > 0
    evicted = node.trim()
    assert 0 < evicted < own
    assert stat(node, "items", "items") == own + 1500 - evicted
    assert gate.lend() < 0
    gate.close()


def test_own_items_do_not_take_what_a_peer_evicts_for_its_own(engine_factory: EngineFactory) -> None:
    """Both write new keys, far more than fits, and an own change comes between any two records of the peer's: behind what it
    evicts, before what that made room for. Where memory is short an own item goes for each that comes, so the peer keeps what
    it has, and is not refused."""
    node, peer = engine_factory(memory_bytes=1 << 20, evict=True), engine_factory(evict=True)
    gate = node.open_gate(1, None)
    for bucket in range(4, 8):
        node.set_state(bucket, BucketState.FROZEN)
        node.set_state(bucket, BucketState.ABSENT)
        node.follow(bucket, 1)
        node.apply(b"".join(peer.copy_bucket(bucket)), 1)
    linked = Passing(peer)
    linked.window.choose(range(4, 8))
    caller, own = Caller(node), iter(keys_in(range(4), 20_000))

    def take(request: Request) -> int:
        body = request.payload[len(PREFIX) :]
        for head in heads(body):
            with gate:
                node.apply(body[head.start : head.end], 1)
            caller.set(next(own), VALUE)
        return gate.lend()

    backing = Backing(linked, take)
    for bucket in range(4, 8):
        peer.set_commit_points(bucket, [linked.point])
    held = []
    for at, key in enumerate(keys_in(range(4, 8), 3000)):
        Caller(peer).set(key, VALUE, budget_ms=60_000)
        if at % 50 == 0:  # the housekeeper's
            node.relieve(1000)
            node.trim()
            peer.relieve(1000)
            held.append(stat(peer, "items", "items"))
    assert stat(node, "items", "evicted") > 1000, "it is full"
    assert min(held[held.index(max(held)) :]) > max(held) // 2, "from the time that it is full on"
    backing.close()
    linked.close()
    gate.close()
