"""What the files of a cluster's nodes amount to, together and apart: replayed, put into another cluster, and restored into one
that a node joins."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rcache.cluster.view import NodeState
from rcache.commands import rcache_cli, rcache_replay
from rcache.commands.restore_joined import MARK_FILE
from rcache.records.files import BLOCK_HEADER_BYTES, FileHeader
from rcache.records.reader import RecordFile
from rcache.records.rebuild import rebuild, survey
from rcache.records.record import Kind
from rcache.stream.data_dir import list_files, read_headers, sources
from rcache_client import Client
from tests.agreement.etcds import EtcdProcess
from tests.integration.cluster import BUCKETS, Cluster, until, values_of
from tests.integration.conftest import MakeCluster
from tests.integration.writers import Writers

NAMES = ("a", "b", "c")
KEYS = 200
WRITERS = 3
WRITES = 150
"""Acknowledged between two moves, so that every copy has something of its own."""


def in_savefile(path: Path) -> dict[bytes, bytes]:
    read = sources(list_files(path.parent))
    read = [source for source in read if source.paths == (path,)]
    buckets = rebuild(read, survey(read).plans)
    return {key: row.value for bucket in buckets.values() for key, row in bucket.live_rows() if row.value is not None}


def replayed(cluster: Cluster, names: str, output: Path, *more: str) -> tuple[int, dict[bytes, bytes]]:
    """The exit code of rcache-replay over these nodes' directories, and what it wrote."""
    directories = [str(cluster.directory / name) for name in names]
    output.parent.mkdir(exist_ok=True)
    code = rcache_replay.main(["rebuild", *directories, "-o", str(output), "--json", *more])
    return code, in_savefile(output) if code == 0 else {}


def return_of(cluster: Cluster, name: str) -> None:
    node = cluster.nodes[name]
    node.arguments = [option for other in cluster.running() for option in ("--node", other.address)] + list(cluster.arguments)
    node.start()
    cluster.settle()


def stir(cluster: Cluster, writers: Writers) -> None:
    """Backups and primaries move, by each way there is, while clients write."""

    def go_on() -> None:
        target = writers.acknowledged + WRITES
        until("clients write", lambda: writers.acknowledged > target)

    go_on()
    cluster.nodes["c"].kill()
    until("the others take over", lambda: not cluster.view().primaries_of("c"))
    go_on()
    return_of(cluster, "c")
    go_on()
    assert rcache_cli.main(["--server", cluster.nodes["a"].address, "drain", "b"]) == 0
    assert cluster.nodes["b"].wait() == 0
    go_on()
    return_of(cluster, "b")
    go_on()
    cluster.nodes["b"].kill()
    go_on()
    return_of(cluster, "b")
    assert cluster.nodes["c"].stop() == 0
    go_on()
    return_of(cluster, "c")
    go_on()


def live(cluster: Cluster, keys: list[bytes]) -> dict[bytes, bytes]:
    with Client([node.address for node in cluster.running()], budget=10.0) as client:
        return {key: value for key, value in client.get_many(keys).items() if value is not None}


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Callable[[], dict[str, object]]:
    """What rcache-replay said last, as JSON."""
    return lambda: json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def test_the_logs_of_all_nodes_merge_after_an_orderly_end(
    cluster_of: MakeCluster, tmp_path: Path, told: Callable[[], dict[str, object]]
) -> None:
    """The last node that stops has everything. Without its directory something is missing, and that is said."""
    cluster = cluster_of().grow(*NAMES)
    with Writers(WRITERS, [node.address for node in cluster.running()]) as writers:
        stir(cluster, writers)
        writers.stop()
        assert not writers.wrong(live(cluster, list(writers.may_be)))
        for name in NAMES:
            assert cluster.nodes[name].stop() == 0
    code, found = replayed(cluster, "abc", tmp_path / "all" / "all.rcs")
    assert (code, writers.wrong(found)) == (0, {}), told()
    for names in ("ac", "bc", "c"):
        code, found = replayed(cluster, names, tmp_path / names / "some.rcs")
        assert (code, writers.wrong(found)) == (0, {}), (names, told())
    told()
    for names in ("ab", "a", "b"):
        code, _ = replayed(cluster, names, tmp_path / names / "some.rcs")
        assert code == 8, names
        assert "let go of by" in json.dumps(told()), names
    code, found = replayed(cluster, "ab", tmp_path / "partial" / "some.rcs", "--partial")
    assert code == 0
    assert found, "told to go on it writes what there is"


