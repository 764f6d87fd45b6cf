"""What a near cache holds: values that were read, for as long as nothing newer was told, and markers of reads under way.

What it is: `Slots`, the pure part of the near cache. A slot of a key is a *marker* (a GET of the key is under way, and nothing
was told of the key since) or an *entry* (a value). Time is a function that is passed in; nothing here waits.
Which thread runs it: any, several at once. A hit takes no lock.
What it owns: the slots, their bytes, the counts. It may lock: its own lock, for moments, under nothing.
What it must not know: requests, feeds, serializers.

Who reads a key plants a marker before the GET goes out, and turns it into an entry by the answer, but only if the slot still is
that very marker. Who is told of a change calls `told`; who no longer is told of a bucket's changes calls `lost`. Three promises
(`near_cache`) stand on these invariants:

1. *A slot that is in the table is of a bucket whose changes are told.* It is planted only while they are, and goes when that
   ends, or when something of the bucket may not have been told (`drop_bucket`).
2. *An entry is no older than anything that was told of its key, or that an answer to this client showed, since its marker was
   planted.* Told before: then the GET was sent after it was committed, and sees it. Told since: the marker carries the greatest
   sequence, and a lower version does not become an entry. So of these none is served:
   - a GET is answered with 1, 2 is written and told, and the answer is looked at only then: the marker says 2;
   - the same, and the bucket was lost between and begun again, so that 2 is never told: the marker is gone with the bucket;
   - two GETs of the key cross: B's, planted later, is answered with 1; 2 is written; A's is answered with 2 and returns to its
     caller; B's answer is looked at only then. A's found B's marker in the place of its own and left 2 in it;
   - a write of this client, or any other request, shows or makes 2 while a GET is under way that was answered with 1: whatever
     is asked of the servers beside a GET removes the slot when it has ended (`drop`), and B's answer finds no marker.
3. *Everything that was committed at `until - max_staleness` of a live bucket has been told* (`Live`). An entry is served before
   `until` only.
4. *What left the table says so itself*: `expires` is 0. `until` grows only behind the removal of all that was told by then, and
   a reader looks at `until` first and at `expires` then. So one that took a slot from the table, and was held up meanwhile,
   does not take the new `until` for a proof of the old value. A slot that has left the table is never an entry again.
5. A look at the table without the lock finds a slot, or one that is planted later: by a GET that is sent later, and sees what
   whoever looked has seen.
6. Not more than `bytes_max` is held.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable
from typing import NamedTuple

SLOT_BYTES = 450
"""What a slot takes beside key and value: the objects, its places in the table and in its bucket. Measured, CPython 3.11."""

LARGEST_SHARE = 8
"""A value that is larger than that part of the whole is not kept: it would put out too many others."""

CHANCES = 32
"""So many slots that were used since they were last looked at are passed by to make room for one; then they go, too."""


class Live:
    """Until when (CLOCK_BOOTTIME, seconds) the buckets of one feed are known to be told of."""

    __slots__ = ("until",)

    def __init__(self) -> None:
        self.until = 0.0


class Slot:
    """A marker, while `expires` is 0; then an entry, until that time at the latest. `version`: of the entry, or the greatest
    sequence that its key was seen to have since the marker was planted."""

    __slots__ = ("bucket", "expires", "flags", "live", "size", "used", "value", "version")

    def __init__(self, bucket: int, live: Live, size: int) -> None:
        self.bucket = bucket
        self.live = live
        self.size = size
        self.version = 0
        self.flags = 0
        self.value = b""
        self.used = False
        self.expires = 0.0


class Kept(NamedTuple):
    """What of an answer is to be served again, until `expires` (CLOCK_BOOTTIME, seconds; above 0)."""

    flags: int
    value: bytes
    expires: float


class NearCacheStats(NamedTuple):
    """What a near cache has done since its client was made (or its process forked), and what it holds.

    `hits`: values served from here; `misses`: keys that were asked of the servers instead; of those that `get` asked for,
    `not_live` are of buckets for which it was not proven in time that nothing had changed. `stores`: values taken in;
    `not_stored`: values that were read and not taken in, because the key was changed meanwhile, or the value is too large.
    `invalidated`: entries that went because somebody changed their key; `dropped_buckets`: how often all of a bucket went,
    because its changes were not told for a while, or it was flushed or has a new primary; `evictions`: entries that went to
    make room. `entries` and `bytes` are here now; `live_buckets`: so many are proven now. `failure`: why no node tells of
    changes, or nothing can be kept; "" where nothing is known to be wrong.
    """

    hits: int = 0
    misses: int = 0
    not_live: int = 0
    stores: int = 0
    not_stored: int = 0
    invalidated: int = 0
    dropped_buckets: int = 0
    evictions: int = 0
    entries: int = 0
    bytes: int = 0
    live_buckets: int = 0
    failure: str = ""


class Slots:
    """See the module. `clock` gives seconds."""

    def __init__(self, bytes_max: int, clock: Callable[[], float]) -> None:
        self.clock = clock
        self._bytes_max = bytes_max
        self._closed = False
        self.forget()

    def forget(self) -> None:
        """Start anew in a forked child, where the lock may be held by a thread that is not there."""
        self._lock = threading.Lock()
        self._table: OrderedDict[bytes, Slot] = OrderedDict()
        self._names: defaultdict[int, set[bytes]] = defaultdict(set)
        self._lives: dict[int, Live] = {}
        self._bytes = self._entries = 0
        self._misses = self._not_live = self._stores = self._not_stored = 0
        self._invalidated = self._dropped_buckets = self._evictions = 0
        self._hit = itertools.count().__next__  # counts exactly, without a lock
        self._looks = 0

    def close(self) -> None:
        """Hold nothing, from now on."""
        with self._lock:
            self._closed = True
            self._lives.clear()
            self._drop_all_locked()

    # --- reading

    def find(self, name: bytes) -> Slot | None:
        """The entry that may be served now. Takes no lock."""
        slot = self._table.get(name)
        if slot is None:
            return None
        now = self.clock()
        if now < slot.live.until and now < slot.expires:  # in this order: invariants 3 and 4
            slot.used = True
            self._hit()
            return slot
        return None

    def plant(self, name: bytes, bucket: int) -> Slot | None:
        """A GET is about to be sent: its marker; None where nobody tells of the bucket, so that its answer is not kept."""
        now = self.clock()
        with self._lock:
            live = self._lives.get(bucket)
            self._misses += 1
            self._not_live += live is None or now >= live.until
            self._drop_locked(name)
            if live is None:
                return None
            marker = Slot(bucket, live, len(name) + SLOT_BYTES)
            self._names[bucket].add(name)  # first: a thread may be interrupted anywhere, and the bucket must know its keys
            self._bytes += marker.size
            self._table[name] = marker
            self._make_room_locked()
            return marker

    def settle(self, name: bytes, marker: Slot | None, version: int, kept: Kept | None) -> None:
        """A GET was answered with that version (0: it was not answered). It becomes an entry, or is known here no less
        (invariant 2)."""
        with self._lock:
            slot = self._table.get(name)
            if slot is None:
                self._not_stored += kept is not None
            elif slot is not marker:
                self._overtake_locked(name, slot, version)
                self._not_stored += kept is not None
            elif kept is None or version < slot.version or len(kept.value) > self._bytes_max // LARGEST_SHARE:
                self._remove_locked(name, slot)
                self._not_stored += kept is not None
            else:
                self._store_locked(slot, version, kept)

    def count_misses(self, count: int) -> None:
        """So many keys were asked of the servers without a marker."""
        with self._lock:
            self._misses += count

    # --- what is known otherwise

    def drop(self, name: bytes) -> None:
        """Something about the key is asked of the servers, or was."""
        if name in self._table:  # invariant 5
            with self._lock:
                self._drop_locked(name)

    def drop_all(self) -> None:
        """Everything may have changed."""
        with self._lock:
            self._drop_all_locked()

    def told(self, name: bytes, sequence: int) -> None:
        """The key was changed, by the change of that sequence."""
        if name in self._table:  # invariant 5
            with self._lock:
                slot = self._table.get(name)
                if slot is not None and self._overtake_locked(name, slot, sequence):
                    self._invalidated += 1

    def drop_bucket(self, bucket: int) -> None:
        """Any key of the bucket may have changed."""
        with self._lock:
            self._drop_bucket_locked(bucket)

    def begun(self, live: Live, buckets: Iterable[int]) -> None:
        """All changes of these buckets are told from now on."""
        with self._lock:
            for bucket in () if self._closed else buckets:
                self._drop_bucket_locked(bucket)
                self._lives[bucket] = live

    def lost(self, buckets: Iterable[int]) -> set[Live]:
        """Changes of these buckets are told no more. Returns what stands for others."""
        with self._lock:
            for bucket in buckets:
                self._lives.pop(bucket, None)
                self._drop_bucket_locked(bucket)
            return set(self._lives.values())

    # --- figures

    def stats(self) -> NearCacheStats:
        """The figures, but for `failure`, which is not known here."""
        now = self.clock()
        with self._lock:
            hits = self._hit() - self._looks
            self._looks += 1
            live_buckets = sum(now < live.until for live in self._lives.values())
            return NearCacheStats(
                hits,
                self._misses,
                self._not_live,
                self._stores,
                self._not_stored,
                self._invalidated,
                self._dropped_buckets,
                self._evictions,
                self._entries,
                self._bytes,
                live_buckets,
            )

    def check(self) -> None:
        """Hold the structure against itself. Raises AssertionError."""
        with self._lock:
            assert self._bytes == sum(slot.size for slot in self._table.values()) <= self._bytes_max
            assert self._entries == sum(slot.expires > 0 for slot in self._table.values())
            assert sum(map(len, self._names.values())) == len(self._table)
            for name, slot in self._table.items():
                assert name in self._names[slot.bucket]
                assert slot.live is self._lives[slot.bucket]  # invariant 1
                assert slot.size == len(name) + len(slot.value) + SLOT_BYTES

    # --- under the lock

    def _store_locked(self, slot: Slot, version: int, kept: Kept) -> None:
        slot.version = version
        slot.flags, slot.value = kept.flags, kept.value
        slot.size += len(kept.value)
        slot.expires = kept.expires  # last: whoever sees it may take the rest
        self._bytes += len(kept.value)
        self._entries += 1
        self._stores += 1
        self._make_room_locked()

    def _overtake_locked(self, name: bytes, slot: Slot, sequence: int) -> bool:
        """The key is known to be at that sequence, at least. Whether an older entry went."""
        if sequence <= slot.version:
            return False
        if slot.expires:
            self._remove_locked(name, slot)
            return True
        slot.version = sequence
        return False

    def _remove_locked(self, name: bytes, slot: Slot) -> None:
        self._entries -= slot.expires > 0
        slot.expires = 0.0  # first: invariant 4
        del self._table[name]
        self._names[slot.bucket].discard(name)
        self._bytes -= slot.size

    def _drop_locked(self, name: bytes) -> None:
        slot = self._table.get(name)
        if slot is not None:
            self._remove_locked(name, slot)

    def _drop_bucket_locked(self, bucket: int) -> None:
        names = self._names.pop(bucket, None)
        if names:
            self._dropped_buckets += 1
            for name in names:
                self._drop_locked(name)

    def _drop_all_locked(self) -> None:
        for name in list(self._table):
            self._remove_locked(name, self._table[name])

    def _make_room_locked(self) -> None:
        """Put out the oldest until the rest fits; those that were used meanwhile, and markers, are passed by some times."""
        chances = CHANCES
        while self._bytes > self._bytes_max and self._table:
            name, slot = next(iter(self._table.items()))
            if chances and (slot.used or not slot.expires):
                slot.used = False
                self._table.move_to_end(name)  # it is there all the time: invariant 5
                chances -= 1
                continue
            self._evictions += slot.expires > 0
            self._remove_locked(name, slot)
