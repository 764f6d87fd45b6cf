"""Looking for an answer again and again for an instant, before going to sleep over it.

What it is: a server nearby answers within a few tens of microseconds. To sleep and be woken again takes a thread about as
long, in a virtual machine several times as long, and as much of its processor's time. So whoever has just asked looks
again and again at first; only if nothing comes does it sleep.
Which thread runs it: the one that owns the connection; a `Spin` belongs to one connection.
What it owns: how often looking was in vain.
What it must not know: sockets, requests.

Invariants:
1. No look waits, and looking ends SPIN_SECONDS after it began. What the looks cost otherwise, the interpreter lock that
   another thread holds on to, ends it all the sooner.
2. The more often it was in vain, the longer it is left alone: a server far away costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

SPIN_SECONDS = 50e-6
"""As long as being woken takes where that takes long: whoever looks so long in vain has at most doubled its cost."""

PAUSE_MAX = 1023
"""Of so many calls one still looks, to find out that the server has come nearer or the machine is less busy. That is a
twentieth of a microsecond for each."""


class Spin:
    """Decides whether looking pays, by how it went before."""

    __slots__ = ("_pause", "_pausing")

    def __init__(self) -> None:
        self._pause = 0
        self._pausing = 0

    def sees(self, look: Callable[[int], object]) -> bool:
        """Whether `look(0)` finds something within SPIN_SECONDS. Never sleeps.

        For an answer that was not there at once. One that was says nothing about the next: the server may have taken our
        processor to answer, as it does where there is one processor for both; and then it is our sleeping that lets it.
        """
        if self._pausing:
            self._pausing -= 1  # invariant 2
            return False
        end = monotonic() + SPIN_SECONDS
        while not look(0):
            if monotonic() >= end:  # invariant 1
                self._pausing = self._pause = min(2 * self._pause + 1, PAUSE_MAX)
                return False
        self._pause = 0
        return True
