"""Lost buckets brought back: what this node's files have of them is put into the engine and the log, and only then offered.

What it is: the way from the worker that reads the files to the control plane, which alone puts records of lost buckets in.
Which thread runs it: the worker of an order (`claim`, `put`, `sync`, `withdraw`: each posts what is to be done and waits for
that); what is posted runs on the control plane's, a piece in each round, so that leases are looked at in between.
What it owns: nothing; what is claimed stands in `Roles.offered`. It may lock: one stripe, then the applied stream.
What it must not know: files; how a view is agreed.

The order, and the sequence of events that each step is there for:
1. A bucket is claimed while it is lost. From then on views in which it is still lost do not clear it here.
2. Its import goes into the engine and the log, piece by piece. A view that gives it to another comes between two pieces, never
   within one: no piece goes in after it. (The log would say that the bucket is here, behind the DROP that says it is not.)
3. The log has all of it on the disk before this node asks for the bucket. (It asks, is named as primary, and is killed: of what
   it has alone it recovers what its log has, and only that. With half of an import there it would not start.)
4. The view that names this node makes the whole copy its primary, and its OPEN goes on from where the chain ended.
So a kill at any moment leaves the bucket lost, with the files as they were, or this node as its primary, with all of it in its
own log. What cannot be put in (no memory, a file that cannot be read) is let go of, and the bucket stays lost.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable

from rcache.cluster.bucket_state import BucketState
from rcache.engine.contract import ChainError
from rcache.member.board import Board
from rcache.records.record import BadRecord, heads
from rcache.stream.applied import AppliedFailed

LOOK_S = 0.01
"""How often whoever waits for the control plane looks whether it still wants to."""

RECORD_S = 0.05
"""How long the control plane waits for room in the log's stream before it looks after everything else and tries again."""

SYNC_S = 0.5
"""How long one wait for the disk is, before it is looked whether anybody still wants it."""

Look = Callable[[], None]
"""Called now and then while something is waited for; raises where it is not wanted any more."""


class OfferFailed(Exception):
    """A lost bucket cannot be brought back here; the text says why."""


class Offers:
    """See the module. Whoever claims buckets has them agreed, or withdraws them."""

    def __init__(self, board: Board) -> None:
        self._board = board

    # --- for an order, on its worker's thread

    def claim(self, buckets: Collection[int], look: Look, *, is_empty: bool) -> None:
        """These are about to be asked for; `is_empty`: to begin with nothing in them. Raises `OfferFailed`, and as `look`."""
        self._done(lambda: self._claim(buckets, is_empty), look)

    def put(self, bucket: int, pieces: Iterable[bytes], look: Look) -> None:
        """Bring the import of a claimed bucket in, in pieces of whole records. Raises as `claim` does, and what reading the
        pieces raises; some may be in by then."""
        for piece in pieces:
            self._done(lambda: self._apply(bucket, piece), look)  # noqa: B023 - it is waited for
            while not self._done(lambda: self._record(bucket, piece), look):  # noqa: B023
                look()
        self._done(lambda: self._demand_whole(bucket), look)

    def sync(self, look: Look) -> None:
        """Block until all that was brought in is on the disk (step 3), where a log is kept. Raises as `claim` does."""
        log = self._board.parts.log
        while log is not None and not log.sync(SYNC_S):
            if log.failure is not None:
                raise OfferFailed(f"the append log failed: {log.failure}")
            look()

    def withdraw(self, buckets: Collection[int]) -> None:
        """Any thread: these are not asked for, or were refused. Does not wait."""
        self._board.post(lambda: self._board.roles.withdraw(buckets))

    def _done(self, do: Callable[[], bool], look: Look) -> bool:
        """What it said, once the control plane has done it. One that is not waited for any more may still be done: before
        whatever is posted after it."""
        said: list[bool] = []
        failed: list[str] = []
        done = threading.Event()

        def event() -> None:
            try:
                said.append(do())
            except (OfferFailed, ChainError, BadRecord, MemoryError, AppliedFailed) as error:
                failed.append(str(error) or type(error).__name__)
            finally:
                done.set()

        self._board.post(event)
        while not done.wait(LOOK_S):
            look()
        if failed:
            raise OfferFailed(failed[0])
        return bool(said) and said[0]

    # --- on the control plane's thread

    def _claim(self, buckets: Collection[int], is_empty: bool) -> bool:
        board = self._board
        if board.is_failing:
            raise OfferFailed("the append log of this node failed")
        for bucket in buckets:
            if (primary := board.view.placements[bucket].primary) is not None:
                raise OfferFailed(f"bucket {bucket} is not lost: {primary} has it")
            if bucket in board.roles.offered:
                raise OfferFailed(f"bucket {bucket} is being brought back here already")
            if board.engine.state(bucket) is not BucketState.ABSENT:
                raise OfferFailed(f"bucket {bucket} is lost, and something of it is here all the same")
        board.roles.offered.update(dict.fromkeys(buckets, is_empty))
        return True

    def _demand_claimed(self, bucket: int) -> None:
        if self._board.roles.offered.get(bucket) is not False:
            raise OfferFailed(f"bucket {bucket} was given to another node meanwhile, or this one fell out")

    def _apply(self, bucket: int, piece: bytes) -> bool:
        self._demand_claimed(bucket)
        self._board.engine.apply(piece)
        self._demand_room()
        return True

    def _demand_room(self) -> None:
        """Without eviction nothing that is brought back may take the room that others were promised: the next write of theirs
        would be refused for it. (With eviction this node's other buckets give way, as they do to any copy.)"""
        engine = self._board.engine
        if engine.config.evict:
            return
        memory = engine.stats()["memory"]
        if memory["used_bytes"] > memory["limit_bytes"]:
            raise OfferFailed(f"no room within --memory-limit, {memory['limit_bytes']} bytes, with --no-evict")

    def _record(self, bucket: int, piece: bytes) -> bool:
        """Whether the log's stream had room for what was applied."""
        self._demand_claimed(bucket)
        try:
            count = sum(1 for _ in heads(piece))
            self._board.parts.applied.append(piece, count, time.monotonic_ns() + int(RECORD_S * 1e9))
        except TimeoutError:
            return False
        return True

    def _demand_whole(self, bucket: int) -> bool:
        self._demand_claimed(bucket)
        if self._board.engine.state(bucket) is not BucketState.BACKUP:
            raise OfferFailed(f"bucket {bucket}: what was read of it is no whole copy")
        return True
