"""The command line of rcache-replay: the one place where its commands and options are named, typed and explained.

What it is: what `argv` may say, and `ReplayOptions`, which is all that the commands see of it. The command word comes first
and may be left out; then the options say which command is meant.
Which thread runs it: the main thread, once.
What it owns: nothing; the result is frozen.
What it must not know: what the commands do.

Any wrong use ends the program with exit code 2 and one message that names the option, the value and what is allowed.
"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from rcache.commands import option_values as values
from rcache.commands.replay_exit import EPILOG, ReplayExit
from rcache.commands.replay_times import parse_time
from rcache.records.history import NO_LIMIT
from rcache_client.address import Address

PROGRAM = "rcache-replay"

LIMIT_MAX = 10**12
"""More than any log holds."""
RATE_MAX = 10_000_000
"""More than any server takes."""
BUCKET_MAX = 65_535

COMMANDS = {
    "verify": "read everything and say whether it is whole",
    "print": "one line for each record",
    "history": "what happened to a key, when, and through which node",
    "rebuild": "write a savefile of what the files amount to",
    "inject": "put what the files amount to into a running server",
}

_DESCRIPTION = """\
Rebuild state from append logs, checkpoints and savefiles.

A PATH is a file, or a directory with such files in it, at any depth: a data
directory, or a folder of logs copied from several nodes. Logs of several
nodes are merged; files are only read. A running server's may be read too.
'history' alone does without a PATH: it reads {data_dir}.

commands:
{commands}

Without a command word, --into injects, --output rebuilds, and otherwise the
files are verified. '{program} COMMAND --help' shows the options of each."""

_TIMES = "\n\nTIME is ISO 8601 (UTC where no zone is given), seconds since 1970, or like '10m ago' (s, m, h, d, w)."


_HISTORY = """

A line is: when, through which node (the primary at that time), bucket,
EPOCH.COUNTER, what, and whose files it is in. OPEN: that node became primary
and went on from there. dead: written by a primary of before, beyond the place
that its successor went on from; it is no part of the history. Name the
directories of all nodes, or some changes may be missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOptions:
    """What rcache-replay was told. A field is called as its option; times in ms since 1970."""

    command: str
    paths: tuple[Path, ...]
    until: int = NO_LIMIT
    partial: bool = False
    skip_damaged: bool = False
    json: bool = False
    output: Path | None = None
    into: Address | None = None
    secret: bytes | None = field(default=None, repr=False)
    overwrite: bool = False
    rate: int = 0
    prefix: bytes = b""
    key: bytes | None = None
    bucket: int | None = None
    since: int = 0
    limit: int = 0
    values: bool = False


def parse(argv: Sequence[str]) -> ReplayOptions:
    """The options that `argv` (without the program's name) amounts to. Exits with 2 on any wrong use."""
    if not argv or argv[0] in ("-h", "--help", "--version"):
        _parse_alone(argv)
    command, rest = (argv[0], argv[1:]) if argv[0] in COMMANDS else (_implied_command(argv), argv)
    parser = _parser_of(command)
    given = vars(parser.parse_intermixed_args(list(rest)))
    given["paths"] = tuple(_existing(parser, text) for text in given["paths"]) or (_usual_place(parser),)
    secret_file = given.pop("secret_file", None)
    if secret_file is not None:
        given["secret"] = _secret(parser, secret_file)
    return ReplayOptions(command=command, **given)


def _implied_command(argv: Sequence[str]) -> str:
    names = {argument.split("=", 1)[0] for argument in argv}
    if names & {"--into", "--overwrite", "--rate", "--prefix"}:  # without --into it says that it needs that
        return "inject"
    return "rebuild" if names & {"--output", "-o"} else "verify"


