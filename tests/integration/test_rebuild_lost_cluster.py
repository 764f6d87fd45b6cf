"""A cluster that is lost entirely, and rebuilt from its nodes' append logs onto another."""

from __future__ import annotations

from tests.integration.conftest import MakeCluster
from tests.integration.lost_cluster import CHANGED, Lost, assert_rebuilt_from, begin, lose, replay, tear


def test_a_lost_cluster_of_three_is_rebuilt_onto_two_from_append_logs(cluster_of: MakeCluster) -> None:
    """All three are killed at one moment under writers, and the last block of each log is cut short. What was acknowledged is
    on disk (fsync always), so it is there again, or what came after it; and nothing else."""
    cluster = cluster_of()
    begin(cluster)
    lost = lose(cluster)
    tear(lost.directories)
    code, (told,) = replay(*lost.directories)
    assert (code, len(told["torn"])) == (0, 3), told
    assert_history_names_the_primaries(lost)
    assert_rebuilt_from(lost.directories, lost, cluster_of())


def assert_history_names_the_primaries(lost: Lost) -> None:
    """A key that was changed at one node, and then at the one that its bucket had moved to."""
    changed = list(lost.then)[:CHANGED]
    key = next(key for key in changed if lost.primaries_then[key] != lost.primaries_now[key])
    code, lines = replay("history", key.decode(), *lost.directories)
    changes = [(line["kind"], line["through"], line["state"]) for line in lines if line["kind"] != "OPEN"]
    assert (code, changes) == (0, [("SET", lost.primaries_then[key], "live"), ("SET", lost.primaries_now[key], "live")])
    assert [line["through"] for line in lines if line["kind"] == "OPEN"] == [line[1] for line in changes]
