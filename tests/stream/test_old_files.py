"""What a node's own files still hold of a bucket, read beside the log that is being written: the end of the newest chain, all
of it or what is missing, and nothing changed by the look."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from rcache.records.files import FileKind
from rcache.records.record import show_sequence
from rcache.stream import old_files
from rcache.stream.data_dir import Identity
from rcache.stream.old_files import Held, OldFiles
from rcache.stream.recovery import HistoryIncomplete, recover
from tests.records.bodies import BODIES, using
from tests.records.making import (
    dropped,
    file_bytes,
    header_of,
    imported,
    name_id,
    opened,
    row,
    seq,
    stored,
    write_file,
)

FIRST = [opened(5, time_ms=10), *(stored(seq(5, n), b"k%d" % (n % 3), b"%d" % n, time_ms=10 + n) for n in range(1, 8))]
"""A bucket up to 5.7: three keys."""

DROP = dropped(0, time_ms=20)


@pytest.fixture(params=BODIES, autouse=True)
def _body(request: pytest.FixtureRequest) -> Iterator[None]:
    with using(request.param):
        yield


def look() -> None:
    pass


def files_in(folder: Path, savefile: str = "n1.rcs") -> OldFiles:
    return OldFiles(folder, folder / savefile, name_id("n1").hex())


def held_in(folder: Path) -> Held | None:
    """Of bucket 0; the look changes nothing."""
    before = digest(folder)
    found = files_in(folder).held([0], look)
    assert digest(folder) == before
    assert set(found) <= {0}
    return found.get(0)


def digest(folder: Path) -> dict[str, bytes]:
    return {path.name: hashlib.sha256(path.read_bytes()).digest() for path in folder.iterdir()}


def brought(folder: Path) -> dict[bytes, bytes]:
    _, rebuilt = files_in(folder).bring([0], look)[0]
    assert rebuilt is not None
    return {key: row.value for key, row in rebuilt.live_rows() if row.value is not None}


def told(held: Held | None) -> tuple[str, int, bool, bool]:
    assert held is not None
    return show_sequence(held.end), held.items, held.is_whole, bool(held.let_go)


def test_a_copy_that_was_let_go_of_is_told_and_is_whole(tmp_path: Path) -> None:
    write_file(tmp_path, header_of(1), FIRST, [DROP])
    held = held_in(tmp_path)
    assert told(held) == ("5.7", 3, True, True)
    assert held is not None
    assert held.as_of_ms == 17
    assert brought(tmp_path) == {b"k0": b"6", b"k1": b"7", b"k2": b"5"}


def test_one_that_was_not_let_go_of_is_told_so(tmp_path: Path) -> None:
    write_file(tmp_path, header_of(1), FIRST)
    assert told(held_in(tmp_path)) == ("5.7", 3, True, False)


def test_what_is_not_asked_for_is_not_told(tmp_path: Path) -> None:
    write_file(tmp_path, header_of(1, buckets=2), FIRST)
    assert files_in(tmp_path).held([1], look) == {}
    assert files_in(tmp_path).held([], look) == {}


def test_a_node_without_files_holds_nothing(tmp_path: Path) -> None:
    assert held_in(tmp_path) is None


def test_what_is_off_the_chain_is_cut(tmp_path: Path) -> None:
    """Section 4: beyond the point that a newer OPEN names, older epochs are dead."""
    later = [opened(6, seq(5, 4), time_ms=30), stored(seq(6, 1), b"k9", b"new", time_ms=31)]
    write_file(tmp_path, header_of(1), FIRST, later, [DROP])
    assert told(held_in(tmp_path)) == ("6.1", 4, True, True)
    assert brought(tmp_path) == {b"k0": b"3", b"k1": b"4", b"k2": b"2", b"k9": b"new"}


@pytest.mark.parametrize("rest", [1, 2])
def test_half_of_another_copy_does_not_hide_the_one_before(tmp_path: Path, rest: int) -> None:
    """A node was killed while it brought the bucket back from these very files: they still hold it."""
    again = imported(seq(5, 7), seq(5, 7), [row(seq(5, 7), b"k1", b"7")], time_ms=17)
    write_file(tmp_path, header_of(1), FIRST, [DROP], again[:rest])
    assert told(held_in(tmp_path)) == ("5.7", 3, True, True)


def test_a_copy_that_was_begun_in_a_later_epoch_hides_the_one_before(tmp_path: Path) -> None:
    """Others went on: what is here of that is not the bucket, and what was before is not its end."""
    write_file(tmp_path, header_of(1), FIRST, [DROP], [stored(seq(6, 3), b"k", b"v", time_ms=40)])
    held = held_in(tmp_path)
    assert told(held) == ("6.3", 0, False, True)
    assert files_in(tmp_path).bring([0], look)[0][1] is None


def test_a_hole_is_told_and_nothing_is_rebuilt(tmp_path: Path) -> None:
    write_file(tmp_path, header_of(1), [*FIRST[:3], *FIRST[4:]], [DROP])
    held = held_in(tmp_path)
    assert told(held) == ("5.7", 0, False, True)
    assert held is not None
    assert "5.3 is not there" in held.why


def test_the_newest_checkpoint_is_enough_with_the_log_behind_it(tmp_path: Path) -> None:
    rows = [row(seq(5, 3), b"k0", b"3")]
    header = header_of(2, kind=FileKind.CHECKPOINT, first_segment=2)
    write_file(tmp_path, header, imported(seq(5, 3), seq(5, 3), rows, time_ms=13))
    write_file(tmp_path, header_of(2), FIRST[4:], [DROP])
    assert told(held_in(tmp_path)) == ("5.7", 3, True, True)


def test_a_savefile_elsewhere_counts(tmp_path: Path) -> None:
    header = header_of(1, kind=FileKind.SAVEFILE, first_segment=1)
    path = write_file(tmp_path / "save", header, imported(seq(5, 3), seq(5, 3), [row(seq(5, 3), b"k0", b"3")], time_ms=13))
    (tmp_path / "data").mkdir()
    found = OldFiles(tmp_path / "data", path, name_id("n1").hex()).held([0], look)
    assert told(found[0]) == ("5.3", 1, True, False)


def test_a_drop_behind_a_segment_that_is_gone_hides_no_hole(tmp_path: Path) -> None:
    """The log says nothing of the bucket behind its DROP; the segment between the two may have held its last changes."""
    write_file(tmp_path, header_of(1), FIRST)
    write_file(tmp_path, header_of(3), [DROP])
    held = held_in(tmp_path)
    assert told(held) == ("5.7", 0, False, True)
    assert held is not None
    assert "segment 2 missing" in held.why


def test_damage_in_the_middle_is_told(tmp_path: Path) -> None:
    path = write_file(tmp_path, header_of(1), FIRST[:4], FIRST[4:], [DROP])
    data = bytearray(path.read_bytes())
    data[data.index(FIRST[4])] ^= 1
    path.write_bytes(data)
    assert told(held_in(tmp_path)) == ("5.3", 0, False, True)


def test_a_segment_that_cannot_be_read_leaves_every_bucket_in_doubt(tmp_path: Path) -> None:
    write_file(tmp_path, header_of(1), FIRST)
    path = write_file(tmp_path, header_of(2), [stored(seq(5, 8), b"k", b"v")])
    path.write_bytes(b"x" * len(path.read_bytes()))
    assert told(held_in(tmp_path)) == ("5.7", 0, False, False)


def test_a_checkpoint_that_cannot_be_read_is_as_good_as_none(tmp_path: Path) -> None:
    write_file(tmp_path, header_of(1), FIRST)
    (tmp_path / "n1-20240501-0001.rcc").write_bytes(b"x" * 500)
    assert told(held_in(tmp_path)) == ("5.7", 3, True, False)


@pytest.mark.parametrize("cut", [1, 60])
def test_the_log_is_being_written_meanwhile(tmp_path: Path, cut: int) -> None:
    """Its newest segment ends anywhere, and is left as it is: no torn tail is cut."""
    path = write_file(tmp_path, header_of(1), FIRST, [DROP], [stored(seq(9, 1), b"k", b"v", bucket=1)], closed=False)
    path.write_bytes(path.read_bytes()[:-cut])
    begun = file_bytes(header_of(2), [], closed=False)
    (tmp_path / "n1-20240501-0002.rcl").write_bytes(begun[:10])
    assert told(held_in(tmp_path)) == ("5.7", 3, True, True)


def test_files_of_another_node_are_left_alone(tmp_path: Path) -> None:
    write_file(tmp_path, header_of(1, node="n2"), FIRST)
    assert held_in(tmp_path) is None


def test_it_begins_again_where_retention_removed_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file(tmp_path, header_of(1), FIRST)
    write_file(tmp_path, header_of(2), [DROP])
    header = header_of(2, kind=FileKind.CHECKPOINT, first_segment=2)
    write_file(tmp_path, header, imported(0, 0))
    real, tries = old_files.survey, 0

    def survey(*given, **more):  # type: ignore[no-untyped-def]
        nonlocal tries
        tries += 1
        if tries == 1:
            (tmp_path / "n1-20240501-0001.rcl").unlink()
        return real(*given, **more)

    monkeypatch.setattr(old_files, "survey", survey)
    assert files_in(tmp_path).held([0], look) == {}, "what it held is gone with the file"
    assert tries == 2

    monkeypatch.setattr(old_files, "survey", lambda *_given, **_more: (_ for _ in ()).throw(FileNotFoundError("gone")))
    with pytest.raises(FileNotFoundError):
        files_in(tmp_path).held([0], look)


def test_what_did_not_come_to_its_end_is_not_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second walk found less than the first: a file was changed between the two."""
    write_file(tmp_path, header_of(1), FIRST)
    real = old_files.rebuild

    def rebuild(*given, **more):  # type: ignore[no-untyped-def]
        rebuilt = real(*given, **more)
        rebuilt[0].sequence -= 1
        return rebuilt

    monkeypatch.setattr(old_files, "rebuild", rebuild)
    assert told(held_in(tmp_path)) == ("5.7", 0, False, False)


