"""What was committed and not told when its primary was lost: the heir, which applied it as a backup, tells it without a gap."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest

from rcache.cluster.bucket_state import BucketState
from rcache.records.record import Kind, make_sequence
from rcache_client.wire.feeds import FROM_NOW, UNPROVEN, NoticeKind
from rcache_client.wire.opcodes import Opcode
from tests.contract.conftest import EngineFactory
from tests.contract.harness import EVERYTHING, PATIENCE_S, Caller, Task, assert_stays, wait_until
from tests.feeds.conftest import MakeTelling
from tests.feeds.harness import Subscriber, Telling, key_of

BUCKET = 5
FOREVER_MS = 60_000
BEYOND = 1 << 40
SET_LOST = (Opcode.SET, 0, 0, key_of(BUCKET), b"lost")


class Copies:
    """One bucket at some nodes that back each other up. `primary` is None while there is none."""

    def __init__(self, nodes: list[Telling]) -> None:
        self.nodes = nodes
        self._readers = [node.engine.stream.open_reader("link", holds=True) for node in nodes]
        self.primary: Telling | None = None
        self.backups: list[Telling] = []
        self.epoch = 0

    def open(self, node: Telling) -> None:
        """In the next epoch; whoever else has the bucket follows."""
        self.epoch += 1
        self.backups = [other for other in self.nodes if other is not node and self.state(other) is BucketState.BACKUP]
        node.engine.open_buckets([BUCKET], self.epoch, 1, "n")
        self.primary = node

    @staticmethod
    def state(node: Telling) -> BucketState:
        return node.engine.state(BUCKET)

    def set(self, value: bytes) -> None:
        """At the primary; not yet anywhere else."""
        assert self.primary is not None
        self.primary.set(BUCKET, value)

    def ship(self) -> None:
        """What the primary has changed is applied at its backups."""
        assert self.primary is not None
        reader = self._readers[self.nodes.index(self.primary)]
        batch = reader.take(EVERYTHING, 0.0)
        reader.release(batch.position)
        for node in self.backups if batch.count else []:
            node.engine.apply(bytes(batch.body))
            node.applied.append(bytes(batch.body), batch.count, 0)

    def drop(self, node: Telling) -> None:
        """It was primary, and is deposed; or its copy is let go of."""
        if self.state(node) is BucketState.PRIMARY:
            node.engine.set_state(BUCKET, BucketState.FROZEN)
        node.engine.set_state(BUCKET, BucketState.ABSENT)
        self.primary = None if self.primary is node else self.primary
        self.backups = [other for other in self.backups if other is not node]

    def give_up(self) -> None:
        """In order: the primary stays as a backup of the next one."""
        assert self.primary is not None
        self.ship()
        self.primary.engine.set_state(BUCKET, BucketState.FROZEN)
        self.primary.engine.set_state(BUCKET, BucketState.BACKUP)
        self.primary = None

    def fill(self, node: Telling) -> None:
        """A copy at a node that has none."""
        assert self.primary is not None
        self.ship()
        body = b"".join(self.primary.engine.copy_bucket(BUCKET))
        node.engine.apply(body)
        node.applied.append(body, 1, 0)
        self.backups.append(node)


@pytest.fixture
def make_copies(make_telling: MakeTelling, engine_factory: EngineFactory) -> Callable[..., Copies]:
    """Three nodes, the first of them primary with `before` changes made, the others filled with that; `told`: at which a teller
    runs since."""

    def make(told: tuple[int, ...] = (1, 2), before: int = 2) -> Copies:
        copies = Copies([make_telling(engine_factory(opened=0)) for _ in range(3)])
        copies.open(copies.nodes[0])
        for number in range(before):
            copies.set(b"before %d" % number)
        for node in copies.nodes[1:]:
            copies.fill(node)
        for number in told:
            copies.nodes[number].subscribe({BUCKET: 0})
        return copies

    return make


MakeCopies = Callable[..., Copies]


def told(subscriber: Subscriber) -> list[bytes]:
    """The values, and where the bucket was opened."""
    return [b"OPEN" if record.kind == Kind.OPEN else record.value for record in subscriber.records]


def come_to(subscriber: Subscriber, place: int) -> None:
    subscriber.until(lambda: subscriber.places[BUCKET] >= place, "the last of it")


def join(node: Telling, place: int, bucket: int = BUCKET) -> Subscriber:
    """As a client does: it asks again until the bucket is told of."""
    subscriber = node.subscribe({1 << 20: 0})

    def is_told_of() -> bool:
        subscriber.places = subscriber.feed.add({bucket: place})
        return bool(subscriber.places)

    wait_until(is_told_of, "its being told of")
    return subscriber


@pytest.mark.parametrize("ahead", range(4))
@pytest.mark.parametrize("is_committed", [True, False])
def test_the_heir_tells_what_the_dead_primary_did_not_come_to(
    make_copies: MakeCopies,
    ahead: int,
    is_committed: bool,
) -> None:
    """Wherever a subscriber was by then; it may join before the OPEN is committed."""
    copies = make_copies()
    dead, heir = copies.nodes[:2]
    for value in (b"one", b"two", b"three"):
        copies.set(value)
    copies.ship()
    copies.drop(dead)
    point = heir.engine.open_commit_point("backup", BEYOND if is_committed else heir.engine.stream.head)
    heir.engine.set_commit_points(BUCKET, [point])
    copies.open(heir)
    subscriber = join(heir, make_sequence(1, 2 + ahead))
    point.advance(BEYOND)
    copies.set(b"after")
    subscriber.until(lambda: b"after" in subscriber.values, "what came after")
    assert (told(subscriber), subscriber.gaps) == ([b"one", b"two", b"three", b"OPEN", b"after"][ahead:], [])


def test_who_is_behind_what_the_heir_knows_has_one_gap_up_to_there(make_copies: MakeCopies) -> None:
    copies = make_copies()
    copies.set(b"one")
    copies.ship()
    copies.drop(copies.nodes[0])
    copies.open(copies.nodes[1])
    subscriber = join(copies.nodes[1], make_sequence(1, 1))
    subscriber.until_told(2)
    assert told(subscriber) == [b"one", b"OPEN"]
    (gap,) = subscriber.gaps
    assert (gap.after, gap.upto) == (make_sequence(1, 1), make_sequence(1, 2))


def test_whoever_asks_from_now_on_is_told_nothing_of_before(make_copies: MakeCopies) -> None:
    copies = make_copies()
    heir = copies.nodes[1]
    copies.set(b"one")
    copies.ship()
    copies.drop(copies.nodes[0])
    point = heir.engine.open_commit_point("backup", heir.engine.stream.head)
    heir.engine.set_commit_points(BUCKET, [point])
    copies.open(heir)
    early = join(heir, FROM_NOW)
    point.advance(BEYOND)
    late = join(heir, FROM_NOW)
    copies.set(b"after")
    for subscriber in (early, late):
        subscriber.until(lambda subscriber=subscriber: b"after" in subscriber.values, "what came after")  # type: ignore[misc]
        assert b"one" not in subscriber.values


def test_nothing_of_it_is_told_or_proven_before_the_opening_is_committed(make_copies: MakeCopies) -> None:
    """The heir may be deposed before: then another one opens, and who knows what of this leads to that."""
    copies = make_copies()
    heir, other = copies.nodes[1:]
    early = heir.subscribe({BUCKET: 0})
    early.until(lambda: early.events.behind_ms != UNPROVEN, "a proof")
    copies.set(b"one")
    copies.ship()
    copies.drop(copies.nodes[0])
    point = heir.engine.open_commit_point("backup", heir.engine.stream.head)
    heir.engine.set_commit_points(BUCKET, [point])
    copies.open(heir)
    subscriber = join(heir, make_sequence(1, 2))

    def nothing_is_said() -> bool:
        return not subscriber.take() and not subscriber.notices and subscriber.events.behind_ms == UNPROVEN

    assert_stays(nothing_is_said, "being told nothing")
    point.advance(heir.engine.stream.head)
    subscriber.until_told(2)
    assert (told(subscriber), subscriber.gaps) == ([b"one", b"OPEN"], [])
    subscriber.until(lambda: subscriber.events.behind_ms != UNPROVEN, "a proof")
    assert other.hub.stats()["records"] == 0, "a backup tells nothing"


def test_where_the_opening_never_is_committed_nothing_of_it_is_told(make_copies: MakeCopies) -> None:
    copies = make_copies()
    heir, third = copies.nodes[1:]
    copies.set(b"one")
    copies.ship()
    copies.drop(copies.nodes[0])
    point = heir.engine.open_commit_point("backup", heir.engine.stream.head)
    heir.engine.set_commit_points(BUCKET, [point])
    copies.open(heir)
    subscriber = join(heir, make_sequence(1, 2))
    copies.drop(heir)
    point.abandon()
    subscriber.until(lambda: BUCKET not in subscriber.places, "the end of the bucket")
    assert subscriber.records == []
    copies.open(third)
    subscriber = join(third, make_sequence(1, 2))
    subscriber.until_told(2)
    assert (told(subscriber), subscriber.gaps) == ([b"one", b"OPEN"], [])


def test_two_takeovers_in_a_row(make_copies: MakeCopies) -> None:
    """The first heir tells nobody anything; its OPEN is a record of the history as well."""
    copies = make_copies()
    first, second = copies.nodes[1:]
    copies.set(b"one")
    copies.ship()
    copies.drop(copies.nodes[0])
    copies.open(first)
    copies.set(b"two")
    copies.ship()
    copies.drop(first)
    copies.open(second)
    subscriber = join(second, make_sequence(1, 2))
    subscriber.until_told(4)
    assert (told(subscriber), subscriber.gaps) == ([b"one", b"OPEN", b"two", b"OPEN"], [])


@pytest.mark.parametrize("ends", [False, True])
def test_back_and_forth(make_copies: MakeCopies, ends: bool) -> None:
    """What this node told before as primary is held on, and leads to what it applied since; `ends`: whether its teller came to
    say in between that the bucket is another's."""
    copies = make_copies(told=(0, 1))
    one, other = copies.nodes[:2]
    at = make_sequence(1, 2)
    for number in range(3):
        copies.set(b"one %d" % number)
        one.until_told(4 * number + 1)
        copies.give_up()
        if ends:
            wait_until(lambda number=number: one.hub.stats()["buckets_ended"] > number, "the end")  # type: ignore[misc]
        copies.open(other)
        copies.set(b"other %d" % number)
        copies.give_up()
        copies.open(one)
        copies.ship()
    subscriber = join(one, at)
    come_to(subscriber, make_sequence(7, 0))
    assert subscriber.gaps == []
    assert told(subscriber) == [value for n in range(3) for value in (b"one %d" % n, b"OPEN", b"other %d" % n, b"OPEN")]


