"""The options of rcached: what they amount to together.

What it is: `ServerOptions`, which is all that the rest of the program sees of what the command line, the RCACHE_* variables and
the configuration file say; the defaults that depend on other options, and whether all of it fits together. The options
themselves, one by one, are in `option_definitions`.
Which thread runs it: the main thread, once, before anything else is started.
What it owns: nothing; the result is frozen.
What it must not know: what the server does with an option. Checks that need more than the options themselves (is the port
free, is the data directory locked) belong to whoever uses them.

Any wrong use ends the program with exit code 2 and one message that names the option, the value and what is allowed.
"""

from __future__ import annotations

import contextlib
import socket
from argparse import ArgumentTypeError
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from rcache.commands import option_values as values
from rcache.commands.option_definitions import build_parser
from rcache.commands.option_parser import Parser
from rcache.commands.option_values import size_text
from rcache.engine.bodies import NATIVE, best_body, why_not_native
from rcache.records.record import HEADER_BYTES as RECORD_HEADER_BYTES
from rcache.stream.data_dir import node_of
from rcache.stream.policy import FsyncPolicy
from rcache_client.address import Address
from rcache_client.wire.opcodes import KEY_BYTES_MAX

FRAME_OVERHEAD_BYTES = 128
"""What a frame holds beside one key and one value: its header and the fixed fields of any opcode, with room to spare."""
RECORDS_IN_STREAM_MIN = 4
"""A record is at most a quarter of the change stream, so that one large write never has to wait for an empty one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """What rcached was told. A field is called as its option.

    Sizes are in bytes and times in seconds; `append_log_max_mb` is in MiB and `append_log_keep_days` in days, as they say.
    `secret` is what `secret_file` holds. `engine` is the one to use, never "auto". `buckets` is None where nothing was
    said: as many as the cluster was born with, or BUCKETS_DEFAULT for a new one; so are `backups`, `lease` and
    `append_log_fsync`, which belong to the cluster.
    """

    listen: Address
    name: str
    secret_file: Path | None
    secret: bytes | None = field(repr=False)
    trust_network: bool

    advertise: Address | None
    node: tuple[Address, ...]
    etcd: tuple[str, ...]
    etcd_key: str
    backups: int | None
    lease: float | None
    reads: str
    drain_timeout: float

    data_dir: Path
    buckets: int | None
    append_log: bool
    append_log_fsync: FsyncPolicy | None
    append_log_fsync_interval: float
    append_log_max_mb: int
    append_log_keep_days: int
    savefile: Path
    persist_on_shutdown: bool
    restore: Path | None
    skip_damaged: bool

    memory_limit: int
    no_evict: bool
    max_value_size: int
    max_frame_size: int
    change_stream_size: int

    max_connections: int
    worker_threads: int
    hello_timeout: float
    idle_timeout: float
    frame_timeout: float
    send_timeout: float
    stop_timeout: float

    engine: str
    log_level: str
    log_file: Path | None


OPTION_NAMES = tuple(each.name.replace("_", "-") for each in fields(ServerOptions) if each.name != "secret")
"""The options as they are written: the keys of the configuration file, and, with dashes in front, of the command line."""


def parse(argv: Sequence[str], environ: Mapping[str, str]) -> ServerOptions:
    """The options that `argv` (without the program's name), `environ` and the file they may name amount to.

    Exits with code 2 on any wrong use, with 0 after --help and --version. Reads the configuration file and the secret.
    """
    parser = build_parser(OPTION_NAMES)
    given = vars(parser.parse_args(list(argv), env_vars=dict(environ)))
    del given["config"]
    options = _finish(parser, given)
    for complaint in _complaints(options):
        parser.error(complaint)
    return options


def _finish(parser: Parser, given: dict[str, Any]) -> ServerOptions:
    """Fill in the defaults that depend on other options, and read the secret."""
    try:
        given["name"] = given["name"] or _name_found(given["data_dir"]) or values.node_name(socket.gethostname())
    except ArgumentTypeError as error:
        parser.error(f"--name: the default, this host's name, does not do: {error}")
    given["node"] = tuple(given["node"] or ())
    given["etcd"] = tuple(given["etcd"] or ())
    given["savefile"] = given["savefile"] or given["data_dir"] / f"{given['name']}.rcs"
    try:
        given["secret"] = values.read_secret(given["secret_file"]) if given["secret_file"] else None
    except ArgumentTypeError as error:
        parser.error(f"--secret-file: {error}")
    if given["engine"] == NATIVE and (why := why_not_native()):
        parser.error(f"--engine: 'native' cannot be used: {why}; auto and reference can")
    if given["engine"] == "auto":
        given["engine"] = best_body()
    return ServerOptions(**given)


def _name_found(data_dir: Path) -> str | None:
    """The name of the node that this data belongs to: it stays that node on a host that has another name."""
    with contextlib.suppress(ArgumentTypeError):
        return values.node_name(node_of(data_dir) or "")
    return None


def _complaints(options: ServerOptions) -> Iterator[str]:
    """What does not fit together, the first thing first; each option on its own was checked when it was parsed."""
    if not (values.is_loopback(options.listen) or options.secret or options.trust_network):
        yield (
            f"--listen: '{options.listen}' can be reached from other machines: give --secret-file FILE, "
            f"or say --trust-network, or listen on 127.0.0.1 or [::1]"
        )
    yield from _size_complaints(options)
    yield from _path_complaints(options)


def _size_complaints(options: ServerOptions) -> Iterator[str]:
    frame_bytes = options.max_value_size + KEY_BYTES_MAX + FRAME_OVERHEAD_BYTES
    if options.max_frame_size < frame_bytes:
        yield (
            f"--max-frame-size: {size_text(options.max_frame_size)} does not hold a value of --max-value-size "
            f"{size_text(options.max_value_size)} with its key: {frame_bytes} bytes or more are allowed"
        )
    stream_bytes = RECORDS_IN_STREAM_MIN * (RECORD_HEADER_BYTES + KEY_BYTES_MAX + options.max_value_size)
    if options.change_stream_size < stream_bytes:
        yield (
            f"--change-stream-size: {size_text(options.change_stream_size)} does not hold {RECORDS_IN_STREAM_MIN} records of "
            f"--max-value-size {size_text(options.max_value_size)}: {stream_bytes} bytes or more are allowed"
        )


def _path_complaints(options: ServerOptions) -> Iterator[str]:
    if options.data_dir.exists() and not options.data_dir.is_dir():
        yield f"--data-dir: '{options.data_dir}' is not a directory"
    if options.savefile.is_dir():
        yield f"--savefile: '{options.savefile}' is a directory; a file is allowed"
    beside = options.savefile.parent
    if beside != options.data_dir and not beside.is_dir():
        yield f"--savefile: '{options.savefile}' cannot be made: there is no directory '{beside}'"
