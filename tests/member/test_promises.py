"""After a promise to a takeover, a node carries out no view that the takeover does not know."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rcache.cluster.view import TERM_SHIFT
from rcache.stream.terms import Promise, Terms
from tests.member.running import Make, view_of

TAKEN = 1 << TERM_SHIFT


@pytest.mark.parametrize("way", ["heard of a peer", "promised before it was carried out"])
def test_no_view_of_a_lower_term_is_carried_out_after_a_promise(running: Make, tmp_path: Path, way: str) -> None:
    """A peer that did not promise goes by the former holder's last view, and tells of it in every answer."""
    there = running(view_of(6, ("n1", "n2", 1)))
    terms = Terms(tmp_path)
    object.__setattr__(there.member.board.parts, "terms", terms)
    newer = view_of(7, ("n1", "n2", 1))
    if way == "promised before it was carried out":
        assert terms.follow(newer) == "", "the register told of it, so it is told with the promise"
    assert terms.promise(Promise(1, "a"))
    there.take_in(newer)
    assert there.member.epoch == (6 if way == "heard of a peer" else 7)
    there.take_in(view_of(8, ("n1", "n2", 1)))
    assert there.member.epoch < 8
    for wrong in ("", "b"):
        there.take_in(replace(view_of(TAKEN, ("n1", "n2", 1)), taken=wrong))
        assert there.member.epoch < TAKEN
    there.take_in(replace(view_of(TAKEN, ("n1", "n2", 1)), taken="a"))
    assert there.member.epoch == TAKEN
    assert terms.followed is not None
    assert terms.followed.epoch == TAKEN