def test_a_bucket_that_comes_back_before_the_teller_looks(make_copies: MakeCopies) -> None:
    """It was given up, and nothing of it was ever let go of: all of it is on the chain. A place that another told is no other
    history, though this node has not come to tell of it yet."""
    copies = make_copies(told=(0,))
    one, other = copies.nodes[:2]
    subscriber = join(one, make_sequence(1, 2))
    teller = one.teller
    with teller.lock:  # it is held up while all this happens
        copies.set(b"one")
        copies.give_up()
        copies.open(other)
        copies.set(b"other")
        copies.give_up()
        point = one.engine.open_commit_point("backup", one.engine.stream.head)
        one.engine.set_commit_points(BUCKET, [point])
        copies.open(one)
    elsewhere = join(one, make_sequence(2, 1))
    point.advance(BEYOND)
    copies.set(b"after")
    elsewhere.until(lambda: b"after" in elsewhere.values, "what came after")
    assert (told(elsewhere), elsewhere.gaps) == ([b"OPEN", b"after"], [])
    subscriber.until(lambda: b"after" in subscriber.values or BUCKET not in subscriber.places, "what came after")
    assert told(subscriber) == [b"one", b"OPEN", b"other", b"OPEN", b"after"][: len(subscriber.records)]
    assert subscriber.gaps == []


