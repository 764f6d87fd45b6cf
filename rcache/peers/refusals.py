"""What a peer refused of what it was sent, and whether it refuses the same for ever.

What it is: one link's account of it. A frame that was refused for an older view is sent again once this node has the newer one;
whether that helps is seen by the link's position.
Which thread runs it: the link's receiver notes, its sender asks; under the link's lock.
What it owns: these facts. What it must not know: connections, windows, what is done about it.
"""

from __future__ import annotations

import time

from rcache_client.wire.frames import Reply
from rcache_client.wire.opcodes import Status

STUCK_S = 2.0
"""How long a peer that goes by this node's view, and says that what it is sent is of an older one, is taken for behind. Then
its copies are not what they are taken for here, and are made anew."""

NOWHERE = -1
"""Before every position of the stream."""


class Refusals:
    """See the module. `epoch`: of the view that a frame of this generation was refused for, 0 where it was for another reason,
    None while nothing was refused; `count`: since the link was made."""

    def __init__(self) -> None:
        self.epoch: int | None = None
        self.count = 0
        self._at = NOWHERE  # where the link stood when the peer refused something for a reason that is not seen here
        self._since = 0.0

    def begin_generation(self) -> None:
        """All of it is sent again."""
        self.epoch = None

    def note(self, reply: Reply, acknowledged: int, followed: int) -> bool:
        """The peer refused a frame while the link stood at `acknowledged`, by the view of epoch `followed`. Whether the peer
        refuses the same again and again, and goes by no newer view than that. (It let go of a copy that is taken for whole
        here: all that comes behind a change of that bucket would be sent for ever.)"""
        self.count += 1
        if self.epoch is None:
            self.epoch = reply.epoch if reply.status == Status.STALE_VIEW else 0
        now = time.monotonic()
        if reply.status != Status.STALE_VIEW or reply.epoch > followed or acknowledged != self._at:
            self._at, self._since = acknowledged, now
        elif now - self._since >= STUCK_S:
            self._since = now
            return True
        return False
