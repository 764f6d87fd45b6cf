"""The options of rcache-logger: named, typed, bounded, defaulted and explained here, and nowhere else.

What it is: what the command line, the RCACHE_LOGGER_* variables and the configuration file may say; `LoggerOptions`, which is
all that the program sees of it. A stronger source wins: command line, variable, file, default.
Which thread runs it: the main thread, once, before anything else is started.
What it owns: nothing; the result is frozen. What it must not know: what is done with an option.

Any wrong use ends the program with exit code 2 and one message that names the option, the value and what is allowed.
"""

from __future__ import annotations

import contextlib
import socket
from argparse import ArgumentTypeError
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rcache.commands import option_values as values
from rcache.commands.option_definitions import KEEP_DAYS_MAX, LOG_LEVELS, SEGMENT_MIB_MAX, TIME_MAX_S, TIME_MIN_S
from rcache.commands.option_parser import Parser, add_option, new_parser
from rcache.stream.data_dir import node_of
from rcache.stream.policy import FsyncPolicy
from rcache_client.address import Address
from rcache_client.wire.opcodes import DEFAULT_PORT

PROGRAM = "rcache-logger"
VARIABLE_PREFIX = "RCACHE_LOGGER_"

_DESCRIPTION = """\
Record every change of a cluster in files: the same segments as a node's append
log. It follows every bucket through joins, leaves and failovers, goes on after
its own restart where it was, and copies anew what it missed. It holds no data,
and no write waits for it. rcache-replay puts what it recorded into a cluster of
any size, as it was last or at an earlier moment."""

_EPILOG = f"""\
Every option but --help and --version can also be given as a variable
(--max-mb as {VARIABLE_PREFIX}MAX_MB) and, all but --config, in the configuration
file (max-mb = 256). The command line wins over a variable, a variable over the
file. Times are seconds.

When it records, {PROGRAM} prints `ready` on a line of its own.

exit codes:
  0  stopped in order
  1  a bug
  2  wrong use of the command line, a variable or the configuration file; the
     directory is in use, or a node's; a cluster that is not the one recorded
     there, or was set back to older files, or does not let it in
  3  no node answered
  5  a file is damaged; see --skip-damaged
  7  the files could not be written (the disk is full, or failed)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggerOptions:
    """What rcache-logger was told. A field is called as its option; times in seconds."""

    node: tuple[Address, ...]
    dir: Path
    name: str
    secret_file: Path | None = None
    secret: bytes | None = field(default=None, repr=False)
    fsync: FsyncPolicy = FsyncPolicy.INTERVAL
    fsync_interval: float = 1.0
    max_mb: int = 512
    keep_days: int = 0
    start_timeout: float = 30.0
    stop_timeout: float = 20.0
    skip_damaged: bool = False
    log_level: str = "INFO"
    log_file: Path | None = None


OPTION_NAMES = tuple(each.name.replace("_", "-") for each in fields(LoggerOptions) if each.name != "secret")


def build_parser() -> Parser:
    """A parser of all options."""
    parser = new_parser(PROGRAM, VARIABLE_PREFIX, OPTION_NAMES, _DESCRIPTION, _EPILOG)
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {version('rcache')}")
    _add_cluster(parser.add_argument_group("cluster"))
    _add_files(parser.add_argument_group("files"))
    _add_running(parser.add_argument_group("running"))
    return parser


def _add_cluster(group: Any) -> None:
    group.add_argument(
        "--node",
        type=values.address,
        action="append",
        metavar="HOST:PORT",
        help=f"a node of the cluster; several may be given, one that answers is enough (default: 127.0.0.1:{DEFAULT_PORT})",
    )
    text = "this logger's name, also in file names (default: the directory's, else the host's with -logger)"
    add_option(group, "--name", values.node_name, None, "NAME", text)
    text = "what is in FILE is the cluster's secret; others must not be able to read it (default: none)"
    add_option(group, "--secret-file", values.path, None, "FILE", text)


def _add_files(group: Any) -> None:
    add_option(group, "--dir", values.path, "./rcache-log", "DIR", "where the files go; locked while in use")
    text = "when what is recorded is made durable: always (at once), at an interval, or never by rcache-logger; no write waits"
    add_option(group, "--fsync", values.choice(FsyncPolicy), "interval", "always|interval|never", text)
    add_option(group, "--fsync-interval", _time(), "1", "SECONDS", "the interval of --fsync interval")
    text = "begin a new segment when one has this many MiB; another begins when the day turns (UTC), and at each start"
    add_option(group, "--max-mb", values.whole(1, SEGMENT_MIB_MAX, "MiB"), "512", "MIB", text)
    text = "copy everything into a checkpoint once a day, and remove what going back this many days does not need; 0: no"
    text += " checkpoints, and nothing is removed"
    add_option(group, "--keep-days", values.whole(0, KEEP_DAYS_MAX, "days"), "0", "DAYS", text)
    group.add_argument(
        "--skip-damaged",
        action="store_true",
        help="go on where a file is damaged, without what cannot be read; what is missing then is copied anew",
    )


def _add_running(group: Any) -> None:
    text = "how long a start waits for a node that answers, and for all buckets to be followed"
    add_option(group, "--start-timeout", _time(), "30", "SECONDS", text)
    text = "time an orderly stop gives to writing what was taken in"
    add_option(group, "--stop-timeout", _time(), "20", "SECONDS", text)
    add_option(group, "--log-level", values.word(*LOG_LEVELS), "INFO", "LEVEL", f"least level logged: {', '.join(LOG_LEVELS)}")
    add_option(group, "--log-file", values.path, None, "FILE", "write messages here, too (default: standard error alone)")


def _time() -> Any:
    return values.seconds(TIME_MIN_S, TIME_MAX_S)


def parse(argv: Sequence[str], environ: Mapping[str, str]) -> LoggerOptions:
    """The options that `argv` (without the program's name), `environ` and the file they may name amount to.

    Exits with code 2 on any wrong use, with 0 after --help and --version. Reads the configuration file and the secret.
    """
    parser = build_parser()
    given = vars(parser.parse_args(list(argv), env_vars=dict(environ)))
    del given["config"]
    given["node"] = tuple(given["node"] or (Address("127.0.0.1", DEFAULT_PORT),))
    try:
        given["name"] = given["name"] or _name_found(given["dir"]) or values.node_name(f"{socket.gethostname()}-logger")
    except ArgumentTypeError as error:
        parser.error(f"--name: the default, made of this host's name, does not do: {error}")
    try:
        given["secret"] = values.read_secret(given["secret_file"]) if given["secret_file"] else None
    except ArgumentTypeError as error:
        parser.error(f"--secret-file: {error}")
    return LoggerOptions(**given)


def _name_found(directory: Path) -> str | None:
    with contextlib.suppress(ArgumentTypeError):
        return values.node_name(node_of(directory) or "")
    return None
