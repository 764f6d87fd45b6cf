"""FLUSH of a whole cluster: every node that is the primary of something is asked.

Which thread runs it: the caller's; it blocks to its deadline at most.
What it owns: nothing.
What it must not know: connections.

Buckets may change their primary meanwhile. A bucket counts as flushed if it was told to the primary that the newest view names,
and became primary when that view says; where a node answers under a newer view, that is fetched and looked at again.
"""

from __future__ import annotations

from rcache_client.calls import Caller
from rcache_client.door import Door
from rcache_client.errors import PrimaryUnavailable
from rcache_client.fan_out import try_all
from rcache_client.retries import Failed
from rcache_client.routing import Table
from rcache_client.wire.opcodes import Opcode

Held = tuple[int, str | None, int]
"""A bucket, its primary, and the epoch in which that became its primary."""


def flush(caller: Caller, deadline: float) -> int:
    """Remove all values; return how many there were. Raises `RcacheError`; then a part may have been removed."""
    with caller.asking_for_all():
        return _flush(caller, deadline)


def _flush(caller: Caller, deadline: float) -> int:
    removed = 0
    flushed: set[Held] = set()
    asked = False
    retries = caller.retries(deadline)
    while True:
        table = caller.table(deadline)
        missing = _missing(table, flushed)
        if asked and not missing:
            return removed
        outcomes = try_all(caller, Opcode.FLUSH, [(door, b"") for door in missing], table, deadline)
        asked = True
        why = None
        for held, outcome in zip(missing.values(), outcomes, strict=True):
            if isinstance(outcome, Failed):
                why = outcome if why is None or outcome.is_final else why
                continue
            removed += int(outcome.values[0])
            flushed.update(held)
            if why is None and outcome.epoch > table.epoch and table.view is not None:
                error = PrimaryUnavailable("a node has a newer view, which could not be learnt", outcome.door.name, "FLUSH")
                why = Failed(error, outcome.door, elsewhere=True, used=table.epoch, wanted=outcome.epoch)
        if why is None:
            return removed
        retries.wait(why)


def _missing(table: Table, flushed: set[Held]) -> dict[Door | None, list[Held]]:
    """The doors of the primaries of those buckets that were not flushed yet; a bucket that is lost has nothing to flush."""
    if table.view is None:
        return {None: []}
    missing: dict[Door | None, list[Held]] = {}
    for number, (bucket, door) in enumerate(zip(table.view.buckets, table.doors, strict=True)):
        held = (number, bucket.primary, bucket.opened)
        if bucket.primary is not None and held not in flushed:
            missing.setdefault(door, []).append(held)
    return missing
