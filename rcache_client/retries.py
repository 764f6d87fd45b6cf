"""Whether a request that failed may be sent again, and how long to wait before.

What it is: `Failed`, what one try came to, and `Retries`, the course of one call's tries.
Which thread runs it: the caller's; it sleeps, and fetches a view, within the call's budget.
What it owns: the count of tries of one call.
What it must not know: connections, and what a request says.

Two courses:
- *elsewhere*: the key's bucket may have another primary by now, because its node said so or could not be reached. The view is
  fetched, and as long as it is no newer the request is sent again after pauses that begin at the length of a handover. That
  goes on to the end of the budget: a dead node's buckets are taken over in a second or two.
- *later*: the server asked for patience, or there is nobody else to ask. At most TRIES_MAX tries, with longer pauses.
"""

from __future__ import annotations

import random
import time
from time import monotonic

from rcache_client.budget import back_off_seconds
from rcache_client.door import Door
from rcache_client.errors import ConnectionLost, NotExecuted, RcacheError, ServersUnavailable, TimedOut
from rcache_client.routing import Router

TRIES_MAX = 6
"""With the back-off below that is about a second of trying; a server that is still busy then is overloaded."""

BACK_OFF_FIRST_SECONDS = 0.02
BACK_OFF_MAX_SECONDS = 0.5
"""Short beside a budget, long beside a request: enough for a queue to drain."""

ELSEWHERE_FIRST_SECONDS = 0.002
"""A bucket is handed over in about that time."""

ELSEWHERE_MAX_SECONDS = 0.05
"""A call that waits for a dead node's bucket to be taken over loses no more than that afterwards."""


class Failed:
    """What one try came to, where it was no answer.

    `elsewhere`: whether to look for another primary; `door`: where it was tried; `used`: the epoch of the table it went by;
    `wanted`: the epoch that the server named when it sent us elsewhere, else 0; `no_way`: nobody was left to be tried.
    """

    __slots__ = ("door", "elsewhere", "error", "no_way", "used", "wanted")

    def __init__(
        self,
        error: RcacheError,
        door: Door | None = None,
        *,
        elsewhere: bool = False,
        used: int = 0,
        wanted: int = 0,
        no_way: bool = False,
    ) -> None:
        self.error = error
        self.door = door
        self.no_way = no_way
        self.elsewhere = elsewhere
        self.used = used
        self.wanted = wanted

    @property
    def is_final(self) -> bool:
        """Whether no other try may follow: it was executed, perhaps, or would be refused again."""
        return not isinstance(self.error, (NotExecuted, TimedOut))


class Retries:
    """The tries of one call. Not thread-safe."""

    def __init__(self, router: Router, deadline: float) -> None:
        self._router = router
        self._deadline = deadline
        self._tries = 0
        self._elsewhere = 0
        self._last: RcacheError | None = None

    def restart(self) -> None:
        """A part of the call went well: its server is neither too busy nor gone."""
        self._tries = 0

    def wait(self, failed: Failed) -> None:
        """Wait until the next try may be made. Raises the error if none may be. Blocks to the deadline at most."""
        if failed.no_way:
            error = self._better_known(failed.error)
            raise error from error.__cause__
        if failed.is_final:
            raise failed.error
        self._last = failed.error
        if failed.elsewhere:
            self._seek(failed)
        else:
            self._be_patient(failed)

    def _better_known(self, no_way: RcacheError) -> RcacheError:
        """Which error tells more: that of the last try, or that there is no way to try again."""
        last = self._last
        if last is None or (isinstance(no_way, ServersUnavailable) and not isinstance(last, TimedOut)):
            return no_way
        return last

    def _seek(self, failed: Failed) -> None:
        if self._router.refresh(failed.used, failed.wanted, self._deadline, failed.door):
            self._elsewhere = 0
            pause_s = 0.0
        else:
            pause_s = back_off_seconds(ELSEWHERE_FIRST_SECONDS, ELSEWHERE_MAX_SECONDS, self._elsewhere)
            self._elsewhere += 1
        self._sleep(random.uniform(pause_s / 2, pause_s), failed)  # noqa: S311 - spreads clients, guards nothing

    def _be_patient(self, failed: Failed) -> None:
        pause_s = back_off_seconds(BACK_OFF_FIRST_SECONDS, BACK_OFF_MAX_SECONDS, self._tries)
        self._tries += 1
        if self._tries == 1 and isinstance(failed.error, (ConnectionLost, TimedOut)):
            pause_s = 0.0  # a lost connection needs only to be made anew
        if self._tries >= TRIES_MAX:
            raise failed.error from failed.error.__cause__
        self._sleep(random.uniform(pause_s / 2, pause_s), failed)  # noqa: S311

    def _sleep(self, pause_s: float, failed: Failed) -> None:
        if monotonic() + pause_s >= self._deadline:
            raise failed.error from failed.error.__cause__
        if pause_s:
            time.sleep(pause_s)
