"""A cluster to play with: three nodes on this machine, in the foreground, until Ctrl-C.

What it is: `make cluster`: starts the nodes on fixed ports with their data below one directory, says how to talk to them and
what to try, tells when one of them ends, and stops all in order: each hands over what it has, the last one keeps everything.
Which thread runs it: the main thread; every wait ends at a deadline, or with the signal that ends the play.
What it owns: the processes, until it ends. The data directory stays, and the next start goes on with it.
What it must not know: what a node does.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from soak.server_process import START_S, ServerFailed, ServerProcess

HOST = "127.0.0.1"
PORT = 13600
NODES = 3
STOP_S = 60.0
"""For a node to hand over what it has."""

LOOK_S = 0.2


class _Stop(Exception):
    """The play is over."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the cluster until a signal. Returns 0 if all nodes ended in order."""
    parser = argparse.ArgumentParser(prog="make cluster", description="Three nodes on this machine, to play with.")
    parser.add_argument("--data-dir", type=Path, default=Path("cluster-data"), help="where they keep their data")
    parser.add_argument("--port", type=int, default=PORT, help="of the first; the others have the next ones")
    parser.add_argument("--nodes", type=int, default=NODES, help="how many")
    parser.add_argument("rest", nargs="*", metavar="OPTION", help="more options for every rcached, behind --")
    given = parser.parse_args(argv)
    given.data_dir.mkdir(parents=True, exist_ok=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    with contextlib.ExitStack() as cleanup:
        nodes = [cleanup.enter_context(_node(given, number)) for number in range(given.nodes)]
        try:
            _start(nodes, given.port)
            _say(nodes)
            _watch(nodes)
        except _Stop:
            pass
        except ServerFailed as error:
            print(error, file=sys.stderr)
            return 1
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C hastens nothing
            ended = _stop_all(nodes)
    return 0 if ended else 1


def _stop(_number: int, _frame: object) -> None:
    raise _Stop


def _node(given: argparse.Namespace, number: int) -> ServerProcess:
    name = f"n{number + 1}"
    arguments = ["--listen", f"{HOST}:{given.port + number}", "--log-file", str(given.data_dir / f"{name}.log")]
    arguments += ["--node", f"{HOST}:{given.port}"] if number else []
    return ServerProcess(given.data_dir / name, *arguments, *given.rest, name=name, start=False)


def _start(nodes: Sequence[ServerProcess], port: int) -> None:
    """The first one begins the cluster, or keeps its register; the others come once it listens, and all wait for each other."""
    nodes[0].launch()
    deadline = time.monotonic() + START_S
    while nodes[0].running and not _listens(port):
        if time.monotonic() > deadline:
            raise ServerFailed(f"{nodes[0].name} does not listen after {START_S:g} s")
        time.sleep(LOOK_S)
    for node in nodes[1:]:
        node.launch()
    for node in nodes:
        print(f"{node.name} serves on {node.wait_ready()}", flush=True)


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((HOST, port), LOOK_S):
        return True
    return False


def _say(nodes: Sequence[ServerProcess]) -> None:
    """How to talk to it, and what there is to see."""
    servers = ",".join(node.address for node in nodes)
    first, last = nodes[0], nodes[-1]
    print(
        f"""
Talk to it from another terminal:
  export RCACHE_SERVER={servers} PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH
  rcache-cli nodes                  who is in it, and who has how much
  rcache-cli buckets                whether every bucket has its backup
  rcache-cli set greeting hello
  rcache-cli drain {last.name}               {last.name} hands over what it has, and ends
  kill -9 {last.pid:<8}                  ... or dies ({last.name}); what it had is with its backups within seconds
  rcache-cli pause --for 30s --reason "a look"
  tail -f {first.data_dir.parent}/*.log

A node that ended comes back with the command that is shown then. Ctrl-C here stops all of them in order.
""",
        flush=True,
    )


def _watch(nodes: Sequence[ServerProcess]) -> None:
    """Tell of each node that ends, until the signal, or none is left."""
    running = [node for node in nodes if node.running]
    while running:
        for node in [node for node in running if not node.running]:
            running.remove(node)
            print(f"{node.name} ended with code {node.wait()}; it comes back with:\n  {shlex.join(node.command)}", flush=True)
        time.sleep(LOOK_S)
    print("no node that was started here is left")


def _stop_all(nodes: Sequence[ServerProcess]) -> bool:
    """The last one first, so that the first, which began the cluster, is the one that has everything in the end. One after the
    other: if all left at once the last would still have to wait for the others."""
    whole = True
    for node in _running(nodes):
        try:
            code = node.stop(STOP_S)
        except ServerFailed as error:
            print(error, file=sys.stderr)
            whole = False
        else:
            whole &= code == 0
            print(f"{node.name} stopped with code {code}", flush=True)
    return whole


def _running(nodes: Sequence[ServerProcess]) -> Iterator[ServerProcess]:
    return (node for node in reversed(nodes) if node.running)


if __name__ == "__main__":
    sys.exit(main())
