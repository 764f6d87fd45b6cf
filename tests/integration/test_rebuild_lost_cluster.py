"""A cluster that is lost entirely, and rebuilt from its nodes' append logs onto another; and one that is too small for it."""

from __future__ import annotations

from pathlib import Path

from rcache_client import Client
from tests.integration.conftest import MakeCluster, Serve
from tests.integration.lost_cluster import CHANGED, Lost, assert_rebuilt_from, begin, lose, replay, tear
from tests.records.making import header_of, opened, seq, stored, write_file


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


def test_what_has_no_room_in_the_new_cluster_is_told(serve: Serve, tmp_path: Path) -> None:
    """A cache that is full takes everything, and lets go of as much."""
    large = [stored(seq(1, number), b"key-%d" % number, bytes(500_000)) for number in range(1, 51)]
    write_file(tmp_path / "logs", header_of(1), [opened(1), *large])
    server = serve("--memory-limit", "16M")
    code, (told,) = replay(tmp_path / "logs", "--into", server.address)
    with Client(server.address) as client:
        gone = 50 - client.flush()
    assert gone > 10
    assert (code, told["injected"]["items"], told["injected"]["evicted"]) == (0, 50, gone)
    code, (told,) = replay(tmp_path / "logs", "--into", server.address, "--prefix", "key-1")
    assert (code, told["injected"]["items"], told["injected"]["evicted"]) == (0, 11, 0), (
        "what was evicted before does not count"
    )
