"""What the control plane tells people of the copies that are being made."""

from __future__ import annotations

from typing import Any

from rcache_client.wire.opcodes import Opcode
from tests.contract.harness import Caller
from tests.member.running import Make, view_of


def test_of_copies_that_are_being_made_it_says_of_about_how_many_items(running: Make) -> None:
    """Nobody counts a bucket's items for it: keys are spread evenly, so that all have about as many."""
    there = running(view_of(6, ("n1", "", 6), ("n1", "", 6), ("n2", "", 6), ("n2", "", 6)))
    link: Any = there.link()
    link.stats = lambda: {"filling": {"buckets": 3, "whole": 1, "rows": 2, "bytes": 99, "seconds": 0.5}}
    for number in range(40):
        Caller(there.engine).ask(Opcode.SET, 0, 0, b"%d" % number, b"v")  # half of them are refused: they are n2's
    items = there.engine.stats()["items"]["items"]
    assert items > 5
    told = there.member.stats()["links"]["n2"]["filling"]
    assert told == {"buckets": 3, "whole": 1, "rows": 2, "bytes": 99, "seconds": 0.5, "rows_about": round(3 * items / 2)}
    link.stats = lambda: {"filling": {"buckets": 1, "whole": 0, "rows": 1000, "bytes": 99, "seconds": 0.5}}
    assert there.member.stats()["links"]["n2"]["filling"]["rows_about"] == 1000, "never fewer than were sent"
    link.stats = lambda: {"filling": {}}
    assert there.member.stats()["links"]["n2"] == {"filling": {}}
