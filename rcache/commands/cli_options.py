"""The command line of rcache-cli: the options that every command has, and what all of it amounts to.

What it is: what `argv` and the environment may say, and `CliOptions`, which is all that the commands see of it. Options may
stand anywhere, before the command word too. The commands, and what each takes beside, are in `cli_arguments`.
Which thread runs it: the main thread, once.
What it owns: nothing; the result is frozen.
What it must not know: what the commands do.

Any wrong use ends the program with exit code 2 and one message that names the option, the value and what is allowed.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from rcache.commands import option_values as values
from rcache.commands.cli_arguments import ARGUMENTS, COMMANDS
from rcache.commands.cli_exit import EXIT_CODES, CliExit
from rcache_client.arguments import parse_servers
from rcache_client.budget import SECONDS_MAX
from rcache_client.wire.opcodes import DEFAULT_PORT

PROGRAM = "rcache-cli"
SERVER_VARIABLE = "RCACHE_SERVER"
SECRET_VARIABLE = "RCACHE_SECRET_FILE"  # noqa: S105 - the name of a variable that names a file
SERVER_DEFAULT = f"127.0.0.1:{DEFAULT_PORT}"

BUDGET_MIN_S = 0.001

_DESCRIPTION = """\
Look into a running rcache server, and change what it holds.

commands:
{commands}

'{program} COMMAND --help' shows the options of each."""

_EXAMPLES = f"""\
examples:
  {PROGRAM} set greeting hello --ttl 10m
  {PROGRAM} get greeting
  {PROGRAM} set page - < page.html        a value from standard input
  {PROGRAM} get page > copy.html          the same bytes come back
  {PROGRAM} incr visits --initial 1
  {PROGRAM} load site/ --prefix www/
  {PROGRAM} --server cache1:{DEFAULT_PORT} --server cache2:{DEFAULT_PORT} ping
  {PROGRAM} stats memory --json
  {PROGRAM} nodes
  {PROGRAM} drain cache2
  {PROGRAM} pause --for 30s --reason "a copy is made"
  {PROGRAM} lost cache3 --is-stopped"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CliOptions:
    """What rcache-cli was told. A field is called as its option or argument; times in seconds.

    `budget` None: each command's own. `ttl` None: for ever, or not given. `secret` is what the secret file holds.
    """

    command: str
    servers: tuple[str, ...]
    secret: bytes | None = field(default=None, repr=False)
    budget: float | None = None
    json: bool = False
    key: bytes = b""
    keys: tuple[bytes, ...] = ()
    value: str = ""
    ttl: float | None = None
    forever: bool = False
    delta: int = 1
    initial: int | None = None
    section: str = ""
    mode: str = ""
    yes: bool = False
    empty: bool = False
    directory: Path = Path()
    prefix: bytes = b""
    selector: bytes = b""
    no_values: bool = False
    count: int | None = None
    all: bool = False
    raw: bool = False
    node: str = ""
    seconds: float = 0.0
    reason: str = ""
    backups: int | None = None
    lease: float | None = None
    ack: float | None = None
    fsync: str | None = None
    is_stopped: bool = False
    stopped: tuple[str, ...] = ()
    accept_old: bool = False


def parse(argv: Sequence[str], environ: Mapping[str, str]) -> CliOptions:
    """The options that `argv` (without the program's name) and `environ` amount to. Exits with 2 on any wrong use."""
    command, rest = _split(argv)
    if command not in COMMANDS:
        _parse_alone(command, rest)
    parser = _parser_of(command)
    # The one lets options stand between arguments; the other knows that behind -- there are none.
    parse_rest = parser.parse_args if "--" in rest else parser.parse_intermixed_args
    given = vars(parse_rest(rest))
    if given.get("forever") and given["ttl"] is not None:
        parser.error("--forever and a time were both given; one of them is allowed")
    given["servers"] = _servers(parser, given.pop("server"), environ)
    given["secret"] = _secret(parser, given.pop("secret_file"), environ)
    if command == "lost" and not given["is_stopped"]:
        parser.error(f"--is-stopped is needed: say so once {given['node']} is stopped; what a running node has is not lost")
    for name in ("keys", "stopped"):
        if name in given:
            given[name] = tuple(dict.fromkeys(given[name]))
    return CliOptions(command=command, **given)


