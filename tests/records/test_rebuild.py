"""Rebuilding: the newest state of every key at one sequence of each bucket, from any set of files that says it."""

from __future__ import annotations

from pathlib import Path

import pytest

from rcache.records.files import BLOCK_HEADER_BYTES, FileKind, encode_header
from rcache.records.history import NO_LIMIT
from rcache.records.reader import DataDamaged
from rcache.records.rebuild import RebuiltBucket, Row, rebuild, survey
from rcache.records.record import Kind, scan
from rcache.stream.data_dir import list_files, sources

from .making import file_bytes, flushed, header_of, imported, opened, removed, row, seq, stored, write_file

pytestmark = pytest.mark.usefixtures("body")


def rebuilt(folder: Path, *, until_ms: int = NO_LIMIT, skip_damaged: bool = False) -> RebuiltBucket:
    """Bucket 0 of what is in this folder."""
    read = sources(list_files(folder))
    plans = survey(read, until_ms=until_ms, skip_damaged=skip_damaged).plans
    return rebuild(read, plans, until_ms=until_ms, skip_damaged=skip_damaged)[0]


def values(bucket: RebuiltBucket) -> dict[bytes, bytes | None]:
    return {key: found.value for key, found in bucket.live_rows()}


def test_the_newest_value_of_each_key_with_all_its_fields(tmp_path: Path) -> None:
    write_file(
        tmp_path,
        header_of(1),
        [opened(1, time_ms=5), stored(seq(1, 1), b"a", b"old", time_ms=6), stored(seq(1, 2), b"b", b"")],
        [stored(seq(1, 3), b"a", b"new", time_ms=9, flags=7, expires_at_ms=99), removed(seq(1, 4), b"b", time_ms=9)],
    )
    bucket = rebuilt(tmp_path)
    assert dict(bucket.live_rows()) == {b"a": Row(seq(1, 3), 7, 99, b"new")}
    assert (bucket.sequence, bucket.time_ms) == (seq(1, 4), 9)


def test_a_flush_takes_all_that_was_before_it_whatever_the_order_of_files(tmp_path: Path) -> None:
    write_file(tmp_path, header_of(1, node="z"), [opened(1), stored(seq(1, 1), b"a", b"1"), flushed(seq(1, 2))])
    write_file(tmp_path, header_of(1, node="y"), [flushed(seq(1, 2)), stored(seq(1, 3), b"b", b"3")])
    write_file(tmp_path, header_of(1, node="x"), [opened(1), stored(seq(1, 1), b"a", b"1")])
    assert values(rebuilt(tmp_path)) == {b"b": b"3"}


def test_dead_records_are_left_out(tmp_path: Path) -> None:
    write_file(tmp_path, header_of(1, node="old"), [opened(1), stored(seq(1, 1), b"a", b"1"), stored(seq(1, 2), b"a", b"dead")])
    write_file(tmp_path, header_of(1, node="new"), [opened(2, seq(1, 1)), stored(seq(2, 1), b"b", b"2")])
    assert values(rebuilt(tmp_path)) == {b"a": b"1", b"b": b"2"}


def test_a_base_and_the_log_since(tmp_path: Path) -> None:
    base = imported(seq(1, 3), seq(1, 4), [row(seq(1, 2), b"a", b"2"), row(seq(1, 4), b"b", b"4")], time_ms=9)
    write_file(tmp_path, header_of(2, kind=FileKind.CHECKPOINT, first_segment=2), base)
    write_file(tmp_path, header_of(2), [stored(seq(1, 4), b"b", b"4"), removed(seq(1, 5), b"a"), stored(seq(1, 6), b"c", b"6")])
    bucket = rebuilt(tmp_path)
    assert values(bucket) == {b"b": b"4", b"c": b"6"}
    assert bucket.sequence == seq(1, 6)


def test_rows_of_a_base_that_is_not_used_stay_out(tmp_path: Path) -> None:
    base = imported(seq(1, 1), seq(1, 2), [row(seq(1, 2), b"ghost", b"2")])
    write_file(tmp_path, header_of(1, kind=FileKind.CHECKPOINT, first_segment=1), base)
    write_file(tmp_path, header_of(1), [opened(1), stored(seq(1, 1), b"a", b"1"), opened(2, seq(1, 1))])
    assert values(rebuilt(tmp_path)) == {b"a": b"1"}


def test_an_import_within_a_log_that_goes_over_two_segments(tmp_path: Path) -> None:
    begin, one, two, end = imported(seq(1, 2), seq(1, 2), [row(seq(1, 1), b"a", b"1"), row(seq(1, 2), b"b", b"2")])
    write_file(tmp_path, header_of(1), [begin, one])
    write_file(tmp_path, header_of(2), [two, end, stored(seq(1, 3), b"a", b"3")])
    assert values(rebuilt(tmp_path)) == {b"a": b"3", b"b": b"2"}


def test_until_is_a_prefix(tmp_path: Path) -> None:
    records = [opened(1, time_ms=0), *(stored(seq(1, n), b"k", b"%d" % n, time_ms=10 * n) for n in range(1, 6))]
    write_file(tmp_path, header_of(1), records)
    for until_ms, value, sequence in [
        (-1, None, 0),
        (0, None, seq(1, 0)),
        (9, None, seq(1, 0)),
        (10, b"1", seq(1, 1)),
        (39, b"3", seq(1, 3)),
    ]:
        bucket = rebuilt(tmp_path, until_ms=until_ms)
        assert (values(bucket).get(b"k"), bucket.sequence) == (value, sequence)


