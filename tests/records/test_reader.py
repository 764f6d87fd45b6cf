"""Reading files back: cut at every byte, changed at every byte, with blocks that are not theirs. Never a wrong record."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rcache.records import walk
from rcache.records.files import BLOCK_HEADER_BYTES, encode_block, encode_end, encode_header
from rcache.records.reader import DataDamaged, Findings, HeaderCut, RecordFile, Tail
from rcache.records.record import Kind, draft, scan

from .bodies import told
from .making import file_bytes, header_of, opened, seq, stored

HEADER = header_of(1)
BLOCKS = [
    [opened(1), stored(seq(1, 1), b"a", b"1" * 20)],
    [stored(seq(1, 2), b"b", b"2" * 20)],
    [stored(seq(1, 3), b"c", b"3" * 20), stored(seq(1, 4), b"a", b"4" * 20)],
]
WHOLE = file_bytes(HEADER, BLOCKS)
HEADER_LENGTH = len(encode_header(HEADER))
BODIES = [b"".join(block) for block in BLOCKS]
ENDS = [len(file_bytes(HEADER, BLOCKS[:count], closed=False)) for count in range(len(BLOCKS) + 1)]
"""Where the header ends, and each block."""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "n1-20240501-0001.rcl"


def read(place: Path, data: bytes, *, skip_damaged: bool = False) -> tuple[list[bytes], Findings]:
    """All blocks and findings. Whoever reads ahead must come to the same findings, or to the same error."""
    place.write_bytes(data)
    bodies: list[bytes] = []
    with RecordFile(place) as file:
        said = read_ahead(file, skip_damaged=skip_damaged)
        try:
            bodies.extend(block.body for block in file.blocks(skip_damaged=skip_damaged))
        finally:
            error = sys.exception()
            assert said in (None, told(file.findings) if error is None else str(error))
    return bodies, file.findings


def read_ahead(file: RecordFile, *, skip_damaged: bool) -> tuple[object, ...] | str | None:
    """What the compiled body finds, or the text of its error; None without a compiled body."""
    if walk.COMPILED is None:
        return None
    try:
        walk.walk(walk.COMPILED.checker(), 0, file, skip_damaged=skip_damaged)
    except DataDamaged as damage:
        return str(damage)
    return told(file.findings)


def test_a_whole_file(place: Path) -> None:
    bodies, findings = read(place, WHOLE)
    assert bodies == BODIES
    assert (findings.tail, findings.whole_bytes, findings.torn_bytes) == (Tail.CLOSED, len(WHOLE), 0)
    assert (findings.blocks, findings.next_number, findings.damage) == (3, 4, [])


def test_a_file_that_is_still_written(place: Path) -> None:
    bodies, findings = read(place, WHOLE[: ENDS[2]])
    assert bodies == BODIES[:2]
    assert (findings.tail, findings.whole_bytes, findings.torn_bytes) == (Tail.UNCLOSED, ENDS[2], 0)
    assert (findings.blocks, findings.next_number, findings.damage) == (2, 2, [])


@pytest.mark.parametrize("skip_damaged", [False, True])
def test_cut_at_every_byte_it_gives_the_blocks_before_the_cut_and_says_where(place: Path, skip_damaged: bool) -> None:
    for length in range(HEADER_LENGTH, len(WHOLE)):
        bodies, findings = read(place, WHOLE[:length], skip_damaged=skip_damaged)
        count = sum(end <= length for end in ENDS[1:])
        assert bodies == BODIES[:count]
        assert findings.whole_bytes == ENDS[count]
        assert findings.torn_bytes == length - ENDS[count]
        assert findings.tail is (Tail.UNCLOSED if length in ENDS else Tail.TORN)
        assert not findings.damage


@pytest.mark.parametrize("length", range(HEADER_LENGTH, len(WHOLE) + 1))
def test_a_torn_file_can_be_cut_and_closed_where_its_findings_say(place: Path, length: int) -> None:
    bodies, findings = read(place, WHOLE[:length])
    if findings.tail is Tail.CLOSED:
        return
    mended = WHOLE[: findings.whole_bytes] + encode_end(HEADER.file_id, findings.next_number, findings.whole_bytes)
    again, after = read(place, mended)
    assert (again, after.tail, after.damage) == (bodies, Tail.CLOSED, [])


def test_whether_a_file_is_closed_shows_in_its_last_bytes(place: Path) -> None:
    for length in range(HEADER_LENGTH, len(WHOLE) + 1):
        place.write_bytes(WHOLE[:length])
        with RecordFile(place) as file:
            assert file.is_closed() is (length == len(WHOLE))


def test_cut_within_its_header_it_says_so(place: Path) -> None:
    for length in range(HEADER_LENGTH):
        with pytest.raises(HeaderCut):
            read(place, WHOLE[:length])


def test_a_byte_changed_anywhere_is_reported_and_never_gives_a_wrong_record(place: Path) -> None:
    for at in range(len(WHOLE)):
        wrong = WHOLE[:at] + bytes([WHOLE[at] ^ 0x41]) + WHOLE[at + 1 :]
        if at < HEADER_LENGTH:
            with pytest.raises(DataDamaged):
                read(place, wrong)
            continue
        bodies, findings = read(place, wrong, skip_damaged=True)
        hit = next((i for i in range(len(BLOCKS)) if at < ENDS[i + 1]), None)
        assert bodies == [body for i, body in enumerate(BODIES) if i != hit]
        if hit is None:
            assert (findings.tail, findings.whole_bytes) == (Tail.TORN, ENDS[-1])
            continue
        (damage,) = findings.damage
        assert (damage.offset, damage.resumes_at) == (ENDS[hit], ENDS[hit + 1])
        with pytest.raises(DataDamaged) as caught:
            read(place, wrong)
        assert (caught.value.path, caught.value.offset) == (place, ENDS[hit])
        assert f"damaged at byte {ENDS[hit]}" in str(caught.value)


def test_a_byte_changed_in_the_last_block_of_a_file_still_written_is_a_torn_tail(place: Path) -> None:
    for at in range(ENDS[-2], ENDS[-1]):
        wrong = WHOLE[:at] + bytes([WHOLE[at] ^ 0x41]) + WHOLE[at + 1 : ENDS[-1]]
        bodies, findings = read(place, wrong)
        assert bodies == BODIES[:-1]
        assert (findings.tail, findings.whole_bytes, findings.torn_bytes) == (Tail.TORN, ENDS[-2], ENDS[-1] - ENDS[-2])


def test_bytes_missing_in_the_middle(place: Path) -> None:
    wrong = WHOLE[: ENDS[1] + 5] + WHOLE[ENDS[2] :]
    bodies, findings = read(place, wrong, skip_damaged=True)
    assert bodies == [BODIES[0], BODIES[2]]
    assert [damage.offset for damage in findings.damage] == [ENDS[1]]
    assert findings.tail is Tail.CLOSED


def test_a_block_missing_as_a_whole(place: Path) -> None:
    wrong = WHOLE[: ENDS[1]] + WHOLE[ENDS[2] :]
    with pytest.raises(DataDamaged, match="block 2 where block 1 was due"):
        read(place, wrong)
    bodies, findings = read(place, wrong, skip_damaged=True)
    assert bodies == [BODIES[0], BODIES[2]]
    assert [(damage.offset, damage.resumes_at) for damage in findings.damage] == [(ENDS[1], ENDS[1])]


def test_a_block_that_is_there_twice_counts_once(place: Path) -> None:
    wrong = WHOLE[: ENDS[2]] + WHOLE[ENDS[1] :]
    bodies, findings = read(place, wrong, skip_damaged=True)
    assert bodies == BODIES
    assert [damage.offset for damage in findings.damage] == [ENDS[2]]


def test_a_block_of_another_file_is_never_taken(place: Path) -> None:
    foreign = header_of(2)
    strangers = encode_block(foreign.file_id, 2, BODIES[2], 2, 1 << 40) + encode_end(foreign.file_id, 3, 1 << 40)
    bodies, findings = read(place, WHOLE[: ENDS[2]] + strangers)
    assert bodies == BODIES[:2]
    assert (findings.tail, findings.whole_bytes, findings.torn_bytes) == (Tail.TORN, ENDS[2], len(strangers))


def test_an_older_block_of_the_same_file_inside_a_torn_value_is_not_taken(place: Path) -> None:
    inner = WHOLE[ENDS[0] : ENDS[1]]
    outer = encode_block(HEADER.file_id, 1, stored(seq(1, 2), b"log", inner + bytes(50)), 1, 0)
    bodies, findings = read(place, WHOLE[: ENDS[1]] + outer[:-10])
    assert bodies == BODIES[:1]
    assert (findings.tail, findings.whole_bytes) == (Tail.TORN, ENDS[1])


def test_what_follows_the_end_block_is_damage(place: Path) -> None:
    with pytest.raises(DataDamaged, match="7 bytes follow the end"):
        read(place, WHOLE + b"garbage")
    bodies, findings = read(place, WHOLE + b"garbage", skip_damaged=True)
    assert bodies == BODIES
    assert findings.tail is Tail.CLOSED
    assert [damage.offset for damage in findings.damage] == [len(WHOLE)]


def test_two_places_of_damage_are_both_reported(place: Path) -> None:
    wrong = bytearray(WHOLE)
    wrong[ENDS[0] + BLOCK_HEADER_BYTES] ^= 1
    wrong[ENDS[2] + BLOCK_HEADER_BYTES] ^= 1
    bodies, findings = read(place, bytes(wrong), skip_damaged=True)
    assert bodies == [BODIES[1]]
    assert [damage.offset for damage in findings.damage] == [ENDS[0], ENDS[2]]


@pytest.mark.parametrize(
    ("body", "records"),
    [(BODIES[0], 3), (BODIES[0][:-1], 2), (bytes(draft(Kind.SET, 0)), 1), (bytes(draft(77, 0)), 1)],
    ids=["miscounted", "uneven", "no key", "unknown kind"],
)
def test_a_block_whose_checksum_fits_but_whose_records_do_not_is_damage(place: Path, body: bytes, records: int) -> None:
    data = encode_header(HEADER) + encode_block(HEADER.file_id, 0, body, records, 0) + encode_end(HEADER.file_id, 1, 1 << 20)
    with pytest.raises(DataDamaged):
        read(place, data)
    assert read(place, data, skip_damaged=True)[0] == []


@pytest.mark.parametrize("lost", [0, 1], ids=["the first", "the second"])
def test_what_a_power_cut_left_out_of_order_is_a_torn_tail(place: Path, lost: int) -> None:
    """Nothing was fsynced; a later block is on the disk, an earlier one is not."""
    front = encode_header(HEADER)
    blocks = [
        encode_block(HEADER.file_id, number, body, 2, len(front))
        for number, body in enumerate([BODIES[0], BODIES[2], BODIES[2]])
    ]
    before = front + b"".join(blocks[:lost])
    bodies, findings = read(place, before + bytes(len(blocks[lost])) + b"".join(blocks[lost + 1 :]))
    assert len(bodies) == lost
    assert (findings.tail, findings.whole_bytes) == (Tail.TORN, len(before))
    assert findings.torn_bytes == sum(map(len, blocks[lost:]))


def test_what_a_later_block_knows_to_have_been_on_the_disk_is_damage(place: Path) -> None:
    """Two unsynced blocks follow the hole; only the last was written after an fsync."""
    front = encode_header(HEADER)
    first = encode_block(HEADER.file_id, 0, BODIES[0], 2, len(front))
    second = encode_block(HEADER.file_id, 1, BODIES[2], 2, len(front))
    third = encode_block(HEADER.file_id, 2, BODIES[2], 2, len(front) + 1)
    with pytest.raises(DataDamaged) as caught:
        read(place, front + bytes(len(first)) + second + third)
    assert (caught.value.offset, caught.value.resumes_at) == (len(front), len(front) + len(first))


def test_damage_longer_than_one_search_step(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rcache.records.reader.SEARCH_BYTES", 16)
    wrong = WHOLE[: ENDS[0]] + bytes(ENDS[1] - ENDS[0]) + WHOLE[ENDS[1] :]
    bodies, findings = read(place, wrong, skip_damaged=True)
    assert bodies == BODIES[1:]
    assert findings.damage[0].resumes_at == ENDS[1]


def test_every_record_of_a_block_can_be_decoded(place: Path) -> None:
    bodies, _ = read(place, WHOLE)
    assert [record.key for body in bodies for record in scan(body)] == [b"", b"a", b"b", b"c", b"a"]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        RecordFile(tmp_path / "none.rcl")
