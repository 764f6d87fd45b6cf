"""The options of rcached, one by one: the one place where each is named, typed, bounded, defaulted and explained.

What it is: the parser of what the command line, the RCACHE_* variables and the configuration file may say. A stronger source
wins: command line, variable, file, default.
Which thread runs it: the main thread, once, before anything else is started.
What it owns: nothing. What it must not know: what the options amount to together (that is `options`), and what the server does
with one.
"""

from __future__ import annotations

import os
from argparse import BooleanOptionalAction
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from rcache.commands import option_values as values
from rcache.commands.bodies_here import bodies_text
from rcache.commands.option_parser import Parser, new_parser
from rcache.commands.option_parser import add_option as _add
from rcache.commands.option_values import GIB, KIB, MIB, TIB
from rcache.engine.bodies import NATIVE, REFERENCE
from rcache.stream.policy import FsyncPolicy
from rcache_client.wire.opcodes import DEFAULT_PORT, VALUE_BYTES_CEILING

PROGRAM = "rcached"
VARIABLE_PREFIX = "RCACHE_"

MEMORY_LIMIT_MIN = 16 * MIB
"""Below it the pages a size class takes at a time would be most of the memory."""
BUCKETS_MAX = 65_536
BUCKETS_DEFAULT = 1024
"""Enough for a few dozen nodes to get an even share, few enough to look after one by one."""
FRAME_BYTES_CEILING = 2 * GIB
"""A length is a u32; half of its range leaves every sum of lengths inside it."""
TIME_MIN_S = 0.001
TIME_MAX_S = 30 * 24 * 3600
"""A month: in milliseconds it still fits the u32 in which HELLO tells a client the idle time."""
STREAM_BYTES_MAX = TIB
MEMORY_BYTES_MAX = 1024 * TIB
"""The last two are there to catch a slip of the hand: more than any machine has."""
SEGMENT_MIB_MAX = 64 * KIB
KEEP_DAYS_MAX = 36_500
CONNECTIONS_MAX = 1_000_000
"""What Linux lets one process open (fs.nr_open is 1,048,576) less what else it needs."""

WORKER_THREADS_DEFAULT = os.cpu_count() or 1
"""As many as there are cores: more threads take turns, and then workers that share sockets are faster (decision 0012)."""

BACKUPS_MAX = 8
LEASE_MIN_S = 0.05
"""Less, and a thread that is late for its turn lets it run out."""
LEASE_MAX_S = 60.0

