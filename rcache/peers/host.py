"""What a link tells, and asks: the control plane, as far as a link needs it.

Which thread runs it: the link's; nothing here may block. What it owns: nothing. What it must not know: how a link works.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rcache.peers.link import Link


class LinkHost(Protocol):
    """See the module."""

    @property
    def epoch(self) -> int:
        """Of the view that was taken in last."""
        ...

    def was_refused(self, link: Link, status: int, values: tuple[object, ...]) -> None:
        """The peer refused what was sent; with STALE_VIEW the first of `values` is the text of its newer view."""
        ...

    def came_down(self, link: Link, *, refused: bool) -> None:
        """The connection was lost, or could not be made; `refused`: nobody listens there."""
        ...

    def has_filled(self, link: Link, bucket: int) -> None:
        """The peer has a whole copy, and is sent every change since."""
        ...

    def has_no_room(self, link: Link) -> None:
        """The peer has no room for the copies that are being made, and none is made for them."""
        ...

    def has_moved(self, link: Link) -> None:
        """Acknowledgements came in, and somebody asked to be told (`watch`)."""
        ...
