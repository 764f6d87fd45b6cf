"""Two nodes with unequal memory: the smaller one, as a backup, lends what it has; nobody goes over a limit, no copy is lost."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from rcache_client import Client, NoRoom
from tests.integration.cluster import Cluster, until

LARGE, SMALL = 64 << 20, 16 << 20
VALUE_BYTES = 4096
WRITTEN_MAX = 4 * SMALL // VALUE_BYTES
"""Keys: four times what the smaller node holds."""


def stats(cluster: Cluster, name: str) -> dict[str, Any]:
    with Client(cluster.nodes[name].address, budget=5.0) as client:
        figures: dict[str, Any] = client.stats()
        return figures


def value_of(number: int) -> bytes:
    return (b"%08d" % number) * (VALUE_BYTES // 8 - number % 3)


def key_of(number: int) -> bytes:
    return b"key-%d" % number


def used_bytes(cluster: Cluster, name: str) -> int:
    """Of the memory, whole pages where there are any."""
    memory = stats(cluster, name)["memory"]
    return int(memory["pages_in_use"] * memory["page_bytes"] if "pages" in memory else memory["used_bytes"])


class Watching:
    """The figures of both nodes, looked at again and again."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._stopping = threading.Event()
        self.used_max: dict[str, int] = {}
        self._thread = threading.Thread(target=self._run, name="watching")
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping.wait(0.1):
            self.look()

    def look(self) -> None:
        for name in self._cluster.nodes:
            self.used_max[name] = max(self.used_max.get(name, 0), used_bytes(self._cluster, name))

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()


def two_nodes(tmp_path: Path, *arguments: str) -> Cluster:
    """The smaller one keeps the register, so that it goes on without the other."""
    cluster = Cluster(tmp_path, *arguments)
    cluster.add("small", "--memory-limit", "16M")
    cluster.add("large", "--memory-limit", "64M")
    cluster.settle()
    return cluster


def write_far_beyond(cluster: Cluster, seconds_max: float = 60.0) -> tuple[dict[bytes, bytes], int, str]:
    """What was acknowledged; how many writes were refused for want of room, and why the last was."""
    acknowledged: dict[bytes, bytes] = {}
    refused, why = 0, ""
    view = cluster.view()
    clients = {name: Client(node.address, budget=5.0) for name, node in cluster.nodes.items()}
    try:
        for number in range(WRITTEN_MAX):
            key, value = key_of(number), value_of(number)
            try:
                clients[cluster.primary_of(key, view)].set(key, value)
                acknowledged[key] = value
            except NoRoom as error:
                refused, why = refused + 1, str(error)
                if refused > 500:
                    break
    finally:
        for client in clients.values():
            client.close()
    return acknowledged, refused, why


def assert_no_copy_was_lost(cluster: Cluster) -> None:
    assert not cluster.view().lacking()
    for name in cluster.nodes:
        figures = stats(cluster, name)["cluster"]
        assert (figures["broken_chains"], figures["peers_parted"], figures["unhandled_errors"]) == (0, 0, 0), name


def test_a_smaller_backup_stays_within_its_limit(tmp_path: Path) -> None:
    cluster = two_nodes(tmp_path)
    watching = Watching(cluster)
    try:
        acknowledged, refused, why = write_far_beyond(cluster)
        assert refused == 0, why
        watching.stop()
        assert watching.used_max["small"] <= SMALL, watching.used_max
        assert watching.used_max["large"] <= LARGE, watching.used_max
        assert watching.used_max["small"] > SMALL * 0.6, "its room is used"
        assert_no_copy_was_lost(cluster)
        found = cluster.read(list(acknowledged))
        assert found, "something is left"
        assert all(acknowledged[key] == value for key, value in found.items())
        assert sum(stats(cluster, name)["credit"]["evicted_for_backup"] for name in cluster.nodes) > 0
        assert used_bytes(cluster, "small") <= SMALL
    finally:
        watching.stop()
        cluster.close()


def test_without_eviction_what_has_no_room_at_the_backup_is_refused(tmp_path: Path) -> None:
    cluster = two_nodes(tmp_path, "--no-evict")
    watching = Watching(cluster)
    try:
        acknowledged, refused, why = write_far_beyond(cluster)
        watching.stop()
        assert refused > 0
        assert len(acknowledged) * VALUE_BYTES > SMALL * 0.5, "its room is used"
        assert "the backup small has no room" in why or "--no-evict" in why, why
        assert watching.used_max["small"] <= SMALL, watching.used_max
        assert_no_copy_was_lost(cluster)
        assert cluster.read(list(acknowledged)) == acknowledged
        cluster.nodes["large"].kill()
        until("the smaller node serves all", lambda: not cluster.view("small").primaries_of("large"))
        assert cluster.read(list(acknowledged)) == acknowledged
    finally:
        watching.stop()
        cluster.close()


def test_a_copy_larger_than_its_node_has_its_primary_evict(tmp_path: Path) -> None:
    """The smaller node joins one that holds twice what it can hold."""
    cluster = Cluster(tmp_path)
    try:
        cluster.add("large", "--memory-limit", "64M")
        values = {key_of(number): value_of(number) for number in range(2 * SMALL // VALUE_BYTES)}
        cluster.write(values)
        cluster.add("small", "--memory-limit", "16M")
        cluster.settle(60.0)
        until("the smaller node is within its limit", lambda: used_bytes(cluster, "small") <= SMALL)
        assert_no_copy_was_lost(cluster)
        found = cluster.read(list(values))
        assert all(values[key] == value for key, value in found.items())
        assert len(found) * VALUE_BYTES > SMALL * 0.4
    finally:
        cluster.close()


def test_without_eviction_a_copy_that_has_no_room_is_given_up_loudly(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, "--no-evict")
    try:
        large = cluster.add("large", "--memory-limit", "64M")
        values = {key_of(number): value_of(number) for number in range(2 * SMALL // VALUE_BYTES)}
        cluster.write(values)
        cluster.add("small", "--memory-limit", "16M")
        until("it is given up", lambda: bool(stats(cluster, "large")["cluster"]["without_room"]), 60.0)
        assert "small has no room for copies" in large.stderr_text
        until("the smaller node is within its limit", lambda: used_bytes(cluster, "small") <= SMALL)
        assert cluster.view().lacking(), "some buckets are without a backup"
        assert cluster.read(list(values)) == values
    finally:
        cluster.close()
