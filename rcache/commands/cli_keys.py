"""The commands of rcache-cli on keys: get, set, add, replace, delete, incr, decr, ttl.

What it is: for each command the call that it makes, and what came of it in words.
Which thread runs it: the main thread; every command blocks to its budget at most.
What it owns: standard input, for a value given as `-`.
What it must not know: how an answer is written.
"""

from __future__ import annotations

import os
import sys

from rcache.commands.cli_answer import Answer, text_or_base64
from rcache.commands.cli_exit import CliExit
from rcache.commands.cli_options import CliOptions
from rcache.commands.show import show_bytes, show_seconds, show_size
from rcache_client import Client, SomeKeysFailed

STANDARD_INPUT = "-"


def get(options: CliOptions, client: Client[bytes]) -> Answer:
    value, version = client.get_with_version(options.key)
    if value is None:
        return _missing(options)
    fields = {**_key_of(options), "found": True, **text_or_base64("value", value), "bytes": len(value), "version": version}
    return Answer(fields, value)


def set_(options: CliOptions, client: Client[bytes]) -> Answer:
    value = _read_value(options)
    return _stored(options, value, client.set(options.key, value, options.ttl))


def add(options: CliOptions, client: Client[bytes]) -> Answer:
    value = _read_value(options)
    version = client.add(options.key, value, options.ttl)
    if version:
        return _stored(options, value, version)
    complaint = f"not stored: there is a key {show_bytes(options.key)} already"
    return Answer({**_key_of(options), "stored": False}, code=CliExit.NOT_MET, complaint=complaint)


def replace(options: CliOptions, client: Client[bytes]) -> Answer:
    value = _read_value(options)
    version = client.replace(options.key, value, options.ttl)
    return _stored(options, value, version) if version else _missing(options, {"stored": False})


def delete(options: CliOptions, client: Client[bytes]) -> Answer:
    """Remove the keys. A missing one is no reason to leave out the rest."""
    try:
        there, failed = client.delete_many(options.keys), {}
    except SomeKeysFailed as error:
        there, failed = error.done, error.failed
    deleted = [key for key, was_there in there.items() if was_there]
    missing = [key for key, was_there in there.items() if not was_there]
    lines = [f"no such key: {show_bytes(key)}" for key in missing]
    lines += [f"{show_bytes(key)}: {error}" for key, error in failed.items()]
    code = CliExit.IN_PART if failed else CliExit.NOT_MET if missing else CliExit.DONE
    fields = {
        "deleted": [text_or_base64("key", key) for key in deleted],
        "missing": [text_or_base64("key", key) for key in missing],
        "failed": [{**text_or_base64("key", key), "error": str(error)} for key, error in failed.items()],
    }
    return Answer(fields, f"deleted {len(deleted)}" if deleted else "", code, "\n".join(lines))


def incr(options: CliOptions, client: Client[bytes]) -> Answer:
    return _counted(options, client.incr(options.key, options.delta, options.initial, options.ttl))


def decr(options: CliOptions, client: Client[bytes]) -> Answer:
    return _counted(options, client.decr(options.key, options.delta, options.initial, options.ttl))


def ttl(options: CliOptions, client: Client[bytes]) -> Answer:
    """Show how long the key stays; with a time or --forever change it first."""
    if (options.forever or options.ttl is not None) and not client.touch(options.key, options.ttl):
        return _missing(options)
    found = client.inspect(options.key)
    if found is None:
        return _missing(options)
    shown = "never expires" if found.ttl is None else f"expires in {show_seconds(found.ttl)}"
    fields = {"found": True, "ttl_s": found.ttl, "bytes": found.value_bytes, "version": found.version, "flags": found.flags}
    return Answer({**_key_of(options), **fields}, shown)


def _key_of(options: CliOptions) -> dict[str, str]:
    return text_or_base64("key", options.key)


def _missing(options: CliOptions, fields: dict[str, bool] | None = None) -> Answer:
    """There is no such key."""
    complaint = f"no such key: {show_bytes(options.key)}"
    return Answer({**_key_of(options), **(fields or {"found": False})}, code=CliExit.NOT_MET, complaint=complaint)


def _read_value(options: CliOptions) -> bytes:
    return sys.stdin.buffer.read() if options.value == STANDARD_INPUT else os.fsencode(options.value)


def _stored(options: CliOptions, value: bytes, version: int) -> Answer:
    fields = {**_key_of(options), "stored": True, "bytes": len(value), "version": version, "ttl_s": options.ttl}
    until = "" if options.ttl is None else f"; expires in {show_seconds(options.ttl)}"
    return Answer(fields, f"stored {show_size(len(value))}{until}")


def _counted(options: CliOptions, number: int | None) -> Answer:
    if number is None:
        return _missing(options)
    return Answer({**_key_of(options), "found": True, "number": number}, str(number))
