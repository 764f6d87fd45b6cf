"""`--restore FILE|DIR`: files of another time or another node put into an empty one, as new changes.

What it is: the survey and rebuild of `rcache-replay`, and then a SET for each key, so the number of buckets may differ and
the append log holds the result like any other change.
Which thread runs it: the main thread, before the server serves. Blocks.
What it owns: what it rebuilds, in memory, until the engine has it.
What it must not know: how the engine keeps it, and how the log is written.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rcache.commands.exit_codes import ExitCode
from rcache.commands.start_failed import StartFailed
from rcache.engine.contract import Engine
from rcache.records.reader import DataDamaged
from rcache.records.rebuild import Progress, RebuiltBucket, Row, rebuild, survey
from rcache.stream.data_dir import list_files, read_headers, sources
from rcache.stream.recovery import Walks
from rcache_client.wire.frames import HEADER, HEADER_BYTES, Request
from rcache_client.wire.grammar import STORE, decode_reply
from rcache_client.wire.opcodes import Opcode, Status, StatusClass, status_class, status_name

RESTORE_BUDGET_MS = 60_000
"""How long one item may wait for the append log to take it in."""


def restore(path: Path, engine: Engine, begin: Callable[[], None], walks: Walks, restoring: Progress) -> int:
    """Put all live items of the files at `path` into `engine`; `begin` is called before the first. Returns how many.
    `restoring` counts items.

    Raises `StartFailed`, and what `begin` raises."""
    held = engine.stats()["items"]["items"]
    if held:
        why = f"--restore: this data directory already holds {held} items; use an empty one, or rcache-replay --into"
        raise StartFailed(ExitCode.WRONG_USE, why)
    buckets = _rebuild(path, walks)
    begin()
    total = sum(len(bucket.rows) for bucket in buckets.values())
    done = restored = 0
    for bucket in buckets.values():
        for key, row in bucket.live_rows():
            restored += _put(engine, key, row, engine.clock.now_ms())
            done += 1
            restoring(done, total)
        bucket.rows.clear()
    return restored


def _rebuild(path: Path, walks: Walks) -> dict[int, RebuiltBucket]:
    try:
        files = list_files(path) if path.is_dir() else read_headers([path])
        grouped = sources(files)
        found = survey(grouped, progress=walks.reading)
        if found.problems:
            why = f"--restore {path}: {found.problems[0]} ({len(found.problems)} buckets); see rcache-replay rebuild --partial"
            raise StartFailed(ExitCode.DAMAGED_FILE, why)
        return rebuild(grouped, found.plans, progress=walks.rebuilding)
    except DataDamaged as damage:
        raise StartFailed(ExitCode.DAMAGED_FILE, f"--restore: {damage}; see rcache-replay --skip-damaged --partial") from None
    except OSError as error:
        raise StartFailed(ExitCode.WRONG_USE, f"--restore {path}: {error.strerror}") from None


def _put(engine: Engine, key: bytes, row: Row, now_ms: int) -> bool:
    """One item as a SET with what is left of its time to live. False: it has expired meanwhile."""
    if row.value is None or 0 < row.expires_at_ms <= now_ms:
        return False
    ttl_ms = row.expires_at_ms - now_ms if row.expires_at_ms else 0
    reply = engine.execute(Request(Opcode.SET, 1, RESTORE_BUDGET_MS, STORE.encode(row.flags, ttl_ms, key, row.value)))
    status = HEADER.unpack_from(reply)[3]
    if status != Status.OK:
        (reason,) = decode_reply(Opcode.SET, status, reply[HEADER_BYTES:])
        code = ExitCode.WRONG_USE if status_class(status) is StatusClass.REFUSED else ExitCode.APPEND_LOG_FAILED
        raise StartFailed(code, f"--restore: {key!r} was refused: {status_name(status)}: {reason}")
    return True
