"""The values options take: sizes, times, whole numbers, addresses, names, the secret.

What it is: a parser for each kind of value, for the command lines to hand to configargparse. Every parser either returns a
value of its own type or raises `ArgumentTypeError` with a text that repeats what was given and says what is allowed.
Which thread runs it: the one that starts the program.
What it owns: nothing.
What it must not know: which options there are.
"""

from __future__ import annotations

import os
import re
import stat
from argparse import ArgumentTypeError
from collections.abc import Callable
from enum import Enum
from ipaddress import AddressValueError, IPv6Address, ip_address
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from rcache_client.address import Address
from rcache_client.wire.opcodes import KEY_BYTES_MAX, NODE_NAME_BYTES_MAX
from rcache_client.wire.proof import SECRET_BYTES_MIN

SECRET_BYTES_MAX = 4096
"""Longer than any key in use; a file beyond it is another file, given by mistake."""

DATA_DIR = "./rcache-data"
"""Where rcached keeps its files if nothing else is said, and where rcache-replay looks for them then."""

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40

_SIZE = re.compile(r"(\d{1,20})([KMGT]?)", re.ASCII | re.IGNORECASE)
_SIZE_UNITS = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": TIB}
_SECONDS = re.compile(r"\d{1,9}(\.\d{0,9})?|\.\d{1,9}", re.ASCII)
_WHOLE = re.compile(r"-?\d{1,18}", re.ASCII)
_ADDRESS = re.compile(r"(?:\[(?P<six>[^\[\]]+)\]|(?P<host>[A-Za-z0-9._-]+)):(?P<port>\d{1,5})", re.ASCII)

Choice = TypeVar("Choice", bound=Enum)


def is_loopback(place: Address) -> bool:
    """Whether only this machine can reach it. A name other than localhost never counts, whatever it resolves to."""
    try:
        return ip_address(place.host).is_loopback
    except ValueError:
        return place.host.lower() == "localhost"


def size_text(count: int) -> str:
    """A size as it is written on a command line: the largest unit that divides it."""
    for unit in ("T", "G", "M", "K"):
        if count and count % _SIZE_UNITS[unit] == 0:
            return f"{count // _SIZE_UNITS[unit]}{unit}"
    return str(count)


def size(low: int, high: int) -> Callable[[str], int]:
    """A parser of sizes from `low` to `high` bytes, both included."""

    def parse(text: str) -> int:
        match = _SIZE.fullmatch(text)
        if match is None:
            raise ArgumentTypeError(f"{text!r} is not a size: write bytes, or a number with K, M, G or T (512K, 64M, 2G)")
        count = int(match[1]) * _SIZE_UNITS[match[2].upper()]
        if not low <= count <= high:
            raise ArgumentTypeError(f"{text!r} is out of range: {size_text(low)} to {size_text(high)} are allowed")
        return count

    return parse


def seconds(low: float, high: float) -> Callable[[str], float]:
    """A parser of times from `low` to `high` seconds, both included."""

    def parse(text: str) -> float:
        if not _SECONDS.fullmatch(text) or not low <= float(text) <= high:
            raise ArgumentTypeError(f"{text!r} is not a time: {low:.12g} to {high:.12g} seconds are allowed (2, 0.5)")
        return float(text)

    return parse


def whole(low: int, high: int, unit: str = "") -> Callable[[str], int]:
    """A parser of whole numbers from `low` to `high`, both included. `unit` is for the message only."""

    def parse(text: str) -> int:
        if not _WHOLE.fullmatch(text) or not low <= int(text) <= high:
            raise ArgumentTypeError(f"{text!r} is out of range: a whole number{unit and f' of {unit}'}, {low} to {high}")
        return int(text)

    return parse


def power_of_two(high: int) -> Callable[[str], int]:
    """A parser of the powers of two from 1 to `high`."""

    def parse(text: str) -> int:
        count = int(text) if _WHOLE.fullmatch(text) else 0
        if not 1 <= count <= high or count & (count - 1):
            raise ArgumentTypeError(f"{text!r} is not allowed: a power of two, 1 to {high}")
        return count

    return parse


def choice(kind: type[Choice]) -> Callable[[str], Choice]:
    """A parser of the values of an enum of strings."""

    def parse(text: str) -> Choice:
        try:
            return kind(text)
        except ValueError:
            raise ArgumentTypeError(f"{text!r} is not one of {', '.join(each.value for each in kind)}") from None

    return parse


