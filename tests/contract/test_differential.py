"""The native engine beside the reference engine: the same bytes for the same requests. `differential` has a long form."""

from __future__ import annotations

import pytest

from rcache.engine.bodies import why_not_native
from rcache_client.wire.opcodes import DATA_OPCODES, Status
from tests.contract import differential

pytestmark = pytest.mark.skipif(bool(why_not_native()), reason="the native engine was not built here")


@pytest.mark.parametrize("seed", range(4))
def test_both_bodies_say_and_record_the_same(seed: int) -> None:
    met = differential.compare(seed, 4000)
    assert {opcode for opcode, _ in met} == DATA_OPCODES
    assert {(opcode, Status.OK) for opcode in DATA_OPCODES} <= set(met)
    assert len(met) > 33, "the workload met most answers there are"
    assert {status for _, status in met} >= {
        *(Status.OK, Status.NOT_FOUND, Status.EXISTS, Status.CHANGED),
        *(Status.TOO_LARGE, Status.NOT_A_NUMBER, Status.OUT_OF_RANGE),
    }


def test_a_difference_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """One body that counts one too few, once."""
    count = differential.Side.replies

    def off_by_one(side: differential.Side, wanted: int) -> tuple[bytes, list[object]]:
        said, replies = count(side, wanted)
        return (said[:-1] + bytes([said[-1] ^ 1]) if side.engine.name == "native" else said), replies

    monkeypatch.setattr(differential.Side, "replies", off_by_one)
    with pytest.raises(AssertionError, match="the replies differ"):
        differential.compare(1, 10)
