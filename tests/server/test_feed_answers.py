"""What a subscriber is answered: the two opcodes, their refusals, and whose thread it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from rcache.engine.contract import Engine
from rcache.feeds.hub import Hub, NoTeller
from rcache.records.record import scan
from rcache.server.feed_answers import FeedAnswers
from rcache.server.node_answers import Refusal
from rcache.stream.applied import AppliedStream
from rcache_client.wire.feeds import FROM_NOW, UNPROVEN, Selects, decode_notices, decode_places, encode_places
from rcache_client.wire.grammar import REQUESTS, BadPayload, Layout
from rcache_client.wire.opcodes import Opcode, Role, Status
from tests.contract.conftest import EngineFactory, engine_factory, fake_time  # noqa: F401  fixtures
from tests.contract.harness import PATIENCE_S, Caller
from tests.feeds.harness import key_of

BYTES_MAX = 1 << 20
EVERYTHING = (1, Selects.EVERYTHING, b"", b"")


class Asking:
    """One connection's feed."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.hub = Hub(engine, AppliedStream(0, is_kept=False))
        self.answers = FeedAnswers(self.hub, BYTES_MAX)

    def ask(self, opcode: Opcode, *values: Any, role: Role = Role.CLIENT, budget_s: float = PATIENCE_S) -> tuple[Any, ...]:
        layout = REQUESTS[opcode]
        assert isinstance(layout, Layout)
        return self.answers.answer(opcode, layout.encode(*values), role, budget_s)

    def refusal(self, opcode: Opcode, *values: Any, role: Role = Role.CLIENT) -> Status:
        with pytest.raises(Refusal) as caught:
            self.ask(opcode, *values, role=role)
        return caught.value.status


@pytest.fixture
def asking(engine_factory: EngineFactory) -> Iterator[Asking]:  # noqa: F811
    asking = Asking(engine_factory())
    yield asking
    asking.answers.close()
    assert asking.hub.stop(PATIENCE_S)


def test_a_subscriber_is_told_what_it_asked_for(asking: Asking) -> None:
    assert not asking.answers.is_open
    (places,) = asking.ask(Opcode.SUBSCRIBE, 1, Selects.EVERYTHING, b"", encode_places({3: FROM_NOW, 99: FROM_NOW}))
    assert decode_places(places) == {3: asking.engine.sequence(3)}
    assert asking.answers.is_open
    Caller(asking.engine).set(key_of(3), b"v")
    behind_ms, notices, records = asking.ask(Opcode.EVENTS, BYTES_MAX)
    assert [(record.bucket, record.value) for record in scan(records)] == [(3, b"v")]
    assert decode_notices(notices) == []
    assert 0 <= behind_ms <= UNPROVEN


def test_more_buckets_come_to_the_same_feed(asking: Asking) -> None:
    asking.ask(Opcode.SUBSCRIBE, 1, Selects.EVERYTHING, b"", encode_places({3: FROM_NOW}))
    asking.ask(Opcode.SUBSCRIBE, 1, Selects.EVERYTHING, b"", encode_places({4: FROM_NOW}))
    assert asking.hub.stats()["feeds"] == 1
    for bucket in (3, 4):
        Caller(asking.engine).set(key_of(bucket), b"v")
    told: list[int] = []
    while len(told) < 2:
        told += [record.bucket for record in scan(asking.ask(Opcode.EVENTS, BYTES_MAX)[2])]
    assert told == [3, 4]


def test_with_nothing_to_tell_it_answers_at_the_end_of_the_budget(asking: Asking) -> None:
    asking.ask(Opcode.SUBSCRIBE, *EVERYTHING)
    assert asking.ask(Opcode.EVENTS, BYTES_MAX, budget_s=0.01)[1:] == (b"", b"")


def test_what_is_refused(asking: Asking) -> None:
    assert asking.refusal(Opcode.SUBSCRIBE, *EVERYTHING, role=Role.NODE) is Status.NOT_ALLOWED
    assert asking.refusal(Opcode.EVENTS, 1) is Status.NOT_ALLOWED
    assert asking.refusal(Opcode.SUBSCRIBE, 1, Selects.KEY, b"", b"") is Status.BAD_ARGUMENT
    assert asking.refusal(Opcode.SUBSCRIBE, 1, Selects.EVERYTHING, b"key", b"") is Status.BAD_ARGUMENT
    assert not asking.answers.is_open
    asking.ask(Opcode.SUBSCRIBE, *EVERYTHING)
    assert asking.refusal(Opcode.SUBSCRIBE, 0, Selects.EVERYTHING, b"", b"") is Status.BAD_ARGUMENT
    with pytest.raises(BadPayload):
        asking.ask(Opcode.SUBSCRIBE, 1, Selects.EVERYTHING, b"", b"no place")


def test_where_nobody_can_tell_of_changes_now_it_may_be_asked_again(asking: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_hub: Hub) -> None:
        raise NoTeller("no thread")

    with monkeypatch.context() as patch:
        patch.setattr(Hub, "join", fail)
        assert asking.refusal(Opcode.SUBSCRIBE, *EVERYTHING) is Status.BUSY
    asking.ask(Opcode.SUBSCRIBE, *EVERYTHING)


def test_once_the_node_stops_nobody_is_told_anything(asking: Asking) -> None:
    asking.ask(Opcode.SUBSCRIBE, *EVERYTHING)
    asking.hub.stop(PATIENCE_S)
    assert asking.refusal(Opcode.EVENTS, 1) is Status.STOPPING
    other = FeedAnswers(asking.hub, BYTES_MAX)
    with pytest.raises(Refusal):
        other.answer(Opcode.SUBSCRIBE, b"\x01\x00\x00\x00", Role.CLIENT, 1.0)


def test_the_connections_end_ends_its_feed(asking: Asking) -> None:
    asking.ask(Opcode.SUBSCRIBE, *EVERYTHING)
    asking.answers.close()
    asking.answers.close()
    assert (asking.hub.stats()["feeds"], asking.answers.is_open) == (0, False)
