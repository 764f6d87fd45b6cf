"""The register that etcd keeps: the view is one key, changed by a transaction on its mod revision.

What it is: `rcache.cluster.register.Register` over the gateway. A revision is the key's mod revision; changes of other keys in
the same etcd make it grow by more than one at a time.
Which thread runs it: any; every call blocks the caller's. A read or a change takes `timeout_s` at most (COMPACTION_S more where
it is a change's turn to compact), a watch its own time and `timeout_s`.
What it owns: what it has seen of the key. It may lock: its own lock, for moments; nothing is sent under it.
What it must not know: who wishes a view, and why.

Invariants:
1. A read is linearizable: what a call was told before it began is a floor for what it is told.
2. Below that floor is another history: an etcd that was restored from a backup, or another one at the same address. A lower
   epoch, a lower revision, another view of the same epoch, another cluster, no view where there was one: each is refused, by
   every later call too. Only a restart may follow that history. (A node goes back to roles that were given to others since, and
   acknowledged writes are gone.)
3. A change is sent once. Without an answer it may have been made or not, or is made later: `RegisterUnreachable`.

Etcd keeps all that a key ever was until somebody compacts. Compaction is of the whole etcd: it also takes the old revisions of
keys that are not rcache's, from whoever else uses this etcd and reads the past. So it is done rarely, by each process after so
many changes of its own (CHANGES_PER_COMPACTION), and only up to the revision that the last of them replaced. A watch of ours
needs no old revision: it reads first.
"""

from __future__ import annotations

import threading
from base64 import b64decode, b64encode
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from time import monotonic

from loguru import logger

from rcache.agreement.gateway import Gateway
from rcache.agreement.line import Facts
from rcache.cluster.register import RegisterFailed, RegisterUnreachable, Revised
from rcache.cluster.transition import faults_between
from rcache.cluster.view import BadView, View, decode_view, encode_view, faults_of

TIMEOUT_S = 5.0
"""Longer than etcd takes to elect another leader (one to two seconds by default), shorter than it keeps a question (7 s)."""

STREAM_S = 5.0
"""A watch is opened anew after this: a member whose machine vanished ends no stream, and is noticed when it is asked again."""

PAUSE_S = 0.1
"""Between two tries of a watch that breaks at once: it becomes a poll that is no burden."""

CHANGES_PER_COMPACTION = 1000
"""Some megabytes of old views are kept, and changes of view are so rare that other users of etcd seldom lose anything by it."""

COMPACTION_S = 1.0
"""The change is made; whoever asked for it should not wait long for this."""