LOG_LEVELS = ("TRACE", "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
ENGINES = ("auto", NATIVE, REFERENCE)
LEASE, CONFIRMED = "lease", "confirmed"

_DESCRIPTION = "Serve an rcache node: an in-memory cache with an append log, a savefile and an orderly stop."

_EPILOG = f"""\
Every option but --help and --version can also be given as a variable
(--memory-limit as {VARIABLE_PREFIX}MEMORY_LIMIT) and, all but --config, in the
configuration file (memory-limit = 2G). The command line wins over a variable,
a variable over the file. Sizes are bytes or take K, M, G or T (powers of
1024). Times are seconds.

When it serves, {PROGRAM} prints `ready HOST:PORT` on a line of its own.

exit codes:
  0  stopped in order
  1  a bug
  2  wrong use of the command line, a variable or the configuration file
  3  nodes were given and none answered
  4  the address could not be listened on
  5  a data file is damaged; see --skip-damaged
  6  data that should have been kept could not be saved
  7  the append log could not be written"""


def build_parser(names: Sequence[str]) -> Parser:
    """A parser of all options, of which a configuration file may give `names`."""
    parser = new_parser(PROGRAM, VARIABLE_PREFIX, names, _DESCRIPTION, _EPILOG)
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {version('rcache')} ({bodies_text()})")
    _add_network(parser.add_argument_group("network"))
    _add_cluster(parser.add_argument_group("cluster"))
    _add_files(parser.add_argument_group("files"))
    _add_memory(parser.add_argument_group("memory"))
    _add_limits(parser.add_argument_group("connections and times"))
    _add_running(parser.add_argument_group("running"))
    return parser


def _add_network(group: Any) -> None:
    _add(
        group, "--listen", values.address, f"127.0.0.1:{DEFAULT_PORT}", "HOST:PORT", "where to listen; port 0 picks a free one"
    )
    text = "this node's name, also in file names (default: the data directory's, else the host's)"
    _add(group, "--name", values.node_name, None, "NAME", text)
    _add(
        group,
        "--secret-file",
        values.path,
        None,
        "FILE",
        "clients must prove that they know what is in FILE, which others must not be able to read (default: none)",
    )
    group.add_argument(
        "--trust-network",
        action="store_true",
        help="listen off loopback without a secret: whoever reaches the port may read and change everything",
    )


def _add_cluster(group: Any) -> None:
    _add(group, "--advertise", values.address, None, "HOST:PORT", "where others reach this node (default: where it listens)")
    group.add_argument(
        "--node",
        type=values.address,
        action="append",
        metavar="HOST:PORT",
        help="a node of the cluster to join; may be given several times, tried in order (default: begin a cluster, or go on"
        " with the one in the data directory)",
    )
    group.add_argument(
        "--etcd",
        type=values.etcd_url,
        action="append",
        metavar="URL",
        help="an etcd that keeps the view; may be given several times (default: the first node keeps it, or what the cluster"
        " has)",
    )
    _add(
        group, "--etcd-key", values.etcd_key, "rcache/view", "KEY", "the key that etcd keeps the view under, one for a cluster"
    )
    own = "the cluster's, set at its birth and changed by rcache-cli"
    _add(group, "--backups", values.whole(0, BACKUPS_MAX), None, "N", f"copies beside each primary ({own}; default there: 1)")
    _add(
        group,
        "--lease",
        values.seconds(LEASE_MIN_S, LEASE_MAX_S),
        None,
        "SECONDS",
        f"how long a primary may count on a backup that it does not hear of ({own}; default there: 1)",
    )
    _add(
        group,
        "--reads",
        values.word(LEASE, CONFIRMED),
        LEASE,
        "lease|confirmed",
        "what a primary counts on when it answers: its lease, by this machine's clock, or that every backup answers it after"
        " the request was executed; the second costs a round trip between nodes, and is for machines that may be paused"
        " without their clocks noticing it",
    )
    _add(group, "--drain-timeout", _time(), "600", "SECONDS", "time a stop gives to handing over what this node has")


def _add_files(group: Any) -> None:
    days = values.whole(1, KEEP_DAYS_MAX, "days")
    mebibytes = values.whole(1, SEGMENT_MIB_MAX, "MiB")
    _add(group, "--data-dir", values.path, values.DATA_DIR, "DIR", "where this node keeps its files; locked while in use")
    _add(
        group,
        "--buckets",
        values.power_of_two(BUCKETS_MAX),
        None,
        "N",
        f"buckets of keys: a power of two, 1 to {BUCKETS_MAX}; fixed at the first start (default there: {BUCKETS_DEFAULT})",
    )
    group.add_argument(
        "--append-log",
        action=BooleanOptionalAction,
        default=True,
        help="write every change to a log in the data directory (default: on)",
    )
    _add(
        group,
        "--append-log-fsync",
        values.choice(FsyncPolicy),
        None,
        "always|interval|never",
        "when the log is made durable: always (before a change is acknowledged), at an interval, or never by rcached (the"
        " cluster's, set at its birth; default there: interval)",
    )
    _add(group, "--append-log-fsync-interval", _time(), "1", "SECONDS", "the interval of --append-log-fsync interval")
    _add(group, "--append-log-max-mb", mebibytes, "512", "MIB", "start a new log segment when one has this many MiB")
    _add(group, "--append-log-keep-days", days, "7", "DAYS", "keep segments that a checkpoint covers for so many days")
    _add(group, "--savefile", values.path, None, "FILE", "all items in one file (default: DATA_DIR/NAME.rcs)")
    group.add_argument(
        "--persist-on-shutdown",
        action=BooleanOptionalAction,
        default=False,
        help="write the savefile on an orderly stop; rcache-cli persist switches it while running (default: off)",
    )
    _add(
        group,
        "--restore",
        values.existing_path,
        None,
        "FILE|DIR",
        "start from this savefile or these logs; who joins puts them into the cluster (default: from the data directory)",
    )
    group.add_argument(
        "--skip-damaged", action="store_true", help="go on where a data file is damaged, without what cannot be read"
    )


def _add_memory(group: Any) -> None:
    memory = values.size(MEMORY_LIMIT_MIN, MEMORY_BYTES_MAX)
    _add(group, "--memory-limit", memory, "1G", "SIZE", "memory for items; when it is full the least recently used give way")
    group.add_argument("--no-evict", action="store_true", help="refuse a write that finds no room, rather than evict for it")
    _add(group, "--max-value-size", values.size(1, VALUE_BYTES_CEILING), "1M", "SIZE", "the largest value taken, at most 1G")
    _add(
        group,
        "--max-frame-size",
        values.size(1, FRAME_BYTES_CEILING),
        "16M",
        "SIZE",
        "the largest request taken, header and all",
    )
    _add(
        group,
        "--change-stream-size",
        values.size(1, STREAM_BYTES_MAX),
        "64M",
        "SIZE",
        "changes on their way to the log and elsewhere; at least four times the largest value and its key",
    )


def _add_limits(group: Any) -> None:
    threads = values.whole(0, CONNECTIONS_MAX)
    _add(
        group,
        "--max-connections",
        values.whole(1, CONNECTIONS_MAX),
        "2048",
        "N",
        "connections at once; a newcomer beyond is told, and closed",
    )
    _add(
        group,
        "--worker-threads",
        threads,
        "0",
        "N",
        "up to so many connections have a thread each, more share workers (native engine); the reference engine takes no more"
        " connections than that; 0: as many as there are cores, or with the reference engine as --max-connections",
    )
    _add(group, "--hello-timeout", _time(), "10", "SECONDS", "time a new connection has for its first request")
    _add(group, "--idle-timeout", _time(), "600", "SECONDS", "time a connection may stay without a request")
    _add(group, "--frame-timeout", _time(), "30", "SECONDS", "time from the first byte of a request to its last")
    _add(group, "--send-timeout", _time(), "30", "SECONDS", "time a client may leave a reply unread")
    _add(group, "--stop-timeout", _time(), "20", "SECONDS", "time an orderly stop gives requests in flight")


def _add_running(group: Any) -> None:
    _add(
        group,
        "--engine",
        values.word(*ENGINES),
        "auto",
        "auto|native|reference",
        "what holds the items: native (compiled), reference (Python), or auto, the first of them that is built here",
    )
    _add(group, "--log-level", values.word(*LOG_LEVELS), "INFO", "LEVEL", f"least level logged: {', '.join(LOG_LEVELS)}")
    _add(group, "--log-file", values.path, None, "FILE", "write the server's messages here (default: standard error)")


def _time() -> Any:
    return values.seconds(TIME_MIN_S, TIME_MAX_S)
