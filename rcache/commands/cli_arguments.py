"""The commands of rcache-cli and the arguments of each: the one place where they are named, typed, bounded and explained.

What it is: two tables, of the commands and of what each takes, and the functions that add it to a parser.
Which thread runs it: the main thread, once.
What it owns: nothing. What it must not know: the options that every command has (those are in `cli_options`); what the commands
do.
"""

from __future__ import annotations

import os
import re
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable
from pathlib import Path

from rcache.commands import option_values as values
from rcache.stream.policy import FsyncPolicy
from rcache_client.arguments import COUNT_MAX, COUNT_MIN
from rcache_client.wire.opcodes import TTL_MS_MAX

BACKUPS_MAX = 8
LEASE_MIN_S, LEASE_MAX_S = 0.05, 60.0
ACK_MAX_S = 600.0
"""As `rcache.server.orders` takes them (a test holds them against each other; to import it would triple the start)."""

PERSIST_WORDS = ("on", "off", "status")

COMMANDS = {
    "ping": "ask every server whether it answers, and how fast",
    "get": "write the value of a key to standard output",
    "set": "store a value, whatever is there",
    "add": "store a value if there is none",
    "replace": "store a value if there is one already",
    "delete": "remove keys",
    "incr": "add to a number",
    "decr": "subtract from a number",
    "ttl": "show how long a key stays, or change it",
    "stats": "show the server's figures",
    "persist": "have the server save its data when it stops, or not",
    "flush": "remove everything",
    "load": "store every file of a directory, its path as the key",
    "subscribe": "print changes as they are made",
    "nodes": "show the cluster's nodes, and how much each has",
    "buckets": "show who has the buckets, and which lack backups",
    "view": "show the view that the nodes agreed on",
    "handoffs": "show which copies and buckets are on their way",
    "drain": "have a node hand over what it has, and end",
    "pause": "have writes wait, on every node",
    "resume": "end a pause",
    "settings": "show what belongs to the cluster, or change it",
    "remove": "take a node that has left, or is lost, out of the view",
    "lost": "declare a node lost that is stopped for good",
    "renew": "have lost buckets begin again, from what files still hold",
    "takeover": "have this node keep the register of one that is stopped for good",
}

_TTL = re.compile(r"(\d{1,10}(?:\.\d{0,3})?|\.\d{1,3})([smhdw]?)", re.ASCII)
_TTL_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def _add_nothing(_parser: ArgumentParser) -> None:
    pass


def _add_key(parser: ArgumentParser) -> None:
    parser.add_argument("key", type=values.key, metavar="KEY", help="the key, byte for byte")


def _add_keys(parser: ArgumentParser) -> None:
    parser.add_argument("keys", type=values.key, nargs="+", metavar="KEY", help="a key, byte for byte")


def _add_store(parser: ArgumentParser) -> None:
    _add_key(parser)
    parser.add_argument("value", metavar="VALUE", help="the value; - reads it from standard input")
    _add_ttl(parser)


def _add_ttl(parser: ArgumentParser) -> None:
    parser.add_argument("--ttl", type=_ttl, metavar="TIME", help="how long it stays: 90, 0.5, 10m, 2h, 7d (default: for ever)")


def _add_count(parser: ArgumentParser) -> None:
    _add_key(parser)
    parser.add_argument("delta", type=_count, nargs="?", default=1, metavar="NUMBER", help="by how much (default: 1)")
    initial = "what to store if there is no such key (without it: exit code 4)"
    parser.add_argument("--initial", type=_count, metavar="NUMBER", help=initial)
    parser.add_argument("--ttl", type=_ttl, metavar="TIME", help="how long it then stays: 90, 0.5, 10m, 2h, 7d")


def _add_lifetime(parser: ArgumentParser) -> None:
    _add_key(parser)
    time = "stay this long from now: 90, 0.5, 10m, 2h, 7d (without it: show)"
    parser.add_argument("ttl", type=_ttl, nargs="?", metavar="TIME", help=time)
    parser.add_argument("--forever", action="store_true", help="never expire")


