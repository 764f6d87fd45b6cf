"""The network between the nodes, as the soak run sees it: addresses that stand for nodes, and the rules of the moment.

What it is: `Network`, the handle of the proxy's process. Which thread runs it: any; one order at a time.
What it owns: the process, until `close`. What it must not know: why the rules change.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from soak.cluster.errors import SoakFailed
from soak.cluster.rules import ETCD, FREE, Rules

ROOT = Path(__file__).resolve().parents[2]

ANSWER_S = 20.0
"""For the proxy to carry out an order; it takes a millisecond."""

NICE = -5
"""The proxy stands for a network, which has no other work. Where the account may not do that it goes without."""


class Traffic(NamedTuple):
    """What the proxy tells: how often the machine kept it waiting, the longest since it was last asked, and what passed."""

    late: int
    latest_s: float
    bytes: int
    connections: list[list[str]]


class Network:
    """Close it, or use it in a `with`, and nothing is left of it. `seed`: of the delays that vary."""

    def __init__(self, seed: int = 0) -> None:
        self.rules = FREE
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "soak.cluster.proxy", str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            process_group=0,
        )
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, self._process.pid, NICE)

    def front(self, node: str, port: int) -> str:
        """The address that leads to a node which listens on `port` of loopback. Raises `SoakFailed`."""
        return f"127.0.0.1:{self._ask(do='front', key=node, name=node, target=port)['port']}"

    def front_of_etcd(self, node: str, port: int) -> str:
        """The address by which this node, and no other, reaches etcd."""
        return f"127.0.0.1:{self._ask(do='front', key=f'{node} {ETCD}', name=ETCD, target=port, party=node)['port']}"

    def follow(self, rules: Rules) -> None:
        """From now on these hold."""
        self._ask(do="rules", **rules.to_json())
        self.rules = rules

    def heal(self) -> None:
        self.follow(FREE)

    def traffic(self) -> Traffic:
        return Traffic(**self._ask(do="tell"))

    def close(self) -> None:
        """Idempotent."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _ask(self, **order: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            try:
                self._process.stdin.write(json.dumps(order).encode() + b"\n")
                self._process.stdin.flush()
            except (OSError, ValueError) as error:
                raise SoakFailed(f"the proxy is gone: {error}") from None
            said = self._line(self._process.stdout.fileno())
        answer: dict[str, Any] = json.loads(said)
        return answer

    @staticmethod
    def _line(pipe: int) -> bytes:
        """One whole line. The proxy says nothing of its own accord, so there is never more."""
        said = b""
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while not said.endswith(b"\n"):
                if not selector.select(ANSWER_S):
                    raise SoakFailed(f"the proxy did not answer within {ANSWER_S:g} s")
                more = os.read(pipe, 1 << 16)
                if not more:
                    raise SoakFailed("the proxy is gone")
                said += more
        return said

    def __enter__(self) -> Network:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