def test_what_was_rebuilt_can_be_written_as_an_import_and_rebuilt_from_that(tmp_path: Path) -> None:
    write_file(
        tmp_path,
        header_of(1),
        [opened(1), stored(seq(1, 1), b"a", b"1", time_ms=4, flags=3), removed(seq(1, 2), b"x", time_ms=5)],
    )
    bucket = rebuilt(tmp_path)
    records = list(bucket.records())
    assert [record.kind for record in scan(b"".join(records))] == [Kind.IMPORT_BEGIN, Kind.ROW, Kind.IMPORT_END]
    write_file(tmp_path / "saved", header_of(2, kind=FileKind.SAVEFILE, first_segment=2), records)
    again = rebuilt(tmp_path / "saved")
    assert dict(again.live_rows()) == dict(bucket.live_rows())
    assert (again.sequence, again.time_ms) == (seq(1, 2), 5)


def test_damage_stops_both_walks_and_can_be_skipped_in_both(tmp_path: Path) -> None:
    path = write_file(tmp_path, header_of(1), [opened(1)], [stored(seq(1, 1), b"a", b"1")], [stored(seq(1, 2), b"b", b"2")])
    at = len(file_bytes(header_of(1), [[opened(1)]], closed=False))
    data = bytearray(path.read_bytes())
    data[at + BLOCK_HEADER_BYTES] ^= 1
    path.write_bytes(data)
    read = sources(list_files(tmp_path))
    for walk in (lambda: survey(read), lambda: rebuild(read, {})):
        with pytest.raises(DataDamaged) as caught:
            walk()
        assert caught.value.offset == at
    found = survey(read, skip_damaged=True)
    assert [damage.offset for damage in found.damage] == [at]
    assert found.problems[0] == "bucket 0: missing link: 1.1 is not there"
    assert values(rebuilt(tmp_path, skip_damaged=True)) == {b"b": b"2"}


def test_rows_whose_import_mark_was_lost_to_damage_are_left_out(tmp_path: Path) -> None:
    begin, *rest = imported(seq(1, 1), seq(1, 1), [row(seq(1, 1), b"a", b"1")])
    header = header_of(1, kind=FileKind.SAVEFILE)
    path = write_file(tmp_path, header, [begin], rest)
    data = bytearray(path.read_bytes())
    data[len(encode_header(header)) + BLOCK_HEADER_BYTES] ^= 1
    path.write_bytes(data)
    read = sources(list_files(tmp_path))
    assert rebuild(read, survey(read, skip_damaged=True).plans, skip_damaged=True) == {}


@pytest.mark.parametrize("kind", [FileKind.CHECKPOINT, FileKind.SAVEFILE])
def test_a_base_that_was_cut_is_damaged_wherever_it_was_cut(tmp_path: Path, kind: FileKind) -> None:
    path = write_file(
        tmp_path, header_of(1, kind=kind), imported(seq(1, 1), seq(1, 1)), imported(seq(1, 1), seq(1, 1), bucket=1)
    )
    whole = path.read_bytes()
    assert survey(sources(list_files(tmp_path))).damage == []
    for length in range(len(encode_header(header_of(1, kind=kind))), len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DataDamaged, match="before its end block"):
            survey(sources(list_files(tmp_path)))
        assert len(survey(sources(list_files(tmp_path)), skip_damaged=True).damage) == 1


def test_a_record_that_makes_no_sense_is_damage(tmp_path: Path) -> None:
    write_file(tmp_path, header_of(1), [opened(2, seq(2, 5))])
    read = sources(list_files(tmp_path))
    with pytest.raises(DataDamaged, match="own future"):
        survey(read)
    assert [damage.why for damage in survey(read, skip_damaged=True).damage] == [
        "bucket 0: epoch 2 says it continues from its own future"
    ]


def test_a_log_cut_at_every_byte_gives_a_prefix_of_its_history(tmp_path: Path) -> None:
    states = [{}]
    records = [opened(1)]
    for n in range(1, 7):
        key = b"ab"[n % 2 : n % 2 + 1]
        records.append(stored(seq(1, n), key, b"%d" % n))
        states.append({**states[-1], key: b"%d" % n})
    path = write_file(tmp_path, header_of(1), *([record] for record in records))
    whole = path.read_bytes()
    seen = []
    for length in range(len(encode_header(header_of(1))), len(whole) + 1):
        path.write_bytes(whole[:length])
        read = sources(list_files(tmp_path))
        found = survey(read)
        assert found.problems == []
        state = {key: each.value for bucket in rebuild(read, found.plans).values() for key, each in bucket.live_rows()}
        assert state in states
        seen.append(states.index(state))
    assert seen == sorted(seen)
    assert set(seen) == set(range(len(states)))


def test_progress_goes_up_to_the_whole(tmp_path: Path) -> None:
    path = write_file(tmp_path, header_of(1), [opened(1)], [stored(seq(1, 1), b"a", b"1")])
    calls: list[tuple[int, int]] = []
    read = sources(list_files(tmp_path))
    survey(read, progress=lambda done, total: calls.append((done, total)))
    size = path.stat().st_size
    assert calls == sorted(calls)
    assert calls[-1] == (size, size)


def test_a_file_that_grew_between_the_walks_adds_no_unknown_bucket(tmp_path: Path) -> None:
    write_file(tmp_path, header_of(1), [opened(1)], closed=False)
    read = sources(list_files(tmp_path))
    plans = survey(read).plans
    write_file(
        tmp_path, header_of(1), [opened(1)], [opened(1, bucket=5), stored(seq(1, 1), b"a", b"1", bucket=5)], closed=False
    )
    assert list(rebuild(read, plans)) == [0]
