"""What a command of rcache-cli has to say, and how it gets to standard output: for people, or as JSON for programs.

What it is: `Answer`, which every command returns.
Which thread runs it: the main thread.
What it owns: standard output, while it writes.
What it must not know: servers and commands.
"""

from __future__ import annotations

import json
import sys
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group

from rcache.commands.cli_exit import CliExit

PIPED_COLUMNS = 200
"""Where nobody's terminal sets a limit, nothing is folded below this width."""


_KEEP = {"\n", "\t"}
"""What a terminal may get beside printable characters; anything else could be a command to it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome of a command: `fields` for JSON, `shown` for people (bytes go out unchanged), `complaint` for stderr.
    `is_told`: the command has written everything itself."""

    fields: Mapping[str, Any] = field(default_factory=dict)
    shown: str | bytes | Group = ""
    code: CliExit = CliExit.DONE
    complaint: str = ""
    is_told: bool = False


def text_or_base64(name: str, data: bytes) -> dict[str, str]:
    """Bytes for JSON: `name`, and beside it how to read it: as it stands, or from base64."""
    try:
        return {name: data.decode(), f"{name}_encoding": "utf-8"}
    except UnicodeDecodeError:
        return {name: b64encode(data).decode(), f"{name}_encoding": "base64"}


def write(answer: Answer, command: str, *, as_json: bool) -> None:
    """Put the answer on standard output, and its complaint on standard error. Raises `BrokenPipeError`."""
    if answer.is_told:
        return
    if as_json:
        error = {"error": answer.complaint} if answer.complaint else {}
        print(json.dumps({"command": command, **answer.fields, **error, "exit_code": answer.code}))
    elif isinstance(answer.shown, bytes):
        _write_value(answer.shown)
    elif isinstance(answer.shown, Group):
        print(_render(answer.shown))
    elif answer.shown:
        print(answer.shown)
    sys.stdout.flush()
    if not as_json:
        complain(answer.complaint)


def complain(text: str) -> None:
    """Say what is wrong, on standard error."""
    for line in text.splitlines():
        print(f"rcache-cli: {line}", file=sys.stderr)


def _write_value(value: bytes) -> None:
    """The very bytes; to a terminal, in a form that cannot command it, and with an end of line."""
    if sys.stdout.isatty():
        text = value.decode(errors="backslashreplace")
        shown = "".join(c if c in _KEEP or c.isprintable() else c.encode("unicode_escape").decode() for c in text)
        print(shown, end="" if shown.endswith("\n") else "\n")
    else:
        sys.stdout.buffer.write(value)
        sys.stdout.buffer.flush()


def _render(shown: Group) -> str:
    """As text, with colours where a terminal takes them. Printing is not left to rich: it ends the program on a broken pipe."""
    width = None if sys.stdout.isatty() else PIPED_COLUMNS
    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False, width=width)
    with console.capture() as capture:
        console.print(shown)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())