def test_a_bucket_that_was_deposed_and_is_back_before_the_teller_looks(make_copies: MakeCopies) -> None:
    """What it placed and nobody got is on no chain. That tenure ends first; who joins again goes on without a gap."""
    copies = make_copies(told=(0,))
    one, other = copies.nodes[:2]
    subscriber = join(one, make_sequence(1, 2))
    point = one.engine.open_commit_point("backup", one.engine.stream.head)
    one.engine.set_commit_points(BUCKET, [point])
    writing = Task(lambda: Caller(one.engine).ask(*SET_LOST, budget_ms=FOREVER_MS))
    wait_until(lambda: one.engine.sequence(BUCKET) == make_sequence(1, 3), "the change")
    teller = one.teller
    with teller.lock:
        one.engine.set_state(BUCKET, BucketState.FROZEN)
        point.abandon()
        copies.drop(one)
        copies.open(other)
        copies.fill(one)
        copies.set(b"other")
        copies.give_up()
        copies.open(one)
    writing.result()
    subscriber.until(lambda: BUCKET not in subscriber.places, "the end of the first tenure")
    assert subscriber.records == []
    again = join(one, make_sequence(2, 0))
    again.until_told(2)
    assert (told(again), again.gaps) == ([b"other", b"OPEN"], [])


def test_what_was_undone_is_not_told_again(make_copies: MakeCopies) -> None:
    """An operator had the bucket go on from an older copy. What this node told before, and holds, leads there no more."""
    copies = make_copies(told=(0,))
    one, other = copies.nodes[:2]
    join(one, make_sequence(1, 2))
    copies.set(b"undone")
    one.until_told(1)
    copies.drop(one)
    one.engine.apply(b"".join(other.engine.copy_bucket(BUCKET)))
    copies.open(one)
    subscriber = join(one, make_sequence(1, 2))
    subscriber.until_told(1)
    assert (told(subscriber), subscriber.gaps) == ([b"OPEN"], [])


