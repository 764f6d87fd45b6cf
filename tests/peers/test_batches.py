"""Portions of small buckets go together, and a rest follows them all."""

from __future__ import annotations

import time

import pytest

from rcache.engine.contract import Engine
from rcache.peers.filling import BATCH_PORTIONS, PACE, PORTION_BYTES, REST_MAX_S, Fill, Fills
from tests.contract.conftest import EngineFactory

BUCKETS = 2 * BATCH_PORTIONS


@pytest.fixture
def engine(engine_factory: EngineFactory) -> Engine:
    return engine_factory(buckets=BUCKETS, stripes=2)


@pytest.fixture
def fills() -> Fills:
    fills = Fills()
    for bucket in range(BUCKETS):
        fills.add(bucket)
    return fills


def send(fills: Fills, engine: Engine, size: int = 0, made_at: float | None = None) -> Fill:
    """The next portion is under way, as if it had so many bytes."""
    fill = fills.next()
    assert fill is not None
    body = fill.body_of(fill.next_portion(engine))
    fills.begin_portion(fill, size or len(body), time.monotonic() if made_at is None else made_at)
    return fill


def test_small_buckets_do_not_wait_for_each_other(fills: Fills, engine: Engine) -> None:
    sent = [send(fills, engine) for _ in range(BATCH_PORTIONS)]
    assert [fill.bucket for fill in sent] == list(range(BATCH_PORTIONS))
    assert (fills.next(), fills.rest_s()) == (None, None), "so many at most"
    for fill in sent:
        assert fills.next() is None, "all of a batch that is full is to be acknowledged first"
        assert fills.acknowledge(fill)
    following = fills.next()
    assert following is not None
    assert following.bucket == BATCH_PORTIONS


@pytest.mark.parametrize(("size", "more"), [(PORTION_BYTES - 1, True), (PORTION_BYTES, False)])
def test_a_large_portion_goes_alone(fills: Fills, engine: Engine, size: int, more: bool) -> None:
    first = send(fills, engine, size)
    assert (fills.next() is not None) is more
    fills.acknowledge(first)
    assert fills.next() is not None


def test_of_one_bucket_one_portion_is_under_way(engine: Engine) -> None:
    fills = Fills()
    fills.add(0)
    fill = send(fills, engine)
    fill.is_whole = False  # as if it had more
    assert fills.next() is None
    fills.acknowledge(fill)
    assert fills.next() is fill


def test_a_rest_follows_the_batch_as_long_as_it_took(fills: Fills, engine: Engine) -> None:
    way_s, took_s = 0.1, 0.3
    quick = send(fills, engine, made_at=time.monotonic() - way_s)
    fills.acknowledge(quick)
    assert fills.rest_s() == 0.0, "it is the way there and back"
    first = send(fills, engine, made_at=time.monotonic() - took_s)
    second = send(fills, engine)
    fills.acknowledge(first)
    assert fills.rest_s() == 0.0, "one of it is still under way"
    fills.acknowledge(second)
    rest_s = fills.rest_s()
    assert rest_s == pytest.approx((took_s - way_s) * PACE, rel=0.1)
    fills.begin_anew()
    assert fills.rest_s() == pytest.approx(rest_s, rel=0.1), "also what has to be sent again"


def test_after_one_that_hung_it_rests_for_no_longer_than_it_must(fills: Fills, engine: Engine) -> None:
    for made_at in (time.monotonic(), time.monotonic() - 1000.0):
        fills.acknowledge(send(fills, engine, made_at=made_at))
    rest_s = fills.rest_s()
    assert rest_s is not None
    assert 0.0 < rest_s <= REST_MAX_S


def test_a_batch_that_is_sent_again_begins_anew(fills: Fills, engine: Engine) -> None:
    for _ in range(BATCH_PORTIONS):
        send(fills, engine)
    fills.begin_anew()
    sent = [send(fills, engine) for _ in range(BATCH_PORTIONS)]
    assert [fill.bucket for fill in sent] == list(range(BATCH_PORTIONS))


def test_a_copy_that_is_cancelled_on_its_way_does_not_hold_the_others_up(fills: Fills, engine: Engine) -> None:
    sent = [send(fills, engine) for _ in range(BATCH_PORTIONS)]
    for fill in sent:
        fills.cancel(fill.bucket)
    assert not any(fills.acknowledge(fill) for fill in sent)
    assert fills.next() is not None
