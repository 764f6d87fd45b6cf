"""What a register is: the three verbs that views are agreed by, whoever keeps them.

What it is: the protocol that `rcache.stream.register` (a file at one node), the register of another node, and etcd all keep.
Which thread runs it: any; `watch` blocks the caller's.
What it owns: nothing; these are types. What it must not know: files, sockets, who asks.

Whoever changes the view and does not learn what came of it (`RegisterUnreachable`) knows nothing: the change may have been
made, and may still be made later. It is settled only by a revision past the one that it was asked against.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from rcache.cluster.view import View


class Revised(NamedTuple):
    """A view and its revision, which every change makes larger."""

    revision: int
    view: View


class RegisterFailed(Exception):
    """The register cannot go on, and does not know what it holds: only a restart of whoever keeps it can be right."""


class RegisterUnreachable(Exception):
    """No answer, or none in time. What was asked for may have been done, or may still be done."""


class Register(Protocol):
    """Where the view is agreed. Every call may raise `RegisterUnreachable` and `RegisterFailed`."""

    def read(self) -> Revised | None:
        """The view and its revision; None before the first."""
        ...

    def begin(self, view: View) -> Revised:
        """The first view, of a cluster that is born. Raises ValueError where there is one already, `BadView`."""
        ...

    def compare_and_set(self, revision: int, view: View) -> tuple[bool, Revised]:
        """Keep this view if the register still is at `revision`. Whether it was kept, and what the register holds now. Raises
        `BadView` for one that may not follow, ValueError before the first view."""
        ...

    def watch(self, revision: int, timeout_s: float) -> Revised | None:
        """Block until the register is beyond `revision`; None where it is not in time, or closed."""
        ...

    def close(self) -> None:
        """Whoever watches comes back, now and from now on. What else is under way may be broken off, its outcome unknown."""
        ...
