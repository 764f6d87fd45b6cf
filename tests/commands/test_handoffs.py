"""`rcache-cli handoffs` where copies are being made: how far each is, as the nodes tell it of themselves."""

from __future__ import annotations

import io
import json
from typing import Any, cast

from rich.console import Console

from rcache.cluster.view import encode_view
from rcache.commands import cli_cluster
from rcache.commands.cli_answer import Answer
from rcache.commands.cli_line import Door
from rcache.commands.cli_options import CliOptions
from rcache_client.wire.opcodes import Opcode
from tests.member.harness import node, view_of

LINK = {
    "up": True,
    "bytes_behind": 0,
    "frames_waiting": 0,
    "buckets_filled": 3,
    "fill_rows": 9,
    "fill_bytes": 99,
    "filling": {},
}
FILLING = {"buckets": 1200, "whole": 300, "rows": 51_000, "bytes": 5 << 20, "seconds": 12.5, "rows_about": 204_000}


class FakeDoor:
    """n1 fills n2; n2 makes no copies."""

    server = "127.0.0.1:13600"

    def __init__(self, filling: dict[str, Any]) -> None:
        self._links = [{"n2": {**LINK, "filling": filling}}, {"n1": LINK}]

    def ask(self, opcode: Opcode, *_values: Any) -> Any:
        assert opcode == Opcode.VIEW
        return "embedded", encode_view(view_of(6, ("n1", "n2", 6), ("n1", "", 6), nodes={"n1": node(), "n2": node()}))

    def ask_at(self, _address: str, opcode: Opcode, *_values: Any, timeout_s: float) -> Any:
        assert opcode == Opcode.STATS
        assert timeout_s > 0
        return (json.dumps({"cluster": {"copies_under_way": 0, "links": self._links.pop(0)}}).encode(),)


def handoffs(filling: dict[str, Any]) -> tuple[Answer, list[list[str]]]:
    """The answer, and the words of each line."""
    answer = cli_cluster.handoffs(cast(CliOptions, None), cast(Door, FakeDoor(filling)))
    shown = io.StringIO()
    Console(file=shown, width=200).print(answer.shown)
    return answer, [line.split() for line in shown.getvalue().splitlines()]


def test_each_copy_that_is_being_made_says_how_far_it_is() -> None:
    answer, lines = handoffs(FILLING)
    at = next(number for number, line in enumerate(lines) if line[:2] == ["copies", "from"])
    assert " ".join(lines[at + 1]) == "n1 n2 300 of 1,200 51,000 of about 204,000 5.0 MiB 12.5 s"
    assert lines[at + 2] == []
    assert [line[:3] for line in lines[-2:]] == [["n1", "n2", "yes"], ["n2", "n1", "yes"]]
    assert answer.fields["nodes"]["n1"]["links"]["n2"]["filling"] == FILLING


def test_where_none_is_being_made_there_is_no_table_of_them() -> None:
    _, lines = handoffs({})
    assert not [line for line in lines if line[:1] == ["copies"]]
