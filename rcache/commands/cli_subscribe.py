"""`rcache-cli subscribe`: print changes as they are made, until it is interrupted.

What it is: a line for each event, for people, or as JSON for programs.
Which thread runs it: the main thread; the client's feeds have their own.
What it owns: standard output, meanwhile. What it must not know: how events come here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from rcache.commands.cli_answer import Answer, text_or_base64
from rcache.commands.cli_options import CliOptions
from rcache.commands.show import show_bytes
from rcache.records.record import show_sequence
from rcache_client import Client, Event, Operation

VALUE_SHOWN = 60
"""Bytes of a value on a line for people."""


def subscribe(options: CliOptions, client: Client[bytes]) -> Answer:
    """Blocks until `--count` events were printed, or it is interrupted."""
    tell: Callable[[Event], str] = _as_json if options.json else _as_line
    with client.subscribe(prefix=options.selector or None, values=not options.no_values) as events:
        for number, event in enumerate(events, 1):
            print(tell(event), flush=True)
            if number == options.count:
                break
    return Answer(is_told=True)


def _as_line(event: Event) -> str:
    at = time.strftime("%H:%M:%S", time.localtime(event.time_ms / 1000)) + f".{event.time_ms % 1000:03}"
    if event.operation is Operation.GAP:
        after, upto = show_sequence(event.after), show_sequence(event.sequence)
        return f"{'':12} gap       bucket {event.bucket}: changes behind {after}, up to {upto}, are not told"
    what = show_bytes(event.key) if event.key else f"bucket {event.bucket}"
    value = f" {show_bytes(event.value[:VALUE_SHOWN])}" if event.value is not None else ""
    more = f"... ({len(event.value)} bytes)" if event.value is not None and len(event.value) > VALUE_SHOWN else ""
    return f"{at} {event.operation:9} {what}{value}{more}"


def _as_json(event: Event) -> str:
    fields: dict[str, Any] = {"operation": event.operation.value, "bucket": event.bucket, "sequence": event.sequence}
    if event.operation is Operation.GAP:
        return json.dumps({**fields, "after": event.after})
    fields |= {"epoch": event.epoch, "time_ms": event.time_ms}
    if event.key:
        fields |= text_or_base64("key", event.key)
    if event.operation is Operation.SET:
        fields |= {"cause": event.cause, "flags": event.flags, "expires_at_ms": event.expires_at_ms}
    if event.value is not None:
        fields |= text_or_base64("value", event.value)
    return json.dumps(fields)
