"""The configuration file's format: one `option = value` a line, or `option = [a, b]`; `#` in front of a comment.

What it is: what configargparse asks for a file's options. It is stricter than the formats that come with it: an unknown option,
one given twice or a line that is neither is an error with its line number, never a setting that quietly does nothing.
Which thread runs it: the one that starts the program.
What it owns: nothing; the file is opened and closed by configargparse.
What it must not know: what the options mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, ClassVar, TextIO

from configargparse import ConfigFileParser, ConfigFileParserException


class _OptionFile(ConfigFileParser):  # type: ignore[misc]  # configargparse has no types
    """Reads a file whose options are among `names`; those of `several` may be given a list."""

    names: ClassVar[Sequence[str]] = ()
    several: ClassVar[Sequence[str]] = ()

    def get_syntax_description(self) -> str:
        return "One `option = value` a line, or `option = [a, b]`; a line that begins with # is a comment."

    def parse(self, stream: TextIO) -> dict[str, str | list[str]]:
        """The options in `stream`. One without a value is left out: its default holds. Raises `ConfigFileParserException`."""
        found: dict[str, str] = {}
        try:
            for number, line in enumerate(stream, 1):
                self._take(found, line.strip(), f"--config: {stream.name}, line {number}: ")
        except UnicodeDecodeError:
            raise ConfigFileParserException(f"--config: {stream.name} is not a text in UTF-8") from None
        return {name: self._values(name, value) for name, value in found.items() if value}

    def _values(self, name: str, value: str) -> str | list[str]:
        """`[a, b]` is a list, and `[::1]:13600` is not."""
        if name in self.several and value.startswith("[") and value.endswith("]"):
            return [each.strip() for each in value[1:-1].split(",")]
        return value

    def _take(self, found: dict[str, str], line: str, where: str) -> None:
        if not line or line.startswith("#"):
            return
        name, equals, value = (part.strip() for part in line.partition("="))
        if name not in self.names:
            near = get_close_matches(name, self.names, n=1)
            raise ConfigFileParserException(
                f"{where}{name!r} is not an option" + (f"; did you mean {near[0]!r}?" if near else "")
            )
        if not equals:
            raise ConfigFileParserException(f"{where}{line!r} has no '='; `option = value` is allowed")
        if name in found:
            raise ConfigFileParserException(f"{where}{name!r} was given before")
        if " #" in value:
            raise ConfigFileParserException(f"{where}{value!r}: a comment needs a line of its own")
        found[name] = value

    def serialize(self, items: Any) -> str:
        """Not needed: no program here writes its options out."""
        raise NotImplementedError


def option_file_format(names: Sequence[str], several: Sequence[str] = ()) -> type[_OptionFile]:
    """The format of a file that may hold these options; configargparse wants a class it can call without arguments."""
    return type("OptionFile", (_OptionFile,), {"names": names, "several": several})
