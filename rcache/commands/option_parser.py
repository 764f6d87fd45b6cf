"""What the command lines of programs that run for long have in common: options from the command line, from variables and from a
configuration file, and errors of one line.

What it is: the parser, before any option is in it, and how an option with a value is added.
Which thread runs it: the main thread, once, before anything else is started.
What it owns: nothing. What it must not know: which options there are.
"""

from __future__ import annotations

import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from typing import Any, NoReturn, TextIO

import configargparse

from rcache.commands.exit_codes import ExitCode
from rcache.commands.option_file import option_file_format

SEVERAL = ("node", "etcd")
"""The options that may be given several times, whichever program has them; a line of a file gives them as `[a, b]`."""


class Parser(configargparse.ArgumentParser):  # type: ignore[misc]  # configargparse has no types
    """A parser whose errors are one message, not a page of usage with a message below."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message.removeprefix('argument ')}\nTry '{self.prog} --help'.", file=sys.stderr)
        raise SystemExit(ExitCode.WRONG_USE)


def new_parser(program: str, prefix: str, names: Sequence[str], description: str, epilog: str) -> Parser:
    """A parser with --config; variables begin with `prefix`, and a configuration file may give `names`."""
    parser: Parser = Parser(
        prog=program,
        usage=f"{program} [options]",
        description=description,
        epilog=epilog,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
        auto_env_var_prefix=prefix,
        add_env_var_help=False,
        add_config_file_help=False,
        config_file_parser_class=option_file_format(names, SEVERAL),
        config_file_open_func=lambda name: _open_option_file(parser, name),
    )
    parser.add_argument(
        "--config",
        is_config_file=True,
        env_var=prefix + "CONFIG",
        metavar="FILE",
        help="read options from this file, one `option = value` a line (default: no file is read)",
    )
    return parser


def _open_option_file(parser: Parser, name: str) -> TextIO:
    try:
        return open(name, encoding="utf-8")
    except OSError as error:
        parser.error(f"--config: {name!r} cannot be read: {error.strerror}")


def add_option(group: Any, flag: str, kind: Any, default: str | None, metavar: str, text: str) -> None:
    """Define an option that takes a value. One without a default says in its text what holds in its place."""
    text += "" if default is None else " (default: %(default)s)"
    group.add_argument(flag, type=kind, default=default, metavar=metavar, help=text)