def _add_section(parser: ArgumentParser) -> None:
    parser.add_argument("section", nargs="?", default="", metavar="SECTION", help="one section only (default: all)")


def _add_mode(parser: ArgumentParser) -> None:
    text = "switch it on or off, or ask how it stands (default)"
    kind = values.word(*PERSIST_WORDS)
    parser.add_argument("mode", type=kind, nargs="?", default="status", metavar="on|off|status", help=text)


def _add_yes(parser: ArgumentParser) -> None:
    parser.add_argument("--yes", action="store_true", help="do not ask first (asked only where standard input is a terminal)")


def _add_load(parser: ArgumentParser) -> None:
    parser.add_argument("directory", type=_directory, metavar="DIR", help="the directory; searched at any depth")
    text = "put in front of every path (default: nothing)"
    parser.add_argument("--prefix", type=os.fsencode, default=b"", metavar="TEXT", help=text)
    _add_ttl(parser)


def _add_subscribe(parser: ArgumentParser) -> None:
    text = "only keys that begin with PREFIX (default: all)"
    parser.add_argument("selector", type=os.fsencode, nargs="?", default=b"", metavar="PREFIX", help=text)
    parser.add_argument("--no-values", action="store_true", help="without the new values")
    count = "end after N lines (default: only when interrupted)"
    parser.add_argument("--count", type=values.whole(1, 1 << 62), metavar="N", help=count)


def _add_all(parser: ArgumentParser) -> None:
    parser.add_argument("--all", action="store_true", help="a line for each bucket")


def _add_raw(parser: ArgumentParser) -> None:
    parser.add_argument("--raw", action="store_true", help="the very text that the nodes agreed on, on one line")


def _add_node(parser: ArgumentParser) -> None:
    parser.add_argument("node", type=values.node_name, metavar="NODE", help="the node's name")


def _add_pause(parser: ArgumentParser) -> None:
    time = "how long, at most: 90, 0.5, 30s, 10m; writes go on by themselves then"
    parser.add_argument("--for", dest="seconds", type=_ttl, required=True, metavar="TIME", help=time)
    parser.add_argument("--reason", required=True, metavar="TEXT", help="why; others see it in 'nodes' and in the logs")


def _add_settings(parser: ArgumentParser) -> None:
    backups = "how many copies there are to be beside each primary"
    parser.add_argument("--backups", type=values.whole(0, BACKUPS_MAX), metavar="N", help=backups)
    lease = "how long a primary may count on a backup that it does not hear of"
    parser.add_argument("--lease", type=values.seconds(LEASE_MIN_S, LEASE_MAX_S), metavar="SECONDS", help=lease)
    ack = "how long a backup may owe an acknowledgement (without it: goes along with the lease)"
    parser.add_argument("--ack", type=values.seconds(LEASE_MIN_S, ACK_MAX_S), metavar="SECONDS", help=ack)
    policies = [policy.value for policy in FsyncPolicy]
    fsync = "when the append logs are made durable; a node's log follows when it starts"
    parser.add_argument("--fsync", type=values.word(*policies), metavar="|".join(policies), help=fsync)


def _add_lost(parser: ArgumentParser) -> None:
    _add_node(parser)
    stopped = "you know that the node is stopped and will not come back; needed"
    parser.add_argument("--is-stopped", action="store_true", help=stopped)
    parser.add_argument("--yes", action="store_true", help="do not ask before buckets lose their only copy")


def _add_renew(parser: ArgumentParser) -> None:
    parser.add_argument("--yes", action="store_true", help="do not ask before buckets begin empty, or a node cannot be asked")
    empty = "begin all of them empty, also those that a node's files still hold"
    parser.add_argument("--empty", action="store_true", help=empty)


