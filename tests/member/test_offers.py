"""Lost buckets brought back from files: kept while they are nobody's, opened from where their chain ended, and let go of where
they become another's; whatever is refused leaves nothing here."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from rcache.cluster import wishes
from rcache.cluster.view import View
from rcache.cluster.wishes import Asker
from rcache.engine.reference import ReferenceEngine
from rcache.member import offers
from rcache.member.offers import OfferFailed
from rcache.records.record import Kind, decode, decode_opening, epoch_of
from rcache_client.wire.opcodes import Opcode, Status
from tests.contract.harness import EVERYTHING, PATIENCE_S, Caller, wait_until
from tests.member.harness import engine_of, node
from tests.member.running import ABSENT, BACKUP, PRIMARY, Make, Running, key_of, view_of

IMPORTING = offers.BucketState.IMPORTING
BUCKETS = 4
LOST = view_of(5, ("n1", "", 1), (None, "", 5), ("n1", "", 1), (None, "", 5))
KEY = key_of(1)


def look() -> None:
    pass


def copied(bucket: int, epoch: int = 3) -> tuple[list[bytes], int]:
    """A bucket with something in it, as an import of a record each, and where its chain ends."""
    other = engine_of(BUCKETS)
    other.open_buckets([bucket], epoch, 1, "other")
    for number in range(3):
        assert Caller(other).ask(Opcode.SET, 0, 0, key_of(bucket), b"%d" % number).status is Status.OK
    return list(other.copy_bucket(bucket)), other.sequence(bucket)


@pytest.fixture
def lost(running: Make) -> Running:
    """n1, which is primary of buckets 0 and 2; 1 and 3 are lost."""
    return running(LOST)


def nobodys(epoch: int) -> View:
    """A later view, in which nothing changed for the lost buckets."""
    return view_of(epoch, ("n1", "", 1), (None, "", 5), ("n1", "", 1), (None, "", 5))


def bring(run: Running, bucket: int = 1) -> int:
    pieces, end = copied(bucket)
    run.member.offers.claim([bucket], look, is_empty=False)
    run.member.offers.put(bucket, pieces, look)
    return end


def offered(run: Running, *buckets: int) -> View:
    """The view in which n1 was given these."""
    view = wishes.offer(run.member.view, Asker("n1", "nonce"), buckets)
    run.take_in(view)
    return view


def in_log(run: Running) -> list[tuple[Kind, int]]:
    """What the log's stream was given since the last look."""
    return [(record.kind, record.bucket) for record in map(decode, run.applied.take(EVERYTHING).records)]


def whole(bucket: int) -> list[tuple[Kind, int]]:
    return [(Kind.IMPORT_BEGIN, bucket), (Kind.ROW, bucket), (Kind.IMPORT_END, bucket)]


# --- it comes back


def test_it_goes_on_from_where_its_chain_ended(lost: Running) -> None:
    """OPEN continues from the end of what the files held, in the epoch of the view; the log has the import before it."""
    end = bring(lost)
    assert (lost.engine.state(1), lost.engine.sequence(1)) == (BACKUP, end)
    assert in_log(lost) == whole(1)
    reader = lost.engine.stream.open_reader("test", holds=True)
    view = offered(lost, 1)
    wait_until(lambda: lost.engine.state(1) is PRIMARY, "it is opened")
    (opening,) = [decode(each) for each in reader.take(EVERYTHING, 0.0).records]
    reader.close()
    assert (opening.kind, opening.bucket, epoch_of(opening.sequence)) == (Kind.OPEN, 1, view.epoch)
    assert decode_opening(opening.value).continues_from == end
    assert Caller(lost.engine).ask(Opcode.GET, KEY).status is Status.OK
    assert lost.member.board.roles.offered == {}


def test_views_in_which_it_is_still_lost_leave_it_alone(lost: Running) -> None:
    """It is no copy by any of them, and would be dropped as one that is being made for a primary that is gone."""
    bring(lost)
    for epoch in (6, 7):
        lost.take_in(nobodys(epoch))
    assert lost.engine.state(1) is BACKUP
    assert in_log(lost) == whole(1)
    offered(lost, 1)
    wait_until(lambda: lost.engine.state(1) is PRIMARY, "it is opened")


def test_a_view_between_two_pieces_leaves_it_alone_too(lost: Running) -> None:
    pieces, end = copied(1)

    def halting() -> Iterator[bytes]:
        yield from pieces[:2]
        lost.take_in(nobodys(6))
        assert lost.engine.state(1) is IMPORTING
        yield from pieces[2:]

    lost.member.offers.claim([1], look, is_empty=False)
    lost.member.offers.put(1, halting(), look)
    assert (lost.engine.state(1), lost.engine.sequence(1)) == (BACKUP, end)


