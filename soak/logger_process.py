"""A real rcache-logger as a process of its own: started, killed or stopped, and always cleaned up.

What it is: `LoggerProcess`, which is handled as a server is. Which thread runs it: the caller's.
What it owns: the process and what it said. What it must not know: what is recorded.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from soak.server_process import ServerProcess


class LoggerProcess(ServerProcess):
    """An rcache-logger that records the cluster of these nodes in `directory`. `nodes`: their addresses, at each start."""

    program = "rcache-logger"

    def __init__(self, directory: Path, nodes: Sequence[str], *arguments: str, name: str = "tape", start: bool = True) -> None:
        self.nodes = list(nodes)
        super().__init__(directory, *arguments, name=name, start=start)

    @property
    def command(self) -> list[str]:
        program = [sys.executable, "-m", "rcache.commands.rcache_logger"]
        nodes = [option for address in self.nodes for option in ("--node", address)]
        return [*program, "--dir", str(self.data_dir), "--name", self.name, *nodes, *self.arguments]
