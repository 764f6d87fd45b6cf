"""What is missing from the logs themselves: buckets whose last records lay in a segment that is gone are in doubt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rcache.records.files import BLOCK_HEADER_BYTES, FileKind, encode_header
from rcache.records.rebuild import Survey, survey
from rcache.stream.data_dir import list_files, sources

from .making import dropped, header_of, imported, opened, seq, stored, write_file

pytestmark = pytest.mark.usefixtures("body")

QUIET, BUSY = 0, 1
"""Two buckets: one that only segment 2 changes, and one that every segment does."""


def busy(counter: int, time_ms: int = 0) -> bytes:
    return stored(seq(1, counter), b"b", b"v", bucket=BUSY, time_ms=time_ms)


def quiet(counter: int, time_ms: int = 0) -> bytes:
    return stored(seq(1, counter), b"q", b"v", bucket=QUIET, time_ms=time_ms)


@pytest.fixture
def log(tmp_path: Path) -> list[Path]:
    """Segments 1 to 4; the quiet bucket has its last record in segment 2."""
    return [
        write_file(tmp_path, header_of(1, buckets=2), [opened(1, bucket=QUIET), opened(1, bucket=BUSY), busy(1, 10)]),
        write_file(tmp_path, header_of(2, buckets=2), [quiet(1, 20), busy(2, 21)]),
        write_file(tmp_path, header_of(3, buckets=2), [busy(3, 30)]),
        write_file(tmp_path, header_of(4, buckets=2), [busy(4, 40)], closed=False),
    ]


def look(tmp_path: Path, **options: int) -> Survey:
    return survey(sources(list_files(tmp_path)), skip_damaged=True, **options)  # type: ignore[arg-type]


def test_a_whole_log_has_no_doubts(tmp_path: Path, log: list[Path]) -> None:
    found = look(tmp_path)
    assert (found.problems, found.missing) == ([], [])


def test_a_segment_missing_in_the_middle(tmp_path: Path, log: list[Path]) -> None:
    log[1].unlink()
    found = look(tmp_path)
    assert found.missing == ["log of n1: segment 2 missing"]
    assert found.problems == [
        "bucket 0: its end may be missing: log of n1: segment 2 missing",
        "bucket 1: missing link: 1.2 is not there",
    ]


def test_several_segments_missing(tmp_path: Path, log: list[Path]) -> None:
    log[1].unlink()
    log[2].unlink()
    assert look(tmp_path).missing == ["log of n1: segments 2 to 3 missing"]


def test_a_segment_cut_in_the_middle_of_the_log(tmp_path: Path, log: list[Path]) -> None:
    begin = len(encode_header(header_of(2, buckets=2)))
    log[1].write_bytes(log[1].read_bytes()[:begin])
    found = look(tmp_path)
    assert found.missing == ["log of n1: segment 2 is cut short"]
    assert "bucket 0: its end may be missing: log of n1: segment 2 is cut short" in found.problems


def test_damage_that_was_skipped(tmp_path: Path, log: list[Path]) -> None:
    data = bytearray(log[1].read_bytes())
    data[len(encode_header(header_of(2))) + BLOCK_HEADER_BYTES] ^= 1
    log[1].write_bytes(data)
    assert "bucket 0: its end may be missing: log of n1: segment 2 is damaged" in look(tmp_path).problems


def test_a_segment_of_another_history_in_the_middle(tmp_path: Path, log: list[Path]) -> None:
    log[1].unlink()
    write_file(tmp_path, replace(header_of(2, buckets=2), file_id=b"x" * 16), [busy(2, 21)])
    found = look(tmp_path)
    assert found.missing == ["log of n1: segment 3 does not follow the segment 2 that is here"]
    assert found.problems == [f"bucket 0: its end may be missing: {found.missing[0]}"]


def test_the_newest_segment_may_be_torn(tmp_path: Path, log: list[Path]) -> None:
    log[3].write_bytes(log[3].read_bytes()[:-3])
    found = look(tmp_path)
    assert (found.problems, found.missing) == ([], [])


def test_a_later_record_of_the_bucket_settles_the_doubt(tmp_path: Path, log: list[Path]) -> None:
    write_file(tmp_path, header_of(5, buckets=2), [quiet(2, 50)])
    log[3].write_bytes(log[3].read_bytes()[:-3])
    found = look(tmp_path)
    assert found.missing == ["log of n1: segment 4 is cut short"]
    assert found.problems == ["bucket 1: its end may be missing: log of n1: segment 4 is cut short"]


def test_a_base_made_after_the_gap_settles_it(tmp_path: Path, log: list[Path]) -> None:
    log[1].unlink()
    parts = [imported(seq(1, 1), seq(1, 1), bucket=QUIET), imported(seq(1, 2), seq(1, 2), bucket=BUSY)]
    write_file(tmp_path, header_of(3, kind=FileKind.CHECKPOINT, buckets=2, first_segment=3), *parts)
    found = look(tmp_path)
    assert found.missing == ["log of n1: segment 2 missing"]
    assert found.problems == []


def test_a_base_made_before_the_gap_does_not(tmp_path: Path, log: list[Path]) -> None:
    log[1].unlink()
    parts = [imported(seq(1, 0), seq(1, 0), bucket=QUIET), imported(seq(1, 2), seq(1, 2), bucket=BUSY)]
    write_file(tmp_path, header_of(2, kind=FileKind.CHECKPOINT, buckets=2, first_segment=2), *parts)
    assert look(tmp_path).problems == ["bucket 0: its end may be missing: log of n1: segment 2 missing"]


def test_segments_between_a_base_and_the_log(tmp_path: Path, log: list[Path]) -> None:
    for path in log[:3]:
        path.unlink()
    parts = [imported(seq(1, 0), seq(1, 0), bucket=QUIET), imported(seq(1, 3), seq(1, 3), bucket=BUSY)]
    write_file(tmp_path, header_of(2, kind=FileKind.SAVEFILE, buckets=2, first_segment=2), *parts)
    assert look(tmp_path).problems == ["bucket 0: its end may be missing: log of n1: no segment 3"]


def test_a_checkpoint_without_the_segment_it_was_made_in(tmp_path: Path, log: list[Path]) -> None:
    log[2].unlink()
    log[3].unlink()
    parts = [imported(seq(1, 1), seq(1, 1), bucket=QUIET), imported(seq(1, 2), seq(1, 2), bucket=BUSY)]
    header = header_of(3, kind=FileKind.CHECKPOINT, buckets=2, first_segment=3)
    path = write_file(tmp_path, header, *parts)
    lost = [f"bucket {bucket}: its end may be missing: log of n1: no segment 3" for bucket in (QUIET, BUSY)]
    assert look(tmp_path).problems == lost
    log[0].unlink()
    log[1].unlink()
    assert look(tmp_path).problems == lost
    path.unlink()
    write_file(tmp_path, replace(header, kind=FileKind.SAVEFILE), *parts)
    assert look(tmp_path).problems == []


def test_what_a_log_lacks_says_nothing_of_a_bucket_that_it_let_go_of(tmp_path: Path, log: list[Path]) -> None:
    """Another's log has it."""
    log[1].unlink()
    write_file(tmp_path, header_of(1, buckets=2), [opened(1, bucket=QUIET)], [dropped(seq(1, 0), bucket=QUIET)])
    write_file(tmp_path, header_of(1, node="n2", buckets=2), imported(seq(1, 0), seq(1, 0), bucket=QUIET))
    assert look(tmp_path).problems == ["bucket 1: no base: the history does not go back to its birth"]


def test_what_ends_before_the_gap_in_time_is_not_in_doubt(tmp_path: Path, log: list[Path]) -> None:
    log[2].unlink()
    assert look(tmp_path, until_ms=19).problems == []
    assert look(tmp_path, until_ms=20).problems == ["bucket 0: its end may be missing: log of n1: segment 3 missing"]