def _add_takeover(parser: ArgumentParser) -> None:
    stopped = "a node that you know is stopped and will not come back; repeatable"
    kind, name = values.node_name, "--is-stopped"
    parser.add_argument(name, dest="stopped", type=kind, action="append", default=[], metavar="NODE", help=stopped)
    old = "go on from backups that may lack what a stopped primary acknowledged alone"
    parser.add_argument("--accept-old", action="store_true", help=old)


_TAKEOVER_NOTES = """The first
--server keeps the register from then on. Every node must answer, or be
named with --is-stopped."""

_RENEW_NOTES = """Every node
is asked what its files still hold of them; the one with the longest whole
chain brings a bucket back. One that nobody's files hold begins empty."""

_SUBSCRIBE_NOTES = """A line for
each change of the whole cluster, once it is safe; changes that are not told
(this program was too slow, or a node was lost with them) are a line, too."""

_LOAD_NOTES = """A file's key is its
path below DIR, with '/' between its parts. Files that fail are named, and the
rest goes on. Running it again is safe: it stores the same again."""

ARGUMENTS: dict[str, tuple[str, str, Callable[[ArgumentParser], None]]] = {
    "ping": ("", "", _add_nothing),
    "get": ("KEY ", "To a terminal,\nwhat is not text is shown as escapes; a file or a pipe gets the very bytes.", _add_key),
    "set": ("KEY VALUE ", "", _add_store),
    "add": ("KEY VALUE ", "", _add_store),
    "replace": ("KEY VALUE ", "", _add_store),
    "delete": ("KEY... ", "", _add_keys),
    "incr": ("KEY [NUMBER] ", "", _add_count),
    "decr": ("KEY [NUMBER] ", "", _add_count),
    "ttl": ("KEY [TIME | --forever] ", "", _add_lifetime),
    "stats": ("[SECTION] ", "", _add_section),
    "persist": ("[on|off|status] ", "It lasts\nuntil the server stops.", _add_mode),
    "flush": ("", "", _add_yes),
    "load": ("DIR ", _LOAD_NOTES, _add_load),
    "subscribe": ("[PREFIX] ", _SUBSCRIBE_NOTES, _add_subscribe),
    "nodes": ("", "", _add_nothing),
    "buckets": ("", "", _add_all),
    "view": ("", "", _add_raw),
    "handoffs": ("", "Every\nnode of the view is asked.", _add_nothing),
    "drain": ("NODE ", "", _add_node),
    "pause": (
        "--for TIME --reason TEXT ",
        "Reads are\nanswered. It returns once every node confirmed that no write runs.",
        _add_pause,
    ),
    "resume": ("", "", _add_nothing),
    "settings": ("", "Without an\noption it shows them.", _add_settings),
    "remove": ("NODE ", "", _add_node),
    "lost": (
        "NODE --is-stopped ",
        "Buckets\nthat it had with others go to their backups; what only it had is lost.",
        _add_lost,
    ),
    "renew": ("", _RENEW_NOTES, _add_renew),
    "takeover": ("--is-stopped NODE ", _TAKEOVER_NOTES, _add_takeover),
}
"""For each command: its arguments in the usage line, what else is to be said, and what adds them."""


def _ttl(text: str) -> float:
    """A time to live in seconds."""
    match = _TTL.fullmatch(text)
    seconds = float(match[1]) * _TTL_UNITS[match[2]] if match else 0.0
    if not 0 < seconds <= TTL_MS_MAX / 1000:
        raise ArgumentTypeError(
            f"{text!r} is not a time: seconds (90, 0.5), or with a unit s, m, h, d or w (10m, 2h); above 0, at most 100 years"
        )
    return seconds


def _count(text: str) -> int:
    if not re.fullmatch(r"[+-]?\d{1,19}", text, re.ASCII) or not COUNT_MIN <= int(text) <= COUNT_MAX:
        raise ArgumentTypeError(f"{text!r} is not a whole number from {COUNT_MIN} to {COUNT_MAX}")
    return int(text)


def _directory(text: str) -> Path:
    directory = values.existing_path(text)
    if not directory.is_dir():
        raise ArgumentTypeError(f"{text!r} is not a directory")
    return directory
