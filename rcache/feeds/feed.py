"""A feed: what one subscriber is told, from its place in what the teller holds.

What it is: the answers to SUBSCRIBE and EVENTS, as values. A feed does nothing by itself: its subscriber asks for what is next,
and nothing is kept for it. Asking is also the probe: the answer says how long before the request arrived everything that was
committed has been told by it.
Which thread runs it: the worker of its connection, which has no other to serve; blocks for events, to the request's deadline.
What it owns: its place, and up to which sequence each of its buckets was told. It may lock: the teller's lock.
What it must not know: sockets, frames.

Invariants:
1. Of a bucket nothing is told twice, and what is not told between two events is in a gap: `after` only grows.
2. A proof is passed on only once all that lies before it was told here.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from rcache.feeds.hub import Hub
from rcache.feeds.select import Selection
from rcache.feeds.teller import Teller
from rcache.feeds.told import Told
from rcache.records.record import Head
from rcache_client.wire.feeds import FROM_NOW, UNPROVEN, Notice, NoticeKind

PLACES_S = 1.0
"""How often a subscriber is told how far buckets are of which nothing was asked for."""

WAIT_S = 0.25
"""How long one wait for events lasts before it is looked whether this node stops."""


class Events(NamedTuple):
    """What is next. `behind_ms`: how long before the request everything that was committed is in what was told up to here;
    UNPROVEN where that is not known. GAP is said of what lies before the records, PLACE and ENDED of what lies behind them."""

    behind_ms: int
    notices: list[Notice]
    records: bytes


class FeedOver(Exception):
    """This node stops: nobody is told anything any more."""


class Feed:
    """See the module. Ended by `close`, whatever came of it. Raises `FeedOver` where this node stops."""

    def __init__(self, hub: Hub, selection: Selection) -> None:
        teller = hub.join()
        if teller is None:
            raise FeedOver("this node stops")
        self.selection = selection
        self._hub = hub
        self._teller: Teller = teller
        self._after: dict[int, int] = {}
        self._passed: dict[int, int] = {}  # what a bucket is further by than was told, because nothing was asked for
        self._first: deque[Told] = deque()  # of buckets that joined, what was told before
        self._places_at = 0.0
        with teller.lock:
            self._place = teller.held.end

    def close(self) -> None:
        self._hub.leave()

    # --- whose changes are told

    def add(self, places: Mapping[int, int]) -> dict[int, int]:
        """Tell of these buckets from behind these sequences on, too; no places: of all that this node is primary of, from now.
        Returns, for each that is told of, from behind which sequence on; the others are not this node's."""
        teller, taken, again = self._teller, dict[int, int](), set[int]()
        with teller.lock:
            for bucket, after in (places or dict.fromkeys(teller.present(), FROM_NOW)).items():
                if bucket < len(teller.last) and teller.tells_of(bucket):
                    taken[bucket] = self._add_locked(bucket, after, again)
            if again:
                self._first += _only(again, teller.held.entries(teller.held.front, self._place))
        return taken

    def _add_locked(self, bucket: int, after: int, again: set[int]) -> int:
        """From behind which sequence on it is told of; what was told before and comes after that is told `again`."""
        held, last = self._teller.held, self._teller.last[bucket]
        after = last if after == FROM_NOW else self._teller.same_place(bucket, after)
        lost = held.lost[bucket]
        if after > last:  # of a history that is none any more
            self._first.append(Told(b"", (), Notice(NoticeKind.GAP, bucket, after, last)))
        elif after < lost:
            self._first.append(Told(b"", (), Notice(NoticeKind.GAP, bucket, after, lost)))
        if after < last:
            again.add(bucket)
        self._after[bucket] = after
        return after

    # --- what is next

    def next(self, bytes_max: int, deadline: float) -> Events:
        """What is next, about `bytes_max` bytes of it (one event at least); nothing, where nothing comes to `deadline`
        (time.monotonic). Blocks. Raises `FeedOver`."""
        asked_at = time.monotonic()
        teller, found = self._teller, _Found(bytes_max)
        while not found.has_any:
            with teller.lock:
                if teller.is_stopping:
                    raise FeedOver("this node stops")
                teller.want_proof(asked_at)
                entries = self._entries_locked(found)
                left_s = deadline - time.monotonic()
                if not entries and not found.has_any:
                    if left_s <= 0:
                        break
                    teller.changed.wait(min(WAIT_S, left_s))
            for told in entries:
                self._pass_on(told, found)
            if time.monotonic() >= deadline:
                break  # also where all that comes is not asked for
        with teller.lock:
            proven_at = teller.proven_at(self._place) if not self._first else None
        behind_ms = UNPROVEN if proven_at is None else min(UNPROVEN - 1, int(max(0.0, asked_at - proven_at) * 1000 + 0.999))
        self._tell_places(found)
        return found.events(behind_ms)

    def _entries_locked(self, found: _Found) -> list[Told]:
        """The next entries, of so many bytes; and what was lost before them."""
        if self._first:
            return [self._first.popleft()]
        held = self._teller.held
        if self._place < held.front:
            self._skip_locked(found)
        taken, size = list[Told](), 0
        for told in held.entries(self._place):
            if taken and (told.notice is not None or size + len(told.body) > found.bytes_max):
                break  # a gap lies before the records of an answer
            taken.append(told)
            size += len(told.body)
        self._place += len(taken)
        return taken

    def _skip_locked(self, found: _Found) -> None:
        """This feed is behind what is held. (An ENDED may have been among what it missed.)"""
        held = self._teller.held
        self._place = held.front
        for bucket, after in list(self._after.items()):
            if not self._teller.tells_of(bucket):
                self._pass_notice_on(Notice(NoticeKind.ENDED, bucket, 0, 0), found)
            elif after < held.lost[bucket]:
                found.notices.append(Notice(NoticeKind.GAP, bucket, after, held.lost[bucket]))
                self._after[bucket] = held.lost[bucket]

    def _pass_on(self, told: Told, found: _Found) -> None:
        if told.notice is not None:
            self._pass_notice_on(told.notice, found)
            return
        whole, kept = self.selection.is_everything and self._has_all(told), list[Head]()
        for head in told.heads:
            after = self._after.get(head.bucket)
            if after is None or head.sequence <= after:
                continue
            self._after[head.bucket] = head.sequence
            if whole:
                continue
            if self.selection.wants(told.body, head):
                self._passed.pop(head.bucket, None)
                kept.append(head)
            else:
                self._passed.setdefault(head.bucket, after)
        found.take(told.body if whole else b"".join(self.selection.form(told.body, head) for head in kept))

    def _has_all(self, told: Told) -> bool:
        """Whether all records of an entry are this feed's, and new to it."""
        if sum(head.end - head.start for head in told.heads) != len(told.body):
            return False
        firsts = {head.bucket: head.sequence for head in reversed(told.heads)}
        return all(self._after.get(bucket, FROM_NOW) < sequence for bucket, sequence in firsts.items())

    def _pass_notice_on(self, notice: Notice, found: _Found) -> None:
        after = self._after.get(notice.bucket)
        if after is None:
            return
        if notice.kind == NoticeKind.ENDED:
            found.notices.append(notice._replace(after=after, upto=after))
            del self._after[notice.bucket]
            self._passed.pop(notice.bucket, None)
        elif notice.upto != after:
            found.notices.append(notice._replace(after=after))
            self._after[notice.bucket] = notice.upto
            self._passed.pop(notice.bucket, None)

    def _tell_places(self, found: _Found) -> None:
        """How far buckets are of which nothing was asked for: a subscriber that comes back begins there."""
        now = time.monotonic()
        if not self._passed or now < self._places_at + PLACES_S:
            return
        self._places_at = now
        for bucket, before in self._passed.items():
            found.notices.append(Notice(NoticeKind.PLACE, bucket, before, self._after[bucket]))
        self._passed.clear()


class _Found:
    """What an answer will say."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.notices: list[Notice] = []
        self._bodies: list[bytes] = []

    @property
    def has_any(self) -> bool:
        return bool(self.notices or self._bodies)

    def take(self, body: bytes) -> None:
        if body:
            self._bodies.append(body)

    def events(self, behind_ms: int) -> Events:
        notices = sorted(self.notices, key=lambda notice: notice.kind != NoticeKind.GAP)
        return Events(behind_ms, notices, b"".join(self._bodies))


def _only(buckets: set[int], entries: Iterable[Told]) -> list[Told]:
    """What concerns these buckets."""
    kept = []
    for told in entries:
        if told.notice is not None:
            kept += [told] if told.notice.bucket in buckets and told.notice.kind == NoticeKind.GAP else []
            continue
        here = tuple(head for head in told.heads if head.bucket in buckets)
        if here:
            kept.append(Told(told.body, here))
    return kept
