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

import operator
import time
from collections.abc import Collection, Iterable, Mapping
from itertools import repeat
from typing import NamedTuple

from rcache.feeds.hub import Hub
from rcache.feeds.proofs import boot_s
from rcache.feeds.select import Selection
from rcache.feeds.teller import Teller
from rcache.feeds.told import Told
from rcache.records.record import Head
from rcache_client.wire.feeds import FROM_NOW, UNPROVEN, Notice, NoticeKind

PLACES_S = 1.0
"""How often a subscriber is told how far buckets are of which nothing was asked for."""

WAIT_S = 0.25
"""How long one wait for events lasts before it is looked whether this node stops."""

NOTHING = Told(b"", ())

LOOKS_MAX = 1000
"""So many entries are looked at under the teller's lock at a time: a millisecond."""


class Events(NamedTuple):
    """What is next. `behind_ms`: how long before the request everything that was committed is in what was told up to here;
    UNPROVEN where that is not known. GAP is said of what lies before the records, PLACE and ENDED of what lies behind them."""

    behind_ms: int
    notices: list[Notice]
    records: bytes


class FeedOver(Exception):
    """This node stops: nobody is told anything any more."""


class Feed:
    """See the module. Ended by `close`, whatever came of it. Raises `FeedOver` where this node stops, `NoTeller`."""

    def __init__(self, hub: Hub, selection: Selection) -> None:
        teller = hub.join()
        if teller is None:
            raise FeedOver("this node stops")
        self.selection = selection
        self._hub = hub
        self._teller: Teller = teller
        self._after: dict[int, int] = {}
        self._joined: dict[int, int] = {}  # how far what is held was by then
        self._passed: dict[int, int] = {}  # what a bucket is further by than was told, because nothing was asked for
        self._gaps: dict[int, Notice] = {}  # of buckets that joined, what is told first
        self._again: dict[int, int] = {}  # and of those, from which place on what was told before is told again
        self._again_place = 0
        self._places_at = 0.0
        with teller.lock:
            self._place = teller.held.end

    def close(self) -> None:
        self._hub.leave()

    # --- whose changes are told

    def add(self, places: Mapping[int, int]) -> dict[int, int]:
        """Tell of these buckets from behind these sequences on, too; no places: of all that this node is primary of, from now.
        Returns, for each that is told of, from behind which sequence on; the others are not this node's, or not yet."""
        teller, taken = self._teller, dict[int, int]()
        with teller.lock:
            for bucket, after in (places or dict.fromkeys(teller.present(), FROM_NOW)).items():
                if bucket < len(teller.last) and teller.tells_of(bucket):
                    self._add_locked(bucket, after, taken)
            if self._again:
                self._again_place = min(self._again.values())
        return taken

    def _add_locked(self, bucket: int, after: int, taken: dict[int, int]) -> None:
        """What it was asked for before is forgotten."""
        teller = self._teller
        last, lost = teller.last[bucket], teller.held.lost[bucket]
        reach = max(last, teller.reach[bucket])
        after = reach if after == FROM_NOW else teller.same_place(bucket, after)
        if reach < after <= teller.engine.sequence(bucket):
            return  # it was another's meanwhile, and the teller has not come to that yet
        for earlier in (self._gaps, self._again, self._passed):
            earlier.pop(bucket, None)
        if after > reach:  # of a history that is none any more
            self._gaps[bucket] = Notice(NoticeKind.GAP, bucket, after, reach)
        elif after < lost:
            self._gaps[bucket] = Notice(NoticeKind.GAP, bucket, after, lost)
        if after < last:
            self._again[bucket] = teller.held.first_of(bucket)
        self._after[bucket] = taken[bucket] = after
        self._joined[bucket] = teller.held.end

    # --- what is next

    def next(self, bytes_max: int, deadline: float) -> Events:
        """What is next, about `bytes_max` bytes of it (one event at least); nothing, where nothing comes to `deadline`
        (time.monotonic). Blocks. Raises `FeedOver`."""
        asked_at = boot_s()
        teller, found = self._teller, _Found(bytes_max)
        while not found.has_any:
            with teller.lock:
                if teller.is_stopping:
                    raise FeedOver("this node stops")
                teller.proofs.want(asked_at)
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
            proven_at = None if self._gaps or self._again else teller.proofs.before(self._place)
        behind_ms = UNPROVEN if proven_at is None else min(UNPROVEN - 1, int(max(0.0, asked_at - proven_at) * 1000 + 0.999))
        self._tell_places(found)
        return found.events(behind_ms)

    def _entries_locked(self, found: _Found) -> list[Told]:
        """The next entries, of so many bytes; and what was lost before them."""
        held = self._teller.held
        if self._gaps:
            gaps, self._gaps = self._gaps, {}
            return [Told(b"", (), notice) for notice in gaps.values()]
        if self._place < held.front:
            self._skip_locked(self._after, found)
            self._place = held.front
        if self._again and (taken := self._again_locked(found)):
            return taken
        taken = _some(held.entries(self._place), found.bytes_max)
        if taken and self._is_of_old(taken[0].notice):
            taken[0] = NOTHING
        self._place += len(taken)
        return taken

    def _is_of_old(self, notice: Notice | None) -> bool:
        """Whether this, which comes next, is the end of a bucket that is back, and joined after that."""
        return notice is not None and notice.kind == NoticeKind.ENDED and self._place < self._joined.get(notice.bucket, 0)

    def _again_locked(self, found: _Found) -> list[Told]:
        """What was told before, of the buckets that joined. Until they are here, too, nothing else is told."""
        held = self._teller.held
        if self._again_place < held.front:
            self._skip_locked(self._again, found)
            self._again_place = held.front
        begun = sorted(place for place in set(self._again.values()) if place > self._again_place)
        until = min([self._place, self._again_place + LOOKS_MAX, *begun[:1]])
        buckets = {bucket for bucket, place in self._again.items() if place <= self._again_place}
        taken = _some((_only(buckets, told) for told in held.entries(self._again_place, until)), found.bytes_max)
        self._again_place += len(taken)
        if self._again_place >= self._place:
            self._again.clear()
        return taken

    def _skip_locked(self, buckets: Iterable[int], found: _Found) -> None:
        """Of these this feed is behind what is held. (An ENDED may have been among what it missed.)"""
        held = self._teller.held
        for bucket in list(buckets):
            after = self._after.get(bucket)
            if after is not None and not self._teller.tells_of(bucket):
                self._pass_notice_on(Notice(NoticeKind.ENDED, bucket, after, after), found)
            elif after is not None and after < held.lost[bucket]:
                self._pass_notice_on(Notice(NoticeKind.GAP, bucket, after, held.lost[bucket]), found)

    def _pass_on(self, told: Told, found: _Found) -> None:
        if told.notice is not None:
            self._pass_notice_on(told.notice, found)
            return
        if self.selection.is_everything and self._has_all(told):
            self._after.update(told.lasts)
            found.take(told.body if self.selection.values else told.names)
            return
        kept = list[Head]()
        for head in told.heads:
            after = self._after.get(head.bucket)
            if after is None or head.sequence <= after:
                continue
            self._after[head.bucket] = head.sequence
            if self.selection.wants(told.body, head):
                self._passed.pop(head.bucket, None)
                kept.append(head)
            else:
                self._passed.setdefault(head.bucket, after)
        found.take(b"".join(self.selection.form(told.body, head) for head in kept))

    def _has_all(self, told: Told) -> bool:
        """Whether all records of an entry are this feed's, and new to it."""
        after = map(self._after.get, told.firsts, repeat(FROM_NOW))
        return told.is_whole and all(map(operator.lt, after, told.firsts.values()))

    def _pass_notice_on(self, notice: Notice, found: _Found) -> None:
        after = self._after.get(notice.bucket)
        if after is None:
            return
        if notice.kind == NoticeKind.ENDED:
            found.notices.append(notice._replace(after=after, upto=after))
            del self._after[notice.bucket]
            self._passed.pop(notice.bucket, None)
        elif notice.upto > after or (notice.after == after != notice.upto):  # else this is further than what was missing then
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


def _some(entries: Iterable[Told], bytes_max: int) -> list[Told]:
    """The first of these, of so many bytes."""
    taken, size = list[Told](), 0
    for told in entries:
        if taken and (told.notice is not None or size + len(told.body) > bytes_max):
            break  # a gap lies before the records of an answer
        taken.append(told)
        size += len(told.body)
    return taken


def _only(buckets: Collection[int], told: Told) -> Told:
    """What of an entry concerns these buckets; it may be nothing."""
    if told.notice is None:
        here = tuple(head for head in told.heads if head.bucket in buckets)
        return Told(told.body, here) if here else NOTHING
    if told.notice.bucket in buckets and told.notice.kind == NoticeKind.GAP:
        return told
    return NOTHING