def word(*words: str) -> Callable[[str], str]:
    """A parser of one of `words`, in upper or lower case; the result is spelled as in `words`."""
    spelling = {each.lower(): each for each in words}

    def parse(text: str) -> str:
        if text.lower() not in spelling:
            raise ArgumentTypeError(f"{text!r} is not one of {', '.join(words)}")
        return spelling[text.lower()]

    return parse


def address(text: str) -> Address:
    """Parse HOST:PORT, where an IPv6 host stands in brackets. To listen on, so port 0 is allowed and none is not."""
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise ArgumentTypeError(f"{text!r} is not HOST:PORT (127.0.0.1:13600, localhost:13600, [::1]:13600)")
    if match["six"]:
        _check_ipv6(text, match["six"])
    port = int(match["port"])
    if port > 0xFFFF:
        raise ArgumentTypeError(f"{text!r}: port {port} is out of range, 0 to 65535 are allowed")
    return Address(match["six"] or match["host"], port)


def _check_ipv6(text: str, host: str) -> None:
    try:
        IPv6Address(host)
    except AddressValueError:
        raise ArgumentTypeError(f"{text!r}: {host!r} is not an IPv6 address") from None


def path(text: str) -> Path:
    """Parse a path; a leading ~ is the home directory."""
    if not text or "\0" in text:
        raise ArgumentTypeError(f"{text!r} is not a path")
    return Path(os.path.expanduser(text))


def existing_path(text: str) -> Path:
    """Parse a path of a file or directory that is there."""
    found = path(text)
    if not os.path.exists(found):  # Path.exists raises where a directory on the way may not be entered
        raise ArgumentTypeError(f"{text!r} is neither a file nor a directory that can be reached")
    return found


def key(text: str) -> bytes:
    """Parse a key: the argument's own bytes, whatever the locale."""
    parsed = os.fsencode(text)
    if not 1 <= len(parsed) <= KEY_BYTES_MAX:
        raise ArgumentTypeError(f"a key of {len(parsed)} bytes; 1 to {KEY_BYTES_MAX} are allowed")
    return parsed


def node_name(text: str) -> str:
    """Parse a node's name. It becomes a part of file names and stands in every log line, hence the rules."""
    if not text.isprintable() or not 1 <= len(text.encode()) <= NODE_NAME_BYTES_MAX or "/" in text or text.startswith("."):
        raise ArgumentTypeError(
            f"{text!r} is not a node name: 1 to {NODE_NAME_BYTES_MAX} bytes of printable UTF-8, no '/', no '.' in front"
        )
    return text


def read_secret(secret_file: Path) -> bytes:
    """The secret a file holds, without white space around it. Raises `ArgumentTypeError`; never shows a part of it."""
    try:
        # O_NONBLOCK: a named pipe given by mistake is refused below rather than waited for.
        descriptor = os.open(secret_file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ArgumentTypeError(f"{str(secret_file)!r} cannot be read: {error.strerror}") from None
    try:
        _check_secret_mode(secret_file, os.fstat(descriptor).st_mode)
        content = os.read(descriptor, SECRET_BYTES_MAX + 1)
    finally:
        os.close(descriptor)
    secret = content.strip()
    if len(content) > SECRET_BYTES_MAX or len(secret) < SECRET_BYTES_MIN:
        raise ArgumentTypeError(
            f"{str(secret_file)!r} does not hold a secret: {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} bytes are allowed"
        )
    return secret


def _check_secret_mode(secret_file: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise ArgumentTypeError(f"{str(secret_file)!r} is not a file")
    if mode & 0o007:
        raise ArgumentTypeError(
            f"{str(secret_file)!r} is open to everyone (mode {mode & 0o777:04o}): take the rights of others away (chmod o=)"
        )


ETCD_KEY_BYTES_MAX = 200


def etcd_url(text: str) -> str:
    """http://HOST:PORT or https://HOST:PORT of a member of an etcd."""
    found = urlsplit(text)
    try:
        port = found.port
    except ValueError:
        port = None
    if found.scheme not in ("http", "https") or not found.hostname or port is None or found.path.strip("/") or found.query:
        raise ArgumentTypeError(f"{text!r} is not of the form http://HOST:PORT")
    return text.rstrip("/")


def etcd_key(text: str) -> str:
    """The name of a key in etcd."""
    if not 1 <= len(text.encode()) <= ETCD_KEY_BYTES_MAX or any(c.isspace() or not c.isprintable() for c in text):
        raise ArgumentTypeError(f"{text!r} is no key: 1 to {ETCD_KEY_BYTES_MAX} bytes without spaces are allowed")
    return text