class EtcdRegister:
    """See the module. `compactions_failed` counts what is otherwise only logged."""

    def __init__(self, endpoints: Sequence[str], cluster_key: str, timeout_s: float = TIMEOUT_S) -> None:
        """`endpoints`: http://HOST:PORT of members of one etcd. `cluster_key`: the key, which nothing else may use. Connects to
        nobody yet. Raises ValueError."""
        if not cluster_key or timeout_s <= 0:
            raise ValueError(f"no key, or no time: {cluster_key!r}, {timeout_s}")
        self.compactions_failed = 0
        self._gateway = Gateway(endpoints)
        self._name = cluster_key
        self._key = b64encode(cluster_key.encode()).decode()
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._known: Revised | None = None
        self._failure = ""
        self._changes = 0

    def read(self) -> Revised | None:
        """The view and its revision; None before the first. Raises `RegisterUnreachable`, `RegisterFailed`."""
        return self._read(monotonic() + self._timeout_s)[0]

    def begin(self, view: View) -> Revised:
        """The first view, of a cluster that is born. Raises ValueError where there is one already, `BadView`,
        `RegisterUnreachable`, `RegisterFailed`."""
        faults = faults_of(view)
        if faults:
            raise BadView("; ".join(faults[:3]))
        absent = {"target": "CREATE", "result": "EQUAL", "key": self._key, "create_revision": "0"}
        was_kept, held = self._change(absent, view, monotonic() + self._timeout_s)
        if not was_kept:
            raise ValueError(f"there is a register of epoch {held.view.epoch} here already; this would be {view.epoch}")
        return held

    def compare_and_set(self, revision: int, view: View) -> tuple[bool, Revised]:
        """Keep this view if the register still is at `revision`. Whether it was kept, and what the register holds now. Raises
        `BadView` for one that may not follow, ValueError before the first view, `RegisterUnreachable`, `RegisterFailed`."""
        deadline = monotonic() + self._timeout_s
        held, _ = self._read(deadline)
        if held is None:
            raise ValueError("the register has no view yet")
        if held.revision != revision:
            return False, held
        faults = faults_between(held.view, view)
        if faults:
            raise BadView("; ".join(faults[:3]))
        unchanged = {"target": "MOD", "result": "EQUAL", "key": self._key, "mod_revision": str(revision)}
        was_kept, held = self._change(unchanged, view, deadline)
        if was_kept:
            self._compact_sometimes(revision)
        return was_kept, held

    def watch(self, revision: int, timeout_s: float) -> Revised | None:
        """Block until the register is beyond `revision`; None where it is not in time, or closed. Raises
        `RegisterUnreachable`, `RegisterFailed`."""
        deadline = monotonic() + timeout_s
        while not self._gateway.stops.ended.is_set():
            try:
                held, now = self._read(monotonic() + self._timeout_s)
            except RegisterUnreachable:
                if self._gateway.stops.ended.is_set():
                    break
                raise
            if held is not None and held.revision > revision:
                return held
            if monotonic() >= deadline:
                break
            self._wait_for_change(now + 1, min(deadline, monotonic() + STREAM_S))
        return None

    def close(self) -> None:
        """Whoever waits comes back, now and from now on. What came of a change that was sent is not known then, as for any
        other without an answer."""
        self._gateway.stops.end()

    # --- what is asked of etcd

    def _read(self, deadline: float) -> tuple[Revised | None, int]:
        """What the key holds, and the revision that all of etcd was at then."""
        before = self._floor()
        answer = self._gateway.ask("/v3/kv/range", {"key": self._key}, deadline, again=True)
        with self._understanding(answer):
            held = self._held_of(answer)
            now = int(answer["header"]["revision"])
        self._demand_onward(before, held)
        return held, now

    def _change(self, condition: Facts, view: View, deadline: float) -> tuple[bool, Revised]:
        """Put the view under a condition: whether, and what the key holds now."""
        before = self._floor()
        value = b64encode(encode_view(view)).decode()
        request = {
            "compare": [condition],
            "success": [{"request_put": {"key": self._key, "value": value}}],
            "failure": [{"request_range": {"key": self._key}}],
        }
        answer = self._gateway.ask("/v3/kv/txn", request, deadline, again=False)  # invariant 3
        with self._understanding(answer):
            was_kept = answer.get("succeeded", False) is True
            if was_kept:
                held: Revised | None = Revised(int(answer["header"]["revision"]), view)
            else:
                held = self._held_of(answer["responses"][0]["response_range"])
        self._demand_onward(before, held)
        if held is None:
            raise RegisterFailed(f"the view at {self._name} was removed from etcd while it was changed")
        return was_kept, held

    def _wait_for_change(self, revision: int, deadline: float) -> None:
        """Until something may have happened to the key at or after this revision of etcd's, or the deadline. The stream tells
        only that; what there is now is read, because events may be of long ago, and old revisions compacted."""
        request = {"create_request": {"key": self._key, "start_revision": str(revision)}}
        try:
            with closing(self._gateway.follow("/v3/watch", request, self._timeout_s, deadline)) as answers:
                for answer in answers:
                    with self._understanding(answer):
                        result = answer["result"]
                        if result.get("events"):
                            return
                        if result.get("canceled"):
                            break  # compacted, most likely
                else:
                    return
        except RegisterUnreachable as error:
            logger.debug("the watch of {} broke: {}", self._name, error)
        self._gateway.stops.ended.wait(min(PAUSE_S, max(0.0, deadline - monotonic())))

    def _compact_sometimes(self, revision: int) -> None:
        """Let etcd forget what was before the revision that was just replaced; see the module. Raises nothing."""
        with self._lock:
            self._changes += 1
            if self._changes % CHANGES_PER_COMPACTION:
                return
        try:
            self._gateway.ask("/v3/kv/compaction", {"revision": str(revision)}, monotonic() + COMPACTION_S, again=False)
        except (RegisterUnreachable, RegisterFailed) as error:
            if "has been compacted" in str(error):
                return  # somebody else was faster
            with self._lock:
                self.compactions_failed += 1
            logger.warning(
                "etcd was not compacted to revision {}; the next turn is in {} changes: {}",
                revision,
                CHANGES_PER_COMPACTION,
                error,
            )

    # --- what its answers mean

    @contextmanager
    def _understanding(self, answer: Facts) -> Iterator[None]:
        try:
            yield
        except BadView as error:
            raise RegisterFailed(f"what etcd has at {self._name} is no view: {error}") from error
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise RegisterFailed(f"etcd answers what it should not: {error!r} in {str(answer)[:200]}") from error

    def _held_of(self, found: Facts) -> Revised | None:
        """Of the answer to a range. Raises what `_understanding` is for."""
        values = found.get("kvs", [])
        if not values:
            return None
        return Revised(int(values[0]["mod_revision"]), decode_view(b64decode(values[0]["value"], validate=True)))

    def _floor(self) -> Revised | None:
        """What is known before something is asked. Raises `RegisterFailed`."""
        with self._lock:
            if self._failure:
                raise RegisterFailed(self._failure)
            return self._known

    def _demand_onward(self, floor: Revised | None, held: Revised | None) -> None:
        """Invariant 2. The floor is of before the question: what another thread was told meanwhile may be newer. Raises
        `RegisterFailed`."""
        with self._lock:
            why = _why_not_onward(floor, held) if floor is not None else ""
            if why:
                self._failure = f"etcd went back: {why}, at {self._name}; was it restored?"
                logger.error("{}", self._failure)
                raise RegisterFailed(self._failure)
            if held is not None and (self._known is None or held.revision > self._known.revision):
                self._known = held


def _why_not_onward(floor: Revised, held: Revised | None) -> str:
    """Why what is held is not of the history that `floor` is of; empty if it may be."""
    if held is None:
        return f"no view, after epoch {floor.view.epoch}"
    if held.view.cluster_id != floor.view.cluster_id:
        return f"cluster {held.view.cluster_id} after {floor.view.cluster_id}"
    if held.view.epoch < floor.view.epoch:
        return f"epoch {held.view.epoch} after {floor.view.epoch}"
    if held.revision < floor.revision:
        return f"revision {held.revision} after {floor.revision}"
    if floor.view != held.view and (floor.view.epoch == held.view.epoch or floor.revision == held.revision):
        return f"another view of epoch {held.view.epoch}, revision {held.revision}"
    return ""
