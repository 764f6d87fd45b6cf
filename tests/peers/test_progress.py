"""How far the copies of a link are: what is shown to whoever waits for them."""

from __future__ import annotations

import time

import pytest

from rcache.engine.change_stream import Portion
from rcache.engine.contract import Engine
from rcache.peers.filling import Fill, Fills
from tests.contract.conftest import EngineFactory
from tests.contract.harness import Caller, wait_until


@pytest.fixture
def engine(engine_factory: EngineFactory) -> Engine:
    """Three buckets or so of many items."""
    engine = engine_factory(buckets=4, stripes=2)
    for number in range(400):
        Caller(engine).set(b"key-%d" % number, bytes(2000))
    return engine


def send(fills: Fills, engine: Engine) -> tuple[Fill, Portion, int]:
    """The next portion is under way: its copy, what it is, and its bytes."""
    fill = fills.next()
    assert fill is not None
    portion = fill.next_portion(engine)
    count = len(fill.body_of(portion))
    fills.begin_portion(fill, count, time.monotonic())
    return fill, portion, count


def test_it_counts_what_was_sent_from_the_first_copy_to_the_last(engine: Engine) -> None:
    fills = Fills()
    assert fills.progress() == {}
    for bucket in range(3):
        fills.add(bucket)
    assert fills.progress().items() >= {"buckets": 3, "whole": 0, "rows": 0, "bytes": 0}.items()
    rows = sent = whole = portions = 0
    while fills.left:
        told = fills.progress()
        assert (told["buckets"], told["whole"], told["rows"], told["bytes"]) == (3, whole, rows, sent)
        fill, portion, count = send(fills, engine)
        rows, sent, portions = rows + portion.count, sent + count, portions + 1
        whole += fills.acknowledge(fill)
    assert (whole, fills.progress()) == (3, {})
    assert portions > 3
    fills.add(3)
    assert fills.progress().items() >= {"buckets": 1, "whole": 0, "rows": 0}.items(), "from the beginning"


def test_what_is_sent_again_counts_once_and_what_is_not_wanted_any_more_not_at_all(engine: Engine) -> None:
    fills = Fills()
    for bucket in range(3):
        fills.add(bucket)
    fill, portion, _ = send(fills, engine)
    assert fills.progress()["rows"] == portion.count
    fills.begin_anew()
    assert fills.progress()["rows"] == 0
    fill, portion, _ = send(fills, engine)
    fills.acknowledge(fill)
    fills.cancel(2)
    assert fills.progress().items() >= {"buckets": 2, "rows": portion.count}.items()
    fills.cancel(fill.bucket)
    assert fills.progress().items() >= {"buckets": 1, "rows": 0, "bytes": 0}.items()


def test_it_says_for_how_long(engine: Engine) -> None:
    began = time.monotonic()
    fills = Fills()
    fills.add(0)
    wait_until(lambda: fills.progress()["seconds"] > 0.005, "some time to pass")
    fills.add(1)
    assert 0.005 < fills.progress()["seconds"] <= time.monotonic() - began + 0.001