_TAKE_VALUE = ("--server", "--secret-file", "--budget")
"""Common options whose value is an argument of its own; it is not the command word."""


def _split(argv: Sequence[str]) -> tuple[str, list[str]]:
    """The command word ("" if there is none), and all the rest."""
    place = 0
    while place < len(argv) and argv[place].startswith("-"):
        place += 2 if argv[place] in _TAKE_VALUE else 1
    return "".join(argv[place : place + 1]), [*argv[:place], *argv[place + 1 :]]


class _Parser(ArgumentParser):
    """A parser whose errors are one message, not a page of usage with a message below."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message.removeprefix('argument ')}\nTry '{self.prog} --help'.", file=sys.stderr)
        raise SystemExit(CliExit.WRONG_USE)


def _new_parser(prog: str, usage: str, description: str, epilog: str) -> _Parser:
    parser = _Parser(
        prog=prog,
        usage=usage,
        description=description,
        epilog=epilog,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {version('rcache')}")
    group = parser.add_argument_group("options of every command")
    server = (
        f"a server to ask; repeatable, all of one service (variable {SERVER_VARIABLE}, commas between; default: %(default)s)"
    )
    group.add_argument("--server", action="append", metavar="HOST:PORT", help=server.replace("%(default)s", SERVER_DEFAULT))
    secret = f"the secret that the server asks for (variable {SECRET_VARIABLE})"
    group.add_argument("--secret-file", type=values.path, metavar="FILE", help=secret)
    budget = "the longest that a request may take (default: 5; 15 to steer the cluster; 60 for flush and load)"
    group.add_argument("--budget", type=values.seconds(BUDGET_MIN_S, SECONDS_MAX), metavar="SECONDS", help=budget)
    group.add_argument("--json", action="store_true", help="answer in JSON, one object on one line, for programs")
    return parser


def _parse_alone(command: str, rest: list[str]) -> NoReturn:
    """--help and --version without a command; anything else is wrong use."""
    commands = "\n".join(f"  {name:8} {text}" for name, text in COMMANDS.items())
    description = _DESCRIPTION.format(commands=commands, program=PROGRAM)
    usage = f"{PROGRAM} COMMAND [arguments] [options]"
    parser = _new_parser(PROGRAM, usage, description, f"{_EXAMPLES}\n\n{EXIT_CODES}")
    if command:
        parser.error(f"there is no command {command!r}; there are: {', '.join(COMMANDS)}")
    parser.parse_known_args(rest)
    parser.error(f"a command is needed: {', '.join(COMMANDS)}")


def _parser_of(command: str) -> _Parser:
    usage, notes, add = ARGUMENTS[command]
    text = f"{COMMANDS[command].capitalize()}.{notes and ' '}{notes}"
    parser = _new_parser(f"{PROGRAM} {command}", f"{PROGRAM} {command} {usage}[options]", text, EXIT_CODES)
    add(parser)
    return parser


def _servers(parser: _Parser, given: list[str] | None, environ: Mapping[str, str]) -> tuple[str, ...]:
    source = "--server" if given else SERVER_VARIABLE
    texts = given or [part.strip() for part in environ.get(SERVER_VARIABLE, "").split(",") if part.strip()]
    try:
        return tuple(map(str, parse_servers(texts or SERVER_DEFAULT)))
    except ValueError as error:
        parser.error(f"{source}: {error}")


def _secret(parser: _Parser, given: Path | None, environ: Mapping[str, str]) -> bytes | None:
    source = "--secret-file" if given else SECRET_VARIABLE
    try:
        if given is None and environ.get(SECRET_VARIABLE):
            given = values.path(environ[SECRET_VARIABLE])
        return None if given is None else values.read_secret(given)
    except ArgumentTypeError as error:
        parser.error(f"{source}: {error}")
