"""Coming into a cluster: what may not be said otherwise here, whose a name is, and the view that a node joins by."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rcache.cluster.register import RegisterUnreachable, Revised
from rcache.cluster.view import View, encode_view
from rcache.cluster.wishes import Asker, join
from rcache.commands.exit_codes import ExitCode
from rcache.commands.joining import Found, node_here
from rcache.commands.seen_view import SEEN_VIEW_FILE, keep_seen_view, read_seen_view
from rcache.commands.start_failed import StartFailed
from tests.cluster.harness import grown, one
from tests.commands.joiner import HERE, MakeOther, MakeStart, at, one_of_n2, view_with_backups

# --- what may not be said otherwise


@pytest.mark.parametrize(
    ("option", "value"), [("--backups", "2"), ("--lease", "3"), ("--append-log-fsync", "always"), ("--buckets", "64")]
)
def test_what_is_the_clusters_is_not_said_otherwise_here(start: MakeStart, option: str, value: str) -> None:
    """Invariant 12: exit code 2."""
    with pytest.raises(StartFailed, match=f"{option} is {value}.*but the cluster has") as caught:
        start(option, value).finder.demand_fit(one(8, 1))
    assert caught.value.code is ExitCode.WRONG_USE


def test_what_is_said_as_it_is_or_not_at_all_fits(start: MakeStart) -> None:
    start().finder.demand_fit(one(8, 1))
    start("--backups", "1", "--lease", "1", "--append-log-fsync", "interval", "--buckets", "8").finder.demand_fit(one(8, 1))


def test_fsync_always_needs_a_log(start: MakeStart) -> None:
    """Invariant 12: the policy is the cluster's; without a log it cannot be kept."""
    view = one(8, 1)
    view = replace(view, settings=replace(view.settings, fsync="always"))
    start().finder.demand_fit(view)
    with pytest.raises(StartFailed, match="fsync always, which needs a log"):
        start("--no-append-log").finder.demand_fit(view)


# --- whose name it is


def test_a_name_that_is_new_is_free(start: MakeStart) -> None:
    begun = start()
    view = one()
    assert not begun.finder.demand_name(replace(view, nodes={"n2": view.nodes["n1"]}), "f" * 32)


def test_its_own_former_self_gives_way(start: MakeStart) -> None:
    begun = start()
    assert begun.finder.demand_name(at(one(), n1=str(HERE)), "f" * 32)
    assert begun.finder.demand_name(at(one()), "f" * 32), "also from another address, where nobody is any more"


def test_a_name_that_is_alive_elsewhere_is_taken(start: MakeStart, other: MakeOther) -> None:
    alive = other("n1", None)
    with pytest.raises(StartFailed, match="a node n1 is alive at") as caught:
        start().finder.demand_name(at(one(), n1=alive.address), "f" * 32)
    assert caught.value.code is ExitCode.WRONG_USE
    somebody_else = other("n7", None)
    assert start().finder.demand_name(at(one(), n1=somebody_else.address), "f" * 32)


def test_another_directory_does_not_replace_the_only_copy(start: MakeStart) -> None:
    """Invariant 11: losing the only copy is an operator's to say."""
    with pytest.raises(StartFailed, match="the only copy of 8 buckets") as caught:
        start().finder.demand_name(at(one()), "a" * 32)
    assert caught.value.code is ExitCode.WRONG_USE
    shared = replace(at(grown(2)), placements=view_with_backups(grown(2)).placements)
    assert not start().finder.demand_name(shared, "a" * 32), "nothing is lost by it"


# --- joining


class SlowRegister:
    """A register that cannot be reached, or loses answers, for a while."""

    def __init__(self, view: View, troubles: list[str]) -> None:
        self.held = Revised(view.epoch, view)
        self.troubles = troubles
        self.asked: list[View] = []

    def read(self) -> Revised:
        if self.troubles and self.troubles[0] == "away":
            self.troubles.pop(0)
            raise RegisterUnreachable("it is away")
        return self.held

    def compare_and_set(self, revision: int, view: View) -> tuple[bool, Revised]:
        self.asked.append(view)
        trouble = self.troubles.pop(0) if self.troubles else ""
        if trouble == "quicker":
            self.held = Revised(view.epoch, replace(view, proposer="n9", nonce="other", nodes=self.held.view.nodes))
        if self.held.revision != revision:
            return False, self.held
        if trouble != "never came":
            self.held = Revised(view.epoch, view)
        if trouble == "lost and overtaken":
            self.held = Revised(view.epoch + 1, replace(view, epoch=view.epoch + 1, proposer="n2", nonce="other"))
        if trouble in ("lost", "never came", "lost and overtaken"):
            raise RegisterUnreachable("the answer was lost")
        return True, self.held