class _Parser(ArgumentParser):
    """A parser whose errors are one message, not a page of usage with a message below."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message.removeprefix('argument ')}\nTry '{self.prog} --help'.", file=sys.stderr)
        raise SystemExit(ReplayExit.WRONG_USE)


def _new_parser(prog: str, usage: str, description: str) -> _Parser:
    parser = _Parser(
        prog=prog,
        usage=usage,
        description=description,
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {version('rcache')}")
    return parser


def _parse_alone(argv: Sequence[str]) -> NoReturn:
    """--help and --version without a command; anything else is wrong use."""
    commands = "\n".join(f"  {name:8} {text}" for name, text in COMMANDS.items())
    description = _DESCRIPTION.format(commands=commands, program=PROGRAM, data_dir=values.DATA_DIR)
    parser = _new_parser(PROGRAM, f"{PROGRAM} [COMMAND] PATH... [options]", description)
    parser.parse_known_args(list(argv))
    parser.error("a PATH is needed: a file of records, or a directory with such files in it")


def _parser_of(command: str) -> _Parser:
    usage = f"{PROGRAM} {command} {'KEY [PATH...]' if command == 'history' else 'PATH...'} [options]"
    more = _HISTORY if command == "history" else ""
    parser = _new_parser(f"{PROGRAM} {command}", usage, f"{COMMANDS[command].capitalize()}.{more}{_TIMES}")
    help_text = "a file, or a directory that is searched for files"
    if command == "history":
        parser.add_argument("key", type=values.key, metavar="KEY", help="the key, byte for byte")
        help_text += f" (default: {values.DATA_DIR})"
    parser.add_argument("paths", nargs="*" if command == "history" else "+", metavar="PATH", help=help_text)
    _add_common(parser)
    _ADD[command](parser)
    return parser


def _add_common(parser: _Parser) -> None:
    until = (
        "leave out what is later than this" if parser.prog.endswith("print") else "stop each bucket's history at this moment"
    )
    parser.add_argument("--until", type=parse_time, default=NO_LIMIT, metavar="TIME", help=until)
    parser.add_argument(
        "--skip-damaged", action="store_true", help="go on behind damage in the middle of a file, without what is lost there"
    )
    parser.add_argument("--json", action="store_true", help="answer in JSON, for programs")


def _add_verify(parser: _Parser) -> None:
    parser.add_argument("--partial", action="store_true", help="an incomplete history is no reason to fail")


def _add_rebuild(parser: _Parser) -> None:
    _add_partial(parser)
    parser.add_argument(
        "--output", "-o", type=values.path, required=True, metavar="SAVEFILE", help="where to write; a file there is replaced"
    )


def _add_inject(parser: _Parser) -> None:
    _add_partial(parser)
    parser.add_argument("--into", type=_server, required=True, metavar="HOST:PORT", help="the server to fill")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace keys that the server already has (default: only older ones, of the same cluster)",
    )
    rate = values.whole(1, RATE_MAX, "keys a second")
    parser.add_argument(
        "--rate", type=rate, default=0, metavar="N", help="at most N keys a second (default: as fast as it goes)"
    )
    parser.add_argument(
        "--prefix", type=os.fsencode, default=b"", metavar="TEXT", help="only keys that begin with TEXT (default: all)"
    )
    parser.add_argument("--secret-file", type=values.path, metavar="FILE", help="the secret that the server asks for")


def _add_print(parser: _Parser) -> None:
    _add_rows(parser)
    parser.add_argument("--key", type=values.key, metavar="KEY", help="only records of this key")
    bucket = values.whole(0, BUCKET_MAX)
    parser.add_argument("--bucket", type=bucket, metavar="N", help="only records of this bucket")
    parser.add_argument(
        "--from", dest="since", type=parse_time, default=0, metavar="TIME", help="leave out what is earlier than this"
    )


def _add_partial(parser: _Parser) -> None:
    parser.add_argument(
        "--partial", action="store_true", help="go on with buckets that have no base, or a missing link in their history"
    )


def _add_rows(parser: _Parser) -> None:
    parser.add_argument("--limit", type=values.whole(1, LIMIT_MAX), default=0, metavar="N", help="stop after N records")
    parser.add_argument("--values", action="store_true", help="show values too")


_ADD: dict[str, Callable[[_Parser], None]] = {
    "verify": _add_verify,
    "print": _add_print,
    "history": _add_rows,
    "rebuild": _add_rebuild,
    "inject": _add_inject,
}


def _server(text: str) -> Address:
    address = values.address(text)
    if address.port == 0:
        raise ArgumentTypeError(f"{text!r}: port 0 cannot be connected to")
    return address


def _usual_place(parser: _Parser) -> Path:
    """Where rcached keeps its files unless it is told otherwise."""
    if not os.path.isdir(values.DATA_DIR):
        parser.error(f"a PATH is needed: none was named, and {values.DATA_DIR}, which is read then, is not here")
    return Path(values.DATA_DIR)


def _existing(parser: _Parser, text: str) -> Path:
    try:
        return values.existing_path(text)
    except ArgumentTypeError as error:
        hint = f"; the command word {text!r} comes first, before any option" if text in COMMANDS else ""
        parser.error(f"PATH: {error}{hint}")


def _secret(parser: _Parser, secret_file: Path) -> bytes:
    try:
        return values.read_secret(secret_file)
    except ArgumentTypeError as error:
        parser.error(f"--secret-file: {error}")