def test_the_logs_of_all_nodes_merge_after_all_were_killed(
    cluster_of: MakeCluster, tmp_path: Path, told: Callable[[], dict[str, object]]
) -> None:
    """With fsync always what was acknowledged is on two disks, so any two directories have all of it, or say what they lack."""
    cluster = cluster_of()
    cluster.add("a", "--append-log-fsync", "always")
    cluster.grow("b", "c")
    with Writers(WRITERS, [node.address for node in cluster.running()]) as writers:
        stir(cluster, writers)
        for node in cluster.nodes.values():
            node.process.kill()
        writers.stop()
        for node in cluster.nodes.values():
            node.wait()
    code, found = replayed(cluster, "abc", tmp_path / "all" / "all.rcs")
    assert (code, writers.wrong(found)) == (0, {}), told()
    for names in ("ab", "ac", "bc"):
        code, found = replayed(cluster, names, tmp_path / names / "some.rcs")
        assert code == 8 or (code, writers.wrong(found)) == (0, {}), (names, told())


# --- restored into a cluster that a node joins


def test_files_are_restored_into_a_cluster_that_a_node_joins(cluster_of: MakeCluster) -> None:
    """By key: the number of buckets is another. What the cluster has stays."""
    source = source_of(cluster_of)
    cluster = cluster_of().grow("x", "y")
    with Client([node.address for node in cluster.running()]) as client:
        client.set_many({b"key-%d" % n: b"theirs" for n in range(10)})
    node = cluster.add("z", "--restore", str(source))
    assert cluster.view().nodes["z"].state is NodeState.UP, "ready is said once it is up and everything is in"
    with Client([node.address for node in cluster.running()]) as client:
        found = client.get_many([b"key-%d" % n for n in range(KEYS)])
        assert found == {b"key-%d" % n: b"theirs" if n < 10 else b"value %d" % n for n in range(KEYS)}
        short = client.inspect(b"short")
        assert short is not None
        assert 0 < (short.ttl or 0) <= 3600
    assert f"restored {KEYS + 1} items into the cluster" in node.stderr_text
    assert "10 kept that were there" in node.stderr_text
    assert not (node.data_dir / MARK_FILE).exists()
    cluster.settle()

    assert node.stop() == 0
    node.launch()
    assert node.wait() == 2
    assert "was in use already" in node.stderr_text
    assert "z" not in cluster.view().nodes


def source_of(cluster_of: MakeCluster) -> Path:
    """The data directory of a node of another cluster, with other buckets."""
    other = cluster_of("--buckets", "64")
    other.add("s")
    with Client(other.nodes["s"].address) as client:
        client.set_many({b"key-%d" % n: b"value %d" % n for n in range(KEYS)})
        client.set(b"short", b"s", ttl=3600)
    assert other.nodes["s"].stop() == 0
    return other.nodes["s"].data_dir


def test_into_the_cluster_that_they_are_of_only_what_is_newer(cluster_of: MakeCluster, tmp_path: Path) -> None:
    """Of several nodes' directories; what was deleted since comes back."""
    cluster = cluster_of().grow("a", "b")
    values = {b"key-%d" % n: b"then" for n in range(KEYS)}
    cluster.write(values)
    then = tmp_path / "then"

    def has_all() -> bool:
        shutil.rmtree(then, ignore_errors=True)
        for name in ("a", "b"):
            shutil.copytree(cluster.nodes[name].data_dir, then / name)
        return rcache_replay.main(["rebuild", str(then), "-o", str(tmp_path / "check.rcs"), "--json"]) == 0 and (
            in_savefile(tmp_path / "check.rcs") == values
        )

    until("the logs have what was written", has_all)
    cluster.write({b"key-%d" % n: b"now" for n in range(20)})
    with Client([node.address for node in cluster.running()]) as client:
        for number in range(20, 30):
            client.delete(b"key-%d" % number)
    node = cluster.add("c", "--restore", str(then))
    found = live(cluster, list(values))
    assert found == values | {b"key-%d" % n: b"now" for n in range(20)}
    assert f"{KEYS - 10} kept that were newer" in node.stderr_text
    assert "10 put in" in node.stderr_text


def test_5_files_that_are_not_whole_are_refused_before_it_joins(cluster_of: MakeCluster) -> None:
    source = source_of(cluster_of)
    segment = next(iter(sorted(source.glob("*.rcl"))))
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(data)
    cluster = cluster_of().grow("x", "y")
    epoch = cluster.view().epoch
    node = cluster.add("z", "--restore", str(source), start=False)
    node.launch()
    assert node.wait() == 5
    assert "--restore" in node.stderr_text
    assert cluster.view().epoch == epoch
    assert list(node.data_dir.glob("*.json")) == [], "it is nobody's yet"


