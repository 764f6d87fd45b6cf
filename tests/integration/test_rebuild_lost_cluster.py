"""A cluster that is lost entirely, and rebuilt from its nodes' append logs onto another; and one that is too small for it."""

from __future__ import annotations

from pathlib import Path

from rcache.records.rebuild import rebuild, survey
from rcache.stream.data_dir import list_files, sources
from rcache_client import Client
from soak.logger_process import LoggerProcess
from tests.integration.cluster import until
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


def test_a_lost_cluster_of_three_is_rebuilt_onto_two_from_a_loggers_files(cluster_of: MakeCluster, tmp_path: Path) -> None:
    """The same from what a logger recorded, who is killed with the others."""
    cluster = cluster_of()
    begin(cluster)
    addresses = [node.address for node in cluster.running()]
    with LoggerProcess(tmp_path / "tape", addresses, "--fsync", "always") as logger:

        def catch_up(keys: list[bytes]) -> None:
            with Client(addresses, budget=10.0) as client:
                there = {key: client.get_with_version(key).version for key in keys}
            until("the logger has it", lambda: versions_recorded(logger.data_dir) == {k: v for k, v in there.items() if v})
            logger.process.kill()

        lost = lose(cluster, catch_up)
    tear([logger.data_dir])
    moved = next(key for key in list(lost.then)[:CHANGED] if lost.primaries_then[key] != lost.primaries_now[key])
    code, lines = replay("history", moved.decode(), logger.data_dir)
    changes = [(line["through"], line["state"]) for line in lines if line["kind"] == "SET"]
    # It was not there when the first primary opened the bucket, and nothing else names that one.
    assert (code, changes) == (0, [(None, "live"), (lost.primaries_now[moved], "live")])
    assert_rebuilt_from([logger.data_dir], lost, cluster_of())


def versions_recorded(directory: Path) -> dict[bytes, int]:
    """Each key that is there by the files, which may be written meanwhile; nothing while they are not whole."""
    read = sources(list_files(directory))
    surveyed = survey(read, skip_damaged=True)
    if surveyed.problems:
        return {}
    rebuilt = rebuild(read, surveyed.plans, skip_damaged=True)
    return {key: row.version for bucket in rebuilt.values() for key, row in bucket.live_rows()}


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
