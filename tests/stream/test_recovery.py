"""Recovery: what was acknowledged is there, nothing was invented, and what is missing is said."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from rcache.engine.reference import ReferenceEngine
from rcache.records import walk
from rcache.records.files import NO_FILE, encode_header
from rcache.records.reader import DataDamaged, Tail
from rcache.stream.log_terms import LogPlace
from rcache.stream.policy import FsyncPolicy
from rcache.stream.recovery import HistoryIncomplete, feed, recover
from tests.stream.harness import DAY_MS, IDENTITY, NOON_MS, read_segment, segments_of
from tests.stream.node import Items, Node, items_of, recover_items

needs_compiled = pytest.mark.skipif(walk.COMPILED is None, reason="the compiled body was not built")


@pytest.fixture(
    autouse=True,
    params=[pytest.param(walk.REFERENCE, id="reference"), pytest.param(walk.COMPILED, id="compiled", marks=needs_compiled)],
)
def body(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs with each body of the walks."""
    monkeypatch.setattr(walk, "chosen", request.param)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A data directory."""
    path = tmp_path / "home"
    path.mkdir()
    return path


def is_part_of(items: Items, expected: Items) -> bool:
    """Whether nothing was invented; the value of `turn` may be an older one."""
    return all(expected.get(key) == value or key == b"turn" for key, value in items.items())


def fill(node: Node, count: int = 10, tag: bytes = b"") -> Items:
    made = {b"%s%d" % (tag, number): b"value %d" % number for number in range(count)}
    for key, value in made.items():
        node.set(key, value)
    return made


# --- the plain cases


def test_a_new_directory_recovers_to_nothing(home: Path) -> None:
    recovered = recover(home, home / "n1.rcs", IDENTITY)
    assert (recovered.buckets, recovered.newest_epoch, recovered.place) == ({}, 0, LogPlace(1, NO_FILE))
    assert not recovered.stale
    assert not recovered.warnings


def test_an_orderly_stop_brings_back_everything(home: Path) -> None:
    node = Node(home)
    expected = fill(node)
    node.delete(b"3")
    del expected[b"3"]
    identity = node.stop()
    again = Node(home, identity)
    assert items_of(again.recovered) == expected
    assert again.recovered.items == 9
    assert not again.recovered.warnings
    assert again.epoch == 2
    again.stop()


def test_what_is_recovered_goes_into_an_engine_and_out_again(home: Path) -> None:
    node = Node(home)
    fill(node, 300)
    before = [list(node.engine.copy_bucket(bucket)) for bucket in range(4)]
    identity = node.stop()
    recovered = recover(home, home / "n1.rcs", identity)
    engine = ReferenceEngine(node.engine.config)
    feed(recovered.buckets, engine.apply, piece_bytes=100)
    after = [list(engine.copy_bucket(bucket)) for bucket in range(4)]
    assert [sorted(rows) for rows in after] == [sorted(rows) for rows in before]
    engine.check()
    engine.close()


def test_start_after_start_each_epoch_is_new_and_segments_follow_each_other(home: Path) -> None:
    identity, expected = IDENTITY, {}
    for number in range(1, 6):
        node = Node(home, identity)
        assert node.epoch == number
        assert items_of(node.recovered) == expected
        expected |= fill(node, 3, b"start %d " % number)
        if number == 3:
            node.flush()
            expected = {}
        identity = node.stop()
    before = NO_FILE
    for number, path in enumerate(segments_of(home), 1):
        header, _, tail = read_segment(path)
        assert (header.number, header.predecessor, tail) == (number, before, Tail.CLOSED)
        before = header.file_id
    assert recover_items(home, identity) == expected


def test_a_killed_node_has_everything_that_was_acknowledged(home: Path, tmp_path: Path) -> None:
    node = Node(home)
    expected = fill(node)
    identity = node.crash(tmp_path / "crashed")
    again = Node(tmp_path / "crashed", identity)
    assert items_of(again.recovered) == expected
    again.set(b"more", b"value")
    assert recover_items(tmp_path / "crashed", again.stop()) == {**expected, b"more": b"value"}


# --- cut anywhere


def test_the_log_cut_at_every_byte_of_its_last_block_never_fails_and_never_invents(home: Path, tmp_path: Path) -> None:
    node = Node(home)
    expected = fill(node, 5)
    before = segments_of(home)[0].stat().st_size
    node.set(b"last", b"the last value")
    whole = segments_of(home)[0].read_bytes()
    identity = node.stop()
    closed = segments_of(home)[0].read_bytes()
    assert closed.startswith(whole)
    assert before < len(whole) < len(closed)
    for cut in range(before, len(closed) + 1):
        directory = tmp_path / f"cut-{cut}"
        directory.mkdir()
        path = directory / segments_of(home)[0].name
        path.write_bytes(closed[:cut])
        recovered = recover(directory, directory / "n1.rcs", identity)
        wanted = {**expected, b"last": b"the last value"} if cut >= len(whole) else expected
        assert items_of(recovered) == wanted, cut
        assert bool(recovered.warnings) is (cut not in (before, len(whole), len(closed))), cut
        assert read_segment(path)[2] is Tail.CLOSED
        assert path.read_bytes() == closed or cut < len(whole)
        assert recovered.place.number == 2
        assert recover_items(directory, identity) == wanted, "and it stays so"


def test_the_log_cut_at_every_byte_of_a_large_block_of_many_records(home: Path, tmp_path: Path) -> None:
    """Without commit several records share a block: it is there as a whole or not at all."""
    node = Node(home, policy=FsyncPolicy.NEVER)
    node.set(b"first", b"value")
    node.sync()
    path = segments_of(home)[0]
    before = path.stat().st_size
    fill(node, 30)
    identity = node.stop()
    closed = path.read_bytes()
    seen = set()
    for cut in range(before, len(closed), 3):
        path.write_bytes(closed[:cut])
        items = recover_items(home, identity)
        assert items.pop(b"first") == b"value"
        assert items == {b"%d" % number: b"value %d" % number for number in range(len(items))}, "a prefix"
        seen.add(len(items))
    assert len(seen) > 1


@pytest.mark.parametrize("garbage", [b"\0" * 500, b"rBLK" + b"\xff" * 60, b"rEND", b"\x00rBLK\x00\x00\x00\x10" * 20])
def test_garbage_behind_the_last_block_is_cut_off(home: Path, tmp_path: Path, garbage: bytes) -> None:
    node = Node(home)
    expected = fill(node)
    identity = node.crash(tmp_path / "crashed")
    path = segments_of(tmp_path / "crashed")[0]
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(garbage)
    recovered = recover(tmp_path / "crashed", tmp_path / "crashed" / "n1.rcs", identity)
    assert items_of(recovered) == expected
    assert f"{len(garbage)} bytes cut off at byte {size}" in recovered.warnings[0]


# --- damage and what is missing


def three_segments(home: Path) -> tuple[Items, Node]:
    """A node whose log has three segments, with changes in each."""
    node = Node(home)
    expected = fill(node, 5, b"a")
    node.turn_segment()
    expected |= fill(node, 5, b"b")
    node.turn_segment()
    expected |= fill(node, 5, b"c")
    expected[b"turn"] = b"3"
    return expected, node


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)


def test_segments_are_taken_in_their_order_whatever_their_names(home: Path) -> None:
    expected, node = three_segments(home)
    identity = node.stop()
    for path, name in zip(segments_of(home), ("z.rcl", "m.rcl", "a.rcl"), strict=True):
        path.rename(home / name)
    assert recover_items(home, identity) == expected


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_missing_segment_is_noticed(home: Path, missing: int) -> None:
    expected, node = three_segments(home)
    identity = node.stop()
    segments_of(home)[missing].unlink()
    if missing == 2:  # the newest: what is left is a whole history, of which nothing says that it went on
        assert is_part_of(recover_items(home, identity), expected)
        return
    with pytest.raises(HistoryIncomplete) as raised:
        recover(home, home / "n1.rcs", identity)
    assert raised.value.problems
    recovered = recover(home, home / "n1.rcs", identity, skip_damaged=True)
    assert is_part_of(items_of(recovered), expected)
    assert recovered.warnings


@pytest.mark.parametrize("segment", [0, 1, 2])
def test_damage_in_the_middle_is_not_taken_for_a_torn_tail(home: Path, segment: int) -> None:
    expected, node = three_segments(home)
    identity = node.stop()
    path = segments_of(home)[segment]
    flip(path, path.stat().st_size // 2)
    damaged = path.read_bytes()
    with pytest.raises((DataDamaged, HistoryIncomplete)):
        recover(home, home / "n1.rcs", identity)
    assert path.read_bytes() == damaged, "nothing was cut"
    recovered = recover(home, home / "n1.rcs", identity, skip_damaged=True)
    assert is_part_of(items_of(recovered), expected)
    assert recovered.warnings


def test_a_tail_cut_from_an_older_segment_is_damage(home: Path) -> None:
    expected, node = three_segments(home)
    identity = node.stop()
    path = segments_of(home)[1]
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataDamaged):
        recover(home, home / "n1.rcs", identity)
    assert is_part_of(recover_items(home, identity, skip_damaged=True), expected)


def test_files_of_another_directory_are_left_alone(home: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    stranger = Node(other, replace(IDENTITY, data_dir_id="ee" * 16))
    stranger.set(b"theirs", b"value")
    stranger.stop()
    node = Node(home)
    expected = fill(node)
    identity = node.stop()
    shutil.copy(segments_of(other)[0], home / "stranger.rcl")
    recovered = recover(home, home / "n1.rcs", identity)
    assert items_of(recovered) == expected
    assert "stranger.rcl" in recovered.warnings[0]


def test_what_a_crash_left_unfinished_is_removed(home: Path) -> None:
    node = Node(home)
    expected = fill(node)
    identity = node.stop()
    for name in ("n1-20231209-0002.rcl.tmp", "n1-20231209-0001.rcc.tmp", "n1.rcs.tmp"):
        (home / name).write_bytes(b"half")
    (home / "notes.txt.tmp").write_bytes(b"not ours")
    assert recover_items(home, identity) == expected
    assert sorted(path.name for path in home.iterdir()) == ["n1-20231209-0001.rcl", "notes.txt.tmp"]


# --- checkpoints and savefiles


def with_checkpoints(home: Path) -> tuple[Items, Node]:
    """A node with two checkpoints and changes since."""
    node = Node(home)
    expected = fill(node, 5, b"a")
    node.turn_segment()
    expected |= fill(node, 5, b"b")
    node.checkpoint()
    node.delete(b"a1")
    node.turn_segment()
    expected |= fill(node, 5, b"c")
    node.checkpoint()
    expected |= fill(node, 7, b"c")
    del expected[b"a1"]
    expected[b"turn"] = b"3"
    return expected, node


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_a_checkpoint_stands_for_the_segments_before_it(home: Path, gone: int) -> None:
    expected, node = with_checkpoints(home)
    identity = node.stop()
    for path in segments_of(home)[:gone]:
        path.unlink()
    recovered = recover(home, home / "n1.rcs", identity)
    assert items_of(recovered) == expected
    assert recovered.place.number == 4
    assert "n1-0003.rcc" in recovered.notes[-1]


@pytest.mark.parametrize("where", ["header", "middle", "end", "cut", "empty"])
def test_a_damaged_checkpoint_gives_way_to_the_older_one(home: Path, where: str) -> None:
    expected, node = with_checkpoints(home)
    identity = node.stop()
    path = home / "n1-0003.rcc"
    size = path.stat().st_size
    if where in ("cut", "empty"):
        path.write_bytes(path.read_bytes()[: size - 10 if where == "cut" else 0])
    else:
        flip(path, {"header": 20, "middle": size // 2, "end": size - 5}[where])
    segments_of(home)[0].unlink()
    recovered = recover(home, home / "n1.rcs", identity)
    assert items_of(recovered) == expected
    assert any("n1-0003.rcc" in line for line in [*recovered.notes, *recovered.warnings])
    assert "n1-0002.rcc" in recovered.notes[-1]


def test_without_any_whole_base_nothing_is_made_up(home: Path) -> None:
    expected, node = with_checkpoints(home)
    identity = node.stop()
    segments_of(home)[0].unlink()
    for path in home.glob("*.rcc"):
        flip(path, path.stat().st_size // 2)
    with pytest.raises((DataDamaged, HistoryIncomplete)):
        recover(home, home / "n1.rcs", identity)
    assert is_part_of(recover_items(home, identity, skip_damaged=True), expected)


def test_a_checkpoint_whose_log_is_gone_is_not_the_present(home: Path) -> None:
    _, node = with_checkpoints(home)
    identity = node.stop()
    for path in segments_of(home):
        path.unlink()
    with pytest.raises(HistoryIncomplete):
        recover(home, home / "n1.rcs", identity)


def test_a_number_is_not_used_twice_though_all_segments_are_gone(home: Path) -> None:
    _, node = with_checkpoints(home)
    identity = node.stop()
    for path in segments_of(home):
        path.unlink()
    again = Node(home, identity, skip_damaged=True, now_ms=NOON_MS + 5 * DAY_MS)
    assert again.log.next_segment() - 1 == 4
    again.set(b"new", b"value")
    expected = {**items_of(again.recovered), b"new": b"value"}
    again.checkpoint()
    again.retain(again.now_ms)
    assert recover_items(home, again.stop()) == expected


def test_a_savefile_and_the_log_since(home: Path) -> None:
    node = Node(home)
    expected = fill(node)
    identity = node.stop(save=True)
    recovered = recover(home, home / "n1.rcs", identity)
    assert items_of(recovered) == expected
    assert recovered.notes == [note for note in recovered.notes if note.startswith("recovered from n1.rcs")]
    again = Node(home, identity)
    expected |= fill(again, 3, b"later")
    identity = again.stop()
    assert recover_items(home, identity) == expected, "a savefile that is older than the log is a base, not the present"


def test_a_savefile_alone_is_enough_after_an_orderly_stop(home: Path) -> None:
    node = Node(home)
    expected = fill(node)
    identity = node.stop(save=True)
    for path in segments_of(home):
        path.unlink()
    again = Node(home, identity)
    assert items_of(again.recovered) == expected
    assert again.log.next_segment() - 1 == 2
    again.set(b"later", b"value")
    assert recover_items(home, again.stop()) == {**expected, b"later": b"value"}


def test_a_stale_savefile_is_never_taken_for_the_present(home: Path) -> None:
    node = Node(home)
    fill(node)
    identity = node.stop(save=True)
    again = Node(home, identity)
    again.set(b"later", b"value")
    identity = again.stop()
    for path in segments_of(home):
        path.unlink()
    recovered = recover(home, home / "n1.rcs", identity)
    assert recovered.stale
    assert recovered.buckets == {}
    assert recovered.newest_epoch == 1


def test_a_stale_log_is_never_taken_for_the_present(home: Path) -> None:
    """The node served once more without a log: what its files say is of the past."""
    node = Node(home)
    fill(node)
    identity = node.stop()
    recovered = recover(home, home / "n1.rcs", replace(identity, epoch=2, start_epoch=2))
    assert recovered.stale
    assert recovered.buckets == {}


def test_an_epoch_that_was_only_reserved_makes_nothing_stale(home: Path) -> None:
    """A crash between writing an epoch down for a bucket and opening it there."""
    node = Node(home)
    expected = fill(node)
    identity = node.stop()
    assert recover_items(home, replace(identity, epoch=identity.epoch + 1)) == expected


# --- a segment of which there is only the header


def test_a_segment_in_which_nothing_was_written_yet(home: Path, tmp_path: Path) -> None:
    node = Node(home)
    expected = fill(node)
    identity = node.stop()
    header, _, _ = read_segment(segments_of(home)[0])
    following = replace(header, number=2, file_id=b"x" * 16, predecessor=header.file_id)
    (home / "n1-20231210-0002.rcl").write_bytes(encode_header(following))
    recovered = recover(home, home / "n1.rcs", identity)
    assert items_of(recovered) == expected
    assert recovered.place == LogPlace(3, b"x" * 16)