IDENTITY = Identity(name_id("c").hex(), name_id("n1").hex(), "n1", 1, epoch=8, start_epoch=8, incarnation=1, logged=True)
BACK = imported(seq(5, 7), seq(5, 7), [row(seq(5, 6), b"k0", b"6"), row(seq(5, 7), b"k1", b"7")], time_ms=17)
"""What is brought back of `FIRST`, or of as much as matters."""


def test_a_start_recovers_what_was_brought_back_and_not_opened_yet(tmp_path: Path) -> None:
    """A kill right after the view that made this node primary: its log has all of it, for it was on the disk before that."""
    write_file(tmp_path, header_of(1), FIRST, [DROP], BACK, closed=False)
    recovered = recover(tmp_path, tmp_path / "n1.rcs", IDENTITY, wanted=[0])
    assert (recovered.buckets[0].sequence, recovered.buckets[0].items) == (seq(5, 7), 2)


def test_a_start_would_end_where_half_of_it_is_on_the_disk(tmp_path: Path) -> None:
    """Why it is not asked for before."""
    write_file(tmp_path, header_of(1), FIRST, [DROP], BACK[:2], closed=False)
    with pytest.raises(HistoryIncomplete, match=r"let go of by n1 at 5\.7"):
        recover(tmp_path, tmp_path / "n1.rcs", IDENTITY, wanted=[0])
    recovered = recover(tmp_path, tmp_path / "n1.rcs", IDENTITY, wanted=[])
    assert recovered.buckets == {}, "as long as it is nobody's, nothing is wanted of it"


def test_it_is_given_up_where_nobody_waits_any_more(tmp_path: Path) -> None:
    write_file(tmp_path, header_of(1), FIRST)

    def over() -> None:
        raise TimeoutError("over")

    files = files_in(tmp_path)
    with pytest.raises(TimeoutError):
        files.held([0], over)
    assert len(files.held([0], look)) == 1, "and the next may read"
