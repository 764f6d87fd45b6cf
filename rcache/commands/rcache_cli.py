"""`rcache-cli`: look into a running server, and change what it holds.

What it is: the program: from the command line to an exit code (the table is in `cli_exit`). Each command is one function.
Which thread runs it: the main thread.
What it owns: the client, and the order of things.
What it must not know: how a command works or an answer looks.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from rcache.commands import cli_cluster, cli_keys, cli_lost, cli_service, cli_steer
from rcache.commands.cli_answer import Answer, complain, write
from rcache.commands.cli_exit import INTERRUPTED, CliExit, CliStopped, code_of, explain
from rcache.commands.cli_line import Door
from rcache.commands.cli_load import load
from rcache.commands.cli_options import PROGRAM, CliOptions, parse
from rcache.commands.cli_subscribe import subscribe
from rcache_client import Client, RcacheError, Role
from rcache_client.client import BUDGET, CONNECT_TIMEOUT

LONG_BUDGET_S = 60.0
"""For commands that work through all items, or carry large values."""

STEER_BUDGET_S = 15.0
"""For orders: nodes that do not answer are waited for, one after the other."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run rcache-cli; return its exit code."""
    options = parse(sys.argv[1:] if argv is None else argv, os.environ)
    try:
        answer = _run(options)
        return _write(answer, options)
    except KeyboardInterrupt:
        return INTERRUPTED


def _write(answer: Answer, options: CliOptions) -> CliExit:
    try:
        write(answer, options.command, as_json=options.json)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        if not isinstance(error, BrokenPipeError):  # there, whoever read the output has seen enough
            complain(f"the answer could not be written: {error.strerror or error}")
            return CliExit.NOT_WRITTEN
    return answer.code


def _run(options: CliOptions) -> Answer:
    try:
        if options.command == "ping":
            return cli_service.ping(options, open_client)
        if options.command in _LOOK:
            with Door(options) as door:
                return _LOOK[options.command](options, door)
        if options.command in _STEER:
            with Door(options, STEER_BUDGET_S) as door:
                return _STEER[options.command](options, door)
        with open_client(options, options.servers) as client:
            return _RUN[options.command](options, client)
    except CliStopped as stopped:
        return Answer(code=stopped.code, complaint=str(stopped))
    except RcacheError as error:
        return Answer(code=code_of(error), complaint=explain(error))


def open_client(options: CliOptions, servers: tuple[str, ...]) -> Client[bytes]:
    """A client that says HELLO as an administrator, so that a server with no place left for others still answers."""
    budget = options.budget or (LONG_BUDGET_S if options.command in ("flush", "load") else BUDGET)
    return Client(
        servers,
        connect_timeout=min(CONNECT_TIMEOUT, budget),
        read_timeout=budget,
        budget=budget,
        secret=options.secret,
        name=PROGRAM,
        role=Role.ADMIN,
    )


_RUN: dict[str, Callable[[CliOptions, Client[bytes]], Answer]] = {
    "get": cli_keys.get,
    "set": cli_keys.set_,
    "add": cli_keys.add,
    "replace": cli_keys.replace,
    "delete": cli_keys.delete,
    "incr": cli_keys.incr,
    "decr": cli_keys.decr,
    "ttl": cli_keys.ttl,
    "stats": cli_service.stats,
    "persist": cli_service.persist,
    "flush": cli_service.flush,
    "load": load,
    "subscribe": subscribe,
}

_LOOK: dict[str, Callable[[CliOptions, Door], Answer]] = {
    "nodes": cli_cluster.nodes,
    "buckets": cli_cluster.buckets,
    "view": cli_cluster.view,
    "handoffs": cli_cluster.handoffs,
}

_STEER: dict[str, Callable[[CliOptions, Door], Answer]] = {
    "drain": cli_steer.drain,
    "pause": cli_steer.pause,
    "resume": cli_steer.resume,
    "settings": cli_steer.settings,
    "remove": cli_steer.remove,
    "lost": cli_lost.lost,
    "renew": cli_lost.renew,
    "takeover": cli_steer.takeover,
}

if __name__ == "__main__":
    sys.exit(main())
