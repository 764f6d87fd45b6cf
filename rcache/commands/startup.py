"""Starting a node: from options to a service that is ready to serve.

What it is: what comes before anything is made, and the cleaning up after a start that failed.
Which thread runs it: the main thread. What it owns: the data directory and the socket until the service has them.
What it must not know: what a node is made of (that is `assembly`).

The order, and why: the data directory is locked first (two processes must not meet in one), the address is bound before
anything is loaded (a taken port must not cost a load).
"""

from __future__ import annotations

import contextlib
import socket
import threading

from rcache.commands.assembly import Assembly, Given
from rcache.commands.descriptors import connections_allowed
from rcache.commands.directories import open_directory
from rcache.commands.exit_codes import ExitCode
from rcache.commands.option_definitions import CONNECTIONS_MAX
from rcache.commands.options import ServerOptions
from rcache.commands.recovering import StartWatch
from rcache.commands.start_failed import StartFailed
from rcache.engine.bodies import NATIVE
from rcache.engine.contract import RequestRefused
from rcache.server.listener import bind
from rcache.server.notify import Notifier
from rcache.server.service import Service
from rcache.server.serving import CONNECTIONS_RESERVED
from rcache.server.stops import Stops
from rcache.stream.append_log import APPEND_LOG_THREAD
from rcache.stream.checkpoints import CHECKPOINT_THREAD
from rcache.stream.data_dir import NODE, DataDir


def boot(options: ServerOptions, version: str, notifier: Notifier, stops: Stops) -> Service:
    """A service that is recovered, a member of its cluster, and durable in its new epoch; where nobody else is to be waited for
    it does not listen yet. Raises `StartFailed`; with exit code STOPPED if a signal came meanwhile."""
    watch = StartWatch(notifier, stops)
    shares = options.engine == NATIVE
    wanted = options.max_connections if shares else min(options.max_connections, options.worker_threads or CONNECTIONS_MAX)
    connections = connections_allowed(wanted, CONNECTIONS_RESERVED)
    with contextlib.ExitStack() as cleanup:
        data_dir = open_directory("--data-dir", options.data_dir, NODE)
        cleanup.callback(_let_go, data_dir)
        sock = _bind(options)
        cleanup.callback(sock.close)
        try:
            service = Assembly(options, Given(version, connections, data_dir, sock, cleanup), watch).run()
        except RequestRefused as refusal:  # opening buckets and trimming wait for nothing but the log
            raise StartFailed(ExitCode.APPEND_LOG_FAILED, f"the append log could not be written: {refusal.reason}") from None
        cleanup.pop_all()
        return service


def _let_go(data_dir: DataDir) -> None:
    """After a start that failed: the lock is kept to the end of the process where a thread still writes."""
    if not writers():
        data_dir.close()


def writers() -> list[str]:
    """The threads that write into the data directory and have not ended."""
    return [thread.name for thread in threading.enumerate() if thread.name in (APPEND_LOG_THREAD, CHECKPOINT_THREAD)]


def _bind(options: ServerOptions) -> socket.socket:
    try:
        return bind(options.listen.host, options.listen.port)
    except OSError as error:
        raise StartFailed(ExitCode.CANNOT_LISTEN, f"cannot listen on {options.listen}: {error.strerror}") from None
