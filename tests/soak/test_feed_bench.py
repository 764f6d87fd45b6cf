"""What measures feeds: the subscribers' program, the arithmetic, the page, and one short run through real processes."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from struct import Struct
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rcache.records.record import Kind, Record, encode, make_sequence
from rcache_client.wire.feeds import Notice, NoticeKind, encode_notices
from rcache_client.wire.frames import encode_reply
from rcache_client.wire.opcodes import Opcode, Status
from soak.bench.drivers import Drivers
from soak.bench.errors import BenchError
from soak.bench.samples import Sample, Samples
from soak.feed_bench import command, views
from soak.feed_bench.contenders import NAMES, REDIS, Contender
from soak.feed_bench.hearing import Counts, Hearing, Times
from soak.feed_bench.measure import EVERY, accounted, lateness
from soak.feed_bench.page import FULL_RATE, VIEWS, grids_of
from soak.feed_bench.views import VIEWS as CLIENTS
from tests.soak.scripted import scripted_server

RCACHE = Contender("scripted", "rcached", "rcache", b"sub.", b"ask.")
SUBSCRIBED = encode_reply(Opcode.SUBSCRIBE, Status.OK, 1, 1, b"")
ASKED = 4
"""Bytes of either request."""


def event(number: int, kind: Kind = Kind.SET) -> bytes:
    value = b"v" * 100 if kind is Kind.SET else b""
    key = b"" if kind is Kind.OPEN else b"key:%08d" % number
    return encode(Record(kind, 0, 3, 0, make_sequence(1, number), 0, 0, key, value))


def told(records: bytes, *notices: Notice) -> bytes:
    packed = encode_notices(notices)
    return encode_reply(Opcode.EVENTS, Status.OK, 1, 1, Struct(">II").pack(0, len(packed)) + packed + records)


def gap(after: int, upto: int) -> Notice:
    return Notice(NoticeKind.GAP, 3, make_sequence(1, after), make_sequence(1, upto))


def saying(*answers: bytes, subscribed: bytes = SUBSCRIBED) -> Callable[[bytes], bytes]:
    """What one subscriber after the other is told; behind the last of them the server hangs up."""
    left: dict[int, Iterator[bytes]] = {}

    def answer(request: bytes) -> bytes:
        if request == RCACHE.subscribe:
            left[len(left)] = iter(answers)
            return subscribed
        return next(left[0], b"")

    return answer


def test_subscribers_count_events_and_gaps_and_say_when(drivers: Drivers, tmp_path: Path) -> None:
    long = b"".join(event(number) for number in range(7, 2007))  # longer than the first buffer is
    script = saying(
        told(b"".join([event(0, Kind.OPEN), event(1), event(2, Kind.REMOVE)])),
        told(event(6), gap(2, 5), Notice(NoticeKind.PLACE, 3, 9, 99)),
        told(b""),
        told(long),
    )
    times = Times(tmp_path / "times", 2000, EVERY)
    with (
        scripted_server(script, ASKED) as server,
        Hearing(drivers, RCACHE, server, 1, files=tmp_path, times=times) as hearing,
    ):
        counts = hearing.drain(2006)
    assert (counts.told, counts.lost, counts.gaps) == (2003, 3, 1)
    assert (counts.least, counts.most) == (2003, 2003)
    heard = array("d", times.path.read_bytes())
    assert len(heard) == 286
    assert not heard[0], "nobody was told of number 0"
    assert all(0 < at <= counts.at for at in heard[1:])


def test_redis_messages_are_events_also_where_a_read_ends_within_one(drivers: Drivers, tmp_path: Path) -> None:
    message = b"*4\r\n$8\r\npmessage\r\n$16\r\n__keyevent@0__:*\r\n$18\r\n__keyevent@0__:set\r\n$12\r\nkey:%08d\r\n"
    subscribed = b"*3\r\n$10\r\npsubscribe\r\n$16\r\n__keyevent@0__:*\r\n:1\r\n"
    stream = b"".join(message % number for number in range(5000))
    scripted = Contender("scripted", "redis", "redis", b"sub.")
    times = Times(tmp_path / "times", 5000, 1)
    with (
        scripted_server(lambda _: subscribed + stream, ASKED, 2) as server,
        Hearing(drivers, scripted, server, 2, files=tmp_path, times=times) as hearing,
    ):
        counts = hearing.drain(5000)
    assert (counts.told, counts.least, counts.most, counts.closed) == (10_000, 5000, 5000, 0)
    assert all(array("d", times.path.read_bytes()))


def test_who_is_disconnected_is_counted(drivers: Drivers, tmp_path: Path) -> None:
    with (
        scripted_server(saying(told(event(1))), ASKED) as server,
        Hearing(drivers, RCACHE, server, 1, files=tmp_path) as hearing,
    ):
        figures = accounted(hearing, 4)
    assert (figures["closed"], figures["lost_share"]) == (1, 0.75)


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        (saying(told(event(1)[:-1])), "a record of 152 bytes, 151 are left"),
        (saying(told(event(1) + b"more")), "a record of 0 bytes, 4 are left"),
        (saying(encode_reply(Opcode.EVENTS, Status.STOPPING, 1, 1, b"")), "status 0x"),
        (saying(subscribed=encode_reply(Opcode.SUBSCRIBE, Status.NOT_ALLOWED, 1, 1, b"")), "status 0x"),
        (saying(told(b"", Notice(NoticeKind.GAP, 3, 5, make_sequence(1, 1)))), "over two epochs"),
        (lambda _: b"", "connection closed by the server"),
    ],
)
def test_what_is_not_an_answer_ends_the_run(
    script: Callable[[bytes], bytes], complaint: str, drivers: Drivers, tmp_path: Path
) -> None:
    with (
        pytest.raises(BenchError, match=complaint),
        scripted_server(script, ASKED) as server,
        Hearing(drivers, RCACHE, server, 1, files=tmp_path) as hearing,
    ):
        hearing.drain(1000)


def hearing_of(count: int, **counts: int) -> Hearing:
    none = dict.fromkeys(Counts.__dataclass_fields__, 0)
    return cast("Hearing", SimpleNamespace(count=count, drain=lambda _: Counts(**cast("Any", none | counts))))


def test_more_told_than_written_is_an_error() -> None:
    assert accounted(hearing_of(2, told=15, lost=5), 10)["lost_share"] == 0.25
    assert accounted(hearing_of(2, told=9, lost=3), 10)["unaccounted"] == 8
    with pytest.raises(BenchError, match="16 events were told and 5 lost, of 20"):
        accounted(hearing_of(2, told=16, lost=5), 10)


def test_lateness_is_of_events_whose_write_and_telling_are_known() -> None:
    written = [1.0] + [0.0] * (EVERY - 1) + [2.0] + [0.0] * (EVERY - 1) + [0.0] * EVERY
    heard = [1.001, 0.0, 5.0, 1.005, 1.999, 5.0]  # of two: the third write was not acknowledged, one event not told
    found = lateness(written, heard, 2)
    assert found["late_p50_ms"] == pytest.approx(1.0)
    assert found["late_p99_ms"] == pytest.approx(5.0)
    with pytest.raises(BenchError, match="no event was told"):
        lateness(written, [0.0] * 6, 2)


def test_tables_have_medians_and_the_cost_to_the_writers() -> None:
    def sample(at: int, number: int, sets_per_s: float) -> Sample:
        figures = {"sets_per_s": sets_per_s, "p50_us": 10.0, "p99_us": 20.0}
        if at:
            figures |= {"each_per_s": 5.0, "all_per_s": 50.0, "lost_share": 0.25, "closed": 0.0}
        return Sample(FULL_RATE, at, NAMES.name, number, figures)

    clients = [
        Sample(VIEWS, 1, "mine", 1, {"events_per_s": 6.0, "cpu_us": 2.0}),
        Sample(VIEWS, 1, "other", 1, {"events_per_s": 3.0}),
    ]
    samples = [sample(0, 1, 100), sample(0, 2, 200), sample(0, 3, 300), sample(10, 1, 50), sample(10, 2, 50)]
    grids = {grid.title: grid for grid in grids_of(Samples([*samples, *clients]))}
    assert grids["Writers at full rate: SETs a second; in brackets to that without a subscriber"].rows == [
        ["0", "200 (1.00)"],
        ["10", "50 (0.25)"],
    ]
    assert grids["Writers at full rate: events a second to all subscribers"].rows == [["10", "50"]]
    assert grids["Writers at full rate: events lost, in a hundred; subscribers disconnected"].rows == [["10", "25.0; 0"]]
    assert grids["One client in Python"].rows[1] == ["other", "3", "-", "2.00 (2.00)"]
    assert not any("late by" in title for title in grids)


@pytest.mark.parametrize("line", [["--rounds", "0"], ["--seconds", "0"], ["--rate", "1"], ["--subscribers", "1", "0"]])
def test_what_cannot_be_measured_is_refused(line: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.read_settings(line)
    assert stopped.value.code == 2


@pytest.mark.timeout(120)
def test_a_short_run(drivers: Drivers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One contender and its client: everything that was written at a rate was told, to both subscribers."""
    monkeypatch.setattr(command, "built_drivers", lambda: nullcontext(drivers))
    monkeypatch.setattr(command, "CONTENDERS", (NAMES, REDIS))
    monkeypatch.setattr(command, "CLIENTS", CLIENTS[1:2])
    monkeypatch.setattr(views, "MORE_S", 0.1)
    monkeypatch.setattr(Contender, "why_not", lambda self: "not asked for here" if self is REDIS else "")
    line = ["--rounds", "1", "--seconds", "0.2", "--rate", "2000", "--subscribers", "2", "--scratch", str(tmp_path)]
    assert command.main([*line, "--output", str(tmp_path / "out")]) == 0
    facts = json.loads((tmp_path / "out" / "feeds.json").read_text())
    figures = {(sample["group"], sample["at"]): sample["figures"] for sample in facts["samples"]}
    assert list(figures) == [
        *((pace, count) for pace in (FULL_RATE, "at 2,000 a second") for count in (0, 2)),
        ("views", 1),
        ("limit", 2),
    ]
    paced = figures["at 2,000 a second", 2]
    assert (paced["lost_share"], paced["unaccounted"], paced["closed"]) == (0, 0, 0)
    assert paced["late_p50_ms"] <= paced["late_p99_ms"]
    assert figures["views", 1]["events_per_s"] > 0
    page = (tmp_path / "out" / "feeds.md").read_text()
    assert "`python -m soak.feed_bench --rounds 1 --seconds 0.2" in page
    assert "- redis, names was not measured: not asked for here" in page
    assert "## Writers at 2,000 a second: late by p50 / p99, ms" in page