def test_a_bucket_of_which_nothing_is_there_begins_empty_by_order(lost: Running) -> None:
    lost.member.offers.claim([3], look, is_empty=True)
    offered(lost, 3)
    wait_until(lambda: lost.engine.state(3) is PRIMARY, "it is opened")
    assert Caller(lost.engine).ask(Opcode.GET, key_of(3)).status is Status.NOT_FOUND


def test_what_was_brought_back_and_is_gone_is_not_opened_empty(lost: Running) -> None:
    """Loudly closed, rather than empty by accident: whatever may have cleared it between the wish and its view."""
    bring(lost)
    lost.member.board.post(lambda: lost.engine.set_state(1, ABSENT))
    lost.settle()
    offered(lost, 1)
    lost.settle()
    assert (lost.engine.state(1), list(lost.member.board.roles.openings)) == (ABSENT, [1])


def test_a_node_that_was_ordered_nothing_opens_nothing_empty(lost: Running) -> None:
    offered(lost, 1)
    lost.settle()
    assert (lost.engine.state(1), list(lost.member.board.roles.openings)) == (ABSENT, [1])


# --- it does not


def test_what_goes_to_another_is_let_go_of_and_no_later_piece_goes_in(lost: Running) -> None:
    """Another order was quicker. Behind the DROP the log hears no more of it: it would say that the bucket is here."""
    pieces, _ = copied(1)

    def halting() -> Iterator[bytes]:
        yield pieces[0]
        lost.take_in(view_of(6, ("n1", "", 1), ("n2", "", 6), ("n1", "", 1), (None, "", 5), proposer="n2"))
        yield from pieces[1:]

    lost.member.offers.claim([1], look, is_empty=False)
    with pytest.raises(OfferFailed, match="given to another node"):
        lost.member.offers.put(1, halting(), look)
    assert lost.engine.state(1) is ABSENT
    assert in_log(lost) == [(Kind.IMPORT_BEGIN, 1), (Kind.DROP, 1)]
    assert lost.member.board.roles.offered == {}


def test_a_node_that_falls_out_lets_go_of_it(lost: Running) -> None:
    bring(lost)
    nodes = {"n2": node(), "n3": node()}
    lost.take_in(
        view_of(6, ("n2", "", 6), (None, "", 5), ("n2", "", 6), (None, "", 5), nodes=nodes, manager="n2", proposer="n2")
    )
    assert lost.engine.state(1) is ABSENT
    assert lost.member.board.roles.offered == {}
    assert (Kind.DROP, 1) in in_log(lost)


def test_what_is_withdrawn_is_let_go_of(lost: Running) -> None:
    bring(lost)
    lost.member.offers.claim([3], look, is_empty=True)
    in_log(lost)
    lost.member.offers.withdraw([1, 3])
    lost.settle()
    assert (lost.engine.state(1), lost.engine.state(3)) == (ABSENT, ABSENT)
    assert in_log(lost) == [(Kind.DROP, 1)]
    bring(lost)  # and another try may begin


def test_what_was_settled_meanwhile_is_not_withdrawn(lost: Running) -> None:
    bring(lost)
    offered(lost, 1)
    wait_until(lambda: lost.engine.state(1) is PRIMARY, "it is opened")
    in_log(lost)
    lost.member.offers.withdraw([1])
    lost.settle()
    assert (lost.engine.state(1), in_log(lost)) == (PRIMARY, [])


def test_what_became_another_s_backup_meanwhile_is_not_withdrawn(lost: Running) -> None:
    """The bucket went to n2, which filled this node; only then is the wish of before refused. The copy is counted on."""
    bring(lost)
    lost.take_in(view_of(6, ("n1", "", 1), ("n2", "", 6), ("n1", "", 1), (None, "", 5), proposer="n2"))
    pieces, _ = copied(1, epoch=6)
    lost.engine.apply(b"".join(pieces), lost.neighbours.source_of("n2"))
    lost.take_in(view_of(7, ("n1", "", 1), ("n2", "n1", 6), ("n1", "", 1), (None, "", 5), proposer="n2"))
    lost.member.offers.withdraw([1])
    lost.settle()
    assert lost.engine.state(1) is BACKUP


def test_only_what_is_lost_is_claimed_and_only_once(lost: Running) -> None:
    with pytest.raises(OfferFailed, match="bucket 0 is not lost: n1 has it"):
        lost.member.offers.claim([1, 0], look, is_empty=False)
    assert lost.member.board.roles.offered == {}, "none of them"
    lost.member.offers.claim([1], look, is_empty=False)
    for is_empty in (False, True):
        with pytest.raises(OfferFailed, match="being brought back here already"):
            lost.member.offers.claim([1], look, is_empty=is_empty)
    assert lost.member.board.roles.offered == {1: False}


@pytest.mark.parametrize("is_empty", [False, True])
def test_what_is_left_here_of_a_lost_bucket_is_not_mistaken_for_what_files_hold(lost: Running, is_empty: bool) -> None:
    """Views clear what is nobody's; should one not have, OPEN would go on from that, or an import begin over it."""
    lost.engine.apply(b"".join(copied(3)[0]))
    with pytest.raises(OfferFailed, match="bucket 3 is lost, and something of it is here all the same"):
        lost.member.offers.claim([3], look, is_empty=is_empty)