@pytest.mark.parametrize(
    "troubles",
    [[], ["away", "away"], ["lost"], ["never came"], ["quicker"], ["quicker", "lost"], ["lost and overtaken"]],
    ids=str,
)
def test_it_joins_once_whatever_is_lost(start: MakeStart, troubles: list[str]) -> None:
    """Invariant 5: an answer that was lost is no reason to join twice."""
    begun = start()
    register = SlowRegister(at(one_of_n2()), list(troubles))
    found = Found(register, "embedded", None, heard=True)  # type: ignore[arg-type]
    mine = node_here(3, HERE, "a" * 32)
    made: list[int] = []

    def make(view: View, asker: Asker) -> View:
        made.append(view.epoch)
        return join(view, asker, mine, recovers=False)

    revised = begun.finder.agree(found, make)
    assert len(made) == len(set(made)), "what was asked for already is asked for again as it was"
    assert revised.view.nodes["n1"].incarnation == 3
    assert revised == register.held
    assert len({view.nonce for view in register.asked}) == 1
    assert len({view.epoch for view in register.asked}) == 1 + troubles.count("quicker")
    assert begun.looks > 0


def test_what_is_refused_ends_the_start(start: MakeStart) -> None:
    begun = start()
    register = SlowRegister(at(grown(2)), [])
    found = Found(register, "embedded", None, heard=True)  # type: ignore[arg-type]

    def make(view: View, asker: Asker) -> View:
        return join(view, asker, node_here(1, HERE, "a" * 32), recovers=False)

    with pytest.raises(StartFailed, match="this node cannot join: n1 is in the view under incarnation 1") as caught:
        begun.finder.agree(found, make)
    assert caught.value.code is ExitCode.WRONG_USE


def test_of_two_new_nodes_of_one_name_one_joins(start: MakeStart) -> None:
    """Both ask at once, under the same incarnation. The place that the other has in the view is not this one's."""

    class Shared(SlowRegister):
        def compare_and_set(self, revision: int, view: View) -> tuple[bool, Revised]:
            quicker = replace(view.nodes["n1"], data_dir_id="b" * 32)
            self.held = Revised(view.epoch, replace(view, nonce="other", nodes={**view.nodes, "n1": quicker}))
            return False, self.held

    begun = start()
    found = Found(Shared(at(one_of_n2()), []), "embedded", None, heard=True)  # type: ignore[arg-type]
    with pytest.raises(StartFailed, match="this node cannot join: n1 is in the view under incarnation 3") as caught:
        begun.finder.agree(found, lambda view, asker: join(view, asker, node_here(3, HERE, "a" * 32), recovers=False))
    assert caught.value.code is ExitCode.WRONG_USE


# --- what is remembered


def test_a_seen_view_of_another_version_ends_the_start(start: MakeStart, tmp_path: Path) -> None:
    """Without it the node takes itself for one that knows nobody."""
    text = encode_view(grown(3)).replace(b'"format":2', b'"format":1')
    (tmp_path / SEEN_VIEW_FILE).write_bytes(b"embedded\n" + text + b"\n")
    code, why = start().fails(joined=True)
    assert code is ExitCode.DAMAGED_FILE
    assert f"{tmp_path / SEEN_VIEW_FILE}: a view of format 1, by another version of rcache; this one reads format 2" in why


def test_the_seen_view_is_kept_and_read(tmp_path: Path) -> None:
    assert read_seen_view(tmp_path) is None
    view = grown(3)
    keep_seen_view(tmp_path, "embedded", view)
    assert read_seen_view(tmp_path) == view
    (tmp_path / SEEN_VIEW_FILE).write_bytes(b"embedded\nno view")
    assert read_seen_view(tmp_path) is None, "it costs a longer search, and no more"
    keep_seen_view(tmp_path / "nowhere", "embedded", view)
