"""Why the native engine did not apply a record, in the words of the reference engine.

Which thread runs it: any. What it owns: nothing. What it must not know: where records come from.
"""

from __future__ import annotations

from enum import IntEnum

from rcache.cluster.bucket_state import BucketState
from rcache.engine.contract import ChainError, NotFollowed
from rcache.records.record import BadRecord, Kind, decode, decode_import_end, decode_opening, scan

STATES = (BucketState.ABSENT, BucketState.IMPORTING, BucketState.BACKUP, BucketState.PRIMARY, BucketState.FROZEN)
"""By the numbers of the core."""


class Problem(IntEnum):
    """Why a record was not applied: the numbers of the core's `Applied`."""

    BAD = 1
    WRONG_BUCKET = 2
    WRONG_KEY = 3
    NOT_TAKEN = 4
    ROW_OUTSIDE = 5
    END_ODD = 6
    NOT_NEXT = 7
    OPEN_ODD = 8
    NO_MEMORY = 9
    NOT_FOLLOWED = 10
    WHOLE = 11


_OFF_CHAIN = {
    Problem.NOT_TAKEN: "bucket {bucket} is {state}; records of others do not apply to it",
    Problem.NOT_FOLLOWED: "bucket {bucket} follows source {follows}; records of source {source} do not apply to it",
    Problem.WHOLE: "bucket {bucket} is a whole copy; it is not let go of by a record of a peer",
    Problem.ROW_OUTSIDE: "bucket {bucket}: a row outside an import",
    Problem.END_ODD: "bucket {bucket}: the end of an import that does not fit its beginning",
    Problem.NOT_NEXT: "bucket {bucket}: {sequence} does not follow on {held}",
}


def raise_not_applied(body: bytes, buckets: int, source: int, *said: int) -> None:
    """The exception for a record that was not applied, in the words of the reference engine."""
    number, at, bucket, sequence, state, held, follows = said
    problem = Problem(number)
    if problem in _OFF_CHAIN:
        where = {"bucket": bucket, "sequence": sequence, "state": STATES[state].value, "held": held}
        error = NotFollowed if problem is Problem.NOT_FOLLOWED else ChainError
        raise error(_OFF_CHAIN[problem].format(source=source, follows=follows, **where))
    if problem is Problem.NO_MEMORY:
        raise MemoryError("no memory for a recovered copy: it is larger than four times --memory-limit")
    if problem is Problem.WRONG_BUCKET:
        raise BadRecord(f"bucket {bucket} of {buckets}")
    record = decode(body, at, at + int.from_bytes(body[at : at + 4], "big")) if problem is not Problem.BAD else None
    if record is not None and problem is Problem.WRONG_KEY:
        raise BadRecord(f"key {record.key!r} is not of bucket {bucket}")
    if record is not None:
        decode_opening(record.value)
    for each in scan(body):  # the format's own words for what cannot be read
        if each.kind == Kind.IMPORT_END:
            decode_import_end(each.value)
    raise AssertionError(f"a record at {at} was refused that the format takes")
