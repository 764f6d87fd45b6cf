"""The history of one key: what happened to it, when, and through which node.

What it is: the command `history`: the search for the records of a key in the files of all nodes, and how they are shown.
Which thread runs it: the main thread.
What it owns: the file being read. What it must not know: how buckets are rebuilt.

The files are read twice: what is live is only known once everything was seen.

The node through which a change came is the one that was the bucket's primary then: the OPEN of the change's epoch names it.
The same record lies in the files of each node that had a copy, which says where it can be found and not who made it. So a
history shows OPENs, too, but of a bucket's many only those that say something of this key:
- of each epoch in which it changed: who was primary;
- the one that leads past a change that is dead: who took over without it;
- the newest: who is primary in the end.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

from rcache.commands.progress_bar import progress
from rcache.commands.replay_files import Loaded
from rcache.commands.replay_options import ReplayOptions
from rcache.commands.replay_print import bucket_of, record_fields, record_words
from rcache.records.history import BucketPlan
from rcache.records.reader import RecordFile
from rcache.records.record import HISTORY_KINDS, BadRecord, Kind, Record, decode, decode_opening, epoch_of, heads

UNKNOWN = "?"
"""The primary of an epoch whose OPEN is in none of the files."""


@dataclass(slots=True)
class KeyRecord:
    """A record of a key's history. `nodes`: whose files hold it; `through`: the primary of its epoch, or "" if that is not
    known; `state`: live, dead or copy."""

    record: Record
    nodes: set[str] = field(default_factory=set)
    through: str = ""
    state: str = ""


def key_history(loaded: Loaded, options: ReplayOptions) -> list[KeyRecord]:
    """What happened to `options.key`, in the order of its bucket's history: its changes, the flushes of its bucket, and who
    was primary. Empty where no file knows the key. A row of a copy is there only where the change itself is not."""
    if not loaded.found.files or options.key is None:
        return []
    bucket = bucket_of(options.key, loaded.found.newest)
    found = _find(loaded, options, bucket)
    if not any(each.record.key for each in found.values()):
        return []
    plan = loaded.survey.plans.get(bucket)
    primaries = {epoch_of(each.record.sequence): _primary(each.record) for each in found.values() if _opens(each)}
    for each in found.values():
        each.through = primaries.get(epoch_of(each.record.sequence), "")
        each.state = _state(each.record, plan)
    telling = _telling_epochs(found, plan)
    return [found[at] for at in sorted(found) if not _opens(found[at]) or epoch_of(at) in telling]


def _find(loaded: Loaded, options: ReplayOptions, bucket: int) -> dict[int, KeyRecord]:
    """The records of the key and its bucket's OPENs and flushes, by sequence."""
    found: dict[int, KeyRecord] = {}
    files = loaded.found.files
    with progress("looking") as report:
        for number, file in enumerate(files):
            report(number, len(files))
            with RecordFile(file.path) as opened:
                for block in opened.blocks(skip_damaged=True):
                    for record in _of_key(block.body, options, bucket):
                        known = found.setdefault(record.sequence, KeyRecord(record))
                        known.nodes.add(opened.header.node)
                        if known.record.kind == Kind.ROW:
                            known.record = record  # the change that a row is a copy of says more
    return found


def _of_key(body: bytes, options: ReplayOptions, bucket: int) -> Iterator[Record]:
    for head in heads(body):
        if head.bucket == bucket and head.time_ms <= options.until:
            record = decode(body, head.start, head.end)
            if record.key == options.key or record.kind in (Kind.FLUSH, Kind.OPEN):
                yield record


def _opens(found: KeyRecord) -> bool:
    return found.record.kind == Kind.OPEN


def _primary(opening: Record) -> str:
    try:
        return decode_opening(opening.value).node
    except BadRecord:
        return ""


def _state(record: Record, plan: BucketPlan | None) -> str:
    """`dead`: off the chain. `live`: on it, as far back as it is known. `copy`: a row of a base."""
    if plan is not None and plan.is_dead(record.sequence):
        return "dead"
    return "live" if record.kind in HISTORY_KINDS else "copy"


def _telling_epochs(found: dict[int, KeyRecord], plan: BucketPlan | None) -> set[int]:
    """The epochs whose OPENs are shown (see the module)."""
    telling = {epoch_of(at) for at, each in found.items() if not _opens(each)}
    chain = sorted(plan.chain) if plan is not None else []
    for at, each in found.items():
        if each.state == "dead" and not _opens(each):
            telling.update([epoch for epoch in chain if epoch > epoch_of(at)][:1])
    telling.update([epoch_of(at) for at, each in sorted(found.items()) if _opens(each)][-1:])
    return telling


def show_change(change: KeyRecord, options: ReplayOptions) -> str:
    """One line, without its end: for people, or JSON."""
    nodes = sorted(change.nodes)
    if options.json:
        where = {"through": change.through or None, "files_of": nodes, "state": change.state}
        return json.dumps(record_fields(change.record, options) | where)
    words = record_words(change.record, f"through {change.through or UNKNOWN}", options)
    return "  ".join([*words, change.state, f"(files of {', '.join(nodes)})"])
