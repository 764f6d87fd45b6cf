"""The base that is written before anything is broken: whole, in thick and thin buckets, and patient with a busy machine."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import pytest

from rcache_client import OutcomeUnknown, ProtocolError, RcacheError
from soak.checker import verify
from soak.cluster import judge as module
from soak.cluster.findings import Findings
from soak.cluster.judge import BASE, THICK_CHARS, THICK_OF, Judge
from soak.cluster.workload import Load
from soak.history import read_history

BUCKETS = 64
LOAD = Load(clients=1, rate=10.0, keys=8, round_s=5.0)


class Cache:
    """A cache whose first writes fail."""

    def __init__(self, *failures: RcacheError) -> None:
        self.items: dict[str, bytes] = {}
        self.failures = list(failures)

    def set(self, key: str, value: bytes, _ttl: float | None) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.items[key] = value


def wrote(cache: Any, tmp_path: Path) -> tuple[Findings, list[Any]]:
    crew: Any = SimpleNamespace(directory=tmp_path, rounds_done=0)
    findings = Findings()
    made = Judge(crew, cache, LOAD, findings, None)
    try:
        made.write_base(500)
    finally:
        made.close()
    return findings, read_history([tmp_path / f"{BASE}.jsonl"]).operations


def test_the_base_has_buckets_that_are_copied_in_several_portions(tmp_path: Path) -> None:
    cache = Cache()
    findings, operations = wrote(cache, tmp_path)
    assert findings.all() == []
    assert len(operations) == len(cache.items) == 500
    sizes: Counter[int] = Counter()
    for key, value in cache.items.items():
        sizes[crc32(key.encode()) % BUCKETS] += len(value)
    thick = {bucket for bucket in sizes if bucket % THICK_OF == 0}
    assert min(sizes[bucket] for bucket in thick) > THICK_CHARS[0]
    assert max(sizes[bucket] for bucket in thick) > 128 << 10, "more than one portion"
    assert max(sizes[bucket] for bucket in set(sizes) - thick) < THICK_CHARS[0]


def test_a_write_that_timed_out_on_a_busy_machine_is_done_again(tmp_path: Path) -> None:
    findings, operations = wrote(Cache(OutcomeUnknown("x"), OutcomeUnknown("x")), tmp_path)
    assert findings.all() == []
    assert len(operations) == 502
    assert verify(operations).fine


@pytest.mark.parametrize(("patience_s", "error"), [(0.0, OutcomeUnknown("late")), (30.0, ProtocolError("late"))])
def test_what_fails_again_and_again_or_strangely_is_told(
    patience_s: float, error: RcacheError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "READ_S", patience_s)
    findings, _ = wrote(Cache(*[error] * 9), tmp_path)
    (told,) = findings.all()
    assert told.startswith("before anything was broken: base-0: late")
