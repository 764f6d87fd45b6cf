"""Lost buckets: what this node's files still hold of them, and how they begin again.

What it is: the orders `files`, which any node answers for itself, and `renew`, which a node carries out with its own files.
Which thread runs it: the worker of the connection that orders. It blocks: for the disk while files are read, for the control
plane while what was read is put in, and for the view; all of it within the budget of the order.
What it owns: what was read, until it is in. What it must not know: how files are read, or a view carried out.

Invariant 11 of `design`, section 5: a lost bucket is first offered the longest chain that any node's files hold. No node knows
what others hold: whoever orders asks every node for its `files`, and has the one with the longest chain `recover` the bucket.
So there is no order that begins whatever is lost empty: a bucket begins empty only where the order names it as `empty`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from loguru import logger

from rcache.cluster import wishes
from rcache.cluster.view import EPOCH_MAX, NodeState, View
from rcache.cluster.wishes import Asker, WishRefused
from rcache.member.member import Member
from rcache.member.offers import OfferFailed
from rcache.records.reader import DataDamaged
from rcache.records.rebuild import RebuiltBucket
from rcache.records.record import show_sequence
from rcache.server.agreeing import Agreeing
from rcache.server.node_answers import Refusal
from rcache.server.orders import Order, Ordered, bad, buckets_of, not_now
from rcache.stream.old_files import Held, OldFiles
from rcache_client.wire.opcodes import Status

PIECE_BYTES = 256 << 10
"""Of an import go in at once: milliseconds of the control plane's time, also with the reference engine."""


class Renewal(NamedTuple):
    """What an order to renew names: for each bucket to recover the end of the chain (EPOCH.COUNTER), those that begin empty,
    and the epoch of the view by which they were found to be lost."""

    ends: dict[int, str]
    empty: list[int]
    epoch: int