def test_a_node_whose_log_failed_claims_nothing(lost: Running) -> None:
    lost.log.failure = "no space"
    with pytest.raises(OfferFailed, match="append log of this node failed"):
        lost.member.offers.claim([1], look, is_empty=True)


def test_half_of_a_copy_is_none(lost: Running) -> None:
    pieces, _ = copied(1)
    lost.member.offers.claim([1], look, is_empty=False)
    with pytest.raises(OfferFailed, match="no whole copy"):
        lost.member.offers.put(1, pieces[:-1], look)
    assert lost.engine.state(1) is IMPORTING


@pytest.mark.parametrize("error", [MemoryError("no memory"), None])
def test_what_does_not_apply_is_told(lost: Running, monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> None:
    pieces, _ = copied(1)
    lost.member.offers.claim([1], look, is_empty=False)
    if error is not None:

        def apply(_self: object, _body: bytes, _source: int = 0) -> None:
            raise error

        monkeypatch.setattr(ReferenceEngine, "apply", apply)
    with pytest.raises(OfferFailed, match="no memory" if error is not None else "outside an import"):
        lost.member.offers.put(1, pieces[1:], look)
    assert in_log(lost) == []


def test_without_eviction_it_takes_no_room_of_others(lost: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evicting for it is not allowed, and over the limit every later write of the others would be refused."""
    full = {"memory": {"used_bytes": 101, "limit_bytes": 100}}
    monkeypatch.setattr(lost.engine, "stats", lambda: full)
    bring(lost)  # with eviction others give way
    lost.member.offers.withdraw([1])
    lost.settle()
    monkeypatch.setattr(lost.engine, "config", lost.engine.config.__class__(buckets=BUCKETS, evict=False))
    with pytest.raises(OfferFailed, match="--no-evict"):
        bring(lost)


# --- the log


def test_a_log_that_is_behind_is_waited_for_and_leases_are_looked_at(running: Make) -> None:
    """Room in its stream is tried for in moments, each in a round of its own, and nothing goes in twice."""
    slow = running(LOST)
    slow.applied.bytes_max = 10
    slow.applied.append(b"x" * 20, 1, 0)
    pieces, _ = copied(1)
    ended = threading.Event()

    def put() -> None:
        slow.member.offers.put(1, pieces, look)
        ended.set()

    slow.member.offers.claim([1], look, is_empty=False)
    thread = threading.Thread(target=put)
    thread.start()
    try:
        wait_until(lambda: slow.engine.state(1) is IMPORTING, "the first piece is in")
        slow.take_in(nobodys(6))
        assert slow.member.epoch == 6, "meanwhile views are carried out"
        assert slow.engine.state(1) is IMPORTING
        taken: list[bytes] = []

        def drain() -> bool:
            taken.append(bytes(slow.applied.take(EVERYTHING).body))
            return ended.is_set()

        wait_until(drain, "it is in")
    finally:
        thread.join(PATIENCE_S)
    assert b"".join(taken)[20:] + bytes(slow.applied.take(EVERYTHING).body) == b"".join(pieces)


def test_a_log_that_fails_is_told(lost: Running) -> None:
    lost.member.offers.claim([1], look, is_empty=False)
    lost.applied.fail("no space")
    with pytest.raises(OfferFailed, match="no space"):
        lost.member.offers.put(1, copied(1)[0], look)


class Syncing:
    """A log that is on the disk after so many looks."""

    def __init__(self, looks: int) -> None:
        self.left = looks
        self.failure: Any = None

    def sync(self, _timeout_s: float) -> bool:
        self.left -= 1
        return self.left < 0


def test_the_disk_is_waited_for_and_a_log_that_fails_is_told(lost: Running) -> None:
    log, looks = Syncing(3), list[int]()
    syncing = offers.Offers(SimpleNamespace(parts=SimpleNamespace(log=log)))  # type: ignore[arg-type]
    syncing.sync(lambda: looks.append(1))
    assert (log.left, len(looks)) == (-1, 3)
    log.left, log.failure = 1, "no space"
    with pytest.raises(OfferFailed, match="no space"):
        syncing.sync(look)


def test_who_does_not_wait_any_more_is_not_kept(lost: Running) -> None:
    """The control plane is held up, and the order's time ends."""
    hold = threading.Event()
    lost.member.board.post(lambda: hold.wait(PATIENCE_S))

    def over() -> None:
        raise TimeoutError("over")

    began = time.monotonic()
    with pytest.raises(TimeoutError):
        lost.member.offers.claim([1], over, is_empty=False)
    assert time.monotonic() - began < PATIENCE_S / 2
    lost.member.offers.withdraw([1])
    hold.set()
    lost.settle()
    assert lost.member.board.roles.offered == {}, "what was posted before is withdrawn after it"
