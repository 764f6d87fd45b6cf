"""Etcd as a whole: which of its members is asked, for how long, and who is asked next.

What it is: the endpoints in turn, beginning with the one that answered last, each with a share of the time that is left.
Which thread runs it: any; every call blocks the caller's, until its deadline at the latest (a reading of `time.monotonic`).
What it owns: a connection for as long as one call. It may lock: its own lock, and that of `Stops`, for moments.
What it must not know: views, revisions, what is asked.

1. What may have been sent is sent again only if it does no harm twice (`again`). A connect that failed sent nothing.
2. A call without an answer is `RegisterUnreachable`: of the moment. An answer that etcd does not give, or a refusal that will
   be the same tomorrow, is `RegisterFailed`. Neither says that nothing was done.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from time import monotonic

from rcache.agreement.line import Facts, Line, NotSent, Stops, parse_endpoint
from rcache.cluster.register import RegisterUnreachable


class Gateway:
    """See the module."""

    def __init__(self, endpoints: Sequence[str]) -> None:
        """Raises ValueError. Connects to nobody yet."""
        if not endpoints:
            raise ValueError("etcd needs at least one endpoint")
        self.endpoints = [parse_endpoint(url) for url in endpoints]
        self.stops = Stops()
        """Of what may be ended from another thread."""
        self._tls = ssl.create_default_context()
        self._lock = threading.Lock()
        self._first = 0

    def ask(self, path: str, facts: Facts, deadline: float, *, again: bool) -> Facts:
        """The answer. `again`: it does no harm twice. Raises `RegisterUnreachable`, also at `stops.end`, and
        `RegisterFailed`."""
        faults: list[str] = []
        for index, share in self._in_turn(deadline):
            try:
                with closing(Line(self.endpoints[index], share, self._tls, self.stops)) as line:
                    line.deadline = share if again else deadline
                    answer = line.ask(path, facts)
            except (NotSent, RegisterUnreachable) as error:
                self._pass_over(index)
                if isinstance(error, RegisterUnreachable) and not again:
                    raise  # rule 1
                faults.append(str(error))
            else:
                return answer
        raise RegisterUnreachable("; ".join(faults) or "etcd: no time is left to ask")

    def follow(self, path: str, facts: Facts, opening_s: float, deadline: float) -> Generator[Facts, None, None]:
        """The answers of a stream, until the deadline; `opening_s` for the first of them. The caller closes it. Raises
        `RegisterUnreachable`, also where the stream breaks and at `stops.end`, and `RegisterFailed`."""
        faults: list[str] = []
        for index, share in self._in_turn(min(deadline, monotonic() + opening_s)):
            heard = False
            try:
                with closing(Line(self.endpoints[index], share, self._tls, self.stops)) as line:
                    for answer in line.follow(path, facts):
                        heard = True
                        line.deadline = deadline
                        yield answer
            except (NotSent, RegisterUnreachable) as error:
                if monotonic() >= deadline:
                    return
                self._pass_over(index)
                if heard:
                    raise RegisterUnreachable(str(error)) from error
                faults.append(str(error))
        raise RegisterUnreachable("; ".join(faults) or "etcd: no time is left to ask")

    def _in_turn(self, deadline: float) -> Iterator[tuple[int, float]]:
        """The endpoints' indices, each with the time at which its share of what is left is over: one that says nothing must
        not take all of it."""
        with self._lock:
            first = self._first
        count = len(self.endpoints)
        for tried in range(count):
            now = monotonic()
            if now >= deadline:
                return
            yield (first + tried) % count, now + (deadline - now) / (count - tried)

    def _pass_over(self, index: int) -> None:
        """Begin with the next one from now on, until that fails too."""
        with self._lock:
            self._first = (index + 1) % len(self.endpoints)
