"""The agreement: this node's wishes, brought to the register one at a time, and what the register says.

What it is: a wish is a function from a view to the next one. It is made of the newest view that is known, brought to the
register by compare-and-set, and made anew if somebody was quicker; until it is settled: agreed, or refused by the view that
there is.
Which thread runs it: two of its own: `agreement` proposes, `agreement-watch` watches. Started and joined by the service.
What it owns: its two threads, and the wishes that wait. It may lock: its own lock, for moments; never with I/O.
What it must not know: what a wish is for, and what a view means to this node.

Invariants:
1. One change is under way at a time. One whose answer was lost is sent again as it was (same revision, same nonce) until the
   register answers it, or is past the revision that it was asked against. (A change is given up, a second is asked for and
   refused, the first is carried out late: nobody keeps its duties.)
2. `done` is called once for each wish, when it is settled, or never, if the node stops first.
3. A change that was made is not taken for one that was refused, however many were made since: every view tells the last wish
   of each node that was agreed, and by 1 there was none of this node's after it. (The answer is lost, others change the view,
   and the wish, made anew, is refused for what it has done itself: "nothing is paused" to whoever ended the pause.)
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from loguru import logger

from rcache.cluster.register import Register, RegisterFailed, RegisterUnreachable, Revised
from rcache.cluster.view import BadView, View
from rcache.cluster.wishes import Asker, WishRefused

RETRY_S = 0.1
"""How long to leave a register alone that did not answer: its holder may be starting, and nothing is hammered."""

WATCH_S = 5.0
"""How long one watch lasts; the next begins at once."""

NONCE_BYTES = 8


@dataclass(frozen=True, slots=True)
class Wish:
    """What is wished, in words; the next view by it (raises `WishRefused`); and who is told how it was settled: with the reason
    why it was refused, or "" where it was agreed."""

    what: str
    make: Callable[[View, Asker], View]
    done: Callable[[str], None] = lambda _refused: None


class Agreement:
    """See the module. `on_view` is called with every newer revision, on either thread, under the lock: it only notes it."""

    def __init__(self, register: Register, name: str, on_view: Callable[[Revised], None]) -> None:
        self._register = register
        self._name = name
        self._on_view = on_view
        self._lock = threading.Lock()
        self._wanted = threading.Condition(self._lock)
        self._wishes: deque[Wish] = deque()
        self._latest: Revised | None = None
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(self._propose_next,), name="agreement"),
            threading.Thread(target=self._run, args=(self._watch,), name="agreement-watch"),
        ]
        self.unreachable = ""
        self.failures = 0
        self.errors = 0
        self.proposing = ""

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self, timeout_s: float) -> bool:
        """End both threads; wishes that wait are dropped. False if that took too long."""
        self._stopping.set()
        with self._lock:
            self._wanted.notify_all()
        self._register.close()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(timeout_s)
        return not any(thread.is_alive() for thread in self._threads)

    @property
    def latest(self) -> Revised | None:
        """The newest that the register is known to have held."""
        return self._latest

    @property
    def waiting(self) -> int:
        """How many wishes are not settled."""
        return len(self._wishes) + bool(self.proposing)

    def propose(self, wish: Wish) -> None:
        """Any thread: have this agreed, after those that wait already."""
        with self._lock:
            self._wishes.append(wish)
            self._wanted.notify_all()

    def learn(self, revised: Revised) -> None:
        """The register holds, or held, this."""
        with self._lock:
            if self._latest is not None and revised.revision <= self._latest.revision:
                return
            self._latest = revised
            self._on_view(revised)  # under the lock: whoever settles a wish by this view finds it in the queue before

    # --- the threads

    def _run(self, step: Callable[[], None]) -> None:
        """The threads' one catch-all: an error is logged and counted, and the thread goes on."""
        while not self._stopping.is_set():
            try:
                step()
            except Exception:
                self.errors += 1
                logger.exception("agreement: unhandled error")
                self._stopping.wait(RETRY_S)

    def _watch(self) -> None:
        latest, began = self._latest, time.monotonic()
        try:
            revised = self._register.watch(latest.revision if latest else 0, WATCH_S)
        except (RegisterUnreachable, RegisterFailed) as error:
            self._note_trouble(error)
            self._stopping.wait(RETRY_S)
            return
        self._note_answer()
        if revised is not None:
            self.learn(revised)
        elif time.monotonic() < began + WATCH_S / 2:
            self._stopping.wait(RETRY_S)  # the register is closed: it would be asked again and again while this node stops

    def _propose_next(self) -> None:
        with self._lock:
            self._wanted.wait_for(lambda: self._wishes or self._stopping.is_set())
            if self._stopping.is_set():
                return
            wish = self._wishes.popleft()
            self.proposing = wish.what
        try:
            refused = self._settle(wish)
        finally:
            self.proposing = ""
        if refused is not None:
            wish.done(refused)

    def _settle(self, wish: Wish) -> str | None:
        """Why it was refused; "" where it was agreed; None if the node stops first."""
        asker = Asker(self._name, os.urandom(NONCE_BYTES).hex())
        while not self._stopping.is_set():
            held = self._held()
            if held is None:
                continue
            try:
                wanted = wish.make(held.view, asker)
            except WishRefused as refused:
                if self._is_current(held):
                    return str(refused)
                continue
            except Exception as error:  # nothing was asked yet; who waits for an answer must have one
                self.errors += 1
                logger.exception("agreement: unhandled error in the wish to {}", wish.what)
                return f"an unhandled error: {error!r}"
            agreed = self._bring(held, wanted)
            if agreed is None or agreed:
                return None if agreed is None else ""
        return None

    def _is_current(self, held: Revised) -> bool:
        """Whether the register still holds this: a wish is not refused by a view of yesterday."""
        try:
            now = self._register.read()
        except (RegisterUnreachable, RegisterFailed) as error:
            self._note_trouble(error)
            self._stopping.wait(RETRY_S)
            return False
        if now is not None:
            self.learn(now)
        return now is not None and now.revision == held.revision

    def _held(self) -> Revised | None:
        """The newest that is known; asked for where nothing is."""
        if self._latest is None:
            try:
                revised = self._register.read()
            except (RegisterUnreachable, RegisterFailed) as error:
                self._note_trouble(error)
                revised = None
            if revised is None:
                self._stopping.wait(RETRY_S)
            else:
                self.learn(revised)
        return self._latest

    def _bring(self, held: Revised, wanted: View) -> bool | None:
        """Whether this change was made, now or by a try whose answer was lost; None if the node stops first (invariant 1)."""
        while not self._stopping.is_set():
            try:
                kept, now = self._register.compare_and_set(held.revision, wanted)
            except (RegisterUnreachable, RegisterFailed) as error:
                self._note_trouble(error)
                self._stopping.wait(RETRY_S)
                continue
            except (BadView, ValueError) as error:  # the keeper knows better than we do
                logger.error("the register refuses a change of {}: {}", wanted.proposer, error)
                self._stopping.wait(RETRY_S)
                return False
            except Exception as error:  # it may have been made: it is brought again until that is known
                self.errors += 1
                logger.exception("agreement: unhandled error of the register")
                self._note_trouble(error)
                self._stopping.wait(RETRY_S)
                continue
            self._note_answer()
            self.learn(now)
            return kept or _tells_of(now.view, wanted)
        return None

    def _note_trouble(self, error: Exception) -> None:
        self.failures += 1
        if not self.unreachable and not self._stopping.is_set():
            logger.warning("the register does not answer; views cannot change until it does: {}", error)
        self.unreachable = str(error)

    def _note_answer(self) -> None:
        if self.unreachable:
            logger.info("the register answers again")
        self.unreachable = ""


def _tells_of(view: View, wanted: View) -> bool:
    """Whether a view says that this change was made (invariant 3). Who removed itself is told of by that view alone."""
    return wanted.nonce in (view.nonces.get(wanted.proposer), view.nonce if view.proposer == wanted.proposer else None)