class Offering:
    """See the module."""

    def __init__(self, member: Member, agreeing: Agreeing, files: OldFiles) -> None:
        self._member = member
        self._agreeing = agreeing
        self._files = files

    def files(self, order: Ordered) -> Order:
        buckets = buckets_of(order.fields, "buckets", len(self._member.view.placements))
        look = self._look_of(order)
        with contextlib.suppress(OfferFailed):  # what was written before it failed is there
            self._member.offers.sync(look)
        with _readable():
            held = self._files.held(buckets, look) if buckets else {}
        return {"node": self._member.name, "held": [_told(each) for _, each in sorted(held.items())]}

    def renew(self, order: Ordered) -> Order:
        wanted = self._wanted(order)
        offers, look = self._member.offers, self._look_of(order)
        claimed: list[int] = []
        failed: dict[int, str] = {}
        try:
            with _readable():
                brought = self._bring(wanted.ends, claimed, failed, look)
            if wanted.empty:
                offers.claim(wanted.empty, look, is_empty=True)
                claimed += wanted.empty
            if not claimed:
                raise not_now(next(f"bucket {bucket}: {why}" for bucket, why in failed.items()))
            offers.sync(look)
        except OfferFailed as error:
            offers.withdraw(claimed)
            raise not_now(str(error)) from None
        except BaseException:
            offers.withdraw(claimed)
            raise
        agreed = self._agree(order, claimed, wanted.epoch)
        items = sum(held.items for held in brought)
        logger.warning(
            "RENEWED by {}: {} lost buckets with {} items are back from this node's files, {} begin again, empty",
            *(order.by, len(brought), items, len(wanted.empty)),
        )
        recovered = [_told(held) for held in brought]
        told = [{"bucket": bucket, "why": why} for bucket, why in failed.items()]
        return {"epoch": agreed.epoch, "recovered": recovered, "renewed": wanted.empty, "failed": told}

    def _look_of(self, order: Ordered) -> Callable[[], None]:
        """What is called while the order goes on; raises `Refusal` where it is to end: a stop waits for it."""

        def look() -> None:
            if not order.left_s():
                raise Refusal(Status.DEADLINE_PASSED, "the time is over, and nothing was changed: give the order more")
            if self._member.departure.is_leaving:
                raise not_now(f"{self._member.name} is leaving")

        return look

    def _wanted(self, order: Ordered) -> Renewal:
        count = len(self._member.view.placements)
        pairs = order.fields.get("recover", [])
        if not isinstance(pairs, list) or not all(
            isinstance(each, list) and len(each) == 2 and isinstance(each[1], str) for each in pairs
        ):
            raise bad("recover is not a list of buckets, each with the end of its chain: [[3, '7.120']]")
        recover = buckets_of({"recover": [bucket for bucket, _ in pairs]}, "recover", count)
        empty = buckets_of(order.fields, "empty", count)
        if not recover and not empty:
            raise bad("renew: name the lost buckets: `recover`, with the ends of what `files` told of them, or `empty`")
        if both := sorted(set(recover) & set(empty)):
            raise bad(f"bucket {both[0]} is to be recovered, and empty as well")
        epoch = order.fields.get("epoch")
        if type(epoch) is not int or not 0 < epoch <= EPOCH_MAX:
            raise bad(f"epoch is {epoch!r}; that of the view is taken by which the buckets were lost when `files` was asked")
        if not self._member.sessions.await_epoch(epoch, order.left_s()):
            raise not_now(f"this node goes by epoch {self._member.epoch}, and has not heard of {epoch} in time")
        return Renewal(dict(pairs), empty, epoch)

    def _bring(self, ends: dict[int, str], claimed: list[int], failed: dict[int, str], look: Callable[[], None]) -> list[Held]:
        """Claim these and put them in, each by itself: one that cannot be brought back does not stand in the way of the others.
        Every one is then in `claimed`, or with the reason in `failed`."""
        brought: list[Held] = []
        found = self._files.bring(ends, look) if ends else {}
        for bucket, end in ends.items():
            held, rebuilt = found.pop(bucket, (None, None))
            if held is None or rebuilt is None or show_sequence(held.end) != end:
                failed[bucket] = _not_so(held, end)
                continue
            try:
                self._member.offers.claim([bucket], look, is_empty=False)
            except OfferFailed as error:  # it is another's, or another order's: nothing to withdraw
                failed[bucket] = str(error)
                continue
            claimed.append(bucket)
            if why := self._put(bucket, rebuilt, look):
                claimed.remove(bucket)
                failed[bucket] = why
            else:
                brought.append(held)
        for bucket, why in failed.items():
            logger.error("lost bucket {} is not brought back from this node's files: {}", bucket, why)
        return brought

    def _put(self, bucket: int, rebuilt: RebuiltBucket, look: Callable[[], None]) -> str:
        """Why it could not be put in, and was let go of again; "" where it is in."""
        offers = self._member.offers
        try:
            offers.put(bucket, rebuilt.pieces(PIECE_BYTES), look)
        except (OfferFailed, DataDamaged, OSError) as error:
            offers.withdraw([bucket])
            return str(error)
        finally:
            rebuilt.rows.clear()
        return ""

    def _agree(self, order: Ordered, buckets: list[int], since: int) -> View:
        """The view that gives these to this node. Where that is refused, now or after the order has ended, they are let go
        of."""
        member = self._member
        incarnation = member.incarnation

        def make(view: View, asker: Asker) -> View:
            me = view.nodes.get(asker.by)
            if me is None or me.incarnation != incarnation or me.state is not NodeState.UP:
                raise WishRefused(f"{asker.by} is {me.state if me is not None else 'not in the view'}, not up as it was")
            for bucket in buckets:
                if view.placements[bucket].primary is None and view.placements[bucket].opened > since:
                    raise WishRefused(f"bucket {bucket} was lost again after epoch {since}: others may have more of it by now")
            return wishes.offer(view, asker, buckets)

        def settled(refused: str) -> None:
            if refused:
                member.offers.withdraw(buckets)

        return self._agreeing.agree(order, "begin lost buckets again", make, settled)


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except (DataDamaged, OSError) as error:
        raise not_now(f"this node's files cannot be read: {error}") from None


def _told(held: Held) -> Order:
    """For an answer. An end as text: it has more bits than many readers of JSON keep of a number."""
    told = {"bucket": held.bucket, "end": show_sequence(held.end), "as_of_ms": held.as_of_ms}
    return {**told, "whole": held.is_whole, "items": held.items, "let_go": bool(held.let_go), "why": held.why}


def _not_so(held: Held | None, end: str) -> str:
    if held is None:
        return "this node's files hold nothing of it"
    if held.why:
        return f"what this node's files hold of it is not whole: {held.why}"
    return f"this node's files hold it up to {show_sequence(held.end)}, not {end}; ask for its files again"