def test_what_came_before_the_tap_is_not_known(make_copies: MakeCopies) -> None:
    copies = make_copies(told=())
    heir = copies.nodes[1]
    copies.set(b"one")
    copies.ship()
    heir.subscribe({BUCKET: 0})
    copies.set(b"two")
    copies.ship()
    copies.drop(copies.nodes[0])
    copies.open(heir)
    subscriber = join(heir, make_sequence(1, 2))
    subscriber.until_told(2)
    assert (told(subscriber), [gap.upto for gap in subscriber.gaps]) == ([b"two", b"OPEN"], [make_sequence(1, 3)])


def test_what_is_told_in_pieces_and_with_other_buckets_comes_whole(
    make_copies: MakeCopies, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other buckets are written meanwhile, and come in the same batch as the OPEN."""
    monkeypatch.setattr("rcache.feeds.applied_tail.ENTRY_BYTES_MAX", 200)
    copies = make_copies()
    heir = copies.nodes[1]
    heir.engine.open_buckets([1], 1, 1, "n")
    for number in range(20):
        copies.set(b"%d" % number * 20)
    copies.ship()
    copies.drop(copies.nodes[0])
    subscriber = join(heir, FROM_NOW, bucket=1)
    teller = heir.teller
    with teller.lock:
        heir.set(1, b"beside")
        copies.open(heir)
        copies.set(b"after")
        heir.set(1, b"beside")
    late = join(heir, make_sequence(1, 2))
    late.until(lambda: b"after" in late.values, "what came after")
    assert told(late) == [*(b"%d" % n * 20 for n in range(20)), b"OPEN", b"after"]
    subscriber.until_told(2)
    assert told(subscriber) == [b"beside", b"beside"]
    assert late.gaps == subscriber.gaps == []


class Follower:
    """A subscriber as a client is: it goes on where the bucket is, from where it was."""

    def __init__(self, node: Telling, place: int) -> None:
        self.values: list[bytes] = []
        self.gaps = 0
        self._node = node
        self._now = join(node, place)

    def move(self, node: Telling) -> int:
        """Where it was by then."""
        ends = [notice.upto for notice in self._now.notices if notice.kind == NoticeKind.ENDED]
        place = self._now.places.get(BUCKET, ends[-1] if ends else 0)
        self.values += [record.value for record in self._now.records if record.kind == Kind.SET]
        self.gaps += len(self._now.gaps)
        self._node.leave(self._now)
        self._node, self._now = node, join(node, place)
        return place

    def take(self) -> None:
        self._now.take(0.0, bytes_max=1)

    def come_to(self, place: int) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while self._now.places.get(BUCKET, 0) < place:
            assert time.monotonic() < deadline, "waited in vain for the last of it"
            self._now.take(0.05)
            if BUCKET not in self._now.places:
                self.move(self._node)


def test_at_random(make_copies: MakeCopies) -> None:
    """Any order of changes, handovers and losses, with a subscriber that lags behind: all that was committed is told once and
    in order, or is in a gap; and there is no gap where the heir has followed since before what the subscriber was told."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chosen = random.Random(seed)
    copies = make_copies(told=(0, 1, 2))
    follower = Follower(copies.nodes[0], make_sequence(1, 2))
    values = list[bytes]()
    followed_since = [0, 0, 0]
    for turn in range(40):
        before = copies.primary
        assert before is not None
        for number in range(chosen.randrange(4)):
            values.append(b"%d.%d" % (turn, number))
            copies.set(values[-1])
        copies.ship()
        if chosen.random() < 0.5:
            follower.take()
        if chosen.random() < 0.5:
            continue
        heir, lost = chosen.choice(copies.backups), chosen.random() < 0.5
        followed_since[copies.nodes.index(before)] = before.engine.sequence(BUCKET)
        if lost:
            copies.drop(before)
        else:
            copies.give_up()
        copies.open(heir)
        copies.ship()
        if lost:
            copies.fill(before)
            followed_since[copies.nodes.index(before)] = heir.engine.sequence(BUCKET)
        place = follower.move(heir)
        gaps = follower.gaps
        follower.come_to(make_sequence(copies.epoch, 0))
        follower.move(heir)
        assert follower.gaps == gaps or place < followed_since[copies.nodes.index(heir)]
    assert copies.primary is not None
    follower.come_to(copies.primary.engine.sequence(BUCKET))
    follower.move(copies.primary)
    assert len(set(follower.values)) == len(follower.values)
    assert [value for value in values if value in set(follower.values)] == follower.values
    assert follower.gaps or follower.values == values
