"""Clients that write to a cluster all the time, and know what must be there in the end.

What it is: a thread for each client, with keys of its own; for each key what may be there: what was acknowledged last, or
anything later whose outcome is not known.
Which thread runs it: its own, from `start` to `stop`. What it owns: its client, and what it knows of its keys once it stopped.
What it must not know: which node has what.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable

from rcache_client import Client, OutcomeUnknown, RcacheError

JOIN_S = 20.0

ABSENT = None
"""What is there of a key that was deleted, or never written."""


class Writer(threading.Thread):
    """See the module. `may_be[key]`: the values of which one must be there."""

    def __init__(self, number: int, servers: Iterable[str], keys: int = 40, budget_s: float = 5.0) -> None:
        super().__init__(name=f"writer-{number}")
        self._chance = random.Random(number)
        self._client = Client(list(servers), budget=budget_s, wait_for_servers=True)
        self._stopping = threading.Event()
        self.may_be: dict[bytes, set[bytes | None]] = {b"w%d-%d" % (number, key): {ABSENT} for key in range(keys)}
        self.acknowledged = self.unknown = self.failed = 0

    def run(self) -> None:
        keys = list(self.may_be)
        with self._client:
            count = 0
            while not self._stopping.is_set():
                count += 1
                self._write(self._chance.choice(keys), b"%d-" % count * self._chance.randrange(1, 60))
                self._stopping.wait(0.001)

    def _write(self, key: bytes, value: bytes) -> None:
        after = ABSENT if self._chance.randrange(5) == 0 else value
        try:
            if after is ABSENT:
                self._client.delete(key)
            else:
                self._client.set(key, value)
        except OutcomeUnknown:
            self.unknown += 1
            self.may_be[key].add(after)
        except RcacheError:
            self.failed += 1
        else:
            self.acknowledged += 1
            self.may_be[key] = {after}

    def stop(self) -> None:
        self._stopping.set()
        self.join(JOIN_S)
        assert not self.is_alive()


class Writers:
    """Several, from the `with` on until `stop`, or its end."""

    def __init__(self, count: int, servers: Iterable[str], budget_s: float = 5.0) -> None:
        addresses = list(servers)
        self._writers = [Writer(number, addresses, budget_s=budget_s) for number in range(count)]

    def __enter__(self) -> Writers:
        for writer in self._writers:
            writer.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        for writer in self._writers:
            writer.stop()

    @property
    def acknowledged(self) -> int:
        return sum(writer.acknowledged for writer in self._writers)

    @property
    def may_be(self) -> dict[bytes, set[bytes | None]]:
        return {key: values for writer in self._writers for key, values in writer.may_be.items()}

    def wrong(self, found: dict[bytes, bytes]) -> dict[bytes, object]:
        """The keys that have another value than they may have, with both."""
        return {key: (found.get(key), may) for key, may in self.may_be.items() if found.get(key) not in may}