def test_6_what_the_cluster_does_not_take_is_said_and_left(cluster_of: MakeCluster) -> None:
    source = source_of(cluster_of)
    cluster = cluster_of("--max-value-size", "8").grow("x", "y")
    node = cluster.add("z", "--restore", str(source), start=False)
    node.launch()
    assert node.wait() == 6, node.stderr_text
    assert f"could not put {KEYS - 100} of {KEYS + 1} items" in node.stderr_text
    assert "raise --max-value-size" in node.stderr_text, "the reason is there"
    cluster.settle()
    assert "z" not in cluster.view().nodes, "it left in order"
    assert live(cluster, [b"key-1", b"key-100"]) == {b"key-1": b"value 1"}
    node.arguments = [option for option in node.arguments if option not in ("--restore", str(source))]
    node.start()
    assert "an earlier --restore" in node.stderr_text
    cluster.settle()


def test_a_restore_that_was_stopped_is_made_again(cluster_of: MakeCluster) -> None:
    many = 20_000
    other = cluster_of("--buckets", "64")
    other.add("s")
    with Client(other.nodes["s"].address) as client:
        client.set_many({b"key-%d" % n: b"v" for n in range(many)})
    assert other.nodes["s"].stop() == 0
    cluster = cluster_of().grow("x", "y")
    node = cluster.add("z", "--restore", str(other.nodes["s"].data_dir), start=False)
    node.launch()
    until("it restores", lambda: f"restoring {many} items" in node.stderr_text)
    node.terminate()
    assert node.wait() == 0
    assert "--restore was given up" in node.stderr_text
    assert (node.data_dir / MARK_FILE).exists()
    before = len(live(cluster, [b"key-%d" % n for n in range(many)]))
    assert before < many
    node.start()
    assert len(live(cluster, [b"key-%d" % n for n in range(many)])) == many
    assert not (node.data_dir / MARK_FILE).exists()
    said = re.search(r"(\d+) put in, (\d+) kept that were there", node.stderr_text)
    assert said is not None, node.stderr_text
    put, kept = int(said[1]), int(said[2])
    assert put + kept == many
    assert put <= many - before, "the rest was there; and an item whose answer is lost is found there when it is put in again"


# --- a cold start finds a copy that is not the last


def test_5_a_copy_that_was_let_go_of_is_not_served_after_a_cold_start(cluster_of: MakeCluster, etcd: EtcdProcess) -> None:
    """b comes back, is filled anew, and is named last; its disk has of its new copies only that the old ones are gone."""
    cluster = cluster_of("--etcd", etcd.url).grow("a", "b")
    old, new = values_of(KEYS, "old"), values_of(KEYS, "new")
    cluster.write(old)
    until("b's log has it", lambda: replayed(cluster, "b", cluster.directory / "check" / "b.rcs")[1] == old)
    cluster.nodes["b"].kill()
    until("a goes on alone", lambda: not cluster.view().primaries_of("b"))
    cluster.write(new)
    return_of(cluster, "b")
    for node in cluster.nodes.values():
        node.process.kill()
    for node in cluster.nodes.values():
        node.wait()
    cut_behind_drops(cluster.nodes["b"].data_dir)

    cluster.nodes["a"].start()  # what a was, b is to recover alone
    view = cluster.view()
    assert len(view.primaries_of("b")) == len(view.placements)
    b = cluster.nodes["b"]
    b.launch()
    assert b.wait() == 5, b.stderr_text
    assert "let go of by b at" in b.stderr_text
    assert "--skip-damaged" in b.stderr_text
    assert replayed(cluster, "ab", cluster.directory / "both" / "both.rcs")[0] == 8, "b may have gone on, for all that is known"
    code, found = replayed(cluster, "ab", cluster.directory / "both" / "both.rcs", "--partial")
    assert (code, found) == (0, new), "a's files have what there was before"
    b.arguments = [*b.arguments, "--skip-damaged"]
    b.start()
    until("a has copies again", lambda: not cluster.view().lacking())
    assert cluster.read(list(old)) == old, "an operator's word for what there is"


def cut_behind_drops(data_dir: Path) -> None:
    """As a power cut would leave it that came right after the newest segment said which buckets are not here any more."""
    segment = max(data_dir.glob("*.rcl"))
    with RecordFile(segment) as file:
        blocks = list(file.blocks())
    drops = [block for block in blocks if any(head.kind == Kind.DROP for head in block.heads)]
    assert {head.bucket for block in drops for head in block.heads if head.kind == Kind.DROP} == set(range(BUCKETS))
    assert all(head.kind == Kind.DROP for head in drops[0].heads), "this start's first word"
    with segment.open("r+b") as cut:
        cut.truncate(drops[0].offset + BLOCK_HEADER_BYTES + len(drops[0].body))
    for checkpoint in data_dir.glob("*.rcc"):
        if header_of(checkpoint).first_segment >= header_of(segment).number:
            checkpoint.unlink()


def header_of(path: Path) -> FileHeader:
    return read_headers([path])[0].header
